"""Notes for a capture in progress: attributes that influenced the step, and replaced tensors."""

from __future__ import annotations

import weakref
from threading import get_ident
from typing import Any

from minigrad.graph.node import Node
from minigrad.locks import in_child


class Noted(dict[tuple[int, str], weakref.ref[Any] | None]):
    """Whose attributes code has read, by their ids and names; None for those that it wrote first.

    left: the nodes of tensors in whose place it has put others. graded: tensors that got a gradient
    or lost theirs, by their ids, and whether what they had before did not matter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left: list[Node] = []
        self.graded: dict[int, tuple[weakref.ref[Any], bool]] = {}


capturing: dict[int, Noted] = {}  # threads that capture a step now → what that has told
changes = [0]  # how often an attribute was written that code notes
in_child(capturing.clear)
# BUFFER node → captured steps that read it → links of tensors as which they may know it, by ids
readers: weakref.WeakKeyDictionary[Node, weakref.WeakKeyDictionary[Any, dict[int, Any]]] = (
    weakref.WeakKeyDictionary()
)


def note(owner: Any, attribute: str, written: bool = False) -> None:
    """Tell a capture that goes on of an attribute, a plain value, that decides what is computed.

    Whoever writes it says so before, too: a replay looks at all that its capture noted only if
    something was written. What a step writes before it reads it may be anything before.
    """
    changes[0] += written
    found = capturing.get(get_ident())
    if found is not None:
        found.setdefault((id(owner), attribute), None if written else weakref.ref(owner))


def grades(tensor: Any, anew: bool) -> None:
    """Tell a capture that goes on that a tensor gets another gradient, anew or one added to it."""
    found = capturing.get(get_ident())
    if found is not None:
        found.graded.setdefault(id(tensor), (weakref.ref(tensor), anew))


def moves(node: Node, link: Any) -> None:
    """Tell captured steps that a tensor stands for a BUFFER, or a part of it, no longer."""
    for reader, known in list(readers.get(node, {}).items()):
        if id(link) in known:
            reader.lose(node)


def replaces(node: Node) -> None:
    """Tell a capture that goes on that an object has another tensor in the place of a node's."""
    found = capturing.get(get_ident())
    if found is not None:
        found.left.append(node)
