"""Where a mask is true: its elements are counted by chunks, and each chunk writes its places."""

from __future__ import annotations

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.axes import pad_along, repeat_along, split_axis
from minigrad.graph.node import Node, Op
from minigrad.graph.scans import along
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import ceildiv

CHUNK = 8192  # elements that one thread goes through in order


def selected(mask: Node) -> tuple[Node, Node]:
    """The places (int32) of a flat mask where it is true, in order, and their number (1,).

    There is room for all of them; what lies behind the last one has no value.
    """
    length = numel(mask.shape)
    rows = ceildiv(length, CHUNK)
    chunk = ceildiv(length, rows)
    flags = split_axis(pad_along(mask, 0, 0, rows * chunk - length), 0, rows, chunk)
    counts = build.reduce(Op.SUM, flags.cast(dtypes.int32), (1,))
    until = build.scan(Op.CUMSUM, counts, 0)
    count = build.shrink(until, [(rows - 1, rows), (0, 1)])
    # A pass of a counting sort: what is true goes to bin 1, and all else behind that, for to write
    # it nowhere would take a branch that no processor foresees.
    first = repeat_along(until - counts, 1, 256)  # true in the chunks before
    behind = build.expand(count, first.shape) + (along(first, 0) * chunk - first)
    starts = along(first, 1).equals(1).where(first, behind)
    places = split_axis(build.iota(rows * chunk, mask.device), 0, rows, chunk)
    found = build.distribute(starts, flags.cast(dtypes.uint8), places)
    return found, build.reshape(count, (1,))
