"""Recipes of what goes on from element to element: running reductions, and a pass of a sort.

Both are serial along one axis and parallel over all others.
"""

from __future__ import annotations

from functools import partial, reduce

from minigrad.dtype import dtypes
from minigrad.graph.operations import SCANS, Op
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Integer, high
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import vector_width
from minigrad.loops.build import combine, flat_loop, loops_over, put, serial_loop
from minigrad.loops.nest import Loop, Nest, Statement, Store
from minigrad.loops.transforms import Schedule
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, identity
from minigrad.target import Target

# Terms of a running sum that follow one another: each waits for the one before, and the end of a
# block for both, so a longer block costs less and a shorter one rounds less.
BLOCK_TERMS = 128


def scan(kernel: Kernel, target: Target, name: str) -> Nest:
    """A running reduction; vectors run along the last kept axis where that is contiguous."""
    (stage,) = kernel.stages
    (along,) = stage.reduced
    assert stage.op is not None
    body = _running(stage, along, SCANS[stage.op])
    s, xs = Schedule(loops_over(stage.axes, body)), [axis.variable for axis in stage.axes]
    if xs and coefficient(stage.position, xs[-1]) == 1:
        width = vector_width(target, [stage.body], stage.axes[-1].extent, True)
        s.vectorize(xs[-1], width)
        xs = xs[: len(xs) - (width > 1)]
    s.parallelize(*xs)
    return assemble(name, kernel, s.nest, target)


def _running(stage: Stage, along: Axis, op: Op) -> tuple[Statement, ...]:
    """All elements along an axis, with sums of floats in levels (see levels.py).

    A block's own sum begins at zero and is added to that of the blocks before it, so that a long
    sum's error does not grow with every term.
    """
    levels, dtype = 1, stage.body.dtype
    while op is Op.SUM and dtype.is_float and BLOCK_TERMS**levels < high(along.extent):
        levels += 1
    sums = [expr.register(f"total{n or ''}", dtype) for n in range(levels)]
    first = expr.register("first", dtype)  # which may be the sum of all before (see sort.py)
    own, *before = sums if levels == 1 else (*sums, first)
    value = combine(op, reduce(partial(combine, op), reversed(before)), own) if before else own
    zero = identity(op, dtype)
    body: tuple[Statement, ...] = (
        put(own, combine(op, own, stage.body)),
        Store(stage.array, stage.position, value),
    )
    start: list[Statement] = [put(sums[-1], zero)]
    counter, count, done = along.variable, along.extent, 0
    if before:
        alone = put(first, stage.body), Store(stage.array, stage.position, first)
        start.append(Loop(counter, 0, (1,) if isinstance(count, int) else (1, count), alone))
        done = 1
    for level in range(1, levels):
        unit = BLOCK_TERMS**level
        blocks = make_axis("b", level, (along.extent + unit - 1 - done) // unit)
        begin = blocks.index * BLOCK_TERMS + (done if level == 1 else 0)
        block = Loop(counter, begin, (begin + BLOCK_TERMS, count), body)
        inner, outer = sums[level - 1 : level + 1]
        body = (put(inner, zero), block, put(outer, combine(op, outer, inner)))
        counter, count = blocks.variable, blocks.extent
    return (*start, Loop(counter, 0, (count,), body))


def distribute(kernel: Kernel, target: Target, name: str) -> Nest:
    """One pass of a counting sort: each row's next free places stand in scratch memory."""
    (stage,) = kernel.stages
    assert stage.initial is not None
    (bins,), (along,) = stage.initial_axes, stage.reduced
    next_free = Array("next", dtypes.int32, 256, "scratch")
    place = expr.register("place", dtypes.int32)
    where: Integer = expr.value_of(place)
    inside = expr.restrict((), [where, stage.size - 1 - where])
    body: tuple[Statement, ...] = (
        serial_loop(bins, (Store(next_free, stage.initial_position, stage.initial),)),
        serial_loop(along, (
            put(place, expr.load(next_free, stage.position)),
            Store(stage.array, where, stage.body, inside),
            Store(next_free, stage.position, place + 1),
        )),
    )  # fmt: skip
    return assemble(name, kernel, flat_loop(stage.axes, body), target)

