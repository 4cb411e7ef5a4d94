"""Factorizations of the matrices in the last two dimensions: `Tensor.qr` and `Tensor.svd`.

First and second derivatives are right where they exist: where R is invertible, and where singular
values are distinct and positive. Derivatives that do not exist count as 0.

Both are programs of many steps (see panels.py), captured once per shape and replayed. So the tensor
is computed at once, not lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from minigrad.errors import DTypeError, expect
from minigrad.graph.node import is_symbolic
from minigrad.graph.shapes import numel
from minigrad.linalg.panels import at_once, inverse_of_triangle, missing
from minigrad.linalg.reflections import bidiagonal, empty, householder, reflected
from minigrad.linalg.tridiagonal import spectrum
from minigrad.settings import thread
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import check_choice
from minigrad.tensor.results import QRResult, SVDResult

Gradients = Sequence[Tensor | None]  # one, or None, for each factor


def qr(x: Tensor, mode: str = "reduced") -> QRResult[Tensor]:
    """Q with orthonormal columns and R upper triangular, such that Q @ R is x.

    (m, n) gives Q (m, k) and R (k, n) with k = min(m, n); for mode "complete" k = m, and for m > n
    the factors then have no gradients. Signs are LAPACK's (and so numpy's and PyTorch's). By
    Householder reflections (Golub and Van Loan, 5.2). Float dtypes.

    >>> [x.shape for x in Tensor.ones(3, 2).qr()]
    [(3, 2), (2, 2)]
    """
    check_choice("qr", ("reduced", "complete"), mode=mode)
    *_, m, n = checked("qr", x)
    wide = x._wide()
    count = m if mode == "complete" else min(m, n)
    q, r = at_once(householder, wide, count=count) if numel(x.shape) else empty(wide, count)
    if numel(x.shape) and count <= n:
        q, r = with_gradients(wide, (q, r), _qr_gradient)
    return QRResult(q.cast(x.dtype), r.cast(x.dtype))


def svd(x: Tensor, full_matrices: bool = True) -> SVDResult[Tensor]:
    """U, S and Vh such that (U * S) @ Vh is x, with S (k,) descending, k = min(m, n).

    (m, n) gives U (m, m) and Vh (n, n); with full_matrices=False (m, k) and (k, n), which are the
    columns and rows with gradients. By bidiagonal matrices (see `_right_vectors`); errors are
    relative to the largest singular value. Float dtypes.

    >>> [x.shape for x in Tensor.ones(3, 2).svd()]
    [(3, 3), (2,), (2, 2)]
    """
    *batch, m, n = checked("svd", x)
    wide = x._wide()
    k = min(m, n)
    if numel(x.shape):
        u, s, v = at_once(_factored, wide, full=full_matrices)
    else:
        (u, _), s = empty(wide, m if full_matrices else k), x.new_zeros((*batch, k))
        v, _ = empty(wide.mT, n if full_matrices else k)
    if thread.gradients and numel(x.shape):
        first, s, last = with_gradients(wide, (u[..., :k], s, v[..., :k]), _svd_gradient)
        u = first if u.shape[-1] == k else first.cat(u[..., k:], dim=-1)
        v = last if v.shape[-1] == k else last.cat(v[..., k:], dim=-1)
    return SVDResult(*(part.cast(x.dtype) for part in (u, s, v.mT)))


def checked(name: str, x: Tensor, square: bool = False) -> tuple[int, ...]:
    """The shape of float matrices; an error for other tensors."""
    expect(x.dtype.is_float, name, "a float dtype; use .float()", x.dtype.name, error=DTypeError)
    what = "square matrices (…, n, n)" if square else "matrices (…, rows, columns)"
    fits = x.ndim >= 2 and not is_symbolic(x.shape) and (not square or x.shape[-1] == x.shape[-2])
    expect(fits, name, f"{what} of known sizes", x)
    return x._known_shape()


def _qr_gradient(x: Tensor, factors: Sequence[Tensor], gradients: Gradients) -> Tensor:
    (q, r), (by_q, by_r) = factors, gradients
    k, rest = q._known_shape()[-1], x[..., q._known_shape()[-1] :]
    by_rest = rest.zeros_like()
    if by_r is not None and by_rest.shape[-1]:  # the columns beyond are Qᵀ·rest
        by_rest = q @ by_r[..., k:]
        more = rest @ by_r[..., k:].mT
        by_q = more if by_q is None else by_q + more
    r = r[..., :k]
    inner = r.zeros_like() if by_r is None else r @ by_r[..., :k].mT
    inner = inner if by_q is None else inner - by_q.mT @ q
    by_x = q @ (inner.tril() + inner.tril(-1).mT)
    by_x = by_x if by_q is None else by_x + by_q
    return (by_x @ inverse_of_triangle(r).mT).cat(by_rest, dim=-1)


# --- SVD ------------------------------------------------------------------------------------------


def _factored(x: Tensor, full: bool) -> tuple[Tensor, ...]:
    """U, S, and V (not transposed) of x (batch, m, n)."""
    _, m, n = x._known_shape()
    if m < n:
        return _factored(x.transpose(1, 2), full)[::-1]
    size = x.abs().max((1, 2), True)
    x = (x / size.eq(0).where(1.0, size)).contiguous()
    # those of tiny singular values have no direction; QR finds one
    v = _directions(_right_vectors(x), n)
    turned = x @ v
    s = (turned * turned).sum(1).sqrt()
    order = s.argsort(1, descending=True)
    v, turned = (one._at(2, order.unsqueeze(1).expand(one.shape)) for one in (v, turned))
    return _directions(turned, m if full else n), s._at(1, order) * size.squeeze(2), v


def _right_vectors(x: Tensor) -> Tensor:
    """V of x (batch, m, n), up to rounding; the directions that x stretches most come first.

    The bidiagonal B has the singular values σ of x. The matrix [[0, B], [Bᵀ, 0]] with its rows and
    columns reordered is tridiagonal, and has eigenvalues ±σ (Golub and Kahan 1965).
    """
    _, m, n = x._known_shape()
    more = missing(n)
    d, e, done = bidiagonal(x.pad((0, more, 0, max(n + more - m, 0))))
    beside = d.unsqueeze(2).cat(e.unsqueeze(2), dim=2).flatten(1)[:, : 2 * n - 1]
    _, vectors = spectrum((beside * 0).pad((0, 1)), beside)
    v = vectors[:, ::2, n:].flip(2) * 2**0.5
    return reflected(v.pad((0, 0, 0, more)), done)[:, :n].contiguous()


def _directions(x: Tensor, count: int) -> Tensor:
    """`count` orthonormal columns; the first are those of x, which are orthogonal, normalized."""
    n = x._known_shape()[2]
    q, r = householder(x, count)
    signs = (r[:, :n].diagonal(0, 1, 2) < 0).where(-1.0, 1.0)
    return q * signs.pad((0, count - n), value=1.0).unsqueeze(1)


def _svd_gradient(x: Tensor, factors: Sequence[Tensor], gradients: Gradients) -> Tensor:
    (u, s, v), (by_u, by_s, by_v) = factors, gradients
    row, column = s.unsqueeze(-2), s.unsqueeze(-1)
    factor, inverse = reciprocal((row - column) * (row + column)), reciprocal(row)
    by_x = x.zeros_like()
    if by_u is not None:
        along = u.mT @ by_u
        inside = u @ ((along - along.mT) * factor * row)
        by_x = by_x + (inside + (by_u - u @ along) * inverse) @ v.mT
    if by_s is not None:
        by_x = by_x + (u * by_s.unsqueeze(-2)) @ v.mT
    if by_v is not None:
        along = v.mT @ by_v
        inside = column * ((along - along.mT) * factor) @ v.mT
        by_x = by_x + u @ (inside + ((by_v - v @ along) * inverse).mT)
    return by_x


def reciprocal(x: Tensor) -> Tensor:
    """1/x, and 0 for 0."""
    return x.eq(0).where(0.0, 1.0 / x.eq(0).where(1.0, x))


def with_gradients(
    x: Tensor, values: tuple[Tensor, ...],
    rule: Callable[[Tensor, Sequence[Tensor], Gradients], Tensor],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Factors of x, whose gradient for x is rule(x, factors, a gradient or None for each)."""
    return tuple(x._with_derivative(v, _rule_of(rule, i), *values) for i, v in enumerate(values))


@cache
def _rule_of(gradient: Any, place: int) -> Callable[..., Sequence[Any]]:
    def rule(g: Tensor, value: Tensor, x: Tensor, *values: Tensor) -> Sequence[Any]:
        gradients = [g if number == place else None for number in range(len(values))]
        by_x = gradient(x, with_gradients(x, values, gradient), gradients)
        return [by_x, *(None for _ in values)]

    return rule


check_functions(globals())
