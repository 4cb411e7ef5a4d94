"""Sums of columns: vectors across the columns, and memory read in the order in which it lies.

A block of columns has its sums in scratch memory, small enough for the first cache, and is read
row by row. (Column by column, or several rows at a time, no prefetching would follow: measured, a
third of the speed.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import fix_rows, merge_stage, row_axis, vector_width
from minigrad.loops.build import combine, lanes_loop, serial_loop
from minigrad.loops.nest import Loop, Nest, Statement, Store
from minigrad.loops.prefetch import later_rows
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr
from minigrad.schedule.fuse import prefix_length
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, identity
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


@dataclass(frozen=True)
class _Block:
    """Some neighbouring columns: `axis` runs over the ones from `start` up to `stops`."""

    axis: Axis
    start: Integer
    stops: tuple[Integer, ...]
    width: int

    def loop(self, *body: Statement) -> Loop:
        return lanes_loop(self.axis, self.width, body, self.start, self.stops)

    @property
    def inside(self) -> Integer:
        """The place of a column in the block."""
        return self.axis.index - self.start


def column_reduction(kernel: Kernel, length: int, target: Target, name: str) -> Nest:
    """The loop nest of sums of columns; `length` neighbouring rows are columns in memory."""
    bodies = [stage.body for stage in kernel.stages]
    width = vector_width(target, bodies, length, True)
    sums = sum(stage.op is not None for stage in kernel.stages)
    size = _block_size(high(kernel.rows) // length, length, width, target.l1 // 4 // sums)
    blocks = ceildiv(length, size)
    parallel = row_axis(kernel.rows // length * blocks)
    place = parallel.index
    axis = make_axis("c", 0, length)
    start = place % blocks * size
    row = place // blocks * length + axis.index
    stops = (start + size,) if length % size == 0 else (start + size, length)
    block = _Block(axis, start, stops, width)
    stages = _in_block(kernel, row, size, block)
    body: list[Statement] = []
    while stages:
        if stages[0].op is None:
            body.append(block.loop(_store(stages.pop(0))))
            continue
        together, rest, waiting = [stages[0]], [], {stages[0].array}
        for stage in stages[1:]:
            if _alike(stage, together[0]) and not _reads(stage, waiting):
                together.append(stage)
            else:
                rest.append(stage)
            waiting.add(stage.array)
        stages = rest
        body.extend(_reduce(together, block, size, target))
    return assemble(name, kernel, serial_loop(parallel, tuple(body)), target)


def _block_size(outer: int, length: int, width: int, most: int) -> int:
    """Columns of a block: at most `most`, and so few that there are enough blocks to share."""
    size = min(length, max(most, LEAST_COLUMNS))
    while outer * ceildiv(length, size) < ENOUGH_BLOCKS and size >= 2 * LEAST_COLUMNS:
        size //= 2
    return ceildiv(size, width) * width


def _in_block(kernel: Kernel, row: Integer, size: int, block: _Block) -> list[Stage]:
    """The stages for the columns of a block; what stays inside the kernel is in scratch."""
    scratch: dict[Array, Array] = {}

    def change(e: Expr) -> Expr | None:
        if e.op is not expr.Leaf.LOAD or e.array not in scratch:
            return None
        return expr.load(scratch[e.array], block.inside, e.guard)

    stages = []
    for number, original in enumerate(kernel.stages):
        stage = fix_rows(original, kernel.rows, row)
        stage = replace(stage, body=expr.rebuild(stage.body, change))
        if stage.array not in kernel.stored:
            made = Array(f"x{number}", stage.array.dtype, size, "scratch")
            scratch[stage.array] = made
            stage = replace(stage, array=made, position=block.inside)
        stages.append(merge_stage(stage))
    return stages


def _store(stage: Stage) -> Store:
    return Store(stage.array, stage.position, stage.body)


def _alike(stage: Stage, other: Stage) -> bool:
    """Whether a reduction whose result stays in scratch memory may share another's loops."""
    extents = [axis.extent for axis in other.reduced]
    scratch = stage.array.space == "scratch"
    return stage.op is not None and scratch and [a.extent for a in stage.reduced] == extents


def _reads(stage: Stage, arrays: set[Array]) -> bool:
    return any(load.array in arrays for load in expr.loads(*stage.exprs()))


def _rows_below(
    stages: Sequence[Stage], axes: Sequence[Axis], block: _Block, size: int, target: Target
) -> tuple[tuple[Array, Integer], ...]:
    """What the block's columns will read some rows below: memory is asked for it."""
    found: dict[tuple[Array, Integer], None] = {}
    for stage in stages:
        new: dict[Atom, Integer] = {
            a.variable: b.index for a, b in zip(stage.reduced, axes, strict=True)
        }
        for array, place in later_rows(stage, block.axis, size, target):
            found[array, substitute(place, new)] = None
    return tuple(found)


def _reduce(
    stages: Sequence[Stage], block: _Block, size: int, target: Target
) -> list[Statement]:
    """Several reductions over the same extents: sums cleared, added to, and stored."""
    axes = stages[0].reduced
    start: list[Statement] = []
    steps: list[Store] = []
    end: list[Statement] = []
    for number, stage in enumerate(stages):
        assert stage.op is not None
        sums, place = stage.array, block.inside
        if sums.space != "scratch":
            name = f"sums{number}_{stage.reduced[0].variable.name}_{sums.name}"
            sums = Array(name, stage.body.dtype, size, "scratch")
            end.append(block.loop(Store(stage.array, stage.position, expr.load(sums, place))))
        start.append(block.loop(Store(sums, place, identity(stage.op, stage.body.dtype))))
        new = {a.variable: b.index for a, b in zip(stage.reduced, axes, strict=True)}
        total, body = expr.load(sums, place), expr.substitute_in(stage.body, new)
        steps.append(Store(sums, place, combine(stage.op, total, body)))
    loop = replace(block.loop(*steps), prefetch=_rows_below(stages, axes, block, size, target))
    for axis in reversed(axes):
        loop = serial_loop(axis, (loop,))
    return [*start, loop, *end]
