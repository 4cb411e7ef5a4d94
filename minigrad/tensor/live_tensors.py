"""Which live tensors stand for which node.

Nodes are interned, so several tensors may stand for one. Code that replaces a node by the buffer
with its value must find all of them, and so must code that overwrites a buffer which some still
read. Links are weak: a tensor lives as long as its user wants.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import compress
from threading import get_ident
from typing import Any

from minigrad.graph.node import BUFFER, Node, ages
from minigrad.locks import held_over_forks
from minigrad.tensor.noted import capturing

lock = held_over_forks()


class _Rank(threading.local):
    """The number that this thread's devices have, where it is one rank of several in a process.

    Such a thread knows of the tensors on its own devices only ("CPU:2", "REF:2"): what the other
    ranks have begun, and what they wait for, is not its business. devices: the names themselves,
    where it is a stage of a pipeline.
    """

    number: int | None = None
    devices: frozenset[str] = frozenset()

    def knows(self, device: str) -> bool:
        if self.devices:
            return device in self.devices
        if self.number is None:
            return True
        return device.partition(":")[2] == (str(self.number) if self.number else "")


rank = _Rank()


REPLAYED = "replayed"


class Holder:
    """What the engine knows of a tensor.

    raw: the node whose value it is. stopped: no gradient flows from it to its sources; REPLAYED
    where one should, and cannot.
    requires_grad: True for a leaf that wants a gradient, False for one that must have none, None
    where nobody said. _origin: how it came to be, for a view; _family: its views, if it had any
    (see `views`).
    """

    __slots__ = ("raw", "stopped", "_requires_grad", "_origin", "_family", "_link", "__weakref__")
    raw: Node
    stopped: bool | str
    _requires_grad: bool | None
    _origin: Any
    _family: Any
    _link: Link

    def _borrows(self, target: Node) -> bool:
        """Whether a BUFFER's memory is known as another tensor's, so that this may not write it."""
        owner = target.arg.owner
        return bool(owner) and owner is not self._link

    def _point(self, node: Node) -> None:
        """Stand for another node from now on."""
        with lock:
            _unfile(self._link)
            self.raw = node
            file(self, node)
            if self._link.__callback__ is None:
                _mourn(self)


class Link(weakref.ref[Holder]):
    """A weak reference that knows under which node it is filed.

    device: where the node is. filed: the age that a node made then would have had. thread: which
    made it or wrote it last (unknown of a replay's results). death: for one without a callback,
    another that has one.
    """

    __slots__ = ("node_id", "device", "filed", "thread", "death")
    node_id: int
    device: str
    filed: int
    thread: int
    death: weakref.ref[Holder]


# id of a node → its link, or several by their ids. While a link is filed its tensor keeps the node
# alive, so an id cannot be given to another node meanwhile.
by_node: dict[int, Link | dict[int, Link]] = {}
shared: set[int] = set()  # ids of BUFFER nodes for which several tensors stand
# Those whose node is not a BUFFER yet, and views: what they show may change without them.
_lazy: dict[int, Link] = {}
lazy_links = _lazy  # for whoever only asks whether there are any


class _Clock:
    """How often something has happened; while a number stands, it has not.

    lazies: a tensor became lazy.
    """

    __slots__ = ("lazies",)
    lazies: int


clock = _Clock()
clock.lazies = 0


def file(holder: Holder, node: Node) -> None:
    """Let a holder with a link be found by its node. The lock is held."""
    number, link = id(node), holder._link
    link.node_id, link.device = number, node.device
    filed = by_node.setdefault(number, link)
    if filed is not link:
        _join(number, filed, link)
    if node.op is not BUFFER or holder._origin is not None:
        _lazy[id(link)] = link
        link.filed = next(ages)
        clock.lazies += 1
    elif filed is not link and _several(number):
        shared.add(number)


def _join(number: int, filed: Link | dict[int, Link], link: Link) -> None:
    """File a link with those that are there."""
    if isinstance(filed, dict):
        filed[id(link)] = link
        by_node[number] = filed  # the last of the others may have gone meanwhile
        return
    other = filed()
    by_node[number] = link if other is None else {id(filed): filed, id(link): link}
    if other is not None and filed.__callback__ is None:
        _mourn(other)


def _unfile(link: Link) -> None:
    number = link.node_id
    filed = by_node.get(number)
    if filed is link:
        del by_node[number]
    elif isinstance(filed, dict):
        filed.pop(id(link), None)
        if not filed:
            del by_node[number]
        if number in shared and not _several(number):
            shared.discard(number)
    _lazy.pop(id(link), None)


def _links(number: int) -> list[Link]:
    """Those of a node, by its id."""
    filed = by_node.get(number)
    if filed is None:
        return []
    return [filed] if isinstance(filed, Link) else [*filed.values()]


def _is_view(link: Link) -> bool:
    holder = link()
    return holder is not None and holder._origin is not None


def _several(number: int) -> bool:
    """Whether several tensors that are no views stand for a node."""
    return sum(not _is_view(link) for link in _links(number)) > 1


def _mourn(holder: Holder) -> None:
    """See to it that the death of a tensor is noticed, whose link does not do so itself."""
    link = holder._link
    if not hasattr(link, "death"):
        link.death = weakref.ref(holder, lambda _: forget(link))


def enter_alone(holder: Holder, node: Node) -> None:
    """Let a holder stand for a BUFFER node that nobody else can know."""
    holder.raw = node
    holder._link = link = Link(holder, forget)
    link.node_id, link.device = id(node), node.device
    by_node[id(node)] = link


def stay_alone(node: Node) -> None:
    """Let tensors, one after the other, stand for a BUFFER node that nobody else can know.

    Such a tensor is filed by `by_node[id(node)] = link`, with a link that needs no callback: it
    makes way for the next one, or goes with the node.
    """
    weakref.finalize(node, by_node.pop, id(node), None).atexit = False


def forget(link: Link, ending: Callable[[], bool] = sys.is_finalizing) -> None:
    """The tensor of a link is gone."""
    if ending():  # modules are taken apart: their tables are gone
        return
    try:
        with lock:
            _unfile(link)
    except AttributeError:  # Ctrl-C came before it was filed
        pass


def _alive(links: Iterable[Link]) -> list[Holder]:
    """Those of this rank: not even for a moment may one keep another's lazy tensor alive."""
    knows = rank.knows
    return [h for link in links if knows(link.device) and (h := link()) is not None]


def holders(node: Node) -> list[Holder]:
    """The live tensors that stand for `node`."""
    filed = by_node.get(id(node))
    if isinstance(filed, Link):
        holder = filed()
        return [holder] if holder is not None else []
    return [holder for link in [*filed.values()] if (holder := link()) is not None] if filed else []


def wants_gradient(node: Node) -> bool:
    """Whether a live tensor that stands for `node` was marked as a leaf."""
    return bool(leaves_among((node,)))


def held_among(nodes: Collection[Node]) -> Iterator[Node]:
    """Those for which a tensor stands: of a graph, few."""
    return compress(nodes, map(by_node.__contains__, map(id, nodes)))


def leaves_among(nodes: Iterable[Node]) -> list[Node]:
    """Those for which a live tensor stands that was marked as a leaf."""
    look, found = by_node.get, []  # for each eager operation: no calls of functions
    for node in nodes:
        filed = look(id(node))
        if filed is None:
            continue
        for link in (filed,) if isinstance(filed, Link) else [*filed.values()]:
            holder = link()
            if holder is not None and holder._requires_grad:
                found.append(node)
                break
    return found


def lazy_holders() -> list[Holder]:
    """All live tensors (of this rank) that are not realized, oldest first."""
    with lock:
        alive = _alive([*_lazy.values()])
        return [holder for holder in alive if holder.raw.op is not BUFFER]


def of_this_thread(tensors: Iterable[Holder]) -> list[Holder]:
    """Those that this thread made or wrote last, as far as that is known."""
    me = get_ident()
    return [holder for holder in tensors if getattr(holder._link, "thread", me) == me]


def not_captured(tensors: Iterable[Holder]) -> list[Holder]:
    """Those that are in no step which another thread captures now."""
    others = capturing.keys() - {get_ident()}
    return [holder for holder in tensors if getattr(holder._link, "thread", 0) not in others]


def lazy_since(age: int) -> list[Holder]:
    """The `lazy_holders` whose node may need one of an age, or a younger one; oldest first."""
    found: list[Holder] = []
    with lock:
        for link in reversed(_lazy.values()):
            if link.filed < age:  # and so were all before it, and their nodes
                break
            holder = link() if rank.knows(link.device) else None
            if holder is not None and holder.raw.op is not BUFFER and holder.raw.age >= age:
                found.append(holder)
    return found[::-1]


def lazy_views() -> list[Holder]:
    """All live views (of this rank), realized or not."""
    with lock:
        return [h for h in _alive([*_lazy.values()]) if h._origin is not None]


def abandon(unwanted: Callable[[Node], bool]) -> None:
    """Let nobody realize tensors (of this rank) on the way, whose node is `unwanted`."""
    with lock:
        for number, link in list(_lazy.items()):
            holder = link() if rank.knows(link.device) else None
            if holder is not None and unwanted(holder.raw):
                del _lazy[number]


def all_holders() -> list[Holder]:
    """All live tensors (of this rank)."""
    with lock:
        return _alive([link for number in [*by_node] for link in _links(number)])
