"""Axes: what the loops of a stage run over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from minigrad.errors import CompileError
from minigrad.graph.interned import kept
from minigrad.graph.shapes import flatten, unflatten
from minigrad.graph.substitution import only_atom
from minigrad.graph.symbolic import Affine, Atom, Integer, high, typical, var


@dataclass(frozen=True)
class Axis:
    """A loop variable with its extent: it runs over 0 … extent − 1."""

    variable: Atom
    extent: Integer

    @kept
    def index(self) -> Affine:
        """The variable as an index."""
        return self.variable.index

    @property
    def count(self) -> int:
        """The extent, which must be a number; CompileError if it varies."""
        if isinstance(self.extent, int):
            return self.extent
        raise CompileError(f"{self.variable!r} has size {self.extent}: expected a known number")

    @kept
    def most(self) -> int:
        """The extent, or the upper bound of one that varies."""
        return high(self.extent)

    @property
    def typical(self) -> int:
        """The extent; if it varies, a size for which loops should be good, less than its bound."""
        if isinstance(self.extent, int):
            return self.extent
        return max(min(max(typical(self.extent), 2), self.most // 2), 1)


def size_of(axes: Iterable[Axis]) -> int:
    """The number of elements of axes together, at most."""
    return prod(axis.most for axis in axes)


def place_along(axes: Sequence[Axis]) -> Integer:
    """The position in the row-major order of all axes."""
    return flatten([axis.index for axis in axes], [axis.extent for axis in axes])


def places_along(axes: Sequence[Axis], place: Integer) -> dict[Atom, Integer]:
    """The variables of axes at a position in the row-major order of all of them."""
    found = unflatten(place, [axis.extent for axis in axes])
    return {axis.variable: part for axis, part in zip(axes, found, strict=True)}


def make_axis(prefix: str, number: int, extent: Integer) -> Axis:
    """A fresh variable over 0 … extent − 1, numbered by position so that equal stages are equal."""
    symbolic = None if isinstance(extent, int) else extent
    top = max(high(extent) - 1, 0)
    return Axis(only_atom(var(f"{prefix}{number}", 0, top, symbolic)), extent)
