"""`run`: call a function once per rank, in threads of this process or in processes of MPI."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minigrad import Device, collective
from minigrad.graph.node import Node, Op, topological
from minigrad.locks import new_lock
from minigrad.models.parallel import mpi
from minigrad.models.parallel.faults import Activity, Clock, RankError, culprit, told
from minigrad.models.parallel.group import RankGroup, Seat
from minigrad.models.parallel.local import Exchange, LocalTransport
from minigrad.models.parallel.mpi import World, world
from minigrad.models.parallel.timeline import Timeline, of_rank, own
from minigrad.models.parallel.tracing import traced
from minigrad.runtimes.host import usable_threads
from minigrad.settings import State, flag, having
from minigrad.settings import thread as this_thread
from minigrad.tensor import live_tensors


@dataclass(frozen=True)
class Rank:
    """The argument of a parallel function: the rank that it runs as.

    world, dp, sp: its groups; rank d·sp + s has place d in its "dp" group and place s in its "sp"
    group. device: of its tensors; the default device of its thread.
    """

    number: int
    device: str
    world: RankGroup
    dp: RankGroup
    sp: RankGroup
    timeline: Timeline

    @property
    def is_first(self) -> bool:
        """Whether it is rank 0, the only one that writes files and prints."""
        return self.number == 0


Function = Callable[[Rank], Any]
Groups = Mapping[str, Sequence[int]]  # the members of each group that a rank is in


def run(
    function: Function, dp: int = 1, sp: int = 1, *, patience: float | None = None,
    trace: str | Path | None = None,
) -> list[Any]:  # fmt: skip
    """Call function(rank) once per rank; returns the results in the order of ranks.

    There are dp · sp ranks: dp copies of a model, and sp ranks that share the sequences of each.
    In a process that MPI started as one of several, it is called once, as this process's rank, and
    the list has None for the others. Otherwise each rank is a thread with its own device ("CPU",
    "CPU:1" … of the default device's kind), and rank 0 is the calling thread. patience: seconds
    after which a rank that keeps others waiting counts as hung (setting PATIENCE; 0: never). trace:
    a file for the timelines of all ranks. Raises RankError, naming the rank, if one raises, is lost
    or hangs; exceptions of rank 0 are raised unchanged.
    """
    if dp < 1 or sp < 1:
        raise ValueError(f"run: expected at least one rank along each axis, got dp={dp}, sp={sp}")
    groups = [_groups(rank, dp, sp) for rank in range(dp * sp)]
    limit = float(flag("PATIENCE")) if patience is None else patience
    processes = world(limit)
    with traced(trace):
        if processes is None:
            return _Threads(groups, limit).run(function)
        return _run_process(processes, function, groups)


def _groups(rank: int, dp: int, sp: int) -> Groups:
    """The groups of a rank. Ranks of one sequence, which communicate most, are neighbours."""
    first = rank - rank % sp
    return {
        "world": range(dp * sp), "dp": range(rank % sp, dp * sp, sp), "sp": range(first, first + sp)
    }  # fmt: skip


def started_by_mpi() -> bool:
    """Whether this process is one of several that MPI started."""
    return world() is not None


@contextmanager
def _seat(
    number: int, groups: Groups, transport: collective.Transport, device: str,
    activity: Activity, threads: int, evictions: list[Callable[[], None]],
    settings: dict[str, int | str] | None = None,
) -> Iterator[Rank]:  # fmt: skip
    """Make the calling thread a rank for the time of the block.

    evictions: gets the function that ends this; a thread that takes it from the list must call it.
    """
    known, wanted = live_tensors.rank.number, dict(settings or this_thread.values)
    wanted |= {"DEVICE": device, "THREADS": wanted["THREADS"] or threads}
    with State(**wanted):
        timeline = of_rank(number)
        seat = Seat(device, transport, groups, activity, timeline)
        evictions.append(partial(_evict, seat, known))
        try:
            with having(own, timelines=(timeline,)), timeline.kernels():
                yield Rank(number, device, **seat.groups, timeline=timeline)
        finally:
            _leave(evictions)  # if this rank has hung, it was evicted before it woke


def _evict(seat: Seat, number: int | None) -> None:
    """End a rank's participation; called in its own thread, or for one that hangs."""
    seat.close()
    with having(live_tensors.rank, number=number):
        # tensors in the frames of a failed run's exception must not exchange in the next run
        live_tensors.abandon(_exchanges)


def _leave(evictions: list[Callable[[], None]]) -> None:
    """End a seat, unless another thread does."""
    try:
        evict = evictions.pop()
    except IndexError:
        return
    evict()


def _exchanges(node: Node) -> bool:
    return any(other.op is Op.COLLECTIVE for other in topological([node]))


# --- ranks that are threads ----------------------------------------------------------------------


class _Ended(BaseException):
    """Raised in a thread that hangs."""


GIVEN_UP = 5.0  # seconds after which a thread that cannot be ended is abandoned


class _Threads:
    """One parallel run in this process. groups: of each rank."""

    def __init__(self, groups: Sequence[Groups], patience: float) -> None:
        self.groups, self.patience = groups, patience
        self.size = len(groups)
        self.exchange = Exchange(self.size)
        self.clock = Clock()
        self.activities = [Activity(self.clock) for _ in range(self.size)]
        self.results: list[Any] = [None] * self.size
        self.errors: list[BaseException | None] = [None] * self.size
        self.threads_each = max(usable_threads() // self.size, 1)
        self.kind = Device.DEFAULT.partition(":")[0]
        self.settings = dict(this_thread.values)
        self.over = threading.Event()
        self.evictions: list[list[Callable[[], None]]] = [[] for _ in range(self.size)]
        self.throwing = new_lock()  # held while a rank is being ended, and while one ends

    def run(self, function: Function) -> list[Any]:
        """Call the function on all ranks."""
        others = [
            threading.Thread(target=self._work, args=(function, number), daemon=True,
                             name=f"minigrad rank {number}")
            for number in range(1, self.size)
        ]  # fmt: skip
        for thread in others:
            thread.start()
        idents = [threading.get_ident(), *(thread.ident or 0 for thread in others)]
        watch = threading.Thread(target=self._watch, args=(idents,), daemon=True)
        watch.start()
        try:
            self._work(function, 0)
            for number, thread in enumerate(others, 1):
                self._join(number, thread)
        except BaseException as error:  # Ctrl-C
            self.exchange.fail(RankError(-1, f"stopped: {type(error).__name__}"))
            raise
        finally:
            self.over.set()
            watch.join()
        if self.exchange.failure is not None:
            first = self.errors[0]
            if first is not None and not isinstance(first, RankError | _Ended):
                raise first
            raise self.exchange.failure
        return self.results

    def _join(self, number: int, thread: threading.Thread) -> None:
        """Wait for a rank, but not forever for one that hangs where nothing can be raised in it.

        The next run must find its place empty, and must not be affected when it wakes later.
        """
        failed_at = None
        while thread.is_alive():
            thread.join(timeout=0.05)
            if self.exchange.failure is not None:
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > GIVEN_UP:
                    _leave(self.evictions[number])
                    return

    def _work(self, function: Function, number: int) -> None:
        device = f"{self.kind}:{number}" if number else self.kind
        activity = self.activities[number]
        transport = LocalTransport(number, self.exchange)
        with having(live_tensors.rank, number=number):
            try:
                with _seat(
                    number, self.groups[number], transport, device, activity, self.threads_each,
                    self.evictions[number], self.settings,
                ) as rank:  # fmt: skip
                    self.results[number] = function(rank)
            except BaseException as error:
                self.errors[number] = error
                self.exchange.fail(_blame(number, error))
            finally:
                while activity.state != "ended":  # an exception from outside comes now or never
                    with suppress(_Ended), self.throwing:
                        activity.enter("ended")

    def _watch(self, idents: Sequence[int]) -> None:
        """Watch for a rank that hangs."""
        beat = min(0.5, self.patience / 4) if self.patience else 0.5
        while not self.over.wait(beat):
            self.clock.tick(beat)
            if not self.patience or self.exchange.failure is not None:
                continue
            signs = {n: activity.sign() for n, activity in enumerate(self.activities)}
            sentence = culprit(signs, {}, self.patience)
            if sentence is None:
                continue
            self.exchange.fail(RankError(-1, sentence))
            with self.throwing:
                for number, activity in enumerate(self.activities):
                    if activity.state == "computing":
                        ident = ctypes.c_ulong(idents[number])
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Ended))


def _blame(number: int, error: BaseException) -> RankError:
    """A rank's exception as a sentence."""
    if isinstance(error, RankError):
        return error
    blamed = RankError(number, told(number, error))
    blamed.__cause__ = error
    return blamed


# --- ranks that are processes ---------------------------------------------------------------------


def _run_process(ranks: World, function: Function, groups: Sequence[Groups]) -> list[Any]:
    """Run one rank of a parallel run, which all processes call."""
    size = len(groups)
    if ranks.size != size:
        raise RankError(-1, f"MPI started {ranks.size} ranks, but the program has {size}: "
                        f"use mpiexec -n {size}")  # fmt: skip
    results: list[Any] = [None] * size
    transport = ranks.transport(range(size))
    try:
        with _seat(ranks.rank, groups[ranks.rank], transport, Device.DEFAULT, ranks.activity,
                   ranks.threads, []) as rank:  # fmt: skip
            results[ranks.rank] = function(rank)
    except BaseException as error:
        mpi.abort(ranks.library, error)
    ranks.activity.enter("ended")
    ranks.library.COMM_WORLD.Barrier()
    ranks.activity.enter("computing")
    return results
