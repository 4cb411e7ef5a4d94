"""Register tiles: a few rows by one or two vectors of a product, held in registers along all of k.

These are the pieces of `gemm`; another recipe may use them for a block of rows of its own,
whose results its `stores` put wherever it wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minigrad.graph.node import Op
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high
from minigrad.loops.build import combine, substitute_statement, unless_finite
from minigrad.loops.nest import Loop, Prefetch, Set, Statement, Store, Stores
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.contraction import Contraction
from minigrad.schedule.expr import Array, Expr, Leaf, Local
from minigrad.schedule.stage import Stage, identity
from minigrad.target import LINE, Target

Statements = tuple[Statement, ...]

# Rows of the tiles that do what whole ones leave over, where that is not a number: four rows take
# a little longer than one, both a third of what 14 take.
SMALL_TILES = (4, 1)
# Elements of k below which nothing is fetched ahead: at 14 cycles each, for tiles of 14 rows, 192
# take some ten times as long as memory to answer; of a shorter sum too much is over by then.
LEAST_FETCHED = 192


@dataclass(frozen=True)
class Problem:
    """A product with merged axes, ready to be tiled.

    stores: where its results go; in their values `accumulator` stands for the result. ends: where
    the loop over the first axis of k ends too, for a piece of k that may be the last, or a segment
    of it (see dynamic_bounds.py). needed: how many rows, the first ones, have results that matter;
    None for all. terms: what is added for every k where the operands, of which one is masked, give
    something that is not finite; None where the product of both is all that is meant.
    """

    stage: Stage
    parts: Contraction
    stores: tuple[Store, ...]
    accumulator: Expr
    ends: tuple[Integer, ...] = ()
    needed: Integer | None = None
    terms: Expr | None = None

    @property
    def has_dynamic_bounds(self) -> bool:
        """Whether some loop's bound is loaded."""
        return bool(self.ends) or self.needed is not None

    def along_k(
        self, *body: Statement, skip: Axis | None = None, order: Sequence[Axis] = ()
    ) -> Statement:
        """Statements for every k; `skip`: an axis whose loop the body has.

        order: the axes from the outermost loop to the innermost, if it matters.
        """
        for axis in reversed(order or self.parts.k):
            if axis != skip:
                body = (Loop(axis.variable, 0, self.stops(axis), body),)
        (whole,) = body
        return whole

    def from_row(self, first: Integer) -> Problem:
        """The problem of rows from `first` on: without any k if none of them is needed."""
        extent = self.parts.k[0].extent
        if self.needed is None or not isinstance(extent, int):
            return self
        return replace(self, ends=(*self.ends, (self.needed - first) * extent))

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
    """Rows of one parallel iteration: those from number·mc, mc of them or what is left.

    mr: rows of a tile; mc is a multiple of it, unless it is all of the product's rows.
    """

    number: Integer
    mc: int
    mr: int

    @property
    def start(self) -> Integer:
        """The first row."""
        return self.number * self.mc

    @property
    def tiles(self) -> int:
        """Whole tiles of a block, at most."""
        return self.mc // self.mr


def choose_nr(target: Target, stage: Stage, columns: int) -> int:
    """Columns of a tile: two registers, or fewer where there are few columns."""
    lanes = target.lanes(stage.body.dtype) if target.vector_bytes else 1
    if lanes == 1:
        return 1
    if columns > lanes:
        return min(2 * lanes, target.tile_lanes)
    while lanes > 1 and lanes // 2 >= columns:
        lanes //= 2
    return lanes


def choose_mr(target: Target, rows: int, nr: int, stage: Stage, bound: int = 0) -> int:
    """Rows of a tile: as many as the registers hold, about the same number in every tile.

    `bound`: at most that many, if it is not 0.
    """
    lanes = target.lanes(stage.body.dtype)
    most = target.tile_rows if nr >= 2 * lanes else 2 * target.tile_rows - 4
    if bound and bound < most:
        return min(bound, rows)
    return ceildiv(rows, ceildiv(rows, most))


def tiles(
    problem: Problem, left: Left, right: Expr, block: Block, nr: int,
    ahead: Ahead | None = None, around: Callable[[Statements], Statements] = tuple,
) -> list[Statement]:  # fmt: skip
    """All tiles of a block of rows: the whole ones, then what is left over.

    around: puts what is done for a tile of rows into loops of its own.
    """
    extent = problem.parts.m[-1].extent
    whole, rest = extent // block.mr, extent % block.mr
    before = block.number * block.tiles
    alone = isinstance(extent, int) and block.mc >= extent
    number = make_axis("t", 0, max(block.tiles, 1))
    stops: tuple[Integer, ...] = (min(block.tiles, high(whole)),)
    if not alone and (rest != 0 or whole % block.tiles != 0):  # the last block has fewer, or none
        stops = (block.tiles, whole - before)
    statements: list[Statement] = []
    if high(whole):
        body = tuple(
            tile(problem, left, right, block, number.index, block.mr, nr, ahead, (number, stops))
        )
        statements.append(Loop(number.variable, 0, stops, around(body)))
    if rest != 0:  # it belongs to the last block: the others have all of their tiles before it
        first = whole - before
        last = make_axis("t", 1, max(block.tiles, 1) + 1)
        body = tuple(_rest(problem, left, right, block, last.index, rest, nr, ahead))
        ends = (first + 1,) if alone else (first + 1, block.tiles)
        statements.append(Loop(last.variable, first, ends, around(body)))
    return statements


