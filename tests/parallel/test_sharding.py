"""Tensors on a mesh equal those of one device: values, gradients, writes, steps, errors."""

from __future__ import annotations

import json
import pickle
import signal
import threading
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import said
from devices import devices_of_ranks, exchanges

from minigrad import Blocks, Context, Device, Mesh, P, Tensor, jit, linalg, nn
from minigrad.errors import BoundsError, DeviceError, JitError, ShapeError
from minigrad.models import checkpoint, gpt_commands
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_checks import micro_batches
from minigrad.models.gpt_flags import parser
from minigrad.models.parallel.faults import RankError
from minigrad.models.parallel.layouts import pipeline
from minigrad.models.parallel.mesh_device import Team

from .programs import Program
from .ranks import LIMIT, on_mesh
from .sharded import (
    CONFIG,
    DEEP,
    LAYOUTS,
    MIXED,
    OVER_MPI,
    PIPELINES,
    batches,
    config_of,
    losses,
    staged,
)

pytestmark = pytest.mark.usefixtures("brief")
Made = Callable[..., Mesh]
SMALL = "--layers 2 --dim 16 --heads 2 --context 8 --batch 4 --seed 3"


@pytest.fixture
def mesh_of(device: str) -> Made:
    """A function that makes a mesh of devices of the kind under test."""
    if not exchanges(device):
        pytest.skip(f"{device} does not support exchanges")

    def make(**axes: int) -> Mesh:
        devices_of_ranks(device, int(np.prod([*axes.values()])))
        with Context(DEVICE=device):
            return Mesh(**axes)

    return make


@pytest.fixture
def pair(mesh_of: Made) -> Mesh:
    """A mesh of two devices."""
    return mesh_of(dp=2)


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_random_programs(first: int, reference: str) -> None:
    with Context(DEVICE=reference):
        mesh = Mesh(a=2, b=2)
    runtime = Device[mesh.name]
    for seed in range(first, first + 40):
        planned, sent = runtime.planned, runtime.bytes_sent
        program = Program(seed, reference, mesh)
        one, many = (sum((r[at] * 0.5).sum() for r in program.results) for at in (0, 1))
        one.backward()
        many.backward()
        for alone, divided in program.results:
            np.testing.assert_allclose(
                divided.numpy(), alone.numpy(), rtol=1e-4, atol=1e-4, err_msg=f"seed {seed}"
            )
        for alone, divided in program.leaves:
            if alone.grad is not None:
                np.testing.assert_allclose(
                    divided.grad.numpy(), alone.grad.numpy(), rtol=1e-4, atol=1e-3,
                    err_msg=f"seed {seed}",
                )  # fmt: skip
        assert runtime.planned - planned == runtime.bytes_sent - sent, f"seed {seed}"


def test_layouts_are_shown(mesh_of: Made) -> None:
    mesh = mesh_of(dp=2, tp=2)
    x = Tensor.ones(8, 12, device=mesh.devices[0]).shard(mesh, P("dp", None))
    w = Tensor.ones(6, 12, device=mesh.devices[0]).shard(mesh, P("tp", None))
    y = (x @ w.T).relu()
    assert x.sharding == "float32[8@dp, 12]"
    assert y.sharding == "float32[8@dp, 6@tp]"
    assert f"float32[8@dp, 6@tp] on {mesh}" in repr(y)
    assert (y @ w).sharding == "float32[8@dp, 12] + Σtp"
    assert y.realize().sharding == "float32[8@dp, 6@tp]"
    assert x.device == mesh.devices and len(x.device) == 4
    assert y.sum().item() == 8 * 6 * 12


