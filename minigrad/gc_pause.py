"""While a program is found that was not known, Python's garbage collector does nothing.

Cutting a graph, planning it and compiling it create many objects that all live until it ends.
Searching them for cycles again and again took an eighth of the time for a GPT of 48 layers, and an
eighth of a step whose graph differs each time. The collector belongs to the whole process, so it is
off no longer than needed.
"""

from __future__ import annotations

import gc

from minigrad.locks import Block

_was_on = True


def _pause() -> None:
    global _was_on
    _was_on = gc.isenabled()
    gc.disable()


def _resume() -> None:
    if _was_on:
        gc.enable()


gc_paused = Block(_pause, _resume)
