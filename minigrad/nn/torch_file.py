"""Files of torch.save, read without PyTorch and without running what they ask for.

Since PyTorch 1.6 such a file is a ZIP archive: data.pkl, a pickle in which each tensor refers to a
storage by a key, and data/KEY, the storage's bytes. A pickle may name any function to be called;
here the few names that tensors and state dicts need stand in a table, and any other is refused.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from minigrad.device import Device
from minigrad.dtype import DType, dtypes
from minigrad.errors import MinigradError
from minigrad.tensor import Tensor

_STORAGES = {
    "FloatStorage": dtypes.float32, "DoubleStorage": dtypes.float64, "HalfStorage": dtypes.float16,
    "BFloat16Storage": dtypes.bfloat16, "LongStorage": dtypes.int64, "IntStorage": dtypes.int32,
    "ShortStorage": dtypes.int16, "CharStorage": dtypes.int8, "ByteStorage": dtypes.uint8,
    "BoolStorage": dtypes.bool,
}  # fmt: skip
_DTYPES = {
    "float32": dtypes.float32, "float64": dtypes.float64, "float16": dtypes.float16,
    "bfloat16": dtypes.bfloat16, "int64": dtypes.int64, "int32": dtypes.int32,
    "int16": dtypes.int16, "int8": dtypes.int8, "uint8": dtypes.uint8, "uint16": dtypes.uint16,
    "uint32": dtypes.uint32, "uint64": dtypes.uint64, "bool": dtypes.bool,
}  # fmt: skip


class TorchFileError(MinigradError, ValueError):
    """A file that is no whole file of torch.save, or holds more than tensors and plain values."""


class _Storage:
    """Bytes of a file, and the dtype that they were saved as (None: the tensor says)."""

    def __init__(self, data: bytes, dtype: DType | None) -> None:
        self.data, self.dtype = data, dtype


class _Reader(pickle.Unpickler):
    """Rebuilds dicts, lists, plain values and tensors; nothing else can be named."""

    def __init__(self, archive: zipfile.ZipFile, root: str, device: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")), encoding="utf-8")
        self.archive, self.root, self.device = archive, root, device
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._tensor
        if module == "torch._utils" and name == "_rebuild_tensor_v3":
            return self._tensor_of_bytes
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _data
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return None
        if (module, name) == ("torch", "Size"):
            return tuple
        found = _STORAGES.get(name) or _DTYPES.get(name) if module == "torch" else None
        if found is None:
            raise TorchFileError(
                f"the file asks for {module}.{name}, which is not loaded here; expected tensors, "
                "dicts, lists and plain values, as in torch.save(model.state_dict(), path)"
            )
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a tensor refers to: ("storage", dtype, key, location, elements)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise TorchFileError(f"a reference {pid!r:.80}; expected one to a storage")
        _, dtype, key, _, count = pid
        if key not in self.storages:
            data = self.archive.read(f"{self.root}data/{key}")
            size = count * (1 if dtype is None else dtype.itemsize)
            if size > len(data):
                raise TorchFileError(f"storage {key} has {len(data)} bytes, expected {size}")
            self.storages[key] = _Storage(data, dtype)
        return self.storages[key]

    def _tensor(
        self, storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int],
        *_: Any,
    ) -> Tensor:  # fmt: skip
        """A tensor: `shape` elements of a storage, `strides` apart, from number `offset` on."""
        if not isinstance(storage, _Storage) or storage.dtype is None:
            raise TorchFileError("a tensor without a storage of known dtype")
        return self._view(storage.data, storage.dtype, offset, tuple(shape), tuple(strides))

    def _tensor_of_bytes(
        self, storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int],
        requires_grad: bool, hooks: Any, dtype: DType, *_: Any,
    ) -> Tensor:  # fmt: skip
        """A tensor of a dtype for which PyTorch has no storage type of its own."""
        if not isinstance(storage, _Storage) or not isinstance(dtype, DType):
            raise TorchFileError("a tensor without a storage or a dtype")
        return self._view(storage.data, dtype, offset, tuple(shape), tuple(strides))

    def _view(
        self, data: bytes, dtype: DType, offset: int, shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> Tensor:  # fmt: skip
        size, available = 1, len(data) // dtype.itemsize
        for extent in shape:
            size *= extent
        pairs = list(zip(shape, strides, strict=True))
        last = offset + sum((extent - 1) * stride for extent, stride in pairs)
        if offset < 0 or min((*shape, *strides, 0)) < 0 or (size and last >= available):
            raise TorchFileError(
                f"a tensor of shape {shape} with strides {strides} from element {offset} on, of a "
                f"storage of {available}"
            )
        expected = 1
        contiguous = True
        for extent, stride in reversed(pairs):
            contiguous = contiguous and (extent == 1 or stride == expected)
            expected *= extent
        if contiguous or not size:
            start = offset * dtype.itemsize
            part = data[start : start + size * dtype.itemsize]
            return Tensor.from_bytes(part, shape, dtype, self.device)
        part = data[offset * dtype.itemsize : (last + 1) * dtype.itemsize]
        flat = Tensor.from_bytes(part, (last + 1 - offset,), dtype, self.device)
        places: Any = 0
        for axis, (extent, stride) in enumerate(pairs):
            ramp = Tensor.arange(extent, dtype=dtypes.int64, device=self.device) * stride
            places = ramp.reshape(-1, *(1 for _ in shape[axis + 1 :])) + places
        return flat[places].realize()


def _data(data: Tensor, *_: Any) -> Tensor:
    """A parameter is its tensor here."""
    return data


def torch_load(path: str | os.PathLike[str], device: str | None = None) -> Any:
    """What torch.save wrote: a state dict, or dicts and lists of tensors and plain values.

    PyTorch need not be installed. Raises TorchFileError for a file of another kind (of PyTorch
    before 1.6, or pickled models and other objects): nothing that a file names is ever called.
    """
    where = Device.canonical(device or Device.DEFAULT)
    name = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = next((n[: -len("data.pkl")] for n in names if n.endswith("data.pkl")), None)
            if root is None:
                raise TorchFileError("it has no data.pkl")
            order = f"{root}byteorder"
            if order in names and archive.read(order) != b"little":
                raise TorchFileError("its numbers are big-endian, expected little-endian")
            return _Reader(archive, root, where).load()
    except TorchFileError as error:
        raise TorchFileError(f"torch_load({name!r}): {error}") from None
    except zipfile.BadZipFile:
        raise TorchFileError(
            f"torch_load({name!r}): not a ZIP archive; a file of PyTorch before 1.6, or with "
            "_use_new_zipfile_serialization=False, must be saved again"
        ) from None
    except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError, IndexError,
            AttributeError) as error:  # fmt: skip
        raise TorchFileError(f"torch_load({name!r}): the file is damaged: {error}") from error
