"""In-place writes to a part of a buffer store only that part."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad.compile import schedule_of
from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Integer
from minigrad.runtimes.reference import evaluate

from .machine import GOLDEN, run
from .programs import DEVICE, LENGTH, Build, Inputs, ew, graph_of, mul, total, values_for


def written(x: Node, new: Node, starts: tuple[Integer, ...]) -> Node:
    """x with `new` at a position, as `x[...] = new` records it."""
    amounts = [
        (start, have - start - length)
        for start, have, length in zip(starts, x.shape, new.shape, strict=True)
    ]
    inside = g.pad(g.const(True, dtypes.bool, new.shape, DEVICE), amounts)
    return g.elementwise(Op.WHERE, inside, g.pad(new, amounts), x)


def cache(inputs: Inputs) -> list[Node]:
    x, new = inputs(2, 24, 8), inputs(2, 1, 8)
    return [written(x, mul(new, 2.0), (0, LENGTH - 1, 0))]


def rectangle(inputs: Inputs) -> list[Node]:
    x, new = inputs(40, 50), inputs(7, 15)
    return [written(x, new, (3, 30))]


def one_element(inputs: Inputs) -> list[Node]:
    x, new = inputs(40, 50), inputs(1, 1)
    return [written(x, new, (39, 49))]


def own_elements(inputs: Inputs) -> list[Node]:
    """The new values are computed from the old ones at the same places."""
    x = inputs(40, 50)
    return [written(x, mul(g.shrink(x, [(2, 9), (5, 45)]), 3.0), (2, 5))]


def read_too(inputs: Inputs) -> list[Node]:
    """Another output reads the whole old value, and a sum reads the new one."""
    x, new = inputs(30, 20), inputs(4, 20)
    y = written(x, new, (LENGTH, 0))
    return [y, ew(Op.ADD, x, 1.0), total(y, 0)]


def from_elsewhere(inputs: Inputs) -> list[Node]:
    """The new values come from elsewhere in the array: the write must not read its own results."""
    x = inputs(30, 20)
    return [written(x, g.shrink(x, [(3, 13), (0, 20)]), (8, 0))]


def shuffled(inputs: Inputs) -> list[Node]:
    """Data selects the elements: all are written."""
    x, y = inputs(30, 20), inputs(30, 20)
    return [g.elementwise(Op.WHERE, ew(Op.LT, y, 0.0), mul(y, 2.0), x)]


def partly_shuffled(inputs: Inputs) -> list[Node]:
    """Data selects elements of a part: all elements are written."""
    x, y = inputs(30, 20), inputs(30, 20)
    inside = g.pad(g.const(True, dtypes.bool, (7, 20), DEVICE), [(3, 20), (0, 0)])
    test = g.elementwise(Op.AND, inside, ew(Op.LT, y, 0.0))
    return [g.elementwise(Op.WHERE, test, mul(y, 2.0), x)]


def summed(inputs: Inputs) -> list[Node]:
    """The elements are summed, so none is left as it is: all sums are computed, and then copied."""
    x, new = inputs(30, 1), inputs(6, 7)
    return [total(written(g.expand(x, (30, 7)), new, (4, 0)), 1)]


CASES = {
    cache: 16, rectangle: 105, one_element: 1, own_elements: 280, read_too: 80,
    from_elsewhere: 600, shuffled: 600, partly_shuffled: 600, summed: 30,
}  # fmt: skip


@pytest.mark.parametrize("n", [1, 5, 24])
@pytest.mark.parametrize("machine", ["host", "avx2", "sse2", "scalar"])
@pytest.mark.parametrize("build", CASES)
def test_writes(build: Build, machine: str, n: int) -> None:
    graph, inputs = graph_of(build, {0: 0})
    values = values_for(inputs, n)
    expected = evaluate(graph.roots, values, {"n": n})
    plan = schedule_of(graph, GOLDEN)
    (target,) = [a for a, slot in plan.slots.items() if slot == 0 and a.name.startswith("o")]
    (stage,) = [s for k in plan.kernels for s in k.stages if s.array == target]
    assert stage.iterations == CASES[build]
    for found, wanted in zip(run(graph, values, machine, n), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_places_count_from_their_start() -> None:
    graph, _ = graph_of(rectangle, {0: 0})
    (kernel,) = schedule_of(graph, GOLDEN).kernels
    (stage,) = kernel.stages
    assert [axis.extent for axis in stage.axes] == [7, 15]
    assert not stage.guard
    assert stage.position.constant == 3 * 50 + 30


def at_loaded_places(length: int, wraps: bool = False) -> Build:
    """Writes first[b] … first[b] + length − 1 of each b; wraps: compares sums that may overflow."""

    def build(inputs: Inputs) -> list[Node]:
        x, new, first = inputs(5, 24, 8), inputs(5, 1, 8), inputs(5, dtype=dtypes.int32)

        def wide(y: Node, *shape: int) -> Node:
            return g.expand(g.reshape(y, shape), x.shape)

        place, begin = wide(g.iota(24, DEVICE), 1, 24, 1), wide(first, 5, 1, 1)
        late = ew(Op.SUB, place, length - 1)
        if wraps:
            tests = [ew(Op.LE, begin, place), ew(Op.LE, ew(Op.SUB, late, begin), 0)]
        else:
            tests = [ew(Op.LE, begin, place), ew(Op.LE, late, begin)]
        number = ew(Op.ADD, wide(new, 5, 1, 8), g.cast(place, dtypes.float32))
        return [g.elementwise(Op.WHERE, ew(Op.AND, *tests), number, x)]

    return build


@pytest.mark.parametrize("machine", ["host", "avx2", "sse2", "scalar"])
@pytest.mark.parametrize(
    ("build", "iterations"),
    [(at_loaded_places(1), 40), (at_loaded_places(3), 120), (at_loaded_places(3, True), 960)],
)
def test_loaded_places(build: Build, iterations: int, machine: str) -> None:
    graph, inputs = graph_of(build, {0: 0})
    (stage,) = schedule_of(graph, GOLDEN).kernels[0].stages
    assert stage.iterations == iterations
    values = values_for(inputs, 1)
    for first in ([-(2**31), -2, 0, 23, 2**31 - 1], [3, 22, -1, 24, 11]):
        values[2] = np.array(first, np.int32)
        expected = evaluate(graph.roots, values, {"n": 1})
        (found,) = run(graph, values, machine, 1)
        np.testing.assert_array_equal(found, expected[0])
