"""What register tiles ask the memory for as they compute, which no processor guesses itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.cost import Plan, stays_near
from minigrad.loops.nest import Loop, Prefetch, Statement, loop_over
from minigrad.loops.product import Problem, strides
from minigrad.loops.transforms import Around
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Expr, Leaf
from minigrad.target import LINE, Target

# Elements of k below which nothing is fetched ahead: at 14 cycles each, for tiles of 14 rows, 192
# take some ten times as long as memory to answer; of a shorter sum too much is over by then.
LEAST_FETCHED = 192


class TileHints:
    """Hints for the loops over k of tiles: at every k, and seldom, at every `line` of them.

    operands: how tiles read them. k: the innermost axis of k; tile: numbers the tiles of a block.
    """

    def __init__(
        self, problem: Problem, plan: Plan, operands: Mapping[str, Expr], tile: Atom, target: Target
    ) -> None:
        self.left, self.right = operands["left"], operands["right"]
        self.plan, self.tile, self.source = plan, tile, problem.parts.right
        # of one tile: its loop goes (`Schedule.simplify`), and so does its variable
        self.number: Integer = tile.index if tile.high else 0
        parts = problem.parts
        self.m, self.n, self.k = parts.m[-1].variable, parts.n[-1].variable, parts.k[-1].variable
        self.line = LINE // max(self.left.dtype.itemsize, 4)
        alone = not (plan.kc or plan.panels)
        # the next panel is packed after this one: each of a block's tiles fetches its share of it
        self.following = alone and plan.packs_right and plan.nc > plan.nr
        # rows that come from beyond the second cache: a tile fetches those of the next one
        near = plan.packs_left or alone and stays_near(problem, plan.mc, target)
        self.far = not near

    def often(self, loop: Loop, around: Around) -> list[Statement]:
        """At every k: the operands' lines of some k later."""
        later = {self.k: self.k.index + self.line}
        hints = self._lines(self.right, later)
        if coefficient_of(self.left, self.m) == 1:
            first = {self.m: loop_over(self.m, loop.body).start}
            hints = self._lines(self.left, later | first) + hints
        return list(hints)

    def seldom(self, loop: Loop, around: Around) -> list[Statement]:
        """At every line of k: each row's next line but one, next tile's rows, the next panel."""
        rows, tiles = loop_over(self.m, loop.body), around[self.tile]
        k = loop_over(self.k, loop.body).start
        hints: list[Statement] = []
        if self.left.op is Leaf.LOAD and coefficient_of(self.left, self.m) != 1:
            lines = self._lines(self.left, {self.k: k + 2 * self.line})[:1]
            hints.append(replace(rows, body=lines))
            if self.far and tiles.start == 0 and self.tile.high:
                at = {self.k: k, self.m: self.m.index + self.plan.mr}
                lines = tuple(replace(one, later=True) for one in self._lines(self.left, at)[:1])
                this, next_one = self.number, make_axis("next", 0, self.tile.high + 2)
                stops = (this + 2, *tiles.stops)
                following = Loop(next_one.variable, this + 1, stops, (replace(rows, body=lines),))
                hints.append(following)
        if self.following:
            hints.append(self._next_panel(loop))
        return hints

    def _lines(self, operand: Expr, at: Mapping[Atom, Integer]) -> tuple[Prefetch, ...]:
        """Hints at the lines of an operand's row of a tile or panel, at an index."""
        if not coefficient_of(operand, self.k) or expr.values_in(operand.index):
            return ()
        array, index = operand.array, operand.index
        first, line = substitute(index, at), LINE // operand.dtype.itemsize
        aligned = (coefficient(index, self.k) or 0) % line == 0
        count = ceildiv(self.plan.nr, line) + (not aligned)
        return tuple(Prefetch(array, first + line * n) for n in range(count))

    def _next_panel(self, loop: Loop) -> Loop:
        """Hints at what a tile fetches of the next panel at a line of k."""
        tile, piece, nr = self.number, loop.index, self.plan.nr
        tiles, depth = max(self.plan.mc // self.plan.mr, 1), self.k.high + 1
        one = make_axis("f", 0, nr * max(depth, self.line))
        if 1 in strides(self.source, self.k):  # its columns lie along k
            each = ceildiv(nr, tiles)
            move = tile * each + one.index + nr
            rows = self._lines(self.source, {
                self.n: self.n.index + move, self.k: piece * self.line
            })[:1]  # fmt: skip
        else:
            share = ceildiv(depth, tiles)
            each = ceildiv(share * self.line, depth)
            place = tile * share + piece * each + one.index
            rows = self._lines(self.source, {self.n: self.n.index + nr, self.k: place})
        return Loop(one.variable, 0, (each,), rows, "unroll")


def coefficient_of(operand: Expr, x: Atom) -> int | None:
    """How far a load moves along a variable; None where that varies, or there is more to it."""
    return coefficient(operand.index, x) if operand.op is Leaf.LOAD else None

