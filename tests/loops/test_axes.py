"""How recipes treat axes: merging neighbours, fixing rows, choosing an axis for vectors."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from schedule.machine import GOLDEN
from schedule.programs import F32, PROGRAMS, graph_of

from minigrad import Tensor
from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph.node import Op
from minigrad.graph.shapes import flatten
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Atom, Integer, var
from minigrad.loops.axes import (
    fix_rows,
    in_whole_periods,
    merge,
    merge_stage,
    unit_stride_axis,
    vector_width,
)
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array
from minigrad.schedule.fuse import prefix_length, runs_across_rows
from minigrad.schedule.stage import Stage
from minigrad.target import Target

TABLE, OTHER = Array("table", F32, 1 << 20), Array("other", F32, 1 << 20)


def axes_of(*extents: Integer) -> tuple[Axis, ...]:
    """New axes i0, i1, …"""
    return tuple(make_axis("i", number, extent) for number, extent in enumerate(extents))


def extents(merged: tuple[Sequence[Axis], Mapping[Atom, Integer]]) -> list[Integer]:
    """The lengths of merged axes."""
    return [axis.extent for axis in merged[0]]


def values_of(axes: Sequence[Axis], point: Sequence[int]) -> dict[Atom, Integer]:
    """The variables' values at one point."""
    return {axis.variable: value for axis, value in zip(axes, point, strict=True)}


