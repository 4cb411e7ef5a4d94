"""The CPU device: graphs become machine code, and a program is one native call.

compile: graph → schedule → loop nests → LLVM IR → machine code, or from the cache; then a table of
launches (see `cpu_kernels`).
run: the addresses of the call's buffers go into the table's arguments; one native call walks it.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from minigrad.collective import Exchange
from minigrad.device import Buffer, Call, Replay, Rows, Runtime
from minigrad.dtype import DType, named, number_of
from minigrad.graph.canonical import Graph
from minigrad.graph.interned import Bounded
from minigrad.graph.substitution import variables as symbols
from minigrad.graph.symbolic import ceildiv, high
from minigrad.graph.variable import is_general, most
from minigrad.locks import new_rlock
from minigrad.program import GlobalCounters, timeline
from minigrad.runtimes import cpu_memory
from minigrad.runtimes.cpu_driver import FLAG_CONCURRENT, FLAG_INTERLEAVED, check_host
from minigrad.runtimes.cpu_interrupt import runner
from minigrad.runtimes.cpu_kernels import Kernel, KernelCode, Kernels, LaunchPlan
from minigrad.runtimes.cpu_pool import Entry, Function, Pool, Table, pool_for
from minigrad.runtimes.cpu_replay import CpuReplay
from minigrad.runtimes.host import host, may_use_matrices
from minigrad.runtimes.jit_compiler import host_compiler
from minigrad.runtimes.report import run_recorded, show_times
from minigrad.schedule.schedule import place
from minigrad.settings import flag, thread
from minigrad.target import Target

# By how a kernel follows the one before it
FLAGS = 0, FLAG_CONCURRENT, FLAG_CONCURRENT | FLAG_INTERLEAVED
MOST_SIZES = 64  # of a program, of which it keeps what they decide


def open_device(name: str) -> CPU:
    """The runtime of a device "CPU", "CPU:1", … DeviceError if this machine has none."""
    check_host(platform.machine())
    return CPU(name)


def host_target() -> Target:
    """The hardware parameters of the host."""
    machine = host()
    matrices = machine.features >= {"amx-bf16", "amx-int8"}
    return Target(
        machine.vector_bytes, machine.vector_registers, machine.l1, machine.l2, machine.l3,
        # with AMX, a dot takes four times as long as a multiply-add of float32
        bfloat16_dots="avx512bf16" in machine.features and not matrices,
        byte_dots="avx512vnni" in machine.features,
        matrices=matrices and may_use_matrices(),
        # 6 rows of 64 columns take 34 instructions for 24 multiply-adds, 14 of 32 take 44 for 28:
        # products 0.92 … 1.02 of the time on Emerald Rapids, convolutions 0.92 … 1.0.
        tile_vectors=4 if matrices else 2,
        # Emerald Rapids reads rows in 0.86 of the time with prefetches a page ahead, because its
        # own prefetching stops at the end of a page; Zen 4 took 1.5 … 1.9 times as long.
        rows_ahead=cpu_memory.PAGE if matrices else 0,
    )  # fmt: skip


@cache
def host_kernels() -> Kernels:
    """The kernels of this machine, which all of its CPU devices share."""
    return Kernels(host_target(), host_compiler())


class CPU(Runtime):
    """A CPU device with its own buffers and its own pool of threads."""

    generalizes = True

    def __init__(self, name: str) -> None:
        target = host_target()
        self.name = name
        self.byte_dots, self.byte_matrices = target.byte_dots, target.matrices

    def allocate(self, nbytes: int) -> int:
        """The address of new memory: 64-byte aligned, or under GUARD right before a guard page."""
        guards = thread.values["GUARD"]
        return cpu_memory.allocate_guarded(nbytes) if guards else cpu_memory.allocate(nbytes)

    def allocate_zeros(self, nbytes: int) -> int:
        """Like `allocate`, filled with zeros."""
        if flag("GUARD"):
            return cpu_memory.allocate_guarded(nbytes, filler=0)
        return cpu_memory.allocate_zeros(nbytes)

    free = staticmethod(cpu_memory.free)
    copy_in = staticmethod(cpu_memory.copy_in)
    copy_out = staticmethod(cpu_memory.copy_out)

    def copy_rows(self, to: Rows, given: Rows, nbytes: int, rows: int = 1, blocks: int = 1) -> None:
        """Copy blocks of rows of bytes from other memory into memory."""
        target, source = to[0] + to[1], given[0] + given[1]
        if rows == blocks == 1:
            ctypes.memmove(target, source, nbytes)
        else:
            copy = pool_for(self.name).copy_rows
            copy(target, *to[2:], source, *given[2:], nbytes, rows, blocks)

    def host_address(self, memory: int) -> int:
        """The address itself."""
        return memory

    def adopt(self, address: int) -> int:
        """The address itself."""
        return address

    def first(self, memory: int, dtype: DType) -> int | float | bool:
        """The first element of memory."""
        return number_of(ctypes.string_at(memory, dtype.itemsize), dtype)

    def compile(self, graph: Graph) -> CpuProgram:
        """Find or compile the machine code of a graph."""
        plan = host_kernels().plan(graph)
        return GuardedProgram(self.name, plan) if flag("GUARD") else CpuProgram(self.name, plan)

    def compose(self, calls: Sequence[Call], arguments: Sequence[Buffer]) -> Replay:
        """Recorded calls as one native call; one by one if any is guarded or reported."""
        if flag("DEBUG") < 1 and all(type(call.program) is CpuProgram for call in calls):
            return CpuReplay(self.name, calls, arguments)
        return super().compose(calls, arguments)


class Sizes(NamedTuple):
    """What the variables of a program decide, but for its arguments.

    held: bytes of each memory between kernels. places: their offsets in the arena. nbytes: of the
    arena. totals: the iterations of kernels in which these vary. operations, traffic: estimates
    for reports.
    """

    held: Sequence[int]
    places: Sequence[int]
    nbytes: int
    totals: Sequence[int]
    operations: int
    traffic: int


# The result of `CpuProgram._memory` if nothing is held: most eager operations do not call it.
NOTHING: tuple[list[int], list[tuple[int, int]]] = ([], [])


class CpuProgram:
    """A launch table, its arguments, and which of these are which buffer's address."""

    guarded = False

    def __init__(self, device: str, plan: LaunchPlan) -> None:
        self.kernels, self._made_of = plan.kernels, (device, plan)
        self.pool: Pool = pool_for(f"{device} guarded" if self.guarded else device)
        self._lock = new_rlock()
        self._running = False
        self._held = plan.held  # the memory between kernels
        # where the arguments come from, of all kernels in one list
        self.sources = [source for one in plan.sources for source in one]
        # of buffers only, as in eager operations: takes the arguments out of all addresses
        plain = len(self.sources) > 1 and all(kind == "slot" for kind, _ in self.sources)
        self._slots = itemgetter(*[where for _, where in self.sources]) if plain else None
        starts = [0, *accumulate(map(len, plan.sources))]
        exchanges: dict[int, Exchange] = {}
        # for each kernel: what it is, iterations, those of a chunk, its first argument, flags
        self.launches: list[Entry] = [
            (
                kernel.address or _exchanging(kernel, device, exchanges),
                kernel.code.total,
                high(kernel.code.total) // chunks if chunks else kernel.code.grain,
                start, FLAGS[how],
            )
            for kernel, start, (how, chunks) in zip(
                self.kernels, starts, plan.follows, strict=False
            )
        ]
        self._table = Table([0] * len(self.sources), self.launches)
        self._arguments, self._varying = self._table.words, self._table.varying
        # names of the variables that decide its sizes, and these by their values
        sizes = [*(one.nbytes for one in plan.held), *(total for _, total in self._varying)]
        self._sizing = sorted({atom.name for one in sizes for atom in symbols(one)})
        self._sizes = Bounded[tuple[int, ...], Sizes](MOST_SIZES)
        self._held_varies = any(is_general(one.nbytes) for one in plan.held)
        self._format = f"={len(self.sources)}q"
        # estimates of its work, for reports and for the number of threads
        codes = [kernel.code for kernel in self.kernels]
        self.operations = sum(code.operations for code in codes)
        self.traffic = sum(code.traffic for code in codes)
        self.scratch_bytes = max((code.scratch_bytes for code in codes), default=0)
        self._only = None if self._sizing else self.sizes({})
        work = self.operations + self.traffic
        self._run = self.pool.run_guarded if self.guarded else runner(self.pool, work)
        self._parts = self._table.parts(self._run, self.scratch_bytes)

    def sizes(self, variables: Mapping[str, int]) -> Sizes:
        """What these values decide. Estimates are for the largest number of iterations."""
        values = tuple([variables[name] for name in self._sizing])
        known = self._sizes.get(values)
        if known is None:
            held = [most(one.nbytes, variables) for one in self._held]
            lives = [(one.first, one.last) for one in self._held]
            places = place([(n, *life) for n, life in zip(held, lives, strict=True)])
            totals = self._table.totals(variables)
            operations, traffic = self.operations, self.traffic
            for (number, full), total in zip(self._varying, totals, strict=True):
                code, missing = self.kernels[number].code, full.high - total
                operations -= code.operations * missing // full.high
                traffic -= code.traffic * missing // full.high
            known = self._sizes[values] = Sizes(held, *places, totals, operations, traffic)
        return known

    def _memory(self, sizes: Sizes) -> tuple[list[int], list[tuple[int, int]]]:
        """Addresses of the memory between kernels, and blocks to free afterwards: an arena."""
        nbytes = sizes.nbytes
        if self._held_varies:  # sizes share a block: new pages would take longer than computing
            nbytes = 1 << max(nbytes - 1, 0).bit_length()
        arena = cpu_memory.allocate(nbytes) if nbytes else 0
        return [arena + place for place in sizes.places], [(arena, nbytes)] if nbytes else []

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """Fill in the call's addresses and values, and run the table."""
        if not self.kernels:
            return
        sizes = self._only or self.sizes(variables)
        held, taken = self._memory(sizes) if self._held else NOTHING
        try:
            addresses = [buffer.handle or buffer.memory for buffer in buffers]
            words = self._slots(addresses) if self._slots is not None else [
                addresses[where] if kind == "slot"
                else held[where] if kind == "held"
                else where if kind == "number"
                else variables[where]
                for kind, where in self.sources
            ]  # fmt: skip
            with self._lock:
                if self._running:  # on this thread: a signal handler has interrupted this very run
                    type(self)(*self._made_of).run(buffers, variables)
                    return
                self._running = True
                try:
                    struct.pack_into(self._format, self._arguments, 0, *words)
                    if self._varying:
                        self._table.set_totals(sizes.totals)
                    self._walk()
                finally:
                    self._running = False
        finally:
            for address, nbytes in taken:
                cpu_memory.free(address, nbytes)
        GlobalCounters.ran(len(self.kernels), sizes.operations, sizes.traffic)

    def threads_of(self, number: int) -> int:
        """How many threads a kernel has work for."""
        _, total, grain, *_ = self.launches[number]
        return min(max(ceildiv(high(total), max(grain, 1)), 1), self.pool.threads)

    def address(self, source: tuple[str, int | str]) -> int:
        """The address or number that a source of arguments has in the call that runs."""
        return int(self._arguments[self.sources.index(source)])

    def _sized(self, number: int) -> KernelCode:
        """A kernel's code with the numbers of the call that runs."""
        code, total = self.kernels[number].code, self._table.launches[number].total
        most = max(high(code.total), 1)
        return replace(
            code, total=total, operations=code.operations * total // most,
            vectors=code.vectors * total // most, traffic=code.traffic * total // most,
        )  # fmt: skip

    def _walk(self) -> None:
        level, record = flag("DEBUG"), timeline.record
        if level < 1 and record is None:
            for part in self._parts:
                part()
            return
        codes = [self._sized(number) for number in range(len(self.kernels))]
        seconds: list[float] = []
        measured = record or (lambda label, start, end: seconds.append(end - start))
        parts = self._table.parts(self._run, self.scratch_bytes, single=True)
        run_recorded([code.label for code in codes], parts, measured)
        if record is None:
            from minigrad.runtimes.cpu_limits import limits  # which compiles

            best = limits(self.pool.threads) if level >= 2 else None
            show_times(codes, seconds, level, best=best)


