"""Sine and cosine, right in their reduction however large the argument is.

An argument is x = n·π/2 + r with |r| ≤ π/4. For large x that needs many digits of 2/π, but only a
window of them: what 2/π contributes to x·2/π above a multiple of 4 turns the circle whole times.
This is the method of Payne and Hanek ("Radian Reduction for Trigonometric Functions", 1983).
"""

from __future__ import annotations

from fractions import Fraction

from minigrad.dtype import dtypes
from minigrad.graph.formulas.trigonometry_double import TWO_OVER_PI, circle_double, on_circle
from minigrad.graph.numeric import Numeric, apart, horner

_HALF_PI = 1.5707963267948966
_SHIFT = 1.5 * 2.0**52  # added to a float64, rounds it to an integer in the lowest bits

# sin r = r + r·z·P(z), cos r = 1 − z/2 + z²·P(z), with z = r².
_SIN = (-0.16666652262210846, 0.008332005701959133, -0.0001949392753886059)
_COS = (0.04166664183139801, -0.001388711971230805, 2.441016295051668e-05)


def _window(skipped: int) -> tuple[float, float, float]:
    """2/π without the multiples of 4·2^−skipped, as a sum of three float64.

    The first two have 29 and 28 significant bits, so that their products with a float32 are exact.
    """
    rest = TWO_OVER_PI * (1 << skipped)
    rest -= 4 * round(rest / 4)
    first = Fraction(round(rest * (1 << 27)), 1 << 27)
    second = Fraction(round((rest - first) * (1 << 55)), 1 << 55)
    third = rest - first - second
    scale = Fraction(1, 1 << skipped)
    return float(first * scale), float(second * scale), float(third * scale)


# From 2^50 on a float32 is a multiple of 2^27, from 2^76 on of 2^53, from 2^102 on of 2^79.
_BANDS = ((2.0**50, _window(0)), (2.0**76, _window(27)), (2.0**102, _window(53)))
_LAST_BAND = _window(79)


def _quarter_turns(x: Numeric) -> tuple[Numeric, Numeric]:
    """(n, r) with x = (n + 4k)·π/2 + r, |r| ≤ 1.03·π/4: an int32 and a float32, of a float32."""
    size, _ = apart(x)
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


def _circle(x: Numeric, quarter: int) -> Numeric:
    """sin(x + quarter·π/2) in float32."""
    n, r = _quarter_turns(x)
    z = r * r
    along = r * (z * horner(z, _SIN)) + r
    across = z * (z * horner(z, _COS) - 0.5) + 1.0
    return on_circle(x, quarter, n, along, across, 2.0**-13)


def sine(x: Numeric) -> Numeric:
    """sin x."""
    return _circle(x, 0) if x.dtype is dtypes.float32 else circle_double(x, 0)


def cosine(x: Numeric) -> Numeric:
    """cos x."""
    return _circle(x, 1) if x.dtype is dtypes.float32 else circle_double(x, 1)
