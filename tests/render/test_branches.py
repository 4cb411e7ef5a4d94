"""Branches that a vector takes only if one of its lanes needs them: sines of very large numbers."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor

FAR = (3e7, -1e30, float("inf"), float("nan"))


def _numbers(count: int) -> np.ndarray:
    x = np.random.default_rng(5).uniform(-9, 9, count).astype(np.float32)
    x[np.arange(4) * (count // 4)] = FAR  # one each in some vectors, none in others
    return x


def _sine(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.sin(x.astype(np.float64)).astype(np.float32)


@pytest.mark.parametrize("count", [4, 21, 301])
def test_lanes_do_not_depend_on_their_neighbours(count: int) -> None:
    x = _numbers(count)
    got = Tensor(x).sin().numpy()
    np.testing.assert_allclose(got, _sine(x), rtol=3e-7, atol=1e-30)
    near = np.where(np.abs(x) < 10, x, 0).astype(np.float32)
    same = np.abs(x) < 10
    assert np.array_equal(Tensor(near).sin().numpy()[same], got[same])


def test_a_branch_inside_a_branch_and_before_a_loop() -> None:
    x, y = _numbers(40), np.random.default_rng(6).uniform(-2, 2, (40, 50)).astype(np.float32)
    twice = (Tensor(x) * 1e7).sin().sin().numpy()
    np.testing.assert_allclose(twice, _sine(_sine(x * np.float32(1e7))), rtol=1e-6, atol=1e-30)
    rows = (Tensor(x).sin().reshape(40, 1) * Tensor(y)).sum(1).numpy()
    np.testing.assert_allclose(rows, _sine(x) * y.sum(1), rtol=1e-4, atol=1e-5)
    sums = Tensor(np.tile(x, (50, 1))).sin().sum(0).numpy()
    np.testing.assert_allclose(sums, 50 * _sine(x), rtol=1e-5, atol=1e-5)
