"""Elementwise kernels: an OpenCL device agrees with REF."""

from __future__ import annotations

import numpy as np
import pytest
from devices import REFERENCE
from opencl.agreement import agree, node, numbers, values
from primitives import OF_FLOATS, OF_INTEGERS, OF_ONE, arity

from minigrad import Tensor, dtypes
from minigrad.graph import build
from minigrad.graph.node import Op
from minigrad.runtimes.reference import numpy_dtype

pytest.importorskip("pyopencl")


def test_bools_are_in_order(device):
    """A vector of bools is a vector of masks, in which true is less than false."""
    x, y = numbers(4, 1, dtype="int32") > 0, numbers(4, 33, seed=1, dtype="int32") > 0
    agree(lambda x, y: [x > y, x < y, x >= y, x <= y, x == y, x != y], device, x, y)


EXTREME = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 3.4e38, -3.4e38, 104.5, -0.5, 88.8]


@pytest.mark.parametrize("name", [op.value for op in OF_ONE if op in OF_FLOATS])
def test_functions_at_the_edges_of_float32(device, name):
    x = np.array(EXTREME + list(np.linspace(-9, 9, 37)), np.float32)
    results = [getattr(Tensor(x, device=d), name)().numpy() for d in (device, REFERENCE)]
    np.testing.assert_allclose(*results, rtol=5e-7, atol=1e-45)
    zeros = results[1] == 0
    np.testing.assert_array_equal(*(np.signbit(r[zeros]) for r in results))


INTEGERS = [dtypes.int8, dtypes.uint8, dtypes.int16, dtypes.uint16,
            dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64]  # fmt: skip


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.name)
def test_integers_wrap_divide_and_shift_as_on_ref(device, dtype):
    low, high = int(dtype.minimum), int(dtype.maximum)
    edges = [low, low + 1, high, high - 1, 0, 1, 2, 3, 7, dtype.bits - 1, dtype.bits]
    edges += [-1, -2, -7] if dtype.kind == "i" else []
    pairs = [(a, b) for a in edges for b in edges]
    results = []
    for name in (device, REFERENCE):
        a, b = (node(column, dtype, name) for column in zip(*pairs, strict=True))
        results.append(
            values([build.elementwise(op, *(a, b)[: arity(op)]) for op in OF_INTEGERS])
        )
    for op, got, wanted in zip(OF_INTEGERS, *results, strict=True):
        np.testing.assert_array_equal(got, wanted, op.value)


@pytest.mark.parametrize("source", [dtypes.float32, dtypes.float64], ids=lambda dtype: dtype.name)
def test_floats_saturate_on_their_way_to_integers(device, source):
    edges = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 0.9, -0.9, 1.5, -1.5]
    for dtype in INTEGERS:
        edges += [float(dtype.minimum), float(dtype.maximum), float(dtype.minimum) - 1]
    results = []
    for name in (device, REFERENCE):
        x = node(edges, source, name)
        results.append(values([build.cast(x, to) for to in [*INTEGERS, dtypes.bool]]))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted, str(wanted.dtype))


@pytest.mark.parametrize("half", [dtypes.float16, dtypes.bfloat16], ids=lambda dtype: dtype.name)
def test_every_half_is_read_and_every_neighbourhood_is_rounded(device, half):
    """All 65,536 bit patterns as values; midpoints between them, and their neighbours, as floats.
    """
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = bits.view(numpy_dtype(half)).astype(np.float32)
    wide = wide[np.isfinite(wide)]
    middle = ((wide[:-1].astype(np.float64) + wide[1:]) / 2).astype(np.float32)
    points = np.concatenate([middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)])
    results = []
    for name in (device, REFERENCE):
        read = build.cast(node(bits, dtypes.uint16, name), dtypes.uint16)
        read = build.cast(build.bitcast(read, half), dtypes.float32)
        x = node(points, dtypes.float32, name)
        doubles = node(np.concatenate([middle, middle * (1 + 2.0**-45), middle * (1 - 2.0**-45)]),
                       dtypes.float64, name)  # fmt: skip
        narrow = [build.cast(build.cast(v, half), dtypes.float32) for v in (x, doubles)]
        stored = build.bitcast(build.contiguous(build.cast(x, half)), dtypes.uint16)
        results.append(values([read, *narrow, stored]))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_vectors_of_halves_may_lie_anywhere(device):
    """Rows of 31 halves, read eight at a time: PoCL 6 itself requires multiples of 16 bytes."""
    x = np.random.default_rng(5).standard_normal((15, 31)).astype(np.float16)
    assert np.array_equal(Tensor(x, device=device).argmax(0).numpy(), x.argmax(0))


def test_halves_go_through_local_memory(device):
    """Sums of columns, that the items of a group share: PoCL 3 read them before they were written,
    because its compiler assumes that halves and shorts are never in the same memory.
    """
    halves = build.reshape(node([1.0] * 3000, dtypes.float16, device), (750, 4))
    sums = build.cast(build.reduce(Op.SUM, halves, (0,)), dtypes.float32)
    assert values([build.reduce(Op.MAX, sums, (0, 1))])[0].item() == 750


def test_float_remainder_and_nan_in_maximum(device):
    edges = [0.0, -0.0, 1.0, -1.0, 5.5, -5.5, 0.3, 1e30, -7e-42, np.inf, -np.inf, np.nan]
    pairs = [(a, b) for a in edges for b in edges if not a == b == 0]
    results = []
    for name in (device, REFERENCE):
        a, b = (node(column, dtypes.float32, name) for column in zip(*pairs, strict=True))
        results.append(
            values([build.elementwise(op, a, b) for op in (Op.MOD, Op.MAXIMUM, Op.MINIMUM)])
        )
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(wanted[wanted == 0]))
