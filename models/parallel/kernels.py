"""The additions of a ring: generated kernels, one for all lengths of a dtype."""

from __future__ import annotations

from collections.abc import Callable

from minigrad import Variable
from minigrad.device import Buffer, Device, Program
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
        self._programs: dict[tuple[str, DType, float], tuple[Program, Buffer]] = {}
        self._lock = new_lock()

    def combine(self, how: str, dtype: DType, target: int, source: int, count: int) -> None:
        """target[i] = target[i] + source[i], or their maximum where how is "max"."""
        op = Op.MAXIMUM if how == "max" else Op.ADD
        program = self._program((op.value, dtype, 0.0), lambda x, y: build.elementwise(op, x, y))
        self._run(program, (target, source), count)

    def scale(self, dtype: DType, target: int, count: int, factor: float) -> None:
        """target[i] = target[i]·factor."""

        def scaled(x: Node, y: Node) -> Node:
            return build.elementwise(Op.MUL, x, build.const(factor, dtype, x.shape, x.device))

        program = self._program(("scale", dtype, factor), scaled)
        self._run(program, (target, target), count)

    def _program(self, key: tuple[str, DType, float], rule: Rule) -> tuple[Program, Buffer]:
        known = self._programs.get(key)
        if known is None:
            with self._lock:
                known = self._programs.get(key)
                if known is None:
                    known = self._programs[key] = self._compile(key[1], rule)
        return known

    def _compile(self, dtype: DType, rule: Rule) -> tuple[Program, Buffer]:
        length = unbind(Variable("count", 0, LONGEST).bind(0), {})
        assert isinstance(length, Affine)
        x = build.buffer(0, dtype, (length,), self.device)
        y = build.buffer(1, dtype, (length,), self.device)
        graph = Graph((rule(x, y),), (0,), 2, ("count",), self.device)
        # Under GUARD a device runs one program at a time, and that one may wait for this addition.
        with Context(GUARD=0):
            return Device[self.device].compile(graph), Buffer(self.device, dtype, 1)

    def _run(
        self, program: tuple[Program, Buffer], addresses: tuple[int, int], count: int
    ) -> None:
        made, like = program
        for start in range(0, count, LONGEST):
            offset, length = start * like.dtype.itemsize, min(LONGEST, count - start)
            buffers = [Buffer.borrow(like, address + offset) for address in addresses]
            made.run(buffers, {"count": length})
