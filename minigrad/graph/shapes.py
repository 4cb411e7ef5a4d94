"""Positions in arrays: row-major strides, and indices before and after a reshape."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from minigrad.graph.symbolic import Integer, high, typical, weighted


def strides_of(shape: Sequence[Integer]) -> tuple[int, ...]:
    """Row-major strides in elements; symbolic dimensions count with their upper bound."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(high(shape[axis + 1]), 1)
    return tuple(strides)


def numel(shape: Sequence[Integer]) -> int:
    """Number of elements to reserve; symbolic dimensions count with their upper bound."""
    count = 1
    for extent in shape:
        count *= extent if isinstance(extent, int) else extent.high
    return count


def usual_numel(shape: Sequence[Integer]) -> int:
    """Number of elements that an array usually has."""
    return prod(map(typical, shape))


def inner(shape: Sequence[Integer]) -> bool:
    """Whether a dimension other than the first varies: such an array is laid out at its bound."""
    return not all(isinstance(extent, int) for extent in [e for e in shape if e != 1][1:])


def equally_apart(shape: Sequence[Integer]) -> tuple[int, int, int]:
    """The first dimensions of blocks, of rows and of elements that are equally far apart in the
    layout at the bounds: the last three that vary, or 0.
    """
    varying = [axis for axis, extent in enumerate(shape) if not isinstance(extent, int)]
    first, outer, last = (0, 0, *varying)[-3:]
    return first, outer, last


def iterations(extents: Sequence[Integer]) -> Integer:
    """The product of extents; the first that is not 1 may be symbolic.

    (Further symbolic ones count with their upper bound, which is their size in memory.)
    """
    first, *others = [extent for extent in extents if extent != 1] or [1]
    return first * numel(others)


def flatten(index: Sequence[Integer], shape: Sequence[Integer]) -> Integer:
    """Row-major position of `index` in an array of `shape`."""
    return weighted(0, zip(index, strides_of(shape), strict=True))


def unflatten(position: Integer, shape: Sequence[Integer]) -> tuple[Integer, ...]:
    """Inverse of `flatten`."""
    index: list[Integer] = []
    for axis, (extent, stride) in enumerate(zip(shape, strides_of(shape), strict=True)):
        part = 0 if extent == 1 else position // stride
        index.append(part if axis == 0 else part % max(high(extent), 1))
    return tuple(index)


def reshape_index(
    index: Sequence[Integer], shape: Sequence[Integer], old: Sequence[Integer]
) -> tuple[Integer, ...]:
    """Index into `old` of the element that has `index` after a reshape to `shape`.

    Dimensions equal on both sides from the left or the right are passed through. That is also why
    symbolic dimensions work: they may move past ones, but never merge or split.
    """
    new_axes = [axis for axis, extent in enumerate(shape) if extent != 1]
    old_axes = [axis for axis, extent in enumerate(old) if extent != 1]
    result: list[Integer] = [0] * len(old)
    while new_axes and old_axes and shape[new_axes[0]] == old[old_axes[0]]:
        result[old_axes.pop(0)] = index[new_axes.pop(0)]
    while new_axes and old_axes and shape[new_axes[-1]] == old[old_axes[-1]]:
        result[old_axes.pop()] = index[new_axes.pop()]
    if old_axes:
        position = flatten([index[a] for a in new_axes], [shape[a] for a in new_axes])
        parts = unflatten(position, [old[a] for a in old_axes])
        for axis, part in zip(old_axes, parts, strict=True):
            result[axis] = part
    return tuple(result)
