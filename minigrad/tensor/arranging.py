"""Joining, cutting and turning under PyTorch's and numpy's names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Self

from minigrad.dtype import dtypes
from minigrad.errors import DTypeError, ShapeError, expect, misfit
from minigrad.graph.symbolic import Affine, Integer, low
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import Axis, Scalar, axes_of, axis_of, broadcast_shape, check_ints
from minigrad.tensor.core import Core
from minigrad.tensor.movement import sequence, tensors_in


class Arranging(Composed):
    """Parts and reorderings are views, as in `Movement`; all other results are new tensors."""

    __slots__ = ()

    # --- parts ------------------------------------------------------------------------------------

    def select(self, dim: int, index: Integer) -> Self:
        """Element `index` along dim, without that dimension: x.select(1, 2) is x[:, 2].

        >>> Tensor([[1, 2], [3, 4]]).select(1, 0).tolist()
        [1, 3]
        """
        return self[(slice(None),) * axis_of("select", dim, self.ndim) + (index,)]

    def narrow(self, dim: int, start: Integer, length: Integer) -> Self:
        """`length` elements along dim from `start` on.

        >>> Tensor([1, 2, 3, 4]).narrow(0, 1, 2).tolist()
        [2, 3]
        """
        axis = axis_of("narrow", dim, self.ndim, 0)
        begin = start + self.shape[axis] if isinstance(start, int) and start < 0 else start
        return self._part(axis, begin, begin + length)

    def unbind(self, dim: int = 0) -> tuple[Self, ...]:
        """The elements along dim, a tuple of tensors without that dimension.

        >>> [row.tolist() for row in Tensor([[1, 2], [3, 4]]).unbind()]
        [[1, 2], [3, 4]]
        """
        axis = axis_of("unbind", dim, self.ndim, 0)
        return tuple(self.select(axis, place) for place in range(self._known_shape()[axis]))

    def tensor_split(
        self, indices_or_sections: int | Sequence[int], dim: int = 0
    ) -> tuple[Self, ...]:
        """Split along dim into n parts (the first ones larger by 1 if need be), or before indices.

        >>> [part.tolist() for part in Tensor([1, 2, 3]).tensor_split(2)]
        [[1, 2], [3]]
        """
        axis, given = axis_of("tensor_split", dim, self.ndim, 0), indices_or_sections
        extent = self._known_shape()[axis]
        if not isinstance(given, Sequence):
            expect(given >= 1, f"tensor_split({given})", "an int ≥ 1")
            size, larger = divmod(extent, given)
            cuts = [part * size + min(part, larger) for part in range(1, given)]
        else:
            cuts = [slice(None, int(cut)).indices(extent)[1] for cut in given]
        return tuple(self._part(axis, a, max(a, b)) for a, b in pairwise([0, *cuts, extent]))

    def hsplit(self, indices_or_sections: int | Sequence[int]) -> tuple[Self, ...]:
        """Split along the second dimension (a vector's first) into n equal parts or before indices.

        >>> [part.tolist() for part in Tensor([[1, 2], [3, 4]]).hsplit(2)]
        [[[1], [3]], [[2], [4]]]
        """
        return self._split_evenly("hsplit", indices_or_sections, 0 if self.ndim == 1 else 1)

    def vsplit(self, indices_or_sections: int | Sequence[int]) -> tuple[Self, ...]:
        """Split along the first dimension into n equal parts, or before indices.

        >>> [part.tolist() for part in Tensor([[1, 2], [3, 4]]).vsplit(2)]
        [[[1, 2]], [[3, 4]]]
        """
        expect(self.ndim > 1, "vsplit", "a matrix; write x.tensor_split(…)", self)
        return self._split_evenly("vsplit", indices_or_sections, 0)

    def _split_evenly(self, name: str, given: int | Sequence[int], axis: int) -> tuple[Self, ...]:
        extent = self._known_shape()[axis_of(name, axis, self.ndim, 0)]
        if isinstance(given, int) and (given < 1 or extent % given):
            raise misfit(f"{name}({given})", f"a divisor of {extent}")
        return self.tensor_split(given, axis)

    # --- order and shape --------------------------------------------------------------------------

    def t(self) -> Self:
        """A matrix transposed; a vector or number unchanged.

        >>> Tensor([[1, 2]]).t().tolist()
        [[1], [2]]
        """
        expect(self.ndim <= 2, "t", "a matrix; use .mT or .permute(…)", self)
        return self.T

    def rot90(self, k: int = 1, dims: Sequence[int] = (0, 1)) -> Self:
        """Rotated k times by 90°, from the first of dims towards the second.

        >>> Tensor([[1, 2], [3, 4]]).rot90().tolist()
        [[2, 4], [1, 3]]
        """
        expect(len(dims) == 2, "rot90", "two dimensions", dims=dims)
        first, second = axes_of("rot90", dims, self.ndim)
        turned = self if k % 2 == 0 else self.transpose(first, second)
        axes = {0: (), 1: (first,), 2: (first, second), 3: (second,)}[k % 4]
        return turned.flip(*axes) if axes else turned

    def fliplr(self) -> Self:
        """The elements in reverse order along the second dimension.

        >>> Tensor([[1, 2]]).fliplr().tolist()
        [[2, 1]]
        """
        return self.flip(1)

    def flipud(self) -> Self:
        """The elements in reverse order along the first dimension.

        >>> Tensor([1, 2]).flipud().tolist()
        [2, 1]
        """
        return self.flip(0)

    def expand_as(self, other: Core) -> Self:
        """Expanded to the shape of other.

        >>> Tensor([1]).expand_as(Tensor([5, 6])).tolist()
        [1, 1]
        """
        return self.expand(other.shape)

    def view_as(self, other: Core) -> Self:
        """The same elements in the shape of other.

        >>> Tensor([[1, 2]]).view_as(Tensor([5, 6])).tolist()
        [1, 2]
        """
        return self.reshape(other.shape)

    def broadcast_tensors(self, *others: Core) -> tuple[Any, ...]:
        """All tensors expanded to their common shape; they may be given as one list.

        >>> [x.shape for x in Tensor.broadcast_tensors(Tensor([1, 2]), Tensor([[3]]))]
        [(1, 2), (1, 2)]
        """
        given = tensors_in("broadcast_tensors", (self, *others))
        shape = broadcast_shape("broadcast_tensors", *(x.shape for x in given))
        return tuple(x.expand(shape) for x in given)

    def atleast_1d(self) -> Self:
        """A number as a vector; other tensors unchanged.

        >>> Tensor(5).atleast_1d().tolist()
        [5]
        """
        return self if self.ndim else self.reshape(1)

    def atleast_2d(self) -> Self:
        """A number or vector as a matrix of one row; other tensors unchanged.

        >>> Tensor([5, 6]).atleast_2d().tolist()
        [[5, 6]]
        """
        return self if self.ndim > 1 else self.reshape((1, -1))

    # --- joining ----------------------------------------------------------------------------------

    def hstack(self, *others: Any) -> Self:
        """Tensors, or a list of them, joined along the second dimension (vectors along the first).

        >>> Tensor.hstack([Tensor([1]), Tensor([2])]).tolist()
        [1, 2]
        """
        given = [x.atleast_1d() for x in tensors_in("hstack", (self, *others))]
        return given[0].cat(*given[1:], dim=0 if given[0].ndim == 1 else 1)

    def vstack(self, *others: Any) -> Self:
        """Tensors, or a list of them, joined along the first dimension; vectors count as rows.

        >>> Tensor.vstack([Tensor([1]), Tensor([2])]).tolist()
        [[1], [2]]
        """
        given = [x.atleast_2d() for x in tensors_in("vstack", (self, *others))]
        return given[0].cat(*given[1:])

    def tile(self, *repeats: Any) -> Self:
        """The tensor repeated along each dimension; fewer counts mean the last dimensions.

        >>> Tensor([[1, 2]]).tile(2).tolist()
        [[1, 2, 1, 2]]
        """
        times = sequence(repeats)
        return self.repeat(*(1 for _ in range(self.ndim - len(times))), *times)

    # --- diagonals --------------------------------------------------------------------------------

    def diag_embed(self, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Self:
        """Matrices in dimensions dim1, dim2: the last dimension as their diagonal, else zeros.

        >>> Tensor([1, 2]).diag_embed().tolist()
        [[1, 0], [0, 2]]
        """
        first, second = axes_of("diag_embed", (dim1, dim2), self.ndim + 1)
        if first > second:
            first, second, offset = second, first, -offset
        size = self._known_shape()[-1] + abs(offset)
        places = self.arange(size, device=self.raw.device)
        on_it = (places.unsqueeze(1) + offset).eq(places)
        before = max(offset, 0)
        wide = self.pad([None] * (self.ndim - 1) + [(before, abs(offset) - before)]).unsqueeze(-2)
        return wide.masked_fill(~on_it, 0).movedim((-2, -1), (first, second))

    def diag(self, diagonal: int = 0) -> Self:
        """For a vector, a square matrix with it as a diagonal; for a matrix, its diagonal.

        >>> Tensor([1, 2]).diag().tolist()
        [[1, 0], [0, 2]]
        """
        if self.ndim == 2:
            return self.diagonal(diagonal)
        if self.ndim != 1 or isinstance(self.shape[0], Affine):
            raise misfit("diag", "a vector or a matrix", self)
        return self.diag_embed(diagonal)

    def trace(self) -> Self:
        """The sum of a matrix's diagonal.

        >>> Tensor([[1, 2], [3, 4]]).trace().item()
        5
        """
        expect(self.ndim == 2, "trace", "a matrix", self)
        return self.diagonal().sum()

    def block_diag(self, *others: Any) -> Self:
        """Matrices, or a list of them, along the diagonal of one matrix, which is 0 elsewhere.

        >>> Tensor.block_diag(Tensor([[1]]), Tensor([[2, 3]])).tolist()
        [[1, 0, 0], [0, 2, 3]]
        """
        given = [x.atleast_2d() for x in tensors_in("block_diag", (self, *others))]
        *_, width = ends = [0, *accumulate(x.shape[1] for x in given)]
        sides = pairwise(ends)
        rows = [x.pad([None, (a, width - b)]) for x, (a, b) in zip(given, sides, strict=True)]
        return rows[0].cat(*rows[1:])

    @classmethod
    def tril_indices(
        cls, row: int, col: int, offset: int = 0, *, device: str | None = None
    ) -> Self:
        """Positions (2, n) int32 of the lower triangle of a row × col matrix, row by row.

        >>> Tensor.tril_indices(2, 2).tolist()
        [[0, 1, 1], [0, 0, 1]]
        """
        places: Self = cls.ones(row, col, device=device).tril(offset).nonzero()
        return places.T

    @classmethod
    def triu_indices(
        cls, row: int, col: int, offset: int = 0, *, device: str | None = None
    ) -> Self:
        """Positions (2, n) int32 of the upper triangle of a row × col matrix, row by row.

        >>> Tensor.triu_indices(2, 2).tolist()
        [[0, 0, 1], [0, 1, 1]]
        """
        places: Self = cls.ones(row, col, device=device).triu(offset).nonzero()
        return places.T

    # --- images -----------------------------------------------------------------------------------

    def pixel_shuffle(self, upscale_factor: int) -> Self:
        """(…, channels·r², height, width) → (…, channels, height·r, width·r) (Shi et al. 2016).

        >>> Tensor.zeros(1, 4, 2, 2).pixel_shuffle(2).shape
        (1, 1, 4, 4)
        """
        r = upscale_factor
        expect(r >= 1 and self.ndim >= 3 and not self.shape[-3] % (r * r), f"pixel_shuffle({r})",
               f"r ≥ 1 and (…, channels, height, width), channels divisible by {r * r}", self)
        return self.rearrange("... (c p q) h w -> ... c (h p) (w q)", p=r, q=r)

    def pixel_unshuffle(self, downscale_factor: int) -> Self:
        """(…, channels, height·r, width·r) → (…, channels·r², height, width).

        >>> Tensor.zeros(1, 1, 4, 4).pixel_unshuffle(2).shape
        (1, 4, 2, 2)
        """
        r = downscale_factor
        if r < 1 or self.ndim < 3 or self.shape[-2] % r or self.shape[-1] % r:
            expected = f"r ≥ 1 and (…, channels, height, width), both divisible by {r}"
            raise misfit(f"pixel_unshuffle({r})", expected, self)
        return self.rearrange("... c (h p) (w q) -> ... (c p q) h w", p=r, q=r)

    # --- tinygrad's -------------------------------------------------------------------------------

    def pad_to(self, *shape: Any) -> Self:
        """Zeros appended up to a larger shape; None keeps an extent.

        >>> Tensor([1, 2]).pad_to(3).tolist()
        [1, 2, 0]
        """
        wanted = sequence(shape)
        if len(wanted) != self.ndim:
            raise self._too_few("pad_to", wanted)
        pairs = zip(self.shape, wanted, strict=True)
        check_ints("pad_to", **{f"shape[{d}]": n for d, n in enumerate(wanted) if n is not None})
        behind = [0 if want is None else want - have for have, want in pairs]
        if any(low(more) < 0 for more in behind):
            raise misfit(f"pad_to{wanted}", f"sizes ≥ {self.shape}; use shrink_to to cut")
        return self.pad([(0, more) for more in behind])

    def shrink_to(self, *shape: Any) -> Self:
        """The first elements along each dimension, down to a smaller shape; None keeps an extent.

        >>> Tensor([1, 2, 3]).shrink_to(2).tolist()
        [1, 2]
        """
        return self.shrink([None if want is None else (0, want) for want in sequence(shape)])

    def sequential(self, layers: Sequence[Any]) -> Any:
        """The result of calling `layers` on self, one after the other.

        >>> Tensor([-1.0]).sequential([Tensor.abs, Tensor.exp2]).tolist()
        [2.0]
        """
        result: Any = self
        for place, layer in enumerate(layers):
            expect(callable(layer), f"sequential: layers[{place}]", "a function",
                   type(layer).__name__, error=TypeError)  # fmt: skip
            result = layer(result)
        return result

    # --- by index ---------------------------------------------------------------------------

    def _lines(self, name: str, dim: int, index: Core, source: Any) -> tuple[int, Self, Self]:
        """Axis, index and values for `scatter`, expanded to the shape that is written."""
        axis = axis_of(name, dim, self.ndim)
        expect(index.ndim <= 1, name, "a vector as index", index)
        count = index.numel()
        shape = (*self.shape[:axis], count, *self.shape[axis + 1 :])
        places = self._new(index.node).reshape((count, *(1 for _ in self.shape[axis + 1 :])))
        values = self._operand(source) if isinstance(source, Core) else self._filling(source, name)
        if values.shape != shape and (values.ndim or isinstance(source, Core)):
            raise ShapeError(f"{name}: expected values of shape {shape}, got {values.shape}")
        return axis, places.expand(shape), values.expand(shape)

    def index_select(self, dim: int, index: Core) -> Self:
        """The elements at a vector of indices along dim; BoundsError unless in 0 … extent − 1.

        >>> Tensor([[1, 2], [3, 4]]).index_select(1, Tensor([1])).tolist()
        [[2], [4]]
        """
        axis, places, _ = self._lines("index_select", dim, index, 0)
        return self._gather("index_select", axis, places)

    def index_add(self, dim: int, index: Core, source: Core, *, alpha: Scalar = 1) -> Self:
        """self with alpha·source added at index along dim; equal indices add up.

        BoundsError for an index that is not in 0 … extent − 1, DTypeError for floats in integers.

        >>> Tensor([1, 1]).index_add(0, Tensor([1, 1]), Tensor([2, 3])).tolist()
        [1, 6]
        """
        axis, places, values = self._lines("index_add", dim, index, source)
        return self._scatter("index_add", axis, places, values * alpha, "add")

    def index_copy(self, dim: int, index: Core, source: Core) -> Self:
        """self with source written at index along dim; for equal indices the last wins.

        Errors as for `index_add`.

        >>> Tensor([1, 1]).index_copy(0, Tensor([1]), Tensor([5])).tolist()
        [1, 5]
        """
        return self._scatter("index_copy", *self._lines("index_copy", dim, index, source))

    def index_fill(self, dim: int, index: Core, value: Any) -> Self:
        """self with one value, cast to its dtype, written at index along dim.

        BoundsError as for `index_add`.

        >>> Tensor([1, 1]).index_fill(0, Tensor([1]), 5).tolist()
        [1, 5]
        """
        return self._scatter("index_fill", *self._lines("index_fill", dim, index, value))

    def index_put(self, indices: Any, values: Any, accumulate: bool = False) -> Self:
        """A copy x with x[indices] = values; accumulate: added instead, also at equal places.

        >>> Tensor([1, 1]).index_put((Tensor([1, 1]),), Tensor([2, 3]), accumulate=True).tolist()
        [1, 6]
        """
        expect(isinstance(indices, (tuple, list)), "index_put", "a tuple of indices, as (i,)",
               type(indices).__name__, error=TypeError)  # fmt: skip
        copy = self._new(self.node)
        if not accumulate:
            copy[tuple(indices)] = values
            return copy
        every = self.arange(self.numel(), device=self.raw.device).reshape(self.shape)
        places = every[tuple(indices)]
        added = self._filling(values, "index_put").expand(places.shape).flatten()
        return self.flatten().scatter_add(0, places.flatten(), added).reshape(self.shape)

    def take_along_dim(self, indices: Core, dim: Axis = None) -> Self:
        """Elements along dim at indices such as `argsort` returns; other dimensions broadcast.

        Without dim, both are flattened.

        >>> Tensor([[3, 1]]).take_along_dim(Tensor([[1, 0]]), 1).tolist()
        [[1, 3]]
        """
        if dim is None:
            places = self._new(indices.node).flatten()
            return self.flatten()._gather("take_along_dim", 0, places, True)
        axis = axis_of("take_along_dim", dim, self.ndim)
        return self._take_along("take_along_dim", indices, axis)

    def _take_along(self, name: str, indices: Core, axis: int) -> Self:
        """`take_along_dim`; `name` is for messages."""
        expect(indices.ndim == self.ndim, name, f"indices with {self.ndim} dimensions", indices)
        shapes = [(*x.shape[:axis], 1, *x.shape[axis + 1 :]) for x in (self, indices)]
        common = broadcast_shape(name, *shapes)
        x, places = (
            value.expand((*common[:axis], *value.shape[axis : axis + 1], *common[axis + 1 :]))
            for value in (self, self._new(indices.node))
        )
        return x._gather(name, axis, places, True)

    def masked_scatter(self, mask: Core, source: Core) -> Self:
        """self with the elements of source, in order, where mask (bool) is true.

        >>> Tensor([1, 2, 3]).masked_scatter(Tensor([True, False, True]), Tensor([8, 9])).tolist()
        [8, 2, 9]
        """
        if not mask.dtype.is_bool:
            raise DTypeError(f"masked_scatter: expected a bool mask, got {mask.dtype.name}")
        wide = self._new(mask.node)._broadcast_to(self.shape)
        number = wide.flatten().cumsum(0, dtype=dtypes.int32) - 1
        flat = self._new(source.node).cast(self.dtype).flatten()
        given = (flat.shape[0], "masked_scatter", "elements of source")
        values = flat._at(0, wide.flatten().where(number, -1)._checked(*given, ignored=-1))
        return wide.where(values.reshape(self.shape), self)
