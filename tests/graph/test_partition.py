"""The exchanges of a partitioned graph, against the formulas of the literature; nothing is run."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.partition import LayoutPlan, Partitioned, partition
from minigrad.graph.sharding import (
    Digit,
    Dims,
    Layout,
    are_valid,
    local_shape,
    mark,
    meshes,
    reshaped,
)

SIZES = {"a": 2, "b": 4}
MESH = "a mesh"
meshes[MESH] = SIZES
A, B = Digit("a", 4, 2), Digit("b", 2, 4)  # of a dimension of 8 elements


def leaf(slot: int, *shape: int) -> Node:
    """A BUFFER node of a mesh."""
    return build.buffer(slot, dtypes.float32, shape, MESH)


def product(x: Node, w: Node) -> Node:
    """x (m, k) · w (k, n)."""
    (m, k), n = x.shape, w.shape[1]
    left = build.expand(build.reshape(x, (m, k, 1)), (m, k, n))
    right = build.expand(build.reshape(w, (1, k, n)), (m, k, n))
    both = build.elementwise(Op.MUL, left, right)
    return build.reshape(build.reduce(Op.SUM, both, (1,)), (m, n))


def divided(
    root: Node, layouts: dict[int, Layout], wanted: Layout | None = None
) -> Partitioned:
    """The partitioned graph: that of one device."""
    return partition(LayoutPlan([root], layouts.get, [wanted]), MESH, MESH + ":0")


def kinds(found: Partitioned) -> list[str]:
    """The kinds of its exchanges."""
    return [one.kind for one in found.exchanges]


def test_columns_then_rows_is_one_sum() -> None:
    """Megatron: the first matrix by columns, the second by rows, an activation between."""
    x, up, down = leaf(0, 8, 8), leaf(1, 8, 8), leaf(2, 8, 8)
    inner = product(x, up)
    inner = build.elementwise(Op.MUL, inner, inner)
    found = divided(product(inner, down), {1: Layout(((), (B,))), 2: Layout(((B,), ()))})
    assert kinds(found) == ["all_reduce"]
    assert found.exchanges[0].nbytes == 2 * 3 * 8 * 8 * 4 * 2  # for two groups of four
    assert found.layouts[0].is_whole


def test_a_sum_is_scattered_where_its_reader_is_divided() -> None:
    x, y = leaf(0, 8, 8), leaf(1, 8)
    total = build.reshape(build.reduce(Op.SUM, x, (0,)), (8,))
    root = build.elementwise(Op.ADD, total, build.elementwise(Op.MUL, total, total))
    root = build.elementwise(Op.ADD, root, y)
    by_rows, part = Layout(((B,), ())), Layout(((B,),))
    assert kinds(divided(root, {0: by_rows, 1: part}, part)) == ["reduce_scatter"]
    assert kinds(divided(root, {0: by_rows})) == ["all_reduce"]
    late = build.elementwise(Op.ADD, total, total)
    assert kinds(divided(late, {0: by_rows})) == ["all_reduce"]  # only one, after the addition


def squares(x: Node) -> Node:
    """The scalar sum of an array's squares."""
    return build.reshape(build.reduce(Op.SUM, build.elementwise(Op.MUL, x, x), (0, 1)), ())


def added(*terms: Node) -> Node:
    """The sum of the terms, from left to right."""
    first, *rest = terms
    for term in rest:
        first = build.elementwise(Op.ADD, first, term)
    return first


def test_sums_are_added_before_they_are_exchanged() -> None:
    """A norm: sums of divided arrays, with sums of replicated arrays among them."""
    arrays = [squares(leaf(slot, 8, 8)) for slot in range(6)]
    by_rows = {slot: Layout(((B,), ())) for slot in (0, 2, 3, 5)}
    found = divided(build.elementwise(Op.SQRT, added(*arrays)), by_rows)
    assert kinds(found) == ["all_reduce"]
    assert found.exchanges[0].nbytes == 2 * 3 * 4 * 2


def test_a_whole_alone_is_added_after_the_exchange() -> None:
    """With one divided sum; but with the sums of two branches, it is added before the exchange."""
    x, y = leaf(0, 8, 8), leaf(1, 8, 8)
    sums = [product(y, leaf(slot, 8, 8)) for slot in (2, 3)]
    by_rows = {slot: Layout(((B,), ())) for slot in (2, 3)}
    for terms in ((x, sums[0]), (x, *sums), (sums[0], x, sums[1])):
        found = divided(build.elementwise(Op.EXP, added(*terms)), by_rows)
        assert kinds(found) == ["all_reduce"]
        assert found.exchanges[0].nbytes == 2 * 3 * 8 * 8 * 4 * 2
        masks = [node for node in topological(found.roots) if node.op is Op.WHERE]
        assert len(masks) == (len(terms) > 2)  # it is replaced by 0 on all but one device


