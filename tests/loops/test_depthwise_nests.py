"""Convolutions of each channel by itself: their number of kernels, and their loops."""

from __future__ import annotations

import numpy as np
import pytest
from schedule.agreement import agree
from schedule.machine import target_of
from schedule.programs import LENGTH, Build, Inputs, plan_of

from minigrad import Tensor
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.loops.nest import Loop, Nest, Store, loops_in, walk
from minigrad.loops.recipes import lower
from minigrad.schedule import expr

SHAPE = (4, 9, 20, 24)


def convolution(
    of: str, stride: int, size: int = 3, shape: tuple[int, int, int, int] = SHAPE
) -> Build:  # fmt: skip
    def build(inputs: Inputs) -> list[Node]:
        x, w = (Tensor._of(inputs(*one)) for one in (shape, (shape[1], 1, size, size)))
        y = x.conv2d(w, stride=stride, padding=size // 2, groups=shape[1])
        if of == "forward":
            return [y.node]
        seed = Tensor._of(inputs(*y.shape))
        return [y.gradient(x if of == "input" else w, gradient=seed)[0].node]

    return build


def nest_of(build: Build, machine: str = "avx512") -> Nest:
    return lower(plan_of(build).kernels[0], target_of(machine))


@pytest.mark.parametrize("size", [2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("of", ["forward", "input", "weight"])
def test_images_are_never_copied_in_memory(of: str, stride: int, size: int) -> None:
    """One kernel; a gradient by weight has another one, which sums over images."""
    plan = plan_of(convolution(of, stride, size))
    if (of, stride) != ("input", 3):  # nine phases, or those of windows that are apart
        assert len(plan.kernels) == 1 + (of == "weight")
        assert plan.arena_bytes <= 4 * 4 * 9 * size**2 + 64
    (expected,) = agree(convolution(of, stride, size))
    assert np.abs(expected).max() > 0


def test_places_of_a_window_are_summed_at_once() -> None:
    """Each element of the gradient is loaded once for all places of a window."""
    for size in (3, 5):
        nest = nest_of(convolution("weight", 1, size))
        sums = {one.array.size for one in walk(nest.parallel) if isinstance(one, Store)}
        assert size**2 in sums, nest
    nest = nest_of(convolution("weight", 1, 7))
    sums = {one.array.size for one in walk(nest.parallel) if isinstance(one, Store)}
    assert {4 * 7, 3 * 7} <= sums, nest


def test_a_varying_number_of_images_is_an_axis_of_its_own() -> None:
    """Rows of a tile are a known number, even if those of all images are adjacent in memory."""
    def build(inputs: Inputs) -> list[Node]:
        shape = (LENGTH, 6, 5, 8, 32)
        x, w = inputs(*shape), g.reshape(inputs(8, 32), (1, 1, 1, 8, 32))
        return [g.reduce(Op.SUM, g.elementwise(Op.MUL, x, g.expand(w, shape)), (3,))]

    loops = nest_of(build)
    assert any(one.kind == "lanes" and one.step == 16 for one in loops_in((loops.parallel,)))
    agree(build)


@pytest.mark.parametrize(
    "machine, rows, size",
    [("avx512", 7, 3), ("avx512", 7, 4), ("avx512", 7, 7), ("avx2", 3, 4), ("avx2", 3, 7)],
)
@pytest.mark.parametrize("of", ["forward", "input"])
def test_rows_of_an_image_share_what_they_read(of: str, size: int, machine: str, rows: int) -> None:
    """The rows of a tile are unrolled, at each vertical place of a window.

    Nine terms suffice if an image is no wider than a tile, here with AVX-512.
    """
    nest = nest_of(convolution(of, 1, size), machine)
    found = [one for one in walk(nest.parallel) if isinstance(one, Loop) and one.kind == "unroll"]
    inner = [loop for loop in found if loop.stops == (size,) and isinstance(loop.body[0], Loop)]
    assert (size, rows) in {(size, loop.body[0].trips) for loop in inner}, nest


@pytest.mark.parametrize("n", [1, 5])
def test_images_are_never_copied_if_their_number_varies(n: int) -> None:
    """Also not in a general program, as for the last batch of an epoch."""

    def build(inputs: Inputs) -> list[Node]:
        images = [inputs(LENGTH, 9, 20, 24), inputs(LENGTH, 9, 20, 24)]
        x, seed = map(Tensor._of, images)
        w = Tensor._of(inputs(9, 1, 3, 3))
        return [x.conv2d(w, padding=1, groups=9).gradient(w, gradient=seed)[0].node]

    assert plan_of(build).arena_bytes <= 4 * LENGTH.high * 9 * 9 + 64
    agree(build, n=n)


def test_two_gradients_of_one_kernel() -> None:
    def build(inputs: Inputs) -> list[Node]:
        x, w = Tensor._of(inputs(1, 3, 8, 33)), Tensor._of(inputs(1, 3, 2, 2))
        y = x[:, :2].conv2d(w[:, :2], stride=2) + x[:, 2:].conv2d(w[:, 2:], stride=2)
        loss = (y * 0.3).tanh().square().mean()
        return [y.node, *(one.node for one in loss.gradient(x, w))]

    agree(build)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("of", ["forward", "weight"])
def test_vectors_do_not_lie_along_a_window(of: str, size: int) -> None:
    """A window's row has only three or five elements; vectors of an image may be interleaved."""
    nest = nest_of(convolution(of, 2, size))
    lanes = [one for one in walk(nest.parallel) if isinstance(one, Loop) and one.kind == "lanes"]
    assert lanes and all(one.trips > size for one in lanes), nest


@pytest.mark.parametrize("of, stride, image", [("weight", 1, 7), ("forward", 2, 14)])
def test_vectors_lie_along_small_images(of: str, stride: int, image: int) -> None:
    """Seven columns of an image fill more of a vector than three of a window.

    The copy of the image has half vectors, too.
    """
    build = convolution(of, stride, 3, (4, 24, image, image))
    found = [one for one in walk(nest_of(build).parallel) if isinstance(one, Loop)]
    lanes = {one.trips: one.step for one in found if one.kind == "lanes"}
    assert image // stride in lanes and 3 not in lanes
    assert set(lanes.values()) == {8}
    agree(build)


def test_a_result_read_in_turn_is_not_streamed() -> None:
    """A streamed vector may begin anywhere: it would not be known which element each lane reads."""
    stores = {}
    for of in ("forward", "input"):
        nest = nest_of(convolution(of, 2), "avx512 streaming")
        found = [one for one in walk(nest.parallel) if isinstance(one, Store)]
        stores[of] = [one for one in found if one.array.space == "buffer"]
    (result,) = stores["input"]
    assert not result.streaming and any(
        "//" in str(load.index) for load in expr.loads(result.value)
    )


def test_squares_inside_of_loops_over_squares(compiled: str, reference: str) -> None:
    """Images one pixel wide: both the loop over rows and that inside of it store transposed."""
    values = np.random.default_rng(0).standard_normal
    given = [values(shape, np.float32) for shape in ((2, 33, 32, 1), (33, 1, 3, 3))]
    found = []
    for device in (compiled, reference):
        x, w = (Tensor(one).to(device).requires_grad_() for one in given)
        y = x.conv2d(w, padding=2, groups=33).relu().cumsum(3)
        found.append([one.numpy() for one in y.square().sum().gradient(x, w)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())
