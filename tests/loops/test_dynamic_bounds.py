"""Loaded bounds: masks that compare with loaded numbers become loop bounds, whatever the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property.compare import Tolerance
from schedule.agreement import agree
from schedule.machine import GOLDEN, MACHINES, run, target_of
from schedule.programs import (
    Build,
    Inputs,
    ew,
    gelu,
    graph_of,
    product,
    values_for,
)

from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.loops.nest import show
from minigrad.loops.recipes import lower
from minigrad.runtimes.reference import evaluate

NEAR = Tolerance(ulps=16, scale=8, terms=1)
INT = dtypes.int32
EXTREMES = [-(2**31), -1, 0, 1, 2**31 - 1]


def wide(x: Node, shape: tuple[int, ...], axis: int) -> Node:
    """A vector along one axis of a shape."""
    alone = tuple(extent if a == axis else 1 for a, extent in enumerate(shape))
    return g.expand(g.reshape(x, alone), shape)


def masked(condition: Node, x: Node) -> Node:
    zero = g.const(0.0, x.dtype, x.shape, x.device)
    return ew(Op.WHERE, condition, x, zero)


def iota(like: Node, shape: tuple[int, ...], axis: int, dtype: DType = INT) -> Node:
    return wide(g.iota(shape[axis], like.device, dtype), shape, axis)


def segments(rows: int, groups: int, width: int, columns: int) -> Build:
    """For each group the sum of left · right over its rows, first ≤ row < stop."""

    def build(inputs: Inputs) -> list[Node]:
        first, stop = inputs(groups, dtype=INT), inputs(groups, dtype=INT)
        left, right = inputs(rows, width), inputs(rows, columns)

        def theirs(x: Node) -> Node:
            shape = (groups, *x.shape)
            row = iota(left, shape, 1)
            inside = ew(
                Op.AND, ew(Op.LE, wide(first, shape, 0), row), ew(Op.LT, row, wide(stop, shape, 0))
            )
            return masked(inside, g.expand(g.reshape(x, (1, *x.shape)), shape))

        return [batched(g.permute(theirs(left), (0, 2, 1)), theirs(right))]

    return build


def one_bound(dtype: DType, upper: bool = True) -> Build:
    """Groups of rows with an upper bound only, or with a lower one only."""

    def build(inputs: Inputs) -> list[Node]:
        bound, left, right = inputs(3, dtype=dtype), inputs(90, 40), inputs(90, 70)

        def theirs(x: Node) -> Node:
            shape = (3, *x.shape)
            row, end = iota(x, shape, 1, dtype), wide(bound, shape, 0)
            inside = ew(Op.LE, row, end) if upper else ew(Op.LE, end, row)
            return masked(inside, g.expand(g.reshape(x, (1, *x.shape)), shape))

        return [batched(g.permute(theirs(left), (0, 2, 1)), theirs(right))]

    return build


def some_rows(rows: int, depth: int, columns: int, bend: Callable[[Node], Node]) -> Build:
    """Blocks of which only the first rows are needed, each times a selected matrix."""

    def build(inputs: Inputs) -> list[Node]:
        used, which = inputs(5, dtype=INT), inputs(5, dtype=INT)
        x, matrices = inputs(5, rows, depth), inputs(3, depth, columns)
        index = wide(which, (5, depth, columns), 0)
        shape = (5, rows, columns)
        inside = ew(Op.LT, iota(x, shape, 1), wide(used, shape, 0))
        return [bend(masked(inside, batched(x, g.gather(matrices, index, 0))))]

    return build


def batched(x: Node, y: Node) -> Node:
    """(b, m, k) · (b, k, n) → (b, m, n)."""
    (batch, rows, depth), columns = x.shape, y.shape[2]
    shape = (batch, rows, columns, depth)
    left = g.expand(g.reshape(x, (batch, rows, 1, depth)), shape)
    right = g.expand(g.reshape(g.permute(y, (0, 2, 1)), (batch, 1, columns, depth)), shape)
    return g.reshape(g.reduce(Op.SUM, ew(Op.MUL, left, right), [3]), (batch, rows, columns))


CASES: dict[str, Build] = {
    "segments": segments(100, 4, 40, 70),
    "segments, k cut": segments(9000, 3, 40, 132),
    "only stops": one_bound(INT),
    "only stops of 64 bits": one_bound(dtypes.int64),
    "only firsts": one_bound(INT, upper=False),
    "rows": some_rows(100, 64, 80, lambda x: x),
    "rows, epilogue": some_rows(37, 64, 80, gelu),
    "rows, k cut": some_rows(60, 4500, 132, lambda x: x),
}


def check(name: str, machine: str, numbers: Callable[[int], Any]) -> None:
    """Compare with the reference; numbers(count) gives the loaded numbers."""
    _, inputs = graph_of(CASES[name])
    values = values_for(inputs, 1)
    for value in values.values():
        if value.dtype.kind == "i":
            value[...] = numbers(value.size)
    agree(CASES[name], machine, values=values)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", CASES)
def test_what_they_mean(name: str, machine: str) -> None:
    generator = np.random.default_rng(3)
    check(name, machine, lambda count: generator.integers(0, 110, count))


@pytest.mark.parametrize("name", ["segments", "only stops", "rows, epilogue"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_numbers(name: str, data: st.DataObject) -> None:
    """Also beyond every extent: nothing outside is read, and the masks decide the result."""
    numbers = st.integers(-5, 110) | st.sampled_from(EXTREMES)
    check(name, "avx2", lambda n: data.draw(st.lists(numbers, min_size=n, max_size=n)))


@pytest.mark.parametrize("number", [-(2**63), -(2**63) + 1, 2**63 - 2, 2**63 - 1])
def test_numbers_to_which_an_index_of_64_bits_cannot_add(number: int) -> None:
    """An overflow made i ≤ 2⁶³ − 1 select nothing."""
    check("only stops of 64 bits", "avx2", lambda count: [number, 30, number])


@pytest.mark.parametrize(("name", "loaded"), [
    ("segments", "for k0 in 0 … min(100, -[minimum(maximum(([s0["),
    ("segments, k cut", "for kb0 in 0 … min("),
    ("rows", "for k0 in 0 … min(64, 64·[minimum(maximum(([s0["),
])  # fmt: skip
@pytest.mark.parametrize("machine", ["avx512", "avx2"])
def test_bounds_are_loaded(name: str, loaded: str, machine: str) -> None:
    """One kernel, whose loops end at the loaded numbers; nothing as large as a mask is stored."""
    (kernel,) = schedule_of(graph_of(CASES[name])[0], GOLDEN).kernels
    assert loaded in show(lower(kernel, target_of(machine)))


def test_other_masks_stay_masks() -> None:
    """A mask that compares two indices does not become a bound."""

    def triangle(inputs: Inputs) -> list[Node]:
        x, y = inputs(40, 40), inputs(40, 70)
        row, column = (iota(x, (40, 40), axis) for axis in (0, 1))
        return [product(masked(ew(Op.LE, column, row), x), y)]

    for kernel in schedule_of(graph_of(triangle)[0], GOLDEN).kernels:
        assert "minimum(maximum(" not in show(lower(kernel, target_of("avx2")))


@pytest.mark.parametrize("both", [True, False])
def test_an_infinity_outside_counts_where_it_is_not_masked(both: bool) -> None:
    """where(inside, left, 0) · ∞ is NaN outside: only terms that both masks exclude are skipped."""

    def build(inputs: Inputs) -> list[Node]:
        stop, left, right = inputs(3, dtype=INT), inputs(90, 40), inputs(90, 70)

        def wider(x: Node, masks: bool) -> Node:
            shape = (3, *x.shape)
            x = g.expand(g.reshape(x, (1, *x.shape)), shape)
            return masked(ew(Op.LT, iota(x, shape, 1), wide(stop, shape, 0)), x) if masks else x

        return [batched(g.permute(wider(left, True), (0, 2, 1)), wider(right, both))]

    graph, inputs = graph_of(build)
    values = values_for(inputs, 1)
    values[0][...], values[2][80:] = (30, 80, 90), np.inf
    (wanted,) = evaluate(graph.roots, values, {})
    assert np.isfinite(wanted[:2]).all() == both and not np.isfinite(wanted[2]).any()
    for machine in MACHINES:
        (found,) = run(graph, values, machine, 1)
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))
