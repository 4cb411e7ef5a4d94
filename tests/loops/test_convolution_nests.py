"""What the loops of convolutions do: what they ask for, in which order they read, what they add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pairwise import pairwise
from schedule.agreement import agree
from schedule.machine import MACHINES, compiler_of, target_of
from schedule.programs import Build, Inputs, graph_of, plan_of, values_for

from minigrad import Context, Tensor
from minigrad.dtype import DType, dtypes
from minigrad.graph.node import Node
from minigrad.graph.substitution import substitute, variables
from minigrad.loops.nest import Loop, Nest, Prefetch, Store, walk
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.schedule import expr

OF = ("forward", "input", "weight")


@pytest.fixture(autouse=True)
def sums() -> Iterator[None]:
    """Convolutions as the sums that they are, not by fewer products."""
    with Context(WINOGRAD=0):
        yield


def convolution(
    of: str, batch: int, channels: int, extent: int, out: int, stride: int = 1
) -> Build:
    """3 × 3 with zeros around square images, or its gradient."""

    def build(inputs: Inputs) -> list[Node]:
        x, w = inputs(batch, channels, extent, extent), inputs(out, channels, 3, 3)
        image, weight = Tensor._of(x), Tensor._of(w)
        y = image.conv2d(weight, stride=stride, padding=1)
        if of == "forward":
            return [y.node]
        seed = Tensor._of(inputs(*y.shape))
        return [y.gradient(image if of == "input" else weight, gradient=seed)[0].node]

    return build


def nests_of(build: Build) -> list[Nest]:
    return [lower(kernel, target_of("avx512")) for kernel in plan_of(build).kernels]


def product_of(build: Build) -> Nest:
    """The nest of the product, which comes behind the copy of the image."""
    kernels = plan_of(build).kernels
    assert [kernel.kind for kernel in kernels] == ["rows", "contraction"]
    return nests_of(build)[1]


@pytest.mark.parametrize("channels, extent, stride, out, follows", [
    (64, 56, 1, 64, False), (64, 22, 2, 64, False), (32, 28, 1, 64, False),
    (128, 22, 2, 256, True),
])  # fmt: skip
def test_the_next_row_of_an_image_is_asked_for(
    channels: int, extent: int, stride: int, out: int, follows: bool
) -> None:
    """Few channels are no long loop over k, whose own rows could be asked for.

    But what follows them is, where all images are read for one panel after the other.
    """
    nest = product_of(convolution("forward", 8, channels, extent, out, stride))
    pixels = 32 if follows else stride * (extent + 2) * channels
    found = list(walk(nest.parallel))
    (hint,) = (one for one in found if isinstance(one, Prefetch))
    (load,) = {
        load for one in found if isinstance(one, Store) for load in expr.loads(one.value)
        if load.array is hint.array
    }  # fmt: skip
    (tile,) = (one.variable for one in found if isinstance(one, Loop) and hint in one.body)
    (row,) = (a for a in variables(load.index) if a.name == tile.name)
    within = {a: 0 for a in variables(load.index) if a.name.startswith("v")}  # a line of k
    assert len(within) == 2
    at = substitute(load.index, {row: tile.index, **within})
    assert hint.index - at == pixels


def test_tiles_of_all_images_share_what_is_asked_for_of_the_next_panel() -> None:
    """56 tiles read a panel, of 32 columns: each asks for one, not for all of them."""
    nest = product_of(convolution("forward", 8, 256, 7, 1024))
    loops = [one for one in walk(nest.parallel) if isinstance(one, Loop) and one.kind == "unroll"]
    hints = [one for one in loops if one.variable.name.startswith("f") and one.body]
    assert [one.stops for one in hints] == [(1,)]


@pytest.mark.parametrize("batch, extent, tasks", [(8, 28, 8), (4, 32, 8), (1, 28, 14), (2, 13, 26)])
def test_rows_of_images_share_a_copy_of_weights(batch: int, extent: int, tasks: int) -> None:
    """All of an image's, or an equal part of them where images are few; of 13 there is none."""
    build = convolution("forward", batch, 32, extent, 32)
    assert product_of(build).parallel.trips == tasks
    agree(build)


@pytest.mark.parametrize("channels", [128, 512])
def test_sums_over_places_and_channels_are_in_two_levels(channels: int) -> None:
    """Blocks of 256 terms are few: they are added to the sum, not to one of each place first."""
    nest = product_of(convolution("forward", 8, channels, 7, 64))
    stores = (one for one in walk(nest.parallel) if isinstance(one, Store))
    names = {one.array.name for one in stores if one.array.in_registers}
    assert len([name for name in names if name.startswith("tile")]) == 2


def test_sums_that_wait_on_the_stack_are_whole_lines() -> None:
    """Those of one level while the other's are in registers."""
    nest = product_of(convolution("forward", 8, 64, 56, 64))
    lines = compiler_of("avx512").assembly(render(nest)).splitlines()
    spills = [line.split()[0] for line in lines if "zmm" in line and line.endswith("(%rsp)")]
    assert spills and set(spills) <= {"vmovaps", "vmovapd"}


