"""SORT and long running reductions, expressed as operations that are kernels.

Short rows: each element's position is the count of the elements before it. Long rows are sorted by
a radix sort from the lowest byte up (Knuth, "The Art of Computer Programming", volume 3, 5.2.5):
the keys, with their positions in the lower half of a 64-bit word, are distributed by the next byte.
Rows are cut into chunks which count and place their elements independently. Within a bin, the
elements of a chunk follow those of the chunks before it, so each pass is stable. A row whose length
varies is one chunk.

If only the first elements of a sorted row are read, these are selected instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.axes import merge_axes, pad_along, part_along, split_axis
from minigrad.graph.build import elementwise
from minigrad.graph.node import Node, is_symbolic, topological
from minigrad.graph.operations import SCANS, STEPS, Op
from minigrad.graph.rewrite import remade
from minigrad.graph.scans import along, shift
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Integer, ceildiv, high
from minigrad.schedule.stage import identity
from minigrad.target import FEW_ROWS

# The longest row that is sorted by counting, in time that is quadratic in its length.
BY_COUNTING = 128
# Elements of a row that one thread puts into bins: 128 for each of 256 bins, so that they are most
# of the work, not the counts. With their keys they are 256 KiB.
SORT_CHUNK = 1 << 15
SCAN_BLOCK = 1 << 12  # elements of a running reduction that are serial: 16 KiB of float32


# The smallest keys of blocks are looked at first if a row has at least SELECTION keys, and EACH for
# every one that is taken: 1.2 to 85 times as fast as sorting all (1 and 64 rows of 130 … 16,384, on
# two cores).
SELECTION, EACH = 129, 16
MOST_PASSES = 16  # up to so many keys are selected one by one, each by a pass over its row


def expand_sorts(roots: Sequence[Node]) -> list[Node]:
    """The graph with SORTs and long running reductions replaced by other operations."""
    order = topological(roots)
    if not any(node.op is Op.SORT or node.op in SCANS for node in order):
        return list(roots)
    taken = _taken(roots, order)
    return remade(roots, lambda node, src: _expanded(node, src, taken))


def _taken(roots: Sequence[Node], order: Sequence[Node]) -> dict[Node, Integer]:
    """How many elements of each SORT's rows are read, if only SHRINKs read it."""
    taken: dict[Node, Integer] = {}
    for node in order:
        for source in node.src:
            if source.op is Op.SORT:
                before, axis = taken.get(source, 0), source.arg
                stop = node.arg[axis][1] if node.op is Op.SHRINK else source.shape[axis]
                taken[source] = stop if high(stop) > high(before) else before
    return {node: taken[node] for node in taken.keys() - {*roots}}


def _expanded(node: Node, src: Sequence[Node], taken: Mapping[Node, Integer]) -> Node:
    known = build.rebuild(node, src)
    if known.op is Op.SORT:
        keys, axis, count = known.src[0], known.arg, taken.get(node)
        order = None
        if isinstance(count, int) and 0 < count < high(keys.shape[axis]):
            order = _selected(keys, axis, count)
        (known,) = expand_sorts([_sorted(keys, axis) if order is None else order])
    return _blocks(known) if known.op in SCANS else known


# --- sorting -------------------------------------------------------------------------------------


def _sorted(keys: Node, axis: int) -> Node:
    """The stable permutation along an axis."""
    extent = keys.shape[axis]
    others = [d for d in range(keys.ndim) if d != axis]
    varying = [d for d in others if not isinstance(keys.shape[d], int)]
    if high(extent) <= BY_COUNTING or len(varying) > 1:
        return _by_counting(keys, axis)
    last = [*varying, *(d for d in others if d not in varying), axis]
    moved = build.permute(keys, last)
    rows = build.reshape(moved, (math.prod(moved.shape[:-1]), extent))
    order = build.reshape(_by_radix(rows), moved.shape)
    return build.permute(order, sorted(range(keys.ndim), key=last.__getitem__))


def _by_counting(keys: Node, axis: int) -> Node:
    """The permutation by counting: a key's position is the number of keys before it in order."""
    extent = keys.shape[axis]
    wide = (*keys.shape[:axis], extent, extent, *keys.shape[axis + 1 :])
    place = along(keys, axis)
    (a, mine), (b, other) = (
        [build.expand(split_axis(x, axis, *extents), wide) for x in (keys, place)]
        for extents in ((extent, 1), (1, extent))
    )
    before = b.less(a) | (a.equals(b) & other.less(mine))
    rank = build.reduce(Op.SUM, before.cast(dtypes.int32), (axis + 1,))
    return build.scatter_add(place.constant(0), build.reshape(rank, keys.shape), place, axis)


def _by_radix(keys: Node) -> Node:
    """The permutation of each row of keys (rows, length)."""
    order = along(keys, 1)
    for low in range(0, keys.dtype.bits, 32):  # 64-bit keys: by their lower halves, then the upper
        part = (keys.cast(dtypes.uint64) >> low).cast(dtypes.uint32)
        part = build.gather(part, order, 1) if low else part
        order = _passes(part, order, min(keys.dtype.bits, 32))
    return order


def _passes(keys: Node, order: Node, bits: int) -> Node:
    """Stable order by 32-bit keys with `bits` used bits; order: the positions they stand for."""
    rows, length = keys.shape
    chunks = ceildiv(length, SORT_CHUNK) if isinstance(length, int) else 1
    chunk = ceildiv(length, chunks)
    packed = keys.cast(dtypes.uint64) << 32 | order.cast(dtypes.uint64)
    # stored, because vectors compute it faster than two loops of a pass that read single elements
    packed = build.contiguous(_filled(packed, 1, chunks * chunk))
    for low in range(0, bits, 8):
        packed = _pass(build.reshape(packed, (rows * chunks, chunk)), rows, chunks, 32 + low)
        packed = build.reshape(packed, (rows, chunks * high(chunk)))
        packed = part_along(packed, 1, 0, chunks * chunk)
    return part_along(packed, 1, 0, length).cast(dtypes.int32)


