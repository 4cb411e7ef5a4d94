"""Reverse-mode differentiation: a rule per operation and source.

A rule takes a node and the gradient of some scalar with respect to it, and gives the gradient with
respect to one of its sources. Gradients are nodes like any others, so they are differentiable too.

The rules of elementwise operations are in `graph/operations.py`, beside their definitions. An
operation that has None for a source in `RULES`, or is not there, passes nothing on: its result is
no float, or its source is none. BITCAST is one of them, so x seen as an integer and back is x
detached from its past. Flat operations give floats whose derivative is zero almost everywhere: if
they are the only way to a target, its gradient is zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate, repeat

from minigrad.dtype import dtypes
from minigrad.graph import build, collective, operations
from minigrad.graph.axes import pad_along, part_along
from minigrad.graph.node import Node, beneath, is_symbolic, reading, topological
from minigrad.graph.operations import ELEMENTWISE, MOVEMENT, Op
from minigrad.graph.scans import along, cummax_rule, cumprod_rule, cumsum_rule, wide
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import mark_gradient
from minigrad.graph.symbolic import Integer, high
from minigrad.graph.windows import cropped, overlap_add, shows_windows

# (node, gradient of the node) → gradient of one source; None if it has none after all
Rule = Callable[[Node, Node], Node | None]


def gradient(
    outputs: Sequence[Node], seeds: Sequence[Node], targets: Sequence[Node],
    order: Sequence[Node] | None = None,
) -> list[Node | None]:  # fmt: skip
    """For each target, the gradient of Σ seed·output; None if no output depends on it.

    If outputs depend on a target only in ways whose derivative is zero, the gradient is zeros.

    Outputs are floats. Each seed has its output's shape and dtype, each result its target's. A
    target may lie between an output and another target. An in-place write is a leaf: the written
    value is a constant. order: `topological(outputs)`, if known.
    """
    if order is None:
        order = topological(outputs)
    active = _active(order, targets)
    parts: dict[Node, list[Node]] = {}
    for output, seed in zip(outputs, seeds, strict=True):
        if output in active:
            parts.setdefault(output, []).append(seed)
    found: dict[Node, Node] = {}
    results: dict[Node, dict[Node, Node]] = {}  # LOOP → its RESULTs → their gradients
    result, assign = Op.RESULT, Op.ASSIGN
    for node in reversed(order):
        if node in results:
            for source, part in zip(node.src, node.arg.gradient(node, results[node]), strict=True):
                if part is not None and source in active:
                    parts.setdefault(source, []).append(part)
        if node not in parts:
            continue
        total = found[node] = _sum(parts.pop(node))
        if node.op is result:
            results.setdefault(node.src[0], {})[node] = total
            continue
        if node.op is assign:
            continue  # a leaf: the value that was written to it is a constant
        for source, rule in zip(node.src, rules_of(node), strict=False):
            part = rule(node, total) if rule is not None and source in active else None
            if part is not None:
                parts.setdefault(source, []).append(part)
    if all(target in found for target in targets):
        return [found[target] for target in targets]
    flat = set(reached(outputs, order))
    return [
        found[target] if target in found else target.constant(0.0) if target in flat else None
        for target in targets
    ]


def reached(outputs: Sequence[Node], order: Sequence[Node]) -> list[Node]:
    """The nodes to which gradients of the outputs flow, even zeros; sources before users.

    order: `topological(outputs)`.
    """
    found, cat = set(outputs), Op.CAT
    for node in reversed(order):
        if node.src and node in found:
            all_flow = node.op.facts.flat or node.op is cat  # all of its rules are alike
            rules = repeat(True) if all_flow else rules_of(node)
            for source, rule in zip(node.src, rules, strict=False):
                if rule and source.dtype.is_float:
                    found.add(source)
    return [node for node in order if node in found]


def _active(order: Sequence[Node], targets: Sequence[Node]) -> set[Node]:
    """The float nodes that depend on a target."""
    active = {target for target in targets if target.dtype.is_float}
    for node in reading(order, active):
        if node.dtype.is_float:
            active.add(node)
    return active


def rules_of(node: Node) -> tuple[Rule | None, ...]:
    """A rule per source, None if nothing flows to it."""
    op = node.op
    rules = RULES.get(op)
    if rules is not None:
        return rules
    own = OWN_RULES.get(op)
    return () if own is None else own(node)


def _custom_rules(node: Node) -> tuple[Rule | None, ...]:
    """The rules of a CUSTOM, whose `arg` gives the gradients of all its sources at once."""
    known: dict[Node, Sequence[Node | None]] = {}

    def rule_of(place: int) -> Rule:
        def rule(node: Node, g: Node) -> Node | None:
            if g not in known:
                known[g] = node.arg(node, g)
            return known[g][place]

        return rule

    return (None, *(rule_of(place) for place in range(len(node.src) - 1)))


def _sum(parts: Sequence[Node]) -> Node:
    """The sum of the contributions of a node's users, in the order in which they were found."""
    joined = _side_by_side(parts) if len(parts) > 1 else None
    return reduce(Node.__add__, parts) if joined is None else joined


