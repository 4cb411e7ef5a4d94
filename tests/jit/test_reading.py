"""What a step reads without naming it: a replay sees that it changed, or the capture is refused."""

from __future__ import annotations

import array
import contextvars
import functools
import threading
from collections import ChainMap, UserDict, UserList
from types import MappingProxyType, ModuleType, SimpleNamespace

import numpy as np
import pytest
from jit.test_outside import raises_after

from minigrad import Tensor, jit, nn
from minigrad.errors import JitError

BIAS = 1.0


class Operand:
    """What an operator, a function of Python's or a layer in a list runs reads `scale`."""

    def __init__(self, scale=2.0):
        self.scale = scale

    def __matmul__(self, x):
        return x * self.scale

    __add__ = __radd__ = __sub__ = __getitem__ = forward = __call__ = __matmul__

    def __rmul__(self, number):
        return self.scale * number

    def __lt__(self, other):
        return self.scale < other

    def __contains__(self, item):
        return self.scale < item

    def __bool__(self):
        return self.scale < 2.5

    def __len__(self):
        return int(self.scale)

    def __float__(self):
        return self.scale

    def __neg__(self):
        return self.scale

    def __format__(self, spec):
        return str(self.scale)

    def __exit__(self, *of):
        return None

    def __enter__(self):
        return self.scale

    def __iter__(self):
        return iter([self.scale])

    def __get__(self, instance, owner):
        return self.scale

    def __missing__(self, key):
        return self.scale


def entered(c, x):
    with c as scale:
        return x * scale


def kept(c):
    kind = type("Has", (), {"rate": c})  # a descriptor of the user's
    has = kind()
    return lambda x: x * has.rate


