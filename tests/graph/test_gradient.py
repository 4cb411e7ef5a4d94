"""Gradients of nodes, in float64 on the reference device: cases that no Tensor operation covers.

Each operation's first and second derivatives are compared with differences in tests/property.
"""

from __future__ import annotations

import numpy as np
import pytest
from devices import CPU, REFERENCE
from primitives import FLAT, HASHES, OF_FLOATS, PRIMITIVES

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.build import elementwise
from minigrad.graph.gradient import RULES, gradient
from minigrad.graph.operations import COMPARISONS, REDUCTIONS, Op
from minigrad.graph.variable import Variable
from minigrad.runtimes.reference import evaluate

RANDOM = np.random.default_rng(7)


def leaf(slot, shape, dtype=dtypes.float64):
    return build.buffer(slot, dtype, tuple(shape), REFERENCE)


def number(value, shape=(), dtype=dtypes.float64):
    return build.const(value, dtype, tuple(shape), REFERENCE)


def total(node):
    return build.reduce(Op.SUM, node, range(node.ndim))


def weighted(node):
    """A scalar whose gradient differs for each element of node."""
    weights = np.cos(np.arange(np.prod(node.shape)) + 0.5).reshape(node.shape)
    return total(elementwise(Op.MUL, node, leaf("weights", node.shape))), weights


def differences(scalar, given, slot, step):
    """∂scalar/∂given[slot] by central differences."""
    result = np.zeros_like(given[slot])
    for place in np.ndindex(result.shape):
        sides = []
        for sign in (1, -1):
            moved = given[slot].copy()
            moved[place] += sign * step
            sides.append(evaluate([scalar], {**given, slot: moved})[0].item())
        result[place] = (sides[0] - sides[1]) / (2 * step)
    return result


def normal(*shape):
    return RANDOM.standard_normal(shape)


@pytest.mark.parametrize("op", [Op.LGAMMA, Op.DIGAMMA], ids=lambda op: op.value)
def test_gamma_functions_below_zero(op):
    x = leaf(0, (3, 4))
    slope = elementwise(op, x)
    given = {0: -RANDOM.integers(0, 4, (3, 4)) - RANDOM.uniform(0.3, 0.7, (3, 4))}
    for _ in range(2):
        scalar = total(slope)
        (slope,) = gradient([scalar], [number(1.0, scalar.shape)], [x])
        (found,) = evaluate([slope], given)
        np.testing.assert_allclose(found, differences(scalar, given, 0, 1e-5), rtol=1e-5)


def value_of_gradient(function, array, orders=1):
    x = leaf(0, np.shape(array))
    result = function(x)
    for _ in range(orders):
        (result,) = gradient([result], [number(1.0, result.shape)], [x])
    return evaluate([result], {0: np.asarray(array, np.float64)})[0].tolist()


def test_power_at_zero():
    """As in PyTorch: 0·∞ at the edge does not give NaN."""
    square = [0.0, -1.0, 2.0]
    for exponent, first in ((2.0, [0.0, -2.0, 4.0]), (1.0, [1.0] * 3), (0.0, [0.0] * 3)):
        for given in (number(exponent, (3,)), build.buffer("e", dtypes.float64, (3,), REFERENCE)):
            x = leaf(0, (3,))
            (found,) = gradient([elementwise(Op.POW, x, given)], [number(1.0, (3,))], [x])
            values = {0: np.array(square), "e": np.full(3, exponent)}
            assert evaluate([found], values)[0].tolist() == first
    x, y = leaf(0, (4,)), leaf(1, (4,))
    (by_exponent,) = gradient([elementwise(Op.POW, x, y)], [number(1.0, (4,))], [y])
    values = {0: np.array([0.0, 0.0, 0.0, 1.0]), 1: np.array([2.0, 0.0, -1.0, 3.0])}
    assert evaluate([by_exponent], values)[0].tolist() == [0.0, 0.0, -np.inf, 0.0]


def test_square_root_at_zero_is_infinite():
    assert value_of_gradient(lambda x: elementwise(Op.SQRT, x), [0.0, 4.0]) == [np.inf, 0.25]


