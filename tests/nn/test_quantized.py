"""Quantized matrices give what their elements, worked out by numpy from the file's bytes, give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.nn.quantized import BLOCK, KINDS, Kind, Quantized


def packed(kind: Kind, rows: int, blocks: int) -> tuple[Quantized, Any]:
    """A random matrix as a file has it, and its elements (rows, columns)."""
    generator = np.random.default_rng(0)
    raw = generator.integers(0, 256, (rows, blocks, kind.bytes_per_block)).astype(np.uint8)
    numbers = [generator.standard_normal((rows, blocks, 1)).astype(np.float16) for _ in range(2)]
    raw[:, :, :2] = numbers[0].view(np.uint8)
    start = 2
    if kind.minimum:
        raw[:, :, 2:4], start = numbers[1].view(np.uint8), 4
    q: Any = raw[:, :, start:]
    q = np.concatenate([q & 15, q >> 4], 2) if kind.halves else q.view(np.int8)
    values = (q.astype(np.float32) - kind.zero) * numbers[0]
    values = values + numbers[1] if kind.minimum else values
    matrix = Quantized.unpack(kind, Tensor(raw.reshape(-1)), (rows, blocks * BLOCK))
    return matrix, values.reshape(rows, -1).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_rows_that_do_not_fill_a_tile(kind: Kind, on_device: str) -> None:
    matrix, values = packed(kind, 37, 3)
    assert matrix.shape == (37, 96)
    np.testing.assert_allclose(matrix.dequantized().numpy(), values, rtol=1e-6)
    for count in (1, 3, 9):
        x = np.random.default_rng(count).standard_normal((1, count, 96)).astype(np.float32)
        got = matrix.product(Tensor(x)).numpy()
        wanted, size = (f(x).astype(np.float64) @ f(values).T for f in (np.asarray, np.abs))
        # a sum of float32, in any order: each of its terms may be rounded that often
        assert (np.abs(got - wanted) <= (96 + 4) * 2.0**-24 * size).all()
    order = [36, 0, 16, 15, 5]
    np.testing.assert_allclose(matrix.rows(Tensor([order])).numpy(), values[[order]], rtol=1e-6)
    some = matrix.select(Tensor(order))
    np.testing.assert_allclose(some.dequantized().numpy(), values[order], rtol=1e-6)
    both = Quantized.stack([matrix, some])
    wanted = np.concatenate([values, values[order]])
    np.testing.assert_allclose(both.dequantized().numpy(), wanted, rtol=1e-6)
