"""Vectors along a loop are transposed in registers if the lanes in scope are strided in memory.

The programs run between canaries; reads beyond a view would be found by the property tests, which
put arrays at the end of pages.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from pairwise import pairwise
from property.compare import EXACT, Tolerance, difference
from schedule import programs
from schedule.agreement import agree
from schedule.machine import GOLDEN, MACHINES, run
from schedule.programs import Build, Inputs, add, ew, graph_of, mul

from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.render.llvm_transpose import transpose
from minigrad.render.llvm_values import Builder, Value
from minigrad.runtimes.reference import evaluate, numpy_dtype

SHAPES = [(16, 16), (17, 33), (64, 130), (130, 64), (20, 21), (49, 100), (196, 36), (1, 70)]
SIZES = [(dtypes.uint8, 1), (dtypes.int16, 2), (dtypes.float32, 4), (dtypes.float64, 8)]
DTYPES = [
    dtypes.float32, dtypes.int64, dtypes.float16, dtypes.bfloat16, dtypes.int8, dtypes.uint16,
    dtypes.bool,
]  # fmt: skip
NEAR = Tolerance(ulps=4, scale=2, terms=1)


def across(rows: int, columns: int, dtype: DType = dtypes.float32) -> Build:
    """x + y.T, and y.T with zeros around every matrix of a batch."""

    def build(inputs: Inputs) -> list[Node]:
        x, y = inputs(rows, columns, dtype=dtype), inputs(2, columns, rows, dtype=dtype)
        turned = g.permute(y, (0, 2, 1))
        first = g.reshape(g.shrink(turned, ((0, 1), (0, rows), (0, columns))), (rows, columns))
        return [add(x, first), g.contiguous(g.pad(turned, ((0, 0), (1, 2), (2, 1))))]

    return build


@pytest.mark.parametrize(("machine", "shape", "dtype"), pairwise(MACHINES, SHAPES, DTYPES), ids=str)
def test_values(machine: str, shape: tuple[int, int], dtype: DType) -> None:
    rows, columns = shape
    kind = numpy_dtype(dtype)
    x = (np.arange(rows * columns) * 37 % 64).reshape(rows, columns).astype(kind)
    y = (np.arange(2 * rows * columns) * 29 % 61).reshape(2, columns, rows).astype(kind)
    agree(across(rows, columns, dtype), machine, values={0: x, 1: y}, tolerance=EXACT)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", (dtypes.float32, dtypes.float64), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(31, 17), (14, 9), (15, 33)], ids=str)
def test_signs_where_one_lane_counts(
    machine: str, dtype: DType, shape: tuple[int, int]
) -> None:
    """LLVM 22 took another column's element for the last one, in float64."""
    rows, columns = shape
    x = ((np.arange(rows * columns) * 37 % 64) - 31.5).reshape(columns, rows)

    def build(inputs: Inputs) -> list[Node]:
        turned = g.permute(inputs(columns, rows, dtype=dtype), (1, 0))
        return [ew(Op.NEG, turned)]

    agree(build, machine, values={0: x.astype(numpy_dtype(dtype))}, tolerance=EXACT)


def text_of(build: Build) -> str:
    """The IR of the first kernel."""
    return render(lower(schedule_of(graph_of(build)[0], GOLDEN).kernels[0], GOLDEN))


def test_no_gathers() -> None:
    """Not even if lanes of the last vector, or rows of the last block, are unused."""
    assert "gather" not in text_of(across(42, 85))
    for dtype in DTYPES:
        assert "gather" not in text_of(across(70, 85, dtype)), dtype


def shuffles(columns: int, depth: int) -> int:
    """Shuffles of whole vectors in a product whose right operand is copied transposed."""
    return text_of(lambda inputs: [
        programs.product(inputs(60, depth), programs.transpose(inputs(columns, depth)))
    ]).count("shufflevector <16 x float>")  # fmt: skip


def test_squares_side_by_side_share_their_code() -> None:
    one, two = (shuffles(count, 48) for count in (16, 32))
    assert 24 <= two <= one + 16  # never joined to vectors of 32 columns


@pytest.mark.parametrize("count", [4, 8, 16, 32])
@pytest.mark.parametrize(("dtype", "size"), SIZES, ids=lambda x: getattr(x, "name", ""))
def test_shuffles(count: int, dtype: DType, size: int) -> None:
    """Each column has all rows' elements in order, traced through the shuffles."""
    check_shuffles(count, count, dtype, size)


