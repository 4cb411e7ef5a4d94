"""Whole programs: from the nodes that somebody wants to buffers that hold their values.

`realize` is the only door between lazy graphs and machines: it splits a graph at copies between
devices, finds or compiles the program of each part, and runs it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from minigrad.device import Buffer, Call, Device, Program, refuse, renew, spoiled, undecided
from minigrad.dtype import dtypes
from minigrad.errors import BoundsError, DeviceError, MinigradError
from minigrad.failure import failure_of
from minigrad.graph.build import buffer, rebuild
from minigrad.graph.canonical import Canonical, Cell, Graph, canonicalize
from minigrad.graph.general import MOST_SAMPLES, General, Special, generalize
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.shapes import numel
from minigrad.locks import new_rlock
from minigrad.settings import flag, report, state_that

MOST_PROGRAMS = 1024  # that are kept; a program that somebody holds (a capture) lives on
MOST_SPECIAL = 64  # programs of one structure


class Family:
    """The programs of graphs of one structure.

    special: by all of their numbers. general: those that take some of these as arguments, the last
    one first. samples: the numbers of which a general one is to be made.
    """

    def __init__(self) -> None:
        self.special: dict[tuple[Cell, ...], Program] = {}
        self.general: list[tuple[General, Program]] = []
        self.samples: list[tuple[Cell, ...]] = []
        self.used = 0

    def __len__(self) -> int:
        return len(self.special) + len(self.general)

    def find(self, cells: tuple[Cell, ...]) -> tuple[Program, Mapping[str, int]] | None:
        """The program for these numbers, with the values of the variables that it adds."""
        program = self.special.get(cells)
        if program is not None:
            return program, NO_VALUES
        for general, program in self.general:
            values = general.match(cells)
            if values is not None:
                return program, values
        return None

    def make(self, call: Canonical, compile: Callable[[Graph], Program]) -> None:
        """Compile a program that `find` then finds: a general one where this is not the first."""
        self.samples.append(call.cells)
        if len(self.samples) > 1 and Device[call.roots[0].device].generalizes:
            try:
                general = generalize(call, self.samples)
            except Special as reason:
                report(1, lambda text=str(reason): f"special: {text}")  # type: ignore[misc]
                if len(self.samples) > MOST_SAMPLES:
                    del self.samples[1:]
            else:
                self.general.insert(0, (general, compile(general.graph)))
                del self.general[MOST_SAMPLES:]
                return
        if len(self.special) >= MOST_SPECIAL:
            del self.special[next(iter(self.special))]
        self.special[call.cells] = compile(call.graph())


NO_VALUES: Mapping[str, int] = MappingProxyType({})


class Programs:
    """The programs of this process: about `most`, without the longest unused families of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._families: dict[Any, Family] = {}
        self._clock = itertools.count()
        self._lock = new_rlock()

    def __len__(self) -> int:
        return sum(map(len, self._families.values()))

    def find(
        self, call: Canonical, compile: Callable[[Graph], Program]
    ) -> tuple[Program, Mapping[str, int]]:
        """The program of a call, compiled if there is none, and values besides the call's."""
        # A structure describes a whole graph, so that hashing it is dear: it is looked up once.
        key = (call.structure, flag("FUSE"), flag("GUARD"))
        family = self._families.get(key)
        found = None if family is None else family.find(call.cells)
        if found is None:
            with self._lock:
                family = self._families.get(key)
                if family is None:
                    family = self._families[key] = Family()
                found = family.find(call.cells)
                if found is None:
                    self._make_room(family)
                    family.make(call, compile)
                    found = family.find(call.cells)
                    assert found is not None, call
        assert family is not None
        family.used = next(self._clock)
        return found

    @property
    def generals(self) -> int:
        """How many of them are general."""
        return sum(len(one.general) for one in self._families.values())

    def forget(self) -> None:
        """Begin anew: the next graph of each structure counts as its first."""
        with self._lock:
            self._families.clear()

    def _make_room(self, wanted: Family) -> None:
        """Forget an eighth of the programs at once, so that looking for the oldest stays cheap."""
        left = len(self)
        if left >= self.most:
            oldest = sorted(self._families.items(), key=lambda item: item[1].used)
            for key, family in oldest:
                if left <= self.most - max(self.most // 8, 1):
                    break
                if family is not wanted:
                    left -= len(family)
                    del self._families[key]


programs = Programs(MOST_PROGRAMS)


class _Recording(threading.local):
    """Where `_run` writes down what it ran, while a step is captured by this thread."""

    calls: list[Call] | None = None


recording = _Recording()


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Write down what this thread runs meanwhile. Not to be nested."""
    calls: list[Call] = []
    recording.calls = calls
    state_that("recording", True)
    try:
        yield calls
    finally:
        recording.calls = None
        state_that("recording", False)


class _Timeline(threading.local):
    """Who wants to know of each kernel that this thread runs: its label, start and end.

    The times are those of `time.perf_counter()`. Kernels are then run one by one.
    """

    record: Callable[[str, float, float], None] | None = None


timeline = _Timeline()


class _Counters:
    """What was done so far: kernels, operations, bytes. `GlobalCounters.reset()` starts anew.

    global_ops and global_mem are what the loop nests say (operations, bytes read and written).
    programs_scheduled, kernels_lowered, kernels_rendered and kernels_compiled count the steps from
    a graph to machine code; cache_hits the kernels and programs that were found on disk instead.
    """

    # An object with slots: to set an attribute of a class is ten times as slow.
    __slots__ = (
        "kernel_count", "program_calls", "programs_compiled", "programs_scheduled",
        "kernels_lowered", "kernels_rendered", "kernels_compiled", "cache_hits",
        "global_ops", "global_mem", "mem_used", "mem_peak",
    )  # fmt: skip

    def __init__(self) -> None:
        self.mem_used = 0
        self.reset()

    def reset(self) -> None:
        """Set all counters but the memory in use to zero."""
        self.kernel_count = self.program_calls = self.programs_compiled = 0
        self.programs_scheduled = self.kernels_lowered = self.kernels_rendered = 0
        self.kernels_compiled = self.cache_hits = 0
        self.global_ops = self.global_mem = 0
        self.mem_peak = self.mem_used

    def ran(self, kernels: int, operations: int, traffic: int) -> None:
        """Count a program that was run."""
        self.kernel_count += kernels
        self.global_ops += operations
        self.global_mem += traffic


GlobalCounters = _Counters()


def realize(
    roots: Sequence[Node],
    failures: list[MinigradError] | None = None,
    order: Sequence[Node] | None = None,
) -> list[Node]:
    """Compute nodes; gives, for each, the BUFFER node that holds its value.

    An ASSIGN root is written to its target's memory, after every read of the old value in this
    call. Nodes on several devices may be mixed.

    Raises BoundsError where an index is out of range; or adds it to `failures`, where these are
    given: then the nodes whose value it concerns cannot be read. order: `topological(roots)`.
    """
    if order is None:
        order = topological(roots)
    operations = {node.op for node in order}
    whole: Sequence[Node] | None = order
    if Op.CUSTOM in operations:
        roots, whole = without_rules(roots, order), None
    if Op.COPY in operations:
        roots, whole = _run_copies(roots), None
    result: dict[Node, Node] = {root: root for root in roots if root.op is Op.BUFFER}
    by_device: dict[str, list[Node]] = {}
    for root in dict.fromkeys(roots):
        if root not in result:
            by_device.setdefault(root.device, []).append(root)
    checked = Op.CHECK in operations and flag("BOUNDS") != 0
    found: list[MinigradError] = []
    for group in by_device.values():
        known = whole if len(group) == len(roots) else None
        result.update(zip(group, _run(group, checked, found, known), strict=True))
    if failures is not None:
        failures += found
    elif found:
        raise found.pop()  # nor may this frame keep it, which it keeps
    return [result[root] for root in roots]


def _run(
    roots: list[Node], checked: bool, failures: list[MinigradError],
    order: Sequence[Node] | None = None,
) -> list[Node]:  # fmt: skip
    """Compute roots that need one device only. order: `topological(roots)`, if that is known.

    checked: whether the CHECKs count; if so, and if it is known by now that an index is out of
    range, the error goes to `failures`.
    """
    call = canonicalize(roots, checked, order)
    if spoiled:
        refuse(_read_by(call))

    def compile(graph: Graph) -> Program:
        program = Device[graph.device].compile(graph)
        GlobalCounters.programs_compiled += 1
        return program

    program, values = programs.find(call, compile)
    if call.values:
        values = {**call.values, **values}
    buffers: list[Buffer] = list(call.inputs)
    made = []
    for root, target in zip(roots, call.targets, strict=True):
        if target >= len(call.inputs):
            memory = Buffer(root.device, root.dtype, numel(root.shape))
            buffers.append(memory)
            made.append(buffer(memory, root.dtype, root.shape, root.device))
        else:
            made.append(root.src[0])
    if call.checks:
        buffers.append(Buffer(roots[0].device, dtypes.uint32, 1))
    GlobalCounters.program_calls += 1
    program.run(buffers, values)
    if spoiled:
        renew(node.arg for node in made)
    if roots[0].device in undecided:
        Device[roots[0].device].follow(_read_by(call), [node.arg for node in made])
    if call.checks:
        failures += _look(call, made, buffers[-1])
    if recording.calls is not None:
        existing = len(call.inputs)
        written = tuple(buffers[target] for target in call.targets if target < existing)
        fresh = tuple(buffers[existing:])
        recording.calls.append(Call(
            program, tuple(buffers), values, fresh, written, _read_by(call), call.checks,
            _doubtful(call, made),
        ))  # fmt: skip
    return made


def _look(call: Canonical, made: Sequence[Node], count: Buffer) -> list[MinigradError]:
    """An error where the program found an index out of range, if the device knows it already."""

    def failure() -> BoundsError:
        written = frozenset(node.arg for node in made)
        return failure_of(call.checks, call.values, written, {}, _doubtful(call, made))

    try:
        Device[count.device].expect_zero(count.memory, failure)
    except BoundsError as error:
        return [error.with_traceback(None)]
    return []


def _doubtful(call: Canonical, made: Sequence[Node]) -> frozenset[Buffer]:
    """The results that depend on a CHECK."""
    depends = set(call.checks)
    for node in call.order if call.checks else ():
        if not depends.isdisjoint(node.src):
            depends.add(node)
    pairs = zip(call.roots, made, strict=True)
    return frozenset(node.arg for root, node in pairs if root in depends)


def _read_by(call: Canonical) -> frozenset[Buffer]:
    """The buffers whose values a program uses: not those that it only fills."""
    sources = (node.src[1:] if node.op is Op.ASSIGN else node.src for node in call.order)
    return frozenset(one.arg for some in sources for one in some if one.op is Op.BUFFER)


def without_rules(roots: Sequence[Node], order: Sequence[Node]) -> list[Node]:
    """The roots without gradient rules: each CUSTOM replaced by its value. order: topological."""
    new: dict[Node, Node] = {}
    for node in order:
        if node.op is Op.CUSTOM:
            new[node] = new[node.src[0]]
        else:
            new[node] = rebuild(node, [new[source] for source in node.src])
    return [new[root] for root in roots]


def _run_copies(roots: Sequence[Node]) -> list[Node]:
    """Realize the source of every COPY, copy it, and put the buffer in place."""
    new: dict[Node, Node] = {}
    for node in topological(roots):
        if node.op is Op.COPY:
            (source,) = realize([new[node.src[0]]])
            memory = Buffer(node.device, node.dtype, numel(node.shape))
            memory.copy_from(source.arg)
            new[node] = buffer(memory, node.dtype, node.shape, node.device)
        else:
            new[node] = rebuild(node, [new[source] for source in node.src])
    return [new[root] for root in roots]


def bytes_of(node: Node) -> bytearray:
    """The bytes of a BUFFER node, row-major, on the host."""
    if node.op is not Op.BUFFER:
        raise DeviceError(f"bytes_of expects a realized node, got {node!r}")
    return bytearray(node.arg.copy_out())
