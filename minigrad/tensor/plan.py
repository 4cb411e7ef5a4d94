"""Plans: the roots of one program, and what happens to tensors after it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import chain
from threading import get_ident
from types import MappingProxyType
from typing import NamedTuple

from minigrad import program
from minigrad.device import poisoned
from minigrad.graph.autobatch import MANY, as_rows, made_as_rows, unstacked
from minigrad.graph.build import copy_of
from minigrad.graph.interned import Interned
from minigrad.graph.node import (
    ASSIGN,
    BUFFER,
    CONST,
    Node,
    Op,
    ages,
    beneath,
    depending,
    picked,
    reading,
    topological,
)
from minigrad.graph.operations import MOVEMENT
from minigrad.graph.reroll import made_without_copies, with_loops
from minigrad.graph.rewrite import replaced
from minigrad.graph.shapes import numel
from minigrad.graph.vmap import Given
from minigrad.program import recording, timeline
from minigrad.tensor import history, views
from minigrad.tensor.access import Touched, under_way
from minigrad.tensor.history import has_history, see_through
from minigrad.tensor.live_tensors import (
    Holder,
    clock,
    held_among,
    holders,
    lazy_holders,
    lazy_links,
    lazy_since,
    leaves_among,
    not_captured,
    point,
    wants_gradient,
)
from minigrad.tensor.modes import modes
from minigrad.tensor.observed import capturing

_BUFFERS, _MEMORY = frozenset({BUFFER}), frozenset({BUFFER, ASSIGN})
_STORED = frozenset({*_MEMORY, CONST, Op.LOOP})  # a LOOP is no value: its RESULTs are
_PARTS = (Op.RESHAPE, Op.SHRINK)
_CHEAP = frozenset({*MOVEMENT, Op.CAST, Op.BITCAST})
_GIVEN = _CHEAP | _STORED  # nothing, or little, is computed for these
_SHOWN = _CHEAP - {Op.SHRINK}  # a part may be all that is ever computed of the whole
FEW = 4  # nodes of a single operation, between which nothing is computed
# Elements of a value that is kept for later programs. A larger one is kept only if it is no larger
# than what the program reads: an outer product would fill the memory, though each program reads
# little of it.
MOST_KEPT = 1 << 24
# Numbers of nodes of graphs that `with_loops` left as they were, the last time. The program of such
# a graph is looked up before loops are looked for. (For other graphs it would seldom be found.)
_unchanged: set[int] = set()
# id of a node that a program computed but did not keep, though a tensor stood for it → the node
computed: Interned[Node] = Interned()
# such a node → how many programs have computed it; after MOST_TIMES, however many there are, those
# that depend on it are kept: loops that read many numbers would take quadratic time
times: weakref.WeakKeyDictionary[Node, int] = weakref.WeakKeyDictionary()
MOST_TIMES = 3
# id of a node that no program had computed when one ended, though a tensor stood for it → the node
states: Interned[Node] = Interned()
# id of a BUFFER node → the newest waiting write to it. A waiting ASSIGN keeps its target alive.
pending: Interned[Node] = Interned()


class Companion(NamedTuple):
    """The tensor whose waiting write runs with every reader of a BUFFER.

    thread: the only thread that may carry out that write; None: every thread may. A thread's random
    state is its own: while it draws, no tensor stands for the new numbers yet, and nothing would
    keep the state that they read if another thread advanced it.
    """

    holder: weakref.ref[Holder]
    thread: int | None

    def ours(self) -> Holder | None:
        """The tensor, if it still lives and the calling thread may carry out its write."""
        return self.holder() if self.thread in (None, get_ident()) else None


companions: weakref.WeakKeyDictionary[Node, Companion] = weakref.WeakKeyDictionary()
# the same BUFFER → an age: older lazy tensors read copies of its value at that time
copied_until: weakref.WeakKeyDictionary[Node, int] = weakref.WeakKeyDictionary()


def companion_of(buffer: Node) -> Companion | None:
    """The companion of a BUFFER, if it has one."""
    return companions.get(buffer) if buffer.arg.steady else None


def _is_random_state(buffer: Node) -> bool:
    companion = companion_of(buffer)
    return companion is not None and companion.thread is not None


def readable(lazy: Sequence[Holder]) -> Sequence[Holder]:
    """Tensors that do not read memory which a failed program should have written."""
    lost: set[Node] = set()
    for node in topological([holder.raw for holder in lazy]) if poisoned else ():
        sources = node.src[1:] if node.op is Op.ASSIGN else node.src
        if (id(node.arg) in poisoned and node.op is Op.BUFFER) or not lost.isdisjoint(sources):
            lost.add(node)
    return [holder for holder in lazy if holder.raw not in lost] if lost else lazy


def described(order: Sequence[Node]) -> set[Node]:
    """Nodes that depend on an argument of a step of `Tensor.scan`: they cannot be computed.

    The step's other reads see memory as it is when the steps run, even if another thread writes it.
    Memory that this thread overwrites while it describes the step must be read first, which fails
    (ScanError).
    """
    if modes.describing is not None:
        return set()
    arguments = [n for n in picked(order, _BUFFERS) if isinstance(n.arg, Given)]
    return depending(order, arguments) if arguments else set()


def replace_in(lazy: Sequence[Holder], by: dict[Node, Node]) -> None:
    """Let lazy tensors depend on other nodes; waiting writes keep waiting."""
    nodes = replaced([holder.raw for holder in lazy], by)
    for holder, node in zip(lazy, nodes, strict=True):
        if node is not holder.raw:
            if is_waiting(holder.raw):
                pending.put(id(node.src[0]), node)
            holder._point(node)


def is_waiting(node: Node) -> bool:
    """Whether it is a write that was not carried out yet, and the newest to its memory."""
    return node.op is ASSIGN and _write_to(node.src[0]) is node


def _write_to(target: Node) -> Node | None:
    """The newest write to a BUFFER, if it waits."""
    link = pending.get(id(target))
    return None if link is None else link()


def rewritten(order: Sequence[Node]) -> dict[Node, list[Holder]]:
    """Nodes that were a leaf's value before a write to it that still waits → the leaves."""
    older: dict[Node, list[Holder]] = {}
    for node in picked(order, _MEMORY) if pending else ():
        write = _write_to(node if node.op is BUFFER else node.src[0])
        if write is not None and write is not node:
            leaves = [holder for holder in holders(write) if holder._requires_grad]
            if leaves:
                older[node] = leaves
    return older


