"""State dicts and safetensors files."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

from minigrad import Tensor, dtypes, nn
from minigrad.dtype import ALL
from minigrad.errors import DTypeError, ShapeError, StateError
from minigrad.models import checkpoint
from minigrad.nn import state

safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")


class Model:
    def __init__(self):
        self.table = nn.Embedding(5, 4)
        self.blocks = [nn.Sequential(nn.Linear(4, 4), Tensor.relu) for _ in range(2)]
        self.norms = {"last": nn.LayerNorm(4)}
        self.head = self.table.weight
        self.count = Tensor([0.0], requires_grad=False)
        self.me = self
        self.name, self.function = "model", len


NAMES = ["table.weight", "blocks.0.0.weight", "blocks.0.0.bias", "blocks.1.0.weight",
         "blocks.1.0.bias", "norms.last.weight", "norms.last.bias", "head", "count"]  # fmt: skip


def test_names(on_device):
    model = Model()
    assert list(state.get_state_dict(model)) == NAMES
    params = state.get_parameters(model)
    assert len(params) == 7, "tied once, without the one marked False"
    assert all(p is not model.count for p in params)
    assert params[0] is model.table.weight, "tied ones stand where they come first"
    assert list(state.get_state_dict([model.table], "a")) == ["a.0.weight"]


def test_deep_models_need_no_recursion(on_device):
    class Box:
        def __init__(self, inner):
            self.inner = inner

    box = Box(Tensor([1.0]))
    for _ in range(3000):
        box = Box(box)
    (name,) = state.get_state_dict(box)
    assert name.count("inner") == 3001


def test_load_state_dict(on_device):
    a, b = Model(), Model()
    memory = b.table.weight.realize().raw.arg
    state.load_state_dict(b, state.get_state_dict(a))
    for name, tensor in state.get_state_dict(b).items():
        np.testing.assert_array_equal(tensor.numpy(), state.get_state_dict(a)[name].numpy())
    assert b.table.weight.raw.arg is memory
    assert b.table.weight.requires_grad
    half = {name: t.half() for name, t in state.get_state_dict(a).items()}
    state.load_state_dict(b, half)
    assert b.table.weight.dtype is dtypes.float32


def test_load_state_dict_checks_first(on_device):
    model = Model()
    good = {name: Tensor(t.numpy() + 1) for name, t in state.get_state_dict(model).items()}
    before = model.table.weight.numpy()
    with pytest.raises(KeyError, match="head"):
        state.load_state_dict(model, {k: v for k, v in good.items() if k != "head"})
    with pytest.raises(KeyError, match="extra"):
        state.load_state_dict(model, {**good, "extra": Tensor([1.0])})
    with pytest.raises(ShapeError, match="count"):
        state.load_state_dict(model, {**good, "count": Tensor([1.0, 2.0])})
    np.testing.assert_array_equal(model.table.weight.numpy(), before)
    with pytest.raises(DTypeError, match="step"):
        state.load_state_dict({"step": Tensor([1])}, {"step": Tensor([1.5])})
    state.load_state_dict(model, {"count": Tensor([5.0])}, strict=False)
    assert model.count.item() == 5


def test_safetensors_round_trip(on_device, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        f"{dtype.name}.{len(shape)}": Tensor(rng.integers(0, 2, shape), dtype=dtype)
        for dtype in ALL for shape in [(), (0,), (3, 2)]
    }  # fmt: skip
    path = tmp_path / "x.safetensors"
    state.safe_save(tensors, path, {"note": "é"})
    loaded = state.safe_load(path)
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype is tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert loaded[name].device == on_device
        assert loaded[name].tolist() == tensor.tolist()
    assert state.safe_load_metadata(path) == {"note": "é"}
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(path)["float32.2"], tensors["float32.2"].numpy())


def test_a_name_that_the_format_keeps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rename it"):
        state.safe_save({"__metadata__": Tensor([1.0])}, tmp_path / "a.safetensors")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.numpy", raising=False)
    path = tmp_path / "a"
    for call in (lambda: state.safe_save({}, path), lambda: state.safe_load(path)):
        with pytest.raises(ModuleNotFoundError, match=r"safe_.*; run pip install safetensors"):
            call()


def test_reads_a_file_of_numpy(on_device, tmp_path):
    from safetensors.numpy import save_file

    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"a": values}, tmp_path / "n.safetensors")
    np.testing.assert_array_equal(state.safe_load(tmp_path / "n.safetensors")["a"].numpy(), values)


def test_saving_is_atomic(on_device, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    state.safe_save({"a": Tensor([1.0])}, path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        state.safe_save({"a": Tensor([2.0])}, path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"], "no temporary file is left"
    assert state.safe_load(path)["a"].item() == 1
    state.safe_save({"a": Tensor([2.0])}, path)
    assert state.safe_load(path)["a"].item() == 2


def test_writes_the_checkpoint_of_a_state_dict(on_device, tmp_path):
    model = Model()
    state.safe_save(state.get_state_dict(model), tmp_path / "m.safetensors")
    other = Model()
    state.load_state_dict(other, state.safe_load(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(other.table.weight.numpy(), model.table.weight.numpy())


SAVER = """
import os, signal, sys
from minigrad.nn.state import write_atomically

def write(file):
    file.write(b"a part")
    file.flush()
    if sys.argv[2] == "killed": os.kill(os.getpid(), signal.SIGKILL)
    print("here", flush=True)
    sys.stdin.readline()