def test_a_row_that_is_added_to_sums_comes_as_it_is_stored() -> None:
    """The stored part is exchanged, not its repetitions; and before anything is added."""
    x, y, row = leaf(0, 8, 8), leaf(1, 8, 8), leaf(4, 8)
    sums = [product(y, leaf(slot, 8, 8)) for slot in (2, 3)]
    wide = build.expand(build.reshape(row, (1, 8)), (8, 8))
    layouts = {0: Layout(((A,), ())), 1: Layout(((A,), ())), 2: Layout(((B,), ())),
               3: Layout(((B,), ())), 4: Layout(((A,),), stored=frozenset({"a"}))}  # fmt: skip
    found = divided(build.elementwise(Op.EXP, added(sums[0], wide, x, sums[1])), layouts)
    assert kinds(found) == ["all_gather", "all_reduce"]
    assert found.exchanges[0].nbytes == 8 * 4 * 4


def test_what_is_stored_apart_comes_in_runs() -> None:
    """48 matrices, three at once, gathered while the three before are in use; six at the start."""
    x, layouts = leaf(99, 8, 64), {99: Layout(((A,), ()))}
    for slot in range(48):
        x = build.elementwise(Op.EXP, product(x, leaf(slot, 64, 64)))
        layouts[slot] = Layout(((Digit("a", 32, 2),), ()), stored=frozenset({"a"}))
    found = divided(x, layouts)
    assert kinds(found) == ["all_gather"] * 15
    gathers = [node for node in topological(found.roots) if node.op is Op.COLLECTIVE]
    for node in gathers:
        before = {n for n in topological(node.src) if n.op is Op.COLLECTIVE}
        number = node.arg.number
        assert node.arg.payload == (3 if number else 6)
        known = number if number < 2 else number - 1
        assert {n.arg.number for n in before} == set(range(known)), number


def test_from_one_dimension_to_another() -> None:
    x = leaf(0, 8, 8)
    root = mark(build.elementwise(Op.MUL, x, x), ((), (B,)))
    found = divided(root, {0: Layout(((B,), ()))})
    assert kinds(found) == ["all_to_all"]
    assert found.roots[0].shape == (8, 2)
    assert kinds(divided(mark(x, ((), ())), {0: Layout(((B,), ()))})) == ["all_gather"]
    assert kinds(divided(mark(x, ((A,), (B,))), {})) == []


def test_what_is_stored_apart_gives_way() -> None:
    """ZeRO: a matrix that is only stored divided is gathered; the batch stays divided."""
    x, w = leaf(0, 8, 8), leaf(1, 8, 64)
    batch = Layout(((B,), ()))
    stores = Layout(((B,), ()), stored=frozenset({"b"}))
    found = divided(product(x, w), {0: batch, 1: stores})
    assert kinds(found) == ["all_gather"]
    assert found.layouts[0] == batch
    assert found.exchanges[0].nbytes == 3 * 8 * 64 * 4 * 2


def test_a_reshape_moves_digits_as_it_moves_elements() -> None:
    """If all digits survive, each device has the same elements before and after the reshape."""
    draw = random.Random(7)
    shapes = [s for n in range(1, 4) for s in itertools.product((1, 2, 3, 4, 6, 8), repeat=n)]
    of_size: dict[int, list[tuple[int, ...]]] = {}
    for shape in shapes:
        of_size.setdefault(math.prod(shape), []).append(shape)
    kept = 0
    for _ in range(3000):
        old = draw.choice(shapes)
        new = draw.choice(of_size[math.prod(old)])
        dims: list[tuple[Digit, ...]] = [()] * len(old)
        at = draw.randrange(len(old))
        axis = draw.choice("ab")
        digit = Digit(axis, draw.choice([1, 2, 3, 4]), SIZES[axis])
        if not are_valid(old[at], (digit,)):
            continue
        dims[at] = (digit,)
        after, complete = reshaped(old, tuple(dims), new)
        if complete:
            kept += 1
            assert np.array_equal(places(old, tuple(dims)).ravel(), places(new, after).ravel())
            assert np.prod(local_shape(old, tuple(dims))) == np.prod(local_shape(new, after))
    assert kept > 100


def places(shape: tuple[int, ...], dims: Dims) -> np.ndarray:
    """For each element, the sum of its positions along the mesh axes."""
    found = np.zeros(shape, int)
    for at, digits in enumerate(dims):
        for _, stride, ways in digits:
            index = np.arange(shape[at]).reshape([-1 if d == at else 1 for d in range(len(shape))])
            found = found + index // stride % ways
    return found


@pytest.mark.parametrize("op", [Op.MAX, Op.PROD, Op.CUMSUM])
def test_what_no_sum_is(op: Op) -> None:
    x = leaf(0, 8, 8)
    root = build.scan(op, x, 0) if op is Op.CUMSUM else build.reduce(op, x, (0,))
    wanted = ["all_reduce"] if op is Op.MAX else ["all_gather"]
    assert kinds(divided(root, {0: Layout(((B,), ()))})) == wanted