def test_ties_are_split():
    both = [1.0, 2.0, 2.0]
    x = leaf(0, (3,))
    y = leaf(1, (3,))
    for op, first in ((Op.MAXIMUM, [0.0, 0.5, 1.0]), (Op.MINIMUM, [1.0, 0.5, 0.0])):
        found = gradient([elementwise(op, x, y)], [number(1.0, (3,))], [x, y])
        values = evaluate(found, {0: np.array(both), 1: np.array([3.0, 2.0, 1.0])})
        assert values[0].tolist() == first
        assert (values[0] + values[1]).tolist() == [1.0] * 3
    largest = value_of_gradient(lambda x: build.reduce(Op.MAX, x, (0,)), [5.0, 1.0, 5.0, 5.0])
    assert largest == [1 / 3, 0.0, 1 / 3, 1 / 3]


def test_many_ties_in_bfloat16_are_counted_exactly():
    x = leaf(0, (1000,), dtypes.bfloat16)
    (found,) = gradient(
        [build.reduce(Op.MAX, x, (0,))], [number(1.0, (1,), dtypes.bfloat16)], [x]
    )
    (value,) = evaluate([found], {0: np.ones(1000)})
    np.testing.assert_allclose(value.astype(np.float64), 1e-3, rtol=2**-8)


def test_product_of_nothing():
    x = leaf(0, (2, 0))
    (found,) = gradient([build.reduce(Op.PROD, x, (1,))], [number(1.0, (2, 1))], [x])
    assert found.shape == (2, 0)


def indices(array, axis):
    index = RANDOM.integers(-1, array.shape[axis] + 1, array.shape)
    return build.buffer("index", dtypes.int32, array.shape, REFERENCE), index


@pytest.mark.parametrize("axis", [0, 1])
def test_gather_and_scatter(axis):
    """Including indices out of range (−1 and the length) and repeated ones."""
    array, other = normal(4, 3), normal(4, 3)
    place, index = indices(array, axis)

    def gathered(x):
        return build.gather(elementwise(Op.SIN, x), place, axis)

    def scattered(base, x):
        sines = elementwise(Op.SIN, base), elementwise(Op.EXP, x)
        return elementwise(Op.TANH, build.scatter_add(sines[0], place, sines[1], axis))

    x, y = leaf(0, (4, 3)), leaf(1, (4, 3))
    for function, leaves in ((gathered, [x]), (scattered, [x, y])):
        scalar, weights = weighted(function(*leaves))
        given = {0: array, 1: other, "index": index, "weights": weights}
        found = gradient([scalar], [number(1.0, (1, 1))], leaves)
        for slot, value in enumerate(evaluate(found, given)):
            expected = differences(scalar, given, slot, 1e-5)
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_cast_between_floats():
    x = leaf(0, (3,), dtypes.float16)
    wide = elementwise(Op.EXP, build.cast(x, dtypes.float32))
    (found,) = gradient([wide], [number(1.0, (3,), dtypes.float32)], [x])
    assert found.dtype is dtypes.float16
    (value,) = evaluate([found], {0: np.array([0.0, 1.0, 2.0])})
    np.testing.assert_allclose(value, np.exp([0.0, 1.0, 2.0]), rtol=1e-3)


def test_copy_brings_the_gradient_back():
    x = build.buffer(0, dtypes.float32, (2,), CPU)
    there = build.copy(x, REFERENCE)
    (found,) = gradient([elementwise(Op.EXP, there)], [number(1.0, (2,), dtypes.float32)], [x])
    assert found.device == CPU and found.op is Op.COPY and found.src[0].device == REFERENCE


