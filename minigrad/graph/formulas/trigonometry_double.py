"""Sine and cosine of float64: the reduction of `trigonometry`, with more digits.

Their period is to a float64 of 2^1000 what a grain of sand is to the universe, and some float64 lie
within 2^-60 of a multiple of π/2, so 2/π is needed to 1,150 bits, and its product with the argument
to 170. Sums and products therefore carry their rounding errors along as second numbers.
"""

from __future__ import annotations

from fractions import Fraction

from minigrad.dtype import dtypes
from minigrad.graph.numeric import (
    Numeric,
    apart,
    exact_product,
    exact_sum,
    exact_sum_ordered,
    horner,
)

# 2/π = 0.a2f9…, 1280 bits.
TWO_OVER_PI = Fraction(
    int(
        "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e006492eea09d1"
        "921cfe1deb1cb129a73ee88235f52ebb4484e99c7026b45f7e413991d639835339f49c845f8bbdf9283b1ff897ff"
        "de05980fef2f118b5a0a6d1f6d367ecf27cb09b74f463f669e5fea2d7527bac7ebe5f17b3d0739f78a5292ea6bfb"
        "5fb11f8d5d0856033046fc7b6babf0cfbc209af4361d",
        16,
    ),
    1 << 1280,
)
_HALF_PI = (1.5707963267948966, 6.123233995736766e-17)
_SHIFT = 1.5 * 2.0**52  # added to a float64, rounds it to an integer in the lowest bits

# sin r = r + r·z·P(z), cos r = 1 − z/2 + z²·P(z), with z = r².
_SIN = (
    -0.16666666666666666, 0.008333333333333059, -0.0001984126984099755, 2.755731909845309e-06,
    -2.5052078597171304e-08, 1.605542198123144e-10, -7.449797183804699e-13,
)  # fmt: skip
_COS = (
    0.04166666666666655, -0.0013888888888866253, 2.4801587284643766e-05, -2.755731297697696e-07,
    2.0875539385314584e-09, -1.1350285549692584e-11,
)  # fmt: skip

# Word i holds the bits of 2/π with the weights 2^(1−24i) … 2^(−46−24i), as an integer: each word
# overlaps the next by half, and every other one follows on.
_WORDS = [int(TWO_OVER_PI * (1 << (46 + 24 * i))) % (1 << 48) for i in range(48)]


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


def circle_double(x: Numeric, quarter: int) -> Numeric:
    """sin(x + quarter·π/2) in float64."""
    n, head, tail = _turns(x)
    r, low = exact_product(head, head.constant(_HALF_PI[0]))
    low = low + (head * _HALF_PI[1] + tail * _HALF_PI[0])
    z = r * r
    half = z * 0.5
    along = r + (r * z * horner(z, _SIN) + low * (1.0 - half))
    across = (z * z * horner(z, _COS) - r * low) - half + 1.0
    return on_circle(x, quarter, n, along, across, 2.0**-27)


def on_circle(
    x: Numeric, quarter: int, n: Numeric, along: Numeric, across: Numeric, least: float
) -> Numeric:
    """sin(x + quarter·π/2) for x = n·π/2 + r, sin r along and cos r across the axis.

    n is an integer as wide as x. Below `least` sin x is x: −0 and subnormal numbers too.
    """
    n = n + quarter if quarter else n
    value = (n & 1).equals(0).where(along, across)
    result = (value.bits_as(n.dtype) ^ ((n & 2) << (n.dtype.bits - 2))).bits_as(x.dtype)
    return result if quarter else apart(x)[0].less(least).where(x, result)
