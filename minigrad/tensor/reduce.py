"""Reductions and order along axes: statistics, softmax, positions, sorts, running sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

from minigrad.dtype import DType, DTypeLike, dtype_or, dtypes, sum_dtype
from minigrad.errors import expect, misfit
from minigrad.graph import build, scans
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Affine, high
from minigrad.tensor.broadcasting import Axes, Axis, Scalar, as_python, axes_of, axis_of
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Methods
from minigrad.tensor.results import Found, warn_of_no_pair


class Reduce(Methods):
    """Reductions. `axis` (or PyTorch's `dim`): one, several, or None for all dimensions."""

    __slots__ = ()

    # --- the four reductions ----------------------------------------------------------------------

    def _reduce(self, op: Op, name: str, node: Node, axis: Axes, keepdim: bool) -> Self:
        axes = axes_of(name, axis, self.ndim)
        result = build.reduce(op, node, axes)
        if not keepdim:
            shape = tuple(e for d, e in enumerate(result.shape) if d not in axes)
            result = build.reshape(result, shape)
        return self._new(result)

    def _accumulate(
        self, how: Callable[..., Self], dtype: DTypeLike, op: Op, name: str, *given: Any
    ) -> Self:
        """`_reduce` or `_scanned` in a dtype that holds sums; half floats are added in float32."""
        result = dtype_or(dtype, sum_dtype(self.dtype))
        wide = dtypes.float32 if result.is_float and result.itemsize < 4 else result
        return how(op, name, build.cast(self.node, wide), *given).cast(result)

    def sum(
        self, axis: Axes = None, keepdim: bool = False, *, dim: Axes = None,
        dtype: DTypeLike = None,
    ) -> Self:  # fmt: skip
        """Sum: int64 for bool and signed integers, uint64 for unsigned ones, else self's dtype.

        Half floats are added in float32.

        >>> Tensor([[1, 2], [3, 4]]).sum(1).tolist()
        [3, 7]
        """
        return self._accumulate(self._reduce, dtype, Op.SUM, "sum", axis, keepdim)

    def prod(
        self, axis: Axes = None, keepdim: bool = False, *, dim: Axes = None,
        dtype: DTypeLike = None,
    ) -> Self:  # fmt: skip
        """Product, in the dtype of `sum`.

        >>> Tensor([2, 3]).prod().item()
        6
        """
        return self._accumulate(self._reduce, dtype, Op.PROD, "prod", axis, keepdim)

    def max(self, axis: Axes | Core = None, keepdim: bool = False, *, dim: Axes = None) -> Self:
        """The largest element; NaN wins. Equal ones share the gradient. Given a tensor: `maximum`.

        ShapeError if there are no elements.

        >>> Tensor([[1, 5], [3, 2]]).max(1).tolist()
        [5, 3]
        """
        if isinstance(axis, Core):
            return self.maximum(axis)
        warn_of_no_pair("max", axis)
        self._check_not_empty("max", axis)
        return self._reduce(Op.MAX, "max", self.node, axis, keepdim)

    def min(self, axis: Axes | Core = None, keepdim: bool = False, *, dim: Axes = None) -> Self:
        """The smallest element; NaN wins. Equal ones share the gradient. Given a tensor: `minimum`.

        ShapeError if there are no elements.

        >>> Tensor([[1, 5], [3, 2]]).min(1).tolist()
        [1, 2]
        """
        if isinstance(axis, Core):
            return self.minimum(axis)
        warn_of_no_pair("min", axis)
        self._check_not_empty("min", axis)
        return self._reduce(Op.MAX, "min", self._mirrored().node, axis, keepdim)._mirrored()

    def _mirrored(self) -> Self:
        """Values in reversed order: −x, or for integers −x − 1, which cannot wrap."""
        return -self if self.dtype.is_float else ~self

    def _check_not_empty(self, name: str, axis: Axes) -> None:
        if any(self.shape[a] == 0 for a in axes_of(name, axis, self.ndim)):
            raise misfit(name, "at least one element", self)

    def any(self, axis: Axes = None, keepdim: bool = False, *, dim: Axes = None) -> Self:
        """Whether any element is not 0; False over no elements.

        >>> Tensor([0, 2]).any().item()
        True
        """
        return self._reduce(Op.MAX, "any", self.bool().node, axis, keepdim)

    def all(self, axis: Axes = None, keepdim: bool = False, *, dim: Axes = None) -> Self:
        """Whether no element is 0; True over no elements.

        >>> Tensor([0, 2]).all().item()
        False
        """
        return self._reduce(Op.PROD, "all", self.bool().node, axis, keepdim)

    # --- statistics -------------------------------------------------------------------------------

    def _count(self, axis: Axes, dtype: DType) -> Self:
        """How many elements are reduced, as a 0-d tensor; symbolic extents are read at run time."""
        extents = [self.shape[a] for a in axes_of("mean", axis, self.ndim)]
        known, device = math.prod(e for e in extents if isinstance(e, int)), self.raw.device
        count = build.const(known, dtype, (), device)
        for extent in extents:
            if isinstance(extent, Affine):
                count = build.cast(build.variable(extent, device), dtype) * count
        return self._new(count)

    def _wide(self) -> Self:
        """self in at least float32, the dtype in which statistics are computed."""
        return self if self.dtype.is_float and self.dtype.itemsize >= 4 else self.float()

    def _float_dtype(self) -> DType:
        return self.dtype if self.dtype.is_float else dtypes.default_float

    def mean(self, axis: Axes = None, keepdim: bool = False, *, dim: Axes = None) -> Self:
        """Mean; float32 for integers.

        >>> Tensor([1.0, 3.0]).mean().item()
        2.0
        """
        axes_of("mean", axis, self.ndim)
        x = self._wide()
        return (x.sum(axis, keepdim) / x._count(axis, x.dtype)).cast(self._float_dtype())

    def var(
        self, axis: Axes = None, *, keepdim: bool = False, correction: Scalar = 1,
        dim: Axes = None, unbiased: bool | None = None,
    ) -> Self:  # fmt: skip
        """Variance: squared deviations from the mean over n − correction (default 1, as PyTorch's).

        unbiased=False is correction=0. Arguments after the axes are keywords, because PyTorch has
        two orders for them.

        >>> Tensor([1.0, 3.0]).var().item()
        2.0
        """
        correction = correction if unbiased is None else int(unbiased)
        if isinstance(correction, bool):
            raise TypeError(f"var(correction={correction}): expected a number, as 1 or 0")
        axes_of("var", axis, self.ndim)
        x = self._wide()
        count = x._count(axis, x.dtype)
        corrected = x._mean_square(axis, keepdim) * (count / (count - correction).maximum(0))
        return corrected.cast(self._float_dtype())

    def _mean_square(self, axis: Axes, keepdim: bool = False) -> Self:
        """Mean of the squared deviations from the mean.

        The computed mean is rounded: far from zero, by more than the deviations' own size. What
        this adds, the square of the mean deviation, is subtracted; it does not depend on self.
        Squares beyond the dtype's range stay infinite.
        """
        away = self - self.mean(axis, True)
        squares = (away * away).mean(axis, keepdim)
        rest = away.mean(axis, keepdim)
        added = (rest * rest).minimum(squares)
        return squares - added.isfinite().where(added, 0.0).detach()

    def std(
        self, axis: Axes = None, *, keepdim: bool = False, correction: Scalar = 1,
        dim: Axes = None, unbiased: bool | None = None,
    ) -> Self:  # fmt: skip
        """Standard deviation: the root of `var`, rounded to self's dtype after the root only.

        >>> Tensor([1.0, 3.0]).std(correction=0).item()
        1.0
        """
        found = self._wide().var(axis, keepdim=keepdim, correction=correction, unbiased=unbiased)
        return found._root().cast(self._float_dtype())

    def std_mean(
        self, axis: Axes = None, *, keepdim: bool = False, **options: Any
    ) -> tuple[Self, Self]:
        """Standard deviation and mean; options as for `std`.

        >>> [x.item() for x in Tensor([1.0, 3.0]).std_mean(correction=0)]
        [1.0, 2.0]
        """
        return self.std(axis, keepdim=keepdim, **options), self.mean(axis, keepdim)

    # --- positions --------------------------------------------------------------------------------

    def argmax(self, axis: Axis = None, keepdim: bool = False, *, dim: Axis = None) -> Self:
        """Position (int32) of the first largest element, or of the first NaN.

        Without an axis: the position in the flattened tensor. int64 for extents of 2³¹ or more.

        >>> Tensor([1, 5, 3]).argmax().item()
        1
        """
        if axis is None:
            flat = self.flatten().argmax(0)
            return flat.reshape((1,) * self.ndim) if keepdim else flat
        self._check_not_empty("argmax", axis)
        x = self.detach()
        place = axis_of("argmax", axis, self.ndim)
        if not self.ndim:
            return self._constant(0, dtypes.default_int)
        found = x.eq(x.max(place, True)) | x.isnan()
        # the first one is the one with most elements from it to the end
        dtype = dtypes.int32 if high(self.shape[place]) <= dtypes.int32.maximum else dtypes.int64
        extent = self._count(place, dtype)
        return extent - found.where(extent - self._numbered(place, dtype), 0).max(place, keepdim)

    def argmin(self, axis: Axis = None, keepdim: bool = False, *, dim: Axis = None) -> Self:
        """Position (int32) of the first smallest element, or of the first NaN.

        >>> Tensor([[1, 5], [3, 2]]).argmin(1).tolist()
        [0, 1]
        """
        self._check_not_empty("argmin", axis)
        return self._mirrored().argmax(axis, keepdim)

    def _numbered(self, axis: int, dtype: DType = dtypes.int32) -> Self:
        """0, 1, 2 … along an axis; the other dimensions have extent 1."""
        shape = tuple(extent if d == axis else 1 for d, extent in enumerate(self.shape))
        return self._new(build.reshape(build.iota(self.shape[axis], self.raw.device, dtype), shape))

    # --- exponentials -----------------------------------------------------------------------------

    def _shifted(self, axis: Axes) -> Self:
        """self − max, so that exp cannot overflow; the maximum is a constant for gradients."""
        return self - self._top(axis)

    def _top(self, axis: Axes, name: str = "max") -> Self:
        """The maximum as a constant for gradients; −∞ over no elements."""
        return self._reduce(Op.MAX, name, self.node, axis, True).detach()

    def logsumexp(self, axis: Axes = None, keepdim: bool = False, *, dim: Axes = None) -> Self:
        """log Σ eˣ without overflow.

        >>> Tensor([0.0]).logsumexp().item()
        0.0
        """
        x = self._wide()
        top = x._top(axis, "logsumexp")
        top = top.isfinite().where(top, 0.0)
        result = (x - top).exp().sum(axis, True).log() + top
        return result.sum(axis, keepdim).cast(self._float_dtype())  # sums of one element each

    def softmax(self, axis: int = -1, dtype: DTypeLike = None, *, dim: Axis = None) -> Self:
        """eˣ / Σ eˣ along an axis, by default the last; half floats are computed in float32.

        >>> Tensor([0.0, 0.0]).softmax().tolist()
        [0.5, 0.5]
        """
        shifted, result = self._below_top("softmax", axis, dtype)
        powers = shifted.exp()
        # one division per row: Σ lies in 1 … n, where its reciprocal is exact to half an ulp
        shares = powers * powers.sum(axis, True).reciprocal()
        return shares.cast(result)

    def log_softmax(self, axis: int = -1, dtype: DTypeLike = None, *, dim: Axis = None) -> Self:
        """log of `softmax`, along the last axis by default; accurate where softmax underflows.

        >>> Tensor([3.0]).log_softmax().tolist()
        [0.0]
        """
        shifted, result = self._below_top("log_softmax", axis, dtype)
        return (shifted - shifted.exp().sum(axis, True).log()).cast(result)

    def _below_top(self, name: str, axis: int, dtype: DTypeLike) -> tuple[Self, DType]:
        """`_shifted` in at least float32, and the dtype of the result: `dtype`, or else self's."""
        axis_of(name, axis, self.ndim)
        result = dtype_or(dtype, self._float_dtype())
        return self.cast(result)._wide()._shifted(axis), result

    def normalize(self, p: Scalar = 2.0, axis: int = 1, eps: Scalar = 1e-12) -> Self:
        """self divided by its p-norm along an axis, or by eps if that is larger.

        p=∞ is the largest magnitude, −∞ the smallest, 0 the number of elements that are not 0. The
        derivative of a norm that is 0 counts as 0.

        >>> Tensor([[3.0, 4.0]]).normalize(1).sum().item()
        1.0
        """
        axis_of("normalize", axis, self.ndim)
        x = self._wide()
        length = x._norm(2 if 0 in self.shape else p, axis, True)  # any norm will do for none
        return (x / length.maximum(eps)).cast(self._float_dtype())

    def _norm(self, p: Scalar, axis: Axes, keepdim: bool) -> Self:
        """The p-norm of floats of at least 32 bits; powers of smaller ones over- or underflow."""
        p = as_python(p)
        expect(isinstance(p, (int, float)), f"norm(p={p!r})", "a number", error=TypeError)
        if p == 0:
            return self.ne(0).sum(axis, keepdim, dtype=self.dtype)
        if p == 2:
            return self.square().sum(axis, keepdim)._root()
        size = self.abs()
        if p < 0 or p == float("inf"):
            self._check_not_empty(f"norm({p})", axis)
        if abs(p) == float("inf"):
            return size.max(axis, keepdim) if p > 0 else size.min(axis, keepdim)
        # for p < 1 the power has no derivative at 0; so there it is a constant
        powers = size._root(1 / p) if p < 1 else size**p
        return powers.sum(axis, keepdim)._root(p)

    def _root(self, p: Scalar = 2) -> Self:
        """self^(1/p); where self is 0, the derivative counts as 0 instead of ∞."""
        zero = self.eq(0)
        inside = zero.where(1, self)
        root = inside.sqrt() if p == 2 else inside ** (1 / p)
        return zero.where(0 if p > 0 else float("inf"), root)

    # --- order along an axis ----------------------------------------------------------------

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
        if not self.ndim:
            return 0, self._constant(0, dtypes.int32)
        return place, self._new(build.sort(self._keys(descending).node, place))

    def argsort(
        self, axis: int = -1, descending: bool = False, *, dim: Axis = None,
        stable: bool = True,
    ) -> Self:  # fmt: skip
        """Positions (int32) of the elements in sorted order; equal elements keep their order.

        NaN comes last, or first if descending.

        >>> Tensor([3, 1, 2]).argsort().tolist()
        [1, 2, 0]
        """
        return self._order("argsort", axis, descending)[1]

    def sort(
        self, axis: int = -1, descending: bool = False, *, dim: Axis = None,
        stable: bool = True,
    ) -> Found[Self]:  # fmt: skip
        """The sorted elements, and their positions (int32): see `argsort`.

        >>> [x.tolist() for x in Tensor([3, 1, 2]).sort()]
        [[1, 2, 3], [1, 2, 0]]
        """
        return self._found(*self._order("sort", axis, descending))

    def _found(self, axis: int, places: Self) -> Found[Self]:
        """The elements at places along an axis, and these places."""
        return Found(self._at(axis, places) if self.ndim else self.clone(), places)

    def topk(
        self, k: int, axis: int = -1, largest: bool = True, sorted: bool = True, *,
        dim: Axis = None,
    ) -> Found[Self]:  # fmt: skip
        """The k largest (or smallest) elements and their positions (int32), best first.

        Of equal elements the earlier ones are taken; NaN counts as the largest. sorted=False has no
        effect: the result is sorted anyway. ShapeError unless k is in 0 … extent.

        >>> [x.tolist() for x in Tensor([3, 1, 2]).topk(2)]
        [[3, 2], [0, 2]]
        """
        place = axis_of("topk", axis, self.ndim)
        extent = self.shape[place] if self.ndim else 1
        if isinstance(extent, Affine) or not 0 <= k <= extent:
            raise misfit(f"topk({k}) along dimension {place}", f"an int in 0 … {extent}")
        order = self._order("topk", axis, largest)[1]
        found = self._found(place, order._part(place, 0, k) if self.ndim else order)
        return found if k or self.ndim else Found(*(part.reshape(1)[:0] for part in found))

    # --- cumulative sums and extremes -------------------------------------------------------

    def _scanned(self, op: Op, name: str, node: Node, axis: int) -> Self:
        place = axis_of(name, axis, self.ndim)
        return self._new(build.scan(op, node, place) if self.ndim else node)

    def cumsum(self, axis: int = 0, *, dim: Axis = None, dtype: DTypeLike = None) -> Self:
        """Running sums along an axis, in the dtype of `sum`.

        >>> Tensor([1, 2, 3]).cumsum().tolist()
        [1, 3, 6]
        """
        return self._accumulate(self._scanned, dtype, Op.CUMSUM, "cumsum", axis)

    def cumprod(self, axis: int = 0, *, dim: Axis = None, dtype: DTypeLike = None) -> Self:
        """Running products along an axis, in the dtype of `sum`.

        >>> Tensor([1, 2, 3]).cumprod().tolist()
        [1, 2, 6]
        """
        return self._accumulate(self._scanned, dtype, Op.CUMPROD, "cumprod", axis)

    def cummax(self, axis: int = 0, *, dim: Axis = None) -> Found[Self]:
        """The largest element so far (NaN wins), and the position (int32) of its last occurrence.

        >>> [x.tolist() for x in Tensor([1, 3, 2]).cummax()]
        [[1, 3, 3], [0, 1, 1]]
        """
        return self._extremes("cummax", axis)

    def cummin(self, axis: int = 0, *, dim: Axis = None) -> Found[Self]:
        """The smallest element so far (NaN wins), and the position (int32) of its last occurrence.

        >>> [x.tolist() for x in Tensor([2, 1, 3]).cummin()]
        [[2, 1, 1], [0, 1, 1]]
        """
        values, places = self._mirrored()._extremes("cummin", axis)
        return Found(values._mirrored(), places)

    def _extremes(self, name: str, axis: int) -> Found[Self]:
        values = self._scanned(Op.CUMMAX, name, self.node, axis)
        if not self.ndim:
            return Found(values, self._constant(0, dtypes.int32))
        place = axis_of(name, axis, self.ndim)
        return Found(values, self._new(scans.latest(self.raw, values.raw, place)))
