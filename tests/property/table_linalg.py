"""Rows of the operation table: matrix factorizations.

Singular vectors are unique only up to signs, so rows compare results that do not depend on these:
the singular values, and the orthogonal factor U·Vh.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compare import Tolerance
from .inputs import FLOATS
from .operation import Operation, same
from .plans import Plan, fixed

FACTORS = Tolerance(ulps=32, scale=64)


def _singular(x: Any, full_matrices: bool = False) -> tuple[Any, Any]:
    numpy = isinstance(x, np.ndarray)
    function = np.linalg.svd if numpy else type(x).svd
    u, s, v = function(x, full_matrices=full_matrices)
    k = s.shape[-1]
    return s, u[..., :k] @ v[..., :k, :]


def _complete(x: Any) -> Any:
    """Q·R and QᵀQ, since columns of Q beyond the rank are not unique."""
    q, r = (np.linalg.qr(x, "complete") if isinstance(x, np.ndarray) else x.qr("complete"))
    return q @ r, (q.swapaxes(-1, -2) if isinstance(x, np.ndarray) else q.transpose(-1, -2)) @ q


_ROWS: dict[str, Any] = {"dtypes": FLOATS, "tolerance": FACTORS, "result": (same, same),
                         "special": False, "layouts": False}  # fmt: skip
LINALG = [
    Operation("qr", lambda x: x.qr(), lambda x: np.linalg.qr(x),
              fixed(Plan(((1, 1),)), Plan(((3, 0),)), Plan(((5, 3),)), Plan(((3, 6),)),
                    Plan(((2, 4, 4),)), Plan(((17, 9),))), differentiable=True, **_ROWS),
    Operation("qr complete", _complete, _complete, fixed(Plan(((5, 3),)), Plan(((2, 3, 4),))),
              methods=("qr",), **_ROWS),
    Operation("svd", _singular, _singular,
              fixed(Plan(((1, 1),)), Plan(((0, 3),)), Plan(((3, 6),)), Plan(((2, 6, 4),)),
                    Plan(((9, 5),))), differentiable=True, **_ROWS),
    Operation("svd full", lambda x: _singular(x, True), _singular,
              fixed(Plan(((5, 3),)), Plan(((2, 3, 6),))), methods=("svd",),
              **{**_ROWS, "dtypes": ("float32", "float64")}),  # half floats as above
]  # fmt: skip
