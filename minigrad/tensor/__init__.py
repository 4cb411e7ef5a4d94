"""The user's `Tensor`, composed of one class per family of methods."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Self

from minigrad.tensor.activations import Activations
from minigrad.tensor.backward import Backward
from minigrad.tensor.casts import Casts
from minigrad.tensor.contraction import Contraction
from minigrad.tensor.convolution import Convolution
from minigrad.tensor.core import Core
from minigrad.tensor.creation import Creation
from minigrad.tensor.cumulative import Cumulative
from minigrad.tensor.dlpack import DLPack
from minigrad.tensor.elementwise import Elementwise
from minigrad.tensor.functions import Functions
from minigrad.tensor.indexing import Indexing
from minigrad.tensor.joining import Joining
from minigrad.tensor.loss import Loss
from minigrad.tensor.modes import no_grad
from minigrad.tensor.movement import Movement
from minigrad.tensor.ordering import Ordering
from minigrad.tensor.pooling import Pooling
from minigrad.tensor.random import Random
from minigrad.tensor.rearrange import Rearrange
from minigrad.tensor.reduce import Reduce
from minigrad.tensor.resize import Resize
from minigrad.tensor.sampling import Sampling
from minigrad.tensor.scattering import Scattering
from minigrad.tensor.values import Values

__all__ = ["Tensor", "no_grad"]


class Tensor(
    Creation, Random, Values, DLPack, Casts, Backward,
    Elementwise, Functions, Activations,
    Movement, Joining, Rearrange, Indexing, Scattering,
    Reduce, Cumulative, Ordering, Sampling,
    Contraction, Convolution, Pooling, Resize, Loss,
    Core,
):  # fmt: skip
    """An array of one dtype on one device, computed when its values are needed.

    Operations only record what is to be done; `realize`, `numpy`, `item` and the like compile and
    run it. A result keeps the values that its sources had when it was made. Indices of ints and
    slices, reshape, permute, flip, expand, detach, bitcast and what is made of these give views
    instead, as in numpy: a view shows its base as that is now, and a write to one is a write to
    both, where each element of the view is one of the base (else ShapeError). All other methods
    give tensors of their own (clone, contiguous, pad, repeat, …).

    See the base classes for the methods, one file per family.
    """

    __slots__ = ()

    if TYPE_CHECKING:  # set by minigrad/__init__.py: minigrad/linalg.py stands above `jit`

        def qr(self, mode: str = "reduced") -> tuple[Self, Self]:
            """See `minigrad.linalg.qr`."""

        def svd(self, full_matrices: bool = True) -> tuple[Self, Self, Self]:
            """See `minigrad.linalg.svd`."""


# Python's messages name a method as users know it: "Tensor.sum() got an unexpected …".
for _family in Tensor.__bases__:
    for _method in vars(_family).values():
        _method = getattr(_method, "__func__", _method)  # of a classmethod or staticmethod
        if isinstance(_method, FunctionType):
            _method.__qualname__ = f"Tensor.{_method.__name__}"
            _method.__module__ = __name__  # where pickle looks for that
