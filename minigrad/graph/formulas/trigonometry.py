"""Sine, cosine and their inverses, in float32 and float64: right however large an argument is.

An argument is x = n·π/2 + r with |r| ≤ π/4. Below 2²⁰, as nearly always, n·π/2 is taken away in
parts whose products with n are exact (Cody and Waite, "Software Manual for the Elementary
Functions", 1980). For larger x that would need many digits of 2/π, but only a window of them: what
2/π contributes to x·2/π above a multiple of 4 turns the circle whole times. This is the method of
Payne and Hanek ("Radian Reduction for Trigonometric Functions", 1983).

The inverses' formulas are those of fdlibm (Sun Microsystems, 1993): the argument is brought near 0
by an identity, and what that rounds off is carried along where it would show.
"""

from __future__ import annotations

from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.graph.numeric import Numeric, exact_product, exact_sum, exact_sum_ordered, horner

_BITS = 1280
# 2/π = 0.a2f9…, so many bits.
_TWO_OVER_PI = int(
    "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e006492eea09d1"
    "921cfe1deb1cb129a73ee88235f52ebb4484e99c7026b45f7e413991d639835339f49c845f8bbdf9283b1ff897ff"
    "de05980fef2f118b5a0a6d1f6d367ecf27cb09b74f463f669e5fea2d7527bac7ebe5f17b3d0739f78a5292ea6bfb"
    "5fb11f8d5d0856033046fc7b6babf0cfbc209af4361d",
    16,
)
_HALF_PI = 1.5707963267948966
# π/2 as a sum: all but the last have at most 33 bits, so that 20 more leave a product exact.
_HALF_PI_PARTS = (
    1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21, 8.4784276603689e-32
)
_NEAR = 2.0**20  # where those parts are enough
_SHIFT = 1.5 * 2.0**52  # added to a float64, rounds it to an integer in the lowest bits

# sin r = r + r·z·P(z), cos r = 1 − z/2 + z²·P(z), with z = r².
_SIN = (-0.16666652262210846, 0.008332005701959133, -0.0001949392753886059)
_COS = (0.04166664183139801, -0.001388711971230805, 2.441016295051668e-05)


