"""The recipe of a contraction: a tile of the output in registers, one column panel of B at a time.

    parallel over batch × panels of n × chunks of m:
      pack the panel of `right` where its rows are not contiguous vectors
      for each tile of rows:
        tile[rows] = 0
        for k:  tile[row] += left[row, k] · right[k, lanes]      (fused multiply-adds)
        store the tile through the epilogue

Edges need no special tile: the last tile has fewer rows, the last vector a mask.
After "Anatomy of High-Performance Matrix Multiplication" (Goto, van de Geijn, 2008), with one level
of packing less, since today's second-level caches hold a whole panel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minigrad.graph.node import Op
from minigrad.graph.symbolic import (
    Atom,
    Integer,
    add,
    coefficient,
    flatten,
    mul,
    numel,
    substitute,
)
from minigrad.loops.axes import indices, merge
from minigrad.loops.build import (
    combine,
    flat_loop,
    inline_stages,
    lanes_loop,
    serial_loop,
    substitute_stores,
)
from minigrad.loops.finish import finish
from minigrad.loops.nest import Loop, Nest, Set, Statement, Store, Stores
from minigrad.loops.target import Target
from minigrad.schedule import expr
from minigrad.schedule.contraction import Contraction, contraction_of
from minigrad.schedule.expr import Array, Expr, Leaf, Local
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Axis, Stage, identity, index_of, make_axis

ENOUGH_TASKS = 16  # parallel iterations that divide well among a few threads
LEAST_CHUNK = 96  # rows over which the packing of a panel pays
ENOUGH_ROWS = 384  # rows over which it is hardly noticed
FAR_BYTES = 1 << 19  # a panel whose rows span more memory than this is packed


@dataclass(frozen=True)
class Problem:
    """A contraction kernel with merged axes, ready to be tiled."""

    stage: Stage
    parts: Contraction
    stores: tuple[Store, ...]
    accumulator: Expr  # stands for the contraction's result in the stores


def contraction(kernel: Kernel, target: Target, name: str) -> Nest:
    """The loop nest of a contraction and its elementwise epilogue."""
    problem = prepare(kernel)
    parts = problem.parts
    row, column = parts.m[-1], parts.n[-1]
    assert isinstance(row.extent, int) and isinstance(column.extent, int)
    width = tile_width(target, problem.stage, column.extent)
    height = tile_height(target, row.extent, width, problem.stage)
    panels = make_axis("p", 0, -(-column.extent // width))
    outer = [*parts.batch, *parts.m[:-1], *parts.n[:-1]]
    tasks = numel([axis.extent for axis in outer]) * numel([panels.extent])
    chunk = chunk_rows(row.extent, height, tasks)
    chunks = make_axis("c", 0, -(-row.extent // chunk))
    packed = needs_packing(problem, width, chunk) and width > 1
    body: list[Statement] = []
    right = parts.right
    blocks: list[Axis] = []  # rows of several axes that one packed panel serves
    if packed:
        pack, right = pack_panel(problem, width)
        body.append(pack)
        blocks = rows_of_panel(parts.m, chunk, tasks)
        outer = [axis for axis in outer if axis not in blocks]
    work = tuple(tiles(problem, right, height, chunk, chunks, width))
    for axis in reversed(blocks):
        work = (serial_loop(axis, work),)
    body.extend(work)
    start = mul(index_of(panels.variable), width)
    inner: tuple[Statement, ...] = (
        lanes_loop(column, width, tuple(body), start, (add(start, width), column.extent), LANE),
    )
    symbolic = [axis for axis in outer if not isinstance(axis.extent, int)]
    for axis in symbolic:
        inner = (serial_loop(axis, inner),)
    free = [axis for axis in outer if isinstance(axis.extent, int)]
    return finish(name, kernel, flat_loop([*free, panels, chunks], inner), target)


LANE: Atom = make_axis("lane", 0, 1 << 10).variable


def prepare(kernel: Kernel) -> Problem:
    """Inline the epilogue and merge axes."""
    stage = kernel.stages[0]
    own = expr.local(Local("product", stage.array.dtype, 1))
    marker = replace(stage, op=None, reduced=(), body=own)
    stores = inline_stages(replace(kernel, stages=(marker, *kernel.stages[1:])), stage.axes)
    used = indices(
        [stage.body, *(s.value for s in stores)], [stage.position, *(s.index for s in stores)]
    )
    parts = contraction_of(stage)
    assert parts is not None
    values: dict[Atom, Integer] = {}
    groups: list[tuple[Axis, ...]] = []
    for name in ("batch", "m", "n", "k"):
        merged = merge(getattr(parts, name), used)
        for _, known in merged:
            values.update(known)
        groups.append(tuple(axis for axis, _ in merged))
    changed = replace(
        stage.substitute(values), axes=(*groups[0], *groups[1], *groups[2]), reduced=groups[3]
    )
    return Problem(
        changed,
        Contraction(
            expr.substitute_in(parts.left, values), expr.substitute_in(parts.right, values), *groups
        ),
        tuple(substitute_stores(stores, values)),
        own,
    )


def tile_width(target: Target, stage: Stage, columns: int) -> int:
    """Columns of a tile: two registers, or fewer where there are few columns."""
    lanes = target.lanes(stage.body.dtype) if target.vector_bytes else 1
    if lanes == 1:
        return 1
    if columns > lanes:
        return min(2 * lanes, target.most_lanes)
    while lanes > 1 and lanes // 2 >= columns:
        lanes //= 2
    return lanes


def tile_height(target: Target, rows: int, width: int, stage: Stage) -> int:
    """Rows of a tile: as many as the registers hold, evenly dividing the rows where possible."""
    lanes = target.lanes(stage.body.dtype)
    most = target.tile_rows if width >= 2 * lanes else 2 * target.tile_rows - 4
    if rows <= most:
        return rows
    for height in range(most, most // 2, -1):
        if rows % height == 0:
            return height
    return most - 2 if target.registers >= 32 else most


def chunk_rows(rows: int, height: int, tasks: int) -> int:
    """Rows of one parallel iteration, a multiple of the tile's unless it is all of them."""
    pieces = min(-(-ENOUGH_TASKS // tasks), rows // LEAST_CHUNK)
    if pieces <= 1:
        return rows
    chunk = -(-rows // pieces)
    return -(-chunk // height) * height


def rows_of_panel(m: tuple[Axis, ...], chunk: int, tasks: int) -> list[Axis]:
    """The axes of rows before the last one, over which a task loops to make its packing pay."""
    found: list[Axis] = []
    for axis in reversed(m[:-1]):
        if not isinstance(axis.extent, int) or axis.extent == 0 or chunk >= ENOUGH_ROWS:
            break
        if tasks // axis.extent < ENOUGH_TASKS:
            break
        found.insert(0, axis)
        chunk *= axis.extent
        tasks //= axis.extent
    return found


def needs_packing(problem: Problem, width: int, chunk: int) -> bool:
    """Whether vectors of the right operand's rows must be gathered once, not for every tile."""
    right = problem.parts.right
    column = problem.parts.n[-1].variable
    for load in expr.loads(right):
        if load.payload[2] or coefficient(load.payload[1], column) != 1:
            return True
    if right.op is not Leaf.LOAD:
        return True
    span = sum(
        abs(coefficient(right.payload[1], axis.variable) or 1) * numel([axis.extent])
        for axis in problem.parts.k
    ) * right.dtype.itemsize
    depth = numel([axis.extent for axis in problem.parts.k])
    return span > FAR_BYTES and chunk >= LEAST_CHUNK and depth * width * 4 <= FAR_BYTES


def pack_panel(problem: Problem, width: int) -> tuple[Statement, Expr]:
    """Copy the panel of `right` to scratch, row k after row k; gives the copy and its read."""
    depth = [axis.extent for axis in problem.parts.k]
    panel = Array("panel", problem.parts.right.dtype, numel(depth) * width, "scratch")
    k = flatten([index_of(axis.variable) for axis in problem.parts.k], depth)
    place = add(mul(k, width), index_of(LANE))
    copy: Statement = Store(panel, place, problem.parts.right)
    for axis in sorted(problem.parts.k, key=lambda axis: _stride(problem.parts.right, axis)):
        copy = serial_loop(axis, (copy,))  # neighbours in memory one after the other
    return copy, expr.load(panel, place)


def _stride(right: Expr, axis: Axis) -> int:
    """How far apart in memory neighbours along an axis are; unknown counts as far."""
    strides = [coefficient(load.payload[1], axis.variable) for load in expr.loads(right)]
    return max((abs(s) if s is not None else 1 << 62 for s in strides), default=0)


def tiles(
    problem: Problem, right: Expr, height: int, chunk: int, chunks: Axis, width: int
) -> list[Statement]:
    """All tiles of the parallel iteration's rows: the whole ones, then what is left over."""
    row = problem.parts.m[-1]
    assert isinstance(row.extent, int)
    whole = row.extent // height * height
    start = mul(index_of(chunks.variable), chunk) if chunk < row.extent else 0
    stops: tuple[Integer, ...] = (whole,) if start == 0 else (add(start, chunk), whole)
    first = make_axis("t", 0, row.extent)
    statements: list[Statement] = [
        Loop(first.variable, start, stops, tuple(tile(problem, right, first, height, width)),
             step=height)
    ]  # fmt: skip
    if whole < row.extent:
        rest = row.extent - whole
        ends: tuple[Integer, ...] = (row.extent,) if start == 0 else (add(start, chunk), row.extent)
        body = tuple(tile(problem, right, first, rest, width))
        statements.append(Loop(first.variable, whole, ends, body, step=rest))
    return statements


def tile(
    problem: Problem, right: Expr, first: Axis, height: int, width: int
) -> list[Statement]:
    """`height` rows from row `first`: clear, multiply and add along k, store."""
    stage, parts = problem.stage, problem.parts
    name = f"tile{height}"
    lanes = parts.n[-1].variable if width > 1 else None
    registers = Local(name, stage.body.dtype, height, lanes, width)
    u = make_axis("u", 0, height)
    slot = index_of(u.variable)
    at = {parts.m[-1].variable: add(index_of(first.variable), slot)}
    left = expr.substitute_in(parts.left, at)
    product = expr.apply(Op.MUL, (left, right), left.dtype)
    product = expr.apply(Op.CAST, (product,), stage.body.dtype)
    step: Statement = Set(registers, slot, combine(Op.SUM, expr.local(registers, slot), product))
    step = Loop(u.variable, 0, (height,), (step,), "unroll")
    for axis in reversed(parts.k):
        step = serial_loop(axis, (step,))
    known = {problem.accumulator: expr.local(registers, slot)}
    items = []
    for store in problem.stores:
        value = expr.rebuild(store.value, known.get)
        index = substitute(store.index, at)
        items.append(Store(store.array, index, expr.substitute_in(value, at)))
    clear = Set(registers, slot, identity(Op.SUM, stage.body.dtype))
    return [
        Loop(u.variable, 0, (height,), (clear,), "unroll"),
        step,
        Loop(u.variable, 0, (height,), (Stores(tuple(items)),), "unroll"),
    ]

