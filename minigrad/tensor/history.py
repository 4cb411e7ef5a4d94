"""The history of realized tensors, so that `backward` still works after `item()` or `print`.

Realizing replaces a node by the BUFFER that holds its value. If the value depends on a marked leaf,
the graph that computed it is kept beside the BUFFER, as long as the BUFFER is in use. The same
happens, for marked and unmarked leaves, if a captured step realizes something that nobody asked
for, until it is void. A history is stored expanded: it reaches back to leaves, never to a BUFFER
with its own history.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from sys import getrefcount
from typing import Any

from minigrad.device import Buffer
from minigrad.errors import GradientError
from minigrad.graph.build import const, rebuild
from minigrad.graph.node import ASSIGN, BUFFER, Node, Op, picked, reading, topological
from minigrad.graph.rewrite import remade, replaced
from minigrad.tensor.broadcasting import show, stop
from minigrad.tensor.live_tensors import REPLAYED, Holder, leaves_among, wants_gradient

_MEMORY, _WRITES = frozenset({BUFFER}), frozenset({ASSIGN})
_DETACHED = frozenset({Op.BITCAST})
MOST_BACK = 8  # earlier states that are looked for; a loop may keep the last few
_writes = itertools.count(1)
_latest = 0  # the number of the last write
_written: weakref.WeakKeyDictionary[Buffer, int] = weakref.WeakKeyDictionary()  # its last write
# Buffers that a history was recorded for, or reads. Writes to others are not numbered: no history
# can become void by them, and looking for those that did takes a walk through all of them.
_met: weakref.WeakSet[Buffer] = weakref.WeakSet()


@dataclass(frozen=True)
class _History:
    """How the value of a BUFFER was computed.

    node: the expanded graph. since: the last write before it was recorded; the history is void if a
    buffer that it reads was written later. marked: it leads to a marked leaf. lost: the tensor that
    it would need, if it was void from the start; replayed: because a replay keeps no history.
    leaves: for one without a marked leaf, the tensors that may get a gradient by it; it ends with
    them. detached: BUFFERs with histories of their own whose values it reads.
    """

    node: Node
    since: int
    marked: bool = True
    lost: Node | None = None
    replayed: bool = False
    leaves: Sequence[weakref.ref[Holder]] = ()
    detached: Sequence[weakref.ref[Node]] = ()

    def leads_nowhere(self) -> bool:
        """Whether all unmarked leaves it led to are gone."""
        return not self.marked and all(link() is None for link in self.leaves)


_histories: weakref.WeakKeyDictionary[Node, _History] = weakref.WeakKeyDictionary()
# the same as a plain dict: asking the above for its length takes a call of Python code
recorded: dict[Any, _History] = vars(_histories)["data"]


def see_through(roots: Sequence[Node], writes: set[Node], kept: Iterable[Node] = ()) -> list[Node]:
    """The roots with each ASSIGN of `writes` replaced by the value that it writes.

    Nodes in `kept` stay as they are, with everything below them.
    """
    return remade(
        roots, lambda node, src: src[1] if node in writes else rebuild(node, src),
        {node: node for node in kept},
    )  # fmt: skip


def _known(order: Collection[Node]) -> dict[Node, _History]:
    """The histories of an order's BUFFERs."""
    nodes = picked(order, _MEMORY) if recorded else ()
    found = {node: history for node in nodes if (history := _histories.get(node)) is not None}
    for node in [node for node, history in found.items() if history.leads_nowhere()]:
        del found[node]
        _histories.pop(node, None)
    return found


def has_history(node: Node) -> bool:
    """Whether a BUFFER's value depends on a marked leaf."""
    history = _histories.get(node) if recorded else None
    return history is not None and history.marked


def flows(value: Node) -> bool:
    """Whether a gradient may flow from a value to a leaf."""
    order = topological([value], (), lambda node: () if node.op in _DETACHED else node.src)
    return bool(leaves_among(order)) or any(map(has_history, picked(order, _MEMORY)))


def leads_back(holder: Holder) -> bool:
    """Whether a realized tensor has a marked leaf's memory or was computed from one.

    Also if a replay computed it.
    """
    if holder.stopped or holder._requires_grad:
        return holder.stopped == REPLAYED
    return has_history(holder.raw) or wants_gradient(holder.raw)


