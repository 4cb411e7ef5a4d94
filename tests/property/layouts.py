"""Memory layouts: the ways in which an input may be a view of another array.

Each layout says which base array it needs for a given shape, and how numpy and Tensor create the
view of that base. Both must give the same values; the operation then gets strides, offsets,
repeated elements, padding that is not in memory, or indices with divisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """base_shape(shape) is the base's shape; both view functions give an array of `shape`."""

    base_shape: Callable[[Shape], Shape]
    numpy_view: Callable[[np.ndarray, Shape], np.ndarray]
    tensor_view: Callable[[Any, Shape], Any]


def _axes(shape: Shape) -> tuple[int, ...]:
    return tuple(range(len(shape)))


def _reverse(shape: Shape) -> Shape:
    return tuple(reversed(shape))


def _ones_alternating(shape: Shape) -> Shape:
    """The base's shape: every second dimension, counted from the last, has length 1."""
    count = len(shape)
    return tuple(1 if (count - axis) % 2 == 1 else extent for axis, extent in enumerate(shape))


def _border(extent: int) -> tuple[int, int]:
    """Padding before and after the stored part of a dimension, which may be empty."""
    before = min(1, extent)
    return before, min(1, extent - before)


def _borders(shape: Shape) -> tuple[tuple[int, int], ...]:
    return tuple(_border(extent) for extent in shape)


def _window(shape: Shape) -> tuple[slice, ...]:
    return tuple(slice(2, 2 + extent) for extent in shape)


def _every_second(shape: Shape) -> tuple[slice, ...]:
    return tuple(slice(None, None, 2) for _ in shape)


LAYOUTS: dict[str, Layout] = {
    "contiguous": Layout(lambda s: s, lambda b, s: b, lambda b, s: b),
    "transposed": Layout(
        _reverse,
        lambda b, s: b.transpose(_reverse(_axes(s))),
        lambda b, s: b.permute(_reverse(_axes(s))),
    ),
    "sliced": Layout(
        lambda s: tuple(extent + 3 for extent in s),
        lambda b, s: b[_window(s)],
        lambda b, s: b.shrink(tuple((2, 2 + extent) for extent in s)),
    ),
    "strided": Layout(
        lambda s: tuple(2 * extent for extent in s),
        lambda b, s: b[_every_second(s)],
        lambda b, s: b[_every_second(s)],
    ),
    "flipped": Layout(
        lambda s: s,
        lambda b, s: np.flip(b, _axes(s)),
        lambda b, s: b.flip(_axes(s)),
    ),
    "broadcast": Layout(
        _ones_alternating,
        lambda b, s: np.broadcast_to(b, s),
        lambda b, s: b.expand(s),
    ),
    "padded": Layout(
        lambda s: tuple(n - sum(_border(n)) for n in s),
        lambda b, s: np.pad(b, _borders(s)) if s else b,
        lambda b, s: b.pad(_borders(s)) if s else b,
    ),
    "row": Layout(  # one row of a larger array: the offset is not a multiple of a vector's length
        lambda s: (3, *s),
        lambda b, s: b[1],
        lambda b, s: b[1],
    ),
    "scrambled": Layout(  # reshape after transpose: cannot be described by strides
        lambda s: s,
        lambda b, s: b.transpose(_reverse(_axes(s))).reshape(s),
        lambda b, s: b.permute(_reverse(_axes(s))).reshape(s),
    ),
    "twisted": Layout(  # a flip of a slice of a transpose
        lambda s: tuple(extent + 3 for extent in reversed(s)),
        lambda b, s: np.flip(b.transpose(_reverse(_axes(s)))[_window(s)], _axes(s)),
        lambda b, s: b.permute(_reverse(_axes(s)))
        .shrink(tuple((2, 2 + extent) for extent in s))
        .flip(_axes(s)),
    ),
}  # fmt: skip
