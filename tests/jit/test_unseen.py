"""What a step reads or changes in ways that are easily missed: a captured step does what the same
lines do without `@jit`, or raises JitError.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minigrad import Context, Tensor, jit, nn
from minigrad.errors import JitError

START = """
import functools, random, weakref
from collections import ChainMap
from contextvars import ContextVar
from threading import Event
from types import MappingProxyType, SimpleNamespace as Box

class Rates:
    k = 2.0
    def times(self, n, a): return a * self.k * n
    twice = functools.partialmethod(times, 2)
    @jit
    def step(self, a): return a * self.k

rates, table, flag, var = Rates(), {"k": 2.0}, Event(), ContextVar("var", default=2.0)
layers = [Tensor([float(n)]).realize() for n in range(3)]
python, numbers, legacy = random.Random(1), np.random.default_rng(1), np.random.RandomState(1)
"""


def run(start: str, body: str, change: str, captured: bool) -> list[Any]:
    """The results of twelve calls, the fifth after the change; ends with the first JitError."""
    names: dict[str, Any] = {"__name__": __name__, "Tensor": Tensor, "nn": nn, "np": np}
    names["jit"] = jit if captured else lambda function: function
    exec(START + start + f"\n@jit\ndef run(a):\n    {body}\n", names)
    found: list[Any] = []
    for number in range(12):
        if number == 4:
            exec(change, names)
        try:
            found.append(names["run"](Tensor([1.0 + number, 2.0]).realize()).tolist())
        except JitError as error:
            return [*found, str(error)]
    return found


# What it reads, a change, and what the message says.
READS = {
    "return a * rates.step(a)": ("rates.k = 3.0", "reads 'rates.k'"),
    "return rates.twice(a)": ("rates.k = 3.0", "reads 'self.k'|reads 'rates.k'"),
    "return a * rates.__class__.k": ("Rates.k = 3.0", "k', which was 2.0"),
    "return a * sum(vars(box).values())": ("box.k = 3.0", "reads 'box.__dict__'"),
    "return a * look('k')": ("table['k'] = 3.0", "reads 'look'"),
    "return a * either['k']": ("table['k'] = 3.0", "reads 'either'"),
    "return a * shown['k']": ("table['k'] = 3.0", "reads 'shown'"),
    "return a * link().k": ("rates.k = 3.0", "reads 'link.k'"),
    "return a * var.get()": ("var.set(3.0)", "reads 'var'"),
    "return a * (2 if flag.is_set() else 3)": ("flag.set()", "reads 'flag'"),
    "return a * (2 if marked.requires_grad else 3)": (
        "marked.requires_grad_()", "calls a Tensor whose requires_grad was"),
    "return a if marked.grad is None else a * marked.grad": (
        "marked.grad = Tensor([5.0])", "looks at the gradient"),
}  # fmt: skip
READS_FROM = """
box, look, either, shown = Box(k=2.0), table.get, ChainMap({}, table), MappingProxyType(table)
link, marked = weakref.ref(rates), Tensor([1.0])
"""


@pytest.mark.parametrize("body", READS)
def test_what_is_read_is_checked(body: str) -> None:
    change, words = READS[body]
    wanted, found = (run(READS_FROM, body, change, captured) for captured in (False, True))
    assert found[:-1] == wanted[:4] and any(word in found[-1] for word in words.split("|"))


@pytest.mark.parametrize(
    "body",
    [
        "return a * 2 if python.random() < 0.5 else a + 1", "return a * python.choice(layers)",
        "return a * layers[numbers.integers(3)]", "return a * layers[legacy.randint(3)]",
        "return a * pick(layers)", "return a * draw.layer()", "return model(a)",
        "return a * (2 if other.random() < 1 and python.random() < 0.5 else 3)",
    ],
)  # fmt: skip
def test_generators_of_the_user(body: str) -> None:
    """A replay would make the same choice again; numbers alone do not show it."""
    start = """
from secrets import choice as secret  # which has no state
pick, other = secret and python.choice, random.SystemRandom()
class Draw:
    def __init__(self): self.rng = numbers
    def layer(self): return layers[self.rng.integers(3)]
draw = Draw()
class Model(nn.Module):
    def __init__(self): self.rng = numbers
    def forward(self, a): return a * layers[self.rng.integers(3)]
model = Model()
"""
    found = run(start, body, "", True)
    assert len(found) == 2 and "draws from" in found[-1]
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    try:  # it is no reason for doubt that there is another thread: who else has these generators?
        assert run(start, body, "", True)[1] == found[1]
    finally:
        ended.set()
        other.join()


CONSTANTS = (
    "Tensor.ones(2)", "Tensor.zeros(2)", "Tensor.eye(2)[0]", "Tensor.arange(2).float()",
    "Tensor.ones(4)[1:3]", "Tensor.linspace(0, 1, 2)", "Tensor.full((2,), 3.0) * 2",
)  # fmt: skip
WRITES = (
    "w.add_(1)", "w.fill_(7)", "w[0] = 9", "w.assign(Tensor([5.0, 6.0]))", "w.realize().add_(1)",
    "w.tolist()", "w.data = Tensor([8.0, 9.0])", "w.fill_(2); w.add_(1)",
)


@pytest.mark.parametrize("write", WRITES)
def test_a_constant_of_outside_that_is_written(write: str) -> None:
    """Its values are part of the programs until somebody writes to it."""
    for made in CONSTANTS:
        for place, start in (("w", ""), ("box.w", "box = Box(w=w)"), ("model(a)", """
