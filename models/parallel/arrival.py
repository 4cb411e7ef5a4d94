"""Finds the rank that all others wait for before MPI has connected the processes.

A rank that waits for all others has a mark: a file in memory that it holds open. Its environment
says which rank it is. A rank that has waited for too long looks through the processes of its
machine: the rank at fault is the one that was stopped, or that has no mark.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minigrad.graph.node import grouped
from minigrad.models.parallel.faults import Clock

MARK = "minigrad waits for all ranks"
NUMBERS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")  # of known launchers
BEAT = 0.5  # seconds between looks


@contextmanager
def waiting_for_all(patience: float) -> Iterator[None]:
    """For a block that ends when all ranks have reached it.

    Ends all ranks on this machine if that takes more than `patience` seconds (0: never).
    """
    mark, come = os.memfd_create(MARK), threading.Event()
    watch = threading.Thread(target=_watch, args=(come, patience), daemon=True)
    if patience:
        watch.start()
    try:
        yield
    finally:
        come.set()
        os.close(mark)


def _watch(come: threading.Event, patience: float) -> None:
    beat, clock = min(BEAT, patience / 4), Clock()
    while not come.wait(beat):
        clock.tick(beat)
        if clock.seconds < patience:
            continue
        ranks = ranks_here()
        there = [rank for rank, pids in ranks.items() if any(map(_waits, pids))]
        late = sorted(set(ranks) - set(there))
        # one of them reports; a machine where all are present lets the others look first
        mine = rank_of(os.getpid())
        turn = there.index(mine) if mine in there else len(there)
        if clock.seconds > patience + 4 * BEAT * (turn + (not late)):
            _end(ranks, _sentence(ranks, late, clock.seconds))


def _sentence(ranks: dict[int, list[int]], late: list[int], seconds: float) -> str:
    waited = f"the others have waited for {seconds:.0f} s"
    if not late:
        here = ", ".join(map(str, sorted(ranks)))
        return f"a rank on another machine is missing: ranks {here} have waited for {seconds:.0f} s"
    if any(_state(pid) in "Tt" for pid in ranks[late[0]]):
        return f"rank {late[0]} hangs: its process was stopped before it started, and {waited}"
    return f"rank {late[0]} hangs: it has not started, and {waited}"


def _end(ranks: dict[int, list[int]], text: str) -> None:
    """Print the sentence, and end the ranks on this machine; MPI's launcher ends the others."""
    print(f"{sys.argv[0]}: {text}; all ranks are stopped", file=sys.stderr, flush=True)
    time.sleep(0.3)  # the launcher forwards output, but not when it has to end
    for pid in (pid for pids in ranks.values() for pid in pids if pid != os.getpid()):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(1)


def ranks_here() -> dict[int, list[int]]:
    """The processes of this job's ranks on this machine, by rank, in order."""
    own = launcher(os.getpid())
    pids = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return dict(sorted(grouped(
        (rank, pid) for pid in pids
        if (rank := rank_of(pid)) is not None and launcher(pid) == own
    ).items()))  # fmt: skip


def rank_of(pid: int) -> int | None:
    """The rank number that a launcher has given to a process."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or gone
        return None
    pairs = dict(entry.split(b"=", 1) for entry in variables if b"=" in entry)
    given = (pairs.get(name.encode(), b"") for name in NUMBERS)
    return next((int(number) for number in given if number.isdigit()), None)


def launcher(pid: int) -> int:
    """The nearest process above a rank's processes that does not belong to that rank."""
    rank = rank_of(pid)
    while pid > 1 and rank_of(pid) == rank:
        pid = int((_stat(pid) or ["", "0"])[1])
    return pid


def _waits(pid: int) -> bool:
    """Whether a process runs and has the mark."""
    with suppress(OSError):
        marks = Path(f"/proc/{pid}/fd").iterdir()
        return _state(pid) not in "TtZ" and any(MARK in os.readlink(mark) for mark in marks)
    return False


def _state(pid: int) -> str:
    return (_stat(pid) or ["Z"])[0]


def _stat(pid: int) -> list[str]:
    """State, parent and the other fields of a process in /proc; [] if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
