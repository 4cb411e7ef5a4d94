"""PyTorch's second names, its in-place forms (`x.add_(y)`), and arguments under other names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

from minigrad.errors import ShapeError
from minigrad.tensor.activations import Activations
from minigrad.tensor.addressing import Addressing
from minigrad.tensor.arithmetic import Arithmetic
from minigrad.tensor.arranging import Arranging
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import Scalar, show
from minigrad.tensor.casts import Casts
from minigrad.tensor.core import Core
from minigrad.tensor.creation import Creation
from minigrad.tensor.elementwise import Elementwise
from minigrad.tensor.functions import Functions
from minigrad.tensor.indexing import Indexing
from minigrad.tensor.inquiry import Inquiry
from minigrad.tensor.joining import Joining
from minigrad.tensor.methods import Method
from minigrad.tensor.movement import Movement
from minigrad.tensor.products import Products
from minigrad.tensor.scattering import Scattering


def same(*methods: Callable[..., Any]) -> tuple[Method, ...]:
    """Methods, for second names."""
    return cast(Any, methods)  # type: ignore[no-any-return]


def writing(*methods: Callable[..., Any]) -> tuple[Method, ...]:
    """The in-place forms: a method's result written to self, which they give back.

    The result's shape must be self's; it is cast to self's dtype if that is of its kind.
    """
    return tuple(_writing(method) for method in methods)


def _writing(method: Any) -> Any:
    name = f"{method.__name__}_"

    def write(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._in_place(name, method(self, *args, **kwargs))

    write.__name__, write.__wrapped__ = name, method  # type: ignore[attr-defined]
    write.__doc__ = f"""`{method.__name__}` in place; gives self.

        A leaf that wants a gradient can be written inside `Tensor.no_grad()` only.
        """
    return write


_E, _F, _X, _A = Elementwise, Functions, Activations, Arithmetic
_P, _I = Products, Addressing


class Spellings(Composed):
    """Names that mean the same as others; what ends in _ writes to self and gives it."""

    __slots__ = ()

    # --- second names -----------------------------------------------------------------------------

    subtract, multiply, negative, divide, true_divide = same(_E.sub, _E.mul, _E.neg, _F.div, _F.div)
    fix, absolute, sgn, arccos, arcsin = same(_F.trunc, _F.abs, _F.sign, _F.acos, _F.asin)
    arctan, arccosh, arcsinh, arctanh = same(_F.atan, _F.acosh, _F.asinh, _F.atanh)
    arctan2, greater, greater_equal, less, less_equal = same(_A.atan2, _E.gt, _E.ge, _E.lt, _E.le)
    not_equal, bitwise_left_shift, bitwise_right_shift = same(_E.ne, _E.lshift, _E.rshift)
    moveaxis, ravel, ger = same(Arranging.movedim, Movement.flatten, Products.outer)
    swapaxes, swapdims, broadcast_to = same(Movement.transpose, Movement.transpose, Movement.expand)
    reshape_as, row_stack, argwhere = same(Arranging.view_as, Arranging.vstack, Indexing.nonzero)
    remainder, type, swish = same(_E.mod, Casts.cast, _X.silu)
    concat, concatenate, copy_, clamp = same(Joining.cat, Joining.cat, Core.assign, _E.clip)
    ndimension, nelement, multi_dot = Inquiry.dim, Core.numel, Products.chain_matmul

    # --- in place ---------------------------------------------------------------------------------

    add_, sub_, mul_, div_, pow_, neg_ = writing(_E.add, _E.sub, _E.mul, _F.div, _F.pow, _E.neg)
    remainder_, floor_divide_, lerp_ = writing(_E.mod, _E.floor_divide, _F.lerp)
    addcmul_, addcdiv_, addmm_, baddbmm_ = writing(_A.addcmul, _A.addcdiv, _P.addmm, _P.baddbmm)
    clamp_, clip_, clamp_min_ = writing(_E.clip, _E.clip, _A.clamp_min)
    clamp_max_, nan_to_num_, masked_fill_ = writing(_A.clamp_max, _A.nan_to_num, _E.masked_fill)
    abs_, sign_, ceil_, floor_, round_ = writing(_F.abs, _F.sign, _F.ceil, _F.floor, _F.round)
    trunc_, sqrt_, rsqrt_, square_ = writing(_F.trunc, _F.sqrt, _F.rsqrt, _F.square)
    reciprocal_, exp_, log_, sin_, cos_ = writing(_F.reciprocal, _F.exp, _F.log, _F.sin, _F.cos)
    tanh_, sigmoid_, relu_, tril_ = writing(_F.tanh, _X.sigmoid, _X.relu, Creation.tril)
    triu_, index_put_, index_add_ = writing(Creation.triu, _I.index_put, _I.index_add)
    index_copy_, index_fill_, scatter_ = writing(_I.index_copy, _I.index_fill, Scattering.scatter)
    masked_scatter_, scatter_add_ = writing(_I.masked_scatter, Scattering.scatter_add)
    (scatter_reduce_,) = writing(Scattering.scatter_reduce)

    def replace(self, other: Any) -> Self:
        """Take the values of other, of the same shape and dtype: as `set_data` of a tensor.

        >>> Tensor([1, 2]).replace(Tensor([3, 4])).tolist()
        [3, 4]
        """
        if other.shape != self.shape or other.dtype is not self.dtype:
            raise ShapeError(f"replace {self.dtype.name} {show(self.shape)} by {other.dtype.name} "
                             f"{show(other.shape)}: expected equal shapes and dtypes")  # fmt: skip
        return self.assign(other)

    def fill_(self, value: Any) -> Self:
        """Replace all elements by one.

        >>> Tensor([1, 2]).fill_(7).tolist()
        [7, 7]
        """
        return self.assign(value)

    def zero_(self) -> Self:
        """Replace all elements by 0.

        >>> Tensor([1, 2]).zero_().tolist()
        [0, 0]
        """
        return self.assign(0)

    def fill_diagonal_(self, fill_value: Scalar, wrap: bool = False) -> Self:
        """Write one number to the main diagonal of a matrix; wrap: again after each n + 1 rows.

        >>> Tensor([[1, 2], [3, 4]]).fill_diagonal_(0).tolist()
        [[0, 2], [3, 0]]
        """
        rows, columns = (self.arange(extent, device=self.raw.device) for extent in self.shape)
        rows = rows.unsqueeze(1)
        on_it = (rows % (self.shape[1] + 1) if wrap else rows).eq(columns)
        return self.assign(self.masked_fill(on_it, fill_value))

    def uniform_(self, a: Scalar = 0.0, b: Scalar = 1.0) -> Self:
        """Replace its elements by random ones, uniform in [a, b).

        >>> Tensor([5.0]).uniform_().item() < 1
        True
        """
        return self.assign(self.uniform(self.shape, low=a, high=b, device=self.raw.device))

    def normal_(self, mean: Scalar = 0.0, std: Scalar = 1.0) -> Self:
        """Replace its elements by random ones, normal with this mean and deviation.

        >>> Tensor([5.0]).normal_(2.0, 0.0).item()
        2.0
        """
        return self.assign(self.normal(self.shape, mean=mean, std=std, device=self.raw.device))

    def exponential_(self, lambd: Scalar = 1.0) -> Self:
        """Replace its elements by random ones, exponential with rate lambd.

        >>> Tensor([-5.0]).exponential_().item() >= 0
        True
        """
        return self.assign(-(-self.rand(self.shape, device=self.raw.device)).log1p() / lambd)

    def bernoulli_(self, p: Any = 0.5) -> Self:
        """Replace its elements by 1 with probability p, else by 0.

        >>> Tensor([5.0]).bernoulli_(1.0).item()
        1.0
        """
        return self.assign(self.bernoulli(p))

    def random_(self, low: int, high: int) -> Self:
        """Replace its elements by random integers in low … high − 1.

        >>> Tensor([5]).random_(3, 4).item()
        3
        """
        return self.assign(self.randint(self.shape, low=low, high=high, device=self.raw.device))
