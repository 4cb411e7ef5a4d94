"""Running reductions: their gradients, the scan of any associative operation, and a selection."""

from __future__ import annotations

from collections.abc import Callable

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.axes import merge_axes, pad_along, part_along, repeat_along, row_of, split_axis
from minigrad.graph.node import Node, Op
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import ceildiv, high

Values = tuple[Node, ...]
CHUNK = 8192  # elements of a mask that one thread goes through in order


def wide(x: Node) -> Node:
    """x in at least float32: sums and counts of many halves stop at 256 in bfloat16."""
    return x.cast(dtypes.float32) if x.dtype.itemsize < 4 else x


def cumsum_rule(node: Node, g: Node) -> Node:
    """Element i takes part in the sums i, i + 1, …"""
    axis = (node.arg,)
    return build.flip(build.scan(Op.CUMSUM, build.flip(g, axis), node.arg), axis)


def cummax_rule(node: Node, g: Node) -> Node:
    """All of it goes to the latest of the elements that are the maximum."""
    x, axis = node.src[0], node.arg
    zeros = wide(x).constant(0.0)
    return build.scatter_add(zeros, latest(x, node, axis), wide(g), axis).cast(x.dtype)


def cumprod_rule(node: Node, g: Node) -> Node:
    """g_i·∏ of the other factors, summed over i: no division, so zeros do no harm.

    With s_k = g_k + x_{k+1}·s_{k+1} the derivative by x_k is s_k times the product before k.
    """
    x, axis = node.src[0], node.arg
    factors = shift(build.flip(x, (axis,)), axis, 0)  # the recurrence runs from the end
    _, s = associative(_joined, (factors, build.flip(g, (axis,))), axis)
    return shift(node, axis, 1) * build.flip(s, (axis,))


def _joined(first: Values, second: Values) -> Values:
    """Two steps s → a·s + c of a recurrence as one."""
    (a, c), (b, d) = first, second
    return a * b, b * c + d


def latest(x: Node, scanned: Node, axis: int) -> Node:
    """The index (int32) of the latest element of x that is the running maximum (or NaN)."""
    hit = x.equals(scanned)
    if x.dtype.is_float:
        hit = hit | x.differs(x)
    return build.scan(Op.CUMMAX, hit.where(along(x, axis), 0), axis)


def along(x: Node, axis: int) -> Node:
    """0, 1, 2, … along an axis (int32), repeated along the others."""
    shape = tuple(extent if d == axis else 1 for d, extent in enumerate(x.shape))
    return build.expand(build.reshape(build.iota(x.shape[axis], x.device), shape), x.shape)


def shift(x: Node, axis: int, first: int | float | bool) -> Node:
    """x moved on by one along an axis, with `first` in front."""
    extent = x.shape[axis]
    if extent == 0:
        return x
    moved = pad_along(part_along(x, axis, 0, extent - 1), axis, 1, 0)
    return along(x, axis).equals(0).where(first, moved)


def associative(combine: Callable[[Values, Values], Values], x: Values, axis: int) -> Values:
    """out[i] = combine(… combine(x[0], x[1]) …, x[i]) along an axis.

    Neighbours are combined, the half as long problem is solved, and its solution fills the gaps:
    2n combinations in 2·log n stages (Blelloch, "Prefix sums and their applications", 1990).
    """
    levels: list[Values] = []
    while (extent := high(x[0].shape[axis])) > 1:
        levels.append(x)
        pairs = [_pairs(v, axis, extent // 2) for v in x]
        x = combine(*(tuple(row_of(pair, n, axis + 1) for pair in pairs) for n in (0, 1)))
    done = x
    for x in reversed(levels):
        extent = high(x[0].shape[axis])
        count = ceildiv(extent, 2)
        even = tuple(row_of(_pairs(v, axis, count), 0, axis + 1) for v in x)
        before = tuple(part_along(pad_along(v, axis, 1, 0), axis, 0, count) for v in done)
        start = along(even[0], axis).equals(0)
        done = tuple(
            _interleave(start.where(own, both), odd, axis, extent)
            for own, both, odd in zip(even, combine(before, even), done, strict=True)
        )
    return done


def _pairs(x: Node, axis: int, count: int) -> Node:
    """`count` pairs of neighbours along an axis, (…, count, 2, …); the last may lack its second."""
    missing = max(2 * count - high(x.shape[axis]), 0)
    whole = part_along(pad_along(x, axis, 0, missing), axis, 0, 2 * count)
    return split_axis(whole, axis, count, 2)


def _interleave(even: Node, odd: Node, axis: int, extent: int) -> Node:
    """even[0], odd[0], even[1], …: `extent` elements. Selected, not added: ∞ must not spread."""
    count = high(even.shape[axis])
    odd = pad_along(odd, axis, 0, count - high(odd.shape[axis]))
    twice = (repeat_along(split_axis(x, axis, count, 1), axis + 1, 2) for x in (even, odd))
    evens, odds = (merge_axes(x, axis) for x in twice)
    is_odd = (along(evens, axis) & 1).equals(1)
    return part_along(is_odd.where(odds, evens), axis, 0, extent)


def selected(mask: Node) -> tuple[Node, Node]:
    """The indices (int32) of the true elements of a flat mask, in order, and their number (1,).

    Elements are counted by chunks, and each chunk writes its indices. The result is as long as the
    mask; elements after the last index have no defined value.
    """
    length = numel(mask.shape)
    rows = ceildiv(length, CHUNK)
    chunk = ceildiv(length, rows)
    flags = split_axis(pad_along(mask, 0, 0, rows * chunk - length), 0, rows, chunk)
    counts = build.reduce(Op.SUM, flags.cast(dtypes.int32), (1,))
    until = build.scan(Op.CUMSUM, counts, 0)
    count = build.shrink(until, [(rows - 1, rows), (0, 1)])
    # A pass of a counting sort: true elements go to bin 1, the others after them, because not to
    # write them would take a branch that no processor can predict.
    first = repeat_along(until - counts, 1, 2)  # true elements in the chunks before
    behind = build.expand(count, first.shape) + (along(first, 0) * chunk - first)
    starts = along(first, 1).equals(1).where(first, behind)
    places = split_axis(build.iota(rows * chunk, mask.device), 0, rows, chunk)
    return build.distribute(starts, flags.cast(dtypes.uint8), places), build.reshape(count, (1,))
