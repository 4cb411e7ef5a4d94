"""A captured step as one native call: one launch table for all its programs.

The first launch is not a kernel of the step: it writes the addresses of this replay's inputs and
outputs, and the values of its variables, into the kernels' arguments. So Python writes one word per
argument, however many kernels there are.

The memory between kernels comes from the pool in each replay, and the steps of a thread share its
scratch area, unless they need little: a step for sixteen sizes has sixteen captures, of which one
runs.

The native call reads its four arguments from memory: converting them would take ctypes three times
as long as passing the address of the first.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from minigrad.device import Buffer, Call
from minigrad.graph.variable import is_own, rest_of
from minigrad.program import GlobalCounters, timeline
from minigrad.runtimes import cpu_memory, native
from minigrad.runtimes.cpu_driver import FLAG_ALONE, driver
from minigrad.runtimes.cpu_interrupt import LONG, runner
from minigrad.runtimes.cpu_pool import Area, Entry, Pool, Table, area_of_this_thread, pool_for
from minigrad.runtimes.report import run_recorded

PATCHED = 4  # words that the first launch takes
OWN = 1 << 16  # bytes between kernels up to which a step has its own: a replay is 0.2 µs faster


class CpuReplay:
    """Recorded calls of one CPU device, with arguments that change from replay to replay."""

    def __init__(self, device: str, calls: Sequence[Call], arguments: Sequence[Buffer]) -> None:
        self.pool: Pool = pool_for(device)
        # two threads that begin at once get a driver each: the one of this table must be kept
        functions, code = driver()
        self._replay = native.function(functions["replay"], 1)
        self.keep = (tuple(calls), code)  # the machine code and the buffers must not be freed
        programs: list[Any] = [call.program for call in calls]
        sizes = [
            program.sizes(call.variables) for program, call in zip(programs, calls, strict=True)
        ]
        self._arena_bytes = max((one.nbytes for one in sizes), default=0)
        self._held: list[tuple[int, int]] = []  # of the words in the arena: place, offset
        self._at = 0  # where the arena was in the last replay
        self._scratch_bytes = max((p.scratch_bytes for p in programs), default=0)
        changing: dict[Any, int] = {buffer: number for number, buffer in enumerate(arguments)}
        self._names: list[tuple[int, str]] = []  # position of its value, name of a variable
        places: list[int] = []  # of the words that change; `sources`: which value each takes
        sources: list[int] = []
        words = [0] * PATCHED
        launches = list[Entry]()
        for call, program, size in zip(calls, programs, sizes, strict=True):
            start = len(words)
            for kind, where in program.sources:
                source = call.buffers[where] if kind == "slot" else where
                if kind == "held":
                    self._held.append((len(words), size.places[where]))
                known = (
                    size.places[where] if kind == "held"
                    else where if kind == "number"
                    else call.variables[where] if kind == "symbol" and is_own(where)
                    else source.memory if kind == "slot" and source not in changing
                    else None
                )  # fmt: skip
                if known is None:
                    if source not in changing:
                        self._names.append((len(changing), source))
                        changing[source] = len(changing)
                    places.append(len(words))
                    sources.append(changing[source])
                words.append(known or 0)
            for kernel, total, grain, first, flags in program.launches:
                total = rest_of(total, call.variables)
                launches.append((kernel, total, grain, start + first, flags))
        # Python writes here: the arguments' addresses, then the variables' values.
        self._values: Any = (ctypes.c_int64 * max(len(changing), 1))()
        pack = struct.Struct(f"{len(arguments)}q").pack_into
        self.put: Callable[..., None] = partial(pack, self._values, 0)
        first = functions["patch"], len(places), max(len(places), 1), 0, FLAG_ALONE
        self._table = Table(words, [first, *launches])
        self._places = (ctypes.c_int64 * max(len(places), 1))(*places)
        self._sources = (ctypes.c_int64 * max(len(sources), 1))(*sources)
        parts = (self._table.words, self._places, self._sources, self._values)
        self._table.words[:PATCHED] = list(map(ctypes.addressof, parts))
        self.kernels = sum(len(p.launches) for p in programs)
        self.operations = sum(p.operations for p in programs)
        self.traffic = sum(p.traffic for p in programs)
        self._writes = any(call.written for call in calls)
        self.labels = ["arguments", *(k.code.label for p in programs for k in p.kernels)]
        self._prepare()

    def _prepare(self) -> None:
        """Make the native call, and the arena if it is this step's own."""
        self._own: Area | None = None
        if self._arena_bytes <= OWN:
            self._own = Area(self._arena_bytes, cpu_memory.allocate)
            self._place(self._own.address)
        pool, table = self.pool, self._table
        self.native: Callable[[], None]
        work = self.operations + self.traffic
        if self._writes and not table.functions:
            work = 0  # all of what it writes in place is written, or nothing
        self._run = runner(pool, work)
        if table.functions or work >= LONG:
            self._parts = table.parts(self._run, self._scratch_bytes)
            self.native = self._run_parts
            return
        own = self._scratch = Area(self._scratch_bytes) if self._scratch_bytes <= OWN else None
        given = table.place(), table.count, pool.address, own.address if own else 0
        self._given = (ctypes.c_int64 * len(given))(*given)
        if own is None:
            self.native = self._run_in_area
            return
        self.native = partial(self._replay, ctypes.c_int64(ctypes.addressof(self._given)))

    def _place(self, arena: int) -> None:
        """Write where the memory between kernels is."""
        self._at = 0  # until all are written: Ctrl-C may come
        for place, offset in self._held:
            self._table.words[place] = arena + offset
        self._at = arena

    def _run_in_area(self) -> None:
        area = area_of_this_thread(self._scratch_bytes)  # which all of its steps share
        self._given[-1] = area.address
        self._replay(ctypes.addressof(self._given))

    def _run_parts(self) -> None:
        for part in self._parts:
            part()

    def run(self, variables: Mapping[str, int]) -> None:
        """One native call, with the arguments of the last `put`."""
        if self._names:
            for number, name in self._names:
                self._values[number] = variables[name]
            self._table.set_totals(self._table.totals(variables))
        if self._scratch_bytes > self.pool.scratch_bytes:  # also after a fork
            self.pool.ensure_scratch(self._scratch_bytes)
        area = None if self._own else Area(self._arena_bytes, cpu_memory.allocate)
        if area is not None and area.address != self._at:
            self._place(area.address)
        if timeline.record is not None:
            parts = self._table.parts(self._run, self._scratch_bytes, single=True)
            run_recorded(self.labels, parts, timeline.record)
        else:
            self.native()
        counters = GlobalCounters
        counters.kernel_count += self.kernels
        counters.global_ops += self.operations
        counters.global_mem += self.traffic
