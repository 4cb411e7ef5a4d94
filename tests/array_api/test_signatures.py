"""Signatures of the namespace against those of the array API standard 2024.12."""

from __future__ import annotations

import inspect

import pytest

import minigrad.array_api as xp
from minigrad.array_api import linalg

KIND = "dtype=None, device=None"
REDUCED = "(x, /, *, axis=None, keepdims=False)"
ONE = """abs acos acosh asin asinh atan atanh bitwise_invert ceil conj cos cosh exp expm1 floor imag
isfinite isinf isnan log log10 log1p log2 logical_not matrix_transpose negative nonzero positive
real reciprocal round sign signbit sin sinh sqrt square tan tanh trunc unique_all unique_counts
unique_inverse unique_values"""
TWO = """add atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor
copysign divide equal floor_divide greater greater_equal hypot less less_equal logaddexp logical_and
logical_or logical_xor matmul maximum minimum multiply nextafter not_equal pow remainder
subtract"""
NAMESPACE = {
    **dict.fromkeys(ONE.split(), "(x, /)"),
    **dict.fromkeys(TWO.split(), "(x1, x2, /)"),
    **dict.fromkeys(["all", "any", "count_nonzero", "max", "mean", "min"], REDUCED),
    **dict.fromkeys(["argmax", "argmin"], REDUCED),
    **dict.fromkeys(["sum", "prod"], "(x, /, *, axis=None, dtype=None, keepdims=False)"),
    **dict.fromkeys(["std", "var"], "(x, /, *, axis=None, correction=0.0, keepdims=False)"),
    **dict.fromkeys(["empty", "ones", "zeros"], f"(shape, *, {KIND})"),
    **dict.fromkeys(["empty_like", "ones_like", "zeros_like"], f"(x, /, *, {KIND})"),
    **dict.fromkeys(["cumulative_sum", "cumulative_prod"],
                    "(x, /, *, axis=None, dtype=None, include_initial=False)"),
    **dict.fromkeys(["sort", "argsort"], "(x, /, *, axis=-1, descending=False, stable=True)"),
    **dict.fromkeys(["tril", "triu"], "(x, /, *, k=0)"),
    **dict.fromkeys(["finfo", "iinfo"], "(type, /)"),
    "arange": f"(start, /, stop=None, step=1, *, {KIND})",
    "asarray": f"(obj, /, *, {KIND}, copy=None)",
    "astype": "(x, dtype, /, *, copy=True, device=None)",
    "broadcast_arrays": "(*arrays)",
    "broadcast_to": "(x, /, shape)",
    "can_cast": "(from_, to, /)",
    "clip": "(x, /, min=None, max=None)",
    "concat": "(arrays, /, *, axis=0)",
    "diff": "(x, /, *, axis=-1, n=1, prepend=None, append=None)",
    "expand_dims": "(x, /, axis=0)",  # the standard has (x, /, *, axis=0), numpy (x, axis)
    "eye": f"(n_rows, n_cols=None, /, *, k=0, {KIND})",
    "flip": "(x, /, *, axis=None)",
    "from_dlpack": "(x, /, *, device=None, copy=None)",
    "full": f"(shape, fill_value, *, {KIND})",
    "full_like": f"(x, /, fill_value, *, {KIND})",
    "isdtype": "(dtype, kind)",
    "linspace": f"(start, stop, /, num, *, {KIND}, endpoint=True)",
    "meshgrid": "(*arrays, indexing='xy')",
    "moveaxis": "(x, source, destination, /)",
    "permute_dims": "(x, /, axes)",
    "repeat": "(x, repeats, /, *, axis=None)",
    "reshape": "(x, /, shape, *, copy=None)",
    "result_type": "(*arrays_and_dtypes)",
    "roll": "(x, /, shift, *, axis=None)",
    "searchsorted": "(x1, x2, /, *, side='left', sorter=None)",
    "squeeze": "(x, /, axis)",
    "stack": "(arrays, /, *, axis=0)",
    "take": "(x, indices, /, *, axis=None)",
    "take_along_axis": "(x, indices, /, *, axis=-1)",
    "tensordot": "(x1, x2, /, *, axes=2)",
    "tile": "(x, repetitions, /)",
    "unstack": "(x, /, *, axis=0)",
    "vecdot": "(x1, x2, /, *, axis=-1)",
    "where": "(condition, x1, x2, /)",
    "__array_namespace_info__": "()",
}  # fmt: skip
LINALG = {
    **dict.fromkeys(["det", "eigh", "eigvalsh", "inv", "matrix_transpose"], "(x, /)"),
    **dict.fromkeys(["slogdet", "svdvals"], "(x, /)"),
    **dict.fromkeys(["matmul", "outer", "solve"], "(x1, x2, /)"),
    **dict.fromkeys(["matrix_rank", "pinv"], "(x, /, *, rtol=None)"),
    "cholesky": "(x, /, *, upper=False)",
    "cross": "(x1, x2, /, *, axis=-1)",
    "diagonal": "(x, /, *, offset=0)",
    "matrix_norm": "(x, /, *, keepdims=False, ord='fro')",
    "matrix_power": "(x, n, /)",
    "qr": "(x, /, *, mode='reduced')",
    "svd": "(x, /, *, full_matrices=True)",
    "tensordot": "(x1, x2, /, *, axes=2)",
    "trace": "(x, /, *, offset=0, dtype=None)",
    "vecdot": "(x1, x2, /, *, axis=-1)",
    "vector_norm": "(x, /, *, axis=None, keepdims=False, ord=2)",
}
BINARY = """add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"""
NO_OPERAND = "abs bool complex dlpack_device float index int invert neg pos"
COMPARISONS = "eq ne lt le gt ge"
METHODS = {
    **{f"__{name}__": "(self)" for name in NO_OPERAND.split()},
    **{f"__{form}{name}__": "(self, other, /)" for name in BINARY.split() for form in ("", *"ir")},
    **{f"__{name}__": "(self, other, /)" for name in COMPARISONS.split()},
    "__array_namespace__": "(self, *, api_version=None)",
    "__dlpack__": "(self, *, stream=None, max_version=None, dl_device=None, copy=None)",
    "__getitem__": "(self, key, /)",
    "__setitem__": "(self, key, value, /)",
    "to_device": "(self, device, /, *, stream=None)",
}  # fmt: skip
INFO = {
    "capabilities": "()", "default_device": "()", "devices": "()",
    "default_dtypes": "(*, device=None)", "dtypes": "(*, device=None, kind=None)",
}  # fmt: skip


def plain(function: object) -> str:
    """A signature without annotations."""
    found = inspect.signature(function)  # type: ignore[arg-type]
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", NAMESPACE)
def test_the_namespace(name: str) -> None:
    assert plain(getattr(xp, name)) == NAMESPACE[name]


@pytest.mark.parametrize("name", LINALG)
def test_linear_algebra(name: str) -> None:
    assert plain(getattr(linalg, name)) == LINALG[name]


@pytest.mark.parametrize("name", METHODS)
def test_the_array(name: str) -> None:
    assert plain(getattr(xp.Array, name)) == METHODS[name]


@pytest.mark.parametrize("name", INFO)
def test_the_inspection(name: str) -> None:
    assert plain(getattr(xp.__array_namespace_info__(), name)) == INFO[name]


def test_the_tables_are_whole() -> None:
    functions = {name for name in xp.__all__ if inspect.isfunction(getattr(xp, name))}
    assert functions == set(NAMESPACE)
    assert set(linalg.__all__) == set(LINALG)
