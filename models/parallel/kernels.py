"""The additions of a ring: generated kernels, one per dtype for all lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad import Variable
from minigrad.collective import Addition
from minigrad.device import Buffer, Call, Device, Program, Replay
from minigrad.dtype import DType
from minigrad.graph import build
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Affine
from minigrad.graph.variable import unbind
from minigrad.locks import new_lock
from minigrad.models.parallel.timeline import Timeline
from minigrad.settings import Context

# Bytes of one call. A kernel for more than caches hold would store past them, but the sums are sent
# on, or added to, at once.
LONGEST = 1 << 19
Rule = Callable[[Node, Node], Node]
# arguments of such a kernel: the summands, the result, the number of elements
ARGUMENTS = [("slot", 0), ("slot", 1), ("slot", 0), ("symbol", "count")]


class Kernels:
    """Arithmetic on memory at addresses, computed by a CPU device's threads."""

    def __init__(self, device: str, timeline: Timeline | None = None) -> None:
        self.device, self.timeline = device, timeline or Timeline()
        self._replays: dict[tuple[bool, DType, float], Replay] = {}
        self._additions: dict[tuple[str, DType], tuple[Addition, Program]] = {}
        self._lock = new_lock()

    def combine(
        self, how: str, dtype: DType, target: int, source: int, count: int, factor: float = 1.0
    ) -> None:
        """target[i] = (target[i] + source[i])·factor, or their maximum if how is "max"."""
        key = how == "max", dtype, factor
        with self._lock:
            replay = self._replays.get(key)
            if replay is None:
                replay = self._replays[key] = self._compile(dtype, _rule(how, factor))
        most = LONGEST // dtype.itemsize
        with self.timeline.span("add", how, count * dtype.itemsize):
            for start in range(0, count, most):
                with self._lock:
                    replay.put(*(one + start * dtype.itemsize for one in (target, source)))
                    replay.run({"count": min(most, count - start)})

    def addition(self, how: str, dtype: DType) -> Addition:
        """The sum, mean or maximum of two arrays, as a function for native code."""
        known = self._additions.get((how, dtype))
        if known is None:
            program: Any = self._program(dtype, _rule(how, 0.5 if how == "mean" else 1.0))
            (launch,) = program.launches
            known = Addition(launch[0], dtype.itemsize), program
            assert program.sources == ARGUMENTS and not program.scratch_bytes
            self._additions[how, dtype] = known
        return known[0]

    def _compile(self, dtype: DType, rule: Rule) -> Replay:
        program = self._program(dtype, rule)
        target, source = (Buffer(self.device, dtype, 1) for _ in range(2))
        call = Call(
            program, (target, source), {"count": 1}, (), (target,), frozenset((target, source))
        )
        return Device[self.device].compose([call], [target, source])  # a third of a call's time

    def _program(self, dtype: DType, rule: Rule) -> Program:
        """A program for two arrays of any length; the first one receives the result."""
        length = unbind(Variable("count", 0, LONGEST // dtype.itemsize).bind(0), {})
        assert isinstance(length, Affine)
        x = build.buffer(0, dtype, (length,), self.device)
        y = build.buffer(1, dtype, (length,), self.device)
        graph = Graph((rule(x, y),), (0,), 2, ("count",), self.device)
        # Under GUARD a device runs one program at a time, which may be waiting for this addition.
        with Context(GUARD=0):
            return Device[self.device].compile(graph)


def _rule(how: str, factor: float) -> Rule:
    """The function of two arrays that a kernel computes."""

    def rule(x: Node, y: Node) -> Node:
        both = build.elementwise(Op.MAXIMUM if how == "max" else Op.ADD, x, y)
        if factor == 1:
            return both
        return build.elementwise(Op.MUL, both, build.const(factor, x.dtype, x.shape, x.device))

    return rule
