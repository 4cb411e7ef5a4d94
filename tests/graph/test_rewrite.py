"""The rewrite engine, and the result of each algebraic rule."""

from __future__ import annotations

import math

import pytest
from graph.nodes import leaf, number, one

from minigrad.dtype import dtypes
from minigrad.errors import CompileError
from minigrad.graph import build
from minigrad.graph.axes import joined, within
from minigrad.graph.build import elementwise
from minigrad.graph.node import Op, needed, needed_among, topological
from minigrad.graph.rewrite import rewrite
from minigrad.graph.simplify import RULES
from minigrad.graph.variable import Variable

# --- the engine ----------------------------------------------------------------------------------


def test_what_only_gradient_rules_want_is_not_needed():
    x, y, z = leaf(4), leaf(4), leaf(4)
    cos, exp = elementwise(Op.COS, z), elementwise(Op.EXP, x)
    root = elementwise(Op.NEG, build.custom(exp, [y, cos], None))
    order = topological([root, x])
    found = needed_among(order, [root, x])
    assert found == [node for node in order if node in needed([root, x])] and len(found) == 4


def test_rules_run_to_a_fixed_point():
    """Results of rules are simplified as well, including their new sources."""

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
    with pytest.raises(CompileError, match="do not terminate"):
        rewrite([elementwise(Op.SIN, leaf(0))], swap)
    with pytest.raises(CompileError, match="do not terminate"):
        rewrite([elementwise(Op.SIN, leaf(0))], {Op.SIN: [lambda node: elementwise(Op.NEG, node)]})


def test_rules_must_keep_dtype_and_shape():
    def wrong(node):
        return build.cast(node.src[0], dtypes.float64)

    with pytest.raises(CompileError, match="wrong"):
        rewrite([elementwise(Op.SIN, leaf(0))], {Op.SIN: [wrong]})


def test_a_rule_may_make_much():
    """Casts there and back with 1,000 movements between them: all of these are rebuilt."""
    x = leaf(0, shape=(3, 3))
    there, direct = build.cast(x, dtypes.float64), x
    for _ in range(1000):
        there, direct = (build.permute(build.flip(y, (0,)), (1, 0)) for y in (there, direct))
    (back,) = rewrite([build.cast(there, dtypes.float32)], RULES)
    assert back is direct


def test_deep_graph():
    node = leaf(0, dtypes.int32)
    for _ in range(20_000):
        node = elementwise(Op.ADD, elementwise(Op.MUL, node, whole(1)), whole(0))
    assert one(node) is leaf(0, dtypes.int32)


# --- the result of each rule ---------------------------------------------------------------------

