"""Sums of columns: vectors across the columns, and memory read in the order in which it lies.

A block of columns has its sums in scratch memory, small enough for the first cache, and is read
row by row. (Column by column, or several rows at a time, no prefetching would follow: measured, a
third of the speed.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from minigrad.graph.symbolic import Integer, ceildiv, high
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import fix_rows, merge_stage, vector_width
from minigrad.loops.build import loops_over, naive
from minigrad.loops.nest import Loop, Nest, Statement, expressions
from minigrad.loops.prefetch import Place, later_rows
from minigrad.loops.transforms import Around, Schedule
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Expr, Leaf, Local
from minigrad.schedule.fuse import prefix_length
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import Target

# Elements of a column that make it worthwhile: to clear the sums and to store them is a pass each,
# beside one for every element.
LEAST_LENGTH = 8
ENOUGH_BLOCKS = 32  # parallel iterations: a few for each thread
LEAST_COLUMNS = 256  # of a block: 1 KiB of float32, 16 lines that lie together in memory


def is_column_reduction(kernel: Kernel, length: int, target: Target) -> bool:
    """Whether all stages have one element per row, of `length` neighbouring rows, many sums.

    As many columns as a few registers hold have their sums there (see rows.py).
    """
    if length <= 4 * target.lanes(kernel.stages[0].array.dtype):
        return False
    reductions = [stage for stage in kernel.stages if stage.op is not None]
    return (
        any(stage.iterations >= LEAST_LENGTH * stage.size for stage in reductions)
        and all(prefix_length(s, kernel.rows) == len(s.axes) for s in kernel.stages)
    )


def column_reduction(kernel: Kernel, length: int, target: Target, name: str) -> Nest:
    """The loop nest of sums of columns; `length` neighbouring rows are columns in memory."""
    width = vector_width(target, [stage.body for stage in kernel.stages], length, True)
    sums = sum(stage.op is not None for stage in kernel.stages)
    size = _block_size(high(kernel.rows) // length, length, width, target.l1 // 4 // sums)
    outer, column = make_axis("p", 0, kernel.rows // length), make_axis("c", 0, length)
    o, c = outer.variable, column.variable

    def below(loop: Loop, around: Around) -> tuple[Place, ...]:
        *_, inner = around
        return () if inner == block else later_rows(expressions(loop), inner, column, size, target)

    s = Schedule(loops_over([outer, column], _naive(kernel, outer.index * length + column.index)))
    block = s.split(c, size, "b")
    s.sink(c, space="scratch")
    s.prefetch(c, below)
    s.vectorize(c, width)
    s.parallelize(o, block)
    return assemble(name, kernel, s.nest, target)


def _block_size(outer: int, length: int, width: int, most: int) -> int:
    """Columns of a block: at most `most`, and so few that there are enough blocks to share."""
    size = min(length, max(most, LEAST_COLUMNS))
    while outer * ceildiv(length, size) < ENOUGH_BLOCKS and size >= 2 * LEAST_COLUMNS:
        size //= 2
    return ceildiv(size, width) * width


def _naive(kernel: Kernel, row: Integer) -> list[Statement]:
    """One column: stage after stage, but alike reductions in the same loops."""
    stages: list[Stage] = []
    values: dict[Array, Expr] = {}

    def known(e: Expr) -> Expr | None:
        if e.op is not Leaf.LOAD or e.array not in values:
            return None
        return expr.guarded(e.guard, values[e.array], expr.const(0, e.dtype))

    for number, stage in enumerate(kernel.stages):
        stage = fix_rows(stage, kernel.rows, row)
        stages.append(merge_stage(replace(stage, body=expr.rebuild(stage.body, known))))
        if stage.array not in kernel.stored:
            values[stage.array] = expr.local(Local(f"x{number}", stage.array.dtype, 1))
    body: list[Statement] = []
    while stages:
        together, rest = [stages[0]], list[Stage]()
        for stage in stages[1:]:
            if _alike(stage, together[0], kernel) and not _reads(stage, [*together, *rest], values):
                together.append(stage)
            else:
                rest.append(stage)
        stages = rest
        body.extend(naive(together, kernel.stored, values))
    return body


def _alike(stage: Stage, other: Stage, kernel: Kernel) -> bool:
    """Whether a reduction whose result stays inside may share another's loops."""
    extents = [axis.extent for axis in other.reduced]
    inside = stage.op is not None and other.op is not None and stage.array not in kernel.stored
    return inside and [axis.extent for axis in stage.reduced] == extents


def _reads(stage: Stage, others: Sequence[Stage], values: Mapping[Array, Expr]) -> bool:
    """Whether a stage needs what others make."""
    made = {values.get(other.array) for other in others}
    arrays = {other.array for other in others}
    found = expr.walk(stage.body)
    return any(e in made or e.op is Leaf.LOAD and e.array in arrays for e in found)
