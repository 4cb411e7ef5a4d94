"""Many writes to parts of one array, as Python loops leave them, become one operation.

    out[i] = f(x[i])                   →   a join of all rows, or a SCATTER of them
    counts[label, guess] += 1          →   a SCATTER_ADD
    out[i] = g(out[i - 1])             →   reads of `out` become the values that were written there

A write is a WHERE that selects new values inside of a box, and the array as it was outside. So n
writes are a chain of n choices for each element. As one operation they cost no more than what is
written, and their places are numbers in memory instead of code.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import chain
from math import prod
from typing import NamedTuple

from minigrad.graph import build
from minigrad.graph.autobatch import MANY, stacked
from minigrad.graph.axes import spread, within
from minigrad.graph.node import CONST, INDEX, WHERE, Node, Op, const, is_symbolic, picked
from minigrad.graph.symbolic import Integer

_WRITES = frozenset({WHERE})
Box = tuple[tuple[int, int], ...]  # start and stop along each axis


class Write(NamedTuple):
    """`part` in a box of `old`, or added to what is there: to `read`, a part of `old`."""

    node: Node
    old: Node
    box: Box
    part: Node
    read: Node | None = None


def as_write(node: Node, uses: Mapping[Node, int]) -> Write | None:
    """What a WHERE writes; None if it is no write to a box."""
    mask, value, old = node.src
    if mask.op is not Op.PAD or mask.src[0].op is not CONST:
        return None
    if is_symbolic(node.shape) or not _is_known(mask.arg):
        return None
    box = tuple([(a, e - b) for (a, b), e in zip(mask.arg, node.shape, strict=True)])
    if value.op is CONST:
        part = const(value.arg, value.dtype, mask.src[0].shape, value.device)
    elif value.op is Op.PAD and value.arg == mask.arg:
        part = value.src[0]
    else:
        part = build.shrink(value, box)
    total = _below_reshapes(part, uses)
    for one, other in _sums(total) if uses[total] == 1 else ():
        read = _below_reshapes(one, uses)
        if read.op is Op.SHRINK and uses[read] == 1 and read.src[0] is old and read.arg == box:
            return Write(node, old, box, build.reshape(other, part.shape), read)
    return Write(node, old, box, part)


def _sums(node: Node) -> list[tuple[Node, Node]]:
    """Pairs of nodes whose sum it is."""
    if node.op is Op.ADD:
        x, y = node.src
        return [(x, y), (y, x)]
    return [(node.src[0], -node.src[1])] if node.op is Op.SUB else []


def _below_reshapes(node: Node, uses: Mapping[Node, int]) -> Node:
    """The first node that is not a reshape with a single reader."""
    while node.op is Op.RESHAPE and uses[node] == 1:
        node = node.src[0]
    return node


def _is_known(pairs: Iterable[tuple[Integer, Integer]]) -> bool:
    """Whether pairs of integers have no symbolic ones."""
    return not is_symbolic((*chain.from_iterable(pairs),))


class Chain:
    """Writes of one kind, each to the result of the one before, at places that do not overlap.

    Along an axis, either all boxes are equal, or the axis is divided into blocks of their size.
    """

    def __init__(self, first: Write) -> None:
        self.writes = [first]
        self.moving: set[int] = set()  # axes along which boxes differ
        self.at: dict[Box, list[int]] = {first.box: [0]}  # box → its writes, by number

    def takes(self, write: Write) -> bool:
        """Add a write, if it continues the chain."""
        first, last = self.writes[0], self.writes[-1]
        if write.old is not last.node or (write.read is None) is not (first.read is None):
            return False
        extents = first.node.shape
        for axis, (own, other) in enumerate(zip(first.box, write.box, strict=True)):
            if own != other:
                size = own[1] - own[0]
                if other[1] - other[0] != size or any(
                    place % size for place in (own[0], other[0], extents[axis])
                ):
                    return False
                self.moving.add(axis)
        self.at.setdefault(write.box, []).append(len(self.writes))
        self.writes.append(write)
        return True

    def read(self, number: int, ranges: Box) -> int | None:
        """The last write, up to a number, in which some ranges are; −1: before all writes.

        None if they are in several blocks.
        """
        box = []
        for axis, (start, stop) in enumerate(ranges):
            first, last = self.writes[0].box[axis]
            if axis in self.moving:
                size = last - first
                first = start // size * size
                last = first + size
            elif stop <= first or last <= start:
                return -1
            if start < first or last < stop:
                return None
            box.append((first, last))
        known = self.at.get(tuple(box), ())
        place = bisect_right(known, number)
        return known[place - 1] if place else -1


def writes_as_one(
    roots: Sequence[Node], order: Sequence[Node], kept: Set[Node]
) -> list[Node]:
    """The roots with many writes to one array as one. order: `topological(roots)`.

    kept: nodes that something else depends on, which stay as they are.
    """
    found = [node for node in picked(order, _WRITES) if node.src[0].op is Op.PAD]
    if len(found) <= MANY:
        return list(roots)
    uses = Counter(chain(roots, *[node.src for node in order]))
    chains: dict[Node, Chain] = {}  # by the node of their last write
    for node in found:
        write = as_write(node, uses)
        if write is not None:
            known = chains.get(write.old)
            if known is not None and known.takes(write):
                del chains[write.old]
            else:
                known = Chain(write)
            chains[node] = known
    long = [one for one in chains.values() if len(one.writes) > MANY]
    return _Remaker(long, roots, order).remade(roots, order, kept) if long else list(roots)


class _Remaker:
    """Makes the nodes of a graph again, without the states between the writes of some chains.

    place: the node of a write → its chain and number. reads: a SHRINK → the chain, and the number
    of the write that it shows a part of. needed: states that other nodes need as a whole.
    """

    def __init__(
        self, chains: Sequence[Chain], roots: Sequence[Node], order: Sequence[Node]
    ) -> None:
        self.place = {write.node: (one, number)
                      for one in chains for number, write in enumerate(one.writes)}  # fmt: skip
        self.reads: dict[Node, tuple[Chain, int]] = {}
        self.needed = {root for root in roots if root in self.place}
        self.new: dict[Node, Node] = {}
        for node in order:
            for source in node.src:
                if source in self.place:
                    self._add_reader(node, source)

    def _add_reader(self, node: Node, source: Node) -> None:
        """Decide how a node is made that reads a state."""
        one, number = self.place[source]
        following = one.writes[number + 1 : number + 2]
        if any(node in (write.read, write.node) for write in following):
            return
        at = None
        if node.op is Op.SHRINK and one.writes[0].read is None and _is_known(node.arg):
            at = one.read(number, node.arg)
        if at is None:
            self.needed.add(source)
        else:
            self.reads[node] = one, at

    def remade(
        self, roots: Sequence[Node], order: Sequence[Node], kept: Set[Node]
    ) -> list[Node]:
        """The roots; order: `topological(roots)`. kept: nodes that stay."""
        new = self.new
        begun: dict[Chain, int] = {}  # writes that are in a known state already
        for node in order:
            if node in kept:
                new[node] = node
            elif node in self.reads:
                new[node] = self._read(node, *self.reads[node])
            elif node in self.needed:
                one, number = self.place[node]
                new[node] = self._written(one.writes[begun.get(one, 0) : number + 1])
            elif node in self.place:
                continue
            elif all(source in new for source in node.src):  # else only states need it
                new[node] = build.rebuild(node, [new[source] for source in node.src])
            if node in self.place:
                one, number = self.place[node]
                begun[one] = number + 1
        return [new[root] for root in roots]

    def _made(self, node: Node) -> Node:
        """A node of the graph, or one on top of those."""
        known = self.new.get(node)
        if known is None:
            known = build.rebuild(node, [self._made(source) for source in node.src])
        return known

    def _read(self, node: Node, one: Chain, at: int) -> Node:
        """What a SHRINK of a state shows."""
        if at < 0:
            return build.shrink(self.new[one.writes[0].old], node.arg)
        write = one.writes[at]
        ranges = [(start - first, stop - first)
                  for (start, stop), (first, _) in zip(node.arg, write.box, strict=True)]
        return build.shrink(self._made(write.part), ranges)

    def _written(self, writes: Sequence[Write]) -> Node:
        """The state after some writes."""
        state = self.new[writes[0].old]
        parts = [self._made(write.part) for write in writes]
        if len(writes) > MANY:
            return _as_one(state, writes, parts)
        for write, part in zip(writes, parts, strict=True):
            if write.read is not None:
                part = build.shrink(state, write.box) + part
            state = within(part, _around(write.box, state), state)
        return state


def _as_one(base: Node, writes: Sequence[Write], parts: Sequence[Node]) -> Node:
    """`base` after all writes: its blocks are numbered along one axis."""
    first = writes[0].box
    moving = [axis for axis in range(base.ndim) if any(w.box[axis] != first[axis] for w in writes)]
    ranges = [(0, extent) if axis in moving else first[axis]
              for axis, extent in enumerate(base.shape)]  # fmt: skip
    whole = build.shrink(base, ranges)
    size = [stop - start for start, stop in first]
    extents = (extent for extent in whole.shape if isinstance(extent, int))  # all are
    count = [extent // each for extent, each in zip(extents, size, strict=True)]
    # (blocks, elements of one) in place of each axis; numbers of blocks along several come first
    order = [*range(2 * base.ndim)]
    axis = moving[0] if len(moving) == 1 else 0
    if len(moving) > 1:
        order = order[::2] + order[1::2]
    divided = (*chain.from_iterable(zip(count, size, strict=True)),)
    split = build.permute(build.reshape(whole, divided), order)
    numbers = [0] * len(writes)
    for each in moving:
        numbers = [number * count[each] + write.box[each][0] // size[each]
                   for number, write in zip(numbers, writes, strict=True)]  # fmt: skip
    shape = (*size[:axis], prod(count), *size[axis:])
    blocks = _in_blocks(build.reshape(split, shape), axis, numbers, parts,
                        writes[0].read is not None)  # fmt: skip
    undone = build.permute(build.reshape(blocks, split.shape), [*map(order.index, sorted(order))])
    written = build.reshape(undone, whole.shape)
    if written.shape == base.shape:
        return written
    return within(written, _around(ranges, base), base)


def _around(box: Iterable[tuple[Integer, Integer]], whole: Node) -> list[tuple[Integer, Integer]]:
    """How much is before and after a box, along each axis."""
    return [(start, extent - stop)
            for (start, stop), extent in zip(box, whole.shape, strict=True)]  # fmt: skip


def _in_blocks(
    blocks: Node, axis: int, numbers: Sequence[int], parts: Sequence[Node], adds: bool
) -> Node:
    """An array with parts in place of blocks of these numbers along an axis, or added to them."""
    latest = dict(zip(numbers, parts, strict=True))
    start = min(latest)
    if not adds and max(latest) - start + 1 == len(latest):
        rows = stacked([latest[number] for number in sorted(latest)], axis)
        around: list[tuple[Integer, Integer]] = [(0, 0)] * blocks.ndim
        around[axis] = start, blocks.shape[axis] - start - len(latest)
        return rows if rows.shape == blocks.shape else within(rows, around, blocks)
    rows = stacked(parts, axis)
    places = stacked([const(number, INDEX, (), blocks.device) for number in numbers])
    op = Op.SCATTER_ADD if adds else Op.SCATTER
    return build.scatter(op, blocks, spread(places, rows.shape, (axis,)), rows, axis)
