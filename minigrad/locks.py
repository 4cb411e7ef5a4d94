"""The locks of this process, all created here, so that the child of a fork finds all of them free.

fork() copies only the calling thread. A lock that another thread holds at that moment would stay
locked in the child forever. There are two kinds:

    new_lock, new_rlock   free in the child, whichever thread held it: the data that such a lock
                          guards is changed in one step (a program put into a table), or is
                          rewritten by the next thread that takes the lock
    held_over_forks       the forking thread takes it first, so that the data is consistent in the
                          child: for locks that are held for a moment, or around foreign code

Python locks each module while it is imported. A fork waits until no other thread imports a module
of minigrad's, or one that minigrad imports at first use: the child would wait for it forever.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

PATIENCE = 0.05  # seconds that a fork waits for one lock while it holds others
LONGEST = 60  # seconds that a fork waits for imports, one of which may wait for the forking thread
IMPORTED = {"minigrad", "concurrent", "llvmlite", "ml_dtypes", "numpy", "pyopencl", "safetensors"}
# name → a weak reference to the lock, in Python 3.11 … 3.13
_module_locks: dict[str, Any] = getattr(sys.modules["_frozen_importlib"], "_module_locks", {})


_free_in_child: WeakSet[Any] = WeakSet()
_held: list[threading.RLock] = []


def new_lock() -> threading.Lock:
    """A lock of the first kind; a thread that takes it twice hangs."""
    lock = threading.Lock()
    _free_in_child.add(lock)
    return lock


def new_rlock() -> threading.RLock:
    """A lock of the first kind, which the thread that holds it may take again."""
    lock = threading.RLock()
    _free_in_child.add(lock)
    return lock


def held_over_forks(lock: threading.RLock | None = None) -> threading.RLock:
    """A lock of the second kind that lives as long as the process: a new one, or the given one.

    The thread that holds it may take it again.
    """
    lock = lock or threading.RLock()
    _held.append(lock)
    return lock


def in_child(function: Callable[[], object]) -> None:
    """Call a function in the child of each fork, which only has the thread that forked."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


class Block:
    """`with block():`, which several threads may be in; a child of a fork has none of them.

    begin: called when the first one enters; end: when the last one leaves.
    """

    def __init__(self, begin: Callable[[], object], end: Callable[[], object]) -> None:
        self._begin, self._end = begin, end
        self._lock, self._inside = held_over_forks(), 0
        in_child(lambda: self._leave(self._inside))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enter and leave the block."""
        with self._lock:
            if self._inside == 0:
                self._begin()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._leave(1)

    def _leave(self, count: int) -> None:
        if self._inside:  # a child of a fork may have none
            self._inside -= count
            if self._inside == 0:
                self._end()


def _imports_elsewhere() -> bool:
    """Whether another thread imports one of the `IMPORTED` packages, or a part of it."""
    owners = {
        getattr(reference(), "owner", None) for name, reference in list(_module_locks.items())
        if name.partition(".")[0] in IMPORTED
    }  # fmt: skip
    return not owners <= {None, threading.get_ident()}


def _before_fork() -> None:
    """Take all locks of the second kind while nothing is imported; or release them and try again:
    another thread may hold one, or import something, and wait for a lock that this thread holds.
    """
    end = time.monotonic() + LONGEST
    while True:
        taken: list[threading.RLock] = []
        for lock in _held:
            if not lock.acquire(timeout=PATIENCE):
                break
            taken.append(lock)
        if len(taken) == len(_held) and (not _imports_elsewhere() or time.monotonic() > end):
            return
        for lock in taken:
            lock.release()
        time.sleep(0.001)


def _after_fork() -> None:
    for lock in _held:
        lock.release()


def _in_child() -> None:
    for lock in list(_free_in_child):
        if not getattr(lock, "_is_owned", bool)():  # this thread will release it itself
            lock._at_fork_reinit()  # as Python's own modules do
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
