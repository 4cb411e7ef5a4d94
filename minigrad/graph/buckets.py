"""The exchanges of one device's program in their order, small ones joined.

Each exchange has a price beside its bytes: ranks must agree upon it, and wait for each other. Those
of one kind and group go together while nobody needs the first one's result before the last one's
sources are there. What comes first is told by depths: how many nodes are made before, one after the
other. So gradients go while the backward pass still makes others, whatever the order of the roots.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from minigrad.graph.collective import SEVERAL, Collective, together
from minigrad.graph.conversions import Sent
from minigrad.graph.node import Node, Op, make, topological
from minigrad.graph.operations import MOVEMENT
from minigrad.graph.shapes import numel

BUCKET = 4 << 20  # bytes that go together: more than that takes longer than what is saved


@dataclass
class _Bucket:
    """Exchanges that go together, when `ready` nodes, one after the other, are made."""

    ready: int
    due: int
    nbytes: int
    members: list[Node] = field(default_factory=list)


def in_buckets(
    roots: Sequence[Node], sent: Mapping[Node, Sent]
) -> tuple[list[Node], list[Sent]]:
    """The roots, and what is exchanged for them; numbered in order. sent: of each exchange."""
    order = topological(roots)
    buckets = _buckets(roots, order)
    place = {node: at for at, bucket in enumerate(buckets) for node in bucket.members}
    first = [source for bucket in buckets for one in bucket.members for source in one.src]
    new: dict[Node, Node] = {}
    # What any of a bucket's members needs comes before whoever reads the first of them.
    for node in topological([*first, *roots]):
        if node in place:
            number = place[node]
            members = buckets[number].members
            if node not in new:
                new.update(zip(members, _joined(members, new, number), strict=True))
        else:
            src = [new[source] for source in node.src]
            new[node] = make(node.op, node.dtype, node.shape, tuple(src), node.arg, node.device)
    told = [_told([sent[one] for one in bucket.members]) for bucket in buckets]
    return [new[root] for root in roots], told


def _joined(members: Sequence[Node], new: Mapping[Node, Node], number: int) -> list[Node]:
    """One exchange for several."""
    arg: Collective = members[0].arg
    sources = [new[source] for one in members for source in one.src[: one.arg.payload]]
    after = [new[source] for one in members for source in one.src[one.arg.payload :]]
    return together(arg.kind, arg.group, arg.size, sources, arg.how, arg.place,
                    list(dict.fromkeys(after)), number)  # fmt: skip


def _told(sent: Sequence[Sent]) -> Sent:
    total = sum(one.nbytes for one in sent)
    more = f" and {len(sent) - 1} more" if len(sent) > 1 else ""
    return replace(sent[0], nbytes=total, reader=sent[0].reader + more)


def _buckets(roots: Sequence[Node], order: Sequence[Node]) -> list[_Bucket]:
    """The exchanges of a graph in the order of their readiness."""
    depth: dict[Node, int] = {}
    for node in order:
        depth[node] = 1 + max((depth[source] for source in node.src), default=0)
    due = _due(roots, order, depth)
    found = sorted((n for n in order if n.op is Op.COLLECTIVE), key=depth.__getitem__)
    buckets: list[_Bucket] = []
    last: dict[Hashable, _Bucket] = {}
    for node in found:
        arg: Collective = node.arg
        ready = depth[node] - 1
        key: Any = arg.kind, arg.group, arg.how, arg.place, node.dtype
        nbytes = max(numel(one.shape) for one in (node, node.src[0])) * node.dtype.itemsize
        bucket = last.get(key)
        if (
            bucket is None or arg.kind not in SEVERAL
            or bucket.nbytes + nbytes > BUCKET or bucket.due <= ready
        ):  # fmt: skip
            bucket = last[key] = _Bucket(ready, due[node], 0)
            buckets.append(bucket)
        bucket.ready, bucket.due = ready, min(bucket.due, due[node])
        bucket.nbytes += nbytes
        bucket.members.append(node)
    return sorted(buckets, key=lambda bucket: bucket.ready)


def _due(
    roots: Sequence[Node], order: Sequence[Node], depth: Mapping[Node, int]
) -> dict[Node, int]:
    """How deep the first is that reads a node, under whatever shape; a root at once."""
    due = dict.fromkeys(order, len(order) + 1) | dict.fromkeys(roots, 0)
    for node in reversed(order):
        if node.op in MOVEMENT:
            first = due[node]
        else:
            first = depth[node] - (node.op is Op.COLLECTIVE)
        for source in node.src:
            due[source] = min(due[source], first)
    return due
