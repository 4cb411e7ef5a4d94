"""Loops moved inside of others: their registers become several registers, vectors, or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from minigrad.dtype import DType
from minigrad.graph.node import Op
from minigrad.graph.operations import REPEATED
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import coefficient, substitute, variables
from minigrad.graph.symbolic import Atom, Integer
from minigrad.loops import nest
from minigrad.loops.build import combine, least, put, with_places
from minigrad.loops.nest import Fold, Loop, Matrix, MatrixProduct, Statement, Statements, Store
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis
from minigrad.schedule.expr import Array, Expr


def sunk(
    body: Statements, into: Sequence[Atom], loops: Mapping[Atom, Loop],
    wrapped: Callable[[Statements], Statements],
) -> Statements:  # fmt: skip
    """A body with loops sunk into it: `wrapped` gives what stands in or between its loops.

    loops: the loops that are sunk; the bounds of the body's loops are widened to all their
    iterations.
    """
    found: list[Statement] = []
    for part in _parts(body, into):
        if isinstance(part, tuple):
            found.extend(wrapped(part))
            continue
        inner = (
            wrapped(part.body) if part.variable in into
            else sunk(part.body, into, loops, wrapped)
        )  # fmt: skip
        found.append(widened(part, loops).around(inner))
    return tuple(found)


def _parts(body: Statements, into: Sequence[Atom]) -> list[Loop | Statements]:
    """The loops into which others are sunk, and the statements between them."""
    parts: list[Loop | Statements] = []
    for statement in body:
        if isinstance(statement, Loop) and (
            any(statement.holds(x) for x in into) if into else statement.kind == "serial"
        ):
            parts.append(statement)
        elif parts and isinstance(parts[-1], tuple):
            parts[-1] = (*parts[-1], statement)
        else:
            parts.append((statement,))
    return parts


def widened(loop: Loop, loops: Mapping[Atom, Loop]) -> Loop:
    """A loop with bounds that cover those of all iterations of other loops."""
    start = _furthest(loop.start, loops, -1)
    stops = [_furthest(stop, loops, 1) for stop in loop.stops]
    if (start, *stops) == (loop.start, *loop.stops):
        return loop
    # the end of the variable's range may have been implied
    extent = loop.variable.payload or loop.variable.high + 1
    return replace(loop, start=start, stops=least(*stops, extent))


def _furthest(x: Integer, loops: Mapping[Atom, Loop], sign: int) -> Integer:
    """The greatest (sign: 1) or least (−1) value of an index in loops.

    Their bounds may depend on others. Loaded values are taken at the start of loops.
    """
    while variable := next((one for one in variables(x) if one in loops), None):
        loop = loops[variable]
        last = sign * _slope(x, variable) > 0
        x = substitute(x, {variable: loop.stops[0] - 1 if last else loop.start})
    return x


def _slope(x: Integer, along: Atom) -> float:
    """How an index grows along a variable, with quotients taken as exact."""
    slope = 0.0
    for atom, factor in () if isinstance(x, int) else x.terms:
        if atom == along:
            slope += factor
        elif atom.kind == "div" and atom.inner is not None:
            slope += factor * _slope(atom.inner, along) / atom.divisor
    return slope


def loops_of_their_own(
    loops: Sequence[Loop], leaves: Sequence[Statements], space: str, around: Mapping[Atom, Loop]
) -> Callable[[Statements], Statements]:
    """A function that puts loops around each of the leaves, which share registers: see `sink`."""
    # in registers, vectors need no place per iteration
    own = [one for one in loops if space != "registers" or one.kind != "lanes"]
    extents = [one.vectors * one.step for one in own]
    places = [one.variable.index - one.start if one.trips > 1 else 0 for one in own]
    place, size = flatten(places, extents), numel(extents)
    crossing: dict[Array, Expr] = {}
    seen: set[Array] = set()
    for leaf in leaves:
        here = registers_of(leaf)
        for register in sorted((here & seen).difference(crossing), key=lambda one: one.name):
            if space == "registers":
                several = replace(register, name=f"{register.name}{size}", size=size)
                crossing[register] = expr.load(several, place)
            else:
                vectors = [one.lane for x, one in around.items() if x == register.lanes]
                lanes = [lane.index for lane in vectors if lane is not None]
                sizes = [size, *(register.width for _ in lanes)]
                memory = Array(f"sums{len(crossing) or ''}", register.dtype, numel(sizes), space)
                crossing[register] = expr.load(memory, flatten([place, *lanes], sizes))
        seen |= here

    def wrapped(leaf: Statements) -> Statements:
        leaf = moved(leaf, crossing)
        for one in reversed(loops):
            leaf = (one.around(leaf),)
        return leaf

    return wrapped


def moved(leaf: Statements, places: Mapping[Array, Expr]) -> Statements:
    """Statements whose registers are replaced by other ones, or by places in memory."""
    own = registers_of(leaf)
    if own.isdisjoint(places):
        return leaf
    top = {one.array for one in leaf if isinstance(one, Store)}
    loops = [one for one in leaf if isinstance(one, Loop)]
    inner = {one.array for one in nest.walk(*loops) if isinstance(one, Store)}
    begin: list[Statement] = []
    end: list[Statement] = []
    places_of: dict[Array, Expr] = {}
    for register, place in places.items():
        if register not in own:
            continue
        if place.in_registers or register not in inner:
            places_of[register] = place
            continue
        summed = more = expr.load(register)
        if register not in top:
            # −0 + x is x for every x: in unrolled loops this addition disappears
            begin.append(put(summed, expr.const(-0.0, register.dtype)))
            more = combine(Op.SUM, place, more)
        end.append(put(place, more))

    def move(place: Array, slot: Integer) -> tuple[Array, Integer]:
        new = places_of.get(place)
        return (place, slot) if new is None else (new.array, new.index)

    return (*begin, *(with_places(one, move) if places_of else one for one in leaf), *end)


def in_squares(
    body: Statements, around: Mapping[Atom, Loop], x: Atom, ks: Sequence[Atom],
    operands: tuple[Expr, Expr], dtypes: tuple[DType, DType],
) -> Statements:  # fmt: skip
    """Replace the loops over ks in a body by a product of matrix registers: see `tensorize`.

    Prefetches and other products before them stay. The sums are in scratch memory instead of
    registers: row after row, all lanes of each.
    """
    at = next(n for n, one in enumerate(body) if isinstance(one, Loop) and one.variable == ks[0])
    sums = [nest.loop_over(k, body[at:]) for k in ks]
    (register,) = nest.written(sums[0])
    assert register.lanes is not None
    lane = around[register.lanes].lane
    assert lane is not None
    begin = {one.variable: one.start for one in (*sums, nest.loop_over(x, sums[0].body))}
    inner, width = numel([one.trips for one in sums[1:]]), register.width
    depths = tuple((stop - sums[0].start) * inner for stop in sums[0].stops)
    hints = [one for one in body[:at] if not any(array.in_registers for array in nest.written(one))]
    name = f"square{sum(isinstance(one, MatrixProduct) for one in hints) or ''}"
    square = Array(name, register.dtype, register.size * width, "scratch")

    def matrix(e: Expr, along: Atom) -> Matrix:
        load, count = (e.args[0], len(e.args)) if e.args else (e, 1)
        pitch = coefficient(load.index, along)
        assert pitch is not None and pitch % count == 0, "rows are as far from each other"
        return Matrix(load.array, substitute(load.index, begin), pitch // count)

    left, right = matrix(operands[0], x), matrix(operands[1], ks[-1])
    total = Matrix(square, 0, width)
    product = MatrixProduct(total, left, right, register.size, width, depths, *dtypes)

    def move(place: Array, slot: Integer) -> tuple[Array, Integer]:
        return (square, slot * width + lane.index) if place == register else (place, slot)

    return (*hints, product, *(with_places(one, move) for one in body[at + 1 :]))


def renamed(statement: Statement, new: Mapping[Array, Array]) -> Statement:
    """A statement with registers replaced by others."""
    if not new:
        return statement
    return with_places(statement, lambda old, slot: (new.get(old, old), slot))


def of_item(statement: Statement, xs: Sequence[Atom], item: Axis) -> Statement:
    """A statement with a work-item's own registers, instead of those for iterations over xs."""

    def move(place: Array, index: Integer) -> tuple[Array, Integer]:
        if not place.in_registers or variables(index).isdisjoint(xs):
            return place, index
        size = place.size // item.count
        name = f"{place.name.removesuffix(str(place.size))}{size}"
        return replace(place, name=name, size=size), substitute(index, dict.fromkeys(xs, 0))

    return with_places(statement, move)


