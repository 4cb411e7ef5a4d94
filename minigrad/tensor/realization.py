"""How a set of tensors is realized, and what must be realized with them.

`realize` chooses the roots of one program, under a lock. Then `minigrad.program` runs it, without
the lock. Finally every tensor that stood for a root gets the root's buffer. Roots are

- the tensors that the user wants;
- every in-place write that they depend on, and the update of the random state that they read, if
  it is this thread's;
- parameters (marked leaves) that they depend on and that have no memory yet: they will be needed
  again;
- every other live tensor that reads memory which is about to be overwritten: a lazy tensor sees its
  sources as they were when it was created. Tensors that would read an older random state keep a
  copy of that state instead: they may be a whole model that is not needed yet.
"""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from sys import getrefcount
from threading import get_ident
from types import MappingProxyType

from minigrad import interrupts, program
from minigrad.device import Buffer, late_failures, poison, poisoned, watching
from minigrad.errors import MinigradError
from minigrad.graph import build
from minigrad.graph.node import (
    ASSIGN,
    BUFFER,
    Node,
    Op,
    depending,
    target_of,
    topological,
)
from minigrad.graph.shapes import numel
from minigrad.program import recording
from minigrad.settings import having
from minigrad.tensor import access, history, views
from minigrad.tensor.access import under_way, waiting
from minigrad.tensor.broadcasting import stop
from minigrad.tensor.live_tensors import (
    Holder,
    Link,
    all_holders,
    holders,
    lazy_holders,
    lazy_links,
    lazy_since,
    lock,
    not_captured,
    of_this_thread,
    point,
    shared,
)
from minigrad.tensor.modes import modes
from minigrad.tensor.observed import capturing
from minigrad.tensor.plan import (
    Companion,
    Plan,
    by_itself,
    companions,
    described,
    is_waiting,
    pending,
    readable,
    replace_in,
)

_NOTHING: Mapping[Node, Node] = MappingProxyType({})
# thread → its tensors that became leaves since it used any
new_leaves: dict[int, list[Link]] = {}


def write(holder: Holder, value: Node) -> None:
    """Give a tensor a new value: in its memory if it has some, else by standing for `value`."""
    node = holder.raw
    if value is node:
        return
    holder._link.thread = get_ident()
    target = target_of(node)
    watch = watching.watch
    borrows = watch is not None and watch.borrows(holder)
    if target.op is not BUFFER or borrows or holder._borrows(target):
        if watch is not None:
            watch.replaces(holder)
        holder._point(value)
        return
    if id(target.arg) in poisoned:
        _lose_readers(target, holder)
    if value is target:
        with lock:
            pending.pop(id(target), None)
            holder._point(target)
        return
    with lock:
        # x.mul_(…), then x.add_(…): one write. Unless a program may be carrying out the first now.
        if node in value.src and node is not target and node.arg is None and not under_way:
            value = build.rebuild(value, [node.src[1] if x is node else x for x in value.src])
        written = build.assign(target, value)
        pending.put(id(target), written)
        point(holder, written)


def accompany(buffer: Node, holder: Holder, private: bool = False) -> None:
    """Realize the waiting write of `holder` together with all readers of its BUFFER.

    private: only in programs of the calling thread.
    """
    companions[buffer] = Companion(weakref.ref(holder), get_ident() if private else None)
    buffer.arg.steady = True


def write_now(values: Sequence[tuple[Holder, Node]], others: Iterable[Holder]) -> bool:
    """Write values to tensors and realize others, in one program; False: nothing was done.

    It is less work than writes that wait, but only for tensors of which nobody else knows anything.
    """
    with lock:
        alone = by_itself() and not (under_way or waiting or capturing or watching.watch)
        if not alone or modes.describing is not None or not all(_is_plain(h) for h, _ in values):
            return False
        writes = {h.raw: build.assign(h.raw, value) for h, value in values if value is not h.raw}
        for holder, _ in values:
            holder._link.thread = get_ident()
    realize(others, writes=writes)
    return True


def _is_plain(holder: Holder) -> bool:
    """Whether a tensor has memory of its own, which no view and nobody else shows."""
    node, family = holder.raw, holder._family
    return (
        node.op is BUFFER and len(holders(node)) == 1 and holder._origin is None
        and not (holder.stopped or node.arg.lent or id(node.arg) in poisoned)
        and not holder._borrows(node) and (family is None or not family.living())
    )  # fmt: skip


def realize(
    tensors: Iterable[Holder], unasked: bool = False, writes: Mapping[Node, Node] = _NOTHING
) -> None:
    """Store every tensor's value in memory. unasked, writes: see `Plan`."""
    plan = _compute(tensors, unasked=unasked, writes=writes)
    if plan is not None:
        moved = [h for h in plan.wanted if h.raw.op is not BUFFER and h.raw not in plan.roots]
        if moved:  # another thread computed their sources
            realize(moved, unasked)


