"""Whole programs: from the nodes that somebody wants to buffers that hold their values.

`realize` is the only door between lazy graphs and machines: it splits a graph at copies between
devices, finds or compiles the program of each part, and runs it.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minigrad.device import Buffer, Call, Device, Program
from minigrad.dtype import dtypes
from minigrad.errors import DeviceError
from minigrad.graph.bounds import Check, checks
from minigrad.graph.build import buffer, rebuild
from minigrad.graph.canonical import canonicalize
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.symbolic import numel
from minigrad.locks import new_rlock
from minigrad.settings import flag, state_that

MOST_PROGRAMS = 1024  # that are kept; a program that somebody holds (a capture) lives on


class Programs:
    """The programs of this process by key: at most `most`, without the longest unused ones."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._entries: dict[Any, list[Any]] = {}  # key → program, time of its last use
        self._clock = itertools.count()
        self._lock = new_rlock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Any, make: Callable[[], Program]) -> Program:
        """The program of a key, made if there is none."""
        # A key describes a whole graph, so that hashing it is dear: it is looked up once.
        entry = self._entries.get(key)
        if entry is None:
            with self._lock:
                entry = self._entries.get(key)
                if entry is None:
                    made = make()
                    self._make_room()
                    entry = self._entries[key] = [made, 0]
        entry[1] = next(self._clock)
        program: Program = entry[0]
        return program

    def _make_room(self) -> None:
        """Forget an eighth of the programs at once, so that looking for the oldest stays cheap."""
        if len(self._entries) >= self.most:
            oldest = sorted(self._entries.items(), key=lambda item: item[1][1])
            for key, _ in oldest[: max(self.most // 8, 1)]:
                del self._entries[key]


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


class Guarded:
    """A program under GUARD: its last slots count the indices that are out of range.

    Raises BoundsError after a run in which there were any.
    """

    def __init__(self, program: Program, device: str, checked: Sequence[Check]) -> None:
        self.program, self.device, self.checked = program, device, tuple(checked)

    def run(self, buffers: Sequence[Buffer], variables: dict[str, int]) -> None:
        """Run the program, and look at the numbers."""
        counts = [Buffer(self.device, dtypes.int32, 1) for _ in self.checked]
        self.program.run([*buffers, *counts], variables)
        for check, count in zip(self.checked, counts, strict=True):
            found = bytearray(4)
            # Not `copy_out`: a capture objects to values that the user reads, and this is none.
            Device[self.device].copy_out(count.memory, memoryview(found))
            number = int.from_bytes(found, sys.byteorder)
            if number:
                raise check.error(number)


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


def realize(roots: Sequence[Node]) -> list[Node]:
    """Compute nodes; gives, for each, the BUFFER node that holds its value.

    An ASSIGN root is written to its target's memory, after every read of the old value in this
    call. Nodes on several devices may be mixed.
    """
    order = topological(roots)
    operations = {node.op for node in order}
    if Op.CUSTOM in operations:
        roots = without_rules(roots, order)
    if Op.COPY in operations:
        roots = _run_copies(roots)
    result: dict[Node, Node] = {root: root for root in roots if root.op is Op.BUFFER}
    by_device: dict[str, list[Node]] = {}
    for root in dict.fromkeys(roots):
        if root not in result:
            by_device.setdefault(root.device, []).append(root)
    for group in by_device.values():
        result.update(zip(group, _run(group), strict=True))
    return [result[root] for root in roots]


def _run(roots: list[Node]) -> list[Node]:
    """Compute roots that need one device only."""
    found = checks(roots) if flag("GUARD") else []
    counts = [count for _, count in found]
    call = canonicalize([*roots, *counts])

    def compile() -> Program:
        program = Device[roots[0].device].compile(call.graph())
        GlobalCounters.programs_compiled += 1
        if not found:
            return program
        return Guarded(program, roots[0].device, [check for check, _ in found])

    program = programs.find((call.key, flag("FUSE"), flag("GUARD")), compile)
    buffers: list[Buffer] = list(call.inputs)
    made = []
    for root, target in zip(roots, call.targets, strict=False):  # the counts are `Guarded`'s
        if target >= len(call.inputs):
            memory = Buffer(root.device, root.dtype, numel(root.shape))
            buffers.append(memory)
            made.append(buffer(memory, root.dtype, root.shape, root.device))
        else:
            made.append(root.src[0])
    GlobalCounters.program_calls += 1
    program.run(buffers, call.values)
    if recording.calls is not None:
        existing = len(call.inputs)
        written = tuple(buffers[target] for target in call.targets if target < existing)
        fresh = tuple(buffers[existing:])
        recording.calls.append(Call(program, tuple(buffers), call.values, fresh, written))
    return made


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
