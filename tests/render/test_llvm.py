"""The LLVM renderer: every operation on every dtype gives the reference's result.

Small whole programs are scheduled, lowered, rendered, compiled and run between canaries.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from primitives import EITHER_ZERO, PRIMITIVES, VECTOR_MATH, arity, defined
from property.compare import EXACT, difference
from schedule.machine import MACHINES, run, target_of
from schedule.programs import DEVICE, F32, Build, Inputs, graph_of

from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.runtimes.reference import evaluate, numpy_dtype

DTYPES = (
    dtypes.bool, dtypes.int8, dtypes.int16, dtypes.int32, dtypes.int64, dtypes.uint8,
    dtypes.uint16, dtypes.uint32, dtypes.uint64, dtypes.float16, dtypes.bfloat16, dtypes.float32,
    dtypes.float64,
)  # fmt: skip
INTEGERS = tuple(dtype for dtype in DTYPES if dtype.is_int)
# One dtype of each kind that has its own vectors.
MASKED = (
    dtypes.bool, dtypes.int8, dtypes.int64, dtypes.bfloat16, dtypes.float32, dtypes.float64,
)  # fmt: skip
# Lengths around the vector widths of all dtypes.
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200)


def edges(dtype: DType) -> np.ndarray:
    """Critical values of a dtype."""
    kind = numpy_dtype(dtype)
    if dtype.is_bool:
        return np.array([False, True])
    if dtype.is_int:
        low, high = int(dtype.minimum), int(dtype.maximum)
        bits = dtype.bits
        numbers = {0, 1, 2, 3, 7, 100, bits - 1, bits, bits + 1, low, low + 1, high - 1, high,
                   high // 2, high // 2 + 1, -1, -2, -3, -7, -100}  # fmt: skip
        return np.array(sorted(x for x in numbers if low <= x <= high), kind)
    largest = float(np.finfo(np.float16).max) if dtype is dtypes.float16 else 3e38
    smallest = 2.0**-24 if dtype is dtypes.float16 else 2.0**-133
    numbers_ = [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.7, 7, 0.1, 1e-3, 100.3, 127, 128.5, 255, 256, 32767.5,
                65504, 2.0**31, 2.0**32, 2.0**53, 2.0**63, 2.0**64, largest, smallest,
                np.inf]  # fmt: skip
    if dtype is dtypes.float64:
        numbers_ += [1 / 3, 1e300, 5e-324, 2.0**31 - 0.5, 2.0**63 - 1024]
    with np.errstate(over="ignore"):
        return np.array([*numbers_, *(-x for x in numbers_), np.nan]).astype(kind)


def check(build: Build, values: dict[int, np.ndarray], machine: str = "host") -> None:
    """Run and compare; the sign of a zero counts, except for operations that may give either."""
    graph, _ = graph_of(build)
    expected = evaluate(graph.roots, values)
    found = run(graph, values, machine)
    for root, got, wanted in zip(graph.roots, found, expected, strict=True):
        if root.op in EITHER_ZERO:
            got, wanted = np.where(got == 0, 0, got), np.where(wanted == 0, 0, wanted)
            got, wanted = (x.astype(numpy_dtype(root.dtype)) for x in (got, wanted))
        problem = difference(got, wanted, EXACT)
        assert problem is None, f"{root!r} on {machine}: {problem}\n{_operands(values, problem)}"


def _operands(values: dict[int, np.ndarray], problem: str | None) -> str:
    places = re.findall(r"at \((\d+),\)", problem or "")[:4]
    return "\n".join(
        f"  operands at {place}: {[value[int(place)] for value in values.values()]!r}"
        for place in places if all(value.ndim == 1 for value in values.values())
    )  # fmt: skip


def all_pairs(dtype: DType) -> dict[int, np.ndarray]:
    """Two operands: all pairs of edges."""
    left, right = np.meshgrid(edges(dtype), edges(dtype))
    return {0: left.reshape(-1), 1: right.reshape(-1)}


@pytest.mark.parametrize("machine", ["host", *MACHINES])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_operations(dtype: DType, machine: str) -> None:
    """All operations on one dtype in one program; every processor has its own instructions.

    Vector math is not included: its edges are in tests/property/test_special_points.py.
    """
    values = all_pairs(dtype)
    count = len(values[0])
    exact = [op for op in PRIMITIVES if op not in VECTOR_MATH and defined(op, dtype)]

    def build(inputs: Inputs) -> list[Node]:
        x, y = inputs(count, dtype=dtype), inputs(count, dtype=dtype)
        return [g.elementwise(op, *(x, y)[: arity(op)]) for op in exact]

    check(build, values, machine)


@pytest.mark.parametrize("machine", ["host", *MACHINES])
def test_casts(machine: str) -> None:
    """Floats cast to integers saturate, NaN becomes 0; integers wrap."""
    for source in DTYPES:
        values = edges(source)

        def build(
            inputs: Inputs, source: DType = source, count: int = len(values)
        ) -> list[Node]:
            x = inputs(count, dtype=source)
            return [g.cast(x, to) for to in DTYPES if to is not source]

        check(build, {0: values}, machine)


@pytest.mark.parametrize("narrow", [dtypes.float16, dtypes.bfloat16], ids=lambda d: d.name)
def test_doubles_near_the_middle(narrow: DType) -> None:
    """To float16 at once: with float32 in between, a value just above a middle would become a tie.

    To bfloat16 by way of float32, as in the reference.
    """
    digits = 11 if narrow is dtypes.float16 else 8
    random = np.random.default_rng(0)
    middles = random.integers(1 << (digits - 1), 1 << digits, 4000) + 0.5
    nudges = np.array([0, 2.0**-30, -(2.0**-30), 2.0**-40, -(2.0**-40)])
    values = (middles[:, None] + nudges).reshape(-1) * 2.0 ** random.integers(-12, 4, 20_000)
    values = np.concatenate([values, -values])

    def build(inputs: Inputs) -> list[Node]:
        return [g.cast(inputs(len(values), dtype=dtypes.float64), narrow)]

    check(build, {0: values})


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_constants(dtype: DType) -> None:
    """Every edge as a constant in the code."""
    values = edges(dtype)

    def build(inputs: Inputs) -> list[Node]:
        x = inputs(17, dtype=dtype)
        if dtype.is_bool:
            return [g.elementwise(Op.XOR, x, g.const(v, dtype, (17,), DEVICE)) for v in values]
        chosen = g.elementwise(Op.EQ, x, g.const(5, dtype, (17,), DEVICE))
        constants = [g.const(v.item(), dtype, (17,), DEVICE) for v in values]
        return [g.elementwise(Op.WHERE, chosen, x, constant) for constant in constants]

    check(build, {0: (np.arange(17) % 2 + 4).astype(numpy_dtype(dtype))})


# ---- lengths ----


@pytest.mark.parametrize("machine", ["host", *MACHINES])
@pytest.mark.parametrize(
    "dtype", [F32, dtypes.float64, dtypes.float16, dtypes.bfloat16, dtypes.int8, dtypes.bool],
    ids=lambda dtype: dtype.name,
)  # fmt: skip
def test_lengths_around_vectors(dtype: DType, machine: str) -> None:
    """Nothing is written beyond the end (canaries), and nothing before it is left out."""
    random = np.random.default_rng(1)
    values = {slot: random.integers(0, 5, length).astype(numpy_dtype(dtype))
              for slot, length in enumerate(LENGTHS)}  # fmt: skip

    def build(inputs: Inputs) -> list[Node]:
        roots = []
        for length in LENGTHS:
            x = inputs(length, dtype=dtype)
            roots.append(g.flip(g.elementwise(Op.ADD, x, g.flip(x, [0])), [0]))
        return roots

    check(build, values, machine)


@pytest.mark.parametrize("op", [Op.SUM, Op.MAX, Op.PROD], ids=lambda op: op.name.lower())
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_reductions(op: Op, dtype: DType) -> None:
    """Along rows and across them, at every length; small whole numbers, so that sums are exact."""
    random = np.random.default_rng(2)
    lengths = (1, 2, 3, 8, 15, 16, 17, 33, 65)
    largest = 2 if op is Op.PROD else 4
    values = {}
    for slot, length in enumerate(lengths):
        x = random.integers(0 if dtype.kind == "u" else -largest + 1, largest, (length, 19))
        values[slot] = np.where(x == 0, 1, x).astype(numpy_dtype(dtype)) if op is Op.PROD else (
            x.astype(numpy_dtype(dtype))
        )  # fmt: skip

    def build(inputs: Inputs) -> list[Node]:
        roots = []
        for length in lengths:
            x = inputs(length, 19, dtype=dtype)
            turned = g.permute(x, (1, 0))
            roots += [g.reduce(op, x, [1]), g.reduce(op, x, [0]), g.reduce(op, turned, [0])]
        return list(dict.fromkeys(root for root in roots if root.op is not Op.BUFFER))

    check(build, values)


@pytest.mark.parametrize("dtype", [F32, dtypes.float64, dtypes.float16, dtypes.bfloat16],
                         ids=lambda dtype: dtype.name)  # fmt: skip
def test_maxima_of_special_values(dtype: DType) -> None:
    """A NaN wins at any place, the larger of two infinities too; a maximum of only −∞ is −∞."""
    x = np.full((40, 37), -np.inf)
    for row in range(37):
        x[row, row] = [np.nan, np.inf, 1.0][row % 3]
    x[38, :] = np.nan

    def build(inputs: Inputs) -> list[Node]:
        node = inputs(40, 37, dtype=dtype)
        return [g.reduce(Op.MAX, node, [1]), g.reduce(Op.MAX, node, [0])]

    check(build, {0: x.astype(numpy_dtype(dtype))})


# ---- gathers and scatters ----


def outside(dtype: DType, count: int, extent: int) -> np.ndarray:
    """Indices, many of them outside 0 … extent − 1, the most extreme ones included."""
    low, high = int(dtype.minimum), int(dtype.maximum)
    numbers = [0, 1, extent - 1, extent, extent + 1, high, high - 1, low, low + 1, -1, -extent]
    numbers = [number for number in numbers if low <= number <= high]
    return np.array([numbers[i * 5 % len(numbers)] for i in range(count)], numpy_dtype(dtype))


@pytest.mark.parametrize("machine", ["host", "sse2"])
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.name)
def test_gather_outside(dtype: DType, machine: str) -> None:
    """Along the last axis each lane has its own index; along the first, a row shares one."""
    index = outside(dtype, 40, 13)

    def build(inputs: Inputs) -> list[Node]:
        table, where = inputs(13, 21), inputs(40, dtype=dtype)
        rows = g.expand(g.reshape(where, (40, 1)), (40, 21))
        line = g.reshape(inputs(13), (1, 13))
        inside = g.gather(line, g.reshape(where, (1, 40)), 1)
        return [g.gather(table, rows, 0), inside]

    random = np.random.default_rng(3)
    values = {0: random.normal(size=(13, 21)), 1: index, 2: random.normal(size=13)}
    check(build, {k: v if k == 1 else v.astype(np.float32) for k, v in values.items()},
          machine)  # fmt: skip


@pytest.mark.parametrize("machine", ["host", "sse2"])
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.name)
def test_scatter_outside(dtype: DType, machine: str) -> None:
    """Updates outside write nothing (canaries), and all updates of one place are added."""
    index = outside(dtype, 40, 13)

    def build(inputs: Inputs) -> list[Node]:
        base, where, x = inputs(13, 21), inputs(40, dtype=dtype), inputs(40, 21)
        rows = g.expand(g.reshape(where, (40, 1)), (40, 21))
        line = g.const(0.0, F32, (1, 13), DEVICE)
        inside = g.scatter_add(line, g.reshape(where, (1, 40)), g.reshape(inputs(40), (1, 40)), 1)
        return [g.scatter_add(base, rows, x, 0), inside]

    random = np.random.default_rng(4)
    values = {0: random.integers(-9, 9, (13, 21)), 2: random.integers(-9, 9, (40, 21)),
              3: random.integers(-9, 9, 40)}  # fmt: skip
    arrays = {k: v.astype(np.float32) for k, v in values.items()}
    check(build, {**arrays, 1: index}, machine)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_gather_and_scatter_of_every_dtype(dtype: DType) -> None:
    kind = numpy_dtype(dtype)
    x = (np.arange(30 * 7) % 5).reshape(30, 7).astype(kind)
    index = (np.arange(30) * 7 % 33 - 2).astype(np.int32)

    def build(inputs: Inputs) -> list[Node]:
        node, where = inputs(30, 7, dtype=dtype), inputs(30, dtype=dtypes.int32)
        rows = g.expand(g.reshape(where, (30, 1)), (30, 7))
        added = g.scatter_add(g.const(0, dtype, (30, 7), DEVICE), rows, node, 0)
        return [g.gather(node, rows, 0), added]

    check(build, {0: x, 1: index})


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: dtype.name)
def test_indices_as_values(dtype: DType) -> None:
    """An IOTA in every dtype wraps, or is rounded, as a cast would."""

    def build(inputs: Inputs) -> list[Node]:
        return [g.elementwise(Op.ADD, g.iota(300, DEVICE, dtype), inputs(300, dtype=dtype))]

    check(build, {0: np.zeros(300, numpy_dtype(dtype))})


def test_masks_hide_what_they_exclude() -> None:
    """A padded operand is not read outside, and a NaN under the mask has no effect."""
    x = np.full((9, 33), np.nan, np.float32)
    x[:, :20] = 1.0

    def build(inputs: Inputs) -> list[Node]:
        node = inputs(9, 33)
        part = g.pad(g.shrink(node, [(0, 9), (0, 20)]), [(1, 2), (0, 13)])
        return [part, g.reduce(Op.SUM, part, [1]), g.reduce(Op.SUM, part, [0])]

    check(build, {0: x})


@pytest.mark.parametrize("machine", ["host", *MACHINES])
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=lambda dtype: dtype.name)
def test_quotients_that_a_mask_leaves_out(dtype: DType, machine: str) -> None:
    """Such a lane divides 0 by 0. (LLVM folds that to 0 if it can see it, and drops the mask.)"""
    for length in (n - 2 for n in LENGTHS if n > 2):

        def build(inputs: Inputs, length: int = length) -> list[Node]:
            x = inputs(length, dtype=dtype)
            size = g.reduce(Op.SUM, x * x, (0,))
            size = g.expand(g.reshape(size.operation("sqrt"), (1,)), (length,))
            quotient, product = (g.pad(one, [(2, 2)]) for one in (x / size, x * size))
            return [quotient + product]

        x = np.linspace(1, 2, length).astype(numpy_dtype(dtype))
        size = np.sqrt(np.sum(x * x))
        (got,) = run(graph_of(build)[0], {0: x}, machine)
        wanted = np.pad(x / size + x * size, 2)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, err_msg=f"{length} elements")


@pytest.mark.parametrize("machine", ["host", "avx2", "sse2"])
@pytest.mark.parametrize("dtype", MASKED, ids=lambda dtype: dtype.name)
def test_operations_that_a_mask_leaves_out(dtype: DType, machine: str) -> None:
    """All operations inside rows of zeros, where the last vector has one element, as LLVM can see.

    In its other lanes both operands are 0; in further cases one operand is 0 everywhere. (LLVM
    simplifies values with several readers less, so each operation has its own operands.)
    """
    exact = [op for op in PRIMITIVES if op not in VECTOR_MATH and defined(op, dtype)]
    length = max(target_of(machine).lanes(dtype) - 1, 1)

    def build(inputs: Inputs) -> list[Node]:
        def own() -> Node:
            return inputs(2, length, dtype=dtype)

        zero = g.const(0, dtype, (2, length), DEVICE)
        results = [g.elementwise(op, *(own() for _ in range(arity(op)))) for op in exact]
        results += [g.elementwise(op, own(), zero) for op in exact if arity(op) == 2]
        return [g.pad(one, [(0, 0), (2, 3)]) for one in results]

    random, values = np.random.default_rng(7), edges(dtype)
    count = len(graph_of(build)[1].nodes)
    check(build, {slot: random.choice(values, (2, length)) for slot in range(count)}, machine)
