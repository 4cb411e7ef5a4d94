"""Writes to a part of a buffer: `cache[:, p:p+1] = k` stores the part only.

Such a write is a whole new value, `where(inside, new, old)`, that takes the old one's place. Where
the condition says nothing but between which places the indices lie, the stage is cut down to them.
These may be loaded: `where((first[b] <= i) & (i - 2 < first[b]), new, cache)` stores two rows of
each b, wherever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient, proven_nonnegative, substitute, variables
from minigrad.graph.symbolic import Affine, Atom, Integer
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.conditions import conditions_of
from minigrad.schedule.expr import Array, Expr
from minigrad.schedule.stage import Stage


def part_written(stage: Stage, old: Array) -> Stage | None:
    """The stage without the elements that keep what they have; None where all may change.

    `old`: the array whose memory the stage's array takes.
    """
    body = stage.body
    if stage.op is not None or body.op is not Op.WHERE:
        return None
    test, new, kept = body.args
    conditions = _conditions(test)
    if conditions is None or kept is not expr.load(old, stage.position):
        return None
    loops = {axis.variable for axis in stage.axes}
    axes: list[Axis] = []
    values: dict[Atom, Integer] = {}
    for axis in stage.axes:
        first, stop = _range(axis, conditions, loops)
        if (first, stop) == (0, axis.extent):
            first, stop = _loaded_range(axis, conditions)
            if (first, stop) != (0, axis.extent):  # which may lie outside
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
    return replace(
        stage,
        axes=tuple(axes),
        body=expr.substitute_in(new, values),
        position=substitute(stage.position, values),
        guard=expr.restrict((), [substitute(c, values) for c in conditions]),
    )


def _conditions(test: Expr) -> list[Affine] | None:
    """What must be ≥ 0 for a test to hold, None where that is not all it asks."""
    found: list[Affine] = []
    stack = [test]
    while stack:
        e = stack.pop()
        if e.op is Op.AND:
            stack.extend(e.args)
        elif e.op is Op.WHERE and e.args[2].op is Op.CONST and not e.args[2].value:
            stack.extend(e.args[:2])
        elif compared := conditions_of(e):
            found.extend(compared)
        elif not (e.op is Op.CONST and e.value):
            return None
    return found


def _range(
    axis: Axis, conditions: list[Affine], loops: set[Atom]
) -> tuple[Integer, Integer]:
    """Where an axis starts and stops by the conditions on it and the user's symbols alone."""
    first: Integer = 0
    stop = axis.extent
    for c in conditions:
        along = coefficient(c, axis.variable)
        if along not in (1, -1):
            continue
        rest = c - axis.index * along
        if not isinstance(rest, int) and any(
            atom.kind != "var" or atom in loops for atom, _ in rest.terms
        ):
            continue
        if along == 1 and first == 0 and proven_nonnegative(0 - rest):  # i + rest ≥ 0
            first = 0 - rest
        over = axis.extent - 1 - rest
        if along == -1 and stop == axis.extent and proven_nonnegative(over):  # rest − i ≥ 0
            stop = rest + 1
    return first, stop


def _loaded_range(axis: Axis, conditions: Sequence[Affine]) -> tuple[Integer, Integer]:
    """Where an axis starts and stops by loaded numbers, if it is known how far that is apart."""
    firsts, stops = list[Integer](), list[Integer]()
    for c in conditions:
        along = coefficient(c, axis.variable)
        if along in (1, -1):
            rest = c - axis.index * along
            if expr.values_in(rest):
                (firsts if along == 1 else stops).append(-rest if along == 1 else rest + 1)
    for first in firsts:
        for stop in stops:
            apart = stop - first
            if isinstance(apart, int) and apart > 0 and axis.variable not in variables(first):
                return first, stop
    return 0, axis.extent