def overwrite(holder: Holder, buffer: Node, data: bytes | bytearray) -> None:
    """Replace the contents of a tensor's BUFFER from the host, after all readers of the old ones.
    """
    if id(buffer.arg) in poisoned:
        _lose_readers(buffer, holder)
    if lazy_links:
        _compute([], {buffer}, holder)
    if any(other is not holder for other in holders(buffer)):  # one may have come since that plan
        _compute([], {buffer}, holder)
    written = {buffer.arg}
    access.during((lambda _: (written, frozenset()), None), lambda: buffer.arg.copy_in(data))
    with lock:
        history.record({}, {}, written=[buffer])
        pending.pop(id(buffer), None)
        holder._point(buffer)


def realize_before(written: Set[Buffer], read: Container[Buffer]) -> None:
    """Realize, before a step, tensors that read what it writes, and writes to what it reads.

    Views of `written` memory stay lazy and follow it, also if a write to their base was waiting.
    Readers of a random state without a waiting write have a copy already.
    """
    with lock:
        writes = [node for link in [*pending.values()] if (node := link()) is not None]
        if not written and not any(node.src[0].arg in read for node in writes):
            return
        following = views.align(written)
        lazy = not_captured(readable(lazy_holders()))
        order = topological([holder.raw for holder in lazy])
        wanted = depending(order, (
            node for node in order
            if node.op is BUFFER and node.arg in written and node not in companions
        ))  # fmt: skip
        wanted.update(n for n in order if is_waiting(n) and n.src[0].arg in read)
        wanted -= described(order)
    _settle([h for h in lazy if h.raw in wanted and id(h._link) not in following])
    views.align()  # their bases may have moved to other memory


def settle_writes() -> None:
    """Carry out this thread's waiting writes."""
    _settle([h for h in of_this_thread(readable(lazy_holders())) if is_waiting(h.raw)])


def realize_readers() -> None:
    """Realize live tensors that read memory, so that later writes do not change them.

    Except those of another thread that need a write of their own. Views stay lazy and follow their
    bases, which are realized if a view was. A tensor that reads only a random state gets a copy of
    it.
    """
    with lock:
        lazy = [h for h in not_captured(readable(lazy_holders())) if views.base_of(h) is None]
        order, mine = topological([holder.raw for holder in lazy]), {*of_this_thread(lazy)}
        waits = depending(order, filter(is_waiting, order))
        states = [node for node in order if node in companions]
        reads = depending(
            order, (node for node in order if node.op is BUFFER and node not in companions)
        ) - described(order)
        wanted = [h for h in lazy if h.raw in reads and (h in mine or h.raw not in waits)]
        wanted += of_this_thread(views.bases_of_copies())
    _settle(wanted, unasked=True)
    for state in states:
        _compute([], {state}, companions[state].holder())
    views.align()


def _settle(wanted: Sequence[Holder], unasked: bool = False) -> None:
    """Realize tensors; one by one if a variable has several values in them."""
    try:
        realize(wanted, unasked)
    except MinigradError:
        raise
    except ValueError:  # no single program can compute them
        for holder in wanted:
            realize([holder], unasked)


def detach_readers_of(leaf: Holder) -> None:
    """Let gradients flow no longer to a new leaf from what was computed before it was one.

    Now from its value before a waiting write; its readers are detached later, together with those
    of other new leaves: each of many leaves would change the graph of a result that reads them all.
    """
    node = leaf.raw
    if node.op is not ASSIGN and getrefcount(node) <= 4:
        return  # the references of the leaf, of the method that called, of this name and this call
    if node.op is ASSIGN and node.src[1].op is not Op.BITCAST:
        replace_in([leaf], {node.src[1]: stop(node.src[1])})
    new_leaves.setdefault(get_ident(), []).append(leaf._link)


def detach_readers() -> None:
    """Detach what was computed from this thread's new leaves, before anything reads them.

    That is what the thread's lazy tensors were computed from them, and from their values before
    waiting writes, and realized ones with a history. Views follow them, so they stay.
    """
    with lock:
        leaves = [leaf for link in new_leaves.pop(get_ident(), ()) if (leaf := link()) is not None]
        if not leaves:
            return
        targets = {target_of(leaf.raw) for leaf in leaves}
        oldest, numbers = min([target.age for target in targets]), {*map(id, leaves)}
        younger = of_this_thread(lazy_since(oldest))
        lazy = [h for h in younger if h._origin is None and id(h) not in numbers]
        order = topological([h.raw for h in lazy], (), lambda n: n.src if n.age > oldest else ())
        detached = {node: stop(node) for node in order if target_of(node) in targets}
        replace_in(lazy, detached | {one: one for one in detached.values()})  # not once more
        history.detach(targets)


