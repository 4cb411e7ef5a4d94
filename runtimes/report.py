"""What `MINIGRAD_DEBUG=1` and 2 print of a finished program: a line, and its kernels with times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from minigrad.graph.symbolic import high
from minigrad.loops.nest import Nest
from minigrad.settings import say

if TYPE_CHECKING:
    from minigrad.runtimes.cpu_kernels import KernelCode


def show_times(
    kernels: Sequence[Nest | KernelCode], seconds: Sequence[float], level: int,
    counted: str = "iterations", head: str = "",
    more: Callable[[Nest | KernelCode, float], str] = lambda kernel, time: "",
) -> None:  # fmt: skip
    """Kernels and how long each took. more: what else to say of one, below `head`."""
    if level >= 2:
        say(f"{'kernel':>6} {counted:>10} {'ms':>9} {'Gop/s':>8} {'GB/s':>7}{head}  body")
        for number, (kernel, time) in enumerate(zip(kernels, seconds, strict=True)):
            say(
                f"{number:>6} {high(kernel.total):>10} {1e3 * time:>9.3f} "
                f"{kernel.operations / time / 1e9:>8.1f} {kernel.traffic / time / 1e9:>7.1f}"
                f"{more(kernel, time)}  {kernel.label}"
            )
    total = sum(seconds)
    operations = sum(kernel.operations for kernel in kernels)
    say(
        f"program: {len(kernels)} kernels, {1e3 * total:.3f} ms, "
        f"{operations / max(total, 1e-9) / 1e9:.1f} Gop/s"
    )
