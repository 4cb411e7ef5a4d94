"""Graphs whose dimensions merge and split, drawn so that all their extents can be replaced.

Each extent is one of a few primes, or a product of some where dimensions are merged: so a number in
the code says which extents it consists of. See `general`, which puts others in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations_with_replacement
from math import prod, sqrt

import numpy as np

from . import graph_rules
from .graph_steps import Maker, Shape, make_graph
from .graphs import Graph

PRIMES = (11, 13, 19, 23)  # other numbers in a graph are rarely products of these
STATEMENTS = 20


class Merging(Maker):
    """Draws a graph whose extents are `PRIMES`."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.large, self.most = False, prod(PRIMES) * max(PRIMES)

    def shape(self) -> Shape:
        """A shape of one to four dimensions."""
        count, repeats = 1 + self.below(len(PRIMES)), self.chance(0.1)
        return tuple(int(n) for n in self.random.choice(PRIMES, count, repeats))


def merging(m: Maker) -> None:
    """Two neighbouring dimensions become one, or one that was merged becomes two."""
    x = m.pick(lambda v: v.is_float and len(v.shape) > 1) or m.deep()
    axis = len(x.shape) - 1 - m.below(max(len(x.shape) - 1, 1))
    n = x.shape[axis]
    parts = [(d, n // d) for d in range(2, n) if n % d == 0]
    if parts and m.chance(0.5):
        new = (*x.shape[:axis], *parts[m.below(len(parts))], *x.shape[axis + 1 :])
    elif axis:
        new = (*x.shape[: axis - 1], x.shape[axis - 1] * n, *x.shape[axis + 1 :])
    else:
        return
    m.add(f"{x.name}.reshape({new})", [x], new, x.dtype, x.bound, True)


def einsum(m: Maker) -> None:
    """A sum of products of two values: each dimension of either is kept or summed, in any order."""
    x = m.deep()
    y = m.pick(lambda v: v.dtype == x.dtype and len(v.shape) > 0) if m.chance(0.5) else None
    y = y or m.leaf(None, x.dtype)
    known = dict[tuple[int, int], str]()  # an extent, and how often it came before: its letter
    inside = []
    for shape in (x.shape, y.shape):
        keys = [(n, shape[:axis].count(n)) for axis, n in enumerate(shape)]
        inside.append("".join(known.setdefault(key, "abcdefgh"[len(known)]) for key in keys))
    kept = [key for key in known if m.chance(0.6)]
    kept = [kept[int(place)] for place in m.random.permutation(len(kept))]
    new, count = tuple(n for n, _ in kept), prod(n for n, _ in known.keys() - kept)
    if prod(new) > m.most or prod(new) * count > 100 * m.most:
        return
    code = f"{','.join(inside)}->{''.join(known[key] for key in kept)}"
    m.add(f"(Tensor.einsum({code!r}, {x.name}, {y.name}) * {1 / sqrt(count):.6g})", [x, y], new,
          x.dtype, sqrt(count) * x.bound * y.bound)  # fmt: skip


def matrices(m: Maker) -> None:
    """A product with a matrix whose columns may vary, too; the matrix may be transposed."""
    x = m.pick(lambda v: v.is_float and len(v.shape) > 1) or m.leaf(PRIMES[:2])
    k, n = x.shape[-1], int(str(m.one_of(PRIMES)))
    turned = m.chance(0.5)
    y = m.leaf((n, k) if turned else (k, n), x.dtype)
    new = (*x.shape[:-1], n)
    if prod(new) * k <= 100 * m.most:
        code = f"({x.name} @ {y.name}{'.T' if turned else ''}) * {1 / sqrt(k):.6g}"
        m.add(f"({code})", [x, y], new, x.dtype, sqrt(k) * x.bound * y.bound)


def attends(m: Maker) -> None:
    """Attention of rows to rows of the same value."""
    x = m.pick(lambda v: v.dtype == "float32" and len(v.shape) > 1)
    if x is not None and prod(x.shape[:-1]) * x.shape[-2] <= m.most:
        code = f"({x.name}, {x.name}, is_causal={m.chance(0.5)})"
        m.add(f"{x.name}.scaled_dot_product_attention{code}", [x], x.shape, x.dtype, x.bound)


def embedded(m: Maker) -> None:
    """The sum of a value and a row of a table for each of its rows."""
    x = m.pick(lambda v: v.dtype == "float32" and len(v.shape) > 1)
    if x is not None:
        ids, table = m.leaf(x.shape[:-1], "int32", 8), m.leaf((8, x.shape[-1]))
        m.add(f"({x.name} + {ids.name}.embedding({table.name}))", [x, ids, table], x.shape, x.dtype,
              x.bound + table.bound)  # fmt: skip


def entropy(m: Maker) -> None:
    """The loss of a classification of rows."""
    x = m.pick(lambda v: v.dtype == "float32" and len(v.shape) == 2)
    if x is not None:
        ids = m.leaf(x.shape[:1], "int32", x.shape[1])
        m.add(f"{x.name}.cross_entropy({ids.name})", [x, ids], (), x.dtype, 2 * x.bound + 5)


RULES: list[tuple[float, Callable[[Maker], None]]] = [
    (40, merging), (6, einsum), (5, matrices), (4, attends), (2, embedded), (1, entropy),
    *graph_rules.RULES,
]  # fmt: skip


def make_merging(seed: int) -> Graph:
    """A seed's graph."""
    return make_graph(seed, STATEMENTS, Merging, RULES)


def extents(graph: Graph, random: np.random.Generator) -> list[dict[int, int]]:
    """Several sets of extents: for each number in a graph the one to put in its place.

    One to three primes stand for extents that vary, the others for one that does not.
    """
    shapes = {n for statement in graph.statements for n in statement.shape}
    used = [p for p in PRIMES if any(n % p == 0 for n in shapes)]
    few = random.permutation(used)[: random.choice((1, 2, 2, 2, 3))]
    fixed = {n: int(random.choice((1, 2, 3, 4, 8, 17))) for n in PRIMES}
    most = int(random.choice((10, 25)))
    return [
        _products({**fixed, **{int(n): int(random.integers(2, most)) for n in few}})
        for _ in range(10)
    ]


def _products(sizes: Mapping[int, int]) -> dict[int, int]:
    """For each product of some of PRIMES, 2 and 3 (repeated, joined), that with the new sizes."""
    return {
        prod(some): prod(sizes.get(n, n) for n in some)
        for count in range(1, len(PRIMES) + 2)
        for some in combinations_with_replacement((2, 3, *PRIMES), count)
    }
