"""Groups: consecutive kernels that need not wait for each other.

Between groups there is a barrier, which costs the more the shorter the kernels are. The gradients
of a weight, of its bias and of the layer's input are a group, and so are the updates of an
optimizer. Kernels that write parts of one concatenation do not conflict, either, but their memory
is often close: the products of a strided gradient each write every second pixel. So if they have
equal numbers of chunks, their chunks are interleaved: what one loads into a cache is still there
for the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from minigrad.schedule.expr import Array
from minigrad.schedule.schedule import Kernel, LiveRange, Source

# Work that a kernel brings to its group: too little to count, for one thread, for several threads;
# NEVER: it must not be in a group.
SHORT, ALONE, SHARED, NEVER = 0, 1, 2, -1
# How it follows the kernel before it: waits for all of it, runs concurrently with it, or
# interleaved: each chunk right after the same chunk of the other.
WAITS, CONCURRENT, INTERLEAVED = 0, 1, 2


def beside(
    kernels: Sequence[Kernel], places: Mapping[Array, Source], work: Sequence[int],
    chunks: Sequence[int],
) -> list[int]:  # fmt: skip
    """For each kernel WAITS, CONCURRENT or INTERLEAVED.

    Kernels of a group do not write memory that another one touches, except for parts of one join,
    and have work for at least two threads together. places: see `Schedule`; work: SHORT, ALONE,
    SHARED or NEVER for each kernel; chunks: their numbers (0: that varies).
    """
    runs = list[list[int]]()  # for each group, the work of its kernels
    hows: list[int] = []
    # Memory is written twice only after somebody has read it, who waits for the first writer.
    read, written = set[Source](), set[Source]()
    joins_before, count_before = set[Array | None](), 0
    for kernel, own, count in zip(kernels, work, chunks, strict=True):
        inside = {stage.array for stage in kernel.stages}.difference(kernel.stored)
        arrays = {array for stage in kernel.stages for array in stage.reads} - inside
        reads = {places[memory_of(array)] for array in arrays}
        writes = {places[memory_of(array)] for array in kernel.stored}
        joins = {array.whole for array in kernel.stored}
        waits = not runs or NEVER in (own, runs[-1][-1])
        if waits or not (read.isdisjoint(writes) and reads.isdisjoint(written)):
            read, written = set(), set()
            runs.append([])
        alike = 0 < count == count_before and joins == joins_before
        hows.append(INTERLEAVED if alike and None not in joins else CONCURRENT)
        runs[-1].append(own)
        read, written = read | reads, written | writes
        joins_before, count_before = joins, count
    places_in_runs = [(place, sum(run) >= SHARED) for run in runs for place in range(len(run))]
    return [
        how if place and shared else WAITS
        for how, (place, shared) in zip(hows, places_in_runs, strict=True)
    ]


def memory_of(array: Array) -> Array:
    """The array that owns the memory of an array, which may be a part or another dtype's view."""
    array = array.of or array
    return array.whole or array


def in_groups(held: Sequence[LiveRange], beside: Sequence[int]) -> tuple[LiveRange, ...]:
    """Memory with the first and the last group that need it, instead of kernels."""
    number = list(accumulate(not joined for joined in beside))
    return tuple(replace(one, first=number[one.first], last=number[one.last]) for one in held)
