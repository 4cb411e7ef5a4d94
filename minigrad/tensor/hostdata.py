"""Data of the host: Python numbers, nested lists and arrays in; bytes, lists and arrays out.

Only who gives or asks for an array, a text or a picture imports numpy.
"""

from __future__ import annotations

import array
import math
import struct
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from minigrad.dtype import ALL, BY_NAME, DType, check_holds, convert, dtype_of, dtypes, number_bytes
from minigrad.errors import DTypeError, ShapeError, expect
from minigrad.graph.bounds import users_line
from minigrad.graph.symbolic import Integer, high
from minigrad.settings import thread

_BY_FORMAT = {dtype.code: dtype for dtype in ALL if dtype.code} | {
    "c": dtypes.uint8, "l": BY_NAME[f"int{8 * struct.calcsize('l')}"],
    "L": BY_NAME[f"uint{8 * struct.calcsize('L')}"],
}  # fmt: skip
_NUMBERS = (int, float, bool)  # no derived classes: numpy's numbers have a dtype
DEEPEST = 64  # levels of nested lists, as in numpy and PyTorch
SAMPLED, BINS = 1 << 16, 32  # about so many numbers are counted by a histogram of so many bars
HostArray = tuple[bytes, tuple[int, ...], DType]


def read(data: Any, dtype: DType | None) -> HostArray:
    """Row-major bytes, shape and dtype of anything that a user may pass as data.

    dtype: what the caller asked for. Values of Python lists are converted to it here; arrays keep
    their own dtype.
    """
    if type(data) in _NUMBERS:
        dtype = dtype or dtype_of("Tensor(…)", (data,))
        check_holds("Tensor(…)", dtype, data)
        return pack((data,), dtype), (), dtype
    if hasattr(data, "__array__") or hasattr(data, "__array_interface__"):
        return _read_array(data)
    if isinstance(data, (bytes, bytearray, memoryview, array.array)):
        view = memoryview(data)
        found = _BY_FORMAT.get(view.format)
        if found is None:
            raise DTypeError(f"Tensor(buffer of format {view.format!r}): expected plain numbers")
        return view.tobytes(), tuple(view.shape or ()), found
    return _read_nested(data, dtype)


@cache
def known(dtype: Any) -> DType | None:
    """Our dtype for numpy's, or None; asking numpy for the name is slow."""
    return BY_NAME.get(dtype.name)


def _read_array(data: Any) -> HostArray:
    import numpy as np

    if str(getattr(data, "dtype", "")) == "torch.bfloat16":  # numpy does not know it
        wide = np.asarray(data.float())
        halves = np.right_shift(wide.view("uint32"), 16).astype("uint16")
        return halves.tobytes(), wide.shape, dtypes.bfloat16
    array = np.asarray(data)
    if hasattr(data, "filled") and np.any(data.mask):
        raise DTypeError("Tensor(masked array): expected numbers everywhere; write x.filled(0)")
    dtype = known(array.dtype)
    if dtype is None:
        how = "; use array.astype(np.float32)" if array.dtype.kind == "O" else ""
        raise DTypeError(
            f"Tensor(array of {array.dtype}): expected bool, an integer or a float dtype "
            f"({', '.join(BY_NAME)}){how}"
        )
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return array.tobytes(), array.shape, dtype


def _read_nested(data: Any, dtype: DType | None) -> HostArray:
    """Bytes, shape and dtype of nested lists of numbers, level by level."""
    level: list[Any] = [data]
    shape: list[int] = []
    while any(isinstance(value, (list, tuple, range)) for value in level):
        expect(len(shape) < DEEPEST, "Tensor(nested list)",
               f"at most {DEEPEST} levels, and no list that contains itself")  # fmt: skip
        lengths = {len(x) if isinstance(x, (list, tuple, range)) else -1 for x in level}
        if len(lengths) > 1:
            found = sorted(n for n in lengths if n >= 0)
            what = "a number" if -1 in lengths else f"lists of {found[1]}"
            raise ShapeError(
                f"Tensor(nested list): expected lists of equal lengths at depth {len(shape)}, got "
                f"lists of {found[0]} and {what}"
            )
        shape.append(lengths.pop())
        level = [value for part in level for value in part]
        arrays = [x for x in level if hasattr(x, "tolist")]
        if arrays:
            _warn_of_gradients(arrays)
            level = [x.tolist() if hasattr(x, "tolist") else x for x in level]
    for value in level:
        if not isinstance(value, (bool, int, float)):
            how = "; write x is None to test for None" if value is None else ""
            how = "; give each text a number, as names.index(x)" if isinstance(value, str) else how
            raise DTypeError(f"Tensor({type(value).__name__}): expected a number, nested lists of "
                             f"numbers, an array or a buffer{how}")  # fmt: skip
    if dtype is None:
        dtype = dtype_of("Tensor(…)", level)
    else:
        check_holds("Tensor(…)", dtype, *level)
    return pack(level, dtype), tuple(shape), dtype


