"""atan, asin and acos, in float32 and float64.

The formulas are those of fdlibm (Sun Microsystems, 1993): the argument is brought near 0 by an
identity, and what that rounds off is carried along where it would show.
"""

from __future__ import annotations

from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.graph.numeric import Numeric, apart, horner, with_sign

_TAN_EIGHTH = 0.41421356237309503  # tan(π/8)
_TAN_THREE_EIGHTHS = 2.414213562373095


@dataclass(frozen=True)
class Format:
    """The polynomials of a format, and π/2 and π/4 as sums of two of its numbers."""

    half_pi: tuple[float, float]
    quarter_pi: tuple[float, float]
    smallest: float
    atan: tuple[float, ...]  # atan r = r + r·z·P(z), |r| ≤ tan(π/8), z = r²
    asin: tuple[float, ...]  # asin s = s + s·z·P(z), |s| ≤ ½, z = s²


SINGLE = Format(
    (1.5707963705062866, -4.371139000186243e-08),
    (0.7853981852531433, -2.1855695000931214e-08), 2.0**-126,
    (-0.33333316445350647, 0.19998528063297272, -0.14244389533996582, 0.10599144548177719,
     -0.06089960038661957),
    (0.16666659712791443, 0.07500521838665009, 0.04451338201761246, 0.03183884546160698,
     0.01431689877063036, 0.03769192099571228),
)  # fmt: skip
DOUBLE = Format(
    (1.5707963267948966, 6.123233995736766e-17),
    (0.7853981633974483, 3.061616997868383e-17), 2.0**-1022,
    (-0.33333333333333326, 0.19999999999997098, -0.14285714285317078, 0.11111111083805653,
     -0.0909090798854772, 0.07692279271103719, -0.06666175822326728, 0.05876528376733365,
     -0.05215261272866748, 0.044908981576748816, -0.03318281059310824, 0.014901767900850559),
    (0.1666666666666676, 0.07499999999970838, 0.04464285717460361, 0.030381942707269773,
     0.0223722150209513, 0.017351611150317508, 0.013980833508855947, 0.011398787957012897,
     0.01078103879662144, 0.003703137270632788, 0.021716076219525853, -0.021012146697755165,
     0.03263731435128929),
)  # fmt: skip


def _format(x: Numeric) -> Format:
    return SINGLE if x.dtype is dtypes.float32 else DOUBLE


def atan(x: Numeric) -> Numeric:
    """atan x: of |x| above tan(3π/8) by −1/x, above tan(π/8) by (x − 1)/(x + 1)."""
    f = _format(x)
    size, sign = apart(x)
    large, middle = size.more(_TAN_THREE_EIGHTHS), size.more(_TAN_EIGHTH)
    top = large.where(-1.0, middle.where(size - 1.0, size))
    bottom = large.where(size, middle.where(size + 1.0, 1.0))
    r = top / bottom
    z = r * r
    base = large.where(f.half_pi[0], middle.where(x.constant(f.quarter_pi[0]), 0.0))
    rest = large.where(f.half_pi[1], middle.where(x.constant(f.quarter_pi[1]), 0.0))
    return with_sign(base + (r + (r * (z * horner(z, f.atan)) + rest)), sign)


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
    size, sign = apart(x)
    z = size * size
    near = size + size * (z * horner(z, f.asin))
    s, more = _root(size)
    far = (-(s + s) + f.half_pi[0]) - (more * 2.0 - f.half_pi[1])
    return with_sign(size.less(0.5).where(near, far), sign)


def acos(x: Numeric) -> Numeric:
    """acos x, by the same two formulas; π − acos(−x) below −½."""
    f = _format(x)
    size, sign = apart(x)
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
