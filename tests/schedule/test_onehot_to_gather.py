"""Sums that pick one element become loads, with the same result."""

from __future__ import annotations

import pytest
from property.compare import EXACT

from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.schedule.split import MANY_ADDED, one_hot

from .agreement import agree
from .programs import DEVICE, Inputs, ew, graph_of, plan_of, softmax, total


def places(extent: int, axis: int, shape: tuple[int, ...], dtype: DType) -> Node:
    """0, 1, 2 … along an axis of a shape."""
    line = g.cast(g.iota(extent, DEVICE), dtype)
    return g.expand(g.reshape(line, tuple(extent if a == axis else 1 for a in range(2))), shape)


def picking(axis: int, dtype: DType, swapped: bool = False):
    """A program that picks from each row (or column) the element that a label names."""

    def build(inputs: Inputs) -> list[Node]:
        x = inputs(30, 40)
        shape = tuple(1 if a == axis else e for a, e in enumerate(x.shape))
        label = g.expand(inputs(*shape, dtype=dtype, low=0, high=50), x.shape)
        counter = places(x.shape[axis], axis, x.shape, dtype)
        test = g.elementwise(Op.EQ, *((counter, label) if swapped else (label, counter)))
        zero = g.const(0, x.dtype, x.shape, DEVICE)
        return [total(g.elementwise(Op.WHERE, test, x, zero), axis)]

    return build


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [dtypes.int32, dtypes.int64, dtypes.uint8])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_picking_sum_is_a_load(axis: int, dtype: DType, swapped: bool) -> None:
    """Labels that name no element give 0."""
    build = picking(axis, dtype, swapped)
    assert not any(s.reduced for kernel in plan_of(build).kernels for s in kernel.stages)
    agree(build, tolerance=EXACT)


def test_a_counter_that_wraps_picks_nothing() -> None:
    """int8 counts only to 127, so several of 300 places equal a label: the sum stays a sum."""

    def build(inputs: Inputs) -> list[Node]:
        x, label = inputs(4, 300), inputs(4, 1, dtype=dtypes.int8, low=0, high=100)
        test = g.elementwise(
            Op.EQ, g.expand(label, x.shape), places(300, 1, x.shape, dtypes.int8)
        )
        zero = g.const(0, x.dtype, x.shape, DEVICE)
        return [total(g.elementwise(Op.WHERE, test, x, zero), 1)]

    agree(build)


def test_small_work_does_not_hold_up_large_work() -> None:
    """A loss's mean, and a gradient divided by the same count in the kernel of the rows."""

    def build(inputs: Inputs) -> list[Node]:
        x, label = inputs(64, 700), inputs(64, 1, dtype=dtypes.int32, low=0, high=9)
        counted = ew(Op.NE, label, g.const(3, label.dtype, label.shape, DEVICE))
        count = g.reshape(total(g.cast(counted, x.dtype), 0), (1, 1))
        powers = softmax(x, 1)
        loss = ew(Op.DIV, total(ew(Op.LOG, total(powers, 1)), 0), count)
        return [loss, ew(Op.DIV, powers, g.expand(count, (64, 1)))]

    plan = plan_of(build)
    heavy = [k for k in plan.kernels if sum(s.iterations for s in k.stages) > 64 * 600]
    assert len(heavy) == 1


@pytest.mark.parametrize("count", [MANY_ADDED, 3 * MANY_ADDED // 2, 16411])
def test_many_additions_at_places_are_in_parts(count: int) -> None:
    """The number of parts divides the number of additions; a prime number has one part."""

    def build(inputs: Inputs) -> list[Node]:
        label = inputs(1, count, dtype=dtypes.int32, low=-3, high=70)
        x, shape = inputs(1, count, dtype=dtypes.int32, low=-9, high=9), (64, count)
        test = g.elementwise(Op.EQ, g.expand(label, shape), places(64, 0, shape, dtypes.int32))
        zero = g.const(0, x.dtype, shape, DEVICE)
        return [total(g.elementwise(Op.WHERE, test, g.expand(x, shape), zero), 1)]

    graph, _ = graph_of(build)
    found = one_hot(graph.roots[0])
    while found.op is not Op.SCATTER_ADD:
        (found,) = found.src
    assert found.shape[0] == (1 if count == 16411 else 16)
    agree(build, tolerance=EXACT)