def _rest(
    problem: Problem, left: Left, right: Expr, block: Block, number: Integer, rest: Integer,
    nr: int, ahead: Ahead | None,
) -> list[Statement]:  # fmt: skip
    """Tiles of the rows left over: one, or of fewer rows each where their number varies."""
    if isinstance(rest, int):
        return tile(problem, left, right, block, number, rest, nr, ahead)
    statements: list[Statement] = []
    before: Integer = 0
    for rows in SMALL_TILES:
        count = (rest - before) // rows
        each = make_axis(f"s{rows}_", 0, block.mr)
        at = before + each.index * rows
        body = tile(problem, left, right, block, number, rows, nr, None, offset=at)
        statements.append(Loop(each.variable, 0, (count,), tuple(body)))
        before = before + count * rows
    return statements


def tile(
    problem: Problem,
    left: Left,
    right: Expr,
    block: Block,
    number: Integer,
    rows: int,
    nr: int,
    ahead: Ahead | None = None,
    following: tuple[Axis, tuple[Integer, ...]] | None = None,
    offset: Integer = 0,
) -> list[Statement]:
    """`rows` rows of tile `number` of a block: clear, multiply and add along k, store.

    following: the loop over tiles with as many rows, and where it ends. offset: of the first row
    from that of the tile.
    """
    stage, parts = problem.stage, problem.parts
    lanes = parts.n[-1].variable if nr > 1 else None
    registers = Local(f"tile{rows}", stage.body.dtype, rows, lanes, nr)
    u = make_axis("u", 0, rows)
    slot = u.index
    inside = number * block.mr + offset + slot
    at: dict[Atom, Integer] = {parts.m[-1].variable: block.start + inside}
    if left.array is None:
        factor = expr.substitute_in(parts.left, at)
    elif left.pitch:
        place = number * left.depth * left.pitch
        factor = expr.load(left.array, place + left.k * left.pitch + offset + slot)
    else:
        factor = expr.load(left.array, inside * left.depth + left.k)
    total = _more(expr.local(registers, slot), factor, right)
    step: Statement = Set(registers, slot, total, everywhere=True)
    step = Loop(u.variable, 0, (rows,), (step,), "unroll")
    first = block.start + number * block.mr + offset
    needed = problem.from_row(first)
    step = (
        needed.along_k(step) if ahead is None
        else ahead.along_k(needed, step, factor, right, number, following)
    )  # fmt: skip
    known = {problem.accumulator: expr.local(registers, slot)}
    items = []
    for store in problem.stores:
        value = expr.rebuild(store.value, known.get)
        index = substitute(store.index, at)
        items.append(Store(store.array, index, expr.substitute_in(value, at)))
    clear: Statement = Set(registers, slot, identity(Op.SUM, stage.body.dtype), everywhere=True)
    clear = Loop(u.variable, 0, (rows,), (clear,), "unroll")
    again: list[Statement] = []
    if problem.terms is not None:
        more = combine(
            Op.SUM, expr.local(registers, slot), expr.substitute_in(problem.terms, at)
        )
        each = Loop(u.variable, 0, (rows,), (Set(registers, slot, more),), "unroll")
        again = unless_finite(
            f"wrong{rows}", registers, u, None, [clear, needed.along_k(each)]
        )
    return [
        clear,
        step,
        *again,
        Loop(u.variable, 0, (rows,), (Stores(tuple(items)),), "unroll"),
    ]


