"""Running and observing a step: its programs, each kernel's time, the origins of nodes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from minigrad import program
from minigrad.device import Buffer, Device, Program
from minigrad.dtype import dtypes
from minigrad.errors import DeviceError, MinigradError, expect
from minigrad.explain.origins import Origins
from minigrad.graph.canonical import Canonical, Graph
from minigrad.graph.collective import exchange
from minigrad.graph.conversions import group_name
from minigrad.jit.jitted import Jitted
from minigrad.programs import MOST_PROGRAMS, NO_VALUES, Programs
from minigrad.runtimes import cpu_memory
from minigrad.settings import State, flag, having
from minigrad.tensor import Tensor, realization
from minigrad.tensor.pytree import flatten

if TYPE_CHECKING:
    from minigrad.collective import Group
    from minigrad.explain.values import Values

APART = 0.05  # share of a step's time; if the kernels' times differ by more, more rounds are run
MOST_ROUNDS = 3  # at most so many times the rounds

Row = tuple[str, float, float]  # a kernel's label, start and stop


@dataclass
class Round:
    """One step, run kernel by kernel.

    programs: each with the rows of each device of this process, in seconds from the start. look:
    inspects values, so the times do not count.
    """

    start: float
    look: Values | None = None
    programs: list[tuple[Timed, list[list[Row]]]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def busy(self) -> float:
        """Seconds spent in kernels of the first device."""
        return sum(stop - start for _, rows in self.programs for _, start, stop in rows[0])

    def by_device(self) -> list[list[Row]]:
        """The rows of each device, of all programs."""
        devices = max((len(rows) for _, rows in self.programs), default=1)
        return [[row for _, rows in self.programs for row in rows[d]] for d in range(devices)]


class Timed:
    """A program that runs kernel by kernel, on each of its devices, in a `Round`.

    call: the one that it was created for. latest: the last one that requested it.
    """

    def __init__(self, made: Any, watched: Watched, call: Canonical) -> None:
        self.made, self.watched, self.call, self.latest = made, watched, call, call
        self.parts, self._whole = [made], _Part(self, 0)
        if call.roots[0].device in Device.meshes:  # its devices are threads
            self.parts, self._whole = made.programs, made
            made.programs = [_Part(self, number) for number in range(len(self.parts))]
        self.rows: list[list[Row]] = []

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """See `minigrad.device.Program`."""
        self.watched.ran.append((self.latest, self))
        self.rows = [[] for _ in self.parts]
        self._whole.run(buffers, variables)
        self.watched.round.programs.append((self, self.rows))


class _Part:
    """The part of a program on one device."""

    def __init__(self, timed: Timed, number: int) -> None:
        self.timed, self.number = timed, number

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """See `minigrad.device.Program`."""
        timed, made = self.timed, self.timed.parts[self.number]
        current = timed.watched.round
        rows, before = timed.rows[self.number], program.timeline.record
        look = None if self.number else current.look
        labels = [kernel.code.label for kernel in made.kernels]
        if look is not None:
            look.begins(timed, buffers, variables)

        def record(label: str, start: float, stop: float) -> None:
            if before is not None:
                before(label, start, stop)
            if label != labels[len(rows)]:
                return  # an addition, done while waiting for an exchange
            rows.append((label, start - current.start, stop - current.start))
            if look is not None:
                look.ran(len(rows) - 1)

        with having(program.timeline, record=record):
            made.run(buffers, variables)


def _check_device(name: str) -> None:
    """DeviceError unless a device is a CPU, or a mesh of CPUs."""
    mesh = Device.meshes.get(name)
    for one in mesh.devices if mesh is not None else (name,):
        expect(one.partition(":")[0] == "CPU", "explain", "a step on a CPU device; set "
               "MINIGRAD_DEVICE=CPU, or move tensors with .to(\"CPU\")", name,
               error=DeviceError)  # fmt: skip


def _programs(found: Programs) -> AbstractContextManager[None]:
    """Let this thread find programs in `found` instead of the process's table."""
    return having(program.timeline, programs=found)


class Watched(Programs):
    """The programs of this thread while a step is explained; none of them is general.

    ran: each call with its program, in order.
    """

    def __init__(self) -> None:
        super().__init__(MOST_PROGRAMS)
        self.made: dict[Any, Timed] = {}
        self.ran: list[tuple[Canonical, Timed]] = []
        self.round: Round

    def find(
        self, call: Canonical, compile: Callable[[Graph], Program], may_pad: bool = True
    ) -> tuple[Program, Mapping[str, int]]:
        """See `Programs`."""
        key = (call.structure, call.cells, flag("FUSE"), flag("GUARD"))
        known = self.made.get(key)
        if known is None:
            _check_device(call.roots[0].device)
            known = self.made[key] = Timed(compile(call.graph()), self, call)
        known.latest = call
        return known, NO_VALUES

    def closely(self, step: Callable[[], Any], look: Values | None = None) -> Round:
        """Run a step kernel by kernel."""
        self.round = current = Round(time.perf_counter(), look)
        with State(EXPLAINED=True):
            step()
            Device.synchronize()
        current.seconds = time.perf_counter() - current.start
        return current

    def plainly(self, step: Callable[[], Any]) -> float:
        """Run a step normally; returns the seconds."""
        with _programs(program.programs):
            start = time.perf_counter()
            step()
            Device.synchronize()
            return time.perf_counter() - start


