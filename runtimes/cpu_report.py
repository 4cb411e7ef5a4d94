"""What `MINIGRAD_DEBUG=1` and 2 print on a CPU device: a line per program; its kernels with times.

3 and more are the compiler's: see `minigrad/compile.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from minigrad.graph.symbolic import Integer, high
from minigrad.runtimes.cpu_limits import limits
from minigrad.settings import say


class Work(Protocol):
    """What a report says of a kernel: see `Nest`."""

    @property
    def total(self) -> Integer:
        """Iterations of the parallel loop."""
        ...

    @property
    def operations(self) -> int:
        """Estimate of the whole kernel's operations."""
        ...

    @property
    def vectors(self) -> int:
        """Estimate of the vector instructions."""
        ...

    @property
    def traffic(self) -> int:
        """Estimate of the bytes read and written."""
        ...

    @property
    def label(self) -> str:
        """What it does."""
        ...


def run_recorded(
    labels: Sequence[str], run: Callable[[int], None], record: Callable[[str, float, float], None]
) -> None:
    """Run kernels one by one, for a timeline."""
    for number, text in enumerate(labels):
        before = time.perf_counter()
        run(number)
        record(text, before, time.perf_counter())


def run_timed(nests: Sequence[Work], run: Callable[[int], None], level: int) -> None:
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
        best = limits()
        head = f"{'kernel':>6} {'iterations':>10} {'ms':>9} {'Gop/s':>8} {'GB/s':>7}"
        say(f"{head} {'of limit':>12}  body")
        for number, (nest, seconds) in enumerate(rows):
            computing, moving = nest.vectors / best.vectors, best.moving(nest.traffic)
            share = f"{100 * max(computing, moving) / seconds:.0f}%"
            say(
                f"{number:>6} {high(nest.total):>10} {1e3 * seconds:>9.3f} "
                f"{nest.operations / seconds / 1e9:>8.1f} {nest.traffic / seconds / 1e9:>7.1f} "
                f"{share:>6} {'issue' if computing > moving else 'bytes'}  {nest.label}"
            )
    say(
        f"program: {len(nests)} kernels, {1e3 * total:.3f} ms, "
        f"{operations / max(total, 1e-9) / 1e9:.1f} Gop/s"
    )
