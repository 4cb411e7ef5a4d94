"""Factors of the matrices in the last two dimensions: `Tensor.qr` and `Tensor.svd`.

First and second derivatives are right where they exist: where R is invertible, and where singular
values are distinct and positive. What does not exist counts as 0.

Both are loops of a step on the whole matrix. The step is captured: every turn replays the same
program, for which the column it works on is a bound variable. So the tensor is computed at once,
not lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from minigrad.errors import DTypeError, ShapeError
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Affine
from minigrad.graph.variable import Variable
from minigrad.jit import jit
from minigrad.program import recording
from minigrad.tensor import Tensor
from minigrad.tensor.broadcasting import show
from minigrad.tensor.modes import modes, no_grad

SWEEPS = {4: 9, 8: 12}  # by itemsize: turns over all pairs of rows, each squaring what is left




def qr(x: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    """Q with orthonormal columns and R upper triangular, such that Q @ R is x.

    (m, n) gives Q (m, k) and R (k, n) with k = min(m, n), or for mode "complete" k = m, where
    for m > n the factors are constants for gradients. Signs are those of LAPACK (and so of
    numpy and PyTorch). By Householder's reflections (Golub and Van Loan, 5.2). Float dtypes.

    >>> [x.shape for x in Tensor.ones(3, 2).qr()]
    [(3, 2), (2, 2)]
    """
    if mode not in ("reduced", "complete"):
        raise ValueError(f"qr(mode={mode!r}): expected 'reduced' or 'complete'")
    batch, m, n = _matrices("qr", x)
    wide = x._wide()
    count = m if mode == "complete" else min(m, n)
    with no_grad():
        flat = wide.reshape(numel(batch), m, n)
        flat_q, flat_r = _householder(flat, count)
        q, r = flat_q.reshape(*batch, m, count), flat_r.reshape(*batch, count, n)
    if modes.gradients and numel(x.shape) and count <= n:
        q, r = _qr_for_gradients(wide, q, r)
    return q.cast(x.dtype), r.cast(x.dtype)


def svd(x: Tensor, full_matrices: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and Vh such that (U * S) @ Vh is x, with S (k,) falling, k = min(m, n).

    (m, n) gives U (m, m) and Vh (n, n); without full_matrices (m, k) and (k, n), which are the
    ones that have gradients. After QR by one-sided rotations (Hestenes 1958, Drmač and Veselić
    2008). Float dtypes.

    >>> [x.shape for x in Tensor.ones(3, 2).svd()]
    [(3, 3), (2,), (2, 2)]
    """
    batch, m, n = _matrices("svd", x)
    wide = x._wide()
    k = min(m, n)
    with no_grad():
        flat = wide.reshape(numel(batch), m, n)
        tall = flat if m >= n else flat.transpose(1, 2)
        left, s, right = _rotated(tall, full_matrices)
        u, v = (left, right) if m >= n else (right, left)
        u, v = u.reshape(*batch, *u.shape[1:]), v.reshape(*batch, *v.shape[1:])
        s = s.reshape(*batch, k)
    if modes.gradients and numel(x.shape):
        u, s, v = _svd_for_gradients(wide, u, s, v, k)
    return u.cast(x.dtype), s.cast(x.dtype), v.transpose(-2, -1).cast(x.dtype)


def _matrices(name: str, x: Tensor) -> tuple[tuple[int, ...], int, int]:
    """The batch dimensions, and the extents of the matrices."""
    if not x.dtype.is_float:
        raise DTypeError(
            f"{name} of a {x.dtype.name} tensor: expected a float dtype; use .float()"
        )
    known = [extent for extent in x.shape if not isinstance(extent, Affine)]
    if x.ndim < 2 or len(known) < x.ndim:
        raise ShapeError(
            f"{name} of shape {show(x.shape)}; expected (…, rows, columns) of known extents"
        )
    return tuple(known[:-2]), known[-2], known[-1]


# --- QR -------------------------------------------------------------------------------------------


