"""Rows of the operation table: reductions, and operations along one axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .compare import EXACT, Tolerance
from .inputs import ALL, FLOATS, INTS, NUMBERS
from .operation import COMPOSED, SELECTED, SUMMED, Operation, boolean, floating, index, same, summed
from .plans import Plan, Plans, along_axis, drawn, reduction, with_choices
from .table_unary import method

WHOLE = reduction()
NOT_EMPTY = reduction(empty=False)
ONE_AXIS = reduction(empty=False, several=False)
ALONG = along_axis()
ALONG_NOT_EMPTY = along_axis(empty=False)


def reducing(name: str) -> Callable[..., Any]:
    """x.name(axis=…, keepdim=…)."""
    return method(name)


def _numpy(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """A numpy reduction with Tensor's parameter names."""

    def reference(x: Any, axis: Any = None, keepdim: bool = False, **rest: Any) -> Any:
        return function(x, axis=axis, keepdims=keepdim, **rest, **fixed)

    return reference


def _wrapping(function: Callable[..., Any]) -> Callable[..., Any]:
    """Sums and products of integers wrap in 64 bits; the result's dtype narrows them further."""

    def reference(x: Any, axis: Any = None, keepdim: bool = False) -> Any:
        wide = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.int64)
        if x.dtype == np.uint64:
            wide = x
        return function(wide, axis=axis, keepdims=keepdim)

    return reference


def _count(x: Any, axis: Any) -> int:
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return int(np.prod([x.shape[a] for a in axes], dtype=np.int64))


def variance(x: Any, axis: Any = None, keepdim: bool = False, correction: int = 1) -> Any:
    """The sum of squared deviations over (count − correction); NaN for 0 / 0."""
    center = x.mean(axis=axis, keepdims=True)
    squares = np.sum((x - center) ** 2, axis=axis, keepdims=keepdim)
    return squares / np.float64(max(0, _count(x, axis) - correction))


def deviation(x: Any, **parameters: Any) -> Any:
    """Square root of the variance."""
    return np.sqrt(variance(x, **parameters))


def log_sum_exp(x: Any, axis: Any = None, keepdim: bool = False) -> Any:
    """log of the sum of exponentials, without overflow."""
    most = np.max(x, axis=axis, keepdims=True)
    most = np.where(np.isfinite(most), most, 0)
    total = np.sum(np.exp(x - most), axis=axis, keepdims=True)
    result = np.log(total) + most
    return result if keepdim else np.squeeze(result, axis=axis)


