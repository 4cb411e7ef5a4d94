"""Factors of the matrices in the last two dimensions: `Tensor.qr` and `Tensor.svd`.

First and second derivatives are right where they exist: where R is invertible, and where singular
values are distinct and positive. What does not exist counts as 0.

Both are programs of many steps, which are captured for a shape and replayed. So the
tensor is computed at once, not lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from minigrad.errors import DTypeError, ShapeError
from minigrad.graph.node import is_symbolic
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import ceildiv
from minigrad.jit import jit
from minigrad.program import recording
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.modes import modes, no_grad

PANEL = 16  # columns: a vector of 512 bits has 16 float32

Function = Callable[..., tuple[Tensor, ...]]


def at_once(function: Function, *values: Tensor, **numbers: int) -> tuple[Tensor, ...]:
    """function(*values, **numbers), computed now by the program of these shapes and numbers."""
    with no_grad():
        given = [value.detach().contiguous() for value in values]
        given[0].realize(*given[1:])
        known = tuple((value.shape, value.dtype) for value in given)
        call = _captured(function, given[0].device, known, tuple(numbers.items()))
        return call(*given)


@lru_cache(maxsize=64)
def _captured(
    function: Function, device: str, known: Any, numbers: tuple[tuple[str, int], ...]
) -> Function:
    def call(*values: Tensor) -> tuple[Tensor, ...]:
        with no_grad():
            results = tuple(value.contiguous() for value in function(*values, **dict(numbers)))
            results[0].realize(*results[1:])
        return results

    return jit(call)


def cut(columns: int) -> tuple[int, int]:
    """How wide a panel is, and how many there are."""
    width = max(min(columns, PANEL), 1)
    return width, ceildiv(columns, width)


def firsts(width: int, panels: int, device: str) -> Tensor:
    """The number of each panel's first column, (panels, 1)."""
    return (Tensor.arange(panels, device=device) * width).reshape(panels, 1)


def next_number(k: Tensor) -> Tensor:
    """k + 1, in memory: otherwise each column would have kernels of its own."""
    return (k + 1).contiguous()


def columns_at(x: Tensor, k: Tensor, count: int = 1) -> Tensor:
    """Columns k … k + count − 1 of x (batch, n, m)."""
    places = (k + x.arange(count, device=x.device)).reshape(1, 1, count)
    return x._at(2, places.expand(x.shape[0], x.shape[1], count))


def rows_at(x: Tensor, k: Tensor, count: int = 1) -> Tensor:
    """Rows k … k + count − 1 of x (batch, n, m)."""
    places = (k + x.arange(count, device=x.device)).reshape(1, count, 1)
    return x._at(1, places.expand(x.shape[0], count, x.shape[2]))


def numbered(x: Tensor, axis: int) -> Tensor:
    """0, 1, 2 … along an axis of x, of which the others are 1."""
    shape = tuple(extent if d == axis else 1 for d, extent in enumerate(x.shape))
    return x.arange(x.shape[axis], device=x.device).reshape(shape)


def with_columns(x: Tensor, columns: Tensor, k: Tensor) -> Tensor:
    """x with other columns from number k on."""
    count = int(columns.shape[2])  # type: ignore[arg-type]
    place = numbered(x, 2) - k
    inside = (place >= 0) & (place < count)
    there = columns._at(2, place.clip(0, count - 1).expand(x.shape))
    return inside.where(there, x)


