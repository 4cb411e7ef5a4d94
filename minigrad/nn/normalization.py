"""Normalization layers; names and shapes of parameters are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from minigrad.dtype import dtypes
from minigrad.errors import expect, misfit
from minigrad.nn import functional as F
from minigrad.nn.module import Layer, buffer
from minigrad.tensor import Tensor, realization


def _shape_of(given: int | Sequence[int], name: str = "") -> tuple[int, ...]:
    shape = tuple(given) if isinstance(given, Sequence) else (given,)
    expect(not name or min(shape, default=0) >= 0, name, "sizes ≥ 0", normalized_shape=given)
    return shape


def _check_channels(layer: Layer, x: Tensor, channels: int, spatial: tuple[int, ...] = ()) -> None:
    """ShapeError for other channels, or for a number of dimensions after them not in `spatial`."""
    if x.ndim < 2 or x.shape[1] != channels or (spatial and x.ndim - 2 not in spatial):
        space = " or ".join(f"{n} spatial dimensions" if n else "none" for n in spatial)
        expected = f"(batch, {channels}, …){f' with {space}' if space else ''}"
        raise misfit(type(layer).__name__, expected, x)


def _one(value: float, shape: int | tuple[int, ...], wanted: bool = True) -> Tensor | None:
    """A parameter filled with a number, or None if it is not wanted."""
    return Tensor.full(_shape_of(shape), value, requires_grad=True) if wanted else None


class _Norm(Layer):
    _sizes: ClassVar[tuple[str, ...]] = ("normalized_shape",)
    _named: ClassVar[tuple[str, ...]] = ("eps", "elementwise_affine")
    spatial: ClassVar[tuple[int, ...]] = ()  # allowed numbers of spatial dimensions; () for any


class LayerNorm(_Norm):
    """(x − mean)/√(variance + eps) over the last dimensions (Ba et al. 2016), then ·weight + bias.

    normalized_shape: the sizes of these dimensions. weight and bias of that shape begin with 1 and
    0; without elementwise_affine they are None. Shape and dtype are those of x. ShapeError if the
    last dimensions of x are others.
    """

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float = 1e-5,
        elementwise_affine: bool = True, bias: bool = True,
    ) -> None:  # fmt: skip
        self.normalized_shape, self.eps = _shape_of(normalized_shape, type(self).__name__), eps
        self.elementwise_affine = elementwise_affine
        self.weight = _one(1.0, self.normalized_shape, elementwise_affine)
        self.bias = _one(0.0, self.normalized_shape, elementwise_affine and bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape and dtype as x."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class LayerNorm2d(LayerNorm):
    """`LayerNorm` over the channels of each pixel of (batch, channels, *space).

    normalized_shape: the number of channels.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape and dtype as x."""
        _check_channels(self, x, self.normalized_shape[0])
        return super().__call__(x.transpose(1, -1)).transpose(1, -1)


class RMSNorm(_Norm):
    """x/√(mean of x² + eps) over the last dimensions (Zhang and Sennrich 2019), then ·weight.

    normalized_shape and weight are as for `LayerNorm`; there is no bias.
    """

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float = 1e-6,
        elementwise_affine: bool = True,
    ) -> None:  # fmt: skip
        self.normalized_shape, self.eps = _shape_of(normalized_shape, type(self).__name__), eps
        self.elementwise_affine = elementwise_affine
        self.weight = _one(1.0, self.normalized_shape, elementwise_affine)

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape and dtype as x."""
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GroupNorm(_Norm):
    """Normalization over groups of channels and all of space (Wu and He 2018).

    x (batch, num_channels, *space); each of num_groups groups has a mean and a variance in each
    example. weight and bias (num_channels,) begin with 1 and 0. ShapeError if the number of
    channels is not a multiple of num_groups, or if x has another one.
    """

    _sizes: ClassVar[tuple[str, ...]] = ("num_groups", "num_channels")
    _named = ("eps", "affine")

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        expect(num_groups >= 1 and not num_channels % num_groups, "GroupNorm", "num_channels to be "
               "a multiple of num_groups", num_groups=num_groups,
               num_channels=num_channels)  # fmt: skip
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = eps, affine
        self.weight = _one(1.0, num_channels, affine)
        self.bias = _one(0.0, num_channels, affine)

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, num_channels, *space); same shape and dtype."""
        _check_channels(self, x, self.num_channels, self.spatial)
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class InstanceNorm(GroupNorm):
    """Normalization of each channel of each example over space, of any number of dimensions.

    x (batch, num_features, *space). weight and bias (num_features,) only if affine=True.
    """

    _sizes = ("num_channels",)

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = False) -> None:
        self.num_features = num_features
        super().__init__(num_features, num_features, eps, affine)

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, num_features, *space); same shape and dtype; ShapeError for a space of one."""
        if all(extent == 1 for extent in x.shape[2:]):
            raise misfit(type(self).__name__, "at least 2 elements in the spatial dimensions", x)
        return super().__call__(x)


