"""Captured training steps: optimizers, gradients, random numbers."""

from __future__ import annotations

import numpy as np
import pytest
from jit.arrays import data, same

from minigrad import GlobalCounters, Tensor, jit, nn
from minigrad.errors import GradientError, JitError
from minigrad.tensor import history

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


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_gradients_that_somebody_keeps(on_device, where):
    w, b, kept = Tensor([1.0, 2.0], requires_grad=True), Tensor([1.0], requires_grad=True), []

    @jit
    def step(x):
        if where == "inside":
            w.grad = b.grad = None
        (w * x + b).sum().backward()
        return x + 1

    for number in range(7):
        if where == "outside":
            w.grad = b.grad = None
        assert step(Tensor([float(number), 1.0])).tolist() == [number + 1, 2]
        assert w.grad.tolist() == [number, 1.0] and not w.grad.requires_grad
        if number != 4:
            kept.append((number, w.grad))
    assert [grad.tolist() for _, grad in kept] == [[n, 1.0] for n, _ in kept]
    assert step.captured and b.grad.item() == 2


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


def test_each_leaf_that_is_given_has_a_gradient_of_its_own(on_device):
    w = Tensor([1.0, 2.0], requires_grad=True)

    @jit
    def step(x):
        w.grad = None
        (w * x * x).sum().backward()

    leaves = [Tensor([number, 1.0], requires_grad=True) for number in range(5)]
    for leaf in leaves:
        step(leaf)
    assert [leaf.grad.tolist() for leaf in leaves] == [[2.0 * n, 4.0] for n in range(5)]
    with pytest.raises(JitError, match="had no gradient"):
        step(leaves[2])
    leaves[1].grad = None  # the leaf of the capture comes again
    step(leaves[1])
    assert [leaf.grad.tolist() for leaf in leaves] == [[2.0 * n, 4.0] for n in range(5)]


def test_each_leaf_has_its_own_where_the_step_forgets_the_one_before(on_device):
    @jit
    def step(x):
        x.grad = None
        (x * x).sum().backward()

    first, second = (Tensor([n, 1.0], requires_grad=True) for n in (2.0, 3.0))
    for leaf in (first, first, second, first, second):
        step(leaf)
    assert first.grad.tolist() == [4.0, 2.0] and second.grad.tolist() == [6.0, 2.0]


