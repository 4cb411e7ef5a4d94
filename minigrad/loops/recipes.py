"""Recipes: how a kernel of the schedule becomes a loop nest on a given target.

    elementwise   every stage has the same elements: one loop, nothing passes through memory
    rows          stage after stage for each row; vectors run along the row or across rows
    scatter       additions at places given by data, in order, parallel over what is kept
    scan          running reductions, parallel over what is kept (see scans.py)
    distribute    one pass of a sort (see scans.py)
    contraction   register tiles (see contraction.py)
    thin          a matrix times a vector, or a few (see thin.py)
    blocks        rows in which products take part, several at a time (see blocks.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minigrad.graph.node import SCATTERS
from minigrad.graph.symbolic import (
    Atom,
    Integer,
    add,
    coefficient,
    mul,
    numel,
    sub,
    variables,
)
from minigrad.loops.axes import (
    fix_rows,
    indices,
    merge,
    merge_stage,
    row_axis,
    unit_stride_axis,
    vector_width,
)
from minigrad.loops.blocks import blocks
from minigrad.loops.build import (
    combine,
    flat_loop,
    inline_stages,
    lanes_loop,
    once,
    serial_loop,
    substitute_stores,
)
from minigrad.loops.contraction import contraction
from minigrad.loops.finish import finish
from minigrad.loops.nest import Fold, Loop, Nest, Set, Statement, Store, Stores
from minigrad.loops.scans import distribute, scan
from minigrad.loops.target import Target
from minigrad.loops.thin import thin
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Local
from minigrad.schedule.fuse import runs_along_rows
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Axis, Stage, identity, index_of, make_axis

BLOCK = 4096  # elements of a long vector loop that one parallel iteration takes


def lower(kernel: Kernel, target: Target, name: str = "kernel") -> Nest:
    """The loop nest of a kernel."""
    if kernel.kind in ("contraction", "rows"):
        nest = thin(kernel, target, name)
        if nest is not None:
            return nest
    if kernel.kind == "contraction":
        return contraction(kernel, target, name)
    if kernel.kind == "blocks":
        return blocks(kernel, target, name)
    if kernel.kind == "scatter":
        return scatter(kernel, target, name)
    if kernel.kind == "scan":
        return scan(kernel, target, name)
    if kernel.kind == "distribute":
        return distribute(kernel, target, name)
    same = all(s.op is None and s.size == kernel.rows for s in kernel.stages)
    plain = all(isinstance(a.extent, int) for s in kernel.stages for a in s.axes)
    if same and (plain or len(kernel.stages) == 1):
        return elementwise(kernel, target, name)
    if len(kernel.stages) == 1 and kernel.stages[0].op is None:
        return elementwise(kernel, target, name)
    return rows(kernel, target, name)


def elementwise(kernel: Kernel, target: Target, name: str) -> Nest:
    """All stages at once, element by element, in registers."""
    main = max(kernel.stages, key=lambda stage: len(stage.axes))
    stores = inline_stages(kernel, main.axes)
    used = indices([s.value for s in stores], [s.index for s in stores])
    merged = merge(main.axes, used)
    values = {atom: value for _, known in merged for atom, value in known.items()}
    axes = [axis for axis, _ in merged]
    stores = substitute_stores(stores, values)
    exprs, positions = [s.value for s in stores], [s.index for s in stores]
    body: tuple[Statement, ...] = (Stores(tuple(stores)),)
    axis = unit_stride_axis(axes, exprs, positions)
    if axis is None:
        return finish(name, kernel, once(body), target)
    width = vector_width(target, exprs, axis.extent, False)
    outer = [a for a in axes if a != axis]
    # symbolic extents run inside; the parallel loop has a constant number of iterations
    free = [a for a in outer if isinstance(a.extent, int)]
    inner = [a for a in outer if not isinstance(a.extent, int)]
    many = numel([a.extent for a in free])
    if not free and not inner and isinstance(axis.extent, int):
        loop = lanes_loop(axis, width, body)
        return finish(name, kernel, loop, target)
    block = BLOCK if many < 64 and isinstance(axis.extent, int) and axis.extent > BLOCK else 0
    if block:
        assert isinstance(axis.extent, int)
        blocks = make_axis("b", 0, -(-axis.extent // block))
        start = mul(index_of(blocks.variable), block)
        vector = lanes_loop(axis, width, body, start, (add(start, block), axis.extent))
        free = [*free, blocks]
    else:
        vector = lanes_loop(axis, width, body)
    nested: tuple[Statement, ...] = (vector,)
    for a in reversed(inner):
        nested = (serial_loop(a, nested),)
    return finish(name, kernel, flat_loop(free, nested), target)


def rows(kernel: Kernel, target: Target, name: str) -> Nest:
    """Row after row: each stage computes its part of the row from its producers' parts."""
    count = kernel.rows
    row = row_axis(count)
    across = bool(target.vector_bytes) and count > 1 and any(
        runs_along_rows(stage, count) for stage in kernel.stages
    )
    width = 1
    lane: Atom | None = None
    if across:
        width = vector_width(target, [s.body for s in kernel.stages], count, True)
        lane = make_axis("lane", 0, width).variable
    place = index_of(row.variable)
    scratch: dict[Array, Array] = {}
    inner: dict[Array, int] = {}
    body: list[Statement] = []
    for number, original in enumerate(kernel.stages):
        stage = fix_rows(original, count, place)
        stage = replace(stage, body=_in_scratch(stage.body, scratch, inner, place, width, lane))
        size = original.size // count
        if stage.array not in kernel.stored:
            inner[stage.array] = size
            scratch[stage.array] = Array(
                f"x{number}", stage.array.dtype, max(size * width, 1), "scratch"
            )
            position = _scratch_index(stage.position, place, size, width, lane)
            stage = replace(stage, array=scratch[stage.array], position=position)
        stage = merge_stage(stage)
        if across:
            body.extend(_stage_across(stage, number, row, width))
        else:
            body.extend(_stage_along(stage, number, target))
    kind = "lanes" if across else "serial"
    loop = Loop(row.variable, 0, (count,), tuple(body), kind, width, lane)
    return finish(name, kernel, loop, target)


