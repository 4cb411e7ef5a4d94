"""Groups: consecutive kernels that need not wait for each other.

Between groups there is a barrier, which costs the more the shorter the kernels are. The gradients
of a weight, of its bias and of the layer's input are a group, and so are the updates of an
optimizer. Kernels that write parts of one concatenation do not conflict, either, but their memory
is often close: the products of a strided gradient each write every second pixel. So if they have
equal numbers of chunks, their chunks are interleaved: what one loads into a cache is still there
for the next.

A kernel that needs what the one before has written waits for all of it, unless both iterate over
the same parts of it, and it is too large for a cache: then their chunks are interleaved, too. So
the tiles of a convolution by Winograd's method go through three kernels, chunk by chunk, and do not
leave the cache in between (8 images of 64 × 56², least of 30 rounds: 8.3 → 7.1 ms).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import gcd
from typing import Protocol

from minigrad.graph.symbolic import Integer, ceildiv
from minigrad.schedule.expr import Array
from minigrad.schedule.schedule import Kernel, LiveRange, Source

# Work that a kernel brings to its group: too little to count, for one thread, for several threads;
# NEVER: it must not be in a group.
SHORT, ALONE, SHARED, NEVER = 0, 1, 2, -1
# How it follows the kernel before it: waits for all of it, runs concurrently with it, or
# interleaved: each chunk right after the same chunk of the other.
WAITS, CONCURRENT, INTERLEAVED = 0, 1, 2


# Chunks of kernels that take turns: as many as a kernel has at most (`loops/assemble.py`), and
# enough for several threads.
MOST_TURNS, LEAST_TURNS = 64, 8


class Loops(Protocol):
    """A kernel's loops, or its code."""

    @property
    def total(self) -> Integer:
        """Iterations of a launch."""

    @property
    def grain(self) -> int:
        """Iterations of a chunk."""

    @property
    def shares(self) -> Sequence[tuple[int, Sequence[str]]]:
        """Of the arrays that it takes, in order: see `loops/shares.py`."""


@dataclass(frozen=True)
class Launched:
    """What decides how a kernel may follow others.

    work: SHORT, ALONE, SHARED or NEVER. total: its iterations, and how many chunks, 0 if these
    vary. shares: memory → the length of which each iteration touches its own part.
    """

    work: int
    total: int = 0
    chunks: int = 0
    shares: Mapping[Source, int] = field(default_factory=dict)


def launched(
    work: int, loops: Loops, sources: Sequence[Source], numbers: Mapping[str, int]
) -> Launched:
    """The same of a kernel. sources: of its arguments; numbers: the values of its symbols."""
    if not isinstance(loops.total, int):
        return Launched(work)
    lengths: dict[Source, set[int]] = {}
    for source, (length, starts) in zip(sources, loops.shares, strict=False):
        whole = length and all(numbers.get(name, 1) % length == 0 for name in starts)
        lengths.setdefault(source, set()).add(length if whole else 0)
    shares = {source: min(some) for source, some in lengths.items() if len(some) == 1}
    return Launched(work, loops.total, ceildiv(loops.total, max(loops.grain, 1)), shares)


def beside(
    kernels: Sequence[Kernel], places: Mapping[Array, Source], given: Sequence[Launched]
) -> list[tuple[int, int]]:
    """For each kernel WAITS, CONCURRENT or INTERLEAVED, and the number of its chunks, or 0.

    Kernels of a group do not write memory that another one touches, except for parts of one join,
    and have work for at least two threads together. Or each reads what the ones before have
    written, part by part, in as many chunks. places: see `Schedule`.
    """
    runs = list[list[int]]()  # for each group, the work of its kernels
    hows: list[int] = []
    in_turn = [0] * len(kernels)
    # Memory is written twice only after somebody has read it, who waits for the first writer.
    read, written = set[Source](), set[Source]()
    joins_before, count_before = set[Array | None](), 0
    passed: dict[Source, int] = {}  # what all kernels of the group have written, and its length
    common = 1  # divides their iterations
    for number, (kernel, own) in enumerate(zip(kernels, given, strict=True)):
        inside = {stage.array for stage in kernel.stages}.difference(kernel.stored)
        arrays = {array for stage in kernel.stages for array in stage.reads} - inside
        reads = {places[memory_of(array)] for array in arrays}
        writes = {places[memory_of(array)] for array in kernel.stored}
        joins, how, count = {array.whole for array in kernel.stored}, CONCURRENT, own.chunks
        waits = not runs or NEVER in (own.work, runs[-1][-1])
        needed = reads & written
        divisor = gcd(common, own.total)
        chunks = next(n for n in range(MOST_TURNS, 0, -1) if divisor % n == 0)
        if (
            not waits and needed and chunks >= LEAST_TURNS and writes.isdisjoint(read | written)
            and all(0 < passed.get(one, 0) == own.shares.get(one, 0) for one in needed)
        ):
            how, common, count = INTERLEAVED, divisor, chunks
            in_turn[number - len(runs[-1]) : number + 1] = [chunks] * (len(runs[-1]) + 1)
        elif waits or needed or not read.isdisjoint(writes):
            read, written, passed = set(), set(), {}
            common = own.total or 1
            runs.append([])
        else:
            alike = 0 < count == count_before and joins == joins_before
            how = INTERLEAVED if alike and None not in joins else CONCURRENT
            common = 1  # not all kernels of the group take turns
        hows.append(how)
        runs[-1].append(own.work)
        read, written = read | reads, written | writes
        passed |= {one: own.shares.get(one, 0) for one in writes}
        joins_before, count_before = joins, count
    places_in_runs = [(place, sum(run) >= SHARED) for run in runs for place in range(len(run))]
    return [
        (how if place and shared else WAITS, chunks)
        for how, chunks, (place, shared) in zip(hows, in_turn, places_in_runs, strict=True)
    ]


def memory_of(array: Array) -> Array:
    """The array that owns the memory of an array, which may be a part or another dtype's view."""
    array = array.of or array
    return array.whole or array


def in_groups(held: Sequence[LiveRange], beside: Sequence[int]) -> tuple[LiveRange, ...]:
    """Memory with the first and the last group that need it, instead of kernels."""
    number = list(accumulate(not joined for joined in beside))
    return tuple(replace(one, first=number[one.first], last=number[one.last]) for one in held)
