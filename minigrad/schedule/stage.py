"""Stages: the values of a program that are computed once and stored, with their bodies.

A stage is a small loop program: for every index of its kept axes, combine `body` over the reduced
axes, and store the result at `position` of its array. All bodies are final before any decision
about loops is made.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from minigrad.dtype import DType
from minigrad.graph.collective import Collective
from minigrad.graph.interned import kept
from minigrad.graph.node import Node, Shape, is_symbolic
from minigrad.graph.operations import REDUCTIONS, SCANS, SCATTERS, Op
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Atom, Integer, high
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, place_along, size_of
from minigrad.schedule.contraction import Contraction, contraction_of
from minigrad.schedule.expr import Array, Expr, Guard, restrict
from minigrad.schedule.lower import Index, Lowering
from minigrad.schedule.materialize import Values, in_memory

# Stages that are kernels of their own kind: they have no rows to share with others.
ALONE: dict[Op | None, str] = {
    **dict.fromkeys(SCATTERS, "scatter"), **dict.fromkeys(SCANS, "scan"),
    Op.DISTRIBUTE: "distribute", Op.COLLECTIVE: "exchange", Op.CAT: "cat",
}  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    """The arrays that a COLLECTIVE sends, and those that must be computed before it begins."""

    collective: Collective
    sent: tuple[Array, ...]
    after: tuple[Array, ...]


@dataclass(frozen=True)
class Stage:
    """One stored value.

    shape: of the whole value. axes: kept axes (none of length 1). reduced: axes that `op` (SUM,
    MAX, PROD) reduces. position: the element's row-major position in `array`. A scatter has its own
    op, its updates as `body`, a data-dependent `position` valid under `guard`, and the initial
    value in `initial`, which runs over the kept and the initial axes; in_place: its memory already
    has that. A running reduction keeps every index of its `reduced` axis. A DISTRIBUTE has its bins
    as `position`, and their first positions in `initial`. A COLLECTIVE has no loops: it exchanges
    whole arrays. A CAT has none either: its `pieces` are written to parts of its array (see
    joins.py). Such a part begins at `start`, which `position` includes.
    """

    array: Array
    shape: Shape
    axes: tuple[Axis, ...]
    reduced: tuple[Axis, ...]
    op: Op | None
    body: Expr
    position: Integer
    guard: Guard = ()
    initial: Expr | None = None
    initial_axes: tuple[Axis, ...] = ()
    initial_position: Integer = 0
    in_place: bool = False
    exchange: Exchange | None = None
    pieces: tuple[Array, ...] = ()
    start: Integer = 0

    @kept
    def product(self) -> Contraction | None:
        """The stage as a product, or None."""
        return contraction_of(self.op, self.axes, self.reduced, self.body)

    @property
    def contraction(self) -> Contraction | None:
        """The same for matrix products of floats: those with columns along the last axis."""
        found = self.product
        if found is None or found.shared or found.of_bytes or found.added is not None:
            return None
        return found

    def multiplies(self, dtype: DType) -> bool:
        """Whether it computes with numbers of a dtype, loaded or rounded."""
        return any(e.dtype is dtype for e in expr.walk(self.body))

    @kept
    def size(self) -> int:
        """Elements of the value (symbolic axes at their upper bound)."""
        return numel(self.shape)

    @kept
    def row_counts(self) -> Mapping[Integer, int]:
        """How many rows its first axes make up, and how many axes these are, all of them last.

        A count is one more than the place of the last row, so equal counts mean the same rows: for
        n ≤ 9, those of (4, n) are 27 + n, and those of (n, 4) are 4·n.
        """
        extents = [axis.extent for axis in self.axes]
        last = [extent - 1 for extent in extents]
        return {flatten(last[:n], extents[:n]) + 1: n for n in range(len(last) + 1)}

    @property
    def count(self) -> Integer:
        """How many elements it has, as in `row_counts`."""
        return [*self.row_counts][-1]

    @kept
    def iterations(self) -> int:
        """Evaluations of the body."""
        return size_of(self.axes + self.reduced)

    def exprs(self) -> tuple[Expr, ...]:
        """All expressions of the stage, also those inside the position of a scatter."""
        initial = () if self.initial is None else (self.initial,)
        inside = [e for x in (self.position, *self.guard) for e in expr.values_in(x)]
        arrays = self.pieces
        if self.exchange is not None:
            arrays = (*self.exchange.sent, *self.exchange.after)
        return (self.body, *initial, *inside, *(expr.load(array, 0, ()) for array in arrays))

    @kept
    def loads(self) -> Sequence[Expr]:
        """The distinct loads in all of its expressions."""
        return expr.loads(*self.exprs())

    @kept
    def reads(self) -> tuple[Array, ...]:
        """The distinct arrays in all of its expressions."""
        return tuple(dict.fromkeys(load.array for load in self.loads))

    @kept
    def place(self) -> Integer:
        """The row-major position of an element in the order of its axes."""
        return place_along(self.axes)

    @kept
    def row_major(self) -> bool:
        """Whether its array is stored in the order of its axes."""
        return bool(self.position == self.place)

    def with_rows(self, rows: int) -> Stage | None:
        """An elementwise stage whose first axes make up `rows` rows, because one is cut in two.

        None for other stages, if no axis can be cut like this, and if none has to be.
        """
        if self.op is not None:
            return None
        extents, count = [axis.extent for axis in self.axes], 1
        for number, extent in enumerate(extents):
            if not isinstance(extent, int) or rows % count or rows == count:
                return None
            first = rows // count
            if first < extent and extent % first == 0:
                extents[number : number + 1] = parts = [first, extent // first]
                axes = tuple(make_axis("i", n, e) for n, e in enumerate(extents))
                index: list[Integer] = [axis.index for axis in axes]
                index[number : number + 2] = [flatten(index[number : number + 2], parts)]
                at = {old.variable: new for old, new in zip(self.axes, index, strict=True)}
                return replace(self.substitute(at), axes=axes)
            count *= extent
        return None

    def substitute(self, values: Mapping[Atom, Integer]) -> Stage:
        """The stage with some kept axes replaced by given indices."""
        return replace(
            self,
            axes=tuple(axis for axis in self.axes if axis.variable not in values),
            body=expr.substitute_in(self.body, values),
            position=substitute(self.position, values),
            guard=restrict((), (substitute(c, values) for c in self.guard)),
        )


class Stages:
    """Builds stages, and reuses those that were built for an earlier choice of kept values."""

    def __init__(self) -> None:
        self.values = lru_cache(maxsize=1)(Values)  # of some roots; kept until others are asked for
        self._arrays: dict[Node, Array] = {}
        self._built: dict[Node, tuple[Stage, dict[Node, Array | None]]] = {}

    def array(self, node: Node) -> Array:
        """The array of a value inside the program; each node has one."""
        if node not in self._arrays:
            number = len(self._arrays)
            image = _image(node)
            self._arrays[node] = expr.array_of(f"t{number}", node.dtype, node.shape, image)
        return self._arrays[node]

    def of(self, node: Node, arrays: Mapping[Node, Array]) -> Stage:
        """The stage of a kept node; sources that are kept, too, are read from `arrays`."""
        if node in self._built:
            stage, decisions = self._built[node]
            if all(arrays.get(met) == array for met, array in decisions.items()):
                return stage
        lowering = Lowering(arrays)
        stage = build(node, lowering)
        met = {node}.union(*lowering.known.values())
        if node.op is Op.COLLECTIVE:
            met.update(map(in_memory, node.src))
        self._built[node] = (stage, {other: arrays.get(other) for other in met})
        return stage


def _image(node: Node) -> tuple[tuple[int, int, int], ...]:
    """`Array.image` of a copy with zeros around it; else ()."""
    x = node.src[0] if node.op is Op.CONTIGUOUS else node
    if x.op is not Op.PAD or is_symbolic(node.shape[1:]):
        return ()
    return tuple((n, a, n - b) for n, (a, b) in zip(map(high, node.shape), x.arg, strict=True))


def build(node: Node, lowering: Lowering) -> Stage:
    """Lower one kept node."""
    array = lowering.arrays[node]
    if node.op in SCATTERS:
        return _scatter(node, lowering, array)
    if node.op is Op.DISTRIBUTE:
        return _distribute(node, lowering, array)
    if node.op is Op.COLLECTIVE:
        return _exchange(node, lowering, array)
    if node.op is Op.CAT:
        pieces = tuple(lowering.arrays[source] for source in node.src)
        nothing = expr.const(0, node.dtype)
        return Stage(array, node.shape, (), (), Op.CAT, nothing, 0, pieces=pieces)
    if node.op not in REDUCTIONS and node.op not in SCANS:
        axes, index = _axes("i", node.shape, range(node.ndim))
        body = lowering.value(node, index, inside=True)
        return Stage(array, node.shape, axes, (), None, body, flatten(index, node.shape))
    source = node.src[0]
    along = (node.arg,) if node.op in SCANS else node.arg
    kept, outer = _axes("i", source.shape, _but(along, source))
    reduced, inner = _axes("k", source.shape, along)
    index = _both(outer, inner)
    position = flatten(index if node.op in SCANS else outer, node.shape)
    body = lowering.value(source, index)
    return Stage(array, node.shape, kept, reduced, node.op, body, position)


def identity(op: Op, dtype: DType) -> Expr:
    """The value that a reduction starts from."""
    value = dtype.minimum if op is Op.MAX else 1 if op is Op.PROD else 0
    return expr.const(value, dtype)


def _axes(
    prefix: str, shape: Shape, dimensions: Iterable[int]
) -> tuple[tuple[Axis, ...], Index]:
    """Axes for the dimensions that are not 1, and the index that they form: 0 in all others."""
    axes: list[Axis] = []
    index: list[Integer] = [0] * len(shape)
    for dimension in dimensions:
        if shape[dimension] != 1:
            axes.append(make_axis(prefix, len(axes), shape[dimension]))
            index[dimension] = axes[-1].index
    return tuple(axes), tuple(index)


def _but(some: Container[int], node: Node) -> list[int]:
    """All dimensions of a node except some."""
    return [dimension for dimension in range(node.ndim) if dimension not in some]


def _both(one: Index, other: Index) -> Index:
    """Merge the indices of two sets of axes with no dimension in common."""
    return tuple(map(operator.add, one, other))


def _distribute(node: Node, lowering: Lowering, array: Array) -> Stage:
    """The stage of a DISTRIBUTE: its rows are kept axes, the elements of a row are reduced."""
    starts, bin, x = node.src
    rows, length = x.shape
    row, kept = _loop("i", rows)
    place, reduced = _loop("k", length)
    first, bins = _loop("f", starts.shape[1])
    return Stage(
        array, node.shape, kept, reduced, Op.DISTRIBUTE, lowering.value(x, (row, place)),
        expr.value_of(lowering.value(bin, (row, place))), (),
        lowering.value(starts, (row, first)), bins, first,
    )  # fmt: skip


def _loop(prefix: str, extent: Integer) -> tuple[Integer, tuple[Axis, ...]]:
    """The index and the axis of an extent, even of 1."""
    axis = make_axis(prefix, 0, extent)
    return axis.index, (axis,)


def _exchange(node: Node, lowering: Lowering, array: Array) -> Stage:
    count = node.arg.payload
    sent, after = (  # arrays without elements are neither computed nor sent
        tuple(lowering.arrays[in_memory(source)] for source in some if numel(source.shape))
        for some in (node.src[:count], node.src[count:])
    )
    what = Exchange(node.arg, sent, after)
    nothing = expr.const(0, node.dtype)
    return Stage(array, node.shape, (), (), Op.COLLECTIVE, nothing, 0, exchange=what)


def _scatter(node: Node, lowering: Lowering, array: Array) -> Stage:
    """The stage of a scatter; the updates' axis along which it scatters is reduced."""
    base, where, updates = node.src
    axis = node.arg
    kept, outer = _axes("i", node.shape, _but((axis,), node))
    reduced, inner = _axes("k", updates.shape, (axis,))
    filled, places = _axes("f", node.shape, (axis,))
    source = _both(outer, inner)
    target = expr.value_of(lowering.value(where, source))
    position = flatten([target if d == axis else i for d, i in enumerate(outer)], node.shape)
    guard = restrict((), [target, node.shape[axis] - 1 - target])
    start = _both(outer, places)
    return Stage(
        array, node.shape, kept, reduced, node.op, lowering.value(updates, source),
        position, guard, lowering.value(base, start), filled,
        flatten(start, node.shape),
    )  # fmt: skip


def before_readers(stages: Iterable[Stage], late: Container[Array]) -> list[Stage]:
    """Stages in order, but those of `late` directly before the first reader, or last."""
    order: list[Stage] = []
    held: dict[Array, Stage] = {}

    def release(stage: Stage) -> None:
        for array in stage.reads:
            if (other := held.pop(array, None)) is not None:
                release(other)
        order.append(stage)

    for stage in stages:
        if stage.array in late:
            held[stage.array] = stage
        else:
            release(stage)
    return [*order, *held.values()]
