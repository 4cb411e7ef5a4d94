"""The algebraic rules: each gives the same values with less work.

Floats are IEEE numbers, so a rule for them must also hold for −0, ∞ and NaN: x + 0.0 is not x
(−0.0 + 0.0 is 0.0), x·0 is not 0, x − x is not 0. Two freedoms are used, which every device has
anyway. First, a sum or product over axes may be taken in any order, so one order may overflow where
another does not. Second, a zero result of a sum, or the maximum or minimum of zeros of different
signs, may have either sign.

Rules that the devices' compilers have (x + −y, x + 2 + 3) are left to them. Rules that follow from
index arithmetic (a part of a repeated or of a padded array) are left to lowering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from minigrad.dtype import DType, convert
from minigrad.graph import build
from minigrad.graph.axes import joined, joined_pieces
from minigrad.graph.build import elementwise
from minigrad.graph.node import Node, is_symbolic
from minigrad.graph.operations import BINARY, MOVEMENT, REDUCTIONS, SCATTERS, Op
from minigrad.graph.rewrite import Rule, rewrite
from minigrad.graph.shapes import numel

RULES: dict[Op, list[Rule]] = {}  # the rules of each operation, by priority


def on(*ops: Op) -> Callable[[Rule], Rule]:
    """Register a rule for these operations, after the rules above it."""

    def add(rule: Rule) -> Rule:
        for op in ops:
            RULES.setdefault(op, []).append(rule)
        return rule

    return add


def simplify(roots: Sequence[Node]) -> tuple[Node, ...]:
    """The same values, shapes and dtypes from fewer or cheaper nodes."""
    return rewrite(roots, RULES)


def _is(node: Node, value: int | float) -> bool:
    """Whether node is this constant, in its dtype; of floats, 0.0 and −0.0 differ."""
    if node.op is not Op.CONST or node.arg != convert(value, node.dtype):
        return False
    if not node.dtype.is_float or value != 0:
        return True
    return math.copysign(1.0, node.arg) == math.copysign(1.0, value)


# --- elementwise ---------------------------------------------------------------------------------


@on(*(op for op in Op if op.facts.scalar))
def fold_constants(node: Node) -> Node | None:
    """2 + 3 → 5, in the result's dtype."""
    if any(source.op is not Op.CONST for source in node.src):
        return None
    value = node.op.facts.fold([source.arg for source in node.src])
    return None if value is None else node.constant(value)


@on(Op.ADD, Op.MUL, Op.MAXIMUM, Op.MINIMUM, Op.AND, Op.OR, Op.XOR)
def constant_second(node: Node) -> Node | None:
    """2 + x → x + 2, so that the other rules look at one side only."""
    x, y = node.src
    return elementwise(node.op, y, x) if x.op is Op.CONST else None  # two constants fold first


@on(*(op for op in BINARY if op.facts.neutral is not None))
def neutral(node: Node) -> Node | None:
    """x + −0.0 → x, x · 1 → x, max(x, −∞) → x: neutral elements (see `Elementwise`)."""
    (x, y), number = node.src, node.op.facts.neutral
    if isinstance(number, str):
        number = getattr(node.dtype, number)
    return x if number is not None and _is(y, number) else None


@on(Op.DIV)
def divide_by_power_of_two(node: Node) -> Node | None:
    """x / 4.0 → x · 0.25, if the reciprocal is exact and normal (x / 1.0 → x)."""
    x, y = node.src
    if y.op is not Op.CONST or abs(math.frexp(y.arg)[0]) != 0.5:  # ∞ and NaN, too
        return None
    exponent = math.frexp(y.arg)[1]
    if abs(exponent) > (13 if node.dtype.name == "float16" else 125):
        return None
    return x * (1.0 / float(y.arg))


@on(Op.WHERE)
def choose(node: Node) -> Node | None:
    """WHERE with a known or negated condition, or with equal or nested branches."""
    condition, x, y = node.src
    if condition.op is Op.CONST:
        return x if condition.arg else y
    if x is y:
        return x
    if condition.op is Op.NOT:
        return condition.src[0].where(y, x)
    if node.dtype.is_bool and x.op is y.op is Op.CONST:
        return condition if x.arg else ~condition
    inner_x = x.src[1] if x.op is Op.WHERE and x.src[0] is condition else x
    inner_y = y.src[2] if y.op is Op.WHERE and y.src[0] is condition else y
    if inner_x is not x or inner_y is not y:
        return condition.where(inner_x, inner_y)
    return None