class Ranks:
    """The ranks that run a step together, each of which explains it; a single one has no name.

    They wait for each other and exchange data. device: of this rank; by default the default device.
    """

    def __init__(self, name: str = "", size: int = 1, device: str | None = None) -> None:
        self.name, self.size, self.device = name, size, device

    @classmethod
    def of(cls, device: str) -> Ranks:
        """The processes with the devices of a mesh; one if its devices are threads of this process.
        """
        mesh, runtime = Device.meshes.get(device), cast(Any, Device.opened.get(device))
        if mesh is None or len(runtime.local) == mesh.size:
            return cls()
        axes = [axis for axis, size in mesh.sizes.items() if size > 1]
        return cls(group_name(mesh.name, axes), mesh.size, runtime.local[0].device)

    def gathered(self, what: Any) -> list[Any]:
        """The values that all ranks pass, when they have: anything that JSON can hold."""
        if self.size == 1:
            return [what]
        data = json.dumps(what).encode()
        most = max(self._together(Tensor([len(data)], device=self.device)).tolist())
        own = Tensor(list(data.ljust(most)), dtype=dtypes.uint8, device=self.device)
        rows = bytes(self._together(own).tolist())
        return [json.loads(rows[most * rank : most * (rank + 1)]) for rank in range(self.size)]

    def _together(self, x: Tensor) -> Tensor:
        """(n,) → (n·size,): x of all ranks."""
        with _programs(program.programs):
            return Tensor._of(exchange("all_gather", self.name, self.size, [x.node])).realize()


@dataclass
class Step:
    """A step that was run.

    calls: its programs, in order. plain: seconds of the steps that ran normally. round: the median
    one of those run kernel by kernel. apart: see `_apart`. steps: how often it ran in all. ranks:
    the kernels of each rank, if there are several.
    """

    calls: list[tuple[Canonical, Timed]]
    plain: list[float]
    round: Round
    apart: float = 0.0
    steps: int = 1
    ranks: list[list[Row]] = field(default_factory=list)


def run(
    step: Any, args: Sequence[Any], origins: Origins, rounds: int, group: Group | None,
    look: Values | None, speaks: bool,
) -> Step:  # fmt: skip
    """Run a step, captured or not, several times; or realize a lazy tensor once.

    group: the ranks that run it together, if not those of its mesh. speaks: whether this rank
    records the origins of nodes.
    """
    expect(callable(step) or isinstance(step, Tensor), "explain", "a function and its arguments, "
           "or a lazy tensor; write explain(step, x, y)", type(step).__name__,
           error=TypeError)  # fmt: skip
    watched = Watched()
    with _programs(watched), cpu_memory.keeping():
        if isinstance(step, Tensor):
            current = watched.closely(step.realize, look)
            _check_work(watched.ran)
            current.seconds = current.busy  # without the time for compiling
            return Step(watched.ran, [], current)
        captured, again = isinstance(step, Jitted), step
        plain = partial(_realized, step, *args)
        if captured:  # a new one, without a capture
            again = Jitted(step.function, step.instance)
            again.explained = True
        again = partial(_realized, again, *args)
        first = 2 if captured and not step.captured else 1
        with origins.recording() if speaks else nullcontext():
            for _ in range(first):
                watched.plainly(plain)
            watched.closely(again)
            watched.ran.clear()
            watched.closely(again)
        found = watched.ran[:]
        _check_work(found)
        ranks = Ranks(group.name, group.size) if group is not None else (
            Ranks.of(found[0][0].roots[0].device)
        )  # fmt: skip
        seconds, seen = list[float](), list[Round]()
        most = rounds if ranks.size > 1 else MOST_ROUNDS * rounds
        while len(seen) < rounds or (
            len(seen) < most and abs(_apart(_middle(seen), seconds, captured)) > APART
        ):
            ranks.gathered(None)  # all of them begin together
            seconds.append(watched.plainly(plain))
            ranks.gathered(None)
            seen.append(watched.closely(again))
        if look is not None:
            watched.closely(again, look)
        best = _middle(seen, ranks.gathered([one.seconds for one in seen]))
        rows = [row for rank in ranks.gathered(best.by_device()) for row in rank]
    count, apart = first + 2 + 2 * len(seen) + (look is not None), _apart(best, seconds, captured)
    return Step(_aligned(found, best), seconds, best, apart, count, rows)


def _realized(step: Callable[..., Any], *args: Any) -> None:
    """Call a step and realize the tensors that it returns, as if it were captured."""
    realization.realize(flatten(step(*args))[0])


def _check_work(ran: Sequence[Any]) -> None:
    """MinigradError if the step ran nothing."""
    if not ran:
        raise MinigradError("explain: the step ran no kernel; return tensors, or realize some")


def _middle(seen: Sequence[Round], seconds: Sequence[Sequence[float]] = ()) -> Round:
    """The round of median length; if there are several ranks, the same one for all of them."""
    lengths = [max(some) for some in zip(*seconds, strict=True)] or [one.seconds for one in seen]
    order = sorted(range(len(seen)), key=lengths.__getitem__)
    return seen[order[len(order) // 2]]


def _apart(one: Round, plain: Sequence[float], captured: bool) -> float:
    """The relative difference between the kernels' times and the normal time of a step.

    If the step is not captured, Python's time between kernels counts, too.
    """
    return (one.busy if captured else one.seconds) / median(plain) - 1


def _aligned(seen: Sequence[tuple[Canonical, Timed]], best: Round) -> list[tuple[Canonical, Timed]]:
    """The calls of the recorded step that a round made again; others were preparations."""
    left, result = iter(seen), list[tuple[Canonical, Timed]]()
    for timed, _ in best.programs:
        call = next((call for call, other in left if other is timed), None)
        if call is None:
            raise MinigradError(
                "explain: the step ran different programs in its second call; pass a function that "
                "computes the same in every call, e.g. one step of the loop"
            )
        result.append((call, timed))
    return result
