"""The exchanges themselves, written once for any `Transport`: rings of pieces.

An array is cut into one chunk per rank. In a ring all-reduce each rank sends to the next and
receives from the previous one, 2·(N − 1) times: first partial sums travel, until each rank has one
complete chunk (reduce-scatter); then the complete chunks travel (all-gather). A rank sends 2·(N −
1)/N of the array, the least possible (P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", 2009).

Chunks travel in pieces: while one is added, the next are under way, and a piece is sent on as soon
as it is added. The order of additions does not depend on timing, and every rank gets the result of
the chunk's owner, so all end with the same bits.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from minigrad.collective import Piece, Transport
from minigrad.dtype import DType
from minigrad.models.parallel.kernels import Kernels
from minigrad.runtimes import cpu_memory

PIECE = 1 << 19  # bytes: adding it takes about as long as sending it, and it fits in L2
AHEAD = 4  # receives that are posted before they are needed
MESSAGE = 1 << 28  # bytes of a message, where no pipelining is needed
SWAPPED = 1 << 17  # bytes of an array that two ranks exchange whole, instead of half each


class Scratch:
    """Memory for the time of a `with` block, which returns its address."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __enter__(self) -> int:
        self.address = cpu_memory.allocate(self.nbytes)
        return self.address

    def __exit__(self, *_: object) -> None:
        cpu_memory.free(self.address, self.nbytes)


