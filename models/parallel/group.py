"""A group of ranks for the graph's exchanges, and the thread that runs these."""

from __future__ import annotations

import ctypes
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minigrad import collective
from minigrad.collective import Addition, Piece, Transport
from minigrad.dtype import DType
from minigrad.graph.collective import Collective
from minigrad.models.parallel import ring
from minigrad.models.parallel.agreement import PLACE, Agreement
from minigrad.models.parallel.faults import Activity
from minigrad.models.parallel.kernels import Kernels
from minigrad.models.parallel.timeline import Timeline
from minigrad.settings import State, thread


class Members:
    """The Transport among some ranks of another one, with its own tag; counts data only.

    Data are received only after their sender has described the same exchange (`agreement.py`).
    """

    def __init__(
        self, transport: Transport, ranks: Sequence[int], tag: int, timeline: Timeline
    ) -> None:
        self.transport, self.ranks, self.tag, self.timeline = transport, tuple(ranks), tag, timeline
        self.rank, self.size = self.ranks.index(transport.rank), len(self.ranks)
        self.bytes_sent = self.messages_sent = 0
        self.pressing = False
        self.agreement = Agreement(self)

    def isend(self, to: int, address: int, nbytes: int, tag: int) -> Any:
        """Begin to send to a member."""
        self._sent(to, nbytes)
        return self.transport.isend(self.ranks[to], address, nbytes, self.tag)

    def irecv(self, source: int, address: int, nbytes: int, tag: int) -> Any:
        """Begin to receive from a member."""
        self.agreement.agree(source)
        return self.transport.irecv(self.ranks[source], address, nbytes, self.tag)

    def wait(self, requests: Sequence[Any]) -> None:
        """Wait until all requests are done."""
        with self.timeline.span("wait"):
            self.transport.wait(requests)

    def add(self, other: int, source: int, target: int, count: int, addition: Addition) -> bool:
        """Add a member's array."""
        self.agreement.agree(other)
        nbytes = count * addition.itemsize
        with self.timeline.span("add", "shared", nbytes):
            if not self.transport.add(self.ranks[other], source, target, count, addition):
                return False
        self._sent(other, nbytes)
        return True

    def _sent(self, to: int, nbytes: int) -> None:
        self.bytes_sent += nbytes
        self.messages_sent += 1
        self.timeline.event("send", f"to {self.ranks[to]}", nbytes)


class Job:
    """An exchange that has begun."""

    __slots__ = ("action", "done", "error")

    def __init__(self, action: Callable[[], None]) -> None:
        self.action, self.done = action, False
        self.error: BaseException | None = None


