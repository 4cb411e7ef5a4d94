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

Rule = Callable[..., Tensor]  # see `with_gradients`


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
        q, r = with_gradients(wide, (q, r), (_by_q, _by_r))
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
        parts = u[..., :k], s, v[..., :k]
        first, s, last = with_gradients(wide, parts, (_by_u, _by_s, _by_v))
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


def _by_q(g: Tensor, x: Tensor, q: Tensor, r: Tensor) -> Tensor:
    return _by_first(q, r, -(g.mT @ q), g).pad((0, x._known_shape()[-1] - q._known_shape()[-1]))


def _by_r(g: Tensor, x: Tensor, q: Tensor, r: Tensor) -> Tensor:
    k = q._known_shape()[-1]
    first, others = g[..., :k], g[..., k:]  # the other columns are Qᵀ·x
    by_q = x[..., k:] @ others.mT
    by_x = _by_first(q, r, r[..., :k] @ first.mT - by_q.mT @ q, by_q)
    return by_x.cat(q @ others, dim=-1)


def _by_first(q: Tensor, r: Tensor, inner: Tensor, by_q: Tensor) -> Tensor:
    """The gradient of the first columns of x, as many as Q has."""
    by_x = q @ (inner.tril() + inner.tril(-1).mT) + by_q
    return by_x @ inverse_of_triangle(r[..., : q._known_shape()[-1]]).mT


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


def _by_u(g: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    row, column, along = s.unsqueeze(-2), s.unsqueeze(-1), u.mT @ g
    factor = reciprocal((row - column) * (row + column))
    inside = u @ ((along - along.mT) * factor * row)
    return (inside + (g - u @ along) * reciprocal(row)) @ v.mT


def _by_s(g: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    return (u * g.unsqueeze(-2)) @ v.mT


def _by_v(g: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    return _by_u(g, x.mT, v, s, u).mT


def reciprocal(x: Tensor) -> Tensor:
    """1/x, and 0 for 0."""
    return x.eq(0).where(0.0, 1.0 / x.eq(0).where(1.0, x))


def with_gradients(
    x: Tensor, factors: tuple[Tensor, ...], rules: tuple[Rule, ...]
) -> tuple[Tensor, ...]:
    """Factors of x; a rule for each gives the gradient of x: rule(the factor's, x, *factors)."""
    return tuple(x._with_derivative(one, _rule_of(rules, i), *factors)
                 for i, one in enumerate(factors))  # fmt: skip


@cache
def _rule_of(rules: tuple[Rule, ...], place: int) -> Callable[..., Sequence[Any]]:
    def rule(g: Tensor, value: Tensor, x: Tensor, *factors: Tensor) -> Sequence[Any]:
        by_x = rules[place](g, x, *with_gradients(x, factors, rules))
        return [by_x, *(None for _ in factors)]

    return rule


check_functions(globals())
