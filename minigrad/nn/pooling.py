"""Layers that gather windows of images, pad them, or resample them."""

from __future__ import annotations

from minigrad.nn import functional as F
from minigrad.nn.module import FunctionLayer
from minigrad.tensor import Tensor


class MaxPool1d(FunctionLayer, of=F.max_pool1d):
    """Maxima of windows; see `Tensor.max_pool2d`."""


class MaxPool2d(FunctionLayer, of=F.max_pool2d):
    """Maxima of windows; see `Tensor.max_pool2d`."""


class MaxPool3d(FunctionLayer, of=F.max_pool3d):
    """Maxima of windows; see `Tensor.max_pool2d`."""


class AvgPool1d(FunctionLayer, of=F.avg_pool1d):
    """Means of windows; see `Tensor.avg_pool2d`."""


class AvgPool2d(FunctionLayer, of=F.avg_pool2d):
    """Means of windows; see `Tensor.avg_pool2d`."""


class AvgPool3d(FunctionLayer, of=F.avg_pool3d):
    """Means of windows; see `Tensor.avg_pool2d`."""


class LPPool1d(FunctionLayer, of=F.lp_pool1d):
    """(Σ x^p)^(1/p) of windows, p being norm_type."""


class LPPool2d(FunctionLayer, of=F.lp_pool2d):
    """(Σ x^p)^(1/p) of windows, p being norm_type."""


class LPPool3d(FunctionLayer, of=F.lp_pool3d):
    """(Σ x^p)^(1/p) of windows, p being norm_type."""


class MaxUnpool1d(FunctionLayer, of=F.max_unpool1d, inputs=2):
    """Called with x and indices; see `Tensor.max_unpool2d`."""


class MaxUnpool2d(FunctionLayer, of=F.max_unpool2d, inputs=2):
    """Called with x and indices; see `Tensor.max_unpool2d`."""


class MaxUnpool3d(FunctionLayer, of=F.max_unpool3d, inputs=2):
    """Called with x and indices; see `Tensor.max_unpool2d`."""


class AdaptiveAvgPool1d(FunctionLayer, of=F.adaptive_avg_pool1d):
    """Means of as many windows as output_size says; None keeps an extent."""


class AdaptiveAvgPool2d(FunctionLayer, of=F.adaptive_avg_pool2d):
    """Means of as many windows as output_size says; None keeps an extent."""


class AdaptiveAvgPool3d(FunctionLayer, of=F.adaptive_avg_pool3d):
    """Means of as many windows as output_size says; None keeps an extent."""


class AdaptiveMaxPool1d(FunctionLayer, of=F.adaptive_max_pool1d):
    """Maxima of as many windows as output_size says; None keeps an extent."""


class AdaptiveMaxPool2d(FunctionLayer, of=F.adaptive_max_pool2d):
    """Maxima of as many windows as output_size says; None keeps an extent."""


class AdaptiveMaxPool3d(FunctionLayer, of=F.adaptive_max_pool3d):
    """Maxima of as many windows as output_size says; None keeps an extent."""


class Unfold(FunctionLayer, of=F.unfold):
    """(batch, channels, height, width) → (batch, channels·kernel, windows)."""


class Fold(FunctionLayer, of=F.fold):
    """(batch, channels·kernel, windows) → (batch, channels, *output_size)."""


class Upsample(FunctionLayer, of=Tensor.interpolate):
    """Resampling to a size or by a factor; see `Tensor.interpolate`."""


class PixelShuffle(FunctionLayer, of=Tensor.pixel_shuffle):
    """Channels become the pixels of a finer image (Shi et al. 2016)."""


class PixelUnshuffle(FunctionLayer, of=Tensor.pixel_unshuffle):
    """Pixels become the channels of a coarser image."""


class ChannelShuffle(FunctionLayer, of=Tensor.channel_shuffle):
    """Channels of all groups in turn."""
