"""Losses as classes, which hold the options of the functions in `functional`.

They are called with x and the target. reduction: "mean", "sum" or "none".
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from minigrad.nn import functional as F
from minigrad.nn.module import FunctionLayer
from minigrad.tensor import Tensor


@dataclass(eq=False, repr=False, kw_only=True)
class _Loss(FunctionLayer):
    reduction: str = "mean"


@dataclass(eq=False, repr=False)
class _Weighted(_Loss):
    """weight: a factor for each class, or for each element; a buffer."""

    weight: Tensor | None = None

    def __post_init__(self) -> None:
        self.register_buffer("weight", self.weight)


class MSELoss(_Loss):
    """(x − target)², of equal shapes."""

    function = F.mse_loss


class L1Loss(_Loss):
    """|x − target|, of equal shapes."""

    function = F.l1_loss


@dataclass(eq=False, repr=False, kw_only=True)
class HuberLoss(_Loss):
    """d²/2 of differences d up to delta, beyond it delta·(|d| − delta/2) (Huber 1964)."""

    function = F.huber_loss
    delta: float = 1.0


@dataclass(eq=False, repr=False, kw_only=True)
class SmoothL1Loss(_Loss):
    """`HuberLoss` of delta=beta, divided by beta; `L1Loss` for beta=0."""

    function = F.smooth_l1_loss
    beta: float = 1.0


@dataclass(eq=False, repr=False)
class CrossEntropyLoss(_Weighted):
    """−log softmax(x)[target], of (batch, classes, …) and integers (batch, …), or probabilities."""

    function = F.cross_entropy
    _: KW_ONLY
    ignore_index: int = -100
    label_smoothing: float = 0.0


@dataclass(eq=False, repr=False)
class NLLLoss(_Weighted):
    """−x[target], of log probabilities (batch, classes, …) and integers (batch, …)."""

    function = F.nll_loss
    _: KW_ONLY
    ignore_index: int = -100


class BCELoss(_Weighted):
    """−(t·log p + (1 − t)·log(1 − p)) of probabilities p, of equal shapes."""

    function = F.binary_cross_entropy


@dataclass(eq=False, repr=False)
class BCEWithLogitsLoss(_Weighted):
    """`BCELoss` of sigmoid(x), without overflow; pos_weight: factors of the positive examples."""

    function = F.binary_cross_entropy_with_logits
    _: KW_ONLY
    pos_weight: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.register_buffer("pos_weight", self.pos_weight)


@dataclass(eq=False, repr=False, kw_only=True)
class KLDivLoss(_Loss):
    """target·(log target − x) of log probabilities x, of equal shapes; see `functional.kl_div`."""

    function = F.kl_div
    log_target: bool = False
