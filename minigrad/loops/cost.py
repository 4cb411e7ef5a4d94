"""The cost of kernels: lower bounds, and how to divide a product so that it comes near them.

The estimates are used for reports and for the size of chunks. A product's five numbers have the
names of "BLIS" (Van Zee, van de Geijn, ACM TOMS 41, 2015):

    mr   rows of a tile: its accumulators fill the registers
    nr   columns of a tile, and of a panel: one or two vectors
    mc   rows of a task, a block; packed, they stay in the second-level cache
    kc   elements of k that are packed and multiplied before the next; 0 where that is all of them
    nc   columns of a task; BLIS packs all of their panels at once, here it is one at a time
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from math import prod

from minigrad.dtype import DType
from minigrad.graph.node import grouped
from minigrad.graph.operations import SCATTERS, Op
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import coefficient, variables
from minigrad.graph.symbolic import Atom, ceildiv
from minigrad.loops.axes import NEIGHBOURS, enough_lanes
from minigrad.loops.nest import Loop, Statement, Store, divides, walk_with_loops
from minigrad.loops.product import Problem, distance, part_of_image
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis
from minigrad.schedule.expr import Array, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import CHAINS, ENOUGH_TASKS, FEW_TASKS, LINE, Target

# Packing a panel takes 5 to 10 cycles for each of its vectors (measured); there are two vectors
# per k. A row multiplies both in one cycle. So it costs one or two tenths of the work of
# LEAST_ROWS, which pays if memory is far, and hardly anything beside the work of MANY_ROWS.
LEAST_ROWS, MANY_ROWS = 96, 384
MOST_TASKS = 64  # that compute their rows of all batches
SHARES = 4  # threads among which few tasks should divide evenly (so two threads share them, too)
MOST_PANELS = 8  # panels of one task; during each of them the next is prefetched
# Multiply-adds of one task: 1.5 to 6 ms at 64 to 16 a cycle. So long the others may have to wait
# for a thread that shares its core.
MOST_WORK = 1 << 28
FAR_BYTES = 1 << 19  # a panel whose rows span more is packed: 128 pages exceed a first-level TLB
# If k is cut: a tile of 14 packed rows of KC floats has 28 KiB, and stays in a first-level cache. A
# task has NC columns: its sums are read and written once for KC multiply-adds each.
KC = NC = 512
PAGE = 4096  # rows at multiples of this distance share the lines of a first-level cache
CROWDED = 8  # such rows that fit nevertheless: the cache has 8 ways, or 12
STEP_BYTES = PAGE // 8  # a step along k with which several elements are on a page
# Panels from which on a copy of a row of `left` pays: written once, it is read once for each.
LEAST_PANELS = 4
# Rows of the tiles for a remainder whose size is not known: four rows take a little longer than
# one, and both a third of the time of 14.
SMALL_TILES = (4, 1)
LEAST_FULL = 16  # wide tiles compute at most a sixteenth of all columns in vain
# Operations, or elements, of a kernel at its largest size that take some microseconds at most.
BRIEF_OPERATIONS = 1 << 20
SQUARE = 32  # rows and columns of a square: 2 × 2 matrix registers of 16 rows



def operations(stages: Iterable[Stage], loads: bool = True) -> int:
    """The operations of stages: evaluations of bodies times their cost, a multiply-add being two.

    loads: whether loads and casts count; they do not if each load feeds many multiply-adds.
    """
    total = 0
    for stage in stages:
        counted = (e for e in expr.walk(stage.body) if loads or e.args and e.op is not Op.CAST)
        each = sum(expr.cost(e.op) for e in counted) + (stage.op is not None)
        total += stage.iterations * each
    return total


def is_brief(stages: Sequence[Stage]) -> bool:
    """Whether a kernel with varying sizes takes far longer to compile than to run a thousand times.

    Its code is short then: tiles of few rows, vectors of one register, all of them under a mask.
    """
    axes = [axis for stage in stages for axis in (*stage.axes, *stage.reduced)]
    varies = any(not isinstance(axis.extent, int) for axis in axes)
    most = max(operations(stages, loads=False), sum(stage.iterations for stage in stages))
    return varies and most <= BRIEF_OPERATIONS


def vectors(kernel: Kernel, target: Target, at_once: int = 1) -> float:
    """Vector instructions of a whole kernel.

    at_once: products that a lane of a contraction's instructions adds. Operations on a product's
    operands while they are packed do not count.
    """
    total = 0.0
    for stage in kernel.stages:
        if kernel.kind == "contraction" and (found := stage.product) and found.added is None:
            each = 1 / target.lanes(stage.body.dtype) / at_once
        else:
            each = vectors_each(stage, target)
        total += stage.iterations * each
    return total


def vectors_each(stage: Stage, target: Target) -> float:
    """Vector instructions for one element of a stage, a fraction.

    Each counts by its own dtype. A product that is only added to something is part of the addition.
    Values that are equal for all elements do not count, nor do loads, which have their own ports.
    """
    order = expr.walk(stage.body)
    readers = grouped((arg, e.op) for e in order for arg in e.args)
    if stage.op is not None:
        readers.setdefault(stage.body, []).append(Op.ADD if stage.op is Op.SUM else stage.op)
    total = 0.0 if stage.op is None else 1 / target.lanes(stage.body.dtype)
    for e in order:
        joined = e.op is Op.MUL and e.dtype.is_float and readers.get(e) in ([Op.ADD], [Op.SUB])
        if e.args and e.variables and not joined:
            lanes = min(target.lanes(x.dtype) for x in (e, *e.args))
            total += expr.cost(e.op) / lanes
    return total


def traffic(stages: Iterable[Stage], arrays: Iterable[Array]) -> int:
    """Bytes of `arrays` that stages read and write; of a gather's table only the rows taken."""
    read: Counter[Array] = Counter()
    written: Counter[Array] = Counter()
    for stage in stages:
        extents = {
            a.variable: a.extent for a in (*stage.axes, *stage.reduced, *stage.initial_axes)
        }
        for load in replace(stage, initial=None).loads if stage.in_place else stage.loads:
            inside = load.variables
            read[load.array] += numel([n for v, n in extents.items() if v in inside])
        updates = stage.iterations if stage.op in SCATTERS else 0
        written[stage.array] += max(0 if stage.in_place else stage.size, updates)
        read[stage.array] += updates
    return sum(
        array.dtype.itemsize * (min(read[array], array.size) + min(written[array], array.size))
        for array in dict.fromkeys(array.of or array for array in arrays)
    )


