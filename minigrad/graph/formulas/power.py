"""x to the power of y: 2^(y·log₂|x|), with the special cases of C's `pow`."""

from __future__ import annotations

from math import inf, nan

from minigrad.dtype import dtypes
from minigrad.graph.formulas.exponential import DOUBLE, SINGLE, scaled_twice, split
from minigrad.graph.numeric import Numeric, exact_product, exact_sum, exact_sum_ordered, horner

# log₂(1 + f) = f·P(f) with relative error 2^-36, 1 + f from √½ to √2.
_LOG2 = (
    1.4426950408687023, -0.7213475208686775, 0.48089836139750275, -0.3606736748315633,
    0.2885372933151518, -0.2404531655224577, 0.20617536416036905, -0.18030060432012182,
    0.15876973970394148, -0.14315638915658713, 0.1447487430532052, -0.14283982011247234,
    0.07737040010377018,
)  # fmt: skip

# 2·atanh(s)/ln 2 = s·(A + z·(B + z·P(z))), z = s², A and B as sums of two.
_ATANH = (
    (2.8853900817779268, 4.0710547481862066e-17),
    (0.9617966939259756, 5.0577616648125907e-17),
)
_ATANH_REST = (
    0.5770780163555851, 0.41219858311134566, 0.3205988979127996, 0.26230819865639443,
    0.22195227041676235, 0.1924013221627528, 0.16845146884909942, 0.17281808043395824,
)  # fmt: skip


def _magnitude_single(size: Numeric, y: Numeric) -> Numeric:
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
    r = (exponent + n * -2.0).cast(dtypes.float32)
    shifted = n.cast(dtypes.float32) + SINGLE.shift
    return scaled_twice(r * horner(r, SINGLE.exp2), shifted)


def _logarithm_double(size: Numeric) -> tuple[Numeric, Numeric]:
    """log₂ of a positive finite float64 as a sum of two, with relative error 2^-65.

    log₂(1 + f) = s·(A + z·(B + z·P(z))) with s = f/(2 + f), z = s². The terms of A and B are
    carried in two numbers each; for what P adds one is enough.
    """
    e, f = split(size)
    divisor, divisor_low = exact_sum_ordered(f.constant(2.0), f)
    s = f / divisor
    s_low = ((-s).fused(divisor, f) - s * divisor_low) / divisor
    z, z_low = exact_product(s, s)
    z_low = z_low + s * s_low * 2.0
    inner, inner_low = exact_sum_ordered(z.constant(_ATANH[1][0]), z * horner(z, _ATANH_REST))
    inner_low = inner_low + _ATANH[1][1]
    term, term_low = exact_product(z, inner)
    term_low = term_low + (z * inner_low + z_low * inner)
    outer, outer_low = exact_sum_ordered(z.constant(_ATANH[0][0]), term)
    outer_low = outer_low + (term_low + _ATANH[0][1])
    head, head_low = exact_product(s, outer)
    head_low = head_low + (s * outer_low + s_low * outer)
    total, low = exact_sum(e, head)
    return exact_sum_ordered(total, low + head_low)


def _magnitude_double(size: Numeric, y: Numeric) -> Numeric:
    """size^y for float64 size ≥ 0."""
    head, low = _logarithm_double(size)
    head = size.less(inf).where(head, size)  # NaN too
    head = size.equals(0.0).where(-inf, head)
    y = y.at_least(-1e30).at_most(1e30)  # log₂ 1 times an infinite y is to be 0
    product, error = exact_product(head, y)
    error = error + low * y
    exponent = product.at_least(DOUBLE.exp2_range[0]).at_most(DOUBLE.exp2_range[1])
    error = exponent.equals(product).where(error, 0.0)  # where clamped, it may be anything
    shifted = exponent * 0.5 + DOUBLE.shift
    r = exponent + (shifted - DOUBLE.shift) * -2.0 + error
    return scaled_twice(r * horner(r, DOUBLE.exp2), shifted)


def power(x: Numeric, y: Numeric) -> Numeric:
    """x^y. A negative x gives NaN unless y is a whole number; x⁰ = 1^y = 1, even of NaN.

    The sign of a zero or an infinity survives odd powers.
    """
    single = x.dtype is dtypes.float32
    size, sign = x.split_sign()
    magnitude = _magnitude_single(size, y) if single else _magnitude_double(size, y)
    half = y * 0.5
    whole = y.operation("trunc").equals(y)
    odd = whole & half.operation("floor").differs(half)
    signed = magnitude.with_sign(odd.where(sign, 0))
    undefined = x.less(0.0) & x.more(-inf) & ~whole
    result = undefined.where(nan, signed)
    return (x.equals(1.0) | y.equals(0.0)).where(1.0, result)


def by_base(g: Numeric, z: Numeric, x: Numeric, y: Numeric) -> Numeric:
    """The gradient by x of z = xʸ: g·y·xʸ⁻¹, and 0 where y is 0.

    The exponent is taken as 1 where it is 0 and x would make 0·∞ of it; masking the result would
    leave that NaN to the second derivative, and taking it as 1 for all x a wrong one.
    """
    exponent = y.known()
    if exponent is None:
        awkward = y.equals(0.0) & ~(x.less(0.0) | x.more(0.0))
        safe = awkward.where(1.0, y)
        return g * (y * x.operation("pow", safe - 1.0))
    if exponent == 0:
        return z.constant(0.0)
    power = x if exponent == 2 else x.constant(1.0) if exponent == 1 else (
        x.operation("pow", exponent - 1.0)
    )  # fmt: skip
    return g * (power * exponent)


def by_exponent(g: Numeric, z: Numeric, x: Numeric, y: Numeric) -> Numeric:
    """The gradient by y of z = xʸ: g·xʸ·ln x, and 0 where x is 0 and y is not negative."""
    flat = x.equals(0.0) & y.constant(0.0).operation("le", y)
    return g * (z * flat.where(1.0, x).operation("log"))
