"""A graph cut into programs that run one after the other: what each keeps for those behind it.

So the forward pass of a piece of a model, the gradient of its input and those of its weights become
programs of their own, which the schedule of a pipeline calls when it likes. As within one program,
sums are kept, and what is cheap is computed again where it is read: elementwise operations, and
products that are larger than their factors (attention's scores), if they are of little depth.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import Any, NamedTuple

from minigrad.graph.node import Node, Op, topological
from minigrad.graph.partition import CHEAP, LEAVES
from minigrad.schedule.attention_fusion import DEPTH_WITH_STATISTICS
from minigrad.schedule.materialize import contraction_operands

COMPUTED_AGAIN = (CHEAP | LEAVES | {Op.CHECK, Op.CUSTOM}) - {Op.CONTIGUOUS}


class Part(NamedTuple):
    """One of the programs. reads: values of the programs before it; writes: its roots, and more."""

    reads: tuple[Node, ...]
    writes: tuple[Node, ...]


def cut(programs: Sequence[Sequence[Node]], given: Collection[Node]) -> list[Part]:
    """Programs by their roots, in order; given: leaves that every call brings anew."""
    owner: dict[Node, int] = {}
    for number, roots in enumerate(programs):
        for node in topological(roots):
            owner.setdefault(node, number)
    shared = {root for roots in programs for root in roots}
    writes = [dict.fromkeys(roots) for roots in programs]
    reads: list[tuple[Node, ...]] = []
    for number, roots in enumerate(programs):
        found: dict[Node, None] = {}
        seen, stack = set[Node](), [*roots]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in given:
                found[node] = None
            elif owner[node] < number and (node in shared or _is_kept(node)):
                found[node] = None
                writes[owner[node]].setdefault(node)
            else:
                stack += node.src
        reads.append(tuple(found))
    return [Part(read, tuple(made)) for read, made in zip(reads, writes, strict=True)]


def _is_kept(node: Node) -> bool:
    if node.op in COMPUTED_AGAIN:
        return False
    factors = contraction_operands(node) if node.op is Op.SUM else ()
    if not factors:
        return True
    depth = prod(_known(node.src[0].shape[axis]) for axis in node.arg)
    return depth > DEPTH_WITH_STATISTICS or _size(node) <= sum(map(_size, factors))


def _size(node: Node) -> int:
    """Elements that are in memory."""
    while node.op in (Op.EXPAND, Op.RESHAPE, Op.PERMUTE, Op.CAST):
        node = node.src[0]
    return prod(map(_known, node.shape))


def _known(extent: Any) -> int:
    assert isinstance(extent, int)
    return extent
