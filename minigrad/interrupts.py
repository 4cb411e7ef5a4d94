"""Ctrl-C is not lost, whenever it comes.

Python raises KeyboardInterrupt between two instructions of the main thread, also in code that runs
when an object is freed (`__del__`, a weak reference's callback). There an exception cannot be
caught, and Python only reports it. Tensors and nodes are freed all the time: in loops of small
operations every seventh Ctrl-C came at such a moment.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
from typing import Any

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
