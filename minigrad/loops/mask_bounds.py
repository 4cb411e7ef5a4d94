"""Masks become loop bounds: which part of a block's values is needed.

`outside` gives the value of an expression where a mask is False. If that is the identity of the
reduction that reads it, the reduction's loop runs only while the mask's conditions hold for some
row of the block, and values that nobody reads are not computed. In causal attention that is half of
the work.

A bound never changes a value: the part that is not computed is exactly the reduction's identity,
whatever is in memory. So the mask must enclose the whole product, where(mask, x·y, 0). In
where(mask, x, 0)·y nothing is skipped, because y may be infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minigrad.graph.operations import Op
from minigrad.graph.substitution import coefficient, substitute, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, ceildiv, high, low
from minigrad.loops.build import Bounds
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, places_along
from minigrad.schedule.conditions import conditions_of, end_of
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.stage import Stage

Makers = Mapping[Array, Stage]  # the stages that expressions may read, by array


def outside(root: Expr, mask: Expr, exact: bool = False) -> float | None:
    """The value of an expression where the mask is False; None if it is not known.

    exact: it must not be NaN instead.
    """
    new: dict[Expr, Expr] = {}
    for e in expr.walk(root):
        new[e] = e
        if e is mask:
            new[e] = expr.const(False, e.dtype)
        elif e.args:
            new[e] = _folded(expr.with_operands(e, new), exact)
    value = new[root].known()
    return None if value is None else float(value)


def _folded(e: Expr, exact: bool) -> Expr:
    """An operation on constants as its value, if that is the same on every device."""
    numbers = [float(arg.value) for arg in e.args if arg.op is Op.CONST]
    value: float | None = None
    if isinstance(e.op, Leaf) or not e.dtype.is_float or not numbers:
        return e
    if len(numbers) == len(e.args):
        if e.op is Op.CAST:
            value = numbers[0]
        elif e.op in (Op.EXP, Op.EXP2):  # not rounded alike everywhere, but exact here
            value = 0.0 if numbers[0] == float("-inf") else None
        else:
            value = e.op.facts.fold(tuple(numbers))
    elif e.op in (Op.MUL, Op.DIV) and not exact:
        zeros = e.args if e.op is Op.MUL else e.args[:1]
        value = 0.0 if any(arg.known() == 0 for arg in zeros) else None
    return e if value is None else expr.const(value, e.dtype)


def with_makers(root: Expr, makers: Makers) -> Expr:
    """An expression with loads of elementwise stages replaced by what these compute."""

    def made(load: Expr) -> Expr | None:
        maker = makers.get(load.array) if load.dtype.is_float else None
        if maker is None or maker.op is not None or load.guard:
            return None
        return with_makers(expr.substitute_in(maker.body, places_in(load.index, maker)), makers)

    return expr.map_loads(root, made)


def places_in(inside: Integer, stage: Stage) -> dict[Atom, Integer]:
    """For an index of a stage's array, the indices along the inner axes (its rows are fixed)."""
    names = {axis.variable for axis in stage.axes}
    if isinstance(stage.position, Affine):
        rows = [term for term in stage.position.terms if term[0] not in names]
        inside = inside - (Affine(stage.position.constant, tuple(rows)) if rows else 0)
    return places_along(stage.axes, inside)


