"""Notes for a capture in progress: attributes that influenced the step, and replaced tensors."""

from __future__ import annotations

import weakref
from threading import get_ident
from typing import Any

from minigrad.graph.node import Node
from minigrad.locks import in_child


class Observed(dict[tuple[int, str], tuple[weakref.ref[Any], bool]]):
    """Owners of attributes that code has used, by id and name, and whether it wrote them first.

    data: hashes of what the host gave to tensors. left: nodes of tensors that the code replaced by
    others. graded: tensors whose gradient was set or removed, by id, and whether that overwrote
    their previous gradient (else it was added to). without: tensors that had no gradient when the
    code looked, by id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.data: list[int] = []
        self.left: list[Node] = []
        self.graded: dict[int, tuple[weakref.ref[Any], bool]] = {}
        self.without: dict[int, weakref.ref[Any]] = {}


capturing: dict[int, Observed] = {}  # threads that are capturing a step → their notes
changes = [0]  # number of writes to noted attributes
in_child(capturing.clear)
# BUFFER node → captured steps that read it → links of the tensors that may stand for it, by id
readers: weakref.WeakKeyDictionary[Node, weakref.WeakKeyDictionary[Any, dict[int, Any]]] = (
    weakref.WeakKeyDictionary()
)


def observe(owner: Any, attribute: str, written: bool = False) -> bool:
    """Tell a capture in progress, if there is one, that a plain attribute influences its step.

    Code that writes such an attribute calls this first, too: a replay checks its noted attributes
    only if one was written. An attribute that a step writes before it reads it may have any value
    before.
    """
    changes[0] += written
    found = capturing.get(get_ident()) if capturing else None
    if found is not None:
        found.setdefault((id(owner), attribute), (weakref.ref(owner), written))
    return found is not None


def sets_gradient(tensor: Any, overwrites: bool) -> bool:
    """Tell a capture in progress that a tensor's gradient is overwritten, or added to.

    False if there is one that has done neither before.
    """
    found = capturing.get(get_ident()) if capturing else None
    if found is None or id(tensor) in found.graded:
        return True
    found.graded[id(tensor)] = weakref.ref(tensor), overwrites
    return False


def misses_gradient(tensor: Any) -> None:
    """Tell a capture in progress that it found no gradient that it has not removed itself."""
    found = capturing.get(get_ident())
    if found is not None and id(tensor) not in found.graded:
        found.without[id(tensor)] = weakref.ref(tensor)


def moves(node: Node, link: Any) -> None:
    """Tell captured steps that a tensor no longer stands for a BUFFER, or a part of it."""
    for reader, known in list(readers.get(node, {}).items()):
        if id(link) in known:
            reader.lose(node)


def replaces(node: Node) -> None:
    """Tell a capture in progress that an object now has another tensor in place of a node's."""
    found = capturing.get(get_ident())
    if found is not None:
        found.left.append(node)
