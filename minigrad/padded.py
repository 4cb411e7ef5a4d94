"""Programs on arrays with varying inner dimensions: dense for callers, at a bound for kernels.

    (2, n ≤ 8, 3), n = 5    in a caller's memory    aaaaabbbbb          rows of 3 elements
                            where kernels look      aaaaa···bbbbb···
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from minigrad.device import Buffer, Device, Program
from minigrad.graph.inner_first import innermost
from minigrad.graph.node import Shape
from minigrad.graph.shapes import flatten, numel
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
            like = buffers[slot]
            inside[slot] = Buffer(like.device, like.dtype, numel(shape))
        for slot, shape in self.reads.items():
            for dense, wide, count in pieces(shape, variables):
                _copy(inside[slot], wide, buffers[slot], dense, count)
        self.program.run(inside, variables)
        for slot, shape in self.writes.items():
            for dense, wide, count in pieces(shape, variables):
                _copy(buffers[slot], dense, inside[slot], wide, count)


def pieces(shape: Shape, variables: Mapping[str, int]) -> Iterator[tuple[int, int, int]]:
    """The pieces that are contiguous in both layouts: where each is in the dense one and in the
    wide one, and its length; in elements.
    """
    last = innermost(shape)
    now = [evaluate(extent, variables) for extent in shape]
    count = numel(now[last:])
    for number, index in enumerate(product(*map(range, now[:last]))):
        place = flatten((*index, *(0 for _ in shape[last:])), shape)
        assert isinstance(place, int)
        yield number * count, place, count


def _copy(to: Buffer, start: int, given: Buffer, begin: int, count: int) -> None:
    """Copy elements between two buffers of a device."""
    size = to.dtype.itemsize
    runtime = Device[to.device]
    runtime.copy_part(to.memory, size * start, given.memory, size * begin, size * count)
