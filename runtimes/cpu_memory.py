"""Memory of the CPU devices: a pool of aligned blocks, and blocks that end at an unreadable page.

The first access to new pages is several times slower than reading warm memory, so blocks are kept
and reused by size class. Large blocks are on huge pages, which they may share. Addresses are plain
integers.

The garbage collector may call `free` at any moment, even in the middle of `allocate` on the same
thread. So `free` never waits for the lock: it puts the block into a queue, and the holder of the
lock processes the queue. `allocate` may also be called at such a moment (by a `__del__`, or a
signal handler). It then finds the tables half changed, leaves them alone, and takes new pages.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections import OrderedDict, deque
from functools import partial

from minigrad.errors import BoundsError
from minigrad.locks import Block, held_over_forks
from minigrad.program import GlobalCounters
from minigrad.runtimes.host import memory_bytes

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
LARGEST_SMALL = HUGE_PAGE // 8  # up to this size, blocks are cut from a slab of one huge page
# Blocks that do not fill their huge pages share them with the next block: otherwise a block of 2.25
# MiB would take 4 MiB. They are cut from a range of this many bytes of addresses; only
# what is written to becomes memory. With small pages at the end of each block, reading rows took a
# tenth longer, and a server's step 6 % longer (its layers had quantized weights of 0.2 … 1 MiB and
# keys of 1.5 MiB).
SHARED = 128 << 20
LARGEST_SHARING = SHARED // 8  # above, size classes are whole huge pages
POISON = 0xFF  # the initial bytes of guarded memory: NaN as a float, −1 as an integer
_KEEP = 1 << 30  # idle bytes that are always kept, unless the machine is small

if sys.platform != "win32":  # where OpenCL only uses the size classes of this file
    _libc = ctypes.CDLL(None, use_errno=True)
    _mmap = _libc.mmap
    _mmap.restype = ctypes.c_void_p
    _mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]  # fmt: skip
    _munmap = _libc.munmap
    _munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _madvise = _libc.madvise
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    _mprotect = _libc.mprotect
    _mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_memoryview_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memoryview_at.restype = ctypes.py_object
_memoryview_at.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]

_MAP_FAILED = ctypes.c_void_p(-1).value
_PROT_NONE = 0
_PYBUF_WRITE = 0x200  # of CPython's memoryview interface


def size_class(nbytes: int) -> int:
    """The real size of a block for nbytes: whole cache lines, and at most an eighth more.

    There are eight classes between a power of two and the next, so that buffers of nearly one size
    (a batch and its remainder) share their blocks. Large blocks have sixteen, which waste less.
    Blocks that are not cut from a slab consist of whole pages.
    """
    if nbytes <= 512:
        return max(ALIGNMENT, (nbytes + ALIGNMENT - 1) & -ALIGNMENT)
    step = 1 << ((nbytes - 1).bit_length() - (5 if nbytes > HUGE_PAGE else 4))
    if nbytes > LARGEST_SMALL:
        step = max(step, PAGE)
    if nbytes > LARGEST_SHARING:
        step = max(step, HUGE_PAGE)
    return (nbytes + step - 1) & -step


class _Blocks:
    """Idle blocks by size class. All methods but the last three require `changing` to be set.

    changing: whether the tables are being changed; to be read with the lock held. If it is set
    then, this thread has interrupted its own change.
    """

    def __init__(self) -> None:
        self.lock = held_over_forks()
        self.changing = False
        self.grown: deque[int] = deque()  # sizes of pages that were taken during a change
        self.returned: deque[tuple[int, int]] = deque()  # address, size
        self.idle: dict[int, deque[int]] = {}
        self.idle_large: OrderedDict[int, int] = OrderedDict()  # address → size, oldest first
        self.idle_large_bytes = 0
        self.held = 0  # bytes that the system has given us
        self.used_peak = 0  # of these, in use at once
        self.early: dict[int, int] = {}  # size → blocks that `trim` has returned
        self.extra = 0  # bytes that are kept idle, because such blocks were needed again
        self.keeps = False  # see `keeping`
        self.slab = self.slab_end = 0
        self.shared = self.shared_end = 0  # addresses that `more_pages` has not used yet

    def take(self, size: int) -> tuple[int, bool]:
        """A block of a size class, the one that was returned last if there is any.

        And whether it is new: never written to, and zeroed by the system.
        """
        self.put_away()
        idle = self.idle.get(size)
        if idle:
            address = idle.pop()
            if size > LARGEST_SMALL:
                del self.idle_large[address]
                self.idle_large_bytes -= size
                self.used_peak = max(self.used_peak, self.held - self.idle_large_bytes)
            return address, False
        return (self.cut(size) if size <= LARGEST_SMALL else self.fresh(size)), True

    def cut(self, size: int) -> int:
        """A small block from the slab; the rest of a used-up slab (< 1/8) is abandoned."""
        if self.slab_end - self.slab < size:
            self.slab = self.fresh(HUGE_PAGE)
            self.slab_end = self.slab + HUGE_PAGE
        address = self.slab
        self.slab += size
        return address

    def fresh(self, size: int) -> int:
        """New pages from the system; if it has no more, idle ones are returned to it first."""
        address = self.more_pages(size)
        if address is None:
            self.trim(0)
            address = self.more_pages(size)
        if address is None:
            raise MemoryError(
                f"out of memory on the CPU: cannot allocate {size:,} bytes, {self.held:,} of "
                f"{memory_bytes():,} bytes are in use; use a smaller batch or model, or delete "
                "tensors that you no longer need"
            )
        self.held += size
        self.used_peak = max(self.used_peak, self.held - self.idle_large_bytes)
        if self.early.get(size):
            self.early[size] -= 1
            self.extra += size
        return address

    def more_pages(self, size: int) -> int | None:
        """New pages, or None, also if the system would promise memory that it does not have."""
        if self.held + size > memory_bytes():
            return None
        if size > LARGEST_SHARING:
            return map_pages(size)
        if self.shared_end - self.shared < size:
            start = map_pages(SHARED)
            if start is None:
                return map_pages(size)
            if self.shared_end > self.shared:
                _munmap(self.shared, self.shared_end - self.shared)
            self.shared, self.shared_end = start, start + SHARED
        address = self.shared
        self.shared += size
        return address

    def put_away(self) -> None:
        """Make the returned blocks ready for use, and keep the idle ones within bounds."""
        while self.grown:
            self.held += self.grown.popleft()
        while self.returned:
            address, size = self.returned.popleft()
            self.idle.setdefault(size, deque()).append(address)
            if size > LARGEST_SMALL:
                self.idle_large[address] = size
                self.idle_large_bytes += size
                self.extra -= self.extra >> 10
        if self.idle_large_bytes > _KEEP // 8 and not self.keeps:
            limit = max(min(_KEEP, memory_bytes() // 8), self.used_peak // 4)
            # What a step takes again and again, as an arena of more than _KEEP, is worth keeping,
            # unless sizes differ each time: no more than what is in use at another moment.
            again = self.used_peak - (self.held - self.idle_large_bytes)
            self.trim(max(limit, min(limit + self.extra, again)))

    def trim(self, limit: int) -> None:
        """Return the longest idle large blocks to the system until `limit` bytes are left."""
        while self.idle_large_bytes > limit:
            address, size = self.idle_large.popitem(last=False)
            # Each class is used as a stack, so its longest idle block is at the bottom.
            self.idle[size].popleft()
            _munmap(address, size)
            self.idle_large_bytes -= size
            self.held -= size
            self.early[size] = self.early.get(size, 0) + 1

    def give(self, address: int, size: int) -> None:
        """Queue a block for reuse; safe at any moment on any thread."""
        self.returned.append((address, size))
        self.settle()

    def settle(self) -> None:
        """Put queued blocks away unless another call is about to."""
        while self.returned and self.lock.acquire(blocking=False):
            try:
                if self.changing:
                    return
                self.changing = True
                try:
                    self.put_away()
                finally:
                    self.changing = False
            finally:
                self.lock.release()

    def take_or_grow(self, size: int) -> tuple[int, bool]:
        """`take`, or new pages if this thread has interrupted a change of the tables."""
        with self.lock:
            if not self.changing:
                self.changing = True
                try:
                    return self.take(size)
                finally:
                    self.changing = False
            address = map_pages(max(size, PAGE))
            if address is None:
                raise MemoryError(f"out of memory on the CPU: cannot allocate {size:,} bytes")
            self.grown.append(max(size, PAGE))
            return address, True


_blocks = _Blocks()
# Idle blocks of small results by their requested bytes: taken and returned without the lock, since
# `deque.append` and `pop` are atomic. A few of each are enough for the results of a step.
_ready: dict[int, deque[int]] = {}
_READY_BYTES = 1 << 16
_READY_BLOCKS = 8
_READY_ALIKE = 1 << 17  # bytes of one size
_READY_SIZES = 256
# Guarded blocks: address → (first byte of the mapping, its length, requested bytes).
_guarded: dict[int, tuple[int, int, int]] = {}


def map_pages(size: int) -> int | None:
    """New pages full of zeros, None if the system has no more.

    From 2 MiB on they start at a multiple of 2 MiB, and each whole 2 MiB is a huge page.
    """
    if size < HUGE_PAGE:
        return _map_anywhere(size)
    start = _map_anywhere(size + HUGE_PAGE)
    if start is None:
        return None
    address = (start + HUGE_PAGE - 1) & -HUGE_PAGE
    if address > start:
        _munmap(start, address - start)
    _munmap(address + size, start + HUGE_PAGE - address)
    _madvise(address, size, mmap.MADV_HUGEPAGE)  # advice: the system may ignore it
    return address


def _map_anywhere(length: int) -> int | None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = _mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if start != _MAP_FAILED:
        return int(start)
    code = ctypes.get_errno()
    if code == errno.ENOMEM:
        return None
    raise OSError(code, f"mmap of {length:,} bytes failed: {os.strerror(code)}")


def _take(nbytes: int) -> tuple[int, bool]:
    if nbytes < 0:
        raise ValueError(f"cannot allocate {nbytes} bytes: expected 0 or more")
    taken = _blocks.take_or_grow(size_class(nbytes))
    _blocks.settle()
    return taken


def _count(nbytes: int) -> None:
    """Add to the memory that tensors use.

    CPython switches threads and collects garbage at calls and loops, not within a line like this.
    """
    counters = GlobalCounters
    counters.mem_used += nbytes
    if counters.mem_used > counters.mem_peak:
        counters.mem_peak = counters.mem_used


def reserve(nbytes: int) -> int:
    """Like `allocate`, but not counted as memory of tensors (scratch areas, tables)."""
    return _take(nbytes)[0]


def release(address: int, nbytes: int) -> None:
    """Return memory that came from `reserve(nbytes)`."""
    _blocks.give(address, size_class(nbytes))


def allocate(nbytes: int) -> int:
    """Address of nbytes of uninitialised memory (0 is allowed), aligned to 64 bytes.

    More than 256 KiB are aligned to a page. MemoryError if the machine has no more.
    """
    ready = _ready.get(nbytes)
    try:
        address = ready.pop() if ready else _take(nbytes)[0]
    except IndexError:  # another thread was faster
        address = _take(nbytes)[0]
    _count(nbytes)
    return address


def allocate_zeros(nbytes: int) -> int:
    """Like `allocate`, but the memory is zero. New pages already are, so they are not touched."""
    address, is_new = _take(nbytes)
    if not is_new:
        ctypes.memset(address, 0, nbytes)
    _count(nbytes)
    return address


def free(memory: int, nbytes: int) -> None:
    """Return memory that came from `allocate(nbytes)` or `allocate_guarded(nbytes)`."""
    GlobalCounters.mem_used -= nbytes
    if memory in _guarded:
        _free_guarded(memory)
        return
    if nbytes <= _READY_BYTES:
        ready = _ready.get(nbytes)
        if ready is None and len(_ready) < _READY_SIZES:
            ready = _ready.setdefault(nbytes, deque())
        if ready is not None and len(ready) < min(_READY_BLOCKS, _READY_ALIKE // (nbytes or 1)):
            ready.append(memory)
            return
    _blocks.give(memory, size_class(nbytes))


def allocate_guarded(nbytes: int, filler: int = POISON) -> int:
    """A block between two unreadable pages; its last byte is directly before the second one.

    It holds the byte `filler`. An access beyond its end ends the process; the bytes before the
    block are checked when it is freed. nbytes must be a multiple of an element's size, so that the
    address is one, too.
    """
    if nbytes < 0:
        raise ValueError(f"cannot allocate {nbytes} bytes: expected 0 or more")
    data = max((nbytes + PAGE - 1) & -PAGE, PAGE)
    length = data + 2 * PAGE
    start = _map_anywhere(length)
    if start is None:
        raise MemoryError(f"out of memory on the CPU: cannot guard {nbytes:,} bytes")
    ctypes.memset(start + PAGE, POISON, data)
    for page in (start, start + length - PAGE):
        if _mprotect(page, PAGE, _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect failed: cannot guard a buffer")
    address = start + PAGE + data - nbytes
    if filler != POISON:
        ctypes.memset(address, filler, nbytes)
    _guarded[address] = (start, length, nbytes)
    _count(nbytes)
    return address


def _free_guarded(address: int) -> None:
    """Unmap a guarded block; BoundsError if something wrote before it."""
    start, length, nbytes = _guarded.pop(address)
    before = bytes(view(start + PAGE, address - start - PAGE))
    _munmap(start, length)
    if before.count(POISON) != len(before):
        raise BoundsError(f"a kernel wrote before the start of a buffer of {nbytes} bytes")


def view(address: int, nbytes: int) -> memoryview:
    """Writable flat bytes of memory; valid only as long as the block is allocated."""
    made: memoryview = _memoryview_at(address, nbytes, _PYBUF_WRITE)
    return made


def copy_in(memory: int, data: memoryview) -> None:
    """Copy contiguous `data` (which may be read-only) to an address."""
    if data.nbytes:
        view(memory, data.nbytes)[:] = data.cast("B")


def copy_out(memory: int, data: memoryview) -> None:
    """Fill the writable contiguous `data` from memory at an address."""
    if data.nbytes:
        data.cast("B")[:] = view(memory, data.nbytes)


def held_bytes() -> int:
    """Bytes that the pool has from the system, in use and idle, without guarded ones."""
    return _blocks.held


# In this block all idle memory is kept, for timed code that takes the same blocks again and again.
# If it needs more than is usually kept, it would spend its time on new pages.
keeping = Block(partial(setattr, _blocks, "keeps", True), partial(setattr, _blocks, "keeps", False))
