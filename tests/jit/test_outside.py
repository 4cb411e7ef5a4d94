"""What a step reads besides its arguments: as listed in minigrad/jit/jitted.py."""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import os
import sys
from array import array
from collections import OrderedDict, UserDict, UserList, deque
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from jit.arrays import same

from minigrad import Tensor, Variable, jit, nn
from minigrad.errors import JitError
from minigrad.jit.outside import Outside
from minigrad.tensor.observed import Observed

RATE = 1.0
WEIGHT = None
GIVEN = None


def helper(x):
    return x * RATE


def raises_after(step, change, words, make=lambda: Tensor([1.0, 2.0])):
    """Call three times, then make a change: the next call must raise."""
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

    raises_after(step, change, r"'scale', which was 0\.0 in the capture and is -0\.0 now")


def test_equal_numbers_are_no_change(on_device):
    scale, names = 1000.5, ("a", 2.5)
    step = jit(lambda x: x * scale * names[1])
    for number in range(6):
        scale, names = float(f"{1000.5}"), ("a", float("2.5"))
        assert step(Tensor([float(number)])).item() == number * 1000.5 * 2.5


def test_a_long_list_beside_another_equal_number(on_device):
    scale, values = 1000.5, [2.0] * 300
    step = jit(lambda x: x * scale * values[0])
    for number in range(6):
        scale = float(f"{1000.5}")
        assert step(Tensor([float(number)])).item() == number * 2001.0


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
    "tensors": ([1.5], Tensor), "long list": ([2.0] * 300, 9.0),
    "bytes": (bytearray([2]), 9),
    "UserDict": (UserDict({0: 2.0}), 9.0), "UserList": (UserList([2.0]), 9.0),
    "Python's array": (array("d", [2.0]), 9.0), "long dict": (dict.fromkeys(range(300), 2.0), 9.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTAINERS)
def test_contents_that_change(on_device, kind):
    values, other = copy.copy(CONTAINERS[kind][0]), CONTAINERS[kind][1]
    if other is Tensor:
        values, other = [Tensor([2.0])], Tensor([9.0])

    @jit
    def step(x):
        return x * (values[0] if kind == "tensors" else float(values[0]))

    def change():
        values[0] = other

    raises_after(step, change, "'values', whose contents")


def test_other_keys_of_a_long_dict(on_device):
    values = dict.fromkeys(range(300), 2.0)
    step = jit(lambda x: x * values.get(1000, 1.0))

    def change():
        values[1000] = values.pop(299)

    raises_after(step, change, "'values', whose contents")


def test_a_list_that_is_only_added_to(on_device):
    state = SimpleNamespace(seen=[])
    step = jit(lambda x: (state.seen.append(1), x + 1)[1])
    for number in range(5):
        assert step(Tensor([float(number)])).item() == number + 1
        if number == 3:
            state.seen.clear()


def _kept(kept):
    kept.pairs.append((1, kept.x * 2))


def _larger(kept):
    kept.named[len(kept.named)] = kept.x * 2


def _longer(kept):
    kept.past = (*kept.past, kept.x * 2)


def _moved(kept):
    kept.last = [*kept.last[-1:], kept.x * 2]


def _counted(kept):
    kept.numbers[0] += 1


@pytest.mark.parametrize(
    "change, message",
    [
        (_kept, r"adds a tensor to 'kept\.pairs'"), (_larger, r"reads 'kept\.named' and replaces"),
        (_longer, r"reads 'kept\.past' and replaces"), (_moved, r"reads 'kept\.last' and replaces"),
        (_counted, r"reads 'kept\.numbers' and replaces"),
    ],
    ids=lambda given: getattr(given, "__name__", "")[1:],
)  # fmt: skip
def test_containers_that_the_step_changes(change, message, on_device):
    """A replay would not change them again, so what they hold would be wrong without an error."""
    kept = SimpleNamespace(x=Tensor([1.0]).realize(), pairs=[], named={}, past=(), last=[],
                           numbers=np.zeros(2))  # fmt: skip

    @jit
    def step(x):
        change(kept)
        return kept.x + x

    assert step(Tensor([1.0])).tolist() == [2]
    with pytest.raises(JitError, match=message):
        step(Tensor([1.0]))


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_an_equal_container_in_place_of_one_that_the_step_fills(on_device, kind):
    """A replay would fill the other one."""
    first = Tensor([1.0]).realize()
    box = SimpleNamespace(items=[first] if kind == "list" else {0: first})

    @jit
    def step(x):
        box.items[0] = x * 2

    for number in range(5):
        step(Tensor([float(number)]))
        assert box.items[0].item() == number * 2
    box.items = box.items.copy()
    with pytest.raises(JitError, match=r"reads 'box\.items', which was .* in the capture"):
        step(Tensor([1.0]))


