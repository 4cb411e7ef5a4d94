"""Functions of the standard that work element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad.array_api import dtypes as kinds
from minigrad.array_api.array import Array, Kinds, _binary, _check, _scalar, _unary
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions


def _one(
    allowed: Kinds, count: int, apply: Callable[[Any], Any] | None = None
) -> list[Callable[[Array], Array]]:
    """Functions of one array that call `apply`, or the method of Tensor with their name."""

    def made() -> Callable[[Array], Array]:
        def function(x: Array, /) -> Array:
            name = function.__name__
            return _unary(name, allowed, x, apply or getattr(Tensor, name))

        return function

    return [made() for _ in range(count)]


def _two(
    allowed: Kinds, count: int, apply: Callable[[Any, Any], Any] | None = None
) -> list[Callable[[Any, Any], Array]]:
    """The same for two arrays, or an array and a Python number."""

    def made() -> Callable[[Any, Any], Array]:
        def function(x1: Any, x2: Any, /) -> Array:
            name = function.__name__
            return _binary(name, allowed, x1, x2, apply or getattr(Tensor, name))

        return function

    return [made() for _ in range(count)]


def _named(names: dict[str, Any]) -> None:
    """Name the functions created above by their names in the module."""
    for name, function in names.items():
        if getattr(function, "__name__", "") == "function":
            function.__name__ = function.__qualname__ = name
            function.__doc__ = f"{name}, as the standard defines it."


acos, acosh, asin, asinh, atan, atanh, cos, cosh, exp, expm1 = _one(kinds.FLOATING, 10)
log, log1p, log2, log10, reciprocal, signbit = _one(kinds.FLOATING, 6)
sin, sinh, sqrt, tan, tanh = _one(kinds.FLOATING, 5)
abs, ceil, floor, round, trunc, negative, positive = _one(kinds.NUMERIC, 7)
sign, square, isfinite, isinf, isnan = _one(kinds.NUMERIC, 5)
# dtypes are real: a number is its own conjugate and its own real part
conj, real = _one(kinds.NUMERIC, 2, Tensor.positive)
(bitwise_invert,) = _one(kinds.INTEGER_OR_BOOL, 1, Tensor.bitwise_not)
(logical_not,) = _one((kinds.bool,), 1)

atan2, copysign, divide, hypot, logaddexp, nextafter = _two(kinds.FLOATING, 6)
add, subtract, multiply, floor_divide, remainder, pow = _two(kinds.NUMERIC, 6)
maximum, minimum, greater, greater_equal, less, less_equal = _two(kinds.NUMERIC, 6)
(equal,), (not_equal,) = _two(kinds.ALL, 1, Tensor.eq), _two(kinds.ALL, 1)
bitwise_and, bitwise_or, bitwise_xor = _two(kinds.INTEGER_OR_BOOL, 3)
bitwise_left_shift, bitwise_right_shift = _two(kinds.INTEGER, 2)
logical_and, logical_or, logical_xor = _two((kinds.bool,), 3)


def imag(x: Array, /) -> Array:
    """Zeros: all dtypes are real."""
    return Array._of(x._tensor.zeros_like())


def clip(x: Array, /, min: Any = None, max: Any = None) -> Array:
    """x limited to min … max, in x's dtype; NaN stays NaN."""
    tensor = x._tensor
    for bound, nearer in ((min, Tensor.maximum), (max, Tensor.minimum)):
        if bound is not None:
            limit = bound if isinstance(bound, Array) else _scalar(bound, x)
            _check("clip", kinds.NUMERIC, x, limit)
            tensor = nearer(tensor, limit._tensor.cast(x.dtype))
    return Array._of(tensor.clone() if tensor is x._tensor else tensor)


def where(condition: Array, x1: Any, x2: Any, /) -> Array:
    """x1 where the condition is true, x2 elsewhere."""
    return _binary("where", kinds.ALL, x1, x2, condition._tensor.where)


_named(globals())
check_functions(globals())
