"""Random fused graphs: made from a seed, printed as Python, run three ways, and compared.

    python -m tests.property.graphs --seed 17 --device CPU     one graph, in full
    python -m tests.property.graphs --count 2000 --device CPU  many, with statistics

A graph is a list of statements on Tensors, which `graph_steps` draws. It runs on the device as it
is, on the device with `FUSE=0`, on REF, and on REF in float64: how far that is from REF shows how
much the graph magnifies rounding. Where a graph writes in place, the last run realizes each step at
once, and so shows what lazy ones must give: a lazy tensor sees its sources as they were when it was
made.
"""

from __future__ import annotations

import re
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minigrad import Context, Tensor, dtypes
from minigrad.dtype import named

from .command import parser_of, run_command
from .compare import EPSILON, REFERENCE
from .leaves import floats, integers

# What the statistics count: methods, and operators between blanks.
OPERATION = re.compile(r"(?<=\.)[a-z]\w+(?=\()| (?:[-+*/%^&]|//|@|<<|>>|[<>=!]=?) ")


@dataclass(frozen=True)
class Statement:
    """One line of a graph: `name = code`, or a write to `name` where `writes` is set.

    reads: the names in `code`. shape, dtype: of `name` afterwards.
    """

    name: str
    code: str
    reads: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    writes: bool = False

    def __str__(self) -> str:
        return self.code if self.writes else f"{self.name} = {self.code}"


@dataclass(frozen=True)
class Graph:
    """Statements, the names to be realized together, and the coarsest dtype of intermediate values.

    unfused: whether it also runs with FUSE=0, which compiles many kernels. finite: whether the
    bounds of its values guarantee that no output is infinite or NaN.
    """

    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]
    noise: str = "float32"
    unfused: bool = True
    finite: bool = False

    def __len__(self) -> int:
        return len(self.statements)

    def needed(self) -> Graph:
        """The graph without statements that no output needs."""
        wanted, kept = set(self.outputs), []
        for statement in reversed(self.statements):
            if statement.name in wanted:
                kept.append(statement)
                wanted.update(statement.reads)
        return replace(self, statements=tuple(reversed(kept)))

    def script(self, device: str) -> str:
        """A program that shows the outputs on the device and on REF."""
        lines = "\n    ".join(str(s) for s in self.statements)
        return f"""\
from minigrad import Tensor, dtypes
from tests.property.graphs import float_of, leaf

def run(device, real=None):
    {lines}
    Tensor.realize({", ".join(self.outputs)})
    return [t.numpy() for t in ({", ".join(self.outputs)},)]

for name, got, expected in zip({list(self.outputs)}, run({device!r}), run({REFERENCE!r})):
    print(name, abs(got.astype(float) - expected.astype(float)).max(initial=0), got, expected)
"""


MOVED = 2.0**-21  # relative change of a float: a few rounding errors
_moved: ContextVar[int] = ContextVar("moved", default=0)


def leaf(
    seed: int, shape: tuple[int, ...], dtype: str, limit: int, device: str, real: Any,
    kind: str = "eighths",
) -> Tensor:  # fmt: skip
    """A realized tensor of known values.

    Floats have the given kind (see `leaves`), integers are in 0 … limit − 1 (kind "ends": also
    negative indices, with both ends included), bools are random. real: the dtype to use instead of
    every float dtype, or None.
    """
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return Tensor(generator.integers(0, 2, shape).astype(bool), device=device)
    if named(dtype).is_float:
        values = floats(generator, shape, kind) * (1 + MOVED * _moved.get())
        return Tensor(values, dtype=float_of(dtype, real), device=device)
    return Tensor(integers(generator, shape, limit, kind).astype(dtype), device=device)


def float_of(dtype: str, real: Any) -> Any:
    """The named dtype, or `real` instead of a float dtype."""
    return real if real is not None and named(dtype).is_float else named(dtype)


def namespace(device: str, real: Any = None) -> dict[str, Any]:
    """The names that statements may use in addition to each other's."""
    return {
        "Tensor": Tensor, "dtypes": dtypes, "leaf": leaf, "float_of": float_of,
        "device": device, "real": real,
    }  # fmt: skip


