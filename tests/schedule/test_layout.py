"""Products are computed and stored in the order in which their results are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from minigrad.compile import schedule_of
from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.schedule.schedule import Schedule
from minigrad.target import Target

from .agreement import agree
from .machine import GOLDEN
from .programs import Build, Inputs, ew, graph_of, mul, plan_of, product, total

HEADS, ROWS, WIDTH, DEPTH = 4, 24, 16, 20


def check(build: Build) -> Schedule:
    """Compare a program with the reference; returns its schedule."""
    agree(build)
    return plan_of(build)


def heads(inputs: Inputs) -> Node:
    """A product for each head: (2, heads, rows, width)."""
    return product(inputs(2, HEADS, ROWS, DEPTH), inputs(2, HEADS, DEPTH, WIDTH))


def side_by_side(x: Node) -> Node:
    """(2, heads, rows, width) → (2, rows, heads · width)."""
    return g.reshape(g.permute(x, (0, 2, 1, 3)), (2, ROWS, HEADS * WIDTH))


def copied(inputs: Inputs) -> list[Node]:
    return [side_by_side(heads(inputs))]


def with_arithmetic(inputs: Inputs) -> list[Node]:
    return [ew(Op.EXP, mul(side_by_side(heads(inputs)), inputs(2, ROWS, HEADS * WIDTH)))]


def piece(inputs: Inputs) -> list[Node]:
    other = inputs(2, ROWS, 3)
    return [g.cat([other, side_by_side(heads(inputs)), ew(Op.EXP, other)], 2)]


def transposed(inputs: Inputs) -> list[Node]:
    """Rows of the product are neighbours in the result: vectors are transposed when stored."""
    return [g.permute(heads(inputs), (0, 1, 3, 2))]


ENDS = [(copied, 1), (with_arithmetic, 1), (piece, 2), (transposed, 1)]


@pytest.mark.parametrize(("build", "kernels"), ENDS)
def test_what_ends_a_product_is_stored_by_it(
    build: Callable[[Inputs], list[Node]], kernels: int
) -> None:
    """Also at other places than the product's: nothing is stored in between."""
    plan = check(build)
    assert [kernel.kind for kernel in plan.kernels].count("contraction") == 1
    assert len(plan.kernels) == kernels and plan.arena_bytes == 0


def far_apart(inputs: Inputs) -> list[Node]:
    """Neither rows nor columns are neighbours in the result, but batches are."""
    return [g.permute(heads(inputs), (2, 3, 1, 0))]


def repeated(inputs: Inputs) -> list[Node]:
    """Each result is read twice."""
    x = g.reshape(heads(inputs), (2, HEADS, ROWS, 1, WIDTH))
    twice = g.expand(x, (2, HEADS, ROWS, 2, WIDTH))
    return [ew(Op.EXP, g.reshape(twice, (2, HEADS, ROWS, 2 * WIDTH)))]


def a_part(inputs: Inputs) -> list[Node]:
    return [g.shrink(side_by_side(heads(inputs)), [(0, 2), (3, 9), (0, HEADS * WIDTH)])]


def another_reader(inputs: Inputs) -> list[Node]:
    x = side_by_side(heads(inputs))
    y = mul(x, x)
    return [y, total(y, 2)]


@pytest.mark.parametrize("build", [far_apart, repeated, a_part, another_reader])
def test_what_is_not_each_result_once_is_right(build: Build) -> None:
    check(build)


def test_a_product_lies_as_the_products_behind_it_read_it() -> None:
    """Heads side by side in a row, as the projection and its weight gradient read them."""

    def build(inputs: Inputs) -> list[Node]:
        x = side_by_side(heads(inputs))
        rows = g.reshape(x, (2 * ROWS, HEADS * WIDTH))
        seed = inputs(2 * ROWS, 24)
        return [product(rows, inputs(HEADS * WIDTH, 24)), product(g.permute(rows, (1, 0)), seed)]

    plan = check(build)
    first = plan.kernels[0].stages[0]
    assert not first.row_major
    row = HEADS * WIDTH
    assert str(first.position) == f"{ROWS * row}·i0 + {WIDTH}·i1 + {row}·i2 + i3"


def transposed_words(inputs: Inputs) -> list[Node]:
    """The same, with operands that matrix registers may multiply."""
    sizes = (2, HEADS, ROWS, DEPTH), (2, HEADS, DEPTH, WIDTH)
    x, y = (g.cast(inputs(*shape, dtype=dtypes.bfloat16), dtypes.float32) for shape in sizes)
    return [g.permute(product(x, y), (0, 1, 3, 2))]


MATRICES = replace(GOLDEN, matrices=True)


@pytest.mark.parametrize(
    ("build", "target", "kernels"),
    [(transposed, replace(GOLDEN, vector_bytes=0), 2), (transposed_words, MATRICES, 2),
     (transposed_words, GOLDEN, 1), (transposed, MATRICES, 1)],
)  # fmt: skip
def test_without_vectors_to_transpose_it_is_another_kernel(
    build: Build, target: Target, kernels: int
) -> None:
    """A processor with matrix registers multiplies float32 in vectors."""
    assert len(schedule_of(graph_of(build)[0], target).kernels) == kernels


def test_readers_that_disagree_leave_a_product_as_it_is() -> None:
    def build(inputs: Inputs) -> list[Node]:
        x = heads(inputs)
        rows = g.reshape(side_by_side(x), (2 * ROWS, HEADS * WIDTH))
        return [product(rows, inputs(HEADS * WIDTH, 24)), product(x, inputs(2, HEADS, WIDTH, 24))]

    assert check(build).kernels[0].stages[0].row_major
