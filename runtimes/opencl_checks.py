"""Delayed checks of an OpenCL device: whether the indices of its programs were in range.

A program must not wait for the device. So the result of its checks is copied to the host in queue
order, and read when the host waits anyway. Programs that ran in the meantime may have read what the
failed program wrote; then their results are wrong, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from minigrad.device import Buffer, late_failures, poison, poisoned, undecided
from minigrad.errors import MinigradError


@dataclass
class _Checked:
    """A program with checks: the copy of its result, and the error if that is not 0."""

    event: Any
    number: bytearray
    failure: Callable[[], MinigradError]


@dataclass
class _Followed:
    """A program that ran while another was undecided: what it read and filled."""

    read: list[weakref.ref[Buffer]]
    filled: list[weakref.ref[Buffer]]


class Checks:
    """The undecided programs of one device, and those that ran after them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._waiting: list[_Checked | _Followed] = []

    def expect(self, event: Any, number: bytearray, failure: Callable[[], MinigradError]) -> None:
        """Record that a program's result is being copied to the host."""
        self._waiting.append(_Checked(event, number, failure))
        undecided.add(self.name)

    def follow(self, read: Iterable[Buffer], filled: Iterable[Buffer]) -> None:
        """Record a program that ran after an undecided one."""
        links = [weakref.ref(buffer) for buffer in read], [weakref.ref(b) for b in filled]
        self._waiting.append(_Followed(*links))

    def forget(self, is_done: Callable[[Any], bool]) -> None:
        """Drop the oldest programs, as long as they have ended without an error."""
        count = 0
        for one in self._waiting:
            if isinstance(one, _Checked) and (not is_done(one.event) or any(one.number)):
                break
            count += 1
        del self._waiting[:count]
        if not self._waiting:
            undecided.discard(self.name)

    def decide(self) -> None:
        """Raise the error of the first failed program; the device must have finished all work."""
        waiting, self._waiting = self._waiting, []
        undecided.discard(self.name)
        errors = []
        for one in waiting:
            if isinstance(one, _Checked):
                if any(one.number):
                    errors.append(one.failure())
                    for listener in late_failures:
                        listener(errors[-1])
            elif errors:
                lost = any((b := link()) is not None and id(b) in poisoned for link in one.read)
                if lost:
                    poison([b for link in one.filled if (b := link())], str(errors[0]))
        if errors:
            raise errors.pop(0)
