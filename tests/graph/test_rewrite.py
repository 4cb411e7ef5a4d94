"""The rewrite engine and the algebraic rules, which must not change a single bit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from devices import REFERENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from primitives import EITHER_ZERO, OF_ONE, PRIMITIVES, VECTOR_MATH, arity, defined

from minigrad.dtype import ALL, FLOATS, INTS, dtypes
from minigrad.errors import CompileError
from minigrad.graph import build
from minigrad.graph.build import elementwise
from minigrad.graph.node import Op, topological
from minigrad.graph.rewrite import rewrite
from minigrad.graph.simplify import RULES, holds, simplify
from minigrad.graph.variable import Variable
from minigrad.graph.variable import evaluate as integer
from minigrad.runtimes.reference import evaluate, numpy_dtype


def leaf(slot, dtype=dtypes.float32, shape=(3,)):
    return build.buffer(slot, dtype, tuple(shape), REFERENCE)


def number(value, dtype=dtypes.float32, shape=(3,)):
    return build.const(value, dtype, tuple(shape), REFERENCE)


def one(node):
    (result,) = simplify([node])
    return result


# --- the engine ----------------------------------------------------------------------------------


def test_rules_run_to_a_fixed_point():
    """What a rule makes is simplified too, its new sources included."""

    def split(node):
        x = node.src[0]
        return elementwise(Op.ADD, elementwise(Op.COS, x), elementwise(Op.EXP, x))

    def cos_to_sin(node):
        return elementwise(Op.SIN, node.src[0])

    x = leaf(0)
    root = elementwise(Op.TANH, elementwise(Op.NEG, elementwise(Op.COS, x)))
    (found,) = rewrite([root], {Op.NEG: [split], Op.COS: [cos_to_sin]})
    sine = elementwise(Op.SIN, x)
    expected = elementwise(Op.ADD, elementwise(Op.SIN, sine), elementwise(Op.EXP, sine))
    assert found is elementwise(Op.TANH, expected)


def test_shared_nodes_are_looked_at_once():
    seen = []
    x = elementwise(Op.SIN, leaf(0))
    roots = [elementwise(Op.ADD, x, x), elementwise(Op.EXP, x), elementwise(Op.EXP, x)]
    assert rewrite(roots, {Op.SIN: [seen.append]}) == tuple(roots)
    assert seen == [x]


def test_first_rule_wins():
    x = leaf(0)
    rules = [lambda node: None, lambda node: node.src[0], lambda node: node.src[0].src[0]]
    assert rewrite([elementwise(Op.SIN, elementwise(Op.EXP, x))], {Op.SIN: rules}) == (
        elementwise(Op.EXP, x),
    )


def test_rules_that_undo_one_another():
    swap = {
        Op.SIN: [lambda node: elementwise(Op.COS, node.src[0])],
        Op.COS: [lambda node: elementwise(Op.SIN, node.src[0])],
    }
    with pytest.raises(CompileError, match="never end"):
        rewrite([elementwise(Op.SIN, leaf(0))], swap)
    with pytest.raises(CompileError, match="never end"):
        rewrite([elementwise(Op.SIN, leaf(0))], {Op.SIN: [lambda node: elementwise(Op.NEG, node)]})


def test_rules_must_keep_dtype_and_shape():
    def wrong(node):
        return build.cast(node.src[0], dtypes.float64)

    with pytest.raises(CompileError, match="wrong"):
        rewrite([elementwise(Op.SIN, leaf(0))], {Op.SIN: [wrong]})


def test_deep_graph():
    node = leaf(0, dtypes.int32)
    for _ in range(20_000):
        node = elementwise(Op.ADD, elementwise(Op.NEG, elementwise(Op.NEG, node)),
                           number(1, dtypes.int32))  # fmt: skip
    assert one(node) is elementwise(Op.ADD, leaf(0, dtypes.int32), number(20_000, dtypes.int32))


# --- what becomes what ---------------------------------------------------------------------------

X, Y = leaf(0), leaf(1)
N, M = leaf(0, dtypes.int32), leaf(1, dtypes.int32)
B, C = leaf(0, dtypes.bool), leaf(1, dtypes.bool)


def whole(value):
    return number(value, dtypes.int32)


def truth(value):
    return number(value, dtypes.bool)


BECOMES = {
    "x + -0": (elementwise(Op.ADD, X, number(-0.0)), X),
    "-0 + x": (elementwise(Op.ADD, number(-0.0), X), X),
    "x - 0": (elementwise(Op.SUB, X, number(0.0)), X),
    "x * 1": (elementwise(Op.MUL, X, number(1.0)), X),
    "1 * x": (elementwise(Op.MUL, number(1.0), X), X),
    "x * -1": (elementwise(Op.MUL, X, number(-1.0)), elementwise(Op.NEG, X)),
    "x / 1": (elementwise(Op.DIV, X, number(1.0)), X),
    "x / 4": (elementwise(Op.DIV, X, number(4.0)), elementwise(Op.MUL, X, number(0.25))),
    "x + -y": (elementwise(Op.ADD, X, elementwise(Op.NEG, Y)), elementwise(Op.SUB, X, Y)),
    "-x + y": (elementwise(Op.ADD, elementwise(Op.NEG, X), Y), elementwise(Op.SUB, Y, X)),
    "x - -y": (elementwise(Op.SUB, X, elementwise(Op.NEG, Y)), elementwise(Op.ADD, X, Y)),
    "-x * -y": (
        elementwise(Op.MUL, elementwise(Op.NEG, X), elementwise(Op.NEG, Y)),
        elementwise(Op.MUL, X, Y),
    ),
    "-x * 3": (
        elementwise(Op.MUL, number(3.0), elementwise(Op.NEG, X)),
        elementwise(Op.MUL, X, number(-3.0)),
    ),
    "--x": (elementwise(Op.NEG, elementwise(Op.NEG, X)), X),
    "max(x, -inf)": (elementwise(Op.MAXIMUM, X, number(-math.inf)), X),
    "min(x, x)": (elementwise(Op.MINIMUM, X, X), X),
    "2 + 3": (elementwise(Op.ADD, number(2.0), number(3.0)), number(5.0)),
    "int x + 0": (elementwise(Op.ADD, N, whole(0)), N),
    "int x * 0": (elementwise(Op.MUL, N, whole(0)), whole(0)),
    "int x - x": (elementwise(Op.SUB, N, N), whole(0)),
    "int x - 3": (elementwise(Op.SUB, N, whole(3)), elementwise(Op.ADD, N, whole(-3))),
    "int x + 2 + 3": (
        elementwise(Op.ADD, elementwise(Op.ADD, whole(2), N), whole(3)),
        elementwise(Op.ADD, N, whole(5)),
    ),
    "int x * 2 * 3": (
        elementwise(Op.MUL, elementwise(Op.MUL, N, whole(2)), whole(3)),
        elementwise(Op.MUL, N, whole(6)),
    ),
    "int x // 1": (elementwise(Op.IDIV, N, whole(1)), N),
    "int x // 0": (elementwise(Op.IDIV, N, whole(0)), whole(0)),
    "int x % 1": (elementwise(Op.MOD, N, whole(1)), whole(0)),
    "int x == x": (elementwise(Op.EQ, N, N), truth(True)),
    "int x < x": (elementwise(Op.LT, N, N), truth(False)),
    "x & ~0": (elementwise(Op.AND, N, whole(-1)), N),
    "x | 0": (elementwise(Op.OR, N, whole(0)), N),
    "x ^ ~0": (elementwise(Op.XOR, N, whole(-1)), elementwise(Op.NOT, N)),
    "x ^ x": (elementwise(Op.XOR, N, N), whole(0)),
    "x << 0": (elementwise(Op.SHL, N, whole(0)), N),
    "~~x": (elementwise(Op.NOT, elementwise(Op.NOT, N)), N),
    "bool x & true": (elementwise(Op.AND, B, truth(True)), B),
    "bool x | true": (elementwise(Op.OR, B, truth(True)), truth(True)),
    "where(true, x, y)": (elementwise(Op.WHERE, truth(True), X, Y), X),
    "where(false, x, y)": (elementwise(Op.WHERE, truth(False), X, Y), Y),
    "where(c, x, x)": (elementwise(Op.WHERE, B, X, X), X),
    "where(~c, x, y)": (
        elementwise(Op.WHERE, elementwise(Op.NOT, B), X, Y), elementwise(Op.WHERE, B, Y, X)
    ),
    "where(c, true, false)": (elementwise(Op.WHERE, B, truth(True), truth(False)), B),
    "where(c, where(c, x, y), x)": (
        elementwise(Op.WHERE, B, elementwise(Op.WHERE, B, X, Y), X), X
    ),
    "int8 of int64 of int16": (
        build.cast(build.cast(leaf(0, dtypes.int16), dtypes.int64), dtypes.int8),
        build.cast(leaf(0, dtypes.int16), dtypes.int8),
    ),
    "float16 of float32 of float16": (
        build.cast(build.cast(leaf(0, dtypes.float16), dtypes.float32), dtypes.float16),
        leaf(0, dtypes.float16),
    ),
    "bits and back": (build.bitcast(build.bitcast(X, dtypes.int32), dtypes.float32), X),
    "sum of sum": (
        build.reduce(Op.SUM, build.reduce(Op.SUM, leaf(0, shape=(2, 3, 4)), (2,)), (0,)),
        build.reduce(Op.SUM, leaf(0, shape=(2, 3, 4)), (0, 2)),
    ),
    "sum of repeated": (
        build.reduce(Op.SUM, build.expand(leaf(0, shape=(2, 1)), (2, 5)), (0, 1)),
        elementwise(
            Op.MUL, build.reduce(Op.SUM, leaf(0, shape=(2, 1)), (0,)), number(5.0, shape=(1, 1))
        ),
    ),
    "max of repeated": (
        build.reduce(Op.MAX, build.expand(leaf(0, shape=(2, 1)), (2, 5)), (1,)),
        leaf(0, shape=(2, 1)),
    ),
    "sum of constants": (
        build.reduce(Op.SUM, number(3, dtypes.int8, (50, 2)), (0,)),
        number(-106, dtypes.int8, (1, 2)),
    ),
    "product of nothing": (
        build.reduce(Op.PROD, leaf(0, shape=(2, 0)), (1,)), number(1.0, shape=(2, 1))
    ),
    "permute ones": (
        build.permute(leaf(0, shape=(2, 1, 3)), (1, 0, 2)),
        build.reshape(leaf(0, shape=(2, 1, 3)), (1, 2, 3)),
    ),
    "reshape of reshape": (
        build.reshape(build.reshape(leaf(0, shape=(6,)), (2, 3)), (3, 2)),
        build.reshape(leaf(0, shape=(6,)), (3, 2)),
    ),
    "permute of permute": (
        build.permute(build.permute(leaf(0, shape=(2, 3, 4)), (1, 2, 0)), (0, 2, 1)),
        build.permute(leaf(0, shape=(2, 3, 4)), (1, 0, 2)),
    ),
    "expand of expand": (
        build.expand(build.expand(leaf(0, shape=(1, 1)), (2, 1)), (2, 3)),
        build.expand(leaf(0, shape=(1, 1)), (2, 3)),
    ),
    "flip of flip": (
        build.flip(build.flip(leaf(0, shape=(2, 3)), (0, 1)), (0,)),
        build.flip(leaf(0, shape=(2, 3)), (1,)),
    ),
    "shrink of shrink": (
        build.shrink(build.shrink(leaf(0, shape=(9,)), ((2, 8),)), ((1, 4),)),
        build.shrink(leaf(0, shape=(9,)), ((3, 6),)),
    ),
    "pad of nothing": (build.pad(build.shrink(X, ((1, 1),)), ((2, 3),)), number(0.0, shape=(5,))),
    "scatter of nothing": (
        build.scatter_add(
            X, number(0, dtypes.int32, (0,)), build.shrink(X, ((1, 1),)), 0
        ), X,
    ),
    "pad of pad": (build.pad(build.pad(X, ((1, 0),)), ((2, 3),)), build.pad(X, ((3, 3),))),
    "shrink of pad": (build.shrink(build.pad(X, ((1, 2),)), ((1, 4),)), X),
    "shrink of pad inside": (
        build.shrink(build.pad(X, ((1, 2),)), ((2, 4),)), build.shrink(X, ((1, 3),))
    ),
    "shrink of expand": (
        build.shrink(build.expand(leaf(0, shape=(1, 3)), (9, 3)), ((2, 4), (1, 3))),
        build.expand(build.shrink(leaf(0, shape=(1, 3)), ((0, 1), (1, 3))), (2, 2)),
    ),
    "gather of one index": (
        build.gather(X, number(2, dtypes.int32, (5,)), 0),
        build.expand(build.shrink(X, ((2, 3),)), (5,)),
    ),
    "gather out of range": (
        build.gather(X, number(3, dtypes.int32, (5,)), 0), number(0.0, shape=(5,))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BECOMES)
def test_becomes(case):
    before, after = BECOMES[case]
    assert before is not after and one(before) is after


STAYS = {
    "x + 0": elementwise(Op.ADD, X, number(0.0)),
    "x - -0": elementwise(Op.SUB, X, number(-0.0)),
    "x * 0": elementwise(Op.MUL, X, number(0.0)),
    "x - x": elementwise(Op.SUB, X, X),
    "x == x": elementwise(Op.EQ, X, X),
    "0 - x": elementwise(Op.SUB, number(0.0), X),
    "x / 3": elementwise(Op.DIV, X, number(3.0)),
    "x / 2^-127": elementwise(Op.DIV, X, number(2.0**-127)),
    "max(x, inf)": elementwise(Op.MAXIMUM, X, number(math.inf)),
    "x + 1 + 2": elementwise(Op.ADD, elementwise(Op.ADD, X, number(1.0)), number(2.0)),
    "int8 of float64 of int32": build.cast(build.cast(N, dtypes.float64), dtypes.int8),
    "int64 of int8 of int32": build.cast(build.cast(N, dtypes.int8), dtypes.int64),
    "float32 of float16 of float32": build.cast(build.cast(X, dtypes.float16), dtypes.float32),
    "sum of max": build.reduce(
        Op.SUM, build.reduce(Op.MAX, leaf(0, shape=(2, 3)), (1,)), (0,)
    ),
    "bfloat16 sum of 257": build.reduce(
        Op.SUM, build.expand(leaf(0, dtypes.bfloat16, (1,)), (257,)), (0,)
    ),
    "shrink of pad across": build.shrink(build.pad(X, ((1, 2),)), ((0, 2),)),
}


@pytest.mark.parametrize("case", STAYS)
def test_stays(case):
    assert one(STAYS[case]) is STAYS[case]


def test_symbolic_shapes():
    length = Variable("length", 1, 7).bind(3)
    x = leaf(0, shape=(1, 7))
    part = build.shrink(x, ((0, 1), (0, length)))
    padded = build.pad(part, ((0, 0), (2, 7 - length)))
    assert one(build.shrink(padded, ((0, 1), (2, 2 + length)))) is part
    spread = build.expand(build.reshape(part, (1, 1, length)), (4, 1, length))
    total = one(build.reduce(Op.SUM, spread, (0, 2)))
    assert total.op is Op.MUL and integer(length, {}) == 3
    assert one(build.permute(part, (1, 0))) is build.reshape(part, (length, 1))
    repeated = build.reduce(Op.SUM, build.expand(leaf(1, shape=(1,)), (length,)), (0,))
    assert one(repeated) is repeated


def test_every_rule_is_tried_in_this_file():
    """Each rule of the table changes at least one of the examples above."""
    used = set()

    def watched(rule):
        def run(node):
            result = rule(node)
            if result is not None and result is not node:
                used.add(rule.__name__)
            return result

        run.__name__ = rule.__name__
        return run

    table = {op: [watched(rule) for rule in rules] for op, rules in RULES.items()}
    rewrite([before for before, _ in BECOMES.values()], table)
    assert used == {rule.__name__ for rules in RULES.values() for rule in rules}


# --- not a bit may change ------------------------------------------------------------------------


def edges(dtype):
    if dtype.is_bool:
        return [False, True]
    if dtype.is_int:
        low, high = int(dtype.minimum), int(dtype.maximum)
        small = [0, 1, 2, 3, 7, dtype.bits - 1, dtype.bits]
        return [*small, high, high - 1, low, low + 1] + [-1, -2, -3] * (dtype.kind == "i")
    tiny = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149}
    values = [0.0, 1.0, 2.0, 0.5, 1.5, 2.5, 3.0, 1 / 3, 7.0, 100.25, 3e4, math.inf]
    values.append(tiny.get(dtype.name, 5e-324))
    return [*values, *(-value for value in values), math.nan]


def equal_bits(found, expected):
    """Equal, NaN equal to NaN, zeros of equal sign."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    wide = [x.astype(np.float64) if x.dtype.kind not in "iub" else x for x in (found, expected)]
    np.testing.assert_array_equal(*wide)
    if wide[0].dtype.kind == "f":
        numbers = ~np.isnan(wide[0])
        np.testing.assert_array_equal(*(np.signbit(x)[numbers] for x in wide))


