"""While a program is compiled, Python's garbage collector checks young objects only.

Compiling creates many objects that live until it ends. Searching all of them for cycles, again and
again, took an eighth of the time for a GPT of 48 layers. The collector's setting is that of the
whole process, so it is changed no longer than needed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from minigrad.locks import held_over_forks, in_child

NEVER = 1 << 30  # collections of younger objects before one of all

_lock = held_over_forks()
_makers = 0  # threads that make a program now
_usual = 0  # how many such collections come before one of all while there are none


@contextmanager
def undisturbed() -> Iterator[None]:
    """Around the making of a program; several threads may be inside."""
    global _makers, _usual
    with _lock:
        if _makers == 0:
            young, middle, _usual = gc.get_threshold()
            gc.set_threshold(young, middle, NEVER)
        _makers += 1
    try:
        yield
    finally:
        with _lock:
            _leave(1)


def _leave(count: int) -> None:
    """Some makers have ended; what the first one changed is as it was after the last."""
    global _makers
    if _makers:  # a child of a fork may have none any more
        _makers -= count
        if _makers == 0:
            gc.set_threshold(*gc.get_threshold()[:2], _usual)


def _in_child() -> None:
    """Of the threads that make programs, a child of a fork has none."""
    _leave(_makers)


in_child(_in_child)
