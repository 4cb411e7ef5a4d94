"""The algebraic rules do not change a single bit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from graph.nodes import leaf, number, one
from hypothesis import given, settings
from hypothesis import strategies as st
from primitives import EITHER_ZERO, OF_ONE, PRIMITIVES, VECTOR_MATH, arity, defined

from minigrad.dtype import ALL, FLOATS, dtypes
from minigrad.graph import build
from minigrad.graph.axes import joined
from minigrad.graph.build import elementwise
from minigrad.graph.node import Op
from minigrad.graph.simplify import holds, simplify
from minigrad.runtimes.reference import evaluate, numpy_dtype


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
    """Equal values; NaNs are equal, and zeros must have equal signs."""
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
    """Within one ulp; results that are not finite are equal."""
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
            elif not (narrow.is_int and wide.is_int):  # wrapping twice is the identity
                assert found.tolist() != start.tolist() or wide.itemsize < narrow.itemsize


MOVES = ["permute", "pad", "shrink", "flip", "expand", "reduce", "ones", "window", "cat"]


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
        elif kind == "cat":
            axis, parts = draw(st.integers(0, node.ndim - 1)), [node, build.flip(node, [0]), node]
            join = draw(st.sampled_from([build.cat, joined]))
            node = join(parts[draw(st.integers(0, 1)) :], axis)
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