class Progress:
    """Does a rank's jobs in order of arrival.

    A thread of its own does them, or a thread that waits for the next job anyway. transports: those
    that the jobs use; a waiting thread sets `pressing` on them.
    """

    def __init__(self, activity: Activity, transports: Sequence[Transport]) -> None:
        self.activity, self.transports = activity, transports
        self.settings = dict(thread.values)
        self._jobs: deque[Job] = deque()
        self._busy = self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> None:
        """Add a job."""
        self.activity.exchanges += 1
        with self._changed:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, daemon=True, name="minigrad exchanges"
                )
                self._thread.start()
            self._changed.notify_all()

    def finish(self, job: Job) -> None:
        """Wait until a job is done; raises its exception."""
        self.activity.enter("waiting")
        self._press(True)
        try:
            with self._changed:
                while not job.done:
                    if not self._busy and self._jobs[0] is job:
                        self._do_next()
                    else:
                        self._changed.wait()
        finally:
            self._press(False)
            self.activity.enter("computing")
        if job.error is not None:
            raise job.error

    def _press(self, pressing: bool) -> None:
        for transport in self.transports:
            transport.pressing = pressing

    def close(self) -> None:
        """End the thread after its current job."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _do_next(self) -> None:
        """Do the first job; the caller holds the lock, which is released meanwhile."""
        job = self._jobs.popleft()
        self._busy = True
        self._changed.release()
        try:
            job.action()
        except BaseException as error:
            job.error = error
        finally:
            self._changed.acquire()
            self._busy, job.done = False, True
            self._changed.notify_all()

    def _work(self) -> None:
        with State(**self.settings), self._changed:
            while not self._closed:
                if self._jobs and not self._busy:
                    self._do_next()
                else:
                    self._changed.wait()


class RankGroup:
    """Ranks that exchange data: see `minigrad.collective.Group`.

    members: their Transport; `members.bytes_sent` counts what this rank has sent.
    """

    def __init__(
        self, name: str, members: Members, progress: Progress, kernels: Kernels, timeline: Timeline
    ) -> None:
        self.name, self.members, self.progress = name, members, progress
        self.kernels, self.timeline = kernels, timeline
        self.rank, self.size = members.rank, members.size

    def __repr__(self) -> str:
        return f"<group {self.name!r}: rank {self.rank} of {self.size}>"

    def start(self, what: Collective, dtype: DType, sent: Sequence[Piece], result: Piece) -> Job:
        """Begin an exchange."""

        def action() -> None:
            with self.timeline.span(what.kind, self.name, result.count * dtype.itemsize):
                self.members.agreement.begin(what)
                self._exchange(what, dtype, sent, result)
                self.members.agreement.close()

        return self._begun(action)

    def compare(self, data: memoryview) -> None:
        """Compare data of the host with the previous rank's; RankError if they differ."""
        told = f"{data.nbytes} bytes with checksum {zlib.crc32(data):08x}"

        def action() -> None:
            self.members.agreement.begin(Collective(PLACE, self.name, self.size, sent=told))
            self.members.agreement.close()

        self.finish(self._begun(action))

    def _begun(self, action: Callable[[], None]) -> Job:
        job = Job(action)
        self.progress.submit(job)
        return job

    def finish(self, begun: Job) -> None:
        """Wait until an exchange is done."""
        with self.timeline.span("blocked", self.name):
            self.progress.finish(begun)

    # --- the kinds --------------------------------------------------------------------------------

    def _exchange(
        self, what: Collective, dtype: DType, sent: Sequence[Piece], result: Piece
    ) -> None:
        members, kind, size = self.members, what.kind, dtype.itemsize
        target, nbytes = result.address, result.count * size
        if kind in ("all_reduce", "reduce"):
            ring.all_reduce(members, sent, target, dtype, what.how, self.kernels)
            if kind == "reduce" and members.rank != what.place:
                ctypes.memset(target, 0, nbytes)
        elif kind == "broadcast":
            ring.join(sent, target, size)
            ring.broadcast(members, target, nbytes, what.place)
        elif kind == "permute":
            if len(sent) == 1:
                ring.permute(members, sent[0].address, target, nbytes, what.place)
                return
            with ring.Scratch(nbytes) as joined:
                ring.join(sent, joined, size)
                ring.permute(members, joined, target, nbytes, what.place)
        elif kind == "all_gather":
            place = target
            for piece in sent:
                ring.join([piece], place + members.rank * piece.count * size, size)
                place += members.size * piece.count * size
            counts = [members.size * piece.count for piece in sent]
            ring.ring_all_gather(members, target, counts, dtype, self.kernels)
        elif kind == "reduce_scatter":
            ranks, count = members.size, result.count * members.size
            parts = [Piece(one.address + one.count // ranks * rank * size, one.count // ranks)
                     for rank in range(ranks) for one in sent]  # fmt: skip
            with ring.Scratch(count * size) as copy:
                ring.join(parts, copy, size)
                start, _ = ring.ring_reduce_scatter(members, copy, count, dtype, what.how,
                                                    self.kernels)  # fmt: skip
                ctypes.memmove(target, copy + start * size, nbytes)
        else:
            ring.all_to_all(members, sent[0].address, target, nbytes // members.size)


class Seat:
    """A device's membership in groups, by name, until `close`.

    groups: the ranks of each.
    """

    def __init__(
        self, device: str, transport: Transport, groups: Mapping[str, Sequence[int]],
        activity: Activity, timeline: Timeline,
    ) -> None:  # fmt: skip
        self.device, self.timeline = device, timeline
        self.progress = Progress(activity, [transport])
        kernels = Kernels("CPU" + device[device.find(":") :] if ":" in device else "CPU", timeline)
        self.groups = {
            name: RankGroup(name, Members(transport, ranks, tag, timeline), self.progress, kernels,
                            timeline)
            for tag, (name, ranks) in enumerate(groups.items())
        }  # fmt: skip
        collective.enter(device, [*self.groups.values()])

    def close(self) -> None:
        """Leave the groups."""
        collective.leave(self.device, [*self.groups.values()])
        self.progress.close()
