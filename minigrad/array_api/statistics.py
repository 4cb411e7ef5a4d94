"""Functions of the standard that reduce axes or accumulate along one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad.array_api import dtypes as kinds
from minigrad.array_api.array import Array
from minigrad.array_api.manipulation import _axes, _axis, concat
from minigrad.dtype import DType
from minigrad.tensor import Tensor

Axis = int | tuple[int, ...] | None


def _checked(name: str, x: Array, allowed: tuple[DType, ...]) -> Any:
    if x.dtype not in allowed:
        raise TypeError(
            f"{name} of an array of {x.dtype.name}: expected one of "
            f"{', '.join(dtype.name for dtype in allowed)}"
        )
    return x._tensor


def _reduced(x: Array, axis: Axis, name: str, keepdims: Any, reduce: Callable[..., Any]) -> Array:
    axes = _axes(name, axis, x.ndim)
    return Array._of(reduce(x._tensor, axes, keepdims) if axes else x._tensor)


def _wide(dtype: DType) -> DType:
    """Where sums of this dtype are kept: integers in 64 bits."""
    if dtype in kinds.FLOATING:
        return dtype
    return kinds.uint64 if dtype in kinds.UNSIGNED else kinds.int64


def sum(x: Array, /, *, axis: Axis = None, dtype: DType | None = None,
        keepdims: Any = False) -> Array:  # fmt: skip
    """The sum over axes; integers are added in 64 bits."""
    to = dtype or _wide(x.dtype)
    wide = Array._of(_checked("sum", x, kinds.NUMERIC).cast(to))
    return _reduced(wide, axis, "sum", keepdims, lambda t, a, k: t.sum(a, k, dtype=to))


def prod(x: Array, /, *, axis: Axis = None, dtype: DType | None = None,
         keepdims: Any = False) -> Array:  # fmt: skip
    """The product over axes; integers are multiplied in 64 bits."""
    to = dtype or _wide(x.dtype)
    wide = Array._of(_checked("prod", x, kinds.NUMERIC).cast(to))
    return _reduced(wide, axis, "prod", keepdims, lambda t, a, k: t.prod(a, k, dtype=to))


def max(x: Array, /, *, axis: Axis = None, keepdims: Any = False) -> Array:
    """The largest element; NaN wins."""
    _checked("max", x, kinds.NUMERIC)
    return _reduced(x, axis, "max", keepdims, Tensor.max)


def min(x: Array, /, *, axis: Axis = None, keepdims: Any = False) -> Array:
    """The smallest element; NaN wins."""
    _checked("min", x, kinds.NUMERIC)
    return _reduced(x, axis, "min", keepdims, Tensor.min)


def mean(x: Array, /, *, axis: Axis = None, keepdims: Any = False) -> Array:
    """The arithmetic mean."""
    _checked("mean", x, kinds.FLOATING)
    return _reduced(x, axis, "mean", keepdims, Tensor.mean)


def var(x: Array, /, *, axis: Axis = None, correction: float = 0.0,
        keepdims: Any = False) -> Array:  # fmt: skip
    """The mean square distance from the mean, over N − correction."""
    tensor = _checked("var", x, kinds.FLOATING)
    axes = _axes("var", axis, x.ndim)
    count = 1
    for one in axes:
        count *= x.shape[one]
    if not axes:
        return Array._of(tensor * 0)
    distances = (tensor - tensor.mean(axes, True)).square().sum(axes, keepdims)
    left = count - correction
    return Array._of(distances / left if left > 0 else distances * float("inf"))


def std(x: Array, /, *, axis: Axis = None, correction: float = 0.0,
        keepdims: Any = False) -> Array:  # fmt: skip
    """The square root of `var`."""
    return Array._of(var(x, axis=axis, correction=correction, keepdims=keepdims)._tensor.sqrt())


def any(x: Array, /, *, axis: Axis = None, keepdims: Any = False) -> Array:
    """Whether some element is not zero."""
    true = Array._of(x._tensor.ne(0) if x.dtype is not kinds.bool else x._tensor)
    return _reduced(true, axis, "any", keepdims, Tensor.any)


def all(x: Array, /, *, axis: Axis = None, keepdims: Any = False) -> Array:
    """Whether no element is zero."""
    true = Array._of(x._tensor.ne(0) if x.dtype is not kinds.bool else x._tensor)
    return _reduced(true, axis, "all", keepdims, Tensor.all)


def count_nonzero(x: Array, /, *, axis: Axis = None, keepdims: Any = False) -> Array:
    """How many elements are not zero."""
    return sum(Array._of(x._tensor.ne(0).cast(kinds.int64)), axis=axis, keepdims=keepdims)


def argmax(x: Array, /, *, axis: int | None = None, keepdims: Any = False) -> Array:
    """Where the largest element is, the first of equals; of the flat array with axis=None."""
    return _place(x, axis, keepdims, "argmax", Tensor.argmax)


def argmin(x: Array, /, *, axis: int | None = None, keepdims: Any = False) -> Array:
    """Where the smallest element is, the first of equals; of the flat array with axis=None."""
    return _place(x, axis, keepdims, "argmin", Tensor.argmin)


def _place(x: Array, axis: int | None, keepdims: Any, name: str, find: Any) -> Array:
    tensor = _checked(name, x, kinds.NUMERIC)
    if axis is None:
        flat = find(tensor.flatten(), 0)
        found = flat.reshape((1,) * x.ndim) if keepdims else flat
    else:
        found = find(tensor, _axis(name, axis, x.ndim), keepdims)
    return Array._of(found.cast(kinds.DEFAULT_INTEGER))


def _cumulative(
    name: str, x: Array, axis: int | None, dtype: DType | None, initial: Any, start: int
) -> Array:
    tensor = _checked(name, x, kinds.NUMERIC)
    if axis is None:
        if x.ndim != 1:
            raise ValueError(f"{name} of shape {x.shape}: expected an axis")
        axis = 0
    place = _axis(name, axis, x.ndim)
    wide = tensor.cast(dtype or _wide(x.dtype))
    result = Array._of(wide.cumsum(place) if start == 0 else wide.cumprod(place))
    if not initial:
        return result
    shape = (*x.shape[:place], 1, *x.shape[place + 1 :])
    first = Tensor.full(shape, start, dtype=result.dtype, device=x.device)
    return concat([Array._of(first), result], axis=place)


def cumulative_sum(x: Array, /, *, axis: int | None = None, dtype: DType | None = None,
                   include_initial: Any = False) -> Array:  # fmt: skip
    """Sums of all elements up to each one along an axis; with include_initial from 0 on."""
    return _cumulative("cumulative_sum", x, axis, dtype, include_initial, 0)


def cumulative_prod(x: Array, /, *, axis: int | None = None, dtype: DType | None = None,
                    include_initial: Any = False) -> Array:  # fmt: skip
    """Products of all elements up to each one along an axis; with include_initial from 1 on."""
    return _cumulative("cumulative_prod", x, axis, dtype, include_initial, 1)


def diff(
    x: Array, /, *, axis: int = -1, n: int = 1, prepend: Array | None = None,
    append: Array | None = None,
) -> Array:  # fmt: skip
    """The n-th differences of neighbours along an axis."""
    place = _axis("diff", axis, x.ndim)
    if n < 0:
        raise ValueError(f"diff(n={n}): expected a number of differences from 0 on")
    parts = [part for part in (prepend, x, append) if part is not None]
    joined = concat(parts, axis=place) if len(parts) > 1 else x
    return Array._of(joined._tensor.diff(n, place))
