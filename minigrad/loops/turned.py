"""Elementwise work on operands that lie across each other, such as x + y.T, tile by tile.

A vector along x's rows would gather from as many rows of y, and use one element of each cache line
that it touches; where the rows are a power of two apart, these lines also drive each other out of
the cache. So a tile of y is copied in its own order to scratch memory, whose rows are an odd
number of elements apart, and the gathers read that.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph.symbolic import Integer, add, coefficient, mul, numel, sub
from minigrad.loops.build import lanes_loop
from minigrad.loops.nest import Loop, Statement, Store, Stores
from minigrad.loops.target import Target
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr
from minigrad.schedule.stage import Axis, index_of, make_axis

TILE = 64  # elements of a tile in both directions


def turned_axis(outer: Sequence[Axis], axis: Axis, exprs: Sequence[Expr]) -> Axis | None:
    """The axis along which an operand lies that is not in order along the vectors' axis."""
    if isinstance(axis.extent, int):
        for load in expr.loads(*exprs):
            for other in outer:
                if _is_turned(load, other, axis) and numel([other.extent]) >= TILE // 4:
                    return other
    return None


def _is_turned(load: Expr, turned: Axis, axis: Axis) -> bool:
    place = load.payload[1]
    across = coefficient(place, axis.variable)
    return across not in (None, 0, 1) and coefficient(place, turned.variable) == 1


def tiles(
    turned: Axis, axis: Axis, width: int, stores: Sequence[Store], target: Target
) -> tuple[list[Axis], tuple[Statement, ...]]:
    """Axes over tiles, and the loops that do one tile, with vectors along `axis`."""
    assert isinstance(turned.extent, int) and isinstance(axis.extent, int)
    length = -(-TILE // width) * width
    down = make_axis("down", 0, -(-turned.extent // TILE))
    right = make_axis("right", 0, -(-axis.extent // length))
    first, start = mul(index_of(down.variable), TILE), mul(index_of(right.variable), length)
    above: tuple[Integer, ...] = (add(first, TILE), turned.extent)
    beyond: tuple[Integer, ...] = (add(start, length), axis.extent)
    row, column = index_of(turned.variable), index_of(axis.variable)
    place = add(mul(sub(column, start), TILE + 1), sub(row, first))
    copies: list[Statement] = []
    changed: dict[Expr, Expr] = {}
    for load in expr.loads(*(store.value for store in stores)):
        if _is_turned(load, turned, axis):
            tile = Array(f"tile{len(copies)}", load.dtype, length * (TILE + 1), "scratch")
            lanes = target.lanes(load.dtype)
            copy = lanes_loop(turned, lanes, (Store(tile, place, load),), first, above)
            copies.append(Loop(axis.variable, start, beyond, (copy,)))
            changed[load] = expr.load(tile, place)
    body = tuple(
        Store(s.array, s.index, expr.rebuild(s.value, changed.get), s.guard, s.streaming)
        for s in stores
    )
    vector = lanes_loop(axis, width, (Stores(body),), start, beyond)
    return [down, right], (*copies, Loop(turned.variable, first, above, (vector,)))
