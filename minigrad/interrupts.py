"""Ctrl-C is not lost, wherever it comes.

Python raises KeyboardInterrupt between two instructions of the main thread, also of what it calls
when an object goes (`__del__`, a weak reference's callback): there nobody can catch an exception,
and Python only reports it. Tensors and nodes go all the time: of loops of small operations every
seventh Ctrl-C came then.

Neither may it come between the end of a program that writes in place and the moment at which the
tensors know about the write: otherwise the write would be made a second time.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from importlib import import_module
from typing import Any

from minigrad.locks import in_child

SIGINT = int(signal.SIGINT)
_signal: Any = import_module("_signal")  # no enumerations, which take 20 times as long
_report = sys.unraisablehook


def never_lost() -> None:
    """Make sure of that from now on, in this process."""
    sys.unraisablehook = _come_again


def _come_again(found: Any) -> None:
    """Raise an interrupt again that could not be caught; report anything else as before."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if found.exc_type is KeyboardInterrupt and usual:
        # from another thread, which runs after this function: within it, it would be lost again
        _thread.start_new_thread(os.kill, (os.getpid(), signal.SIGINT))
    else:
        _report(found)


class _Held:
    """Whether Ctrl-C is delayed now, and whether one came meanwhile."""

    waits = came = False


def hold() -> None:
    """Delay Ctrl-C until `release`: on the main thread, if its handler is Python's own."""
    if _is_main() and _signal.getsignal(SIGINT) is signal.default_int_handler:
        _Held.waits = True
        _signal.signal(SIGINT, _note)


def _is_main() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _note(number: int, frame: object) -> None:
    _Held.came = True


def release() -> None:
    """Stop delaying Ctrl-C, and raise the KeyboardInterrupt that came meanwhile, if any."""
    if _Held.waits and _is_main() and _end():
        raise KeyboardInterrupt


def _end() -> bool:
    """Stop delaying Ctrl-C; returns whether one came meanwhile."""
    if _signal.getsignal(SIGINT) is _note:
        _signal.signal(SIGINT, signal.default_int_handler)
    came = _Held.came
    _Held.waits = _Held.came = False
    return came


in_child(_end)
