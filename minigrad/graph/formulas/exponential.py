"""Exponentials, logarithms, tanh and erf, in float32 and float64."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

from minigrad.dtype import DType, dtypes
from minigrad.graph.numeric import Numeric, horner

Coefficients = tuple[float, ...]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format and the polynomials that suffice for it.

    `shift` is 1.5·2^mantissa + the exponent's bias: adding it to a number leaves the number,
    rounded to an integer, plus the bias in the lowest bits of the sum.
    """

    signed: DType
    unsigned: DType
    mantissa: int
    shift: float
    smallest: float  # smallest normal number
    root_half: int  # the bits of √½
    # Above it e^x is inf. At its lower end 2ⁿ is 0: so it is for −inf, which masks are made of. A
    # product that underflows takes Intel's processors some hundred cycles, one with 0 does not.
    exp_range: tuple[float, float]
    exp2_range: tuple[float, float]
    half_log2e: float
    ln2: tuple[float, float]  # as a sum; the first has zeros for an exact product
    exp: Coefficients  # e^r = 1 + r·P(r), |r| ≤ ln 2
    exp2: Coefficients  # 2^r = 1 + r·P(r), |r| ≤ 1


SINGLE = Format(
    dtypes.int32, dtypes.uint32, 23, 1.5 * 2.0**23 + 127, 2.0**-126, 0x3F3504F3,
    (-176.0625, 89.0), (-254.0, 129.0), 0.7213475108146667,
    (0.693145751953125, 1.428606765330187e-06),
    (1.0, 0.5000003576278687, 0.166666179895401, 0.041661228984594345, 0.008335930295288563,
     0.001410475466400385, 0.0001963059330591932),
    (0.6931472420692444, 0.24022668600082397, 0.05550365895032883, 0.009616844356060028,
     0.0013341717422008514, 0.00015645298117306083, 1.4917232874722686e-05),
)  # fmt: skip
DOUBLE = Format(
    dtypes.int64, dtypes.uint64, 52, 1.5 * 2.0**52 + 1023, 2.0**-1022, 0x3FE6A09E667F3BCD,
    (-1418.203125, 710.0), (-2046.0, 1025.0), 0.7213475204444817,
    (0.6931471805598903, 5.497923018708371e-14),
    (0.9999999999999999, 0.4999999999999992, 0.16666666666667274, 0.041666666666703656,
     0.008333333333234112, 0.0013888888883430142, 0.00019841269910842208, 2.4801590890620716e-05,
     2.7557295944565183e-06, 2.7556146625117014e-07, 2.5055645640818517e-08,
     2.10631318494272e-09, 1.590411258073961e-10),
    (0.6931471805599453, 0.2402265069591003, 0.055504108664822825, 0.009618129107637386,
     0.0013333558146309827, 0.00015403530387185545, 1.5252733847523195e-05, 1.321548872729446e-06,
     1.0178078718897617e-07, 7.054609411374222e-09, 4.4460799209643267e-10,
     2.5908300197317058e-11, 1.3581946169107976e-12),
)  # fmt: skip


def format_of(x: Numeric) -> Format:
    """The format of a float32 or float64 value."""
    return SINGLE if x.dtype is dtypes.float32 else DOUBLE


def scaled_twice(p: Numeric, shifted: Numeric) -> Numeric:
    """(1 + p)·4ⁿ, where `shifted` holds n + bias in its lowest bits.

    Multiplying twice by 2ⁿ rather than once by 4ⁿ gives subnormal results and overflow for free.
    """
    f = format_of(p)
    scale = (shifted.bits_as(f.signed) << f.mantissa).bits_as(p.dtype)
    return (p * scale + scale) * scale


def exp(x: Numeric) -> Numeric:
    """e^x = 4ⁿ·e^r with n = round(x / ln 4), |r| ≤ ln 2.

    (Here and below a product is added with its sign, where it would be taken away: so it is one
    instruction with the sum.)
    """
    f = format_of(x)
    x = x.at_least(f.exp_range[0]).at_most(f.exp_range[1])
    shifted = x * f.half_log2e + f.shift
    n = shifted - f.shift
    r = x + n * (-2.0 * f.ln2[0]) + n * (-2.0 * f.ln2[1])
    return scaled_twice(r * horner(r, f.exp), shifted)


def exp2(x: Numeric) -> Numeric:
    """2^x = 4ⁿ·2^r with n = round(x / 2), |r| ≤ 1."""
    f = format_of(x)
    x = x.at_least(f.exp2_range[0]).at_most(f.exp2_range[1])
    shifted = x * 0.5 + f.shift
    r = x + (shifted - f.shift) * -2.0
    return scaled_twice(r * horner(r, f.exp2), shifted)


