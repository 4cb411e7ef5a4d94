"""Which live tensors stand for which node.

Nodes are interned, so several tensors may stand for one. Whoever replaces a node by the buffer that
holds its value must find all of them, and so must whoever overwrites a buffer that some still read.
Links are weak: a tensor lives as long as its user wants.
"""

from __future__ import annotations

import threading
import weakref

from minigrad.graph.node import Node, Op

lock = threading.RLock()


class Holder:
    """What the engine knows of a tensor.

    raw: the node whose value it is. stopped: no gradient flows from it to its sources.
    requires_grad: True for a leaf that wants a gradient, False for one that must have none, None
    where nobody said.
    """

    __slots__ = ("raw", "stopped", "_requires_grad", "_link", "__weakref__")
    raw: Node
    stopped: bool
    _requires_grad: bool | None

    def _enter(self, node: Node) -> None:
        """Stand for `node` for the first time."""
        self.raw = node
        self._link = _Link(self, _forget)
        with lock:
            _file(self._link, node)

    def _point(self, node: Node) -> None:
        """Stand for another node from now on."""
        with lock:
            _forget(self._link)
            self.raw = node
            _file(self._link, node)


class _Link(weakref.ref[Holder]):
    """A weak reference that knows under which node it is filed."""

    __slots__ = ("node_id",)
    node_id: int


# id of a node → id of a link → link. While a link is filed its tensor keeps the node alive, so an
# id cannot be given to another node meanwhile.
_by_node: dict[int, dict[int, _Link]] = {}
_alone: dict[int, _Link] = {}  # id of a node → link: results of replays, which are quick to file
shared: set[int] = set()  # ids of BUFFER nodes for which several tensors stand
_lazy: dict[int, _Link] = {}  # those whose node is not a BUFFER yet
lazy_links = _lazy  # for whoever only asks whether there are any


def _file(link: _Link, node: Node) -> None:
    link.node_id = id(node)
    alone = _alone.pop(link.node_id, None)
    if alone is not None:
        _by_node[link.node_id] = {id(alone): alone}
    _by_node.setdefault(link.node_id, {})[id(link)] = link
    if node.op is not Op.BUFFER:
        _lazy[id(link)] = link
    elif len(_by_node[link.node_id]) > 1:
        shared.add(link.node_id)


def enter_alone(holder: Holder, node: Node) -> None:
    """`holder._enter(node)` for a BUFFER node that nobody else can know."""
    holder.raw = node
    holder._link = link = _Link(holder, _forget)
    link.node_id = number = id(node)
    _alone[number] = link


def _forget(link: _Link) -> None:
    if _alone.get(link.node_id) is link and _alone.pop(link.node_id, None) is not None:
        return  # without the lock: where another thread files it elsewhere, one of the two sees it
    with lock:
        links = _by_node.get(link.node_id)
        if links is not None:
            links.pop(id(link), None)
            if not links:
                del _by_node[link.node_id]
            if len(links) < 2:
                shared.discard(link.node_id)
        _lazy.pop(id(link), None)


def _alive(links: list[_Link]) -> list[Holder]:
    return [holder for link in links if (holder := link()) is not None]


def holders(node: Node) -> list[Holder]:
    """The live tensors that stand for `node`."""
    links = _by_node.get(id(node))
    if links is None:
        alone = _alone.get(id(node))
        return _alive([alone]) if alone is not None else []
    return _alive(list(links.values()))


def wants_gradient(node: Node) -> bool:
    """Whether a live tensor that stands for `node` was marked as a leaf."""
    return any(holder._requires_grad for holder in holders(node))


def lazy_holders() -> list[Holder]:
    """All live tensors that are not realized, oldest first."""
    with lock:
        return _alive(list(_lazy.values()))


def all_holders() -> list[Holder]:
    """All live tensors."""
    with lock:
        links = [link for several in list(_by_node.values()) for link in several.values()]
        return _alive([*links, *list(_alone.values())])
