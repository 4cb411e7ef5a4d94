"""Winograd's minimal filtering: convolutions with fewer products than the sums have terms.

Two neighbouring results of a kernel of three take four products, not six (Winograd, Arithmetic
Complexity of Computations, 1980; F(2, 3) of Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks, 2015, arXiv 1509.09308):

    m₀ = (x₀ − x₂)·w₀            m₁ = (x₁ + x₂)·(w₀ + w₁ + w₂)/2       y₀ = m₀ + m₁ + m₂
    m₃ = (x₁ − x₃)·w₂            m₂ = (x₁ − x₂)·(w₁ − w₀ − w₂)/2       y₁ = m₁ − m₂ − m₃

Applied along both dimensions of an image, that is 16 products for a tile of 2 × 2 results instead
of 36. Summed over channels they are 16 matrix products, one for each position in a tile. Halves and
quarters are exact, so sums of small integers are exact, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

from minigrad.graph import build
from minigrad.graph.symbolic import Integer, ceildiv, high
from minigrad.tensor.broadcasting import plain_sizes
from minigrad.tensor.functions import Rule, rule_of_nodes
from minigrad.tensor.templates import templated

if TYPE_CHECKING:
    from minigrad.tensor.basic import Basic

T = TypeVar("T", bound="Basic")
Matrix = Sequence[Sequence[float]]

KERNEL, TILE = 3, 2
PLACES = KERNEL + TILE - 1  # positions of an image for one tile, and products
OF_IMAGE: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, 1, -1, 0), (0, 1, 0, -1))
OF_WEIGHT: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (-0.5, 0.5, -0.5), (0, 0, 1))
OF_RESULT: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))
# Making one element of a factor or result in memory takes as long as so many multiply-adds. There
# are as many elements for each tile and channel, and each pair of channels. On Zen 4, 48 channels
# gain (0.62 … 1.0 of the time), 32 only if images stay in the caches (0.72 … 1.56); an Emerald
# Rapids, whose threads do 80 multiply-adds in a ns instead of 59, takes 0.35 … 0.5 ns an element.
MOVED = 28


def pays(
    kernel: Sequence[int], space: Sequence[int], batch: Integer, inner: int, outer: int
) -> bool:
    """Whether this is faster for a convolution. space: of the result; inner, outer: channels.

    It depends on sizes only, so results are the same on every device.
    """
    tiles = prod(ceildiv(extent, TILE) for extent in space)
    images = 1 << high(batch).bit_length() >> 1  # batches up to twice as large have one structure
    sides = inner, outer, tiles * images
    if list(kernel) != [KERNEL, KERNEL] or 0 in sides:
        return False
    made = PLACES**2 * (1 + MOVED * sum(1 / side for side in sides))
    return made * tiles <= KERNEL**2 * prod(space)


def convolved(x: T, weight: T, pairs: Sequence[tuple[int, int]], space: Sequence[int]) -> T:
    """x (b, c, *n) and a weight (o, c, 3, …) → (b, *space, o), where space is the result's.

    pairs: zeros around x (if negative: so many elements less).
    """
    images, factors = _of_images(x, pairs, space), _of_weight(weight)
    factors = factors.reshape(len(images), *[1] * (images.ndim - 2), *factors.shape[1:])
    products = (factors * images.unsqueeze(-2)).sum(-1, dtype=images.dtype)
    parts = _transformed(_unstacked(products), OF_RESULT, len(space))
    for axis in range(2 * len(space), 0, -2):  # of the position in a tile
        parts = [_joined(parts[n : n + TILE], axis) for n in range(0, len(parts), TILE)]
    whole = parts[0].flatten(1, -2).reshape(x.shape[0], *map(_whole, space), weight.shape[0])
    result = whole.shrink([None, *((0, extent) for extent in space), None])
    rule = rule_of_nodes(type(x), _gradients(tuple(pairs)))
    return result._new(build.custom(result.node, [x.node, weight.node], rule))


@cache
def _gradients(pairs: tuple[tuple[int, int], ...]) -> Rule:
    """x's gradient is such a convolution, too: of the result's, with the weight turned around.

    Derived from `convolved`, it would be a sum of tiles that overlap: it has to wait until all
    products of neighbours are there, which then are no longer in the cache. (8 images of 64 × 56²:
    8.4 → 7.5 ms; no difference if the weight's gradient is computed, too.)
    """

    @templated
    def rule(g: T, value: T, x: T, weight: T) -> list[T]:
        turned = weight.transpose(0, 1).flip(tuple(range(2, weight.ndim)))
        around = [(KERNEL - 1 - before, KERNEL - 1 - after) for before, after in pairs]
        space, size = (plain_sizes("conv2d", *n) for n in (g.shape[1:-1], x.shape[2:]))
        of_x = convolved(g.movedim(-1, 1), turned, around, size).movedim(-1, 1)
        tiles = _positions(g.pad([None, *((0, _whole(n) - n) for n in space), None]))
        results = _stacked(_transformed(tiles, _transposed(OF_RESULT), len(space)))
        images = _of_images(x, pairs, space)
        places = tuple(range(1, images.ndim - 1))
        products = (results.unsqueeze(-1) * images.unsqueeze(-2)).sum(places, dtype=images.dtype)
        parts = _transformed(_unstacked(products), _transposed(OF_WEIGHT), len(space))
        return [of_x, _stacked(parts).movedim(0, -1).reshape(weight.shape)]

    return rule


def _of_images(x: T, pairs: Sequence[tuple[int, int]], space: Sequence[int]) -> T:
    """(b, c, *n) → the first factors of all products: (4 · 4 · …, b, tiles, 1, tiles, 1, …, c)."""
    ends = [(before, after + _whole(extent) - extent)
            for (before, after), extent in zip(pairs, space, strict=True)]  # fmt: skip
    padded = x.movedim(1, -1).pad([None, *ends, None]).contiguous()
    own = dict(zip(itertools.product(range(TILE), repeat=len(space)), _positions(padded),
                   strict=True))  # fmt: skip
    parts = []
    for places in itertools.product(range(PLACES), repeat=len(space)):
        part = own[tuple(place % TILE for place in places)]
        for axis, (place, extent) in enumerate(zip(places, space, strict=True)):
            first = place // TILE  # the next tile's
            part = part._part(1 + 2 * axis, first, first + _whole(extent) // TILE)
        parts.append(part)
    return _stacked(_transformed(parts, OF_IMAGE, len(space)))


def _of_weight(weight: T) -> T:
    """(o, c, 3, …) → the second factors: (4 · 4 · …, o, c)."""
    rows = weight.flatten(2).movedim(-1, 0)
    return _stacked(_transformed(_unstacked(rows), OF_WEIGHT, weight.ndim - 2))


def _positions(x: T) -> list[T]:
    """(b, *n, c) → for each position in a tile, its elements: (b, tiles, 1, tiles, 1, …, c)."""
    batch, *space, channels = x.shape
    parts = [x.reshape(batch, *(m for n in space for m in (n // TILE, TILE)), channels)]
    for axis in range(2, 2 + 2 * len(space), 2):
        parts = [part._part(axis, place, place + 1) for part in parts for place in range(TILE)]
    return parts


def _whole(extent: int) -> int:
    """The extent of whole tiles."""
    return TILE * ceildiv(extent, TILE)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _transformed(parts: Sequence[T], matrix: Matrix, times: int) -> list[T]:
    """Sums of parts with the factors of a matrix, along each of `times` dimensions."""
    found = list(parts)
    for _ in range(times):  # the first dimension: each turn moves it to the end
        count = len(found) // len(matrix[0])
        found = [_combined(row, found[n::count]) for n in range(count) for row in matrix]
    return found


def _combined(row: Sequence[float], parts: Sequence[T]) -> T:
    """The sum of parts times a row's factors, some of which are 0 and many ±1."""
    terms = [(factor, part) for factor, part in zip(row, parts, strict=True) if factor]
    total: Any = None
    for factor, part in sorted(terms, key=lambda term: term[0] < 0):  # positive terms first
        term = part if abs(factor) == 1 else part * abs(factor)
        if total is None:
            total = term if factor > 0 else -term
        else:
            total = total + term if factor > 0 else total - term
    return total


def _joined(parts: Sequence[T], axis: int) -> T:
    """Parts side by side in memory; each is written to its place, even if there are only a few."""
    return parts[0]._new(build.cat([part.node for part in parts], axis))


def _stacked(parts: Sequence[T]) -> T:
    return _joined([part.unsqueeze(0) for part in parts], 0)


def _unstacked(x: T) -> list[T]:
    return [x._part(0, n, n + 1).squeeze(0) for n in range(len(x))]
