"""The native driver of the CPU: walks a launch table and shares each launch among threads.

A launch runs chunks of a kernel's parallel loop. Launches that do not depend on each other are a
*group* (FLAG_CONCURRENT), whose chunks are numbered together; there is no barrier between them. If
they are interleaved (FLAG_INTERLEAVED), a chunk of the group is one chunk of each launch, one after
the other. The calling thread publishes a group as one *share* for each thread: neighbouring chunks,
so that a thread continues in memory where it was, and runs the same chunks of a program each time.
A thread that is done with its own share steals from the others.

A share is a 64-bit *ticket* (the group's number, end, next index). A thread that wants a chunk adds
1 to the ticket and learns from the old value, atomically, which group it hit, whether there is a
chunk left, and which one it got. A counter beside a separately stored bound would deadlock: a late
thread increments the counter of one group and compares it with the bound of the next.

Only a thread that got a chunk reads where the group is, and the caller does not overwrite that
before all chunks are reported finished; threads report theirs when they find no more. So the end of
a group never depends on a sleeping thread: the caller alone would complete it, chunk by chunk.

Idle workers spin a while and then sleep on a futex. The caller publishes and then reads the number
of sleepers; a worker announces itself as a sleeper and then reads its ticket. All four accesses are
sequentially consistent, so at least one of the two notices the other.

Linux often wakes a worker on the processor of the caller that woke it, and then leaves both there
for some 10 ms while another processor is idle: a short launch takes as long as on one thread. So
workers may run on any of our processors except the caller's, and their affinity is set again
whenever the caller has moved to another processor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from minigrad.cache import digest, open_cache
from minigrad.errors import DeviceError, expect
from minigrad.runtimes import native
from minigrad.runtimes.host import host
from minigrad.runtimes.jit_compiler import host_compiler

# One launch of a table: five 64-bit integers.
LAUNCH_BYTES = 40
LAUNCH_FIELDS = ("kernel", "args", "total", "grain", "flags")
KERNEL, ARGS, TOTAL, GRAIN, FLAGS = range(0, LAUNCH_BYTES, 8)  # their byte offsets
FLAG_ALONE = 1  # run on the calling thread: too short to share
FLAG_CONCURRENT = 2  # waits neither for the launch before it nor for those that it is beside
FLAG_INTERLEAVED = 4  # beside the launch before it, each chunk right after the same one of that

# Byte offsets in a pool. Fields that different threads write are 128 bytes apart, because
# processors fetch cache lines of 64 bytes in pairs.
DONE = 0  # i64: chunks that workers have finished, of all groups; a futex is its lower half
CALLER_SLEEPS = 8  # i32: whether the caller waits for DONE on its futex
WAKE = 128  # i32: futex on which workers sleep, counts the wake-ups
SLEEPERS = 132  # i32: workers that sleep or are about to
STOP = 136  # i32: 1 tells the workers to return
THREADS = 144  # i64: threads that take part, the caller included
BUSY = 256  # i32: 1 while a thread runs a table with the workers' help
SHUFFLE = 264  # i64: not 0: seed of a random order of chunks (to look for races)
NUMBER = 272  # i64: number of the last group
HOME = 280  # i64: 1 + the processor that the workers were last told to avoid; 0: none yet
MASK = 384  # a bit for each processor on which our threads may run; 0: affinity is not set
SHARES = 512  # one for each thread, the caller's first
MASK_BYTES = SHARES - MASK
MASK_BITS = 8 * MASK_BYTES
# Fields of a share: its ticket, made of the number of a group (16 bits), end (24) and next index
# (24); then, as 64-bit integers, the address of the group's first launch, its number of chunks, and
# the value of SHUFFLE when it began; of the share's thread, the address of its scratch area and its
# number in the system; and the end of the group's launches.
TICKET, GROUP, CHUNKS, SEED, AREA, SYSTEM_NUMBER, END = range(0, 56, 8)
SHARE_BYTES = 128

FUNCTIONS = (
    "run_table", "replay", "worker", "stop_workers", "acquire", "release", "patch", "copy_rows",
)  # fmt: skip

SPINS = 2000  # pauses before a thread goes to sleep: roughly 50 to 100 µs
INDEX_BITS = 24
INDEX_MASK = (1 << INDEX_BITS) - 1
GROUP_BITS = 2 * INDEX_BITS
# Chunks of a group that threads share (a kernel has some 64). Larger indices are handed out, too,
# at most one per thread and share, to tell it that nothing is left, and must not overflow into the
# next field.
MOST_CHUNKS = (1 << INDEX_BITS) - (1 << 16)

# Numbers of Linux's system calls: futex, sched_setaffinity.
_CALLS = {"x86_64": (202, 203), "aarch64": (98, 122)}
_PAUSES = {"x86_64": "pause", "aarch64": "yield"}

Source = tuple[str, dict[str, int], str]  # a text in the language of native.py, constants, pause

# In the language of native.py. 128 and 129 are FUTEX_WAIT and FUTEX_WAKE of one process
# (FUTEX_PRIVATE_FLAG).
_DRIVER = """
def run_table(table, count, pool, scratch, signals):
    end, owner = table + count * LAUNCH_BYTES, 0
    while table != end:
        group, chunks, alone = table, 0, load(table + FLAGS) & FLAG_ALONE
        while 1:
            if table == group or not load(table + FLAGS) & FLAG_INTERLEAVED:
                chunks += _chunks(table)
            table += LAUNCH_BYTES
            if table == end or not load(table + FLAGS) & FLAG_CONCURRENT:
                break
        if chunks < 2 or chunks > MOST_CHUNKS or load(pool + THREADS) < 2:
            alone = 1
        # Whoever has the pool keeps it to the end of its table; others may get it later.
        if not alone and (owner or acquire(pool)):
            owner = 1
            _run_shared(pool, group, table, chunks, scratch)
        else:
            _run_alone(group, table, chunks, load(pool + SHUFFLE), scratch)
        if signals and peek(signals):
            break
    if owner:
        release(pool)
    return (end - table) // LAUNCH_BYTES

