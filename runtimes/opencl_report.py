"""What `MINIGRAD_DEBUG=1…5` prints on an OpenCL device.

1 a line per program; 2 a table of kernels with the device's own times; 3 the schedule; 4 loop
nests; 5 OpenCL C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from minigrad.loops.nest import Nest
from minigrad.loops.nest import show as show_nest
from minigrad.schedule.schedule import Schedule
from minigrad.schedule.show import show as show_plan
from minigrad.settings import flag


def say(text: str) -> None:
    """Print to the error stream, where it does not mix with a program's own output."""
    sys.stderr.write(text + "\n")


def show_schedule(plan: Schedule) -> None:
    """The kernels of a program and what each keeps."""
    if flag("DEBUG") >= 3:
        say(show_plan(plan))


def show_kernel(nest: Nest, text: str) -> None:
    """A kernel that is about to be built."""
    if flag("DEBUG") >= 4:
        say(show_nest(nest))
    if flag("DEBUG") >= 5:
        say(text)


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
                f"{number:>6} {nest.total:>10} {1e3 * time:>9.3f} "
                f"{nest.operations / time / 1e9:>8.1f} {nest.traffic / time / 1e9:>7.1f}  "
                f"{nest.label}"
            )
    total = sum(seconds)
    operations = sum(nest.operations for nest in nests)
    say(
        f"program: {len(nests)} kernels, {1e3 * total:.3f} ms on the device, "
        f"{operations / max(total, 1e-9) / 1e9:.1f} Gop/s"
    )
