"""Reductions with too little parallelism are split in two; sums that select become gathers.

A long sum with few results becomes parallel by that. A deep product becomes parts whose operands
stay in a cache. The split depends on the shape only, and so do the results, on any number of
threads. Products with a batch axis in last position get operands in another layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod

from minigrad.graph import build
from minigrad.graph.axes import pad_along, stored_last
from minigrad.graph.node import Node, beneath, topological
from minigrad.graph.operations import ELEMENTWISE, MOVEMENT, REDUCTIONS, Op
from minigrad.graph.rewrite import remade
from minigrad.graph.shapes import flatten, numel, usual_numel
from minigrad.graph.substitution import coefficient, only_atom, substitute
from minigrad.graph.symbolic import Integer, ceildiv, high
from minigrad.graph.windows import addends, shows_windows, unexpanded
from minigrad.schedule.lower import shown
from minigrad.schedule.materialize import (
    MOVED,
    contraction_operands,
    has_loaded_mask,
    in_memory,
    is_product,
    is_zero,
    varies,
)
from minigrad.target import FEW_ROWS, LINE

LONG = 1 << 15  # terms of each sum that are worth another kernel (SMALL in fuse.py)
FEW_COLUMNS = 1 << 14  # FEW_ROWS blocks of 256 (see loops/rows.py)
MANY = 1 << 18  # elements, 1 MiB of float32, that are worth another kernel
FEW_SUMS = 1 << 18  # results, 1 MiB of float32, that may be written once for every part
# Terms of a sum for which the operands of a product stay in a second-level cache: 64 rows of this
# many float32 are 0.75 MiB.
DEEP = 3 << 10
LEAST_TERMS = 16  # of an image's sum, beside which storing one number for it costs nothing
LEAST_PARTS, MOST_PARTS = 8, 128  # of a sum that leaves few elements
# Parts that are rows, and elements of such a row. (A loss of a million numbers with its gradients
# takes 0.20 … 0.24 instead of 0.43 … 0.54 ms: it reads them once.)
MOST_RUNS, LONG_RUN = 1 << 16, 1 << 8
FULL = LINE // 4  # float32 in a vector of 512 bits
_SEEN_THROUGH = MOVEMENT - {Op.EXPAND} | {Op.CAST}
PAYS = 8  # reads per element that pay for a copy in another order
FEWEST = 32  # positions from which on one addition is faster than masked vectors over all of them
MANY_ADDED = 1 << 14  # additions from which on they are split into parts, for threads
MOST_SHARES = 16  # such parts
_IN_MEMORY = frozenset({Op.BUFFER, Op.CONTIGUOUS, Op.ASSIGN})


def split_reductions(roots: Sequence[Node]) -> list[Node]:
    """The roots with reductions split in two if it pays, and one-hot sums as gathers, scatters."""
    floats = set[Node]()  # known not to be computed from integers
    return remade(roots, lambda node, src: _arranged(node, src, floats))


def _arranged(node: Node, src: Sequence[Node], floats: set[Node]) -> Node:
    node = one_hot(build.rebuild(node, src))
    if node.op is Op.ADD:
        return _scattered_onto(node)
    if node.op not in REDUCTIONS:
        return node
    return reduce(Node.__add__, map(_reduced, _apart(node, floats)))


def _apart(node: Node, floats: set[Node]) -> list[Node]:
    """Split a SUM of added products into one SUM for each large product and one for the rest.

    Not if a term is computed from integers in memory, as quantized weights are: the terms share
    these, and a row's sums would depend on how many rows there are.
    """
    if node.src[0].op is not Op.ADD or not node.dtype.is_float or _decodes(node.src[0], floats):
        return [node]
    terms = addends(node)
    products = [x for x in terms if contraction_operands(x) and numel(x.src[0].shape) >= LONG]
    others = [x.src[0] for x in terms if x not in products]
    if not products or not others:
        return products or [node]
    return [*products, build.reduce(Op.SUM, reduce(Node.__add__, others), node.arg)]


def _decodes(node: Node, floats: set[Node]) -> bool:
    """Whether a value is computed from integers. floats: known not to be; others are added."""
    order = topological([node], floats, lambda x: () if x.op in _IN_MEMORY else x.src)
    if any(x.op is Op.CAST and x.src[0].dtype.is_int for x in order):
        return True
    floats.update(order)
    return False


def _reduced(node: Node) -> Node:
    reduction, order = batch_arranged(node)
    return build.permute(_split(reduction), order)


def _scattered_onto(node: Node) -> Node:
    """A product plus a scatter over zeros, as a scatter over the product's result.

    Example: the gradient of a table that is read from and multiplied with. Of its many rows, few
    are read, and the others are neither cleared nor added (a scatter may begin in place). A result
    that is rounded, as in mixed precision, is rounded and stored first.
    """
    for x, other in (node.src, node.src[::-1]):
        inner = beneath(x, (Op.RESHAPE, Op.PERMUTE, Op.CAST))
        zeros = other.op is Op.SCATTER_ADD and is_zero(other.src[0])
        if zeros and inner.op is Op.SUM and contraction_operands(inner):
            _, index, updates = other.src
            base = x if in_memory(x) is inner else build.contiguous(x)
            return build.scatter_add(base, index, updates, other.arg)
    return node


def _split(node: Node) -> Node:
    x = node.src[0]
    cuts = _cuts_of_product(node)
    if cuts:
        return _cut(node, x, cuts, first=True)
    if _of_windows(node):
        images, *others = sorted(node.arg)
        return build.reduce(Op.SUM, build.reduce(Op.SUM, x, others), (images,))
    few = numel(node.shape) < FEW_ROWS and numel(x.shape) >= LONG * max(numel(node.shape), 1)
    if not (few or _sums_columns(node)):
        return node
    if few and (order := _stored_order(x)) and order[-1] not in node.arg:
        arg = [order.index(axis) for axis in node.arg]  # parts are rows of memory
        sums = _split(build.reduce(node.op, build.permute(x, order), arg))
        return build.permute(sums, [order.index(axis) for axis in range(x.ndim)])
    plain = sorted(a for a in node.arg if isinstance(x.shape[a], int))
    if not plain:
        return node
    varying = [axis for axis in node.arg if axis not in plain]
    if few and varying and numel([x.shape[axis] for axis in plain]) >= LEAST_TERMS:
        return build.reduce(node.op, build.reduce(node.op, x, plain), varying)
    if cuts := _runs(x, plain, MOST_PARTS if few else FEW_ROWS):
        return _cut(node, x, cuts)
    axis = max(plain, key=lambda a: (numel((x.shape[a],)) >= FEW_ROWS, -a))
    extent = numel((x.shape[axis],))
    if node.op is not Op.SUM or extent < FEW_ROWS:
        return node
    return _cut(node, pad_along(x, axis, 0, -extent % FEW_ROWS), {axis: FEW_ROWS})


def _stored_order(x: Node) -> list[int]:
    """The axes of x in the memory of the arrays that it is computed from, outermost first.

    [] if that is their order in x, or they differ. (A convolution's result has its channels last,
    the gradient of what is pooled has them first.)
    """
    places = shown(x, ())[1]
    stack, orders = [(x, places)], set[tuple[int, ...]]()
    seen = set(stack)
    while stack:
        node, index = stack.pop()
        chain, own, moved = shown(node, _SEEN_THROUGH)
        values = {only_atom(place): at for place, at in zip(own, index, strict=True)}
        node, index = chain[-1], tuple(substitute(at, values) for at in moved)
        if node.op in ELEMENTWISE:
            large = [y for y in node.src if y.op is not Op.CONST and _distinct(y) >= FEW_ROWS]
            if not all(all(varies(y)) for y in large):
                return []
            stack += [(y, index) for y in dict.fromkeys(large) if (y, index) not in seen]
            seen.update((y, index) for y in large)
            continue
        position = flatten(index, node.shape)
        strides = [coefficient(position, only_atom(place)) or 0 for place in places]
        if any(strides[axis] <= 0 for axis, extent in enumerate(x.shape) if extent != 1):
            return []
        orders.add(tuple(sorted(range(x.ndim), key=lambda axis: -strides[axis])))
    order = [*orders.pop()] if len(orders) == 1 else []
    return order if order != sorted(order) else []


def _distinct(x: Node) -> int:
    """The number of elements of x without those that are repeated."""
    return numel([extent for extent, own in zip(x.shape, varies(x), strict=True) if own])


def _runs(x: Node, axes: Sequence[int], most: int) -> dict[int, int]:
    """The number of parts for each axis, such that each part is one run of memory.

    The first axes are cut to single elements, as long as that makes no more than `most` parts, or
    no more than MOST_RUNS of at least LONG_RUN elements: what else is computed from such a run, as
    the gradient of a loss, then shares its kernel. {} if there would be fewer than LEAST_PARTS.
    """
    cuts: dict[int, int] = {}
    for number, axis in enumerate(axes, 1):
        extent, made = numel((x.shape[axis],)), prod(cuts.values())
        run = numel([x.shape[later] for later in axes[number:]])
        if extent * made <= MOST_RUNS and run >= LONG_RUN:
            parts = extent
        elif made < FEW_ROWS:
            parts = next(c for c in range(max(most // made, 1), 0, -1) if extent % c == 0)
        else:
            break
        if parts > 1:
            cuts[axis] = parts
        if parts < extent:
            break
    return cuts if prod(cuts.values()) >= LEAST_PARTS else {}


def _cut(node: Node, x: Node, cuts: dict[int, int], first: bool = False) -> Node:
    """The reduction of x in two: over parts of some axes, then over the parts.

    first: the parts become the first axes, so that each of them is computed as a whole.
    """
    shape: list[Integer] = []
    outer, inner = [], []
    for axis, extent in enumerate(x.shape):
        if axis in cuts:
            outer.append(len(shape))
            shape.append(cuts[axis])
            extent = numel((extent,)) // cuts[axis]
        if axis in node.arg:
            inner.append(len(shape))
        shape.append(extent)
    axes = [*range(len(shape))]
    order = [*outer, *(axis for axis in axes if axis not in outer)] if first else axes
    factors = x.src if x.op is Op.MUL else (x,)  # which stay those of a product
    moved = [build.permute(build.reshape(one, tuple(shape)), order) for one in factors]
    inner, outer = ([order.index(axis) for axis in part] for part in (inner, outer))
    parts = build.reduce(node.op, reduce(Node.__mul__, moved), inner)
    return build.reshape(build.reduce(node.op, parts, outer), node.shape)


def _cuts_of_product(node: Node) -> dict[int, int]:
    """The number of parts for each axis of a contraction whose operands do not fit a cache.

    Each part is a product of its own, whose operands are packed once.
    """
    x = node.src[0]
    depth = usual_numel([x.shape[axis] for axis in node.arg])
    if node.op is not Op.SUM or depth < 2 * DEEP or numel(node.shape) > FEW_SUMS:
        return {}
    operands = contraction_operands(node)
    if not operands or any(map(has_loaded_mask, operands)):  # its loops are shorter than they seem
        return {}
    cuts: dict[int, int] = {}
    for axis in node.arg:
        wanted, extent = ceildiv(depth, DEEP), x.shape[axis]
        if not isinstance(extent, int):
            continue
        enough = range(wanted, min(4 * wanted, extent + 1))
        parts = extent if extent <= wanted else next((c for c in enough if extent % c == 0), 1)
        if parts > 1:
            cuts[axis] = parts
            depth //= parts
    return cuts


def _of_windows(node: Node) -> bool:
    """Whether a sum over images adds products with windows of zero-padded copies.

    (As the gradient by weight of a depthwise convolution.) The sum of one image can be computed
    where its copy is made, and then the copy is never stored.
    """
    x, images = node.src[0], min(node.arg)
    if node.op is not Op.SUM or x.op is not Op.MUL or len(node.arg) == 1:
        return False
    if images + 1 in node.arg:
        return False
    terms = numel([x.shape[axis] for axis in node.arg if axis != images])
    few = terms < LEAST_TERMS or contraction_operands(node)
    return not few and any(map(_is_window_of_copy, x.src))


def _is_window_of_copy(x: Node) -> bool:
    base = beneath(x, MOVEMENT)
    return shows_windows(x) and base.op is Op.CONTIGUOUS and base.src[0].op is Op.PAD


def _sums_columns(node: Node) -> bool:
    """Whether a reduction is along long columns that are too few for all threads.

    Products that are contractions have recipes of their own.
    """
    x, first, last = node.src[0], min(node.arg), max(node.arg)
    before, behind = numel(node.shape[:first]), numel(node.shape[last:])
    depth = numel(x.shape) // max(numel(node.shape), 1)
    if before >= FEW_ROWS or not 1 < behind <= FEW_COLUMNS or before * depth < 8 * FEW_ROWS:
        return False
    return numel(x.shape) >= MANY and not is_product(node)


# ---- sums with one-hot masks ----
# Σ where(i == label, x[i], 0) over i is x[label]. So a loss reads the logit of the right class by
# one load instead of a pass over all classes. The same holds for every product with a one-hot mask
# that is written with `where`. Values at other positions are not added; their zeros are, and those
# change at most the sign of a zero. A label outside the range of i gives 0, as the sum does.
#
# Σ where(i == label[a], x[a], 0) over a, for each i, adds x[a] at label[a]: counts, if x is 1.


def one_hot(node: Node) -> Node:
    """A SUM with a one-hot mask as a GATHER or SCATTER_ADD, else the SUM itself.

    A GATHER if it picks one element along its axis, a SCATTER_ADD if it adds each term at one
    position of another axis.
    """
    if node.op is not Op.SUM or len(node.arg) != 1:
        return node
    (along,), terms = node.arg, node.src[0]
    test, value = beneath(terms, (Op.CAST,)), build.const(1, node.dtype, terms.shape, node.device)
    chooses = test.op is Op.WHERE and test is terms and is_zero(test.src[2])
    if chooses:
        test, value, _ = test.src
    if test.op is not Op.EQ:
        return node
    for axis in (along, *range(along), *range(along + 1, terms.ndim)):
        for counter, label in (test.src, test.src[::-1]):
            index, x = (_along_others(one, axis) for one in (label, value))
            if index is None or not label.dtype.is_int or not _counts_along(counter, axis):
                continue
            if axis == along and chooses and label.op is Op.EXPAND:
                return build.gather(value, index, axis)
            if axis != along and x is not None and high(terms.shape[axis]) >= FEWEST:
                return _scattered(node, axis, index, x)
    return node


def _along_others(x: Node, axis: int) -> Node | None:
    """x with extent 1 along an axis, or None if it may vary along it."""
    ones = tuple(1 if a == axis else extent for a, extent in enumerate(x.shape))
    if x.op is Op.CONST:
        return build.const(x.arg, x.dtype, ones, x.device)
    if x.op is not Op.EXPAND or x.src[0].shape[axis] != 1:
        return None
    return build.expand(x.src[0], ones)


def _scattered(node: Node, axis: int, index: Node, x: Node) -> Node:
    """x added at index along an axis; if there are many, in parts whose results are added."""
    (along,) = node.arg
    order = list(range(node.ndim))
    order[along], order[axis] = axis, along
    index, x = build.permute(index, order), build.permute(x, order)
    count, places, parts = x.shape[axis], node.shape[axis], 1
    if isinstance(count, int) and isinstance(places, int) and count >= MANY_ADDED:
        most = min(MOST_SHARES, count // (2 * places))
        parts = next((n for n in range(most, 1, -1) if count % n == 0), 1)
    lead, behind = node.shape[:axis], node.shape[axis + 1 :]
    index, x = (
        build.reshape(one, (*lead, parts, count // parts, *behind)) for one in (index, x)
    )
    empty = build.const(0, node.dtype, (*lead, parts, places, *behind), node.device)
    found = build.scatter_add(empty, index, x, axis + 1)
    return build.reshape(build.reduce(Op.SUM, found, (axis,)), node.shape)


def _counts_along(node: Node, axis: int) -> bool:
    """Whether a node's elements are 0, 1, 2 … along an axis, and constant along the others."""
    chain, places, index = shown(node, MOVED)
    most = high(node.shape[axis]) - 1
    holds = all(x.dtype.is_int and x.dtype.maximum >= most for x in chain)
    return holds and chain[-1].op is Op.IOTA and index[0] == places[axis]


