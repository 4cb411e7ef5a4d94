"""Ranks as threads of this process: messages are copies in memory."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Sequence

from minigrad.collective import Addition
from minigrad.locks import new_lock
from minigrad.models.parallel.faults import RankError


class Request:
    """One end of a message."""

    __slots__ = ("address", "nbytes", "done")

    def __init__(self, address: int, nbytes: int) -> None:
        self.address, self.nbytes, self.done = address, nbytes, False


class Exchange:
    """The meeting point of the threads' messages."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.failure: BaseException | None = None
        self._lock = new_lock()
        self._wake = [threading.Condition(self._lock) for _ in range(size)]
        self._sends: dict[tuple[int, int, int], deque[Request]] = {}
        self._receives: dict[tuple[int, int, int], deque[Request]] = {}

    def fail(self, failure: BaseException) -> None:
        """Wake all ranks with an exception; only the first one counts."""
        with self._lock:
            if self.failure is None:
                self.failure = failure
            for condition in self._wake:
                condition.notify_all()

    def post(self, key: tuple[int, int, int], request: Request, is_send: bool) -> None:
        """Add one end of a message from key[0] to key[1]; if the other end is there, copy it."""
        ways = (self._sends, self._receives)
        mine, others = ways if is_send else ways[::-1]
        with self._lock:
            if self.failure is not None:
                raise self.failure
            waiting = others.get(key)
            if not waiting:
                mine.setdefault(key, deque()).append(request)
                return
            other = waiting.popleft()
        send, receive = (request, other) if is_send else (other, request)
        if send.nbytes != receive.nbytes:
            raise RankError(
                key[0],
                f"rank {key[0]} sends {send.nbytes:,} bytes where rank {key[1]} expects "
                f"{receive.nbytes:,}: all ranks must make the same exchanges in the same order",
            )
        ctypes.memmove(receive.address, send.address, send.nbytes)
        with self._lock:
            send.done = receive.done = True
            for end in key[:2]:
                self._wake[end].notify_all()

    def wait(self, rank: int, requests: Sequence[Request]) -> None:
        """Wait until all of a rank's requests are done."""
        with self._lock:
            while not all(request.done for request in requests):
                if self.failure is not None:
                    raise self.failure
                self._wake[rank].wait()


class LocalTransport:
    """One rank's end of an `Exchange`: see `minigrad.collective.Transport`."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        self.rank, self.size, self.exchange = rank, exchange.size, exchange
        self.pressing = False

    def isend(self, to: int, address: int, nbytes: int, tag: int) -> Request:
        """Begin to send; the receiver copies directly from this memory."""
        request = Request(address, nbytes)
        self.exchange.post((self.rank, to, tag), request, True)
        return request

    def irecv(self, source: int, address: int, nbytes: int, tag: int) -> Request:
        """Begin to receive."""
        request = Request(address, nbytes)
        self.exchange.post((source, self.rank, tag), request, False)
        return request

    def wait(self, requests: Sequence[Request]) -> None:
        """Wait until all are done; raises the exception that ended another rank."""
        self.exchange.wait(self.rank, requests)

    def add(self, other: int, source: int, target: int, count: int, addition: Addition) -> bool:
        """See `Transport`. Messages between threads are a single copy already."""
        return False
