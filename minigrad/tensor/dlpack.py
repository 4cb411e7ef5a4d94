"""DLPack: tensors shared with other libraries without a copy, in both directions.

The structures and the life of a capsule follow DLPack 1.1 (https://dmlc.github.io/dlpack) and the
Python array API standard's "data interchange mechanisms". A capsule called "dltensor" owns a
structure until somebody consumes it and renames it to "used_dltensor"; who consumed it calls the
deleter when done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from minigrad.device import Buffer, Device, refuse, watching
from minigrad.dtype import ALL, DType, dtypes
from minigrad.errors import DeviceError, DTypeError
from minigrad.graph import build
from minigrad.graph.shapes import numel, strides_of
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import show
from minigrad.tensor.hostdata import is_row_major

CPU_MEMORY = 1  # kDLCPU
HOST_MEMORY = (CPU_MEMORY, 3, 11)  # … and memory pinned by CUDA or ROCm, which the CPU reads too
_VERSION = (1, 1)
_READ_ONLY, _COPIED = 1, 2
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4
_NAMES = (b"dltensor", b"dltensor_versioned")
_USED = (b"used_dltensor", b"used_dltensor_versioned")


class _Description(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("device_number", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [
        ("tensor", _Description), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    ]  # fmt: skip


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _Description),
    ]  # fmt: skip


_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# Inside a destructor the capsule must not be seen as an object, whose count is 0 then: these take
# its address.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)

# What was lent and not given back yet: address of the structure → all that it points to.
_lent: dict[int, Any] = {}


def _forget(address: int) -> None:
    _lent.pop(address, None)


def _forget_unused(capsule: int) -> None:
    for name in _NAMES:
        if _is_valid(capsule, name):  # nobody consumed it
            _forget(_pointer(capsule, name))


_give_back, _destroy = _Deleter(_forget), _Destructor(_forget_unused)
for _callback in (_give_back, _destroy):  # consumers may call them when Python is shutting down
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_callback))


@dataclass(frozen=True)
class _Foreign:
    """Memory of another library. strides are in elements; owner gives it back when it goes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: DType
    read_only: bool
    owner: Any


class _Owner:
    """Calls the deleter of a consumed structure when the last buffer on its memory goes."""

    def __init__(self, address: int, deleter: int | None) -> None:
        self.address, self.deleter = address, deleter

    def __del__(self) -> None:
        if self.deleter:
            _Deleter(self.deleter)(self.address)


class DLPack(Composed):
    """`__dlpack__`, `__dlpack_device__` and `from_dlpack`."""

    __slots__ = ()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where its memory is, for a consumer: (1, 0), that is, the host's."""
        return (CPU_MEMORY, 0)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule through which another library sees this tensor's memory.

        Realizes it. The memory is shared where the device is a CPU, and copied to the host
        elsewhere, which `copy=False` forbids (BufferError).
        """
        if stream is not None:
            raise BufferError(f"__dlpack__(stream={stream!r}): the host has no streams; pass None")
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(
                f"__dlpack__(dl_device={tuple(dl_device)}): this tensor can be given in the host's "
                "memory only, (1, 0)"
            )
        source = self.clone() if copy else self
        memory = source._shared_memory()
        copied = bool(copy)
        if memory is None:
            if copy is False:
                raise BufferError(
                    f"__dlpack__(copy=False) of a tensor on {self.device}: its memory is not the "
                    "host's; pass copy=None"
                )
            source = type(self).from_bytes(self._bytes(), self._known_shape(), self.dtype, "CPU")
            memory, copied = source._shared_memory(), True
            assert memory is not None
        versioned = max_version is not None and max_version[0] >= 1
        return _lend(memory, self._known_shape(), self.dtype, versioned, _COPIED if copied else 0)

    def _shared_memory(self) -> Buffer | None:
        """The buffer that holds its elements in row-major order; None if the host can't read it."""
        if any(not isinstance(extent, int) for extent in self.shape):
            return None
        self.realize()
        if not self.is_realized():  # a view of another tensor's memory
            return self.clone()._shared_memory()
        buffer: Buffer = self.raw.arg
        if watching.watch is not None:
            watching.watch.reads(buffer)
        refuse((buffer,))
        runtime = Device[buffer.device]
        if not buffer.size:
            return buffer
        return None if runtime.host_address(buffer.memory) is None else buffer

    @classmethod
    def from_dlpack(cls, data: Any, *, device: str | None = None, copy: bool | None = None) -> Self:
        """A tensor of an array of another library (anything with `__dlpack__`).

        Shares its memory, so that writes are seen on both sides, where `device` is a CPU and the
        array is row-major without gaps, aligned to its elements and may be written. Copies
        otherwise; copy=True always copies and copy=False raises BufferError instead of copying.
        DTypeError for complex and other unknown elements.

        >>> Tensor.from_dlpack(Tensor([1, 2]).numpy()).tolist()
        [1, 2]
        """
        name = Device.canonical(device or Device.DEFAULT)
        foreign = _consume(data)
        if 0 in foreign.shape:
            return cls.from_bytes(b"", foreign.shape, foreign.dtype, name)
        runtime = Device[name]
        aligned = foreign.address % foreign.dtype.itemsize == 0
        plain = is_row_major(foreign.shape, foreign.strides) and aligned
        if plain and not foreign.read_only and not copy:
            memory = runtime.adopt(foreign.address)
            if memory is not None:
                buffer = Buffer(name, foreign.dtype, numel(foreign.shape))
                buffer = Buffer.borrow(buffer, memory, foreign.owner)
                result = cls._of(build.buffer(buffer, foreign.dtype, foreign.shape, name))
                result.made = True
                return result
        if copy is False:
            raise BufferError(
                f"from_dlpack(copy=False) of an array of shape {show(foreign.shape)} and strides "
                f"{show(foreign.strides)} on {name}: it cannot be shared; pass copy=None"
            )
        return cls.from_bytes(_bytes_of(foreign), foreign.shape, foreign.dtype, name)