def inverse_of_triangle(r: Tensor) -> Tensor:
    """The inverse of upper triangular matrices (…, n, n), by products of ever larger blocks.

    A 0 on the diagonal counts as infinite: its row of the inverse is 0.
    """
    n = r._known_shape()[-1]
    place = r.arange(n, device=r.device)
    row, column = place.unsqueeze(1), place
    on = row.eq(column)
    inverse = on.where(r.eq(0).where(0.0, 1 / (on & r.ne(0)).where(r, 1.0)), 0.0)
    size = 1
    while size < n:
        above = (row // size).eq(column // size - 1) & (row // size % 2).eq(0)
        inverse = inverse - inverse @ (above.where(r, 0.0) @ inverse)
        size *= 2
    return inverse


SWEEPS = {4: 9, 8: 12}  # by itemsize: turns over all pairs of rows, each squaring what is left
FEW = 16  # turns of a scan's step
ENOUGH = {4: 2.0**-20, 8: 2.0**-48}  # a cosine of rounding alone


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
    *batch, m, n = checked("qr", x)
    wide = x._wide()
    count = m if mode == "complete" else min(m, n)
    with no_grad():
        flat = wide.reshape(numel(batch), m, n)
        flat_q, flat_r = _householder(flat, count)
        q, r = flat_q.reshape(*batch, m, count), flat_r.reshape(*batch, count, n)
    if modes.gradients and numel(x.shape) and count <= n:
        q, r = with_gradients(wide, (q, r), qr, _qr_gradient)
    return q.cast(x.dtype), r.cast(x.dtype)


def svd(x: Tensor, full_matrices: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and Vh such that (U * S) @ Vh is x, with S (k,) falling, k = min(m, n).

    (m, n) gives U (m, m) and Vh (n, n); without full_matrices (m, k) and (k, n), which are the
    ones that have gradients. After QR by one-sided rotations (Hestenes 1958, Drmač and Veselić
    2008). Float dtypes.

    >>> [x.shape for x in Tensor.ones(3, 2).svd()]
    [(3, 3), (2,), (2, 2)]
    """
    *batch, m, n = checked("svd", x)
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
        first, s, last = with_gradients(wide, (u[..., :k], s, v[..., :k]), _thin, _svd_gradient)
        u = first if u.shape[-1] == k else first.cat(u[..., k:], dim=-1)
        v = last if v.shape[-1] == k else last.cat(v[..., k:], dim=-1)
    return u.cast(x.dtype), s.cast(x.dtype), v.transpose(-2, -1).cast(x.dtype)


def checked(name: str, x: Tensor, square: bool = False) -> tuple[int, ...]:
    """The shape of float matrices."""
    if not x.dtype.is_float:
        raise DTypeError(f"{name} of a {x.dtype.name} tensor: expected a float dtype; use .float()")
    if x.ndim < 2 or is_symbolic(x.shape) or (square and x.shape[-1] != x.shape[-2]):
        what = "square matrices (…, n, n)" if square else "matrices (…, rows, columns)"
        raise ShapeError(f"{name} of {x.shape}: expected {what} of known extents")
    return x._known_shape()


def _householder(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Q (batch, m, count) and R (batch, count, n) of x (batch, m, n)."""
    batch, m, n = (int(extent) for extent in x.shape)  # type: ignore[arg-type]
    options: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    q = x.eye(m, count, **options).expand(batch, m, count)
    if not batch * min(m, n):
        return q, x.zeros(batch, count, n, **options)
    width, panels = cut(min(m, n))
    s = x.pad((0, max(width * panels - n, 0)))
    q, s = at_once(_reflected_panels, s, q, width=width, count=panels)
    return q, s[:, :count, :n].triu().realize()


def _reflected_panels(s: Tensor, q: Tensor, width: int, count: int) -> tuple[Tensor, Tensor]:
    """q after all reflections, the last one first; s (batch, m, n) after them, triangular.

    The reflections of a panel together are 1 − U·T·Uᵀ (Schreiber and Van Loan 1989).
    """

    def step(s: Tensor, first: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        k, panel, vectors = first, columns_at(s, first, width).contiguous(), []
        for _ in range(width):
            column = (numbered(s, 1) >= k).where(columns_at(panel, k - first), 0.0)
            vector = _reflector(column, numbered(s, 1), k).contiguous()
            panel = (panel - vector * (vector * panel).sum(1, True)).contiguous()
            vectors.append(vector)
            k = next_number(k)
        u = vectors[0].cat(*vectors[1:], dim=2)
        both = (u.transpose(1, 2) @ u).triu(1) + u.eye(width, dtype=u.dtype, device=u.device)
        t = inverse_of_triangle(both).contiguous()
        return _less(s, u, t.transpose(1, 2)), (u, t)

    s, done = Tensor.scan(step, s, firsts(width, count, s.device))
    q, _ = Tensor.scan(lambda q, ut: (_less(q, *ut), None), q, done, reverse=True)
    return q, s


def _less(x: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """x − U·T·Uᵀ·x."""
    inner = (t @ (u.transpose(1, 2) @ x).contiguous()).contiguous()
    return x - u @ inner


def _reflector(x: Tensor, rows: Tensor, k: Any) -> Tensor:
    """u (batch, m, 1) such that x − u·(uᵀ·x) is 0 below row k; x is 0 above it.

    As LAPACK does it u is 0 where nothing is to be done.
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


def _qr_gradient(
    x: Tensor, factors: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> Tensor:
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
    r = r[:, :n]
    turned = orthogonal_rows(r)
    s = (turned * turned).sum(2).sqrt()
    order = s.argsort(1, descending=True)
    s, turned = s._at(1, order), turned._at(1, order.unsqueeze(2).expand(batch, n, n))
    # rows of length 0 have no direction, and QR finds one for them
    v = _directions(turned.transpose(1, 2))
    inner = _directions(r @ v)
    first = q[:, :, :n] @ inner
    u = first.cat(q[:, :, n:], dim=2) if full else first
    s = s * size.squeeze(2)
    u.realize(s, v)
    return u, s, v


def _directions(x: Tensor) -> Tensor:
    """The columns of x (batch, n, n), which are orthogonal, with length 1."""
    q, r = _householder(x, int(x.shape[2]))  # type: ignore[arg-type]
    return q * (r.diagonal(0, 1, 2) < 0).where(-1.0, 1.0).unsqueeze(1)


def orthogonal_rows(x: Tensor) -> Tensor:
    """J·x with orthogonal rows for some orthogonal J and x (batch, n, n).

    All pairs of rows are turned, half of them at a time: a tournament in which one stays.
    """
    n = int(x.shape[1])  # type: ignore[arg-type]
    even = n + n % 2
    both = x.pad((0, 0, 0, even - n))
    first, second = both[:, : even // 2], both[:, even // 2 :]
    for sweep in range(SWEEPS[x.dtype.itemsize] if n > 1 else 0):
        left = x.zeros(1, dtype=x.dtype, device=x.device)
        first, second, left = at_once(_turned, first, second, left, count=even - 1)
        if sweep and recording.calls is None and left.item() < ENOUGH[x.dtype.itemsize]:
            break
    # after whole sweeps every row is back in its place
    return first.cat(second, dim=1)[:, :n].contiguous()


def _turned(p: Tensor, q: Tensor, left: Tensor, count: int) -> tuple[Tensor, ...]:
    """Some turns; left: the largest cosine between two rows that has been met."""
    state, rest = (p, q, left), count % FEW

    def step(state: Any, few: int = FEW) -> Any:
        p, q, left = state
        for _ in range(few):
            p, q, cosine = _turn(p, q)
            p, q, left = p.contiguous(), q.contiguous(), left.maximum(cosine)
        return p, q, left

    if count >= FEW:
        state, _ = Tensor.scan(lambda state, _: (step(state), None), state, length=count // FEW)
    return step(state, rest)  # type: ignore[no-any-return]


def _turn(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of p and q made orthogonal in pairs, and set beside their next partners.

    Also the largest cosine there was, (1,).
    """
    product = (p * q).sum(2, True)
    squares = (p * p).sum(2, True), (q * q).sum(2, True)
    size = (squares[0].sqrt() * squares[1].sqrt()).maximum(product.abs())
    largest = (product.abs() / size.eq(0).where(1.0, size)).max().reshape(1)
    zeta = (squares[1] - squares[0]) / (product * 2)
    tangent = (zeta < 0).where(-1.0, 1.0) / (zeta.abs() + (zeta * zeta + 1).sqrt())
    tangent = product.eq(0).where(0.0, tangent)
    cosine = (tangent * tangent + 1).rsqrt()
    sine = cosine * tangent
    above, below = cosine * p - sine * q, sine * p + cosine * q
    if p.shape[1] == 1:
        return above, below, largest
    return (
        above[:, :1].cat(below[:, :1], above[:, 1:-1], dim=1),
        below[:, 1:].cat(above[:, -1:], dim=1), largest,
    )  # fmt: skip


def _thin(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = svd(x, False)
    return u, s, v.mT


def _svd_gradient(
    x: Tensor, factors: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> Tensor:
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
    x: Tensor, values: tuple[Tensor, ...], function: Callable[[Tensor], Sequence[Tensor]],
    gradient: Callable[[Tensor, Sequence[Tensor], Sequence[Tensor | None]], Tensor],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Values of x with gradient(x, function(x), one for each value or None) for x's gradient."""
    known: dict[bool, Sequence[Tensor]] = {}  # function(x), which may be to have gradients itself

    def rule_of(place: int) -> Callable[..., Sequence[Tensor]]:
        def rule(g: Tensor, value: Tensor, x: Tensor) -> Sequence[Tensor]:
            if modes.gradients not in known:
                known[modes.gradients] = function(x)
            gradients = [g if number == place else None for number in range(len(values))]
            return [gradient(x, known[modes.gradients], gradients)]

        return rule

    return tuple(x._with_derivative(value, rule_of(n)) for n, value in enumerate(values))


check_functions(globals())
