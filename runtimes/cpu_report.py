"""Kernels of a CPU device one by one: for a timeline, or for what `MINIGRAD_DEBUG=1` and 2 print.

3 and more are the compiler's: see `minigrad/compile.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from minigrad.loops.nest import Nest
from minigrad.runtimes.cpu_kernels import KernelCode
from minigrad.runtimes.cpu_limits import limits
from minigrad.runtimes.report import show_times


def run_recorded(
    labels: Sequence[str], run: Callable[[int], None], record: Callable[[str, float, float], None]
) -> None:
    """Run kernels one by one, for a timeline."""
    for number, text in enumerate(labels):
        before = time.perf_counter()
        run(number)
        record(text, before, time.perf_counter())


def run_timed(
    codes: Sequence[KernelCode], run: Callable[[int], None], level: int, threads: int
) -> None:
    """Run kernels one by one and report. threads: that they have, with whose best they compare."""
    seconds: list[float] = []
    labels = [code.label for code in codes]
    run_recorded(labels, run, lambda label, start, end: seconds.append(end - start))

    def share(kernel: Nest | KernelCode, time: float) -> str:
        best = limits(threads)
        computing, moving = kernel.vectors / best.vectors, best.moving(kernel.traffic)
        limit = "issue" if computing > moving else "bytes"
        return f" {100 * max(computing, moving) / time:>5.0f}% {limit}"

    show_times(codes, seconds, level, head=f" {'of limit':>12}", more=share)
