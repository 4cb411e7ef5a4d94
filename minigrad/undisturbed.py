"""While a program is made, Python looks for garbage among young objects, and takes quick turns.

Making a program makes many objects that live as long as that takes: to look through all of them for
cycles, again and again, took an eighth of the time. And a thread that generates machine code needs
Python for a moment before and after: the five milliseconds that Python lets others wait are longer
than a small kernel takes. Both are settings of the whole process, changed no longer than needed.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from minigrad.locks import held_over_forks

TURN = 0.0002  # seconds
NEVER = 1 << 30  # collections of younger objects before one of all

_lock = held_over_forks()
_makers = 0  # threads that make a program now
_usual = 0, 0.0  # what is set while there are none: when all objects are looked through, a turn


@contextmanager
def undisturbed() -> Iterator[None]:
    """Around the making of a program; several threads may be inside."""
    global _makers, _usual
    with _lock:
        if _makers == 0:
            young, middle, old = gc.get_threshold()
            _usual = old, sys.getswitchinterval()
            gc.set_threshold(young, middle, NEVER)
            sys.setswitchinterval(min(_usual[1], TURN))
        _makers += 1
    try:
        yield
    finally:
        with _lock:
            _leave(1)


def _leave(count: int) -> None:
    """Some makers have ended; what the last one changed is as it was."""
    global _makers
    if _makers:  # a child of a fork may have none any more
        _makers -= count
        if _makers == 0:
            old, turn = _usual
            sys.setswitchinterval(turn)
            gc.set_threshold(*gc.get_threshold()[:2], old)


def _in_child() -> None:
    """Of the threads that make programs, a child of a fork has none."""
    _leave(_makers)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
