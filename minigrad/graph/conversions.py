"""Values on a mesh in another layout: what is a part of what is there, and what is exchanged.

    whole → divided, partial       a part, or all of it at one device: costs nothing
    partial → whole, divided       all_reduce, reduce_scatter
    divided → whole, other digits  all_gather, all_to_all

All that is here are local nodes. Where a device is along an axis is a variable ("dp_place"), so
that all of them have one graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.axes import pad_along, part_along, split_axis
from minigrad.graph.collective import exchange
from minigrad.graph.node import Node, Shape
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import (
    NONE,
    Digit,
    Digits,
    Dims,
    Layout,
    Sizes,
    axes_of,
    is_padded,
    joined,
    local_shape,
    period,
    radix,
    whole,
)
from minigrad.graph.symbolic import Affine, var


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
    """The group of the devices of a mesh that differ in their places along these axes only."""
    return f"{','.join(axes)} of {mesh}"


def place_name(axis: str) -> str:
    """The variable that is a device's place along an axis."""
    return f"{axis}_place"


class Converter:
    """Converts local values on one device of a mesh, and keeps count of what is sent.

    reader: the node that wants what is being made. after: what is computed before it is gathered.
    """

    def __init__(self, sizes: Sizes, mesh: str, device: str) -> None:
        self.sizes, self.mesh, self.device = sizes, mesh, device
        self.sent: dict[Node, Sent] = {}
        self.reader: Node
        self.after: list[Node] = []

    def convert(self, x: Node, shape: Shape, given: Layout, want: Layout) -> Node:
        """A local part of an array of a shape, in another layout."""
        if given == want:
            return x
        have = [*given.dims]
        sums = given.partial - want.partial
        x = self._divide_all(x, shape, have, want, given.partial)
        for axis in sorted(sums):
            place = _place(want.dims, axis)
            if place is not None and self._fits(shape, have, *place):
                x = self._scatter(x, shape, have, *place)
                sums -= {axis}
        if sums:
            x = self.exchange("all_reduce", sums, x, "sum")
        for at, digits in enumerate(given.dims):
            for digit in digits:
                place = _place(want.dims, digit.axis)
                if place is not None and digit not in want.dims[at]:
                    x = self._exchange_digit(x, shape, have, (at, digit), place)
        for at, digits in enumerate(tuple(have)):
            for digit in reversed(digits):
                if digit not in want.dims[at]:
                    x = self._gather(x, shape, have, at, digit)
        x = self._divide_all(x, shape, have, want, NONE)
        for axis in sorted(want.partial - given.partial):
            x = self._term(x, axis)
        return x

    def _term(self, x: Node, axis: str) -> Node:
        """What all devices have as a sum over an axis: the first one's, and nothing of others."""
        place = var(place_name(axis), 0, self.sizes[axis] - 1)
        assert isinstance(place, Affine)
        number = build.variable(place, self.device)
        mask = build.expand(build.reshape(number.equals(0), (1,) * x.ndim), x.shape)
        return mask.where(x, 0)

    def _fits(self, shape: Shape, have: Sequence[Digits], at: int, digit: Digit) -> bool:
        return digit in joined(shape[at], have[at], (digit,), self.sizes)

    def _divide_all(
        self, x: Node, shape: Shape, have: list[Digits], want: Layout, sums: frozenset[str]
    ) -> Node:
        """Take the parts that cost nothing; `have` is brought up to date, here and below."""
        for at, digits in enumerate(want.dims):
            for digit in digits:
                used = axes_of(have) | sums
                if digit.axis not in used and self._fits(shape, have, at, digit):
                    x, place = self._split(x, shape, have, at, digit)
                    here = var(place_name(digit.axis), 0, self.sizes[digit.axis] - 1)
                    x = part_along(x, place, here, here + 1)
                    x = build.reshape(x, local_shape(shape, tuple(have), self.sizes))
        return x

    def _split(
        self, x: Node, shape: Shape, have: list[Digits], at: int, digit: Digit
    ) -> tuple[Node, int]:
        """x with a digit that all devices have as a dimension of its own, and which that is."""
        have[at] = joined(shape[at], have[at], (digit,), self.sizes)
        before, after = self._around(shape[at], have[at], digit)
        ways = self.sizes[digit.axis]
        beyond = before * ways * after - x.shape[at]
        return split_axis(pad_along(x, at, 0, beyond), at, before, ways, after), at + 1

    def _around(self, extent: Any, digits: Digits, digit: Digit) -> tuple[int, int]:
        """How many local indices there are before and behind a digit."""
        parts = radix(extent, digits, self.sizes)
        place = parts.index((self.sizes[digit.axis], digit.axis))
        free = [(count if not axis else 1) for count, axis in parts]
        return prod(free[:place]), prod(free[place:])

    def _front(self, x: Node, place: int) -> Node:
        """The dimension `place` first, and all flat."""
        order = [place, *(axis for axis in range(x.ndim) if axis != place)]
        return build.reshape(build.permute(x, order), (numel(x.shape),))

    def _scatter(
        self, x: Node, shape: Shape, have: list[Digits], at: int, digit: Digit
    ) -> Node:
        x, place = self._split(x, shape, have, at, digit)
        flat = self.exchange("reduce_scatter", {digit.axis}, self._front(x, place), "sum")
        return build.reshape(flat, local_shape(shape, tuple(have), self.sizes))

    def _gather(
        self, x: Node, shape: Shape, have: list[Digits], at: int, digit: Digit
    ) -> Node:
        flat = build.reshape(x, (numel(x.shape),))
        flat = self.exchange("all_gather", {digit.axis}, flat)
        return self._insert(flat, shape, have, at, digit)

    def _insert(
        self, flat: Node, shape: Shape, have: list[Digits], at: int, digit: Digit
    ) -> Node:
        """The parts of all places along a digit's axis, one after the other, as one array."""
        before, after = self._around(shape[at], have[at], digit)
        local = local_shape(shape, tuple(have), self.sizes)
        ways = self.sizes[digit.axis]
        x = build.reshape(flat, (ways, *local[:at], before, after, *local[at + 1 :]))
        order = [*range(1, at + 2), 0, *range(at + 2, x.ndim)]
        have[at] = tuple(other for other in have[at] if other != digit)
        full = (*local[:at], before * ways * after, *local[at + 1 :])
        x = build.reshape(build.permute(x, order), full)
        goal = local_shape(shape, tuple(have), self.sizes)
        return build.shrink(x, [(0, extent) for extent in goal])

    def _exchange_digit(
        self, x: Node, shape: Shape, have: list[Digits],
        old: tuple[int, Digit], new: tuple[int, Digit],
    ) -> Node:  # fmt: skip
        """all_to_all, where both places divide evenly; otherwise it is gathered later."""
        (at, digit), (to, other) = old, new
        rest = [*have]
        rest[at] = tuple(one for one in have[at] if one != digit)
        padded = is_padded(shape[at], have[at], self.sizes)
        if padded or at == to or not self._fits(shape, rest, to, other):
            return x
        if is_padded(shape[to], joined(shape[to], rest[to], (other,), self.sizes), self.sizes):
            return x
        x, place = self._split(x, shape, have, to, other)
        flat = self.exchange("all_to_all", {digit.axis}, self._front(x, place))
        return self._insert(flat, shape, have, at, digit)

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

    # --- what depends on a device's places --------------------------------------------------------

    def without_padding(
        self, x: Node, axis: int, extent: Any, digits: Digits, instead: Any
    ) -> Node:
        """x, and `instead` where an index along an axis lies beyond the end."""
        if not is_padded(extent, digits, self.sizes):
            return x
        ramp = build.iota(period(digits, self.sizes), self.device)
        total = (ramp.shape[0],)
        own = self.convert(ramp, total, whole(1), Layout((digits,)))
        shape = tuple(x.shape[axis] if at == axis else 1 for at in range(x.ndim))
        mask = build.expand(build.reshape(own.less(extent), shape), x.shape)
        return mask.where(x, instead)

    def own_indices(self, index: Node, extent: Any, digits: Digits) -> Node:
        """Indices into a whole axis as indices into this device's part; −1 for another's."""
        if not digits:
            return index
        narrow = index.dtype is dtypes.int32 or index.dtype.itemsize < 4
        dtype = dtypes.int32 if narrow else dtypes.int64
        value = build.cast(index, dtype)
        mine = value.less(extent)
        for number in range(len(digits) - 1, -1, -1):
            axis, stride = digits[number]
            ways, here = self.sizes[axis], self._place_like(value, axis)
            found = value.operation("idiv", stride).operation("mod", ways)
            mine = mine & found.equals(here)
            blocks = value.operation("idiv", stride * ways)
            value = blocks * stride + value.operation("mod", stride)
            digits = tuple(
                Digit(one.axis, one.stride // ways if at < number else one.stride)
                for at, one in enumerate(digits)
            )
        return mine.where(value, -1)

    def _place_like(self, x: Node, axis: str) -> Node:
        place = var(place_name(axis), 0, self.sizes[axis] - 1)
        assert isinstance(place, Affine)
        one = build.cast(build.variable(place, self.device), x.dtype)
        return build.expand(build.reshape(one, (1,) * x.ndim), x.shape)


def _place(dims: Dims, axis: str) -> tuple[int, Digit] | None:
    """Where an axis divides something."""
    for at, digits in enumerate(dims):
        for digit in digits:
            if digit.axis == axis:
                return at, digit
    return None
