"""What a vector loop asks the memory for, before it is read.

A processor that waits for memory while it computes, and lets memory rest while it computes, takes
the sum of both times instead of the larger one. Its own prefetching follows single sweeps well, but
not loops that go over a row several times. (Measured with two cores of a Sapphire Rapids class
machine: a layer norm of 24 MiB takes 1.73 ms without and 0.91 ms with it, a softmax of 64 MiB 4.1
and 3.0 ms; single sweeps gain 3 to 13 %.)
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph.symbolic import Integer, add, coefficient, numel, sub, substitute, variables
from minigrad.loops.target import Target
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr
from minigrad.schedule.stage import Axis, Stage, index_of

AHEAD = 4096  # bytes: what a core reads while an access waits, and some more
LONG = 4 * AHEAD  # of a row behind whose end little is asked for in vain

Place = tuple[Array, Integer]


def from_memory(load: Expr, axis: Axis, target: Target) -> bool:
    """Whether a load walks along an axis through an array larger than the second cache."""
    array, position, guard = load.payload
    large = array.space == "buffer" and array.size * array.dtype.itemsize > target.l2
    return large and not guard and coefficient(position, axis.variable) == 1


def further_along(
    axis: Axis, outer: Axis | None, exprs: Sequence[Expr], target: Target
) -> tuple[Place, ...]:
    """Places some way ahead on the axis, which lie in the next of `outer`'s rows at its end.

    A row that is short and not followed by the next one in memory asks for nothing.
    """
    found: dict[tuple[Array, Integer], Integer] = {}
    for load in expr.loads(*exprs):
        array, position, _ = load.payload
        if not from_memory(load, axis, target):
            continue
        length = numel([axis.extent])
        follows = outer is None or coefficient(position, outer.variable) == length
        if follows or length * array.dtype.itemsize >= LONG:
            constant = position if isinstance(position, int) else position.constant
            found.setdefault((array, sub(position, constant)), position)
    return tuple(
        (array, add(position, AHEAD // array.dtype.itemsize))
        for (array, _), position in found.items()
    )


def next_rows(place: Place, row: Axis, nbytes: int) -> Place:
    """The same place in a later row, far enough ahead; a row has `nbytes` bytes."""
    array, position = place
    later = add(index_of(row.variable), -(-AHEAD // max(nbytes, 1)))
    return array, substitute(position, {row.variable: later})


def later_rows(stage: Stage, axis: Axis, width: int, target: Target) -> tuple[Place, ...]:
    """What `width` neighbours along an axis will read some steps of the reduced axis later."""
    below = stage.reduced[-1]
    found: dict[Place, None] = {}
    for load in expr.loads(stage.body):
        array, position, _ = load.payload
        if below.variable in variables(position) and from_memory(load, axis, target):
            found[next_rows((array, position), below, width * array.dtype.itemsize)] = None
    return tuple(found)
