"""Constructors of nodes: they check their arguments and make obvious simplifications.

The checks are an internal contract (operands of equal shape and dtype). `Tensor` broadcasts and
promotes before it calls them, and has its own error messages for users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import gcd
from typing import Any

from minigrad.dtype import DType, dtypes
from minigrad.errors import DTypeError, ShapeError, misfit
from minigrad.graph.node import (
    ASSIGN,
    BUFFER,
    CONST,
    EXPAND,
    RESHAPE,
    Node,
    Shape,
    device_of,
    is_symbolic,
    is_watched,
    make,
    own_node,
)
from minigrad.graph.node import bitcast as bitcast
from minigrad.graph.node import cast as cast
from minigrad.graph.node import const as const
from minigrad.graph.node import elementwise as elementwise
from minigrad.graph.operations import ELEMENTWISE, REDUCTIONS, SCANS, SCATTERS, Op
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Affine, Integer, high, low
from minigrad.graph.variable import is_general


def buffer(memory: Any, dtype: DType, shape: Shape, device: str) -> Node:
    """An array in memory, row-major; `memory` is a device Buffer or the int slot of a parameter."""
    return make(Op.BUFFER, dtype, tuple(shape), (), memory, device)


def iota(length: Integer, device: str, dtype: DType | None = None) -> Node:
    """0, 1, …, length − 1, of int32 unless a dtype is given, in which they wrap."""
    if dtype is None:
        dtype = dtypes.int32
        _check_positions(length)
    return make(Op.IOTA, dtype, (length,), (), None, device)


def _check_positions(length: Integer) -> None:
    most = dtypes.int32.maximum
    if isinstance(length, int) and length - 1 > most:
        raise ShapeError(f"{length} positions, which are int32: expected at most {most + 1}")


def variable(value: Affine, device: str) -> Node:
    """A symbolic integer as a 0-d int32 array."""
    return make(Op.VARIABLE, dtypes.int32, (), (), value, device)


def reduce(op: Op, x: Node, axes: Sequence[int]) -> Node:
    """A reduction; reduced axes keep length 1. Over no elements it gives the identity.

    Halves are summed in float32: in bfloat16, ones would stop at 256.
    """
    if op not in REDUCTIONS:
        raise ValueError(f"{op} is not a reduction")
    axes = _long_axes(op.value, x, axes)
    if not axes:
        return x
    if op is Op.SUM and x.dtype.is_float and x.dtype.itemsize < 4:
        return cast(reduce(op, cast(x, dtypes.float32), axes), x.dtype)
    shape = tuple(1 if axis in axes else extent for axis, extent in enumerate(x.shape))
    return make(op, x.dtype, shape, (x,), axes, x.device)


def _long_axes(name: str, x: Node, axes: Sequence[int]) -> tuple[int, ...]:
    """Some axes in order, without those of length 1; ShapeError if x lacks one."""
    axes = tuple(sorted(set(axes)))
    if any(not 0 <= axis < x.ndim for axis in axes):
        raise ShapeError(f"{name}: invalid axes {axes} for an array with {x.ndim} dimensions")
    return tuple(axis for axis in axes if x.shape[axis] != 1)


def scan(op: Op, x: Node, axis: int) -> Node:
    """A running reduction (one of `SCANS`) along an axis: out[i] combines x[0] … x[i]."""
    if op not in SCANS:
        raise ValueError(f"{op} is not a cumulative operation")
    _check_axis(op, x, axis)
    return x if x.shape[axis] == 1 else make(op, x.dtype, x.shape, (x,), axis, x.device)


def sort(keys: Node, axis: int) -> Node:
    """The positions (int32) of the keys along an axis, smallest key first, equal ones in order.

    Keys are unsigned integers: `Tensor.sort` maps every other dtype to those, in order.
    """
    if keys.dtype.kind != "u":
        raise DTypeError(f"sort: expected keys of an unsigned integer dtype, got {keys.dtype.name}")
    _check_axis(Op.SORT, keys, axis)
    _check_positions(keys.shape[axis])
    return make(Op.SORT, dtypes.int32, keys.shape, (keys,), axis, keys.device)


def _check_axis(op: Op, x: Node, axis: int) -> None:
    if not 0 <= axis < x.ndim:
        raise misfit(f"{op.value} along axis {axis}", "one of its axes", x)


def distribute(starts: Node, bin: Node, x: Node) -> Node:
    """One pass of a counting sort: appends each element of x to its bin.

        for row in rows:
            next = starts[row]
            for i in range(x.shape[1]):
                out[next[bin[row, i]]++] = x[row, i]

    x and bin (uint8) are (rows, length), starts is (rows, bins) and int32; the result is flat. Each
    bin is in 0 … bins − 1. If the length varies, the result has room for the longest rows. Rows may
    run in any order, so each position is written at most once; those out of range are not written.
    """
    if x.ndim != 2 or bin.shape != x.shape or starts.shape != (x.shape[0], *starts.shape[1:2]):
        raise misfit("distribute", "(rows, bins), (rows, length), (rows, length)", starts, bin, x)
    if starts.dtype is not dtypes.int32 or bin.dtype is not dtypes.uint8:
        given = starts.dtype.name, bin.dtype.name
        raise misfit("distribute", "int32 starts and a uint8 bin", *given, error=DTypeError)
    src = (starts, bin, x)
    shape = (x.shape[0] * high(x.shape[1]),)
    return make(Op.DISTRIBUTE, x.dtype, shape, src, None, device_of(Op.DISTRIBUTE, src))


@lru_cache(maxsize=1 << 12)
def _same_elements(old: Shape, new: Shape) -> bool:
    """Whether a reshape keeps the row-major position of every element."""
    return _segments(old) == _segments(new)


def _segments(shape: Shape) -> list[Integer]:
    """Products of the plain dimensions before, between and after the symbolic ones.

    A dimension 5·n counts as n and 5, which has the same layout.
    """
    parts: list[Integer] = [1]
    for extent in shape:
        if isinstance(extent, int):
            parts[-1] = parts[-1] * extent
        else:
            factor = gcd(extent.constant, *(c for _, c in extent.terms))
            parts += [extent // factor, factor]
    return parts


def _moved(op: Op, x: Node, shape: Shape, arg: Any = None) -> Node:
    """A movement of x; a constant stays a constant."""
    if x.op is CONST:
        return make(CONST, x.dtype, shape, (), x.arg, x.device)
    return make(op, x.dtype, shape, (x,), arg, x.device)


def reshape(x: Node, shape: Shape) -> Node:
    """The same elements in row-major order under another shape."""
    shape = tuple(shape)
    if x.shape == shape:
        return x
    if not _same_elements(x.shape, shape):
        why = f"{numel(x.shape)} elements do not make {numel(shape)}; one size may be -1"
        if is_symbolic(shape) or is_symbolic(x.shape):
            why = "numbers of elements differ (symbolic dimensions can only move past 1s)"
        raise ShapeError(f"cannot reshape {x.shape} to {shape}: {why}")
    return _moved(RESHAPE, x, shape)


def permute(x: Node, order: Sequence[int]) -> Node:
    """out.shape[i] = x.shape[order[i]]."""
    order = tuple(order)
    shape = _permuted(x.shape, order)
    return x if shape is None else _moved(Op.PERMUTE, x, shape, order)


@lru_cache(maxsize=1 << 12)
def _permuted(shape: Shape, order: Sequence[int]) -> Shape | None:
    """The shape in another order; None if the order is unchanged."""
    if sorted(order) != list(range(len(shape))):
        raise ShapeError(f"permute: invalid order {order} for {len(shape)} dimensions")
    if order == tuple(range(len(shape))):
        return None
    return tuple(shape[axis] for axis in order)


@lru_cache(maxsize=1 << 12)
def grows(old: Shape, new: Shape) -> bool:
    """Whether only dimensions of length 1 change from one shape to the other."""
    return len(old) == len(new) and all(a in (1, b) for a, b in zip(old, new, strict=True))


def expand(x: Node, shape: Shape) -> Node:
    """Repeat dimensions of length 1; the number of dimensions stays."""
    shape = tuple(shape)
    if x.shape == shape:
        return x
    if not grows(x.shape, shape):
        raise ShapeError(f"cannot expand {x.shape} to {shape}: only dimensions of size 1 can grow")
    return _moved(EXPAND, x, shape)


def pad(x: Node, amounts: Sequence[tuple[Integer, Integer]]) -> Node:
    """Zeros before and after each dimension."""
    pairs = tuple((before, after) for before, after in amounts)
    if len(pairs) != x.ndim or any(low(a) < 0 or low(b) < 0 for a, b in pairs):
        raise ShapeError(f"pad: expected a pair ≥ 0 per dimension of {x.shape}, got {pairs}")
    if all(pair == (0, 0) for pair in pairs):
        return x
    shape = tuple(e + a + b for e, (a, b) in zip(x.shape, pairs, strict=True))
    if x.op is Op.CONST and x.arg == 0 and str(x.arg)[0] != "-":
        return make(Op.CONST, x.dtype, shape, (), x.arg, x.device)
    return make(Op.PAD, x.dtype, shape, (x,), pairs, x.device)


def shrink(x: Node, ranges: Sequence[tuple[Integer, Integer]]) -> Node:
    """The part start … stop − 1 of each dimension.

    (In a general program, start and stop may be variables that differ per call: see general.py.)
    """
    pairs = tuple([(start, stop) for start, stop in ranges])
    shape = _cut(x.shape, pairs)
    return x if shape is None else _moved(Op.SHRINK, x, shape, pairs)


@lru_cache(maxsize=1 << 12)
def _cut(shape: Shape, ranges: Sequence[tuple[Integer, Integer]]) -> Shape | None:
    """The shape of the part; None if it is the whole array."""
    if len(ranges) != len(shape):
        raise ShapeError(f"shrink: expected a range per dimension of {shape}, got {ranges}")
    for (start, stop), extent in zip(ranges, shape, strict=True):
        beyond = high(stop) > high(extent) and not is_general(stop)
        if low(start) < 0 or low(stop - start) < 0 or beyond:
            raise ShapeError(f"shrink: expected ranges inside shape {shape}, got {ranges}")
    part = tuple([stop - start for start, stop in ranges])
    return None if part == shape and all(start == 0 for start, _ in ranges) else part


def flip(x: Node, axes: Sequence[int]) -> Node:
    """Reverse the order along axes."""
    axes = _long_axes("flip", x, axes)
    return _moved(Op.FLIP, x, x.shape, axes) if axes else x


# Movements that `undone` inverts: each element of the source appears at most once in the result.
UNDONE = (Op.RESHAPE, Op.PERMUTE, Op.FLIP, Op.SHRINK, Op.PAD)


def undone(move: Node, x: Node) -> Node:
    """Invert the movement `move` for an x of its shape; what a SHRINK left out becomes zeros.

    This is the gradient of a movement, and how writes through a view reach its base.
    """
    shape, arg = move.src[0].shape, move.arg
    if move.op is RESHAPE:
        return reshape(x, shape)
    if move.op is Op.PERMUTE:
        return permute(x, sorted(range(x.ndim), key=lambda axis: int(arg[axis])))
    if move.op is Op.FLIP:
        return flip(x, arg)
    if move.op is Op.SHRINK:
        pairs = zip(arg, shape, strict=True)
        return pad(x, [(start, extent - stop) for (start, stop), extent in pairs])
    return shrink(x, inside(move))


def inside(padded: Node) -> list[tuple[Integer, Integer]]:
    """The ranges of a PAD's result that hold its source."""
    pairs = zip(padded.arg, padded.src[0].shape, strict=True)
    return [(before, before + extent) for (before, _), extent in pairs]


