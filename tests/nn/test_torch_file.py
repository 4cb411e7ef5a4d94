"""Files of torch.save: their contents, and that they run no code."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pickle
import random
import tracemalloc
import zipfile

import numpy as np
import pytest
from devices import OTHER

from minigrad import Tensor, nn
from minigrad.dtype import ALL
from minigrad.nn import state
from minigrad.nn.torch_file import TorchFileError


def archive(path, value, files=None, order=b"little"):
    """A file with the layout of torch.save, but with the given pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", value if isinstance(value, bytes) else pickle.dumps(value, 2))
        file.writestr("m/byteorder", order)
        for name, data in (files or {}).items():
            file.writestr(f"m/data/{name}", data)
    return path


def test_reads_what_torch_saves(on_device, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    kinds = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
             torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16]  # fmt: skip
    base = torch.arange(24)
    saved = {f"{kind}": (base % 2 if kind is torch.bool else base).reshape(2, 3, 4).to(kind)
             for kind in kinds}  # fmt: skip
    floats = torch.randn(5, 6)
    saved |= {
        "transposed": floats.T, "part": floats[1:4, ::2], "same": floats, "0-d": torch.tensor(3.5),
        "empty": torch.zeros(0, 4), "expanded": torch.ones(1, 3).expand(4, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    torch.save({"model": saved, "epoch": 7, "names": ["a", ("b", None, 1.5, True)]}, tmp_path / "f")
    found = state.torch_load(tmp_path / "f")
    assert found["epoch"] == 7 and found["names"] == ["a", ("b", None, 1.5, True)]
    for name, tensor in saved.items():
        assert found["model"][name].device == on_device
        assert found["model"][name].tolist() == tensor.detach().tolist(), name
        assert str(found["model"][name].dtype.name) == str(tensor.dtype).removeprefix("torch.")
    assert state.torch_load(tmp_path / "f", OTHER)["model"]["part"].device == OTHER


def test_loads_a_state_dict(on_device, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm(4))
    state.load_state_dict(ours, state.torch_load(tmp_path / "m.pth"))
    x = torch.randn(2, 3, 5, 5)
    expected = theirs.eval()(x).detach().numpy()
    np.testing.assert_allclose(ours(Tensor(x.numpy())).numpy(), expected, rtol=1e-4, atol=1e-5)


class Evil:
    def __reduce__(self):
        return os.system, ("touch should_not_exist",)


def test_never_calls_what_a_file_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TorchFileError, match=r"system.*state_dict"):
        state.torch_load(archive(tmp_path / "evil", {"a": Evil()}))
    assert not (tmp_path / "should_not_exist").exists()
    for bad in (b"cbuiltins\neval\n.", b"ctorch\nload\n.", b"ctorch._utils\n_rebuild_qtensor\n."):
        with pytest.raises(TorchFileError, match="refers to"):
            state.torch_load(archive(tmp_path / "evil", bad))


def test_damaged_files(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"no archive")
    with pytest.raises(TorchFileError, match="not a ZIP"):
        state.torch_load(path)
    with pytest.raises(TorchFileError, match="big-endian"):
        state.torch_load(archive(path, {}, order=b"big"))
    for cut in (b"\x80\x02}q\x00", b"", b"\x80\x02(."):
        with pytest.raises(TorchFileError):
            state.torch_load(archive(path, cut))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("other", b"")
    with pytest.raises(TorchFileError, match=r"no data\.pkl"):
        state.torch_load(path)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "size"),
    [((2, 3), (3, 1), 0, 20), ((2, 3), (3, 1), 1, 24), ((2,), (9,), 0, 24), ((2,), (-1,), 1, 24),
     ((-2,), (1,), 0, 24), ((2,), (1,), -1, 24)],
)  # fmt: skip
def test_tensors_that_leave_their_storage(shape, strides, offset, size, tmp_path):
    # written by hand: pickle.dumps would need these names
    def number(n):
        return b"J" + int(n).to_bytes(4, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    code = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(6) + b"tQ"
        + number(offset) + numbers(shape) + numbers(strides) + b"\x89NtR."
    )  # fmt: skip
    path = archive(tmp_path / "f", code, {"0": bytes(size)})
    with pytest.raises(TorchFileError, match=r"storage|offset"):
        state.torch_load(path)


def test_metadata_of_a_state_dict(on_device, tmp_path):
    """An OrderedDict with an attribute, as Module.state_dict gives."""
    value = collections.OrderedDict(a=1)
    value._metadata = {"version": 1}
    found = state.torch_load(archive(tmp_path / "f", value))
    assert dict(found) == {"a": 1}


