"""The array of the standard: a thin shell around a Tensor with the standard's stricter rules.

Two arrays combine only where their dtypes are of one kind (integers with integers, floats with
floats), and a Python number takes the dtype of the array beside it, if that is of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from numbers import Real
from typing import Any, ClassVar

from minigrad.array_api import dtypes as kinds
from minigrad.device import Device
from minigrad.dtype import DType
from minigrad.errors import expect, misfit
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import KINDS, Kind


class Array:
    """An array of one dtype on one device; created by `asarray`, `zeros` and the like."""

    __slots__ = ("_tensor",)
    _tensor: Tensor
    _namespace: ClassVar[Any]  # the module minigrad.array_api, set there

    def __init__(self) -> None:
        raise TypeError("Array() cannot be called; use array_api.asarray, zeros, arange …")

    @classmethod
    def _of(cls, tensor: Tensor) -> Array:
        array = object.__new__(cls)
        array._tensor = tensor
        return array

    # --- attributes -------------------------------------------------------------------------------

    @property
    def dtype(self) -> DType:
        """Element type, one of the namespace's dtypes."""
        return self._tensor.dtype

    @property
    def device(self) -> str:
        """Name of the device that holds it."""
        return str(self._tensor.raw.device)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._tensor.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return self._tensor._known_shape()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def T(self) -> Array:
        """The transposed matrix; only for two dimensions."""
        expect(self.ndim == 2, ".T", "a matrix; use .mT", self, error=ValueError)
        return self.mT

    @property
    def mT(self) -> Array:
        """The last two dimensions exchanged."""
        return self._of(self._tensor.transpose(-2, -1))

    # --- protocols --------------------------------------------------------------------------------

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        """The module `minigrad.array_api`."""
        expect(api_version is None or api_version in kinds.VERSIONS,
               "__array_namespace__", f"one of {', '.join(kinds.VERSIONS)}", error=ValueError,
               api_version=api_version)  # fmt: skip
        return self._namespace

    @wraps(Tensor.__dlpack__)
    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """See `Tensor.__dlpack_device__`."""
        return self._tensor.__dlpack_device__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._tensor.__array__(dtype, copy)

    def to_device(self, device: str, /, *, stream: Any = None) -> Array:
        """The same values on another device."""
        if stream is not None:
            raise ValueError(f"to_device(stream={stream!r}): expected None; there are no streams")
        return self._of(self._tensor.to(Device.canonical(device)))

    def __repr__(self) -> str:
        return f"Array({self._tensor.tolist()}, dtype={self.dtype.name}, device={self.device!r})"

    def __bool__(self) -> bool:
        return bool(self._one("bool"))

    def __int__(self) -> int:
        return int(self._one("int"))

    def __float__(self) -> float:
        return float(self._one("float"))

    def __complex__(self) -> complex:
        return complex(float(self._one("complex")))

    def __index__(self) -> int:
        if not self.dtype.is_int:
            raise TypeError(f"cannot index with {self.dtype.name}: expected an integer dtype")
        return int(self._one("index"))

    def _one(self, name: str) -> Tensor:
        """The tensor; TypeError if it has dimensions."""
        if self.ndim:
            raise TypeError(f"{name}(): expected an array with 0 dimensions, got {self.shape}")
        return self._tensor

    def __len__(self) -> int:
        return len(self._tensor)

    def __iter__(self) -> Any:
        if not self.ndim:
            raise TypeError("cannot iterate over an array with 0 dimensions")
        return (self[place] for place in range(self.shape[0]))

    __hash__ = None  # type: ignore[assignment]  # == compares element by element

    # --- indexing ---------------------------------------------------------------------------------

    def __getitem__(self, key: Any, /) -> Array:
        if isinstance(key, Array) and key.ndim == 0 and key.dtype.is_bool:  # all, as one part
            return self._of(self._tensor.unsqueeze(0)[key._tensor.reshape((1,))])
        return self._of(self._tensor[_key(key)])

    def __setitem__(self, key: Any, value: Any, /) -> None:
        given = value if isinstance(value, Array) else _scalar(value, self)
        if not kinds.can_cast(given.dtype, self.dtype):
            raise TypeError(
                f"cannot write {given.dtype.name} into an array of {self.dtype.name}; convert it "
                "with astype"
            )
        self._tensor[_key(key)] = given._tensor

    # --- operators --------------------------------------------------------------------------------

    def __pos__(self) -> Array:
        return _unary("+", kinds.NUMERIC, self, Tensor.positive)

    def __neg__(self) -> Array:
        return _unary("-", kinds.NUMERIC, self, Tensor.neg)

    def __abs__(self) -> Array:
        return _unary("abs", kinds.NUMERIC, self, Tensor.abs)

    def __invert__(self) -> Array:
        return _unary("~", kinds.INTEGER_OR_BOOL, self, Tensor.bitwise_not)


KINDS["Array"] = Kind(frozenset({Array}), lambda value: False, "an array; use asarray(…)")
KINDS["float | Array"] = Kind(
    frozenset({float, int, Array}), lambda value: isinstance(value, Real), "a number or an array"
)
KINDS["Sequence[Array]"] = Kind(
    frozenset(), lambda value: isinstance(value, (list, tuple)) and {*map(type, value)} <= {Array},
    "a list of arrays",
)  # fmt: skip
Operation = Callable[[Any, Any], Any]
Kinds = tuple[DType, ...]


