"""Statements of a nest: walks reach all of them, and each lists all its parts."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.symbolic import Affine
from minigrad.loops.build import Change
from minigrad.loops.nest import (
    Barrier,
    Fold,
    Loop,
    Loops,
    Matrix,
    MatrixProduct,
    Prefetch,
    Statement,
    Statements,
    Store,
    Stores,
    map_loops,
    walk,
    walk_with_loops,
    written,
)
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Expr

OUT = Array("out", dtypes.float32, 16)
REGISTER = Array("r", dtypes.float32, 1, "registers")
ONE = expr.const(1.0, dtypes.float32)


def nested() -> tuple[Loop, list[Statement]]:
    """A loop around a register, two stores at once and a loop; and all statements in order."""
    i, j = make_axis("i", 0, 4), make_axis("j", 0, 4)
    clear = Store(REGISTER, 0, ONE)
    items = (Store(OUT, i.index, ONE), Store(OUT, i.index + 4, ONE))
    last = Store(OUT, j.index, expr.load(REGISTER))
    inner = Loop(j.variable, 0, (4,), (last,))
    outer = Loop(i.variable, 0, (4,), (clear, Stores(items), inner))
    return outer, [outer, clear, Stores(items), *items, inner, last]


def test_walk_comes_to_all_statements_in_order() -> None:
    loop, order = nested()
    assert list(walk(loop)) == order
    assert list(walk(*loop.body)) == order[1:]


def test_a_change_comes_to_all_that_is_inside() -> None:
    loop, order = nested()
    changed = Change(lambda value: ONE, move=lambda place, index: (place, 0)).of(loop)
    stores = [one for one in walk(changed) if isinstance(one, Store)]
    assert [(one.array, one.index, one.value) for one in stores] == [
        (one.array, 0, ONE) for one in order if isinstance(one, Store)
    ]
    assert Change(lambda value: value).of(loop) == loop


def test_a_change_makes_a_loop_that_is_in_several_places_once() -> None:
    loop, _ = nested()
    i = make_axis("i", 1, 2)
    both = Loop(i.variable, 0, (2,), (loop, loop))
    changed = Change(lambda value: value, at=lambda x: x).of(both)
    assert isinstance(changed, Loop)
    assert changed.body[0] is changed.body[1]
    assert changed == both


def test_walk_with_loops_knows_what_is_around() -> None:
    loop, order = nested()
    found = walk_with_loops([loop])
    assert [statement for statement, _ in found] == order
    inner = order[-2]
    assert [around for _, around in found] == [(), *[(loop,)] * 5, (loop, inner)]


def test_map_loops_replaces_loops_and_keeps_what_is_not_changed() -> None:
    loop, order = nested()
    inner, last = order[-2:]
    seen: list[tuple[Loop, Loops]] = []

    def without(one: Loop, around: Loops) -> Statements | None:
        seen.append((one, around))
        return one.body if one is inner else None

    body = (loop, last)
    (changed, same) = map_loops(body, without)
    assert isinstance(changed, Loop) and changed.body == (*loop.body[:-1], last) and same is last
    assert seen == [(loop, ()), (inner, (loop,))]
    assert map_loops(body, lambda one, around: None) is body


HALF = dtypes.bfloat16
A, B, C = (make_axis(name, 0, 4).index for name in "abc")
LEFT, RIGHT = (Array(name, dtypes.float32, 16) for name in ("left", "right"))
OTHER = Array("other", dtypes.float32, 4, "registers")
EVERY: list[Statement] = [
    Store(OUT, A, ONE, (B,)), Store(OTHER, A, ONE),
    Stores((Store(OUT, A, ONE), Store(LEFT, B, ONE))), Barrier(),
    Fold(REGISTER, Op.SUM, OTHER, A), Prefetch(OUT, A),
    MatrixProduct(
        Matrix(OUT, A, 4), Matrix(LEFT, B, 4), Matrix(RIGHT, C, 4), 16, 16, (A, 16), HALF, HALF
    ),
    Loop(make_axis("i", 0, 4).variable, A, (B, C), (Barrier(),)),
]  # fmt: skip


def test_every_kind_of_statement_is_here() -> None:
    assert {type(statement) for statement in EVERY} == set(get_args(Statement))


@pytest.mark.parametrize("statement", EVERY, ids=lambda one: type(one).__name__)
def test_a_statement_says_all_that_it_is_made_of(statement: Statement) -> None:
    found = {x for one in walk(statement) for part in one.parts() for x in part}
    held: list[object] = [getattr(statement, field.name) for field in fields(statement)]
    if isinstance(statement, Loop):
        held.remove(statement.body)
    while held:
        one = held.pop()
        if isinstance(one, tuple):
            held += one
        elif isinstance(one, Matrix | Store):
            held += [getattr(one, field.name) for field in fields(one)]
        elif isinstance(one, Affine | Array | Expr):
            assert one in found, one


def test_what_is_written() -> None:
    assert written(*EVERY) == {OUT, LEFT, OTHER, REGISTER}
