"""The runtime of a mesh: each of its devices runs its part of every program, all at once.

On its own, this process has all devices, with a thread for each. Under MPI it is one of the ranks
that run the same script, and has one device. Devices exchange in groups, one for each set of axes.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

from minigrad import collective
from minigrad.device import Buffer, Call, Device, Replay, Rows, Runtime, Sequential, Zeros
from minigrad.dtype import DType, dtypes
from minigrad.errors import DeviceError, JitError, MinigradError
from minigrad.graph import build
from minigrad.graph.canonical import Graph
from minigrad.graph.conversions import group_name, place_name
from minigrad.graph.node import Shape
from minigrad.graph.partition import LayoutPlan, Partitioned, partition, without_barriers
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import Layout, local_shape, mark, show, whole
from minigrad.locks import new_lock
from minigrad.mesh import Mesh
from minigrad.models.parallel.faults import Activity, Clock, RankError, named
from minigrad.models.parallel.group import Seat
from minigrad.models.parallel.local import Exchange, LocalTransport
from minigrad.models.parallel.mpi import world
from minigrad.models.parallel.timeline import of_rank
from minigrad.runtimes.host import usable_threads
from minigrad.settings import Context, flag, thread


class MeshMemory:
    """The parts of an array on this process's devices.

    layout: None if each has the whole array. shape and dtype are those of the whole array, once a
    program has written it. parts: a buffer for each device of this process.
    """

    __slots__ = ("layout", "shape", "dtype", "parts")

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self.shape: Shape = ()
        self.dtype = dtypes.uint8
        self.parts: list[Buffer] = []


class MeshDevice(Seat):
    """A device of a mesh in this process, and its groups."""

    def __init__(
        self, mesh: Mesh, number: int, device: str, transport: collective.Transport,
        activity: Activity, threads: int,
    ) -> None:  # fmt: skip
        self.number, self.threads = number, threads
        self.places = {place_name(axis): at for axis, at in mesh.places(number).items()}
        timeline = of_rank(int(mesh.devices[number].partition(":")[2] or 0))
        groups = {group_name(mesh.name, axes): ranks for axes, ranks in _groups(mesh, number)}
        with Context(THREADS=threads, GUARD=0, DEBUG=0):
            super().__init__(device, transport, groups, activity, timeline)

    @property
    def bytes_sent(self) -> int:
        """The bytes sent in all groups."""
        return sum(group.members.bytes_sent for group in self.groups.values())


def _members(mesh: Mesh, size: int) -> list[int]:
    """The MPI ranks of a mesh: all, or those with the numbers of its devices."""
    if mesh.size == size:
        return list(range(size))
    return [int(name.partition(":")[2] or 0) for name in mesh.devices]


def _groups(mesh: Mesh, number: int) -> Iterable[tuple[tuple[str, ...], list[int]]]:
    """For each set of axes, the devices that differ from one along these axes only."""
    axes = [axis for axis, size in mesh.sizes.items() if size > 1]
    own = mesh.places(number)
    for count in range(1, len(axes) + 1):
        for some in combinations(axes, count):
            others = set(axes) - set(some)
            yield some, [
                rank for rank in range(mesh.size)
                if all(mesh.places(rank)[axis] == own[axis] for axis in others)
            ]  # fmt: skip


class MeshRuntime(Runtime):
    """The devices of a mesh as one; under MPI all ranks make it. local: those of this process.

    planned: bytes that all ranks together should have sent so far, by the plans of programs that
    ran.
    """

    generalizes = False  # a layout belongs to one shape
    byte_dots = byte_matrices = False
    fails_late = False

    def __init__(self, mesh: Mesh) -> None:
        self.name, self.mesh = mesh.name, mesh
        self.planned = 0
        self._converters: dict[Any, MeshProgram] = {}
        self._lock = new_lock()
        self.local: list[MeshDevice] = []
        self.exchange: Exchange | None = None
        self._join()
        self._team = Team(len(self.local))

    def _join(self) -> None:
        """Connect the devices."""
        mesh, ranks, self._process = self.mesh, world(), os.getpid()
        if ranks is not None:
            members = _members(mesh, ranks.size)
            needed = max(members) + 1
            if ranks.rank not in members or needed > ranks.size:
                raise DeviceError(f"{mesh}: MPI started {ranks.size} ranks, but the mesh needs "
                                  f"{needed}: use mpiexec -n {needed}")  # fmt: skip
            device = Device.DEFAULT if Device.DEFAULT not in Device.meshes else "CPU"
            number = members.index(ranks.rank)
            self.local = [
                MeshDevice(mesh, number, device, ranks.transport(members), ranks.activity,
                           ranks.threads)
            ]  # fmt: skip
            return
        self.exchange = Exchange(mesh.size)
        threads = flag("THREADS") or max(usable_threads() // mesh.size, 1)
        self.local = [
            MeshDevice(mesh, number, device, LocalTransport(number, self.exchange),
                       Activity(Clock()), threads)
            for number, device in enumerate(mesh.devices)
        ]  # fmt: skip

    def each(self, action: Callable[[int], None]) -> None:
        """Run an action on all devices of this process at once; raises an exception of any of them.
        """
        with self._lock:
            if self._process != os.getpid() and self.exchange is not None:
                # the threads that run exchanges have stayed in the parent
                for device in self.local:
                    collective.leave(device.device, [*device.groups.values()])
                self._join()

        def run(number: int) -> None:
            with self.local[number].timeline.kernels():
                action(number)

        failed = self._team.run(run, self._fail)
        if failed is not None:
            for device in self.local:
                device.close()
            self._join()
            raise failed

    def _fail(self, error: BaseException) -> None:
        """Stop others from waiting for a device that has failed."""
        if self.exchange is not None:
            self.exchange.fail(error)

    @property
    def bytes_sent(self) -> int:
        """Bytes that the devices of this process have sent so far."""
        return sum(device.bytes_sent for device in self.local)

    # --- memory -----------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> MeshMemory:
        """Memory to be filled by a program or `copy_in`; if it is empty, it is complete."""
        return MeshMemory() if nbytes else self.allocate_zeros(0)

    def allocate_zeros(self, nbytes: int) -> MeshMemory:
        """Zeros on every device."""
        memory = MeshMemory()
        memory.parts = [Zeros(one.device, dtypes.uint8, nbytes) for one in self.local]
        return memory

    def free(self, memory: MeshMemory, nbytes: int) -> None:
        """The parts are buffers, which free themselves."""

    def fill(self, memory: MeshMemory, layout: Layout, shape: Shape, dtype: DType) -> None:
        """Allocate memory for an array in a layout."""
        known = None if layout.is_whole else layout
        same = memory.layout is None if known is None else (
            memory.layout is not None and memory.layout.dims == known.dims
        )  # one that is divided for storage only stays so
        if memory.parts and same:
            memory.shape, memory.dtype = shape, dtype
            return
        size = numel(local_shape(shape, layout.dims))
        memory.layout, memory.shape, memory.dtype = known, shape, dtype
        memory.parts = [Buffer(one.device, dtype, size) for one in self.local]

    def copy_in(self, memory: MeshMemory, data: memoryview) -> None:
        """Give every device its part of the host's bytes, which are the same on all ranks of MPI.
        """
        if self.exchange is None and self.mesh.size > 1:
            groups = self.local[0].groups.values()
            max(groups, key=lambda group: group.size).compare(data)
        target = memory
        if memory.layout is not None:
            target = MeshMemory()
            target.shape, target.dtype = memory.shape, memory.dtype
        if not target.parts:
            target.parts = [Buffer(one.device, dtypes.uint8, data.nbytes) for one in self.local]
        for part in target.parts:
            Device[part.device].copy_in(part.memory, data)
        if memory.layout is not None:
            self._convert(target, memory.layout, memory)

    def copy_out(self, memory: MeshMemory, data: memoryview) -> None:
        """Gather the parts on the host."""
        if memory.layout is not None:
            gathered = MeshMemory()
            self._convert(memory, whole(len(memory.shape)), gathered)
            memory = gathered
        part = memory.parts[0]
        Device[part.device].copy_out(part.memory, data)

    def _convert(self, memory: MeshMemory, layout: Layout, target: MeshMemory) -> None:
        """Copy an array from memory to target, in another layout."""
        key = (memory.shape, memory.dtype, memory.layout, layout)
        program = self._converters.get(key)
        if program is None:
            source = build.buffer(0, memory.dtype, memory.shape, self.name)
            root = mark(source, layout.dims)
            graph = Graph((root,), (1,), 2, (), self.name, (memory.layout,))
            program = self._converters[key] = MeshProgram(self, graph)
        size = numel(memory.shape)
        given = Buffer(self.name, memory.dtype, size, memory)
        program.run([given, Buffer(self.name, memory.dtype, size, target)], {})

    def copy_rows(self, to: Rows, given: Rows, nbytes: int, rows: int = 1, blocks: int = 1) -> None:
        """Not called: on a mesh, arrays are joined by a program, which knows layouts."""
        raise NotImplementedError

    def first(self, memory: MeshMemory, dtype: DType) -> int | float | bool:
        """The first element, of an array with only one."""
        part = memory.parts[0]
        return Device[part.device].first(part.memory, dtype)

    def expect_zero(self, memory: MeshMemory, failure: Callable[[], MinigradError]) -> None:
        """Each device knows the result, so one is checked."""
        part = memory.parts[0]
        Device[part.device].expect_zero(part.memory, failure)

    def synchronize(self) -> None:
        """Wait for all devices."""
        for one in self.local:
            Device[one.device].synchronize()

    # --- programs ---------------------------------------------------------------------------------

    def compile(self, graph: Graph) -> MeshProgram:
        """Divide a graph, and compile what each device runs."""
        return MeshProgram(self, graph)

    def divider(self, graph: Graph) -> Callable[[MeshDevice], tuple[Partitioned, Graph]]:
        """Plan how to divide a graph; the function returned gives a device's part."""
        wanted: list[Layout | None] = [
            Layout((graph.layouts[slot] or whole(root.ndim)).dims)
            if slot < len(graph.layouts) else None
            for root, slot in zip(graph.roots, graph.outputs, strict=True)
        ]
        roots = without_barriers(graph.roots)
        plan = LayoutPlan(roots, lambda slot: graph.layouts[slot], wanted)
        names = tuple(sorted({*graph.variables, *self.local[0].places}))

        def of(one: MeshDevice) -> tuple[Partitioned, Graph]:
            divided = partition(plan, self.name, one.device)
            local = Graph(divided.roots, graph.outputs, graph.slots, names, one.device)
            return divided, local

        return of

    def compose(self, calls: Sequence[Call], arguments: Sequence[Buffer]) -> Replay:
        """Recorded calls as a single call on each device."""
        if flag("DEBUG") < 1 and all(isinstance(call.program, MeshProgram) for call in calls):
            return MeshReplay(self, calls, arguments)
        return Sequential(calls, arguments)