@pytest.mark.parametrize("way", ["itself", "turned", "exchanged", "before", "returned"])
def test_a_view_of_a_tensor_that_the_step_replaces(on_device, way):
    """No program reads the tensor, so that only its memory tells that a view of it shows it."""
    box = SimpleNamespace(h=Tensor([1.0, 2.0]).realize(), other=Tensor([3.0, 4.0]).realize())

    @jit
    def step(x):
        shown = box.h.detach()
        if way == "itself":  # a replay would not see what was written to it meanwhile
            box.h = shown
        elif way == "turned":
            box.h = box.h.flip(0)
        elif way == "exchanged":
            box.h, box.other = box.other.flip(0), box.h.flip(0)
        else:
            box.h = x * 1
        if way == "before":
            box.other = shown
        return shown if way == "returned" else x

    step(Tensor([5.0, 6.0]))
    with pytest.raises(JitError, match=r"reads 'box\.h' and replaces it"):
        step(Tensor([7.0, 8.0]))


def test_a_view_of_a_tensor_from_outside_that_is_left(on_device):
    """It shows what is there when the step is called, also after a write in between parts them."""
    box = SimpleNamespace(h=Tensor([1.0, 2.0]).realize(), last=None)

    @jit
    def step(x):
        box.last = box.h.detach()
        return x + 1

    for number in range(6):
        box.h.assign(Tensor([float(number), 2.0]))
        assert step(Tensor([float(number)])).item() == number + 1
        assert box.last.tolist() == [number, 2.0]


def test_containers_that_the_step_makes_anew(on_device):
    """Each replay updates the tensors in them."""
    kept = SimpleNamespace(layers=[], named={})

    @jit
    def step(x):
        kept.layers = []
        for number in range(3):
            kept.layers.append(x * number)
        kept.named = {f"x{number}": x + number for number in range(3)}
        return kept.layers[1] + kept.named["x2"]

    for number in range(5):
        assert step(Tensor([float(number)])).tolist() == [2 * number + 2]
        assert [x.item() for x in kept.layers] == [0, number, 2 * number]
        assert [x.item() for x in kept.named.values()] == [number, number + 1, number + 2]


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


def test_a_scheduler_that_a_step_moves_or_looks_at(on_device):
    """Its first rates are equal, so that no number shows that it moves."""
    optimizer = nn.optim.SGD([Tensor([1.0], requires_grad=True)], lr=0.5)
    scheduler = nn.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step // 9))

    @jit
    def moves(x):
        scheduler.step()
        return x + 1

    moves(Tensor([1.0]))
    with pytest.raises(JitError, match="reads LambdaLR's last_epoch and replaces it"):
        moves(Tensor([1.0]))
    looks = jit(lambda x: x * scheduler.get_last_lr()[0])
    for _ in range(4):
        assert looks(Tensor([1.0])).item() == 0.5
    scheduler.last_epoch = 9
    with pytest.raises(JitError, match=r"LambdaLR whose last_epoch was 2 .* is 9 now"):
        looks(Tensor([1.0]))


def test_another_option_of_an_optimizer(on_device):
    w = Tensor([1.0])
    optimizer = nn.optim.SGD([w], lr=1.0, momentum=0.5)

    @jit
    def step():
        optimizer.zero_grad()
        w.sum().backward()
        optimizer.step()

    for _ in range(4):
        step()
    optimizer.momentum = 0.5
    step()
    optimizer.momentum = 0.25
    with pytest.raises(JitError, match=r"SGD whose momentum was 0\.5 .* is 0\.25"):
        step()
    looks = jit(lambda x: x * optimizer.param_groups[0]["momentum"])
    for _ in range(4):
        assert looks(Tensor([1.0])).item() == 0.25
    optimizer.momentum = 0.5
    with pytest.raises(JitError, match=r"SGD whose momentum was 0\.25 .* is 0\.5"):
        looks(Tensor([1.0]))


def test_data_of_the_host_made_inside(on_device):
    state = SimpleNamespace(items=[0.0])
    items = [state]

    @jit
    def step(x):
        items[0].items[0] += 1
        return x + Tensor([items[0].items[0]])

    step(Tensor([1.0]))
    with pytest.raises(JitError, match=r"host data .* differs from the first call's"):
        step(Tensor([1.0]))
    fixed = jit(lambda x: x + Tensor([1.0, 2.0]) + Tensor(np.ones(2, np.float32)))
    for number in range(4):
        assert fixed(Tensor([float(number)])).tolist() == [number + 2.0, number + 3.0]


