"""Joined, rolled, reflected or repeated arrays are read part by part, without a choice per element.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from schedule.agreement import agree
from schedule.machine import GOLDEN
from schedule.programs import DEVICE, Inputs, plan_of

from minigrad import Tensor
from minigrad.compile import schedule_of
from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.axes import joined, part_along
from minigrad.graph.canonical import canonicalize
from minigrad.graph.node import Node
from minigrad.graph.rewrite import without_rules
from minigrad.graph.substitution import coefficient
from minigrad.loops.nest import Loop, Nest, Store, show, walk
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.schedule import expr

SIZES = [3, 16, 17, 40, 60, 129]


def nest_of(build: Callable[[Inputs], Node]) -> Nest:
    """The only kernel of a program."""
    (kernel,) = plan_of(lambda inputs: [build(inputs)]).kernels
    return lower(kernel, GOLDEN)


def stores_of(nest: Nest) -> list[Store]:
    """All its stores."""
    return [one for one in walk(nest.parallel) if isinstance(one, Store)]


def reroll(x: Node, axis: int, by: int) -> Node:
    """The elements before `by` are moved to the end."""
    ends = [part_along(x, axis, by, x.shape[axis]), part_along(x, axis, 0, by)]
    return joined(ends, axis)


@pytest.mark.parametrize("axis", [0, 1])
def test_each_part_reads_one_array(axis: int) -> None:
    stores = stores_of(nest_of(lambda inputs: reroll(inputs(64, 640), axis, 32)))
    assert len(stores) == 2
    assert all(one.value.op is expr.Leaf.LOAD and not one.value.guard for one in stores)


def channels(inputs: Inputs, *counts: int) -> Node:
    """Pixels with channels last, channels joined and first, with numbers for each channel."""
    arrays = [g.permute(inputs(2, 50, count), (0, 2, 1)) for count in counts]
    shape = (2, sum(counts), 50)
    biases = [g.expand(g.reshape(inputs(sum(counts)), (1, sum(counts), 1)), shape) for _ in "abc"]
    return (joined(arrays, 1) + biases[0]) * biases[1] + biases[2]


@pytest.mark.parametrize("counts, apart", [
    ((24,), False), ((16, 16), False), ((7, 9), False),
    ((24, 12), True), ((60, 12), True), ((100, 28, 5), True),
])  # fmt: skip
def test_channels_become_the_first_axis_in_tiles(counts: tuple[int, ...], apart: bool) -> None:
    """Vectors are stored along pixels, and loops over channels transpose squares.

    apart: if there are enough channels, each loop reads one array.
    """
    nest = nest_of(lambda inputs: channels(inputs, *counts))
    stores, loops = stores_of(nest), [one for one in walk(nest.parallel) if isinstance(one, Loop)]
    (lanes,) = {one.variable for one in loops if one.kind == "lanes"}
    assert all(coefficient(one.index, lanes) == 1 for one in stores)
    assert any(one.transpose for one in loops) and (len(stores) > 1) is apart
    agree(lambda inputs: [channels(inputs, *counts)])


def test_vectors_where_two_parts_meet_are_the_only_ones_that_choose() -> None:
    stores = stores_of(nest_of(lambda inputs: reroll(inputs(64, 1000), 1, 3)))
    assert [len(expr.loads(one.value)) for one in stores] == [1, 2]


def test_short_rows_and_zeros_around_have_one_loop() -> None:
    assert len(stores_of(nest_of(lambda inputs: reroll(inputs(64, 8), 0, 3)))) == 1
    around = nest_of(lambda inputs: g.contiguous(g.pad(inputs(64, 640), [(1, 1), (1, 1)])))
    assert len(stores_of(around)) == 1


def test_no_vector_reads_far_outside_of_an_array_where_no_lane_counts() -> None:
    """That takes thousands of cycles: a roll by half of 16 MiB took 43 ms instead of 0.6."""
    text = render(nest_of(lambda inputs: reroll(inputs(1 << 16), 0, 1 << 15)))
    assert text.count("call i1 @llvm.vector.reduce.or") > 0
    short = render(nest_of(lambda inputs: reroll(inputs(400), 0, 200)))
    assert "reduce.or" not in short


@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("mode, numpy_mode", [
    ("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap"),
])  # fmt: skip
def test_values_of_padding(columns: int, mode: str, numpy_mode: str) -> None:
    x = np.arange(2 * 3 * 7 * columns, dtype=np.float32).reshape(2, 3, 7, columns)
    got = Tensor(x).pad((1, 2, 2, 1), mode=mode).numpy()
    expected = np.pad(x, ((0, 0), (0, 0), (2, 1), (1, 2)), numpy_mode)  # type: ignore[call-overload]
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.float16, np.bool_])
def test_values_of_joins_and_rolls(columns: int, dtype: type) -> None:
    x, y = (np.arange(9 * columns).reshape(9, columns) % n > 3 for n in (7, 11))
    x, y = (a.astype(dtype) if dtype is np.bool_ else (a * 5).astype(dtype) for a in (x, y))
    one, other = Tensor(x), Tensor(y)
    for axis in (0, 1):
        assert np.array_equal(one.cat(other, dim=axis).numpy(), np.concatenate((x, y), axis))
        for by in (1, 2, columns // 2):
            assert np.array_equal(one.roll(by, axis).numpy(), np.roll(x, by, axis))
    three = one.cat(other, one.flip(1), dim=1).numpy()
    assert np.array_equal(three, np.concatenate((x, y, x[:, ::-1]), 1))
    assert np.array_equal(one.repeat(2, 3).numpy(), np.tile(x, (2, 3)))


def test_values_far_apart() -> None:
    x = np.arange(1 << 20, dtype=np.float32)
    assert np.array_equal(Tensor(x).roll(1 << 19).numpy(), np.roll(x, 1 << 19))
    assert np.array_equal(Tensor(x).cat(Tensor(-x)).numpy(), np.concatenate((x, -x)))


def test_updates_of_other_parts_are_not_read() -> None:
    """Rows are added at given rows, in parts of the result: each part reads only the rows for it.
    """

    def build(new: Inputs) -> Node:
        places = g.reshape(new(2048, dtype=dtypes.int64), (2048, 1))
        wide = g.expand(places, (2048, 1024))
        return g.scatter_add(new(1024, 1024), wide, new(2048, 1024), 0)

    nest = nest_of(build)
    (update,) = [one for one in stores_of(nest) if one.array in
                 {load.array for load in expr.loads(one.value)}]  # fmt: skip
    assert not update.guard and "for here0 in 0 … [where(" in show(nest)


def test_an_element_that_some_lanes_read_is_loaded_once() -> None:
    """The gradient of a diagonal: an element of a vector for each row."""
    x, of = (Tensor.ones(*shape, device=DEVICE).realize() for shape in ((256, 256), (256,)))
    (found,) = x.diagonal().gradient(x, gradient=of)
    graph = canonicalize(without_rules([found.raw])).graph()
    text = render(lower(schedule_of(graph, GOLDEN).kernels[0], GOLDEN))
    assert "masked.gather" not in text and "reduce.or" in text
