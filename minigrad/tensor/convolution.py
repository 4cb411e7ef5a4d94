"""Convolutions of any number of spatial dimensions, and their transposes.

A convolution is Σ over k and c of window(x)[b, y, k, c]·w[k, c, o], seen through movements, so the
recipe of contractions computes it, and its two gradients, without an array of windows in memory.
Channels are the last dimension inside: then each of the three products has vectors along channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from minigrad.dtype import promote
from minigrad.errors import ShapeError
from minigrad.graph.build import Window
from minigrad.graph.node import Shape
from minigrad.graph.symbolic import Integer
from minigrad.graph.windows import overlap_add
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import same_device, whole
from minigrad.tensor.contraction import accumulator
from minigrad.tensor.core import Core

Numbers = int | Sequence[int]
Padding = int | str | Sequence[Any]
Pairs = list[tuple[int, int]]


class Convolution(Composed):
    """Convolutions: x (batch, channels, *space), or (channels, *space) without a batch."""

    __slots__ = ()

    def conv2d(
        self, weight: Core, bias: Core | None = None, *, stride: Numbers = 1,
        padding: Padding = 0, dilation: Numbers = 1, groups: int = 1,
    ) -> Self:  # fmt: skip
        """Convolution (cross-correlation) of (b, c, *space) with a weight (out, c/groups, *kernel).

        The weight's dimensions say how many are spatial: 1, 2, 3 or more. padding, zeros around x:
        a number; one per spatial dimension; PyTorch's flat list (left, right, top, bottom, …); one
        pair per dimension; "valid" (none) or "same" (the result has x's extents; stride 1). Half
        floats are multiplied and added in float32. Result: (b, out, *space′) in the common dtype.

        >>> Tensor.ones(1, 3, 8, 8).conv2d(Tensor.ones(4, 3, 3, 3)).shape
        (1, 4, 6, 6)
        """
        x, batched = self._batched("conv2d", weight)
        spatial = weight.ndim - 2
        out, inner, *kernel = _plain("conv2d", weight.shape)
        channels, *space = _plain("conv2d", x.shape[1:])
        if groups < 1 or out % groups or channels != inner * groups:
            raise ShapeError(
                f"conv2d of {self.shape} with a weight {weight.shape} in {groups} "
                f"groups: expected (…, {inner * max(groups, 1)}, …), the weight's channels times "
                "groups, and a number of outputs that the groups divide"
            )
        steps, gaps, pairs = geometry("conv2d", kernel, stride, padding, dilation)
        sizes = list(zip(space, pairs, kernel, gaps, strict=True))
        if any(n + before + after <= d * (k - 1) for n, (before, after), k, d in sizes):
            raise ShapeError(
                f"conv2d of {self.shape} padded by {pairs}: smaller than the kernel "
                f"{tuple(kernel)} with dilation {tuple(gaps)}"
            )
        dtype = promote(self.dtype, weight.dtype)
        padded = x.cast(accumulator(dtype))._channels_last(groups)._zeros_around(pairs)
        windows = padded._windows(windows_of(1, kernel, steps, gaps))  # (b, *space′, g, c, *kernel)
        places = range(1, 1 + spatial)
        windows = windows.permute(
            0, *places, *(d + spatial + 2 for d in places), spatial + 1, spatial + 2
        )
        factors = self._new(weight.node).cast(windows.dtype)
        factors = factors.reshape(groups, out // groups, inner, *kernel)
        factors = factors.permute(*(d + 2 for d in places), 0, 2, 1)  # (*kernel, g, c, o)
        axes = (*(d + spatial for d in places), 2 * spatial + 2)
        result = (windows.unsqueeze(-1) * factors).sum(axes, dtype=windows.dtype)
        return result._channels_second(bias, dtype, batched)

    def conv_transpose2d(
        self, weight: Core, bias: Core | None = None, *, stride: Numbers = 1,
        padding: Padding = 0, output_padding: Numbers = 0, groups: int = 1,
        dilation: Numbers = 1,
    ) -> Self:  # fmt: skip
        """The transposed convolution of (b, c, *space) with a weight (c, out/groups, *kernel).

        It is the gradient of `conv2d` with the same options. padding: how much is cut off on each
        side, in the forms that conv2d takes ("valid" too); output_padding (one number or one per
        dimension): more at the end of each dimension, less than stride or dilation.

        >>> Tensor.ones(1, 3, 8, 8).conv_transpose2d(Tensor.ones(3, 4, 3, 3)).shape
        (1, 4, 10, 10)
        """
        name = "conv_transpose2d"
        x, batched = self._batched(name, weight)
        spatial = weight.ndim - 2
        inner, outer, *kernel = _plain(name, weight.shape)
        batch, channels, *space = (x.shape[0], *_plain(name, x.shape[1:]))
        if groups < 1 or channels != inner or channels % groups:
            raise ShapeError(
                f"{name} of {self.shape} with a weight {weight.shape} in {groups} "
                f"groups: expected (…, {inner}, …), and channels that the groups divide"
            )
        steps, gaps, pairs = geometry(name, kernel, stride, padding, dilation)
        more = per_dimension(name, "output_padding", output_padding, spatial, least=0)
        check_output_padding(name, more, steps, gaps)
        full = [
            (n - 1) * s + d * (k - 1) + 1 + m
            for n, s, d, k, m in zip(space, steps, gaps, kernel, more, strict=True)
        ]
        if any(before + after >= n for (before, after), n in zip(pairs, full, strict=True)):
            raise ShapeError(f"{name}: padding {pairs} leaves nothing of {tuple(full)}")
        dtype = promote(self.dtype, weight.dtype)
        last = x.cast(accumulator(dtype))._channels_last(groups)  # (b, *space, g, c)
        last = last.reshape(*last.shape[:-1], 1, *(1 for _ in kernel), channels // groups)
        factors = self._new(weight.node).cast(last.dtype)
        factors = factors.reshape(groups, inner // groups, outer, *kernel)
        factors = factors.permute(0, 2, *range(3, 3 + spatial), 1)  # (g, o, *kernel, c)
        parts = (last * factors).sum(-1, dtype=last.dtype)  # (b, *space, g, o, *kernel)
        windows = windows_of(1, kernel, steps, gaps)
        whole = self._new(overlap_add(parts.node, windows, (batch, *full, groups, outer)))
        kept = [(b, n - a) for (b, a), n in zip(pairs, full, strict=True)]
        return whole.shrink([None, *kept, None, None])._channels_second(bias, dtype, batched)

    def _batched(self, name: str, weight: Core) -> tuple[Self, bool]:
        same_device(name, (self.raw, weight.raw))
        if weight.ndim < 3 or self.ndim not in (weight.ndim, weight.ndim - 1):
            raise ShapeError(
                f"{name} of {self.shape} with a weight {weight.shape}: expected a "
                "weight (…, …, *kernel) and (batch, channels, *space) with as many dimensions"
            )
        return (self, True) if self.ndim == weight.ndim else (self.unsqueeze(0), False)

    def _channels_last(self, groups: int) -> Self:
        """(b, groups·c, *space) → (b, *space, groups, c)."""
        batch, channels, *space = self.shape
        assert isinstance(channels, int)
        x = self.reshape(batch, groups, channels // groups, *space)
        return x.permute(0, *range(3, x.ndim), 1, 2)

    def _zeros_around(self, pairs: Pairs) -> Self:
        """Zeros around the dimensions after the first, stored: cheaper to read than conditions."""
        if not any(before or after for before, after in pairs):
            return self
        return self.pad([None, *pairs, None, None]).contiguous()

    def _channels_second(self, bias: Core | None, dtype: Any, batched: bool) -> Self:
        """(b, *space, groups, o) plus bias → (b, groups·o, *space)."""
        out = self.shape[-2:]
        result = self
        if bias is not None:
            channels = _plain("conv2d", out)
            if bias.shape != (channels[0] * channels[1],):
                raise ShapeError(
                    f"conv2d: bias has shape {bias.shape}, "
                    f"expected {(channels[0] * channels[1],)}"
                )
            same_device("conv2d", (self.raw, bias.raw))
            result = result + self._new(bias.node).cast(self.dtype).reshape(out)
            dtype = promote(dtype, bias.dtype)
        result = result.cast(dtype).flatten(-2)
        result = result.permute(0, result.ndim - 1, *range(1, result.ndim - 1))
        return result if batched else result.squeeze(0)


def _plain(name: str, shape: Sequence[Integer] | Shape) -> list[int]:
    found = [extent for extent in shape if isinstance(extent, int)]
    if len(found) != len(shape):
        raise ShapeError(f"{name}: symbolic extents in {shape}; only the batch may be one")
    return found


def per_dimension(name: str, what: str, given: Numbers, spatial: int, least: int = 1) -> list[int]:
    """One number per spatial dimension, from one for all or a sequence."""
    numbers = [whole(n) for n in (given if isinstance(given, Sequence) else (given,))]
    if len(numbers) == 1:
        numbers *= spatial
    if len(numbers) != spatial or any(type(n) is not int or n < least for n in numbers):
        raise ShapeError(
            f"{name}({what}={given!r}): expected an int ≥ {least}, or {spatial} of them"
        )
    return numbers


def geometry(
    name: str, kernel: Sequence[int], stride: Numbers, padding: Padding, dilation: Numbers
) -> tuple[list[int], list[int], Pairs]:
    """Steps of the windows, gaps between their elements, zeros around: of each dimension."""
    steps = per_dimension(name, "stride", stride, len(kernel))
    gaps = per_dimension(name, "dilation", dilation, len(kernel))
    return steps, gaps, padding_pairs(name, padding, kernel, steps, gaps)


def windows_of(
    first: int, kernel: Sequence[int], steps: Sequence[int], gaps: Sequence[int]
) -> list[Window]:
    """The windows over dimensions `first`, `first` + 1 …, for `build.window`."""
    sizes = zip(kernel, steps, gaps, strict=True)
    return [(first + i, k, s, d) for i, (k, s, d) in enumerate(sizes)]


def check_output_padding(
    name: str, more: Sequence[int], steps: Sequence[int], gaps: Sequence[int]
) -> None:
    """ShapeError for more at the end of a dimension than a stride or a dilation leaves open."""
    if any(m >= max(s, d) for m, s, d in zip(more, steps, gaps, strict=True)):
        raise ShapeError(
            f"{name}(output_padding={tuple(more)}): expected less than stride {tuple(steps)} or "
            f"dilation {tuple(gaps)}"
        )


def padding_pairs(
    name: str, padding: Padding, kernel: Sequence[int], steps: Sequence[int], gaps: Sequence[int]
) -> Pairs:
    """Zeros before and after each spatial dimension."""
    spatial = len(kernel)
    if isinstance(padding, str):
        if padding == "valid":
            return [(0, 0)] * spatial
        if padding != "same" or name != "conv2d" or any(step != 1 for step in steps):
            raise ShapeError(
                f"{name}(padding={padding!r}, stride={tuple(steps)}): expected numbers, 'valid', "
                "or for convolutions with stride 1 'same'"
            )
        both = [d * (k - 1) for k, d in zip(kernel, gaps, strict=True)]
        return [(n // 2, n - n // 2) for n in both]
    given: list[Any] = list(padding) if isinstance(padding, Sequence) else [padding] * spatial
    given = [tuple(map(whole, n)) if isinstance(n, Sequence) else whole(n) for n in given]
    if len(given) == 1 and spatial > 1 and isinstance(given[0], int):
        given *= spatial
    if len(given) == 2 * spatial and all(isinstance(n, int) for n in given):
        given = [(given[i], given[i + 1]) for i in range(0, 2 * spatial, 2)][::-1]
    pairs = [tuple(n) if isinstance(n, (tuple, list)) else (n, n) for n in given]
    if len(pairs) != spatial or any(
        len(pair) != 2 or any(type(n) is not int or n < 0 for n in pair) for pair in pairs
    ):
        raise ShapeError(
            f"{name}(padding={padding!r}): expected an int ≥ 0, {spatial} ints or pairs, or a "
            f"flat list of {2 * spatial} from the last dimension backwards"
        )
    return pairs
