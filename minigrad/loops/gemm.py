"""The recipe of a matrix product: tiles of the output in registers, one panel of `right` at a time.

    parallel over batch × blocks of columns × blocks of rows:
      copy the block of `left` if it cannot be read in place
      for each panel of the block's columns:
        copy the panel of `right` if its rows are not contiguous vectors
        for each tile of rows:
          tile[rows] = 0
          for k:  tile[row] += left[row, k] · right[k, lanes]      (fused multiply-adds)
          store the tile through the epilogue

If the operands exceed the caches, k is cut, too: all steps but the clearing and the epilogue run
for one piece of k after the other, and sums wait in scratch memory. Edges need no special tile: the
last tile has fewer rows, the last vector a mask. A copy can contain any index expression, mask or
conversion: computing an operand is paid for once per block, not in every tile.
After "Anatomy of High-Performance Matrix Multiplication" (Goto, van de Geijn, ACM TOMS 34, 2008);
the numbers, such as mr and nr, are those of cost.py.

Products of bfloat16 or bytes in the matrix registers of a processor (AMX), in squares of 32 × 32:

    parallel over batch × blocks of columns × blocks of rows:
      copy the block of `left`, row after row, in words of two or four neighbours along k
      for each panel of the block's columns:
        copy the panel of `right`, in such words too
        for each square of the block:
          square = left's 32 rows · panel
          store the square through the epilogue
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import coefficient, substitute, variables
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high, low
from minigrad.loops import cost, product
from minigrad.loops.axes import NEIGHBOURS, enough_lanes
from minigrad.loops.build import Change, combine, loops_over, put, reduction
from minigrad.loops.cost import Tiling, row_stride
from minigrad.loops.nest import Fold, Loop, Lowered, Prefetch, Statement, loop_over, written
from minigrad.loops.product import LANE, Part, Problem
from minigrad.loops.transforms import Around, LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import identity
from minigrad.target import LINE, Target

ROW_WORDS = LINE // 4  # of 32 bits, in a row of a matrix register: 64 bytes


def gemm(kernel: Kernel, target: Target) -> Lowered:
    """The loops of a product and its elementwise epilogue."""
    problem = product.with_dynamic_bounds(product.prepare(kernel))
    problem, tiling = planned(problem, target)
    return Lowered(tiled(problem, tiling, target), products=True)


def planned(problem: Problem, target: Target) -> tuple[Problem, Tiling]:
    """A product in the form in which it is computed, of words if that pays, and its tiling."""
    plain = not problem.ends and problem.terms is None and problem.added is None
    if target.matrices and plain and (words := product.in_words(problem, ROW_WORDS)):
        if squares := cost.amx_tiling(words, target):
            return words, squares
    dots = target.bfloat16_dots and problem.total.dtype.is_float
    if dots and plain and (pairs := product.in_words(problem)):
        problem = pairs if cost.packing_pays(pairs, target) else problem
    return problem, cost.tiling_of(problem, target)


def tiled(problem: Problem, tiling: Tiling, target: Target) -> Loop:
    """A product in tiles, with copies of operands that they cannot read in place."""
    part: Part | None = None
    if tiling.packs_right and not (tiling.kc or tiling.squares):
        bounded, part = product.part_of_image(problem)
        problem = replace(bounded, left=problem.left) if tiling.packs_left else bounded
    m, n, ks = problem.row.variable, problem.column.variable, [axis.variable for axis in problem.k]
    s = LoopNest(problem.naive(), left=problem.left, right=problem.right)
    s.vectorize(n, tiling.nr, LANE, overlaps=tiles_overlap(problem, tiling))
    # tasks of mc × nc results
    columns, task = s.split(n, tiling.nc, "p"), s.split(m, tiling.mc, "c")
    parts = cost.shared_rows(problem, tiling)
    shared = [axis.variable for axis, _ in parts]
    outer = [axis.variable for axis in problem.outer if axis.variable not in shared]
    outer += [s.split(axis.variable, size, "g") for axis, size in parts if size < axis.most]
    tasks = [task] if tiling.in_turn else [*outer, columns, task]
    s.reorder(*tasks, *(x for x in (*outer, columns) if x not in tasks), *shared, m, n)
    inside = task
    if tiling.kc:  # a piece of k for all results of a task, then the next; sums wait in scratch
        place, length = cost.cut_depth(problem, tiling.kc)
        inside, ks = s.split(ks[place], length, "kb"), ks[place:]
        s.sink(m, n, into=inside, space="scratch")
    with s.inside(inside):
        # tiles of mr rows × nr columns, panel after panel
        tile = s.split(m, tiling.mr, "t")
        s.reorder(n, *shared, tile, m)
        if tiling.packs_left:
            stage_left(s, problem, tiling, tile, ks, target)
        if tiling.packs_right:
            stage_right(s, problem, tiling, ks, target)
        if tiling.squares:
            m = problem.row.variable
            s.sink(m)
            hints = TilePrefetches(problem, tiling, s.operands, tile, s.trips(ks[-1]), shared)
            if hints.behind:
                s.insert(tile, hints.all_behind)
            of, by = (words.args[0].dtype for words in (problem.left, problem.right))
            s.tensorize(tile, m, ks, "left", "right", of, by)
        else:
            if part is not None:
                within_image(s, problem, tiling, part)
            in_registers(s, problem, tiling, tile, ks, shared, target)
    return s.parallelize(*tasks)


def in_registers(
    s: LoopNest, problem: Problem, tiling: Tiling, tile: Atom, ks: list[Atom],
    shared: Sequence[Atom], target: Target,
) -> None:  # fmt: skip
    """Keep the sums of each tile in registers, with its rows unrolled."""
    m = problem.row.variable
    costs = sum(expr.operations(store.value) for store in problem.stores)
    long = costs >= LONG_EPILOGUE and tiling.nr > 1 and not tiling.kc
    if long:
        s.distribute(m)
    s.peel(tile, m)
    s.tails(m, cost.SMALL_TILES[target.brief:])
    s.sink(m)
    if tiling.nr > 1 and isinstance(problem.k[-1].extent, int):
        trips = s.trips(ks[-1])
        image = hints_below(s, problem, tiling, shared, trips >= LEAST_FETCHED)
        # where L2 does not hold the result, lines are fetched before they are written: products
        # of 2048 × 384 × 1536 take 0.96 of the time, Winograd's of 16 × 1568 × 128 × 128 0.92
        # (Zen 4; Emerald Rapids took 0.91 … 1.15)
        cache = math.inf if target.matrices else target.l2
        hints = TilePrefetches(problem, tiling, s.operands, tile, trips, shared, image, cache)
        if hints.pay:
            lines = s.split(ks[-1], hints.line, "ko", computing=True)
            s.insert(lines, hints.seldom)
            if hints.deep:
                s.insert(ks[-1], hints.often)
            ks = [*ks[:-1], lines, ks[-1]]
    if (terms := problem.terms) is not None:
        s.insert(ks[0], lambda loop, _: again(loop, m, terms), behind=True)
    # (if several conditions differ by row, LLVM would load more than the registers hold)
    few = sum(m in variables(x) for e in expr.loads(s.operands["left"]) for x in e.guard) <= 1
    if tiling.nr > 1 and problem.depth >= LEAST_UNROLLED and few and not target.brief:
        s.unroll_by(ks[-1], UNROLLED, "v")
    if tiling.nr > 1 and not target.brief and problem.stores_across:
        s.transpose(m, target.lanes(problem.total.dtype))
    s.unroll(m, "u", computing=long)  # the stores of a long epilogue stay a loop


def tiles_overlap(problem: Problem, tiling: Tiling) -> bool:
    """Whether the last tile of columns is a whole one that overlaps the previous tile.

    Then all tiles share their code, and it takes half as long to compile. Not if results are stored
    transposed, column after column, nor if they are added to memory for each piece of k.
    """
    whole = not tiling.kc and not tiling.squares and not problem.stores_across
    return whole and tiling.nr > 1 and low(problem.column.extent) > tiling.nr


def stage_left(
    s: LoopNest, problem: Problem, tiling: Tiling, tile: Atom, ks: Sequence[Atom], target: Target
) -> None:
    """Copy the block of `left`: tile after tile if rows are near each other, else row after row."""
    operand, m, lanes = problem.left, problem.row.variable, target.lanes(problem.total.dtype)
    depth, apart = numel([s.trips(k) for k in ks]), expr.strides(m, operand)
    if not tiling.squares and any(step in range(1, NEIGHBOURS + 1) for step in apart):
        wide = enough_lanes(lanes, tiling.mr)  # 16 for 8 rows would make the copy twice as large
        pitch = ceildiv(tiling.mr, wide) * wide
        # an odd depth: tiles at distances of kilobytes compete for lines of the first-level cache
        layout = [((tile,), None), (ks, depth | 1), ((m,), pitch)]
        s.stage("left", None, [*ks, tile, m], layout, "left", {m: pitch})
        return
    layout = [((tile, m), None), (ks, row_stride(depth, operand.dtype.itemsize))]
    along, wide, turn = ks[-1], lanes, 0
    if tiling.squares:  # words, copied in whole registers
        along, turn = (m, lanes) if 1 in apart else (along, 0)
    elif s.trips(along) >= 2 * lanes:
        wide = 2 * lanes
    s.stage("left", None, [tile, m, *ks], layout, "left", {along: wide}, transpose=turn)


def stage_right(
    s: LoopNest, problem: Problem, tiling: Tiling, ks: Sequence[Atom], target: Target
) -> None:
    """Copy a panel of `right`, in the order in which it lies in memory."""
    operand, n, lanes = problem.right, problem.column.variable, target.lanes(problem.total.dtype)
    lanes = tiling.nr if tiling.squares else 0 if target.brief else lanes
    order = sorted(ks, key=lambda k: -product.distance(operand, k))
    s.stage("right", n, order, [(ks, None), ((n,), tiling.nr)], "panel", transpose=lanes)


def again(loop: Loop, m: Atom, terms: Expr) -> list[Statement]:
    """After the sums of a tile: if one is not finite, add the exact terms instead.

    loop: over k, around that over m, the tile's rows.
    """
    (registers,) = written(loop)
    rows = loop_over(m, loop.body)
    total = expr.load(registers, m.index - rows.start)
    vectors = registers.lanes is not None
    wrong = replace(registers, name=f"{registers.name}_wrong", size=1, folded=vectors)
    found = expr.load(wrong)
    result: list[Statement] = [put(found, found.constant(0.0))]
    result.append(rows.around((put(found, found + total * 0.0),)))
    if vectors:
        found = expr.register(f"{wrong.name}_any", registers.dtype)
        result.append(Fold(found.array, Op.SUM, wrong))
    times = expr.value_of(found.differs(found).cast(dtypes.int32))
    clear = put(total, identity(Op.SUM, registers.dtype))
    more = combine(Op.SUM, total, terms)
    summed = Change(lambda value: more).of(loop)
    once = make_axis("again", 0, 2)
    return [*result, Loop(once.variable, 0, (times,), (rows.around((clear,)), summed))]


# ---- images that are read in place ----


def within_image(s: LoopNest, problem: Problem, tiling: Tiling, part: Part) -> None:
    """Skip products with the zeros around images: x + 0·w is x if w is finite.

    If it is not, a NaN is added instead: for each column and position along the axis a NaN or 0 is
    computed before.
    """
    axis, start, stop = part
    n, dtype = problem.column.variable, problem.total.dtype
    s.instead(axis.variable, lambda one: (replace(one, start=start, stops=(stop,)),), True)
    axes = [make_axis("z", number, one.count) for number, one in enumerate(problem.k)]
    at = {one.variable: new.index for one, new in zip(problem.k, axes, strict=True)}
    outer = axes.pop(problem.k.index(axis))
    sums = expr.load(Array("zero", dtype, 1, "registers", lanes=n, width=tiling.nr))
    sizes, places = (outer.count, tiling.nr), (outer.index, LANE.index)
    zeros = expr.load(Array("zeros", dtype, numel(sizes), "scratch"), flatten(places, sizes))
    times = expr.substitute_in((s.operands["right"] * 0.0).cast(dtype), at)
    steps = [*reduction(Op.SUM, sums, axes, [times]), put(zeros, sums)]

    def look(loop: Loop, _: Around) -> tuple[Statement, ...]:
        return loops_over([outer], steps)

    def add(loop: Loop, _: Around) -> list[Loop]:
        (registers,) = written(loop)
        total = expr.load(registers)
        more = (put(total, total + zeros),)
        ends = (0, start), (stop, outer.count)
        return [Loop(outer.variable, a, (b,), more) for a, b in ends if a != b]

    s.insert(problem.k[0].variable, add, behind=True)
    s.insert(n, look)


def hints_below(
    s: LoopNest, problem: Problem, tiling: Tiling, shared: Sequence[Atom], deep: bool
) -> bool:
    """Prefetch what is below the pixels that are read; returns whether `left` is such an image.

    If k runs over the channels of a tile's pixels, which are adjacent, that is the tile below:
    another line for each of a kernel's columns. If it runs over pixels, row after row, it is the
    next row, of each of the tile's channels; or, if channels are side by side, of those at each
    pixel. (If there are many, `deep`, they may be no image.)
    """
    left, m, k, above = problem.left, problem.row.variable, problem.k[-1], problem.k[-2:-1]
    if left.op is not Leaf.LOAD or tiling.packs_left:
        return False
    around = [axis.variable for axis in above]
    across, step, far, row = (
        coefficient(left.index, xs[-1]) or 0 if xs else 0
        for xs in ([m], [k.variable], around, shared)
    )  # fmt: skip
    turn: Integer = 0
    turns, line = 1, LINE // left.dtype.itemsize
    # of the tile's channels, which are further apart than all rows
    each = 0 < step <= NEIGHBOURS and step < far and far * (above[-1].most - 1) < across
    if each or across == 1 and 0 < step < far and not deep:
        below = around[-1]
    elif 0 < across <= NEIGHBOURS and 0 < row < step:
        below = shared[-1]
        if 0 < far <= NEIGHBOURS:
            turn, turns = above[-1].index, above[-1].count
    else:
        return False

    def hints(loop: Loop, _: Around) -> list[Statement]:
        rows = loop_over(m, loop.body)
        last = {k.variable: k.most - 1} if each else {m: rows.start + rows.trips - 1}
        end = substitute(left.index, last | {below: below.index + 1})
        count = ceildiv(step * k.most if each else across * rows.trips, line)
        places = (end - line * (turn + n) for n in range(0, count, turns))
        lines = tuple(Prefetch(left.array, place) for place in places)
        return [rows.around(lines)] if each else list(lines)

    s.insert(below if each else k.variable, hints)
    return True


# ---- prefetches ----
# Elements of k below which nothing is prefetched: at 14 cycles each, in tiles of 14 rows, 192 take
# some ten times the latency of memory; most of a shorter sum would be over by then.
LEAST_FETCHED = 192
LEAST_FETCHED_BEHIND = 64  # the same for the loads of an epilogue: there are far fewer of them
# Elements of k that are unrolled, in sums of at least so many: each adds a tenth to the time to
# compile. For 8 rows of 32 columns one takes 26 instructions, prefetches left out, and the loop 7.
# That is much if a core starts two multiply-adds a cycle and its other thread needs instructions.
UNROLLED, LEAST_UNROLLED = 2, 128
# Operations of an epilogue from which on it is a loop over the rows of a tile, not unrolled: an
# update of AdamW has 50, and is bound by memory.
LONG_EPILOGUE = 32


class TilePrefetches:
    """Prefetches in the loops over k of tiles: at every k, and at every `line` of them.

    operands: as tiles read them. k: the innermost axis of k, of `terms` iterations; tile: its
    number in a block. shared: axes of rows around it. cache: bytes of a result from which on its
    lines are fetched before they are written.
    """

    def __init__(
        self, problem: Problem, tiling: Tiling, operands: Mapping[str, Expr], tile: Atom,
        terms: int, shared: Sequence[Atom], image: bool = False, cache: float = math.inf,
    ) -> None:  # fmt: skip
        self.left, self.right, self.image = operands["left"], operands["right"], image
        self.tiling, right = tiling, problem.right
        self.sources = expr.loads(right) if right.op in (Leaf.LOAD, Leaf.WORD) else ()
        # the number of tiles that read a panel, and the number of one (a loop over one tile has no
        # variable: see `LoopNest.simplify`)
        around = [axis for axis in problem.m if axis.variable in shared]
        extents = [*(axis.extent for axis in around), max(tiling.mc // tiling.mr, 1)]
        places = [*(axis.index for axis in around), tile.index if tile.high else 0]
        self.tiles, self.number = numel(extents), flatten(places, extents)
        self.m, self.n = problem.row.variable, problem.column.variable
        self.k = problem.k[-1].variable
        self.line = LINE // max(self.left.dtype.itemsize, 4)
        self.deep = terms >= LEAST_FETCHED
        # the next panel is packed after this one: each of a block's tiles fetches its share of it
        packs = bool(self.sources) and tiling.packs_right and not tiling.kc
        self.following = packs and tiling.nc > tiling.nr and self.deep
        # the epilogue's loads and large results, row by row: hardware cannot predict them
        results = [
            expr.load(store.array, store.index) for store in problem.stores
            if high(store.array.size) * store.array.dtype.itemsize > cache
        ]  # fmt: skip
        self.behind = [] if tiling.kc else [
            load for load in (*expr.loads(*(store.value for store in problem.stores)), *results)
            if coefficient_of(load, self.n) == 1 and coefficient_of(load, self.m)
            and load.array.space == "buffer" and not expr.values_in(load.index)
        ]  # fmt: skip
        # along which loop, and how far ahead, rows of `left` are prefetched. If k is short, these
        # are the rows of the next tile (the next row of an image); but if several images, too large
        # for L2, are read in turn, what follows along k
        self.later: tuple[Atom, int] | None = None
        if self.left.op is Leaf.LOAD and coefficient_of(self.left, self.m) != 1 and not image:
            if self.deep or len(shared) > 1 and terms > 2 * self.line:
                self.later = self.k, 2 * self.line
            elif shared and coefficient_of(self.left, shared[-1]) and terms > self.line:
                self.later = shared[-1], 1
        behind = self.behind and terms >= LEAST_FETCHED_BEHIND
        self.pay = bool(self.deep or self.later or behind)

    def often(self, loop: Loop, around: Around) -> list[Statement]:
        """At every k: prefetch the operands' lines of some k later."""
        later = {self.k: self.k.index + self.line}
        hints = self._lines(self.right, later)
        if coefficient_of(self.left, self.m) == 1 and not self.image:
            first = {self.m: loop_over(self.m, loop.body).start}
            hints = self._lines(self.left, later | first) + hints
        return list(hints)

    def seldom(self, loop: Loop, around: Around) -> list[Statement]:
        """At every line of k: prefetch rows of `left`, the next panel, and for the epilogue."""
        k = loop_over(self.k, loop.body).start
        hints: list[Statement] = []
        if self.later is not None:
            x, far = self.later
            at = {self.k: k, x: (k if x == self.k else x.index) + far}
            lines = self._lines(self.left, at)[:1]
            hints.append(replace(loop_over(self.m, loop.body), body=lines))
        if self.following:
            hints.append(self._next_panel(loop))
        if self.behind:  # some of the tile's rows
            each = ceildiv(self.tiling.mr, ceildiv(self.k.high + 1, self.line))
            one = make_axis("f", 1, each)
            row = loop_over(self.m, loop.body).start + (loop.index * each + one.index)
            rows = [hint for load in self.behind for hint in self._columns(load, {self.m: row})]
            hints.append(Loop(one.variable, 0, (each,), tuple(rows), "unroll"))
        return hints

    def all_behind(self, loop: Loop, around: Around) -> list[Statement]:
        """Before a square's product: prefetch what its epilogue reads."""
        lines = tuple(hint for load in self.behind for hint in self._columns(load, {}))
        return [replace(loop_over(self.m, loop.body), body=lines)]

    def _lines(self, operand: Expr, at: Mapping[Atom, Integer]) -> tuple[Prefetch, ...]:
        """Prefetches of the lines of a row of a tile or panel, at an index of an operand."""
        if not coefficient_of(operand, self.k) or expr.values_in(operand.index):
            return ()
        return self._columns(operand, at)

    def _columns(self, operand: Expr, at: Mapping[Atom, Integer]) -> tuple[Prefetch, ...]:
        array, index = operand.array, operand.index
        first, line = substitute(index, at), LINE // operand.dtype.itemsize
        aligned = (coefficient(index, self.k) or 0) % line == 0
        count = ceildiv(self.tiling.nr, line) + (not aligned)
        return tuple(Prefetch(array, first + line * n) for n in range(count))

    def _next_panel(self, loop: Loop) -> Loop:
        """Prefetches of a tile's share of the next panel, at a line of k."""
        tile, piece, nr = self.number, loop.index, self.tiling.nr
        tiles, depth = self.tiles, self.k.high + 1
        one = make_axis("f", 0, nr * max(depth, self.line))
        source = self.sources[0]
        step = product.distance(source, self.k)
        if step < product.distance(source, self.n):  # its columns lie along k
            each = ceildiv(nr, tiles)
            at = {self.n: self.n.index + (tile * each + one.index + nr),
                  self.k: piece * self.line}  # fmt: skip
            lines = ceildiv(self.line * step * source.array.dtype.itemsize, LINE)
            rows = self._lines(source, at)[:lines]
        else:
            share = ceildiv(depth, tiles)
            each = ceildiv(share * self.line, depth)
            place = tile * share + piece * each + one.index
            at = {self.n: self.n.index + nr, self.k: place}
            rows = tuple(hint for load in self.sources for hint in self._lines(load, at))
        return Loop(one.variable, 0, (each,), rows, "unroll")


def coefficient_of(operand: Expr, x: Atom) -> int | None:
    """The step of a load along a variable; None if it varies, or the operand is not just a load."""
    return coefficient(operand.index, x) if operand.op is Leaf.LOAD else None
