"""More functions of numbers under PyTorch's names: angles, logic, limits, activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

from minigrad.errors import expect, misfit
from minigrad.graph import build
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import Scalar, axes_of, axis_of, check_ints, product
from minigrad.tensor.core import Core


def _atan2_rule(g: Any, value: Any, y: Any, x: Any) -> Sequence[Any]:
    length = y.hypot(x)  # its square may over- or underflow
    length = length.eq(0).where(1, length)
    return [g * (x / length) / length, -g * (y / length) / length]


def _hypot_rule(g: Any, value: Any, x: Any, y: Any) -> Sequence[Any]:
    length = value.eq(0).where(1, value)
    return [g * (x / length), g * (y / length)]


class Arithmetic(Composed):
    """Elementwise; operands broadcast and promote, Python numbers are weakly typed.

    If results are fractions, integers are converted to float32.
    """

    __slots__ = ()

    def _bits(self) -> Self:
        """The bits as signed integers."""
        return self.bitcast(self.dtype.signed)

    # --- arithmetic -------------------------------------------------------------------------------

    def addcmul(self, tensor1: Any, tensor2: Any, *, value: Scalar = 1) -> Self:
        """self + value·tensor1·tensor2.

        >>> Tensor([1.0]).addcmul(Tensor([2.0]), Tensor([3.0]), value=0.5).tolist()
        [4.0]
        """
        return self.add(self._wider(tensor1, tensor2) * tensor2, alpha=value)

    def addcdiv(self, tensor1: Any, tensor2: Any, *, value: Scalar = 1) -> Self:
        """self + value·tensor1/tensor2.

        >>> Tensor([1.0]).addcdiv(Tensor([6.0]), Tensor([3.0]), value=0.5).tolist()
        [2.0]
        """
        return self.add(self._wider(tensor1, tensor2) / tensor2, alpha=value)

    # --- selection and limits ---------------------------------------------------------------------

    def fmax(self, other: Any) -> Self:
        """The larger of the two; if one is NaN, the other one.

        >>> Tensor([1.0, float("nan")]).fmax(Tensor([2.0, 0.0])).tolist()
        [2.0, 0.0]
        """
        x, y = self._two("fmax", other)
        return (y.isnan() | (y <= x)).where(x, y)

    def fmin(self, other: Any) -> Self:
        """The smaller of the two; if one is NaN, the other one.

        >>> Tensor([1.0, float("nan")]).fmin(Tensor([2.0, 0.0])).tolist()
        [1.0, 0.0]
        """
        x, y = self._two("fmin", other)
        return (y.isnan() | (y >= x)).where(x, y)

    def clamp_min(self, min_: Any) -> Self:
        """self, at least min_.

        >>> Tensor([1, 5]).clamp_min(3).tolist()
        [3, 5]
        """
        return self.clip(min_)

    def clamp_max(self, max_: Any) -> Self:
        """self, at most max_.

        >>> Tensor([1, 5]).clamp_max(3).tolist()
        [1, 3]
        """
        return self.clip(None, max_)

    def nan_to_num(
        self, nan: Scalar = 0.0, posinf: Scalar | None = None, neginf: Scalar | None = None
    ) -> Self:
        """NaN, ∞ and −∞ replaced, by default by 0 and the dtype's largest and smallest numbers.

        >>> Tensor([float("nan"), float("inf")]).nan_to_num(posinf=9.0).tolist()
        [0.0, 9.0]
        """
        if not self.dtype.is_float:
            return self.clone()
        infinity = self._operand(math.inf)
        most = (infinity._bits() - 1).bitcast(self.dtype)  # the largest finite number
        result = self.isnan().where(nan, self)
        result = self.eq(math.inf).where(most if posinf is None else posinf, result)
        return self.eq(-math.inf).where(-most if neginf is None else neginf, result)

    def isneginf(self) -> Self:
        """True where self is −∞.

        >>> Tensor([float("-inf"), 1.0]).isneginf().tolist()
        [True, False]
        """
        return self.eq(-math.inf)

    def isposinf(self) -> Self:
        """True where self is ∞.

        >>> Tensor([float("inf"), 1.0]).isposinf().tolist()
        [True, False]
        """
        return self.eq(math.inf)

    def signbit(self) -> Self:
        """True where the sign is minus, also for −0.

        >>> Tensor([-0.0, 1.0]).signbit().tolist()
        [True, False]
        """
        return self._bits() < 0 if self.dtype.is_float else self < 0

    def nextafter(self, other: Any) -> Self:
        """The next float after self towards other.

        >>> Tensor([1.0]).nextafter(Tensor([2.0])).tolist()
        [1.0000001192092896]
        """
        x, y = (value.detach() for value in self._two_floats("nextafter", other))
        bits = x._bits()
        away = (y > x).eq(x > 0)
        moved = away.where(bits + 1, bits - 1).bitcast(x.dtype)
        least = self._new(build.const(1, bits.dtype, (), self.device)).bitcast(x.dtype)
        result = x.eq(0).where((y._bits() < 0).where(-least, least), moved)
        result = x.eq(y).where(y, result)
        return (x.isnan() | y.isnan()).where(math.nan, result)

    # --- logic ------------------------------------------------------------------------------------

    def logical_and(self, other: Any) -> Self:
        """True where both are not 0.

        >>> Tensor([2, 0]).logical_and(Tensor([1, 1])).tolist()
        [True, False]
        """
        return self.bool() & self._operand(other).bool()

    def logical_or(self, other: Any) -> Self:
        """True where at least one of the two is not 0.

        >>> Tensor([2, 0]).logical_or(Tensor([0, 0])).tolist()
        [True, False]
        """
        return self.bool() | self._operand(other).bool()

    def logical_xor(self, other: Any) -> Self:
        """True where exactly one of the two is not 0.

        >>> Tensor([2, 2]).logical_xor(Tensor([0, 1])).tolist()
        [True, False]
        """
        return self.bool() ^ self._operand(other).bool()

    # --- functions --------------------------------------------------------------------------------

    def atan2(self, other: Any) -> Self:
        """The angle of the point (x=other, y=self), in −π … π; zeros have signs, as in IEEE 754.

        At (0, 0) there is no gradient; it counts as 0, as in PyTorch.

        >>> round(Tensor([1.0]).atan2(Tensor([-1.0])).item(), 4)
        2.3562
        """
        y, x = self._two_floats("atan2", other)
        ratio = (y.abs() / x.abs()).atan()
        ratio = (y.eq(0) & x.eq(0)).where(0.0, ratio)
        ratio = (y.abs().eq(math.inf) & x.abs().eq(math.inf)).where(math.pi / 4, ratio)
        turned = x.signbit().where(math.pi - ratio, ratio)
        turned = y.signbit().where(-turned, turned)
        return y._with_derivative((y.isnan() | x.isnan()).where(math.nan, turned), _atan2_rule, x)

    def hypot(self, other: Any) -> Self:
        """√(self² + other²) without overflow.

        >>> Tensor([3.0]).hypot(Tensor([4.0])).tolist()
        [5.0]
        """
        x, y = self._two_floats("hypot", other)
        large, small = x.abs().maximum(y.abs()), x.abs().minimum(y.abs())
        length = large * (1 + (small / large.eq(0).where(1, large)).square()).sqrt()
        infinite = x.abs().eq(math.inf) | y.abs().eq(math.inf)
        return x._with_derivative(infinite.where(math.inf, length), _hypot_rule, y)

    # --- activations ------------------------------------------------------------------------------

    def glu(self, dim: int = -1) -> Self:
        """a·sigmoid(b) of the two halves a and b along dim (Dauphin et al. 2017).

        >>> Tensor([2.0, 0.0]).glu().tolist()
        [1.0]
        """
        expect(not self.size(dim) % 2, "glu", f"an even size along dimension {dim}", self)
        first, second = self.chunk(2, dim)
        return first * second.sigmoid()

    def prelu(self, weight: Core) -> Self:
        """x, but weight·x below 0; weight: one number, or one for each channel (dimension 1).

        >>> Tensor([-2.0, 3.0]).prelu(Tensor([0.5])).tolist()
        [-1.0, 3.0]
        """
        shape = () if weight.numel() == 1 else (-1, *(1 for _ in self.shape[2:]))
        if weight.numel() not in (1, *self.shape[1:2]):
            raise misfit("prelu", "a weight of 1 element, or one per channel", self, weight)
        slopes = self._new(weight.node).reshape(shape)
        # clipped, because an infinity above 0 would add 0·∞ to the slopes' gradient
        return (self > 0).where(self, self.clip(max=0) * slopes)

    def threshold(self, threshold: Scalar, value: Scalar) -> Self:
        """x where it is above `threshold`, else `value`.

        >>> Tensor([1.0, 3.0]).threshold(2.0, 9.0).tolist()
        [9.0, 3.0]
        """
        return (self <= threshold).where(value, self)

    def hardshrink(self, lambd: Scalar = 0.5) -> Self:
        """x, but 0 in −lambd … lambd.

        >>> Tensor([0.25, 3.0]).hardshrink().tolist()
        [0.0, 3.0]
        """
        return ((self >= -lambd) & (self <= lambd)).where(0, self)

    def softshrink(self, lambd: Scalar = 0.5) -> Self:
        """x moved towards 0 by lambd, and 0 in −lambd … lambd.

        >>> Tensor([0.25, 3.0]).softshrink().tolist()
        [0.0, 2.5]
        """
        expect(isinstance(lambd, Core) or lambd >= 0, "softshrink", "a number ≥ 0",
               error=ValueError, lambd=lambd)  # fmt: skip
        return self.hardshrink(lambd) - self.hardshrink(lambd).sign().detach() * lambd

    def tanhshrink(self) -> Self:
        """x − tanh(x).

        >>> Tensor([0.0]).tanhshrink().tolist()
        [0.0]
        """
        return self - self.tanh()

    # --- products of vectors and matrices ---------------------------------------------------

    def _times(self, name: str, other: Core, mine: int, its: int) -> Self:
        """`matmul`; an error unless self has `mine` dimensions and other `its`."""
        if self.ndim != mine or other.ndim != its:
            kinds = ("numbers", "a vector", "a matrix", "a batch of matrices")
            expected = f"{kinds[mine]} and {kinds[its]}; use matmul for other shapes"
            raise misfit(name, expected, self, other)
        return self.matmul(other)

    def mm(self, mat2: Core) -> Self:
        """(m, k) · (k, n) → (m, n).

        >>> Tensor([[1, 2]]).mm(Tensor([[3], [4]])).tolist()
        [[11]]
        """
        return self._times("mm", mat2, 2, 2)

    def bmm(self, mat2: Core) -> Self:
        """(b, m, k) · (b, k, n) → (b, m, n).

        >>> Tensor.ones(2, 3, 4).bmm(Tensor.ones(2, 4, 5)).shape
        (2, 3, 5)
        """
        return self._times("bmm", mat2, 3, 3)

    def mv(self, vec: Core) -> Self:
        """(m, k) · (k,) → (m,).

        >>> Tensor([[1, 2]]).mv(Tensor([3, 4])).tolist()
        [11]
        """
        return self._times("mv", vec, 2, 1)

    def outer(self, vec2: Core) -> Self:
        """(m,) · (n,) → (m, n): all products of two elements.

        >>> Tensor([1, 2]).outer(Tensor([3, 4])).tolist()
        [[3, 4], [6, 8]]
        """
        expect(self.ndim == 1 and vec2.ndim == 1, "outer", "two vectors", self, vec2)
        return self.unsqueeze(1) * vec2

    def tensordot(self, other: Self, dims: int | Sequence[Sequence[int]] = 2) -> Self:
        """Sum of products over the last `dims` dimensions of self and the first of other.

        dims may also be two lists of dimensions: of self, and of other.

        >>> Tensor.ones(2, 3, 4).tensordot(Tensor.ones(3, 4, 5)).shape
        (2, 5)
        """
        if not isinstance(dims, Sequence):
            check_ints("tensordot", dims=dims)
            if not 0 <= dims <= min(self.ndim, other.ndim):
                raise misfit(f"tensordot(dims={dims})", "at most as many as both have", self, other)
            dims = ([*range(self.ndim - dims, self.ndim)], [*range(dims)])
        expect(len(dims) == 2, "tensordot", "an int or two lists", dims=dims)
        mine = axes_of("tensordot", dims[0], self.ndim)
        its = axes_of("tensordot", dims[1], other.ndim)
        rows = [d for d in range(self.ndim) if d not in mine]
        columns = [d for d in range(other.ndim) if d not in its]
        if [self.shape[d] for d in mine] != [other.shape[d] for d in its]:
            raise misfit(f"tensordot(dims={dims})", "equal sizes along them", self, other)
        count = product([self.shape[d] for d in mine])
        left, right = [self.shape[d] for d in rows], [other.shape[d] for d in columns]
        x = self.permute(*rows, *mine).reshape((product(left), count))
        y = other.permute(*its, *columns).reshape((count, product(right)))
        return x.matmul(y).reshape((*left, *right))

    def kron(self, other: Self) -> Self:
        """Kronecker product: each element of self times all of other, block by block.

        >>> Tensor([1, 2]).kron(Tensor([1, 10])).tolist()
        [1, 10, 2, 20]
        """
        a, b = ((1,) * (max(self.ndim, other.ndim) - x.ndim) + x.shape for x in (self, other))
        x = self.reshape([e for extent in a for e in (extent, 1)])
        y = other.reshape([e for extent in b for e in (1, extent)])
        return (x * y).reshape([m * n for m, n in zip(a, b, strict=True)])

    def cross(self, other: Any, dim: int = -1) -> Self:
        """Cross product of vectors of three elements along dim.

        >>> Tensor([1, 0, 0]).cross(Tensor([0, 1, 0])).tolist()
        [0, 0, 1]
        """
        other = self._operand(other)
        x, y = self._two("cross", other)
        axis = axis_of("cross", dim, x.ndim, 0)
        fits = (each.shape[axis - x.ndim :] for each in (self, other))
        if any(len(shape) != x.ndim - axis or shape[0] != 3 for shape in fits):
            raise misfit(f"cross along dimension {dim}", "size 3 there", self, other)
        return x.roll(-1, axis) * y.roll(-2, axis) - x.roll(-2, axis) * y.roll(-1, axis)

    def matrix_power(self, n: int) -> Self:
        """The n-th power of square matrices, by squaring; for n < 0 see `linalg.matrix_power`.

        >>> Tensor([[1, 1], [0, 1]]).matrix_power(5).tolist()
        [[1, 5], [0, 1]]
        """
        if n < 0 or self.ndim < 2 or self.shape[-1] != self.shape[-2]:
            raise misfit(f"matrix_power({n})", "n ≥ 0 and square matrices", self)
        if n == 0:
            one: Self = self.eye(self.size(-1), dtype=self.dtype, device=self.raw.device)
            return one.expand(self.shape)
        half = self.matrix_power(n // 2) if n > 1 else self.clone()
        return half if n == 1 else half.matmul(half) if n % 2 == 0 else half.matmul(half) @ self

    def addmm(self, mat1: Self, mat2: Core, *, beta: Scalar = 1, alpha: Scalar = 1) -> Self:
        """beta·self + alpha·mat1·mat2.

        >>> Tensor([[1]]).addmm(Tensor([[2]]), Tensor([[3]])).tolist()
        [[7]]
        """
        product: Self = self._wider(mat1, mat2)._times("addmm", mat2, 2, 2)
        product = product if alpha == 1 else product * alpha
        if beta == 0:
            return product
        added = self._broadcast_to(product.shape)
        return (added if beta == 1 else added * beta) + product

    # --- distances --------------------------------------------------------------------------------

    def cdist(self, x2: Self, p: Scalar = 2) -> Self:
        """(…, m, d), (…, n, d) → (…, m, n): p-norms of the differences of all pairs of rows.

        >>> Tensor([[0.0, 0.0]]).cdist(Tensor([[3.0, 4.0]])).tolist()
        [[5.0]]
        """
        if min(self.ndim, x2.ndim) < 2 or self.shape[-1] != x2.shape[-1]:
            raise misfit("cdist", "(…, m, d) and (…, n, d)", self, x2)
        expect(p >= 0, "cdist", "a number ≥ 0", error=ValueError, p=p)
        away: Any = self._as_float().unsqueeze(-2) - x2.unsqueeze(-3)
        return away.norm(p, -1)

    def cosine_similarity(self, x2: Any, dim: int = 1, eps: Scalar = 1e-8) -> Self:
        """Cosine of the angle between vectors along dim; norms count as at least eps.

        >>> Tensor([[1.0, 0.0]]).cosine_similarity(Tensor([[2.0, 0.0]])).tolist()
        [1.0]
        """
        x, y = self._two("cosine_similarity", x2)
        axis_of("cosine_similarity", dim, x.ndim)
        one, other = (each._wide().normalize(2, dim, eps) for each in (x, y))
        return (one * other).sum(dim).cast(x._float_dtype())

    def pairwise_distance(
        self, x2: Any, p: Scalar = 2, eps: Scalar = 1e-6, keepdim: bool = False
    ) -> Self:
        """The p-norms of self − x2 + eps along the last dimension.

        >>> Tensor([[3.0, 4.0]]).pairwise_distance(Tensor([[0.0, 0.0]])).round().tolist()
        [5.0]
        """
        away: Any = self._as_float() - x2 + eps
        return away.norm(p, -1, keepdim)
