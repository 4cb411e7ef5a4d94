"""Rows of the operation table: creation, random numbers, casts, and copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad import Tensor, dtypes

from .compare import EXACT, REFERENCE, Tolerance
from .inputs import ALL, FLOATS, NUMBERS
from .operation import MATH, Operation
from .plans import FEW_SHAPES, Plan, elementwise, fixed
from .table_unary import method

FEW = elementwise(1, FEW_SHAPES)
SHAPES: list[Any] = [(), (0,), (1,), (17,), (2, 3, 4), (5, 33), (64,), (65,)]


def made(
    name: str, call: Callable[..., Any], reference: Any, parameters: Sequence[dict[str, Any]],
    dtype: str = "float32", **more: Any,
) -> Operation:  # fmt: skip
    """A row without operands, tested with one dtype."""
    fields: dict[str, Any] = {"result": lambda _: dtype, "dtypes": ("float32",), "special": False,
                              "layouts": False, "tolerance": EXACT, **more}  # fmt: skip
    return Operation(name, call, reference, fixed(*(Plan((), p) for p in parameters)), **fields)


def _seeded(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Two draws after seeding: all devices must give the same numbers."""

    def call(**parameters: Any) -> Any:
        Tensor.manual_seed(5)
        first = draw(**parameters)
        return first, draw(**parameters)

    return call


_OF_SHAPE = [{"shape": shape} for shape in SHAPES]
_LENGTHS = [{"n": n} for n in (0, 1, 7, 8, 9, 16, 17, 33, 65)]
_RAMPS: list[dict[str, Any]] = [
    {"start": 3, "stop": 20, "step": 2}, {"start": 5, "stop": -5, "step": -3},
    {"start": 0, "stop": 0, "step": 1}, {"start": -2, "stop": 31, "step": 1},
]  # fmt: skip
CONSTANTS = [
    made("zeros", lambda shape: Tensor.zeros(*shape), lambda shape: np.zeros(shape), _OF_SHAPE),
    made("ones", lambda shape: Tensor.ones(*shape), lambda shape: np.ones(shape), _OF_SHAPE),
    made("full", lambda shape: Tensor.full(shape, 2.5), lambda shape: np.full(shape, 2.5),
         _OF_SHAPE),
    made("full of ints", lambda shape: Tensor.full(shape, -7), lambda shape: np.full(shape, -7),
         _OF_SHAPE, "int32", methods=("full",)),
    made("empty", lambda shape: Tensor.empty(*shape) * 0, lambda shape: np.zeros(shape),
         _OF_SHAPE),
    made("arange", lambda n: Tensor.arange(n), lambda n: np.arange(n), _LENGTHS, "int32"),
    made("arange with steps", lambda **k: Tensor.arange(*k.values()),
         lambda **k: np.arange(*k.values()), _RAMPS, "int32", methods=("arange",)),
    made("arange of floats", lambda: Tensor.arange(0.5, 9, 0.25), lambda: np.arange(0.5, 9, 0.25),
         [{}], methods=("arange",)),
    made("linspace", lambda n: Tensor.linspace(-1, 3, n), lambda n: np.linspace(-1, 3, n),
         _LENGTHS, tolerance=Tolerance(ulps=2, scale=2)),
    made("linspace of ints", lambda: Tensor.linspace(0, 2**31 - 1, 6, dtype="int32"),
         lambda: np.linspace(0, 2**31 - 1, 6), [{}], "int32", methods=("linspace",)),
    made("eye", lambda n, m: Tensor.eye(n, m), lambda n, m: np.eye(n, m),
         [{"n": n, "m": m} for n, m in ((0, 0), (1, 1), (3, 5), (17, 16), (33, 33))]),
]  # fmt: skip

_LIKE: dict[str, Any] = {"dtypes": ALL, "special": False}
LIKE = [
    Operation("zeros_like", method("zeros_like"), np.zeros_like, FEW, **_LIKE),
    Operation("ones_like", method("ones_like"), np.ones_like, FEW, **_LIKE),
    Operation("full_like", lambda x: x.full_like(1), np.ones_like, FEW, **_LIKE),
    Operation("empty_like", lambda x: x.empty_like().full_like(0), np.zeros_like, FEW, **_LIKE),
    *(Operation(name, lambda x, name=name: _again(x, name), None, FEW, dtypes=FLOATS,
                special=False, tolerance=MATH if name == "randn_like" else EXACT)
      for name in ("rand_like", "randn_like")),
]  # fmt: skip


def _again(x: Any, name: str) -> Any:
    Tensor.manual_seed(3)
    return getattr(x, name)()


