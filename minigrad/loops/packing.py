"""Packing: copies of a product's operands in scratch memory, in the order that tiles read them.

A copy takes any index expression, mask or conversion: what an operand costs to compute is paid
once for a block, not once for every tile that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.build import lanes_loop
from minigrad.loops.microkernel import Block, Left, Problem, Statements, strides
from minigrad.loops.nest import Loop, Statement, Store
from minigrad.loops.prefetch import Place, next_rows
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.target import LINE

ROW_WORDS = LINE // 4  # of 32 bits, in a row of a matrix register (AMX): 64 bytes
# Panels over which the copy of a row of `left` pays: written once, it is read once for each.
LEAST_PANELS = 4


def depth_of(axes: tuple[Axis, ...]) -> tuple[int, Integer]:
    """The extent of all summed axes together, and the place of an element along them."""
    extents = [axis.extent for axis in axes]
    return numel(extents), flatten([axis.index for axis in axes], extents)


def pack_right(
    problem: Problem, nr: int, lanes: int, lane: Atom
) -> tuple[Statement, Expr]:
    """Copy the panel of `right` in scope, nr columns at each k; gives the copy and its read."""
    depth, k = depth_of(problem.parts.k)
    panel = Array("panel", problem.parts.right.dtype, depth * nr, "scratch")
    place = k * nr + lane.index
    copy = _copy_along_k(problem, Store(panel, place, problem.parts.right), lanes)
    return copy, expr.load(panel, place)


def pack_panels(
    problem: Problem, nr: int, lanes: int, count: int, start: Integer, lane: Atom
) -> tuple[Statements, Expr, Callable[[Statements], Statements]]:
    """Copy `count` panels of `right`, whose columns begin at `start`, one behind the other.

    Fewer where the columns end, which is not before `start`.

    Gives the copy, the read of a panel, and what repeats statements for every panel.
    """
    column = problem.parts.n[-1]
    depth, k = depth_of(problem.parts.k)
    panels = Array("panel", problem.parts.right.dtype, count * depth * nr, "scratch")
    number = make_axis("g", 0, count)
    extent = column.count
    alone = count == 1 and extent % nr == 0
    at: Integer = 0 if alone else number.index
    place = at * depth * nr + k * nr + lane.index

    inside = (extent - start) // nr  # whole panels from here on

    def for_each(body: Statements, prefetch: tuple[Place, ...] = ()) -> Statements:
        def panel(first: Integer, stop: Integer) -> Statement:
            vector = lanes_loop(column, nr, body, first, (stop,), lane)
            return replace(vector, prefetch=prefetch)

        first = start + at * nr
        each = panel(first, first + nr)
        if alone:
            return (each,)
        each = Loop(number.variable, 0, (count, inside), (each,))
        rest = extent % nr
        if not rest:
            return (each,)
        last = (panel(extent - rest, extent),)
        return (each, Loop(number.variable, inside, (count, inside + 1), last))

    copy: Statement = Store(panels, place, problem.parts.right)
    order = _far_first(problem)
    nearest = _distance(problem.parts.right, order[-1])
    if nearest < _distance(problem.parts.right, column):
        copies = for_each((_copy_along_k(problem, copy, lanes),))
    else:  # neighbours in memory are read together
        prefetch = _rows_ahead(problem.parts.right, order[-1], count * nr)
        copies = (problem.along_k(*for_each((copy,), prefetch), order=order),)
    return copies, expr.load(panels, place), for_each


def for_panels(
    problem: Problem, columns: tuple[Integer, int], nr: int, lanes: int, panels: int, lane: Atom,
    tiles_of: Callable[[Expr, Callable[[Statements], Statements]], Sequence[Statement]],
) -> Statements:  # fmt: skip
    """Pack `panels` panels, do the tiles of each, then the next ones. columns: first, and how many.

    tiles_of: makes the tiles of packed panels from the read of one of them and `for_each` panel.
    """
    start, extent = columns
    together = panels * nr
    turn = make_axis("pg", 0, ceildiv(extent, together))
    alone = turn.extent == 1
    first = start if alone else start + turn.index * together
    copies, right, for_each = pack_panels(problem, nr, lanes, panels, first, lane)
    work = (*copies, *tiles_of(right, for_each))
    if alone:
        return work
    missing = problem.parts.n[-1].count - start + together - 1
    return (Loop(turn.variable, 0, (turn.count, missing // together), work),)


def _copy_along_k(problem: Problem, copy: Statement, lanes: int) -> Statement:
    """A store for every k, in the order of `right`'s memory; vectors along k are transposed."""
    *outer, nearest = _far_first(problem)
    inner = Loop(nearest.variable, 0, problem.stops(nearest), (copy,), transpose=lanes)
    return problem.along_k(inner, skip=nearest, order=[*outer, nearest])


