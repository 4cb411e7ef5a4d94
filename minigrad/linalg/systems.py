"""Systems, inverses, determinants; eigenvalues, ranks and norms by singular values.

Systems, inverses and determinants come from one elimination, in panels of columns (see panels.py);
so they are computed at once. All have gradients, of any order. Float dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.errors import expect
from minigrad.graph.shapes import numel
from minigrad.linalg.decompositions import checked, reciprocal, svd, with_gradients
from minigrad.linalg.panels import at_once, by_panels, columns_at, missing, numbers, rows_at, stored
from minigrad.linalg.reflections import reflected, symmetric
from minigrad.linalg.tridiagonal import spectrum
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import Axes, axes_of, broadcast_shape
from minigrad.tensor.results import EighResult, LstsqResult, SlogdetResult


def _identity(x: Tensor) -> Tensor:
    return Tensor.eye(x._known_shape()[-1], dtype=x.dtype, device=x.device)


def _eliminated(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """y with left·y = right, and the pivots; their product is the determinant.

    left (batch, n, n), right (batch, n, m). A pivot has the other sign if its row was exchanged. By
    Gauss–Jordan elimination with the largest pivot of each column (Golub and Van Loan, 3.4), in
    matrices filled up to whole panels.
    """
    size = left._known_shape()[1]
    more = missing(size)
    corner = _identity(left.new_zeros((1, more, more))).pad((size, 0, size, 0))
    wide = (left.pad((0, more, 0, more)) + corner).cat(right.pad((0, 0, 0, more)), dim=2)
    s, pivots = _without_panels(wide, size)
    return s[:, :size, size + more :], pivots[:, :size]


def _solution(left: Tensor, right: Tensor) -> tuple[Tensor]:
    return _eliminated(left, right)[:1]


def _inverse(x: Tensor) -> tuple[Tensor]:
    return _solution(x, _identity(x).expand(x.shape))


def _pivots(x: Tensor) -> Tensor:
    """The pivots of x (batch, n, n), where all after a first 0 are 1.

    After a zero pivot the elimination continues with infinities and NaN, so those are replaced.
    """
    pivots = _eliminated(x, x[:, :, :0])[1].contiguous()
    zero = pivots.eq(0)
    return (zero.cumsum(-1) - zero > 0).where(1.0, pivots)


def _determinant(x: Tensor) -> tuple[Tensor]:
    return (_pivots(x).prod(-1),)


def _sign_and_logarithm(x: Tensor) -> tuple[Tensor, Tensor]:
    pivots = _pivots(x)
    return pivots.sign().prod(-1), pivots.abs().log().sum(-1)


def _without_panels(s: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """s (batch, n, m) with the panels of its first columns eliminated; and the pivots."""
    batch, n, m = s.shape

    def step(s: Tensor, first: Tensor, width: int) -> tuple[Tensor, Tensor]:
        panel, pivots = columns_at(s, first, width).contiguous(), []
        rows = s._numbered(1)
        order = rows.expand(batch, n, 1).contiguous()
        for k in numbers(first, width):
            panel, order, pivot = _pivoted(panel, order, k, k - first)
            pivots.append(pivot)
        s = s._at(1, order.expand(batch, n, m)).contiguous()
        block = rows_at(s, first, width).contiguous()
        inside = (rows >= first) & (rows < first + width)
        return inside.where(0.0, s) + panel @ block, Tensor.cat(pivots, dim=1)

    s, pivots = by_panels(step, s, columns)
    return s, pivots.transpose(0, 1).flatten(1)


def _pivoted(panel: Tensor, order: Tensor, k: Tensor, j: Tensor) -> tuple[Tensor, ...]:
    """A panel after the elimination of column j, which is replaced by the factors for row k.

    In the end, the panel is the matrix to multiply the pivots' rows by. order: where rows came
    from.
    """
    batch, n, width = panel.shape
    rows, here = panel._numbered(1), panel._numbered(2).eq(j)
    chosen = (rows >= k).where(columns_at(panel, j).abs(), -1.0).argmax(1, True)  # (batch, 1, 1)
    source = rows.eq(k).where(chosen, rows.eq(chosen).where(k, rows))
    panel = panel._at(1, source.expand(batch, n, width))
    row = rows_at(panel, k)
    pivot = columns_at(row, j)
    row = here.where(1.0, row) / pivot
    rest = here.where(0.0, panel) - columns_at(panel, j) * row
    signed = chosen.eq(k).where(pivot, -pivot).reshape(batch, 1)
    return rows.eq(k).where(row, rest).contiguous(), order._at(1, source).contiguous(), signed


def inv(x: Tensor) -> Tensor:
    """The inverse of each square matrix; infinite or NaN for singular ones.

    >>> inv(Tensor([[2.0, 0.0], [0.0, 4.0]])).tolist()
    [[0.5, 0.0], [0.0, 0.25]]
    """
    checked("inv", x, True)
    return _inverse_of(x, x)


def _inverse_of(x: Tensor, seen: Tensor) -> Tensor:
    """The inverse of x, whose values, perhaps before they were broadcast, are those of `seen`."""
    return x._with_derivative(at_once(_inverse, seen)[0].expand(x.shape), _inv_rule)


def _inv_rule(g: Any, inverse: Any, x: Any) -> Sequence[Any]:
    return [-(inverse.mT @ g @ inverse.mT)]


def solve(A: Tensor, B: Tensor) -> Tensor:
    """y with A·y = B for square A (…, n, n); B is (…, n, k), or one vector (n,).

    Infinite or NaN if A is singular.

    >>> solve(Tensor([[2.0, 0.0], [0.0, 4.0]]), Tensor([2.0, 2.0])).tolist()
    [1.0, 0.5]
    """
    right = B.unsqueeze(-1) if B.ndim == 1 else B
    expect(right.shape[-2:-1] == checked("solve", A, True)[-1:], "solve",
           "equal numbers of rows", A, B)  # fmt: skip
    shape = broadcast_shape("solve", A.shape[:-2], right.shape[:-2])
    left = A.expand((*shape, *A.shape[-2:]))
    right = right.expand((*shape, *right.shape[-2:]))
    seen = stored(A)
    solved = left._with_derivative(at_once(_solution, seen, right)[0], _solve_rule, right, seen)
    return solved.squeeze(-1) if B.ndim == 1 else solved


def _solve_rule(g: Any, value: Any, a: Any, b: Any, seen: Any) -> Sequence[Any]:
    """By an inverse, as g may have been computed from other systems' gradients, not in memory."""
    by_b = _inverse_of(a, seen).mT @ g
    return [-(by_b @ value.mT), by_b, None]