EXACT = [op for op in PRIMITIVES if op not in VECTOR_MATH]


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        pytest.param(op, dtype, id=f"{op.value}-{dtype.name}")
        for op in EXACT for dtype in ALL if defined(op, dtype)
    ],
)  # fmt: skip
def test_folding_equals_the_reference(op, dtype):
    slots = range(arity(op))
    values = edges(dtype)
    columns = list(itertools.product(values, repeat=len(slots)))
    folded = [elementwise(op, *(number(v, dtype, ()) for v in row)) for row in columns]
    simple = simplify(folded)
    if not (op is Op.MOD and dtype.is_float):
        assert all(node.op is Op.CONST for node in simple)
    arrays = {slot: np.array([row[slot] for row in columns], numpy_dtype(dtype)) for slot in slots}
    whole = elementwise(op, *(leaf(slot, dtype, (len(columns),)) for slot in slots))
    found = np.array([evaluate([node])[0] for node in simple])
    (expected,) = evaluate([whole], arrays)
    if op in EITHER_ZERO and dtype.is_float:
        found, expected = found + 0.0, expected + 0.0
    equal_bits(found, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    "op", [op for op in OF_ONE if op in VECTOR_MATH], ids=lambda op: op.value
)
def test_folding_transcendentals(op, dtype):
    """Within one unit in the last place; what has no finite value is left alone."""
    for value in edges(dtype):
        node = elementwise(op, number(value, dtype, ()))
        found, expected = (float(x) for x in evaluate([one(node), node]))
        if math.isfinite(expected):
            digits = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}[dtype.name]
            assert abs(found - expected) <= abs(expected) * 2.0 ** (1 - digits)
        else:
            np.testing.assert_equal(found, expected)


