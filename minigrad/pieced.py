"""A program that runs as several programs.

Of its graph's pieces (`graph/pieces.py`), of its loops, or of parts between RESHAPEs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from minigrad.device import Buffer, Program
from minigrad.dtype import DType
from minigrad.graph.build import assign, buffer
from minigrad.graph.canonical import Canonical, Graph, canonicalize
from minigrad.graph.general import General
from minigrad.graph.loop import StepsInMemory, read_of, stages_of
from minigrad.graph.node import ASSIGN, BUFFER, Node, Shape, grouped, in_order, topological
from minigrad.graph.pieces import Term, pieces
from minigrad.graph.rewrite import replaced
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import Affine
from minigrad.graph.variable import evaluate
from minigrad.padded import Padded

# A piece's program, the values of its own variables, and its inputs, by its term, if it has one.
# Its call is made only if the term is new.
Find: TypeAlias = Callable[
    [Term | None, Callable[[], Canonical]], tuple[Program, Mapping[str, int], Sequence[int]]
]
_NOTHING: Mapping[int, Node] = MappingProxyType({})
_ONCE: Sequence[Mapping[str, int]] = (MappingProxyType({}),)


class _Piece(NamedTuple):
    """A program, the values of its variables in each of its runs, and the slots of its buffers.

    new: the slots that it is the first to fill.
    """

    program: Program
    values: Sequence[Mapping[str, int]]
    slots: tuple[int, ...]
    new: tuple[int, ...]

    def on(self, instead: Mapping[int, int]) -> _Piece:
        """The piece with other slots in place of some."""
        slots = tuple([instead.get(slot, slot) for slot in self.slots])
        return self._replace(slots=slots, new=tuple([at for at in self.new if at not in instead]))


_Form: TypeAlias = tuple[str, DType, Shape]  # a buffer's device, dtype and shape


class Pieced:
    """The programs of the pieces, in order; the last ones make all in-place writes.

    forms: of the slots that pieces fill. final: there are no faster programs for its graph.

    There may be thousands of pieces, which are kept: so they refer to no node, of which the garbage
    collector would find a whole graph, and are kept in columns, which it need not look through.
    """

    def __init__(
        self, pieces: Sequence[_Piece], forms: Mapping[int, _Form], final: bool = False
    ) -> None:
        self.forms, self.final = forms, final
        latest = {slot: number for number, piece in enumerate(pieces) for slot in piece.slots}
        new = itertools.chain.from_iterable(piece.new for piece in pieces)
        over = grouped((latest[slot], slot) for slot in new)  # slots that no later piece reads
        last = [tuple(over.get(number, ())) for number in range(len(pieces))]
        self._columns = (*zip(*pieces, strict=True), last)

    def run(self, buffers: Sequence[Buffer], given: Mapping[str, int]) -> None:
        """See `minigrad.device.Program`."""
        memory = dict(enumerate(buffers))
        for program, every, slots, new, over in zip(*self._columns, strict=True):
            for slot in new:
                device, dtype, shape = self.forms[slot]
                now = [evaluate(n, given) for n in shape] if given else shape
                memory[slot] = Buffer(device, dtype, numel(now))
            own = [memory[slot] for slot in slots]
            for values in every:
                program.run(own, {**given, **values} if given else values)
            for slot in over:
                del memory[slot]


def in_pieces(call: Canonical, find: Find) -> Pieced | None:
    """A call in pieces, whose programs `find` finds; None if there is only one piece."""
    made = _Pieces(call.graph(), len(call.inputs), find)
    cut = pieces(made.roots, made.free)
    if len(cut) < 2:
        return None
    writes = [piece for piece in cut if not piece.slots]
    for piece in cut[: len(cut) - len(writes)]:
        made.store(dict(zip(piece.slots, piece.nodes, strict=True)), piece.term())
    made.rest()  # what is left comes by itself, so that a cut has an end
    for piece in writes:
        made.add(piece.nodes, term=piece.term())
    return made.done()


def in_stages(graph: Graph, inputs: int, find: Find, final: bool) -> Pieced:
    """A graph with LOOPs: what these read, their steps, and the rest. `find` finds the programs.

    inputs: the number of slots that exist before a call. final: no program is padded or in pieces.
    """
    made = _Pieces(graph, inputs, find)
    for needs, loops in stages_of(made.roots):
        now = [node for node in dict.fromkeys(needs) if node.op is not BUFFER]
        made.store({next(made.free): node for node in now if made.value_of(node) is node})
        for loop, results in loops.items():
            made.run(loop, results)
    made.rest(made.writes)
    return made.done(final)


def program_of(general: General, compile: Callable[[Graph], Program]) -> Program:
    """The program of a general graph, of all of its parts."""
    graph, views = general.graph, general.parts.views
    if not views:
        return _padded(compile(graph), general.reads, general.writes)
    pieces: list[_Piece] = []
    forms: dict[int, _Form] = {}
    for numbers in general.parts.numbers:
        roots = [graph.roots[number] for number in numbers]
        outputs = [graph.outputs[number] for number in numbers]
        read = [node for node in topological(roots) if node.op is BUFFER]
        slots = [*dict.fromkeys([*(node.arg for node in read), *outputs])]
        place = {slot: number for number, slot in enumerate(slots)}
        by = {node: buffer(place[node.arg], node.dtype, node.shape, node.device) for node in read}
        part = replace(
            graph, roots=tuple(replaced(roots, by)),
            outputs=tuple([place[slot] for slot in outputs]), slots=len(slots),
        )  # fmt: skip
        program = _padded(
            compile(part),
            {place[node.arg]: node.shape for node in read if node.arg in general.reads},
            {place[slot]: general.writes[slot] for slot in outputs if slot in general.writes},
        )
        own = tuple([views.get(slot, slot) for slot in slots])
        new = [slot for slot in outputs if slot >= general.parts.first]
        pieces.append(_Piece(program, _ONCE, own, tuple(new)))
        results = zip(outputs, roots, strict=True)
        forms |= {slot: (one.device, one.dtype, one.shape) for slot, one in results if slot in new}
    return Pieced(pieces, forms)


def _padded(program: Program, reads: Mapping[int, Shape], writes: Mapping[int, Shape]) -> Program:
    return Padded(program, reads, writes) if reads or writes else program


class _Pieces:
    """Collects the pieces of a graph.

    roots: of the graph; `writes`, those that are stored in inputs, are ASSIGNs. free: new slots.
    """

    def __init__(self, graph: Graph, inputs: int, find: Find) -> None:
        self._find, self._outputs, self._first = find, graph.outputs, graph.slots
        self.free, self._is_general = itertools.count(graph.slots), bool(graph.variables)
        self._pieces: list[_Piece] = []
        self._forms: dict[int, _Form] = {}
        self._same: dict[_Form, _Form] = {}  # equal ones are one object
        self._slots: dict[Node, int] = {}  # what is stored by now
        self._instead: dict[int, int] = {}  # a slot with the value of a root → the root's
        self._results: dict[Node, Node] = {}  # RESULTs of loops → BUFFERs of slots, or their parts
        self.roots = [
            root if slot >= inputs or root.op is ASSIGN
            else assign(buffer(slot, root.dtype, root.shape, root.device), root)
            for root, slot in zip(graph.roots, graph.outputs, strict=True)
        ]  # fmt: skip
        self.writes = [root for root in self.roots if root.op is ASSIGN]

    def value_of(self, node: Node) -> Node:
        """Where a node is in memory, or else the node itself."""
        slot = self._slots.get(node)
        if slot is None:
            return self._results.get(node, node)
        return buffer(slot, node.dtype, node.shape, node.device)

    def store(self, new: Mapping[int, Node], term: Term | None = None) -> None:
        """Compute nodes that are not in memory, into new slots."""
        self.add([*new.values()], [*new], new, term=term)
        for slot, node in new.items():
            self._slots[node] = slot

    def run(self, loop: Node, results: Sequence[Node]) -> None:
        """Run a LOOP, whose sources are in memory. results: its RESULTs that are wanted."""
        new: dict[int, Node] = {}

        def memory(like: Node, rows: int) -> Node:
            slot = next(self.free)
            new[slot] = buffer(slot, like.dtype, (rows, *like.shape), like.device)
            return new[slot]

        sources = {one: self.value_of(one) for one in read_of(loop)}
        steps = StepsInMemory(loop, sources, results, memory)
        self.add(steps.begin, new=new)
        self.add(steps.step, every=[*steps.values()])
        self._results.update(steps.results)

    def rest(self, writes: Sequence[Node] = ()) -> None:
        """Compute the roots that are not in memory, together with these writes."""
        left: dict[int, Node] = {}  # roots by slot
        for root, slot in zip(self.roots, self._outputs, strict=True):
            known = self.value_of(root)
            if known.op is BUFFER and known.arg >= self._first and known.arg not in self._instead:
                self._instead[known.arg] = slot
            elif root.op is not ASSIGN:
                left[slot] = root
        self.add([*left.values(), *writes], [*left])

    def done(self, final: bool = False) -> Pieced:
        """All pieces."""
        instead = self._instead
        return Pieced([
            one if instead.keys().isdisjoint((*one.slots, *one.new)) else one.on(instead)
            for one in self._pieces
        ], self._forms, final)  # fmt: skip

    def add(
        self, roots: Sequence[Node], slots: Sequence[int] = (), new: Mapping[int, Node] = _NOTHING,
        every: Sequence[Mapping[str, int]] = _ONCE, term: Term | None = None,
    ) -> None:  # fmt: skip
        """Add a piece. slots: where the roots that write nowhere are stored."""
        if not roots:
            return
        program, values, inputs = self._find(term, partial(self._call, roots))
        runs = [{**values, **own} for own in every] if values else every
        self._pieces.append(_Piece(program, runs, (*inputs, *slots), tuple(new)))
        for slot, node in new.items():
            form = node.device, node.dtype, (numel(node.shape),)
            self._forms[slot] = self._same.setdefault(form, form)

    def _call(self, roots: Sequence[Node]) -> Canonical:
        """The canonical graph of a piece."""
        here = in_order(roots, lambda node: () if self.value_of(node) is not node else node.src)
        known = {node: value for node in here if (value := self.value_of(node)) is not node}
        call = canonicalize(replaced(roots, known))
        if self._is_general:
            free = {atom.name for cell in call.cells if isinstance(cell, Affine)
                    for atom in variables(cell)}  # fmt: skip
            call = call._replace(values=dict.fromkeys(free, 0) | call.values)
        return call
