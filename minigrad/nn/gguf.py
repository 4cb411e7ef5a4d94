"""GGUF, the file format of llama.cpp: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

A header (magic, version, counts), metadata (key, type, value), a table of tensors (name, extents,
type, offset), and the tensors' bytes, aligned. Everything is little-endian. A file may lie about
any of these: each figure is checked against the file's size before it is believed.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from minigrad.dtype import dtypes
from minigrad.errors import MinigradError, ShapeError, expect
from minigrad.graph.symbolic import ceildiv
from minigrad.nn.gguf_blocks import KINDS, LAYOUTS, quantized
from minigrad.nn.quantized import Quantized
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip
STRING, ARRAY = 8, 9
PLAIN = {0: dtypes.float32, 1: dtypes.float16, 24: dtypes.int8, 25: dtypes.int16,
          26: dtypes.int32, 27: dtypes.int64, 28: dtypes.float64, 30: dtypes.bfloat16}  # fmt: skip
_PACKED = {layout.number: name for name, layout in LAYOUTS.items()}
# types of files that this module cannot read, by name for the error
_OTHERS = {9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
           20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0",
           35: "TQ2_0", 39: "MXFP4"}  # fmt: skip
_DEEPEST = 4  # nested arrays
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class GGUFError(MinigradError, ValueError):
    """A file that is damaged, or not a GGUF file of a kind that can be read."""


@dataclass(frozen=True)
class Value:
    """A metadata value: the number of its type, its bytes in the file, and its Python value."""

    kind: int
    raw: bytes
    plain: Any


Content = tuple[dict[str, Value], dict[str, Tensor | Quantized]]  # metadata, tensors


class _Reader:
    """Reads values from an open file; GGUFError if the file ends too early."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.unread = self.size  # bytes of tensors that were not read yet

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        left = self.size - self.file.tell()
        data = self.file.read(count) if count <= left else b""
        if len(data) != count:
            raise GGUFError(f"{what} should have {count} bytes, but the file ends after {left}")
        return data

    def number(self, form: str, what: str) -> Any:
        """A number in a `struct` format."""
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, least: int, what: str) -> int:
        """A count of items of at least `least` bytes each; checked against the file's size."""
        count: int = self.number("<Q", what)
        if count * least > self.size - self.file.tell():
            raise GGUFError(f"{what}: {count} are more than fit in a file of {self.size} bytes")
        return count

    def text(self, what: str) -> str:
        """A UTF-8 string, preceded by its length."""
        try:
            return self.take(self.number("<Q", what), what).decode()
        except UnicodeDecodeError:
            raise GGUFError(f"{what} is not UTF-8") from None

    def pair(self, what: str) -> Value:
        """A metadata value, preceded by its type."""
        kind, start = self.number("<I", what), self.file.tell()
        plain = self.value(kind, what)
        count = self.file.tell() - start
        self.file.seek(start)
        return Value(kind, self.take(count, what), plain)

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        """A metadata value of the given type, as a Python value."""
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == STRING:
            return self.text(what)
        if kind != ARRAY or depth == _DEEPEST:
            raise GGUFError(f"{what} has the unknown type {kind}")
        inner = self.number("<I", what)
        if inner in SCALARS:
            form = SCALARS[inner]
            count = self.count(struct.calcsize(form), f"elements of {what}")
            data = self.take(count * struct.calcsize(form), what)
            return list(struct.unpack(f"<{count}{form[1]}", data))
        count = self.count(8, f"elements of {what}")
        return [self.value(inner, what, depth + 1) for _ in range(count)]


def gguf_load(
    path: str | os.PathLike[str], device: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor | Quantized]]:
    """(metadata, tensors) of a GGUF file of version 2 or 3, or of several that belong together.

    path: the file, or any of NAME-00001-of-00003.gguf … (the others are beside it; metadata are
    those of the first). Metadata are plain Python values by key. Tensors of F32, F16, BF16, F64 and
    integers are `Tensor`s of their own dtype; Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and Q2_K to Q6_K are
    `Quantized`. Shapes are in row-major order, (out, in) for a matrix. Raises GGUFError for a file
    that is damaged or of another kind, OSError if it cannot be read.
    """
    metadata, tensors = gguf_read(path, device)
    return {key: value.plain for key, value in metadata.items()}, tensors


def gguf_read(path: str | os.PathLike[str], device: str | None = None) -> Content:
    """As `gguf_load`, but metadata with their types in the file."""
    first, *rest = files = parts_of(Path(path))
    metadata, tensors = _load(first, device)
    count = metadata.get("split.count", Value(4, b"", 1)).plain
    if count != len(files) and (rest or type(count) is not int or count > 1):
        raise GGUFError(
            f"{first} is one of {len(files)} files by its name, but its metadata say {count!r}"
        )
    for number, part in enumerate(rest, 1):
        facts, more = _load(part, device)
        place = facts.get("split.no", Value(4, b"", None)).plain
        if place != number:
            raise GGUFError(f"{part}: expected part number {number} in its metadata, got {place!r}")
        twice = sorted(set(more) & set(tensors))
        if twice:
            raise GGUFError(f"the tensor {twice[0]!r} is in {part} and in an earlier part")
        tensors |= more
    total = metadata.get("split.tensors.count", Value(5, b"", len(tensors))).plain
    if total != len(tensors):
        raise GGUFError(f"{first}: expected {total!r} tensors, as it says, got {len(tensors)}")
    return metadata, tensors


