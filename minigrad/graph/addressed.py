"""Gradients of what is addressed by data: reads at an index, and what is written there."""

from __future__ import annotations

from minigrad.graph import build
from minigrad.graph.build import elementwise
from minigrad.graph.node import Node, Op


def _full(like: Node, value: float) -> Node:
    return build.const(value, like.dtype, like.shape, like.device)


def _mul(x: Node, y: Node) -> Node:
    return elementwise(Op.MUL, x, y)


def _div(x: Node, y: Node) -> Node:
    return elementwise(Op.DIV, x, y)


def _where(condition: Node, x: Node, y: Node) -> Node:
    return elementwise(Op.WHERE, condition, x, y)


def gather_rule(node: Node, g: Node) -> Node:
    """Each element goes back to where it was read."""
    x, index = node.src
    return build.scatter_add(_full(x, 0.0), index, g, node.arg)


def scatter_add_rule(node: Node, g: Node) -> Node:
    """What was added takes the gradient of its place."""
    return build.gather(g, node.src[1], node.arg)


def _share(node: Node, g: Node) -> Node:
    """Of SCATTER_MAX: g, divided evenly among the elements that are the maximum of a place."""
    base, index, x = node.src
    ones = build.cast(_is_at(node), x.dtype)
    own = build.cast(elementwise(Op.EQ, base, node), x.dtype)
    return _div(g, build.scatter_add(own, index, ones, node.arg))


def _is_at(node: Node) -> Node:
    """Which elements that are scattered equal the result at their place."""
    _, index, x = node.src
    return elementwise(Op.EQ, x, build.gather(node, index, node.arg))


def scatter_max_base_rule(node: Node, g: Node) -> Node:
    """The share of the old value, where that is the maximum."""
    return _where(elementwise(Op.EQ, node.src[0], node), _share(node, g), _full(g, 0.0))


def scatter_max_rule(node: Node, g: Node) -> Node:
    """The share of each element that is the maximum of its place."""
    share = build.gather(_share(node, g), node.src[1], node.arg)
    return _where(_is_at(node), share, _full(share, 0.0))


def scatter_prod_base_rule(node: Node, g: Node) -> Node:
    """g times the product of what the old value was multiplied by."""
    base, index, x = node.src
    return _mul(g, build.scatter(Op.SCATTER_PROD, _full(base, 1.0), index, x, node.arg))


def scatter_prod_rule(node: Node, g: Node) -> Node:
    """g times the other factors of the place: the product of those that are not 0, if they all are.

    Where a factor is 0 a second derivative misses what changing two zeros at once would give.
    """
    base, index, x = node.src
    axis = node.arg
    none, one = (elementwise(Op.EQ, v, _full(v, 0.0)) for v in (base, x))
    product = build.scatter(
        Op.SCATTER_PROD, _where(none, _full(base, 1.0), base), index,
        _where(one, _full(x, 1.0), x), axis,
    )  # fmt: skip
    zeros = build.scatter_add(build.cast(none, x.dtype), index, build.cast(one, x.dtype), axis)
    others = build.gather(_mul(g, product), index, axis)
    count = elementwise(Op.SUB, build.gather(zeros, index, axis), build.cast(one, x.dtype))
    other = _div(others, _where(one, _full(x, 1.0), x))
    return _where(elementwise(Op.EQ, count, _full(x, 0.0)), other, _full(x, 0.0))