FEW = 3  # up to so many pieces are better selected by WHERE when read than joined in memory


def cat(pieces: Sequence[Node], axis: int) -> Node:
    """Concatenate pieces along an axis, where extents must be ints; other extents must be equal.

    Pieces of extent 0 along it are left out.
    """
    first = pieces[0]
    if is_symbolic(tuple(x.shape[axis] for x in pieces)):
        raise misfit(f"cat along axis {axis}", "known sizes along it", *pieces)
    sizes = around(first.shape, axis)
    if any(x.dtype is not first.dtype or around(x.shape, axis) != sizes for x in pieces):
        given = (f"{x.dtype.name} {x.shape}" for x in pieces)
        expected = "equal dtypes, and equal sizes except along that axis"
        raise misfit(f"cat along axis {axis}", expected, *given)
    some = tuple(x for x in pieces if x.shape[axis] != 0)
    if len(some) < 2:
        return some[0] if some else first
    total: Integer = sum((x.shape[axis] for x in some), 0)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    return make(Op.CAT, first.dtype, shape, some, axis, device_of(Op.CAT, some))


def around(shape: Shape, axis: int) -> tuple[Shape, Shape]:
    """The extents before an axis, and those after it."""
    return shape[:axis], shape[axis + 1 :]


Window = tuple[int, int, int, int]  # axis, size, step, dilation


