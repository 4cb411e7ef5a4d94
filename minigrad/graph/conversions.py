"""Values on a mesh, converted to another layout: by local slicing, or by an exchange.

    whole → divided, partial       a slice, or all of it on one device: costs nothing
    partial → whole, divided       all_reduce, reduce_scatter
    divided → whole, other digits  all_gather, all_to_all

A dimension may be divided along several mesh axes, one after the other. Each of these divisions is
a `Digit` (see sharding.py): an index along the dimension is a number with a digit for each axis.

All nodes made here are local. The position of a device along an axis is a variable ("dp_place"),
so all devices have the same graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from minigrad.dtype import DType, dtypes
from minigrad.graph import build
from minigrad.graph.axes import pad_along, part_along, split_axis, spread
from minigrad.graph.collective import exchange
from minigrad.graph.node import Node, Shape
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import Digit, Layout, axes_of, is_padded, joined, local_shape, meshes
from minigrad.graph.symbolic import Affine, Atom


@dataclass(frozen=True)
class Sent:
    """An exchange of a program: nbytes is what all ranks of the mesh send together."""

    kind: str
    axes: tuple[str, ...]
    nbytes: int
    reader: str

    def __str__(self) -> str:
        return f"{self.kind} over {', '.join(self.axes)}: {self.nbytes:,} bytes, for {self.reader}"


def group_name(mesh: str, axes: Iterable[str]) -> str:
    """The group of the devices of a mesh that differ only in their positions along these axes."""
    return f"{','.join(axes)} of {mesh}"


def place_name(axis: str) -> str:
    """The variable for a device's position along an axis."""
    return f"{axis}_place"


def place_of(axis: str, ways: int) -> Affine:
    """A device's position along an axis of `ways` devices."""
    return Atom("var", place_name(axis), 0, ways - 1).index


class Converter:
    """Converts local values on one device of a mesh, and records what is sent.

    reader: the node that needs the converted value. after: nodes to compute before an exchange.
    """

    def __init__(self, mesh: str, device: str) -> None:
        self.sizes, self.mesh, self.device = meshes[mesh], mesh, device
        self.sent: dict[Node, Sent] = {}
        self.reader: Node
        self.after: list[Node] = []

    def convert(self, x: Node, shape: Shape, given: Layout, want: Layout) -> Node:
        """The local part of an array of a shape, converted to another layout."""
        return x if given == want else _Moving(self, x, shape, given).to(want)

    def exchange(self, kind: str, axes: Iterable[str], x: Node, how: str = "-") -> Node:
        """A COLLECTIVE among the devices along axes."""
        along = tuple(axis for axis in self.sizes if axis in axes)
        size = prod(self.sizes[axis] for axis in along)
        made = exchange(kind, group_name(self.mesh, along), size, [x], how, after=self.after)
        large = max(numel(x.shape), numel(made.shape)) * x.dtype.itemsize
        groups = prod(self.sizes.values()) // size
        total = (2 if kind == "all_reduce" else 1) * (size - 1) * large * groups
        name = f"{self.reader.op.value} {tuple(self.reader.shape)}"
        self.sent[made] = Sent(kind, along, total, name)
        return made

    def place(self, axis: str, shape: Shape, dtype: DType = dtypes.int32) -> Node:
        """The device's position along an axis, as an array of a shape."""
        number = build.variable(place_of(axis, self.sizes[axis]), self.device)
        return spread(build.cast(number, dtype), shape)


