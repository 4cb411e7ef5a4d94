"""Ctrl-C and SIGTERM as a wish: finish the step, save, say how to go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run that a signal ended; the message is for the person at the keyboard."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class EndedAtOnce(Stopped):
    """A second signal came before the first was answered: nothing was saved."""


_open: list[Interruption] = []


def heard() -> int:
    """The signal that this process was told first, and has only noted; 0 for none."""
    return next((one.number for one in _open if one.number is not None), 0)


def pass_on(number: int) -> None:
    """Note what another process was told, which this one decides for."""
    for one in _open:
        one.number = number if one.number is None else one.number


class Interruption:
    """Within it the first signal is only noted in `number`; a second one raises EndedAtOnce.

    notice: what is said then. Signals reach the main thread only; in another thread this does
    nothing. Under MPI rank 0 hears of what the others were told (`parallel/mpi.py`).
    """

    def __init__(
        self, signals: Sequence[signal.Signals] = SIGNALS,
        notice: str = "ending after this step; once more ends at once\n",
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
            raise EndedAtOnce(number, "ended at once")
        self.number, self._told = number, True
        # not print: the signal may have come in the middle of one
        os.write(2, f"\n{self.notice}".encode())