def _lend(memory: Buffer, shape: Sequence[int], dtype: DType, versioned: bool, flags: int) -> Any:
    """A capsule over a buffer, which stays alive until the consumer calls the deleter."""
    extents = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    strides = (ctypes.c_int64 * max(len(shape), 1))(*strides_of(shape))
    code = _BFLOAT if dtype is dtypes.bfloat16 else _CODES[dtype.kind]
    address = Device[memory.device].host_address(memory.memory) if memory.size else None
    tensor = _Description(
        address, CPU_MEMORY, 0, len(shape), code, dtype.bits, 1,
        ctypes.cast(extents, ctypes.POINTER(ctypes.c_int64)),
        ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64)), 0,
    )  # fmt: skip
    deleter = ctypes.cast(_give_back, ctypes.c_void_p).value
    managed: Any
    if versioned:
        managed = _Versioned(*_VERSION, None, deleter, flags, tensor)
    else:
        managed = _Managed(tensor, None, deleter)
    place = ctypes.addressof(managed)
    _lent[place] = (managed, extents, strides, memory)
    return _new(place, _NAMES[versioned], _destroy)


def _consume(data: Any) -> _Foreign:
    """Take over what `data.__dlpack__()` gives, or a bare capsule."""
    capsule = _capsule_of(data)
    place = id(capsule)
    versioned = bool(_is_valid(place, _NAMES[1]))
    if not versioned and not _is_valid(place, _NAMES[0]):
        raise BufferError(f"from_dlpack of {type(data).__name__}: its capsule was used already")
    address = _pointer(place, _NAMES[versioned])
    kind = _Versioned if versioned else _Managed
    managed: Any = kind.from_address(address)
    if versioned and managed.major > _VERSION[0]:
        raise BufferError(
            f"from_dlpack: DLPack {managed.major}.{managed.minor} is unknown; "
            f"expected at most {_VERSION[0]}.x"
        )
    tensor = managed.tensor
    dtype = _dtype_of(tensor)
    if tensor.device not in HOST_MEMORY:
        raise DeviceError(
            f"from_dlpack of an array on DLPack's device ({tensor.device}, "
            f"{tensor.device_number}): expected the host's memory; move it to the CPU first"
        )
    _rename(place, _USED[versioned])
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim))
    else:
        strides = strides_of(shape)
    return _Foreign(
        (tensor.data or 0) + tensor.byte_offset, shape, strides, dtype,
        bool(versioned and managed.flags & _READ_ONLY), _Owner(address, managed.deleter),
    )  # fmt: skip


def _capsule_of(data: Any) -> Any:
    if type(data).__name__ == "PyCapsule":
        return data
    if not hasattr(data, "__dlpack__"):
        raise TypeError(
            f"from_dlpack({type(data).__name__}): it has no __dlpack__; use Tensor(data), "
            "which copies"
        )
    if hasattr(data, "__dlpack_device__"):
        kind = int(data.__dlpack_device__()[0])
        if kind not in HOST_MEMORY:
            raise DeviceError(
                f"from_dlpack of an array on DLPack's device {kind}: expected the host's memory, "
                f"{CPU_MEMORY}; move it to the CPU first"
            )
    try:
        return data.__dlpack__(max_version=_VERSION)
    except TypeError:  # a producer from before version 1
        return data.__dlpack__()


def _dtype_of(tensor: _Description) -> DType:
    for dtype in ALL:
        code = _BFLOAT if dtype is dtypes.bfloat16 else _CODES[dtype.kind]
        if (code, dtype.bits, 1) == (tensor.code, tensor.bits, tensor.lanes):
            return dtype
    raise DTypeError(
        f"from_dlpack: elements of DLPack's type ({tensor.code}, {tensor.bits} bits, "
        f"{tensor.lanes} lanes) are unknown; expected bool, integers or real floats"
    )


def _bytes_of(foreign: _Foreign) -> bytes:
    """The elements in row-major order, copied."""
    import numpy as np

    size = foreign.dtype.itemsize
    steps = [(n - 1) * s * size for n, s in zip(foreign.shape, foreign.strides, strict=True)]
    first = foreign.address + sum(min(step, 0) for step in steps)
    last = foreign.address + sum(max(step, 0) for step in steps)
    span = memoryview((ctypes.c_ubyte * (last + size - first)).from_address(first)).cast("B")
    strides = [stride * size for stride in foreign.strides]
    return np.ndarray(foreign.shape, f"V{size}", span, foreign.address - first, strides).tobytes()
