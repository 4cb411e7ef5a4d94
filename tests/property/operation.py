"""The fields of an operation table row, and how a row is evaluated.

A row's `call` receives Tensors, its `reference` numpy arrays: floats as float64 for any tested
dtype, so that the reference's own rounding does not matter; integers and bools unchanged, or as
float64 too if the result is float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad import Context, Tensor, dtypes
from minigrad.dtype import named, sum_dtype

from .compare import EXACT, Tolerance, difference
from .inputs import DOMAINS, FLOATS, NUMPY_DTYPES, Input, is_float
from .plans import Plan, Plans

# Composed of a few operations, each with its own rounding, and perhaps cancellation.
COMPOSED = Tolerance(ulps=16, scale=8)
# One math function: REF is within 2 ulp of the exact value, a compiled device within 4.
MATH = Tolerance(ulps=6)
# One operation that IEEE rounds correctly; OpenCL may be one or two ulps off.
ROUNDED = Tolerance(ulps=2)
# One of the operands; if zeros of different signs tie, either of them.
SELECTED = Tolerance(signed_zero=False)
# A sum of products, in any order.
SUMMED = Tolerance(ulps=4, scale=2, terms=1)


def same(dtype: str) -> str:
    """The result has the operands' dtype."""
    return dtype


def boolean(dtype: str) -> str:
    """The result is bool."""
    return "bool"


def floating(dtype: str) -> str:
    """Integers give the default float dtype."""
    return dtype if is_float(dtype) else dtypes.default_float.name


def summed(dtype: str) -> str:
    """Small integers and bool widen to 32 bits."""
    return sum_dtype(named(dtype)).name


def index(dtype: str) -> str:
    """Positions are int32."""
    return "int32"


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    name: unique; the default of `methods`, the Tensor attributes that the row covers.
    call, reference: the operation on Tensors and on numpy arrays (None: only REF defines it);
    both give one result or a tuple. plans: shapes and parameters. domains: ranges of each operand's
    values (the last one repeats). dtypes: those that it accepts; the first one is tested most.
    result: the result's dtype, from the operands'. differentiable: by every float operand that
    `gradient_domains` (default: `domains`) keeps away from kinks. special: whether operands may be
    NaN and the like. layouts: whether operands may be views. smooth: plans that have a derivative.
    exact: mpmath's function of one number (see `exact`), which is also tested at special points;
    the reference decides the sign of a 0 or an ∞, as mpmath has no −0.
    """

    name: str
    call: Callable[..., Any]
    reference: Callable[..., Any] | None
    plans: Plans
    domains: tuple[str, ...] = ("any",)
    dtypes: tuple[str, ...] = FLOATS
    result: Callable[[str], str] | tuple[Callable[[str], str], ...] = same
    tolerance: Tolerance = EXACT
    differentiable: bool = False
    gradient_domains: tuple[str, ...] | None = None
    special: bool = True
    layouts: bool = True
    methods: tuple[str, ...] = ()
    smooth: Callable[[Plan], bool] = lambda plan: True
    exact: Callable[[Any], Any] | None = None

    @property
    def covers(self) -> tuple[str, ...]:
        """The names of Tensor attributes that this row tests."""
        return self.methods or (self.name,)

    def result_dtype(self, dtype: str, position: int = 0) -> str:
        """The dtype of the result at `position` for operands of `dtype`."""
        rule = self.result[position] if isinstance(self.result, tuple) else self.result
        return rule(dtype)


@dataclass(frozen=True)
class Case:
    """One call: operands, parameters, and which of the row's dtypes is tested."""

    inputs: tuple[Input, ...]
    parameters: Mapping[str, Any]
    dtype: str

    @property
    def summands(self) -> float:
        """An upper bound of the number of terms that one element of a result sums up."""
        sizes = [int(np.prod(i.shape, dtype=np.int64)) for i in self.inputs]
        return float(max([1, *sizes]))


def make_case(
    operation: Operation,
    plan: Plan,
    dtype: str,
    seed: int = 0,
    layouts: Sequence[str] = ("contiguous",),
    special: bool = False,
    gradient: bool = False,
) -> Case:
    """A case of a plan; operand i takes layouts[i % len(layouts)] and its own seed."""
    chosen = operation.gradient_domains if gradient else None
    domains = plan.domains or chosen or operation.domains
    inputs = []
    for position, shape in enumerate(plan.shapes):
        domain = domains[min(position, len(domains) - 1)]
        if gradient and domain == "wide":
            domain = "any"  # a finite difference needs values of similar magnitude
        kind = DOMAINS[domain.partition(":")[0]]
        layout = layouts[position % len(layouts)] if operation.layouts else "contiguous"
        if layout == "padded" and not kind.zero:
            layout = "sliced"
        if layout == "broadcast" and domain == "distinct":
            layout = "transposed"  # repeated elements would be ties, and have no deviation
        inputs.append(
            Input(
                shape=shape,
                dtype=kind.dtype or dtype,
                domain=domain,
                layout=layout,
                seed=seed * 8 + position,
                special=special and operation.special and kind.special,
            )
        )
    return Case(tuple(inputs), plan.parameters, dtype)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One result or several, as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def evaluate(
    operation: Operation, cases: Sequence[Case], device: str, **settings: int
) -> list[tuple[np.ndarray, ...]]:
    """The results of all cases on a device, computed in one realization."""
    with Context(DEVICE=device, **settings):
        made = [
            as_tuple(operation.call(*(i.tensor(device) for i in c.inputs), **c.parameters))
            for c in cases
        ]
        flat = [result for results in made for result in results]
        if flat:
            Tensor.realize(*flat)
        return [tuple(result.numpy() for result in results) for results in made]


def _reference_operand(given: Input, dtype: str, result: str) -> np.ndarray:
    """Floats as float64; so are integers if the result is float, first rounded to its dtype."""
    array = given.array()
    if is_float(result) and given.dtype == dtype and not is_float(dtype):
        array = array.astype(NUMPY_DTYPES[result])
    return array.astype(np.float64) if str(array.dtype) in FLOATS else array


def expected(operation: Operation, case: Case) -> tuple[np.ndarray, ...] | None:
    """numpy's results in the dtypes of the table; None if only REF defines them."""
    if operation.reference is None:
        return None
    dtype = case.dtype
    arrays = [_reference_operand(i, dtype, operation.result_dtype(dtype)) for i in case.inputs]
    with np.errstate(all="ignore"):
        results = as_tuple(operation.reference(*arrays, **case.parameters))
        return tuple(
            np.asarray(result).astype(NUMPY_DTYPES[operation.result_dtype(dtype, position)])
            for position, result in enumerate(results)
        )


def disagreement(
    operation: Operation,
    case: Case,
    actual: tuple[np.ndarray, ...],
    wanted: tuple[np.ndarray, ...],
) -> str | None:
    """The difference between two results of one case, or None."""
    if len(actual) != len(wanted):
        return f"{len(actual)} results, expected {len(wanted)}"
    operands = tuple(i.array() for i in case.inputs)
    for position, (a, w) in enumerate(zip(actual, wanted, strict=True)):
        problem = difference(a, w, operation.tolerance, operands, case.summands)
        if problem:
            return f"{operation.name}, result {position}, {case}:\n{problem}"
    return None
