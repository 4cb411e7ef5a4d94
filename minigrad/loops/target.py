"""The numbers of a machine that recipes ask for, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from minigrad.dtype import DType


@dataclass(frozen=True)
class Target:
    """vector_bytes: width of a register (0: a device whose compiler sees scalars only).

    registers: vector registers. l1, l2: bytes of the caches of one core. l3: bytes of the cache
    that all cores share (0: stores never pass by the cache). most_lanes: elements that one vector
    of a nest may have, over however many registers. bfloat16_dots: whether an instruction adds the
    products of two pairs of bfloat16 to a float32 (AVX512-BF16). bfloat16_matrices: whether there
    are registers of 16 × 16 words, and an instruction that multiplies them (AMX).
    """

    vector_bytes: int
    registers: int
    l1: int
    l2: int
    l3: int = 0
    most_lanes: int = 64
    bfloat16_dots: bool = False
    bfloat16_matrices: bool = False

    def lanes(self, dtype: DType) -> int:
        """Elements of a register; values narrower than 4 bytes are computed in 4."""
        return max(self.vector_bytes // max(dtype.itemsize, 4), 1)

    @property
    def tile_rows(self) -> int:
        """Rows of the register tile: two accumulators a row, leaving room for operands."""
        return 14 if self.registers >= 32 else 6
