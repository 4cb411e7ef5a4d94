"""Packing: copies of a product's operands in scratch memory, in the order that tiles read them.

A copy takes any index expression, mask or conversion: what an operand costs to compute is paid
once for a block, not once for every tile that reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.symbolic import (
    Atom,
    Integer,
    add,
    coefficient,
    flatten,
    mul,
    numel,
    sub,
)
from minigrad.loops.build import lanes_loop, serial_loop
from minigrad.loops.nest import Loop, Statement, Store
from minigrad.loops.tiles import LINE, Block, Left, Problem, Statements, strides
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.stage import Axis, index_of, make_axis

WORDS = 16  # of a vector with 512 bits


def depth_of(axes: tuple[Axis, ...]) -> tuple[int, Integer]:
    """The extent of all summed axes together, and the place of an element along them."""
    extents = [axis.extent for axis in axes]
    return numel(extents), flatten([index_of(axis.variable) for axis in axes], extents)


def pack_right(
    problem: Problem, width: int, lanes: int, lane: Atom
) -> tuple[Statement, Expr]:
    """Copy the panel of `right` in scope, row k after row k; gives the copy and its read."""
    depth, k = depth_of(problem.parts.k)
    panel = Array("panel", problem.parts.right.dtype, depth * width, "scratch")
    place = add(mul(k, width), index_of(lane))
    copy = _copy_along_k(problem, Store(panel, place, problem.parts.right), lanes)
    return copy, expr.load(panel, place)


def pack_panels(
    problem: Problem, width: int, lanes: int, count: int, start: Integer, lane: Atom
) -> tuple[Statement, Expr, Callable[[Statements], Statements]]:
    """Copy `count` panels of `right`, whose columns begin at `start`, one behind the other.

    Gives the copy, the read of a panel's row, and what repeats statements for every panel.
    """
    column = problem.parts.n[-1]
    depth, k = depth_of(problem.parts.k)
    panels = Array("panel", problem.parts.right.dtype, count * depth * width, "scratch")
    number = make_axis("g", 0, count)
    place = add(
        mul(index_of(number.variable), depth * width), add(mul(k, width), index_of(lane))
    )

    def for_each(body: Statements) -> Statements:
        first = add(start, mul(index_of(number.variable), width))
        stops = (add(first, width), column.extent)
        return (serial_loop(number, (lanes_loop(column, width, body, first, stops, lane),)),)

    copy: Statement = Store(panels, place, problem.parts.right)
    order = _far_first(problem)
    nearest = _distance(problem.parts.right, order[-1])
    if nearest < _distance(problem.parts.right, column):
        (copying,) = for_each((_copy_along_k(problem, copy, lanes),))
    else:  # neighbours in memory are read together
        copying = problem.along_k(for_each((copy,))[0], order=order)
    return copying, expr.load(panels, place), for_each


def _copy_along_k(problem: Problem, copy: Statement, lanes: int) -> Statement:
    """A store for every k, in the order of `right`'s memory; vectors along k are transposed."""
    *outer, nearest = _far_first(problem)
    inner = Loop(nearest.variable, 0, problem.stops(nearest), (copy,), transpose=lanes)
    return problem.along_k(inner, nearest, [*outer, nearest])


def _far_first(problem: Problem) -> list[Axis]:
    """The axes of k in the order in which `right` had better be read: neighbours in memory last."""
    return sorted(problem.parts.k, key=lambda axis: -_distance(problem.parts.right, axis))


def _distance(right: Expr, axis: Axis) -> int:
    """How far apart in memory neighbours along an axis are; unknown counts as far."""
    steps = [coefficient(load.payload[1], axis.variable) for load in expr.loads(right)]
    return max((abs(step) if step is not None else 1 << 62 for step in steps), default=0)


