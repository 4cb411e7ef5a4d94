"""The native driver of the CPU: walks a launch table and shares each launch among threads.

A launch runs chunks of a kernel's parallel loop. The thread that called publishes it as one
64-bit *ticket* (launch number, number of chunks, next index); whoever wants a chunk adds 1 to the
ticket and learns from the old value, at one instant, which launch it hit, whether there is a chunk
left, and which one it got. A counter beside a separately stored bound would deadlock: a late
thread increments the counter of one launch and compares it with the bound of the next.

Only who got a chunk reads the launch's description, and the caller does not overwrite it before
all chunks are reported finished; threads report theirs when they find no more. So the end of a
launch never depends on a sleeping thread: the caller alone would get it done, chunk by chunk.

Idle workers spin a while and then sleep on a futex. The caller, after publishing, looks at the
number of sleepers; a worker, after announcing itself as a sleeper, looks at the ticket; all four
accesses are sequentially consistent, so at least one of the two notices the other.

Linux often wakes a worker on the very processor of the caller that woke it, and then leaves both
there for some 10 ms while another is idle: a short launch takes as long as on one thread. So
workers may run on any processor of ours but the caller's, and whenever the caller is found on
another than before, they are told anew.
"""

from __future__ import annotations

import sys
from functools import cache
from string import Template

from minigrad.runtimes.cpu_driver_ir import DRIVER
from minigrad.runtimes.host import architecture_name
from minigrad.runtimes.jit_compiler import host_compiler

# One launch of a table: five 64-bit integers.
LAUNCH_BYTES = 40
LAUNCH_FIELDS = ("kernel", "args", "total", "grain", "flags")
FLAG_ALONE = 1  # run on the calling thread: too short to share

# Byte offsets in a pool. What different threads write lies 128 bytes apart, because processors
# fetch cache lines of 64 bytes in pairs.
TICKET = 0  # i64: launch number (16 bits), chunks (24), next index (24)
DONE = 128  # i32: chunks of the current launch that are finished
CALLER_SLEEPS = 132  # i32: whether the caller waits for DONE on its futex
WAKE = 256  # i32: futex on which workers sleep, counts the wake-ups
SLEEPERS = 260  # i32: workers that sleep or are about to
STOP = 264  # i32: 1 tells the workers to return
BUSY = 384  # i32: 1 while a thread runs a table with the workers' help
INTERRUPT = 388  # i32: 1 makes run_table return 1 before the next launch
THREADS = 392  # i64: threads that take part, the caller included
SHUFFLE = 400  # i64: not 0: seed of a random order of chunks (to look for races)
NUMBER = 408  # i64: number of the last launch
HOME = 416  # i64: 1 + the processor that the workers were last told to keep off; 0: none yet
CURRENT = 512  # the launch: kernel, args, total, grain, first chunk of this ticket, seed
MASK = 640  # a bit for each processor on which our threads may run; 0: they are not told anything
SCRATCH = 768  # for each thread, the caller first: address of its scratch area, its system's number
_LAYOUT = ("TICKET", "DONE", "CALLER_SLEEPS", "WAKE", "SLEEPERS", "STOP", "BUSY", "INTERRUPT",
           "THREADS", "SHUFFLE", "NUMBER", "HOME", "CURRENT", "MASK", "SCRATCH")  # fmt: skip

MASK_BYTES = SCRATCH - MASK
THREAD_BYTES = 16  # of a thread's entry at SCRATCH

FUNCTIONS = ("run_table", "worker", "stop_workers", "acquire", "release")

SPINS = 2000  # pauses before a thread goes to sleep: roughly 50 to 100 µs
INDEX_BITS = 24
# Chunks that are published at once. Indices beyond it are handed out too: one per thread and
# launch, to tell it that nothing is left, and they must not overflow into the next field.
MOST_CHUNKS = (1 << INDEX_BITS) - (1 << 16)

# Numbers of system calls: futex, sched_setaffinity.
_CALLS = {"x86_64": (202, 203), "aarch64": (98, 122)}


_PAUSE = {
    "x86_64": """
declare void @llvm.x86.sse2.pause()
define internal void @pause() nounwind {
  call void @llvm.x86.sse2.pause()
  ret void
}
""",
    "aarch64": """
declare void @llvm.aarch64.hint(i32)
define internal void @pause() nounwind {
  call void @llvm.aarch64.hint(i32 1)
  ret void
}
""",
}
_NO_PAUSE = """
define internal void @pause() nounwind {
  ret void
}
"""

# 128 and 129: FUTEX_WAIT and FUTEX_WAKE of one process (FUTEX_PRIVATE_FLAG).
_FUTEX = """
declare i64 @syscall(i64, ...)
define internal void @wait(ptr %at, i32 %value) nounwind {
  %unused = call i64 (i64, ...) @syscall(i64 $CALL, ptr %at, i64 128, i32 %value,
    ptr null, ptr null, i64 0)
  ret void
}
define internal void @wake(ptr %at, i32 %count) nounwind {
  %unused = call i64 (i64, ...) @syscall(i64 $CALL, ptr %at, i64 129, i32 %count,
    ptr null, ptr null, i64 0)
  ret void
}
"""

