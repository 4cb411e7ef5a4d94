"""How a set of tensors is realized, and what must be realized with them.

`realize` decides on the roots of one program, under a lock; lets `minigrad.program` run it, without
the lock; and then points every tensor that stood for a root to the root's buffer. Roots are

- the tensors that the user wants;
- every in-place write that they depend on, and the advance of the random state that they read;
- parameters (marked leaves) on the way that have no memory yet: they are there to stay;
- every other live tensor that reads memory which is about to be overwritten: a lazy tensor sees
  its sources as they were when it was made. Those that would read an older random state keep a
  copy of that instead: they may be a whole model of which nobody wants a number yet.
"""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Sequence, Set
from threading import get_ident

from minigrad import program
from minigrad.device import Buffer, late_failures, spoil, spoiled, watching
from minigrad.errors import MinigradError
from minigrad.graph import build
from minigrad.graph.copies import MANY, as_rows, made_as_rows, unstacked
from minigrad.graph.node import (
    ASSIGN,
    BUFFER,
    CONST,
    Node,
    Op,
    ages,
    depending,
    make,
    needed_among,
    picked,
    reading,
    topological,
)
from minigrad.graph.rewrite import replaced
from minigrad.graph.rolled import made_without_copies, without_copies
from minigrad.graph.shapes import numel
from minigrad.program import recording
from minigrad.tensor import saved_graphs, turns, views
from minigrad.tensor.live_tensors import (
    Holder,
    held_among,
    holders,
    lazy_holders,
    lazy_links,
    lazy_since,
    leaves_among,
    lock,
    not_captured,
    of_this_thread,
    wants_gradient,
)
from minigrad.tensor.noted import capturing
from minigrad.tensor.saved_graphs import has_history, see_through
from minigrad.tensor.turns import Touched, under_way, waiting

_MEMORY = frozenset({BUFFER, ASSIGN})
# id of a BUFFER node → the newest write to it that waits. A waiting ASSIGN keeps its target alive.
_waiting: weakref.WeakValueDictionary[int, Node] = weakref.WeakValueDictionary()
# BUFFER node → the tensor whose waiting write goes along with whoever reads it (random states).
_companions: weakref.WeakKeyDictionary[Node, weakref.ref[Holder]] = weakref.WeakKeyDictionary()
# The same BUFFER → an age: lazy tensors from before it read copies of what was there then.
_copied_until: weakref.WeakKeyDictionary[Node, int] = weakref.WeakKeyDictionary()


def write(holder: Holder, value: Node) -> None:
    """Give a tensor a new value: in its memory where it has some, else by standing for `value`."""
    node = holder.raw
    if value is node:
        return
    holder._link.thread = get_ident()
    target = node.src[0] if node.op is Op.ASSIGN else node
    watch = watching.watch
    if target.op is not Op.BUFFER or (watch is not None and watch.borrows(holder)):
        if watch is not None:
            watch.replaces(holder)
        holder._point(value)
        return
    if id(target.arg) in spoiled:
        _lose_readers(target, holder)
    if value is target:
        with lock:
            _waiting.pop(id(target), None)
            holder._point(target)
        return
    written = build.assign(target, value)
    with lock:
        _waiting[id(target)] = written
        holder._point(written)


def accompany(buffer: Node, holder: Holder) -> None:
    """Realize the waiting write of `holder` together with whoever reads its BUFFER."""
    _companions[buffer] = weakref.ref(holder)
    buffer.arg.steady = True


def realize(tensors: Iterable[Holder], unasked: bool = False) -> None:
    """Give every tensor memory that holds its value. unasked: see `_Plan`."""
    plan = _compute(tensors, unasked=unasked)
    if plan is not None:
        roots = plan.roots
        moved = [h for h in plan.wanted if h.raw.op is not BUFFER and h.raw not in roots]
        if moved:  # another thread computed what they depend on
            realize(moved, unasked)


