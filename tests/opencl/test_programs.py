"""Symbolic sizes, writes, copies and models: an OpenCL device agrees with REF."""

from __future__ import annotations

import numpy as np
import pytest
from devices import CPU, REFERENCE
from opencl.agreement import agree, numbers

from minigrad import Context, GlobalCounters, Tensor, Variable, jit, nn
from minigrad.device import Device
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.mlp import MLP
from minigrad.models.moe import MoE

pytest.importorskip("pyopencl")


# ---- symbolic sizes, writes in place, devices ----


def test_one_program_serves_every_value_of_a_variable(device):
    data, length = numbers(16, 6), Variable("length", 1, 16)
    with Context(DEVICE=device):
        cache = Tensor(data).realize()
        built = None
        for n in (1, 5, 16):
            part = cache.shrink(((0, length.bind(n)), (0, 6)))
            total, weights = part.sum(0), part.softmax(0).sum(0)
            np.testing.assert_allclose(total.numpy(), data[:n].sum(0), atol=1e-5)
            np.testing.assert_allclose(weights.numpy(), np.ones(6), atol=1e-6)
            assert built in (None, GlobalCounters.kernels_compiled)
            built = GlobalCounters.kernels_compiled


def test_writes_in_place_see_the_old_values(device):
    data = numbers(30)
    with Context(DEVICE=device):
        x = Tensor(data).realize()
        before = x * 2
        x.assign(x.flip(0) + 1)
        Tensor.realize(before, x)
    np.testing.assert_array_equal(before.numpy(), data * 2)
    np.testing.assert_array_equal(x.numpy(), data[::-1] + 1)


def test_copies_between_devices(device):
    data = numbers(50, 3)
    for name in (CPU, REFERENCE):
        there = Tensor(data, device=name).to(device) + 1
        np.testing.assert_array_equal((there.to(name) * 2).numpy(), (data + 1) * 2)


# Sizes whose copies wait in the queue (more of them than may wait), and a size that never waits.
@pytest.mark.parametrize(("size", "count"), [(1000, 20), (1_100_000, 3)], ids=["few", "many"])
@pytest.mark.parametrize("host", [CPU, REFERENCE, "numpy"])
def test_a_copy_has_what_its_source_held_then(device, host, size, count):
    """Right afterwards the source is overwritten, or its memory reused, while the queue is busy."""
    busy = Tensor(numbers(120, 120), device=device).realize()
    given = numbers(size)
    copies = []
    for number in range(count):
        busy = (busy @ busy).tanh().realize()
        if host == "numpy":
            values = given + number
            copies.append(Tensor(values, device=device).realize())
            values[:] = -1
        else:
            source = (Tensor(given, device=host) + number).realize()
            copies.append(source.to(device).realize())
            source.assign(source * 0 - 1).realize()
            if number % 2:
                del source
                Tensor.full((size,), -2.0, device=host).contiguous().realize()
    for number, copy in enumerate(copies):
        np.testing.assert_array_equal(copy.numpy(), given + np.float32(number))


@pytest.mark.parametrize("host", [CPU, REFERENCE])
def test_a_copy_to_the_host_is_complete_when_a_kernel_reads_it(device, host):
    for number in range(3):
        x = Tensor(numbers(120, 120, seed=number), device=device).realize()
        for _ in range(3):
            x = (x @ x).tanh().realize()
        there = x.to(host).realize()
        got = (there * 2).realize()
        wanted = 2 * x.numpy()
        x.assign(x * 0 + number).realize()
        np.testing.assert_array_equal(got.numpy(), wanted)


def test_a_copy_waits_for_what_fills_it_and_later_writes_for_the_copy(device, second):
    """Two queues of one context: nothing goes through the host."""
    data = numbers(3000)
    x, last = Tensor(data, device=device).realize(), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device[device], "copy_out", None)
        for number in range(20):
            x.assign(x + number).realize()
            last = x.to(second).realize()
        x.assign(x * 0).realize()
    np.testing.assert_allclose(last.numpy(), data + 190, rtol=1e-6)
    np.testing.assert_array_equal(x.numpy(), np.zeros_like(data))


def test_memory_is_reused_and_counted(device):
    runtime = Device[device]
    first = Tensor(numbers(5000), device=device).realize()
    del first
    held = runtime.pool.held
    for _ in range(5):
        second = Tensor(numbers(5000), device=device).realize()
        del second
    assert runtime.pool.held == held


# ---- models ----


def losses_of(device, make_model, loss_of, steps=3):
    """Losses of a few optimizer steps, and the parameters after them."""
    with Context(DEVICE=device):
        Tensor.manual_seed(5)
        model = make_model()
        optimizer = nn.optim.AdamW(nn.state.get_parameters(model), lr=1e-2)
        losses = []
        with Tensor.train():
            for _ in range(steps):
                optimizer.zero_grad()
                loss = loss_of(model)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        state = nn.state.get_state_dict(model)
        return losses, {name: value.numpy() for name, value in state.items()}


