"""Random graphs with other numbers: general and special programs agree.

See `general` for the command.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import settings

from minigrad.loops import cost

from .general import failure, versions
from .graph_merging import PRIMES, extents, make_merging

BATCHES = 10
GRAPHS = 40 if settings().max_examples <= 20 else 2_000
FIRST_SEED = random.SystemRandom().randrange(2**31)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_graphs_with_other_numbers(
    batch: int, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the seeds are the same in every run, half are new; a failure prints seed and scripts.

    Of either half, every other graph merges its dimensions. The graphs are small; every other batch
    compiles them like large ones.
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
    graphs = [versions(seed) for seed in range(24)]
    assert sum(len(found) > 2 for found in graphs) > 18
    leaves = [[[str(s) for s in one.statements if "leaf(" in s.code] for one in found[:2]]
              for found in graphs]  # fmt: skip
    assert sum(first != second for first, second in leaves) > 14


def test_dimensions_merge() -> None:
    """Most graphs of odd seeds merge dimensions, and in many of them two extents or more vary."""
    graphs = [make_merging(seed) for seed in range(20)]
    products = {a * b for a in PRIMES for b in PRIMES}
    assert sum(any(products & {*s.shape} for s in graph.statements) for graph in graphs) > 10
    random = np.random.default_rng(1)
    several = 0
    for graph in graphs:
        some = extents(graph, random)
        several += sum(len({one[n] for one in some}) > 1 for n in PRIMES) > 1
    assert several > 6
