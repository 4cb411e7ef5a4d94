"""Rows with one operand along them and another across them: squares are transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from property.compare import Tolerance, difference
from schedule.agreement import agree
from schedule.machine import GOLDEN, MACHINES, run
from schedule.programs import DEVICE, Inputs, plan_of, softmax, transpose

from minigrad import Tensor
from minigrad.compile import schedule_of
from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.canonical import Graph, canonicalize
from minigrad.graph.node import Node
from minigrad.graph.rewrite import without_rules
from minigrad.graph.symbolic import var
from minigrad.loops.nest import Loop, walk
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.runtimes.reference import evaluate

NEAR = Tolerance(ulps=16, scale=1, terms=1)


def probabilities(x: Any) -> Any:
    """Softmax along the last axis, in float64."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_of_columns(n: int) -> Graph:
    """With its gradient, of an n × n array."""
    x, g = (Tensor.ones(n, n, device=DEVICE).realize() for _ in range(2))
    y = x.T.softmax(-1)
    roots = [tensor.raw for tensor in (y, *y.gradient(x, gradient=g))]
    return canonicalize(without_rules(roots)).graph()


def test_loads_and_stores_along_rows_are_transposed() -> None:
    plan = schedule_of(softmax_of_columns(1000), GOLDEN)
    loops = [
        one for kernel in plan.kernels for one in walk(lower(kernel, GOLDEN).parallel)
        if isinstance(one, Loop) and one.transpose
    ]  # fmt: skip
    stored = [
        one for one in loops
        if any(array.space == "buffer" for array in one.changes) and one.kind == "serial"
    ]  # fmt: skip
    assert stored and len(stored) < len(loops)


def test_rows_that_are_stored_and_read_back_take_vectors_of_one_register() -> None:
    """A square of 64 × 64 takes 256 registers, and LLVM half of a CNN's first step."""
    x = Tensor.ones(8, 196, 64, device=DEVICE).realize()
    y = x.permute(0, 2, 1).relu()
    graph = canonicalize(without_rules([y.raw, y.sum(2).raw])).graph()
    (kernel,) = schedule_of(graph, GOLDEN).kernels
    loops = [one for one in walk(lower(kernel, GOLDEN).parallel) if isinstance(one, Loop)]
    assert {one.transpose for one in loops} == {0, 16}
    assert {one.step for one in loops if one.kind == "lanes"} == {16}


@pytest.mark.parametrize("length", [4, 7, 12, 16, 32, 100])
@pytest.mark.parametrize("across", [False, True])
def test_nothing_is_gathered_along_rows_of_any_length(length: int, across: bool) -> None:
    """Signs and a sum, of rows alone and with an operand that lies across them."""

    def signs(inputs: Inputs) -> list[Node]:
        x = Tensor._of(inputs(3, 64, length))
        x = x + Tensor._of(inputs(3, length, 64)).transpose(1, 2) if across else x * 2
        return [(x <= 0).node, x.relu().sum(-1).node]

    for kernel in plan_of(signs).kernels:
        text = render(lower(kernel, GOLDEN))
        assert "gather" not in text and "scatter" not in text
    agree(signs)


@pytest.mark.parametrize("times, gathers", [(2, 0), (4, 0), (3, 1)])
def test_an_operand_of_which_each_element_is_read_in_turn_is_transposed(
    times: int, gathers: int
) -> None:
    """As the gradient of pooling, where a convolution has stored its result with channels last.

    Blocks of 16 do not begin where thirds do; then elements are gathered, not lines.
    """
    size = 48

    def sums(inputs: Inputs) -> list[Node]:
        few = size // times
        x, y = Tensor._of(inputs(2, size, size, 16)), Tensor._of(inputs(2, 16, few, 1, few, 1))
        y = y.expand(2, 16, few, times, few, times).reshape(2, 16, size, size)
        return [(x.permute(0, 3, 1, 2) * y).sum((2, 3)).node]

    (kernel,) = plan_of(sums).kernels
    assert render(lower(kernel, GOLDEN)).count("= call <16 x float> @llvm.masked.gather") == gathers
    agree(sums)