def computed_below(node: Node) -> Node | None:
    """The value that a node shows, if a program must compute it."""
    shown = beneath(node, _SHOWN)
    return None if beneath(shown, _CHEAP).op in _STORED else shown


def whole_of(node: Node) -> Node:
    """The array that a node is a part of."""
    return beneath(node, _PARTS)


def by_itself() -> bool:
    """Whether a program runs normally, not for a step that is captured or explained.

    Those must be the same each time.
    """
    return recording.calls is None and timeline.programs is None


class Plan:
    """The roots of one program.

    roots: what to compute, as the tensors know it; alone: these → the same for the program, without
    writes that a later one replaces. targets: BUFFERs that are about to be overwritten. copies:
    those of them with other readers than their owner → the root that saves their value. unasked:
    nobody asked for the wanted values to be in memory, so gradients by unmarked leaves must still
    pass through them. parts: readers → as parts of what is computed. serves: what is computed
    instead of a reader, or of several, which are its rows → these. found: the values' program, if
    it is known. writes: BUFFERs → writes to them for which no tensor stands.
    """

    tracked: Set[Node] = frozenset()
    free: Set[Node] = frozenset()  # unmarked leaves, where these count
    wanting: Set[Node] = frozenset()  # nodes that depend on other leaves
    kept: Sequence[Node] = ()
    lost: Sequence[tuple[Node, Node]] = ()  # (root, leaf that the root's gradient needs)

    def __init__(
        self, wanted: Sequence[Holder], targets: Iterable[Node] = (),
        owner: Holder | None = None, unasked: bool = False,
        writes: Mapping[Node, Node] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.wanted, self.owner, self.given_targets = wanted, owner, tuple(targets)
        self.unasked, self.writes = unasked, writes
        self.roots: dict[Node, None] = dict.fromkeys(writes.values())
        self.roots.update((holder.raw, None) for holder in wanted)
        self.copies: dict[Node, Node] = {}
        self.order: list[Node] = []
        self.held: list[Node] = []  # nodes of the order with tensors
        self.again: list[Node] = []  # nodes of the order that an earlier program also computed
        self.later: dict[Node, bool] = {}  # see `_read_later`
        self.waits = {**writes}  # also target → the waiting write to it in the order
        self.replaced: set[Node] = set()  # writes that a later one replaces
        self.marked: set[Node] = set()  # marked leaves, and other marked nodes
        self.older: dict[Node, list[Holder]] = {}  # see `rewritten`
        self.targets: dict[Node, None] = {}  # a dict: its order does not depend on addresses
        self.readers: set[Node] = set()  # roots only because they read a target
        self.parts: dict[Node, Node] = {}
        self.serves: dict[Node, list[Node]] = {}
        size = -1
        while size != len(self.roots):
            size = len(self.roots)
            self._extend()
            leaves = self.marked or self.older
            may_flow = self.targets or leaves or history.recorded or self.unasked
            if size == len(self.roots) and may_flow:
                self._save_for_backward()
        self.alone = {root: root for root in self.roots}
        self.known: Sequence[Node] | None = self.order
        if self.replaced:
            values = see_through(list(self.roots), self.replaced)
            # memory of other tensors may be overwritten in this very program
            values = [copy_of(value) if value.op is BUFFER else value for value in values]
            self.alone = dict(zip(self.roots, values, strict=True))
            self.known = self.order if values == list(self.roots) else None
        self.found: program.Found | None = None
        if len(self.order) > 2 * MANY:
            self._without_copies()

    def touched(self) -> Touched:
        """The memory that is written, and the memory that is read."""
        read = {node.arg for node in self.order if node.op is BUFFER}
        return {target.arg for target in self.targets}, read

    def _extend(self) -> None:
        """Add waiting writes, random states and parameters that are read, and other readers."""
        count, new = len(self.roots), topological(self.roots, self.order)
        self.order += new
        held = held_among(new)
        self.held += held
        marked = leaves_among(held)
        self.marked.update(marked)
        memory = picked(new, _MEMORY)
        for node in memory:
            if node.op is BUFFER:
                if node.arg.steady and (companion := companions.get(node)) is not None:
                    owner = companion.ours()
                    if owner is not None and owner.raw.op is ASSIGN:
                        self.roots.setdefault(owner.raw)
            elif (self.writes.get(node.src[0]) or _write_to(node.src[0])) is node:
                self.waits[node.src[0]] = node
                self.roots.setdefault(node)
            else:
                self.replaced.add(node)
        for node in marked:
            if node.op is not BUFFER:
                self.roots.setdefault(node)
        if pending:
            self.older.update(rewritten(memory))
        if self.waits or self.given_targets:
            targets = dict.fromkeys((*self.given_targets, *self.waits))
            if targets != self.targets:
                self.targets = targets
                self._add_readers()
        # new roots may be the writes that are missing in `waits`
        known = len(self.waits) - len(self.writes)
        if len(self.roots) == count and len(pending) > known and by_itself():
            self._add_waiting()
        if computed and by_itself():
            self.again += [node for node in new if id(node) in computed]
            self._add_computed()

    def _add_waiting(self) -> None:
        """Add the waiting writes of values that depend on what this program computes.

        If they waited, their program would compute it again: `loss.backward(); p.data -= p.grad;
        loss.item()` does not need the new weights, but the next step does.
        """
        computed = [n for n in self.order
                    if n in self.replaced or (n.src and n.op not in _GIVEN)]
        oldest = min([node.age for node in computed], default=1 << 62)
        writes = [h.raw for h in not_captured(lazy_since(oldest)) if is_waiting(h.raw)
                  and h.raw not in self.roots and not _is_random_state(h.raw.src[0])]  # fmt: skip
        if writes:
            found = depending(topological(writes, self.order), computed)
            self.roots.update(dict.fromkeys(write for write in writes if write in found))

    def _add_computed(self) -> None:
        """Add tensors whose values would be computed again, or that depend on such values.

        Otherwise a Python loop that looks at a value in each iteration would recompute all earlier
        ones. Many such tensors were probably left for later by a loop, and are computed together;
        then only those are added through which the others depend on such values, or none until
        several programs have computed these.
        """
        if not self.again:
            return
        found = depending(self.order, self.again)
        for node, flows in self._read_later(found).items():
            self.later[node] = self.later.get(node, False) or flows
        read = sum(numel(node.shape) for node in picked(self.order, _BUFFERS))
        new = (node for node in self.later if node not in self.roots)
        again = {node: None for node in new if numel(node.shape) <= max(read, MOST_KEPT)}
        if len(again) > MANY:
            again = self._first(again)
        often = len(again) > MANY and any(times.get(n, 0) >= MOST_TIMES for n in self.again)
        if often or 0 < len(again) <= MANY:
            self.roots.update(again)
            self.unasked = True

    def _first(self, nodes: dict[Node, None]) -> dict[Node, None]:
        """The nodes that depend on what is computed again, but not through others of them."""
        first = {node: None for node in self.again if node in nodes}
        reached = {node for node in self.again if node not in nodes}
        for node in reading(self.order, reached):
            if node in nodes:
                first[node] = None
            else:
                reached.add(node)
        return first

    def _read_later(self, found: Set[Node]) -> dict[Node, bool]:
        """Those of some nodes that lazy tensors stand for or read → whether gradients may flow.

        In a loop `u = f(v); v = g(u)`, the new v reads the old one, which no name stands for.
        """
        oldest = min([node.age for node in self.again])
        lazy = [h for h in not_captured(lazy_since(oldest))
                if views.base_of(h) is None and h.raw not in self.roots]  # fmt: skip
        others = topological([h.raw for h in lazy], self.order,
                             lambda n: n.src if n.age > oldest else ())  # fmt: skip
        flows = {holder.raw for holder in lazy if not holder.stopped}
        for node in reversed(others):
            if node in flows and node.op is not Op.BITCAST:
                flows.update(node.src)
        later: dict[Node, bool] = {}
        for node in chain([h.raw for h in lazy], *[node.src for node in others]):
            shown = computed_below(node)
            if shown is not None and shown in found:
                later[shown] = later.get(shown, False) or node in flows
        return later

    def _add_readers(self) -> None:
        """Add live tensors that read a target other than through a root, or stand for one."""
        ages_of = {target: copied_until.get(target, 0) for target in self.targets
                   if companion_of(target) is not None}  # fmt: skip
        others = self.targets.keys() - ages_of.keys()
        readers = self._readers(lazy_holders(), others) if others else {}
        for node, served in readers.items():
            if node not in self.roots:
                self.roots[node] = None
                self.readers.add(node)
            if served != [node]:
                self.serves[node] = served
        for state, age in ages_of.items():
            if self._readers(lazy_since(age), {state}):
                self._copy(state)
        for target in held_among(self.targets.keys() - self.writes.keys()):
            if [holder for holder in holders(target) if holder is not self.owner]:
                self._copy(target)

    def _readers(self, tensors: Sequence[Holder], targets: Set[Node]) -> dict[Node, list[Node]]:
        """The entries of `_lazy` for these tensors that read a target other than through a root."""
        lazy = self._lazy([
            holder for holder in readable(tensors)
            if holder.raw not in self.roots and holder is not self.owner
        ])  # fmt: skip
        if not lazy:  # as in most training steps
            return lazy
        order = topological(lazy, self.roots)
        reads = depending(order, targets) - described(order)
        return {node: served for node, served in lazy.items() if node in reads}

    def _lazy(self, tensors: Sequence[Holder]) -> dict[Node, list[Node]]:
        """What to compute for tensors → the nodes of theirs that it serves.

        That is usually the node itself. Where a loss was differentiated earlier, it is the node
        without copies, or an array with it and others as rows: the copies would outweigh the rest
        of the plan.
        """
        nodes = {holder.raw: None for holder in tensors}
        if recording.calls is not None:
            return {node: [node] for node in nodes}
        kept = {*self.marked, *(holder.raw for holder in tensors if holder._requires_grad)}
        found: dict[Node, list[Node]] = {}
        for copies, whole in made_as_rows(nodes, {*kept, *self.roots}):
            found[whole] = copies
            for node in copies:
                del nodes[node]
        for node in nodes:
            if node not in found:
                less = made_without_copies(node, kept)
                found[node if less in found else less] = [node]
        return found

    def _copy(self, target: Node) -> None:
        """Save the value of a BUFFER that is about to be overwritten."""
        if target not in self.copies:
            self.copies[target] = copied = copy_of(target)
            self.roots.setdefault(copied)

    def _without_copies(self) -> None:
        """Compute together what Python loops have left, by removing copies of nodes.

        Many readers of a target, which may never be needed, become parts of arrays, too.
        """
        kept = {*self.kept, *self.marked}
        many = len(self.readers) > MANY and recording.calls is None
        readers = self.readers - kept - self.serves.keys() if many else set()
        alike = [root for root, value in self.alone.items()
                 if root in readers and value is root and root.op is not ASSIGN]  # fmt: skip
        for copies, whole in as_rows(alike, kept):
            for root in copies:
                del self.alone[root]
            self.alone[whole], self.serves[whole] = whole, copies
        values = list(self.alone.values())
        known = self.order if values == list(self.roots) else None
        if known is not None and len(known) in _unchanged and by_itself():
            self.found = program.known_program(values, known)
        if self.found is None:
            values, self.known = with_loops(values, known, self.marked)
            changed = values != list(self.alone.values())
            (_unchanged.discard if changed else _unchanged.add)(len(self.order))
            self.alone = dict(zip(self.alone, values, strict=True))
        for root in [root for root in self.alone if root in readers]:
            value = self.alone[root]
            whole = whole_of(value)
            if whole is not value and whole.op is not BUFFER:
                del self.alone[root]
                self.parts[root] = value
                self.alone.setdefault(whole, whole)
        if self.parts:
            self.known = self.found = None

    # -- histories ---------------------------------------------------------------------------------

    def _save_for_backward(self) -> None:
        """Decide which roots keep a history, and store what such a history could not recompute.

        tracked: depends on a marked leaf. stale: depends on memory that is about to be overwritten.
        lost: depends on a marked leaf that is about to be overwritten, or on a value of one that
        was never in memory; no history is possible.
        """
        self.tracked, self.kept, self.lost = set(), [], []
        if not (candidates := [root for root in self.roots if self._may_flow(root)]):
            return
        waits = self.waits
        leaves = {t for t, write in waits.items() if not self.marked.isdisjoint((t, write))}
        others = (t for t in self.given_targets if t not in waits)
        leaves.update(t for t in others if wants_gradient(_write_to(t) or t))
        if not (leaves or self.marked or self.older or history.recorded or self.unasked):
            return
        order = self.order if self.unasked else topological(candidates)
        memory = picked(order, _BUFFERS) if history.recorded else ()
        known = [node for node in memory if has_history(node)]
        start = {*self.marked, *leaves, *known, *self.older}
        gone = {node: node.src[0] for node in self.older if node.op is ASSIGN}
        gone.update((target, target) for target in self.targets if target in leaves)
        lost = set(gone) if start != gone.keys() else set[Node]()
        self.wanting = wanting = history.tracked(order, self.marked, start, lost)
        lost = lost if start != gone.keys() else wanting
        self.tracked = tracked = self._with_free() if self.unasked else wanting
        flowing = [root for root in candidates if root in tracked and root not in self.free]
        self.kept = [root for root in flowing if root not in lost]
        self.lost = [(root, next(iter(gone.values()))) for root in flowing if root in lost]
        for root in self.kept if self.serves else ():  # each of these has its own history
            self.roots.update(dict.fromkeys(self.serves.pop(root, ())))
        stale = depending(self.order, self.targets) if self.kept and self.targets else set()
        saved = {*self.marked, *self.free}  # nothing below these is computed again
        for node in topological([root for root in self.kept if root in stale], saved):
            if node in tracked and node.op is not Op.BUFFER:
                for source in node.src[1:] if node.op is Op.ASSIGN else node.src:
                    if source in stale and (source not in tracked or source in self.free):
                        if source.op is Op.BUFFER:
                            self._copy(source)
                        else:
                            self.roots.setdefault(source)

    def _may_flow(self, root: Node) -> bool:
        """Whether a gradient may be requested through a root."""
        return root not in self.marked and (self.later.get(root, False) or any(
            not holder.stopped for one in self._standing(root) for holder in holders(one)
            if holder is not self.owner
        ))

    def _with_free(self) -> set[Node]:
        """Nodes that depend on any leaf, also on unmarked ones."""
        known = history.valid(self.order)
        free = {
            node for node in self.held
            if node.dtype.is_float and node not in self.targets and node not in known
            and any(holder._requires_grad is None for holder in holders(node))
        }  # fmt: skip
        leaves = {*self.wanting, *known}
        tracked = history.tracked(self.order, self.marked, leaves, set(), free)
        flows = {node for node in free if node.op is not Op.BITCAST and tracked & {*node.src}}
        self.free = free - flows  # a node that depends on others is not a leaf
        return tracked

    def _standing(self, root: Node) -> list[Node]:
        """A root, and what it is computed for: readers, and memory that it is a copy of."""
        found = [root, *self.serves.get(root, ())]
        if self.copies and root.src and self.copies.get(root.src[0]) is root:
            found.append(root.src[0])
        return found

    def settle(self, buffers: Sequence[Node]) -> None:
        """Point tensors to the buffers with their values."""
        made = {root: buffers[place] for place, root in enumerate(self.alone)}
        inside = self._not_kept() if len(self.order) > FEW and by_itself() else []
        if self.parts:
            made |= zip(self.parts, replaced(list(self.parts.values()), made), strict=True)
        for whole, served in self.serves.items():
            rows = unstacked(made[whole]) if len(served) > 1 else [made[whole]]
            made |= zip(served, rows, strict=True)
        for target in self.copies if self.targets else ():
            for holder in holders(target):
                if holder is not self.owner:
                    holder._point(made[self.copies[target]])
        written = [root.src[0] for root in self.roots if is_waiting(root)] if self.targets else []
        for target in written:
            del pending[id(target)]
        written += self.writes
        if self.kept or self.lost or written:
            self._record(made, written)
        for holder in self.wanted:  # nobody owns a constant: others keep it unchanged
            if holder.raw.op is CONST and holder.raw in made:  # not written meanwhile
                holder._point(made[holder.raw])
        for root in self.roots:
            if root.op is CONST:
                del made[root]
        kept = {one for root in (*self.kept, *dict(self.lost)) for one in self._standing(root)
                } if self.kept or self.lost else ()  # fmt: skip
        for root, buffer in made.items():
            for holder in not_captured(holders(root)) if capturing else holders(root):
                point(holder, buffer)
                if holder.stopped and root not in kept and not wants_gradient(buffer):
                    holder.stopped = False
        if self.copies:
            made |= {target: made[copied] for target, copied in self.copies.items()}
        # A lazy tensor depends on older nodes only: if none of them is new, but all that was made
        # is, none depends on it.
        if lazy_links and (clock.fresh or any(node.age < clock.ended for node in made)):
            self._replace_in_others(made)
        for target in self.targets:
            companion = companion_of(target)
            if companion is not None and companion.ours() is not None:
                copied_until[target] = next(ages)
        for old, node in zip(inside, replaced(inside, made), strict=True) if inside else ():
            if (shown := computed_below(node)) is not None:
                computed.put(id(shown), shown)
                times[shown] = times.get(computed_below(old) or old, 0) + 1

    def _replace_in_others(self, made: dict[Node, Node]) -> None:
        """Let lazy tensors depend on what was computed, and note which of them are new."""
        ages_of = [copied_until.get(n, n.age) if n in self.targets else n.age for n in made]
        since = min([clock.ended, *ages_of])
        # most often none, but removed ones would have to be skipped one by one to find out
        lazy = lazy_since(since) if clock.fresh or since < clock.ended else []
        if lazy:
            lazy, oldest = not_captured(lazy), min(ages_of, default=clock.ended)
            depend = self._replace_writes([h for h in lazy if h.raw.age >= oldest], made)
            if depend:
                replace_in(depend, made)
        if by_itself():
            for holder in lazy:
                if holder.raw.age >= clock.ended and holder.raw.op is not BUFFER:
                    states.put(id(holder.raw), holder.raw)
            clock.ended, clock.fresh = next(ages), 0

    def _not_kept(self) -> list[Node]:
        """Nodes that are computed but not kept, though a tensor stands for them, or did before.

        In a loop `v = f(w); w += v; v.sum().item()`, the new w reads the old one, for which a
        tensor stood when the program before ended.
        """
        before = [node for node in self.order if id(node) in states] if states else []
        return [n for n in dict.fromkeys((*before, *self.held))
                if n.op not in _MEMORY and n not in self.roots and (id(n) in states or any(
                    views.base_of(h) is None for h in holders(n)))]  # fmt: skip

    def _replace_writes(self, lazy: list[Holder], made: dict[Node, Node]) -> list[Holder]:
        """The lazy tensors that depend on nothing which another thread computes now.

        Others keep that thread's writes as they are: a rebuilt write would be made twice.
        """
        others = [
            root for _, plan in under_way.copy().values() if isinstance(plan, Plan)
            if plan is not self for root in plan.roots
        ]  # fmt: skip
        if not (others and lazy):
            return lazy
        busy = depending(topological([holder.raw for holder in lazy]), others)
        writes = {node: buffer for node, buffer in made.items() if node.op is ASSIGN}
        replace_in([holder for holder in lazy if holder.raw in busy], writes)
        return [holder for holder in lazy if holder.raw not in busy]

    def _record(self, made: dict[Node, Node], written: Sequence[Node]) -> None:
        """Record the histories of the roots that were chosen for it."""
        saved = {n: b for n, b in made.items()
                 if n not in self.tracked or n in self.free or wants_gradient(n)}  # fmt: skip
        for target, copied in self.copies.items():
            if target not in self.tracked:
                saved[target] = made[copied]
        known = self.order if len(self.roots) == 1 else None
        graphs = {made[root]: root for root in self.kept}
        free = {made[root] for root in self.kept if root not in self.wanting}
        leaves = [holder._link for leaf in self.free for holder in holders(leaf)]
        history.record(graphs, saved, known, written, free, leaves)
        for buffer, leaf in {whole_of(made[root]): leaf for root, leaf in self.lost}.items():
            history.lose(buffer, leaf)