def _key(key: Any) -> Any:
    """An index with Tensors instead of Arrays."""
    if isinstance(key, tuple):
        return tuple(_key(part) for part in key)
    if not isinstance(key, Array):
        return key
    return int(key) if key.ndim == 0 and key.dtype.is_int else key._tensor


def _scalar(value: Any, beside: Array) -> Array:
    """A Python number in the dtype of the array beside it; an error if of another kind."""
    if not isinstance(value, (bool, int, float)):
        raise TypeError(f"expected an array or a number as operand, got {type(value).__name__}")
    dtype = kinds.result_type(beside.dtype, value)
    if dtype.is_int and not dtype.minimum <= value <= dtype.maximum:
        raise OverflowError(f"{value} is out of range for {dtype.name}")
    return Array._of(Tensor(value, dtype=dtype, device=beside.device))


def _check(name: str, allowed: Kinds, *arrays: Array) -> None:
    for array in arrays:
        if not isinstance(array, Array):
            raise TypeError(f"{name}: expected an array, got {type(array).__name__}")
        if array.dtype not in allowed:
            known = ", ".join(dtype.name for dtype in allowed)
            raise misfit(name, f"one of {known}", array.dtype.name, error=TypeError)


def _unary(name: str, allowed: Kinds, x: Array, apply: Callable[[Any], Any]) -> Array:
    _check(name, allowed, x)
    return Array._of(apply(x._tensor))


def _binary(name: str, allowed: Kinds, x: Any, y: Any, apply: Operation) -> Array:
    """apply(x, y) in their common dtype; one of them may be a Python number."""
    if not isinstance(x, Array):
        if not isinstance(y, Array):
            raise TypeError(f"{name}: expected at least one array, got two Python numbers")
        x = _scalar(x, y)
    elif not isinstance(y, Array):
        y = _scalar(y, x)
    _check(name, allowed, x, y)
    common = kinds.result_type(x.dtype, y.dtype)
    return Array._of(apply(x._tensor.cast(common), y._tensor.cast(common)))


def _operators(symbol: str, name: str, allowed: Kinds, apply: Operation) -> None:
    """Define x ∘ y, the same with a number on the left, and x ∘= y."""
    accepted = Array if symbol == "@" else (Array, bool, int, float)

    def forward(self: Array, other: Any, /) -> Any:
        known = isinstance(other, accepted)
        return _binary(symbol, allowed, self, other, apply) if known else NotImplemented

    def reflected(self: Array, other: Any, /) -> Any:
        known = isinstance(other, accepted)
        return _binary(symbol, allowed, other, self, apply) if known else NotImplemented

    def in_place(self: Array, other: Any, /) -> Any:
        result = forward(self, other)
        if result is NotImplemented:
            return result
        if result.dtype is not self.dtype or result.shape != self.shape:
            raise TypeError(
                f"{symbol}= would change an array of {self.dtype.name} {self.shape} to "
                f"{result.dtype.name} {result.shape}; write x = x {symbol} y"
            )
        self._tensor.assign(result._tensor)
        return self

    made = {f"__{name}__": forward}
    if symbol not in ("==", "!=", "<", "<=", ">", ">="):
        made |= {f"__r{name}__": reflected, f"__i{name}__": in_place}
    for method, function in made.items():
        function.__name__ = method
        setattr(Array, method, function)


for _symbol, _name, _allowed, _apply in (
    ("+", "add", kinds.NUMERIC, Tensor.add), ("-", "sub", kinds.NUMERIC, Tensor.sub),
    ("*", "mul", kinds.NUMERIC, Tensor.mul), ("/", "truediv", kinds.FLOATING, Tensor.div),
    ("//", "floordiv", kinds.NUMERIC, lambda x, y: x // y),
    ("%", "mod", kinds.NUMERIC, Tensor.mod), ("**", "pow", kinds.NUMERIC, Tensor.pow),
    ("&", "and", kinds.INTEGER_OR_BOOL, Tensor.bitwise_and),
    ("|", "or", kinds.INTEGER_OR_BOOL, Tensor.bitwise_or),
    ("^", "xor", kinds.INTEGER_OR_BOOL, Tensor.bitwise_xor),
    ("<<", "lshift", kinds.INTEGER, Tensor.lshift), (">>", "rshift", kinds.INTEGER, Tensor.rshift),
    ("==", "eq", kinds.ALL, Tensor.eq), ("!=", "ne", kinds.ALL, Tensor.ne),
    ("<", "lt", kinds.NUMERIC, Tensor.lt), ("<=", "le", kinds.NUMERIC, Tensor.le),
    (">", "gt", kinds.NUMERIC, Tensor.gt), (">=", "ge", kinds.NUMERIC, Tensor.ge),
    ("@", "matmul", kinds.NUMERIC, Tensor.matmul),
):  # fmt: skip
    _operators(_symbol, _name, _allowed, _apply)
