"""`--trace`: the timelines of all ranks and devices of meshes, in one file at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigrad.models.parallel import timeline
from minigrad.models.parallel.mesh_device import world


@contextmanager
def traced(path: str | Path | None) -> Iterator[None]:
    """Record what ranks and devices of meshes do in the block, and write it; None: do neither.

    Under MPI all ranks come here, and rank 0 writes.
    """
    if path is None:
        yield
        return
    ranks = world()
    if ranks is not None:
        ranks.library.COMM_WORLD.Barrier()  # from here on they count time
    timeline.collect()
    try:
        yield
    finally:
        own = timeline.collected()
    gathered = [own] if ranks is None else ranks.library.COMM_WORLD.gather(own)
    if gathered is not None:
        timeline.write_trace(Path(path), sorted(pair for part in gathered for pair in part))
