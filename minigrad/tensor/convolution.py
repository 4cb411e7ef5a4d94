"""Convolutions of any number of spatial dimensions, and their transposes.

A convolution is Σ over k and c of window(x)[b, y, k, c]·w[k, c, o], seen through movements, so the
recipes for contractions compute it and its two gradients, without an array of windows in memory.
Internally channels are the last dimension: then all three products have vectors along channels.

Images keep their layout in two cases: if each channel has its own small kernel (depthwise groups),
because rearranging would take longer than computing; and if a kernel has few columns for the stride
(`graph/windows.py`). For 3 × 3 kernels, Winograd's method is used if it needs fewer
products (`winograd.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import ceil, floor, gcd, isclose, prod
from typing import Any, NamedTuple, Self

from minigrad.dtype import dtypes, promote
from minigrad.errors import DTypeError, ShapeError, expect, misfit
from minigrad.graph.build import Window
from minigrad.graph.node import device_of
from minigrad.graph.sharding import meshes
from minigrad.graph.symbolic import ceildiv, plain
from minigrad.graph.windows import overlap_add, reads_in_place
from minigrad.settings import flag
from minigrad.tensor import winograd
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import as_python, check_choice, plain_sizes
from minigrad.tensor.contraction import accumulator
from minigrad.tensor.core import Core

Numbers = int | Sequence[int]
Padding = int | str | Sequence[Any]
Pairs = list[tuple[int, int]]


_LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}
MODES = ("nearest", "nearest-exact", "area", *_LINEAR)
# Depthwise convolutions keep channels first, with vectors along a row of the result, if the kernel
# has at most so many elements and the result at least so many columns. Measured: 3 × 3 takes 0.3 …
# 0.45 of the time with channels last, also with 7 columns, 5 × 5 0.5 … 0.85 (Zen 4), 7 × 7 0.2 …
# 0.7 (Emerald Rapids).
MOST_PLACES, LEAST_WIDTH = 49, 7
# From so many channels on, which fill a vector, a group is an image of its own. Smaller groups are
# computed several together, side by side.
VECTOR = 16
# Images of at least so many pixels are multiplied by a 1 × 1 kernel in their own layout, pixels as
# columns. With fewer, the last vectors are not full (8 × 1,024 × 14² to 256 channels would take
# 1.15 times as long).
LEAST_PIXELS = 500
SHARPNESS = -0.75  # Keys's a, as in PyTorch and OpenCV

# At most so many new elements for each old one (or parts of an axis) are written out as separate
# sums; otherwise a program would be as long as an image that is made of a single pixel.
MOST_ZOOM = 8
# Numbers of new elements made of several old ones: vectors cannot be picked from three phases.
WOVEN = (1, 2, 4)


class Convolution(Composed):
    """Convolutions: x (batch, channels, *space), or (channels, *space) without a batch."""

    __slots__ = ()

    def conv2d(
        self, weight: Core, bias: Core | None = None, *, stride: Numbers = 1,
        padding: Padding = 0, dilation: Numbers = 1, groups: int = 1,
    ) -> Self:  # fmt: skip
        """Convolution (cross-correlation) of (b, c, *space) with a weight (out, c/groups, *kernel).

        The weight's dimensions say how many are spatial: 1, 2, 3 or more. padding with zeros: a
        number; one per spatial dimension; PyTorch's flat list (left, right, top, bottom, …); one
        pair per dimension; "valid" (none) or "same" (the result has x's extents; stride 1). Half
        floats are multiplied and added in float32. Result: (b, out, *space′) in the common dtype.
        ShapeError if channels and groups do not fit, or the kernel is larger than padded x.

        Plain 3 × 3 convolutions of float32 and float64 between enough channels (48, say) multiply
        sums of pixels by sums of weights: 16 products instead of 36 (`winograd.py`). Their rounding
        error is two or three times as large, relative to the largest pixel of a tile of 2 × 2
        results; and if one pixel of a tile is infinite or NaN, all its results may be NaN, one
        pixel further than otherwise. The sums of pixels take four times x's memory and are kept for
        the weight's gradient. With MINIGRAD_WINOGRAD=0, and on a mesh, each result is a plain sum.

        >>> Tensor.ones(1, 3, 8, 8).conv2d(Tensor.ones(4, 3, 3, 3)).shape
        (1, 4, 6, 6)
        """
        x, batched = self._batched("conv2d", weight)
        spatial = weight.ndim - 2
        out, inner, *kernel = plain_sizes("conv2d", *weight.shape)
        channels, *space = plain_sizes("conv2d (all but the batch size)", *x.shape[1:])
        if groups < 1 or out % groups or channels != inner * groups:
            are_last = self.shape[-1] == inner * groups
            raise ShapeError(
                f"conv2d: expected (…, {inner * max(groups, 1)}, …), the weight's channels times "
                f"groups, and outputs in a multiple of groups, got shape {self.shape}, a weight "
                f"{weight.shape} and groups={groups}"
                + are_last * f"; write x.movedim(-1, {-spatial - 1}) for channels that are last"
            )
        steps, gaps, pairs = geometry("conv2d", kernel, stride, padding, dilation)
        sizes = list(zip(space, pairs, kernel, gaps, strict=True))
        if any(n + before + after <= d * (k - 1) for n, (before, after), k, d in sizes):
            raise _too_small("conv2d", self, pairs, kernel, gaps)
        dtype = promote(self.dtype, weight.dtype)
        wide = x.cast(accumulator(dtype))
        extents = [(n + sum(pair) - d * (k - 1) - 1) // s + 1
                   for (n, pair, k, d), s in zip(sizes, steps, strict=True)]  # fmt: skip
        plain = groups == max(*steps, *gaps) == 1 and dtype.is_float and wide.dtype is dtype
        # (devices of a mesh would exchange 16 products of a tile, not its four results)
        plain = plain and self.raw.device not in meshes
        if plain and flag("WINOGRAD") and winograd.pays(kernel, extents, x.shape[0], inner, out):
            factors = self._new(weight.node).cast(dtype)
            result = winograd.convolved(wide, factors, pairs, extents).unsqueeze(-2)
            return result._channels_second(bias, dtype, batched)
        own = inner == 1 and out == groups and prod(kernel) <= MOST_PLACES and (
            space[-1] >= LEAST_WIDTH * steps[-1]
        )
        apart = own or (groups > 1 and inner >= VECTOR)
        across = windows_of(0, kernel, steps, gaps)[-1]
        lies = groups == 1 and spatial == 2 and wide.dtype is dtype
        lies = lies and prod(kernel) > 1 and reads_in_place(inner, extents[-1], across)
        if prod(kernel) == 1 < max(steps) and not (own or any(map(any, pairs))):
            # pixels that are not skipped, side by side: rows of a product
            kept = wide._windows(windows_of(2, kernel, steps, gaps))
            wide, steps = kept.reshape(kept.shape[: 2 + spatial]).contiguous(), [1] * spatial
        pixels = plain_sizes("conv2d", *wide.shape[2:])
        alone = prod(kernel) == groups == max(steps) and not any(map(any, pairs))
        if alone and prod(pixels) >= LEAST_PIXELS:  # a product with each image as it lies
            rows = self._new(weight.node).cast(wide.dtype).reshape(out, inner, 1)
            result = (wide.flatten(2).unsqueeze(1) * rows).sum(2, dtype=wide.dtype)
            result = result.reshape(wide.shape[0], out, *pixels).movedim(1, -1)
            return result.unsqueeze(-2)._channels_second(bias, dtype, batched)
        at = 2 + spatial if apart else 1 + spatial  # where the kernel's dimensions come
        padded = wide._channels_last(groups, apart)._zeros_around(at - spatial, pairs, not lies)
        windows = padded._windows(windows_of(at - spatial, kernel, steps, gaps))
        places = range(3 + spatial, 3 + 2 * spatial)
        windows = windows.permute(*range(at), *places, *range(at, 3 + spatial))
        factors = self._new(weight.node).cast(windows.dtype)
        factors = factors.reshape(groups, out // groups, inner, *kernel)
        if apart:  # of (b, g, *space′, *kernel, c, o)
            factors = factors.permute(0, *range(3, 3 + spatial), 2, 1)
            factors = factors.reshape(groups, *(1 for _ in kernel), *factors.shape[1:])
        else:  # of (b, *space′, *kernel, g, c, o)
            factors = factors.permute(*range(3, 3 + spatial), 0, 2, 1)
        axes = (*range(at, at + spatial), 2 * spatial + 2)
        result = (windows.unsqueeze(-1) * factors).sum(axes, dtype=windows.dtype)
        if apart:
            result = result.permute(0, *range(2, 2 + spatial), 1, 2 + spatial)
        return result._channels_second(bias, dtype, batched)

    def conv_transpose2d(
        self, weight: Core, bias: Core | None = None, *, stride: Numbers = 1,
        padding: Padding = 0, output_padding: Numbers = 0, groups: int = 1,
        dilation: Numbers = 1,
    ) -> Self:  # fmt: skip
        """Transposed convolution of (b, c, *space) with a weight (c, out/groups, *kernel).

        It is the gradient of `conv2d` with the same options. padding: how much is cut off on each
        side, in the forms that conv2d takes ("valid" too). output_padding (one number, or one per
        dimension): elements added at the end of each dimension, fewer than stride or dilation
        (else ShapeError).

        >>> Tensor.ones(1, 3, 8, 8).conv_transpose2d(Tensor.ones(3, 4, 3, 3)).shape
        (1, 4, 10, 10)
        """
        name = "conv_transpose2d"
        x, batched = self._batched(name, weight)
        spatial = weight.ndim - 2
        inner, outer, *kernel = plain_sizes(name, *weight.shape)
        channels, *space = plain_sizes(f"{name} (all but the batch size)", *x.shape[1:])
        expect(groups >= 1 and channels == inner and not channels % groups,
               name, f"(…, {inner}, …) and channels in a multiple of groups",
               f"shape {self.shape}, a weight {weight.shape} and groups={groups}")  # fmt: skip
        steps, gaps, pairs = geometry(name, kernel, stride, padding, dilation)
        more = per_dimension(name, "output_padding", output_padding, spatial, least=0)
        check_more(name, more, steps, gaps)
        full = [
            (n - 1) * s + d * (k - 1) + 1 + m
            for n, s, d, k, m in zip(space, steps, gaps, kernel, more, strict=True)
        ]
        if any(before + after >= n for (before, after), n in zip(pairs, full, strict=True)):
            raise ShapeError(f"{name}: padding {pairs} removes all of {tuple(full)}")
        dtype = promote(self.dtype, weight.dtype)
        last = x.cast(accumulator(dtype))._channels_last(groups)  # (b, *space, g, c)
        last = last.reshape(*last.shape[:-1], 1, *(1 for _ in kernel), channels // groups)
        factors = self._new(weight.node).cast(last.dtype)
        factors = factors.reshape(groups, inner // groups, outer, *kernel)
        factors = factors.permute(0, 2, *range(3, 3 + spatial), 1)  # (g, o, *kernel, c)
        parts = (last * factors).sum(-1, dtype=last.dtype)  # (b, *space, g, o, *kernel)
        windows = windows_of(1, kernel, steps, gaps)
        whole = self._new(overlap_add(parts.node, windows, (x.shape[0], *full, groups, outer)))
        kept = [(b, n - a) for (b, a), n in zip(pairs, full, strict=True)]
        return whole.shrink([None, *kept, None, None])._channels_second(bias, dtype, batched)

    def _batched(self, name: str, weight: Core) -> tuple[Self, bool]:
        device_of(name, (self.raw, weight.raw))
        expect(weight.ndim >= 3 and self.ndim in (weight.ndim, weight.ndim - 1), name, "(batch, "
               "channels, *space) and a weight (…, …, *kernel) with equal ndim", self, weight)
        return (self, True) if self.ndim == weight.ndim else (self.unsqueeze(0), False)

    def _channels_last(self, groups: int, apart: bool = False) -> Self:
        """(b, groups·c, *space) → (b, *space, groups, c), or apart: (b, groups, *space, c)."""
        batch, channels, *space = self.shape
        x = self.reshape(batch, groups, channels // groups, *space)
        order = (1, *range(3, x.ndim)) if apart else (*range(3, x.ndim), 1)
        return x.permute(0, *order, 2)

    def _zeros_around(self, first: int, pairs: Pairs, stored: bool) -> Self:
        """Pad with zeros from dimension `first` on; stored: in memory, cheaper than conditions."""
        if not any(map(any, pairs)):
            return self
        others = [None] * (self.ndim - first - len(pairs))
        padded = self.pad([*[None] * first, *pairs, *others])
        return padded.contiguous() if stored else padded

    def _channels_second(self, bias: Core | None, dtype: Any, batched: bool) -> Self:
        """(b, *space, groups, o) plus bias → (b, groups·o, *space)."""
        result = self.flatten(-2)
        if bias is not None:
            out = result.shape[-1:]
            expect(bias.shape == out, "conv2d: bias", f"{out}", bias)
            device_of("conv2d", (self.raw, bias.raw))
            result = result + self._new(bias.node).cast(self.dtype)
            dtype = promote(dtype, bias.dtype)
        result = result.cast(dtype).movedim(-1, 1)
        return result if batched else result.squeeze(0)

    # --- windows ----------------------------------------------------------------------------

    def avg_pool2d(
        self, kernel_size: Numbers = 2, stride: Numbers | None = None, *, padding: Padding = 0,
        dilation: Numbers = 1, ceil_mode: bool = False, count_include_pad: bool = True,
    ) -> Self:  # fmt: skip
        """Means of windows; stride is the kernel's size unless given. Integers give float32.

        padding as for `conv2d`; its zeros count unless count_include_pad is False. ceil_mode: the
        last window may reach beyond the end if it begins inside; elements beyond the end never
        count. ShapeError if a window is larger than padded self, or padding than half of a window.

        >>> Tensor.ones(1, 1, 4, 4).avg_pool2d(2).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
        """
        plan = _Plan("avg_pool2d", self, kernel_size, stride, padding, dilation, ceil_mode)
        x = self._wide()
        total = plan.windows(x, 0).sum(tuple(range(-plan.spatial, 0)))
        mean: Self = total / plan.counted(x, count_include_pad)
        return mean.cast(self._float_dtype())

    def max_pool2d(
        self, kernel_size: Numbers = 2, stride: Numbers | None = None, *, padding: Padding = 0,
        dilation: Numbers = 1, ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        """Maxima of windows; NaN wins, padding never does. Equal ones share the gradient.

        return_indices: also the position (int32) of each maximum (the first of equal ones) in its
        flattened plane. Other options as for `avg_pool2d`.

        >>> Tensor.ones(1, 1, 4, 4).max_pool2d(2).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
        """
        plan = _Plan("max_pool2d", self, kernel_size, stride, padding, dilation, ceil_mode)
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

        mode: nearest, nearest-exact, area (means), linear (bilinear and trilinear mean the same in
        two and three dimensions), bicubic (Keys 1981, a = −0.75). align_corners: the centres of the
        outermost elements keep their places, instead of their outer edges. As in PyTorch. Integers
        are computed in float32, and rounded.

        >>> Tensor([[[1.0, 2.0]]]).interpolate(4).tolist()
        [[[1.0, 1.0, 2.0, 2.0]]]
        """
        spatial = self.ndim - 2
        space = f" with {_LINEAR[mode]} spatial dimensions" if mode in _LINEAR else ""
        expect(spatial >= 1 and _LINEAR.get(mode, spatial) in (spatial, 1), "interpolate",
               f"(batch, channels, *space){space}", self, mode=mode)  # fmt: skip
        check_choice("interpolate", MODES, mode=mode)
        expect(not align_corners or mode in _LINEAR, "interpolate", "a linear mode, or bicubic",
               error=ValueError, align_corners=align_corners, mode=mode)  # fmt: skip
        extents, scales = self._resized(size, scale_factor, spatial)
        x = self if mode.startswith("nearest") else self._wide()
        for i in reversed(range(spatial)):  # the last axis first, while there are few elements
            x = x._along(2 + i, extents[i], scales[i], mode, align_corners)
        if not self.dtype.is_float and x.dtype.is_float:
            x = (x + 0.5).floor()  # halves up, as in PyTorch
        return x.cast(self.dtype)

    def _resized(self, size: Any, scale: Any, spatial: int) -> tuple[list[int], list[float | None]]:
        """New extents, and the distance of their elements in self where a factor was given."""
        if (size is None) == (scale is None):
            raise ValueError("interpolate: expected one of size and scale_factor")
        given = size if scale is None else scale
        numbers = list(given) if isinstance(given, (tuple, list)) else [given] * spatial
        space = [extent for extent in self.shape[2:] if isinstance(extent, int)]
        kind, word = ((int, float), "number") if size is None else (int, "int")
        fits = len(numbers) == len(space) == spatial
        expect(fits and all(isinstance(n, kind) and n > 0 for n in numbers), "interpolate",
               f"one {word} > 0, or {spatial} of them, and known sizes",
               f"{given!r} for shape {self.shape}")  # fmt: skip
        if scale is None:
            return numbers, [None] * spatial
        extents = [int(e * f) for e, f in zip(space, numbers, strict=True)]
        return extents, [1 / f for f in numbers]

    def _along(self, axis: int, count: int, scale: float | None, mode: str, aligned: bool) -> Self:
        """`count` new elements along an axis, `scale` apart in units of self's elements."""
        extent = plain(self.shape[axis])
        if count < 1 or extent < 1:
            raise ShapeError(f"interpolate: dimension {axis} of shape {self.shape} has no elements")
        apart = extent / count if scale is None else scale
        if mode == "area":
            return self._adaptive({axis: count})
        if mode.startswith("nearest"):
            if count % extent == 0 and apart * count == extent:
                return self.repeat_interleave(count // extent, axis)
            centre = 0.5 if mode == "nearest-exact" else 0.0
            place = self._ramp(count, dtypes.float32)
            return self._taken(axis, ((place + centre) * apart).floor().int(), extent)
        x = self.contiguous()  # previous results are computed once, not for each neighbour
        groups = gcd(count, extent)
        zoom, step = count // groups, extent // groups
        regular = isclose(apart * count, extent) and not aligned
        if regular and max(zoom, step) <= MOST_ZOOM and (step == 1 or zoom in WOVEN):
            return x._zoomed(axis, groups, zoom, step, mode)
        every = (extent - 1) / max(count - 1, 1) if aligned else apart
        way = _Way(axis, extent, count, every, 0.0 if aligned else 0.5, mode == "bicubic")
        return x._with_derivative(x._resampled(way), _back(way)) if way.few else x._resampled(way)

    def _resampled(self, way: _Way) -> Self:
        """The new elements, each a weighted sum of old ones."""
        numbers = self._ramp(way.wanted, self.dtype)
        return self._weighed(way.axis, way.extent, way.neighbours(numbers))

    def _resampled_back(self, way: _Way) -> Self:
        """The gradient by the old elements, from that by the new ones: sums of those near each."""
        old = self._ramp(way.extent, self.dtype)
        parts = []
        for number in way.near(old):
            beside: list[Self] = [
                place.clip(0, way.extent - 1).eq(old.int()).where(weight, 0)
                for place, weight in way.neighbours(number)
            ]
            weight = (number < way.wanted).where(sum(beside[1:], beside[0]), 0)
            parts.append((number.int(), weight))
        return self.contiguous()._weighed(way.axis, way.wanted, parts).contiguous()

    def _weighed(self, axis: int, extent: int, parts: Sequence[tuple[Self, Self]]) -> Self:
        """The sum of elements at places along an axis, times weights."""
        shape = tuple(-1 if d == axis else 1 for d in range(self.ndim))
        terms = [self._taken(axis, place, extent) * weight.reshape(shape)
                 for place, weight in parts]  # fmt: skip
        return sum(terms[1:], terms[0])

    def _zoomed(self, axis: int, groups: int, zoom: int, step: int, mode: str) -> Self:
        """`zoom` new elements for every `step` old ones along an axis: weighted sums of neighbours.
        """
        most = 2 if mode == "bicubic" else 1
        ends = [(most, most) if d == axis else None for d in range(self.ndim)]
        wide = self.pad(ends, mode="replicate").contiguous()
        phases: list[Self] = []
        for number in range(zoom):
            place = (number + 0.5) * step / zoom - 0.5
            share = place - floor(place)
            weights = _cubic(share) if mode == "bicubic" else [1 - share, share]
            first = floor(place) + 1  # in `wide`
            reach = step * (groups - 1) + 1
            taps = [wide._part(axis, first + i, first + i + reach)
                    ._windows([(axis, 1, step, 1)]).squeeze(-1) * weight
                    for i, weight in enumerate(weights)]  # fmt: skip
            phases.append(sum(taps[1:], taps[0]))
        return phases[0].stack(phases[1:], dim=axis + 1).flatten(axis, axis + 1)

    def _ramp(self, count: int, dtype: Any) -> Self:
        return self.arange(count, dtype=dtype, device=self.raw.device)

    def _taken(self, axis: int, places: Self, extent: int) -> Self:
        """Elements at places along an axis; places beyond its ends mean the outermost elements."""
        inside = places.clip(0, extent - 1)  # so nothing needs a check
        return self._take_places({axis: inside}, axis, wraps=False)

    def _adaptive(self, counts: Mapping[int, int], maxima: bool = False) -> Self:
        """Means, or maxima, of elements ⌊i·extent/count⌋ … ⌈(i + 1)·extent/count⌉ − 1 for each i.

        counts: of windows, by axis. Means of windows side by side are computed along all of their
        axes at once.
        """
        x, shape = self, self._known_shape()
        even = [axis for axis in sorted(counts) if not maxima and shape[axis] % counts[axis] == 0]
        for axis in reversed(even):
            x = x.unflatten(axis, (counts[axis], shape[axis] // counts[axis]))
        x = x.mean([axis + n for n, axis in enumerate(even, 1)]) if even else x
        for axis in [axis for axis in counts if axis not in even]:
            x = x._adaptive_along(axis, counts[axis], maxima)
        return x

    def _adaptive_along(self, axis: int, count: int, maxima: bool) -> Self:
        """`_adaptive` along an axis."""
        extent = self._known_shape()[axis]

        def along(x: Self) -> Self:
            return x.max(axis + 1) if maxima else x.mean(axis + 1)

        if extent % count == 0:
            return along(self.unflatten(axis, (count, extent // count)))
        if count <= MOST_ZOOM:
            ends = [(n * extent // count, ceildiv((n + 1) * extent, count)) for n in range(count)]
            parts = [along(self._part(axis, *end).unsqueeze(axis)) for end in ends]
            return parts[0].cat(parts[1:], dim=axis)
        number, longest = self._ramp(count, dtypes.int32).unsqueeze(1), (extent - 1) // count + 2
        places = number * extent // count + self._ramp(longest, dtypes.int32)
        inside: Self = places < ((number + 1) * extent + count - 1) // count
        inside = inside.reshape((count, longest, *(1 for _ in self.shape[axis + 1 :])))
        x = (self if maxima else self._wide())._taken(axis, places, extent)
        if maxima:
            return inside.where(x, self.dtype.minimum).max(axis + 1)
        total: Self = inside.where(x, 0).sum(axis + 1)
        return (total / inside.sum(1, dtype=dtypes.int32)).cast(self._float_dtype())


class _Way(NamedTuple):
    """How `wanted` new elements are made of `extent` old ones along an axis.

    Their centres, `before` after their edges, are `every` apart in units of old elements.
    """

    axis: int
    extent: int
    wanted: int
    every: float
    before: float
    cubic: bool

    @property
    def few(self) -> bool:
        """Whether few new elements are made of each old one, so that they can be summed."""
        return self.every > 0 and self._most <= 2 * MOST_ZOOM

    @property
    def _most(self) -> int:
        return min(ceil(2 * (1 + self.cubic) / self.every), self.wanted)

    def neighbours(self, number: Any) -> list[tuple[Any, Any]]:
        """The places of the old elements that new ones with these numbers are made of; weights."""
        place = (number + self.before) * self.every - self.before
        place = place if self.cubic else place.maximum(0)
        low = place.floor()
        share = place - low
        weights = _cubic(share) if self.cubic else [1 - share, share]
        return [(low.int() + n - self.cubic, weight) for n, weight in enumerate(weights)]

    def near(self, old: Any) -> list[Any]:
        """Numbers of the new elements that may be made of old ones: those less than 1 (2) away."""
        edge = old + (self.before - 1 - self.cubic)
        first = ((edge / self.every - self.before).floor() + 1).maximum(0)
        return [first + n for n in range(self._most)]


@cache
def _back(way: _Way) -> Any:
    return lambda g, _, x: [g._resampled_back(way)]


def per_dimension(name: str, what: str, given: Numbers, spatial: int, least: int = 1) -> list[int]:
    """One number per spatial dimension, from a single number or a sequence."""
    numbers = [as_python(n) for n in (given if isinstance(given, Sequence) else (given,))]
    if len(numbers) == 1:
        numbers *= spatial
    if len(numbers) != spatial or any(type(n) is not int or n < least for n in numbers):
        raise misfit(f"{name}({what}={given!r})", f"an int ≥ {least}, or {spatial} of them")
    return numbers


def geometry(
    name: str, kernel: Sequence[int], stride: Numbers, padding: Padding, dilation: Numbers
) -> tuple[list[int], list[int], Pairs]:
    """Strides, dilations, and pairs of zeros around, for each spatial dimension."""
    steps = per_dimension(name, "stride", stride, len(kernel))
    gaps = per_dimension(name, "dilation", dilation, len(kernel))
    return steps, gaps, padding_pairs(name, padding, kernel, steps, gaps)


def _too_small(
    name: str, x: Core, pairs: Pairs, kernel: Sequence[int], gaps: Sequence[int]
) -> ShapeError:
    what = f"smaller than the kernel {tuple(kernel)} with dilation {tuple(gaps)}"
    return ShapeError(
        f"{name}: shape {x.shape} padded by {pairs} is {what}; add padding, or use a smaller kernel"
    )


def windows_of(
    first: int, kernel: Sequence[int], steps: Sequence[int], gaps: Sequence[int]
) -> list[Window]:
    """The windows over dimensions `first`, `first` + 1 …, for `build.window`."""
    sizes = zip(kernel, steps, gaps, strict=True)
    return [(first + i, k, s, d) for i, (k, s, d) in enumerate(sizes)]


def check_more(name: str, more: Sequence[int], steps: Sequence[int], gaps: Sequence[int]) -> None:
    """ShapeError for an output_padding that is neither less than the stride nor than the dilation.
    """
    expect(all(m < max(s, d) for m, s, d in zip(more, steps, gaps, strict=True)),
           f"{name}(output_padding={tuple(more)})",
           f"less than the stride {tuple(steps)} or the dilation {tuple(gaps)}")  # fmt: skip


def padding_pairs(
    name: str, padding: Padding, kernel: Sequence[int], steps: Sequence[int], gaps: Sequence[int]
) -> Pairs:
    """Numbers of zeros before and after each spatial dimension."""
    spatial = len(kernel)
    if isinstance(padding, str):
        if padding == "valid":
            return [(0, 0)] * spatial
        expect(padding == "same" and name == "conv2d" and all(step == 1 for step in steps),
               f"{name}(padding={padding!r}, stride={tuple(steps)})",
               "numbers, 'valid', or 'same' (for convolutions with stride 1)")  # fmt: skip
        both = [d * (k - 1) for k, d in zip(kernel, gaps, strict=True)]
        return [(n // 2, n - n // 2) for n in both]
    given: list[Any] = list(padding) if isinstance(padding, Sequence) else [padding] * spatial
    given = [tuple(map(as_python, n)) if isinstance(n, Sequence) else as_python(n) for n in given]
    if len(given) == 1 and isinstance(given[0], int):
        given *= spatial
    if len(given) == 2 * spatial:
        given = [(given[i], given[i + 1]) for i in range(0, 2 * spatial, 2)][::-1]
    pairs = [n if isinstance(n, tuple) else (n, n) for n in given]
    fits = (len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair) for pair in pairs)
    expect(len(pairs) == spatial and all(fits), f"{name}(padding={padding!r})",
           f"an int ≥ 0, {spatial} ints or pairs, or a flat list of {2 * spatial} from the last "
           "dimension backwards")  # fmt: skip
    return pairs


class _Plan:
    """The windows of a pooling. beyond: padding, and what ceil_mode adds at the end."""

    def __init__(
        self, name: str, x: Convolution, kernel_size: Numbers, stride: Numbers | None,
        padding: Padding, dilation: Numbers, ceil_mode: bool,
    ) -> None:  # fmt: skip
        expect(not x.dtype.is_bool, name, "numbers; use x.float()", "bool", error=DTypeError)
        self.spatial = len(kernel_size) if isinstance(kernel_size, Sequence) else 2
        expect(1 <= self.spatial <= x.ndim, name, "at least as many dimensions as the kernel",
               f"shape {x.shape} and kernel_size {kernel_size}")  # fmt: skip
        self.kernel = per_dimension(name, "kernel_size", kernel_size, self.spatial)
        stride = self.kernel if stride is None else stride
        self.steps, self.gaps, self.pairs = geometry(name, self.kernel, stride, padding, dilation)
        self.first = x.ndim - self.spatial
        self.space = plain_sizes(name, *x.shape[self.first :])
        self.beyond: Pairs = []
        for n, (before, after), k, s, d in zip(
            self.space, self.pairs, self.kernel, self.steps, self.gaps, strict=True
        ):
            reach = d * (k - 1) + 1
            expect(2 * max(before, after) <= reach, f"{name}(padding={self.pairs})",
                   f"at most half the kernel size {tuple(self.kernel)}")  # fmt: skip
            free = n + before + after - reach
            count = (ceildiv(free, s) if ceil_mode else free // s) + 1
            if (count - 1) * s >= n + before:
                count -= 1
            if count < 1:
                raise _too_small(name, x, self.pairs, self.kernel, self.gaps)
            self.beyond.append((before, max(after, (count - 1) * s + reach - n - before)))

    def windows(self, x: Any, value: Any) -> Any:
        """Windows of x, padded with `value`; the positions in a window are the last dimensions."""
        padded = x.pad([None] * self.first + list(self.beyond), value=value)
        return padded._windows(windows_of(self.first, self.kernel, self.steps, self.gaps))

    def counted(self, x: Any, count_include_pad: bool) -> Any:
        """How many elements count in each window."""
        known = self.pairs if count_include_pad else [(0, 0)] * self.spatial
        sizes = [n + before + after for n, (before, after) in zip(self.space, known, strict=True)]
        rest = [(b - c, a - d) for (b, a), (c, d) in zip(self.beyond, known, strict=True)]
        ones = x.ones(sizes, dtype=x.dtype, device=x.raw.device).pad(rest)
        windows = ones._windows(windows_of(0, self.kernel, self.steps, self.gaps))
        return windows.sum(tuple(range(-self.spatial, 0)))

    def places(self, x: Any, windows: Any, best: Any) -> Any:
        """The position, in its plane, of the first maximum of each window."""
        size = prod(self.space)
        plane = x.arange(size, device=x.raw.device).reshape((1,) * self.first + tuple(self.space))
        numbers = self.windows(plane, -1)
        one = best.reshape(*best.shape, *(1 for _ in self.kernel))
        found = (windows.eq(one) | windows.isnan()) & (numbers >= 0)
        return found.where(numbers, size).min(tuple(range(-self.spatial, 0)))


def _cubic(t: Any) -> list[Any]:
    """Weights of the four neighbours at distances 1 + t, t, 1 − t, 2 − t."""
    a = SHARPNESS

    def near(d: Any) -> Any:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Any) -> Any:
        return a * (d - 1) * (d - 2) * (d - 2)  # as accurate as its factors: a sum would cancel

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]