def replay(given):
    run_table(load(given), load(given + 8), load(given + 16), load(given + 24), 0)

def _chunks(launch):
    if load(launch + TOTAL) > 0:
        return (load(launch + TOTAL) - 1) // max(load(launch + GRAIN), 1) + 1

# All chunks on this thread, one call each: where chunks end must not depend on threads.
def _run_alone(group, last, chunks, seed, scratch):
    i = 0
    while i < chunks:
        _run_chunk(group, last, _permute(i, chunks, seed), scratch)
        i += 1

# A chunk by its number in the group that begins with a launch, and those of what goes in turn.
def _run_chunk(launch, last, number, scratch):
    while number >= _chunks(launch):
        number, launch = number - _chunks(launch), launch + LAUNCH_BYTES
        while load(launch + FLAGS) & FLAG_INTERLEAVED:
            launch += LAUNCH_BYTES
    while 1:
        grain = max(load(launch + GRAIN), 1)
        begin = number * grain
        end = begin + min(grain, load(launch + TOTAL) - begin)
        call(load(launch + KERNEL), begin, end, load(launch + ARGS), scratch)
        launch += LAUNCH_BYTES
        if launch == last or not load(launch + FLAGS) & FLAG_INTERLEAVED:
            break

# A permutation of 0 ... n-1, chosen by seed (0: the identity). Odd multiples, additions and
# shifted xors are bijections of the numbers below a power of two; walk until one is below n.
def _permute(i, n, seed):
    if seed:
        zeros = leading_zeros(n - 1 | 1)
        mask, shift = -1 >> zeros, (64 - zeros) // 2 + 1
        while 1:
            i = i * (seed | 1) + (seed >> 17) & mask
            i = (i ^ i >> shift) * 2862933555777941757 & mask
            if i < n:
                break
    return i

