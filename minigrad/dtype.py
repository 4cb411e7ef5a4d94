"""Element types and the rules by which two of them combine.

Promotion follows the lattice that JAX publishes ("JAX Type Promotion Semantics"), which will not
surprise PyTorch users: bool < integers < floats, and an integer never widens a float.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from functools import lru_cache
from math import ceil, inf
from typing import NoReturn

from minigrad.errors import DTypeError, RangeError
from minigrad.hints import hint, put_hints


class DType:
    """One element type; the whole process shares it, so it cannot be changed.

    kind is "b" (bool), "i" (signed), "u" (unsigned) or "f" (float); itemsize is in bytes;
    code is the format of the `struct` and buffer protocols ("" for bfloat16, which has none).
    is_int is true for signed and unsigned integers, but not for bool.
    """

    __slots__ = ("name", "kind", "itemsize", "code", "is_float", "is_int", "is_bool")
    name: str
    kind: str
    itemsize: int
    code: str
    is_float: bool  # every new node reads these, so they are not properties
    is_int: bool
    is_bool: bool

    def __new__(cls, name: str, kind: str, itemsize: int, code: str) -> DType:
        """Make a dtype; not in an `__init__`, which could be called again."""
        made = super().__new__(cls)
        values = (name, kind, itemsize, code, kind == "f", kind in "iu", kind == "b")
        for field, value in zip(cls.__slots__, values, strict=True):
            object.__setattr__(made, field, value)
        return made

    def __setattr__(self, name: str, value: object = None) -> NoReturn:
        raise AttributeError(f"cannot change {self!r}: all tensors with this dtype share it")

    __delattr__ = __setattr__

    def __repr__(self) -> str:
        return f"dtypes.{self.name}"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (named, (self.name,))

    @property
    def bits(self) -> int:
        """Width in bits (a bool takes 8 in memory)."""
        return self.itemsize * 8

    @property
    def signed(self) -> DType:
        """The signed integers of the same size."""
        return named(f"int{self.bits}")

    @property
    def unsigned(self) -> DType:
        """The unsigned integers of the same size."""
        return named(f"uint{self.bits}")

    @property
    def fraction(self) -> int:
        """Bits of a float's significand after the point: 1 + 2^−fraction is the next after 1."""
        return {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}[self.name]

    @property
    def minimum(self) -> int | float | bool:
        """The identity of a maximum: smallest value, −inf for floats."""
        if self.kind == "f":
            return -inf
        if self.kind == "i":
            return -(1 << (self.bits - 1))
        return False if self.kind == "b" else 0

    @property
    def maximum(self) -> int | float | bool:
        """The identity of a minimum: largest value, inf for floats."""
        if self.kind == "f":
            return inf
        if self.kind == "b":
            return True
        return (1 << (self.bits - (self.kind == "i"))) - 1

    min, max = minimum, maximum  # tinygrad's names


DTypeLike = DType | str | None  # what `dtype=` takes: see `resolve`; None: the default


class _Table(type):
    """A class whose entries cannot be replaced."""

    def __setattr__(cls, name: str, value: object = None) -> NoReturn:
        raise AttributeError(f"cannot set {cls.__name__}.{name}; pass dtype= where needed")

    __delattr__ = __setattr__


class dtypes(metaclass=_Table):
    """The namespace of all element types: `dtypes.float32`, …"""

    bool = DType("bool", "b", 1, "?")
    int8 = DType("int8", "i", 1, "b")
    uint8 = DType("uint8", "u", 1, "B")
    int16 = DType("int16", "i", 2, "h")
    uint16 = DType("uint16", "u", 2, "H")
    int32 = DType("int32", "i", 4, "i")
    uint32 = DType("uint32", "u", 4, "I")
    int64 = DType("int64", "i", 8, "q")
    uint64 = DType("uint64", "u", 8, "Q")
    float16 = DType("float16", "f", 2, "e")
    bfloat16 = DType("bfloat16", "f", 2, "")
    float32 = DType("float32", "f", 4, "f")
    float64 = DType("float64", "f", 8, "d")
    half = float16
    float = float32
    double = float64
    int = int32
    long = int64
    default_int = int32
    default_float = float32


put_hints("dtypes", dtypes)
put_hints("DType", DType)
ALL = tuple({one: None for one in vars(dtypes).values() if isinstance(one, DType)})
BY_NAME = {dtype.name: dtype for dtype in ALL}
FLOATS = tuple(dtype for dtype in ALL if dtype.is_float)
INTS = tuple(dtype for dtype in ALL if dtype.is_int)


def named(name: str) -> DType:
    """The dtype called `name` ("float32"); KeyError lists the known names."""
    if name not in BY_NAME:
        from difflib import get_close_matches

        short = vars(dtypes).get(name)  # as dtypes.float
        alike = [short.name] if isinstance(short, DType) else get_close_matches(name, BY_NAME, 1)
        meant = "".join(f"did you mean {one!r}? " for one in alike)
        raise KeyError(f"unknown dtype {name!r}: {meant}" + hint('Tensor([1], dtype="float8")'))
    return BY_NAME[name]


def resolve(given: object) -> DType:
    """A dtype given as itself, by name, or as a type of the same name (numpy.float32, torch.int8).

    KeyError for an unknown name, DTypeError for anything else.
    """
    if isinstance(given, DType):
        return given
    if isinstance(given, str):
        return named(given)
    name = getattr(given, "name", None) or getattr(given, "__name__", None) or repr(given)
    if (name := str(name).removeprefix("torch.")) in BY_NAME:
        return BY_NAME[name]
    raise DTypeError(
        f"expected a dtype, as minigrad.dtypes.float32, or its name, as 'float32', got {given!r}"
    )


