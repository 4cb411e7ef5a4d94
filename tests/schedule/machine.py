"""Runs a schedule for any target and compiler, group by group, on this thread.

Every piece of memory has canaries around it. Chunks of a parallel loop run in random order, and so
do those of kernels that need not wait for each other.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from minigrad.compile import schedule_of
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import ceildiv, high
from minigrad.graph.variable import evaluate
from minigrad.loops.nest import Nest
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.runtimes.cpu import host_target
from minigrad.runtimes.host import host, may_use_matrices
from minigrad.runtimes.jit_compiler import Compiler, host_compiler
from minigrad.runtimes.reference import numpy_dtype
from minigrad.schedule.expr import Array
from minigrad.schedule.groups import SHARED, beside, in_groups, launched
from minigrad.schedule.schedule import LiveRange, Schedule
from minigrad.schedule.schedule import place as in_arena
from minigrad.target import Group, Target

CANARY = 0xA5
MARGIN = 256  # bytes before and after each piece of memory
_KERNEL = ctypes.CFUNCTYPE(
    None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)

# The target of the golden files. Not the host's, so that they are the same everywhere.
GOLDEN = Target(64, 32, 1 << 15, 1 << 20)
# A GPU of few units, so that small programs are enough for the recipes of work-groups.
GPU = Target(0, 16, 32 << 10, 512 << 10, group=Group(256, 48 << 10, 4))

STREAMING = 64  # a cache so small that every store of 32 bytes bypasses it

# Name → target, LLVM's processor, the feature that the host must have to run it.
MACHINES = {
    "avx512": (GOLDEN, "x86-64-v4", "avx512f"),
    "avx512 streaming": (Target(64, 32, 1 << 15, 1 << 20, STREAMING), "x86-64-v4", "avx512f"),
    "avx2": (Target(32, 16, 1 << 15, 1 << 19), "haswell", "avx2"),
    "sse2": (Target(16, 16, 1 << 15, 1 << 18, STREAMING), "x86-64", "sse2"),
    "scalar": (Target(0, 16, 1 << 15, 1 << 18), "x86-64", "sse2"),
}
# Machines for a few tests only.
SPECIAL = {
    "avx512bf16": (replace(GOLDEN, bfloat16_dots=True), "cooperlake", "avx512bf16"),
    "avx512vnni": (replace(GOLDEN, byte_dots=True), "cascadelake", "avx512vnni"),
    "amx": (replace(GOLDEN, matrices=True), "sapphirerapids", "amx-bf16"),
    "amx bytes": (
        replace(GOLDEN, byte_dots=True, matrices=True), "sapphirerapids", "amx-int8"
    ),
    "wide tiles": (replace(GOLDEN, tile_vectors=4), "x86-64-v4", "avx512f"),
    # caches so small that all data comes from memory and is prefetched
    "tiny caches": (replace(GOLDEN, l2=1 << 10), "x86-64-v4", "avx512f"),
    "small caches": (replace(GOLDEN, l2=1 << 14), "x86-64-v4", "avx512f"),
}


def plan_arena(held: Sequence[LiveRange]) -> tuple[dict[Array, int], int]:
    """Byte offsets of the stored arrays that are not slots, and the bytes of the whole arena."""
    offsets, size = in_arena([(high(one.nbytes), one.first, one.last) for one in held])
    return {a: at for one, at in zip(held, offsets, strict=True) for a in one.arrays}, size


@functools.cache
def compiler_of(machine: str) -> Compiler:
    """The compiler of one of MACHINES; skips the test if the host cannot run its code.

    The machine "host" is always available.
    """
    if machine == "host":
        return host_compiler()
    _, cpu, feature = (MACHINES | SPECIAL)[machine]
    if host().architecture != "x86_64" or feature not in host().features:
        pytest.skip(f"the host has no {feature}: code for {cpu} does not run here")
    if feature.startswith("amx") and not may_use_matrices():
        pytest.skip("this process may not use matrix registers")
    return Compiler(cpu=cpu, features="")


def target_of(machine: str) -> Target:
    """The target of one of MACHINES or SPECIAL, or of "host"."""
    return host_target() if machine == "host" else (MACHINES | SPECIAL)[machine][0]


class Memory:
    """Bytes between canaries, 64-byte aligned (`offset` bytes off it)."""

    def __init__(self, nbytes: int, offset: int = 0) -> None:
        self.nbytes = nbytes
        self._all = np.full(nbytes + 2 * MARGIN + 64, CANARY, np.uint8)
        start = MARGIN + -(self._all.ctypes.data + MARGIN) % 64 + offset
        self._start = start
        self.bytes = self._all[start : start + nbytes]
        self.address = self._all.ctypes.data + start

    def check(self, name: str) -> None:
        """AssertionError if something was written outside."""
        before, behind = self._all[: self._start], self._all[self._start + self.nbytes :]
        assert (before == CANARY).all(), f"written before {name}"
        assert (behind == CANARY).all(), f"written behind {name}"


def run(
    graph: Graph,
    values: Mapping[int, np.ndarray],
    machine: str,
    n: int = 1,
    fuse: bool = True,
    seed: int = 0,
) -> list[np.ndarray]:
    """The values of a graph's roots on a machine; n is the value of the variable "n"."""
    compiler = compiler_of(machine)
    plan = schedule_of(graph, target_of(machine), fuse)
    nests = [lower(kernel, target_of(machine)) for kernel in plan.kernels]
    return run_nests(graph, plan, nests, compiler, values, n, seed)


