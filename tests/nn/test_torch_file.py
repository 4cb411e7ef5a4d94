"""Files of torch.save: what they hold, and what they may not do."""

from __future__ import annotations

import collections
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from minigrad import Tensor, nn
from minigrad.nn import state
from minigrad.nn.torch_file import TorchFileError


def archive(path, value, files=None, order=b"little"):
    """A file with the layout of torch.save but a pickle of our own."""
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
        with pytest.raises(TorchFileError, match="asks for"):
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
    # written by hand: the names do not exist here
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
    with pytest.raises(TorchFileError, match="storage"):
        state.torch_load(path)


def test_metadata_of_a_state_dict(on_device, tmp_path):
    """An OrderedDict with an attribute, as Module.state_dict gives."""
    value = collections.OrderedDict(a=1)
    value._metadata = {"version": 1}
    found = state.torch_load(archive(tmp_path / "f", value))
    assert dict(found) == {"a": 1}


def test_parts_with_an_index(on_device, tmp_path):
    pytest.importorskip("safetensors", reason="the package safetensors is not installed")
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
