"""Scalar expressions: interning, guards, substitution and rebuilding, loads inside indices."""

from __future__ import annotations

import math
import random

import pytest

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.symbolic import Affine, Atom, Integer, var
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf

F32, I32 = dtypes.float32, dtypes.int32
TABLE, INDEX, OUTER = Array("table", F32, 100), Array("index", I32, 40), Array("outer", I32, 40)
X, Y = var("i", 0, 9), var("j", 0, 9)
ATOM_I, ATOM_J = X.terms[0][0], Y.terms[0][0]


def fadd(a: Expr, b: Expr) -> Expr:
    return expr.apply(Op.ADD, (a, b), a.dtype)


def loaded(array: Array, index: Integer) -> Integer:
    """A loaded value as part of an index."""
    return expr.value_of(expr.load(array, index))


def evaluate(root: Expr, values: dict[str, int], memory: dict[str, list[int]]) -> float:
    """The value of an expression of loads, sums and choices, by plain recursion."""

    def index(x: Integer) -> int:
        return x if isinstance(x, int) else x.constant + sum(c * atom(a) for a, c in x.terms)

    def atom(a: Atom) -> int:
        if a.kind == "var":
            return values[a.name]
        if a.kind == "value":
            return int(value(a.payload))
        inner = index(a.inner or 0)
        return inner // a.divisor if a.kind == "div" else inner % a.divisor

    def value(e: Expr) -> float:
        if e.op is Op.CONST:
            return float(e.value)
        if e.op is Leaf.LOAD:
            array, place, guard = e.array, e.index, e.guard
            return memory[array.name][index(place)] if all(index(c) >= 0 for c in guard) else 0
        if e.op is Leaf.INDEX:
            return index(e.index)
        if e.op is Leaf.CONDITION:
            return index(e.index) >= 0
        args = [value(arg) for arg in e.args]
        if e.op is Op.WHERE:
            return args[1] if args[0] else args[2]
        assert e.op in (Op.ADD, Op.AND)
        return args[0] + args[1] if e.op is Op.ADD else bool(args[0] and args[1])

    return value(root)


# ---- interning ----


def test_equal_expressions_are_identical() -> None:
    one, two = (fadd(expr.load(TABLE, X), expr.const(1.0, F32)) for _ in range(2))
    assert one is two
    assert one is not fadd(expr.load(TABLE, Y), expr.const(1.0, F32))


@pytest.mark.parametrize(
    ("a", "b"),
    [(0.0, -0.0), (0.0, math.nan), (1.0, 2.0), (math.inf, -math.inf)],
)
def test_different_constants_are_kept_apart(a: float, b: float) -> None:
    x, y = expr.const(a, F32), expr.const(b, F32)
    assert x is not y
    assert math.copysign(1, x.value) == math.copysign(1, a)
    assert math.copysign(1, y.value) == math.copysign(1, b)


def test_constants_of_different_dtypes_are_kept_apart() -> None:
    ones = [expr.const(1, dtype) for dtype in (dtypes.bool, I32, dtypes.int64, F32)]
    assert len(set(ones)) == 4
    assert ones[0].value is True and isinstance(ones[1].value, int)


def test_all_nans_are_one_constant() -> None:
    assert expr.const(math.nan, F32) is expr.const(float("nan"), F32)


def test_constants_are_rounded_to_their_dtype() -> None:
    assert expr.const(0.1, F32) is expr.const(0.10000000149011612, F32)
    assert expr.const(300, dtypes.uint8).value == 44


# ---- simplification ----


def test_choices_that_are_known() -> None:
    a, b = expr.load(TABLE, X), expr.load(TABLE, Y)
    test = expr.apply(Op.LT, (a, b), dtypes.bool)

    def where(condition: Expr, then: Expr, other: Expr) -> Expr:
        return expr.apply(Op.WHERE, (condition, then, other), F32)

    assert where(expr.const(True, dtypes.bool), a, b) is a
    assert where(expr.const(False, dtypes.bool), a, b) is b
    assert where(test, a, a) is a
    assert where(test, a, b).op is Op.WHERE


def test_an_index_that_is_a_number_is_a_constant() -> None:
    assert expr.index(7, dtypes.int64) is expr.const(7, dtypes.int64)
    assert expr.index(X).op is Leaf.INDEX


