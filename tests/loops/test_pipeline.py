"""Results of a row that are stored while the next row is computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from property.compare import Tolerance, difference
from schedule.machine import MACHINES, compiler_of, run, target_of
from schedule.programs import (
    Inputs,
    add,
    ew,
    graph_of,
    mean,
    mul,
    plan_of,
    softmax,
    transpose,
    values_for,
)

from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import ceildiv
from minigrad.loops.assemble import MOST_CHUNKS
from minigrad.loops.nest import Loop, Nest, Store, walk
from minigrad.loops.recipes import lower
from minigrad.runtimes.reference import evaluate

Build = Callable[[Node], Node]
NEAR = Tolerance(ulps=16, scale=8, terms=1)


def norm(x: Node) -> Node:
    """Every row minus its mean, divided by its deviation."""
    axis = len(x.shape) - 1
    y = ew(Op.SUB, x, mean(x, axis))
    return ew(Op.DIV, y, ew(Op.SQRT, add(mean(mul(y, y), axis), 1e-5)))


BUILDS: dict[str, Build] = {
    "softmax": lambda x: softmax(x, len(x.shape) - 1),
    "norm": norm,
    "softmax of a transposed array": lambda x: softmax(transpose(x), 1),
    "softmax of rows that lie apart": lambda x: softmax(g.permute(x, (1, 0, 2)), 2),
    "two results": lambda x: add(norm(x), softmax(x, len(x.shape) - 1)),
}
CASES = [
    ("softmax", (300, 70)), ("softmax", (1030, 33)), ("softmax", (256, 64)), ("norm", (514, 130)),
    ("norm", (7, 50, 40)), ("softmax of a transposed array", (96, 258)),
    ("softmax of rows that lie apart", (20, 15, 48)), ("two results", (601, 50)),
]  # fmt: skip


def nest_of(build: Build, shape: tuple[int, ...], machine: str) -> Nest:
    plan = plan_of(lambda new: [build(new(*shape))])
    return lower(plan.kernels[-1], target_of(machine))


@pytest.mark.parametrize("machine", ["avx512 streaming", "sse2"])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_results_are_those_of_the_reference(
    name: str, shape: tuple[int, ...], machine: str
) -> None:
    compiler_of(machine)
    graph, inputs = graph_of(lambda new: [BUILDS[name](new(*shape))])
    values = values_for(inputs, 1)
    for seed in range(2):
        (found,) = run(graph, values, machine, seed=seed)
        (expected,) = evaluate(graph.roots, values, {})
        operands: tuple[np.ndarray, ...] = tuple(values.values())
        assert difference(found, expected, NEAR, operands, shape[-1] ** 0.5) is None


@pytest.mark.parametrize(
    ("rows", "block"),
    [(16 * MOST_CHUNKS, 16), (16 * MOST_CHUNKS - 1, 8), (4 * MOST_CHUNKS, 4)],
)
def test_a_pass_that_only_streams_is_delayed(rows: int, block: int) -> None:
    nest = nest_of(BUILDS["softmax"], (rows, 64), "avx512 streaming")
    assert nest.total == ceildiv(rows, block)
    inner = [s for s in nest.parallel.body if isinstance(s, Loop) and s.kind == "serial"]
    assert len(inner) == (2 if rows % block == 0 else 3)
    assert {array.size for array, _ in nest.scratch} == {1, 2, 128}  # twice what the next row reads


def test_other_rows_are_written_at_once() -> None:
    def parallel(rows: int, machine: str) -> int:
        return nest_of(BUILDS["softmax"], (rows, 64), machine).total

    few = 4 * MOST_CHUNKS - 1
    assert parallel(few, "avx512 streaming") == few
    assert parallel(1024, "avx512") == 1024  # stores stay in the cache
    assert nest_of(norm, (1024, 64), "avx512 streaming").total == 1024  # its passes compute little
    assert set(MACHINES) >= {"avx512", "avx512 streaming"}


def test_what_a_later_pass_reads_stays_in_the_cache() -> None:
    def build(new: Inputs) -> list[Node]:
        x = new(40, 48)
        y = ew(Op.SUB, x, mean(x, 1))
        return [y, add(y, g.flip(y, (1,)))]

    (kernel,) = plan_of(build).kernels
    stores = {
        one.array.name: one for one in walk(lower(kernel, target_of("avx512 streaming")).parallel)
        if isinstance(one, Store) and one.array in kernel.stored
    }  # fmt: skip
    assert [stores[name].streaming for name in ("o1", "o2")] == [False, True]
