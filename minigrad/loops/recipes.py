"""Recipes: how a kernel of the schedule becomes a loop nest on a given target.

    elementwise   every stage has the same elements: one loop, nothing passes through memory
                  (see elementwise.py)
    rows          stage after stage for each row; vectors run along the row or across rows (rows.py)
    scatter       additions at positions given by data, in order, parallel over kept axes, and over
                  parts of the result
    scan          running reductions, parallel over kept axes (see elementwise.py)
    distribute    one pass of a sort (see elementwise.py)
    gemm          a matrix product, in register tiles (see gemm.py)
    gemv          a matrix times one or a few vectors (see gemv.py)
    shared_lanes  a product whose operands share their last axis (see shared_lanes.py)
    block_rows    rows with products, several at a time (see block_rows.py)
    byte_dots     a product with a quantized matrix (see byte_dots.py)

On a GPU, whose work-items are many and run in groups:

    gpu_rows      a work-group for each row, or block of rows (see gpu.py)
    gpu_gemm      a tile of the results for each work-group (see gpu.py)

On a GPU, elements, short rows, and rows whose neighbours are adjacent in memory are computed by one
work-item each, by the recipes for all targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from minigrad.loops import cost
from minigrad.loops.assemble import assemble
from minigrad.loops.bits import kept_as_bits
from minigrad.loops.block_rows import block_rows
from minigrad.loops.byte_dots import byte_dots
from minigrad.loops.elementwise import distribute, elementwise, scan, scatter
from minigrad.loops.gemm import gemm
from minigrad.loops.gemv import gemv
from minigrad.loops.gpu import gpu_block_rows, gpu_gemm, gpu_rows
from minigrad.loops.nest import Lowered, Nest
from minigrad.loops.rows import rows
from minigrad.loops.shared_lanes import shared_lanes
from minigrad.schedule.schedule import Kernel
from minigrad.target import Target

Recipe = Callable[[Kernel, Target], Lowered | None]  # None: the recipe is not for this kernel


def lower(kernel: Kernel, target: Target) -> Nest:
    """The loop nest of a kernel, by the first recipe that accepts it."""
    kernel = kept_as_bits(kernel)
    if target.vector_bytes and cost.is_brief(kernel.stages):
        target = replace(target, brief=True)
    by_kind: dict[str, tuple[Recipe, ...]] = {
        "rows": (elementwise, gpu_rows, gemv, rows),
        "contraction": (gpu_gemm, shared_lanes, gemv, gemm),
        "block_rows": (gpu_block_rows, block_rows),
        "scatter": (scatter,), "scan": (scan,), "distribute": (distribute,), "dots": (byte_dots,),
    }  # fmt: skip
    made = (recipe(kernel, target) for recipe in by_kind[kernel.kind])
    return assemble(kernel, next(one for one in made if one is not None), target)
