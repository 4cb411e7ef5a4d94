"""The LLVM renderer: every operation on every dtype means what the reference says it means.

Whole small programs are scheduled, lowered, rendered, compiled and run between canaries.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from primitives import EITHER_ZERO, PRIMITIVES, VECTOR_MATH, arity, defined
from property.compare import EXACT, Tolerance, difference
from schedule.machine import MACHINES, run
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
# Vector math is written as polynomials: near, not exact. Its own tests say how near.
NEAR = Tolerance(ulps=8)
# Lengths around the widths of vectors of all dtypes.
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200)


def edges(dtype: DType) -> np.ndarray:
    """Values at which things go wrong."""
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


def check(
    build: Build, values: dict[int, np.ndarray], tolerance: Tolerance, machine: str = "host",
    zeros: bool = True,
) -> None:
    """Run and compare; `zeros`: the sign of a zero counts."""
    graph, _ = graph_of(build)
    expected = evaluate(graph.roots, values)
    found = run(graph, values, machine)
    for root, got, wanted in zip(graph.roots, found, expected, strict=True):
        if not zeros:
            got, wanted = np.where(got == 0, 0, got), np.where(wanted == 0, 0, wanted)
            got, wanted = (x.astype(numpy_dtype(root.dtype)) for x in (got, wanted))
        problem = difference(got, wanted, tolerance)
        assert problem is None, f"{root!r} on {machine}: {problem}\n{_operands(values, problem)}"


def _operands(values: dict[int, np.ndarray], problem: str | None) -> str:
    places = re.findall(r"at \((\d+),\)", problem or "")[:4]
    return "\n".join(
        f"  operands at {place}: {[value[int(place)] for value in values.values()]!r}"
        for place in places if all(value.ndim == 1 for value in values.values())
    )  # fmt: skip


def elementwise_build(op: Op, dtype: DType, count: int) -> Build:
    """A program of one operation on as many inputs as it takes."""

    def build(inputs: Inputs) -> list[Node]:
        operands = [inputs(count, dtype=dtype) for _ in range(arity(op))]
        return [g.elementwise(op, *operands)]

    return build


def operand_values(op: Op, dtype: DType) -> dict[int, np.ndarray]:
    """All edges, or all pairs of them."""
    values = edges(dtype)
    if arity(op) == 1:
        return {0: values}
    left, right = np.meshgrid(values, values)
    return {0: left.reshape(-1), 1: right.reshape(-1)}


CASES = [(op, dtype) for op in PRIMITIVES for dtype in DTYPES if defined(op, dtype)]


def tolerance_of(op: Op) -> Tolerance:
    """Exact, but for vector math; zeros of Γ's functions below 0 are differences of large terms."""
    if op in (Op.LGAMMA, Op.DIGAMMA):
        return Tolerance(ulps=8, scale=2)
    return NEAR if op in VECTOR_MATH else EXACT


@pytest.mark.parametrize(("op", "dtype"), CASES, ids=lambda x: x.name.lower())
def test_operations(op: Op, dtype: DType) -> None:
    values = operand_values(op, dtype)
    count = len(values[0])
    signed = op not in EITHER_ZERO
    check(elementwise_build(op, dtype, count), values, tolerance_of(op), zeros=signed)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_operations_on_other_processors(dtype: DType, machine: str) -> None:
    """All operations on one dtype in one program; every processor has its own instructions."""
    values = operand_values(Op.ADD, dtype)
    count = len(values[0])
    exact = [op for op in PRIMITIVES if op not in VECTOR_MATH and defined(op, dtype)]

    def build(inputs: Inputs) -> list[Node]:
        x, y = inputs(count, dtype=dtype), inputs(count, dtype=dtype)
        return [g.elementwise(op, *(x, y)[: arity(op)]) for op in exact]

    check(build, values, EXACT, machine, zeros=False)


@pytest.mark.parametrize(
    ("source", "to"), list(itertools.permutations(DTYPES, 2)), ids=lambda dtype: dtype.name
)
def test_casts(source: DType, to: DType) -> None:
    """Floats saturate on their way to integers, NaN becomes 0; integers wrap."""
    values = edges(source)

    def build(inputs: Inputs) -> list[Node]:
        return [g.cast(inputs(len(values), dtype=source), to)]

    check(build, {0: values}, EXACT)


@pytest.mark.parametrize("machine", MACHINES)
def test_casts_on_other_processors(machine: str) -> None:
    for source in DTYPES:
        values = edges(source)

        def build(
            inputs: Inputs, source: DType = source, count: int = len(values)
        ) -> list[Node]:
            x = inputs(count, dtype=source)
            return [g.cast(x, to) for to in DTYPES if to is not source]

        check(build, {0: values}, EXACT, machine)


@pytest.mark.parametrize("narrow", [dtypes.float16, dtypes.bfloat16], ids=lambda d: d.name)
def test_doubles_near_the_middle(narrow: DType) -> None:
    """To float16 once: float32 on the way would turn what is above a middle into a tie.

    To bfloat16 by way of float32, as the reference does it.
    """
    digits = 11 if narrow is dtypes.float16 else 8
    random = np.random.default_rng(0)
    middles = random.integers(1 << (digits - 1), 1 << digits, 4000) + 0.5
    nudges = np.array([0, 2.0**-30, -(2.0**-30), 2.0**-40, -(2.0**-40)])
    values = (middles[:, None] + nudges).reshape(-1) * 2.0 ** random.integers(-12, 4, 20_000)
    values = np.concatenate([values, -values])

    def build(inputs: Inputs) -> list[Node]:
        return [g.cast(inputs(len(values), dtype=dtypes.float64), narrow)]

    check(build, {0: values}, EXACT)


