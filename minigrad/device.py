"""Devices: the memory of tensors, and the small interface that a runtime implements.

A runtime is found by the name of its device: "CPU", "CPU:1", "REF", "CL" … No other code in
`minigrad/` knows which runtimes exist.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

from minigrad.dtype import DType, dtypes, number_of
from minigrad.errors import DeviceError, LostValueError, MinigradError
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Node
from minigrad.graph.sharding import meshes
from minigrad.hints import answer, hint
from minigrad.locks import new_rlock
from minigrad.settings import getenv, put

# Kind of device → module that has `open_device(name: str) -> Runtime`.
RUNTIMES = {
    "CPU": "minigrad.runtimes.cpu",
    "REF": "minigrad.runtimes.reference",
    "CL": "minigrad.runtimes.opencl",
}
# The module that has `MeshRuntime(mesh: Mesh)` for several devices.
MESHES = "minigrad.models.parallel.mesh_device"


class Program(Protocol):
    """A compiled graph."""

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """Compute every root of the graph into its slot.

        `buffers` has one allocated buffer per slot; `variables` one value per symbolic integer.
        May return before the work is done if the device is asynchronous.
        """


@dataclass(frozen=True)
class Call:
    """One recorded run of a program.

    made: the buffers that it was the first to fill; written: those that it updated in place; read:
    those whose values it used. checks: the CHECK nodes whose result is in the last buffer;
    doubtful: the buffers that are wrong if one of them fails. numbers: `numbers_of` its graph
    (`graph/canonical.py`).
    """

    program: Program
    buffers: tuple[Buffer, ...]
    variables: Mapping[str, int]
    made: tuple[Buffer, ...]
    written: tuple[Buffer, ...]
    read: frozenset[Buffer] = frozenset()
    checks: tuple[Node, ...] = ()
    doubtful: frozenset[Buffer] = frozenset()
    numbers: Set[tuple[int, tuple[str, ...]]] = frozenset()


class Replay(Protocol):
    """Recorded calls that can be repeated with other memory for their arguments.

    Only one thread at a time may put arguments and run: the caller ensures that.
    """

    @property
    def put(self) -> Callable[..., None]:
        """Takes one runtime handle per argument, to be used as the arguments' memory."""

    def run(self, variables: Mapping[str, int]) -> None:
        """Make the calls."""


class Sequential:
    """The Replay of any runtime: one program after the other."""

    def __init__(self, calls: Sequence[Call], arguments: Sequence[Buffer]) -> None:
        self.calls = calls
        self.places = {argument: place for place, argument in enumerate(arguments)}
        self.memories: tuple[Any, ...] = ()

    def put(self, *memories: Any) -> None:
        """Use `memories` as the arguments' memory."""
        self.memories = memories

    def run(self, variables: Mapping[str, int]) -> None:
        """Run each program on its buffers and the arguments."""
        for call in self.calls:
            buffers = [
                Buffer.borrow(one, self.memories[self.places[one]]) if one in self.places else one
                for one in call.buffers
            ]
            call.program.run(buffers, {**call.variables, **variables})


# Where blocks of rows are in a device's memory: (memory, start, stride, apart). Row r of block b
# begins at byte start + b · apart + r · stride. A plain tuple, because joining arrays makes two for
# each of them.
Rows = tuple[Any, int, int, int]


