"""The recipe of rows on a GPU: a work-group for each row, or for a block of neighbouring rows.

Stage after stage, the work-items share the row's elements; a value that the whole row is reduced to
is first reduced by each item along a share of the row, then by all items together. Between stages
there is a barrier, and what stays inside the kernel lies in local memory, or where that is too
small, in scratch memory of the group.

Rows in which products take part (attention) are taken several at a time, one in each lane of a
vector, so that a column of the other operand is read once for all of them. Their masks become
bounds of loops, as for a CPU (see mask_bounds.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Atom, ceildiv, high
from minigrad.loops import build
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import fix_rows, kept_inside, merge_stage, places_along, row_axis
from minigrad.loops.block_plan import products_before_readers, share_common
from minigrad.loops.build import Bounds
from minigrad.loops.mask_bounds import Rows, mask_bounds
from minigrad.loops.nest import Barrier, FoldItems, Loop, Nest, Statement, Statements, Store
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array
from minigrad.schedule.fuse import prefix_length, runs_along_rows
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, identity
from minigrad.target import Group, Target

SHORT_ROW = 32  # elements of a row below which one work-item does it alone: one for each of a warp
SHARE = 4  # elements of a row for each work-item, at least
# What a step of the fold of all items costs, in steps of a loop: it writes, waits, reads and adds.
FOLD = 4
KEPT = 2  # part of the local memory for what stays inside a kernel: half is for another group
VECTOR_BYTES = 32  # of a vector whose lanes are rows of a block, at most: two accesses of 16


def row_items(kernel: Kernel, group: Group, share: int = SHARE) -> int:
    """Work-items for each row of a kernel, a power of two; 1 where rows are short."""
    length = 1
    for stage in kernel.stages:
        inner = stage.axes[prefix_length(stage, kernel.rows) :]
        for axes in (inner, stage.reduced):
            length = max(length, numel([axis.extent for axis in axes]))
    if length < SHORT_ROW:
        return 1
    items = 32
    while 2 * items * share <= length and 2 * items <= group.items:
        items *= 2
    return min(items, 1 << (group.items.bit_length() - 1))


def gpu_rows(kernel: Kernel, target: Target, name: str) -> Nest | None:
    """A work-group for each row.

    None where a work-item does one: where rows are short, or neighbours and enough of them.
    """
    group, count = target.group, high(kernel.rows)
    if group is None:
        return None
    items = row_items(kernel, group)
    beside = count > 1 and runs_along_rows(kernel.stages, kernel.rows, target)
    if items == 1 or beside and count >= group.items * group.units:
        return None
    row = row_axis(kernel.rows)
    stages = [fix_rows(stage, kernel.rows, row.index) for stage in kernel.stages]
    stages = kept_inside(stages, kernel, row.index, local=group.local_bytes // KEPT)
    stages = [merge_stage(stage) for stage in stages]
    body = _Items(items).loop(stages, [{} for _ in stages])
    return assemble(name, kernel, build.serial_loop(row, (body,)), target)


def gpu_block_rows(kernel: Kernel, target: Target, name: str) -> Nest | None:
    """A work-group for each block of rows in which products take part."""
    if target.group is None:
        return None
    kernel = products_before_readers(kernel)
    first = kernel.stages[0]
    extent = first.axes[prefix_length(first, kernel.rows) - 1].extent
    assert isinstance(extent, int)
    widest = max(e.dtype.itemsize for e in expr.walk(*(s.body for s in kernel.stages)))
    width = next(w for w in (8, 4, 2, 1) if extent % w == 0 and w * widest <= VECTOR_BYTES)
    outer = make_axis("o", 0, kernel.rows // extent)
    number = make_axis("g", 0, extent // width)
    axis, lane = make_axis("b", 0, extent), make_axis("lane", 0, width)
    start = number.index * width
    whole = outer.index * extent + axis.index
    found = [
        (fix_rows(stage, kernel.rows, whole), stage.contraction is not None)
        for stage in kernel.stages
    ]
    found = share_common(found, kernel.stored)
    stages = [stage for stage, _ in found]
    fixed = frozenset((outer.variable, number.variable))
    bounds = mask_bounds(stages, Rows(axis.variable, fixed, start, width, 1), kernel.stored)
    side = lane.index if width > 1 else 0
    stages = kept_inside(stages, kernel, whole, width, side, target.group.local_bytes // KEPT)
    items = max(row_items(kernel, target.group, 1), 32)
    rows = build.lanes_loop(axis, width, (), start, (start + width,), lane.variable)
    body = _Items(items, rows).loop(stages, bounds)
    return assemble(name, kernel, build.flat_loop([outer, number], (body,)), target)


class _Items:
    """How work-items share what is to be done for a row, or for each of some rows at once."""

    def __init__(self, items: int, rows: Loop | None = None) -> None:
        self.items, self.rows = items, rows
        self.axis = make_axis("item", 0, items)
        self.item = self.axis.index

    def loop(self, stages: Sequence[Stage], bounds: Sequence[Mapping[Atom, Bounds]]) -> Loop:
        """Stage after stage, with barriers between."""
        body: list[Statement] = []
        for number, (stage, limits) in enumerate(zip(stages, bounds, strict=True)):
            if body:
                body.append(Barrier())
            body.extend(self._stage(stage, number, limits))
        inside = tuple(body) if self.rows is None else (self.rows.around(tuple(body)),)
        return Loop(self.axis.variable, 0, (self.items,), inside, "items")

    def _stage(self, stage: Stage, number: int, bounds: Mapping[Atom, Bounds]) -> Statements:
        store = Store(stage.array, stage.position, stage.body)
        if stage.op is None:
            return self._shared(stage.axes, bounds, (store,))
        total = Array(f"sum{number}", stage.body.dtype, 1, "registers")
        if self.rows is not None and self.rows.step > 1:
            total = replace(total, lanes=self.rows.variable, width=self.rows.step)
        result = expr.load(total)
        clear = build.put(result, identity(stage.op, total.dtype))
        step = build.put(result, build.combine(stage.op, result, stage.body))
        store = replace(store, value=result)
        if not self._folds(stage):
            sums = build.bounded_loops(stage.reduced, bounds, (step,))
            return self._shared(stage.axes, bounds, (clear, *sums, store))
        memory = Array(f"fold_{total.dtype.name}", total.dtype, self.items * total.width, "local")
        first = expr.restrict((), [-self.item])  # one item stores what all of them have
        body = (
            clear, *self._shared(stage.reduced, bounds, (step,)),
            FoldItems(total, stage.op, memory), replace(store, guard=first),
        )  # fmt: skip
        return build.bounded_loops(stage.axes, bounds, body)

    def _folds(self, stage: Stage) -> bool:
        """Whether all items together reduce one element after another."""
        size = numel([axis.extent for axis in stage.axes])
        depth = numel([axis.extent for axis in stage.reduced])
        fold = ceildiv(depth, self.items) + 2 * FOLD * (self.items.bit_length() - 1)
        return size * fold < ceildiv(size, self.items) * depth

    def _shared(
        self, axes: Sequence[Axis], bounds: Mapping[Atom, Bounds], body: Statements
    ) -> Statements:
        """Loops over axes, of which every item takes its share."""
        whole = all(
            isinstance(a.extent, int) and bounds.get(a.variable) in (None, (0, a.extent))
            for a in axes
        )
        if whole and len(axes) != 1:
            one = make_axis("e", 0, numel([axis.extent for axis in axes]))
            values = places_along(axes, one.index)
            body = tuple(build.substitute_statement(statement, values) for statement in body)
            axes = [one]
        (loop,) = build.bounded_loops(axes[-1:], bounds, body)
        assert isinstance(loop, Loop)
        loop = replace(loop, start=loop.start + self.item, step=self.items)
        return build.bounded_loops(axes[:-1], bounds, (loop,))
