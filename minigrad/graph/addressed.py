"""Gradients of what is addressed by data: reads at an index, and what is written there."""

from __future__ import annotations

from minigrad.graph import build
from minigrad.graph.node import Node, Op


def gather_rule(node: Node, g: Node) -> Node:
    """Each element goes back to where it was read."""
    x, index = node.src
    return build.scatter_add(x.constant(0.0), index, g, node.arg)


def scatter_add_rule(node: Node, g: Node) -> Node:
    """What was added takes the gradient of its place."""
    return build.gather(g, node.src[1], node.arg)


def _share(node: Node, g: Node) -> Node:
    """Of SCATTER_MAX: g, divided evenly among the elements that are the maximum of a place."""
    base, index, x = node.src
    ones, own = _is_at(node).cast(x.dtype), base.equals(node).cast(x.dtype)
    return g / build.scatter_add(own, index, ones, node.arg)


def _is_at(node: Node) -> Node:
    """Which elements that are scattered equal the result at their place."""
    _, index, x = node.src
    return x.equals(build.gather(node, index, node.arg))


def scatter_max_base_rule(node: Node, g: Node) -> Node:
    """The share of the old value, where that is the maximum."""
    return node.src[0].equals(node).where(_share(node, g), 0.0)


def scatter_max_rule(node: Node, g: Node) -> Node:
    """The share of each element that is the maximum of its place."""
    return _is_at(node).where(build.gather(_share(node, g), node.src[1], node.arg), 0.0)


def scatter_prod_base_rule(node: Node, g: Node) -> Node:
    """g times the product of what the old value was multiplied by."""
    base, index, x = node.src
    return g * build.scatter(Op.SCATTER_PROD, base.constant(1.0), index, x, node.arg)


def scatter_prod_rule(node: Node, g: Node) -> Node:
    """g times the other factors of the place: the product of those that are not 0, if they all are.

    Where a factor is 0 a second derivative misses what changing two zeros at once would give.
    """
    base, index, x = node.src
    axis, none, one = node.arg, base.equals(0.0), x.equals(0.0)
    factors = one.where(1.0, x)
    product = build.scatter(Op.SCATTER_PROD, none.where(1.0, base), index, factors, axis)
    zeros = build.scatter_add(none.cast(x.dtype), index, one.cast(x.dtype), axis)
    others = build.gather(g * product, index, axis) / factors
    count = build.gather(zeros, index, axis) - one.cast(x.dtype)
    return count.equals(0.0).where(others, 0.0)
