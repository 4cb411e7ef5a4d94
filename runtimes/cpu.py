"""The CPU device: graphs become machine code, and a program is one native call.

compile: graph → schedule → loop nests → LLVM IR → machine code, and a table of launches.
run: the addresses of the call's buffers go into the table's arguments; one native call walks it.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigrad.device import Buffer, Call
from minigrad.graph.canonical import Graph
from minigrad.loops.nest import Nest
from minigrad.loops.recipes import lower
from minigrad.loops.target import Target
from minigrad.program import GlobalCounters
from minigrad.render.llvm import render
from minigrad.runtimes import cpu_memory, cpu_report
from minigrad.runtimes.cpu_pool import Launch, Pool, pool_for
from minigrad.runtimes.cpu_replay import CpuReplay
from minigrad.runtimes.host import host
from minigrad.runtimes.jit_compiler import Compiler, host_compiler
from minigrad.schedule.expr import Array
from minigrad.schedule.schedule import Schedule, schedule
from minigrad.settings import flag


def open_device(name: str) -> CPU:
    """The runtime of a device "CPU", "CPU:1", …"""
    return CPU(name)


def host_target() -> Target:
    """The host's figures, as recipes ask for them."""
    machine = host()
    return Target(machine.vector_bytes, machine.vector_registers, machine.l1, machine.l2)


@dataclass(frozen=True)
class Kernel:
    """Machine code of a nest; `keep` holds the engine whose memory it lies in."""

    nest: Nest
    address: int
    keep: object


class CPU:
    """A CPU device with its own buffers and its own pool of threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.target = host_target()
        self._kernels: dict[str, tuple[int, object]] = {}
        self._lock = threading.RLock()

    def allocate(self, nbytes: int) -> int:
        """The address of uninitialised memory, 64-byte aligned."""
        return cpu_memory.allocate(nbytes)

    def free(self, memory: int, nbytes: int) -> None:
        """Give memory back to the pool."""
        cpu_memory.free(memory, nbytes)

    def copy_in(self, memory: int, data: memoryview) -> None:
        """Fill memory from the host's bytes."""
        cpu_memory.copy_in(memory, data)

    def copy_out(self, memory: int, data: memoryview) -> None:
        """Read memory into the host's bytes."""
        cpu_memory.copy_out(memory, data)

    def synchronize(self) -> None:
        """Nothing to wait for: a program ends before `run` returns."""

    def compile(self, graph: Graph) -> CpuProgram:
        """Schedule a graph and make machine code of its kernels."""
        plan = schedule(graph, fuse=bool(flag("FUSE")))
        cpu_report.show_schedule(plan)
        nests = [lower(kernel, self.target) for kernel in plan.kernels]
        kernels = [self._kernel(nest, host_compiler()) for nest in nests]
        return CpuProgram(self.name, plan, kernels)

    def compose(self, calls: Sequence[Call], arguments: Sequence[Buffer]) -> CpuReplay:
        """Recorded calls as one native call."""
        return CpuReplay(self.name, calls, arguments)

    def _kernel(self, nest: Nest, compiler: Compiler) -> Kernel:
        """Machine code for one nest; kernels that differ in buffers only share it."""
        text = render(nest)
        with self._lock:
            known = self._kernels.get(text)
            if known is None:
                cpu_report.show_kernel(nest, text, compiler)
                addresses, keep = compiler.compile(text, [nest.name])
                known = self._kernels[text] = (addresses[nest.name], keep)
        return Kernel(nest, *known)


class CpuProgram:
    """A launch table, its arguments, and where in them each buffer's address goes."""

    def __init__(self, device: str, plan: Schedule, kernels: Sequence[Kernel]) -> None:
        self.plan, self.kernels = plan, kernels
        self.pool: Pool = pool_for(device)
        self._lock = threading.Lock()
        self.sources: list[tuple[str, Any]] = []
        starts = []
        self.arena_bytes = plan.arena_bytes
        for kernel in kernels:
            starts.append(len(self.sources))
            self.sources += [self._source(array) for array in kernel.nest.arrays]
            self.sources += [("symbol", name) for name in kernel.nest.symbols]
        self._arguments = (ctypes.c_int64 * max(len(self.sources), 1))()
        self._format = f"={len(self.sources)}q"
        self._table: Any = (Launch * max(len(kernels), 1))()
        base = ctypes.addressof(self._arguments)
        for entry, kernel, start in zip(self._table, kernels, starts, strict=False):
            entry.kernel = kernel.address
            entry.args = base + 8 * start
            entry.total, entry.grain = kernel.nest.total, kernel.nest.grain
        self.launches = [
            (kernel.address, kernel.nest.total, kernel.nest.grain, start)
            for kernel, start in zip(kernels, starts, strict=True)
        ]
        self.operations = sum(kernel.nest.operations for kernel in kernels)
        self.traffic = sum(kernel.nest.traffic for kernel in kernels)
        self.scratch_bytes = max((kernel.nest.scratch_bytes for kernel in kernels), default=0)

    def _source(self, array: Array) -> tuple[str, Any]:
        if array in self.plan.slots:
            return ("slot", self.plan.slots[array])
        return ("arena", self.plan.arena[array])

    def run(self, buffers: Sequence[Buffer], variables: dict[str, int]) -> None:
        """Fill in the call's addresses and values, and walk the table."""
        if not self.kernels:
            return
        arena = cpu_memory.allocate(self.plan.arena_bytes)
        try:
            addresses = [buffer.memory for buffer in buffers]
            words = [
                addresses[where] if kind == "slot"
                else arena + where if kind == "arena"
                else variables[where]
                for kind, where in self.sources
            ]  # fmt: skip
            with self._lock:
                struct.pack_into(self._format, self._arguments, 0, *words)
                self._walk()
        finally:
            cpu_memory.free(arena, self.plan.arena_bytes)
        GlobalCounters.kernel_count += len(self.kernels)
        GlobalCounters.global_ops += sum(kernel.nest.operations for kernel in self.kernels)
        GlobalCounters.global_mem += sum(kernel.nest.traffic for kernel in self.kernels)

    def _walk(self) -> None:
        base = ctypes.addressof(self._table)
        level = flag("DEBUG")
        if level < 1:
            self.pool.run(base, len(self.kernels), self.scratch_bytes)
            return
        cpu_report.run_timed(
            [kernel.nest for kernel in self.kernels],
            lambda number: self.pool.run(base + number * ctypes.sizeof(Launch), 1, self.scratch_bytes),
            level,
        )
