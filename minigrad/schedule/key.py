"""What kernels and graphs are, as text: equal texts compute the same in every process.

A text does not depend on the names of arrays, which are numbered by first appearance, nor on
anything of one call. It is the key of the kernel cache, so it holds *everything* on which lowering
and rendering depend: where `Kernel`, `Stage`, `Expr` or `Atom` get another field, it belongs here.

Each distinct array, atom and expression is one line, written before its users; fields are separated
by spaces, items of a list by commas, and neither occurs inside an item.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import astuple, fields
from typing import Any

from minigrad.dtype import DType
from minigrad.errors import CompileError
from minigrad.graph.canonical import Graph
from minigrad.graph.collective import Collective
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.symbolic import Affine, Atom, Integer
from minigrad.schedule.axis import Axis
from minigrad.schedule.expr import Array, Expr, Leaf, walk
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage


def kernel_key(kernel: Kernel) -> tuple[str, tuple[Array, ...]]:
    """The text of a kernel, and its arrays in the order of their numbers."""
    writer = _Writer()
    for stage in kernel.stages:
        writer.stage(stage)
    stored, sums = (sorted(map(writer.array, x)) for x in (kernel.stored, kernel.sums))
    rows = writer.integer(kernel.rows)
    writer.lines.append(f"{kernel.kind} {rows} {_items(stored)} {_items(sums)}")
    return "\n".join(writer.lines), tuple(writer.arrays)


def graph_key(graph: Graph) -> str:
    """The text of a canonical graph; devices of one kind share it."""
    writer = _Writer()
    number: dict[Node, int] = {}
    for node in topological(graph.roots):
        shape = writer.text(node.shape)
        if node.op is Op.CONST:
            arg = _bits(node.arg, node.dtype)
        else:
            arg = writer.text(node.arg)
        sources = _items(number[source] for source in node.src)
        number[node] = len(number)
        writer.lines.append(f"{node.op.value} {node.dtype.name} {shape} {arg} {sources}")
    roots = _items(number[root] for root in graph.roots)
    outputs, variables = _items(graph.outputs), _items(graph.variables)
    writer.lines.append(f"{roots} {outputs} {graph.slots} {variables}")
    return "\n".join(writer.lines)


def _items(values: Iterable[object]) -> str:
    return ",".join(map(str, values)) or "-"


def _bits(value: Any, dtype: DType) -> str:
    """A constant by its bits: −0.0 is not 0.0, and a NaN is itself."""
    return struct.pack("<d", value).hex() if dtype.is_float else str(int(value))


class _Writer:
    """Collects the lines; numbers arrays, atoms and expressions."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.arrays: dict[Array, int] = {}
        self.atoms: dict[Atom, str] = {}
        self.integers: dict[Affine, str] = {}
        self.expressions: dict[Expr, str] = {}

    def array(self, array: Array) -> int:
        """The number of an array."""
        number = self.arrays.get(array)
        if number is None:
            if array.in_registers:
                raise CompileError(f"a schedule cannot hold the register {array!r}: it has no key")
            number = self.arrays[array] = len(self.arrays)
            self.lines.append(f"array {array.dtype.name} {array.size} {array.space}")
        return number

    def integer(self, x: Integer) -> str:
        """A sum, its terms in their order."""
        if not isinstance(x, Affine):
            return str(x)
        text = self.integers.get(x)
        if text is None:
            terms = [f"{c}*{self.atom(atom)}" for atom, c in x.terms]
            text = self.integers[x] = f"{x.constant}+{'+'.join(terms)}"
        return text

    def atom(self, atom: Atom) -> str:
        """The name of an atom."""
        name = self.atoms.get(atom)
        if name is None:
            if atom.kind == "value":
                self.expression(atom.payload)
                what = self.expressions[atom.payload]
            elif atom.inner is not None:
                what = f"{self.integer(atom.inner)} {atom.divisor}"
            else:
                extent = "-" if atom.payload is None else self.integer(atom.payload)
                what = f"{atom.name} {extent}"
            name = self.atoms[atom] = f"a{len(self.atoms)}"
            self.lines.append(f"{atom.kind} {what} {atom.low} {atom.high}")
        return name

    def expression(self, *roots: Expr) -> None:
        """All expressions below roots that were not written yet."""
        known = self.expressions
        for e in walk(*[root for root in roots if root not in known]):
            if e in known:
                continue
            if e.op is Op.CONST:
                what = _bits(e.value, e.dtype)
            elif e.op is Leaf.LOAD:
                what = f"{self.array(e.array)} {self.integer(e.index)} {self.text(e.guard)}"
            elif e.op is Leaf.INDEX or e.op is Leaf.CONDITION:
                what = self.integer(e.index)
            else:
                what = " ".join([known[arg] for arg in e.args])
            known[e] = f"e{len(known)}"
            self.lines.append(f"{e.op.value} {e.dtype.name} {what}")

    def stage(self, stage: Stage) -> None:
        """One stage, after all of its expressions."""
        if stage.exchange is not None:
            raise CompileError(f"{stage.exchange} is no kernel: nothing is compiled for it")
        self.expression(*stage.exprs())
        self.lines.append("stage " + " ".join(self.text(getattr(stage, x)) for x in _OF_A_STAGE))

    def text(self, x: Any) -> str:
        """What a field holds, or a node's `arg` where that is no constant."""
        if isinstance(x, tuple):
            return f"({','.join(map(self.text, x))})"
        if isinstance(x, int | Affine):
            return self.integer(x)
        if x is None:
            return "-"
        if isinstance(x, Expr):
            return self.expressions[x]
        if isinstance(x, Array):
            return str(self.array(x))
        if isinstance(x, Axis):
            return f"{self.atom(x.variable)}:{self.integer(x.extent)}"
        if isinstance(x, DType):
            return x.name
        if isinstance(x, Op):
            return str(x.value)
        if isinstance(x, str) and x.isascii() and x.isprintable() and " " not in x:
            return x
        if isinstance(x, Collective):
            return _items(astuple(x))
        raise CompileError(f"{x!r} has no key: see schedule/key.py")


# All but what is not compiled (an exchange, the pieces of a CAT), and what `position` contains.
_OF_A_STAGE = [
    field.name for field in fields(Stage) if field.name not in ("exchange", "pieces", "start")
]
