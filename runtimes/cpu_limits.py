"""The best that the machine can do, measured: the reference for a kernel's time.

Small kernels run on as many threads as programs do: chains of fused multiply-adds that never leave
the registers; a sum over memory, a copy, and a copy that bypasses the cache, each with sizes that
fit the different caches, or none. Each kernel runs several times and the best time counts, because
disturbances only make a measurement longer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import log

from minigrad.compile import best_of_rounds
from minigrad.dtype import dtypes
from minigrad.graph.symbolic import Integer, ceildiv
from minigrad.loops.build import lanes_loop, serial_loop
from minigrad.loops.nest import Loop, Nest, Prefetch, Statement, Store
from minigrad.render.llvm import render
from minigrad.runtimes import cpu_memory
from minigrad.runtimes.cpu_pool import Pool, Table
from minigrad.runtimes.host import host, threads
from minigrad.runtimes.jit_compiler import host_compiler
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Expr
from minigrad.target import LINE

CHAINS = 12  # independent sums: more than a multiply-add's latency times those begun per cycle
ROUNDS = 20_000  # multiply-adds of each chain in one chunk: about 50 µs
CHUNKS = 4  # chunks per thread, so that a thread that starts late does not determine the time
ACCUMULATORS = 8  # vectors that a reader loads per round
CHUNK_BYTES = 1 << 17  # that an iteration of a reader's parallel loop reads
SOON = 1 << 14  # how many bytes ahead to prefetch
SIZES = tuple(mib << 20 for mib in (1, 4, 16, 32, 64, 128, 256))  # bytes, read and written


@dataclass(frozen=True)
class Limits:
    """The limits of a number of threads together.

    operations: float32 additions and multiplications per second; vectors: vector instructions per
    second, where a multiply-add is one. bandwidths: bytes → the best bytes per second of a kernel
    that repeatedly reads and writes that many bytes in total; reading: of one that only reads.
    """

    operations: float
    vectors: float
    bandwidths: tuple[tuple[int, float], ...]
    reading: tuple[tuple[int, float], ...]

    def moving(self, nbytes: float, reads_only: bool = False) -> float:
        """The least number of seconds for reading and writing nbytes.

        Between two measured sizes, the bandwidth is interpolated by the logarithm of the size.
        """
        table = self.reading if reads_only else self.bandwidths
        below, best = table[0]
        for size, bandwidth in table:
            if size >= nbytes:
                part = log(nbytes / below) / log(size / below) if nbytes > below else 0.0
                return nbytes / (best + part * (bandwidth - best))
            below, best = size, bandwidth
        return nbytes / best


def measured_limits(count: int = 0) -> Limits:
    """The present limits of `count` threads, or of as many as programs use; takes about 0.4 s.

    In a virtual machine the limits vary. Half of the threads do not do half of the work of all,
    because two threads may share a core.
    """
    pool, address = Pool(count or threads(), "limits"), cpu_memory.reserve(SIZES[-1])
    try:
        lanes = host().vector_bytes // 4
        texts = {"multiply_adds": _multiply_adds(lanes), "reader": _reader(lanes),
                 "copy": _copy(lanes, False), "streaming_copy": _copy(lanes, True)}  # fmt: skip
        code = [host_compiler().compile(text, [name]) for name, text in texts.items()]
        adding, *moving = (found[name] for (found, _), name in zip(code, texts, strict=True))
        chunks = CHUNKS * pool.threads
        seconds = _best_time(pool, adding, address, chunks)
        operations = 2 * lanes * CHAINS * ROUNDS * chunks / seconds
        # Untouched pages would all be one page of zeros, which would be read from a cache.
        ctypes.memset(address, 1, SIZES[-1])
        tables: list[list[tuple[int, float]]] = [[] for _ in moving]
        for nbytes in SIZES:  # all use the same memory
            for kernel, table in zip(moving, tables, strict=True):
                seconds = _best_time(pool, kernel, address, nbytes // CHUNK_BYTES, nbytes // 2)
                table.append((nbytes, nbytes / seconds))
        best = tuple(max(row, key=lambda entry: entry[1]) for row in zip(*tables, strict=True))
        return Limits(operations, operations / (2 * lanes), best, tuple(tables[0]))
    finally:
        cpu_memory.release(address, SIZES[-1])
        pool.close()


limits = cache(measured_limits)  # the result of the first call


def _best_time(pool: Pool, kernel: int, memory: int, chunks: int, half: int = 0) -> float:
    """Seconds of the fastest run of a kernel, one chunk per iteration."""
    grain = max(chunks // (16 * pool.threads), 1)
    table = Table((memory, memory + half), [(kernel, chunks, grain, 0, 0)])
    return best_of_rounds(table.parts(pool.run, 0))[0]


# ---- the kernels: each iteration reads or writes the bytes of one chunk ----

FLOATS = CHUNK_BYTES // 4
MEMORY, TARGET = (Array(name, dtypes.float32, SIZES[-1] // 4) for name in ("memory", "target"))
_chunk = make_axis("chunk", 0, SIZES[-1] // CHUNK_BYTES)


def _text(name: str, *body: Statement) -> str:
    loop = serial_loop(_chunk, body)
    return render(Nest(name, loop, (MEMORY, TARGET), (), (), 0, 1, 0, 0, 0, name))


def _multiply_adds(lanes: int) -> str:
    """Chains x = x·a + a; their sum is stored, or they would not be computed."""
    half = expr.const(0.5, dtypes.float32)
    return _sums("multiply_adds", lanes, CHAINS, ROUNDS, lambda x, at: (x * half + half, ()))


def _reader(lanes: int) -> str:
    """Adds up a chunk; stores the sum at the chunk's start, or the loads would be left out."""

    def added(x: Expr, at: Integer) -> tuple[Expr, tuple[Statement, ...]]:
        return x + expr.load(MEMORY, at), (Prefetch(MEMORY, at + SOON // 4),)

    rounds = FLOATS // (ACCUMULATORS * lanes)
    return _sums("reader", lanes, ACCUMULATORS, rounds, added)


def _sums(
    name: str, lanes: int, count: int, rounds: int,
    term: Callable[[Expr, Integer], tuple[Expr, tuple[Statement, ...]]],
) -> str:  # fmt: skip
    """`count` vectors; each round replaces them by a term of their values and positions."""
    step, number, lane = (make_axis("r", n, size) for n, size in enumerate((rounds, count, lanes)))
    sums = Array(
        "x", dtypes.float32, count, "registers", lanes=lane.variable, width=lanes
    )

    def each(*body: Statement) -> Statement:
        unrolled = Loop(number.variable, 0, (count,), body, "unroll")
        return lanes_loop(lane, lanes, (unrolled,))

    first = _chunk.index * FLOATS + lane.index
    at = first + step.index * (count * lanes) + number.index * lanes
    value, more = term(expr.load(sums, number.index), at)
    parts = [expr.load(sums, n) for n in range(count)]
    total = Store(MEMORY, first, sum(parts[1:], parts[0]))
    return _text(
        name,
        each(Store(sums, number.index, expr.const(0.0, dtypes.float32))),
        serial_loop(step, (each(Store(sums, number.index, value), *more),)),
        lanes_loop(lane, lanes, (total,)),
    )


def _copy(lanes: int, streams: bool) -> str:
    """Copies half a chunk from MEMORY to TARGET."""
    inside = make_axis("r", 0, FLOATS // 2)
    at = _chunk.index * inside.count + inside.index
    copied = Store(TARGET, at, expr.load(MEMORY, at), streaming=streams)
    soon = Prefetch(MEMORY, at + SOON // 4, ceildiv(lanes * 4, LINE))
    name = "streaming_copy" if streams else "copy"
    return _text(name, lanes_loop(inside, lanes, (soon, copied)))