def test_parts_with_an_index(on_device, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    state.safe_save({"a": Tensor([1.0]), "x": Tensor([5.0])}, tmp_path / "1.safetensors")
    state.safe_save({"b": Tensor([2.0])}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    found = state.safe_load(index)
    assert {name: tensor.item() for name, tensor in found.items()} == {"a": 1.0, "b": 2.0}
    index.write_text(json.dumps({"weight_map": {"c": "1.safetensors"}}))
    with pytest.raises(KeyError, match="c"):
        state.safe_load(index)
    for wrong in ({"weight_map": {"a": "../1.safetensors"}}, {}, []):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="safe_load"):
            state.safe_load(index)
    index.write_text('{"weight_map":')
    with pytest.raises(ValueError, match=r"json is not a safetensors index: Expecting value"):
        state.safe_load(index)
    (tmp_path / "1.safetensors").write_bytes(b"1234567")
    with pytest.raises(ValueError, match=r"safe_load: .*1\.safetensors is damaged"):
        state.safe_load(tmp_path / "1.safetensors")
    with pytest.raises(ValueError, match=r"safe_load_metadata: .*1\.safetensors is damaged"):
        state.safe_load_metadata(tmp_path / "1.safetensors")


# ---- malicious files ----

MEBI = 1 << 20


def number(n):
    return b"J" + int(n).to_bytes(4, "little", signed=True)


def long(n):
    data = int(n).to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tensor_of(shape, strides, offset=0, count=4, key="0", kind="FloatStorage"):
    """The pickle instructions that create a tensor of a storage."""

    def several(values):
        return b"(" + b"".join(map(long, values)) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + f"ctorch\n{kind}\n".encode()
        + text(key) + text("cpu") + number(count) + b"tQ" + long(offset) + several(shape)
        + several(strides) + b"\x89NtR"
    )  # fmt: skip


def refused(path, match=None):
    """The file raises a one-sentence error, using less than 100 MB more than its own size."""
    tracemalloc.start()
    try:
        with pytest.raises(TorchFileError, match=match) as caught:
            state.torch_load(path)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size + 100 * MEBI
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


