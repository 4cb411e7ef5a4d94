"""The additions of a ring: generated kernels, one for all lengths of a dtype."""

from __future__ import annotations

from collections.abc import Callable

from minigrad import Variable
from minigrad.device import Buffer, Call, Device, Replay
from minigrad.dtype import DType
from minigrad.graph import build
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Affine
from minigrad.graph.variable import unbind
from minigrad.locks import new_lock
from minigrad.settings import Context

LONGEST = 1 << 24  # elements of one call
Rule = Callable[[Node, Node], Node]


class Kernels:
    """Arithmetic on memory by address, computed by a CPU device's threads."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._replays: dict[tuple[str, DType, float], Replay] = {}
        self._lock = new_lock()

    def combine(self, how: str, dtype: DType, target: int, source: int, count: int) -> None:
        """target[i] = target[i] + source[i], or their maximum where how is "max"."""
        op = Op.MAXIMUM if how == "max" else Op.ADD
        replay = self._replay((op.value, dtype, 0.0), lambda x, y: build.elementwise(op, x, y))
        self._run(replay, (target, source), count, dtype.itemsize)

    def scale(self, dtype: DType, target: int, count: int, factor: float) -> None:
        """target[i] = target[i]·factor."""

        def scaled(x: Node, y: Node) -> Node:
            return build.elementwise(Op.MUL, x, build.const(factor, dtype, x.shape, x.device))

        replay = self._replay(("scale", dtype, factor), scaled)
        self._run(replay, (target, target), count, dtype.itemsize)

    def _replay(self, key: tuple[str, DType, float], rule: Rule) -> Replay:
        known = self._replays.get(key)
        if known is None:
            with self._lock:
                known = self._replays.get(key)
                if known is None:
                    known = self._replays[key] = self._compile(key[1], rule)
        return known

    def _compile(self, dtype: DType, rule: Rule) -> Replay:
        length = unbind(Variable("count", 0, LONGEST).bind(0), {})
        assert isinstance(length, Affine)
        x = build.buffer(0, dtype, (length,), self.device)
        y = build.buffer(1, dtype, (length,), self.device)
        graph = Graph((rule(x, y),), (0,), 2, ("count",), self.device)
        # Under GUARD a device runs one program at a time, and that one may wait for this addition.
        with Context(GUARD=0):
            program = Device[self.device].compile(graph)
        target, source = (Buffer(self.device, dtype, 1) for _ in range(2))
        call = Call(
            program, (target, source), {"count": 1}, (), (target,), frozenset((target, source))
        )
        return Device[self.device].compose([call], [target, source])  # a third of a call's Python

    def _run(
        self, replay: Replay, addresses: tuple[int, int], count: int, itemsize: int
    ) -> None:
        for start in range(0, count, LONGEST):
            with self._lock:
                replay.put(*(address + start * itemsize for address in addresses))
                replay.run({"count": min(LONGEST, count - start)})
