"""Row after row of a matrix times a few vectors: vectors of partial sums along the row.

What an element of the matrix costs decides how fast this is, for it is used once. A quantized
matrix has scales that many elements of a row share: they are made numbers before the rows that
they belong to, many at a time, and are then one operand of a multiply-add.

Every row comes from memory, and computing with few bits takes so long that a processor's own
prefetching waits in between: each step asks for its share of rows some KiB ahead. (Measured with
two cores of a Sapphire Rapids class machine: a token of SmolLM2 takes 8.5 ms without, 5.0 with it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minigrad.graph.node import Op
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import Atom, Integer, high
from minigrad.loops.axes import indices, merge, vector_width
from minigrad.loops.build import combine, lanes_loop, loops_over
from minigrad.loops.nest import Fold, Loop, Set, Statement, Store
from minigrad.loops.prefetch import AHEAD, Place
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr, Leaf, Local
from minigrad.schedule.stage import Stage, identity
from minigrad.target import CHAINS, HALF_OF_L1, LINE, Target

MOST_STEPS = 32  # iterations, over one or some rows each, of one parallel iteration
NEAR_BYTES = 1 << 12  # a page: rows that lie within it are one place to read from


@dataclass(frozen=True)
class Sum:
    """Σ over k of body, one of a kernel's stages: of products of vectors and a matrix.

    vectors: what the products take of them. m: axes that number the vectors; n: axes of the matrix,
    and of the result; batch: axes of both.
    """

    stage: Stage
    body: Expr
    vectors: tuple[Expr, ...]
    batch: tuple[Axis, ...]
    m: tuple[Axis, ...]
    n: tuple[Axis, ...]
    k: tuple[Axis, ...]

    def of_matrix(self) -> list[Expr]:
        """The loads of the matrix."""
        n = {axis.variable for axis in self.n}
        return [load for load in expr.loads(self.body) if not n.isdisjoint(load.variables)]

    def points(self) -> list[dict[Atom, Integer]]:
        """The index values of every vector."""
        points: list[dict[Atom, Integer]] = [{}]
        for axis in self.m:
            points = [{**p, axis.variable: i} for p in points for i in range(axis.count)]
        return points


def with_vectors_at_hand(
    one: Sum, number: int, target: Target
) -> tuple[list[Statement], Sum]:
    """The sum with its vectors in scratch, unless they are loaded as needed; and the copying."""
    copies: list[Statement] = []
    places: dict[Expr, Expr] = {}
    for vector in one.vectors:
        inner = [axis for axis in one.k if axis.variable in vector.variables]
        if vector.op is Leaf.LOAD and not vector.guard:
            if not inner or coefficient(vector.index, inner[-1].variable) == 1:
                continue
        axes = [*one.m, *inner]
        extents = [high(axis.extent) for axis in axes]
        array = Array(f"vectors{number}_{len(places)}", vector.dtype, numel(extents), "scratch")
        place = flatten([axis.index for axis in axes], extents)
        copy: Statement = Store(array, place, vector)
        for axis in reversed(axes):
            width = vector_width(target, [vector], axis.extent, False) if axis is axes[-1] else 1
            copy = lanes_loop(axis, width, (copy,))
        copies.append(copy)
        places[vector] = expr.load(array, place)
    return copies, replace(one, body=expr.replace_in(one.body, places))


class GemvRows:
    """How the sums of a kernel go along the rows of their matrices.

    axis: numbers the rows; along[i]: the axis of vectors of sums[i]. A matrix in memory is read
    fastest from end to end, one row after the other; short rows, and those of a matrix that lies in
    a cache, are taken several at a time and share what they load of the vectors.
    """

    def __init__(
        self, sums: Sequence[Sum], axis: Axis, along: Sequence[Axis], target: Target
    ) -> None:
        self.axis, self.along, self.target = axis, along, target
        self.scales = [_scales(one, axis, a) for one, a in zip(sums, along, strict=True)]
        count = len(sums[0].points())
        most = 16 if target.registers >= 32 else 8
        loads = [load for one in sums for load in one.of_matrix()]
        matrices = {load.array for load in loads}
        cached = sum(a.size * a.dtype.itemsize for a in matrices) <= 16 * target.l2
        self.rows = 1
        if count > 1 and cached or CHAINS * max(map(_row_bytes, sums)) <= NEAR_BYTES:
            self.rows = max(min(most // (2 * count), CHAINS), 1)
        vectors = max(min(most // (self.rows * count), 8), 1)
        lanes = target.lanes(sums[0].stage.body.dtype)
        depth = min(max(high(a.extent), 1) for a in along)
        while vectors > 1 and vectors * lanes > min(depth, target.fold_lanes):
            vectors //= 2
        self.width = lanes * (1 << (vectors.bit_length() - 1)) if lanes > 1 else 1
        self.scale_bytes = sum(
            numel([high(a.extent) for a in axes]) * scale.dtype.itemsize
            for found in self.scales for scale, axes in found.items()
        )  # fmt: skip

    def block(self, tasks: int) -> int:
        """Rows of one parallel iteration, where there should be `tasks` of them."""
        steps = min(max(self.axis.count // tasks // self.rows, 1), MOST_STEPS)
        if self.scale_bytes:
            steps = max(min(steps, HALF_OF_L1 // (self.scale_bytes * self.rows)), 1)
        return steps * self.rows

    def loops(
        self, one: Sum, number: int, made: Array, block: int, start: Integer,
        stops: tuple[Integer, ...],
    ) -> list[Statement]:  # fmt: skip
        """made[t, row] = the sum of row start + row, for all rows of a block."""
        asked = self._first_rows(one, start, self.along[number])
        scales, one = self._with_scales_at_hand(one, number, block, start, stops)
        statements = [*scales, *asked]
        rest = self.axis.count % self.rows
        whole = self.axis.count - rest
        row = make_axis("w", number, self.axis.count)
        if whole:
            ends = stops if not rest else (stops[0], whole)
            body = self._some(one, number, made, block, start, row, self.rows)
            statements.append(Loop(row.variable, start, ends, body, step=self.rows))
        if rest:
            body = self._some(one, number, made, block, start, row, rest)
            ends = (stops[0], self.axis.count)
            # the block that holds the rest begins at or before it
            statements.append(Loop(row.variable, whole, ends, body, step=rest))
        return statements

    def _with_scales_at_hand(
        self, one: Sum, number: int, block: int, start: Integer, stops: tuple[Integer, ...]
    ) -> tuple[list[Statement], Sum]:
        """The sum with its scales in scratch, and what fills that for the rows of a block."""
        fill: list[Statement] = []
        places: dict[Expr, Expr] = {}
        for scale, axes in self.scales[number].items():
            extents = [block, *(high(a.extent) for a in axes)]
            array = Array(f"scale{number}_{len(places)}", scale.dtype, numel(extents), "scratch")
            inner = [a.index for a in axes]
            row = make_axis("s", number, block)
            value = expr.substitute_in(
                scale, {self.axis.variable: start + row.index}
            )
            place = flatten([row.index, *inner], extents)
            merged = merge((row, *axes), indices([value], [place]))
            known = {a: x for _, values in merged for a, x in values.items()}
            value, position = expr.substitute_in(value, known), substitute(place, known)
            first, last = merged[0][0], merged[-1][0]
            per_row = first.count // block
            ends = tuple((stop - start) * per_row for stop in stops)
            width = vector_width(self.target, [value], last.extent, False)
            inside: tuple[Statement, ...] = (Store(array, position, value),)
            for axis, _ in reversed(merged):
                bounds = ends if axis is first else (axis.extent,)
                inside = (lanes_loop(axis, width if axis is last else 1, inside, 0, bounds),)
            fill.extend(inside)
            row_at = self.axis.index - start
            places[scale] = expr.load(array, flatten([row_at, *inner], extents))
        return fill, replace(one, body=expr.replace_in(one.body, places))

    def _some(
        self, one: Sum, number: int, made: Array, block: int, start: Integer, row: Axis, rows: int
    ) -> tuple[Statement, ...]:
        """The sums of `rows` rows."""
        points, along = one.points(), self.along[number]
        name = f"dot{number}_{rows}"
        clear: list[Statement] = []
        step: list[Statement] = []
        store: list[Statement] = []
        for r in range(rows):
            at = row.index + r
            body = expr.substitute_in(one.body, {self.axis.variable: at})
            for t, point in enumerate(points):
                total = Local(f"{name}_{t}_{r}", made.dtype, 1)
                part = total
                if self.width > 1:
                    part = Local(f"{name}_{t}_{r}_part", made.dtype, 1, along.variable, self.width)
                clear.append(Set(part, 0, identity(Op.SUM, made.dtype)))
                for term in summands(expr.substitute_in(body, point)):
                    step.append(Set(part, 0, combine(Op.SUM, expr.local(part), term)))
                if self.width > 1:
                    store.append(Fold(total, Op.SUM, part))
                place = t * block + at - start
                store.append(Store(made, place, expr.local(total)))
        loop = lanes_loop(along, self.width, tuple(step))
        loop = replace(loop, prefetch=self._rows_ahead(one, row, rows, along))
        return (*clear, *loops_over([a for a in one.k if a != along], [loop]), *store)

    def _pieces(self, one: Sum, along: Axis) -> list[tuple[Array, Integer, Integer]]:
        """Of matrices whose rows follow one another: where a row begins, and the places in it.

        Only of what is read along the whole of a row.
        """
        pieces = []
        for load in one.of_matrix():
            array, position = load.array, load.index
            extents = [axis.extent for axis in one.k]
            inside = flatten([axis.index for axis in one.k], extents)
            begin = substitute(position, {axis.variable: 0 for axis in one.k})
            follow = coefficient(position, self.axis.variable) == numel(extents)
            if follow and along == one.k[-1] and position - begin == inside:
                pieces.append((array, begin, inside))
        return pieces

    def _ahead(self, one: Sum) -> int:
        """How many rows ahead of their use rows are fetched."""
        return max(AHEAD // (self.rows * _row_bytes(one)), 1) * self.rows

    def _rows_ahead(self, one: Sum, row: Axis, rows: int, along: Axis) -> tuple[Place, ...]:
        """What a step that takes a vector of each of `rows` rows asks the memory for.

        The rows ahead are one piece of memory: each step asks for its share of the lines of it.
        """
        places: list[Place] = []
        ahead = row.index + self._ahead(one)
        for array, begin, inside in self._pieces(one, along):
            piece = substitute(begin, {self.axis.variable: ahead}) + inside * rows
            step = max(self.width, LINE // array.dtype.itemsize)
            places.extend((array, piece + at) for at in range(0, rows * self.width, step))
        return tuple(places)

    def _first_rows(self, one: Sum, start: Integer, along: Axis) -> list[Statement]:
        """Loops that ask the memory for the rows that a block begins with, all at once."""
        loops: list[Statement] = []
        for array, begin, _ in self._pieces(one, along):
            count = self._ahead(one) * numel([high(axis.extent) for axis in one.k])
            place = make_axis("p", len(loops), count)
            first = substitute(begin, {self.axis.variable: start})
            line = min(LINE // array.dtype.itemsize, self.target.most_lanes)
            prefetch = ((array, first + place.index),)
            loops.append(replace(lanes_loop(place, line, ()), prefetch=prefetch))
        return loops


def _row_bytes(one: Sum) -> int:
    """Bytes of a row of the matrix, in all of its arrays."""
    total = 0
    for load in one.of_matrix():
        along = [high(axis.extent) for axis in one.k if axis.variable in load.variables]
        total += numel(along) * load.dtype.itemsize
    return total


def _scales(one: Sum, row: Axis, along: Axis) -> dict[Expr, list[Axis]]:
    """What is computed from the matrix and the same all along, with the axes that it varies by."""
    found: dict[Expr, list[Axis]] = {}
    kept = {axis.variable for axis in (*one.m, *one.k)} - {along.variable}
    m = {axis.variable for axis in one.m}
    pending = [one.body]
    while pending:
        e = pending.pop()
        if row.variable not in e.variables or not e.args:
            continue
        if along.variable in e.variables or not m.isdisjoint(e.variables):
            pending.extend(e.args)
        else:
            found[e] = [axis for axis in one.k if axis.variable in e.variables & kept]
    return found


def summands(e: Expr) -> list[Expr]:
    """What is added up, to be added one by one: each of them is then one multiply-add."""
    if e.op is not Op.ADD:
        return [e]
    return [term for arg in e.args for term in summands(arg)]
