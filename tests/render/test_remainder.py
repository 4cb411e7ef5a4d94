"""Remainders of floats, computed by vectors."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor


@pytest.mark.parametrize("count", [1, 7, 16, 100])
def test_float_remainders_are_exact(count: int) -> None:
    """Also if a quotient is too large for vectors, and for operands that are not finite."""
    generator = np.random.default_rng(count)
    near = generator.standard_normal((2, count)).astype(np.float32)
    far = near * np.float32(10) ** generator.integers(-40, 38, (2, count)).astype(np.float32)
    whole = generator.integers(-6, 7, (2, count)).astype(np.float32)
    odd = generator.choice(np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 1.5, -3.0]), (2, count))
    for x, y in (near, far, whole, odd, (near[0], odd[1]), (odd[0], near[1]), (far[0], near[1])):
        with np.errstate(all="ignore"):
            wanted = np.mod(x, y), np.floor_divide(x, y), np.fmod(x, y)
        one, other = Tensor(x), Tensor(y)
        for got, expected in zip((one % other, one // other, one.fmod(other)), wanted, strict=True):
            np.testing.assert_array_equal(got.numpy(), expected)
