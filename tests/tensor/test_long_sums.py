"""Long sums of similar values stay accurate, along any axis and inside any operation.

Adding terms one by one would give an error of 1e-2 for 2²⁰ equal terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from minigrad import Tensor, dtypes

MOST = 2e-6  # relative error
VALUE = float(np.float32(0.1))
N = 1 << 20
LONG = 1 << 24  # terms; used by few tests, as it takes long


def full(*shape: int) -> Tensor:
    """A realized tensor of equal values."""
    return Tensor(np.full(shape, VALUE, np.float32))


def check(found: Tensor, expected: float | np.ndarray) -> None:
    """Every element is close to its expected value."""
    got = found.numpy().astype(np.float64)
    wanted = np.broadcast_to(expected, got.shape)
    error = float(np.max(np.abs(got - wanted) / np.abs(wanted)))
    assert error <= MOST, f"relative error {error:.2g}"


@pytest.mark.parametrize("other", [1, 3, 16, 100])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_along_every_axis(other: int, axis: int, on_device: None) -> None:
    """Whole vectors, columns, rows, and an axis between two others."""
    length = N // 8 if axis == 1 and other == 100 else N // 4
    shape = {0: (length, other), 1: (3, length, min(other, 16)), 2: (other, length)}[axis]
    check(full(*shape).sum(min(axis, 1)), length * VALUE)


@pytest.mark.parametrize("shape, axis", [
    ((LONG,), 0), ((LONG, 3), 0), ((3, LONG), 1), ((1, LONG, 1), 1), ((LONG + 17,), 0),
])  # fmt: skip
def test_very_long(shape: tuple[int, ...], axis: int, on_device: None) -> None:
    """16 million terms, which float32 cannot even count one by one."""
    check(full(*shape).sum(axis), shape[axis] * VALUE)
    if len(shape) == 1:
        check(full(*shape).isfinite().float().sum(), shape[0])


COMPOSITIONS: dict[str, tuple[Callable[[], Tensor], float]] = {
    "mean": (lambda: full(N).mean(), VALUE),
    "mean of columns": (lambda: full(N, 3).mean(0), VALUE),
    "norm": (lambda: full(N).square().sum().sqrt(), N**0.5 * VALUE),
    "strided": (lambda: full(N, 2)[:, 0].sum(), N * VALUE),
    "transposed": (lambda: full(64, N // 64).transpose(0, 1).sum(0), N // 64 * VALUE),
    "logsumexp": (lambda: (full(2, N).logsumexp(1) - VALUE).exp(), N),
    "softmax": (lambda: full(1, N).softmax(1).sum(1), 1.0),
    "dot": (lambda: (full(N) * full(N)).sum(), N * VALUE**2),
    "matrix · vector": (lambda: full(8, N // 4) @ full(N // 4), N // 4 * VALUE**2),
    "vector · matrix": (lambda: full(N // 4) @ full(N // 4, 64), N // 4 * VALUE**2),
    "product": (lambda: full(40, N // 16) @ full(N // 16, 40), N // 16 * VALUE**2),
    "turned product": (
        lambda: full(N // 16, 40).transpose(0, 1) @ full(N // 16, 40), N // 16 * VALUE**2,
    ),
    "large product": (lambda: full(130, 1 << 13) @ full(1 << 13, 260), (1 << 13) * VALUE**2),
    "einsum": (lambda: Tensor.einsum("ki,kj->ij", full(N // 16, 9), full(N // 16, 5)),
               N // 16 * VALUE**2),
    "cross entropy": (
        lambda: Tensor(np.zeros((N, 4), np.float32)).cross_entropy(
            Tensor(np.zeros(N, np.int32))), float(np.log(4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compositions(name: str, on_device: None) -> None:
    """Operations that contain a long sum."""
    make, expected = COMPOSITIONS[name]
    check(make(), expected)


@pytest.mark.parametrize("shape", [(N,), (N // 4, 3), (100, N // 64)])
def test_running_sums(shape: tuple[int, ...], on_device: None) -> None:
    """Every element of a running sum, not only the last one."""
    axis = int(np.argmax(shape))
    steps = np.arange(1, shape[axis] + 1, dtype=np.float64) * VALUE
    along = steps.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    check(full(*shape).cumsum(axis), np.broadcast_to(along, shape))


def test_gradients(on_device: None) -> None:
    """A bias's gradient sums over all rows, a convolution weight's over all positions."""
    bias = Tensor(np.zeros(16, np.float32), requires_grad=True)
    ((full(N // 4, 16) + bias) * full(N // 4, 16)).sum().backward()
    assert bias.grad is not None
    check(bias.grad, N // 4 * VALUE)
    weight = Tensor(np.zeros((4, 3, 3, 3), np.float32), requires_grad=True)
    side = 300
    (full(1, 3, side + 2, side + 2).conv2d(weight) * full(1, 4, side, side)).sum().backward()
    assert weight.grad is not None
    check(weight.grad, side * side * VALUE**2)


@pytest.mark.parametrize("shape, axis", [((N,), 0), ((N // 4, 3), 0), ((3, N // 4), 1)])
def test_variance_far_from_zero(shape: tuple[int, ...], axis: int, on_device: None) -> None:
    """The mean is 10,000 times the deviation."""
    values = (np.random.default_rng(0).standard_normal(shape) + 1e4).astype(np.float32)
    check(Tensor(values).var(axis), values.astype(np.float64).var(axis, ddof=1))


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16])
def test_half_floats_are_added_in_float32(dtype: object, on_device: None) -> None:
    """A sum in a half dtype would stop growing at a few thousand."""
    ones = Tensor(np.ones((N // 8, 3), np.float32)).cast(dtype)
    assert ones.sum(0, dtype=dtypes.float32).tolist() == [N // 8] * 3


@pytest.mark.parametrize("outer, inner", [
    (17, 15), (13, 11), (9, 15), (129, 2), (3, 129), (11, 13), (65, 3), (33, 33), (257, 5),
])  # fmt: skip
def test_over_two_axes(outer: int, inner: int, on_device: None) -> None:
    """Blocks of the outer axis may be long themselves, and are then split again."""
    print("seed", outer * inner)
    generator = np.random.default_rng(outer * inner)
    x, y = (generator.random((outer, 7, inner), np.float32) for _ in range(2))
    wanted = np.einsum("bik,bjk->ij", x.astype(np.float64), y.astype(np.float64))
    check(Tensor.einsum("bik,bjk->ij", Tensor(x), Tensor(y)), wanted)
    check(Tensor(x).sum((0, 2)), x.sum((0, 2), dtype=np.float64))


@pytest.mark.parametrize("ends", [(100, 100), (70, 130), (300, 65), (65, 300), (200, 3, 200)])
def test_over_parts_whose_axes_are_apart_in_memory(ends: tuple[int, ...], on_device: None) -> None:
    """Several long loops, each of which is split."""
    x = Tensor.ones(*(end + 7 for end in ends), 15).contiguous().realize()
    part = x[tuple(slice(0, end) for end in ends)]
    axes = tuple(range(len(ends)))
    found = (part.sum(axes), (part * 2).mean(axes), part.max(axes))
    for one, wanted in zip(found, (math.prod(ends), 2, 1), strict=True):
        np.testing.assert_array_equal(one.numpy(), np.full(15, wanted, np.float32))


@pytest.mark.parametrize("values", [[3e30, -3e30, 1e30, 2.5e30], [3e25, 1e25, -2e25, 7e24]])
def test_a_variance_beyond_the_range_is_infinite(values: list[float], on_device: None) -> None:
    """∞ − ∞ would be NaN."""
    assert Tensor(values).var().item() == float("inf")
    assert Tensor(values).std().item() == float("inf")


def test_deviations_in_float16_whose_squares_it_cannot_hold(on_device: None) -> None:
    values = Tensor([[600.0, -600.0], [1.0, 2.0]]).half()
    np.testing.assert_allclose(values.std(1).numpy(), [848.5, 0.707], rtol=1e-3)
    assert values.std(1).dtype is dtypes.float16 and values.var(1).tolist()[0] == float("inf")
