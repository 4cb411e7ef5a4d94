"""The standard's linear algebra extension, made of products, QR, SVD and elimination.

QR and SVD are Tensor's own. Eigenvectors of a symmetric matrix are the singular vectors of the
matrix moved until all its eigenvalues are positive. Systems, inverses and determinants come from
one elimination, whose steps all run the same compiled program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from minigrad.array_api import dtypes as kinds
from minigrad.array_api.array import Array, _check, binary
from minigrad.array_api.manipulation import (
    _axes,
    _common_axis,
    broadcast_arrays,
    broadcast_shapes,
    matrix_transpose,
)
from minigrad.dtype import DType
from minigrad.graph.shapes import numel
from minigrad.graph.variable import Variable
from minigrad.tensor import Tensor

__all__ = [
    "cholesky", "cross", "det", "diagonal", "eigh", "eigvalsh", "inv", "matmul", "matrix_norm",
    "matrix_power", "matrix_rank", "matrix_transpose", "outer", "pinv", "qr", "slogdet", "solve",
    "svd", "svdvals", "tensordot", "trace", "vecdot", "vector_norm",
]  # fmt: skip


class EighResult(NamedTuple):
    """What `eigh` gives."""

    eigenvalues: Array
    eigenvectors: Array


class QRResult(NamedTuple):
    """What `qr` gives."""

    Q: Array
    R: Array


class SlogdetResult(NamedTuple):
    """What `slogdet` gives."""

    sign: Array
    logabsdet: Array


class SVDResult(NamedTuple):
    """What `svd` gives."""

    U: Array
    S: Array
    Vh: Array


def _matrix(name: str, x: Array, square: Any = False) -> Any:
    if x.dtype not in kinds.FLOATING:
        raise TypeError(f"{name} of an array of {x.dtype.name}: expected a floating dtype")
    if x.ndim < 2 or (square and x.shape[-1] != x.shape[-2]):
        what = "square matrices" if square else "matrices"
        raise ValueError(f"{name} of shape {x.shape}: expected {what} in the last two dimensions")
    return x._tensor


# --- products -------------------------------------------------------------------------------------

matmul = binary("matmul", kinds.NUMERIC, lambda x, y: x.matmul(y))


outer = binary("outer", kinds.NUMERIC, Tensor.outer)


def tensordot(x1: Array, x2: Array, /, *, axes: int | Sequence[Sequence[int]] = 2) -> Array:
    """The sum of products over pairs of axes: the last ones of x1 and the first of x2, or given."""
    _check("tensordot", kinds.NUMERIC, x1, x2)
    common = kinds.result_type(x1.dtype, x2.dtype)
    return Array._of(x1._tensor.cast(common).tensordot(x2._tensor.cast(common), axes))


def vecdot(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:
    """Products of vectors along an axis."""
    _check("vecdot", kinds.NUMERIC, x1, x2)
    place = _common_axis("vecdot", axis, x1, x2)
    one, other = broadcast_arrays(x1, x2)
    common = kinds.result_type(one.dtype, other.dtype)
    product = one._tensor.cast(common) * other._tensor.cast(common)
    return Array._of(product.sum(place, dtype=common))


def cross(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:
    """The vector product of vectors of three elements along an axis."""
    _check("cross", kinds.NUMERIC, x1, x2)
    place = _common_axis("cross", axis, x1, x2)
    one, other = broadcast_arrays(x1, x2)
    common = kinds.result_type(x1.dtype, x2.dtype)
    return Array._of(one._tensor.cast(common).cross(other._tensor.cast(common), place))


def diagonal(x: Array, /, *, offset: int = 0) -> Array:
    """A diagonal of each matrix."""
    return Array._of(x._tensor.diagonal(offset, -2, -1))


def trace(x: Array, /, *, offset: int = 0, dtype: DType | None = None) -> Array:
    """The sum of a diagonal of each matrix."""
    from minigrad.array_api.statistics import sum

    return sum(diagonal(x, offset=offset), axis=-1, dtype=dtype)


def vector_norm(
    x: Array, /, *, axis: int | tuple[int, ...] | None = None, keepdims: Any = False,
    ord: float = 2,
) -> Array:  # fmt: skip
    """(Σ |x|^ord)^(1/ord); the largest |x| for inf, the smallest for -inf, a count for 0."""
    if x.dtype not in kinds.FLOATING:
        raise TypeError(f"vector_norm of {x.dtype.name}: expected a floating dtype")
    axes = _axes("vector_norm", axis, x.ndim)
    size = x._tensor.abs()
    if not axes:
        return Array._of(size.ne(0).cast(x.dtype) if ord == 0 else size)
    return Array._of(_norm(size, axes, keepdims, ord))


def _norm(size: Any, axes: tuple[int, ...], keepdims: Any, order: float) -> Any:
    if order == float("inf"):
        return size.max(axes, keepdims)
    if order == float("-inf"):
        return size.min(axes, keepdims)
    if order == 0:
        return size.ne(0).cast(size.dtype).sum(axes, keepdims)
    if order == 1:
        return size.sum(axes, keepdims)
    if order == 2:
        return size.square().sum(axes, keepdims).sqrt()
    return size.pow(order).sum(axes, keepdims).pow(1 / order)


def matrix_norm(x: Array, /, *, keepdims: Any = False, ord: Any = "fro") -> Array:
    """Frobenius, nuclear ("nuc"), 1, 2, inf and their negatives."""
    tensor = _matrix("matrix_norm", x)
    if ord == "fro":
        return Array._of(tensor.square().sum((-2, -1), keepdims).sqrt())
    if ord in ("nuc", 2, -2):
        values = svdvals(x)._tensor
        result = values.sum(-1) if ord == "nuc" else values.max(-1) if ord == 2 else values.min(-1)
        return Array._of(result.unsqueeze(-1).unsqueeze(-1) if keepdims else result)
    if ord not in (1, -1, float("inf"), float("-inf")):
        raise ValueError(f"matrix_norm(ord={ord!r}): expected 'fro', 'nuc', ±1, ±2 or ±inf")
    sums = tensor.abs().sum(-2 if ord in (1, -1) else -1, True)
    result = sums.max((-2, -1), keepdims) if ord > 0 else sums.min((-2, -1), keepdims)
    return Array._of(result)


def matrix_power(x: Array, n: int, /) -> Array:
    """The n-th power of each matrix, by squaring; of its inverse for negative n."""
    tensor = _matrix("matrix_power", x, True)
    if n < 0:
        tensor, n = inv(x)._tensor, -n
    result = _identity(x).expand(x.shape)
    while n:
        if n & 1:
            result = result.matmul(tensor)
        tensor, n = tensor.matmul(tensor), n >> 1
    return Array._of(result)


def _identity(x: Array) -> Any:
    return Tensor.eye(x.shape[-1], dtype=x.dtype, device=x.device)


# --- decompositions -------------------------------------------------------------------------------


def qr(x: Array, /, *, mode: str = "reduced") -> QRResult:
    """x = Q·R with orthonormal columns in Q and R upper triangular."""
    if mode not in ("reduced", "complete"):
        raise ValueError(f"qr(mode={mode!r}): expected 'reduced' or 'complete'")
    q, r = _matrix("qr", x).qr(mode)
    return QRResult(Array._of(q), Array._of(r))


def svd(x: Array, /, *, full_matrices: Any = True) -> SVDResult:
    """x = U·diag(S)·Vh with S falling."""
    u, s, v = _matrix("svd", x).svd(full_matrices=bool(full_matrices))
    return SVDResult(Array._of(u), Array._of(s), Array._of(v))


def svdvals(x: Array, /) -> Array:
    """Singular values, falling."""
    return svd(x, full_matrices=False).S


def eigh(x: Array, /) -> EighResult:
    """Eigenvalues (rising) and eigenvectors (columns) of symmetric matrices.

    With c ≥ |λ| for all λ, x + c·1 has no negative eigenvalue, so its singular values are its
    eigenvalues. Errors are those of the SVD: relative to the largest |λ|.
    """
    tensor = _matrix("eigh", x, True)
    bound = tensor.abs().sum(-1, True).max(-2, True)  # Gershgorin's circles
    u, s, _ = (tensor + bound * _identity(x)).svd()
    values = s - bound.reshape((*x.shape[:-2], 1))
    return EighResult(Array._of(values.flip(-1)), Array._of(u.flip(-1)))


def eigvalsh(x: Array, /) -> Array:
    """Eigenvalues of symmetric matrices, rising."""
    return eigh(x).eigenvalues


def cholesky(x: Array, /, *, upper: Any = False) -> Array:
    """L with x = L·Lᵀ, or its transpose; NaN where x is not positive definite.

    Column by column, each from those before it.
    """
    tensor = _matrix("cholesky", x, True).contiguous().realize()
    rows = Tensor.arange(x.shape[-1], device=x.device)
    factor = tensor.zeros_like().contiguous()
    for k in _counting(x.shape[-1]):
        row = factor[..., k : k + 1, :]
        column = tensor[..., :, k : k + 1] - (factor * row).sum(-1, True)
        column = column / column[..., k : k + 1, :].sqrt()
        column = (rows >= k).unsqueeze(-1).where(column, 0.0)
        factor = rows.eq(k).where(column, factor).realize()
    return Array._of(factor.transpose(-2, -1) if upper else factor)


def _counting(stop: int) -> Iterator[Any]:
    """0, 1, … as a bound variable, so that each turn of a loop runs the same compiled program."""
    if stop == 1:
        yield 0
        return
    for number in range(stop):
        yield Variable("k", 0, stop - 1).bind(number)


class _Eliminated(NamedTuple):
    """solution: y with x·y = right. sign: −1 for an odd number of exchanges; pivots: their values,
    whose product times the sign is the determinant.
    """

    solution: Any
    sign: Any
    pivots: Any


def _eliminate(matrix: Any, right: Any) -> _Eliminated:
    """Gauss–Jordan elimination with the largest pivot of each column (Golub and Van Loan, 3.4)."""
    size = matrix.shape[-1]
    batch = numel(matrix.shape[:-2])
    columns = right.shape[-1]
    wide = matrix.cat(right.expand((*matrix.shape[:-1], columns)), dim=-1)
    state = wide.reshape((batch, size, size + columns)).contiguous().realize()
    rows = Tensor.arange(size, device=matrix.device).reshape((1, size, 1))
    pivots = Tensor.zeros(batch, size, dtype=matrix.dtype, device=matrix.device).contiguous()
    sign = Tensor.ones(batch, dtype=matrix.dtype, device=matrix.device).contiguous()
    for k in _counting(size):
        candidates = (rows >= k).where(state[:, :, k : k + 1].abs(), -1.0)
        chosen = candidates.argmax(1, True)  # (batch, 1, 1)
        is_chosen, is_k = rows.eq(chosen), rows.eq(k)
        pivot_row = is_chosen.where(state, 0.0).sum(1, True)
        pivot = pivot_row[:, :, k : k + 1]
        exchanged = is_chosen.where(state[:, k : k + 1, :], state)
        scaled = pivot_row / pivot
        rest = exchanged - exchanged[:, :, k : k + 1] * scaled
        state = is_k.where(scaled, rest)
        pivots = is_k.squeeze(2).where(pivot.squeeze(2), pivots)
        sign = chosen.reshape((batch,)).eq(k).where(sign, -sign)
        state.realize(pivots, sign)
    return _Eliminated(
        state[:, :, size:].reshape((*matrix.shape[:-1], columns)),
        sign.reshape(matrix.shape[:-2]),
        pivots.reshape(matrix.shape[:-1]),
    )


def solve(x1: Array, x2: Array, /) -> Array:
    """y with x1·y = x2 for square x1; x2 holds columns, or is one vector."""
    matrix = _matrix("solve", x1, True)
    vector = x2.ndim == 1
    common = kinds.result_type(x1.dtype, x2.dtype)
    matrix, right = matrix.cast(common), x2._tensor.cast(common)
    right = right.unsqueeze(-1) if vector else right
    if right.ndim < 2 or right.shape[-2] != matrix.shape[-1]:
        raise ValueError(f"solve of shapes {x1.shape} and {x2.shape}: expected as many rows")
    shape = broadcast_shapes(x1.shape[:-2], x2.shape[:-2] if not vector else ())
    matrix = matrix.expand((*shape, *matrix.shape[-2:]))
    solved = _eliminate(matrix, right.expand((*shape, *right.shape[-2:]))).solution
    return Array._of(solved.squeeze(-1) if vector else solved)


def inv(x: Array, /) -> Array:
    """The inverse of each matrix."""
    return Array._of(_eliminate(_matrix("inv", x, True), _identity(x).expand(x.shape)).solution)


def pinv(x: Array, /, *, rtol: Any = None) -> Array:
    """The Moore–Penrose inverse; singular values below rtol · the largest count as zero."""
    u, s, v = svd(x, full_matrices=False)
    values = s._tensor
    kept = values > _least(x, values, rtol)
    inverse = kept.where(1 / kept.where(values, 1.0), 0.0)
    return Array._of(
        (v._tensor.transpose(-2, -1) * inverse.unsqueeze(-2)).matmul(u._tensor.transpose(-2, -1))
    )


def _least(x: Array, values: Any, rtol: Any) -> Any:
    if rtol is None:
        rtol = max(x.shape[-2:]) * kinds.finfo(x.dtype).eps
    elif isinstance(rtol, Array):
        rtol = rtol._tensor.unsqueeze(-1)
    return values.max(-1, True) * rtol


def matrix_rank(x: Array, /, *, rtol: Any = None) -> Array:
    """How many singular values are above rtol · the largest."""
    values = svdvals(x)._tensor
    rank = (values > _least(x, values, rtol)).sum(-1)
    return Array._of(rank.cast(kinds.DEFAULT_INTEGER))


def slogdet(x: Array, /) -> SlogdetResult:
    """The sign of each determinant, and the logarithm of its absolute value."""
    found = _determinant("slogdet", x)
    sign = found.sign * found.pivots.sign().prod(-1)
    return SlogdetResult(Array._of(sign), Array._of(found.pivots.abs().log().sum(-1)))


def det(x: Array, /) -> Array:
    """The determinant of each matrix."""
    found = _determinant("det", x)
    return Array._of(found.sign * found.pivots.prod(-1))


def _determinant(name: str, x: Array) -> _Eliminated:
    """Elimination for its pivots; behind a pivot of 0 there are infinities, never another pivot.

    The elimination goes on with NaN then, so that pivots after a zero are set to one.
    """
    tensor = _matrix(name, x, True)
    found = _eliminate(tensor, tensor[..., :0])
    zeros = found.pivots.eq(0).cast(kinds.int32).cumsum(-1)
    before = zeros - found.pivots.eq(0).cast(kinds.int32)
    return found._replace(pivots=(before > 0).where(1.0, found.pivots))
