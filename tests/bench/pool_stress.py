"""Ten million launches of random shapes through the CPU's thread pool, every chunk checked.

    python -m tests.bench.pool_stress [--launches 10000000] [--threads 1 2 3 4 8] [--seconds 240]

Launches come in fours: two add 1 to a cell for each of their iterations, each to cells of its own,
and two set every cell back to 0 and count those that were not 1. Each pair is either one group, or
its launches wait for each other. An error is thus an iteration that ran twice or never, or a group
that began before the previous one had ended. A third counter holds the number of calls, which must
be the number of chunks.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import time

from minigrad.graph.symbolic import ceildiv
from minigrad.runtimes.cpu_driver import FLAG_ALONE, FLAG_CONCURRENT, SPINS
from minigrad.runtimes.cpu_pool import Launch, Pool
from minigrad.runtimes.jit_compiler import host_compiler

MOST_ITERATIONS = 256
_LOOP = """
define void @NAME(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
entry:
  %cells = load ptr, ptr %args
  %errors.at = getelementptr ptr, ptr %args, i64 1
  %errors = load ptr, ptr %errors.at
  %calls = getelementptr i64, ptr %errors, i64 1
  %call = atomicrmw add ptr %calls, i64 1 monotonic
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %i.next, %next ]
  %cell = getelementptr i32, ptr %cells, i64 %i
  BODY
next:
  %i.next = add i64 %i, 1
  %again = icmp slt i64 %i.next, %end
  br i1 %again, label %loop, label %done
done:
  ret void
}
"""
_MARK_BODY = """%old = atomicrmw add ptr %cell, i32 1 monotonic
  br label %next"""
_CHECK_BODY = """%old = atomicrmw xchg ptr %cell, i32 0 monotonic
  %wrong = icmp ne i32 %old, 1
  br i1 %wrong, label %error, label %next
error:
  %unused = atomicrmw add ptr %errors, i64 1 monotonic
  br label %next"""
MARK = _LOOP.replace("NAME", "mark").replace("BODY", _MARK_BODY)
CHECK = _LOOP.replace("NAME", "check").replace("BODY", _CHECK_BODY)


def table_of_fours(
    fours: int, args: tuple[int, int], kernels: dict[str, int], source: random.Random
) -> tuple[ctypes.Array[Launch], int]:
    """A table of random launches, and the number of chunks in it (0 to 64 per launch)."""
    table = (Launch * (4 * fours))()
    chunks = 0
    for four in range(fours):
        totals = [source.randrange(MOST_ITERATIONS) for _ in args]
        for index in range(4):
            name, cells = ("mark", "check")[index // 2], index % 2
            grain = max(1, ceildiv(totals[cells], source.randrange(1, 65)))
            flags = FLAG_ALONE if source.random() < 0.1 else 0
            flags |= FLAG_CONCURRENT if cells and source.random() < 0.7 else 0
            launch = Launch(kernels[name], args[cells], totals[cells], grain, flags)
            table[4 * four + index] = launch
            chunks += ceildiv(totals[cells], grain)
    return table, chunks


def stress(
    launches: int, threads: int, seed: int = 0, spins: int = SPINS, shuffle: bool = False,
    seconds: float = float("inf"), table_length: int = 2000,
) -> tuple[int, float]:  # fmt: skip
    """Run about `launches` launches; returns how many there were and the seconds they took.

    AssertionError if an iteration or a chunk did not run exactly once. Stops after `seconds`.
    """
    kernels, code = host_compiler().compile(MARK + CHECK, ["mark", "check"])
    cells = (ctypes.c_int32 * (2 * MOST_ITERATIONS))()
    counters = (ctypes.c_int64 * 2)()  # errors, calls
    begin_of = [ctypes.addressof(cells) + 4 * MOST_ITERATIONS * part for part in range(2)]
    words = [(ctypes.c_int64 * 2)(at, ctypes.addressof(counters)) for at in begin_of]
    args = ctypes.addressof(words[0]), ctypes.addressof(words[1])
    source = random.Random(seed)
    pool = Pool(threads, "stress", spins)
    done, taken, expected = 0, 0.0, 0
    while done < launches and taken < seconds:
        table, chunks = table_of_fours(table_length // 4, args, kernels, source)
        rounds = min(10, max(1, (launches - done) // table_length))
        if shuffle:
            pool.shuffle(source.getrandbits(32) | 1)
        begin = time.perf_counter()
        for _ in range(rounds):
            pool.run(ctypes.addressof(table), len(table))
        taken += time.perf_counter() - begin
        done += rounds * len(table)
        expected += rounds * chunks
        errors, calls = counters
        assert errors == 0, f"{errors} iterations did not run exactly once, or out of order"
        assert calls == expected, f"{calls} calls of kernels instead of {expected}"
    pool.close()
    assert not any(cells), "a cell was marked after the last check"
    del code
    return done, taken


def main() -> None:
    """Run the stress test for each number of threads, and print the time per launch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launches", type=int, default=10_000_000, help="in all runs together")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--seconds", type=float, default=240.0, help="for all runs together")
    options = parser.parse_args()
    runs = len(options.threads)
    for threads in options.threads:
        done, taken = stress(
            options.launches // runs, threads, seed=threads, seconds=options.seconds / runs
        )
        print(
            f"{threads} threads: {done:,} launches in {taken:.1f} s, "
            f"{taken / done * 1e6:.2f} µs each",
            flush=True,
        )


if __name__ == "__main__":
    main()
