"""Axes: what the loops of a stage run over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from minigrad.errors import CompileError
from minigrad.graph.substitution import only_atom
from minigrad.graph.symbolic import Affine, Atom, Integer, high, var

# An extent that varies is bounded by as many times the largest that has been seen, or more.
TYPICAL = 8


@dataclass(frozen=True)
class Axis:
    """A loop variable with its extent: it runs over 0 … extent − 1."""

    variable: Atom
    extent: Integer

    @property
    def index(self) -> Affine:
        """The variable as an index."""
        return self.variable.index

    @property
    def count(self) -> int:
        """The extent of an axis whose extent is a number; CompileError where it varies."""
        if isinstance(self.extent, int):
            return self.extent
        raise CompileError(f"{self.variable!r} is one of {self.extent}, expected a known number")

    @property
    def most(self) -> int:
        """Its extent; of one that varies the largest."""
        return high(self.extent)

    @property
    def typical(self) -> int:
        """Its extent; of one that varies the number for which loops should be good."""
        return self.extent if isinstance(self.extent, int) else max(self.extent.high // TYPICAL, 2)


def size_of(axes: Iterable[Axis]) -> int:
    """How many elements axes have together, at most."""
    return prod(axis.most for axis in axes)


def make_axis(prefix: str, number: int, extent: Integer) -> Axis:
    """A fresh variable over 0 … extent − 1, named by its place so that equal stages are equal."""
    symbolic = None if isinstance(extent, int) else extent
    top = max(high(extent) - 1, 0)
    return Axis(only_atom(var(f"{prefix}{number}", 0, top, symbolic)), extent)