def valid(order: Collection[Node]) -> set[Node]:
    """BUFFERs of an order with a history, to marked or unmarked leaves, that is not void."""
    found = _known(order)
    return found.keys() - dict(_overwritten(found))


def replayed(written: Iterable[Buffer]) -> None:
    """Record that a replay wrote buffers: histories that read them, or belong to them, are void."""
    global _latest
    met = [buffer for buffer in written if buffer in _met] if recorded else []
    if not met:
        return
    _latest = next(_writes)
    _written.update(dict.fromkeys(met, _latest))
    for link in list(recorded):  # a copy: another thread may record meanwhile
        node = link()
        if node is not None and _written.get(node.arg) == _latest:
            _histories.pop(node, None)


def tracked(
    order: Collection[Node], marked: Set[Node], leaves: Set[Node], lost: set[Node],
    free: Set[Node] = frozenset(),
) -> set[Node]:  # fmt: skip
    """The nodes of an order that depend differentiably on leaves or `free` nodes, with these.

    marked: nodes that are leaves, whatever they depend on. Nodes that depend on a node in `lost`
    are added to `lost`.
    """
    found, untracked = {*leaves, *free}, Op.BITCAST
    for node in reading(order, found):
        if node.dtype.is_float and node.op is not untracked and node not in marked:
            found.add(node)
            if lost and not lost.isdisjoint(node.src):
                lost.add(node)
    return found


def record(
    graphs: Mapping[Node, Node], saved: Mapping[Node, Node], order: Sequence[Node] | None = None,
    written: Iterable[Node] = (), free: Container[Node] = (),
    leaves: Iterable[weakref.ref[Holder]] = (),
) -> None:  # fmt: skip
    """Record graphs as the histories of buffers.

    graphs: BUFFER → the graph of its value. saved: parts of graphs → buffers with their values.
    order: `topological` of the graphs, if known. written: BUFFERs that were written now: a graph
    that reads one continues the history that it had before. free: those of `graphs` that lead to no
    marked leaf, but to `leaves`.

    Never raises: a value that depends on one with a void history has a void history.
    """
    global _latest
    for node in written:
        if node.arg in _met:
            _latest = _written[node.arg] = next(_writes)
    wholes = replaced(list(graphs.values()), saved)
    if order is None or wholes != list(graphs.values()):
        order = topological(wholes)
    if graphs:
        _met.update(node.arg for node in (*graphs, *picked(order, _MEMORY)))
    detached = [weakref.ref(source) for source in _detached(order)]
    nodes, found = _with_histories(wholes, order)
    void, lost = dict(_overwritten(found)), dict[Node, Node]()
    for buffer, graph in zip(graphs, wholes, strict=True) if void else ():
        for node in _with_histories([graph])[1]:
            if node in void:
                lost.setdefault(buffer, void[node])
    known = [leaves, *(history.leaves for history in found.values())] if free else []
    ends = [*{id(link): link for links in known for link in links if link() is not None}.values()]
    for node in written:
        _histories.pop(node, None)
    for buffer, node in zip(graphs, nodes, strict=True):
        if buffer in lost:
            lose(buffer, lost[buffer])
        else:
            _histories[buffer] = _History(
                node, _latest, buffer not in free, leaves=ends, detached=detached
            )


def _detached(order: Collection[Node]) -> list[Node]:
    """The BUFFERs with a history that an order reads detached.

    Those that their histories read so lose their own, if nothing else needs them: a state would
    keep all earlier ones.
    """
    sources = (node.src[0] for node in picked(order, _DETACHED)) if recorded else ()
    found = {node: history for node in sources if (history := _histories.get(node)) is not None}
    links = [link for history in found.values() for link in history.detached]
    for link in links:
        node = link()
        if node is not None and getrefcount(node) <= 3:  # the BITCAST, this name, the call
            _histories.pop(node, None)
        elif node is not None and node in _histories and len(links) < MOST_BACK:
            links += _histories[node].detached
    return [*found]


def detach(nodes: Iterable[Node]) -> None:
    """Let no gradient flow to BUFFERs from what was computed from them so far."""
    barriers = {node: stop(node) for node in nodes if node.arg in _met}
    for buffer, history in [*_histories.items()] if barriers else ():
        by = barriers | {barrier: barrier for barrier in barriers.values()}
        (graph,) = replaced([history.node], by)
        if graph is not history.node:
            _histories[buffer] = replace(history, node=graph)


