"""Arguments and results of steps captured by `@jit`, and the step object itself."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections import namedtuple

import numpy as np
import pytest
from jit.arrays import data, same

from minigrad import GlobalCounters, Tensor, Variable, jit
from minigrad.errors import JitError

Pair = namedtuple("Pair", "first second")


# ---- arguments and results -----------------------------------------------------------------------


def test_lazy_inputs_and_keywords(on_device):
    step = jit(lambda a, b: a - b)
    for _ in range(4):
        a, b = data(5), data(5)
        same(step(Tensor(a) * 2, b=Tensor(b) + 1), a * 2 - (b + 1))


def test_keywords_in_another_order(on_device):
    step = jit(lambda a, b, c=1: a - b * c)
    for number in range(6):
        a, b = data(5), data(5)
        given = {"a": Tensor(a), "b": Tensor(b), "c": 2}
        same(step(**given if number % 2 else dict(reversed(given.items()))), a - b * 2)


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


def test_another_class_of_the_same_name(on_device):
    """Its methods may compute something else."""
    step = jit(lambda pair: pair.both())

    def class_of(scale):
        class Both(Pair):
            def both(self):
                return (self.first + self.second) * scale

        return Both

    known, other = class_of(2), class_of(3)
    for number in range(4):
        assert step(known(Tensor([1.0]), Tensor([float(number)]))).item() == 2 * (number + 1)
    with pytest.raises(JitError, match=r"arguments .*Both\(\(Tensor, Tensor\)\)"):
        step(other(Tensor([1.0]), Tensor([2.0])))


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


def test_one_result_twice(on_device):
    def step(x):
        y = x + 1
        return y, y, x.reshape(2, 2)

    captured = jit(step)
    for _ in range(4):
        x = data(4)
        a, b, c = captured(Tensor(x))
        assert a is b
        same(a, x + 1)
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


class Stepper:
    """Copies of it must have steps of their own. way: where it has its step."""

    def __init__(self, way):
        self.weight = Tensor([2.0]).realize()
        self.held = {"attribute": lambda: jit(self.plain), "bound": lambda: self.method}[way]()

    def plain(self, x):
        return x * self.weight

    method = jit(plain)

    @jit
    def decorated(self, x):
        return x * self.weight


@pytest.mark.parametrize("way", ["attribute", "bound"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_an_object_with_a_captured_step(on_device, way, copied):
    first = Stepper(way)
    for _ in range(3):
        assert first.held(Tensor([3.0])).item() == first.decorated(Tensor([3.0])).item() == 6
    other = copied(first)
    other.weight.assign(Tensor([5.0]))
    for number in range(4):
        x = Tensor([float(number)])
        assert [one.held(x).item() for one in (first, other)] == [2 * number, 5 * number]
        assert other.decorated(x).item() == 5 * number
    with pytest.raises(TypeError, match="copy the Tensor"):
        copy.copy(first.weight.raw.arg)  # both would own the same memory


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


# ---- leaves --------------------------------------------------------------------------------------


def test_a_leaf_given_twice():
    w = Tensor([1.0, 2.0], requires_grad=True)
    step = jit(lambda a, b: a * b)
    with pytest.raises(JitError, match=r"passed twice \(again as input 1\); pass it once"):
        for _ in range(3):
            step(w, w)


def test_inputs_that_the_step_asks_a_gradient_of():
    @jit
    def step(x):
        loss = (x.requires_grad_() ** 2).sum()
        loss.backward()
        return loss

    for _ in range(5):
        a = data(3)
        x = Tensor(a)
        same(step(x), (a * a).sum())
        same(x.grad, 2 * a)


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


def test_what_is_no_such_variable_is_refused(on_device):
    position, other = Variable("pos", 0, 7), Variable("other", 0, 7)
    step = jit(lambda x, a, b: (x[a : a + 1] + x[b : b + 1]).sum())
    x = Tensor(data(8, 3)).realize()
    for number in range(3):
        step(x, position.bind(number), position.bind(number))
    for wrong in (1, other.bind(1), position.bind(1) + 1, None):
        with pytest.raises(JitError, match="captured with arguments"):
            step(x, wrong, wrong)
    with pytest.raises(ValueError, match="'pos' is bound to 1 and to 2"):
        step(x, position.bind(1), position.bind(2))
    same(step(x, position.bind(5), position.bind(5)), x.numpy()[5].sum() * 2)


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
