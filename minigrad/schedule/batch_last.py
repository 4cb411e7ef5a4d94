"""Products whose last axis is shared by both operands: a batch axis in last position.

Vectors run along such an axis (`loops/shared_lanes.py`) if it fills them. Both operands must have
its elements next to each other; otherwise they are copied, like the weight of a depthwise
convolution. If the axis is short and there are rows and columns, the batch comes first: one matrix
product for each of its elements, with a permuted view of the result.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph import build
from minigrad.graph.axes import stored_last
from minigrad.graph.node import Node, Op
from minigrad.graph.operations import MOVEMENT
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import coefficient, only_atom
from minigrad.graph.windows import unexpanded
from minigrad.schedule.lower import shown
from minigrad.schedule.materialize import contraction_operands, varies
from minigrad.target import LINE

FULL = LINE // 4  # float32 in a vector of 512 bits
_SEEN_THROUGH = MOVEMENT - {Op.EXPAND} | {Op.CAST}
PAYS = 8  # reads per element that pay for a copy in another order


def batch_arranged(node: Node) -> tuple[Node, Sequence[int]]:
    """An equal reduction that is faster, and the permutation that restores the order of its axes.

    A reduction that is no such product stays as it is.
    """
    x, as_it_is = node.src[0], (node, range(node.ndim))
    operands = contraction_operands(node) if node.op is Op.SUM and x.op is Op.MUL else ()
    if not operands or not node.dtype.is_float:
        return as_it_is
    uses = [varies(operand) for operand in operands]
    kept = [a for a, extent in enumerate(x.shape) if extent != 1 and a not in node.arg]
    batch = [axis for axis in kept if all(use[axis] for use in uses)]
    factors = [unexpanded(operand) for operand in operands]
    if batch and batch[-1:] == kept[-2:-1] and numel((x.shape[kept[-1]],)) < FULL:
        # few columns: those of several groups are made adjacent, to share a vector
        last, copied = kept[-2:], [factor.shape[kept[-1]] != 1 for factor in factors]
    elif not batch or batch[-1] != kept[-1]:
        return as_it_is
    else:
        last, aside = kept[-1:], [is_innermost(factor, kept[-1]) for factor in factors]
        if all(any(use[axis] for axis in kept if axis not in batch) for use in uses):
            if numel((x.shape[kept[-1]],)) >= FULL and all(aside):
                return as_it_is
            order = [*batch, *(axis for axis in kept if axis not in batch)]
            return _batch_first(node, factors, aside, order)
        copied = [not is_so for is_so in aside]
    pairs = [*zip(factors, copied, strict=True)]
    if not any(copied) or any(c and PAYS * numel(f.shape) > numel(x.shape) for f, c in pairs):
        return as_it_is
    terms = (build.expand(stored_last(f, last) if c else f, x.shape) for f, c in pairs)
    return build.reduce(Op.SUM, build.elementwise(Op.MUL, *terms), node.arg), range(node.ndim)


def _batch_first(
    node: Node, factors: Sequence[Node], aside: Sequence[bool], kept: Sequence[int]
) -> tuple[Node, Sequence[int]]:
    """The SUM with kept axes in this order; factors whose batch axis is innermost are copied."""
    x = node.src[0]
    order = [*kept, *(axis for axis in range(x.ndim) if axis not in kept)]
    terms = []
    for factor, is_last in zip(factors, aside, strict=True):
        moved = build.permute(factor, order)
        moved = build.contiguous(moved) if is_last else moved
        terms.append(build.expand(moved, tuple(x.shape[axis] for axis in order)))
    summed = [order.index(axis) for axis in node.arg]
    total = build.reduce(Op.SUM, build.elementwise(Op.MUL, *terms), summed)
    return total, [order.index(axis) for axis in range(x.ndim)]


def is_innermost(node: Node, axis: int) -> bool:
    """Whether neighbours along an axis are adjacent in memory."""
    chain, places, index = shown(node, _SEEN_THROUGH)
    return coefficient(flatten(index, chain[-1].shape), only_atom(places[axis])) == 1
