"""Systems, inverses, determinants; eigenvalues, ranks and norms by singular values.

Systems, inverses and determinants come from one elimination, whose steps all run the same compiled
program; so they are computed at once. All have gradients, of any order. Float dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from minigrad.errors import DTypeError, ShapeError
from minigrad.graph.shapes import numel
from minigrad.linalg.decompositions import svd, turns
from minigrad.tensor import Tensor
from minigrad.tensor.broadcasting import Axes, broadcast_shape, show
from minigrad.tensor.modes import no_grad


def _checked(name: str, x: Tensor, square: bool = True) -> Tensor:
    if not x.dtype.is_float:
        raise DTypeError(f"{name} of a {x.dtype.name} tensor: expected a float dtype; use .float()")
    if x.ndim < 2 or (square and x.shape[-1] != x.shape[-2]):
        what = "square matrices" if square else "matrices"
        raise ShapeError(f"{name} of {show(x.shape)}: expected {what} in the last two dimensions")
    return x


def _identity(x: Tensor) -> Tensor:
    return Tensor.eye(x._known_shape()[-1], dtype=x.dtype, device=x.device)


class _Eliminated(NamedTuple):
    """solution: y with x·y = right. sign: −1 for an odd number of exchanges; pivots: their values,
    whose product times the sign is the determinant.
    """

    solution: Tensor
    sign: Tensor
    pivots: Tensor


def _eliminate(matrix: Tensor, right: Tensor) -> _Eliminated:
    """Gauss–Jordan elimination with the largest pivot of each column (Golub and Van Loan, 3.4)."""
    shape = matrix._known_shape()
    size, batch, columns = shape[-1], numel(shape[:-2]), right._known_shape()[-1]
    with no_grad():
        wide = matrix.cat(right.expand((*shape[:-1], columns)), dim=-1)
        state = wide.reshape((batch, size, size + columns)).contiguous().realize()
        rows = Tensor.arange(size, device=matrix.device).reshape((1, size, 1))
        pivots = matrix.new_zeros((batch, size)).contiguous()
        sign = matrix.new_ones((batch,)).contiguous()
        for k in turns(size):
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
            state[:, :, size:].reshape((*shape[:-1], columns)), sign.reshape(shape[:-2]),
            pivots.reshape(shape[:-1]),
        )  # fmt: skip


def inv(x: Tensor) -> Tensor:
    """The inverse of each square matrix; infinite or NaN where there is none.

    >>> inv(Tensor([[2.0, 0.0], [0.0, 4.0]])).tolist()
    [[0.5, 0.0], [0.0, 0.25]]
    """
    value = _eliminate(_checked("inv", x), _identity(x)).solution
    return x._with_derivative(value, _inv_rule)


def _inv_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    return [-(inv(x).mT @ g @ inv(x).mT)]


def solve(A: Tensor, B: Tensor) -> Tensor:
    """y with A·y = B for square A (…, n, n); B is (…, n, k), or one vector (n,).

    >>> solve(Tensor([[2.0, 0.0], [0.0, 4.0]]), Tensor([2.0, 2.0])).tolist()
    [1.0, 0.5]
    """
    right = B.unsqueeze(-1) if B.ndim == 1 else B
    if right.shape[-2] != _checked("solve", A).shape[-1]:
        raise ShapeError(f"solve of {show(A.shape)} and {show(B.shape)}: expected as many rows")
    shape = broadcast_shape("solve", A.shape[:-2], right.shape[:-2])
    left = A.expand((*shape, *A.shape[-2:]))
    right = right.expand((*shape, *right.shape[-2:]))
    solved = left._with_derivative(_eliminate(left, right).solution, _solve_rule, right)
    return solved.squeeze(-1) if B.ndim == 1 else solved


def _solve_rule(g: Any, value: Any, a: Any, b: Any) -> Sequence[Any]:
    by_b = solve(a.mT, g)
    return [-(by_b @ solve(a, b).mT), by_b]


def _determinant(name: str, x: Tensor) -> _Eliminated:
    """Elimination for its pivots; behind a pivot of 0 there are infinities, never another pivot.

    The elimination goes on with NaN then, so that pivots after a zero are set to one.
    """
    found = _eliminate(_checked(name, x), x[..., :1].detach())
    with no_grad():
        zero = found.pivots.eq(0)
        after = zero.cumsum(-1) - zero > 0
        return found._replace(pivots=after.where(1.0, found.pivots))


def slogdet(x: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of each determinant, and the logarithm of its absolute value.

    >>> [part.item() for part in slogdet(Tensor([[-1.0, 0.0], [0.0, 1.0]]))]
    [-1.0, 0.0]
    """
    found = _determinant("slogdet", x)
    sign, size = found.sign * found.pivots.sign().prod(-1), found.pivots.abs().log().sum(-1)
    return sign, x._with_derivative(size, _slogdet_rule)


def _slogdet_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    return [g.reshape((*g.shape, 1, 1)) * inv(x).mT]


def det(x: Tensor) -> Tensor:
    """The determinant of each square matrix; gradients are those of invertible ones.

    >>> det(Tensor([[2.0, 1.0], [0.0, 4.0]])).item()
    8.0
    """
    found = _determinant("det", x)
    return x._with_derivative(found.sign * found.pivots.prod(-1), _det_rule)


def _det_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    return _slogdet_rule(g * det(x), value, x)