def _side_by_side(parts: Sequence[Node]) -> Node | None:
    """The sum of parts that are side by side along an axis (of a split array), or None."""
    padded = [[axis for axis, pair in enumerate(x.arg) if pair != (0, 0)] for x in parts
              if x.op is Op.PAD and not is_symbolic(x.shape)]  # fmt: skip
    if len(padded) < len(parts) or len(padded[0]) != 1 or padded.count(padded[0]) < len(parts):
        return None
    (axis,) = padded[0]
    pieces: list[Node] = []
    stop = 0
    for part in sorted(parts, key=lambda part: part.arg[axis][0]):
        x, (start, behind) = part.src[0], part.arg[axis]
        if start < stop:
            return None
        pieces += [_zeros(x, axis, start - stop), x]
        stop = numel((part.shape[axis],)) - behind
    return build.cat([*pieces, _zeros(parts[0], axis, parts[0].shape[axis] - stop)], axis)


def _zeros(like: Node, axis: int, extent: Integer) -> Node:
    shape = (*like.shape[:axis], extent, *like.shape[axis + 1 :])
    return build.const(0.0, like.dtype, shape, like.device)


# --- reductions ----------------------------------------------------------------------------------


def _max(node: Node, g: Node) -> Node:
    """g, divided evenly among the elements that are the maximum."""
    x = node.src[0]
    is_maximum = x.equals(build.expand(node, x.shape))
    whole = wide(g)
    count = build.reduce(Op.SUM, is_maximum.cast(whole.dtype), node.arg)
    share = (whole / count).cast(x.dtype)
    return is_maximum.where(build.expand(share, x.shape), 0.0)


def _prod(node: Node, g: Node) -> Node:
    """g times the product of the *other* elements, also correct if some are 0."""
    stages = [node.src[0]]
    for axis in node.arg[:-1]:
        stages.append(build.reduce(Op.PROD, stages[-1], (axis,)))
    for stage, axis in zip(reversed(stages), reversed(node.arg), strict=True):
        g = _prod_along(stage, axis, g)
    return g


def _prod_along(x: Node, axis: int, g: Node) -> Node:
    """The product as a balanced tree of multiplications, differentiated level by level.

    n work and log n levels; no division, so zeros do no harm to any derivative.
    """
    extent = x.shape[axis]
    size = 1 << max(high(extent) - 1, 0).bit_length()
    level = pad_along(x, axis, 0, size - extent)
    level = pad_along(x.constant(True, dtypes.bool), axis, 0, size - extent).where(level, 1.0)
    halves: list[tuple[Node, Node]] = []
    while size > 1:
        size //= 2
        halves.append((part_along(level, axis, 0, size), part_along(level, axis, size, 2 * size)))
        level = halves[-1][0] * halves[-1][1]
    for left, right in reversed(halves):
        g = pad_along(g * right, axis, 0, size) + pad_along(g * left, axis, size, 0)
        size *= 2
    return part_along(g, axis, 0, extent)


# --- movement and joining ------------------------------------------------------------------------


def _added(node: Node, g: Node) -> Node:
    """g for each term. That of a convolution is stored: products load both of their factors.

    (Zeros around a constant would be conditions: a convolution's sum would take 9 times as long.)
    """
    x = node.src[0]
    if beneath(g, MOVEMENT).op is Op.CONST and x.op is Op.MUL and any(map(shows_windows, x.src)):
        g = build.contiguous(g)
    return build.expand(g, x.shape)


def _expand(node: Node, g: Node) -> Node:
    old = node.src[0].shape
    return build.reduce(Op.SUM, g, [d for d in range(node.ndim) if old[d] != node.shape[d]])


def _cat_rules(node: Node) -> tuple[Rule | None, ...]:
    """For each piece, the part of the gradient at its place."""

    def rule_of(start: Integer, stop: Integer) -> Rule:
        return lambda node, g: cropped(g, [
            (start, stop) if axis == node.arg else (0, extent)
            for axis, extent in enumerate(node.shape)
        ])  # fmt: skip

    stops = list(accumulate(piece.shape[node.arg] for piece in node.src))
    return tuple(map(rule_of, [0, *stops], stops))


# --- indexed access ------------------------------------------------------------------------------


def _gather(node: Node, g: Node) -> Node:
    """Add each element's gradient at the place from which it was read."""
    x, index = node.src
    return build.scatter_add(wide(x).constant(0.0), index, wide(g), node.arg).cast(x.dtype)