def parts_of(path: Path) -> list[Path]:
    """All files of a split model, in order, from one file's name; GGUFError if one is missing."""
    name = _SPLIT.search(path.name)
    if name is None:
        return [path]
    count, stem = int(name[2]), path.name[: name.start()]
    if not 1 <= int(name[1]) <= count:
        raise GGUFError(f"{path}: the name says part {int(name[1])} of {count}")
    found = {entry.name for entry in path.parent.iterdir()}
    names = [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    lost = [name for name in names if name not in found]
    if lost:
        raise GGUFError(f"{path}: {lost[0]} is missing; put it in the same folder")
    return [path.parent / name for name in names]


def _load(path: Path, device: str | None) -> Content:
    """Metadata and tensors of a single file."""
    with path.open("rb") as file:
        try:
            return _read(_Reader(file), device)
        except GGUFError as error:
            raise GGUFError(f"{path}: cannot read this GGUF file: {error}") from None


def _read(reader: _Reader, device: str | None) -> Content:
    if reader.take(4, "the magic") != b"GGUF":
        raise GGUFError("the file does not begin with GGUF")
    version = reader.number("<I", "the version")
    expect(version in (2, 3), "version", "2 or 3", version, error=GGUFError)
    tensors, pairs = reader.count(24, "tensors"), reader.count(13, "metadata")
    metadata: dict[str, Value] = {}
    for _ in range(pairs):
        key = reader.text("a key")
        metadata[key] = reader.pair(repr(key))
    table = [_entry(reader) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", Value(4, b"", 32)).plain
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
        raise GGUFError(f"general.alignment={alignment!r}: expected an int in 1 … {1 << 20}")
    start = ceildiv(reader.file.tell(), alignment) * alignment
    found: dict[str, Tensor | Quantized] = {}
    reader.unread = reader.size - start
    for name, shape, kind, offset in table:
        if name in found:
            raise GGUFError(f"there are two tensors named {name!r}")
        found[name] = _tensor(reader, name, shape, kind, start + offset, device)
    return metadata, found


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """An entry of the table of tensors: (name, shape, type, offset)."""
    name = reader.text("a tensor's name")
    rank = reader.number("<I", repr(name))
    expect(rank <= 4, f"tensor {name!r}", "at most 4 dimensions", rank, error=GGUFError)
    extents = [reader.number("<Q", repr(name)) for _ in range(rank)]
    kind, offset = reader.number("<I", repr(name)), reader.number("<Q", repr(name))
    return name, tuple(reversed(extents)), kind, offset


def size_of(kind: int, elements: int) -> int:
    """Bytes of so many elements of a known type."""
    packed = _PACKED.get(kind)
    if packed is None:
        return elements * PLAIN[kind].itemsize
    return elements // KINDS[packed].block * LAYOUTS[packed].bytes


def _tensor(
    reader: _Reader, name: str, shape: tuple[int, ...], kind: int, place: int, device: str | None
) -> Tensor | Quantized:
    elements = math.prod(shape)
    packed = _PACKED.get(kind)
    if packed is None and kind not in PLAIN:
        known = ", ".join(["F32", "F16", "BF16", *KINDS])
        raise GGUFError(f"tensor {name!r}: type {_OTHERS.get(kind, kind)}, expected one of {known}")
    if packed is not None and (not shape or shape[-1] % KINDS[packed].block or not elements):
        raise GGUFError(
            f"tensor {name!r}: shape {shape} does not consist of rows of whole blocks of "
            f"{KINDS[packed].block} elements, as {packed} requires"
        )
    size = size_of(kind, elements)
    if size > reader.size - place:
        raise GGUFError(
            f"tensor {name!r}: its {size} bytes should begin at byte {place}, but the file has "
            f"only {reader.size} bytes"
        )
    reader.unread -= size
    if reader.unread < 0:
        raise GGUFError(f"tensor {name!r} overlaps other tensors")
    reader.file.seek(place)
    data = reader.take(size, f"the tensor {name!r}")
    try:
        if packed is not None:
            raw = Tensor.from_bytes(data, (size,), dtypes.uint8, device)
            return quantized(packed, raw, elements // shape[-1], shape[-1])
        return Tensor.from_bytes(data, shape, PLAIN[kind], device).requires_grad_(False)
    except (ShapeError, OverflowError) as error:
        raise GGUFError(f"tensor {name!r} of shape {shape}: {error}") from None


check_functions(globals())
