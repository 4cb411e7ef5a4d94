"""Where a mask is true: its elements are counted by chunks, and each chunk writes its places."""

from __future__ import annotations

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.build import elementwise
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
    padded = build.pad(mask, [(0, rows * chunk - length)])
    flags = build.reshape(padded, (rows, chunk))
    counts = build.reduce(Op.SUM, build.cast(flags, dtypes.int32), (1,))
    until = build.scan(Op.CUMSUM, counts, 0)
    count = build.shrink(until, [(rows - 1, rows), (0, 1)])
    # A pass of a counting sort: what is true goes to bin 1, and all else behind that, for to write
    # it nowhere would take a branch that no processor foresees.
    wide = (rows, 256)
    first = build.expand(elementwise(Op.SUB, until, counts), wide)  # true in the chunks before
    before = elementwise(Op.MUL, along(first, 0), _full(chunk, first))
    others = elementwise(Op.SUB, before, first)
    behind = elementwise(Op.ADD, build.expand(count, wide), others)
    starts = elementwise(Op.WHERE, elementwise(Op.EQ, along(first, 1), _full(1, first)),
                         first, behind)  # fmt: skip
    places = build.reshape(build.iota(rows * chunk, mask.device), (rows, chunk))
    found = build.distribute(starts, build.cast(flags, dtypes.uint8), places)
    return found, build.reshape(count, (1,))


def _full(value: int, like: Node) -> Node:
    return build.const(value, like.dtype, like.shape, like.device)
