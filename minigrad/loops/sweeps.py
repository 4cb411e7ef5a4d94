"""One row with vectors along it: the stages of a row share as few sweeps over it as they can.

Softmax is three: the maximum; the exponentials with their sum; the quotients. A stage joins the
first sweep after all that it waits for (the result of a reduction is known when its sweep ends, a
value of the own element at once), and takes such values from registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from minigrad.graph.symbolic import Integer, substitute
from minigrad.loops.axes import unit_stride_axis, vector_width
from minigrad.loops.build import accumulate, combine, lanes_loop, serial_loop, streams
from minigrad.loops.nest import Fold, Set, Statement, Store
from minigrad.loops.target import Target
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Local
from minigrad.schedule.stage import Axis, Stage, identity, index_of, make_axis

MOST_IN_SWEEP = 12  # stages: each wants registers of its own


@dataclass
class _Step:
    """A sweep over `extent` elements, or (extent None) stages that come one after the other."""

    extent: Integer | None
    stages: list[Stage] = field(default_factory=list)


def sweep_row(
    stages: Sequence[Stage], stored: frozenset[Array], target: Target
) -> list[Statement]:
    """The statements of one row. `stored`: the arrays that are memory; others are scratch."""
    steps = _steps(stages, stored)
    body: list[Statement] = []
    number = 0
    for place, step in enumerate(steps):
        if step.extent is None:
            for stage in step.stages:
                body.extend(_alone(stage, number, stored, target))
                number += 1
        else:
            later = [s for other in steps[place + 1 :] for s in other.stages]
            read = {load.payload[0] for s in later for load in expr.loads(*s.exprs())}
            body.extend(_sweep(step, number, stored, read, target))
            number += len(step.stages)
    return body


def _swept(stage: Stage) -> Axis | None:
    """The axis of a stage that is one loop over one axis."""
    axes = (*stage.axes, *stage.reduced)
    return axes[0] if len(axes) == 1 and (stage.op is not None) == bool(stage.reduced) else None


def _steps(stages: Sequence[Stage], stored: frozenset[Array]) -> list[_Step]:
    steps: list[_Step] = []
    made: dict[Array, tuple[int, Stage]] = {}
    for stage in stages:
        axis = _swept(stage)
        first = 0
        for load in expr.loads(*stage.exprs()):
            if load.payload[0] in made:
                place, producer = made[load.payload[0]]
                first = max(first, place + (not _own_element(load, stage, producer)))
        if stage.array in stored:  # it may overwrite what the stages before it read
            for place, earlier in made.values():
                first = max(first, place + (not _spares(stage, earlier)))
        extent = None if axis is None else axis.extent
        for place in range(first, len(steps)):
            if steps[place].extent == extent and len(steps[place].stages) < MOST_IN_SWEEP:
                break
        else:
            place = len(steps)
            steps.append(_Step(extent))
        steps[place].stages.append(stage)
        made[stage.array] = (place + (axis is None), stage)
    return steps


def _own_element(load: Expr, stage: Stage, producer: Stage) -> bool:
    """Whether a load in a swept stage is of the element that a swept producer makes just then."""
    mine, other = _swept(stage), _swept(producer)
    if mine is None or other is None or producer.op is not None or mine.extent != other.extent:
        return False
    _, position, guard = load.payload
    return not guard and position == _moved(producer.position, other, mine)


def _moved(position: Integer, old: Axis, new: Axis) -> Integer:
    return substitute(position, {old.variable: index_of(new.variable)})


def _spares(writer: Stage, earlier: Stage) -> bool:
    """Whether a stage may run in one sweep with a writer that follows it.

    The writer's array may be the memory of any array of its size that the stage reads.
    """
    nbytes = writer.array.size * writer.array.dtype.itemsize
    target, axis = _swept(writer), _swept(earlier)
    for load in expr.loads(*earlier.exprs()):
        array, position, _ = load.payload
        if array.space == "buffer" and array.size * array.dtype.itemsize == nbytes:
            if target is None or axis is None:
                return False
            if position != _moved(writer.position, target, axis):
                return False
    return True


def _sweep(
    step: _Step, number: int, stored: frozenset[Array], read: set[Array], target: Target
) -> list[Statement]:
    """One loop for all stages of a step; `read`: the arrays that later steps want."""
    assert step.extent is not None
    axis = make_axis("c", number, step.extent)
    values: dict[tuple[Array, Integer], Expr] = {}
    bodies: list[Expr] = []
    positions: list[Integer] = []

    def known(e: Expr) -> Expr | None:
        return None if e.op is not expr.Leaf.LOAD or e.payload[2] else values.get(e.payload[:2])

    for stage in step.stages:
        old = _swept(stage)
        assert old is not None
        body = expr.substitute_in(stage.body, {old.variable: index_of(axis.variable)})
        body = expr.rebuild(body, known)
        position = _moved(stage.position, old, axis)
        if stage.op is None:
            values[stage.array, position] = body
        bodies.append(body)
        positions.append(position)
    reduces = any(stage.op is not None for stage in step.stages)
    width = vector_width(target, bodies, axis.extent, reduces, axis.variable)
    start: list[Statement] = []
    inside: list[Statement] = []
    end: list[Statement] = []
    for stage, body, position in zip(step.stages, bodies, positions, strict=True):
        if stage.op is None:
            if stage.array in stored or stage.array in read:
                streaming = stage.array in stored and streams(stage.array, step.stages, target)
                inside.append(Store(stage.array, position, body, streaming=streaming))
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
    return [*start, lanes_loop(axis, width, tuple(inside)), *end]


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
        nested = (lanes_loop(axis, width, tuple(accumulate(stage, total, stage.reduced))),)
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
