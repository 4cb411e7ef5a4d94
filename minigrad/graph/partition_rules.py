"""What a mesh does with each class of operations, for `partition.py`.

Given the layouts of its operands, a rule gives the layout of the result (`forward`). Given the
wanted layout of the result, it gives those that the operands must have (`backward`). And it makes
the node of one device (`local`).
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
    from minigrad.graph.partition import LayoutPlan

MADE_ANYWHERE = frozenset({Op.CONST, Op.IOTA, Op.VARIABLE})  # by each device for itself


@dataclass(frozen=True)
class Choice:
    """How a node is computed.

    made: the layout of its result. partials: for each operand, the axes over which it may be a
    partial sum. inner: the digits of dimensions that it sums or addresses, which the result lacks.
    """

    made: Layout
    partials: tuple[frozenset[str], ...]
    inner: Dims = ()


def _along(dims: Dims, axes: Collection[int], others: Dims) -> Dims:
    """`dims`, with the others' digits along some axes."""
    return tuple(others[at] if at in axes else one for at, one in enumerate(dims))


class Rule:
    """Whole operands, a whole result: for operations without a rule of their own."""

    def forward(self, plan: LayoutPlan, node: Node, given: Sequence[Layout]) -> Choice:
        """How the node is computed, given the layouts of its operands."""
        return Choice(whole(node.ndim), (NONE,) * len(given))

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The digits of the operands for a result with these; None if there are none."""
        return None if any(dims) else [((),) * source.ndim for source in node.src]

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The node on local operands, for a result with these digits."""
        shape = local_shape(node.shape, dims) if node.op in build.SHAPED else None
        return build.rebuild(node, src, shape)


class Leaf(Rule):
    """Constants, ramps and variables: every device makes its own part."""

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """No operands."""
        return []

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The device's part."""
        if node.op is Op.CONST:
            return build.const(node.arg, node.dtype, local_shape(node.shape, dims), emit.device)
        here = make(node.op, node.dtype, node.shape, (), node.arg, emit.device)
        return emit.convert(here, node.shape, whole(node.ndim), Layout(dims))


def _apart(node: Node) -> Sequence[Sequence[int]]:
    """For each operand, the dimensions that the result lacks: reduced, addressed, repeated."""
    op, arg = node.op, node.arg
    if op in REDUCTIONS or op is Op.FLIP:
        return [arg]
    if op in SCANS or op is Op.SORT:
        return [(arg,)]
    if op is Op.WINDOW:
        return [[axis for axis, *_ in arg]]
    if op is Op.EXPAND:
        pairs = zip(node.src[0].shape, node.shape, strict=True)
        return [[axis for axis, (one, many) in enumerate(pairs) if one != many]]
    if op is Op.GATHER:
        return [(arg,), ()]
    return [(), (arg,), (arg,)] if op in SCATTERS else [()] * len(node.src)


def _summed(node: Node) -> Sequence[int]:
    """The operands that may be divided there, so that each device has a term of a sum."""
    if node.op is Op.SCATTER_ADD:
        return (2, 1) if node.src[0].known() == 0 else ()
    adds = node.op is Op.SUM and node.dtype.kind != "b"
    return (0,) if adds or node.op in (Op.MAX, Op.GATHER) else ()


class Aligned(Rule):
    """Dimensions of the result are those of the operands, with their digits, except `_apart`.

    If operands differ, the digits of the heaviest one count, and those of others that go with them.
    A sum may stay partial if the operation is linear in it.
    """

    def after(self, node: Node, dims: Dims) -> Dims:
        """An operand's digits in the result."""
        return dims

    def fits(self, node: Node, axis: int, digits: Digits) -> bool:
        """Whether the result can have digits that its operands have."""
        return True

    def _fitting(self, node: Node, dims: Dims) -> Dims:
        return tuple(d if d and self.fits(node, axis, d) else () for axis, d in enumerate(dims))

    def forward(self, plan: LayoutPlan, node: Node, given: Sequence[Layout]) -> Choice:
        """See the class."""
        nothing: Dims = ((),) * node.ndim
        parts = [
            (source, _along(self.after(node, one.dims), axes, nothing))
            for source, one, axes in zip(node.src, given, _apart(node), strict=True)
        ]
        dims = self._fitting(node, plan.join(node.shape, parts))
        inner, used = [*nothing], axes_of(dims)
        for place in _summed(node):
            for axis in _apart(node)[place]:
                more = (d for d in given[place].dims[axis] if d.axis not in used)
                inner[axis] = joined(node.src[place].shape[axis], inner[axis], more)
            used |= axes_of(inner)
        left, needs = _linear(node, [one.partial - used for one in given])
        if node.op is not Op.MAX:  # a maximum is exchanged at once
            left |= axes_of(inner)
        return Choice(Layout(dims, left), tuple(needs), tuple(inner))

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The result's digits, if it can have them, and the inner ones."""
        if self._fitting(node, dims) != dims:
            return None
        pairs = zip(node.src, _apart(node), strict=True)
        return [_along(dims[: source.ndim], axes, inner) for source, axes in pairs]


