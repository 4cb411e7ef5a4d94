"""What a mesh does with each class of operations, as `partition.py` asks.

Given where its operands are, a rule says where the result is (`forward`); for a result that is to
be somewhere, where the operands must be (`backward`); and makes the node of one device (`local`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.conversions import Converter
from minigrad.graph.node import Node, Op, make
from minigrad.graph.operations import ELEMENTWISE, REDUCTIONS, SCANS, SCATTERS
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import (
    NONE,
    Digits,
    Dims,
    Layout,
    Sizes,
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

    made: where its result is. inner: the digits of the dimensions that it sums, or addresses.
    partials: over which axes each operand may be a partial sum.
    """

    made: Layout
    inner: Dims
    partials: tuple[frozenset[str], ...]


class Place(NamedTuple):
    """What is to be computed, where, and the inner digits of its choice."""

    node: Node
    dims: Dims
    inner: Dims


class Rule:
    """Whole operands, a whole result: for whatever has no rule of its own."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """How the node is computed where its operands are laid out so."""
        return Choice(whole(node.ndim), (), (NONE,) * len(given))

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The digits of the operands for a result with these; None where there are no such."""
        return None if any(dims) else [((),) * source.ndim for source in node.src]

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """The node on local operands."""
        node = at.node
        if node.op is Op.SORT:
            return build.sort(src[0], node.arg)
        if node.op is Op.DISTRIBUTE:
            return build.distribute(*src)
        return build.rebuild(node, src)


class Leaf(Rule):
    """Constants, ramps and variables: every device makes its own part."""

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """There are no operands."""
        return []

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """A part of it."""
        node, dims, _ = at
        shape = local_shape(node.shape, dims, emit.sizes)
        here = make(node.op, node.dtype, node.shape, (), node.arg, emit.device)
        if node.op is Op.CONST:
            return build.const(node.arg, node.dtype, shape, emit.device)
        return emit.convert(here, node.shape, whole(node.ndim), Layout(dims))


class Elementwise(Rule):
    """The heaviest operand's digits, and those of the others that go with them."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """A sum may stay partial where the operation is linear in it."""
        parts = [(source, one.dims) for source, one in zip(node.src, given, strict=True)]
        dims = plan.join(node.shape, parts)
        sums = [one.partial - axes_of(dims) for one in given]
        left, needs = self.linear(node, sums)
        return Choice(Layout(dims, left), (), tuple(needs))

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The same digits."""
        return [dims] * len(node.src)

    def linear(
        self, node: Node, sums: list[frozenset[str]]
    ) -> tuple[frozenset[str], list[frozenset[str]]]:
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


class Identity(Rule):
    """CONTIGUOUS, and the base of what moves elements: digits that survive, sums as they are."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """Where the operand is, as far as the result can be there."""
        (one,) = given
        return Choice(Layout(self.after(plan, node, one.dims), one.partial), (), (one.partial,))

    def after(self, plan: Plan, node: Node, dims: Dims) -> Dims:
        """The operand's digits that are left in the result."""
        return dims

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The same digits."""
        return [dims]

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """The same operation; a MARK is none."""
        node = at.node
        return src[0] if node.op is Op.MARK else super().local(emit, at, src)


class Marked(Identity):
    """MARK: where somebody said."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """An open one says it for the axes that it names only."""
        dims = node.arg.dims
        if not node.arg.open:
            return Choice(Layout(dims), (), (NONE,))
        dims = plan.join(node.shape, [(node, dims), (node, given[0].dims)])
        left = given[0].partial - axes_of(dims)
        return Choice(Layout(dims, left), (), (left,))


class Reshape(Identity):
    """A digit of one dimension is one of the position, and so of a dimension that has it whole."""

    def after(self, plan: Plan, node: Node, dims: Dims) -> Dims:
        """See the class."""
        return reshaped(node.src[0].shape, dims, node.shape, plan.sizes)[0]

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The other way round."""
        before, complete = reshaped(node.shape, dims, node.src[0].shape, plan.sizes)
        return [before] if complete else None

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """To the local shape."""
        node, dims, _ = at
        return build.reshape(src[0], local_shape(node.shape, dims, emit.sizes))