def lose(buffer: Node, source: Node | None = None) -> None:
    """Make the history of `buffer` void: its gradient needs `source` as it was before a write.

    Without a source: a replay computed it, and keeps no history.
    """
    _met.add(buffer.arg)
    nothing = const(0.0, buffer.dtype, buffer.shape, buffer.device)
    _histories[buffer] = _History(nothing, _latest, True, source or buffer, source is None)


def expand(
    roots: Sequence[Node], order: Sequence[Node], older: Container[Node]
) -> tuple[list[Node], dict[Node, Node]]:
    """The roots with each BUFFER that has a history replaced by it, and the way back.

    order: `topological(roots)`. older: nodes that were a leaf's value before a waiting write to it.
    A write to a tensor that is not a leaf is replaced by its value: gradients flow through it.
    GradientError if a history needs values that were overwritten since.
    """
    expanded, found = _with_histories(roots, order, older, only_flowing=True)
    for node, source in _overwritten(found):
        own = _histories.get(source)
        if own is not None and own.replayed:
            raise GradientError(
                f"cannot differentiate through a tensor of shape {show(source.shape)}, which a "
                "replay of @jit returned; call backward() inside the step, or use .detach()"
            )
        raise GradientError(
            f"the gradient of a realized tensor of shape {show(node.shape)} needs a tensor of "
            f"shape {show(source.shape)} that has since been overwritten in place (by an "
            "optimizer's step or assign); call backward() before the update, or .detach() what you "
            "keep"
        )
    return expanded, {history.node: buffer for buffer, history in found.items()}


def _overwritten(found: Mapping[Node, _History]) -> Iterator[tuple[Node, Node]]:
    """BUFFERs with a void history, and the overwritten BUFFER that each would need."""
    older = [history.node for history in found.values() if history.since < _latest]
    newest: dict[Node, int] = {}  # the last write to what a node reads
    for node in topological(older):
        if node.op is BUFFER:
            newest[node] = _written.get(node.arg, 0)
        else:
            newest[node] = max(map(newest.__getitem__, node.src), default=0)
    for node, history in found.items():
        if history.lost is not None:
            yield node, history.lost
        elif newest.get(history.node, 0) > history.since:
            yield node, next(
                source for source in topological([history.node])
                if source.op is BUFFER and newest[source] > history.since
            )  # fmt: skip


def _flowing(
    roots: Iterable[Node], order: Sequence[Node], through: Container[Node] = ()
) -> set[Node]:
    """The nodes of an order to which gradients of the roots may flow.

    through: the writes that pass gradients on to the written value.
    """
    flowing, untracked = set(roots), Op.BITCAST
    for node in reversed(order):
        if node in flowing and node.op is not untracked:
            if node.op is not ASSIGN:
                flowing.update([source for source in node.src if source.dtype.is_float])
            elif node in through:
                flowing.add(node.src[1])
    return flowing


def _with_histories(
    roots: Sequence[Node], order: Sequence[Node] | None = None, older: Container[Node] = (),
    only_flowing: bool = False,
) -> tuple[list[Node], dict[Node, _History]]:  # fmt: skip
    """The roots with each BUFFER that has a history replaced by it, and those histories.

    Only where gradients flow: detached values, and values written to a leaf, may have a void one.
    only_flowing: do not replace other writes by their values, as a history needs it.
    """
    if order is None:
        order = topological(roots)
    writes = {n for n in picked(order, _WRITES) if n not in older and not wants_gradient(n)}
    if writes and only_flowing:
        writes &= _flowing(roots, order, writes)
    if writes:  # leaves stay as they are, also if a write to them waits
        kept = {*leaves_among(order), *(node for node in order if node in older)}
        roots = see_through(roots, writes, kept)
        order = topological(roots)
    found = _known(order)
    if found:
        flowing = _flowing(roots, order)
        found = {node: history for node, history in found.items() if node in flowing}
        free = {node: history for node, history in found.items() if not history.marked}
        for node, _ in list(_overwritten(free)):
            del found[node]
    return replaced(roots, {node: history.node for node, history in found.items()}), found