SHARED = {
    "a dtype": b"ctorch\nfloat32\n",
    "a storage's kind": b"ctorch\nFloatStorage\n",
    "a function": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "a class": b"ccollections\nOrderedDict\n",
    "a tensor": tensor_of((2,), (1,)),
    "a text": text("a"),
    "a tuple": b"(t",
}
CHANGES = {
    "attributes": b"}" + text("itemsize") + b"K\x01sb",
    "attributes in slots": b"N}" + text("itemsize") + b"K\x01s\x86b",
    "an item": text("itemsize") + b"K\x01s",
    "items": b"(" + text("itemsize") + b"K\x01u",
    "an element": b"K\x01a",
    "elements": b"(K\x01e",
    "members": b"(K\x01\x90",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shared", SHARED)
def test_nothing_of_this_process_is_changed(shared, change, tmp_path):
    before = {dtype: repr([getattr(dtype, name) for name in dtype.__slots__]) for dtype in ALL}
    path = archive(tmp_path / "f", b"\x80\x02" + SHARED[shared] + CHANGES[change] + b".",
                   {"0": bytes(16)})  # fmt: skip
    refused(path)
    for dtype, found in before.items():
        assert repr([getattr(dtype, name) for name in dtype.__slots__]) == found


def test_attributes_of_a_state_dict_hide_nothing(tmp_path):
    path = archive(tmp_path / "f", b"\x80\x02ccollections\nOrderedDict\n)R}" + text("items")
                   + b"K\x01sb.")  # fmt: skip
    assert list(state.torch_load(path).items()) == []


def packed(path, claim, size):
    """An archive whose data/0 has `size` bytes, compressed, but declares `claim` bytes."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02" + tensor_of((2,), (1,)) + b".")
        file.writestr("m/data/0", bytes(size), zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()
    true, said = (n.to_bytes(4, "little") for n in (size, claim))
    assert raw.count(true) >= 2
    path.write_bytes(raw.replace(true, said))
    return path


@pytest.mark.parametrize("claim", [16, 400 * MEBI])
def test_an_entry_that_unpacks_to_more_than_the_file(claim, tmp_path):
    refused(packed(tmp_path / "f", claim, 400 * MEBI), "expected uncompressed data")


def test_many_entries_that_share_their_bytes(tmp_path):
    """A directory that lists one storage many times."""
    size, times = 8 * MEBI, 40
    path = tmp_path / "f"
    with zipfile.ZipFile(path, "w") as file:
        code = b"".join(tensor_of((2,), (1,), key=str(n)) for n in range(times))
        file.writestr("m/data.pkl", b"\x80\x02(" + code + b"t.")
        file.writestr("m/data/0", bytes(size))
        first = file.getinfo("m/data/0")
        for n in range(1, times):
            again = zipfile.ZipInfo(f"m/data/{n}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(again, field, getattr(first, field))
            file.filelist.append(again)
            file.NameToInfo[again.filename] = again
    refused(path)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((1 << 34,), (0,)), ((4, 1 << 32), (1, 0)), ((1 << 61, 8), (0, 0)), ((1,) * 65, (0,) * 65),
     ((1 << 70, 0), (0, 0)), ((0, 1 << 70), (1, 1))],
)  # fmt: skip
def test_views_larger_than_memory(shape, strides, tmp_path):
    refused(archive(tmp_path / "f", b"\x80\x02" + tensor_of(shape, strides) + b".",
                    {"0": bytes(16)}), "a tensor of")  # fmt: skip


def test_many_views_that_are_large_together(tmp_path):
    one = tensor_of((1 << 22,), (0,))
    path = archive(tmp_path / "f", b"\x80\x02(" + one * 40 + b"t.", {"0": bytes(16)})
    refused(path, "more than twice as large")


@pytest.mark.parametrize(
    "code",
    [b"Nr" + (2**31 - 1).to_bytes(4, "little"), b"j\xff\xff\xff\xff",
     b"N\x8a\xff", b"\x8b\xff\xff\xff\x7f", b"\x96" + (1 << 40).to_bytes(8, "little"),
     b"\x8e" + (1 << 62).to_bytes(8, "little"), b"\x8d" + b"\xff" * 8, b"B\xff\xff\xff\xff",
     b"I" + b"9" * 5000 + b"\n", b"\x8b" + (100_000).to_bytes(4, "little") + b"\x7f" * 100_000],
)  # fmt: skip
def test_numbers_that_promise_too_much(code, tmp_path):
    refused(archive(tmp_path / "f", b"\x80\x02" + code + b"."))


def test_keys_whose_hash_would_take_for_ever(tmp_path):
    """A pair of twice a pair of twice …, 200 deep; also as a reference and as a shape."""
    deep = b")" + b"2\x86" * 200
    refused(archive(tmp_path / "f", b"\x80\x02}" + deep + b"Ns."), "key")
    refused(archive(tmp_path / "f", b"\x80\x02" + deep + b"Q."), "reference")
    refused(archive(tmp_path / "f", b"\x80\x02\x8f(" + deep + b"\x90."), "key")
    refused(archive(tmp_path / "f", b"\x80\x02ctorch\nSize\n" + deep + b"R."))


def test_plain_values_of_every_protocol(tmp_path):
    value = {"a": [1, -1, 255, 65536, -(2**31), 2**40, -(2**200), 1.5, None, True, False, "é€😀"],
             ("t", 1): ((), (1,), (1, 2), (1, 2, 3), tuple(range(9)), {}, []), 7: "x" * 300,
             "same": [[1]] * 3}  # fmt: skip
    newer = {"bytes": b"\xff" * 300, "set": {1, 2}, "frozen": frozenset({3}), "b": bytearray(b"x")}
    for protocol in range(1, 6):
        given = value | (newer if protocol == 5 else {})
        found = state.torch_load(archive(tmp_path / "f", pickle.dumps(given, protocol)))
        assert found == given and found["same"][0] is found["same"][1]


def test_damaged_pickles_of_all_kinds(tmp_path):
    """Truncated anywhere, or with any byte changed: they give a value or raise TorchFileError."""
    ordered = collections.OrderedDict(a=1, b=(2.5, "c"))
    code = pickle.dumps({"d": [1, None, {"e": ordered}]}, 2)[:-1] + b"0" + tensor_of((2,), (1,))
    generator = random.Random(5)
    damaged = [code[:cut] for cut in range(len(code))]
    for _ in range(5 * len(code)):  # about five values for each byte
        changed = bytearray(code + b".")
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        damaged.append(bytes(changed))
    for one in damaged:
        with contextlib.suppress(TorchFileError):
            state.torch_load(archive(tmp_path / "f", one, {"0": bytes(16)}))
