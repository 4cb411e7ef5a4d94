"""The recipe of rows in which products take part: a block of rows at a time, one row a lane.

    parallel over blocks of W rows:
      for the W rows (lanes):
        product across:  pack the rows' operand; for tiles of columns, for k:
                             tile[column] += other[column, k] · packed[k, lanes]
        row statistics and elementwise stages: along the columns, for all lanes at once
      product along:   for tiles of rows, for panels of columns (lanes), for k:
                             tile[row] += x[k, row] · other[k, lanes]

Values with a row's worth of columns live in scratch memory, column after column with the rows side
by side: that is what the first kind of product makes, what row statistics read without folding, and
what the second kind reads as scalars. Only the rows' own operand must be packed. Attention becomes
one such kernel, its gradient two: one for blocks of queries, one for blocks of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minigrad.graph.node import Op
from minigrad.graph.symbolic import (
    Atom,
    Integer,
    add,
    coefficient,
    flatten,
    high,
    mul,
    numel,
    sub,
    substitute,
)
from minigrad.loops.axes import fix_rows, row_values
from minigrad.loops.build import (
    combine,
    flat_loop,
    lanes_loop,
    serial_loop,
    substitute_stores,
)
from minigrad.loops.contraction import tile_width
from minigrad.loops.finish import finish
from minigrad.loops.nest import Loop, Nest, Set, Statement, Store, Stores
from minigrad.loops.regions import Bounds, Rows, regions
from minigrad.loops.scratch import Scratch, result_of
from minigrad.loops.target import Target
from minigrad.schedule import expr
from minigrad.schedule.contraction import contraction_of
from minigrad.schedule.expr import Array, Expr, Local
from minigrad.schedule.fuse import prefix_length
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Axis, Stage, identity, index_of, make_axis

PARTIALS = 4  # accumulators of a row statistic, against the latency of additions
LANE: Atom = make_axis("lane", 0, 1 << 10).variable


@dataclass(frozen=True)
class Block:
    """The rows that are computed together: `row` is start … start + width − 1, one a lane.

    height: the side of a register tile that is not `width`; target: the machine.
    """

    row: Axis
    start: Integer
    width: int
    height: int
    target: Target

    @property
    def lane(self) -> Integer:
        """A row's number in its block."""
        return index_of(LANE) if self.width > 1 else 0

    def rows_loop(self, body: Sequence[Statement]) -> Loop:
        """All rows of the block at once."""
        stops = _stops(add(self.start, self.width), self.row.extent)
        lane = LANE if self.width > 1 else None
        return lanes_loop(self.row, self.width, tuple(body), self.start, stops, lane)