def pack_left(problem: Problem, block: Block, lanes: int) -> tuple[Statement, Left]:
    """Copy a block of rows of `left`; gives the copying and how tiles read it.

    Where its rows are neighbours in memory, tile after tile, else row after row.
    """
    row = problem.parts.m[-1]
    depth, k = depth_of(problem.parts.k)
    assert isinstance(row.extent, int)
    start, end = block.start, add(block.start, block.rows)
    stops: tuple[Integer, ...] = (end, row.extent) if row.extent % block.rows else (end,)
    if block.rows >= row.extent:
        stops = (row.extent,)
    operand = problem.parts.left
    if 1 in strides(operand, row.variable):
        pitch = -(-block.height // lanes) * lanes
        number = make_axis("a", 0, -(-block.rows // block.height))
        depth |= 1  # tiles at distances of kilobytes would compete for lines of the first cache
        lane = make_axis("side", 0, pitch).variable
        array = Array("left", operand.dtype, len_of(number) * depth * pitch, "scratch")
        place = add(
            mul(index_of(number.variable), depth * pitch), add(mul(k, pitch), index_of(lane))
        )
        element = Store(array, place, operand)
        first = add(start, mul(index_of(number.variable), block.height))
        # a vector reads beyond its tile, but not beyond the operand
        vector = lanes_loop(
            row, pitch, (element,), first, (add(first, pitch), row.extent), lane
        )
        # k outside: neighbours in memory are read together
        copying = problem.along_k(serial_loop(number, (vector,)))
        return copying, Left(array, pitch, depth, k)
    stride = row_stride(depth, operand.dtype.itemsize)
    array = Array("left", operand.dtype, block.rows * stride, "scratch")
    inside = sub(index_of(row.variable), start)
    inner = problem.parts.k[-1]
    wide = 2 * lanes if isinstance(inner.extent, int) and inner.extent >= 2 * lanes else lanes
    element = Store(array, add(mul(inside, stride), k), operand)
    vector = lanes_loop(inner, wide, (element,), 0, problem.stops(inner))
    copy = problem.along_k(vector, inner)
    return Loop(row.variable, start, stops, (copy,)), Left(array, 0, stride, k)


def pack_words(problem: Problem, block: Block) -> tuple[Statement, Array, int]:
    """Copy a block of rows of `left`, each of whose elements is 32 bits, row after row.

    Gives the copy and its elements from one row to the next; nothing is there beyond the last row.
    """
    row, inner = problem.parts.m[-1], problem.parts.k[-1]
    depth, k = depth_of(problem.parts.k)
    stride = row_stride(depth, problem.parts.left.dtype.itemsize)
    array = Array("left", problem.parts.left.dtype, block.rows * stride, "scratch")
    place = add(mul(sub(index_of(row.variable), block.start), stride), k)
    copy: Statement = Store(array, place, problem.parts.left)
    stops = (add(block.start, block.rows), row.extent)
    if 1 in strides(problem.parts.left, row.variable):
        copy = problem.along_k(copy)
        return lanes_loop(row, WORDS, (copy,), block.start, stops), array, stride
    copy = problem.along_k(lanes_loop(inner, WORDS, (copy,)), inner)
    return Loop(row.variable, block.start, stops, (copy,)), array, stride


def row_stride(depth: int, itemsize: int) -> int:
    """Elements from one row of a copy to the next: an odd number of cache lines.

    Rows whose distance is a multiple of a few kilobytes would all compete for the same few lines of
    the first-level cache.
    """
    line = max(LINE // max(itemsize, 4), 1)
    return (-(-depth // line) | 1) * line


def len_of(axis: Axis) -> int:
    """The extent of an axis that is a number."""
    assert isinstance(axis.extent, int)
    return axis.extent


def in_pairs(problem: Problem, multiple: int = 1) -> Problem | None:
    """A product of bfloat16 in pairs along k, for `Leaf.DOT`; None where it is none.

    Neighbours along k become one word of 32 bits; a last one without a neighbour gets a zero.
    There will be a multiple of `multiple` words along the last axis, with zeros at the end.
    """
    parts = problem.parts
    operands = [_stored(parts.left), _stored(parts.right)]
    if None in operands or problem.stage.body.dtype is not dtypes.float32:
        return None
    last = parts.k[-1]
    if not isinstance(last.extent, int):
        return None
    two = make_axis("kp", 0, -(-last.extent // (2 * multiple)) * multiple)
    words = []
    for operand in operands:
        assert operand is not None
        low = mul(index_of(two.variable), 2)
        first = expr.substitute_in(operand, {last.variable: low})
        second = expr.substitute_in(operand, {last.variable: add(low, 1)})
        pair = []
        for number, load in enumerate((first, second)):
            array, index, guard = load.payload
            guard = expr.restrict(guard, [sub(last.extent - 1 - number, low)])
            pair.append(expr.load(array, index, guard))
        words.append(expr.apply(Leaf.PAIR, tuple(pair), dtypes.uint32))
    pairs = replace(parts, left=words[0], right=words[1], k=(*parts.k[:-1], two))
    return replace(problem, parts=pairs)


def _stored(operand: Expr) -> Expr | None:
    """The load of bfloat16 below an operand that does nothing else but convert it."""
    while operand.op is Op.CAST:
        operand = operand.args[0]
    return operand if operand.op is Leaf.LOAD and operand.dtype is dtypes.bfloat16 else None