def _far_first(problem: Problem) -> list[Axis]:
    """The axes of k in the order in which `right` lies in memory: neighbours last."""
    return sorted(problem.parts.k, key=lambda axis: -_distance(problem.parts.right, axis))


def _distance(right: Expr, axis: Axis) -> int:
    """How far apart in memory neighbours along an axis are; unknown counts as far."""
    steps = [coefficient(load.index, axis.variable) for load in expr.loads(right)]
    return max((abs(step) if step is not None else 1 << 62 for step in steps), default=0)


def pack_left(problem: Problem, block: Block, lanes: int) -> tuple[Statement, Left]:
    """Copy a block of rows of `left`; gives the copying and how tiles read it.

    Where its rows are neighbours in memory, tile after tile, else row after row.
    """
    row = problem.parts.m[-1]
    depth, k = depth_of(problem.parts.k)
    start, end = block.start, block.start + block.mc
    stops: tuple[Integer, ...] = (end, row.extent) if row.extent % block.mc != 0 else (end,)
    if isinstance(row.extent, int) and block.mc >= row.extent:
        stops = (row.extent,)
    operand = problem.parts.left
    if 1 in strides(operand, row.variable):
        pitch = ceildiv(block.mr, lanes) * lanes
        depth |= 1  # tiles at distances of kilobytes would compete for lines of the first cache
        count = ceildiv(block.mc, block.mr)
        array = Array("left", operand.dtype, count * depth * pitch, "scratch")
        prefetch = _rows_ahead(operand, problem.parts.k[-1], block.mc)
        lane = make_axis("side", 0, pitch).variable

        def copied(number: Integer, *stops: Integer) -> Loop:
            """Copy a row of a tile and what follows it up to the pitch, or up to the stops."""
            first = start + number * block.mr
            place = number * depth * pitch + k * pitch + lane.index
            copy = Store(array, place, operand)
            return replace(
                lanes_loop(row, pitch, (copy,), first, (first + pitch, *stops), lane),
                prefetch=prefetch,
            )

        # A vector reads beyond its tile, but not beyond the operand: the last ones end there.
        # Those of them that belong to the block before have numbers below 0 here, and no elements.
        beyond = row.extent - pitch + block.mr
        whole_tiles = (max(beyond, 0) if isinstance(beyond, int) else beyond) // block.mr
        most = ceildiv(pitch, block.mr)
        last = whole_tiles - block.number * count
        number, edge = make_axis("a", 0, count), make_axis("a", 1, most)
        whole = Loop(
            number.variable, 0, (count, last), (copied(number.index),)
        )
        at = last + edge.index
        none_before = start + at * block.mr + (at + 1) * pitch
        rest = Loop(
            edge.variable, 0, (most, count - last), (copied(at, row.extent, none_before),)
        )
        # k outside: neighbours in memory are read together
        copying = problem.along_k(whole, rest)
        return copying, Left(array, pitch, depth, k)
    stride = row_stride(depth, operand.dtype.itemsize)
    array = Array("left", operand.dtype, block.mc * stride, "scratch")
    inside = row.index - start
    inner = problem.parts.k[-1]
    wide = 2 * lanes if isinstance(inner.extent, int) and inner.extent >= 2 * lanes else lanes
    element = Store(array, inside * stride + k, operand)
    vector = lanes_loop(inner, wide, (element,), 0, problem.stops(inner))
    copy = problem.along_k(vector, skip=inner)
    return Loop(row.variable, start, stops, (copy,)), Left(array, 0, stride, k)


