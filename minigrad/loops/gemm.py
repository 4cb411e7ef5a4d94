"""The recipe of a matrix product: tiles of the output in registers, one panel of `right` at a time.

    parallel over batch × blocks of columns × blocks of rows:
      pack the block of `left` where its elements cannot be read as they lie
      for each panel of the block's columns:
        pack the panel of `right` where its rows are not contiguous vectors
        for each tile of rows:
          tile[rows] = 0
          for k:  tile[row] += left[row, k] · right[k, lanes]      (fused multiply-adds)
          store the tile through the epilogue

Edges need no special tile: the last tile has fewer rows, the last vector a mask.
After "Anatomy of High-Performance Matrix Multiplication" (Goto, van de Geijn, ACM TOMS 34, 2008),
with one level of blocking less, since today's second-level caches hold a whole panel. A product's
five numbers have the names of "BLIS" (Van Zee, van de Geijn, ACM TOMS 41, 2015):

    mr   rows of a tile: its accumulators fill the registers
    nr   columns of a tile, and of a panel: one or two vectors
    mc   rows of a task, a block; packed, they stay in half of the second-level cache
    kc   elements of k that are packed and multiplied before the next; 0 where that is all of them
    nc   columns of a task; BLIS packs all of their panels at once, here it is `panels` at a time
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

from minigrad.graph.node import Op
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.amx import SQUARE, amx, plan_amx
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import indices, merge, parallel_axes
from minigrad.loops.build import (
    flat_loop,
    inline_stages,
    lanes_loop,
    serial_loop,
    substitute_stores,
)
from minigrad.loops.cost import flops
from minigrad.loops.dynamic_bounds import with_dynamic_bounds
from minigrad.loops.gemm_k_blocked import gemm_k_blocked
from minigrad.loops.microkernel import (
    Ahead,
    Block,
    Left,
    Problem,
    choose_mr,
    choose_nr,
    strides,
    tiles,
)
from minigrad.loops.nest import Nest, Statement
from minigrad.loops.packing import (
    LEAST_PANELS,
    ROW_WORDS,
    depth_of,
    for_panels,
    in_pairs,
    pack_left,
    pack_right,
)
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.contraction import Contraction
from minigrad.schedule.expr import Leaf, Local
from minigrad.schedule.schedule import Kernel
from minigrad.target import ENOUGH_TASKS, FEW_TASKS, Target

# Packing a panel takes 5 to 10 cycles for each of its vectors (measured), of which it has two for
# each k; a row multiplies them in one. So it costs a tenth or two of the work of LEAST_ROWS, with
# which it pays where memory is far, and hardly anything beside that of MANY_ROWS.
LEAST_ROWS, MANY_ROWS = 96, 384
# Rows whose copies must find a place in half of the second cache, or k is cut: beside their work
# the packing of a panel is a tenth.
ROWS_OF_COPY = 160
SHARES = 4  # threads that share the blocks of rows evenly, and of course two of them
MOST_PANELS = 8  # panels of one task, the next of which is fetched meanwhile
# Multiply-adds of one task: 1.5 to 6 ms at 64 to 16 a cycle, which is how long a thread that shares
# its core may be waited for.
MOST_WORK = 1 << 28
FAR_BYTES = 1 << 19  # a panel whose rows span more is packed: 128 pages, which no first TLB holds

# Where k is cut: a tile of 14 packed rows of KC floats has 28 KiB, and stays in a first-level
# cache. A task has as many columns: its sums are read and written once for KC multiply-adds each.
KC = NC = 512
PAGE = 4096  # rows at distances that are multiples of it share the lines of a first-level cache
CROWDED = 8  # rows that still find a place there: it has 8 ways, or 12
STEP_BYTES = PAGE // 8  # a step along k that leaves several to a page
LANE: Atom = make_axis("lane", 0, 1 << 10).variable


@dataclass(frozen=True)
class Plan:
    """How a product is cut: tiles of mr × nr, tasks of mc × nc (see above).

    panels: how many are packed together, so that a tile of rows that comes from far away is read
    once for all of them.
    """

    mr: int
    nr: int
    mc: int
    nc: int
    packs_left: bool
    packs_right: bool
    kc: int = 0
    panels: int = 0


def gemm(kernel: Kernel, target: Target, name: str) -> Nest:
    """The loop nest of a product and its elementwise epilogue."""
    problem = with_dynamic_bounds(prepare(kernel))
    if target.bfloat16_matrices and not problem.ends and problem.terms is None:
        words = in_pairs(problem, ROW_WORDS)
        if words is not None:
            nest = _amx_nest(words, kernel, target, name)
            if nest is not None:
                return nest
    if target.bfloat16_dots and not problem.ends and problem.terms is None:
        pairs = in_pairs(problem)
        if pairs is not None and packing_pays(pairs, target):
            problem = pairs
    parts = problem.parts
    row, column = parts.m[-1], parts.n[-1]
    outer = [*parts.batch, *parts.m[:-1], *parts.n[:-1]]
    plan = plan_of(problem, target, numel([axis.extent for axis in outer]))
    column_blocks = make_axis("p", 0, ceildiv(column.count, plan.nc))
    blocks = make_axis("c", 0, ceildiv(row.extent, plan.mc))
    block = Block(0 if blocks.extent == 1 else blocks.index, plan.mc, plan.mr)
    start = column_blocks.index * plan.nc
    left, body = Left(), []
    if plan.kc:
        body = gemm_k_blocked(
            problem, target, block, (start, plan.nc), plan.nr, plan.kc, plan.panels,
            LANE,
        )  # fmt: skip
        return _nest(name, kernel, target, outer, column_blocks, blocks, body)
    needed = problem.from_row(block.start)
    lanes = target.lanes(problem.stage.body.dtype)
    if plan.packs_left:
        copying, left = pack_left(needed, block, lanes)
        body.append(copying)
    if plan.panels:
        for_tiles = Ahead(plan.nr, far=not plan.packs_left)
        body += for_panels(
            needed, (start, plan.nc), plan.nr, lanes, plan.panels, LANE,
            lambda right, around: tiles(problem, left, right, block, plan.nr, for_tiles, around),
        )  # fmt: skip
        return _nest(name, kernel, target, outer, column_blocks, blocks, body)
    panel: list[Statement] = []
    right = parts.right
    if plan.packs_right:
        copying, right = pack_right(needed, plan.nr, lanes, LANE)
        panel.append(copying)
    following = plan.packs_right and plan.nc > plan.nr
    far = not plan.packs_left and not stays_near(problem, plan.mc, target)
    several = max(block.tiles, 1)
    ahead = Ahead(plan.nr, following, several, far) if plan.nr > 1 else None
    work = tuple(tiles(problem, left, right, block, plan.nr, ahead))
    if plan.packs_right and not plan.packs_left and not problem.has_dynamic_bounds:
        tasks = numel([axis.extent for axis in (*outer, column_blocks, blocks)])
        shared = rows_of_panel(parts.m, plan.mc, tasks)
        outer = [axis for axis in outer if axis not in shared]
        for axis in reversed(shared):
            work = (serial_loop(axis, work),)
    panel.extend(work)
    stops = (start + plan.nc, column.count)
    body.append(lanes_loop(column, plan.nr, tuple(panel), start, stops, LANE))
    return _nest(name, kernel, target, outer, column_blocks, blocks, body)


def _amx_nest(problem: Problem, kernel: Kernel, target: Target, name: str) -> Nest | None:
    """The nest of a product in matrix registers, where that pays."""
    parts = problem.parts
    row, column = parts.m[-1], parts.n[-1]
    outer = [*parts.batch, *parts.m[:-1], *parts.n[:-1]]
    cuts = plan_amx(problem, target, numel([axis.extent for axis in outer]))
    if cuts is None:
        return None
    rows, columns = cuts
    column_blocks = make_axis("p", 0, ceildiv(numel([column.extent]), columns))
    blocks = make_axis("c", 0, ceildiv(row.extent, rows))
    block = Block(blocks.index, rows, SQUARE)
    start = column_blocks.index * columns
    body = amx(problem, block, start, columns, LANE)
    return _nest(name, kernel, target, outer, column_blocks, blocks, body)


def _nest(
    name: str, kernel: Kernel, target: Target, outer: list[Axis], column_blocks: Axis, blocks: Axis,
    body: list[Statement],
) -> Nest:  # fmt: skip
    inner = tuple(body)
    free, within = parallel_axes([*outer, column_blocks, blocks])
    for axis in reversed(within):
        inner = (serial_loop(axis, inner),)
    nest = assemble(name, kernel, flat_loop(free, inner), target)
    return replace(nest, operations=flops(kernel))


def prepare(kernel: Kernel) -> Problem:
    """Inline the epilogue and merge axes."""
    stage = kernel.stages[0]
    own = expr.local(Local("product", stage.array.dtype, 1))
    marker = replace(stage, op=None, reduced=(), body=own)
    stores = inline_stages(replace(kernel, stages=(marker, *kernel.stages[1:])), stage.axes)
    used = indices(
        [stage.body, *(s.value for s in stores)], [stage.position, *(s.index for s in stores)]
    )
    parts = stage.contraction
    assert parts is not None
    values: dict[Atom, Integer] = {}
    axes: list[tuple[Axis, ...]] = []
    for name in ("batch", "m", "n", "k"):
        merged = merge(getattr(parts, name), used)
        for _, known in merged:
            values.update(known)
        axes.append(tuple(axis for axis, _ in merged))
    changed = replace(
        stage.substitute(values), axes=(*axes[0], *axes[1], *axes[2]), reduced=axes[3]
    )
    operands, terms = [parts.left, parts.right], None
    if parts.mask is not None:
        terms = changed.body
        place = 0 if parts.mask.variables <= parts.left.variables else 1
        zero = expr.const(0.0, operands[place].dtype)
        masked = (parts.mask, operands[place], zero)
        operands[place] = expr.apply(Op.WHERE, masked, zero.dtype)
    left, right = (expr.substitute_in(operand, values) for operand in operands)
    return Problem(
        changed, Contraction(left, right, axes[0], axes[1], axes[2], axes[3]),
        tuple(substitute_stores(stores, values)), own, terms=terms,
    )  # fmt: skip


def plan_of(problem: Problem, target: Target, batches: int) -> Plan:
    """Sizes of tiles and tasks; they depend on shapes, layouts and the target only."""
    plan = _cut_up(problem, target, batches)
    if isinstance(problem.parts.m[-1].extent, int):
        return plan
    return replace(plan, mc=ceildiv(plan.mc, plan.mr) * plan.mr)


def _cut_up(problem: Problem, target: Target, batches: int) -> Plan:
    """`plan_of` of as many rows as there typically are."""
    row, column = problem.parts.m[-1], problem.parts.n[-1]
    rows = row.typical
    nr = choose_nr(target, problem.stage, column.count)
    awkward = left_is_awkward(problem, target)
    crowded = not awkward and rows_compete(problem)
    mr = choose_mr(target, rows, nr, problem.stage, CROWDED if crowded else 0)
    panels = ceildiv(column.count, nr)
    depth, _ = depth_of(problem.parts.k)
    size = problem.stage.body.dtype.itemsize
    plain = all(isinstance(axis.extent, int) for axis in problem.parts.k)
    pays = packing_pays(problem, target)
    deep = depth * nr * size > FAR_BYTES
    far = depth * ROWS_OF_COPY * size > target.l2 // 2
    if pays and plain and (deep or awkward and far):
        together = panels_at_once(target, KC * nr * size, panels)
        unit = together * nr
        nc = cut(column.count, unit, NC)
        blocks = ceildiv(rows, target.l2 // 2 // (KC * size))
        others = batches * ceildiv(column.count, nc)
        while others * blocks < FEW_TASKS:
            mc = rows // blocks
            if max(mc, nc) < 2 * LEAST_ROWS:
                break
            if nc >= mc and nc > unit:
                nc = cut(column.count, unit, nc // 2)
                others = batches * ceildiv(column.count, nc)
            else:
                blocks *= 2
        mr, mc = even_blocks(rows, mr, blocks, others)
        return Plan(mr, nr, mc, nc, True, True, KC, together)
    if pays and awkward:
        blocks, column_blocks = cut_for_packed_rows(problem, target, mr, panels, batches)
        mr, mc = even_blocks(rows, mr, blocks, batches * column_blocks)
        packs = needs_packing(problem, nr, mc)
        each = ceildiv(panels, column_blocks)
        together = panels_at_once(target, depth * nr * size, each) if packs else 0
        nc = ceildiv(each, max(together, 1)) * max(together, 1) * nr
        return Plan(mr, nr, mc, nc, True, packs, 0, together)
    mc = rows
    near = target.l2 // 2 // (depth * size)  # rows that stay in half of the second cache
    if pays and near >= MANY_ROWS:
        mc = cut(rows, mr, near)
    packs = nr > 1 and needs_packing(problem, nr, mc)
    if mc >= rows:
        wanted = FEW_TASKS if packs else ENOUGH_TASKS
        mc = rows_of_block(rows, mr, ceildiv(wanted, batches * panels))
    tasks = batches * ceildiv(rows, mc) * panels
    for axis in rows_of_panel(problem.parts.m, mc, tasks):
        tasks //= numel([axis.extent])
    each = tasks // ENOUGH_TASKS if packs else 1
    work = mc * depth * nr  # multiply-adds of a panel
    column_blocks = ceildiv(panels, max(min(each, MOST_PANELS, MOST_WORK // max(work, 1)), 1))
    each = ceildiv(panels, column_blocks)
    together = each if near < mc and 1 < each <= target.l2 // 2 // (depth * nr * size) else 0
    return Plan(mr, nr, mc, each * nr, False, packs, panels=together)


def panels_at_once(target: Target, nbytes: int, panels: int) -> int:
    """How many panels of `nbytes` are packed together: a quarter of the second cache's worth."""
    most = min(max(target.l2 // 4 // nbytes, 1), panels)
    return ceildiv(panels, ceildiv(panels, most))


def rows_of_panel(m: tuple[Axis, ...], rows: int, tasks: int) -> list[Axis]:
    """The axes of rows before the last one, over which a task loops to make its packing pay."""
    found: list[Axis] = []
    for axis in reversed(m[:-1]):
        if not isinstance(axis.extent, int) or axis.extent == 0 or rows >= MANY_ROWS:
            break
        if tasks // axis.extent < FEW_TASKS:
            break
        found.insert(0, axis)
        rows *= axis.extent
        tasks //= axis.extent
    return found


def packing_pays(problem: Problem, target: Target) -> bool:
    """Whether a copy of the left operand's rows is read often enough."""
    row, column = problem.parts.m[-1].typical, problem.parts.n[-1].count
    nr = choose_nr(target, problem.stage, column)
    enough = nr >= target.lanes(problem.stage.body.dtype) > 1
    return enough and column > (LEAST_PANELS - 1) * nr and row > target.tile_rows


def cut(extent: int, unit: int, most: int) -> int:
    """The size of equal pieces, multiples of `unit`, of at most about `most`."""
    units = ceildiv(extent, unit)
    pieces = ceildiv(units, max(most // unit, 1))
    return ceildiv(units, pieces) * unit


def even_blocks(extent: int, mr: int, blocks: int, others: int) -> tuple[int, int]:
    """The rows of a tile, `mr` or a little less, and of one of about `blocks` blocks.

    All are about as large as one another, and `SHARES` threads can share them evenly, or what
    comes of them in `others` tasks each.
    """
    if blocks == 1:
        return mr, extent
    step = SHARES // gcd(SHARES, others)
    wanted = ceildiv(extent, max((2 * blocks + step) // (2 * step), 1) * step)
    lower = range(mr, 3 * mr // 4, -1)
    best = min(lower, key=lambda rows: ceildiv(wanted, rows) * rows)
    return best, ceildiv(wanted, best) * best


def rows_compete(problem: Problem) -> bool:
    """Whether neighbouring rows of the left operand fall into the same lines of a cache."""
    left = problem.parts.left
    stride = coefficient(left.index, problem.parts.m[-1].variable) or 0
    return stride != 0 and stride * left.dtype.itemsize % PAGE == 0


def rows_of_block(rows: int, mr: int, wanted: int) -> int:
    """Rows of one parallel iteration, a multiple of the tile's unless it is all of them."""
    pieces = min(wanted, rows // LEAST_ROWS)
    if pieces <= 1:
        return rows
    return ceildiv(rows, pieces * mr) * mr


def cut_for_packed_rows(
    problem: Problem, target: Target, mr: int, panels: int, batches: int
) -> tuple[int, int]:
    """Blocks of rows, whose copies stay in half of the second cache; blocks of columns."""
    row = problem.parts.m[-1]
    depth, _ = depth_of(problem.parts.k)
    size = problem.parts.left.dtype.itemsize
    most = max(target.l2 // 2 // (depth * max(size, 4)) // mr, 1)
    tiles_of_all = ceildiv(row.typical, mr)
    blocks = ceildiv(tiles_of_all, most)
    wanted = ceildiv(FEW_TASKS, batches)
    column_blocks = 1
    if blocks < wanted:
        fewest = ceildiv(LEAST_ROWS, mr)
        blocks = max(blocks, min(wanted, tiles_of_all // fewest))
        column_blocks = max(min(ceildiv(wanted, blocks), panels // (2 * LEAST_PANELS)), 1)
    return blocks, column_blocks


def stays_near(problem: Problem, rows: int, target: Target) -> bool:
    """Whether `rows` rows of the left operand stay in half of the second cache."""
    row, (depth, _) = problem.parts.m[-1], depth_of(problem.parts.k)
    size = problem.parts.left.dtype.itemsize
    return min(rows, row.typical) * depth * size <= target.l2 // 2


def left_is_awkward(problem: Problem, target: Target) -> bool:
    """Whether tiles should not read the left operand as it is.

    They walk along k, row beside row: far jumps, conversions and conditions would be paid for
    every panel again. Rows that are neighbours do where all of them stay in the second cache, or
    where a step along k stays on the page.
    """
    left, row = problem.parts.left, problem.parts.m[-1]
    if left.op is not Leaf.LOAD or left.guard:
        return True
    step = coefficient(left.index, problem.parts.k[-1].variable)
    if step == 1:
        return False
    depth, _ = depth_of(problem.parts.k)
    size = left.dtype.itemsize
    near = depth * row.typical * size <= 3 * target.l2 // 4 or (
        step is not None and 0 < step * size <= STEP_BYTES
    )
    return not (near and 1 in strides(left, row.variable))


def needs_packing(problem: Problem, nr: int, rows: int) -> bool:
    """Whether vectors of the right operand's rows must be gathered once, not for every tile."""
    right = problem.parts.right
    column = problem.parts.n[-1].variable
    for load in expr.loads(right):
        if load.guard or coefficient(load.index, column) != 1:
            return True
    if right.op is not Leaf.LOAD:
        return True
    span = sum(
        abs(coefficient(right.index, axis.variable) or 1) * numel([axis.extent])
        for axis in problem.parts.k
    ) * right.dtype.itemsize
    depth, _ = depth_of(problem.parts.k)
    return span > FAR_BYTES and rows >= LEAST_ROWS and depth * nr * 4 <= FAR_BYTES
