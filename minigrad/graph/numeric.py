"""Arithmetic notation for scalar expressions: `(x * y + 1.0).less(z)` instead of `apply(…)`.

Used where an algorithm is long enough that its formula should be seen (`vector_math`). A Python
number beside a `Value` becomes a constant of the value's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.dtype import DType, dtypes
from minigrad.graph.node import Op
from minigrad.schedule.expr import Expr, Leaf, apply, const

Number = int | float


class Value:
    """An expression with operators. Both operands of an operator have one dtype."""

    __slots__ = ("expr",)

    def __init__(self, expr: Expr) -> None:
        self.expr = expr

    @property
    def dtype(self) -> DType:
        """Element type of the expression."""
        return self.expr.dtype

    def _with(self, op: Op, other: Value | Number, dtype: DType | None = None) -> Value:
        right = other.expr if isinstance(other, Value) else const(other, self.dtype)
        return Value(apply(op, (self.expr, right), dtype or self.dtype))

    def __add__(self, other: Value | Number) -> Value:
        return self._with(Op.ADD, other)

    def __sub__(self, other: Value | Number) -> Value:
        return self._with(Op.SUB, other)

    def __mul__(self, other: Value | Number) -> Value:
        return self._with(Op.MUL, other)

    def __truediv__(self, other: Value | Number) -> Value:
        return self._with(Op.DIV, other)

    def __neg__(self) -> Value:
        return Value(apply(Op.NEG, (self.expr,), self.dtype))

    def __and__(self, other: Value | Number) -> Value:
        return self._with(Op.AND, other)

    def __or__(self, other: Value | Number) -> Value:
        return self._with(Op.OR, other)

    def __xor__(self, other: Value | Number) -> Value:
        return self._with(Op.XOR, other)

    def __lshift__(self, count: int) -> Value:
        return self._with(Op.SHL, count)

    def __rshift__(self, count: int) -> Value:
        return self._with(Op.SHR, count)

    def less(self, other: Value | Number) -> Value:
        """self < other, false where either is NaN."""
        return self._with(Op.LT, other, dtypes.bool)

    def more(self, other: Number) -> Value:
        """self > other, false where self is NaN."""
        left = const(other, self.dtype)
        return Value(apply(Op.LT, (left, self.expr), dtypes.bool))

    def equals(self, other: Value | Number) -> Value:
        """self == other, false where either is NaN."""
        return self._with(Op.EQ, other, dtypes.bool)

    def differs(self, other: Value | Number) -> Value:
        """self != other, true where either is NaN."""
        return self._with(Op.NE, other, dtypes.bool)

    def where(self, then: Value | Number, otherwise: Value | Number) -> Value:
        """then where self (a bool) holds, else otherwise; one of the two is a Value."""
        shaped = then if isinstance(then, Value) else otherwise
        if not isinstance(shaped, Value):
            raise TypeError(f"where({then}, {otherwise}): expected at least one Value")
        pair = tuple(
            side.expr if isinstance(side, Value) else const(side, shaped.dtype)
            for side in (then, otherwise)
        )
        return Value(apply(Op.WHERE, (self.expr, *pair), shaped.dtype))

    def fused(self, factor: Value, addend: Value | Number) -> Value:
        """self·factor + addend with one rounding, guaranteed (unlike `*` and `+`)."""
        last = addend if isinstance(addend, Value) else constant(addend, self.dtype)
        return Value(apply(Leaf.FMA, (self.expr, factor.expr, last.expr), self.dtype))

    def unary(self, op: Op) -> Value:
        """An operation that keeps the dtype: FLOOR, TRUNC, ROUND, SQRT, …"""
        return Value(apply(op, (self.expr,), self.dtype))

    def cast(self, dtype: DType) -> Value:
        """The number converted."""
        return Value(apply(Op.CAST, (self.expr,), dtype))

    def bits_as(self, dtype: DType) -> Value:
        """The bits read as another dtype of equal size."""
        return Value(apply(Op.BITCAST, (self.expr,), dtype))

    def at_least(self, bound: Number) -> Value:
        """The larger of self and a bound; NaN stays NaN (one instruction, unlike MAXIMUM)."""
        return self.less(bound).where(bound, self)

    def at_most(self, bound: Number) -> Value:
        """The smaller of self and a bound; NaN stays NaN."""
        return self.more(bound).where(bound, self)


def constant(number: Number, dtype: DType) -> Value:
    """A number as a Value."""
    return Value(const(number, dtype))


def horner(x: Value, coefficients: Sequence[float]) -> Value:
    """Σ coefficients[k]·xᵏ as nested multiply-adds, len − 1 of them."""
    total = constant(coefficients[-1], x.dtype)
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


# What follows is exact only because no renderer merges an addition into a `fused` product.


def exact_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """(sum, error) with sum + error = a + b exactly (Knuth's TwoSum)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def exact_sum_ordered(a: Value, b: Value) -> tuple[Value, Value]:
    """(sum, error) as `exact_sum`, where |a| ≥ |b| or a = 0 (Dekker's Fast2Sum)."""
    total = a + b
    return total, b - (total - a)


def exact_product(a: Value, b: Value) -> tuple[Value, Value]:
    """(product, error) with product + error = a·b exactly."""
    product = a.fused(b, 0.0)
    return product, a.fused(b, -product)
