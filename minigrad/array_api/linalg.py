"""The standard's linear algebra extension.

They are `minigrad.linalg`'s, with the standard's names, arguments and refusals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad import linalg
from minigrad.array_api import dtypes as kinds
from minigrad.array_api.array import Array, _binary, _check
from minigrad.array_api.elementwise import _named, _one, _two
from minigrad.array_api.manipulation import _common_axis, matrix_transpose
from minigrad.array_api.statistics import sum
from minigrad.dtype import DTypeLike
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import Axes, axes_of
from minigrad.tensor.results import EighResult, QRResult, SlogdetResult, SVDResult

__all__ = [
    "cholesky", "cross", "det", "diagonal", "eigh", "eigvalsh", "inv", "matmul", "matrix_norm",
    "matrix_power", "matrix_rank", "matrix_transpose", "outer", "pinv", "qr", "slogdet", "solve",
    "svd", "svdvals", "tensordot", "trace", "vecdot", "vector_norm",
]  # fmt: skip


matmul, outer = _two(kinds.NUMERIC, 2)


def tensordot(x1: Array, x2: Array, /, *, axes: int | Sequence[Sequence[int]] = 2) -> Array:
    """Sum of products over pairs of axes: the last ones of x1 and first of x2, or as given."""
    return _binary("tensordot", kinds.NUMERIC, x1, x2, lambda x, y: x.tensordot(y, axes))


def vecdot(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:
    """Dot products of vectors along an axis."""
    place = _common_axis("vecdot", axis, x1, x2)
    return _binary("vecdot", kinds.NUMERIC, x1, x2, lambda x, y: (x * y).sum(place, dtype=x.dtype))


def cross(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:
    """Cross product of vectors of three elements along an axis."""
    place = _common_axis("cross", axis, x1, x2)
    return _binary("cross", kinds.NUMERIC, x1, x2, lambda x, y: x.cross(y, place))


def diagonal(x: Array, /, *, offset: int = 0) -> Array:
    """A diagonal of each matrix."""
    return Array._of(x._tensor.diagonal(offset, -2, -1))


def trace(x: Array, /, *, offset: int = 0, dtype: DTypeLike = None) -> Array:
    """The sum of a diagonal of each matrix."""
    return sum(diagonal(x, offset=offset), axis=-1, dtype=dtype)


def vector_norm(x: Array, /, *, axis: Axes = None, keepdims: bool = False, ord: float = 2) -> Array:
    """(Σ |x|^ord)^(1/ord); for inf the largest |x|, for -inf the smallest, for 0 a count."""
    _check("vector_norm", kinds.FLOATING, x)
    return Array._of(x._tensor.norm(ord, axes_of("vector_norm", axis, x.ndim, 0), keepdims))


def matrix_norm(x: Array, /, *, keepdims: bool = False, ord: Any = "fro") -> Array:
    """The norm of each matrix: "fro" (Frobenius), "nuc" (nuclear), ±1, ±2, ±inf."""
    return Array._of(linalg.matrix_norm(x._tensor, ord, keepdim=keepdims))


def matrix_power(x: Array, n: int, /) -> Array:
    """The n-th power of each matrix, by squaring; for negative n, of its inverse."""
    return Array._of(linalg.matrix_power(x._tensor, n))


# --- decompositions -------------------------------------------------------------------------------

(det,), (inv,) = _one(kinds.FLOATING, 1, linalg.det), _one(kinds.FLOATING, 1, linalg.inv)
(svdvals,) = _one(kinds.FLOATING, 1, linalg.svdvals)  # descending
(eigvalsh,) = _one(kinds.FLOATING, 1, linalg.eigvalsh)  # ascending


def qr(x: Array, /, *, mode: str = "reduced") -> QRResult[Array]:
    """x = Q·R with Q of orthonormal columns and R upper triangular."""
    return QRResult(*map(Array._of, x._tensor.qr(mode)))


def svd(x: Array, /, *, full_matrices: bool = True) -> SVDResult[Array]:
    """x = U·diag(S)·Vh with S descending."""
    return SVDResult(*map(Array._of, x._tensor.svd(full_matrices=full_matrices)))


def eigh(x: Array, /) -> EighResult[Array]:
    """Eigenvalues (ascending) and eigenvectors (columns) of symmetric matrices."""
    return EighResult(*map(Array._of, linalg.eigh(x._tensor)))


def cholesky(x: Array, /, *, upper: bool = False) -> Array:
    """L with x = L·Lᵀ, or its transpose; NaN if x is not positive definite."""
    return Array._of(linalg.cholesky(x._tensor, upper=upper))


def solve(x1: Array, x2: Array, /) -> Array:
    """y with x1·y = x2 for square x1; x2 is a matrix of columns, or one vector."""
    return _binary("solve", kinds.FLOATING, x1, x2, linalg.solve)


def pinv(x: Array, /, *, rtol: float | Array | None = None) -> Array:
    """The Moore–Penrose inverse; singular values up to rtol · the largest count as 0."""
    return Array._of(linalg.pinv(x._tensor, rtol=_plain(rtol)))


def _plain(rtol: float | Array | None) -> Any:
    return rtol._tensor if isinstance(rtol, Array) else rtol


def matrix_rank(x: Array, /, *, rtol: float | Array | None = None) -> Array:
    """How many singular values are above rtol · the largest."""
    return Array._of(linalg.matrix_rank(x._tensor, rtol=_plain(rtol)).cast(kinds.DEFAULT_INTEGER))


def slogdet(x: Array, /) -> SlogdetResult[Array]:
    """The sign of each determinant, and the logarithm of its absolute value."""
    return SlogdetResult(*map(Array._of, linalg.slogdet(x._tensor)))


_named(globals())
check_functions(globals())
