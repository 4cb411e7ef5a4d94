"""Recipes of a GPU, whose work-items are many and run in groups.

    gpu_rows          a work-group for each row, or block of rows (see gpu_rows.py)
    gpu_gemm          a tile of the results for each work-group (see gpu_gemm.py)
    gpu_scatter       additions in order, parallel over what is kept and parts of what is added to

Elements, rows that are short, and rows whose neighbours are neighbours in memory are one
work-item's each, by the recipes that any target has.
"""

from __future__ import annotations

from minigrad.graph.operations import SCATTERS
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import ceildiv, high
from minigrad.loops.assemble import assemble
from minigrad.loops.build import combine, loops_over
from minigrad.loops.elementwise import same_elements
from minigrad.loops.gpu_gemm import gpu_gemm
from minigrad.loops.gpu_rows import gpu_block_rows, gpu_rows, row_items
from minigrad.loops.nest import Loop, Nest, Store
from minigrad.loops.transforms import Schedule
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.fuse import runs_along_rows
from minigrad.schedule.schedule import Kernel
from minigrad.target import FILL, Target

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
    if kernel.kind != "rows" or same_elements(kernel):
        return None
    if high(kernel.rows) > 1 and runs_along_rows(kernel.stages, kernel.rows, target):
        if high(kernel.rows) >= target.group.items * target.group.units:
            return None
    items = row_items(kernel, target.group)
    return gpu_rows(kernel, target, name, items) if items > 1 else None


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
    part = make_axis("p", 0, ceildiv(along.extent, size))
    begin, where = part.index * size, place.index
    within = expr.restrict(stage.guard, [where - begin, begin + size - 1 - where])
    old = expr.load(stage.array, stage.position, within)
    new = combine(SCATTERS[stage.op], old, stage.body)
    step = loops_over(stage.reduced, [Store(stage.array, stage.position, new, within)])
    start = Store(stage.array, stage.initial_position, stage.initial)
    fill = Loop(along.variable, begin, (begin + size, along.extent), (start,))
    s = Schedule(loops_over([part, *fixed, *moving], [fill, *step]))
    s.parallelize(part.variable, *(axis.variable for axis in fixed))
    return assemble(name, kernel, s.nest, target)
