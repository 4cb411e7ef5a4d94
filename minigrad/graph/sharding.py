"""Where the elements of an array are, if the devices of a mesh share it.

A mesh is a grid of devices with named axes ("dp", "tp") that have sizes. Each device has a part of
an array, or all of it. `Layout` says which: the digits of each dimension, and the axes over which
the devices hold partial sums.

A digit (axis, stride) means: the device at position p of a mesh axis of size n has those indices i
of the dimension for which (i // stride) % n = p. A dimension of 8 in two blocks is (axis, 4). Three
blocks of 8, each divided in two, such as queries, keys and values in one matrix, are (axis, 4) in
24. So a digit of a dimension is also a digit of the memory position, and stays one when a reshape
splits or joins dimensions.

If n does not divide the extent, every device has `stride` indices, and the last of them lie beyond
the end. Such a dimension is *padded*; the padding is never visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import NamedTuple

from minigrad.errors import ShapeError, expect
from minigrad.graph.node import Node, Op, Shape, make
from minigrad.graph.shapes import strides_of
from minigrad.graph.symbolic import ceildiv, plain

Sizes = Mapping[str, int]


class Digit(NamedTuple):
    """See the module's docstring. ways: the size of the axis."""

    axis: str
    stride: int
    ways: int


Digits = tuple[Digit, ...]
Dims = tuple[Digits, ...]
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layout:
    """dims: the digits of each dimension, the largest stride first; partial: axes of sums.

    stored: the axes that only store it. If a reader is divided by one of them in another way, it
    gets the array as a whole, rather than change its own division (ZeRO).
    """

    dims: Dims
    partial: frozenset[str] = NONE
    stored: frozenset[str] = NONE

    @property
    def is_whole(self) -> bool:
        """Whether every device has all of it."""
        return not self.partial and not any(self.dims)


def whole(ndim: int) -> Layout:
    """Every device has all of an array."""
    return Layout(((),) * ndim)


def axes_of(dims: Iterable[Digits]) -> frozenset[str]:
    """The axes that divide some dimension."""
    return frozenset(digit.axis for digits in dims for digit in digits)


def period(digits: Digits) -> int:
    """The number of indices after which all digits repeat."""
    return digits[0].stride * digits[0].ways if digits else 1


def is_padded(extent: object, digits: Digits) -> bool:
    """Whether some device has indices beyond the end."""
    return isinstance(extent, int) and extent % period(digits) != 0


def are_valid(extent: object, digits: Digits) -> bool:
    """Whether digits, at least one, the largest first, can divide an extent together."""
    if not isinstance(extent, int) or extent < 1:
        return False
    gaps = [(outer.stride, inner.stride * inner.ways) for outer, inner in pairwise(digits)]
    if any(above % below for above, below in gaps):
        return False
    if extent % period(digits) == 0:
        return True
    return period(digits) > extent and all(above == below for above, below in gaps)


def joined(extent: object, one: Digits, other: Iterable[Digit]) -> Digits:
    """`one`, with those of the other digits that can divide an extent beside it."""
    for digit in other:
        if digit not in one:
            more = tuple(sorted((*one, digit), key=lambda each: -each.stride))
            if are_valid(extent, more):
                one = more
    return one


