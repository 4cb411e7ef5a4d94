"""Arithmetic notation for graph nodes and for scalar expressions: `(x * y + 1.0).less(z)`.

`Node` (an array) and `Expr` (one element of a kernel) are Numeric. Gradient rules are written on
nodes and formulas on expressions; both read like mathematics, and know nothing of either class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from minigrad.dtype import DType, dtypes

Number = int | float


class Numeric:
    """Something with operators. A number beside it becomes a constant of its dtype.

    Operands of an operator have one dtype. `==` compares identities; `equals` compares values.
    """

    __slots__ = ()
    dtype: DType

    def operation(self, name: str, *others: Self | Number) -> Self:
        """An elementwise operation on self and others; name: the value of its `Op`."""
        raise NotImplementedError

    def constant(self, value: Number, dtype: DType | None = None) -> Self:
        """A constant like self, of self's dtype unless another is given."""
        raise NotImplementedError

    def known(self) -> Number | None:
        """The value that a constant has everywhere, else None."""
        raise NotImplementedError

    def cast(self, dtype: DType) -> Self:
        """The value converted to a dtype."""
        raise NotImplementedError

    def bits_as(self, dtype: DType) -> Self:
        """The bits read as another dtype of equal size."""
        raise NotImplementedError

    def fused(self, factor: Self, addend: Self | Number) -> Self:
        """self·factor + addend with one rounding, guaranteed (unlike `*` and `+`)."""
        raise NotImplementedError

    def __add__(self, other: Self | Number) -> Self:
        return self.operation("add", other)

    def __sub__(self, other: Self | Number) -> Self:
        return self.operation("sub", other)

    def __rsub__(self, other: Number) -> Self:
        return self.constant(other).operation("sub", self)

    def __mul__(self, other: Self | Number) -> Self:
        return self.operation("mul", other)

    def __truediv__(self, other: Self | Number) -> Self:
        return self.operation("div", other)

    def __rtruediv__(self, other: Number) -> Self:
        return self.constant(other).operation("div", self)

    def __neg__(self) -> Self:
        return self.operation("neg")

    def __invert__(self) -> Self:
        return self.operation("not")

    def __and__(self, other: Self | Number) -> Self:
        return self.operation("and", other)

    def __or__(self, other: Self | Number) -> Self:
        return self.operation("or", other)

    def __xor__(self, other: Self | Number) -> Self:
        return self.operation("xor", other)

    def __lshift__(self, count: int) -> Self:
        return self.operation("shl", count)

    def __rshift__(self, count: int) -> Self:
        return self.operation("shr", count)

    def less(self, other: Self | Number) -> Self:
        """self < other, false where either is NaN."""
        return self.operation("lt", other)

    def more(self, other: Number) -> Self:
        """self > other, false where self is NaN."""
        return self.constant(other).operation("lt", self)

    def equals(self, other: Self | Number) -> Self:
        """self == other, false where either is NaN."""
        return self.operation("eq", other)

    def differs(self, other: Self | Number) -> Self:
        """self != other, true where either is NaN."""
        return self.operation("ne", other)

    def where(self, then: Self | Number, otherwise: Self | Number) -> Self:
        """then where self (a bool) holds, else otherwise; one of the two is Numeric."""
        like = then if isinstance(then, Numeric) else otherwise
        if not isinstance(like, Numeric):
            raise TypeError(f"where({then}, {otherwise}): expected at least one Numeric")
        pair = (x if isinstance(x, Numeric) else like.constant(x) for x in (then, otherwise))
        return self.operation("where", *pair)

    def rarely(self, then: Self, otherwise: Self) -> Self:
        """`then`, which is always right; or, where self (a bool) does not hold, `otherwise`.

        For conditions that hold so rarely that a branch pays.
        """
        raise NotImplementedError

    def at_least(self, bound: Number) -> Self:
        """The larger of self and a bound; NaN stays NaN (one instruction, unlike MAXIMUM)."""
        return self.less(bound).where(bound, self)

    def at_most(self, bound: Number) -> Self:
        """The smaller of self and a bound; NaN stays NaN."""
        return self.more(bound).where(bound, self)

    def split_sign(self) -> tuple[Self, Self]:
        """|self|, and the sign bit as an unsigned integer, of a float32 or float64."""
        top = 1 << (self.dtype.bits - 1)
        bits = self.bits_as(dtypes.uint32 if self.dtype is dtypes.float32 else dtypes.uint64)
        return (bits & (top - 1)).bits_as(self.dtype), bits & top

    def with_sign(self, sign: Self) -> Self:
        """self, which is ≥ 0, with a sign bit."""
        return (self.bits_as(sign.dtype) | sign).bits_as(self.dtype)


def horner(x: Numeric, coefficients: Sequence[float]) -> Numeric:
    """Σ coefficients[k]·xᵏ as nested multiply-adds, len − 1 of them."""
    total = x.constant(coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


# The following is exact only because no renderer merges an addition into a `fused` product.


def exact_sum(a: Numeric, b: Numeric) -> tuple[Numeric, Numeric]:
    """(sum, error) with sum + error = a + b exactly (Knuth's TwoSum)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def exact_sum_ordered(a: Numeric, b: Numeric) -> tuple[Numeric, Numeric]:
    """(sum, error) as `exact_sum`, where |a| ≥ |b| or a = 0 (Dekker's Fast2Sum)."""
    total = a + b
    return total, b - (total - a)


def exact_product(a: Numeric, b: Numeric) -> tuple[Numeric, Numeric]:
    """(product, error) with product + error = a·b exactly."""
    product = a.fused(b, 0.0)
    return product, a.fused(b, -product)