def split(x: Numeric) -> tuple[Numeric, Numeric]:
    """(e, f) with x = 2ᵉ·(1 + f) and 1 + f in [√½, √2), for positive finite x."""
    f = format_of(x)
    subnormal = x.less(f.smallest)
    x = subnormal.where(x * 2.0 ** (f.mantissa + 1), x)
    # Subtracting the bits of √½ moves the exponent's step from 1 to √½. Something is added to the
    # exponent of float64, whose integers are best shifted without a sign.
    raised = 2048 if x.dtype is dtypes.float64 else 0
    base = f.root_half - (raised << f.mantissa)
    moved = x.bits_as(f.signed) - subnormal.where(
        x.constant(base + ((f.mantissa + 1) << f.mantissa), f.signed), base
    )
    fraction = (moved & ((1 << f.mantissa) - 1)) + f.root_half
    if x.dtype is dtypes.float64:  # few processors convert vectors of int64; 2⁵² + e is the same
        whole = (moved.bits_as(f.unsigned) >> 52) | 0x4330000000000000
        exponent = whole.bits_as(x.dtype) - (2.0**52 + raised)
    else:
        exponent = (moved >> f.mantissa).cast(x.dtype)
    return exponent, fraction.bits_as(x.dtype) - 1.0


def _with_poles(x: Numeric, logarithm: Numeric) -> Numeric:
    """The logarithm of x, given right for positive finite x, made right for all other x."""
    nonpositive = x.equals(0.0).where(x.constant(-inf), nan)
    return x.more(0.0).where(x.less(inf).where(logarithm, x), nonpositive)


_LOG_SINGLE = (
    -0.49999988079071045, 0.33333325386047363, -0.25001609325408936, 0.20002004504203796,
    -0.16608411073684692, 0.14180853962898254, -0.1324806958436966, 0.12912945449352264,
    -0.0761905387043953,
)  # fmt: skip
_LOG2_SINGLE = (
    0.4426950514316559, -0.7213475108146667, 0.4808965027332306, -0.3606826066970825,
    0.28861892223358154, -0.2399515062570572, 0.20415368676185608, -0.18825608491897583,
    0.18688525259494781, -0.11641518026590347,
)  # fmt: skip


def log(x: Numeric) -> Numeric:
    """ln x = e·ln 2 + ln(1 + f)."""
    e, f = split(x)
    high, low = format_of(x).ln2
    if x.dtype is dtypes.float32:
        small = f + (f * f * horner(f, _LOG_SINGLE) + e * low)
    else:
        near, below = _log_near_one(f)
        small = near - (below + e * -low)
    return _with_poles(x, e * high + small)


def log2(x: Numeric) -> Numeric:
    """log₂ x = e + log₂(1 + f)."""
    e, f = split(x)
    if x.dtype is dtypes.float32:
        small = f * horner(f, _LOG2_SINGLE) + f
    else:
        near, below = _log_near_one(f)
        small = near + (near * 0.44269504088896342 + below * -1.4426950408889634)
    return _with_poles(x, e + small)


_ATANH_DOUBLE = (
    0.6666666666666734, 0.3999999999941693, 0.2857142874193561, 0.2222219861587676,
    0.1818356226205787, 0.1531410000081833, 0.14795484407164156,
)  # fmt: skip


def _log_near_one(f: Numeric) -> tuple[Numeric, Numeric]:
    """(f, v) with ln(1 + f) = f − v in float64.

    It is 2·atanh(s) = 2s + s·z·P(z) with s = f/(2 + f), z = s²; and 2s = f − s·f, where f is exact.
    """
    s = f / (f + 2.0)
    z = s * s
    return f, s * (f - z * horner(z, _ATANH_DOUBLE))


# float32: 2^r = 1 + r·P(r), |r| ≤ ½, to 2^-23; tanh x = x + x·z·P(z), z = x², |x| ≤ 0.7.
_EXP2_SHORT = (
    0.6931470036506653, 0.24022246897220612, 0.0555071085691452, 0.009671291336417198,
    0.0013269521296024323,
)  # fmt: skip
_TANH_SMALL = (
    -0.3333318829536438, 0.13329072296619415, -0.053556106984615326, 0.02008437179028988,
    -0.005131552927196026,
)  # fmt: skip
# float64: e^r − 1 = r + r²·P(r), |r| ≤ ln(2)/2.
_EXPM1_DOUBLE = (
    0.5, 0.16666666666666677, 0.04166666666666669, 0.008333333333321775, 0.0013888888888886786,
    0.00019841269885348596, 2.4801587294850798e-05, 2.7557245202605644e-06, 2.7557315811573895e-07,
    2.5108652006555918e-08, 2.089798672640875e-09,
)  # fmt: skip