X, Y = leaf(0), leaf(1)
N, M = leaf(0, dtypes.int32), leaf(1, dtypes.int32)
B, C = leaf(0, dtypes.bool), leaf(1, dtypes.bool)
H = leaf(0, dtypes.bfloat16)
M = leaf(0, shape=(2, 3))


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
    "x / 1": (elementwise(Op.DIV, X, number(1.0)), X),
    "x / 4": (elementwise(Op.DIV, X, number(4.0)), elementwise(Op.MUL, X, number(0.25))),
    "max(x, -inf)": (elementwise(Op.MAXIMUM, X, number(-math.inf)), X),
    "2 + 3": (elementwise(Op.ADD, number(2.0), number(3.0)), number(5.0)),
    "int x + 0": (elementwise(Op.ADD, N, whole(0)), N),
    "int x // 1": (elementwise(Op.IDIV, N, whole(1)), N),
    "x & ~0": (elementwise(Op.AND, N, whole(-1)), N),
    "x | 0": (elementwise(Op.OR, N, whole(0)), N),
    "x << 0": (elementwise(Op.SHL, N, whole(0)), N),
    "bool x & true": (elementwise(Op.AND, B, truth(True)), B),
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
    "gather from nothing": (
        build.gather(build.shrink(X, ((1, 1),)), number(0, dtypes.int32, (4,)), 0),
        number(0.0, shape=(4,)),
    ),
    "scatter of nothing": (
        build.scatter_add(
            X, number(0, dtypes.int32, (0,)), build.shrink(X, ((1, 1),)), 0
        ), X,
    ),
    "pad of pad": (build.pad(build.pad(X, ((1, 0),)), ((2, 3),)), build.pad(X, ((3, 3),))),
    "bfloat16 of moved float32 of bfloat16": (
        build.cast(
            build.expand(build.reshape(build.cast(H, dtypes.float32), (3, 1)), (3, 2)),
            dtypes.bfloat16,
        ),
        build.expand(build.reshape(H, (3, 1)), (3, 2)),
    ),
    "sums of equal rows": (
        build.reduce(Op.SUM, build.expand(leaf(0, shape=(1, 4)), (3, 4)), (1,)),
        build.expand(build.reduce(Op.SUM, leaf(0, shape=(1, 4)), (1,)), (3, 1)),
    ),
    "maxima of what is equal along both axes": (
        build.reduce(Op.MAX, build.expand(leaf(0, shape=(1, 1, 4)), (3, 2, 4)), (1,)),
        build.expand(
            build.reduce(Op.MAX, build.expand(leaf(0, shape=(1, 1, 4)), (1, 2, 4)), (1,)),
            (3, 1, 4),
        ),
    ),
    "shrink of cat": (
        build.shrink(build.cat([X, leaf(1, shape=(4,)), leaf(2, shape=(5,))], 0), ((4, 6),)),
        build.shrink(leaf(1, shape=(4,)), ((1, 3),)),
    ),
    "joined, and joined again": (
        joined([leaf(3), joined([X, leaf(1, shape=(4,)), leaf(2)], 0)], 0),
        build.cat([leaf(3), X, leaf(1, shape=(4,)), leaf(2)], 0),
    ),
    "two joined to one": (joined([joined([X, Y], 0), leaf(2)], 0), joined([X, Y, leaf(2)], 0)),
    "joined one by one": (
        joined([joined([joined([X, Y], 0), leaf(2)], 0), leaf(3)], 0),
        build.cat([X, Y, leaf(2), leaf(3)], 0),
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
    "float32 of moved bfloat16 of float32": build.cast(
        build.reshape(build.cast(X, dtypes.bfloat16), (3, 1)), dtypes.float32
    ),
    "float32 of moved float32 of bfloat16": build.cast(
        build.reshape(build.cast(H, dtypes.float32), (3, 1)), dtypes.float64
    ),
    "float32 of float16 of float32": build.cast(build.cast(X, dtypes.float16), dtypes.float32),
    "sum of max": build.reduce(
        Op.SUM, build.reduce(Op.MAX, leaf(0, shape=(2, 3)), (1,)), (0,)
    ),
    "sum of more than float32 counts": build.reduce(
        Op.SUM, build.const(1.5, dtypes.float32, ((1 << 24) + 1,), "CPU"), (0,)
    ),
    "many joined at once": joined([X, Y, leaf(2), leaf(3)], 0),
    "joined along two axes": joined([joined([M, M], 1), joined([M, M], 1)], 0),
    "a part replaced, twice": within(X, ((2, 2),), within(X, ((3, 1),), leaf(1, shape=(7,)))),
    "shrink of cat across": build.shrink(build.cat([X, X, X], 0), ((1, 8),)),
}


@pytest.mark.parametrize("case", STAYS)
def test_stays(case):
    assert one(STAYS[case]) is STAYS[case]


def test_symbolic_shapes():
    length = Variable("length", 1, 7).bind(3)
    x = leaf(0, shape=(1, 7))
    part = build.shrink(x, ((0, 1), (0, length)))
    assert one(build.permute(part, (1, 0))) is build.reshape(part, (length, 1))
    repeated = build.reduce(Op.SUM, number(2.0, shape=(length,)), (0,))
    assert one(repeated) is repeated
    nothing = build.reduce(Op.SUM, leaf(1, shape=(length, 0)), (0, 1))
    assert one(nothing) is number(0.0, shape=(1, 1))
    joined = build.shrink(build.cat([leaf(0, shape=(3,)), leaf(1, shape=(5,))], 0), ((0, length),))
    assert one(joined) is joined


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