@pytest.mark.parametrize("given", ["by position", "by name"])
@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("ends", ["zero_grad", "forget"])
def test_a_gradient_from_elsewhere_that_a_step_forgets(on_device, begins, ends, given):
    """After a replay it is gone, too; a replay raises if the step would have added to it."""
    found = []
    for captured in (True, False):
        w, other = (Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
        optimizer = nn.optim.SGD([w, other], lr=0.5)

        def step(x, w=w, optimizer=optimizer):
            if begins:
                optimizer.zero_grad()
            loss = (w * x).sum()
            loss.backward()
            optimizer.step(forget=ends == "forget")
            if ends == "zero_grad":
                optimizer.zero_grad()
            return loss

        run, x = jit(step) if captured else step, Tensor([1.0, 1.0])
        for number in range(5):
            if number > 2 and (captured or begins):
                (w * w * other).sum().backward()
            if number > 2 and captured and not begins:
                with pytest.raises(JitError, match="had no gradient, but they have one now"):
                    _ = run(x) if given == "by position" else run(x=x)
                optimizer.zero_grad()
            _ = run(x) if given == "by position" else run(x=x)
            assert w.grad is None and other.grad is None
        found.append(w.tolist())
    assert found[0] == found[1]


def test_a_step_that_begins_by_forgetting_may_be_captured_without_a_gradient(on_device):
    w = Tensor([1.0], requires_grad=True)

    @jit
    def step(x):
        w.grad = None
        (w * x).sum().backward()

    for number in range(5):
        if number == 1:
            w.grad = None
        step(Tensor([float(number)]))
        assert w.grad.tolist() == [number]


def test_a_captured_update_of_what_another_step_is_given(on_device):
    w = Tensor([1.0, 2.0], requires_grad=True).realize()

    @jit
    def gradients(w, x):
        (w * w * x).sum().backward()

    @jit
    def update():
        with Tensor.no_grad():
            w.assign(w - 0.25 * w.grad).realize()

    expected = np.array([1.0, 2.0])
    for number in range(5):
        w.grad = None
        gradients(w, Tensor([float(number), 1.0]))
        update()
        expected -= 0.5 * expected * [number, 1]
        assert w.numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("realized", [False, True])
def test_a_gradient_of_a_given_leaf_that_is_changed_in_place(on_device, realized, kept):
    """The next call creates a new gradient; references to the old one keep their values."""
    w, old = Tensor([1.0, 2.0], requires_grad=True), []

    @jit
    def gradients(w, x):
        (w * w * x).sum().backward()

    for number in range(5):
        w.grad = None
        gradients(w, Tensor([float(number), 1.0]))
        w.grad.mul_(0.5)
        if realized:
            w.grad.realize()
        old += [(w.grad, [number, 2])] if kept else []
        assert w.grad.tolist() == [number, 2]
    assert all(gradient.tolist() == value for gradient, value in old)


def test_a_network_that_is_frozen_for_a_step(on_device):
    """As a critic is in its generator's step; its parameters are lazy values at first."""
    critic, generator = nn.LayerNorm(4), nn.Linear(4, 4)
    optimizer = nn.optim.SGD(generator.parameters(), lr=0.1)

    @jit
    def step(x):
        for parameter in critic.parameters():
            parameter.requires_grad_(False)
        optimizer.zero_grad()
        loss = critic(generator(x)).square().mean()
        loss.backward()
        optimizer.step()
        for parameter in critic.parameters():
            parameter.requires_grad_(True)
        return loss

    for _ in range(4):
        step(Tensor(data(5, 4)))
    assert all(parameter.grad is None for parameter in critic.parameters())


@pytest.mark.parametrize("captured", [False, True])
def test_a_gradient_that_is_held_while_more_is_added(on_device, captured):
    w = Tensor([1.0, 2.0], requires_grad=True)

    def step(x):
        w.grad = None
        (w * x).sum().backward()
        held, twice = w.grad, w.grad * 2
        (w * x * 10).sum().backward()
        return held, twice

    run = jit(step) if captured else step
    for number in range(4):
        held, twice = run(Tensor([number, 1.0]))
        assert held.tolist() == w.grad.tolist() == [11 * number, 11]
        assert twice.tolist() == [2 * number, 2]


@pytest.mark.parametrize("captured", [False, True])
def test_a_loss_from_before_its_parameter_was_frozen(on_device, captured):
    """Its gradient counts; that of what was computed while the parameter was frozen does not."""
    w = Tensor([1.0, 2.0], requires_grad=True)

    def step(x):
        w.grad = None
        loss = (w * x).sum()
        w.requires_grad_(False)
        other = (w * 2 * x).sum()
        w.requires_grad_(True)
        (loss + other + (w * 5).sum()).backward()
        return w.grad.realize()

    run = jit(step) if captured else step
    for number in range(4):
        assert run(Tensor([number, 1.0])).tolist() == [number + 5, 6]


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
    with pytest.raises(GradientError, match="which a replay of @jit returned"):
        loss.backward()


@pytest.mark.parametrize("written_out", [True, False])
def test_a_gradient_that_should_flow_through_a_replay_is_refused(on_device, written_out):
    """Also if the leaf has other paths to the loss: it got only their gradient."""
    w, mean = Tensor([1.0, 2.0], requires_grad=True), Tensor([0.0, 0.0])
    step = jit(lambda x: w * x if written_out else {"a": w * x})
    for number in range(6):
        w.grad, found = None, step(Tensor([3.0, 4.0]))
        found = found if written_out else found["a"]
        mean = (mean * 0.5 + found).realize()
        assert (found * 2).tolist() == [6, 16]
        for result in (found, found[:1] + 1, mean):
            if number > 1:
                with pytest.raises(GradientError, match=r"which a replay .* returned.*\.detach"):
                    (result * w).sum().backward()
        if number < 2:
            (found * w).sum().backward()
            assert w.grad.tolist() == [6, 16]
        w.grad = None
        (found.detach() * w).sum().backward()
        assert w.grad.tolist() == [3, 8]


GIVEN = {"leaf": lambda w: w, "lazy": lambda w: w * 1, "realized": lambda w: (w * 1).realize(),
         "shared": lambda w: w.contiguous()}  # fmt: skip
PASSED_ON = ["a result", "a result in a dict", "an input", "outside"]


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("through", PASSED_ON)
@pytest.mark.parametrize("others", [0, 3])
def test_a_gradient_through_what_a_step_writes_or_gives(on_device, given, through, others):
    """It flows in the first two calls with such an input; after a replay, `backward` raises.

    others: number of earlier calls with an input that has no gradient; their replays do not raise.
    """
    w, outside = Tensor([1.0, 2.0], requires_grad=True).realize(), Tensor([0.0, 0.0]).realize()

    @jit
    def step(x, y):
        if through in ("an input", "outside"):
            (y if through == "an input" else outside).assign(x * 2)
            return x.sum()
        return x * 2 if through == "a result" else {"a": x * 2}

    for number in range(others + 4):
        y = Tensor([0.0, 0.0]).realize()
        result = step(Tensor([1.0, 2.0]).realize() if number < others else GIVEN[given](w), y)
        found = {"a result": result, "an input": y, "outside": outside}.get(through)
        found = result["a"] if found is None else found
        w.grad = None
        if number >= others + 2:
            with pytest.raises(GradientError, match="which a replay of @jit returned"):
                (found * w).sum().backward()
        else:
            (found * w).sum().backward()
            assert w.grad.tolist() == ([2, 4] if number < others else [4, 8])
        assert found.tolist() == [2, 4]
    with Tensor.no_grad():
        step(w, y)


def test_who_is_given_to_a_step_in_turn(on_device):
    """After a replay with plain numbers, `backward` does not raise."""
    w, step = Tensor([1.0, 2.0], requires_grad=True).realize(), jit(lambda x: x * 2)
    for _ in range(4):
        w.grad, _, plain = None, step(w), step(Tensor([1.0, 2.0]).realize())
        (plain * w).sum().backward()
        assert w.grad.tolist() == [2, 4]


@pytest.mark.parametrize("lazy", [True, False])
def test_arguments_that_were_computed_from_leaves(on_device, lazy):
    """A replay would pass gradients to the values from which the captured argument was computed."""
    inner, outer = (Tensor([value], requires_grad=True) for value in (2.0, 3.0))

    @jit
    def step(x):
        inner.grad = outer.grad = None
        (x * outer).sum().backward()

    given = [Tensor([float(number)]).realize() for number in range(8)]
    features = (lambda x: inner * x) if lazy else jit(lambda x: inner * x)
    step(features(given[0]))
    with pytest.raises(JitError, match=r"computed from leaves, .* pass \.detach\(\)"):
        step(features(given[1]))
    step.reset()
    for x in given:
        whole = features(x)  # its value has a history, too
        step(whole.detach().realize())
        assert outer.grad.tolist() == [2 * x.item()] and inner.grad is None
    with pytest.raises(JitError, match="computed from leaves"):
        step(features(given[2]))


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


def test_nobody_looks_at_the_first_results(on_device):
    """The draw of the weights was captured as a part of the step, which raised a JitError."""
    model = nn.Linear(2, 3)
    step = jit(lambda x: model(x))
    for _ in range(3):
        step(Tensor([1.0, 2.0]))
    same(step(Tensor([3.0, 4.0])), model(Tensor([3.0, 4.0])).numpy())


def test_a_capture_leaves_lazy_tensors_their_way_back(on_device):
    """A capture gives readers of memory new nodes; gradients by unmarked tensors must survive that.

    (They ended there: the gradient of x³ was x² if a step had been captured in between.)
    """
    step, a = jit(lambda x: (x * 2).realize()), Tensor([1.0, 2.0]).realize()
    written = Tensor([0.0, 0.0]).realize()
    for _ in range(4):
        x = Tensor([3.0, 4.0])
        y = x * x
        with Tensor.no_grad():
            stopped = x * x
        written += 1  # a pending write, which they do not read
        step(a)
        assert (y * x).sum().gradient(x)[0].tolist() == [27.0, 48.0]
        assert (stopped * x).sum().gradient(x)[0].tolist() == [9.0, 16.0]
        y.square().sum().backward()
        assert x.grad.tolist() == [108.0, 256.0]


def _rand(x, w):
    drawn = Tensor.rand(2)
    return w * drawn, drawn


def _drawn_before(x, w):
    return w * (Tensor.rand(2) * w).sin()


def _dropout(x, w):
    with Tensor.train():
        return (w * w).dropout(0.5)


def _added(x, w):
    x += 1
    return x * w, x


def _added_leaf(x, w):
    x += w
    return x * w


def _assigned(x, w):
    x.assign(w * 3)
    return x * w


def _part(x, w):
    x[1:] = w[:1] * 2
    return x * w


def _one_after_the_other(x, w):
    other = Tensor([0.0, 0.0]).realize()
    x += 1
    other.assign(x * w)
    return other * x, x


def _written_after(x, w):
    y = x * w
    x += 1
    return y


def _batch_norm(x, w):
    norm = nn.BatchNorm1d(1)
    with Tensor.train():
        y = norm(w.reshape(2, 1))
    return y.reshape(2) * norm.running_mean * w


WAITING = [_rand, _drawn_before, _dropout, _added, _added_leaf, _assigned, _part,
           _one_after_the_other, _written_after, _batch_norm]  # fmt: skip


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("function", WAITING)
def test_what_reads_a_waiting_write_keeps_its_way_back(on_device, function, replayed):
    """By unmarked tensors, across a call that captures a step or replays it."""
    found = []
    for captured in (False, True):
        step, a = jit(lambda x: (x * 2).realize()), Tensor([1.0, 2.0]).realize()
        for _ in range(1 + 2 * replayed):
            step(a)
        Tensor.manual_seed(3)
        x, w = Tensor([1.0, 2.0]).realize(), Tensor([3.0, 4.0]).realize()
        given = function(x, w)
        y, *targets = given if isinstance(given, tuple) else (given,)
        if captured:
            step(a)
        gradients = (y * w).sum().gradient(w, y, *targets)
        found.append([y.tolist(), *(one.tolist() for one in gradients)])
    assert found[0] == found[1]


def test_a_way_back_that_nobody_marked_ends_where_memory_is_written(on_device):
    """Then other gradients are not refused, and values computed later need not have a history."""
    step, a = jit(lambda x: (x * 2).realize()), Tensor([1.0, 2.0]).realize()
    x, w = Tensor([1.0, 2.0]).realize(), Tensor([1.0, 1.0], requires_grad=True)
    step(a)
    y = x * 2
    step(a)
    known = len(history.recorded)
    later = (y * 3).realize()
    assert len(history.recorded) == known
    x.assign(Tensor([7.0, 7.0])).realize()
    (y * w + later).sum().backward()
    assert w.grad.tolist() == [2, 4] and x.grad is None


def test_a_write_that_waits_is_no_part_of_a_step(on_device):
    """Not even the write to a random state, which the step does not read."""
    step, a = jit(lambda x: (x * 2).realize()), Tensor([1.0, 2.0]).realize()
    drawn = []
    for captured in (False, True):
        x = Tensor([0.0]).realize()
        Tensor.manual_seed(7)
        for _ in range(4):
            x += 1
            Tensor.rand(3)
            if captured:
                step(a)
        drawn.append((Tensor.rand(3).tolist(), x.tolist()))
    assert drawn[0] == drawn[1]
