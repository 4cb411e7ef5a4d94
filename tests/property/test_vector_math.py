"""Vector math in units in the last place (ULP), float32, against 60-digit arithmetic.

Points: each exponent of float32 from the smallest denormal to the largest number, both signs, dense
samples where the function bends, and NaN, ±inf, ±0. The bound is 2 ULP; REF uses
numpy's functions, which promise 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import settings

from minigrad import Tensor, dtypes

MORE = 1 if settings().max_examples <= 20 else 20
mpmath.mp.dps = 60


@dataclass(frozen=True)
class Function:
    """A name, its exact value, the interval that is sampled densely, and the allowed error."""

    name: str
    exact: Callable[[Any], Any]
    low: float
    high: float
    ulp: float = 2
    positive: bool = False
    within_one: bool = False


FUNCTIONS = [
    Function("exp", mpmath.exp, -104, 89),
    Function("exp2", lambda x: mpmath.power(2, x), -150, 128),
    Function("log", mpmath.log, 0.4, 2.5, positive=True),
    Function("log2", lambda x: mpmath.log(x, 2), 0.4, 2.5, positive=True),
    Function("sin", mpmath.sin, -200, 200),
    Function("cos", mpmath.cos, -200, 200),
    Function("tanh", mpmath.tanh, -10, 10),
    Function("erf", mpmath.erf, -4, 4),
    Function("asin", mpmath.asin, -1, 1, within_one=True),
    Function("acos", mpmath.acos, -1, 1, within_one=True),
    Function("atan", mpmath.atan, -4, 4),
    Function("sqrt", mpmath.sqrt, 0, 4, ulp=1, positive=True),
    Function("rsqrt", lambda x: 1 / mpmath.sqrt(x), 0, 4, positive=True),
    Function("reciprocal", lambda x: 1 / x, -4, 4, ulp=1),
]


def _all_exponents(generator: np.random.Generator, per_exponent: int) -> np.ndarray:
    """Random mantissas under every exponent, denormals included, both signs."""
    exponents = np.repeat(np.arange(255, dtype=np.uint32), per_exponent)
    mantissas = generator.integers(0, 2**23, exponents.size, dtype=np.uint32)
    signs = generator.integers(0, 2, exponents.size, dtype=np.uint32)
    return ((signs << 31) | (exponents << 23) | mantissas).view(np.float32)


def points(function: Function) -> np.ndarray:
    """The arguments at which a function is checked, NaN and infinities left out."""
    generator = np.random.default_rng(len(function.name) * 1000 + ord(function.name[0]))
    dense = generator.uniform(function.low, function.high, 1000 * MORE).astype(np.float32)
    places = [function.low, function.high, 1, -1, 0.5, np.pi / 2, np.pi, 1e-45, 3.4e38, 2.0**-126,
              100.0, 88.72, 88.73, -87.33, -103.97, 2.0**24]  # fmt: skip
    edges = np.array(places, np.float32)
    near_one = (1 + np.arange(-16, 17) * 2.0**-23).astype(np.float32)
    found = np.concatenate([_all_exponents(generator, 3 * MORE), dense, edges, near_one])
    if function.within_one:
        found = found[np.abs(found) <= 1]
    return np.abs(found) if function.positive else found


def exact_values(function: Function, x: np.ndarray) -> list[Any]:
    """The function's value at each point, to 60 digits."""
    return [function.exact(mpmath.mpf(float(v))) if v else None for v in x]


def errors(got: np.ndarray, exact: list[Any]) -> np.ndarray:
    """|got − exact| in units of float32's spacing at the exact value; 0 where both overflow."""
    largest = mpmath.mpf(float(np.finfo(np.float32).max))
    result = np.zeros(got.size)
    for n, (value, wanted) in enumerate(zip(got, exact, strict=True)):
        if wanted is None:
            continue
        if not np.isfinite(value):
            overflows = abs(wanted) > largest and np.sign(value) == mpmath.sign(wanted)
            result[n] = 0 if overflows else np.inf
            continue
        exponent = max(mpmath.frexp(wanted)[1] - 24, -149) if wanted else -149
        result[n] = float(abs(mpmath.mpf(float(value)) - wanted) / mpmath.ldexp(1, exponent))
    return result


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_error_in_ulp(function: Function, device: str, reference: str) -> None:
    """Over the whole range of float32, denormals included."""
    x = points(function)
    got = getattr(Tensor(x, device=device), function.name)().numpy()
    assert got.dtype == np.float32
    found = errors(got, exact_values(function, x))
    worst = int(np.argmax(found))
    bound = 4 if device == reference and function.ulp == 2 else function.ulp
    assert found[worst] <= bound, (
        f"{function.name}({x[worst]!r}) = {got[worst]!r} on {device} is {found[worst]:.2f} ULP off"
    )


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0], np.float32)
NAN, INF = float("nan"), float("inf")
AT_SPECIAL: dict[str, list[float]] = {
    "exp": [NAN, INF, 0, 1, 1, 0.36787945],
    "exp2": [NAN, INF, 0, 1, 1, 0.5],
    "log": [NAN, INF, NAN, -INF, -INF, NAN],
    "log2": [NAN, INF, NAN, -INF, -INF, NAN],
    "sin": [NAN, NAN, NAN, 0.0, -0.0, -0.84147098],
    "cos": [NAN, NAN, NAN, 1, 1, 0.54030231],
    "tanh": [NAN, 1, -1, 0.0, -0.0, -0.76159416],
    "erf": [NAN, 1, -1, 0.0, -0.0, -0.84270079],
    "asin": [NAN, NAN, NAN, 0.0, -0.0, -1.57079637],
    "acos": [NAN, NAN, NAN, 1.57079637, 1.57079637, 3.14159274],
    "atan": [NAN, 1.57079637, -1.57079637, 0.0, -0.0, -0.785398185],
    "sqrt": [NAN, INF, NAN, 0.0, -0.0, NAN],
    "rsqrt": [NAN, 0.0, NAN, INF, -INF, NAN],
    "reciprocal": [NAN, 0.0, -0.0, INF, -INF, -1],
}


@pytest.mark.parametrize("name", AT_SPECIAL)
@pytest.mark.parametrize("size", [6, 16, 35])
def test_special_values(name: str, size: int, device: str) -> None:
    """NaN, infinities and signed zeros, in vector lanes and in tails."""
    x = np.resize(SPECIAL, size)
    got = getattr(Tensor(x, device=device), name)().numpy()
    wanted = np.resize(np.array(AT_SPECIAL[name], np.float32), size)
    assert np.allclose(got, wanted, rtol=1e-6, atol=0, equal_nan=True), (got, wanted)
    zero = wanted == 0
    assert np.array_equal(np.signbit(got[zero]), np.signbit(wanted[zero])), (got, wanted)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_float64(function: Function, device: str) -> None:
    """Double precision: 16 units of ε relative to the exact value, where it bends."""
    generator = np.random.default_rng(5)
    x = generator.uniform(function.low, function.high, 300 * MORE)
    x = np.abs(x) if function.positive else x
    got = getattr(Tensor(x, device=device, dtype=dtypes.float64), function.name)().numpy()
    exact = exact_values(function, x)
    relative = [
        float(abs(mpmath.mpf(float(g)) - e) / abs(e)) if e else 0.0
        for g, e in zip(got, exact, strict=True)
        if e is not None
    ]
    worst = int(np.argmax(relative))
    assert relative[worst] <= 16 * 2.0**-52, (
        f"{function.name}({x[worst]!r}) = {got[worst]!r}: off by {relative[worst]:.3g} of its value"
    )
