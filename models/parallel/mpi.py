"""Ranks that are processes, of one machine or of many: messages go through MPI (mpi4py)."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from minigrad.collective import Addition
from minigrad.errors import MinigradError
from minigrad.models.interrupt import pass_on
from minigrad.models.parallel import witness
from minigrad.models.parallel.arrival import launcher, waiting_for_all
from minigrad.models.parallel.faults import Activity, RankError, Sign, culprit, told
from minigrad.models.parallel.lane import Lane

SPINS = 50  # looks at a message before the first nap
PATIENT, PRESSED = 20, 3000  # the same where a kernel waits: a few milliseconds
NAP = 50e-6  # seconds
# Naps grow while nobody waits, as each look costs the kernels 30 µs: up to what may delay a rank
# that waits at the other end of an exchange; of what was sent ahead, and goes when somebody looks;
# and the same on one machine, where who receives reads it without the sender.
LONGEST_NAP, LONGEST_AHEAD, LONGEST_HERE = 200e-6, 1e-3, 20e-3
BEAT = 0.5  # seconds between signs of life


def library(patience: float) -> Any:
    """The module `mpi4py.MPI`, where this process was started as one of several by MPI.

    None where it was not: MPI is then neither imported nor initialised. patience: seconds after
    which a rank that does not begin, so that all wait for it, counts as hung (0: never).
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
        # Not by mpi4py: it would hold the interpreter's lock while it waits for the other ranks.
        begin = ctypes.CDLL(MPI.__file__).MPI_Init_thread
        with waiting_for_all(patience):
            begin(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
        MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)  # mpi4py raises what it returns
    return MPI if MPI.COMM_WORLD.size > 1 else None


class MPITransport:
    """One rank of a communicator, all of which come here: see `minigrad.collective.Transport`.

    Memory is handed to MPI as it is, without a copy.
    """

    def __init__(self, mpi: Any, communicator: Any) -> None:
        self.mpi, self.communicator = mpi, communicator
        self.rank, self.size = communicator.rank, communicator.size
        self._hurry, self._longest = threading.Event(), LONGEST_NAP
        self._lanes: dict[int, Lane | None] = {}
        self._ahead = LONGEST_HERE if local_size(mpi, communicator) == self.size else LONGEST_AHEAD

    def __copy__(self) -> MPITransport:
        """Another one of the same messages, for those who send ahead."""
        other = object.__new__(MPITransport)
        vars(other).update(vars(self), _hurry=threading.Event(), _longest=self._ahead, _lanes={})
        return other

    @property
    def pressing(self) -> bool:
        """See `Transport`; ends a nap."""
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
        """Return when all are done.

        MPI makes progress only while somebody looks, so a nap while nobody is pressing costs
        bandwidth, and looking all the time would cost the kernels their processor.
        """
        try:
            self._until(lambda: self.mpi.Request.Testall(requests))
        except self.mpi.Exception as error:
            raise RankError(
                self.rank, f"an exchange of rank {self.rank} failed: {error}: all ranks must make "
                "the same exchanges in the same order"
            ) from None  # fmt: skip

    def add(self, other: int, source: int, target: int, count: int, addition: Addition) -> bool:
        """See `Transport`. Memory is shared with ranks that are of one machine, as MPI sees it."""
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
        """Look until something is done; None: it has come on a bit."""
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
    """How many of a communicator's ranks run on this machine; all of them come here."""
    shared = communicator.Split_type(mpi.COMM_TYPE_SHARED)
    try:
        return int(shared.size)
    finally:
        shared.Free()


_here: list[int] = []  # the processes of this machine's ranks
_witness: list[socket.socket] = []  # the connection to who says which of them was killed


def announce(mpi: Any) -> None:
    """Say which process is which rank, and let somebody look on who is killed.

    That only where all are on one machine: elsewhere the ends of some have that of another as their
    cause.
    """
    world, host = mpi.COMM_WORLD, socket.gethostname()
    places = world.allgather((os.getpid(), host))
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
    """Start a process of which MPI's launcher does not know; gives the socket where it listens."""
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
    """What comes now needs nobody who tells of it."""
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
    time.sleep(0.3)  # the launcher passes on what was said, but ends without it when it must end
    dismiss_witness()
    for process in _here:  # a stopped process does not hear that it is to end
        with suppress(OSError):
            os.kill(process, signal.SIGCONT)
    mpi.COMM_WORLD.Abort(status)
    os._exit(status)  # it may return, and the launcher's signal comes later


class Watch:
    """A thread of each rank that gives signs of life, and ends the program where one hangs.

    Signs go to rank 0, which judges, and hears who was told to end; rank 0's go to all others,
    which judge rank 0 only.
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
        # rank 0 first: where it lives, it is the one to say who hangs
        if silence[0] > self.patience + 2 * BEAT and self.signs[0].state != "ended":
            return f"rank 0 hangs: no sign of life for {silence[0]:.0f} s"
        return None
