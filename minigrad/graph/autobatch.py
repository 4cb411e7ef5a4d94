"""Batching: repeated copies of one computation, as Python loops create them, are computed together.

    f(x₀, w) + f(x₁, w) + …       →   Σ over the rows of f(join(x₀, x₁, …), w)
    cat(f(x₀, w), f(x₁, w), …)    →   f(join(x₀, x₁, …), w)

T small computations become one large one, whose graph is the same for every T. (Neubig, Goldberg
and Dyer, "On-the-fly operation batching in dynamic computation graphs", 2017.) Only small arrays
that need no gradient are joined. The order of additions in a sum changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import reduce
from itertools import chain, groupby
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

from minigrad.graph import build
from minigrad.graph.axes import part_along, row_of, split_axis, spread
from minigrad.graph.node import INDEX, Node, Op, beneath, grouped, picked, topological
from minigrad.graph.operations import MOVEMENT, REDUCTIONS
from minigrad.graph.rewrite import replaced
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Integer, plain
from minigrad.graph.vmap import batch, rows, sum_of_rows

MANY = 8  # up to so many copies share a kernel as they are; more are computed together
# Bytes of an array that a copy reads, and of each of its reductions, at most: larger ones take
# longer than what is saved, and would need the memory of all copies at once.
MOST_BYTES = 1 << 16
LEAVES = frozenset({Op.BUFFER, Op.CONST})
_JOINS = (Op.RESHAPE, Op.CAT)
_CAST = frozenset({Op.CAST, Op.RESHAPE})  # of which alone there is one pattern (`program.realize`)
_OF_MANY = frozenset({Op.ADD, Op.CAT})
_VARYING = frozenset({*LEAVES, Op.SHRINK})  # their arg may differ between copies
# Operations that have no form for many values at once, or must run as often as they were written.
_SINGLE = frozenset({
    Op.ASSIGN, Op.COPY, Op.COLLECTIVE, Op.DISTRIBUTE, Op.LOOP, Op.RESULT, Op.MARK, Op.VARIABLE,
})  # fmt: skip


def together(
    roots: Sequence[Node], order: Sequence[Node], kept: Set[Node] = frozenset()
) -> tuple[list[Node], Sequence[Node]]:
    """The roots with sums and joins of many copies computed as one, and `topological` of these.

    order: of the given roots. kept: nodes that something else depends on, which are not batched.
    """
    new: dict[Node, Node] = {}
    below: set[Node] = set()  # nodes that are computed together
    kinds = _Kinds(kept)
    heads = sorted(_heads(roots, order, kept), key=lambda pair: -pair[0].age)
    for head, terms in heads:
        made = _of_parts(head, terms, kinds) if head not in below else None
        if made is not None:
            new[head] = made
            if len(heads) > 1:
                below.update(topological(terms, below))
    if not new:
        return list(roots), order
    less = replaced(roots, new)
    return together(less, topological(less), kept)  # copies inside of copies


def as_rows(nodes: Sequence[Node], kept: Set[Node]) -> Iterator[tuple[list[Node], Node]]:
    """Groups of many copies among the nodes, and their rows (len, …)."""
    for some, whole in _Kinds(kept).together(nodes, _grouped):
        if len(some) > MANY:
            yield some, stacked(some) if whole is None else whole


def made_as_rows(nodes: Iterable[Node], kept: Iterable[Node]) -> Iterator[tuple[list[Node], Node]]:
    """Groups of nodes that were computed together before, and their rows (len, …).

    kept: nodes that something else depends on.
    """
    by_age = {node.age: node for node in nodes}
    apart = {node.age for node in kept}
    for first in list(by_age.values()):
        known = _known.get(first)
        if known is None:
            continue
        ages, inside, whole = known
        distinct = {*ages}  # fewer, if several copies have read one of the nodes
        if len(distinct) == len(ages) and by_age.keys() >= distinct and inside.isdisjoint(apart):
            yield [by_age.pop(age) for age in ages], whole


def is_row(node: Node) -> bool:
    """Whether it was computed together with copies, or is below such a node."""
    return node in _known


def stacked(nodes: Sequence[Node], axis: int = 0) -> Node:
    """Nodes of one shape along a new axis; by default as the rows of an array (len, …)."""
    shape = nodes[0].shape
    one = (*shape[:axis], 1, *shape[axis:])
    return build.cat([build.reshape(node, one) for node in nodes], axis)


def unstacked(whole: Node) -> list[Node]:
    """The rows of an array."""
    return [row_of(whole, number) for number in range(plain(whole.shape[0]))]


def rows_of(nodes: Sequence[Node], kept: Set[Node]) -> Node | None:
    """Nodes of one shape as rows (len, …), if all are leaves or all are copies; else None.

    Leaves must be small.
    """
    if all(map(is_leaf, nodes)):
        return stacked(nodes) if _are_alike(nodes) and not _is_large(nodes[0]) else None
    return _rows(nodes, kept)


def is_single(node: Node) -> bool:
    """Whether copies of a node must be computed one by one.

    So must a CUSTOM whose value is in memory already, such as the solution of a system: its rule
    may need numbers, which no step has.
    """
    at_once = node.op is Op.CUSTOM and beneath(node.src[0], MOVEMENT).op is Op.BUFFER
    return at_once or node.op in _SINGLE


def nbytes(node: Node) -> int:
    """The size of an array."""
    return numel(node.shape) * node.dtype.itemsize


def _of_parts(head: Node, parts: Sequence[Node], kinds: _Kinds) -> Node | None:
    """A sum or a CAT, with those parts computed as one that are copies; None if none are."""
    if head.op is Op.ADD:
        return _sum(parts, kinds)
    axis = head.arg
    order = [*range(1, axis + 1), 0, *range(axis + 1, head.ndim + 1)]
    pieces: list[Node] = []
    for some, made in kinds.together(parts, _runs):
        if made is None:
            pieces += some
        else:
            extent = numel(some[0].shape[axis : axis + 1]) * len(some)
            shape = (*head.shape[:axis], extent, *head.shape[axis + 1 :])
            pieces.append(build.reshape(build.permute(made, order), shape))
    return None if len(pieces) == len(parts) else build.cat(pieces, axis)


def _heads(
    roots: Sequence[Node], order: Sequence[Node], kept: Set[Node]
) -> Iterator[tuple[Node, list[Node]]]:
    """Sums and CATs of many parts, with these; no sum is inside of another."""
    depth: dict[Node, int] = {}
    add = Op.ADD
    for node in picked(order, _OF_MANY):
        if node in kept:
            continue
        if node.op is add:
            left, right = node.src
            depth[node] = 1 + max(depth.get(left, 0), depth.get(right, 0))
        elif len(node.src) > MANY and not all(is_leaf(beneath(x, _CAST)) for x in node.src):
            yield node, list(node.src)
    if max(depth.values(), default=0) < MANY:
        return
    uses = Counter(chain(roots, *[node.src for node in order]))
    inner = {s for node in depth for s in node.src if s in depth and uses[s] == 1}
    for head in depth:
        if head not in inner and depth[head] >= MANY:
            terms: list[Node] = []
            total = head
            while total is head or total in inner:  # the deeper operand is the rest of the sum
                total, term = sorted(total.src, key=lambda node: -depth.get(node, 0))
                terms.append(term)
            if len(terms) >= MANY:
                yield head, [total, *terms[::-1]]


def is_leaf(node: Node) -> bool:
    """Whether nothing is computed: memory, a constant, or a join or reshape of such."""
    return node.op in LEAVES or (node.op in _JOINS and all(map(is_leaf, node.src)))


def without_leaves(order: Iterable[Node]) -> Iterator[Node]:
    """The nodes of a topological order that are no leaves."""
    leaves: set[Node] = set()
    for node in order:
        if node.op in LEAVES or (node.op in _JOINS and leaves.issuperset(node.src)):
            leaves.add(node)
        else:
            yield node


def _form(node: Node) -> Any:
    """What copies share, except their arguments."""
    return node.op, node.dtype, node.shape, node.device, len(node.src)


def _are_alike(nodes: Sequence[Node]) -> bool:
    """Whether all nodes have one form."""
    own = [(node.op, node.dtype, node.shape, len(node.src)) for node in nodes]
    return own.count(own[0]) == len(own)


def _is_large(node: Node) -> bool:
    stored = node.op in REDUCTIONS or node.op in LEAVES or node.op is Op.RESHAPE
    return stored and nbytes(node) > MOST_BYTES


Together = list[tuple[list[Node], Node | None]]  # nodes, and their rows: see `_rows`
Split = Callable[[Sequence[Node], Iterable[Any]], list[list[Node]]]  # nodes with equal keys


def _grouped(nodes: Sequence[Node], keys: Iterable[Any]) -> list[list[Node]]:
    """Nodes with equal keys, in the order of the first of each group."""
    return list(grouped(zip(keys, nodes, strict=True)).values())


def _runs(nodes: Sequence[Node], keys: Iterable[Any]) -> list[list[Node]]:
    """Neighbours with equal keys."""
    runs = groupby(zip(keys, nodes, strict=True), key=itemgetter(0))
    return [[node for _, node in run] for _, run in runs]


class _Kinds:
    """Numbers nodes by kind: nodes that may be copies, because only numbers in them differ."""

    def __init__(self, kept: Set[Node]) -> None:
        self.kept = kept
        self.of: dict[Node, int] = {}
        self._numbers: dict[Any, int] = {}

    def together(self, nodes: Sequence[Node], split: Split) -> Together:
        """The nodes by kind. Kinds are not computed if all nodes of a form are copies, or few."""
        found: Together = []
        for some in split(nodes, map(_form, nodes)):
            whole = self._rows(some)
            if whole is not None or len(some) <= MANY:
                found.append((some, whole))
            else:
                found += [(few, self._rows(few)) for few in split(some, self._of(some))]
        return found

    def _rows(self, some: Sequence[Node]) -> Node | None:
        return _rows(some, self.kept) if len(some) > MANY else None

    def _of(self, roots: Sequence[Node]) -> list[int]:
        of, numbers, kept = self.of, self._numbers, self.kept
        kind_of = of.__getitem__
        for node in topological(roots, of):
            arg = None if node.op in _VARYING else node.arg
            own = node if node in kept else None
            key = (node.op, node.dtype, node.shape, arg, own, *map(kind_of, node.src))
            of[node] = numbers.setdefault(key, len(numbers))
        return [of[root] for root in roots]


def _sum(terms: Sequence[Node], kinds: _Kinds) -> Node | None:
    """The sum of terms, with copies as the sum of one array's rows; None if there are none."""
    parts: list[Node] = []
    for some, made in kinds.together(terms, _grouped):
        parts += some if made is None else [sum_of_rows(made)]
    return None if len(parts) == len(terms) else reduce(Node.__add__, parts)


