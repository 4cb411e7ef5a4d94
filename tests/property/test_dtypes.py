"""Every operation with every dtype that it accepts; promotion; casts of special values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from minigrad import Context, Tensor
from minigrad.dtype import ALL as ALL_DTYPES
from minigrad.dtype import convert, named, promote

from .inputs import ALL, NUMPY_DTYPES, Input, is_float, specials
from .operation import make_case
from .operations import BY_NAME, OPERATIONS
from .test_forward import check


@pytest.mark.parametrize("name", [o.name for o in OPERATIONS if len(o.dtypes) > 1])
def test_dtypes(name: str, compiled: str) -> None:
    """Two shapes with each dtype of the row; of integers and bools one, with special values."""
    operation = BY_NAME[name]
    edges = operation.plans.edges
    plans, cases = [edges[0], edges[-3 % len(edges)]], []
    for dtype in operation.dtypes[1:]:
        if operation.special and not is_float(dtype):
            cases.append(make_case(operation, edges[-1], dtype, 9, special=True))
        else:
            cases += [make_case(operation, p, dtype, n) for n, p in enumerate(plans)]
    check(operation, cases, compiled)


def _tensors(dtype: str, device: str) -> tuple[Any, Tensor]:
    value = Input((9,), dtype, "quarters", seed=3)
    return value.array(), value.tensor(device)


def test_promotion(device: str) -> None:
    """Each pair of dtypes: the result has the promoted dtype and the promoted values' sum."""
    with Context(DEVICE=device):
        results = {}
        for a, b in itertools.product(ALL, ALL):
            x, y = _tensors(a, device)[1], _tensors(b, device)[1]
            results[a, b] = (x + y, x.maximum(y), Tensor.where(x == y, x, y))
        Tensor.realize(*(t for triple in results.values() for t in triple))
    for (a, b), triple in results.items():
        wanted = promote(named(a), named(b))
        x = _tensors(a, device)[0].astype(NUMPY_DTYPES[wanted.name])
        y = _tensors(b, device)[0].astype(NUMPY_DTYPES[wanted.name])
        expected = (x + y, np.maximum(x, y), np.where(x == y, x, y))
        for result, value in zip(triple, expected, strict=True):
            assert result.dtype is wanted, (a, b, result.dtype)
            assert np.array_equal(result.numpy(), value), (a, b)


@pytest.mark.parametrize("signed", ["int8", "int16", "int32", "int64"])
def test_signed_integers_with_uint64_are_float32(signed: str) -> None:
    """Both halves are equally near: without a rule, the choice differed between processes."""
    assert promote(named(signed), named("uint64")) is named("float32")
    assert promote(named("uint64"), named(signed), named("bfloat16")) is named("bfloat16")


def _awkward(dtype: str) -> list[Any]:
    """Values with interesting conversions, as Python numbers that the dtype holds exactly."""
    wanted: list[Any] = list(specials(dtype))
    if is_float(dtype):
        wanted += [
            0.5, -0.5, 1.5, 2.5, -2.5, 126.9, -128.9, 255.5, 300.0, -1.0, 65504.0, 70000.0, 1e30,
            2.0**31, -(2.0**31), 2.0**32, 2.0**63, 2.0**64, -(2.0**63), -1e30, 1e-30,
        ]  # fmt: skip
    elif dtype != "bool":
        limits = np.iinfo(dtype)
        edges = (1, 2, 127, 128, 255, 256, 2049, 65535, 65537, 2**24 + 1, 2**31, 2**53 + 1)
        wanted += [v for v in (*edges, -128, -129, -2049) if limits.min <= v <= limits.max]
    return [convert(value, named(dtype)) for value in wanted]


def _as_array(values: list[Any], dtype: str) -> np.ndarray:
    if is_float(dtype):
        return np.array(values, np.float64).astype(NUMPY_DTYPES[dtype])
    return np.array(values, NUMPY_DTYPES[dtype])


@pytest.mark.parametrize("source", ALL)
def test_casts(source: str, device: str) -> None:
    """Each dtype to each other: integers wrap, floats saturate, NaN gives 0, as `convert` says."""
    values = _awkward(source)
    x = Tensor(_as_array(values, source), device=device)
    results = {target.name: x.cast(target) for target in ALL_DTYPES}
    Tensor.realize(*results.values())
    for name, result in results.items():
        wanted = _as_array([convert(value, named(name)) for value in values], name)
        got = result.numpy()
        same = np.array_equal(got.astype(np.float64), wanted.astype(np.float64), equal_nan=True) \
            if is_float(name) else np.array_equal(got, wanted)  # fmt: skip
        assert result.dtype is named(name) and same, (
            f"{source} → {name}:\n{values}\ngot      {got}\nexpected {wanted}"
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_pattern_of_two_bytes_stays(dtype: str, device: str) -> None:
    """Bits of integers, copied as floats, do not change, not even those of NaNs."""
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    x = Tensor(bits, device=device).bitcast(dtype).realize()
    copied = x.T.contiguous().realize()
    assert np.array_equal(copied.bitcast("uint16").numpy(), bits.T)
    assert copied.numpy().tobytes() == bits.T.tobytes()


@pytest.mark.parametrize(
    "pair",
    [("float32", "int32"), ("float32", "uint32"), ("float64", "int64"), ("float16", "int16"),
     ("bfloat16", "uint16"), ("int8", "uint8"), ("int64", "uint64"), ("float16", "bfloat16"),
     ("float32", "uint8"), ("int16", "float64"), ("uint64", "int8")],
    ids="-".join,
)  # fmt: skip
def test_bitcasts(pair: tuple[str, str], device: str) -> None:
    """The bits do not change, in both directions; to another size, the last dimension grows or
    shrinks, in the order of bytes in memory.
    """
    for source, target in (pair, pair[::-1]):
        values = [v for v in _awkward(source) if v == v] * 8
        array = np.stack([_as_array(values, source), _as_array(values[::-1], source)])
        result = Tensor(array, device=device).bitcast(target).numpy()
        wanted = array.view(NUMPY_DTYPES[target])
        assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
        assert result.tobytes() == array.tobytes(), (source, target)


@pytest.mark.parametrize("dtype", ALL)
def test_python_scalars_are_weak(dtype: str, device: str) -> None:
    """A Python number never widens a tensor of its own kind."""
    x = Tensor(_as_array([1, 0, 1], dtype), device=device)
    floats = dtype if is_float(dtype) else "float32"
    integers = "int32" if dtype == "bool" else dtype
    assert (x + 1.5).dtype is named(floats)
    assert (x * 2).dtype is named(integers)
    assert (x + True).dtype is named(dtype)
    assert np.array_equal((x * 2).numpy().astype(np.float64), [2, 0, 2])
    assert np.array_equal((x + 1.5).numpy().astype(np.float64), [2.5, 1.5, 2.5])
