"""Recipes for GPUs. Of a matrix product: a tile of the results for each work-group.

    parallel over batch × tiles of rows × tiles of columns, one work-group each:
      results = 0, some rows × vectors of columns in the registers of each work-item
      for pieces of k:
        all work-items copy the tile's rows of both operands to local memory
        barrier
        for k of the piece:  results[row] += left[row, k] · right[k, lanes]
        barrier
      store the results through the epilogue

The copies take any index expression, mask or conversion, like those of gemm.py for a CPU. Edges are
zeros in local memory, and masks of the last stores. All of these are steps of a schedule (see
transforms.py): loops in tiles, sums in registers, copies that work-items share; at the end each is
bound to its part: `python -m minigrad.loops.explain gemm 512 512 512 --gpu`.

For rows: a work-group for each row, or for a block of neighbouring rows. Stage after stage, the
work-items share the row's elements; a reduction of a row is first computed by each item for a share
of the row, then by all items together. Between stages there is a barrier. Values that stay inside
the kernel are in local memory or, if that is too small, in scratch memory of the group.

Rows with products (attention) are taken several at a time, one in each lane of a vector, so that a
column of the other operand is read once for all of them. Their masks become bounds of loops, as for
a CPU (see mask_bounds.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from minigrad.dtype import DType
from minigrad.graph.node import Op
from minigrad.graph.shapes import iterations
from minigrad.graph.substitution import only_atom
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high
from minigrad.loops import build
from minigrad.loops.axes import fix_rows, merge_stage, row_axes
from minigrad.loops.block_plan import neighbours, products_before_readers
from minigrad.loops.build import Bounds
from minigrad.loops.mask_bounds import Rows, mask_bounds
from minigrad.loops.nest import Barrier, Loop, Lowered, Statement, Statements, Store, written
from minigrad.loops.product import Problem, prepare
from minigrad.loops.transforms import Around, LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, place_along, places_along, size_of
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.fuse import prefix_length, runs_across_rows
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import ITEM_LANES, TILE_DEPTH, Group, Target, Tile

PAD = 4  # elements between the rows of a local array, so that they start in different banks


def gpu_gemm(kernel: Kernel, target: Target) -> Lowered | None:
    """The loops of a product and its elementwise epilogue, for work-groups.

    None if there is nothing to tile, because all rows or columns are a varying number; and if the
    product may have to be computed twice.
    """
    whole, group = kernel.stages[0].contraction, target.group
    if group is None or whole is not None and whole.mask is not None:
        return None
    problem = prepare(kernel)
    rows, columns, batch = _fixed(problem.m), _fixed(problem.n), _fixed(problem.batch)
    if not rows or not columns:
        return None
    m, n, batches = (size_of(axes) for axes in (rows, columns, batch))
    tile = choose_tile(m, n, batches, group, problem.total.dtype)
    return Lowered(tiled(problem, tile), products=True)


def tiled(problem: Problem, tile: Tile) -> Loop:
    """A tile of the results per work-group, a part of it in the registers of each work-item."""
    padded, item = in_whole_tiles(problem, tile), make_axis("item", 0, tile.items)
    m, n, deep = padded.row.variable, padded.column.variable, padded.k[-1].variable
    s = LoopNest(padded.naive(), left=padded.left, right=padded.right)
    groups = [axis.variable for axis in _fixed(padded.batch)]
    groups += s.split(m, tile.rows, "c"), s.split(n, tile.columns, "p")
    i, piece = s.split(m, tile.item_rows, "ir"), s.split(deep, TILE_DEPTH, "kp")
    v = s.split(n, tile.columns // tile.item_columns * ITEM_LANES, "v")
    j, x, k = s.split(n, ITEM_LANES, "ic"), s.count(n, "x"), s.count(deep, "k")
    s.vectorize(x, ITEM_LANES)
    moving = [axis.variable for axis in padded.batch if axis.variable not in groups]
    s.reorder(*groups, *moving, i, j, x, m, v)
    s.sink(i, j, x, m, v, into=piece)
    s.insert(piece, lambda *_: [Barrier()])
    with s.inside(piece):
        s.insert(i, lambda *_: [Barrier()], behind=True)
        for name, operand, axes, own, size in (
            ("right", problem.right, problem.n, (v, j, x), tile.columns),
            ("left", problem.left, problem.m, (i, m), tile.rows),
        ):
            axes = _fixed(axes)
            along_k = 1 not in expr.strides(axes[-1].variable, operand)
            order = (*own, k) if along_k else (k, *own)
            enough = size * TILE_DEPTH >= ITEM_LANES * tile.items
            vectors = enough and _in_vectors(operand, _inner(problem.k) if along_k else axes)
            width, layout = ITEM_LANES if vectors else 1, [((k,), None), (own, size + PAD)]
            s.stage(name, None, order, layout, name, flat=width, item=item)
    s.sink(m, v)
    s.unroll(m, "u")
    s.unroll(v, "v")
    s.bind(item, groups[-1], i, j)
    return s.parallelize(*groups)


def choose_tile(rows: int, columns: int, batches: int, group: Group, dtype: DType) -> Tile:
    """The tile that takes the least time, approximately.

    A step along k costs a work-item a multiply-add for each of its results, and loads for each of
    its rows and columns; work-groups run in waves of as many as there are units.
    """

    def cost(tile: Tile) -> float:
        count = batches * ceildiv(rows, tile.rows) * ceildiv(columns, tile.columns)
        waves = ceildiv(count, group.units)
        loads = 2 / tile.item_rows + 2 / tile.item_columns
        return waves * tile.rows * tile.columns * (1 + loads)

    def fits(tile: Tile) -> bool:
        nbytes = (tile.rows + tile.columns + 2 * PAD) * TILE_DEPTH * max(dtype.itemsize, 4)
        return tile.items <= group.items and nbytes <= group.local_bytes

    return min((tile for tile in group.tiles if fits(tile)), key=cost, default=group.tiles[-1])


def in_whole_tiles(problem: Problem, tile: Tile) -> Problem:
    """The product with an axis of rows, one of columns and a last one of k, each of whole tiles.

    Outside of the extents operands are zero, and no results are stored. Axes of varying extents are
    outside of these, except the last one of k if all axes of k vary.
    """
    values: dict[Atom, Integer] = {}
    ends: list[Integer] = []
    whole: list[Axis] = []
    groups = (problem.m, tile.rows), (problem.n, tile.columns), (_inner(problem.k), TILE_DEPTH)
    for name, (axes, size) in zip("mnk", groups, strict=True):
        own = _fixed(axes) or axes
        extent = iterations([axis.extent for axis in own])
        whole.append(make_axis(name, 99, ceildiv(extent, size) * size))
        values |= places_along(own, whole[-1].index)
        ends.append(extent - 1 - whole[-1].index)
    left, right = (
        masked(expr.substitute_in(operand, values), [ends[2], end])
        for operand, end in ((problem.left, ends[0]), (problem.right, ends[1]))
    )
    stores = [
        replace(
            store, guard=expr.restrict(store.guard, ends[:2]),
            value=build.guard_loads(store.value, ends[:2]),
        )
        for store in build.substitute_stores(problem.stores, values)
    ]  # fmt: skip
    m, n, k = whole
    others = [axis for axis in (*problem.m, *problem.n) if axis not in _fixed((axis,))]
    outside = [axis for axis in problem.k if axis not in _inner(problem.k)]
    batch = (*problem.batch, *others)
    return replace(
        problem, left=left, right=right, batch=batch, m=(m,), n=(n,), k=(*outside, k), stores=stores
    )


def masked(e: Expr, conditions: Sequence[Integer]) -> Expr:
    """The expression where all conditions are ≥ 0, else zero; it reads nothing there."""
    inside = build.guard_loads(e, conditions)
    if e.op is Leaf.LOAD:
        return inside
    return expr.guarded(expr.restrict((), conditions), inside, expr.const(0, e.dtype))


def _in_vectors(operand: Expr, axes: Sequence[Axis]) -> bool:
    """Whether neighbours along axes, which count as one, are in whole vectors."""
    extent = axes[-1].extent
    whole = len(axes) == 1 and isinstance(extent, int) and extent % ITEM_LANES == 0
    return whole and expr.strides(axes[-1].variable, operand) == {1}


def _fixed(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    return tuple(axis for axis in axes if isinstance(axis.extent, int))


def _inner(k: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes of k that are cut into pieces: those of known extents, or else the last one."""
    return _fixed(k) or k[-1:]