# For copies that were computed together, and for the nodes below them: the first one → the ages of
# all, the ages of all that was computed with them, and their rows. These are needed again after a
# loss's gradient, when other readers of overwritten memory are computed.
_known: WeakKeyDictionary[Node, tuple[list[int], Set[int], Node]] = WeakKeyDictionary()


def _rows(copies: Sequence[Node], kept: Set[Node]) -> Node | None:
    """Nodes of one kind, computed together (len, …); None if they are no copies."""
    count, first = len(copies), copies[0]
    ages, inside, whole = _known.get(first, ([], frozenset(), first))
    if ages == [node.age for node in copies] and inside.isdisjoint(node.age for node in kept):
        return whole
    new: dict[Node, Node] = {}  # by nodes below the first copy
    same: set[Node] = set()
    known: dict[Node, tuple[Node, ...]] = {}
    stack = [tuple(copies)]
    while stack:
        nodes = stack.pop()
        one = nodes[0]
        if one in known:
            if known[one] != nodes:
                return None
            continue
        known[one] = nodes
        if nodes.count(one) == count:
            same.add(one)
        elif not kept.isdisjoint(nodes) or is_single(one) or _is_large(one):
            return None
        elif not _are_alike(nodes):
            return None
        elif is_leaf(one):
            if not all(map(is_leaf, nodes)):
                return None
            new[one] = stacked(nodes)
        elif one.op is not Op.SHRINK and [node.arg for node in nodes].count(one.arg) < count:
            return None
        else:
            stack += zip(*[node.src for node in nodes], strict=True)
    if is_leaf(first) or first in same:
        return None
    given = same | new.keys()
    for node in topological([first], given):
        if node.op is Op.SHRINK:
            (source,) = node.src
            ranges = [one.arg for one in known[node]]
            new[node] = parts(new.get(source, source), source in new, node.shape, ranges)
        else:
            new[node] = batch(node, [rows(source, new, count) for source in node.src])
    ages_of = {one: [node.age for node in known[one]] for one in new.keys() - given}
    inside = frozenset(chain.from_iterable(ages_of.values()))
    _known.update((one, (ages, inside, new[one])) for one, ages in ages_of.items())
    return new[first]