def test_nothing_flows():
    x, y = leaf(0, (3,)), leaf(1, (3,))
    one = number(1.0, (3,))
    whole = build.cast(build.cast(x, dtypes.int32), dtypes.float64)
    bits = build.bitcast(build.bitcast(x, dtypes.int64), dtypes.float64)
    assert gradient([bits], [one], [x, y]) == [None, None]
    assert gradient([whole], [one], [x]) == [None]
    assert gradient([bits], [one], [x]) == [None]
    (found,) = gradient([elementwise(Op.MUL, bits, x)], [one], [x])
    assert evaluate([found], {0: np.array([1.0, 2.0, 3.0])})[0].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("op", FLAT, ids=str)
def test_zeros_flow_through_steps(op):
    x, y, z = (leaf(n, (3,)) for n in range(3))
    one = number(1.0, (3,))
    stairs = elementwise(op, elementwise(Op.EXP, x))
    found = gradient([elementwise(Op.MUL, stairs, y)], [one], [x, y, z])
    values = evaluate([g for g in found if g is not None], {0: np.zeros(3), 1: np.ones(3)})
    assert [v.tolist() for v in values] == [[0.0] * 3, [1.0] * 3] and found[2] is None


def test_target_between_output_and_target():
    x = leaf(0, (3,))
    middle = elementwise(Op.MUL, x, x)
    outer = elementwise(Op.EXP, middle)
    found = gradient([outer, middle], [number(1.0, (3,)), number(2.0, (3,))], [middle, x, outer])
    values = evaluate(found, {0: np.array([0.0, 1.0, 2.0])})
    np.testing.assert_allclose(values[0], np.exp([0.0, 1.0, 4.0]) + 2)
    np.testing.assert_allclose(values[1], values[0] * [0.0, 2.0, 4.0])
    np.testing.assert_allclose(values[2], 1.0)


def test_assign():
    target, x = leaf(0, (3,)), leaf(1, (3,))
    one = number(1.0, (3,))
    written = build.assign(target, elementwise(Op.EXP, x))
    loss = elementwise(Op.MUL, written, written)
    assert gradient([loss], [one], [x, target]) == [None, None]  # what is written is a constant
    (found,) = gradient([loss], [one], [written])
    assert found is not None
    assert gradient([loss], [one], [leaf(2, (3,))]) == [None]


@pytest.mark.parametrize("op", sorted(REDUCTIONS, key=lambda op: op.value), ids=lambda op: op.value)
def test_symbolic_shapes(op):
    """The gradient of a part of a buffer; its length is bound to 3 of at most 7."""
    length = Variable("length", 1, 7).bind(3)
    x = leaf(0, (2, 7))
    part = elementwise(Op.MUL, *[build.shrink(x, ((0, 2), (0, length)))] * 2)
    row = build.reduce(op, part, (1,))
    spread = elementwise(Op.MUL, part, build.expand(row, part.shape))
    scalar = build.reshape(build.reduce(Op.SUM, spread, (0, 1)), ())
    (found,) = gradient([scalar], [number(1.0)], [x])
    given = {0: normal(2, 7)}
    (value,) = evaluate([found], given)
    np.testing.assert_allclose(value, differences(scalar, given, 0, 1e-5), rtol=1e-6, atol=1e-6)
    assert (value[:, 3:] == 0).all() and (value[:, :3] != 0).all()


def test_deep_graph():
    node = x = leaf(0, (1,))
    for _ in range(20_000):
        node = elementwise(Op.SIN, elementwise(Op.ADD, node, x))
    (found,) = gradient([node], [number(1.0, (1,))], [x])
    assert found is not None


def test_every_operation_is_decided():
    """Every op has a rule, or is listed as having no gradient."""
    nothing = {
        Op.CONST, Op.BUFFER, Op.IOTA, Op.VARIABLE, Op.ASSIGN, Op.BITCAST, Op.SORT, Op.DISTRIBUTE,
        *FLAT, *COMPARISONS, *set(PRIMITIVES) - set(OF_FLOATS), *HASHES,
    }  # fmt: skip
    # handled individually: see `rules_of` and `gradient`
    own = {Op.CUSTOM, Op.COLLECTIVE, Op.CAT, Op.LOOP, Op.RESULT}
    assert set(RULES) | nothing | own == set(Op) and not set(RULES) & (nothing | own)
