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

from dataclasses import replace

from minigrad.graph.node import Op
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import ceildiv
from minigrad.loops.assemble import assemble
from minigrad.loops.build import inline_stages, loops_over, reduction, summands
from minigrad.loops.cost import SMALL_TILES
from minigrad.loops.levels import in_levels
from minigrad.loops.nest import Loop, Nest, Statement, Stores, expressions
from minigrad.loops.prefetch import AHEAD, Place
from minigrad.loops.transforms import Around, Schedule
from minigrad.schedule import expr
from minigrad.schedule.byte_dots import LANES, in_blocks, in_words
from minigrad.schedule.expr import Local
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import Target

ROWS = 12  # whose two sums are in registers, with what a word of the matrix is unpacked to


def byte_dots(kernel: Kernel, target: Target, name: str) -> Nest:
    """The loop nest of a product with a quantized matrix."""
    first, *others = kernel.stages
    sums = others[0] if others and others[0].op is Op.SUM else first
    dots = in_words(first) if sums is first else in_blocks(first, sums)
    assert dots is not None, "it was when the schedule made this kernel"
    *outer, lane = sums.axes
    m = [axis for axis in outer if axis.variable not in dots.body.args[0].variables]
    n = [axis for axis in outer if axis not in m]
    tiles = [axis.variable for axis in n]
    naive = loops_over([*n, *m, lane], _naive(kernel, dots, sums))
    s = Schedule([in_levels(loop, target) for loop in naive if isinstance(loop, Loop)])
    for axis in m:
        rows = axis.variable
        block = s.split(rows, ceildiv(axis.typical, ceildiv(axis.typical, ROWS)), "t")
        s.reorder(*tiles, block, lane.variable, rows)
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
    return assemble(name, kernel, s.nest, target)


def _blocks_ahead(loop: Loop, around: Around) -> tuple[Place, ...]:
    """What a few blocks further on are read of the matrix: what the lanes do not share."""
    lanes = {one.variable for one in around.values() if one.kind == "lanes"}
    loads = [e for e in expr.loads(*expressions(loop)) if not lanes.isdisjoint(e.variables)]
    nbytes = LANES * sum(e.array.dtype.itemsize for e in loads)
    later = {loop.variable: loop.index + ceildiv(AHEAD // 4, nbytes)}
    return tuple((e.array, substitute(e.index, later)) for e in loads)


def _naive(kernel: Kernel, dots: Stage, sums: Stage) -> list[Statement]:
    """One element: for all blocks, the sum of a block, and what it adds to the total.

    Where `dots` is all there is to sum, its total.
    """
    part = expr.local(Local("part", dots.body.dtype, 1))
    total = expr.local(Local("total", sums.body.dtype, 1))
    body = reduction(Op.SUM, part, dots.reduced, [dots.body])
    if sums.array == dots.array:
        total = part
    else:
        (read,) = (load for load in expr.loads(sums.body) if load.array == dots.array)
        terms = summands(expr.replace_in(sums.body, {read: part}))
        begin, *more = reduction(Op.SUM, total, (), terms)
        body = [begin, *loops_over(sums.reduced, [*body, *more])]
    marker = replace(sums, op=None, reduced=(), body=total)
    others = kernel.stages[1 + (total is not part) :]
    stores = inline_stages(replace(kernel, stages=(marker, *others)), sums.axes)
    return [*body, Stores(tuple(stores))]
