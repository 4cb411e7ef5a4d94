"""The families that make nodes, as one class; other families are composed of their methods.

A `class Family(Composed)` is at run time a plain mixin, for type checkers a subclass of `Basic`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad.tensor.casts import Casts
from minigrad.tensor.contraction import Contraction
from minigrad.tensor.core import Core
from minigrad.tensor.creation import Creation
from minigrad.tensor.elementwise import Elementwise
from minigrad.tensor.functions import Functions
from minigrad.tensor.indexing import Indexing
from minigrad.tensor.joining import Joining
from minigrad.tensor.movement import Movement
from minigrad.tensor.random import Random
from minigrad.tensor.reduce import Reduce
from minigrad.tensor.scan import Scanning
from minigrad.tensor.scattering import Scattering
from minigrad.tensor.sharding import Sharding
from minigrad.tensor.values import Values


class Basic(
    Creation, Random, Values, Casts, Elementwise, Functions, Movement, Joining, Indexing,
    Scattering, Reduce, Scanning, Contraction, Sharding, Core,
):  # fmt: skip
    """A tensor with the methods that `Tensor`'s other families are composed of."""

    __slots__ = ()


if TYPE_CHECKING:
    Composed = Basic
else:
    Composed = object
