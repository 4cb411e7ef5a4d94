"""Matrices kept in few bits: blocks of 32 small integers with a scale each, as GGUF stores them.

They stay so in memory. What multiplies by one writes the dequantization as Tensor operations on the
packed bytes, and fusion makes it a prologue of the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.errors import DTypeError, ShapeError
from minigrad.tensor import Tensor

BLOCK = 32  # elements of a row that share a scale
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
    """A matrix (rows, columns) in blocks along its rows.

    quants: (rows, blocks, 16) uint8, two to a byte, or (rows, blocks, 32) int8; scales and minima
    (or None): (rows, blocks, 1) float16. None of them is trained.
    """

    def __init__(self, kind: Kind, quants: Tensor, scales: Tensor, minima: Tensor | None) -> None:
        self.kind = kind
        self.quants, self.scales, self.minima = quants, scales, minima
        for tensor in self.parts():
            tensor.requires_grad = False
        rows, blocks = quants._known_shape()[:2]
        self.shape = (rows, blocks * BLOCK)

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
            parts = [quants.contiguous(), scales.contiguous()]
            if minima is not None:
                parts.append(minima.contiguous())
            Tensor.realize(*parts)
        return cls(kind, parts[0], parts[1], parts[2] if minima is not None else None)

    def parts(self) -> list[Tensor]:
        """The tensors that are kept."""
        kept = [self.quants, self.scales]
        return kept if self.minima is None else [*kept, self.minima]

    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(math.prod(t._known_shape()) * t.dtype.itemsize for t in self.parts())

    def select(self, order: Tensor) -> Quantized:
        """The rows whose numbers are in `order`, an integer tensor of shape (count,)."""
        with Tensor.no_grad():
            parts = [tensor[order].contiguous() for tensor in self.parts()]
            Tensor.realize(*parts)
        return self._with(parts)

    @staticmethod
    def stack(matrices: list[Quantized]) -> Quantized:
        """One above the other. DTypeError where their kinds differ."""
        first = matrices[0]
        if any(matrix.kind is not first.kind for matrix in matrices):
            names = ", ".join(matrix.kind.name for matrix in matrices)
            raise DTypeError(f"Quantized.stack of {names}: expected one kind")
        with Tensor.no_grad():
            columns = zip(*(matrix.parts() for matrix in matrices), strict=True)
            parts = [part[0].cat(*part[1:], dim=0).contiguous() for part in columns]
            Tensor.realize(*parts)
        return first._with(parts)

    def _with(self, parts: list[Tensor]) -> Quantized:
        return Quantized(self.kind, parts[0], parts[1], parts[2] if len(parts) > 2 else None)

    def dequantized(self) -> Tensor:
        """All elements, float32, lazy: (rows, columns)."""
        first, *rest = self._values(self.quants, self.scales, self.minima)
        whole = first.cat(*rest, dim=-1) if rest else first
        return whole.reshape(self.shape)

    def rows(self, index: Tensor) -> Tensor:
        """The rows at integers (…) → (…, columns) float32."""
        flat = index.reshape(-1)
        minima = None if self.minima is None else self.minima[flat]
        first, *rest = self._values(self.quants[flat], self.scales[flat], minima)
        whole = first.cat(*rest, dim=-1) if rest else first
        return whole.reshape(*index.shape, self.shape[1])

    def product(self, x: Tensor) -> Tensor:
        """x·Wᵀ: (…, columns) → (…, rows), float32."""
        rows, columns = self.shape
        if x.shape[-1] != columns:
            raise ShapeError(
                f"product of {x.shape} with a matrix {self.shape}: expected (…, {columns})"
            )
        parts = self._integers(self.quants)
        count = math.prod(x._known_shape()) // columns
        width = BLOCK // len(parts)
        pieces = x.float().reshape(count, columns // BLOCK, len(parts), width)
        if count <= FEW_ROWS:
            # one sum, so that bytes are read once: each gives an element of both halves
            terms = [
                pieces[:, :, place].unsqueeze(1) * part.unsqueeze(0)
                for place, part in enumerate(parts)
            ]
            term = sum(terms[1:], terms[0]) * self.scales.float()
            if self.minima is not None:
                both = [pieces[:, :, place] for place in range(len(parts))]
                term = term + sum(both[1:], both[0]).unsqueeze(1) * self.minima.float()
            result = term.sum((2, 3))
        else:
            products = [
                pieces[:, :, place].reshape(count, -1).matmul(part.reshape(rows, -1).transpose())
                for place, part in enumerate(self._values(self.quants, self.scales, self.minima))
            ]
            result = sum(products[1:], products[0])
        return result.reshape(*x.shape[:-1], rows)

    def _values(self, quants: Tensor, scales: Tensor, minima: Tensor | None) -> list[Tensor]:
        """What blocks stand for, float32: their halves (…, 16), or the whole (…, 32)."""
        values = [value * scales.float() for value in self._integers(quants)]
        return values if minima is None else [value + minima.float() for value in values]

    def _integers(self, quants: Tensor) -> list[Tensor]:
        """What is scaled, as float32: halves of blocks (…, 16), or the whole (…, 32)."""
        whole = [quants]
        if self.kind.halves:
            wide = quants.cast(dtypes.int32)  # once for both
            whole = [wide & 15, wide >> 4]
        values = [part.float() for part in whole]
        return [value - self.kind.zero for value in values] if self.kind.zero else values


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