def window(x: Node, windows: Sequence[Window]) -> Node:
    """Windows along axes: out[…w…, …j…] = x[…step·w + dilation·j…].

    Each axis keeps its place and counts the windows that fit; the positions j inside the windows
    are new last dimensions, in the order of `windows`.
    """
    windows = tuple((axis, size, step, dilation) for axis, size, step, dilation in windows)
    shape = list(x.shape)
    for axis, size, step, dilation in windows:
        extent = x.shape[axis] if 0 <= axis < x.ndim else 0
        if min(size, step, dilation) <= 0 or dilation * (size - 1) >= low(extent):
            said = f"window of size {size}, step {step}, dilation {dilation} along axis {axis}"
            raise misfit(said, f"numbers > 0, an axis of at least {dilation * (size - 1) + 1}", x)
        shape[axis] = (extent - dilation * (size - 1) - 1) // step + 1
    if len({axis for axis, *_ in windows}) < len(windows):
        raise ShapeError(f"window: expected each axis once, got {windows}")
    return _moved(Op.WINDOW, x, (*shape, *(size for _, size, _, _ in windows)), windows)


def gather(x: Node, index: Node, axis: int) -> Node:
    """out[…, i, …] = x[…, index[…, i, …], …] along axis; other dimensions are equal.

    An index outside 0 … x.shape[axis] − 1 reads 0.
    """
    _check_addressed("gather", x, index, axis)
    return make(Op.GATHER, x.dtype, index.shape, (x, index), axis, device_of(Op.GATHER, (x, index)))


