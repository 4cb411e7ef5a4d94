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

from minigrad.graph.collective import Collective
from minigrad.models.parallel.faults import ADVICE, SAME_DATA, RankError

if TYPE_CHECKING:
    from minigrad.models.parallel.group import Members

PLACE = "place"  # kind of a Collective that only compares: data of the host, which nobody sends
HEADER = struct.Struct("q 8s 24s 88s")  # number of the exchange, digest of all, verb, description


@lru_cache(maxsize=1024)
def described(what: Collective) -> tuple[bytes, bytes, bytes]:
    """(digest, verb, description) of an exchange, cut to the size of a header."""
    verb, text = f"{what.kind}s", what.told()
    digest = hashlib.blake2b(f"{verb} {text}".encode(), digest_size=8).digest()
    if len(text) > 88:
        text = text[:84] + " …"
    return digest, verb.encode(), text.encode()


class Agreement:
    """Compares the descriptions of a group's exchanges, which its `Members` ask for.

    Nothing is received from a rank that has not described the same exchange. The memory of the
    headers stays, even if an exchange fails.
    """

    TAG = 1 << 10  # of headers, above those of groups: they never meet data

    def __init__(self, members: Members) -> None:
        self.members = members
        self._count = 0  # exchanges so far
        self._own = ctypes.create_string_buffer(HEADER.size)
        self._others = [ctypes.create_string_buffer(HEADER.size) for _ in range(members.size)]
        self._sent, self._expected = list[Any](), dict[int, Any]()

    def begin(self, what: Collective) -> None:
        """Describe an exchange to the ranks that need this, and expect their descriptions."""
        members, rank, size = self.members, self.members.rank, self.members.size
        ranks, transport, tag = members.ranks, members.transport, members.tag + self.TAG
        self._count += 1
        HEADER.pack_into(self._own, 0, self._count, *described(what))
        self._sent, self._expected = [], {}
        for shift in shifts(what, size):
            to, source = (rank + shift) % size, (rank - shift) % size
            own, other = map(ctypes.addressof, (self._own, self._others[source]))
            self._sent.append(transport.isend(ranks[to], own, HEADER.size, tag))
            self._expected[source] = transport.irecv(ranks[source], other, HEADER.size, tag)

    def agree(self, source: int) -> None:
        """Wait until a rank has described the same exchange; RankError if it is another one."""
        if self._expected:
            # the previous one first: it always sends its header, others might not
            self._compare((self.members.rank - 1) % self.members.size)
            self._compare(source)

    def close(self) -> None:
        """Compare the remaining headers; afterwards all ranks have received this rank's header."""
        for source in list(self._expected):
            self._compare(source)

    def _compare(self, source: int) -> None:
        request = self._expected.pop(source, None)
        if request is None:
            return
        members = self.members
        members.wait([request] if self._expected else [request, *self._sent])
        mine, theirs = self._own.raw, self._others[source].raw
        if mine != theirs:
            told = {members.ranks[members.rank]: mine, members.ranks[source]: theirs}
            raise RankError(-1, disagreement(told))


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
    advice = SAME_DATA if verb == other == f"{PLACE}s" else ADVICE
    return (
        f"rank {first} {verb} {what} as exchange {here[0]}, rank {second} {again}{also}: {advice}"
    )