BITCASTS = [
    (a, b) for a, b in itertools.permutations(DTYPES, 2)
    if a.itemsize == b.itemsize and dtypes.bool not in (a, b)
]  # fmt: skip


@pytest.mark.parametrize(("source", "to"), BITCASTS, ids=lambda dtype: dtype.name)
def test_bitcasts(source: DType, to: DType) -> None:
    values = edges(source)

    def build(inputs: Inputs) -> list[Node]:
        return [g.bitcast(inputs(len(values), dtype=source), to)]

    graph, _ = graph_of(build)
    (found,) = run(graph, {0: values}, "host")
    expected = values.view(numpy_dtype(to))
    bits = np.dtype(f"u{to.itemsize}")
    same = found.view(bits) == expected.view(bits)
    if to.is_float:  # a NaN may become another NaN
        with np.errstate(invalid="ignore"):
            same |= np.isnan(found.astype(np.float64)) & np.isnan(expected.astype(np.float64))
    assert same.all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_where(dtype: DType) -> None:
    values = operand_values(Op.ADD, dtype)
    count = len(values[0])
    values[2] = np.arange(count) % 3 == 0

    def build(inputs: Inputs) -> list[Node]:
        x, y = inputs(count, dtype=dtype), inputs(count, dtype=dtype)
        test = inputs(count, dtype=dtypes.bool)
        return [g.elementwise(Op.WHERE, test, x, y)]

    check(build, values, EXACT)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_constants(dtype: DType) -> None:
    """Every edge as a literal in the code."""
    values = edges(dtype)

    def build(inputs: Inputs) -> list[Node]:
        x = inputs(17, dtype=dtype)
        if dtype.is_bool:
            return [g.elementwise(Op.XOR, x, g.const(v, dtype, (17,), DEVICE)) for v in values]
        chosen = g.elementwise(Op.EQ, x, g.const(5, dtype, (17,), DEVICE))
        constants = [g.const(v.item(), dtype, (17,), DEVICE) for v in values]
        return [g.elementwise(Op.WHERE, chosen, x, constant) for constant in constants]

    check(build, {0: (np.arange(17) % 2 + 4).astype(numpy_dtype(dtype))}, EXACT)


# ---- lengths ----


@pytest.mark.parametrize("machine", ["host", *MACHINES])
@pytest.mark.parametrize(
    "dtype", [F32, dtypes.float64, dtypes.float16, dtypes.bfloat16, dtypes.int8, dtypes.bool],
    ids=lambda dtype: dtype.name,
)  # fmt: skip
def test_lengths_around_vectors(dtype: DType, machine: str) -> None:
    """Nothing is written beyond the end (canaries), and nothing is left out before it."""
    random = np.random.default_rng(1)
    values = {slot: random.integers(0, 5, length).astype(numpy_dtype(dtype))
              for slot, length in enumerate(LENGTHS)}  # fmt: skip

    def build(inputs: Inputs) -> list[Node]:
        roots = []
        for length in LENGTHS:
            x = inputs(length, dtype=dtype)
            roots.append(g.flip(g.elementwise(Op.ADD, x, g.flip(x, [0])), [0]))
        return roots

    check(build, values, EXACT, machine)


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

    check(build, values, EXACT)


@pytest.mark.parametrize("dtype", [F32, dtypes.float64, dtypes.float16, dtypes.bfloat16],
                         ids=lambda dtype: dtype.name)  # fmt: skip
def test_maxima_of_special_values(dtype: DType) -> None:
    """A NaN wins wherever it stands; of infinities the larger; of nothing but −∞, −∞."""
    x = np.full((40, 37), -np.inf)
    for row in range(37):
        x[row, row] = [np.nan, np.inf, 1.0][row % 3]
    x[38, :] = np.nan

    def build(inputs: Inputs) -> list[Node]:
        node = inputs(40, 37, dtype=dtype)
        return [g.reduce(Op.MAX, node, [1]), g.reduce(Op.MAX, node, [0])]

    check(build, {0: x.astype(numpy_dtype(dtype))}, EXACT)


# ---- addressed by data ----


def outside(dtype: DType, count: int, extent: int) -> np.ndarray:
    """Indices, many of which lie outside 0 … extent − 1, the most extreme ones included."""
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
    check(build, {k: v if k == 1 else v.astype(np.float32) for k, v in values.items()}, EXACT,
          machine)  # fmt: skip


@pytest.mark.parametrize("machine", ["host", "sse2"])
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.name)
def test_scatter_outside(dtype: DType, machine: str) -> None:
    """What lies outside writes nothing (canaries), and what meets at one place is all added."""
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
    check(build, {**arrays, 1: index}, EXACT, machine)


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

    check(build, {0: x, 1: index}, EXACT)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: dtype.name)
def test_indices_as_values(dtype: DType) -> None:
    """An IOTA in every dtype: it wraps, or is rounded, as a cast would have it."""

    def build(inputs: Inputs) -> list[Node]:
        return [g.elementwise(Op.ADD, g.iota(300, DEVICE, dtype), inputs(300, dtype=dtype))]

    check(build, {0: np.zeros(300, numpy_dtype(dtype))}, EXACT)


def test_masks_hide_what_they_exclude() -> None:
    """A padded operand is not read outside, and a NaN under the mask is not seen."""
    x = np.full((9, 33), np.nan, np.float32)
    x[:, :20] = 1.0

    def build(inputs: Inputs) -> list[Node]:
        node = inputs(9, 33)
        part = g.pad(g.shrink(node, [(0, 9), (0, 20)]), [(1, 2), (0, 13)])
        return [part, g.reduce(Op.SUM, part, [1]), g.reduce(Op.SUM, part, [0])]

    check(build, {0: x}, EXACT)