def _run_shared(pool, group, last, n, scratch):
    number, threads, done = load(pool + NUMBER) + 1, load(pool + THREADS), peek(pool + DONE)
    store(pool + NUMBER, number)
    store(pool + SHARES + AREA, scratch)
    _keep_apart(pool)
    i, begin = threads, n
    while i:
        i, end = i - 1, begin
        share, begin = pool + SHARES + i * SHARE_BYTES, n * i // threads
        store(share + GROUP, group)
        store(share + END, last)
        store(share + CHUNKS, n)
        store(share + SEED, load(pool + SHUFFLE))
        swap(share + TICKET, number << GROUP_BITS | end << INDEX_BITS | begin)
    if peek32(pool + SLEEPERS):
        add32(pool + WAKE, 1)
        _wake(pool + WAKE, n - 1)
    _await(pool, done + n - _work(pool, 0, threads))

# Wait until workers have done so many chunks.
def _await(pool, wanted):
    spins = 0
    while peek(pool + DONE) != wanted:
        if spins < SPINS:
            spins += 1
            pause()
        else:
            poke32(pool + CALLER_SLEEPS, 1)
            while 1:
                done = peek(pool + DONE)
                if done == wanted:
                    break
                _wait(pool + DONE, done)
            poke32(pool + CALLER_SLEEPS, 0)

# Take chunks until a group has no more, first those of our share; gives how many.
# Chunks that were not yet reported keep their group from ending, so all are of one group.
# Scratch areas are replaced between groups: the address at AREA holds while we have a chunk.
# To look before adding leaves a ticket in the cache of who has more of it to do.
def _work(pool, number, threads):
    mine, i, own = 0, 0, pool + SHARES + number * SHARE_BYTES
    share, end = own, pool + SHARES + threads * SHARE_BYTES
    while i < threads:
        ticket = peek(share + TICKET)
        if ticket & INDEX_MASK < ticket >> INDEX_BITS & INDEX_MASK:
            ticket = add(share + TICKET, 1)
        if ticket & INDEX_MASK < ticket >> INDEX_BITS & INDEX_MASK:
            chunk = _permute(ticket & INDEX_MASK, load(share + CHUNKS), load(share + SEED))
            _run_chunk(load(share + GROUP), load(share + END), chunk, load(own + AREA))
            mine += 1
        else:
            i, share = i + 1, share + SHARE_BYTES
            if share >= end:
                share = pool + SHARES
    return mine

def worker(pool, number):
    share, seen, spins = pool + SHARES + number * SHARE_BYTES, -1, 0
    while not peek32(pool + STOP):
        group = peek(share + TICKET) >> GROUP_BITS
        if group != seen:
            seen, spins = group, 0
            mine = _work(pool, number, load(pool + THREADS))
            if mine:
                add(pool + DONE, mine)
                if peek32(pool + CALLER_SLEEPS):
                    _wake(pool + DONE, 1)
        elif spins < SPINS:
            spins += 1
            pause()
        else:
            spins = 0
            add32(pool + SLEEPERS, 1)
            wakes = peek32(pool + WAKE)
            if peek(share + TICKET) >> GROUP_BITS == seen and not peek32(pool + STOP):
                _wait(pool + WAKE, wakes)
            add32(pool + SLEEPERS, -1)

# Keep everybody from sharing launches, to change what belongs to the pool: 1 if it worked.
def acquire(pool):
    return 1 - swap32(pool + BUSY, 1)

def release(pool):
    poke32(pool + BUSY, 0)

def stop_workers(pool):
    poke32(pool + STOP, 1)
    add32(pool + WAKE, 1)
    _wake(pool + WAKE, 0x7fffffff)

# A kernel that puts values where other kernels' arguments want them.
def patch(i, end, args, scratch):
    words, places, sources, values = load(args), load(args + 8), load(args + 16), load(args + 24)
    while i < end:
        store(words + 8 * load(places + 8 * i), load(values + 8 * load(sources + 8 * i)))
        i += 1