def _warn_of_gradients(arrays: list[Any]) -> None:
    """Warn if one is a tensor whose gradient is lost."""
    tensors = [x for x in arrays if hasattr(x, "_descends_from_leaves")]
    if thread.gradients and any(tensor._descends_from_leaves() for tensor in tensors):
        said = ("Tensor(a list of tensors) copies their values without gradients; use "
                "Tensor.stack(them) to keep the gradients")  # fmt: skip
        warnings.warn_explicit(said, UserWarning, *users_line())


def pack(values: Sequence[int | float | bool], dtype: DType) -> bytes:
    """Numbers as the bytes of a dtype, converted as CAST converts."""
    if dtype is dtypes.bfloat16:
        return b"".join([number_bytes(value, dtype) for value in values])
    form = f"{len(values)}{dtype.code}"
    try:
        return struct.pack(form, *values)
    except (struct.error, OverflowError):  # floats for integers, or a number that does not fit
        return struct.pack(form, *(convert(value, dtype) for value in values))


def unpack(data: bytes | bytearray, dtype: DType) -> list[Any]:
    """The inverse of `pack`."""
    if dtype is dtypes.bfloat16:
        wide = array.array("I", [bits << 16 for bits in array.array("H", bytes(data))])
        return array.array("f", wide.tobytes()).tolist()
    return list(struct.unpack(f"{len(data) // dtype.itemsize}{dtype.code}", data))


def nest(values: list[Any], shape: Sequence[int]) -> Any:
    """A flat list as nested lists of shape `shape`."""
    if not shape:
        return values[0]
    for axis in range(len(shape) - 1, 0, -1):
        extent, count = shape[axis], math.prod(shape[:axis])
        values = [values[i * extent : (i + 1) * extent] for i in range(count)]
    return values


def crop(
    data: bytearray, reserved: Sequence[Integer], shape: Sequence[int], itemsize: int
) -> bytearray:
    """The bytes of the leading part `shape` of an array with room for its largest symbolic extents.
    """
    upper = [high(extent) for extent in reserved]
    if list(shape) == upper:
        return data
    import numpy as np

    whole = np.frombuffer(data, f"V{itemsize}").reshape(upper)
    return bytearray(whole[tuple(map(slice, shape))].tobytes())


def to_numpy(data: bytearray, shape: Sequence[int], dtype: DType) -> Any:
    """A numpy array that owns the bytes (bfloat16 through ml_dtypes)."""
    import numpy as np

    if dtype is dtypes.bfloat16:
        import ml_dtypes  # noqa: F401, which tells numpy what this name is

    return np.frombuffer(data, dtype.name).reshape(tuple(shape))


def text(array: Any, edge: int) -> str:
    """An array as numpy prints it, with at most `edge` elements at each end of a dimension."""
    import numpy as np

    found = np.array2string(array, separator=", ", threshold=0, edgeitems=edge)
    return f"\n{found}" if "\n" in found else f" {found}"


def heights(finite: Any, highest: int) -> list[int]:
    """The heights of the bars of a histogram of finite float64 numbers."""
    import numpy as np

    most = np.abs(finite).max() or 1  # divided by this, no range is infinite
    counts = np.histogram(finite / most, BINS)[0]
    return [int(bar) for bar in (highest * counts / counts.max()).round()]


def histogram(array: Any) -> str:
    """The distribution of numbers as a small SVG with a line below; "" if all are equal."""
    import numpy as np

    step = max(-(-array.size // SAMPLED), 1)
    some = array.reshape(-1)[::step]
    finite = some[np.isfinite(some)].astype(np.float64)
    if not finite.size or finite.min() == finite.max():
        return ""
    said = f"{finite.min():.4g} … {finite.max():.4g}, mean {finite.mean():.4g}"
    said += f"; {some.size - finite.size} of them not finite" if finite.size < some.size else ""
    said += f" (of every {step}th)" if step > 1 else ""
    bars = "".join(
        f'<rect x="{6 * place}" y="{40 - height}" width="5" height="{height}"/>'
        for place, height in enumerate(heights(finite, 40))
    )
    return (
        f'<div><svg width="{6 * BINS}" height="40" fill="currentColor" role="img" '
        f'aria-label="histogram: {said}">{bars}</svg><br><small>{said}</small></div>'
    )