def slogdet(x: Tensor) -> SlogdetResult[Tensor]:
    """The sign of each determinant, and the logarithm of its absolute value.

    >>> [part.item() for part in slogdet(Tensor([[-1.0, 0.0], [0.0, 1.0]]))]
    [-1.0, 0.0]
    """
    checked("slogdet", x, True)
    seen = stored(x)
    sign, logarithm = at_once(_sign_and_logarithm, seen)
    return SlogdetResult(sign, x._with_derivative(logarithm, _slogdet_rule, seen))


def _slogdet_rule(g: Any, value: Any, x: Any, seen: Any) -> Sequence[Any]:
    return [g.reshape((*g.shape, 1, 1)) * _inverse_of(x, seen).mT, None]


def det(x: Tensor) -> Tensor:
    """The determinant of each square matrix; gradients are right for invertible ones only.

    >>> det(Tensor([[2.0, 1.0], [0.0, 4.0]])).item()
    8.0
    """
    checked("det", x, True)
    seen = stored(x)
    return x._with_derivative(at_once(_determinant, seen)[0], _det_rule, seen)


def _det_rule(g: Any, value: Any, x: Any, seen: Any) -> Sequence[Any]:
    return _slogdet_rule(g * value, value, x, seen)


def cholesky(x: Tensor, *, upper: bool = False) -> Tensor:
    """L, lower triangular, with x = L·Lᵀ, or its transpose; NaN if x is not positive definite.

    >>> cholesky(Tensor([[4.0, 2.0], [2.0, 2.0]])).tolist()
    [[2.0, 0.0], [1.0, 1.0]]
    """
    checked("cholesky", x, True)
    result = x._with_derivative(at_once(_factored, x)[0], _cholesky_rule)
    return result.mT if upper else result


