"""A record of what each rank did when, for Chrome's trace viewer (ui.perfetto.dev)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

from minigrad import nn, program
from minigrad.graph.node import grouped
from minigrad.models.parallel.schedules import LETTERS, Task, Timed, line_of
from minigrad.settings import having

# Rows of a rank, for kinds of events.
PROGRAM, EXCHANGES = "program", "exchanges"
OF_PROGRAM = ("blocked", "step")  # in addition to kernels, and tasks of a pipeline's stage
NOTHING = nullcontext()  # one for all: small exchanges are sensitive to the cost of a span


class Timeline:
    """Events of one rank, recorded after `begin`. Times are seconds since then."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.zero: float | None = None
        self.events: list[dict[str, Any]] = []

    def begin(self, zero: float | None = None) -> None:
        """Start recording, from now or from a reading of the clock; all ranks at the same time."""
        self.zero, self.events = time.perf_counter() if zero is None else zero, []

    def add(self, name: str, start: float, stop: float, **about: Any) -> None:
        """An event between two readings of `time.perf_counter()`."""
        if self.zero is not None:
            row = PROGRAM if "kind" in about or name in OF_PROGRAM else EXCHANGES
            self.events.append({
                "name": name, "row": row, "start": start - self.zero, "stop": stop - self.zero,
                "about": about,
            })  # fmt: skip

    def event(self, name: str, what: str, nbytes: int) -> None:
        """Record an event without duration."""
        if self.zero is not None:
            now = time.perf_counter()
            self.add(name, now, now, what=what, bytes=nbytes)

    def task(self, one: Timed) -> None:
        """Record a task of a pipeline's stage."""
        label = f"{LETTERS[one.task.kind]}{one.task.micro}"
        self.add(label, one.start, one.stop, kind="task", task=[*one.task])

    def kernels(self) -> AbstractContextManager[None]:
        """Record the kernels that this thread runs in the block."""
        if self.zero is None:
            return NOTHING
        return having(program.timeline, record=partial(self.add, kind="kernel"))

    def span(self, name: str, what: str = "", nbytes: int = 0) -> AbstractContextManager[None]:
        """Record the duration of the block."""
        return NOTHING if self.zero is None else self._span(name, what, nbytes)

    @contextmanager
    def _span(self, name: str, what: str, nbytes: int) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, start, time.perf_counter(), what=what, bytes=nbytes)


class _Own(threading.local):
    """The timelines of the devices that this thread runs."""

    timelines: Sequence[Timeline] = ()


own = _Own()
_known: WeakSet[Timeline] = WeakSet()  # of ranks and of devices of meshes
_recording: list[Timeline] = []  # those that are recording
_zero: float | None = None  # start of the recording


def of_rank(rank: int) -> Timeline:
    """A new timeline for a rank or device; it records if others do."""
    made = Timeline(rank)
    _known.add(made)
    if _zero is not None:
        _recording.append(made)
        made.begin(_zero)
    return made


def collect() -> None:
    """Start recording on all ranks and devices, also on later ones."""
    global _zero
    _zero, _recording[:] = time.perf_counter(), _known
    for one in _recording:
        one.begin(_zero)


def collected() -> list[tuple[int, list[dict[str, Any]]]]:
    """Stop recording; returns the events of each rank."""
    global _zero
    _zero = None
    for one in _recording:
        one.zero = None
    found = grouped((one.rank, event) for one in _recording for event in one.events)
    _recording.clear()
    return sorted(found.items())


@contextmanager
def step() -> Iterator[None]:
    """Record a training step in the timelines of this thread's devices."""
    start = time.perf_counter()
    yield
    for one in own.timelines or {one.rank: one for one in _recording if one.events}.values():
        one.add("step", start, time.perf_counter())


