"""A parallel program with one faulty rank: `python -m mpi4py tests/parallel/faulty.py way rank`."""

from __future__ import annotations

import os
import signal
import sys
import threading

from minigrad import Mesh, P, Tensor
from minigrad.models.interrupt import EndedAtOnce
from minigrad.models.parallel import Rank, all_reduce, arrival, run
from minigrad.models.parallel.layouts import ending_all
from minigrad.models.parallel.mpi import world


def fail(way: str) -> None:
    """End this rank, or make it hang, in the given way."""
    if way == "raise":
        raise ValueError("the well is dry")
    if way == "exit":
        sys.exit(3)
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if way.startswith("stop"):
        os.kill(os.getpid(), signal.SIGSTOP)
    nobody = threading.Event()
    while not nobody.wait(0.01):  # hangs, but could be woken
        pass


def program(rank: Rank, way: str, faulty: int) -> float:
    """Some exchanges; one rank fails before the third."""
    total = 0.0
    for step in range(4):
        if step == 2 and rank.number == faulty:
            fail(way)
        total += all_reduce(Tensor([1.0]), rank.world).item()
    return total


def end_at_once(faulty: int) -> None:
    """Ranks of a mesh; one of them is told twice to end."""
    with ending_all():
        if (ranks := world()) is not None and ranks.rank == faulty:
            raise EndedAtOnce(signal.SIGTERM, "stopped at once")


def place(faulty: int) -> None:
    """Ranks of a mesh that are given arrays of the host; one of them has other numbers."""
    with ending_all():
        ranks, mesh = world(), Mesh(dp=3)
        ours = float(ranks is not None and ranks.rank == faulty)
        for number in (0.0, ours):
            Tensor([number, 1.0, 2.0]).shard(mesh, P("dp")).realize()


if __name__ == "__main__":
    if sys.argv[1] == "stop early" and arrival.rank_of(os.getpid()) == int(sys.argv[2]):
        fail("stop")
    if sys.argv[1] == "at once":
        end_at_once(int(sys.argv[2]))
    elif sys.argv[1] == "data":
        place(int(sys.argv[2]))
    else:
        run(lambda rank: program(rank, sys.argv[1], int(sys.argv[2])), 3, patience=2.0)