def points(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """All points, in row-major order."""
    return list(itertools.product(*(range(int(str(axis.extent))) for axis in axes)))


# ---- merge ----


def test_contiguous_axes_become_one() -> None:
    axes = axes_of(3, 4, 5)
    index = flatten([a.index for a in axes], [3, 4, 5])
    (whole,), values = merge(axes, [index])
    assert whole.extent == 60
    assert substitute(index, values) == whole.index


def test_a_broadcast_along_the_last_axis_keeps_it_apart() -> None:
    axes = axes_of(3, 4, 5)
    i, j, k = (a.index for a in axes)
    bias = k
    assert extents(merge(axes, [flatten([i, j, k], [3, 4, 5]), bias])) == [12, 5]
    per_row = i
    assert extents(merge(axes, [flatten([i, j, k], [3, 4, 5]), per_row])) == [3, 20]


def test_a_transposed_operand_keeps_axes_apart() -> None:
    axes = axes_of(3, 4)
    i, j = (a.index for a in axes)
    assert extents(merge(axes, [i * 4 + j, i + j * 3])) == [3, 4]


def test_axes_that_no_index_uses_are_merged() -> None:
    assert extents(merge(axes_of(3, 4), [7])) == [12]


def test_hidden_variables_are_not_merged() -> None:
    axes = axes_of(6, 4)
    i, j = (a.index for a in axes)
    assert extents(merge(axes, [i * 4 + j, i // 2])) == [6, 4]


def test_a_symbolic_axis_takes_those_behind_it() -> None:
    """A static axis takes no symbolic one after it: positions would not tell where that ends."""
    length = var("n", 1, 24)
    axes = axes_of(length, 4)
    i, j = (a.index for a in axes)
    assert extents(merge(axes, [i * 4 + j])) == [length * 4]
    axes = axes_of(4, length)
    i, j = (a.index for a in axes)
    assert extents(merge(axes, [i * 24 + j])) == [4, length]


@pytest.mark.parametrize("seed", range(60))
def test_merging_visits_the_same_elements(seed: int) -> None:
    """Over the merged axes every index takes the same values as before, in the same order."""
    random_ = random.Random(seed)
    axes = axes_of(*(random_.choice([2, 3, 4, 6]) for _ in range(random_.randint(1, 4))))
    i = [axis.index for axis in axes]
    used: list[Integer] = []
    for _ in range(random_.randint(1, 3)):
        shape = [axis.extent for axis in axes]
        kept = [x if random_.random() < 0.7 else 0 for x in i]
        x = flatten(kept, shape)
        if random_.random() < 0.3:
            x = random_.choice([x % 5, x // 4, x * 3])
        used.append(x)
    new_axes, values = merge(axes, used)
    old_points, new_points = points(axes), points(new_axes)
    assert len(old_points) == len(new_points)
    for x in used:
        moved = substitute(x, values)
        before = [substitute(x, values_of(axes, point)) for point in old_points]
        after = [substitute(moved, values_of(new_axes, point)) for point in new_points]
        assert before == after


@pytest.mark.parametrize("name", ["row_softmax", "batched_product", "convolution", "layer_norm"])
def test_merged_stages_do_the_same_work(name: str) -> None:
    for kernel in schedule_of(graph_of(PROGRAMS[name])[0], GOLDEN).kernels:
        for stage in kernel.stages:
            merged = merge_stage(stage)
            assert merged.iterations == stage.iterations
            assert len(merged.axes) <= len(stage.axes)


# ---- rows ----


def stage_over(*lengths: int) -> Stage:
    """A stage that copies an array of this shape."""
    axes = axes_of(*lengths)
    index = flatten([a.index for a in axes], lengths)
    return Stage(OTHER, lengths, axes, (), None, expr.load(TABLE, index), index)


@pytest.mark.parametrize(
    ("rows", "length"), [(1, 0), (3, 1), (12, 2), (60, 3)]
)
def test_leading_axes_of_rows(rows: int, length: int) -> None:
    assert prefix_length(stage_over(3, 4, 5), rows) == length


@pytest.mark.parametrize("rows", [1, 3, 12, 60])
def test_fixed_rows_are_the_rows(rows: int) -> None:
    stage = stage_over(3, 4, 5)
    row = make_axis("r", 0, rows)
    fixed = fix_rows(stage, rows, row.index)
    inner = 60 // rows
    for number in range(rows):
        found = [
            substitute(fixed.position, {row.variable: number, **values_of(fixed.axes, point)})
            for point in points(fixed.axes)
        ]
        assert found == list(range(number * inner, (number + 1) * inner))


def sum_of(rows: int, length: int, row_stride: int, stride: int) -> Stage:
    """Sums of `length` elements each."""
    (row,) = axes_of(rows)
    k = make_axis("k", 0, length)
    place = row.index * row_stride + k.index * stride
    body = expr.load(TABLE, place)
    return Stage(OTHER, (rows,), (row,), (k,), Op.SUM, body, row.index)


def test_where_vectors_run() -> None:
    assert runs_across_rows([sum_of(8, 5, 1, 8)], 8, GOLDEN)  # sums of columns
    assert runs_across_rows([sum_of(80, 500, 1, 80)], 80, GOLDEN)
    assert not runs_across_rows([sum_of(80, 50, 50, 1)], 80, GOLDEN)  # sums of rows
    assert runs_across_rows([sum_of(80, 3, 3, 1)], 80, GOLDEN)  # picking is cheaper than a fold
    assert runs_across_rows([sum_of(80, 9, 9, 1)], 80, GOLDEN)  # so are squares
    assert not runs_across_rows([sum_of(8, 9, 90, 1)], 8, GOLDEN)  # but not gathers


def test_what_every_element_shares_does_not_count() -> None:
    """In a column's sum of x[k, r]·y[k], y is one number for a vector across rows."""
    (row,) = axes_of(80)
    k = make_axis("k", 0, 50)
    r, i = row.index, k.index
    x, y = expr.load(TABLE, r + i * 80), expr.load(Array("y", F32, 50), i)
    body = expr.apply(Op.MUL, (x, y), F32)
    assert runs_across_rows([Stage(OTHER, (80,), (row,), (k,), Op.SUM, body, r)], 80, GOLDEN)


@pytest.mark.parametrize("width, across", [(3, False), (160, True)])
def test_rows_are_neighbours_where_a_vector_of_them_is(width: int, across: bool) -> None:
    """Each row sums 50 elements; `width` rows begin side by side, the next ones far away."""
    c, r = axes_of(30, width)
    k = make_axis("k", 0, 50)
    body = expr.load(TABLE, c.index * 9000 + r.index + k.index)
    stage = Stage(OTHER, (30, width), (c, r), (k,), Op.SUM, body, c.index * width + r.index)
    assert runs_across_rows([stage], 30 * width, GOLDEN) is across


# ---- vectors ----


@pytest.mark.parametrize(
    ("times", "width", "expected"),
    [(2, 64, 64), (3, 64, 48), (6, 32, 48), (5, 64, 80), (5, 32, 32)],
)
def test_repeated_elements_fill_whole_registers(times: int, width: int, expected: int) -> None:
    """Three registers of elements that are there three times begin at the same of their places."""
    (axis,) = axes_of(960)
    value = expr.load(Array("a", dtypes.float32, 960), axis.index // times)
    assert in_whole_periods(GOLDEN, [value], axis, width) == expected
    (short,) = axes_of(40)
    value = expr.load(Array("a", dtypes.float32, 40), short.index // times)
    assert in_whole_periods(GOLDEN, [value], short, width) == width


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64, dtypes.int8])
@pytest.mark.parametrize("times", [3, 5, 6, 7])
def test_values_of_repeated_elements(times: int, dtype: DType) -> None:
    for extent in (32, 47):
        x = (np.arange(3 * extent) % 100).reshape(3, extent)
        found = (Tensor(x, dtype=dtype).repeat_interleave(times, 1) + 1).tolist()
        assert found == (x.repeat(times, 1) + 1).tolist()


def test_vectors_run_where_memory_is_contiguous() -> None:
    axes = axes_of(40, 50)
    i, j = (a.index for a in axes)
    plain, transposed = expr.load(TABLE, i * 50 + j), expr.load(OTHER, i + j * 40)
    assert unit_stride_axis(axes, [plain], [i * 50 + j]) == axes[1]
    assert unit_stride_axis(axes, [transposed], [i + j * 40]) == axes[0]
    # a gathered load costs less than a scattered store
    assert unit_stride_axis(axes, [transposed], [i * 50 + j]) == axes[1]
    assert unit_stride_axis((), [plain], [0]) is None


def test_a_store_may_outweigh_any_number_of_loads() -> None:
    """A convolution's channels come last, those of its normalization first."""
    axes = axes_of(100, 16)
    pixel, channel = (a.index for a in axes)
    bias = [expr.load(Array(f"b{n}", F32, 16), channel) for n in range(5)]
    loads = [expr.load(TABLE, pixel * 16 + channel), *bias]
    assert unit_stride_axis(axes, loads, [channel * 100 + pixel]) == axes[1]
    assert unit_stride_axis(axes, loads, [channel * 100 + pixel], 13) == axes[0]
    assert unit_stride_axis(axes, loads, [pixel * 16 + channel], 13) == axes[1]


def test_a_short_axis_is_no_place_for_vectors() -> None:
    axes = axes_of(50, 2)
    i, j = (a.index for a in axes)
    place = i + j * 50
    assert unit_stride_axis(axes, [expr.load(TABLE, place)], [place]) == axes[0]


def body_of(operations: int, dtype: DType = F32) -> expr.Expr:
    """A chain of additions to a loaded value."""
    value = expr.load(Array("x", dtype, 100), 0)
    for number in range(operations):
        value = expr.apply(Op.ADD, (value, expr.const(number, value.dtype)), value.dtype)
    return value


@pytest.mark.parametrize("extent", [1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 64, 100, 10_000])
@pytest.mark.parametrize("operations", [1, 20, 60])
@pytest.mark.parametrize("dtype", [F32, dtypes.float64, dtypes.int8, dtypes.float16])
def test_vector_widths(extent: int, operations: int, dtype: DType) -> None:
    """A power of two, at most four registers, and never half empty if a smaller one is enough."""
    for target in (GOLDEN, Target(32, 16, 1 << 15, 1 << 18), Target(16, 16, 1 << 15, 1 << 18)):
        width = vector_width(target, [body_of(operations, dtype)], extent, False)
        lanes = target.vector_bytes // max(dtype.itemsize, 4)
        assert width & (width - 1) == 0 and 1 <= width <= 4 * lanes
        assert width < 2 * extent
        if extent >= 4 * lanes and operations == 1:
            assert width == 4 * lanes
        if operations == 60 and extent >= lanes:
            assert width == lanes


@pytest.mark.parametrize(("usual", "width"), [(7, 16), (28, 16), (32, 32), (200, 64)])
def test_vectors_fit_the_usual_length(usual: int, width: int) -> None:
    """Else most lanes of the only vector in each row would be computed in vain."""
    extent = var("n", 1, 1024, usual=usual)
    assert vector_width(GOLDEN, [body_of(1)], extent, False) == width


def test_a_target_without_vectors() -> None:
    assert vector_width(Target(0, 16, 1, 1), [body_of(1)], 1000, False) == 1