# ---- rows ----


SHORT_ROW = 32  # elements of a row below which one work-item computes it: one for each of a warp
SHARE = 4  # elements of a row for each work-item, at least
# The cost of a step in which all items fold, in steps of a loop: write, wait, read and add.
FOLD = 4
KEPT = 2  # divisor of local memory for values that stay in a kernel: half is for another group
ONCE = make_axis("e", 0, 1)
VECTOR_BYTES = 32  # of a vector whose lanes are rows of a block, at most: two accesses of 16


def row_items(kernel: Kernel, group: Group, share: int = SHARE) -> int:
    """Work-items for each row of a kernel, a power of two; 1 if rows are short."""
    length = 1
    for stage in kernel.stages:
        inner = stage.axes[prefix_length(stage, kernel.rows) :]
        for axes in (inner, stage.reduced):
            length = max(length, size_of(axes))
    if length < SHORT_ROW:
        return 1
    most = min(max(length // share, 32), group.items)
    return 1 << (most.bit_length() - 1)


def gpu_rows(kernel: Kernel, target: Target) -> Lowered | None:
    """A work-group for each row.

    None if a work-item computes each: if rows are short, or adjacent and enough of them.
    """
    group, rows, stages = target.group, kernel.rows, kernel.stages
    if group is None:
        return None
    items = row_items(kernel, group)
    beside = high(rows) > 1 and runs_across_rows(stages, rows, target)
    if items == 1 or beside and high(rows) >= group.items * group.units:
        return None
    axes, local = row_axes(stages[0], rows), group.local_bytes // KEPT
    inside = build.kept_inside(stages, kernel.stored, rows, place_along(axes), local=local)
    stages = tuple(merge_stage(stage) for stage in inside)
    return _shared(stages, [{} for _ in stages], items, axes)


def gpu_block_rows(kernel: Kernel, target: Target) -> Lowered | None:
    """A work-group for each block of rows with products."""
    if target.group is None:
        return None
    kernel = products_before_readers(kernel)
    extent = neighbours(kernel)
    stages, stored, rows = kernel.stages, kernel.stored, kernel.rows
    widest = max(e.dtype.itemsize for e in expr.walk(*(s.body for s in stages)))
    width = next(w for w in (8, 4, 2, 1) if extent % w == 0 and w * widest <= VECTOR_BYTES)
    block, local = Rows(rows, extent, width, 1), target.group.local_bytes // KEPT
    fixed = [fix_rows(stage, rows, block.whole) for stage in stages]
    bounds = mask_bounds(fixed, block, stored)
    inside = build.kept_inside(stages, stored, rows, block.whole, width, block.lane, local)
    items = max(row_items(kernel, target.group, 1), 32)
    return _shared(inside, bounds, items, [block.outer, block.number], block)


def _shared(
    stages: Sequence[Stage], bounds: Sequence[Mapping[Atom, Bounds]], items: int,
    axes: Sequence[Axis], rows: Rows | None = None,
) -> Lowered:  # fmt: skip
    """Stage after stage, with barriers between them; the work-items of a group share each stage.

    axes: of groups. rows: those of a block, which are computed at once.
    """
    item, body = make_axis("item", 0, items), list[Statement]()
    for number, (stage, limits) in enumerate(zip(stages, bounds, strict=True)):
        body += [Barrier()] if body else []
        body += _stage(stage, number, limits, items)
    if rows is not None:
        body = [*build.loops_over([rows.row], body, {rows.row.variable: rows.ends})]
    s, lane = LoopNest(build.loops_over(axes, body)), 0 if rows is None else rows.lane
    if rows is not None and rows.width > 1:
        s.vectorize(rows.row.variable, rows.width, only_atom(rows.lane))
    for number, stage in enumerate(stages):
        kept, name = [axis.variable for axis in stage.axes], stage.array.name
        if _folds(stage, items):
            assert stage.op is not None
            x, total = stage.reduced[0].variable, f"sum{number}"
            s.insert(x, partial(_fold, total, stage.op, item, lane), behind=True)
            s.share(total, item, *(axis.variable for axis in stage.reduced))
            kept = []
        s.share(name, item, *(kept or [ONCE.variable]))
    s.bind(item, axes[-1].variable)
    return Lowered(s.parallelize(*(axis.variable for axis in axes)))


def _stage(stage: Stage, number: int, bounds: Mapping[Atom, Bounds], items: int) -> Statements:
    """The loops of one stage; a result that items fold, or the only one, is stored in a loop."""
    begin: Statements = ()
    value, folds = stage.body, _folds(stage, items)
    if stage.op is not None:
        value = expr.register(f"sum{number}", stage.body.dtype)
        clear, step = build.reduction(stage.op, value, (), [stage.body])
        begin = (clear, *build.loops_over(stage.reduced, [step], bounds))
    store = Store(stage.array, stage.position, value)
    if folds:
        body = [*begin, *build.loops_over([ONCE], [store])]
        return build.loops_over(stage.axes, body, bounds)
    return build.loops_over(stage.axes or [ONCE], [*begin, store], bounds)


def _folds(stage: Stage, items: int) -> bool:
    """Whether all items reduce each element together, one element after another."""
    size = size_of(stage.axes)
    depth = size_of(stage.reduced)
    fold = ceildiv(depth, items) + 2 * FOLD * (items.bit_length() - 1)
    return stage.op is not None and size * fold < ceildiv(size, items) * depth


def _fold(
    total: str, op: Op, item: Axis, lane: Integer, loop: Loop, around: Around
) -> list[Statement]:
    """After a loop for `total`: combine the items' parts by halving; the first gets the result."""
    (register,) = written(loop)
    if register.name != total:
        return []
    value, width, half = expr.load(register), register.width, item.count
    memory = Array(f"fold_{value.dtype.name}", value.dtype, half * width, "local")
    mine = expr.load(memory, item.index * width + lane)
    body: list[Statement] = [build.put(mine, value)]
    while half > 1:
        half //= 2
        both = build.combine(op, mine, expr.load(memory, mine.index + half * width))
        inside = expr.restrict((), [half - 1 - item.index])
        body += [Barrier(), Store(memory, mine.index, both, inside)]
    return [*body, build.put(value, mine), Barrier()]