def blocks(kernel: Kernel, target: Target, name: str) -> Nest:
    """The loop nest of a kernel of blocks."""
    first = kernel.stages[0]
    extent = first.axes[prefix_length(first, kernel.rows) - 1].extent
    assert isinstance(extent, int)
    width = _block_width(kernel, target, extent)
    outer = make_axis("o", 0, kernel.rows // extent)
    number = make_axis("g", 0, -(-extent // width))
    row = make_axis("b", 0, extent)
    start = mul(index_of(number.variable), width)
    height = 1 << (target.tile_rows.bit_length() - 1)
    block = Block(row, start, width, height, target)
    whole = add(mul(index_of(outer.variable), extent), index_of(row.variable))
    stages = [fix_rows(stage, kernel.rows, whole) for stage in kernel.stages]
    rows = Rows(row.variable, frozenset((outer.variable, number.variable)), start, width, height)
    bounds = regions(stages, rows, kernel.stored)
    scratch = Scratch(kernel, stages, width, block.lane)
    body: list[Statement] = []
    together: list[Statement] = []  # what one loop over the rows can do
    for n, (original, stage) in enumerate(zip(kernel.stages, stages, strict=True)):
        if n in scratch.inlined:
            continue
        stage = replace(stage, body=scratch.reading(stage.body))
        if contraction_of(original) is None:
            array, position = scratch.place(n)
            stage = replace(stage, array=array, position=position)
            together.extend(_row_stage(stage, bounds[n], n, block))
            continue
        values = row_values(original, kernel.rows, whole)
        stores = substitute_stores(scratch.stores(n), values)
        product = Product(stage, tuple(stores), bounds[n], n, block)
        if not product.runs_along:
            together.extend(product.across())
            continue
        if together:
            body.append(block.rows_loop(together))
            together = []
        body.extend(product.along())
    if together:
        body.append(block.rows_loop(together))
    return finish(name, kernel, flat_loop([outer, number], tuple(body)), target)


def _block_width(kernel: Kernel, target: Target, rows: int) -> int:
    """Rows of a block: two registers of the widest product, or one where there are few rows."""
    if not target.vector_bytes:
        return 1
    lanes = min(target.lanes(s.body.dtype) for s in kernel.stages if contraction_of(s) is not None)
    if rows > lanes:
        return 2 * lanes
    while lanes > 1 and lanes // 2 >= rows:
        lanes //= 2
    return lanes


def _stops(stop: Integer, extent: Integer) -> tuple[Integer, ...]:
    """Where a loop over an axis ends that need not go beyond `stop`."""
    if stop == extent or isinstance(extent, int) and high(stop) <= extent:
        return (stop,)
    return stop, extent


def _bounded(axis: Axis, bounds: Bounds, body: Sequence[Statement], step: int = 1) -> Loop:
    """A plain loop over a part of an axis."""
    first, stop = bounds
    return Loop(axis.variable, first, _stops(stop, axis.extent), tuple(body), step=step)


TileOf = Callable[[Integer, int], list[Statement]]  # (first place, height) → the statements


def _tiles(
    axis: Axis, first: Integer, stop: Integer, height: int, tile: TileOf
) -> list[Statement]:
    """An axis in tiles of `height`, and of what is left over; bounds are multiples of it."""
    assert isinstance(axis.extent, int)
    whole = axis.extent // height * height
    place = make_axis("t", 0, axis.extent)
    at = index_of(place.variable)
    loops: list[Statement] = []
    if whole:
        loops.append(
            Loop(place.variable, first, _stops(stop, whole), tuple(tile(at, height)), step=height)
        )
    if rest := axis.extent - whole:
        stops = _stops(stop, axis.extent)
        loops.append(Loop(place.variable, whole, stops, tuple(tile(at, rest)), step=rest))
    return loops


@dataclass(frozen=True)
class Product:
    """A product as a part of the block: `stage` with fixed rows, its result given to `stores`."""

    stage: Stage
    stores: tuple[Store, ...]
    bounds: dict[Atom, Bounds]
    number: int
    block: Block

    def factors(self) -> tuple[Expr, Expr]:
        """(the one that has the rows, the other)."""
        product = self.stage.body
        if product.op is Op.CAST:
            product = product.args[0]
        left, right = product.args
        mine = {self.block.row.variable, LANE}
        return (right, left) if mine.isdisjoint(left.variables) else (left, right)

    @property
    def runs_along(self) -> bool:
        """Whether the result goes to memory only, and its last axis suits vectors."""
        last = self.stage.axes[-1].variable
        loads = expr.loads(self.factors()[1])
        return all(store.array.space == "buffer" for store in self.stores) and all(
            coefficient(load.payload[1], last) in (0, 1) and not load.payload[2] for load in loads
        )

    def across(self) -> list[Statement]:
        """Tiles of columns by all rows of the block."""
        mine, other = self.factors()
        statements: list[Statement] = []
        if any(load.payload[0].space == "buffer" for load in expr.loads(mine)):
            pack, mine = self._pack(mine)
            statements.append(pack)
        column = self.stage.axes[-1]
        lanes = self.block.row.variable if self.block.width > 1 else None

        def tile(first: Integer, height: int) -> list[Statement]:
            registers = self._registers(height, lanes, self.block.width)
            u = make_axis("u", 0, height)
            at: dict[Atom, Integer] = {column.variable: add(first, index_of(u.variable))}
            return self._tile(registers, u, at, mine, other)

        first, stop = self.bounds[column.variable]
        return statements + self._outer(_tiles(column, first, stop, self.block.height, tile))

    def along(self) -> list[Statement]:
        """Tiles of rows by panels of columns."""
        mine, other = self.factors()
        block, column = self.block, self.stage.axes[-1]
        assert isinstance(column.extent, int)
        width = tile_width(block.target, self.stage, column.extent)
        lanes = column.variable if width > 1 else None

        def tile(first: Integer, height: int) -> list[Statement]:
            registers = self._registers(height, lanes, width)
            u = make_axis("u", 0, height)
            row = add(first, index_of(u.variable))
            at: dict[Atom, Integer] = {block.row.variable: row, LANE: sub(row, block.start)}
            return self._tile(registers, u, at, mine, other)

        stop, height = add(block.start, block.width), min(block.height, block.width)
        tiles = _tiles(block.row, block.start, stop, height, tile)
        return self._outer([lanes_loop(column, width, tuple(tiles))])

    def _outer(self, inner: list[Statement]) -> list[Statement]:
        for axis in reversed(self.stage.axes[:-1]):
            inner = [_bounded(axis, self.bounds[axis.variable], inner)]
        return inner

    def _registers(self, height: int, lanes: Atom | None, width: int) -> Local:
        return Local(f"tile{self.number}x{height}", self.stage.body.dtype, height, lanes, width)

    def _pack(self, mine: Expr) -> tuple[Statement, Expr]:
        """The rows' operand copied to scratch, rows side by side; gives the copy's read."""
        extents = [axis.extent for axis in self.stage.reduced]
        width = self.block.width
        panel = Array(f"panel{self.number}", mine.dtype, numel(extents) * width, "scratch")
        k = flatten([index_of(axis.variable) for axis in self.stage.reduced], extents)
        place = add(mul(k, width), self.block.lane)
        copy: Statement = Store(panel, place, mine)
        for axis in reversed(self.stage.reduced):
            copy = serial_loop(axis, (copy,))
        return copy, expr.load(panel, place)

    def _tile(
        self, registers: Local, u: Axis, at: dict[Atom, Integer], mine: Expr, other: Expr
    ) -> list[Statement]:
        """Clear the registers, multiply and add along k, store; `at`: the place of register u."""
        slot, dtype = index_of(u.variable), self.stage.body.dtype
        factors = (expr.substitute_in(mine, at), expr.substitute_in(other, at))
        product = expr.apply(Op.CAST, (expr.apply(Op.MUL, factors, mine.dtype),), dtype)
        old = expr.local(registers, slot)
        step: Statement = Set(registers, slot, combine(Op.SUM, old, product))
        step = Loop(u.variable, 0, (registers.count,), (step,), "unroll")
        for axis in reversed(self.stage.reduced):
            step = _bounded(axis, self.bounds[axis.variable], [step])
        items = []
        for store in self.stores:
            value = expr.rebuild(store.value, {result_of(dtype): old}.get)
            value = expr.substitute_in(value, at)
            items.append(Store(store.array, substitute(store.index, at), value))
        clear = Set(registers, slot, identity(Op.SUM, dtype))
        return [
            Loop(u.variable, 0, (registers.count,), (clear,), "unroll"),
            step,
            Loop(u.variable, 0, (registers.count,), (Stores(tuple(items)),), "unroll"),
        ]


def _row_stage(
    stage: Stage, bounds: dict[Atom, Bounds], number: int, block: Block
) -> list[Statement]:
    """An elementwise stage or a reduction, for all rows of the block at once."""
    if stage.op is None:
        nested: list[Statement] = [Store(stage.array, stage.position, stage.body)]
    else:
        nested = _statistic(stage, bounds, number, block)
    for axis in reversed(stage.axes):
        nested = [_bounded(axis, bounds[axis.variable], nested)]
    return nested


def _statistic(
    stage: Stage, bounds: dict[Atom, Bounds], number: int, block: Block
) -> list[Statement]:
    """A reduction in several partial results where the bounds allow it, and its store."""
    assert stage.op is not None
    inner = stage.reduced[-1]
    first, stop = bounds[inner.variable]
    ends = (first, *_stops(stop, inner.extent))
    count = PARTIALS if all(_is_multiple(x, PARTIALS) for x in ends) else 1
    lanes = block.row.variable if block.width > 1 else None
    total = Local(f"sum{number}", stage.body.dtype, count, lanes, block.width)
    u = make_axis("u", 0, count)
    slot = index_of(u.variable)
    at: dict[Atom, Integer] = {inner.variable: add(index_of(inner.variable), slot)}
    value = combine(stage.op, expr.local(total, slot), expr.substitute_in(stage.body, at))
    start = Set(total, slot, identity(stage.op, stage.body.dtype))
    step = [Loop(u.variable, 0, (count,), (Set(total, slot, value),), "unroll")]
    step = [_bounded(inner, (first, stop), step, count)]
    for axis in reversed(stage.reduced[:-1]):
        step = [_bounded(axis, bounds[axis.variable], step)]
    result = expr.local(total, 0)
    for other in range(1, count):
        result = combine(stage.op, result, expr.local(total, other))
    clear = Loop(u.variable, 0, (count,), (start,), "unroll")
    return [clear, *step, Store(stage.array, stage.position, result)]


def _is_multiple(x: Integer, of: int) -> bool:
    if isinstance(x, int):
        return x % of == 0
    return x.constant % of == 0 and all(factor % of == 0 for _, factor in x.terms)
