"""Memory of the CPU: alignment, reuse, bounds, statistics, guard pages, and the host's limits."""

from __future__ import annotations

import array
import gc
import itertools
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from child import ended

from minigrad.errors import BoundsError, SettingError
from minigrad.program import GlobalCounters
from minigrad.runtimes import cpu_memory, host
from minigrad.settings import Context

MIB = 1 << 20


def trim(limit: int = 0) -> None:
    """Return idle large blocks to the system until at most `limit` bytes of them remain."""
    blocks = cpu_memory._blocks
    with blocks.lock:
        blocks.put_away()
        blocks.trim(limit)


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 512, 513, 4097, 262144, 262145, MIB, 2 * MIB,
                                    2 * MIB + 1, 33 * MIB])  # fmt: skip
def test_blocks_are_aligned_writable_and_big_enough(nbytes: int) -> None:
    address = cpu_memory.allocate(nbytes)
    try:
        assert address % (cpu_memory.PAGE if nbytes > cpu_memory.LARGEST_SMALL else 64) == 0
        data = random.Random(nbytes).randbytes(nbytes)
        cpu_memory.copy_in(address, memoryview(data))
        back = bytearray(nbytes)
        cpu_memory.copy_out(address, memoryview(back))
        assert back == data
    finally:
        cpu_memory.free(address, nbytes)


