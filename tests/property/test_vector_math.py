"""Vector math in units in the last place (ULP), float32, against 60-digit arithmetic.

Points: each exponent of float32 from the smallest denormal to the largest number, both signs, dense
samples where the function bends. The bound is 2 ULP; REF uses numpy's functions, which promise 4.
What NaN, infinities and zeros give is in test_special_points.py.
"""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import settings
from primitives import OF_ONE, VECTOR_MATH

from minigrad import Tensor, dtypes

from .exact import bends
from .operations import BY_NAME

MORE = 1 if settings().max_examples <= 20 else 20
# What renderers write as polynomials, and what processors compute.
POLYNOMIALS = [op.value for op in OF_ONE if op in VECTOR_MATH]
ROUNDED = ["sqrt", "reciprocal"]
NAMES = [*POLYNOMIALS, "rsqrt", *ROUNDED]


def _all_exponents(generator: np.random.Generator, per_exponent: int) -> np.ndarray:
    """Random mantissas under every exponent, denormals included, both signs."""
    exponents = np.repeat(np.arange(255, dtype=np.uint32), per_exponent)
    mantissas = generator.integers(0, 2**23, exponents.size, dtype=np.uint32)
    signs = generator.integers(0, 2, exponents.size, dtype=np.uint32)
    return ((signs << 31) | (exponents << 23) | mantissas).view(np.float32)


def points(name: str) -> np.ndarray:
    """The arguments at which a function is checked, NaN and infinities left out."""
    generator = np.random.default_rng(len(name) * 1000 + ord(name[0]))
    low, high = bends(name, "float32")
    dense = generator.uniform(low, high, 1000 * MORE).astype(np.float32)
    places = [low, high, 1, -1, 0.5, np.pi / 2, np.pi, 1e-45, 3.4e38, 2.0**-126,
              100.0, 88.72, 88.73, -87.33, -103.97, 2.0**24]  # fmt: skip
    edges = np.array(places, np.float32)
    near_one = (1 + np.arange(-16, 17) * 2.0**-23).astype(np.float32)
    found = np.concatenate([_all_exponents(generator, 3 * MORE), dense, edges, near_one])
    domain = BY_NAME[name].domains[0]
    found = np.abs(found) if domain in ("positive", "nonnegative") else found
    return found[np.abs(found) <= 1] if domain == "unit" else found


def exact_values(name: str, x: np.ndarray) -> list[Any]:
    """The function's value at each point, to 60 digits."""
    exact = BY_NAME[name].exact
    assert exact
    return [exact(mpmath.mpf(float(v))) if v else None for v in x]


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


@pytest.mark.parametrize("name", NAMES)
def test_error_in_ulp(name: str, device: str, reference: str) -> None:
    """Over the whole range of float32, denormals included."""
    x = points(name)
    got = getattr(Tensor(x, device=device), name)().numpy()
    assert got.dtype == np.float32
    found = errors(got, exact_values(name, x))
    worst = int(np.argmax(found))
    bound = 1 if name in ROUNDED else 4 if device == reference else 2
    assert found[worst] <= bound, (
        f"{name}({x[worst]!r}) = {got[worst]!r} on {device} is {found[worst]:.2f} ULP off"
    )


@pytest.mark.parametrize("name", NAMES)
def test_float64(name: str, device: str) -> None:
    """Double precision: 16 units of ε relative to the exact value, where it bends."""
    generator = np.random.default_rng(5)
    x = generator.uniform(*bends(name, "float32"), 300 * MORE)
    x = np.abs(x) if BY_NAME[name].domains[0] == "positive" else x
    got = getattr(Tensor(x, device=device, dtype=dtypes.float64), name)().numpy()
    exact = exact_values(name, x)
    relative = [
        float(abs(mpmath.mpf(float(g)) - e) / abs(e)) if e else 0.0
        for g, e in zip(got, exact, strict=True)
        if e is not None
    ]
    worst = int(np.argmax(relative))
    assert relative[worst] <= 16 * 2.0**-52, (
        f"{name}({x[worst]!r}) = {got[worst]!r}: off by {relative[worst]:.3g} of its value"
    )
