"""Sorting and running reductions at the lengths where the algorithms change."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Context, Tensor
from minigrad.errors import DTypeError, ShapeError
from minigrad.graph import build
from minigrad.graph.node import Op
from minigrad.schedule import sort as algorithms

COUNTED, CHUNK, BLOCK = algorithms.BY_COUNTING, algorithms.SORT_CHUNK, algorithms.SCAN_BLOCK


def _keys(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    generator = np.random.default_rng([seed, *shape])
    top = np.iinfo(dtype).max
    keys = generator.integers(0, top, shape, dtype=dtype, endpoint=True)
    keys.flat[::3] = keys.flat[0]  # many equal keys
    keys.flat[-1] = top  # equal to the padding of the last chunk
    return keys


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((COUNTED, 2), 0), ((2, COUNTED + 1), 1), ((3, 300), 1), ((2, CHUNK + 1), 1),
     ((2 * CHUNK + 3,), 0)],
)  # fmt: skip
def test_stable_permutation(dtype: str, shape: tuple[int, ...], axis: int, compiled: str) -> None:
    """By counting, in one chunk, and in several chunks with a partial last one."""
    keys = _keys(dtype, shape, 1)
    found = Tensor._of(build.sort(Tensor(keys, device=compiled).node, axis)).numpy()
    assert found.dtype == np.int32
    assert np.array_equal(found, np.argsort(keys, axis=axis, kind="stable"))


def test_each_thread_count_sorts_alike() -> None:
    """Each device has its own thread pool: one with a single thread, one with several."""
    keys = _keys("uint32", (3 * CHUNK,), 2)
    results = []
    for number, threads in enumerate((1, 3)):
        with Context(THREADS=threads):
            results.append(Tensor(keys, device=f"CPU:{40 + number}").argsort().numpy())
    assert np.array_equal(*results)


@pytest.mark.parametrize("shape", [(129,), (5, 40), (400,)])
def test_devices_sort_as_numpy(shape: tuple[int, ...], device: str) -> None:
    """Permutations and running sums are the same."""
    x = np.random.default_rng(3).integers(-9, 9, shape).astype(np.float32)
    t = Tensor(x, device=device)
    values, order = t.sort(0, descending=True)
    wanted = np.argsort(-x, axis=0, kind="stable")
    assert np.array_equal(order.numpy(), wanted)
    assert np.array_equal(values.numpy(), np.take_along_axis(x, wanted, 0))
    assert np.array_equal(t.cumsum(0).numpy(), np.cumsum(x, 0))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("length", [algorithms.BY_COUNTING, 143, 144, 1000, 5001])
def test_topk_of_equal_elements(length: int, largest: bool, compiled: str) -> None:
    """The first of equal elements win, whichever algorithm is used."""
    x = np.random.default_rng(length).integers(0, 6, (2, length)).astype(np.int16)
    values, places = Tensor(x, device=compiled).topk(9, largest=largest)
    wanted = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :9]
    assert np.array_equal(places.numpy(), wanted)
    assert np.array_equal(values.numpy(), np.take_along_axis(x, wanted, 1))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float64", "bool"])
@pytest.mark.parametrize("axis", [0, 1])
def test_few_of_topk_are_those_of_a_sort(axis: int, dtype: str, compiled: str) -> None:
    x = Tensor(np.random.default_rng(1).integers(0, 9, (17, 23)), device=compiled).cast(dtype)
    if x.dtype.is_float:
        x = (x > 7).where(float("nan"), x)
    for largest in (True, False):
        places = x.topk(3, axis, largest)[1].numpy()
        assert np.array_equal(places, x.argsort(axis, largest).shrink(
            [(0, 3 if d == axis else e) for d, e in enumerate(x.shape)]).numpy())


@pytest.mark.parametrize("length", [2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK])
@pytest.mark.parametrize("axis", [0, 1])
def test_long_running_reductions(length: int, axis: int, compiled: str) -> None:
    """Each block continues from the previous one: wrapping sums, products of signs, extremes."""
    generator = np.random.default_rng([length, axis])
    shape = (length, 2) if axis == 0 else (2, length)
    x = generator.integers(-(2**31), 2**31, shape).astype(np.int32)
    t = Tensor(x, device=compiled)
    for dtype in ("int32", "int64"):
        assert np.array_equal(t.cumsum(axis, dtype=dtype).numpy(), np.cumsum(x, axis, dtype=dtype))
    signs = np.where(x % 2 == 0, -1, 1).astype(np.int32)
    product = Tensor(signs, device=compiled).cumprod(axis).numpy()
    assert np.array_equal(product, np.cumprod(signs, axis, dtype=np.int32))
    values, places = t.cummin(axis)
    assert np.array_equal(values.numpy(), np.minimum.accumulate(x, axis))
    assert np.array_equal(np.take_along_axis(x, places.numpy(), axis), values.numpy())


def test_gradient_of_sort_goes_back_to_where_it_came_from(device: str) -> None:
    """Each element's gradient goes to its original position."""
    x = Tensor([3.0, 1.0, 2.0], device=device)
    values, _ = x.sort()
    (gradient,) = (values * Tensor([1.0, 10.0, 100.0], device=device)).sum().gradient(x)
    assert gradient.tolist() == [100.0, 1.0, 10.0]


def test_what_cannot_be_sorted() -> None:
    """The node constructors raise, and say what they expect."""
    node = Tensor([1.0, 2.0]).node
    with pytest.raises(DTypeError, match="unsigned"):
        build.sort(node, 0)
    with pytest.raises(ShapeError, match="axis 1"):
        build.scan(Op.CUMSUM, node, 1)
    with pytest.raises(ValueError, match="not a cumulative operation"):
        build.scan(Op.SUM, node, 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_where_nan_would_be_inserted(side, on_device):
    line = np.array([1, 3, 3, 5, np.nan, np.nan], np.float32)
    values = np.array([[0, 1, 3, 4], [6, np.nan, np.inf, -np.inf]], np.float32)
    for some in (line, line[:4], line[4:], line[:0]):
        wanted = np.searchsorted(some, values, side=side)
        assert np.array_equal(Tensor(some).searchsorted(Tensor(values), side=side).numpy(), wanted)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ranks_are_exact(dtype: str, on_device) -> None:
    """Fractions were rounded to float32, and ranks to the 11 bits of float16."""
    x = np.arange(1500.0) * 2
    found = Tensor(x).cast(dtype).quantile([0.3, 0.5005]).numpy()
    assert found.dtype.name == dtype
    rounding = np.finfo(dtype).eps * 4
    np.testing.assert_allclose(found, np.quantile(x, [0.3, 0.5005]), rtol=rounding)
