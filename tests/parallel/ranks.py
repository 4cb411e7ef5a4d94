"""The same cases on both transports: threads of this process, and processes of MPI."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from minigrad.models.parallel import run

from .cases import OVER_MPI

TESTS = Path(__file__).resolve().parent.parent
LIMIT = 240  # seconds after which a job counts as stuck


def mpiexec() -> str:
    """The launcher of this environment's MPI, which the extra `mpi` installs beside Python."""
    own = Path(sys.executable).parent / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec")
    assert found, "mpiexec is missing: pip install '.[mpi]'"
    return found


def start(
    arguments: Sequence[str], ranks: int, extra: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a Python program on this number of processes, in a new session."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]]),
                   "HYDRA_LAUNCHER": "fork", **(extra or {})}  # fmt: skip
    return subprocess.Popen(
        [mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", *arguments],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def on_ranks(kind: str, case: Callable[..., Any], ranks: int, *more: Any) -> list[Any]:
    """The results of case(rank, *more), rank by rank; kind: "local" or "mpi"."""
    if kind == "local":
        return run(lambda rank: case(rank, *more), ranks)
    return over_mpi(ranks)[case.__name__, more]


@cache
def over_mpi(ranks: int) -> dict[tuple[str, tuple[Any, ...]], list[Any]]:
    """Results of all cases of `OVER_MPI`, from one job, because starting ranks takes seconds."""
    known = OVER_MPI[ranks]
    found = alone(ranks, *known)
    return {(case.__name__, tuple(more)): some
            for (case, *more), some in zip(known, found, strict=True)}  # fmt: skip


def alone(ranks: int, *some: tuple[Any, ...]) -> list[list[Any]]:
    """Results of some cases (case, *more) on each rank, in a job of their own."""
    return on_mesh("parallel.ranks", ranks, packed(ranks, *some))


def on_mesh(module: str, ranks: int, *more: str) -> list[Any]:
    """What rank 0 prints when a module runs on `ranks` processes; the module makes its own meshes.
    """
    process = start(["-m", module, *more], ranks)
    try:
        out, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0, out + errors
    found: list[Any] = pickle.loads(bytes.fromhex(out.splitlines()[-1]))
    return found


def packed(ranks: int, *some: tuple[Any, ...]) -> str:
    """Some cases, as an argument of this module."""
    return pickle.dumps((ranks, some)).hex()


def main() -> None:
    """One process of a job; rank 0 prints the results of all ranks, case by case."""
    ranks, some = pickle.loads(bytes.fromhex(sys.argv[1]))
    found = [run(lambda rank, case=case, more=more: case(rank, *more), ranks)
             for case, *more in some]  # fmt: skip
    from mpi4py import MPI  # not before `run`, which initializes MPI

    own = [results[MPI.COMM_WORLD.rank] for results in found]
    gathered = MPI.COMM_WORLD.gather(own)
    if gathered is not None:
        print(pickle.dumps([*map(list, zip(*gathered, strict=True))]).hex())


if __name__ == "__main__":
    main()