# Operations whose result is a partial sum if the first operand is one.
_LINEAR = frozenset({
    Op.NEG, Op.CONTIGUOUS, Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.PAD, Op.SHRINK, Op.FLIP, Op.WINDOW,
    Op.GATHER, Op.SUM, Op.CUMSUM,
})  # fmt: skip


def _linear(node: Node, sums: list[frozenset[str]]) -> tuple[frozenset[str], list[frozenset[str]]]:
    """The axes over which the result is a partial sum, and those over which each operand may be."""
    op, kind = node.op, node.dtype.kind
    nothing = (NONE, [NONE] * len(sums))
    if kind == "b" or not any(sums):
        return nothing
    first, *others = sums
    if op in _LINEAR or (op is Op.CAST and kind == "f" == node.src[0].dtype.kind):
        return first, [first, *(NONE for _ in others)]
    if op in (Op.ADD, Op.SUB, Op.CAT):  # a whole value is a sum, too, with one term on one device
        both = first.union(*others)
        return both, [both] * len(sums)
    if op is Op.MUL:
        left, right = sums[0] - sums[1], sums[1] - sums[0]
        return left | right, [left, right]
    if op is Op.DIV:
        return sums[0] - sums[1], [sums[0] - sums[1], NONE]
    if op is Op.WHERE:
        zero = [node.src[place].known() == 0 for place in (1, 2)]
        both = sums[2] if zero[0] else sums[1] if zero[1] else sums[1] & sums[2]
        return both, [NONE, *(NONE if is_zero else both for is_zero in zero)]
    if op is Op.SCATTER_ADD and _summed(node):
        return sums[2], [NONE, NONE, sums[2]]
    return nothing


class Marked(Aligned):
    """MARK: the layout that it names."""

    def forward(self, plan: LayoutPlan, node: Node, given: Sequence[Layout]) -> Choice:
        """An open MARK sets only the axes that it names."""
        dims = node.arg.dims
        if not node.arg.open:
            return Choice(Layout(dims), (NONE,))
        dims = plan.join(node.shape, [(node, dims), (node, given[0].dims)])
        left = given[0].partial - axes_of(dims)
        return Choice(Layout(dims, left), (left,))

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The source."""
        return src[0]


class Reshape(Aligned):
    """A digit of a dimension is one of the position, and so of a dimension that contains it."""

    def after(self, node: Node, dims: Dims) -> Dims:
        """See the class."""
        return reshaped(node.src[0].shape, dims, node.shape)[0]

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The same in reverse."""
        before, complete = reshaped(node.shape, dims, node.src[0].shape)
        return [before] if complete else None


