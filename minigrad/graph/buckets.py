"""The exchanges of one device's program, in order, with small ones merged into buckets.

Each exchange has a fixed cost besides its bytes: ranks must agree on it and wait for each other.
Exchanges of one kind and group are merged if nothing that is computed next waits for the first of
them. Depth decides what comes first and what can wait: the length of the chain of nodes before it.
So gradients are exchanged while the backward pass still computes others, in any order of the roots.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from minigrad.graph.collective import SEVERAL, Collective, exchange, results_of
from minigrad.graph.conversions import Sent
from minigrad.graph.node import Node, Op, beneath, make, topological
from minigrad.graph.operations import MOVEMENT
from minigrad.graph.shapes import numel

BUCKET = 4 << 20  # bytes of a bucket: with more, an exchange takes longer than what merging saves
COPIED = BUCKET >> 6  # bytes of a result that may be merged although it must be copied then


@dataclass(eq=False)
class _Bucket:
    """Exchanges that are merged. ready: the depth at which all their sources are computed.

    due: the largest depth at which they may be made, so that no reader waits; needs: the buckets
    before it.
    """

    ready: int = 0
    due: int = 0
    nbytes: int = 0
    members: list[Node] = field(default_factory=list)
    needs: dict[_Bucket, None] = field(default_factory=dict)  # (an ordered set)


def in_buckets(roots: Sequence[Node], sent: Mapping[Node, Sent]) -> tuple[list[Node], list[Sent]]:
    """The roots with exchanges merged, and these exchanges in order. sent: by exchange."""
    buckets = _buckets(roots, topological(roots))
    place = {node: at for at, bucket in enumerate(buckets) for node in bucket.members}
    first = [source for bucket in buckets for one in bucket.members for source in one.src]
    new: dict[Node, Node] = {}
    # All sources of a bucket's members come before the first reader of any of them.
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
    """One exchange for several members of a bucket."""
    arg: Collective = members[0].arg
    sources = [new[source] for one in members for source in one.src[: one.arg.payload]]
    after = [new[source] for one in members for source in one.src[one.arg.payload :]]
    return results_of(exchange(arg.kind, arg.group, arg.size, sources, arg.how, arg.place,
                               list(dict.fromkeys(after)), number))  # fmt: skip


def _told(sent: Sequence[Sent]) -> Sent:
    total = sum(one.nbytes for one in sent)
    more = f" and {len(sent) - 1} more" if len(sent) > 1 else ""
    return replace(sent[0], nbytes=total, reader=sent[0].reader + more)


def _buckets(roots: Sequence[Node], order: Sequence[Node]) -> list[_Bucket]:
    """The buckets of a graph's exchanges, in an order in which they can be made."""
    depth, due = _depths(order)
    copied = {beneath(root, MOVEMENT) for root in roots}
    found = sorted((n for n in order if n.op is Op.COLLECTIVE), key=depth.__getitem__)
    home: dict[Node, _Bucket] = {}
    last: dict[Hashable, _Bucket] = {}
    before = _exchanges_before(order)
    for node in found:
        arg: Collective = node.arg
        key = arg.kind, arg.group, arg.how, arg.place, node.dtype
        nbytes = max(numel(one.shape) for one in (node, node.src[0])) * node.dtype.itemsize
        ready, needs = depth[node] - 1, dict.fromkeys(home[other] for other in before[node])
        bucket = last.get(key)
        alone = arg.kind not in SEVERAL or (node in copied and nbytes > COPIED)
        if (
            alone or bucket is None or bucket.nbytes + nbytes > BUCKET or bucket.due <= ready
            or bucket in topological(needs, (), _needs)
        ):  # fmt: skip
            bucket = _Bucket(due=due[node])
        if not alone:
            last[key] = bucket
        bucket.ready, bucket.due = ready, min(bucket.due, due[node])
        bucket.nbytes += nbytes
        bucket.members.append(node)
        bucket.needs |= needs
        home[node] = bucket
    ready_first = sorted(dict.fromkeys(home.values()), key=lambda bucket: bucket.ready)
    return topological(ready_first, (), _needs)


def _needs(bucket: _Bucket) -> list[_Bucket]:
    return list(bucket.needs)


def _depths(order: Sequence[Node]) -> tuple[dict[Node, int], dict[Node, int]]:
    """The depth of each node, and the largest it could have without making another one deeper."""
    depth: dict[Node, int] = {}
    for node in order:
        depth[node] = 1 + max((depth[source] for source in node.src), default=0)
    due = dict.fromkeys(order, max(depth.values(), default=0))
    for node in reversed(order):
        for source in node.src:
            due[source] = min(due[source], due[node] - 1)
    return depth, due


def _exchanges_before(order: Sequence[Node]) -> dict[Node, dict[Node, None]]:
    """The exchanges that each exchange needs directly, with no other one between."""
    nearest: dict[Node, dict[Node, None]] = {}
    found: dict[Node, dict[Node, None]] = {}
    for node in order:
        near: dict[Node, None] = {}
        for source in node.src:
            near |= nearest[source]
        if node.op is Op.COLLECTIVE:
            found[node], near = near, {node: None}
        nearest[node] = near
    return found