class Model(nn.Module):
    def __init__(self): self.w = w
    def forward(self, a): return self.w
model = Model()""")):  # fmt: skip
            given = f"w = {made}\n{start}", f"return a * {place}", write
            assert run(*given, captured=True) == run(*given, captured=False)


def test_a_state_of_zeros_that_is_written_between_calls(on_device: str) -> None:
    state = Tensor.zeros(2)
    step = jit(lambda x: state * 0.5 + x)
    expected = np.zeros(2, np.float32)
    for number in range(9):
        x = np.array([number, 1], np.float32)
        new = step(Tensor(x))
        expected = expected * 0.5 + x
        assert new.tolist() == expected.tolist()
        state.assign(new)
    assert step.captured


@pytest.mark.parametrize(
    "change",
    [
        "given['h'] = given['h'] + 1", "given['new'] = x", "given['parts'].append(x)",
        "given['parts'][0] = x", "given['parts'][0] += 1; given['count'] += 1",
        "given['h'], given['g'] = given['g'], given['h']", "given.update(h=x)",
    ],
)  # fmt: skip
def test_containers_that_the_step_is_given_and_changes(change: str, on_device: str) -> None:
    """A replay would leave them as they are."""
    names: dict[str, Any] = {}
    exec(f"def step(given, x):\n    {change}\n    return x", names)
    step, x = jit(names["step"]), Tensor([1.0]).realize()

    def given() -> dict[str, Any]:
        return {"h": x + 1, "g": x + 2, "parts": [x + 3], "count": 1}

    step(given(), x)
    with pytest.raises(JitError, match="changes a list or dict that it was given"):
        step(given(), x)


def test_items_that_a_step_takes_out_of_what_it_is_given(on_device: str) -> None:
    """As in `labels = batch.pop("labels")`: nobody misses them."""

    @jit
    def step(batch: dict[str, Any]) -> Tensor:
        labels = batch.pop("labels")
        first = batch["parts"].pop()
        return batch["x"] * labels + first

    for number in range(5):
        x = Tensor([float(number)])
        assert step({"x": x, "labels": x + 1, "parts": [x]}).item() == number * (number + 2)


def test_a_parameter_that_gets_its_first_gradient_later(on_device: str) -> None:
    """An optimizer's step skips parameters without a gradient."""
    weights = [Tensor([1.0]).realize() for _ in range(2)]
    optimizer = nn.optim.SGD(weights, lr=0.5)
    step = jit(lambda: optimizer.step())
    for weight, _ in zip(weights, range(1), strict=False):
        weight.grad = Tensor([1.0]).realize()
    for number in range(4):
        step()
        assert [w.item() for w in weights] == [1 - 0.5 * (number + 1), 1]
    weights[1].grad = Tensor([1.0]).realize()
    with pytest.raises(JitError, match="looks at the gradient of a tensor of shape \\(1,\\)"):
        step()
    step.reset()
    step()
    assert weights[1].item() == 0.5


def test_random_numbers_of_another_thread(on_device: str) -> None:
    """Each thread has its own generators, with its own seed."""
    step = jit(lambda x: x + Tensor.rand(2))
    x, found = Tensor([0.0, 0.0]).realize(), SimpleNamespace(eager=[], captured=[])

    def draws() -> None:
        with Context(DEVICE=on_device):
            Tensor.manual_seed(9)
            found.eager = [(x + Tensor.rand(2)).tolist() for _ in range(6)]
            Tensor.manual_seed(9)
            found.captured = [step(x).tolist() for _ in range(6)]

    Tensor.manual_seed(3)
    wanted = [Tensor.rand(2).tolist() for _ in range(8)]
    Tensor.manual_seed(3)
    own = [step(x).tolist() for _ in range(4)]
    thread = threading.Thread(target=draws)
    thread.start()
    thread.join()
    own += [step(x).tolist() for _ in range(4)]
    assert found.eager and found.captured == found.eager
    assert own == wanted


class Steps:
    """Decorators in either order."""

    @jit
    @staticmethod
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @jit
    def tripled(x: Tensor) -> Tensor:
        return x * 3


def test_static_methods() -> None:
    for number in range(5):
        x = Tensor([float(number)])
        assert Steps.doubled(x).item() == Steps().doubled(x).item() == 2 * number
        assert Steps().tripled(x).item() == 3 * number


def test_attributes_that_a_function_has_before_it_is_captured() -> None:
    def step(x: Tensor) -> Tensor:
        return x * step.scale  # type: ignore[attr-defined]

    step.scale = 2.0  # type: ignore[attr-defined]
    step = jit(step)  # type: ignore[assignment]
    for number in range(4):
        assert step(Tensor([float(number)])).item() == 2 * number
    step.scale = 3.0  # type: ignore[attr-defined]
    with suppress(JitError):
        assert step(Tensor([1.0])).item() == 3
