"""What SORT and long running reductions are made of: operations that are kernels.

A sort counts, for each element of a short row, those before it. A long row is sorted by a radix
sort from the lowest byte up (Knuth, "The Art of Computer Programming", volume 3, 5.2.5): the keys,
with their positions in the lower half of a 64-bit word, are put bin by bin by the next byte. Rows
are cut into chunks which count and place their elements independently; since a chunk's places
within a bin follow those of the chunks before it, each pass is stable.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.dtype import DType, dtypes
from minigrad.graph import build
from minigrad.graph.build import elementwise
from minigrad.graph.node import Node, Shape, topological
from minigrad.graph.operations import SCANS, Op
from minigrad.graph.scans import along, shift
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Affine, ceildiv
from minigrad.schedule.stage import identity
from minigrad.target import FEW_ROWS

# Keys of a row that are sorted by counting, which takes the square of them.
BY_COUNTING = 128
# Elements of a row that one thread puts into bins: 128 for each of the 256, beside whose counts
# they are most of the work; with their keys 256 KiB.
SORT_CHUNK = 1 << 15
SCAN_BLOCK = 1 << 12  # elements of a running reduction that follow one another: 16 KiB of float32


def expand_sorts(roots: Sequence[Node]) -> list[Node]:
    """The graph with every SORT and every long running reduction made of other operations."""
    new: dict[Node, Node] = {}
    for node in topological(roots):
        known = build.rebuild(node, [new[source] for source in node.src])
        if known.op is Op.SORT:
            (known,) = expand_sorts([_sorted(known.src[0], known.arg)])
        elif known.op in SCANS:
            known = _blocks(known)
        new[node] = known
    return [new[root] for root in roots]


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
    """The place of a key is the number of smaller ones, and of equal ones before it."""
    extent = keys.shape[axis]
    mine, other = axis, axis + 1
    wide = (*keys.shape[: axis + 1], extent, *keys.shape[axis + 1 :])

    def spread(x: Node, at: int) -> Node:
        shape = [*x.shape[:axis], 1, 1, *x.shape[axis + 1 :]]
        shape[at] = extent
        return build.expand(build.reshape(x, tuple(shape)), wide)

    place = along(keys, axis)
    a, b = spread(keys, mine), spread(keys, other)
    earlier = elementwise(Op.LT, spread(place, other), spread(place, mine))
    tie = elementwise(Op.AND, elementwise(Op.EQ, a, b), earlier)
    before = elementwise(Op.OR, elementwise(Op.LT, b, a), tie)
    rank = build.reduce(Op.SUM, build.cast(before, dtypes.int32), (other,))
    zeros = build.const(0, dtypes.int32, keys.shape, keys.device)
    return build.scatter_add(zeros, build.reshape(rank, keys.shape), place, axis)


def _by_radix(keys: Node) -> Node:
    """The permutation of each row of keys (rows, length)."""
    order: Node | None = None
    for low in range(0, keys.dtype.bits, 32):  # 64-bit keys: by their lower halves, then the upper
        part = build.cast(_shifted(build.cast(keys, dtypes.uint64), low), dtypes.uint32)
        if order is not None:
            part = build.gather(part, order, 1)
        order = _passes(part, order, min(keys.dtype.bits, 32))
    assert order is not None
    return order


def _passes(keys: Node, order: Node | None, bits: int) -> Node:
    """Stable order by 32-bit keys of which `bits` are used; `order` says what they stand for."""
    rows, length = (int(extent) for extent in keys.shape)  # type: ignore[arg-type]
    chunks = ceildiv(length, SORT_CHUNK)
    chunk = ceildiv(length, chunks)
    shape = (rows, chunks * chunk)
    if order is None:
        order = along(build.const(0, dtypes.int32, (rows, length), keys.device), 1)
    packed = elementwise(
        Op.OR, _left(build.cast(keys, dtypes.uint64), 32), build.cast(order, dtypes.uint64)
    )
    if shape[1] != length:  # what fills the last chunk comes behind all keys
        filled = build.pad(packed, [(0, 0), (0, shape[1] - length)])
        inside = elementwise(Op.LT, along(filled, 1), _full(length, dtypes.int32, filled))
        packed = elementwise(Op.WHERE, inside, filled, _full(2**64 - 1, dtypes.uint64, filled))
    for low in range(0, bits, 8):
        packed = _pass(build.reshape(packed, (rows * chunks, chunk)), rows, chunks, 32 + low)
        packed = build.reshape(packed, shape)
    return build.cast(build.shrink(packed, [(0, rows), (0, length)]), dtypes.int32)


def _pass(packed: Node, rows: int, chunks: int, low: int) -> Node:
    """All chunks (rows·chunks, chunk) put bin by bin, by the byte that starts at bit `low`."""
    bin = build.cast(_shifted(packed, low), dtypes.uint8)
    ones = _full(1, dtypes.int32, bin)
    zeros = build.const(0, dtypes.int32, (rows * chunks, 256), packed.device)
    counts = build.scatter_add(zeros, build.cast(bin, dtypes.int32), ones, 1)
    in_order = build.permute(build.reshape(counts, (rows, chunks, 256)), (0, 2, 1))
    line = build.reshape(in_order, (rows, 256 * chunks))
    until = build.scan(Op.CUMSUM, line, 1)
    first = elementwise(Op.SUB, until, line)  # elements in earlier bins, or of earlier chunks
    length = int(packed.shape[1])  # type: ignore[arg-type]
    start = elementwise(Op.MUL, along(first, 0), _full(chunks * length, dtypes.int32, first))
    first = build.reshape(elementwise(Op.ADD, first, start), (rows, 256, chunks))
    starts = build.reshape(build.permute(first, (0, 2, 1)), (rows * chunks, 256))
    return build.distribute(starts, bin, packed)


def _full(value: int, dtype: DType, like: Node) -> Node:
    return build.const(value, dtype, like.shape, like.device)


def _shifted(x: Node, by: int) -> Node:
    return elementwise(Op.SHR, x, _full(by, x.dtype, x)) if by else x


def _left(x: Node, by: int) -> Node:
    return elementwise(Op.SHL, x, _full(by, x.dtype, x))


# --- running reductions --------------------------------------------------------------------------


def _blocks(node: Node) -> Node:
    """A long one with few rows: blocks are reduced, these are scanned, each block goes on there.

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
    missing = blocks * block - extent
    padded = build.pad(x, [(0, missing if d == axis else 0) for d in range(x.ndim)])
    shape: Shape = (*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])
    cut = build.reshape(padded, shape)
    whole = build.reduce(reduction, cut, (axis + 1,))
    before = shift(build.scan(node.op, whole, axis), axis, identity(reduction, x.dtype).value)
    carried = build.expand(before, shape)
    beginning = elementwise(
        Op.EQ, along(cut, axis + 1), build.const(0, dtypes.int32, shape, x.device)
    )
    entering = elementwise(Op.WHERE, beginning, _combined(reduction, carried, cut), cut)
    done = build.reshape(build.scan(node.op, entering, axis + 1), padded.shape)
    return build.shrink(done, [(0, e) for e in x.shape])


def _combined(reduction: Op, x: Node, y: Node) -> Node:
    if x.dtype.is_bool:
        return elementwise(Op.AND if reduction is Op.PROD else Op.OR, x, y)
    op = {Op.SUM: Op.ADD, Op.PROD: Op.MUL, Op.MAX: Op.MAXIMUM}[reduction]
    return elementwise(op, x, y)
