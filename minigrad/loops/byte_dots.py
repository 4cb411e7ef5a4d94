"""Sums of products of bytes, four of them at a time, as processors add them (AVX-512 VNNI).

Σ over k of u[k]·s[k], u unsigned and s signed bytes, becomes a sum over words of `Leaf.DOT`, where
neighbours along k are adjacent in memory. Masks and shifts of u are applied to the four bytes of a
word at once.

A product with a quantized matrix is Σ over blocks of scale · Σ over a block of u·s: whole numbers,
that become float32 once for each block. Its recipe keeps both sums of a few rows in registers, so
that what a word of the matrix costs to load and to unpack is paid once for all of them:

    parallel over tiles of the matrix:
      for some rows at a time:
        total[rows] = 0
        for blocks:
          part = 0
          for words:  part += u[words, lanes] · s[row, words]
          total[row] += part · scale
        store the totals through the epilogue

In matrix registers (AMX), part[rows, lanes] is one product of a block's rows with the words of a
tile, which are unpacked before, once for all rows.

Each row is summed in the same order, however many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import ceildiv
from minigrad.loops import nest
from minigrad.loops.assemble import in_levels
from minigrad.loops.build import inline_stages, lanes_loop, loops_over, reduction, summands
from minigrad.loops.cost import SMALL_TILES, cut
from minigrad.loops.nest import Loop, Lowered, Statement, Statements, Store, Stores
from minigrad.loops.prefetch import AHEAD, Place
from minigrad.loops.product import LANE
from minigrad.loops.transforms import Around, LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, place_along, size_of
from minigrad.schedule.byte_dots import LANES, in_blocks, in_words
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import ENOUGH_TASKS, FEW_TASKS, Target

# Operations per byte of the matrix that take no longer than reading it: those of two rows, if a
# core does 256 a cycle and reads 4 bytes.
OPERATIONS_A_BYTE = 64
# Rows from which on matrix registers pay: with fewer, a thread waits for the words of the matrix.
LEAST_IN_SQUARES = 16
SUMS = 24  # of some rows, that fit in registers together with an unpacked word of the matrix


def byte_dots(kernel: Kernel, target: Target) -> Lowered:
    """The loops of a product with a quantized matrix."""
    first, *others = kernel.stages
    sums = others[0] if others and others[0].op is Op.SUM else first
    alone = in_words(first)
    words = None if alone is None else {alone.body: alone}
    words = words if sums is first else in_blocks(first, sums)
    assert words is not None, "it was when the schedule made this kernel"
    dots = next(iter(words.values()))
    *outer, lane = sums.axes
    m = [axis for axis in outer if axis.variable not in dots.body.args[0].variables]
    n = [axis for axis in outer if axis not in m]
    tiles = [axis.variable for axis in n]
    squares = None
    if target.matrices and m and sums is not first:
        squares = in_squares(words, sums, m[-1], lane)
    parts, operands = (words, {}) if squares is None else (squares.parts, squares.operands)
    naive = loops_over([*n, *m, lane], _naive(kernel, parts, sums))
    s = LoopNest([in_levels(loop, target) for loop in naive if isinstance(loop, Loop)], **operands)
    if m:
        *more, rows = (axis.variable for axis in m)
        most = SUMS // (len(words) + 1) if squares is None else LANES
        block = s.split(rows, cut(m[-1].typical, 1, most), "t")
        s.reorder(*tiles, *more, block, lane.variable, rows)
    s.vectorize(lane.variable, LANES, LANE)
    if sums is not first and squares is None:
        s.repeat(*(axis.variable for axis in dots.reduced))
    if m:
        s.peel(block, rows)
        s.tails(rows, SMALL_TILES)
        s.sink(rows)
        if squares is not None:
            group = sums.reduced[-1].variable
            for number, one in enumerate(parts.values()):
                names, (k,) = (f"left{number}", f"right{number}"), one.reduced
                s.tensorize(group, rows, [k.variable], *names, dtypes.int8, dtypes.uint8)
            unpacked = squares.unpacked
            s.insert(tiles[-1], lambda *_: unpacked)
        s.unroll(rows, "u")
    if sums is not first and squares is None:
        ahead = target.rows_ahead or AHEAD // 4
        s.prefetch(sums.reduced[-1].variable, lambda loop, at: _blocks_ahead(loop, at, ahead))
    # kernels that compute much are shared by more threads, in chunks half as long
    return Lowered(s.parallelize(*tiles), runs=(OPERATIONS_A_BYTE, FEW_TASKS, ENOUGH_TASKS))


def _blocks_ahead(loop: Loop, around: Around, ahead: int) -> tuple[Place, ...]:
    """The matrix elements so many bytes ahead: loads that the lanes do not share."""
    lanes = {one.variable for one in around.values() if one.kind == "lanes"}
    loads = [
        e for e in expr.loads(*nest.expressions(loop))
        if not lanes.isdisjoint(e.variables) and not e.in_registers
    ]  # fmt: skip
    nbytes = LANES * sum(e.array.dtype.itemsize for e in loads)
    later = {loop.variable: loop.index + ceildiv(ahead, nbytes)}
    return tuple((e.array, substitute(e.index, later)) for e in loads)


@dataclass(frozen=True)
class Squares:
    """The sums of blocks by matrix registers, which leave them in scratch memory.

    parts: for each load in a kernel's sums, the sum of words in memory that it reads. operands: of
    these, left0, right0, left1, …. unpacked: the words of a tile, for all of its groups.
    """

    parts: Mapping[Expr, Stage]
    operands: Mapping[str, Expr]
    unpacked: Statements


def in_squares(words: Mapping[Expr, Stage], sums: Stage, rows: Axis, lane: Axis) -> Squares | None:
    """Sums for matrix registers, if there are many rows and words are in memory as they read them.

    A sum has `deep` words of the matrix (its terms, one after the other) and as many neighbours of
    a row. words: for each load in `sums`, the sum that it reads.
    """
    terms = [_terms(dots.body) for dots in words.values()]
    inner = next(iter(words.values())).reduced
    length, word = size_of(inner), place_along(inner)
    deep = length * len(terms[0])
    many = isinstance(rows.extent, int) and rows.count >= LEAST_IN_SQUARES
    alike = len({tuple(matrix for matrix, _ in own) for own in terms}) == 1
    if not many or not alike or lane.extent != LANES or deep > LANES:
        return None
    panel = Array("panel", dtypes.uint32, size_of(sums.reduced) * deep * LANES, "scratch")
    begin = place_along(sums.reduced) * deep * LANES + lane.index
    parts: dict[Expr, Stage] = {}
    operands: dict[str, Expr] = {}
    for number, (read, dots) in enumerate(words.items()):
        vectors = [vector for _, vector in terms[number]]
        if any(vector.op is not Leaf.LOAD or vector.guard for vector in vectors):
            return None
        first = substitute(vectors[0].index, {axis.variable: 0 for axis in inner})
        wanted = [first + n * length + word for n in range(len(vectors))]
        if [x.index for x in vectors] != wanted or coefficient(first, rows.variable) is None:
            return None
        k, zero = make_axis("w", number, deep), expr.const(0, dots.body.dtype)
        left = expr.load(vectors[0].array, first + k.index)
        right = expr.load(panel, begin + k.index * LANES)
        body = expr.apply(Leaf.DOT, (right, left, zero), zero.dtype)
        parts[read] = replace(dots, reduced=(k,), body=body)
        operands |= {f"left{number}": left, f"right{number}": right}
    stores = tuple(
        Store(panel, begin + (n * length + word) * LANES, matrix)
        for n, (matrix, _) in enumerate(terms[0])
    )
    unpacked = loops_over([*sums.reduced, *inner], [lanes_loop(lane, LANES, stores)])
    return Squares(parts, operands, unpacked)


def _terms(dot: Expr) -> list[tuple[Expr, Expr]]:
    """The words of the matrix and of the vector that nested DOTs multiply, the innermost first."""
    matrix, vector, inner = dot.args
    return [*(_terms(inner) if inner.op is Leaf.DOT else ()), (matrix, vector)]


def _naive(kernel: Kernel, words: Mapping[Expr, Stage], sums: Stage) -> list[Statement]:
    """One result: for all blocks, the sums of a block, and what they add to the total.

    If there is only one sum, it is the total.
    """
    body, parts = list[Statement](), dict[Expr, Expr]()
    steps: dict[tuple[Axis, ...], list[Statement]] = {}
    for number, (read, dots) in enumerate(words.items()):
        parts[read] = total = expr.register(f"part{number}", dots.body.dtype)
        begin, step = reduction(Op.SUM, total, (), [dots.body])
        body.append(begin)
        steps.setdefault(dots.reduced, []).append(step)
    body += [one for axes, some in steps.items() for one in loops_over(axes, some)]
    if sums.array != dots.array:
        total = expr.register("total", sums.body.dtype)
        terms = summands(expr.replace_in(sums.body, parts))
        begin, *more = reduction(Op.SUM, total, (), terms)
        body = [begin, *loops_over(sums.reduced, [*body, *more])]
    others = kernel.stages[1 + (sums.array != dots.array) :]
    stores = inline_stages((sums, *others), kernel.stored, sums.axes, {sums.array: total})
    return [*body, Stores(tuple(stores))]