def following(plan: Schedule, nests: Sequence[Nest]) -> list[tuple[int, int]]:
    """How each kernel follows others, if all have work for several threads: see `groups.beside`."""
    places = plan.places()
    given = [
        launched(SHARED, nest, kernel.sources(places, nest.buffers, ()), dict(kernel.numbers))
        for nest, kernel in zip(nests, plan.kernels, strict=True)
    ]
    return beside(plan.kernels, places, [replace(one, chunks=0) for one in given])


def run_nests(
    graph: Graph,
    plan: Schedule,
    nests: list[Nest],
    compiler: Compiler,
    values: Mapping[int, np.ndarray],
    n: int,
    seed: int,
) -> list[np.ndarray]:
    """Compile a schedule's loop nests, and run them group by group, in random order within each."""
    sizes = [0] * graph.slots
    for array, slot in plan.slots.items():
        sizes[slot] = max(sizes[slot], array.size * array.dtype.itemsize)
    slots = [Memory(size, offset=8 * (slot % 3)) for slot, size in enumerate(sizes)]
    for array, slot in plan.slots.items():
        if slot in values and array.name.startswith("s"):
            place(slots[slot].bytes, values[slot], _upper(graph, slot))
    follows = following(plan, nests)
    offsets, nbytes = plan_arena(in_groups(plan.held, [how for how, _ in follows]))
    arena = Memory(nbytes)
    order = random.Random(seed)
    chunks: list[list[Callable[[], None]]] = []  # each: one after the other
    scratches: list[tuple[str, Memory]] = []

    def finish() -> None:
        order.shuffle(chunks)
        for chunk in itertools.chain.from_iterable(chunks):
            chunk()
        for label, memory in scratches:
            memory.check(f"the scratch memory of {label}")
        chunks.clear()
        scratches.clear()

    for nest, kernel, (together, turns) in zip(nests, plan.kernels, follows, strict=True):
        if not together:
            finish()
        addresses, keep = compiler.compile(render(nest), [nest.name])
        scratch = Memory(nest.scratch_bytes)
        scratches.append((nest.label, scratch))
        words = [
            slots[plan.slots[a]].address if a in plan.slots else arena.address + offsets[a]
            for a in (array.whole or array for array in nest.buffers)
        ]
        known = {"n": n, **dict(kernel.numbers)}
        words += [known[name] for name in nest.symbols]
        arguments = (ctypes.c_int64 * max(len(words), 1))(*words)
        function = _KERNEL(addresses[nest.name])
        total = evaluate(nest.total, {"n": n})
        grain = total // turns if turns else nest.grain
        if not (turns and together):
            chunks += [[] for _ in range(0, total, grain)]
        for number, begin in enumerate(range(0, total, grain), -ceildiv(total, grain)):
            end = min(begin + grain, total)
            own = partial(_run_chunk, function, begin, end, arguments, scratch, keep)
            chunks[number].append(own)
    finish()
    arena.check("the arena")
    for slot, memory in enumerate(slots):
        memory.check(f"slot {slot}")
    return [
        read(slots[slot].bytes, root, n)
        for root, slot in zip(graph.roots, graph.outputs, strict=True)
    ]


def _run_chunk(
    function: Any, begin: int, end: int, arguments: Any, scratch: Memory, keep: object
) -> None:
    """Run some iterations of a kernel; `keep` holds its memory and machine code until then."""
    function(begin, end, ctypes.addressof(arguments), scratch.address)


def _upper(graph: Graph, slot: int) -> tuple[int, ...]:
    for node in topological(graph.roots):
        if node.op is Op.BUFFER and node.arg == slot:
            return tuple(high(extent) for extent in node.shape)
    raise AssertionError(f"no input has slot {slot}")


def place(memory: np.ndarray, value: np.ndarray, upper: tuple[int, ...]) -> None:
    """Copy a value into memory with the strides of the upper bounds."""
    flat = memory[: int(np.prod(upper)) * value.dtype.itemsize].view(value.dtype).reshape(upper)
    flat[tuple(slice(extent) for extent in value.shape)] = value


def read(memory: np.ndarray, root: Node, n: int) -> np.ndarray:
    """The value of a root in memory laid out as by `place`; n is that of the variable "n"."""
    kind = numpy_dtype(root.dtype)
    upper = tuple(high(extent) for extent in root.shape)
    flat = memory[: numel(root.shape) * kind.itemsize].view(kind).reshape(upper)
    shape = tuple(evaluate(extent, {"n": n}) for extent in root.shape)
    return np.array(flat[(..., *(slice(extent) for extent in shape))])
