"""Memory that a step of `@jit` updates, and what is freed with it."""

from __future__ import annotations

import functools
import gc
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from jit.arrays import data, same

from minigrad import GlobalCounters, Tensor, Variable, jit, linalg, nn
from minigrad.errors import GradientError, JitError
from minigrad.jit import replay

# ---- memory that the step updates ----------------------------------------------------------------


@pytest.mark.parametrize("copy", [Tensor.contiguous, Tensor, Tensor.cat, lambda x: x.max(())])
def test_a_copy_that_the_step_writes(on_device, copy):
    """It does not take over the memory of an input or of a closed-over tensor."""
    held = Tensor([5, 6])

    @jit
    def step(x):
        y, z = copy(x), copy(held)
        y += 1
        z += x
        return y, z, x * 1, held * 1

    for k in range(5):
        x = Tensor([k, 2])
        got = [result.tolist() for result in (*step(x), x, held)]
        assert got == [[k + 1, 3], [k + 5, 8], [k, 2], [5, 6], [k, 2], [5, 6]]


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


def test_a_leaf_that_a_replay_would_write_to(on_device):
    """If it was captured with a plain tensor: writes to a leaf raise, unless under no_grad."""

    @jit
    def double(x):
        x.assign(x * 2)

    x, w = Tensor([1.0]).realize(), Tensor([1.0], requires_grad=True).realize()
    for _ in range(3):
        double(x)
    with pytest.raises(GradientError, match="cannot write in place to a leaf of shape"):
        double(w)
    with Tensor.no_grad():
        double(w)
    assert (x.tolist(), w.tolist()) == ([8.0], [2.0])


@pytest.mark.parametrize("writes", [False, True])
def test_a_step_that_freezes_a_leaf_that_it_is_given(writes, on_device):
    """A replay would not freeze the next one; leaves that the first call has frozen are fine."""

    @jit
    def step(x):
        if writes:
            with Tensor.no_grad():
                x.mul_(2)
        x.requires_grad_(False)
        return x.sum()

    x = Tensor([1.0], requires_grad=True)
    assert [step(x).item() for _ in range(5)] == ([2, 4, 8, 16, 32] if writes else [1] * 5)
    step.reset()
    step(Tensor([1.0], requires_grad=True))
    x = Tensor([1.0], requires_grad=True)
    with pytest.raises(JitError, match="step freezes input 0"):
        step(x)
    assert x.tolist() == [1 + writes]


def test_a_leaf_after_plain_tensors_of_a_step_that_writes_without_gradients(on_device):
    @jit
    def double(x):
        with Tensor.no_grad():
            x.mul_(2)

    for marked in [None] * 3 + [True] * 4 + [None] * 2 + [True] * 2:
        x = Tensor([3.0], requires_grad=marked)
        double(x)
        assert x.tolist() == [6] and x.requires_grad is marked


@pytest.mark.parametrize("calls", [0, 1, 2])
@pytest.mark.parametrize("show", [lambda x: x[1:], lambda x: x.flip(0)[:1], lambda x: x[:1].T])
def test_a_part_of_a_leaf_that_a_step_would_write_to(on_device, show, calls):
    """The same as for a leaf; but a detached part may be written."""
    step = jit(lambda x: x.assign(x * 2))
    for _ in range(calls):
        step(Tensor([1.0]).realize())
    w = Tensor([1.0, 1.0], requires_grad=True).realize()
    with pytest.raises(GradientError, match="cannot write in place to a leaf of shape"):
        step(show(w))
    assert w.tolist() == [1.0, 1.0]
    step(show(w.detach()))
    with Tensor.no_grad():
        step(show(w))
    assert sorted(w.tolist()) == [1.0, 4.0]


def test_a_view_of_what_was_parted_from_what_a_replay_writes(on_device):
    """A pending write is carried out before the replay, and gives the view's base other memory."""

    @jit
    def step(x):
        part = x[...]
        part += 1
        return part

    given = Tensor([1.0]).realize()
    for _ in range(3):
        result = step(given)
    given -= 1
    view = result.reshape(1, 1)
    step(result)
    assert (given.tolist(), result.tolist(), view.tolist()) == ([3.0], [5.0], [[5.0]])


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
    """A step and its memory are freed without the garbage collector: one with checked indices of a
    table in an object in a list.
    """

    def run() -> None:
        tables = [SimpleNamespace(table=Tensor.rand(1000, 64).realize())]
        step = jit(lambda index: tables[0].table[index].sum())
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


