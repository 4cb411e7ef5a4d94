"""Recipes of what goes on from element to element: running reductions, and a pass of a sort.

Both are serial along one axis and parallel over all others.
"""

from __future__ import annotations

from minigrad.dtype import dtypes
from minigrad.graph.node import SCANS, Op
from minigrad.graph.symbolic import Integer, coefficient, sub
from minigrad.loops.axes import vector_width
from minigrad.loops.build import combine, flat_loop, lanes_loop, once, serial_loop
from minigrad.loops.finish import finish
from minigrad.loops.nest import Nest, Set, Statement, Store
from minigrad.loops.target import Target
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Local
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import identity


def scan(kernel: Kernel, target: Target, name: str) -> Nest:
    """A running reduction; vectors run along the last kept axis where that is contiguous."""
    (stage,) = kernel.stages
    (along,) = stage.reduced
    assert stage.op is not None
    reduction, last = SCANS[stage.op], stage.axes[-1] if stage.axes else None
    width = 1
    if last is not None and coefficient(stage.position, last.variable) == 1:
        width = vector_width(target, [stage.body], last.extent, True)
    lanes = last.variable if last is not None and width > 1 else None
    total = Local("total", stage.body.dtype, 1, lanes, width)
    body: tuple[Statement, ...] = (
        Set(total, 0, identity(reduction, stage.body.dtype)),
        serial_loop(along, (
            Set(total, 0, combine(reduction, expr.local(total), stage.body)),
            Store(stage.array, stage.position, expr.local(total)),
        )),
    )  # fmt: skip
    outer = list(stage.axes)
    if last is not None and width > 1:
        outer.pop()
        vector = lanes_loop(last, width, body)
        if not outer and isinstance(last.extent, int):
            return finish(name, kernel, vector, target)
        body = (vector,)
    symbolic = [axis for axis in outer if not isinstance(axis.extent, int)]
    for axis in symbolic:
        body = (serial_loop(axis, body),)
    free = [axis for axis in outer if isinstance(axis.extent, int)]
    loop = flat_loop(free, body) if free else once(body)
    return finish(name, kernel, loop, target)


def distribute(kernel: Kernel, target: Target, name: str) -> Nest:
    """One pass of a counting sort: each row's next free places stand in scratch memory."""
    (stage,) = kernel.stages
    assert stage.initial is not None
    (bins,), (along,) = stage.initial_axes, stage.reduced
    next_free = Array("next", dtypes.int32, 256, "scratch")
    place = Local("place", dtypes.int32, 1)
    where: Integer = expr.value_of(expr.local(place))
    inside = expr.restrict((), [where, sub(stage.size - 1, where)])
    body: tuple[Statement, ...] = (
        serial_loop(bins, (Store(next_free, stage.initial_position, stage.initial),)),
        serial_loop(along, (
            Set(place, 0, expr.load(next_free, stage.position)),
            Store(stage.array, where, stage.body, inside),
            Store(next_free, stage.position, combine_one(place)),
        )),
    )  # fmt: skip
    loop = flat_loop(stage.axes, body) if stage.axes else once(body)
    return finish(name, kernel, loop, target)


def combine_one(place: Local) -> expr.Expr:
    """The place after this one."""
    one = expr.const(1, place.dtype)
    return expr.apply(Op.ADD, (expr.local(place), one), place.dtype)