def counter():
    """A function that the step calls, so that the step itself does not read the number."""
    return functools.partial(next, itertools.count(1))


NEW_NUMBERS = {
    "a factor": (lambda x, n: x * n, "computes with 3, but with 2"),
    "a float": (lambda x, n: x / (n / 8), "computes with 0.375, but with 0.25"),
    "a place": (lambda x, n: x[n] + 1, "computes with 3, but with 2"),
    "a size": (lambda x, n: x[: n + 1].sum(), "computes with 4, but with 3"),
    "of several programs": (lambda x, n: (x * 2).realize().exp() - n, "computes with 3, but with"),
}


@pytest.mark.parametrize("name", NEW_NUMBERS)
def test_a_number_that_is_new_in_each_call(on_device, name):
    function, words = NEW_NUMBERS[name]
    count = counter()
    step = jit(lambda x: function(x, count()))
    for number in range(2):
        found = step(Tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * 2)
        wanted = function(Tensor([2.0, 4.0, 6.0, 8.0, 10.0, 12.0]), number + 1)
        assert found.tolist() == wanted.tolist() and not step.captured
    with pytest.raises(JitError, match=f"{words}.*a Tensor, or a bound Variable"):
        step(Tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * 2)


@pytest.mark.parametrize("where", ["memory", "attribute", "gradient", "rate"])
def test_a_new_number_in_what_a_step_leaves(on_device, where):
    """No result depends on it, and the first call ends before anybody asks for it."""
    count, weight = counter(), Tensor([1.0], requires_grad=True)
    state, box = Tensor([0.0]).realize(), SimpleNamespace(last=Tensor([0.0]).realize())
    optimizer = nn.optim.SGD([weight], lr=0.1)

    def leave(x, number):
        if where == "memory":
            state.assign(x * number)
        elif where == "attribute":
            box.last = x * number
        elif where == "gradient":
            weight.grad = None
            (weight * x * number).sum().backward()
        else:
            optimizer.lr = float(number)
        return x + 1

    step = jit(lambda x: leave(x, count()))
    for number in range(1, 3):
        assert step(Tensor([1.0])).item() == 2
        left = {"memory": state, "attribute": box.last, "gradient": weight.grad,
                "rate": optimizer.lr}[where]  # fmt: skip
        assert left.item() == number
    with pytest.raises(JitError, match="computes with 3, but with 2"):
        step(Tensor([1.0]))


@pytest.mark.parametrize("kind", ["plain", "norm", "dropout", "not trained"])
def test_a_number_of_a_model(on_device, kind):
    """The counter is hidden from the step, and its values 1.0 and 2.0 are in the graph anyway."""
    more = {"norm": [nn.BatchNorm1d(2)], "dropout": [nn.Dropout(0.25)]}.get(kind, [])
    inner, count = nn.Sequential(nn.Linear(3, 2), *more).train(), counter()

    class Model(nn.Module):
        def __call__(self, x):
            return inner(x) * float(count())

    model = Model()
    optimizer = None if kind == "not trained" else nn.optim.Adam(inner.parameters(), 0.1)

    @jit
    def step(x):
        loss = (model(x) * 2.0 - 1.0).square().mean()
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss

    for _ in range(2):
        step(Tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 0.0]]))
    with pytest.raises(JitError, match="computes with 3, but with 2"):
        step(Tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 0.0]]))


def test_a_number_that_changes_once(on_device):
    """It changes once between calls, or follows from arguments: no call raises."""
    box = SimpleNamespace()
    scaled = jit(lambda x: x * box.calls if box else x)
    grows = jit(lambda x: (x / x.shape[0]).sum())
    given = jit(lambda x, scale, n: (x * scale)[:n].sum())
    n = Variable("n", 1, 3)
    for number in range(5):
        box.calls = 2 + min(number, 1)
        assert scaled(Tensor([2.0])).item() == 2 * box.calls
        assert grows(Tensor.ones(number % 2 + 2)).item() == 1
        assert given(Tensor([1.0, 1.0, 1.0]), 2.0, n.bind(number % 3 + 1)).item() == (
            2 * (number % 3 + 1)
        )
    assert scaled.captured and grows.captured and given.captured


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
    layer.weight = nn.Parameter(Tensor([[1.0, 1.0]]))
    with pytest.raises(JitError, match=r"shape \(1, 2\) that no longer exists"):
        step(x)
    step.reset()
    for _ in range(4):
        assert step(x).tolist() == [4]


