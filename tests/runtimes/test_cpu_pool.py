"""The native driver and its threads: every chunk runs once, in order, alone or shared."""

from __future__ import annotations

import ctypes
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.pool_stress import stress

from minigrad.errors import DeviceError
from minigrad.runtimes import cpu_driver, native
from minigrad.runtimes.cpu_driver import FLAG_ALONE, FLAG_CONCURRENT, FLAG_INTERLEAVED, LAUNCH_BYTES
from minigrad.runtimes.cpu_pool import Launch, Pool, pool_for
from minigrad.runtimes.host import processors
from minigrad.runtimes.jit_compiler import Compiler, host_compiler
from minigrad.runtimes.native import translate
from minigrad.settings import Context

# Kernels take (begin, end, args, scratch). `record` logs where chunks begin and end, in the order
# of calls; `set_flag` stores 1 in an i32; `meet` waits until two chunks run at the same time;
# `keep` fills 64 bytes of scratch with its begin, waits, and counts foreign values.
KERNELS = """
define void @record(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
  %log = load ptr, ptr %args
  %at = atomicrmw add ptr %log, i64 1 seq_cst
  %twice = mul i64 %at, 2
  %slot = add i64 %twice, 1
  %begin.at = getelementptr i64, ptr %log, i64 %slot
  store i64 %begin, ptr %begin.at
  %end.at = getelementptr i64, ptr %begin.at, i64 1
  store i64 %end, ptr %end.at
  ret void
}
define void @set_flag(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
  %flag = load ptr, ptr %args
  store atomic i32 1, ptr %flag seq_cst, align 4
  ret void
}
define void @meet(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
entry:
  %arrived = load ptr, ptr %args
  %before = atomicrmw add ptr %arrived, i64 1 seq_cst
  br label %look
look:
  %i = phi i64 [ 0, %entry ], [ %i.next, %look ]
  %i.next = add i64 %i, 1
  %now = load atomic i64, ptr %arrived seq_cst, align 8
  %are.two = icmp sge i64 %now, 2
  %is.late = icmp sge i64 %i.next, 4000000000
  %is.over = or i1 %are.two, %is.late
  br i1 %is.over, label %done, label %look
done:
  %met = getelementptr i64, ptr %arrived, i64 1
  %increment = zext i1 %are.two to i64
  %unused = atomicrmw add ptr %met, i64 %increment seq_cst
  ret void
}
define void @keep(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
entry:
  %foreign = load ptr, ptr %args
  br label %fill
fill:
  %i = phi i64 [ 0, %entry ], [ %i.next, %fill ]
  %word = getelementptr i64, ptr %scratch, i64 %i
  store volatile i64 %begin, ptr %word
  %i.next = add i64 %i, 1
  %more = icmp slt i64 %i.next, 8
  br i1 %more, label %fill, label %wait
wait:
  %j = phi i64 [ 0, %fill ], [ %j.next, %wait ]
  %beat = load volatile i64, ptr %scratch
  %j.next = add i64 %j, 1
  %waiting = icmp slt i64 %j.next, 2000
  br i1 %waiting, label %wait, label %compare
compare:
  %k = phi i64 [ 0, %wait ], [ %k.next, %compare ]
  %own = getelementptr i64, ptr %scratch, i64 %k
  %value = load volatile i64, ptr %own
  %is.foreign = icmp ne i64 %value, %begin
  %increment = zext i1 %is.foreign to i64
  %unused = atomicrmw add ptr %foreign, i64 %increment seq_cst
  %k.next = add i64 %k, 1
  %again = icmp slt i64 %k.next, 8
  br i1 %again, label %compare, label %aligned
aligned:
  %address = ptrtoint ptr %scratch to i64
  %low = and i64 %address, 63
  %off = atomicrmw add ptr %foreign, i64 %low seq_cst
  ret void
}
define void @spin(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
entry:
  %count.at = load ptr, ptr %args
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %loop ]
  %i.next = add i64 %i, 1
  %beat = load volatile i64, ptr %count.at
  %more = icmp slt i64 %i.next, 100000
  br i1 %more, label %loop, label %done
done:
  %unused = atomicrmw add ptr %count.at, i64 1 seq_cst
  ret void
}
"""
NAMES = ["record", "set_flag", "meet", "keep", "spin"]


@pytest.fixture(scope="module")
def kernels() -> Iterator[dict[str, int]]:
    addresses, code = host_compiler().compile(KERNELS, NAMES)
    yield addresses
    del code


@pytest.fixture(params=[1, 2, 4])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    made = Pool(request.param)
    yield made
    made.close()


