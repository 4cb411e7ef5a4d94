"""Loops that go inside of others, and what registers become then: several, vectors, or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from minigrad.graph.node import Op
from minigrad.graph.operations import REPEATED
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import substitute, variables
from minigrad.graph.symbolic import Atom, Integer
from minigrad.loops import nest
from minigrad.loops.build import Change, combine, put, with_places
from minigrad.loops.nest import Fold, Loop, Statement, Statements, Store
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr


def sunk(
    body: Statements, into: Sequence[Atom], starts: Mapping[Atom, Integer],
    wrapped: Callable[[Statements], Statements],
) -> Statements:  # fmt: skip
    """A body of which `wrapped` gives what stands in or between the loops that others go into.

    starts: what variables are in the bounds of those loops.
    """
    found: list[Statement] = []
    for part in _parts(body, into):
        if isinstance(part, tuple):
            found.extend(wrapped(part))
            continue
        inner = (
            wrapped(part.body) if part.variable in into
            else sunk(part.body, into, starts, wrapped)
        )  # fmt: skip
        stops = tuple(settled(stop, starts) for stop in part.stops)
        found.append(replace(part, start=settled(part.start, starts), stops=stops, body=inner))
    return tuple(found)


def _parts(body: Statements, into: Sequence[Atom]) -> list[Loop | Statements]:
    """Loops that others go into, and the statements between them."""
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


def settled(x: Integer, known: Mapping[Atom, Integer]) -> Integer:
    """An index in which variables have their known values, which may need others."""
    while not variables(x).isdisjoint(known):
        x = substitute(x, known)
    return x


def loops_of_their_own(
    loops: Sequence[Loop], leaves: Sequence[Statements], space: str
) -> Callable[[Statements], Statements]:
    """What puts loops around each of several leaves, which pass registers on: see `sink`."""
    extents = [one.vectors * one.step for one in loops]
    at = [one.variable.index - one.start for one in loops]
    place, size = flatten(at, extents), numel(extents)
    crossing: dict[Array, Array] = {}
    seen: set[Array] = set()
    for leaf in leaves:
        own = registers_of(leaf)
        for register in sorted((own & seen).difference(crossing), key=lambda one: one.name):
            several = replace(register, name=f"{register.name}{size}", size=size)
            memory = Array(f"sums{len(crossing) or ''}", register.dtype, size, space)
            crossing[register] = several if space == "registers" else memory
        seen |= own

    def wrapped(leaf: Statements) -> Statements:
        leaf = moved(leaf, crossing, place)
        for one in reversed(loops):
            leaf = (one.around(leaf),)
        return leaf

    return wrapped


def moved(
    leaf: Statements, places: Mapping[Array, Array], at: Integer
) -> Statements:
    """Statements whose registers are other ones, or memory, at an index."""
    own = registers_of(leaf)
    if own.isdisjoint(places):
        return leaf
    top = {one.array for one in leaf if isinstance(one, Store)}
    loops = [one for one in leaf if isinstance(one, Loop)]
    inner = {one.array for one in nest.walk(*loops) if isinstance(one, Store)}
    begin: list[Statement] = []
    end: list[Statement] = []
    places_of: dict[Array, Array] = {}
    for register, place in places.items():
        if register not in own:
            continue
        if place.in_registers or register not in inner:
            places_of[register] = place
            continue
        summed = more = expr.load(register)
        if register not in top:
            # −0 + x is x, whatever x is: where loops are written out nothing is added to it
            begin.append(put(summed, expr.const(-0.0, register.dtype)))
            more = combine(Op.SUM, expr.load(place, at), more)
        end.append(Store(place, at, more))
    return (*begin, *(renamed(statement, places_of, at) for statement in leaf), *end)


def renamed(
    statement: Statement, new: Mapping[Array, Array], at: Integer | None = None,
    everywhere: bool = False,
) -> Statement:  # fmt: skip
    """A statement with other registers; at: their slot, or the index of memory instead of them."""

    def move(place: Array, slot: Integer) -> tuple[Array, Integer]:
        if place not in new:
            return place, slot
        return new[place], slot if at is None else at

    return with_places(statement, move, everywhere) if new else statement


def replaced(statement: Statement, new: Mapping[Expr, Expr]) -> Statement:
    """A statement with expressions in what it computes replaced."""
    return Change(lambda value: expr.replace_in(value, new)).of(statement)


def in_parts(body: Statements, x: Atom, width: int) -> Statements:
    """Registers to which loops over x only add, or the like, with lanes, and folded behind them."""
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
                part = replace(register, name=f"{register.name}_part", lanes=x, width=width)
                parts[register] = part
                folds.append(Fold(register, op, part))
        inner = in_parts(statement.body, x, width)
        if inner is not statement.body:
            statement = statement.around(inner)
        if parts:
            found = [renamed(one, parts) if _sets(one) else one for one in found]
        found += [renamed(statement, parts), *folds]
    return nest.unless_same(body, found)


def _combined(loop: Loop, x: Atom) -> dict[Array, Op]:
    """Registers that loops over x change but do not begin, with what they do to them."""
    first: dict[Array, Expr] = {}
    for one in nest.walk(*(inner for inner in nest.loops_in([loop]) if inner.variable == x)):
        if isinstance(one, Store):
            first.setdefault(one.array, one.value)
    return {
        register: REPEATED[value.op] for register, value in first.items()
        if value.op in REPEATED and expr.load(register) is value.args[0]
        and register.in_registers
    }  # fmt: skip


def _sets(one: Statement) -> bool:
    """Whether a statement gives a register a value."""
    return isinstance(one, Store) and one.array.in_registers


def registers_of(body: Sequence[Statement]) -> set[Array]:
    """The registers that statements use."""
    return set(_registers(body))


def computes(*body: Statement) -> bool:
    """Whether registers are used in statements."""
    return any(_registers(body))


def _registers(body: Sequence[Statement]) -> Iterator[Array]:
    for values, _, reads, writes in (one.parts() for one in nest.walk(*body)):
        used = (*reads, *writes, *(load.array for load in expr.loads(*values)))
        yield from (array for array in used if array.in_registers)
