"""The adjoint of WINDOW: every element of a window is added to the position that it came from.

It is the gradient of a convolution's windows, and transposed convolutions are built from it. In
both cases the windows are themselves sums of products, Σ over o of out[…]·weight[…]. The two sums
are merged, so this is a contraction, too, and the windows are never stored.

With w windows of step s, position i of the result receives position j of window (i − d·j)/s. To
avoid remainders, i is split into s·i′ + f, and j into s·j′ + f (if windows are not dilated). Then
the window is i′ − j′, for each phase f. So strided windows need no more products than others.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from minigrad.graph import build
from minigrad.graph.axes import (
    merge_axes,
    pad_along,
    part_along,
    repeat_along,
    row_of,
    split_axis,
    stored_last,
)
from minigrad.graph.build import Window
from minigrad.graph.node import Node, Op, Shape, beneath, const
from minigrad.graph.operations import MOVEMENT
from minigrad.graph.scans import along
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Integer, ceildiv, low, plain

# A dimension of the factors: ("x", axis) of the result, ("f", axis) its remainder by the step,
# ("j", axis) the position in a window, ("sum", n) a summed one.
Name = tuple[str, int]
_BUT_WINDOWS = MOVEMENT - {Op.WINDOW}
MOST_WOVEN = 4  # remainders up to which sums are interleaved by selection
# Channels times the step, and pixels of a row, from which on a product reads images in place. Time
# relative to a copy: rows of 7 pixels 0.94, 0.92 and 0.9 (forward, by input, by weight; Zen 4), of
# 14 0.86, of 28 0.85 (Emerald Rapids); with a step of 1 0.57 … 1.0 (Zen 4; 3 channels 0.8 … 1.5).
LEAST_CHANNELS, LEAST_ROW = 6, 7
# Columns of a window beside one, for each pixel of a step, up to which it does. They need masks in
# a tile: 5 × 5, step 1, 0.97 … 1.25 of the time with a copy; 7 × 7 1.7 … 2.5, step 2 level.
MOST_ASIDE = 3
# The largest distance at which neighbours of a value are written between others: each line of
# memory is read and written that many times. Joining parts later writes and reads each part once,
# and then writes the whole.
INTERLEAVED = 2


class _Product:
    """Σ over the "sum" dimensions of a product; factors have extent 1 where they are constant."""

    def __init__(self, factors: list[Node], names: list[Name], extents: list[Integer]) -> None:
        self.factors, self.names, self.extents = factors, names, extents

    def at(self, kind: str, axis: int) -> int:
        """The position of a dimension."""
        return self.names.index((kind, axis))

    def varying(self, place: int) -> list[int]:
        """The factors that vary along a dimension; if none does, the first is made to."""
        found = [i for i, factor in enumerate(self.factors) if factor.shape[place] != 1]
        if found:
            return found
        shape = list(self.factors[0].shape)
        shape[place] = self.extents[place]
        self.factors[0] = build.expand(self.factors[0], tuple(shape))
        return [0]

    def pad(self, place: int, before: int, after: int) -> None:
        """Zeros around a dimension of the product."""
        for i in self.varying(place):
            self.factors[i] = pad_along(self.factors[i], place, before, after)
        self.extents[place] += before + after

    def only(self, place: int, start: int, stop: int) -> None:
        """Keep start … stop − 1 of a dimension; factors that are constant along it stay so."""
        for i, factor in enumerate(self.factors):
            if factor.shape[place] != 1:
                self.factors[i] = part_along(factor, place, start, stop)
        self.extents[place] = stop - start

    def place(self, place: int, before: int, length: int) -> None:
        """Put a dimension into one of `length`, at index `before`; what exceeds it is cut off."""
        ends = before, before + plain(self.extents[place])
        low, high = (min(max(end, 0), length) for end in ends)
        self.only(place, *((low - before, high - before) if high > low else (0, 0)))
        self.pad(place, low, length - max(high, low))

    def split(self, place: int, outer: int, inner: int, name: Name) -> None:
        """Split a dimension in two; the inner one is called `name`."""
        for i, factor in enumerate(self.factors):
            parts = (outer, inner) if factor.shape[place] != 1 else (1, 1)
            self.factors[i] = split_axis(factor, place, *parts)
        self.extents[place : place + 1] = [outer, inner]
        self.names.insert(place + 1, name)

    def result(self, order: Sequence[Name]) -> Node:
        """The sums, with dimensions in the given order."""
        summed = [name for name in self.names if name[0] == "sum"]
        places = [self.names.index(name) for name in (*order, *summed)]
        shape = tuple(self.extents[place] for place in places)
        factors = [build.expand(build.permute(factor, places), shape) for factor in self.factors]
        total = build.reduce(Op.SUM, reduce(Node.__mul__, factors), range(len(order), len(places)))
        return build.reshape(total, shape[: len(order)])


def reads_in_place(channels: Integer, row: Integer, window: Window) -> bool:
    """Whether products with windows read images in place, channel after channel.

    row: pixels of a channel that are neighbours for a tile; window: along it. A copy in another
    order, with zeros around it, would wait for memory.
    """
    _, size, step, dilation = window
    few = dilation * (size - 1) <= MOST_ASIDE * step
    return few and low(channels) * step >= LEAST_CHANNELS and low(row) >= LEAST_ROW


Ranges = Sequence[tuple[Integer, Integer]]

# A result of overlap_add → its arguments: computing a part again is cheaper than cutting it out.
_origins: weakref.WeakKeyDictionary[Node, tuple[Node, tuple[Window, ...], Shape]] = (
    weakref.WeakKeyDictionary()
)


def overlap_add(
    g: Node, windows: Sequence[Window], shape: Shape, ranges: Ranges | None = None
) -> Node:
    """out[i] = Σ g[w, j] over all w, j with i = step·w + dilation·j; shape is the result's.

    g has the shape that `build.window` gives for an array of `shape`. ranges: start and stop of the
    wanted part of each dimension.
    """
    wanted = tuple((0, extent) for extent in shape) if ranges is None else tuple(ranges)
    result = reduce(Node.__add__, [_added(term, windows, shape, wanted) for term in addends(g)])
    if ranges is None:
        _origins[result] = g, tuple(windows), shape
    return result


def addends(node: Node) -> list[Node]:
    """The terms of a sum, below movements and sums; the node itself if none is a product.

    In the gradient of something that is multiplied several times, each product is a term.
    """
    found: list[tuple[Node, list[Node]]] = []
    stack: list[tuple[Node, list[Node]]] = [(node, [])]
    while stack:
        inner, above = stack.pop()
        if inner.op is Op.ADD:
            stack += [(source, above) for source in inner.src[::-1]]
        elif inner.op in (Op.PERMUTE, Op.RESHAPE, Op.SUM):
            stack.append((inner.src[0], [inner, *above]))
        else:
            found.append((inner, above))
    if len(found) == 1 or all(inner.op is not Op.MUL for inner, _ in found):
        return [node]
    return [reduce(lambda x, step: build.rebuild(step, (x,)), above, term) for term, above in found]


def _added(g: Node, windows: Sequence[Window], shape: Shape, wanted: Ranges) -> Node:
    """`overlap_add` of one term."""
    product = _factors(g, len(shape), windows)
    # a single window needs no step: it overlaps none
    windows = [(a, size, size if g.shape[a] == 1 and gap == 1 else step, gap)
               for a, size, step, gap in windows]  # fmt: skip
    # windows that do not overlap need no sum: they are placed at the end
    overlapping = [w for w in windows if w[1] > w[2] or (w[3] > 1 and w[1] > 1)]
    apart = [w for w in windows if w not in overlapping]
    strided = any(step > 1 for _, _, step, _ in overlapping)
    if strided and ("sum", 0) in product.names:
        # weights are read for each remainder: along the sums, which become their last dimensions
        product.factors = [
            f if any(f.shape[product.at("x", axis)] != 1 for axis, *_ in overlapping)
            else build.contiguous(f) for f in product.factors
        ]  # fmt: skip
    split = [_prepare(product, window, wanted[window[0]]) for window in overlapping]
    for part in split:
        _surround(product, part, wanted[part.axis])
    if len(product.factors) > 1 and not _lie_well(product, overlapping):
        # they are read repeatedly: zeros in memory are cheaper than conditions
        product.factors = [build.contiguous(f) if f.op is Op.PAD else f for f in product.factors]
    summed = [("j", axis) for axis, *_ in overlapping]
    order: list[Name] = []
    for axis in range(len(shape)):
        known = [name for name in (("x", axis), ("f", axis), ("j", axis)) if name in product.names]
        order += [name for name in known if name not in summed]
    if _is_wasteful(product, split):
        total = _by_remainder(product, split, order)
    else:
        for part in split:
            _slide(product, part.axis, part.places, part.dilation)
        total = product.result(order)
    if len(product.factors) > 1 and any(step > size for _, size, step, _ in apart):
        total = stored_last(total, [order.index(("x", axis)) for axis, *_ in apart])
    for axis, size, step, _ in apart:
        total = pad_along(total, order.index(("j", axis)), 0, step - size)
    merged = []
    for axis in range(len(shape)):
        parts = [extent for extent, name in zip(total.shape, order, strict=True) if name[1] == axis]
        merged.append(numel(parts) if len(parts) > 1 else parts[0])
    made = [axis for axis, *_ in overlapping]  # these begin at the wanted start
    ranges = [(0, b - a) if axis in made else (a, b) for axis, (a, b) in enumerate(wanted)]
    return _between(build.reshape(total, tuple(merged)), ranges)


def cropped(g: Node, ranges: Ranges) -> Node:
    """The part start … stop − 1 of each dimension; of an overlap_add, only that is computed.

    So it is of one that is seen where a mask holds, as in the gradient of padding that is not 0.
    """
    if any(start == stop for start, stop in ranges):  # a source of a CAT that has no elements
        return const(0, g.dtype, tuple(stop - start for start, stop in ranges), g.device)
    origin = _origins.get(g)
    if origin is not None:
        return overlap_add(*origin, ranges)
    masked = g.src if g.op is Op.WHERE else (g,)
    if any(beneath(x, (Op.CAST,)) in _origins for x in masked):
        return build.rebuild(g, [cropped(x, ranges) for x in g.src])
    return build.shrink(g, ranges)


def _lie_well(product: _Product, windows: Sequence[Window]) -> bool:
    """Whether the images of a product with weights should be read without a copy."""
    images = (beneath(f, MOVEMENT) for f in product.factors)
    summed = ("sum", 0) in product.names and not any(f.op is Op.CAST for f in images)
    if len(windows) != 2 or not summed:
        return False
    channels, row = (product.extents[product.at(*of)] for of in (("sum", 0), ("x", windows[-1][0])))
    return reads_in_place(channels, row, windows[-1])


def _factors(g: Node, ndim: int, windows: Sequence[Window]) -> _Product:
    """g as a sum of a product, if only movements follow the sum; else as one factor."""
    names = [("x", axis) for axis in range(ndim)] + [("j", axis) for axis, *_ in windows]
    chain: list[Node] = []
    base = g
    while base.op is Op.PERMUTE or (
        base.op is Op.RESHAPE and _without_ones(base.shape) == _without_ones(base.src[0].shape)
    ):
        chain.append(base)
        base = base.src[0]
    body, axes = (base.src[0], base.arg) if base.op is Op.SUM else (base, ())
    if body.op is not Op.MUL:
        return _Product([g], names, list(g.shape))
    kept = [axis for axis in range(body.ndim) if axis not in axes]
    tail = tuple(body.shape[axis] for axis in axes)
    factors = []
    for operand in body.src:
        factor = build.permute(unexpanded(operand), (*kept, *axes))
        extents = iter(factor.shape)
        lead = tuple(1 if axis in axes else next(extents) for axis in range(body.ndim))
        factor = build.reshape(factor, lead + tuple(extents))
        for step in reversed(chain):
            factor = _carried(step, factor)
        factors.append(factor)
    more = [("sum", axis) for axis in range(len(axes))]
    return _Product(factors, [*names, *more], [*g.shape, *tail])


def _without_ones(shape: Shape) -> list[Integer]:
    return [extent for extent in shape if extent != 1]


def _renamed(old: Shape, new: Shape, extents: Sequence[Integer]) -> Shape:
    """The extents of a factor after a reshape from old to new that only adds or drops ones."""
    kept = iter([have for have, extent in zip(extents, old, strict=True) if extent != 1])
    return tuple(1 if extent == 1 else next(kept) for extent in new)


def _carried(step: Node, factor: Node) -> Node:
    """A movement of the sum, applied to a factor; summed dimensions are at the end."""
    lead = step.src[0].ndim
    if step.op is Op.PERMUTE:
        return build.permute(factor, (*step.arg, *range(lead, factor.ndim)))
    shape = _renamed(step.src[0].shape, step.shape, factor.shape[:lead])
    return build.reshape(factor, shape + factor.shape[lead:])


def unexpanded(node: Node) -> Node:
    """A factor with extent 1 wherever it was expanded."""
    if node.op is Op.EXPAND:
        return node.src[0]
    if node.op is Op.PERMUTE:
        return build.permute(unexpanded(node.src[0]), node.arg)
    if node.op is Op.CAST:
        return build.cast(unexpanded(node.src[0]), node.dtype)
    if node.op is Op.RESHAPE and _without_ones(node.shape) == _without_ones(node.src[0].shape):
        inner = unexpanded(node.src[0])
        return build.reshape(inner, _renamed(node.src[0].shape, node.shape, inner.shape))
    return node


def shows_windows(node: Node) -> bool:
    """Whether a factor shows windows of an array."""
    return beneath(node, _BUT_WINDOWS).op is Op.WINDOW


@dataclass(frozen=True)
class _Split:
    """How windows along an axis were split: j = step·j′ + f − before.

    places: the number of values of j′; windows, of `size` positions, may have fewer for an f.
    """

    axis: int
    places: int
    dilation: int
    step: int = 1
    before: int = 0
    size: int = 0

    def having(self, f: int) -> tuple[int, int]:
        """The range of j′ that are positions of a window, for a remainder f."""
        first = max(-((f - self.before) // self.step), 0)
        return first, (self.before + self.size - 1 - f) // self.step + 1


def _is_wasteful(product: _Product, split: Sequence[_Split]) -> bool:
    """Whether much would be multiplied by zeros that pad windows to a multiple of the step."""
    made = numel([part.places * part.step for part in split])
    needed = numel([part.size or part.places for part in split])
    return len(product.factors) > 1 and 4 * made > 5 * needed


def _by_remainder(product: _Product, split: Sequence[_Split], order: Sequence[Name]) -> Node:
    """One sum for each remainder f of i by the steps, over only those j that it has.

    Sums of products are written with window positions last, which is the order of images. They are
    interleaved if neighbours are near, else stored one after the other. A few products without an
    inner sum, one per channel, are interleaved by selection.
    """
    strided = [part for part in split if part.step > 1]
    steps = tuple(part.step for part in strided)
    woven = numel(steps) <= MOST_WOVEN and all(kind != "sum" for kind, _ in product.names)
    between, slid = [("f", one.axis) for one in strided], [("x", one.axis) for one in split]
    rest = [name for name in order if name not in between + slid]
    in_turn = [name for name in order if name in between + slid]
    lies = [*rest, *in_turn] if steps[-1] <= INTERLEAVED else [*between, *rest, *slid]
    ways = [order.index(name) for name in lies]
    pieces: list[Node] = []
    for remainders in itertools.product(*(range(step) for step in steps)):
        piece = _Product(list(product.factors), list(product.names), list(product.extents))
        chosen = dict(zip(strided, remainders, strict=True))
        for part in split:
            places = part.places
            if part in chosen:
                first, end = part.having(chosen[part])
                x = piece.at("x", part.axis)
                piece.only(piece.at("f", part.axis), chosen[part], chosen[part] + 1)
                piece.only(piece.at("j", part.axis), first, end)
                piece.only(x, places - end, plain(piece.extents[x]) - first)
                places = end - first
            _slide(piece, part.axis, places, part.dilation)
        pieces.append(piece.result(order))
    if woven:
        return _woven(pieces, [order.index(name) for name in between], steps)
    pieces = [build.permute(piece, ways) for piece in pieces]
    for name, step in zip(reversed(between), reversed(steps), strict=True):
        turns = [pieces[n : n + step] for n in range(0, len(pieces), step)]
        pieces = [build.cat(turn, lies.index(name)) for turn in turns]
    return build.permute(pieces[0], [ways.index(place) for place in range(len(ways))])


def _woven(pieces: Sequence[Node], places: Sequence[int], steps: Sequence[int]) -> Node:
    """Interleave pieces of extent 1 at some places: the last place varies fastest."""
    found = list(pieces)
    for place, step in zip(places, steps, strict=True):
        found = [repeat_along(piece, place, step) for piece in found]
    for place, step in reversed(list(zip(places, steps, strict=True))):
        turns = [found[n : n + step] for n in range(0, len(found), step)]
        found = []
        for *others, total in turns:
            for number, piece in reversed(list(enumerate(others))):
                total = along(total, place).less(number + 1).where(piece, total)
            found.append(total)
    return found[0]


def _prepare(product: _Product, window: Window, wanted: tuple[Integer, Integer]) -> _Split:
    """Split the positions j of a window by the step."""
    axis, size, step, dilation = window
    start, count = plain(wanted[0]), plain(product.extents[product.at("x", axis)])
    if step > 1 and dilation > 1:  # both: zeros between windows instead
        place = product.at("x", axis)
        varying = product.varying(place)
        product.split(place, count, 1, ("f", axis))
        for i in varying:
            product.factors[i] = pad_along(product.factors[i], place + 1, 0, step - 1)
        product.factors = [merge_axes(factor, place) for factor in product.factors]
        del product.names[place + 1]
        count *= step
        product.extents[place : place + 2] = [count]
        step = 1
    elif step > 1:
        offset = -start % step
        parts = ceildiv(size + offset, step)
        place = product.at("j", axis)
        product.pad(place, offset, parts * step - size - offset)
        product.split(place, parts, step, ("f", axis))
        return _Split(axis, parts, dilation, step, offset, size)
    return _Split(axis, size, dilation)


def _surround(product: _Product, part: _Split, wanted: tuple[Integer, Integer]) -> None:
    """Put zeros around x.

    The first wanted position becomes i = 0, which moves j and w by the same amount.
    """
    start, stop = map(plain, wanted)
    reach, length = part.dilation * (part.places - 1), ceildiv(stop - start, part.step)
    product.place(product.at("x", part.axis), reach - ceildiv(start, part.step), length + reach)


def _slide(product: _Product, axis: int, size: int, dilation: int) -> None:
    """Let position i see i … i + dilation·(size − 1) of x; j, now summed, runs backwards."""
    x, j = product.at("x", axis), product.at("j", axis)
    sliding, placed = product.varying(x), [f.shape[j] != 1 for f in product.factors]
    for i, factor in enumerate(product.factors):
        if placed[i]:
            factor = build.flip(factor, (j,))
        if i in sliding:
            factor = build.window(factor, ((x, size, 1, dilation),))
            order = [*range(j), factor.ndim - 1, *range(j, factor.ndim - 1)]
            factor = build.permute(factor, order)  # (…, slid, j, …)
            factor = diagonal(factor, j) if placed[i] else split_axis(factor, j + 1)
        product.factors[i] = factor
    product.extents[x] -= dilation * (size - 1)
    product.extents[j] = size
    product.names[j] = ("sum", sum(kind == "sum" for kind, _ in product.names))


def diagonal(x: Node, axis: int) -> Node:
    """Dimensions axis and axis + 1, of equal extent n, as one: the elements with equal indices.

    In rows of n + 1 elements the diagonal is the first column.
    """
    n = x.shape[axis]
    lines = split_axis(pad_along(merge_axes(x, axis), axis, 0, n), axis, n, n + 1)
    return row_of(lines, 0, axis + 1)


def _between(x: Node, ranges: Ranges) -> Node:
    """Elements start … stop − 1 of each dimension; those beyond its end are zeros."""
    for axis, (extent, (_, stop)) in enumerate(zip(x.shape, ranges, strict=True)):
        if extent != stop:
            x = pad_along(x, axis, 0, max(plain(stop) - plain(extent), 0))
    return build.shrink(x, ranges)
