"""Rows of the operation table: elementwise operations of two and three operands."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .compare import Tolerance
from .inputs import ALL, FLOATS, INTS, NUMBERS, SIGNED
from .operation import COMPOSED, ROUNDED, SELECTED, Operation, boolean, floating, same
from .plans import FEW_SHAPES, Plans, elementwise, some_shapes, with_choices
from .table_unary import method

FEW_TWO = elementwise(2, FEW_SHAPES)
THREE = elementwise(3, ((), (0,), (1,), (7,), (16,), (33,), (65,), (2, 17, 3), (5, 33)))
FEW = elementwise(1, FEW_SHAPES)


def two(name: str) -> Plans:
    """Two operands of some of the shapes."""
    return elementwise(2, some_shapes(sum(name.encode())))


def divide_integers(x: Any, y: Any) -> Any:
    """Floor division; x // 0 = 0, and the smallest integer // −1 wraps."""
    if np.issubdtype(x.dtype, np.floating):
        return np.floor_divide(x, y)
    safe = np.where(y == 0, 1, y).astype(y.dtype)
    return np.where(y == 0, 0, np.floor_divide(x, safe)).astype(x.dtype)


def modulo(x: Any, y: Any) -> Any:
    """Remainder with the sign of the divisor; integers: x % 0 = 0."""
    if np.issubdtype(x.dtype, np.floating):
        return np.mod(x, y)
    return np.where(y == 0, 0, np.mod(x, np.where(y == 0, 1, y).astype(y.dtype))).astype(x.dtype)


def truncated_modulo(x: Any, y: Any) -> Any:
    """Remainder with the sign of the dividend; integers: 0 where y = 0."""
    if np.issubdtype(x.dtype, np.floating):
        return np.fmod(x, y)
    return np.where(y == 0, 0, np.fmod(x, np.where(y == 0, 1, y).astype(y.dtype))).astype(x.dtype)


def _counts(x: Any, y: Any) -> tuple[Any, Any]:
    """Counts with invalid ones (negative, or at least the width) set to 0, and where those were."""
    width = x.dtype.itemsize * 8
    too_far = (y < 0) | (y >= width)
    return np.where(too_far, 0, y).astype(x.dtype), too_far


def shift_left(x: Any, y: Any) -> Any:
    """x << y; 0 for a count of at least the width."""
    counts, too_far = _counts(x, y)
    return np.where(too_far, x.dtype.type(0), x << counts)


def shift_right(x: Any, y: Any) -> Any:
    """x >> y; 0 or the sign for a count of at least the width."""
    counts, too_far = _counts(x, y)
    sign = -(x < 0).astype(x.dtype)
    return np.where(too_far, sign, x >> counts)


def _in_place(name: str) -> Callable[..., Any]:
    apply = getattr(operator, name)

    def call(x: Any, y: Any) -> Any:
        target = x.expand(np.broadcast_shapes(x.shape, y.shape)).contiguous()
        return apply(target, y)

    return call


def _with_scalar(apply: Callable[..., Any], scalar: Any) -> Callable[[Any], Any]:
    return lambda x: apply(scalar, x)


def binary(
    symbol: str,
    names: Sequence[str],
    dunder: str,
    reference: Callable[..., Any],
    *,
    scalar: Any = 2,
    in_place: bool = True,
    reflected_domain: str | None = None,
    **changes: Any,
) -> list[Operation]:
    """All spellings of one operation: methods, the operator, reflected (a scalar first), in place.

    dunder: "add" for __add__, __radd__ and __iadd__; "" where there is no operator.
    """
    fields: dict[str, Any] = {
        "reference": reference, "plans": two("".join(names)), "dtypes": NUMBERS,
        "differentiable": True,
    }  # fmt: skip
    fields.update(changes)
    few = {**fields, "plans": FEW_TWO}
    rows = [
        Operation(name, method(name), **(fields if name == names[0] else few)) for name in names
    ]
    if not dunder:
        return rows
    apply = getattr(operator, f"__{dunder}__")
    rows.append(Operation(f"x {symbol} y", apply, methods=(f"__{dunder}__",), **few))
    numbers = tuple(d for d in fields["dtypes"] if d != "bool")  # an int would promote bool
    reflected = {**few, "plans": FEW, "dtypes": numbers,
                 "reference": lambda x: reference(np.asarray(scalar, x.dtype), x),
                 "domains": fields.get("domains", ("any",))[-1:],
                 "gradient_domains": (reflected_domain,) if reflected_domain else (
                     fields.get("gradient_domains", ("any",))[-1:])}  # fmt: skip
    rows.append(Operation(f"{scalar} {symbol} x", _with_scalar(apply, scalar),
                          methods=(f"__r{dunder}__",), **reflected))  # fmt: skip
    if in_place:
        dtypes = tuple(d for d in fields["dtypes"] if fields.get("result", same)(d) == d)
        placed = {**few, "dtypes": dtypes, "differentiable": False}
        rows.append(Operation(f"x {symbol}= y", _in_place(f"__i{dunder}__"),
                              methods=(f"__i{dunder}__",), **placed))  # fmt: skip
    return rows


def comparison(symbol: str, dunder: str) -> list[Operation]:
    """A comparison of two tensors, with values from a small exact set, so that equality occurs."""
    apply = getattr(operator, f"__{dunder}__")
    fields: dict[str, Any] = {
        "domains": ("quarters",), "dtypes": ALL, "result": boolean, "plans": two(dunder),
    }  # fmt: skip
    return [
        Operation(f"x {symbol} y", apply, apply, methods=(f"__{dunder}__",), **fields),
        Operation(f"{dunder} with a scalar", lambda x: apply(x, 1), lambda x: apply(x, 1),
                  methods=(f"__{dunder}__",), **{**fields, "plans": FEW}),
        Operation(dunder, method(dunder), apply, **{**fields, "plans": FEW_TWO}),
    ]  # fmt: skip


