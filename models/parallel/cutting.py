"""A graph cut into programs that run one after the other: what each keeps for those behind it.

So the forward pass of a piece of a model, the gradient of its input and those of its weights become
programs of their own, which the schedule of a pipeline calls when it likes. As within one program,
sums are kept, and what is cheap is computed again where it is read: elementwise operations, and
products that are larger than their factors (attention's scores), if they are of little depth. What
products of two programs multiply, such as the gradient of a layer's output, is in memory anyway: it
is kept, too, but not of the first program, which is long ago when the others run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import Any, NamedTuple

from minigrad.graph.node import Node, Op, topological
from minigrad.graph.partition import CHEAP, HANDED_ON, LEAVES
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
    multiplied: list[set[Node]] = [set() for _ in programs]
    for node, number in owner.items():
        multiplied[number] |= _multiplied(node)
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
            elif owner[node] < number and (
                node in shared or _is_kept(node)
                or (owner[node] and node in multiplied[owner[node]] & multiplied[number])
            ):
                found[node] = None
                writes[owner[node]].setdefault(node)
            else:
                stack += node.src
        reads.append(tuple(found))
    return [Part(read, tuple(made)) for read, made in zip(reads, writes, strict=True)]


def _multiplied(node: Node) -> set[Node]:
    """The factors of a product that are computed, as they are in memory."""
    found = set()
    for factor in _factors(node):
        while factor.op in HANDED_ON:
            factor = factor.src[0]
        found.add(factor)
    return {factor for factor in found if factor.op not in LEAVES}


def _factors(node: Node) -> tuple[Node, ...]:
    return contraction_operands(node) if node.op is Op.SUM else ()


def _is_kept(node: Node) -> bool:
    if node.op in COMPUTED_AGAIN:
        return False
    factors = _factors(node)
    if not factors:
        return True
    depth = prod(_known(node.src[0].shape[axis]) for axis in node.arg)
    return depth > DEPTH_WITH_STATISTICS or _size(node) <= sum(map(_size, factors))


def _size(node: Node) -> int:
    """Elements that are in memory."""
    while node.op in HANDED_ON:
        node = node.src[0]
    return prod(map(_known, node.shape))


def _known(extent: Any) -> int:
    assert isinstance(extent, int)
    return extent
