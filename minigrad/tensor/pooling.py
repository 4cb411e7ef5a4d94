"""Pooling: means and maxima of windows, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Self

from minigrad.dtype import dtypes
from minigrad.errors import DTypeError, ShapeError
from minigrad.graph.symbolic import ceildiv
from minigrad.tensor.basic import Composed
from minigrad.tensor.convolution import (
    Numbers,
    Padding,
    Pairs,
    geometry,
    per_dimension,
    windows_of,
)
from minigrad.tensor.core import Core

_LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}
MODES = ("nearest", "nearest-exact", "area", *_LINEAR)
SHARPNESS = -0.75  # Keys' a, as in PyTorch and OpenCV


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
                    f"{tuple(plan.kernel)}"
                )
        windows = plan.windows(self, self.dtype.minimum)
        best = windows.max(tuple(range(-plan.spatial, 0)))
        return (best, plan.places(self, windows, best)) if return_indices else best

    # --- other sizes ------------------------------------------------------------------------

    def interpolate(
        self, size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None, mode: str = "nearest",
        align_corners: bool = False,
    ) -> Self:  # fmt: skip
        """(batch, channels, *space) resampled to `size`, or to space·scale_factor rounded down.

        mode: nearest, nearest-exact, area (means), linear (bilinear and trilinear are the same for
        two and three dimensions), bicubic (Keys 1981, a = −0.75). align_corners: the outermost
        elements' centres stay where they are, rather than the outer edges. As in PyTorch. Integers
        are computed in float32, and rounded.

        >>> Tensor([[[1.0, 2.0]]]).interpolate(4).tolist()
        [[[1.0, 1.0, 2.0, 2.0]]]
        """
        spatial = self.ndim - 2
        if spatial < 1 or _LINEAR.get(mode, spatial) not in (spatial, 1):
            raise ShapeError(
                f"interpolate(mode={mode!r}) of {self.shape}: expected (batch, channels, "
                f"*space){f' with {_LINEAR[mode]} spatial dimensions' if mode in _LINEAR else ''}"
            )
        if mode not in MODES:
            raise ValueError(f"interpolate(mode={mode!r}): expected one of {', '.join(MODES)}")
        if align_corners and mode not in _LINEAR:
            raise ValueError(
                f"interpolate(align_corners=True, mode={mode!r}): only linear modes and bicubic "
                "have it"
            )
        extents, scales = self._resized(size, scale_factor, spatial)
        x = self if mode.startswith("nearest") else self._wide()
        for i, (extent, scale) in enumerate(zip(extents, scales, strict=True)):
            x = x._along(2 + i, extent, scale, mode, align_corners)
        if not self.dtype.is_float and x is not self:
            x = x if x.dtype is self.dtype else (x + 0.5).floor()  # halves upwards, as PyTorch's
        return x.cast(self.dtype)

    def _resized(
        self, size: Any, scale_factor: Any, spatial: int
    ) -> tuple[list[int], list[float | None]]:
        """New extents, and how far apart in self their elements are, where that was given."""
        if (size is None) == (scale_factor is None):
            raise ValueError("interpolate: expected either size or scale_factor")
        given = size if scale_factor is None else scale_factor
        numbers = list(given) if isinstance(given, (tuple, list)) else [given] * spatial
        space = [extent for extent in self.shape[2:] if isinstance(extent, int)]
        kind, word = ((int, float), "number") if size is None else (int, "int")
        if len(numbers) != spatial or len(space) != spatial or any(
            not isinstance(n, kind) or n <= 0 for n in numbers
        ):
            raise ShapeError(
                f"interpolate of {self.shape} to {given!r}: expected one {word} > 0, or "
                f"{spatial} of them, and plain extents"
            )
        if scale_factor is None:
            return numbers, [None] * spatial
        extents = [int(e * f) for e, f in zip(space, numbers, strict=True)]
        return extents, [1 / f for f in numbers]

    def _along(
        self, axis: int, count: int, scale: float | None, mode: str, align_corners: bool
    ) -> Self:
        """`count` new elements along an axis, whose neighbours are `scale` apart in self."""
        extent = self.shape[axis]
        assert isinstance(extent, int)
        if count < 1 or extent < 1:
            raise ShapeError(f"interpolate of {self.shape}: no elements along {axis}")
        apart = extent / count if scale is None else scale
        if mode == "area":
            return self._means(axis, extent, count)
        if mode.startswith("nearest"):
            if count % extent == 0 and apart * count == extent:
                return self.repeat_interleave(count // extent, axis)
            centre = 0.5 if mode == "nearest-exact" else 0.0
            place = self._ramp(count, dtypes.float32)
            return self._taken(axis, ((place + centre) * apart).floor().int(), extent)
        place = self._ramp(count, self.dtype)
        if align_corners:
            place = place * ((extent - 1) / (count - 1) if count > 1 else 0.0)
        else:
            place = (place + 0.5) * apart - 0.5
        if mode != "bicubic":
            place = place.maximum(0)
        low = place.floor()
        share = place - low
        weights = [1 - share, share] if mode != "bicubic" else _cubic(share)
        first = low.int() - (1 if mode == "bicubic" else 0)
        shape = tuple(-1 if d == axis else 1 for d in range(self.ndim))
        result: Self | None = None
        for i, weight in enumerate(weights):
            part = self._taken(axis, first + i, extent) * weight.reshape(shape)
            result = part if result is None else result + part
        assert result is not None
        return result

    def _ramp(self, count: int, dtype: Any) -> Self:
        return self.arange(count, dtype=dtype, device=self.raw.device)

    def _taken(self, axis: int, places: Self, extent: int) -> Self:
        """Elements along an axis; places beyond its ends mean the outermost ones."""
        inside = places.clip(0, extent - 1)  # so there is nothing to check
        return self._take_places({axis: inside}, axis, wraps=False)

    def _means(self, axis: int, extent: int, count: int) -> Self:
        """Means of `_adaptive_windows`."""
        values, inside = self._wide()._adaptive_windows(axis, extent, count)
        total: Self = inside.where(values, 0).sum(axis + 1)
        return (total / inside.sum(1, dtype=dtypes.int32)).cast(self._float_dtype())

    def _adaptive_windows(self, axis: int, extent: int, count: int) -> tuple[Self, Self]:
        """Elements ⌊i·extent/count⌋ … ⌈(i + 1)·extent/count⌉ − 1 in dimension axis + 1.

        All windows are as long as the longest; also which of their elements belong to them.
        """
        number = self._ramp(count, dtypes.int32)
        start = number * extent // count
        end = ((number + 1) * extent + count - 1) // count
        longest = (extent - 1) // count + 2
        places = start.unsqueeze(1) + self._ramp(longest, dtypes.int32)
        shape = (count, longest, *(1 for _ in range(self.ndim - axis - 1)))
        inside: Self = (places < end.unsqueeze(1)).reshape(shape)
        return self._taken(axis, places, extent), inside


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
                f"{name} of {x.shape} with kernel_size {kernel_size}: expected as many "
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
                    f"{name} of {x.shape} padded by {self.pairs}: smaller than the kernel "
                    f"{tuple(self.kernel)} with dilation {tuple(self.gaps)}"
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
        raise ShapeError(f"{name} along symbolic dimensions of {x.shape}")
    return found


def _cubic(t: Any) -> list[Any]:
    """Weights of the four neighbours at distances 1 + t, t, 1 − t, 2 − t."""
    a = SHARPNESS

    def near(d: Any) -> Any:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Any) -> Any:
        return a * (d - 1) * (d - 2) * (d - 2)  # small like its factors: a sum would cancel

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]
