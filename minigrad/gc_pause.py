"""While a program is compiled, Python's garbage collector checks young objects only.

Compiling creates many objects that live until it ends. Searching all of them for cycles again and
again took an eighth of the time for a GPT of 48 layers. The collector's setting applies to the
whole process, so it is changed no longer than needed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from minigrad.locks import held_over_forks, in_child

NEVER = 1 << 30  # collections of younger objects before one of all

_lock = held_over_forks()
_makers = 0  # threads that are compiling a program now
_usual = 0  # how many collections of younger objects usually come before one of all


@contextmanager
def young_gc_only() -> Iterator[None]:
    """Wrap the compilation of a program in this; several threads may be inside."""
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
    """Some threads have finished; after the last one, the setting is restored."""
    global _makers
    if _makers:  # a child of a fork may have none
        _makers -= count
        if _makers == 0:
            gc.set_threshold(*gc.get_threshold()[:2], _usual)


def _in_child() -> None:
    """A child of a fork has none of the threads that compile programs."""
    _leave(_makers)


in_child(_in_child)