class Call:
    """A launch table whose kernels all get the address of the same array of integers."""

    def __init__(self, *launches: tuple[int, int, int, int], words: int = 4096) -> None:
        self.words = (ctypes.c_int64 * words)()
        self.args = (ctypes.c_int64 * 1)(ctypes.addressof(self.words))
        self.table = (Launch * len(launches))()
        for index, (kernel, total, grain, flags) in enumerate(launches):
            self.table[index] = Launch(kernel, ctypes.addressof(self.args), total, grain, flags)

    def run(self, pool: Pool, scratch_bytes: int = 0) -> None:
        pool.run(ctypes.addressof(self.table), len(self.table), scratch_bytes)

    def chunks(self) -> list[tuple[int, int]]:
        """The log of `record`, in the order of its calls."""
        return [(self.words[2 * i + 1], self.words[2 * i + 2]) for i in range(self.words[0])]


def chunks_of(total: int, grain: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + grain, total)) for begin in range(0, total, grain)]


@pytest.mark.parametrize("total, grain", [
    (0, 4), (-3, 4), (1, 1), (1, 100), (7, 7), (8, 7), (100, 1), (100, 3), (1000, 999),
    (5, 1 << 40), (1 << 62, 1 << 60),
])  # fmt: skip
@pytest.mark.parametrize("flags", [0, FLAG_ALONE])
def test_chunks_cover_the_loop_whatever_the_threads(
    pool: Pool, kernels: dict[str, int], total: int, grain: int, flags: int
) -> None:
    call = Call((kernels["record"], total, grain, flags))
    call.run(pool)
    expected = chunks_of(total, grain) if total > 0 else []
    assert sorted(call.chunks()) == expected
    if flags == FLAG_ALONE or pool.threads == 1:
        assert call.chunks() == expected, "alone, chunks come in order"


def test_a_grain_of_zero_counts_as_one(pool: Pool, kernels: dict[str, int]) -> None:
    call = Call((kernels["record"], 5, 0, 0))
    call.run(pool)
    assert sorted(call.chunks()) == chunks_of(5, 1)


def test_an_empty_table_is_nothing(pool: Pool) -> None:
    pool.run(0, 0)


def test_the_layout_of_a_launch() -> None:
    assert ctypes.sizeof(Launch) == LAUNCH_BYTES
    assert [Launch.kernel.offset, Launch.args.offset, Launch.total.offset, Launch.grain.offset,
            Launch.flags.offset] == [0, 8, 16, 24, 32]  # fmt: skip


def test_more_chunks_than_a_ticket_holds(kernels: dict[str, int]) -> None:
    """They run on the calling thread."""
    pool = Pool(2)
    total = cpu_driver.MOST_CHUNKS + 5000
    # `set_flag` would not count iterations, and `record` would need a long log.
    counted, code = host_compiler().compile(
        "define void @count(i64 %begin, i64 %end, ptr %args, ptr %scratch) {\n"
        "  %at = load ptr, ptr %args\n"
        "  %length = sub i64 %end, %begin\n"
        "  %old = atomicrmw add ptr %at, i64 %length monotonic\n"
        "  ret void\n"
        "}\n", ["count"]
    )  # fmt: skip
    call = Call((counted["count"], total, 1, 0))
    call.run(pool)
    assert call.words[0] == total
    pool.close()
    del code


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_a_hundred_thousand_launches(threads: int) -> None:
    done, _ = stress(100_000, threads, seed=threads)
    assert done >= 100_000


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("spins", [0, 3, 2000])
def test_launches_on_rare_paths(threads: int, spins: int) -> None:
    """All threads go to sleep at once; chunks run in random order."""
    stress(20_000, threads, threads, spins, shuffle=True)


def test_workers_that_sleep_are_woken(kernels: dict[str, int]) -> None:
    pool = Pool(2)
    for _ in range(3):
        call = Call((kernels["meet"], 2, 1, 0))
        call.run(pool)
        assert list(call.words[:2]) == [2, 2], "two chunks must run at the same time"
        time.sleep(0.05)  # long after threads stop spinning
        sleepers = ctypes.c_int32.from_address(pool.address + cpu_driver.SLEEPERS).value
        assert sleepers == 1
    pool.close()


def test_each_thread_has_scratch_of_its_own(kernels: dict[str, int]) -> None:
    pool = Pool(4)
    for nbytes in (64, 64, 1000, 4 << 20):
        call = Call((kernels["keep"], 64, 1, 0), (kernels["keep"], 9, 1, FLAG_ALONE))
        call.run(pool, nbytes)
        assert call.words[0] == 0
    pool.close()


def test_scratch_grows_while_others_run(kernels: dict[str, int]) -> None:
    pool = Pool(3)
    failures: list[int] = []

    def work(seed: int) -> None:
        source = random.Random(seed)
        for step in range(60):
            call = Call(*[(kernels["keep"], source.randrange(20), 1, 0) for _ in range(4)])
            call.run(pool, 64 * (1 + step * source.randrange(1, 4)))
            failures.append(call.words[0])

    _in_threads(work, 4)
    assert len(failures) == 240 and not any(failures)
    pool.close()


