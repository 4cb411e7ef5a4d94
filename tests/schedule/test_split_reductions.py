"""Long reductions with few results are cut in two: the same value, with a parallel first half."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Node, topological
from minigrad.graph.operations import REDUCTIONS, Op
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import var
from minigrad.runtimes.reference import evaluate, numpy_dtype
from minigrad.schedule.split import DEEP, FEW_ROWS, LONG, MOST_RUNS, split_reductions

from .machine import GOLDEN
from .programs import DEVICE


def reductions(root: Node) -> list[Node]:
    """All reductions below a node, in topological order."""
    return [node for node in topological([root]) if node.op in REDUCTIONS]


def split(op: Op, shape: tuple[int, ...], axes: list[int], dtype: DType = dtypes.float32) -> Node:
    """The reduction after `split_reductions`; checks shape, dtype and value."""
    node = g.reduce(op, g.buffer(0, dtype, shape, DEVICE), axes)
    (new,) = split_reductions([node])
    assert new.shape == node.shape and new.dtype is node.dtype
    random = np.random.default_rng(0)
    x = random.integers(-4, 5, shape).astype(numpy_dtype(dtype))
    if op is Op.PROD:
        x = np.where(random.random(shape) < 1e-4, -1, 1).astype(x.dtype)
    (before,), (after,) = evaluate([node], {0: x}), evaluate([new], {0: x})
    np.testing.assert_array_equal(before, after)  # small whole numbers: sums are exact
    return new


@pytest.mark.parametrize("op", [Op.SUM, Op.MAX, Op.PROD])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((LONG,), [0]),
        ((256, 1024), [0, 1]),
        ((7, 512, 600), [1, 2]),
        ((600, 512, 7), [0, 1]),
        ((4, 40_000), [1]),
        ((40_000, 4), [0]),
    ],
)
def test_long_reductions(op: Op, shape: tuple[int, ...], axes: list[int]) -> None:
    first, second = reductions(split(op, shape, axes))
    assert first.op is second.op is op
    parts = numel(first.shape) // numel(second.shape)
    assert 8 <= parts <= (128 if len(axes) == 1 else MOST_RUNS)
    assert numel(second.src[0].shape) == numel(first.shape)


@pytest.mark.parametrize(("shape", "parts"), [
    ((64, 64, 256), 64 * 64), ((64, 1000), 64), ((8, 64, 56, 56), 8 * 64), ((32, 2000), 128),
    ((5000, 300), 5000), ((70_000, 300), 125), ((2, 3, 40_000), 120),
])  # fmt: skip
def test_parts_are_rows_if_these_are_long(shape: tuple[int, ...], parts: int) -> None:
    """Then what else is computed from a row may share its kernel."""
    first, _ = reductions(split(Op.SUM, shape, [*range(len(shape))]))
    assert numel(first.shape) == parts


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((LONG - 1,), [0]),  # short
        ((FEW_ROWS, 2 * LONG), [1]),  # enough results to keep all threads busy
        ((100, 100, 3), [0, 1]),
        ((5, 0), [1]),  # nothing to reduce
    ],
)
def test_what_is_left_alone(shape: tuple[int, ...], axes: list[int]) -> None:
    node = g.reduce(Op.SUM, g.buffer(0, dtypes.float32, shape, DEVICE), axes)
    assert split_reductions([node]) == [node]


def test_a_length_without_divisors_is_padded_for_sums() -> None:
    """40,009 is prime. Zeros at the end do not change a sum; they could change a maximum."""
    first, _ = reductions(split(Op.SUM, (40_009,), [0]))
    assert numel(first.shape) == FEW_ROWS
    for op in (Op.MAX, Op.PROD):
        assert len(reductions(split(op, (40_009,), [0]))) == 1


def test_only_a_product_is_scattered_onto() -> None:
    index = g.expand(g.reshape(g.buffer(2, dtypes.int32, (9,), DEVICE), (9, 1)), (9, 40))
    x = g.scatter_add(
        g.const(0.0, dtypes.float32, (24, 40), DEVICE), index,
        g.buffer(3, dtypes.float32, (9, 40), DEVICE), 0,
    )  # fmt: skip
    table = g.buffer(0, dtypes.float32, (24, 40), DEVICE)
    others = table, g.elementwise(Op.MUL, table, table), g.reduce(Op.MAX, table, [1])
    for other in others:
        both = g.elementwise(Op.ADD, g.expand(other, x.shape), x)
        assert split_reductions([both]) == [both]
    head = g.reshape(product((30,)), x.shape)
    for sides in ((x, head), (head, x)):
        (new,) = split_reductions([g.elementwise(Op.ADD, *sides)])
        assert new.op is Op.SCATTER_ADD and new.src[0] == head


def test_every_number_of_elements_around_a_cut() -> None:
    for length in range(LONG, LONG + 40):
        split(Op.SUM, (length,), [0], dtypes.int32)


def test_symbolic_axes_are_not_cut() -> None:
    length = var("n", 1, 1 << 20)
    x = g.buffer(0, dtypes.float32, (length, 4), DEVICE)
    node = g.reduce(Op.SUM, x, [0])
    assert split_reductions([node]) == [node]
    both = g.reduce(Op.SUM, g.buffer(0, dtypes.float32, (length, 512), DEVICE), [0, 1])
    (new,) = split_reductions([both])
    assert len(reductions(new)) == 2  # along the other axis


def test_the_cut_is_made_along_a_long_axis() -> None:
    """Not along the 3, though it comes first: that gives too few parts."""
    first, _ = reductions(split(Op.SUM, (3, 50_000), [0, 1]))
    assert numel(first.shape) >= 8


def test_parts_of_several_axes_are_runs_of_memory() -> None:
    """The gradient of a bias: each part sums consecutive rows."""
    wanted = {(4, 256, 384): (4, 16), (12, 64, 384): (12, 4), (1, 512, 600): (64,)}
    for shape, parts in wanted.items():
        first, _ = reductions(split(Op.SUM, shape, [0, 1]))
        assert [extent for extent in first.shape if extent != 1] == [*parts, shape[2]]


@pytest.mark.parametrize("images", [1, 4])
def test_parts_are_runs_of_memory_also_if_channels_are_stored_last(images: int) -> None:
    """As those of a convolution's result: a part is some rows of an image, with all channels."""
    shape = (images, 256, 512 // images, 8)
    memory = g.buffer(0, dtypes.float32, shape, DEVICE)
    bias = g.expand(g.reshape(g.buffer(1, dtypes.float32, (8,), DEVICE), (1, 8, 1, 1)),
                    (images, 8, *shape[1:3]))  # fmt: skip
    image = g.permute(memory, (0, 3, 1, 2))
    node = g.reduce(Op.SUM, (bias + image) * image, [0, 2, 3])
    (new,) = split_reductions([node])
    first, _ = reductions(new)
    assert [extent for extent in first.shape if extent != 1][-1] == 8  # channels are neighbours
    assert 8 <= numel(first.shape) // 8 <= MOST_RUNS
    random = np.random.default_rng(0)
    values = {0: random.integers(-4, 5, shape).astype(np.float32),
              1: random.integers(-4, 5, 8).astype(np.float32)}  # fmt: skip
    (before,), (after,) = evaluate([node], values), evaluate([new], values)
    np.testing.assert_array_equal(before, after)
    plan = schedule_of(Graph((node,), (2,), 3, (), DEVICE), GOLDEN)
    assert len(plan.kernels) == 2 and plan.kernels[0].stages[-1].axes[-1].extent == 8


def test_the_order_stays_where_operands_have_different_ones() -> None:
    """As the gradient of what is pooled, with its channels first, and a convolution's result."""
    last = g.permute(g.buffer(0, dtypes.float32, (4, 256, 128, 8), DEVICE), (0, 3, 1, 2))
    first = g.buffer(1, dtypes.float32, (4, 8, 256, 128), DEVICE)
    (new,) = split_reductions([g.reduce(Op.SUM, last * first, [0, 2, 3])])
    parts, _ = reductions(new)
    assert [extent for extent in parts.shape if extent != 1][:2] == [4, 8]


def test_a_cut_reduction_is_not_cut_again() -> None:
    node = split(Op.SUM, (1 << 22,), [0])
    (again,) = split_reductions([node])
    assert len(reductions(again)) == len(reductions(node)) == 2


def product(depth: tuple[int, ...], rows: int = 24, columns: int = 40) -> Node:
    """Σ over `depth` of a[depth, rows]·b[columns, depth]."""
    n = len(depth)
    a = g.reshape(g.buffer(0, dtypes.float32, (*depth, rows), DEVICE), (*depth, rows, 1))
    b = g.permute(g.buffer(1, dtypes.float32, (columns, *depth), DEVICE), [*range(1, n + 1), 0])
    shape = (*depth, rows, columns)
    factors = [g.expand(a, shape), g.expand(g.reshape(b, (*depth, 1, columns)), shape)]
    return g.reduce(Op.SUM, g.elementwise(Op.MUL, *factors), range(n))


@pytest.mark.parametrize(
    ("depth", "cut"),
    [
        ((2 * DEEP,), (2,)),
        ((8, 56, 56), (8, 2, 1)),
        ((2, 112, 112), (2, 7, 1)),
        ((3, 2053), (3, 1)),  # a prime number is not cut
        ((1, 9, 1000), (1, 3, 1)),
    ],
)
def test_deep_products_are_cut(depth: tuple[int, ...], cut: tuple[int, ...]) -> None:
    """Into products whose operands stay in a cache, and the sum of those."""
    node = product(depth)
    (new,) = split_reductions([node])
    first, _ = reductions(new)
    assert numel(first.shape) == numel(cut) * numel(node.shape)
    assert new.shape == node.shape
    random = np.random.default_rng(0)
    values = {
        0: random.integers(-2, 3, (*depth, 24)).astype(np.float32),
        1: random.integers(-2, 3, (40, *depth)).astype(np.float32),
    }
    (before,), (after,) = evaluate([node], values), evaluate([new], values)
    np.testing.assert_array_equal(before, after)


def test_parts_of_a_product_come_first() -> None:
    """Also if the sum is over the last axes: otherwise parts and rows would share a kernel."""
    a = g.reshape(g.buffer(0, dtypes.float32, (24, 3, 4096), DEVICE), (24, 1, 3, 4096))
    b = g.reshape(g.buffer(1, dtypes.float32, (40, 3, 4096), DEVICE), (1, 40, 3, 4096))
    factors = [g.expand(x, (24, 40, 3, 4096)) for x in (a, b)]
    node = g.reduce(Op.SUM, g.elementwise(Op.MUL, *factors), [2, 3])
    (new,) = split_reductions([node])
    first, _ = reductions(new)
    assert first.shape[:2] == (3, 2) and numel(first.shape) == 6 * 24 * 40
    plan = schedule_of(Graph((node,), (2,), 3, (), DEVICE), GOLDEN)
    assert [kernel.kind for kernel in plan.kernels] == ["contraction", "rows"]


def test_a_part_of_a_product_reads_stored_operands() -> None:
    """As the product itself would: what is computed is not computed again for each column."""
    shape = (64, 28, 28, 9, 32)
    gradient = g.buffer(0, dtypes.float32, (64, 28, 28, 32), DEVICE)
    computed = gradient * gradient + gradient * 3.0
    windows = g.reshape(g.buffer(1, dtypes.float32, (64, 28, 28, 9), DEVICE), (*shape[:4], 1))
    factors = g.reshape(computed, (64, 28, 28, 1, 32)), windows
    node = g.reduce(Op.SUM, Node.__mul__(*(g.expand(x, shape) for x in factors)), [0, 1, 2])
    plan = schedule_of(Graph((node,), (2,), 3, (), DEVICE), GOLDEN)
    assert [kernel.kind for kernel in plan.kernels] == ["rows", "contraction", "rows"]


def test_shallow_products_are_left_alone() -> None:
    for node in (product((2 * DEEP - 1,)), product((3, 1000)), product((var("n", 1, 1 << 20),))):
        assert split_reductions([node]) == [node]


def weight_gradient(uses: int, rows: int) -> Node:
    """The gradient of a weight that multiplies several batches, summed as `gradient` does."""
    shape = (rows, 24, 40)
    terms = []
    for n in range(uses):
        a = g.reshape(g.buffer(2 * n, dtypes.float32, (rows, 24), DEVICE), (rows, 24, 1))
        b = g.reshape(g.buffer(2 * n + 1, dtypes.float32, (rows, 40), DEVICE), (rows, 1, 40))
        terms.append(g.elementwise(Op.MUL, g.expand(a, shape), g.expand(b, shape)))
    total = terms[0]
    for term in terms[1:]:
        total = g.elementwise(Op.ADD, total, term)
    return g.reduce(Op.SUM, total, [0])


def test_a_sum_of_products_is_products() -> None:
    """No recipe for products knows a loop over their sum, which took 20 times as long."""
    uses = 3
    node = weight_gradient(uses, 40)
    (new,) = split_reductions([node])
    assert len(reductions(new)) == uses
    random = np.random.default_rng(0)
    extents = (24, 40) * uses
    values = {
        n: random.integers(-2, 3, (40, extent)).astype(np.float32)
        for n, extent in enumerate(extents)
    }
    (before,), (after,) = evaluate([node], values), evaluate([new], values)
    np.testing.assert_array_equal(before, after)
    plan = schedule_of(Graph((node,), (2 * uses,), 2 * uses + 1, (), DEVICE), GOLDEN)
    assert [kernel.kind for kernel in plan.kernels] == ["contraction"] * uses
    small = weight_gradient(uses, 4)
    assert split_reductions([small]) == [small], "one kernel, at once"


def test_only_products_leave_a_sum() -> None:
    """The other terms stay one sum."""
    node = weight_gradient(2, 40)
    others = [g.buffer(n, dtypes.float32, (40, 24, 40), DEVICE) for n in (6, 7)]
    x = node.src[0]
    for other in others:
        x = g.elementwise(Op.ADD, other, x)
    (new,) = split_reductions([g.reduce(Op.SUM, x, [0])])
    assert sorted(sum_.src[0].op.value for sum_ in reductions(new)) == ["add", "mul", "mul"]


def test_readers_follow() -> None:
    x = g.buffer(0, dtypes.float32, (LONG,), DEVICE)
    node = g.reduce(Op.SUM, x, [0])
    reader = g.elementwise(Op.ADD, node, g.const(1.0, dtypes.float32, (1,), DEVICE))
    (new,) = split_reductions([reader])
    assert len(reductions(new)) == 2
    values = np.ones(LONG, np.float32)
    assert evaluate([new], {0: values})[0] == LONG + 1
