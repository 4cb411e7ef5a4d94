"""Sums of products of bytes, four of them at a time, as processors add them (AVX-512 VNNI).

Σ over k of u[k]·s[k], u unsigned and s signed bytes, becomes a sum over words of `Leaf.DOT`, where
neighbours along k are adjacent in memory. Masks and shifts of u are applied to the four bytes of a
word at once.

A product with a quantized matrix is Σ over blocks of scale · Σ over a block of u·s: whole numbers,
that become float32 once for each block. Its recipe keeps both sums of a few rows in registers, so
that what a word of the matrix costs to load and to unpack is paid once for all of them:

    parallel over tiles of the matrix:
      for some rows at a time:
        total[rows] = 0
        for blocks:
          part = 0
          for words:  part += u[words, lanes] · s[row, words]
          total[row] += part · scale
        store the totals through the epilogue

In matrix registers (AMX), part[rows, lanes] is one product of a block's rows with the words of a
tile, which are unpacked before, once for all rows.

Each row is summed in the same order, however many there are.
"""

from __future__ import annotations

from collections.abc import Mapping

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops import nest
from minigrad.loops.assemble import in_levels
from minigrad.loops.build import inline_stages, lanes_loop, loops_over, reduction, summands
from minigrad.loops.cost import SMALL_TILES, cut
from minigrad.loops.nest import (
    Loop,
    Lowered,
    Matrix,
    MatrixProduct,
    Statement,
    Statements,
    Store,
    Stores,
)
from minigrad.loops.prefetch import AHEAD, Place
from minigrad.loops.transforms import Around, LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, place_along, size_of
from minigrad.schedule.byte_dots import LANES, in_blocks, in_words
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import ENOUGH_TASKS, FEW_TASKS, Target

# Operations per byte of the matrix that take no longer than reading it: those of two rows, if a
# core does 256 a cycle and reads 4 bytes.
OPERATIONS_A_BYTE = 64
# Rows from which on matrix registers pay: with fewer, a thread waits for the words of the matrix.
LEAST_IN_SQUARES = 16
SUMS = 24  # of some rows, that fit in registers together with an unpacked word of the matrix


def byte_dots(kernel: Kernel, target: Target) -> Lowered:
    """The loops of a product with a quantized matrix."""
    first, *others = kernel.stages
    sums = others[0] if others and others[0].op is Op.SUM else first
    alone = in_words(first)
    words = None if alone is None else {alone.body: alone}
    words = words if sums is first else in_blocks(first, sums)
    assert words is not None, "it was when the schedule made this kernel"
    dots = next(iter(words.values()))
    *outer, lane = sums.axes
    m = [axis for axis in outer if axis.variable not in dots.body.args[0].variables]
    n = [axis for axis in outer if axis not in m]
    tiles = [axis.variable for axis in n]
    squares = None
    if target.matrices and m and sums is not first:
        found = Squares(words, sums, m[-1], lane)
        squares = found if found.fit() else None
    naive = loops_over([*n, *m, lane], _naive(kernel, words, sums, squares))
    s = LoopNest([in_levels(loop, target) for loop in naive if isinstance(loop, Loop)])
    if m:
        *more, rows = (axis.variable for axis in m)
        count, most = m[-1].typical, SUMS // (len(words) + 1)
        size = cut(count, 1, most) if squares is None else squares.size
        block = s.split(rows, size, "t")
        s.reorder(*tiles, *more, block, lane.variable, rows)
    s.vectorize(lane.variable, LANES)
    if sums is not first and squares is None:
        s.repeat(*(axis.variable for axis in dots.reduced))
    if m:
        s.peel(block, rows)
        s.tails(rows, SMALL_TILES)
        s.sink(rows)
        if squares is not None:
            s.insert(sums.reduced[-1].variable, squares.products)
            s.insert(tiles[-1], squares.unpacked)
        s.unroll(rows, "u")
    if sums is not first and squares is None:
        ahead = target.rows_ahead or AHEAD // 4
        s.prefetch(sums.reduced[-1].variable, lambda loop, at: _blocks_ahead(loop, at, ahead))
    # kernels that compute much are shared by more threads, in chunks half as long
    return Lowered(s.parallelize(*tiles), runs=(OPERATIONS_A_BYTE, FEW_TASKS, ENOUGH_TASKS))


def _blocks_ahead(loop: Loop, around: Around, ahead: int) -> tuple[Place, ...]:
    """The matrix elements so many bytes ahead: loads that the lanes do not share."""
    lanes = {one.variable for one in around.values() if one.kind == "lanes"}
    loads = [
        e for e in expr.loads(*nest.expressions(loop))
        if not lanes.isdisjoint(e.variables) and not e.in_registers
    ]  # fmt: skip
    nbytes = LANES * sum(e.array.dtype.itemsize for e in loads)
    later = {loop.variable: loop.index + ceildiv(ahead, nbytes)}
    return tuple((e.array, substitute(e.index, later)) for e in loads)