def run(
    graph: Graph, device: str, real: Any = None, eager: bool = False, **settings: int
) -> list[np.ndarray]:
    """The outputs of a graph; eager: each statement is realized at once."""
    space = namespace(device, real)
    with Context(DEVICE=device, **settings), np.errstate(all="ignore"):
        for statement in graph.statements:
            exec(str(statement), space)
            if eager:
                space[statement.name].realize()
        Tensor.realize(*(space[name] for name in graph.outputs))
        return [space[name].numpy() for name in graph.outputs]


@dataclass(frozen=True)
class Limit:
    """How far an output may be off.

    drift: |REF − float64|, the error of one order of operations. Another order may have that error
    elsewhere: `error` is 16 times the drift, plus 64 rounding errors of the largest value (at least
    1). If the drift is above `most`, REF itself must be wrong. One order may be accurate by chance
    where almost equal numbers are subtracted: results beyond `error` are compared again, with the
    worst of four limits: this one, and three with all leaves changed by a few rounding errors.
    """

    error: float = 0
    drift: float = 0
    most: float = 0


def limit_of(noise: str, given: np.ndarray, exact: np.ndarray) -> Limit:
    """The limit of an output, from its values by REF and in float64."""
    if str(given.dtype) not in EPSILON:
        return Limit()
    scale = max(1.0, float(np.max(np.abs(exact), initial=0, where=np.isfinite(exact))))
    with np.errstate(all="ignore"):
        apart = np.abs(given.astype(np.float64) - exact)
    drift = float(np.max(apart, initial=0, where=np.isfinite(apart)))
    epsilon = max(EPSILON[noise], EPSILON[str(given.dtype)])
    return Limit(16 * drift + 64 * epsilon * scale, drift, scale * max(0.01, 32 * epsilon))


