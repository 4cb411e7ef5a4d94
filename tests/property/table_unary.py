"""Rows of the operation table: elementwise operations of one operand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np

from . import exact
from .compare import EXACT, Tolerance
from .exact import INF, NAN
from .inputs import ALL, FLOATS, INTS, NUMBERS, SIGNED
from .operation import COMPOSED, MATH, ROUNDED, SELECTED, Operation, boolean, floating, same
from .plans import elementwise, some_shapes, with_choices

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


def _lgamma(x: Any) -> Any:
    """ln |Γ(x)|; infinite at poles."""
    if abs(x) == INF or (x <= 0 and x == round(x)):
        return INF
    return mpmath.re(mpmath.loggamma(x))


def _digamma(x: Any) -> Any:
    """The derivative of lgamma; NaN at negative poles, at ±0 infinite with the sign of −1/x."""
    if x == 0:
        return -math.copysign(INF, x)
    if abs(x) == INF or (x < 0 and x == round(x)):
        return INF if x > 0 else NAN
    return mpmath.digamma(x)


lgamma, digamma = (np.vectorize(f, otypes=[np.float64]) for f in (_lgamma, _digamma))


def row(
    name: str,
    reference: Reference,
    domain: str = "any",
    tolerance: Tolerance = MATH,
    **changes: Any,
) -> Operation:
    """A row for a differentiable float function, under Tensor's method name."""
    fields: dict[str, Any] = {
        "call": method(name),
        "reference": reference,
        "plans": elementwise(1, some_shapes(sum(name.encode()))),
        "domains": (domain,),
        "dtypes": (*FLOATS, "int32", "uint8", "bool"),
        "result": floating,
        "tolerance": tolerance,
        "differentiable": True,
    }
    return Operation(name, **{**fields, **changes})


# Gradients are tested away from kinks (near 0, ±1, ±3, 6).
FUNCTIONS = [
    row("sqrt", np.sqrt, "nonnegative", ROUNDED, gradient_domains=("positive",),
        exact=exact.of_positive(mpmath.sqrt)),
    row("rsqrt", lambda x: 1 / np.sqrt(x), "positive", COMPOSED,
        exact=exact.inside(0, INF, exact.rsqrt)),
    row("reciprocal", lambda x: 1 / x, "nonzero", ROUNDED, exact=exact.reciprocal),
    row("exp", np.exp, exact=exact.ends(mpmath.exp, 0, INF)),
    row("exp2", np.exp2, exact=exact.ends(exact.exp2, 0, INF)),
    row("expm1", np.expm1, tolerance=COMPOSED, exact=exact.ends(mpmath.expm1, -1, INF)),
    row("log", np.log, "positive", exact=exact.of_positive(mpmath.log)),
    row("log2", np.log2, "positive", exact=exact.of_positive(exact.log2)),
    row("log10", np.log10, "positive", COMPOSED, exact=exact.of_positive(mpmath.log10)),
    row("log1p", np.log1p, "nonnegative", COMPOSED, gradient_domains=("positive",),
        exact=exact.inside(-1, INF, exact.ends(mpmath.log1p, NAN, INF))),
    row("sin", np.sin, exact=exact.ends(mpmath.sin, NAN, NAN)),
    row("cos", np.cos, exact=exact.ends(mpmath.cos, NAN, NAN)),
    row("tan", np.tan, "angle", Tolerance(ulps=24, scale=8),
        exact=exact.ends(mpmath.tan, NAN, NAN)),
    row("asin", np.arcsin, "unit", COMPOSED, exact=exact.inside(-1, 1, mpmath.asin)),
    row("acos", np.arccos, "unit", COMPOSED, exact=exact.inside(-1, 1, mpmath.acos)),
    row("atan", np.arctan, tolerance=COMPOSED,
        exact=exact.ends(mpmath.atan, -mpmath.pi / 2, mpmath.pi / 2)),
    row("sinh", np.sinh, tolerance=COMPOSED, exact=exact.ends(mpmath.sinh, -INF, INF)),
    row("cosh", np.cosh, tolerance=COMPOSED, exact=exact.ends(mpmath.cosh, INF, INF)),
    row("tanh", np.tanh, exact=exact.ends(mpmath.tanh, -1, 1)),
    row("asinh", np.arcsinh, tolerance=COMPOSED, exact=exact.ends(mpmath.asinh, -INF, INF)),
    row("acosh", np.arccosh, "above_one", COMPOSED,
        exact=exact.inside(1, INF, exact.ends(mpmath.acosh, NAN, INF))),
    row("atanh", np.arctanh, "unit", COMPOSED, exact=exact.inside(-1, 1, exact.atanh)),
    row("erf", erf, exact=exact.ends(mpmath.erf, -1, 1)),
    row("lgamma", lgamma, "positive", COMPOSED, exact=_lgamma),
    row("digamma", digamma, "positive", COMPOSED, exact=_digamma),
    row("sigmoid", sigmoid, tolerance=COMPOSED, exact=exact.ends(exact.sigmoid, 0, 1)),
    row("logsigmoid", lambda x: -softplus(-x), tolerance=COMPOSED,
        exact=exact.ends(lambda x: -exact.softplus(-x), -INF, 0)),
    row("silu", lambda x: x * sigmoid(x), tolerance=COMPOSED,
        exact=exact.finite(lambda x: x * exact.sigmoid(x))),
    row("swish", lambda x: x * sigmoid(x), tolerance=COMPOSED),
    row("gelu", gelu, tolerance=COMPOSED),
    row("gelu exact", lambda x: x * (1 + erf(x / math.sqrt(2))) / 2, tolerance=COMPOSED,
        call=lambda x: x.gelu("none"), methods=("gelu",)),
    row("quick_gelu", lambda x: x * sigmoid(1.702 * x), tolerance=COMPOSED),
    row("mish", lambda x: x * np.tanh(softplus(x)), tolerance=COMPOSED,
        exact=exact.finite(lambda x: x * mpmath.tanh(exact.softplus(x)))),
    row("selu", lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(x)), "nonzero",
        COMPOSED,
        exact=exact.finite(lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * mpmath.expm1(x)))),
    row("hardsigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1), "unit", COMPOSED,
        exact=exact.finite(lambda x: min(max(x / 6 + 0.5, 0), 1))),
    row("hardswish", lambda x: x * np.clip(x + 3, 0, 6) / 6, "unit", COMPOSED,
        exact=exact.finite(lambda x: x * min(max(x + 3, 0), 6) / 6)),
    row("relu6", lambda x: np.clip(x, 0, 6), "nonzero", SELECTED, result=same,
        dtypes=(*FLOATS, "int32"), exact=exact.finite(lambda x: min(max(x, 0), 6))),
]  # fmt: skip

