"""Programs that numpy or Python judges: writes through views, integers of every width, and indices
out of range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minigrad import Context, Tensor, dtypes, jit
from minigrad.errors import BoundsError, MinigradError

from .compare import REFERENCE
from .views import Play


def _on(device: str) -> tuple[str, ...]:
    return (device,) if device == REFERENCE else (device, REFERENCE)


# --- writes through views ---------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """Random views and writes; see `views`."""

    seed: int
    steps: int = 25

    def problems(self, device: str) -> list[str]:
        """What differs from numpy."""
        found = []
        for name in _on(device):
            with Context(DEVICE=name):
                try:
                    Play(self.seed).go(self.steps)
                except AssertionError as error:
                    found.append(f"{name}: {error}")
        return found

    def script(self, device: str) -> str:
        """The same steps."""
        return f"""\
from minigrad import Context
from tests.property.views import Play
with Context(DEVICE={device!r}):
    Play({self.seed}).go({self.steps})
"""


# --- Python's integers ------------------------------------------------------------------------

EDGES = (0, 2**7, 2**15, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64)


@dataclass(frozen=True)
class Ints:
    """An expression of Python ints; `values`: its elements; `given`: whether it fixes the dtype."""

    code: str
    values: tuple[int, ...]
    given: bool

    def problems(self, device: str) -> list[str]:
        """Values that differ from Python's, or a dtype that is not the narrowest allowed one."""
        found = []
        for name in _on(device):
            low, high = min(self.values), max(self.values)
            try:
                with Context(DEVICE=name):
                    got = eval(self.code, {"Tensor": Tensor, "dtypes": dtypes}).numpy()
            except (OverflowError, ValueError, TypeError, MinigradError) as error:
                if low >= -(2**63) and high < 2**63 and not (self.given and _wide(low, high)):
                    found.append(f"{name}: {self.code} raises {error!r}")
                continue
            if [int(v) for v in got.reshape(-1)] != list(self.values):
                found.append(f"{name}: {self.code} is {got!r}, expected {self.values}")
            wanted = "int64" if _wide(low, high) else "int32"
            if not self.given and high < 2**63 and got.dtype != wanted:
                found.append(f"{name}: {self.code} has dtype {got.dtype}, expected {wanted}")
        return found

    def script(self, device: str) -> str:
        """The expression."""
        return f"from minigrad import Tensor, dtypes\nprint({self.code})  # {self.values}\n"


def _wide(low: int, high: int) -> bool:
    return low < -(2**31) or high >= 2**31


def python_ints(seed: int) -> Ints:
    """Integers around the limits of every dtype, in operations that create tensors from them."""
    g = np.random.default_rng([seed, 5])

    def number() -> int:
        edge = EDGES[int(g.integers(0, len(EDGES)))]
        return int(g.choice((-1, 1))) * edge + int(g.integers(-2, 3))

    a, b = number(), number()
    count, step = 1 + int(g.integers(0, 6)), int(g.choice((1, 1, 3, -2)))
    run = tuple(range(a, a + count * step, step))
    mask = "Tensor([True, False, True])"
    cases: list[tuple[str, tuple[int, ...], bool]] = [
        (f"Tensor.full((3,), {a})", (a, a, a), False),
        (f"Tensor([{a}, {b}])", (a, b), False),
        (f"Tensor({a})", (a,), False),
        (f"Tensor([[{a}], [{b}]], dtype='int64')", (a, b), True),
        (f"Tensor.full((2,), {a}, dtype='int32')", (a, a), True),
        (f"Tensor([{a}, 1], dtype='int32')", (a, 1), True),
        (f"Tensor.arange({a}, {a + count * step}, {step})", run, False),
        (f"{mask}.where({a}, {b})", (a, b, a), False),
        (f"Tensor([1, 2, 3]).masked_fill({mask}, {a})", (a, 2, a), True),
        (f"Tensor([1, 2, 3]).full_like({a})", (a, a, a), True),
        (f"Tensor([{a}, {a}, 1]).sum()", (2 * a + 1,), False),
        (f"Tensor([{a}, 2]).prod()", (2 * a,), False),
        (f"Tensor([{a}, {a}]).cumsum(0)", (a, 2 * a), False),
    ]
    code, values, given = cases[int(g.integers(0, len(cases)))]
    if code.endswith((".sum()", ".prod()", ".cumsum(0)")):
        given = True  # the sum has the wider dtype, whether it needs it or not
        if not all(-(2**63) <= v < 2**63 for v in (a, *values)):
            return python_ints(seed + 1_000_003)
    return Ints(code, values, given)


