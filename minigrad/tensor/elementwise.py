"""Arithmetic, comparisons, bits, choices: operations on two numbers or more, and operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from minigrad.dtype import check_holds, dtype_of, dtypes, promote
from minigrad.errors import DTypeError, misfit
from minigrad.graph import build
from minigrad.graph.node import Node, Op, Shape
from minigrad.tensor.broadcasting import Scalar, broadcast_shape, broadcast_to, scalar_dtype
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Method, Methods

# The most frequent ops of eager code, looked up once.
ADD, SUB, MUL, DIV = Op.ADD, Op.SUB, Op.MUL, Op.DIV
_DIVISIONS = ("floor division", "mod", "truncated division", "fmod")  # of integers: integers


def _common(name: str, x: Node, y: Node) -> list[Node]:
    """Two nodes broadcast and promoted to one shape and dtype."""
    shape, dtype = broadcast_shape(name, x.shape, y.shape), promote(x.dtype, y.dtype)
    return [broadcast_to(build.cast(node, dtype), shape) for node in (x, y)]


def condition(name: str, x: Core) -> Node:
    """The node of a bool condition; DTypeError for numbers, as in PyTorch's x.where(mask, y)."""
    if not isinstance(x, Core) or not x.dtype.is_bool:
        given = x.dtype.name if isinstance(x, Core) else repr(x)
        raise misfit(name, "a bool condition, as in (x != 0).where(a, b)", given, error=DTypeError)
    return x.node


def choices(like: Any, x: Any, y: Any) -> list[Node]:
    """The two values of a `where` with one dtype and shape; scalars are weakly typed."""
    one, other = (isinstance(value, (bool, int, float)) for value in (x, y))
    if one and other:
        dtype = dtype_of("where", (x, y))
        return [build.const(value, dtype, (), like.raw.device) for value in (x, y)]
    return like._operand(y if one else x)._pair("where", x if one else y, one)


def _floor_quotient(x: Node, y: Node) -> Node:
    """floor(x / y) of floats as numpy rounds it: from the exact remainder, not the quotient."""
    negative = x.less(0.0)
    size, divisor = negative.where(-x, x), y.less(0.0).where(-y, y)
    rest = size.operation("mod", divisor)
    rest = negative.where(-rest, rest)  # C's fmod
    whole = ((x - rest) / y).operation("round")
    below = rest.differs(0.0) & (rest.less(0.0) ^ y.less(0.0))
    whole = below.where(whole - 1.0, whole)
    quotient = (x / y).operation("round")  # whose slope is 0, also where y is 0
    whole = whole.equals(0.0).where(quotient * 0.0, whole)  # with the quotient's sign
    return y.equals(0.0).where(quotient, whole)


def _reflected(op: Op, name: str) -> Method:
    """The operator for `other op self`."""
    return lambda self, other: self._binary(op, name, other, True)  # type: ignore[return-value]