def _exp2_short(x: Numeric) -> tuple[Numeric, Numeric]:
    """(p, s) with 2^x = p·s to about 2^-23 where the result is a normal float32."""
    shifted = x + SINGLE.shift
    r = x - (shifted - SINGLE.shift)
    scale = (shifted.bits_as(dtypes.uint32) << SINGLE.mantissa).bits_as(x.dtype)
    return r * horner(r, _EXP2_SHORT) + 1.0, scale


def tanh(x: Numeric) -> Numeric:
    """The hyperbolic tangent: 1 − 2/(e^2|x| + 1), and a polynomial where that would cancel."""
    size, sign = x.split_sign()
    if x.dtype is dtypes.float64:
        return _tanh_double(size).with_sign(sign)
    power, scale = _exp2_short(size.at_most(10.0) * 2.885390043258667)
    large = 1.0 - 2.0 / (power * scale + 1.0)
    z = size * size
    small = size * (z * horner(z, _TANH_SMALL)) + size
    return size.less(0.7).where(small, large).with_sign(sign)


def tanh_plus_one(x: Numeric) -> Numeric:
    """tanh x + 1 = 2/(e^−2x + 1) in float32, which cancels nowhere and is cheaper than tanh.

    Where 2^n is too small or too large for float32, it comes out as 0 or inf, and so 2 or 0.
    """
    power, scale = _exp2_short((x * -2.885390043258667).at_least(-127.0).at_most(128.0))
    return 2.0 / (power * scale + 1.0)


def _tanh_double(x: Numeric) -> Numeric:
    """tanh x for x ≥ 0 as u/(u + 2) with u = e^2x − 1."""
    f = DOUBLE
    x = x.at_most(20.0)  # where it is 1
    shifted = x * (4 * f.half_log2e) + f.shift
    n = shifted - f.shift
    r = x * 2.0 + n * -f.ln2[0] + n * -f.ln2[1]
    scale = (shifted.bits_as(f.unsigned) << f.mantissa).bits_as(x.dtype)
    u = (r * r * horner(r, _EXPM1_DOUBLE) + r) * scale + (scale - 1.0)
    return u / (u + 2.0)


# float32: erf x = x + x·P(x²) for |x| ≤ 0.8, 1 − 2^G(|x|) for |x| ≤ 4.
_ERF_SMALL = (
    0.12837916612625122, -0.37612608075141907, 0.11283162236213684, -0.026822242885828018,
    0.005086865741759539, -0.0006542248884215951,
)  # fmt: skip
_ERF_LARGE = (
    -7.047230610623956e-05, -1.6278035640716553, -0.9176638126373291, -0.15139499306678772,
    0.03279220685362816, -0.004578533582389355, 0.000302453147014603,
)  # fmt: skip
# float64: erf x = x·P(x²) for |x| ≤ 1, 1 − e^(−x²)·P(|x|)/Q(|x|) for |x| ≤ 6.
_ERF_SMALL_DOUBLE = (
    1.1283791670955126, -0.3761263890318339, 0.11283791670938687, -0.026866170642162054,
    0.00522397759746065, -0.0008548325458304847, 0.00012055277226682889, -1.4924337097457636e-05,
    1.6441370849608658e-06, -1.614776833006061e-07, 1.3333048361971306e-08, -6.376202454812761e-10,
    -2.2817938726827565e-11,
)  # fmt: skip
_ERFC_P = (
    0.9999999614060405, 1.3323476579811657, 0.8813517865538653, 0.3346487132503679,
    0.07258709390327535, 0.007292744383167263, 1.297002892347666e-08,
)  # fmt: skip
_ERFC_Q = (
    1.0, 2.460726401307687, 2.6579864148701056, 1.6253841638506512, 0.5997564183647687,
    0.12864381853895707, 0.012926856339116834,
)  # fmt: skip


def erf(x: Numeric) -> Numeric:
    """The error function."""
    size, sign = x.split_sign()
    if x.dtype is dtypes.float64:
        bounded = size.at_most(6.0)
        rational = horner(bounded, _ERFC_P) / horner(bounded, _ERFC_Q)
        large = 1.0 - exp(-(bounded * bounded)) * rational
        small = size * horner(size * size, _ERF_SMALL_DOUBLE)
        return size.less(1.0).where(small, large).with_sign(sign)
    power, scale = _exp2_short(horner(size.at_most(4.0), _ERF_LARGE))
    large = 1.0 - power * scale
    small = size * horner(size * size, _ERF_SMALL) + size
    return size.less(0.8).where(small, large).with_sign(sign)