def test_numbers_of_modules(on_device):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.epoch = 2.0, 0
            self.act = nn.LeakyReLU(0.5)

        @property
        def factor(self):
            return self.scale

        def forward(self, x):
            return self.act(x * self.factor)

    model = Model()
    step = jit(lambda x: model(x))
    for number in range(6):
        model.epoch = number  # no method reads it
        assert step(Tensor([-5.0])).item() == -5
    model.scale = 3.0
    with pytest.raises(JitError, match=r"Model whose scale was 2\.0 .* is 3\.0"):
        step(Tensor([-5.0]))
    model.scale = 2.0
    assert step(Tensor([-5.0])).item() == -5
    model.act.negative_slope = 0.25
    with pytest.raises(JitError, match="LeakyReLU whose negative_slope was"):
        step(Tensor([-5.0]))


def test_what_no_method_reads_is_no_reason_to_look_again(on_device):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.epoch = 2.0, 0

        def forward(self, x):
            return x * self.scale

    model = Model()
    step = jit(lambda x: model(x))
    for _ in range(3):
        step(Tensor([1.0]))
    (capture,) = step._replays.values()
    differs = capture.__globals__["differs"]
    assert not differs()
    model.epoch, model.scale, model.other = 1, 2.0, "new"
    assert not differs()
    model.scale = 3.0
    assert differs()


SURGERY = {
    "layer": lambda model, other: setattr(model, "first", other.first),
    "parameter": lambda model, other: setattr(model, "scale", other.scale),
    "in a list": lambda model, other: model.rest.__setitem__(0, other.rest[0]),
    "in a Sequential": lambda model, other: model.last.append(nn.ReLU()),
    "its forward": lambda model, other: setattr(model.first, "forward", other.first.forward),
    "its method": lambda model, other: setattr(model, "scaled", lambda x: x),
    "its class": lambda model, other: setattr(model.last, "__class__", nn.ModuleList),
    "forward of its class": lambda model, other: setattr(type(model), "forward", lambda self, x: x),
}


@pytest.mark.parametrize("kind", SURGERY)
def test_layers_that_are_replaced(on_device, kind):
    """Also if the old layer is still referenced elsewhere."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.scale = nn.Linear(2, 2), nn.Parameter(Tensor([1.0, 2.0]))
            self.rest, self.last = nn.ModuleList([nn.Linear(2, 2)]), nn.Sequential(nn.Linear(2, 2))

        def scaled(self, x):
            return x * self.scale

        def forward(self, x):
            return self.last(self.rest[0](self.scaled(self.first(x))))

    model, other = Model(), Model()
    kept = [model.first, model.scale, model.rest[0]]
    step = jit(lambda x: model(x))
    for _ in range(4):
        step(Tensor([1.0, 2.0]))
    SURGERY[kind](model, other)
    with pytest.raises(JitError, match=r"calls a \w+ whose \w+ was|reads '[mM]odel\."):
        step(Tensor([1.0, 2.0]))
    assert kept


CONTENTS = {
    "parameters": lambda model, x: x * sum(p.square().sum() for p in model.parameters()),
    "children": lambda model, x: sum(child(x).sum() for child in model.children()),
    "hasattr": lambda model, x: x if hasattr(model, "last") else x * 2,
    "getattr": lambda model, x: x if getattr(model, "last", None) else x * 2,
    "a plain object": lambda model, x: x * getattr(model.plain, "rate", 1.0),
}


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("kind", CONTENTS)
def test_what_a_module_has_more_or_less(on_device, kind, adds):
    class Model(nn.Module):
        def __init__(self):
            self.first, self.plain = nn.Linear(2, 2), SimpleNamespace()
            if not adds:
                self.last, self.plain.rate = nn.Linear(2, 2), 2.0

        def forward(self, x):
            return CONTENTS[kind](self, x)

    model = Model()
    kept = getattr(model, "last", None)

    def change():
        whole, name = (model.plain, "rate") if kind == "a plain object" else (model, "last")
        if adds:
            setattr(whole, name, 2.0 if name == "rate" else nn.Linear(2, 2))
        else:
            delattr(whole, name)

    raises_after(jit(lambda x: model(x)), change, r"whose last was|'model\.(last|plain\.rate)'")
    assert adds or kept


def test_a_state_that_a_module_replaces(on_device):
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.state, self.last = Tensor([0.0]).realize(), None

        def forward(self, x):
            self.last = x * 2  # never read
            self.state = (self.state + x).realize()
            return self.state

    model = Counter()
    step, results = jit(lambda x: model(x)), []
    results.append(step(Tensor([1.0])))
    with pytest.raises(JitError, match="a tensor of a module that it calls and replaces it"):
        step(Tensor([1.0]))


def test_what_is_fixed(on_device, monkeypatch):
    """The table's last row: values that are neither names in the step nor their attributes."""
    monkeypatch.setenv("SCALE", "1")
    step = jit(lambda x: x * int(os.environ["SCALE"]))
    for number in range(6):
        if number == 3:
            monkeypatch.setenv("SCALE", "2")
        assert step(Tensor([5.0])).item() == 5
    step.reset()
    assert step(Tensor([5.0])).item() == 10