@pytest.mark.parametrize("channels", [12, 16, 24, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8"])
def test_pooling_of_channels_that_are_stored_last(channels: int, dtype: str) -> None:
    """Vectors run along the channels; results, also those that others read, go out in squares."""

    def pooled(inputs: Inputs) -> list[Node]:
        n = var("n", 1, 6)
        x = Tensor._of(inputs(n, 18, 22, channels, dtype=getattr(dtypes, dtype)))
        x = x.permute(0, 3, 1, 2)
        y = x.max_pool2d(2)
        ties = (x.reshape(n, channels, 9, 2, 11, 2) == y.reshape(n, channels, 9, 1, 11, 1))
        return [y.node, ties.sum((3, 5)).node]

    (kernel,) = plan_of(pooled).kernels
    text = render(lower(kernel, GOLDEN))
    assert "gather" not in text and "scatter" not in text
    agree(pooled, n=3)


def test_windows_of_narrow_images_are_read_row_by_row() -> None:
    """Twelve results a row, of windows of 14 pixels: what the next row reads does not follow."""

    def pooled(inputs: Inputs) -> list[Node]:
        return [Tensor._of(inputs(4, 8, 14, 14)).max_pool2d(3, stride=1).node]

    (kernel,) = plan_of(pooled).kernels
    loops = [one for one in walk(lower(kernel, GOLDEN).parallel) if isinstance(one, Loop)]
    assert [one.trips for one in loops if one.kind == "lanes"] == [12]
    agree(pooled)


def test_windows_that_lie_along_images_are_read_along_them() -> None:
    """Beside one operand with channels last: that is gathered, not each place of the windows."""

    def sums(inputs: Inputs) -> list[Node]:
        x, y = Tensor._of(inputs(2, 24, 18, 18)), Tensor._of(inputs(2, 16, 16, 24))
        return [(x.max_pool2d(3, stride=1) + y.permute(0, 3, 1, 2)).node]

    (kernel,) = plan_of(sums).kernels
    assert render(lower(kernel, GOLDEN)).count("= call <16 x float> @llvm.masked.gather") <= 1
    agree(sums)


@pytest.mark.parametrize("shape", [(32, 24, 9), (20, 13, 3), (17, 100, 5), (40, 7, 12)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_short_last_axis_fills_vectors_with_the_axis_before(
    shape: tuple[int, int, int], dtype: str
) -> None:
    """As the update of a convolution's weight, whose gradient is in the opposite order."""
    rows, columns, short = shape

    def update(inputs: Inputs) -> list[Node]:
        w = Tensor._of(inputs(rows, columns, short, dtype=getattr(dtypes, dtype)))
        g = Tensor._of(inputs(short, columns, rows, dtype=getattr(dtypes, dtype)))
        return [(w - g.permute(2, 1, 0)).node]

    (kernel,) = plan_of(update).kernels
    nest = lower(kernel, GOLDEN)
    assert "gather" not in render(nest)
    lanes = [one for one in walk(nest.parallel) if isinstance(one, Loop) and one.kind == "lanes"]
    assert all(one.trips > short for one in lanes)
    agree(update)


def test_several_short_axes_are_joined_until_they_fill_a_vector() -> None:
    """As the phases of an image that a strided convolution reads."""

    def phases(inputs: Inputs) -> list[Node]:
        x = Tensor._of(inputs(6, 5, 2, 5, 2, 40))
        return [g.contiguous(x.permute(5, 0, 1, 3, 2, 4).node)]

    (kernel,) = plan_of(phases).kernels
    text = render(lower(kernel, GOLDEN))
    assert "gather" not in text and "scatter" not in text
    agree(phases)


def test_sums_across_an_operand_that_lies_along_them_are_not_sums_of_columns() -> None:
    def sums(inputs: Inputs) -> list[Node]:
        x, y = Tensor._of(inputs(8, 512, 32)), Tensor._of(inputs(8, 32, 512))
        return [(x + y.transpose(1, 2)).relu().sum(-1).node]

    (kernel,) = plan_of(sums).kernels
    nest = lower(kernel, GOLDEN)
    assert "gather" not in render(nest) and not nest.scratch
    agree(sums)


def test_stages_share_passes_and_one_value_for_each_row_is_in_a_register() -> None:
    """The maximum; exponentials with their sum; quotients."""
    plan = plan_of(lambda new: [softmax(transpose(new(40, 1000)), 1)])
    nest = lower(plan.kernels[0], GOLDEN)
    loops = [one for one in nest.parallel.body if isinstance(one, Loop)]
    assert [len(one.body) for one in loops[:2]] == [1, 2] and len(loops) == 3
    assert [array.size for array, _ in nest.scratch] == [40 * 16]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("n", [50, 100, 250])
def test_values_on_other_processors(machine: str, n: int) -> None:
    graph = softmax_of_columns(n)
    generator = np.random.default_rng(n)
    values = {slot: generator.standard_normal((n, n), dtype=np.float32) for slot in range(2)}
    expected = evaluate(graph.roots, values, {})
    for got, wanted in zip(run(graph, values, machine), expected, strict=True):
        assert difference(got, wanted, NEAR, (), 1) is None


@pytest.mark.parametrize("shape", [(17, 33), (100, 96), (33, 130), (64, 64), (250, 19)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_softmax_along_columns_and_its_gradient(shape: tuple[int, int], dtype: str) -> None:
    generator = np.random.default_rng(7)
    x, g = generator.standard_normal(shape), generator.standard_normal(shape[::-1])
    given, gradient = Tensor(x).cast(dtype).realize(), Tensor(g).cast(dtype).realize()
    x, g = given.double().numpy(), gradient.double().numpy()
    y = given.T.softmax(-1)
    (found,) = y.gradient(given, gradient=gradient)
    Tensor.realize(y, found)
    p = probabilities(x.T)
    expected = (p * (g - (g * p).sum(-1, keepdims=True))).T
    near = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 0.03}[dtype]
    assert np.abs(y.double().numpy() - p).max() <= near
    assert np.abs(found.double().numpy() - expected).max() <= near


def test_windows_of_an_image() -> None:
    x = np.random.default_rng(8).standard_normal((2, 16, 16, 24)).astype(np.float32)
    parts = Tensor(x).reshape(2, 16, 2, 8, 3, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, 16)
    wanted = x.reshape(2, 16, 2, 8, 3, 8).transpose(0, 2, 4, 3, 5, 1).reshape(-1, 64, 16)
    assert np.abs(parts.softmax(-1).numpy() - probabilities(wanted)).max() <= 1e-6


def test_vectors_run_across_the_phases_of_strided_windows() -> None:
    """Each element of a mean's gradient is read by two neighbours: that is no gather, and better
    than vectors along the two overlapping windows.
    """

    def gradient(inputs: Inputs) -> list[Node]:
        x = Tensor._of(inputs(2, 4, 56, 56))
        y = x.avg_pool2d(3, stride=2, padding=1)
        seed = Tensor._of(inputs(*y.shape))
        return [y.gradient(x, gradient=seed)[0].node]

    nest = lower(plan_of(gradient).kernels[-1], GOLDEN)
    lanes = [one for one in walk(nest.parallel) if isinstance(one, Loop) and one.kind == "lanes"]
    assert all(one.step >= 16 for one in lanes) and (lanes or nest.parallel.step >= 16)


@pytest.mark.parametrize("width", [28, 56, 112])
def test_strided_windows_are_picked_from_vectors(width: int) -> None:
    """Also by the last vector of an image's row, and in the gradient; nothing is gathered."""

    def pooled(inputs: Inputs) -> list[Node]:
        x = Tensor._of(inputs(4, 16, 28, width))
        y = x.max_pool2d(3, stride=2, padding=1)
        seed = Tensor._of(inputs(*y.shape))
        return [y.node, y.gradient(x, gradient=seed)[0].node, x.avg_pool2d(2).node]

    for kernel in plan_of(pooled).kernels:
        assert "gather" not in render(lower(kernel, GOLDEN))


def test_sums_of_wide_windows_stay_in_registers() -> None:
    def pooled(inputs: Inputs) -> list[Node]:
        return [Tensor._of(inputs(4, 16, 112, 112)).max_pool2d(3, stride=1, padding=1).node]

    (kernel,) = plan_of(pooled).kernels
    assert not lower(kernel, GOLDEN).scratch


@pytest.mark.parametrize("size", [7, 14, 28])
def test_vectors_run_across_rows_of_small_images(size: int) -> None:
    """A vector's windows are in several rows of an image: their elements are near, too."""

    def pooled(inputs: Inputs) -> list[Node]:
        x = Tensor._of(inputs(4, 16, size, size))
        return [x.max_pool2d(3, stride=2, padding=1).node]

    nest = lower(plan_of(pooled).kernels[0], GOLDEN)
    lanes = [one for one in walk(nest.parallel) if isinstance(one, Loop) and one.kind == "lanes"]
    assert lanes and all(one.step >= 16 for one in lanes)


@pytest.mark.parametrize("columns", [4, 5, 7])
@pytest.mark.parametrize("machine", MACHINES)
def test_short_rows_are_transposed_if_vectors_have_as_many_elements(
    machine: str, columns: int
) -> None:
    """A copy reads them once, not once for each column."""

    def turned(inputs: Inputs, rows: int = 203) -> list[Node]:
        x, y = Tensor._of(inputs(rows, columns)), Tensor._of(inputs(columns, rows))
        return [(x.T * 2 + y).node]

    def tiled(rows: int) -> bool:
        (kernel,) = plan_of(lambda inputs: turned(inputs, rows)).kernels
        found = walk(lower(kernel, GOLDEN).parallel)
        return any(isinstance(one, Loop) and one.transpose for one in found)

    assert tiled(203) == (columns > 4) and not tiled(3)
    agree(turned, machine)
