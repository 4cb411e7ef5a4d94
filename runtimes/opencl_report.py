"""What `MINIGRAD_DEBUG=1` and 2 print on an OpenCL device: programs; kernels with its own times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.graph.symbolic import high
from minigrad.loops.nest import Nest
from minigrad.settings import say


def show_times(nests: Sequence[Nest], events: Sequence[Sequence[Any]], level: int) -> None:
    """A finished program's kernels, from the events of the launches of each."""
    seconds = [
        1e-9 * max(sum(event.profile.end - event.profile.start for event in own), 1)
        for own in events
    ]
    if level >= 2:
        say(f"{'kernel':>6} {'work-items':>10} {'ms':>9} {'Gop/s':>8} {'GB/s':>7}  body")
        for number, (nest, time) in enumerate(zip(nests, seconds, strict=True)):
            say(
                f"{number:>6} {high(nest.total):>10} {1e3 * time:>9.3f} "
                f"{nest.operations / time / 1e9:>8.1f} {nest.traffic / time / 1e9:>7.1f}  "
                f"{nest.label}"
            )
    total = sum(seconds)
    operations = sum(nest.operations for nest in nests)
    say(
        f"program: {len(nests)} kernels, {1e3 * total:.3f} ms on the device, "
        f"{operations / max(total, 1e-9) / 1e9:.1f} Gop/s"
    )