def spans(count: int, parts: int) -> list[tuple[int, int]]:
    """(start, stop) of so many parts of 0 … count − 1, as even as possible."""
    return [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


Chunk = Sequence[tuple[int, int]]  # (start, stop) of its parts in an array


def _pieces(chunk: Chunk, itemsize: int) -> list[tuple[int, int]]:
    """(offset in bytes, elements) of the pieces of a chunk."""
    most = max(PIECE // itemsize, 1)
    return [(i * itemsize, min(most, stop - i))
            for start, stop in chunk for i in range(start, stop, most)]  # fmt: skip


def _walk(
    transport: Transport, address: int, dtype: DType, chunks: Sequence[Chunk],
    kernels: Kernels, how: str, gathers: bool = True,
) -> None:  # fmt: skip
    """Move chunks around the ring, in place in one array.

    Each step sends what the previous one has received. Rank r's own chunk is chunks[r]. how: chunks
    are reduced first, or "-": not. gathers: afterwards every rank gets all chunks.
    """
    rank, size, itemsize = transport.rank, transport.size, dtype.itemsize
    after, before = (rank + 1) % size, (rank - 1) % size
    reduced = [] if how == "-" else [chunks[(rank - 2 - k) % size] for k in range(size - 1)]
    gathered = [chunks[(rank - 1 - k) % size] for k in range(size - 1)] if gathers else []
    first = chunks[before if reduced else rank]
    incoming = [(k, p) for k, chunk in enumerate((*reduced, *gathered))
                for p in _pieces(chunk, itemsize)]  # fmt: skip
    last_step, adding = len(reduced) + len(gathered) - 1, len(reduced)
    # A complete chunk may arrive while its partial sum seems to be still under way; but it could
    # not be complete if that had not arrived.
    sent: list[Any] = []
    posted: deque[Any] = deque()

    def post(number: int) -> None:
        step, (offset, count) = incoming[number]
        place = address + offset
        if step < adding:
            place = scratch + number % AHEAD * PIECE
        posted.append(transport.irecv(before, place, count * itemsize, TAG))

    def send(offset: int, count: int) -> None:
        sent.append(transport.isend(after, address + offset, count * itemsize, TAG))

    with Scratch(AHEAD * PIECE if reduced else 0) as scratch:
        for piece in _pieces(first, itemsize):
            send(*piece)
        for number in range(min(AHEAD, len(incoming))):
            post(number)
        for number, (step, (offset, count)) in enumerate(incoming):
            transport.wait([posted.popleft()])
            if step < adding:
                place = scratch + number % AHEAD * PIECE
                factor = 1 / size if step == adding - 1 and how == "mean" else 1.0
                target = address + offset
                kernels.combine(how, dtype, target, place, count, factor)
            if step < last_step:
                send(offset, count)
            if number + AHEAD < len(incoming):
                post(number + AHEAD)
        transport.wait(sent)


TAG = 0  # of all messages of an exchange: they arrive in order


def all_reduce(
    transport: Transport, sent: Sequence[Piece], target: int, dtype: DType, how: str,
    kernels: Kernels,
) -> None:  # fmt: skip
    """Write the sum, mean or maximum of all ranks' arrays, each joined from pieces, to target.

    Two ranks that share memory add there; otherwise arrays go around the ring.
    """
    rank, size, itemsize = transport.rank, transport.size, dtype.itemsize
    if size == 2:
        addition, place = kernels.addition(how, dtype), target
        for piece in sent:
            if not transport.add(1 - rank, piece.address, place, piece.count, addition):
                break
            place += piece.count * itemsize
        else:
            return
    join(sent, target, itemsize)
    count = sum(piece.count for piece in sent)
    ring_all_reduce(transport, target, count, dtype, how, kernels)


def join(sent: Sequence[Piece], target: int, itemsize: int) -> None:
    """Copy arrays one after the other into target."""
    for piece in sent:
        if piece.address != target:
            ctypes.memmove(target, piece.address, piece.count * itemsize)
        target += piece.count * itemsize


def ring_all_reduce(
    transport: Transport, address: int, count: int, dtype: DType, how: str, kernels: Kernels
) -> None:
    """Replace an array by the sum, mean or maximum of all ranks' arrays."""
    size = transport.size
    if size == 2 and count * dtype.itemsize <= SWAPPED:
        _swap(transport, address, count, dtype, how, kernels)
    elif size > 1:
        chunks = [[span] for span in spans(count, size)]
        _walk(transport, address, dtype, chunks, kernels, how)


def _swap(
    transport: Transport, address: int, count: int, dtype: DType, how: str, kernels: Kernels
) -> None:
    """Two ranks exchange their whole arrays: not more data, and one message each.

    Both add in the order of ranks, because the choice between NaNs, or zeros in a maximum, depends
    on it.
    """
    other, nbytes = 1 - transport.rank, count * dtype.itemsize
    with Scratch(nbytes) as scratch:
        coming = transport.irecv(other, scratch, nbytes, TAG)
        transport.wait([coming, transport.isend(other, address, nbytes, TAG)])
        first, second = (address, scratch) if other else (scratch, address)
        kernels.combine(how, dtype, first, second, count, 1 / 2 if how == "mean" else 1.0)
        if first != address:
            ctypes.memmove(address, first, nbytes)


def ring_reduce_scatter(
    transport: Transport, address: int, count: int, dtype: DType, how: str, kernels: Kernels
) -> tuple[int, int]:
    """Reduce this rank's chunk of an array in place; returns its span. Others are overwritten."""
    rank, size = transport.rank, transport.size
    chunks = [[span] for span in spans(count, size)]
    if size > 1:
        _walk(transport, address, dtype, chunks, kernels, how, gathers=False)
    return chunks[rank][0]


def ring_all_gather(
    transport: Transport, address: int, counts: Sequence[int], dtype: DType, kernels: Kernels
) -> None:
    """Give every rank all parts of arrays, one after the other; each rank has its part of each."""
    size = transport.size
    if size > 1:
        chunks: list[list[tuple[int, int]]] = [[] for _ in range(size)]
        for start, count in zip(accumulate(counts, initial=0), counts, strict=False):
            for chunk, span in zip(chunks, spans(count, size), strict=True):
                chunk.append((start + span[0], start + span[1]))
        _walk(transport, address, dtype, chunks, kernels, "-")


def broadcast(transport: Transport, address: int, nbytes: int, root: int) -> None:
    """Replace every rank's bytes by the root's; pieces travel along the ring."""
    rank, size = transport.rank, transport.size
    if size == 1:
        return
    after, before = (rank + 1) % size, (rank - 1) % size
    sent = []
    for offset, length in _messages(nbytes, PIECE):
        if rank != root:
            transport.wait([transport.irecv(before, address + offset, length, TAG)])
        if after != root:
            sent.append(transport.isend(after, address + offset, length, TAG))
    transport.wait(sent)


def permute(transport: Transport, source: int, target: int, nbytes: int, shift: int) -> None:
    """Send bytes `shift` ranks on, and receive those of the rank `shift` places before."""
    transport.wait(_shifted(transport, shift, source, target, nbytes))


def all_to_all(transport: Transport, source: int, target: int, nbytes: int) -> None:
    """Send part s of an array (nbytes each) to rank s; the part from rank s becomes part s."""
    rank, size, requests = transport.rank, transport.size, list[Any]()
    for step in range(size):
        own, their = source + (rank + step) % size * nbytes, target + (rank - step) % size * nbytes
        requests += _shifted(transport, step, own, their, nbytes)
    transport.wait(requests)


def _shifted(
    transport: Transport, shift: int, source: int, target: int, nbytes: int
) -> list[Any]:
    """Begin to send bytes `shift` ranks on, and to receive others from `shift` places before."""
    rank, size, requests = transport.rank, transport.size, list[Any]()
    if shift % size == 0:
        ctypes.memmove(target, source, nbytes)
        return requests
    for offset, length in _messages(nbytes, MESSAGE):
        requests.append(transport.isend((rank + shift) % size, source + offset, length, TAG))
        requests.append(transport.irecv((rank - shift) % size, target + offset, length, TAG))
    return requests


def _messages(nbytes: int, most: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of messages of at most `most` bytes."""
    for offset in range(0, nbytes, most):
        yield offset, min(most, nbytes - offset)
