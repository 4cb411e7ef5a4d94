"""A program that runs as several programs.

Of its graph's pieces (`graph/pieces.py`), of its loops, or of parts between RESHAPEs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from minigrad.device import Buffer, Program
from minigrad.graph.build import assign, buffer
from minigrad.graph.canonical import Canonical, Graph, canonicalize
from minigrad.graph.loop import StepsInMemory, stages_of, written
from minigrad.graph.node import ASSIGN, BUFFER, Node, Op, in_order, make
from minigrad.graph.pieces import pieces
from minigrad.graph.rewrite import remade, replaced
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import Affine

# The program of a call, and values. It gets a function, too, which adds the nodes to the call.
Find: TypeAlias = Callable[..., tuple[Program, Mapping[str, int]]]


@dataclass(frozen=True)
class _Piece:
    """A program, the values of its variables in each of its runs, and the slots of its buffers.

    new: the nodes that it stores for later pieces, by slot; over: the slots that no later piece
    reads.
    """

    program: Program
    values: Sequence[Mapping[str, int]]
    slots: Sequence[int]
    new: Mapping[int, Node]
    over: list[int] = field(default_factory=list)


class Pieced:
    """The programs of the pieces, in order; the last one makes all in-place writes.

    final: there are no faster programs for its graph.
    """

    def __init__(self, pieces: Sequence[_Piece], final: bool = False) -> None:
        self.pieces, self.final = pieces, final
        latest = {slot: piece for piece in pieces for slot in piece.slots}
        for slot in itertools.chain.from_iterable(piece.new for piece in pieces):
            latest[slot].over.append(slot)

    def run(self, buffers: Sequence[Buffer], given: Mapping[str, int]) -> None:
        """See `minigrad.device.Program`."""
        memory = dict(enumerate(buffers))
        for piece in self.pieces:
            for slot, node in piece.new.items():
                memory[slot] = Buffer(node.device, node.dtype, numel(node.shape))
            own = [memory[slot] for slot in piece.slots]
            for values in piece.values:
                piece.program.run(own, {**given, **values} if given else values)
            for slot in piece.over:
                del memory[slot]


def in_pieces(call: Canonical, find: Find) -> Pieced | None:
    """A call in pieces, whose programs `find` finds; None if there is only one piece."""
    graph = call.rewritten(_without_writes, ())
    roots = _on_slots(graph, len(call.inputs))
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
        made.append(_Piece(program, [values], (*own.inputs, *written), kept))
        stored.update((node, slot) for slot, node in new.items())
    return Pieced(made)


def _on_slots(graph: Graph, inputs: int) -> list[Node]:
    """The roots of a graph; those that are stored in inputs are ASSIGNs."""
    return [
        root if slot >= inputs or root.op is ASSIGN
        else assign(buffer(slot, root.dtype, root.shape, root.device), root)
        for root, slot in zip(graph.roots, graph.outputs, strict=True)
    ]  # fmt: skip


def in_stages(graph: Graph, inputs: int, find: Find, final: bool) -> Pieced:
    """A graph with LOOPs: what these read, their steps, and the rest. `find` finds the programs.

    inputs: the number of slots that exist before a call. final: no program is padded or in pieces.
    """
    roots = remade(
        _on_slots(graph, inputs), lambda node, src: _without_writes(node, src, node.arg)
    )
    stages = _Stages(find, graph, roots)
    cut = stages_of(roots)
    for number, loops in enumerate(cut.stages):
        needs = [source for loop in loops for source in loop.arg.read(loop)]
        stages.store((*needs, *cut.at(number, roots)))
        for loop in loops:
            stages.run(loop, cut.results.get(loop, ()))
    stages.finish()
    return Pieced(stages.pieces, final)


def at_merges(call: Canonical, numbers: Sequence[int], find: Find) -> Pieced:
    """A call cut at some of its RESHAPEs: what they read is stored, and read as it is reshaped."""
    reshapes = [node for node in call.order if node.op is Op.RESHAPE]
    cuts, made = {reshapes[number] for number in numbers}, dict[Node, None]()

    def remake(node: Node, src: tuple[Node, ...], arg: Any) -> Node:
        new = _without_writes(node, src, arg)
        made.update({new: None} if node in cuts else {})
        return new

    graph = call.rewritten(remake, ())
    roots = _on_slots(graph, len(call.inputs))
    stages = _Stages(find, graph, roots)
    level: dict[Node, int] = {}
    others = {*roots}  # what is read not only by these RESHAPEs
    for node in in_order(roots, None):
        level[node] = max([level[source] for source in node.src], default=0) + (node in made)
        others.update(() if node in made else node.src)
    for number in range(1, max(level.values()) + 1):
        read = {node: _apart(node.src[0], others) for node in made if level.get(node) == number}
        stages.store([*(node.src[0] for node in read), *read.values()])
        for node, source in read.items():
            place = stages.known[source].arg
            stages.known[node] = buffer(place, node.dtype, node.shape, node.device)
    stages.finish()
    return Pieced(stages.pieces)


def _apart(x: Node, others: Container[Node]) -> Node:
    """x, or a copy: a program cannot read an array in two shapes if both vary."""
    if x.op is BUFFER or x in others:
        return make(Op.CONTIGUOUS, x.dtype, x.shape, (x,), None, x.device)
    return x


class _Stages:
    """Collects pieces. known: nodes in memory by then → BUFFERs of slots, or parts of these."""

    def __init__(self, find: Find, graph: Graph, roots: Sequence[Node]) -> None:
        self._find, self._free = find, itertools.count(graph.slots)
        self._wanted = [*zip(roots, graph.outputs, strict=True)]
        self._outputs = dict(self._wanted)
        self._instead: dict[int, int] = {}  # slots of a loop's results → outputs' slots
        self.pieces: list[_Piece] = []
        self.known: dict[Node, Node] = {}

    def store(self, nodes: Iterable[Node]) -> None:
        """Compute nodes that are not in memory, into their output's slot or a new one."""
        now = [n for n in dict.fromkeys(nodes) if n not in self.known and n.op is not BUFFER]
        places = {n: self._outputs[n] if n in self._outputs else next(self._free) for n in now}
        made = {n: buffer(at, n.dtype, n.shape, n.device) for n, at in places.items()}
        new = {at: n for n, at in places.items() if n not in self._outputs}
        self._add(replaced(now, self.known), [*places.values()], new)
        self.known.update(made)

    def run(self, loop: Node, results: Sequence[Node]) -> None:
        """Run a LOOP, whose sources are in memory. results: its RESULTs that are wanted."""
        new: dict[int, Node] = {}

        def memory(like: Node, rows: int) -> Node:
            slot = next(self._free)
            new[slot] = buffer(slot, like.dtype, (rows, *like.shape), like.device)
            return new[slot]

        sources = {one: self.known.get(one, one) for one in loop.arg.read(loop)}
        steps = StepsInMemory(loop, sources, results, memory)
        for one, place in steps.results.items():
            if one in self._outputs and place.op is BUFFER:
                self._instead[place.arg] = self._outputs[one]
        new = {slot: place for slot, place in new.items() if slot not in self._instead}
        self._add(steps.begin, (), new)
        self._add(steps.step, (), {}, [*steps.values()])
        self.known.update(steps.results)

    def finish(self) -> None:
        """Compute the outputs that are not in their slots."""
        left = [(root, slot) for root, slot in self._wanted
                if root.op is ASSIGN or not self._is_in(root, slot)]
        roots = replaced([root for root, _ in left], self.known)
        self._add(roots, [slot for root, slot in left if root.op is not ASSIGN], {})

    def _is_in(self, root: Node, slot: int) -> bool:
        """Whether a slot has a root's value."""
        place = self.known.get(root)
        return place is not None and self._instead.get(place.arg, place.arg) == slot

    def _add(
        self, roots: Sequence[Node], slots: Sequence[int], new: Mapping[int, Node],
        every: Sequence[Mapping[str, int]] = ({},),
    ) -> None:  # fmt: skip
        """Add a piece. slots: where the roots that write nowhere are stored."""
        if roots:
            call = canonicalize(roots)
            free = {atom.name for cell in call.cells if isinstance(cell, Affine)
                    for atom in variables(cell)} - call.values.keys()  # fmt: skip
            program, values = self._find(call._replace(values=dict.fromkeys(free, 0) | call.values))
            runs = [{**values, **own} for own in every]
            inputs = [self._instead.get(slot, slot) for slot in call.inputs]
            self.pieces.append(_Piece(program, runs, (*inputs, *slots), new))


def _without_writes(node: Node, src: Sequence[Node], arg: Any) -> Node:
    """A node that reads the values of in-place writes, not these."""
    return make(node.op, node.dtype, node.shape, tuple(map(written, src)), arg, node.device)


def _reading(call: Canonical, read: Mapping[Node, int]) -> Canonical:
    """The call with a BUFFER for each node that it reads from a slot."""
    new = {n: buffer(slot, n.dtype, n.shape, n.device) for n, slot in read.items()}
    for n in call.order:
        new[n] = make(n.op, n.dtype, n.shape, tuple([new[x] for x in n.src]), n.arg, n.device)
    return call._replace(order=tuple(new.values()), roots=tuple(new[root] for root in call.roots))
