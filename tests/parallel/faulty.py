"""A parallel program with one faulty rank: `python -m mpi4py tests/parallel/faulty.py way rank`."""

from __future__ import annotations

import os
import signal
import sys
import threading

from minigrad import Tensor
from minigrad.models.parallel import Rank, all_reduce, arrival, run


def fail(way: str) -> None:
    """End this rank, or let it hang, in some way."""
    if way == "raise":
        raise ValueError("the well is dry")
    if way == "exit":
        sys.exit(3)
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if way.startswith("stop"):
        os.kill(os.getpid(), signal.SIGSTOP)
    nobody = threading.Event()
    while not nobody.wait(0.01):  # hangs, though it could be woken
        pass


def program(rank: Rank, way: str, faulty: int) -> float:
    """Some exchanges, before which one rank fails."""
    total = 0.0
    for step in range(4):
        if step == 2 and rank.number == faulty:
            fail(way)
        total += all_reduce(Tensor([1.0]), rank.world).item()
    return total


if __name__ == "__main__":
    if sys.argv[1] == "stop early" and arrival.rank_of(os.getpid()) == int(sys.argv[2]):
        fail("stop")
    run(lambda rank: program(rank, sys.argv[1], int(sys.argv[2])), 3, patience=2.0)
