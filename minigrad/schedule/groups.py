"""Groups of kernels that follow one another and need not wait for each other.

Between groups all threads wait for the last one of them, which costs the more the shorter kernels
are. The gradients of a weight, of its bias and of the layer's input are a group, and so are the
updates of an optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from minigrad.schedule.expr import Array
from minigrad.schedule.schedule import Held, Kernel, Source

# What a kernel brings to its group: nothing but itself, work for one more thread, work for several;
# or it is none that may be in one.
SHORT, ALONE, SHARED, NEVER = 0, 1, 2, -1


def beside(
    kernels: Sequence[Kernel], places: Mapping[Array, Source], work: Sequence[int]
) -> list[bool]:
    """Which kernels need not wait for the one before, nor for what that is beside.

    None of a group writes to memory that another one touches, and there is work for two threads in
    it. places: see `Schedule`; work: of each kernel SHORT, ALONE, SHARED or NEVER.
    """
    runs = list[list[int]]()
    read, written = set[Source](), set[Source]()
    for kernel, own in zip(kernels, work, strict=True):
        inside = {stage.array for stage in kernel.stages}.difference(kernel.stored)
        arrays = {array for stage in kernel.stages for array in stage.reads} - inside
        reads, writes = (
            {places[memory_of(array)] for array in some} for some in (arrays, kernel.stored)
        )
        waits = not runs or NEVER in (own, runs[-1][-1])
        if waits or writes & (read | written) or reads & written:
            read, written = set(), set()
            runs.append([])
        runs[-1].append(own)
        read, written = read | reads, written | writes
    return [place > 0 and sum(run) >= SHARED for run in runs for place in range(len(run))]


def memory_of(array: Array) -> Array:
    """What an array is, or is a part of, seen as its own dtype."""
    array = array.of or array
    return array.whole or array


def in_groups(held: Sequence[Held], beside: Sequence[bool]) -> tuple[Held, ...]:
    """Memory with the first and the last group that need it, instead of the kernels."""
    number = list(accumulate(not joined for joined in beside))
    return tuple(replace(one, first=number[one.first], last=number[one.last]) for one in held)
