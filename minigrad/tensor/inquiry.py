"""What a tensor is in PyTorch's words, others like it, and comparisons of two as a whole."""

from __future__ import annotations

import builtins
from typing import Any, Self

from minigrad.dtype import DType, resolve
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import Scalar
from minigrad.tensor.core import Core
from minigrad.tensor.movement import sequence


class Inquiry(Composed):
    """Facts, conversions, and tensors of self's dtype and device."""

    __slots__ = ()

    def dim(self) -> int:
        """Number of dimensions.

        >>> Tensor([[1]]).dim()
        2
        """
        return self.ndim

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

    def is_signed(self) -> bool:
        """Whether the dtype has negative numbers.

        >>> Tensor([1], dtype="uint8").is_signed()
        False
        """
        return self.dtype.kind in "if"

    def is_complex(self) -> bool:
        """False: all dtypes are real.

        >>> Tensor([1.0]).is_complex()
        False
        """
        return False

    def equal(self, other: Core) -> bool:
        """Whether shapes and all elements are equal; read by the host.

        >>> Tensor([1, 2]).equal(Tensor([1, 2]))
        True
        """
        return self.shape == other.shape and bool(self.eq(other).all())

    def allclose(
        self, other: Any, rtol: Scalar = 1e-5, atol: Scalar = 1e-8, equal_nan: bool = False
    ) -> bool:
        """Whether all elements are close (see `isclose`); read by the host.

        >>> Tensor([1.0]).allclose(Tensor([1.0 + 1e-6]))
        True
        """
        return bool(self.isclose(other, rtol, atol, equal_nan).all())

    # --- conversions ------------------------------------------------------------------------------

    def type_as(self, other: Core) -> Self:
        """In the dtype of other.

        >>> Tensor([1]).type_as(Tensor([1.0])).dtype.name
        'float32'
        """
        return self.cast(other.dtype)

    # --- others like it ---------------------------------------------------------------------------

    def new_full(
        self, size: Any, fill_value: Scalar, *, dtype: DType | str | None = None,
        device: str | None = None, requires_grad: builtins.bool | None = None,
    ) -> Self:  # fmt: skip
        """Every element is fill_value; dtype and device of self unless given.

        >>> Tensor([1]).new_full((2,), 7).tolist()
        [7, 7]
        """
        return self.full(size, fill_value, dtype=self.dtype if dtype is None else resolve(dtype),
                         device=device or self.device, requires_grad=requires_grad)  # fmt: skip

    def new_zeros(self, *size: Any, **options: Any) -> Self:
        """Zeros; dtype and device of self unless given.

        >>> Tensor([1]).new_zeros(2).tolist()
        [0, 0]
        """
        return self.new_full(sequence(size), 0, **options)

    def new_ones(self, *size: Any, **options: Any) -> Self:
        """Ones; dtype and device of self unless given.

        >>> Tensor([1]).new_ones(2).tolist()
        [1, 1]
        """
        return self.new_full(sequence(size), 1, **options)

    def new_empty(self, *size: Any, **options: Any) -> Self:
        """Elements of no particular value; dtype and device of self unless given.

        >>> Tensor([1]).new_empty(2).shape
        (2,)
        """
        return self.new_full(sequence(size), 0, **options)

    def new_tensor(self, data: Any, *, dtype: DType | str | None = None) -> Self:
        """A tensor of data; dtype and device of self unless given.

        >>> Tensor([1.5]).new_tensor([2]).tolist()
        [2.0]
        """
        kind = self.dtype if dtype is None else dtype
        return type(self)(data, dtype=kind, device=self.raw.device)

    @classmethod
    def logspace(
        cls, start: Scalar, stop: Scalar, steps: int, base: Scalar = 10.0, **options: Any
    ) -> Self:
        """`steps` numbers from base^start to base^stop, whose logarithms are even.

        >>> Tensor.logspace(0, 2, 3, base=2).tolist()
        [1.0, 2.0, 4.0]
        """
        return cls.linspace(start, stop, steps, **options).__rpow__(base)