class MeshProgram:
    """A graph of whole arrays, divided among devices."""

    def __init__(self, runtime: MeshRuntime, graph: Graph) -> None:
        self.runtime, self.inputs, self.outputs = runtime, graph.layouts, graph.outputs
        self.kinds = [(root.shape, root.dtype) for root in graph.roots]
        divide = runtime.divider(graph)
        self.programs: list[Any] = []
        self.divided: Partitioned
        for number, one in enumerate(runtime.local):
            with Context(THREADS=one.threads, DEBUG=flag("DEBUG") if not number else 0):
                self.divided, local = divide(one)
                self.programs.append(Device[one.device].compile(local))
        self.sent = sum(one.nbytes for one in self.divided.exchanges)

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """Run each device on its parts."""
        runtime = self.runtime
        memories = self.prepare(buffers)
        runtime.planned += self.sent

        def run(number: int) -> None:
            parts = [memory.parts[number] for memory in memories]
            self.programs[number].run(parts, {**variables, **runtime.local[number].places})

        runtime.each(run)

    def prepare(self, buffers: Sequence[Buffer]) -> list[MeshMemory]:
        """The memory of all slots; JitError if an input has another layout."""
        memories: list[MeshMemory] = [buffer.memory for buffer in buffers]
        for memory, layout in zip(memories, self.inputs, strict=False):
            if memory.layout != layout:
                raise differs(memory, layout)
        for slot, layout, (shape, dtype) in zip(
            self.outputs, self.divided.layouts, self.kinds, strict=True
        ):
            if slot >= len(self.inputs):
                self.runtime.fill(memories[slot], layout, shape, dtype)
        return memories


