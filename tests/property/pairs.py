"""Pairs of programs that must agree, and programs that numpy can run, too.

    python -m tests.property.pairs --seed 17 --device CPU      one pair, in full
    python -m tests.property.pairs --count 2000 --device CPU   many, with statistics
    python -m tests.property.pairs --kind product --count 50   of some kinds only

A seed chooses a kind and draws a pair of that kind. Both programs of a pair run on the device, and
on REF in float64, where they must be equal but for float64's own rounding. How far REF in float32
is from that says how much rounding is magnified, and so how far the device may be off.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minigrad import Context, Tensor, dtypes, jit

from .command import parser_of, run_command
from .compare import EPSILON, REFERENCE
from .graphs import Graph, limit_of, namespace, problem_of, run


class Program(Protocol):
    """A program drawn by a kind."""

    def problems(self, device: str) -> list[str]:
        """What is wrong on a device, one sentence for each problem."""

    def script(self, device: str) -> str:
        """The text of what runs."""


def run_captured(graph: Graph, device: str, real: Any = None) -> list[np.ndarray]:
    """The outputs of a graph captured as a step: those of a replay with its own leaves."""
    leaves = [s for s in graph.statements if s.code.startswith("leaf(")]
    rest = [s for s in graph.statements if not s.code.startswith("leaf(")]

    def body(*given: Tensor) -> list[Tensor]:
        space = namespace(device, real)
        space.update(zip((s.name for s in leaves), given, strict=True))
        for statement in rest:
            exec(str(statement), space)
        outputs = [space[name] for name in graph.outputs]
        Tensor.realize(*outputs)
        return outputs

    def fresh(other: int) -> list[Tensor]:
        space = namespace(device, real)
        for statement in leaves:
            code = statement.code.replace("leaf(", f"leaf({other} + ", 1)
            exec(f"{statement.name} = {code}", space)
        return [space[statement.name].realize() for statement in leaves]

    with Context(DEVICE=device), np.errstate(all="ignore"):
        captured = jit(body)
        for other in (1, 2, 3):
            captured(*fresh(other))
        return [t.numpy() for t in captured(*fresh(0))]


WAYS: dict[str, Callable[..., list[np.ndarray]]] = {
    "lazy": run,
    "eager": lambda graph, device, real=None: run(graph, device, real, eager=True),
    "not fused": lambda graph, device, real=None: run(graph, device, real, FUSE=0),
    "jit": run_captured,
}


@dataclass(frozen=True)
class Pair:
    """Two graphs with the same number of outputs, and how the second one runs."""

    left: Graph
    right: Graph
    way: str = "lazy"

    def problems(self, device: str) -> list[str]:
        """Outputs of either graph that differ from exact ones by more than rounding explains."""
        exact = run(self.left, REFERENCE, dtypes.float64)
        other = WAYS[self.way](self.right, REFERENCE, dtypes.float64)
        near = run(self.left, REFERENCE)
        names = [f"{a} | {b}" for a, b in zip(self.left.outputs, self.right.outputs, strict=True)]
        limits = [limit_of(self.left.noise, g, e) for g, e in zip(near, exact, strict=True)]
        found = []
        for name, a, b, limit in zip(names, exact, other, limits, strict=True):
            wide = 2.0**-23 * limit.error if str(a.dtype) in EPSILON else 0
            title = f"{REFERENCE} in float64, second program ({self.way}) against the first"
            found.append(problem_of(name, title, b, a, wide))
            if limit.drift > limit.most:
                found.append(f"{REFERENCE}, {name}: {limit.drift:.3g} away from float64")
        for title, results in self._on(device):
            for name, got, e, g, limit in zip(names, results, exact, near, limits, strict=True):
                expected = e.astype(g.dtype)
                found.append(problem_of(name, f"{device}, {title}", got, expected, limit.error))
        return [problem for problem in found if problem]

    def _on(self, device: str) -> list[tuple[str, list[np.ndarray]]]:
        if device == REFERENCE:
            return []
        return [("first program", run(self.left, device)),
                (f"second program ({self.way})", WAYS[self.way](self.right, device))]  # fmt: skip

    def script(self, device: str) -> str:
        """Both programs, as functions that can be run on their own."""
        return f"""\
import numpy as np
from minigrad import Tensor, dtypes
from tests.property.graphs import float_of, leaf

{_function("first", self.left)}

{_function("second", self.right)}

# the second one: {self.way}
for one, other in zip(first({device!r}), second({device!r})):
    print(abs(one.numpy().astype(float) - other.numpy().astype(float)).max(initial=0))
"""


def _function(title: str, graph: Graph) -> str:
    lines = "\n".join(f"    {line}" for s in graph.statements for line in str(s).split("\n"))
    return f"def {title}(device, real=None):\n{lines}\n    return [{', '.join(graph.outputs)}]"


def fails(program: Program, device: str) -> str | None:
    """The problems of a program, or the exception that it raises, as text."""
    try:
        with Context(DEVICE=device):
            return "\n".join(program.problems(device)) or None
    except Exception:
        return traceback.format_exc(limit=-4)


def make_pair(seed: int, kinds: tuple[str, ...] = ()) -> tuple[str, Program]:
    """The kind that a seed chooses, and the pair that it draws."""
    from .pair_kinds import KINDS

    names = kinds or tuple(KINDS)
    name = names[seed % len(names)]
    return name, KINDS[name](seed)


def report(seed: int, device: str, kinds: tuple[str, ...] = ()) -> str | None:
    """A failure with the programs that show it, or None."""
    kind, program = make_pair(seed, kinds)
    failure = fails(program, device)
    return failure and f"seed {seed} ({kind}): {failure}\n\n{program.script(device)}"


def main() -> None:
    """The command line; see the head of this file."""
    from .pair_kinds import KINDS

    parser = parser_of("pairs", __doc__)
    parser.add_argument("--kind", action="append", choices=tuple(KINDS), help="may be repeated")
    given = parser.parse_args()
    kinds = tuple(given.kind or ())
    failed, tried, spent = Counter[str](), Counter[str](), defaultdict[str, float](float)

    def check(seed: int) -> str | None:
        kind, before = make_pair(seed, kinds)[0], time.perf_counter()
        failure = report(seed, given.device, kinds)
        tried[kind] += 1
        spent[kind] += time.perf_counter() - before
        failed[kind] += failure is not None
        return failure

    def statistics() -> None:
        for kind, count in tried.items():
            each = 1000 * spent[kind] / count
            print(f"  {kind:20} {count:6}  {each:5.0f} ms, {failed[kind]} failed")

    run_command(given, "pairs", lambda seed: make_pair(seed, kinds)[1].script(given.device), check,
                statistics)  # fmt: skip


if __name__ == "__main__":
    main()
