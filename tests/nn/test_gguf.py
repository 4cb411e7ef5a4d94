"""Files of GGUF against PyPI's `gguf`: each reads what the other writes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import OTHER

from minigrad import Tensor
from minigrad.errors import ShapeError
from minigrad.nn.gguf import GGUFError, gguf_load, gguf_read
from minigrad.nn.gguf_blocks import KINDS, LAYOUTS, blocks_of, quantized
from minigrad.nn.gguf_quantize import quantize
from minigrad.nn.gguf_write import Entry, gguf_save, value_of
from minigrad.nn.quantized import Quantized

gguf: Any = pytest.importorskip("gguf", reason="gguf is not installed: pip install '.[test]'")


def dequantized(name: str, raw: bytes, columns: int) -> Any:
    kind = gguf.GGMLQuantizationType(LAYOUTS[name].number)
    return gguf.quants.dequantize(np.frombuffer(raw, np.uint8), kind).reshape(-1, columns)


@pytest.mark.parametrize("name", KINDS)
def test_blocks_are_packed_as_they_were(name: str, on_device: str) -> None:
    layout, start = LAYOUTS[name], 0
    raw = np.random.default_rng(0).integers(0, 256, (5 * 3, layout.bytes), np.uint8)
    for field, count in layout.fields:
        if field in "dm":  # finite, since a NaN has many representations
            raw[:, start + 1] &= 0xBF
        start += count
    matrix = quantized(name, Tensor(raw.reshape(-1)), 5, 3 * KINDS[name].block)
    assert blocks_of(matrix) == raw.tobytes()


# Bounds of the root mean squared error for normal numbers; an optimal quantizer of independent
# normal numbers with 2 bits has 0.343, with 3 bits 0.186, with 4 bits 0.098 (Max, 1960).
ERRORS = {"Q4_0": 0.083, "Q4_1": 0.073, "Q5_0": 0.042, "Q5_1": 0.036, "Q8_0": 0.006, "Q2_K": 0.29,
          "Q3_K": 0.15, "Q4_K": 0.075, "Q5_K": 0.038, "Q6_K": 0.019}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_rounding(name: str, on_device: str) -> None:
    values = np.random.default_rng(1).standard_normal((24, 512)).astype(np.float32)
    found = dequantized(name, quantize(name, Tensor(values)), 512)
    assert np.sqrt(((found - values) ** 2).mean()) < ERRORS[name]
    # groups that hardly determine their scale: one value, one sign, few nonzero values
    special = np.zeros((6, 256), np.float32)
    special[1], special[2], special[3] = 0.5, -0.1, np.abs(values[0, :256])
    special[4, ::32], special[5] = -3, 1e-9
    found = dequantized(name, quantize(name, Tensor(special)), 256)
    assert (found[0] == 0).all()
    # half a step of groups of one sign (8 steps in Q4_0, 4 in Q3_K and Q2_K), and a little more
    near = np.abs(special).max(1) / {"Q2_K": 5, "Q3_K": 5}.get(name, 12)
    assert (np.abs(found - special).max(1) <= near + 1e-7).all()


@pytest.mark.parametrize("name", KINDS)
def test_the_largest_values_and_the_smallest(name: str, on_device: str) -> None:
    values = np.random.default_rng(3).choice([65504.0, -65504.0, 60000.0, 0.0], (3, 256))
    values = (values * [[1], [1e-30 / 65504], [1e-40 / 65504]]).astype(np.float32)
    found = dequantized(name, quantize(name, Tensor(values)), 256)
    # half a step, or the clipping above: there is one more negative integer than positive ones
    near = 65504 / {"Q2_K": 2, "Q3_K": 3}.get(name, 7)
    assert np.abs(found[0] - values[0]).max() < near
    assert (found[1:] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_no_scale_reaches(value: float) -> None:
    values = np.zeros((1, 256), np.float32)
    values[0, 7] = value
    with pytest.raises(ValueError, match="has values as large as"):
        quantize("Q4_K", Tensor(values))


def test_rows_that_are_no_whole_blocks() -> None:
    with pytest.raises(ShapeError, match="Q4_K: expected rows in multiples of 256, got 288"):
        quantize("Q4_K", Tensor.zeros(2, 288))


METADATA: dict[str, Any] = {
    "general.architecture": "llama", "llama.block_count": 3, "llama.rope.freq_base": 0.5,
    "tokenizer.ggml.tokens": ["a", "ö"], "tokenizer.ggml.token_type": [1, -3], "a.flag": True,
    "tokenizer.ggml.scores": [0.25, -2.0], "an.empty.list": [],
}  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    values = generator.standard_normal((3, 256)).astype(np.float32)
    raws = {name: quantize(name, Tensor(values)) for name in KINDS}
    entries = [
        Entry(name, (3, 256), LAYOUTS[name].number, lambda raw=raw: raw)  # type: ignore[misc]
        for name, raw in raws.items()
    ]
    odd = values[0, :5]
    entries.insert(1, Entry("odd", (5,), 0, odd.tobytes))
    path = tmp_path / "f.gguf"
    size = gguf_save(path, {key: value_of(value) for key, value in METADATA.items()}, entries)
    assert path.stat().st_size == size
    reader = gguf.GGUFReader(path)
    read = {field: reader.get_field(field).contents() for field in METADATA}
    assert read == METADATA
    for tensor in reader.tensors:
        assert tensor.data_offset % 32 == 0
        if tensor.name in KINDS:
            assert tensor.tensor_type.name == tensor.name and tensor.shape.tolist() == [256, 3]
            assert tensor.data.tobytes() == raws[tensor.name]
    metadata, tensors = gguf_read(path)
    assert {key: metadata[key].plain for key in METADATA} == METADATA
    np.testing.assert_array_equal(tensors["odd"].numpy(), odd)  # type: ignore[union-attr]
    for name, raw in raws.items():
        matrix = tensors[name]
        assert isinstance(matrix, Quantized)
        np.testing.assert_array_equal(matrix.dequantized().numpy(), dequantized(name, raw, 256))
    with pytest.raises(GGUFError, match=r"'x': expected 8 bytes, got 4"):
        gguf_save(path, {}, [Entry("x", (2,), 0, lambda: bytes(4))])
    assert path.stat().st_size == size  # the earlier file stays


def in_parts(folder: Path, tensors: int = 5) -> tuple[list[Path], dict[str, Any]]:
    """Files with two tensors each, by PyPI's gguf."""
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=2)
    writer.add_block_count(3)
    values = {f"t{n}": np.full((2, 32), n + 0.5, np.float32) for n in range(tensors)}
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf")), values


