"""Stages whose arrays have their axes in another order, and the consequences for their readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from minigrad.graph.shapes import flatten, unflatten
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Affine, Atom, Integer, high
from minigrad.graph.windows import INTERLEAVED
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, place_along
from minigrad.schedule.expr import Array, Expr
from minigrad.schedule.stage import Stage

Order = tuple[int, ...]

LEAST_ROWS = 4  # of a product, to store vectors along its rows instead of its columns


def relayout(stage: Stage, order: Order, array: Array) -> Stage:
    """The stage with its kept axes, and so the layout of its array, in another order."""
    axes = [make_axis("i", n, stage.axes[old].extent) for n, old in enumerate(order)]
    values = {
        stage.axes[old].variable: axis.index
        for old, axis in zip(order, axes, strict=True)
    }
    shape, moved = tuple(axis.extent for axis in axes), stage.substitute(values)
    return replace(moved, array=array, shape=shape, axes=tuple(axes), position=place_along(axes))


def reading(
    stage: Stage,
    moved: Mapping[Array, tuple[Stage, Order]],
    names: Mapping[Array, Array] | None = None,
) -> Stage:
    """The stage with loads of rearranged arrays at their elements' new positions.

    moved: array → its stage before, and the order of its axes.
    """
    if moved.keys().isdisjoint(stage.reads):
        return stage

    def change(e: Expr) -> Expr | None:
        if e.array not in moved:
            return None
        old, order = moved[e.array]
        parts = _parts(e, old)
        place = flatten([parts[n] for n in order], [old.axes[n].extent for n in order])
        return expr.load(names[e.array] if names else e.array, place, e.guard)

    return replace(stage, body=expr.map_loads(stage.body, change))


def _parts(load: Expr, made: Stage) -> tuple[Integer, ...]:
    """The index along each of the stage's axes that a load of its array reads."""
    return unflatten(load.index, [axis.extent for axis in made.axes])


Digits = dict[Atom, list[tuple[int, int]]]  # the reader's variable → weights and product axes


def _digits(load: Expr, product: Stage) -> Digits | None:
    """The product axes that a reader's variables are composed of; None if it is not so simple.

    A reader of a product with axes (heads, columns of 64), whose one variable v runs over all
    columns, loads at (v // 64, v % 64): v is composed of heads with weight 64, columns with 1.
    """
    if load.guard or any(not isinstance(axis.extent, int) for axis in product.axes[1:]):
        return None
    found: Digits = {}
    for place, (part, axis) in enumerate(zip(_parts(load, product), product.axes, strict=True)):
        digit = _digit(part)
        if digit is None or high(part) + 1 != axis.most:
            return None
        found.setdefault(digit[0], []).append((digit[1], place))
    return {variable: sorted(digits) for variable, digits in found.items()}


def order_of(load: Expr, axes: Sequence[Axis], member: Stage) -> Order | None:
    """The order of the member's axes in which a load reads its array; None if there is none.

    axes: those of the reader. The load must read the whole array, an axis of it for each of these.
    """
    digits = _digits(load, member) or {}
    found = [digits.get(axis.variable, []) for axis in axes]
    if len(axes) != len(member.axes) or any(len(own) != 1 for own in found):
        return None
    order = tuple(place for ((_, place),) in found)
    alike = (axis.extent == member.axes[n].extent for axis, n in zip(axes, order, strict=True))
    return order if all(alike) else None


def in_order_of(stage: Stage, product: Stage, across: bool) -> Stage:
    """An elementwise stage on a product's results, with the product's axes.

    Its array keeps its layout. The stage stays as it is unless it reads each result once, and the
    product's neighbouring columns (across: or rows) are near each other in its array.
    """
    reads = [load for load in expr.loads(stage.body) if load.array == product.array]
    digits = _digits(reads[0], product) if len(reads) == 1 and not stage.guard else None
    if digits is None or not digits.keys() <= {axis.variable for axis in stage.axes}:
        return stage
    # the stage's variables in terms of the product's axes
    values: dict[Atom, Integer] = {}
    for own in stage.axes:
        value: Integer = 0
        size: Integer = 1
        for weight, place in digits.get(own.variable, ()):  # the smallest weight first
            if weight != size:
                return stage
            axis = product.axes[place]
            value, size = value + axis.index * weight, size * axis.extent
        if size != own.extent:
            return stage
        values[own.variable] = value
    moved = stage.substitute(values)
    inner = list(product.axes[-1:])
    if across and product.product is not None:
        inner += [row for row in product.product.m[-1:] if row.most >= LEAST_ROWS]
    near = any(is_near(coefficient(moved.position, axis.variable)) for axis in inner)
    return replace(moved, axes=product.axes) if near else stage


def is_near(step: int | None) -> bool:
    """Whether vectors are stored whole if neighbours are this many elements apart."""
    return step in range(1, INTERLEAVED + 1)


def as_read(product: Stage, readers: Sequence[Stage]) -> Order | None:
    """The order of a product's axes in memory in which all its readers read it.

    Axes that a reader merges with the last one (the heads and columns of attention, for the product
    after it) come last. None if the readers differ.
    """
    orders = set()
    for load in (e for stage in readers for e in stage.loads):
        if load.array != product.array:
            continue
        digits, last = _digits(load, product), len(product.axes) - 1
        if digits is None:
            return None
        # the axes that are merged with the last one, and the others
        inner = next(ps for d in digits.values() if last in (ps := [place for _, place in d]))
        rest = [place for place in range(last + 1) if place not in inner]
        orders.add((*rest, *reversed(inner)))
    return orders.pop() if len(orders) == 1 else None


def _digit(part: Integer) -> tuple[Atom, int] | None:
    """(v, weight) of an index that is v // weight, or a remainder of that; else None."""
    if not isinstance(part, Affine) or part.constant or len(part.terms) != 1:
        return None
    ((atom, factor),) = part.terms
    if factor != 1:
        return None
    if atom.kind == "mod" and atom.inner is not None:
        return _digit(atom.inner)
    if atom.kind == "div" and atom.inner is not None:
        below = _digit(atom.inner)
        return below and (below[0], below[1] * atom.divisor)
    return (atom, 1) if atom.kind == "var" else None
