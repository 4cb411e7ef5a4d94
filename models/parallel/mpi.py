"""Ranks as processes, on one or several machines: messages go through MPI (mpi4py)."""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from minigrad.collective import Addition
from minigrad.errors import MinigradError
from minigrad.models.interrupt import pass_on
from minigrad.models.parallel import witness
from minigrad.models.parallel.arrival import launcher, waiting_for_all
from minigrad.models.parallel.faults import Activity, Clock, RankError, Sign, culprit, told
from minigrad.models.parallel.shared_memory import Lane
from minigrad.runtimes.host import usable_threads
from minigrad.settings import flag, put

SPINS = 50  # polls of a message before the first nap
PATIENT, PRESSED = 20, 3000  # the same while a kernel waits: a few milliseconds
NAP = 50e-6  # seconds
# Naps grow while no thread waits, because each poll costs the kernels 30 µs. Limits: for exchanges,
# where a rank at the other end may wait; for messages sent ahead, which need polls to be sent; and
# the same on one machine, where the receiver reads them without the sender's help.
LONGEST_NAP, LONGEST_AHEAD, LONGEST_HERE = 200e-6, 1e-3, 20e-3
BEAT = 0.5  # seconds between signs of life


def library(patience: float) -> Any:
    """The module `mpi4py.MPI`, if this process was started by MPI as one of several.

    Otherwise None: MPI is neither imported nor initialized. patience: seconds after which a rank
    that does not start, so that all wait for it, counts as hung (0: never).
    """
    if not any(name in os.environ for name in ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE")):
        return None
    try:
        import mpi4py

        if "mpi4py.MPI" not in sys.modules:
            mpi4py.rc(initialize=False, finalize=True)
        from mpi4py import MPI
    except ImportError as error:
        raise RankError(
            -1, f"started by MPI, but mpi4py cannot be imported ({error}): "
            "run pip install mpi4py mpich"
        ) from None  # fmt: skip
    if not MPI.Is_initialized():
        # not by mpi4py: it would hold the interpreter's lock while it waits for the other ranks
        begin = ctypes.CDLL(MPI.__file__).MPI_Init_thread
        with waiting_for_all(patience):
            begin(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
        MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)  # mpi4py raises errors that are returned
    return MPI if MPI.COMM_WORLD.size > 1 else None


class MPITransport:
    """One rank of a communicator; all ranks must call this: see `minigrad.collective.Transport`.

    MPI gets the memory itself, without a copy.
    """

    def __init__(self, mpi: Any, communicator: Any) -> None:
        self.mpi, self.communicator = mpi, communicator
        self.rank, self.size = communicator.rank, communicator.size
        self._hurry, self._longest = threading.Event(), LONGEST_NAP
        self._lanes: dict[int, Lane | None] = {}
        self._ahead = LONGEST_HERE if local_size(mpi, communicator) == self.size else LONGEST_AHEAD

    def __copy__(self) -> MPITransport:
        """A transport for the same messages, for threads that send ahead."""
        other = object.__new__(MPITransport)
        vars(other).update(vars(self), _hurry=threading.Event(), _longest=self._ahead, _lanes={})
        return other

    @property
    def pressing(self) -> bool:
        """See `Transport`; setting it ends a nap."""
        return self._hurry.is_set()

    @pressing.setter
    def pressing(self, pressing: bool) -> None:
        if pressing:
            self._hurry.set()
        else:
            self._hurry.clear()

    def _memory(self, address: int, nbytes: int) -> list[Any]:
        return [self.mpi.memory.fromaddress(address, nbytes), self.mpi.BYTE]

    def isend(self, to: int, address: int, nbytes: int, tag: int) -> Any:
        """Begin to send."""
        return self.communicator.Isend(self._memory(address, nbytes), to, tag)

    def irecv(self, source: int, address: int, nbytes: int, tag: int) -> Any:
        """Begin to receive."""
        return self.communicator.Irecv(self._memory(address, nbytes), source, tag)

    def wait(self, requests: Sequence[Any]) -> None:
        """Wait until all requests are done.

        MPI makes progress only while it is polled: naps cost bandwidth, and polling all the time
        would take the processor away from the kernels.
        """
        try:
            self._until(lambda: self.mpi.Request.Testall(requests))
        except self.mpi.Exception as error:
            raise RankError(
                self.rank, f"an exchange of rank {self.rank} failed: {error}: all ranks must make "
                "the same exchanges in the same order"
            ) from None  # fmt: skip

    def add(self, other: int, source: int, target: int, count: int, addition: Addition) -> bool:
        """See `Transport`. Memory is shared with ranks on the same machine, according to MPI."""
        if other not in self._lanes:
            ranks = sorted((self.rank, other))
            members = self.communicator.Get_group().Incl(ranks)
            pair = self.communicator.Create_group(members, self.rank + other)
            here = pair.Split_type(self.mpi.COMM_TYPE_SHARED)
            self._lanes[other] = Lane(self.mpi, here) if here.size == 2 else None
        lane = self._lanes[other]
        if lane is None:
            return False
        lane.begin(source, target, count, addition)
        self._until(lane.go_on)
        return True

    def _until(self, done: Callable[[], bool | None]) -> None:
        """Poll until something is done; None: it has made progress."""
        looks, nap = 0, NAP
        while not (found := done()):
            if found is None:
                looks, nap = 0, NAP
            looks += 1
            if self.pressing and looks < PRESSED:
                if looks > PATIENT:  # perhaps the other rank waits for this processor
                    os.sched_yield()
            elif self.pressing:
                time.sleep(NAP)
            elif looks > SPINS:
                self._hurry.wait(nap)
                nap = min(2 * nap, self._longest)


def local_size(mpi: Any, communicator: Any) -> int:
    """How many of a communicator's ranks run on this machine; all of them must call this."""
    shared = communicator.Split_type(mpi.COMM_TYPE_SHARED)
    try:
        return int(shared.size)
    finally:
        shared.Free()


_here: list[int] = []  # process ids of this machine's ranks
_witness: list[socket.socket] = []  # the connection to the process that reports a killed rank


def announce(mpi: Any) -> None:
    """Print which process is which rank, and start a witness that reports a killed rank.

    Only if all are on one machine: otherwise ranks may end because another one, elsewhere, has
    ended.
    """
    world, host = mpi.COMM_WORLD, socket.gethostname()
    places = world.allgather((os.getpid(), host))
    # All ranks have mapped MPICH's shared memory by now. Its name goes: MPICH removes it only if
    # the program ends normally, and memory that has a name is never freed (1 MB for each rank).
    for path in re.findall(r"/dev/shm/mpich_shm_\w+$", Path("/proc/self/maps").read_text(), re.M):
        Path(path).unlink(missing_ok=True)
    _here[:] = [pid for pid, other in places if other == host]
    if world.rank == 0:
        listed = ", ".join(f"{rank} is process {pid} on {host}"
                           for rank, (pid, host) in enumerate(places))  # fmt: skip
        print(f"ranks: {listed}", file=sys.stderr, flush=True)
    if len(_here) == len(places):
        where = world.bcast(start_witness(world.size) if world.rank == 0 else None)
        link = socket.socket(socket.AF_UNIX)
        link.connect(where)
        link.send(world.rank.to_bytes(4, "little"))
        link.recv(1)  # the witness knows all ranks
        _witness[:] = [link]


def start_witness(ranks: int) -> str:
    """Start a process that MPI's launcher does not know; returns the socket that it listens on."""
    with socket.socket(socket.AF_UNIX) as listener:
        where = f"\0minigrad {os.getpid()} {os.urandom(8).hex()}"
        listener.bind(where)
        listener.listen(ranks)
        words = [sys.argv[0], launcher(os.getpid()), ranks, listener.fileno()]
        subprocess.Popen(
            [sys.executable, "-IS", witness.__file__, *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            pass_fds=[listener.fileno()],
        )  # fmt: skip
    return where


def dismiss_witness() -> None:
    """Tell the witness that nothing needs to be reported any more."""
    while _witness:
        with suppress(OSError), _witness.pop() as link:
            link.send(b".")


def abort(mpi: Any, error: BaseException) -> NoReturn:
    """End all ranks because of an exception of this one."""
    rank, size = mpi.COMM_WORLD.rank, mpi.COMM_WORLD.size
    code = error.code if isinstance(error, SystemExit) else 1
    status = code if isinstance(code, int) else 1
    if isinstance(error, RankError):
        text = str(error)
    elif isinstance(error, KeyboardInterrupt):
        text = str(error) or "interrupted"
    else:
        if not isinstance(error, MinigradError | KeyboardInterrupt | SystemExit):
            traceback.print_exception(error)
        text = told(rank, error)
    print(f"{sys.argv[0]}: {text}; all {size} ranks are stopped", file=sys.stderr, flush=True)
    time.sleep(0.3)  # the launcher forwards output, but not when it has to end
    dismiss_witness()
    for process in _here:  # a stopped process does not get the request to end
        with suppress(OSError):
            os.kill(process, signal.SIGCONT)
    mpi.COMM_WORLD.Abort(status)
    os._exit(status)  # Abort may return, and the launcher's signal comes later


class Watch:
    """A thread of each rank that sends signs of life, and ends the program if one hangs.

    Signs go to rank 0, which judges, and learns which ranks were told to end. Rank 0's signs go to
    all others, which judge only rank 0.
    """

    TAG = 1

    def __init__(self, mpi: Any, activity: Activity, patience: float) -> None:
        self.mpi, self.activity, self.patience = mpi, activity, patience
        self.communicator = mpi.COMM_WORLD.Dup()
        self.rank, self.size = self.communicator.rank, self.communicator.size
        others = range(1, self.size) if self.rank == 0 else range(1)
        self.signs = {other: Sign("computing", 0.0, 0) for other in others}
        self.clock = activity.clock
        self.heard = dict.fromkeys(others, self.clock.seconds)
        self._sent: list[Any] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="minigrad watch")
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._end.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._end.wait(beat := min(BEAT, self.patience / 4 or BEAT)):
            self.clock.tick(beat)
            self._exchange_signs()
            sentence = self._judge() if self.patience else None
            if sentence is not None:
                abort(self.mpi, RankError(-1, sentence))

    def _exchange_signs(self) -> None:
        self._sent = [request for request in self._sent if not request.Test()]
        if len(self._sent) < 2 * self.size:  # a rank that takes none must not fill our memory
            sign = self.activity.sign()
            for other in self.signs:
                self._sent.append(self.communicator.isend(sign, other, self.TAG))
        for other in self.signs:
            while self.communicator.iprobe(other, self.TAG):
                self.signs[other] = self.communicator.recv(source=other, tag=self.TAG)
                self.heard[other] = self.clock.seconds
                if self.rank == 0 and self.signs[other].asked:
                    pass_on(self.signs[other].asked)

    def _judge(self) -> str | None:
        now = self.clock.seconds
        silence = {other: now - heard for other, heard in self.heard.items()}
        if self.rank == 0:
            return culprit({0: self.activity.sign(), **self.signs}, silence, self.patience)
        # rank 0 first: if it lives, it reports who hangs
        if silence[0] > self.patience + 2 * BEAT and self.signs[0].state != "ended":
            return f"rank 0 hangs: no sign of life for {silence[0]:.0f} s"
        return None


class World:
    """The ranks that MPI has started; this process is one of them."""

    def __init__(self, library: Any, patience: float) -> None:
        if library.Query_thread() < library.THREAD_MULTIPLE:
            raise RankError(
                -1, "this MPI does not support calls from several threads (MPI_THREAD_MULTIPLE)"
            )
        self.library = library
        self.rank, self.size = library.COMM_WORLD.rank, library.COMM_WORLD.size
        self.activity = Activity(Clock())
        with waiting_for_all(patience):
            announce(library)
            share = max(usable_threads() // local_size(library, library.COMM_WORLD), 1)
            self.watch = Watch(library, self.activity, patience)
        self.threads = flag("THREADS") or share
        put("THREADS", self.threads)
        sys.excepthook = self._raised
        atexit.register(self._end)

    def transport(self, ranks: Sequence[int]) -> MPITransport:
        """A transport among some of the ranks; these must all call this."""
        everybody = self.library.COMM_WORLD
        if len(ranks) == self.size:
            return MPITransport(self.library, everybody.Dup())
        members = everybody.Create_group(everybody.Get_group().Incl(list(ranks)))
        return MPITransport(self.library, members)

    def _raised(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """An uncaught exception ends all ranks."""
        abort(self.library, error.with_traceback(trace))

    def _end(self) -> None:
        """Wait for the others; if one has ended abnormally, the watch ends this one."""
        self.activity.enter("ended")
        with suppress(Exception):
            self.library.COMM_WORLD.Barrier()
        dismiss_witness()
        self.watch.close()


_worlds: list[World | None] = []


def world(patience: float | None = None) -> World | None:
    """The ranks of MPI; None if this process was not started as one of several.

    patience: seconds after which a rank counts as hung; by default the setting's.
    """
    if not _worlds:
        limit = float(flag("PATIENCE")) if patience is None else patience
        found = library(limit)
        _worlds.append(None if found is None else World(found, limit))
    ranks = _worlds[0]
    if ranks is not None and patience is not None:
        ranks.watch.patience = patience
    return ranks
