"""Matrices kept in few bits: blocks of 32 small integers with a scale each, as GGUF stores them.

They stay so in memory. What multiplies by one writes the dequantization as Tensor operations on the
packed bytes, and fusion makes it a prologue of the product.

A file has row after row. Here the bytes of 16 neighbouring rows lie side by side, block by block:
vectors of a product with a vector then run across rows. Each lane adds up its own row's block, a
scale is multiplied with that sum and not with every element, and no vector is summed up at the end:
7 vector instructions for 32 elements of Q4_1 instead of 10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.errors import DTypeError, ShapeError
from minigrad.tensor import Tensor

BLOCK = 32  # elements of a row that share a scale
TILE = 16  # rows that lie side by side
FEW_ROWS = 4  # up to so many rows of x, a product reads the packed bytes once for each of them


@dataclass(frozen=True)
class Kind:
    """How a block of 32 is stored: a float16 scale d, a float16 minimum m if any, integers q.

    halves: two 4-bit integers share a byte, i and i + 16 of the block; otherwise one int8 each.
    An element is d · (q − zero) + m.
    """

    name: str
    halves: bool
    zero: int = 0
    minimum: bool = False

    @property
    def bytes_per_block(self) -> int:
        """Bytes of a block in a file."""
        return 2 + 2 * self.minimum + (BLOCK // 2 if self.halves else BLOCK)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("Q4_0", halves=True, zero=8),
        Kind("Q4_1", halves=True, minimum=True),
        Kind("Q8_0", halves=False),
    )
}


class Quantized:
    """A matrix (rows, columns) in blocks along its rows, in tiles of 16 rows.

    quants: (tiles, blocks, 16, 16) uint8, two to a byte, or (tiles, blocks, 32, 16) int8; scales
    and minima (or None): (tiles, blocks, 1, 16) float16. The last axis is the row in the tile; rows
    that fill up the last tile are 0. None of them is trained.
    """

    def __init__(
        self, kind: Kind, rows: int, quants: Tensor, scales: Tensor, minima: Tensor | None
    ) -> None:
        self.kind = kind
        self.quants, self.scales, self.minima = quants, scales, minima
        for tensor in self.parts():
            tensor.requires_grad = False
        self.shape = (rows, quants._known_shape()[1] * BLOCK)

    @classmethod
    def unpack(cls, kind: Kind, raw: Tensor, shape: tuple[int, int]) -> Quantized:
        """From a file's blocks: raw uint8 (bytes,), shape (rows, columns)."""
        rows, columns = shape
        if columns % BLOCK:
            raise ShapeError(f"{kind.name}: rows of {columns} are no whole blocks of {BLOCK}")
        with Tensor.no_grad():
            blocks = raw.reshape(rows, columns // BLOCK, kind.bytes_per_block)
            start = 4 if kind.minimum else 2
            scales = _half(blocks[:, :, :2])
            minima = _half(blocks[:, :, 2:4]) if kind.minimum else None
            quants = blocks[:, :, start:]
            if not kind.halves:
                quants = quants.bitcast(dtypes.int8)
            return cls._of_rows(kind, [quants, scales] + ([] if minima is None else [minima]))

    @classmethod
    def _of_rows(cls, kind: Kind, parts: list[Tensor]) -> Quantized:
        """From quants, scales and perhaps minima, each (rows, blocks, …)."""
        rows = parts[0]._known_shape()[0]
        more = -rows % TILE
        tiles = []
        for part in parts:
            part = part.pad(((0, more), (0, 0), (0, 0))) if more else part
            shape = part._known_shape()
            tiled = part.reshape(shape[0] // TILE, TILE, *shape[1:]).permute(0, 2, 3, 1)
            tiles.append(tiled.contiguous())
        Tensor.realize(*tiles)
        return cls(kind, rows, tiles[0], tiles[1], tiles[2] if len(tiles) > 2 else None)

    def parts(self) -> list[Tensor]:
        """The tensors that are kept."""
        kept = [self.quants, self.scales]
        return kept if self.minima is None else [*kept, self.minima]

    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(math.prod(t._known_shape()) * t.dtype.itemsize for t in self.parts())

    def by_rows(self) -> list[Tensor]:
        """The parts as (rows, blocks, …), lazy."""
        return [_by_rows(part)[: self.shape[0]] for part in self.parts()]

    def select(self, order: Tensor) -> Quantized:
        """The rows whose numbers are in `order`, an integer tensor of shape (count,)."""
        with Tensor.no_grad():
            return self._of_rows(self.kind, [part[order] for part in self.by_rows()])

    @staticmethod
    def stack(matrices: list[Quantized]) -> Quantized:
        """One above the other. DTypeError where their kinds differ."""
        first = matrices[0]
        if any(matrix.kind is not first.kind for matrix in matrices):
            names = ", ".join(matrix.kind.name for matrix in matrices)
            raise DTypeError(f"Quantized.stack of {names}: expected one kind")
        with Tensor.no_grad():
            columns = zip(*(matrix.by_rows() for matrix in matrices), strict=True)
            return first._of_rows(first.kind, [part[0].cat(*part[1:], dim=0) for part in columns])

    def dequantized(self) -> Tensor:
        """All elements, float32, lazy: (rows, columns)."""
        return self._dequantized(self.by_rows())

    def rows(self, index: Tensor) -> Tensor:
        """The rows at integers (…) → (…, columns) float32; BoundsError where one is no row."""
        flat = index._checked(self.shape[0], "Embedding", "rows").reshape(-1)
        tile, lane = flat // TILE, (flat % TILE).reshape(-1, 1, 1, 1)
        parts = []
        for part in self.parts():
            tiles = part._take_places({0: tile}, 0, wraps=False)
            place = lane.expand(*tiles._known_shape()[:3], 1)
            parts.append(tiles._at(3, place).squeeze(3))
        return self._dequantized(parts).reshape(*index.shape, self.shape[1])

    def _dequantized(self, parts: list[Tensor]) -> Tensor:
        """(rows, columns) of parts (rows, blocks, …)."""
        scales = parts[1].float()
        values = [value * scales for value in self._integers(parts[0])]
        if len(parts) > 2:
            values = [value + parts[2].float() for value in values]
        first, *rest = values
        whole = first.cat(*rest, dim=-1) if rest else first
        return whole.reshape(-1, self.shape[1])

    def product(self, x: Tensor) -> Tensor:
        """x·Wᵀ: (…, columns) → (…, rows), float32."""
        rows, columns = self.shape
        if x.shape[-1] != columns:
            raise ShapeError(
                f"product of {x.shape} with a matrix {self.shape}: expected (…, {columns})"
            )
        parts = self._integers(self.quants)
        tiles, blocks, width, _ = parts[0]._known_shape()
        count = math.prod(x._known_shape()) // columns
        pieces = x.float().reshape(count, blocks, len(parts), width)
        if count <= FEW_ROWS:
            # one sum for a block's bytes, each of which gives an element of both halves
            terms = [
                pieces[:, :, place].reshape(1, count, blocks, width, 1) * part.unsqueeze(1)
                for place, part in enumerate(parts)
            ]
            block = sum(terms[1:], terms[0]).sum(3) * self.scales.float().reshape(
                tiles, 1, blocks, TILE
            )
            if self.minima is not None:
                whole = pieces.sum((2, 3)).reshape(1, count, blocks, 1)
                block = block + whole * self.minima.float().reshape(tiles, 1, blocks, TILE)
            result = block.sum(2).transpose(0, 1)
        else:
            scales = self.scales.float()
            values = [part * scales for part in parts]
            if self.minima is not None:
                values = [value + self.minima.float() for value in values]
            products = [
                pieces[:, :, place].reshape(count, -1).matmul(
                    part.permute(1, 2, 0, 3).reshape(blocks * width, tiles * TILE)
                )
                for place, part in enumerate(values)
            ]  # fmt: skip
            result = sum(products[1:], products[0])
        return result.reshape(count, tiles * TILE)[:, :rows].reshape(*x.shape[:-1], rows)

    def _integers(self, quants: Tensor) -> list[Tensor]:
        """What is scaled, as float32: halves of blocks (16 of them), or the whole (32)."""
        whole = [quants]
        if self.kind.halves:
            wide = quants.cast(dtypes.int32)  # once for both
            whole = [wide & 15, wide >> 4]
        values = [part.float() for part in whole]
        return [value - self.kind.zero for value in values] if self.kind.zero else values


def _by_rows(part: Tensor) -> Tensor:
    """(tiles, blocks, n, 16) → (rows, blocks, n)."""
    _, blocks, count, _ = part._known_shape()
    return part.permute(0, 3, 1, 2).reshape(-1, blocks, count)


def _half(pairs: Tensor) -> Tensor:
    """Two bytes (…, 2), the lower first, as a float16 (…, 1)."""
    words = pairs.cast(dtypes.uint16)
    return (words[..., :1] + (words[..., 1:] << 8)).bitcast(dtypes.float16)


class QuantizedLinear:
    """x·Wᵀ + b with a quantized W (out, in); for inference."""

    def __init__(self, weight: Quantized, bias: Tensor | None = None) -> None:
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
