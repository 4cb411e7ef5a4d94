"""The terms of pieces: numbers that are equal only for what computes the same."""

from itertools import combinations, count

from devices import REFERENCE

from minigrad.dtype import dtypes
from minigrad.graph.build import buffer, const, expand, permute, reduce, reshape, shrink
from minigrad.graph.node import Node, Op, elementwise
from minigrad.graph.pieces import Piece, Terms, pieces


def slot(number: int, *shape: int) -> Node:
    return buffer(number, dtypes.float32, shape or (2, 2), REFERENCE)


def times(x: Node, y: Node) -> Node:
    return elementwise(Op.MUL, x, y)


def test_equal_terms_compute_the_same_of_other_slots():
    a, b, c = slot(0), slot(1), slot(2)
    terms = Terms()
    number, slots = terms.of(times(a, times(b, a)))
    assert slots == (0, 1)
    assert terms.of(times(c, times(a, c))) == (number, (2, 0))
    assert Terms().of(times(b, times(c, b))) == (number, (1, 2))


def test_terms_of_what_differs():
    a, b = slot(0), slot(1)
    zeros = [const(zero, dtypes.float32, (2, 2), REFERENCE) for zero in (0.0, -0.0)]
    some = [
        times(a, b), times(a, a), times(times(a, b), a), times(times(a, b), b),
        elementwise(Op.ADD, a, b), *(times(a, zero) for zero in zeros), a, permute(a, (1, 0)),
        *(shrink(a, ((at, at + 1), (0, 2))) for at in (0, 1)), reshape(a, (4,)), slot(0, 4),
        buffer(0, dtypes.int32, (2, 2), REFERENCE),
    ]  # fmt: skip
    terms = [Terms().of(one) for one in some]
    numbers = {number for number, _ in terms}
    assert len(numbers) == len(some)
    pairs = [*combinations(terms, 2)]
    several = {Piece([], [8, 9], [*pair]).term()[0] for pair in pairs}
    assert len(several | numbers) == len(pairs) + len(numbers)
    pair = [Terms().of(a), Terms().of(b)]
    assert Piece([], [1, 2], pair).term()[0] != Piece([], [2, 3], pair).term()[0]


def test_a_node_that_was_stored_is_read():
    a, b = slot(0), slot(1)
    product = times(a, b)
    terms = Terms()
    terms.read(product, 7)
    assert terms.of(times(product, b)) == Terms().of(times(slot(7), b))


def test_a_sum_of_products_begins_with_one():
    """Whatever the second product is: it is added by the same program as the third."""
    wide = [expand(reshape(slot(number, 8), (8, 1)), (8, 64)) for number in range(6)]
    first, second, third = (times(*wide[at : at + 2]) for at in (0, 2, 4))
    total = elementwise(Op.ADD, elementwise(Op.ADD, first, second), third)
    cut = pieces([elementwise(Op.EXP, total)], count(6))
    assert [[node.op for node in some.nodes] for some in cut[:2]] == [[Op.MUL], [Op.ADD, Op.EXP]]


def test_values_of_the_same_elements_are_results_of_one_piece():
    """But each is computed after all that it reads: of two pieces, with the later one."""
    a = slot(0)
    low = elementwise(Op.EXP, a)
    less = times(low, elementwise(Op.SIN, low))
    total = expand(reduce(Op.SUM, times(less, a), (0,)), (2, 2))
    high = elementwise(Op.SQRT, total)
    last = elementwise(Op.ADD, high, less)
    negative = elementwise(Op.NEG, low)
    cut = pieces([last, negative, high], count(1))
    assert cut[0].nodes == [low, less, negative]
    where = {node: place for place, some in enumerate(cut) for node in some.nodes}
    assert where[high] == where[last] > where[total.src[0]] > 0
    known = {0}
    for some in cut:
        known.update(some.slots)
        assert all(known.issuperset(slots) for _, slots in some.terms)
    assert known == {*range(len(where) + 1)}


def test_a_piece_of_several_results_is_known_again():
    def cut(first: int) -> list[tuple[int, tuple[int, ...]]]:
        a, b = slot(first), slot(first + 1)
        low = elementwise(Op.EXP, times(a, b))
        roots = [elementwise(Op.SIN, low), times(low, b), low]
        return [some.term() for some in pieces(roots, count(first + 9))]

    ((number, slots),) = cut(0)
    assert slots == (9, 10, 11, 0, 1)
    assert cut(30) == [(number, (39, 40, 41, 30, 31))]
