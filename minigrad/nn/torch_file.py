"""Files of torch.save, read without PyTorch and without running what they ask for.

Since PyTorch 1.6 such a file is a ZIP archive: data.pkl, a pickle in which each tensor refers to a
storage by a key, and data/KEY, the storage's bytes. A pickle may name any function to be called.
Here the few names that tensors and state dicts need are in tables, and any other is refused. A file
may also lie about sizes: the memory that it gets is bounded by the bytes that it has.

A pickle is a program for a small machine with a stack and a memo; Python's `pickletools` documents
its instructions. Python's own reader calls whatever a pickle names, and lets it set attributes of
whatever it could name or create. This reader knows only the harmless instructions. A name stays a
`_Name`, which can do nothing; callable names are in a table; and instructions that modify something
accept only lists, dicts and sets that the same pickle has created.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

from minigrad.device import Device
from minigrad.dtype import BY_NAME, DType, dtypes
from minigrad.errors import MinigradError, expect
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions

LONGEST = 1024  # bytes of an integer: arithmetic with longer ones takes too long
_PLAIN = (type(None), bool, int, float, str, bytes)
_HARMLESS = """PROTO FRAME MARK STOP POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT LONG BININT BININT1
    BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST EMPTY_DICT EMPTY_TUPLE EMPTY_SET TUPLE TUPLE1
    TUPLE2 TUPLE3 BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID"""
# Exceptions of Python's readers and arithmetic on damaged files.
_DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError,
           ValueError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile)  # fmt: skip


class TorchFileError(MinigradError, ValueError):
    """A damaged file, or one with more than tensors and plain values."""


class _Name(NamedTuple):
    """A function or class that a pickle names: two strings, never the object itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


class _Storage(NamedTuple):
    """Bytes of a file, and their dtype (None: the tensor has it)."""

    data: bytes
    dtype: DType | None


_STORAGES = {
    _Name("torch", f"{name}Storage"): dtype for name, dtype in (
        ("Float", dtypes.float32), ("Double", dtypes.float64), ("Half", dtypes.float16),
        ("BFloat16", dtypes.bfloat16), ("Long", dtypes.int64), ("Int", dtypes.int32),
        ("Short", dtypes.int16), ("Char", dtypes.int8), ("Byte", dtypes.uint8),
        ("Bool", dtypes.bool),
    )
} | {_Name("torch.storage", "UntypedStorage"): None}  # fmt: skip
_MOST_DIMENSIONS = 64  # as in PyTorch
_LARGEST = 1 << 62  # for extents, strides and offsets
_SPARE = 64 << 20  # bytes that tensors may have in all beyond twice the file's


