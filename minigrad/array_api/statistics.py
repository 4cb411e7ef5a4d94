"""Functions of the standard that reduce axes or accumulate along one."""

from __future__ import annotations

from typing import Any, NamedTuple

from minigrad.array_api import dtypes as kinds
from minigrad.array_api.array import Array, _check
from minigrad.array_api.manipulation import concat
from minigrad.dtype import DType, DTypeLike
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import Axes, axes_of, axis_of


def _reduced(
    name: str, allowed: tuple[DType, ...], x: Array, axis: Axes, keepdims: bool, **options: Any
) -> Array:
    _check(name, allowed, x)
    reduce, axes = getattr(x._tensor, name), axes_of(name, axis, x.ndim, 0)
    return Array._of(reduce(axes, keepdim=keepdims, **options))


def sum(x: Array, /, *, axis: Axes = None, dtype: DTypeLike = None,
        keepdims: bool = False) -> Array:  # fmt: skip
    """Sum over axes; integers are added in 64 bits."""
    return _reduced("sum", kinds.NUMERIC, x, axis, keepdims, dtype=dtype)


def prod(x: Array, /, *, axis: Axes = None, dtype: DTypeLike = None,
         keepdims: bool = False) -> Array:  # fmt: skip
    """Product over axes; integers are multiplied in 64 bits."""
    return _reduced("prod", kinds.NUMERIC, x, axis, keepdims, dtype=dtype)


