"""What the machine can do at best, measured: what a kernel's time is compared with.

Small kernels run on as many threads as programs do: chains of fused multiply-adds that never leave
the registers; a sum over memory, a copy, and a copy that passes by the cache, of as many bytes as
this or that cache holds, or none does. Each runs a few times and its best time counts, because what
disturbs a measurement only ever makes it longer.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import log

from minigrad.runtimes import cpu_memory
from minigrad.runtimes.cpu_pool import Launch, Pool
from minigrad.runtimes.host import host, threads
from minigrad.runtimes.jit_compiler import host_compiler

CHAINS = 12  # independent sums: more than a multiply-add's latency times those begun per cycle
ROUNDS = 20_000  # multiply-adds of each chain in one chunk: about 50 µs
CHUNKS = 4  # chunks per thread, so that a thread that comes late does not decide the time
ACCUMULATORS = 8  # vectors that a reader loads before it goes on to the next ones
CHUNK_BYTES = 1 << 17
SOON = 1 << 14  # bytes ahead that is asked of memory
SIZES = tuple(mib << 20 for mib in (1, 4, 16, 32, 64, 128, 256))  # bytes, read and written
LEAST_RUNS = 3
MEASURING_SECONDS = 0.012  # per kernel and size: some 3 to 100 runs


@dataclass(frozen=True)
class Limits:
    """All threads together.

    operations: float32 additions and multiplications per second; vectors: instructions per second,
    of vectors, a multiply-add being one. bandwidths: bytes → bytes per second that a kernel moves
    at best, if it reads and writes so many in all, again and again; reading: if it only reads.
    """

    operations: float
    vectors: float
    bandwidths: tuple[tuple[int, float], ...]
    reading: tuple[tuple[int, float], ...]

    def moving(self, nbytes: float, reads_only: bool = False) -> float:
        """Seconds that it takes at least to read and write so many bytes.

        Between two sizes the bandwidth goes from one to the other with the size's logarithm.
        """
        table = self.reading if reads_only else self.bandwidths
        below, best = table[0]
        for size, bandwidth in table:
            if size >= nbytes:
                part = log(nbytes / below) / log(size / below) if nbytes > below else 0.0
                return nbytes / (best + part * (bandwidth - best))
            below, best = size, bandwidth
        return nbytes / best


@cache
def limits() -> Limits:
    """The machine's limits; measured at the first call."""
    return measured_limits()


def measured_limits() -> Limits:
    """The machine's limits now, which takes some 0.4 s. Those of a virtual machine come and go."""
    pool = Pool(threads(), "limits")
    try:
        lanes = host().vector_bytes // 4
        text = _multiply_adds(lanes) + _reader(lanes) + _copies(lanes)
        names = ["multiply_adds", "reader", "copy", "streaming_copy"]
        addresses, _code = host_compiler().compile(text, names)
        operations = _operations(pool, addresses["multiply_adds"], lanes)
        tables = _bandwidths(pool, [addresses[name] for name in names[1:]])
        best = tuple(max(row, key=lambda entry: entry[1]) for row in zip(*tables, strict=True))
        return Limits(operations, operations / (2 * lanes), best, tables[0])
    finally:
        pool.close()


def _operations(pool: Pool, kernel: int, lanes: int) -> float:
    chunks = CHUNKS * pool.threads
    sums = (ctypes.c_float * (chunks * lanes))()
    seconds = _best_time(pool, kernel, ctypes.addressof(sums), chunks)
    return 2 * lanes * CHAINS * ROUNDS * chunks / seconds


