"""Sorting and running reductions at the lengths where the algorithms change."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Context, GlobalCounters, Tensor
from minigrad.dtype import dtypes
from minigrad.errors import DTypeError, ShapeError
from minigrad.graph import build
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.symbolic import var
from minigrad.programs import programs
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


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
@pytest.mark.parametrize("bits", [0, 3, 12, 20, 40])
def test_distinct_integers_at_both_ends_of_their_range(dtype: str, bits: int) -> None:
    """Their keys are narrower than their dtype."""
    limits = np.iinfo(dtype)
    span = min(1 << bits, limits.max - limits.min)
    for low, high in ((limits.min, limits.min + span - 1), (limits.max - span + 1, limits.max)):
        generator = np.random.default_rng(bits)
        x = generator.integers(low, high, (50, 100), dtype=dtype, endpoint=True)
        found = Tensor(x)._distinct()
        wanted = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
        assert found[0].dtype.name == dtype
        for one, other in zip(found, wanted, strict=True):
            assert np.array_equal(one.numpy().ravel(), other.ravel())


def test_distinct_numbers_keep_their_dtype_and_sign() -> None:
    zeros = Tensor([1.0, -0.0, 0.0, -0.0]).unique().numpy()
    assert np.array_equal(zeros, [0, 1]) and np.signbit(zeros[0])
    assert Tensor([True, False, True]).unique().dtype.name == "bool"


def test_distinct_numbers_are_sorted_once(compiled: str) -> None:
    """Not again for the results, after the host has read how many there are."""
    x = Tensor(np.random.default_rng(2).standard_normal(10_000), device=compiled).realize()
    counts = []
    for work in (x.argsort, x.unique):
        GlobalCounters.reset()
        work().realize()
        counts.append(GlobalCounters.kernel_count)
    assert counts[1] < 2 * counts[0]


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


@pytest.mark.parametrize("rows", [67, 75, 82, 64])
def test_running_reductions_of_many_rows(rows: int, compiled: str) -> None:
    """Rows take turns, if their number allows it."""
    x = np.random.default_rng(rows).integers(-2, 3, (rows, 130)).astype(np.float32)
    x[rows // 2, 70] = np.nan
    t = Tensor(x, device=compiled)
    assert np.array_equal(t.cummax(1)[0].numpy(), np.maximum.accumulate(x, 1), equal_nan=True)
    signs = np.where(x == 0, 1, np.sign(x))
    for given in (signs, np.nan_to_num(x).astype(np.int64)):
        found = Tensor(given, device=compiled).cumprod(1).numpy()
        assert np.array_equal(found, np.cumprod(given, 1), equal_nan=True)


def _with_ties(size: int, shape: str, dtype: str, seed: int) -> np.ndarray:
    """Few values, so that many are equal; of floats also NaN, both infinities and both zeros."""
    random = np.random.default_rng([size, seed])
    x = random.integers(0, 9, eval(shape, {"n": size}))
    if not dtype.startswith("float"):
        return x.astype(dtype)
    x = x.astype(dtype) - 4
    for special in (np.nan, -np.nan, np.inf, -np.inf, -0.0):
        x[random.random(x.shape) < 0.05] = special
    return x


def _orders(x: Tensor, axis: int) -> list[Tensor]:
    return [
        x.argsort(axis), *x.sort(axis, descending=True), *x.topk(3, axis),
        *x.topk(20, axis, largest=False), x.argsort(axis).narrow(axis, 1, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float16", "float32"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [("n,", 0), ("n, 3", 0), ("3, n", 1), ("2, n, 3", 1), ("n, 150", 1)],
)  # fmt: skip
def test_other_sizes_are_sorted_by_the_same_program(
    shape: str, axis: int, dtype: str, compiled: str, reference: str
) -> None:
    """The first size compiles a special program, the second a general one for all others."""
    sizes = [47, 62, *np.random.default_rng().integers(24, 160, 4).tolist()]
    arrays = [_with_ties(size, shape, dtype, 5) for size in sizes]
    exact = [[one.numpy() for one in _orders(Tensor(x, device=reference), axis)] for x in arrays]
    programs.forget()
    counts = []
    for x, wanted in zip(arrays, exact, strict=True):
        found = _orders(Tensor(x, device=compiled), axis)
        Tensor.realize(*found)
        for ours, theirs in zip(found, wanted, strict=True):
            same = np.array_equal(ours.numpy(), theirs, equal_nan=dtype.startswith("float"))
            assert same, (sizes, x.shape)
        counts.append(GlobalCounters.programs_compiled)
    assert counts[0] < counts[1] == counts[-1], sizes


def test_other_numbers_of_first_elements_are_selected(compiled: str) -> None:
    """A program for all k would sort whole rows: each small k has its own, for all lengths."""
    programs.forget()
    counts = []
    for size, k in ((200, 3), (200, 5), (230, 3), (230, 5), (260, 3), (260, 5)):
        x = _with_ties(size, "2, n", "int32", 8)
        places = Tensor(x, device=compiled).topk(k, largest=False)[1].numpy()
        assert np.array_equal(places, np.argsort(x, 1, kind="stable")[:, :k])
        counts.append(GlobalCounters.programs_compiled)
    families = programs._families.values()
    assert counts[3] == counts[5] and not any(
        not isinstance(root.shape[1], int)
        for family in families for general, _ in family.general for root in general.graph.roots
    )  # fmt: skip


def test_first_elements_of_a_varying_number_of_rows_are_selected(compiled: str) -> None:
    """Not sorted: that would take thirteen times as long for rows of 50,257 elements."""
    keys = build.buffer(("keys", 0), dtypes.uint32, (var("_0", 1, 64), 500), compiled)
    first = build.shrink(build.sort(keys, 1), [(0, var("_0", 1, 64)), (0, 20)])
    expanded = topological(algorithms.expand_sorts([first]))
    assert not any(node.op is Op.DISTRIBUTE and node.shape[-1] >= 500 for node in expanded)


def test_long_rows_of_other_sizes_are_sorted(compiled: str) -> None:
    programs.forget()
    counts = []
    for size in (3000, 4100, 129, 23_456):
        x = _with_ties(size, "2, n", "float32", 6)
        order = Tensor(x, device=compiled).argsort(1).numpy()
        assert np.array_equal(order, np.argsort(x, 1, kind="stable")), size
        counts.append(GlobalCounters.programs_compiled)
    assert counts[0] < counts[1] == counts[2]


def _running(x: Tensor, axis: int) -> list[Tensor]:
    values = x.sort(axis)[0]
    loss = (x.cumsum(axis) * values + x.cummax(axis)[0]).sum()
    return [x.cumsum(axis), x.cumprod(axis), x.cummin(axis)[1], *loss.gradient(x)]


@pytest.mark.parametrize(
    ("shape", "axis"), [("n,", 0), ("n, 3", 0), ("3, n", 1), ("2, n, 3", 1), ("n, 15", 1)]
)
def test_running_reductions_of_other_sizes(
    shape: str, axis: int, compiled: str, reference: str
) -> None:
    """Running sums and products, extremes, sorted values, and their gradients."""
    sizes = [47, 62, *np.random.default_rng().integers(20, 160, 4).tolist()]
    shapes = [eval(shape, {"n": size}) for size in sizes]
    arrays = [np.random.default_rng(5).uniform(0.5, 1.5, one).astype(np.float32) for one in shapes]
    exact = [[one.numpy() for one in _running(Tensor(x, device=reference), axis)] for x in arrays]
    programs.forget()
    counts = []
    for x, wanted in zip(arrays, exact, strict=True):
        found = _running(Tensor(x, device=compiled), axis)
        Tensor.realize(*found)
        for ours, theirs in zip(found, wanted, strict=True):
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(ours.numpy() / scale, theirs / scale, rtol=0, atol=2e-5,
                                       err_msg=f"sizes {sizes}")  # fmt: skip
        counts.append(GlobalCounters.programs_compiled)
    assert counts[0] < counts[1] == counts[-1], sizes


def test_only_the_first_elements_of_a_sort_are_selected() -> None:
    """If only SHRINKs read a SORT, a few of its elements are found without sorting all."""
    keys = Tensor(_keys("uint32", (3, 300), 7)).node
    order = build.sort(keys, 1)
    parts = [build.shrink(order, [(0, 3), (a, b)]) for a, b in ((0, 2), (3, 4))]

    def counted(*roots: Node) -> int:
        expanded = topological(algorithms.expand_sorts(roots))
        return sum(node.op is Op.DISTRIBUTE for node in expanded)

    assert counted(*parts) == 0
    assert counted(*parts, order) == counted(order) > 0
    assert counted(build.flip(order, (1,)), *parts) > 0


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
