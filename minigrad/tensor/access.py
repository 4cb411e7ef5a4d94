"""Threads that compute at once: none writes to memory that another reads or writes meanwhile.

A thread first announces what memory it will use, then checks whether others are active. If it is
alone, it takes no lock. A thread that must wait withdraws its announcement meanwhile; waiting
threads run in the order of arrival.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Set
from threading import get_ident
from typing import Any, TypeVar

from minigrad.device import Buffer
from minigrad.locks import in_child
from minigrad.tensor.live_tensors import lock, rank

T = TypeVar("T")

# Memory that is written, and memory that is read; as a function and its argument, called when
# asked.
Touched = tuple[Set[Buffer], Set[Buffer]]
Access = tuple[Callable[[Any], Touched], Any]

under_way: dict[int, Access] = {}  # by thread
waiting: dict[int, Access] = {}  # the same, in order of arrival; changed under the lock only
_changed = threading.Condition(lock)
in_child(under_way.clear)
in_child(waiting.clear)


def during(turn: Access, work: Callable[[], T]) -> T:
    """Run `work` when it is this thread's turn; returns its result."""
    me = get_ident()
    try:
        under_way[me] = turn
        if len(under_way) > 1 or waiting:
            wait(turn)
        return work()
    finally:
        under_way.pop(me, None)
        if waiting:
            tell()


def wait(turn: Access) -> None:
    """Wait for this thread's turn, which was announced already."""
    with lock:
        _changed.notify_all()  # threads that wait for the announcement look again
        while must_wait(turn):
            pass


def must_wait(turn: Access) -> bool:
    """Take this thread's turn; or wait until something has changed, and return True to ask again.

    The caller holds the lock.
    """
    me = get_ident()
    under_way[me] = turn
    waiting.setdefault(me, turn)  # before it looks, so that threads that end afterwards tell it
    others = under_way.copy()
    del others[me]
    for thread, other in waiting.items():
        if thread == me:
            break
        others[thread] = other
    if any(_meets(turn, other) for other in others.values()):
        del under_way[me]
        _changed.wait()
        return True
    del waiting[me]
    return False


def tell() -> None:
    """Let waiting threads look again, because this thread has ended or no longer waits."""
    with lock:
        waiting.pop(get_ident(), None)
        _changed.notify_all()


def _meets(one: Access, other: Access) -> bool:
    """Whether one writes memory, known to this thread's rank, that the other reads or writes."""
    (written, read), (others_written, others_read) = (ask(about) for ask, about in (one, other))
    both = (written & (others_written | others_read)) | (others_written & read)
    return any(rank.knows(buffer.device) for buffer in both)
