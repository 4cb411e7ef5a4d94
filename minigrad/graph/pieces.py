"""Dynamic graphs: a graph whose structure does not repeat is cut into pieces that do.

If Python decides in each step what is computed (a random choice for each word, trees of different
shapes, a growing chain), no two graphs are equal, but they consist of the same parts. A value is
stored where a kernel would store it or where several others read it, regardless of what is before
and behind. A piece is one stored value, with others that are computed from it element by element.
So pieces repeat, and those that were compiled before are found again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from minigrad.graph.interned import Bounded
from minigrad.graph.node import (
    ASSIGN,
    BUFFER,
    CONST,
    Node,
    Op,
    beneath,
    grouped,
    number_key,
    picked,
    topological,
)
from minigrad.graph.operations import ELEMENTWISE, MOVEMENT, REDUCTIONS, REPEATED
from minigrad.graph.shapes import numel

# Operations in a chain within a piece, at most: with more, there are more kinds of pieces. And of a
# piece that writes: an optimizer's update should store nothing else.
DEEPEST, OF_WRITES = 6, 32
ADD, MUL, CAT = Op.ADD, Op.MUL, Op.CAT  # looked up once: see `graph/node.py`
CHEAP = 4  # cost up to which each reader computes a value again, if it is larger than its sources
_LEAVES = frozenset({BUFFER, Op.CONST, Op.IOTA, Op.VARIABLE})
_STEPS = frozenset({*REPEATED, Op.WHERE})  # they add a term to others, or a part
_READING = _STEPS | {CAT, MUL}  # see `_reads_memory`
_TERMS = ELEMENTWISE | {Op.PAD}
_SHOWN = MOVEMENT | {Op.CAST, Op.BITCAST, ASSIGN}  # each piece that reads one computes it itself
_JOINING = ELEMENTWISE | {Op.GATHER}  # these may be computed where they are read
_JOINED = ELEMENTWISE | REDUCTIONS  # with these, others may be computed
_WRITTEN = frozenset({ASSIGN, BUFFER})  # roots that are not computed into new memory
MOST_RESULTS = 8  # of a piece
# What is computed of the slots that are read, and these slots, each once: graphs with equal terms
# compute the same.
Term: TypeAlias = tuple[int, tuple[int, ...]]
MOST_TERMS = 1 << 16  # that are known by number; numbers go on when all are forgotten


class Piece(NamedTuple):
    """Nodes that one program computes, the slots that they are stored in, and their terms.

    Writes have no slots of their own.
    """

    nodes: list[Node]
    slots: list[int]
    terms: list[Term]

    def term(self) -> Term:
        """The term of all nodes together, in which their own slots come first."""
        return self.terms[0] if len(self.terms) == 1 else _joint(None, self.terms, self.slots)


def pieces(roots: Sequence[Node], free: Iterator[int]) -> list[Piece]:
    """The pieces of a graph, in order; each is computed from memory and from earlier ones.

    In-place writes come last. There is one piece, or none, if nothing is stored before the roots.
    free: new slots.
    """
    order = topological(roots)
    stored, first, groups = _ends(roots, order)
    plain = [root for root in roots if root.op not in _WRITTEN and root not in stored]
    found: list[Piece] = []
    at: dict[int, int] = {}  # slots → the numbers of their pieces
    terms = Terms()
    for node in itertools.chain((node for node in order if node in stored), dict.fromkeys(plain)):
        number, slots = terms.of(node)
        latest = max([at.get(slot, -1) for slot in slots], default=-1)
        if latest < 0 or not _joins(node, found[latest].nodes, first):
            latest = len(found)
            found.append(Piece([], [], []))
        slot = next(free)
        at[slot] = latest
        piece = found[latest]
        piece.nodes.append(node)
        piece.slots.append(slot)
        piece.terms.append((number, slots))
        terms.read(node, slot)
    return [*found, *(Piece(some, [], [terms.of(node) for node in some]) for some in groups)]


def _joins(node: Node, nodes: Sequence[Node], first: Set[Node]) -> bool:
    """Whether a node is computed with these, which are of the latest piece that it reads.

    It is computed element by element from what is computed so, or a sum. But no step of a longer
    sum joins, because there may be any number of these. first: with what such sums begin.
    """
    begin = nodes[0]
    alike = node.op in ELEMENTWISE and begin.op in _JOINED and len(nodes) < MOST_RESULTS
    alike = alike and numel(node.shape) == numel(begin.shape)
    return alike and (node.op is MUL or not _is_step(node)) and first.isdisjoint(node.src)


def _ends(
    roots: Sequence[Node], order: Sequence[Node]
) -> tuple[set[Node], set[Node], list[list[Node]]]:
    """Values that are stored for others; those with which sums begin (see `_recomputed`); writes.

    Writes are grouped if they share computations.
    """
    again, first = _recomputed(order)
    apart = first | {
        x for node in picked(order, _READING) if _reads_memory(node, again)
        for x in _shown_by(node.src)
        if x not in again or x.op is Op.CAST
    }  # fmt: skip
    leads = {root: root for root in roots if root.op is ASSIGN}
    # node → its readers, how far off
    piece = {root: {root: DEEPEST - OF_WRITES if root in leads else 0} for root in roots}
    stored: set[Node] = set()
    for node in reversed(order):
        if node.op in _LEAVES:
            continue
        reading = piece[node]
        if node not in leads and (node not in again or node in apart):
            joins = node.op in _JOINING and node not in apart and node not in reading
            joins = joins and max(reading.values()) < DEEPEST
            if joins and len(reading) > 1:
                joins = numel(node.shape) > 1 and reading.keys() <= leads.keys()
                heads = [_lead(one, leads) for one in reading] if joins else []
                leads.update((head, heads[0]) for head in heads)
            if joins:
                reading = {one: far + 1 for one, far in reading.items()}
            else:
                stored.add(node)
                reading = {node: 0}
        for source in node.src:
            known = piece.get(source)
            if known is None:
                piece[source] = reading.copy()
                continue
            for one, far in reading.items():
                if known.get(one, far) <= far:
                    known[one] = far
    return stored, first, _groups(leads, stored)


def _reads_memory(node: Node, again: Set[Node]) -> bool:
    """Whether a node's sources are stored, so that there is only one pattern.

    Those of a join, of steps of a sum or of something written part by part, and of products, which
    read them repeatedly.
    """
    op = node.op
    return op is CAT or _is_step(node) or (op is MUL and node in again)


def _is_step(node: Node) -> bool:
    """Whether a node adds a term to others, or a part to others that were written before."""
    return node.op in _STEPS and any(source.op is node.op for source in node.src)


def _shown_by(nodes: Iterable[Node]) -> Iterator[Node]:
    return (beneath(node, MOVEMENT) for node in nodes)


def _lead(write: Node, leads: Mapping[Node, Node]) -> Node:
    while leads[write] is not write:
        write = leads[write]
    return write


def _groups(leads: Mapping[Node, Node], stored: Set[Node]) -> list[list[Node]]:
    """Writes by their lead; all together if one of them reads what another one writes."""
    found = grouped((_lead(write, leads), write) for write in leads)
    written = {write.src[0].arg: lead for lead, writes in found.items() for write in writes}
    for lead, writes in found.items():
        for node in topological(writes, stored):
            if node.op is BUFFER and written.get(node.arg, lead) is not lead:
                return [[*leads]]
    return list(found.values())


def _recomputed(order: Sequence[Node]) -> tuple[set[Node], set[Node]]:
    """Values that each piece that reads them computes again, which costs less than storing them.

    Also values that could be among them, but are stored: a sum of products, or of parts in zeros,
    begins with one. Otherwise its second step would be of as many kinds as there are pairs.
    """
    inner = _shown_by(node.src[0] for node in order if node.op in REDUCTIONS)
    factors = {node for node in inner if node.op is MUL}
    count = cache(numel)  # there are few shapes
    found: set[Node] = set()
    first: set[Node] = set()
    size: dict[Node, Any] = {}  # elements of memory from which it is computed
    for node in order:
        op, own = node.op, count(node.shape)
        if op is ADD and found.issuperset(node.src) and all(x.op in _TERMS for x in node.src):
            begin = node.src[0]
            found.discard(begin)
            first.add(begin)
            size[begin] = own
        shown, size[node] = op in _SHOWN, own
        if shown or op in ELEMENTWISE:
            read = sum([size[source] for source in node.src])
            grows = own > 2 * read and not shown and op.facts.cost <= CHEAP
            if shown or (grows and not _is_step(node)) or node in factors:
                found.add(node)
                size[node] = min(read, own) if shown else read
        elif op in _LEAVES and op is not BUFFER:
            size[node] = 0
    return found, first


_numbers = Bounded[Any, int](MOST_TERMS)
_next = itertools.count()


class Terms:
    """The terms of a graph's nodes: a piece's key, of which each node is looked at once.

    A canonical graph describes all nodes of a piece; a term only a node and its sources' numbers.
    """

    def __init__(self) -> None:
        self._known: dict[Node, Term] = {}

    def of(self, root: Node) -> Term:
        """The term of a node."""
        known, path = self._known, [root]
        while path:
            node = path[-1]
            new = [source for source in node.src if source not in known]
            path += new
            if not new:
                if node not in known:
                    known[node] = self._new(node)
                path.pop()
        return known[root]

    def read(self, node: Node, slot: int) -> None:
        """From now on a node is read from memory."""
        self._known[node] = _number((node.dtype, node.shape, node.device)), (slot,)

    def _new(self, node: Node) -> Term:
        arg = node.arg
        if node.op is BUFFER:
            return _number((node.dtype, node.shape, node.device)), (arg,)
        if node.op is CONST:
            arg = number_key(arg, node.dtype)
        what = node.op, node.dtype, node.shape, arg, node.device
        if len(node.src) == 1:
            number, slots = self._known[node.src[0]]
            return _number((what, number)), slots
        return _joint(what, [self._known[source] for source in node.src])


def _joint(what: Any, terms: Sequence[Term], first: Sequence[int] = ()) -> Term:
    """The term of something made of several; the first slots come first."""
    at = {slot: place for place, slot in enumerate(first)}  # slots → their places among all
    places = [at.setdefault(slot, len(at)) for _, slots in terms for slot in slots]
    return _number((what, *places, None, *[number for number, _ in terms])), tuple(at)


def _number(what: Any) -> int:
    number = _numbers.get(what)
    if number is None:
        number = _numbers[what] = next(_next)
    return number
