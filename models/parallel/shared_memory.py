"""Memory that two ranks of a machine share, to add each other's arrays.

MPI copies a message into shared memory, and from there into an array, which the receiver then reads
to add it. Here an addition reads directly what the other rank has stored. It is stored past the
caches: lines changed by a core reach a core of another die at 2 GB/s, but from memory at 10 to 16.
A rank has two areas, used in turn. It stores piece k + 2 after it has seen piece k + 1 of the other
rank, which stored that after it was done with piece k: the area is free again.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import Any

from minigrad.collective import Addition
from minigrad.runtimes.cpu_driver import compiled, source_of
from minigrad.runtimes.native import function

ROOM = 1 << 17  # bytes of a piece: several fit in L2
HEAD = 128  # bytes before the areas: the number of pieces stored by a rank
LOOKS = 50  # polls of the other rank's number per call: about a microsecond
WAITS, MOVED, DONE = range(3)  # results of a call

# Byte offsets of a call's arguments. FIRST, SECOND, TARGET, COUNT are a kernel's arguments.
OWN, OTHER, ORDER, PUT, SEEN, SOURCE, RESULT, LEFT, SIZE, KERNEL, ARGS = range(0, 88, 8)
FIRST, SECOND, TARGET, COUNT = range(0, 32, 8)
_BEGIN = struct.Struct("5q").pack_into  # from SOURCE on

# Continues an addition; in the language of native.py. PUT and SEEN count pieces.
_LANE = """
def go_on(told):
    moved = WAITS
    while load(told + LEFT):
        nbytes = min(load(told + LEFT), ROOM)
        number = load(told + SEEN) + 1
        place = HEAD + number % 2 * ROOM
        if load(told + PUT) < number:
            _put(load(told + OWN) + place, load(told + SOURCE), nbytes)
            store(told + PUT, number)
            poke(load(told + OWN), number)
        if not _seen(load(told + OTHER), number):
            return moved
        _add(told, load(told + OTHER) + place, nbytes // load(told + SIZE))
        store(told + SEEN, number)
        store(told + SOURCE, load(told + SOURCE) + nbytes)
        store(told + RESULT, load(told + RESULT) + nbytes)
        store(told + LEFT, load(told + LEFT) - nbytes)
        moved = MOVED
    return DONE

def _put(target, source, nbytes):
    while nbytes >= 64:
        stream(target, source)
        target, source, nbytes = target + 64, source + 64, nbytes - 64
    copy(target, source, nbytes)
    fence()

def _seen(flag, number):
    looks = 0
    while looks < LOOKS:
        if peek(flag) >= number:
            return 1
        pause()
        looks += 1

# The lower rank's piece comes first at both, so that both get the same bits.
def _add(told, other, count):
    args, order = told + ARGS, load(told + ORDER)
    store(args + FIRST + order, load(told + SOURCE))
    store(args + SECOND - order, other)
    store(args + TARGET, load(told + RESULT))
    store(args + COUNT, count)
    call(load(told + KERNEL), 0, count, args, 0)
"""


class Lane:
    """One rank's end of the memory that it shares with another.

    pair: a communicator of the two; both must call this.
    """

    def __init__(self, mpi: Any, pair: Any) -> None:
        self._window = mpi.Win.Allocate_shared(HEAD + 2 * ROOM, 1, comm=pair)
        own, other = (self._window.Shared_query(rank)[0].address
                      for rank in (pair.rank, 1 - pair.rank))  # fmt: skip
        ctypes.memset(own, 0, HEAD)
        pair.Barrier()
        self._told = (ctypes.c_int64 * (ARGS // 8 + 4))(own, other, SECOND * pair.rank)
        self._address = ctypes.addressof(self._told)
        self._go_on, self._code = _native()

    def begin(self, source: int, target: int, count: int, addition: Addition) -> None:
        """Begin to write the sum of both ranks' sources, of equal length, to target."""
        size = addition.itemsize
        _BEGIN(self._told, SOURCE, source, target, count * size, size, addition.kernel)

    def go_on(self) -> bool | None:
        """Continue. True if done; None if some pieces were added, but not the last."""
        state = self._go_on(self._address)
        return None if state == MOVED else state == DONE


@cache
def _native() -> tuple[Any, object]:
    """The function, and an object that keeps it alive."""
    addresses, code = compiled("lane", source_of(_LANE, globals()), ["go_on"])
    return function(addresses["go_on"], 1), code
