"""Views: tensors that show elements of another, as in numpy.

A view has a base and the steps that lead from the base to it. Nodes are immutable, so a write gives
the base a new node, and applies the steps of every view to that node. A realized view holds a copy
until then. Code that overwrites memory without telling the base (a replay) first lets its views
read that memory: see `align`.

A base in memory lives as long as its views. A computed base does not: the user may have dropped it
in order never to compute it. Then a view is an independent tensor, as long as no other view shows
the same elements. A write to one of several views recreates the base if its node is still alive,
and raises if not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container
from typing import Any

from minigrad.device import Buffer
from minigrad.dtype import dtypes
from minigrad.errors import ShapeError
from minigrad.graph import build
from minigrad.graph.node import Node, Op, unshared
from minigrad.graph.symbolic import high, low
from minigrad.tensor.broadcasting import show
from minigrad.tensor.live_tensors import Holder, lazy_views

Step = Callable[[Node], Node]  # a movement: node → node
_IN_MEMORY = (Op.BUFFER, Op.ASSIGN, Op.CONST)


class Family:
    """A base and its views, none of which it keeps alive.

    node: the base's node when a view was last made or written. origin: set if the base is itself a
    view of a tensor that is gone.
    """

    __slots__ = ("base", "node", "views", "origin", "stopped", "shape", "dtype", "device")

    def __init__(self, base: Holder) -> None:
        node, self.stopped = base.raw, base.stopped
        self.base: weakref.ref[Holder] = base._link
        self.node = weakref.ref(node)
        self.views: dict[int, weakref.ref[Holder]] = {}
        self.origin: Origin | None = base._origin
        self.shape, self.dtype, self.device = node.shape, node.dtype, node.device

    def renewed(self, kind: Any) -> Holder | None:
        """The base recreated, if its node is alive and a view still shows that node's values."""
        node = self.node()
        if node is None or all(view._origin.on(node) is not view.raw for view in self.living()):
            return None
        base: Holder = kind._of(node)
        base._family, base._origin, self.base = self, self.origin, base._link
        base.stopped = self.stopped
        if self.origin is not None:
            self.origin.family.add(base)
        return base

    def living(self) -> list[Holder]:
        """The views that are still alive."""
        return [view for link in list(self.views.values()) if (view := link()) is not None]

    def add(self, view: Holder) -> None:
        """Add a view; now and then forget those that are gone."""
        count = len(self.views)
        if count > 2 and count & (count - 1) == 0:
            self.views = {id(one._link): one._link for one in self.living()}
        self.views[id(view._link)] = view._link


class Origin:
    """How a view was made.

    family: of its base. base: the base, if it must live as long as the view. before: the origin of
    the view that this is a view of. stops: no gradient flows through it, whatever its base does.
    """

    __slots__ = ("family", "base", "before", "step", "stops")

    def __init__(self, source: Holder, step: Step, stops: bool) -> None:
        self.before = before = source._origin
        self.step = step
        base = base_of(source)
        if before is None or (base is None and not _sharers(source)):
            self.before, base = None, source
            if source._family is None:
                source._family = Family(source)
            self.family: Family = source._family
        else:
            self.family = before.family
            stops = stops or before.stops
        self.stops = stops
        self.base = base if base is not None and base.raw.op in _IN_MEMORY else None

    def on(self, base: Node) -> Node:
        """The view's node where this is the base's."""
        steps: list[Step] = []
        origin: Origin | None = self
        while origin is not None:
            steps.append(origin.step)
            origin = origin.before
        for step in reversed(steps):
            base = step(base)
        return base

    def path(self, base: Any) -> Node:
        """The view of a placeholder array like the base; equal views are the same node."""
        return self.on(build.buffer("the base of a view", base.dtype, base.shape, base.device))


def base_of(view: Holder) -> Holder | None:
    """The living tensor that this is a view of, or None."""
    origin: Origin | None = view._origin
    if origin is None:
        return None
    return origin.family.base() if origin.base is None else origin.base


def writable(view: Holder) -> Holder | None:
    """Its base, recreated if need be; None for a tensor whose elements no other tensor shares."""
    base = base_of(view)
    if base is not None or view._origin is None:
        return base
    origin: Origin | None = view._origin
    base = view._origin.family.renewed(view.__class__)
    while origin is not None and base is None:
        for other in _sharers(view, origin):
            raise ShapeError(
                f"cannot write in place to a view of shape {view.raw.shape}: its base no longer "
                f"exists, but another view of it, of shape {other.raw.shape}, does; write to a "
                ".clone(), or keep the base"
            )
        origin = origin.family.origin
    return base