write_atomically(sys.argv[1], write)
"""


@pytest.mark.parametrize("how", ["save", "load"])
def test_what_killed_saves_leave_is_removed(how, tmp_path):
    path = tmp_path / "m.safetensors"
    state.safe_save({"a": Tensor([1.0])}, path)

    def saver(end, name=path.name):
        command = [sys.executable, "-c", SAVER, str(tmp_path / name), end]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    living = saver("waits")
    assert living.stdout.readline() == b"here\n"
    for name in (path.name, "other"):
        assert saver("killed", name).wait() == -signal.SIGKILL
    elsewhere = tmp_path / f".{path.name}.{'0' * 8}-{2**22 + 1}-abcdefgh.tmp"
    unlike = tmp_path / f".{path.name}.old"
    for file in (elsewhere, unlike):
        file.write_bytes(b"of another machine, and no name of ours")
    assert len(list(tmp_path.iterdir())) == 1 + 1 + 2 + 2
    if how == "save":
        state.safe_save({"a": Tensor([1.0])}, path)
    else:
        checkpoint.load(path)
    left = {file.name for file in tmp_path.iterdir()}
    of_the_living = [name for name in left if f"-{living.pid}-" in name]
    of_another_path = [name for name in left if name.startswith(".other.")]
    assert len(of_the_living) == len(of_another_path) == 1
    assert left == {path.name, elsewhere.name, unlike.name, *of_the_living, *of_another_path}
    living.communicate(b"\n")
    assert living.returncode == 0 and path.read_bytes() == b"a part"


def test_a_name_as_long_as_a_name_can_be(tmp_path):
    path = tmp_path / ("n" * 255)
    state.write_atomically(path, lambda file: file.write(b"x"))
    assert path.read_bytes() == b"x"


def test_links_permissions_and_pipes_stay(tmp_path):
    path, link, pipe = (tmp_path / name for name in ("m.safetensors", "link", "pipe"))
    state.safe_save({"a": Tensor([1.0])}, path)
    path.chmod(0o600)
    link.symlink_to(path)
    state.safe_save({"a": Tensor([2.0])}, link)
    assert link.is_symlink() and state.safe_load(path)["a"].item() == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    os.mkfifo(pipe)  # stands for /dev/null
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    state.write_atomically(pipe, lambda file: file.write(b"x"))
    assert pipe.is_fifo() and os.read(reader, 9) == b"x"
    os.close(reader)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    state.write_atomically(tmp_path / "itself", lambda file: file.write(b"x"))
    assert (tmp_path / "itself").read_bytes() == b"x"


NO_STATES = {
    "model": lambda model, given: model.load_state_dict(given),
    "optimizer": lambda model, given: nn.optim.SGD(model.parameters()).load_state_dict(given),
    "scheduler": lambda model, given: nn.optim.lr_scheduler.StepLR(
        nn.optim.SGD(model.parameters()), 1).load_state_dict(given),
    "file": lambda _, given: state.safe_save(given, "none"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_STATES)
def test_what_is_no_state(kind):
    expected, how = "expected a dict of names and tensors", r"; use nn\.state\.safe_load\(path\)"
    if kind == "scheduler":  # whose state has no tensors
        expected, how = r"expected the result of a scheduler's state_dict\(\)", ""
    for given, words in (
        (None, f"{expected}, got NoneType"), ([1], f"{expected}, got list"),
        ("a.pt", rf"{expected}, got str{how}"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=words):
            NO_STATES[kind](nn.Linear(1, 1), given)
    if kind == "file":
        with pytest.raises(TypeError, match=r"got Linear; use nn\.state\.get_state_dict\(model\)"):
            state.safe_save(nn.Linear(1, 1), "none")
    wrong, words = (TypeError, "'a' is int") if kind == "file" else (StateError, "missing")
    with pytest.raises(wrong, match=words):
        NO_STATES[kind](nn.Linear(1, 1), {"a": 1})
    with pytest.raises(TypeError, match=r"'model' is dict; use get_state_dict\(…\)"):
        state.safe_save({"model": nn.Linear(1, 1).state_dict(), "epoch": 1}, "none")


def test_a_factor_that_is_no_function():
    optimizer = nn.optim.SGD(nn.Linear(1, 1).parameters())
    with pytest.raises(TypeError, match=r"LambdaLR: expected a function .* got 3"):
        nn.optim.lr_scheduler.LambdaLR(optimizer, 3)


def test_a_scheduler_of_wrong_numbers():
    rates, optimizer = nn.optim.lr_scheduler, nn.optim.SGD(nn.Linear(1, 1).parameters())
    for make, words in (
        (lambda: rates.ExponentialLR(optimizer, "a"), r"ExponentialLR\(gamma='a'\): expected a n"),
        (lambda: rates.StepLR(optimizer, None), r"StepLR\(step_size=None\): expected an int"),
        (lambda: rates.StepLR(optimizer, 1, gamma="a"), r"StepLR\(gamma='a'\): expected a number"),
        (lambda: rates.MultiStepLR(optimizer, ["a"]), r"MultiStepLR\(milestones=\['a'\]\): exp"),
        (lambda: rates.LinearLR(optimizer, "a"), r"LinearLR\(start_factor='a'\): expected a num"),
        (lambda: rates.CosineAnnealingLR(optimizer, "a"), r"CosineAnnealingLR\(T_max='a'\): exp"),
        (lambda: rates.LambdaLR(optimizer, abs, "a"), r"LambdaLR\(last_epoch='a'\): expected an"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=words):
            make()
    scheduler = rates.CosineAnnealingLR(optimizer, T_max=2.5, last_epoch=-1)
    for wrong in ({"base_lrs": 3}, {"base_lrs": [1.0, 2.0]}, {"last_epoch": None},
                  {"base_lrs": ["a"]}):  # fmt: skip
        with pytest.raises(StateError, match=r"expected the result .* with 1 groups"):
            scheduler.load_state_dict({**scheduler.state_dict(), **wrong})
