"""Which part of a block's values is needed: masks become bounds of loops.

`support` tells where an expression is not a known constant: the conditions, and the value that it
has where one of them fails. Where that value is the identity of the reduction that reads it, the
reduction's loop runs only as far as the conditions hold for some row of the block, and what nobody
reads then is not computed. In causal attention that is half of everything.

A bound never changes a value: what is not computed is the reduction's identity exactly, whatever
lies in memory. So a mask has to stand around what it excludes, where(mask, x·y, 0): of
where(mask, x, 0)·y nothing is left out, for there y may be infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minigrad.dtype import convert
from minigrad.graph.fold import fold
from minigrad.graph.operations import UNARY, Op
from minigrad.graph.shapes import unflatten
from minigrad.graph.substitution import coefficient, substitute, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, high, low
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis
from minigrad.schedule.conditions import conditions_of
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.stage import Stage

Bounds = tuple[Integer, Integer]  # first, and behind the last


@dataclass(frozen=True)
class Support:
    """Where one of the conditions (each ≥ 0) fails, the expression is `outside`."""

    conditions: tuple[Affine, ...]
    outside: float


def support(root: Expr, known: Mapping[Array, tuple[Stage, Support]]) -> Support | None:
    """The support of an expression; `known`: stages that it may read, with theirs."""
    found: dict[Expr, Support | None] = {}
    for e in expr.walk(root):
        found[e] = _support(e, found, known)
    return found[root]


def _support(
    e: Expr,
    found: Mapping[Expr, Support | None],
    known: Mapping[Array, tuple[Stage, Support]],
) -> Support | None:
    if e.op is Leaf.LOAD and e.array in known and not e.guard:
        return _of_load(e, *known[e.array])
    if e.op is Op.WHERE:
        return _of_choice(e, found)
    if isinstance(e.op, Leaf) or not e.args:
        return None
    parts = [found[arg] for arg in e.args]
    first = parts[0]
    if e.op in UNARY:
        return None if first is None else _folded(e, first, (first.outside,))
    if e.op not in (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MAXIMUM, Op.MINIMUM):
        return None
    second = parts[1]
    x, y = e.args
    if first is not None and y.op is Op.CONST:
        return _folded(e, first, (first.outside, y.value))
    if second is not None and x.op is Op.CONST:
        return _folded(e, second, (x.value, second.outside))
    if first is not None and second is not None and first.conditions == second.conditions:
        return _folded(e, first, (first.outside, second.outside))
    return None


def outside(root: Expr, mask: Expr, makers: Mapping[Array, Stage]) -> float | None:
    """What an expression is where the mask is False, but for a NaN; None where that is not known.

    makers: the stages that it may read.
    """
    found: dict[Expr, float | None] = {}
    for e in expr.walk(root):
        found[e] = _outside(e, mask, makers, found)
    return found[root]


def _outside(
    e: Expr, mask: Expr, makers: Mapping[Array, Stage], found: Mapping[Expr, float | None]
) -> float | None:
    if e.op is Op.CONST:
        return float(e.value)
    if e.op is Leaf.LOAD and not e.guard:
        maker = makers.get(e.array)
        if maker is None or maker.op is not None:
            return None
        places = places_in(e, maker)
        values = {axis.variable: place for axis, place in zip(maker.axes, places, strict=True)}
        return outside(expr.substitute_in(maker.body, values), mask, makers)
    if isinstance(e.op, Leaf) or not e.dtype.is_float:
        return None
    if e.op is Op.WHERE:
        test, x, y = e.args
        return found[y] if test is mask or found[x] == found[y] else None
    parts = [found[arg] for arg in e.args]
    numbers = tuple(part for part in parts if part is not None)
    if len(numbers) == len(parts):
        return _value(e, numbers)
    if e.op in (Op.MUL, Op.DIV) and parts[0] == 0 or e.op is Op.MUL and parts[1] == 0:
        return 0.0
    return None


def _folded(e: Expr, part: Support, args: tuple[float, ...]) -> Support | None:
    """`e` with constants for its operands, where the part's conditions fail."""
    value = _value(e, args)
    return None if value is None else Support(part.conditions, value)


def _value(e: Expr, args: tuple[float, ...]) -> float | None:
    """`e` of these operands, if it is the same everywhere."""
    assert isinstance(e.op, Op)
    if e.op is Op.CAST:
        value = convert(args[0], e.dtype) if e.dtype.is_float else None
    elif e.op in (Op.EXP, Op.EXP2):  # not rounded alike everywhere, but exact here
        value = 0.0 if args[0] == float("-inf") else None
    else:
        value = fold(e.op, args)
    return None if value is None else float(value)


def _of_choice(e: Expr, found: Mapping[Expr, Support | None]) -> Support | None:
    """where(condition, x, constant)."""
    condition, x, y = e.args
    if y.op is not Op.CONST or not e.dtype.is_float:
        return None
    conditions = conditions_of(condition)
    inside = found[x]
    if inside is not None and inside.outside == y.value:
        conditions += tuple(c for c in inside.conditions if c not in conditions)
    return Support(conditions, float(y.value)) if conditions else None


