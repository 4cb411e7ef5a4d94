"""Eigenvalues and eigenvectors of symmetric tridiagonal matrices, by divide and conquer.

A tridiagonal matrix is two of half the size plus a matrix of rank one, ρ·u·uᵀ (Cuppen 1981). In the
basis of both halves' eigenvectors it is diag(d) + ρ·z·zᵀ, whose eigenvalues are the roots of
1 + ρ·Σ z²/(d − λ): one between each two of d, found by bisection. They are exact for a slightly
different z, and with that z all eigenvectors are orthogonal (Gu and Eisenstat 1995). There is no
branch: values so close that LAPACK would deflate them are moved apart by a rounding error.
"""

from __future__ import annotations

from minigrad.dtype import dtypes
from minigrad.tensor import Tensor

# By itemsize: the logarithm (base 2) of the smallest distance of a root from the nearest d, far
# below the square of a rounding error; and the integer dtype with as many bits.
NEAREST, BITS = {4: -80, 8: -300}, {4: dtypes.int32, 8: dtypes.int64}
BEYOND = 4.0  # larger than any eigenvalue of a matrix with row sums of at most 1


def spectrum(d: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (batch, n), ascending, and eigenvectors (batch, n, n), in columns.

    d (batch, n): diagonal; e (batch, n − 1): off-diagonal.
    """
    batch, n = d._known_shape()
    whole = 1 << (n - 1).bit_length()
    size = (d.abs() + e.pad((1, 0)).abs() + e.pad((0, 1)).abs()).max(1, True)
    size = size.eq(0).where(1.0, size)
    e = (e / size).pad((0, whole - n + 1))
    before = e.pad((1, 0))[:, :whole]
    values = (d / size).pad((0, whole - n), value=BEYOND) - e.abs() - before.abs()
    half, count = 1, whole // 2
    vectors = d.new_ones((batch * whole, 1, 1))
    while count:
        blocks = vectors.reshape(batch * count, 2, half, half)
        between = e.reshape(batch * count, 2 * half)[:, half - 1 : half]
        last, first = blocks[:, 0, -1], blocks[:, 1, 0]
        z = last.cat((between < 0).where(-first, first), dim=1)
        values = values.reshape(batch * count, 2 * half)
        values, turned = _updated(values, between.abs(), z)
        turned = turned.reshape(batch * count, 2, half, 2 * half)
        vectors = (blocks @ turned).reshape(batch * count, 2 * half, 2 * half).contiguous()
        half, count = 2 * half, count // 2
    return values[:, :n] * size, vectors[:, :n, :n]


def _updated(d: Tensor, rho: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of diag(d) + ρ·z·zᵀ; d, z (batch, n), ρ (batch, 1).
    """
    n, rounding = d._known_shape()[1], 2.0**-d.dtype.fraction
    nearest = 2.0 ** NEAREST[d.dtype.itemsize]
    number = d.arange(n, device=d.device)
    i = number.reshape(1, n, 1)  # number of the root; j, the last axis, is that of d
    z = (z < 0).where(-1.0, 1.0) * z.abs().maximum(rounding)
    squares = (z * z * rho).unsqueeze(1)
    other, own = d.unsqueeze(1), d.unsqueeze(2)
    below = (other < own) | (other.eq(own) & (number < i))
    rank = below.sum(2, dtype=number.dtype).contiguous()
    least = ((d.abs().max(1, True) + rho).maximum(rounding) * (2 * rounding)).unsqueeze(2)
    up = i - rank.unsqueeze(1)
    poles = (up >= 0).where(other + up * least, -float("inf")).max(2).contiguous()  # ascending
    d = poles._at(1, rank).unsqueeze(1).contiguous()
    last = i.eq(n - 1)
    lower = poles.unsqueeze(2)
    end = lower + squares.sum(2, True) * (1 + 4 * rounding)
    upper = last.where(end, poles[:, 1:].pad((0, 1)).unsqueeze(2))
    half = (upper - lower) * 0.5
    left = last | ((squares / (d - lower - half)).sum(2, True) + 1 >= 0)
    apart = d - left.where(lower, upper)  # of each d from the one nearest to the root
    most = last.where(upper - lower, half).maximum(2 * nearest)
    distance = _distances(apart, left, squares, most, nearest)
    gaps = apart - distance  # d − λ
    over = i < rank.unsqueeze(1)
    others = over.where(lower, upper) - d
    ratio = gaps / (last & ~over).where(1.0, others)
    root = ratio.abs().prod(1).sqrt() * (z < 0).where(-1.0, 1.0)
    vectors = root.unsqueeze(1) / gaps
    vectors = vectors / (vectors * vectors).sum(2, True).sqrt()
    values = left.where(lower, upper) + distance
    return values.squeeze(2), vectors.transpose(1, 2)


def _distances(
    apart: Tensor, left: Tensor, squares: Tensor, most: Tensor, nearest: float
) -> Tensor:
    """The distance of each root from the nearest d, on its left or not: (batch, n, 1).

    By bisection on the bits of floats, which have the same order: so small distances are as exact.
    """
    bits = BITS[apart.dtype.itemsize]
    least = most.new_full((1,), nearest).bitcast(bits)
    side = left.where(1.0, -1.0)
    steps = (-NEAREST[apart.dtype.itemsize] + 8).bit_length() + apart.dtype.fraction

    def step(state: tuple[Tensor, Tensor], _: None) -> tuple[tuple[Tensor, Tensor], None]:
        low, high = state
        middle = low + (high - low) // 2
        value = (squares / (apart - side * middle.bitcast(apart.dtype))).sum(2, True) + 1
        further = (value < 0).eq(left)
        return (further.where(middle, low), further.where(high, middle)), None

    start = least.expand(most.shape).contiguous(), most.bitcast(bits).contiguous()
    (_, high), _ = Tensor.scan(step, start, length=steps)
    return side * high.bitcast(apart.dtype)
