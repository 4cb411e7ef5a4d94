"""Programs of OpenCL devices: kernels in order, and where their arguments come from.

Kernels' arguments stay set from run to run: only those that have changed are set again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from minigrad.device import Buffer
from minigrad.graph.symbolic import high
from minigrad.graph.variable import evaluate
from minigrad.loops.nest import Nest
from minigrad.program import GlobalCounters
from minigrad.render.opencl_kernel import Source as Text
from minigrad.schedule.expr import Array
from minigrad.schedule.schedule import LiveRange, Schedule, Source

if TYPE_CHECKING:
    from minigrad.runtimes.opencl import OpenCL


Pieces = Sequence[tuple[tuple[int], tuple[int]]]  # work-items, and the first one's number


@dataclass(frozen=True)
class Kernel:
    """A nest as the driver has it. The group is the number of work-items that run together.

    arguments: numbers of those arrays of its key that are its arguments.
    name: of the kernel in the driver's program.
    items: of one launch; the launches of a kernel have `total` of them, one launch after the other,
    or fewer if the number of its groups varies.
    """

    nest: Nest
    arguments: tuple[int, ...]
    source: Text
    program: Any
    name: str
    items: int
    group: int
    total: int

    @property
    def slices(self) -> int:
        """Parts of the scratch memory that a launch needs."""
        return self.items // (self.nest.items or 1)

    def pieces(self, variables: Mapping[str, int]) -> Pieces:
        """The work-items of each launch, and the first one's number.

        As many groups as there are rows, so that none has to return before a barrier: PoCL (3.0 and
        6.0) then reads memory before another item of the group has written it.
        """
        items = self.nest.items
        total = evaluate(self.nest.total, variables) * self.group if items else self.total
        starts = range(0, total, self.items)
        return [((min(self.items, total - start),), (start,)) for start in starts]


class Launch(NamedTuple):
    """A kernel, a kernel object of the driver, a source (kind, which one) for each argument, and
    `last`: the memory or number to which each argument was last set.

    Kinds: "slot" (a buffer of the call), "held" (one of the program's; the first is the
    scratch memory), "symbol" (by name), "number" (itself).
    """

    code: Kernel
    kernel: Any
    sources: tuple[Source, ...]
    last: list[Any]


class OpenCLProgram:
    """A compiled graph: its kernels, each with the arrays that its key numbers."""

    def __init__(
        self, runtime: OpenCL, plan: Schedule, kernels: Sequence[tuple[Kernel, tuple[Array, ...]]]
    ) -> None:
        self.runtime = runtime
        scratch = max((k.source.scratch_bytes * k.slices for k, _ in kernels), default=0)
        shared, sizes = shared_buffers(plan.held)
        self.sizes = [scratch, *sizes]
        self._launches, places = list[Launch](), plan.places()
        for (kernel, arrays), step in zip(kernels, plan.kernels, strict=True):
            used = [arrays[number] for number in kernel.arguments]
            sources = [
                ("held", 1 + shared[which]) if kind == "held" else (kind, which)
                for kind, which in step.sources(places, used, kernel.nest.symbols)
            ]
            sources += [("held", 0)] * (kernel.source.scratch_bytes > 0)
            native = runtime.kernel(kernel.program, kernel.name)
            launch = Launch(kernel, native, tuple(sources), [None] * len(sources))
            self._launches.append(launch)

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """Enqueue all kernels; does not wait for them."""
        if not self._launches:
            return
        runtime = self.runtime
        taken: list[tuple[Any, int]] = []
        try:
            for size in self.sizes:
                taken.append((runtime.allocate(size), size))
            values: dict[str, Any] = {
                "slot": [buffer.memory for buffer in buffers],
                "held": [memory for memory, _ in taken],
                "symbol": variables,
            }
            with runtime.lock, runtime.doing("running a program"):
                for launch in self._launches:
                    _set(launch, values)
                runtime.launch(self._launches, variables)
        finally:
            for memory, size in reversed(taken):  # the next run gets the same again
                runtime.free(memory, size)
        nests = [launch.code.nest for launch in self._launches]
        operations = sum(nest.operations for nest in nests)
        GlobalCounters.ran(len(nests), operations, sum(nest.traffic for nest in nests))


def _set(launch: Launch, values: Mapping[str, Any]) -> None:
    """Set those arguments of a launch that have changed; `values` has those of each kind."""
    for place, (kind, which) in enumerate(launch.sources):
        value = which if kind == "number" else values[kind][which]
        if value is not launch.last[place]:
            packed = struct.pack("q", value) if isinstance(value, int) else value
            launch.kernel.set_arg(place, packed)
            launch.last[place] = value


def shared_buffers(held: Sequence[LiveRange]) -> tuple[list[int], list[int]]:
    """Assign a buffer to each array between kernels; arrays that never coexist may share one.

    Returns each array's buffer number, and the buffers' sizes. (Parts of one buffer would have to
    start at multiples of the device's alignment, which differs from device to device.)
    """
    numbers, sizes, last = [0] * len(held), list[int](), list[int]()
    for which in sorted(range(len(held)), key=lambda which: held[which].first):
        one, nbytes = held[which], high(held[which].nbytes)
        idle = [number for number, end in enumerate(last) if end < one.first]
        fit = min(idle, key=lambda number: abs(sizes[number] - nbytes), default=len(sizes))
        if fit == len(sizes):
            sizes.append(0)
            last.append(0)
        numbers[which], last[fit] = fit, one.last
        sizes[fit] = max(sizes[fit], nbytes)
    return numbers, sizes
