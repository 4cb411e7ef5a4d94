"""x to the power of y for `vector_math`: 2^(y·log₂|x|), with the special cases of C's `pow`."""

from __future__ import annotations

from math import inf, nan

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.render.exponential import SINGLE, scaled_twice, split
from minigrad.render.value import Value, constant, horner

# log₂(1 + f) = f·P(f) with relative error 2^-36, 1 + f from √½ to √2.
_LOG2 = (
    1.4426950408687023, -0.7213475208686775, 0.48089836139750275, -0.3606736748315633,
    0.2885372933151518, -0.2404531655224577, 0.20617536416036905, -0.18030060432012182,
    0.15876973970394148, -0.14315638915658713, 0.1447487430532052, -0.14283982011247234,
    0.07737040010377018,
)  # fmt: skip


def _magnitude_single(size: Value, y: Value) -> Value:
    """size^y for float32 size ≥ 0; the logarithm and its product with y are taken in float64.

    A relative error of 2^-36 in y·log₂ x, which is below 2^8 where the result is finite, leaves an
    absolute error of 2^-28 in the exponent.
    """
    e, f = split(size)
    wide = f.cast(dtypes.float64)
    logarithm = wide * horner(wide, _LOG2) + e.cast(dtypes.float64)
    logarithm = size.less(inf).where(logarithm, size.cast(dtypes.float64))  # NaN too
    logarithm = size.equals(0.0).where(-inf, logarithm)
    # An infinite y acts like a huge one, except that it must not turn log₂ 1 = 0 into NaN.
    exponent = logarithm * y.at_least(-1e30).at_most(1e30).cast(dtypes.float64)
    exponent = exponent.at_least(SINGLE.exp2_range[0]).at_most(SINGLE.exp2_range[1])
    shift = 1.5 * 2.0**52
    n = exponent * 0.5 + shift - shift
    r = (exponent - n * 2.0).cast(dtypes.float32)
    shifted = n.cast(dtypes.float32) + (SINGLE.shift + SINGLE.bias)
    return scaled_twice(r * horner(r, SINGLE.exp2), shifted)


def power(x: Value, y: Value) -> Value:
    """x^y. A negative x gives NaN unless y is a whole number; x⁰ = 1^y = 1 even where the other is
    NaN; the sign of a zero or an infinity survives odd powers."""
    bits = dtypes.uint32 if x.dtype is dtypes.float32 else dtypes.uint64
    sign = x.bits_as(bits) & (1 << (x.dtype.bits - 1))
    size = (x.bits_as(bits) ^ sign).bits_as(x.dtype)
    magnitude = _magnitude_single(size, y)
    half = y * 0.5
    whole = y.unary(Op.TRUNC).equals(y)
    odd = whole & half.unary(Op.FLOOR).differs(half)
    signed = (magnitude.bits_as(bits) | odd.where(sign, 0)).bits_as(x.dtype)
    undefined = x.less(0.0) & x.more(-inf) & whole.equals(False)
    result = undefined.where(nan, signed)
    return (x.equals(1.0) | y.equals(0.0)).where(1.0, result)
