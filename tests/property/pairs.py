"""Pairs of programs that must agree, and programs that numpy can run, too.

    python -m tests.property.pairs --seed 17 --device CPU      one pair, in full
    python -m tests.property.pairs --count 2000 --device CPU   many, with statistics
    python -m tests.property.pairs --kind product --count 50   of some kinds only

A seed chooses a kind and draws a pair of that kind. Both programs of a pair run on the device, and
on REF in float64, where they must be equal but for float64's own rounding. How far REF in float32
is from that says how much rounding is magnified, and so how far the device may be off.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minigrad import Context, Device, Tensor, dtypes, jit

from .compare import EPSILON, REFERENCE
from .graphs import Graph, limit_of, namespace, problem_of, run


class Program(Protocol):
    """What a kind draws."""

    def problems(self, device: str) -> list[str]:
        """What is wrong on a device, in sentences."""

    def script(self, device: str) -> str:
        """The text of what runs."""


def run_captured(graph: Graph, device: str, real: Any = None) -> list[np.ndarray]:
    """The outputs of a graph that is captured as a step: of a replay, on leaves of its own."""
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
    """Two graphs with the same number of outputs, and the way in which the second one runs."""

    left: Graph
    right: Graph
    way: str = "lazy"

    def problems(self, device: str) -> list[str]:
        """Where either graph is further from the truth than rounding explains."""
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
    """The kind of a seed, and the pair that it draws."""
    from .pair_kinds import KINDS

    names = kinds or tuple(KINDS)
    name = names[seed % len(names)]
    return name, KINDS[name](seed)


def report(seed: int, device: str, kinds: tuple[str, ...] = ()) -> str | None:
    """A failure with the programs that show it, or None."""
    kind, program = make_pair(seed, kinds)
    failure = fails(program, device)
    return failure and f"seed {seed} ({kind}): {failure}\n\n{program.script(device)}"


def many(seeds: range, device: str, kinds: tuple[str, ...] = ()) -> int:
    """Check the pairs of many seeds and print what fails; gives how many did."""
    failed, tried, spent = Counter[str](), Counter[str](), Counter[str]()
    start = time.perf_counter()
    print(f"pairs from seed {seeds.start} on {device}", flush=True)
    for seed in seeds:
        kind, before = make_pair(seed, kinds)[0], time.perf_counter()
        failure = report(seed, device, kinds)
        tried[kind] += 1
        spent[kind] += time.perf_counter() - before  # type: ignore[assignment]
        if failure:
            failed[kind] += 1
            print(failure, flush=True)
    seconds = time.perf_counter() - start
    total = sum(failed.values())
    print(f"pairs {seeds.start} … {seeds.stop - 1} on {device}: {seconds:.1f} s, {total} failed")
    for kind, count in tried.items():
        print(f"  {kind:20} {count:6}  {1000 * spent[kind] / count:5.0f} ms, {failed[kind]} failed")
    return total


def main() -> None:
    """The command line; see the head of this file."""
    from .pair_kinds import KINDS

    parser = argparse.ArgumentParser(
        prog="python -m tests.property.pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the (first) pair")
    parser.add_argument("--count", type=int, help="how many pairs")
    parser.add_argument("--device", default=Device.DEFAULT)
    parser.add_argument("--kind", action="append", choices=tuple(KINDS), help="may be repeated")
    given = parser.parse_args()
    kinds = tuple(given.kind or ())
    if given.count is not None:
        seeds = range(given.seed, given.seed + given.count)
        sys.exit(1 if many(seeds, given.device, kinds) else 0)
    print(make_pair(given.seed, kinds)[1].script(given.device))
    failure = report(given.seed, given.device, kinds)
    print(failure or f"seed {given.seed}: both programs agree on {given.device} and on REF")
    sys.exit(1 if failure else 0)


if __name__ == "__main__":
    main()