def test_holds_is_lossless():
    for narrow in ALL:
        for wide in ALL:
            values = [v for v in edges(narrow) if v == v]
            through = build.cast(build.cast(leaf(0, narrow, (len(values),)), wide), narrow)
            start = np.array(values, numpy_dtype(narrow))
            (found,) = evaluate([through], {0: start})
            if holds(wide, narrow):
                equal_bits(found, start)
            elif not (narrow.is_int and wide.is_int):  # wrapping there and back is the identity
                assert found.tolist() != start.tolist() or wide.itemsize < narrow.itemsize


def operations(roots):
    """How many nodes have something to compute."""
    return sum(bool(node.src) for node in topological(roots))


@st.composite
def graphs(draw, dtype):
    """A random elementwise graph over two leaves and constants, rich in what the rules look for."""
    special = [0, 1, 2, 4] if dtype.is_bool or dtype.kind == "u" else [0, 1, -1, 2, -4]
    if dtype.is_float:
        special += [-0.0, math.inf, -math.inf, 0.5]
    pool = [leaf(0, dtype, (5,)), leaf(1, dtype, (5,))]
    pool += [number(value, dtype, (5,)) for value in special]
    truths = [leaf(2, dtypes.bool, (5,)), number(True, dtypes.bool, (5,))]
    usable = [op for op in EXACT if defined(op, dtype)]
    if dtype.is_float:
        usable = [op for op in usable if op not in EITHER_ZERO]
    for _ in range(draw(st.integers(1, 12))):
        op = draw(st.sampled_from([*usable, Op.WHERE, Op.CAST]))
        x, y = (draw(st.sampled_from(pool)) for _ in range(2))
        if op is Op.WHERE:
            pool.append(elementwise(op, draw(st.sampled_from(truths)), x, y))
        elif op is Op.CAST:
            through = draw(st.sampled_from(ALL))
            pool.append(build.cast(build.cast(x, through), dtype))
        else:
            made = elementwise(op, *(x, y)[: arity(op)])
            (truths if made.dtype is dtypes.bool else pool).append(made)
    return pool[-1], truths[-1]


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_graphs_keep_every_bit(dtype, data):
    roots = data.draw(graphs(dtype))
    values = edges(dtype)
    chosen = [data.draw(st.lists(st.sampled_from(values), min_size=5, max_size=5)) for _ in "ab"]
    arrays = {slot: np.array(column, numpy_dtype(dtype)) for slot, column in enumerate(chosen)}
    arrays[2] = np.array([True, False, True, False, False])
    simple = simplify(roots)
    for before, after in zip(roots, simple, strict=True):
        assert after.shape == before.shape and after.dtype is before.dtype
    for found, expected in zip(evaluate(simple, arrays), evaluate(roots, arrays), strict=True):
        equal_bits(found, expected)
    assert operations(simple) <= operations(roots)
    assert simplify(simple) == simple