def copy_rows(to, stride, apart, given, step, beyond, nbytes, rows, blocks):
    while blocks:
        i = 0
        while i < rows:
            copy(to + i * stride, given + i * step, nbytes)
            i += 1
        to, given, blocks = to + apart, given + beyond, blocks - 1

def _wait(at, value):
    syscall(FUTEX, at, 128, value, 0, 0, 0)

def _wake(at, count):
    syscall(FUTEX, at, 129, count, 0, 0, 0)

def _keep_apart(pool):
    here = sched_getcpu()
    if here + 1 != load(pool + HOME):
        store(pool + HOME, here + 1)
        if here >= 0 and here < MASK_BITS:
            _tell_workers(pool, pool + MASK + here // 64 * 8, 1 << here % 64)

# Whoever has the pool takes the processor out of the mask while it tells them.
def _tell_workers(pool, word, bit):
    i = 1
    if load(word) & bit:
        store(word, load(word) ^ bit)
        while i < load(pool + THREADS):
            number = load(pool + SHARES + i * SHARE_BYTES + SYSTEM_NUMBER)
            syscall(SET_AFFINITY, number, MASK_BYTES, pool + MASK)
            i += 1
        store(word, load(word) ^ bit)
"""


@cache
def driver(spins: int = SPINS) -> tuple[dict[str, int], object]:
    """Addresses of the driver's functions by name, and an object that keeps them alive.

    i64 run_table(table, count, pool, scratch, signals): runs the launches in order, until the
    number at the address `signals`, if there is one, is not 0; gives how many launches are left.
    void replay(given): run_table without signals, with its arguments in memory.
    void worker(pool, number): helps until `stop_workers(pool)` is called; numbers start at 1.
    i64 acquire(pool), void release(pool): keep other threads from sharing launches meanwhile.
    patch: a kernel whose arguments are words, places, sources, values (see `cpu_replay`).
    void copy_rows(to, stride, apart, given, step, beyond, nbytes, rows, blocks): copies blocks of
    rows of bytes.
    Tests let threads spin less, so that they sleep often.
    """
    return compiled("driver", driver_source(host().architecture, spins), FUNCTIONS)


def check_host(architecture: str) -> None:
    """Raise DeviceError if there is no driver for this processor and system."""
    expect(architecture in _CALLS and sys.platform == "linux",
           f"the device CPU does not support {sys.platform} on {architecture}",
           f"Linux on one of {', '.join(_CALLS)}; use the device REF", error=DeviceError)


def driver_source(architecture: str, spins: int) -> Source:
    """The driver for a processor, on Linux. DeviceError as `check_host`."""
    check_host(architecture)
    constants = {**globals(), "SPINS": spins}
    constants["FUTEX"], constants["SET_AFFINITY"] = _CALLS[architecture]
    return source_of(_DRIVER, constants, architecture)


def source_of(text: str, constants: Mapping[str, object], architecture: str = "") -> Source:
    """The arguments of `translate`; constants that are not numbers are left out."""
    numbers = {name: value for name, value in constants.items() if isinstance(value, int)}
    return text, numbers, _PAUSES[architecture or host().architecture]


def compiled(kind: str, source: Source, names: Sequence[str]) -> tuple[dict[str, int], object]:
    """Addresses of functions by name, and an object that keeps them alive; from disk if possible.

    The key contains this source and the translator's: translating the driver would take each
    process 5 ms.
    """
    compiler, disk = host_compiler(), open_cache()
    try:
        key = digest(kind, compiler.key, Path(native.__file__).read_bytes(), repr(source))
    except OSError:
        disk = None  # edits of the translator would go unnoticed: nothing is cached
    known = disk.read(key) if disk is not None else None
    code: bytes = known or compiler.object_code(native.translate(*source))
    if disk is not None and known is None:
        disk.write(key, code)
    return compiler.load(code, names)
