"""The threads of a CPU device, and the entry to its native driver.

Workers are Python threads that spend their lives in native code (`cpu_driver`), where they do not
hold the GIL. `Pool.run` is one native call: it walks a launch table from beginning to end.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from minigrad.graph.symbolic import Affine, Integer
from minigrad.graph.variable import evaluate
from minigrad.locks import in_child, new_lock
from minigrad.runtimes import cpu_driver, cpu_memory, host, native
from minigrad.runtimes.cpu_driver import LAUNCH_FIELDS

Run = Callable[[int, int, int], object]  # `Pool.run`, or like it
# What a launch is instead of machine code; it takes words, and the index of its own first one.
Function = Callable[[Any, int], None]
Part = Callable[[], object]  # of a table


class Launch(ctypes.Structure):
    """One entry of a launch table; `(Launch * n)()` is a table of n.

    kernel is the address of `void kernel(i64 begin, i64 end, ptr args, ptr scratch)`, args that of
    an array of 64-bit integers, total the iterations of its parallel loop, grain the iterations of
    a chunk, flags 0, FLAG_ALONE, FLAG_CONCURRENT, or that and FLAG_INTERLEAVED.
    """

    _fields_ = [(name, ctypes.c_int64) for name in LAUNCH_FIELDS]


Entry = tuple[int | Function, Integer, int, int, int]


class Table:
    """Launches one after the other, and the words that are their arguments.

    launches: for each, the address of its kernel (or a function), total, grain, index of its first
    word, flags. A total that varies is 0 until it is set; `varying` has its launch's number.
    """

    def __init__(self, words: Sequence[int], launches: Sequence[Entry]) -> None:
        self.words = (ctypes.c_int64 * max(len(words), 1))(*words)
        base, self.count = ctypes.addressof(self.words), len(launches)
        self.launches: Any = (Launch * max(self.count, 1))(*(
            Launch(0 if callable(kernel) else kernel, base + 8 * first,
                   total if isinstance(total, int) else 0, grain, flags)
            for kernel, total, grain, first, flags in launches
        ))  # fmt: skip
        self.functions = {
            number: partial(kernel, self.words, first)
            for number, (kernel, _, _, first, _) in enumerate(launches) if callable(kernel)
        }  # fmt: skip
        self.varying = [
            (number, total) for number, (_, total, *_) in enumerate(launches)
            if isinstance(total, Affine)
        ]  # fmt: skip

    def totals(self, variables: Mapping[str, int]) -> list[int]:
        """The totals that vary, for these values of variables."""
        return [evaluate(total, variables) for _, total in self.varying]

    def set_totals(self, totals: Sequence[int]) -> None:
        """Set the totals that vary."""
        for (number, _), total in zip(self.varying, totals, strict=True):
            self.launches[number].total = total

    def place(self, number: int = 0) -> int:
        """The address of a launch."""
        return ctypes.addressof(self.launches) + number * ctypes.sizeof(Launch)

    def part(self, run: Run, scratch_bytes: int, number: int, count: int = 1) -> Part:
        """What runs `count` launches, or one that is a function."""
        launched = partial(run, self.place(number), count, scratch_bytes)
        return self.functions.get(number, launched)

    def parts(self, run: Run, scratch_bytes: int, single: bool = False) -> list[Part]:
        """What runs all launches, one part after the other: single ones, or as few as possible."""
        cuts = {0, *self.functions, *(number + 1 for number in self.functions)}
        starts = [n for n in range(self.count) if single or n in cuts]
        ends = [*starts[1:], self.count]
        return [
            self.part(run, scratch_bytes, start, end - start)
            for start, end in zip(starts, ends, strict=False)
        ]


class Area:
    """A block of scratch memory that is freed with its last reference.

    take: where it comes from; blocks of `cpu_memory.reserve` are not counted as memory of tensors.
    """

    def __init__(self, nbytes: int, take: Callable[[int], int] = cpu_memory.reserve) -> None:
        self.nbytes, self.address = nbytes, take(nbytes)
        reserved = take is cpu_memory.reserve
        self._release = cpu_memory.release if reserved else cpu_memory.free

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "_release") and not ending():
            self._release(self.address, self.nbytes)


_mine = threading.local()  # the scratch area of a thread that calls `Pool.run`


def area_of_this_thread(nbytes: int) -> Area:
    """At least nbytes that only this thread uses.

    Hold a reference while using it: a signal handler may replace it by a larger one.
    """
    area: Area | None = getattr(_mine, "area", None)
    if area is None or area.nbytes < nbytes:
        area = _mine.area = None
        area = _mine.area = Area(nbytes)
    return area


class Pool:
    """`threads` threads that share launches, the calling one included.

    Any thread may call `run` at any time: one of them gets the workers, and the others run their
    launches alone meanwhile. Workers start with the first call, and again after a fork. spins: see
    the driver (for tests).
    """

    def __init__(
        self, threads: int, name: str = "CPU", spins: int = cpu_driver.SPINS
    ) -> None:
        if threads < 1:
            raise ValueError(f"cannot make a pool of {threads} threads: expected at least 1")
        self.threads, self.name = threads, name
        functions, self._code = cpu_driver.driver(spins)
        self._run_table = native.function(functions["run_table"], 5)
        self._worker = native.function(functions["worker"], 2)
        self._stop_workers = native.function(functions["stop_workers"], 1)
        self._acquire = native.function(functions["acquire"], 1)
        self._release = native.function(functions["release"], 1)
        self.copy_rows = native.function(functions["copy_rows"], 9)
        self._lock = new_lock()
        self._closed = False
        self._nbytes = cpu_driver.SHARES + cpu_driver.SHARE_BYTES * threads
        self._memory = ctypes.create_string_buffer(self._nbytes + 128)
        self.address = (ctypes.addressof(self._memory) + 127) & -128
        self._forget()
        _living.add(self)

    def _forget(self) -> None:
        """Start with a new state and no workers, or do so again in the child of a fork."""
        ctypes.memset(self.address, 0, self._nbytes)
        self._field(cpu_driver.THREADS).value = 1
        self._workers: list[threading.Thread] = []
        self._areas: list[Area] = []
        self.scratch_bytes = -1  # no workers were started

    def _field(self, offset: int) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self.address + offset)

    def _share(self, number: int, field: int) -> ctypes.c_int64:
        """A field of a thread's share."""
        return self._field(cpu_driver.SHARES + cpu_driver.SHARE_BYTES * number + field)

    def run(self, table: int, count: int, scratch_bytes: int = 0, signals: int = 0) -> int:
        """Run the `count` launches of the table at address `table`, one group after the other.

        Each thread that takes part has scratch_bytes of memory of its own, 64-byte aligned.
        signals: the address of a number; when it is not 0, the rest of the table is not run.
        Returns how many launches are left.
        """
        if scratch_bytes > self.scratch_bytes:
            self.ensure_scratch(scratch_bytes)
        area = area_of_this_thread(scratch_bytes)
        left: int = self._run_table(table, count, self.address, area.address, signals)
        return left

    def run_guarded(self, table: int, count: int, scratch_bytes: int) -> None:
        """Run launches on this thread alone, with exactly scratch_bytes between unreadable pages.

        Only for pools that `run` never uses, so that they have no workers.
        """
        area = Area(scratch_bytes, cpu_memory.allocate_guarded)
        self._run_table(table, count, self.address, area.address, 0)

    def ensure_scratch(self, nbytes: int) -> None:
        """Start the workers if necessary, and give each at least nbytes of scratch memory.

        Waits until the pool's threads share no launch.
        """
        with self._lock:
            if nbytes <= self.scratch_bytes:
                return
            areas = [Area(nbytes) for _ in range(self.threads - 1)]
            while not self._acquire(self.address):
                time.sleep(0.0001)
            try:
                for number, area in enumerate(areas, 1):
                    self._share(number, cpu_driver.AREA).value = area.address
                if not self._workers and not self._closed:
                    self._start()
                self._areas, self.scratch_bytes = areas, nbytes
            finally:
                self._release(self.address)

    def _start(self) -> None:
        """Start the workers; fewer, if the system allows no more threads."""
        for number in range(1, self.threads):
            worker = threading.Thread(
                target=self._worker, args=(self.address, number), daemon=True,
                name=f"minigrad {self.name} worker {number}",
            )  # fmt: skip
            try:
                worker.start()
            except RuntimeError:
                break
            self._workers.append(worker)
            self._share(number, cpu_driver.SYSTEM_NUMBER).value = worker.native_id or 0
        processors = host.processors()
        if self.threads <= len(processors) and processors[-1] < 8 * cpu_driver.MASK_BYTES:
            for processor in processors:
                word = self._field(cpu_driver.MASK + processor // 64 * 8)
                word.value |= 1 << processor % 64  # ctypes wraps the 63rd into the sign
        self._field(cpu_driver.THREADS).value = 1 + len(self._workers)

    def shuffle(self, seed: int) -> None:
        """Hand out the chunks of each launch in an order that depends on seed; 0 ends that.

        Only while nothing runs. For tests: chunks are independent, so results must not change.
        """
        # Spread small seeds over all bits: the multiplier is 2**64 divided by the golden ratio.
        spread = (seed * 0x9E3779B97F4A7C15) % (1 << 64)
        self._field(cpu_driver.SHUFFLE).value = spread - (1 << 64) * (spread >> 63)

    def close(self) -> None:
        """End the workers, which finish the chunks they have. Later runs use their caller alone."""
        with self._lock:
            self._closed = True
            self._field(cpu_driver.THREADS).value = 1
            self._stop_workers(self.address)
            for worker in self._workers:
                worker.join()
            self._workers = []

    def __del__(self) -> None:
        # Workers read the pool's memory until they end.
        if getattr(self, "_workers", None):
            self.close()


_living: weakref.WeakSet[Pool] = weakref.WeakSet()
_pools: dict[str, Pool] = {}
_pools_lock = new_lock()


def pool_for(device_name: str) -> Pool:
    """The pool of a device ("CPU", "CPU:1", …), made at first use.

    It gets as many threads as the THREADS setting says then, or as the machine has for us.
    """
    pool = _pools.get(device_name)
    if pool is None:
        with _pools_lock:
            pool = _pools.get(device_name)
            if pool is None:
                pool = _pools[device_name] = Pool(host.threads(), device_name)
    return pool


def _close_all() -> None:
    """At exit: no worker may run native code when the interpreter frees that code."""
    for pool in list(_living):
        pool.close()


def _after_fork() -> None:
    """In the child of a fork: threads were not copied."""
    for pool in list(_living):
        pool._forget()


atexit.register(_close_all)
in_child(_after_fork)
