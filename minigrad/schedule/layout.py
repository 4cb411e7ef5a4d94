"""Stages whose arrays have their axes in another order, and what that means for their readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from minigrad.graph.shapes import flatten, unflatten
from minigrad.graph.symbolic import Affine, Atom
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.stage import Stage

Order = tuple[int, ...]


def relayout(stage: Stage, order: Order, array: Array) -> Stage:
    """The stage with its kept axes, and so the layout of its array, in another order."""
    axes = [make_axis("i", n, stage.axes[old].extent) for n, old in enumerate(order)]
    values = {
        stage.axes[old].variable: axis.index
        for old, axis in zip(order, axes, strict=True)
    }
    shape = tuple(axis.extent for axis in axes)
    position = flatten([axis.index for axis in axes], shape)
    body = expr.substitute_in(stage.body, values)
    return replace(stage, array=array, shape=shape, axes=tuple(axes), body=body, position=position)


def reading(
    stage: Stage,
    moved: Mapping[Array, tuple[Stage, Order]],
    names: Mapping[Array, Array] | None = None,
) -> Stage:
    """The stage with its loads of relaid arrays moved to their elements' new places."""

    def change(e: Expr) -> Expr | None:
        if e.op is not Leaf.LOAD or e.array not in moved:
            return None
        array, position, guard = e.array, e.index, e.guard
        old, order = moved[array]
        extents = [axis.extent for axis in old.axes]
        parts = unflatten(position, extents)
        place = flatten([parts[n] for n in order], [extents[n] for n in order])
        return expr.load(names[array] if names else array, place, guard)

    return replace(stage, body=expr.rebuild(stage.body, change))


def order_of(load: Expr, variables: Sequence[Atom], member: Stage) -> Order | None:
    """How to order the member's axes so that they follow the reader's; None if it cannot be."""
    position, guard = load.index, load.guard
    if guard:
        return None
    parts = unflatten(position, [axis.extent for axis in member.axes])
    ranks = []
    for part, axis in zip(parts, member.axes, strict=True):
        if not isinstance(part, Affine) or part.constant or len(part.terms) != 1:
            return None
        ((atom, factor),) = part.terms
        extent = atom.high + 1 if atom.payload is None else atom.payload
        if factor != 1 or atom not in variables or extent != axis.extent:
            return None
        ranks.append(variables.index(atom))
    if len(set(ranks)) != len(ranks):
        return None
    return tuple(sorted(range(len(ranks)), key=ranks.__getitem__))
