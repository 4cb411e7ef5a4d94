"""Parameters by name, and safetensors files of them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from minigrad.device import Device
from minigrad.dtype import FLOATS, INTS, dtypes
from minigrad.errors import DTypeError, expect
from minigrad.nn.gguf import gguf_load
from minigrad.nn.members import check_state, get_parameters, get_state_dict, load_state_dict
from minigrad.nn.torch_file import torch_load
from minigrad.tensor import Tensor, realization
from minigrad.tensor.arguments import check_functions

_NAMES = {f"{dtype.kind.upper()}{dtype.bits}": dtype for dtype in (*INTS, *FLOATS)}
_NAMES |= {"BOOL": dtypes.bool, "F16": dtypes.float16, "BF16": dtypes.bfloat16}


def _package(caller: str) -> Any:
    """The package safetensors, imported only when such a file is used."""
    try:
        import_module("safetensors.numpy")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{caller} needs the package safetensors, which is not installed; run pip install "
            "safetensors"
        ) from None
    return import_module("safetensors")


def safe_save(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a safetensors file, completely or not at all; until then an earlier file stays.

    tensors: by name, as from `get_state_dict`. metadata: texts by name. Needs the package
    safetensors. TypeError for values that are not tensors, OSError if the file cannot be written.
    """
    save = _package("safe_save").numpy.save
    check_state("safe_save", tensors)
    for name, tensor in tensors.items():
        expect(isinstance(name, str), "safe_save", "names that are strings", repr(name),
               error=TypeError)  # fmt: skip
        if not isinstance(tensor, Tensor):
            what, nested = f"{name!r} is {type(tensor).__name__}", isinstance(tensor, Mapping)
            how = "use get_state_dict(…)" if nested else "write Tensor(…)"
            raise TypeError(f"safe_save: expected tensors, but {what}; {how}")
    if "__metadata__" in tensors:
        raise ValueError("safe_save: the format reserves the name '__metadata__'; rename it")
    realization.realize(tensors.values())
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    whole = save(arrays, dict(metadata) if metadata else None)
    write_atomically(path, lambda file: file.write(whole))


def write_atomically(path: str | os.PathLike[str], write: Callable[[Any], Any]) -> None:
    """Let `write` fill a new file, then move it to `path` in one step.

    The temporary file is in the same folder; file and folder are flushed to the disk. After an
    error it is removed, and an earlier file is untouched. If the process is killed, the next
    `write_atomically` of the same path, or `remove_leftovers`, removes it. The new file has the
    permissions of the earlier one. Devices and pipes are written to directly.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.exists() and not target.is_file():  # as /dev/null, which must not be replaced
        with target.open("wb") as file:
            write(file)
        return
    if not target.parent.is_dir():  # the error would name the temporary file
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
    remove_leftovers(target)
    mark = f"{_machine()}-{os.getpid()}-{os.urandom(8).hex()}"
    temporary = target.with_name(f"{_stem(target)}{mark}.tmp")
    try:
        with temporary.open("xb") as file:
            if target.exists():
                shutil.copymode(target, temporary)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stem(target: Path) -> str:
    """The prefix of a path's temporary files; shortened, as the name may have the maximal length.
    """
    return f".{target.name[:50]}."


def _machine() -> str:
    """An id of this machine for file names, because process numbers are only unique on one."""
    return hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove files of processes of this machine that were killed in `write_atomically(path, …)`.

    Files of running processes, and of other machines that share the folder, stay.
    """
    target = Path(os.path.realpath(path))
    ours = re.compile(rf"{re.escape(_stem(target))}{_machine()}-(\d+)-\w+\.tmp")
    with suppress(OSError), os.scandir(target.parent) as found:
        for item in found:
            name = ours.fullmatch(item.name)
            if name is not None and not _lives(int(name[1])):
                with suppress(OSError):
                    os.unlink(item.path)


def _lives(process: int) -> bool:
    try:
        os.getpgid(process)
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextmanager
def _whole_file(caller: str, path: str | os.PathLike[str], package: Any) -> Iterator[None]:
    """Turn the package's error for a damaged file into a ValueError that names the file."""
    try:
        yield
    except package.SafetensorError as error:
        said = f"{caller}: {path} is damaged, or not a safetensors file: {error}"
        raise ValueError(said) from None


def safe_load(path: str | os.PathLike[str], device: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name; for an .index.json, those of all its files.

    device: where they are stored (default: `Device.DEFAULT`). Needs the package safetensors. An
    error names the file if it is missing or damaged, or has a dtype that is not here.
    """
    package = _package("safe_load")
    result: dict[str, Tensor] = {}
    if os.fspath(path).endswith(".index.json"):
        for part, names in parts_of_index(Path(path)).items():
            found = safe_load(part, device)
            missing = [name for name in names if name not in found]
            if missing:
                raise KeyError(f"safe_load: {path} lists {missing[:8]}, but {part.name} lacks it")
            result.update((name, found[name]) for name in names)
        return result
    where = Device.canonical(device)
    with _whole_file("safe_load", path, package):
        entries = package.deserialize(Path(path).read_bytes())
    for name, entry in entries:
        dtype = _NAMES.get(entry["dtype"])
        if dtype is None:
            raise DTypeError(
                f"safe_load: {name} has the unsupported dtype {entry['dtype']}: expected one of "
                f"{', '.join(_NAMES)}"
            )
        result[name] = Tensor.from_bytes(entry["data"], entry["shape"], dtype, where)
    return result


def parts_of_index(path: Path) -> dict[Path, list[str]]:
    """The files named in a HuggingFace index, which are beside it → their tensors' names.

    ValueError if the file is not an index.
    """
    try:
        content = json.loads(path.read_text())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"safe_load: {path} is not a safetensors index: {error}") from None
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict):
        raise ValueError(f"safe_load: {path} is not a safetensors index: no weight_map")
    parts: dict[Path, list[str]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise ValueError(f"safe_load: {path} names {file!r}: expected a file in its folder")
        parts.setdefault(path.parent / file, []).append(name)
    return parts


def safe_load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text metadata of a file, as given to `safe_save`."""
    package = _package("safe_load_metadata")
    with (
        _whole_file("safe_load_metadata", path, package),
        package.safe_open(os.fspath(path), framework="np") as file,
    ):
        return dict(file.metadata() or {})


check_functions(globals())
__all__ = [
    "get_parameters", "get_state_dict", "gguf_load", "load_state_dict", "safe_load",
    "safe_load_metadata",
    "remove_leftovers", "safe_save", "torch_load", "write_atomically",
]  # fmt: skip
