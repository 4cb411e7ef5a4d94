"""Compares a program's results on a machine with the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from property.compare import Tolerance, difference

from minigrad.runtimes.reference import evaluate

from .machine import run
from .programs import Build, graph_of, values_for

# Allows for sums in any order, with as many terms as the square root of the largest operand's size,
# and for the error of vector math.
NEAR = Tolerance(ulps=16, scale=8, terms=1)


@lru_cache(maxsize=2)  # machines are tried one after the other
def reference(build: Build, n: int) -> tuple[dict[int, np.ndarray], tuple[np.ndarray, ...]]:
    """Random operands of a program and its results for them, shared by all machines."""
    graph, inputs = graph_of(build)
    values = values_for(inputs, n)
    return values, tuple(evaluate(graph.roots, values, {"n": n}))


def agree(
    build: Build,
    machine: str = "host",
    n: int = 1,
    values: dict[int, np.ndarray] | None = None,
    in_place: dict[int, int] | None = None,
    fuse: bool = True,
    tolerance: Tolerance = NEAR,
) -> list[np.ndarray]:
    """The reference's results for a program; AssertionError if the machine's differ."""
    graph, _ = graph_of(build, in_place)
    if values is None:
        values, expected = reference(build, n)
    else:
        expected = evaluate(graph.roots, values, {"n": n})
    found = run(graph, values, machine, n, fuse)
    compare(found, expected, values, f"{machine}, fuse {fuse}", tolerance)
    return list(expected)


def compare(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], values: Mapping[int, np.ndarray],
    where: str, tolerance: Tolerance = NEAR,
) -> None:  # fmt: skip
    """AssertionError if outputs differ from the expected ones by more than these operands allow."""
    operands = tuple(x for x in values.values() if x.dtype not in (np.int32, np.int64))
    terms = max((x.size for x in values.values()), default=1) ** 0.5
    for number, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        problem = difference(got, wanted, tolerance, operands, terms)
        assert problem is None, f"output {number} on {where}: {problem}"
