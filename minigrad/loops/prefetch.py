"""Prefetches of vector loops: requests for memory before it is read.

Without them, a processor may wait for memory, then compute while memory is idle: the sum of both
times instead of the maximum. Hardware prefetching follows single passes well, but not loops that go
over a row several times. (Measured with two cores of a Sapphire Rapids class machine: a layer norm
of 24 MiB takes 1.73 ms without and 0.91 ms with prefetches, a softmax of 64 MiB 4.1 and 3.0 ms;
single passes gain 3 to 13 %.)

A single pass over one array should prefetch far ahead, because a processor follows each array with
only a few lines at once. With several arrays, all lines that it can wait for are in use, and more
requests disturb. (Measured with one core of a Zen 5 class machine: a copy of 64 MiB gains 6 %, an
update in place 12 %; a sum of two such arrays would lose 9 %, an optimizer's step 10 %.) If the
lanes of a vector are a few elements apart, it touches many lines, which no processor follows well:
squares of a million vectors of 3 take 3.1 ms without and 0.7 ms with prefetches. Arrays that an
earlier kernel left in L3 arrive in time anyway. (Zen 4: prefetching far ahead makes a ReLU of 4 MiB
take 113 instead of 88 µs, sums of its rows 59 instead of 47.)
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph.substitution import coefficient, substitute, variables
from minigrad.graph.symbolic import Atom, Integer
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis
from minigrad.schedule.expr import Array, Expr
from minigrad.target import Target

# Bytes ahead: more than a core reads while an access waits (10 GB/s for 0.1 µs is 1 KiB).
AHEAD = 8192
FAR = 2 * AHEAD  # the same for the only array of a pass
WIDEST = 16  # elements from lane to lane: above it, each float32 is on a line of its own
LEAST_TIMES = 4  # a row 4 times as long as the distance loses little by prefetches beyond its end

Place = tuple[Array, Integer]


def from_memory(load: Expr, axis: Axis, cache: int) -> int:
    """The step of a load along an axis, if it is small and a cache too small for the array; or 0.
    """
    array, position, guard = load.array, load.index, load.guard
    large = array.space == "buffer" and array.usual_bytes > cache
    stride = coefficient(position, axis.variable) if large and not guard else 0
    return stride if stride is not None and 1 <= stride <= WIDEST else 0


def further_along(
    axis: Axis, outer: Axis | None, exprs: Sequence[Expr], target: Target
) -> tuple[Place, ...]:
    """Places some way ahead on the axis, in the only large array or in those with gaps.

    At the end of the axis they are in the next of `outer`'s rows. A row that is short and not
    followed by the next one in memory has none.
    """
    found: dict[tuple[Array, Integer], tuple[int, Integer]] = {}
    for load in expr.loads(*exprs):
        array, position = load.array, load.index
        if stride := from_memory(load, axis, max(target.l2, target.l3 // 2)):
            constant = position if isinstance(position, int) else position.constant
            found.setdefault((array, position - constant), (stride, position))
    places = []
    for (array, _), (stride, position) in found.items():
        if len(found) > 1 and stride == 1:
            continue
        length, size = stride * axis.most, array.dtype.itemsize
        follows = outer is None or coefficient(position, outer.variable) == length
        if ahead := FAR if follows else far_enough(length * size):
            places.append((array, position + ahead // size))
    return tuple(places)


def far_enough(nbytes: int) -> int:
    """Bytes ahead at which to prefetch the only array of a pass, in rows of nbytes; 0: none."""
    return next((far for far in (FAR, AHEAD) if nbytes >= LEAST_TIMES * far), 0)


def next_rows(place: Place, row: Atom, nbytes: int) -> Place:
    """The same place in a later row, far enough ahead; a row has nbytes bytes."""
    array, position = place
    later = row.index - (-AHEAD // max(nbytes, 1))
    return array, substitute(position, {row: later})


def later_rows(
    exprs: Sequence[Expr], below: Atom, axis: Axis, width: int, target: Target
) -> tuple[Place, ...]:
    """What `width` neighbours along an axis read in a later iteration of the loop over `below`."""
    found: dict[Place, None] = {}
    for load in expr.loads(*exprs):
        array, position = load.array, load.index
        if below in variables(position) and from_memory(load, axis, target.l2) == 1:
            found[next_rows((array, position), below, width * array.dtype.itemsize)] = None
    return tuple(found)
