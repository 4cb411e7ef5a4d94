"""Methods that move elements without computing. Results are views, except those of `pad`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from minigrad.dtype import check_holds
from minigrad.errors import ShapeError, expect, misfit
from minigrad.graph import build, windows
from minigrad.graph.axes import within
from minigrad.graph.node import Shape
from minigrad.graph.symbolic import Affine, Integer, high, low
from minigrad.hints import hint
from minigrad.tensor.broadcasting import (
    Axes,
    as_python,
    axes_of,
    axis_of,
    broadcast_to,
    check_ints,
    plain_sizes,
    product,
)
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Methods

Pair = tuple[Integer, Integer]


def sequence(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a method that can be called as f(1, 2) and f((1, 2))."""
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    return tuple(map(as_python, given))


def tensors_in(name: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The tensors of a call f(a, b) or f([a, b]); TypeError for anything else."""
    found = sequence(given)
    for each in found or (given,):
        if not isinstance(each, Core):
            raise TypeError(f"{name}: expected tensors, got {type(each).__name__}")
    return found


def _completed(have: Shape, shape: tuple[Any, ...]) -> Shape:
    """`shape` with −1 and None replaced, for the elements of a tensor of shape `have`."""
    if None in shape[len(have) :]:
        raise ShapeError(f"cannot reshape {have} to {shape}: None keeps an existing dimension")
    if not all(e is None or (isinstance(e, (int, Affine)) and e is not True and e is not False)
               for e in shape):  # fmt: skip
        text = f"; {hint('x.view(dtypes.int32)')}" if len(shape) == 1 else ""
        raise TypeError(f"reshape to {shape}: expected ints, None or one −1{text}")
    kept = [have[i] if e is None else e for i, e in enumerate(shape)]
    if kept.count(-1) > 1 or any(isinstance(e, int) and e < -1 for e in kept):
        raise ShapeError(f"reshape to {tuple(kept)}: expected sizes ≥ 0 and at most one −1")
    if -1 not in kept:
        return tuple(kept)
    place = kept.index(-1)
    rest, mine = list(have), [e for i, e in enumerate(kept) if i != place]
    for extent in [e for e in mine if isinstance(e, Affine)]:
        if extent in rest:
            rest.remove(extent)
            mine.remove(extent)
    count, known = product(rest), product(mine)
    if not isinstance(known, int) or known == 0 or (count // known * known != count):
        raise ShapeError(f"cannot reshape {have} to {tuple(kept)}: no size fits at the −1")
    kept[place] = count // known
    return tuple(kept)


class Movement(Methods):
    """Reshaping, reordering, cutting, padding."""

    __slots__ = ()

    # --- shapes -----------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Self:
        """The same elements, in row-major order, in another shape; one extent may be −1: inferred.

        None keeps the extent of that dimension.

        >>> Tensor([1, 2, 3, 4]).reshape(2, -1).tolist()
        [[1, 2], [3, 4]]
        """
        wanted = _completed(self.shape, sequence(shape))
        return self._view(lambda node: build.reshape(node, wanted))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Self:
        """Dimensions start_dim … end_dim merged into one.

        >>> Tensor([[1, 2], [3, 4]]).flatten().tolist()
        [1, 2, 3, 4]
        """
        start = axis_of("flatten", start_dim, self.ndim)
        end = axis_of("flatten", end_dim, self.ndim)
        if start > end:
            raise misfit(f"flatten({start_dim}, {end_dim})", "start_dim ≤ end_dim")
        merged = product(self.shape[start : end + 1])
        return self.reshape(self.shape[:start] + (merged,) + self.shape[end + 1 :])

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Self:
        """One dimension split into several; one of `sizes` may be −1.

        >>> Tensor([1, 2, 3, 4]).unflatten(0, (2, 2)).tolist()
        [[1, 2], [3, 4]]
        """
        axis = axis_of("unflatten", dim, self.ndim, 0)
        parts = _completed((self.shape[axis],), sequence((sizes,)))
        if product(parts) != self.shape[axis]:  # a reshape of no elements would not fail
            raise misfit(f"unflatten({dim}, {sizes})", f"a product of {self.shape[axis]}")
        return self.reshape(self.shape[:axis] + parts + self.shape[axis + 1 :])

    def squeeze(self, dim: Axes = None) -> Self:
        """Without dimensions of extent 1; with `dim`, only that or those, if they have extent 1.

        >>> Tensor([[1, 2]]).squeeze().tolist()
        [1, 2]
        """
        axes = axes_of("squeeze", dim, self.ndim)
        return self.reshape(tuple(e for d, e in enumerate(self.shape) if d not in axes or e != 1))

    def unsqueeze(self, dim: int) -> Self:
        """With a new dimension of extent 1 at `dim`.

        >>> Tensor([1, 2]).unsqueeze(1).tolist()
        [[1], [2]]
        """
        axis = axis_of("unsqueeze", dim, self.ndim + 1)
        return self.reshape(self.shape[:axis] + (1,) + self.shape[axis:])

    def expand(self, *shape: Any) -> Self:
        """Dimensions of extent 1 repeated, new ones added at the left; −1 or None keeps an extent.

        >>> Tensor([1, 2]).expand(2, 2).tolist()
        [[1, 2], [1, 2]]
        """
        wanted = sequence(shape)
        missing = len(wanted) - self.ndim
        kept = tuple(
            self.shape[i - missing] if i >= missing and (e is None or e == -1) else e
            for i, e in enumerate(wanted)
        )
        check_ints("expand", **{f"shape[{i}]": extent for i, extent in enumerate(kept)})
        if any(low(extent) < 0 for extent in kept):
            raise misfit(f"expand{kept}", "sizes ≥ 0, or −1 to keep one")
        return self._broadcast_to(kept)

    def _broadcast_to(self, shape: Shape) -> Self:
        return self._view(lambda node: broadcast_to(node, shape))

    # --- order ------------------------------------------------------------------------------------

    def permute(self, *order: Any) -> Self:
        """Dimension i of the result is dimension order[i] of self.

        >>> Tensor.zeros(2, 3, 4).permute(2, 0, 1).shape
        (4, 2, 3)
        """
        given = sequence(order)
        axes = axes_of("permute", given, self.ndim)
        if len(axes) != self.ndim:
            what = f"permute({', '.join(map(str, given))})"
            backwards = ", ".join(map(str, reversed(range(self.ndim))))
            raise misfit(what, f"each of {self.ndim} dimensions once; as permute({backwards})")
        return self._view(lambda node: build.permute(node, axes))

    def transpose(self, dim0: int = 1, dim1: int | None = None) -> Self:
        """Two dimensions exchanged.

        >>> Tensor([[1, 2]]).transpose().tolist()
        [[1], [2]]
        """
        if dim1 is None and dim0 == 0:
            raise TypeError("transpose(0): expected two dimensions; write x.transpose(0, 1)")
        first, second = (axis_of("transpose", axis, self.ndim) for axis in (dim0, dim1 or 0))
        order = list(range(self.ndim))
        if order:
            order[first], order[second] = second, first
        return self._view(lambda node: build.permute(node, order))

    def movedim(self, source: int | Sequence[int], destination: int | Sequence[int]) -> Self:
        """Dimensions moved to other places; the others keep their order.

        >>> Tensor.zeros(2, 3, 4).movedim(0, -1).shape
        (3, 4, 2)
        """
        given, wanted = (axes_of("movedim", axes, self.ndim) for axes in (source, destination))
        if len(given) != len(wanted):
            raise ShapeError(f"movedim({source}, {destination}): expected equally many of both")
        rest = iter(axis for axis in range(self.ndim) if axis not in given)
        places = dict(zip(wanted, given, strict=True))
        return self.permute(*(places[d] if d in places else next(rest) for d in range(self.ndim)))

    @property
    def T(self) -> Self:
        """Dimensions in reverse order.

        >>> Tensor([[1, 2]]).T.tolist()
        [[1], [2]]
        """
        return self.permute(*reversed(range(self.ndim)))

    @property
    def mT(self) -> Self:
        """The last two dimensions exchanged.

        >>> Tensor.zeros(2, 3, 4).mT.shape
        (2, 4, 3)
        """
        return self.transpose(-1, -2)

    def flip(self, *axes: Any) -> Self:
        """The elements in reverse order along axes.

        >>> Tensor([1, 2]).flip(0).tolist()
        [2, 1]
        """
        expect(axes, "flip()", "at least one axis, as in x.flip(0)", error=TypeError)
        found = axes_of("flip", sequence(axes), self.ndim)
        return self._view(lambda node: build.flip(node, found))

    # --- cutting and padding ----------------------------------------------------------------------

    def shrink(self, ranges: Sequence[Pair | None]) -> Self:
        """Elements start … stop − 1 of each dimension; None keeps all.

        >>> Tensor([1, 2, 3]).shrink([(1, 3)]).tolist()
        [2, 3]
        """
        several = isinstance(ranges, (tuple, list))
        if not several or len(ranges) != self.ndim or not all(map(_is_range, ranges)):
            raise self._too_few("shrink", ranges if several else [ranges])
        both = zip(ranges, self.shape, strict=True)
        pairs = [(0, extent) if pair is None else pair for pair, extent in both]
        check_ints("shrink", **{f"ranges[{d}]": n for d, pair in enumerate(pairs) for n in pair})
        return self._view(lambda node: build.shrink(node, pairs))

    def _too_few(self, name: str, given: Sequence[Any]) -> Exception:
        one = "(start, stop)" if name == "shrink" else "one"
        said = f"{name}({', '.join(map(str, given))})"
        return misfit(said, f"{one} or None for each dimension of {self.shape}")

    def pad(
        self, padding: Sequence[Any], mode: str = "constant", value: int | float | bool = 0
    ) -> Self:
        """self with elements added before and after each dimension; negative amounts cut.

        padding: PyTorch's flat list from the last dimension backwards (left, right, top, bottom, …)
        or one pair or None per dimension. mode: constant, reflect, replicate or circular.

        >>> Tensor([1, 2]).pad((1, 2), value=9).tolist()
        [9, 1, 2, 9, 9]
        """
        pairs = self._pad_pairs(padding)
        if mode != "constant":
            return self._pad_copying(pairs, mode)
        result = self.shrink([
            (max(-low(b), 0), e if low(a) >= 0 else e + a)
            for (b, a), e in zip(pairs, self.shape, strict=True)
        ])
        amounts = [(b if low(b) > 0 else 0, a if high(a) > 0 else 0) for b, a in pairs]
        check_holds("pad", self.dtype, value)
        padded = build.pad(result.node, amounts)
        if value != 0:
            whole = self._filling(value, "pad")._broadcast_to(padded.shape)
            padded = within(result.node, amounts, whole.node)
        return self._new(padded)

    def _pad_pairs(self, padding: Sequence[Any]) -> list[Pair]:
        given: list[Any] = list(padding) if isinstance(padding, (list, tuple)) else [padding]
        if all(pair is None or isinstance(pair, (tuple, list)) for pair in given):
            ends = [(0, 0) if pair is None else tuple(pair) for pair in given]
            pairs: list[Pair] = [
                check_ints("pad", **{f"padding[{d}][0]": before, f"padding[{d}][1]": after})
                for d, (before, after, *_) in enumerate(ends)
            ]
            if len(pairs) == self.ndim:
                return pairs
        elif len(given) % 2 == 0 and len(given) <= 2 * self.ndim:
            given[:] = check_ints("pad", **{f"padding[{i}]": n for i, n in enumerate(given)})
            flat = [(given[i], given[i + 1]) for i in range(0, len(given), 2)]
            return [(0, 0)] * (self.ndim - len(flat)) + flat[::-1]
        raise ShapeError(
            f"pad({padding}): expected one pair or None for each of {self.ndim} dimensions, or a "
            "flat list of pairs from the last dimension backwards"
        )

    def _pad_copying(self, pairs: Sequence[Pair], mode: str) -> Self:
        """Padding with elements of the tensor itself, one dimension at a time."""
        expect(mode in ("reflect", "replicate", "circular"), "pad",
               "constant, reflect, replicate or circular", error=ValueError, mode=mode)  # fmt: skip
        plain_sizes(f"pad(mode={mode!r})", *self.shape)
        amounts = [plain_sizes(f"pad(mode={mode!r}): amounts", *pair) for pair in pairs]
        result = self
        if mode == "circular":  # what is cut off does not come back at the other end
            result = self.pad([(min(b, 0), min(a, 0)) for b, a in amounts])
            amounts = [[max(b, 0), max(a, 0)] for b, a in amounts]
        for axis, ((b, a), n) in enumerate(zip(amounts, result._known_shape(), strict=True)):
            limit = n - 1 if mode == "reflect" else n if mode == "circular" or not n else max(b, a)
            expect(max(b, a) <= max(limit, 0),
                   f"pad(mode={mode!r}) of dimension {axis} of size {n}",
                   f"at most {max(limit, 0)}", max(b, a))  # fmt: skip
            ends = {"reflect": ((1, b + 1), (n - 1 - a, n - 1)), "circular": ((n - b, n), (0, a)),
                    "replicate": ((0, 1), (n - 1, n))}[mode]  # fmt: skip
            parts = [result._part(axis, max(-b, 0), n + min(a, 0))]
            for place, count, end in zip((0, 2), (b, a), ends, strict=True):
                if count > 0:
                    part = result._part(axis, *end)
                    if mode == "reflect":
                        part = part.flip(axis)
                    elif mode == "replicate":
                        part = part.expand([count if d == axis else -1 for d in range(self.ndim)])
                    parts.insert(place, part)
            result = parts[0].cat(*parts[1:], dim=axis)
        return result

    def _part(self, axis: int, start: Integer, stop: Integer) -> Self:
        """Elements start … stop − 1 along one axis."""
        return self.shrink([(start, stop) if d == axis else None for d in range(self.ndim)])

    # --- diagonals and windows --------------------------------------------------------------------

    def unfold(self, dim: int, size: int, step: int) -> Self:
        """Windows of `size` along `dim`, `step` apart, in a new last dimension.

        >>> Tensor([1, 2, 3]).unfold(0, 2, 1).tolist()
        [[1, 2], [2, 3]]
        """
        axis = axis_of("unfold", dim, self.ndim, 0)
        (extent,) = plain_sizes("unfold", self.shape[axis])
        expect(0 < size <= extent and step > 0, f"unfold(dim={dim}, size={size}, step={step})",
               f"0 < size ≤ {extent} and step > 0")  # fmt: skip
        return self._windows([(axis, size, step, 1)])

    def _windows(self, windows: Sequence[build.Window]) -> Self:
        """Windows along axes; positions in a window are new last dimensions (see `build.window`).
        """
        return self._view(lambda node: build.window(node, windows))

    def diagonal(self, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Self:
        """Elements (i, i + offset) of two dimensions, in a new last dimension.

        >>> Tensor([[1, 2], [3, 4]]).diagonal().tolist()
        [1, 4]
        """
        first, second = axes_of("diagonal", (dim1, dim2), self.ndim)
        rest = [d for d in range(self.ndim) if d not in (first, second)]
        x = self.permute(*rest, first, second)
        rows, columns = plain_sizes("diagonal", *x.shape[-2:])
        top, left = min(max(-offset, 0), rows), min(max(offset, 0), columns)
        length = min(rows - top, columns - left)
        place = x.ndim - 2  # a step that named x would keep it alive
        square = x._part(place, top, top + length)._part(place + 1, left, left + length)
        return square._view(lambda node: windows.diagonal(node, place))


def _is_range(given: Any) -> bool:
    """Whether something is a start and a stop, or None."""
    return given is None or (isinstance(given, list | tuple) and len(given) == 2)
