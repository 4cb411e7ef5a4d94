"""SORT and long running reductions, expressed as operations that are kernels.

Short rows: each element's position is the count of the elements before it. Long rows are sorted by
a radix sort from the lowest byte up (Knuth, "The Art of Computer Programming", volume 3, 5.2.5):
the keys, with their positions in the lower half of a 64-bit word, are distributed by the next byte.
Rows are cut into chunks which count and place their elements independently. Within a bin, the
elements of a chunk follow those of the chunks before it, so each pass is stable.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.axes import merge_axes, pad_along, part_along, split_axis
from minigrad.graph.build import elementwise
from minigrad.graph.node import Node
from minigrad.graph.operations import SCANS, STEPS, Op
from minigrad.graph.rewrite import remade
from minigrad.graph.scans import along, shift
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Affine, ceildiv
from minigrad.schedule.stage import identity
from minigrad.target import FEW_ROWS

# The longest row that is sorted by counting, in time that is quadratic in its length.
BY_COUNTING = 128
# Elements of a row that one thread puts into bins: 128 for each of 256 bins, so that they are most
# of the work, not the counts. With their keys they are 256 KiB.
SORT_CHUNK = 1 << 15
SCAN_BLOCK = 1 << 12  # elements of a running reduction that are serial: 16 KiB of float32


def expand_sorts(roots: Sequence[Node]) -> list[Node]:
    """The graph with SORTs and long running reductions replaced by other operations."""
    return remade(roots, _expanded)


def _expanded(node: Node, src: Sequence[Node]) -> Node:
    known = build.rebuild(node, src)
    if known.op is Op.SORT:
        (known,) = expand_sorts([_sorted(known.src[0], known.arg)])
    return _blocks(known) if known.op in SCANS else known


# --- sorting -------------------------------------------------------------------------------------


def _sorted(keys: Node, axis: int) -> Node:
    """The stable permutation along an axis."""
    extent = keys.shape[axis]
    assert isinstance(extent, int)
    if extent <= BY_COUNTING or any(isinstance(e, Affine) for e in keys.shape):
        return _by_counting(keys, axis)
    last = [d for d in range(keys.ndim) if d != axis] + [axis]
    moved = build.permute(keys, last)
    rows = build.reshape(moved, (numel(moved.shape[:-1]), extent))
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
        half = keys.cast(dtypes.uint64) >> low if low else keys.cast(dtypes.uint64)
        part = half.cast(dtypes.uint32)
        if low:  # stored, because each is read twice and would be gathered twice
            part = build.contiguous(build.gather(part, order, 1))
        order = _passes(part, order, min(keys.dtype.bits, 32))
    return order


def _passes(keys: Node, order: Node, bits: int) -> Node:
    """Stable order by 32-bit keys with `bits` used bits; order: the positions they stand for."""
    rows, length = (int(extent) for extent in keys.shape)  # type: ignore[arg-type]
    chunks = ceildiv(length, SORT_CHUNK)
    chunk = ceildiv(length, chunks)
    shape = (rows, chunks * chunk)
    packed = keys.cast(dtypes.uint64) << 32 | order.cast(dtypes.uint64)
    if shape[1] != length:  # the padding of the last chunk sorts after all keys
        filled = pad_along(packed, 1, 0, shape[1] - length)
        packed = along(filled, 1).less(length).where(filled, 2**64 - 1)
    for low in range(0, bits, 8):
        packed = _pass(build.reshape(packed, (rows * chunks, chunk)), rows, chunks, 32 + low)
        packed = build.reshape(packed, shape)
    return part_along(packed, 1, 0, length).cast(dtypes.int32)


def _pass(packed: Node, rows: int, chunks: int, low: int) -> Node:
    """Distribute all chunks (rows·chunks, chunk) by the byte that starts at bit `low`."""
    bin = (packed >> low).cast(dtypes.uint8)
    ones = bin.constant(1, dtypes.int32)
    zeros = build.const(0, dtypes.int32, (rows * chunks, 256), packed.device)
    counts = build.scatter_add(zeros, bin.cast(dtypes.int32), ones, 1)
    in_order = build.permute(build.reshape(counts, (rows, chunks, 256)), (0, 2, 1))
    line = build.reshape(in_order, (rows, 256 * chunks))
    first = build.scan(Op.CUMSUM, line, 1) - line  # elements in earlier bins, or of earlier chunks
    length = int(packed.shape[1])  # type: ignore[arg-type]
    first = build.reshape(first + along(first, 0) * (chunks * length), (rows, 256, chunks))
    starts = build.reshape(build.permute(first, (0, 2, 1)), (rows * chunks, 256))
    return build.distribute(starts, bin, packed)


# --- cumulative operations -----------------------------------------------------------------------


def _blocks(node: Node) -> Node:
    """A long running reduction with few rows, in blocks.

    Blocks are reduced, the results are scanned, and each block continues from there.
    The cut depends on the shape only, so results do not depend on the number of threads.
    """
    x, axis = node.src[0], node.arg
    extent = x.shape[axis]
    assert isinstance(extent, int)
    if any(isinstance(e, Affine) for e in x.shape) or extent <= 2 * SCAN_BLOCK:
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
