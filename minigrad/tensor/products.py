"""Products under PyTorch's names: of vectors, matrices, batches of them; distances."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, Self

from minigrad.errors import ShapeError
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import Scalar, axes_of, axis_of, check_ints, product, show
from minigrad.tensor.core import Core
from minigrad.tensor.movement import sequence


class Products(Composed):
    """Sums of products; see `matmul` for dtypes."""

    __slots__ = ()

    def _times(self, name: str, other: Core, mine: int, its: int) -> Any:
        """`matmul` of tensors that have these numbers of dimensions, and no others."""
        if self.ndim != mine or other.ndim != its:
            kinds = ("numbers", "a vector", "a matrix", "a batch of matrices")
            raise ShapeError(
                f"{name} of {show(self.shape)} and {show(other.shape)}: expected {kinds[mine]} "
                f"and {kinds[its]}; matmul takes others"
            )
        return self.matmul(other)

    def mm(self, mat2: Core) -> Self:
        """(m, k) · (k, n) → (m, n).

        >>> Tensor([[1, 2]]).mm(Tensor([[3], [4]])).tolist()
        [[11]]
        """
        return self._times("mm", mat2, 2, 2)  # type: ignore[no-any-return]

    def bmm(self, mat2: Core) -> Self:
        """(b, m, k) · (b, k, n) → (b, m, n).

        >>> Tensor.ones(2, 3, 4).bmm(Tensor.ones(2, 4, 5)).shape
        (2, 3, 5)
        """
        return self._times("bmm", mat2, 3, 3)  # type: ignore[no-any-return]

    def mv(self, vec: Core) -> Self:
        """(m, k) · (k,) → (m,).

        >>> Tensor([[1, 2]]).mv(Tensor([3, 4])).tolist()
        [11]
        """
        return self._times("mv", vec, 2, 1)  # type: ignore[no-any-return]

    def outer(self, vec2: Core) -> Self:
        """(m,) · (n,) → (m, n): all products of two elements.

        >>> Tensor([1, 2]).outer(Tensor([3, 4])).tolist()
        [[3, 4], [6, 8]]
        """
        if self.ndim != 1 or vec2.ndim != 1:
            shapes = f"{show(self.shape)} and {show(vec2.shape)}"
            raise ShapeError(f"outer of {shapes}: expected two vectors")
        return self.unsqueeze(1) * vec2

    def inner(self, other: Core) -> Self:
        """(…, k) · (…, k) → (…, …): sums of products along the last dimensions.

        >>> Tensor([1, 2]).inner(Tensor([3, 4])).item()
        11
        """
        if not self.ndim or not other.ndim:
            return self * other
        return self.tensordot(other, ([-1], [-1]))

    def tensordot(self, other: Any, dims: int | Sequence[Sequence[int]] = 2) -> Self:
        """The sum of products over the last dims of self and the first of other, or given ones.

        >>> Tensor.ones(2, 3, 4).tensordot(Tensor.ones(3, 4, 5)).shape
        (2, 5)
        """
        if not isinstance(dims, Sequence):
            check_ints("tensordot", dims=dims)
            if not 0 <= dims <= min(self.ndim, other.ndim):
                raise ShapeError(
                    f"tensordot over {dims} dimensions of {show(self.shape)} and "
                    f"{show(other.shape)}: expected fewer"
                )
            dims = (range(self.ndim - dims, self.ndim), range(dims))
        mine = axes_of("tensordot", tuple(dims[0]), self.ndim)
        its = axes_of("tensordot", tuple(dims[1]), other.ndim)
        rows = [d for d in range(self.ndim) if d not in mine]
        columns = [d for d in range(other.ndim) if d not in its]
        if [self.shape[d] for d in mine] != [other.shape[d] for d in its]:
            raise ShapeError(f"tensordot of {show(self.shape)} and {show(other.shape)} over "
                             f"{dims}: expected equal extents")  # fmt: skip
        count = product([self.shape[d] for d in mine])
        left, right = [self.shape[d] for d in rows], [other.shape[d] for d in columns]
        x = self.permute(*rows, *mine).reshape((product(left), count))
        y = other.permute(*its, *columns).reshape((count, product(right)))
        return x.matmul(y).reshape((*left, *right))

    def kron(self, other: Self) -> Self:
        """Kronecker's product: other times each element of self, block by block.

        >>> Tensor([1, 2]).kron(Tensor([1, 10])).tolist()
        [1, 10, 2, 20]
        """
        ndim = max(self.ndim, other.ndim)
        a, b = ((1,) * (ndim - x.ndim) + x.shape for x in (self, other))
        x = self.reshape([e for extent in a for e in (extent, 1)])
        y = other.reshape([e for extent in b for e in (1, extent)])
        return (x * y).reshape([m * n for m, n in zip(a, b, strict=True)])

    def cross(self, other: Any, dim: int = -1) -> Self:
        """The vector product of vectors of three elements along dim.

        >>> Tensor([1, 0, 0]).cross(Tensor([0, 1, 0])).tolist()
        [0, 0, 1]
        """
        x, y = (self._new(node) for node in self._pair("cross", other, False))
        axis = axis_of("cross", dim, x.ndim)
        if x.shape[axis] != 3:
            raise ShapeError(f"cross along dimension {axis} of {show(x.shape)}: expected extent 3")
        return x.roll(-1, axis) * y.roll(-2, axis) - x.roll(-2, axis) * y.roll(-1, axis)

    def matrix_power(self, n: int) -> Self:
        """The n-th power of square matrices, by squaring; n ≥ 0 (else `linalg.matrix_power`).

        >>> Tensor([[1, 1], [0, 1]]).matrix_power(5).tolist()
        [[1, 5], [0, 1]]
        """
        if n < 0 or self.ndim < 2 or self.shape[-1] != self.shape[-2]:
            raise ShapeError(f"matrix_power({n}) of {show(self.shape)}: expected n ≥ 0, squares")
        one = self.arange(self.shape[-1], device=self.raw.device)
        result, factor = one.unsqueeze(1).eq(one).cast(self.dtype).expand(self.shape), self
        while n:
            result = result.matmul(factor) if n & 1 else result
            factor, n = factor.matmul(factor) if n > 1 else factor, n >> 1
        return result

    # --- sums of products -------------------------------------------------------------------------

    def _added(self, total: Any, beta: Scalar, alpha: Scalar) -> Self:
        """beta·self + alpha·total."""
        total = total if alpha == 1 else total * alpha
        return total if beta == 0 else (self if beta == 1 else self * beta) + total  # type: ignore[no-any-return]

    def addmm(self, mat1: Any, mat2: Core, *, beta: Scalar = 1, alpha: Scalar = 1) -> Self:
        """beta·self + alpha·mat1·mat2.

        >>> Tensor([[1]]).addmm(Tensor([[2]]), Tensor([[3]])).tolist()
        [[7]]
        """
        return self._added(mat1._times("addmm", mat2, 2, 2), beta, alpha)

    def baddbmm(self, batch1: Any, batch2: Core, *, beta: Scalar = 1, alpha: Scalar = 1) -> Self:
        """beta·self + alpha·batch1·batch2, of batches of matrices.

        >>> Tensor.ones(2, 3, 5).baddbmm(Tensor.ones(2, 3, 4), Tensor.ones(2, 4, 5)).shape
        (2, 3, 5)
        """
        return self._added(batch1._times("baddbmm", batch2, 3, 3), beta, alpha)

    def chain_matmul(self, *matrices: Core) -> Self:
        """The product of several matrices, in the order of the list; also of one list.

        >>> Tensor.chain_matmul(Tensor([[2]]), Tensor([[3]]), Tensor([[4]])).tolist()
        [[24]]
        """
        product: Self = functools.reduce(operator.matmul, sequence((self, *matrices)))
        return product

    # --- distances --------------------------------------------------------------------------------

    def cdist(self, x2: Any, p: Scalar = 2) -> Self:
        """(…, m, d), (…, n, d) → (…, m, n): p-norms of the differences of all pairs of rows.

        >>> Tensor([[0.0, 0.0]]).cdist(Tensor([[3.0, 4.0]])).tolist()
        [[5.0]]
        """
        if min(self.ndim, x2.ndim) < 2 or self.shape[-1] != x2.shape[-1]:
            raise ShapeError(f"cdist of {show(self.shape)} and {show(x2.shape)}: expected "
                             "(…, m, d) and (…, n, d)")  # fmt: skip
        away: Any = self.unsqueeze(-2) - x2.unsqueeze(-3)
        return away.norm(p, -1)  # type: ignore[no-any-return]

    def cosine_similarity(self, x2: Any, dim: int = 1, eps: Scalar = 1e-8) -> Self:
        """The cosine of the angle between vectors along dim; norms count as at least eps.

        >>> Tensor([[1.0, 0.0]]).cosine_similarity(Tensor([[2.0, 0.0]])).tolist()
        [1.0]
        """
        x, y = (self._new(node) for node in self._pair("cosine_similarity", x2, False))
        axis_of("cosine_similarity", dim, x.ndim)
        return (x.normalize(2, dim, eps) * y.normalize(2, dim, eps)).sum(dim)

    def pairwise_distance(
        self, x2: Any, p: Scalar = 2, eps: Scalar = 1e-6, keepdim: bool = False
    ) -> Self:
        """The p-norms of self − x2 + eps along the last dimension.

        >>> Tensor([[3.0, 4.0]]).pairwise_distance(Tensor([[0.0, 0.0]])).round().tolist()
        [5.0]
        """
        away: Any = self - x2 + eps
        return away.norm(p, -1, keepdim)  # type: ignore[no-any-return]