class Runtime(Protocol):
    """What a device must be able to do. `memory` is whatever `allocate` returned.

    The methods that have a body here, or that only note something or wait, are right for a device
    whose work is done when a call returns, and whose memory the host cannot access.
    """

    name: str
    generalizes: bool  # whether programs are compiled, so that one should serve many numbers
    byte_dots: bool = False  # whether it multiplies four bytes as fast as one float32
    byte_matrices: bool = False  # whether it multiplies matrices of bytes as fast as of floats
    # whether `expect_zero` raises nothing, but later accesses to results do
    fails_late: bool = False

    def allocate(self, nbytes: int) -> Any:
        """Uninitialised memory of at least nbytes (which may be 0)."""

    def allocate_zeros(self, nbytes: int) -> Any:
        """Like `allocate`, but the first nbytes are 0; devices have cheap ways to do that."""

    def free(self, memory: Any, nbytes: int) -> None:
        """Release memory (it may be kept for a later `allocate`)."""

    def copy_in(self, memory: Any, data: memoryview) -> None:
        """Fill the first len(data) bytes of memory; `data` is a flat view of bytes."""

    def copy_out(self, memory: Any, data: memoryview) -> None:
        """Copy the first len(data) bytes into the writable flat view `data`, when work is done."""

    def host_address(self, memory: Any) -> int | None:
        """The memory's address on the host; None if the host cannot access it."""
        return None

    def adopt(self, address: int) -> Any:
        """Memory of the host as memory of this device; None if the device cannot access it."""
        return None

    def copy_across(self, memory: Any, source: Runtime, given: Any, nbytes: int) -> bool:
        """Fill memory from `given` of another runtime, not through the host, which need not wait.

        Returns False if the two devices have no such way.
        """
        return False

    def copy_rows(self, to: Rows, given: Rows, nbytes: int, rows: int = 1, blocks: int = 1) -> None:
        """Copy blocks of rows of nbytes bytes within the device's memory."""

    def first(self, memory: Any, dtype: DType) -> int | float | bool:
        """The first element of memory that holds elements of `dtype`, when work is done."""
        data = bytearray(dtype.itemsize)
        self.copy_out(memory, memoryview(data))
        return number_of(data, dtype)

    def expect_zero(self, memory: Any, failure: Callable[[], MinigradError]) -> None:
        """Raise the error that `failure` makes unless the first four bytes of memory are 0.

        That is known when all work is done: an asynchronous device raises it later, when the host
        reads something or waits for the device.
        """
        if self.first(memory, dtypes.uint32):
            raise failure()

    def follow(self, read: Iterable[Buffer], filled: Iterable[Buffer]) -> None:
        """Note what a program reads and fills while the device's name is in `undecided`."""
        return

    def compile(self, graph: Graph) -> Program:
        """Turn a canonical graph into a program."""

    def compose(self, calls: Sequence[Call], arguments: Sequence[Buffer]) -> Replay:
        """One replayable call that makes all of the recorded `calls`, in order.

        arguments: the recorded buffers that each replay replaces; all others stay as they are.
        Variables are replaced too.
        """
        return Sequential(calls, arguments)

    def synchronize(self) -> None:
        """Wait for all work that was started."""
        return


class Watch(Protocol):
    """A listener for the host's reads and writes of buffers (such as a capture: see `jit`)."""

    def reads(self, buffer: Buffer) -> None:
        """The host is about to read a buffer."""

    def writes(self, buffer: Buffer) -> None:
        """The host is about to write a buffer."""

    def makes(self, buffer: Buffer) -> None:
        """The host has made a buffer that already has values."""

    def replaces(self, holder: Any) -> None:
        """A tensor without memory is about to get another value."""

    def borrows(self, holder: Any) -> bool:
        """Whether another tensor keeps the memory that a tensor is about to write to."""


class _Watching(threading.local):
    watch: Watch | None = None
    log: list[int] | None = None  # hashes of what the host has written, if requested


watching = _Watching()

_buffer_numbers = itertools.count()

# id of a buffer that a failed program wrote, or should have written → the buffer, and the reason.
poisoned: dict[int, tuple[weakref.ref[Buffer], str]] = {}
# Functions to call when a failure comes late.
late_failures: list[Callable[[MinigradError], None]] = []
# Names of devices where it is not known yet whether all programs have succeeded.
undecided: set[str] = set()


def poison(buffers: Iterable[Buffer], reason: str) -> None:
    """Prevent reads of buffers that a failed program wrote, until they are filled again."""
    for buffer in buffers:
        if not buffer.steady:
            number = id(buffer)
            link = weakref.ref(buffer, lambda _, number=number: poisoned.pop(number, None))  # type: ignore[misc]
            poisoned[number] = link, reason


def refuse(buffers: Iterable[Buffer]) -> None:
    """LostValueError if one of the buffers that are about to be read is spoiled."""
    for buffer in buffers:
        found = poisoned.get(id(buffer))
        if found is not None:
            raise LostValueError(
                f"a tensor of {buffer.size} × {buffer.dtype.name} has no value: the program that "
                f"should have written it failed ({found[1]}); write all of it again, e.g. with "
                ".assign(), set_data() or load_state_dict()"
            )


def renew(buffers: Iterable[Buffer]) -> None:
    """Allow reads of buffers, because they were filled."""
    for buffer in buffers:
        poisoned.pop(id(buffer), None)


