"""What `MINIGRAD_DEBUG=1…5` prints on a CPU device.

1 a line per program; 2 a table of kernels with times; 3 the schedule; 4 loop nests; 5 LLVM IR and
assembly.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import cache

from minigrad.loops.nest import Nest
from minigrad.loops.nest import show as show_nest
from minigrad.runtimes.host import host, threads
from minigrad.runtimes.jit_compiler import Compiler
from minigrad.schedule.schedule import Schedule
from minigrad.schedule.show import show as show_plan
from minigrad.settings import flag


def say(text: str) -> None:
    """Print to the error stream, where it does not mix with a program's own output."""
    print(text, file=sys.stderr)


def show_schedule(plan: Schedule) -> None:
    """The kernels of a program and what each keeps."""
    if flag("DEBUG") >= 3:
        say(show_plan(plan))


def show_kernel(nest: Nest, text: str, compiler: Compiler) -> None:
    """A kernel that is about to be compiled."""
    if flag("DEBUG") >= 4:
        say(show_nest(nest))
    if flag("DEBUG") >= 5:
        say(text)
        say(compiler.assembly(text))


@cache
def _limits() -> tuple[float, float]:
    """(vector operations per second, bytes per second) that all threads could reach.

    The clock and the bandwidth are not asked of the machine: 2.6 GHz with two vector operations a
    cycle, and 20 GB/s a thread. The column says so.
    """
    lanes = host().vector_bytes // 4
    return 2.6e9 * 2 * lanes * threads(), 20e9 * threads()


def run_timed(nests: Sequence[Nest], run: Callable[[int], None], level: int) -> None:
    """Run kernels one by one and report."""
    rows = []
    start = time.perf_counter()
    for number, nest in enumerate(nests):
        before = time.perf_counter()
        run(number)
        rows.append((nest, time.perf_counter() - before))
    total = time.perf_counter() - start
    operations = sum(nest.operations for nest in nests)
    if level >= 2:
        say(f"{'kernel':>6} {'iterations':>10} {'ms':>9} {'Gop/s':>8} {'GB/s':>7} {'limit':>6}  body")
        peak, bandwidth = _limits()
        for number, (nest, seconds) in enumerate(rows):
            least = max(nest.operations / peak, nest.traffic / bandwidth)
            say(
                f"{number:>6} {nest.total:>10} {1e3 * seconds:>9.3f} "
                f"{nest.operations / seconds / 1e9:>8.1f} {nest.traffic / seconds / 1e9:>7.1f} "
                f"{100 * least / seconds:>5.0f}%  {nest.label}"
            )
    say(
        f"program: {len(nests)} kernels, {1e3 * total:.3f} ms, "
        f"{operations / max(total, 1e-9) / 1e9:.1f} Gop/s"
    )