# ---- loops ----

PER_CYCLE = 2  # vector instructions that start in a cycle, and loads; of stores one


@dataclass
class Estimate:
    """The cost of loops: vector instructions, loads, stores, and cycles of waiting for sums."""

    arithmetic: float = 0
    loads: float = 0
    stores: float = 0
    waiting: float = 0

    @property
    def cycles(self) -> float:
        """All parts overlap, so the slowest decides; all accesses are assumed to hit a cache."""
        ports = max(self.arithmetic, self.loads) / PER_CYCLE
        return max(ports, self.stores, self.waiting)


def estimate(body: Sequence[Statement], target: Target) -> Estimate:
    """The cost of statements in loops, without repeating what does not depend on inner loops."""
    found = Estimate()
    for statement, around in walk_with_loops(body):
        if isinstance(statement, Store):
            _add(statement, target, around, found)
    return found


def _add(
    statement: Store, target: Target, around: tuple[Loop, ...], found: Estimate
) -> None:
    def times(inside: frozenset[Atom], dtype: DType, outermost: int) -> float:
        """Instructions for a value that depends on variables, in the loops that it must be in."""
        varies = [not inside.isdisjoint((loop.variable, loop.lane)) for loop in around]
        depth = max((n + 1 for n, it_does in enumerate(varies) if it_does), default=0)
        count = 1.0
        for loop, it_does in zip(around[: max(depth, outermost)], varies, strict=False):
            count *= loop.vectors
            if loop.kind == "lanes" and it_does:
                count *= loop.step / min(target.lanes(dtype), loop.step)
        return count

    value = statement.value
    order, all_loops = expr.walk(value), len(around)
    summed = {e for e in order if e.in_registers}
    for e in order:
        if e.op is Leaf.LOAD and e not in summed:
            found.loads += times(e.variables, e.dtype, 0)
        joined = e.op is Op.MUL and value.op is Op.ADD and e in value.args
        if e.args and not joined:
            again = all_loops if not summed.isdisjoint(expr.walk(e)) else 0
            found.arithmetic += expr.cost(e.op) * times(e.variables, e.dtype, again)
    apart = variables(statement.index)
    if not statement.array.in_registers:
        found.stores += times(apart, statement.array.dtype, all_loops)
    elif expr.load(statement.array, statement.index) in summed:
        waits = [loop for loop in around if loop.variable not in apart]
        found.waiting += CHAINS * prod(loop.vectors for loop in waits)


