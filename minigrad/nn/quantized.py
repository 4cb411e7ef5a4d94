"""Quantized matrices: groups of small integers with one scale each, for GGUF files.

They stay quantized in memory. An operation that multiplies by one writes the dequantization as
Tensor operations on the packed bytes, and fusion makes it a prologue of the product.

A file has row after row. Here the bytes of 16 neighbouring rows are interleaved, group by group, so
that the vectors of a product with a vector run across rows. Each lane sums its own row's group, a
scale is multiplied with that sum and not with every element, and no horizontal sum is needed: 7
vector instructions for 32 elements of Q4_1 instead of 10.

Processors with four-way byte dot products (see `schedule/byte_dots.py`) use them here: the other
vectors become integers, too, with a scale for each group, and neighbouring bytes of a row are in
one word. An integer has two bytes: SmolLM2's logits are off by 4e-4 of the largest, a next token's
distribution by 7e-8 nats. With one byte, as in llama.cpp, it is off by 0.003, which changes near
ties. `MINIGRAD_INT8` chooses otherwise.

An element takes 2, 4 or 8 bits of memory. Elements of 3, 5 and 6 bits in a file take the next
larger size, because combining bits from two places would cost a product more than the bytes do.
Bits per element, in a file and in memory:

    Q4_0 4.5, 4.5    Q5_0 5.5, 8.5    Q2_K 2.625, 3.125    Q5_K 5.5, 8.625
    Q4_1 5,   5      Q5_1 6,   9      Q3_K 3.4375, 4.5625  Q6_K 6.5625, 8.5625
    Q8_0 8.5, 8.5                     Q4_K 4.5, 4.625
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minigrad.device import Device
from minigrad.dtype import dtypes
from minigrad.errors import misfit
from minigrad.settings import flag
from minigrad.tensor import Tensor
from minigrad.tensor.templates import templated

SUPER = 256  # elements of a row whose scales share a factor, in kinds with factors
TILE = 16  # rows side by side
BYTE = 256  # the weight of a two-byte integer's high byte
SMALLEST = 2.0**-126  # the smallest normal float32; its inverse is finite
WORD = 4  # adjacent bytes of a row, for processors with four-way byte dots
FEW_ROWS = 4  # for up to so many rows of x, a product reads the packed bytes once per row
MANY_ROWS = 16  # up to so many, x is cut into parts of FEW_ROWS: rows are summed as if alone


@dataclass(frozen=True)
class Kind:
    """How a group of elements is stored: integers q, a scale d, and perhaps a minimum m.

    An element is d · (q − zero) + m. q takes `bits` bits: with 2 or 4 bits, element i shares a byte
    with those a quarter or half of the group further on, the first in the lowest bits. d and m are
    float16; or, if `factors`, an int8 times a float16 that 256 elements share.
    """

    name: str
    bits: int
    zero: int
    minimum: bool
    group: int
    factors: bool

    @property
    def block(self) -> int:
        """The number of columns of a matrix is a multiple of this."""
        return SUPER if self.factors else self.group


class Quantized:
    """A matrix (rows, columns) in groups along its rows, in tiles of 16 rows.

    parts: the stored tensors, in this order, none of them trained. Integers: uint8 (tiles, groups,
    n/4, 16, 4) with n = 32 or 16, or a half or a quarter of that; (tiles, groups, n, 16, 1) if
    products do not use byte dots. Scales, and minima if any: float16 or int8 (tiles, groups, 1, 16,
    1). Factors of scales, and of minima: float16 (tiles, columns/256, 1 or 2, 16, 1). The axis of
    16 is the row in a tile; rows that fill up the last tile are 0.

    digits: bytes for a number of a vector in a product; 0: it stays float32.
    """

    def __init__(self, kind: Kind, rows: int, parts: Sequence[Tensor], digits: int = 0) -> None:
        self.kind, self.digits = kind, digits
        self.quants, *self.scales = parts
        for tensor in parts:
            tensor.requires_grad = False
        self.shape = (rows, self.quants._known_shape()[1] * kind.group)

    @classmethod
    def of_rows(cls, kind: Kind, parts: Sequence[Tensor]) -> Quantized:
        """A matrix from the same parts without tiles: (rows, groups, n) or (rows, columns/256, n).
        """
        rows, digits = parts[0]._known_shape()[0], _digits_on(parts[0].device)
        more = -rows % TILE
        tiles = []
        for number, part in enumerate(parts):
            part = part.pad(((0, more), (0, 0), (0, 0))) if more else part
            count, groups, _ = part._known_shape()
            word = WORD if number == 0 and digits else 1
            tiled = part.reshape(count // TILE, TILE, groups, -1, word).permute(0, 2, 3, 1, 4)
            tiles.append(tiled.contiguous())
        Tensor.realize(*tiles)
        return cls(kind, rows, tiles, digits)

    def parts(self) -> list[Tensor]:
        """The stored tensors."""
        return [self.quants, *self.scales]

    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(math.prod(t._known_shape()) * t.dtype.itemsize for t in self.parts())

    def by_rows(self) -> list[Tensor]:
        """The parts as (rows, groups, n), lazy."""
        rows = [part.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1) for part in self.parts()]
        return [part[: self.shape[0]] for part in rows]

    def select(self, order: Tensor) -> Quantized:
        """The matrix of the rows with the numbers in `order`, integers (count,)."""
        with Tensor.no_grad():
            return self.of_rows(self.kind, [part[order] for part in self.by_rows()])

    @staticmethod
    def stack(matrices: Sequence[Quantized]) -> Quantized | QuantizedStack:
        """Matrices one above the other; of different kinds, as a `QuantizedStack`."""
        first = matrices[0]
        if any(matrix.kind is not first.kind for matrix in matrices):
            return QuantizedStack(matrices)
        with Tensor.no_grad():
            columns = zip(*(matrix.by_rows() for matrix in matrices), strict=True)
            return first.of_rows(first.kind, [Tensor.cat(part, dim=0) for part in columns])

    def dequantized(self) -> Tensor:
        """All elements, float32, lazy: (rows, columns)."""
        return self._dequantized(self.by_rows())

    def rows(self, index: Tensor) -> Tensor:
        """The rows at integers (…) → (…, columns) float32; BoundsError for one that is not a row.
        """
        flat = index._checked(self.shape[0], "Embedding", "rows").reshape(-1)
        tile, lane = flat // TILE, (flat % TILE).reshape(-1, 1, 1, 1, 1)
        parts = []
        for part in self.parts():
            tiles = part._take_places({0: tile}, 0, wraps=False)
            count, groups, words, _, word = tiles._known_shape()
            place = lane.expand(count, groups, words, 1, word)
            parts.append(tiles._at(3, place).reshape(count, groups, words * word))
        return self._dequantized(parts).reshape(*index.shape, self.shape[1])

    def _dequantized(self, parts: list[Tensor]) -> Tensor:
        """Elements (rows, columns) from parts (rows, groups, …)."""
        return Tensor.cat(self._values(parts), dim=-1).reshape(-1, self.shape[1])

    def product(self, x: Tensor) -> Tensor:
        """x·Wᵀ: (…, columns) → (…, rows), float32."""
        rows, columns = self.shape
        if x.shape[-1] != columns:
            raise misfit(f"product with a quantized matrix {self.shape}", f"(…, {columns})", x)
        count = math.prod(x._known_shape()) // columns
        result = _product(x.float().reshape(count, columns), self.kind, self.digits, *self.parts())
        return result[:, :rows].reshape(*x.shape[:-1], rows)

    def _of_bytes(self, x: Tensor) -> Tensor:
        """x·Wᵀ with each group of x as integers times a scale: (count, rows of all tiles)."""
        tiles, groups, words, _, _ = self.quants._known_shape()
        count, pieces = x._known_shape()[0], 8 // self.kind.bits
        whole, scale = _whole(x.reshape(count, groups, -1), self.digits)
        sums = whole.sum(2, dtype=dtypes.int32).reshape(count, 1, groups, 1)
        scale = scale.reshape(count, 1, groups, 1)
        digits = _bytes(whole, self.digits)
        rows = digits.cast(dtypes.int32).reshape(count, 1, groups, -1, pieces, words, 1, WORD)
        terms = [
            rows[:, :, :, :, place] * part.unsqueeze(2).cast(dtypes.int32)
            for place, part in enumerate(_pieces(self.quants, self.kind.bits))
        ]
        first, *others = sum(terms[1:], terms[0]).sum((4, 6), dtype=dtypes.int32).unbind(3)
        dots = first * BYTE + others[0] if others else first
        if self.kind.zero:
            dots = dots - (sums * self.kind.zero).contiguous()
        scales, *minima = [part.reshape(tiles, groups, TILE) for part in self._scales(self.parts())]
        total = dots.float() * scale * scales
        if minima:
            total = total + (sums.float() * scale).contiguous() * minima[0]
        return total.sum(2).reshape(count, tiles * TILE)

    def _of_floats(self, x: Tensor) -> Tensor:
        """x·Wᵀ, float32 (count, columns) → (count, rows of all tiles)."""
        width = self.kind.group * self.kind.bits // 8  # bytes per group
        tiles, groups = self.quants._known_shape()[:2]
        count = x._known_shape()[0]
        few = 1 if self.kind.bits == 8 else FEW_ROWS
        if few < count <= MANY_ROWS:
            return Tensor.cat([self._of_floats(x[at : at + few]) for at in range(0, count, few)])
        stored = [part.squeeze(4) for part in self.parts()]
        pieces = x.reshape(count, groups, 8 // self.kind.bits, width)
        if count > few:
            products = [
                pieces[:, :, place].reshape(count, -1).matmul(
                    part.permute(1, 2, 0, 3).reshape(groups * width, tiles * TILE)
                )
                for place, part in enumerate(self._values(stored))
            ]  # fmt: skip
            return sum(products[1:], products[0])
        # one sum over a group's bytes; each byte gives an element of each piece
        terms = [
            pieces[:, :, place].reshape(1, count, groups, width, 1) * part.unsqueeze(1)
            for place, part in enumerate(self._integers(stored[0]))
        ]
        scales, *minima = [part.reshape(tiles, 1, groups, TILE) for part in self._scales(stored)]
        group = _added(sum(terms[1:], terms[0])) * scales
        if minima:
            whole = pieces.sum((2, 3)).reshape(1, count, groups, 1)
            group = group + whole * minima[0]
        return group.sum(2).transpose(0, 1).reshape(count, tiles * TILE)

    def _values(self, parts: list[Tensor]) -> list[Tensor]:
        """The elements, divided as by `_integers`."""
        scale, *minima = self._scales(parts)
        values = [part * scale for part in self._integers(parts[0])]
        return [value + minima[0] for value in values] if minima else values

    def _scales(self, parts: list[Tensor]) -> list[Tensor]:
        """The scales, and the minima if any, as float32: (…, groups, 1, …)."""
        count = 2 if self.kind.minimum else 1
        scales = [part.float() for part in parts[1 : 1 + count]]
        if not self.kind.factors:
            return scales
        factors = parts[-1].float()
        first, blocks, _, *lanes = factors._known_shape()
        return [
            (
                part.reshape(first, blocks, -1, 1, *lanes)
                * factors[:, :, place : place + 1].unsqueeze(2)
            ).reshape(part.shape)
            for place, part in enumerate(scales)
        ]

    def _integers(self, quants: Tensor) -> list[Tensor]:
        """The integers minus zero, as float32: a group in as many pieces as a byte has integers."""
        bits = self.kind.bits
        wide = quants.cast(dtypes.int32) if bits < 8 else quants  # cast once for all pieces
        values = [piece.float() for piece in _pieces(wide, bits)]
        return [value - self.kind.zero for value in values] if self.kind.zero else values


@templated
def _product(x: Tensor, kind: Kind, digits: int, *parts: Tensor) -> Tensor:
    """x·Wᵀ, float32 (count, columns) → (count, rows of all tiles)."""
    tiles, (count, columns) = parts[0]._known_shape()[0], x._known_shape()
    matrix = Quantized(kind, tiles * TILE, parts, digits)
    if not digits:
        return matrix._of_floats(x)
    if tiles == count == 1:  # such sums would be columns, which are added in blocks
        return matrix._of_bytes(x.expand(2, columns))[:1]
    return matrix._of_bytes(x)


def _pieces(quants: Tensor, bits: int) -> list[Tensor]:
    """The integers in bytes, in pieces: the k-th of each byte for each k."""
    mask, last = (1 << bits) - 1, 8 - bits
    return [*(quants >> place & mask for place in range(0, last, bits)), quants >> last]


def _digits_on(device: str) -> int:
    """Bytes per number of a vector on a device; ValueError for an invalid MINIGRAD_INT8."""
    digits = flag("INT8")
    if not -1 <= digits <= 2:
        raise ValueError(f"MINIGRAD_INT8={digits}: expected 0, 1, 2, or -1 (the fastest exact one)")
    return digits if digits >= 0 else 2 if Device[device].byte_dots else 0


def _whole(groups: Tensor, digits: int) -> tuple[Tensor, Tensor]:
    """Numbers (rows, groups, n) as int32 of `digits` bytes, and scales (rows, groups, 1)."""
    scale = groups.abs().max(-1, keepdim=True) / (127 * BYTE ** (digits - 1))
    inverse = (scale < SMALLEST).where(0, 1 / scale)
    return (groups * inverse).round().cast(dtypes.int32), scale


def _bytes(whole: Tensor, digits: int) -> Tensor:
    """int32 (rows, groups, n) as int8 (rows, groups, digits, n), the higher bytes first."""
    found = whole.unsqueeze(2)
    if digits > 1:
        high = (found + BYTE // 2) >> 8
        lower = Tensor.arange(digits, device=whole.device).reshape(-1, 1) > 0
        found = lower.where(found - (high << 8), high)
    return found.cast(dtypes.int8).contiguous()


class QuantizedStack:
    """Matrices of several kinds, one above the other: (rows, columns)."""

    def __init__(self, matrices: Sequence[Quantized]) -> None:
        self.matrices = list(matrices)
        self.shape = (sum(m.shape[0] for m in matrices), matrices[0].shape[1])

    def dequantized(self) -> Tensor:
        """All elements, float32, lazy: (rows, columns)."""
        return Tensor.cat([matrix.dequantized() for matrix in self.matrices])

    def product(self, x: Tensor) -> Tensor:
        """x·Wᵀ: (…, columns) → (…, rows), float32."""
        return Tensor.cat([matrix.product(x) for matrix in self.matrices], dim=-1)


def _added(terms: Tensor) -> Tensor:
    """Sum over n of (tiles, count, groups, n, 16); for n = 4 without a loop."""
    if terms._known_shape()[3] > 4:
        return terms.sum(3)
    first, *rest = [terms[:, :, :, place] for place in range(4)]
    return sum(rest, first)


class QuantizedLinear:
    """x·Wᵀ + b with a quantized W (out, in); for inference."""

    def __init__(self, weight: Quantized | QuantizedStack, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        y = self.weight.product(x)
        return y if self.bias is None else y + self.bias


class QuantizedEmbedding:
    """A table of vectors (classes, width) that stays quantized."""

    def __init__(self, weight: Quantized) -> None:
        self.weight = weight

    def __call__(self, index: Tensor) -> Tensor:
        """Integers (…) → (…, width)."""
        return self.weight.rows(index)
