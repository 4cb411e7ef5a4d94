"""Vectors across neighbouring rows: each lane does a row.

Sums of long columns are in scratch memory, a block of columns small enough for the first cache, and
memory is read row by row, in the order in which it lies. (Column by column, or several rows at a
time, no prefetching would follow: measured, a third of the speed.)
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import fix_rows, indices, kept_inside, merge, merge_stage, vector_width
from minigrad.loops.build import loops_over, naive
from minigrad.loops.nest import Loop, Nest, Statement, expressions, map_statement
from minigrad.loops.prefetch import Place, further_rows, later_rows
from minigrad.loops.transforms import Around, Schedule
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.fuse import prefix_length
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import Target

MOST_WRITTEN_OUT = 16  # elements of a row: one for each lane of a vector of 512 bits
# Elements of a column that make it worthwhile: to clear the sums and to store them is a pass each,
# beside one for every element.
LEAST_LENGTH = 8
ENOUGH_BLOCKS = 32  # parallel iterations: a few for each thread
LEAST_COLUMNS = 256  # of a block: 1 KiB of float32, 16 lines that lie together in memory


def row_vectors(kernel: Kernel, target: Target, name: str) -> Nest:
    """Neighbours along the last of the axes that make up a row's number, a vector at a time.

    A vector, or a block of sums, ends where the neighbours do, so that no index is divided lane by
    lane; where they are few or all there are, it does not.
    """
    count, length = kernel.rows, _neighbours(kernel)
    bodies = [stage.body for stage in kernel.stages]
    columns = length is not None and _are_columns(kernel, length, target)
    least = target.lanes(kernel.stages[0].array.dtype)
    if length is None or not columns and not high(count) > length >= least:
        width = vector_width(target, bodies, count, True)
        row = make_axis("r", 0, count)
        s = Schedule(loops_over([row], _vector(kernel, row.index, width)))
        stages = [fix_rows(stage, count, row.index) for stage in kernel.stages]
        s.prefetch(row.variable, further_rows(stages, row, target))
        s.vectorize(row.variable, width, LANE)
        return assemble(name, kernel, s.nest, target)
    width = size = vector_width(target, bodies, length, True)
    outer, column = make_axis("p", 0, count // length), make_axis("c", 0, length)
    o, c, at = outer.variable, column.variable, outer.index * length + column.index
    body = _columns(kernel, at) if columns else _vector(kernel, at, width)
    s = Schedule(loops_over([outer, column], body))
    if columns:
        sums = sum(stage.op is not None for stage in kernel.stages)
        size = _block_size(high(count) // length, length, width, target.l1 // 4 // sums)
    block = s.split(c, size, "b")
    if columns:

        def below(loop: Loop, around: Around) -> tuple[Place, ...]:
            *_, last = around
            values = expressions(loop)
            return () if last == block else later_rows(values, last, column, size, target)

        s.sink(c, space="scratch")
        s.prefetch(c, below)
    s.vectorize(c, width, None if columns else LANE)
    s.parallelize(o, block)
    return assemble(name, kernel, s.nest, target)


LANE: Atom = make_axis("lane", 0, 1 << 10).variable  # of a vector of rows


def _neighbours(kernel: Kernel) -> int | None:
    """How many rows follow each other in every stage: the last of the axes that make up a row's
    number, with those before it that every index walks through as if they were one. None: all of
    them do, and their number varies.
    """
    lengths: list[Integer] = []
    for stage in kernel.stages:
        leading = stage.axes[: prefix_length(stage, kernel.rows)]
        used = indices(stage.exprs(), [stage.position, *stage.guard])
        lengths.append(merge(leading, used)[0][-1].extent)
    if not isinstance(kernel.rows, int) and all(length == kernel.rows for length in lengths):
        return None
    return gcd(*(x if isinstance(x, int) else gcd(*(c for _, c in x.terms)) for x in lengths))


def _vector(kernel: Kernel, row: Integer, width: int) -> list[Statement]:
    """Stage after stage for `width` rows; short ones are written out.

    Then it is known which elements of a row are read.
    """
    lane = LANE.index if width > 1 else 0
    stages = [fix_rows(stage, kernel.rows, row) for stage in kernel.stages]
    body: list[Statement] = []
    for number, stage in enumerate(kept_inside(stages, kernel, row, width, lane)):
        stage = merge_stage(stage)
        total = expr.register(f"sum{number}", stage.body.dtype)
        nested = loops_over(stage.axes, naive([stage], [stage.array], {stage.array: total}))
        if numel([axis.extent for axis in (*stage.axes, *stage.reduced)]) <= MOST_WRITTEN_OUT:
            nested = tuple(map_statement(statement, _unrolled) for statement in nested)
        body.extend(nested)
    return body


def _unrolled(statement: Statement) -> Statement:
    if isinstance(statement, Loop) and isinstance(statement.stops[0], int):
        return replace(statement, kind="unroll")
    return statement


# ---- sums of columns ----


def _are_columns(kernel: Kernel, length: int, target: Target) -> bool:
    """Whether all stages have one element per row, of `length` neighbouring rows, many sums.

    As many columns as a few registers hold have their sums there.
    """
    if length <= 4 * target.lanes(kernel.stages[0].array.dtype):
        return False
    reductions = [stage for stage in kernel.stages if stage.op is not None]
    return (
        any(stage.iterations >= LEAST_LENGTH * stage.size for stage in reductions)
        and all(prefix_length(s, kernel.rows) == len(s.axes) for s in kernel.stages)
    )


def _block_size(outer: int, length: int, width: int, most: int) -> int:
    """Columns of a block: at most `most`, and so few that there are enough blocks to share."""
    size = min(length, max(most, LEAST_COLUMNS))
    while outer * ceildiv(length, size) < ENOUGH_BLOCKS and size >= 2 * LEAST_COLUMNS:
        size //= 2
    return ceildiv(size, width) * width

def _columns(kernel: Kernel, row: Integer) -> list[Statement]:
    """One column: stage after stage, but alike reductions in the same loops."""
    values: dict[Array, Expr] = {
        stage.array: expr.register(f"x{number}", stage.array.dtype)
        for number, stage in enumerate(kernel.stages) if stage.array not in kernel.stored
    }  # fmt: skip

    def known(e: Expr) -> Expr | None:
        if e.op is not Leaf.LOAD or e.array not in values:
            return None
        return expr.guarded(e.guard, values[e.array], expr.const(0, e.dtype))

    groups: list[list[Stage]] = []  # what is computed together
    made: dict[Array, int] = {}  # in which of them
    for stage in kernel.stages:
        found = [made[e.array] + 1 for e in expr.loads(stage.body) if e.array in made]
        places = range(max(found, default=0), len(groups))
        place = next((n for n in places if _alike(stage, groups[n][0], kernel)), len(groups))
        stage = fix_rows(stage, kernel.rows, row)
        stage = merge_stage(replace(stage, body=expr.rebuild(stage.body, known)))
        if place == len(groups):
            groups.append([])
        groups[place].append(stage)
        made[stage.array] = place
    return [one for group in groups for one in naive(group, kernel.stored, values)]


def _alike(stage: Stage, other: Stage, kernel: Kernel) -> bool:
    """Whether a reduction whose result stays inside may share another's loops."""
    extents = [axis.extent for axis in other.reduced]
    inside = stage.op is not None and other.op is not None and stage.array not in kernel.stored
    return inside and [axis.extent for axis in stage.reduced] == extents