def test_files_in_parts(tmp_path: Path) -> None:
    files, values = in_parts(tmp_path)
    assert [file.name for file in files] == [f"m-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    for file in files:
        metadata, tensors = gguf_load(file)
        assert metadata["llama.block_count"] == 3
        assert {name: t.numpy().tolist() for name, t in tensors.items()} == {  # type: ignore[union-attr]
            name: value.tolist() for name, value in values.items()
        }
    _, elsewhere = gguf_load(files[1], OTHER)
    assert {tensor.device for tensor in elsewhere.values()} == {OTHER}  # type: ignore[union-attr]


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    files, _ = in_parts(tmp_path)
    first, second, third = (file.read_bytes() for file in files)
    number = struct.pack("<Q", 8) + b"split.no" + struct.pack("<I", gguf.GGUFValueType.UINT16)

    def refused(message: str, path: Path = files[0]) -> None:
        with pytest.raises(GGUFError, match=message) as raised:
            gguf_load(path)
        assert "\n" not in str(raised.value)

    files[1].write_bytes(third)
    refused(r"00002-of-00003\.gguf: expected part number 1 in its metadata, got 2")
    place = third.index(number) + len(number)
    files[1].write_bytes(first[: first.index(number) + len(number)] + b"\1"
                         + first[first.index(number) + len(number) + 1 :])  # fmt: skip
    refused("the tensor 't0' is in .* and in an earlier part")
    files[1].write_bytes(second)
    files[2].write_bytes(third[: place + 40])
    refused(r"00003-of-00003\.gguf: cannot read this GGUF file")
    files[2].unlink()
    refused(r"m-00003-of-00003\.gguf is missing")
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(first)
    refused("is one of 1 files by its name, but its metadata say 3", alone)
    outside = tmp_path / "m-00004-of-00003.gguf"
    outside.write_bytes(first)
    refused("the name says part 4 of 3", outside)
    two = [tmp_path / f"n-{n:05}-of-00002.gguf" for n in (1, 2)]
    for path, raw in zip(two, (first, second), strict=True):
        path.write_bytes(raw)
    refused("is one of 2 files by its name, but its metadata say 3", two[0])