def scatter_add(base: Node, index: Node, x: Node, axis: int) -> Node:
    """base plus, for each element of x, x added at index along axis; other dimensions are equal.

    An index outside 0 … base.shape[axis] − 1 writes nothing. Additions are made in index order.
    """
    return scatter(Op.SCATTER_ADD, base, index, x, axis)


def scatter(op: Op, base: Node, index: Node, x: Node, axis: int) -> Node:
    """As `scatter_add`, for any of `SCATTERS`."""
    _check_addressed(op.value, base, index, axis)
    if index.shape != x.shape or base.dtype is not x.dtype:
        given = f"base {base.dtype.name}", f"index {index.shape}", f"x {x.dtype.name} {x.shape}"
        raise misfit(op.value, "equal shapes of index and x, equal dtypes of base and x", *given)
    src = (base, index, x)
    return make(op, base.dtype, base.shape, src, axis, device_of(op, src))


def _check_addressed(name: str, x: Node, index: Node, axis: int) -> None:
    if not index.dtype.is_int:
        raise DTypeError(f"{name}: expected an index of an integer dtype, got {index.dtype.name}")
    same = x.ndim == index.ndim and around(x.shape, axis) == around(index.shape, axis)
    if not same or not 0 <= axis < x.ndim:
        raise misfit(f"{name} along axis {axis}", "equal sizes except along that axis", x, index)


