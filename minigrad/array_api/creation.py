"""Functions of the standard that create arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.array_api import dtypes as kinds
from minigrad.array_api.array import Array, _check
from minigrad.dtype import DType, DTypeLike, dtype_or
from minigrad.errors import expect
from minigrad.tensor import Tensor, hostdata
from minigrad.tensor.arguments import check_functions


def asarray(
    obj: Any, /, *, dtype: DTypeLike = None, device: str | None = None, copy: bool | None = None
) -> Array:
    """An array from numbers, nested sequences, an array, or an object with DLPack or `__array__`.

    Python ints give int64 and floats float32. copy=False raises ValueError if a copy is needed.
    """
    if isinstance(obj, Array):
        found = astype(obj, dtype_or(dtype, obj.dtype), copy=bool(copy), device=device)
        if copy is False and found is not obj:
            raise ValueError("asarray(copy=False): dtype or device differ; use copy=None")
        return found
    if copy is False:
        if hasattr(obj, "__dlpack__") and dtype is None:
            return Array._of(Tensor.from_dlpack(obj, device=device, copy=False))
        raise ValueError(f"asarray(copy=False): cannot share a {type(obj).__name__}; use copy=None")
    obj = _plain(obj)
    return Array._of(Tensor(obj, dtype=_wanted(dtype, obj), device=device))


def _plain(obj: Any) -> Any:
    """Nested sequences with Arrays in them converted to Python numbers."""
    if isinstance(obj, (list, tuple)):
        return [_plain(part) for part in obj]
    return obj._tensor.tolist() if isinstance(obj, Array) else obj


def _wanted(dtype: DTypeLike, obj: Any) -> DTypeLike:
    """dtype, or the default for Python numbers; None for an array, which keeps its own."""
    if dtype is not None or not isinstance(obj, (bool, int, float, list)):
        return dtype
    *_, found = hostdata.read(obj, None)
    return kinds.DEFAULT_INTEGER if found is kinds.int32 else found


def from_dlpack(x: Any, /, *, device: str | None = None, copy: bool | None = None) -> Array:
    """An array made of another library's; see `Tensor.from_dlpack`."""
    return Array._of(Tensor.from_dlpack(x, device=device, copy=copy))


def arange(
    start: float, /, stop: float | None = None, step: float = 1, *, dtype: DTypeLike = None,
    device: str | None = None,
) -> Array:  # fmt: skip
    """start, start + step, …, before stop."""
    wanted = _wanted(dtype, [start, step] if stop is None else [start, stop, step])
    return Array._of(Tensor.arange(start, stop, step, dtype=wanted, device=device))


def linspace(
    start: float, stop: float, /, num: int, *, dtype: DTypeLike = None,
    device: str | None = None, endpoint: bool = True,
) -> Array:  # fmt: skip
    """num numbers from start to stop; endpoint=False leaves out stop."""
    wanted = dtype_or(dtype, kinds.DEFAULT_FLOAT)
    expect(num >= 0, "linspace", "num ≥ 0", error=ValueError, num=num)
    steps = num if endpoint else num + 1
    return Array._of(Tensor.linspace(start, stop, steps, dtype=wanted, device=device)[:num])


def full(
    shape: int | Sequence[int], fill_value: Any, *, dtype: DTypeLike = None,
    device: str | None = None,
) -> Array:  # fmt: skip
    """An array filled with one value."""
    wanted = _wanted(dtype, fill_value)
    return Array._of(Tensor.full(shape, fill_value, dtype=wanted, device=device))


def zeros(
    shape: int | Sequence[int], *, dtype: DTypeLike = None, device: str | None = None
) -> Array:
    """An array of zeros, float32 unless dtype is given."""
    return full(shape, 0, dtype=dtype_or(dtype, kinds.DEFAULT_FLOAT), device=device)


def ones(
    shape: int | Sequence[int], *, dtype: DTypeLike = None, device: str | None = None
) -> Array:
    """An array of ones, float32 unless dtype is given."""
    return full(shape, 1, dtype=dtype_or(dtype, kinds.DEFAULT_FLOAT), device=device)


def full_like(
    x: Array, /, fill_value: Any, *, dtype: DTypeLike = None, device: str | None = None
) -> Array:
    """An array filled with one value, in the shape of x."""
    where = x.device if device is None else device
    return full(x.shape, fill_value, dtype=dtype_or(dtype, x.dtype), device=where)


def zeros_like(x: Array, /, *, dtype: DTypeLike = None, device: str | None = None) -> Array:
    """Zeros in the shape of x."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Array, /, *, dtype: DTypeLike = None, device: str | None = None) -> Array:
    """Ones in the shape of x."""
    return full_like(x, 1, dtype=dtype, device=device)


empty, empty_like = zeros, zeros_like  # their values are unspecified


def eye(
    n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: DTypeLike = None,
    device: str | None = None,
) -> Array:  # fmt: skip
    """A matrix with ones on the k-th diagonal, else zeros."""
    if n_rows < 0 or (n_cols or 0) < 0:
        raise ValueError(f"eye({n_rows}, {n_cols}): expected sizes ≥ 0")
    rows = Tensor.arange(n_rows, device=device).unsqueeze(1)
    columns = Tensor.arange(n_rows if n_cols is None else n_cols, device=device)
    return Array._of((columns - rows).eq(k).cast(dtype_or(dtype, kinds.DEFAULT_FLOAT)))


def meshgrid(*arrays: Array, indexing: str = "xy") -> list[Array]:
    """Coordinate arrays from vectors."""
    if not arrays:
        return []
    _check("meshgrid", kinds.ALL, *arrays)
    tensors = [array._tensor for array in arrays]
    return [Array._of(t) for t in tensors[0].meshgrid(*tensors[1:], indexing=indexing)]


def tril(x: Array, /, *, k: int = 0) -> Array:
    """The lower triangles: zeros above the k-th diagonal."""
    return Array._of(x._tensor.tril(k))


def triu(x: Array, /, *, k: int = 0) -> Array:
    """The upper triangles: zeros below the k-th diagonal."""
    return Array._of(x._tensor.triu(k))


def astype(
    x: Array, dtype: DType | str, /, *, copy: bool = True, device: str | None = None
) -> Array:
    """x in another dtype."""
    if dtype is x.dtype and device in (None, x.device):
        return Array._of(x._tensor.clone()) if copy else x
    there = x if device is None else x.to_device(device)
    return Array._of(there._tensor.cast(dtype))


check_functions(globals())
