"""The command line of random programs: one seed in full, or many with statistics."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NoReturn

from minigrad import Context, Device
from minigrad.loops import assemble
from minigrad.runtimes import cpu_kernels, cpu_pool

GROUPED = "CPU"  # the device that has groups of kernels
PROGRESS = 250  # programs between two progress lines


def parser_of(module: str, about: str | None) -> argparse.ArgumentParser:
    """The options of all commands for random programs; `module` may add its own."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.property.{module}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the (first) program")
    parser.add_argument("--count", type=int, help="number of programs")
    parser.add_argument("--device", default=Device.DEFAULT)
    parser.add_argument("--groups", type=int, metavar="ORDER",
                        help="small chunks, all in groups, in a random order")  # fmt: skip
    return parser


@contextmanager
def in_groups(order: int) -> Iterator[None]:
    """Run even small kernels in groups: concurrently, chunk by chunk in the random order `order`.

    Needs its own process: kernels compiled before or after this block have other chunk sizes.
    """
    joined = [0, 0]
    beside = cpu_kernels.beside

    def counted(*given: object) -> list[tuple[int, int]]:
        result = beside(*given)  # type: ignore[arg-type]
        joined[0] += len(result)
        joined[1] += sum(how for how, _ in result)
        return result

    assemble.CHUNK_OPERATIONS, assemble.CHUNK_BYTES, cpu_kernels.LEAST_SHARED = 40, 200, 0.0
    cpu_kernels.beside = counted
    cpu_pool.pool_for(GROUPED).shuffle(order)
    with tempfile.TemporaryDirectory() as folder, Context(CACHE=folder):
        try:
            yield
        finally:
            print(f"{joined[0]} kernels, {joined[1]} of them beside the one before")


def count_failures(title: str, seeds: range, check: Callable[[int], str | None]) -> int:
    """Check the program of each seed and print failures; gives the number of failures."""
    failed, start = 0, time.perf_counter()
    for done, seed in enumerate(seeds, 1):
        failure = check(seed)
        if failure:
            failed += 1
            print(failure, flush=True)
        if done % PROGRESS == 0 or done == len(seeds):
            seconds = time.perf_counter() - start
            print(f"{title}, seeds {seeds.start} … {seed}: {seconds:.1f} s, {failed} failed",
                  flush=True)  # fmt: skip
    return failed


def run_command(
    given: argparse.Namespace,
    title: str,
    script: Callable[[int], str],
    check: Callable[[int], str | None],
    statistics: Callable[[], None],
) -> NoReturn:
    """Run what the options ask for, then exit: with 1 if a program fails.

    script: the text of a seed's program. check: the problems of a seed's program, or None.
    statistics: prints what `check` has counted.
    """
    title = f"{title} on {given.device}"
    with nullcontext() if given.groups is None else in_groups(given.groups):
        if given.count is not None:
            failed = count_failures(title, range(given.seed, given.seed + given.count), check)
            statistics()
            sys.exit(1 if failed else 0)
        print(script(given.seed))
        failure = check(given.seed)
        print(failure or f"{title}, seed {given.seed}: right")
        sys.exit(1 if failure else 0)
