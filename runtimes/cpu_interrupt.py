"""Signals (Ctrl-C) during a long program: handled between two kernels, not only at the end.

Python runs signal handlers on the main thread between instructions, so not while that thread is in
native code. But the signal itself writes its number to the process's wakeup descriptor at once.
During a long program on the main thread, that is a file in memory, at which the driver looks after
each group of kernels: it returns to Python, which calls the handlers, and then the rest is run.

Nothing is done if other code uses the wakeup descriptor (asyncio does): then handlers run when the
program has ended.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
from functools import cache, partial
from typing import Any

from minigrad.locks import in_child
from minigrad.runtimes.cpu_driver import LAUNCH_BYTES
from minigrad.runtimes.cpu_pool import Pool, Run

# Operations and bytes from which a program is long: a millisecond at best, and a third of a second
# in scalar code; watching costs a few microseconds.
LONG = 1 << 28


@cache
def _signals() -> tuple[int, Any]:
    """A file in memory, and its first word. In the child of a fork another one."""
    file = os.memfd_create("minigrad signals")
    os.truncate(file, mmap.PAGESIZE)
    os.set_blocking(file, False)
    return file, ctypes.c_int64.from_buffer(mmap.mmap(file, mmap.PAGESIZE))


def runner(pool: Pool, work: int) -> Run:
    """The function that runs so many operations and bytes: `pool.run`, or one for signals, too."""
    return pool.run if work < LONG else partial(run_interruptibly, pool)


def run_interruptibly(pool: Pool, table: int, count: int, scratch_bytes: int = 0) -> None:
    """Like `pool.run`, but signal handlers run between two groups, and may end it by an error."""
    if threading.current_thread() is not threading.main_thread():
        pool.run(table, count, scratch_bytes)
        return
    file, number = _signals()
    before = signal.set_wakeup_fd(file, warn_on_full_buffer=False)
    try:
        if before not in (-1, file):  # other code uses it: restore it
            signal.set_wakeup_fd(before)
        left = count
        while left:
            os.lseek(file, 0, os.SEEK_SET)
            number.value = 0
            place = table + (count - left) * LAUNCH_BYTES
            left = pool.run(place, left, scratch_bytes, ctypes.addressof(number))
    finally:
        signal.set_wakeup_fd(before)


in_child(_signals.cache_clear)