def test_size_classes_waste_little_and_never_shrink() -> None:
    source = random.Random(1)
    for nbytes in [source.randrange(1 << source.randrange(1, 36)) for _ in range(2000)]:
        size = cpu_memory.size_class(nbytes)
        assert size >= nbytes and size % 64 == 0
        share = 8 if nbytes <= 2 * MIB else 16 if nbytes <= cpu_memory.LARGEST_SHARING else 8
        assert size - nbytes <= max(64, nbytes // share)
        if nbytes > cpu_memory.LARGEST_SMALL:
            assert size % cpu_memory.PAGE == 0
        if nbytes > cpu_memory.LARGEST_SHARING:
            assert size % cpu_memory.HUGE_PAGE == 0
        assert cpu_memory.size_class(size) == size, "a block must go back to its own class"


def test_live_blocks_never_overlap() -> None:
    source = random.Random(2)
    live: dict[int, tuple[int, int]] = {}
    for number in range(3000):
        if live and source.random() < 0.45:
            address = source.choice(list(live))
            nbytes, tag = live.pop(address)
            expected = tag.to_bytes(4, "little") * (nbytes // 4)
            assert bytes(cpu_memory.view(address, nbytes)) == expected
            cpu_memory.free(address, nbytes)
        else:
            nbytes = 4 * source.choice([1, 15, 16, 17, 100, 1000, 30000, 70000, 600000])
            address = cpu_memory.allocate(nbytes)
            assert address not in live
            tag = number.to_bytes(4, "little")
            cpu_memory.copy_in(address, memoryview(tag * (nbytes // 4)))
            live[address] = (nbytes, number)
    for address, (nbytes, _) in live.items():
        cpu_memory.free(address, nbytes)


def test_a_freed_block_is_used_again() -> None:
    for nbytes in (100, 300_000, 5 * MIB):
        first = cpu_memory.allocate(nbytes)
        cpu_memory.free(first, nbytes)
        held = cpu_memory.held_bytes()
        second = cpu_memory.allocate(nbytes)
        assert second == first and cpu_memory.held_bytes() == held
        cpu_memory.free(second, nbytes)


def test_statistics_count_bytes_asked_for() -> None:
    used = GlobalCounters.mem_used
    addresses = [cpu_memory.allocate(1000) for _ in range(5)]
    scratch = cpu_memory.reserve(4000)
    assert GlobalCounters.mem_used == used + 5000
    assert GlobalCounters.mem_peak >= used + 5000
    for address in addresses:
        cpu_memory.free(address, 1000)
    cpu_memory.release(scratch, 4000)
    assert GlobalCounters.mem_used == used
    guarded = cpu_memory.allocate_guarded(123)
    assert GlobalCounters.mem_used == used + 123
    cpu_memory.free(guarded, 123)
    assert GlobalCounters.mem_used == used


def test_idle_blocks_go_back_to_the_system() -> None:
    trim()
    held = cpu_memory.held_bytes()
    blocks = [(cpu_memory.allocate(size), size) for size in (3 * MIB, 4 * MIB, 3 * MIB, 400_000)]
    assert cpu_memory.held_bytes() >= held + 10 * MIB
    for address, size in blocks:
        cpu_memory.free(address, size)
    trim(8 * MIB)
    assert cpu_memory.held_bytes() <= held + 8 * MIB
    trim()
    assert cpu_memory.held_bytes() == held


def keep_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep 16 MiB idle, and forget what was used and returned before."""
    trim()
    monkeypatch.setattr(cpu_memory, "_KEEP", 16 * MIB)
    for name, value in (("used_peak", 0), ("extra", 0), ("early", {})):
        monkeypatch.setattr(cpu_memory._blocks, name, value)


def test_idle_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_little(monkeypatch)
    held = cpu_memory.held_bytes()
    blocks = [cpu_memory.allocate(4 * MIB) for _ in range(20)]
    assert cpu_memory.held_bytes() == held + 80 * MIB
    for address in blocks:
        cpu_memory.free(address, 4 * MIB)
    kept = cpu_memory.held_bytes() - held
    assert 0 < kept <= max(16 * MIB, (held + 80 * MIB) // 4)
    trim()


@pytest.mark.parametrize("apart", [0, MIB])
def test_what_is_taken_again_and_again_stays(monkeypatch: pytest.MonkeyPatch, apart: int) -> None:
    """A block that each step takes is not mapped anew each time; of several sizes, one is kept.

    (An arena of more than a gigabyte was, which took a quarter of a step's time.)
    """
    keep_little(monkeypatch)
    before, mapped, map_pages = cpu_memory.held_bytes(), list[int](), cpu_memory.map_pages
    monkeypatch.setattr(cpu_memory, "map_pages", lambda n: mapped.append(n) or map_pages(n))
    for step in range(10):
        nbytes = 64 * MIB + step % 5 * 4 * apart
        cpu_memory.free(cpu_memory.allocate(nbytes), nbytes)
        assert cpu_memory.held_bytes() <= before + 96 * MIB
    assert len(mapped) == (10 if apart else 2)
    trim()


def test_who_looks_at_a_clock_keeps_all_idle_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_little(monkeypatch)
    many = 20 + cpu_memory.held_bytes() // (8 * MIB)  # more than a quarter of all, which is kept
    with cpu_memory.keeping():
        for address in [cpu_memory.allocate(4 * MIB) for _ in range(many)]:
            cpu_memory.free(address, 4 * MIB)
        held = cpu_memory.held_bytes()
        again = [cpu_memory.allocate(4 * MIB) for _ in range(many)]
        assert cpu_memory.held_bytes() == held
    for address in again:
        cpu_memory.free(address, 4 * MIB)
    assert cpu_memory.held_bytes() < held
    trim()


def test_out_of_memory_is_a_plain_error() -> None:
    with pytest.raises(MemoryError, match=r"1,125,899,906,842,624 bytes.*in use"):
        cpu_memory.allocate(1 << 50)
    address = cpu_memory.allocate(100)  # and then everything still works
    cpu_memory.free(address, 100)


def test_idle_memory_is_given_up_before_an_allocation_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trim()
    limit = cpu_memory.held_bytes() + 20 * MIB
    monkeypatch.setattr(cpu_memory, "memory_bytes", lambda: limit)
    monkeypatch.setattr(cpu_memory._blocks, "used_peak", 1 << 40)  # no block is returned on its own
    first = cpu_memory.allocate(12 * MIB)
    with pytest.raises(MemoryError):
        cpu_memory.allocate(16 * MIB)
    cpu_memory.free(first, 12 * MIB)
    second = cpu_memory.allocate(16 * MIB)
    cpu_memory.free(second, 16 * MIB)
    trim()


@pytest.mark.parametrize("nbytes", [-1, -(1 << 40)])
def test_negative_sizes_are_refused(nbytes: int) -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        cpu_memory.allocate(nbytes)
    with pytest.raises(ValueError, match="expected 0 or more"):
        cpu_memory.allocate_guarded(nbytes)


def test_copies_take_views_of_any_format_and_read_only_sources() -> None:
    address = cpu_memory.allocate(64)
    numbers = array.array("d", [1.5, -2.0, 3.25])
    cpu_memory.copy_in(address, memoryview(numbers).toreadonly())
    back = array.array("d", [0.0] * 3)
    cpu_memory.copy_out(address, memoryview(back))
    assert back == numbers
    cpu_memory.copy_in(address, memoryview(b""))
    with pytest.raises(TypeError):
        cpu_memory.copy_out(address, memoryview(b"12345678"))
    cpu_memory.free(address, 64)


@pytest.mark.parametrize("nbytes", [0, 1, 100, 4096, 300_000, 5 * MIB])
def test_zeros_are_zero_in_new_blocks_and_in_old_ones(nbytes: int) -> None:
    used = GlobalCounters.mem_used
    live = [cpu_memory.allocate_zeros(nbytes) for _ in range(20)]
    assert GlobalCounters.mem_used == used + 20 * nbytes
    for address in live:
        assert not any(cpu_memory.view(address, nbytes))
        cpu_memory.copy_in(address, memoryview(b"\xff" * nbytes))
    for address in live:
        cpu_memory.free(address, nbytes)
    again = [cpu_memory.allocate_zeros(nbytes) for _ in range(20)]
    assert set(again) & set(live), "none of them had been used before"
    for address in again:
        assert not any(cpu_memory.view(address, nbytes))
        cpu_memory.free(address, nbytes)
    with pytest.raises(ValueError, match="expected 0 or more"):
        cpu_memory.allocate_zeros(-1)


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * cpu_memory.PAGE


@pytest.mark.parametrize("nbytes", [5 * MIB // 16, 7 * MIB // 4, 9 * MIB // 4, 27 * MIB // 4,
                                    9 * MIB])  # fmt: skip
def test_blocks_share_huge_pages(nbytes: int) -> None:
    """With huge pages of its own, each block of 2.25 MiB would take 4 MiB."""
    trim()
    before, count = resident(), 2 * cpu_memory.SHARED // nbytes  # more than one mapping
    blocks = [cpu_memory.allocate(nbytes) for _ in range(count)]
    try:
        for number, address in enumerate(blocks):
            cpu_memory.view(address, nbytes)[:] = bytes([number % 251]) * nbytes
        assert resident() - before <= 1.1 * count * nbytes + 2 * cpu_memory.HUGE_PAGE
        for number, address in enumerate(blocks):
            assert cpu_memory.view(address, nbytes)[:] == bytes([number % 251]) * nbytes
    finally:
        for address in blocks:
            cpu_memory.free(address, nbytes)
    trim()
    assert resident() - before <= count * nbytes // 10 + 4 * cpu_memory.HUGE_PAGE


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize("nbytes", [1024, 5 * MIB // 16, MIB, 2 * MIB, 3 * MIB, 33 * MIB])
def test_memory_is_asked_for_in_huge_pages(nbytes: int) -> None:
    """Blocks of 256 KiB … 2 MiB once had small pages: matrices of a small model, layer by layer."""
    address = cpu_memory.allocate(nbytes)
    inside, flags = False, list[str]()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, end = (int(place, 16) for place in first.split("-"))
            inside = start <= address and address + nbytes <= end
        elif first == "VmFlags:" and inside:
            flags = rest
    cpu_memory.free(address, nbytes)
    assert "hg" in flags, f"{nbytes} bytes at {address:#x}: {flags}"


def test_new_zeros_are_not_touched() -> None:
    before, nbytes = resident(), 96 * MIB + cpu_memory.HUGE_PAGE * 3
    trim()
    address = cpu_memory.allocate_zeros(nbytes)
    assert resident() - before < nbytes // 2
    assert not any(cpu_memory.view(address, nbytes)[:: MIB // 2])
    cpu_memory.free(address, nbytes)
    trim()


@pytest.mark.parametrize("nbytes", [0, 1, 4, 100, 4096, 4100, 3 * MIB])
def test_guarded_blocks_hold_their_bytes(nbytes: int) -> None:
    address = cpu_memory.allocate_guarded(nbytes)
    assert (address + nbytes) % cpu_memory.PAGE == 0
    data = random.Random(nbytes).randbytes(nbytes)
    assert bytes(cpu_memory.view(address, nbytes)) == bytes([cpu_memory.POISON]) * nbytes
    cpu_memory.copy_in(address, memoryview(data))
    assert bytes(cpu_memory.view(address, nbytes)) == data
    cpu_memory.free(address, nbytes)


@pytest.mark.parametrize("offset", [-1, 100 - cpu_memory.PAGE])
def test_writes_before_a_guarded_block_are_found(offset: int) -> None:
    address = cpu_memory.allocate_guarded(100)
    cpu_memory.view(address + offset, 1)[0] = 7
    with pytest.raises(BoundsError, match="before the start"):
        cpu_memory.free(address, 100)


@pytest.mark.parametrize("offset", [100, -4096])
def test_access_beyond_the_guard_page_ends_the_process(offset: int) -> None:
    script = (
        "from minigrad.runtimes import cpu_memory\n"
        "address = cpu_memory.allocate_guarded(100)\n"
        "cpu_memory.view(address, 100)[99] = 1\n"
        "print('inside', flush=True)\n"
        f"print(cpu_memory.view(address + {offset}, 1)[0])\n"
    )
    result = ended("-c", script)
    assert result.stdout == "inside\n" and result.returncode < 0


def test_threads_share_the_pool() -> None:
    failures: list[str] = []
    used = GlobalCounters.mem_used

    def work(seed: int) -> None:
        source = random.Random(seed)
        live: list[tuple[int, int]] = []
        for _ in range(3000):
            if len(live) > 20:
                address, nbytes = live.pop(source.randrange(len(live)))
                if bytes(cpu_memory.view(address, 8)) != seed.to_bytes(8, "little"):
                    failures.append(f"thread {seed} lost a block of {nbytes} bytes")
                cpu_memory.free(address, nbytes)
            nbytes = source.choice([8, 64, 1000, 300_000])
            address = cpu_memory.allocate(nbytes)
            cpu_memory.copy_in(address, memoryview(seed.to_bytes(8, "little")))
            live.append((address, nbytes))
        for address, nbytes in live:
            cpu_memory.free(address, nbytes)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert GlobalCounters.mem_used == used


class _Owner:
    """A block that frees itself, like a Buffer; only the cycle collector finds it."""

    def __init__(self) -> None:
        self.address = cpu_memory.allocate(100_000)
        self.cycle = self

    def __del__(self) -> None:
        cpu_memory.free(self.address, 100_000)


def test_the_garbage_collector_may_free_inside_allocate() -> None:
    gc.collect()
    used = GlobalCounters.mem_used
    gc.disable()  # it must not run before
    try:
        _Owner()
        with cpu_memory._blocks.lock:  # the state of allocate when the collector runs
            cpu_memory._blocks.changing = True
            gc.collect()
    finally:
        cpu_memory._blocks.changing = False
        gc.enable()
    assert len(cpu_memory._blocks.returned) == 1, "nobody could put it away meanwhile"
    assert GlobalCounters.mem_used == used
    address = cpu_memory.allocate(100_000)
    assert GlobalCounters.mem_used == used + 100_000
    cpu_memory.free(address, 100_000)
    assert GlobalCounters.mem_used == used


@pytest.mark.parametrize("size", [64, 100_000, 3 * MIB])
def test_whoever_interrupts_allocate_may_allocate(size: int) -> None:
    """A signal handler may allocate at each line of `allocate`: no block is handed out twice."""
    inner: list[int] = []

    def interrupt(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename == cpu_memory.__file__ and event in ("call", "line"):
            if len(inner) < 50 * rounds[0]:  # otherwise there is always one more to put away
                inner.append(cpu_memory.allocate(size))
                if len(inner) % 3:
                    kept.append(inner[-1])
                else:
                    cpu_memory.free(inner[-1], size)
            return interrupt
        return None

    kept: list[int] = []
    rounds = [0]
    trim()
    held = cpu_memory.held_bytes()
    before = sys.gettrace()
    for rounds[0] in (1, 2, 3):
        sys.settrace(interrupt)
        try:
            address = cpu_memory.allocate(size)
        finally:
            sys.settrace(before)
        kept.append(address)
    assert len(inner) > 20
    assert len(set(kept)) == len(kept), "a block was given out twice"
    step = cpu_memory.size_class(size)
    places = sorted(kept)
    assert all(b - a >= step for a, b in itertools.pairwise(places)), "blocks overlap"
    for address in kept:
        cpu_memory.free(address, size)
    trim()
    assert cpu_memory.held_bytes() >= held


def test_the_host_is_described() -> None:
    machine = host.host()
    assert machine is host.host()
    assert machine.vector_bytes in (16, 32, 64) and machine.vector_registers in (16, 32)
    assert 8 * 1024 <= machine.l1 <= machine.l2 <= machine.l3 * 64
    assert host.memory_bytes() > 64 * MIB
    assert machine.l3 <= (os.cpu_count() or 1) * host.MOST_L3_OF_A_CORE


def test_the_threads_setting_wins() -> None:
    with Context(THREADS=0):
        assert host.threads() == host.usable_threads() >= 1
    with Context(THREADS=7):
        assert host.threads() == 7
    for wrong in (-1, 10**5, 1 << 70):
        with Context(THREADS=wrong), pytest.raises(SettingError, match=r"THREADS=.*expected 1 …"):
            host.threads()


@pytest.mark.parametrize("architecture, features, expected", [
    ("x86_64", {"avx512f", "avx2", "avx"}, (64, 32)),
    ("x86_64", {"avx2", "avx"}, (32, 16)),
    ("x86_64", {"sse2"}, (16, 16)),
    ("aarch64", {"neon"}, (16, 32)),
])  # fmt: skip
def test_vector_shapes(architecture: str, features: set[str], expected: tuple[int, int]) -> None:
    assert host.vector_shape(architecture, frozenset(features)) == expected


def test_sizes_of_sysfs() -> None:
    assert [host.parse_size(text) for text in ("32K", "1M", "1024", "", "x", "K")] == [
        32768, MIB, 1024, 0, 0, 0,
    ]  # fmt: skip


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_caches_are_read_from_sysfs(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate([
        ("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"),
        ("3", "Unified", "30M"), ("4", "Unified", "?"),
    ]):  # fmt: skip
        for name, text in (("level", level), ("type", kind), ("size", size)):
            _write(tmp_path / f"index{index}" / name, text + "\n")
    assert host.cache_sizes(tmp_path) == {1: 49152, 2: 2 * MIB, 3: 30 * MIB}
    assert host.cache_sizes(tmp_path / "missing") == {}


def test_quotas_of_both_kinds_of_control_groups(tmp_path: Path) -> None:
    root = tmp_path
    assert host.cpu_quota(root, "0::/\n") == sys.maxsize
    _write(root / "cpu.max", "max 100000\n")
    _write(root / "a" / "cpu.max", "350000 100000\n")
    _write(root / "a" / "b" / "cpu.max", "max 100000\n")
    assert host.cpu_quota(root, "0::/a/b\n") == 4  # 3.5, of the parent, rounded up
    assert host.cpu_quota(root, "0::/\n") == sys.maxsize
    _write(root / "cpu" / "cpu.cfs_quota_us", "150000")
    _write(root / "cpu" / "cpu.cfs_period_us", "100000")
    assert host.cpu_quota(root, "3:cpu,cpuacct:/nowhere\n0::/a\n") == 2
    _write(root / "cpu" / "cpu.cfs_quota_us", "-1")
    assert host.cpu_quota(root, "3:cpu:/\n") == sys.maxsize
    _write(root / "memory.max", "1000000")
    _write(root / "memory" / "memory.limit_in_bytes", "500000")
    assert host.memory_limit(root, "0::/a\n", 1 << 40) == 1_000_000
    assert host.memory_limit(root, "4:memory:/\n0::/a\n", 1 << 40) == 500_000
    assert host.memory_limit(root, "", 77) == 77