def test_a_write_of_a_value_that_the_step_realizes(device: str) -> None:
    """The stored gradient is realized with the loss; the write that reads it remains pending."""
    weight = Tensor([1.0, 2.0], device=device, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        weight.grad = None
        loss = (weight * x).sum()
        loss.backward()
        with Tensor.no_grad():
            weight.assign(weight - weight.grad * 0.5)
        return loss

    run = jit(step)
    losses = [run(Tensor([1.0, 1.0], device=device)).item() for _ in range(5)]
    assert losses == [3.0, 2.0, 1.0, 0.0, -1.0]
    assert weight.tolist() == [-1.5, -0.5]


def test_a_gradient_by_the_way_back_of_a_captured_result(compiled: str) -> None:
    """It reads the capture's own memory, which later replays overwrite."""
    weight = Tensor([[2.0, 0.0], [1.0, 2.0]], device=compiled, requires_grad=True)

    def inverse(x: Tensor) -> Tensor:
        return linalg.inv(x + weight).exp().sum()

    some = [Tensor([[seed, 0.5], [0.0, 1.0]], device=compiled) for seed in (0.0, 1.0, 2.0, 3.0)]
    step = jit(inverse)
    _, captured = step(some[0]), step(some[1])
    (found,) = captured.gradient(weight)
    for x in some[2:]:
        step(x)
    (wanted,) = inverse(some[1]).gradient(weight)
    same(found, wanted.numpy())


def test_a_write_goes_on_waiting_when_its_value_is_computed(device: str) -> None:
    """Uncaptured: the memory is written, as a view shows, after readers of its old contents."""
    target = Tensor([1.0, 2.0], device=device).realize()
    memory, view = target.raw.arg, target[1:]
    before, value = target * 10, Tensor([5.0, 6.0], device=device) + 1
    target.assign(value * 2)
    value.realize()
    assert target.tolist() == [12.0, 14.0] and view.tolist() == [14.0]
    assert before.tolist() == [10.0, 20.0] and target.raw.arg is memory


def test_what_a_replay_looks_at_does_not_grow_with_the_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server's step gets the caches of all layers and requests: hundreds, all of them written."""

    def step(caches: list[Tensor], x: Tensor) -> None:
        for cache in caches:
            cache[1:3] = x
        Tensor.realize(*caches)

    looks, known = list[Tensor](), replay.memory_of

    def look(tensor: Tensor) -> object:
        looks.append(tensor)
        return known(tensor)

    caches = [Tensor.zeros(4).contiguous().realize() for _ in range(40)]
    captured = jit(step)
    for number in range(3):
        captured(caches, Tensor([number, -number]).float())
    monkeypatch.setattr(replay, "memory_of", look)
    captured(caches, Tensor([3.0, -3.0]))
    assert 0 < len(looks) <= 2 * (len(caches) + 1), "each input is looked at once or twice"
    for cache in caches:
        assert cache.tolist() == [0, 3, -3, 0]


@pytest.mark.parametrize("is_input", [True, False])
def test_lazy_tensors_whose_variable_is_bound_to_several_values(
    is_input: bool, on_device: str
) -> None:
    """They read a tensor that the step updates, and no single program can compute both."""
    state, n = Tensor.arange(8).realize(), Variable("n", 1, 8)

    @jit
    def step(x: Tensor | None) -> None:
        (state if x is None else x).add_(1)

    for _ in range(3):
        step(state if is_input else None)
    short, long = state[: n.bind(2)] * 2, state[: n.bind(3)] * 3
    step(state if is_input else None)
    assert short.tolist() == [6, 8] and long.tolist() == [9, 12, 15]
    assert state[0].item() == 4


@pytest.mark.parametrize("lazy", [False, True], ids=["realized", "lazy"])
def test_a_step_that_fails_keeps_what_it_wrote(on_device, lazy):
    """In the call that captures as in all others: to an input, and to a closed-over tensor."""
    calls = functools.partial(next, itertools.count())
    weight, given = Tensor([1.0]), Tensor([1.0])

    @jit
    def step(x, y):
        weight.assign(weight + x)
        y += x
        if not lazy:
            Tensor.realize(weight, y)
        if calls() == 1:
            raise ArithmeticError
        return y * 2

    for number in range(2, 7):
        if number == 3:
            with pytest.raises(ArithmeticError):
                step(Tensor([1.0]), given)
        else:
            assert step(Tensor([1.0]), given).item() == 2 * number
        assert given.item() == weight.item() == number


def _sum_in_a_loop(x):
    total = Tensor(0.0)
    for k in range(3):
        total += x.sum() * k
    return [total]


def _rows_in_a_loop(x):
    rows = Tensor([[0.0, 0.0], [1.0, 1.0]])
    for k in range(2):
        rows[k] += x * k
    return [rows, rows[1]]


def _second_names(x):
    values, others = Tensor([1.0, 2.0]), x.new_tensor([3, 4])
    before, part = Tensor(values), values.detach()[1:]
    part.add_(x[:1])
    return [values, before, others.sqrt_()]


def _training_in_a_step(x):
    weight, bias = Tensor([1.0, 2.0], requires_grad=True), Tensor.zeros(2, requires_grad=True)
    optimizer = nn.optim.SGD([weight, bias], lr=0.1, momentum=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (weight * x + bias).square().sum().backward()
        optimizer.step()
    return [weight, bias]


def _data_alone(x):
    values = Tensor([1.0, 2.0])
    return [values, values.reshape(2, 1), Tensor(2.5), Tensor.zeros(2), x + 1]


@pytest.mark.parametrize(
    "step",
    [_sum_in_a_loop, _rows_in_a_loop, _second_names, _training_in_a_step, _data_alone],
    ids=lambda step: step.__name__[1:],
)
def test_data_of_the_host_is_new_in_each_call(on_device, step):
    """Although the step, or its caller, writes to the tensors that it makes of Python numbers."""
    captured = jit(step)
    for k in range(5):
        x = Tensor([k, 2.0])
        for found, wanted in zip(captured(x), step(x), strict=True):
            same(found, wanted.numpy())
            with Tensor.no_grad():
                found += 1


def test_data_of_the_host_that_a_step_keeps(on_device):
    """It is new in each call, although code outside writes to it."""
    kept = SimpleNamespace()

    @jit
    def step(x):
        kept.values = Tensor([1.0, 2.0])
        return x + kept.values

    for k in range(5):
        assert step(Tensor([k, 0])).tolist() == [k + 1, 2]
        assert kept.values.tolist() == [1, 2]
        kept.values.mul_(2)


CONSTANT = [3.0, 4.0]


@pytest.mark.parametrize(
    "graded",
    [
        lambda weight, held: weight.sum().backward(),
        lambda weight, held: weight.backward(Tensor(CONSTANT)),
        lambda weight, held: weight.backward(held),
        lambda weight, held: (weight * Tensor.arange(2)).sum().backward(),
        lambda weight, held: setattr(weight, "grad", Tensor(CONSTANT)),
    ],
    ids=["ones", "data", "a tensor outside", "positions", "set"],
)
def test_gradients_that_no_kernel_computes(on_device, graded):
    """They are new in each call, although the caller writes to them."""
    weight, held = Tensor([1.0, 2.0], requires_grad=True), Tensor(CONSTANT)
    graded(weight, held)
    wanted = weight.grad.numpy()

    @jit
    def step():
        weight.grad = None
        graded(weight, held)

    for _ in range(5):
        step()
        same(weight.grad, wanted)
        weight.grad.mul_(2)
    assert held.tolist() == CONSTANT


def test_data_that_a_step_replaces_by_other_data(on_device):
    """A replay would read the later data in both places."""

    @jit
    def step(x):
        values = Tensor([1.0, 2.0])
        y = values + x
        return y, values.set_data([3.0, 4.0]) + x

    assert [y.tolist() for y in step(Tensor([0.0, 0.0]))] == [[1, 2], [3, 4]]
    with pytest.raises(JitError, match="writes host data into an existing tensor"):
        step(Tensor([0.0, 0.0]))


def _leave_gradient(m, x):
    (x.detach() * m.w).square().sum().backward()
    return m.w.grad.detach()


def _leave_gradient_of_input(m, x):
    x.square().sum().backward()
    return x.grad.detach()


def _leave_equal_gradients(m, x):
    (x + m.w).square().sum().backward()
    return m.w.grad


def _store_result(m, x):
    m.h = x.detach() * 3
    return m.h.detach()


def _store_view_of_result(m, x):
    y = x * m.w
    m.h = y.detach()
    return y


def _store_equal_value(m, x):
    m.h = x.detach() * 3
    return x.detach() * 3


def _store_gradient(m, x):
    (x.detach() * m.w).square().sum().backward()
    m.h = m.w.grad
    return x * 2


def _store_gradient_of_input(m, x):
    x.square().sum().backward()
    m.h = x.grad
    return x * 2


def _store_and_return_gradient(m, x):
    (x.detach() * m.w).square().sum().backward()
    m.h, m.kept = m.w.grad, [m.w.grad.detach()]
    return m.h.detach()


def _store_view_and_return_part(m, x):
    y = x * 3
    m.h, m.kept = y.detach(), [y[:1]]
    return y


SHARED = [_leave_gradient, _leave_gradient_of_input, _leave_equal_gradients, _store_result,
          _store_view_of_result, _store_equal_value, _store_gradient, _store_gradient_of_input,
          _store_and_return_gradient, _store_view_and_return_part]  # fmt: skip


@pytest.mark.parametrize("step", SHARED, ids=lambda step: step.__name__.strip("_"))
def test_one_value_is_left_at_several_places(on_device, step):
    """As a result, a gradient and an attribute: each of them is new after every replay."""

    def run(function, captures):
        m = SimpleNamespace(w=Tensor([1.0, 2.0], requires_grad=True), h=Tensor([0.0, 0.0]), kept=[])
        call = jit(function) if captures else function
        for k in range(5):
            x = Tensor([k + 1.0, k - 2.0], requires_grad=True)
            m.w.grad = None
            result = call(m, x)
            found = (result, m.h, x.grad, m.w.grad, *m.kept)
            yield [None if tensor is None else tensor.tolist() for tensor in found]
        assert not captures or call.captured

    assert [*run(step, True)] == [*run(step, False)]


def test_a_result_and_its_diagonal(on_device):
    """A view that is a result does not follow what it is a view of."""
    step = jit(lambda x: (lambda y: (y, y.diagonal(), y[0]))(x * 2))
    for k in range(5):
        x = np.arange(9.0).reshape(3, 3) + k
        y, diagonal, row = step(Tensor(x))
        same(y, x * 2)
        same(diagonal, np.diagonal(x) * 2)
        same(row, x[0] * 2)