def parts(x: Node, varies: bool, shape: Sequence[Integer], ranges: Sequence[Any]) -> Node:
    """Parts of one shape, as rows (len, *shape); ranges: start and stop along each axis.

    varies: whether each is a part of its own row of x; otherwise all are parts of x itself.
    """
    ends = list(ranges[0])
    for axis, end in enumerate(ends):
        if any(one[axis] != end for one in ranges):
            starts = [one[axis][0] for one in ranges]
            x = (_of_rows if varies else _of_one)(x, axis + varies, starts, shape[axis])
            varies, ends[axis] = True, (0, shape[axis])
    return build.shrink(x, [(0, len(ranges)), *ends])


def _of_one(x: Node, axis: int, starts: Sequence[int], length: Integer) -> Node:
    """`length` elements along an axis from each of several starts on, one row after the other."""
    count, first = len(starts), starts[0]
    if list(starts) == [first + length * n for n in range(count)]:
        whole = part_along(x, axis, first, first + length * count)
    else:
        whole = _gathered(x, axis, build.reshape(_index(starts, length, x), (count * length,)))
    found = split_axis(whole, axis, count, length)
    return build.permute(found, (axis, *range(axis), *range(axis + 1, found.ndim)))


def _of_rows(x: Node, axis: int, starts: Sequence[int], length: Integer) -> Node:
    """`length` elements along an axis, from another start on in each row of x."""
    return _gathered(x, axis, _index(starts, length, x))


def _gathered(x: Node, axis: int, index: Node) -> Node:
    """The elements of x at indices (n,) along an axis; or at indices (len, n), in each row."""
    shape = (*x.shape[:axis], index.shape[-1], *x.shape[axis + 1 :])
    return build.gather(x, spread(index, shape, (0, axis)[-index.ndim :]), axis)


def _index(starts: Sequence[int], length: Integer, like: Node) -> Node:
    """The indices of `length` elements from each start on: (len, length)."""
    shape = (len(starts), length)
    firsts = stacked([build.const(start, INDEX, (1,), like.device) for start in starts])
    steps = build.iota(length, like.device, INDEX)
    return build.expand(firsts, shape) + spread(steps, shape, (1,))
