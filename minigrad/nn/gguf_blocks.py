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

Fields = dict[str, Tensor]  # uint8 (rows, blocks, bytes)
Parts = list[Tensor]  # (rows, blocks, elements), then (rows, groups or blocks, n)


@dataclass(frozen=True)
class Layout:
    """A type: its number in a file, how many bytes a block has, its parts' places.

    fields: names and bytes, in the order of the file. unpack makes parts of the fields, as
    `Quantized` has them but with an integer in each element of the first; pack is its inverse.
    """

    number: int
    fields: tuple[tuple[str, int], ...]
    unpack: Callable[[Fields], Parts]
    pack: Callable[[Parts], Fields]

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return sum(count for _, count in self.fields)


def packed(name: str, parts: Parts) -> Tensor:
    """The blocks with these parts, as `Layout.unpack` gives them: uint8 (rows, blocks, bytes)."""
    layout = LAYOUTS[name]
    fields = layout.pack(parts)
    first, *rest = [fields[field] for field, _ in layout.fields]
    return first.cat(*rest, dim=2)


def blocks_of(matrix: Quantized) -> bytes:
    """The blocks of a matrix, as they were in the file."""
    kind = matrix.kind
    with Tensor.no_grad():
        integers, *scales = matrix.by_rows()
        if kind.bits < 8:
            integers = spread(integers, kind.bits, integers._known_shape()[2])
        whole = integers.reshape(matrix.shape[0], -1, kind.block)
        return bytes(packed(kind.name, [whole, *scales])._bytes())


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
    """Two bytes (…, 2), the lower first, as a float16 (…, 1)."""
    words = field.cast(dtypes.uint16)
    return (words[..., :1] + (words[..., 1:] << 8)).bitcast(dtypes.float16)


def two_bytes(number: Tensor) -> Tensor:
    """The inverse of `half`."""
    word = number.bitcast(dtypes.uint16)
    return (word & 255).cat(word >> 8, dim=-1).cast(dtypes.uint8)


def _signed(integers: Tensor, zero: int = 0) -> Tensor:
    """As int8, less `zero`."""
    return integers.bitcast(dtypes.int8) - zero if zero else integers.bitcast(dtypes.int8)


def _unsigned(integers: Tensor, zero: int = 0) -> Tensor:
    """The inverse of `_signed`."""
    return (integers + zero if zero else integers).bitcast(dtypes.uint8)


def _of_groups(scales: Tensor) -> Tensor:
    """One for each group, one below the other: (rows, blocks, n) → (rows, blocks · n, 1)."""
    return scales.reshape(scales.shape[0], -1, 1)


def _of_blocks(scales: Tensor, count: int) -> Tensor:
    """The inverse of `_of_groups`, where a block has `count` groups."""
    return scales.reshape(scales.shape[0], -1, count)


def _unpack_q4(f: Fields) -> Parts:
    return [spread(f["q"], 4, 16), *(half(f[name]) for name in "dm" if name in f)]


def _pack_q4(parts: Parts) -> Fields:
    return {"q": gathered(parts[0], 4, 16), **_numbers(parts[1:])}


def _unpack_q5(f: Fields) -> Parts:
    q = spread(f["q"], 4, 16) | spread(f["high"], 1, 1) << 4
    return [q, *(half(f[name]) for name in "dm" if name in f)]


def _pack_q5(parts: Parts) -> Fields:
    high = gathered(parts[0] >> 4, 1, 1)
    return {"q": gathered(parts[0], 4, 16), "high": high, **_numbers(parts[1:])}


def _unpack_q8(f: Fields) -> Parts:
    return [f["q"] ^ 128, half(f["d"])]


def _pack_q8(parts: Parts) -> Fields:
    return {"q": parts[0] ^ 128, **_numbers(parts[1:])}


def _unpack_q2_k(f: Fields) -> Parts:
    scales, minima = f["scales"] & 15, f["scales"] >> 4
    return [spread(f["q"], 2, 32), *_with_minima(f, scales, minima)]


def _pack_q2_k(parts: Parts) -> Fields:
    q, scales, minima, factors = parts
    both = _of_blocks(_unsigned(scales) | _unsigned(minima) << 4, 16)
    return {"q": gathered(q, 2, 32), "scales": both, **_factors(factors)}


def _unpack_q3_k(f: Fields) -> Parts:
    low, high = f["scales"][:, :, :8], f["scales"][:, :, 8:]
    scales = _signed(spread(low, 4, 8) | spread(high, 2, 4) << 4, 32)
    q = spread(f["q"], 2, 32) | spread(f["high"], 1, 32) << 2
    return [q, _of_groups(scales), half(f["d"])]


