"""The text of kernels and graphs: equal texts compute the same in every process.

A text depends neither on the names of arrays, which are numbered by first appearance, nor on
anything of one call. It is the key of the kernel cache, so it contains *everything* on which
lowering and rendering depend: if `Kernel`, `Stage`, `Expr` or `Atom` get another field, add it
here.

Each distinct array, atom, sum and expression is one line, written before its users, which refer to
it by its number. Fields are separated by spaces, items of a list by commas; neither occurs inside
an item.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import astuple, fields
from itertools import chain
from operator import attrgetter
from types import NoneType
from typing import Any

from minigrad.dtype import DType
from minigrad.errors import CompileError
from minigrad.graph.canonical import Graph
from minigrad.graph.collective import Collective
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.symbolic import Affine, Atom
from minigrad.schedule.axis import Axis
from minigrad.schedule.expr import Array, Expr, Leaf, walk
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage


def kernel_key(kernel: Kernel) -> tuple[str, tuple[Array, ...]]:
    """The text of a kernel, and its arrays in the order of their numbers."""
    writer = _Writer()
    for stage in kernel.stages:
        if stage.exchange is not None:
            raise CompileError(f"cannot compile {stage.exchange}: an exchange is not a kernel")
        writer.add("stage", *_OF_A_STAGE(stage))
    stored, sums = (_items(sorted(writer.texts(x))) for x in (kernel.stored, kernel.sums))
    writer.add(kernel.kind, kernel.rows, stored, sums)
    return "\n".join(writer.lines), tuple(x for x in writer.known if isinstance(x, Array))


def graph_key(graph: Graph) -> str:
    """The text of a canonical graph; devices of one kind share it."""
    writer = _Writer()
    number: dict[Node, int] = {}
    for node in topological(graph.roots):
        arg = _bits(node.arg, node.dtype) if node.op is Op.CONST else node.arg
        sources = _items(number[source] for source in node.src)
        number[node] = len(number)
        writer.add(node.op, node.dtype, node.shape, arg, sources)
    roots = _items(number[root] for root in graph.roots)
    writer.add(roots, _items(graph.outputs), graph.slots, _items(graph.variables))
    return "\n".join(writer.lines)


def _items(values: Iterable[object]) -> str:
    return ",".join(map(str, values)) or "-"


def _bits(value: Any, dtype: DType) -> str:
    """A constant by its bits: −0.0 and 0.0 differ, and NaNs are equal."""
    return struct.pack("<d", value).hex() if dtype.is_float else str(int(value))


def _word(text: str) -> str:
    if not text.isprintable() or " " in text:
        raise CompileError(f"{text!r} has no key: see schedule/key.py")
    return text


# Values that are written without a line of their own.
_PLAIN: dict[type, Callable[[Any], str]] = {
    int: str, bool: str, NoneType: lambda _: "-", str: _word, DType: attrgetter("name"),
    Op: attrgetter("value"), Leaf: attrgetter("value"), Collective: lambda x: _items(astuple(x)),
}  # fmt: skip


class _Writer:
    """Collects the lines. known: objects that have a line → the text that refers to it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.known: dict[Array | Atom | Affine | Expr, str] = {}

    def add(self, *parts: Any) -> None:
        """Write a line."""
        words = self.texts(parts)  # this adds their own lines first
        self.lines.append(" ".join(words))

    def texts(self, some: Iterable[Any]) -> list[str]:
        """The texts of fields, or of a node's `arg`; objects without a line get one."""
        plain, other = _PLAIN, self._text
        return [plain[x.__class__](x) if x.__class__ in plain else other(x) for x in some]

    def _text(self, x: Any) -> str:
        kind: type = x.__class__
        if kind in _PARTS:
            return self.known.get(x) or self._number(x)
        if isinstance(x, tuple):
            return f"({','.join(self.texts(x))})"
        if isinstance(x, Axis):
            return ":".join(self.texts((x.variable, x.extent)))
        raise CompileError(f"{x!r} has no key: see schedule/key.py")

    def _number(self, x: Array | Atom | Affine | Expr) -> str:
        """Add a line for x after those of its parts; returns the reference to it."""
        for one in walk(x) if isinstance(x, Expr) else (x,):
            if one not in self.known:
                self.add(*_PARTS[one.__class__](one))
                self.known[one] = f"#{len(self.lines)}"
        return self.known[x]


def _of_array(x: Array) -> tuple[Any, ...]:
    if x.in_registers:
        raise CompileError(f"a schedule cannot hold the register {x!r}: it has no key")
    return "array", x.dtype, x.size, x.usual, x.space, x.image


def _of_expr(x: Expr) -> tuple[Any, ...]:
    if x.op is Op.CONST:
        return x.op, x.dtype, _bits(x.value, x.dtype)
    return (x.op, x.dtype, *x.args, *((x.array,) if x.op is Leaf.LOAD else ()), *x.indices)


# For what has a line of its own: all that identifies it, except an array's name.
_PARTS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    Array: _of_array, Expr: _of_expr,
    Affine: lambda x: ("sum", x.constant, *chain.from_iterable(map(reversed, x.terms))),
    Atom: attrgetter("kind", "name", "inner", "divisor", "low", "high", "payload", "usual"),
}  # fmt: skip


# All but fields that are not compiled (exchange, pieces), and `start`, which `position` includes.
_OF_A_STAGE = attrgetter(*(
    field.name for field in fields(Stage) if field.name not in ("exchange", "pieces", "start")
))  # fmt: skip
