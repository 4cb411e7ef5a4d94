"""PyTorch's torch.nn.functional, as far as `Tensor` has the methods.

Most names are the methods themselves, and mean what PyTorch's do. The functions below are those
where an argument or a default of the method is another than PyTorch's.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.errors import ShapeError
from minigrad.tensor import Tensor

relu, relu6, leaky_relu, elu, celu = (
    Tensor.relu, Tensor.relu6, Tensor.leaky_relu, Tensor.elu, Tensor.celu
)  # fmt: skip
selu, silu, mish, softplus, softsign = (
    Tensor.selu, Tensor.silu, Tensor.mish, Tensor.softplus, Tensor.softsign
)  # fmt: skip
hardtanh, hardswish, hardsigmoid = Tensor.hardtanh, Tensor.hardswish, Tensor.hardsigmoid
sigmoid, logsigmoid, tanh = Tensor.sigmoid, Tensor.logsigmoid, Tensor.tanh
softmax, log_softmax, softmin = Tensor.softmax, Tensor.log_softmax, Tensor.softmin
conv1d = conv2d = conv3d = Tensor.conv2d
conv_transpose1d = conv_transpose2d = conv_transpose3d = Tensor.conv_transpose2d
max_pool2d, avg_pool2d, max_unpool2d = Tensor.max_pool2d, Tensor.avg_pool2d, Tensor.max_unpool2d
interpolate, pad, one_hot, embedding = (
    Tensor.interpolate, Tensor.pad, Tensor.one_hot, Tensor.embedding
)  # fmt: skip
mse_loss = Tensor.mse_loss
# drops in training only, unlike PyTorch's
scaled_dot_product_attention = Tensor.scaled_dot_product_attention


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b: (…, in), (out, in), (out,) → (…, out). `Tensor.linear` takes Wᵀ."""
    return x.linear(weight.transpose(), bias)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x·Φ(x), exact unless approximate="tanh"."""
    return x.gelu(approximate)


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Elements are 0 with probability p, where training, whatever `Tensor.training` says."""
    with Tensor.train(training):
        return x.dropout(p)


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x over its p-norm along a dimension, which counts as at least eps."""
    return x.normalize(p, dim, eps)


def layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalization over the last dimensions, which are normalized_shape; then ·weight + bias."""
    shape = tuple(normalized_shape)
    if x.shape[x.ndim - len(shape) :] != shape:
        raise ShapeError(f"layer_norm of {x.shape}: expected the last dimensions to be {shape}")
    return x.layernorm(tuple(range(-len(shape), 0)), eps, weight, bias)


def _classes(x: Tensor) -> int:
    return 1 if x.ndim > 1 else 0


def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """−x[target], of log probabilities (batch, classes, …) and integers (batch, …).

    weight: (classes,), a factor for each class, by whose sum means are divided.
    """
    return x.nll_loss(target, weight, ignore_index, reduction, axis=_classes(x))


def cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """−log softmax(x)[target], of logits (batch, classes, …), which `Tensor.cross_entropy` guesses.

    target: integers (batch, …), or probabilities of x's shape. weight: (classes,), a factor for
    each class, by whose sum means are divided if targets are integers.
    """
    axis = _classes(x)
    if weight is None:
        return x.cross_entropy(target, reduction, label_smoothing, ignore_index, axis=axis)
    logs = x.log_softmax(axis)
    weighted = logs * weight.reshape(-1, *(1 for _ in range(x.ndim - axis - 1)))
    share = label_smoothing / int(x.size(axis))
    if target.dtype.is_float:
        wanted = target * (1 - label_smoothing) + share
        return (-weighted * wanted).sum(axis)._reduced(reduction)
    hits = nll_loss(logs, target, weight, ignore_index=ignore_index, reduction=reduction)
    if not label_smoothing:
        return hits
    even = target.ne(ignore_index).where(-weighted.sum(axis), 0)
    if reduction == "mean":
        ones = -logs.ones_like()
        even = even.sum() / nll_loss(
            ones, target, weight, ignore_index=ignore_index, reduction="sum"
        )
    else:
        even = even._reduced(reduction)
    return hits * (1 - label_smoothing) + even * share


def _weighted(losses: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    return (losses if weight is None else losses * weight)._reduced(reduction)


def binary_cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """−(t·log p + (1 − t)·log(1 − p)) of probabilities; weight: a factor for each element."""
    return _weighted(x.binary_crossentropy(target, "none"), weight, reduction)


def binary_cross_entropy_with_logits(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`binary_cross_entropy` of sigmoid(x); pos_weight: factors of the positive examples."""
    losses = x.binary_crossentropy_logits(target, "none", pos_weight)
    return _weighted(losses, weight, reduction)


def l1_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|x − target|, of equal shapes."""
    x._check_same_shape("l1_loss", target)
    return (x - target).abs()._reduced(reduction)


def huber_loss(
    x: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """d²/2 of differences d up to delta, beyond it delta·(|d| − delta/2) (Huber 1964)."""
    if not delta > 0:
        raise ValueError(f"huber_loss(delta={delta}): expected a number > 0")
    x._check_same_shape("huber_loss", target)
    size = (x - target).abs()
    losses = (size < delta).where(size.square() * 0.5, (size - delta / 2) * delta)
    return losses._reduced(reduction)


def smooth_l1_loss(
    x: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """`huber_loss` of delta=beta, divided by beta; `l1_loss` for beta=0."""
    if beta == 0:
        return l1_loss(x, target, reduction)
    return huber_loss(x, target, reduction, beta) / beta


def kl_div(
    x: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """target·(log target − x) of log probabilities x; 0 where the target is 0.

    log_target: the target is log probabilities, too. reduction "batchmean": the sum over the first
    dimension's extent, which is the divergence; "mean" divides by the number of elements.
    """
    x._check_same_shape("kl_div", target)
    if log_target:
        losses = target.exp() * (target - x)
    else:
        some = target > 0
        losses = some.where(target * (some.where(target, 1).log() - x), 0)
    if reduction == "batchmean":
        return losses.sum() / int(x.size(0))
    return losses._reduced(reduction)
