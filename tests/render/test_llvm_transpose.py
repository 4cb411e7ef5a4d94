"""Vectors along a loop are transposed in registers where the lanes in scope lie across memory.

The programs run between canaries; what is read beyond a view would be found by the property tests,
which put arrays at the end of pages.
"""

from __future__ import annotations

import numpy as np
import pytest
from property.compare import EXACT, difference
from schedule.machine import GOLDEN, MACHINES, run
from schedule.programs import Build, Inputs, add, graph_of

from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node
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


def across(rows: int, columns: int, dtype: DType = dtypes.float32) -> Build:
    """x + y.T, and y.T with zeros around every matrix of a batch."""

    def build(inputs: Inputs) -> list[Node]:
        x, y = inputs(rows, columns, dtype=dtype), inputs(2, columns, rows, dtype=dtype)
        turned = g.permute(y, (0, 2, 1))
        first = g.reshape(g.shrink(turned, ((0, 1), (0, rows), (0, columns))), (rows, columns))
        return [add(x, first), g.contiguous(g.pad(turned, ((0, 0), (1, 2), (2, 1))))]

    return build


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_values(machine: str, shape: tuple[int, int], dtype: DType) -> None:
    rows, columns = shape
    graph, _ = graph_of(across(rows, columns, dtype))
    kind = numpy_dtype(dtype)
    x = (np.arange(rows * columns) * 37 % 64).reshape(rows, columns).astype(kind)
    y = (np.arange(2 * rows * columns) * 29 % 61).reshape(2, columns, rows).astype(kind)
    values = {0: x, 1: y}
    expected = evaluate(graph.roots, values, {})
    for got, wanted in zip(run(graph, values, machine), expected, strict=True):
        assert difference(got, wanted, EXACT, (), 1) is None


def text_of(build: Build) -> str:
    """The IR of the first kernel."""
    return render(lower(schedule_of(graph_of(build)[0], GOLDEN).kernels[0], GOLDEN))


def test_no_gathers() -> None:
    """Not even where lanes of the last vector do not count, nor rows of the last block."""
    assert "gather" not in text_of(across(42, 85))
    for dtype in DTYPES:
        found = "gather" in text_of(across(70, 85, dtype))
        assert found == dtype.is_bool, dtype  # a bit is no element of a vector like others


@pytest.mark.parametrize("count", [4, 8, 16, 32])
@pytest.mark.parametrize(("dtype", "size"), SIZES, ids=lambda x: getattr(x, "name", ""))
def test_shuffles(count: int, dtype: DType, size: int) -> None:
    """Each column has the elements of all rows in order, followed through the shuffles' orders."""
    names = (f"%t{number}" for number in range(10_000))
    builder = Builder(lambda: next(names), lambda _: None, [])
    rows = [Value(f"%row{i}", dtype, count) for i in range(count)]
    known = {row.text: [(i, lane) for lane in range(count)] for i, row in enumerate(rows)}
    columns = transpose(builder, rows, size)
    for line in builder.lines:
        name, _, rest = line.strip().partition(" = shufflevector ")
        words = [word.strip("<>,") for word in rest.split()]
        both = [place for word in words if word in known for place in known[word]]
        order = rest[rest.rindex("<") + 1 :].strip(">").replace("i32", "").split(",")
        known[name] = [both[int(place)] for place in order]
    assert [known[c.text] for c in columns] == [
        [(row, column) for row in range(count)] for column in range(count)
    ]