@pytest.mark.parametrize(("dtype", "size"), SIZES, ids=lambda x: getattr(x, "name", ""))
def test_shuffles_of_half_vectors(dtype: DType, size: int) -> None:
    """Rows of two segments, and twice as many rows."""
    check_shuffles(64 // size, 32 // size, dtype, size)


def check_shuffles(count: int, lanes: int, dtype: DType, size: int) -> None:
    builder = Builder()
    builder.lines = []
    rows = [Value(f"%row{i}", dtype, lanes) for i in range(count)]
    known = {row.text: [(i, lane) for lane in range(lanes)] for i, row in enumerate(rows)}
    columns = transpose(builder, rows, size)
    for line in builder.lines:
        name, operation, rest = line.strip().partition(" = shufflevector ")
        if not operation:  # a fence or bitcast of one vector
            name, _, rest = line.strip().partition(" = ")
            (known[name],) = [known[word] for word in re.findall(r"%\w+", rest)]
            continue
        words = [word.strip("<>,") for word in rest.split()]
        both = [place for word in words if word in known for place in known[word]]
        order = rest[rest.rindex("<") + 1 :].strip(">").replace("i32", "").split(",")
        known[name] = [both[int(place)] for place in order]
    assert [known[c.text] for c in columns] == [
        [(row, column) for row in range(count)] for column in range(lanes)
    ]


def product_across(rows: int, columns: int, dtype: DType = dtypes.float32) -> Build:
    """(x @ w).T, and exp of (x @ w²).T plus an array in the order of the result."""

    def build(inputs: Inputs) -> list[Node]:
        x, w, y = inputs(rows, 5), inputs(5, columns), inputs(columns, rows)
        first = g.cast(programs.transpose(programs.product(x, w)), dtype)
        second = programs.transpose(programs.product(x, mul(w, w)))
        return [g.contiguous(first), ew(Op.EXP, add(second, y))]

    return build


@pytest.mark.parametrize(("machine", "shape", "dtype"), pairwise(
    MACHINES, [(16, 16), (17, 33), (64, 130), (7, 40), (49, 96), (1, 70)],
    [dtypes.float32, dtypes.float16, dtypes.bool]), ids=str)  # fmt: skip
def test_products_stored_as_columns(
    machine: str, shape: tuple[int, int], dtype: DType
) -> None:
    """Whole tiles, remainders of rows and of columns, and the loads of another operand."""
    rows, columns = shape
    graph, _ = graph_of(product_across(rows, columns, dtype))
    generator = np.random.default_rng(7)
    sizes = [(rows, 5), (5, columns), (columns, rows)]
    values = {n: generator.integers(-2, 3, size).astype(np.float32) / 4
              for n, size in enumerate(sizes)}  # fmt: skip
    expected = evaluate(graph.roots, values, {})
    results = zip(run(graph, values, machine), expected, (EXACT, NEAR), strict=True)
    for got, wanted, tolerance in results:
        assert difference(got, wanted, tolerance, tuple(values.values()), 8.0) is None


@pytest.mark.parametrize("shape", [(64, 64), (42, 85), (20, 48)], ids=str)
def test_no_scatters(shape: tuple[int, int]) -> None:
    """Nor gathers: results, and the operand read with them, are whole vectors."""
    kernels = schedule_of(graph_of(product_across(*shape))[0], GOLDEN).kernels
    texts = [render(lower(kernel, GOLDEN)) for kernel in kernels]
    assert len(texts) == 3  # two products, and w squared before one of them
    assert not any("scatter" in text or "gather" in text for text in texts)


def mask_across(rows: int, columns: int, depth: int) -> Build:
    """Sums over positions, and at each position a flag, stored and read with positions last."""

    def build(inputs: Inputs) -> list[Node]:
        x, marked = inputs(rows, depth, columns), inputs(rows, columns, depth, dtype=dtypes.bool)
        flags = ew(Op.LE, x, 0.5)
        kept = ew(Op.WHERE, g.permute(marked, (0, 2, 1)), programs.number(0.0, x), x)
        return [g.contiguous(g.permute(flags, (0, 2, 1))), programs.total(kept, 1)]

    return build


@pytest.mark.parametrize(("machine", "shape"), pairwise(
    MACHINES, [(3, 32, 64), (2, 64, 40), (5, 16, 16), (2, 35, 21)]), ids=str)  # fmt: skip
def test_flags_are_transposed_as_bytes(machine: str, shape: tuple[int, int, int]) -> None:
    """The mask of a ReLU before a mean over an image, in the order of another convolution."""
    rows, columns, depth = shape
    generator = np.random.default_rng(3)
    x = (generator.integers(-8, 9, (rows, depth, columns)) / 8).astype(np.float32)
    marked = generator.integers(0, 2, (rows, columns, depth)).astype(bool)
    agree(mask_across(*shape), machine, values={0: x, 1: marked}, tolerance=EXACT)


def test_flags_are_not_scattered() -> None:
    """LLVM wrote a scatter of bytes as a store for each byte."""
    kernels = schedule_of(graph_of(mask_across(3, 32, 64))[0], GOLDEN).kernels
    texts = [render(lower(kernel, GOLDEN)) for kernel in kernels]
    assert not any("scatter" in text or "gather" in text for text in texts)
