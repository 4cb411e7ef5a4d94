"""Elementwise work on operands that lie across each other, such as x + y.T, tile by tile.

A vector along x's rows would gather from as many rows of y, and use one element of each cache line
that it touches; where the rows are a power of two apart, these lines also drive each other out of
the cache. So a tile's loop along y's rows is inside of the one over vectors, and whole vectors of
y are transposed in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph.shapes import numel
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Integer, ceildiv
from minigrad.loops.build import lanes_loop
from minigrad.loops.nest import Loop, Statement, Store, Stores
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Expr
from minigrad.target import Target

# Elements of a tile along the transposed axis, where there are more than TILE: a line of float32,
# and a vector of 512 bits. Low tiles that lie side by side beat square ones: a·2 + aᵀ of 2048²
# takes 0.65 ms instead of 1.1 (measured).
DOWN = 16
TILE = 64  # elements of a tile along vectors: four lines of float32


def transposed_axis(outer: Sequence[Axis], axis: Axis, exprs: Sequence[Expr]) -> Axis | None:
    """The axis along which an operand lies that is not in order along the vectors' axis."""
    if isinstance(axis.extent, int):
        for load in expr.loads(*exprs):
            for other in outer:
                if _is_transposed(load, other, axis) and numel([other.extent]) >= DOWN:
                    return other
    return None


def _is_transposed(load: Expr, transposed: Axis, axis: Axis) -> bool:
    place = load.index
    across = coefficient(place, axis.variable)
    return across not in (None, 0, 1) and coefficient(place, transposed.variable) == 1


def transposed_tiles(
    transposed: Axis, axis: Axis, stores: Sequence[Store], target: Target
) -> tuple[list[Axis], tuple[Statement, ...]]:
    """Axes over tiles, and the loops that do one tile, with vectors along `axis`.

    A tile is low, and the next one lies beside it: a cache line of which it stores a part is still
    there when the rest comes, however far apart the rows are.
    """
    extent = numel([transposed.extent])
    height = extent if extent <= TILE else DOWN
    lanes = min(target.lanes(store.array.dtype) for store in stores)
    length = max(TILE, lanes)
    down = make_axis("down", 0, ceildiv(extent, height))
    right = make_axis("right", 0, ceildiv(numel([axis.extent]), length))
    first, start = down.index * height, right.index * length
    above = (first + height, extent) if extent % height else (first + height,)
    beyond: tuple[Integer, ...] = (start + length, axis.extent)
    body = Loop(transposed.variable, first, above, (Stores(tuple(stores)),), transpose=lanes)
    return [down, right], (lanes_loop(axis, lanes, (body,), start, beyond),)
