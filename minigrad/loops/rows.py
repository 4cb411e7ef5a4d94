"""The recipe "rows": each stage computes its part of a row from its producers' parts.

Vectors run along the row (the row stays in the cache, see row_passes.py) or across neighbouring
rows (see row_vectors.py); fuse.py tells which is cheaper.

Results that pass by the cache go to memory at once, at a speed of their own: a pass that does
little else waits for memory, while the passes before it leave memory alone. So the last pass of a
row, if it writes such results, shares the loop of the next row's longest pass. (Measured with one
core of a Zen 5 class machine: a softmax of 64 MiB takes 3.2 ms instead of 3.8.)
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph.symbolic import Atom, Integer, high
from minigrad.loops.assemble import MOST_CHUNKS, assemble, in_long_runs
from minigrad.loops.axes import fix_rows, kept_inside, merge_stage, row_axis
from minigrad.loops.build import loops_over
from minigrad.loops.nest import Nest
from minigrad.loops.row_passes import Pass, prefetches, row_passes
from minigrad.loops.row_vectors import row_vectors
from minigrad.loops.transforms import Schedule
from minigrad.schedule import expr
from minigrad.schedule.expr import Array
from minigrad.schedule.fuse import runs_along_rows
from minigrad.schedule.schedule import Kernel
from minigrad.target import Target

# Rows that follow one another; the first, one in 16, has no pass of a row before it to share. There
# are at least as many blocks as chunks (see assemble.py).
BLOCK_ROWS = 16


def rows(kernel: Kernel, target: Target, name: str) -> Nest:
    """Row after row, or vectors of rows."""
    count = kernel.rows
    if target.vector_bytes and high(count) > 1 and runs_along_rows(kernel.stages, count, target):
        return row_vectors(kernel, target, name)
    row = row_axis(count)
    stages = [fix_rows(stage, count, row.index) for stage in kernel.stages]
    stages = [merge_stage(stage) for stage in kept_inside(stages, kernel, row.index)]
    passes = row_passes(stages, kernel.stored, target)
    s = Schedule(loops_over([row], [statement for one in passes for statement in one.body]))
    for one in passes:
        for axis, width in one.axes:
            s.vectorize(axis.variable, width)
    for axis, places in prefetches(passes, row, target).items():
        s.prefetch(axis.variable, places)
    delayed = _delayed(passes, count, target)
    if delayed is not None:
        s.pipeline(row.variable, *delayed)
    return in_long_runs(assemble(name, kernel, s.nest, target))


def _delayed(
    passes: Sequence[Pass], count: Integer, target: Target
) -> tuple[Atom, int, frozenset[Array]] | None:
    """The loop that the last pass of the row before may share, rows of a block, what is kept twice.

    None where nothing is gained by it.
    """
    *early, last = passes
    sizes = (BLOCK_ROWS >> n for n in range(BLOCK_ROWS.bit_length() - 2))
    size = next((n for n in sizes if isinstance(count, int) and count >= MOST_CHUNKS * n), None)
    hosts = [one for one in early if one.vector and one.extent == last.extent]
    if size is None or not hosts or not last.vector or not last.only_streams:
        return None
    loads = [load for stage in last.stages for load in expr.loads(stage.body)]
    kept = frozenset(load.array for load in loads if load.array.space == "scratch")
    if sum(array.size * array.dtype.itemsize for array in kept) > target.l2 // 8:
        return None
    host = max(hosts, key=lambda one: one.operations)
    return host.axes[0][0].variable, size, kept
