"""Which live tensors stand for which node.

Nodes are interned, so several tensors may stand for one. Code that replaces a node by the buffer
with its value must find all of them, and so must code that overwrites a buffer which some still
read. Links are weak: a tensor lives as long as its user wants.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any

from minigrad.graph.node import BUFFER, Node, ages
from minigrad.locks import held_over_forks
from minigrad.tensor.observed import capturing

lock = held_over_forks()


class _Rank(threading.local):
    """The rank number of this thread's devices, if it is one of several ranks in a process.

    Such a thread sees only tensors on its own devices ("CPU:2", "REF:2"), not what other ranks have
    started or wait for. devices: the names themselves, for a stage of a pipeline.
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


REPLAYED, FROZEN = "replayed", "frozen"


class Holder:
    """The engine's part of a tensor.

    raw: the node whose value it is. stopped: no gradient flows from it to its sources; REPLAYED if
    one should flow, but cannot; FROZEN for what was a leaf and may become one again: a gradient
    flows to it from what was computed when it was one. requires_grad: True for a leaf that gets a
    gradient, False for one that gets none, None if not set. _origin: for a view, how it was made;
    _family: its views, if it ever had any (see `views`).
    """

    __slots__ = ("raw", "stopped", "_requires_grad", "_origin", "_family", "_link", "__weakref__")
    raw: Node
    stopped: bool | str
    _requires_grad: bool | None
    _origin: Any
    _family: Any
    _link: Link

    def _borrows(self, target: Node) -> bool:
        """Whether a BUFFER's memory is owned by another tensor, so that this one must not write it.
        """
        owner = target.arg.owner
        return bool(owner) and owner is not self._link

    def _point(self, node: Node) -> None:
        """Stand for another node."""
        with lock:
            point(self, node)


class Link(weakref.ref[Holder]):
    """A weak reference to a tensor that knows the node it is filed under.

    device: of the node. filed: the age of a node created at the same time. thread: which created or
    last wrote the tensor (unset after a replay). death: for a link without a callback, another link
    that has one.
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
shared: set[int] = set()  # ids of BUFFER nodes with several tensors
# Links to tensors whose node is not a BUFFER yet, and to views: other code may change these.
lazy_links: dict[int, Link] = {}


class _Clock:
    """Counters of events: as long as a number is the same, its event has not happened.

    lazies: a tensor became lazy. ended: a program ended, with other tensors still lazy; it is an
    age, which such tensors are older than. fresh: at least how many lazy tensors are younger.
    """

    # Of an instance: setting an attribute of a class slows down all uses of the class.
    lazies = ended = fresh = 0


clock = _Clock()


def file(holder: Holder, node: Node) -> None:
    """Make a holder findable by its node. The caller holds the lock."""
    number, link = id(node), holder._link
    link.node_id, link.device = number, node.device
    filed = by_node.setdefault(number, link)
    if filed is not link:
        _join(number, filed, link)
    if node.op is not BUFFER or holder._origin is not None:
        link.filed = next(ages)
        clock.fresh += 1
        lazy_links[id(link)] = link
        clock.lazies += 1
    elif filed is not link and _several(number):
        shared.add(number)


def point(holder: Holder, node: Node) -> None:
    """Let a holder stand for another node. The caller holds the lock."""
    _unfile(holder._link)
    holder.raw = node
    file(holder, node)
    if holder._link.__callback__ is None:
        _mourn(holder)


def _join(number: int, filed: Link | dict[int, Link], link: Link) -> None:
    """File a link next to those already filed under the node."""
    if isinstance(filed, dict):
        filed[id(link)] = link
        by_node[number] = filed  # the last of the others may have been removed meanwhile
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
    if lazy_links.pop(id(link), None) is not None and link.filed >= clock.ended:
        clock.fresh -= 1


def _links(number: int) -> list[Link]:
    """The links filed under a node, by its id."""
    filed = by_node.get(number)
    if filed is None:
        return []
    return [filed] if isinstance(filed, Link) else [*filed.values()]


def _several(number: int) -> bool:
    """Whether several tensors that are not views stand for a node."""
    holders = (link() for link in _links(number))
    return sum(holder is None or holder._origin is None for holder in holders) > 1


def _mourn(holder: Holder) -> None:
    """Make the death of a tensor noticed if its link has no callback."""
    link = holder._link
    if not hasattr(link, "death"):
        link.death = weakref.ref(holder, lambda _: forget(link))


def enter_alone(holder: Holder, node: Node) -> None:
    """Let a holder stand for a BUFFER node that nothing else refers to."""
    holder.raw = node
    holder._link = link = Link(holder, forget)
    link.node_id, link.device = id(node), node.device
    by_node[id(node)] = link


def stay_alone(node: Node) -> None:
    """Let one tensor after another stand for a BUFFER node that nothing else refers to.

    Such a tensor is filed by `by_node[id(node)] = link`, with a link that needs no callback: the
    next tensor's link replaces it, or it is removed with the node.
    """
    weakref.finalize(node, by_node.pop, id(node), None).atexit = False


def forget(link: Link, ending: Callable[[], bool] = sys.is_finalizing) -> None:
    """Remove the link of a tensor that was deleted."""
    if ending():  # modules are being torn down: their tables are gone
        return
    try:
        with lock:
            _unfile(link)
    except AttributeError:  # Ctrl-C came before it was filed
        pass


def _alive(links: Iterable[Link]) -> list[Holder]:
    """The live tensors of this rank. It must not keep other ranks' alive, not even briefly."""
    knows, alone = rank.knows, rank.number is None and not rank.devices
    return [h for link in links if (alone or knows(link.device)) and (h := link()) is not None]


