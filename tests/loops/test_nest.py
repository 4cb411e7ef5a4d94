"""Statements of a nest: `walk` and `map_statement` come to all of them."""

from __future__ import annotations

from dataclasses import replace

from minigrad.dtype import dtypes
from minigrad.loops.nest import Loop, Set, Statement, Store, Stores, map_statement, walk
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Local

OUT = Array("out", dtypes.float32, 16)
REGISTER = Local("r", dtypes.float32, 1)
ONE = expr.const(1.0, dtypes.float32)


def nested() -> tuple[Loop, list[Statement]]:
    """A loop with a set, two stores at once and a loop in it, and all statements in order."""
    i, j = make_axis("i", 0, 4), make_axis("j", 0, 4)
    clear = Set(REGISTER, 0, ONE)
    items = (Store(OUT, i.index, ONE), Store(OUT, i.index + 4, ONE))
    last = Store(OUT, j.index, expr.local(REGISTER))
    inner = Loop(j.variable, 0, (4,), (last,))
    outer = Loop(i.variable, 0, (4,), (clear, Stores(items), inner))
    return outer, [outer, clear, Stores(items), *items, inner, last]


def test_walk_comes_to_all_statements_in_order() -> None:
    loop, order = nested()
    assert list(walk(loop)) == order
    assert list(walk(*loop.body)) == order[1:]


def test_map_statement_changes_what_is_inside_first() -> None:
    loop, order = nested()
    seen: list[Statement] = []

    def change(statement: Statement) -> Statement:
        seen.append(statement)
        return replace(statement, index=0) if isinstance(statement, Store) else statement

    changed = map_statement(loop, change)
    assert [s.index for s in walk(changed) if isinstance(s, Store)] == [0, 0, 0]
    assert [type(s) for s in seen] == [Set, Store, Store, Stores, Store, Loop, Loop]
    assert map_statement(loop, lambda statement: statement) == loop
    assert len(order) == len(seen)
