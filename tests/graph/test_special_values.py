"""Rules keep every value: random expressions of zeros, infinities, NaN and the ends of each dtype.

`graph/simplify.py` says what a rule may change: the sign of a zero that a sum, a maximum or a
minimum gives. So a tree either has none of these, and signs are compared; or it has them, but no
operation that distinguishes the zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from devices import REFERENCE
from primitives import EITHER_ZERO, OF_FLOATS, OF_INTEGERS, OF_ONE, OF_TWO, VECTOR_MATH

from minigrad import Tensor
from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, topological
from minigrad.graph.operations import COMPARISONS, Op
from minigrad.graph.simplify import simplify
from minigrad.runtimes.reference import evaluate, numpy_dtype

COUNT = 24  # elements
FLOATS = [dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16]
INTS = [dtypes.int8, dtypes.uint8, dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64]
DTYPES = [*FLOATS, *INTS, dtypes.bool]
SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 0.25, -3.0, 7.25, 0.1, 1e30, -1e30, 1e-30, 1e38, 3.4e38,
    -3.4e38, 1e-38, 1e-45, -1e-45, 65504.0, np.inf, -np.inf, np.nan,
]  # fmt: skip
COMPARING = [op for op in OF_TWO if op in COMPARISONS]
SIGNED = [op for op in OF_TWO if op in OF_FLOATS and op not in (*COMPARING, *EITHER_ZERO)]
UNSIGNED = [Op.ADD, Op.SUB, Op.MUL, *EITHER_ZERO]  # these do not distinguish zeros
WHOLE = [op for op in OF_TWO if op in OF_INTEGERS and op not in COMPARING]
ROUND = [op for op in OF_ONE if op in OF_FLOATS and op not in (*OF_INTEGERS, *VECTOR_MATH)]


def special(dtype: DType) -> list[float | int | bool]:
    if dtype.is_bool:
        return [True, False]
    if dtype.is_float:
        return list(SPECIAL)
    low, high = int(dtype.minimum), int(dtype.maximum)
    return [x for x in (0, 1, 2, 3, 7, -1, -2, low, low + 1, high) if low <= x <= high]


class Trees:
    """Random expression trees, and their buffers of special values."""

    def __init__(self, seed: int, signs: bool, half: bool = True) -> None:
        self.random, self.signs = np.random.default_rng(seed), signs
        self.dtypes = [dtype for dtype in DTYPES if half or dtype.itemsize != 2]
        self.buffers: list[Node] = []

    def pick(self, items: Sequence[object]) -> object:
        return items[self.random.integers(len(items))]

    def leaf(self, dtype: DType) -> Node:
        known = [node for node in self.buffers if node.dtype is dtype]
        chance = self.random.random()
        if chance < 0.45:
            return g.const(self.pick(special(dtype)), dtype, (COUNT,), REFERENCE)
        if known and chance < 0.8:
            return self.pick(known)
        self.buffers.append(g.buffer(len(self.buffers), dtype, (COUNT,), REFERENCE))
        return self.buffers[-1]

    def tree(self, dtype: DType, depth: int) -> Node:
        def below(other: DType = dtype) -> Node:
            return self.tree(other, depth - 1 if self.random.random() < 0.8 else 0)

        other, kind = self.pick(self.dtypes), self.random.integers(12)
        if depth == 0:
            return self.leaf(dtype)
        if kind == 0:
            return g.elementwise(Op.WHERE, below(dtypes.bool), below(), below())
        if kind == 1:
            return g.cast(below(other), dtype)
        if dtype.is_bool and kind < 8:
            return g.elementwise(self.pick(COMPARING), below(other), below(other))
        if dtype.is_bool:
            return g.elementwise(self.pick([Op.AND, Op.OR, Op.XOR]), below(), below())
        if kind == 2:
            return g.elementwise(Op.NEG, below())
        if kind == 3 and not self.signs:
            repeated = g.expand(g.reshape(below(), (COUNT, 1)), (COUNT, self.pick([1, 2, 3, 4])))
            return g.reshape(g.reduce(self.pick([Op.SUM, Op.MAX]), repeated, (1,)), (COUNT,))
        if kind == 4 and dtype.is_float:
            return g.elementwise(self.pick(ROUND), below())
        ops = (SIGNED if self.signs else UNSIGNED) if dtype.is_float else WHOLE
        return g.elementwise(self.pick(ops), below(), below())

    def values(self) -> dict[int, np.ndarray]:
        found = {}
        with np.errstate(all="ignore"):
            for node in self.buffers:
                drawn = [self.pick(special(node.dtype)) for _ in range(COUNT)]
                wide = np.array(drawn, np.float64 if node.dtype.is_float else None)
                found[node.arg] = wide.astype(numpy_dtype(node.dtype))
        return found


def differs(got: np.ndarray, wanted: np.ndarray, signs: bool, near: float = 0.0) -> np.ndarray:
    if wanted.dtype.kind in "iub":
        return got != wanted
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (got == wanted) & ((np.signbit(got) == np.signbit(wanted)) | (not signs))
        same |= np.abs(got - wanted) <= near * np.abs(wanted)
    return ~(same | np.isnan(got) & np.isnan(wanted))


@pytest.mark.parametrize("signs", [True, False])
def test_rules_keep_every_value(signs: bool) -> None:
    for seed in range(2500):
        trees = Trees(seed, signs)
        root = trees.tree(trees.pick(DTYPES), int(trees.random.integers(1, 5)))
        values = trees.values()
        (simple,) = simplify([root])
        assert simplify([simple]) == (simple,), f"seed {seed}: the rules are not at an end"
        with np.errstate(all="ignore"):
            (wanted,), (got,) = evaluate([root], values, {}), evaluate([simple], values, {})
        wrong = np.flatnonzero(differs(got, wanted, signs))
        assert not wrong.size, f"seed {seed}: {got[wrong]}, expected {wanted[wrong]}"


@pytest.mark.parametrize("signs", [True, False])
def test_a_device_keeps_them_too(signs: bool, compiled: str) -> None:
    """With small trees, whose products are not fused with sums; without half floats."""
    trees = Trees(1, signs, half=False)
    roots = [trees.tree(trees.pick(trees.dtypes), 1 + n % 2) for n in range(80)]
    roots = [root for root in roots if root.op not in (Op.BUFFER, Op.CONST)]
    values = trees.values()
    moved: dict[Node, Node] = {}
    for node in topological(roots):
        if node.op is Op.BUFFER:
            moved[node] = Tensor(values[node.arg], device=compiled).realize().node
        elif node.op is Op.CONST:
            moved[node] = g.const(node.arg, node.dtype, node.shape, compiled)
        else:
            moved[node] = g.rebuild(node, [moved[source] for source in node.src])
    found = [Tensor._of(moved[root]) for root in roots]
    Tensor.realize(*found)
    with np.errstate(all="ignore"):
        wanted = evaluate(roots, values, {})
    for root, got, expected in zip(roots, found, wanted, strict=True):
        wrong = np.flatnonzero(differs(got.numpy(), expected, False, 1e-5))
        where = [(n.op.value, n.arg) for n in topological([root])]
        assert not wrong.size, f"{where}: {got.numpy()[wrong]}, expected {expected[wrong]}"