# --- indices ----------------------------------------------------------------------------------

# Code of data x (n, 3), a table's number of classes n, and indices i (count,); whether negative
# indices count from the end.
READERS: list[tuple[str, bool]] = [
    ("x[i]", True), ("x.T[:, i]", True), ("x[i, i % 3]", True), ("x[:, 0].take(i)", True),
    ("x[:, 0].gather(0, i)", False), ("x.gather(0, i.reshape(-1, 1))", False),
    ("i.embedding(x)", False), ("i.one_hot({n})", False),
    ("x.T[:1].expand(i.shape[0], {n}).cross_entropy(i)", False),
    ("x.T[:1].expand(i.shape[0], {n}).log_softmax(-1).nll_loss(i)", False),
    ("Tensor.zeros({n}).scatter(0, i, i.float())", False),
    ("Tensor.zeros({n}).scatter_add(0, i, i.float())", False),
    ("Tensor.zeros({n}).scatter_reduce(0, i, i.float(), 'amax')", False),
]  # fmt: skip
TAILS = ("{}", "({}).float().sum()", "({}).float() * 2 + 1", "({}).float().max()")


@dataclass(frozen=True)
class Beyond:
    """Code that reads or writes at indices; bad: the index out of range, or None."""

    code: str
    rows: int
    indices: tuple[int, ...]
    dtype: str
    bad: int | None
    captured: bool

    def problems(self, device: str) -> list[str]:
        """A missing or wrong BoundsError for the bad index, or one though no index is bad."""
        found = []
        for name in _on(device):
            said = None
            try:
                self._run(name)
            except BoundsError as error:
                said = str(error)
            if self.bad is None and said:
                found.append(f"{name}: every index is in range, but: {said}")
            elif self.bad is not None and said is None:
                found.append(f"{name}: index {self.bad} of {self.rows} rows raises no BoundsError")
            elif said and str(self.bad) not in said:
                found.append(f"{name}: the message does not name index {self.bad}: {said}")
        return found

    def _run(self, device: str) -> None:
        def body(x: Tensor, i: Tensor) -> Tensor:
            made: Tensor = eval(self.code, {"Tensor": Tensor, "x": x, "i": i})
            return made.realize()

        function = jit(body) if self.captured else body
        with Context(DEVICE=device):
            data = np.linspace(-1, 1, self.rows * 3).reshape(-1, 3)
            x = Tensor(data.astype(np.float32)).realize()
            good = np.zeros(len(self.indices), self.dtype)
            last = np.array(self.indices, self.dtype)
            for indices in (good, good, good, last) if self.captured else (last,):
                function(x, Tensor(indices).realize()).numpy()

    def script(self, device: str) -> str:
        """The code, its data, and whether it is captured and replayed."""
        return f"""\
import numpy as np
from minigrad import Tensor, jit
x = Tensor(np.linspace(-1, 1, {self.rows * 3}).reshape(-1, 3).astype(np.float32))
i = Tensor(np.array({list(self.indices)}, {self.dtype!r}))  # out of range: {self.bad}
print(({self.code}).numpy())  # captured: {self.captured}
"""


def indices_beyond(seed: int) -> Beyond:
    """Indices at both ends, and mostly one that is just beyond or far beyond an end."""
    g = np.random.default_rng([seed, 7])
    rows = int(g.choice((1, 3, 5, 16, 33, 100)))
    code, wraps = READERS[int(g.integers(0, len(READERS)))]
    code = TAILS[int(g.integers(0, len(TAILS)))].format(code.format(n=rows))
    count = int(g.choice((1, 2, 7, 33, 300)))
    indices = g.integers(-rows if wraps else 0, rows, count)
    indices[0], indices[-1] = rows - 1, (-rows if wraps else 0)
    bad: int | None = None
    if g.random() < 0.75:
        below = -rows - 1 if wraps else -1
        bad = int(g.choice((rows, rows, below, below, rows + 7, 2**31 - 1, -(2**31))))
        indices[int(g.integers(0, count))] = bad
    dtype = str(g.choice(("int32", "int64")))
    values = tuple(int(i) for i in indices)
    return Beyond(code, rows, values, dtype, bad, bool(g.random() < 0.25))
