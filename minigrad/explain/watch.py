"""Running a step and looking on: which programs, how long each kernel, where nodes came from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

from minigrad import program
from minigrad.device import Buffer, Device, Program
from minigrad.errors import MinigradError
from minigrad.explain.origins import Origins
from minigrad.graph.canonical import Canonical, Graph
from minigrad.jit.jitted import Jitted, Method
from minigrad.programs import MOST_PROGRAMS, NO_VALUES, Programs
from minigrad.settings import flag
from minigrad.tensor import Tensor

ROUNDS = 3  # steps that are timed as they are, and so many kernel by kernel


@dataclass
class Round:
    """One step, kernel by kernel: start and stop of each, of each program; seconds from start."""

    start: float
    programs: list[tuple[Timed, list[tuple[str, float, float]]]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def busy(self) -> float:
        """Seconds in kernels."""
        return sum(stop - start for _, rows in self.programs for _, start, stop in rows)


class Timed:
    """A program that is run kernel by kernel while a `Round` is on."""

    def __init__(self, made: Program, watched: Watched) -> None:
        self.made, self.watched = made, watched

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """See `minigrad.device.Program`."""
        current = self.watched.round
        if current is None:
            self.made.run(buffers, variables)
            return
        rows: list[tuple[str, float, float]] = []
        before = program.timeline.record

        def record(label: str, start: float, stop: float) -> None:
            while rows and rows[-1][1] >= start - current.start:
                rows.pop()  # an addition that this thread did while it waited for an exchange
            rows.append((label, start - current.start, stop - current.start))
            if before is not None:
                before(label, start, stop)

        program.timeline.record = record
        try:
            self.made.run(buffers, variables)
        finally:
            program.timeline.record = before
        current.programs.append((self, rows))


class Watched(Programs):
    """The programs of this thread while a step is explained: none of them is general.

    found: each call with its program, in order.
    """

    def __init__(self) -> None:
        super().__init__(MOST_PROGRAMS)
        self.others, self.thread = program.programs, get_ident()
        self.made: dict[Any, Timed] = {}
        self.found: list[tuple[Canonical, Timed]] = []
        self.round: Round | None = None

    def find(
        self, call: Canonical, compile: Callable[[Graph], Program]
    ) -> tuple[Program, Mapping[str, int]]:
        """See `Programs`."""
        if get_ident() != self.thread:
            return self.others.find(call, compile)
        key = (call.structure, call.cells, flag("FUSE"), flag("GUARD"))
        known = self.made.get(key)
        if known is None:
            known = self.made[key] = Timed(compile(call.graph()), self)
        self.found.append((call, known))
        return known, NO_VALUES

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be this thread's programs."""
        program.programs = self
        try:
            yield
        finally:
            program.programs = self.others


@dataclass
class Step:
    """A step that was run. calls: its programs, in order; plain: seconds of the steps that nobody
    looked at; round: the one of middle length that was taken kernel by kernel. origins: where the
    nodes come from. steps: how often it was run in all.
    """

    calls: list[tuple[Canonical, Timed]]
    plain: list[float]
    round: Round
    origins: Origins
    steps: int
    captured: bool


def run(step: Any, args: Sequence[Any], origins: Origins, rounds: int = ROUNDS) -> Step:
    """Run a step, captured or not, several times; or realize a lazy tensor, once."""
    watched = Watched()
    with watched.watching():
        if isinstance(step, Tensor):
            return _realize(step, watched, origins)
        again, captured = _afresh(step), isinstance(step, Jitted | Method)
        count = steps(step, rounds)
        for _ in range(first_calls(step)):
            _run(step, args, watched.others)
        again(*args)
        watched.found.clear()
        with origins.recording():
            again(*args)
        found = watched.found[:]
        plain, seen = list[float](), list[Round]()
        for _ in range(rounds):
            plain.append(_run(step, args, watched.others))
            watched.round = Round(time.perf_counter())
            again(*args)
            _synchronize()
            watched.round.seconds = time.perf_counter() - watched.round.start
            seen.append(watched.round)
            watched.round = None
    best = sorted(seen, key=lambda one: one.seconds)[len(seen) // 2]
    return Step(_aligned(found, best), plain, best, origins, count, captured)


def first_calls(step: Any) -> int:
    """How often a step is called before it is timed: until it is captured, if it will be."""
    return 2 if isinstance(step, Jitted | Method) and not step.captured else 1


def steps(step: Any, rounds: int) -> int:
    """How often `run` runs a step that has not been run: other ranks must do as much."""
    return first_calls(step) + 2 + 2 * rounds


def _realize(tensor: Tensor, watched: Watched, origins: Origins) -> Step:
    watched.round = Round(time.perf_counter())
    tensor.realize()
    _synchronize()
    watched.round.seconds = watched.round.busy  # what compiling took is no part of it
    return Step(watched.found, [], watched.round, origins, 1, False)


def _afresh(step: Any) -> Callable[..., Any]:
    """The step with no capture yet."""
    inner = step.jitted if isinstance(step, Method) else step
    if isinstance(inner, Jitted):
        return Jitted(inner.function, inner.instance)
    return step  # type: ignore[no-any-return]


def _run(step: Callable[..., Any], args: Sequence[Any], programs: Programs) -> float:
    """Seconds of the step as it is without us."""
    ours, program.programs = program.programs, programs
    try:
        start = time.perf_counter()
        step(*args)
        _synchronize()
        return time.perf_counter() - start
    finally:
        program.programs = ours


def _synchronize() -> None:
    for runtime in list(Device.opened.values()):
        runtime.synchronize()


def _aligned(
    found: Sequence[tuple[Canonical, Timed]], best: Round
) -> list[tuple[Canonical, Timed]]:
    """The calls of the recorded step that a round made again: it may have prepared others.

    A loop runs a program many times that was looked up once.
    """
    place, result = 0, list[tuple[Canonical, Timed]]()
    for timed, _ in best.programs:
        ahead = place < len(found) and found[place][1] is timed
        if not ahead and result and result[-1][1] is timed:
            result.append(result[-1])
            continue
        while place < len(found) and found[place][1] is not timed:
            place += 1
        if place == len(found):
            raise MinigradError(
                "explain: the step ran other programs when it was called again; explain a function "
                "that computes the same in every call, e.g. one step of the loop"
            )
        result.append(found[place])
        place += 1
    return result
