"""Reading and writing parts of a tensor, as numpy does it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import reduce
from itertools import compress, count
from math import prod
from operator import and_
from typing import Any, Self

from minigrad.dtype import dtypes
from minigrad.errors import BoundsError, DTypeError, ShapeError, expect, misfit
from minigrad.graph import build
from minigrad.graph.axes import pad_along, row_of, split_axis
from minigrad.graph.node import Node, Shape, is_symbolic
from minigrad.graph.scans import selected
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Affine, Integer, ceildiv, high, low
from minigrad.graph.variable import evaluate
from minigrad.hints import hint
from minigrad.tensor import views
from minigrad.tensor.broadcasting import broadcast_shape, broadcast_to, product
from minigrad.tensor.core import Core
from minigrad.tensor.elementwise import condition
from minigrad.tensor.hostdata import unpack
from minigrad.tensor.methods import Methods
from minigrad.tensor.results import UNPACKS

SMALL = 4096  # masks of up to so many elements are read by the host


class Indexing(Methods):
    """`x[…]`, `x[…] = y`, gather, scatter and what is made of them."""

    __slots__ = ()

    # --- x[…] -------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Self:
        """numpy's indexing: ints, slices, None, …, integer and boolean tensors (or lists).

        Ints and bounds of slices may be symbolic. The host reads how many elements of a boolean
        tensor are true. BoundsError for an index out of range; for one in a tensor, when it is
        computed.
        """
        return self._indexed(key, "x[…]")

    def _indexed(self, key: Any, name: str) -> Self:
        """self[key]; `name` is for messages."""
        view, arrays, place = self._basic(key, name)
        return view if not arrays else view._take_places(arrays, place)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write to a part in place: `value` is broadcast and cast; at equal places the last wins.

        Leading extents of 1 of a value with more dimensions are ignored.
        BoundsError as in `x[…]`; after one from a tensor of indices, x has no value.
        """
        if isinstance(value, Core) and value._origin is not None:
            view, arrays, _ = self._basic(key, "x[…] = v")
            if not arrays and views.same(view, value):
                return  # x[key] += y: the view has already written it
        if isinstance(key, self.__class__) and key.dtype.is_bool:
            value = _of_rank(value, 1 + self.ndim - key.ndim)
            number = isinstance(value, (bool, int, float))
            one = number or (isinstance(value, Core) and not value.ndim)
            if one or _is_large(key.shape):
                wide = self._leading(key)
                self.assign(self.masked_fill(wide, value) if one else self._filled(key, value))
                return
        view, arrays, place = self._basic(key, "x[…] = v")
        view.assign(view._replaced(arrays, place, value) if arrays else _of_rank(value, view.ndim))

    def _leading(self, mask: Self) -> Self:
        """A mask over the leading dimensions, with extents of 1 for the others."""
        self._check_mask(mask, 0)
        return mask.reshape(mask.shape + (1,) * (self.ndim - mask.ndim))

    def _filled(self, mask: Self, value: Any) -> Self:
        """self with the rows of `value`, in order, where a mask is true; gathered by their place.
        """
        wide = self._leading(mask)
        until = mask.detach().flatten().int().cumsum(0).realize()
        rest = self.shape[mask.ndim :]
        rows = self._filling(value, "x[…] = v")._broadcast_to((int(until[-1].item()), *rest))
        place = (until - 1).reshape((-1, *(1 for _ in rest)))._broadcast_to((*until.shape, *rest))
        return wide.where(rows._at(0, place).reshape(self.shape), self)

    def __iter__(self) -> Iterator[Self]:
        frame = sys._getframe(1)
        code, place = frame.f_code.co_code, frame.f_lasti
        expect(self.ndim, "iteration", "at least one dimension; x.item() is the value", self,
               error=TypeError)  # fmt: skip
        if code[place] == UNPACKS and code[place + 1] != len(self):
            raise ValueError(
                f"cannot unpack {len(self)} parts of a tensor of shape {self.shape} into "
                f"{code[place + 1]} names; {hint('v, i, j = x.max(1)')}"
            )
        return (self[place] for place in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        return bool(self.eq(value).any())

    def _basic(self, key: Any, name: str) -> tuple[Self, dict[int, Self], int]:
        """The view that ints, slices and None give, and the arrays that index its dimensions.

        Third, the position in the result of the arrays' own dimensions: where the arrays (and ints)
        were if they were side by side, else 0, as in numpy.
        """
        if key.__class__ is int and self.raw.shape:
            number = _place(key, 0, self.raw.shape[0], self.raw.shape)
            return self._view(lambda node: row_of(node, number)), {}, 0
        items, listed = self._items(key)
        # an int counts as an array if there are arrays
        advanced = [
            at for at, item in enumerate(items)
            if not (item is None or item is Ellipsis or isinstance(item, slice))
        ]  # fmt: skip
        place = 0
        if advanced and advanced[-1] - advanced[0] < len(advanced):
            place = advanced[0] - (Ellipsis in items[: advanced[0]])
        cuts: list[tuple[Integer, Integer, int]] = []  # start, stop and step of each dimension
        kept: list[int | None] = []  # the result's dimensions, None for new ones
        arrays: dict[int, Self] = {}
        for item in items:
            axis = len(cuts)
            if item is None or item is Ellipsis:
                kept += [None] * (item is None)
            elif isinstance(item, Core):
                for number, array in enumerate(self._arrays(item, axis, name, id(item) in listed)):
                    arrays[len(kept)] = array
                    kept.append(axis + number)
                    cuts.append((0, self.shape[axis + number], 1))
            elif isinstance(item, slice):
                kept.append(axis)
                cuts.append(_slice(item, self.shape[axis]))
            else:
                start = _place(item, axis, self.shape[axis], self.shape)
                cuts.append((start, start + 1, 1))

        def part(node: Node) -> Node:
            node = _cut(node, cuts)
            extents = [1 if axis is None else node.shape[axis] for axis in kept]
            return build.reshape(node, tuple(extents))

        return self._view(part), arrays, place

    def _items(self, key: Any) -> tuple[list[Any], set[int]]:
        """One item per dimension or mask, and None for new ones; arrays are tensors of integers.

        An Ellipsis that stands for no dimension is kept, because it separates its neighbours. Also
        the ids of the arrays whose values the host has.
        """
        items: list[Any] = []
        listed: set[int] = set()
        used, rest = 0, [slice(None)] * self.ndim
        place: int | None = None
        for given in key if isinstance(key, tuple) else (key,):
            item = self._as_index(given)
            if isinstance(item, Core):
                used += item.ndim if item.dtype.is_bool else 1
                listed |= set() if isinstance(given, Core) else {id(item)}
            elif item is Ellipsis:
                if place is not None:
                    raise BoundsError("an index may contain only one … (Ellipsis)")
                place = len(items)
            else:
                used += item is not None
            items.append(item)
        if used > self.ndim:
            raise BoundsError(
                f"too many indices: {used} for a tensor with {self.ndim} dimensions, shape "
                f"{self.shape}"
            )
        place = len(items) if place is None else place
        items[place : place + 1] = rest[used:] or items[place : place + 1]
        return items, listed

    def _arrays(self, item: Any, axis: int, name: str, known: bool) -> list[Self]:
        """Checked positions along one axis or several; known: the host has, and checks, the values.
        """
        if item.dtype.is_bool:  # the host reads how many are true, and all of a small mask
            self._check_mask(item, axis)
            if not item.ndim:
                raise BoundsError("cannot index with a 0-d mask; use where() or masked_fill()")
            return item._unravelled(item._places())
        if known:
            _check_known(item, axis, self.shape)
            return [item]
        return [item._checked(self.shape[axis], name, f"elements of dimension {axis}", wraps=True)]

    def _as_index(self, item: Any) -> Any:
        if item is None or item is Ellipsis or type(item) in (int, slice, Affine):
            return item
        if isinstance(item, bool):
            raise DTypeError("cannot index with a bool; use a bool tensor, or None for a new axis")
        if isinstance(item, str):
            raise TypeError(f"x[{item!r}]: " + hint('x["a"]'))
        if not isinstance(item, Core):
            if hasattr(item, "__index__") and not hasattr(item, "shape"):
                return item.__index__()
            empty = isinstance(item, (list, tuple, range)) and not item
            dtype = dtypes.default_int if empty else None
            item = self.__class__(item, device=self.raw.device, dtype=dtype)
        if item.dtype.is_float:
            what, expected = item.dtype.name, "integers or bool; use .int()"
            raise misfit("index", expected, what, error=DTypeError)
        return item if item.dtype.is_bool else item.detach()

    def _check_mask(self, mask: Core, axis: int) -> None:
        wanted = self.shape[axis : axis + mask.ndim]
        if mask.shape != wanted:
            said = f"mask at dimension {axis} of shape {self.shape}"
            raise misfit(said, f"shape {wanted}", mask, error=BoundsError)

    def _places(self) -> Self:
        """The positions where the flattened mask is true, an int32 vector."""
        if not _is_large(self.shape):  # for small ones, a program per size would not pay off
            places = list(compress(count(), self._bytes()))
            return self.__class__(places, dtype=dtypes.default_int, device=self.raw.device)
        found, number = map(self._new, selected(self.detach().flatten().node))
        self.__class__.realize(found, number)
        return found._part(0, 0, int(number.item()))

    # --- integer arrays ---------------------------------------------------------------------------

    def _plan_places(
        self, arrays: dict[int, Self], wraps: bool = True
    ) -> tuple[list[int], Self, Self]:
        """Dimensions, indexed ones first; self with those merged into rows; each place's row.

        wraps: negative indices count from the end.
        """
        axes = sorted(arrays)
        order = axes + [axis for axis in range(self.ndim) if axis not in arrays]
        extents = [self.shape[axis] for axis in axes]
        shape = broadcast_shape("index", *(arrays[axis].shape for axis in axes))
        indices = [arrays[axis]._wide_index(prod(map(high, extents))) for axis in axes]
        if wraps:
            indices = [self._wrapped(i, axis) for i, axis in zip(indices, axes, strict=True)]
        flat = indices[0]
        for index, extent in zip(indices[1:], extents[1:], strict=True):
            flat = flat * extent + index
        if len(axes) > 1:  # an index out of range must not become another in range
            if is_symbolic(tuple(extents)):
                raise ShapeError("cannot use several index arrays on a symbolic dimension")
            fits = ((i >= 0) & (i < extent) for i, extent in zip(indices, extents, strict=True))
            flat = reduce(and_, fits).where(flat, -1)
        rest = (self.shape[axis] for axis in order[len(axes) :])
        return order, self.permute(*order).reshape((product(extents), *rest)), flat.expand(shape)

    def _wrapped(self, index: Self, axis: int) -> Self:
        """An index array with negative elements counted from the end."""
        index = index._wide_index(high(self.shape[axis]))
        return (index < 0).where(index + self._count(axis, index.dtype), index)

    def _wide_index(self, most: float = 0) -> Self:
        """A checked index array as signed integers that can hold positions up to `most`."""
        if most > dtypes.int32.maximum or self.dtype in (dtypes.uint32, dtypes.uint64):
            return self.cast(dtypes.int64)
        return self.int() if self.dtype.itemsize < 4 else self

    def _take_places(self, arrays: dict[int, Self], place: int, wraps: bool = True) -> Self:
        _, x, flat = self._plan_places(arrays, wraps)
        axis = 0
        if len(arrays) == 1:  # along its own axis: gradients are added in that layout, too
            (axis,), x = arrays, self
        count, before, behind = product(flat.shape), x.shape[:axis], x.shape[axis + 1 :]
        column = flat.reshape((*(1 for _ in before), count, *(1 for _ in behind)))
        taken = x._at(axis, column._broadcast_to((*before, count, *behind)))
        taken = taken.reshape((*before, *flat.shape, *behind))
        inside = list(range(axis, axis + flat.ndim))
        others = [dimension for dimension in range(taken.ndim) if dimension not in inside]
        return taken.permute(*others[:place], *inside, *others[place:])

    def _replaced(self, arrays: dict[int, Self], place: int, value: Any) -> Self:
        """self with the elements at index arrays replaced; at equal places the last one wins."""
        order, rows, flat = self._plan_places(arrays)
        rest = rows.shape[1:]
        wanted = rest[:place] + flat.shape + rest[place:]
        given = self._filling(_of_rank(value, len(wanted)), "x[…] = v")._broadcast_to(wanted)
        back = list(range(place, place + flat.ndim)) + list(range(place))
        given = given.permute(*back, *range(place + flat.ndim, given.ndim))
        count = product(flat.shape)
        places = flat.reshape((count, *(1 for _ in rest)))
        new = rows._last_written(0, places, given.reshape((count, *rest)))
        inverse = sorted(range(self.ndim), key=order.__getitem__)
        return new.reshape(tuple(self.shape[axis] for axis in order)).permute(*inverse)

    # --- methods built on indexing ---------------------------------------------------------------

    def take(self, index: Core) -> Self:
        """Elements of the flattened tensor; negative indices count from the end, as in `x[…]`.

        >>> Tensor([[1, 2], [3, 4]]).take(Tensor([3, 0])).tolist()
        [4, 1]
        """
        return self.flatten()._indexed(index, "take")

    def masked_select(self, mask: Core) -> Self:
        """The elements where mask is true, as a vector; the host reads how many there are.

        >>> Tensor([1, 2]).masked_select(Tensor([False, True])).tolist()
        [2]
        """
        shape = broadcast_shape("masked_select", self.shape, mask.shape)
        wide = self._new(broadcast_to(condition("masked_select", mask), shape))
        return self._broadcast_to(shape)[wide]

    def nonzero(self, *, as_tuple: bool = False, size: int | None = None) -> Any:
        """Positions of elements that are not 0, int32 of shape (count, ndim).

        The host reads how many there are. as_tuple: a vector for each dimension instead. size:
        exactly so many rows, filled up with zeros at the end, without reading anything.

        >>> Tensor([0, 7]).nonzero().tolist()
        [[1]]
        """
        mask = self.ne(0)
        if size is not None:
            flat = mask.flatten()
            order = (~flat).cast("uint8").argsort(0)[:size]  # stable: nonzero ones first
            order = flat._at(0, order).where(order, 0).pad([(0, size - order._known_shape()[0])])
        else:
            order = mask._places()
        places = self._unravelled(order)
        if as_tuple:
            return tuple(places or [order])  # a number counts as a vector of one
        return places[0].stack(*places[1:], dim=-1) if places else order.unsqueeze(1)[:, :0]

    def _unravelled(self, flat: Any) -> list[Self]:
        """Positions in the flattened tensor as positions along each dimension."""
        found: list[Self] = []
        for extent in self._known_shape()[:0:-1]:
            found.append(flat % max(extent, 1))
            flat = flat // max(extent, 1)
        return [flat, *found[::-1]] if self.ndim else []

    def embedding(self, weight: Core) -> Self:
        """Rows of weight (classes, width) at the integers in self: shape self.shape + (width,).

        BoundsError if one of them is not in 0 … classes − 1.

        >>> Tensor([1, 0]).embedding(Tensor([[1.0], [2.0]])).tolist()
        [[2.0], [1.0]]
        """
        return self._rows_of(weight, "embedding")

    def _rows_of(self, weight: Core, name: str) -> Self:
        """`embedding`; `name` is for messages."""
        if not self.dtype.is_int or weight.ndim != 2:
            what = f"{self.dtype.name} {self.shape} and a weight {weight.shape}"
            how = "" if self.dtype.is_int else "; write x.int()"
            raise misfit("embedding", f"integers and a weight (classes, width){how}", what)
        index = self._checked(weight.shape[0], name, "rows")
        return self._new(weight.node)._take_places({0: index}, 0, wraps=False)


def _is_large(mask: Shape) -> bool:
    return not is_symbolic(mask) and numel(mask) > SMALL


def _of_rank(value: Any, ndim: int) -> Any:
    """A tensor or array without leading extents of 1 that are more than `ndim` dimensions."""
    more = getattr(value, "ndim", 0) - ndim
    return value.reshape(value.shape[more:]) if more > 0 and {*value.shape[:more]} == {1} else value


def _check_known(index: Core, axis: int, shape: Shape) -> None:
    """BoundsError if a list of the host has an index that is out of range."""
    values = index.raw.arg.copy_out() if index.numel() else b""
    for value in unpack(values, index.dtype):
        _place(value, axis, shape[axis], shape)


def _place(item: Any, axis: int, extent: Integer, shape: Shape) -> Integer:
    """The position that an int index means; negative ones count from the end."""
    if isinstance(item, Affine):
        place: Integer = item
    else:
        place = item + extent if item < 0 else item
    count = evaluate(extent, {})  # its current value
    if low(place) < 0 or high(place) >= high(extent) or evaluate(place, {}) >= count:
        raise BoundsError(
            f"index {item} is out of range for dimension {axis} of shape {shape}; expected "
            f"{-count} … {count - 1}"
        )
    return place


def _slice(item: slice, extent: Integer) -> tuple[Integer, Integer, int]:
    """start, stop and step; for a negative step, of the flipped dimension."""
    if item.start is item.stop is item.step is None:
        return 0, extent, 1
    step = 1 if item.step is None else _int(item.step)
    if step == 0:
        raise ShapeError("slice: expected a step that is not 0")
    if any(isinstance(x, Affine) for x in (item.start, item.stop, extent)):
        if step != 1:
            raise ShapeError(f"slice: expected step 1 with symbolic bounds, got {step}")
        start = _bound(item.start, 0, extent)
        stop = _bound(item.stop, extent, extent)
        if evaluate(stop, {}) > (count := evaluate(extent, {})):
            raise ShapeError(f"slice: expected a stop up to {extent} = {count}, got {stop}")
        return start, stop, 1
    assert isinstance(extent, int)
    first, last = (None if end is None else _int(end) for end in (item.start, item.stop))
    start, stop, step = slice(first, last, step).indices(extent)
    if step > 0:
        return start, max(stop, start), step
    start, stop = extent - 1 - start, extent - 1 - stop
    return start, max(stop, start), step


def _int(x: Any) -> int:
    if hasattr(x, "__index__"):
        return int(x.__index__())
    raise TypeError(f"slice: expected ints or None, got {x!r}")


def _bound(given: Any, default: Integer, extent: Integer) -> Integer:
    if given is None:
        return default
    if isinstance(given, Affine):
        return given
    value = _int(given)
    return value + extent if value < 0 else value


def _cut(node: Node, cuts: list[tuple[Integer, Integer, int]]) -> Node:
    """Slices, with steps, of every dimension."""
    node = build.flip(node, [axis for axis, (*_, step) in enumerate(cuts) if step < 0])
    node = build.shrink(node, [(start, stop) for start, stop, _ in cuts])
    for axis, (*_, step) in enumerate(cuts):
        if abs(step) > 1:
            node = _every(node, axis, abs(step))
    return node


def _every(node: Node, axis: int, step: int) -> Node:
    """Elements 0, step, 2·step, … along an axis: padded to whole steps, reshaped, cut."""
    extent = node.shape[axis]
    assert isinstance(extent, int)
    count = ceildiv(extent, step)
    folded = split_axis(pad_along(node, axis, 0, count * step - extent), axis, count, step)
    return row_of(folded, 0, axis + 1)
