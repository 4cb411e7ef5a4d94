"""Reading and writing along one axis at positions given by data: gather, and scatters."""

from __future__ import annotations

from typing import Any, Self

from minigrad.dtype import dtypes
from minigrad.errors import DTypeError, expect
from minigrad.graph import build
from minigrad.graph.axes import within
from minigrad.graph.node import Op
from minigrad.graph.symbolic import low
from minigrad.tensor.broadcasting import axis_of, check_choice
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Methods

REDUCTIONS = {"sum": Op.SCATTER_ADD, "prod": Op.SCATTER_PROD, "mean": Op.SCATTER_ADD,
              "amax": Op.SCATTER_MAX, "amin": Op.SCATTER_MAX}  # fmt: skip


class Scattering(Methods):
    """`gather`, `scatter` and the like; index and values have as many dimensions as self."""

    __slots__ = ()

    def gather(self, dim: int, index: Core) -> Self:
        """out[…, i, …] = self[…, index[…, i, …], …] along dim (PyTorch's gather).

        index may be smaller than self in other dimensions. BoundsError if an index is not in 0 …
        self.shape[dim] − 1.

        >>> Tensor([[3, 1]]).gather(1, Tensor([[1, 0]])).tolist()
        [[1, 3]]
        """
        return self._gather("gather", dim, index)

    def _gather(self, name: str, dim: int, index: Core, wraps: bool = False) -> Self:
        """`gather`; `name` is for messages. wraps: negative indices count from the end."""
        axis, source, places = self._addressed(name, dim, index, wraps)
        return source._at(axis, places)

    def _at(self, axis: int, places: Core) -> Self:
        """Elements at places along an axis; the places are not checked."""
        return self._new(build.gather(self.node, places.raw, axis))

    def _addressed(
        self, name: str, dim: int, index: Core, wraps: bool = False
    ) -> tuple[int, Self, Self]:
        """Axis, self cut to the index's extents in other dimensions, and the checked index."""
        axis = axis_of(name, dim, self.ndim, 0)
        shape = index.shape
        expect(index.dtype.is_int, name, "an integer index", index.dtype.name, error=DTypeError)
        fits = len(shape) == self.ndim and all(
            low(have - want) >= 0
            for d, (have, want) in enumerate(zip(self.shape, shape, strict=True))
            if d != axis
        )
        expect(fits, f"{name} along dimension {axis}", "an index with equal ndim, and no "
               "larger sizes except along that dimension", self, index)  # fmt: skip
        ranges = [None if d == axis else (0, e) for d, e in enumerate(shape)]
        unit = f"elements of dimension {axis}"
        places = self._new(index.raw)._checked(self.shape[axis], name, unit, wraps=wraps)
        places = self._wrapped(places, axis) if wraps else places._wide_index()
        return axis, self.shrink(ranges), places

    def scatter_add(self, dim: int, index: Core, src: Core) -> Self:
        """self with each element of src added at index along dim (PyTorch's scatter_add).

        >>> Tensor([1, 1]).scatter_add(0, Tensor([1, 1]), Tensor([2, 3])).tolist()
        [1, 6]
        """
        return self._scatter("scatter_add", dim, index, src, "add")

    def scatter(self, dim: int, index: Core, src: Any, reduce: str | None = None) -> Self:
        """self with elements of src (or one number) written at index along dim.

        reduce="add" adds them, "multiply" multiplies by them. Without reduce, the last along dim
        wins at equal places. BoundsError if an index is not in 0 … self.shape[dim] − 1.

        >>> Tensor([1, 1]).scatter(0, Tensor([1]), Tensor([5])).tolist()
        [1, 5]
        """
        return self._scatter("scatter", dim, index, src, reduce)

    def _scatter(self, name: str, dim: int, index: Core, src: Any, how: str | None = None) -> Self:
        """`scatter`; `name` is for messages."""
        check_choice("scatter", (None, "add", "multiply"), reduce=how)
        axis, part, places, values = self._updates(name, dim, index, src)
        if how is not None:
            op = Op.SCATTER_ADD if how == "add" else Op.SCATTER_PROD
            return self._with_part(part._scattered(op, places, values, axis))
        return self._with_part(part._last_written(axis, places, values))

    def _last_written(self, axis: int, places: Self, values: Self) -> Self:
        """self with values written at places, which are not checked; at equal ones the last wins.

        places: in the values' shape, or broadcast to it.
        """
        if 0 in values.shape:
            return self.clone()
        index = places._broadcast_to(values.shape).node
        return self._new(build.scatter(Op.SCATTER, self.node, index, values.node, axis))

    def scatter_reduce(
        self, dim: int, index: Core, src: Core, reduce: str, *, include_self: bool = True
    ) -> Self:  # fmt: skip
        """self with elements of src combined into it at index along dim (PyTorch's scatter_reduce).

        reduce: "sum", "prod", "mean" (rounded down for integers), "amax" or "amin".
        include_self=False ignores the old value of a place that is written to. Equal extremes share
        the gradient. BoundsError if an index is out of range.

        >>> Tensor([1, 4]).scatter_reduce(0, Tensor([0, 1]), Tensor([9, 2]), "amax").tolist()
        [9, 4]
        """
        check_choice("scatter_reduce", REDUCTIONS, reduce=reduce)
        if reduce == "amin":  # the smallest element is the largest mirrored one
            mirrored = self._kept(src, "scatter_reduce")._mirrored()
            largest = self._mirrored().scatter_reduce(
                dim, index, mirrored, "amax", include_self=include_self
            )
            return largest._mirrored()
        axis, part, places, values = self._updates("scatter_reduce", dim, index, src)
        ones = self._new(build.const(1, dtypes.int32, index.shape, self.raw.device))
        zeros = self._new(build.const(0, dtypes.int32, part.shape, self.raw.device))
        count = zeros._scattered(Op.SCATTER_ADD, places, ones, axis)
        op, base = REDUCTIONS[reduce], part
        if not include_self:
            empty = {Op.SCATTER_PROD: 1, Op.SCATTER_MAX: self.dtype.minimum}.get(op, 0)
            first = self._new(build.const(empty, self.dtype, (), self.raw.device))
            base = (count > 0).where(first, base)
        changed = base._scattered(op, places, values, axis)
        if reduce == "mean":
            terms = (count + int(include_self)).maximum(1).cast(self.dtype)
            changed = changed / terms if self.dtype.is_float else changed // terms
        return self._with_part(changed)

    def _kept(self, src: Any, name: str) -> Self:
        """src in self's dtype; DTypeError for a tensor of floats that integers would cut off."""
        floats = isinstance(src, Core) and src.dtype.is_float
        own = self.dtype.name
        expect(self.dtype.is_float or not floats, name,
               f'values of {own}; write src.cast("{own}"), or x.float() to keep fractions',
               "floats", error=DTypeError)  # fmt: skip
        return self._filling(src, name)

    def _updates(self, name: str, dim: int, index: Core, src: Any) -> tuple[int, Self, Self, Self]:
        """Axis, the part of self that is written to, the places, and the values."""
        axis, part, places = self._addressed(name, dim, index)
        values = self._kept(src, name)
        if not values.ndim and not isinstance(src, Core):  # a number of Python or numpy
            return axis, part, places, values._broadcast_to(index.shape)
        pairs = zip(values.shape, index.shape, strict=False)
        expect(values.ndim == index.ndim and all(low(have - want) >= 0 for have, want in pairs),
               name, "a src with equal ndim and sizes at least as large", f"index {index.shape}",
               f"src {values.shape}")  # fmt: skip
        return axis, part, places, values.shrink([(0, extent) for extent in index.shape])

    def _scattered(self, op: Op, places: Self, values: Self, axis: int) -> Self:
        """One of `operations.SCATTERS`; half floats are combined in float32."""
        base, given = (self._wide(), values._wide()) if self.dtype.is_float else (self, values)
        result = self._new(build.scatter(op, base.node, places.node, given.node, axis))
        return result.cast(self.dtype)

    def _with_part(self, changed: Self) -> Self:
        """self with its leading part replaced by `changed`."""
        if changed.shape == self.shape:
            return changed
        amounts = [(0, have - now) for have, now in zip(self.shape, changed.shape, strict=True)]
        return self._new(within(changed.node, amounts, self.node))
