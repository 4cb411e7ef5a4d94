"""The recipe "rows": each stage computes its part of a row from its producers' parts.

Vectors run along the row (the row stays in the cache, see row_passes.py) or across neighbouring
rows; fuse.py tells which is cheaper.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import fix_rows, indices, merge, merge_stage, row_axis, vector_width
from minigrad.loops.build import lanes_loop, naive, serial_loop
from minigrad.loops.column_reduction import column_reduction, is_column_reduction
from minigrad.loops.nest import Loop, Nest, Statement, Store
from minigrad.loops.prefetch import further_rows
from minigrad.loops.row_passes import row_passes
from minigrad.loops.software_pipeline import pipelined_rows
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr, Local
from minigrad.schedule.fuse import prefix_length, runs_along_rows
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import Target

MOST_WRITTEN_OUT = 16  # elements of a row: one for each lane of a vector of 512 bits
RUN_BYTES = 1 << 17  # of memory that a chunk reads one after the other (see _in_long_runs)
# For each byte, of what takes no longer than to read it: a core does 64 a cycle with vectors of 512
# bits, and reads 4 bytes.
OPERATIONS_A_BYTE = 16


def rows(kernel: Kernel, target: Target, name: str) -> Nest:
    """Row after row, or vectors of rows."""
    count = kernel.rows
    if target.vector_bytes and high(count) > 1 and runs_along_rows(kernel.stages, count, target):
        return _across(kernel, target, name)
    row = row_axis(count)
    stages = _in_rows(kernel, row.index, 1, None)
    parts = row_passes(stages, kernel.stored, target, row)
    loop = pipelined_rows(parts, row, target)
    if loop is None:
        body = tuple(statement for part in parts for statement in part.statements)
        loop = Loop(row.variable, 0, (count,), body)
    return _in_long_runs(assemble(name, kernel, loop, target))


def _in_long_runs(nest: Nest) -> Nest:
    """The same with chunks that are long enough for the memory, where a kernel is bound by that.

    A core that goes on where it was reads faster than one that begins elsewhere. (Two cores of Zen
    5: products with SmolLM2's quantized matrices gain nothing from the second one in chunks of
    34 KB, and take 0.6 of the time in chunks of 144.)
    """
    lasting = nest.operations > OPERATIONS_A_BYTE * nest.traffic
    if lasting:
        return nest
    runs = max(nest.traffic // RUN_BYTES, 1)
    return replace(nest, grain=max(nest.grain, ceildiv(high(nest.total), runs)))


def _in_rows(kernel: Kernel, row: Integer, width: int, lane: Atom | None) -> list[Stage]:
    """The stages for one row (or for a vector of `width` rows); what stays inside is in scratch."""
    scratch: dict[Array, Array] = {}
    inner: dict[Array, int] = {}
    stages = []
    for number, original in enumerate(kernel.stages):
        stage = fix_rows(original, kernel.rows, row)
        stage = replace(stage, body=_in_scratch(stage.body, scratch, inner, row, width, lane))
        size = original.size // high(kernel.rows)
        if stage.array not in kernel.stored:
            inner[stage.array] = size
            scratch[stage.array] = Array(
                f"x{number}", stage.array.dtype, max(size * width, 1), "scratch"
            )
            position = _scratch_index(stage.position, row, size, width, lane)
            stage = replace(stage, array=scratch[stage.array], position=position)
        stages.append(merge_stage(stage))
    return stages


def _scratch_index(
    position: Integer, row: Integer, size: int, width: int, lane: Atom | None
) -> Integer:
    inside = position - row * size
    return inside if lane is None else inside * width + lane.index


def _in_scratch(
    body: Expr,
    scratch: dict[Array, Array],
    inner: dict[Array, int],
    row: Integer,
    width: int,
    lane: Atom | None,
) -> Expr:
    """The body with loads of values that stay inside the kernel moved to the scratch area."""

    def change(e: Expr) -> Expr | None:
        if e.op is not expr.Leaf.LOAD or e.array not in scratch:
            return None
        array, position, guard = e.array, e.index, e.guard
        moved = _scratch_index(position, row, inner[array], width, lane)
        return expr.load(scratch[array], moved, guard)

    return expr.rebuild(body, change) if scratch else body


def _across(kernel: Kernel, target: Target, name: str) -> Nest:
    """Vectors of rows: neighbours along the last of the axes that make up a row's number."""
    count = kernel.rows
    length = _neighbours(kernel)
    width = vector_width(target, [s.body for s in kernel.stages], length or count, True)
    if length is not None and is_column_reduction(kernel, length, target):
        return column_reduction(kernel, length, target, name)
    if length is not None and high(count) > length >= target.lanes(kernel.stages[0].array.dtype):
        # block after block of neighbours, so that no index is divided lane by lane
        blocks = ceildiv(length, width)
        block = row_axis(count // length * blocks)
        place = block.index
        column = make_axis("c", 0, length)
        start = place % blocks * width
        row = place // blocks * length + column.index
        lane = make_axis("lane", 0, width).variable
        body = _rows_of_vector(kernel, column, row, width, lane)
        stops = (start + width, length) if length % width else (start + width,)
        vector = lanes_loop(column, width, tuple(body), start, stops, lane)
        return assemble(name, kernel, serial_loop(block, (vector,)), target)
    width = vector_width(target, [s.body for s in kernel.stages], count, True)
    axis = row_axis(count)
    row, lane = axis.index, make_axis("lane", 0, width).variable
    body = _rows_of_vector(kernel, axis, row, width, lane)
    prefetch = further_rows([fix_rows(s, count, row) for s in kernel.stages], axis, target)
    loop = Loop(axis.variable, 0, (count,), tuple(body), "lanes", width, lane, prefetch)
    return assemble(name, kernel, loop, target)


def _neighbours(kernel: Kernel) -> int | None:
    """How many rows follow each other in every stage: the last of the axes that make up a row's
    number, with those before it that every index walks through as if they were one. None: all of
    them do, and their number varies.
    """
    lengths: list[Integer] = []
    for stage in kernel.stages:
        leading = stage.axes[: prefix_length(stage, kernel.rows)]
        used = indices(stage.exprs(), [stage.position, *stage.guard])
        lengths.append(merge(leading, used)[-1][0].extent)
    if not isinstance(kernel.rows, int) and all(length == kernel.rows for length in lengths):
        return None
    return gcd(*(x if isinstance(x, int) else gcd(*(c for _, c in x.terms)) for x in lengths))


def _rows_of_vector(
    kernel: Kernel, axis: Axis, row: Integer, width: int, lane: Atom
) -> list[Statement]:
    body: list[Statement] = []
    for number, stage in enumerate(_in_rows(kernel, row, width, lane)):
        body.extend(_stage_across(stage, number, axis, width))
    return body


def _stage_across(stage: Stage, number: int, row: Axis, width: int) -> list[Statement]:
    """One stage for a vector of rows."""
    if stage.op is None:
        nested: list[Statement] = [Store(stage.array, stage.position, stage.body)]
    else:
        lanes = row.variable if width > 1 else None
        total = Local(f"sum{number}", stage.body.dtype, 1, lanes, width)
        nested = naive([stage], [stage.array], {stage.array: expr.local(total)})
    for axis in reversed(stage.axes):
        nested = [serial_loop(axis, tuple(nested))]
    if numel([axis.extent for axis in (*stage.axes, *stage.reduced)]) <= MOST_WRITTEN_OUT:
        nested = [_unrolled(statement) for statement in nested]
    return nested


def _unrolled(statement: Statement) -> Statement:
    """Plain loops written out: then it is known which elements of a row are read."""
    if not isinstance(statement, Loop) or not isinstance(statement.stops[0], int):
        return statement
    body = tuple(_unrolled(inner) for inner in statement.body)
    return replace(statement, body=body, kind="unroll" if statement.kind == "serial" else "lanes")