def separate(node: Node, owners: Container[int]) -> None:
    """Give a copy of a BUFFER to all tensors that stand for it, except the owners (ids of links).
    """
    others = [
        holder
        for holder in holders(node)
        if id(holder._link) not in owners and views.base_of(holder) is None
    ]
    lost = poisoned.get(id(node.arg))
    for holder in others:
        holder._point(build.copy_of(node) if lost is None else _dead(node, lost[1]))
        views.written(holder)
    realize(others, unasked=True)


def separate_all(memory: Container[Buffer]) -> None:
    """Give each tensor its own BUFFER in `memory`, so that it is known whose memory a step reads.
    """
    for holder in all_holders() if shared else ():
        if id(holder.raw) in shared and holder._origin is None and holder.raw.arg in memory:
            owner = holder.raw.arg.owner
            if owner is None or owner is holder._link or (owner and owner() is None):
                separate(holder.raw, {id(holder._link)})


def _compute(
    wanted: Iterable[Holder], targets: Iterable[Node] = (), owner: Holder | None = None,
    unasked: bool = False, writes: Mapping[Node, Node] = _NOTHING,
) -> Plan | None:  # fmt: skip
    """Plan and compute, after conflicting work of other threads.

    Returns the plan, or None if there is nothing to do. Tensors of a step that another thread is
    capturing are left to that thread.
    """
    me, plan = get_ident(), None
    outer = under_way.pop(me, None) if under_way else None  # it is computing a custom node
    try:
        with lock:
            given = not_captured(wanted) if capturing else wanted
            lazy = [holder for holder in given if holder.raw.op is not BUFFER]
            if lazy or targets or writes:
                if new_leaves:
                    detach_readers()
                plan = Plan(lazy, targets, owner, unasked, writes)
                under_way[me] = Plan.touched, plan
                while (len(under_way) > 1 or waiting) and access.must_wait((Plan.touched, plan)):
                    lazy = [h for h in not_captured(lazy) if h.raw.op is not BUFFER]
                    plan = Plan(lazy, targets, owner, unasked, writes)
        if plan is not None and recording.calls is not None and _part_others(plan):
            return _compute(lazy, targets, owner, unasked, writes)
        if plan is not None:
            _run(plan)
    finally:
        under_way.pop(me, None)
        if outer is not None:
            under_way[me] = outer
        if waiting:
            access.tell()
    return plan


def _part_others(plan: Plan) -> bool:
    """While a step is captured: compute what other threads made of memory that the plan writes to.

    That is no part of the step, whose replays would compute it again. Returns whether there was
    any.
    """
    reading, same = ([h for node in nodes for h in holders(node)]
                     for nodes in (plan.readers, plan.targets))  # fmt: skip
    mine = {id(h._link) for h in of_this_thread([*reading, *same])}
    if all(id(h._link) in mine for h in (*reading, *same)):
        return False
    with having(recording, calls=None):
        realize([h for h in reading if id(h._link) not in mine])
        for target in plan.targets:
            separate(target, mine)
    return True


def _run(plan: Plan) -> None:
    if plan.roots:
        failures: list[MinigradError] = []
        try:
            buffers = program.realize([*plan.alone.values()], failures, plan.known, plan.found)
            with lock:
                plan.settle(buffers)
        finally:
            interrupts.release()
        if failures:
            _lose_indices(failures[0])
            raise failures.pop(0)  # nor may this frame keep it: it keeps the frame


def _lose_indices(failure: MinigradError) -> None:
    """Make what depends on wrong indices unreadable for everyone else."""
    checks: Sequence[Node] = getattr(failure, "checks", ())
    with lock:
        for node in checks:
            replace_in(lazy_holders(), {node: _dead(node, str(failure))})
    vars(failure).pop("checks", None)


late_failures.append(_lose_indices)


def _dead(node: Node, reason: str) -> Node:
    """A BUFFER like a node, which cannot be read."""
    gone = Buffer(node.device, node.dtype, numel(node.shape))
    poison([gone], reason)
    return build.buffer(gone, node.dtype, node.shape, node.device)


def _lose_readers(target: Node, owner: Holder) -> None:
    """Make readers of a value that a failed program did not write unreadable.

    target: the BUFFER, which its owner is about to overwrite.
    """
    dead = _dead(target, poisoned[id(target.arg)][1])
    with lock:
        replace_in([holder for holder in lazy_holders() if holder is not owner], {target: dead})
        for holder in holders(target):
            if holder is not owner:
                holder._point(dead)