MOST_WAITING = 8  # calls of a BatchNorm whose statistics are lazy together


class BatchNorm(_Norm):
    """Normalization of channels over batch and space (Ioffe and Szegedy 2015).

    Any number of spatial dimensions. In training (`Tensor.train()`, or the Module's mode) by the
    batch's statistics, which also move running_mean and running_var by `momentum` (None: to the
    mean over all batches so far); otherwise by running_mean and running_var.
    """

    _sizes = ("num_features",)
    _named = ("eps", "momentum", "affine", "track_running_stats")
    _waiting = 0  # calls in a row that found the statistics of the one before still lazy

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = True, track_running_stats: bool = True,
    ) -> None:  # fmt: skip
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight, self.bias = _one(1.0, num_features, affine), _one(0.0, num_features, affine)
        # (x, axes) → statistics over these axes, and the number of elements; the ranks of a
        # parallel program replace it by one over all ranks (models/parallel)
        self.statistics: Callable[[Tensor, tuple[int, ...]], F._Statistics] = F._batch_statistics
        tracks = track_running_stats
        self.running_mean = buffer(Tensor.zeros(num_features)) if tracks else None
        self.running_var = buffer(Tensor.ones(num_features)) if tracks else None
        self.num_batches_tracked = buffer(Tensor(0, dtype=dtypes.int64)) if tracks else None

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, num_features, *space); same shape and dtype."""
        _check_channels(self, x, self.num_features, self.spatial)
        wide, trains = x._wide(), self._trains()
        mean, var = self.running_mean, self.running_var
        if trains or mean is None or var is None:
            found = mean, var, _ = self.statistics(wide, (0, *range(2, x.ndim)))
            if trains:
                self._track(found)
        normal = wide.batchnorm(self.weight, self.bias, mean, (var + self.eps).rsqrt())
        return normal.cast(x._float_dtype())

    def _track(self, found: F._Statistics) -> None:
        """Move the running statistics towards those of a batch."""
        share: Any = self.momentum
        running, batches = self.running_mean, self.num_batches_tracked
        if running is not None and self.running_var is not None and batches is not None:
            # compute earlier calls' statistics if still lazy, so that they do not form a growing
            # chain; not at once, because a step may call the layer for several batches
            waiting = 0 if running.is_realized() else self._waiting + 1
            if waiting == MOST_WAITING:
                Tensor.realize(running, self.running_var, batches)
                waiting = 0
            if not waiting:
                realization.accompany(running.raw, batches)
            object.__setattr__(self, "_waiting", waiting)
        if share is None and batches is not None:
            share = 1 / (batches.cast(found[0].dtype) + 1)
        F._move_statistics(running, self.running_var, found, share)
        if batches is not None:
            with Tensor.no_grad():
                batches.assign(batches + 1)


class BatchNorm1d(BatchNorm):
    """`BatchNorm` of (batch, channels) or (batch, channels, length); num_features: the channels."""

    spatial = (0, 1)


class BatchNorm2d(BatchNorm):
    """`BatchNorm` of images (batch, channels, height, width); num_features: the channels."""

    spatial = (2,)


class BatchNorm3d(BatchNorm):
    """`BatchNorm` of volumes (batch, channels, depth, height, width)."""

    spatial = (3,)


class InstanceNorm1d(InstanceNorm):
    """`InstanceNorm` of (batch, channels, length)."""

    spatial = (1,)


class InstanceNorm2d(InstanceNorm):
    """`InstanceNorm` of images (batch, channels, height, width)."""

    spatial = (2,)


class InstanceNorm3d(InstanceNorm):
    """`InstanceNorm` of volumes (batch, channels, depth, height, width)."""

    spatial = (3,)