def test_value_of_gives_indices_back() -> None:
    assert expr.value_of(expr.index(X + 3)) == X + 3
    assert expr.value_of(expr.const(-4, I32)) == -4
    value = expr.value_of(expr.load(INDEX, X))
    assert isinstance(value, Affine)
    assert value.low == I32.minimum and value.high == I32.maximum


def test_conditions_that_are_known() -> None:
    assert expr.condition(3) is expr.const(True, dtypes.bool)
    assert expr.condition(-1) is expr.const(False, dtypes.bool)
    assert expr.condition(X - 10) is expr.const(False, dtypes.bool)
    assert expr.condition(X - 3).op is Leaf.CONDITION


# ---- guards ----


def test_a_guard_keeps_only_what_may_fail() -> None:
    may_fail = X - 3
    assert expr.restrict((), [X, 5, may_fail, may_fail]) == (may_fail,)
    assert expr.restrict((may_fail,), [Y - 2]) == (may_fail, Y - 2)


def test_a_guard_that_never_holds() -> None:
    (never,) = expr.restrict((X - 3,), [Y - 2, -1])
    assert never.high < 0


def test_a_guarded_value() -> None:
    inner, zero = expr.load(TABLE, X), expr.const(0.0, F32)
    assert expr.guarded((), inner, zero) is inner
    both = expr.guarded((X - 3, Y - 2), inner, zero)
    assert both.op is Op.WHERE
    memory = {"table": list(range(1, 101))}
    for i in range(10):
        for j in range(10):
            wanted = i + 1 if i >= 3 and j >= 2 else 0
            assert evaluate(both, {"i": i, "j": j}, memory) == wanted


# ---- loads inside indices ----


def test_walk_and_loads_see_what_is_inside_indices() -> None:
    inner = expr.load(OUTER, Y)
    index = expr.load(INDEX, expr.value_of(inner) + X)
    table = expr.load(TABLE, expr.value_of(index) + 1, (loaded(OUTER, 7) - 2,))
    root = fadd(table, expr.const(2.0, F32))
    found = expr.loads(root)
    assert set(found) == {inner, index, table, expr.load(OUTER, 7)}
    assert found.index(inner) < found.index(index) < found.index(table)
    order = expr.walk(root)
    assert order[-1] is root and order.index(table) > order.index(index)
    assert root.variables == {ATOM_I, ATOM_J}
    assert expr.loads(root) == found  # the second answer comes from a cache
    assert list(expr.loads(root, table, inner)) == list(found)
    assert list(expr.loads(table)) == list(found)


def test_a_remembered_answer_does_not_keep_loads_alive() -> None:
    """A load that referenced itself would only be freed by the garbage collector."""
    import gc
    import weakref

    gc.disable()
    try:
        load = expr.load(Array("short", F32, 3), 2)
        expr.loads(load)
        gone = weakref.ref(load)
        del load
        assert gone() is None
    finally:
        gc.enable()


def test_substitution_happens_once_inside_loaded_values() -> None:
    """i := i + 1 in table[index[i]] is table[index[i + 1]], not index[i + 2]."""
    root = expr.load(TABLE, loaded(INDEX, X))
    moved = expr.substitute_in(root, {ATOM_I: X + 1})
    assert moved is expr.load(TABLE, loaded(INDEX, X + 1))
    deeper = expr.load(TABLE, loaded(INDEX, loaded(OUTER, X)))
    moved = expr.substitute_in(deeper, {ATOM_I: X * 2})
    assert moved is expr.load(TABLE, loaded(INDEX, loaded(OUTER, X * 2)))


def test_substitution_replaces_all_variables_at_once() -> None:
    root = expr.load(TABLE, X * 10 + Y)
    swapped = expr.substitute_in(root, {ATOM_I: Y, ATOM_J: X})
    assert swapped is expr.load(TABLE, Y * 10 + X)