def about_to_read(buffers: Sequence[Buffer]) -> None:
    """Tell the listener that the host is about to read; LostValueError if a value is lost."""
    if watching.watch is not None:
        for buffer in buffers:
            watching.watch.reads(buffer)
    if poisoned:
        refuse(buffers)


def _host_bytes(address: int, nbytes: int) -> memoryview:
    """A writable view of the host's memory."""
    return memoryview((ctypes.c_ubyte * nbytes).from_address(address)).cast("B")


class Buffer:
    """A piece of a device's memory that holds `size` elements of `dtype`; allocated at first use.

    memory: a handle, if it is already allocated. The device gets its memory back when the last
    reference to the buffer goes. handle: the runtime's handle, None before the first use. steady:
    whether it is right whatever fails: a random state, which only counts. owner: a weak reference
    to the tensor whose memory this is, for captured steps or because the host shares it (`lent`);
    False if a step gives it to another tensor at each call.
    """

    __slots__ = (
        "device", "dtype", "size", "number", "handle", "steady", "owner", "lent", "_borrowed",
        "__weakref__",
    )  # fmt: skip

    def __init__(self, device: str, dtype: DType, size: int, memory: Any = None) -> None:
        self.device, self.dtype, self.size = device, dtype, size
        self.number = next(_buffer_numbers)
        self.handle, self.steady = memory, False
        self._borrowed: Any = False
        self.owner: Any = None
        self.lent = False

    @classmethod
    def borrow(cls, like: Buffer, memory: Any, owner: object = True) -> Buffer:
        """A buffer like another on memory of another owner; it keeps `owner` alive."""
        made = cls(like.device, like.dtype, like.size)
        made.handle, made._borrowed = memory, owner
        return made

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def memory(self) -> Any:
        """The runtime's handle, allocated at first use."""
        if self.handle is None:
            self.handle = Device[self.device].allocate(self.size * self.dtype.itemsize)
        return self.handle

    @property
    def has_values(self) -> bool:
        """Whether it holds something already."""
        return self.handle is not None

    def copy_in(self, data: bytes | bytearray | memoryview) -> None:
        """Fill it with nbytes bytes of the host."""
        if watching.watch is not None:
            watching.watch.writes(self)
        view = memoryview(data).cast("B")
        if watching.log is not None:
            watching.log.append(hash(bytes(view)))
        if view.nbytes != self.nbytes:
            raise ValueError(f"expected at most {self.nbytes} bytes, got {view.nbytes}")
        if self.nbytes:
            Device[self.device].copy_in(self.memory, view)
        renew((self,))

    def copy_out(self) -> bytearray:
        """Its bytes, copied to the host."""
        about_to_read((self,))
        data = bytearray(self.nbytes)
        if self.nbytes:
            Device[self.device].copy_out(self.memory, memoryview(data))
        return data

    def copy_from(self, source: Buffer) -> None:
        """Fill it with the bytes of an allocated buffer on another device, the shortest way."""
        about_to_read((source,))
        renew((self,))
        nbytes = self.nbytes
        if not nbytes:
            return
        here, there = Device[self.device], Device[source.device]
        if here.copy_across(self.memory, there, source.memory, nbytes):
            return
        address = there.host_address(source.memory)
        if address is not None:
            here.copy_in(self.memory, _host_bytes(address, nbytes))
            return
        address = here.host_address(self.memory)
        data = memoryview(bytearray(nbytes)) if address is None else _host_bytes(address, nbytes)
        there.copy_out(source.memory, data)
        if address is None:
            here.copy_in(self.memory, data)

    def join(self, parts: Sequence[tuple[Buffer, int, int]]) -> None:
        """Fill it with parts of buffers on its device: of each, so many elements from a position.
        """
        about_to_read(read := [part for part, *_ in parts])
        runtime, start, itemsize = Device[self.device], 0, self.dtype.itemsize
        for part, begin, count in parts:
            nbytes = count * itemsize
            source = part.memory, begin * itemsize, nbytes, nbytes
            runtime.copy_rows((self.memory, start, nbytes, nbytes), source, nbytes)
            start += nbytes
        if self.device in undecided:
            runtime.follow(read, (self,))

    def first(self) -> int | float | bool:
        """Its first element as a Python number."""
        about_to_read((self,))
        return Device[self.device].first(self.memory, self.dtype)

    def __reduce__(self) -> Any:  # otherwise a copy would own the same memory
        raise TypeError("cannot copy or pickle a Buffer (it is a piece of memory); copy the Tensor")

    def __repr__(self) -> str:
        return f"<Buffer {self.number} on {self.device}: {self.size} × {self.dtype.name}>"

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.handle is not None and not self._borrowed and not ending():
            runtime = Device.opened.get(self.device)
            if runtime is not None:
                runtime.free(self.handle, self.size * self.dtype.itemsize)


