"""Writing GGUF files; see `gguf.py` for the format."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from minigrad.errors import expect
from minigrad.graph.symbolic import ceildiv
from minigrad.nn.gguf import ARRAY, SCALARS, STRING, GGUFError, Value, size_of
from minigrad.nn.gguf_blocks import LAYOUTS
from minigrad.nn.state import write_atomically

ALIGNMENT = 32  # bytes: a file's metadata and tensors begin at multiples of it
NUMBERS = {"F32": 0, "F16": 1} | {name: layout.number for name, layout in LAYOUTS.items()}
BOOL, UINT32, INT32, FLOAT32 = 7, 4, 5, 6


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its row-major shape, the number of its type, and a function for its bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    make: Callable[[], bytes]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return size_of(self.kind, math.prod(self.shape))


def value_of(plain: Any) -> Value:
    """A metadata value, in the type that llama.cpp expects for most keys.

    These are uint32, float32, bool, string, and lists of int32, float32, bool or string.
    """
    if isinstance(plain, list):
        kind = _kind(plain[0], INT32) if plain else STRING
        items = b"".join(_raw(item, kind) for item in plain)
        return Value(ARRAY, struct.pack("<IQ", kind, len(plain)) + items, plain)
    kind = _kind(plain, UINT32)
    return Value(kind, _raw(plain, kind), plain)


def _kind(plain: Any, whole: int) -> int:
    kinds = {bool: BOOL, int: whole, float: FLOAT32, str: STRING}
    if type(plain) not in kinds:
        raise GGUFError(f"metadata: expected bools, numbers, strings or lists, got {plain!r}")
    return kinds[type(plain)]


def _raw(plain: Any, kind: int) -> bytes:
    if kind == STRING:
        text = str(plain).encode()
        return struct.pack("<Q", len(text)) + text
    try:
        return struct.pack(SCALARS[kind], plain)
    except (struct.error, OverflowError, TypeError) as error:
        raise GGUFError(f"metadata {plain!r}: {error}") from None


def gguf_save(
    path: str | os.PathLike[str], metadata: Mapping[str, Value], tensors: Sequence[Entry]
) -> int:
    """Write a GGUF file of version 3, completely or not at all; returns its size in bytes.

    Tensors are computed one after the other. GGUFError if one has another size than its entry says.
    """
    pairs = {**metadata, "general.alignment": value_of(ALIGNMENT)}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    for key, value in pairs.items():
        head += _raw(key, STRING) + struct.pack("<I", value.kind) + value.raw
    offset = 0
    table = []
    for entry in tensors:
        extents = struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))
        rank, end = struct.pack("<I", len(entry.shape)), struct.pack("<IQ", entry.kind, offset)
        table.append(_raw(entry.name, STRING) + rank + extents + end)
        offset += _whole(entry.size)
    head += b"".join(table)
    head += bytes(_whole(len(head)) - len(head))

    def write(file: IO[bytes]) -> None:
        file.write(head)
        for entry in tensors:
            data = entry.make()
            expect(len(data) == entry.size, f"tensor {entry.name!r}", f"{entry.size} bytes",
                   len(data), error=GGUFError)  # fmt: skip
            file.write(data + bytes(_whole(len(data)) - len(data)))

    write_atomically(path, write)
    return len(head) + offset


def _whole(size: int) -> int:
    """Round up to a multiple of the alignment."""
    return ceildiv(size, ALIGNMENT) * ALIGNMENT
