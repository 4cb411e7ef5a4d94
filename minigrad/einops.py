"""`import minigrad.einops` lets einops's functions (rearrange, reduce, repeat …) take tensors.

einops finds its backends among the subclasses of its `AbstractBackend`; this is one for `Tensor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from einops._backends import AbstractBackend

from minigrad.tensor import Tensor


class MinigradBackend(AbstractBackend):
    """The methods that einops needs of a library, with methods of `Tensor`; all stays lazy."""

    framework_name = "minigrad"

    def is_appropriate_type(self, tensor: Any) -> bool:
        """Whether this backend is the right one."""
        return isinstance(tensor, Tensor)

    def to_numpy(self, x: Tensor) -> Any:
        """A numpy array of a tensor."""
        return x.numpy()

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same elements in another shape."""
        return x.reshape(*shape)

    def transpose(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """All axes in another order."""
        return x.permute(*axes)

    def reduce(self, x: Tensor, operation: str, axes: Sequence[int]) -> Tensor:
        """sum, prod, mean, max, min, any or all over axes."""
        return getattr(x, operation)(axis=tuple(axes))

    def stack_on_zeroth_dimension(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of one shape along a new first axis."""
        return Tensor.stack(tensors, dim=0)

    def add_axes(self, x: Tensor, n_axes: int, pos2len: dict[int, int]) -> Tensor:
        """Add axes along which the tensor repeats, without copying it."""
        for position in sorted(pos2len):
            x = x.unsqueeze(position)
        return x.expand(*(pos2len.get(axis, x.shape[axis]) for axis in range(n_axes)))

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """One after the other along an axis."""
        return Tensor.cat(tensors, dim=axis)

    def is_float_type(self, x: Tensor) -> bool:
        """Whether the dtype is a float, so that a mean may be taken."""
        return x.dtype.is_float

    def einsum(self, pattern: str, *x: Tensor) -> Tensor:
        """A sum of products."""
        return Tensor.einsum(pattern, *x)