def in_parts(body: Statements, x: Atom, width: int) -> Statements:
    """Give lanes to registers that loops over x only accumulate, and fold them after the loops."""
    found: list[Statement] = []
    for statement in body:
        if not isinstance(statement, Loop) or not statement.holds(x):
            found.append(statement)
            continue
        here = {one.array for one in found if isinstance(one, Store)}
        parts: dict[Array, Array] = {}
        folds: list[Statement] = []
        for register, op in _combined(statement, x).items() if here else ():
            if register in here:
                name = f"{register.name}_part"
                part = replace(register, name=name, lanes=x, width=width, folded=True)
                parts[register] = part
                folds.append(Fold(register, op, part))
        inner = in_parts(statement.body, x, width)
        if inner is not statement.body:
            statement = statement.around(inner)
        sets = [isinstance(one, Store) and one.array.in_registers for one in found]
        found = [renamed(one, parts) if own else one for one, own in zip(found, sets, strict=True)]
        found += [renamed(statement, parts), *folds]
    return nest.unless_same(body, found)


def _combined(loop: Loop, x: Atom) -> dict[Array, Op]:
    """Registers that loops over x accumulate but do not initialize, with the operation."""
    first: dict[Array, Expr] = {}
    for one in nest.walk(*(inner for inner in nest.loops_in([loop]) if inner.variable == x)):
        if isinstance(one, Store):
            first.setdefault(one.array, one.value)
    return {
        register: REPEATED[value.op] for register, value in first.items()
        if value.op in REPEATED and expr.load(register) is value.args[0]
        and register.in_registers
    }  # fmt: skip


def registers_of(body: Sequence[Statement]) -> set[Array]:
    """The registers that statements use."""
    return set(_registers(body))


def computes(*body: Statement) -> bool:
    """Whether statements use registers, or contain prefetches."""
    hints = (isinstance(one, nest.Prefetch) for one in nest.walk(*body))
    return any(_registers(body)) or any(hints)


def _registers(body: Sequence[Statement]) -> Iterator[Array]:
    for values, _, reads, writes in (one.parts() for one in nest.walk(*body)):
        used = (*reads, *writes, *(load.array for load in expr.loads(*values)))
        yield from (array for array in used if array.in_registers)
