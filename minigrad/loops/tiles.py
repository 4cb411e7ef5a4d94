"""Register tiles: a few rows by one or two vectors of a product, held in registers along all of k.

These are the pieces of `contraction`; another recipe may use them for a block of rows of its own,
whose results its `stores` put wherever it wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minigrad.graph.node import Op
from minigrad.graph.symbolic import Atom, Integer, add, mul, sub, substitute
from minigrad.loops.build import combine
from minigrad.loops.nest import Loop, Set, Statement, Store, Stores
from minigrad.loops.target import Target
from minigrad.schedule import expr
from minigrad.schedule.contraction import Contraction
from minigrad.schedule.expr import Array, Expr, Leaf, Local
from minigrad.schedule.stage import Axis, Stage, identity, index_of, make_axis


@dataclass(frozen=True)
class Problem:
    """A contraction with merged axes, ready to be tiled.

    stores: where its results go; in their values `accumulator` stands for the result. initial:
    what a result starts from, zero if None. ends: where the loop over the first axis of k ends
    too, for a piece of k that may be the last, or a segment of it (see ragged.py). needed: how many
    rows, the first ones, have results that matter; None for all.
    """

    stage: Stage
    parts: Contraction
    stores: tuple[Store, ...]
    accumulator: Expr
    initial: Expr | None = None
    ends: tuple[Integer, ...] = ()
    needed: Integer | None = None

    @property
    def ragged(self) -> bool:
        """Whether some loop's bound is loaded."""
        return bool(self.ends) or self.needed is not None

    def along_k(
        self, body: Statement, skip: Axis | None = None, order: Sequence[Axis] = ()
    ) -> Statement:
        """A statement for every k; `skip`: an axis whose loop the body has.

        order: the axes from the outermost loop to the innermost, if it matters.
        """
        for axis in reversed(order or self.parts.k):
            if axis != skip:
                body = Loop(axis.variable, 0, self.stops(axis), (body,))
        return body

    def from_row(self, first: Integer) -> Problem:
        """The problem of rows from `first` on: without any k if none of them is needed."""
        extent = self.parts.k[0].extent
        if self.needed is None or not isinstance(extent, int):
            return self
        return replace(self, ends=(*self.ends, mul(sub(self.needed, first), extent)))

    def stops(self, axis: Axis) -> tuple[Integer, ...]:
        """Where the loop over an axis of k ends."""
        return (axis.extent, *self.ends) if axis == self.parts.k[0] else (axis.extent,)


@dataclass(frozen=True)
class Left:
    """How tiles read the left operand: as it is, or from a copy of the block's rows in scratch.

    array: the copy, None for the operand itself. pitch: 0 where the copy holds row after row,
    `depth` elements apart; else it holds tile after tile, and in each, `depth` times, the rows of
    the tile at one k in `pitch` elements. k: the place of an element along k.
    """

    array: Array | None = None
    pitch: int = 0
    depth: int = 0
    k: Integer = 0


@dataclass(frozen=True)
class Block:
    """Rows of one parallel iteration: those from `number`·`rows`, `rows` of them or what is left.

    height: rows of a tile; rows is a multiple of it, unless it is all of the product's rows.
    """

    number: Integer
    rows: int
    height: int

    @property
    def start(self) -> Integer:
        """The first row."""
        return mul(self.number, self.rows)

    @property
    def tiles(self) -> int:
        """Whole tiles of a block, at most."""
        return self.rows // self.height


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


def tile_height(target: Target, rows: int, width: int, stage: Stage, bound: int = 0) -> int:
    """Rows of a tile: as many as the registers hold, evenly dividing the rows where possible.

    `bound`: no more than so many, if it is not 0.
    """
    lanes = target.lanes(stage.body.dtype)
    most = target.tile_rows if width >= 2 * lanes else 2 * target.tile_rows - 4
    if bound and bound < most:
        return min(bound, rows)
    if rows <= most:
        return rows
    for height in range(most, most // 2, -1):
        if rows % height == 0:
            return height
    return most - 2 if target.registers >= 32 else most


def tiles(
    problem: Problem, left: Left, right: Expr, block: Block, width: int
) -> list[Statement]:
    """All tiles of a block of rows: the whole ones, then what is left over."""
    row = problem.parts.m[-1]
    assert isinstance(row.extent, int)
    whole, rest = divmod(row.extent, block.height)
    before = mul(block.number, block.tiles)
    alone = block.rows >= row.extent
    number = make_axis("t", 0, max(block.tiles, 1))
    stops: tuple[Integer, ...] = (min(block.tiles, whole),)
    if not alone and whole % block.tiles:
        stops = (block.tiles, sub(whole, before))
    statements: list[Statement] = []
    if whole:
        body = tuple(tile(problem, left, right, block, number, block.height, width))
        statements.append(Loop(number.variable, 0, stops, body))
    if rest:  # it belongs to the last block: the others have all of their tiles before it
        first = sub(whole, before)
        last = make_axis("t", 1, max(block.tiles, 1) + 1)
        body = tuple(tile(problem, left, right, block, last, rest, width))
        ends = (add(first, 1),) if alone else (add(first, 1), block.tiles)
        statements.append(Loop(last.variable, first, ends, body))
    return statements


def tile(
    problem: Problem,
    left: Left,
    right: Expr,
    block: Block,
    number: Axis,
    height: int,
    width: int,
) -> list[Statement]:
    """`height` rows of tile `number` of a block: clear, multiply and add along k, store."""
    stage, parts = problem.stage, problem.parts
    lanes = parts.n[-1].variable if width > 1 else None
    registers = Local(f"tile{height}", stage.body.dtype, height, lanes, width)
    u = make_axis("u", 0, height)
    slot = index_of(u.variable)
    inside = add(mul(index_of(number.variable), block.height), slot)
    at: dict[Atom, Integer] = {parts.m[-1].variable: add(block.start, inside)}
    if left.array is None:
        factor = expr.substitute_in(parts.left, at)
    elif left.pitch:
        place = mul(index_of(number.variable), left.depth * left.pitch)
        factor = expr.load(left.array, add(add(place, mul(left.k, left.pitch)), slot))
    else:
        factor = expr.load(left.array, add(mul(inside, left.depth), left.k))
    step: Statement = Set(registers, slot, _more(expr.local(registers, slot), factor, right))
    step = Loop(u.variable, 0, (height,), (step,), "unroll")
    first = add(block.start, mul(index_of(number.variable), block.height))
    step = problem.from_row(first).along_k(step)
    known = {problem.accumulator: expr.local(registers, slot)}
    items = []
    for store in problem.stores:
        value = expr.rebuild(store.value, known.get)
        index = substitute(store.index, at)
        items.append(Store(store.array, index, expr.substitute_in(value, at)))
    initial = problem.initial or identity(Op.SUM, stage.body.dtype)
    clear = Set(registers, slot, expr.substitute_in(initial, at))
    return [
        Loop(u.variable, 0, (height,), (clear,), "unroll"),
        step,
        Loop(u.variable, 0, (height,), (Stores(tuple(items)),), "unroll"),
    ]


def _more(total: Expr, left: Expr, right: Expr) -> Expr:
    """total + left·right, or the sum of both products of two pairs."""
    if not left.dtype.is_float:
        return expr.apply(Leaf.DOT, (left, right, total), total.dtype)
    product = expr.apply(Op.MUL, (left, right), left.dtype)
    return combine(Op.SUM, total, expr.apply(Op.CAST, (product,), total.dtype))
