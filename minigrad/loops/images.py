"""Images that a product reads in place: zero padding is skipped, prefetches follow rows."""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph.node import Op
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.axes import NEIGHBOURS
from minigrad.loops.build import loops_over, put
from minigrad.loops.cost import Tiling
from minigrad.loops.nest import Loop, Prefetch, Statement, loop_over, written
from minigrad.loops.product import LANE, Part, Problem
from minigrad.loops.transforms import Around, LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Leaf
from minigrad.schedule.stage import identity
from minigrad.target import LINE


def within_image(s: LoopNest, problem: Problem, tiling: Tiling, part: Part) -> None:
    """Skip products with the zeros around images: x + 0·w is x if w is finite.

    If it is not, a NaN is added instead: for each column and position along the axis a NaN or 0 is
    computed before.
    """
    axis, start, stop = part
    n, dtype = problem.column.variable, problem.total.dtype
    s.bound(axis.variable, start, stop)
    axes = [make_axis("z", number, one.count) for number, one in enumerate(problem.k)]
    at = {one.variable: new.index for one, new in zip(problem.k, axes, strict=True)}
    outer = axes.pop(problem.k.index(axis))
    sums = expr.load(Array("zero", dtype, 1, "registers", lanes=n, width=tiling.nr))
    sizes, places = (outer.count, tiling.nr), (outer.index, LANE.index)
    zeros = expr.load(Array("zeros", dtype, numel(sizes), "scratch"), flatten(places, sizes))
    times = expr.substitute_in((s.operands["right"] * 0.0).cast(dtype), at)
    clear = put(sums, identity(Op.SUM, dtype), everywhere=True)
    steps = [clear, *loops_over(axes, [put(sums, sums + times)]), put(zeros, sums)]

    def look(loop: Loop, _: Around) -> tuple[Statement, ...]:
        return loops_over([outer], steps)

    def add(loop: Loop, _: Around) -> list[Loop]:
        (registers,) = written(loop)
        total = expr.load(registers)
        more = (put(total, total + zeros),)
        ends = (0, start), (stop, outer.count)
        return [Loop(outer.variable, a, (b,), more) for a, b in ends if a != b]

    s.insert(problem.k[0].variable, add, behind=True)
    s.insert(n, look)


def hints_below(
    s: LoopNest, problem: Problem, tiling: Tiling, shared: Sequence[Atom], deep: bool
) -> bool:
    """Prefetch what is below the pixels that are read; returns whether `left` is such an image.

    If k runs over the channels of a tile's pixels, which are adjacent, that is the tile below:
    another line for each of a kernel's columns. If it runs over pixels, row after row, it is the
    next row, of each of the tile's channels; or, if channels are side by side, of those at each
    pixel. (If there are many, `deep`, they may be no image.)
    """
    left, m, k, above = problem.left, problem.row.variable, problem.k[-1], problem.k[-2:-1]
    if left.op is not Leaf.LOAD or tiling.packs_left:
        return False
    around = [axis.variable for axis in above]
    across, step, far, row = (
        coefficient(left.index, xs[-1]) or 0 if xs else 0
        for xs in ([m], [k.variable], around, shared)
    )  # fmt: skip
    turn: Integer = 0
    turns, line = 1, LINE // left.dtype.itemsize
    # of the tile's channels, which are further apart than all rows
    each = 0 < step <= NEIGHBOURS and step < far and far * (above[-1].most - 1) < across
    if each or across == 1 and 0 < step < far and not deep:
        below = around[-1]
    elif 0 < across <= NEIGHBOURS and 0 < row < step:
        below = shared[-1]
        if 0 < far <= NEIGHBOURS:
            turn, turns = above[-1].index, above[-1].count
    else:
        return False

    def hints(loop: Loop, _: Around) -> list[Statement]:
        rows = loop_over(m, loop.body)
        last = {k.variable: k.most - 1} if each else {m: rows.start + rows.trips - 1}
        end = substitute(left.index, last | {below: below.index + 1})
        count = ceildiv(step * k.most if each else across * rows.trips, line)
        places = (end - line * (turn + n) for n in range(0, count, turns))
        lines = tuple(Prefetch(left.array, place) for place in places)
        return [rows.around(lines)] if each else list(lines)

    s.insert(below if each else k.variable, hints)
    return True
