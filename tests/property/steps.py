"""Random steps that are captured: state, arguments that share memory, views that are written to.

    python -m tests.property.steps --seed 17 --device CPU      one step, in full
    python -m tests.property.steps --count 500 --device CPU    many, with statistics

A step is some lines on two arguments and two tensors of its own. It is called several times, as it
is, captured, and replayed, and each call is compared with what the same lines give on REF, where
each is computed at once and nothing is captured: its results, its state, its arguments, and the
results of the calls before, which nobody may have changed. All values are small whole numbers: they
must be equal. Where a step may not be replayed with such arguments it must say so: JitError.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from minigrad import Context, Tensor, jit
from minigrad.errors import JitError

from .command import parser_of, run_command
from .compare import REFERENCE

T = TypeVar("T")
EXTENTS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 33)
STATE = ("s0", "s1")
VIEWS = ("[1:]", "[::2]", "[:, 1:]", ".T", "[::-1]", ".flip(1)", "[-1]", "[:, ::-2]")
# Writes to a tensor t or a part of it (x: an expression of the whole shape).
WRITES = (
    "{t}.assign({x})", "{t} += {x}", "{t} -= {x}", "{t}[1:] = {x}[1:]", "{t}[:, ::2] = {x}[:, ::2]",
    "{t}[0] = {x}[-1]", "{t}.assign({t}.flip(0) + {x})", "{t}[:, 0] = {x}.sum(1).clip(-9, 9)",
    "{t}[{x} > 0] = 1", "{t}[::-1] = {x}", "{t}[[0, -1]] = {x}[[-1, 0]]",
)  # fmt: skip
# Arguments of a call: new tensors; one twice; parts of one tensor; the state; a transpose; a result
# of the previous call.
CALLS = {
    "new": "new(n, m), new(n, m)", "same": "(x := new(n, m)), x",
    "parts": "(x := new(2 * n, m))[:n], x[n:]", "overlap": "(x := new(n + 1, m))[:-1], x[1:]",
    "state": "s0, new(n, m)", "both states": "s1, s0", "transposed": "new(m, n).T, new(n, m)",
    "before": "before, new(n, m)",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Lines on `a`, `b`, `s0`, `s1`, all of shape (n, m); results; the arguments of each call."""

    n: int
    m: int
    lines: tuple[str, ...]
    results: tuple[str, ...]
    calls: tuple[str, ...]

    def script(self, device: str) -> str:
        """A program that reproduces a failure."""
        return f"""\
from tests.property.steps import Step, failure_of

print(failure_of({self!r}, {device!r}))
"""

    def __str__(self) -> str:
        lines = "\n    ".join((*self.lines, f"return {', '.join(self.results)}"))
        return f"n, m = {self.n}, {self.m}; calls: {', '.join(self.calls)}\n    {lines}"