def test_as_in_tinygrad(pair: Mesh) -> None:
    devices = tuple(pair.devices)
    data = np.arange(24, dtype=np.float32).reshape(4, 6)
    x = Tensor(data, device=devices[0])
    y = x.shard(devices, axis=0)
    assert y.device == devices
    z = y.shard(devices, axis=1)
    np.testing.assert_array_equal((z + y).numpy(), 2 * data)
    np.testing.assert_array_equal(y.shrink(((0, 2), None)).numpy(), data[:2])
    np.testing.assert_array_equal(y.to(devices[1]).numpy(), data)
    assert y.to(devices[1]).device == devices[1]
    assert y.to(devices).device == x.to(devices).device == devices
    np.testing.assert_array_equal((y.to(devices) + x.to(devices)).numpy(), 2 * data)
    y = Tensor(data, device=devices[0]).shard_(devices, 0).realize()
    y += 1
    y[1:3, 2] = 0.0
    expected = data + 1
    expected[1:3, 2] = 0
    np.testing.assert_array_equal(y.numpy(), expected)
    np.testing.assert_array_equal(y.shard_like(z).numpy(), expected)
    assert x.to(y).device == x.to(y.device).device == devices
    assert y.shard_like(x).device == devices[0] and x.shard_like(x) is x


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7])
def test_uneven_extents_are_never_seen(rows: int, mesh_of: Made) -> None:
    mesh = mesh_of(a=2, b=2)
    data = np.arange(rows * 5 + 5, dtype=np.float32).reshape(rows + 1, 5) - 7
    for spec in (P("a"), P(("a", "b")), P("a", "b"), P(None, ("b", "a"))):
        x = Tensor(data, device=mesh.devices[0]).shard(mesh, spec)
        for axis in (0, 1):
            np.testing.assert_allclose((1 / x.exp()).sum(axis).numpy(), np.exp(-data).sum(axis),
                                       rtol=1e-5)  # fmt: skip
            np.testing.assert_array_equal((x - 100).max(axis).numpy(), (data - 100).max(axis))
        x = x.realize()
        np.testing.assert_array_equal(x.numpy(), data)
        x.set_data(-data)
        np.testing.assert_array_equal((x @ x.T).numpy(), data @ data.T)


def test_a_captured_step_takes_its_layouts_only(pair: Mesh) -> None:
    total = Tensor.zeros(2, device=pair.devices[0]).contiguous().shard_(pair, P("dp"))

    @jit
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        total.assign(total + x.sum(1))
        return x * 2, x.sum().realize()

    for number in range(4):
        data = np.full((2, 3), number, np.float32)
        twice, summed = step(Tensor(data, device=pair.devices[0]).shard(pair, P("dp")))
        np.testing.assert_array_equal(twice.numpy(), 2 * data)
        assert summed.item() == 6 * number
    np.testing.assert_array_equal(total.numpy(), [18, 18])
    with pytest.raises(JitError, match=r"got float32\[2, 3\], .* with float32\[2@dp, 3\]"):
        step(Tensor.ones(2, 3, device=pair.name))


def test_random_numbers_do_not_depend_on_the_layout(pair: Mesh) -> None:
    def drawn(place: Callable[[Tensor], Tensor]) -> np.ndarray:
        Tensor.manual_seed(5)
        first = Tensor.randn(4, 6, device=pair.devices[0])
        with Tensor.train():
            return place(first).dropout(0.5).numpy()

    alone = drawn(lambda x: x)
    assert 0 < (alone == 0).mean() < 1
    for spec in (P(), P("dp"), P(None, "dp")):
        np.testing.assert_array_equal(drawn(lambda x, spec=spec: x.shard(pair, spec)), alone)
    np.testing.assert_array_equal(Tensor.rand(3, 2, device=pair.name).shard(pair, P("dp")).shape,
                                  (3, 2))  # fmt: skip


def test_random_numbers_of_a_mesh_are_resumed(pair: Mesh) -> None:
    """A restored state gives the same numbers, also after its first device has drawn some."""
    Tensor.manual_seed(3)
    Tensor.rand(2, device=pair.devices[0]).realize()
    for _ in range(2):  # before the mesh has drawn anything, and after
        state = Tensor.random_state()
        there = Tensor.rand(3, device=pair.name).numpy()
        Tensor.set_random_state(state)
        np.testing.assert_array_equal(Tensor.rand(3, device=pair.name).numpy(), there)


