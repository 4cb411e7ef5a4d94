"""Elements a few places apart are picked from whole vectors, if what is between may be read.

The programs run between canaries, so that a vector too many would be noticed when it is stored;
tests/runtimes/test_guard.py and the property tests run such views at the end of pages.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pairwise import pairwise
from property.compare import EXACT
from schedule.agreement import agree
from schedule.machine import GOLDEN, MACHINES
from schedule.programs import Build, Inputs, add, ew, graph_of

from minigrad import Tensor
from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.axes import joined
from minigrad.graph.node import Node, Op
from minigrad.graph.shapes import numel
from minigrad.graph.windows import INTERLEAVED
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.render.llvm_memory import MOST_VECTORS
from minigrad.runtimes.reference import numpy_dtype

ROWS = 203  # no multiple of a vector's width
STRIDES = range(2, MOST_VECTORS + 2)
DTYPES = [dtypes.float32, dtypes.bfloat16, dtypes.int8, dtypes.float64]


def neighbours(stride: int, dtype: DType = dtypes.float32, rows: int = ROWS) -> Build:
    """The first element of each row plus the last one."""

    def build(inputs: Inputs) -> list[Node]:
        x = inputs(rows, stride, dtype=dtype)
        parts = [
            g.reshape(g.shrink(x, ((0, rows), (place, place + 1))), (rows,))
            for place in (0, stride - 1)
        ]
        return [add(*parts)]

    return build


def largest(stride: int, dtype: DType = dtypes.float32, rows: int = ROWS) -> Build:
    """The largest element of each row."""
    return lambda inputs: [g.reduce(Op.MAX, inputs(rows, stride, dtype=dtype), [1])]


@pytest.mark.parametrize(
    ("machine", "stride", "dtype"), pairwise(MACHINES, STRIDES, DTYPES), ids=str
)
def test_values(machine: str, stride: int, dtype: DType) -> None:
    for program in (neighbours(stride, dtype), largest(stride, dtype)):
        x = (np.arange(ROWS * stride) * 37 % 64).reshape(ROWS, stride)
        agree(program, machine, values={0: x.astype(numpy_dtype(dtype))}, tolerance=EXACT)


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16, dtypes.int8, dtypes.bool],
                         ids=lambda dtype: dtype.name)  # fmt: skip
def test_vectors_of_several_registers_of_narrow_elements(dtype: DType) -> None:
    """They are joined in the form that memory has, not in the form for computing."""

    def build(inputs: Inputs) -> list[Node]:
        x = g.shrink(inputs(256, 2, dtype=dtype), ((0, 256), (1, 2)))
        return [ew(Op.OR, x, x) if dtype.is_bool else add(x, x)]

    assert "shufflevector" in text_of(build)
    x = (np.arange(512) * 37 % 64).reshape(256, 2)
    values = {0: (x % 2 if dtype.is_bool else x).astype(numpy_dtype(dtype))}
    agree(build, "avx512", values=values, tolerance=EXACT)


def text_of(build: Build) -> str:
    """The IR of the first kernel."""
    return render(lower(schedule_of(graph_of(build)[0], GOLDEN).kernels[0], GOLDEN))


def test_no_gathers() -> None:
    """Only the remainder at the end is gathered, under a mask."""
    assert "gather" not in text_of(neighbours(3, rows=256))
    assert "gather" not in text_of(largest(3, rows=256))  # the loop over a row is written out
    assert "gather" in text_of(neighbours(MOST_VECTORS + 1, rows=256))


def test_what_may_not_be_read_is_not() -> None:
    """Every second element up to the last one of the array: nothing after it may be read."""

    def build(inputs: Inputs) -> list[Node]:
        whole = g.pad(inputs(127), [(0, 1)])  # a guard for the last element
        return [g.reshape(g.shrink(g.reshape(whole, (64, 2)), ((0, 64), (1, 2))), (64,))]

    def odd(inputs: Inputs) -> list[Node]:
        return [add(g.shrink(inputs(128, 2), ((0, 128), (1, 2))), 1.0)]

    assert "shufflevector" in text_of(odd)
    for machine in MACHINES:
        agree(build, machine, values={0: np.arange(127, dtype=np.float32)}, tolerance=EXACT)


def in_turn(x: Node, times: int) -> Node:
    """The parts of each row, interleaved."""
    rows, width = x.shape[0], numel(x.shape[1:]) // times
    parts = g.permute(g.reshape(x, (rows, times, width)), (0, 2, 1))
    return g.reshape(parts, (rows, width * times))


def repeated(x: Node, times: int) -> Node:
    """Each element, `times` times."""
    rows, width = x.shape
    wide = g.expand(g.reshape(x, (rows, width, 1)), (rows, width, times))
    return g.reshape(wide, (rows, numel((width,)) * times))


def spread(x: Node, times: int) -> Node:
    """Zeros between elements."""
    rows, width = x.shape
    wide = g.pad(g.reshape(x, (rows, width, 1)), [(0, 0), (0, 0), (1, times - 2)])
    return g.reshape(wide, (rows, numel((width,)) * times))


def backwards(x: Node, times: int) -> Node:
    """In reverse order, and only every `times`-th element."""
    rows, width = x.shape
    some = g.reshape(g.flip(x, (1,)), (rows, numel((width,)) // times, times))
    return g.reshape(g.shrink(some, ((0, rows), (0, some.shape[1]), (0, 1))), (rows, some.shape[1]))


def paired(x: Node, times: int) -> Node:
    """The halves of a row as pairs along a last axis, which is too short for vectors."""
    rows, width = x.shape
    half = numel((width,)) // 2
    parts = [g.shrink(x, ((0, rows), (at, at + half))) for at in (0, half)]
    return joined([g.reshape(part, (rows, half, 1)) for part in parts], 2)


def turned(x: Node, times: int) -> Node:
    """Pairs of neighbours, each rotated by an angle of its own: rotary positions."""
    rows, width = x.shape
    pairs = (rows, numel((width,)) // 2, 2)
    whole = g.reshape(g.shrink(x, ((0, rows), (0, 2 * pairs[1]))), pairs)
    a, b = (g.shrink(whole, ((0, rows), (0, pairs[1]), (at, at + 1))) for at in (0, 1))
    both = joined([add(ew(Op.MUL, a, b), a), add(ew(Op.MUL, b, b), a)], 2)
    return g.reshape(both, (rows, 2 * pairs[1]))


def mirrored(x: Node, times: int) -> Node:
    """A row between mirrored copies of its ends."""
    rows, width = x.shape
    first, last = (g.shrink(x, ((0, rows), ends)) for ends in ((1, 20), (width - 20, width - 1)))
    return joined([g.flip(first, (1,)), x, g.flip(last, (1,))], 1)


def reflected(x: Node, times: int) -> Node:
    """A row between a few mirrored elements: they are in a vector with others."""
    rows, width = x.shape
    ends = (1, times + 1), (width - times - 1, width - 1)
    first, last = (g.flip(g.shrink(x, ((0, rows), end)), (1,)) for end in ends)
    return joined([first, x, last], 1)


def some_padded(x: Node, times: int) -> Node:
    """Every `times`-th element, with zeros around: a vector's mask is computed."""
    rows, width = x.shape
    some = g.reshape(x, (rows, numel((width,)) // times, times))
    last = ((0, rows), (0, some.shape[1]), (times - 1, times))
    return g.pad(g.reshape(g.shrink(some, last), (rows, some.shape[1])), [(0, 0), (3, 2)])


def repeated_padded(x: Node, times: int) -> Node:
    """Each element `times` times (lanes read the same one), with zeros around."""
    return g.pad(repeated(x, times), [(0, 0), (times, 2)])


FEW_VECTORS = [
    in_turn, repeated, spread, backwards, paired, turned, mirrored, reflected, some_padded,
    repeated_padded,
]


@pytest.mark.parametrize(("machine", "rows", "make"), pairwise(MACHINES, [
    (dtypes.float32, 56, 2), (dtypes.float32, 111, 3), (dtypes.int8, 320, 5),
    (dtypes.float64, 9 * 12, 9),
], FEW_VECTORS))  # fmt: skip
def test_elements_of_a_few_vectors(
    machine: str, rows: tuple[DType, int, int], make: Callable[[Node, int], Node]
) -> None:
    """In whole vectors and in a row's remainder."""
    dtype, width, times = rows

    def build(inputs: Inputs) -> list[Node]:
        x = make(inputs(3, width, dtype=dtype), times)
        return [add(x, x)]

    values = {0: (np.arange(3 * width) * 37 % 61).reshape(3, width).astype(numpy_dtype(dtype))}
    agree(build, machine, values=values, tolerance=EXACT)


@pytest.mark.parametrize("width", [56, 256])
@pytest.mark.parametrize("make", FEW_VECTORS[:-2])  # zeros around need computed masks
def test_a_few_vectors_are_not_gathered(make: Callable[[Node, int], Node], width: int) -> None:
    text = text_of(lambda inputs: [add(make(inputs(16, width), 2), 1.0)])
    assert "shufflevector" in text or make is turned  # only masks separate its neighbours
    assert "gather" not in text and "scatter" not in text


def convolved(
    channels: int, groups: int, size: int, of: str = "input", stride: int = 2
) -> str:
    """The IR of the stores of a convolution of 64 × 64 images, or of its gradient."""

    def build(inputs: Inputs) -> list[Node]:
        shapes = (4, channels, 64, 64), (channels, channels // groups, size, size)
        x, w = (Tensor._of(inputs(*shape)) for shape in shapes)
        y = x.conv2d(w, stride=stride, padding=size // 2, groups=groups)
        if of == "result":
            return [y.node]
        return [y.gradient(x, gradient=Tensor._of(inputs(*y.shape)))[0].node]

    return render(lower(schedule_of(graph_of(build)[0], GOLDEN).kernels[-1], GOLDEN))


@pytest.mark.parametrize("groups, size", [(32, 3), (32, 5), (1, 3), (1, 1)])
def test_gradients_of_strided_convolutions_are_not_gathered(groups: int, size: int) -> None:
    """Rows and columns come alternately from several sums, or have zeros between them."""
    assert "gather" not in convolved(32, groups, size)


def test_skipped_pixels_are_not_gathered() -> None:
    assert "gather" not in convolved(32, 1, 1, "result")


@pytest.mark.parametrize("of", ["result", "input"])
def test_columns_of_several_groups_fill_a_vector(of: str) -> None:
    """Although a group has only four, and its results are apart."""
    text = convolved(32, 8, 3, of, stride=1)
    assert "fadd contract <16 x float>" in text
    assert "fadd contract <4 x float>" not in text


def pieces(stride: int, dtype: DType = dtypes.float32, rows: int = ROWS) -> Build:
    """Interleaved arrays: each is stored `stride` elements apart."""

    def build(inputs: Inputs) -> list[Node]:
        x = [g.reshape(inputs(rows, dtype=dtype), (rows, 1)) for _ in range(stride)]
        return [g.cat([ew(Op.NEG, one) for one in x], 1)]

    return build


@pytest.mark.parametrize(
    ("machine", "rows", "dtype"), pairwise(MACHINES, [7, 16, ROWS], DTYPES), ids=str
)
def test_every_second_element_is_stored(machine: str, rows: int, dtype: DType) -> None:
    for stride in (2, 3):
        agree(pieces(stride, dtype, rows), machine, tolerance=EXACT)


@pytest.mark.parametrize("stride", [2, 3])
def test_what_is_stored_nearby_is_no_scatter(stride: int) -> None:
    text = text_of(pieces(stride))
    assert ("masked.scatter" in text) is (stride > INTERLEAVED)