def differs(memory: MeshMemory, layout: Layout | None) -> JitError:
    """The error for an argument of a captured step with another layout than in the capture."""
    name = memory.dtype.name
    return JitError(
        f"a captured step got {show(memory.shape, memory.layout, name)}, but was captured with "
        f"{show(memory.shape, layout, name)}: shard it like that, with .shard(mesh, P(…)), or call "
        ".reset() on the step"
    )


class MeshReplay:
    """See `minigrad.device.Replay`: each device has its own replay."""

    def __init__(
        self, runtime: MeshRuntime, calls: Sequence[Call], arguments: Sequence[Buffer]
    ) -> None:
        self.runtime, self.calls = runtime, calls
        self.sent = sum(call.program.sent for call in calls)  # type: ignore[attr-defined]
        known = [argument.memory for argument in arguments]
        self.known = [(memory.layout, memory.shape, memory.dtype) for memory in known]
        self.replays = []
        for number, one in enumerate(runtime.local):
            local = [_part_of(call, number, one) for call in calls]
            places = [memory.parts[number] for memory in known]
            with Context(THREADS=one.threads):
                self.replays.append(Device[one.device].compose(local, places))

    def put(self, *memories: MeshMemory) -> None:
        """Replace the memory of the arguments."""
        for memory, (layout, shape, dtype) in zip(memories, self.known, strict=True):
            if not memory.parts:
                self.runtime.fill(memory, layout or whole(len(shape)), shape, dtype)
            elif memory.layout != layout:
                raise differs(memory, layout)
        for number, replay in enumerate(self.replays):
            replay.put(*(memory.parts[number].memory for memory in memories))

    def run(self, variables: Mapping[str, int]) -> None:
        """Run the calls on every device."""
        local = self.runtime.local
        self.runtime.planned += self.sent
        self.runtime.each(
            lambda number: self.replays[number].run({**variables, **local[number].places})
        )