def test_an_image_is_copied_row_by_row() -> None:
    """All channels of it: results are one run of memory then."""
    kernel, *_ = plan_of(convolution("forward", 8, 64, 56, 64)).kernels
    copy = lower(kernel, target_of("avx512"))
    (store,) = (one for one in walk(copy.parallel) if isinstance(one, Store))
    rows = [substitute(store.index, {copy.parallel.variable: n}) for n in range(59)]
    assert [row - rows[0] for row in rows] == [58 * 64 * n for n in range(59)]
    assert isinstance(vectors := copy.parallel.body[0], Loop)
    assert vectors.kind == "lanes" and vectors.stops[0] - vectors.start == 64


@pytest.mark.parametrize("channels, asks", [(64, True), (256, False)])
def test_the_pixel_below_is_asked_for(channels: int, asks: bool) -> None:
    """Of a gradient by weight, where a tile reads some channels of images that were copied."""
    build = convolution("weight", 8, channels, 28, channels)
    nest = next(nest for nest in nests_of(build) if nest.name == "contraction")
    found = list(walk(nest.parallel))
    hints = [one for one in found if isinstance(one, Prefetch)]
    assert bool(hints) == asks
    for hint in hints:
        (k,) = (one for one in found if isinstance(one, Loop) and hint in one.body)
        load = next(
            load for one in walk(k) if isinstance(one, Store) for load in expr.loads(one.value)
            if load.array is hint.array
        )  # fmt: skip
        (row,) = (a for a in variables(load.index) - variables(hint.index))
        assert hint.index - substitute(load.index, {row: row.high}) == 30 * channels


@pytest.mark.parametrize("extent, whole", [(7, True), (5, False)])
def test_half_a_vector_of_a_row_is_transposed(extent: int, whole: bool) -> None:
    copy, *_ = nests_of(convolution("forward", 2, 64, extent, 16))
    assert any(isinstance(one, Loop) and one.transpose for one in walk(copy.parallel)) is whole


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("channels, extent, stride", [(48, 14, 1), (32, 17, 2), (80, 9, 1)])
def test_their_results(of: str, channels: int, extent: int, stride: int) -> None:
    agree(convolution(of, 2, channels, extent, 40, stride))


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("stride", [1, 2])
def test_their_results_in_wide_tiles(of: str, stride: int) -> None:
    agree(convolution(of, 2, 64, 32 * stride, 64, stride), "wide tiles")


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_of_one_pixel_multiplies_images_as_they_lie(stride: int) -> None:
    """No image is arranged: with a stride, its pixels are put side by side only."""

    def build(inputs: Inputs) -> list[Node]:
        x, w = inputs(2, 20, 24 * stride, 24 * stride), inputs(33, 20, 1, 1)
        bias = Tensor._of(inputs(33))
        return [Tensor._of(x).conv2d(Tensor._of(w), bias, stride=stride).relu().node]

    plan = plan_of(build)
    kinds = [kernel.kind for kernel in plan.kernels]
    assert kinds == ["rows"] * (stride - 1) + ["contraction"]
    assert plan.arena_bytes == (stride - 1) * 4 * 2 * 20 * 24 * 24
    agree(build)


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("channels, extent", [(256, 14), (64, 28), (512, 7)])
def test_rows_of_zeros_around_images_are_left_out(of: str, channels: int, extent: int) -> None:
    """A loop over places has bounds, which are loaded: all of it, where a panel is not finite."""
    nests = nests_of(convolution(of, 8, channels, extent, channels))
    loops = (one for nest in nests for one in walk(nest.parallel) if isinstance(one, Loop))
    found = {one.variable.name[0] for one in loops if expr.values_in(one.start)}
    assert found == {"k", "z"}  # and a loop that adds what a panel that is not finite gives


@pytest.mark.parametrize(("machine", "of", "sizes", "number"), pairwise(
    MACHINES, OF, [(48, 14, 1), (32, 17, 2), (16, 26, 2)], [np.inf, np.nan]))  # fmt: skip
def test_zeros_around_images_meet_what_is_not_finite(
    machine: str, of: str, sizes: tuple[int, int, int], number: float
) -> None:
    """0·∞ is NaN, in the first and last row of an image too; other columns are what they were."""
    channels, extent, stride = sizes
    build = convolution(of, 2, channels, extent, 80, stride)
    _, inputs = graph_of(build)
    values = values_for(inputs, 1)
    values[1][3, 5, 0, 1] = values[1][40, 7, 2, 2] = -number
    if of != "forward":
        values[2][1, 4, 0, 3] = values[2][0, 41, -1, -1] = number
    agree(build, machine, values=values)


