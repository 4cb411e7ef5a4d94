"""Resampling of the last dimensions, one dimension at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from minigrad.dtype import dtypes
from minigrad.errors import ShapeError
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import show

_LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}
MODES = ("nearest", "nearest-exact", "area", *_LINEAR)
SHARPNESS = -0.75  # Keys' a, as in PyTorch and OpenCV


class Resize(Composed):
    """Resampling."""

    __slots__ = ()

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
                f"interpolate(mode={mode!r}) of {show(self.shape)}: expected (batch, channels, "
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
                f"interpolate of {show(self.shape)} to {given!r}: expected one {word} > 0, or "
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
            raise ShapeError(f"interpolate of {show(self.shape)}: no elements along {axis}")
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


def _cubic(t: Any) -> list[Any]:
    """Weights of the four neighbours at distances 1 + t, t, 1 − t, 2 − t."""
    a = SHARPNESS

    def near(d: Any) -> Any:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Any) -> Any:
        return a * (d - 1) * (d - 2) * (d - 2)  # small like its factors: a sum would cancel

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]
