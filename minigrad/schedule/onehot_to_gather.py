"""Sums with one-hot masks: those that select one element, and those that add at a position.

Σ where(i == label, x[i], 0) over i is x[label].
So a loss reads the logit of the right class by one load instead of a pass over all classes. The
same holds for every product with a one-hot mask that is written with `where`. Values at other
positions are not added; their zeros are, and those change at most the sign of a zero. A label
outside the range of i gives 0, as the sum does.

Σ where(i == label[a], x[a], 0) over a, for each i, adds x[a] at label[a]: counts, if x is 1.
"""

from __future__ import annotations

from minigrad.graph import build
from minigrad.graph.node import Node, Op, beneath
from minigrad.graph.operations import MOVEMENT
from minigrad.graph.symbolic import high
from minigrad.schedule.lower import shown
from minigrad.schedule.materialize import is_zero

FEWEST = 32  # positions from which on one addition is faster than masked vectors over all of them
LONG = 1 << 14  # additions from which on they are split into parts, for threads
MOST_PARTS = 16
_SEEN_THROUGH = MOVEMENT - {Op.PAD} | {Op.CAST}


def picked(node: Node) -> Node:
    """A SUM as a GATHER if it picks one element along its axis, else the SUM itself."""
    if node.op is not Op.SUM or node.src[0].op is not Op.WHERE or len(node.arg) != 1:
        return node
    (axis,) = node.arg
    x = node.src[0]
    test, chosen, other = x.src
    if test.op is not Op.EQ or not is_zero(other):
        return node
    for counter, label in (test.src, test.src[::-1]):
        if _counts_along(counter, axis) and label.dtype.is_int and label.op is Op.EXPAND:
            inner = label.src[0]
            if inner.shape[axis] == 1:
                index = build.expand(inner, node.shape)
                return build.gather(chosen, index, axis)
    return node


def added_at(node: Node) -> Node:
    """A SUM as a SCATTER_ADD if it adds each term at one position of another axis, else itself."""
    if node.op is not Op.SUM or len(node.arg) != 1:
        return node
    (along,), terms = node.arg, node.src[0]
    test, value = beneath(terms, (Op.CAST,)), build.const(1, node.dtype, terms.shape, node.device)
    if test.op is Op.WHERE and test is terms and is_zero(test.src[2]):
        test, value, _ = test.src
    if test.op is not Op.EQ:
        return node
    for counter, label in (test.src, test.src[::-1]):
        for axis, extent in enumerate(terms.shape):
            alike = [_along_others(x, axis) for x in (label, value)]
            if axis == along or high(extent) < FEWEST or None in alike:
                continue
            if label.dtype.is_int and _counts_along(counter, axis):
                return _scattered(node, axis, *alike)  # type: ignore[arg-type]
    return node


def _along_others(x: Node, axis: int) -> Node | None:
    """x with extent 1 along an axis, or None if it may vary along it."""
    ones = tuple(1 if a == axis else extent for a, extent in enumerate(x.shape))
    if x.op is Op.CONST:
        return build.const(x.arg, x.dtype, ones, x.device)
    if x.op is not Op.EXPAND or x.src[0].shape[axis] != 1:
        return None
    return build.expand(x.src[0], ones)


def _scattered(node: Node, axis: int, index: Node, x: Node) -> Node:
    """x added at index along an axis; if there are many, in parts whose results are added."""
    (along,) = node.arg
    order = list(range(node.ndim))
    order[along], order[axis] = axis, along
    index, x = build.permute(index, order), build.permute(x, order)
    count, places, parts = x.shape[axis], node.shape[axis], 1
    if isinstance(count, int) and isinstance(places, int) and count >= LONG:
        most = min(MOST_PARTS, count // (2 * places))
        parts = next((n for n in range(most, 1, -1) if count % n == 0), 1)
    lead, behind = node.shape[:axis], node.shape[axis + 1 :]
    index, x = (
        build.reshape(one, (*lead, parts, count // parts, *behind)) for one in (index, x)
    )
    empty = build.const(0, node.dtype, (*lead, parts, places, *behind), node.device)
    found = build.scatter_add(empty, index, x, axis + 1)
    return build.reshape(build.reduce(Op.SUM, found, (axis,)), node.shape)


def _counts_along(node: Node, axis: int) -> bool:
    """Whether a node's elements are 0, 1, 2 … along an axis, and constant along the others."""
    chain, places, index = shown(node, _SEEN_THROUGH)
    most = high(node.shape[axis]) - 1
    holds = all(x.dtype.is_int and x.dtype.maximum >= most for x in chain)
    return holds and chain[-1].op is Op.IOTA and index[0] == places[axis]
