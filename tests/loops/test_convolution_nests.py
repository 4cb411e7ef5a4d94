"""The loops of convolutions: prefetches, the order of reads, and sums."""

from __future__ import annotations

import re
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
    """Convolutions as plain sums, without Winograd's algorithm."""
    with Context(WINOGRAD=0):
        yield


def convolution(
    of: str, batch: int, channels: int, extent: int, out: int, stride: int = 1, kernel: int = 3
) -> Build:
    """A convolution of square images with zeros around them, or one of its gradients.

    With a kernel of 5 × 5, or fewer than 7 pixels a row, images are copied.
    """

    def build(inputs: Inputs) -> list[Node]:
        x, w = inputs(batch, channels, extent, extent), inputs(out, channels, kernel, kernel)
        image, weight = Tensor._of(x), Tensor._of(w)
        y = image.conv2d(weight, stride=stride, padding=kernel // 2)
        if of == "forward":
            return [y.node]
        seed = Tensor._of(inputs(*y.shape))
        return [y.gradient(image if of == "input" else weight, gradient=seed)[0].node]

    return build


def nests_of(build: Build) -> list[Nest]:
    return [lower(kernel, target_of("avx512")) for kernel in plan_of(build).kernels]


def product_of(build: Build) -> Nest:
    """The nest of the product, which follows the copy of the image."""
    kernels = plan_of(build).kernels
    assert [kernel.kind for kernel in kernels] == ["rows", "contraction"]
    return nests_of(build)[1]


@pytest.mark.parametrize("channels, extent, stride, out, follows", [
    (64, 56, 1, 64, False), (64, 12, 2, 64, True), (32, 28, 1, 64, False),
    (128, 12, 2, 256, True),
])  # fmt: skip
def test_the_next_row_of_an_image_is_asked_for(
    channels: int, extent: int, stride: int, out: int, follows: bool
) -> None:
    """With few channels the loop over k is too short to prefetch its own rows.

    The next row of the image is prefetched instead; or (follows) what is next in memory, if all
    images are read for one panel after the other.
    """
    nest = product_of(convolution("forward", 8, channels, extent, out, stride, kernel=5))
    pixels = 32 if follows else stride * (extent + 4) * channels
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
    """48 tiles read a panel of 32 columns: each prefetches one line of the next panel, not all."""
    nest = product_of(convolution("forward", 8, 256, 6, 1024))
    loops = [one for one in walk(nest.parallel) if isinstance(one, Loop) and one.kind == "unroll"]
    hints = [one for one in loops if one.variable.name.startswith("f") and one.body]
    assert [one.stops for one in hints] == [(1,)]


@pytest.mark.parametrize("batch, extent, tasks", [(8, 28, 8), (4, 32, 8), (1, 28, 14), (2, 13, 26)])
def test_rows_of_images_share_a_copy_of_weights(batch: int, extent: int, tasks: int) -> None:
    """All rows of an image, or an equal part if there are few images; 13 rows have no such part."""
    build = convolution("forward", batch, 32, extent, 32, kernel=5)
    assert product_of(build).parallel.trips == tasks
    agree(build)


@pytest.mark.parametrize("channels", [128, 512])
def test_sums_over_places_and_channels_are_in_two_levels(channels: int) -> None:
    """Blocks of 256 terms are few: they are added to the sum, not first to a sum for each place."""
    nest = product_of(convolution("forward", 8, channels, 6, 64))
    stores = (one for one in walk(nest.parallel) if isinstance(one, Store))
    names = {one.array.name for one in stores if one.array.in_registers}
    assert len([name for name in names if name.startswith("tile")]) == 2


def test_sums_that_wait_on_the_stack_are_whole_lines() -> None:
    """Sums of one level are spilled, as aligned vectors, while the other's are in registers."""
    nest = product_of(convolution("forward", 8, 64, 56, 64, kernel=5))
    lines = compiler_of("avx512").assembly(render(nest)).splitlines()
    spills = [line.split()[0] for line in lines if "zmm" in line and line.endswith("(%rsp)")]
    assert spills and set(spills) <= {"vmovaps", "vmovapd"}


@pytest.mark.parametrize("kernel, stride", [(3, 1), (5, 2), (7, 2)])
def test_sums_stay_in_registers_where_columns_have_conditions(kernel: int, stride: int) -> None:
    """In the loop over channels; so it is not unrolled if columns on both sides have some."""
    build = convolution("forward", 8, 32, 28 * stride, 64, stride, kernel)
    (nest,) = (nest for nest in nests_of(build) if nest.name == "contraction")
    text = compiler_of("avx512").assembly(render(nest))
    parts = [part.split("\n\tj")[0] for part in re.split(r"^\.L.*:$", text, flags=re.M)]
    (loop,) = (part for part in parts if part.count("vfmadd") >= 28)
    assert loop.count("(%rsp)") <= 4


def test_an_image_is_copied_row_by_row() -> None:
    """A row with all its channels, so that each copy is one run of memory."""
    kernel, *_ = plan_of(convolution("forward", 8, 64, 56, 64, kernel=5)).kernels
    copy = lower(kernel, target_of("avx512"))
    (store,) = (one for one in walk(copy.parallel) if isinstance(one, Store))
    rows = [substitute(store.index, {copy.parallel.variable: n}) for n in range(61)]
    assert [row - rows[0] for row in rows] == [60 * 64 * n for n in range(61)]
    assert isinstance(vectors := copy.parallel.body[0], Loop)
    assert vectors.kind == "lanes" and vectors.stops[0] - vectors.start == 64


@pytest.mark.parametrize("channels, asks", [(64, True), (256, False)])
def test_the_pixel_below_is_asked_for(channels: int, asks: bool) -> None:
    """In a gradient by weight, whose tiles read some channels of copied images."""
    build = convolution("weight", 8, channels, 28, channels, kernel=5)
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
        assert hint.index - substitute(load.index, {row: row.high}) == 32 * channels


@pytest.mark.parametrize("extent, whole", [(7, True), (5, True), (2, False)])
def test_a_third_of_a_vector_of_a_row_is_transposed(extent: int, whole: bool) -> None:
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
    """No image is rearranged; with a stride, only its selected pixels are copied side by side."""

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
    """Loaded bounds of a loop over places skip rows of zeros, unless a panel is not finite."""
    nests = nests_of(convolution(of, 8, channels, extent, channels))
    loops = (one for nest in nests for one in walk(nest.parallel) if isinstance(one, Loop))
    found = {one.variable.name[0] for one in loops if expr.values_in(one.start)}
    assert found == {"k", "z"}  # z: adds products of zeros with a panel that is not finite


@pytest.mark.parametrize(("machine", "of", "sizes", "number"), pairwise(
    MACHINES, OF, [(48, 14, 1), (32, 17, 2), (16, 26, 2)], [np.inf, np.nan]))  # fmt: skip
def test_zeros_around_images_meet_what_is_not_finite(
    machine: str, of: str, sizes: tuple[int, int, int], number: float
) -> None:
    """0·∞ is NaN, also in an image's first and last row; other columns are unchanged."""
    channels, extent, stride = sizes
    build = convolution(of, 2, channels, extent, 80, stride)
    _, inputs = graph_of(build)
    values = values_for(inputs, 1)
    values[1][3, 5, 0, 1] = values[1][40, 7, 2, 2] = -number
    if of != "forward":
        values[2][1, 4, 0, 3] = values[2][0, 41, -1, -1] = number
    agree(build, machine, values=values)


def test_weights_are_arranged_once_for_all_remainders_of_a_strided_gradient() -> None:
    """Each of the four products packs its part along the sums; two of them skip rows of zeros."""
    build = convolution("input", 8, 64, 28, 128, 2)
    kinds = [kernel.kind for kernel in plan_of(build).kernels]
    assert kinds == ["rows", *["contraction"] * 4]
    loops = [[one for one in walk(nest.parallel) if isinstance(one, Loop)]
             for nest in nests_of(build)]  # fmt: skip
    assert sum(any(expr.values_in(one.start) for one in found) for found in loops) == 2
    assert all(any(one.transpose for one in found) for found in loops)


@pytest.mark.parametrize("extent", [28, 29, 31])
def test_what_a_strided_gradient_is_made_of_is_stored_in_turn(extent: int) -> None:
    """Each product stores every second pixel of every second row, by masked vectors."""
    build = convolution("input", 8, 64, extent, 128, 2)
    products = [nest for nest in nests_of(build) if nest.name == "contraction"]
    assert len(products) == 4
    assert not any("scatter" in render(nest) for nest in products)
    # (with an odd extent, the result is less than all pieces, and copied from them)
    whole = plan_of(build).kernels[-1].kind == "contraction"
    assert whole is (extent % 2 == 0)
    agree(build)


@pytest.mark.parametrize("of", OF)
def test_images_of_a_strided_convolution_are_read_where_they_lie(of: str) -> None:
    """Images are not copied; rows outside are skipped, and columns outside have a guard."""
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
    """Padding on each side, or on none; a tile's pixels are neighbours in memory, or are not."""
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
    """Neighbouring results are side by side, every second element, or too far apart for that."""

    def build(inputs: Inputs) -> list[Node]:
        x, w = Tensor._of(inputs(2, 40, 9, 19)), Tensor._of(inputs(40, 48, 4, 4))
        bias = Tensor._of(inputs(48))
        return [x.conv_transpose2d(w, bias, stride=stride, padding=1).node]

    agree(build)


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16, dtypes.float64])
def test_rows_of_zeros_in_other_dtypes(dtype: DType) -> None:
    """A panel is checked for infinities and NaN in its own dtype."""

    def build(inputs: Inputs) -> list[Node]:
        x, w = inputs(2, 16, 16, 24, dtype=dtype), inputs(3, 3, 40, 24, dtype=dtype)
        around = Tensor._of(x).pad([None, (1, 1), (1, 1), None]).contiguous()
        windows = around._windows(((1, 3, 1, 1), (2, 3, 1, 1))).permute(0, 1, 2, 4, 5, 3)
        weights = Tensor._of(w).permute(0, 1, 3, 2)
        return [(windows.unsqueeze(-1) * weights).sum((3, 4, 5)).node]

    found = [one for nest in nests_of(build) for one in walk(nest.parallel)]
    assert any(expr.values_in(one.start) for one in found if isinstance(one, Loop))
    agree(build)
