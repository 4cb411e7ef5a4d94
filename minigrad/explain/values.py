"""What the kernels of a step wrote: ranges, histograms, and the origin of NaNs and infinities."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from minigrad.device import Buffer
from minigrad.dtype import DType
from minigrad.explain.origins import Origin
from minigrad.explain.story import Story
from minigrad.explain.watch import Timed
from minigrad.graph.canonical import Canonical
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import high
from minigrad.graph.variable import evaluate, most
from minigrad.schedule.expr import Array
from minigrad.schedule.stage import Stage
from minigrad.tensor import hostdata

SAMPLED, SHOWN = 1 << 17, 6  # numbers in a histogram; numbers shown
MOST_AGAIN = 1 << 22  # elements of a node that is recomputed to find the origin of a fault
NAN, INF = "NaN", "infinite"
Faults = frozenset[str]
CLEAN: Faults = frozenset()


@dataclass(frozen=True)
class First:
    """Where a fault appeared first. kernel: its number in the step, −1 before the step.

    how: "made" from sources without it, "received" from another rank, or "given". node: the one
    that made it, if known. origins: of that node, or of everything that the kernel computes.
    """

    fault: str
    kernel: int
    what: str
    how: str
    node: str = ""
    origins: tuple[Origin, ...] = ()


class Values:
    """Inspects each kernel's results: see `watch.Round`.

    kernels: for each kernel of the step, a summary of each array. firsts: by fault.
    """

    def __init__(self, tell: Callable[[Canonical], Story]) -> None:
        self.tell = tell
        self.kernels: list[list[dict[str, Any]]] = []
        self.firsts: dict[str, First] = {}
        self._known: WeakKeyDictionary[Buffer | Array, Faults] = WeakKeyDictionary()
        self._memory: _Memory  # of the running program

    def begins(self, timed: Timed, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """Called before a program runs: its inputs may have faults already."""
        story = self.tell(timed.call)
        self._memory = _Memory(story, timed.parts[0], buffers, variables)
        for array in {a for n in range(len(story.kernels)) for a in story.read(n)}:
            slot = story.plan.slots.get(array.whole or array, len(buffers))
            if slot < len(timed.call.inputs) and buffers[slot] not in self._known:
                buffer = buffers[slot]
                found = _faults(_numbers(buffer.memory, buffer.dtype, buffer.size))
                self._known[buffer] = found
                for fault in found:
                    self.firsts.setdefault(fault, First(fault, -1, story.name_of(slot)[0], "given"))

    def ran(self, number: int) -> None:
        """Called after a kernel has run."""
        memory, story = self._memory, self._memory.story
        kernel = story.plan.kernels[number]
        before: Faults = CLEAN.union(*(self._faults_of(a) for a in story.read(number)))
        rows = []
        for stage in kernel.stages:
            array = stage.array
            if kernel.kind == "exchange" or (array not in kernel.stored and kernel.kind != "wait"):
                continue
            values = memory.of(array, stage)
            node = story.node(array)
            rows.append(summary(values, story.written(stage)[0] or array.name,
                                node.shape if node is not None else (array.size,)))  # fmt: skip
            found = _faults(values)
            for fault in found - before - set(self.firsts):
                self.firsts[fault] = self._first(fault, number, stage)
            # a part's are added to those of the other parts
            others = CLEAN if array.whole is None else self._faults_of(array)
            self._known[self._place(array)] = found | others
        self.kernels.append(rows)

    def _place(self, array: Array) -> Buffer | Array:
        """What stands for an array's memory: a buffer, or the whole array inside the program."""
        buffer = self._memory.buffer(array)
        return array.whole or array if buffer is None else buffer

    def _faults_of(self, array: Array) -> Faults:
        return self._known.get(self._place(array), CLEAN)

    def _first(self, fault: str, number: int, stage: Stage) -> First:
        """The origin of a fault that a kernel has made, or that a wait has received."""
        memory, story, place = self._memory, self._memory.story, len(self.kernels)
        what = story.written(stage)[0] or stage.array.name
        kernel = story.plan.kernels[number]
        if kernel.kind == "wait":
            return First(fault, place, what, "received")
        stored = {memory.place(array) for array in kernel.stored}
        own = {made.array for made in kernel.stages}
        overwritten = any(memory.place(a) in stored for a in story.read(number) if a not in own)
        node = None if overwritten else first_node(fault, stage, memory)
        if node is None:
            shares = sorted(story.kernels[number]["shares"].items(), key=lambda item: -item[1])
            return First(fault, place, what, "made", "", tuple(origin for origin, _ in shares))
        return First(fault, place, what, "made", repr(node)[1:-1], (story.origin(node),))


