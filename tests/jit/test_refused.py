"""Steps that a replay could not repeat correctly raise."""

from __future__ import annotations

import functools
import itertools
import random
import threading
from threading import Event, Thread, current_thread
from types import SimpleNamespace

import numpy as np
import pytest
from jit.arrays import data

from minigrad import Tensor, Variable, jit, nn
from minigrad.errors import JitError


def captured_sum(device):
    step = jit(lambda x, scale=1: x.sum() * scale)
    for _ in range(3):
        assert step(Tensor([1.0, 2.0], device=device)).item() == 3
    return step


@pytest.mark.parametrize(
    ("make", "words"),
    [
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


def test_several_devices(compiled, other):
    there = Tensor([1.0], device=other)
    step = jit(lambda x: (x + 1, there * 2))
    step(Tensor([1.0], device=compiled))
    with pytest.raises(JitError, match=r"several devices .* part of each device separately"):
        step(Tensor([1.0], device=compiled))


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
    "mask": lambda x: x[x > 1], "nonzero": lambda x: x.nonzero(), "where": lambda x: x.where(),
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
        with pytest.raises(JitError, match=r"reads a value during the step .*x\[mask\]"):
            captured(Tensor([1.0, 2.0]))
    assert not captured.captured
    assert Tensor([1.0]).item() == 1.0


DRAWS = {
    "a branch": lambda x, kept: x * 2 if random.random() < 0.5 else x + 1,
    "a choice of tensors": lambda x, kept: x + random.choice(kept),
    "numpy's": lambda x, kept: x + kept[np.random.randint(2)],
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_numbers_that_a_replay_would_not_draw(on_device, name, monkeypatch):
    """As in teacher forcing; if the first two calls draw equal numbers, nothing else shows it."""
    monkeypatch.setattr(threading, "enumerate", lambda: [current_thread()])  # none of other tests
    kept = [Tensor([0.0, 1.0]), Tensor([2.0, 3.0])]
    step = jit(lambda x: DRAWS[name](x, kept))
    first = random.getstate(), np.random.get_state()
    for _ in range(2):
        random.setstate(first[0])
        np.random.set_state(first[1])
        try:
            step(Tensor([1.0, 2.0]))
        except JitError as error:
            assert "random, but a replay would always use the same numbers" in str(error)
            break
    else:
        pytest.fail("nothing was said")
    monkeypatch.undo()
    stop, other = Event(), Thread(target=lambda: stop.wait())
    other.start()
    try:
        with pytest.warns(UserWarning, match="ignore this if another thread drew them") as seen:
            step(Tensor([1.0, 2.0]))
        assert seen[0].filename == __file__
    finally:
        stop.set()
        other.join()


def test_methods_of_objects_that_cannot_be_referred_to():
    class Slots:
        __slots__ = ()

        @jit
        def step(self, x):
            return x + 1

    with pytest.raises(JitError, match=r"step is a method of Slots, .*'__weakref__'"):
        Slots().step(Tensor([1.0]))


def test_zeros_made_inside(on_device):
    @jit
    def step(x):
        kept = Tensor.zeros(3, requires_grad=True)
        (kept * x).sum().backward()
        return kept.grad + kept.detach()

    for number in range(5):
        assert step(Tensor([1.0, 2.0, number])).tolist() == [1.0, 2.0, number]


def test_gradients_of_an_input_are_not_added_up(on_device):
    @jit
    def step(x):
        loss = (x * x).sum()
        loss.backward()
        return loss

    x = Tensor([3.0])
    step(x)
    with pytest.raises(JitError, match="adds to the existing gradient of input 0"):
        step(x)
    for _ in range(3):
        x.grad = None
        assert (step(x).item(), x.grad.item()) == (9, 6)


def test_host_writes_inside(on_device):
    known = Tensor([1.0]).realize()

    @jit
    def step(x):
        known.set_data([2.0])
        return x + known

    step(Tensor([1.0]))
    with pytest.raises(JitError, match="writes host data"):
        step(Tensor([1.0]))

    unseen = Tensor.zeros(1, requires_grad=True)  # has values, but no memory yet

    @jit
    def first_written(x):
        if first_written.ready:
            unseen.set_data([2.0])
        return x + 1

    first_written.ready = False
    first_written(Tensor([1.0]))
    first_written.ready = True
    with pytest.raises(JitError, match="writes host data"):
        first_written(Tensor([1.0]))

    lazy = Tensor.ones(1) * 3  # a constant that is not computed yet

    @jit
    def given_memory(x):
        if given_memory.ready:
            lazy.assign(x)
        return x + 1

    given_memory.ready = False
    given_memory(Tensor([1.0]))
    given_memory.ready = True
    with pytest.raises(JitError, match=r"writes to a tensor of shape \(1,\) that has no memory"):
        given_memory(Tensor([1.0]))

    @jit
    def seeded(x):
        Tensor.manual_seed(3)
        return x + Tensor.rand(1)

    seeded(Tensor([1.0]))
    with pytest.raises(JitError, match="writes host data"):
        seeded(Tensor([1.0]))


def test_a_written_input_given_twice(on_device):
    @jit
    def step(x, y):
        x.assign(x + y)

    x, y = Tensor([1.0]).realize(), Tensor([2.0]).realize()
    step(x, y)
    z = Tensor([5.0]).realize()
    with pytest.raises(JitError, match="input 0, which is passed twice"):
        step(z, z)
    step(x, y)
    step(x, y)
    with pytest.raises(JitError, match="input 0, which is passed twice"):
        step(z, z)
    assert z.item() == 5 and x.item() == 7


def test_a_written_tensor_that_is_an_input_too(on_device):
    total = Tensor([1.0]).realize()

    @jit
    def step(x):
        total.assign(total + x)

    step(total)
    with pytest.raises(JitError, match="input 0, which the step also uses"):
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
    with pytest.raises(JitError, match="and replaces it"):
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
    calls = functools.partial(next, itertools.count(1))

    @jit
    def step(x):
        result = (x + 1).realize()
        if calls() == turn:
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


def test_a_value_that_the_host_made_may_be_read(on_device):
    """Also a list of indices, whose range is checked; not a value that a program has written."""
    step = jit(lambda x: x[[0, -1]] * Tensor([1.0, 2.0]).tolist()[1])
    for number in range(4):
        assert step(Tensor([1.0, 2.0, float(number)])).tolist() == [2.0, 2.0 * number]

    @jit
    def refused(x):
        made = Tensor([1.0, 2.0, 3.0])
        made[1:] += x[1:]
        return x * made.tolist()[1]

    refused(Tensor([1.0, 2.0, 3.0]))
    with pytest.raises(JitError, match="reads a value during the step"):
        refused(Tensor([1.0, 2.0, 3.0]))


def test_a_refused_call_did_all_of_its_work(on_device):
    """The parameter was updated, but not the argument; and the text did not say that it was."""
    weight = nn.Parameter(Tensor.ones(2))
    optimizer, calls = nn.optim.SGD([weight], lr=0.5), [0]

    @jit
    def step(x):
        calls[0] += 1
        optimizer.zero_grad()
        (weight * x).sum().backward()
        optimizer.step()
        x.assign(x + 1)
        return calls[0]

    x = Tensor([1.0, 2.0]).realize()
    step(x)
    with pytest.raises(JitError, match=r"returned 1 in .*\(This call did its work"):
        step(x)
    assert (x.tolist(), weight.tolist()) == ([3.0, 4.0], [-0.5, -1.5])
