"""Rows whose results are written while the next row is computed.

Stores that pass by the cache go to memory at once, at a speed of their own: a sweep that does
little else waits for memory, while the sweeps before it leave memory alone. So the last sweep of a
row, if it writes such results, shares the loop of the next row's longest sweep, and what it reads
of its row is kept twice, for rows of even and of odd number. (Measured with one core of a Zen 5
class machine: a softmax of 64 MiB takes 3.2 ms instead of 3.8.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.build import substitute_statement
from minigrad.loops.nest import Loop, Set, Statement, Store, Stores, expressions
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr
from minigrad.schedule.stage import Axis, make_axis
from minigrad.target import Target

BLOCK = 16  # rows that follow each other: the first has no sweep of a row before it to share
FEWEST_BLOCKS = 64


@dataclass(frozen=True)
class Part:
    """A part of a row's work, as `row_passes` makes them: a sweep's loop is over `extent` elements.

    operations: of an element, to tell which sweep takes longest.
    """

    extent: Integer | None
    operations: int
    statements: tuple[Statement, ...]

    @property
    def loop(self) -> Loop | None:
        """The loop of a sweep with vectors."""
        loops = [s for s in self.statements if isinstance(s, Loop)]
        return loops[0] if self.extent is not None and loops[0].kind == "lanes" else None


def pipelined_rows(parts: Sequence[Part], row: Axis, target: Target) -> Loop | None:
    """The loop over blocks of rows; None where the last part is not worth being late."""
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
    alone = _changed(last.loop, twice)
    assert isinstance(alone, Loop)
    late = _at(alone, {
        row.variable: row.index - 1, alone.variable: loop.index
    })  # fmt: skip
    assert isinstance(late, Loop)
    shared = replace(loop, body=(*loop.body, *late.body), prefetch=(*loop.prefetch, *late.prefetch))
    block = make_axis("b", 0, ceildiv(count, size))
    start = block.index * size
    first = [_at(_changed(s, twice), {row.variable: start}) for p in early for s in p.statements]
    following = [
        _changed(shared if s is loop else s, twice) for p in early for s in p.statements
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
    size = BLOCK
    while size >= 4:
        if isinstance(count, int) and count >= FEWEST_BLOCKS * size:
            return size
        size //= 2
    return 0


def _only_streams(part: Part) -> bool:
    """Whether a sweep does nothing but write what passes by the cache."""
    (statement,) = part.statements if len(part.statements) == 1 else (None,)
    if not isinstance(statement, Loop) or len(statement.body) != 1:
        return False
    (inner,) = statement.body
    items = inner.items if isinstance(inner, Stores) else (inner,)
    return all(isinstance(item, Store) and item.streaming for item in items)


def _at(statement: Statement, values: dict[Atom, Integer]) -> Statement:
    return substitute_statement(statement, values)


Moved = Callable[[Array, Integer], tuple[Array, Integer]]


def _twice(kept: set[Array], row: Axis) -> Moved:
    """Where an element of scratch memory is of which rows of even and odd number have their own."""
    second = (row.index + 1) % 2

    def moved(array: Array, place: Integer) -> tuple[Array, Integer]:
        if array not in kept:
            return array, place
        both = replace(array, size=2 * array.size)
        return both, place + second * array.size

    return moved


def _changed(statement: Statement, moved: Moved) -> Statement:
    """A statement with its accesses to scratch memory moved."""

    def load(e: Expr) -> Expr | None:
        if e.op is not expr.Leaf.LOAD:
            return None
        array, place, guard = e.array, e.index, e.guard
        return expr.load(*moved(array, place), guard)

    if isinstance(statement, Loop):
        return replace(statement, body=tuple(_changed(s, moved) for s in statement.body))
    if isinstance(statement, Stores):
        items = (_changed(item, moved) for item in statement.items)
        return Stores(tuple(item for item in items if isinstance(item, Store)))
    if isinstance(statement, Store):
        array, place = moved(statement.array, statement.index)
        value = expr.rebuild(statement.value, load)
        return replace(statement, array=array, index=place, value=value)
    if isinstance(statement, Set):
        return replace(statement, value=expr.rebuild(statement.value, load))
    return statement
