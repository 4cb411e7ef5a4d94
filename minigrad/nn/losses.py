"""Losses as layers, which hold the options of the functions in `functional`.

They are called with x and the target (or what the function takes first). reduction: "mean", "sum"
or "none". weight and pos_weight are buffers.
"""

from __future__ import annotations

from minigrad.nn import functional as F
from minigrad.nn.module import FunctionLayer


class MSELoss(FunctionLayer, of=F.mse_loss, inputs=2):
    """(x − target)², of equal shapes."""


class L1Loss(FunctionLayer, of=F.l1_loss, inputs=2):
    """|x − target|, of equal shapes."""


class HuberLoss(FunctionLayer, of=F.huber_loss, inputs=2):
    """d²/2 of differences d up to delta, then delta·(|d| − delta/2) (Huber 1964)."""


class SmoothL1Loss(FunctionLayer, of=F.smooth_l1_loss, inputs=2):
    """`HuberLoss` of delta=beta, divided by beta; `L1Loss` for beta=0."""


class CrossEntropyLoss(FunctionLayer, of=F.cross_entropy, inputs=2):
    """−log softmax(x)[target], of (batch, classes, …) and integers (batch, …), or probabilities."""


class NLLLoss(FunctionLayer, of=F.nll_loss, inputs=2):
    """−x[target], of log probabilities (batch, classes, …) and integers (batch, …)."""


class BCELoss(FunctionLayer, of=F.binary_cross_entropy, inputs=2):
    """−(t·log p + (1 − t)·log(1 − p)) of probabilities p, of equal shapes."""


class BCEWithLogitsLoss(FunctionLayer, of=F.binary_cross_entropy_with_logits, inputs=2):
    """`BCELoss` of sigmoid(x), without overflow; pos_weight: factors of the positive examples."""


class KLDivLoss(FunctionLayer, of=F.kl_div, inputs=2):
    """target·(log target − x) of log probabilities x, of equal shapes; see `functional.kl_div`."""


class PoissonNLLLoss(FunctionLayer, of=F.poisson_nll_loss, inputs=2):
    """See `functional.poisson_nll_loss`."""


class GaussianNLLLoss(FunctionLayer, of=F.gaussian_nll_loss, inputs=3):
    """Of x, target and variance; see `functional.gaussian_nll_loss`."""


class MarginRankingLoss(FunctionLayer, of=F.margin_ranking_loss, inputs=3):
    """Of x1, x2 and which shall be larger; see `functional.margin_ranking_loss`."""


class HingeEmbeddingLoss(FunctionLayer, of=F.hinge_embedding_loss, inputs=2):
    """See `functional.hinge_embedding_loss`."""


class CosineEmbeddingLoss(FunctionLayer, of=F.cosine_embedding_loss, inputs=3):
    """Of x1, x2 and target; see `functional.cosine_embedding_loss`."""


class SoftMarginLoss(FunctionLayer, of=F.soft_margin_loss, inputs=2):
    """log(1 + exp(−target·x)) of targets 1 and −1."""


class MultiLabelSoftMarginLoss(FunctionLayer, of=F.multilabel_soft_margin_loss, inputs=2):
    """Means over classes of `BCEWithLogitsLoss`."""


class MultiMarginLoss(FunctionLayer, of=F.multi_margin_loss, inputs=2):
    """See `functional.multi_margin_loss`."""


class MultiLabelMarginLoss(FunctionLayer, of=F.multilabel_margin_loss, inputs=2):
    """See `functional.multilabel_margin_loss`."""


class TripletMarginLoss(FunctionLayer, of=F.triplet_margin_loss, inputs=3):
    """Of anchor, positive and negative; see `functional.triplet_margin_loss`."""


class TripletMarginWithDistanceLoss(
    FunctionLayer, of=F.triplet_margin_with_distance_loss, inputs=3
):
    """`TripletMarginLoss` with a distance function of one's own."""
