"""A checkpoint that MPI ranks write together: each writes its parts, and the first an index.

The files of a checkpoint have unique names. The index, which is the checkpoint's file, is replaced
when all of them are on the disk; only then are the previous files removed. So a whole checkpoint is
left whenever a process is killed. See `minigrad.models.checkpoint.load`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from minigrad import Device, Tensor
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import Layout, axes_of, local_shape, whole
from minigrad.models import checkpoint
from minigrad.models.errors import InputError, failing_as
from minigrad.models.parallel.mesh_device import MeshMemory, runtime_of
from minigrad.models.parallel.mpi import World

Entry = dict[str, Any]


def save(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], ranks: World
) -> None:
    """Write a checkpoint; all ranks call this, and all raise an InputError of any of them.

    A tensor that is not on a mesh is written by the first rank, unless another rank has a part of
    it.
    """
    everybody, folder = ranks.library.COMM_WORLD, checkpoint.folder_of_parts(path)
    if tensors:
        Tensor.realize(*tensors.values())
    ranks.activity.enter("waiting")
    name = f"{everybody.bcast(uuid4().hex)}.{ranks.rank}-of-{ranks.size}"
    own, entries = dict[str, Tensor](), dict[str, Entry]()
    for key, tensor in tensors.items():
        entry = _entry(tensor, name)
        if entry is not None:
            entries[key], own[key] = entry, _part(tensor)
    failure = None
    try:
        with failing_as(f"cannot write {folder}"):
            folder.mkdir(exist_ok=True)
        checkpoint.save(folder / name, own, {})
    except InputError as error:
        failure = str(error)
    gathered = everybody.gather((name, entries, failure))
    if gathered is not None:
        failure = _write_index(path, tensors, metadata, gathered)
    failure = everybody.bcast(failure)
    ranks.activity.enter("computing")
    if failure is not None:
        raise InputError(failure)


def _write_index(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
    gathered: list[tuple[str, dict[str, Entry], str | None]],
) -> str | None:  # fmt: skip
    """The first rank's work; returns an error message of any rank, or None."""
    folder, index = checkpoint.folder_of_parts(path), dict[str, Entry]()
    for name, entries, failure in gathered:
        if failure is not None:
            return failure
        if not (folder / name).exists():
            return (f"{folder / name}, which another rank wrote, is missing here: give a "
                    "--checkpoint in a folder that all machines share")  # fmt: skip
        for key, entry in entries.items():
            index.setdefault(key, {**entry, "parts": []})["parts"] += entry["parts"]
    rest = {key: tensor for key, tensor in tensors.items() if key not in index}
    try:
        checkpoint.save(path, rest, {**metadata, checkpoint.PARTS: json.dumps(index)})
    except InputError as error:
        return str(error)
    return None


def _entry(tensor: Tensor, name: str) -> Entry | None:
    """The index entry of this rank's part; None if it has none to write.

    Of the ranks with the same part, the first one along each axis writes it.
    """
    mesh = Device.meshes.get(tensor.raw.device)
    if mesh is None:
        return None
    places, layout = mesh.places(runtime_of(mesh).local[0].number), _layout(tensor)
    if any(place for axis, place in places.items() if axis not in axes_of(layout.dims)):
        return None
    digits = [[[ways, stride, places[axis]] for axis, stride, ways in dim]
              for dim in layout.dims]  # fmt: skip
    return {"dtype": tensor.dtype.name, "shape": list(tensor._known_shape()),
            "parts": [[name, digits]]}  # fmt: skip


def _part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor on a mesh."""
    part = _memory(tensor).parts[0]
    shape = local_shape(tensor._known_shape(), _layout(tensor).dims)
    data = bytearray(numel(shape) * tensor.dtype.itemsize)
    if data:
        Device[part.device].copy_out(part.memory, memoryview(data))
    known = [extent for extent in shape if isinstance(extent, int)]
    return Tensor.from_bytes(data, known, tensor.dtype, part.device)


def _layout(tensor: Tensor) -> Layout:
    return _memory(tensor).layout or whole(tensor.ndim)


def _memory(tensor: Tensor) -> MeshMemory:
    found: MeshMemory = tensor.raw.arg.memory
    return found