def _in_threads(work: object, count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_several_threads_may_run_tables_at_once(kernels: dict[str, int]) -> None:
    pool = Pool(3)
    wrong: list[object] = []

    def work(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(200):
            shapes = [(source.randrange(60), source.randrange(1, 9)) for _ in range(5)]
            call = Call(*[(kernels["record"], total, grain, 0) for total, grain in shapes])
            call.run(pool)
            expected = sorted(chunk for shape in shapes for chunk in chunks_of(*shape))
            if sorted(call.chunks()) != expected:
                wrong.append(shapes)

    _in_threads(work, 4)
    assert not wrong
    assert ctypes.c_int32.from_address(pool.address + cpu_driver.BUSY).value == 0
    pool.close()


def test_launches_come_one_after_the_other(pool: Pool, kernels: dict[str, int]) -> None:
    call = Call(*[(kernels["record"], 10, 1, 0), (kernels["record"], 100, 10, 0)] * 5)
    call.run(pool)
    lengths = [end - begin for begin, end in call.chunks()]
    assert lengths == ([1] * 10 + [10] * 10) * 5


def test_launches_beside_each_other_run_at_once(kernels: dict[str, int]) -> None:
    pool = Pool(2)
    call = Call((kernels["meet"], 1, 1, 0), (kernels["meet"], 1, 1, FLAG_CONCURRENT))
    call.run(pool)
    assert list(call.words[:2]) == [2, 2], "two launches must run at the same time"
    pool.close()


def test_groups_come_one_after_the_other(pool: Pool, kernels: dict[str, int]) -> None:
    """Launches without iterations may also begin, end or be inside a group."""
    groups = [[5, 0, 30], [0], [0, 2], [7, 7, 1, 0], [1], [64, 1]]
    launches = [
        (kernels["record"], total, 3, FLAG_CONCURRENT if place else 0)
        for group in groups for place, total in enumerate(group)
    ]  # fmt: skip
    for seed in range(3):
        pool.shuffle(seed)
        call = Call(*launches)
        call.run(pool)
        found = call.chunks()
        for group in groups:
            expected = sorted(chunk for total in group for chunk in chunks_of(total, 3))
            first, found = found[: len(expected)], found[len(expected) :]
            assert sorted(first) == expected
        assert not found
    pool.shuffle(0)


def test_chunks_of_launches_in_turn_follow_each_other(kernels: dict[str, int]) -> None:
    """One thread runs a chunk of each launch in turn; several threads run all chunks, once.

    Other launches of their group come before or after them.
    """
    flags = FLAG_CONCURRENT | FLAG_INTERLEAVED
    sizes = [(8, 1), (16, 2), (24, 3)]
    others = [(kernels["record"], 5, 1, 0)]
    launches = [*others, *(
        (kernels["record"], *size, flags if place else 0) for place, size in enumerate(sizes)
    ), (kernels["record"], 4, 4, FLAG_CONCURRENT), *others]  # fmt: skip
    first = chunks_of(5, 1)
    in_turn = [chunk for turn in zip(*(chunks_of(*size) for size in sizes), strict=True)
               for chunk in turn]  # fmt: skip
    in_turn += chunks_of(4, 4)
    alone, call = Pool(1), Call(*launches)
    call.run(alone)
    assert call.chunks() == [*first, *in_turn, *first]
    pool = Pool(3)
    for seed in range(5):
        pool.shuffle(seed)
        call = Call(*launches)
        call.run(pool)
        found = call.chunks()
        assert sorted(found[:5]) == sorted(found[-5:]) == first
        assert sorted(found[5:-5]) == sorted(in_turn)
    one = Call((kernels["record"], 8, 1, flags), (kernels["record"], 16, 2, flags))
    pool.run(ctypes.addressof(one.table), 1)
    assert sorted(one.chunks()) == chunks_of(8, 1), "the launch behind the table must not run"
    for each in (pool, alone):
        each.close()


def test_a_table_ends_early_after_a_launch_that_signals(
    pool: Pool, kernels: dict[str, int]
) -> None:
    flag = ctypes.c_int64(0)
    at = ctypes.addressof(flag)
    call = Call((kernels["set_flag"], 1, 1, 0), (kernels["record"], 5, 1, 0))
    words = (ctypes.c_int64 * 1)(at)
    call.table[0].args = ctypes.addressof(words)
    table = ctypes.addressof(call.table)
    assert pool.run(table, 2, signals=at) == 1
    assert call.words[0] == 0, "the second launch must not run"
    flag.value = 0
    assert pool.run(table + LAUNCH_BYTES, 1, signals=at) == 0
    assert sorted(call.chunks()) == chunks_of(5, 1)
    assert pool.run(table, 2) == 0 and call.words[0] == 10, "run without looking"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 100, 1000])
