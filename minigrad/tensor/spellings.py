"""PyTorch's second names, its in-place forms (`x.add_(y)`), and its questions to a tensor."""

from __future__ import annotations

from typing import Any, Self

from minigrad.dtype import DTypeLike
from minigrad.errors import expect
from minigrad.tensor.arithmetic import Arithmetic
from minigrad.tensor.arranging import Arranging
from minigrad.tensor.basic import Basic, Composed
from minigrad.tensor.broadcasting import Scalar
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Method
from minigrad.tensor.movement import sequence


class _Named(Arithmetic, Arranging, Basic):
    """The class whose methods get second names."""


def same(names: str) -> tuple[Method, ...]:
    """The methods with these names."""
    return tuple(getattr(_Named, name) for name in names.split())


class InPlace(Method):
    """The in-place form `add_` of `add`: writes the result to self and returns self.

    The result must have self's shape; it is cast to self's dtype if its kind allows that.
    """

    def __set_name__(self, family: type, name: str) -> None:
        method = getattr(_Named, name[:-1], None) or getattr(family, name[:-1])

        def write(self: Any, *args: Any, **kwargs: Any) -> Any:
            return self._in_place(name, getattr(self, name[:-1])(*args, **kwargs))

        write.__name__, write.__wrapped__ = name, method  # type: ignore[attr-defined]
        write.__doc__ = f"""`{name[:-1]}` in place; gives self.

        A leaf that wants a gradient can be written inside `Tensor.no_grad()` only.
        """
        setattr(family, name, write)


class Spellings(Composed):
    """Second names of methods; names that end in _ write to self and return it."""

    __slots__ = ()

    # --- aliases ----------------------------------------------------------------------------------

    subtract, multiply, negative, divide, true_divide = same("sub mul neg div div")
    fix, absolute, sgn, arccos, arcsin, arctan = same("trunc abs sign acos asin atan")
    arccosh, arcsinh, arctanh, arctan2 = same("acosh asinh atanh atan2")
    greater, greater_equal, less, less_equal, not_equal = same("gt ge lt le ne")
    bitwise_left_shift, bitwise_right_shift, remainder = same("lshift rshift mod")
    moveaxis, ravel, ger, swapaxes, swapdims = same("movedim flatten outer transpose transpose")
    broadcast_to, reshape_as, argwhere = same("expand view_as nonzero")
    type, swish, concat, concatenate, clamp, dot = same("cast silu cat cat clip matmul")
    copy_, fill_ = same("assign assign")
    nelement = _Named.numel

    # --- in place ---------------------------------------------------------------------------------

    add_ = sub_ = mul_ = div_ = pow_ = neg_ = remainder_ = floor_divide_ = lerp_ = InPlace()
    addcmul_ = addcdiv_ = addmm_ = clamp_ = clip_ = clamp_min_ = clamp_max_ = InPlace()
    nan_to_num_ = masked_fill_ = abs_ = sign_ = ceil_ = floor_ = round_ = trunc_ = InPlace()
    sqrt_ = rsqrt_ = square_ = reciprocal_ = exp_ = log_ = sin_ = cos_ = tanh_ = InPlace()
    sigmoid_ = relu_ = tril_ = triu_ = index_put_ = index_add_ = index_copy_ = InPlace()
    index_fill_ = scatter_ = masked_scatter_ = scatter_add_ = scatter_reduce_ = InPlace()

    def replace(self, other: Core) -> Self:
        """Copy values from a tensor of the same shape and dtype: `set_data` from a tensor.

        >>> Tensor([1, 2]).replace(Tensor([3, 4])).tolist()
        [3, 4]
        """
        expect(other.shape == self.shape and other.dtype is self.dtype, "replace", "equal shapes "
               "and dtypes", *(f"{x.dtype.name} {x.shape}" for x in (self, other)))  # fmt: skip
        return self.assign(other)

    def zero_(self) -> Self:
        """Replace all elements by 0.

        >>> Tensor([1, 2]).zero_().tolist()
        [0, 0]
        """
        return self.assign(0)

    def uniform_(self, a: Scalar = 0.0, b: Scalar = 1.0) -> Self:
        """Replace all elements by random ones, uniform in [a, b).

        >>> Tensor([5.0]).uniform_().item() < 1
        True
        """
        drawn = self.uniform(self.shape, low=a, high=b, dtype=self.dtype, device=self.raw.device)
        return self.assign(drawn)

    def normal_(self, mean: Scalar = 0.0, std: Scalar = 1.0) -> Self:
        """Replace all elements by random ones, normal with this mean and standard deviation.

        >>> Tensor([5.0]).normal_(2.0, 0.0).item()
        2.0
        """
        return self.assign(self.normal(self.shape, mean=mean, std=std, device=self.raw.device))

    def bernoulli_(self, p: Any = 0.5) -> Self:
        """Replace all elements: 1 with probability p, else 0.

        >>> Tensor([5.0]).bernoulli_(1.0).item()
        1.0
        """
        return self.assign(self.bernoulli(p))

    # --- properties and comparisons --------------------------------------------------------------

    def dim(self) -> int:
        """Number of dimensions.

        >>> Tensor([[1]]).dim()
        2
        """
        return self.ndim

    ndimension = dim

    def element_size(self) -> int:
        """Bytes of one element.

        >>> Tensor([1.0]).element_size()
        4
        """
        return self.dtype.itemsize

    itemsize = property(element_size)

    def is_floating_point(self) -> bool:
        """Whether elements are floats.

        >>> Tensor([1]).is_floating_point()
        False
        """
        return self.dtype.is_float

    def is_complex(self) -> bool:
        """False: all dtypes are real.

        >>> Tensor([1.0]).is_complex()
        False
        """
        return False

    def equal(self, other: Core) -> bool:
        """Whether shapes and all elements are equal; the host reads the result.

        >>> Tensor([1, 2]).equal(Tensor([1, 2]))
        True
        """
        return self.shape == other.shape and bool(self.eq(other).all())

    def allclose(
        self, other: Any, rtol: Scalar = 1e-5, atol: Scalar = 1e-8, equal_nan: bool = False
    ) -> bool:
        """Whether all elements are close (see `isclose`); the host reads the result.

        >>> Tensor([1.0]).allclose(Tensor([1.0 + 1e-6]))
        True
        """
        return bool(self.isclose(other, rtol, atol, equal_nan).all())

    # --- conversions ------------------------------------------------------------------------------

    def type_as(self, other: Core) -> Self:
        """self cast to the dtype of other.

        >>> Tensor([1]).type_as(Tensor([1.0])).dtype.name
        'float32'
        """
        return self.cast(other.dtype)

    # --- new tensors with the same dtype and device -----------------------------------------------

    def new_zeros(self, *size: Any, **options: Any) -> Self:
        """Zeros; dtype and device of self unless given.

        >>> Tensor([1]).new_zeros(2).tolist()
        [0, 0]
        """
        return self.new_full(sequence(size), 0, **options)

    new_empty = new_zeros

    def new_ones(self, *size: Any, **options: Any) -> Self:
        """Ones; dtype and device of self unless given.

        >>> Tensor([1]).new_ones(2).tolist()
        [1, 1]
        """
        return self.new_full(sequence(size), 1, **options)

    def new_tensor(self, data: Any, *, dtype: DTypeLike = None) -> Self:
        """A tensor of data; dtype and device of self unless given.

        >>> Tensor([1.5]).new_tensor([2]).tolist()
        [2.0]
        """
        kind = self.dtype if dtype is None else dtype
        return self.__class__(data, dtype=kind, device=self.raw.device)
