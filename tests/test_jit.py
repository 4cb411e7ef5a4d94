"""`@jit`: a replay does what the function would have done, or says that it cannot."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, Variable, jit, nn
from minigrad.errors import GradientError, JitError

rng = np.random.default_rng(0)
Pair = namedtuple("Pair", "first second")


def data(*shape):
    return rng.normal(size=shape).astype(np.float32)


def same(ours, wanted):
    np.testing.assert_allclose(ours.numpy(), np.asarray(wanted), rtol=1e-5, atol=1e-6)


# ---- what goes in and comes out ------------------------------------------------------------------


def test_several_inputs(on_device):
    step = jit(lambda a, b, c: (a * b + c).sum(0))
    for number in range(5):
        a, b, c = data(3, 4), data(3, 4), data(4)
        assert step.captured == (number >= 2)
        same(step(Tensor(a), Tensor(b), Tensor(c)), (a * b + c).sum(0))


def test_lazy_inputs_and_keywords(on_device):
    step = jit(lambda a, b: a - b)
    for _ in range(4):
        a, b = data(5), data(5)
        same(step(Tensor(a) * 2, b=Tensor(b) + 1), a * 2 - (b + 1))


def test_structures(on_device):
    @jit
    def step(x, more, scale):
        (a, b), c = more["pair"], more["list"][0]
        return {"sum": [x + a, (b * c,)], "pair": Pair(x * scale, None), "number": 3, "text": "ok"}

    for _ in range(4):
        x, a, b, c = (data(2, 3) for _ in range(4))
        result = step(Tensor(x), {"pair": (Tensor(a), Tensor(b)), "list": [Tensor(c)]}, 2.5)
        assert list(result) == ["sum", "pair", "number", "text"]
        same(result["sum"][0], x + a)
        same(result["sum"][1][0], b * c)
        assert isinstance(result["pair"], Pair)
        same(result["pair"].first, x * 2.5)
        assert result["pair"].second is None
        assert (result["number"], result["text"]) == (3, "ok")


def test_no_result(on_device):
    total = Tensor([0.0]).realize()

    @jit
    def step(x):
        total.assign(total + x)

    for _ in range(5):
        assert step(Tensor([2.0])) is None
    assert total.tolist() == [10.0]


@pytest.mark.parametrize("pattern", ["aaaa", "aabb", "abab", "abba", "ababaa"])
def test_the_same_tensor_twice(on_device, pattern):
    step = jit(lambda a, b: a * 2 + b)
    a, b = data(4), data(4)
    for kind in pattern:
        first = Tensor(a).realize()
        second = first if kind == "a" else Tensor(b)
        same(step(first, second), a * 2 + (a if kind == "a" else b))


def test_an_input_that_the_function_also_knows(on_device):
    w, x = data(4), data(4)
    known = Tensor(w).realize()
    step = jit(lambda t: t * 10 + known)
    for value, tensor in ((w, known), (w, known), (x, Tensor(x)), (w, known)):
        same(step(tensor), value * 10 + w)


def test_outputs_are_fresh(on_device):
    step = jit(lambda x: (x + 1, x * 2))
    results, wanted = [], []
    for _ in range(6):
        x = data(3)
        results.append(step(Tensor(x)))
        wanted.append((x + 1, x * 2))
    for (a, b), (x, y) in zip(results, wanted, strict=True):
        same(a, x)
        same(b, y)


def test_one_result_twice(on_device):
    def step(x):
        y = x + 1
        return y, y, x.reshape(2, 2)

    captured = jit(step)
    for _ in range(4):
        x = data(4)
        a, b, c = captured(Tensor(x))
        same(a, x + 1)
        same(b, x + 1)
        same(c, x.reshape(2, 2))


def test_a_result_that_is_an_input_or_is_kept(on_device):
    kept = Tensor(data(3)).realize()

    @jit
    def step(x, y):
        y.assign(y + x)
        return x, kept, y, x.detach()

    for _ in range(4):
        x, y = data(3), data(3)
        first, second = Tensor(x).realize(), Tensor(y).realize()
        result = step(first, second)
        assert result[0] is first and result[1] is kept and result[2] is second
        assert result[3] is not first
        same(result[2], x + y)
        same(result[3], x)


def test_constants_in_results(on_device):
    step = jit(lambda x: (Tensor.zeros(3), Tensor([1.0, 2.0]), x + Tensor(3.0)))
    for _ in range(4):
        zeros, two, x = step(Tensor([1.0]))
        assert (zeros.tolist(), two.tolist(), x.tolist()) == ([0, 0, 0], [1, 2], [4])
        zeros.assign(zeros + 1).realize()


def test_empty_and_one_element(on_device):
    step = jit(lambda x, y: (x * 2, y + 1))
    for number in range(4):
        empty, one = step(Tensor.zeros(0, 3), Tensor(float(number)))
        assert empty.shape == (0, 3) and empty.numpy().size == 0
        assert one.item() == number + 1


# ---- memory that the step updates ----------------------------------------------------------------


def test_updates_of_what_is_closed_over(on_device):
    total, count = Tensor(np.zeros(3, np.float32)), Tensor(0)

    @jit
    def step(x):
        total.assign(total * 0.5 + x)
        count.assign(count + 1)
        return total.sum()

    wanted = np.zeros(3, np.float32)
    for number in range(1, 7):
        x = data(3)
        wanted = wanted * np.float32(0.5) + x
        same(step(Tensor(x)), wanted.sum())
        same(total, wanted)
        assert count.item() == number


def test_updates_of_a_tensor_without_memory(on_device):
    total = Tensor.zeros(3)

    @jit
    def step(x):
        total.assign(total * 0.5 + x)

    wanted = np.zeros(3, np.float32)
    for _ in range(5):
        x = data(3)
        wanted = wanted * np.float32(0.5) + x
        step(Tensor(x))
    same(total, wanted)


def test_updates_of_inputs(on_device):
    @jit
    def step(x, y):
        x.assign(x + y)
        return x * 2

    for _ in range(5):
        x, y = data(4), data(4)
        tensor = Tensor(x).realize()
        same(step(tensor, Tensor(y)), (x + y) * 2)
        same(tensor, x + y)


def test_updates_through_views(on_device):
    table = Tensor(np.zeros((4, 3), np.float32)).realize()

    @jit
    def step(x):
        table[1:3] = x
        return table.sum()

    for _ in range(5):
        x = data(2, 3)
        same(step(Tensor(x)), x.sum())
        same(table[1:3], x)


def test_lazy_tensors_see_old_values(on_device):
    total = Tensor(np.zeros(3, np.float32)).realize()

    @jit
    def step(x):
        total.assign(total + x)

    for number in range(6):
        before = total * 10
        snapshot = total.clone()
        step(Tensor(np.ones(3, np.float32)))
        same(before, [number * 10.0] * 3)
        same(snapshot, [float(number)] * 3)
        same(total, [number + 1.0] * 3)


def test_lazy_tensors_outlive_replays(on_device):
    total = Tensor([1.0]).realize()
    lazy = []

    @jit
    def step():
        total.assign(total * 2)

    for _ in range(6):
        lazy.append(total + 0.5)
        step()
    assert [tensor.item() for tensor in lazy] == [2.0**n + 0.5 for n in range(6)]


def test_lazy_readers_of_inputs(on_device):
    @jit
    def step(x):
        x.assign(x + 1)

    x = Tensor([1.0, 2.0]).realize()
    for number in range(5):
        before, snapshot = x * 3, x.clone()
        step(x)
        same(before, [3 + 3.0 * number, 6 + 3.0 * number])
        same(snapshot, [1.0 + number, 2.0 + number])


def test_a_lazy_tensor_that_the_step_reads(on_device):
    weight = Tensor([2.0]).realize()
    lazy = weight * 10
    step = jit(lambda x: x + lazy)
    for number in range(5):
        assert step(Tensor([1.0])).item() == 21
        if number == 2:
            weight.assign(weight + 1).realize()


def test_pending_writes(on_device):
    scale = Tensor([1.0]).realize()
    step = jit(lambda x: x * scale)
    for number in range(1, 6):
        scale.assign(Tensor([float(number)]))
        assert step(Tensor([3.0])).item() == 3 * number


def test_set_data_between_replays(on_device):
    scale = Tensor(1.0)
    step = jit(lambda x: x * scale)
    for number in range(1, 6):
        scale.set_data(float(number))
        assert step(Tensor([3.0])).item() == 3 * number


def test_what_is_left_behind_is_renewed(on_device):
    state = SimpleNamespace()

    @jit
    def step(x):
        state.input, state.lazy = x, x * 3
        state.result = x + 1
        return state.result

    results = []
    for number in range(5):
        x = Tensor([float(number)]).realize()
        results.append(step(x))
        assert state.lazy.item() == 3 * number
        assert state.result.item() == number + 1
        assert state.input.item() == number
    assert [result.item() for result in results] == [1, 2, 3, 4, 5]


# ---- training ------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda params: nn.optim.SGD(params, lr=0.1),
    "momentum": lambda params: nn.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda params: nn.optim.AdamW(params, lr=0.05),
}


def training(optimizer_name, captured):
    """Losses and parameters of eight steps with changing learning rates."""
    noise = np.random.default_rng(1)
    w = Tensor(noise.normal(size=(6, 3)).astype(np.float32))
    b = Tensor(np.zeros(3, np.float32))
    optimizer = OPTIMIZERS[optimizer_name]([w, b])

    def step(x, y):
        optimizer.zero_grad()
        loss = (x @ w + b).tanh().sub(y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.realize()

    run = jit(step) if captured else step
    losses, gradients = [], []
    for number in range(8):
        if number % 2:
            optimizer.set_lr(0.1 / (number + 1))
        else:
            optimizer.lr.assign(0.05 * (number + 1))
        x, y = noise.normal(size=(5, 6)), noise.normal(size=(5, 3))
        losses.append(run(Tensor(x.astype(np.float32)), Tensor(y.astype(np.float32))))
        gradients.append(w.grad.numpy())
    return [loss.item() for loss in losses], gradients, w.numpy(), b.numpy()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_steps(on_device, name):
    ours, wanted = training(name, True), training(name, False)
    for a, b in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_one_native_call_per_step(monkeypatch):
    from minigrad.runtimes.cpu_pool import Pool
    from minigrad.runtimes.cpu_replay import CpuReplay

    w = Tensor(data(6, 3))
    optimizer = nn.optim.AdamW([w], lr=0.01)

    @jit
    def step(x, y):
        optimizer.zero_grad()
        loss = (x @ w).cross_entropy(y)
        loss.backward()
        optimizer.step()
        return loss.realize()

    batches = [(Tensor(data(5, 6)), Tensor([0, 1, 2, 1, 0])) for _ in range(12)]
    calls = []
    run, prepare = Pool.run, CpuReplay._prepare

    def run_counting(pool, *args):
        calls.append("of a program")
        run(pool, *args)

    def prepare_counting(replay):
        prepare(replay)
        native = replay.native
        replay.native = lambda: calls.append("of a replay") or native()

    monkeypatch.setattr(Pool, "run", run_counting)
    monkeypatch.setattr(CpuReplay, "_prepare", prepare_counting)
    for x, y in batches[:2]:
        step(x, y)
    assert calls
    calls.clear()
    names = ("programs_compiled", "programs_scheduled", "kernels_lowered", "kernels_rendered",
             "kernels_compiled", "cache_hits")  # fmt: skip
    before = [getattr(GlobalCounters, name) for name in names]
    for number, (x, y) in enumerate(batches[2:], 1):
        started = GlobalCounters.program_calls
        loss = step(x, y)
        assert GlobalCounters.program_calls == started + 1
        assert calls == ["of a replay"] * number
        assert np.isfinite(loss.item())
    assert [getattr(GlobalCounters, name) for name in names] == before


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_gradients_are_the_newest(on_device, where):
    w = Tensor([1.0, 2.0], requires_grad=True)

    def step(x):
        if where == "inside":
            w.grad = None
        (w * x).sum().backward()

    captured = jit(step)
    for number in range(5):
        if where == "outside":
            w.grad = None
        captured(Tensor([float(number), 1.0]))
        assert w.grad.tolist() == [number, 1.0]


def test_gradients_that_are_results(on_device):
    w = Tensor([1.0, 2.0], requires_grad=True)

    @jit
    def step(x):
        w.grad = None
        (w * x).sum().backward()
        return w.grad

    results = []
    for number in range(5):
        results.append(step(Tensor([float(number), 1.0])))
        assert w.grad.tolist() == [number, 1.0]
    assert [result.tolist() for result in results] == [[n, 1.0] for n in range(5)]


def test_gradients_of_inputs(on_device):
    @jit
    def step(x, y):
        return (x * y).sum().gradient(x)[0]

    for _ in range(4):
        x, y = data(3), data(3)
        same(step(Tensor(x), Tensor(y)), y)


def test_gradients_that_add_up_are_refused(on_device):
    w = Tensor([1.0, 2.0], requires_grad=True)

    @jit
    def step(x):
        (w * x).sum().backward()
        return w.grad

    step(Tensor([1.0, 1.0]))
    with pytest.raises(JitError, match="zero_grad"):
        step(Tensor([1.0, 1.0]))
    w.grad = None
    step(Tensor([1.0, 1.0]))
    w.grad = None
    assert step(Tensor([2.0, 3.0])).tolist() == [2, 3]
    with pytest.raises(JitError, match="zero_grad"):
        step(Tensor([1.0, 1.0]))


def test_no_gradient_flows_through_a_replay(on_device):
    w = Tensor([1.0, 2.0], requires_grad=True)
    step = jit(lambda x: (w * x).sum().realize())
    for _ in range(2):
        w.grad = None
        step(Tensor([3.0, 4.0])).backward()
        assert w.grad.tolist() == [3, 4]
    loss = step(Tensor([3.0, 4.0]))
    with pytest.raises(GradientError):
        loss.backward()


# ---- random numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rand", "randn", "dropout", "several"])
def test_random_numbers(on_device, kind):
    def step(x):
        if kind == "dropout":
            return x.dropout(0.4)
        if kind == "several":
            first = (x + Tensor.rand(64)).realize()
            return first, Tensor.rand(64), Tensor.randint(64, high=100)
        return x + getattr(Tensor, kind)(64)

    def run(function):
        drawn = []
        with Tensor.train():
            for number in range(6):
                if number in (0, 4):
                    Tensor.manual_seed(number)
                result = function(Tensor.ones(64))
                results = result if isinstance(result, tuple) else (result,)
                drawn.append([tensor.numpy() for tensor in results])
                drawn.append([Tensor.rand(2).numpy()])
        return drawn

    for ours, wanted in zip(run(jit(step)), run(step), strict=True):
        for a, b in zip(ours, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


def test_training_mode_is_part_of_the_key(on_device):
    step = jit(lambda x: x.dropout(0.5))
    x = Tensor.ones(200)
    for _ in range(4):
        assert step(x).tolist() == [1.0] * 200
        with Tensor.train():
            assert set(step(x).tolist()) == {0.0, 2.0}


# ---- the object itself ---------------------------------------------------------------------------


def test_reset(on_device):
    runs = []

    @jit
    def step(x):
        runs.append(1)
        return x + 1

    for _ in range(4):
        step(Tensor([1.0]))
    assert len(runs) == 2 and step.captured
    step.reset()
    assert not step.captured
    for _ in range(4):
        assert step(Tensor([1.0, 2.0])).tolist() == [2, 3]
    assert len(runs) == 4


class Counter:
    def __init__(self, start):
        self.total = Tensor([start]).realize()

    @jit
    def step(self, x):
        """Add x."""
        self.total.assign(self.total + x)
        return self.total * 2


def test_methods(on_device):
    a, b = Counter(0.0), Counter(100.0)
    for number in range(1, 6):
        assert a.step(Tensor([1.0])).item() == 2 * number
        assert b.step(Tensor([2.0])).item() == 200 + 4 * number
    assert a.step.captured
    a.step.reset()
    assert not a.step.captured and b.step.captured
    assert Counter.step.__doc__ == "Add x."
    link = weakref.ref(a)
    del a
    gc.collect()
    assert link() is None


def test_nesting(on_device):
    total = Tensor([0.0]).realize()

    @jit
    def inner(x):
        total.assign(total + x)
        return x * 2

    @jit
    def outer(x):
        return inner(x) + inner(x + 1)

    wanted = 0.0
    for number in range(5):
        assert outer(Tensor([float(number)])).item() == 4 * number + 2
        wanted += 2 * number + 1
        assert total.item() == wanted
    for number in range(4):
        assert inner(Tensor([1.0])).item() == 2
        assert total.item() == wanted + number + 1


def test_threads(on_device):
    total = Tensor(np.zeros(8, np.float32)).realize()

    @jit
    def step(x):
        total.assign(total + x)
        return x * 2

    device, failures = on_device, []

    def work(number):
        try:
            for turn in range(20):
                x = float(number * 100 + turn)
                result = step(Tensor([x] * 8, device=device))
                assert result.tolist() == [2 * x] * 8
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert total.tolist() == [float(sum(n * 100 + t for n in range(4) for t in range(20)))] * 8


# ---- bound variables -----------------------------------------------------------------------------


def test_a_cache_at_a_symbolic_position(on_device):
    position = Variable("pos", 0, 15)
    cache = Tensor(np.zeros((2, 16, 4), np.float32)).realize()

    @jit
    def step(x, pos):
        cache[:, pos : pos + 1] = x
        keys = cache[:, : pos + 1]
        return (x @ keys.transpose(1, 2)).softmax(-1) @ keys, pos + 1

    wanted = np.zeros((2, 16, 4), np.float32)
    for number in (0, 1, 5, 2, 15, 7):
        x = data(2, 1, 4)
        wanted[:, number : number + 1] = x
        keys = wanted[:, : number + 1]
        scores = np.exp(x @ keys.swapaxes(1, 2))
        out, following = step(Tensor(x), position.bind(number))
        same(out, scores / scores.sum(-1, keepdims=True) @ keys)
        same(cache, wanted)
        assert Tensor.arange(following).tolist() == list(range(number + 1))


def test_a_position_compiles_nothing(on_device):
    position = Variable("pos", 0, 7)
    step = jit(lambda x, pos: x[pos : pos + 1] * 2)
    x = Tensor(data(8, 3)).realize()
    for number in range(2):
        step(x, position.bind(number))
    before = GlobalCounters.programs_compiled, GlobalCounters.program_calls
    for number in range(8):
        out = step(x, position.bind(number))
    assert (GlobalCounters.programs_compiled, GlobalCounters.program_calls - 8) == before
    same(out, x.numpy()[7:] * 2)


def test_results_and_inputs_of_symbolic_shape(on_device):
    length = Variable("n", 1, 8)
    values = data(8, 3)
    step = jit(lambda x: (x * 2, x.sum(0)))
    for n in (2, 5, 8, 1, 3):
        double, total = step(Tensor(values)[: length.bind(n)])
        same(double, values[:n] * 2)
        same(total, values[:n].sum(0))


# ---- what is refused -----------------------------------------------------------------------------


def captured_sum(device):
    step = jit(lambda x, scale=1: x.sum() * scale)
    for _ in range(3):
        assert step(Tensor([1.0, 2.0], device=device)).item() == 3
    return step


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tensor([1.0, 2.0, 3.0]), r"input 0 of \(2\) float32.*called with \(3\)"),
        (lambda: Tensor([1.0]) + 1, r"input 0 of \(2\) float32"),
        (lambda: Tensor([1, 2]), "float32.*int32"),
        (lambda: Tensor([[1.0, 2.0]]), r"\(1, 2\)"),
        (lambda: [Tensor([1.0, 2.0])], r"arguments .*called with .*\[Tensor\]"),
        (lambda: None, "arguments"),
    ],
)  # fmt: skip
def test_other_arguments(on_device, make, words):
    step = captured_sum(on_device)
    with pytest.raises(JitError, match=words):
        step(make())
    assert step(Tensor([2.0, 2.0])).item() == 4


def test_wrong_arguments_right_after_the_capture(on_device):
    step = jit(lambda x: x + 1)
    for _ in range(2):
        step(Tensor([1.0]))
    with pytest.raises(JitError, match="arguments"):
        step(None)


def test_other_python_values(on_device):
    step = jit(lambda x, scale: x * scale)
    for _ in range(3):
        step(Tensor([1.0]), 2)
    for other in (3, 2.0, True, None, "2"):
        with pytest.raises(JitError, match=r"2.*reset"):
            step(Tensor([1.0]), other)
    with pytest.raises(JitError, match="arguments"):
        step(Tensor([1.0]))
    with pytest.raises(JitError, match="arguments"):
        step(Tensor([1.0]), scale=2)
    signed = jit(lambda x, scale: x / scale)
    for _ in range(3):
        signed(Tensor([1.0]), 0.0)
    with pytest.raises(JitError, match=r"-0\.0"):
        signed(Tensor([1.0]), -0.0)


def test_another_device(compiled, other):
    step = captured_sum(compiled)
    with pytest.raises(JitError, match=rf"on {compiled}.*on {other}"):
        step(Tensor([1.0, 2.0], device=other))


def test_arrays_and_objects(on_device):
    step = jit(lambda x, array: x)
    step(Tensor([1.0]), np.ones(3))
    with pytest.raises(JitError, match=r"ndarray.*Tensor"):
        step(Tensor([1.0]), np.ones(3))
    other = jit(lambda x: SimpleNamespace(x=x))
    other(Tensor([1.0]))
    with pytest.raises(JitError, match="SimpleNamespace"):
        other(Tensor([1.0]))


READS = {
    "item": lambda x: x.sum().item(), "numpy": lambda x: x.numpy(), "list": lambda x: x.tolist(),
    "bool": lambda x: bool(x.sum() > 0), "float": lambda x: float(x.sum()),
    "data": lambda x: bytes(x.data()), "realized": lambda x: x.sum().realize().item(),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_reading_inside(on_device, name):
    def step(x):
        READS[name](x)
        return x + 1

    captured = jit(step)
    captured(Tensor([1.0, 2.0]))
    for _ in range(2):
        with pytest.raises(JitError, match="reads a value inside a captured step"):
            captured(Tensor([1.0, 2.0]))
    assert not captured.captured
    assert Tensor([1.0]).item() == 1.0


def test_zeros_made_inside(on_device):
    @jit
    def step(x):
        kept = Tensor.zeros(3, requires_grad=True)
        (kept * x).sum().backward()
        return kept.grad + kept.detach()

    for number in range(5):
        assert step(Tensor([1.0, 2.0, number])).tolist() == [1.0, 2.0, number]


def test_host_writes_inside(on_device):
    known = Tensor([1.0]).realize()

    @jit
    def step(x):
        known.set_data([2.0])
        return x + known

    step(Tensor([1.0]))
    with pytest.raises(JitError, match="writes data of the host"):
        step(Tensor([1.0]))

    unseen = Tensor.zeros(1, requires_grad=True)  # has a value, though no memory yet

    @jit
    def first_written(x):
        if first_written.ready:
            unseen.set_data([2.0])
        return x + 1

    first_written.ready = False
    first_written(Tensor([1.0]))
    first_written.ready = True
    with pytest.raises(JitError, match="writes data of the host"):
        first_written(Tensor([1.0]))

    @jit
    def seeded(x):
        Tensor.manual_seed(3)
        return x + Tensor.rand(1)

    seeded(Tensor([1.0]))
    with pytest.raises(JitError, match="writes data of the host"):
        seeded(Tensor([1.0]))


def test_a_written_input_given_twice(on_device):
    @jit
    def step(x, y):
        x.assign(x + y)

    x, y = Tensor([1.0]).realize(), Tensor([2.0]).realize()
    step(x, y)
    z = Tensor([5.0]).realize()
    with pytest.raises(JitError, match="input 0, which is given twice"):
        step(z, z)
    step(x, y)
    step(x, y)
    with pytest.raises(JitError, match="input 0, which is given twice"):
        step(z, z)
    assert z.item() == 5 and x.item() == 7


def test_a_written_tensor_that_is_an_input_too(on_device):
    total = Tensor([1.0]).realize()

    @jit
    def step(x):
        total.assign(total + x)

    step(total)
    with pytest.raises(JitError, match="input 0 and that it also uses"):
        step(total)
    total.assign(Tensor([1.0])).realize()
    for _ in range(3):
        step(Tensor([1.0]))
    assert total.item() == 4


def test_a_replaced_tensor(on_device):
    state = SimpleNamespace(x=Tensor([1.0]).realize())

    @jit
    def step():
        state.x = (state.x + 1).realize()

    step()
    with pytest.raises(JitError, match="puts another in its place"):
        step()


def test_an_unknown_variable(on_device):
    position = Variable("pos", 0, 7)
    state = SimpleNamespace(pos=position.bind(1))
    x = Tensor(data(8)).realize()
    step = jit(lambda y: y + x[state.pos : state.pos + 1].sum())
    step(Tensor([1.0]))
    with pytest.raises(JitError, match="bound variable pos"):
        step(Tensor([1.0]))


@pytest.mark.parametrize("turn", [1, 2])
def test_exceptions_inside(on_device, turn):
    calls = []

    @jit
    def step(x):
        calls.append(1)
        result = (x + 1).realize()
        if len(calls) == turn:
            raise RuntimeError("an accident")
        return result * 2

    for number in range(1, 6):
        if number == turn:
            with pytest.raises(RuntimeError, match="an accident"):
                step(Tensor([1.0]))
            assert Tensor([3.0]).item() == 3.0
        else:
            assert step(Tensor([float(number)])).item() == 2 * number + 2
    assert step.captured


# ---- what the function reads besides its arguments: the rows of the table in jit.py --------------

RATE = 1.0
WEIGHT = None


def helper(x):
    return x * RATE


def raises_after(step, change, words, make=lambda: Tensor([1.0, 2.0])):
    """Three calls, then a change, which the next call must notice."""
    for _ in range(3):
        wanted = step(make()).tolist()
    step(make())
    change()
    with pytest.raises(JitError, match=words):
        step(make())
    step.reset()
    for _ in range(3):
        assert step(make()).tolist() != wanted
    assert step.captured


def test_a_closure_tensor_that_is_rebound(on_device):
    weight = Tensor([1.0, 2.0])
    step = jit(lambda x: x * weight)

    def change():
        nonlocal weight
        weight = Tensor([3.0, 4.0])

    raises_after(step, change, r"reads 'weight', which was one Tensor .* another Tensor")


def test_a_closure_number_that_is_rebound(on_device):
    scale = 0.0
    step = jit(lambda x: x / scale)

    def change():
        nonlocal scale
        scale = -0.0

    raises_after(step, change, r"'scale', which was 0\.0 when it was captured and is -0\.0")


def test_equal_numbers_are_no_change(on_device):
    scale, names = 1000.5, ("a", 2.5)
    step = jit(lambda x: x * scale * names[1])
    for number in range(6):
        scale, names = float(f"{1000.5}"), ("a", float("2.5"))
        assert step(Tensor([float(number)])).item() == number * 1000.5 * 2.5


def test_globals_that_are_rebound(on_device, monkeypatch):
    module = globals()
    monkeypatch.setitem(module, "WEIGHT", Tensor([1.0, 2.0]))

    @jit
    def step(x):
        return helper(x) + WEIGHT

    raises_after(step, lambda: monkeypatch.setitem(module, "RATE", 2.0), "'RATE'")
    other = Tensor([5.0, 5.0])
    raises_after(step, lambda: monkeypatch.setitem(module, "WEIGHT", other), "'WEIGHT'")


def test_attributes_that_are_rebound(on_device):
    config = SimpleNamespace(inner=SimpleNamespace(scale=2.0), weight=Tensor([1.0, 2.0]))
    step = jit(lambda x: sum((y * config.inner.scale for y in (x,)), config.weight))

    def change():
        config.inner.scale = 3.0

    raises_after(step, change, r"'config\.inner\.scale', which was 2\.0")
    raises_after(step, lambda: setattr(config, "weight", Tensor([7.0, 7.0])), r"config\.weight")

    class Model:
        def __init__(self):
            self.rate = 2.0

        @jit
        def step(self, x):
            return (lambda y: y * self.rate)(x)

        def plain(self, x):
            return x + self.rate

        def __call__(self, x):
            return x - self.rate

    for kind in ("step", "plain", "called"):
        model = Model()
        step = {"step": model.step, "plain": jit(model.plain), "called": jit(model)}[kind]
        change = functools.partial(setattr, model, "rate", 5.0)
        raises_after(step, change, r"'self\.rate'.*5\.0")


CONTAINERS = {
    "list": ([2.0, 3.0], 9.0), "dict": ({0: 2.0, 1: 3.0}, 9.0), "array": (np.array([2.0]), 9.0),
    "tensors": ([1.5], Tensor),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTAINERS)
def test_contents_that_change(on_device, kind):
    values, other = CONTAINERS[kind][0].copy(), CONTAINERS[kind][1]
    if other is Tensor:
        values, other = [Tensor([2.0])], Tensor([9.0])

    @jit
    def step(x):
        return x * (values[0] if kind == "tensors" else float(values[0]))

    def change():
        values[0] = other

    raises_after(step, change, "'values', whose contents")


def test_a_list_that_is_only_added_to(on_device):
    state = SimpleNamespace(seen=[])
    step = jit(lambda x: (state.seen.append(1), x + 1)[1])
    for number in range(5):
        assert step(Tensor([float(number)])).item() == number + 1
        if number == 3:
            state.seen.clear()


def test_tensors_of_outside_that_are_written(on_device):
    weight = Tensor([1.0, 2.0])
    step = jit(lambda x: x * weight)
    writes = [
        lambda: weight.assign(3),
        lambda: weight.__iadd__(1),
        lambda: weight.set_data([5.0, 6.0]),
        lambda: weight[:1].assign(7),
    ]
    for number in range(8):
        writes[number % 4]()
        same(step(Tensor([2.0, 2.0])), weight.numpy() * 2)


def test_the_rate_of_an_optimizer(on_device):
    w = Tensor([0.0])
    optimizer = nn.optim.SGD([w], lr=1.0)

    @jit
    def step(x):
        optimizer.zero_grad()
        (w * x).sum().backward()
        optimizer.step()

    wanted = 0.0
    for rate in (1.0, 0.5, 0.25, 2.0, 4.0, 8.0):
        optimizer.lr = rate if rate < 4 else Tensor(rate)
        assert optimizer.lr.item() == rate
        step(Tensor([1.0]))
        wanted -= rate
        assert w.item() == wanted
    tensor = Tensor([0.5])
    given = nn.optim.SGD([w], lr=tensor)
    given.lr = 0.25
    assert given.lr is tensor and tensor.tolist() == [0.25]
    given.lr *= 2
    assert given.lr is tensor and tensor.tolist() == [0.5]


def test_data_of_the_host_made_inside(on_device):
    state = SimpleNamespace(items=[0.0])
    items = [state]

    @jit
    def step(x):
        items[0].items[0] += 1
        return x + Tensor([items[0].items[0]])

    step(Tensor([1.0]))
    with pytest.raises(JitError, match=r"data of the host .* not what it was in the first call"):
        step(Tensor([1.0]))
    fixed = jit(lambda x: x + Tensor([1.0, 2.0]) + Tensor(np.ones(2, np.float32)))
    for number in range(4):
        assert fixed(Tensor([float(number)])).tolist() == [number + 2.0, number + 3.0]


def test_numbers_in_the_result(on_device):
    count = [SimpleNamespace(value=0)]

    @jit
    def step(x):
        count[0].value += 1
        return x + 1, count[0].value

    step(Tensor([1.0]))
    with pytest.raises(JitError, match=r"returned \(Tensor, 1\) .* \(Tensor, 2\)"):
        step(Tensor([1.0]))


def test_a_tensor_that_is_gone(on_device):
    layer = nn.Linear(2, 1)
    Tensor.realize(layer.weight, layer.bias)
    step = jit(lambda x: layer(x))
    x = Tensor([1.0, 2.0])
    for _ in range(3):
        step(x)
    with Tensor.no_grad():
        layer.weight.assign(Tensor([[2.0, 3.0]]))
        layer.bias.assign(Tensor([1.0]))
    assert step(x).tolist() == [9]
    layer.weight = Tensor([[1.0, 1.0]])
    with pytest.raises(JitError, match=r"shape \(1, 2\) that is gone"):
        step(x)
    step.reset()
    for _ in range(4):
        assert step(x).tolist() == [4]


def test_what_is_fixed(on_device):
    """The last row: what only other code reads."""

    class Layer:
        scale = 1.0

        def __call__(self, x):
            return x * self.scale

    layer = Layer()
    step = jit(lambda x: layer(x))
    for number in range(6):
        if number == 3:
            layer.scale = 2.0
        assert step(Tensor([5.0])).item() == 5
    step.reset()
    assert step(Tensor([5.0])).item() == 10


# ---- memory --------------------------------------------------------------------------------------


def test_memory_stays():
    w = Tensor(data(64, 64))
    optimizer = nn.optim.SGD([w], lr=0.01)

    @jit
    def step(x):
        optimizer.zero_grad()
        loss = (x @ w).square().mean()
        loss.backward()
        optimizer.step()
        return loss.realize()

    used = []
    for number in range(300):
        step(Tensor(data(8, 64))).item()
        if number >= 100:
            used.append(GlobalCounters.mem_used)
    assert len(set(used)) == 1


def test_a_step_and_its_memory_are_gone_at_once(on_device) -> None:
    """Nothing that a captured step with checked indices holds waits for the garbage collector."""

    def run() -> None:
        table = Tensor.rand(1000, 64).realize()
        step = jit(lambda index: table[index].sum())
        for _ in range(3):
            step(Tensor([1, 2, 3]).realize()).item()

    run()
    gc.collect()
    gc.disable()
    try:
        before = GlobalCounters.mem_used
        run()
        assert GlobalCounters.mem_used == before
    finally:
        gc.enable()
