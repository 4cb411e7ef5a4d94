"""Whole programs: from the nodes that somebody wants to buffers that hold their values.

`realize` is the only door between lazy graphs and machines: it splits a graph at copies between
devices, finds or compiles the program of each part, and runs it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from minigrad.device import Buffer, Call, Device, Program
from minigrad.errors import DeviceError
from minigrad.graph.build import buffer, rebuild
from minigrad.graph.canonical import canonicalize
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.symbolic import numel
from minigrad.settings import flag

_programs: dict[Any, Program] = {}
_lock = threading.RLock()


class _Recording(threading.local):
    """Where `_run` writes down what it ran, while a step is captured by this thread."""

    calls: list[Call] | None = None


recording = _Recording()


class GlobalCounters:
    """What was done so far: kernels, operations, bytes. `GlobalCounters.reset()` starts anew.

    global_ops and global_mem are what the loop nests say (operations, bytes read and written).
    programs_scheduled, kernels_lowered, kernels_rendered and kernels_compiled count the steps from
    a graph to machine code; cache_hits the kernels and programs that were found on disk instead.
    """

    kernel_count = 0
    program_calls = 0
    programs_compiled = 0
    programs_scheduled = 0
    kernels_lowered = 0
    kernels_rendered = 0
    kernels_compiled = 0
    cache_hits = 0
    global_ops = 0
    global_mem = 0
    mem_used = 0
    mem_peak = 0

    @classmethod
    def reset(cls) -> None:
        """Set all counters but the memory in use to zero."""
        cls.kernel_count = cls.program_calls = cls.programs_compiled = 0
        cls.programs_scheduled = cls.kernels_lowered = cls.kernels_rendered = 0
        cls.kernels_compiled = cls.cache_hits = 0
        cls.global_ops = cls.global_mem = 0
        cls.mem_peak = cls.mem_used


def realize(roots: Sequence[Node]) -> list[Node]:
    """Compute nodes; gives, for each, the BUFFER node that holds its value.

    An ASSIGN root is written to its target's memory, after every read of the old value in this
    call. Nodes on several devices may be mixed.
    """
    if any(node.op is Op.COPY for node in topological(roots)):
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
    call = canonicalize(roots)
    settings = (flag("FUSE"), flag("GUARD"))
    key = (call.key, settings)
    program = _programs.get(key)
    if program is None:
        with _lock:
            program = _programs.get(key)
            if program is None:
                graph = call.graph()
                program = _programs[key] = Device[roots[0].device].compile(graph)
                GlobalCounters.programs_compiled += 1
    buffers: list[Buffer] = list(call.inputs)
    made = []
    for root, target in zip(roots, call.targets, strict=True):
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


def _run_copies(roots: Sequence[Node]) -> list[Node]:
    """Realize the source of every COPY, copy it through the host, and put the buffer in place."""
    new: dict[Node, Node] = {}
    for node in topological(roots):
        if node.op is Op.COPY:
            (source,) = realize([new[node.src[0]]])
            memory = Buffer(node.device, node.dtype, numel(node.shape))
            memory.copy_in(source.arg.copy_out())
            new[node] = buffer(memory, node.dtype, node.shape, node.device)
        else:
            new[node] = rebuild(node, [new[source] for source in node.src])
    return [new[root] for root in roots]


def bytes_of(node: Node) -> bytearray:
    """The bytes of a BUFFER node, row-major, on the host."""
    if node.op is not Op.BUFFER:
        raise DeviceError(f"bytes_of expects a realized node, got {node!r}")
    return bytearray(node.arg.copy_out())