_BITS: dict[str, Any] = {
    "dtypes": (*INTS, "bool"), "domains": ("wide",), "differentiable": False, "scalar": 1,
}  # fmt: skip
_SHIFTS: dict[str, Any] = {
    "dtypes": INTS, "domains": ("wide", "shift"), "differentiable": False,
}  # fmt: skip
_MODULO: dict[str, Any] = {
    "tolerance": Tolerance(ulps=2, scale=2), "domains": ("quarters", "quarters"), "scalar": 5,
    "gradient_domains": ("off_quarters", "nonzero_quarters"), "reflected_domain": "off_quarters",
}  # fmt: skip

ARITHMETIC = [
    *binary("+", ["add"], "add", np.add),
    *binary("-", ["sub"], "sub", np.subtract),
    *binary("*", ["mul"], "mul", np.multiply),
    *binary("/", ["div"], "truediv", np.true_divide, tolerance=ROUNDED, result=floating,
            domains=("any", "nonzero"), gradient_domains=("any", "nonzero")),
    *binary("//", [], "floordiv", divide_integers, domains=("quarters", "quarters"), scalar=7,
            differentiable=False),
    *binary("%", ["mod"], "mod", modulo, **_MODULO),
    *binary("", ["fmod"], "", truncated_modulo, **_MODULO),
    *binary("**", ["pow"], "pow", np.power, dtypes=FLOATS, domains=("positive", "exponent"),
            gradient_domains=("positive", "exponent"), tolerance=COMPOSED, in_place=True),
    *binary("", ["maximum"], "", np.maximum, dtypes=ALL, domains=("quarters",), tolerance=SELECTED,
            gradient_domains=("quarters", "off_quarters")),
    *binary("", ["minimum"], "", np.minimum, dtypes=ALL, domains=("quarters",), tolerance=SELECTED,
            gradient_domains=("quarters", "off_quarters")),
    *binary("", ["copysign"], "", np.copysign, dtypes=FLOATS, domains=("any",),
            gradient_domains=("nonzero",)),
    *binary("", ["logaddexp"], "", np.logaddexp, dtypes=FLOATS, tolerance=COMPOSED),
]  # fmt: skip

BITS = [
    *binary("&", ["bitwise_and"], "and", np.bitwise_and, **_BITS),
    *binary("|", ["bitwise_or"], "or", np.bitwise_or, **_BITS),
    *binary("^", ["bitwise_xor"], "xor", np.bitwise_xor, **_BITS),
    *binary("<<", ["lshift"], "lshift", shift_left, **_SHIFTS),
    *binary(">>", ["rshift"], "rshift", shift_right, **_SHIFTS),
]

COMPARISONS = [
    entry
    for symbol, dunder in (("<", "lt"), ("<=", "le"), (">", "gt"), (">=", "ge"), ("==", "eq"),
                           ("!=", "ne"))
    for entry in comparison(symbol, dunder)
]  # fmt: skip


def divide(x: Any, y: Any, rounding_mode: str) -> Any:
    """div with its rounding modes."""
    return np.floor_divide(x, y) if rounding_mode == "floor" else np.trunc(x / y)


MORE = [
    Operation("div rounded", method("div"), divide,
              with_choices(FEW_TWO, [{"rounding_mode": "floor"}, {"rounding_mode": "trunc"}]),
              domains=("quarters", "quarters"), dtypes=FLOATS, methods=("div",)),
    Operation("isclose", method("isclose"),
              lambda x, y, **k: np.isclose(x, y, **k),
              with_choices(two("isclose"), [{}, {"rtol": 0.5}, {"atol": 0.3, "equal_nan": True}]),
              domains=("quarters",), result=boolean, dtypes=("float32", "float64")),
    Operation("where", lambda m, x, y: m.where(x, y), np.where, THREE,
              domains=("mask", "wide", "wide"), dtypes=ALL, differentiable=True,
              gradient_domains=("mask", "any", "any")),
    Operation("masked_fill", lambda x, m: x.masked_fill(m, 3), lambda x, m: np.where(m, 3, x),
              two("masked_fill"),
              domains=("wide", "mask"), dtypes=NUMBERS, differentiable=True,
              gradient_domains=("any", "mask")),
    Operation("lerp", method("lerp"),
              lambda x, y, w: np.where(abs(w) < 0.5, x + (y - x) * w, y - (y - x) * (1 - w)), THREE,
              tolerance=Tolerance(ulps=4, scale=4), differentiable=True),
    Operation("clip", method("clip"), lambda x, min_, max_: np.clip(x, min_, max_),
              with_choices(elementwise(1), [{"min_": -1, "max_": 2}, {"min_": None, "max_": 1},
                                            {"min_": 0, "max_": None}]),
              domains=("quarters",), dtypes=(*FLOATS, *SIGNED), differentiable=True,
              tolerance=SELECTED, gradient_domains=("off_quarters",)),
    Operation("clamp", lambda x, min_, max_: x.clamp(min_, max_),
              lambda x, min_, max_: np.clip(x, min_, max_),
              with_choices(elementwise(1, FEW_SHAPES), [{"min_": -1, "max_": 2}]),
              domains=("quarters",), dtypes=(*FLOATS, *SIGNED), differentiable=True,
              tolerance=SELECTED, gradient_domains=("off_quarters",)),
]  # fmt: skip

BINARY = [*ARITHMETIC, *BITS, *COMPARISONS, *MORE]
