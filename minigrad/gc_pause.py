"""While a program is compiled, Python's garbage collector checks young objects only.

Compiling creates many objects that live until it ends. Searching all of them for cycles again and
again took an eighth of the time for a GPT of 48 layers. The collector's setting applies to the
whole process, so it is changed no longer than needed.
"""

from __future__ import annotations

import gc

from minigrad.locks import Block

NEVER = 1 << 30  # collections of younger objects before one of all

_usual = 0  # how many collections of younger objects usually come before one of all


def _pause() -> None:
    global _usual
    young, middle, _usual = gc.get_threshold()
    gc.set_threshold(young, middle, NEVER)


def _resume() -> None:
    gc.set_threshold(*gc.get_threshold()[:2], _usual)


young_gc_only = Block(_pause, _resume)  # around the compilation of a program
