"""The order of kernels: after their inputs, and such that memory is freed early."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from minigrad.graph.node import topological
from minigrad.schedule.expr import Array
from minigrad.schedule.fuse import Cluster

LITTLE = 4096  # bytes that count as nothing: sums of a gradient's squares, for its norm
FEW = 4  # readers left of an array: from then on it is tested whether they would free it together


def after_needs(clusters: Sequence[Cluster]) -> list[Cluster]:
    """Clusters after those they need, otherwise in the order given."""
    place = {member: number for number, member in enumerate(clusters)}
    return topological(clusters, (), lambda member: sorted(member.needs, key=place.__getitem__))


def freeing_early(
    order: Sequence[Cluster],
    filled: Mapping[Cluster, Sequence[Array]],
    readers: Mapping[Array, Sequence[Cluster]],
) -> list[Cluster]:
    """The order, but kernels that free more memory than they fill run as soon as they can.

    So do kernels that fill next to nothing, because what they read is then closer to being free.
    Candidates are a kernel that has become ready, and all kernels left that read an array, if all
    of them are ready. Of these, the one that fills least comes first. So the gradients of a layer's
    weights and biases are computed as soon as that of its results is known, not after those of all
    layers: what the layer kept for them is freed, and they are a group (`groups.py`). In a program
    with exchanges such kernels wait until the next exchange has begun, and run during it. filled:
    the arrays that each cluster puts into the program's memory; readers: the clusters that read
    them.
    """
    left = {a: dict.fromkeys(readers.get(a, ())) for arrays in filled.values() for a in arrays}
    reads: dict[Cluster, list[Array]] = {member: [] for member in order}
    for array, members in left.items():
        for member in members:
            reads[member].append(array)
    followers: dict[Cluster, list[Cluster]] = {member: [] for member in order}
    for member in order:
        for needed in member.needs:
            followers[needed].append(member)
    missing = {member: len(member.needs) for member in order}
    fills = {member: sum(array.nbytes for array in filled[member]) for member in order}

    def pays(members: Collection[Cluster]) -> bool:
        own = {array: None for member in members for array in reads[member]}
        freed = sum(array.nbytes for array in own if left[array].keys() <= {*members})
        filling = sum(fills[member] for member in members)
        return freed > filling or bool(own and filling <= LITTLE)

    result: dict[Cluster, None] = {}
    exchanges, held = any(member.kind == "exchange" for member in order), list[Cluster]()
    for first in order:
        early = [first]
        while early:
            member = early.pop(0)
            if member in result:
                continue
            result[member] = None
            for other in followers[member]:
                missing[other] -= 1
            able = [other for other in followers[member] if not missing[other]]
            for array in reads[member]:
                del left[array][member]
            near = [left[array] for one in (member, *able) for array in reads[one]]
            for some in (*([one] for one in able), *(some for some in near if len(some) <= FEW)):
                if not any(missing[one] for one in some) and pays(some):
                    held += some
            if member.kind == "exchange" or not exchanges:
                early, held = early + sorted(held, key=fills.__getitem__), []
    return list(result)
