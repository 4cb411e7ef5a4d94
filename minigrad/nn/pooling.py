"""Layers that gather windows of images, or resample them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minigrad.errors import ShapeError
from minigrad.nn.module import FunctionLayer, Layer
from minigrad.tensor import Tensor
from minigrad.tensor.convolution import Numbers


@dataclass(eq=False, repr=False)
class MaxPool2d(FunctionLayer):
    """Maxima of windows; see `Tensor.max_pool2d`. Equal ones share the gradient.

    (…, height, width) → (…, height′, width′), or a pair of these with return_indices.
    """

    function = Tensor.max_pool2d
    kernel_size: Numbers
    stride: Numbers | None = None
    padding: Numbers = 0
    dilation: Numbers = 1
    return_indices: bool = False
    ceil_mode: bool = False


@dataclass(eq=False, repr=False)
class AvgPool2d(FunctionLayer):
    """Means of windows; see `Tensor.avg_pool2d`. (…, height, width) → (…, height′, width′)."""

    function = Tensor.avg_pool2d
    kernel_size: Numbers
    stride: Numbers | None = None
    padding: Numbers = 0
    ceil_mode: bool = False
    count_include_pad: bool = True


@dataclass(eq=False, repr=False)
class Upsample(FunctionLayer):
    """Resampling to a size or by a factor; see `Tensor.interpolate`.

    (batch, channels, *space) → (batch, channels, *space′).
    """

    function = Tensor.interpolate
    size: int | Sequence[int] | None = None
    scale_factor: float | Sequence[float] | None = None
    mode: str = "nearest"
    align_corners: bool | None = None


@dataclass(eq=False, repr=False)
class AdaptiveAvgPool2d(Layer):
    """Means of as many windows as output_size says; None keeps an extent."""

    output_size: int | Sequence[int | None] | None

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width), or without batch → (…, *output_size)."""
        if x.ndim not in (3, 4):
            raise ShapeError(
                f"AdaptiveAvgPool2d of {x.shape}: expected (batch, channels, height, width)"
            )
        size = self.output_size
        pair = size if isinstance(size, Sequence) else (size, size)
        sizes = zip(pair, x._known_shape()[-2:], strict=True)
        extents = [have if want is None else want for want, have in sizes]
        batch = x if x.ndim == 4 else x.unsqueeze(0)
        means = batch.interpolate(extents, mode="area")
        return means if x.ndim == 4 else means.squeeze(0)


@dataclass(eq=False, repr=False)
class PixelShuffle(Layer):
    """Channels become the pixels of a finer image (Shi et al. 2016)."""

    upscale_factor: int

    def __call__(self, x: Tensor) -> Tensor:
        """(…, channels·r², height, width) → (…, channels, height·r, width·r)."""
        r = self.upscale_factor
        if x.ndim < 3 or x.size(-3) % (r * r):
            raise ShapeError(
                f"PixelShuffle({r}) of {x.shape}: expected (…, channels, height, width) with "
                f"channels a multiple of {r * r}"
            )
        return x.rearrange("... (c p q) h w -> ... c (h p) (w q)", p=r, q=r)