def _rows_ahead(operand: Expr, k: Axis, elements: int) -> tuple[Place, ...]:
    """What a copy of `elements` neighbours at each k reads some steps later."""
    return tuple(
        next_rows((load.array, load.index), k.variable, elements * load.array.dtype.itemsize)
        for load in expr.loads(operand)
        if not load.guard and coefficient(load.index, k.variable)
    )


def pack_words(problem: Problem, block: Block) -> tuple[Statement, Array, int]:
    """Copy a block of rows of `left`, each of whose elements is 32 bits, row after row.

    Gives the copy and its elements from one row to the next; nothing is there beyond the last row.
    """
    row, inner = problem.parts.m[-1], problem.parts.k[-1]
    depth, k = depth_of(problem.parts.k)
    stride = row_stride(depth, problem.parts.left.dtype.itemsize)
    array = Array("left", problem.parts.left.dtype, block.mc * stride, "scratch")
    place = (row.index - block.start) * stride + k
    copy: Statement = Store(array, place, problem.parts.left)
    stops = (block.start + block.mc, row.extent)
    if 1 in strides(problem.parts.left, row.variable):
        copy = problem.along_k(copy)
        return lanes_loop(row, ROW_WORDS, (copy,), block.start, stops), array, stride
    copy = problem.along_k(lanes_loop(inner, ROW_WORDS, (copy,)), skip=inner)
    return Loop(row.variable, block.start, stops, (copy,)), array, stride


def row_stride(depth: int, itemsize: int) -> int:
    """Elements from one row of a copy to the next: an odd number of cache lines.

    Rows whose distance is a multiple of a few kilobytes would all compete for the same few lines of
    the first-level cache.
    """
    line = max(LINE // max(itemsize, 4), 1)
    return (ceildiv(depth, line) | 1) * line


def in_pairs(problem: Problem, multiple: int = 1) -> Problem | None:
    """A product of bfloat16 in pairs along k, for `Leaf.DOT`; None where it is none.

    What is rounded to bfloat16 for the product's sake only is rounded when it is copied. Neighbours
    along k become one word of 32 bits; a last one without a neighbour gets a zero.
    There will be a multiple of `multiple` words along the last axis, with zeros at the end.
    """
    parts = problem.parts
    operands = [_narrow(parts.left), _narrow(parts.right)]
    if None in operands or problem.stage.body.dtype is not dtypes.float32:
        return None
    last = parts.k[-1]
    if not isinstance(last.extent, int):
        return None
    two = make_axis("kp", 0, ceildiv(last.extent, 2 * multiple) * multiple)
    words = []
    for operand in operands:
        assert operand is not None
        low = two.index * 2
        pair = []
        for number in (0, 1):
            at = expr.substitute_in(operand, {last.variable: low + number})
            pair.append(_where(at, last.extent - 1 - number - low))
        words.append(expr.apply(Leaf.PAIR, tuple(pair), dtypes.uint32))
    pairs = replace(parts, left=words[0], right=words[1], k=(*parts.k[:-1], two))
    return replace(problem, parts=pairs)


def _narrow(operand: Expr) -> Expr | None:
    """The bfloat16 that an operand is: in memory, or a float32 that is rounded to it."""
    while operand.op is Op.CAST and operand.dtype is not dtypes.bfloat16:
        operand = operand.args[0]
    if operand.dtype is not dtypes.bfloat16:
        return None
    rounded = operand.op is Op.CAST and operand.args[0].dtype is dtypes.float32
    memory = operand.args[0] if rounded else operand
    return operand if memory.op is Leaf.LOAD else None


def _where(operand: Expr, condition: Integer) -> Expr:
    """A load, converted or not, and zero where a condition is negative."""
    if operand.op is Op.CAST:
        return expr.apply(Op.CAST, (_where(operand.args[0], condition),), operand.dtype)
    array, index, guard = operand.array, operand.index, operand.guard
    return expr.load(array, index, expr.restrict(guard, [condition]))