class _Reader(pickle._Unpickler):
    """Runs a pickle: builds dicts, lists, plain values and tensors; other names are errors.

    Derived from Python's reader written in Python, because only that has a table of instructions.
    Memory and time are proportional to the file's length.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int, device: str) -> None:
        self.archive, self.unread, self.device = archive, size, device
        self.room = 2 * size + _SPARE  # views may overlap or repeat elements, within reason
        names = archive.namelist()
        root = next((n[: -len("data.pkl")] for n in names if n.endswith("data.pkl")), None)
        if root is None:
            raise TorchFileError("it contains no data.pkl")
        self.root = root
        if f"{root}byteorder" in names and self._entry("byteorder") != b"little":
            raise TorchFileError("expected little-endian numbers, got big-endian")
        data = self._entry("data.pkl")
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="surrogatepass")
        self.size = len(data)
        self.storages: dict[str, _Storage] = {}

    def _entry(self, name: str) -> bytes:
        """The bytes of an entry. torch.save never compresses, so none is larger than the file."""
        info = self.archive.getinfo(self.root + name)
        expect(info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size,
               f"entry {name}", "uncompressed data, as torch.save writes",
               f"{info.file_size} bytes compressed to {info.compress_size}",
               error=TorchFileError)  # fmt: skip
        self.unread -= info.file_size
        if self.unread < 0:
            raise TorchFileError(f"its entries up to {name} would be larger than the whole file")
        return self.archive.read(info)

    def find_class(self, module: str, name: str) -> Any:
        """The meaning of a name in the pickle; it is not imported."""
        found = _Name(module, name)
        if module == "torch" and name in BY_NAME:
            return BY_NAME[name]
        if found in _CALLS or found in _STORAGES:
            return found
        raise TorchFileError(
            f"the file refers to {found}; expected tensors, dicts, lists and plain values, as in "
            "torch.save(model.state_dict(), path)"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a tensor refers to: ("storage", dtype, key, location, elements)."""
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise TorchFileError("a persistent reference does not refer to a storage")
        _, kind, key, _, count = pid
        if type(kind) is not _Name or type(key) is not str or type(count) is not int:
            raise TorchFileError("a storage has no valid dtype, key or size")
        dtype = _STORAGES.get(kind)  # None for bytes whose dtype is in the tensor
        if key not in self.storages:
            data = self._entry(f"data/{key}")
            size = count * (dtype.itemsize if dtype else 1)
            if not 0 <= size <= len(data):
                raise TorchFileError(f"storage {key:.40}: expected {size} bytes, got {len(data)}")
            self.storages[key] = _Storage(data, dtype)
        return self.storages[key]

    def load(self) -> Any:
        """The value that the pickle describes."""
        return _value(super().load())

    def _tensor(
        self, storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int],
        *more: Any,
    ) -> Tensor:  # fmt: skip
        """A tensor: `shape` elements of a storage, `strides` apart, beginning at element `offset`.

        more: requires_grad, hooks, and the dtype if the storage has none.
        """
        data, dtype = storage if type(storage) is _Storage else (b"", None)
        dtype = dtype or (more[2] if len(more) > 2 else None)
        if not isinstance(dtype, DType) or type(storage) is not _Storage:
            raise TorchFileError("a tensor has no storage of known dtype")
        shape, strides = _size(self, shape), _size(self, strides)
        numbers = (offset, *shape, *strides)
        plain = all(type(number) is int and 0 <= number < _LARGEST for number in numbers)
        rank = len(shape)
        expect(plain and rank == len(strides) <= _MOST_DIMENSIONS, f"a tensor of {rank} dimensions "
               "has invalid sizes, strides or offset", f"at most {_MOST_DIMENSIONS} dimensions, "
               f"and ints from 0 to {_LARGEST - 1}", error=TorchFileError)  # fmt: skip
        what = f"a tensor of shape {shape} with strides {strides}"
        size, available = prod(shape), len(data) // dtype.itemsize
        reach = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
        if size and offset + reach >= available:
            raise TorchFileError(f"{what} at offset {offset} exceeds its storage of {available}")
        self.room -= size * dtype.itemsize
        if self.room < 0:
            raise TorchFileError(
                f"{what} shares or repeats too much of its storage of {available} elements: all "
                "tensors together would be more than twice as large as the file"
            )
        import numpy as np

        start, *steps = (number * dtype.itemsize for number in (offset * bool(size), *strides))
        part = np.ndarray(shape, f"V{dtype.itemsize}", data, start, steps)
        return Tensor.from_bytes(part.tobytes(), shape, dtype, self.device)

    # ---- instructions, under Python's names for them ----

    def _top(self: Any, *kinds: type[Any]) -> Any:
        """The last value on the stack, which stays there; its type must be exactly one of `kinds`.
        """
        value = self.stack[-1]
        if type(value) not in kinds:
            raise TorchFileError(f"it modifies an object of type {type(value).__name__}")
        return value

    def _number(self: Any, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def _append(self: Any) -> None:
        value = _value(self.stack.pop())
        self._top(list).append(value)

    def _appends(self: Any) -> None:
        values = [*map(_value, self.pop_mark())]
        self._top(list).extend(values)

    def _setitem(self: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict, OrderedDict).update(pairs([(key, value)]))

    def _setitems(self: Any) -> None:
        items = self.pop_mark()
        self._top(dict, OrderedDict).update(pairs(zip(items[::2], items[1::2], strict=True)))

    def _additems(self: Any) -> None:
        values = [*map(_key, self.pop_mark())]
        self._top(set).update(values)

    def _frozenset(self: Any) -> None:
        values = frozenset(map(_key, self.pop_mark()))  # this changes what `append` is
        self.append(values)

    def _build(self: Any) -> None:
        """Ignore attributes: only PyTorch's state dicts have some, and they are not needed."""
        self.stack.pop()
        self._top(OrderedDict)

    def _reduce(self: Any) -> None:
        """Call a named function with a tuple of arguments."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or type(name) is not _Name:
            raise TorchFileError(f"it calls an object of type {type(name).__name__}")
        if name not in _CALLS:
            raise TorchFileError(f"it calls {name}, which is not allowed")
        self.append(_CALLS[name](self, *arguments))

    def _long4(self: Any) -> None:
        length = self._number(4)
        if length > LONGEST:
            raise TorchFileError(f"it has an integer of {length} bytes: expected at most {LONGEST}")
        self.append(int.from_bytes(self.read(length), "little", signed=True))

    def _bytearray8(self: Any) -> None:
        self.append(bytearray(self.read(self._number(8))))

    def _long_binput(self: Any) -> None:
        """Store the last value in the memo; writers of pickles count from 0."""
        number = self._number(4)
        if number > self.size:
            raise TorchFileError(f"its memo number {number} is too large for {self.size} bytes")
        self.memo[number] = self.stack[-1]

    _newobj = _reduce


_OWN = """append appends setitem setitems additems frozenset build reduce newobj long4 bytearray8
    long_binput"""
_Reader.dispatch = {
    code: pickle._Unpickler.dispatch[code]
    for code in (getattr(pickle, name)[0] for name in _HARMLESS.split())
} | {getattr(pickle, name.upper())[0]: vars(_Reader)[f"_{name}"] for name in _OWN.split()}


def _value(value: Any) -> Any:
    if type(value) is _Name:
        raise TorchFileError(f"it contains {value} as a value")
    return value


def _key(value: Any) -> Any:
    """A key that is quick to hash: deeply nested tuples would take forever."""
    if type(value) in _PLAIN:
        return value
    if type(value) is tuple and all(type(part) in _PLAIN for part in value):
        return value
    raise TorchFileError(f"expected strings or numbers as dict keys, got {type(value).__name__}")


def pairs(items: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Keys and values, checked for use in a dict."""
    return [(_key(key), _value(value)) for key, value in items]


def _data(_: _Reader, data: Any, *more: Any) -> Tensor:
    """A parameter, as its tensor."""
    if not isinstance(data, Tensor):
        raise TorchFileError("a parameter is not a tensor")
    return data


def _size(_: _Reader, extents: Any) -> tuple[Any, ...]:
    """A torch.Size, as a tuple."""
    if type(extents) not in (tuple, list):
        raise TorchFileError("the sizes or strides of a tensor are not a tuple")
    return tuple(extents)


def _ordered(_: _Reader, items: Any = ()) -> OrderedDict[Any, Any]:
    """An OrderedDict, empty or of a list of pairs."""
    if type(items) not in (tuple, list) or any(
        type(item) not in (tuple, list) or len(item) != 2 for item in items
    ):
        raise TorchFileError("the items of an OrderedDict are not pairs")
    return OrderedDict(pairs(items))


_CALLS: dict[_Name, Callable[..., Any]] = {
    _Name("collections", "OrderedDict"): _ordered,
    _Name("torch", "Size"): _size,
    _Name("torch._utils", "_rebuild_parameter"): _data,
    _Name("torch._utils", "_rebuild_tensor_v2"): _Reader._tensor,
    _Name("torch._utils", "_rebuild_tensor_v3"): _Reader._tensor,
}


def torch_load(path: str | os.PathLike[str], device: str | None = None) -> Any:
    """The content of a torch.save file: a state dict, or dicts, lists, tensors and plain values.

    PyTorch need not be installed. No function that a file names is called, and nothing in this
    process is changed by it. Raises TorchFileError for other files: of PyTorch before 1.6, with
    pickled models or other objects, or with tensors whose total size is larger than twice the file
    and 64 MiB (views that repeat or share elements count in full).
    """
    where = Device.canonical(device)
    name = os.fspath(path)
    with open(path, "rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise TorchFileError(
                    "it is not a ZIP archive; save it again with PyTorch 1.6 or newer, without "
                    "_use_new_zipfile_serialization=False"
                )
            with zipfile.ZipFile(file) as archive:
                return _Reader(archive, os.fstat(file.fileno()).st_size, where).load()
        except MinigradError as error:
            raise TorchFileError(f"torch_load({name!r}): {error}") from None
        except _DAMAGE as error:
            said = f"{type(error).__name__} {error}"[:200]
            raise TorchFileError(f"torch_load({name!r}): the file is damaged: {said}") from None


check_functions(globals())