def overwrite(holder: Holder, buffer: Node, data: bytes | bytearray) -> None:
    """Replace the contents of a tensor's BUFFER from the host, after every reader of the old."""
    if id(buffer.arg) in spoiled:
        _lose_readers(buffer, holder)
    if lazy_links:
        _compute([], {buffer}, holder)
    if any(other is not holder for other in holders(buffer)):  # since that plan, it may be
        _compute([], {buffer}, holder)
    written = {buffer.arg}
    turns.during((lambda _: (written, frozenset()), None), lambda: buffer.arg.copy_in(data))
    with lock:
        saved_graphs.overwritten(buffer)
        _waiting.pop(id(buffer), None)
        holder._point(buffer)


def settle_before(written: Container[Buffer], read: Container[Buffer]) -> None:
    """Realize what must be before a step: who reads what it writes, and writes to what it reads.

    Views of `written` memory stay lazy, and follow it. Who reads a random state that has no waiting
    write has a copy already.
    """
    with lock:
        following = views.align(written)
        lazy = not_captured(_readable(lazy_holders()))
        order = topological([holder.raw for holder in lazy])
        wanted = depending(order, (
            node for node in order
            if node.op is BUFFER and node.arg in written and node not in _companions
        ))  # fmt: skip
        wanted.update(n for n in order if _is_waiting(n) and n.src[0].arg in read)
    _settle([h for h in lazy if h.raw in wanted and id(h._link) not in following])


def settle_writes() -> None:
    """Carry out the writes of this thread that wait."""
    _settle([h for h in of_this_thread(_readable(lazy_holders())) if _is_waiting(h.raw)])


def settle_readers() -> None:
    """Realize live tensors that read memory: whatever is written next, they are as they were.

    But not those of another thread that need a write of its own. Views stay lazy, and follow their
    bases. One that reads only a random state gets a copy of that.
    """
    with lock:
        lazy = [h for h in not_captured(_readable(lazy_holders())) if views.base_of(h) is None]
        order, mine = topological([holder.raw for holder in lazy]), {*of_this_thread(lazy)}
        waits = depending(order, filter(_is_waiting, order))
        states = [node for node in order if node in _companions]
        reads = depending(
            order, (node for node in order if node.op is BUFFER and node not in _companions)
        )
        wanted = [h for h in lazy if h.raw in reads and (h in mine or h.raw not in waits)]
    _settle(wanted, unasked=True)
    for state in states:
        _compute([], {state}, _companions[state]())
    views.align()


def _settle(wanted: Sequence[Holder], unasked: bool = False) -> None:
    """Realize tensors, one by one where a variable is bound to several values in them."""
    try:
        realize(wanted, unasked)
    except MinigradError:
        raise
    except ValueError:  # no single program has it
        for holder in wanted:
            realize([holder], unasked)


def separate(node: Node, owners: Container[int]) -> None:
    """Give a copy of a BUFFER to all tensors that stand for it but the owners (ids of links)."""
    others = [
        holder
        for holder in holders(node)
        if id(holder._link) not in owners and views.base_of(holder) is None
    ]
    if others:
        (copied,) = program.realize([_copied(node)], [])
        for holder in others:
            holder._point(copied)
            views.written(holder)


def _copied(node: Node) -> Node:
    """Its value in other memory."""
    return make(Op.CONTIGUOUS, node.dtype, node.shape, (node,), None, node.device)


def _compute(
    wanted: Iterable[Holder], targets: Iterable[Node] = (), owner: Holder | None = None,
    unasked: bool = False,
) -> _Plan | None:  # fmt: skip
    """Plan and compute, after what other threads are at now that must be before.

    Gives the plan, if there is need of one: what another thread captures is computed by that alone.
    """
    me, plan = get_ident(), None
    outer = under_way.pop(me, None) if under_way else None  # that computes a custom node
    try:
        with lock:
            given = not_captured(wanted) if capturing else wanted
            lazy = [holder for holder in given if holder.raw.op is not BUFFER]
            if lazy or targets:
                plan = _Plan(lazy, targets, owner, unasked)
                under_way[me] = _Plan.touched, plan
                while (len(under_way) > 1 or waiting) and turns.must_wait((_Plan.touched, plan)):
                    lazy = [h for h in not_captured(lazy) if h.raw.op is not BUFFER]
                    plan = _Plan(lazy, targets, owner, unasked)
        if plan is not None:
            _run(plan)
    finally:
        under_way.pop(me, None)
        if outer is not None:
            under_way[me] = outer
        if waiting:
            turns.tell()
    return plan


