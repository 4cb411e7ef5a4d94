"""OpenCL devices: graphs become OpenCL C, and a program is a list of launches on one queue.

compile: see `minigrad/compile.py`; the driver builds OpenCL C.
run: sets the arguments that changed and enqueues every kernel; it does not wait. The queue is in
order, so no dependences need to be declared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from minigrad.cache import digest
from minigrad.compile import Rendered, code_of, schedule_of
from minigrad.device import Buffer, Rows, Runtime, undecided
from minigrad.errors import DeviceError, MinigradError
from minigrad.graph.canonical import Graph
from minigrad.graph.interned import kept
from minigrad.graph.symbolic import ceildiv, high
from minigrad.locks import new_rlock
from minigrad.loops.nest import Nest
from minigrad.render import opencl_kernel
from minigrad.render.opencl_kernel import Source
from minigrad.runtimes.opencl_build import build
from minigrad.runtimes.opencl_checks import Checks
from minigrad.runtimes.opencl_devices import (
    context_of,
    device_called,
    group_of,
    has_doubles,
    opencl,
)
from minigrad.runtimes.opencl_memory import Pool
from minigrad.runtimes.opencl_pocl import calm_llvm, check_pocl, where_kept
from minigrad.runtimes.opencl_program import Kernel, Launch, OpenCLProgram
from minigrad.runtimes.report import show_times
from minigrad.settings import flag
from minigrad.target import Target

GROUP = 128  # work-items of a group if each has its own iteration
WAVES = 64  # groups for each unit of a GPU, at most, if work-items can take strides
STAGED_BYTES = 4 << 20  # largest copy to the device that may wait in the queue
MOST_STAGED = 16  # such copies at a time
SLICES = 16  # groups for each unit that have scratch memory at a time
SCRATCH_BYTES = 256 << 20  # of all groups together; groups that do not fit are launched later


def open_device(name: str) -> OpenCL:
    """The runtime of a device "CL", "CL:1", … Raises DeviceError if it cannot be used."""
    device = device_called(name)
    check_pocl(device)
    calm_llvm(device)
    return OpenCL(name, device)


def _is_done(event: Any) -> bool:
    """Whether a command has ended, also with an error, whose status is below 0."""
    return bool(event.command_execution_status <= opencl().command_execution_status.COMPLETE)


class OpenCL(Runtime):
    """One device with its context, its in-order queue and its pool of buffers."""

    generalizes = True
    fails_late = True
    seconds = None  # see `compile.Backend`

    def __init__(self, name: str, device: Any) -> None:
        cl = opencl()
        self.name, self.device = name, device
        self.label = f"{name} ({device.name.strip()})"
        self.lock = new_rlock()
        try:
            self.context = context_of(device)
            self.queue = cl.CommandQueue(self.context, device)
        except cl.Error as error:
            raise DeviceError(f"cannot open {self.label}: {error}") from None
        self.pool = Pool(self.label, self.context, device)
        self.fp64 = has_doubles(device)
        self.group = group_of(device)
        self.target = Target(0, 16, 32 << 10, 512 << 10, group=self.group)
        exact = device.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT
        self._options = ["-cl-fp32-correctly-rounded-divide-sqrt"] if exact else []
        # A kernel is kept as long as a program holds it.
        self._kernels: WeakValueDictionary[str, Kernel] = WeakValueDictionary()
        self._staged: deque[Any] = deque()  # events of copies to the device, oldest first
        self._checks = Checks(name)

    def allocate(self, nbytes: int) -> Any:
        """A buffer of at least nbytes."""
        return self.pool.allocate(nbytes)

    def allocate_zeros(self, nbytes: int) -> Any:
        """A buffer of zeros, which the device fills after all earlier work."""
        memory = self.pool.allocate(nbytes)
        try:
            with self.doing("filling"):
                if nbytes:
                    opencl().enqueue_fill_buffer(self.queue, memory, bytes(1), 0, nbytes)
        except DeviceError:
            self.pool.free(memory, nbytes)
            raise
        return memory

    def free(self, memory: Any, nbytes: int) -> None:
        """Return a buffer to the pool."""
        self.pool.free(memory, nbytes)

    def copy_in(self, memory: Any, data: memoryview) -> None:
        """Fill a buffer from the host's bytes, after all earlier work.

        If there are few bytes, a copy of them is queued, and the caller does not wait. With many
        the caller waits: they might not stay unchanged until the device reads them (a kernel of the
        CPU may write there next), and copying them takes the host as long as it would save. On PoCL
        it was slower by up to a fifth.
        """
        if data.nbytes > STAGED_BYTES:
            self._copy(memory, data)
            return
        with self.doing("copying"):
            event = opencl().enqueue_copy(self.queue, memory, bytearray(data), is_blocking=False)
            self.queue.flush()
            with self.lock:
                staged = self._staged
                while staged and _is_done(staged[0]):
                    staged.popleft()
                while len(staged) >= MOST_STAGED:
                    staged.popleft().wait()
                staged.append(event)  # it keeps the bytes alive

    def copy_out(self, memory: Any, data: memoryview) -> None:
        """Read a buffer into the host's bytes, after all earlier work.

        The caller waits, because neither the host nor a kernel of the CPU tests whether bytes have
        arrived.
        """
        self._copy(data, memory)
        self._decide()

    def copy_across(self, memory: Any, source: Runtime, given: Any, nbytes: int) -> bool:
        """Copy from a device of the same context, in the order of both queues."""
        if not isinstance(source, OpenCL) or source.context != self.context:
            return False
        if source.name in undecided:
            source.synchronize()
        cl = opencl()
        with self.doing("copying"):
            # The copy comes after everything that fills `given`, and later commands there, which
            # might write to it, come after the copy. Each waits for what was enqueued before it.
            filled = cl.enqueue_marker(source.queue)
            source.queue.flush()
            done = cl.enqueue_copy(self.queue, memory, given, byte_count=nbytes, wait_for=[filled])
            self.queue.flush()
            cl.enqueue_barrier(source.queue, wait_for=[done])
            source.queue.flush()
        return True

    def copy_rows(self, to: Rows, given: Rows, nbytes: int, rows: int = 1, blocks: int = 1) -> None:
        """Copy blocks of rows between buffers, in queue order."""
        (memory, start, *strides), (source, begin, *steps) = to, given
        with self.doing("copying"):
            opencl().enqueue_copy(
                self.queue, memory, source, region=(nbytes, rows, blocks),
                src_origin=(begin, 0, 0), src_pitches=steps,
                dst_origin=(start, 0, 0), dst_pitches=strides,
            )

    def _copy(self, target: Any, source: Any) -> None:
        with self.doing("copying"):
            opencl().enqueue_copy(self.queue, target, source, is_blocking=True)

    def synchronize(self) -> None:
        """Wait for everything in the queue."""
        with self.doing("waiting"):
            self.queue.finish()
        self._decide()

    def expect_zero(self, memory: Any, failure: Callable[[], MinigradError]) -> None:
        """Copy a program's result to the host, and test it when the host waits anyway."""
        number = bytearray(4)
        with self.lock, self.doing("copying"):
            event = opencl().enqueue_copy(self.queue, number, memory, is_blocking=False)
            self._checks.forget(_is_done)
            self._checks.expect(event, number, failure)

    def follow(self, read: Iterable[Buffer], filled: Iterable[Buffer]) -> None:
        """Record what a program reads and fills while another is undecided."""
        with self.lock:
            self._checks.follow(read, filled)

    def _decide(self) -> None:
        if self.name in undecided:
            with self.lock:
                self._checks.decide()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Around calls of the driver: its errors become a DeviceError that says what was done."""
        cl = opencl()
        try:
            yield
        except (cl.MemoryError, MemoryError) as error:
            raise self.pool.exhausted(what, f" ({error})") from None
        except cl.Error as error:
            raise DeviceError(
                f"{self.label} failed while {what}: {error}; other devices still work"
            ) from None

    @kept
    def timed_queue(self) -> Any:
        """A second queue whose events have times; nothing else runs while it is in use."""
        properties = opencl().command_queue_properties.PROFILING_ENABLE
        return opencl().CommandQueue(self.context, self.device, properties)

    def compile(self, graph: Graph) -> OpenCLProgram:
        """Schedule a graph and build its kernels."""
        made = schedule_of(graph, self.target, bool(flag("FUSE")))
        if any(kernel.kind == "exchange" for kernel in made.kernels):
            raise DeviceError(
                f"{self.label} cannot exchange data between ranks; use CPU or REF devices for "
                "parallel programs (--device)"
            )
        with self.doing("building kernels"):
            with self.lock:
                built = code_of(made.kernels, self)
            return OpenCLProgram(self, made, built)

    def kernel(self, program: Any, name: str) -> Any:
        """A kernel object of a program of the driver. DeviceError if it has no such kernel."""
        where = where_kept(self.device)
        with self.doing(f"looking up the kernel {name!r} in its program{where}"):
            return opencl().Kernel(program, name)

    def launch(self, launches: Sequence[Launch], variables: Mapping[str, int]) -> None:
        """Enqueue kernels whose arguments are set; with DEBUG, wait and show their times.

        The caller handles errors of the driver: see `doing`.
        """
        cl, level = opencl(), flag("DEBUG")
        if level:
            self.synchronize()
        enqueue = cl.enqueue_nd_range_kernel
        queue = self.timed_queue if level else self.queue
        events = [
            [enqueue(queue, one.kernel, n, (one.code.group,), at)
             for n, at in one.code.pieces(variables)]
            for one in launches
        ]
        if not level:
            queue.flush()
        else:
            queue.finish()
            seconds = [  # by the device's own clock
                1e-9 * max(sum(event.profile.end - event.profile.start for event in own), 1)
                for own in events
            ]
            show_times([one.code.nest for one in launches], seconds, level, "work-items")

    # ---- kernels: see `compile.Backend` ----

    def find(self, key: str) -> Kernel | None:
        """The kernel that was built before, or None."""
        return self._kernels.get(digest(key))

    def render(self, nest: Nest) -> Source:
        """The OpenCL C of a nest."""
        return opencl_kernel.render(nest, self.fp64, self.label)

    def build(self, kernels: Iterable[tuple[str, Rendered[Source]]]) -> dict[str, Kernel]:
        """Build kernels, several in a program."""
        new = list(kernels)
        sources = [one.text for _, one in new]
        built = build(self.context, self.device, self.label, sources, self._options)
        made = {}
        for (key, one), program in zip(new, built, strict=True):
            size = self._work_size(one.nest, one.text)
            made[key] = Kernel(one.nest, one.arguments, one.text, *program, *size)
            self._kernels[digest(key)] = made[key]
        return made

    def _work_size(self, nest: Nest, source: Source) -> tuple[int, int, int]:
        """Work-items of a launch, a multiple of the group; of the group; and of all launches.

        They depend on the kernel and the device only, and what a work-item computes not even on
        these.
        """
        if nest.items:
            group = nest.items
            total = items = high(nest.total) * group
        else:
            group = min(GROUP, self.device.max_work_group_size)
            items = ceildiv(max(high(nest.total), 1), group) * group
            total = items = min(items, WAVES * group * self.group.units)  # enough take strides
        if source.scratch_bytes:
            most = max(min(SCRATCH_BYTES, self.pool.most) // source.scratch_bytes, 1)
            items = min(items, min(most, SLICES * self.group.units) * group)
        return items, group, total
