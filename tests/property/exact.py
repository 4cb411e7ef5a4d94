"""Functions of one number to 60 digits: mpmath's, plus limits and domains that mpmath lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath

mpmath.mp.dps = 60
INF, NAN = math.inf, math.nan
Function = Callable[[Any], Any]


def ends(function: Function, below: Any, above: Any) -> Function:
    """The function, with its limits at −∞ and ∞; None: not specified there."""
    return lambda x: (below if x < 0 else above) if mpmath.isinf(x) else function(x)


def finite(function: Function) -> Function:
    """The function of finite numbers only: at ±∞, a product 0·∞ may be NaN, as in PyTorch."""
    return ends(function, None, None)


def inside(low: float, high: float, function: Function) -> Function:
    """The function, NaN outside its domain."""
    return lambda x: function(x) if low <= x <= high else NAN


def of_positive(function: Function) -> Function:
    """The function of positive numbers: NaN below 0, ∞ at ∞."""
    return inside(0, INF, ends(function, NAN, INF))


def log2(x: Any) -> Any:
    """Logarithm to base 2."""
    return mpmath.log(x, 2)


def exp2(x: Any) -> Any:
    """2ˣ."""
    return mpmath.power(2, x)


def atanh(x: Any) -> Any:
    """atanh, infinite at ±1."""
    return INF * x if abs(x) == 1 else mpmath.atanh(x)


def sigmoid(x: Any) -> Any:
    """The logistic function."""
    return 1 / (1 + mpmath.exp(-x))


def softplus(x: Any) -> Any:
    """log(1 + exp(x))."""
    return mpmath.log1p(mpmath.exp(x)) if x < 1000 else x


def trunc(x: Any) -> Any:
    """x rounded towards 0."""
    return mpmath.floor(x) if x > 0 else mpmath.ceil(x)


def reciprocal(x: Any) -> Any:
    """1/x; infinite at 0."""
    return INF if x == 0 else 1 / x


def rsqrt(x: Any) -> Any:
    """1/√x; infinite at 0."""
    return reciprocal(mpmath.sqrt(x))


# Intervals where functions bend and saturate, in float32 and in float64; the default is −11 to 11.
BENDS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "exp": ((-110, 92), (-750, 712)),
    "exp2": ((-152, 130), (-1080, 1026)),
    "log": ((0.3, 3), (0.3, 3)),
    "log2": ((0.3, 3), (0.3, 3)),
    "sin": ((-200, 200), (-200, 200)),
    "cos": ((-200, 200), (-200, 200)),
    "tanh": ((-11, 11), (-22, 22)),
    "erf": ((-6.5, 6.5), (-6.5, 6.5)),
    "asin": ((-1, 1), (-1, 1)),
    "acos": ((-1, 1), (-1, 1)),
    "atan": ((-4, 4), (-4, 4)),
    "sqrt": ((0, 4), (0, 4)),
    "rsqrt": ((0, 4), (0, 4)),
    "reciprocal": ((-4, 4), (-4, 4)),
}


def bends(name: str, dtype: str) -> tuple[float, float]:
    """The interval to be sampled densely."""
    return BENDS.get(name, ((-11, 11), (-11, 11)))[dtype == "float64"]