def _run(plan: _Plan) -> None:
    if plan.roots:
        failures: list[MinigradError] = []
        buffers = program.realize(plan.values, failures, plan.known)
        with lock:
            plan.settle(buffers)
        if failures:
            _lose_indices(failures[0])
            raise failures.pop(0)  # nor may this frame keep it, which it keeps


def _readable(lazy: Sequence[Holder]) -> Sequence[Holder]:
    """Those that read no memory which a failed program was to write: nobody else need wait."""
    lost: set[Node] = set()
    for node in topological([holder.raw for holder in lazy]) if spoiled else ():
        sources = node.src[1:] if node.op is Op.ASSIGN else node.src
        if (id(node.arg) in spoiled and node.op is Op.BUFFER) or not lost.isdisjoint(sources):
            lost.add(node)
    return [holder for holder in lazy if holder.raw not in lost] if lost else lazy


def _lose_indices(failure: MinigradError) -> None:
    """Let nobody else ask for what depends on the indices that were wrong."""
    checks: Sequence[Node] = getattr(failure, "checks", ())
    with lock:
        for node in checks:
            _replace(lazy_holders(), {node: _dead(node, str(failure))})
    vars(failure).pop("checks", None)


late_failures.append(_lose_indices)


def _dead(node: Node, reason: str) -> Node:
    """A BUFFER like a node, that nobody can read."""
    gone = Buffer(node.device, node.dtype, numel(node.shape))
    spoil([gone], reason)
    return build.buffer(gone, node.dtype, node.shape, node.device)


def _replace(lazy: Sequence[Holder], by: dict[Node, Node]) -> None:
    """Let lazy tensors depend on other nodes; a write that waits goes on waiting."""
    nodes = replaced([holder.raw for holder in lazy], by)
    for holder, node in zip(lazy, nodes, strict=True):
        if node is not holder.raw:
            if _is_waiting(holder.raw):
                _waiting[id(node.src[0])] = node
            holder._point(node)


def _lose_readers(target: Node, owner: Holder) -> None:
    """Who would read the value that a failed program was to write never gets it.

    target: the BUFFER, which is about to be written anew for its owner.
    """
    dead = _dead(target, spoiled[id(target.arg)][1])
    with lock:
        _replace([holder for holder in lazy_holders() if holder is not owner], {target: dead})
        for holder in holders(target):
            if holder is not owner:
                holder._point(dead)


def rewritten(order: Sequence[Node]) -> dict[Node, list[Holder]]:
    """The nodes of an order that were a leaf's value before the write to it that waits."""
    older: dict[Node, list[Holder]] = {}
    for node in picked(order, _MEMORY) if _waiting else ():
        write = _waiting.get(id(node if node.op is BUFFER else node.src[0]))
        if write is not None and write is not node:
            leaves = [holder for holder in holders(write) if holder._requires_grad]
            if leaves:
                older[node] = leaves
    return older


def _is_waiting(node: Node) -> bool:
    return node.op is ASSIGN and _waiting.get(id(node.src[0])) is node


_PARTS = (Op.RESHAPE, Op.SHRINK)


def _whole(node: Node) -> Node:
    """What a node is a part of."""
    while node.op in _PARTS:
        node = node.src[0]
    return node