@dataclass(frozen=True)
class Ahead:
    """Fetches what tiles read later, while they compute: what a processor cannot guess itself.

    nr: columns of a tile. following: whether the next panel of the right operand is packed
    after this one; then each of a block's `tiles` fetches its share of it. far: whether the rows of
    the left operand come from beyond the second cache; then a tile fetches those of the next one.
    """

    nr: int
    following: bool = False
    tiles: int = 1
    far: bool = False

    def along_k(
        self, problem: Problem, step: Loop, left: Expr, right: Expr, number: Integer,
        following: tuple[Axis, tuple[Integer, ...]] | None,
    ) -> Statement:  # fmt: skip
        """`step`, which repeats for the rows of tile `number`, for every k.

        following: the loop over tiles with as many rows, and where it ends.
        """
        inner, u = problem.parts.k[-1], step.variable
        if not isinstance(inner.extent, int) or inner.extent < LEAST_FETCHED:
            return problem.along_k(step)
        line = LINE // max(left.dtype.itemsize, 4)
        outer, within = make_axis("ko", 0, ceildiv(inner.extent, line)), make_axis("ki", 0, line)
        before = outer.index * line
        k = before + within.index
        seldom: list[Statement] = []
        often: list[Statement] = []
        if left.op is Leaf.LOAD and coefficient(left.index, u) == 1:
            often += self._lines(left, inner, k + line, {u: 0})
        elif left.op is Leaf.LOAD:
            rows = self._lines(left, inner, before + 2 * line)[:1]
            seldom.append(Loop(u, 0, step.stops, rows, "unroll"))
            if self.far and following:
                seldom.append(self._next_rows(left, inner, before, step, *following))
        often += self._lines(right, inner, k + line)
        if self.following:
            # a piece of this tile's share of the next panel's rows
            seldom.append(self._next_panel(problem, inner, line, number, outer.index))
        stops = tuple(stop - before for stop in problem.stops(inner))
        if inner.extent % line == 0:
            stops = stops[1:]
        body = substitute_statement(step, {inner.variable: k})
        inside = Loop(within.variable, 0, (line, *stops), (*often, body))
        lines = tuple((stop + line - 1) // line for stop in problem.stops(inner)[1:])
        whole = Loop(outer.variable, 0, (outer.extent, *lines), (*seldom, inside))
        return problem.along_k(whole, skip=inner)

    def _next_rows(
        self, left: Expr, inner: Axis, k: Integer, step: Loop, number: Axis,
        numbers: tuple[Integer, ...],
    ) -> Loop:  # fmt: skip
        """Hints at the line at k of each of the next tile's rows, if there is a next tile."""
        following = make_axis("next", 0, numel([number.extent]) + 1)
        at: dict[Atom, Integer] = {number.variable: following.index}
        lines = tuple(replace(one, later=True) for one in self._lines(left, inner, k, at)[:1])
        rows = Loop(step.variable, 0, step.stops, lines, "unroll")
        this = number.index
        return Loop(following.variable, this + 1, (this + 2, *numbers), (rows,))

    def _lines(
        self, operand: Expr, inner: Axis, k: Integer, known: dict[Atom, Integer] | None = None
    ) -> tuple[Prefetch, ...]:
        """Hints at the lines of an operand's row at k."""
        if operand.op is not Leaf.LOAD or not coefficient(operand.index, inner.variable):
            return ()
        array, index = operand.array, operand.index
        if expr.values_in(index):
            return ()
        first = substitute(index, {inner.variable: k, **(known or {})})
        line = LINE // array.dtype.itemsize
        aligned = numel([coefficient(index, inner.variable) or 0]) % line == 0
        count = ceildiv(self.nr, line) + (not aligned)
        return tuple(Prefetch(array, first + line * n) for n in range(count))

    def _next_panel(
        self, problem: Problem, inner: Axis, line: int, tile: Integer, piece: Integer
    ) -> Loop:
        """Hints at what a tile fetches of the next panel at the `piece`-th line of k."""
        right, column = problem.parts.right, problem.parts.n[-1]
        one = make_axis("f", 0, self.nr * max(numel([inner.extent]), line))
        if 1 in strides(right, inner.variable):  # its columns lie along k
            each = ceildiv(self.nr, self.tiles)
            move = tile * each + one.index + self.nr
            at = {column.variable: column.index + move}
            rows = self._lines(expr.substitute_in(right, at), inner, piece * line)[:1]
        else:
            share = ceildiv(numel([inner.extent]), self.tiles)
            each = ceildiv(share * line, numel([inner.extent]))
            place = tile * share + piece * each + one.index
            at = {column.variable: column.index + self.nr}
            rows = self._lines(expr.substitute_in(right, at), inner, place)
        return Loop(one.variable, 0, (each,), rows, "unroll")


def strides(operand: Expr, axis: Atom) -> set[int | None]:
    """How far each of an operand's loads moves along an axis; None where that varies."""
    return {coefficient(load.index, axis) for load in expr.loads(operand)}


def _more(total: Expr, left: Expr, right: Expr) -> Expr:
    """total + left·right, or the sum of both products of two pairs."""
    if not left.dtype.is_float:
        return expr.apply(Leaf.DOT, (left, right, total), total.dtype)
    product = expr.apply(Op.MUL, (left, right), left.dtype)
    return combine(Op.SUM, total, expr.apply(Op.CAST, (product,), total.dtype))
