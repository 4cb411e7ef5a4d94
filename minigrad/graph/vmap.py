"""The same graph for many values at once: every node gets a new first dimension, or stays.

What depends on none of the batched nodes is computed once, as before. (JAX calls this vmap.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minigrad.dtype import DType
from minigrad.errors import ScanError
from minigrad.graph import build
from minigrad.graph.node import Node, Op, Shape, make, topological
from minigrad.graph.symbolic import Integer


class Given:
    """The memory of a value that is given later, in each step of a loop."""

    __slots__ = ("__weakref__",)
    handle = owner = steady = None  # as in a `Buffer` that was never written

    @property
    def memory(self) -> Any:
        """Raises ScanError: there is none."""
        raise ScanError(
            "Tensor.scan: a value from inside the step function is read. It has no number before "
            "the steps run, and a different one in each step; return it from the function, and "
            "read it outside"
        )


def given(dtype: DType, shape: Shape, device: str) -> Node:
    """A value that is given later."""
    return build.buffer(Given(), dtype, shape, device)


def stand_in(node: Node) -> Node:
    """A node for a value like another node's, which is given later."""
    return given(node.dtype, node.shape, node.device)


def batched(roots: Sequence[Node], arrays: Mapping[Node, Node], count: Integer) -> list[Node]:
    """The roots (count, …) when nodes are, in turn, the rows of arrays (count, …).

    arrays: node → its rows. A root that depends on none of the nodes is repeated.
    """
    new = dict(arrays)
    for node in topological(roots):
        if node not in new and any(source in new for source in node.src):
            new[node] = batch(node, [rows(source, new, count) for source in node.src])
    return [rows(root, new, count) for root in roots]


def sum_of_rows(x: Node) -> Node:
    """Σ over the first dimension, which is removed; merged with sums that x consists of.

    So a sum of many outer products is one matrix product.
    """
    rest = x.shape[1:]
    if x.op is Op.RESHAPE and x.src[0].shape[:1] == x.shape[:1]:
        return build.reshape(sum_of_rows(x.src[0]), rest)
    if x.op is Op.PERMUTE and x.arg[0] == 0:
        return build.permute(sum_of_rows(x.src[0]), [axis - 1 for axis in x.arg[1:]])
    if x.op is Op.ADD:
        return sum_of_rows(x.src[0]) + sum_of_rows(x.src[1])
    axes, inner = (x.arg, x.src[0]) if x.op is Op.SUM else ((), x)
    return build.reshape(build.reduce(Op.SUM, inner, (0, *axes)), rest)


def rows(node: Node, new: Mapping[Node, Node], count: Integer) -> Node:
    """The rows of a batched node; one that does not vary is repeated."""
    known = new.get(node)
    if known is not None:
        return known
    one = node.src[0] if node.op is Op.EXPAND else node  # one EXPAND, whose gradient is one sum
    return build.expand(build.reshape(one, (1, *one.shape)), (count, *node.shape))


def batch(node: Node, src: Sequence[Node]) -> Node:
    """The operation on sources with one more dimension in front."""
    op, full = node.op, (src[0].shape[0], *node.shape)
    if op in build.SHAPED:
        return build.rebuild(node, src, full)
    if op is Op.CHECK:
        return make(op, node.dtype, full, (src[0],), node.arg, node.device)
    if op is Op.CUSTOM:  # the rule keeps none of the node's sources, which may be large
        one = make(op, node.dtype, node.shape, (*map(stand_in, node.src),), node.arg, node.device)
        return build.custom(src[0], src[1:], _Rows(one))
    if op in build.ALONG:
        return build.along(node, src, lambda axis: axis + 1)
    if op in _LATER:
        return build.rebuild(node, src, _LATER[op](node.arg, full[0]))
    if op is Op.CONTIGUOUS or op.facts.arity:
        return build.rebuild(node, src)
    raise ScanError(f"Tensor.scan: {op.value} cannot be computed for all steps at once")


@dataclass(frozen=True)
class _Rows:
    """The gradient rule of a CUSTOM for many values at once: the rule of `one`, batched."""

    one: Node

    def __call__(self, node: Node, g: Node) -> list[Node | None]:
        """One gradient per source after the first."""
        one = self.one
        row = given(g.dtype, one.shape, g.device)
        found = one.arg(one, row)
        known: dict[Node, Any] = dict(zip(one.src, node.src, strict=True))
        known[row], known[one] = g, node
        kept = [part for part in found if part is not None]
        made = iter(batched(kept, known, g.shape[0]))
        return [None if part is None else next(made) for part in found]


# Arguments for all dimensions, after a new first dimension of a given extent.
_LATER: dict[Op, Callable[[Any, Integer], Any]] = {
    Op.PERMUTE: lambda order, count: (0, *(axis + 1 for axis in order)),
    Op.PAD: lambda pairs, count: ((0, 0), *pairs),
    Op.SHRINK: lambda ranges, count: ((0, count), *ranges),
}
