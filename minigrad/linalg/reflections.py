"""Householder reflections: QR, and reduction to bidiagonal and tridiagonal matrices.

They are computed in panels of columns (see panels.py).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from minigrad.linalg import panels
from minigrad.linalg.panels import columns_at, inverse_of_triangle, numbers, rows_at
from minigrad.tensor import Tensor

Panel = tuple[Tensor, Tensor]  # U and T of a panel's reflections; or stacked, of all panels


def householder(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Q (batch, m, count) and R (batch, count, n) of x (batch, m, n)."""
    _, m, n = x._known_shape()
    columns = min(m, n)
    s = x.pad((0, max(columns + panels.missing(columns) - n, 0)))
    q, s = _reflected_panels(s, empty(x, count)[0], columns)
    return q, s[:, :count, :n].triu().contiguous()


def empty(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Q and R of x (…, m, n) if it has no elements."""
    *batch, m, n = x._known_shape()
    q = x.eye(m, count, dtype=x.dtype, device=x.device).expand(*batch, m, count)
    return q, x.new_zeros((*batch, count, n))


def _reflected_panels(s: Tensor, q: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """q after all reflections, the last one first; and s (batch, m, n) made triangular by them."""

    def step(s: Tensor, first: Tensor, width: int) -> tuple[Tensor, Panel]:
        panel, vectors = columns_at(s, first, width).contiguous(), []
        for k in numbers(first, width):
            column = (s._numbered(1) >= k).where(columns_at(panel, k - first), 0.0)
            vector = _reflector(column, s._numbered(1), k).contiguous()
            panel = (panel - vector * (vector * panel).sum(1, True)).contiguous()
            vectors.append(vector)
        u, t = _together(vectors)
        return _less(s, u, t.transpose(1, 2)), (u, t)

    s, done = panels.by_panels(step, s, columns)
    return reflected(q, done), s


def reflected(x: Tensor, done: Panel) -> Tensor:
    """x after the reflections of all panels, last panel first."""
    return Tensor.scan(lambda x, ut: (_less(x, *ut), None), x, done, reverse=True)[0]


def _together(vectors: list[Tensor]) -> Panel:
    """U and T such that the product of reflections is 1 − U·T·Uᵀ (Schreiber and Van Loan 1989)."""
    u = Tensor.cat(vectors, dim=2)
    one = u.eye(len(vectors), dtype=u.dtype, device=u.device)
    both = (u.transpose(1, 2) @ u).triu(1) + one
    return u, inverse_of_triangle(both).contiguous()


def symmetric(s: Tensor) -> tuple[Tensor, Tensor, Panel]:
    """Tridiagonal form of symmetric s (batch, n, n): diagonal, off-diagonal, reflections.

    n must be a number of whole panels. A reflection from both sides is s − u·pᵀ − p·uᵀ + (u·p)·u·uᵀ
    for p = s·u.
    """
    size = s._known_shape()[2]

    def step(s: Tensor, first: Tensor, width: int) -> tuple[Tensor, Panel]:
        rows, vectors = s._numbered(1), []
        for k, following in pairwise(numbers(first, width + 1)):
            column = (rows > k).where(columns_at(s, k), 0.0)
            u = _reflector(column, rows, following.minimum(size - 1)).contiguous()
            across = u.transpose(1, 2)
            p = (s * across).sum(2, True).contiguous()
            inner = (u * p).sum(1, True).contiguous()
            s = (s - u * p.transpose(1, 2) - p * across + inner * u * across).contiguous()
            vectors.append(u)
        return s, _together(vectors)

    s, done = panels.by_panels(step, s, size)
    return s.diagonal(0, 1, 2), s.diagonal(-1, 1, 2), done


def bidiagonal(s: Tensor) -> tuple[Tensor, Tensor, Panel]:
    """Bidiagonal form of s (batch, m, n): diagonal, superdiagonal, reflections of columns.

    n must be a number of whole panels, and m ≥ n. The superdiagonal has one more element, 0.
    """
    size = s._known_shape()[2]

    def step(s: Tensor, first: Tensor, width: int) -> tuple[Tensor, Panel]:
        rows, columns, vectors = s._numbered(1), s._numbered(2), []
        for k, following in pairwise(numbers(first, width + 1)):
            u = _reflector((rows >= k).where(columns_at(s, k), 0.0), rows, k).contiguous()
            s = (s - u * (u * s).sum(1, True)).contiguous()
            row = (columns > k).where(rows_at(s, k), 0.0).transpose(1, 2)
            v = _reflector(row, row._numbered(1), following.minimum(size - 1)).contiguous()
            across = v.transpose(1, 2)
            s = (s - (s * across).sum(2, True) * across).contiguous()
            vectors.append(v)
        return s, _together(vectors)

    s, done = panels.by_panels(step, s, size)
    return s.diagonal(0, 1, 2), s.diagonal(1, 1, 2).pad((0, 1)), done


def _less(x: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """x − U·T·Uᵀ·x."""
    return x - u @ (t @ (u.transpose(1, 2) @ x).contiguous()).contiguous()


def _reflector(x: Tensor, rows: Tensor, k: Any) -> Tensor:
    """u (batch, m, 1) such that x − u·(uᵀ·x) is 0 below row k; x must be 0 above it.

    As in LAPACK, u is 0 if x is 0 below row k already.
    """
    size = x.abs().max(1, True)
    x = x / size.eq(0).where(1.0, size)  # no square overflows
    top = rows_at(x, k)
    norm = (x * x).sum(1, True).sqrt()
    v = x - rows.eq(k).where((top < 0).where(norm, -norm), 0.0)
    square = (v * v).sum(1, True)
    idle = rows.gt(k).where(x, 0.0).abs().max(1, True).eq(0)
    scaled = v / (idle.where(1.0, square) * 0.5).sqrt()
    return idle.where(0.0, scaled)