def problem_of(
    name: str, way: str, got: np.ndarray, wanted: np.ndarray, limit: float
) -> str | None:
    """The problem of an output, or None. limit: how far floats may be off."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return f"{way}, {name}: {got.shape} {got.dtype}, expected {wanted.shape} {wanted.dtype}"
    a, e = got.astype(np.float64), wanted.astype(np.float64)
    if got.dtype.kind in "iub":
        wrong = got != wanted
    else:
        with np.errstate(all="ignore"):
            wrong = ~((a == e) | (np.isnan(a) & np.isnan(e)) | (np.abs(a - e) <= limit))
    if not wrong.any():
        return None
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{way}, {name} {got.shape} {got.dtype}: {int(wrong.sum())} of {wrong.size} elements "
        f"differ by more than {limit:.3g}, first at {place}: got {got[place]!r}, "
        f"expected {wanted[place]!r}"
    )


def problems(graph: Graph, device: str) -> list[str]:
    """The problems of a graph on a device."""
    reference = run(graph, REFERENCE)
    writes = any(statement.writes for statement in graph.statements)  # else laziness cannot matter
    exact = run(graph, REFERENCE, real=dtypes.float64, eager=writes)
    limits = [limit_of(graph.noise, g, e) for g, e in zip(reference, exact, strict=True)]
    found = []
    for name, given, wide, limit in zip(graph.outputs, reference, exact, limits, strict=True):
        if str(given.dtype) not in EPSILON:  # lazy and eager evaluation must agree
            found.append(problem_of(name, "REF lazy against eager", given, wide, 0))
        elif limit.drift > limit.most:
            found.append(f"REF, {name}: lazy is {limit.drift:.3g} away from eager in float64")
        if graph.finite and not np.isfinite(given.astype(np.float64)).all():
            found.append(f"REF, {name}: infinite or NaN, beyond what its values can be")
    ways = {"fused": 1, "not fused": 0} if graph.unfused else {"fused": 1}
    ways = {} if device == REFERENCE else ways
    for way, fuse in ways.items():
        results = run(graph, device, FUSE=fuse)
        for allowed in (lambda: limits, lambda: worst_limits(graph, limits)):
            pairs = zip(graph.outputs, results, reference, allowed(), strict=True)
            wrong = [problem_of(name, f"{device} {way}", got, wanted, limit.error)
                     for name, got, wanted, limit in pairs]  # fmt: skip
            if not any(wrong):
                break
        found += wrong
    return [problem for problem in found if problem]


def worst_limits(graph: Graph, limits: list[Limit]) -> list[Limit]:
    """The largest limits of the graph itself and with leaves changed by some rounding errors."""
    worst = limits
    for moved in (-1, 1, 2):
        token = _moved.set(moved)
        try:
            given = run(graph, REFERENCE)
            exact = run(graph, REFERENCE, real=dtypes.float64)
        finally:
            _moved.reset(token)
        here = [limit_of(graph.noise, g, e) for g, e in zip(given, exact, strict=True)]
        worst = [max(a, b, key=lambda one: one.error) for a, b in zip(worst, here, strict=True)]
    return worst


def fails(graph: Graph, device: str) -> str | None:
    """The problems of a graph, or the exception that it raises, as text."""
    try:
        return "\n".join(problems(graph, device)) or None
    except Exception:
        return traceback.format_exc(limit=-4)


def _kind(failure: str | None) -> str:
    """A failure's kind: a wrong value, or the exception's first characters."""
    if failure is None:
        return ""
    return failure.rstrip().rsplit("\n", 1)[-1][:40] if "Traceback" in failure else "wrong"


def _candidates(graph: Graph) -> Iterable[Graph]:
    """Smaller graphs: fewer outputs, an earlier output, a leaf instead of a step."""
    for output in graph.outputs if len(graph.outputs) > 1 else ():
        yield replace(graph, outputs=(output,)).needed()
    if len(graph.outputs) == 1:
        last = [s for s in graph.statements if s.name == graph.outputs[0]][-1]
        for read in (name for name in last.reads if not name.startswith("h")):  # it has NaN
            yield replace(graph, outputs=(read,)).needed()
    for position, statement in enumerate(graph.statements):
        before, after = graph.statements[:position], graph.statements[position + 1 :]
        if statement.writes:
            yield replace(graph, statements=(*before, *after)).needed()
        elif not statement.code.startswith("leaf("):
            code = f"leaf({position}, {statement.shape}, {statement.dtype!r}, 3, device, real)"
            new = replace(statement, code=code, reads=())
            yield replace(graph, statements=(*before, new, *after)).needed()


def shrink(graph: Graph, device: str, seconds: float = 60) -> Graph:
    """A smaller graph that fails in the same way."""
    kind, end = _kind(fails(graph, device)), time.monotonic() + seconds
    smaller: Graph | None = graph
    while smaller is not None:
        graph, smaller = smaller, None
        for candidate in _candidates(graph):
            if time.monotonic() > end:
                return graph
            if candidate != graph and _kind(fails(candidate, device)) == kind:
                smaller = candidate
                break
    return graph


def report(graph: Graph, device: str, title: str, small: bool = True) -> str | None:
    """A failure with the script that reproduces it, or None."""
    failure = fails(graph, device)
    if failure is None:
        return None
    shown = shrink(graph, device) if small else graph
    return f"{title}: {failure}\n\nSmallest script that fails alike:\n\n{shown.script(device)}"


def main() -> None:
    """The command line; see the head of this file."""
    from .graph_steps import make_graph

    parser = parser_of("graphs", __doc__)
    parser.add_argument("--no-shrink", action="store_true", help="print failing graphs whole")
    given = parser.parse_args()
    lengths, steps = [], Counter[str]()

    def check(seed: int) -> str | None:
        graph = make_graph(seed)
        lengths.append(len(graph))
        steps.update(word for s in graph.statements for word in OPERATION.findall(s.code))
        return report(graph, given.device, f"seed {seed}", not given.no_shrink)

    def statistics() -> None:
        counts = ", ".join(f"{name.strip()} {count}" for name, count in steps.most_common())
        print(f"{sum(lengths)} steps (up to {max(lengths, default=0)}):", counts)

    run_command(given, "graphs", lambda seed: make_graph(seed).script(given.device), check,
                statistics)  # fmt: skip


if __name__ == "__main__":
    main()