# Distributions are tested in tests/tensor; here: each device draws the same numbers, the second
# draw differs from the first, and scaled numbers may differ by rounding only.
NORMAL = Tolerance(ulps=8, scale=2)


def _many(x: Any, **parameters: Any) -> Any:
    """Seeded draws with self's values as weights."""
    Tensor.manual_seed(11)
    return x.multinomial(**parameters)


_PAIR: dict[str, Any] = {"result": (lambda d: d, lambda d: d)}
RANDOM = [
    made("rand", _seeded(lambda shape: Tensor.rand(*shape)), None, _OF_SHAPE, **_PAIR),
    made("randn", _seeded(lambda shape: Tensor.randn(*shape)), None, _OF_SHAPE, tolerance=NORMAL,
         **_PAIR),
    made("randint", _seeded(lambda shape: Tensor.randint(*shape, low=-3, high=11)), None,
         _OF_SHAPE, **_PAIR),
    made("randperm", _seeded(Tensor.randperm), None, [{"n": n} for n in (0, 1, 17, 200)], **_PAIR),
    Operation("multinomial", _many, None,
              fixed(Plan(((9,),), {"num_samples": 9}), Plan(((5, 33),), {"num_samples": 4}),
                    Plan(((2, 17),), {"num_samples": 40, "replacement": True})),
              domains=("positive",), dtypes=(*FLOATS, "int32"), result=lambda d: "int32",
              special=False),
    made("normal", _seeded(lambda shape: Tensor.normal(*shape, mean=1.0, std=2.0)), None,
         _OF_SHAPE, tolerance=NORMAL, **_PAIR),
    made("uniform", _seeded(lambda shape: Tensor.uniform(*shape, low=-2.0, high=3.0)), None,
         _OF_SHAPE, tolerance=NORMAL, **_PAIR),
    *(made(name, _seeded(lambda shape, name=name: getattr(Tensor, name)(*shape)), None,
           [{"shape": (17,)}, {"shape": (5, 33)}, {"shape": (2, 3, 3)}], tolerance=NORMAL, **_PAIR)
      for name in ("scaled_uniform", "glorot_uniform", "kaiming_uniform", "kaiming_normal")),
]  # fmt: skip


def _dropped(x: Any) -> Any:
    Tensor.manual_seed(9)
    with Tensor.train():
        return x.dropout(0.25)


_CASTS: dict[str, Any] = {"plans": FEW, "domains": ("some_zeros",), "dtypes": ALL, "special": False}


def cast(name: str, target: str) -> Operation:
    """A cast by its short method; special values are tested in test_dtypes."""
    floats = ("float32", "float64", "float16", "bfloat16")
    tolerance = Tolerance(ulps=1) if target in floats else EXACT
    return Operation(
        name, method(name), lambda x: x, result=lambda dtype: target, tolerance=tolerance, **_CASTS
    )


_INT_CASTS: dict[str, Any] = {**_CASTS, "domains": ("nonnegative",)}
CASTS = [
    cast("half", "float16"),
    cast("bfloat16", "bfloat16"),
    cast("float", "float32"),
    cast("double", "float64"),
    Operation("int", method("int"), lambda x: x, result=lambda dtype: "int32", **_INT_CASTS),
    Operation("long", method("long"), lambda x: x, result=lambda dtype: "int64", **_INT_CASTS),
    Operation("bool", method("bool"), lambda x: x != 0, result=lambda dtype: "bool", **_CASTS),
    Operation("cast", lambda x: x.cast(dtypes.float64).cast("float32"), lambda x: x, FEW,
              dtypes=FLOATS, result=lambda dtype: "float32", tolerance=Tolerance(ulps=1),
              differentiable=True),
    Operation("bitcast", lambda x: x.bitcast(dtypes.int32), lambda x: np.float32(x).view(np.int32)
              if not x.ndim else x.astype(np.float32).view(np.int32), FEW, dtypes=("float32",),
              domains=("wide",), result=lambda dtype: "int32", special=False),
]  # fmt: skip

COPIES = [
    Operation("clone", method("clone"), lambda x: x, FEW, dtypes=ALL, domains=("wide",),
              differentiable=True),
    Operation("detach", method("detach"), lambda x: x, FEW, dtypes=ALL, domains=("wide",)),
    Operation("to", lambda x: (x + 1).to(REFERENCE) * 2, lambda x: (x + 1) * 2, FEW,
              dtypes=NUMBERS),
    Operation("dropout", _dropped, None, FEW, dtypes=FLOATS, special=False,
              tolerance=Tolerance(ulps=2)),
]  # fmt: skip

CREATION = [*CONSTANTS, *LIKE, *RANDOM, *CASTS, *COPIES]