def _filled(keys: Node, axis: int, extent: Integer) -> Node:
    """Keys up to an extent: those added at the end sort after all others."""
    return ~pad_along(~keys, axis, 0, extent - keys.shape[axis])


def _pass(packed: Node, rows: Integer, chunks: int, low: int) -> Node:
    """Distribute all chunks (rows·chunks, chunk) by the byte that starts at bit `low`."""
    bin = (packed >> low).cast(dtypes.uint8)
    zeros = build.const(0, dtypes.int32, (rows * chunks, 256), packed.device)
    counts = build.scatter_add(zeros, bin, bin.constant(1, dtypes.int32), 1)
    in_order = build.permute(build.reshape(counts, (rows, chunks, 256)), (0, 2, 1))
    line = build.reshape(in_order, (rows, 256 * chunks))
    first = build.scan(Op.CUMSUM, line, 1) - line  # elements in earlier bins, or of earlier chunks
    place = along(first, 0) * (chunks * high(packed.shape[1]))
    first = build.reshape(first + place, (rows, 256, chunks))
    starts = build.reshape(build.permute(first, (0, 2, 1)), (rows * chunks, 256))
    return build.distribute(starts, bin, packed)


# --- the first elements ---------------------------------------------------------------------------


def _selected(keys: Node, axis: int, count: int) -> Node | None:
    """The positions of the `count` smallest keys along an axis; None: sort all."""
    extent = keys.shape[axis]
    if isinstance(extent, int) and SELECTION <= extent >= EACH * count:
        last = keys.ndim - 1
        order = [*range(axis), *range(axis + 1, last + 1), axis]
        found = _smallest(build.permute(keys, order), count)
        return build.permute(found, sorted(range(keys.ndim), key=order.__getitem__))
    return _one_by_one(keys, axis, count)


def _one_by_one(keys: Node, axis: int, count: int) -> Node | None:
    """The positions of a few smallest keys along an axis, by a pass over its row for each."""
    if count > MOST_PASSES or keys.dtype.itemsize > 4:
        return None
    place = along(keys, axis).cast(dtypes.uint64)
    words = (~keys.cast(dtypes.uint32)).cast(dtypes.uint64) << 32 | (place ^ (1 << 32) - 1)
    found = [build.reduce(Op.MAX, words, (axis,))]  # the smallest key, the first of equal ones
    while len(found) < count:
        rest = words.less(build.expand(found[-1], words.shape)).where(words, 0)
        found.append(build.reduce(Op.MAX, rest, (axis,)))
    return build.bitcast((~build.cat(found, axis)).cast(dtypes.uint32), dtypes.int32)


def _smallest(keys: Node, count: int) -> Node:
    """The positions of the `count` smallest keys of each row (the last axis).

    They lie in the blocks with the `count` smallest minima: any other element comes after these
    minima. So only the minima are sorted, and then the elements of those blocks.
    """
    last, extent = keys.ndim - 1, high(keys.shape[-1])
    length = max(math.isqrt(extent // count), 1)
    blocks = ceildiv(extent, length)
    padded = _filled(keys, last, blocks * length)
    inverse = ~split_axis(padded, last, blocks, length)
    minima = split_axis(~build.reduce(Op.MAX, inverse, (last + 1,)), last + 1)
    best = _first(minima, last, count).cast(dtypes.uint32)
    best = build.gather(best, build.sort(best, last), last).cast(dtypes.int32)
    inside = (*best.shape, length)
    wide = build.expand(split_axis(best, last, count, 1), inside) * length
    places = merge_axes(wide + along(wide, last + 1), last)
    order = _first(build.gather(padded, places, last), last, count)
    return build.gather(places, order, last)


def _first(keys: Node, axis: int, count: int) -> Node:
    """As `_selected`, but without looking at blocks first."""
    order = _one_by_one(keys, axis, count)
    return part_along(build.sort(keys, axis), axis, 0, count) if order is None else order


# --- cumulative operations -----------------------------------------------------------------------


def _blocks(node: Node) -> Node:
    """A long running reduction with few rows, in blocks.

    Blocks are reduced, the results are scanned, and each block continues from there.
    The cut depends on the shape only, so results do not depend on the number of threads.
    """
    x, axis = node.src[0], node.arg
    extent = x.shape[axis]
    if not isinstance(extent, int) or is_symbolic(x.shape) or extent <= 2 * SCAN_BLOCK:
        return node
    if numel(x.shape) >= FEW_ROWS * extent:
        return node
    reduction = SCANS[node.op]
    block = next((b for b in range(SCAN_BLOCK, SCAN_BLOCK // 8, -1) if extent % b == 0), SCAN_BLOCK)
    blocks = ceildiv(extent, block)
    cut = split_axis(pad_along(x, axis, 0, blocks * block - extent), axis, blocks, block)
    whole = build.reduce(reduction, cut, (axis + 1,))
    before = shift(build.scan(node.op, whole, axis), axis, identity(reduction, x.dtype).value)
    step = STEPS[reduction][0]
    carried = elementwise(step, build.expand(before, cut.shape), cut)
    entering = along(cut, axis + 1).equals(0).where(carried, cut)
    done = merge_axes(build.scan(node.op, entering, axis + 1), axis)
    return part_along(done, axis, 0, extent)
