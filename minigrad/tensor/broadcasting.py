"""What tensor methods need of nodes: broadcasting, promotion, axes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

from minigrad.dtype import DType, check_holds, dtype_of, dtypes
from minigrad.errors import AxisError, ShapeError, misfit
from minigrad.graph import build
from minigrad.graph.node import Node, Op, Shape
from minigrad.graph.symbolic import Affine, Integer

Scalar = int | float | bool
Axis = int | None
Axes = int | Sequence[int] | None


def show(shape: Sequence[Integer]) -> str:
    """A shape as users write it."""
    inside = ", ".join(str(extent) for extent in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"


def stop(node: Node) -> Node:
    """The same values as a barrier for gradients: BITCAST has none, and costs nothing."""
    if not node.dtype.is_float or node.op is Op.CONST:
        return node
    return build.bitcast(build.bitcast(node, node.dtype.unsigned), node.dtype)


def product(shape: Sequence[Integer]) -> Integer:
    """Number of elements; at most one dimension may be symbolic."""
    return functools.reduce(operator.mul, shape, 1)


@functools.lru_cache(maxsize=1 << 12)
def broadcast_shape(name: str, *shapes: Shape) -> Shape:
    """The common shape by numpy's rule: aligned at the right, extents of 1 are repeated."""
    result: list[Integer] = []
    for position in range(1, max(map(len, shapes)) + 1):
        extents = [shape[-position] for shape in shapes if len(shape) >= position]
        wide = next((extent for extent in extents if extent != 1), 1)
        if any(extent != wide and extent != 1 for extent in extents):
            raise ShapeError(
                f"{name}: shapes {' and '.join(show(shape) for shape in shapes)} do not broadcast: "
                f"dimension {-position} has sizes "
                f"{' and '.join(str(extent) for extent in extents)}, expected equal sizes or 1"
            )
        result.append(wide)
    return tuple(reversed(result))


def broadcast_to(node: Node, shape: Shape, name: str = "expand") -> Node:
    """The node repeated to `shape`, with new dimensions at the left."""
    if node.shape == shape:
        return node
    wide = (1,) * (len(shape) - len(node.shape)) + node.shape
    try:
        return build.expand(build.reshape(node, wide), shape)
    except ShapeError:
        said = f"{name}: shape {show(node.shape)} does not broadcast to {show(shape)}"
        raise ShapeError(said) from None


def scalar_dtype(name: str, value: Scalar, dtype: DType) -> DType:
    """The dtype in which `value` is combined with an array of `dtype`: scalars are weakly typed.

    RangeError for an int that this dtype does not hold.
    """
    if isinstance(value, bool):
        return dtype
    if isinstance(value, int):
        check_holds(name, dtype, value)
        return dtype_of(name, (value,)) if dtype.is_bool else dtype
    return dtype if dtype.is_float else dtypes.default_float


def check_flag(name: str, what: str, value: object) -> None:
    """TypeError unless a flag is a bool: an axis or dtype may have been given in its place."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}({what}={value!r}): expected True or False")


def check_choice(name: str, choices: Collection[object], **given: object) -> None:
    """ValueError for a value that is not among the choices."""
    for what, value in given.items():
        if value not in choices:
            *most, last = map(repr, choices)
            raise ValueError(f"{name}({what}={value!r}): expected {', '.join(most)} or {last}")


def check_ints(name: str, **given: object) -> tuple[Any, ...]:
    """The values as ints (or symbolic integers); TypeError for others, such as floats and strings.
    """
    for what, value in given.items():
        if not isinstance(value, (Integral, Affine)) or isinstance(value, bool):
            raise TypeError(f"{name}({what}={value!r}): expected an int")
    return tuple(map(as_python, given.values()))


def plain_sizes(name: str, *sizes: Integer) -> list[int]:
    """Sizes as ints; ShapeError for those that a Variable gives, for what needs to know them."""
    found = [size for size in sizes if isinstance(size, int)]
    if len(found) < len(sizes):
        raise misfit(name, "sizes that are numbers, not Variables", show(sizes))
    return found


def check_share(name: str, **given: object) -> None:
    """ValueError for a number outside 0 … 1, as for probabilities; TypeError for other values."""
    for what, value in given.items():
        if not isinstance(value, Real):
            raise TypeError(f"{name}({what}={value!r}): expected a number in 0 … 1")
        if not 0 <= float(value) <= 1:
            raise ValueError(f"{name}({what}={value}): expected a number in 0 … 1")


def as_python(value: Any) -> Any:
    """A number of another type, such as numpy's, as an int or float; other values unchanged."""
    if isinstance(value, (int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def axis_of(name: str, axis: int, ndim: int, least: int = 1) -> int:
    """An axis counted from the left; negative ones count from the right.

    least: 1 lets a tensor without dimensions have an axis of extent 1; 0 does not.
    """
    axis = as_python(axis)
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise TypeError(f"{name}: expected an int as axis, got {axis!r}")
    count = max(ndim, least)
    if not -count <= axis < count:
        numbers = f"{-count} … {count - 1}; -1 is the last"
        raise AxisError(
            f"{name}: axis {axis} is out of range for a tensor with {ndim} dimensions; expected "
            f"{numbers if count else 'at least one dimension, as in x[None]'}"
        )
    return axis % ndim if ndim else 0


def axes_of(name: str, axes: Axes, ndim: int, least: int = 1) -> tuple[int, ...]:
    """Axes counted from the left; None means all of them. least: as for `axis_of`."""
    if axes is None:
        return tuple(range(ndim))
    given = tuple(axes) if isinstance(axes, (tuple, list)) else (axes,)
    found = tuple(axis_of(name, axis, ndim, least) for axis in given)
    if len(set(found)) != len(found):
        raise ShapeError(f"{name}: axes {given} contain an axis twice")
    return found if ndim else ()
