"""Joining, repeating and splitting tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Self

from minigrad.dtype import dtypes, promote
from minigrad.errors import DTypeError, ShapeError, expect, misfit
from minigrad.graph import build
from minigrad.graph.axes import joined
from minigrad.graph.node import device_of, is_symbolic
from minigrad.graph.symbolic import Affine, ceildiv, low
from minigrad.tensor.broadcasting import Axis, axis_of, check_ints, plain_sizes, product
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Methods
from minigrad.tensor.movement import sequence


class Joining(Methods):
    """Tensors joined, repeated and split; parts are views, joined and repeated tensors are not."""

    __slots__ = ()

    def cat(self, *others: Any, dim: Axis = None, axis: Axis = None) -> Self:
        """Tensors joined along `dim` (default 0), in the promoted dtype.

        Also `Tensor.cat([a, b], 1)`. ShapeError unless their other extents are equal.
        """
        tensors, along = _joined_along("cat", self, others, dim, axis)
        first: Self = tensors[0]
        place = axis_of("cat", along, first.ndim, 0)
        sizes = build.around(first.shape, place)
        for tensor in tensors:
            if tensor.ndim != first.ndim or build.around(tensor.shape, place) != sizes:
                expected = "equal sizes except along that dimension"
                raise misfit(f"cat along dimension {place}", expected, first, tensor)
        many = len(tensors) > build.FEW and not any(is_symbolic(each.shape) for each in tensors)
        return first._new((build.cat if many else joined)([each.node for each in tensors], place))

    def stack(self, *others: Any, dim: Axis = None, axis: Axis = None) -> Self:
        """Tensors of equal shape joined along a new dimension `dim` (default 0), as for `cat`.

        Also `Tensor.stack([a, b], 1)`.
        """
        tensors, along = _joined_along("stack", self, others, dim, axis)
        for tensor in tensors:
            expect(tensor.shape == tensors[0].shape, "stack", "equal shapes", tensors[0], tensor)
        place = axis_of("stack", along, tensors[0].ndim + 1)
        wider: list[Self] = [tensor.unsqueeze(place) for tensor in tensors]
        return wider[0].cat(*wider[1:], dim=place)

    def repeat(self, *counts: Any) -> Self:
        """The tensor repeated along each dimension; additional counts add dimensions at the left.
        """
        given = sequence(counts)
        times = check_ints("repeat", **{f"counts[{i}]": n for i, n in enumerate(given)})
        expect(all(low(count) >= 0 for count in times), f"repeat{times}", "counts ≥ 0")
        expect(len(times) >= self.ndim, f"repeat{times}",
               f"a count for each dimension of {self.shape}")  # fmt: skip
        shape = (1,) * (len(times) - self.ndim) + self.shape
        between = [e for extent in shape for e in (1, extent)]
        wide = [e for count, extent in zip(times, shape, strict=True) for e in (count, extent)]
        final = [extent * count for count, extent in zip(times, shape, strict=True)]
        return self._new(self.reshape(between).expand(wide).reshape(final).node)

    def repeat_interleave(self, repeats: int | Core, dim: Axis = None) -> Self:
        """Each element repeated along `dim`; without `dim`, those of the flattened tensor.

        [1, 2] with repeats=2 gives [1, 1, 2, 2] (`repeat` gives [1, 2, 1, 2]). repeats: an int ≥ 0,
        or a vector with one for each element, whose least element and sum the host reads.
        """
        if dim is None:
            return self.flatten().repeat_interleave(repeats, 0)
        axis = axis_of("repeat_interleave", dim, self.ndim, 0)
        if isinstance(repeats, Core):
            return self._repeated(self._operand(repeats), axis)
        (times,) = check_ints("repeat_interleave", repeats=repeats)
        expect(times >= 0, f"repeat_interleave({times!r})", "an int ≥ 0")
        left, right = self.shape[: axis + 1], self.shape[axis + 1 :]
        wide = self.reshape(left + (1,) + right).expand(left + (times,) + right)
        return self._new(wide.reshape(left[:-1] + (left[-1] * times,) + right).node)

    def _repeated(self, counts: Self, axis: int) -> Self:
        """Each element along an axis as often as its count says."""
        name, many = "repeat_interleave: repeats", self.shape[axis]
        expect(counts.dtype.is_int, name, "integers", counts.dtype.name, error=DTypeError)
        expect(counts.shape == (many,), name, f"{many} counts ≥ 0", counts)
        if not many:
            return self
        least, ends = counts.min().item(), counts.cast(dtypes.int64).cumsum(0)
        expect(least >= 0, name, f"{many} counts ≥ 0", f"{least}")
        places = self.arange(ends[-1].item(), device=self.raw.device)
        return self[(slice(None),) * axis + (ends.searchsorted(places, right=True),)]

    def roll(self, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> Self:
        """Elements shifted along dims; those shifted out come in at the other end.

        Without dims, along the flattened tensor. Shifts along the same dimension add up.
        """
        if dims is None:
            return self.flatten().roll(shifts, 0).reshape(self.shape)
        shift = shifts if isinstance(shifts, Sequence) else [shifts]
        given = dims if isinstance(dims, Sequence) else [dims]
        axes = [axis_of("roll", dim, self.ndim, 0) for dim in given]
        expect(len(shift) == len(axes), "roll", "a shift per dimension",
               f"{len(shift)} for {len(axes)}")  # fmt: skip
        result = self
        for amount, axis in zip(shift, axes, strict=True):
            (extent,) = plain_sizes("roll", result.shape[axis])
            cut = -amount % max(extent, 1)
            head, tail = result._part(axis, 0, cut), result._part(axis, cut, extent)
            result = tail.cat(head, dim=axis)
        return self._new(result.node)

    def split(self, sizes: int | Sequence[int], dim: int = 0) -> tuple[Self, ...]:
        """Parts along `dim`: each of one size (the last may be smaller), or of the given sizes.

        (7, n) split by 3 gives (3, n), (3, n), (1, n). Parts are views. ShapeError unless given
        sizes add up to the extent.
        """
        axis = axis_of("split", dim, self.ndim, 0)
        extent = self.shape[axis]
        if isinstance(extent, Affine):
            raise ShapeError(f"split: cannot split a symbolic dimension of {self.shape}")
        if not isinstance(sizes, Sequence):
            expect(sizes > 0, f"split({sizes})", "a size > 0")
            sizes = [min(sizes, extent - start) for start in range(0, max(extent, 1), sizes)]
        if sum(sizes) != extent:
            said = f"split into {list(sizes)} along dimension {axis}"
            raise misfit(said, f"sizes that add up to {extent}", sum(sizes))
        ends = zip(sizes, accumulate(sizes), strict=True)
        return tuple(self._part(axis, end - size, end) for size, end in ends)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Self, ...]:
        """At most `chunks` parts of equal size along `dim`; the last may be smaller.

        (7, n) in 3 chunks gives (3, n), (3, n), (1, n). Parts are views.
        """
        axis = axis_of("chunk", dim, self.ndim, 0)
        extent = self.shape[axis]
        if isinstance(extent, Affine) or chunks <= 0:
            expected = "chunks ≥ 1 and a dimension of known size"
            raise misfit(f"chunk({chunks}) along dimension {axis}", expected)
        return self.split(ceildiv(extent, chunks) if extent else [0] * chunks, axis)

    # --- by names of dimensions -------------------------------------------------------------

    def rearrange(self, pattern: str, **sizes: int) -> Self:
        """Dimensions split, reordered and merged, as einops.rearrange does.

        pattern: names of self's dimensions, "->", the same names in the result's order. (a b) is
        one dimension made of two; `sizes` must have the extents of all of these but one. "..."
        stands for any number of dimensions, 1 and () for one of extent 1.

        >>> Tensor.zeros(2, 6).rearrange("b (h w) -> b w h", h=2).shape
        (2, 3, 2)
        """
        left, arrow, right = pattern.replace("…", "...").partition("->")
        expect(arrow, f"rearrange {pattern!r}", "'before -> after'")
        if "..." in left:  # gets a name for each dimension that the rest of the left does not name
            rest = range(self.ndim - len(_groups(pattern, left.replace("...", ""))))
            dots = " ".join(f"dots_{i}" for i in rest)
            left, right = (side.replace("...", f" {dots} ") for side in (left, right))
        before, after = _groups(pattern, left), _groups(pattern, right)
        named = len(before)
        expect(named == self.ndim, f"rearrange {pattern!r}", f"{named} dimensions", self)
        names = [name for group in before for name in group]
        wanted = [name for group in after for name in group]
        unknown = sorted(set(sizes) - set(names))
        expect(len(set(names)) >= len(names) and sorted(names) == sorted(wanted) and not unknown,
               f"rearrange {pattern!r} with {sizes}",
               "the same names on both sides, each once, and sizes only for these")  # fmt: skip
        check_ints("rearrange", **sizes)
        extents: dict[str, Any] = dict(sizes)
        for group, extent in zip(before, self.shape, strict=True):
            open_ = [name for name in group if name not in extents]
            known: Any = product([extents[name] for name in group if name in extents])
            divides = known == 1 or (isinstance(extent, int) and known and extent % known == 0)
            if len(open_) == 1 and divides:  # it follows from the whole
                extents[open_[0]] = extent // known
            elif open_ or known != extent:
                raise ShapeError(
                    f"rearrange {pattern!r} of {self.shape}: cannot split a dimension of {extent} "
                    f"into ({' '.join(group)}) with {extents}; expected sizes whose product it is"
                )
        split = self.reshape(tuple(extents[name] for name in names))
        moved = split.permute(*(names.index(name) for name in wanted))
        return moved.reshape(tuple(product([extents[n] for n in group]) for group in after))


def _groups(pattern: str, side: str) -> list[list[str]]:
    """The dimensions of one side: lists of names; a 1 has no name."""
    groups = []
    for part in re.findall(r"\([^()]*\)|\w+|\.\.\.|\S", side):
        names = re.findall(r"\w+|\.\.\.|\S", part[1:-1]) if part[1:].endswith(")") else [part]
        for name in names:
            if name in "()":
                raise ShapeError(f"rearrange {pattern!r}: unbalanced brackets")
            if name != "1" and not name.isidentifier():
                raise ShapeError(f"rearrange {pattern!r}: unexpected {name!r}")
        groups.append([name for name in names if name != "1"])
    return groups


def _joined_along(
    name: str, first: Any, others: tuple[Any, ...], dim: Axis, axis: Axis
) -> tuple[list[Any], int]:
    """The tensors to join, in one dtype, and the dimension.

    For calls as f(a, b, dim=1), f(a, b, 1), f((a, b), axis=1), and a.f([b, c]).
    """
    given = [number for number in (dim, axis) if number is not None]
    if others and isinstance(others[-1], int):
        given.append(others[-1])
        others = others[:-1]
    if len(given) > 1:
        raise TypeError(f"{name}: expected one dimension, as in {name}((a, b), 1), got {given}")
    listed = first if isinstance(first, (list, tuple)) else (first, *sequence(others))
    if listed is first and (others or not first):
        said = f"{name} of a list of {len(listed)} and {len(others)} other arguments"
        raise misfit(said, f"{name}([a, b, …], dim)", error=TypeError)
    kind = type(listed[0])
    if not isinstance(listed[0], Core):
        raise TypeError(f"{name}: expected tensors, got {kind.__name__}")
    tensors = [tensor if isinstance(tensor, kind) else kind(tensor) for tensor in listed]
    device_of("cat", [tensor.raw for tensor in tensors])
    dtype = promote(*(tensor.dtype for tensor in tensors))
    return [tensor.cast(dtype) for tensor in tensors], given[0] if given else 0
