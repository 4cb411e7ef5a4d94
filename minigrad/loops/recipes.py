"""Recipes: how a kernel of the schedule becomes a loop nest on a given target.

    elementwise   every stage has the same elements: one loop, nothing passes through memory
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

from dataclasses import replace

from minigrad.graph.operations import SCATTERS
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import coefficient, variables
from minigrad.graph.symbolic import ceildiv, high
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import (
    parallel_axes,
    unit_stride_axis,
    vector_width,
)
from minigrad.loops.bits import kept_as_bits
from minigrad.loops.block_rows import block_rows
from minigrad.loops.build import (
    combine,
    elements,
    flat_loop,
    lanes_loop,
    once,
    serial_loop,
    streams,
)
from minigrad.loops.byte_dots import byte_dots
from minigrad.loops.gemm import gemm
from minigrad.loops.gemv import gemv
from minigrad.loops.gpu import lower_gpu
from minigrad.loops.nest import Loop, Nest, Statement, Store, Stores
from minigrad.loops.prefetch import further_along, later_rows
from minigrad.loops.rows import rows
from minigrad.loops.scans import distribute, scan
from minigrad.loops.transposed_tiles import transposed_axis, transposed_tiles
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.schedule import Kernel
from minigrad.target import Target

# Elements of a long vector loop that one parallel iteration takes: 16 KiB of float32, a small part
# of a chunk (see assemble.py), and enough for the prefetcher of a processor to follow.
BLOCK_LENGTH = 4096


def lower(kernel: Kernel, target: Target, name: str = "kernel") -> Nest:
    """The loop nest of a kernel."""
    kernel = kept_as_bits(kernel)
    if target.group is not None:
        nest = lower_gpu(kernel, target, name)
        if nest is not None:
            return nest
    if kernel.kind in ("contraction", "rows"):
        nest = gemv(kernel, target, name)
        if nest is not None:
            return nest
    if kernel.kind == "dots":
        return byte_dots(kernel, target, name)
    if kernel.kind == "contraction":
        return gemm(kernel, target, name)
    if kernel.kind == "block_rows":
        return block_rows(kernel, target, name)
    if kernel.kind == "scatter":
        return scatter(kernel, target, name)
    if kernel.kind == "scan":
        return scan(kernel, target, name)
    if kernel.kind == "distribute":
        return distribute(kernel, target, name)
    same = all(s.op is None and s.size == high(kernel.rows) for s in kernel.stages)
    plain = all(isinstance(a.extent, int) for s in kernel.stages for a in s.axes[1:])
    if same and (plain or len(kernel.stages) == 1):
        return elementwise(kernel, target, name)
    if len(kernel.stages) == 1 and kernel.stages[0].op is None:
        return elementwise(kernel, target, name)
    return rows(kernel, target, name)


def elementwise(kernel: Kernel, target: Target, name: str) -> Nest:
    """All stages at once, element by element, in registers."""
    axes, stores = elements(kernel)
    exprs, positions = [s.value for s in stores], [s.index for s in stores]
    stores = [
        replace(s, streaming=streams(s.array, kernel.stages, target)) for s in stores
    ]
    body: tuple[Statement, ...] = (Stores(tuple(stores)),)
    axis = unit_stride_axis(axes, exprs, positions)
    if axis is None:
        return assemble(name, kernel, once(body), target)
    width = vector_width(target, exprs, axis.extent, False)
    outer = [a for a in axes if a != axis]
    free, inner = parallel_axes(outer)
    transposed = transposed_axis([a for a in free if isinstance(a.extent, int)], axis, exprs)
    if transposed is not None and target.vector_bytes:
        cells, loops = transposed_tiles(transposed, axis, stores, target)
        down, right = cells
        free, _ = parallel_axes([down, *(a for a in free if a != transposed), right])
        for a in reversed(inner):
            loops = (serial_loop(a, loops),)
        return assemble(name, kernel, flat_loop(free, loops), target)
    many = numel([a.typical for a in free])
    if not free and not inner:
        loop = lanes_loop(axis, width, body)
        loop = replace(loop, prefetch=further_along(axis, None, exprs, target))
        return assemble(name, kernel, loop, target)
    if many < 64 and isinstance(axis.extent, int) and axis.extent > BLOCK_LENGTH:
        block = BLOCK_LENGTH
        blocks = make_axis("b", 0, ceildiv(axis.count, block))
        start = blocks.index * block
        vector = lanes_loop(axis, width, body, start, (start + block, axis.count))
        free = [*free, blocks]
        vector = replace(vector, prefetch=further_along(axis, None, exprs, target))
    else:
        vector = lanes_loop(axis, width, body)
        last = (*free, *inner)[-1] if outer else None
        vector = replace(vector, prefetch=further_along(axis, last, exprs, target))
    nested: tuple[Statement, ...] = (vector,)
    for a in reversed(inner):
        nested = (serial_loop(a, nested),)
    return assemble(name, kernel, flat_loop(free, nested), target)


def scatter(kernel: Kernel, target: Target, name: str) -> Nest:
    """base, then one addition after another, in order: deterministic, parallel over the rest."""
    (stage,) = kernel.stages
    assert stage.initial is not None and stage.op is not None
    start: tuple[Statement, ...] = (
        Store(stage.array, stage.initial_position, stage.initial),
    )
    for axis in reversed(stage.initial_axes):
        start = (serial_loop(axis, start),)
    old = expr.load(stage.array, stage.position, stage.guard)
    new = combine(SCATTERS[stage.op], old, stage.body)
    step: tuple[Statement, ...] = (Store(stage.array, stage.position, new, stage.guard),)
    updates: list[Loop] = []
    for axis in reversed(stage.reduced):
        updates.append(serial_loop(axis, step))
        step = (updates[-1],)
    body = (*start, *step)
    if not stage.axes:
        return assemble(name, kernel, once(body), target)
    free, inner = parallel_axes(stage.axes)
    for axis in reversed(inner):
        body = (serial_loop(axis, body),)
    last = free[-1]
    # vectors need neighbouring places and the same updates' order in every lane
    vector = (
        not inner
        and isinstance(last.extent, int)
        and coefficient(stage.position, last.variable) == 1
        and all(last.variable not in variables(c) for c in stage.guard)
    )
    if not vector:
        return assemble(name, kernel, flat_loop(free, body), target)
    width = vector_width(target, [stage.body], last.extent, True)
    if len(updates) == 1:
        later = later_rows([stage.body], updates[0].variable, last, width, target)
        body = (*start, replace(updates[0], prefetch=later))
    outer = free[:-1]
    if not outer:
        return assemble(name, kernel, lanes_loop(last, width, body), target)
    return assemble(name, kernel, flat_loop(outer, (lanes_loop(last, width, body),)), target)

