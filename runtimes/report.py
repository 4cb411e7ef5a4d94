"""Times of single kernels: for a timeline, and for the output of `MINIGRAD_DEBUG=1` and 2.

Levels 3 and above belong to the compiler: see `minigrad/compile.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from minigrad.graph.symbolic import high
from minigrad.settings import say

if TYPE_CHECKING:
    from minigrad.loops.nest import Nest
    from minigrad.runtimes.cpu_kernels import KernelCode
    from minigrad.runtimes.cpu_limits import Limits


def run_recorded(
    labels: Sequence[str], kernels: Sequence[Callable[[], object]],
    record: Callable[[str, float, float], None],
) -> None:  # fmt: skip
    """Run kernels one by one, and record when each began and ended."""
    for text, run in zip(labels, kernels, strict=True):
        before = time.perf_counter()
        run()
        record(text, before, time.perf_counter())


def show_times(
    kernels: Sequence[Nest | KernelCode], seconds: Sequence[float], level: int,
    counted: str = "iterations", best: Limits | None = None,
) -> None:  # fmt: skip
    """Print a line for a program and, from level 2 on, one for each kernel.

    best: the limits with which kernels' times are compared.
    """
    if level >= 2:
        head = f" {'of limit':>12}" if best else ""
        say(f"{'kernel':>6} {counted:>10} {'ms':>9} {'Gop/s':>8} {'GB/s':>7}{head}  body")
        for number, (kernel, took) in enumerate(zip(kernels, seconds, strict=True)):
            say(
                f"{number:>6} {high(kernel.total):>10} {1e3 * took:>9.3f} "
                f"{kernel.operations / took / 1e9:>8.1f} {kernel.traffic / took / 1e9:>7.1f}"
                f"{_share(kernel, took, best) if best else ''}  {kernel.label}"
            )
    total = sum(seconds)
    operations = sum(kernel.operations for kernel in kernels)
    say(
        f"program: {len(kernels)} kernels, {1e3 * total:.3f} ms, "
        f"{operations / max(total, 1e-9) / 1e9:.1f} Gop/s"
    )


def _share(kernel: Nest | KernelCode, took: float, best: Limits) -> str:
    """The time that a kernel takes at best, as a share of its time, and what limits it."""
    computing, moving = kernel.vectors / best.vectors, best.moving(kernel.traffic)
    limit = "issue" if computing > moving else "bytes"
    return f" {100 * max(computing, moving) / took:>5.0f}% {limit}"