def blocks(extent: int, axes: Sequence[str], sizes: Sizes, count: int = 1) -> Digits:
    """The digits that divide each of `count` equal blocks by axes, the first axis outermost."""
    step = ceildiv(extent // count, prod(sizes[axis] for axis in axes))
    digits: list[Digit] = []
    for axis in reversed(axes):
        digits.insert(0, Digit(axis, step, sizes[axis]))
        step *= sizes[axis]
    return tuple(digits)


def stored(shape: Shape, dims: Dims, axis: str, sizes: Sizes) -> Dims:
    """`dims` with an axis that divides the first dimension that it can evenly; as it is if none."""
    ways = sizes[axis]
    for at, (extent, digits) in enumerate(zip(shape, dims, strict=True)):
        last = digits[-1].stride if digits else extent
        if ways > 1 and isinstance(last, int) and last % ways == 0 and last > 1:
            more = (*digits, Digit(axis, last // ways, ways))
            if not is_padded(extent, more):
                return (*dims[:at], more, *dims[at + 1 :])
    return dims


def local_shape(shape: Shape, dims: Dims) -> Shape:
    """The shape of the part that each device has."""
    return tuple(
        digits[-1].stride if is_padded(extent, digits)
        else extent // prod(digit.ways for digit in digits)
        for extent, digits in zip(shape, dims, strict=True)
    )  # fmt: skip


def reshaped(old: Shape, dims: Dims, new: Shape) -> tuple[Dims, bool]:
    """The digits after a reshape, and whether all of them could be kept."""
    if not any(dims):
        return ((),) * len(new), True
    if any(not isinstance(extent, int) or extent < 1 for extent in (*old, *new)):
        return ((),) * len(new), False
    found: list[list[Digit]] = [[] for _ in new]
    steps, lost = strides_of(new), False
    for extent, digits, step in zip(old, dims, strides_of(old), strict=True):
        if is_padded(extent, digits):
            same = [at for at, other in enumerate(steps) if other == step and new[at] == extent]
            lost = lost or not same
            if same:
                found[same[0]] += digits
            continue
        for axis, stride, ways in digits:
            first = stride * step
            last = first * ways
            for at, other in enumerate(steps):
                if first % other == 0 and other * plain(new[at]) % last == 0:
                    found[at].append(Digit(axis, first // other, ways))
                    break
            else:
                lost = True
    return tuple(tuple(sorted(digits, key=lambda d: -d.stride)) for digits in found), not lost


# --- layouts in a graph ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """The argument of a MARK: the value has these digits. open: it may still be a partial sum."""

    dims: Dims
    open: bool = False


def mark(x: Node, dims: Dims, is_open: bool = False) -> Node:
    """x, laid out by `dims` on the devices of its mesh."""
    return make(Op.MARK, x.dtype, x.shape, (x,), Mark(dims, is_open), x.device)


def mark_gradient(node: Node, g: Node) -> Node:
    """The gradient of a MARK is divided like its value; it is open if the value is not.

    And the other way round: the gradient of a sum that was open is whole on all devices that have a
    term of it.
    """
    said = node.arg
    return mark(g, said.dims, not said.open) if any(said.dims) or said.open else g


# Name of the device that stands for a mesh → the sizes of its axes.
meshes: dict[str, Sizes] = {}


class P(tuple[object, ...]):
    """Which mesh axes divide which dimension: P("dp", None), P(("dp", "tp")), P(Blocks("tp", 3)).

    One entry for each dimension, from the first; missing ones are None: not divided. Of several
    axes the first is the outermost.
    """

    __slots__ = ()

    def __new__(cls, *entries: object) -> P:
        """See the class."""
        return super().__new__(cls, entries)

    def __getnewargs__(self) -> tuple[object, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return f"P({', '.join(map(repr, self))})"

    def dims(self, shape: Shape, sizes: Sizes, mesh: str) -> Dims:
        """The digits of an array; ShapeError if it cannot be divided so."""
        expect(len(self) <= len(shape), repr(self),
               f"at most {len(shape)} entries, for the dimensions of {tuple(shape)}")  # fmt: skip
        found: list[Digits] = []
        used: set[str] = set()
        for extent, entry in zip(shape, (*self, *(None,) * (len(shape) - len(self))), strict=True):
            names, count = entry if isinstance(entry, Blocks) else (entry, 1)
            axes = () if names is None else (names,) if isinstance(names, str) else names
            if not isinstance(axes, tuple):
                raise ShapeError(f"{self!r}: expected names of axes, as P(\"dp\", None)")
            for axis in axes:
                expect(axis in sizes, f"{self!r}: {mesh} has no axis {axis!r}",
                       f"one of {', '.join(map(repr, sizes))}, or None")  # fmt: skip
                if axis in used:
                    raise ShapeError(f"{self!r}: expected each axis once, got {axis!r} twice")
                used.add(axis)
            axes = tuple(axis for axis in axes if sizes[axis] > 1 and extent != 0)
            if axes and not isinstance(extent, int):
                raise ShapeError(f"{self!r}: cannot divide the symbolic dimension {extent}")
            ways = prod(sizes[axis] for axis in axes)
            even = count == 1 or not axes or not plain(extent) % (count * ways)
            expect(not axes or (extent != 1 and even), f"{self!r}: cannot divide a dimension of "
                   f"{extent} into {count} × {ways}", "a multiple of that, or None")  # fmt: skip
            found.append(blocks(plain(extent), axes, sizes, count) if axes else ())
        return tuple(found)


class Blocks(NamedTuple):
    """An entry of `P`: `blocks` equal blocks one after the other, each divided by the axes.

    So queries, keys and values from one matrix are divided by heads: Blocks("tp", 3).
    """

    axes: str | tuple[str, ...]
    blocks: int


def show(shape: Shape, layout: Layout | None, dtype: str) -> str:
    """A layout as text: float32[64@dp, 784]; 96@3×tp: 3 blocks; + Σtp: a partial sum over tp."""
    dims: Dims = layout.dims if layout is not None else ((),) * len(shape)
    words = []
    for extent, digits in zip(shape, dims, strict=True):
        names = ",".join(digit.axis for digit in digits)
        count = extent // period(digits)
        blocks = f"{count}×" if digits and isinstance(count, int) and count > 1 else ""
        words.append(f"{extent}@{blocks}{names}" if digits else str(extent))
    partial = f" + Σ{','.join(sorted(layout.partial))}" if layout and layout.partial else ""
    return f"{dtype}[{', '.join(words)}]{partial}"
