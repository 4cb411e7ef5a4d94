"""Loops in which the work-items of a group copy an operand (see `LoopNest.stage`)."""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph.shapes import numel, unflatten
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.build import lanes_loop
from minigrad.loops.nest import Loop
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Guard

UNROLLED = 32  # iterations of a work-item's copy that are unrolled, at most


def by_items(
    copying: Sequence[Loop], width: int, item: Axis
) -> tuple[list[Loop], dict[Atom, Integer], Guard]:
    """All loops merged into one, in vectors that work-items take in turn.

    Also returns the variables' values, and a guard: there may be fewer vectors than items.
    """
    extents = [one.trips for one in copying]
    count = numel(extents) // width
    q, y = make_axis("q", 0, ceildiv(count, item.count)), make_axis("y", 0, width)
    number = q.index * item.count + item.index
    places = unflatten(number * width + (y.index if width > 1 else 0), extents)
    values: dict[Atom, Integer] = {}
    for one, place in zip(copying, places, strict=True):
        values[one.variable] = substitute(one.start, values) + place
    kind = "unroll" if q.count <= UNROLLED else "serial"
    loops = [Loop(q.variable, 0, (q.count,), (), kind), lanes_loop(y, width, ())]
    return loops[: 1 + (width > 1)], values, expr.restrict((), [count - 1 - number])
