"""Where varying dimensions merge, a general graph is cut into parts.

If m and n vary, element (i, j) is number i · n + j of m · n: no linear place. So what a RESHAPE
from (m, n) to (m · n) reads is stored, and a later part reads it from a slot of its own, in which
it has the new shape: m · n is one more variable.

    x ─▶ scores (m, n, 8) ─▶ │ (m · n, 8) ─▶ a loss and its gradient ─▶ │ (m, n, 8) ─▶ gradients
         part 0              │ part 1                                   │ part 2

A part may also need other values of earlier ones. What is expensive is stored for it, and the rest
computed again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from minigrad.errors import ShapeError
from minigrad.graph.build import buffer, copy_of, reshape
from minigrad.graph.canonical import Graph
from minigrad.graph.node import ASSIGN, BUFFER, Node, Op, Shape, grouped, in_order
from minigrad.graph.operations import REDUCTIONS, SCANS, SCATTERS
from minigrad.graph.rewrite import replaced
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import as_atom

EXPENSIVE = REDUCTIONS | {*SCANS, *SCATTERS, Op.SORT}


@dataclass(frozen=True)
class Parts:
    """The parts of a graph, in order.

    graph: with a root for each value that is stored. numbers: of its roots in each part. views:
    slots that are other slots' memory with another shape. first: the first slot that only parts
    know.
    """

    graph: Graph
    numbers: Sequence[Sequence[int]]
    views: Mapping[int, int]
    first: int


class Cuts:
    """The cuts of a graph, which are collected while it is made. inputs, slots: how many it has."""

    def __init__(self, inputs: int, slots: int) -> None:
        self._inputs, self._first, self._free = inputs, slots, itertools.count(slots)
        self._read: dict[tuple[Node, Shape], int] = {}  # the slots in which values are read again
        self._views: dict[int, int] = {}
        self.most: dict[str, int] = {}  # what variables should reach: m · n, for any m and n

    def reshaped(self, x: Node, shape: Shape) -> Node | None:
        """x with another shape, from memory; None if an index of it can be computed."""
        with suppress(ShapeError):
            reshape(x, shape)
            return None
        for one, other in ((x.shape, shape), (shape, x.shape)):
            varying = [extent for extent in one if not isinstance(extent, int)]
            atom = as_atom(varying[0]) if len(varying) == 1 else None
            if atom is not None and not any(atom in variables(extent) for extent in other):
                most = numel(other) // max(numel(one) // atom.high, 1)
                self.most[atom.name] = max(most, self.most.get(atom.name, 0))
        slot = self._read.setdefault((x, shape), next(self._free))
        return buffer(slot, x.dtype, shape, x.device)

    def parts(self, graph: Graph) -> Parts:
        """The parts of the graph that was made. Results that are inputs, too, come last."""
        graph = self._with_sources(graph)
        roots, outputs = [*graph.roots], [*graph.outputs]
        places = self._new(graph)
        level = self._levels(graph)
        last = max(level.values())
        pairs = zip(roots, outputs, strict=True)
        parts = [level[root] if places.get(root) == slot else last for root, slot in pairs]

        def below(node: Node) -> Sequence[Node]:
            """What the part `now` computes a node from, if it does not find it in memory."""
            if level[node] == now:
                return node.src
            if node not in places and node.op in EXPENSIVE and not _is_area(node.shape):
                places[node] = next(self._free)
                roots.append(node)
                outputs.append(places[node])
                parts.append(level[node])
            if node not in places:
                return node.src
            known[node] = buffer(places[node], node.dtype, node.shape, node.device)
            return ()

        for now in range(last, 0, -1):
            known: dict[Node, Node] = {}
            own = [number for number, part in enumerate(parts) if part == now]
            in_order([roots[number] for number in own], below)
            for number, root in zip(own, replaced([roots[n] for n in own], known), strict=True):
                roots[number] = copy_of(root) if root.op is BUFFER else root
        numbers = grouped((part, number) for number, part in enumerate(parts))
        made = replace(graph, roots=tuple(roots), outputs=tuple(outputs), slots=next(self._free))
        return Parts(made, [numbers[now] for now in sorted(numbers)], self._views, self._first)

    def _with_sources(self, graph: Graph) -> Graph:
        """The graph with a root for each value that is read again."""
        roots, outputs = [*graph.roots], [*graph.outputs]
        places = self._new(graph)
        for (x, _), slot in self._read.items():
            if x.op is BUFFER and x.arg not in outputs:
                self._views[slot] = self._views.get(x.arg, x.arg)
                continue
            if x not in places:
                places[x] = next(self._free)
                # a copy, of memory that is written in the end
                roots.append(copy_of(x) if x.op is BUFFER else x)
                outputs.append(places[x])
            self._views[slot] = places[x]
        return replace(graph, roots=tuple(roots), outputs=tuple(outputs))

    def _new(self, graph: Graph) -> dict[Node, int]:
        """The results whose memory is new, and their slots."""
        pairs = zip(graph.roots, graph.outputs, strict=True)
        return {x: slot for x, slot in pairs if slot >= self._inputs and x.op is not ASSIGN}

    def _levels(self, graph: Graph) -> dict[Node, int]:
        """How many cuts there are, at most, on a way from an input to each node."""
        written = dict(zip(graph.outputs, graph.roots, strict=True))
        read: dict[Node, Node] = {}  # a value that is read again → the root that it is

        def below(node: Node) -> Sequence[Node]:
            source = written.get(self._views.get(node.arg, -1)) if node.op is BUFFER else None
            read.update({} if source is None else {node: source})
            return node.src if source is None else (source,)

        level: dict[Node, int] = {}
        for node in in_order(graph.roots, below):
            if node in read:
                level[node] = level[read[node]] + 1
            else:
                level[node] = max([level[source] for source in node.src], default=0)
        return level


def _is_area(shape: Shape) -> bool:
    """Whether a variable occurs twice, as in attention's scores: these are seldom stored."""
    found = [atom for extent in shape for atom in variables(extent)]
    return len(found) > len({*found})
