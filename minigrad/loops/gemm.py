"""The recipe of a matrix product: tiles of the output in registers, one panel of `right` at a time.

    parallel over batch × blocks of columns × blocks of rows:
      copy the block of `left` where its elements cannot be read as they lie
      for each panel of the block's columns, or for some panels at a time:
        copy the panels of `right` where their rows are not contiguous vectors
        for each tile of rows:
          tile[rows] = 0
          for k:  tile[row] += left[row, k] · right[k, lanes]      (fused multiply-adds)
          store the tile through the epilogue

Where the operands exceed the caches, k is cut too: all but the clearing and the epilogue is done
for a piece of k after the other, and sums wait in scratch memory. Edges need no special tile: the
last tile has fewer rows, the last vector a mask. A copy takes any index expression, mask or
conversion: what an operand costs to compute is paid once for a block, not for every tile.
After "Anatomy of High-Performance Matrix Multiplication" (Goto, van de Geijn, ACM TOMS 34, 2008);
the numbers, such as mr and nr, are those of cost.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from minigrad.graph.node import Op
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Atom, ceildiv, low
from minigrad.loops import cost
from minigrad.loops.amx import amx
from minigrad.loops.assemble import assemble
from minigrad.loops.build import combine, put, unless_finite
from minigrad.loops.dynamic_bounds import with_dynamic_bounds
from minigrad.loops.nest import Loop, Nest, Statement, Store, loop_over, map_statement, written
from minigrad.loops.prefetch import Place, next_rows
from minigrad.loops.product import LANE, Problem, distance, in_pairs, prepare, strides
from minigrad.loops.tile_prefetch import LEAST_FETCHED, TileHints
from minigrad.loops.transforms import Around, Schedule
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Expr
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import identity
from minigrad.target import Target


def gemm(kernel: Kernel, target: Target, name: str) -> Nest:
    """The loop nest of a product and its elementwise epilogue."""
    problem = with_dynamic_bounds(prepare(kernel))
    plain = not problem.ends and problem.terms is None
    schedule = amx(problem, target) if target.bfloat16_matrices and plain else None
    if schedule is None and target.bfloat16_dots and plain:
        pairs = in_pairs(problem)
        problem = pairs if pairs is not None and cost.packing_pays(pairs, target) else problem
    if schedule is None:
        schedule = tiled(problem, target)
    return replace(assemble(name, kernel, schedule.nest, target), operations=cost.flops(kernel))


def tiled(problem: Problem, target: Target) -> Schedule:
    """A product in register tiles."""
    parts = problem.parts
    m, n = parts.m[-1].variable, parts.n[-1].variable
    ks = [axis.variable for axis in parts.k]
    plan = cost.plan_of(problem, target, numel([axis.extent for axis in problem.outer]))
    s = Schedule(problem.naive(), left=parts.left, right=parts.right)
    s.vectorize(n, plan.nr, LANE)
    columns, task = s.split(n, plan.nc, "p"), s.split(m, plan.mc, "c")
    shared = cost.shared_rows(problem, plan)
    outer = [axis.variable for axis in problem.outer if axis.variable not in shared]
    s.reorder(*outer, columns, task, *shared, m, n)
    inside = task
    if plan.kc:
        place, length = cost.cut_depth(problem, plan.kc)
        inside, ks = s.split(ks[place], length, "kb"), ks[place:]
        s.sink(m, n, into=inside, space="scratch")
    with s.inside(inside):
        tile = s.split(m, plan.mr, "t")
        around = n
        if plan.panels:
            around, panel = s.split(n, plan.panels * plan.nr, "pg"), s.split(n, plan.nr, "g")
            s.reorder(around, tile, panel, n, m)
        else:
            panel = n
            s.reorder(n, *shared, tile, m)
        if plan.packs_left:
            stage_left(s, problem, plan, tile, ks, target)
        if plan.packs_right:
            stage_right(s, problem, plan, around, panel, ks, target)
        s.peel(tile, m)
        s.tails(m, cost.SMALL_TILES)
        s.sink(m)
        if plan.nr > 1 and isinstance(parts.k[-1].extent, int) and s.trips(ks[-1]) >= LEAST_FETCHED:
            hints = TileHints(problem, plan, s.operands, tile, target)
            lines = s.split(ks[-1], hints.line, "ko", computing=True)
            s.insert(lines, hints.seldom)
            s.insert(ks[-1], hints.often)
        if problem.terms is not None:
            s.insert(ks[0], again(problem, m), behind=True)
        s.unroll(m, "u")
        s.peel(panel, n)
        s.simplify()
    s.parallelize(*outer, columns, task)
    return s


def stage_left(
    s: Schedule, problem: Problem, plan: cost.Plan, tile: Atom, ks: Sequence[Atom], target: Target
) -> None:
    """Copy the block of `left`: tile after tile where rows are neighbours, else row after row."""
    operand, m, lanes = problem.parts.left, problem.parts.m[-1].variable, _lanes(problem, target)
    depth = numel([s.trips(k) for k in ks])
    if 1 in strides(operand, m):
        # tiles at distances of kilobytes would compete for lines of the first cache: an odd depth
        pitch = ceildiv(plan.mr, lanes) * lanes
        layout = [((tile,), None), (ks, depth | 1), ((m,), pitch)]
        # whole vectors, unless the last rows are fewer than what one goes beyond its tile
        rows = problem.parts.m[-1].extent
        last = rows % plan.mc
        most = plan.mc if last == 0 else last if isinstance(last, int) else 0
        beyond = rows if low(rows) >= most >= pitch - plan.mr else None
        ahead = _rows_ahead(operand, ks[-1], plan.mc)
        s.stage("left", None, [*ks, tile, m], layout, "left", {m: pitch}, beyond, prefetch=ahead)
        return
    wide = 2 * lanes if s.trips(ks[-1]) >= 2 * lanes else lanes
    layout = [((tile, m), None), (ks, cost.row_stride(depth, operand.dtype.itemsize))]
    s.stage("left", None, [tile, m, *ks], layout, "left", {ks[-1]: wide})


def stage_right(
    s: Schedule, problem: Problem, plan: cost.Plan, around: Atom, panel: Atom, ks: Sequence[Atom],
    target: Target,
) -> None:  # fmt: skip
    """Copy panels of `right`, in the order in which it lies in memory."""
    operand, n, lanes = problem.parts.right, problem.parts.n[-1].variable, _lanes(problem, target)
    order = sorted(ks, key=lambda k: -distance(operand, k))
    if panel == n:
        s.stage("right", n, order, [(ks, None), ((n,), plan.nr)], "panel", transpose=lanes)
        return
    layout = [((panel,), None), (ks, None), ((n,), plan.nr)]
    if distance(operand, order[-1]) < distance(operand, n):
        s.stage("right", around, [panel, n, *order], layout, "panel", transpose=lanes)
    else:  # neighbours in memory are read together
        ahead = _rows_ahead(operand, order[-1], plan.panels * plan.nr)
        s.stage("right", around, [*order, panel, n], layout, "panel", prefetch=ahead)


def _lanes(problem: Problem, target: Target) -> int:
    return target.lanes(problem.stage.body.dtype)


def _rows_ahead(operand: Expr, k: Atom, elements: int) -> tuple[Place, ...]:
    """What a copy of `elements` neighbours at each k reads some steps later."""
    return tuple(
        next_rows((load.array, load.index), k, elements * load.array.dtype.itemsize)
        for load in expr.loads(operand)
        if not load.guard and coefficient(load.index, k)
    )


def again(problem: Problem, m: Atom) -> Callable[[Loop, Around], list[Statement]]:
    """Behind the sums of a tile: they are summed as they are meant where one is not finite."""

    def make(loop: Loop, around: Around) -> list[Statement]:
        (registers,) = written(loop)
        rows = loop_over(m, loop.body)
        slot = m.index - rows.start
        assert problem.terms is not None
        total = expr.load(registers, slot)
        more = combine(Op.SUM, total, problem.terms)
        summed = map_statement(
            loop, lambda one: replace(one, value=more) if isinstance(one, Store) else one
        )
        clear = put(total, identity(Op.SUM, registers.dtype), everywhere=True)
        u = make_axis("u", 0, registers.size)
        name = f"wrong{registers.size}"
        return unless_finite(name, registers, u, None, [replace(rows, body=(clear,)), summed])

    return make
