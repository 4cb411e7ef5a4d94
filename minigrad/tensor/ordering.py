"""Order: sort, argsort and topk, all stable; NaN counts as larger than everything."""

from __future__ import annotations

import math
from typing import Generic, NamedTuple, Self, TypeVar

from minigrad.dtype import DType, dtypes, resolve, sum_dtype
from minigrad.errors import ShapeError
from minigrad.graph import build, scans
from minigrad.graph.node import Op
from minigrad.graph.symbolic import Affine, ceildiv
from minigrad.tensor.broadcasting import axis_of
from minigrad.tensor.methods import Methods

SELECTION = 4096  # keys of a row from which on `topk` looks at the largest of blocks first

T = TypeVar("T")


class Found(NamedTuple, Generic[T]):
    """Elements, and their places along a dimension."""

    values: T
    indices: T


class Ordering(Methods):
    """What depends on the order of elements along one axis (or PyTorch's `dim`)."""

    __slots__ = ()

    def _keys(self, descending: bool) -> Self:
        """Unsigned integers in the order of the elements; equal elements have equal keys."""
        x = self.detach()
        unsigned = self.dtype.unsigned
        top = 1 << (unsigned.bits - 1)
        if self.dtype.is_bool:
            keys = x.cast(unsigned)
        elif not self.dtype.is_float:
            keys = x if self.dtype.kind == "u" else x.bitcast(unsigned) ^ top
        else:
            bits = x.bitcast(unsigned)
            # larger magnitudes of negative numbers are smaller; −0 equals 0; NaN comes last
            ordered = (bits >= top).where(~bits, bits | top)
            ordered = x.eq(0).where(self._constant(top, unsigned), ordered)
            keys = x.isnan().where(self._constant(2 * top - 1, unsigned), ordered)
        return ~keys if descending else keys

    def _constant(self, value: int, dtype: DType) -> Self:
        return self._new(build.const(value, dtype, (), self.raw.device))

    def _order(self, name: str, axis: int, descending: bool) -> tuple[int, Self]:
        """The axis, and the positions along it in sorted order."""
        place = axis_of(name, axis, self.ndim)
        if self.ndim and isinstance(self.shape[place], Affine):
            raise ShapeError(f"{name} along a symbolic dimension of {self.shape}")
        if not self.ndim:
            return 0, self._new(build.const(0, dtypes.int32, (), self.raw.device))
        return place, self._new(build.sort(self._keys(descending).node, place))

    def argsort(
        self, axis: int = -1, descending: bool = False, *, dim: int | None = None,
        stable: bool = True,
    ) -> Self:  # fmt: skip
        """Positions (int32) of the elements in sorted order; equal ones keep theirs.

        NaN comes last, and first if descending.

        >>> Tensor([3, 1, 2]).argsort().tolist()
        [1, 2, 0]
        """
        return self._order("argsort", axis, descending)[1]

    def sort(
        self, axis: int = -1, descending: bool = False, *, dim: int | None = None,
        stable: bool = True,
    ) -> Found[Self]:  # fmt: skip
        """The sorted elements, and their positions (int32): see `argsort`.

        >>> [x.tolist() for x in Tensor([3, 1, 2]).sort()]
        [[1, 2, 3], [1, 2, 0]]
        """
        place, order = self._order("sort", axis, descending)
        return Found(self._at(place, order) if self.ndim else self, order)

    def topk(
        self, k: int, axis: int = -1, largest: bool = True, sorted: bool = True, *,
        dim: int | None = None,
    ) -> Found[Self]:  # fmt: skip
        """The k largest (or smallest) elements and their positions (int32), best first.

        Of equal elements the earlier ones are taken; NaN counts as the largest. sorted=False
        allows any order, and changes nothing.

        >>> [x.tolist() for x in Tensor([3, 1, 2]).topk(2)]
        [[3, 2], [0, 2]]
        """
        place = axis_of("topk", axis, self.ndim)
        extent = self.shape[place] if self.ndim else 1
        if isinstance(extent, Affine) or not 0 <= k <= extent:
            raise ShapeError(
                f"topk({k}) along dimension {place} of shape {self.shape}; expected an "
                f"int of 0 … {extent}"
            )
        if not self.ndim:
            found = Found(self, self._order("topk", 0, largest)[1])
            return found if k else Found(*(part.reshape(1)[:0] for part in found))
        keys = self._keys(largest)
        if any(isinstance(e, Affine) for e in self.shape) or not _selects(k, extent):
            order = self._new(build.sort(keys.node, place))._part(place, 0, k)
        else:
            order = keys.transpose(place, -1)._smallest(k).transpose(place, -1)
        return Found(self._at(place, order), order)

    def _smallest(self, k: int) -> Self:
        """Positions of the k smallest keys of each row, in order.

        They lie in the k blocks with the smallest minima: an element elsewhere has the k minima of
        those before it. So the minima are sorted, and then the elements of k blocks only.
        """
        extent = self.shape[-1]
        assert isinstance(extent, int)
        length = max(math.isqrt(extent // k), 1)
        blocks = ceildiv(extent, length)
        most = self._constant((1 << self.dtype.bits) - 1, self.dtype)
        short = blocks * length - extent
        padded = self.pad([None] * (self.ndim - 1) + [(0, short)])
        if short:
            inside = self.arange(blocks * length, device=self.raw.device) < extent
            padded = inside.where(padded, most)
        minima = padded.reshape((*self.shape[:-1], blocks, length)).min(-1)
        last = self.ndim - 1
        best = self._new(build.sort(minima.node, last))._part(last, 0, k)
        best = best._at(last, self._new(build.sort(best.cast(dtypes.uint32).node, last)))
        steps = self.arange(length, device=self.raw.device)
        places = (best.unsqueeze(-1) * length + steps).reshape((*self.shape[:-1], k * length))
        order = self._new(build.sort(padded._at(last, places).node, last))._part(last, 0, k)
        return places._at(last, order)

    # --- running sums and extremes ----------------------------------------------------------

    def _scanned(self, op: Op, name: str, axis: int) -> Self:
        return self._new(build.scan(op, self.node, self._known_axis(name, axis)))

    def _known_axis(self, name: str, axis: int) -> int:
        place = axis_of(name, axis, self.ndim)
        if not isinstance(self.shape[place], int):
            raise ShapeError(f"{name} along a symbolic dimension of {self.shape}")
        return place

    def _running_sum(self, op: Op, name: str, axis: int, dtype: DType | str | None) -> Self:
        result = sum_dtype(self.dtype) if dtype is None else resolve(dtype)
        wide = dtypes.float32 if result.is_float and result.itemsize < 4 else result
        if not self.ndim:
            axis_of(name, axis, 0)
            return self.cast(result)
        return self.cast(wide)._scanned(op, name, axis).cast(result)

    def cumsum(
        self, axis: int = 0, *, dim: int | None = None, dtype: DType | str | None = None
    ) -> Self:
        """Sums of the elements up to each one, in the dtype that `sum` has.

        >>> Tensor([1, 2, 3]).cumsum().tolist()
        [1, 3, 6]
        """
        return self._running_sum(Op.CUMSUM, "cumsum", axis, dtype)

    def cumprod(
        self, axis: int = 0, *, dim: int | None = None, dtype: DType | str | None = None
    ) -> Self:
        """Products of the elements up to each one, in the dtype that `sum` has.

        >>> Tensor([1, 2, 3]).cumprod().tolist()
        [1, 2, 6]
        """
        return self._running_sum(Op.CUMPROD, "cumprod", axis, dtype)

    def cummax(self, axis: int = 0, *, dim: int | None = None) -> Found[Self]:
        """The largest element so far (NaN wins), and where the latest such stands (int32).

        >>> [x.tolist() for x in Tensor([1, 3, 2]).cummax()]
        [[1, 3, 3], [0, 1, 1]]
        """
        return self._extremes("cummax", axis)

    def cummin(self, axis: int = 0, *, dim: int | None = None) -> Found[Self]:
        """The smallest element so far (NaN wins), and where the latest such stands (int32).

        >>> [x.tolist() for x in Tensor([2, 1, 3]).cummin()]
        [[2, 1, 1], [0, 1, 1]]
        """
        values, places = self._mirrored()._extremes("cummin", axis)
        return Found(values._mirrored(), places)

    def _extremes(self, name: str, axis: int) -> Found[Self]:
        if not self.ndim:
            axis_of(name, axis, 0)
            return Found(self, self._new(build.const(0, dtypes.int32, (), self.raw.device)))
        values = self._scanned(Op.CUMMAX, name, axis)
        place = axis_of(name, axis, self.ndim)
        return Found(values, self._new(scans.latest(self.raw, values.raw, place)))

def _selects(k: int, extent: int) -> bool:
    """Whether looking at blocks first saves most of the work."""
    return k > 0 and extent >= SELECTION and 64 * k <= extent