class Maker:
    """Draws one step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.n, self.m = self.one_of(EXTENTS), self.one_of(EXTENTS)
        if self.chance(0.3):
            self.m = self.n
        self.names = ["a", "b", *STATE]
        self.made: list[str] = []  # names assigned by lines of the step

    def one_of(self, items: Sequence[T]) -> T:
        """One of the items."""
        return self.random.choice(items)

    def chance(self, share: float) -> bool:
        """True with a probability."""
        return self.random.random() < share

    def expression(self, depth: int) -> str:
        """A random expression of shape (n, m)."""
        if not depth or self.chance(0.2):
            return self.one_of(self.names)
        x, y, axis = self.expression(depth - 1), self.expression(depth - 1), self.one_of((0, 1))
        forms = [
            f"({x} + {y})", f"({x} - {y})", f"({x} * {y})", f"{x}.flip({axis})",
            f"({x} * 0 + {x}.sum({axis}, keepdim=True))", f"{x}.cumsum({axis})",
            f"{x}.maximum({y})", f"({x} > {self.one_of(self.names)}).where({x}, {y})",
            f"{x}.roll(1, {axis})", f"({x} + {self.one_of((1, 2, -1))})", f"{x}.sort(1)[0]",
            f"{x}.clip(-5, 5)", f"{x}.expand(2, {self.n}, {self.m}).sum(0)",
        ]  # fmt: skip
        if self.n == self.m:
            forms += [f"{self.one_of(self.names)}.T", f"({x}.clip(-2, 2) @ {y}.clip(-2, 2))"]
        return self.one_of(forms)

    def lines(self) -> list[str]:
        """Lines for a new tensor, a write, a write through a view, or a realization."""
        if self.chance(0.1):
            return [f"{self.one_of(self.names)}.realize()"]
        if self.chance(0.55):
            line = f"({self.expression(3)}).clip(-50, 50)"
            self.made.append(f"t{len(self.made)}")
            self.names.append(self.made[-1])
            return [f"{self.made[-1]} = {line}"]
        target = self.one_of((*STATE, *STATE, "a", "b"))
        tame = f"{target}.assign({target}.clip(-9, 9))"
        if self.chance(0.15):
            change = f"{self.one_of(('+=', '*='))} {self.one_of((2, -1, 1))}"
            return [f"v = {target}{self.one_of(VIEWS)}", f"v {change}", tame]
        x = f"({self.expression(2)}).clip(-9, 9)"
        return [self.one_of(WRITES).format(t=target, x=x), tame]

    def step(self) -> Step:
        """The complete step."""
        lines = [line for _ in range(self.random.randrange(1, 7)) for line in self.lines()]
        whole = [*self.names, "s0[1:]", "s0.T", "a[::2]", "a.sum()", "s1.max(0)"]
        results = [self.one_of(whole) for _ in range(self.random.randrange(1, 4))]
        calls = [
            self.one_of([*CALLS]) if self.chance(0.3) else "new"
            for _ in range(self.random.randrange(4, 8))
        ]
        if self.chance(0.5):
            calls[:3] = calls[:1] * 3
        return Step(self.n, self.m, tuple(lines), tuple(results), tuple(calls))


def make_step(seed: int) -> Step:
    """The step of a seed."""
    return Maker(seed).step()


def run(
    step: Step, device: str, captured: bool
) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """After each call: results, state and arguments; and the values of its own results at the end.

    The list ends at a call that raises JitError.
    """
    generator = np.random.default_rng([step.n, step.m])

    def new(*shape: int) -> Tensor:
        data = generator.integers(-2, 3, shape).astype(np.float32)
        return Tensor(data, device=device).realize()

    state = {name: new(step.n, step.m) for name in STATE}
    space: dict[str, Any] = {"new": new, "n": step.n, "m": step.m, **state}

    def function(a: Tensor, b: Tensor) -> list[Tensor]:
        inside: dict[str, Any] = {**state, "a": a, "b": b}
        for line in step.lines:
            exec(line, inside)
            if not captured:
                Tensor.realize(*(value for value in inside.values() if isinstance(value, Tensor)))
        results = [eval(text, inside) for text in step.results]
        Tensor.realize(*results, *(inside[name] for name in ("a", "b", *STATE)))
        return results

    call: Callable[..., list[Tensor]] = jit(function) if captured else function
    found, held = list[list[np.ndarray]](), list[list[Tensor]]()
    with Context(DEVICE=device):
        for kind in step.calls:
            made = [text.startswith("t") for text in step.results]
            whole = next((t for own, t in zip(made, held[-1], strict=True) if own), None) \
                if held else None  # fmt: skip
            space["before"] = new(step.n, step.m) if whole is None else whole
            a, b = eval(CALLS[kind], space)
            try:
                results = call(a, b)
            except JitError:
                break
            held.append(results)
            found.append([t.numpy() for t in (*results, *(space[s] for s in STATE), a, b)])
        kept = [
            [t.numpy() for own, t in zip(made, results, strict=True) if own] for results in held
        ]
    return list(zip(found, kept, strict=True))


def failure_of(step: Step, device: str) -> str | None:
    """What is wrong with a step, or None."""
    wanted = run(step, REFERENCE, False)
    try:
        found = run(step, device, True)
    except Exception:
        return f"{traceback.format_exc(limit=-4)}\n{step}"
    _calls["made"] += len(step.calls)
    _calls["refused"] += len(step.calls) - len(found)
    names = {
        "then": [*step.results, *STATE, "a", "b"],
        "in the end": [text for text in step.results if text.startswith("t")],
    }
    for number, (values, expected) in enumerate(zip(found, wanted, strict=False)):
        for when, some, others in zip(names, values, expected, strict=True):
            for name, got, want in zip(names[when], some, others, strict=True):
                if got.shape != want.shape or not np.array_equal(got, want):
                    return (
                        f"call {number} ({step.calls[number]}), {name} {when}: got {got.tolist()}, "
                        f"expected {want.tolist()}\n{step}"
                    )
    return None


_calls = Counter[str]()


def main() -> None:
    """The command line; see the head of this file."""
    given = parser_of("steps", __doc__).parse_args()

    def check(seed: int) -> str | None:
        found = failure_of(make_step(seed), given.device)
        return f"seed {seed}: {found}" if found else None

    def statistics() -> None:
        print(", ".join(f"{name} {count}" for name, count in _calls.items()), "calls")

    run_command(given, "steps", lambda seed: str(make_step(seed)), check, statistics)


if __name__ == "__main__":
    main()
