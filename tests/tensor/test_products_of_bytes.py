"""Products of bytes are exact at all shapes: they are added up in 32-bit words."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor, dtypes
from minigrad.device import Device


@pytest.mark.parametrize("matrices", [True, False], ids=["as the device does", "in tiles"])
@pytest.mark.parametrize("shape", [(16, 16, 16), (27, 37, 50), (17, 130, 64), (40, 16, 21)])
def test_products_of_bytes(
    shape: tuple[int, int, int], matrices: bool, on_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On devices with matrix registers, also by the code for processors without them."""
    runtime = Device[on_device]
    monkeypatch.setattr(runtime, "byte_matrices", runtime.byte_matrices and matrices)
    m, k, n = shape
    generator = np.random.default_rng(0)
    a, b = (generator.integers(-128, 128, s).astype(np.int8) for s in ((m, k), (k, n)))
    a[0], b[:, 0] = -128, -128
    wanted = a.astype(np.int64) @ b.astype(np.int64)
    x, y = Tensor(a), Tensor(b)
    np.testing.assert_array_equal(x.matmul(y, dtype=dtypes.int32).numpy(), wanted)
    np.testing.assert_array_equal((x @ y).numpy(), wanted.astype(np.int8))
    # unsigned bytes, which dots do not multiply directly
    c, d = a.view(np.uint8), b.view(np.uint8)
    other = Tensor(c).matmul(Tensor(d), dtype=dtypes.int32).numpy()
    np.testing.assert_array_equal(other, c.astype(np.int64) @ d.astype(np.int64))
    batch = Tensor(np.stack([a, a[::-1]])).matmul(Tensor(np.stack([b, b])), dtype=dtypes.int32)
    np.testing.assert_array_equal(batch.numpy(), np.stack([wanted, wanted[::-1]]))
    mixed = x.matmul(Tensor(d), dtype=dtypes.int32).numpy()
    np.testing.assert_array_equal(mixed, a.astype(np.int64) @ d.astype(np.int64))
    # with elementwise operations fused into the kernel
    more = (x.matmul(y, dtype=dtypes.int32).maximum(-5) * 2).numpy()
    np.testing.assert_array_equal(more, np.maximum(wanted, -5) * 2)