class Permute(Aligned):
    """Digits move with their dimensions."""

    def after(self, node: Node, dims: Dims) -> Dims:
        """See the class."""
        return tuple(dims[axis] for axis in node.arg)

    def backward(self, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The same in reverse."""
        return [tuple(dims[node.arg.index(axis)] for axis in range(node.ndim))]


class Ends(Aligned):
    """PAD and SHRINK: digits stay if the amounts are multiples of their period."""

    def fits(self, node: Node, axis: int, digits: Digits) -> bool:
        """See the class."""
        extent, step = node.src[0].shape[axis], period(digits)
        return node.shape[axis] == extent or (extent % step == 0 and all(
            isinstance(amount, int) and amount % step == 0 for amount in node.arg[axis]
        ))  # fmt: skip

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The node with each device's share of the amounts."""
        pairs: list[Any] = []
        for axis, (pair, digits) in enumerate(zip(node.arg, dims, strict=True)):
            if node.op is Op.SHRINK and node.shape[axis] == node.src[0].shape[axis]:
                pairs.append((0, src[0].shape[axis]))
            else:
                ways = prod(digit.ways for digit in digits)
                pairs.append(tuple(amount // ways for amount in pair))
        return build.rebuild(node, src, pairs)


class Cat(Aligned):
    """Each device joins its parts of the pieces; along the axis if digits restart with each."""

    def fits(self, node: Node, axis: int, digits: Digits) -> bool:
        """See the class."""
        extents = [numel(x.shape[axis : axis + 1]) for x in node.src] if axis == node.arg else []
        return all(extent % period(digits) == 0 for extent in extents)


class Along(Aligned):
    """FLIP, WINDOW, SORT and running reductions need the axes along which they run as a whole."""

    def fits(self, node: Node, axis: int, digits: Digits) -> bool:
        """True for the others; a window's own dimensions are new."""
        return axis < node.src[0].ndim and axis not in _apart(node)[0]


def _without_padding(
    emit: Converter, x: Node, axis: int, extent: Any, digits: Digits, instead: Any
) -> Node:
    """x, with `instead` at the indices along an axis that are beyond its end."""
    if not is_padded(extent, digits):
        return x
    ramp = build.iota(period(digits), emit.device)
    own = emit.convert(ramp, ramp.shape, whole(1), Layout((digits,)))
    return spread(own.less(extent), x.shape, (axis,)).where(x, instead)


def _own_indices(emit: Converter, index: Node, extent: Any, digits: Digits) -> Node:
    """Indices into a whole axis as indices into this device's part; −1 for another device's."""
    if not digits:
        return index
    narrow = index.dtype is dtypes.int32 or index.dtype.itemsize < 4
    value = build.cast(index, dtypes.int32 if narrow else dtypes.int64)
    mine = value.less(extent)
    for axis, stride, ways in digits:
        found = value.operation("idiv", stride).operation("mod", ways)
        mine = mine & found.equals(emit.place(axis, value.shape, value.dtype))
        value = value.operation("idiv", stride * ways) * stride + value.operation("mod", stride)
    return mine.where(value, -1)


class Reduction(Aligned):
    """A sum over a divided dimension is a partial sum; a maximum is exchanged at once."""

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The reduction of the local part, without padding."""
        (x,) = src
        identity = node.dtype.minimum if node.op is Op.MAX else 0
        for axis in node.arg:
            x = _without_padding(emit, x, axis, node.src[0].shape[axis], inner[axis], identity)
        x = build.reduce(node.op, x, node.arg)
        if node.op is not Op.MAX or not axes_of(inner):
            return x
        return emit.exchange("all_reduce", axes_of(inner), x, "max")


class Gather(Aligned):
    """Along a divided axis each device reads its own elements, and 0 elsewhere: a partial sum."""

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The node, with indices relative to the device's part."""
        index = _own_indices(emit, src[1], node.src[0].shape[node.arg], inner[node.arg])
        return build.gather(src[0], index, node.arg)


class Scatter(Aligned):
    """Each device writes to its part; divided sources, written into zeros, give a partial sum."""

    def local(self, emit: Converter, node: Node, dims: Dims, inner: Dims, src: list[Node]) -> Node:
        """The node, with indices relative to the device's part; padding is not written."""
        (base, index, x), axis = src, node.arg
        index = _own_indices(emit, index, node.shape[axis], dims[axis])
        extent = node.src[1].shape[axis]
        if is_padded(extent, inner[axis]):
            index = index if index.dtype.kind == "i" else build.cast(index, dtypes.int64)
            index = _without_padding(emit, index, axis, extent, inner[axis], -1)
        return build.scatter(node.op, base, index, x, axis)


RULES: dict[Op, Rule] = {
    **dict.fromkeys((*ELEMENTWISE, Op.CONTIGUOUS, Op.EXPAND), Aligned()),
    **dict.fromkeys(REDUCTIONS, Reduction()),
    **dict.fromkeys((*SCANS, Op.SORT, Op.FLIP, Op.WINDOW), Along()),
    **dict.fromkeys((Op.PAD, Op.SHRINK), Ends()),
    **dict.fromkeys(MADE_ANYWHERE, Leaf()),
    **dict.fromkeys(SCATTERS, Scatter()),
    Op.RESHAPE: Reshape(), Op.PERMUTE: Permute(), Op.GATHER: Gather(),
    Op.MARK: Marked(), Op.CAT: Cat(),
}  # fmt: skip
_WHOLE = Rule()


def rule_of(node: Node) -> Rule:
    """The rule of a node's class of operations."""
    return RULES.get(node.op, _WHOLE)
