"""Ranks compare their views of an exchange before any of its data are used.

Otherwise an all-reduce of int32 here and of float32 there would silently give garbage. Each rank
describes its exchange to the next one in the ring, in a message of a few bytes beside the first
piece of data. A rank that is told something else raises, which ends all ranks. If data come from
another rank than the previous one, that rank's message is waited for, too. So when an exchange
completes, all have agreed on it.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from minigrad.collective import Addition
from minigrad.graph.collective import Collective
from minigrad.models.parallel.faults import ADVICE, RankError

if TYPE_CHECKING:
    from minigrad.models.parallel.group import Members

HEADER = struct.Struct("q 8s 24s 88s")  # number of the exchange, digest of all, verb, description


@lru_cache(maxsize=1024)
def described(what: Collective) -> tuple[bytes, bytes, bytes]:
    """(digest, verb, description) of an exchange, cut to the size of a header."""
    verb, text = f"{what.kind}s", what.told()
    digest = hashlib.blake2b(f"{verb} {text}".encode(), digest_size=8).digest()
    if len(text) > 88:
        text = text[:84] + " …"
    return digest, verb.encode(), text.encode()


class Headers:
    """The memory of a group's headers; it stays, even if an exchange fails."""

    def __init__(self, size: int) -> None:
        self.count = 0  # exchanges so far
        self.own = ctypes.create_string_buffer(HEADER.size)
        self.others = [ctypes.create_string_buffer(HEADER.size) for _ in range(size)]
        self.address = ctypes.addressof(self.own)
        self.places = [ctypes.addressof(other) for other in self.others]


class Agreement:
    """The members of a group for one exchange, `what`, as a Transport.

    Nothing is received from a rank that has not described the same exchange.
    """

    TAG = 1 << 10  # of headers, above those of groups: they never meet data

    def __init__(self, members: Members, headers: Headers, what: Collective) -> None:
        self.members, self.headers = members, headers
        self.rank, self.size, self.pressing = members.rank, members.size, False
        self.wait = members.wait
        headers.count += 1
        HEADER.pack_into(headers.own, 0, headers.count, *described(what))
        self._sent, self._expected = list[Any](), dict[int, Any]()
        tag, ranks, transport = members.tag + self.TAG, members.ranks, members.transport
        for shift in shifts(what, self.size):
            to, source = (self.rank + shift) % self.size, (self.rank - shift) % self.size
            self._sent.append(transport.isend(ranks[to], headers.address, HEADER.size, tag))
            place = headers.places[source]
            self._expected[source] = transport.irecv(ranks[source], place, HEADER.size, tag)

    def isend(self, to: int, address: int, nbytes: int, tag: int) -> Any:
        """Begin to send; the receiver compares headers first."""
        return self.members.isend(to, address, nbytes, tag)

    def irecv(self, source: int, address: int, nbytes: int, tag: int) -> Any:
        """Begin to receive, once the source has described the same exchange."""
        self._agree(source)
        return self.members.irecv(source, address, nbytes, tag)

    def add(self, other: int, source: int, target: int, count: int, addition: Addition) -> bool:
        """Add another rank's array, once that rank has described the same exchange."""
        self._agree(other)
        return self.members.add(other, source, target, count, addition)

    def _agree(self, source: int) -> None:
        if self._expected:
            # the previous one first: it always sends its header, others might not
            self._compare((self.rank - 1) % self.size)
            self._compare(source)

    def close(self) -> None:
        """Compare the remaining headers; afterwards all ranks have received this rank's header."""
        for source in list(self._expected):
            self._compare(source)

    def _compare(self, source: int) -> None:
        request = self._expected.pop(source, None)
        if request is None:
            return
        self.wait([request] if self._expected else [request, *self._sent])
        if self.headers.own.raw != self.headers.others[source].raw:
            ranks, mine, theirs = self.members.ranks, self.headers.own, self.headers.others[source]
            raise RankError(
                -1, disagreement({ranks[self.rank]: mine.raw, ranks[source]: theirs.raw})
            )


def shifts(what: Collective, size: int) -> Collection[int]:
    """Distances to the ranks that need this rank's header: always the next one, and first."""
    if size == 1:
        return ()
    if what.kind == "all_to_all":
        return range(1, size)
    if what.kind == "permute" and what.place % size > 1:
        return (1, what.place % size)
    return (1,)


def disagreement(headers: dict[int, bytes]) -> str:
    """A sentence about two ranks' different exchanges; headers by rank."""
    (first, mine), (second, theirs) = sorted(headers.items())
    here, there = HEADER.unpack(mine), HEADER.unpack(theirs)
    words = [[part.rstrip(b"\0").decode(errors="replace") for part in side[2:]]
             for side in (here, there)]  # fmt: skip
    (verb, what), (other, like) = words
    also = f" as exchange {there[0]}" if there[0] != here[0] else ""
    again = like if other == verb else f"{other} {like}"
    if words[0] == words[1]:
        also = also or " that differs further on"
    return (
        f"rank {first} {verb} {what} as exchange {here[0]}, rank {second} {again}{also}: {ADVICE}"
    )
