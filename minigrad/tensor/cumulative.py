"""Running results: what of an axis was summed, multiplied, or largest so far."""

from __future__ import annotations

from typing import Self

from minigrad.dtype import DType, dtypes, resolve, sum_dtype
from minigrad.errors import ShapeError
from minigrad.graph import build, scans
from minigrad.graph.node import Node, Op
from minigrad.tensor.broadcasting import axis_of, show
from minigrad.tensor.methods import Methods
from minigrad.tensor.ordering import Found


class Cumulative(Methods):
    """Running reductions along one axis (or PyTorch's `dim`)."""

    __slots__ = ()

    def _scanned(self, op: Op, name: str, axis: int) -> Self:
        return self._new(build.scan(op, self.node, self._known_axis(name, axis)))

    def _known_axis(self, name: str, axis: int) -> int:
        place = axis_of(name, axis, self.ndim)
        if not isinstance(self.shape[place], int):
            raise ShapeError(f"{name} along a symbolic dimension of {show(self.shape)}")
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

    def logcumsumexp(self, axis: int = 0, *, dim: int | None = None) -> Self:
        """log of the running sum of eˣ, without overflow; half floats in float32.

        >>> round(Tensor([0.0, 0.0]).logcumsumexp()[1].item(), 4)
        0.6931
        """
        x = self._wide()
        if not self.ndim:
            axis_of("logcumsumexp", axis, 0)
            return self._as_float()
        place = self._known_axis("logcumsumexp", axis)

        def combine(first: tuple[Node, ...], second: tuple[Node, ...]) -> tuple[Node, ...]:
            return (self._new(first[0]).logaddexp(self._new(second[0])).node,)

        return self._new(scans.associative(combine, (x.node,), place)[0]).cast(self._float_dtype())