class Scaled:
    """Its methods all read its scale, and run without being named in the step."""

    def __init__(self):
        self.scale = 2.0

    def __call__(self, x):
        return x * self.scale

    def __getitem__(self, place):
        return self.scale

    def __iter__(self):
        return iter([self.scale])

    def __enter__(self):
        return self.scale

    def __exit__(self, *of):
        return None

    def __getattr__(self, name):
        if name != "rate":
            raise AttributeError(name)
        return self.scale

    def __rmul__(self, x):
        return x * self.scale

    def __isub__(self, x):
        return x * -self.scale

    def __neg__(self):
        return self.scale

    def __contains__(self, x):
        return self.scale == 2.0

    def __bool__(self):
        return self.scale == 2.0

    def __len__(self):
        return int(self.scale)

    def __float__(self):
        return self.scale

    def __gt__(self, other):
        return self.scale > other

    kept = [2.0]  # noqa: RUF012

    @staticmethod
    def of(x, values=kept):
        return x * values[0]


class Inherits(Scaled):
    def __call__(self, x):
        return super().__call__(x)


class Calls(nn.Module):
    """A module whose forward calls an object, through a list of layers."""

    class Inner(nn.Module):
        def __init__(self, given):
            self.given = given

        def forward(self, x):
            return self.given(x)

    def __init__(self, given):
        self.layers = nn.ModuleList([Calls.Inner(given)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def decorated(given, x):
    """Through decorators that set __wrapped__: this module's and the library's."""

    def scaled(function):
        @functools.wraps(function)
        def inner(x):
            return function(x) * given.scale

        return inner

    return Tensor.no_grad()(scaled(lambda x: x))(x)


def entered(given, x):
    with given as scale:
        return x * scale


def decreased(given, x):
    given -= x
    return given


def scale_of(other):
    return other.scale


def called(other, x):
    return other(x)


IMPLIED = {
    "an operator": lambda given: lambda x: x.tanh() + 3.0 * given,
    "an operator in place": lambda given: lambda x: decreased(given, x),
    "a sign": lambda given: lambda x: x * -given,
    "a member": lambda given: lambda x: x * (2.0 if 1 in given else 1.0),
    "in a Sequential": lambda given: (lambda m: lambda x: m(x))(nn.Sequential(nn.Tanh(), given)),
    "a function in it": lambda given: (lambda m: lambda x: m(x))(
        nn.Sequential(nn.Tanh(), lambda x: x * given.scale)
    ),
    "called": lambda given: lambda x: given(x),
    "called in a list": lambda given: (lambda layers: lambda x: sum(f(x) for f in layers))([given]),
    "inherited": lambda given: lambda x: given(x),
    "by a place": lambda given: lambda x: x * given[0],
    "in a loop": lambda given: lambda x: sum(x * scale for scale in given),
    "by with": lambda given: lambda x: entered(given, x),
    "by another name": lambda given: lambda x: x * given.rate,
    "by a module": lambda given: (lambda model: lambda x: model(x))(Calls(given)),
    "by a decorator": lambda given: lambda x: decorated(given, x),
    "a default": lambda given: lambda x, other=given: x * other.scale,
    "given before": lambda given: functools.partial(lambda other, x: x * other.scale, given),
    "by a function": lambda given: lambda x: x * scale_of(given),
    "called by a function": lambda given: lambda x: called(given, x),
    "of a result": lambda given: (lambda get: lambda x: x * get().scale)(lambda: given),
    "its truth": lambda given: lambda x: x * 2 if given else x,
    "not": lambda given: lambda x: x * (not given),
    "its length": lambda given: lambda x: x * len(given),
    "as a number": lambda given: lambda x: x * float(given),
    "compared": lambda given: lambda x: x * (given > 2.0),
    "summed": lambda given: lambda x: x * sum(given),
    "unpacked": lambda given: lambda x: (lambda one: x * one)(*given),
    "as a dict": lambda given: lambda x: x * vars(given)["scale"],
    "in a deque": lambda given: (lambda some: lambda x: x * some[0].scale)(deque([given])),
}


@pytest.mark.parametrize("kind", IMPLIED)
def test_what_runs_without_its_name(on_device, kind):
    given = Inherits() if kind == "inherited" else Scaled()
    step = jit(IMPLIED[kind](given))
    raises_after(step, lambda: setattr(given, "scale", 3.0), r"scale', which was 2\.0")


def test_contents_of_defaults(on_device):
    step = jit(lambda x: Scaled.of(x))
    other = Scaled.kept[0] + 1.0  # another device's test may have changed it
    raises_after(step, lambda: Scaled.kept.insert(0, other), "'values', whose contents")
    rates = {"a": [2.0]}

    @jit
    def step(x, *, rates=rates):
        return x * rates["a"][0]

    raises_after(step, lambda: rates["a"].insert(0, 3.0), "'rates', whose contents")


class Opened(dict):
    """A dict whose items are also attributes, as in many configurations."""

    __getattr__ = dict.__getitem__


def test_a_dict_whose_items_are_attributes(on_device):
    config, own = Opened(rate=2.0), Opened(rate=2.0, x=Tensor([3.0, 4.0]))
    raises_after(jit(lambda x: x * config.rate), lambda: config.update(rate=3.0), "'config', whose")
    step = jit(lambda x, given: OrderedDict(a=x * given.rate * given.x))
    for number in range(4):
        found = step(Tensor([1.0, number]), own)
        assert type(found) is OrderedDict and found["a"].tolist() == [6.0, 8.0 * number]


class Made:
    """A class that a step instantiates; its methods may be replaced later."""

    base = 2.0

    def __init__(self):
        self.scale = Made.base

    def scaled(self, x):
        return x * self.scale

    @staticmethod
    def more(x):
        return x * 2


def test_classes_of_what_is_made_inside(on_device, monkeypatch):
    step = jit(lambda x: Made().scaled(x))
    raises_after(step, lambda: monkeypatch.setattr(Made, "base", 3.0), r"'Made\.base'")
    other = functools.partial(monkeypatch.setattr, Made, "scaled", lambda self, x: x + 1)
    raises_after(step, other, r"'Made\.scaled', which was <function Made\.scaled")
    step, made = jit(lambda x: made.more(x)), Made()
    other = functools.partial(monkeypatch.setattr, Made, "more", staticmethod(lambda x: x * 5))
    raises_after(step, other, r"'Made\.more', which was")


def test_what_a_function_imports(on_device, monkeypatch):
    module = ModuleType("module_of_a_test")
    module.rate = 2.0
    monkeypatch.setitem(sys.modules, module.__name__, module)

    @jit
    def names(x):
        import module_of_a_test

        return x * module_of_a_test.rate

    @jit
    def takes(x):
        from module_of_a_test import rate

        return x * rate

    for step, rate in ((names, 3.0), (takes, 4.0)):
        raises_after(step, lambda rate=rate: setattr(module, "rate", rate), r"rate', which was")


class Config:
    rate = 2.0


def test_attributes_of_classes_and_modules(on_device, monkeypatch):
    module = ModuleType("settings_of_a_user")
    module.rate = 2.0
    step = jit(lambda x: x * Config.rate * module.rate)
    raises_after(step, lambda: setattr(module, "rate", 3.0), r"'module\.rate', which was 2\.0")
    raises_after(step, lambda: monkeypatch.setattr(Config, "rate", 3.0), r"'Config\.rate'")


def test_nodes_are_not_looked_into(on_device):
    """They never change, and a graph has many; containers of nodes may change."""
    node = (Tensor([1.0, 2.0]) * 2 + 1).node
    nodes = {node: [*node.src]}

    def step(x):
        return x + sum(one.src is other.src for one, others in nodes.items() for other in others)

    found = Outside("step", step, None, {}, Observed())
    assert not [place for place in found.read if place.endswith(".src")]
    assert not found.differs()
    nodes[node].pop()
    with pytest.raises(JitError, match="whose contents have changed"):
        found.check()


def test_containers_in_containers(on_device):
    config = {"inner": {"rates": [2.0]}}
    step = jit(lambda x: x * config["inner"]["rates"][0] if "inner" in config else x)

    def change():
        config["inner"]["rates"][0] = 3.0

    raises_after(step, change, "'config', whose contents")
    raises_after(step, lambda: config.update(other=config.pop("inner")), "'config', whose contents")
    pair = ([2.0], 1)
    step = jit(lambda x: x * pair[0][0])
    raises_after(step, lambda: pair[0].append(pair[0].pop() + 1), "'pair', whose contents")


def test_attributes_of_arguments(on_device):
    batch, seen = SimpleNamespace(x=Tensor([1.0, 2.0])), [Tensor([3.0, 4.0])]
    step = jit(lambda batch, y: batch.x * y)
    for _ in range(3):
        assert step(batch, Tensor([2.0, 2.0])).tolist() == [2, 4]
    seen.append(batch.x)
    batch.x = seen[0]
    with pytest.raises(JitError, match=r"'batch\.x', which was one Tensor .* another Tensor"):
        step(batch, Tensor([2.0, 2.0]))


def test_attributes_of_containers(on_device):
    class Config(dict):
        rate = 1.0

    config = Config(inner=[Config(scale=2.0)])
    config.rate = 2.0
    step = jit(lambda x: x * config.rate * config["inner"][0]["scale"])
    raises_after(step, lambda: setattr(config, "rate", 3.0), r"'config\.rate', which was 2\.0")
    raises_after(step, lambda: config["inner"][0].update(scale=5.0), "'config', whose contents")


class Slotted:
    __slots__ = ("rate",)


def test_attributes_that_methods_read(on_device):
    class Model:
        base = 1.0

        def __init__(self):
            self._rate, self.slotted = 2.0, Slotted()
            self.slotted.rate = 1.0

        @property
        def rate(self):
            return self._rate

        def scaled(self, x):
            inner = self.slotted
            return x * self.rate * self.base * inner.rate

        @jit
        def step(self, x):
            return self.scaled(x)

    for change in (
        lambda model: setattr(model, "_rate", 3.0), lambda model: setattr(model, "base", 2.0),
        lambda model: setattr(model.slotted, "rate", 2.0), lambda _: setattr(Model, "base", 5.0),
    ):  # fmt: skip
        model = Model()
        raises_after(model.step, functools.partial(change, model), r"reads 'self\.")


INDIRECT = {
    "in a list": lambda layers: sum(layer.scale for layer in layers),
    "by a place": lambda layers: layers[0].scale,
    "by another name": lambda layers: (lambda one: one.scale)(layers[0]),
    "by a variable": lambda layers: [one := layers[1], one.scale][1],
    "by getattr": lambda layers: getattr(layers[0], "scale"),  # noqa: B009
    "in a dict": lambda layers: {"a": layers[0]}["a"].scale,
    "by a method": lambda layers: layers[0].scaled(1.0),
}


@pytest.mark.parametrize("kind", INDIRECT)
def test_attributes_of_what_is_found_on_the_way(on_device, kind):
    class Layer(SimpleNamespace):
        def scaled(self, x):
            return x * self.scale

    layers, scale = [Layer(scale=2.0, steps=0) for _ in range(2)], INDIRECT[kind]
    read = scale.__get__(layers)
    step = jit(lambda x: x * read())
    for number in range(4):
        layers[0].steps = number  # never read
        assert step(Tensor([1.0])).item() in (2.0, 4.0)

    def change():
        for layer in layers:
            layer.scale = 3.0

    raises_after(step, change, r"scale', which was 2\.0")


def test_a_name_that_is_another_thing_elsewhere(on_device):
    """An attribute with the same name as a method that the step calls."""

    class Trainer:
        def __init__(self):
            self.w, self.step, self.mean, self.log = Tensor([1.0]), 0, 0.0, []
            self.optimizer = nn.optim.SGD([self.w], lr=1.0)

        @jit
        def train(self, x):
            self.optimizer.zero_grad()
            (self.w * x).mean().backward()
            self.optimizer.step()
            self.log.append(1)

    trainer = Trainer()
    for number in range(5):
        trainer.train(Tensor([1.0]))
        trainer.step, trainer.mean = number, number / 2
        trainer.log.clear()
        assert trainer.w.item() == -number


def test_a_function_with_arguments(on_device):
    scale = 2.0
    step = jit(functools.partial(lambda x, y: x * y * scale, y=1.0))

    def change():
        nonlocal scale
        scale = 3.0

    raises_after(step, change, "'scale', which was 2.0")


def test_what_a_step_changes_itself(on_device):
    state = SimpleNamespace(count=0, x=Tensor([1.0]).realize(), loss=None, kept=[])

    @jit
    def counts(x):
        state.count += 1
        return x * state.count

    @jit
    def replaces(x):
        state.kept.append(state.x)  # keeps the old tensor alive
        state.x = (state.x + x).realize()
        return state.x

    @jit
    def tells(x):
        state.loss = (x * 2).realize()
        return state.loss + 1

    for step, name in ((counts, r"state\.count"), (replaces, r"state\.x")):
        step(Tensor([1.0]))
        with pytest.raises(JitError, match=f"reads '{name}' and replaces it"):
            step(Tensor([1.0]))
    for number in range(5):
        assert tells(Tensor([float(number)])).item() == 2 * number + 1
        assert state.loss.item() == 2 * number


@pytest.mark.parametrize("kind", ["list", "generator", "attribute"])
def test_an_iterator_is_refused(on_device, kind):
    rates = (float(n) for n in range(9)) if kind == "generator" else iter([1.0, 2.0, 3.0])
    state = SimpleNamespace(rates=rates)
    step = jit(lambda x: x * next(state.rates if kind == "attribute" else rates))
    step(Tensor([1.0]))
    with pytest.raises(JitError, match=r"the iterator 'rates', .* call next\(\) outside"):
        step(Tensor([1.0]))


def test_marks_that_change(on_device):
    """The capture decides which tensors get a gradient."""
    w, b = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
    optimizer = nn.optim.SGD([w, b], lr=1.0)

    @jit
    def step(x):
        (w * x + b).sum().backward()
        optimizer.step(forget=True)

    for mark in (False, True):
        step.reset()
        for _ in range(4):
            step(Tensor([1.0]))
        w.requires_grad = mark
        with pytest.raises(JitError, match=rf"was {not mark} in the capture and is {mark} now"):
            step(Tensor([1.0]))
        w.requires_grad = not mark
        step(Tensor([1.0]))
        w.requires_grad = mark
        before = w.item()
        step.reset()
        for number in range(1, 4):
            step(Tensor([1.0]))
            assert w.item() == before - number * mark


def test_marks_of_arguments(on_device):
    w = Tensor([2.0], requires_grad=True)

    @jit
    def step(x):
        w.grad = None
        (w * x).sum().backward()
        return x + 1

    marked = Tensor([3.0], requires_grad=True)
    for _ in range(4):
        step(Tensor([1.0]))
    with pytest.raises(JitError, match="was None in the capture and is True now"):
        step(marked)
    step(Tensor([1.0], requires_grad=False))
    step.reset()
    for _ in range(3):
        marked.grad = None
        step(marked)
        assert marked.grad.item() == 2
    with pytest.raises(JitError, match="was True in the capture and is None now"):
        step(Tensor([1.0]))


def test_a_leaf_given_twice(on_device):
    w = Tensor([2.0], requires_grad=True)

    @jit
    def step(x, y):
        (x * y).sum().backward()

    @jit
    def uses(x):
        (x * w).sum().backward()

    for _ in range(3):
        x, y = (Tensor([value], requires_grad=True) for value in (3.0, 5.0))
        step(x, y)
        assert (x.grad.item(), y.grad.item()) == (5, 3)
    x.grad = None
    with pytest.raises(JitError, match="that gets a gradient is passed twice"):
        step(x, x)
    uses(w)
    with pytest.raises(JitError, match="also reads as 'w'"):
        uses(w)


@pytest.mark.parametrize(("before", "after", "words"), [
    (2, 2.5, "2 .* 2.5"), (1, True, "1 .* is True"), (2.0, None, "2.0 .* gone"),
    ({"a": 2}, {"a": 3}, "{'a': 2} .* {'a': 3}"), ([1, 2], [1, 2, 3], r"\[1, 2\] .* \[1, 2, 3\]"),
], ids=str)  # fmt: skip
def test_a_global_is_another_or_gone(on_device, monkeypatch, before, after, words):
    module = sys.modules[__name__].__dict__
    monkeypatch.setitem(module, "GIVEN", before)
    step = jit(lambda x: x * len(str(GIVEN)))
    for _ in range(3):
        step(Tensor([1.0]))
    module["GIVEN"] = copy.copy(before)
    step(Tensor([1.0]))
    if after is None:
        del module["GIVEN"]
    else:
        module["GIVEN"] = after
    with pytest.raises(JitError, match=f"'GIVEN', which was {words}"):
        step(Tensor([1.0]))


def test_a_variable_that_is_empty_yet(on_device):
    step = jit(lambda x: x * 2 if x.shape[0] < 9 else later(x))
    for _ in range(3):
        assert step(Tensor([1.0])).tolist() == [2]
    later = step
    assert later(Tensor([2.0])).tolist() == [4]


@pytest.mark.parametrize("folder", ["site-packages", "mine"])
def test_what_an_installed_library_reads(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iterator of another library does not decide what a step computes; the user's own may."""
    place = tmp_path / folder
    place.mkdir()
    text = "numbers = iter(range(9))\n\ndef tell():\n    return next(numbers)\n"
    (place / "telling_library.py").write_text(text)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "telling_library", raising=False)
    library = importlib.import_module("telling_library")

    @jit
    def step(x: Tensor) -> Tensor:
        library.tell()
        return x * 2

    step(Tensor([1.0]))
    if folder == "mine":
        with pytest.raises(JitError, match="iterator"):
            step(Tensor([1.0]))
    else:
        assert [step(Tensor([float(number)])).item() for number in range(3)] == [0.0, 2.0, 4.0]
