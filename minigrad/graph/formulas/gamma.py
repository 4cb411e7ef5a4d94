"""The logarithm of |Γ|, its derivative digamma and the derivative of that.

For large x Stirling's series (DLMF 5.11), here with coefficients fitted to where it is used; nearer
to 0 polynomials on an interval of length 1, to which Γ(x + 1) = x·Γ(x) leads; below 0 Euler's
reflection Γ(x)·Γ(1 − x) = π / sin πx. All is computed in float64, for float32 too: then
cancellation leaves enough. At poles lgamma is ∞ and digamma NaN (at ±0: ∓∞).

Errors of float64 are a few units in the last place (`tests/render/test_vector_math_exprs.py`),
except near the zeros at negative x, between two poles, where they are some 1e-16 of the terms.
"""

from __future__ import annotations

import math

from minigrad.dtype import dtypes
from minigrad.graph.formulas.exponential import log
from minigrad.graph.numeric import Numeric, horner

# ln Γ(2 + t) = t·P(t), −0.7 ≤ t ≤ 0.3.
_NEAR_TWO = (
    0.42278433509846713, 0.3224670334241132, -0.06735230105319402, 0.020580808427794466,
    -0.007385551029217844, 0.0028905103290837943, -0.0011927538853817143, 0.0005096696293541095,
    -0.00022315529689365463, 9.94544943448914e-05, -4.492299852921615e-05, 2.0548851408455542e-05,
    -9.398660747075149e-06, 4.140773053988198e-06, -2.674634206610522e-06, 8.882603013392682e-07,
    1.559248440829193e-06, 3.858486510244587e-06, 2.750874417301526e-06, 9.751513484219525e-07,
)  # fmt: skip
# ln Γ(x) = (x − ½)·(ln x − 1) + _OFFSET + z·P(z²), x ≥ 3.3, z = 1/x.
_OFFSET = math.log(2 * math.pi) / 2 - 0.5
_STIRLING = (
    0.08333333333333065, -0.0027777777765636666, 0.0007936505914761052, -0.0005952206853802958,
    0.0008408548355007579, -0.0018877052098603452, 0.005735226134264006, -0.018709838729625707,
    0.04874990067954802, -0.06703318946435634,
)  # fmt: skip
# sin(πr)/(πr) = 1 + u·P(u), |r| ≤ ½, u = r².
_SINE = (
    -1.6449340668482264, 0.8117424252833462, -0.19075182412167532, 0.026147847807942694,
    -0.002346080913289411, 0.00014842791656083615, -6.972267254120451e-06, 2.4518321217796605e-07,
)  # fmt: skip
# The zero of digamma as a sum of two; ψ(x) = (x − zero)·P(x − 1.5), 1 ≤ x ≤ 2.
_ZERO = (1.4616321449683622, 9.549995429965697e-17)
_NEAR_ZERO = (
    0.951055876031833, -0.4236274212814605, 0.24054248424072897, -0.14840492305389102,
    0.09498872446109573, -0.06192213327553823, 0.04076083348904476, -0.026975796624248916,
    0.01790726103868373, -0.011908221551099205, 0.007926813670352955, -0.005279910251999187,
    0.0035202180457036287, -0.002345777484619402, 0.0015497080106026664, -0.0010347006721100854,
    0.0007471962499717042, -0.0004923957830016984, 0.00018173797629317693, -0.00013192603623349853,
    0.00029649362939498616, -0.00018904009486379593,
)  # fmt: skip
# ψ(x) = ln x − z/2 − z²·P(z²), x ≥ 3, z = 1/x.
_DIGAMMA = (
    0.0833333333332048, -0.00833333328120053, 0.003968246305574447, -0.004166088919387944,
    0.007549800171493393, -0.020336809695983987, 0.06820943905826249, -0.22358469420903657,
    0.5439987387159058, -0.668066459832067,
)  # fmt: skip
# π·cot(πr) = 1/r + r·P(r²), |r| ≤ ½.
_COTANGENT = (
    -3.289868133696453, -2.1646464674223465, -2.034686123955845, -2.008154713267747,
    -2.0019891272511967, -2.0004921483809723, -2.0001397265233876, -1.9995278412924093,
    -2.007876080955522, -1.9213166201855256, -2.529159315205126, 0.4116680511927387,
    -9.263761586295335, 11.442319052807902, -14.577013129511942,
)  # fmt: skip


def _reflected(x: Numeric) -> tuple[Numeric, Numeric, Numeric]:
    """Whether x < 0; where Γ is taken instead, 1 − x there; and x less the nearest integer."""
    negative = x.less(0.0)
    return negative, negative.where(1.0 - x, x), x - x.operation("round")


def lgamma(x: Numeric) -> Numeric:
    """ln |Γ(x)|."""
    dtype, x = x.dtype, x.cast(dtypes.float64)
    negative, y, r = _reflected(x)
    low, near, above, large = y.less(0.3), y.less(1.3), y.less(2.3), y.more(3.3)
    t = low.where(y, near.where(y - 1.0, above.where(y - 2.0, y - 3.0)))
    step = low.where(y * (y + 1.0), near.where(y, above.where(1.0, y - 1.0)))
    logarithm = log(large.where(y, step))
    z = 1.0 / y
    far = (y - 0.5) * (logarithm - 1.0) + (z * horner(z * z, _STIRLING) + _OFFSET)
    small = t * horner(t, _NEAR_TWO) + near.where(-logarithm, logarithm)
    positive = large.where(far, small)
    u = r * r
    size = r.less(0.0).where(-r, r)
    below = -log(size + size * (u * horner(u, _SINE))) - positive
    pole = x.operation("round").equals(x) & negative
    return pole.where(math.inf, negative.where(below, positive)).cast(dtype)


def digamma(x: Numeric) -> Numeric:
    """d/dx ln |Γ(x)|."""
    dtype, x = x.dtype, x.cast(dtypes.float64)
    negative, y, r = _reflected(x)
    large, low, near = y.more(2.99), y.less(1.0), y.less(2.0)
    t = low.where(y + 1.0, near.where(y, y - 1.0))
    z = 1.0 / large.where(y, low.where(-y, y - 1.0))
    middle = (t - _ZERO[0] - _ZERO[1]) * horner(t - 1.5, _NEAR_ZERO)
    small = (low | ~near).where(middle + z, middle)
    far = log(y) - (z * 0.5 + z * z * horner(z * z, _DIGAMMA))
    positive = large.where(far, small)
    cotangent = 1.0 / r + r * horner(r * r, _COTANGENT)
    pole = x.operation("round").equals(x)
    below = pole.where(math.nan, positive - cotangent)
    return negative.where(below, positive).cast(dtype)


def trigamma(x: Numeric) -> Numeric:
    """d/dx digamma(x) in steps that have derivatives themselves: 8 by recurrence, then the series.

    Computed in the dtype of x. ∞ at poles.
    """
    negative, y, r = _reflected(x)
    total = 1.0 / (y * y)
    for k in range(1, 8):
        total = total + 1.0 / ((y + float(k)) * (y + float(k)))
    z = 1.0 / (y + 8.0)
    # Bernoulli's numbers B₂ₖ (DLMF 5.15.8)
    bernoulli = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)
    positive = total + (z + z * z * (z * horner(z * z, bernoulli) + 0.5))
    sine = (negative.where(r, 0.5) * math.pi).operation("sin")
    return negative.where(math.pi**2 / (sine * sine) - positive, positive)
