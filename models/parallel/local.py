"""Ranks that are threads of this process, and a model of the network between them."""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from minigrad.collective import Addition
from minigrad.locks import new_lock
from minigrad.models.parallel.faults import RankError


@dataclass(frozen=True)
class Network:
    """A modelled network: a message of n bytes takes latency + n/bandwidth, one after the other
    on each link.

    latency: seconds; bandwidth: bytes per second. loss: the share of messages that must be sent a
    second time, after `timeout` seconds; which ones depends on `seed` alone. fails: rank → the
    number of messages after which it is cut off.
    """

    latency: float = 0.0
    bandwidth: float = float("inf")
    loss: float = 0.0
    timeout: float = 0.0
    seed: int = 0
    fails: dict[int, int] = field(default_factory=dict)


class Request:
    """One end of a message."""

    __slots__ = ("address", "nbytes", "done", "at", "peer")

    def __init__(self, address: int, nbytes: int, peer: int) -> None:
        self.address, self.nbytes, self.peer = address, nbytes, peer
        self.done, self.at = False, 0.0  # complete from the time `at`


class Exchange:
    """Where the threads' messages meet."""

    def __init__(self, size: int, network: Network | None = None) -> None:
        self.size, self.network = size, network
        self.failure: BaseException | None = None
        self._lock = new_lock()
        self._wake = [threading.Condition(self._lock) for _ in range(size)]
        self._sends: dict[tuple[int, int, int], deque[Request]] = {}
        self._receives: dict[tuple[int, int, int], deque[Request]] = {}
        self._free: dict[tuple[int, int], float] = {}  # when a link is free again
        self._random = {
            (a, b): random.Random(f"{network.seed} {a} {b}")
            for a in range(size) for b in range(size)
        } if network is not None else {}  # fmt: skip
        self._messages = [0] * size

    def fail(self, failure: BaseException) -> None:
        """Wake all ranks with an exception; the first one counts."""
        with self._lock:
            if self.failure is None:
                self.failure = failure
            for condition in self._wake:
                condition.notify_all()

    def post(self, key: tuple[int, int, int], request: Request, is_send: bool) -> None:
        """One end of a message from key[0] to key[1]; copies it where the other end is there."""
        mine, others = (
            (self._sends, self._receives) if is_send else (self._receives, self._sends)
        )
        with self._lock:
            if self.failure is not None:
                raise self.failure
            if is_send and self.network is not None:
                self._travel(key, request, self.network)
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
        receive.at = send.at
        with self._lock:
            send.done = receive.done = True
            for end in key[:2]:
                self._wake[end].notify_all()

    def _travel(self, key: tuple[int, int, int], request: Request, network: Network) -> None:
        """When a message arrives; or the end of the rank that sends it."""
        source, to, _ = key
        self._messages[source] += 1
        if self._messages[source] > network.fails.get(source, 1 << 62):
            raise RankError(source, f"rank {source} is cut off from the network")
        start = max(time.monotonic(), self._free.get((source, to), 0.0))
        if network.loss and self._random[source, to].random() < network.loss:
            start += network.timeout
        self._free[source, to] = start + request.nbytes / network.bandwidth
        request.at = self._free[source, to] + network.latency

    def wait(self, rank: int, requests: Sequence[Request]) -> None:
        """Return when all of a rank's requests are done."""
        with self._lock:
            while not all(request.done for request in requests):
                if self.failure is not None:
                    raise self.failure
                self._wake[rank].wait()
        late = max((request.at for request in requests), default=0.0) - time.monotonic()
        if late > 0:
            time.sleep(late)


class LocalTransport:
    """One rank's end of an `Exchange`: see `minigrad.collective.Transport`."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        self.rank, self.size, self.exchange = rank, exchange.size, exchange
        self.pressing = False

    def isend(self, to: int, address: int, nbytes: int, tag: int) -> Request:
        """Begin to send; the receiver copies straight from this memory."""
        request = Request(address, nbytes, to)
        self.exchange.post((self.rank, to, tag), request, True)
        return request

    def irecv(self, source: int, address: int, nbytes: int, tag: int) -> Request:
        """Begin to receive."""
        request = Request(address, nbytes, source)
        self.exchange.post((source, self.rank, tag), request, False)
        return request

    def wait(self, requests: Sequence[Request]) -> None:
        """Return when all are done; raises what ended another rank."""
        self.exchange.wait(self.rank, requests)

    def add(self, other: int, source: int, target: int, count: int, addition: Addition) -> bool:
        """See `Transport`. Messages of threads are one copy already."""
        return False
