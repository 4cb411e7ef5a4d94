"""Sums of products of bytes, four of them at a time, as processors add them (AVX-512 VNNI).

Σ over k of u[k]·s[k], u unsigned and s signed bytes, becomes a sum over words of `Leaf.DOT`, where
neighbours along k are neighbours in memory. What is done to u before, masks and shifts, is done to
the four bytes of a word at once.

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

Each row is summed in the same order, however many there are.
"""

from __future__ import annotations

from collections.abc import Mapping

from minigrad.graph.node import Op
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import ceildiv
from minigrad.loops.assemble import assemble, in_levels, in_long_runs, memory_bound
from minigrad.loops.build import epilogue, loops_over, reduction, summands
from minigrad.loops.cost import SMALL_TILES, cut
from minigrad.loops.nest import Loop, Nest, Statement, Stores, expressions
from minigrad.loops.prefetch import AHEAD, Place
from minigrad.loops.transforms import Around, Schedule
from minigrad.schedule import expr
from minigrad.schedule.byte_dots import LANES, in_blocks, in_words
from minigrad.schedule.expr import Expr
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import ENOUGH_TASKS, FEW_TASKS, Target

# For each byte of the matrix, of what takes no longer than to read it: those of two rows, where a
# core does 256 a cycle and reads 4 bytes.
OPERATIONS_A_BYTE = 64
SUMS = 24  # of some rows, that are in registers with what a word of the matrix is unpacked to


def byte_dots(kernel: Kernel, target: Target) -> Nest:
    """The loop nest of a product with a quantized matrix."""
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
    naive = loops_over([*n, *m, lane], _naive(kernel, words, sums))
    s = Schedule([in_levels(loop, target) for loop in naive if isinstance(loop, Loop)])
    if m:
        *more, rows = (axis.variable for axis in m)
        count, most = m[-1].typical, SUMS // (len(words) + 1)
        block = s.split(rows, cut(count, 1, most), "t")
        s.reorder(*tiles, *more, block, lane.variable, rows)
    s.vectorize(lane.variable, LANES)
    if sums is not first:
        s.repeat(*(axis.variable for axis in dots.reduced))
        s.prefetch(sums.reduced[-1].variable, _blocks_ahead)
    if m:
        s.peel(block, rows)
        s.tails(rows, SMALL_TILES)
        s.sink(rows)
        s.unroll(rows, "u")
    s.parallelize(*tiles)
    nest = assemble(kernel, s.nest, target)
    # of what computes more threads can have a part, in chunks half as long
    return in_long_runs(nest, FEW_TASKS if memory_bound(nest, OPERATIONS_A_BYTE) else ENOUGH_TASKS)


def _blocks_ahead(loop: Loop, around: Around) -> tuple[Place, ...]:
    """What a few blocks further on are read of the matrix: what the lanes do not share."""
    lanes = {one.variable for one in around.values() if one.kind == "lanes"}
    loads = [
        e for e in expr.loads(*expressions(loop))
        if not lanes.isdisjoint(e.variables) and not e.in_registers
    ]  # fmt: skip
    nbytes = LANES * sum(e.array.dtype.itemsize for e in loads)
    later = {loop.variable: loop.index + ceildiv(AHEAD // 2, nbytes)}
    return tuple((e.array, substitute(e.index, later)) for e in loads)


def _naive(kernel: Kernel, words: Mapping[Expr, Stage], sums: Stage) -> list[Statement]:
    """One element: for all blocks, the sums of a block, and what they add to the total.

    Where these sums are all there is, there is one, and it is the total.
    """
    clear, add, parts = list[Statement](), list[Statement](), dict[Expr, Expr]()
    for number, (read, dots) in enumerate(words.items()):
        parts[read] = total = expr.register(f"part{number}", dots.body.dtype)
        begin, *more = reduction(Op.SUM, total, (), [dots.body])
        clear.append(begin)
        add += more
    body = [*clear, *loops_over(dots.reduced, add)]
    if sums.array != dots.array:
        total = expr.register("total", sums.body.dtype)
        terms = summands(expr.replace_in(sums.body, parts))
        begin, *more = reduction(Op.SUM, total, (), terms)
        body = [begin, *loops_over(sums.reduced, [*body, *more])]
    others = kernel.stages[1 + (sums.array != dots.array) :]
    stores = epilogue(kernel, (sums, *others), {sums.array: total}, sums.axes)
    return [*body, Stores(tuple(stores))]