class Elementwise(Methods):
    """Elementwise methods; operands broadcast and promote, Python scalars are weakly typed."""

    __slots__ = ()

    # --- operands ---------------------------------------------------------------------------------

    def _pair(self, name: str, other: Any, reverse: bool) -> list[Node]:
        """self and other with one shape and dtype, in the order of the operation."""
        mine = self.node
        if isinstance(other, (bool, int, float)):
            if not (other or reverse or mine.dtype.is_float) and name in _DIVISIONS:
                expected = "a divisor that is not 0 (zeros in a tensor give 0)"
                what = f"{mine.dtype.name} by {other}"
                raise misfit(name, expected, what, error=ZeroDivisionError)
            dtype = scalar_dtype(name, other, mine.dtype)
            pair = [build.cast(mine, dtype), build.const(other, dtype, mine.shape, mine.device)]
        else:
            tensor = other if isinstance(other, Core) else type(self)(other, device=self.raw.device)
            pair = [mine, tensor.node]
            if mine.dtype is not pair[1].dtype or mine.shape != pair[1].shape:
                pair = _common(name, *pair)
        return pair[::-1] if reverse else pair

    def _floats(self, name: str, other: Any, reverse: bool) -> list[Node]:
        """As `_pair`, but in a float dtype."""
        number = isinstance(other, (bool, int, float))
        pair = (self._as_float() if number else self)._pair(name, other, reverse)
        if pair[0].dtype.is_float:
            return pair
        return [build.cast(node, dtypes.default_float) for node in pair]

    def _two_floats(self, name: str, other: Any) -> tuple[Self, Self]:
        """As `_two`, in a float dtype."""
        x, y = self._floats(name, other, False)
        return self._new(x), self._new(y)

    def _two(self, name: str, other: Any) -> tuple[Self, Self]:
        """self and other with one shape and dtype, as tensors."""
        x, y = self._pair(name, other, False)
        return self._new(x), self._new(y)

    def _binary(self, op: Op, name: str, other: Any, reverse: bool = False) -> Self:
        pair = self._floats if op is DIV else self._pair
        return self._new(build.elementwise(op, *pair(name, other, reverse)))

    def _compare(self, op: Op, name: str, other: Any, reverse: bool = False) -> Self:
        """A comparison; a Python int outside self's dtype lies above or below all elements."""
        if type(other) is int and not self.dtype.is_float and not (
            self.dtype.minimum <= other <= self.dtype.maximum
        ):
            truth = op is Op.NE or (op in (Op.LT, Op.LE) and (other > 0) is not reverse)
            return self._new(build.const(truth, dtypes.bool, self.shape, self.raw.device))
        if isinstance(other, Core) and self.dtype.is_int and other.dtype.is_int:
            if promote(self.dtype, other.dtype).is_float:
                return self._compare_signs(op, name, other, reverse)
        return self._binary(op, name, other, reverse)

    def _compare_signs(self, op: Op, name: str, other: Any, reverse: bool) -> Self:
        """Compare uint64 with signed integers exactly, as numpy does: no integer dtype holds both.
        """
        signed, is_left = (self, not reverse) if self.dtype.kind == "i" else (other, reverse)
        mine, its = (x.clip(0).cast(dtypes.uint64) if x is signed else x for x in (self, other))
        result, negative = mine._binary(op, name, its, reverse), signed < 0
        if op is Op.NE or (is_left and op is not Op.EQ):  # negative: less than all uint64
            return result | negative
        return result & ~negative

    def _as_float(self) -> Self:
        return self if self.dtype.is_float else self.cast(dtypes.default_float)

    # --- arithmetic -------------------------------------------------------------------------------

    def add(self, other: Any, *, alpha: Scalar = 1) -> Self:
        """self + alpha·other (for bool tensors: or).

        >>> Tensor([1, 2]).add(10).tolist()
        [11, 12]
        """
        return self._binary(ADD, "add", other if alpha == 1 else self._wider(other) * alpha)

    def sub(self, other: Any, *, alpha: Scalar = 1) -> Self:
        """self − alpha·other.

        >>> Tensor([1, 2]).sub(Tensor([1, 1]), alpha=2).tolist()
        [-1, 0]
        """
        return self._binary(SUB, "sub", other if alpha == 1 else self._wider(other) * alpha)

    def mul(self, other: Any) -> Self:
        """self · other (for bool tensors: and).

        >>> Tensor([1, 2]).mul(3).tolist()
        [3, 6]
        """
        return self._binary(MUL, "mul", other)

    def floor_divide(self, other: Any) -> Self:
        """self // other, rounded down; integers divided by a 0 in a tensor give 0, as in numpy.

        >>> Tensor([7, -7]).floor_divide(2).tolist()
        [3, -4]
        """
        x, y = self._pair("floor division", other, False)
        if x.dtype.is_bool:
            x, y = build.cast(x, dtypes.default_int), build.cast(y, dtypes.default_int)
        if x.dtype.is_int:
            return self._new(build.elementwise(Op.IDIV, x, y))
        return self._new(_floor_quotient(x, y))

    def positive(self) -> Self:
        """self, as +x.

        >>> Tensor([1]).positive().tolist()
        [1]
        """
        return self

    def mod(self, other: Any) -> Self:
        """The remainder with the sign of the divisor (Python's and numpy's `%`).

        Integers modulo a 0 in a tensor give 0, as in numpy.

        >>> Tensor([7, -7]).mod(4).tolist()
        [3, 1]
        """
        pair = self._pair("mod", other, False)
        if pair[0].dtype.is_bool:
            pair = [build.cast(node, dtypes.default_int) for node in pair]
        return self._new(build.elementwise(Op.MOD, *pair))

    def maximum(self, other: Any) -> Self:
        """The larger of the two; NaN wins.

        >>> Tensor([1, 5]).maximum(3).tolist()
        [3, 5]
        """
        return self._binary(Op.MAXIMUM, "maximum", other)

    def minimum(self, other: Any) -> Self:
        """The smaller of the two; NaN wins.

        >>> Tensor([1, 5]).minimum(3).tolist()
        [1, 3]
        """
        return self._binary(Op.MINIMUM, "minimum", other)

    def neg(self) -> Self:
        """−self.

        >>> Tensor([1, -2]).neg().tolist()
        [-1, 2]
        """
        return self._new(build.elementwise(Op.NEG, self.node))

    # --- bits and logic ---------------------------------------------------------------------------

    def bitwise_and(self, other: Any) -> Self:
        """Bitwise (for bool: logical) and.

        >>> Tensor([6]).bitwise_and(3).tolist()
        [2]
        """
        return self._binary(Op.AND, "bitwise_and", other)

    def bitwise_or(self, other: Any) -> Self:
        """Bitwise (for bool: logical) or.

        >>> Tensor([6]).bitwise_or(3).tolist()
        [7]
        """
        return self._binary(Op.OR, "bitwise_or", other)

    def bitwise_xor(self, other: Any) -> Self:
        """Bitwise (for bool: logical) exclusive or.

        >>> Tensor([6]).bitwise_xor(3).tolist()
        [5]
        """
        return self._binary(Op.XOR, "bitwise_xor", other)

    def bitwise_not(self) -> Self:
        """Bitwise (for bool: logical) not.

        >>> Tensor([True, False]).bitwise_not().tolist()
        [False, True]
        """
        return self._new(build.elementwise(Op.NOT, self.node))

    def lshift(self, other: Any) -> Self:
        """Shifted left; a shift by the width or more gives 0.

        >>> Tensor([3]).lshift(2).tolist()
        [12]
        """
        return self._binary(Op.SHL, "lshift", other)

    def rshift(self, other: Any) -> Self:
        """Shifted right, keeping the sign; a shift by the width or more gives 0 or −1.

        >>> Tensor([12]).rshift(2).tolist()
        [3]
        """
        return self._binary(Op.SHR, "rshift", other)

    def logical_not(self) -> Self:
        """True where self is 0.

        >>> Tensor([0, 2]).logical_not().tolist()
        [True, False]
        """
        return self.bool().bitwise_not()

    # --- comparisons ------------------------------------------------------------------------------

    def eq(self, other: Any) -> Self:
        """self == other.

        >>> Tensor([1, 2]).eq(2).tolist()
        [False, True]
        """
        return self._compare(Op.EQ, "eq", other)

    def ne(self, other: Any) -> Self:
        """self != other.

        >>> Tensor([1, 2]).ne(2).tolist()
        [True, False]
        """
        return self._compare(Op.NE, "ne", other)

    def lt(self, other: Any) -> Self:
        """self < other.

        >>> Tensor([1, 2]).lt(2).tolist()
        [True, False]
        """
        return self._compare(Op.LT, "lt", other)

    def le(self, other: Any) -> Self:
        """self <= other.

        >>> Tensor([1, 2]).le(2).tolist()
        [True, True]
        """
        return self._compare(Op.LE, "le", other)

    def gt(self, other: Any) -> Self:
        """self > other.

        >>> Tensor([1, 2]).gt(1).tolist()
        [False, True]
        """
        return self._compare(Op.LT, "gt", other, True)

    def ge(self, other: Any) -> Self:
        """self >= other.

        >>> Tensor([1, 2]).ge(2).tolist()
        [False, True]
        """
        return self._compare(Op.LE, "ge", other, True)

    def isnan(self) -> Self:
        """True where self is NaN.

        >>> Tensor([1.0, float("nan")]).isnan().tolist()
        [False, True]
        """
        return self.ne(self)

    def isinf(self) -> Self:
        """True where self is +∞ or −∞.

        >>> Tensor([1.0, float("inf")]).isinf().tolist()
        [False, True]
        """
        return self.eq(float("inf")) | self.eq(float("-inf"))

    def isfinite(self) -> Self:
        """True where self is neither infinite nor NaN.

        >>> Tensor([1.0, float("inf")]).isfinite().tolist()
        [True, False]
        """
        return ~(self.isnan() | self.isinf())

    def _operand(self, other: Any, name: str = "a number") -> Self:
        """other as a tensor; a Python number gets the dtype it would have next to self."""
        if isinstance(other, (bool, int, float)):
            dtype = scalar_dtype(name, other, self.dtype)
            return self._new(build.const(other, dtype, (), self.raw.device))
        if isinstance(other, self.__class__):
            return other
        return self.__class__(other, device=self.raw.device)

    def _wider(self, *others: Any) -> Self:
        """The first of others, cast to the common dtype of self and all of them."""
        given = [self._operand(other) for other in others]
        return given[0].cast(promote(self.dtype, *(other.dtype for other in given)))

    def _filling(self, value: Any, name: str) -> Self:
        """A value to write into parts of self, in self's dtype: of a number, a tensor, or data."""
        if isinstance(value, (bool, int, float)):  # directly, not by way of float32
            check_holds(name, self.dtype, value)
            return self._new(build.const(value, self.dtype, (), self.raw.device))
        return self._operand(self._data(value)).cast(self.dtype)

    # --- selection --------------------------------------------------------------------------------

    def where(self, x: Any = None, y: Any = None) -> Self:
        """x where self (bool) is true, y elsewhere; x and y broadcast and promote.

        Without x and y: nonzero(as_tuple=True).

        >>> Tensor([True, False]).where(Tensor([1, 2]), 0).tolist()
        [1, 0]
        """
        if x is None and y is None:
            return self.nonzero(as_tuple=True)
        if x is None or y is None:
            raise TypeError("where: expected two values, as in where(x, y), or none, got one")
        nodes = [condition("where", self), *choices(self, x, y)]
        return self._chosen(nodes, broadcast_shape("where", *[n.shape for n in nodes]))

    def _chosen(self, nodes: Sequence[Node], shape: Shape) -> Self:
        wide = [broadcast_to(node, shape) for node in nodes]
        return self._new(build.elementwise(Op.WHERE, *wide))

    def masked_fill(self, mask: Core, value: Any) -> Self:
        """self with `value` where mask (bool) is true; keeps self's dtype.

        >>> Tensor([1, 2]).masked_fill(Tensor([True, False]), 9).tolist()
        [9, 2]
        """
        shape = broadcast_shape("masked_fill", self.shape, mask.shape)
        filled = self._filling(value, "masked_fill").node
        return self._chosen([condition("masked_fill", mask), filled, self.node], shape)

    def clip(self, min_: Any = None, max_: Any = None, **named_bounds: Any) -> Self:
        """self limited to min … max; None leaves that side open. Keywords: min, max.

        >>> Tensor([1, 5, 9]).clip(3, 7).tolist()
        [3, 5, 7]
        """
        low, high = named_bounds.pop("min", min_), named_bounds.pop("max", max_)
        twice = low is not min_ is not None or high is not max_ is not None
        if named_bounds or twice or (low is None and high is None):
            given = ", ".join(named_bounds)
            raise TypeError(f"clip({given}): expected min, max, or both, each once")
        if type(low) is int and low < self.dtype.minimum:
            low = None  # all integers of this dtype are larger
        if type(high) is int and high > self.dtype.maximum:
            high = None
        check_holds("clip", self.dtype, low, high)
        # outside the range nothing depends on self; at a bound the gradient passes
        result = self
        if low is not None:
            result = (result < low)._or_nan(low).where(low, result)
        if high is not None:
            result = (result > high)._or_nan(high).where(high, result)
        return self.clone() if result is self else result

    def _or_nan(self, bound: Any) -> Self:
        """A condition, true also where the bound is NaN."""
        if isinstance(bound, Core):
            return self | self._new(bound.raw).isnan() if bound.dtype.is_float else self
        return self if bound == bound else self | True

    # --- operators --------------------------------------------------------------------------------

    __add__, __sub__, __mul__, __floordiv__, __mod__ = add, sub, mul, floor_divide, mod
    __pos__, __neg__, __invert__ = positive, neg, bitwise_not
    __and__, __or__, __xor__ = bitwise_and, bitwise_or, bitwise_xor
    __lshift__, __rshift__ = lshift, rshift
    __lt__, __le__, __gt__, __ge__ = lt, le, gt, ge
    __eq__ = eq  # type: ignore[assignment]
    __ne__ = ne  # type: ignore[assignment]
    __hash__ = object.__hash__

    def __truediv__(self, other: Any) -> Self:
        return self._binary(DIV, "div", other)

    def __rfloordiv__(self, other: Any) -> Self:
        return self._operand(other, "floor division").floor_divide(self)

    def __rmod__(self, other: Any) -> Self:
        return self._operand(other, "mod").mod(self)

    __radd__, __rsub__ = _reflected(Op.ADD, "add"), _reflected(Op.SUB, "sub")
    __rmul__, __rand__ = _reflected(Op.MUL, "mul"), _reflected(Op.AND, "bitwise_and")
    __ror__, __rxor__ = _reflected(Op.OR, "bitwise_or"), _reflected(Op.XOR, "bitwise_xor")
    __rtruediv__ = _reflected(Op.DIV, "div")
    __rlshift__, __rrshift__ = _reflected(Op.SHL, "lshift"), _reflected(Op.SHR, "rshift")
