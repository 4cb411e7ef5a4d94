"""What each rank did when, for Chrome's trace viewer (chrome://tracing, ui.perfetto.dev)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from minigrad import nn

# Rows of a rank, by what an event is.
PROGRAM, EXCHANGES = "program", "exchanges"
NOTHING = nullcontext()  # one for all: exchanges of a few bytes feel what a span costs


class Timeline:
    """Events of one rank; nothing is recorded before `begin`. Times are seconds since then."""

    def __init__(self) -> None:
        self.zero: float | None = None
        self.events: list[dict[str, Any]] = []
        self._main = threading.get_ident()

    def begin(self) -> None:
        """Record from now on; to be called by the rank's own thread, by all ranks at one time."""
        self.zero, self.events = time.perf_counter(), []
        self._main = threading.get_ident()

    def add(self, name: str, start: float, stop: float, **about: Any) -> None:
        """An event between two readings of `time.perf_counter()`."""
        if self.zero is not None:
            row = PROGRAM if threading.get_ident() == self._main else EXCHANGES
            if name in ("send", "add", "wait"):
                row = EXCHANGES
            self.events.append({
                "name": name, "row": row, "start": start - self.zero, "stop": stop - self.zero,
                "about": about,
            })  # fmt: skip

    def event(self, name: str, what: str, nbytes: int) -> None:
        """Something that takes no time of ours."""
        if self.zero is not None:
            now = time.perf_counter()
            self.add(name, now, now, what=what, bytes=nbytes)

    def span(self, name: str, what: str = "", nbytes: int = 0) -> AbstractContextManager[None]:
        """Record how long the block takes."""
        return NOTHING if self.zero is None else self._span(name, what, nbytes)

    @contextmanager
    def _span(self, name: str, what: str, nbytes: int) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, start, time.perf_counter(), what=what, bytes=nbytes)


def chrome_trace(ranks: Iterable[tuple[int, list[dict[str, Any]]]]) -> dict[str, Any]:
    """The Trace Event Format (Google, 2016): one process per rank, one thread per row."""
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
    """Write the timelines of all ranks as one file, whole or not at all."""
    data = json.dumps(chrome_trace(ranks)).encode()
    nn.state.write_atomically(path, lambda file: file.write(data))


def read_trace(path: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    """The timelines that `write_trace` wrote."""
    found: dict[int, list[dict[str, Any]]] = {}
    for event in json.loads(path.read_text("utf-8"))["traceEvents"]:
        if event["ph"] != "M":
            start, length = event["ts"] / 1e6, event.get("dur", 0.0) / 1e6
            found.setdefault(event["pid"], []).append({
                "name": event["name"], "row": event["cat"], "start": start,
                "stop": start + length, "about": event["args"],
            })  # fmt: skip
    return sorted(found.items())


MARKS = {"kernel": "#", "blocked": ".", "add": "+", "wait": "~"}


def as_text(
    ranks: Iterable[tuple[int, list[dict[str, Any]]]], start: float, stop: float, width: int = 80
) -> str:
    """What happened from start to stop (seconds): two lines per rank, time from left to right.

    Above a rank's program: `#` kernels, `.` blocked by an exchange. Below its exchanges: `+`
    additions, `~` waiting for messages. A column shows what took most of its time.
    """
    cell = (stop - start) / width
    lines = [f"{'':8}{1e3 * start:.1f} … {1e3 * stop:.1f} ms, {1e3 * cell:.3g} ms a column"]
    for rank, events in ranks:
        for row, label in ((PROGRAM, f"rank {rank}"), (EXCHANGES, "")):
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
            marks = (
                MARKS[max(share, key=share.__getitem__)] if sum(share.values()) > cell / 4 else " "
                for share in shares
            )
            lines.append(f"{label:8}{''.join(marks)}")
    return "\n".join(lines)
