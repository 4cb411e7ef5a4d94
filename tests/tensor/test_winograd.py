"""Convolutions by minimal filtering (Winograd) equal direct convolutions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minigrad import Context, Device, Mesh, P, Tensor, Variable, jit, nn
from minigrad.graph.symbolic import var
from minigrad.settings import having
from minigrad.tensor import winograd

Pairs = list[tuple[int, int]]


def filtered(x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    """The convolution by Winograd's method, whether that is faster or not."""
    space = [n + sum(pair) - 2 for n, pair in zip(x.shape[2:], pairs, strict=True)]
    return winograd.convolved(x, weight, pairs, space).movedim(-1, 1)


def summed(x: Tensor, weight: Tensor, padding: object) -> Tensor:
    with Context(WINOGRAD=0):
        return x.conv2d(weight, padding=padding)


def whole_numbers(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32))


def test_matrices() -> None:
    """Aᵀ((B·x) ⊙ (G·w)) is a convolution: the coefficient of every pair of positions is right."""
    image, weight, result = map(np.array, (
        winograd.OF_IMAGE, winograd.OF_WEIGHT, winograd.OF_RESULT,
    ))  # fmt: skip
    terms = np.einsum("yp,px,pw->yxw", result, image, weight)
    y, x, w = np.indices(terms.shape)
    np.testing.assert_array_equal(terms, x == y + w)


@pytest.mark.parametrize("padding", [0, 1, 2, (0, 2), ((1, 0), (0, 2))], ids=str)
def test_all_sizes_of_small_images(reference: str, padding: object) -> None:
    """Sums of small integers are exact, so all results are equal."""
    weight = whole_numbers(2, 3, 3, 3, seed=1).to(reference)
    given = padding if isinstance(padding, tuple) else (padding, padding)
    pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in given]
    for size in {(n, other) for n in range(1, 10) for other in (n, 4)}:
        if all(n + sum(pair) >= 3 for n, pair in zip(size, pairs, strict=True)):
            x = whole_numbers(2, 3, *size).to(reference)
            want = summed(x, weight, padding).numpy()
            np.testing.assert_array_equal(filtered(x, weight, pairs).numpy(), want, str(size))