# ---- a last axis that both operands of a product share ----
# Vectors run along such an axis (`loops/shared_lanes.py`) if it fills them. Both operands must have
# its elements next to each other; otherwise they are copied, like the weight of a depthwise
# convolution. If the axis is short and there are rows and columns, the batch comes first: one
# matrix product for each of its elements, with a permuted view of the result.


def batch_arranged(node: Node) -> tuple[Node, Sequence[int]]:
    """An equal reduction that is faster, and the permutation that restores the order of its axes.

    A reduction that is no such product stays as it is.
    """
    x, as_it_is = node.src[0], (node, range(node.ndim))
    operands = contraction_operands(node) if node.op is Op.SUM and x.op is Op.MUL else ()
    if not operands or not node.dtype.is_float:
        return as_it_is
    uses = [varies(operand) for operand in operands]
    kept = [a for a, extent in enumerate(x.shape) if extent != 1 and a not in node.arg]
    batch = [axis for axis in kept if all(use[axis] for use in uses)]
    factors = [unexpanded(operand) for operand in operands]
    if batch and batch[-1:] == kept[-2:-1] and numel((x.shape[kept[-1]],)) < FULL:
        # few columns: those of several groups are made adjacent, to share a vector
        last, copied = kept[-2:], [factor.shape[kept[-1]] != 1 for factor in factors]
    elif not batch or batch[-1] != kept[-1]:
        return as_it_is
    else:
        last, aside = kept[-1:], [is_innermost(factor, kept[-1]) for factor in factors]
        if all(any(use[axis] for axis in kept if axis not in batch) for use in uses):
            if numel((x.shape[kept[-1]],)) >= FULL and all(aside):
                return as_it_is
            order = [*batch, *(axis for axis in kept if axis not in batch)]
            return _batch_first(node, factors, aside, order)
        copied = [not is_so for is_so in aside]
    pairs = [*zip(factors, copied, strict=True)]
    if not any(copied) or any(c and PAYS * numel(f.shape) > numel(x.shape) for f, c in pairs):
        return as_it_is
    terms = (build.expand(stored_last(f, last) if c else f, x.shape) for f, c in pairs)
    return build.reduce(Op.SUM, build.elementwise(Op.MUL, *terms), node.arg), range(node.ndim)


def _batch_first(
    node: Node, factors: Sequence[Node], aside: Sequence[bool], kept: Sequence[int]
) -> tuple[Node, Sequence[int]]:
    """The SUM with kept axes in this order; factors whose batch axis is innermost are copied."""
    x = node.src[0]
    order = [*kept, *(axis for axis in range(x.ndim) if axis not in kept)]
    terms = []
    for factor, is_last in zip(factors, aside, strict=True):
        moved = build.permute(factor, order)
        moved = build.contiguous(moved) if is_last else moved
        terms.append(build.expand(moved, tuple(x.shape[axis] for axis in order)))
    summed = [order.index(axis) for axis in node.arg]
    total = build.reduce(Op.SUM, build.elementwise(Op.MUL, *terms), summed)
    return total, [order.index(axis) for axis in range(x.ndim)]


def is_innermost(node: Node, axis: int) -> bool:
    """Whether neighbours along an axis are adjacent in memory."""
    chain, places, index = shown(node, _SEEN_THROUGH)
    return coefficient(flatten(index, chain[-1].shape), only_atom(places[axis])) == 1
