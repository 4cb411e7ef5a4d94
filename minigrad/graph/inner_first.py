"""Inner dimensions that vary: the general graph in which they come first.

The first dimensions of a batch, (4, n, 64), are often merged to (4·n, 64), and split again. If n
varies, row r is at (r // n, r % n), which is not linear, and neither is the position of (i, j),
i·n + j. So c·n elements become c times n everywhere, and all computed values have n as their first
dimension:

    (4, n, 64) → (4·n, 64), times (64, 8)   →   (n, 4, 64) times (64, 8), which are 4·n rows again

Inputs and outputs have a memory layout padded to n's bound: see minigrad/padded.py. Below, a node
or shape is *split* if each dimension c·n became two, and *fronted* if n is its first dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import gcd

from minigrad.errors import ShapeError
from minigrad.graph import build
from minigrad.graph.axes import repeat_along, split_axis
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Node, Op, Shape, is_symbolic, make
from minigrad.graph.operations import REDUCTIONS, SCATTERS
from minigrad.graph.rewrite import remade
from minigrad.graph.symbolic import Affine, Integer

# Blocks of rows of an array that are copied one by one, at most: of images, each channel is one.
MOST_BLOCKS = 256
# Elements of arrays padded in several dimensions, whose bounds multiply: 256 MB of float32. A
# quarter of that in one array, if it has many rows: small ones, such as batches, may be longer.
MOST_PADDED = 1 << 26


def inner_first(graph: Graph) -> Graph:
    """The graph with dimensions (c, n) for each of c·n; those that vary are first inside of it.

    Raises ShapeError if such a dimension is used otherwise than by merging and splitting it.
    """
    roots = []
    for root, made in zip(graph.roots, remade(graph.roots, _remade), strict=True):
        shape = _split(root.shape)
        if _order(shape) and root.op is not Op.ASSIGN:
            made = _natural(build.contiguous(made), shape)
        roots.append(made)
    return replace(graph, roots=tuple(roots))


def _order(shape: Shape) -> Sequence[int]:
    """The dimensions with the varying one in front; () if they stay as they are."""
    varying = [axis for axis, extent in enumerate(shape) if not isinstance(extent, int)]
    if len(varying) != 1 or all(extent == 1 for extent in shape[: varying[0]]):
        return ()
    return (*varying, *(axis for axis in range(len(shape)) if axis not in varying))


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _fronted(x: Node) -> Node:
    """x with the varying dimension in front."""
    order = _order(x.shape)
    return _permuted(x, order) if order else x


def _natural(x: Node, shape: Shape) -> Node:
    """A fronted node, in the order of a shape."""
    order = _order(shape)
    return _permuted(x, _inverse(order)) if order else x


def _ordered(shape: Shape, order: Sequence[int]) -> Shape:
    return tuple(shape[axis] for axis in order) if order else shape


def _stored(x: Node) -> Node:
    """x, fronted in memory, too, so that rows of a product are adjacent."""
    return build.contiguous(_fronted(x)) if _order(x.shape) else x


def _permuted(x: Node, order: Sequence[int]) -> Node:
    """As `build.permute`, merged with a permutation below."""
    if x.op is Op.PERMUTE:
        x, order = x.src[0], [x.arg[axis] for axis in order]
    return build.permute(x, order)


def _parts(extent: Integer) -> Shape:
    """The factors c and n of c·n."""
    if not isinstance(extent, Affine):
        return (extent,)
    factor = gcd(extent.constant, *(c for _, c in extent.terms))
    return (factor, extent // factor) if factor > 1 else (extent,)


def _split(shape: Shape) -> Shape:
    return tuple(part for extent in shape for part in _parts(extent))


def _places(shape: Shape) -> list[tuple[int, ...]]:
    """The positions of each dimension after `_split`: one or two."""
    counts = [len(_parts(extent)) for extent in shape]
    stops = accumulate(counts)
    return [tuple(range(stop - count, stop)) for count, stop in zip(counts, stops, strict=True)]


def _one_place(node: Node, shape: Shape, axis: int) -> int:
    """The position of a dimension that must not be split."""
    places = _places(shape)[axis]
    if len(places) > 1:
        raise ShapeError(f"{node.op.value}: cannot split {shape[axis]} in shape {shape}")
    return places[0]


def _remade(node: Node, given: list[Node]) -> Node:
    """A node, fronted, on fronted sources."""
    op, shape = node.op, _split(node.shape)
    same = shape == node.shape and not _order(shape) and tuple(given) == node.src
    if same and op is not Op.RESHAPE:  # its shapes were not checked yet
        return node
    # nodes that do the same to all elements: only their shape changes
    if op is Op.BUFFER:
        return _stored(make(op, node.dtype, shape, (), node.arg, node.device))
    if op is Op.CONST or op is Op.CONTIGUOUS or op.facts.arity:
        shape = _ordered(shape, _order(shape))
        return make(op, node.dtype, shape, tuple(given), node.arg, node.device)
    # others are made on sources in their natural order, and fronted again
    src = [_natural(x, _split(old.shape)) for x, old in zip(given, node.src, strict=True)]
    places = _places(node.src[0].shape) if src else []
    before = _order(src[0].shape) if src else ()
    if op in REDUCTIONS:
        order = before or range(src[0].ndim)
        axes = [order.index(place) for axis in node.arg for place in places[axis]]
        made = build.reshape(_permuted(build.reduce(op, given[0], axes), _inverse(order)), shape)
        return _fronted(made) if before or shape[-1] == 1 else _stored(made)
    if op is Op.RESHAPE:
        return _reshaped(src[0], shape)
    if op is Op.EXPAND:  # a 1 that grows to c·n was split to (1, 1)
        pairs = zip(node.src[0].shape, node.shape, strict=True)
        ones = [(1,) * len(_parts(new)) if old == 1 else _parts(new) for old, new in pairs]
        x, order = _reshaped(src[0], sum(ones, ())), _order(shape)
        if order and order == before:
            return build.expand(x, _ordered(shape, order))
        return _fronted(build.expand(_natural(x, sum(ones, ())), shape))
    return _fronted(_moved(node, src, shape, places))


def _reshaped(x: Node, shape: Shape) -> Node:
    """`build.reshape`, fronted; dimensions before the varying one stay before it."""
    made, order = build.reshape(x, shape), _order(shape)
    if order and _order(x.shape):
        return build.reshape(_fronted(x), _ordered(shape, order))
    return _fronted(made)


def _moved(node: Node, src: list[Node], shape: Shape, places: list[tuple[int, ...]]) -> Node:
    """A node with a split shape, on sources with split shapes."""
    op = node.op
    if op is Op.SHRINK or op is Op.PAD:
        return _with_pairs(node, src[0])
    if op in SCATTERS:
        return _scatter(node, *src)
    if op is Op.GATHER:
        return _gather(node, *src)
    if op is Op.PERMUTE:
        return _permuted(src[0], [place for axis in node.arg for place in places[axis]])
    if op in build.ALONG:
        return build.along(node, src, lambda axis: _one_place(node, node.src[0].shape, axis))
    if op is Op.ASSIGN and not is_symbolic(node.src[0].shape):
        return make(op, node.dtype, shape, tuple(src), node.arg, node.device)
    raise ShapeError(f"{op.value} of {node.shape}: a varying inner dimension is not supported")


def _with_pairs(node: Node, x: Node) -> Node:
    """SHRINK and PAD; a dimension that is split must be whole."""
    pairs: list[tuple[Integer, Integer]] = []
    old = node.src[0].shape
    for pair, extent, new in zip(node.arg, old, node.shape, strict=True):
        whole = pair == ((0, 0) if node.op is Op.PAD else (0, extent))
        if not whole and len(_parts(extent)) + len(_parts(new)) > 2:
            raise ShapeError(f"{node.op.value} {pair}: cannot split {extent} in shape {old}")
        parts: Sequence[Integer] = _parts(extent)
        if len(parts) == 1:
            pairs.append(pair)
        else:
            pairs += [(0, 0 if node.op is Op.PAD else part) for part in parts]
    return build.rebuild(node, [x], pairs)


def _gather(node: Node, x: Node, index: Node) -> Node:
    """A GATHER; for c·n indices, x is repeated along n."""
    axis = _one_place(node, node.src[0].shape, node.arg)
    parts = _parts(node.src[1].shape[node.arg])
    if len(parts) > 1:
        x = repeat_along(split_axis(x, axis, x.shape[axis], 1), axis + 1, parts[1])
    order = _order(index.shape)
    if order and order == _order(x.shape):
        return _natural(build.gather(_fronted(x), _fronted(index), order.index(axis)), index.shape)
    return build.gather(x, index, axis)


def _scatter(node: Node, base: Node, index: Node, x: Node) -> Node:
    """A scatter; c·n values are merged as n·c, one dimension: they are added in another order."""
    axis = _one_place(node, node.src[0].shape, node.arg)
    if len(_parts(node.src[1].shape[node.arg])) > 1:
        order = [*range(axis), axis + 1, axis, *range(axis + 2, index.ndim)]
        shape = (*index.shape[:axis], node.src[1].shape[node.arg], *index.shape[axis + 2 :])
        index, x = (build.reshape(build.permute(one, order), shape) for one in (index, x))
    return build.scatter(node.op, base, index, x, axis)


def inner(shape: Shape) -> bool:
    """Whether a dimension other than the first varies: such an array is laid out at its bound."""
    return is_symbolic(tuple(extent for extent in shape if extent != 1)[1:])


def equally_apart(shape: Shape) -> tuple[int, int, int]:
    """The first dimensions of blocks, of rows and of elements that are equally far apart in the
    layout at the bounds: the last three that vary, or 0.
    """
    varying = [axis for axis, extent in enumerate(shape) if not isinstance(extent, int)]
    first, outer, last = (0, 0, *varying)[-3:]
    return first, outer, last