class _Moving:
    """The local part of an array during a conversion: its current value and layout."""

    def __init__(self, by: Converter, x: Node, shape: Shape, given: Layout) -> None:
        self.by, self.x, self.shape = by, x, shape
        self.dims, self.sums = [*given.dims], given.partial

    def to(self, want: Layout) -> Node:
        """Convert the part to a layout, by the cheapest means first."""
        given = tuple(self.dims)
        self._divide_all(want)
        # sums: by parts where the layout is divided, the others as a whole
        for axis in sorted(self.sums - want.partial):
            place = _place(want, axis)
            if place is not None and self._fits(*place):
                self._scatter(*place)
        sums = self.sums - want.partial
        if sums:
            self.x = self.by.exchange("all_reduce", sums, self.x, "sum")
            self.sums -= sums
        # axes that divide another dimension than they should
        for at, digits in enumerate(given):
            for digit in digits:
                place = _place(want, digit.axis)
                if place is not None and digit not in want.dims[at]:
                    self._exchange_digit(at, digit, *place)
        # axes that should divide none
        for at, digits in enumerate(tuple(self.dims)):
            for digit in reversed(digits):
                if digit not in want.dims[at]:
                    self._gather(at, digit)
        self._divide_all(want)
        for axis in sorted(want.partial - self.sums):  # the first device's term is the whole value
            self.x = self.by.place(axis, self.x.shape).equals(0).where(self.x, 0)
        return self.x

    def _fits(self, at: int, digit: Digit) -> bool:
        """Whether a dimension can be divided by a digit beside those that divide it already."""
        return digit in joined(self.shape[at], self.dims[at], (digit,))

    def _local(self) -> Any:
        """The current local shape."""
        return local_shape(self.shape, tuple(self.dims))

    def _around(self, at: int, digit: Digit) -> tuple[int, int]:
        """The numbers of local indices before and after a digit."""
        digits = self.dims[at]
        behind = digit.stride // prod(one.ways for one in digits[digits.index(digit) + 1 :])
        return self._local()[at] // behind, behind

    def _divide_all(self, want: Layout) -> None:
        """Make the divisions that cost nothing."""
        for at, digits in enumerate(want.dims):
            for digit in digits:
                if digit.axis not in axes_of(self.dims) | self.sums and self._fits(at, digit):
                    self._split(at, digit)
                    here = place_of(digit.axis, digit.ways)
                    part = part_along(self.x, at + 1, here, here + 1)
                    self.x = build.reshape(part, self._local())

    def _split(self, at: int, digit: Digit) -> None:
        """Make a digit that is not divided yet a dimension of its own, at + 1."""
        self.dims[at] = joined(self.shape[at], self.dims[at], (digit,))
        before, behind = self._around(at, digit)
        beyond = before * digit.ways * behind - self.x.shape[at]
        self.x = split_axis(pad_along(self.x, at, 0, beyond), at, before, digit.ways, behind)

    def _front(self, place: int) -> Node:
        """The part with dimension `place` first, flattened."""
        order = [place, *(axis for axis in range(self.x.ndim) if axis != place)]
        return build.reshape(build.permute(self.x, order), (numel(self.x.shape),))

    def _scatter(self, at: int, digit: Digit) -> None:
        """Add up the terms along a digit's axis, and keep this device's part of the sum."""
        self._split(at, digit)
        flat = self.by.exchange("reduce_scatter", {digit.axis}, self._front(at + 1), "sum")
        self.x, self.sums = build.reshape(flat, self._local()), self.sums - {digit.axis}

    def _gather(self, at: int, digit: Digit) -> None:
        """Collect the parts of all devices along a digit's axis."""
        flat = build.reshape(self.x, (numel(self.x.shape),))
        self._insert(self.by.exchange("all_gather", {digit.axis}, flat), at, digit)

    def _insert(self, flat: Node, at: int, digit: Digit) -> None:
        """Insert the parts of all positions along a digit's axis, which `flat` has in order."""
        (before, behind), local = self._around(at, digit), self._local()
        x = build.reshape(flat, (digit.ways, *local[:at], before, behind, *local[at + 1 :]))
        x = build.permute(x, [*range(1, at + 2), 0, *range(at + 2, x.ndim)])
        x = build.reshape(x, (*local[:at], before * digit.ways * behind, *local[at + 1 :]))
        self.dims[at] = tuple(other for other in self.dims[at] if other != digit)
        self.x = build.shrink(x, [(0, extent) for extent in self._local()])

    def _exchange_digit(self, at: int, digit: Digit, to: int, other: Digit) -> None:
        """all_to_all, if both dimensions divide evenly; otherwise the digit is gathered later."""
        after = joined(self.shape[to], self.dims[to], (other,))
        padded = is_padded(self.shape[at], self.dims[at]) or is_padded(self.shape[to], after)
        if at != to and other in after and not padded:
            self._split(to, other)
            flat = self.by.exchange("all_to_all", {digit.axis}, self._front(to + 1))
            self._insert(flat, at, digit)


def _place(want: Layout, axis: str) -> tuple[int, Digit] | None:
    """The dimension and the digit by which an axis divides it, or None."""
    places = ((at, digit) for at, digits in enumerate(want.dims) for digit in digits)
    return next((place for place in places if place[1].axis == axis), None)