def _pack_q3_k(parts: Parts) -> Fields:
    q, scales, factors = parts
    six = _of_blocks(_unsigned(scales, 32), 16)
    both = gathered(six, 4, 8).cat(gathered(six >> 4, 2, 4), dim=2)
    high = gathered(q >> 2, 1, 32)
    return {"q": gathered(q, 2, 32), "high": high, "scales": both, "d": two_bytes(factors)}


def _unpack_q4_k(f: Fields) -> Parts:
    return [spread(f["q"], 4, 32), *_with_minima(f, *_unpack_six_bits(f["scales"]))]


def _pack_q4_k(parts: Parts) -> Fields:
    q, scales, minima, factors = parts
    six = _pack_six_bits(scales, minima)
    return {"q": gathered(q, 4, 32), "scales": six, **_factors(factors)}


def _unpack_q5_k(f: Fields) -> Parts:
    q = spread(f["q"], 4, 32) | spread(f["high"], 1, 32) << 4
    return [q, *_with_minima(f, *_unpack_six_bits(f["scales"]))]


def _pack_q5_k(parts: Parts) -> Fields:
    return {**_pack_q4_k(parts), "high": gathered(parts[0] >> 4, 1, 32)}


def _unpack_q6_k(f: Fields) -> Parts:
    q = spread(f["q"], 4, 64) | spread(f["high"], 2, 32) << 4
    return [q, _of_groups(_signed(f["scales"])), half(f["d"])]


def _pack_q6_k(parts: Parts) -> Fields:
    q, scales, factors = parts
    return {"q": gathered(q, 4, 64), "high": gathered(q >> 4, 2, 32),
            "scales": _of_blocks(_unsigned(scales), 16), "d": two_bytes(factors)}  # fmt: skip


def _numbers(parts: Parts) -> Fields:
    """A scale, and a minimum if any."""
    return {name: two_bytes(part) for name, part in zip("dm", parts, strict=False)}


def _with_minima(f: Fields, scales: Tensor, minima: Tensor) -> Parts:
    """Scales, minima and the factors of both; a file's minima are subtracted."""
    factors = half(f["d"]).cat(-half(f["m"]), dim=2)
    return [_of_groups(_signed(scales)), _of_groups(_signed(minima)), factors]


def _factors(factors: Tensor) -> Fields:
    """What `_with_minima` made factors of."""
    return {"d": two_bytes(factors[:, :, :1]), "m": two_bytes(-factors[:, :, 1:])}


def _unpack_six_bits(field: Tensor) -> tuple[Tensor, Tensor]:
    """8 scales and 8 minima of 12 bytes.

    The first 4 of each are in bytes of their own, whose upper 2 bits belong to the others; the
    lower 4 of those are in the last bytes.
    """
    scales, minima, low = (field[:, :, start : start + 4] for start in (0, 4, 8))
    return (
        (scales & 63).cat(low & 15 | scales >> 6 << 4, dim=2),
        (minima & 63).cat(low >> 4 | minima >> 6 << 4, dim=2),
    )


def _pack_six_bits(scales: Tensor, minima: Tensor) -> Tensor:
    """The inverse of `_unpack_six_bits`, for one of each in a group."""
    both = [_of_blocks(_unsigned(part), 8) for part in (scales, minima)]
    first = [part[:, :, :4] | part[:, :, 4:] >> 4 << 6 for part in both]
    last = both[0][:, :, 4:] & 15 | (both[1][:, :, 4:] & 15) << 4
    return first[0].cat(first[1], last, dim=2)


def _layout(
    number: int, unpack: Callable[[Fields], Parts], pack: Callable[[Parts], Fields], **fields: int
) -> Layout:
    return Layout(number, tuple(fields.items()), unpack, pack)


LAYOUTS = {
    "Q4_0": _layout(2, _unpack_q4, _pack_q4, d=2, q=16),
    "Q4_1": _layout(3, _unpack_q4, _pack_q4, d=2, m=2, q=16),
    "Q5_0": _layout(6, _unpack_q5, _pack_q5, d=2, high=4, q=16),
    "Q5_1": _layout(7, _unpack_q5, _pack_q5, d=2, m=2, high=4, q=16),
    "Q8_0": _layout(8, _unpack_q8, _pack_q8, d=2, q=32),
    "Q2_K": _layout(10, _unpack_q2_k, _pack_q2_k, scales=16, q=64, d=2, m=2),
    "Q3_K": _layout(11, _unpack_q3_k, _pack_q3_k, high=32, q=64, scales=12, d=2),
    "Q4_K": _layout(12, _unpack_q4_k, _pack_q4_k, d=2, m=2, scales=12, q=128),
    "Q5_K": _layout(13, _unpack_q5_k, _pack_q5_k, d=2, m=2, scales=12, high=32, q=128),
    "Q6_K": _layout(14, _unpack_q6_k, _pack_q6_k, q=128, high=64, scales=16, d=2),
}