OPERATORS = {
    "@": lambda c: lambda x: c @ x,
    "+": lambda c: lambda x: c + x,
    "reflected": lambda c: lambda x: 2.0 * c * x,
    "<": lambda c: lambda x: x * 2 if c < 2.5 else x,
    "reflected >": lambda c: lambda x: (lambda limit: x * 2 if limit > c else x)(2.5),
    "in": lambda c: lambda x: x * 2 if 2.5 in c else x,
    "if": lambda c: lambda x: x * 2 if c else x,
    "not": lambda c: lambda x: x * 2 if not c else x,
    "len": lambda c: lambda x: x * len(c),
    "float": lambda c: lambda x: x * float(c),
    "-": lambda c: lambda x: x * -c,
    "format": lambda c: lambda x: x * float(f"{c}"),
    "with": lambda c: lambda x: entered(c, x),
    "for": lambda c: lambda x: sum((x * one for one in c), x),
    "[]": lambda c: lambda x: c[x],
    "map": lambda c: lambda x: next(map(c, [x])),
    "a descriptor": kept,
    "by another's function": lambda c: lambda x: functools.reduce(lambda y, f: f(y), [c], x),
    "Sequential": lambda c: (lambda model: lambda x: model(x))(nn.Sequential(c, nn.ReLU())),
    "a list of many": lambda c: (lambda layers: lambda x: layers[-1](x))([0.0] * 300 + [c]),
    "a partial": lambda c: (lambda part: lambda x: part(x))(functools.partial(Operand.__call__, c)),
    "an argument's default": lambda c: (lambda f: lambda x: f(x))(lambda x, *, c=c: c(x)),
    "behind a result": lambda c: (lambda get: lambda x: get().forward(x))(lambda: c),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_what_an_operand_reads(on_device, name):
    c = Operand()
    step = jit(OPERATORS[name](c))
    raises_after(step, lambda: setattr(c, "scale", 3.0), r"scale', which was 2\.0")


def test_a_class_of_what_is_made_inside(on_device):
    class Made:
        rate = 2.0

        def __init__(self, x):
            self.x = x * self.rate + BIAS

    step = jit(lambda x: Made(x).x)
    raises_after(step, lambda: setattr(Made, "rate", 3.0), r"rate', which was 2\.0")
    before = Made.__init__

    def change():
        Made.__init__ = lambda self, x: before(self, x * 2)

    raises_after(step, change, r"__init__', which was <function")


def test_methods_that_are_replaced(on_device):
    class Base:
        def scaled(self, x):
            return x * 2.0

        def other(self, x):
            return self.scaled(x)

        rate = property(lambda self: 2.0)
        fixed = staticmethod(lambda x: x * 2.0)
        made = classmethod(lambda cls, x: x * 2.0)

        def __call__(self, x):
            return super().__getattribute__("other")(x) * self.rate + self.fixed(x) + self.made(x)

    class Derived(Base):
        pass

    changes = {
        "in its class": lambda model: setattr(Base, "other", lambda self, x: x * 5.0),
        "what it calls": lambda model: setattr(Base, "scaled", lambda self, x: x * 7.0),
        "in a derived class": lambda model: setattr(Derived, "scaled", lambda self, x: x * 8.0),
        "on the instance": lambda model: setattr(model, "scaled", lambda x: x * 9.0),
        "__call__": lambda model: setattr(Base, "__call__", lambda self, x: x * 3.0),
        "a property": lambda model: setattr(Base, "rate", property(lambda self: 11.0)),
        "a static one": lambda model: setattr(Base, "fixed", staticmethod(lambda x: x * 13.0)),
        "a class's": lambda model: setattr(Base, "made", classmethod(lambda cls, x: x * 17.0)),
        "its class": lambda model: setattr(model, "__class__", Operand),
    }  # fmt: skip
    originals = dict(vars(Base))
    for name, change in changes.items():
        model = Derived()
        if name == "its class":
            model.scale = 1.5
        raises_after(jit(lambda x: model(x)), functools.partial(change, model), "reads '")  # noqa: B023
        for one in ("other", "scaled", "__call__", "rate", "fixed", "made"):
            setattr(Base, one, originals[one])
        if "scaled" in vars(Derived):
            del Derived.scaled


def test_code_that_is_replaced(on_device):
    """As an editor of notebooks does with functions whose file has changed."""

    def helper(x, scale=2.0):
        return x * scale

    step = jit(lambda x: helper(x))

    def change():
        helper.__code__ = (lambda x, scale: x * scale + 1).__code__

    raises_after(step, change, "__code__")
    raises_after(step, lambda: setattr(helper, "__defaults__", (5.0,)), "__defaults__")


RATE = contextvars.ContextVar("RATE", default=2.0)
LOCAL = threading.local()


def filled(values):
    def change():
        values[0] += 1

    return (lambda x: x * float(values[0])), change


CONTENTS = {
    "list of many": lambda: filled([2.0] * 1000),
    "bytearray": lambda: filled(bytearray(b"\2\2")),
    "array": lambda: filled(array.array("d", [2.0])),
    "memoryview": lambda: filled(memoryview(bytearray(b"\2\2"))),
    "numpy": lambda: filled(np.array([2.0])),
    "UserList": lambda: filled(UserList([2.0])),
    "UserDict": lambda: filled(UserDict({0: 2.0})),
    "ChainMap": lambda: filled(ChainMap({}, {0: 2.0})),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_contents_that_change(on_device, kind):
    function, change = CONTENTS[kind]()
    raises_after(jit(function), change, "'values', whose contents")


def test_other_places_of_numbers(on_device):
    rates = {"a": 2.0}
    proxy = MappingProxyType(rates)
    step = jit(lambda x: x * proxy["a"])
    raises_after(step, lambda: rates.update(a=3.0), "'proxy', whose contents")
    step = jit(lambda x: x * RATE.get())
    token = RATE.set(2.0)
    raises_after(step, lambda: RATE.set(3.0), "'RATE', which was 2.0")
    RATE.reset(token)
    LOCAL.rate = 2.0
    step = jit(lambda x: x * LOCAL.rate)
    raises_after(step, lambda: setattr(LOCAL, "rate", 3.0), r"'LOCAL\.rate', which was 2.0")
    part = functools.partial(lambda x, scale: x * scale, scale=2.0)
    step = jit(lambda x: part(x))
    raises_after(step, lambda: part.keywords.update(scale=3.0), "'part', whose contents")
    config = SimpleNamespace(rate=2.0)
    for read in (lambda: vars(config)["rate"], lambda: config.__dict__["rate"]):
        config.rate = 2.0
        step = jit(lambda x: x * read())  # noqa: B023
        raises_after(step, lambda: setattr(config, "rate", 3.0), r"rate', which was 2\.0")


def test_results_that_a_function_keeps(on_device):
    @functools.cache
    def table():
        return [2.0]

    step = jit(lambda x: x * table()[0])
    raises_after(step, lambda: table().__setitem__(0, 3.0), "whose contents")


def test_a_module_that_is_imported_inside(on_device, monkeypatch):
    module = ModuleType("settings_of_this_test")
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    module.rate = 2.0

    def named(x):
        import settings_of_this_test as settings

        return x * settings.rate

    def taken(x):
        from settings_of_this_test import rate

        return x * rate

    for function in (named, taken):
        module.rate = 2.0
        step = jit(function)
        raises_after(step, lambda: setattr(module, "rate", 3.0), r"rate', which was 2\.0")


def test_a_class_that_is_rebound(on_device):
    class Old:
        rate = 2.0

    class New:
        rate = 3.0

    used = Old
    step = jit(lambda x: x * used().rate)

    def change():
        nonlocal used
        used = New

    raises_after(step, change, "'used'")


def test_a_state_that_is_replaced_by_a_new_object(on_device):
    state = SimpleNamespace(inner=SimpleNamespace(count=0))

    @jit
    def step(x):
        state.inner = SimpleNamespace(count=state.inner.count + 1)
        return x + 1

    step(Tensor([1.0]))
    with pytest.raises(JitError, match=r"reads 'state\.inner\.count' and puts another"):
        step(Tensor([1.0]))


LARGE = {
    "list": ([1.0] * 5000, "a list of 5,000 items"),
    "array": (np.zeros(10000), "a ndarray of 80,000 bytes"),
}


@pytest.mark.parametrize("kind", ["list", "array"])
def test_what_is_too_large_is_refused(on_device, kind):
    values, words = LARGE[kind]
    step = jit(lambda x: x * float(values[0]))
    step(Tensor([1.0]))
    with pytest.raises(JitError, match=f"reads 'values', {words}"):
        step(Tensor([1.0]))
    many = tuple([1.0] * 4000)
    step = jit(lambda x: x * many[0])
    for _ in range(3):
        assert step(Tensor([2.0])).item() == 2


def test_what_the_step_makes_itself_is_its_own(on_device):
    """Objects, containers and functions that live no longer than a call, and are changed in it."""

    class State:
        def __init__(self, x):
            self.x, self.steps, self.seen = x, 0, []

        def next(self):
            self.x, self.steps = self.x * 2, self.steps + 1
            self.seen.append(self.steps)
            return self

    def counts(counted):
        counted["n"] = counted["n"] + 1
        return counted["n"]

    @jit
    def step(x):
        state = State(x)
        for _ in range(3):
            state = state.next()
        counted = {"n": 0}
        numbers = [counts(counted) for _ in range(3)]
        return state.x + len(state.seen) + (lambda: numbers[-1])()

    for number in range(5):
        assert step(Tensor([float(number)])).item() == number * 8 + 6
    assert step.captured


def test_a_debugger_watches_on(on_device):
    """What watches Python is told of the captured call, too, and of what comes after."""
    import sys

    seen, before = [], sys.gettrace()
    scale = SimpleNamespace(rate=2.0)

    def watch(frame, event, argument):
        seen.append(frame.f_code.co_name)

    def inner(x):
        return x * scale.rate

    step = jit(lambda x: inner(x))
    try:
        sys.settrace(watch)
        for number in range(2):
            step(Tensor([1.0]))
            assert seen.count("inner") == number + 1
        assert sys.gettrace() is watch
    finally:
        sys.settrace(before)
    step(Tensor([1.0]))
    scale.rate = 3.0
    with pytest.raises(JitError, match=r"scale\.rate"):
        step(Tensor([1.0]))
