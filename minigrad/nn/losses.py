"""Losses as classes, which hold the options; reduction is "mean", "sum" or "none"."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from minigrad.nn import functional as F
from minigrad.nn.module import Layer
from minigrad.tensor import Tensor


@dataclass(eq=False, repr=False, kw_only=True)
class _Loss(Layer):
    reduction: str = "mean"


@dataclass(eq=False, repr=False, kw_only=True)
class MSELoss(_Loss):
    """(x − target)², of equal shapes."""

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """Any shape → a scalar, or the same shape for "none"."""
        return x.mse_loss(target, self.reduction)


@dataclass(eq=False, repr=False, kw_only=True)
class L1Loss(_Loss):
    """|x − target|, of equal shapes."""

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """Any shape → a scalar, or the same shape for "none"."""
        return F.l1_loss(x, target, self.reduction)


@dataclass(eq=False, repr=False, kw_only=True)
class HuberLoss(_Loss):
    """d²/2 of differences d up to delta, beyond it delta·(|d| − delta/2) (Huber 1964)."""

    delta: float = 1.0

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """Any shape → a scalar, or the same shape for "none"."""
        return F.huber_loss(x, target, self.reduction, self.delta)


@dataclass(eq=False, repr=False, kw_only=True)
class SmoothL1Loss(_Loss):
    """`HuberLoss` of delta=beta, divided by beta; `L1Loss` for beta=0."""

    beta: float = 1.0

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """Any shape → a scalar, or the same shape for "none"."""
        return F.smooth_l1_loss(x, target, self.reduction, self.beta)


@dataclass(eq=False, repr=False)
class _Weighted(_Loss):
    """weight: one factor for each class, or for each element; a buffer."""

    weight: Tensor | None = None

    def __post_init__(self) -> None:
        self.register_buffer("weight", self.weight)


@dataclass(eq=False, repr=False)
class CrossEntropyLoss(_Weighted):
    """−log softmax(x)[target]; see `functional.cross_entropy`. Classes are dimension 1."""

    _: KW_ONLY
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """(batch, classes, …) and integers (batch, …), or probabilities of x's shape."""
        return F.cross_entropy(
            x, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


@dataclass(eq=False, repr=False)
class NLLLoss(_Weighted):
    """−x[target], of log probabilities; classes are dimension 1."""

    _: KW_ONLY
    ignore_index: int = -100

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """(batch, classes, …) and integers (batch, …)."""
        return F.nll_loss(
            x, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )


class BCELoss(_Weighted):
    """−(t·log p + (1 − t)·log(1 − p)) of probabilities, of equal shapes."""

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """Any shape → a scalar, or the same shape for "none"."""
        return F.binary_cross_entropy(x, target, self.weight, self.reduction)


@dataclass(eq=False, repr=False)
class BCEWithLogitsLoss(_Weighted):
    """`BCELoss` of sigmoid(x), without overflow; pos_weight: factors of the positive examples."""

    _: KW_ONLY
    pos_weight: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.register_buffer("pos_weight", self.pos_weight)

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """Any shape → a scalar, or the same shape for "none"."""
        return F.binary_cross_entropy_with_logits(
            x, target, self.weight, self.reduction, self.pos_weight
        )


@dataclass(eq=False, repr=False, kw_only=True)
class KLDivLoss(_Loss):
    """target·(log target − x) of log probabilities x; see `functional.kl_div`."""

    log_target: bool = False

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """Equal shapes → a scalar, or the same shape for "none"."""
        return F.kl_div(x, target, self.reduction, self.log_target)
