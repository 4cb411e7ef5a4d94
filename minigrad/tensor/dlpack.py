"""DLPack: tensors shared with other libraries without a copy, in both directions.

numpy makes and takes the capsules. bfloat16, which it does not know, passes as uint16: two bytes of
the structure that a capsule points to say so (DLPack 1.1, https://dmlc.github.io/dlpack).
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any, Self

from minigrad.device import Buffer, Device, about_to_read
from minigrad.dtype import DType, dtypes
from minigrad.errors import DeviceError, DTypeError, expect, misfit
from minigrad.graph import build
from minigrad.tensor import hostdata, realization, views
from minigrad.tensor.basic import Composed

CPU_MEMORY = 1  # kDLCPU
HOST_MEMORY = (CPU_MEMORY, 3, 11)  # also memory pinned by CUDA or ROCm, which the CPU can read
_UNSIGNED, _BFLOAT = 1, 4  # DLPack's codes for kinds of numbers
_CODE = {b"dltensor": 20, b"dltensor_versioned": 52}  # name of a capsule → offset of its type code
_FLAGS, _COPIED = 24, 2  # offset of a versioned capsule's flags; the flag for copied memory
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class DLPack(Composed):
    """`__dlpack__`, `__dlpack_device__` and `from_dlpack`."""

    __slots__ = ()

    def __dlpack_device__(self) -> tuple[int, int]:
        """The device of its memory, for a consumer: (1, 0), the host."""
        return (CPU_MEMORY, 0)

    def __dlpack__(
        self, *, stream: Any = None, max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None, copy: bool | None = None,
    ) -> Any:  # fmt: skip
        """A capsule through which another library sees this tensor's memory.

        Realizes the tensor. Its memory is shared if the device is a CPU and the tensor is not a
        view; otherwise it is copied to the host, which copy=False forbids (BufferError). For writes
        to shared memory see `from_dlpack`.
        """
        if stream is not None:
            raise BufferError(f"__dlpack__(stream={stream!r}): expected None; there are no streams")
        expect(dl_device is None or tuple(dl_device) == self.__dlpack_device__(), "__dlpack__",
               "the host's memory, (1, 0)", error=BufferError, dl_device=dl_device)  # fmt: skip
        view = views.base_of(self) is not None  # its memory is a copy of the base's
        memory: Any = (self.clone() if copy or view else self)._shared_memory()
        copied = bool(copy) or view or memory is None
        if copied and copy is False:
            given = "a view" if view else f"a tensor on {self.device}, which is not the host"
            raise BufferError(f"__dlpack__(copy=False): cannot share {given}; pass copy=None")
        if memory is None:
            source = type(self).from_bytes(self._bytes(), self._known_shape(), self.dtype, "CPU")
            memory = source._shared_memory()
        return _lend(memory, self._known_shape(), self.dtype, max_version, copied)

    def _shared_memory(self) -> Buffer | None:
        """Its buffer, if the host can read it and no other tensor stands for it; else None.
        """
        if any(not isinstance(extent, int) for extent in self.shape):
            return None
        while not self.is_realized():  # another thread may write it meanwhile
            self.realize()
        buffer: Buffer = self.raw.arg
        about_to_read((buffer,))
        if not buffer.size:
            return buffer
        if Device[buffer.device].host_address(buffer.memory) is None:
            return None
        if self._borrows(self.raw):
            self._point(self.clone().raw)
            return self._shared_memory()
        realization.separate(self.raw, {id(self._link)})  # the host must write to no other tensor
        buffer.owner, buffer.lent = self._link, True
        return buffer

    @classmethod
    def from_dlpack(cls, data: Any, *, device: str | None = None, copy: bool | None = None) -> Self:
        """A tensor made of an array of another library (anything with `__dlpack__`).

        Shares the array's memory if `device` is a CPU and the array is row-major without gaps,
        aligned, and writable. Otherwise it copies; copy=True always copies, and copy=False raises
        BufferError instead of copying. DTypeError for complex and other unknown elements.

        Writes to the tensor change shared memory at once. Writes by the host are seen by everything
        that is computed after them, also by older lazy tensors; values already computed do not
        change, nor does a realized view of the tensor.

        >>> Tensor.from_dlpack(Tensor([1, 2]).numpy()).tolist()
        [1, 2]
        """
        name = Device.canonical(device)
        array, dtype, writable = _consume(data)
        flags = array.flags
        if flags.c_contiguous and flags.aligned and writable and not copy and array.size:
            memory = Device[name].adopt(array.ctypes.data)
            if memory is not None:
                buffer = Buffer.borrow(Buffer(name, dtype, array.size), memory, (array,))
                result = cls._of(build.buffer(buffer, dtype, array.shape, name))
                result.made, buffer.owner, buffer.lent = True, result._link, True
                return result
        if copy is False and array.size:
            raise BufferError(
                f"from_dlpack(copy=False): cannot share an array of shape {array.shape} with "
                f"strides of {tuple(array.strides)} bytes on {name}; pass copy=None"
            )
        return cls.from_bytes(array.tobytes(), array.shape, dtype, name)


def _lend(memory: Buffer, shape: tuple[int, ...], dtype: DType, version: Any, copied: bool) -> Any:
    """A capsule over a buffer, which stays alive until the consumer releases it."""
    import numpy as np

    name = "uint16" if dtype is dtypes.bfloat16 else dtype.name
    array = np.empty(shape, name)
    if memory.size:
        address: Any = Device[memory.device].host_address(memory.memory)
        lent: Any = (ctypes.c_ubyte * memory.nbytes).from_address(address)
        lent.buffer = memory  # keeps the buffer alive as long as the array
        array = np.ndarray(shape, name, lent)
    try:
        capsule: Any = array.__dlpack__(max_version=version)
    except TypeError:  # numpy before 2.1
        capsule = array.__dlpack__()
    kind = _name_of(capsule)
    address = _pointer(capsule, kind)
    if dtype is dtypes.bfloat16:
        ctypes.c_uint8.from_address(address + _CODE[kind]).value = _BFLOAT
    if copied and b"versioned" in kind:
        ctypes.c_uint64.from_address(address + _FLAGS).value |= _COPIED
    return capsule


def _name_of(capsule: Any) -> bytes:
    """The name of a capsule that was not consumed yet; b"" for any other object."""
    return next((name for name in _CODE if _is_valid(capsule, name)), b"")


def _consume(data: Any) -> tuple[Any, DType, bool]:
    """A numpy array over `data.__dlpack__()` or a bare capsule; its dtype; whether it is writable.
    """
    import numpy as np

    capsule = _capsule_of(data)
    name = _name_of(capsule)
    if not name:
        raise BufferError(f"from_dlpack: the capsule of {type(data).__name__} was already used")
    code = ctypes.c_uint8.from_address(_pointer(capsule, name) + _CODE[name])
    halves = code.value == _BFLOAT
    code.value = _UNSIGNED if halves else code.value
    try:
        array: Any = np.from_dlpack(SimpleNamespace(__dlpack__=lambda **options: capsule))
    except (BufferError, RuntimeError) as error:
        raise DTypeError(
            f"from_dlpack of {type(data).__name__}: expected bool, integers or real floats in the "
            f"host's memory ({error})"
        ) from None
    dtype = dtypes.bfloat16 if halves else hostdata.known(array.dtype)
    if dtype is None:
        raise misfit(f"from_dlpack of {type(data).__name__}", "bool, integers or real floats",
                     array.dtype.name, error=DTypeError)  # fmt: skip
    # capsules without a version cannot mark memory as read-only
    return array, dtype, array.flags.writeable or b"versioned" not in name


def _capsule_of(data: Any) -> Any:
    import numpy as np

    if type(data).__name__ == "PyCapsule":
        return data
    expect(hasattr(data, "__dlpack__"), "from_dlpack",
           "an object with __dlpack__; use Tensor(data) to copy", type(data).__name__,
           error=TypeError)  # fmt: skip
    if hasattr(data, "__dlpack_device__"):
        kind = int(data.__dlpack_device__()[0])
        expect(kind in HOST_MEMORY, "from_dlpack",
               f"an array in the host's memory, {CPU_MEMORY}; move it to the CPU first",
               f"DLPack's device {kind}", error=DeviceError)  # fmt: skip
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        return data.__dlpack__()
    try:
        return data.__dlpack__(max_version=(1, 0))
    except TypeError:  # a producer older than version 1
        return data.__dlpack__()
