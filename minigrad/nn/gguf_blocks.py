"""The memory layout of GGUF's quantized types, in a file and in `Quantized`.

Layouts as in ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml. A row is divided
into blocks of 32 or 256 elements. A block has float16 numbers, and integers of 1 to 8 bits whose
bits may be in two places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.nn.quantized import SUPER, Kind, Quantized
from minigrad.tensor import Tensor

Fields = dict[str, Tensor]  # name → uint8 (rows, blocks, bytes)
Parts = list[Tensor]  # (rows, blocks, elements), then (rows, groups or blocks, n)


@dataclass(frozen=True)
class Codec:
    """How scales, and minima if any, of a block share bytes: uint8, each (rows, blocks, groups).

    most: the largest scale. zero: the stored number that means a scale of 0.
    """

    unpack: Callable[[Tensor], Parts]
    pack: Callable[..., Tensor]
    groups: int
    most: int
    zero: int = 0


class Layout:
    """A quantized type: its number in a file, and a block's fields (names and bytes), in order.

    Fields, by name: d, the scale, or in K types a factor of the scales; m, the minimum, or a factor
    of the minima; scales, the numbers that have factors; q and high, the lower and upper bits of
    integers. In q, each integer has `bits` adjacent bits; `run` bytes hold 8/bits runs of integers,
    the first in the lowest bits. In high, the number of bits follows from the number of bytes; runs
    are `high_run`.
    """

    def __init__(
        self, number: int, bits: int, run: int, high_run: int = 0, codec: Codec | None = None,
        **fields: int,
    ) -> None:  # fmt: skip
        self.number, self.codec, self.fields = number, codec, tuple(fields.items())
        self.bytes = sum(fields.values())  # per block
        # (name, bits, run, bits in previous fields) of each field of integers
        self.integers = [("q", bits, run, 0)]
        if high_run:
            self.integers.append(("high", bits * fields["high"] // fields["q"], high_run, bits))
        self.bits = sum(each for _, each, _, _ in self.integers)

    def kind(self, name: str) -> Kind:
        """The kind in `Quantized`: integers of 3, 5 and 6 bits take 4, 8 and 8 bits."""
        minimum, bits = "m" in dict(self.fields), next(n for n in (2, 4, 8) if n >= self.bits)
        zero, group = 0 if minimum else 1 << (self.bits - 1), 32
        if self.codec is not None:
            group = SUPER // self.codec.groups
        return Kind(name, bits, zero, minimum, group, self.codec is not None)

    def unpack(self, fields: Fields) -> Parts:
        """The parts as in `Quantized`, but with each integer in its own element."""
        halves = [half(fields[name]) for name in "dm" if name in fields]
        q, *upper = [spread(fields[name], bits, run) << by for name, bits, run, by in self.integers]
        for more in upper:
            q = q | more
        if self.codec is None:
            return [q ^ 128 if self.integers[0][1] == 8 else q, *halves]
        scales = [part.bitcast(dtypes.int8) - self.codec.zero
                  for part in self.codec.unpack(fields["scales"])]  # fmt: skip
        factors = halves[0].cat(-halves[1], dim=2) if len(halves) > 1 else halves[0]
        return [q, *(part.reshape(part.shape[0], -1, 1) for part in scales), factors]

    def pack(self, parts: Parts) -> Fields:
        """The inverse of `unpack`. Minima are stored with the opposite sign."""
        q, *rest = parts
        q = q ^ 128 if self.integers[0][1] == 8 else q
        found = {name: gathered(q >> below, bits, run) for name, bits, run, below in self.integers}
        if self.codec is not None:
            rows, blocks, _ = q._known_shape()
            scales = [(part + self.codec.zero).bitcast(dtypes.uint8).reshape(rows, blocks, -1)
                      for part in rest[:-1]]  # fmt: skip
            found["scales"] = self.codec.pack(*scales)
            factors = rest[-1]
            rest = [factors[:, :, :1], -factors[:, :, 1:]][: len(scales)]
        return found | {name: two_bytes(part) for name, part in zip("dm", rest, strict=False)}


def packed(name: str, parts: Parts) -> Tensor:
    """The blocks with these parts (of `Layout.unpack`): uint8 (rows, blocks, bytes)."""
    layout = LAYOUTS[name]
    fields = layout.pack(parts)
    return Tensor.cat([fields[field] for field, _ in layout.fields], dim=2)


def blocks_of(matrix: Quantized) -> bytes:
    """The blocks of a matrix, as in the file."""
    kind = matrix.kind
    with Tensor.no_grad():
        integers, *scales = matrix.by_rows()
        if kind.bits < 8:
            integers = spread(integers, kind.bits, integers._known_shape()[2])
        whole = integers.reshape(matrix.shape[0], -1, kind.block)
        return bytes(packed(kind.name, [whole, *scales])._bytes())


def quantized(name: str, raw: Tensor, rows: int, columns: int) -> Quantized:
    """The matrix (rows, columns) whose blocks are in `raw`, uint8 (bytes,)."""
    kind, layout = KINDS[name], LAYOUTS[name]
    with Tensor.no_grad():
        blocks = raw.reshape(rows, columns // kind.block, layout.bytes)
        fields, start = {}, 0
        for field, count in layout.fields:
            fields[field] = blocks[:, :, start : start + count]
            start += count
        integers, *scales = layout.unpack(fields)
        groups = integers.reshape(rows, columns // kind.group, kind.group)
        dense = gathered(groups, kind.bits, kind.group * kind.bits // 8)
        return Quantized.of_rows(kind, [dense, *scales])


def spread(field: Tensor, bits: int, run: int) -> Tensor:
    """Unpack integers of `bits` bits from bytes: (rows, blocks, bytes) → (…, 8/bits times as many).

    A run of bytes holds 8/bits runs of integers, the first in the lowest bits.
    """
    rows, blocks, count = field._known_shape()
    runs = field.reshape(rows, blocks, count // run, run)
    parts = [runs >> place & (1 << bits) - 1 for place in range(0, 8, bits)]
    return Tensor.stack(parts, dim=3).reshape(rows, blocks, -1)


def gathered(integers: Tensor, bits: int, run: int) -> Tensor:
    """The inverse of `spread`: (rows, blocks, elements) → (rows, blocks, bytes)."""
    rows, blocks, count = integers._known_shape()
    most = (1 << bits) - 1
    runs = (integers & most).reshape(rows, blocks, -1, 8 // bits, run)
    result = runs[:, :, :, 0]
    for place in range(1, 8 // bits):
        result = result | runs[:, :, :, place] << (place * bits)
    return result.reshape(rows, blocks, count * bits // 8)


def half(field: Tensor) -> Tensor:
    """Two bytes (…, 2), lower one first, as a float16 (…, 1)."""
    words = field.cast(dtypes.uint16)
    return (words[..., :1] + (words[..., 1:] << 8)).bitcast(dtypes.float16)


def two_bytes(number: Tensor) -> Tensor:
    """The inverse of `half`."""
    word = number.bitcast(dtypes.uint16)
    return (word & 255).cat(word >> 8, dim=-1).cast(dtypes.uint8)


def _unpack_six_bits(field: Tensor) -> Parts:
    """8 scales and 8 minima from 12 bytes.

    The first 4 of each have a byte of their own, whose upper 2 bits belong to the other 4; the
    lower 4 bits of these are in the last 4 bytes.
    """
    scales, minima, low = (field[:, :, start : start + 4] for start in (0, 4, 8))
    return [
        (scales & 63).cat(low & 15 | scales >> 6 << 4, dim=2),
        (minima & 63).cat(low >> 4 | minima >> 6 << 4, dim=2),
    ]


def _pack_six_bits(scales: Tensor, minima: Tensor) -> Tensor:
    """The inverse of `_unpack_six_bits`."""
    first = [part[:, :, :4] | part[:, :, 4:] >> 4 << 6 for part in (scales, minima)]
    last = scales[:, :, 4:] & 15 | (minima[:, :, 4:] & 15) << 4
    return first[0].cat(first[1], last, dim=2)


_BYTES = Codec(lambda field: [field], lambda scales: scales, 16, 127)
_NIBBLES = Codec(lambda field: [field & 15, field >> 4], lambda low, high: low | high << 4, 16, 15)
_SIX_BITS = Codec(_unpack_six_bits, _pack_six_bits, 8, 63)
_SCALES_OF_SIX_BITS = Codec(
    lambda field: [spread(field[:, :, :8], 4, 8) | spread(field[:, :, 8:], 2, 4) << 4],
    lambda scales: gathered(scales, 4, 8).cat(gathered(scales >> 4, 2, 4), dim=2), 16, 31, zero=32,
)  # fmt: skip
LAYOUTS = {
    "Q4_0": Layout(2, 4, 16, d=2, q=16),
    "Q4_1": Layout(3, 4, 16, d=2, m=2, q=16),
    "Q5_0": Layout(6, 4, 16, 1, d=2, high=4, q=16),
    "Q5_1": Layout(7, 4, 16, 1, d=2, m=2, high=4, q=16),
    "Q8_0": Layout(8, 8, 32, d=2, q=32),
    "Q2_K": Layout(10, 2, 32, codec=_NIBBLES, scales=16, q=64, d=2, m=2),
    "Q3_K": Layout(11, 2, 32, 32, _SCALES_OF_SIX_BITS, high=32, q=64, scales=12, d=2),
    "Q4_K": Layout(12, 4, 32, codec=_SIX_BITS, d=2, m=2, scales=12, q=128),
    "Q5_K": Layout(13, 4, 32, 32, _SIX_BITS, d=2, m=2, scales=12, high=32, q=128),
    "Q6_K": Layout(14, 4, 64, 32, _BYTES, q=128, high=64, scales=16, d=2),
}
KINDS = {name: layout.kind(name) for name, layout in LAYOUTS.items()}