class Rows:
    """Rows that are computed together, one per lane: `row` is one of start … start + width − 1.

    count: rows of the kernel; extent: how many follow one another. `outer` numbers such sequences,
    `number` the blocks in each. whole: a row's number in the kernel; lane: in its block. height: of
    register tiles, to whose multiples bounds are widened.
    """

    def __init__(self, count: Integer, extent: int, width: int, height: int) -> None:
        self.extent, self.width, self.height = extent, width, height
        self.outer = make_axis("o", 0, count // extent)
        self.number = make_axis("g", 0, ceildiv(extent, width))
        self.row = make_axis("b", 0, extent)
        self.whole = self.outer.index * extent + self.row.index
        # a number if there is one block: loops over as many columns as a tile has are unrolled
        self.start: Integer = self.number.index * width if self.number.count > 1 else 0
        self.ends: Bounds = self.start, self.start + width
        self.lane: Integer = make_axis("lane", 0, width).index if width > 1 else 0

    def bounds(self, axis: Axis, conditions: Sequence[Affine]) -> Bounds:
        """Where along an axis the conditions can hold for some row of the block.

        Only bounds that leave something for every block: a row that is masked entirely still needs
        the value that its mask gives.
        """
        first: Integer = 0
        stop: Integer = axis.extent
        row = self.row.variable
        known = {row, self.outer.variable, self.number.variable}
        for condition in conditions:
            side, end = end_of(condition, axis.variable) or (0, 0)
            along = coefficient(end, row)
            if along is None or not variables(end) <= known:
                continue
            end = substitute(end, {row: self.ends[1] - 1 if along * side < 0 else self.start})
            if side < 0 and low(end) > 0:
                stop = ceildiv(end, self.height) * self.height
            if side > 0 and high(end) < axis.most and low(end // self.height) >= 0:
                first = end // self.height * self.height
        return first, stop


def mask_bounds(
    stages: Sequence[Stage], rows: Rows, stored: frozenset[Array]
) -> list[dict[Atom, Bounds]]:
    """The bounds of each stage's loops; the stages' rows are fixed, their inner axes left.

    Bounds are the start, and a number that stops the loop if the extent does not. A sum over the
    block's rows has bounds for the part that changes.
    """
    makers = {stage.array: stage for stage in stages}
    needed: dict[Array, list[list[Bounds]]] = {}
    result: list[dict[Atom, Bounds]] = []
    for stage in reversed(stages):
        bounds: dict[Atom, Bounds] = {}
        wanted = [] if stage.array in stored else needed.get(stage.array, [])
        for number, axis in enumerate(stage.axes):
            bounds[axis.variable] = _union([one[number] for one in wanted], axis)
        masked = _conditions(stage, makers)
        sums = rows.row in stage.reduced
        for axis in stage.axes if sums else stage.reduced:
            bounds[axis.variable] = rows.bounds(axis, masked)
        for load in expr.loads(stage.body):
            maker = makers.get(load.array)
            if maker is not None:
                places = places_in(load.index, maker)
                read = [_read(places[axis.variable], axis, bounds) for axis in maker.axes]
                needed.setdefault(maker.array, []).append(read)
        if sums:
            bounds[rows.row.variable] = rows.start, rows.start + rows.width
        result.insert(0, bounds)
    return result


def _conditions(stage: Stage, makers: Makers) -> tuple[Affine, ...]:
    """The conditions under which an element contributes to a stage's reduction."""
    if stage.op not in (Op.SUM, Op.MAX):
        return ()
    identity = 0.0 if stage.op is Op.SUM else float("-inf")
    body, found = stage.body, dict[Affine, None]()
    if body.op is not Op.WHERE:  # else its own mask contains all conditions
        body = with_makers(body, makers)
    for e in reversed(expr.walk(body)):  # the outermost mask first
        conditions = conditions_of(e.args[0]) if e.op is Op.WHERE else ()
        if conditions and outside(body, e.args[0], exact=True) == identity:
            found.update(dict.fromkeys(conditions))
    return tuple(found)


def _read(place: Integer, axis: Axis, bounds: Mapping[Atom, Bounds]) -> Bounds:
    """The part of an axis that a load reads; place: its index along the axis."""
    if isinstance(place, Affine) and not place.constant and len(place.terms) == 1:
        ((atom, factor),) = place.terms
        if factor == 1 and atom in bounds and atom.high + 1 == axis.extent:
            return bounds[atom]
    return 0, axis.extent


def _union(parts: Sequence[Bounds], axis: Axis) -> Bounds:
    """A part of an axis that contains all of these; the whole axis if there are none."""
    firsts, stops = {first for first, _ in parts}, {stop for _, stop in parts}
    first = firsts.pop() if len(firsts) == 1 else 0
    stop = stops.pop() if len(stops) == 1 else axis.extent
    return first, stop
