"""The namespace against numpy, which follows the same standard."""

from __future__ import annotations

import math

import numpy as np
import pytest
from devices import kind

import minigrad.array_api as xp
from minigrad.array_api import linalg

RANDOM = np.random.default_rng(7)
FLOATS = RANDOM.standard_normal((3, 4)).astype(np.float64) * 3
UNIT = RANDOM.uniform(-0.99, 0.99, (3, 4))
POSITIVE = RANDOM.uniform(0.1, 9, (3, 4))
LARGE = POSITIVE + 1
INTS = RANDOM.integers(-9, 9, (3, 4)).astype(np.int32)
FLAGS = RANDOM.random((3, 4)) < 0.5
SPECIAL = np.array([0.0, -0.0, 1.5, -1.5, math.inf, -math.inf, math.nan, 2.5, -0.5, 0.5, 3.5, -7.0])


def given(array):
    return xp.asarray(array) if isinstance(array, np.ndarray) else array


def same(ours, expected, rtol=1e-12):
    if isinstance(expected, (tuple, list)):
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            same(one, other, rtol)
        return
    expected = np.asarray(expected)
    assert isinstance(ours, xp.Array)
    assert ours.shape == expected.shape and ours.dtype.name == expected.dtype.name
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=rtol, atol=1e-13)


