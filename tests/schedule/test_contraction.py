"""Which stages are contractions, and the roles of their axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.graph.shapes import numel
from minigrad.schedule.contraction import Contraction
from minigrad.schedule.expr import Array, loads
from minigrad.schedule.lower import Lowering
from minigrad.schedule.stage import Stage, build

from .programs import F32, LENGTH, Inputs, add, mul, product, total, transpose


def found(node: Node, inputs: Inputs) -> Contraction | None:
    """The contraction of the SUM below movement operations, or None."""
    while node.op is not Op.SUM:
        node = node.src[0]
    return stage_of(node, inputs).contraction


def stage_of(node: Node, inputs: Inputs) -> Stage:
    """The stage of a node that reads inputs only."""
    arrays = {x: Array(f"s{x.arg}", x.dtype, numel(x.shape)) for x in inputs.nodes}
    arrays[node] = Array("t", node.dtype, numel(node.shape))
    return build(node, Lowering(arrays))


def extents(parts: Contraction) -> dict[str, list[object]]:
    """The lengths of the axes, by role."""
    return {
        name: [axis.extent for axis in getattr(parts, name)] for name in ("batch", "m", "n", "k")
    }


def operands(parts: Contraction) -> tuple[str, str]:
    """Names of the arrays on the left and on the right."""
    (left,), (right,) = loads(parts.left), loads(parts.right)
    return left.array.name, right.array.name


def parts_of(node: Node, inputs: Inputs) -> Contraction:
    """The contraction of a node that must be one."""
    parts = found(node, inputs)
    assert parts is not None
    return parts


def test_a_matrix_product() -> None:
    inputs = Inputs()
    parts = parts_of(product(inputs(5, 7), inputs(7, 9)), inputs)
    assert extents(parts) == {"batch": [], "m": [5], "n": [9], "k": [7]}
    assert operands(parts) == ("s0", "s1")


@pytest.mark.parametrize("turn_left", [False, True])
@pytest.mark.parametrize("turn_right", [False, True])
def test_transposed_operands_make_no_difference(turn_left: bool, turn_right: bool) -> None:
    inputs = Inputs()
    a = transpose(inputs(7, 5)) if turn_left else inputs(5, 7)
    b = transpose(inputs(9, 7)) if turn_right else inputs(7, 9)
    assert extents(parts_of(product(a, b), inputs)) == {
        "batch": [], "m": [5], "n": [9], "k": [7]
    }  # fmt: skip


def test_the_right_operand_is_the_one_with_the_last_axis() -> None:
    """b · a written with its factors in the other order, and with its axes exchanged."""
    inputs = Inputs()
    a, b = inputs(5, 7), inputs(7, 9)
    full = (5, 7, 9)
    left, right = g.expand(g.reshape(a, (5, 7, 1)), full), g.expand(g.reshape(b, (1, 7, 9)), full)
    exchanged = total(g.elementwise(Op.MUL, right, left), 1)
    assert operands(parts_of(exchanged, inputs)) == ("s0", "s1")
    turned = total(g.permute(g.elementwise(Op.MUL, left, right), (2, 1, 0)), 1)
    parts = parts_of(turned, inputs)
    assert operands(parts) == ("s1", "s0") and extents(parts)["n"] == [5]


def test_a_batch() -> None:
    inputs = Inputs()
    parts = parts_of(product(inputs(2, 3, 5, 7), inputs(2, 3, 7, 9)), inputs)
    assert extents(parts) == {"batch": [2, 3], "m": [5], "n": [9], "k": [7]}


def test_shared_weights_are_no_batch() -> None:
    inputs = Inputs()
    x, weight = inputs(2, 5, 7), inputs(7, 9)
    spread = g.expand(g.reshape(weight, (1, 7, 9)), (2, 7, 9))
    assert extents(parts_of(product(x, spread), inputs)) == {
        "batch": [], "m": [2, 5], "n": [9], "k": [7]
    }  # fmt: skip


def test_several_reduced_axes() -> None:
    inputs = Inputs()
    a, b = inputs(5, 3, 4, 1), inputs(1, 3, 4, 9)
    full = (5, 3, 4, 9)
    both = mul(g.expand(a, full), g.expand(b, full))
    assert extents(parts_of(total(both, 1, 2), inputs))["k"] == [3, 4]


def test_a_padded_and_a_converted_operand() -> None:
    inputs = Inputs()
    a, b = g.pad(inputs(5, 7), [(0, 0), (1, 1)]), inputs(9, 9, dtype=dtypes.float16)
    parts = parts_of(product(a, g.cast(b, F32)), inputs)
    assert parts.left.op is Op.WHERE and parts.right.op is Op.CAST


def test_a_sum_in_higher_precision() -> None:
    inputs = Inputs()
    a, b = inputs(5, 7, dtype=dtypes.bfloat16), inputs(7, 9, dtype=dtypes.bfloat16)
    full = (5, 7, 9)
    left, right = g.expand(g.reshape(a, (5, 7, 1)), full), g.expand(g.reshape(b, (1, 7, 9)), full)
    wide = g.cast(g.elementwise(Op.MUL, left, right), F32)
    assert found(total(wide, 1), inputs) is not None


def test_a_symbolic_depth() -> None:
    inputs = Inputs()
    parts = parts_of(product(inputs(5, LENGTH), inputs(LENGTH, 9)), inputs)
    assert extents(parts)["k"] == [LENGTH]


def no_contractions() -> dict[str, tuple[Node, Inputs]]:
    """Sums that must not become contractions."""
    cases: dict[str, tuple[Node, Inputs]] = {}

    def case(name: str, make: Callable[[Inputs], Node]) -> None:
        inputs = Inputs()
        cases[name] = make(inputs), inputs

    def sum_of_sum(i: Inputs) -> Node:
        x, y = i(5, 7, 1), i(1, 7, 9)
        return total(add(g.expand(x, (5, 7, 9)), g.expand(y, (5, 7, 9))), 1)

    def of_sums(i: Inputs) -> Node:
        """A computed operand would be computed again for every tile."""
        return product(add(i(5, 7), 1.0), i(7, 9))

    def half_reduced(i: Inputs) -> Node:
        """One operand lacks a reduced axis: that factor moves out of the sum."""
        x, y = i(5, 7, 3, 1), i(1, 7, 1, 9)
        return total(mul(g.expand(x, (5, 7, 3, 9)), g.expand(y, (5, 7, 3, 9))), 1, 2)

    def over_a_number(i: Inputs) -> Node:
        """Masked terms count, too, if their value is not 0."""
        x, y, mask = i(5, 7, 1), i(1, 7, 9), i(5, 7, 1, dtype=dtypes.bool)
        x, y, mask = (g.expand(one, (5, 7, 9)) for one in (x, y, mask))
        terms = g.elementwise(Op.WHERE, mask, mul(x, y), x.constant(5.0))
        return total(terms, 1)

    case("a sum of sums", sum_of_sum)
    case("a mask over a number", over_a_number)
    case("a plain sum", lambda i: total(i(5, 7), 1))
    case("a product of equal shapes", lambda i: total(mul(i(5, 7), i(5, 7)), 1))
    case("an inner product", lambda i: product(i(1, 7), i(7, 1)))
    case("a matrix and a vector", lambda i: product(i(5, 7), i(7, 1)))
    case("an operand of sums", of_sums)
    case("a lacking axis", half_reduced)
    case("integers", lambda i: product(i(5, 7, dtype=dtypes.int32), i(7, 9, dtype=dtypes.int32)))
    return cases


@pytest.mark.parametrize("name", no_contractions())
def test_what_is_none(name: str) -> None:
    node, inputs = no_contractions()[name]
    assert found(node, inputs) is None


def test_rows_and_columns_may_be_symbolic() -> None:
    inputs = Inputs()
    parts = parts_of(product(inputs(LENGTH, 7), inputs(7, 9)), inputs)
    assert extents(parts)["m"] == [LENGTH]
    parts = parts_of(product(inputs(2, 5, 7), inputs(2, 7, LENGTH)), inputs)
    assert extents(parts) == {"batch": [2], "m": [5], "n": [LENGTH], "k": [7]}


def test_a_maximum_of_products_is_none() -> None:
    inputs = Inputs()
    node = total(mul(g.expand(inputs(5, 7, 1), (5, 7, 9)), g.expand(inputs(1, 7, 9), (5, 7, 9))), 1)
    stage = stage_of(node, inputs)
    assert stage.contraction is not None
    assert replace(stage, op=Op.MAX).contraction is None


def test_a_last_axis_of_both_operands() -> None:
    """It is a shared axis if its elements are neighbours in both; otherwise there is no product."""
    inputs = Inputs()
    x, w, other = inputs(5, 7, 20), inputs(7, 20), inputs(20, 7)
    stage = stage_of(total(mul(x, w), 1), inputs)
    assert stage.contraction is None and stage.product is not None and stage.product.shared
    assert extents(stage.product) == {"batch": [20], "m": [5], "n": [], "k": [7]}
    assert stage_of(total(mul(x, g.permute(other, (1, 0))), 1), inputs).product is None


def pairs(i: Inputs, rows: int = 20, depth: int = 18, times: Node | None = None) -> Node:
    """Σ over the last axis of (x − y)², perhaps times something, for all pairs of rows."""
    shape = (rows, 24, depth)
    x, y = g.reshape(i(rows, depth), (rows, 1, depth)), g.reshape(i(24, depth), (1, 24, depth))
    apart = g.elementwise(Op.SUB, g.expand(x, shape), g.expand(y, shape))
    squares = mul(apart, apart)
    return total(squares if times is None else mul(squares, times), 2)


def test_a_sum_of_something_else_than_products() -> None:
    """It is tiled as a product, but whatever needs a product must not take it for one."""
    inputs = Inputs()
    stage = stage_of(pairs(inputs), inputs)
    assert stage.contraction is None and stage.product is not None
    assert stage.product.added is stage.body and operands(stage.product) == ("s0", "s1")
    assert extents(stage.product) == {"batch": [], "m": [20], "n": [24], "k": [18]}


@pytest.mark.parametrize("sizes", [(5, 18), (20, 7)])
def test_few_rows_or_terms_of_something_else_are_not_tiled(sizes: tuple[int, int]) -> None:
    inputs = Inputs()
    assert stage_of(pairs(inputs, *sizes), inputs).product is None


@pytest.mark.parametrize(("shape", "tiled"), [((1, 1, 18), False), ((20, 24, 1), True)])
def test_a_third_operand_of_something_else(shape: tuple[int, ...], tiled: bool) -> None:
    """It is tiled if the third is equal for all terms."""
    inputs = Inputs()
    weights = g.expand(inputs(*shape), (20, 24, 18))
    found = stage_of(pairs(inputs, times=weights), inputs).product
    assert (found is not None) == tiled
