"""Running reductions: their gradients, and the scan of any associative operation."""

from __future__ import annotations

from collections.abc import Callable

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.build import elementwise
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Integer, ceildiv

Values = tuple[Node, ...]


def cumsum_rule(node: Node, g: Node) -> Node:
    """Element i takes part in the sums i, i + 1, …"""
    axis = (node.arg,)
    return build.flip(build.scan(Op.CUMSUM, build.flip(g, axis), node.arg), axis)


def cummax_rule(node: Node, g: Node) -> Node:
    """All to the latest of the elements that are the maximum."""
    x, axis = node.src[0], node.arg
    zeros = build.const(0.0, x.dtype, x.shape, x.device)
    return build.scatter_add(zeros, latest(x, node, axis), g, axis)


def cumprod_rule(node: Node, g: Node) -> Node:
    """g_i·∏ of the other factors, summed over i: no division, so zeros do no harm.

    With s_k = g_k + x_{k+1}·s_{k+1} the derivative by x_k is s_k times the product before k.
    """
    x, axis = node.src[0], node.arg
    factors = shift(build.flip(x, (axis,)), axis, 0)  # the recurrence runs from the end
    _, s = associative(_joined, (factors, build.flip(g, (axis,))), axis)
    return _mul(shift(node, axis, 1), build.flip(s, (axis,)))


def _joined(first: Values, second: Values) -> Values:
    """Two steps s → a·s + c of a recurrence as one."""
    (a, c), (b, d) = first, second
    return _mul(a, b), elementwise(Op.ADD, _mul(b, c), d)


def latest(x: Node, scanned: Node, axis: int) -> Node:
    """Where (int32) the latest element of x stands that is the running maximum (or NaN)."""
    hit = elementwise(Op.EQ, x, scanned)
    if x.dtype.is_float:
        hit = elementwise(Op.OR, hit, elementwise(Op.NE, x, x))
    none = build.const(0, dtypes.int32, x.shape, x.device)
    return build.scan(Op.CUMMAX, elementwise(Op.WHERE, hit, along(x, axis), none), axis)


def along(x: Node, axis: int) -> Node:
    """0, 1, 2, … along an axis (int32), the same for all other indices."""
    shape = tuple(extent if d == axis else 1 for d, extent in enumerate(x.shape))
    return build.expand(build.reshape(build.iota(x.shape[axis], x.device), shape), x.shape)


def shift(x: Node, axis: int, first: int | float | bool) -> Node:
    """x moved on by one along an axis, with `first` in front."""
    extent = _length(x, axis)
    if not extent:
        return x
    moved = build.pad(_part(x, axis, 0, extent - 1), _along(x, axis, (1, 0)))
    return elementwise(
        Op.WHERE, _is_first(x, axis), build.const(first, x.dtype, x.shape, x.device), moved
    )


def associative(combine: Callable[[Values, Values], Values], x: Values, axis: int) -> Values:
    """out[i] = combine(… combine(x[0], x[1]) …, x[i]) along an axis.

    Neighbours are combined, the half as long problem is solved, and its solution fills the gaps:
    2n combinations in 2·log n stages (Blelloch, "Prefix sums and their applications", 1990).
    """
    levels: list[Values] = []
    while (extent := _length(x[0], axis)) > 1:
        levels.append(x)
        first, second = (tuple(_every_second(v, axis, start, extent // 2) for v in x)
                         for start in (0, 1))  # fmt: skip
        x = combine(first, second)
    done = x
    for x in reversed(levels):
        count = ceildiv(_length(x[0], axis), 2)
        even = tuple(_every_second(v, axis, 0, count) for v in x)
        before = tuple(_part(build.pad(v, _along(v, axis, (1, 0))), axis, 0, count) for v in done)
        start = _is_first(even[0], axis)
        filled = (
            elementwise(Op.WHERE, start, own, both)
            for own, both in zip(even, combine(before, even), strict=True)
        )
        done = tuple(
            _interleave(e, odd, axis, _length(x[0], axis))
            for e, odd in zip(filled, done, strict=True)
        )
    return done


def _mul(x: Node, y: Node) -> Node:
    return elementwise(Op.MUL, x, y)


def _length(x: Node, axis: int) -> int:
    extent = x.shape[axis]
    assert isinstance(extent, int)
    return extent


def _is_first(x: Node, axis: int) -> Node:
    zero = build.const(0, dtypes.int32, x.shape, x.device)
    return elementwise(Op.EQ, along(x, axis), zero)


def _along(x: Node, axis: int, pair: tuple[Integer, Integer]) -> list[tuple[Integer, Integer]]:
    return [pair if d == axis else (0, 0) for d in range(x.ndim)]


def _part(x: Node, axis: int, start: int, stop: int) -> Node:
    ranges = [(start, stop) if d == axis else (0, extent) for d, extent in enumerate(x.shape)]
    return build.shrink(x, ranges)


def _every_second(x: Node, axis: int, first: int, count: int) -> Node:
    """`count` elements first, first + 2, … along an axis."""
    missing = max(2 * count - _length(x, axis), 0)
    x = _part(build.pad(x, _along(x, axis, (0, missing))), axis, 0, 2 * count)
    pairs = build.reshape(x, (*x.shape[:axis], count, 2, *x.shape[axis + 1 :]))
    one = _part(pairs, axis + 1, first, first + 1)
    return build.reshape(one, (*x.shape[:axis], count, *x.shape[axis + 1 :]))


def _interleave(even: Node, odd: Node, axis: int, extent: int) -> Node:
    """even[0], odd[0], even[1], …: `extent` elements. Rather chosen than added: ∞ stays apart."""
    count = _length(even, axis)
    odd = build.pad(odd, _along(odd, axis, (0, count - _length(odd, axis))))

    def doubled(x: Node) -> Node:
        one = build.reshape(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
        two = build.expand(one, (*x.shape[: axis + 1], 2, *x.shape[axis + 1 :]))
        return build.reshape(two, (*x.shape[:axis], 2 * count, *x.shape[axis + 1 :]))

    wide = doubled(even)
    one = build.const(1, dtypes.int32, wide.shape, wide.device)
    is_odd = elementwise(Op.EQ, elementwise(Op.AND, along(wide, axis), one), one)
    return _part(elementwise(Op.WHERE, is_odd, doubled(odd), wide), axis, 0, extent)
