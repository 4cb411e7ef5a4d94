"""Quantized matrices have exactly the elements that PyPI's `gguf` finds in the same bytes, and
products are those of these elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minigrad import Context, GlobalCounters, Tensor
from minigrad.device import Device
from minigrad.nn.gguf_blocks import KINDS, LAYOUTS, quantized
from minigrad.nn.quantized import Quantized, QuantizedStack

gguf: Any = pytest.importorskip("gguf", reason="gguf is not installed: pip install '.[test]'")


def packed(name: str, rows: int, columns: int, seed: int = 0) -> tuple[Quantized, Any]:
    """A matrix of random bytes, except for its float16 fields, and its elements (rows, columns)."""
    generator = np.random.default_rng(seed)
    layout, blocks = LAYOUTS[name], rows * columns // KINDS[name].block
    fields = []
    for field, count in layout.fields:
        some = generator.integers(0, 256, (blocks, count), np.uint8)
        if field in "dm":
            some = generator.standard_normal((blocks, 1)).astype(np.float16).view(np.uint8)
        fields.append(some)
    raw = np.concatenate(fields, 1).reshape(-1)
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(layout.number))
    return quantized(name, Tensor(raw), rows, columns), values.reshape(rows, columns)


def in_bytes(x: Any, group: int, digits: int) -> Any:
    """x (…, columns), each group rounded to `digits` bytes per number, as in products."""
    grouped = x.reshape(*x.shape[:-1], -1, group)
    scale = np.abs(grouped).max(-1, keepdims=True) / np.float32(127 * 256 ** (digits - 1))
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    return (np.round(grouped * inverse) * scale.astype(np.float64)).reshape(x.shape)


def bits(values: Any) -> Any:
    return np.asarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("int8", [0, 1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_products_and_rows(name: str, int8: int, on_device: str) -> None:
    with Context(INT8=int8):
        matrix, values = packed(name, 37, 768)  # the rows do not fill a tile
    assert matrix.shape == (37, 768)
    np.testing.assert_array_equal(bits(matrix.dequantized().numpy()), bits(values))
    for count in (1, 3, 9, 21):
        x = np.random.default_rng(count).standard_normal((1, count, 768)).astype(np.float32)
        got = matrix.product(Tensor(x)).numpy()
        x = in_bytes(x, matrix.kind.group, int8) if int8 else x.astype(np.float64)
        wanted, size = (f(x) @ f(values).T for f in (np.asarray, np.abs))
        # float32 sums in any order: each term may be rounded in every addition
        assert (np.abs(got - wanted) <= (768 + 4) * 2.0**-24 * size).all()
    order = [36, 0, 16, 15, 5]
    np.testing.assert_array_equal(bits(matrix.rows(Tensor([order])).numpy()), bits(values[[order]]))
    some = matrix.select(Tensor(order))
    np.testing.assert_array_equal(bits(some.dequantized().numpy()), bits(values[order]))
    both = Quantized.stack([matrix, some]).dequantized().numpy()
    np.testing.assert_array_equal(bits(both), bits(np.concatenate([values, values[order]])))
    other, more = packed("Q4_0" if name != "Q4_0" else "Q8_0", 5, 768)
    mixed = Quantized.stack([matrix, other])
    assert isinstance(mixed, QuantizedStack) and mixed.shape == (42, 768)
    found = mixed.dequantized().numpy()
    np.testing.assert_array_equal(bits(found), bits(np.concatenate([values, more])))


@pytest.mark.parametrize("int8", [1, 2])
@pytest.mark.parametrize(("name", "rows"), [("Q4_0", 64), ("Q8_0", 64), ("Q2_K", 64), ("Q4_1", 16)])
def test_a_row_is_the_same_among_others(name: str, rows: int, int8: int, on_device: str) -> None:
    """Bit for bit: alone, among a few, in a prompt, and in prompts of varying length."""
    with Context(INT8=int8):
        matrix, _ = packed(name, rows, 2304)  # more groups than are added in one block
    x = np.random.default_rng(1).standard_normal((27, 2304)).astype(np.float32)
    x[3, :64], x[5, 7] = 0, np.nan
    whole = bits(matrix.product(Tensor(x)).numpy())
    finite = np.isfinite(whole.view(np.float32)).all(1)
    assert not finite[5] and finite.sum() == 26
    for count in (1, 2, 5, 13, 16):
        for start in (0, 27 - count):
            some = matrix.product(Tensor(x[start : start + count])).numpy()
            np.testing.assert_array_equal(bits(some), whole[start : start + count])


@pytest.mark.parametrize("int8", [1, 2])
def test_a_product_counts_the_bytes_of_its_matrix(int8: int) -> None:
    """Reports show that number, and it decides how many threads share the product."""
    with Context(INT8=int8):
        matrix, _ = packed("Q4_0", 512, 2304)
    x = Tensor.ones(1, 2304).realize()
    GlobalCounters.reset()
    matrix.product(x).realize()
    assert matrix.nbytes() <= GlobalCounters.global_mem <= 1.1 * matrix.nbytes()


def test_numbers_of_two_bytes_are_as_good_as_float32(on_device: str) -> None:
    """Also if one number of a group is a million times the others, or if all are tiny."""
    with Context(INT8=2):
        matrix, values = packed("Q4_1", 32, 128)
    x = np.random.default_rng(4).standard_normal((5, 128)).astype(np.float32)
    x[1, 40] = 1e6
    x[2] *= 1e-36
    x[3] = 0
    got = matrix.product(Tensor(x)).numpy()
    largest = np.abs(x.reshape(5, 4, 32)).max(2).repeat(32, 1)
    off = (largest / 65024 + np.abs(x) * 2.0**-20) @ np.abs(values).T.astype(np.float64)
    assert (np.abs(got - x.astype(np.float64) @ values.T) <= off + 1e-30).all()


def test_vectors_are_bytes_where_these_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the setting decides otherwise; an invalid setting raises."""
    for fast, setting, digits in ((True, -1, 2), (False, -1, 0), (True, 0, 0), (False, 1, 1)):
        monkeypatch.setattr(Device[Tensor(0).device], "byte_dots", fast)
        with Context(INT8=setting):
            assert packed("Q8_0", 16, 64)[0].digits == digits
    with Context(INT8=3), pytest.raises(ValueError, match="MINIGRAD_INT8=3: expected 0, 1, 2"):
        packed("Q8_0", 16, 64)