def _bandwidths(pool: Pool, kernels: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """For each kernel and size, what the kernel moves; all go over the same memory."""
    address = cpu_memory.reserve(SIZES[-1])
    try:
        # Fresh pages would all be one page of zeros, and that one would be read from a cache.
        ctypes.memset(address, 1, SIZES[-1])
        found: list[list[tuple[int, float]]] = [[] for _ in kernels]
        for nbytes in SIZES:
            for kernel, table in zip(kernels, found, strict=True):
                chunks = nbytes // CHUNK_BYTES
                seconds = _best_time(pool, kernel, address, chunks, nbytes // 2)
                table.append((nbytes, nbytes / seconds))
        return [tuple(table) for table in found]
    finally:
        cpu_memory.release(address, SIZES[-1])


def _best_time(pool: Pool, kernel: int, memory: int, chunks: int, half: int = 0) -> float:
    """Seconds of the fastest run of a kernel, one chunk per iteration."""
    arguments = (ctypes.c_int64 * 2)(memory, memory + half)
    table = (Launch * 1)()
    table[0].kernel, table[0].args = kernel, ctypes.addressof(arguments)
    table[0].total, table[0].grain = chunks, max(chunks // (16 * pool.threads), 1)
    times: list[float] = []
    while len(times) < LEAST_RUNS or sum(times) < MEASURING_SECONDS:
        start = time.perf_counter()
        pool.run(ctypes.addressof(table), 1)
        times.append(time.perf_counter() - start)
    return min(times)


def _multiply_adds(lanes: int) -> str:
    """Chains x = x·a + a; what comes out is stored, or it would not be computed."""
    kind = f"<{lanes} x float>"
    name = f"@llvm.fmuladd.v{lanes}f32"
    factor = "splat (float 0x3FE0000000000000)"
    lines = _each_chunk("multiply_adds") + ["loop:"]
    lines.append("  %round = phi i64 [ 0, %chunk ], [ %next, %loop ]")
    for i in range(CHAINS):
        lines.append(f"  %x{i} = phi {kind} [ zeroinitializer, %chunk ], [ %y{i}, %loop ]")
    for i in range(CHAINS):
        lines.append(
            f"  %y{i} = call {kind} {name}({kind} %x{i}, {kind} {factor}, {kind} {factor})"
        )
    lines += _next_round(str(ROUNDS)) + ["done:"]
    total = _sum_of(lines, kind, CHAINS)
    lines.append(f"  %place = getelementptr {kind}, ptr %memory, i64 %i")
    lines.append(f"  store {kind} {total}, ptr %place, align 4")
    head = f"declare {kind} {name}({kind}, {kind}, {kind})\n"
    return head + "\n".join([*lines, *_next_chunk()])


def _reader(lanes: int) -> str:
    """Adds up CHUNK_BYTES bytes per iteration; writes the sum where no value of it occurs."""
    kind = f"<{lanes} x float>"
    step = ACCUMULATORS * lanes * 4
    lines = _each_chunk("reader")
    lines.insert(-1, f"  %offset = mul i64 %i, {CHUNK_BYTES}")
    lines.insert(-1, "  %start = getelementptr i8, ptr %memory, i64 %offset")
    lines.append("loop:")
    lines.append("  %round = phi i64 [ 0, %chunk ], [ %next, %loop ]")
    for i in range(ACCUMULATORS):
        lines.append(f"  %x{i} = phi {kind} [ zeroinitializer, %chunk ], [ %y{i}, %loop ]")
    lines.append(f"  %at = mul i64 %round, {step}")
    lines.append("  %row = getelementptr i8, ptr %start, i64 %at")
    for i in range(ACCUMULATORS):
        lines.append(f"  %p{i} = getelementptr {kind}, ptr %row, i64 {i}")
        lines.append(f"  %soon{i} = getelementptr i8, ptr %p{i}, i64 {SOON}")
        lines.append(f"  call void @llvm.prefetch.p0(ptr %soon{i}, i32 0, i32 3, i32 1)")
        lines.append(f"  %v{i} = load {kind}, ptr %p{i}, align 4")
        lines.append(f"  %y{i} = fadd {kind} %x{i}, %v{i}")
    lines += _next_round(str(CHUNK_BYTES // step)) + ["done:"]
    total = _sum_of(lines, kind, ACCUMULATORS)
    lines.append(f"  %first = extractelement {kind} {total}, i64 0")
    # All bytes are 1, so all sums are positive: the store keeps the loads from being left out.
    lines.append("  %odd = fcmp olt float %first, 0.0")
    lines += ["  br i1 %odd, label %write, label %over", "write:"]
    lines += ["  store float %first, ptr %start", "  br label %over", "over:"]
    head = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)\n"
    return head + "\n".join([*lines, *_next_chunk()])


def _copies(lanes: int) -> str:
    """Copies half a chunk per iteration from %memory to the second argument, in two ways."""
    return "".join(_copy("streaming_copy" if streams else "copy", lanes, streams)
                   for streams in (False, True)) + "!0 = !{i32 1}\n"  # fmt: skip


def _copy(name: str, lanes: int, streams: bool) -> str:
    kind, width = f"<{lanes} x float>", lanes * 4
    lines = _each_chunk(name)
    lines.insert(3, "  %second = getelementptr i64, ptr %args, i64 1")
    lines.insert(4, "  %target = load ptr, ptr %second")
    lines.insert(-1, f"  %offset = mul i64 %i, {CHUNK_BYTES // 2}")
    lines.append("loop:")
    lines.append("  %round = phi i64 [ 0, %chunk ], [ %next, %loop ]")
    lines.append(f"  %inside = mul i64 %round, {ACCUMULATORS * width}")
    lines.append("  %at = add i64 %offset, %inside")
    how = f"align {width}, !nontemporal !0" if streams else "align 4"
    for i in range(ACCUMULATORS):
        lines.append(f"  %at{i} = add i64 %at, {i * width}")
        lines.append(f"  %from{i} = getelementptr i8, ptr %memory, i64 %at{i}")
        lines.append(f"  %soon{i} = getelementptr i8, ptr %from{i}, i64 {SOON}")
        lines.append(f"  call void @llvm.prefetch.p0(ptr %soon{i}, i32 0, i32 3, i32 1)")
        lines.append(f"  %v{i} = load {kind}, ptr %from{i}, align 4")
        lines.append(f"  %to{i} = getelementptr i8, ptr %target, i64 %at{i}")
        lines.append(f"  store {kind} %v{i}, ptr %to{i}, {how}")
    lines += [*_next_round(str(CHUNK_BYTES // 2 // (ACCUMULATORS * width))), "done:"]
    lines += _next_chunk()
    if streams:  # others learn that a chunk is done by a flag
        lines.insert(lines.index("  ret void"), "  fence seq_cst")
    return "\n".join(lines)


def _each_chunk(name: str) -> list[str]:
    """The head of a kernel, up to the loop `loop` of iteration %i."""
    return [
        f"define void @{name}(i64 %begin, i64 %end, ptr %args, ptr %scratch) {{",
        "entry:",
        "  %memory = load ptr, ptr %args",
        "  br label %chunk",
        "chunk:",
        "  %i = phi i64 [ %begin, %entry ], [ %following, %last ]",
        "  br label %loop",
    ]


def _next_round(count: str) -> list[str]:
    return [
        "  %next = add i64 %round, 1",
        f"  %more = icmp slt i64 %next, {count}",
        "  br i1 %more, label %loop, label %done",
    ]


def _sum_of(lines: list[str], kind: str, count: int) -> str:
    """Append the addition of all %y; gives the sum's name."""
    total = "%y0"
    for i in range(1, count):
        lines.append(f"  %s{i} = fadd {kind} {total}, %y{i}")
        total = f"%s{i}"
    return total


def _next_chunk() -> list[str]:
    return [
        "  br label %last",
        "last:",
        "  %following = add i64 %i, 1",
        "  %again = icmp slt i64 %following, %end",
        "  br i1 %again, label %chunk, label %exit",
        "exit:",
        "  ret void",
        "}",
        "",
    ]
