"""Exchanges of tensors: lazy and differentiable, like all operations.

All ranks of a group must call them in the same order. Derivatives are of the sum of all ranks'
losses: `loss.backward()` on every rank gives each its part of the gradient of that sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad import Tensor
from minigrad.graph.collective import exchange, results_of
from minigrad.models.parallel.group import RankGroup


def all_reduce(x: Tensor, group: RankGroup, how: str = "sum") -> Tensor:
    """The "sum", "mean" or "max" of all ranks' x, elementwise; same shape and dtype."""
    return Tensor._of(exchange("all_reduce", group.name, group.size, [x.node], how))


def reduce_scatter(x: Tensor, group: RankGroup, how: str = "sum") -> Tensor:
    """(n·size, …) → (n, …): this rank's part of the result of `all_reduce`."""
    return Tensor._of(exchange("reduce_scatter", group.name, group.size, [x.node], how))


def all_gather(x: Tensor, group: RankGroup) -> Tensor:
    """(n, …) → (n·size, …): x of all ranks, in the order of ranks."""
    return Tensor._of(exchange("all_gather", group.name, group.size, [x.node]))


def all_to_all(x: Tensor, group: RankGroup) -> Tensor:
    """(n·size, …) → the same shape: part s goes to rank s, and is replaced by the part from rank s.
    """
    return Tensor._of(exchange("all_to_all", group.name, group.size, [x.node]))


def permute(x: Tensor, group: RankGroup, shift: int = 1) -> Tensor:
    """x of the rank `shift` places before; same shape and dtype."""
    place = shift % group.size
    return Tensor._of(exchange("permute", group.name, group.size, [x.node], place=place))


def broadcast(x: Tensor, group: RankGroup, root: int = 0) -> Tensor:
    """x of rank `root`; same shape and dtype."""
    return Tensor._of(exchange("broadcast", group.name, group.size, [x.node], place=root))


def together(
    kind: str, tensors: Sequence[Tensor], group: RankGroup,
    how: str = "-", place: int = 0, after: Sequence[Tensor] = (),
) -> list[Tensor]:  # fmt: skip
    """One exchange of several tensors of one dtype; returns the results, in the same shapes.

    kind: "all_reduce", "permute" or "broadcast". after: tensors to be computed before it begins.
    """
    nodes, waiting = [tensor.node for tensor in tensors], [tensor.node for tensor in after]
    made = exchange(kind, group.name, group.size, nodes, how, place, waiting)
    return [Tensor._of(node) for node in results_of(made)]
