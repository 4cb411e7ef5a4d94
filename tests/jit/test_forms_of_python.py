"""A captured step does what the same lines do without `@jit`, or raises JitError: many forms of
Python by which a step reads a number that changes later, and by which it leaves something behind.
"""

from __future__ import annotations

import gc
import textwrap
import weakref
from typing import Any

import numpy as np
import pytest
from devices import REFERENCE

from minigrad import Context, Tensor, jit, nn
from minigrad.errors import JitError

START = """
import math
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace as Box

class O:
    k, w, last, n = 3, None, None, 0
    def __init__(self, k=None):
        if k:
            self.scaled = k * O.k
o = O()
box = Box(x=Tensor([1.0, 2.0]).realize(), y=Tensor([3.0, 4.0]).realize(), k=2)
gx, gy = box.x, box.y
items, numbers, kept, some, queue = [gx, gy], [1, 2, 3], [], set(), deque()
cb = kept.append
model = nn.Linear(2, 2)
"""
# A special method, and code that calls it.
METHODS = (
    ("__str__(self): return 'x' * self.k", "len(str(o))", "len(f'{o}')", "len('%s' % o)",
     "len('{}'.format(o))"),
    ("__repr__(self): return 'x' * self.k", "len(repr(o))", "len(f'{o!r}')"),
    ("__format__(self, form): return 'x' * self.k", "len(f'{o}')", "len(format(o, '3'))"),
    ("__index__(self): return self.k - 3", "numbers[o]", "[*range(3)[o:]][0]", "float(o)"),
    ("__abs__(self): return self.k", "abs(o)"), ("__round__(self): return self.k", "round(o)"),
    ("__floor__(self): return self.k", "math.floor(o)"), ("__pos__(self): return self.k", "+o"),
    ("__invert__(self): return self.k", "~o"), ("__lshift__(self, n): return self.k", "(o << 1)"),
    ("__rrshift__(self, n): return self.k", "(1 >> o)"),
    ("__divmod__(self, n): return self.k, 0", "divmod(o, 2)[0]"),
    ("__complex__(self): return complex(self.k)", "complex(o).real"),
    ("__hash__(self): return self.k", "hash(o)"),
    ("__iter__(self): return iter([self.k, 1])", "[*o][0]", "max(*o)", "next(iter(o))"),
    ("__reversed__(self): return iter([self.k])", "[*reversed(o)][0]"),
    ("__next__(self): return self.k", "next(o)"),
    ("__getattribute__(self, n): return object.__getattribute__(self, 'k' if n == 'any' else n)",
     "o.any"),
)  # fmt: skip
READS = [(f"return a * {text}", "o.k = 4", f"    def {method}")
         for method, *texts in METHODS for text in texts]  # fmt: skip
READS += [
    ("p, *q = o\nreturn a * p", "o.k = 4", "    def __iter__(self): return iter([self.k, 1])"),
    ("return a * O(2).scaled", "O.k = 4", ""),
    ("return a * o.d", "o.k = 4",
     "    class D:\n        def __get__(self, o, kind): return o.k\n    d = D()"),
    ("return a * O().k", "O.m = 4",
     "    m = 2\n    def __new__(cls): x = object.__new__(cls); x.k = cls.m; return x"),
    ("return a * D().k", "D.m = 4", """
@dataclass
class D:
    k: int = 2
    m = 2
    def __post_init__(self): self.k = self.m"""),
    ("match box:\n    case Box(k=2): return a\nreturn -a", "box.k = 4", ""),
    ("try:\n    return a * box.none\nexcept AttributeError:\n    return a", "box.none = 4", ""),
]  # fmt: skip
WRITES = (
    ("old = box.x; box.x = a * 2; return old", "box.x"),
    ("box.x, box.y = box.y, box.x", "box.x box.y"), ("items.reverse()", "items[0]"),
    ("global gx, gy\ngx, gy = a * 2, gx", "gx gy"),
    ("setattr(box, 'x', box.y)\nbox.y = a", "box.x"),
    ("box.w, box.last = a * 2, box.x; box.x = a", "box.last"),
    ("box.y = box.x; box.x = a", "box.y"),
    ("some.add(a * 2)", "len(some)"), ("some.update([a * 2])", "len(some)"),
    ("queue.appendleft(a * 2)", "len(queue)"), ("cb(a * 2)", "len(kept)"),
    ("[cb(t) for t in (a, a * 2)]", "len(kept)"), ("o.any = a", "o.n",
     "    def __setattr__(self, n, v): object.__setattr__(self, 'n', self.n + 1)"),
    ("o[0] = a", "o.n", "    def __setitem__(self, n, v): self.n += 1"),
    ("box.last = a * 2", "box.last"), ("box.k = 7", "box.k"),
    ("model(a)", "len(kept)", "model.register_forward_hook(lambda m, i, o: kept.append(o))"),
    ("model(a)", "len(kept)", "model.register_forward_hook(lambda m, i, o: cb(o))"),
    ("model(a)", "box.k", "def hook(m, i, o): box.k += 1\nmodel.register_forward_hook(hook)"),
    ("own(a)", "own.calls", """
class Own(nn.Module):
    calls = 0
    def forward(self, x): self.calls += 1; return x
own = Own()"""),
)  # fmt: skip