def _householder(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Q (batch, m, count) and R (batch, count, n) of x (batch, m, n)."""
    batch, m, n = (int(extent) for extent in x.shape)  # type: ignore[arg-type]
    options: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    k = min(m, n)
    if not batch * k:
        identity = x.eye(m, count, **options).expand(batch, m, count)
        return identity, x.zeros(batch, count, n, **options)
    vectors = x.zeros(batch, m, k, **options)
    matrix, vectors = _repeated(_eliminate, (x, vectors), turns(k))
    identity = x.eye(m, count, **options).expand(batch, m, count)
    q, _ = _repeated(_reflect, (identity, vectors), turns(k, backwards=True))
    return q, matrix[:, :count].triu().realize()


def _reflector(x: Tensor, rows: Tensor, k: Any) -> Tensor:
    """u (batch, m, 1) such that x − u·(uᵀ·x) is 0 below row k; x is 0 above it.

    As LAPACK does it u is 0 where nothing is to be done.
    """
    size = x.abs().max(1, True)
    x = x / size.eq(0).where(1.0, size)  # no square overflows
    top = x[:, k : k + 1]
    norm = (x * x).sum(1, True).sqrt()
    v = x - rows.eq(k).where((top < 0).where(norm, -norm), 0.0)
    square = (v * v).sum(1, True)
    idle = rows.gt(k).where(x, 0.0).abs().max(1, True).eq(0)
    scaled = v / (idle.where(1.0, square) * 0.5).sqrt()
    return idle.where(0.0, scaled)


def _qr_for_gradients(x: Tensor, q: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The same factors as functions of x."""
    k, n = q.shape[-1], r.shape[-1]
    if n > k:  # type: ignore[operator]
        q, square = _qr_for_gradients(x[..., :k], q, r[..., :k])
        return q, square.cat(q.transpose(-2, -1) @ x[..., k:], dim=-1)
    with no_grad():
        inverse = _inverse_of_triangle(r)

    def change(values: tuple[Any, ...], d: Any) -> tuple[Any, ...]:
        q, r, inverse = values
        scaled = d @ inverse
        inner = q.transpose(-2, -1) @ scaled
        below = inner.tril(-1)
        upper = inner - (below - below.transpose(-2, -1))
        dr = upper @ r
        return scaled - q @ upper, dr, -(inverse @ dr @ inverse)

    return _as_function(x, (q, r, inverse), change)[:2]


# --- SVD ------------------------------------------------------------------------------------------


def _rotated(x: Tensor, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V (not transposed) of x (batch, m, n) with m ≥ n."""
    batch, m, n = (int(extent) for extent in x.shape)  # type: ignore[arg-type]
    if not batch * n:
        options: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
        u = x.eye(m, m if full else n, **options).expand(batch, m, m if full else n)
        return u, x.zeros(batch, n, **options), x.zeros(batch, n, n, **options)
    size = x.abs().max((1, 2), True)
    size = size.eq(0).where(1.0, size)
    q, r = _householder(x / size, m if full else n)
    turned, rotation = _orthogonal_rows(r[:, :n])
    squares = (turned * turned).sum(2)
    order = squares.argsort(1, descending=True)
    wide = order.unsqueeze(2).expand(batch, n, n)
    turned, rotation = turned._at(1, wide), rotation._at(1, wide)
    s = (turned * turned).sum(2).sqrt()
    # rows of length 0 have no direction, and QR finds one for them
    v, triangle = _householder(turned.transpose(1, 2).contiguous(), n)
    signs = (triangle.diagonal(0, 1, 2) < 0).where(-1.0, 1.0).unsqueeze(1)
    first = q[:, :, :n] @ rotation.transpose(1, 2)
    u = first.cat(q[:, :, n:], dim=2) if full else first
    s = s * size.squeeze(2)
    v = v * signs
    u.realize(s, v)
    return u, s, v


def _orthogonal_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """J·x with orthogonal rows, and J, which is orthogonal, for x (batch, n, n).

    All pairs of rows are turned, half of them at a time: a tournament in which one stays.
    """
    batch, n = int(x.shape[0]), int(x.shape[1])  # type: ignore[arg-type]
    even = n + n % 2
    identity = x.eye(n, even, dtype=x.dtype, device=x.device)
    both = x.pad([None, None, (0, even - n)]).cat(
        identity.expand(batch, n, even), dim=2
    ).pad([None, (0, even - n), None])  # fmt: skip
    half = even // 2
    turns = SWEEPS[x.dtype.itemsize] * (even - 1) if n > 1 else 0
    first, second = _repeated(_turn, (both[:, :half], both[:, half:]), [even] * turns)
    # after whole sweeps every row is back in its place
    whole = first.cat(second, dim=1)[:, :n]
    return whole[:, :, :n].contiguous(), whole[:, :, even : even + n].contiguous()


def _turn(first: Tensor, second: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rows of first and second made orthogonal in pairs, and set beside their next partners.

    What stands beyond `width` only turns with the rest.
    """
    p, q = first[:, :, :width], second[:, :, :width]
    product = (p * q).sum(2, True)
    zeta = ((q * q).sum(2, True) - (p * p).sum(2, True)) / (product * 2)
    tangent = (zeta < 0).where(-1.0, 1.0) / (zeta.abs() + (zeta * zeta + 1).sqrt())
    tangent = product.eq(0).where(0.0, tangent)
    cosine = (tangent * tangent + 1).rsqrt()
    sine = cosine * tangent
    above, below = cosine * first - sine * second, sine * first + cosine * second
    if first.shape[1] == 1:
        return above, below
    return (
        above[:, :1].cat(below[:, :1], above[:, 1:-1], dim=1),
        below[:, 1:].cat(above[:, -1:], dim=1),
    )


def _svd_for_gradients(
    x: Tensor, u: Tensor, s: Tensor, v: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same factors as functions of x; columns beyond k stay constants."""

    def change(values: tuple[Any, ...], d: Any) -> tuple[Any, ...]:
        u, s, v = values
        inner = u.transpose(-2, -1) @ d @ v
        row, column = s.unsqueeze(-2), s.unsqueeze(-1)
        gap = (row - column) * (row + column)
        factor = gap.eq(0).where(0.0, 1.0 / gap.eq(0).where(1.0, gap))
        inverse = row.eq(0).where(0.0, 1.0 / row.eq(0).where(1.0, row))
        back = inner.transpose(-2, -1)
        du = u @ (factor * (inner * row + column * back))
        dv = v @ (factor * (column * inner + back * row))
        left, right = d @ v, d.transpose(-2, -1) @ u
        du = du + (left - u @ (u.transpose(-2, -1) @ left)) * inverse
        dv = dv + (right - v @ (v.transpose(-2, -1) @ right)) * inverse
        return du, inner.diagonal(0, -2, -1), dv

    first, s, last = _as_function(x, (u[..., :k], s, v[..., :k]), change)
    if u.shape[-1] != k:
        first = first.cat(u[..., k:].detach(), dim=-1)
    if v.shape[-1] != k:
        last = last.cat(v[..., k:].detach(), dim=-1)
    return first, s, last


def turns(stop: int, backwards: bool = False) -> Iterator[Any]:
    """0 … stop − 1 as a bound variable: each turn of a loop runs the same compiled program.

    Inside a step that is being captured, whose arguments do not carry it, as plain numbers.
    """
    bound = stop > 1 and recording.calls is None
    numbers: Iterable[int] = range(stop)
    for number in reversed(range(stop)) if backwards else numbers:
        yield Variable("k", 0, stop - 1).bind(number) if bound else number


def _eliminate(matrix: Any, vectors: Any, k: Any) -> tuple[Any, Any]:
    """Column k of the matrix made 0 below row k; the reflector becomes column k of vectors."""
    m, columns = int(matrix.shape[1]), int(vectors.shape[2])
    rows = matrix.arange(m, device=matrix.device).reshape(1, m, 1)
    u = _reflector((rows >= k).where(matrix[:, :, k : k + 1], 0.0), rows, k)
    here = matrix.arange(columns, device=matrix.device).eq(k)
    return matrix - u * (u * matrix).sum(1, True), here.where(u, vectors)


def _reflect(q: Any, vectors: Any, k: Any) -> tuple[Any, Any]:
    u = vectors[:, :, k : k + 1]
    return q - u * (u * q).sum(1, True), vectors


def _solve(inverse: Any, r: Any, k: Any) -> tuple[Any, Any]:
    """Row k of the inverse of r, from the rows below it."""
    n = int(r.shape[-1])
    rows = r.arange(n, device=r.device).reshape(n, 1)
    line = r[..., k : k + 1, :].transpose(-2, -1)  # (…, n, 1)
    identity = r.eye(n, dtype=r.dtype, device=r.device)
    rest = identity[k : k + 1] - (line * inverse).sum(-2, True)
    pivot = r[..., k : k + 1, k : k + 1]
    row = pivot.eq(0).where(0.0, rest / pivot.eq(0).where(1.0, pivot))
    return rows.eq(k).where(row, inverse), r


Step = Callable[[Any, Any, Any], tuple[Any, Any]]


@lru_cache(maxsize=32)
def _captured(step: Step, *known: Any) -> Callable[..., tuple[Any, Any]]:
    """The step, captured for two tensors of known shapes, dtype and device."""
    def realized(first: Any, second: Any, turn: Any) -> tuple[Any, Any]:
        first, second = step(first, second, turn)
        first.realize(second)
        return first, second

    return jit(realized)


def _repeated(step: Step, state: tuple[Any, Any], turns: Iterable[Any]) -> tuple[Any, Any]:
    """What is left of the state after state = step(*state, turn) for each turn."""
    first, second = (value.detach().contiguous() for value in state)
    first.realize(second)
    call = _captured(step, first.shape, second.shape, first.dtype, first.device)
    for turn in turns:
        first, second = call(first, second, turn)
    return first, second


def _inverse_of_triangle(r: Any) -> Any:
    """The inverse of upper triangular matrices (…, n, n), row by row from the last.

    A 0 on the diagonal counts as infinite: its row of the inverse is 0.
    """
    zeros = r.zeros(*r.shape, dtype=r.dtype, device=r.device)
    return _repeated(_solve, (zeros, r), turns(int(r.shape[-1]), backwards=True))[0]


def _as_function(
    x: Any, values: tuple[Any, ...], change: Callable[[tuple[Any, ...], Any], tuple[Any, ...]]
) -> tuple[Any, ...]:
    """Values that were computed of x without a gradient, with their first two derivatives.

    change(values, dx) is how they change, to first order. With d = x − x, which is 0, the mean of
    the changes by the values before and after such a step has the right second order as well.
    """
    values = tuple(value.detach() for value in values)
    d = x - x.detach()
    first = change(values, d)
    moved = tuple(value + by for value, by in zip(values, first, strict=True))
    second = change(moved, d)
    return tuple(
        value + (a + b) * 0.5 for value, a, b in zip(values, first, second, strict=True)
    )
