"""The compiler on one page: from a graph to kernels that a device can launch.

    graph       canonical nodes                                     graph/canonical.py
      simplify            rules that hold for every device          graph/simplify.py
      expand_sorts        a sort is passes of counting and moving   schedule/sort.py
      split_reductions    long sums in two: the first is parallel   schedule/split.py
      schedule            what is stored, what is fused             schedule/schedule.py
    kernels
      lower               a recipe writes the loops                 loops/recipes.py
    nests
      render              LLVM IR, or OpenCL C                      render/
    texts
      build               machine code                              runtimes/

A device supplies a `Backend`: its hardware parameters, its language, its compiler, and its cache of
kernels. A kernel that is known by its text (`schedule/key.py`) is neither lowered nor rendered nor
built again. MINIGRAD_DEBUG=3 prints schedules, 4 nests, 5 texts. With MINIGRAD_TUNE=n, n ways to
divide each product are measured instead of trusting the cost model (`best_translation`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from minigrad.graph.canonical import Graph
from minigrad.graph.simplify import simplify
from minigrad.hints import answer
from minigrad.loops.nest import Nest
from minigrad.loops.nest import show as show_nest
from minigrad.loops.recipes import lower
from minigrad.program import GlobalCounters
from minigrad.schedule.expr import Array
from minigrad.schedule.key import kernel_key
from minigrad.schedule.schedule import Kernel, Schedule, schedule
from minigrad.schedule.show import show as show_schedule
from minigrad.schedule.sort import expand_sorts
from minigrad.schedule.split import split_reductions
from minigrad.settings import flag, report
from minigrad.target import Target

# Candidates are timed in turn, at least ROUNDS times and SECONDS each, because interruptions are
# brief. One must take less than WORTH of the time of the model's best: equal code varies by 1 %.
ROUNDS, SECONDS, WORTH = 5, 0.01, 0.98

Text = TypeVar("Text")
Code = TypeVar("Code")
Code_co = TypeVar("Code_co", covariant=True)


@dataclass(frozen=True)
class Rendered(Generic[Text]):
    """A kernel to be built: its loops, their text, and its arguments.

    arguments: numbers of the arrays that it takes, in order, as the kernel's key numbers them.
    """

    nest: Nest
    text: Text
    arguments: tuple[int, ...]


class Backend(Protocol[Text, Code_co]):
    """The part of the compiler that a device supplies."""

    @property
    def target(self) -> Target:
        """Its hardware parameters."""

    def find(self, key: str) -> Code_co | None:
        """The code of a kernel that was built before, or None."""

    def render(self, nest: Nest) -> Text:
        """The text of a nest, in the device's language."""

    def build(self, kernels: Iterable[tuple[str, Rendered[Text]]]) -> Mapping[str, Code_co]:
        """Build kernels and keep their code; takes and returns them by key."""

    @property
    def seconds(
        self
    ) -> Callable[[Sequence[Rendered[Text]], tuple[Array, ...]], list[float]] | None:
        """A function that measures the seconds of several kernels on arrays of zeros.

        It does not keep their code. None if there is nothing to choose from: a GPU has one recipe
        for a product.
        """


def schedule_of(graph: Graph, target: Target, fuse: bool = True) -> Schedule:
    """The kernels of a graph in order, and where each value is stored."""
    simple = simplify(graph.roots)
    without_sorts = expand_sorts(simple)
    roots = split_reductions(without_sorts)
    result = schedule(graph, roots, target, fuse)
    report(3, lambda: show_schedule(result))
    GlobalCounters.programs_scheduled += 1
    return result


def code_of(
    kernels: Sequence[Kernel], backend: Backend[Text, Code]
) -> list[tuple[Code, tuple[Array, ...]]]:
    """The code of each kernel, with its arrays as the kernel's key numbers them."""
    keys = [kernel_key(kernel) for kernel in kernels]
    show = flag("DEBUG") >= 4  # loops and texts are shown when they are made
    first: dict[str, tuple[Kernel, tuple[Array, ...]]] = {}
    for kernel, (key, arrays) in zip(kernels, keys, strict=True):
        first.setdefault(key, (kernel, arrays))
    known = {} if show else {key: backend.find(key) for key in first}
    codes = {key: code for key, code in known.items() if code is not None}
    new = {key: one for key, one in first.items() if key not in codes}
    if new:
        codes.update(backend.build(
            (key, best_translation(kernel, arrays, backend))
            for key, (kernel, arrays) in new.items()
        ))  # fmt: skip
    return [(codes[key], arrays) for key, arrays in keys]


def best_translation(
    kernel: Kernel, arrays: tuple[Array, ...], backend: Backend[Text, Code]
) -> Rendered[Text]:
    """The loops and text of a kernel; with MINIGRAD_TUNE=n, the fastest of n candidates.

    Only products have several. With symbolic sizes they are not measured.
    """
    best, seconds = translate(kernel, arrays, backend), backend.seconds
    if flag("TUNE") < 2 or kernel.kind != "contraction" or best.nest.symbols or seconds is None:
        return best
    known = [best]
    for choice in range(1, flag("TUNE")):
        other = translate(kernel, arrays, backend, choice)
        if all(other.text != one.text for one in known):
            known.append(other)
    if len(known) == 1:
        return best
    times = seconds(known, arrays)
    number = min(range(len(times)), key=times.__getitem__)
    if times[number] > WORTH * times[0]:
        number = 0
    report(1, lambda: (
        f"tuned: {best.nest.label}: no. {number} of {len(known)} takes {times[number] * 1e3:.3f} "
        f"ms, the cost model's choice {times[0] * 1e3:.3f}"
    ))  # fmt: skip
    return known[number]


def best_of_rounds(runs: Sequence[Callable[[], object]]) -> list[float]:
    """The least seconds that each of some functions took, when called in turn."""
    best = [math.inf] * len(runs)
    rounds, begin = 0, time.perf_counter()
    while rounds < ROUNDS or time.perf_counter() - begin < SECONDS * len(runs):
        for number, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - start)
        rounds += 1
    return best


def translate(
    kernel: Kernel, arrays: tuple[Array, ...], backend: Backend[Text, Code], choice: int = 0
) -> Rendered[Text]:
    """The loops and text of a kernel. choice: rank among the model's ways to divide a product."""
    target = backend.target
    nest = lower(kernel, replace(target, choice=choice) if choice else target)
    report(4, lambda: show_nest(nest))
    GlobalCounters.kernels_lowered += 1
    text = backend.render(nest)
    report(5, lambda: str(text))
    GlobalCounters.kernels_rendered += 1
    number = {array: place for place, array in enumerate(arrays)}
    return Rendered(nest, text, tuple(number[array] for array in nest.buffers))


answer(__name__, "minigrad.compile(f)")