def _scratch_index(
    position: Integer, row: Integer, size: int, width: int, lane: Atom | None
) -> Integer:
    inside = sub(position, mul(row, size))
    return inside if lane is None else add(mul(inside, width), index_of(lane))


def _in_scratch(
    body: Expr,
    scratch: dict[Array, Array],
    inner: dict[Array, int],
    row: Integer,
    width: int,
    lane: Atom | None,
) -> Expr:
    """The body with loads of values that stay inside the kernel turned to the scratch area."""

    def change(e: Expr) -> Expr | None:
        if e.op is not expr.Leaf.LOAD or e.payload[0] not in scratch:
            return None
        array, position, guard = e.payload
        moved = _scratch_index(position, row, inner[array], width, lane)
        return expr.load(scratch[array], moved, guard)

    return expr.rebuild(body, change) if scratch else body


def _stage_along(stage: Stage, number: int, target: Target) -> list[Statement]:
    """One stage for one row, with vectors inside the row."""
    exprs = [stage.body]
    axis = unit_stride_axis((*stage.axes, *stage.reduced), exprs, [stage.position])
    if axis is None:
        return [Store(stage.array, stage.position, stage.body)]
    reduces = axis in stage.reduced
    width = vector_width(target, exprs, axis.extent, reduces)
    if stage.op is None:
        nested: tuple[Statement, ...] = (Store(stage.array, stage.position, stage.body),)
        nested = (lanes_loop(axis, width, nested),)
    elif not reduces:
        total = _register(f"sum{number}", stage, axis.variable, width)
        nested = (lanes_loop(axis, width, tuple(_accumulate(stage, total, stage.reduced))),)
    else:
        nested = tuple(_fold_along(stage, number, axis, width))
    for a in reversed([a for a in stage.axes if a != axis]):
        nested = (serial_loop(a, nested),)
    return list(nested)


def _register(name: str, stage: Stage, lanes: Atom, width: int) -> Local:
    """An accumulator of a stage, as wide as its vector loop."""
    return Local(name, stage.body.dtype, 1, lanes if width > 1 else None, width)


def _accumulate(stage: Stage, total: Local, axes: Sequence[Axis]) -> list[Statement]:
    """total = reduction over axes; then the store."""
    assert stage.op is not None
    step: tuple[Statement, ...] = (
        Set(total, 0, combine(stage.op, expr.local(total), stage.body)),
    )
    for axis in reversed(axes):
        step = (serial_loop(axis, step),)
    start = Set(total, 0, identity(stage.op, stage.body.dtype))
    return [start, *step, Store(stage.array, stage.position, expr.local(total))]


def _fold_along(stage: Stage, number: int, axis: Axis, width: int) -> list[Statement]:
    """A reduction whose vectors run along a reduced axis and are folded at the end."""
    assert stage.op is not None
    total = Local(f"sum{number}", stage.body.dtype, 1)
    partial = _register(f"part{number}", stage, axis.variable, width) if width > 1 else total
    step: tuple[Statement, ...] = (
        lanes_loop(
            axis, width, (Set(partial, 0, combine(stage.op, expr.local(partial), stage.body)),)
        ),
    )
    for a in reversed([a for a in stage.reduced if a != axis]):
        step = (serial_loop(a, step),)
    start = Set(partial, 0, identity(stage.op, stage.body.dtype))
    fold: list[Statement] = [Fold(total, stage.op, partial)] if width > 1 else []
    return [start, *step, *fold, Store(stage.array, stage.position, expr.local(total))]


def _stage_across(stage: Stage, number: int, row: Axis, width: int) -> list[Statement]:
    """One stage for a vector of rows."""
    if stage.op is None:
        nested: list[Statement] = [Store(stage.array, stage.position, stage.body)]
    else:
        total = _register(f"sum{number}", stage, row.variable, width)
        nested = _accumulate(stage, total, stage.reduced)
    for axis in reversed(stage.axes):
        nested = [serial_loop(axis, tuple(nested))]
    return nested


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
    for axis in reversed(stage.reduced):
        step = (serial_loop(axis, step),)
    body = (*start, *step)
    if not stage.axes:
        return finish(name, kernel, once(body), target)
    last = stage.axes[-1]
    # vectors need neighbouring places and the same updates' order in every lane
    vector = (
        isinstance(last.extent, int)
        and coefficient(stage.position, last.variable) == 1
        and all(last.variable not in variables(c) for c in stage.guard)
    )
    if not vector:
        return finish(name, kernel, flat_loop(stage.axes, body), target)
    width = vector_width(target, [stage.body], last.extent, True)
    outer = list(stage.axes[:-1])
    if not outer:
        return finish(name, kernel, lanes_loop(last, width, body), target)
    return finish(name, kernel, flat_loop(outer, (lanes_loop(last, width, body),)), target)