def _factored(x: Tensor) -> tuple[Tensor]:
    """The factor of x (batch, n, n), computed panel by panel."""
    size = x._known_shape()[1]
    more = missing(size)

    def step(s: Tensor, first: Tensor, width: int) -> tuple[Tensor, Tensor]:
        panel = columns_at(s, first, width).contiguous()
        for k in numbers(first, width):
            column = columns_at(panel, k - first)
            column = column / rows_at(column, k).sqrt()
            column = (panel._numbered(1) >= k).where(column, 0.0).contiguous()
            others = panel - column * rows_at(column, first, width).transpose(1, 2)
            panel = panel._numbered(2).eq(k - first).where(column, others).contiguous()
        return s - panel @ panel.transpose(1, 2), panel

    _, factor = by_panels(step, x.pad((0, more, 0, more)), size)
    return (factor.permute(1, 2, 0, 3).flatten(2)[:, :size, :size].tril(),)


def _cholesky_rule(g: Any, lower: Any, x: Any) -> Sequence[Any]:
    inverse, inside = inv(lower), (lower.mT @ g).tril()
    inside = inside - _identity(x) * inside * 0.5
    by_x = inverse.mT @ inside @ inverse
    return [(by_x + by_x.mT) * 0.5]


def eigh(x: Tensor) -> EighResult[Tensor]:
    """Eigenvalues (ascending) and eigenvectors (columns) of symmetric matrices.

    By a tridiagonal matrix, and divide and conquer (see tridiagonal.py). Errors are relative to the
    largest |λ|.

    >>> eigh(Tensor([[2.0, 0.0], [0.0, 1.0]]))[0].round(decimals=4).tolist()
    [1.0, 2.0]
    """
    checked("eigh", x, True)
    wide = x._wide()
    found = at_once(_conquered, wide) if numel(x.shape) else (wide.detach().sum(-1), wide.detach())
    first, last = with_gradients(wide, found, (_by_values, _by_vectors))
    return EighResult(first.cast(x.dtype), last.cast(x.dtype))


def _conquered(x: Tensor) -> tuple[Tensor, ...]:
    """Eigenvalues and eigenvectors of x (batch, n, n)."""
    size = x._known_shape()[-1]
    more = missing(size)
    largest = x.abs().max((1, 2), True)
    x = x / largest.eq(0).where(1.0, largest)
    x = ((x + x.mT) * 0.5).contiguous()
    d, e, done = symmetric(x.pad((0, more, 0, more)))
    _, vectors = spectrum(d[:, :size], e[:, : size - 1])
    vectors = reflected(vectors.pad((0, 0, 0, more)), done)[:, :size].contiguous()
    values = (vectors * (x @ vectors)).sum(1)  # more accurate than those of the halves
    order = values.argsort(1)
    sorted_vectors = vectors._at(2, order.unsqueeze(1).expand(x.shape))
    return values._at(1, order) * largest.squeeze(2), sorted_vectors