def cholesky(x: Tensor, *, upper: bool = False) -> Tensor:
    """L, lower triangular, with x = L·Lᵀ, or its transpose; NaN where x is not positive definite.

    Column by column, each from those before it.

    >>> cholesky(Tensor([[4.0, 2.0], [2.0, 2.0]])).tolist()
    [[2.0, 0.0], [1.0, 1.0]]
    """
    with no_grad():
        matrix = _checked("cholesky", x).contiguous().realize()
        rows = Tensor.arange(x.shape[-1], device=x.device)
        factor = matrix.zeros_like().contiguous()
        for k in turns(x._known_shape()[-1]):
            row = factor[..., k : k + 1, :]
            column = matrix[..., :, k : k + 1] - (factor * row).sum(-1, True)
            column = column / column[..., k : k + 1, :].sqrt()
            column = (rows >= k).unsqueeze(-1).where(column, 0.0)
            factor = rows.eq(k).where(column, factor).realize()
    result = x._with_derivative(factor, _cholesky_rule)
    return result.mT if upper else result


def _cholesky_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    lower = cholesky(x)
    inverse, inside = inv(lower), (lower.mT @ g).tril()
    inside = inside - _identity(x) * inside * 0.5
    by_x = inverse.mT @ inside @ inverse
    return [(by_x + by_x.mT) * 0.5]


def eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (rising) and eigenvectors (columns) of symmetric matrices.

    With c ≥ |λ| for all λ, x + c·1 has no negative eigenvalue, so its singular values are its
    eigenvalues. Errors are those of the SVD: relative to the largest |λ|.

    >>> eigh(Tensor([[2.0, 0.0], [0.0, 1.0]]))[0].round(decimals=4).tolist()
    [1.0, 2.0]
    """
    bound = _checked("eigh", x).abs().sum(-1, True).max(-2, True).detach()  # Gershgorin's circles
    u, s, _ = svd(x + bound * _identity(x), False)
    return (s - bound.squeeze(-1)).flip(-1), u.flip(-1)


def eigvalsh(x: Tensor) -> Tensor:
    """Eigenvalues of symmetric matrices, rising."""
    return eigh(x)[0]


def svdvals(x: Tensor) -> Tensor:
    """Singular values, falling."""
    return svd(_checked("svdvals", x, False), False)[1]


def _least(x: Tensor, values: Tensor, rtol: Any) -> Tensor:
    """What singular values must be above to count."""
    digits = {"float16": 10, "bfloat16": 7, "float64": 52}.get(x.dtype.name, 23)
    share = max(x._known_shape()[-2:]) * 2.0**-digits if rtol is None else rtol
    return values.max(-1, True) * (share.unsqueeze(-1) if isinstance(share, Tensor) else share)


def pinv(x: Tensor, *, rtol: Any = None) -> Tensor:
    """The Moore–Penrose inverse; singular values below rtol · the largest count as zero."""
    u, values, v = svd(_checked("pinv", x, False), False)
    kept = values > _least(x, values, rtol)
    inverse = kept.where(1 / kept.where(values, 1.0), 0.0)
    return (v.mT * inverse.unsqueeze(-2)).matmul(u.mT)


def matrix_rank(x: Tensor, *, rtol: Any = None) -> Tensor:
    """How many singular values are above rtol · the largest; int64."""
    values = svdvals(x)
    return (values > _least(x, values, rtol)).sum(-1)


def cond(x: Tensor) -> Tensor:
    """The largest singular value over the smallest."""
    values = svdvals(x)
    return values.max(-1) / values.min(-1)


def lstsq(A: Tensor, B: Tensor, *, rcond: Any = None) -> Tensor:
    """y with the least norm for which A·y is nearest to B: torch.linalg.lstsq's solution."""
    return pinv(A, rtol=rcond) @ B


def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """Products of vectors along dim."""
    return (x * y).sum(dim, dtype=(x * y).dtype)


def vector_norm(
    x: Tensor, ord: float = 2, dim: Axes = None, keepdim: bool = False
) -> Tensor:
    """(Σ |x|^ord)^(1/ord) over dim: see `Tensor.norm`."""
    return x.norm(ord, dim, keepdim)


def matrix_norm(x: Tensor, ord: Any = "fro", *, keepdim: bool = False) -> Tensor:
    """Frobenius, nuclear ("nuc"), 1, 2, inf and their negatives."""
    _checked("matrix_norm", x, False)
    if ord == "fro":
        return x.norm(2, (-2, -1), keepdim)
    if ord in ("nuc", 2, -2):
        values = svdvals(x)
        result = values.sum(-1) if ord == "nuc" else values.max(-1) if ord == 2 else values.min(-1)
        return result.reshape((*result.shape, 1, 1)) if keepdim else result
    if ord not in (1, -1, float("inf"), float("-inf")):
        raise ValueError(f"matrix_norm(ord={ord!r}): expected 'fro', 'nuc', ±1, ±2 or ±inf")
    sums = x.abs().sum(-2 if ord in (1, -1) else -1, True)
    return sums.max((-2, -1), keepdim) if ord > 0 else sums.min((-2, -1), keepdim)


def matrix_power(x: Tensor, n: int) -> Tensor:
    """The n-th power of each matrix, by squaring; of its inverse for negative n."""
    return (inv(x) if n < 0 else x).matrix_power(abs(n))
