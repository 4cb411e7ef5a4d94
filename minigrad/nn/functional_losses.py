"""PyTorch's losses of margins, distances and distributions, with its names and defaults.

x and target have equal shapes unless something else is said; reduction is "mean", "sum" or "none".
"""

from __future__ import annotations

import math
from collections.abc import Callable

from minigrad.tensor import Tensor


def poisson_nll_loss(
    x: Tensor, target: Tensor, log_input: bool = True, full: bool = False, *, eps: float = 1e-8,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """exp(x) − target·x, or x − target·log(x + eps) without log_input.

    full: with Stirling's approximation of log target!, where target > 1.
    """
    losses = x.exp() - target * x if log_input else x - target * (x + eps).log()
    if full:
        many = target > 1
        t = many.where(target, 1)
        losses = losses + many.where(t * t.log() - t + (t * (2 * math.pi)).log() * 0.5, 0)
    return losses._reduced(reduction)


def gaussian_nll_loss(
    x: Tensor, target: Tensor, var: Tensor, full: bool = False, eps: float = 1e-6,
    *, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """(log var + (x − target)²/var)/2, with variances of at least eps (whose gradient goes on).

    var: of x's shape, or without the last dimension, or with 1 there. full: with log(2π)/2.
    """
    wide = var.unsqueeze(-1) if var.ndim < x.ndim else var
    wide = wide + ((wide.detach() < eps).where(eps, wide.detach()) - wide.detach())
    losses = (wide.log() + (x - target).square() / wide) * 0.5
    return (losses + 0.5 * math.log(2 * math.pi) if full else losses)._reduced(reduction)


def margin_ranking_loss(
    x1: Tensor, x2: Tensor, target: Tensor, margin: float = 0.0, *, reduction: str = "mean"
) -> Tensor:
    """max(0, margin − target·(x1 − x2)): target 1 where x1 shall be larger, −1 where x2."""
    return (-target * (x1 - x2) + margin).relu()._reduced(reduction)


def hinge_embedding_loss(
    x: Tensor, target: Tensor, margin: float = 1.0, *, reduction: str = "mean"
) -> Tensor:
    """x where target is 1, max(0, margin − x) where it is −1."""
    return target.eq(1).where(x, (margin - x).relu())._reduced(reduction)


def cosine_embedding_loss(
    x1: Tensor, x2: Tensor, target: Tensor, margin: float = 0.0, *, reduction: str = "mean"
) -> Tensor:
    """1 − cosine where target (batch,) is 1, max(0, cosine − margin) where it is −1."""
    cosine = x1.cosine_similarity(x2, -1)
    return target.eq(1).where(1 - cosine, (cosine - margin).relu())._reduced(reduction)


def soft_margin_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """log(1 + exp(−target·x)) of targets 1 and −1."""
    return (-target * x).softplus()._reduced(reduction)


def multilabel_soft_margin_loss(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """The mean over classes, the last dimension, of the binary cross-entropy of sigmoid(x)."""
    losses = x.binary_crossentropy_logits(target, "none")
    return (losses if weight is None else losses * weight).mean(-1)._reduced(reduction)


def multi_margin_loss(
    x: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None,
    *, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """max(0, margin − x[target] + x[i])^p, summed over other classes i, over their number + 1.

    x: (batch, classes), target: (batch,). weight: a factor for each class that is a target.
    """
    right = target.unsqueeze(-1)
    away: Tensor = (x - x.gather(-1, right) + margin).relu() ** p
    away = away if weight is None else away * weight[right]
    others = x.arange(x.size(-1), device=x.device).ne(right)
    losses: Tensor = others.where(away, 0)
    means: Tensor = losses.mean(-1)
    return means._reduced(reduction)


def multilabel_margin_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """max(0, 1 − x[t] + x[i]) over all targets t and all i that are none, over the classes.

    x: (…, classes); target: as many integers, of which those before the first −1 count.
    """
    counts = (target >= 0).int().cumprod(-1).bool()
    places = counts.where(target, 0)
    classes = x.arange(x.size(-1), device=x.device)
    named = (places.unsqueeze(-1).eq(classes) & counts.unsqueeze(-1)).any(-2)
    away = (1 - x.gather(-1, places).unsqueeze(-1) + x.unsqueeze(-2)).relu()
    wanted = counts.unsqueeze(-1) & ~named.unsqueeze(-2)
    losses: Tensor = wanted.where(away, 0).sum((-2, -1)) / x._known_shape()[-1]
    return losses._reduced(reduction)


def triplet_margin_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0, p: float = 2,
    eps: float = 1e-6, swap: bool = False, *, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """max(0, |anchor − positive| − |anchor − negative| + margin) (Balntas et al. 2016).

    In p-norms over the last dimension; swap: the smaller distance of the two to the negative.
    """
    return triplet_margin_with_distance_loss(
        anchor, positive, negative, distance_function=lambda a, b: a.pairwise_distance(b, p, eps),
        margin=margin, swap=swap, reduction=reduction,
    )  # fmt: skip


def triplet_margin_with_distance_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None, margin: float = 1.0,
    swap: bool = False, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """`triplet_margin_loss` with another distance of two tensors than `pairwise_distance`."""
    distance = distance_function or Tensor.pairwise_distance
    away = distance(anchor, negative)
    if swap:
        away = away.minimum(distance(positive, negative))
    return (distance(anchor, positive) - away + margin).relu()._reduced(reduction)
