"""Functions of the standard that sort, search, and treat arrays as sets."""

from __future__ import annotations

from typing import Any, NamedTuple

from minigrad.array_api import dtypes as kinds
from minigrad.array_api.array import Array
from minigrad.array_api.manipulation import _axis, _check_integers


def sort(x: Array, /, *, axis: int = -1, descending: Any = False, stable: Any = True) -> Array:
    """Elements in order along an axis."""
    return Array._of(x._tensor.sort(_axis("sort", axis, x.ndim), descending)[0])


def argsort(x: Array, /, *, axis: int = -1, descending: Any = False, stable: Any = True) -> Array:
    """The indices that sort along an axis; equal elements keep their order."""
    order = x._tensor.sort(_axis("argsort", axis, x.ndim), descending)[1]
    return Array._of(order.cast(kinds.DEFAULT_INTEGER))


def nonzero(x: Array, /) -> tuple[Array, ...]:
    """Indices of the elements that are not zero, one array per dimension."""
    if not x.ndim:
        raise ValueError("nonzero of an array without dimensions")
    places = x._tensor.nonzero().cast(kinds.DEFAULT_INTEGER)
    return tuple(Array._of(places[:, axis]) for axis in range(x.ndim))


def searchsorted(
    x1: Array, x2: Array, /, *, side: str = "left", sorter: Array | None = None
) -> Array:
    """Where each element of x2 would be inserted into the sorted vector x1: a binary search."""
    if side not in ("left", "right"):
        raise ValueError(f"searchsorted(side={side!r}): expected 'left' or 'right'")
    if x1.ndim != 1 or (sorter is not None and sorter.shape != x1.shape):
        order = "" if sorter is None else f", sorted by indices of shape {sorter.shape}"
        raise ValueError(f"searchsorted in an array of shape {x1.shape}{order}: expected vectors")
    if sorter is not None:
        _check_integers("searchsorted", sorter)
    common = kinds.result_type(x1.dtype, x2.dtype)
    line = x1._tensor.cast(common)
    place = (line if sorter is None else line[sorter._tensor]).searchsorted(
        x2._tensor.cast(common), side=side
    )
    return Array._of(place.cast(kinds.DEFAULT_INTEGER))


class UniqueAll(NamedTuple):
    """What `unique_all` gives."""

    values: Array
    indices: Array
    inverse_indices: Array
    counts: Array


class UniqueCounts(NamedTuple):
    """What `unique_counts` gives."""

    values: Array
    counts: Array


class UniqueInverse(NamedTuple):
    """What `unique_inverse` gives."""

    values: Array
    inverse_indices: Array


def unique_all(x: Array, /) -> UniqueAll:
    """The distinct elements in order, where each is first, which one each element is, how many."""
    values, *places = x._tensor._distinct()
    return UniqueAll(
        Array._of(values), *(Array._of(place.cast(kinds.DEFAULT_INTEGER)) for place in places)
    )


def unique_values(x: Array, /) -> Array:
    """The distinct elements in order."""
    return unique_all(x).values


def unique_counts(x: Array, /) -> UniqueCounts:
    """The distinct elements in order, and how many of each there are."""
    found = unique_all(x)
    return UniqueCounts(found.values, found.counts)


def unique_inverse(x: Array, /) -> UniqueInverse:
    """The distinct elements in order, and which of them each element of x is."""
    found = unique_all(x)
    return UniqueInverse(found.values, found.inverse_indices)
