"""The order of kernels: after what they need, and so that memory is free early."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from minigrad.graph.node import in_order
from minigrad.schedule.expr import Array
from minigrad.schedule.fuse import Cluster


def after_needs(clusters: Sequence[Cluster]) -> list[Cluster]:
    """Groups after what they need, otherwise in the order given."""
    place = {member: number for number, member in enumerate(clusters)}
    return in_order(clusters, lambda member: sorted(member.needs, key=place.__getitem__))


def freeing_early(
    order: Sequence[Cluster],
    filled: Mapping[Cluster, Sequence[Array]],
    readers: Mapping[Array, Sequence[Cluster]],
) -> list[Cluster]:
    """The order, but a kernel that frees more memory than it fills runs as soon as it can.

    So does one that reads some and fills none, as it is then nearer to being free. Of several the
    one that fills least comes first, and makes room for the others. So the gradient of a layer's
    weights is taken when that of its results is at hand, not after those of all
    layers, and what the layer kept for it is free. In a program with exchanges such a kernel is
    held until the next one has begun: it then runs while that is under way. filled: the arrays that
    each cluster puts into the program's memory; readers: the clusters that read them.
    """
    left = {a: {*readers.get(a, ())} for arrays in filled.values() for a in arrays}
    reads: dict[Cluster, list[Array]] = {member: [] for member in order}
    for array, members in left.items():
        for member in members:
            reads[member].append(array)
    followers: dict[Cluster, list[Cluster]] = {member: [] for member in order}
    for member in order:
        for needed in member.needs:
            followers[needed].append(member)
    missing = {member: len(member.needs) for member in order}
    fills = {member: _bytes(filled[member]) for member in order}

    def frees(member: Cluster) -> int:
        return _bytes(array for array in reads[member] if len(left[array]) == 1)

    result: dict[Cluster, None] = {}
    exchanges, held = any(member.kind == "exchange" for member in order), list[Cluster]()
    for first in order:
        early = [first]
        while early:
            member = min(early, key=fills.__getitem__)
            early.remove(member)
            if member in result:
                continue
            result[member] = None
            changed = followers[member]  # they may run now, or are the last to read an array
            for array in reads[member]:
                left[array].discard(member)
                if len(left[array]) == 1:
                    changed = [*changed, *left[array]]
            for other in followers[member]:
                missing[other] -= 1
            held += [
                other for other in dict.fromkeys(changed)
                if not missing[other] and other not in result
                and (frees(other) > fills[other] or not fills[other] and reads[other])
            ]  # fmt: skip
            if member.kind == "exchange" or not exchanges:
                early, held = early + held, []
    return list(result)


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.size * array.dtype.itemsize for array in arrays)
