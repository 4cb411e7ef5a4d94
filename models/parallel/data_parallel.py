"""Data parallel: every rank has a copy of the model, and part of the batch.

1. every copy starts with the weights of rank 0 (`synchronize`);
2. each gets its own part of the batch (`share`);
3. computes loss and gradients of that part;
4. the copies exchange gradients (`average_gradients`), in buckets that are under way while the
   backward pass still computes the next ones;
5. so that each has the average over the whole batch;
6. and makes the same update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minigrad import Tensor, nn
from minigrad.graph.buckets import BUCKET
from minigrad.graph.node import grouped
from minigrad.models.errors import InputError
from minigrad.models.parallel.group import RankGroup
from minigrad.models.parallel.operations import all_reduce, together
from minigrad.nn.members import walk


class DataParallel:
    """Keeps the copies of a model equal; `group` has one rank for each copy."""

    def __init__(self, model: Any, group: RankGroup, bucket: int = BUCKET) -> None:
        self.model, self.group, self.bucket = model, group, bucket
        self.synchronize()
        for _, layer, _ in walk(model):
            if isinstance(layer, nn.BatchNorm):
                layer.statistics = self.statistics

    def synchronize(self) -> None:
        """Give every copy the weights and statistics of rank 0."""
        unique = {id(t): t for t in nn.state.get_state_dict(self.model).values()}
        tensors = list(unique.values())
        with Tensor.no_grad():
            for part in grouped((tensor.dtype, tensor) for tensor in tensors).values():
                received = together("broadcast", part, self.group)
                Tensor.realize(*received)  # one exchange, whatever `assign` realizes
                for tensor, value in zip(part, received, strict=True):
                    tensor.assign(value)
            Tensor.realize(*tensors)

    def statistics(self, x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and number of elements per channel over the batches of all ranks.

        For `nn.BatchNorm`; batches may differ in size. It takes two exchanges of one number per
        channel, because the variance is around the common mean.
        """
        own = Tensor([1.0 * math.prod(x._known_shape()[axis] for axis in axes)], device=x.device)
        sums = all_reduce(x.sum(axes).cat(own), self.group)
        count = sums[-1]
        mean = sums[:-1] / count
        away = x - mean.reshape(-1, *(1 for _ in x.shape[2:]))
        var = all_reduce((away * away).sum(axes), self.group) / count
        return mean, var, count

    def share(self, batch: int, among: RankGroup | None = None) -> tuple[int, int]:
        """(first, last + 1) of this rank's rows of a global batch; sizes differ by at most one.

        among: the ranks that share the batch, if those of `group` share sequences, too.
        """
        group = among or self.group
        rank, size = group.rank, group.size
        if batch < size:
            raise InputError(
                f"a batch of {batch} is too small for {size} copies of the model: "
                "use a larger --batch"
            )
        return batch * rank // size, batch * (rank + 1) // size

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks."""
        return all_reduce(value, self.group)

    def average_gradients(self, params: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over all ranks.

        Each rank's loss must be weighted by its share of the batch before `backward`; the sum is
        then the average over the whole batch, also for parts of different size. The last
        parameters, whose gradients come first, are exchanged first.
        """
        with Tensor.no_grad():
            waiting = [param for param in reversed(params) if param.grad is not None]
            for part in _buckets(waiting, self.bucket):
                sums = together("all_reduce", [param.grad for param in part], self.group, "sum")
                for param, total in zip(part, sums, strict=True):
                    param.grad = total.requires_grad_(False)


def _buckets(params: Sequence[Tensor], most: int) -> list[list[Tensor]]:
    """Parameters in order, in buckets of as many as fit; each bucket has one dtype."""
    result: list[list[Tensor]] = []
    size = 0
    for param in params:
        nbytes = int(param.grad.nbytes())
        fits = result and size + nbytes <= most and result[-1][0].grad.dtype is param.grad.dtype
        if not fits:
            result.append([])
            size = 0
        result[-1].append(param)
        size += nbytes
    return result
