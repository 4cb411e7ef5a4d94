"""Ctrl-C and SIGTERM as requests: finish the step, save, say how to continue."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run was ended by a signal; the message is for the user."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class EndedAtOnce(Stopped):
    """A second signal came before the first was handled: nothing was saved."""


_open: list[Interruption] = []


def heard() -> int:
    """The first signal that this process has received and not acted on; 0 for none."""
    return next((one.number for one in _open if one.number is not None), 0)


def pass_on(number: int) -> None:
    """Record a signal that another process has received, for which this one decides."""
    for one in _open:
        one.number = number if one.number is None else one.number


class Interruption:
    """In the block, the first signal is only recorded in `number`; a second raises EndedAtOnce.

    notice: what is printed then. Only the main thread gets signals; in other threads this does
    nothing. Under MPI, rank 0 learns of signals to the others (`parallel/mpi.py`).
    """

    def __init__(
        self, signals: Sequence[signal.Signals] = SIGNALS,
        notice: str = "stopping after this step; Ctrl-C again stops at once\n",
    ) -> None:  # fmt: skip
        self.signals, self.notice = signals, notice
        self.number: int | None = None
        self._told = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._notice) for number in self.signals}
            _open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self in _open:
            _open.remove(self)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            raise EndedAtOnce(number, "stopped at once")
        self.number, self._told = number, True
        # not print, which the signal may have interrupted
        os.write(2, f"\n{self.notice}".encode())