def dtype_or(given: DTypeLike, default: DType) -> DType:
    """A dtype, or the default for None."""
    return default if given is None else resolve(given)


# Each dtype's direct successors in the promotion lattice.
_SUCCESSORS: dict[str, tuple[str, ...]] = {
    "bool": ("int8", "uint8"),
    "int8": ("int16",), "int16": ("int32",), "int32": ("int64",), "int64": ("float16", "bfloat16"),
    "uint8": ("int16", "uint16"), "uint16": ("int32", "uint32"), "uint32": ("int64", "uint64"),
    "uint64": ("float16", "bfloat16"),
    "float16": ("float32",), "bfloat16": ("float32",), "float32": ("float64",), "float64": (),
}  # fmt: skip


@lru_cache(maxsize=None)
def _above(name: str) -> frozenset[str]:
    names = {name}
    for successor in _SUCCESSORS[name]:
        names |= _above(successor)
    return frozenset(names)


@lru_cache(maxsize=None)
def promote(*given: DType) -> DType:
    """The smallest dtype that all of `given` convert to, e.g. int8 and uint8 give int16.

    float32 if none is the smallest: signed integers and uint64 convert to both half types.
    """
    common = frozenset.intersection(*(_above(dtype.name) for dtype in given))
    return next((named(name) for name in common if _above(name) == common), dtypes.default_float)


def sum_dtype(dtype: DType) -> DType:
    """The dtype in which a sum is returned: integers have 64 bits, bool counts as signed."""
    if dtype.is_float:
        return dtype
    return dtypes.uint64 if dtype.kind == "u" else dtypes.int64


def dtype_of(name: str, values: Iterable[int | float | bool]) -> DType:
    """The dtype of Python numbers: bool, int32 or the first wider one that holds them, or float32.

    RangeError for ints beyond 64 bits.
    """
    given = list(values)
    kinds = {type(value) for value in given}
    if not kinds or not kinds <= {bool, int}:
        return dtypes.default_float
    if kinds == {bool}:
        return dtypes.bool
    low, high = min(given), max(given)
    for dtype in (dtypes.default_int, dtypes.int64, dtypes.uint64):
        if dtype.minimum <= low and high <= dtype.maximum:
            return dtype
    most = low if low < -high else high
    raise RangeError(f"{name}: {most} does not fit into 64 bits; use smaller ints, or floats")


def check_holds(name: str, dtype: DType, *values: object) -> None:
    """RangeError for a Python int that an integer dtype cannot hold without wrapping."""
    if dtype.is_int:
        least, most = dtype.minimum, dtype.maximum
        for value in values:
            if isinstance(value, int) and not least <= value <= most:
                raise RangeError(
                    f"{name}: {value} is out of range for {dtype.name}, which holds {least} … "
                    f"{most}; use another dtype (dtype=, x.long())"
                )


def convert(value: int | float | bool, dtype: DType) -> int | float | bool:
    """A Python number as `dtype` holds it.

    Integers wrap, floats round to nearest even, and a float that is converted to an integer
    saturates (NaN gives 0): every device does the same for a CAST.
    """
    if dtype.is_bool:
        return bool(value)
    if dtype.is_float:
        return number_of(number_bytes(value, dtype), dtype)
    if isinstance(value, float):
        if value != value:
            return 0
        return int(min(max(value, dtype.minimum), dtype.maximum))
    wrapped = int(value) & ((1 << dtype.bits) - 1)
    if dtype.kind == "i" and wrapped >> (dtype.bits - 1):
        wrapped -= 1 << dtype.bits
    return wrapped


# How to read and write one number; not for bfloat16, which has no code.
_READ = {dtype: struct.Struct(dtype.code).unpack for dtype in ALL if dtype.code}
_WRITE = {dtype: struct.Struct(dtype.code).pack for dtype in ALL if dtype.code}


def number_of(data: bytes | bytearray, dtype: DType) -> int | float | bool:
    """The number that has these bytes."""
    read = _READ.get(dtype)
    if read is None:
        (value,) = struct.unpack("f", struct.pack("I", int.from_bytes(data, sys.byteorder) << 16))
    else:
        (value,) = read(data)
    return value


def below(limit: float, dtype: DType) -> int | float:
    """The largest number of an integer or float dtype that is less than a finite limit."""
    if dtype.is_int:
        return ceil(limit) - 1
    near = convert(limit, dtype)
    if near < limit:
        return near
    bits = int.from_bytes(number_bytes(near, dtype), sys.byteorder)
    # magnitudes have the order of their bits; the number below 0 is the smallest one with a sign
    bits = bits + (1 if near < 0 else -1) if near else (1 << (dtype.bits - 1)) + 1
    return number_of(bits.to_bytes(dtype.itemsize, sys.byteorder), dtype)


def number_bytes(value: int | float | bool, dtype: DType) -> bytes:
    """The bytes of a number: an integer that the dtype holds, or the nearest float."""
    write = _WRITE.get(dtype)
    if write is not None:
        try:
            return write(float(value) if dtype.is_float else value)
        except OverflowError:
            return write(inf if value > 0 else -inf)
    (bits,) = struct.unpack("I", number_bytes(value, dtypes.float32))
    if bits & 0x7F800000 != 0x7F800000:  # it is finite: round to nearest, ties to even
        bits += 0x7FFF + (bits >> 16 & 1)
    return struct.pack("H", bits >> 16)