# Functions with parameters, which are Python scalars.
PARAMETRISED = [
    row("softplus", lambda x, beta=1.0: softplus(beta * x) / beta, tolerance=COMPOSED,
        plans=with_choices(ONE, [{}, {"beta": 2.0}]), exact=exact.ends(exact.softplus, 0, INF)),
    row("elu", lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(x)), "nonzero", COMPOSED,
        plans=with_choices(ONE, [{}, {"alpha": 0.5}]),
        exact=exact.ends(lambda x: x if x > 0 else mpmath.expm1(x), -1, INF)),
    row("leaky_relu", lambda x, negative_slope=0.01: np.where(x > 0, x, negative_slope * x),
        "nonzero", ROUNDED, plans=with_choices(ONE, [{}, {"negative_slope": 0.25}])),
    row("hardtanh", lambda x, min_val=-1.0, max_val=1.0: np.clip(x, min_val, max_val), "unit",
        SELECTED, plans=with_choices(ONE, [{}, {"min_val": -2.0, "max_val": 2.0}]),
        dtypes=FLOATS),
]  # fmt: skip


def _same_dtype(name: str, reference: Reference, domain: str, **changes: Any) -> Operation:
    """A row for an exact function that keeps the dtype, also of integers."""
    fields: dict[str, Any] = {"tolerance": EXACT, "dtypes": NUMBERS, "result": same, **changes}
    return row(name, reference, domain, **fields)


EXACT_FUNCTIONS = [
    _same_dtype("neg", lambda x: -x, "wide", gradient_domains=("any",),
                exact=lambda x: -x),
    _same_dtype("abs", np.abs, "wide", dtypes=(*FLOATS, *INTS), gradient_domains=("nonzero",),
                exact=abs),
    _same_dtype("square", lambda x: x * x, "any", tolerance=ROUNDED, exact=lambda x: x * x),
    _same_dtype("sign", np.sign, "quarters", differentiable=False, exact=mpmath.sign),
    _same_dtype("relu", lambda x: np.maximum(x, 0), "wide", tolerance=SELECTED,
                gradient_domains=("nonzero",),
                exact=exact.ends(lambda x: max(x, mpmath.mpf(0)), 0, INF)),
    _same_dtype("ceil", np.ceil, "quarters", differentiable=False, exact=mpmath.ceil),
    _same_dtype("floor", np.floor, "quarters", differentiable=False, exact=mpmath.floor),
    _same_dtype("round", np.round, "quarters", differentiable=False,
                exact=lambda x: x if mpmath.isinf(x) else mpmath.nint(x)),
    _same_dtype("trunc", np.trunc, "quarters", differentiable=False, exact=exact.trunc),
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
    # by reflection; where large terms cancel, few digits are left
    row("lgamma(-x)", lambda x: lgamma(-x), "positive", COMPOSED, call=lambda x: (-x).lgamma(),
        dtypes=FLOATS, methods=("lgamma",), differentiable=False),
    row("digamma(-x)", lambda x: digamma(-x), "positive", COMPOSED, call=lambda x: (-x).digamma(),
        dtypes=FLOATS, methods=("digamma",), differentiable=False),
    row("-x", lambda x: -x, "wide", EXACT, call=lambda x: -x, result=same, dtypes=NUMBERS,
        gradient_domains=("any",), methods=("__neg__",)),
    row("+x", lambda x: x, "wide", EXACT, call=lambda x: +x, result=same, dtypes=NUMBERS,
        gradient_domains=("any",), methods=("__pos__",)),
    row("abs(x)", np.abs, "wide", EXACT, call=abs, result=same,
        dtypes=(*FLOATS, *SIGNED), gradient_domains=("nonzero",), methods=("__abs__",)),
    row("round(x)", np.round, "quarters", EXACT, call=round, result=same, dtypes=NUMBERS,
        methods=("__round__",), differentiable=False),
    row("~x", np.invert, "wide", EXACT, call=lambda x: ~x, result=same,
        dtypes=(*INTS, "bool"), methods=("__invert__",), **_NON_DIFFERENTIABLE),
]  # fmt: skip

UNARY = [*FUNCTIONS, *PARAMETRISED, *EXACT_FUNCTIONS, *TESTS, *OPERATORS]