def _written_by(node: Node) -> Node:
    """For SCATTER: which element along the axis each place holds; −1 for the base's."""
    base, index, _ = node.src
    none = build.const(-1, dtypes.int32, base.shape, base.device)
    return build.scatter(Op.SCATTER, none, index, along(index, node.arg), node.arg)


def _scatter(node: Node, g: Node) -> Node:
    """The gradient of elements that were not overwritten: that of their place."""
    _, index, _ = node.src
    by = build.gather(_written_by(node), index, node.arg)
    return by.equals(along(by, node.arg)).where(build.gather(g, index, node.arg), 0.0)


def _share(node: Node, g: Node) -> Node:
    """For SCATTER_MAX: g, divided evenly among the elements that are the maximum of a place."""
    base, index, x = node.src
    ones, own = _is_at(node).cast(x.dtype), base.equals(node).cast(x.dtype)
    return g / build.scatter_add(own, index, ones, node.arg)


def _is_at(node: Node) -> Node:
    """Which elements that are scattered equal the result at their place."""
    _, index, x = node.src
    return x.equals(build.gather(node, index, node.arg))


def _scatter_max_base(node: Node, g: Node) -> Node:
    """The share of the old value, if it is the maximum."""
    return node.src[0].equals(node).where(_share(node, g), 0.0)


def _scatter_max(node: Node, g: Node) -> Node:
    """The share of each element that is the maximum of its place."""
    return _is_at(node).where(build.gather(_share(node, g), node.src[1], node.arg), 0.0)


def _scatter_prod_base(node: Node, g: Node) -> Node:
    """g times the product of the factors that multiplied the old value."""
    base, index, x = node.src
    return g * build.scatter(Op.SCATTER_PROD, base.constant(1.0), index, x, node.arg)


def _scatter_prod(node: Node, g: Node) -> Node:
    """g times the other factors of the place, or 0 if one of them is 0.

    If a factor is 0, a second derivative lacks the part that comes from changing two zeros at once.
    """
    base, index, x = node.src
    axis, none, one = node.arg, base.equals(0.0), x.equals(0.0)
    factors = one.where(1.0, x)
    product = build.scatter(Op.SCATTER_PROD, none.where(1.0, base), index, factors, axis)
    zeros = build.scatter_add(none.cast(x.dtype), index, one.cast(x.dtype), axis)
    others = build.gather(g * product, index, axis) / factors
    count = build.gather(zeros, index, axis) - one.cast(x.dtype)
    return count.equals(0.0).where(others, 0.0)


# --- the table of rules --------------------------------------------------------------------------


def _same(node: Node, g: Node) -> Node:
    return g


# Operations with a varying number of sources. (For a LOOP see `gradient`: all at once.)
OWN_RULES: dict[Op, Callable[[Node], tuple[Rule | None, ...]]] = {
    Op.COLLECTIVE: lambda node: (collective.gradient,) * node.arg.payload,
    Op.CAT: _cat_rules,
    Op.CUSTOM: _custom_rules,
    **dict.fromkeys((Op.LOOP, Op.RESULT), lambda node: (_same,) * len(node.src)),
}


def _elementwise(op: Op) -> tuple[Rule | None, ...]:
    def lifted(rule: operations.Rule) -> Rule:
        return lambda node, g: rule(g, node, *node.src)

    return tuple(rule and lifted(rule) for rule in op.facts.gradient)


# One rule per source; None: nothing flows there.
RULES: dict[Op, tuple[Rule | None, ...]] = {
    **{op: _elementwise(op) for op in ELEMENTWISE if op.facts.gradient},
    Op.SUM: (_added,),
    Op.MAX: (_max,),
    Op.PROD: (_prod,),
    Op.CUMSUM: (cumsum_rule,),
    Op.CUMPROD: (cumprod_rule,),
    Op.CUMMAX: (cummax_rule,),
    **dict.fromkeys(build.UNDONE, (build.undone,)),
    Op.PAD: (lambda node, g: cropped(g, build.inside(node)),),
    Op.EXPAND: (_expand,),
    Op.WINDOW: (
        lambda node, g: overlap_add(wide(g), node.arg, node.src[0].shape).cast(g.dtype),
    ),
    Op.GATHER: (_gather, None),
    # of the base: that of places that were not written
    Op.SCATTER: (lambda node, g: _written_by(node).less(0).where(g, 0.0), None, _scatter),
    # of added elements: that of their place
    Op.SCATTER_ADD: (_same, None, lambda node, g: build.gather(g, node.src[1], node.arg)),
    Op.SCATTER_MAX: (_scatter_max_base, None, _scatter_max),
    Op.SCATTER_PROD: (_scatter_prod_base, None, _scatter_prod),
    Op.CONTIGUOUS: (_same,),
    Op.CHECK: (_same,),
    Op.MARK: (mark_gradient,),
    Op.COPY: (lambda node, g: build.copy(g, node.src[0].device),),
}
