"""A program that runs as several programs: those of its graph's pieces (`graph/pieces.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from minigrad.device import Buffer, Program
from minigrad.graph.build import assign, buffer, rebuild
from minigrad.graph.canonical import Canonical, canonicalize
from minigrad.graph.node import ASSIGN, Node, in_order
from minigrad.graph.pieces import pieces
from minigrad.graph.shapes import numel

Find: TypeAlias = Callable[[Canonical], tuple[Program, Mapping[str, int]]]


@dataclass(frozen=True)
class _Piece:
    """A program, the values of its variables, and the slots of its buffers.

    new: the nodes that it stores for later pieces, by slot; over: the slots that no later piece
    reads.
    """

    program: Program
    values: Mapping[str, int]
    slots: Sequence[int]
    new: Mapping[int, Node]
    over: list[int] = field(default_factory=list)


class Pieced:
    """The programs of the pieces, in order; the last one makes all in-place writes."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self.pieces = pieces
        latest = {slot: piece for piece in pieces for slot in piece.slots}
        for slot in itertools.chain.from_iterable(piece.new for piece in pieces):
            latest[slot].over.append(slot)

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """See `minigrad.device.Program`."""
        memory = dict(enumerate(buffers))
        for piece in self.pieces:
            for slot, node in piece.new.items():
                memory[slot] = Buffer(node.device, node.dtype, numel(node.shape))
            piece.program.run([memory[slot] for slot in piece.slots], piece.values)
            for slot in piece.over:
                del memory[slot]


def in_pieces(call: Canonical, find: Find) -> Pieced | None:
    """A call in pieces, whose programs `find` finds; None if there is only one piece."""
    graph = call.graph()
    roots = [
        root if slot >= len(call.inputs) or root.op is ASSIGN
        else assign(buffer(slot, root.dtype, root.shape, root.device), root)
        for root, slot in zip(graph.roots, graph.outputs, strict=True)
    ]  # fmt: skip
    slots, free = dict(zip(roots, graph.outputs, strict=True)), itertools.count(graph.slots)
    cut = pieces(roots) if len(slots) == len(roots) else []
    if len(cut) < 2:
        return None
    stored: dict[Node, Node] = {}
    made = []
    for some in cut:
        new = {slots[node] if node in slots else next(free): node for node in some}
        own = canonicalize(_reading(stored, some))
        program, values = find(own)
        written = [slot for slot, node in new.items() if node.op is not ASSIGN]
        kept = {slot: node for slot, node in new.items() if slot >= graph.slots}
        made.append(_Piece(program, values, (*own.inputs, *written), kept))
        stored |= {n: buffer(slot, n.dtype, n.shape, n.device) for slot, n in new.items()}
    return Pieced(made)


def _reading(stored: Mapping[Node, Node], some: Sequence[Node]) -> list[Node]:
    """Nodes that read what is stored; other pieces' in-place writes become their values."""
    new: dict[Node, Node] = {}
    for node in in_order(some, lambda node: () if node in stored else node.src):
        if node in stored:
            new[node] = stored[node]
        elif node.op is ASSIGN and node not in some:
            new[node] = new[node.src[1]]
        else:
            new[node] = rebuild(node, [new[x] for x in node.src])
    return [new[node] for node in some]