class Squares:
    """The sums of blocks by matrix registers, which leave them in scratch memory.

    words: for each load in `sums`, the sum that it reads. A sum has `deep` words of the matrix (its
    parts, one after the other) and as many neighbours of a row. Rows are taken `size` at a time.
    """

    def __init__(
        self, words: Mapping[Expr, Stage], sums: Stage, rows: Axis, lane: Axis
    ) -> None:
        self.rows, self.lane, self.groups = rows, lane, sums.reduced
        self.inner = next(iter(words.values())).reduced
        self.terms = [_terms(dots.body) for dots in words.values()]
        self.length = size_of(self.inner)
        self.deep = self.length * len(self.terms[0])
        self.size = cut(rows.count, 1, LANES)
        self.word = place_along(self.inner)
        self.panel_at = place_along(self.groups) * self.deep * LANES
        count = size_of(self.groups) * self.deep * LANES
        self.panel = Array("panel", dtypes.uint32, count, "scratch")
        self.places = {
            read: Array(f"square{n}", dtypes.int32, self.size * LANES, "scratch")
            for n, read in enumerate(words)
        }

    def fit(self) -> bool:
        """Whether there are enough rows, and words are in memory as matrix registers read them."""
        known = isinstance(self.rows.extent, int) and self.rows.count >= LEAST_IN_SQUARES
        if not known or self.lane.extent != LANES or self.deep > LANES:
            return False
        for terms in self.terms:
            vectors = [vector for _, vector in terms]
            if any(vector.op is not Leaf.LOAD or vector.guard for vector in vectors):
                return False
            first = substitute(vectors[0].index, self._first())
            wanted = [first + n * self.length + self.word for n in range(len(terms))]
            if [vector.index for vector in vectors] != wanted or self._pitch(vectors[0]) is None:
                return False
        return len({tuple(matrix for matrix, _ in terms) for terms in self.terms}) == 1

    def _first(self) -> dict[Atom, Integer]:
        return {axis.variable: 0 for axis in self.inner}

    def _pitch(self, vector: Expr) -> int | None:
        return coefficient(vector.index, self.rows.variable)

    def place(self, read: Expr) -> Expr:
        """A load of a sum, for a row and a lane."""
        at = self.rows.index % self.size * LANES + self.lane.index
        return expr.load(self.places[read], at)

    def products(self, loop: Loop, around: Around) -> list[Statement]:
        """The products of a group, for a block of rows."""
        rows, found = nest.loop_over(self.rows.variable, loop.body), list[Statement]()
        at = {**self._first(), self.rows.variable: rows.start}
        for square, terms in zip(self.places.values(), self.terms, strict=True):
            vector = terms[0][1]
            pitch = self._pitch(vector)
            assert pitch is not None, "it fits"
            left = Matrix(vector.array, substitute(vector.index, at), pitch)
            right = Matrix(self.panel, self.panel_at, LANES)
            found.append(MatrixProduct(
                Matrix(square, 0, LANES), left, right, rows.trips, LANES, (self.deep,),
                dtypes.int8, dtypes.uint8,
            ))  # fmt: skip
        return found

    def unpacked(self, loop: Loop, around: Around) -> Statements:
        """Unpack the words of a tile, for all of its groups."""
        stores = tuple(
            Store(self.panel, self.panel_at + (n * self.length + self.word) * LANES
                  + self.lane.index, matrix)
            for n, (matrix, _) in enumerate(self.terms[0])
        )  # fmt: skip
        return loops_over([*self.groups, *self.inner], [lanes_loop(self.lane, LANES, stores)])


def _terms(dot: Expr) -> list[tuple[Expr, Expr]]:
    """The words of the matrix and of the vector that nested DOTs multiply, the innermost first."""
    matrix, vector, inner = dot.args
    return [*(_terms(inner) if inner.op is Leaf.DOT else ()), (matrix, vector)]


def _naive(
    kernel: Kernel, words: Mapping[Expr, Stage], sums: Stage, squares: Squares | None
) -> list[Statement]:
    """One result: for all blocks, the sums of a block, and what they add to the total.

    If there is only one sum, it is the total.
    """
    clear, add, parts = list[Statement](), list[Statement](), dict[Expr, Expr]()
    for number, (read, dots) in enumerate(words.items()):
        if squares is not None:
            parts[read] = squares.place(read)
            continue
        parts[read] = total = expr.register(f"part{number}", dots.body.dtype)
        begin, *more = reduction(Op.SUM, total, (), [dots.body])
        clear.append(begin)
        add += more
    body = [] if squares is not None else [*clear, *loops_over(dots.reduced, add)]
    if sums.array != dots.array:
        total = expr.register("total", sums.body.dtype)
        terms = summands(expr.replace_in(sums.body, parts))
        begin, *more = reduction(Op.SUM, total, (), terms)
        body = [begin, *loops_over(sums.reduced, [*body, *more])]
    others = kernel.stages[1 + (sums.array != dots.array) :]
    stores = inline_stages((sums, *others), kernel.stored, sums.axes, {sums.array: total})
    return [*body, Stores(tuple(stores))]
