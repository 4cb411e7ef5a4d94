"""What a mesh does with each class of operations, as `partition.py` asks.

Given where its operands are, a rule says where the result is (`forward`); for a result that is to
be somewhere, where the operands must be (`backward`); and makes the node of one device (`local`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.axes import spread
from minigrad.graph.conversions import Converter
from minigrad.graph.node import Node, Op, make
from minigrad.graph.operations import ELEMENTWISE, REDUCTIONS, SCANS, SCATTERS
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import (
    NONE,
    Digits,
    Dims,
    Layout,
    axes_of,
    is_padded,
    joined,
    local_shape,
    period,
    reshaped,
    whole,
)

if TYPE_CHECKING:
    from minigrad.graph.partition import Plan

MADE_ANYWHERE = frozenset({Op.CONST, Op.IOTA, Op.VARIABLE})  # by each device for itself


@dataclass(frozen=True)
class Choice:
    """How a node is computed.

    made: where its result is. partials: over which axes each operand may be a partial sum. inner:
    the digits of the dimensions that it sums, or addresses, of which the result has none.
    """

    made: Layout
    partials: tuple[frozenset[str], ...]
    inner: Dims = ()


def _along(dims: Dims, axes: Collection[int], others: Dims) -> Dims:
    """`dims`, but along some axes what others are there."""
    return tuple(others[at] if at in axes else one for at, one in enumerate(dims))


class Rule:
    """Whole operands, a whole result: for whatever has no rule of its own."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """How the node is computed where its operands are laid out so."""
        return Choice(whole(node.ndim), (NONE,) * len(given))

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The digits of the operands for a result with these; None where there are no such."""
        return None if any(dims) else [((),) * source.ndim for source in node.src]

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The node on local operands, for a result with these digits."""
        return build.rebuild(node, src)


class Leaf(Rule):
    """Constants, ramps and variables: every device makes its own part."""

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """There are no operands."""
        return []

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """A part of it."""
        if node.op is Op.CONST:
            shape = local_shape(node.shape, dims)
            return build.const(node.arg, node.dtype, shape, emit.device)
        here = make(node.op, node.dtype, node.shape, (), node.arg, emit.device)
        return emit.convert(here, node.shape, whole(node.ndim), Layout(dims))


class Identity(Rule):
    """CONTIGUOUS, and the base of what moves elements: digits that survive, sums as they are."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """Where the operand is, as far as the result can be there."""
        (one,) = given
        return Choice(Layout(self.after(node, one.dims), one.partial), (one.partial,))

    def after(self, node: Node, dims: Dims) -> Dims:
        """The operand's digits that are left in the result."""
        return dims

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The same digits, where they are left."""
        before = dims[: node.src[0].ndim]
        return [before] * len(node.src) if self.after(node, before) == dims else None

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The same operation, to the local shape."""
        is_shaped = node.op in build.SHAPED
        return build.rebuild(node, src, local_shape(node.shape, dims) if is_shaped else None)


class Elementwise(Identity):
    """The heaviest operand's digits, and those of the others that go with them."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """A sum may stay partial where the operation is linear in it."""
        parts = [(source, one.dims) for source, one in zip(node.src, given, strict=True)]
        dims = plan.join(node.shape, parts)
        sums = [one.partial - axes_of(dims) for one in given]
        left, needs = _linear(node, sums)
        return Choice(Layout(dims, left), tuple(needs))


def _linear(node: Node, sums: list[frozenset[str]]) -> tuple[frozenset[str], list[frozenset[str]]]:
    """Over which axes the result is a partial sum, and which of its operands' it uses."""
    op, kind = node.op, node.dtype.kind
    nothing = (NONE, [NONE] * len(sums))
    if kind == "b" or not any(sums):
        return nothing
    if op is Op.NEG or (op is Op.CAST and kind == "f" == node.src[0].dtype.kind):
        return sums[0], sums
    if op in (Op.ADD, Op.SUB):  # a whole is a sum, too, of which one device has all
        both = sums[0] | sums[1]
        return both, [both, both]
    if op is Op.MUL:
        left, right = sums[0] - sums[1], sums[1] - sums[0]
        return left | right, [left, right]
    if op is Op.DIV:
        return sums[0] - sums[1], [sums[0] - sums[1], NONE]
    if op is Op.WHERE:
        zero = [node.src[place].known() == 0 for place in (1, 2)]
        both = sums[2] if zero[0] else sums[1] if zero[1] else sums[1] & sums[2]
        return both, [NONE, *(NONE if is_zero else both for is_zero in zero)]
    return nothing


