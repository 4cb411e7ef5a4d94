"""Reductions, products, gathers and scatters: an OpenCL device agrees with REF."""

from __future__ import annotations

import numpy as np
import pytest
from bench import opencl_limits
from devices import REFERENCE
from opencl.agreement import agree, node, numbers, values

from minigrad import Tensor, dtypes
from minigrad.device import Device
from minigrad.graph import build
from minigrad.runtimes.reference import numpy_dtype

pytest.importorskip("pyopencl")


# ---- rows ----


def test_a_long_sum_is_cut_in_two(device):
    agree(lambda x: [x.sum(), x.mean(), x.max()], device, numbers(1 << 17))


@pytest.mark.parametrize("count", [1025, 1032, 1500, 2049, 4099, (1 << 17) + 9])
def test_every_term_of_a_long_sum_counts(device, count):
    """Whole numbers, whose sums are exact; also those after the last whole vector of a level."""
    whole = numbers(3, count, dtype="int32").astype(np.float32)
    for x in (whole, whole.T.copy(), whole[0], whole.astype(np.float16)):
        agree(lambda x: [x.sum(0), x.sum(-1), (x * x).sum()], device, x, tolerance=0)
    agree(lambda x: [x @ x.T, x[:1] @ x.T, x.softmax(-1)], device, whole, tolerance=2e-7)


# ---- contractions ----


def test_places_of_a_tile_that_have_one_text(device):
    """A quotient in a tile's row has the text of that in its first row, which is known before."""

    def made(x, w, b):
        rows = b.repeat_interleave(3)
        first = rows.reshape(-1, 8)[:, :1].expand(-1, 8).reshape(-1)
        return x @ w + (rows + 2 * first).reshape(-1, 1)

    agree(made, device, numbers(96, 32), numbers(32, 96), numbers(32), tolerance=1e-5)


@pytest.mark.parametrize("columns", [3, 7, 8, 16, 23, 32, 47, 70])
def test_values_of_any_width_that_may_not_be_finite(device, columns):
    """Masked products test all lanes of a vector at once, whatever its length."""

    def attention(x, y):
        masked = [t.scaled_dot_product_attention(t, t, is_causal=True) for t in (x, y)]
        return [t.layernorm(-1, eps=0.1) for t in masked]

    x, y = numbers(3, 8, columns), numbers(3, 8, columns, seed=1)
    y[:, 5, columns - 1] = np.inf
    y[1, 6, 0] = np.nan
    agree(attention, device, x, y, tolerance=1e-5)


@pytest.mark.parametrize("shape", [(200, 5, 16), (384, 8, 65), (256, 31, 128)])
def test_a_last_tile_of_rows_that_begins_at_a_computed_place(device, shape):
    rows, depth, columns = shape
    agree(lambda x, y: x.transpose(0, 1) @ y, device, numbers(depth, rows), numbers(depth, columns))


def test_rests_of_wide_tiles_and_sums_of_few_rows(device):
    """Columns that are no multiple of two vectors; a matrix that is read once, by long vectors."""
    for columns in (1, 7, 31, 33, 47, 65):
        agree(lambda x, w: (x @ w).gelu(), device, numbers(20, 40), numbers(40, columns),
              tolerance=1e-5)  # fmt: skip
    agree(lambda x, w: x @ w.T, device, numbers(1, 700), numbers(900, 700), tolerance=1e-5)


def test_padded_operands_of_a_product_are_read_under_guards(device):
    agree(lambda x, w: x.pad((2, 1, 1, 0)) @ w.flip(0), device, numbers(20, 30), numbers(33, 13),
          tolerance=1e-5)  # fmt: skip


def test_products_of_half_precision_accumulate_in_float32(device):
    x, w = numbers(33, 129, dtype="float16"), numbers(129, 20, dtype="float16")
    agree(lambda x, w: x @ w, device, x, w, tolerance=1e-3)


# ---- gathers and scatters ----


def test_gather_reads_zero_out_of_range(device):
    results = []
    for name in (device, REFERENCE):
        x = node(numbers(8, 5), dtypes.float32, name)
        roots = []
        for dtype in (dtypes.int8, dtypes.int32, dtypes.int64, dtypes.uint64):
            edges = [dtype.minimum, dtype.maximum, 0, 7, 8, dtype.maximum - 2]
            index = np.repeat(np.array(edges, numpy_dtype(dtype))[:, None], 5, 1)
            roots.append(build.gather(x, node(index, dtype, name), 0))
        results.append(values(roots))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_scatter_adds_in_order_and_writes_nothing_out_of_range(device):
    where = np.random.default_rng(1).integers(-2, 12, (40, 6)).astype(np.int32)
    results = []
    for name in (device, REFERENCE):
        base, x = (node(numbers(n, 6), dtypes.float32, name) for n in (10, 40))
        index = node(where, dtypes.int32, name)
        swapped = [build.permute(n, (1, 0)) for n in (base, index, x)]
        roots = [build.scatter_add(base, index, x, 0), build.scatter_add(*swapped, 1)]
        results.append(values(roots))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)  # bit for bit, as the order is the same


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int64", "uint8"])
def test_what_is_chosen_behind_a_product(device, dtype):
    """Vectors of bools of each width: by an index, by a number, and as numbers."""

    def chosen(x, w):
        column, made = Tensor.arange(32), x @ w
        return [
            (column >= 5).where(made, 1), (column % 4 >= 2).where(made, 1),
            (made > 3).where(made, 1), (made > 3).cast(dtype), made + column % 3,
        ]  # fmt: skip

    arrays = numbers(64, 16, dtype=dtype), numbers(16, 32, dtype=dtype)
    agree(chosen, device, *arrays, tolerance=5e-3 if dtype == "float16" else 1e-6)


# ---- the limits that benchmarks compare with ----


def test_the_limits_of_a_device_are_measured(first):
    """`python -m tests.bench.opencl_limits`, briefly; `bench.gpu` divides by them."""
    runtime = Device[first]
    assert opencl_limits.peak_flops(runtime, seconds=1e-5) > 0
    assert opencl_limits.peak_bandwidth(runtime, 1 << 20) > 0