def _exchanging(kernel: Kernel, device: str, exchanges: dict[int, Exchange]) -> Function:
    """The function that starts or ends an exchange; exchanges: of the program, by number."""
    code = kernel.exchange
    assert code is not None
    what, words = code.collective, len(code.counts) + 1
    exchange = exchanges.get(what.number) or Exchange(
        device, what, named(code.dtype), code.counts, code.size
    )
    exchanges[what.number] = exchange
    if kernel.key == "wait":
        return lambda given, first: exchange.finish()
    return lambda given, first: exchange.start(given[first : first + words])


class GuardedProgram(CpuProgram):
    """A program under `GUARD=1`: every array that a kernel touches ends at an unreadable page.

    An access outside ends the process at the instruction that makes it (a write before the
    beginning is reported when the block is freed). Each array between kernels and each thread's
    scratch memory is a block of its own, mapped for one run: slow, and meant for tests.
    """

    guarded = True

    def _memory(self, sizes: Sizes) -> tuple[list[int], list[tuple[int, int]]]:
        blocks = [(cpu_memory.allocate_guarded(nbytes), nbytes) for nbytes in sizes.held]
        return [address for address, _ in blocks], blocks

    def _walk(self) -> None:
        """Run kernels one by one, with scratch areas of each kernel's size."""
        for number, kernel in enumerate(self.kernels):
            self._table.part(self._run, kernel.code.scratch_bytes, number)()