class Marked(Identity):
    """MARK: where somebody said."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """An open one says it for the axes that it names only."""
        dims = node.arg.dims
        if not node.arg.open:
            return Choice(Layout(dims), (NONE,))
        dims = plan.join(node.shape, [(node, dims), (node, given[0].dims)])
        left = given[0].partial - axes_of(dims)
        return Choice(Layout(dims, left), (left,))

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """What is marked."""
        return src[0]


class Reshape(Identity):
    """A digit of one dimension is one of the position, and so of a dimension that has it whole."""

    def after(self, node: Node, dims: Dims) -> Dims:
        """See the class."""
        return reshaped(node.src[0].shape, dims, node.shape)[0]

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The other way round."""
        before, complete = reshaped(node.shape, dims, node.src[0].shape)
        return [before] if complete else None


class Permute(Identity):
    """Digits go with their dimensions."""

    def after(self, node: Node, dims: Dims) -> Dims:
        """See the class."""
        return tuple(dims[axis] for axis in node.arg)

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The other way round."""
        return [tuple(dims[node.arg.index(axis)] for axis in range(node.ndim))]


class Expand(Identity):
    """What is repeated may be divided anyhow."""

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """No digits where there was one element."""
        same = [a == b for a, b in zip(node.src[0].shape, node.shape, strict=True)]
        return [tuple(d if keeps else () for d, keeps in zip(dims, same, strict=True))]


class Aligned(Identity):
    """PAD and SHRINK: digits stay where ends are cut off, or put on, between their periods."""

    def after(self, node: Node, dims: Dims) -> Dims:
        """See the class."""
        pairs = enumerate(dims)
        return tuple(digits if self._fits(node, axis, digits) else () for axis, digits in pairs)

    def _fits(self, node: Node, axis: int, digits: Digits) -> bool:
        extent, step = node.src[0].shape[axis], period(digits)
        return node.shape[axis] == extent or (extent % step == 0 and all(
            isinstance(amount, int) and amount % step == 0 for amount in node.arg[axis]
        ))  # fmt: skip

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The part of the amounts that falls to each device."""
        pairs: list[Any] = []
        for axis, (pair, digits) in enumerate(zip(node.arg, dims, strict=True)):
            if node.op is Op.SHRINK and node.shape[axis] == node.src[0].shape[axis]:
                pairs.append((0, src[0].shape[axis]))
            else:
                ways = prod(digit.ways for digit in digits)
                pairs.append(tuple(amount // ways for amount in pair))
        return build.rebuild(node, src, pairs)


class Cat(Rule):
    """Each device joins its parts of the pieces: along the axis if digits begin anew with each."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """Sums stay partial: a whole is a sum, too, of which one device has all."""
        parts = [(source, one.dims) for source, one in zip(node.src, given, strict=True)]
        dims = list(plan.join(node.shape, parts))
        if not self._fits(node, dims[node.arg]):
            dims[node.arg] = ()
        left = NONE.union(*(one.partial for one in given)) - axes_of(dims)
        left = NONE if node.dtype.kind == "b" else left
        return Choice(Layout(tuple(dims), left), (left,) * len(given))

    def _fits(self, node: Node, digits: Digits) -> bool:
        step = period(digits)
        return all(not numel(x.shape[node.arg : node.arg + 1]) % step for x in node.src)

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The same digits, where they begin anew."""
        return [dims] * len(node.src) if self._fits(node, dims[node.arg]) else None


class Along(Identity):
    """FLIP, WINDOW, SORT and running reductions want the axes along which they go as a whole."""

    def after(self, node: Node, dims: Dims) -> Dims:
        """Those of the others; a window's own dimensions are new."""
        kept = _along(dims, self._axes(node), ((),) * node.ndim)
        return kept + ((),) * (node.ndim - len(kept))

    def _axes(self, node: Node) -> Sequence[int]:
        if node.op is Op.WINDOW:
            return [axis for axis, *_ in node.arg]
        return node.arg if node.op is Op.FLIP else (node.arg,)

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """Sums stay partial in what is linear."""
        partials = given[0].partial if node.op in (Op.FLIP, Op.WINDOW, Op.CUMSUM) else NONE
        return Choice(Layout(self.after(node, given[0].dims), partials), (partials,))


def _without_padding(
    emit: Converter, x: Node, axis: int, extent: Any, digits: Digits, instead: Any
) -> Node:
    """x, and `instead` where an index along an axis lies beyond the end."""
    if not is_padded(extent, digits):
        return x
    ramp = build.iota(period(digits), emit.device)
    own = emit.convert(ramp, ramp.shape, whole(1), Layout((digits,)))
    return spread(own.less(extent), x.shape, (axis,)).where(x, instead)

def _own_indices(emit: Converter, index: Node, extent: Any, digits: Digits) -> Node:
    """Indices into a whole axis as indices into this device's part; −1 for another's."""
    if not digits:
        return index
    narrow = index.dtype is dtypes.int32 or index.dtype.itemsize < 4
    value = build.cast(index, dtypes.int32 if narrow else dtypes.int64)
    mine = value.less(extent)
    for axis, stride, ways in digits:
        found = value.operation("idiv", stride).operation("mod", ways)
        mine = mine & found.equals(emit.place(axis, value.shape, value.dtype))
        blocks = value.operation("idiv", stride * ways)
        value = blocks * stride + value.operation("mod", stride)
    return mine.where(value, -1)


class Reduction(Rule):
    """A sum over a divided dimension is a partial sum; a maximum is exchanged at once."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """inner: the digits of what is reduced."""
        (one,), nothing = given, ((),) * node.ndim
        adds = node.op is Op.SUM and node.dtype.kind != "b"
        inner = _along(nothing, node.arg if adds or node.op is Op.MAX else (), one.dims)
        dims, needs = _along(one.dims, node.arg, nothing), one.partial if adds else NONE
        return Choice(Layout(dims, needs | axes_of(inner) if adds else NONE), (needs,), inner)

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The result's digits, and the inner ones."""
        return [_along(dims, node.arg, inner)]

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The reduction of what is here, without what lies beyond the end."""
        (x,) = src
        identity = node.dtype.minimum if node.op is Op.MAX else 0
        for axis in node.arg:
            x = _without_padding(emit, x, axis, node.src[0].shape[axis], inner[axis], identity)
        x = build.reduce(node.op, x, node.arg)
        if node.op is not Op.MAX or not axes_of(inner):
            return x
        return emit.exchange("all_reduce", axes_of(inner), x, "max")


class Gather(Rule):
    """Along a divided axis each device reads what it has, and 0 elsewhere: a partial sum."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """inner: the digits of the array along the axis."""
        (x, index), axes, nothing = given, (node.arg,), ((),) * node.ndim
        across = _along(x.dims, axes, nothing)
        dims = plan.join(node.shape, [(node.src[0], across), (node.src[1], index.dims)])
        inner = _along(nothing, axes, x.dims)
        if not axes_of(inner).isdisjoint(axes_of(dims)):
            inner = nothing
        left = x.partial - axes_of(dims)
        return Choice(Layout(dims, left | axes_of(inner)), (left, NONE), inner)

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The result's digits, and the array's own along the axis."""
        return [_along(dims, (node.arg,), inner), dims]

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """Indices count from where the device's part begins."""
        index = _own_indices(emit, src[1], node.src[0].shape[node.arg], inner[node.arg])
        return build.gather(src[0], index, node.arg)


class Scatter(Rule):
    """Each device writes to what it has; from divided sources into zeros it is a partial sum."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """inner: the digits of what is written, along the axis."""
        (base, index, x), axis, nothing = given, node.arg, ((),) * node.ndim
        is_zero = node.op is Op.SCATTER_ADD and node.src[0].known() == 0
        across = [_along(one.dims, (axis,), nothing) for one in (index, x)]
        dims = plan.join(node.shape, [*zip(node.src, (base.dims, *across), strict=True)])
        inner: Dims = nothing
        if is_zero:
            digits: Digits = ()
            extent, used = node.src[2].shape[axis], axes_of(dims)
            for one in (x, index):
                digits = joined(extent, digits, (d for d in one.dims[axis] if d.axis not in used))
                used |= axes_of((digits,))
            inner = _along(nothing, (axis,), (digits,) * node.ndim)
        left = x.partial - axes_of(dims) - axes_of(inner) if is_zero else NONE
        return Choice(Layout(dims, left | axes_of(inner)), (NONE, NONE, left), inner)

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The result's digits; those of what is written along the axis."""
        written = _along(dims, (node.arg,), inner)
        return [dims, written, written]

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """Indices count from where the device's part begins; beyond the end nothing is written."""
        (base, index, x), axis = src, node.arg
        index = _own_indices(emit, index, node.shape[axis], dims[axis])
        extent = node.src[1].shape[axis]
        if is_padded(extent, inner[axis]):
            index = index if index.dtype.kind == "i" else build.cast(index, dtypes.int64)
            index = _without_padding(emit, index, axis, extent, inner[axis], -1)
        return build.scatter(node.op, base, index, x, axis)


RULES: dict[Op, Rule] = {
    **dict.fromkeys(ELEMENTWISE, Elementwise()),
    **dict.fromkeys(REDUCTIONS, Reduction()),
    **dict.fromkeys((*SCANS, Op.SORT, Op.FLIP, Op.WINDOW), Along()),
    **dict.fromkeys((Op.PAD, Op.SHRINK), Aligned()),
    **dict.fromkeys(MADE_ANYWHERE, Leaf()),
    **dict.fromkeys(SCATTERS, Scatter()),
    Op.RESHAPE: Reshape(), Op.PERMUTE: Permute(), Op.EXPAND: Expand(), Op.GATHER: Gather(),
    Op.CONTIGUOUS: Identity(), Op.MARK: Marked(), Op.CAT: Cat(),
}  # fmt: skip
_WHOLE = Rule()


def rule_of(node: Node) -> Rule:
    """The rule of a node's class of operations."""
    return RULES.get(node.op, _WHOLE)
