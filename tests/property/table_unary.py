"""Rows of the operation table: elementwise operations of one operand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .compare import EXACT, Tolerance
from .inputs import ALL, FLOATS, INTS, NUMBERS, SIGNED
from .operation import COMPOSED, MATH, ROUNDED, SELECTED, Operation, boolean, floating, same
from .plans import elementwise, with_choices

Reference = Callable[..., Any]
ONE = elementwise(1)
erf = np.vectorize(math.erf, otypes=[np.float64])
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def method(name: str) -> Callable[..., Any]:
    """Call a Tensor's method by name."""

    def call(x: Any, *rest: Any, **parameters: Any) -> Any:
        return getattr(x, name)(*rest, **parameters)

    return call


def sigmoid(x: Any) -> Any:
    """The logistic function."""
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


def softplus(x: Any) -> Any:
    """log(1 + exp(x))."""
    return np.logaddexp(x, 0)


def gelu(x: Any) -> Any:
    """GELU by its tanh approximation (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def row(
    name: str,
    reference: Reference,
    domain: str = "any",
    tolerance: Tolerance = MATH,
    **changes: Any,
) -> Operation:
    """A differentiable float function, named as Tensor names it."""
    fields: dict[str, Any] = {
        "call": method(name),
        "reference": reference,
        "plans": ONE,
        "domains": (domain,),
        "dtypes": (*FLOATS, "int32", "uint8", "bool"),
        "result": floating,
        "tolerance": tolerance,
        "differentiable": True,
    }
    return Operation(name, **{**fields, **changes})


# Kinked functions are differentiated away from their kinks (near 0, ±1, ±3, 6).
FUNCTIONS = [
    row("sqrt", np.sqrt, "nonnegative", ROUNDED, gradient_domains=("positive",)),
    row("rsqrt", lambda x: 1 / np.sqrt(x), "positive", COMPOSED),
    row("reciprocal", lambda x: 1 / x, "nonzero", ROUNDED),
    row("exp", np.exp),
    row("exp2", np.exp2),
    row("expm1", np.expm1, tolerance=COMPOSED),
    row("log", np.log, "positive"),
    row("log2", np.log2, "positive"),
    row("log10", np.log10, "positive", COMPOSED),
    row("log1p", np.log1p, "nonnegative", COMPOSED, gradient_domains=("positive",)),
    row("sin", np.sin),
    row("cos", np.cos),
    row("tan", np.tan, "angle", Tolerance(ulps=24, scale=8)),
    row("asin", np.arcsin, "unit", COMPOSED),
    row("acos", np.arccos, "unit", COMPOSED),
    row("atan", np.arctan, tolerance=COMPOSED),
    row("sinh", np.sinh, tolerance=COMPOSED),
    row("cosh", np.cosh, tolerance=COMPOSED),
    row("tanh", np.tanh),
    row("asinh", np.arcsinh, tolerance=COMPOSED),
    row("acosh", np.arccosh, "above_one", COMPOSED),
    row("atanh", np.arctanh, "unit", COMPOSED),
    row("erf", erf),
    row("sigmoid", sigmoid, tolerance=COMPOSED),
    row("logsigmoid", lambda x: -softplus(-x), tolerance=COMPOSED),
    row("silu", lambda x: x * sigmoid(x), tolerance=COMPOSED),
    row("swish", lambda x: x * sigmoid(x), tolerance=COMPOSED),
    row("gelu", gelu, tolerance=COMPOSED),
    row("quick_gelu", lambda x: x * sigmoid(1.702 * x), tolerance=COMPOSED),
    row("mish", lambda x: x * np.tanh(softplus(x)), tolerance=COMPOSED),
    row("softsign", lambda x: x / (1 + np.abs(x)), "nonzero", COMPOSED),
    row("selu", lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(x)), "nonzero",
        COMPOSED),
    row("hardsigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1), "unit", COMPOSED),
    row("hardswish", lambda x: x * np.clip(x + 3, 0, 6) / 6, "unit", COMPOSED),
    row("relu6", lambda x: np.clip(x, 0, 6), "nonzero", SELECTED, result=same,
        dtypes=(*FLOATS, "int32")),
]  # fmt: skip

# The parameters of these are Python scalars.
PARAMETRISED = [
    row("softplus", lambda x, beta=1.0: softplus(beta * x) / beta, tolerance=COMPOSED,
        plans=with_choices(ONE, [{}, {"beta": 2.0}])),
    row("elu", lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(x)), "nonzero", COMPOSED,
        plans=with_choices(ONE, [{}, {"alpha": 0.5}])),
    row("celu", lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(x / alpha)), "nonzero",
        COMPOSED, plans=with_choices(ONE, [{}, {"alpha": 0.5}])),
    row("leaky_relu", lambda x, negative_slope=0.01: np.where(x > 0, x, negative_slope * x),
        "nonzero", ROUNDED, plans=with_choices(ONE, [{}, {"negative_slope": 0.25}])),
    row("hardtanh", lambda x, min_val=-1.0, max_val=1.0: np.clip(x, min_val, max_val), "unit",
        SELECTED, plans=with_choices(ONE, [{}, {"min_val": -2.0, "max_val": 2.0}]),
        dtypes=FLOATS),
]  # fmt: skip


def _same_dtype(name: str, reference: Reference, domain: str, **changes: Any) -> Operation:
    """Exact functions that keep the dtype, integers included."""
    fields: dict[str, Any] = {"tolerance": EXACT, "dtypes": NUMBERS, "result": same, **changes}
    return row(name, reference, domain, **fields)


EXACT_FUNCTIONS = [
    _same_dtype("neg", lambda x: -x, "wide", gradient_domains=("any",)),
    _same_dtype("abs", np.abs, "wide", dtypes=(*FLOATS, *INTS), gradient_domains=("nonzero",)),
    _same_dtype("square", lambda x: x * x, "any", tolerance=ROUNDED),
    _same_dtype("sign", np.sign, "quarters", differentiable=False),
    _same_dtype("relu", lambda x: np.maximum(x, 0), "wide", tolerance=SELECTED,
                gradient_domains=("nonzero",)),
    _same_dtype("ceil", np.ceil, "quarters", differentiable=False),
    _same_dtype("floor", np.floor, "quarters", differentiable=False),
    _same_dtype("round", np.round, "quarters", differentiable=False),
    _same_dtype("trunc", np.trunc, "quarters", differentiable=False),
]

_NON_DIFFERENTIABLE: dict[str, Any] = {"differentiable": False}
TESTS = [
    row("isnan", np.isnan, "wide", EXACT, result=boolean, dtypes=NUMBERS, **_NON_DIFFERENTIABLE),
    row("isinf", np.isinf, "wide", EXACT, result=boolean, dtypes=NUMBERS, **_NON_DIFFERENTIABLE),
    row("isfinite", np.isfinite, "wide", EXACT, result=boolean, dtypes=NUMBERS,
        **_NON_DIFFERENTIABLE),
    row("logical_not", np.logical_not, "quarters", EXACT, result=boolean, dtypes=ALL,
        **_NON_DIFFERENTIABLE),
    row("bitwise_not", np.invert, "wide", EXACT, result=same, dtypes=(*INTS, "bool"),
        **_NON_DIFFERENTIABLE),
]  # fmt: skip

OPERATORS = [
    row("-x", lambda x: -x, "wide", EXACT, call=lambda x: -x, result=same, dtypes=NUMBERS,
        gradient_domains=("any",), methods=("__neg__",)),
    row("+x", lambda x: x, "wide", EXACT, call=lambda x: +x, result=same, dtypes=NUMBERS,
        gradient_domains=("any",), methods=("__pos__",)),
    row("abs(x)", np.abs, "wide", EXACT, call=abs, result=same,
        dtypes=(*FLOATS, *SIGNED), gradient_domains=("nonzero",), methods=("__abs__",)),
    row("~x", np.invert, "wide", EXACT, call=lambda x: ~x, result=same,
        dtypes=(*INTS, "bool"), methods=("__invert__",), **_NON_DIFFERENTIABLE),
]  # fmt: skip

UNARY = [*FUNCTIONS, *PARAMETRISED, *EXACT_FUNCTIONS, *TESTS, *OPERATORS]