class Zeros(Buffer):
    """A buffer that holds zeros, and has no memory before it is read."""

    __slots__ = ()
    has_values = True
    _first_look = new_rlock()  # reentrant: garbage collection may call `memory` within it

    def __init__(self, device: str, dtype: DType, size: int) -> None:
        super().__init__(device, dtype, size)
        if watching.watch is not None:
            watching.watch.makes(self)

    @property
    def memory(self) -> Any:
        """The runtime's handle: the same one for two threads that ask at once."""
        if self.handle is None:
            runtime = Device[self.device]
            with self._first_look:
                if self.handle is None:
                    self.handle = runtime.allocate_zeros(self.nbytes)
        return self.handle


class _Devices:
    """`Device["CPU"]` opens a device once; `Device.DEFAULT` is where tensors live by default."""

    def __init__(self) -> None:
        self.opened: dict[str, Runtime] = {}
        self.meshes: dict[str, Any] = {}  # by name
        self._spelled: dict[str, str] = {}  # as a user wrote it → minigrad's spelling
        self._lock = new_rlock()

    @property
    def DEFAULT(self) -> str:
        """Name of the default device of this thread (`MINIGRAD_DEVICE` chooses it)."""
        return self.canonical(str(getenv("DEVICE")))

    @DEFAULT.setter
    def DEFAULT(self, name: str) -> None:
        put("DEVICE", self._spell(name))

    def add_mesh(self, mesh: Any) -> None:
        """Make a mesh a device, known by its name and by the tuple of its devices."""
        with self._lock:
            if mesh.name not in self.opened:
                runtime = importlib.import_module(MESHES).MeshRuntime(mesh)
                self._spelled[mesh.name] = mesh.name
                self.meshes[mesh.name], meshes[mesh.name] = mesh, mesh.sizes
                self.opened[mesh.name] = runtime

    def canonical(self, name: str | None) -> str:
        """One spelling per device: "cpu" and "CPU:0" are "CPU". DeviceError for unknown kinds.

        A mesh, and the `.device` of a tensor on one, become the mesh's name, and None the default.
        """
        name = self.DEFAULT if name is None else name
        known = self._spelled.get(name) if name.__class__ is str else None
        if known is None:
            known = self._spell(name)
            if name.__class__ is str:
                self._spelled[name] = known
        return known

    def _spell(self, name: str) -> str:
        mesh = getattr(name, "mesh", None) or getattr(name, "name", None)
        if mesh in self.meshes:
            return str(mesh)
        if not isinstance(name, str):
            raise TypeError(f"device: expected a name such as 'CPU', got {name!r}")
        kind, _, number = name.upper().partition(":")
        if kind not in RUNTIMES or (number and not number.isdecimal()):
            known = ", ".join(RUNTIMES)
            more = "; " + hint('x.to("cuda")') if kind in ("CUDA", "GPU", "MPS") else ""
            raise DeviceError(
                f"unknown device {name!r}: expected one of {known}, or with a number, e.g. "
                f"CPU:1{more}"
            )
        return kind if not number or int(number) == 0 else f"{kind}:{int(number)}"

    def __getitem__(self, name: str) -> Runtime:
        runtime = self.opened.get(name)
        if runtime is None:
            name = self.canonical(name)
            with self._lock:
                runtime = self.opened.get(name)
                if runtime is None:
                    module = importlib.import_module(RUNTIMES[name.partition(":")[0]])
                    runtime = self.opened[name] = module.open_device(name)
        return runtime

    def available(self) -> list[str]:
        """Kinds of devices that can be opened on this machine."""
        found = []
        for kind in RUNTIMES:
            try:
                self[kind]
            except (DeviceError, ImportError):
                continue
            found.append(kind)
        return found

    def synchronize(self) -> None:
        """Wait for the work of every opened device."""
        for runtime in list(self.opened.values()):
            runtime.synchronize()


Device = _Devices()
answer(__name__, 'minigrad.device("cpu")')