def _window(skipped: int) -> tuple[float, ...]:
    """2/π without the multiples of 4·2^−skipped, as a sum of three float64.

    The first two have 29 and 28 significant bits, so that their products with a float32 are exact.
    """
    one, parts = 1 << _BITS, []
    rest = ((_TWO_OVER_PI << skipped) + 2 * one) % (4 * one) - 2 * one
    for bits in (27, 55, _BITS):
        unit = one >> bits
        part = (rest + unit // 2) // unit * unit
        parts.append(part / (one << skipped))
        rest -= part
    return tuple(parts)


# From 2^50 on a float32 is a multiple of 2^27, from 2^76 on of 2^53, from 2^102 on of 2^79.
_BANDS = ((2.0**50, _window(0)), (2.0**76, _window(27)), (2.0**102, _window(53)))
_LAST_BAND = _window(79)


def _near_turns(wide: Numeric) -> tuple[Numeric, Numeric, Numeric]:
    """The number n of quarter turns in a float64 below `_NEAR`, as an int64 and as a float64; what
    the first part of π/2 leaves of them.
    """
    shifted = wide * (1 / _HALF_PI) + _SHIFT
    turns = shifted - _SHIFT
    return shifted.bits_as(dtypes.int64), turns, turns * -_HALF_PI_PARTS[0] + wide


def _quarter_turns(x: Numeric) -> tuple[Numeric, Numeric]:
    """(n, r) with x = (n + 4k)·π/2 + r, |r| ≤ 1.03·π/4: an int32 and a float32, of a float32."""
    size, _ = x.split_sign()
    parts = [x.constant(c, dtypes.float64) for c in _LAST_BAND]
    for limit, window in reversed(_BANDS):
        within = size.less(limit)
        parts = [within.where(c, part) for c, part in zip(window, parts, strict=True)]
    wide = x.cast(dtypes.float64)
    first = wide * parts[0] + _SHIFT
    rest = wide * parts[1] + (wide * parts[0] - (first - _SHIFT))  # exact up to its own rounding
    second = rest + _SHIFT
    turns = wide * parts[2] + (rest - (second - _SHIFT))
    n = first.bits_as(dtypes.int64) + second.bits_as(dtypes.int64)
    return n.cast(dtypes.int32), (turns * _HALF_PI).cast(dtypes.float32)


def _on_circle(
    x: Numeric, quarter: int, n: Numeric, along: Numeric, across: Numeric, least: float
) -> Numeric:
    """sin(x + quarter·π/2) for x = n·π/2 + r, sin r along and cos r across the axis.

    n is an integer as wide as x. Below `least` sin x is x: −0 and subnormal numbers too.
    """
    n = n + quarter if quarter else n
    value = (n & 1).equals(0).where(along, across)
    result = (value.bits_as(n.dtype) ^ ((n & 2) << (n.dtype.bits - 2))).bits_as(x.dtype)
    return result if quarter else x.split_sign()[0].less(least).where(x, result)


def _circle(x: Numeric, quarter: int) -> Numeric:
    """sin(x + quarter·π/2) in float32."""

    def at(n: Numeric, r: Numeric) -> Numeric:
        z = r * r
        along = r * (z * horner(z, _SIN)) + r
        across = z * (z * horner(z, _COS) - 0.5) + 1.0
        return _on_circle(x, quarter, n, along, across, 2.0**-13)

    n, turns, rest = _near_turns(x.cast(dtypes.float64))
    r = turns * -_HALF_PI_PARTS[1] + rest
    return _is_far(x).rarely(
        at(*_quarter_turns(x)), at(n.cast(dtypes.int32), r.cast(dtypes.float32))
    )


def _is_far(x: Numeric) -> Numeric:
    """Whether x is not below `_NEAR`: it may be infinite, or NaN."""
    return ~x.split_sign()[0].less(_NEAR)


# --- float64 -------------------------------------------------------------------------------------

# The same reduction with more digits. The period is to a float64 of 2^1000 what a grain of sand is
# to the universe, and some float64 lie within 2^-60 of a multiple of π/2, so 2/π is needed to 1,150
# bits, and its product with the argument to 170. Sums and products therefore carry their rounding
# errors along as second numbers.

_HALF_PI_DOUBLE = (1.5707963267948966, 6.123233995736766e-17)
_SIN_DOUBLE = (
    -0.16666666666666666, 0.008333333333333059, -0.0001984126984099755, 2.755731909845309e-06,
    -2.5052078597171304e-08, 1.605542198123144e-10, -7.449797183804699e-13,
)  # fmt: skip
_COS_DOUBLE = (
    0.04166666666666655, -0.0013888888888866253, 2.4801587284643766e-05, -2.755731297697696e-07,
    2.0875539385314584e-09, -1.1350285549692584e-11,
)  # fmt: skip

# Word i holds the bits of 2/π with the weights 2^(1−24i) … 2^(−46−24i), as an integer: each word
# overlaps the next by half, and every other one follows on.
_WORDS = [(_TWO_OVER_PI << (46 + 24 * i) >> _BITS) % (1 << 48) for i in range(48)]


def _four_words(band: Numeric) -> list[Numeric]:
    """Words band, band + 2, band + 4, band + 6, for 0 ≤ band ≤ 41 (an int64).

    A barrel shifter: the list is cut by half for each bit of the band.
    """
    words = [band.constant(float(word), dtypes.float64) for word in _WORDS]
    odd = (band & 1).differs(0)
    words = [odd.where(words[i + 1], words[i]) for i in range(0, len(words), 2)]
    for step in (16, 8, 4, 2, 1):
        taken = (band & (2 * step)).differs(0)
        words = [
            taken.where(words[i + step], words[i]) if i + step < len(words) else words[i]
            for i in range(min(3 + step, len(words)))
        ]
    return words


def _within_four(x: Numeric) -> Numeric:
    """x less a multiple of 4, between −2 and 2; exact."""
    return x - (x * 0.25).operation("round") * 4.0


def _turns(x: Numeric) -> tuple[Numeric, Numeric, Numeric]:
    """(n, h, l) with x = (n + 4k + h + l)·π/2, |h| ≤ ½: n an int64, l the rounding error of h.

    Band b ≥ 1 holds the x from 2^(52+24b) on, which are multiples of 2^(24b): x/2^(24b) is whole
    and below 2^76, and what 2/π·2^(24b) holds above 4 does not matter.
    """
    exponent = (x.bits_as(dtypes.uint64) >> 52).bits_as(dtypes.int64) & 0x7FF
    above = exponent.less(1075).where(1075, exponent) - 1075
    band = (above * 2731) >> 16  # above // 24
    one = band.constant(1023 << 52)
    z = x * (one - (band << 55) - (band << 56)).bits_as(dtypes.float64)  # x / 2^(24·band)
    first, second, third, fourth = (
        word * 2.0 ** -(46 + 48 * i) for i, word in enumerate(_four_words(band))
    )
    product, error = exact_product(z, first)
    turns = _within_four(product)
    n = turns.operation("round")
    head = (turns - n) + _within_four(error)  # exact wherever the rest could cancel it
    product, error = exact_product(z, second)
    head, tail = exact_sum(head, _within_four(product))
    more = head.operation("round")
    head = head - more
    product, last = exact_product(z, third)
    product, error = exact_sum(error, product)
    rest = (last + z * fourth) + error
    head, error = exact_sum(head, product)
    tail, last = exact_sum(error, tail)
    head, error = exact_sum(head, tail)
    head, tail = exact_sum_ordered(head, error + (rest + last))
    return (n + more + _SHIFT).bits_as(dtypes.int64), head, tail


def _near_double(x: Numeric) -> tuple[Numeric, Numeric, Numeric]:
    """(n, r, l) with x = n·π/2 + r + l for |x| < `_NEAR`, l the rounding error of r."""
    n, turns, rest = _near_turns(x)
    first, error = exact_sum(rest, turns * -_HALF_PI_PARTS[1])
    second, more = exact_sum(first, turns * -_HALF_PI_PARTS[2])
    return n, *exact_sum_ordered(second, error + more + turns * -_HALF_PI_PARTS[3])


def _far_double(x: Numeric) -> tuple[Numeric, Numeric, Numeric]:
    """The same for every x."""
    n, head, tail = _turns(x)
    r, low = exact_product(head, head.constant(_HALF_PI_DOUBLE[0]))
    return n, r, low + (head * _HALF_PI_DOUBLE[1] + tail * _HALF_PI_DOUBLE[0])


def _circle_double(x: Numeric, quarter: int) -> Numeric:
    """sin(x + quarter·π/2) in float64."""

    def at(n: Numeric, r: Numeric, low: Numeric) -> Numeric:
        z = r * r
        half = z * 0.5
        along = r + (r * z * horner(z, _SIN_DOUBLE) + low * (1.0 - half))
        across = (z * z * horner(z, _COS_DOUBLE) - r * low) - half + 1.0
        return _on_circle(x, quarter, n, along, across, 2.0**-27)

    return _is_far(x).rarely(at(*_far_double(x)), at(*_near_double(x)))


def sine(x: Numeric) -> Numeric:
    """sin x."""
    return _circle(x, 0) if x.dtype is dtypes.float32 else _circle_double(x, 0)


def cosine(x: Numeric) -> Numeric:
    """cos x."""
    return _circle(x, 1) if x.dtype is dtypes.float32 else _circle_double(x, 1)


# --- inverses ------------------------------------------------------------------------------------

_TAN_EIGHTH = 0.41421356237309503  # tan(π/8)
_TAN_THREE_EIGHTHS = 2.414213562373095


@dataclass(frozen=True)
class _Inverses:
    """The polynomials of a format, and π/2 as a sum of two of its numbers."""

    half_pi: tuple[float, float]
    smallest: float
    atan: tuple[float, ...]  # atan r = r + r·z·P(z), |r| ≤ tan(π/8), z = r²
    asin: tuple[float, ...]  # asin s = s + s·z·P(z), |s| ≤ ½, z = s²


_SINGLE = _Inverses(
    (1.5707963705062866, -4.371139000186243e-08), 2.0**-126,
    (-0.33333316445350647, 0.19998528063297272, -0.14244389533996582, 0.10599144548177719,
     -0.06089960038661957),
    (0.16666659712791443, 0.07500521838665009, 0.04451338201761246, 0.03183884546160698,
     0.01431689877063036, 0.03769192099571228),
)  # fmt: skip
_DOUBLE = _Inverses(
    (1.5707963267948966, 6.123233995736766e-17), 2.0**-1022,
    (-0.33333333333333326, 0.19999999999997098, -0.14285714285317078, 0.11111111083805653,
     -0.0909090798854772, 0.07692279271103719, -0.06666175822326728, 0.05876528376733365,
     -0.05215261272866748, 0.044908981576748816, -0.03318281059310824, 0.014901767900850559),
    (0.1666666666666676, 0.07499999999970838, 0.04464285717460361, 0.030381942707269773,
     0.0223722150209513, 0.017351611150317508, 0.013980833508855947, 0.011398787957012897,
     0.01078103879662144, 0.003703137270632788, 0.021716076219525853, -0.021012146697755165,
     0.03263731435128929),
)  # fmt: skip


def _format(x: Numeric) -> _Inverses:
    return _SINGLE if x.dtype is dtypes.float32 else _DOUBLE


def atan(x: Numeric) -> Numeric:
    """atan x: of |x| above tan(3π/8) by −1/x, above tan(π/8) by (x − 1)/(x + 1)."""
    f = _format(x)
    size, sign = x.split_sign()
    large, middle = size.more(_TAN_THREE_EIGHTHS), size.more(_TAN_EIGHTH)
    top = large.where(-1.0, middle.where(size - 1.0, size))
    bottom = large.where(size, middle.where(size + 1.0, 1.0))
    r = top / bottom
    z = r * r
    base, rest = (large.where(part, middle.where(x.constant(part / 2), 0.0)) for part in f.half_pi)
    return (base + (r + (r * (z * horner(z, f.atan)) + rest))).with_sign(sign)


def _root(size: Numeric) -> tuple[Numeric, Numeric]:
    """s = √((1 − |x|)/2) as rounded, and asin of the exact root less s."""
    f = _format(size)
    z = (-size + 1.0) * 0.5
    s = z.operation("sqrt")
    lack = (-s).fused(s, z) / (s + s).at_least(f.smallest)
    return s, lack + s * (z * horner(z, f.asin))


def asin(x: Numeric) -> Numeric:
    """asin x; above ½ it is π/2 − 2·asin √((1 − x)/2). NaN outside −1 … 1."""
    f = _format(x)
    size, sign = x.split_sign()
    z = size * size
    near = size + size * (z * horner(z, f.asin))
    s, more = _root(size)
    far = (-(s + s) + f.half_pi[0]) - (more * 2.0 - f.half_pi[1])
    return size.less(0.5).where(near, far).with_sign(sign)


def acos(x: Numeric) -> Numeric:
    """acos x, by the same two formulas; π − acos(−x) below −½."""
    f = _format(x)
    size, sign = x.split_sign()
    negative = sign.differs(0)
    z = x * x
    near = (-(x + (x * (z * horner(z, f.asin)) - f.half_pi[1]))) + f.half_pi[0]
    s, more = _root(size)
    positive = (s + more) * 2.0
    opposite = (-(s + (more - f.half_pi[1])) + f.half_pi[0]) * 2.0
    return size.less(0.5).where(near, negative.where(opposite, positive))


def over_cosine(g: Numeric, x: Numeric) -> Numeric:
    """g / √((1 − x)(1 + x)), the derivative of asin; near ±1 more exact than with 1 − x²."""
    one = x.constant(1.0)
    return g / ((one - x) * (one + x)).operation("sqrt")