def test_statistics_of_a_divided_batch_are_those_of_all_of_it(pair: Mesh) -> None:
    """BatchNorm needs no wrapper: a mean over the batch is a mean over the whole batch."""
    data = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
    found = []
    for divided in (False, True):
        norm = nn.BatchNorm(3)
        for tensor in nn.state.get_state_dict(norm).values():
            moved = tensor.to(pair.devices[0])
            tensor._point(moved.realize().raw)
            if divided:
                tensor.shard_(pair)
        x = Tensor(data, device=pair.devices[0], requires_grad=True)
        if divided:
            x.shard_(pair, P("dp"))
        with Tensor.train():
            (norm(x) ** 3).sum().backward()
        found.append([norm.running_mean.numpy(), norm.running_var.numpy(), x.grad.numpy()])
    for alone, together in zip(*found, strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_a_bad_index_is_named(pair: Mesh) -> None:
    table = Tensor.ones(6, 2, device=pair.devices[0]).shard(pair, P("dp"))
    places = Tensor([1, 9], device=pair.devices[0]).shard(pair)
    with pytest.raises(BoundsError, match="index 9 at position"):
        table[places].numpy()
    assert table.sum().item() == 12  # and the mesh still works


def test_wrong_use(mesh_of: Made) -> None:
    mesh = mesh_of(dp=2, tp=2)
    x = Tensor.ones(6, 4, device=mesh.devices[0])
    with pytest.raises(ShapeError, match="has no axis 'sp': expected one of 'dp', 'tp'"):
        x.shard(mesh, P("sp"))
    with pytest.raises(ShapeError, match="expected each axis once, got 'dp' twice"):
        x.shard(mesh, P("dp", "dp"))
    with pytest.raises(ShapeError, match="expected at most 2 entries"):
        x.shard(mesh, P(None, None, "dp"))
    with pytest.raises(ShapeError, match="expected a multiple"):
        x.shard(mesh, P(Blocks("dp", 2)))
    with pytest.raises(DeviceError, match=r"expected P\(…\)"):
        x.shard(mesh, ("dp",))
    with pytest.raises(DeviceError, match=r"expected a Mesh, as Mesh\(dp=2\)"):
        x.shard("dp")
    with pytest.raises(DeviceError, match="to name the axes"):
        x.shard(mesh, axis=0)
    with pytest.raises(DeviceError, match=r"move one with .*, or with \.shard\(mesh, P\(…\)\)"):
        x.shard(mesh) + x
    with pytest.raises(DeviceError, match="expected axes with their sizes"):
        Mesh()
    with pytest.raises(DeviceError, match="an int ≥ 1"):
        Mesh(dp=0)
    with pytest.raises(ShapeError, match="expected an axis of"):
        x.shard_(mesh, P("dp"), stored="dp")


def test_pickles_and_copies(pair: Mesh) -> None:
    x = Tensor([[1.0, 2.0], [3.0, 4.0]], device=pair.devices[0]).shard(pair, P("dp")).realize()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(x)).numpy(), x.numpy())
    for clone in (copy, deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        for spec in (P("dp", "tp"), P(None, "dp"), P(Blocks("dp", 3)), P()):
            assert clone(spec) == spec
        assert clone(pair) == pair and clone(pair.devices).mesh == pair.name
        assert clone(nn.optim.SGD([x])).params[0].sharding == x.sharding
    with pair:
        assert Tensor.arange(3).device == pair.devices


def test_copies_stay_divided(pair: Mesh) -> None:
    layer = nn.Linear(4, 6)
    for tensor in (layer.weight, layer.bias):
        tensor._point(tensor.to(pair.devices[0]).realize().raw)
    layer.weight.shard_(pair, P(Blocks("dp", 3)), stored=None)
    layer.bias.shard_(pair, stored="dp")
    wanted = [layer.weight.sharding, layer.bias.sharding]
    assert wanted == ["float32[6@3×dp, 4]", "float32[6@dp]"]
    again = pickle.loads(pickle.dumps(layer))
    nn.state.load_state_dict(again, nn.state.get_state_dict(layer))
    for copied in (deepcopy(layer), again, deepcopy(layer).to(pair.name)):
        assert [copied.weight.sharding, copied.bias.sharding] == wanted
        assert copied.bias.raw.arg.memory.layout == layer.bias.raw.arg.memory.layout
    layer.to(dtype="bfloat16")
    assert layer.weight.sharding == "bfloat16[6@3×dp, 4]"
    assert layer.to(pair.devices[0]).bias.sharding == "bfloat16[6]"


def test_a_view_that_is_divided_is_a_tensor_of_its_own(pair: Mesh) -> None:
    x = Tensor([1.0, 2.0, 3.0], device=pair.devices[0]).realize()
    shown, divided = x[1:], x.detach().shard_(pair, P("dp"))
    x += 1
    assert divided.tolist() == [1, 2, 3] and divided.sharding == "float32[3@dp]"
    x.shard_(pair, P("dp"))
    x += 1
    assert shown.tolist() == [4, 5] and shown.device == pair.devices
    shown *= 2
    assert x.tolist() == [3, 8, 10] and divided.tolist() == [1, 2, 3]


def test_nothing_is_divided(pair: Mesh) -> None:
    """Arrays without elements, as inputs and as results."""
    nothing = Tensor.zeros(0, 4, device=pair.devices[0])
    for spec in (P("dp"), P(None, "dp"), P(Blocks("dp", 2)), P()):
        x = nothing.shard(pair, spec)
        for result in (x, x.realize(), x + 1, (x.realize() + 1).clone()):
            assert result.numpy().shape == (0, 4)
        assert x.sum(0).tolist() == [0] * 4
    x = Tensor.ones(4, 3, device=pair.devices[0]).shard(pair, P("dp"))
    for result in (x[x[:, 0] > 1], x[Tensor([], dtype="int32", device=pair.name)], x[:0]):
        assert (result * 2).numpy().shape == (0, 3)
    assert (x > 1).nonzero().numpy().shape == (0, 2)


def test_linear_algebra_takes_every_layout(mesh_of: Made) -> None:
    """Also one after the other: its programs are kept, one for each mesh and layout."""
    data = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    data = data @ data.T + 4 * np.eye(4, dtype=np.float32)
    for mesh in (mesh_of(a=2, b=2), mesh_of(a=4), mesh_of(a=2)):
        for spec in (P(), P("a"), P(None, "a"), P(Blocks("a", 2)) if "b" in mesh.sizes else P("a")):
            x = Tensor(data, device=mesh.devices[0]).shard(mesh, spec)
            for _ in range(3):  # the third one is replayed
                found = linalg.cholesky(x)
            np.testing.assert_allclose(found.numpy(), np.linalg.cholesky(data), rtol=1e-4)


# --- a GPT on every layout ------------------------------------------------------------------------


@cache
def alone(config: GPTConfig, optimizer: str) -> list[float]:
    """The losses on one device."""
    found: list[float] = losses(None, optimizer, config)["losses"]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_one_device(layout: str) -> None:
    """Some steps on threads; the planned bytes equal the bytes sent, and those of the formulas."""
    found = losses(layout, "sgd")
    np.testing.assert_allclose(found["losses"], alone(config_of(layout), "sgd")[:-1], rtol=1e-5)
    assert found["planned"] == found["sent"]
    if found["formula"] is not None:
        np.testing.assert_allclose(found["step"], found["formula"], rtol=0.02)


@pytest.mark.parametrize("layout", PIPELINES)
def test_losses_of_pipelines_are_those_of_one_device(layout: str) -> None:
    """Bytes between stages: two messages for each micro-batch and boundary, and tied weights."""
    found = staged(layout, "sgd")
    np.testing.assert_allclose(found["losses"], alone(config_of(layout), "sgd"), rtol=1e-5)
    assert found["sent"] == found["formula"]


@pytest.mark.parametrize("layout", ["interleaved × dp", "1f1b × sp"])
def test_a_pipeline_takes_batches_of_single_rows(layout: str) -> None:
    """A short text's validation has few windows; one of them cannot be divided over "dp"."""
    stages, *rest = PIPELINES[layout]
    made, (ids, targets) = pipeline(GPT(config_of(layout)), stages, *rest), next(batches())
    for rows in (1, 2, 3):
        own = [made.loss(ids[at : at + 1], targets[at : at + 1]) for at in range(rows)]
        together = made.loss(ids[:rows], targets[:rows])
        np.testing.assert_allclose(together, np.mean(own), rtol=1e-5)


def test_weights_whose_gradients_are_the_same_learn_all() -> None:
    """A parallel block's branches end in biases with equal gradients, which are one graph node."""
    ids, targets = next(batches())
    config = replace(CONFIG, parallel=True)
    Tensor.manual_seed(1)
    model = GPT(config)
    model.loss(Tensor(ids), Tensor(targets)).backward()
    Tensor.manual_seed(1)
    made = pipeline(GPT(config), 2, {"dp": 1}, "1f1b", 2, 1)
    before = {name: tensor.numpy().copy() for name, tensor in made.named.items()}
    made.train_with(lambda params: nn.optim.SGD(params, lr=1.0), 0)
    made.step(ids, targets)
    for name, tensor in nn.state.get_state_dict(model).items():
        assert tensor.grad is not None
        slope = before[name] - made.named[name].numpy()
        np.testing.assert_allclose(slope, tensor.grad.numpy(), atol=1e-6, err_msg=name)


def test_messages_of_stages_do_not_wait_for_each_other() -> None:
    """The second message can be taken before the first."""
    first, second = (stage for stage in pipeline(GPT(DEEP), *PIPELINES["zb × tp"]).here)
    shape, sent, found = (2, 3, DEEP.dim), np.arange(2), list[float]()
    for number in sent:
        given = first.rows(np.full(shape, number, np.float32)).shard(first.mesh, P("dp")).realize()
        first.port.send(given, 1, 1000 + int(number))

    def take() -> None:
        for number in reversed(sent):
            coming = second.port.expect(second.port.blank(shape), 0, 1000 + int(number))
            found.append(second.port.take(coming).numpy().max())

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    taking.join(LIMIT)
    assert found == [1, 0]
    first.port.flush()


def test_what_one_stage_raises_ends_all() -> None:
    stages, *rest = PIPELINES["1f1b"]
    made = pipeline(GPT(DEEP), stages, *rest)
    made.train_with(lambda params: nn.optim.SGD(params), 0)

    def forward(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raise ShapeError("no such layer")

    pieces = made.here[2].pieces
    made.here[2].pieces = {2: replace(pieces[2], forward=forward)}
    with pytest.raises(ShapeError, match="no such layer"):
        made.step(*next(batches()))
    made.here[2].pieces = pieces  # a later step does not repeat that error as its own
    for call in (made.step, made.loss):
        with pytest.raises(RankError, match=r"earlier step .* \(device 2 failed: ShapeError: no"):
            call(*next(batches()))


def test_an_interrupt_leaves_nothing_behind() -> None:
    """Ctrl-C while waiting for other devices: their work is ended, and waited for."""
    team, begun, ended = Team(2), threading.Event(), threading.Event()
    told, main = list[int](), threading.get_ident()

    def action(number: int) -> None:
        if number == 0:
            begun.set()
        else:
            begun.wait(LIMIT)
            signal.pthread_kill(main, signal.SIGINT)
            ended.wait(LIMIT)
            told.append(number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs ignore it
    try:
        raised = team.run(action, lambda _: ended.set())
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(raised, KeyboardInterrupt) and told == [1]
    assert team.run(told.append, lambda _: None) is None and sorted(told) == [0, 1, 1]


def test_an_interrupt_as_another_device_ends() -> None:
    """Ctrl-C just after the first device was woken, before it has noted that: it stops waiting."""
    team, ended = Team(2), list[BaseException | None]()
    waiting = team._ended

    class Late:
        put = waiting.put

        def get(self, timeout: float) -> None:
            waiting.get(timeout=timeout)
            team._ended = waiting
            raise KeyboardInterrupt

    team._ended = Late()
    running = threading.Thread(
        target=lambda: ended.append(team.run(lambda _: None, lambda _: None)), daemon=True
    )
    running.start()
    running.join(LIMIT)
    assert [type(error) for error in ended] == [KeyboardInterrupt]


FORKS = """
import os, threading
from minigrad import Mesh, P, Tensor, jit
x = Tensor.ones(4, 4).shard(Mesh(dp=2), P("dp")).realize()
step = jit(lambda: ((x @ x).sum() / 64).realize())
going = True
def busy():
    while going:
        step()
for _ in range(3):
    step()
thread = threading.Thread(target=busy)
thread.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(int(step().item() + (x * 2).sum().item() != 33))
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
going = False
thread.join()
print(codes, step().item())
"""


def test_the_child_of_a_fork_has_threads_of_its_own() -> None:
    """Otherwise it would wait for its parent's threads for ever."""
    assert said("-W", "ignore", "-c", FORKS) == "[0, 0, 0, 0, 0] 1.0\n"


@pytest.fixture(scope="module")
def over_mpi(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """One job of four ranks: the folder of saved models, and each rank's results for the layouts.
    """
    folder = tmp_path_factory.mktemp("parts")
    return folder, on_mesh("parallel.sharded", 4, str(folder), *OVER_MPI)


def test_the_same_over_mpi(over_mpi: tuple[Path, list[dict[str, Any]]]) -> None:
    """Every rank gets one device's losses."""
    for found in over_mpi[1]:
        for layout, part in found.items():
            expected = alone(config_of(layout), "sgd")
            count = len(part["losses"])
            np.testing.assert_allclose(
                part["losses"], expected[:count], rtol=1e-4, err_msg=layout
            )
            assert part.get("planned", part["formula"]) == part["sent"], layout


def test_models_are_saved_in_parts_over_mpi(over_mpi: tuple[Path, Any]) -> None:
    """One process can load them."""
    folder, _ = over_mpi
    for name, config in (("mixture", MIXED), ("zero", CONFIG), ("stages", DEEP)):
        tensors, metadata = checkpoint.load(folder / name)
        Tensor.manual_seed(1)
        expected = nn.state.get_state_dict(GPT(config))
        if name == "stages":  # also an optimizer's state: that of all stages, once
            expected |= nn.optim.AdamW(expected.values(), lr=1e-3).state_dict()
        assert metadata == {"name": name} and tensors.keys() == expected.keys()
        for key, tensor in tensors.items():
            assert np.array_equal(tensor.numpy(), expected[key].numpy()), (name, key)
        written = sorted(checkpoint.folder_of_parts(folder / name).iterdir())
        assert len(written) == 4  # not the files of the first save
        checkpoint.save(folder / name, {}, {})
        assert not checkpoint.folder_of_parts(folder / name).exists()


@pytest.mark.parametrize("parts", [
    '["0", [[]]]', '["0", [[[2, 4, 0]]]]', '["0", [[[2, 4, 0], [2, 4, 7]]]]',
    '["0", [[[2, 4, 0]]]], ["1", [[[2, 4, 0]]]]',  # the right number of elements, but some twice
    '["0", [[[2, 4, 0]]]], ["1", [[[2, 2, 1]]]]',
    '["0", [[[2, 4, 0]]]], ["../file", [[[2, 4, 1]]]]',  # the file itself
    '["0", [[], [[2, 4, 0]]]], ["1", [[]]]',  # two dimensions
])  # fmt: skip
def test_parts_that_do_not_make_a_whole_are_refused(parts: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.folder_of_parts(path).mkdir()
    for name in "01":
        checkpoint.save(checkpoint.folder_of_parts(path) / name, {"x": Tensor.ones(4)}, {})
    index = f'{{"x": {{"dtype": "float32", "shape": [8], "parts": [{parts}]}}}}'
    for text in (index.replace("[8]", f"[{1 << 60}]"), index):  # larger than any memory
        checkpoint.save(path, {}, {"parts": text})
        with pytest.raises(InputError, match="does not match its parts"):
            checkpoint.load(path)
    (checkpoint.folder_of_parts(path) / "0").unlink()
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        checkpoint.load(path)


@pytest.mark.parametrize(("flags", "count"), [
    ("--batch 20", 5), ("--batch 20 --schedule interleaved", 4), ("--batch 20 --dp 4", 5),
    ("--batch 5 --schedule interleaved", 1), ("--batch 1 --dp 4", 1),
])  # fmt: skip
def test_the_usual_number_of_micro_batches(flags: str, count: int) -> None:
    """The stages divide that of interleaved pieces, if any such number divides the batch."""
    assert micro_batches(parser().parse_args(["train", "--pp", "2", *flags.split()])) == count


def test_training_resumes_in_other_layouts(tmp_path: Path) -> None:
    """The losses are those of one device, validation included."""
    layouts = ("--dp 2 --zero 3", "--pp 2 --schedule zb --zero 0 --dp 1", "--dp 2",
               "--dp 1 --pp 1 --tp 2 --sp 2")  # fmt: skip
    found = []
    text = tmp_path / "text"
    text.write_text("To be, or not to be, that is the question. " * 40)
    for parts in ([""] * len(layouts), layouts):
        path, record = tmp_path / f"{len(found)}.safetensors", tmp_path / f"{len(found)}.jsonl"
        begin = ["train", *SMALL.split(), "--checkpoint", str(path), "--metrics", str(record),
                 "--text", str(text)]  # fmt: skip
        for number, flags in enumerate(parts, 1):
            start = begin if number == 1 else ["train", "--resume", str(path)]
            gpt_commands.main([*start, "--steps", str(2 * number), *flags.split()])
        lines = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
        found.append([*(line["loss"] for line in lines), lines[-1]["val_loss"]])
    assert len(found[0]) == 9
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--zero 1", "also give --dp 2"),
        ("--tp 3", "--tp 3 with 4 heads: give --tp a divisor"),
        ("--tp 2 --sp 4", "expected the same number"),
        ("--tp 2 --sp 2 --context 1", "--context 1 with --sp 2: a single token cannot be divided"),
        ("--ep 2", "with 0 experts: give --experts a multiple of 2"),
        ("--ep 3 --experts 4", "with 4 experts: give --experts a multiple of 3"),
        ("--ep 2 --experts 4 --batch 3", "on each of 2 devices"),
        ("--pp 2 --experts 4", "--experts does not combine with --pp"),
        ("--dp 2 --sp 2 --experts 4", "--experts does not combine with .* --sp without --tp"),
        ("--pp 5", "4 layers cannot be split into 5 pieces"),
        ("--pp 2 --dropout 0.1", "--dropout with --pp"),
        ("--pp 2 --batch 8 --micro 3", "--batch 8 is not a multiple of --micro 3 × --dp 1"),
        ("--pp 2 --accumulate 2", "use --micro instead"),
        ("--pp 2 --pieces 2", "--pieces 2 with --schedule 1f1b: only"),
    ],
)
def test_layouts_that_are_refused(flags: str, text: str, tmp_path: Path) -> None:
    words = tmp_path / "text"
    words.write_text("To be, or not to be, that is the question. " * 200)
    begin = ["train", "--steps", "1", "--text", str(words), "--checkpoint", str(tmp_path / "gpt")]
    with pytest.raises(InputError, match=text):
        gpt_commands.main([*begin, *flags.split()])
