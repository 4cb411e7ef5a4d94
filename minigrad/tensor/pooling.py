"""Pooling: means and maxima of windows, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Self

from minigrad.dtype import dtypes
from minigrad.errors import DTypeError, ShapeError
from minigrad.graph.symbolic import ceildiv
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import show
from minigrad.tensor.convolution import (
    Numbers,
    Padding,
    Pairs,
    geometry,
    per_dimension,
    windows_of,
)
from minigrad.tensor.core import Core


class Pooling(Composed):
    """Windows over the last dimensions: as many as kernel_size has numbers (two, if it is one)."""

    __slots__ = ()

    def avg_pool2d(
        self, kernel_size: Numbers = 2, stride: Numbers | None = None, *, padding: Padding = 0,
        dilation: Numbers = 1, ceil_mode: bool = False, count_include_pad: bool = True,
    ) -> Self:  # fmt: skip
        """Means of windows; stride is the kernel's size unless given. Integers give float32.

        padding as for `conv2d`, its zeros count unless count_include_pad is False. ceil_mode: a
        last window that begins inside may reach beyond the end; what it has there never counts.

        >>> Tensor.ones(1, 1, 4, 4).avg_pool2d(2).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
        """
        plan = _Plan("avg_pool2d", self, kernel_size, stride, padding, dilation, ceil_mode)
        x = self._wide()
        total: Self = plan.windows(x, 0).sum(tuple(range(-plan.spatial, 0)))
        whole = count_include_pad and plan.beyond == plan.pairs
        if whole or all(pair == (0, 0) for pair in plan.beyond):
            return (total / prod(plan.kernel)).cast(self._float_dtype())
        for axis in range(plan.spatial):
            counted = plan.counted(x, axis, count_include_pad)
            total = total / counted.reshape(-1, *(1 for _ in range(plan.spatial - 1 - axis)))
        return total.cast(self._float_dtype())

    def max_pool2d(
        self, kernel_size: Numbers = 2, stride: Numbers | None = None, *, padding: Padding = 0,
        dilation: Numbers = 1, ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        """Maxima of windows; NaN wins, padding never. Equal ones share the gradient.

        return_indices: also where each maximum, the first of equal ones, is in its flattened plane
        (int32). Other options as for `avg_pool2d`.

        >>> Tensor.ones(1, 1, 4, 4).max_pool2d(2).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
        """
        plan = _Plan("max_pool2d", self, kernel_size, stride, padding, dilation, ceil_mode)
        for (before, after), k, d in zip(plan.pairs, plan.kernel, plan.gaps, strict=True):
            if 2 * max(before, after) > d * (k - 1) + 1:
                raise ShapeError(
                    f"max_pool2d(padding={plan.pairs}): expected at most half the kernel "
                    f"{show(plan.kernel)}"
                )
        windows = plan.windows(self, self.dtype.minimum)
        best = windows.max(tuple(range(-plan.spatial, 0)))
        return (best, plan.places(self, windows, best)) if return_indices else best


class _Plan:
    """The windows of a pooling. beyond: padding, and what ceil_mode adds at the end."""

    def __init__(
        self, name: str, x: Pooling, kernel_size: Numbers, stride: Numbers | None,
        padding: Padding, dilation: Numbers, ceil_mode: bool,
    ) -> None:  # fmt: skip
        if x.dtype.is_bool:
            raise DTypeError(f"{name} of a bool tensor; expected numbers, e.g. x.float()")
        self.spatial = len(kernel_size) if isinstance(kernel_size, Sequence) else 2
        if not 1 <= self.spatial <= x.ndim:
            raise ShapeError(
                f"{name} of {show(x.shape)} with kernel_size {kernel_size}: expected as many "
                "dimensions as the kernel has, or more"
            )
        self.kernel = per_dimension(name, "kernel_size", kernel_size, self.spatial)
        stride = self.kernel if stride is None else stride
        self.steps, self.gaps, self.pairs = geometry(name, self.kernel, stride, padding, dilation)
        self.space = _extents(name, x, self.spatial)
        self.first = x.ndim - self.spatial
        self.beyond: Pairs = []
        self.counts: list[int] = []
        for n, (before, after), k, s, d in zip(
            self.space, self.pairs, self.kernel, self.steps, self.gaps, strict=True
        ):
            reach = d * (k - 1) + 1
            free = n + before + after - reach
            count = (ceildiv(free, s) if ceil_mode else free // s) + 1
            if ceil_mode and (count - 1) * s >= n + before:
                count -= 1
            if free < 0 and not (ceil_mode and count > 0):
                raise ShapeError(
                    f"{name} of {show(x.shape)} padded by {self.pairs}: smaller than the kernel "
                    f"{show(self.kernel)} with dilation {show(self.gaps)}"
                )
            self.counts.append(count)
            self.beyond.append((before, max(after, (count - 1) * s + reach - n - before)))

    def windows(self, x: Any, value: Any) -> Any:
        """Windows of x, padded with `value`; the places inside them are the last dimensions."""
        padded = x.pad([None] * self.first + list(self.beyond), value=value)
        return padded._windows(windows_of(self.first, self.kernel, self.steps, self.gaps))

    def counted(self, x: Any, axis: int, count_include_pad: bool) -> Any:
        """How many elements count in each window along one dimension."""
        (before, after), n = self.pairs[axis], self.space[axis]
        inside = n + before + after if count_include_pad else n
        end = self.beyond[axis][1] - (after if count_include_pad else 0)
        ones = x.ones(inside, dtype=x.dtype, device=x.raw.device)
        padded = ones.pad([(0 if count_include_pad else before, end)])
        window = (0, self.kernel[axis], self.steps[axis], self.gaps[axis])
        return padded._windows([window]).sum(-1)

    def places(self, x: Any, windows: Any, best: Any) -> Any:
        """Where in its plane the first of each window's maxima is."""
        inside = self.windows(x.ones_like(dtype=dtypes.bool), 0)
        one = best.reshape(*best.shape, *(1 for _ in self.kernel))
        found = (windows.eq(one) | windows.isnan()) & inside
        whole = prod(self.kernel)
        flat = found.reshape(*best.shape, whole)
        ramp = x.arange(whole, device=x.raw.device)
        rest = whole - flat.where(whole - ramp, 0).max(-1)
        place, size = 0, 1
        for i in reversed(range(self.spatial)):
            windows = x.arange(self.counts[i], device=x.raw.device)
            start = windows * self.steps[i] - self.beyond[i][0]
            start = start.reshape(-1, *(1 for _ in range(self.spatial - 1 - i)))
            place = (start + rest % self.kernel[i] * self.gaps[i]) * size + place
            rest = rest // self.kernel[i]
            size *= self.space[i]
        return place


def _extents(name: str, x: Core, spatial: int) -> list[int]:
    found = [extent for extent in x.shape[x.ndim - spatial :] if isinstance(extent, int)]
    if len(found) != spatial:
        raise ShapeError(f"{name} along symbolic dimensions of {show(x.shape)}")
    return found
