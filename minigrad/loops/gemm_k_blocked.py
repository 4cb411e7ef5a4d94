"""Products whose operands exceed the caches: k is cut too, and sums wait in scratch memory.

    parallel over batch × blocks of nc columns × blocks of mc rows:
      sums[mc, nc] = 0
      for each kc elements of k:
        pack the block of `left`: mc × kc       (stays in the second-level cache)
        for some panels of the columns at a time:
          pack the panels of `right`: kc × nr each
          for each tile of rows, for each panel:  sums += …
      store the sums through the epilogue

After "Anatomy of High-Performance Matrix Multiplication" (Goto, van de Geijn, 2008); mr, nr, mc, kc
and nc are explained in gemm.py.
"""

from __future__ import annotations

from dataclasses import replace

from minigrad.graph.node import Op
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.build import combine, lanes_loop, serial_loop
from minigrad.loops.microkernel import Ahead, Block, Problem, tiles
from minigrad.loops.nest import Loop, Statement, Store, Stores
from minigrad.loops.packing import for_panels, pack_left
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array
from minigrad.schedule.stage import identity
from minigrad.target import Target


def cut_depth(problem: Problem, kc: int) -> tuple[int, int]:
    """The axis of k that is cut, and how much of it makes `kc` elements of k or less."""
    axes = problem.parts.k
    inner = 1
    for place in range(len(axes) - 1, -1, -1):
        extent = numel([axes[place].extent])
        if inner * extent > kc or place == 0:
            parts = ceildiv(extent, max(kc // inner, 1))
            return place, ceildiv(extent, parts)
        inner *= extent
    raise AssertionError("a product has an axis of k")


def gemm_k_blocked(
    problem: Problem,
    target: Target,
    block: Block,
    columns: tuple[Integer, int],
    nr: int,
    kc: int,
    panels: int,
    lane: Atom,
) -> list[Statement]:
    """The work of one parallel iteration; columns: the first of them, and how many.

    panels: how many are packed together.
    """
    start, nc = columns
    parts, dtype = problem.parts, problem.stage.body.dtype
    row, column = parts.m[-1], parts.n[-1]
    stops = (start + nc, column.extent)
    sums = Array("sums", dtype, block.mc * nc, "scratch")
    inside = (row.index - block.start) * nc
    place = inside + column.index - start

    cut, length = cut_depth(problem, kc)
    axis = parts.k[cut]
    number = make_axis("kb", 0, ceildiv(axis.count, length))
    within = make_axis("kk", 0, length)
    before = number.index * length
    at: dict[Atom, Integer] = {axis.variable: before + within.index}
    rest = () if axis.count % length == 0 else (axis.count - before,)
    part = replace(
        problem,
        parts=replace(
            parts,
            left=expr.substitute_in(parts.left, at),
            right=expr.substitute_in(parts.right, at),
            k=(within, *parts.k[cut + 1 :]),
        ),
        stores=(Store(sums, place, combine(Op.SUM, expr.load(sums, place), problem.accumulator)),),
        ends=(*rest, *(end - before for end in problem.ends)),
        terms=problem.terms and expr.substitute_in(problem.terms, at),
    )
    lanes = target.lanes(dtype)
    copy_left, left = pack_left(part.from_row(block.start), block, lanes)
    work = for_panels(
        part.from_row(block.start), columns, nr, lanes, panels, lane,
        lambda right, around: tiles(part, left, right, block, nr, Ahead(nr), around),
    )  # fmt: skip
    body: tuple[Statement, ...] = (copy_left, *work)
    pieces = ((end + length - 1) // length for end in problem.ends)
    body = (Loop(number.variable, 0, (number.extent, *pieces), body),)
    for outer in reversed(parts.k[:cut]):
        body = (serial_loop(outer, body),)
    return [
        _for_each(row, block, column, start, stops, nr,
                  Store(sums, place, identity(Op.SUM, dtype))),
        *body,
        _for_each(row, block, column, start, stops, nr, _epilogue(problem, sums, place)),
    ]  # fmt: skip


def _epilogue(problem: Problem, sums: Array, place: Integer) -> Statement:
    known = {problem.accumulator: expr.load(sums, place)}
    return Stores(
        tuple(replace(s, value=expr.rebuild(s.value, known.get)) for s in problem.stores)
    )


def _for_each(
    row: Axis, block: Block, column: Axis, start: Integer, stops: tuple[Integer, ...],
    nr: int, body: Statement,
) -> Statement:  # fmt: skip
    """A statement for each element of the block."""
    vector = lanes_loop(column, nr, (body,), start, stops)
    ends = (block.start + block.mc, row.extent)
    return Loop(row.variable, block.start, ends, (vector,))
