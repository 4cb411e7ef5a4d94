"""What a step reads besides its arguments: the rows of the table in minigrad/jit."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from jit.arrays import same

from minigrad import Tensor, jit, nn
from minigrad.errors import JitError

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