def contiguous(x: Node) -> Node:
    """x, stored in a buffer of its own."""
    return x if x.op in (BUFFER, Op.CONTIGUOUS, ASSIGN) else copy_of(x)


def copy_of(x: Node) -> Node:
    """A copy of x in memory of its own, also if x is stored."""
    return make(Op.CONTIGUOUS, x.dtype, x.shape, (x,), None, x.device)


def assign(target: Node, value: Node, row: Integer | None = None) -> Node:
    """`value`, stored in the memory of the BUFFER `target`. Each write is a node of its own.

    row: the first row to write; other rows stay. The program must not read the rows it writes.
    """
    if target.op is not BUFFER:
        raise ValueError(f"assign: expected a BUFFER as target, got {target.op.name}")
    start = 0 if row is None else 1
    if target.shape[start:] != value.shape[start:] or target.dtype is not value.dtype:
        given = (f"{x.shape} {x.dtype.name}" for x in (value, target))
        raise misfit("assign", "equal shapes and dtypes", *given)
    src = (target, value)
    maker = make if is_watched() else own_node
    return maker(ASSIGN, value.dtype, value.shape, src, row, device_of("assign", src))


def copy(x: Node, device: str) -> Node:
    """x on another device."""
    return x if x.device == device else make(Op.COPY, x.dtype, x.shape, (x,), device, device)


def custom(value: Node, sources: Sequence[Node], rule: Any) -> Node:
    """`value`, whose gradients with respect to `sources` are rule(node, g) and nothing else.

    The rule gets this node, perhaps rebuilt on other sources (`node.src[1:]`), and the gradient of
    its value; it gives one gradient per source, None for a source that has none.
    """
    src = (value, *sources)
    return make(Op.CUSTOM, value.dtype, value.shape, src, rule, device_of(Op.CUSTOM, src))


SHAPED = frozenset({RESHAPE, EXPAND})  # their argument is the shape of the result
# Their argument names the dimensions along which they work.
ALONG = frozenset({
    Op.FLIP, Op.WINDOW, Op.SORT, Op.CAT, Op.GATHER, *REDUCTIONS, *SCANS, *SCATTERS
})  # fmt: skip
# Constructors of an operation from its sources and its argument; for other operations, `make`.
_MAKERS: dict[Op, Callable[..., Node]] = {
    **{op: partial(elementwise, op) for op in ELEMENTWISE},
    **{op: partial(reduce, op) for op in REDUCTIONS},
    **{op: partial(scan, op) for op in SCANS},
    **{op: partial(scatter, op) for op in SCATTERS},
    Op.CAST: cast, Op.BITCAST: bitcast, Op.RESHAPE: reshape, Op.EXPAND: expand,
    Op.PERMUTE: permute, Op.PAD: pad, Op.SHRINK: shrink, Op.FLIP: flip, Op.WINDOW: window,
    Op.SORT: sort, Op.GATHER: gather, Op.DISTRIBUTE: distribute, Op.CONTIGUOUS: contiguous,
    Op.CAT: lambda *given: cat(given[:-1], given[-1]),
}  # fmt: skip


def rebuild(node: Node, src: Sequence[Node], arg: Any = None) -> Node:
    """The same operation on other sources, made by its constructor, so it may simplify.

    arg: replaces the node's argument; for a RESHAPE or EXPAND, the new shape.
    """
    src, op = tuple(src), node.op
    if src == node.src and arg is None:
        return node
    if arg is None:
        arg = node.shape if op in SHAPED else node.arg
    maker = _MAKERS.get(op)
    if maker is None:
        return make(op, node.dtype, node.shape, src, arg, node.device)
    return maker(*src) if arg is None else maker(*src, arg)


def along(node: Node, src: Sequence[Node], number: Callable[[int], int]) -> Node:
    """An operation of `ALONG` on other sources, along dimensions with other numbers."""
    arg = node.arg
    if node.op is Op.WINDOW:
        return window(src[0], [(number(axis), *how) for axis, *how in arg])
    return rebuild(node, src, [*map(number, arg)] if isinstance(arg, tuple) else number(arg))
