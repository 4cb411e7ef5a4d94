"""From one graph of whole arrays to the graph that each device of a mesh runs on its parts.

Each class of operations has a rule (`partition_rules.py`); operations without one need whole
operands. Three walks over the graph decide the layouts (`LayoutPlan`):

    forward     the layout of each result if nothing is exchanged; a sum over a divided dimension
                is *partial*
    backward    where sums are best completed, and the layout that all readers of a value want
    forward     the same as the first, with these wishes known

The fourth walk (`Emitter`) creates the local nodes, on demand, from the roots, and converts values
that are wanted in another layout (`graph/conversions.py`). All devices get the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minigrad.graph import build
from minigrad.graph.buckets import BUCKET, in_buckets
from minigrad.graph.conversions import Converter, Sent
from minigrad.graph.node import Node, Op, Shape, topological
from minigrad.graph.operations import ELEMENTWISE, MOVEMENT
from minigrad.graph.partition_rules import MADE_ANYWHERE, Choice, rule_of
from minigrad.graph.rewrite import remade
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import NONE, Digits, Dims, Layout, axes_of, joined, local_shape, whole
from minigrad.settings import flag, say

LEAVES = MADE_ANYWHERE | {Op.BUFFER}
# A conversion of these is made on their source instead, which may be smaller.
PULLED = frozenset({Op.EXPAND, Op.RESHAPE, Op.PERMUTE, Op.MARK})
# These pass on `LayoutPlan.stored`.
HANDED_ON = frozenset({Op.EXPAND, Op.RESHAPE, Op.PERMUTE, Op.CAST})
CHEAP = ELEMENTWISE | MADE_ANYWHERE | MOVEMENT | {Op.MARK, Op.GATHER, Op.CONTIGUOUS}


@dataclass(frozen=True)
class Partitioned:
    """What each device runs: roots in local shapes, their layouts, and the exchanges."""

    roots: tuple[Node, ...]
    layouts: tuple[Layout, ...]
    exchanges: tuple[Sent, ...]


# --- the plan -------------------------------------------------------------------------------------


class LayoutPlan:
    """The layouts in which each node of a graph is computed, and kept for its readers.

    layout_of: by a BUFFER's `arg`; wanted: of the roots, None if any will do.
    """

    def __init__(
        self, roots: Sequence[Node], layout_of: Callable[[Any], Layout | None],
        wanted: Sequence[Layout | None],
    ) -> None:  # fmt: skip
        self.roots, self.wanted = roots, wanted
        self.order = topological(roots)
        self.leaves = leaves = {
            node: layout_of(node.arg) or whole(node.ndim)
            for node in self.order if node.op is Op.BUFFER
        }  # fmt: skip
        self.choices: dict[Node, Choice] = {}
        self.kept: dict[Node, Layout] = {}
        # the axes that only store a node, which is a leaf or made of one by movements
        self.stored: dict[Node, frozenset[str]] = {}
        # how many elements a conversion would move: those before an EXPAND
        self.weight: dict[Node, int] = {}
        self.depth: dict[Node, int] = {}
        for node in self.order:
            anywhere, pulled = node.op in MADE_ANYWHERE, node.op in PULLED
            size = 0 if anywhere else self.weight[node.src[0]] if pulled else numel(node.shape)
            self.weight[node] = size
            handed_on = self.stored[node.src[0]] if node.op in HANDED_ON else NONE
            self.stored[node] = leaves[node].stored if node in leaves else handed_on
            self.depth[node] = 1 + max((self.depth[source] for source in node.src), default=0)
        self.deepest = max(self.depth.values(), default=0)
        self._forward({}, frozenset())
        self._forward(*self._backward())

    def join(self, shape: Shape, parts: Sequence[tuple[Node, Dims]]) -> Dims:
        """The digits of several operands together; if two conflict, those of the heavier one.

        Digits that only store an operand come last.
        """
        found: list[Digits] = [()] * len(shape)
        used: set[str] = set()
        heavy = sorted(parts, key=lambda part: -self.weight[part[0]])
        for loose in (False, True):
            for node, dims in heavy:
                for at, digits in enumerate(dims):
                    for digit in digits:
                        if (digit.axis in self.stored[node]) is loose and digit.axis not in used:
                            found[at] = joined(shape[at], found[at], (digit,))
                            used.update(axes_of((found[at],)))
        return tuple(found)

    def is_gathered(self, node: Node, want: Layout) -> bool:
        """Whether a reader that wants this layout gathers a node from where it is stored."""
        return any(
            digit.axis in self.stored[node] and digit not in want.dims[at]
            for at, digits in enumerate(self.kept[node].dims) for digit in digits
        )  # fmt: skip

    def operands(self, node: Node, dims: Dims) -> list[Layout] | None:
        """The layouts of a node's operands for a result with these digits; None if impossible."""
        choice = self.choices[node]
        found = self._likes(node, dims)
        if found is None or not choice.made.partial.isdisjoint(axes_of(dims)):
            return None
        return [Layout(one, sums) for one, sums in zip(found, choice.partials, strict=True)]

    def _likes(self, node: Node, dims: Dims) -> list[Dims] | None:
        """The digits of a node's operands for a result with these digits."""
        inner = self.choices[node].inner
        apart = axes_of(inner).isdisjoint(axes_of(dims))
        return rule_of(node).backward(node, dims, inner) if apart else None

    def _forward(self, wishes: Mapping[Node, Dims], early: frozenset[Node]) -> None:
        for node in self.order:
            if node.op is Op.BUFFER:
                choice = Choice(Layout(self.leaves[node].dims), ())
            else:
                given = [self.kept[source] for source in node.src]
                choice = rule_of(node).forward(self, node, given)
            self.choices[node] = choice
            kept = Layout(choice.made.dims) if node in early else choice.made
            if node in wishes and node.op is not Op.BUFFER:
                kept = self.granted(node, kept, wishes[node], kept.partial)
            self.kept[node] = kept

    def granted(
        self, node: Node, kept: Layout, wish: Dims, refused: frozenset[str] = NONE
    ) -> Layout:
        """A layout with those digits of a wish that leave its own as they are."""
        used = axes_of(kept.dims) | refused
        dims = tuple(
            joined(extent, digits, (d for d in more if d.axis not in used))
            for extent, digits, more in zip(node.shape, kept.dims, wish, strict=True)
        )
        return Layout(dims, kept.partial - axes_of(dims))

    def _backward(self) -> tuple[dict[Node, Dims], frozenset[Node]]:
        """The digits that all readers of a node want, and the nodes where to complete sums."""
        asked: dict[Node, list[Dims]] = {}
        late: dict[Node, int] = {}  # elements exchanged if its readers complete a partial sum
        strict: set[Node] = set()
        met: set[Node] = set()  # partial sums to which others are added before they are exchanged
        for root, wanted in zip(self.roots, self.wanted, strict=True):
            strict.add(root)
            if wanted is not None:
                asked.setdefault(root, []).append(wanted.dims)
        wishes: dict[Node, Dims] = {}
        early: set[Node] = set()
        for node in reversed(self.order):
            made = self.choices[node].made
            dims = made.dims
            if node in asked:
                wish = self._common(asked[node])
                if any(wish):
                    wishes[node] = wish
                    dims = self.granted(node, made, wish).dims
            cost = 0
            if made.partial:
                size = numel(local_shape(node.shape, made.dims))
                after = late.get(node, 0)
                if node in strict or size < after:
                    early.add(node)
                    after = size
                cost = min(size, after)
            likes = self._likes(node, dims)
            if likes is None:  # it must be divided after it is computed
                likes = self._likes(node, made.dims)
            partials = self.choices[node].partials
            given = [self.choices[source].made.partial for source in node.src]
            several = sum(1 for one in given if one) > 1 or (node in met and node not in early)
            alone = not several and any(n > g for g, n in zip(given, partials, strict=True))
            for source, like in zip(node.src, likes or (), strict=False):
                asked.setdefault(source, []).append(like)
            for source, one, sums in zip(node.src, given, partials, strict=True):
                if one - sums or (one and alone):
                    strict.add(source)
                elif one:
                    late[source] = late.get(source, 0) + cost
                    if several:
                        met.add(source)
        return wishes, frozenset(early)

    def _common(self, asked: Sequence[Dims]) -> Dims:
        """The digits that all of these have."""
        first, *others = asked
        return tuple(
            tuple(digit for digit in digits if all(digit in other[at] for other in others))
            for at, digits in enumerate(first)
        )