def max(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """The largest element; NaN wins."""
    return _reduced("max", kinds.NUMERIC, x, axis, keepdims)


def min(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """The smallest element; NaN wins."""
    return _reduced("min", kinds.NUMERIC, x, axis, keepdims)


def mean(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """The arithmetic mean."""
    return _reduced("mean", kinds.FLOATING, x, axis, keepdims)


def var(
    x: Array, /, *, axis: Axes = None, correction: float = 0.0, keepdims: bool = False
) -> Array:
    """Sum of squared deviations from the mean, over N − correction."""
    return _reduced("var", kinds.FLOATING, x, axis, keepdims, correction=correction)


def std(
    x: Array, /, *, axis: Axes = None, correction: float = 0.0, keepdims: bool = False
) -> Array:
    """The square root of `var`."""
    return _reduced("std", kinds.FLOATING, x, axis, keepdims, correction=correction)


def any(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """Whether any element is not zero."""
    return _reduced("any", kinds.ALL, x, axis, keepdims)


def all(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """Whether no element is zero."""
    return _reduced("all", kinds.ALL, x, axis, keepdims)


def count_nonzero(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """How many elements are not zero."""
    return sum(Array._of(x._tensor.ne(0).cast(kinds.int64)), axis=axis, keepdims=keepdims)


def argmax(x: Array, /, *, axis: int | None = None, keepdims: bool = False) -> Array:
    """Position of the largest element (the first of equals); in the flat array for axis=None."""
    return _place("argmax", x, axis, keepdims)


def argmin(x: Array, /, *, axis: int | None = None, keepdims: bool = False) -> Array:
    """Position of the smallest element (the first of equals); in the flat array for axis=None."""
    return _place("argmin", x, axis, keepdims)


def _place(name: str, x: Array, axis: int | None, keepdims: bool) -> Array:
    _check(name, kinds.NUMERIC, x)
    place = None if axis is None else axis_of(name, axis, x.ndim, 0)
    return Array._of(getattr(Tensor, name)(x._tensor, place, keepdims).cast(kinds.DEFAULT_INTEGER))


def _cumulative(
    name: str, x: Array, axis: int | None, dtype: DTypeLike, initial: bool, start: int
) -> Array:
    _check(name, kinds.NUMERIC, x)
    if axis is None and x.ndim != 1:
        raise ValueError(f"{name}: expected axis=, got none for shape {x.shape}")
    place = axis_of(name, axis or 0, x.ndim, 0)
    run = x._tensor.cumsum if start == 0 else x._tensor.cumprod
    result = Array._of(run(place, dtype=dtype))
    if not initial:
        return result
    shape = (*x.shape[:place], 1, *x.shape[place + 1 :])
    first = Tensor.full(shape, start, dtype=result.dtype, device=x.device)
    return concat([Array._of(first), result], axis=place)


def cumulative_sum(x: Array, /, *, axis: int | None = None, dtype: DTypeLike = None,
                   include_initial: bool = False) -> Array:  # fmt: skip
    """Running sums along an axis; include_initial puts a 0 first."""
    return _cumulative("cumulative_sum", x, axis, dtype, include_initial, 0)


def cumulative_prod(x: Array, /, *, axis: int | None = None, dtype: DTypeLike = None,
                    include_initial: bool = False) -> Array:  # fmt: skip
    """Running products along an axis; include_initial puts a 1 first."""
    return _cumulative("cumulative_prod", x, axis, dtype, include_initial, 1)


def diff(
    x: Array, /, *, axis: int = -1, n: int = 1, prepend: Array | None = None,
    append: Array | None = None,
) -> Array:  # fmt: skip
    """Differences of neighbours along an axis, taken n times."""
    place = axis_of("diff", axis, x.ndim, 0)
    parts = [part for part in (prepend, x, append) if part is not None]
    joined = concat(parts, axis=place) if len(parts) > 1 else x
    return Array._of(joined._tensor.diff(n, place))


def sort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    """The elements in sorted order along an axis."""
    return Array._of(x._tensor.sort(axis_of("sort", axis, x.ndim, 0), descending)[0])


def argsort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    """The indices that sort an axis; equal elements keep their order."""
    order = x._tensor.sort(axis_of("argsort", axis, x.ndim, 0), descending)[1]
    return Array._of(order.cast(kinds.DEFAULT_INTEGER))


def nonzero(x: Array, /) -> tuple[Array, ...]:
    """Indices of the elements that are not zero, one array per dimension."""
    if not x.ndim:
        raise ValueError("nonzero: expected an array with at least 1 dimension, got 0")
    places = x._tensor.nonzero(as_tuple=True)
    return tuple(Array._of(place.cast(kinds.DEFAULT_INTEGER)) for place in places)


def searchsorted(
    x1: Array, x2: Array, /, *, side: str = "left", sorter: Array | None = None
) -> Array:
    """Positions at which elements of x2 would be inserted into the sorted vector x1."""
    if x1.ndim != 1 or (sorter is not None and sorter.shape != x1.shape):
        by = "" if sorter is None else f" and a sorter {sorter.shape}"
        raise ValueError(f"searchsorted: expected a vector and its sorter, got {x1.shape}{by}")
    common = kinds.result_type(x1.dtype, x2.dtype)
    order = None if sorter is None else sorter._tensor
    place = x1._tensor.cast(common).searchsorted(x2._tensor.cast(common), side=side, sorter=order)
    return Array._of(place.cast(kinds.DEFAULT_INTEGER))


class UniqueAll(NamedTuple):
    """The result of `unique_all`."""

    values: Array
    indices: Array
    inverse_indices: Array
    counts: Array


class UniqueCounts(NamedTuple):
    """The result of `unique_counts`."""

    values: Array
    counts: Array


class UniqueInverse(NamedTuple):
    """The result of `unique_inverse`."""

    values: Array
    inverse_indices: Array


def unique_all(x: Array, /) -> UniqueAll:
    """Distinct elements in order, their first positions, each element's index in them, counts."""
    values, *places = x._tensor._distinct()
    return UniqueAll(Array._of(values), *(Array._of(p.cast(kinds.DEFAULT_INTEGER)) for p in places))


def unique_values(x: Array, /) -> Array:
    """The distinct elements in order."""
    return unique_all(x).values


def unique_counts(x: Array, /) -> UniqueCounts:
    """The distinct elements in order, and the count of each."""
    found = unique_all(x)
    return UniqueCounts(found.values, found.counts)


def unique_inverse(x: Array, /) -> UniqueInverse:
    """The distinct elements in order, and the index in them of each element of x."""
    found = unique_all(x)
    return UniqueInverse(found.values, found.inverse_indices)


check_functions(globals())