def test_weights_are_arranged_once_for_all_remainders_of_a_strided_gradient() -> None:
    """Each of four products packs its part of them along the sums; two see rows of zeros."""
    build = convolution("input", 8, 64, 28, 128, 2)
    kinds = [kernel.kind for kernel in plan_of(build).kernels]
    assert kinds == ["rows", *["contraction"] * 4]
    loops = [[one for one in walk(nest.parallel) if isinstance(one, Loop)]
             for nest in nests_of(build)]  # fmt: skip
    assert sum(any(expr.values_in(one.start) for one in found) for found in loops) == 2
    assert all(any(one.transpose for one in found) for found in loops)


@pytest.mark.parametrize("extent", [28, 29, 31])
def test_what_a_strided_gradient_is_made_of_is_stored_in_turn(extent: int) -> None:
    """Each product stores every second pixel of every second row, by vectors with a mask."""
    build = convolution("input", 8, 64, extent, 128, 2)
    products = [nest for nest in nests_of(build) if nest.name == "contraction"]
    assert len(products) == 4
    assert not any("scatter" in render(nest) for nest in products)
    # (one that is not all of the pieces is put together from them)
    whole = plan_of(build).kernels[-1].kind == "contraction"
    assert whole is (extent % 2 == 0)
    agree(build)


@pytest.mark.parametrize("of", OF)
def test_images_of_a_strided_convolution_are_read_where_they_lie(of: str) -> None:
    """No copy of them; rows outside are left out, and columns have a condition."""
    build = convolution(of, 8, 64, 56, 128, 2)
    others = [kernel for kernel in plan_of(build).kernels if kernel.kind == "rows"]
    assert all(stage.size <= 128 * 64 * 9 for kernel in others for stage in kernel.stages)
    *_, nest = (nest for nest in nests_of(build) if nest.name == "contraction")
    sums = [one for one in walk(nest.parallel) if isinstance(one, Store) and one.array.in_registers]
    loads = [load for one in sums for load in expr.loads(one.value) if load.array.space == "buffer"]
    assert max(len(load.guard) for load in loads) == 1


WHERE_THEY_LIE = [  # stride, padding, dilation, kernel
    ((2, 2), (1, 1, 1, 1), 1, (3, 3)), ((2, 2), (0, 0, 0, 0), 1, (3, 3)),
    ((2, 1), (2, 3, 0, 4), 1, (4, 5)), ((1, 2), (0, 2, 3, 1), 1, (2, 3)),
    ((3, 3), (1, 0, 2, 0), 1, (3, 2)), ((2, 2), (2, 2, 2, 2), 2, (3, 3)),
    ((5, 6), (3, 3, 3, 3), 1, (7, 7)),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "of", "how"), pairwise(MACHINES, OF, WHERE_THEY_LIE), ids=str)
def test_results_of_images_that_are_read_where_they_lie(machine: str, of: str, how: Any) -> None:
    """Zeros on each side, or on none; steps that a tile's pixels are neighbours by, or are not."""
    stride, padding, dilation, kernel = how

    def build(inputs: Inputs) -> list[Node]:
        extents = [13 * step + 2 for step in stride]
        x, w = inputs(2, 16, *extents), inputs(72, 16, *kernel)
        image, weight = Tensor._of(x), Tensor._of(w)
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        y = image.conv2d(weight, **options)
        if of == "forward":
            return [y.node]
        seed = Tensor._of(inputs(*y.shape))
        return [y.gradient(image if of == "input" else weight, gradient=seed)[0].node]

    agree(build, machine)


@pytest.mark.parametrize("stride", [(2, 1), (1, 2), (2, 3), (3, 2)])
def test_results_that_are_stored_in_turn(stride: tuple[int, int]) -> None:
    """With neighbours side by side, every second one, or too far apart for that."""

    def build(inputs: Inputs) -> list[Node]:
        x, w = Tensor._of(inputs(2, 40, 9, 19)), Tensor._of(inputs(40, 48, 4, 4))
        bias = Tensor._of(inputs(48))
        return [x.conv_transpose2d(w, bias, stride=stride, padding=1).node]

    agree(build)


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16, dtypes.float64])
def test_rows_of_zeros_in_other_dtypes(dtype: DType) -> None:
    """A panel is looked through in the dtype that it has."""

    def build(inputs: Inputs) -> list[Node]:
        x, w = inputs(2, 16, 16, 24, dtype=dtype), inputs(3, 3, 40, 24, dtype=dtype)
        around = Tensor._of(x).pad([None, (1, 1), (1, 1), None]).contiguous()
        windows = around._windows(((1, 3, 1, 1), (2, 3, 1, 1))).permute(0, 1, 2, 4, 5, 3)
        weights = Tensor._of(w).permute(0, 1, 3, 2)
        return [(windows.unsqueeze(-1) * weights).sum((3, 4, 5)).node]

    found = [one for nest in nests_of(build) for one in walk(nest.parallel)]
    assert any(expr.values_in(one.start) for one in found if isinstance(one, Loop))
    agree(build)
