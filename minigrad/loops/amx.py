"""Products of bfloat16 in the matrix registers of a processor (AMX), in squares of 32 × 32.

    parallel over batch × blocks of columns × blocks of rows:
      pack the block of `left`, row after row, in words of two neighbours along k
      for each panel of the block's columns:
        pack the panel of `right`, in such words too
        for each square of the block:
          square = left's 32 rows · panel
          store the square through the epilogue
"""

from __future__ import annotations

from minigrad.dtype import dtypes
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.build import lanes_loop
from minigrad.loops.microkernel import Block, Problem
from minigrad.loops.nest import Loop, Matrix, MatrixProduct, Statement, Store, Stores
from minigrad.loops.packing import LEAST_PANELS, depth_of, pack_right, pack_words
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array
from minigrad.target import FEW_TASKS, Target

SQUARE = 32  # rows and columns of a square: two matrix registers, of 16 rows, in both directions


def plan_amx(problem: Problem, target: Target, batches: int) -> tuple[int, int] | None:
    """Rows and columns of a task, or None if packing does not pay; problem: in whole registers."""
    row, column = numel([problem.parts.m[-1].extent]), numel([problem.parts.n[-1].extent])
    if row < SQUARE // 2 or column < LEAST_PANELS * SQUARE:
        return None
    depth, _ = depth_of(problem.parts.k)
    most = target.l2 // 2 // (4 * depth) // SQUARE
    if most == 0:
        return None
    squares, panels = ceildiv(row, SQUARE), ceildiv(column, SQUARE)
    blocks = ceildiv(squares, most)
    column_blocks = max(min(ceildiv(FEW_TASKS, batches * blocks), panels // LEAST_PANELS), 1)
    return ceildiv(squares, blocks) * SQUARE, ceildiv(panels, column_blocks) * SQUARE


def amx(
    problem: Problem, block: Block, start: Integer, columns: int, lane: Atom
) -> list[Statement]:
    """The work of one parallel iteration, whose columns are `columns` from `start` on."""
    parts = problem.parts
    row, column = parts.m[-1], parts.n[-1]
    copy_left, left, pitch = pack_words(problem, block)
    copy_right, panel = pack_right(problem, SQUARE, SQUARE, lane)
    depth, _ = depth_of(parts.k)
    square = Array("square", dtypes.float32, SQUARE * SQUARE, "scratch")
    number = make_axis("t", 0, block.tiles)
    inside = number.index * SQUARE
    product = MatrixProduct(
        Matrix(square, 0, SQUARE), Matrix(left, inside * pitch, pitch),
        Matrix(panel.array, 0, SQUARE), SQUARE, SQUARE, depth,
    )  # fmt: skip
    u = make_axis("u", 0, SQUARE)
    first = block.start + inside
    at: dict[Atom, Integer] = {row.variable: first + u.index}
    result = expr.load(square, u.index * SQUARE + lane.index)
    items = []
    for store in problem.stores:
        value = expr.substitute_in(
            expr.rebuild(store.value, {problem.accumulator: result}.get), at
        )
        items.append(Store(store.array, substitute(store.index, at), value))
    epilogue = Loop(u.variable, 0, (SQUARE, row.extent - first), (Stores(tuple(items)),))
    left_over = (row.extent - block.start + SQUARE - 1) // SQUARE
    each = Loop(number.variable, 0, (block.tiles, left_over), (product, epilogue))
    stops = (start + columns, column.extent)
    return [copy_left, lanes_loop(column, SQUARE, (copy_right, each), start, stops, lane)]
