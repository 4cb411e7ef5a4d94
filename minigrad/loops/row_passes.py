"""One row with vectors along it: the stages of a row share as few passes over it as they can.

Softmax is three: the maximum; the exponentials with their sum; the quotients. A stage joins the
first pass after all that it waits for (the result of a reduction is known when its pass ends, a
value of the own element at once), and takes such values from registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from minigrad.graph.shapes import numel
from minigrad.graph.substitution import substitute, variables
from minigrad.graph.symbolic import Integer
from minigrad.loops.axes import unit_stride_axis, vector_width
from minigrad.loops.build import combine, lanes_loop, naive, serial_loop, streams
from minigrad.loops.nest import Fold, Set, Statement, Store, Stores
from minigrad.loops.prefetch import AHEAD, far_enough, from_memory, next_rows
from minigrad.loops.software_pipeline import Part
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr, Local
from minigrad.schedule.stage import Stage, identity
from minigrad.target import Target

MOST_IN_PASS = 12  # stages, each of which wants a register: of 16 a few are left for operands

AxisPlace = tuple[Array, Integer, Axis]  # a place along an axis of which memory is asked


@dataclass
class _Pass:
    """A pass over `extent` elements, or (extent None) stages that come one after the other."""

    extent: Integer | None
    stages: list[Stage] = field(default_factory=list)


def row_passes(
    stages: Sequence[Stage], stored: frozenset[Array], target: Target, row: Axis
) -> list[Part]:
    """The work of one row in parts. `stored`: the arrays that are memory; others are scratch.

    row: of the rows' loop: memory is asked for what later rows read.
    """
    passes = _passes(stages, stored)
    prefetch = _prefetches(passes, row, target)
    parts: list[Part] = []
    number = 0
    last_read = {
        load.array: place
        for place, one in enumerate(passes)
        for stage in one.stages
        for load in expr.loads(*stage.exprs())
    }
    for place, one in enumerate(passes):
        body: list[Statement] = []
        if one.extent is None:
            for stage in one.stages:
                body.extend(_alone(stage, number, stored, target))
                number += 1
        else:
            read = {s.array for s in one.stages if last_read.get(s.array, place) > place}
            body.extend(_pass_loop(one, number, stored, read, target, prefetch.get(place, ())))
            number += len(one.stages)
        parts.append(Part(one.extent, _operations(one), tuple(body)))
    return parts


def _prefetches(
    passes: Sequence[_Pass], row: Axis, target: Target
) -> dict[int, tuple[AxisPlace, ...]]:
    """By pass: what it asks memory for, as places along an axis.

    What several passes need of a row comes while the one before it is worked on: the pass that
    computes longest asks for it. What one pass needs it asks for itself, if it is one array.
    """
    found: dict[int, list[AxisPlace]] = {}
    first: dict[tuple[Array, Integer, Integer], tuple[int, Integer, Axis]] = {}
    for place, one in enumerate(passes):
        for stage in one.stages if one.extent is not None else ():
            axis = _pass_axis(stage)
            assert axis is not None
            for load in expr.loads(stage.body):
                array, position = load.array, load.index
                if from_memory(load, axis, target) == 1 and row.variable in variables(position):
                    key = (array, axis.extent, _neutral(position, axis, axis.extent))
                    first.setdefault(key, (place, position, axis))
    for (array, extent, _), (place, position, axis) in first.items():
        nbytes = numel([extent]) * array.dtype.itemsize
        later = [n for n in range(place + 1, len(passes)) if passes[n].extent == extent]
        if not later and [at for at, _, _ in first.values()].count(place) > 1:
            continue
        ahead = far_enough(nbytes) if not later else AHEAD if nbytes > target.l2 // 4 else 0
        if ahead:
            asked = array, position + ahead // array.dtype.itemsize
        else:
            asked = next_rows((array, position), row.variable, nbytes)
            place = max(later or [place], key=lambda n: _operations(passes[n]))
        found.setdefault(place, []).append((*asked, axis))
    return {place: tuple(places) for place, places in found.items()}


def _operations(one: _Pass) -> int:
    return sum(expr.operations(stage.body) for stage in one.stages)


def _pass_axis(stage: Stage) -> Axis | None:
    """The axis of a stage that is one loop over one axis."""
    axes = (*stage.axes, *stage.reduced)
    return axes[0] if len(axes) == 1 and (stage.op is not None) == bool(stage.reduced) else None


def _passes(stages: Sequence[Stage], stored: frozenset[Array]) -> list[_Pass]:
    passes: list[_Pass] = []
    made: dict[Array, tuple[int, Stage]] = {}
    reads = _Reads()
    for stage in stages:
        axis = _pass_axis(stage)
        first = 0
        for load in expr.loads(*stage.exprs()):
            if load.array in made:
                place, producer = made[load.array]
                first = max(first, place + (not _own_element(load, stage, producer)))
        if stage.array in stored:
            first = max(first, reads.first_for(stage))
        extent = None if axis is None else axis.extent
        for place in range(first, len(passes)):
            if passes[place].extent == extent and len(passes[place].stages) < MOST_IN_PASS:
                break
        else:
            place = len(passes)
            passes.append(_Pass(extent))
        passes[place].stages.append(stage)
        made[stage.array] = (place + (axis is None), stage)
        reads.add(stage, place + (axis is None))
    return passes


class _Reads:
    """What the stages so far read of buffers: a later stage may overwrite it.

    The array of a writer may be the memory of any array of its size. `places`: bytes of an array →
    (extent, position) of the reads of such arrays, with the loop's variable replaced by one that is
    the same for all, or None for a stage that is no loop → the last pass with such a read. Stages
    of one kind share an entry, so that hundreds of them do not take quadratic time.
    """

    def __init__(self) -> None:
        self.places: dict[int, dict[tuple[Integer, Integer] | None, int]] = {}
        self.last = 0

    def add(self, stage: Stage, place: int) -> None:
        """Note the reads of a stage of the pass `place`."""
        self.last = max(self.last, place)
        axis = _pass_axis(stage)
        for load in expr.loads(*stage.exprs()):
            array, position = load.array, load.index
            if array.space == "buffer":
                key = None if axis is None else (axis.extent, _neutral(position, axis, axis.extent))
                places = self.places.setdefault(array.size * array.dtype.itemsize, {})
                places[key] = max(places.get(key, 0), place)

    def first_for(self, writer: Stage) -> int:
        """The first pass that a stage with an array of memory may join, or come after."""
        first, axis = self.last, _pass_axis(writer)
        nbytes = writer.array.size * writer.array.dtype.itemsize
        for key, place in self.places.get(nbytes, {}).items():
            spared = key is not None and axis is not None and (
                key[1] == _neutral(writer.position, axis, key[0])
            )  # fmt: skip
            first = max(first, place + (not spared))
        return first


def _neutral(position: Integer, axis: Axis, extent: Integer) -> Integer:
    """A position with the variable of a loop replaced by one for all loops of that extent."""
    return _moved(position, axis, make_axis("any", 0, extent))


def _own_element(load: Expr, stage: Stage, producer: Stage) -> bool:
    """Whether a load reads the element that its producer makes in the same step of a pass."""
    mine, other = _pass_axis(stage), _pass_axis(producer)
    if mine is None or other is None or producer.op is not None or mine.extent != other.extent:
        return False
    position, guard = load.index, load.guard
    return not guard and position == _moved(producer.position, other, mine)


def _moved(position: Integer, old: Axis, new: Axis) -> Integer:
    return substitute(position, {old.variable: new.index})


def _pass_loop(
    one: _Pass, number: int, stored: frozenset[Array], read: set[Array], target: Target,
    prefetch: Sequence[AxisPlace],
) -> list[Statement]:  # fmt: skip
    """One loop for all stages of a pass; `read`: the arrays that later passes want."""
    assert one.extent is not None
    axis = make_axis("c", number, one.extent)
    values: dict[tuple[Array, Integer], Expr] = {}
    bodies: list[Expr] = []
    positions: list[Integer] = []

    def known(e: Expr) -> Expr | None:
        return None if e.op is not expr.Leaf.LOAD or e.guard else values.get((e.array, e.index))

    for stage in one.stages:
        old = _pass_axis(stage)
        assert old is not None
        body = expr.substitute_in(stage.body, {old.variable: axis.index})
        body = expr.rebuild(body, known)
        position = _moved(stage.position, old, axis)
        if stage.op is None:
            values[stage.array, position] = body
        bodies.append(body)
        positions.append(position)
    reduces = any(stage.op is not None for stage in one.stages)
    width = vector_width(target, bodies, axis.extent, reduces, axis.variable)
    start: list[Statement] = []
    inside: list[Statement] = []
    stores: list[Store] = []  # bodies read what was there before, so no store comes between them
    end: list[Statement] = []
    for stage, body, position in zip(one.stages, bodies, positions, strict=True):
        if stage.op is None:
            if stage.array in stored or stage.array in read:
                streaming = stage.array in stored and streams(stage.array, one.stages, target)
                stores.append(Store(stage.array, position, body, streaming=streaming))
        else:
            total = Local(f"sum{number}", body.dtype, 1)
            lanes = axis.variable if width > 1 else None
            partial = Local(f"part{number}", body.dtype, 1, lanes, width) if lanes else total
            start.append(Set(partial, 0, identity(stage.op, body.dtype)))
            inside.append(Set(partial, 0, combine(stage.op, expr.local(partial), body)))
            if lanes:
                end.append(Fold(total, stage.op, partial))
            end.append(Store(stage.array, position, expr.local(total)))
        number += 1
    if stores:
        inside.append(stores[0] if len(stores) == 1 else Stores(tuple(stores)))
    asked = tuple((array, _moved(place, old, axis)) for array, place, old in prefetch)
    return [*start, replace(lanes_loop(axis, width, tuple(inside)), prefetch=asked), *end]


def _alone(
    stage: Stage, number: int, stored: frozenset[Array], target: Target
) -> list[Statement]:
    """One stage for one row, with vectors along any of its axes."""
    axis = unit_stride_axis((*stage.axes, *stage.reduced), [stage.body], [stage.position])
    if axis is None:
        return [Store(stage.array, stage.position, stage.body)]
    reduces = axis in stage.reduced
    width = vector_width(target, [stage.body], axis.extent, reduces, axis.variable)
    if stage.op is None:
        streaming = stage.array in stored and streams(stage.array, [stage], target)
        store = Store(stage.array, stage.position, stage.body, streaming=streaming)
        nested: tuple[Statement, ...] = (lanes_loop(axis, width, (store,)),)
    elif not reduces:
        lanes = axis.variable if width > 1 else None
        total = Local(f"sum{number}", stage.body.dtype, 1, lanes, width)
        values = {stage.array: expr.local(total)}
        nested = (lanes_loop(axis, width, tuple(naive([stage], [stage.array], values))),)
    else:
        nested = tuple(_fold_along(stage, number, axis, width))
    for a in reversed([a for a in stage.axes if a != axis]):
        nested = (serial_loop(a, nested),)
    return list(nested)


def _fold_along(stage: Stage, number: int, axis: Axis, width: int) -> list[Statement]:
    """A reduction whose vectors run along a reduced axis and are folded at the end."""
    assert stage.op is not None
    total = Local(f"sum{number}", stage.body.dtype, 1)
    lanes = axis.variable if width > 1 else None
    partial = replace(total, name=f"part{number}", lanes=lanes, width=width) if lanes else total
    step: tuple[Statement, ...] = (
        lanes_loop(
            axis, width, (Set(partial, 0, combine(stage.op, expr.local(partial), stage.body)),)
        ),
    )
    for a in reversed([a for a in stage.reduced if a != axis]):
        step = (serial_loop(a, step),)
    start = Set(partial, 0, identity(stage.op, stage.body.dtype))
    fold: list[Statement] = [Fold(total, stage.op, partial)] if lanes else []
    return [start, *step, *fold, Store(stage.array, stage.position, expr.local(total))]