def softmax(x: Any, axis: int = -1) -> Any:
    """exp(x) over its sum along an axis."""
    exponentials = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """log(softmax(x))."""
    shifted = x - np.max(x, axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def row(
    name: str, reference: Any, plans: Plans, tolerance: Tolerance = EXACT, **more: Any
) -> Operation:
    """A row for a differentiable reduction of floats, under Tensor's method name."""
    fields: dict[str, Any] = {
        "differentiable": True, "dtypes": (*FLOATS, "int32"), "tolerance": tolerance, **more
    }  # fmt: skip
    return Operation(name, reducing(name), reference, plans, **fields)


def _correction(plans: Plans) -> Plans:
    return with_choices(plans, [{}, {"correction": 0}, {"correction": 1}])


def _several(plan: Plan) -> bool:
    """Whether more than one element is reduced: the deviation of one element has a kink."""
    return _count(np.empty(plan.shapes[0]), plan.parameters["axis"]) > 1


def _few_factors(plan: Plan) -> bool:
    """Whether at most 65 elements are multiplied: a finite difference's step must be small."""
    return _count(np.empty(plan.shapes[0]), plan.parameters["axis"]) <= 65


SPREAD = Tolerance(ulps=8, scale=8, terms=2)
# A variance may be 0 up to rounding, which its root magnifies: √(terms · ε) is about 1e-3 of the
# scale. So deviations are tested with data that varies (the domain "distinct").
REDUCTIONS = [
    row("sum", _wrapping(np.sum), WHOLE, SUMMED, dtypes=ALL, result=summed),
    row("prod", _wrapping(np.prod), WHOLE, Tolerance(ulps=4, scale=2, terms=1), result=summed,
        domains=("near_one",), gradient_domains=("some_zeros",), dtypes=(*FLOATS, *INTS),
        smooth=_few_factors),
    row("max", _numpy(np.max), NOT_EMPTY, SELECTED, dtypes=NUMBERS, domains=("wide",),
        gradient_domains=("distinct",)),
    row("min", _numpy(np.min), NOT_EMPTY, SELECTED, dtypes=NUMBERS, domains=("wide",),
        gradient_domains=("distinct",)),
    row("mean", _numpy(np.mean), WHOLE, SUMMED, result=floating, dtypes=(*FLOATS, *INTS)),
    row("var", variance, _correction(NOT_EMPTY), SPREAD, dtypes=FLOATS),
    row("std", deviation, _correction(NOT_EMPTY), SPREAD, dtypes=FLOATS, domains=("distinct",),
        smooth=_several),
    row("std_mean", lambda x, **k: (deviation(x, **k), _numpy(np.mean)(x, k["axis"], k["keepdim"])),
        NOT_EMPTY, SPREAD, dtypes=FLOATS, domains=("distinct",), result=(same, same),
        smooth=_several),
    row("any", _numpy(np.any), WHOLE, EXACT, dtypes=ALL, domains=("some_zeros",), result=boolean,
        differentiable=False),
    row("all", _numpy(np.all), WHOLE, EXACT, dtypes=ALL, domains=("some_zeros",), result=boolean,
        differentiable=False),
    row("argmax", _numpy(np.argmax), ONE_AXIS, EXACT, dtypes=NUMBERS, domains=("quarters",),
        result=index, differentiable=False),
    row("argmin", _numpy(np.argmin), ONE_AXIS, EXACT, dtypes=NUMBERS, domains=("quarters",),
        result=index, differentiable=False),
    row("logsumexp", log_sum_exp, NOT_EMPTY, Tolerance(ulps=8, scale=4, terms=1), dtypes=FLOATS),
]  # fmt: skip

ALONG_AXIS = [
    row("softmax", softmax, ALONG_NOT_EMPTY, COMPOSED, dtypes=FLOATS),
    row("log_softmax", log_softmax, ALONG_NOT_EMPTY, COMPOSED, dtypes=FLOATS),
    row("cumsum", lambda x, axis: _wrapping_scan(np.cumsum, x, axis), ALONG, SUMMED,
        dtypes=ALL, result=summed),
    row("cumprod", lambda x, axis: _wrapping_scan(np.cumprod, x, axis), ALONG, SUMMED,
        dtypes=(*FLOATS, *INTS), result=summed, domains=("near_one",),
        gradient_domains=("some_zeros",)),
]  # fmt: skip


def _wrapping_scan(function: Callable[..., Any], x: Any, axis: int) -> Any:
    if np.issubdtype(x.dtype, np.floating) or x.dtype == np.uint64:
        return function(x, axis=axis)
    return function(x.astype(np.int64), axis=axis)


def _positions(x: Any, axis: int, descending: bool = False) -> Any:
    order = np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    if descending:
        return x.shape[axis] - 1 - order
    return np.argsort(x, axis=axis, kind="stable")


def _sort(x: Any, axis: int, descending: bool = False) -> Any:
    positions = _positions(x, axis, descending)
    return np.take_along_axis(x, positions, axis), positions


def _extreme_scan(ufunc: Any) -> Callable[..., Any]:
    """Running extremes and the position of the latest (the last of equal ones, as in PyTorch)."""

    def reference(x: Any, axis: int) -> Any:
        values = ufunc.accumulate(x, axis=axis)
        shape = [1] * x.ndim
        shape[axis] = -1
        steps = np.arange(x.shape[axis]).reshape(shape)
        hits = np.where((x == values) | (x != x), steps, 0)
        return values, np.maximum.accumulate(hits, axis=axis)

    return reference


def _topk(x: Any, k: int, axis: int = -1, largest: bool = True) -> Any:
    values, positions = _sort(x, axis, largest)
    head = np.arange(min(k, x.shape[axis]))
    return np.take(values, head, axis), np.take(positions, head, axis)


def _topk_plan(draw: Any) -> Plan:
    from hypothesis import strategies as st

    plan = draw(ALONG_NOT_EMPTY.random)
    axis = plan.parameters["axis"]
    k = draw(st.integers(1, plan.shapes[0][axis]))
    return Plan(plan.shapes, {"axis": axis, "k": k, "largest": draw(st.booleans())})


_ORDER: dict[str, Any] = {
    "domains": ("quarters",), "gradient_domains": ("distinct",), "dtypes": NUMBERS,
    "tolerance": SELECTED,
}  # fmt: skip
_DIRECTIONS = with_choices(ALONG, [{}, {"descending": True}])
_DIRECTIONS = Plans((*_DIRECTIONS.edges, Plan(((300, 2),), {"axis": 0}), Plan(((2, 300),), {
    "axis": 1, "descending": True})), _DIRECTIONS.random)  # too many elements to sort by counting
ORDER = [
    row("cummax", _extreme_scan(np.maximum), ALONG, result=(same, index), **_ORDER),
    row("cummin", _extreme_scan(np.minimum), ALONG, result=(same, index), **_ORDER),
    row("sort", _sort, _DIRECTIONS, result=(same, index), **_ORDER),
    row("argsort", _positions, _DIRECTIONS, result=index,
        **{**_ORDER, "differentiable": False}),
    row("topk", _topk,
        drawn([Plan(((9,),), {"k": 3}), Plan(((5, 33),), {"k": 5, "axis": 1, "largest": False})],
              _topk_plan), result=(same, index), **_ORDER),
    row("normalize", lambda x, p=2, axis=1, eps=1e-12: x / np.maximum(
        np.linalg.norm(x, ord=p, axis=axis, keepdims=True), eps),
        with_choices(ALONG_NOT_EMPTY, [{}, {"p": 1}, {"p": np.inf}, {"p": 3}, {"p": 0}]), SPREAD,
        dtypes=FLOATS, domains=("nonzero",), smooth=lambda plan: "p" not in plan.parameters or (
            plan.parameters["p"] != np.inf)),
]  # fmt: skip

REDUCE = [*REDUCTIONS, *ALONG_AXIS, *ORDER]
