"""Canonical graphs: programs without the buffers and variable values of one particular call.

Two training steps build two graphs that differ only in their buffers and in the values of their
variables. `canonicalize` numbers the buffers by first use and takes the values out, so that both
steps have one key and one compiled program, with different arguments.

Calls may also differ in numbers: extents, offsets, constants. These are the *cells* of a graph, in
the order of its nodes. A graph without its cells is a *structure*, which similar graphs share
(`graph/general.py` compiles one program for several such graphs).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

from minigrad.graph.bounds import Check, any_outside
from minigrad.graph.build import SHAPED
from minigrad.graph.node import (
    ASSIGN,
    BUFFER,
    CHECK,
    COLLECTIVE,
    CONST,
    CUSTOM,
    Node,
    Op,
    make,
    needed,
    number_key,
)
from minigrad.graph.sharding import Layout, meshes
from minigrad.graph.symbolic import Affine, Integer
from minigrad.graph.variable import unbind

# A number of a graph: an extent, an offset, an integer; or the bits of a float.
Cell = Integer | bytes


@dataclass(frozen=True)
class Graph:
    """The computation of a program.

    roots[i] is the value to be stored in buffer slot outputs[i]; an ASSIGN root is stored in some
    of its rows. BUFFER nodes hold slots as `arg`. Slots 0 … len(outputs) − 1 are not necessarily
    outputs: an in-place update reads and writes one slot. A program sees every input as it was
    before the program started.
    variables: names of the symbolic integers whose values are given per call.
    device: the device whose runtime computes it. If indices are checked, the last root is a
    uint32 scalar: 0 if all of them are in range.
    layouts: of the inputs, if the device is a mesh.
    """

    roots: tuple[Node, ...]
    outputs: tuple[int, ...]
    slots: int
    variables: tuple[str, ...]
    device: str
    layouts: tuple[Layout | None, ...] = ()


class Canonical(NamedTuple):  # created in a third of the time of a frozen dataclass
    """A graph's key together with one call's arguments.

    structure, cells: hashable; if both are equal, so are the programs. inputs: the memory of each
    slot that exists before the call; `targets[i]` is the slot of root i, and new if it is
    ≥ len(inputs). checks: the graph's CHECK nodes, sources before users; their result is in the
    last slot.
    """

    structure: Any
    cells: tuple[Cell, ...]
    order: tuple[Node, ...]
    roots: tuple[Node, ...]
    inputs: tuple[Any, ...]
    targets: tuple[int, ...]
    values: dict[str, int]
    checks: tuple[Node, ...]
    layouts: tuple[Layout | None, ...] = ()

    def graph(self) -> Graph:
        """The graph itself, rewritten onto slots (made only when a program must be compiled)."""
        if not self.values:
            return self.rewritten(same, ())
        unbound: dict[str, int] = {}
        return self.rewritten(
            lambda node, src, arg: make(
                node.op, node.dtype, tuple(unbind(extent, unbound) for extent in node.shape), src,
                _unbind_arg(arg, unbound), node.device,
            ),
            tuple(sorted(self.values)),
        )  # fmt: skip

    def rewritten(self, remake: Remake, variables: tuple[str, ...]) -> Graph:
        """The graph of nodes that `remake` makes, in order, of a node, its new sources and arg.

        Of what it makes of a CHECK only the arg is used: all of these become one more root. Of a
        write to a whole array only the value: its slot is in `outputs`.
        """
        slots = {memory: slot for slot, memory in enumerate(self.inputs)}
        new: dict[Node, Node] = {}
        numbers = exchange_numbers(self.order)
        checked: list[tuple[Node, Check]] = []
        for node in self.order:
            if node.op is Op.CUSTOM:
                new[node] = new[node.src[0]]
                continue
            src = tuple([new[source] for source in node.src])
            if node.op is COLLECTIVE:
                arg = replace(node.arg, number=numbers[node.arg.number])
            else:
                arg = slots[node.arg] if node.op is Op.BUFFER else node.arg
            if node.op is Op.CHECK:
                new[node] = src[0]
                if self.checks:
                    checked.append((src[0], remake(node, src, arg).arg))
                continue
            made = remake(node, src, arg)
            whole = made.op is ASSIGN and made.arg is None  # its readers read what it writes
            new[node] = made.src[1] if whole else made
        roots = [new[root] for root in self.roots]
        outputs = self.targets
        count = max((*outputs, len(self.inputs) - 1)) + 1
        if checked:
            roots.append(any_outside(checked))
            outputs, count = (*outputs, count), count + 1
        return Graph(tuple(roots), outputs, count, variables, self.roots[0].device, self.layouts)


# Makes a node of a rewritten graph from the old node, its new sources, and its arg.
Remake = Callable[[Node, tuple[Node, ...], Any], Node]


def same(node: Node, src: tuple[Node, ...], arg: Any) -> Node:
    """A node with other sources and argument (a `Remake`)."""
    return make(node.op, node.dtype, node.shape, src, arg, node.device)


# The operations with numbers that do not follow from their sources.
NUMBERED = frozenset({
    Op.BUFFER, Op.CONST, Op.IOTA, Op.RESHAPE, Op.EXPAND, Op.SHRINK, Op.PAD, Op.VARIABLE, Op.CHECK,
    Op.ASSIGN,
})  # fmt: skip

_OTHER = NUMBERED - SHAPED | {CUSTOM, COLLECTIVE}  # their arg needs a change to become structure
_SYMBOLIC = frozenset({Affine})


def cells_of(node: Node) -> tuple[Cell, ...]:
    """The numbers of a node: its shape and, of a constant, its value.

    The value of a bool constant is structure instead. For SHRINK and PAD not the shape, but start
    and length, or before and after, of each dimension.
    """
    if node.op is CONST and not node.dtype.is_bool:
        return (*node.shape, number_key(node.arg, node.dtype))
    of_arg = _CELLS.get(node.op)
    return node.shape if of_arg is None else of_arg(node.arg)


_CELLS: dict[Op, Callable[[Any], tuple[Cell, ...]]] = {
    Op.SHRINK: lambda arg: tuple([x for start, stop in arg for x in (start, stop - start)]),
    Op.PAD: lambda arg: tuple(chain.from_iterable(arg)),
    CHECK: lambda arg: (arg.extent,),
    Op.VARIABLE: lambda arg: (arg,),
    ASSIGN: lambda arg: () if arg is None else (arg,),
}


def _structure_of(node: Node) -> Any:
    """The structure of a node with cells, besides its dtype and its sources."""
    if node.op is CONST and node.dtype.is_bool:
        return (node.ndim, bool(node.arg))
    if node.op is ASSIGN:
        return node.arg is None
    return node.arg.but(extent=0) if node.op is CHECK else node.ndim


def _unbind_arg(arg: Any, values: dict[str, int]) -> Any:
    """`arg` without bound values: pads and ranges hold pairs of integers, VARIABLE an Affine."""
    if isinstance(arg, Affine):
        return unbind(arg, values)
    if isinstance(arg, Check):
        return arg.but(extent=unbind(arg.extent, values))
    if isinstance(arg, tuple) and isinstance(arg[0], tuple):
        return tuple(tuple(unbind(x, values) for x in pair) for pair in arg)
    return arg


def numbers_of(call: Canonical) -> set[tuple[int, tuple[str, ...]]]:
    """The cells of nodes, each with a hash of the structure below the node, down to memory.

    Constants count as cells of the nodes that read them, and stored values as memory. So two calls
    that compute the same can be compared, whether or not some values are in memory already, and
    whether or not equal parts happen to be one node.
    """
    values: dict[str, int] = {}
    found: set[tuple[int, tuple[str, ...]]] = set()
    hashes: dict[Node, int] = {}
    stored = {root for root in call.roots if root.op is not ASSIGN}

    @cache  # there are few shapes, and many nodes of each
    def shown(cells: tuple[Cell, ...]) -> tuple[str, ...]:
        return tuple(
            f"{struct.unpack('<d', cell)[0]:.17g}" if isinstance(cell, bytes)
            else str(unbind(cell, values)) for cell in cells
        )  # fmt: skip

    for node in call.order:
        is_value = node.op is Op.CUSTOM  # sources that only its gradient needs may be missing
        is_memory, is_numbered = node.op is BUFFER, node.op in NUMBERED
        arg = node.ndim if is_numbered else node.arg
        hashes[node] = part = hashes[node.src[0]] if is_value else hash(
            (node.op, node.dtype, arg, *map(hashes.__getitem__, node.src))
        )
        if is_memory or node in stored:
            hashes[node] = hash((node.dtype, *shown(node.shape)))
        having = [node] * is_numbered + [source for source in node.src if source.op is CONST]
        if having and not (is_memory or is_value or node.op is CONST):
            found.add((part, sum([shown(cells_of(one)) for one in having], ())))
    return found


def exchange_numbers(order: Sequence[Node]) -> dict[int, int]:
    """New numbers of the COLLECTIVEs among some nodes: 0, 1, … in the order of the old ones."""
    found = sorted({node.arg.number for node in order if node.op is COLLECTIVE})
    return {number: place for place, number in enumerate(found)}


def canonicalize(
    roots: Sequence[Node], checked: bool = False, order: Sequence[Node] | None = None
) -> Canonical:
    """Number the buffers of a graph whose roots are to be stored (ASSIGN roots: in place).

    checked: whether its CHECK nodes count; otherwise each stands for its source. A CUSTOM stands
    for its value. order: `needed(roots)`, if that is known.
    """
    if order is None:
        order = needed(roots)
    number: dict[Node, int] = {}
    inputs: dict[Any, int] = {}
    values: dict[str, int] = {}
    rows: list[Any] = []  # for each node: op, dtype, argument, and the numbers of its sources
    cells: list[Cell] = []
    exchanges: dict[int, int] = {}  # their numbers → 0, 1, … in this graph
    checks: list[Node] = []
    for node in order:
        op, arg = node.op, node.arg
        if op is BUFFER:  # its memory becomes the number of its slot
            arg = (len(node.shape), inputs.setdefault(arg, len(inputs)))
            cells += node.shape
        elif op in SHAPED:  # most nodes
            arg = len(node.shape)
            cells += node.shape
        elif op in _OTHER:
            if op is CUSTOM or (op is CHECK and not checked):  # stands for its source
                number[node] = number[node.src[0]]
                continue
            if op is COLLECTIVE:
                exchanges = exchanges or exchange_numbers(order)
                arg = (replace(arg, number=exchanges[arg.number]), node.shape)
            else:
                arg = _structure_of(node)
                cells += cells_of(node)
                if op is CHECK:
                    checks.append(node)
        number[node] = len(rows)
        rows += (op, node.dtype, arg)
        for source in node.src:
            rows.append(number[source])
    if not _SYMBOLIC.isdisjoint(map(type, cells)):
        cells = [cell if isinstance(cell, bytes) else unbind(cell, values) for cell in cells]
    wanted, targets = [], []
    new = len(inputs)  # slots of results follow those of inputs
    for root in roots:
        wanted.append(number[root])
        if root.op is ASSIGN:  # in place
            targets.append(inputs[root.src[0].arg])
        else:
            targets.append(new)
            new += 1
    device = roots[0].device
    layouts = tuple(x.memory.layout for x in inputs) if device in meshes else ()
    structure = (tuple(rows), tuple(wanted), tuple(targets), device, layouts)
    return tuple.__new__(Canonical, (
        structure, tuple(cells), tuple(order), tuple(roots), tuple(inputs), tuple(targets), values,
        tuple(checks), layouts,
    ))  # fmt: skip


def exact(order: Sequence[Node], marked: Iterable[Node]) -> tuple[Any, ...]:
    """A key of an order and its marked nodes; graphs with equal keys differ only in memory."""
    number: dict[Node, int] = {}
    rows: list[Any] = []
    for node in order:
        op, arg = node.op, node.arg
        if op is BUFFER:
            arg = None
        elif op is CONST:
            arg = number_key(arg, node.dtype)
        number[node] = len(rows)
        rows += (op, node.dtype, node.shape, arg, node.device)
        for source in node.src:
            rows.append(number[source])
    return tuple(rows), tuple([number[node] for node in marked])
