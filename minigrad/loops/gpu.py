"""Recipes of a GPU, whose work-items are many and run in groups.

    gpu_elementwise   vectors of elements, neighbours by neighbouring work-items
    gpu_rows          a work-group for each row, or block of rows (see gpu_rows.py)
    gpu_gemm          a tile of the results for each work-group (see gpu_gemm.py)
    gpu_scatter       additions in order, parallel over what is kept and parts of what is added to

Rows that are short, or whose neighbours are neighbours in memory, are one work-item's each, by the
recipes that any target has.
"""

from __future__ import annotations

from minigrad.graph.operations import SCATTERS
from minigrad.graph.shapes import numel, unflatten
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Integer, ceildiv, high
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import row_axis, unit_stride_axis
from minigrad.loops.build import (
    combine,
    elements,
    lanes_loop,
    loops_over,
    serial_loop,
    substitute_statement,
)
from minigrad.loops.gpu_gemm import gpu_gemm
from minigrad.loops.gpu_rows import gpu_block_rows, gpu_rows, row_items
from minigrad.loops.nest import Loop, Nest, Statement, Store, Stores
from minigrad.schedule import expr
from minigrad.schedule.fuse import runs_along_rows
from minigrad.schedule.schedule import Kernel
from minigrad.target import ITEM_LANES, Target

FILL = 4  # groups for each unit: while some wait for memory, another computes
LEAST_PART = 64  # places of a part of what a scatter adds to, all of whose updates each part reads


def lower_gpu(kernel: Kernel, target: Target, name: str) -> Nest | None:
    """The loop nest of a kernel on a GPU; None where a scalar recipe for a work-item will do."""
    assert target.group is not None
    if kernel.kind == "contraction":
        parts = kernel.stages[0].contraction
        if parts is not None and parts.mask is not None:  # it may have to be computed twice
            return None
        return gpu_gemm(kernel, target, name)
    if kernel.kind == "block_rows":
        return gpu_block_rows(kernel, target, name)
    if kernel.kind == "scatter":
        return gpu_scatter(kernel, target, name)
    if kernel.kind != "rows":
        return None
    same = all(s.op is None and s.size == high(kernel.rows) for s in kernel.stages)
    plain = all(isinstance(a.extent, int) for s in kernel.stages for a in s.axes)
    if same and plain or len(kernel.stages) == 1 and kernel.stages[0].op is None:
        return gpu_elementwise(kernel, target, name)
    if high(kernel.rows) > 1 and runs_along_rows(kernel.stages, kernel.rows, target):
        if high(kernel.rows) >= target.group.items * target.group.units:
            return None
    items = row_items(kernel, target.group)
    return gpu_rows(kernel, target, name, items) if items > 1 else None


def gpu_elementwise(kernel: Kernel, target: Target, name: str) -> Nest:
    """All stages at once, element by element, or a vector of them for each work-item."""
    group = target.group
    assert group is not None
    axes, stores = elements(kernel)
    body: tuple[Statement, ...] = (Stores(tuple(stores)),)
    exprs = [s.value for s in stores]
    axis = unit_stride_axis(axes, exprs, [s.index for s in stores])
    order = axes if axis is None else [*(a for a in axes if a != axis), axis]
    extents: list[Integer] = [numel([a.extent]) for a in order]
    width = 1
    narrow = all(load.dtype.itemsize <= 4 for load in expr.loads(*exprs))
    enough = numel(extents) >= ITEM_LANES * group.items * group.units * FILL
    if axis is not None and enough and narrow and isinstance(axis.extent, int):
        width = ITEM_LANES if axis.extent % ITEM_LANES == 0 else 1
        extents[-1] = axis.extent // width
    row = row_axis(numel(extents))
    places = unflatten(row.index, extents)
    if axis is not None and width > 1:
        start = places[-1] * width
        body = (lanes_loop(axis, width, body, start, (start + width,)),)
    inside = order[:-1] if width > 1 else order
    fixed = {
        a.variable: place
        for a, place in zip(inside, places, strict=False)
        if isinstance(a.extent, int)
    }
    body = tuple(substitute_statement(s, fixed) for s in body)
    for a, place in zip(inside, places, strict=False):
        if not isinstance(a.extent, int):  # it may end before its upper bound
            body = (Loop(a.variable, place, (place + 1, a.extent), body),)
    return assemble(name, kernel, serial_loop(row, body), target)


def gpu_scatter(kernel: Kernel, target: Target, name: str) -> Nest | None:
    """base, then one addition after another, in order, by every work-item for its part only.

    All updates are looked at for each part, so the parts are no more than keep the device busy.
    """
    group = target.group
    (stage,) = kernel.stages
    assert group is not None and stage.initial is not None and stage.op is not None
    fixed = [axis for axis in stage.axes if isinstance(axis.extent, int)]
    moving = [axis for axis in stage.axes if axis not in fixed]
    found = [atom for atom in getattr(stage.position, "terms", ()) if atom[0].kind == "value"]
    if len(stage.initial_axes) != 1 or len(found) != 1:
        return None
    (along,), ((place, _),) = stage.initial_axes, found
    if not isinstance(along.extent, int) or coefficient(stage.position, place) is None:
        return None
    count = numel([axis.extent for axis in fixed])
    parts = min(FILL * group.items * group.units // count, along.extent // LEAST_PART)
    if parts < 2:
        return None
    size = ceildiv(along.extent, parts)
    row = row_axis(ceildiv(along.extent, size) * count)
    part, *kept = unflatten(
        row.index, [ceildiv(along.extent, size), *(a.extent for a in fixed)]
    )
    begin = part * size
    where = place.index
    within = expr.restrict(stage.guard, [where - begin, begin + size - 1 - where])
    old = expr.load(stage.array, stage.position, within)
    new = combine(SCATTERS[stage.op], old, stage.body)
    step = loops_over(stage.reduced, [Store(stage.array, stage.position, new, within)])
    start = Store(stage.array, stage.initial_position, stage.initial)
    fill = Loop(along.variable, begin, (begin + size, along.extent), (start,))
    values = {axis.variable: at for axis, at in zip(fixed, kept, strict=True)}
    body = loops_over(moving, [substitute_statement(s, values) for s in (fill, *step)])
    return assemble(name, kernel, serial_loop(row, body), target)
