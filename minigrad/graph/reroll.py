"""Python loops whose steps depend on each other become LOOP nodes: `h = cell(x, h)`, many times.

Such a loop leaves a chain of copies: nodes that were created in the same order, step by step. One
step is described once (`graph/loop.py`), so loops of any length share one program. Values that
other code wants from each step become rows of an array.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import islice
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

from minigrad.errors import ScanError
from minigrad.graph.autobatch import (
    LEAVES,
    MANY,
    is_single,
    nbytes,
    parts,
    rows_of,
    together,
    without_leaves,
)
from minigrad.graph.axes import row_of
from minigrad.graph.loop import Looped, Step
from minigrad.graph.node import Node, Op, picked, topological
from minigrad.graph.rewrite import replaced
from minigrad.graph.sharding import meshes
from minigrad.graph.template import Derived
from minigrad.graph.vmap import stand_in
from minigrad.graph.writes import writes_as_one

LEAST_NODES = 256  # of a loop: fewer are faster as they are, in one program
MOST_NODES = 1024  # of a step
_NOT_LEAVES = frozenset(Op) - LEAVES
MOST_BYTES = (1 << 14) - 1  # of an array that differs between steps: larger are layers' weights


def with_loops(
    roots: Sequence[Node], order: Sequence[Node] | None = None, kept: Set[Node] = frozenset(),
    copied: bool = True,
) -> tuple[list[Node], Sequence[Node]]:  # fmt: skip
    """The roots with copies of one computation batched, or as a LOOP; and `topological` of these.

    order: of the given roots, if known. kept: nodes that something else depends on, which stay
    apart. copied: what was made of a graph of this form may be copied; then `autobatch` does not
    know the rows of copies. On a mesh, where each node has its layout, nothing is changed.
    """
    given = list(roots)
    on_mesh = any(root.device in meshes for root in given)
    before = given if on_mesh else [made_without_copies(root, kept) for root in given]
    if order is None or before != given:
        order = topological(before)
    if on_mesh:
        return given, order
    form = None
    if copied and len(order) in _changed:
        form = _derived.form(order, before, filter(kept.__contains__, order))
    made = _derived.found(form, order)
    if made is None:
        made = _with_loops(before, order, kept)
        if copied and made != before:
            _changed.add(len(order))
            if form is not None:
                _derived.keep(form, order, made)
    for root, less in zip(given, made, strict=True):
        remember(root, less, kept)
    return made, order if made == before else topological(made)


_derived = Derived()  # what `_with_loops` makes
_changed: set[int] = set()  # numbers of nodes of graphs that it changed


def _with_loops(roots: list[Node], order: Sequence[Node], kept: Set[Node]) -> list[Node]:
    made = writes_as_one(roots, order, kept)
    if made != roots:
        order = topological(made)
    is_large = len(order) >= LEAST_NODES
    made, order = together(made, order, kept)
    loops = reroll(made, order, kept) if is_large else made
    return loops if loops == made else together(loops, topological(loops), kept)[0]


# A root → what was made of it, and the ages of what stayed apart: after the gradient of a loss, its
# value is requested. (Not the nodes, of which the root may be one: it would keep itself alive.)
_less: WeakKeyDictionary[Node, tuple[Node, Set[int]]] = WeakKeyDictionary()


def remember(root: Node, less: Node, kept: Set[Node]) -> None:
    """Let `made_without_copies` find what was made of a root while some nodes stayed apart."""
    if less is not root:
        _less[root] = less, frozenset([node.age for node in kept])


def made_without_copies(root: Node, kept: Iterable[Node]) -> Node:
    """What `with_loops` has made of a root before, or else the root itself."""
    known = _less.get(root)
    if known is None:
        return root
    less, apart = known
    # The root cannot need nodes that are younger than it.
    return less if all(node.age in apart or node.age > root.age for node in kept) else root


def reroll(
    roots: Sequence[Node], order: Sequence[Node], kept: Set[Node] = frozenset()
) -> list[Node]:
    """The roots with the longest loop, if there is one, as a LOOP.

    It is searched for on the device with most nodes. order: `topological(roots)`. kept: nodes that
    something else depends on, which stay apart.
    """
    nodes = picked(order, _NOT_LEAVES)
    if len({node.device for node in nodes}) > 1:
        ((device, _),) = Counter(node.device for node in nodes).most_common(1)
        nodes = [node for node in nodes if node.device == device]
    nodes.sort(key=attrgetter("age"))
    if not any(_periods([node.op for node in nodes])):  # most graphs end here
        return list(roots)
    if sum(1 for _ in islice(without_leaves(order), LEAST_NODES)) < LEAST_NODES:
        return list(roots)
    for start, period, length in _periods(_signatures(nodes)):
        # steps with weights of their own are layers
        third = range(start + 2 * period, start + 3 * period)
        if any(_has_other_weights(nodes[at], nodes[at + period]) for at in third):
            continue
        try:
            by = _Chain(nodes, start, period, length).as_loop(roots, order, kept)
        except (_NotALoop, ScanError):
            continue
        return replaced(roots, by)
    return list(roots)


def _has_other_weights(node: Node, later: Node) -> bool:
    """Whether the node of the next step reads another large array than this one."""
    return any(
        one is not other and one.op is Op.BUFFER and nbytes(one) > MOST_BYTES
        for one, other in zip(node.src, later.src, strict=False)
    )


class _NotALoop(Exception):
    """Steps do not follow from one another in the same way."""


def _signatures(nodes: Sequence[Node]) -> list[int]:
    """Numbers of nodes, equal if operation, dtype, shape and argument are."""
    numbers: dict[Any, int] = {}
    shrink = Op.SHRINK
    keys = [(n.op, n.dtype, n.shape, None if n.op is shrink else n.arg) for n in nodes]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _periods(signs: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
    """Where a sequence begins to repeat itself, the period, and the length of the repetition.

    That must be most of the sequence, and so contains its middle.
    """
    middle = len(signs) // 2
    for period in range(2, min(len(signs) // MANY, MOST_NODES)):
        if signs[middle] == signs[middle - period]:
            first = last = middle
            while first > period and signs[first - 1] == signs[first - 1 - period]:
                first -= 1
            while last < len(signs) and signs[last] == signs[last - period]:
                last += 1
            length = last - first + period
            if length > MANY * period and length >= max(LEAST_NODES, len(signs) // 2):
                yield first - period, period, length


class _Chain:
    """Steps of equally many nodes, one after the other. `at[t][p]`: node p of step t."""

    def __init__(self, nodes: Sequence[Node], start: int, period: int, length: int) -> None:
        number = {node: place for place, node in enumerate(nodes)}
        phase = _phase(nodes, number, start, period)
        start, count = start + phase, (length - phase) // period
        steps = range(start, start + count * period, period)
        self.at = [nodes[first : first + period] for first in steps]
        self.inside = {one: divmod(number[one] - start, period) for step in self.at for one in step}
        self.carried: dict[int, Node] = {}  # place → its value before the first step
        self.elements: dict[Node, Node] = {}  # a varying source of the second step → all rows
        self.same: set[Node] = set()

    def as_loop(
        self, roots: Sequence[Node], order: Sequence[Node], kept: Set[Node]
    ) -> dict[Node, Node]:
        """Replacements for the nodes that others need; raises _NotALoop or ScanError if it is none.

        The second step is taken as the description of all: the first one reads initial values
        where the others read values of the step before.
        """
        if any(node in kept or is_single(node) for node in self.inside):
            raise _NotALoop
        for nodes in zip(*self.at, strict=True):
            self._classify_sources(nodes, kept)
        if not self.carried:
            raise _NotALoop
        # one step, of placeholders for carried values and for rows
        second = self.at[1]
        stand = {self.at[0][place]: stand_in(second[place]) for place in self.carried}
        stand |= {one: stand_in(one) for one in self.elements}
        by = {**stand, **{one: one for one in self.same}}
        wanted = self._wanted(roots, order)
        made = replaced([second[place] for place in [*self.carried, *wanted]], by)
        here = list(stand.values())
        step = Step(
            tuple(here[: len(self.carried)]), tuple(here[len(self.carried) :]),
            tuple(made[: len(self.carried)]), tuple(made[len(self.carried) :]),
        )  # fmt: skip
        count = len(self.at)
        looped = Looped(step, list(self.carried.values()), list(self.elements.values()), count)
        # what others need: rows of the stacked values, and last values of carries
        found: dict[Node, Node] = {}
        for place, whole in zip(wanted, looped.outs, strict=True):
            found |= {self.at[number][place]: row_of(whole, number) for number in wanted[place]}
        for place, last in zip(self.carried, looped.last, strict=True):
            found.setdefault(self.at[-1][place], last)
        return found

    def _classify_sources(self, nodes: tuple[Node, ...], kept: Set[Node]) -> None:
        """Classify the sources of the nodes at one place of all steps."""
        one = nodes[1]
        # parts of one array, such as x[0], x[1] …: rows, whose offsets differ
        if one.op is Op.SHRINK and any(node.arg != one.arg for node in nodes):
            (source,) = nodes[0].src
            if source in self.inside or any(node.src[0] is not source for node in nodes):
                raise _NotALoop
            self.elements[one] = parts(source, False, one.shape, [node.arg for node in nodes])
            return
        if any(len(node.src) != len(one.src) for node in nodes):
            raise _NotALoop
        for sources in zip(*(node.src for node in nodes), strict=True):
            self._classify(sources, kept)

    def _classify(self, sources: tuple[Node, ...], kept: Set[Node]) -> None:
        """Classify a source: of the same step, the one before, the same for all, or varying.

        sources: what the node at one place of each step reads.
        """
        origins = [self.inside.get(source) for source in sources]  # (step, place), or None: outside
        if origins[1] is None:
            if any(origins):
                raise _NotALoop
            self._from_outside(sources, kept)
            return
        step, place = origins[1]
        if origins[1:] != [(number + step - 1, place) for number in range(1, len(sources))]:
            raise _NotALoop  # not as far back in all steps
        if step == 1:  # of the same step
            if origins[0] != (0, place):
                raise _NotALoop
            return
        # of the step before; the first step reads an initial value from outside
        first, like = sources[0], sources[1]
        alike = origins[0] is None and (first.shape, first.dtype) == (like.shape, like.dtype)
        if not alike or self.carried.setdefault(place, first) is not first:
            raise _NotALoop

    def _from_outside(self, sources: tuple[Node, ...], kept: Set[Node]) -> None:
        """Record a source from outside of the loop."""
        one = sources[1]
        same = sources.count(one) == len(sources)
        if one in (self.elements if same else self.same):
            raise _NotALoop  # h·i + 1, where i is 1: the two cannot be told apart
        if same:
            self.same.add(one)
            return
        if one.op is Op.BUFFER and (
            one in kept or nbytes(one) > MOST_BYTES or len(set(sources)) < len(sources)
        ):  # weights of layers
            raise _NotALoop
        rows = rows_of(sources, kept)
        if rows is None or self.elements.setdefault(one, rows) is not rows:
            raise _NotALoop

    def _wanted(self, roots: Sequence[Node], order: Sequence[Node]) -> dict[int, set[int]]:
        """The places that nodes outside of the loop need, and of which steps."""
        found: dict[int, set[int]] = {}
        outer = (source for node in order if node not in self.inside for source in node.src)
        for node in (*roots, *outer):
            known = self.inside.get(node)
            if known is not None:
                number, place = known
                found.setdefault(place, set()).add(number)
        last = {len(self.at) - 1}  # the last value of a carry is there anyway
        return {p: some for p, some in found.items() if some != last or p not in self.carried}


def _phase(nodes: Sequence[Node], number: dict[Node, int], start: int, period: int) -> int:
    """The node with which a step begins, such that the least data passes from one to the next.

    (A state itself, not its expanded form that a product reads, which repeats it for all columns.)
    """
    # of the second step: (position of a node, position of a source of it)
    edges = [
        (user, number[source] - start)
        for user in range(period, 2 * period)
        for source in nodes[start + user].src
        if number.get(source, -1) >= start
    ]

    def carried(phase: int) -> tuple[int, int]:
        """Bytes and number of the values that cross the border if steps begin at `phase`."""
        over = {j % period for i, j in edges if (i - phase) // period != (j - phase) // period}
        return sum(nbytes(nodes[start + period + place]) for place in over), len(over)

    return min(range(period), key=carried)
