"""Rows whose results are written while the next row is computed.

Stores that pass by the cache go to memory at once, at a speed of their own: a pass that does
little else waits for memory, while the passes before it leave memory alone. So the last pass of a
row, if it writes such results, shares the loop of the next row's longest pass, and what it reads
of its row is kept twice, for rows of even and of odd number. (Measured with one core of a Zen 5
class machine: a softmax of 64 MiB takes 3.2 ms instead of 3.8.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.assemble import MOST_CHUNKS
from minigrad.loops.build import Move, Place, substitute_statement, with_places
from minigrad.loops.nest import (
    Loop,
    Statement,
    Store,
    Stores,
    expressions,
)
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array
from minigrad.target import Target

# Rows that follow one another; the first, one in 16, has no pass of a row before it to share. There
# are at least as many blocks as chunks (see assemble.py).
BLOCK_ROWS = 16


@dataclass(frozen=True)
class Part:
    """A part of a row's work, as `row_passes` makes them: a pass's loop is over `extent` elements.

    operations: of an element, to tell which pass takes longest.
    """

    extent: Integer | None
    operations: int
    statements: tuple[Statement, ...]

    @property
    def loop(self) -> Loop | None:
        """The loop of a pass with vectors."""
        loops = [s for s in self.statements if isinstance(s, Loop)]
        return loops[0] if self.extent is not None and loops[0].kind == "lanes" else None


def pipelined_rows(parts: Sequence[Part], row: Axis, target: Target) -> Loop | None:
    """The loop over blocks of rows; None where nothing is gained by it."""
    *early, last = parts
    count, size = row.extent, _block_size(row.extent)
    if not size or last.loop is None or not _only_streams(last):
        return None
    hosts = [n for n, part in enumerate(early) if part.loop and part.extent == last.extent]
    if not hosts:
        return None
    kept = {
        load.array for load in expr.loads(*expressions(last.loop))
        if load.array.space == "scratch"
    }  # fmt: skip
    if sum(array.size * array.dtype.itemsize for array in kept) > target.l2 // 8:
        return None
    assert isinstance(count, int)
    twice = _twice(kept, row)
    host = max(hosts, key=lambda n: early[n].operations)
    loop = early[host].loop
    assert loop is not None
    alone = with_places(last.loop, twice)
    assert isinstance(alone, Loop)
    delayed = _at(alone, {
        row.variable: row.index - 1, alone.variable: loop.index
    })  # fmt: skip
    assert isinstance(delayed, Loop)
    prefetch = (*loop.prefetch, *delayed.prefetch)
    shared = replace(loop, body=(*loop.body, *delayed.body), prefetch=prefetch)
    block = make_axis("b", 0, ceildiv(count, size))
    start = block.index * size
    first = [_at(with_places(s, twice), {row.variable: start}) for p in early for s in p.statements]
    following = [
        with_places(shared if s is loop else s, twice) for p in early for s in p.statements
    ]
    stop = start + size
    stops = (stop,) if count % size == 0 else (stop, count)
    final = stop - 1
    body: list[Statement] = [
        *first,
        Loop(row.variable, start + 1, stops, tuple(following)),
        Loop(row.variable, final, stops, (alone,)),
    ]
    if count % size:  # the last block may have fewer rows
        body.append(Loop(row.variable, count - 1, (count, final), (alone,)))
    return Loop(block.variable, 0, (block.extent,), tuple(body))


def _block_size(count: Integer) -> int:
    """Rows of a block, 0 where there are too few of them."""
    size = BLOCK_ROWS
    while size >= 4:
        if isinstance(count, int) and count >= MOST_CHUNKS * size:
            return size
        size //= 2
    return 0


def _only_streams(part: Part) -> bool:
    """Whether a pass does nothing but write what passes by the cache."""
    (statement,) = part.statements if len(part.statements) == 1 else (None,)
    if not isinstance(statement, Loop) or len(statement.body) != 1:
        return False
    (inner,) = statement.body
    items = inner.items if isinstance(inner, Stores) else (inner,)
    return all(isinstance(item, Store) and item.streaming for item in items)


def _at(statement: Statement, values: dict[Atom, Integer]) -> Statement:
    return substitute_statement(statement, values)


def _twice(kept: set[Array], row: Axis) -> Move:
    """Where the elements of `kept` are, of which rows of even and of odd number have one each."""
    second = (row.index + 1) % 2

    def moved(place: Place, at: Integer) -> tuple[Place, Integer]:
        if not isinstance(place, Array) or place not in kept:
            return place, at
        return replace(place, size=2 * place.size), at + second * place.size

    return moved
