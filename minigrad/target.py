"""The numbers of a machine that schedules and recipes ask for, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from minigrad.dtype import DType, dtypes

LINE = 64  # bytes of a cache line: of x86 and of most Arm cores
HALF_OF_L1 = 1 << 14  # bytes: half of a first-level cache of 32 KiB, the smallest in use
CHAINS = 4  # independent sums that hide the latency of an addition, up to 4 cycles
FEW_ROWS = 64  # rows below which threads have too few to share: eight for each of eight
# Iterations of a parallel loop that divide well among a few threads: two, or one, for each of
# eight. FEW if each iteration repeats the packing of an operand.
ENOUGH_TASKS, FEW_TASKS = 16, 8
FILL = 4  # work-groups for each unit: while some wait for memory, another computes
ITEM_LANES = 4  # elements of a work-item's vector: 16 bytes, the widest access of a GPU's thread


@dataclass(frozen=True)
class Tile:
    """Results of a work-group, rows × columns, and of each of its work-items.

    Rows, columns and an item's columns are multiples of 4, the width of the vectors that copy them.
    """

    rows: int
    columns: int
    item_rows: int
    item_columns: int

    def __post_init__(self) -> None:
        if self.rows % 4 or self.rows % self.item_rows or self.columns % self.item_columns:
            raise ValueError(f"{self}: expected rows in fours, and whole parts for each work-item")

    @property
    def items(self) -> int:
        """The number of work-items of the group."""
        return self.rows // self.item_rows * (self.columns // self.item_columns)


# Tiles of a product on a GPU: large ones reuse their operands more, small ones give more groups. A
# work-item has at most 64 results, so that they and their operands fit its 128 registers or so.
TILES = (
    Tile(128, 128, 8, 8), Tile(128, 64, 8, 4), Tile(64, 128, 4, 8), Tile(64, 64, 4, 4),
    Tile(32, 32, 2, 4), Tile(128, 8, 4, 4), Tile(8, 128, 2, 4), Tile(16, 16, 1, 4),
)  # fmt: skip
# For OpenCL on a CPU: it keeps the results of one work-item in registers, of more in memory.
CPU_TILES = (Tile(8, 16, 8, 16), Tile(4, 16, 4, 16))
# Elements of k that are in local memory at a time: 17 KiB with the largest tile, so that two groups
# share a unit's 48 KiB.
TILE_DEPTH = 16


@dataclass(frozen=True)
class Group:
    """Limits of work-groups: `items` each, bytes of local memory; `units` compute units run them.

    tiles: of a product, from which the recipe chooses.
    """

    items: int
    local_bytes: int
    units: int
    tiles: tuple[Tile, ...] = TILES


@dataclass(frozen=True)
class Target:
    """vector_bytes: width of a register (0: a device whose compiler sees scalars only).

    registers: vector registers. l1, l2: bytes of the caches of one core. l3: bytes of the cache
    that all cores share (0: stores never bypass the cache). tile_vectors: registers per row of a
    product's tile, if there are enough rows and columns. bfloat16_dots: whether an instruction
    adds the products of two pairs of bfloat16 to a float32 (AVX512-BF16). byte_dots: whether one
    adds those of four pairs of bytes to an int32 (AVX512-VNNI). matrices: whether there are
    registers of 16 × 16 such words, and instructions that multiply them (AMX).
    rows_ahead: bytes ahead at which a matrix's rows are prefetched if each is read once (0: not at
    all, because the hardware predicts them better).
    group: of OpenCL. brief: whether code is to be short rather than fast (`loops/cost.py`).
    choice: rank among the cost model's ways to cut a product; 0 is the best.
    """

    vector_bytes: int
    registers: int
    l1: int
    l2: int
    l3: int = 0
    tile_vectors: int = 2
    bfloat16_dots: bool = False
    byte_dots: bool = False
    matrices: bool = False
    rows_ahead: int = 0
    group: Group | None = None
    brief: bool = False
    choice: int = 0

    def lanes(self, dtype: DType) -> int:
        """Elements of a register; values narrower than 4 bytes are computed in 4."""
        return max(self.vector_bytes // max(dtype.itemsize, 4), 1)

    @property
    def row_lanes(self) -> int:
        """Rows that are computed together if vectors run across them; work-items on a GPU."""
        return self.lanes(dtypes.float32) if self.vector_bytes else 16

    @property
    def row_values(self) -> int:
        """float32 of a row that may pass from one stage of a kernel to the next: half of L2.

        If L2 is smaller than 1 MiB, the rest is in L3, which is still faster than memory.
        """
        return max(self.l2, 1 << 20) // 2 // 4

    @property
    def tile_rows(self) -> int:
        """Rows of the register tile: two accumulators per row, and registers for operands."""
        return 14 if self.registers >= 32 else 6
