"""Elementwise rewrite rules, proven by an SMT solver (z3) for all values.

For all bit patterns: integers of 8 bits (no rule depends on the width), and float16, where all NaNs
are equal and zeros have signs. What cannot be stated without arrays is enumerated in
test_rules_are_exact, and index arithmetic in test_symbolic.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from devices import REFERENCE

from minigrad.dtype import DType, dtypes
from minigrad.graph import build, simplify
from minigrad.graph.build import elementwise
from minigrad.graph.node import Node
from minigrad.graph.operations import ELEMENTWISE, Op

z3 = pytest.importorskip("z3", reason="z3 is not installed: pip install z3-solver")

STEPS = 300_000_000  # z3's own steps, independent of the machine; no proof took 60 million


def prove(claim: Any) -> None:
    """Fail with a counterexample, unless the claim is true."""
    solver = z3.Solver()
    solver.set("rlimit", STEPS)
    solver.add(z3.Not(claim))
    result = solver.check()
    assert result == z3.unsat, f"{result}: {solver.model() if result == z3.sat else claim}"


HALF = z3.FPSort(5, 11)
NEAREST = z3.RNE()


def _leaf(slot: int, dtype: DType) -> Node:
    return build.buffer(slot, dtype, (), REFERENCE)


def _constant(value: Any, dtype: DType) -> Any:
    if dtype.is_bool:
        return z3.BoolVal(bool(value))
    return z3.FPVal(value, HALF) if dtype.is_float else z3.BitVecVal(int(value), dtype.bits)


def _variable(slot: int, dtype: DType) -> Any:
    if dtype.is_bool:
        return z3.Bool(f"x{slot}")
    return z3.FP(f"x{slot}", HALF) if dtype.is_float else z3.BitVec(f"x{slot}", dtype.bits)


def _floor_division(x: Any, y: Any, signed: bool) -> tuple[Any, Any]:
    """Quotient and remainder as REF defines them: 0 if y is 0."""
    zero = z3.BitVecVal(0, x.size())
    if not signed:
        quotient, rest = z3.UDiv(x, y), z3.URem(x, y)
    else:
        rest = z3.SRem(x, y)
        apart = z3.And(rest != 0, (rest < 0) != (y < 0))
        quotient = x / y - z3.If(apart, z3.BitVecVal(1, x.size()), zero)
        rest = z3.If(apart, rest + y, rest)
    return z3.If(y == 0, zero, quotient), z3.If(y == 0, zero, rest)


def _less(x: Any, y: Any, dtype: DType, or_equal: bool) -> Any:
    if dtype.is_bool:
        return z3.Or(z3.Not(x), y) if or_equal else z3.And(z3.Not(x), y)
    if dtype.is_float:
        return z3.fpLEQ(x, y) if or_equal else z3.fpLT(x, y)
    if dtype.kind == "u":
        return z3.ULE(x, y) if or_equal else z3.ULT(x, y)
    return x <= y if or_equal else x < y


def _larger(x: Any, y: Any, dtype: DType, largest: bool) -> Any:
    better = _less(y, x, dtype, False) if largest else _less(x, y, dtype, False)
    if dtype.is_float:
        return z3.If(z3.fpIsNaN(x), x, z3.If(better, x, y))
    return z3.If(better, x, y)


def _shift(x: Any, y: Any, op: Op, dtype: DType) -> Any:
    """z3's shifts by the width or more are like REF's; negative counts are large unsigned ones."""
    if op is Op.SHL:
        return x << y
    return z3.LShR(x, y) if dtype.kind == "u" else x >> y


def _cast(x: Any, start: DType, end: DType) -> Any:
    if end.is_bool:
        return x if start.is_bool else x != 0
    if start.is_bool:
        return z3.If(x, z3.BitVecVal(1, end.bits), z3.BitVecVal(0, end.bits))
    if end.bits <= start.bits:
        return z3.Extract(end.bits - 1, 0, x)
    widen = z3.SignExt if start.kind == "i" else z3.ZeroExt
    return widen(end.bits - start.bits, x)


def meaning(node: Node) -> Any:
    """A scalar node as a z3 expression."""
    if node.op is Op.BUFFER:
        return _variable(node.arg, node.dtype)
    if node.op is Op.CONST:
        return _constant(node.arg, node.dtype)
    args = [meaning(source) for source in node.src]
    dtype = node.src[0].dtype
    if node.op is Op.CAST:
        return _cast(args[0], dtype, node.dtype)
    if node.op is Op.WHERE:
        return z3.If(*args)
    if node.op is Op.NOT:
        return z3.Not(args[0]) if dtype.is_bool else ~args[0]
    if node.op is Op.NEG:
        return z3.fpNeg(args[0]) if dtype.is_float else -args[0]
    x, y = args
    if node.op in (Op.LT, Op.LE):
        return _less(x, y, dtype, node.op is Op.LE)
    if node.op in (Op.EQ, Op.NE):
        equal = z3.fpEQ(x, y) if dtype.is_float else x == y
        return equal if node.op is Op.EQ else z3.Not(equal)
    if node.op in (Op.MAXIMUM, Op.MINIMUM):
        return _larger(x, y, dtype, node.op is Op.MAXIMUM)
    if node.op in (Op.IDIV, Op.MOD):
        return _floor_division(x, y, dtype.kind == "i")[node.op is Op.MOD]
    if node.op in (Op.SHL, Op.SHR):
        return _shift(x, y, node.op, dtype)
    if dtype.is_float:
        make = {Op.ADD: z3.fpAdd, Op.SUB: z3.fpSub, Op.MUL: z3.fpMul, Op.DIV: z3.fpDiv}[node.op]
        return make(NEAREST, x, y)
    if dtype.is_bool:
        logic = {Op.ADD: z3.Or, Op.OR: z3.Or, Op.MUL: z3.And, Op.AND: z3.And, Op.XOR: z3.Xor}
        return logic[node.op](x, y)
    return {
        Op.ADD: lambda: x + y, Op.SUB: lambda: x - y, Op.MUL: lambda: x * y,
        Op.AND: lambda: x & y, Op.OR: lambda: x | y, Op.XOR: lambda: x ^ y,
    }[node.op]()  # fmt: skip


I8, U8, F16, BOOL = dtypes.int8, dtypes.uint8, dtypes.float16, dtypes.bool
INTEGERS, NUMBERS, BITS = (I8, U8), (I8, U8, F16), (I8, U8, BOOL)


def _apply(op: Op) -> Callable[..., Node]:
    return lambda *src: elementwise(op, *src)


_add, _sub, _mul, _div, _neg, _not, _idiv, _where = map(_apply, (
    Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.NEG, Op.NOT, Op.IDIV, Op.WHERE,
))  # fmt: skip


def _c(value: Any, dtype: DType) -> Node:
    return build.const(value, dtype, (), REFERENCE)


def _cases() -> list[tuple[str, Node]]:
    """(rule, a node to which it applies), for every form to which it applies."""
    found: list[tuple[str, Node]] = []

    def case(rule: Callable[..., Any], node: Node) -> None:
        found.append((rule.__name__, node))

    s = simplify
    condition = _leaf(9, BOOL)
    for dtype in (I8, U8, F16, BOOL):
        x, y = _leaf(0, dtype), _leaf(1, dtype)
        for op in (Op.ADD, Op.MUL, Op.MAXIMUM, Op.MINIMUM):
            case(s.constant_second, elementwise(op, _c(1, dtype), x))
        case(s.neutral, _add(x, _c(-0.0 if dtype.is_float else 0, dtype)))
        case(s.neutral, _mul(x, _c(1, dtype)))
        for op in (Op.MAXIMUM, Op.MINIMUM):
            limit = dtype.minimum if op is Op.MAXIMUM else dtype.maximum
            case(s.neutral, elementwise(op, x, _c(limit, dtype)))
        case(s.choose, _where(condition, x, x))
        case(s.choose, _where(_c(True, BOOL), x, y))
        case(s.choose, _where(_not(condition), x, y))
        case(s.choose, _where(condition, _where(condition, x, y), y))
        case(s.choose, _where(condition, x, _where(condition, y, x)))
    case(s.choose, _where(condition, _c(True, BOOL), _c(False, BOOL)))
    case(s.choose, _where(condition, _c(False, BOOL), _c(True, BOOL)))
    for dtype in NUMBERS:
        x, y = _leaf(0, dtype), _leaf(1, dtype)
        case(s.neutral, _sub(x, _c(0, dtype)))
    x, y = _leaf(0, F16), _leaf(1, F16)
    for power in (1.0, 4.0, -0.5, 2.0**12, 2.0**-14):
        case(s.divide_by_power_of_two, _div(x, _c(power, F16)))
    for dtype in INTEGERS:
        x, y = _leaf(0, dtype), _leaf(1, dtype)
        case(s.neutral, _idiv(x, _c(1, dtype)))
        for op in (Op.SHL, Op.SHR):
            case(s.neutral, elementwise(op, x, _c(0, dtype)))
    for dtype in BITS:
        x = _leaf(0, dtype)
        for op, value in ((Op.AND, -1), (Op.OR, 0), (Op.XOR, 0)):
            case(s.neutral, elementwise(op, x, _c(value, dtype)))
    kinds = (BOOL, I8, U8, dtypes.int16, dtypes.uint16, dtypes.int32)
    for start, middle, end in itertools.product(kinds, repeat=3):
        if len({start, middle, end}) == 3:
            node = build.cast(build.cast(_leaf(0, start), middle), end)
            if simplify.cast_of_cast(node) is not None:
                case(s.cast_of_cast, node)
    return found


CASES = _cases()


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_each_rewrite_rule(name: str) -> None:
    """A rule's result has the same value as its input, for all operands."""
    for node in (node for rule, node in CASES if rule == name):
        new = getattr(simplify, name)(node)
        assert new is not None, f"{name} does not apply to {node!r} of {node.src}"
        prove(meaning(node) == meaning(new))


def test_every_elementwise_rule_is_proven() -> None:
    """Except for constant folding, joined arrays (see test_rules_are_exact), and bits read as
    another dtype.
    """
    elementwise_ops = [op for op in simplify.RULES if op in ELEMENTWISE]
    rules = {rule.__name__ for op in elementwise_ops for rule in simplify.RULES[op]}
    assert rules - {"fold_constants", "joined_again", "two_as_one"} == {name for name, _ in CASES}


def test_the_solver_can_refuse() -> None:
    """A wrong rule is refuted: x + 0.0 is not x if x is −0.0."""
    x = _leaf(0, F16)
    with pytest.raises(AssertionError, match="sat"):
        prove(meaning(_add(x, _c(0.0, F16))) == meaning(x))