def chrome_trace(ranks: Iterable[tuple[int, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Timelines in the Trace Event Format (Google, 2016): a process per rank, a thread per row."""
    result: list[dict[str, Any]] = []
    for rank, events in ranks:
        result.append(_named("process_name", rank, 0, f"rank {rank}"))
        rows = {PROGRAM: 0, EXCHANGES: 1}
        result += [_named("thread_name", rank, number, row) for row, number in rows.items()]
        for event in events:
            length = event["stop"] - event["start"]
            shape: dict[str, Any] = {"ph": "X", "dur": 1e6 * length} if length else {"ph": "i"}
            result.append({
                "name": event["name"], "cat": event["row"], "pid": rank,
                "tid": rows[event["row"]], "ts": 1e6 * event["start"], "args": event["about"],
                **shape,
            })  # fmt: skip
    return {"traceEvents": result, "displayTimeUnit": "ms"}


def _named(what: str, rank: int, row: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": rank, "tid": row, "args": {"name": name}}


def write_trace(path: Path, ranks: Iterable[tuple[int, list[dict[str, Any]]]]) -> None:
    """Write the timelines of all ranks to a file, completely or not at all."""
    data = json.dumps(chrome_trace(ranks)).encode()
    nn.state.write_atomically(path, lambda file: file.write(data))


def read_trace(path: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    """The timelines in a file of `write_trace`."""
    found = grouped(
        (event["pid"], {
            "name": event["name"], "row": event["cat"], "start": event["ts"] / 1e6,
            "stop": event["ts"] / 1e6 + event.get("dur", 0.0) / 1e6, "about": event["args"],
        })
        for event in json.loads(path.read_text("utf-8"))["traceEvents"] if event["ph"] != "M"
    )  # fmt: skip
    return sorted(found.items())


MARKS = {"kernel": "#", "blocked": ".", "add": "+", "wait": "~"}
Ranks = Sequence[tuple[int, list[dict[str, Any]]]]


def last_step(ranks: Ranks) -> tuple[float, float] | None:
    """Start and end of the last step that all ranks have done; None if there is none."""
    steps = [[(event["start"], event["stop"]) for event in events if event["name"] == "step"]
             for _, events in ranks]  # fmt: skip
    count = min(map(len, steps), default=0)
    if not count:
        return None
    starts, stops = zip(*(found[count - 1] for found in steps), strict=True)
    return min(starts), max(stops)


def as_text(ranks: Ranks, start: float, stop: float, width: int = 80) -> str:
    """The events from start to stop (seconds) as lines for each rank, with time from left to right.

    The upper line is a rank's program: `#` kernels, `.` blocked by an exchange. The lower line is
    its exchanges: `+` additions, `~` waiting for messages. A column shows what took most of its
    time. For a pipeline's stage: its tasks, as in `schedules.picture`, and its exchanges if there
    are any.
    """
    cell = (stop - start) / width
    lines = [f"{'':8}{1e3 * start:.1f} … {1e3 * stop:.1f} ms, {1e3 * cell:.3g} ms a column"]
    for rank, events in ranks:
        tasks = [Timed(Task(*event["about"]["task"]), event["start"], event["stop"])
                 for event in events if "task" in event["about"]]  # fmt: skip
        program = line_of(tasks, start, 1 / cell, width)
        exchanges = _marks(events, EXCHANGES, start, cell, width)
        if not tasks:
            program = _marks(events, PROGRAM, start, cell, width)
        lines.append(f"{f'rank {rank}':8}{program}")
        if exchanges.strip() or not tasks:
            lines.append(f"{'':8}{exchanges}")
    return "\n".join(lines)


def _marks(
    events: Iterable[dict[str, Any]], row: str, start: float, cell: float, width: int
) -> str:
    """A line of marks, one per cell of time."""
    shares: list[dict[str, float]] = [{} for _ in range(width)]
    for event in events:
        kind = str(event["about"].get("kind", event["name"]))
        if event["row"] != row or kind not in MARKS or event["name"].startswith("wait:"):
            continue
        first = max(int((event["start"] - start) / cell), 0)
        for column in range(first, min(int((event["stop"] - start) / cell) + 1, width)):
            left = start + column * cell
            part = min(event["stop"], left + cell) - max(event["start"], left)
            shares[column][kind] = shares[column].get(kind, 0.0) + max(part, 0.0)
    return "".join(
        MARKS[max(share, key=share.__getitem__)] if sum(share.values()) > cell / 4 else " "
        for share in shares
    )
