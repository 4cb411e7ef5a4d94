"""Sums that pick one element: Σ where(i == label, x[i], 0) over i is x[label].

So a loss's logit of the right class is one load instead of a pass over all classes, and so is
every product with a one-hot mask that is written with `where`. What lies at other places is not
added: the zeros that stand there are, and those change nothing, but perhaps the sign of a zero. An
index that no i is gives 0, as the sum does.
"""

from __future__ import annotations

from minigrad.graph import build
from minigrad.graph.node import Node, Op
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import high


def picked(node: Node) -> Node:
    """A SUM as a GATHER where it picks one element along its axis, else the SUM itself."""
    if node.op is not Op.SUM or node.src[0].op is not Op.WHERE or len(node.arg) != 1:
        return node
    (axis,) = node.arg
    x = node.src[0]
    test, chosen, other = x.src
    if test.op is not Op.EQ or node.dtype is not chosen.dtype or not _is_zero(other):
        return node
    for counter, label in (test.src, test.src[::-1]):
        if _counts_along(counter, axis) and label.dtype.is_int and label.op is Op.EXPAND:
            inner = label.src[0]
            if inner.shape[axis] == 1 and x.shape[axis] != 1:
                index = build.expand(inner, node.shape)
                return build.gather(chosen, index, axis)
    return node


def _is_zero(node: Node) -> bool:
    while node.op in (Op.EXPAND, Op.RESHAPE):
        node = node.src[0]
    return node.op is Op.CONST and node.arg == 0


def _counts_along(node: Node, axis: int) -> bool:
    """Whether a node's elements are 0, 1, 2 … along an axis, and the same along all others."""
    extent = node.shape[axis]
    if not node.dtype.is_int or node.dtype.maximum < high(extent) - 1:
        return False
    while node.op in (Op.EXPAND, Op.CAST):
        node = node.src[0]
        if not node.dtype.is_int or node.dtype.maximum < high(extent) - 1:
            return False
    if node.shape[axis] != extent or numel(node.shape) != high(extent):
        return False
    while node.op in (Op.RESHAPE, Op.CAST):
        node = node.src[0]
        if not node.dtype.is_int or node.dtype.maximum < high(extent) - 1:
            return False
    return node.op is Op.IOTA and node.shape == (extent,)
