"""A program that runs as several programs.

Of its graph's pieces (`graph/pieces.py`), or of its stages: before and after loops and cuts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from minigrad.device import Buffer, Program
from minigrad.dtype import DType
from minigrad.graph.build import assign, buffer
from minigrad.graph.canonical import Canonical, Graph, canonicalize
from minigrad.graph.cuts import slot_of
from minigrad.graph.general import General, laid_out
from minigrad.graph.loop import StepsInMemory, read_of, stages_of
from minigrad.graph.node import ASSIGN, BUFFER, Node, Shape, grouped, topological
from minigrad.graph.pieces import Term, pieces
from minigrad.graph.rewrite import replaced
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import Affine
from minigrad.graph.variable import evaluate, with_room
from minigrad.padded import Padded

# A piece's program, the values of its own variables, and its inputs.
Ready: TypeAlias = tuple[Program, Mapping[str, int], Sequence[int]]
# The same by its term, if it has one. Its call is made only if the term is new.
Find: TypeAlias = Callable[[Term | None, Callable[[], Canonical]], Ready]
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


def in_stages(graph: Graph, inputs: int, find: Find, final: bool, cut: bool = False) -> Pieced:
    """A graph with LOOPs: what these read, their steps, and the rest. `find` finds the programs.

    inputs: the number of slots that exist before a call. final: no program is padded or in pieces.
    cut: it has cuts instead (`graph/cuts.py`).
    """
    made = _Pieces(graph, inputs, find)
    for needs, first in stages_of(made.roots, made.writes if cut else ()):
        now = [node for node in dict.fromkeys(needs) if node.op is not BUFFER]
        made.store({next(made.free): node for node in now if made.value_of(node) is node})
        for node, results in first.items():
            if cut:
                made.view(node)
            else:
                made.run(node, results)
    made.rest(made.writes)
    return made.done(final)


def program_of(general: General, inputs: int, compile: Callable[[Graph], Program]) -> Program:
    """The program of a general graph, of all of its stages. inputs: see `in_stages`."""

    def padded(graph: Graph) -> Program:
        reads, writes = laid_out(graph)
        program = compile(graph)
        return Padded(program, reads, writes) if reads or writes else program

    def find(_: Any, make: Callable[[], Canonical]) -> Ready:
        call = make()
        return padded(call.graph()), {}, call.inputs

    graph = general.graph
    return in_stages(graph, inputs, find, final=False, cut=True) if general.cut else padded(graph)


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
        # RESULTs of loops, and cuts → BUFFERs of slots, or their parts
        self._results: dict[Node, Node] = {}
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

    def view(self, cut: Node) -> None:
        """Read what is stored with the shape of a cut (see `Cuts.reshaped`)."""
        slot = slot_of(self.value_of(cut.src[0]).arg)
        self._results[cut] = buffer((slot, cut.shape), cut.dtype, cut.shape, cut.device)

    def rest(self, writes: Sequence[Node] = ()) -> None:
        """Compute the roots that are not in memory, together with these writes."""
        left: dict[int, Node] = {}  # roots by slot
        for root, slot in zip(self.roots, self._outputs, strict=True):
            known = self.value_of(root)
            is_stored = known.op is BUFFER and isinstance(known.arg, int)
            if is_stored and known.arg >= self._first and known.arg not in self._instead:
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
        self._pieces.append(_Piece(program, runs, (*map(slot_of, inputs), *slots), tuple(new)))
        for slot, node in new.items():
            form = node.device, node.dtype, tuple(map(with_room, node.shape))
            self._forms[slot] = self._same.setdefault(form, form)

    def _call(self, roots: Sequence[Node]) -> Canonical:
        """The canonical graph of a piece."""
        here = topological(roots, (), lambda x: () if self.value_of(x) is not x else x.src)
        known = {node: value for node in here if (value := self.value_of(node)) is not node}
        call = canonicalize(replaced(roots, known))
        if self._is_general:
            free = {atom.name for cell in call.cells if isinstance(cell, Affine)
                    for atom in variables(cell)}  # fmt: skip
            call = call._replace(values=dict.fromkeys(free, 0) | call.values)
        return call