def test_substitution_in_guards_indices_conditions_and_registers() -> None:
    registers = Array("acc", F32, 4, "registers")
    guarded_load = expr.load(TABLE, X, (X - 3,))
    at = {ATOM_I: Y + 4}
    assert expr.substitute_in(guarded_load, at) is expr.load(TABLE, Y + 4)  # 3 ≤ j + 4 always
    assert expr.substitute_in(expr.index(X), at) is expr.index(Y + 4)
    assert expr.substitute_in(expr.condition(X - 3), at) is expr.const(True, dtypes.bool)
    assert expr.substitute_in(expr.condition(X - 7), at) is expr.condition(Y - 3)
    assert expr.substitute_in(expr.load(registers, X), {ATOM_I: 2}) is expr.load(registers, 2)
    untouched = fadd(expr.load(TABLE, Y), expr.const(1.0, F32))
    assert expr.substitute_in(untouched, at) is untouched


def test_rebuild_reaches_into_indices() -> None:
    """The replacement of a load also appears in indices and guards."""
    index = expr.load(INDEX, X)
    root = expr.load(TABLE, expr.value_of(index) + Y, (expr.value_of(index) - 2,))
    new = expr.load(OUTER, Y)
    changed = expr.rebuild(root, {index: new}.get)
    value = expr.value_of(new)
    assert changed is expr.load(TABLE, value + Y, (value - 2,))
    known = expr.rebuild(root, {index: expr.const(5, I32)}.get)
    assert known is expr.load(TABLE, Y + 5)
    below = expr.rebuild(root, {index: expr.const(1, I32)}.get)
    assert expr.loads(below) == (below,) and below.guard[0].high < 0


def test_rebuild_reaches_into_indices_used_as_values() -> None:
    index = expr.load(INDEX, X)
    twice = expr.index(expr.value_of(index) * 2)
    assert twice.op is Leaf.INDEX
    assert expr.rebuild(twice, {index: expr.const(4, I32)}.get) is expr.const(8, I32)
    test = expr.condition(expr.value_of(index) - 3)
    assert expr.rebuild(test, {index: expr.const(1, I32)}.get) is expr.const(False, dtypes.bool)


def test_rebuild_gives_the_same_object_where_nothing_changes() -> None:
    root = fadd(expr.load(TABLE, loaded(INDEX, X)), expr.const(1.0, F32))
    assert expr.rebuild(root, lambda leaf: None) is root


def test_deep_expressions_need_no_recursion() -> None:
    root = expr.load(TABLE, X)
    for _ in range(20_000):
        root = fadd(root, expr.const(1.0, F32))
    moved = expr.substitute_in(root, {ATOM_I: Y + 1})
    assert expr.loads(moved) == (expr.load(TABLE, Y + 1),)
    assert len(expr.show(moved)) < 10_000


@pytest.mark.parametrize("seed", range(40))
def test_substitution_means_what_it_says(seed: int) -> None:
    """Substituting i := a(i, j), j := b(i, j) and evaluating is evaluating root at (a, b)."""
    random_ = random.Random(seed)
    memory = {name: [random_.randrange(10) for _ in range(100)] for name in ("index", "outer")}
    memory["table"] = [random_.randrange(1000) for _ in range(1000)]
    table = Array("table", F32, 1000)

    def some_index(depth: int) -> Integer:
        """A sum with values in 0 … 99."""
        parts: list[Integer] = [random_.choice([X, Y, X * 3, 2])]
        if depth:
            inner = some_index(depth - 1)
            parts.append(loaded(random_.choice([INDEX, OUTER]), inner % 40) % 7)
            parts.append(some_index(depth - 1) // random_.choice([2, 3, 5]))
        x: Integer = 0
        for part in parts:
            x = x + part
        return x % 100

    root = expr.const(1.0, F32)
    for _ in range(3):
        place = some_index(2)
        test = some_index(1) - random_.randrange(20)
        guard = expr.restrict((), [test])
        value = expr.guarded(guard, expr.load(table, place, guard), expr.const(-1.0, F32))
        root = fadd(root, value)
    a, b = (X * 2 + Y) % 10, (X + loaded(OUTER, Y)) % 10
    moved = expr.substitute_in(root, {ATOM_I: a, ATOM_J: b})
    for i in range(10):
        for j in range(10):
            at_a = (2 * i + j) % 10
            at_b = (i + memory["outer"][j]) % 10
            found = evaluate(moved, {"i": i, "j": j}, memory)
            assert found == evaluate(root, {"i": at_a, "j": at_b}, memory), (i, j)
