"""PyTorch's torch.nn.functional, as far as `Tensor` has the methods.

Most names are the methods themselves and have PyTorch's meaning. The functions below are those for
which an argument or a default of the method differs from PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from minigrad.errors import expect, misfit
from minigrad.graph.node import Shape
from minigrad.graph.symbolic import Integer
from minigrad.hints import hint_names
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import as_python, check_choice
from minigrad.tensor.convolution import Numbers, Padding, per_dimension
from minigrad.tensor.templates import templated

Pool = Callable[..., Any]
DIMENSIONS = (1, 2, 3)
LEAST_CHANNELS = 8  # of an image, from which on they are sampled together


def _named(function: Any, name: str, text: str) -> Pool:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    return function


POOL = """The {0} of each window of kernel_size: (batch, channels, *space) → (…, *space′).

Windows are stride apart (default: kernel_size); padding adds {2} around. In each dimension, there
are (extent + 2·padding − kernel_size) // stride + 1 windows without dilation; with ceil_mode, also
a last one that is cut off. See `Tensor.{1}`.
"""


def _pools(spatial: int) -> tuple[Pool, Pool]:
    """`max_pool` and `avg_pool` over so many dimensions, with PyTorch's order of arguments."""
    most, mean = f"max_pool{spatial}d", f"avg_pool{spatial}d"

    def max_pool(
        x: Tensor, kernel_size: Numbers = 2, stride: Numbers | None = None, padding: Padding = 0,
        dilation: Numbers = 1, ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        _check_space(most, x, spatial)
        size = per_dimension(most, "kernel_size", kernel_size, spatial)
        return x.max_pool2d(
            size, stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
            return_indices=return_indices,
        )  # fmt: skip

    def avg_pool(
        x: Tensor, kernel_size: Numbers = 2, stride: Numbers | None = None, padding: Padding = 0,
        ceil_mode: bool = False, count_include_pad: bool = True,
    ) -> Tensor:  # fmt: skip
        _check_space(mean, x, spatial)
        size = per_dimension(mean, "kernel_size", kernel_size, spatial)
        return x.avg_pool2d(
            size, stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad
        )

    return (
        _named(max_pool, most, POOL.format("maximum", "max_pool2d", "−∞")),
        _named(avg_pool, mean, POOL.format("mean", "avg_pool2d", "0")),
    )


def _check_space(name: str, x: Tensor, spatial: int) -> None:
    expect(x.ndim in (spatial + 1, spatial + 2), name, "(batch, channels, *space), or no batch, "
           f"with {spatial} spatial dimensions", x)  # fmt: skip


def _adaptive(spatial: int, kind: str) -> Pool:
    name = f"adaptive_{kind}_pool{spatial}d"

    def pool(x: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
        _check_space(name, x, spatial)
        several = isinstance(output_size, (tuple, list))
        wanted: Any = output_size if several else [output_size] * spatial
        sizes = [as_python(size) for size in wanted]
        given = [size for size in sizes if size is not None]
        expect(len(sizes) == spatial and all(type(size) is int and size >= 1 for size in given),
               f"{name}({output_size})", f"an int ≥ 1, or {spatial} of them or None")  # fmt: skip
        places = zip(range(x.ndim - spatial, x.ndim), sizes, strict=True)
        counts = {axis: size for axis, size in places if size is not None}
        return x._adaptive(counts, kind == "max") if given else x.clone()

    what = {"avg": "Means", "max": "Maxima"}[kind]
    text = f"""{what} of as many windows as output_size says: (…, *space) → (…, *output_size).

    One int is for all dimensions; None keeps a size. Window i goes from i·extent // size to
    ceil((i + 1)·extent / size), so windows may overlap."""
    return _named(pool, name, text)


max_pools, avg_pools = zip(*map(_pools, DIMENSIONS), strict=True)
adaptive_avg_pools = [_adaptive(n, "avg") for n in DIMENSIONS]
adaptive_max_pools = [_adaptive(n, "max") for n in DIMENSIONS]
max_pool1d, max_pool2d, max_pool3d = max_pools
avg_pool1d, avg_pool2d, avg_pool3d = avg_pools
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = adaptive_avg_pools
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = adaptive_max_pools


relu, relu6, leaky_relu, elu, glu, prelu, threshold = (
    Tensor.relu, Tensor.relu6, Tensor.leaky_relu, Tensor.elu, Tensor.glu,
    Tensor.prelu, Tensor.threshold,
)  # fmt: skip
selu, silu, mish, softplus, hardshrink, softshrink, tanhshrink = (
    Tensor.selu, Tensor.silu, Tensor.mish, Tensor.softplus, Tensor.hardshrink,
    Tensor.softshrink, Tensor.tanhshrink,
)  # fmt: skip
hardtanh, hardswish, hardsigmoid = Tensor.hardtanh, Tensor.hardswish, Tensor.hardsigmoid
sigmoid, logsigmoid, tanh = Tensor.sigmoid, Tensor.logsigmoid, Tensor.tanh
softmax, log_softmax = Tensor.softmax, Tensor.log_softmax
interpolate = upsample = Tensor.interpolate
one_hot, embedding, mse_loss = Tensor.one_hot, Tensor.embedding, Tensor.mse_loss
pixel_shuffle, pixel_unshuffle = Tensor.pixel_shuffle, Tensor.pixel_unshuffle
cosine_similarity, pairwise_distance = Tensor.cosine_similarity, Tensor.pairwise_distance
# drops in training only, unlike PyTorch's
scaled_dot_product_attention = Tensor.scaled_dot_product_attention


def pad(x: Tensor, pad: Sequence[Any], mode: str = "constant", value: float = 0) -> Tensor:
    """Elements added before and after dimensions: `Tensor.pad`, whose argument is `padding`."""
    return x.pad(pad, mode, value)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b: (…, in), (out, in), (out,) → (…, out). `Tensor.linear` takes Wᵀ."""
    expect(weight.ndim == 2, "linear", "a weight (out, in)", weight)
    if x.ndim and x.shape[-1] != weight.shape[1]:
        raise misfit("linear", "(…, in) and a weight (out, in)", x, weight)
    return x.linear(weight.transpose(), bias)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1,
    padding: Padding = 0, dilation: Numbers = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """x (batch, in, *space), weight (out, in/groups, *kernel), bias (out,) → (batch, out, *space′).

    The weight's dimensions say how many are spatial. See `Tensor.conv2d` for options and errors.
    """
    return x.conv2d(weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1,
    padding: Padding = 0, output_padding: Numbers = 0, groups: int = 1, dilation: Numbers = 1,
) -> Tensor:  # fmt: skip
    """x (batch, in, *space), weight (in, out/groups, *kernel), bias (out,) → (batch, out, *space′).

    The weight's dimensions say how many are spatial. See `Tensor.conv_transpose2d`.
    """
    options: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x.conv_transpose2d(weight, bias, output_padding=output_padding, **options)


conv1d = conv3d = conv2d
conv_transpose1d = conv_transpose3d = conv_transpose2d


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x·Φ(x), exact unless approximate="tanh"."""
    return x.gelu(approximate)


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Elements set to 0 with probability p, and others divided by 1 − p, if `training`.

    `Tensor.training` has no influence. ValueError unless p is in 0 … 1.
    """
    with Tensor.train(training):
        return x.dropout(p)


def dropout2d(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Whole channels (…, channels, height, width) set to 0 with probability p if `training`."""
    expect(x.ndim >= 3, "dropout2d", "(…, channels, height, width)", x)
    return x * dropout(x.new_ones((*x.shape[:-2], 1, 1)), p, training)


def gumbel_softmax(logits: Tensor, tau: float = 1.0, hard: bool = False, dim: int = -1) -> Tensor:
    """Random shares by Gumbel noise (Jang et al. 2016); hard: one-hot, with the shares' gradient.
    """
    wide = logits._wide()
    waiting = -(1 - wide.rand_like()).log()  # 0 one time in 2²⁴
    noise = -waiting.maximum(2.0**-25).log()
    shares: Tensor = ((wide + noise) / tau).softmax(dim).cast(logits._float_dtype())
    if not hard:
        return shares
    chosen = shares.zeros_like().scatter(dim, shares.argmax(dim, True), 1.0)
    return chosen - shares.detach() + shares


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x divided by its p-norm along dim, or by eps if that is larger: (3, 4) → (0.6, 0.8)."""
    return x.normalize(p, dim, eps)


def layer_norm(
    x: Tensor, normalized_shape: int | Sequence[Integer], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """(x − mean)/√(variance + eps) over the last dimensions; then ·weight + bias.

    These dimensions, weight and bias have the shape normalized_shape; ShapeError for others.
    """
    axes = _last("layer_norm", x, normalized_shape)
    _check_factors("layer_norm", x.shape[axes[0] :], weight, bias)
    return x.layernorm(axes, eps, weight, bias)


def _check_factors(name: str, wanted: Shape, *given: Tensor | None) -> None:
    """ShapeError for weights and biases that would broadcast."""
    for tensor in given:
        if tensor is not None and tensor.shape != wanted:
            raise misfit(f"{name}: weight or bias", str(wanted), tensor)


def _last(name: str, x: Tensor, normalized_shape: int | Sequence[Integer]) -> tuple[int, ...]:
    """The axes of the last dimensions, which must have shape normalized_shape."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.ndim < len(shape) or x.shape[x.ndim - len(shape) :] != shape:
        raise misfit(name, f"last dimensions {shape}", x)
    return tuple(range(-len(shape), 0))


def rms_norm(
    x: Tensor, normalized_shape: int | Sequence[Integer], weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:  # fmt: skip
    """x/√(mean of x² + eps) over the last dimensions; then ·weight.

    eps: unless given, the distance from 1 to the next larger number of the dtype of the
    computation, which is at least float32.
    """
    axes = _last("rms_norm", x, normalized_shape)
    _check_factors("rms_norm", x.shape[axes[0] :], weight)
    return x.rmsnorm(axes, 2.0**-x._wide().dtype.fraction if eps is None else eps, weight)


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """(x − mean)/√(variance + eps) over groups of channels and all of space; then ·weight + bias.

    x (batch, channels, *space), weight and bias (channels,). ShapeError if the number of channels
    is not a multiple of the number of groups.
    """
    expect(x.ndim >= 2 and num_groups >= 1 and not x.size(1) % num_groups, "group_norm",
           "channels (dimension 1) in a multiple of num_groups", x,
           num_groups=num_groups)  # fmt: skip
    _check_factors("group_norm", x.shape[1:2], weight, bias)
    parts = x._wide().unflatten(1, (num_groups, -1))
    y = parts.layernorm(tuple(range(2, parts.ndim)), eps).reshape(x.shape)
    given = (p if p is None else p.reshape(-1, *(1 for _ in x.shape[2:])) for p in (weight, bias))
    return y._scaled(*given).cast(x._float_dtype())


def batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalization of channels (dimension 1); then ·weight + bias per channel.

    If `training`, by the statistics of the batch, which also move the running statistics by
    `momentum` (in place); otherwise by the running statistics.
    """
    wide = x._wide()
    if training:
        mean, var, count = _batch_statistics(wide, (0, *range(2, x.ndim)))
        _move_statistics(running_mean, running_var, (mean, var, count), momentum)
    elif running_mean is None or running_var is None:
        raise ValueError("batch_norm: expected training=True if there are no running statistics")
    else:
        mean, var = running_mean, running_var
    return wide.batchnorm(weight, bias, mean, (var + eps).rsqrt()).cast(x._float_dtype())


_Statistics = tuple[Tensor, Tensor, Any]  # mean, variance, number of elements (int or tensor)


def _batch_statistics(x: Tensor, axes: tuple[int, ...]) -> _Statistics:
    """Mean and variance (without Bessel's correction) per channel, and the number of elements."""
    count = math.prod(int(x.size(axis)) for axis in axes)
    if count < 2:
        what = "BatchNorm in training, or without running statistics"
        raise misfit(what, "at least 2 elements per channel", count)
    return (*_mean_and_square(x, axes), count)


@templated
def _mean_and_square(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Together, so that both, and their gradients, read one mean."""
    return x.mean(axes), x._mean_square(axes)


def _move_statistics(mean: Tensor | None, var: Tensor | None, got: _Statistics, share: Any) -> None:
    """Move running statistics, if there are any, towards those of a batch by a share."""
    new, spread, count = got
    if mean is not None and var is not None:
        with Tensor.no_grad():
            number = count.detach() if isinstance(count, Tensor) else count
            mean.assign(mean + (new.detach() - mean) * share)
            var.assign(var + (spread.detach() * (number / (number - 1)) - var) * share)


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Places for `grid_sample`: an even grid of this size, moved by affine maps.

    theta: (batch, n, n + 1) for n spatial dimensions. size: (batch, channels, *space), the shape
    that `grid_sample` is to return. Result: (batch, *space, n).
    """
    space = size[2:]
    n = len(space)
    expect(theta.shape == (size[0], n, n + 1), f"affine_grid of size {tuple(size)}",
           f"maps of shape {(size[0], n, n + 1)}", theta)  # fmt: skip
    ramps = []
    for extent in space:
        numbers = Tensor.arange(extent, dtype=theta.dtype, device=theta.device) * 2 - (extent - 1)
        ramps.append(numbers / (max(extent - 1, 1) if align_corners else extent))
    coordinates = ramps[0].meshgrid(*ramps[1:])
    points = Tensor.stack([*reversed(coordinates), coordinates[0].ones_like()], dim=-1)
    return (points.reshape(-1, n + 1) @ theta.mT).unflatten(1, space)


def grid_sample(
    x: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:  # fmt: skip
    """Values of x (batch, channels, *space) at any places, by interpolation.

    grid: (batch, *out, n) for n spatial dimensions, coordinates from -1 to 1, those of the last
    dimension first. Result: (batch, channels, *out). mode: bilinear (means of 2ⁿ neighbours) or
    nearest. padding_mode: outside of x is 0, or the nearest element of its border. align_corners:
    ±1 are the centres of the outermost elements, instead of their outer edges. A coordinate that is
    NaN gives NaN (in PyTorch, it counts as -1).
    """
    check_choice("grid_sample", ("bilinear", "nearest"), mode=mode)
    check_choice("grid_sample", ("zeros", "border"), padding_mode=padding_mode)
    n = x.ndim - 2
    expect(n >= 1 and grid.ndim == x.ndim and (grid.shape[0], grid.shape[-1]) == (x.shape[0], n),
           "grid_sample", "x (batch, channels, *space) and a grid (batch, *out, number of spatial "
           "dimensions)", x, grid)  # fmt: skip
    # position in x, weight, is it outside of x? (The weight of NaN is NaN.)
    corners: list[tuple[Any, Any, Any]] = [(0, 1, False)]
    for extent, place in zip(x._known_shape()[2:], reversed(grid.unbind(-1)), strict=True):
        place = (place + 1) * ((extent - 1) / 2 if align_corners else extent / 2)
        place = place if align_corners else place - 0.5
        if padding_mode == "border":
            place = place.clip(0, extent - 1)
        place = place.round() if mode == "nearest" else place
        low = place.floor()
        share = place - low
        both = [(low, 1 - share), (low + 1, share)]
        ends = both[:1] if mode == "nearest" else both
        corners = [
            (index * extent + at.clip(0, extent - 1).int(), weight * part,
             (at < 0) | (at >= extent) | outside)
            for index, weight, outside in corners for at, part in ends
        ]  # fmt: skip
    # Many channels come last: those of a place are side by side then, and none is gathered alone.
    flat, count = x.flatten(2), x._known_shape()[1]
    last = count >= LEAST_CHANNELS
    flat = flat.transpose(1, 2).contiguous() if last else flat
    axis, wide = (1, (-1, -1, count)) if last else (2, (-1, count, -1))
    values: list[Tensor] = []
    for corner in corners:
        index, weight, outside = (each.flatten(1).unsqueeze(3 - axis) for each in corner)
        values.append(outside.where(0, flat.gather(axis, index.expand(wide)) * weight))
    total = sum(values[1:], values[0])
    total = total.contiguous().transpose(1, 2) if last else total
    return total.unflatten(2, grid._known_shape()[1:-1])


def instance_norm(
    x: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalization of each channel of each example over space; then ·weight + bias per channel.

    Running statistics, if given, move by `momentum` towards the means of all examples' statistics
    (in place). Without use_input_stats, the running statistics are used, and do not change.
    """
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    count = math.prod(x._known_shape()[2:])
    expect(count >= 2, "instance_norm", "at least 2 elements in the spatial dimensions", x)
    if running_mean is not None and running_var is not None:
        wide, space = x.detach()._wide(), tuple(range(2, x.ndim))
        found = wide.mean(space).mean(0), wide._mean_square(space).mean(0), count
        _move_statistics(running_mean, running_var, found, momentum)
    return group_norm(x, x.size(1), weight, bias, eps)


def _check_above_0(name: str, **given: float) -> None:
    for what, value in given.items():
        expect(value > 0, f"{name}({what}={value})", "a number > 0", error=ValueError)


def _classes(x: Tensor) -> int:
    return 1 if x.ndim > 1 else 0


def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """−x[target], for log probabilities (batch, classes, …) and integers (batch, …).

    weight: (classes,), a factor for each class; means are divided by the sum of the factors.
    """
    return x.nll_loss(target, weight, ignore_index, reduction, axis=_classes(x))


def cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """−log softmax(x)[target], for logits (batch, classes, …) or (classes,).

    target: integers (batch, …), or probabilities in x's shape. weight: (classes,), a factor for
    each class; for integer targets, means are divided by the sum of the factors.
    """
    options = (reduction, label_smoothing, ignore_index, _classes(x))
    return x._cross_entropy(target, weight, *options)


def _weighted(losses: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    weighted = losses if weight is None else losses * weight
    if weighted.shape != losses.shape:
        raise misfit("weight", f"a shape that broadcasts to the losses' {losses.shape}", weight)
    return weighted._reduced(reduction)


def binary_cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """−(t·log p + (1 − t)·log(1 − p)) of probabilities x and targets t of the same shape.

    weight: a factor for each element. reduction: "mean", "sum" or "none". For numbers that are not
    probabilities yet, use `binary_cross_entropy_with_logits`.
    """
    return _weighted(x.binary_crossentropy(target, "none"), weight, reduction)


def binary_cross_entropy_with_logits(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`binary_cross_entropy` of sigmoid(x), without overflow.

    weight and reduction as there. pos_weight: a factor of the term of positive targets, for data
    where they are rare.
    """
    return _weighted(x.binary_crossentropy_logits(target, "none", pos_weight), weight, reduction)


def l1_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|x − target|, reduced by "mean", "sum" or "none"; ShapeError unless the shapes are equal."""
    return x._away("l1_loss", target).abs()._reduced(reduction)


def huber_loss(x: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d²/2 for differences |d| ≤ delta, else delta·(|d| − delta/2) (Huber 1964).

    reduction: "mean", "sum" or "none". ShapeError unless x and target have the same shape.
    """
    _check_above_0("huber_loss", delta=delta)
    away = x._away("huber_loss", target)
    near = away.hardtanh(-delta, delta)
    return (near * (away - near * 0.5))._reduced(reduction)


def smooth_l1_loss(x: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """`huber_loss` with delta=beta, divided by beta; `l1_loss` for beta=0."""
    if beta == 0:
        return l1_loss(x, target, reduction)
    return huber_loss(x, target, reduction, beta) / beta


def kl_div(x: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target·(log target − x), for log probabilities x; 0 where the target is 0.

    log_target: the target is log probabilities, too. reduction="batchmean" divides the sum by the
    first extent, which gives the divergence; "mean" divides by the number of elements.
    """
    x._check_same_shape("kl_div", target)
    if log_target:
        losses = target.exp() * (target - x)
    else:
        none = target.eq(0)
        losses = none.where(0, target * (none.where(1, target).log() - x))
    if reduction == "batchmean":
        return losses.sum() / int(x.size(0))
    return losses._reduced(reduction)


def poisson_nll_loss(
    x: Tensor, target: Tensor, log_input: bool = True, full: bool = False, *, eps: float = 1e-8,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """exp(x) − target·x, or x − target·log(x + eps) without log_input.

    full: plus Stirling's approximation of log(target!), where target > 1. reduction: "mean", "sum"
    or "none". ShapeError unless the shapes are equal.
    """
    x._check_same_shape("poisson_nll_loss", target)
    losses = x.exp() - target * x if log_input else x - target * (x + eps).log()
    if full:
        many = target > 1
        t = many.where(target, 1)
        losses = losses + many.where(t * t.log() - t + (t * (2 * math.pi)).log() * 0.5, 0)
    return losses._reduced(reduction)


def margin_ranking_loss(
    x1: Tensor, x2: Tensor, target: Tensor, margin: float = 0.0, *, reduction: str = "mean"
) -> Tensor:
    """max(0, margin − target·(x1 − x2)): target 1 if x1 should be larger, −1 if x2 should.

    reduction: "mean", "sum" or "none".
    """
    away = x1._away("margin_ranking_loss", x2)
    away._check_same_shape("margin_ranking_loss", target)
    return (margin - away * target).clip(0)._reduced(reduction)


def triplet_margin_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0, p: float = 2,
    eps: float = 1e-6, swap: bool = False, *, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """max(0, |anchor − positive| − |anchor − negative| + margin) (Balntas et al. 2016).

    With p-norms over the last dimension. swap: the distance to the negative is the smaller one of
    the anchor's and the positive's. reduction: "mean", "sum" or "none". ShapeError unless the
    shapes are equal.
    """
    _check_above_0("triplet_margin_loss", margin=margin)
    anchor._check_same_shape("triplet_margin_loss", positive)
    anchor._check_same_shape("triplet_margin_loss", negative)
    away = anchor.pairwise_distance(negative, p, eps)
    if swap:
        away = away.minimum(positive.pairwise_distance(negative, p, eps))
    near = anchor.pairwise_distance(positive, p, eps)
    return (near - away + margin).clip(0)._reduced(reduction)


check_functions(globals(), "minigrad.tensor", first=True)
hint_names(globals())