def holders(node: Node) -> list[Holder]:
    """The live tensors that stand for `node`."""
    filed = by_node.get(id(node))
    if isinstance(filed, Link):
        holder = filed()
        return [holder] if holder is not None else []
    return [holder for link in [*filed.values()] if (holder := link()) is not None] if filed else []


def wants_gradient(node: Node) -> bool:
    """Whether a tensor stands for `node` that requires a gradient, or is FROZEN."""
    return bool(leaves_among((node,)))


def held_among(nodes: Iterable[Node]) -> list[Node]:
    """The nodes for which a tensor stands: few of a graph's."""
    return [node for node in nodes if id(node) in by_node]


def leaves_among(nodes: Iterable[Node]) -> list[Node]:
    """The nodes for which a live tensor stands that requires a gradient, or is FROZEN."""
    # no function calls: this runs for each eager operation
    look, frozen = by_node.get, FROZEN
    found: list[Node] = []
    for node in nodes:
        filed = look(id(node))
        if filed is None:
            continue
        for link in (filed,) if isinstance(filed, Link) else [*filed.values()]:
            holder = link()
            if holder is not None and (holder._requires_grad or holder.stopped is frozen):
                found.append(node)
                break
    return found


def lazy_holders() -> list[Holder]:
    """All live tensors (of this rank) that are not realized, oldest first."""
    with lock:
        return [holder for holder in _alive([*lazy_links.values()]) if holder.raw.op is not BUFFER]


def of_this_thread(tensors: Iterable[Holder]) -> list[Holder]:
    """The tensors that this thread created or last wrote, as far as that is known."""
    me = get_ident()
    return [holder for holder in tensors if getattr(holder._link, "thread", me) == me]


def not_captured(tensors: Iterable[Holder]) -> list[Holder]:
    """The tensors that are not part of a step that another thread is capturing."""
    others = capturing.keys() - {get_ident()}
    return [holder for holder in tensors if getattr(holder._link, "thread", 0) not in others]


def lazy_since(age: int) -> list[Holder]:
    """The `lazy_holders` whose node is of this age or younger; oldest first.

    The caller holds the lock.
    """
    found: list[Holder] = []
    for link in reversed(lazy_links.values()):
        if link.filed < age:  # so were all before it, and their nodes
            break
        holder = link() if rank.knows(link.device) else None
        if holder is not None and holder.raw.op is not BUFFER and holder.raw.age >= age:
            found.append(holder)
    return found[::-1]


def lazy_views() -> list[Holder]:
    """All live views (of this rank), realized or not."""
    with lock:
        return [h for h in _alive([*lazy_links.values()]) if h._origin is not None]


def abandon(unwanted: Callable[[Node], bool]) -> None:
    """Forget lazy tensors (of this rank) with an `unwanted` node: other programs skip them."""
    with lock:
        for number, link in list(lazy_links.items()):
            holder = link() if rank.knows(link.device) else None
            if holder is not None and unwanted(holder.raw):
                del lazy_links[number]


def all_holders() -> list[Holder]:
    """All live tensors (of this rank)."""
    with lock:
        return _alive([link for number in [*by_node] for link in _links(number)])
