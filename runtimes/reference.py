"""The reference device, REF: evaluates a graph node by node with numpy.

It is slow and plain on purpose. The functions of this file define what an operation means on every
device, edge cases included. `evaluate` also runs a graph of any device in float64, with which
gradients and losses are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from minigrad.collective import Exchange
from minigrad.device import Buffer, Rows, Runtime
from minigrad.dtype import DType, dtypes
from minigrad.errors import DeviceError, misfit
from minigrad.graph import build
from minigrad.graph.canonical import Graph
from minigrad.graph.collective import Collective, exchanges_in_order
from minigrad.graph.node import Node, Shape, topological
from minigrad.graph.operations import ELEMENTWISE, REDUCTIONS, SCANS, SCATTERS, STEPS, Op
from minigrad.graph.rewrite import rewrite
from minigrad.graph.shapes import numel
from minigrad.graph.simplify import two_as_one
from minigrad.graph.symbolic import high
from minigrad.graph.variable import evaluate as number

Array = NDArray[Any]

_NUMPY: dict[DType, np.dtype[Any]] = {
    dtype: np.dtype(ml_dtypes.bfloat16 if dtype is dtypes.bfloat16 else dtype.name)
    for dtype in vars(dtypes).values()
    if isinstance(dtype, DType)
}


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy dtype of a minigrad dtype (bfloat16: ml_dtypes')."""
    return _NUMPY[dtype]


class Frame:
    """The context of one evaluation: the variables' values and the precision.

    wide: every float node is evaluated in float64, whatever its dtype.
    """

    def __init__(self, variables: Mapping[str, int], wide: bool) -> None:
        self.variables, self.wide = variables, wide

    def dtype(self, dtype: DType) -> np.dtype[Any]:
        """The numpy dtype in which values of `dtype` are held."""
        return np.dtype(np.float64) if self.wide and dtype.is_float else _NUMPY[dtype]

    def shape(self, shape: Shape) -> tuple[int, ...]:
        """A shape with this call's extents."""
        return tuple(number(extent, self.variables) for extent in shape)


# --- elementwise ---------------------------------------------------------------------------------


def _is_float(x: Array) -> bool:
    return x.dtype.kind == "f" or x.dtype == _NUMPY[dtypes.bfloat16]


def _widened(x: Array) -> Array:
    """float16 and bfloat16 are computed in float32 and rounded once."""
    return x.astype(np.float32) if _is_float(x) and x.dtype.itemsize == 2 else x


def _function_of(op: Op) -> Callable[..., Any]:
    """The function that computes an elementwise operation on arrays.

    As in numpy, integers divided by 0 give 0, with remainder 0; the least one divided by −1 is
    itself; and a shift by a negative count, or by the width or more, gives 0, or the sign.
    """
    facts = op.facts
    if not facts.numpy:
        return lambda *operands: _by_formula(op, operands)
    function: Callable[..., Any] = getattr(np, facts.numpy)
    if facts.formula:  # in float64, rounded once, so that a comparison shows the device's error
        return lambda *operands: function(*(x.astype(np.float64) for x in operands))
    return function


def _by_formula(op: Op, operands: Sequence[Array]) -> Array:
    """The formula of an operation, in float64; or in uint32, where it is exact."""
    dtype = dtypes.float64 if "f" in op.facts.kinds else dtypes.uint32
    nodes = [build.buffer(n, dtype, x.shape, "REF") for n, x in enumerate(operands)]
    formula: Any = op.facts.formula
    root: Node = formula(*nodes)
    given = [x.astype(_NUMPY[dtype]) for x in operands]
    (found,) = _compute(topological([root]), [root], lambda x: given[x.arg], Frame({}, wide=False))
    return found