# --- local nodes ----------------------------------------------------------------------------------

Wanted = tuple[Node, Layout]
Request = tuple[Node, Layout, int]  # with a number, if it is gathered several times
Emission = Generator[Wanted, Node, Node]
# A stored value is gathered again for a reader that comes later in the graph than the one before by
# more than this part of it: it is not kept from the forward to the backward pass.
KEPT_PART = 1 / 16
# Stored values are gathered in runs of up to this part of all, and up to a bucket's bytes: while
# one run is read, the next is gathered.
GATHERED_PART = 1 / 16


class Emitter(Converter):
    """Makes the local nodes of one device; `value` gives a node in a layout."""

    def __init__(self, plan: LayoutPlan, mesh: str, device: str) -> None:
        super().__init__(mesh, device)
        self.plan = plan
        self.made: dict[Request, Node] = {}
        self._times: dict[Wanted, list[int]] = {}  # depths of the readers for which it was gathered
        self._fed: set[Node] = set()  # nodes that read something gathered
        self._products: list[Node] = []  # the products among these
        stored = (node for node, layout in plan.leaves.items() if layout.stored)
        nbytes = sum(numel(node.shape) * node.dtype.itemsize for node in stored)
        self._most = min(int(nbytes * GATHERED_PART), BUCKET)
        self._room = 0  # bytes that may still be gathered together
        self._begun = 0  # how many products there were when the last run began
        self._gates: list[Node] = []

    def value(self, node: Node, want: Layout) -> Node:
        """A node's local part. (It has its own stack, because graphs are deeper than Python's.)"""
        stack: list[tuple[Request, Emission]] = [((node, want, 0), self._emit(node, want))]
        answer: Node | None = None
        while stack:
            request, work = stack[-1]
            self.reader = stack[-2][0][0] if len(stack) > 1 else request[0]
            try:
                asked = work.send(answer) if answer is not None else next(work)
            except StopIteration as end:
                answer = self.made[request] = end.value
                stack.pop()
                continue
            time = 0
            if self.plan.is_gathered(*asked):
                readers = (each[0][0] for each in reversed(stack))
                time = self._time(asked, next(r for r in readers if not self.plan.stored[r]))
            answer = self.made.get((*asked, time))
            if answer is None:
                stack.append(((*asked, time), self._emit(*asked)))
        assert answer is not None
        return answer

    def _time(self, asked: Wanted, reader: Node) -> int:
        """The number of the gathering that serves a reader, by its depth in the graph."""
        depth, known = self.plan.depth[reader], self._times.setdefault(asked, [])
        room = self.plan.deepest * KEPT_PART
        for number, other in enumerate(known):
            if abs(depth - other) <= room:
                return number
        known.append(depth)
        return len(known) - 1

    def _emit(self, node: Node, want: Layout) -> Emission:
        plan, kept, made = self.plan, self.plan.kept[node], self.plan.choices[node].made
        if node.op is Op.BUFFER and want == made:
            shape = local_shape(node.shape, made.dims)
            return build.buffer(node.arg, node.dtype, shape, self.device)
        if want == kept:
            free = plan.granted(node, whole(node.ndim), kept.dims, made.partial).dims
            dims = made.dims if plan.operands(node, free) is None else free
            value = yield from self._compute(node, dims)
            return self.convert(value, node.shape, Layout(dims, made.partial), kept)
        if not want.partial <= kept.partial:  # of a whole value, one device's term is all
            there = Layout(want.dims, want.partial & kept.partial)
            value = yield node, there
            return self.convert(value, node.shape, there, want)
        finer = want.partial == kept.partial and all(
            set(one) <= set(other) for one, other in zip(kept.dims, want.dims, strict=True)
        )
        direct = plan.operands(node, want.dims)
        if direct is not None and want.partial <= made.partial:
            if finer and want.partial == made.partial and node.op in CHEAP:
                if (node, kept, 0) not in self.made:
                    return (yield from self._compute(node, want.dims))
            elif node.op in PULLED and kept == made:
                value = yield node.src[0], Layout(direct[0].dims, want.partial)
                return rule_of(node).local(self, node, want.dims, (), [value])
        value = yield node, kept
        self.after = self._gate(node) if plan.is_gathered(node, want) else []
        value = self.convert(value, node.shape, kept, want)
        self.after = []
        return value

    def _gate(self, node: Node) -> list[Node]:
        """Nodes to compute before a stored value is gathered: all that come before the last run.

        So while that run is read, this one travels, and no more than the two are held.
        """
        nbytes = numel(node.shape) * node.dtype.itemsize
        if nbytes > self._room:
            self._gates = self._products[: self._begun][-1:]
            self._begun, self._room = len(self._products), self._most
        self._room -= nbytes
        return self._gates

    def _compute(self, node: Node, dims: Dims) -> Emission:
        needs = self.plan.operands(node, dims)
        assert needs is not None, node
        sources = []
        for source, need in zip(node.src, needs, strict=True):
            sources.append((yield source, need))
        value = rule_of(node).local(self, node, dims, self.plan.choices[node].inner, sources)
        if not self._fed.isdisjoint(node.src) or any(
            self.plan.is_gathered(*one) for one in zip(node.src, needs, strict=True)
        ):
            if node.op in (Op.SUM, Op.GATHER):
                self._products.append(value)
            elif not self.plan.stored[node]:
                self._fed.add(node)
        return value


