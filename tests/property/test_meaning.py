"""Values have the same meaning on every device: edge cases, one by one.

The expected values are written down; numpy does not divide, shift or convert here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minigrad import Context, Tensor

SIZES = (1, 7, 16, 33)  # only a tail of one, a tail, a whole number of vectors, vectors and a tail
SIGNED = {"int8": 7, "int16": 15, "int32": 31, "int64": 63}
UNSIGNED = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}


def _filled(value: Any, size: int, dtype: str, device: str) -> Tensor:
    """Ones, but the first and the last element are `value`."""
    array = np.ones(size, dtype)
    array[[0, -1]] = np.array(value, dtype)
    return Tensor(array, device=device)


def _ends(result: Tensor) -> list[Any]:
    values = result.numpy()
    return [values[0], values[-1]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [*SIGNED, *UNSIGNED])
def test_integer_division_by_zero(dtype: str, size: int, device: str) -> None:
    """x // 0 = 0 and x % 0 = 0."""
    x, zero = _filled(5, size, dtype, device), _filled(0, size, dtype, device)
    assert _ends(x // zero) == [0, 0]
    assert _ends(x % zero) == [0, 0]
    assert _ends(zero // zero) == [0, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", SIGNED)
def test_smallest_integer(dtype: str, size: int, device: str) -> None:
    """The smallest integer wraps when divided by −1, negated or made absolute."""
    lowest = -(2 ** SIGNED[dtype])
    x, minus_one = _filled(lowest, size, dtype, device), _filled(-1, size, dtype, device)
    assert _ends(x // minus_one) == [lowest, lowest]
    assert _ends(x % minus_one) == [0, 0]
    assert _ends(-x) == [lowest, lowest]
    assert _ends(x.abs()) == [lowest, lowest]
    assert _ends(x - 1) == [2 ** SIGNED[dtype] - 1] * 2


@pytest.mark.parametrize("dtype", SIGNED)
def test_division_floors(dtype: str, device: str) -> None:
    """// rounds down and % has the sign of the divisor; fmod has that of the dividend."""
    x = Tensor(np.array([7, -7, 7, -7, 6, -6, 0], dtype), device=device)
    y = Tensor(np.array([2, 2, -2, -2, 3, 3, -5], dtype), device=device)
    assert (x // y).tolist() == [3, -4, -4, 3, 2, -2, 0]
    assert (x % y).tolist() == [1, 1, -1, -1, 0, 0, 0]
    assert x.fmod(y).tolist() == [1, -1, 1, -1, 0, 0, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [*SIGNED, *UNSIGNED])
def test_shifts(dtype: str, size: int, device: str) -> None:
    """Counts of at least the width give 0, or the sign; so do negative counts."""
    bits = np.dtype(dtype).itemsize * 8
    x = _filled(3, size, dtype, device)
    for count in (bits, bits + 1, 100, *((-1, -bits) if dtype in SIGNED else ())):
        y = _filled(count, size, dtype, device)
        assert _ends(x << y) == [0, 0], count
        assert _ends(x >> y) == [0, 0], count
        if dtype in SIGNED:
            assert _ends((-x) >> y) == [-1, -1], count
    top = _filled(bits - 1, size, dtype, device)
    assert _ends(x << top) == [np.array(-(2 ** (bits - 1))).astype(dtype)] * 2
    assert _ends(x >> _filled(1, size, dtype, device)) == [1, 1]


@pytest.mark.parametrize("size", SIZES)
def test_float_remainders(size: int, device: str) -> None:
    """x % y of floats: the sign of the divisor, NaN for 0 and for infinite dividends."""
    rows = [(5.5, 2.0, 1.5), (-5.5, 2.0, 0.5), (5.5, -2.0, -0.5), (1.0, 0.0, np.nan),
            (np.inf, 2.0, np.nan), (np.nan, 2.0, np.nan)]  # fmt: skip
    for x, y, expected in rows:
        got = _ends(_filled(x, size, "float32", device) % _filled(y, size, "float32", device))
        assert np.array_equal(got, [expected] * 2, equal_nan=True), (x, y, got)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_wins_every_extreme(dtype: str, size: int, device: str) -> None:
    """maximum, minimum, max and min give NaN where either operand or any element is NaN."""
    x = _filled(np.nan, size, dtype, device)
    one = _filled(1, size, dtype, device)
    for result in (x.maximum(one), one.maximum(x), x.minimum(one), one.minimum(x)):
        assert np.isnan(_ends(result)).all()
    assert np.isnan(x.max().item())
    assert np.isnan(x.min().item())


def test_comparisons_with_nan(device: str) -> None:
    """NaN equals nothing and is neither less nor greater; −0 equals 0."""
    x = Tensor(np.array([np.nan, -0.0, 1.0] * 6, np.float32), device=device)
    y = Tensor(np.array([np.nan, 0.0, np.nan] * 6, np.float32), device=device)
    assert (x == y).tolist() == [False, True, False] * 6
    assert (x != y).tolist() == [True, False, True] * 6
    for result in (x < y, x > y):
        assert result.tolist() == [False] * 18
    for result in (x <= y, x >= y):
        assert result.tolist() == [False, True, False] * 6


def test_truth_of_floats(device: str) -> None:
    """NaN and infinities are true, both zeros false."""
    x = Tensor(np.array([np.nan, 0.0, -0.0, np.inf, 1e-45, 0.25], np.float32), device=device)
    assert x.cast("bool").tolist() == [True, False, False, True, True, True]


@pytest.mark.parametrize("size", SIZES)
def test_gather_out_of_range_reads_zero(size: int, device: str) -> None:
    """Without checks, an index beyond either end reads 0, however far."""
    x = Tensor(np.arange(1, 6, dtype=np.float32), device=device)
    for index in (5, 6, 2**30, 2**31 - 1, -1, -5, -(2**31)):
        with Context(BOUNDS=0):
            got = x.gather(0, _filled(index, size, "int32", device)).numpy()
        assert got[0] == 0 and got[-1] == 0
        assert (got[1:-1] == 2).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_reductions_over_nothing(dtype: str, device: str) -> None:
    """Sums give 0, products 1, any False, all True."""
    x = Tensor(np.zeros((3, 0), dtype), device=device)
    assert x.sum(1).tolist() == [0, 0, 0]
    assert x.prod(1).tolist() == [1, 1, 1]
    assert x.any(1).tolist() == [False] * 3
    assert x.all(1).tolist() == [True] * 3


def test_half_sums_accumulate_in_float32(device: str) -> None:
    """4,096 ones and thirds: a sum in float16 would stop at 2,048."""
    for dtype in ("float16", "bfloat16"):
        ones = Tensor(np.ones(4096, np.float32), device=device).cast(dtype)
        assert ones.sum().item() == 4096