def _by_values(g: Tensor, x: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    return (vectors * g.unsqueeze(-2)) @ vectors.mT


def _by_vectors(g: Tensor, x: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    along, gaps = vectors.mT @ g, values.unsqueeze(-2) - values.unsqueeze(-1)
    return vectors @ ((along - along.mT) * reciprocal(gaps) * 0.5) @ vectors.mT


def eigvalsh(x: Tensor) -> Tensor:
    """Eigenvalues of symmetric matrices (…, n, n), ascending: (…, n); errors as for `eigh`."""
    return eigh(x)[0]


def svdvals(x: Tensor) -> Tensor:
    """Singular values of matrices (…, m, n), descending: (…, min(m, n)); errors as for `svd`."""
    checked("svdvals", x)
    return svd(x, False)[1]


def _least(x: Tensor, values: Tensor, rtol: float | Tensor | None) -> Tensor:
    """The threshold above which singular values count."""
    share = max(x._known_shape()[-2:]) * 2.0**-x.dtype.fraction if rtol is None else rtol
    if isinstance(share, Tensor):
        share = share.expand(values.shape[:-1]).unsqueeze(-1)
    return values._top(-1) * share


def pinv(x: Tensor, *, rtol: float | Tensor | None = None) -> Tensor:
    """The Moore–Penrose inverse: (…, m, n) → (…, n, m).

    Singular values up to rtol · the largest count as 0. rtol: a number, or a tensor that broadcasts
    with the batch; by default max(m, n) times the dtype's distance from 1 to the next number.
    """
    return _pseudo_inverse("pinv", x, rtol)[0]


def _pseudo_inverse(name: str, x: Tensor, rtol: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The pseudo-inverse, the rank, and the singular values."""
    checked(name, x)
    u, values, v = svd(x, False)
    kept = values > _least(x, values, rtol)
    inverse = kept.where(1 / kept.where(values, 1.0), 0.0)
    return (v.mT * inverse.unsqueeze(-2)).matmul(u.mT), kept.sum(-1), values


def matrix_rank(x: Tensor, *, rtol: float | Tensor | None = None) -> Tensor:
    """How many singular values are above rtol · the largest: (…, m, n) → (…), int64.

    rtol: as for `pinv`.

    >>> matrix_rank(Tensor([[1.0, 2.0], [2.0, 4.0]])).item()
    1
    """
    values = svdvals(x)
    return (values > _least(x, values, rtol)).sum(-1)


def cond(x: Tensor) -> Tensor:
    """The condition number: the largest singular value over the smallest, (…, m, n) → (…).

    Infinite, or very large, for singular matrices.
    """
    values = svdvals(x)
    return values.max(-1) / values.min(-1)


def lstsq(A: Tensor, B: Tensor, rcond: float | Tensor | None = None) -> LstsqResult[Tensor]:
    """solution: the y (…, n, k) of least norm that minimizes the norm of A·y − B.

    A (…, m, n), B (…, m, k), or (m,). residuals (…, k): the sums of squares of A·y − B, for any
    rank (PyTorch has them only for m > n = rank). rank: the number of singular values above rcond ·
    the largest. Also singular_values.
    """
    inverse, rank, values = _pseudo_inverse("lstsq", A, rcond)
    solution = inverse @ B
    errors = (A @ solution - B).square()
    return LstsqResult(solution, errors.sum(-2 if B.ndim > 1 else -1), rank, values)


def norm(x: Tensor, ord: Any = None, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """`vector_norm` over one dimension, `matrix_norm` over two; by default over all dimensions.

    Without ord, the root of the sum of squares, over any dimensions.
    """
    axes = axes_of("norm", dim, x.ndim)
    if ord is None:
        return x.norm(2, axes, keepdim)
    expect(len(axes) in (1, 2), f"norm(ord={ord!r})", "1 or 2 dimensions", f"dimensions {axes}")
    if len(axes) == 1:
        return vector_norm(x, ord, axes, keepdim)
    result = matrix_norm(x.movedim(axes, (-2, -1)), ord, keepdim=keepdim)
    return result.movedim((-2, -1), axes) if keepdim else result


def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """Dot products of vectors along dim; other dimensions broadcast.

    >>> vecdot(Tensor([[1, 2], [3, 4]]), Tensor([1, 1])).tolist()
    [3, 7]
    """
    return (x * y).sum(dim, dtype=(x * y).dtype)


def vector_norm(x: Tensor, ord: float = 2, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """(Σ |x|^ord)^(1/ord) over one, several or all (None) dimensions: see `Tensor.norm`."""
    return x.norm(ord, dim, keepdim)


def matrix_norm(x: Tensor, ord: Any = "fro", *, keepdim: bool = False) -> Tensor:
    """The norm of each matrix: (…, m, n) → (…), or (…, 1, 1) with keepdim.

    ord: "fro": the root of the sum of squares; "nuc": the sum of singular values; 2, −2: the
    largest, smallest of these; 1, −1: the largest, smallest sum of magnitudes of a column; inf,
    −inf: of a row. ValueError for others.
    """
    checked("matrix_norm", x)
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


def diagonal(x: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """The diagonals of matrices: `Tensor.diagonal` with the last two dimensions as default."""
    return x.diagonal(offset, dim1, dim2)


def matrix_power(x: Tensor, n: int) -> Tensor:
    """The n-th power of each matrix (…, m, m), by squaring; for negative n, of its inverse."""
    return (inv(x) if n < 0 else x).matrix_power(abs(n))


check_functions(globals())