# --- the pass -------------------------------------------------------------------------------------


def partition(plan: LayoutPlan, mesh: str, device: str) -> Partitioned:
    """The graph of one device. MINIGRAD_DEBUG=3 prints the exchanges."""
    emitter = Emitter(plan, mesh, device)
    pairs = zip(plan.roots, plan.wanted, strict=True)
    layouts = tuple(wanted or Layout(plan.kept[root].dims) for root, wanted in pairs)
    roots = [emitter.value(*pair) for pair in zip(plan.roots, layouts, strict=True)]
    new, sent = in_buckets(roots, emitter.sent)
    if flag("DEBUG") >= 3:
        for number, one in enumerate(sent):
            say(f"exchange {number} on {device}: {one}")
    return Partitioned(tuple(new), layouts, tuple(sent))


def without_barriers(roots: Sequence[Node]) -> list[Node]:
    """The roots without operations that only stop gradients.

    These are writes, and bits read as integers and back.
    """

    def value(node: Node, src: Sequence[Node]) -> Node:
        if node.op is Op.ASSIGN:
            return src[1]
        there = src[0] if node.op is Op.BITCAST else node
        back = there is not node and there.op is Op.BITCAST and there.src[0].dtype is node.dtype
        return there.src[0] if back else build.rebuild(node, src)

    return remade(roots, value)
