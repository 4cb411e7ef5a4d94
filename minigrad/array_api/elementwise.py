"""Functions of the standard that work element by element."""

from __future__ import annotations

from typing import Any

from minigrad.array_api.array import Array, _binary, binary, scalar, unary
from minigrad.array_api.dtypes import (
    ALL,
    FLOATING,
    INTEGER,
    INTEGER_OR_BOOL,
    NUMERIC,
    bool,
)
from minigrad.tensor import Tensor

__all__ = [
    "abs", "acos", "acosh", "add", "asin", "asinh", "atan", "atan2", "atanh", "bitwise_and",
    "bitwise_invert", "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor",
    "ceil", "clip", "conj", "copysign", "cos", "cosh", "divide", "equal", "exp", "expm1", "floor",
    "floor_divide", "greater", "greater_equal", "hypot", "imag", "isfinite", "isinf", "isnan",
    "less", "less_equal", "log", "log1p", "log2", "log10", "logaddexp", "logical_and",
    "logical_not", "logical_or", "logical_xor", "maximum", "minimum", "multiply", "negative",
    "nextafter", "not_equal", "positive", "pow", "real", "reciprocal", "remainder", "round", "sign",
    "signbit", "sin", "sinh", "sqrt", "square", "subtract", "tan", "tanh", "trunc", "where",
]  # fmt: skip


def _rounded(method: Any) -> Any:
    """Rounding leaves integers as they are."""
    return lambda x: x if x.dtype.is_int else method(x)


abs = unary("abs", NUMERIC, Tensor.abs)
acos = unary("acos", FLOATING, Tensor.acos)
acosh = unary("acosh", FLOATING, Tensor.acosh)
add = binary("add", NUMERIC, Tensor.add)
asin = unary("asin", FLOATING, Tensor.asin)
asinh = unary("asinh", FLOATING, Tensor.asinh)
atan = unary("atan", FLOATING, Tensor.atan)
atan2 = binary("atan2", FLOATING, Tensor.atan2)
atanh = unary("atanh", FLOATING, Tensor.atanh)
bitwise_and = binary("bitwise_and", INTEGER_OR_BOOL, Tensor.bitwise_and)
bitwise_invert = unary("bitwise_invert", INTEGER_OR_BOOL, Tensor.bitwise_not)
bitwise_left_shift = binary("bitwise_left_shift", INTEGER, Tensor.lshift)
bitwise_or = binary("bitwise_or", INTEGER_OR_BOOL, Tensor.bitwise_or)
bitwise_right_shift = binary("bitwise_right_shift", INTEGER, Tensor.rshift)
bitwise_xor = binary("bitwise_xor", INTEGER_OR_BOOL, Tensor.bitwise_xor)
ceil = unary("ceil", NUMERIC, _rounded(Tensor.ceil))
copysign = binary("copysign", FLOATING, Tensor.copysign)
cos = unary("cos", FLOATING, Tensor.cos)
cosh = unary("cosh", FLOATING, Tensor.cosh)
divide = binary("divide", FLOATING, Tensor.div)
equal = binary("equal", ALL, Tensor.eq)
exp = unary("exp", FLOATING, Tensor.exp)
expm1 = unary("expm1", FLOATING, Tensor.expm1)
floor = unary("floor", NUMERIC, _rounded(Tensor.floor))
floor_divide = binary("floor_divide", NUMERIC, lambda x, y: x // y)
greater = binary("greater", NUMERIC, Tensor.gt)
greater_equal = binary("greater_equal", NUMERIC, Tensor.ge)
hypot = binary("hypot", FLOATING, Tensor.hypot)
isfinite = unary("isfinite", NUMERIC, Tensor.isfinite)
isinf = unary("isinf", NUMERIC, Tensor.isinf)
isnan = unary("isnan", NUMERIC, Tensor.isnan)
less = binary("less", NUMERIC, Tensor.lt)
less_equal = binary("less_equal", NUMERIC, Tensor.le)
log = unary("log", FLOATING, Tensor.log)
log1p = unary("log1p", FLOATING, Tensor.log1p)
log2 = unary("log2", FLOATING, Tensor.log2)
log10 = unary("log10", FLOATING, Tensor.log10)
logaddexp = binary("logaddexp", FLOATING, Tensor.logaddexp)
logical_and = binary("logical_and", (bool,), Tensor.bitwise_and)
logical_not = unary("logical_not", (bool,), Tensor.logical_not)
logical_or = binary("logical_or", (bool,), Tensor.bitwise_or)
logical_xor = binary("logical_xor", (bool,), Tensor.bitwise_xor)
maximum = binary("maximum", NUMERIC, Tensor.maximum)
minimum = binary("minimum", NUMERIC, Tensor.minimum)
multiply = binary("multiply", NUMERIC, Tensor.mul)
negative = unary("negative", NUMERIC, Tensor.neg)
nextafter = binary("nextafter", FLOATING, Tensor.nextafter)
not_equal = binary("not_equal", ALL, Tensor.ne)
positive = unary("positive", NUMERIC, Tensor.positive)
pow = binary("pow", NUMERIC, Tensor.pow)
reciprocal = unary("reciprocal", FLOATING, Tensor.reciprocal)
remainder = binary("remainder", NUMERIC, Tensor.mod)
round = unary("round", NUMERIC, _rounded(Tensor.round))
sign = unary("sign", NUMERIC, Tensor.sign)
signbit = unary("signbit", FLOATING, Tensor.signbit)
sin = unary("sin", FLOATING, Tensor.sin)
sinh = unary("sinh", FLOATING, Tensor.sinh)
sqrt = unary("sqrt", FLOATING, Tensor.sqrt)
square = unary("square", NUMERIC, Tensor.square)
subtract = binary("subtract", NUMERIC, Tensor.sub)
tan = unary("tan", FLOATING, Tensor.tan)
tanh = unary("tanh", FLOATING, Tensor.tanh)
trunc = unary("trunc", NUMERIC, _rounded(Tensor.trunc))
# dtypes are real: a number is its own conjugate and its own real part
conj = unary("conj", NUMERIC, lambda x: x)
real = unary("real", NUMERIC, lambda x: x)


def imag(x: Array, /) -> Array:
    """Zeros: all dtypes are real."""
    return Array._of(x._tensor.zeros_like())


def clip(x: Array, /, min: Any = None, max: Any = None) -> Array:
    """x no smaller than min and no larger than max, in x's dtype; a NaN stays."""
    tensor = x._tensor
    for bound, nearer in ((min, Tensor.maximum), (max, Tensor.minimum)):
        if bound is not None:
            limit = bound if isinstance(bound, Array) else scalar(bound, x)
            tensor = nearer(tensor, limit._tensor.cast(x.dtype))
    return Array._of(tensor)


def where(condition: Array, x1: Any, x2: Any, /) -> Array:
    """x1 where the condition holds, x2 elsewhere."""
    if condition.dtype is not bool:
        raise TypeError(f"where: the condition is {condition.dtype.name}, expected bool")
    return _binary("where", ALL, x1, x2, condition._tensor.where)
