"""`--trace`: the timelines of all ranks and mesh devices, written to one file at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigrad.models.console import check_writable
from minigrad.models.errors import failing_as
from minigrad.models.parallel import timeline
from minigrad.models.parallel.mpi import world


@contextmanager
def traced(path: str | Path | None) -> Iterator[None]:
    """Record ranks and mesh devices in the block, and write the file; None: do nothing.

    Under MPI all ranks call this, and rank 0 writes. InputError, before the block, if it could not.
    """
    if path is None:
        yield
        return
    ranks = world()
    if ranks is None or ranks.rank == 0:
        check_writable(Path(path))
    if ranks is not None:
        ranks.library.COMM_WORLD.Barrier()  # times count from here on
    timeline.collect()
    try:
        yield
    finally:
        own = timeline.collected()
    gathered = [own] if ranks is None else ranks.library.COMM_WORLD.gather(own)
    if gathered is not None:
        with failing_as(f"cannot write --trace {path}"):
            timeline.write_trace(Path(path), sorted(pair for part in gathered for pair in part))
