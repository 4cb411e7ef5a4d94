"""Separate loops for the parts of an axis along which elements come from different places.

Joined, rolled or reflected arrays are selected by conditions on an index: where(i < 3, x[…], y[…])
reads all of them for each element and takes one. Along one part of the axis it is always the same
one, so the others need not be read. Parts along the vector axis become consecutive loops; along
another axis, each row runs the loop of its part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from minigrad.dtype import dtypes
from minigrad.graph.symbolic import Affine, Atom, ceildiv
from minigrad.loops.nest import Loop, Statement, Statements, Store, Stores
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.conditions import end_of
from minigrad.schedule.expr import Expr, Leaf

MOST = 9  # loops, so that a kernel's code does not grow without bounds
LOOP_COST = 2  # loads of vectors that take as long as one more loop

Range = tuple[int, int]


def in_parts(loop: Loop, outer: Sequence[Axis], lanes: int) -> Statements:
    """The vectors' loop, inside of one iteration over each outer axis, as loops for parts.

    lanes: of a vector.
    """
    (body,) = loop.body
    assert isinstance(body, Stores)
    known = [axis for axis in outer if isinstance(axis.extent, int)]
    enough = loop.trips >= lanes
    return tuple(_by_rows(loop, known, body.items, lanes, 1)) if enough else (loop,)


def _by_rows(
    loop: Loop, outer: Sequence[Axis], stores: Sequence[Store], lanes: int, copies: int
) -> list[Statement]:
    """copies: how many copies of the loop's code there are, this one included."""
    for number, axis in enumerate(outer):
        parts = _parts(axis.variable, axis.count, stores)
        if len(parts) > 1 and copies * len(parts) <= MOST:
            found: list[Statement] = []
            for start, stop in parts:
                inside = _within(stores, axis.variable, (start, stop))
                guard = expr.restrict((), [axis.index - start, stop - 1 - axis.index])
                one, none = (expr.const(times, dtypes.int32) for times in (1, 0))
                once = make_axis(f"{axis.variable.name}part", start, 2)
                body = _by_rows(loop, outer[number + 1 :], inside, lanes, copies * len(parts))
                times = expr.value_of(expr.guarded(guard, one, none))
                found.append(Loop(once.variable, 0, (times,), tuple(body)))
            return found
    return list(_along(loop, stores, lanes, copies))


def _along(loop: Loop, stores: Sequence[Store], lanes: int, copies: int) -> Statements:
    """The vectors' loop as one for each part, if that takes less time.

    Parts begin exactly, or where a vector does, so that results are stored by whole vectors.
    """
    x, stop, whole = loop.variable, loop.stops[0], Stores(tuple(stores))
    if loop.start != 0 or not isinstance(stop, int):
        return (loop.around((whole,)),)
    exact = [start for start, _ in _parts(x, stop, stores)]
    even = {at for start in exact for at in (start // lanes * lanes, ceildiv(start, lanes) * lanes)}
    ways: list[tuple[int, list[tuple[Range, list[Store]]]]] = []
    for starts in ([0], sorted({*even, 0}), exact):
        inside = [at for at in starts if at < stop]
        parts = [(part, _within(stores, x, part)) for part in pairwise((*inside, stop))]
        vectors = (ceildiv(end - start, lanes) * _reads(some) for (start, end), some in parts)
        if len(parts) == 1 or copies * len(parts) <= MOST:
            ways.append((sum(vectors) + LOOP_COST * len(parts), parts))
    _, best = min(ways, key=lambda way: way[0])
    if len(best) == 1:
        return (loop if loop.body == (whole,) else loop.around((whole,)),)
    return tuple(
        replace(loop, start=start, stops=(end,), body=(Stores(tuple(some)),))
        for (start, end), some in best
    )


def _reads(stores: Sequence[Store]) -> int:
    return len(expr.loads(*(store.value for store in stores)))


def _parts(variable: Atom, count: int, stores: Sequence[Store]) -> list[Range]:
    """The parts of 0 … count − 1 in which conditions do not change, if each reads less."""
    ends = {0, count}
    for e in expr.walk(*(store.value for store in stores)):
        if e.op is Leaf.CONDITION and isinstance(e.index, Affine):
            _, end = end_of(e.index, variable) or (0, 0)
            ends.add(min(max(end, 0), count) if isinstance(end, int) else 0)
    parts = list(pairwise(sorted(ends)))
    if len(parts) == 1:
        return parts
    most = max(_reads(_within(stores, variable, part)) for part in parts)
    return parts if most < _reads(stores) else [(0, count)]


def _within(stores: Sequence[Store], variable: Atom, part: Range) -> list[Store]:
    """Stores for a variable in a range, simplified by conditions that are known there."""
    first, stop = part
    inside = make_axis("part", 0, stop - first)  # its range decides conditions

    def known(e: Expr) -> Expr:
        there = expr.substitute_in(e, {variable: inside.index + first})
        return expr.substitute_in(there, {inside.variable: variable.index - first})

    return [replace(store, value=known(store.value)) for store in stores]