# ---- products ----


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: tiles of mr × nr, tasks of mc × nc (see above).

    packs_left, packs_right: operands that are copied, in the order in which tiles read them.
    squares: tiles are in matrix registers. in_turn: a task computes its rows of all batches.
    """

    mr: int
    nr: int
    mc: int
    nc: int
    packs_left: bool
    packs_right: bool
    kc: int = 0
    squares: bool = False
    in_turn: bool = False


def tiling_of(problem: Problem, target: Target) -> Tiling:
    """Sizes of tiles and tasks; they depend on shapes, layouts and the target only."""
    best = _cut_up(problem, target)
    *_, tiling = best, *islice(others(best, problem), target.choice)
    if isinstance(problem.row.extent, int):
        return tiling
    return replace(tiling, mc=ceildiv(tiling.mc, tiling.mr) * tiling.mr)


def others(best: Tiling, problem: Problem) -> Iterator[Tiling]:
    """Plans near the best one, which may be better where the model is wrong; likely ones first.

    Half and twice as many columns and rows for a task, one row less for a tile, other depths.
    """
    rows, columns = problem.row.typical, problem.column.typical
    for factor in (2, 0.5):
        nc = max(ceildiv(int(best.nc * factor), best.nr) * best.nr, best.nr)
        if nc != best.nc and (factor < 1 or best.nc < columns):
            yield replace(best, nc=nc)
        mc = ceildiv(int(best.mc * factor), best.mr) * best.mr
        if mc != best.mc and (factor < 1 or best.mc < rows):
            yield replace(best, mc=min(mc, max(rows, best.mr)))
    for mr in (best.mr - 1, best.mr - 2):
        if mr > 0:
            yield replace(best, mr=mr, mc=min(ceildiv(best.mc, mr) * mr, max(rows, mr)))
    if best.kc:
        yield replace(best, kc=best.kc // 2)
        yield replace(best, kc=3 * best.kc // 2)


def _cut_up(problem: Problem, target: Target) -> Tiling:
    """The model's best tiling, for the typical number of rows."""
    column, rows = problem.column, problem.row.typical
    nr = tile_columns(problem, target)
    awkward = left_is_awkward(problem, target)  # to read in place
    apart = 0 if awkward else coefficient(problem.left.index, problem.row.variable) or 0
    # neighbouring rows of the left operand compete for the same lines of a cache
    crowded = apart != 0 and apart * problem.left.dtype.itemsize % PAGE == 0
    mr = choose_mr(target, rows, nr, problem.total.dtype, CROWDED if crowded else 0)
    panels = ceildiv(column.typical, nr)
    depth = problem.depth
    size = problem.total.dtype.itemsize
    pays = packing_pays(problem, target)
    deep = depth * nr * size > FAR_BYTES and all(isinstance(k.extent, int) for k in problem.k)
    if pays and (awkward or deep):
        # copy blocks of rows that stay in the second cache; if the product is deep, a piece of k
        kc = KC if deep else 0
        cache = target.l2 // 2 if kc else target.l2
        most_rows = max(cache // ((kc or depth) * max(size, 4)), mr)
        most_columns = NC if kc else max(MOST_WORK // (min(rows, most_rows) * depth), 1)
        blocks, column_blocks = blocks_of(problem, most_rows, most_columns)
        mc = rows if blocks == 1 else ceildiv(ceildiv(rows, blocks), mr) * mr
        packs = kc > 0 or needs_packing(problem, nr, mc)
        return Tiling(mr, nr, mc, ceildiv(panels, column_blocks) * nr, True, packs, kc)
    # read rows of the left operand where they are
    if few := rows_of_all_batches(problem, target):
        packs = nr > 1 and needs_packing(problem, nr, few)
        return Tiling(mr, nr, few, panels * nr, False, packs, in_turn=True)
    mc = rows
    staying = target.l2 // 2 // (depth * size)  # rows that stay in half of L2
    again = panels > 1 and staying >= MANY_ROWS  # each panel of a task reads them again, there
    if again:
        mc = cut(rows, mr, staying)
    packs = nr > 1 and needs_packing(problem, nr, mc)
    if mc >= rows:  # so many blocks that all threads have work
        wanted = FEW_TASKS if packs else ENOUGH_TASKS
        pieces = min(ceildiv(wanted, problem.batches * panels), rows // LEAST_ROWS)
        mc = ceildiv(rows, pieces * mr) * mr if pieces > 1 else rows
    tasks = problem.batches * ceildiv(rows, mc) * panels
    tasks //= prod(size for _, size in rows_of_panel(problem.m, mc, tasks))
    # several panels for each task, if enough tasks remain
    spare = tasks // ENOUGH_TASKS if packs or again else 1
    work = mc * depth * nr  # multiply-adds of a panel
    column_blocks = ceildiv(panels, max(min(spare, MOST_PANELS, MOST_WORK // max(work, 1)), 1))
    return Tiling(mr, nr, mc, ceildiv(panels, column_blocks) * nr, False, packs)


def rows_of_all_batches(problem: Problem, target: Target) -> int:
    """The rows of a task that computes them for all batches; 0: tasks are of one batch each.

    If the right operands of all batches stay in L2, but the left ones do not, a task's share of
    these and of the results does, about: kernels that make or read them may run in turn with this
    one (see `schedule/groups.py`), as those of Winograd's method do.
    """
    rows, size = problem.row.extent, problem.total.dtype.itemsize
    depth, columns = problem.depth * size, problem.column.typical * size
    of_row = problem.batches * (depth + columns)
    right, left = problem.batches * problem.depth * columns, problem.batches * depth
    if not isinstance(rows, int) or problem.batches == 1 or len(problem.m) > 1:
        return 0
    if right > target.l2 or rows * left <= target.l2:
        return 0
    fewest = max(ceildiv(rows * of_row, 2 * target.l2), ENOUGH_TASKS)
    return next((rows // n for n in range(fewest, MOST_TASKS + 1) if rows % n == 0), 0)


def rows_of_panel(m: tuple[Axis, ...], rows: int, tasks: int) -> list[tuple[Axis, int]]:
    """The axes of rows before the last one, over which a task loops to make its packing pay.

    With each axis comes the extent of it for one task: all, or an equal part if all of it would
    leave too few tasks.
    """
    found: list[tuple[Axis, int]] = []
    for axis in reversed(m[:-1]):
        if not isinstance(axis.extent, int) or rows >= MANY_ROWS:
            break
        most = axis.extent // ceildiv(FEW_TASKS, tasks // axis.extent)
        size = next((n for n in range(most, 1, -1) if axis.extent % n == 0), 1)
        if size > 1:
            found.insert(0, (axis, size))
        if size < axis.extent:
            break
        rows *= axis.extent
        tasks //= axis.extent
    return found


def shared_rows(problem: Problem, tiling: Tiling) -> list[tuple[Axis, int]]:
    """Axes of rows over which a task loops to make its packing of panels pay, how much of each."""
    loaded = problem.ends or problem.needed is not None  # bounds of loops
    if tiling.kc or not tiling.packs_right or tiling.packs_left or loaded:
        return []
    blocks = ceildiv(problem.column.typical, tiling.nc) * ceildiv(problem.row.typical, tiling.mc)
    return rows_of_panel(problem.m, tiling.mc, problem.batches * blocks)


def packing_pays(problem: Problem, target: Target) -> bool:
    """Whether a copy of the left operand's rows is read often enough."""
    row, column = problem.row.typical, problem.column.typical
    nr = choose_nr(target, problem.total.dtype, column)
    enough = nr >= target.lanes(problem.total.dtype) > 1
    return enough and column > (LEAST_PANELS - 1) * nr and row > target.tile_rows


def cut(extent: int, unit: int, most: int) -> int:
    """The size of equal pieces, multiples of `unit`, of at most about `most`."""
    units = ceildiv(extent, unit)
    pieces = ceildiv(units, max(most // unit, 1))
    return ceildiv(units, pieces) * unit


def blocks_of(
    problem: Problem, most_rows: int, most_columns: int, least: int = LEAST_ROWS,
    copies_left: bool = True,
) -> tuple[int, int]:  # fmt: skip
    """The numbers of blocks of rows and of columns: enough tasks for threads, and few copies.

    Each block of rows copies all columns, each block of columns all rows. A copy that transposes
    takes twice as long: of panels whose columns lie along k, and of rows that are adjacent, as each
    vector goes to another tile (a product of bfloat16, Aᵀ·B, took 1.02 … 1.07 of the time).
    least: rows and columns of a block. copies_left: whether rows that need no transposition are
    copied.
    """
    extents = problem.row.typical, problem.column.typical
    fewest = ceildiv(extents[0], most_rows), ceildiv(extents[1], most_columns)
    ways = product(*(
        range(few, max(few, min(n // least, few + FEW_TASKS)) + 1)
        for n, few in zip(extents, fewest, strict=True)
    ))  # fmt: skip
    k, m, n = (axes[-1].variable for axes in (problem.k, problem.m, problem.n))
    of_right = 2 if distance(problem.right, k) < distance(problem.right, n) else 1
    of_left = 2 if distance(problem.left, m) < distance(problem.left, k) else int(copies_left)

    def cost(way: tuple[int, ...]) -> tuple[bool, int, int]:
        rows, columns = way
        tasks = problem.batches * rows * columns
        copied = of_right * rows * extents[1] + of_left * columns * extents[0]
        uneven = tasks < ENOUGH_TASKS and tasks % SHARES != 0
        return uneven, max(FEW_TASKS - tasks, 0), copied

    rows, columns = min(ways, key=cost)
    return rows, columns


def left_is_awkward(problem: Problem, target: Target) -> bool:
    """Whether tiles should read a copy of the left operand.

    They walk along k, row beside row. So far jumps, conversions and conditions would be paid for
    again in every panel, and rows that are not equally far apart would each need an address in a
    register. No copy is needed if elements of a row are near each other, or rows are and all of
    them stay in L2, or a step along k stays on the page. Conditions are accepted if most tiles, or
    most of k, meet them anyway.
    """
    left, row, k = problem.left, problem.row.variable, problem.k[-1].variable
    if left.op is not Leaf.LOAD or coefficient(left.index, row) is None:
        return True
    size, nr = left.dtype.itemsize, choose_nr(target, problem.total.dtype, problem.column.typical)
    if left.guard:
        if not needs_packing(problem, nr, problem.row.typical):
            return True
        left = part_of_image(problem)[0].left
        if not all(coefficient(c, row) or coefficient(c, k) for c in left.guard):
            return True
    apart, step = (coefficient(left.index, x) for x in (row, k))
    near = problem.depth * problem.row.typical * size <= 3 * target.l2 // 4 or (
        step is not None and 0 < step * size <= STEP_BYTES
    )
    steps = range(1, (NEIGHBOURS if len(problem.k) > 1 else 1) + 1)  # windows overlap, slices not
    return not (step in steps or near and apart in steps)


def needs_packing(problem: Problem, nr: int, rows: int) -> bool:
    """Whether the right operand's panels are copied: their vectors are scattered or far apart."""
    right = problem.right
    adjacent = right.op is Leaf.LOAD and expr.strides(problem.column.variable, right) == {1}
    if not adjacent or any(load.guard for load in expr.loads(right)):
        return True
    span = sum(
        abs(coefficient(right.index, axis.variable) or 1) * axis.most
        for axis in problem.k
    ) * right.dtype.itemsize
    depth = problem.depth
    return span > FAR_BYTES and rows >= LEAST_ROWS and depth * nr * 4 <= FAR_BYTES


def choose_nr(target: Target, dtype: DType, columns: int) -> int:
    """Columns of a tile: two registers, or fewer if there are few columns."""
    lanes = target.lanes(dtype)
    if lanes == 1:
        return 1
    if columns > lanes:
        return 2 * lanes
    return enough_lanes(lanes, columns)


def tile_columns(problem: Problem, target: Target) -> int:
    """Columns of a product's tile: the target's wide tile, or as `choose_nr` has it.

    The wide one if there are vectors, few columns are computed in vain, there are more rows than a
    tile has, and a panel stays in a quarter of L2, from which each tile reads it. Not if each k
    reads another line of the left operand, too.
    """
    dtype, columns = problem.total.dtype, problem.column.typical
    nr = choose_nr(target, dtype, columns)
    wide = target.tile_vectors * target.lanes(dtype)
    near = problem.depth * wide * dtype.itemsize <= target.l2 // 4
    enough = problem.row.typical > target.tile_rows and -columns % wide <= columns // LEAST_FULL
    far = distance(problem.left, problem.k[-1].variable) * dtype.itemsize > LINE
    if far and not left_is_awkward(problem, target):
        return nr
    return wide if 1 < nr < wide < 2 * columns and near and enough and not target.brief else nr


def choose_mr(target: Target, rows: int, nr: int, dtype: DType, bound: int = 0) -> int:
    """Rows of a tile: as many as the registers hold, about equal in all tiles.

    Exactly equal if a divisor of the rows has enough independent sums: a smaller last tile would be
    as much code again. `bound`: at most that many, if it is not 0.
    """
    lanes = target.lanes(dtype)
    if nr > 2 * lanes:  # few rows: one less in all tiles costs more loads than a smaller last tile
        return cut(rows, 1, (target.registers - 2) * lanes // nr - 1)
    least = 4 * CHAINS * lanes // max(nr, lanes)
    most = target.tile_rows if nr >= 2 * lanes else 2 * target.tile_rows - 4
    if target.brief:
        least, most = least // 2, 3 * least // 4
    if bound and bound < most:
        return min(bound, rows)
    best = cut(rows, 1, most)
    return next((n for n in range(best, least - 1, -1) if rows % n == 0), best)


def cut_depth(problem: Problem, kc: int) -> tuple[int, int]:
    """The axis of k to cut, and the piece of it that makes at most `kc` elements of k."""
    extents = [axis.most for axis in problem.k]
    place = len(extents) - 1
    while place and prod(extents[place:]) <= kc:
        place -= 1
    return place, cut(extents[place], 1, kc // prod(extents[place + 1 :]))


def row_stride(depth: int, itemsize: int) -> int:
    """Elements from one row of a copy to the next: an odd number of cache lines.

    Rows whose distance is a multiple of a few kilobytes would all compete for the same few lines of
    the first-level cache.
    """
    line = LINE // max(itemsize, 4)
    return (ceildiv(depth, line) | 1) * line


def amx_tiling(problem: Problem, target: Target) -> Tiling | None:
    """Tasks of whole squares, or None if packing does not pay; problem: in whole registers.

    For bytes it nearly always pays: vectors multiply integers one by one.
    """
    if not isinstance(problem.column.extent, int):
        return None  # (no such machine was at hand when columns began to vary)
    rows, columns = problem.row.most, problem.column.count
    of_bytes = problem.total.dtype.is_int
    few = SQUARE // 2 if of_bytes else LEAST_PANELS * SQUARE
    most = max(target.l2 // 2 // (4 * problem.depth) // SQUARE, of_bytes)
    if rows < SQUARE // 2 or columns < few or most == 0:
        return None
    direct = lies_in_words(problem)
    least = LEAST_PANELS * SQUARE
    blocks, column_blocks = blocks_of(problem, most * SQUARE, columns, least, not direct)
    mc, nc = (
        ceildiv(ceildiv(extent, SQUARE), count) * SQUARE
        for extent, count in ((rows, blocks), (columns, column_blocks))
    )
    return Tiling(SQUARE, SQUARE, mc, nc, not direct, True, squares=True)


def lies_in_words(problem: Problem) -> bool:
    """Whether the left operand's rows are in memory as matrix registers read them.

    That is whole squares of rows, each of adjacent words, at distances of whole lines, but not of
    whole pages.
    """
    loads, row = problem.left.args, problem.row
    if len(problem.k) > 1 or not divides(row.extent, SQUARE) or not expr.adjacent(loads):
        return False
    first, size = loads[0], loads[0].dtype.itemsize
    step, pitch = (coefficient(first.index, x.variable) for x in (problem.k[0], row))
    if step != len(loads) or pitch is None or pitch * size % LINE:
        return False
    return pitch * size % PAGE != 0