def _part_of(call: Call, number: int, one: MeshDevice) -> Call:
    """A device's part of a call."""

    def parts(buffers: Iterable[Buffer]) -> tuple[Buffer, ...]:
        return tuple(buffer.memory.parts[number] for buffer in buffers)

    program: Any = call.program
    return Call(
        program.programs[number], parts(call.buffers), {**call.variables, **one.places},
        parts(call.made), parts(call.written), frozenset(parts(call.read)),
    )  # fmt: skip


def runtime_of(mesh: Mesh) -> MeshRuntime:
    """The runtime that runs a mesh's programs."""
    found: Any = Device[mesh.name]
    assert isinstance(found, MeshRuntime)
    return found


# --- threads --------------------------------------------------------------------------------------


_LOOK = 1.0  # seconds: Python notices a signal that comes just before a wait when the wait ends
_RUNNING = object()  # stands for an action's exception or None, until it has ended


class Team:
    """A thread for each device or stage, except the first, which uses the caller's.

    They start with the first call, and again after a fork.
    """

    def __init__(self, size: int) -> None:
        self.size, self._lock = size, new_lock()
        self._begin()

    def _begin(self) -> None:
        self._tasks: list[queue.SimpleQueue[Any]] = []
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes the waiting thread
        self._process = os.getpid()

    def run(
        self, action: Callable[[int], None], fail: Callable[[BaseException], None]
    ) -> BaseException | None:
        """Call action(0 … size − 1) at once; returns an exception of one, preferably the cause."""
        if self.size == 1:
            action(0)
            return None
        with self._lock:
            if self._process != os.getpid():
                self._begin()
            while len(self._tasks) < self.size - 1:
                tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
                self._tasks.append(tasks)
                worker = threading.Thread(
                    target=self._work, args=(len(self._tasks), tasks), daemon=True,
                    name=f"minigrad device {len(self._tasks)}",
                )  # fmt: skip
                worker.start()
            ends: list[Any] = [_RUNNING] * self.size
            for tasks in self._tasks:
                tasks.put((action, fail, thread.values, ends))
            ends[0] = _tried(action, 0, fail)
            # Ctrl-C ends the others, which are waited for. It may come after `get` has taken an
            # item, so items only wake, and `ends` says which have ended.
            interrupts = []
            while _RUNNING in ends:
                interrupts.append(_tried(self._wait, 0, fail))
        raised = [error for error in (*interrupts, *ends) if error is not None]
        causes = [error for error in raised if not isinstance(error, RankError)]
        return next(iter(causes or raised), None)

    def _wait(self, number: int) -> None:
        with suppress(queue.Empty):
            self._ended.get(timeout=_LOOK)

    def _work(self, number: int, tasks: queue.SimpleQueue[Any]) -> None:
        known: dict[str, Any] | None = None
        while True:
            action, fail, values, ends = tasks.get()
            if known != values:
                known = dict(values)
                thread.values.update(known)
                thread.settle()
            ends[number] = _tried(action, number, fail)
            self._ended.put(None)


def _tried(
    action: Callable[[int], None], number: int, fail: Callable[[BaseException], None]
) -> BaseException | None:
    """The exception of an action; it is reported to the others, which may be waiting for it."""
    try:
        action(number)
    except BaseException as error:
        other = RankError(number, f"device {number} failed: {named(error)}")
        fail(error if isinstance(error, RankError) else other)
        return error
    return None