class _Plan:
    """The roots of one program.

    roots: what to compute, as the tensors know it; values: the same for the program, without
    writes that a later one has replaced. targets: BUFFERs that are about to be overwritten. copies:
    those of them that have other readers than their owner → the root that saves their value.
    unasked: nobody asked for what is wanted to be in memory, so gradients by leaves that nobody
    marked find their way back through it, too.
    parts: readers → as parts of what is computed. serves: what is computed in the place of a
    reader, or of several, which are its rows → these.
    """

    tracked: Set[Node] = frozenset()
    free: Set[Node] = frozenset()  # leaves that nobody marked, where these count
    wanting: Set[Node] = frozenset()  # what depends on others
    kept: Sequence[Node] = ()
    lost: Sequence[tuple[Node, Node]] = ()  # root, a leaf that its gradient would need

    def __init__(
        self,
        wanted: Sequence[Holder],
        targets: Iterable[Node] = (),
        owner: Holder | None = None,
        unasked: bool = False,
    ) -> None:
        self.wanted, self.owner, self.given_targets = wanted, owner, tuple(targets)
        self.unasked = unasked
        self.roots: dict[Node, None] = {holder.raw: None for holder in wanted}
        self.copies: dict[Node, Node] = {}
        self.order: list[Node] = []
        self.waits: dict[Node, Node] = {}  # target → the write to it that waits, of the order
        self.replaced: set[Node] = set()  # writes that a later one has replaced
        self.marked: set[Node] = set()  # leaves, and what else was marked
        self.targets: dict[Node, None] = {}  # in an order that does not depend on addresses
        self.readers: set[Node] = set()  # roots only because they read a target
        self.parts: dict[Node, Node] = {}
        self.serves: dict[Node, list[Node]] = {}
        size = -1
        while size != len(self.roots):
            size = len(self.roots)
            self._extend()
            may_flow = self.targets or self.marked or saved_graphs.recorded or unasked
            if size == len(self.roots) and may_flow:
                self._save_for_backward()
        values = list(self.roots)
        if self.replaced:
            values = see_through(values, self.replaced)
            # what is memory of others then may be overwritten in this very program
            values = [_copied(value) if value.op is BUFFER else value for value in values]
        self.alone = dict(zip(self.roots, values, strict=True))
        self.known: Sequence[Node] | None = self.order if values == list(self.roots) else None
        if len(self.order) > 2 * MANY:
            self._without_copies()
            values = list(self.alone.values())
        self.values = values

    def touched(self) -> Touched:
        """Memory that is written and that is read."""
        read = {node.arg for node in self.order if node.op is BUFFER}
        return {target.arg for target in self.targets}, read

    def _extend(self) -> None:
        """Add waiting writes, random states, and parameters that are read, and other readers."""
        new = topological(self.roots, self.order)
        self.order += new
        self.marked.update(leaves_among(new))
        for node in new:
            op = node.op
            if op is BUFFER:
                steady = getattr(node.arg, "steady", False)  # a source of a loop has no memory
                companion = _companions.get(node) if steady else None
                owner = companion() if companion is not None else None
                if owner is not None and owner.raw.op is Op.ASSIGN:
                    self.roots.setdefault(owner.raw)
            elif op is ASSIGN:
                if _is_waiting(node):
                    self.waits[node.src[0]] = node
                else:
                    self.replaced.add(node)
                if node in self.marked or node not in self.replaced:
                    self.roots.setdefault(node)
            elif node in self.marked:
                self.roots.setdefault(node)
        if self.waits or self.given_targets:
            targets = dict.fromkeys((*self.given_targets, *self.waits))
            if targets != self.targets:
                self.targets = targets
                self._add_readers()

    def _add_readers(self) -> None:
        """Live tensors that read a target other than through a root, or stand for one."""
        states = [target for target in self.targets if target in _companions]
        others = self.targets.keys() - set(states)
        readers = self._readers(lazy_holders(), others) if others else {}
        for node, served in readers.items():
            if node not in self.roots:
                self.roots[node] = None
                self.readers.add(node)
            if served != [node]:
                self.serves[node] = served
        for state in states:
            if self._readers(lazy_since(_copied_until.get(state, 0)), {state}):
                self._copy(state)
        for target in self.targets:
            if any(holder is not self.owner for holder in holders(target)):
                self._copy(target)

    def _readers(self, tensors: Sequence[Holder], targets: Set[Node]) -> dict[Node, list[Node]]:
        """What is `_lazy` of those tensors, and reads a target other than through a root."""
        lazy = self._lazy([holder for holder in _readable(tensors) if holder is not self.owner])
        reads = set(targets)
        for node in reading((*self.order, *topological(lazy, self.order)), reads):
            if node not in self.roots:
                reads.add(node)
        return {node: served for node, served in lazy.items() if node in reads}

    def _lazy(self, tensors: Sequence[Holder]) -> dict[Node, list[Node]]:
        """What to compute for tensors → their nodes that it serves.

        That is the node itself; or what was made of it, or has it and others as rows, where a loss
        was asked for its gradient before: all its copies are more than all else of a plan.
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
                less = node if node in self.roots else made_without_copies(node, kept)
                found[node if less in found else less] = [node]
        return found

    def _copy(self, target: Node) -> None:
        """Save the value of a BUFFER that is about to be overwritten."""
        if target not in self.copies:
            self.copies[target] = copied = _copied(target)
            self.roots.setdefault(copied)

    def _without_copies(self) -> None:
        """Let what loops in Python have left be computed together.

        That may be a list of readers, too, perhaps for nobody: they become parts of arrays.
        """
        kept = {*self.kept, *self.marked}
        many = len(self.readers) > MANY and recording.calls is None
        readers = self.readers - kept - self.serves.keys() if many else set()
        alike = [root for root, value in self.alone.items() if root in readers and value is root]
        for copies, whole in as_rows(alike, kept):
            for root in copies:
                del self.alone[root]
            self.alone[whole], self.serves[whole] = whole, copies
        values = list(self.alone.values())
        known = self.order if values == list(self.roots) else None
        values, self.known = without_copies(values, known, self.marked)
        self.alone = dict(zip(self.alone, values, strict=True))
        for root in [root for root in self.alone if root in readers]:
            value = self.alone[root]
            whole = _whole(value)
            if whole is not value and whole.op is not BUFFER:
                del self.alone[root]
                self.parts[root] = value
                self.alone.setdefault(whole, whole)
        if self.parts:
            self.known = needed_among(self.known, self.alone.values())

    # -- histories ---------------------------------------------------------------------------------

    def _save_for_backward(self) -> None:
        """Decide which roots keep a history, and store what such a history could not recompute.

        tracked: depends on a marked leaf. stale: depends on memory that is about to be overwritten.
        lost: depends on a marked leaf that is about to be overwritten; no history is possible.
        """
        self.tracked, self.kept, self.lost = set(), [], []
        waits = self.waits
        leaves = {t for t, write in waits.items() if write in self.marked}
        others = (t for t in self.given_targets if t not in waits)
        leaves.update(t for t in others if wants_gradient(_waiting.get(id(t), t)))
        if not (leaves or self.marked or saved_graphs.recorded or self.unasked):
            return
        order = self.order if saved_graphs.recorded else ()
        known = [node for node in order if node.op is BUFFER and has_history(node)]
        start = {*self.marked, *leaves, *known}
        lost = set(leaves) if start != leaves else set[Node]()
        self.wanting = wanting = saved_graphs.tracked(self.order, self.marked, start, lost)
        lost = lost if start != leaves else wanting
        self.tracked = tracked = self._with_free() if self.unasked else wanting
        flowing = [
            root
            for root in self.roots
            if root in tracked
            and root not in self.marked
            and root not in self.free
            and any(not h.stopped for one in self._standing(root) for h in holders(one))
        ]
        self.kept = [root for root in flowing if root not in lost]
        leaf = next((target for target in self.targets if target in leaves), None)
        self.lost = [(root, leaf) for root in flowing if leaf is not None and root in lost]
        for root in self.kept if self.serves else ():  # each has a history of its own
            self.roots.update(dict.fromkeys(self.serves.pop(root, ())))
        stale = depending(self.order, self.targets) if self.kept and self.targets else set()
        saved = {*self.marked, *self.free}  # below which nothing is computed again
        for node in topological([root for root in self.kept if root in stale], saved):
            if node in tracked and node.op is not Op.BUFFER:
                for source in node.src[1:] if node.op is Op.ASSIGN else node.src:
                    if source in stale and (source not in tracked or source in self.free):
                        if source.op is Op.BUFFER:
                            self._copy(source)
                        else:
                            self.roots.setdefault(source)

    def _with_free(self) -> set[Node]:
        """What depends on any leaf: also on those that nobody marked."""
        known = saved_graphs.valid(self.order)
        free = {
            node for node in held_among(self.order)
            if node.dtype.is_float and node not in self.targets and node not in known
            and any(holder._requires_grad is None for holder in holders(node))
        }  # fmt: skip
        leaves = {*self.wanting, *known}
        tracked = saved_graphs.tracked(self.order, self.marked, leaves, set(), free)
        flows = {node for node in free if node.op is not Op.BITCAST and tracked & {*node.src}}
        self.free = free - flows  # what depends on others is no leaf
        return tracked

    def _standing(self, root: Node) -> list[Node]:
        """A root, and the readers in whose place it is computed."""
        return [root, *self.serves.get(root, ())]

    def settle(self, buffers: Sequence[Node]) -> None:
        """Point tensors to what was computed."""
        made = dict(zip(self.alone, buffers, strict=True))
        if self.parts:
            made |= zip(self.parts, replaced(list(self.parts.values()), made), strict=True)
        for whole, served in self.serves.items():
            rows = unstacked(made[whole]) if len(served) > 1 else [made[whole]]
            made |= zip(served, rows, strict=True)
        for target in self.copies if self.targets else ():
            for holder in holders(target):
                if holder is not self.owner:
                    holder._point(made[self.copies[target]])
        written = [root.src[0] for root in self.roots if _is_waiting(root)] if self.targets else []
        for target in written:
            del _waiting[id(target)]
        if self.kept or self.lost or written:
            self._record(made, written)
        for holder in self.wanted:  # a constant is nobody's own: others keep it as it is
            if holder.raw.op is CONST:
                holder._point(made[holder.raw])
        for root in self.roots:
            if root.op is CONST:
                del made[root]
        kept = {one for root in (*self.kept, *dict(self.lost)) for one in self._standing(root)
                } if self.kept or self.lost else ()  # fmt: skip
        for root, buffer in made.items():
            for holder in not_captured(holders(root)) if capturing else holders(root):
                holder._point(buffer)
                if holder.stopped and root not in kept and not wants_gradient(buffer):
                    holder.stopped = False
        if self.copies:
            made |= {target: made[copied] for target, copied in self.copies.items()}
        if made and lazy_links:
            ages_of = [_copied_until.get(n, n.age) if n in self.targets else n.age for n in made]
            lazy = self._replace_writes(not_captured(lazy_since(min(ages_of))), made)
            if lazy:
                _replace(lazy, made)
        for target in self.targets:
            if target in _companions:
                _copied_until[target] = next(ages)

    def _replace_writes(self, lazy: list[Holder], made: dict[Node, Node]) -> list[Holder]:
        """The lazy tensors that depend on nothing which another thread computes now.

        The others keep its writes as they are, of which one that is remade would be made twice.
        """
        others = [
            root for _, plan in under_way.copy().values() if isinstance(plan, _Plan)
            if plan is not self for root in plan.roots
        ]  # fmt: skip
        if not (others and lazy):
            return lazy
        busy = depending(topological([holder.raw for holder in lazy]), others)
        writes = {node: buffer for node, buffer in made.items() if node.op is ASSIGN}
        _replace([holder for holder in lazy if holder.raw in busy], writes)
        return [holder for holder in lazy if holder.raw not in busy]

    def _record(self, made: dict[Node, Node], written: Sequence[Node]) -> None:
        """Keep the graphs of the roots that were chosen for it."""
        saved = {n: b for n, b in made.items()
                 if n not in self.tracked or n in self.free or wants_gradient(n)}  # fmt: skip
        for target, copied in self.copies.items():
            saved[target] = made[copied]
        known = self.order if len(self.roots) == 1 else None
        graphs = {made[root]: root for root in self.kept}
        free = {made[root] for root in self.kept if root not in self.wanting}
        saved_graphs.record(graphs, saved, known, written, free)
        for buffer, leaf in {_whole(made[root]): leaf for root, leaf in self.lost}.items():
            saved_graphs.lose(buffer, leaf)