_MANTISSA = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`."""
    if narrow is wide or narrow.is_bool:
        return True
    if wide.is_bool or (narrow.is_float and not wide.is_float):
        return False
    if narrow.is_float:
        return wide.itemsize > narrow.itemsize
    if wide.is_float:
        return narrow.bits - (narrow.kind == "i") <= _MANTISSA[wide.name]
    return narrow.minimum >= wide.minimum and narrow.maximum <= wide.maximum


@on(Op.CAST)
def cast_of_cast(node: Node) -> Node | None:
    """x → B → C becomes x → C if B keeps x's value, or if both steps only drop high bits.

    With movements between the casts, only x → B → x is simplified.
    """
    inner, moves = node.src[0], list[Node]()
    while inner.op in MOVEMENT:
        moves.append(inner)
        inner = inner.src[0]
    if inner.op is not Op.CAST:
        return None
    if moves:
        x = inner.src[0]
        if x.dtype is not node.dtype or not holds(inner.dtype, x.dtype):
            return None
        for move in reversed(moves):
            x = build.rebuild(move, (x,))
        return x
    start, middle, end = inner.src[0].dtype, inner.dtype, node.dtype
    wraps = start.is_int and middle.is_int and end.is_int and middle.bits >= end.bits
    # an integer cast by way of a float saturates; a direct cast would wrap
    saturates = middle.is_float and start.is_int and end.is_int and not holds(end, start)
    if wraps or (holds(middle, start) and not saturates):
        return build.cast(inner.src[0], end)
    return None


# --- two equal operations in a row ---------------------------------------------------------------

# How the arguments of two nodes combine. (This is done here, not when nodes are made, because a
# gradient by the node between two movements may be wanted.)
_JOINED: dict[Op, Callable[[Any, Any], Any]] = {
    **dict.fromkeys((Op.BITCAST, Op.RESHAPE, Op.EXPAND), lambda outer, inner: outer),
    **dict.fromkeys(REDUCTIONS, lambda outer, inner: (*inner, *outer)),
    Op.PERMUTE: lambda outer, inner: [inner[axis] for axis in outer],
    Op.FLIP: lambda outer, inner: sorted(set(outer) ^ set(inner)),
    Op.PAD: lambda outer, inner: [
        (a + c, b + d) for (a, b), (c, d) in zip(inner, outer, strict=True)
    ],
    Op.SHRINK: lambda outer, inner: [
        (start + o, stop + o) for (start, stop), (o, _) in zip(outer, inner, strict=True)
    ],
}


@on(*_JOINED)
def two_as_one(node: Node) -> Node | None:
    """Merge two consecutive movements, reductions or bitcasts of one kind."""
    inner = node.src[0]
    if inner.op is not node.op:
        return None
    return build.rebuild(node, inner.src, _JOINED[node.op](node.arg, inner.arg))


# --- reductions ----------------------------------------------------------------------------------


@on(*REDUCTIONS)
def reduce_constant(node: Node) -> Node | None:
    """SUM of n times c → n·c, MAX of c → c; over no elements the identity."""
    x = node.src[0]
    extents = [x.shape[axis] for axis in node.arg]
    if 0 in extents:
        return node.constant({Op.SUM: 0, Op.PROD: 1, Op.MAX: node.dtype.minimum}[node.op])
    if x.op is not Op.CONST or is_symbolic(tuple(extents)):
        return None
    one, count = node.constant(x.arg), numel(extents)
    if node.op is Op.MAX or node.dtype.is_bool:
        return one
    exact = not node.dtype.is_float or convert(count, node.dtype) == count
    return one * count if node.op is Op.SUM and exact else None


@on(*REDUCTIONS)
def reduce_expanded(node: Node) -> Node | None:
    """What is equal along a kept axis is reduced once, and then expanded.

    Example: the gradients of `(x @ w).sum()` are sums of rows and of columns.
    """
    x = node.src[0]
    if x.op is not Op.EXPAND:
        return None
    source = x.src[0]
    alike = [axis not in node.arg and source.shape[axis] == 1 != extent
             for axis, extent in enumerate(x.shape)]  # fmt: skip
    if not any(alike):
        return None
    shape = tuple(1 if same else extent for same, extent in zip(alike, x.shape, strict=True))
    return build.expand(build.reduce(node.op, build.expand(source, shape), node.arg), node.shape)


# --- movement ------------------------------------------------------------------------------------

@on(Op.PERMUTE)
def permute_of_ones(node: Node) -> Node | None:
    """A permutation that only moves dimensions of 1 is a reshape."""
    x = node.src[0]
    long = [axis for axis in node.arg if x.shape[axis] != 1]
    return build.reshape(x, node.shape) if long == sorted(long) else None


@on(Op.PAD, Op.GATHER)
def read_of_nothing(node: Node) -> Node | None:
    """PAD of an array without elements, or GATHER from one → zeros."""
    return node.constant(0) if 0 in node.src[0].shape else None


@on(Op.SHRINK)
def shrink_of_cat(node: Node) -> Node | None:
    """A part of a CAT → a CAT of the pieces that the part contains."""
    joined = node.src[0]
    axis, start = joined.arg, 0
    if joined.op is not Op.CAT or 0 in node.shape:
        return None
    first, last = node.arg[axis]
    if is_symbolic((first, last)):
        return None
    parts = []
    for piece in joined.src:
        stop = start + piece.shape[axis]
        inside = (max(first, start) - start, min(last, stop) - start)
        if inside[0] < inside[1]:
            parts.append(build.shrink(piece, [*node.arg[:axis], inside, *node.arg[axis + 1 :]]))
        start = stop
    if len(parts) == len(joined.src):
        return None  # all pieces are needed: no gain
    return build.cat(parts, axis)


@on(Op.WHERE)
def joined_again(node: Node) -> Node | None:
    """Joined pieces that are joined themselves → all of them, joined at once."""
    axis, pieces = joined_pieces(node)
    parts = [(piece, joined_pieces(piece)) for piece in pieces]
    flat = [one for piece, (along, inner) in parts for one in (inner if along == axis else [piece])]
    if len(flat) == len(pieces):
        return None
    return build.cat(flat, axis) if len(flat) > build.FEW else joined(flat, axis)


@on(*SCATTERS)
def scatter_nothing(node: Node) -> Node | None:
    """A scatter of no elements → its base."""
    base, index, _ = node.src
    return base if 0 in index.shape else None