class _Memory:
    """The memory of a program's arrays while it runs."""

    def __init__(
        self, story: Story, program: Any, buffers: Sequence[Buffer], variables: Mapping[str, int]
    ) -> None:
        self.story, self.program = story, program
        self.buffers, self.variables = buffers, variables
        self.arrays = {node: array for array, node in story.plan.nodes.items()}

    def buffer(self, array: Array) -> Buffer | None:
        """The buffer that an array is, or is a part of."""
        slot = self.story.plan.slots.get(array.whole or array)
        return None if slot is None else self.buffers[slot]

    def place(self, array: Array) -> tuple[str, int] | None:
        """The place of an array in memory, which others may have had before; None if it has none.
        """
        found: tuple[str, int] | None = self.story.places.get(array.whole or array)
        return found

    def of_node(self, node: Node) -> Any:
        """The values of a node that is in memory, else None."""
        if node.op is Op.BUFFER:
            buffer = self.buffers[node.arg]
            return _numbers(buffer.memory, node.dtype, numel(node.shape)).reshape(node.shape)
        array = self.arrays.get(node)
        if array is None or self.place(array) is None:
            return None
        return self.of(array)[: high(numel(node.shape))].reshape(node.shape)

    def of(self, array: Array, stage: Stage | None = None) -> Any:
        """The numbers of an array, flat. stage: the one that fills it, if it is a part of another.
        """
        buffer = self.buffer(array)
        address = self.program.address(self.place(array)) if buffer is None else buffer.memory
        if stage is not None and array.whole is not None:
            address += evaluate(stage.start, self.variables) * array.dtype.itemsize
        size = array.size
        if stage is not None:
            size = min(size, most(numel(stage.shape), self.variables))
        return _numbers(address, array.dtype, size)


def first_node(fault: str, stage: Stage, memory: _Memory) -> Node | None:
    """The first node of a stage with a fault that none of its sources has, or None.

    Recomputes the nodes on the reference device, unless they are too large.
    """
    import numpy as np

    from minigrad.runtimes.reference import MEANING, Frame

    top = memory.story.node(stage.array)
    loaded: dict[Node, Any] = {}
    inside: set[Node] = set()
    stack = [top] if top is not None else []
    while stack:
        node = stack.pop()
        found = None if node is top else memory.of_node(node)
        if found is not None:
            loaded[node] = found
        elif node not in inside:
            inside.add(node)
            stack.extend(node.src)
    order = [node for node in topological([top]) if node in inside] if top is not None else []
    if any(high(numel(node.shape)) > MOST_AGAIN for node in order):
        return None
    frame, values = Frame(memory.variables, wide=False), loaded
    for node in order:
        sources = [values[source] for source in node.src]
        with np.errstate(all="ignore"):
            values[node] = MEANING[node.op](node, sources, frame)
        clean = not any(fault in _faults(source) for source in sources)
        if clean and fault in _faults(values[node]):
            return node
    return None


def _numbers(address: int, dtype: DType, size: Any) -> Any:
    """A flat numpy array on memory of the host, without a copy."""
    count = high(size)
    memory = memoryview((ctypes.c_ubyte * (count * dtype.itemsize)).from_address(address))
    return hostdata.to_numpy(memory, (count,), dtype)  # type: ignore[arg-type]


def _faults(x: Any) -> Faults:
    import numpy as np

    if not x.size or x.dtype.kind in "biu" or np.isfinite(x).all():
        return CLEAN
    return frozenset([NAN] * bool(np.isnan(x).any()) + [INF] * bool(np.isinf(x).any()))


def summary(x: Any, name: str, shape: Sequence[Any]) -> dict[str, Any]:
    """A flat array summarized; exact, except for the histogram, which counts every nth number."""
    import numpy as np

    kind = x.dtype.name
    x = x.astype(np.float32) if x.dtype.itemsize < 4 else x
    finite = x if x.dtype.kind in "biu" or np.isfinite(x).all() else x[np.isfinite(x)]
    some = finite[:: max(-(-finite.size // SAMPLED), 1)].astype(np.float64)
    row: dict[str, Any] = {
        "name": name, "shape": [high(extent) for extent in shape], "dtype": kind,
        "nan": int(np.isnan(x).sum()) if finite is not x else 0, "zeros": 0,
        "first": [f"{value:.4g}" for value in x[:SHOWN].tolist()],
    }  # fmt: skip
    unit = 1.0
    row["inf"] = int(x.size - finite.size - row["nan"])
    if finite.size:
        row |= {
            "low": float(finite.min()), "high": float(finite.max()),
            "zeros": int(finite.size - np.count_nonzero(finite)),
            "bars": hostdata.heights(some, 100),
        }  # fmt: skip
        if max(row["high"], -row["low"]) > 2.0**500:  # the sum of their squares would be infinite
            finite, some, unit = finite / 2.0**600, some / 2.0**600, 2.0**600
        row["mean"] = float(finite.mean(dtype=np.float64)) * unit
        row["spread"] = float(some.std()) * unit
    return row
