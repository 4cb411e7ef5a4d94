"""How GGUF's quantized types lie in a file's bytes, and in which form `Quantized` keeps them.

Layouts as in ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml. A row is divided
into blocks of 32 or 256 elements; a block has float16 numbers, and integers of 1 to 8 bits whose
bits may be in two places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.nn.quantized import KINDS, Kind, Quantized
from minigrad.tensor import Tensor

# Integers, and scales or minima as integers or float16; of a block each: (blocks, groups, n).
Parts = list[Tensor]


@dataclass(frozen=True)
class Layout:
    """A type: its number in a file, how many bytes a block has, its parts' places.

    fields: names and bytes, in the order of the file. unpack makes parts of the fields, as
    `Quantized` has them but with an integer in each element of the first.
    """

    number: int
    fields: tuple[tuple[str, int], ...]
    unpack: Callable[[dict[str, Tensor]], Parts]

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return sum(count for _, count in self.fields)


def quantized(name: str, raw: Tensor, rows: int, columns: int) -> Quantized:
    """The matrix (rows, columns) whose blocks are in raw, uint8 (bytes,)."""
    kind, layout = KINDS[name], LAYOUTS[name]
    with Tensor.no_grad():
        blocks = raw.reshape(rows, columns // kind.block, layout.bytes)
        fields, start = {}, 0
        for field, count in layout.fields:
            fields[field] = blocks[:, :, start : start + count]
            start += count
        integers, *scales = layout.unpack(fields)
        groups = integers.reshape(rows, columns // kind.group, kind.group)
        return Quantized.of_rows(kind, [_dense(kind, groups), *scales])


def _dense(kind: Kind, integers: Tensor) -> Tensor:
    """(rows, groups, elements) → (rows, groups, bytes), several integers in a byte."""
    count = 8 // kind.bits
    if count == 1:
        return integers
    rows, groups, elements = integers._known_shape()
    pieces = integers.reshape(rows, groups, count, elements // count)
    result = pieces[:, :, 0]
    for place in range(1, count):
        result = result | pieces[:, :, place] << (place * kind.bits)
    return result


def spread(field: Tensor, bits: int, run: int) -> Tensor:
    """The integers of `bits` each that share bytes: (rows, blocks, bytes) → (…, 8/bits as many).

    A run of bytes has 8/bits runs of integers, the first one lowest.
    """
    rows, blocks, count = field._known_shape()
    runs = field.reshape(rows, blocks, count // run, run)
    first, *rest = [runs >> place & (1 << bits) - 1 for place in range(0, 8, bits)]
    return first.stack(*rest, dim=3).reshape(rows, blocks, -1)


def half(field: Tensor) -> Tensor:
    """Two bytes (…, 2), the lower first, as a float16 (…, 1)."""
    words = field.cast(dtypes.uint16)
    return (words[..., :1] + (words[..., 1:] << 8)).bitcast(dtypes.float16)


def _signed(integers: Tensor, zero: int = 0) -> Tensor:
    """As int8, less `zero`."""
    return integers.bitcast(dtypes.int8) - zero if zero else integers.bitcast(dtypes.int8)


def _groups(scales: Tensor) -> Tensor:
    """One for each group, side by side: (rows, blocks, n) → (rows, blocks · n, 1)."""
    return scales.reshape(scales.shape[0], -1, 1)


def _q4(f: dict[str, Tensor]) -> Parts:
    return [spread(f["q"], 4, 16), *(half(f[name]) for name in "dm" if name in f)]


def _q5(f: dict[str, Tensor]) -> Parts:
    q = spread(f["q"], 4, 16) | spread(f["high"], 1, 1) << 4
    zero = 0 if "m" in f else 16
    return [_signed(q, zero), *(half(f[name]) for name in "dm" if name in f)]


def _q8(f: dict[str, Tensor]) -> Parts:
    return [_signed(f["q"]), half(f["d"])]


def _q2_k(f: dict[str, Tensor]) -> Parts:
    scales, minima = f["scales"] & 15, f["scales"] >> 4
    return [spread(f["q"], 2, 32), *_with_minima(f, scales, minima)]


def _q3_k(f: dict[str, Tensor]) -> Parts:
    low, high = f["scales"][:, :, :8], f["scales"][:, :, 8:]
    scales = _signed(spread(low, 4, 8) | spread(high, 2, 4) << 4, 32)
    q = spread(f["q"], 2, 32) | spread(f["high"], 1, 32) << 2
    return [q, _groups(scales), half(f["d"])]


def _q4_k(f: dict[str, Tensor]) -> Parts:
    return [spread(f["q"], 4, 32), *_with_minima(f, *_six_bits(f["scales"]))]


def _q5_k(f: dict[str, Tensor]) -> Parts:
    q = spread(f["q"], 4, 32) | spread(f["high"], 1, 32) << 4
    return [_signed(q), *_with_minima(f, *_six_bits(f["scales"]))]


def _q6_k(f: dict[str, Tensor]) -> Parts:
    q = spread(f["q"], 4, 64) | spread(f["high"], 2, 32) << 4
    return [_signed(q, 32), _groups(_signed(f["scales"])), half(f["d"])]


def _six_bits(field: Tensor) -> tuple[Tensor, Tensor]:
    """8 scales and 8 minima of 12 bytes: 4 whole ones each, which also have others' upper bits."""
    scales, minima, low = (field[:, :, start : start + 4] for start in (0, 4, 8))
    return (
        (scales & 63).cat(low & 15 | scales >> 6 << 4, dim=2),
        (minima & 63).cat(low >> 4 | minima >> 6 << 4, dim=2),
    )


def _with_minima(f: dict[str, Tensor], scales: Tensor, minima: Tensor) -> Parts:
    """Scales, minima and the factors of both; a file's minima are subtracted."""
    factors = half(f["d"]).cat(-half(f["m"]), dim=2)
    return [_groups(_signed(scales)), _groups(_signed(minima)), factors]


def _layout(number: int, unpack: Callable[[dict[str, Tensor]], Parts], **fields: int) -> Layout:
    return Layout(number, tuple(fields.items()), unpack)


LAYOUTS = {
    "Q4_0": _layout(2, _q4, d=2, q=16),
    "Q4_1": _layout(3, _q4, d=2, m=2, q=16),
    "Q5_0": _layout(6, _q5, d=2, high=4, q=16),
    "Q5_1": _layout(7, _q5, d=2, m=2, high=4, q=16),
    "Q8_0": _layout(8, _q8, d=2, q=32),
    "Q2_K": _layout(10, _q2_k, scales=16, q=64, d=2, m=2),
    "Q3_K": _layout(11, _q3_k, high=32, q=64, scales=12, d=2),
    "Q4_K": _layout(12, _q4_k, d=2, m=2, scales=12, q=128),
    "Q5_K": _layout(13, _q5_k, d=2, m=2, scales=12, high=32, q=128),
    "Q6_K": _layout(14, _q6_k, q=128, high=64, scales=16, d=2),
}
