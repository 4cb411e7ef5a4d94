"""Random graphs with other numbers: general and special programs agree.

See `general` for the command.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import settings

from minigrad.loops import cost

from .general import failure, versions

BATCHES = 10
GRAPHS = 40 if settings().max_examples <= 20 else 2_000
FIRST_SEED = random.SystemRandom().randrange(2**31)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_graphs_with_other_numbers(
    batch: int, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the seeds are the same in every run, half are new; a failure prints seed and scripts.

    The graphs are small; every other batch compiles them like large ones.
    """
    if batch % 2:
        monkeypatch.setattr(cost, "BRIEF_OPERATIONS", 0)
    half = GRAPHS // BATCHES // 2
    new = FIRST_SEED + batch * half
    seeds = [*range(batch * half, (batch + 1) * half), *range(new, new + half)]
    found = [text for seed in seeds if (text := failure(seed, compiled))]
    assert not found, "\n\n".join(found[:2])


def test_versions_differ() -> None:
    """Most graphs have versions with other extents."""
    graphs = [versions(seed) for seed in range(12)]
    assert sum(len(found) > 2 for found in graphs) > 8
    leaves = [[str(s) for s in found[1].statements if "leaf(" in s.code] for found in graphs]
    first = [[str(s) for s in found[0].statements if "leaf(" in s.code] for found in graphs]
    assert sum(a != b for a, b in zip(leaves, first, strict=True)) > 6