def _of_load(e: Expr, stage: Stage, part: Support) -> Support | None:
    """The support of a stage, in terms of what its reader calls its element."""
    places = places_in(e, stage)
    values = {axis.variable: place for axis, place in zip(stage.axes, places, strict=True)}
    moved = tuple(substitute(c, values) for c in part.conditions)
    conditions = tuple(c for c in moved if isinstance(c, Affine))
    return Support(conditions, part.outside) if len(conditions) == len(moved) else None


def places_in(load: Expr, stage: Stage) -> tuple[Integer, ...]:
    """Where along the inner axes of a stage with fixed rows a load reads."""
    inside = load.index
    names = {axis.variable for axis in stage.axes}
    if isinstance(stage.position, Affine):
        rows = [term for term in stage.position.terms if term[0] not in names]
        inside = inside - (Affine(stage.position.constant, tuple(rows)) if rows else 0)
    return unflatten(inside, [axis.extent for axis in stage.axes])


@dataclass(frozen=True)
class Rows:
    """The rows of a block: `variable` is one of start … start + width − 1.

    fixed: the variables that are one number for all of the block.
    """

    variable: Atom
    fixed: frozenset[Atom]
    start: Integer
    width: int
    step: int  # bounds are widened to multiples of it

    def bounds(self, axis: Axis, conditions: Sequence[Affine]) -> Bounds:
        """Where along an axis the conditions can hold for some row of the block.

        Only bounds that leave something for every block: a row of which all is masked must
        still see what its mask makes of it.
        """
        first: Integer = 0
        stop: Integer = axis.extent
        for condition in conditions:
            slope = coefficient(condition, axis.variable)
            if slope not in (1, -1):
                continue
            rest = condition - axis.index * slope
            along = coefficient(rest, self.variable)
            if along is None or not variables(rest) - {self.variable} <= self.fixed:
                continue
            place = self.start + self.width - 1 if along > 0 else self.start
            most = substitute(rest, {self.variable: place})
            if slope < 0 and stop == axis.extent and low(most) >= 0:
                stop = (most + self.step) // self.step * self.step
            if slope > 0 and first == 0 and high(-most) < high(axis.extent):
                least = -most // self.step
                if low(least) >= 0:
                    first = least * self.step
        return first, stop


def mask_bounds(
    stages: Sequence[Stage], rows: Rows, stored: frozenset[Array]
) -> list[dict[Atom, Bounds]]:
    """The bounds of each stage's loops; the stages' rows are fixed, their inner axes left.

    Bounds are where the loop starts and a number that, besides the extent, stops it. A sum over the
    block's rows has bounds where it is changed.
    """
    known: dict[Array, tuple[Stage, Support]] = {}
    supports: list[Support | None] = []
    for stage in stages:
        found = support(stage.body, known)
        supports.append(found)
        if found is not None and stage.op is None:
            known[stage.array] = (stage, found)
    makers = {stage.array: stage for stage in stages}
    needed: dict[Array, list[list[Bounds]]] = {}
    result: list[dict[Atom, Bounds]] = []
    for stage, found in zip(reversed(stages), reversed(supports), strict=True):
        bounds: dict[Atom, Bounds] = {}
        wanted = [] if stage.array in stored else needed.get(stage.array, [])
        for number, axis in enumerate(stage.axes):
            bounds[axis.variable] = _union([one[number] for one in wanted], axis)
        masked = _excluded(stage, found)
        sums = any(axis.variable == rows.variable for axis in stage.reduced)
        for axis in stage.axes if sums else stage.reduced:
            bounds[axis.variable] = rows.bounds(axis, masked)
        for load in expr.loads(stage.body):
            maker = makers.get(load.array)
            if maker is not None:
                read = [
                    _read(place, axis, bounds)
                    for place, axis in zip(places_in(load, maker), maker.axes, strict=True)
                ]
                needed.setdefault(maker.array, []).append(read)
        result.insert(0, bounds)
    return result


def _excluded(stage: Stage, found: Support | None) -> tuple[Affine, ...]:
    """The conditions under which an element takes part in a stage's reduction."""
    if found is None or stage.op not in (Op.SUM, Op.MAX):
        return ()
    identity = 0.0 if stage.op is Op.SUM else float("-inf")
    return found.conditions if found.outside == identity else ()


def _read(place: Integer, axis: Axis, bounds: Mapping[Atom, Bounds]) -> Bounds:
    """The part of an axis that a load reads whose place along it is `place`."""
    if isinstance(place, Affine) and not place.constant and len(place.terms) == 1:
        ((atom, factor),) = place.terms
        if factor == 1 and atom in bounds and atom.high + 1 == axis.extent:
            return bounds[atom]
    return 0, axis.extent


def _union(parts: Sequence[Bounds], axis: Axis) -> Bounds:
    """A part of an axis that holds all of these; everything where there are none."""
    firsts, stops = {first for first, _ in parts}, {stop for _, stop in parts}
    first = firsts.pop() if len(firsts) == 1 else 0
    stop = stops.pop() if len(stops) == 1 else axis.extent
    return first, stop
