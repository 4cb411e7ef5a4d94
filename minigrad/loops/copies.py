"""Loops that copy an operand (see `LoopNest.stage`), in the order that suits reader and target.

Each function gives the loops, and the values of the original loops' variables in them.
"""

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


def as_one(copying: Sequence[Loop], width: int) -> tuple[list[Loop], dict[Atom, Integer]]:
    """The loops of a copy with the last two merged, in vectors; and their variables' values."""
    *loops, outer, inner = copying
    count = inner.stops[0] - inner.start
    assert isinstance(count, int)
    x = make_axis("w", 0, (outer.variable.high + 1) * count)
    values = {outer.variable: x.index // count, inner.variable: inner.start + x.index % count}
    stops = tuple(stop * count for stop in outer.stops)
    one = Loop(x.variable, outer.start * count, stops, (), "lanes", width)
    return [*loops, one], values


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