MOVES = ["permute", "pad", "shrink", "flip", "expand", "reduce", "ones", "window"]


@st.composite
def movements(draw):
    """A random chain of movement and reduction ops over a small integer array."""
    node = leaf(0, dtypes.int32, (2, 1, 3))
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(MOVES))
        if kind == "permute":
            node = build.permute(node, draw(st.permutations(range(node.ndim))))
        elif kind == "pad":
            pairs = st.tuples(st.integers(0, 2), st.integers(0, 1))
            node = build.pad(node, [draw(pairs) for _ in node.shape])
        elif kind == "shrink":
            starts = [draw(st.integers(0, extent)) for extent in node.shape]
            stops = [draw(st.integers(s, e)) for s, e in zip(starts, node.shape, strict=True)]
            node = build.shrink(node, list(zip(starts, stops, strict=True)))
        elif kind == "flip":
            node = build.flip(node, [draw(st.integers(0, node.ndim - 1))])
        elif kind == "window":
            axis = draw(st.integers(0, node.ndim - 1))
            size, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
            if node.shape[axis] > dilation * (size - 1) and node.ndim < 6:
                node = build.window(node, ((axis, size, draw(st.integers(1, 2)), dilation),))
        elif kind == "expand":
            shape = tuple(draw(st.integers(0, 3)) if e == 1 else e for e in node.shape)
            node = build.expand(node, shape)
        elif kind == "reduce":
            op = draw(st.sampled_from([Op.SUM, Op.MAX, Op.PROD]))
            node = build.reduce(op, node, draw(st.sets(st.integers(0, node.ndim - 1))))
        else:
            flat = math.prod(node.shape)
            node = build.reshape(node, (1, flat, 1))
    return node


@settings(max_examples=300, deadline=None)
@given(root=movements())
def test_random_movements(root):
    values = {0: np.array([[[1, -2, 3]], [[4, 5, -6]]], np.int32)}
    simple = one(root)
    equal_bits(evaluate([simple], values)[0], evaluate([root], values)[0])
    assert simple.shape == root.shape and one(simple) is simple


def test_integers_in_every_dtype_wrap_when_constants_are_joined():
    for dtype in INTS:
        x, top = leaf(0, dtype), number(int(dtype.maximum), dtype)
        twice = elementwise(Op.ADD, elementwise(Op.ADD, x, top), top)
        assert one(twice) is elementwise(Op.ADD, x, number(-2, dtype))
