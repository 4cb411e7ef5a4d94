"""Writes to a part of a buffer: `cache[:, p:p+1] = k` stores only that part.

Such a write is formally a whole new value, `where(inside, new, old)`, that replaces the old one. If
the condition only bounds the indices, the stage is cut down to these bounds. They may be loaded:
`where((first[b] <= i) & (i - 2 < first[b]), new, cache)` stores two rows of each b, wherever they
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from minigrad.graph.node import Op
from minigrad.graph.substitution import proven_nonnegative, variables
from minigrad.graph.symbolic import Affine, Atom, Integer
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.conditions import end_of, only_conditions
from minigrad.schedule.expr import Array
from minigrad.schedule.stage import Stage


def part_written(stage: Stage, old: Array) -> Stage | None:
    """The stage without the elements that keep their value; None if all may change.

    old: the array whose memory the stage's array takes.
    """
    body = stage.body
    if stage.op is not None or body.op is not Op.WHERE:
        return None
    test, new, kept = body.args
    conditions = [*only_conditions(test)]
    if not conditions or kept is not expr.load(old, stage.position):
        return None
    loops = {axis.variable for axis in stage.axes}
    axes: list[Axis] = []
    values: dict[Atom, Integer] = {}
    for axis in stage.axes:
        first, stop = _range(axis, conditions, loops)
        if expr.values_in(first):  # a loaded bound may be out of range
            inside = axis.index, axis.extent - 1 - axis.index
            conditions += [c for c in inside if isinstance(c, Affine)]
        if (first, stop) == (0, axis.extent):
            axes.append(axis)
            continue
        extent = stop - first
        if extent == 1:
            values[axis.variable] = first
            continue
        short = make_axis("part", len(axes), extent)
        values[axis.variable] = first + short.index
        axes.append(short)
    if not values or any(not variables(place).isdisjoint(values) for place in values.values()):
        return None
    part = replace(stage, body=new, guard=tuple(conditions)).substitute(values)
    return replace(part, axes=tuple(axes))


def _range(
    axis: Axis, conditions: Sequence[Affine], loops: set[Atom]
) -> tuple[Integer, Integer]:
    """Start and stop of an axis by the conditions on it.

    They are numbers or the user's symbols, or loaded numbers whose distance is known.
    """
    firsts, stops = list[Integer](), list[Integer]()
    for side, end in filter(None, (end_of(c, axis.variable) for c in conditions)):
        (firsts if side > 0 else stops).append(end)
    fixed = [
        [x for x in ends if isinstance(x, int) or all(
            atom.kind == "var" and atom not in loops for atom, _ in x.terms
        )]
        for ends in (firsts, stops)
    ]  # fmt: skip
    first = next((x for x in fixed[0] if proven_nonnegative(x)), 0)
    stop = next((x for x in fixed[1] if proven_nonnegative(axis.extent - x)), axis.extent)
    if (first, stop) == (0, axis.extent):
        for begin, end in product(firsts, stops):
            apart = end - begin
            known = isinstance(apart, int) and apart > 0 and axis.variable not in variables(begin)
            if known and expr.values_in(begin):
                return begin, end
    return first, stop