def test_shuffling_is_a_permutation(kernels: dict[str, int], count: int) -> None:
    pool = Pool(1)
    orders = set()
    for seed in range(1, 40):
        pool.shuffle(seed)
        call = Call((kernels["record"], count, 1, 0))
        call.run(pool)
        assert sorted(call.chunks()) == chunks_of(count, 1)
        orders.add(tuple(call.chunks()))
    if count > 2:
        assert len(orders) > (3 if count == 3 else 20)
    pool.shuffle(0)
    call = Call((kernels["record"], count, 1, 0))
    call.run(pool)
    assert call.chunks() == chunks_of(count, 1)
    pool.close()


def test_a_closed_pool_still_runs(kernels: dict[str, int]) -> None:
    pool = Pool(4)
    Call((kernels["record"], 9, 1, 0)).run(pool)
    workers = list(pool._workers)
    assert len(workers) == 3 and all(worker.is_alive() for worker in workers)
    pool.close()
    pool.close()
    assert not any(worker.is_alive() for worker in workers)
    call = Call((kernels["record"], 9, 1, 0), (kernels["keep"], 9, 1, 0), words=64)
    call.table[1].total = 0
    call.run(pool, 1 << 20)
    assert call.chunks() == chunks_of(9, 1)


def test_a_forgotten_pool_ends_its_workers(kernels: dict[str, int]) -> None:
    pool = Pool(2)
    Call((kernels["record"], 9, 1, 0)).run(pool)
    (worker,) = pool._workers
    del pool
    worker.join(10)
    assert not worker.is_alive()


def test_closing_waits_for_chunks_under_way(kernels: dict[str, int]) -> None:
    pool = Pool(2)
    call = Call((kernels["spin"], 200, 1, 0))
    thread = threading.Thread(target=call.run, args=(pool,))
    thread.start()
    time.sleep(0.005)
    pool.close()
    thread.join()
    assert call.words[0] == 200


def test_pools_of_devices(cpu: str) -> None:
    with Context(THREADS=3):
        first = pool_for(f"{cpu}:901")
    assert first.threads == 3 and pool_for(f"{cpu}:901") is first
    assert pool_for(f"{cpu}:902") is not first
    with pytest.raises(ValueError, match="expected at least 1"):
        Pool(0)


@pytest.mark.skipif(len(processors()) < 2, reason="only one processor is available")
def test_workers_keep_off_the_callers_processor(kernels: dict[str, int]) -> None:
    ours = processors()
    pool = Pool(2)
    call = Call((kernels["set_flag"], 8, 1, 0))
    call.run(pool)
    (worker,) = pool._workers
    assert worker.native_id is not None
    try:
        for processor in [*ours, *reversed(ours)]:
            os.sched_setaffinity(0, {processor})
            call.run(pool)
            assert os.sched_getaffinity(worker.native_id) == set(ours) - {processor}
    finally:
        os.sched_setaffinity(0, ours)
    crowd = Pool(len(ours) + 1)  # more threads than processors may run on any of them
    call.run(crowd)
    for worker in crowd._workers:
        assert worker.native_id is not None
        assert os.sched_getaffinity(worker.native_id) == set(ours)


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_driver_is_valid_ir_everywhere(architecture: str) -> None:
    import llvmlite.binding as llvm

    text = translate(*cpu_driver.driver_source(architecture, 2000))
    llvm.parse_assembly(text, llvm.create_context()).verify()


def test_processors_of_other_kinds_are_refused() -> None:
    with pytest.raises(DeviceError, match="riscv64: expected Linux on one of x86_64, aarch64"):
        cpu_driver.driver_source("riscv64", 2000)


def test_the_driver_is_compiled_once_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Context(CACHE=str(tmp_path / "kept")):
        new = cpu_driver.driver.__wrapped__(spins=7)[0]
        monkeypatch.setattr(Compiler, "object_code", lambda self, text: pytest.fail("compiled"))
        monkeypatch.setattr(native, "translate", lambda *source: pytest.fail("translated"))
        again = cpu_driver.driver.__wrapped__(spins=7)[0]
        with pytest.raises(pytest.fail.Exception, match="translated"):
            cpu_driver.driver.__wrapped__(spins=8)
        (tmp_path / "edited.py").touch()
        for edited in ("edited.py", "none.py"):
            monkeypatch.setattr(native, "__file__", str(tmp_path / edited))
            with pytest.raises(pytest.fail.Exception, match="translated"):
                cpu_driver.driver.__wrapped__(spins=7)
    assert new.keys() == again.keys() and all(again.values())
