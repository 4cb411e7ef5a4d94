"""Functions of the standard that move elements: shapes, order, joining, taking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.array_api import dtypes as kinds
from minigrad.array_api.array import Array, _check
from minigrad.errors import expect
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import Axes, axes_of, axis_of


def _common_axis(name: str, axis: int, x1: Array, x2: Array) -> int:
    """An axis of equal extent in both arrays, counted from the end."""
    least = min(x1.ndim, x2.ndim)
    place = axis_of(name, axis, least, 0) - least
    expect(axis < 0 or x1.ndim == x2.ndim, name, "equal ndim, or a negative axis", x1, x2)
    expect(x1.shape[place] == x2.shape[place], name, f"equal sizes along axis {axis}", x1, x2)
    return place


def _check_integers(name: str, x: Array) -> None:
    expect(x.dtype.is_int, name, "an integer dtype", x.dtype.name, error=TypeError)


def broadcast_arrays(*arrays: Array) -> list[Array]:
    """All arrays broadcast to their common shape."""
    _check("broadcast_arrays", kinds.ALL, *arrays)
    tensors = [array._tensor for array in arrays]
    return [Array._of(wide) for wide in Tensor.broadcast_tensors(*tensors)] if arrays else []


def broadcast_to(x: Array, /, shape: Sequence[int]) -> Array:
    """x repeated along axes of extent 1 and new leading axes."""
    expect(min(shape, default=0) >= 0, f"broadcast_to({shape})", "sizes ≥ 0", error=ValueError)
    return Array._of(x._tensor.expand(tuple(shape)))


def concat(arrays: Sequence[Array], /, *, axis: int | None = 0) -> Array:
    """Arrays joined along an axis; flattened first with axis=None."""
    tensors = _promoted(arrays)
    if axis is None:
        tensors, axis = [tensor.flatten() for tensor in tensors], 0
    return Array._of(Tensor.cat(tensors, dim=axis))


def _promoted(arrays: Sequence[Array]) -> list[Tensor]:
    dtype = kinds.result_type(*arrays)
    return [array._tensor.cast(dtype) for array in arrays]


def expand_dims(x: Array, /, axis: int = 0) -> Array:
    """x with a new axis of extent 1; axis may be positional, as in numpy."""
    return Array._of(x._tensor.unsqueeze(axis))


def squeeze(x: Array, /, axis: int | Sequence[int]) -> Array:
    """x without the given axes, which must have extent 1."""
    axes = axes_of("squeeze", axis, x.ndim, 0)
    for one in axes:
        expect(x.shape[one] == 1, "squeeze", f"size 1 for axis {one}", x, error=ValueError)
    kept = tuple(extent for place, extent in enumerate(x.shape) if place not in axes)
    return Array._of(x._tensor.reshape(kept))


def flip(x: Array, /, *, axis: Axes = None) -> Array:
    """x with the order of elements reversed along axes (all by default)."""
    return Array._of(x._tensor.flip(axes_of("flip", axis, x.ndim, 0)))


def permute_dims(x: Array, /, axes: Sequence[int]) -> Array:
    """x with its axes in another order."""
    return Array._of(x._tensor.permute(*axes))


def matrix_transpose(x: Array, /) -> Array:
    """The last two dimensions exchanged."""
    return x.mT


def moveaxis(x: Array, source: int | Sequence[int], destination: int | Sequence[int], /) -> Array:
    """x with axes moved to new places; the others keep their order."""
    places = (axes_of("moveaxis", axes, x.ndim, 0) for axes in (source, destination))
    return Array._of(x._tensor.movedim(*places))


def reshape(x: Array, /, shape: Sequence[int], *, copy: bool | None = None) -> Array:
    """The same elements in another shape."""
    tensor = x._tensor.clone() if copy else x._tensor
    return Array._of(tensor.reshape(tuple(shape)))


def roll(x: Array, /, shift: int | Sequence[int], *, axis: Axes = None) -> Array:
    """x with elements shifted along axes; those shifted out come in at the other end."""
    shifts = [shift] * len(axis) if isinstance(shift, int) and isinstance(axis, tuple) else shift
    return Array._of(x._tensor.roll(shifts, axis))


def stack(arrays: Sequence[Array], /, *, axis: int = 0) -> Array:
    """Arrays of equal shape joined along a new axis."""
    tensors = _promoted(arrays)
    return Array._of(Tensor.stack(tensors, dim=axis_of("stack", axis, arrays[0].ndim + 1, 0)))


def unstack(x: Array, /, *, axis: int = 0) -> tuple[Array, ...]:
    """The parts of x along an axis."""
    return tuple(map(Array._of, x._tensor.unbind(axis)))


def tile(x: Array, repetitions: Sequence[int], /) -> Array:
    """x repeated along each axis."""
    expect(min(repetitions, default=0) >= 0, f"tile({repetitions})", "ints ≥ 0", error=ValueError)
    return Array._of(x._tensor.tile(repetitions))


def repeat(x: Array, repeats: Any, /, *, axis: int | None = None) -> Array:
    """Each element repeated; `repeats` is one number, or an array with one per element."""
    if axis is None:
        x, axis = Array._of(x._tensor.flatten()), 0
    axis = axis_of("repeat", axis, x.ndim, 0)
    if not isinstance(repeats, (int, Array)):
        raise TypeError(f"repeat({repeats!r}): expected an int or an array of ints")
    if isinstance(repeats, int):
        return Array._of(x._tensor.repeat_interleave(repeats, axis))
    _check_integers("repeat", repeats)
    if repeats.size == 1 and repeats.ndim <= 1:
        return repeat(x, int(repeats._tensor.item()), axis=axis)
    expect(repeats.shape == (x.shape[axis],), "repeat", f"1 count, or {x.shape[axis]} (one per "
           f"element of axis {axis})", f"counts of shape {repeats.shape} for {x.shape}")
    counts = repeats._tensor
    if not x.shape[axis]:
        return x
    if int(counts.min().item()) < 0:
        raise ValueError(f"repeat: expected counts ≥ 0, got {int(counts.min().item())}")
    ends = counts.cumsum(0)  # element i of the result comes from the first part that ends after i
    total = int(ends[-1].item())
    places = ends.searchsorted(Tensor.arange(total, device=x.device), right=True)
    return Array._of(_take(x._tensor, places, axis))


def _take(tensor: Any, indices: Any, axis: int) -> Any:
    return tensor._indexed((slice(None),) * axis + (indices,), "take")


def take(x: Array, indices: Array, /, *, axis: int | None = None) -> Array:
    """The elements of x at indices along an axis; negative ones count from the end."""
    if axis is None:
        expect(x.ndim == 1, f"take of shape {x.shape}", "axis=", error=ValueError)
        axis = 0
    place = axis_of("take", axis, x.ndim, 0)
    _check_integers("take", indices)
    expect(indices.ndim == 1, "take", "one-dimensional indices", indices, error=ValueError)
    return Array._of(_take(x._tensor, indices._tensor, place))


def take_along_axis(x: Array, indices: Array, /, *, axis: int = -1) -> Array:
    """out[…, i, …] = x[…, indices[…, i, …], …]; other axes broadcast; indices as for `take`."""
    place = axis_of("take_along_axis", axis, x.ndim, 0)
    return Array._of(x._tensor._take_along("take_along_axis", indices._tensor, place))


check_functions(globals())
