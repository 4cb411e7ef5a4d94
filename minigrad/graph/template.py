"""Templates: the nodes between some sources and results, to be made again on other sources.

Deriving nodes (a gradient, a loop that was recognized) takes several times as long as copying them.
So what was derived from one graph is copied for the next graph of the same form: a training step's
graphs are equal but for their memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Sequence
from operator import itemgetter
from typing import Any

from minigrad.graph.canonical import exact
from minigrad.graph.interned import Bounded
from minigrad.graph.node import (
    CHECK,
    Node,
    Op,
    depending,
    is_watched,
    make_all,
    picked,
    topological,
)
from minigrad.graph.operations import MOVEMENT
from minigrad.settings import thread

OWN = frozenset({Op.BUFFER, Op.ASSIGN})  # of one call only: memory, random draws
_OWN_HASH = frozenset({Op.CUSTOM, Op.COLLECTIVE})  # hash by identity
MOST_FORMS, MOST_ONCE = 32, 1 << 12  # templates, and hashes of forms that were seen once
MOST_NODES = 1 << 13  # larger graphs are mostly Python loops, of a new length each time
MOST_TRIES = 4  # graphs of these shapes whose forms were computed in vain: others will be, too


class Template:
    """The nodes between sources and results, sources before users.

    Each step has an op, dtype, shape, arg and device, and the positions of its sources among the
    values: sources, kept nodes, previous nodes. own: nodes that belong to one call only, so that
    there can be no template. used: it was used again.
    """

    used = False

    def __init__(self, sources: Sequence[Node], made: Sequence[Node | None]) -> None:
        results = [node for node in made if node is not None]
        order = topological(results, sources)
        self.own = [node for node in order if node.op in OWN]
        depends = depending(order, sources)
        inner = [node for node in order if node in depends and node.src]
        used = {*results, *(source for node in inner for source in node.src)}
        self.kept = [node for node in order if node in used and node not in depends]
        place = {node: at for at, node in enumerate([*sources, *self.kept, *inner])}
        views = {*sources}  # parts of a source are shared: a loop reads a weight in each step
        for node in inner:
            if node.op in MOVEMENT and node.src[0] in views:
                views.add(node)
        self.steps = [
            (n.op, n.dtype, n.shape, itemgetter(*[place[source] for source in n.src]),
             len(n.src) == 1, n.arg, n.device, n in views) for n in inner
        ]  # fmt: skip
        self.checks = [at for at, node in enumerate(inner) if node.op is CHECK]
        self.places = [None if node is None else place[node] for node in made]

    def made(self, sources: Sequence[Node], line: Any = None) -> list[Node | None]:
        """The results for other sources. line: the user's, for the messages of checks."""
        values, steps = [*sources, *self.kept], self.steps
        if self.checks and line is not None:
            steps = steps[:]
            for at in self.checks:
                *most, check, device, shared = steps[at]
                steps[at] = (*most, check.but(line=line), device, shared)
        make_all(steps, values)
        return [None if at is None else values[at] for at in self.places]


class Derived:
    """What was derived from graphs, as templates by their forms (see `exact`).

    Of a form seen once only the hash is kept: one that is new each time, as with other numbers in
    it, never comes again. With it, weak references to args whose hash is their identity: after
    their end, another may get that hash. Shapes that come for the first time (a batch of another
    size) may not come again either: their form, which takes 3 to 7 % of the time of a gradient, is
    computed from the second time on.
    """

    def __init__(self) -> None:
        self.templates = Bounded[Any, Template](MOST_FORMS)
        self.once = Bounded[int, list[weakref.ref[Any]]](MOST_ONCE)
        self._tries = Bounded[int, int](MOST_ONCE)  # by the hash of the shapes of a graph's nodes

    def form(
        self, order: Sequence[Node], marked: Collection[Node], others: Iterable[Node] = ()
    ) -> Any:
        """The form of a graph and of its marked nodes, of two kinds; None: it gets no template."""
        if len(order) > MOST_NODES or is_watched():
            return None
        shapes = hash(tuple([node.shape for node in order]))
        before = self._tries.get(shapes, 0)
        self._tries[shapes] = before + 1
        if not 1 <= before <= MOST_TRIES:
            return None
        return shapes, thread.key, len(marked), exact(order, (*marked, *others))

    def found(self, form: Any, order: Sequence[Node]) -> list[Any] | None:
        """What was derived from a graph of this form, for the nodes of another."""
        template = self.templates.get(form)
        if template is None:
            return None
        self._tries[form[0]] = 1
        return template.made(order)

    def keep(self, form: Any, order: Sequence[Node], made: Sequence[Node | None]) -> None:
        """Keep what was derived from a graph as a template, if its form was seen before."""
        number, own = hash(form), [node.arg for node in picked(order, _OWN_HASH)]
        if [link() for link in self.once.get(number, ())] != own or number not in self.once:
            self.once[number] = [weakref.ref(arg) for arg in own]
            return
        template = Template(order, made)
        if not template.own:
            self.templates[form] = template
