"""Programs on arrays with varying inner dimensions: dense for callers, at a bound for kernels.

    (2, n ≤ 8, 3), n = 5    in a caller's memory    aaaaabbbbb          rows of 3 elements
                            where kernels look      aaaaa···bbbbb···
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from operator import mul
from typing import NamedTuple

from minigrad.device import Buffer, Device, Program
from minigrad.graph.node import Shape
from minigrad.graph.shapes import equally_apart, numel
from minigrad.graph.variable import evaluate


class Padded:
    """A program with copies of its inputs and results before and after.

    reads, writes: the shapes of the slots that are laid out at their bounds, by slot.
    """

    def __init__(
        self, program: Program, reads: Mapping[int, Shape], writes: Mapping[int, Shape]
    ) -> None:
        self.program, self.reads, self.writes = program, reads, writes

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """See `minigrad.device.Program`."""
        inside = list(buffers)
        for slot, shape in {**self.reads, **self.writes}.items():
            like, rows = buffers[slot], evaluate(shape[0], variables)
            inside[slot] = Buffer(like.device, like.dtype, rows * numel(shape[1:]))
        for slot, shape in self.reads.items():
            pairs = blocks(shape, variables)
            _copy(inside[slot], buffers[slot], ((wide, dense) for dense, wide in pairs))
        self.program.run(inside, variables)
        for slot, shape in self.writes.items():
            _copy(buffers[slot], inside[slot], blocks(shape, variables))


class Block(NamedTuple):
    """Blocks of rows in one of the two layouts, in elements: see `minigrad.device.Rows`."""

    start: int
    stride: int
    apart: int
    length: int
    rows: int
    blocks: int


def blocks(shape: Shape, variables: Mapping[str, int]) -> Iterator[tuple[Block, Block]]:
    """Rows that are contiguous in both layouts: each time in the dense one and the wide one."""
    first, outer, last = equally_apart(shape)
    now = [evaluate(extent, variables) for extent in shape]
    length, rows, count = numel(now[last:]), numel(now[outer:last]), numel(now[first:outer])
    strides = [numel(shape[axis + 1 :]) for axis in range(first)]
    for number, index in enumerate(product(*map(range, now[:first]))):
        block = rows * length
        dense = Block(number * count * block, length, block, length, rows, count)
        start, apart = sum(map(mul, index, strides)), numel(shape[outer:])
        yield dense, Block(start, numel(shape[last:]), apart, length, rows, count)


def _copy(to: Buffer, given: Buffer, pairs: Iterable[tuple[Block, Block]]) -> None:
    """Copy rows between two buffers of a device: to each block from the one beside it."""
    copy, size = Device[to.device].copy_rows, to.dtype.itemsize
    for into, begin in pairs:
        target = to.memory, size * into.start, size * into.stride, size * into.apart
        source = given.memory, size * begin.start, size * begin.stride, size * begin.apart
        copy(target, source, size * into.length, into.rows, into.blocks)
