"""Groups of kernels that follow one another and need not wait for each other.

Between groups all threads wait for the last one of them, which costs the more the shorter kernels
are. The gradients of a weight, of its bias and of the layer's input are a group, and so are the
updates of an optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from minigrad.schedule.expr import Array
from minigrad.schedule.schedule import Held, Kernel, Source

# What a kernel brings to its group: nothing but itself, work for one more thread, work for several.
SHORT, ALONE, SHARED = 0, 1, 2


def beside(
    kernels: Sequence[Kernel], places: Mapping[Array, Source], work: Sequence[int]
) -> list[bool]:
    """Which kernels need not wait for the one before, nor for what that is beside.

    None of a group writes to memory that another one touches, and there is work for two threads in
    it. places: see `Schedule`; work: of each kernel SHORT, ALONE or SHARED. Begin and end of an
    exchange are groups of their own.
    """
    result = list[bool]()
    read, written, known = set[Source](), set[Source](), SHORT
    fixed = True  # whether nothing may be beside the kernel before
    for kernel, own in zip(kernels, work, strict=True):
        is_code = kernel.kind not in ("exchange", "wait")
        arrays = {array for stage in kernel.stages for array in stage.reads}
        reads, writes = (
            {places[a.whole or a] for a in some if (a.whole or a) in places}
            for some in (arrays, kernel.stored)
        )
        alone = fixed or not is_code or known + own < SHARED
        if alone or writes & (read | written) or reads & written:
            read, written, known = set(), set(), SHORT
            result.append(False)
        else:
            result.append(True)
        read, written, known = read | reads, written | writes, known + own
        fixed = not is_code
    return result


def widened(held: Sequence[Held], beside: Sequence[bool]) -> tuple[Held, ...]:
    """Memory that is needed as long as the groups of the first and the last kernel that need it."""
    first, last = list(range(len(beside))), list(range(len(beside)))
    for step, joined in enumerate(beside):
        if joined:
            first[step] = first[step - 1]
    for step in reversed(range(1, len(beside))):
        if beside[step]:
            last[step - 1] = last[step]
    return tuple(replace(one, first=first[one.first], last=last[one.last]) for one in held)
