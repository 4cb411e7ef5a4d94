"""The terms of pieces: numbers that are equal only for what computes the same."""

from itertools import combinations

from devices import REFERENCE

from minigrad.dtype import dtypes
from minigrad.graph.build import buffer, const, expand, permute, reshape, shrink
from minigrad.graph.node import Node, Op, elementwise
from minigrad.graph.pieces import Terms, pieces


def slot(number: int, *shape: int) -> Node:
    return buffer(number, dtypes.float32, shape or (2, 2), REFERENCE)


def times(x: Node, y: Node) -> Node:
    return elementwise(Op.MUL, x, y)


def test_equal_terms_compute_the_same_of_other_slots():
    a, b, c = slot(0), slot(1), slot(2)
    terms = Terms()
    number, slots = terms.of([times(a, times(b, a))])
    assert slots == (0, 1)
    assert terms.of([times(c, times(a, c))]) == (number, (2, 0))
    assert Terms().of([times(b, times(c, b))]) == (number, (1, 2))


def test_terms_of_what_differs():
    a, b = slot(0), slot(1)
    zeros = [const(zero, dtypes.float32, (2, 2), REFERENCE) for zero in (0.0, -0.0)]
    some = [
        times(a, b), times(a, a), times(times(a, b), a), times(times(a, b), b),
        elementwise(Op.ADD, a, b), *(times(a, zero) for zero in zeros), a, permute(a, (1, 0)),
        *(shrink(a, ((at, at + 1), (0, 2))) for at in (0, 1)), reshape(a, (4,)), slot(0, 4),
        buffer(0, dtypes.int32, (2, 2), REFERENCE),
    ]  # fmt: skip
    numbers = [Terms().of([one])[0] for one in some]
    assert len({*numbers}) == len(some)
    several = [Terms().of([*pair])[0] for pair in combinations(some, 2)]
    assert len({*several, *numbers}) == len(several) + len(numbers)


def test_a_node_that_was_stored_is_read():
    a, b = slot(0), slot(1)
    product = times(a, b)
    terms = Terms()
    terms.read(product, 7)
    assert terms.of([times(product, b)]) == Terms().of([times(slot(7), b)])


def test_a_sum_of_products_begins_with_one():
    """Whatever the second product is: it is added by the same program as the third."""
    wide = [expand(reshape(slot(number, 8), (8, 1)), (8, 64)) for number in range(6)]
    first, second, third = (times(*wide[at : at + 2]) for at in (0, 2, 4))
    total = elementwise(Op.ADD, elementwise(Op.ADD, first, second), third)
    cut = pieces([elementwise(Op.EXP, total)])
    assert [[node.op for node in some] for some in cut[:2]] == [[Op.MUL], [Op.ADD]]