UNARY = {
    **dict.fromkeys(("abs", "negative", "positive", "sign", "square"), (FLOATS, INTS)),
    **dict.fromkeys(("ceil", "floor", "round", "trunc"), (FLOATS, SPECIAL, INTS)),
    **dict.fromkeys(("isfinite", "isinf", "isnan"), (SPECIAL, INTS)),
    **dict.fromkeys(("signbit", "conj", "real", "imag"), (SPECIAL,)),
    **dict.fromkeys(("exp", "expm1", "sin", "cos", "tan", "sinh", "cosh", "tanh"), (FLOATS,)),
    **dict.fromkeys(("asinh", "atan", "reciprocal"), (FLOATS,)),
    **dict.fromkeys(("log", "log2", "log10", "log1p", "sqrt"), (POSITIVE,)),
    **dict.fromkeys(("acos", "asin", "atanh"), (UNIT,)),
    "acosh": (LARGE,), "bitwise_invert": (INTS, FLAGS), "logical_not": (FLAGS,),
    "any": (FLOATS, FLAGS), "all": (FLOATS, FLAGS), "count_nonzero": (FLAGS, INTS),
    "sum": (FLOATS, INTS), "prod": (FLOATS,), "max": (FLOATS, INTS), "min": (FLOATS, INTS),
    "mean": (FLOATS,), "var": (FLOATS,), "std": (FLOATS,), "argmax": (FLOATS,), "argmin": (INTS,),
    "nonzero": (FLAGS, INTS), "sort": (FLOATS, INTS), "argsort": (FLOATS,), "flip": (FLOATS,),
    "matrix_transpose": (FLOATS,), "diff": (FLOATS, INTS), "tril": (FLOATS,), "triu": (INTS,),
    "unique_values": (INTS,), "unique_counts": (INTS,), "unique_inverse": (INTS,),
    "unique_all": (INTS, np.repeat(FLOATS, 2, 0)),
    "zeros_like": (INTS,), "ones_like": (FLOATS,), "unstack": (FLOATS,),
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_array(name):
    for array in UNARY[name]:
        with np.errstate(invalid="ignore"):
            expected = getattr(np, name)(array)
        if name == "unique_values":  # numpy gives them in any order
            expected = np.sort(expected)
        same(getattr(xp, name)(given(array)), expected)


BINARY = {
    **dict.fromkeys(("add", "subtract", "multiply", "maximum", "minimum"), (FLOATS, INTS)),
    **dict.fromkeys(("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
                    (FLOATS, INTS)),
    **dict.fromkeys(("divide", "atan2", "copysign", "hypot", "logaddexp", "nextafter"),
                    (FLOATS, SPECIAL.reshape(3, 4))),
    **dict.fromkeys(("floor_divide", "remainder"), (FLOATS,)),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor"), (INTS, FLAGS)),
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), (FLAGS,)),
    **dict.fromkeys(("bitwise_left_shift", "bitwise_right_shift"), (np.abs(INTS),)),
    "pow": (POSITIVE,), "vecdot": (FLOATS,),
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_arrays(name):
    for array in BINARY[name]:
        other = array[::-1].copy()
        with np.errstate(all="ignore"):
            expected = getattr(np, name)(array, other)
        same(getattr(xp, name)(given(array), given(other)), expected)


CALLS = [
    ("arange", (2, 9, 3), {}), ("linspace", (0.0, 1.0, 5), {"dtype": "float64"}),
    ("linspace", (0.0, 1.0, 5), {"dtype": "float64", "endpoint": False}),
    ("eye", (3, 4), {"k": 1, "dtype": "float64"}), ("full", ((2, 3), 7), {}),
    ("meshgrid", (INTS[0], INTS[1]), {}), ("sum", (INTS,), {"axis": (0, 1), "keepdims": True}),
    ("var", (FLOATS,), {"axis": 0, "correction": 1}), ("argmax", (FLOATS,), {"axis": 1}),
    ("var", (FLOATS,), {"axis": ()}),
    ("cumulative_sum", (INTS,), {"axis": 1}), ("cumulative_prod", (FLOATS,), {"axis": 0}),
    ("cumulative_sum", (FLOATS,), {"axis": 0, "include_initial": True}),
    ("clip", (FLOATS, -1.0, 1.0), {}), ("where", (FLAGS, FLOATS, 0.0), {}),
    ("broadcast_to", (FLOATS[0], (2, 4)), {}), ("expand_dims", (FLOATS,), {"axis": -1}),
    ("squeeze", (FLOATS[None], 0), {}), ("moveaxis", (np.zeros((2, 3, 4)), 0, -1), {}),
    ("permute_dims", (np.zeros((2, 3, 4)), (2, 0, 1)), {}), ("reshape", (FLOATS, (2, 6)), {}),
    ("roll", (FLOATS, 2), {}), ("roll", (FLOATS, (1, 2)), {"axis": (0, 1)}),
    ("roll", (FLOATS, 2), {"axis": (0, 1)}),
    ("tile", (FLOATS, (2, 1, 2)), {}), ("repeat", (FLOATS, 3), {"axis": 1}),
    ("repeat", (FLOATS, np.array([2, 0, 1])), {"axis": 0}), ("flip", (FLOATS,), {"axis": 0}),
    ("take", (FLOATS, np.array([2, 0])), {"axis": 0}), ("diff", (FLOATS,), {"axis": 0, "n": 2}),
    ("take_along_axis", (FLOATS, np.array([[1], [0], [3]])), {"axis": 1}),
    ("searchsorted", (np.array([1, 3, 3, 5]), np.array([0, 3, 6, 4])), {}),
    ("searchsorted", (np.array([1, 3, 3, 5]), np.array([0, 3, 6, 4])), {"side": "right"}),
    ("sort", (FLOATS,), {"axis": 0}), ("tensordot", (FLOATS, FLOATS.T), {"axes": 1}),
    ("tensordot", (FLOATS, FLOATS), {"axes": ((0, 1), (0, 1))}),
    ("matmul", (FLOATS, FLOATS.T.copy()), {}), ("tril", (FLOATS,), {"k": -1}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_calls_with_options(number):
    name, arguments, options = CALLS[number]
    ours = dict(options)
    if "dtype" in ours:
        ours["dtype"] = getattr(xp, ours["dtype"])
    expected = getattr(np, name)(*arguments, **options)
    same(getattr(xp, name)(*map(given, arguments), **ours), expected)


def test_joining():
    for name in ("concat", "stack"):
        same(getattr(xp, name)([given(FLOATS), given(UNIT)], axis=1),
             getattr(np, name)([FLOATS, UNIT], axis=1))  # fmt: skip
    same(xp.concat([given(FLOATS), given(INTS[0].astype(np.float64))], axis=None),
         np.concat([FLOATS, INTS[0].astype(np.float64)], axis=None))  # fmt: skip
    same(xp.broadcast_arrays(given(FLOATS), given(UNIT[0])), np.broadcast_arrays(FLOATS, UNIT[0]))


SQUARE = RANDOM.standard_normal((2, 5, 5))
SYMMETRIC = SQUARE + SQUARE.swapaxes(1, 2)
DEFINITE = SQUARE @ SQUARE.swapaxes(1, 2) + np.eye(5)
TALL = RANDOM.standard_normal((6, 4))
LINALG = [
    ("inv", (SQUARE,), {}), ("det", (SQUARE,), {}), ("slogdet", (SQUARE,), {}),
    ("solve", (SQUARE, RANDOM.standard_normal((2, 5, 3))), {}), ("cholesky", (DEFINITE,), {}),
    ("solve", (SQUARE[0], RANDOM.standard_normal(5)), {}), ("matrix_power", (SQUARE, 3), {}),
    ("cholesky", (DEFINITE,), {"upper": True}), ("matrix_power", (SQUARE, -2), {}),
    ("cross", (FLOATS[:, :3], UNIT[:, :3]), {}), ("diagonal", (SQUARE,), {"offset": 1}),
    ("outer", (FLOATS[0], UNIT[1]), {}), ("trace", (SQUARE,), {}), ("vecdot", (FLOATS, UNIT), {}),
    ("matrix_norm", (SQUARE,), {}), ("matrix_norm", (SQUARE,), {"ord": 1, "keepdims": True}),
    ("matrix_norm", (SQUARE,), {"ord": -math.inf}), ("vector_norm", (FLOATS,), {}),
    ("vector_norm", (FLOATS,), {"axis": 1, "ord": 3}), ("vector_norm", (FLOATS,), {"ord": 0}),
    ("vector_norm", (FLOATS,), {"axis": 0, "ord": math.inf, "keepdims": True}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LINALG)))
def test_linear_algebra(number):
    name, arguments, options = LINALG[number]
    expected = getattr(np.linalg, name)(*arguments, **options)
    same(getattr(linalg, name)(*map(given, arguments), **options), expected, 1e-9)


def test_decompositions():
    for array in (SQUARE, TALL, TALL.T.copy()):
        x = given(array)
        for mode in ("reduced", "complete"):
            q, r = linalg.qr(x, mode=mode)
            expected = np.linalg.qr(array, mode=mode)
            assert q.shape == expected.Q.shape and r.shape == expected.R.shape
            same(q @ r, array, 1e-10)
            same(xp.triu(r), np.asarray(r))
        for full in (True, False):
            u, s, vh = linalg.svd(x, full_matrices=full)
            expected = np.linalg.svd(array, full_matrices=full)
            assert u.shape == expected.U.shape and vh.shape == expected.Vh.shape
            same(s, expected.S, 1e-10)
            rank = s.shape[-1]
            product = (u[..., :, :rank] * xp.expand_dims(s, axis=-2)) @ vh[..., :rank, :]
            same(product, array, 1e-9)
            same(linalg.matrix_transpose(u) @ u, np.asarray(xp.zeros_like(
                linalg.matrix_transpose(u) @ u)) + np.eye(u.shape[-1]), 1e-10)
        same(linalg.pinv(x), np.linalg.pinv(array), 1e-9)
        same(linalg.matrix_rank(x), np.linalg.matrix_rank(array))
        for order in ("nuc", 2, -2):
            expected = np.linalg.norm(array, order, (-2, -1))
            same(linalg.matrix_norm(x, ord=order), expected, 1e-10)
    low_rank = TALL[:, :2] @ TALL[:2]
    same(linalg.matrix_rank(given(low_rank)), np.linalg.matrix_rank(low_rank))


def test_eigenvectors():
    values, vectors = linalg.eigh(given(SYMMETRIC))
    same(values, np.linalg.eigvalsh(SYMMETRIC), 1e-9)
    same(linalg.eigvalsh(given(SYMMETRIC)), np.linalg.eigvalsh(SYMMETRIC), 1e-9)
    product = given(SYMMETRIC) @ vectors - vectors * xp.expand_dims(values, axis=-2)
    np.testing.assert_allclose(np.asarray(product), 0, atol=1e-9)


def test_determinants_of_singular_matrices():
    singular = np.array([[[1.0, 2], [2, 4]], [[0, 0], [0, 0]], [[0, 1], [1, 0]]])
    same(linalg.det(given(singular)), np.array([0.0, 0.0, -1.0]))
    assert np.asarray(linalg.slogdet(given(singular)).logabsdet)[0] == -math.inf


def test_promotion_is_strict():
    i8, u8, u64, f4 = (xp.ones(2, dtype=d) for d in (xp.int8, xp.uint8, xp.uint64, xp.float32))
    assert (i8 + u8).dtype is xp.int16 and (f4 + xp.ones(2, dtype=xp.float64)).dtype is xp.float64
    for one, other in ((i8, f4), (i8, u64), (xp.ones(2, dtype=xp.bool), i8)):
        with pytest.raises(TypeError, match=r"common dtype|expected"):
            one + other
    assert (i8 + 1).dtype is xp.int8 and (f4 * 2).dtype is xp.float32
    assert (2.5 - f4).dtype is xp.float32
    with pytest.raises(TypeError, match="cannot combine a Python"):
        i8 + 1.5
    with pytest.raises(OverflowError):
        i8 + 1000
    with pytest.raises(TypeError):
        i8 / i8


def test_dtypes_and_defaults():
    assert xp.asarray([1, 2]).dtype is xp.int64 and xp.asarray(1.5).dtype is xp.float32
    assert xp.asarray(True).dtype is xp.bool and xp.zeros(3).dtype is xp.float32
    assert xp.isdtype(xp.int8, ("real floating", "integral")) and not xp.isdtype(xp.bool, "numeric")
    assert xp.iinfo(xp.int8).max == 127 and xp.iinfo(xp.uint64).max == 2**64 - 1
    for dtype in ("float32", "float64"):
        ours, theirs = xp.finfo(getattr(xp, dtype)), np.finfo(dtype)
        for name in ("bits", "eps", "max", "min", "smallest_normal"):
            assert getattr(ours, name) == float(getattr(theirs, name))
    assert xp.can_cast(xp.int8, xp.int32) and not xp.can_cast(xp.float64, xp.float32)
    assert not xp.can_cast(xp.float32, xp.int8) and xp.isdtype(xp.int8, xp.int8)
    assert xp.result_type(xp.int8, 1) is xp.int8 and xp.result_type(xp.float64, 1.5) is xp.float64
    for dtype, number in ((xp.int8, 1.5), (xp.int8, True), (xp.bool, 1)):
        with pytest.raises(TypeError, match="cannot combine a Python"):
            xp.result_type(dtype, number)
    info = xp.__array_namespace_info__()
    assert info.default_device() in info.devices() and info.capabilities()["boolean indexing"]
    assert info.default_dtypes()["integral"] is xp.int64
    assert set(info.dtypes(kind="real floating")) == {"float32", "float64"}


def test_devices_are_known_by_their_kinds(device):
    assert kind(device) in xp.__array_namespace_info__().devices()


def test_the_array_itself():
    x = xp.reshape(xp.arange(6), (2, 3))
    assert x.__array_namespace__(api_version="2024.12") is xp
    with pytest.raises(ValueError):
        x.__array_namespace__(api_version="1999.12")
    x[0, 1] = 9
    x[:, 2] = xp.asarray([7, 8])
    assert np.asarray(x).tolist() == [[0, 9, 7], [3, 4, 8]]
    x += 1
    x @ xp.ones((3, 2), dtype=xp.int64)
    assert np.asarray(x[x > 7]).tolist() == [10, 8, 9]
    assert np.asarray(x[xp.asarray([1, 0]), ...]).tolist() == [[4, 5, 9], [1, 10, 8]]
    assert np.asarray(x.T).shape == (3, 2) and x.size == 6 and len(x) == 2
    assert float(xp.asarray(2.5)) == 2.5 and int(xp.asarray(2)) == 2 and [1, 2][xp.asarray(1)] == 2
    assert [int(v) for v in xp.asarray([3, 4])] == [3, 4]
    with pytest.raises(TypeError):
        bool(x)
    with pytest.raises(TypeError):
        xp.Array()
    assert np.from_dlpack(xp.asarray([1.0, 2.0])).tolist() == [1, 2]
    assert np.asarray(xp.from_dlpack(np.arange(3))).tolist() == [0, 1, 2]
    assert x.to_device(str(x.device)).device == x.device
    assert x.__dlpack_device__() == (1, 0) and complex(xp.asarray(2.5)) == 2.5
    y = xp.asarray([1, -2])
    assert np.asarray(abs(y)).tolist() == [1, 2] and np.asarray(~y).tolist() == [-2, 1]
    assert np.asarray(+y).tolist() == [1, -2] and int(y[xp.asarray(1)]) == -2
    with pytest.raises(TypeError, match="unsupported operand"):
        y += "a"
    assert "dtype=int64" in repr(x)


def test_copies_of_arrays():
    x = xp.asarray([1, 2])
    copied, wider = xp.asarray(x, copy=True), xp.asarray(x, dtype=xp.float64)
    copied[0] = 5
    assert np.asarray(x).tolist() == [1, 2] and np.asarray(copied).tolist() == [5, 2]
    assert xp.asarray(x) is x and wider.dtype is xp.float64
    assert xp.astype(x, xp.int64, copy=False) is x and xp.astype(x, xp.int64) is not x
    given = np.array([1.0, 2.0])
    assert np.asarray(xp.asarray(given, copy=False)).tolist() == [1, 2]
    for one, options in ((x, {"dtype": xp.float64}), ([1, 2], {})):
        with pytest.raises(ValueError, match="cop"):
            xp.asarray(one, copy=False, **options)
    empty = xp.repeat(xp.zeros((0, 2)), xp.asarray([], dtype=xp.int64), axis=0)
    assert empty.shape == (0, 2) and xp.meshgrid() == [] and xp.empty((2, 2)).shape == (2, 2)
    assert xp.empty_like(x).dtype is x.dtype


def test_the_variance_of_single_numbers_less_one():
    assert np.isnan(np.asarray(xp.var(xp.ones(2), axis=(), correction=1))).all()


def test_a_deviation_is_not_rounded_before_its_root():
    assert float(xp.std(xp.asarray(np.array([0, 1000], np.float16)))) == 500


def test_more_differences_than_elements(on_device):
    for n in range(4):
        found = xp.diff(xp.asarray([[1, 4], [2, 8]]), axis=1, n=n)
        assert found.shape == (2, max(2 - n, 0))
