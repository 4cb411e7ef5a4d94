"""The groups in which devices exchange data in a parallel program.

A COLLECTIVE node of the graph names a group. When a program reaches the exchange, the runtime of
the device finds the group here and calls its `start`; it waits before the first reader of the
result. The code that registers a group implements it (with threads, processes, or machines).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minigrad.dtype import DType
from minigrad.errors import DeviceError
from minigrad.graph.collective import Collective
from minigrad.locks import new_lock


class Transport(Protocol):
    """How one rank reaches the others. Memory is given by its address; messages have tags.

    Between two ranks, messages with one tag arrive in the order in which they were sent. A send
    reads from the memory itself, and a receive writes to it, so both must be kept until `wait`.
    """

    rank: int
    size: int
    pressing: bool  # whether a thread has nothing to do but wait for what is under way

    def isend(self, to: int, address: int, nbytes: int, tag: int) -> Any:
        """Begin to send bytes; returns a request for `wait`."""

    def irecv(self, source: int, address: int, nbytes: int, tag: int) -> Any:
        """Begin to receive exactly nbytes."""

    def wait(self, requests: Sequence[Any]) -> None:
        """Return when all requests are done; DeviceError if a rank is lost."""

    def add(self, other: int, source: int, target: int, count: int, addition: Addition) -> bool:
        """Write the sum of this rank's source and another rank's to target, at both.

        Returns False if the two share no memory; then neither has done anything.
        """


@dataclass(frozen=True)
class Addition:
    """A native function, called as kernel(0, count, args, 0).

    args: addresses of two summands and of the result, which may be one of them, and count.
    """

    kernel: int
    itemsize: int


@dataclass(frozen=True)
class Piece:
    """An array to be sent: its address and its number of elements."""

    address: int
    count: int


class Group(Protocol):
    """A group of ranks, from the view of one of them."""

    name: str
    rank: int
    size: int

    def start(self, what: Collective, dtype: DType, sent: Sequence[Piece], result: Piece) -> Any:
        """Begin an exchange, which proceeds by itself; returns the argument of `finish`."""

    def finish(self, begun: Any) -> None:
        """Wait until an exchange is done; raises the error if it failed."""


_groups: dict[tuple[str, str], Group] = {}
_lock = new_lock()


def enter(device: str, groups: Sequence[Group]) -> None:
    """Add a device to groups; DeviceError if it is already in a group of the same name."""
    with _lock:
        for group in groups:
            if (device, group.name) in _groups:
                raise DeviceError(f"{device} is already in a group {group.name!r}; leave it first")
        _groups.update({(device, group.name): group for group in groups})


def leave(device: str, groups: Sequence[Group]) -> None:
    """Remove a device from groups; those that it has since replaced are left alone."""
    with _lock:
        for group in groups:
            if _groups.get((device, group.name)) is group:
                del _groups[device, group.name]


def group_of(device: str, name: str, size: int) -> Group:
    """The group of this name that a device is in; DeviceError if there is none of that size."""
    group = _groups.get((device, name))
    if group is None:
        raise DeviceError(
            f"an exchange in the group {name!r}, but {device} is in no such group; call it inside "
            "minigrad.models.parallel.run(…)"
        )
    if group.size != size:
        raise DeviceError(f"{size} ranks exchange in the group {name!r}: expected {group.size}")
    return group


class Exchange:
    """One COLLECTIVE of a program on a device: begun at one place, finished at another."""

    def __init__(
        self, device: str, what: Collective, dtype: DType, counts: Sequence[int], size: int
    ) -> None:
        self.device, self.what, self.dtype = device, what, dtype
        self.counts, self.size = tuple(counts), size  # elements of each sent array, of the result
        self._begun: tuple[Group, Any] | None = None

    def start(self, addresses: Sequence[int]) -> None:
        """Begin. addresses: those of the sent arrays, then the result's."""
        group = group_of(self.device, self.what.group, self.what.size)
        sent = [Piece(a, n) for a, n in zip(addresses[:-1], self.counts, strict=True)]
        result = Piece(addresses[-1], self.size)
        self._begun = group, group.start(self.what, self.dtype, sent, result)

    def finish(self) -> None:
        """Wait for the result."""
        if self._begun is not None:
            group, begun = self._begun
            self._begun = None
            group.finish(begun)


