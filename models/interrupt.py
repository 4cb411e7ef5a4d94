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


class Interruption:
    """Within it the first signal is only noted in `number`; a second one raises EndedAtOnce.

    notice: what is said then. Signals reach the main thread only; in another thread this does
    nothing.
    """

    def __init__(
        self, signals: Sequence[signal.Signals] = SIGNALS,
        notice: str = "ending after this step; once more ends at once\n",
    ) -> None:  # fmt: skip
        self.signals, self.notice = signals, notice
        self.number: int | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._notice) for number in self.signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise EndedAtOnce(number, "ended at once")
        self.number = number
        # not print: the signal may have come in the middle of one
        os.write(2, f"\n{self.notice}".encode())
