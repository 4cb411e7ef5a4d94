"""Dtypes of the standard: their kinds, limits, and how two of them combine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minigrad.device import Device
from minigrad.dtype import DType, promote
from minigrad.dtype import dtypes as every
from minigrad.errors import expect

VERSIONS = ("2022.12", "2023.12", "2024.12")

bool = every.bool
int8, int16, int32, int64 = every.int8, every.int16, every.int32, every.int64
uint8, uint16, uint32, uint64 = every.uint8, every.uint16, every.uint32, every.uint64
float32, float64 = every.float32, every.float64

SIGNED = (int8, int16, int32, int64)
UNSIGNED = (uint8, uint16, uint32, uint64)
INTEGER = SIGNED + UNSIGNED
# beyond the standard: minigrad has two more float dtypes, which combine with the standard's
FLOATING = (float32, float64, every.float16, every.bfloat16)
NUMERIC = INTEGER + FLOATING
INTEGER_OR_BOOL = (bool, *INTEGER)
ALL = (bool, *NUMERIC)
DEFAULT_INTEGER, DEFAULT_FLOAT = int64, float32
_KINDS = {
    "bool": (bool,), "signed integer": SIGNED, "unsigned integer": UNSIGNED,
    "integral": INTEGER, "real floating": FLOATING, "complex floating": (), "numeric": NUMERIC,
}  # fmt: skip


@dataclass(frozen=True)
class IntegerLimits:
    """The result of `iinfo`."""

    bits: int
    max: int
    min: int
    dtype: DType


@dataclass(frozen=True)
class FloatLimits:
    """The result of `finfo`."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


def _dtype_of(value: Any) -> DType:
    """A dtype itself, or the dtype of an array."""
    found = value if isinstance(value, DType) else getattr(value, "dtype", None)
    if not isinstance(found, DType):
        raise TypeError(f"expected a dtype or an array, got {value!r}")
    return found


def iinfo(type: Any, /) -> IntegerLimits:
    """The limits of an integer dtype (or an array's dtype)."""
    dtype = _dtype_of(type)
    expect(dtype in INTEGER, f"iinfo({dtype.name})", "an integer dtype", error=TypeError)
    return IntegerLimits(dtype.bits, int(dtype.maximum), int(dtype.minimum), dtype)


def finfo(type: Any, /) -> FloatLimits:
    """The limits of a floating-point dtype (or an array's dtype)."""
    dtype = _dtype_of(type)
    expect(dtype in FLOATING, f"finfo({dtype.name})", "a floating-point dtype", error=TypeError)
    eps, exponent = 2.0**-dtype.fraction, (1 << (dtype.bits - 2 - dtype.fraction)) - 1
    largest = (2.0 - eps) * 2.0**exponent
    return FloatLimits(dtype.bits, eps, largest, -largest, 2.0 ** (1 - exponent), dtype)


def isdtype(dtype: DType, kind: Any) -> Any:
    """Whether a dtype equals another, is of a kind such as "integral", or of one of several."""
    expect(isinstance(dtype, DType), f"isdtype({dtype!r})", "a dtype, as float32", error=TypeError)
    if isinstance(kind, tuple):
        return any(isdtype(dtype, one) for one in kind)
    if isinstance(kind, str):
        if kind not in _KINDS:
            raise ValueError(f"isdtype(kind={kind!r}): expected one of {', '.join(_KINDS)}")
        return dtype in _KINDS[kind]
    return dtype is _dtype_of(kind)


def _combine(one: DType, other: DType) -> DType:
    pair = {one, other}
    alike = len(pair) == 1 or any(pair <= {*kind} for kind in (FLOATING, INTEGER))
    if not alike or (uint64 in pair and not pair.isdisjoint(SIGNED)):
        raise TypeError(
            f"cannot promote {one.name} and {other.name}: the standard defines no common dtype; "
            "use astype"
        )
    return promote(one, other)


def result_type(*arrays_and_dtypes: Any) -> DType:
    """The dtype in which arrays, dtypes and Python numbers combine."""
    known = [x for x in arrays_and_dtypes if not isinstance(x, (int, float))]
    numbers = [x for x in arrays_and_dtypes if isinstance(x, (int, float))]
    expect(known, "result_type", "at least one array or dtype", error=ValueError)
    result = _dtype_of(known[0])
    for value in known[1:]:
        result = _combine(result, _dtype_of(value))
    for number in numbers:
        if isinstance(number, float) and result not in FLOATING:
            raise TypeError(f"cannot combine a Python float with {result.name}: expected a float")
        if (number is True or number is False) != (result is bool):
            raise TypeError(f"cannot combine a Python {type(number).__name__} with {result.name}")
    return result


def can_cast(from_: Any, to: DType, /) -> Any:
    """Whether promotion can convert one dtype to another."""
    one, other = _dtype_of(from_), _dtype_of(to)
    try:
        return _combine(one, other) is other
    except TypeError:
        return False


_STANDARD = {dtype.name: dtype for dtype in (bool, *INTEGER, float32, float64)}


class Info:
    """The inspection functions of the standard."""

    def capabilities(self) -> dict[str, Any]:
        """Supported features: boolean indexing, data-dependent shapes, at most 64 dimensions."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> str:
        """The device of arrays unless another is given."""
        return Device.DEFAULT

    def devices(self) -> list[str]:
        """The kinds of devices of this machine."""
        return Device.available()

    def default_dtypes(self, *, device: str | None = None) -> dict[str, DType]:
        """The default dtypes of Python numbers and of indices."""
        return {
            "real floating": DEFAULT_FLOAT, "complex floating": DEFAULT_FLOAT,
            "integral": DEFAULT_INTEGER, "indexing": DEFAULT_INTEGER,
        }  # fmt: skip

    def dtypes(self, *, device: str | None = None, kind: Any = None) -> dict[str, DType]:
        """The standard's dtypes by name, all or of one kind."""
        return {name: one for name, one in _STANDARD.items() if kind is None or isdtype(one, kind)}


def __array_namespace_info__() -> Info:
    """An object that describes what the namespace supports."""
    return Info()
