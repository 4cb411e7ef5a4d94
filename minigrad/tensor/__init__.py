"""The user's `Tensor`, composed of one class per family of methods."""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any

from minigrad.hints import answer, put_hints
from minigrad.tensor.arguments import check_methods
from minigrad.tensor.arithmetic import Arithmetic
from minigrad.tensor.arranging import Arranging
from minigrad.tensor.backward import Backward
from minigrad.tensor.basic import Basic
from minigrad.tensor.broadcasting import Axis
from minigrad.tensor.convolution import Convolution
from minigrad.tensor.dlpack import DLPack
from minigrad.tensor.loss import Loss
from minigrad.tensor.modes import no_grad
from minigrad.tensor.results import QRResult, SVDResult
from minigrad.tensor.spellings import Spellings
from minigrad.tensor.statistics import Statistics
from minigrad.tensor.templates import TEMPLATED, templated

__all__ = ["Tensor", "no_grad"]


class Tensor(
    Spellings, Arithmetic, Arranging, Statistics, Convolution, Loss, Backward, DLPack,
    Basic,
):  # fmt: skip
    """An array of one dtype on one device, computed when its values are needed.

    Operations only record what to compute; `realize`, `numpy`, `item` and the like compile and run
    it. A result keeps the values that its sources had when it was made. Indexing by ints and
    slices, reshape, permute, flip, expand, detach, bitcast and methods made of these return views,
    as in numpy: a view shows the current values of its base, and a write to one changes both, if
    each element of the view is one of the base (else ShapeError). All other methods (clone,
    contiguous, pad, repeat, …) return independent tensors.

    See the base classes for the methods, one file per family.
    """

    __slots__ = ()

    @property
    def data(self) -> Any:
        """`detach()`, as in PyTorch. Called, `x.data()`, it is a memoryview, as in tinygrad.

        The memoryview has x's shape and a copy of its values; there is none of bfloat16.

        Assigning a tensor y writes y's values; tensors that shared memory with x keep theirs. In
        PyTorch x and y would share memory from then on. Therefore y may not be a view of a tensor
        that requires a gradient (GradientError). ShapeError for another shape or dtype.
        """
        result = self.detach()
        object.__setattr__(result, "__class__", _Data)
        return result

    @data.setter
    def data(self, value: Tensor) -> None:
        self._replace(value)

    if TYPE_CHECKING:  # methods that take self alone or first in a list

        def cat(
            self: Tensor | Sequence[Tensor], *others: Any, dim: Axis = None, axis: Axis = None
        ) -> Tensor:
            """See `Joining.cat`."""

        def stack(  # not a name for cat: pyright would take the type from `Joining`
            self: Tensor | Sequence[Tensor], *others: Any, dim: Axis = None, axis: Axis = None
        ) -> Tensor:
            """See `Joining.stack`."""

        concat = concatenate = hstack = vstack = block_diag = cat

        @staticmethod
        def einsum(equation: str, *operands: Any) -> Tensor:
            """See `Contraction.einsum`."""

        # set by minigrad/__init__.py: minigrad/linalg/ stands above `jit`
        def qr(self, mode: str = "reduced") -> QRResult[Tensor]:
            """See `minigrad.linalg.qr`."""

        def svd(self, full_matrices: bool = True) -> SVDResult[Tensor]:
            """See `minigrad.linalg.svd`."""


class _Data(Tensor):
    """`x.data`: a tensor that can be called."""

    __slots__ = ()
    __class__ = Tensor  # type: ignore[assignment]  # results of its methods are plain tensors
    _of = Tensor._of  # type: ignore[assignment]
    __call__ = Tensor._memoryview


# Python's messages name a method as users know it: "Tensor.sum() got an unexpected …".
for _family in Tensor.__mro__[:-1]:
    for _method in vars(_family).values():
        _method = getattr(_method, "__func__", _method)  # of a classmethod or staticmethod
        if isinstance(_method, FunctionType):
            _method.__qualname__ = f"Tensor.{_method.__name__}"
            _method.__module__ = __name__  # where pickle looks for it
check_methods(Tensor)
answer(__name__, "minigrad.tensor([1])")
_made = {getattr(Tensor, name): templated(getattr(Tensor, name)) for name in TEMPLATED}
for _name, _method in [(name, getattr(Tensor, name)) for name in dir(Tensor)]:
    if isinstance(_method, FunctionType) and _method in _made:  # under each of its names, `@` too
        setattr(Tensor, _name, _made[_method])
# And in-place names: with a __getattr__, each attribute of a tensor would cost more.
put_hints("Tensor", Tensor, [f"{name}_" for name in dir(Tensor) if name.strip("_") == name])
