"""How realized tensors came to be, so that `backward` still works after `item()` or `print`.

Realizing replaces a node by the BUFFER that holds its value. Where the value depends on a marked
leaf, the graph that computed it is kept beside the BUFFER, for as long as somebody holds that. A
history is stored expanded: it reaches back to leaves, never to a BUFFER with a history of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minigrad.device import Buffer
from minigrad.errors import GradientError
from minigrad.graph.build import const, rebuild
from minigrad.graph.node import ASSIGN, BUFFER, Node, topological
from minigrad.graph.rewrite import remade, replaced
from minigrad.tensor.broadcasting import show
from minigrad.tensor.live_tensors import leaves_among, wants_gradient

_versions: weakref.WeakKeyDictionary[Node, int] = weakref.WeakKeyDictionary()
_NEVER = -1  # the version of what was overwritten before anybody could ask for a gradient


@dataclass(frozen=True)
class _History:
    """node: the expanded graph; versions: what the buffers it reads contained when it was made."""

    node: Node
    versions: tuple[tuple[Node, int], ...]


_histories: weakref.WeakKeyDictionary[Node, _History] = weakref.WeakKeyDictionary()
# The same, to be asked whether there are any: the length of the above takes a call of Python.
recorded: dict[Any, _History] = vars(_histories)["data"]


def see_through(
    roots: Sequence[Node], writes: set[Node], kept: Iterable[Node] = ()
) -> list[Node]:
    """The roots with each ASSIGN of `writes` replaced by the value that it writes.

    Nodes in `kept` stay as they are, with all that is below them.
    """
    if not writes:
        return list(roots)
    return remade(
        roots, lambda node, src: src[1] if node in writes else rebuild(node, src),
        {node: node for node in kept},
    )  # fmt: skip


def has_history(node: Node) -> bool:
    """Whether a BUFFER's value depends on a marked leaf."""
    return bool(recorded) and node in _histories


def overwritten(node: Node) -> None:
    """Note that the memory of a BUFFER node was written."""
    _versions[node] = _versions.get(node, 0) + 1
    _histories.pop(node, None)


def replayed(written: Container[Buffer]) -> None:
    """Note that a replay wrote buffers: histories that read them or belong to them are void."""
    for node, past in list(_histories.items()):
        for source in (node, *(source for source, _ in past.versions)):
            if source.arg in written:
                overwritten(source)


def record(
    buffer: Node, graph: Node, saved: dict[Node, Node], order: Sequence[Node] | None = None
) -> None:
    """Keep `graph` as the history of `buffer`; `saved` maps parts of it to buffers of their own.

    order: `topological([graph])`, if that is known. Never raises: a value that depends on one whose
    history is void has a void history.
    """
    (whole,) = replaced([graph], saved)
    if order is None or whole is not graph:
        order = topological([whole])
    (node,), found = _with_histories([whole], order)
    for _, source in _overwritten(found):
        lose(buffer, source)
        return
    reads = tuple(
        (source, _versions.get(source, 0))
        for source in (order if node is whole else topological([node]))
        if source.op is BUFFER
    )
    _histories[buffer] = _History(node, reads)


def lose(buffer: Node, source: Node) -> None:
    """Note that the value of `buffer` has a gradient that needs `source` as it was, and is not."""
    nothing = const(0.0, buffer.dtype, buffer.shape, buffer.device)
    _histories[buffer] = _History(nothing, ((source, _NEVER),))


def expand(
    roots: Sequence[Node], order: Sequence[Node] | None = None
) -> tuple[list[Node], dict[Node, Node]]:
    """The roots with each BUFFER that has a history replaced by it, and the way back.

    order: `topological(roots)`, if that is known.

    A write to a tensor that is no leaf is what it writes: gradients flow through it. Raises
    GradientError where a history needs values that were overwritten since.
    """
    expanded, found = _with_histories(roots, order)
    for node, source in _overwritten(found):
        raise GradientError(
            f"the gradient of a realized tensor of shape {show(node.shape)} needs a tensor of "
            f"shape {show(source.shape)} that was overwritten in place since (by an optimizer's "
            "step or assign); call backward() before the update"
        )
    return expanded, {history.node: buffer for buffer, history in found.items()}


def _overwritten(found: dict[Node, _History]) -> Iterator[tuple[Node, Node]]:
    """Which BUFFERs have a void history, and what each needs as it was."""
    for node, history in found.items():
        for source, version in history.versions:
            if _versions.get(source, 0) != version:
                yield node, source


def _with_histories(
    roots: Sequence[Node], order: Sequence[Node] | None = None
) -> tuple[list[Node], dict[Node, _History]]:
    """The roots with each BUFFER that has a history replaced by it, and those histories."""
    if order is None:
        order = topological(roots)
    writes = {node for node in order if node.op is ASSIGN and not wants_gradient(node)}
    if writes:  # a leaf stays the node that it is, also where it waits to be written itself
        roots = see_through(roots, writes, set(leaves_among(order)))
        order = topological(roots)
    found = {
        node: history
        for node in order
        if node.op is BUFFER and (history := _histories.get(node)) is not None
    }
    return replaced(roots, {node: history.node for node, history in found.items()}), found
