"""The same cases on both transports: threads of this process, and processes of MPI."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minigrad.models.parallel import Mesh, run

TESTS = Path(__file__).resolve().parent.parent
LIMIT = 240  # seconds; a job that takes longer is stuck


def mpiexec() -> str:
    """The launcher of this environment's MPI, which the extra `mpi` installs beside Python."""
    own = Path(sys.executable).parent / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec")
    assert found, "mpiexec is missing: pip install '.[mpi]'"
    return found


def start(
    arguments: Sequence[str], ranks: int, extra: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a Python program on so many processes; it is the leader of a session of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]]),
                   "HYDRA_LAUNCHER": "fork", **(extra or {})}  # fmt: skip
    return subprocess.Popen(
        [mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", *arguments],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def on_ranks(kind: str, case: Callable[..., Any], mesh: int | Mesh, *more: Any) -> list[Any]:
    """What case(rank, *more) returns on each rank; kind is "local" or "mpi"."""
    if kind == "local":
        return run(lambda rank: case(rank, *more), mesh)
    places = mesh if isinstance(mesh, Mesh) else Mesh(mesh)
    return on_mesh("parallel.ranks", places.size, packed(case, places, *more))


def on_mesh(module: str, ranks: int, *more: str) -> list[Any]:
    """What a module prints at rank 0 that runs on so many: it makes its meshes itself."""
    process = start(["-m", module, *more], ranks)
    try:
        out, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0, out + errors
    found: list[Any] = pickle.loads(bytes.fromhex(out.splitlines()[-1]))
    return found


def packed(case: Callable[..., Any], mesh: Mesh, *more: Any) -> str:
    """A case as an argument of this module."""
    return pickle.dumps((case.__module__, case.__name__, mesh, more)).hex()


def main() -> None:
    """One process of a case: rank 0 prints what all returned."""
    import importlib

    module, name, mesh, more = pickle.loads(bytes.fromhex(sys.argv[1]))
    case = getattr(importlib.import_module(module), name)
    results = run(lambda rank: case(rank, *more), mesh)
    if mesh.size > 1:
        from mpi4py import MPI

        gathered = MPI.COMM_WORLD.gather(results[MPI.COMM_WORLD.rank])
        if gathered is None:
            return
        results = gathered
    print(pickle.dumps(results).hex())


if __name__ == "__main__":
    main()
