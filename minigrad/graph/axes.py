"""One axis of an array at a time: a part of it, zeros around it, several axes in its place."""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.node import Node, Op, Shape, is_symbolic
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Integer


def part_along(x: Node, axis: int, start: Integer, stop: Integer) -> Node:
    """Elements start … stop − 1 along an axis."""
    ranges = [(start, stop) if d == axis else (0, extent) for d, extent in enumerate(x.shape)]
    return build.shrink(x, ranges)


def pad_along(x: Node, axis: int, before: Integer, after: Integer) -> Node:
    """Zeros before and after, along an axis."""
    return build.pad(x, [(before, after) if d == axis else (0, 0) for d in range(x.ndim)])


def spread(x: Node, shape: Shape, axes: Sequence[int] = ()) -> Node:
    """x, whose dimensions are some axes of a shape, repeated along all others."""
    own = tuple(extent if axis in axes else 1 for axis, extent in enumerate(shape))
    return build.expand(build.reshape(x, own), shape)


def within(x: Node, amounts: Sequence[tuple[Integer, Integer]], whole: Node) -> Node:
    """`whole` with a part replaced by x; amounts: how much is before and after that, by axis."""
    inside = build.pad(x.constant(True, dtypes.bool), amounts)
    return inside.where(build.pad(x, amounts), whole)


def joined(pieces: Sequence[Node], axis: int) -> Node:
    """The pieces one after the other along an axis, selected when they are read."""
    first, *others = pieces
    total: Integer = sum((piece.shape[axis] for piece in pieces), 0)
    start = first.shape[axis]
    result = pad_along(first, axis, 0, total - start)
    for piece in others:
        stop = start + piece.shape[axis]
        amounts = [(start, total - stop) if d == axis else (0, 0) for d in range(piece.ndim)]
        result, start = within(piece, amounts, result), stop
    return result


def joined_pieces(x: Node) -> tuple[int, list[Node]]:
    """The axis along which `joined` has made x, and the pieces; (−1, []) if it has not."""
    found: list[Node] = []
    axis = -1
    behind: Integer = 0  # the extent of the pieces found
    while x.op in (Op.WHERE, Op.PAD) and not is_symbolic(x.shape):
        padded = x if x.op is Op.PAD else x.src[1]
        amounts = padded.arg if padded.op is Op.PAD else ()
        padding = [n for n, pair in enumerate(amounts) if pair != (0, 0)]
        if len(padding) != 1 or axis not in (-1, *padding) or amounts[padding[0]][1] != behind:
            break
        (axis,), (piece,) = padding, padded.src
        found.insert(0, piece)
        if x is padded:
            return (axis, found) if amounts[axis][0] == 0 else (-1, [])
        if x.src[0] is not build.pad(piece.constant(True, dtypes.bool), amounts):
            break
        x, behind = x.src[2], x.shape[axis] - amounts[axis][0]
    return -1, []


def split_axis(x: Node, axis: int, *extents: Integer) -> Node:
    """Several axes in place of one, or none in place of one of length 1."""
    return build.reshape(x, (*x.shape[:axis], *extents, *x.shape[axis + 1 :]))


def merge_axes(x: Node, axis: int) -> Node:
    """One axis in place of two, whose extents are known."""
    extent = numel(x.shape[axis : axis + 2])
    return build.reshape(x, (*x.shape[:axis], extent, *x.shape[axis + 2 :]))


def stored_last(x: Node, axes: Sequence[int]) -> Node:
    """x, copied so that elements along some axes are adjacent in memory."""
    order = [*(axis for axis in range(x.ndim) if axis not in axes), *axes]
    copy = build.contiguous(build.permute(x, order))
    return build.permute(copy, [order.index(axis) for axis in range(x.ndim)])


def row_of(x: Node, number: Integer, axis: int = 0) -> Node:
    """The elements at one index along an axis, which is removed."""
    return split_axis(part_along(x, axis, number, number + 1), axis)


def repeat_along(x: Node, axis: int, extent: Integer) -> Node:
    """Repeat an axis of length 1 `extent` times."""
    return build.expand(x, (*x.shape[:axis], extent, *x.shape[axis + 1 :]))