@pytest.mark.parametrize("size, padding", [
    ((1, 1), 1), ((2, 3), 1), ((7, 7), 1), ((8, 5), 0), ((9, 14), 2), ((7, 6), 3),
    ((16, 16), ((2, 0), (0, 1))),
], ids=str)  # fmt: skip
def test_gradients_of_whole_numbers(on_device: str, size: tuple[int, int], padding: object) -> None:
    """Gradients by images and weights, and second derivatives, of integers: exact, too."""
    pairs = padding if isinstance(padding, tuple) else ((padding, padding),) * 2
    x, weight = whole_numbers(2, 20, *size), whole_numbers(17, 20, 3, 3, seed=1)
    seed = whole_numbers(*summed(x, weight, padding).shape, seed=2)
    again = whole_numbers(*weight.shape, seed=3)
    found = []
    for y in (filtered(x, weight, list(pairs)), summed(x, weight, padding)):
        by_x, by_weight = y.gradient(x, weight, gradient=seed * y / 64)
        (second,) = by_weight.gradient(x, gradient=again)
        found.append([one.numpy() for one in (y, by_x, by_weight, second)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, 1e-5, 1e-5 * np.abs(other).max())
    np.testing.assert_array_equal(found[0][0], found[1][0])


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_numbers_of_dimensions(on_device: str, dimensions: int) -> None:
    size = (5, 4, 6)[:dimensions]
    x, weight = whole_numbers(2, 3, *size), whole_numbers(4, 3, *[3] * dimensions)
    found = [filtered(x, weight, [(1, 1)] * dimensions), summed(x, weight, 1)]
    ways = [[y, *y.gradient(x, weight, gradient=y.detach())] for y in found]
    for one, other in zip(*ways, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_errors(cpu: str) -> None:
    """At most three times the errors of direct sums, for normal and for positive numbers."""
    draw = np.random.default_rng(7)
    for x, weight in (
        (draw.standard_normal((4, 64, 12, 12)), draw.standard_normal((64, 64, 3, 3))),
        (draw.random((4, 64, 12, 12)), draw.random((64, 64, 3, 3))),
    ):
        found = []
        for number, dtype in ((0, "float64"), (0, "float32"), (1, "float32"), (1, "float64")):
            with Context(DEVICE=cpu, WINOGRAD=number):
                given = [Tensor(one.astype(np.float32).astype(dtype)) for one in (x, weight)]
                y = given[0].conv2d(given[1], padding=1)
                grads = y.gradient(*given, gradient=y.detach() / 64)
            assert {one.numpy().dtype.name for one in (y, *grads)} == {dtype}
            found.append([one.numpy() for one in (y, *grads)])
        for exact, direct, single, double in zip(*found, strict=True):
            most = np.abs(exact).max()
            errors = [np.abs(one - exact).max() / most for one in (direct, single, double)]
            assert errors[1] <= 3 * errors[0] <= 3e-6 and errors[2] <= 3e-15, errors
            assert not np.array_equal(direct, single)  # so Winograd's method was used


def test_what_is_not_finite_stays_in_its_tiles(on_device: str) -> None:
    """An infinity gives NaN in all tiles that read it, one pixel beyond the direct sum's."""
    x, weight = np.ones((1, 1, 12, 12), np.float32), Tensor(np.ones((1, 1, 3, 3), np.float32))
    x[0, 0, 5, 5] = np.inf
    direct, found = (way(Tensor(x), weight, pad).numpy()[0, 0]
                     for way, pad in ((summed, 1), (filtered, [(1, 1), (1, 1)])))  # fmt: skip
    far = np.ones_like(found, bool)
    far[4:8, 4:8] = False
    np.testing.assert_array_equal(found[far], direct[far])
    assert np.isfinite(direct[far]).all() and not np.isfinite(found[5, 5])


def test_when_it_pays() -> None:
    """With enough channels and tiles, if the tiles do not reach far beyond the image."""
    assert winograd.pays((3, 3), (56, 56), 8, 64, 64)
    assert winograd.pays((3, 3), (7, 7), 8, 512, 512)
    assert winograd.pays((3, 3), (14, 14), var("b", 1, 8), 256, 256)
    for kernel, space, batch, inner, outer in (
        ((3, 3), (56, 56), 8, 32, 32), ((3, 3), (7, 7), 1, 512, 512),
        ((3, 3), (1, 1), 64, 512, 512), ((3,), (900,), 8, 512, 512),
        ((3, 1), (56, 56), 8, 64, 64), ((5, 5), (56, 56), 8, 64, 64),
        ((3, 3), (56, 56), 0, 64, 64), ((3, 3), (56, 56), 8, 0, 64),
    ):  # fmt: skip
        assert not winograd.pays(kernel, space, batch, inner, outer)
    for extent, channels in itertools.product((2, 4, 7, 8, 14), (48, 64, 512)):
        for some in (range(4, 8), range(8, 16)):  # batches of other sizes need no other program
            given = [((3, 3), (extent, extent), n, channels, channels) for n in some]
            assert len({winograd.pays(*one) for one in given}) == 1


def test_only_plain_convolutions_of_floats(reference: str) -> None:
    """No groups, strides, dilation, half dtypes (whose products are added in pairs) or integers."""
    calls = []
    with having(winograd, MOVED=0, convolved=lambda *given: calls.append(given)):
        for dtype, options in (
            ("float32", {"stride": 2}), ("float32", {"dilation": 2}), ("float32", {"groups": 2}),
            ("bfloat16", {}), ("float16", {}), ("int32", {}),
        ):  # fmt: skip
            x, weight = Tensor.ones(1, 4, 8, 8), Tensor.ones(4, 4 // options.get("groups", 1), 3, 3)
            given = [one.cast(dtype).to(reference) for one in (x, weight)]
            given[0].conv2d(given[1], **options).realize()
    assert not calls


def test_devices_of_a_mesh_exchange_results(reference: str) -> None:
    """Devices exchange sums over divided channels, not the larger products before them."""
    sent = []
    for number in (0, 1):
        with Context(DEVICE=reference, WINOGRAD=number):
            mesh = Mesh(d=2)
            shapes = (4, 64, 12, 12), (64, 64, 3, 3)
            x, weight = (Tensor.ones(shape).shard(mesh, P(None, "d")) for shape in shapes)
            Tensor.realize(x, weight)
            before = Device[mesh.name].bytes_sent
            loss = x.conv2d(weight, padding=1).square().sum()
            Tensor.realize(*loss.gradient(x, weight))
            sent.append(Device[mesh.name].bytes_sent - before)
    assert sent[0] == sent[1] > 0


def test_batches_of_any_size(compiled: str) -> None:
    """Eager, captured and with a Variable; with a bias, and an image without a batch."""
    with Context(DEVICE=compiled):
        layer = nn.Conv2d(96, 96, 3, padding=1)

        def step(x: Tensor) -> list[Tensor]:
            y = layer(x).relu()
            return [one.realize() for one in (y, *y.square().mean().gradient(layer.weight, x))]

        captured = jit(step)
        for batch in (4, 2, 7):
            draw = np.random.default_rng(batch)
            x = Tensor(draw.standard_normal((batch, 96, 9, 10), np.float32))
            with Context(WINOGRAD=0):
                want = [one.numpy() for one in step(x.realize())]
            for found in (step(x), captured(x)):
                for one, other in zip(found, want, strict=True):
                    np.testing.assert_allclose(one.numpy(), other, 1e-4, 2e-6 * np.abs(other).max())
            np.testing.assert_allclose(layer(x[0]).relu().numpy(), want[0][0], 1e-4, 1e-5)
            some = layer(x.cat(x)[: Variable("b", 1, 2 * batch).bind(batch - 1)]).relu().sum(0)
            np.testing.assert_allclose(some.numpy(), want[0][:-1].sum(0), 1e-4, 1e-5)
    assert winograd.pays((3, 3), (9, 10), 4, 96, 96)
    assert not winograd.pays((3, 3), (9, 10), 2, 96, 96)
