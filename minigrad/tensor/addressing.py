"""Writing and reading lines of one dimension, and parts of a copy: PyTorch's index_ functions."""

from __future__ import annotations

from typing import Any, Self

from minigrad.dtype import dtypes
from minigrad.errors import DTypeError, ShapeError
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import Scalar, axis_of, show
from minigrad.tensor.core import Core


class Addressing(Composed):
    """Copies of self with parts replaced; `index` is a vector of integers ≥ 0 along dim.

    BoundsError where an index is out of range.
    """

    __slots__ = ()

    def _lines(self, name: str, dim: int, index: Core, source: Any) -> tuple[int, Self, Self]:
        """The axis, the index and the values for `scatter`: as large as what is written."""
        axis = axis_of(name, dim, self.ndim)
        if index.ndim > 1:
            raise ShapeError(f"{name} with an index of {show(index.shape)}: expected a vector")
        count = index.numel()
        shape = (*self.shape[:axis], count, *self.shape[axis + 1 :])
        places = self._new(index.node).reshape((count, *(1 for _ in self.shape[axis + 1 :])))
        values = self._operand(source)
        if values.ndim and (values.ndim != self.ndim or values.shape != shape):
            raise ShapeError(f"{name} of {show(values.shape)}: expected {show(shape)}")
        return axis, places.expand(shape), values.expand(shape)

    def index_select(self, dim: int, index: Core) -> Self:
        """The elements of dim that a vector of indices names.

        >>> Tensor([[1, 2], [3, 4]]).index_select(1, Tensor([1])).tolist()
        [[2], [4]]
        """
        axis, places, _ = self._lines("index_select", dim, index, 0)
        return self._gather("index_select", axis, places)

    def index_add(self, dim: int, index: Core, source: Core, *, alpha: Scalar = 1) -> Self:
        """self with alpha·source added at index along dim; equal indices add up.

        >>> Tensor([1, 1]).index_add(0, Tensor([1, 1]), Tensor([2, 3])).tolist()
        [1, 6]
        """
        axis, places, values = self._lines("index_add", dim, index, source)
        return self._scatter("index_add", axis, places, values * alpha, "add")

    def index_copy(self, dim: int, index: Core, source: Core) -> Self:
        """self with source written at index along dim; of equal indices the last wins.

        >>> Tensor([1, 1]).index_copy(0, Tensor([1]), Tensor([5])).tolist()
        [1, 5]
        """
        return self._scatter("index_copy", *self._lines("index_copy", dim, index, source))

    def index_fill(self, dim: int, index: Core, value: Any) -> Self:
        """self with one value written at index along dim.

        >>> Tensor([1, 1]).index_fill(0, Tensor([1]), 5).tolist()
        [1, 5]
        """
        return self._scatter("index_fill", *self._lines("index_fill", dim, index, value))

    def index_put(self, indices: Any, values: Any, accumulate: bool = False) -> Self:
        """A copy x with x[indices] = values; accumulate adds them, equal places add up.

        >>> Tensor([1, 1]).index_put((Tensor([1, 1]),), Tensor([2, 3]), accumulate=True).tolist()
        [1, 6]
        """
        copy = self._new(self.node)
        if not accumulate:
            copy[tuple(indices)] = values
            return copy
        every = self.arange(self.numel(), device=self.raw.device).reshape(self.shape)
        places = every[tuple(indices)]
        added = self._operand(values).expand(places.shape).flatten()
        flat = self.flatten().scatter_add(0, places.flatten(), added)
        return flat.reshape(self.shape)

    def take_along_dim(self, indices: Core, dim: int | None = None) -> Self:
        """Elements along dim at indices as `argsort` gives them; other dimensions broadcast.

        >>> Tensor([[3, 1]]).take_along_dim(Tensor([[1, 0]]), 1).tolist()
        [[1, 3]]
        """
        if dim is None:
            places = self._new(indices.node).flatten()
            return self.flatten()._gather("take_along_dim", 0, places, True)
        axis = axis_of("take_along_dim", dim, self.ndim)
        return self._take_along("take_along_dim", indices, axis)

    def _take_along(self, name: str, indices: Core, axis: int) -> Self:
        """`take_along_dim`, under another name in messages."""
        x, places = (
            value.expand([
                other if d != axis and extent == 1 else extent
                for d, (extent, other) in enumerate(zip(value.shape, like.shape, strict=True))
            ])
            for value, like in ((self, indices), (self._new(indices.node), self))
        )  # fmt: skip
        return x._gather(name, axis, places, True)

    def masked_scatter(self, mask: Core, source: Core) -> Self:
        """self with the elements of source, in order, where mask (bool) is true.

        >>> Tensor([1, 2, 3]).masked_scatter(Tensor([True, False, True]), Tensor([8, 9])).tolist()
        [8, 2, 9]
        """
        if not mask.dtype.is_bool:
            raise DTypeError(f"masked_scatter with a mask of {mask.dtype.name}: expected bool")
        wide = self._new(mask.node)._broadcast_to(self.shape)
        number = wide.flatten().cumsum(0, dtype=dtypes.int32) - 1
        flat = self._new(source.node).cast(self.dtype).flatten()
        values = flat._gather("masked_scatter", 0, wide.flatten().where(number, 0))
        return wide.where(values.reshape(self.shape), self)
