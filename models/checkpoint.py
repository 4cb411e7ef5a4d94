"""Checkpoints: named tensors and some text in safetensors files, with readable errors.

One file holds everything; or it is an index of parts, which several ranks have written into the
folder beside it (`parallel/parts.py`). `load` reads either kind for any purpose.
"""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from minigrad import Tensor, nn
from minigrad.dtype import named
from minigrad.errors import MinigradError
from minigrad.models.console import require
from minigrad.models.errors import InputError, failing_as

CHECKSUM, PARTS = "crc32", "parts"  # keys of the metadata


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of all names, shapes, dtypes, values and texts; the format itself has no checksum."""
    total = zlib.crc32(repr(sorted(metadata.items())).encode())
    if tensors:
        Tensor.realize(*tensors.values())
    for name, tensor in sorted(tensors.items()):
        what = f"{name} {tensor.dtype.name} {tensor._known_shape()}"
        total = zlib.crc32(tensor._bytes(), zlib.crc32(what.encode(), total))
    return f"{total:08x}"


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write completely or not at all; if writing fails, an earlier file stays unchanged.

    Parts of an earlier checkpoint are removed once no file names them.
    """
    require("safetensors")
    with failing_as(f"cannot write {path}"):
        with_sum = {**metadata, CHECKSUM: checksum(tensors, metadata)}
        nn.state.safe_save(dict(tensors), path, with_sum)
    kept = metadata.get(PARTS, "")
    folder = folder_of_parts(path)
    with suppress(OSError):
        for old in folder.iterdir():
            if f'"{old.name}"' not in kept:
                old.unlink(missing_ok=True)
        if not kept:
            folder.rmdir()


@contextmanager
def alone_at(path: Path | None) -> Iterator[None]:
    """InputError if another process of this machine is training into the same file.

    It holds a socket with the path as its name, which is free again whenever the process ends.
    """
    with socket.socket(socket.AF_UNIX) as mark:
        try:
            if path is not None:
                mark.bind(f"\0minigrad {sha256(os.fsencode(os.path.realpath(path))).hexdigest()}")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # else such names are not supported here
                told = f"another process writes {path}: give another --checkpoint"
                raise InputError(told) from None
        yield


def folder_of_parts(path: Path) -> Path:
    """The folder with the parts of a checkpoint."""
    return path.with_name(f"{path.name}.parts")


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata); InputError if the file is missing, damaged or something else.

    Removes temporary files of processes that were killed while saving to the same path.
    """
    require("safetensors")
    nn.state.remove_leftovers(path)
    with failing_as(f"cannot read {path}"):
        try:
            tensors, metadata = nn.state.safe_load(path), nn.state.safe_load_metadata(path)
        except (MinigradError, TypeError, ValueError) as error:
            raise InputError(str(error).removeprefix("safe_load: ")) from None
    stored = metadata.pop(CHECKSUM, None)  # other programs' files have none
    if stored is not None and stored != checksum(tensors, metadata):
        raise InputError(f"{path} is damaged: its content does not match its checksum")
    if stored is not None and PARTS in metadata:
        try:
            tensors |= _joined(path, json.loads(metadata.pop(PARTS)))
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not match its parts: {error}") from None
    return tensors, metadata


def _joined(path: Path, index: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an index; it has each one's dtype, shape, and (file, digits) of its parts.

    Digits (ways, stride, place) of a dimension: the part has the indices i for which (i // stride)
    % ways == place; see `minigrad.graph.sharding`.
    """
    import numpy as np

    files: dict[str, dict[str, Tensor]] = {}
    found = {}
    for name, entry in index.items():
        dtype, shape = named(entry["dtype"]), tuple(entry["shape"])
        parts = []
        for file, dims in entry["parts"]:
            if Path(file).name != file:
                raise ValueError(f"{file!r} is not a file name")
            if file not in files:
                files[file], _ = load(folder_of_parts(path) / file)
            parts.append((file, dims, files[file].pop(name)))
        if math.prod(shape) > sum(math.prod(part._known_shape()) for *_, part in parts):
            raise ValueError(f"the parts of {name} have fewer elements than its shape {shape}")
        array, taken = np.empty(shape, f"u{dtype.itemsize}"), np.zeros(shape, bool)
        for file, dims, part in parts:
            own = [np.arange(extent) for extent in shape]
            for at, digits in enumerate(dims):
                for ways, stride, place in digits:
                    own[at] = own[at][own[at] // stride % ways == place]
            values = np.frombuffer(part._bytes(), array.dtype).reshape(part._known_shape())
            values = values[tuple(slice(len(places)) for places in own)]
            cells = np.ix_(*own)
            if values.shape != taken[cells].shape or taken[cells].any():
                raise ValueError(f"the part of {name} in {file} does not fit beside the others")
            array[cells], taken[cells] = values, True
        if not taken.all():
            raise ValueError(f"{np.sum(~taken)} elements of {name} are in no part")
        found[name] = Tensor.from_bytes(array.tobytes(), shape, dtype)
    return found
