"""Rows of the operation table: contractions, normalisations, attention, losses, creation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minigrad import Tensor

from .compare import Tolerance
from .inputs import FLOATS
from .layouts import Shape
from .operation import COMPOSED, SUMMED, Operation
from .plans import Plan, Plans, drawn, fixed, matrices, positive_extents, shapes
from .table_reduce import log_softmax, softmax
from .table_unary import method, softplus

PRODUCT: dict[str, Any] = {
    "dtypes": (*FLOATS, "int32"), "tolerance": SUMMED, "differentiable": True,
}  # fmt: skip
EQUATIONS: dict[str, tuple[Shape, ...]] = {
    "ij,jk->ik": ((7, 9), (9, 17)),
    "ij,kj->ik": ((16, 33), (5, 33)),
    "bij,bjk->bik": ((2, 3, 4), (2, 4, 5)),
    "bhqd,bhkd->bhqk": ((1, 2, 5, 8), (1, 2, 7, 8)),
    "i,j->ij": ((9,), (33,)),
    "ij->ji": ((5, 33),),
    "ij->": ((5, 33),),
    "ii->i": ((9, 9),),
    "ij,ij->i": ((5, 17), (5, 17)),
    "i,ij,j->": ((4,), (4, 6), (6,)),
    "...ij,jk->...ik": ((2, 3, 4), (4, 5)),
    "ij,jk": ((3, 4), (4, 5)),
    "ab,bc,cd->da": ((3, 4), (4, 5), (5, 6)),
    "ij,kj,kl->l": ((3, 4), (2, 4), (2, 5)),
    "...i,...j": ((2, 1, 3), (4, 5)),
    "iij,ji->j": ((3, 3, 4), (4, 3)),
    ",i->i": ((), (5,)),
    "ij->j": ((5, 33),),
    "ba": ((3, 4),),
    "ii": ((9, 9),),
    "bii->bi": ((2, 4, 4),),
    "b...c->...bc": ((2, 3, 4),),
    "...i,i": ((2, 3, 4), (4,)),
    "...ij,...jk->...ik": ((2, 3, 4), (2, 4, 3)),
    "ab,cd->abcd": ((3, 4), (4, 2)),
}


def _einsum_plans(several: bool) -> Plans:
    found = {e: shapes for e, shapes in EQUATIONS.items() if (len(shapes) > 2) is several}
    return fixed(*(Plan(shapes, {"equation": e}) for e, shapes in found.items()))


def _linear_plan(draw: Any) -> Plan:
    batch = draw(shapes(0, 2, st.integers(0, 9)))
    inner, outer = draw(positive_extents), draw(positive_extents)
    return Plan(((*batch, inner), (inner, outer), (outer,)))


def _product_in_place(x: Any, y: Any) -> Any:
    target = x.contiguous()
    target @= y
    return target


CONTRACTIONS = [
    Operation("matmul", method("matmul"), np.matmul, matrices(), **PRODUCT),
    Operation("dot", method("dot"), np.matmul,
              fixed(Plan(((17,), (17,))), Plan(((5, 9), (9, 33)))), **PRODUCT),
    Operation("x @ y", lambda x, y: x @ y, np.matmul,
              fixed(Plan(((17,), (17,))), Plan(((5, 9), (9, 33))), Plan(((33, 65), (65, 64)))),
              methods=("__matmul__",), **PRODUCT),
    Operation("y @ x", lambda x, y: x.__rmatmul__(y), lambda x, y: y @ x,
              fixed(Plan(((17,), (17,))), Plan(((9, 33), (5, 9)))), methods=("__rmatmul__",),
              **PRODUCT),
    Operation("x @= y", _product_in_place, np.matmul,
              fixed(Plan(((5, 9), (9, 9))), Plan(((2, 3, 17), (17, 17)))), methods=("__imatmul__",),
              **{**PRODUCT, "differentiable": False}),
    Operation("transposed product", lambda x, y: x.T @ y.T, lambda x, y: x.T @ y.T,
              fixed(Plan(((9, 5), (33, 9))), Plan(((65, 33), (17, 65)))), methods=("matmul",),
              **PRODUCT),
    Operation("x twice", lambda x: (x @ x.T).tanh(), lambda x: np.tanh(x @ x.T),
              fixed(Plan(((1, 1),)), Plan(((3, 4),)), Plan(((9, 5),))), domains=("unit",),
              methods=("matmul",), **{**PRODUCT, "dtypes": FLOATS}),
    Operation("einsum", lambda *x, equation: Tensor.einsum(equation, *x),
              lambda *x, equation: np.einsum(equation, *x), _einsum_plans(False), **PRODUCT),
    # the order of products decides where infinities and NaN appear
    Operation("einsum of several", lambda *x, equation: Tensor.einsum(equation, *x),
              lambda *x, equation: np.einsum(equation, *x), _einsum_plans(True), special=False,
              methods=("einsum",), **PRODUCT),
    Operation("linear", method("linear"), lambda x, w, b=0: x @ w + b,
              drawn([Plan(((9,), (9, 17), (17,))), Plan(((5, 33), (33, 16), (16,))),
                     Plan(((0, 3), (3, 4), (4,))), Plan(((3, 4), (4, 5)))], _linear_plan),
              **{**PRODUCT, "dtypes": FLOATS}),
]  # fmt: skip


def _layernorm(x: Any, axis: Any = -1, eps: float = 1e-5) -> Any:
    center = x.mean(axis=axis, keepdims=True)
    return (x - center) / np.sqrt(np.mean((x - center) ** 2, axis=axis, keepdims=True) + eps)


def _batchnorm(x: Any, scale: Any, shift: Any, mean: Any, invstd: Any) -> Any:
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    centred = (x - mean.reshape(shape)) * invstd.reshape(shape)
    return centred * scale.reshape(shape) + shift.reshape(shape)


def _attention(q: Any, k: Any, v: Any, mask: Any = None, causal: bool = False) -> Any:
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    if causal:
        mask = np.tril(np.ones(scores.shape[-2:], bool))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    return softmax(scores) @ v


def _grouped(q: Any, k: Any, v: Any) -> Any:
    groups = q.shape[-3] // k.shape[-3]
    return _attention(q, np.repeat(k, groups, -3), np.repeat(v, groups, -3))


_HEADS = fixed(
    Plan(((2, 5, 8), (2, 5, 8), (2, 5, 8))),
    Plan(((1, 2, 17, 16), (1, 2, 17, 16), (1, 2, 17, 16))),
    Plan(((1, 1, 1, 4), (1, 1, 1, 4), (1, 1, 1, 4))),
    Plan(((33, 9), (33, 9), (33, 9))),
    Plan(((2, 97, 8), (2, 97, 8), (2, 97, 8))),  # more than 2¹⁴ scores are not stored
)
_ATTENTION: dict[str, Any] = {
    "dtypes": FLOATS, "tolerance": Tolerance(ulps=16, scale=16), "differentiable": True,
    "special": False, "domains": ("small",), "methods": ("scaled_dot_product_attention",),
}  # fmt: skip
LAYERS = [
    Operation("layernorm", lambda x, axis: x.layernorm(axis), _layernorm,
              fixed(Plan(((9,),), {"axis": -1}), Plan(((5, 33),), {"axis": -1}),
                    Plan(((2, 17, 3),), {"axis": (1, 2)}), Plan(((64, 65),), {"axis": -1})),
              domains=("distinct",), dtypes=FLOATS, tolerance=Tolerance(ulps=16, scale=16, terms=1),
              differentiable=True),
    Operation("rmsnorm", lambda x, axis: x.rmsnorm(axis), lambda x, axis: x / np.sqrt(
              np.mean(x * x, axis=axis, keepdims=True) + 1e-5),
              fixed(Plan(((9,),), {"axis": -1}), Plan(((5, 33),), {"axis": -1}),
                    Plan(((2, 17, 3),), {"axis": (1, 2)})),
              dtypes=FLOATS, tolerance=Tolerance(ulps=16, scale=16, terms=1), differentiable=True),
    Operation("layernorm with weight", lambda x, w, b: x.layernorm(weight=w, bias=b),
              lambda x, w, b: _layernorm(x) * w + b,
              fixed(Plan(((9,), (9,), (9,))), Plan(((5, 33), (33,), (33,)))),
              domains=("distinct", "any", "any"), dtypes=FLOATS, methods=("layernorm",),
              tolerance=Tolerance(ulps=16, scale=16, terms=1), differentiable=True),
    Operation("batchnorm", method("batchnorm"), _batchnorm,
              fixed(Plan(((4, 3), (3,), (3,), (3,), (3,))),
                    Plan(((2, 17, 5, 3), (17,), (17,), (17,), (17,)))),
              domains=("any",), dtypes=FLOATS, tolerance=COMPOSED, differentiable=True),
    Operation("attention", lambda q, k, v: q.scaled_dot_product_attention(k, v), _attention, _HEADS,
              **_ATTENTION),
    Operation("causal attention",
              lambda q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True),
              lambda q, k, v: _attention(q, k, v, causal=True), _HEADS, **_ATTENTION),
    Operation("masked attention", lambda q, k, v, m: q.scaled_dot_product_attention(k, v, m),
              _attention,
              fixed(Plan(((2, 5, 8), (2, 7, 8), (2, 7, 8), (5, 7)), {},
                         ("small", "small", "small", "small"))), **_ATTENTION),
    Operation("grouped attention",
              lambda q, k, v: q.scaled_dot_product_attention(k, v, enable_gqa=True), _grouped,
              fixed(Plan(((1, 4, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8)))), **_ATTENTION),
    Operation("dropout without training", lambda x: x.dropout(0.5), lambda x: x,
              fixed(Plan(((9,),)), Plan(((5, 33),))), dtypes=FLOATS, differentiable=True,
              methods=("dropout",)),
]  # fmt: skip


def _reduced(values: Any, reduction: str) -> Any:
    return {"mean": np.mean(values), "sum": np.sum(values), "none": values}[reduction]


def _log_softmax_along(x: Any, axis: int) -> Any:
    return np.moveaxis(log_softmax(np.moveaxis(x, axis, -1)), -1, axis)


def _picked(scores: Any, targets: Any, smoothing: float) -> Any:
    """−log p of the target, mixed with the mean over classes; the last axis has the classes."""
    logs = log_softmax(scores)
    chosen = np.take_along_axis(logs, targets[..., None], -1)[..., 0]
    return -((1 - smoothing) * chosen + smoothing * logs.mean(-1))


def _sparse(x: Any, t: Any, ignore_index: int = -1, label_smoothing: float = 0.0,
            reduction: str = "mean") -> Any:  # fmt: skip
    kept = t != ignore_index
    losses = np.where(kept, _picked(x, np.where(kept, t, 0), label_smoothing), 0)
    return losses.sum() / kept.sum() if reduction == "mean" else _reduced(losses, reduction)


def _binary(x: Any, t: Any, reduction: str = "mean") -> Any:
    return _reduced(-(t * np.log(x) + (1 - t) * np.log(1 - x)), reduction)


def _binary_logits(x: Any, t: Any, reduction: str = "mean") -> Any:
    return _reduced(softplus(x) - x * t, reduction)


def _class_plans(*choices: dict[str, Any]) -> Plans:
    rows: list[tuple[Shape, Shape]] = [((5, 3), (5,)), ((1, 2), (1,)), ((17, 65), (17,)),
                                       ((33, 7), (33,))]  # fmt: skip
    return fixed(*(Plan((x, t), parameters, ("any", f"index:{x[-1]}"))
                   for x, t in rows for parameters in choices))  # fmt: skip


_LOSS: dict[str, Any] = {
    "dtypes": FLOATS, "tolerance": Tolerance(ulps=16, scale=8, terms=1), "differentiable": True,
    "special": False,
}  # fmt: skip
_PAIRS = fixed(*(
    Plan((shape, shape), {"reduction": reduction})
    for shape in ((5,), (3, 17), (33, 5)) for reduction in ("mean", "sum", "none")
))  # fmt: skip
LOSSES = [
    Operation("cross_entropy", method("cross_entropy"),
              lambda x, t, label_smoothing=0.0, reduction="mean":
              _reduced(_picked(x, t, label_smoothing), reduction),
              _class_plans({}, {"reduction": "sum"}, {"label_smoothing": 0.1},
                           {"reduction": "none"}), **_LOSS),
    Operation("cross_entropy along an axis", method("cross_entropy"),
              lambda x, t, axis, reduction="mean":
              _reduced(_picked(np.moveaxis(x, axis, -1), t, 0), reduction),
              fixed(*(Plan((x, t), {"axis": axis, "reduction": "none"}, ("any", "index:3"))
                      for x, t, axis in (((2, 3, 3), (2, 3), 1), ((2, 3, 3), (2, 3), -1),
                                         ((3, 3, 3, 3), (3, 3, 3), 1), ((3, 5), (5,), 0)))),
              methods=("cross_entropy",), **_LOSS),
    Operation("cross_entropy of probabilities", lambda x, p, **k: x.cross_entropy(p, **k),
              lambda x, p, axis: -np.sum(p * _log_softmax_along(x, axis), axis).mean(),
              fixed(Plan(((5, 3),) * 2, {"axis": -1}), Plan(((2, 3, 3),) * 2, {"axis": 1}),
                    Plan(((2, 4, 3, 3),) * 2, {"axis": 1})),
              domains=("any", "probability"), methods=("cross_entropy",), **_LOSS),
    Operation("sparse_categorical_crossentropy", method("sparse_categorical_crossentropy"), _sparse,
              _class_plans({}, {"ignore_index": 1}, {"label_smoothing": 0.1},
                           {"reduction": "sum"}), **_LOSS),
    Operation("nll_loss", lambda x, t, **k: x.log_softmax().nll_loss(t, **k),
              lambda x, t, reduction="mean": _reduced(_picked(x, t, 0), reduction),
              _class_plans({}, {"reduction": "none"}), **_LOSS),
    Operation("binary_crossentropy", lambda x, t, **k: x.binary_crossentropy(t, **k), _binary,
              _PAIRS, domains=("probability",), **_LOSS),
    Operation("binary_crossentropy_logits", method("binary_crossentropy_logits"), _binary_logits,
              _PAIRS, domains=("any", "probability"), **_LOSS),
    Operation("mse_loss", method("mse_loss"),
              lambda x, y, reduction="mean": _reduced((x - y) ** 2, reduction), _PAIRS, **_LOSS),
]  # fmt: skip

CONTRACTION = [*CONTRACTIONS, *LAYERS, *LOSSES]
