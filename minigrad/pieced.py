"""A program that runs as several programs: those of its graph's pieces (`graph/pieces.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from minigrad.device import Buffer, Program
from minigrad.graph.build import assign, buffer
from minigrad.graph.canonical import Canonical, canonicalize
from minigrad.graph.node import ASSIGN, Node, in_order, make
from minigrad.graph.pieces import pieces
from minigrad.graph.shapes import numel

# The program of a call, and values. It gets a function, too, which adds the nodes to the call.
Find: TypeAlias = Callable[..., tuple[Program, Mapping[str, int]]]


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
    graph = call.rewritten(_without_writes, ())
    roots = [
        root if slot >= len(call.inputs) or root.op is ASSIGN
        else assign(buffer(slot, root.dtype, root.shape, root.device), root)
        for root, slot in zip(graph.roots, graph.outputs, strict=True)
    ]  # fmt: skip
    slots, free = dict(zip(roots, graph.outputs, strict=True)), itertools.count(graph.slots)
    cut = pieces(roots) if len(slots) == len(roots) else []
    if len(cut) < 2:
        return None
    stored: dict[Node, int] = {}
    made = []
    for some in cut:
        new = {slots[node] if node in slots else next(free): node for node in some}
        order = in_order(some, lambda node: () if node in stored else node.src)
        read = {node: stored[node] for node in order if node in stored}
        own = canonicalize(some, order=[n for n in order if n not in read], memory=read)
        program, values = find(own, partial(_reading, own, read))
        written = [slot for slot, node in new.items() if node.op is not ASSIGN]
        kept = {slot: node for slot, node in new.items() if slot >= graph.slots}
        made.append(_Piece(program, values, (*own.inputs, *written), kept))
        stored.update((node, slot) for slot, node in new.items())
    return Pieced(made)


def _without_writes(node: Node, src: Sequence[Node], arg: Any) -> Node:
    """A node that reads the values of in-place writes, not these."""
    src = tuple([x.src[1] if x.op is ASSIGN else x for x in src])
    return make(node.op, node.dtype, node.shape, src, arg, node.device)


def _reading(call: Canonical, read: Mapping[Node, int]) -> Canonical:
    """The call with a BUFFER for each node that it reads from a slot."""
    new = {n: buffer(slot, n.dtype, n.shape, n.device) for n, slot in read.items()}
    for n in call.order:
        new[n] = make(n.op, n.dtype, n.shape, tuple([new[x] for x in n.src]), n.arg, n.device)
    return call._replace(order=tuple(new.values()), roots=tuple(new[root] for root in call.roots))