_APART = """
declare i32 @sched_getcpu()
define internal void @keep_apart(ptr %pool) nounwind {
entry:
  %cpu.short = call i32 @sched_getcpu()
  %cpu = sext i32 %cpu.short to i64
  %here = add i64 %cpu, 1
  %home = getelementptr i8, ptr %pool, i64 $HOME
  %before = load i64, ptr %home, align 8
  %is.same = icmp eq i64 %here, %before
  br i1 %is.same, label %out, label %moved
moved:
  store i64 %here, ptr %home, align 8
  call void @tell_workers(ptr %pool, i64 %cpu)
  br label %out
out:
  ret void
}
define internal void @tell_workers(ptr %pool, i64 %cpu) noinline nounwind {
entry:
  %mask = alloca [$MASK_BYTES x i8], align 8
  %is.known = icmp ult i64 %cpu, $MASK_BITS
  br i1 %is.known, label %clear, label %out
clear:
  %all = getelementptr i8, ptr %pool, i64 $MASK
  call void @llvm.memcpy.p0.p0.i64(ptr %mask, ptr %all, i64 $MASK_BYTES, i1 false)
  %word = lshr i64 %cpu, 6
  %word.at = getelementptr i64, ptr %mask, i64 %word
  %place = and i64 %cpu, 63
  %bit = shl i64 1, %place
  %bits = load i64, ptr %word.at, align 8
  %others = xor i64 %bits, %bit
  store i64 %others, ptr %word.at, align 8
  %ours = and i64 %bits, %bit
  %is.ours = icmp ne i64 %ours, 0
  %threads.at = getelementptr i8, ptr %pool, i64 $THREADS
  %threads = load i64, ptr %threads.at, align 8
  br i1 %is.ours, label %more, label %out
more:
  %i = phi i64 [ 1, %clear ], [ %i.next, %tell ]
  %is.more = icmp slt i64 %i, %threads
  br i1 %is.more, label %tell, label %out
tell:
  %entries = getelementptr i8, ptr %pool, i64 $SCRATCH
  %number.at = getelementptr [2 x i64], ptr %entries, i64 %i, i64 1
  %number = load i64, ptr %number.at, align 8
  %unused = call i64 (i64, ...) @syscall(i64 $CALL, i64 %number, i64 $MASK_BYTES, ptr %mask)
  %i.next = add i64 %i, 1
  br label %more
out:
  ret void
}
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""
_NOT_APART = """
define internal void @keep_apart(ptr %pool) nounwind {
  ret void
}
"""

# Where there is no futex, sleeping is giving the processor to others for a moment.
_YIELD = """
declare i32 @sched_yield()
define internal void @wait(ptr %at, i32 %value) nounwind {
  %unused = call i32 @sched_yield()
  ret void
}
define internal void @wake(ptr %at, i32 %count) nounwind {
  ret void
}
"""


def pool_bytes(threads: int) -> int:
    """Bytes of a pool of so many threads (to be zeroed and aligned to 128)."""
    return SCRATCH + THREAD_BYTES * max(threads, 1)


@cache
def driver(spins: int = SPINS, most_chunks: int = MOST_CHUNKS) -> tuple[dict[str, int], object]:
    """Addresses of the driver's functions by name, and what keeps them alive.

    i64 run_table(table, count, pool, scratch): runs the launches in order; 1 if interrupted.
    void worker(pool, number): helps until `stop_workers(pool)` is called; numbers start at 1.
    i64 acquire(pool), void release(pool): keep everybody from sharing launches meanwhile.
    Tests lower the two parameters to reach rare paths often.
    """
    text = driver_text(architecture_name(), sys.platform, spins, most_chunks)
    return host_compiler().compile(text, list(FUNCTIONS))


def driver_text(architecture: str, system: str, spins: int, most_chunks: int) -> str:
    """LLVM IR of the driver for a processor and an operating system (as sys.platform)."""
    names = {name: globals()[name] for name in _LAYOUT}
    names |= {"SPINS": spins, "MOST_CHUNKS": most_chunks, "INDEX_BITS": INDEX_BITS,
              "INDEX_MASK": (1 << INDEX_BITS) - 1, "LAUNCH_BITS": 2 * INDEX_BITS}  # fmt: skip
    names |= {"MASK_BYTES": MASK_BYTES, "MASK_BITS": 8 * MASK_BYTES}
    calls = _CALLS.get(architecture) if system == "linux" else None
    if calls is None:
        parts = [DRIVER, _YIELD, _NOT_APART]
    else:
        futex, affinity = (str(number) for number in calls)
        parts = [DRIVER, _FUTEX.replace("$CALL", futex), _APART.replace("$CALL", affinity)]
    parts.append(_PAUSE.get(architecture, _NO_PAUSE))
    return Template("".join(parts)).substitute(names)
