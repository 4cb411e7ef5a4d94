"""The user's `Tensor`, composed of one class per family of methods."""

from __future__ import annotations

from minigrad.tensor.decompositions import Decompositions
from minigrad.tensor.modes import no_grad

__all__ = ["Tensor", "no_grad"]


class Tensor(Decompositions):
    """An array of one dtype on one device, computed when its values are needed.

    Operations only record what is to be done; `realize`, `numpy`, `item` and the like compile and
    run it. See the base classes for the methods, one file per family.
    """

    __slots__ = ()