class Permute(Identity):
    """Digits go with their dimensions."""

    def after(self, plan: Plan, node: Node, dims: Dims) -> Dims:
        """See the class."""
        return tuple(dims[axis] for axis in node.arg)

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The other way round."""
        return [tuple(dims[node.arg.index(axis)] for axis in range(node.ndim))]


class Expand(Identity):
    """What is repeated may be divided anyhow."""

    def after(self, plan: Plan, node: Node, dims: Dims) -> Dims:
        """See the class."""
        return dims

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """No digits where there was one element."""
        same = [a == b for a, b in zip(node.src[0].shape, node.shape, strict=True)]
        return [tuple(d if keeps else () for d, keeps in zip(dims, same, strict=True))]

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """To the local shape."""
        node, dims, _ = at
        return build.expand(src[0], local_shape(node.shape, dims, emit.sizes))


class Aligned(Identity):
    """PAD and SHRINK: digits stay where ends are cut off, or put on, between their periods."""

    def after(self, plan: Plan, node: Node, dims: Dims) -> Dims:
        """See the class."""
        return tuple(
            digits if self._fits(plan.sizes, node, axis, digits) else ()
            for axis, digits in enumerate(dims)
        )

    def _fits(self, sizes: Sizes, node: Node, axis: int, digits: Digits) -> bool:
        extent = node.src[0].shape[axis]
        if not digits or node.shape[axis] == extent:
            return True
        step = period(digits, sizes)
        return extent % step == 0 and all(
            isinstance(amount, int) and amount % step == 0 for amount in node.arg[axis]
        )

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The same digits, where they stay."""
        return [dims] if self.after(plan, node, dims) == dims else None

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """The part of the amounts that falls to each device."""
        node, dims, _ = at
        pairs: list[Any] = []
        for axis, (pair, digits) in enumerate(zip(node.arg, dims, strict=True)):
            if digits and node.shape[axis] == node.src[0].shape[axis]:
                pair = (0, 0) if node.op is Op.PAD else (0, src[0].shape[axis])
            elif digits:
                ways = prod(emit.sizes[digit.axis] for digit in digits)
                pair = tuple(amount // ways for amount in pair)
            pairs.append(pair)
        return build.pad(src[0], pairs) if node.op is Op.PAD else build.shrink(src[0], pairs)


class Cat(Rule):
    """Each device joins its parts of the pieces: along the axis if digits begin anew with each."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """Sums stay partial: a whole is a sum, too, of which one device has all."""
        parts = [(source, one.dims) for source, one in zip(node.src, given, strict=True)]
        dims = list(plan.join(node.shape, parts))
        if not self._fits(plan, node, dims[node.arg]):
            dims[node.arg] = ()
        left = NONE.union(*(one.partial for one in given)) - axes_of(dims)
        left = NONE if node.dtype.kind == "b" else left
        return Choice(Layout(tuple(dims), left), (), (left,) * len(given))

    def _fits(self, plan: Plan, node: Node, digits: Digits) -> bool:
        step = period(digits, plan.sizes)
        return all(not numel(x.shape[node.arg : node.arg + 1]) % step for x in node.src)

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The same digits, where they begin anew."""
        return [dims] * len(node.src) if self._fits(plan, node, dims[node.arg]) else None

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """The local pieces, joined."""
        return build.cat(src, at.node.arg)


class Along(Identity):
    """FLIP, WINDOW, SORT and running reductions want the axes along which they go as a whole."""

    def after(self, plan: Plan, node: Node, dims: Dims) -> Dims:
        """Those of the others; a window's own dimensions are new."""
        fixed = self._axes(node)
        kept = tuple(() if axis in fixed else digits for axis, digits in enumerate(dims))
        return kept + ((),) * (node.ndim - len(kept))

    def _axes(self, node: Node) -> Sequence[int]:
        if node.op is Op.WINDOW:
            return [axis for axis, *_ in node.arg]
        return node.arg if node.op is Op.FLIP else (node.arg,)

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """Sums stay partial in what is linear."""
        partials = given[0].partial if node.op in (Op.FLIP, Op.WINDOW, Op.CUMSUM) else NONE
        return Choice(Layout(self.after(plan, node, given[0].dims), partials), (), (partials,))

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The same digits, where none is along an axis."""
        before = dims[: node.src[0].ndim]
        return [before] if self.after(plan, node, before) == dims else None


class Reduction(Rule):
    """A sum over a divided dimension is a partial sum; a maximum is exchanged at once."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """inner: the digits of what is reduced."""
        (one,) = given
        adds = node.op is Op.SUM and node.dtype.kind != "b"
        inner = tuple(
            digits if axis in node.arg and (adds or node.op is Op.MAX) else ()
            for axis, digits in enumerate(one.dims)
        )
        dims = tuple(() if axis in node.arg else digits for axis, digits in enumerate(one.dims))
        needs = one.partial if adds else NONE
        return Choice(Layout(dims, needs | axes_of(inner) if adds else NONE), inner, (needs,))

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The result's digits, and the inner ones."""
        if not axes_of(dims).isdisjoint(axes_of(inner)):
            return None
        return [tuple(inner[at] if at in node.arg else one for at, one in enumerate(dims))]

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """The reduction of what is here, without what lies beyond the end."""
        node, _, inner = at
        (x,) = src
        identity = node.dtype.minimum if node.op is Op.MAX else 0
        for axis in node.arg:
            x = emit.without_padding(x, axis, node.src[0].shape[axis], inner[axis], identity)
        x = build.reduce(node.op, x, node.arg)
        if node.op is not Op.MAX or not axes_of(inner):
            return x
        return emit.exchange("all_reduce", axes_of(inner), x, "max")


class Gather(Rule):
    """Along a divided axis each device reads what it has, and 0 elsewhere: a partial sum."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """inner: the digits of the array along the axis."""
        (x, index), axis = given, node.arg
        across = tuple(() if at == axis else digits for at, digits in enumerate(x.dims))
        dims = plan.join(node.shape, [(node.src[0], across), (node.src[1], index.dims)])
        own = x.dims[axis] if axes_of((x.dims[axis],)).isdisjoint(axes_of(dims)) else ()
        left = x.partial - axes_of(dims)
        inner = tuple(own if at == axis else () for at in range(node.ndim))
        return Choice(Layout(dims, left | axes_of(inner)), inner, (left, NONE))

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The result's digits, and the array's own along the axis."""
        if not axes_of(dims).isdisjoint(axes_of(inner)):
            return None
        own = inner[node.arg] if inner else ()
        return [tuple(own if at == node.arg else one for at, one in enumerate(dims)), dims]

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """Indices count from where the device's part begins."""
        node, _, inner = at
        index = emit.own_indices(src[1], node.src[0].shape[node.arg], inner[node.arg])
        return build.gather(src[0], index, node.arg)


class Scatter(Rule):
    """Each device writes to what it has; from divided sources into zeros it is a partial sum."""

    def forward(self, plan: Plan, node: Node, given: Sequence[Layout]) -> Choice:
        """inner: the digits of what is written, along the axis."""
        (base, index, x), axis = given, node.arg
        is_zero = node.op is Op.SCATTER_ADD and node.src[0].known() == 0
        across = [tuple(() if at == axis else d for at, d in enumerate(one.dims))
                  for one in (index, x)]  # fmt: skip
        dims = plan.join(node.shape, [
            (node.src[0], base.dims), (node.src[1], across[0]), (node.src[2], across[1]),
        ])  # fmt: skip
        inner: Dims = ((),) * node.ndim
        if is_zero:
            used = axes_of(dims)
            own = [tuple(digit for digit in one.dims[axis] if digit.axis not in used)
                   for one in (index, x)]  # fmt: skip
            extent = node.src[2].shape[axis]
            digits = joined(extent, (), own[1], plan.sizes)
            taken = axes_of((digits,))
            digits = joined(extent, digits, (d for d in own[0] if d.axis not in taken), plan.sizes)
            inner = tuple(digits if at == axis else () for at in range(node.ndim))
        left = x.partial - axes_of(dims) - axes_of(inner) if is_zero else NONE
        return Choice(Layout(dims, left | axes_of(inner)), inner, (NONE, NONE, left))

    def backward(self, plan: Plan, node: Node, dims: Dims, inner: Dims) -> list[Dims] | None:
        """The result's digits; those of what is written along the axis."""
        if not axes_of(dims).isdisjoint(axes_of(inner)):
            return None
        own = inner[node.arg] if inner else ()
        written = tuple(own if at == node.arg else one for at, one in enumerate(dims))
        return [dims, written, written]

    def local(self, emit: Converter, at: Place, src: Sequence[Node]) -> Node:
        """Indices count from where the device's part begins; beyond the end nothing is written."""
        node, dims, inner = at
        base, index, x = src
        axis = node.arg
        index = emit.own_indices(index, node.shape[axis], dims[axis])
        extent = node.src[1].shape[axis]
        if is_padded(extent, inner[axis], emit.sizes):
            index = index if index.dtype.kind == "i" else build.cast(index, dtypes.int64)
            index = emit.without_padding(index, axis, extent, inner[axis], -1)
        return build.scatter(node.op, base, index, x, axis)


_ELEMENTWISE, _ALONG, _ALIGNED, _LEAF = Elementwise(), Along(), Aligned(), Leaf()
RULES: dict[Op, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _ELEMENTWISE),
    **dict.fromkeys(REDUCTIONS, Reduction()),
    **dict.fromkeys((*SCANS, Op.SORT, Op.FLIP, Op.WINDOW), _ALONG),
    **dict.fromkeys((Op.PAD, Op.SHRINK), _ALIGNED),
    **dict.fromkeys(MADE_ANYWHERE, _LEAF),
    **dict.fromkeys(SCATTERS, Scatter()),
    Op.RESHAPE: Reshape(), Op.PERMUTE: Permute(), Op.EXPAND: Expand(), Op.GATHER: Gather(),
    Op.CONTIGUOUS: Identity(), Op.MARK: Marked(), Op.CAT: Cat(),
}  # fmt: skip
_WHOLE = Rule()


def rule_of(node: Node) -> Rule:
    """The rule of a node's class of operations."""
    return RULES.get(node.op, _WHOLE)
