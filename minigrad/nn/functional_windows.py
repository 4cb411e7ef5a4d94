"""PyTorch's pooling functions, with its names, orders of arguments and defaults.

x is (batch, channels, *space) or without the batch; one number stands for all spatial dimensions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from minigrad.errors import ShapeError
from minigrad.tensor import Tensor
from minigrad.tensor.convolution import per_dimension

Pool = Callable[..., Any]
DIMENSIONS = (1, 2, 3)


def _named(function: Any, name: str, text: str, *options: inspect.Parameter) -> Pool:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    if options:
        function.__signature__ = inspect.Signature(options)
    return function  # type: ignore[no-any-return]


def _pool(spatial: int, method: Any, order: str) -> Pool:
    """A method of windows for so many spatial dimensions, its arguments in PyTorch's order."""
    name = method.__name__.replace("2", str(spatial))
    known, kind = inspect.signature(method).parameters, inspect.Parameter.POSITIONAL_OR_KEYWORD
    options = [known[option].replace(kind=kind) for option in order.split()]
    signature = inspect.Signature(options)

    def pool(*args: Any, **given: Any) -> Any:
        try:
            bound = signature.bind(*args, **given).arguments
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        _check_space(name, bound["self"], spatial)
        size = bound.get("kernel_size", 2)
        bound["kernel_size"] = per_dimension(name, "kernel_size", size, spatial)
        return method(bound.pop("self"), **bound)

    return _named(pool, name, f"See `Tensor.{method.__name__}`.", *options)


def _check_space(name: str, x: Tensor, spatial: int) -> None:
    if x.ndim not in (spatial + 1, spatial + 2):
        raise ShapeError(
            f"{name} of {x.shape}: expected (batch, channels, *space), or without the batch, with "
            f"{spatial} spatial dimensions"
        )


def _adaptive(spatial: int, kind: str, along: Callable[[Tensor, int, int], Tensor]) -> Pool:
    name = f"adaptive_{kind}_pool{spatial}d"

    def pool(x: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
        _check_space(name, x, spatial)
        several = isinstance(output_size, (tuple, list))
        sizes: list[Any] = list(output_size) if several else [output_size] * spatial  # type: ignore[arg-type]
        given = [size for size in sizes if size is not None]
        if len(sizes) != spatial or any(type(size) is not int or size < 1 for size in given):
            raise ShapeError(
                f"{name}({output_size}): expected {spatial} ints ≥ 1 or None, or one for all"
            )
        for axis, size in zip(range(x.ndim - spatial, x.ndim), sizes, strict=True):
            x = x if size is None else along(x, axis, size)
        return x

    what = {"avg": "Means", "max": "Maxima"}[kind]
    text = f"{what} of as many windows as output_size says; None keeps an extent."
    return _named(pool, name, text)


def _means(x: Tensor, axis: int, size: int) -> Tensor:
    return x._means(axis, x._known_shape()[axis], size)


def _maxima(x: Tensor, axis: int, size: int) -> Tensor:
    windows, inside = x._adaptive_windows(axis, x._known_shape()[axis], size)
    return inside.where(windows, x.dtype.minimum).max(axis + 1)


max_pools = [
    _pool(n, Tensor.max_pool2d,
          "self kernel_size stride padding dilation ceil_mode return_indices")
    for n in DIMENSIONS
]  # fmt: skip
avg_pools = [
    _pool(n, Tensor.avg_pool2d, "self kernel_size stride padding ceil_mode count_include_pad")
    for n in DIMENSIONS
]
adaptive_avg_pools = [_adaptive(n, "avg", _means) for n in DIMENSIONS]
adaptive_max_pools = [_adaptive(n, "max", _maxima) for n in DIMENSIONS]
max_pool1d, max_pool2d, max_pool3d = max_pools
avg_pool1d, avg_pool2d, avg_pool3d = avg_pools
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = adaptive_avg_pools
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = adaptive_max_pools