def _elementwise(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    chosen = node.op is Op.WHERE  # it computes nothing: a NaN keeps its bits
    function = _function_of(node.op)
    result = np.asarray(function(*(x if chosen else _widened(x) for x in src)))
    return result.astype(frame.dtype(node.dtype), copy=False)


def _cast(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    """Float → int truncates and saturates, NaN → 0; int → int wraps; anything → bool is x ≠ 0."""
    x, dtype = src[0], node.dtype
    if dtype.is_bool:
        return np.asarray(_widened(x) != 0)
    target = frame.dtype(dtype)
    if not (dtype.is_int and _is_float(x)):
        via_float32 = dtype is dtypes.bfloat16 and not frame.wide
        return (x.astype(np.float32) if via_float32 else x).astype(target)
    whole = np.trunc(x.astype(np.float64))
    low, high_ = int(dtype.minimum), int(dtype.maximum)
    # float(high_) may round up to high_ + 1, which is a power of two and so is always exact
    below, above = whole < float(low), whole >= float(high_ + 1)
    fits = ~(below | above | np.isnan(whole))
    result = np.where(fits, whole, 0.0).astype(target)
    result = np.where(below, np.array(low, target), result)
    return np.where(above, np.array(high_, target), result)


def _bitcast(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    inner = node.src[0]
    narrow = np.ascontiguousarray(src[0].astype(_NUMPY[inner.dtype])).reshape(src[0].shape)
    return narrow.view(_NUMPY[node.dtype]).astype(frame.dtype(node.dtype))


# --- reductions ----------------------------------------------------------------------------------


def _reduce(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    """float16 and bfloat16 accumulate in float32, everything else in its own dtype.

    Over no elements: 0, dtype.minimum, 1. On bool SUM and MAX are "any" and PROD is "all".
    """
    x = _widened(src[0])
    kept = [axis for axis in range(x.ndim) if axis not in node.arg]
    count = math.prod(x.shape[axis] for axis in node.arg)
    # the reduced elements are adjacent, so that numpy sums them pairwise
    rows = np.ascontiguousarray(x.transpose(*kept, *node.arg))
    rows = rows.reshape(*(x.shape[axis] for axis in kept), count)
    how: dict[str, Any] = {} if rows.dtype == np.bool_ else {"dtype": rows.dtype}
    if node.op is Op.MAX:
        how["initial"] = node.dtype.minimum
    result = _combining(node.op, node.dtype).reduce(rows, axis=-1, **how)
    return np.asarray(result).astype(frame.dtype(node.dtype)).reshape(frame.shape(node.shape))


def _combining(op: Op, dtype: DType) -> np.ufunc:
    """The function of one step of a reduction."""
    step: np.ufunc = getattr(np, STEPS[op][-1 if dtype.is_bool else 0].facts.numpy)
    return step


def _scan(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    """A running reduction; it accumulates in the dtypes of `_reduce`."""
    x = _widened(src[0])
    if node.op is Op.CUMSUM and _is_float(x):
        return _running_sum(x, node.arg).astype(frame.dtype(node.dtype))
    running = _combining(SCANS[node.op], node.dtype).accumulate(x, axis=node.arg)
    return np.asarray(running).astype(frame.dtype(node.dtype))


def _running_sum(x: Array, axis: int) -> Array:
    """Sums of blocks of 64, each added to the blocks before: see loops/assemble.py for why."""
    length = x.shape[axis]
    rows = np.moveaxis(x, axis, -1)
    if length > 64:
        missing = -length % 64
        padded = np.pad(rows, [*[(0, 0)] * (x.ndim - 1), (0, missing)])
        blocks = padded.reshape(*rows.shape[:-1], -1, 64)
        own = np.add.accumulate(blocks, axis=-1)
        before = _running_sum(own[..., :-1, -1], x.ndim - 1)
        own[..., 1:, :] += before[..., np.newaxis]
        rows = own.reshape(padded.shape)[..., :length]
    else:
        rows = np.add.accumulate(rows, axis=-1)
    return np.moveaxis(rows, -1, axis)


# --- movement ------------------------------------------------------------------------------------


def _pad(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    result = np.zeros(frame.shape(node.shape), src[0].dtype)
    starts = (number(before, frame.variables) for before, _ in node.arg)
    inside = tuple(slice(s, s + n) for s, n in zip(starts, src[0].shape, strict=True))
    result[inside] = src[0]
    return result


def _shrink(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    pairs = (frame.shape(pair) for pair in node.arg)
    return src[0][tuple(slice(start, stop) for start, stop in pairs)]


# --- indexed access ------------------------------------------------------------------------------


def _places(index: Array, axis: int, extent: int) -> tuple[Array, tuple[Array, ...]]:
    """Which indices are in 0 … extent − 1, and where each of those points, one array per axis."""
    valid = (index >= 0) & (index < extent)
    places = list(np.nonzero(valid))
    places[axis] = index[valid].astype(np.int64)
    return valid, tuple(places)


def _window(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    x = src[0]
    for axis, size, step, dilation in node.arg:
        reach = dilation * (size - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis)
        places = [slice(None)] * windows.ndim
        places[axis], places[-1] = slice(None, None, step), slice(None, None, dilation)
        x = windows[tuple(places)]
    return x


def _gather(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    x, index = src
    valid, places = _places(index, node.arg, x.shape[node.arg])
    result = np.zeros(index.shape, x.dtype)
    result[valid] = x[places]
    return result


def _scatter(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    """One step after another in row-major order of x (float16, bfloat16: in float32)."""
    base, index, x = src
    valid, places = _places(index, node.arg, base.shape[node.arg])
    result = _widened(base).copy()
    op = SCATTERS[node.op]
    if op is None:
        result[places] = x[valid]
    elif places[0].size:
        _combining(op, node.dtype).at(result, places, _widened(x)[valid])
    return result.astype(frame.dtype(node.dtype), copy=False)


def _distribute(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    """Element after element; a position that gets none is 0."""
    starts, bin_, x = src
    result = np.zeros(frame.shape(node.shape), x.dtype)
    for row, following in enumerate(starts.copy()):
        for place, value in zip(bin_[row], x[row], strict=True):
            if 0 <= following[place] < result.size:
                result[following[place]] = value
            following[place] += 1
    return result


# --- sources, exchanges --------------------------------------------------------------------------


def _const(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    value = np.array(node.arg, frame.dtype(node.dtype))
    return np.broadcast_to(value, frame.shape(node.shape))


def _iota(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    (length,) = frame.shape(node.shape)
    return np.arange(length, dtype=np.int64).astype(frame.dtype(node.dtype))


def _collective(node: Node, src: Sequence[Array], frame: Frame) -> Array:
    """An exchange with other ranks, which knows contiguous arrays by their addresses."""
    what: Collective = node.arg
    arrays = [np.ascontiguousarray(x, _NUMPY[node.dtype]) for x in src[: what.payload]]
    result = np.empty(frame.shape(node.shape), _NUMPY[node.dtype])
    counts = [array.size for array in arrays]
    exchange = Exchange(node.device, what, node.dtype, counts, result.size)
    exchange.start([*(array.ctypes.data for array in arrays), result.ctypes.data])
    exchange.finish()
    return result.astype(frame.dtype(node.dtype), copy=False)


Meaning = Callable[[Node, Sequence[Array], Frame], Array]

MEANING: dict[Op, Meaning] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise), Op.CAST: _cast, Op.BITCAST: _bitcast,
    **dict.fromkeys(REDUCTIONS, _reduce), **dict.fromkeys(SCANS, _scan),
    Op.RESHAPE: lambda node, src, frame: src[0].reshape(frame.shape(node.shape)),
    Op.PERMUTE: lambda node, src, frame: src[0].transpose(node.arg),
    Op.EXPAND: lambda node, src, frame: np.broadcast_to(src[0], frame.shape(node.shape)),
    Op.FLIP: lambda node, src, frame: np.flip(src[0], node.arg),
    Op.CAT: lambda node, src, frame: np.concatenate(src, axis=node.arg),
    Op.PAD: _pad, Op.SHRINK: _shrink, Op.WINDOW: _window, Op.GATHER: _gather,
    Op.SORT: lambda node, src, frame: (
        np.argsort(src[0], axis=node.arg, kind="stable").astype(np.int32)
    ),
    **dict.fromkeys(SCATTERS, _scatter), Op.DISTRIBUTE: _distribute,
    Op.CONST: _const, Op.IOTA: _iota, Op.COLLECTIVE: _collective,
    Op.VARIABLE: lambda node, src, frame: (
        np.array(number(node.arg, frame.variables), frame.dtype(node.dtype))
    ),
    **dict.fromkeys((Op.CONTIGUOUS, Op.ASSIGN, Op.COPY), lambda node, src, frame: src[-1]),
    **dict.fromkeys((Op.CUSTOM, Op.CHECK), lambda node, src, frame: src[0]),
}  # fmt: skip


# --- whole graphs --------------------------------------------------------------------------------


def _compute(
    order: Sequence[Node], roots: Sequence[Node], load: Callable[[Node], Array], frame: Frame
) -> list[Array]:
    """The roots' values; each intermediate is dropped after its last use."""
    uses: dict[Node, int] = dict.fromkeys(order, 0)
    for used in (*roots, *(source for node in order for source in node.src)):
        uses[used] += 1
    values: dict[Node, Array] = {}
    with np.errstate(all="ignore"):
        for node in order:
            src = [values[source] for source in node.src]
            meaning = MEANING.get(node.op)
            values[node] = meaning(node, src, frame) if meaning else load(node)
            for source in node.src:
                uses[source] -= 1
                if not uses[source]:
                    values.pop(source, None)
    return [values[root] for root in roots]


def _view(memory: Array, dtype: DType, shape: Shape, frame: Frame) -> Array:
    """The part of a buffer that an array of `shape` occupies; strides are those of upper bounds."""
    upper = tuple(high(extent) for extent in shape)
    flat = memory[: numel(shape) * dtype.itemsize].view(_NUMPY[dtype])
    bound: tuple[Any, ...] = (..., *(slice(extent) for extent in frame.shape(shape)))
    view: Array = flat.reshape(upper)[bound]
    return view


class ReferenceProgram:
    """A canonical graph that is interpreted at each call."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = topological(exchanges_in_order(graph.roots, topological(graph.roots)))

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """Compute every root, then write each into its slot."""
        graph, frame = self.graph, Frame(variables, wide=False)
        written = set(graph.outputs)

        def load(node: Node) -> Array:
            view = _view(buffers[node.arg].memory, node.dtype, node.shape, frame)
            return view.copy() if node.arg in written else view

        results = _compute(self.order, graph.roots, load, frame)
        for root, slot, result in zip(graph.roots, graph.outputs, results, strict=True):
            if root.op is Op.ASSIGN:  # some rows of its target
                start = number(root.arg, frame.variables)
                whole = _view(buffers[slot].memory, root.dtype, root.src[0].shape, frame)
                whole[start : start + len(result)] = result
            else:
                _view(buffers[slot].memory, root.dtype, root.shape, frame)[...] = result


class ReferenceRuntime(Runtime):
    """Memory is an array of bytes; all work is done when a call returns."""

    generalizes = False

    def __init__(self, name: str) -> None:
        self.name = name

    def allocate(self, nbytes: int) -> Array:
        """Zeroed memory, so that a program that reads too much gives the same result each time."""
        return np.zeros(nbytes, np.uint8)

    allocate_zeros = allocate

    def free(self, memory: Array, nbytes: int) -> None:
        """Nothing to do: the array is freed with its last reference."""

    def copy_in(self, memory: Array, data: memoryview) -> None:
        """Fill the first len(data) bytes of memory."""
        memory[: data.nbytes] = np.frombuffer(data, np.uint8)

    def copy_out(self, memory: Array, data: memoryview) -> None:
        """Read the first len(data) bytes of memory into `data`."""
        data[:] = memory[: data.nbytes].data

    def compile(self, graph: Graph) -> ReferenceProgram:
        """A program that interprets the graph."""
        return ReferenceProgram(graph)

    def copy_rows(self, to: Rows, given: Rows, nbytes: int, rows: int = 1, blocks: int = 1) -> None:
        """Copy blocks of rows of bytes from other memory into memory."""
        (memory, start, stride, apart), (source, begin, step, beyond) = to, given
        for block, row in np.ndindex(blocks, rows):
            at, first = start + block * apart + row * stride, begin + block * beyond + row * step
            memory[at : at + nbytes] = source[first : first + nbytes]


def open_device(name: str) -> ReferenceRuntime:
    """The device called "REF", "REF:1", …"""
    return ReferenceRuntime(name)


def evaluate(
    roots: Sequence[Node],
    values: Mapping[Any, Array] | None = None,
    variables: Mapping[str, int] | None = None,
    precision: str | None = None,
) -> list[Array]:
    """The values of nodes of any device, as numpy arrays.

    values: an array for each BUFFER's `arg` (a device Buffer, or the slot of a canonical graph);
    a device Buffer that is not given is read from its device. variables: values of symbolic
    integers that are not bound. precision: None (each node in its own dtype) or "float64" (every
    float node in float64, a float's CAST to a narrower float included).
    """
    if precision not in (None, "float64"):
        raise ValueError(f"evaluate(precision={precision!r}): expected None or 'float64'")
    given, frame = values or {}, Frame(variables or {}, precision == "float64")
    if frame.wide:  # to bits and back, as detach does it, must not round to the narrow dtype
        roots = rewrite(roots, {Op.BITCAST: [two_as_one]})

    def load(node: Node) -> Array:
        if node.arg in given:
            array = np.asarray(given[node.arg])
            shape = frame.shape(node.shape)
            if array.shape != shape:
                raise misfit("evaluate", f"an array of shape {shape} for {node!r}",
                             f"{array.shape}", error=ValueError)  # fmt: skip
        elif isinstance(node.arg, Buffer):
            memory = np.frombuffer(node.arg.copy_out(), np.uint8)
            array = _view(memory, node.dtype, node.shape, frame)
        else:
            raise DeviceError(f"evaluate: no value is given for {node!r}")
        return array.astype(frame.dtype(node.dtype))

    order = topological(exchanges_in_order(roots, topological(roots)))
    return [np.array(x) for x in _compute(order, roots, load, frame)]