def same_training(device, make_model, loss_of):
    (got, state), (wanted, reference) = (
        losses_of(name, make_model, loss_of) for name in (device, REFERENCE)
    )
    np.testing.assert_allclose(got, wanted, rtol=2e-5)
    assert got[-1] < got[0]
    for name, value in reference.items():
        difference = np.abs(state[name] - value)
        assert np.median(difference) <= 1e-5, name  # Adam magnifies what is nearly zero
    return got


def test_a_multilayer_perceptron_trains(device):
    x, y = numbers(32, 12), np.arange(32, dtype=np.int32) % 10
    same_training(
        device,
        lambda: MLP((12, 16, 16, 10)),
        lambda model: model(Tensor(x)).cross_entropy(Tensor(y)),
    )


def test_a_small_gpt_gives_the_logits_of_ref(device):
    ids = np.random.default_rng(2).integers(0, 20, (2, 8)).astype(np.int32)
    logits = []
    for name in (device, REFERENCE):
        with Context(DEVICE=name):
            Tensor.manual_seed(1)
            model = GPT(GPTConfig(layers=1, heads=2, dim=16, context=8, vocabulary=20))
            logits.append(model(Tensor(ids)).numpy())
    np.testing.assert_allclose(*logits, atol=2e-6)


def test_a_captured_step_replays_without_building_anything(device, small_training):
    def train(captured):
        with Context(DEVICE=device):
            run, weight = small_training(captured)
            data = [
                (Tensor(numbers(8, 12, seed=s)), Tensor(numbers(8, 5, seed=s))) for s in range(6)
            ]
            with Tensor.train():
                losses = [run(*data[n]).item() for n in range(3)]
                built = GlobalCounters.kernels_compiled
                losses += [run(*data[n]).item() for n in range(3, 6)]
            assert GlobalCounters.kernels_compiled == built
            return losses, weight.numpy()

    (losses, weight), (wanted, plain) = train(True), train(False)
    assert losses == wanted
    np.testing.assert_array_equal(weight, plain)


def test_kernels_that_differ_in_buffers_only_share_what_was_made(device):
    """Another program with the same kernels lowers, renders and builds nothing, and is right."""
    x, y = numbers(19, 31), numbers(19, 31, seed=1)

    def made(*arrays):
        before = [GlobalCounters.kernels_lowered, GlobalCounters.kernels_rendered,
                  GlobalCounters.kernels_compiled]  # fmt: skip
        tensors = [Tensor(array, device=device) for array in arrays]
        results = [(t * 3.25).softmax(1).contiguous().sum(0) for t in tensors]
        Tensor.realize(*results)
        after = [GlobalCounters.kernels_lowered, GlobalCounters.kernels_rendered,
                 GlobalCounters.kernels_compiled]  # fmt: skip
        for array, result in zip(arrays, results, strict=True):
            e = np.exp(array * 3.25 - (array * 3.25).max(1, keepdims=True))
            wanted = (e / e.sum(1, keepdims=True)).sum(0)
            np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-5)
        return [b - a for a, b in zip(before, after, strict=True)]

    made(x)
    assert made(x, y) == [0, 0, 0]


def test_conditions_that_are_the_same_in_all_lanes(device):
    """A max pool's gradient selects by the window's place, not by the lane: found by fuzzing."""
    generator = np.random.default_rng(0)
    x, seed = generator.standard_normal((2, 3, 3, 9)), generator.standard_normal((2, 3, 2, 3))
    found = []
    for name in (REFERENCE, device):
        tensor = Tensor(x, device=name, requires_grad=True)
        y = tensor.max_pool2d((2, 2), stride=(2, 4), ceil_mode=True, dilation=(1, 2))
        (gradient,) = y.gradient(tensor, gradient=Tensor(seed, device=name))
        found.append(gradient.numpy())
    np.testing.assert_array_equal(*found)


def test_loaded_bounds(device):
    """A mixture of experts: rows of each expert's product, and segments in its gradient."""

    def gradients(x):
        Tensor.manual_seed(2)
        experts = MoE(24, 40, 4, 2)
        leaves = [*nn.state.get_parameters(experts), x.requires_grad_(True)]
        y = experts(x)
        return [y, *(y * y).sum().gradient(*leaves)]

    agree(gradients, device, numbers(70, 24), tolerance=1e-5)


def test_a_captured_step_is_given_a_variable(device):
    data, n = numbers(16, 6), Variable("n", 1, 16)
    with Context(DEVICE=device):
        x = Tensor(data).realize()
        step = jit(lambda length: x[:length].sum(0) + Tensor(length))
        for count in (3, 5, 5, 16, 1, 3):
            wanted = data[:count].sum(0) + count
            np.testing.assert_allclose(step(n.bind(count)).numpy(), wanted, atol=1e-5)


def test_times_are_shown(device, capsys):
    with Context(DEVICE=device, DEBUG=2):
        x = Tensor(numbers(16, 16))
        step = jit(lambda x: (x @ x).sum(0))
        wanted = [step(x).tolist() for _ in range(3)]
    assert wanted[0] == wanted[1] == wanted[2]
    said = capsys.readouterr().err
    assert said.count("work-items") >= 3 and said.count("contraction: sum 16") == 3
