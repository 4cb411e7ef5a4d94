"""Where varying dimensions merge, a general graph is cut into stages.

If m and n vary, element (i, j) is number i · n + j of m · n: no linear place. So what a RESHAPE
from (m, n) to (m · n) reads is stored, and a later stage reads it from there in its new shape:
m · n is one more variable. The RESHAPE becomes a COPY, at which graphs are cut (`stages_of`).

    x ─▶ scores (m, n, 8) ─▶ │ (m · n, 8) ─▶ a loss and its gradient ─▶ │ (m, n, 8) ─▶ gradients
         stage 0             │ stage 1                                  │ stage 2

A stage may also need other values of earlier ones. What is expensive is stored for it, and the rest
computed again.
"""

from __future__ import annotations

from collections.abc import Container
from contextlib import suppress
from dataclasses import replace
from typing import Any

from minigrad.errors import ShapeError
from minigrad.graph.build import buffer, copy_of, rebuild, reshape
from minigrad.graph.canonical import Graph
from minigrad.graph.node import BUFFER, Node, Op, Shape, make, topological
from minigrad.graph.operations import REDUCTIONS, SCANS, SCATTERS
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import as_atom

EXPENSIVE = REDUCTIONS | {*SCANS, *SCATTERS, Op.SORT}


class Cuts:
    """Where a graph is cut. written: slots of inputs that it writes in place."""

    def __init__(self, written: Container[int]) -> None:
        self._written = written
        self.made = False  # whether there are any
        self.most: dict[str, int] = {}  # what variables should reach: m · n, for any m and n

    def reshaped(self, x: Node, shape: Shape) -> Node | None:
        """x with another shape, from memory; None if an index of it can be computed.

        The `arg` of an input with another shape is its slot with that shape. If it is written in
        the end, a copy is read.
        """
        with suppress(ShapeError):
            reshape(x, shape)
            return None
        self.made = True
        for one, other in ((x.shape, shape), (shape, x.shape)):
            varying = [extent for extent in one if not isinstance(extent, int)]
            atom = as_atom(varying[0]) if len(varying) == 1 else None
            if atom is not None and not any(atom in variables(extent) for extent in other):
                most = numel(other) // max(numel(one) // atom.high, 1)
                self.most[atom.name] = max(most, self.most.get(atom.name, 0))
        slot = slot_of(x.arg)
        if x.op is BUFFER and slot not in self._written:
            return buffer((slot, shape), x.dtype, shape, x.device)
        return in_memory(copy_of(x) if x.op is BUFFER else x, shape)


def slot_of(memory: Any) -> Any:
    """A slot, which may be given with another shape."""
    return memory[0] if isinstance(memory, tuple) else memory


def in_memory(x: Node, shape: Shape) -> Node:
    """x, stored and then read with a shape."""
    return make(Op.COPY, x.dtype, shape, (x,), x.device, x.device)


def with_stored(graph: Graph, inputs: int) -> Graph:
    """The graph, whose later stages find in memory what is stored anyway, and what is expensive.

    So do in-place writes, which come last. inputs: the number of slots that they may write to.
    """
    order, pairs = topological(graph.roots), list(zip(graph.roots, graph.outputs, strict=True))
    stored = {node.src[0] for node in order if node.op is Op.COPY}
    stored.update(root for root, slot in pairs if slot >= inputs)
    level: dict[Node, int] = {}  # how many cuts there are, at most, on a way from an input
    here: dict[Node, Node] = {}  # node → what its own stage reads
    later: dict[Node, Node] = {}  # what later ones read
    for node in order:
        is_cut = node.op is Op.COPY
        level[node] = max([level[source] for source in node.src], default=0) + is_cut
        here[node] = later[node] = rebuild(node, [
            here[source] if is_cut or level[source] == level[node] else later[source]
            for source in node.src
        ])  # fmt: skip
        if node.src and not is_cut:
            if node in stored or (node.op in EXPENSIVE and not _is_area(node.shape)):
                later[node] = in_memory(here[node], node.shape)
            else:
                later[node] = rebuild(node, [later[source] for source in node.src])
    last = max(level.values())
    return replace(graph, roots=tuple([
        later[root] if slot < inputs and level[root] < last else here[root] for root, slot in pairs
    ]))  # fmt: skip


def _is_area(shape: Shape) -> bool:
    """Whether a variable occurs twice, as in attention's scores: these are seldom stored."""
    found = [atom for extent in shape for atom in variables(extent)]
    return len(found) > len({*found})