def _sharers(view: Holder, origin: Origin | None = None) -> list[Holder]:
    """Other views of a base that may show elements of this one. origin: its own, or its base's."""
    origin = origin or view._origin
    return [other for other in origin.family.living()
            if other is not view and _overlap(_box(origin), _box(other._origin))]  # fmt: skip


def written(base: Holder) -> None:
    """Let the views of a tensor, and their views, follow its new node."""
    family: Family | None = base._family
    if family is None:
        return
    family.node, family.stopped = weakref.ref(base.raw), base.stopped
    for view in family.living():
        _show_again(view, base)
        written(view)


def leave(view: Holder) -> None:
    """Make a view an independent tensor that stands for its current node."""
    if view._origin is not None:
        view._origin.family.views.pop(id(view._link), None)
        view._origin = None
        view._point(view.raw)


def hand_over(base: Holder, heir: Holder) -> None:
    """Make the views of a tensor views of another one that shows the same values."""
    family: Family | None = base._family
    if family is None:
        return
    base._family, heir._family, family.base = None, family, heir._link
    for view in family.living():
        origin: Origin | None = view._origin
        while origin is not None:
            origin.base = heir if origin.base is base else origin.base
            origin = origin.before


def same(view: Holder, other: Holder) -> bool:
    """Whether two tensors are views of the same elements of one tensor."""
    base = base_of(view)
    if base is None or base is not base_of(other):
        return False
    one, two = (shown._origin.path(base.raw) for shown in (view, other))
    return one is two


def bases_of_copies() -> list[Holder]:
    """The bases of views that were realized."""
    copies = [view for view in lazy_views() if view.raw.op is Op.BUFFER]
    return [base for view in copies if (base := base_of(view)) is not None]


def align(memory: Container[Buffer] | None = None) -> set[int]:
    """Let views whose bases are in memory (in one of `memory`) read that; ids of their links."""
    found = set()
    for view in lazy_views():
        base = base_of(view)
        if base is not None and base.raw.op is Op.BUFFER:
            if memory is None or base.raw.arg in memory:
                found.add(id(view._link))
                _show_again(view, base)
    return found


def _show_again(view: Holder, base: Holder) -> None:
    """Let a view show the current values of its base."""
    node = view._origin.on(base.raw)
    if node is not view.raw:
        view._point(node)
    view.stopped = view._origin.stops or base.stopped


def _box(origin: Origin) -> list[tuple[int, int]]:
    """For each axis of a base, a range that contains all elements of a view, by its slices."""
    family = origin.family
    chain = [origin.path(family)]
    while chain[-1].op is not Op.BUFFER:
        chain.append(chain[-1].src[0])
    box = [(0, high(extent)) for extent in family.shape]
    axes, flipped = list(range(len(box))), [False] * len(box)
    for node in chain[-2::-1]:
        if node.op is Op.PERMUTE:
            axes = [axes[axis] for axis in node.arg]
        elif node.op is Op.FLIP:
            for axis in node.arg:
                flipped[axes[axis]] ^= True
        elif node.op is Op.SHRINK:
            for axis, (start, stop) in zip(axes, node.arg, strict=True):
                first, last = box[axis]
                box[axis] = (
                    (last - high(stop), last - low(start)) if flipped[axis]
                    else (first + low(start), first + high(stop))
                )  # fmt: skip
        else:
            break
    return box


def _overlap(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))


def write_through(base: Node, origin: Origin, value: Node) -> Node:
    """`base` with the elements that a view shows replaced by `value`, which has the view's shape.

    The view's steps are undone, last one first; elements cut off by a SHRINK keep their old value.
    """
    step = origin.path(base)
    mask = build.const(True, dtypes.bool, step.shape, base.device)
    while step.op is not Op.BUFFER:
        source = step.src[0]
        if mask.op is Op.CONST:
            # Masks of equal places share nothing. Otherwise the structure of a loop's graph would
            # tell which of its places are equal, for instance the letters of a word.
            mask = unshared(mask)
        value, mask = _undo(step, source, value), _undo(step, source, mask)
        step = source
    if mask.op is Op.CONST:
        return value
    return build.elementwise(Op.WHERE, mask, value, base)


def _undo(step: Node, source: Node, x: Node) -> Node:
    if step.op in build.UNDONE:
        return build.undone(step, x)
    if step.op is Op.BITCAST:
        return x if x.dtype.is_bool else build.bitcast(x, source.dtype)
    many = step.op in (Op.EXPAND, Op.WINDOW)
    raise ShapeError(
        f"cannot write in place to a view of shape {show(step.shape)} made by {step.op.value}: "
        + ("several of its elements share one element" if many else "its elements are no elements")
        + " of its base; write to a .clone() or to the base"
    )
