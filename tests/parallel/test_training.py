"""Data and sequence parallel training: the results of one device."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import devices_of_ranks, exchanges

from minigrad.models import gpt_commands
from minigrad.models.errors import InputError
from minigrad.models.interrupt import Stopped
from minigrad.models.metrics import Metrics
from minigrad.models.parallel import Rank, SequenceParallel, run

from . import cases
from .ranks import LIMIT, on_ranks, start

pytestmark = pytest.mark.usefixtures("brief")
ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = "--steps 12 --layers 2 --dim 32 --heads 2 --context 16 --batch 8 --seed 3"


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ring_attention(size: int) -> None:
    for errors in on_ranks("local", cases.attention, size, 24, 5):
        assert max(errors) < 1e-5


def test_ring_attention_over_mpi() -> None:
    for errors in on_ranks("mpi", cases.attention, 4, 48, 6):
        assert max(errors) < 1e-5


def test_memory_of_ring_attention_grows_with_the_ranks_part_only() -> None:
    """It does not grow with the part's square: no scores are kept, forward or backward."""
    part = 1024 * 2 * 16 * 4  # bytes of a rank's queries: a quarter of 4096, or half of 2048
    for size, length in ((2, 2048), (4, 4096)):
        for used in on_ranks("mpi", cases.memory_of_attention, size, length):
            assert used < 24 * part < 1024 * 1024 * 4


def test_zigzag_order() -> None:
    def held(rank: Rank) -> tuple[list[tuple[int, int]], list[int]]:
        sequence = SequenceParallel(rank.world, 24)
        with pytest.raises(InputError, match="multiple of 6"):
            SequenceParallel(rank.world, 27)
        return sequence.spans, sequence.take(np.arange(24).reshape(1, 24))[0].tolist()

    for number, (spans, tokens) in enumerate(run(held, 3)):
        first, last = 4 * number, 4 * (5 - number)
        assert spans == [(first, first + 4), (last, last + 4)]
        assert tokens == [*range(first, first + 4), *range(last, last + 4)]
    assert run(lambda rank: SequenceParallel(rank.world, 7).spans, 1) == [[(0, 7)]]


def test_buckets_average_uneven_parts() -> None:
    results = on_ranks("local", cases.buckets, 3)
    (alone,) = on_ranks("local", cases.buckets, 1)
    for part in results:
        for found, other, first in zip(part, alone, results[0], strict=True):
            for a, b, c in zip(found, other, first, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
                assert np.array_equal(a, c)  # the same bits on every rank


@pytest.mark.parametrize("kind", ["local", "mpi"])
def test_all_start_with_what_rank_0_alone_would_draw(kind: str) -> None:
    ((weights, number, _),) = on_ranks("local", cases.synchronized, 1)
    results = on_ranks(kind, cases.synchronized, 3)
    for state, _, _ in results:
        for name, value in state.items():
            assert np.array_equal(value, weights[name]), name
    assert np.array_equal(results[0][1], number)  # and rank 0 has drawn no more numbers than that
    # the last of the ring sends nothing on; the others send everything once
    once = sum(value.nbytes for value in weights.values())
    assert [sent for _, _, sent in results] == [once, once, 0]


def test_numbers_are_drawn_once_when_they_are_exchanged(on_device: str) -> None:
    assert devices_of_ranks(on_device, 2)
    if not exchanges(on_device):
        pytest.skip(f"ranks on {on_device} do not exchange, as test_exchanges.py checks")
    (alone,) = on_ranks("local", cases.lazily_exchanged, 1)
    for found in on_ranks("local", cases.lazily_exchanged, 2):
        for mine, other in zip(found, alone, strict=True):
            assert np.array_equal(mine, other)


@pytest.mark.parametrize(
    ("kind", "size", "batch"), [("local", 3, 12), ("local", 4, 18), ("mpi", 3, 12)]
)
def test_batch_norm_has_the_statistics_of_all(kind: str, size: int, batch: int) -> None:
    results = on_ranks(kind, cases.normalized, size, 50, batch)
    ((losses, state),) = on_ranks("local", cases.normalized, 1, 50, batch)
    for found, values in results:
        np.testing.assert_allclose(found, losses, rtol=1e-4)
        for name, value in values.items():
            np.testing.assert_allclose(value, state[name], rtol=1e-3, atol=1e-4, err_msg=name)
            assert np.array_equal(value, results[0][1][name])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(1).choice(["to", "be", "or", "not", "that", "is"], 3000)
    path.write_text(" ".join(words), "utf-8")
    return path


def losses(path: Path) -> list[float]:
    """The losses of all steps and the last validation loss."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [*(line["loss"] for line in lines), lines[-1]["val_loss"]]


def trained(text: Path, folder: Path, layout: str, kind: str = "local") -> list[float]:
    """Train a small GPT in a layout; returns its losses."""
    metrics = folder / "metrics.jsonl"
    flags = ["--text", str(text), "--metrics", str(metrics), "--checkpoint",
             str(folder / "gpt.safetensors"), *SMALL.split(), *layout.split()]  # fmt: skip
    if kind == "local":
        gpt_commands.main(flags)
    else:
        process = start([str(ROOT / "models" / "gpt.py"), *flags], 4)
        out, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, out + errors
    return losses(metrics)


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return trained(text, tmp_path_factory.mktemp("alone"), "")


@pytest.mark.parametrize("layout", ["--sp 4", "--dp 2 --sp 2", "--dp 3"])
def test_gpt_learns_as_on_one_device(
    layout: str, text: Path, alone: list[float], tmp_path: Path
) -> None:
    np.testing.assert_allclose(trained(text, tmp_path, layout), alone, rtol=1e-4)


def test_gpt_over_mpi(text: Path, alone: list[float], tmp_path: Path) -> None:
    found = trained(text, tmp_path, "--dp 2 --sp 2", "mpi")
    np.testing.assert_allclose(found, alone, rtol=1e-4)


class Interrupting(Metrics):
    """Metrics that raise a signal after step 7, on the rank that records to a file."""

    def record(self, **figures: Any) -> None:
        super().record(**figures)
        if self.file is not None and figures["step"] == 7:
            signal.raise_signal(signal.SIGINT)


def test_resumed_ranks_lose_nothing(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data parallel with dropout, stopped after 7 of 12 steps: bitwise the losses of a whole run.
    """
    layout = "--dp 2 --dropout 0.1"
    (tmp_path / "whole").mkdir()
    whole = trained(text, tmp_path / "whole", layout)
    with monkeypatch.context() as patched:
        patched.setattr(gpt_commands, "Metrics", Interrupting)
        with pytest.raises(Stopped, match="stopped after step 7 of 12"):
            trained(text, tmp_path, layout)
    metrics, path = tmp_path / "metrics.jsonl", tmp_path / "gpt.safetensors"
    gpt_commands.main(["train", "--resume", str(path), "--metrics", str(metrics)])
    assert losses(metrics) == whole
