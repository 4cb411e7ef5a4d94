"""Which part of an array each iteration of a kernel touches.

If one kernel's iterations touch the same parts of an array as the next one's, the two can run in
turn, chunk by chunk: what a chunk of the first has written is still in the cache for the same chunk
of the second (see `schedule/groups.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from minigrad.graph.substitution import substitute, variables
from minigrad.graph.symbolic import Affine, Integer, high, low, var
from minigrad.loops import nest
from minigrad.loops.nest import Loop, Loops
from minigrad.schedule import expr
from minigrad.schedule.expr import Array


class Share(NamedTuple):
    """Iteration i of n touches only elements whose number, modulo `length`, is in part i of n.

    That is from i · length / n up to (i + 1) · length / n. It holds if the symbols `starts` are
    multiples of the length. length 0: nothing is known.
    """

    length: int = 0
    starts: tuple[str, ...] = ()


UNKNOWN = Share()


def share_of(loop: Loop, array: Array, symbols: Collection[str]) -> Share:
    """The share of an array that each iteration of the parallel loop touches."""
    found = set[Share]()
    if not isinstance(loop.stops[0], int) or loop.kind != "serial" or array.of is not None:
        return UNKNOWN  # (elements of another dtype are counted otherwise)
    for one, around in nest.walk_with_loops(loop.body):
        if isinstance(one, nest.Prefetch):
            continue
        values, indices, reads, writes = one.parts()
        places = [e.index for e in expr.loads(*values) if e.array == array]
        if isinstance(one, nest.Store) and one.array == array:
            places.append(one.index)
        elif array in (*reads, *writes) or any(expr.values_in(x) for x in indices):
            return UNKNOWN
        found |= {_share(x, loop, around, symbols) for x in places}
    return found.pop() if len(found) == 1 else UNKNOWN


def _share(index: Integer, loop: Loop, around: Loops, symbols: Collection[str]) -> Share:
    """The same of one access."""
    for inner in reversed(around):
        place = var(f"{inner.variable.name}.place", 0, max(inner.trips - 1, 0))
        index = substitute(index, {inner.variable: inner.start + place})
    if not isinstance(index, Affine) or not isinstance(loop.stops[0], int):
        return UNKNOWN
    step, within, starts = 0, index.constant, list[str]()
    others = list[tuple[int, Integer]]()
    for atom, factor in index.terms:
        if atom == loop.variable:
            step = factor
        elif loop.variable in variables(atom.index):
            return UNKNOWN
        elif atom.name in symbols and factor == 1:
            starts.append(atom.name)
        else:
            others.append((factor, atom.index))
    length = step * loop.stops[0]
    if length <= 0:
        return UNKNOWN
    rest: Integer = within % length
    for factor, x in others:
        if factor % length:
            rest = rest + x * factor
    inside = low(rest) >= 0 and high(rest) < step
    return Share(length, tuple(sorted(starts))) if inside else UNKNOWN
