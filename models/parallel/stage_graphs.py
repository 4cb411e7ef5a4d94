"""Cuts a graph into programs that run one after the other, and chooses what they keep.

So the forward pass of a piece of a model, the gradient of its input and those of its weights become
separate programs, which a pipeline's schedule can call at any time. They keep what a single program
would keep in memory (`materialize.Values.choose`): sums with the values added to them, an
activation and its derivative instead of their common input. They do not keep what leads from
attention's scores, products that are larger than their factors and of small depth, to its readers:
that is recomputed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import Any, NamedTuple

from minigrad.graph.node import Node, Op, topological
from minigrad.graph.operations import ELEMENTWISE
from minigrad.graph.partition import CHEAP, HANDED_ON, LEAVES
from minigrad.schedule.attention_fusion import DEPTH_WITH_STATISTICS
from minigrad.schedule.materialize import Values, contraction_operands

COMPUTED_AGAIN = (CHEAP | LEAVES | {Op.CHECK, Op.CUSTOM}) - {Op.CONTIGUOUS}


class Part(NamedTuple):
    """One of the programs. reads: values of earlier programs; writes: its roots, and other values.
    """

    reads: tuple[Node, ...]
    writes: tuple[Node, ...]


def cut(programs: Sequence[Sequence[Node]], given: Collection[Node]) -> list[Part]:
    """Programs by their roots, in order; given: leaves that are different in every call."""
    owner: dict[Node, int] = {}
    for number, roots in enumerate(programs):
        for node in topological(roots):
            owner.setdefault(node, number)
    shared = {root for roots in programs for root in roots}
    kept = shared | _kept([node for node in owner if node in shared])
    soonest: dict[Node, int] = {}  # the first program that has all sources of a value
    for node, number in owner.items():
        found = max((soonest[source] for source in node.src), default=0)
        if node in kept and node.op in ELEMENTWISE and node not in shared:
            owner[node] = found  # where its sources are
        elif node in kept or node in given or node.op not in COMPUTED_AGAIN:
            found = number
        soonest[node] = found
    writes = [dict.fromkeys(roots) for roots in programs]
    reads: list[tuple[Node, ...]] = []
    for number in reversed(range(len(programs))):
        read: dict[Node, None] = {}
        seen, stack = set[Node](), [*writes[number]]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in given:
                read[node] = None
            elif owner[node] < number and node in kept:
                read[node] = None
                writes[owner[node]].setdefault(node)
            else:
                stack += node.src
        reads.append(tuple(read))
    return [Part(some, tuple(made)) for some, made in zip(reversed(reads), writes, strict=True)]


def _kept(roots: Sequence[Node]) -> set[Node]:
    """The values that a single program would keep in memory."""
    values = Values(roots)
    passing = set[Node]()  # scores, and elementwise functions of them
    for node in values.order:
        if any(source in passing and _size(source) <= _size(node) for source in node.src):
            is_passing = node.op in COMPUTED_AGAIN
        else:
            is_passing = _is_short_product(node)
        if is_passing:
            passing.add(node)
    kept, _ = values.choose(frozenset(), fuse=True)
    return set(kept) - passing


def _is_short_product(node: Node) -> bool:
    factors = contraction_operands(node) if node.op is Op.SUM else ()
    if not factors:
        return False
    depth = prod(_known(node.src[0].shape[axis]) for axis in node.arg)
    return depth <= DEPTH_WITH_STATISTICS and _size(node) > sum(map(_size, factors))


def _size(node: Node) -> int:
    """Elements that are in memory."""
    while node.op in HANDED_ON:
        node = node.src[0]
    return prod(map(_known, node.shape))


def _known(extent: Any) -> int:
    assert isinstance(extent, int)
    return extent