def outcome(body: str, change: str, start: str, shown: str, captured: bool) -> list[Any]:
    """The values after each of five calls; `change` is carried out before the fourth."""
    names: dict[str, Any] = {"__name__": __name__, "Tensor": Tensor, "nn": nn}
    before, o, after = START.partition("o = O()")
    exec(f"{before}{start if start.startswith('    ') else ''}\n{o}{after}", names)
    exec("" if start.startswith("    ") else start, names)
    exec("def step(a):\n" + textwrap.indent(f"{body}\nreturn a", "    "), names)
    step, found = jit(names["step"]) if captured else names["step"], []
    for number in range(5):
        if number == 3:
            exec(change, names)
        try:
            results = step(Tensor([1.0 + number, 2.0 - number]).realize())
        except JitError:
            return found
        values = results, *(eval(text, names) for text in shown.split())
        found.append([np.array(one.tolist() if isinstance(one, Tensor) else one) for one in values])
    return found


FORMS = [*((body, change, start, "") for body, change, start in READS),
         *((body, "", "".join(start), shown) for body, shown, *start in WRITES)]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=[f"{n}: {form[0]}" for n, form in enumerate(FORMS)])
def test_a_form_of_python(form: tuple[str, str, str, str]) -> None:
    with Context(DEVICE=REFERENCE):
        wanted, found = (outcome(*form, captured) for captured in (False, True))
    assert len(wanted) == 5
    for values, expected in zip(found, wanted, strict=False):
        for value, other in zip(values, expected, strict=True):
            assert np.array_equal(value, other)


# Lines that leave tensors at places, and the places.
STORES = {
    "box.last = a * 2": "box.last", "box.last = a": "box.last",
    "box.last = a + 1; a = box.last": "box.last",
    "box.last = box.k = a * 3": "box.last box.k", "global gx\ngx = a - 1": "gx",
    "O.last = a * 2": "O.last", "slots.x = a * 2": "slots.x", "own(a)": "own.h",
    "box.last = a * 2; box.all = [*box.all, 1][-1:]; a = a + box.last.sum()": "box.last",
    "box.w = w * a; a = box.w.detach() * 2": "box.w",
}  # fmt: skip
MADE = """
class Slots:
    __slots__ = ("x",)
class Own(nn.Module):
    h = None
    def forward(self, x):
        self.h = x * 2
        return self.h + 1
slots, own, box.all, w = Slots(), Own(), [], Tensor([2.0], requires_grad=True)
"""


@pytest.mark.parametrize("body", STORES)
def test_what_a_step_leaves_is_new_in_each_call(body: str, on_device: str) -> None:
    """It is set also if others have set it: another capture, for another size, or other code."""
    found: list[list[Any]] = []
    for captured in (False, True):
        names: dict[str, Any] = {"__name__": __name__, "Tensor": Tensor, "nn": nn}
        exec(START + MADE, names)
        exec("def step(a):\n" + textwrap.indent(f"{body}\nreturn a", "    "), names)
        step, seen = jit(names["step"]) if captured else names["step"], []
        for number in range(12):
            size = 3 if number % 4 == 3 else 2
            seen.append(step(Tensor([1.0 + number, 2.0 - number, 0.5][:size]).realize()))
            seen += [eval(place, names) for place in STORES[body].split()]
            if number == 9:
                for place in STORES[body].split():
                    exec(f"{place} = None", names)
        found.append([tensor.tolist() for tensor in seen])
    assert found[0] == found[1]


def test_a_step_that_sets_an_attribute_does_not_keep_the_object_alive(on_device: str) -> None:
    class Model:
        @jit
        def step(self, x: Tensor) -> Tensor:
            self.last = x * 2
            return self.last + 1

    model = Model()
    for number in range(4):
        assert model.step(Tensor([number])).item() == 2 * number + 1
        assert model.last.item() == 2 * number
    link = weakref.ref(model)
    del model
    gc.collect()
    assert link() is None


@pytest.mark.parametrize("same", ["x.pad(())", "x.prod(0)", "x.cumprod(0)", "x.cummax(0)[0]"])
def test_a_value_that_is_its_source_is_written_after_it(same: str, on_device: str) -> None:
    """Both have one node; an input that was written before is another's memory all the same."""
    names: dict[str, Any] = {}
    exec(f"def step(x):\n    y = {same}\n    x += 3\n    y *= 5\n    return y", names)
    step = jit(names["step"])
    for number in range(4):
        x = Tensor(number, dtype="int64").realize()
        assert (step(x).item(), x.item()) == (number * 5, number + 3)
