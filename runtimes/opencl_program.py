"""Programs and replays of OpenCL devices: kernels in order, and where their arguments come from.

A program sets all arguments at each run. A replay has kernels of its own whose arguments stay set:
only what differs from the run before is set again.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from minigrad.device import Buffer, Call
from minigrad.graph.interned import kept
from minigrad.graph.symbolic import high
from minigrad.loops.nest import Nest
from minigrad.program import GlobalCounters
from minigrad.render.opencl_groups import Source as Text
from minigrad.schedule.expr import Array
from minigrad.schedule.schedule import Held, Schedule, Source

if TYPE_CHECKING:
    from minigrad.runtimes.opencl import OpenCL


@dataclass(frozen=True)
class Kernel:
    """A nest as the driver has it. The group is the number of work-items that run together.

    arguments: which of the arrays of its key it is launched with, by number.
    name: of the kernel in the driver's program.
    items: of one launch; the launches of a kernel have `total` of them, one launch after the other.
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

    @kept
    def pieces(self) -> tuple[tuple[tuple[int], tuple[int]], ...]:
        """The work-items of each launch, and the first one's number."""
        starts = range(0, self.total, self.items)
        return tuple(((min(self.items, self.total - start),), (start,)) for start in starts)


class Launch(NamedTuple):
    """A kernel, an object of the driver's for it, and for each argument (kind, which one).

    Kinds: "slot" (a buffer of the call), "held" (one of the program's, of which the first is the
    scratch memory), "symbol" (by name), "number" (itself).
    """

    code: Kernel
    kernel: Any
    sources: tuple[Source, ...]


class OpenCLProgram:
    """A compiled graph: its kernels, each with the arrays that its key numbers."""

    def __init__(
        self, runtime: OpenCL, plan: Schedule, kernels: Sequence[tuple[Kernel, tuple[Array, ...]]]
    ) -> None:
        self.runtime, self.plan, self.kernels = runtime, plan, kernels
        scratch = max((k.source.scratch_bytes * k.slices for k, _ in kernels), default=0)
        self._shared, sizes = shared_buffers(plan.held)
        self.sizes = [scratch, *sizes]
        self._launches = self.launches()

    def launches(self) -> list[Launch]:
        """Launches with kernel objects of their own."""
        places, shared, made = self.plan.places(), self._shared, []
        for (kernel, arrays), step in zip(self.kernels, self.plan.kernels, strict=True):
            used = [arrays[number] for number in kernel.arguments]
            sources = [
                ("held", 1 + shared[which]) if kind == "held" else (kind, which)
                for kind, which in step.sources(places, used, kernel.nest.symbols)
            ]
            sources += [("held", 0)] * (kernel.source.scratch_bytes > 0)
            native = self.runtime.kernel(kernel.program, kernel.name)
            made.append(Launch(kernel, native, tuple(sources)))
        return made

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
                "symbol": {name: packed(value) for name, value in variables.items()},
            }
            with runtime.lock, runtime.doing("running a program"):
                for launch in self._launches:
                    for place, (kind, which) in enumerate(launch.sources):
                        value = packed(which) if kind == "number" else values[kind][which]
                        launch.kernel.set_arg(place, value)
                runtime.launch(self._launches)
        finally:
            for memory, size in taken:
                runtime.free(memory, size)
        count_work(self._launches)


def packed(value: int) -> bytes:
    """A symbolic integer as a kernel's argument."""
    return struct.pack("q", value)


def count_work(launches: Sequence[Launch]) -> None:
    """Tell GlobalCounters what ran."""
    nests = [launch.code.nest for launch in launches]
    operations = sum(nest.operations for nest in nests)
    GlobalCounters.ran(len(nests), operations, sum(nest.traffic for nest in nests))


class OpenCLReplay:
    """The programs of a captured step with arguments that stay set from run to run."""

    def __init__(
        self, runtime: OpenCL, calls: Sequence[Call], arguments: Sequence[Buffer]
    ) -> None:
        self.runtime = runtime
        self.launches: list[Launch] = []
        self._taken: list[tuple[Any, int]] = []
        self._kept = [buffer for call in calls for buffer in call.buffers]
        # where the argument of this place, or the variable of this name, goes; what was set last
        self._uses: dict[Any, list[tuple[Any, int]]] = {}
        self._last: dict[Any, Any] = {}
        places = {argument: place for place, argument in enumerate(arguments)}
        programs = [cast("OpenCLProgram", call.program) for call in calls]
        # memory between kernels is shared by the calls, since one runs after the other
        for size in map(max, zip_longest(*(program.sizes for program in programs), fillvalue=0)):
            self._taken.append((runtime.allocate(size), size))
        for call, program in zip(calls, programs, strict=True):
            launches = program.launches()
            self.launches += launches
            with runtime.doing("preparing a captured step"):
                for launch in launches:
                    for number, source in enumerate(launch.sources):
                        self._bind(launch.kernel, number, *source, call, places)

    def _bind(
        self, kernel: Any, number: int, kind: str, which: Any, call: Call,
        places: dict[Buffer, int],
    ) -> None:  # fmt: skip
        """Set an argument for good, or note who changes it."""
        changing = places.get(call.buffers[which]) if kind == "slot" else which
        if kind == "symbol" or kind == "slot" and changing is not None:
            self._uses.setdefault(changing, []).append((kernel, number))
            if which not in call.variables:
                return
            self._last[which] = call.variables[which]
        kernel.set_arg(number, (
            packed(which) if kind == "number"
            else packed(call.variables[which]) if kind == "symbol"
            else call.buffers[which].memory if kind == "slot"
            else self._taken[which][0]
        ))  # fmt: skip

    def _set(self, key: Any, value: Any) -> None:
        """A value for all kernels that take it."""
        for kernel, number in self._uses.get(key, ()):
            kernel.set_arg(number, value)

    def put(self, *memories: Any) -> None:
        """Let `memories` take the arguments' places."""
        with self.runtime.lock, self.runtime.doing("preparing a captured step"):
            for place, memory in enumerate(memories):
                if memory is not self._last.get(place):
                    self._set(place, memory)
                    self._last[place] = memory

    def run(self, variables: Mapping[str, int]) -> None:
        """Enqueue all kernels; does not wait for them."""
        with self.runtime.lock, self.runtime.doing("running a captured step"):
            for name, value in variables.items():
                if self._last.get(name) != value:
                    self._set(name, packed(value))
                    self._last[name] = value
            self.runtime.launch(self.launches)
        count_work(self.launches)

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ending():
            for memory, size in self._taken:
                self.runtime.free(memory, size)


def shared_buffers(held: Sequence[Held]) -> tuple[list[int], list[int]]:
    """A buffer for each piece of memory between kernels, shared by those that never meet.

    Gives each one's number of a buffer, and the buffers' sizes. (Parts of one buffer would have to
    start at multiples of what the device wants, which differs from device to device.)
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
