"""Convolution layers; names, shapes and initialisation of parameters are PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from minigrad.errors import misfit
from minigrad.nn.layers import uniform
from minigrad.nn.module import Layer
from minigrad.tensor import Tensor
from minigrad.tensor.broadcasting import check_choice
from minigrad.tensor.convolution import Numbers, Padding, Pairs, check_more, geometry, per_dimension


class _Kernel(Layer):
    """What all convolution layers have in common: kernel, weight, bias."""

    spatial: ClassVar[int]
    transposed: ClassVar[bool] = False
    _sizes, _named = ("in_channels", "out_channels"), ("kernel_size", "stride")
    _unusual: ClassVar[dict[str, Any]] = {
        "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros",
        "bias": True,
    }  # fmt: skip

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Numbers, stride: Numbers,
        padding: Padding, dilation: Numbers, groups: int, bias: bool,
    ) -> None:  # fmt: skip
        name = type(self).__name__
        if groups < 1 or in_channels % groups or out_channels % groups:
            channels = f"{in_channels} and {out_channels}"
            raise misfit(f"{name}(groups={groups})", "channels to be multiples of groups", channels)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.kernel_size = tuple(per_dimension(name, "kernel_size", kernel_size, self.spatial))
        self._geometry()
        first, second = out_channels, in_channels
        if self.transposed:
            first, second = second, first
        shape = (first, second // groups, *self.kernel_size)
        inputs = math.prod(shape[1:])
        self.weight = uniform(shape, inputs)
        self.bias = uniform((out_channels,), inputs) if bias else None

    def _geometry(self) -> tuple[list[int], list[int], Pairs]:
        """Strides, dilations, and padding on each side; ShapeError if invalid."""
        name = "conv_transpose2d" if self.transposed else "conv2d"
        return geometry(name, self.kernel_size, self.stride, self.padding, self.dilation)

    def _said(self, name: str) -> Any:
        value = super()._said(name)
        spread = type(value) is int and name in ("stride", "padding", "output_padding", "dilation")
        return (value,) * self.spatial if spread and value != self._unusual.get(name) else value


class _Convolution(_Kernel):
    # Weight and bias begin uniform in ±1/√(in/groups · places of the kernel).
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Numbers, stride: Numbers = 1,
        padding: Padding = 0, dilation: Numbers = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:  # fmt: skip
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation)
        super().__init__(*sizes, groups, bias)
        modes = ("zeros", "reflect", "replicate", "circular")
        check_choice(type(self).__name__, modes, padding_mode=padding_mode)
        self.padding_mode = padding_mode

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, in_channels, *space) → (batch, out_channels, *space′)."""
        padding = self.padding
        if self.padding_mode != "zeros":
            pairs: list[Any] = [None] * (x.ndim - self.spatial)
            x = x.pad(pairs + self._geometry()[2], mode=self.padding_mode)
            padding = 0
        return x.conv2d(
            self.weight, self.bias, stride=self.stride, padding=padding, dilation=self.dilation,
            groups=self.groups,
        )  # fmt: skip


class Conv1d(_Convolution):
    """Convolution of sequences: (batch, in, length) → (batch, out, length′), or without the batch.

    length′ = (length + 2·padding − dilation·(kernel_size − 1) − 1) // stride + 1. padding may be
    "same" (with stride 1) or "valid"; padding_mode: "zeros", "reflect", "replicate" or "circular".
    weight (out, in/groups, kernel), bias (out,) or None. See `Tensor.conv2d` for errors.
    """

    spatial = 1


class Conv2d(_Convolution):
    """Convolution of images: (batch, in, height, width) → (batch, out, height′, width′).

    Sizes and options are those of `Conv1d`, each one number or one for each dimension. weight
    (out, in/groups, kernel, kernel), bias (out,) or None.

    `Conv2d(3, 8, 3, stride=2, padding=1)` of (4, 3, 32, 32) gives (4, 8, 16, 16).
    """

    spatial = 2


class Conv3d(_Convolution):
    """Convolution of volumes: (batch, in, depth, height, width) → (batch, out, …).

    Sizes and options are those of `Conv1d`, each one number or one for each dimension. weight
    (out, in/groups, *kernel), bias (out,) or None.
    """

    spatial = 3


class _TransposedConvolution(_Kernel):
    transposed = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Numbers, stride: Numbers = 1,
        padding: Numbers = 0, output_padding: Numbers = 0, groups: int = 1, bias: bool = True,
        dilation: Numbers = 1,
    ) -> None:  # fmt: skip
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation)
        super().__init__(*sizes, groups, bias)
        self.output_padding = output_padding
        name = type(self).__name__
        steps, gaps, _ = self._geometry()
        more = per_dimension(name, "output_padding", output_padding, self.spatial, least=0)
        check_more(name, more, steps, gaps)

    def __call__(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """(batch, in_channels, *space) → (batch, out_channels, *space′).

        output_size: the last extents of the result, among those that the stride leaves open.
        """
        more = self.output_padding if output_size is None else self._missing(x, output_size)
        return x.conv_transpose2d(
            self.weight, self.bias, stride=self.stride, padding=self.padding,
            output_padding=more, groups=self.groups, dilation=self.dilation,
        )  # fmt: skip

    def _missing(self, x: Tensor, output_size: Sequence[int]) -> list[int]:
        """The output_padding for an output_size."""
        name, n = type(self).__name__, self.spatial
        steps, gaps, pairs = self._geometry()
        space = [int(extent) for extent in x.shape[x.ndim - n :] if isinstance(extent, int)]
        sizes = zip(space, steps, gaps, self.kernel_size, pairs, strict=True)
        least = [(e - 1) * s + d * (k - 1) + 1 - sum(cut) for e, s, d, k, cut in sizes]
        more = [want - have for want, have in zip(output_size[-n:], least, strict=True)]
        if any(not 0 <= m < s for m, s in zip(more, steps, strict=True)):
            most = [have + s - 1 for have, s in zip(least, steps, strict=True)]
            given = f"output_size {tuple(output_size)} for shape {x.shape}"
            raise misfit(name, f"an output_size in {least} … {most}", given)
        return more


class ConvTranspose1d(_TransposedConvolution):
    """Transposed convolution: (batch, in, length) → (batch, out, length′).

    It has the sizes of the gradient of `Conv1d` by its input: length′ = (length − 1)·stride −
    2·padding + dilation·(kernel_size − 1) + output_padding + 1. weight (in, out/groups, kernel),
    bias (out,) or None. ShapeError if output_padding is not smaller than stride or dilation.
    """

    spatial = 1


class ConvTranspose2d(_TransposedConvolution):
    """Transposed convolution of images: (batch, in, height, width) → (batch, out, height′, width′).

    Sizes and options are those of `ConvTranspose1d`. weight (in, out/groups, kernel, kernel), bias
    (out,) or None.

    `ConvTranspose2d(8, 3, 4, stride=2, padding=1)` of (4, 8, 16, 16) gives (4, 3, 32, 32).
    """

    spatial = 2


class ConvTranspose3d(_TransposedConvolution):
    """Transposed convolution of volumes: (batch, in, depth, height, width) → (batch, out, …).

    Sizes and options are those of `ConvTranspose1d`. weight (in, out/groups, *kernel), bias (out,)
    or None.
    """

    spatial = 3
