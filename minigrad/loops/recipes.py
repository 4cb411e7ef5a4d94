"""Recipes: how a kernel of the schedule becomes a loop nest on a given target.

    elementwise   every stage has the same elements: one loop, nothing passes through memory
                  (see elementwise.py)
    rows          stage after stage for each row; vectors run along the row or across rows (rows.py)
    scatter       additions at places given by data, in order, parallel over what is kept
    scan          running reductions, parallel over what is kept (see scans.py)
    distribute    one pass of a sort (see scans.py)
    gemm          a matrix product, in register tiles (see gemm.py)
    gemv          a matrix times a vector, or a few (see gemv.py)
    block_rows    rows in which products take part, several at a time (see block_rows.py)
    byte_dots     a product with a quantized matrix (see byte_dots.py)

A GPU has recipes of its own for most of these (see gpu.py).
"""

from __future__ import annotations

from minigrad.loops.bits import kept_as_bits
from minigrad.loops.block_rows import block_rows
from minigrad.loops.byte_dots import byte_dots
from minigrad.loops.elementwise import elementwise, same_elements, scatter
from minigrad.loops.gemm import gemm
from minigrad.loops.gemv import gemv
from minigrad.loops.gpu import lower_gpu
from minigrad.loops.nest import Nest
from minigrad.loops.rows import rows
from minigrad.loops.scans import distribute, scan
from minigrad.loops.shared_lanes import shared_lanes
from minigrad.schedule.schedule import Kernel
from minigrad.target import Target


def lower(kernel: Kernel, target: Target, name: str = "kernel") -> Nest:
    """The loop nest of a kernel."""
    kernel = kept_as_bits(kernel)
    if target.group is not None:
        nest = lower_gpu(kernel, target, name)
        if nest is not None:
            return nest
    if kernel.kind == "contraction" and target.vector_bytes:
        nest = shared_lanes(kernel, target, name)
        if nest is not None:
            return nest
    if kernel.kind in ("contraction", "rows"):
        nest = gemv(kernel, target, name)
        if nest is not None:
            return nest
    by_kind = {
        "contraction": gemm, "block_rows": block_rows, "scatter": scatter, "scan": scan,
        "distribute": distribute, "dots": byte_dots,
    }  # fmt: skip
    if kernel.kind in by_kind:
        return by_kind[kernel.kind](kernel, target, name)
    return (elementwise if same_elements(kernel) else rows)(kernel, target, name)
