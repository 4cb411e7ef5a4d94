"""Statistics: what depends on ranks, counts of equal elements, differences, norms."""

from __future__ import annotations

import math
import sys
from typing import Any, Self

from minigrad.dtype import DType, DTypeLike, dtype_or, dtypes, named, sum_dtype
from minigrad.errors import DomainError, DTypeError, RangeError, expect, misfit
from minigrad.graph.symbolic import Affine
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import Axes, Scalar, axes_of, axis_of, check_choice, check_share
from minigrad.tensor.core import Core
from minigrad.tensor.random import _draw
from minigrad.tensor.results import Found, warn_of_no_pair

# Which element `quantile` takes: one between two neighbours, or one whose rank is rounded so.
INTERPOLATIONS = {"linear": "", "lower": "floor", "higher": "ceil", "midpoint": "",
                  "nearest": "round"}  # fmt: skip


def unsigned(bits: int) -> DType:
    """The smallest dtype of unsigned integers with at least so many bits; they are at most 64."""
    return named(f"uint{1 << (max(bits, 8) - 1).bit_length()}")


class Statistics(Composed):
    """Statistics along `dim`, or of all elements. Positions are int32; NaN is the largest."""

    __slots__ = ()

    # --- extremes ---------------------------------------------------------------------------------

    def amax(self, dim: Axes = None, keepdim: bool = False) -> Self:
        """The largest elements: `max` for PyTorch's arguments.

        >>> Tensor([[1, 5], [3, 2]]).amax(1).tolist()
        [5, 3]
        """
        return self.max(dim or None if isinstance(dim, (tuple, list)) else dim, keepdim)

    def amin(self, dim: Axes = None, keepdim: bool = False) -> Self:
        """The smallest elements: `min` for PyTorch's arguments.

        >>> Tensor([[1, 5], [3, 2]]).amin(1).tolist()
        [1, 2]
        """
        return self.min(dim or None if isinstance(dim, (tuple, list)) else dim, keepdim)

    def aminmax(self, *, dim: int | None = None, keepdim: bool = False) -> tuple[Self, Self]:
        """The smallest and the largest elements.

        >>> [x.item() for x in Tensor([1, 5, 3]).aminmax()]
        [1, 5]
        """
        return self.min(dim, keepdim), self.max(dim, keepdim)

    def max_with_indices(self, dim: int = -1, keepdim: bool = False) -> Found[Self]:
        """The largest elements along dim, and the positions of the first such: PyTorch's max(dim).

        >>> [x.tolist() for x in Tensor([[1, 5], [3, 2]]).max_with_indices(1)]
        [[5, 3], [1, 0]]
        """
        return self._picked("max_with_indices", dim, keepdim, self.argmax(dim, True))

    def min_with_indices(self, dim: int = -1, keepdim: bool = False) -> Found[Self]:
        """The smallest elements along dim, and the positions of the first such: PyTorch's min(dim).

        >>> [x.tolist() for x in Tensor([[1, 5], [3, 2]]).min_with_indices(1)]
        [[1, 2], [0, 1]]
        """
        return self._picked("min_with_indices", dim, keepdim, self.argmin(dim, True))

    def _picked(self, name: str, dim: int, keepdim: bool, places: Self) -> Found[Self]:
        """The elements at one place of each line along dim, and the places."""
        axis = axis_of(name, dim, self.ndim)
        found = self._found(axis, places)
        return found if keepdim or not self.ndim else Found(*(x.squeeze(axis) for x in found))

    # --- ranks ------------------------------------------------------------------------------------

    def kthvalue(self, k: int, dim: int = -1, keepdim: bool = False) -> Found[Self]:
        """The k-th smallest elements along dim, and their positions (int32).

        ShapeError unless k is in 1 … extent.

        >>> [x.item() for x in Tensor([3, 1, 2]).kthvalue(2)]
        [2, 2]
        """
        axis = axis_of("kthvalue", dim, self.ndim)
        extent = self._known_shape()[axis] if self.ndim else 1
        expect(1 <= k <= extent, f"kthvalue({k})", f"an int in 1 … {extent}")
        order = self.argsort(axis)
        place = order._part(axis, k - 1, k) if self.ndim else order
        return self._picked("kthvalue", dim, keepdim, place)

    def median(self, dim: int | None = None, keepdim: bool = False) -> Self:
        """The median; of two middle elements the smaller one (PyTorch's values); NaN wins.

        The element in the middle of a stable sort gets the gradient.

        >>> Tensor([3, 1, 2, 4]).median().item()
        2
        """
        if dim is None:
            found = self.flatten().median(0)
            return found.reshape((1,) * self.ndim) if keepdim else found
        warn_of_no_pair("median", dim)
        axis = axis_of("median", dim, self.ndim)
        if not self.ndim:
            return self.clone()
        self._check_not_empty("median", axis)
        if 0 in self.shape:
            return self.max(axis, keepdim)
        values, extent = self.sort(axis)[0], self._known_shape()[axis]
        middle, last = (values._part(axis, n - 1, n) for n in ((extent + 1) // 2, extent))
        value = last.isnan().where(last, middle)  # NaNs are sorted last
        return value if keepdim else value.squeeze(axis)

    def quantile(
        self, q: Any, dim: int | None = None, keepdim: bool = False, *,
        interpolation: str = "linear",
    ) -> Self:  # fmt: skip
        """The value below which a share q of the elements lies.

        q: a number in 0 … 1, or a vector of them, which adds a first dimension to the result.
        interpolation between the two nearest elements: linear, lower, higher, midpoint or nearest.
        NaN wins. Floats only (DTypeError).

        >>> Tensor([1.0, 2.0, 4.0]).quantile(0.75).item()
        3.0
        """
        if not self.dtype.is_float:
            raise DTypeError(f"quantile: expected floats, got {self.dtype.name}; use .float()")
        check_choice("quantile", INTERPOLATIONS, interpolation=interpolation)
        for share in q if isinstance(q, (list, tuple)) else [q]:
            if not hasattr(share, "shape"):
                check_share("quantile", q=share)
        if dim is None:
            whole = self.flatten().quantile(q, 0, interpolation=interpolation)
            return whole.reshape((*whole.shape, *(1 for _ in self.shape))) if keepdim else whole
        axis = axis_of("quantile", dim, self.ndim)
        lines = (self if self.ndim else self.flatten()).movedim(axis, -1).sort(-1)[0]._wide()
        dtype = None if isinstance(q, Core) else lines.dtype  # half floats are too coarse for ranks
        share = self.__class__(q, dtype=dtype, device=self.raw.device).cast(lines.dtype)
        expect(share.ndim <= 1, "quantile", "a number or vector as q", share)
        share = share._within("quantile", "not a share", "0 … 1") if isinstance(q, Core) else share
        rank = share.flatten() * max(lines._known_shape()[-1] - 1, 0)
        turn = INTERPOLATIONS[interpolation]
        rank = getattr(rank, turn)() if turn else rank
        low, high = (lines[..., place.int()] for place in (rank.floor(), rank.ceil()))
        part = rank - rank.floor()
        if interpolation == "midpoint":
            part = (part > 0).where(0.5, part)
        step = high - low  # from the nearer one, which may be infinite
        between = (part < 0.5).where(low + step * part, high - step * (1 - part))
        value = part.eq(0).where(low, between)
        value = lines.isnan().any(-1, True).where(math.nan, value).movedim(-1, 0)  # (q, …)
        kept: Self = value.unsqueeze(axis + 1) if keepdim and self.ndim else value
        return (kept if share.ndim else kept[0]).cast(self.dtype)

    def mode(self, dim: int = -1, keepdim: bool = False) -> Found[Self]:
        """The most frequent elements along dim, of several the smallest, and their last positions.

        Each NaN counts as a different element, larger than all numbers.

        >>> [x.item() for x in Tensor([3, 1, 3, 2]).mode()]
        [3, 2]
        """
        axis = axis_of("mode", dim, self.ndim)
        self._check_not_empty("mode", axis)
        if not self.ndim:
            return self._picked("mode", 0, keepdim, self.argmax(0))
        values, order = self.transpose(axis, -1).sort(-1)
        begins = values[..., 1:].ne(values[..., :-1]).pad([None] * (self.ndim - 1) + [(1, 0)])
        ramp = self.arange(self.shape[axis], device=self.raw.device)
        length = ramp - begins.where(ramp, 0).cummax(-1)[0]
        place = order._at(self.ndim - 1, length.argmax(-1, True))
        return self._picked("mode", axis, keepdim, place.transpose(axis, -1))

    # --- equal elements ---------------------------------------------------------------------------

    def unique(
        self, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False,
    ) -> Any:  # fmt: skip
        """The distinct elements in order (each NaN is one); computed at once.

        return_inverse: also the index of each element among them, in self's shape. return_counts:
        also how often each occurs. With these, the result is a tuple. sorted=False has no effect.

        >>> [x.tolist() for x in Tensor([3, 1, 3]).unique(return_counts=True)]
        [[1, 3], [1, 2]]
        """
        values, _, inverse, counts = self._distinct()
        found = [values, *[inverse] * return_inverse, *[counts] * return_counts]
        return tuple(found) if len(found) > 1 else values

    def _distinct(self) -> tuple[Self, Self, Self, Self]:
        """Distinct elements in order, their first positions; each element's index in them; counts.
        """
        keys = flat = self.flatten()
        extent = flat._known_shape()[0]
        # Of many integers the host reads the range, because a sort takes a pass for each byte.
        if self.dtype.is_int and extent > 1 << 12:
            least, most = flat.min().stack(flat.max()).tolist()
            keys = (flat - least).cast(unsigned((most - least).bit_length()))
        values, order = keys.sort(0)
        order.realize()  # else the sort ran for what the host reads, and again for the results
        begins = values[1:].ne(values[:-1]).pad([(min(extent, 1), 0)], value=True)
        (starts,) = begins.nonzero(as_tuple=True)
        first = order._at(0, starts)
        number = begins.cumsum(0, dtype=dtypes.int32) - 1
        inverse = number.scatter(0, order, number).reshape(self.shape)
        counts = starts.diff(append=starts._operand(extent).reshape(1))
        return flat._at(0, first), first, inverse, counts

    def isin(self, test_elements: Any, *, invert: bool = False) -> Self:
        """True where an element is one of test_elements.

        >>> Tensor([1, 2, 3]).isin(Tensor([3, 1])).tolist()
        [True, False, True]
        """
        found = self.unsqueeze(-1).eq(self._operand(test_elements).flatten()).any(-1)
        return ~found if invert else found

    def bincount(self, weights: Core | None = None, minlength: int = 0) -> Self:
        """How often each of 0, 1, … occurs in a vector of integers ≥ 0, or the sum of its weights.

        The length is the largest element + 1, which the host reads, and at least minlength.

        >>> Tensor([0, 2, 2]).bincount().tolist()
        [1, 0, 2]
        """
        expect(self.ndim == 1 and self.dtype.is_int, "bincount", "a vector of integers",
               f"{self.dtype.name} {self.shape}", error=DTypeError)  # fmt: skip
        if weights is not None and weights.shape != self.shape:
            raise misfit("bincount", "one weight per element", self, weights)
        expect(minlength >= 0, "bincount", "an int ≥ 0", error=ValueError, minlength=minlength)
        ends = self.min().stack(self.max()).tolist() if self.shape[0] else [0, -1]
        expect(ends[0] >= 0, "bincount", "integers ≥ 0", ends[0], error=DomainError)
        length = max(ends[1] + 1, minlength)
        dtype = dtypes.int64 if weights is None else sum_dtype(weights.dtype)
        given = self.ones_like(dtype=dtype) if weights is None else weights
        return self.zeros(length, dtype=dtype, device=self.raw.device).scatter_add(0, self, given)

    def histc(self, bins: int = 100, min: Scalar = 0, max: Scalar = 0) -> Self:
        """How many elements lie in each of equal bins from min to max, in the dtype of `sum`.

        If min equals max, the bounds are self's smallest and largest elements, which must be finite
        (DomainError, raised when they are computed). Elements outside are not counted.

        >>> Tensor([1.0, 2.0, 1.0]).histc(4, 0, 3).tolist()
        [0.0, 2.0, 1.0, 0.0]
        """
        if bins < 1 or not 0 <= max - min < math.inf:
            raise ValueError(f"histc({bins}, {min}, {max}): expected bins ≥ 1 and finite min ≤ max")
        x = self.flatten().detach()
        x = x._wide() if self.dtype.is_float else x.cast(dtypes.float64)
        low, high = x._operand(min), x._operand(max)
        if min == max and 0 not in x.shape:
            most = sys.float_info.max
            ends = (end.cast(dtypes.float64) for end in (x.min(), x.max()))
            low, high = (
                end._within("histc", "not finite", "finite elements", -most, most).cast(x.dtype)
                for end in ends
            )
        alike = low.eq(high)
        low, high = alike.where(low - 1, low), alike.where(high + 1, high)
        place = ((x - low) * bins / (high - low)).floor().int()
        empty = self.zeros(bins, dtype=sum_dtype(self.dtype), device=self.raw.device)
        return empty.scatter_add(0, place.clip(0, bins - 1), (x >= low) & (x <= high))

    def searchsorted(
        self, values: Any, *, right: bool = False, side: str | None = None,
        sorter: Core | None = None,
    ) -> Self:  # fmt: skip
        """Positions (int32) to insert `values` at in self, which is sorted along its last axis.

        self is a vector, or has the leading dimensions of `values`. side="right" or right=True:
        behind equal elements instead of before them. sorter: positions that sort self, if it is not
        sorted. NaN comes after all numbers.

        >>> Tensor([1, 3, 5]).searchsorted(Tensor([3, 4])).tolist()
        [1, 2]
        """
        check_choice("searchsorted", (None, "left", "right"), side=side)
        wanted = self._operand(values)
        if not self.ndim or (self.ndim > 1 and self.shape[:-1] != wanted.shape[:-1]):
            expected = "a sorted vector, or equal leading dimensions"
            raise misfit("searchsorted", expected, f"values {wanted.shape} in {self.shape}")
        line = self if sorter is None else self.gather(-1, sorter)
        extent = self._known_shape()[-1]
        flat = wanted.flatten() if self.ndim == 1 else wanted
        place = flat.zeros_like(dtype=dtypes.int32)
        step, behind = 1 << max(extent.bit_length() - 1, 0), right or side == "right"
        while step and extent:  # a binary search: at most 31 steps
            probed = place + step
            value = line._at(self.ndim - 1, (probed - 1).clip(0, extent - 1))
            before = value <= flat if behind else value < flat
            before = before | (flat.isnan() if behind else flat.isnan() & ~value.isnan())
            place = ((probed <= extent) & before).where(probed, place)
            step >>= 1
        return place.reshape(wanted.shape)

    # --- sums -------------------------------------------------------------------------------------

    def count_nonzero(self, dim: Axes = None) -> Self:
        """How many elements are not 0, int64.

        >>> Tensor([0, 7, 2]).count_nonzero().item()
        2
        """
        return self.ne(0).sum(dim)

    def var_mean(
        self, dim: Axes = None, *, keepdim: bool = False, **options: Any
    ) -> tuple[Self, Self]:
        """Variance and mean; options as for `var`.

        >>> [x.item() for x in Tensor([1.0, 3.0]).var_mean()]
        [2.0, 2.0]
        """
        return self.var(dim, keepdim=keepdim, **options), self.mean(dim, keepdim)

    def cov(self, *, correction: Scalar = 1) -> Self:
        """The covariances (n, n) of n variables, the rows of self; for one variable its variance.

        >>> Tensor([[1.0, 3.0], [2.0, 6.0]]).cov().tolist()
        [[2.0, 4.0], [4.0, 8.0]]
        """
        expect(self.ndim <= 2, "cov", "(variables, observations)", self)
        rows = (self if self.ndim == 2 else self.reshape((1, -1)))._wide()
        away = rows - rows.mean(1, True)
        shares = away.matmul(away.T) / max(rows._known_shape()[1] - correction, 0)
        shares = shares.cast(self._float_dtype())
        return shares.reshape(()) if rows.shape[0] == 1 else shares

    def diff(
        self, n: int = 1, dim: int = -1, prepend: Self | None = None, append: Self | None = None
    ) -> Self:
        """Differences of neighbours along dim, n times, of prepend, self and append joined.

        >>> Tensor([1, 4, 9]).diff().tolist()
        [3, 5]
        """
        axis = axis_of("diff", dim, self.ndim, 0)
        expect(n >= 0, "diff", "an int ≥ 0", error=ValueError, n=n)
        if not n:
            return self.clone()
        result, *more = [part for part in (prepend, self, append) if part is not None]
        result = result.cat(*more, dim=axis) if more else result
        for _ in range(min(n, result._known_shape()[axis])):  # after which nothing is left
            extent = result._known_shape()[axis]
            first, last = min(extent, 1), max(extent - 1, 0)
            high, low = result._part(axis, first, extent), result._part(axis, 0, last)
            result = high.ne(low) if result.dtype.is_bool else high - low
        return self.clone() if result is self else result

    # --- norms ------------------------------------------------------------------------------------

    def norm(
        self, p: Scalar | str | None = 2, dim: Axes = None, keepdim: bool = False, *,
        dtype: DTypeLike = None,
    ) -> Self:  # fmt: skip
        """(Σ |x|^p)^(1/p) over dim; p as for `normalize`, or "fro", which is 2.

        >>> Tensor([3.0, 4.0]).norm().item()
        5.0
        """
        expect(not isinstance(p, str) or p == "fro", "norm", "a number or 'fro'; "
               "use linalg.matrix_norm for 'nuc'", error=ValueError, p=p)  # fmt: skip
        axes = axes_of("norm", dim, self.ndim)
        x = self if dtype is None else self.cast(dtype)
        found = x._wide()._norm(2 if p is None or isinstance(p, str) else p, axes, keepdim)
        return found.cast(x._float_dtype())

    # --- random draws from weights ----------------------------------------------------------

    @classmethod
    def randperm(cls, n: int, *, dtype: DTypeLike = None, device: str | None = None) -> Self:
        """0 … n − 1 in a random order; int32 unless dtype is given.

        All orders are equally likely, within 0.4 %.

        RangeError for a dtype that does not hold all of them.

        >>> Tensor.randperm(3).sort()[0].tolist()
        [0, 1, 2]
        """
        expect(n >= 0, f"randperm({n})", "an int ≥ 0")
        wanted = dtype_or(dtype, dtypes.int32)
        if n - 1 > (1 << (wanted.fraction + 1) if wanted.is_float else wanted.maximum):
            raise RangeError(f"randperm({n}) in {wanted.name}: expected a dtype that holds {n - 1}")
        first, second = (cls._of(word) for word in _draw("randperm", (n,), device))
        # So many bits that two elements have equal ones, and keep their order, in less than one of
        # 500 draws. (A sort takes a pass for each byte.)
        order = second.cast(unsigned(2 * n.bit_length() + 8 - 32)).argsort(0)  # int32
        order = order._at(0, first._at(0, order).argsort(0))
        return cls._made(order.cast(wanted).node, None, drawn=True)

    def multinomial(self, num_samples: int = 1, replacement: bool = False) -> Self:
        """Positions (int32) drawn with probabilities proportional to the weights in self.

        self is (categories,), or (rows, categories) to draw for each row. Weights are finite, ≥ 0
        and not all 0 in a row (DomainError, raised when they are computed). Without replacement no
        category is drawn twice (ValueError if there are too few), and one of weight 0 only if no
        others are left.

        >>> Tensor([0.0, 1.0]).multinomial().tolist()
        [1]
        """
        self._check_draws(num_samples, replacement)
        rows, categories = (1, *self.shape)[-2:]
        shape = (rows, num_samples if replacement else categories)
        first, second = map(self._new, _draw("multinomial", shape, self.raw.device))
        drawn = self._positions(first, second, num_samples, replacement)
        return self._made(drawn.node, None, drawn=True)

    def _positions(self, first: Self, second: Self, count: int, replacement: bool) -> Self:
        """The draws of `multinomial`, from given random words."""
        rows = self._weights()
        share = self._unit(first.node, second.node)
        if replacement:  # the first category whose running sum exceeds that part of the total
            until = rows.cumsum(1)
            total = until[:, -1:]
            place = (until.unsqueeze(1) <= (share * total).unsqueeze(-1)).sum(-1, dtype="int32")
            # rounding may have made share·total the total itself
            drawn = place.minimum((until < total).sum(-1, keepdim=True, dtype="int32"))
        else:  # the shortest of waiting times with these rates (Efraimidis and Spirakis 2006)
            times = -share.log() / rows
            drawn = times.topk(count, 1, False)[1] if count > 1 else times.argmin(1, True)
        return drawn.squeeze(0) if self.ndim == 1 else drawn

    def _weights(self) -> Self:
        """Shares of the largest weight of a row, (rows, categories); checked: all ≥ 0, one > 0."""
        rows = self.detach().cast(dtypes.float64)
        rows = rows.unsqueeze(0) if self.ndim == 1 else rows
        limits = sys.float_info
        rows = rows._within("multinomial", "not a weight", "finite numbers ≥ 0", 0.0, limits.max)
        largest = rows.max(1, keepdim=True)._within(
            "multinomial", "the largest weight of a row", "one > 0", limits.min, limits.max
        )
        # always true: makes the draws depend on the check; shares, because a sum may be infinite
        return (largest > 0).where(rows / largest, 0)

    def _check_draws(self, count: int, replacement: bool) -> None:
        if self.ndim not in (1, 2) or any(isinstance(e, Affine) or not e for e in self.shape):
            raise misfit("multinomial", "weights (categories,) or (rows, categories)", self)
        if self.dtype.is_bool:
            raise DTypeError("multinomial: expected numbers as weights, got bool; use .float()")
        if count < 1 or (not replacement and count > self.shape[-1]):  # type: ignore[operator]
            limit = "1 or more" if replacement else f"1 … {self.shape[-1]} without replacement"
            raise ValueError(f"multinomial(num_samples={count}): expected {limit}")

    def _unit(self, first: Any, second: Any) -> Self:
        """float64 between 0 and 1, both excluded."""
        high = self._new(first).cast(dtypes.float64)
        low = (self._new(second) >> 12).cast(dtypes.float64)
        return (high * 2.0**20 + low + 0.5) * 2.0**-52
