"""Random captured steps: each call gives the results of its lines. See `steps` for the command."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from child import said
from devices import CPU
from hypothesis import settings

from minigrad import Tensor

from .steps import Step, failure_of, make_step

ROOT = Path(__file__).resolve().parents[2]
BATCHES = 5
STEPS = 50 if settings().max_examples <= 20 else 5_000
FIRST_SEED = random.SystemRandom().randrange(2**31)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_captured_steps(batch: int, compiled: str) -> None:
    """Half of the seeds are the same in every run, half are new; a failure prints seed and step."""
    half = STEPS // BATCHES // 2
    new = FIRST_SEED + batch * half
    seeds = [*range(batch * half, (batch + 1) * half), *range(new, new + half)]
    found = [(seed, text) for seed in seeds if (text := failure_of(make_step(seed), compiled))]
    assert not found, "\n\n".join(f"seed {seed}: {text}" for seed, text in found[:2])


@pytest.mark.parametrize("seed, least", [(1, 6), (FIRST_SEED, 0)], ids=["known", "new"])
def test_steps_in_groups(seed: int, least: int) -> None:
    """A few steps run by the command with `--groups`: many kernels run concurrently."""
    text = said("-m", "tests.property.steps", "--device", CPU, "--seed", str(seed), "--count", "12",
                "--groups", str(seed), cwd=ROOT)  # fmt: skip
    found = re.search(r"(\d+) kernels, (\d+) of them beside the one before", text)
    assert found is not None and int(found[2]) >= least, text


def test_the_comparison_notices_a_difference(
    compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step whose captured results differ must fail."""
    step = Step(2, 3, ("t0 = a + b.count()",), ("t0",), ("new", "new"))
    turn = iter(range(100))
    monkeypatch.setattr(Tensor, "count", lambda self: next(turn), raising=False)
    assert "call 0 (new), t0 then" in str(failure_of(step, compiled))
