"""PyTorch's functions of windows of images, with its names and defaults: pooling, unfold, fold.

x is (batch, channels, *space) or without the batch; one number stands for all spatial dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from minigrad.errors import ShapeError
from minigrad.tensor import Tensor
from minigrad.tensor.convolution import Numbers, per_dimension

Pool = Callable[..., Any]


def _named(function: Pool, name: str, text: str) -> Pool:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    return function


def _max_pool(spatial: int) -> Pool:
    def pool(
        x: Tensor, kernel_size: Numbers, stride: Numbers | None = None, padding: Numbers = 0,
        dilation: Numbers = 1, *, ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        size = per_dimension("max_pool", "kernel_size", kernel_size, spatial)
        return x.max_pool2d(size, stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
                            return_indices=return_indices)  # fmt: skip

    return _named(pool, f"max_pool{spatial}d", "Maxima of windows; see `Tensor.max_pool2d`.")


def _avg_pool(spatial: int) -> Pool:
    def pool(
        x: Tensor, kernel_size: Numbers, stride: Numbers | None = None, padding: Numbers = 0,
        ceil_mode: bool = False, count_include_pad: bool = True,
    ) -> Tensor:  # fmt: skip
        size = per_dimension("avg_pool", "kernel_size", kernel_size, spatial)
        return x.avg_pool2d(size, stride, padding=padding, ceil_mode=ceil_mode,
                            count_include_pad=count_include_pad)  # fmt: skip

    return _named(pool, f"avg_pool{spatial}d", "Means of windows; see `Tensor.avg_pool2d`.")


def _lp_pool(spatial: int) -> Pool:
    def pool(
        x: Tensor, norm_type: float, kernel_size: Numbers, stride: Numbers | None = None,
        ceil_mode: bool = False,
    ) -> Tensor:  # fmt: skip
        size = per_dimension("lp_pool", "kernel_size", kernel_size, spatial)
        sums = (x**norm_type).avg_pool2d(size, stride, ceil_mode=ceil_mode) * prod(size)
        return sums.relu()._root(norm_type)

    return _named(pool, f"lp_pool{spatial}d", "(Σ x^p)^(1/p) of windows, p being norm_type.")


def _max_unpool(spatial: int) -> Pool:
    def unpool(
        x: Tensor, indices: Tensor, kernel_size: Numbers, stride: Numbers | None = None,
        padding: Numbers = 0, output_size: Sequence[int] | None = None,
    ) -> Tensor:  # fmt: skip
        size = per_dimension("max_unpool", "kernel_size", kernel_size, spatial)
        return x.max_unpool2d(indices, size, stride, padding=padding, output_size=output_size)

    return _named(unpool, f"max_unpool{spatial}d", "See `Tensor.max_unpool2d`.")


def _adaptive(spatial: int, kind: str, along: Callable[[Tensor, int, int], Tensor]) -> Pool:
    def pool(x: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
        if x.ndim not in (spatial + 1, spatial + 2):
            raise ShapeError(
                f"adaptive_{kind}_pool{spatial}d of {x.shape}: expected (batch, channels, *space) "
                f"with {spatial} spatial dimensions"
            )
        one = isinstance(output_size, int) or output_size is None
        sizes = [output_size] * spatial if one else list(output_size)  # type: ignore[arg-type]
        for axis, size in zip(range(x.ndim - spatial, x.ndim), sizes, strict=True):
            x = x if size is None else along(x, axis, size)  # type: ignore[arg-type]
        return x

    what = {"avg": "Means", "max": "Maxima"}[kind]
    text = f"{what} of as many windows as output_size says; None keeps an extent."
    return _named(pool, f"adaptive_{kind}_pool{spatial}d", text)


def _means(x: Tensor, axis: int, size: int) -> Tensor:
    return x._means(axis, x._known_shape()[axis], size)


def _maxima(x: Tensor, axis: int, size: int) -> Tensor:
    windows, inside = x._adaptive_windows(axis, x._known_shape()[axis], size)
    return inside.where(windows, x.dtype.minimum).max(axis + 1)


max_pool1d, max_pool2d, max_pool3d = (_max_pool(spatial) for spatial in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (_avg_pool(spatial) for spatial in (1, 2, 3))
lp_pool1d, lp_pool2d, lp_pool3d = (_lp_pool(spatial) for spatial in (1, 2, 3))
max_unpool1d, max_unpool2d, max_unpool3d = (_max_unpool(spatial) for spatial in (1, 2, 3))
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (
    _adaptive(spatial, "avg", _means) for spatial in (1, 2, 3)
)  # fmt: skip
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (
    _adaptive(spatial, "max", _maxima) for spatial in (1, 2, 3)
)  # fmt: skip


def unfold(
    x: Tensor, kernel_size: Numbers, dilation: Numbers = 1, padding: Numbers = 0,
    stride: Numbers = 1,
) -> Tensor:  # fmt: skip
    """(…, channels, height, width) → (…, channels·kernel, windows): windows as columns."""
    size, gap, around, step = (
        per_dimension("unfold", name, value, 2, least=0 if name == "padding" else 1)
        for name, value in (("kernel_size", kernel_size), ("dilation", dilation),
                            ("padding", padding), ("stride", stride))
    )  # fmt: skip
    padded = x.pad((around[1], around[1], around[0], around[0]))
    first = x.ndim - 2
    windows = padded._windows([(first + i, size[i], step[i], gap[i]) for i in (0, 1)])
    lead = range(first)
    return windows.permute(*lead, -2, -1, -4, -3).flatten(-2).flatten(first - 1, -2)


def fold(
    x: Tensor, output_size: Numbers, kernel_size: Numbers, dilation: Numbers = 1,
    padding: Numbers = 0, stride: Numbers = 1,
) -> Tensor:  # fmt: skip
    """(…, channels·kernel, windows) → (…, channels, *output_size): windows added up at places."""
    height, width = per_dimension("fold", "output_size", output_size, 2)
    places = Tensor.arange(height * width, device=x.device).reshape(1, height, width) + 1
    places = unfold(places, kernel_size, dilation, padding, stride).flatten()  # 0: the padding
    lead = x.shape[:-2]
    values = x.reshape((*lead, -1, places.numel()))
    empty = values.new_zeros((*values.shape[:-1], height * width + 1))
    total = empty.scatter_add(-1, places.expand(values.shape), values)
    return total[..., 1:].reshape((*lead, -1, height, width))
