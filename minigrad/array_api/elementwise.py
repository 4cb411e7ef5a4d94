"""Functions of the standard that work element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad.array_api import dtypes as kinds
from minigrad.array_api.array import Array, Kinds, _binary, _scalar, _unary
from minigrad.tensor import Tensor


def _one(name: str, allowed: Kinds, apply: Any = None) -> Callable[[Array], Array]:
    """The namespace's function of one array: apply, or `Tensor`'s method of the same name."""
    apply = apply or getattr(Tensor, name)

    def function(x: Array, /) -> Array:
        return _unary(name, allowed, x, apply)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{name}(x), element by element, as the standard defines it."
    return function


def _two(name: str, allowed: Kinds, apply: Any = None) -> Callable[[Any, Any], Array]:
    """The same of two arrays, or an array and a Python number."""
    apply = apply or getattr(Tensor, name)

    def function(x1: Any, x2: Any, /) -> Array:
        return _binary(name, allowed, x1, x2, apply)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{name}(x1, x2), element by element, as the standard defines it."
    return function


acos, acosh, asin, asinh, atan, atanh, cos, cosh, exp, expm1, log, log1p, log2, log10 = (
    _one(name, kinds.FLOATING) for name in (
        "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "exp", "expm1", "log",
        "log1p", "log2", "log10",
    )
)  # fmt: skip
reciprocal, signbit, sin, sinh, sqrt, tan, tanh = (
    _one(name, kinds.FLOATING)
    for name in ("reciprocal", "signbit", "sin", "sinh", "sqrt", "tan", "tanh")
)
abs, ceil, floor, round, trunc, negative, positive, sign, square, isfinite, isinf, isnan = (
    _one(name, kinds.NUMERIC) for name in (
        "abs", "ceil", "floor", "round", "trunc", "negative", "positive", "sign", "square",
        "isfinite", "isinf", "isnan",
    )
)  # fmt: skip
# dtypes are real: a number is its own conjugate and its own real part
conj, real = (_one(name, kinds.NUMERIC, Tensor.positive) for name in ("conj", "real"))
bitwise_invert = _one("bitwise_invert", kinds.INTEGER_OR_BOOL, Tensor.bitwise_not)
logical_not = _one("logical_not", (kinds.bool,))

atan2, copysign, divide, hypot, logaddexp, nextafter = (
    _two(name, kinds.FLOATING)
    for name in ("atan2", "copysign", "divide", "hypot", "logaddexp", "nextafter")
)
add, subtract, multiply, floor_divide, remainder, pow, maximum, minimum = (
    _two(name, kinds.NUMERIC) for name in (
        "add", "subtract", "multiply", "floor_divide", "remainder", "pow", "maximum", "minimum",
    )
)  # fmt: skip
greater, greater_equal, less, less_equal = (
    _two(name, kinds.NUMERIC) for name in ("greater", "greater_equal", "less", "less_equal")
)
equal, not_equal = _two("equal", kinds.ALL, Tensor.eq), _two("not_equal", kinds.ALL)
bitwise_and, bitwise_or, bitwise_xor = (
    _two(name, kinds.INTEGER_OR_BOOL) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")
)
bitwise_left_shift, bitwise_right_shift = (
    _two(name, kinds.INTEGER) for name in ("bitwise_left_shift", "bitwise_right_shift")
)
logical_and, logical_or, logical_xor = (
    _two(name, (kinds.bool,)) for name in ("logical_and", "logical_or", "logical_xor")
)


def imag(x: Array, /) -> Array:
    """Zeros: all dtypes are real."""
    return Array._of(x._tensor.zeros_like())


def clip(x: Array, /, min: Any = None, max: Any = None) -> Array:
    """x no smaller than min and no larger than max, in x's dtype; a NaN stays."""
    tensor = x._tensor
    for bound, nearer in ((min, Tensor.maximum), (max, Tensor.minimum)):
        if bound is not None:
            limit = bound if isinstance(bound, Array) else _scalar(bound, x)
            tensor = nearer(tensor, limit._tensor.cast(x.dtype))
    return Array._of(tensor)


def where(condition: Array, x1: Any, x2: Any, /) -> Array:
    """x1 where the condition holds, x2 elsewhere."""
    if condition.dtype is not kinds.bool:
        raise TypeError(f"where: the condition is {condition.dtype.name}, expected bool")
    return _binary("where", kinds.ALL, x1, x2, condition._tensor.where)
