"""Checkpoints: named tensors and a little text in one safetensors file, with plain errors."""

from __future__ import annotations

import operator
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigrad import Tensor, nn
from minigrad.errors import MinigradError
from minigrad.models.console import require
from minigrad.models.errors import InputError

CHECKSUM = "crc32"


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of all names, shapes, dtypes, values and texts: the format itself has no such sum."""
    total = zlib.crc32(repr(sorted(metadata.items())).encode())
    Tensor.realize(*tensors.values())
    for name, tensor in sorted(tensors.items()):
        what = f"{name} {tensor.dtype.name} {plain_shape(tensor)}"
        total = zlib.crc32(tensor._bytes(), zlib.crc32(what.encode(), total))
    return f"{total:08x}"


def plain_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor that has no symbolic dimension; TypeError for one that has."""
    return tuple(operator.index(extent) for extent in tensor.shape)  # type: ignore[arg-type]


def check_writable(path: Path) -> None:
    """InputError where a file could not be written: better now than after hours of training."""
    require("safetensors")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"cannot write {path}: permission denied")


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write whole or not at all; an earlier file stays as it was where writing fails."""
    require("safetensors")
    try:
        with_sum = {**metadata, CHECKSUM: checksum(tensors, metadata)}
        nn.state.safe_save(dict(tensors), path, with_sum)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata); InputError where the file is missing, damaged or something else.

    Removes what was left beside it where a process was killed that saved to the same path.
    """
    failure: Any = require("safetensors").SafetensorError
    nn.state.remove_leftovers(path)
    try:
        tensors, metadata = nn.state.safe_load(path), nn.state.safe_load_metadata(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (failure, MinigradError, ValueError) as error:
        raise InputError(f"{path} is no undamaged safetensors file: {error}") from None
    stored = metadata.pop(CHECKSUM, None)  # files of other programs have none
    if stored is not None and stored != checksum(tensors, metadata):
        raise InputError(f"{path} is damaged: what it holds does not fit its checksum")
    return tensors, metadata
