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
what the second kind reads as scalars. A product is tried without its mask, and computed once more
as it is written where that is not finite (see block_plan.py). Only the rows' own operand must be
packed. Attention becomes one such kernel, its gradient another.

What is summed over the rows of all blocks (the gradients of keys and values) grows block by block:

    parallel over the heads:
      all[column] = 0
      for blocks of W rows:
        as above, and: for tiles of columns, for panels of the other operand's columns (lanes):
                           for rows: tile[column] += x[column, row] · other[row, lanes]
                           all[column] += tile[column]

Matrix registers compute products across, and those that are summed over rows (see block_plan.py).

Each step of that is naive loops over rows, columns and k, and a schedule of its own: the tiles of
all three kinds are split, peeled, sunk and unrolled as those of any product (see gemm.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient, only_atom, substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high, low
from minigrad.loops import block_plan, build
from minigrad.loops.axes import enough_lanes, fix_rows
from minigrad.loops.block_plan import WORDS, BlockPlan, BlockSums, Operands
from minigrad.loops.build import Bounds, with_values
from minigrad.loops.cost import LEAST_FULL, SQUARE, choose_nr, row_stride, vectors_each
from minigrad.loops.gemm import again
from minigrad.loops.mask_bounds import Rows
from minigrad.loops.nest import Loop, Lowered, Statement, Statements, Store, Stores, loop_over
from minigrad.loops.product import LANE, multiply_add
from minigrad.loops.transforms import LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, identity
from minigrad.target import ENOUGH_TASKS, Target

# Terms of a product across, and of one along, that are unrolled: with one, a tile of 8 rows takes
# nine instructions for the loop and its addresses beside 26. (Products along have their code twice,
# and with four of them compiling takes 1.2 of the time.) Sums over a block's rows gain nothing.
WRITTEN, WRITTEN_ALONG = 4, 2
MOST_BLOCKS = 8  # that share the copy of an operand: beside 128 rows a copy costs little


def block_rows(kernel: Kernel, target: Target) -> Lowered:
    """The loops of a kernel of kind "block_rows"."""
    kernel = block_plan.products_before_readers(kernel)
    extent = block_plan.neighbours(kernel)
    width, height = _block_width(kernel.stages, target, extent), _tile_height(target)
    if squares := block_plan.in_squares(kernel.stages, extent, target):
        width = height = SQUARE
    block = Rows(kernel.rows, extent, width, height)
    outer, number = block.outer, block.number
    sums = BlockSums(kernel, outer, block.row, target)
    fixed = {
        stage: sums.stages.get(stage.array) or fix_rows(stage, kernel.rows, block.whole)
        for stage in kernel.stages if stage.op is not None or stage.array not in kernel.sums
    }  # fmt: skip
    products = {one.array for stage, one in fixed.items() if stage.contraction is not None}
    stages = block_plan.rounded_once([*fixed.values()], products, sums.stored, target)
    plan = BlockPlan(stages, products, block, sums.stored, squares)
    run, blocks = _run(bool(kernel.sums), block)
    early: list[Statement] = []  # copies for several blocks
    body: list[Statement] = []
    for step in plan.steps:
        s = Step(plan, step, target).schedule(blocks)
        early += s.body[:-1]
        body += loop_over(number.variable, s.body).body
    inner = blocks.around(tuple(body))
    if kernel.sums:
        nested = build.flat_loop([outer], (*sums.clear(), *early, inner, *sums.finish()))
    elif early:
        nested = build.flat_loop([outer, run], (*early, inner))
    else:
        nested = build.flat_loop([outer, number], tuple(body))
    return Lowered(nested, *_work(kernel.rows, plan, target))


def _run(sums: bool, block: Rows) -> tuple[Axis, Loop]:
    """Runs of blocks that share the copy of an operand: their axis, and a run's loop over blocks.

    If blocks add to sums, one thread computes all of them.
    """
    count, number = block.number.count, block.number.variable
    each = min(max(count * block.outer.most // ENOUGH_TASKS, 1), MOST_BLOCKS)
    if sums:
        return make_axis("run", 0, 1), Loop(number, 0, (count,), ())
    run = make_axis("run", 0, ceildiv(count, each))
    stops = build.least(run.index * each + each, count)
    return run, Loop(number, run.index * each, stops, ())


def _work(rows: Integer, plan: BlockPlan, target: Target) -> tuple[int, float]:
    """Operations and vector instructions: the mean of the first and the last block, per row."""
    number = plan.block.number.variable
    ends = [{number: end} for end in (0, number.high)]
    work, vectors = 0, 0.0
    for n, stage in enumerate(plan.stages):
        axes = [axis for axis in (*stage.axes, *stage.reduced) if axis != plan.block.row]
        count = high(rows) * sum(_elements(axes, plan.bounds[n], end) for end in ends) // 2
        alone, product = 1 / target.lanes(stage.body.dtype), n in plan.products
        work += count * (2 if product else expr.operations(stage.body))
        if n in plan.in_pairs:  # matrix registers do 16 vectors' work (see assemble.py)
            alone /= WORDS if plan.squares else 2
        vectors += count * (alone if product else vectors_each(stage, target))
    return work, vectors


def _elements(
    axes: Sequence[Axis], bounds: Mapping[Atom, Bounds], block: Mapping[Atom, Integer]
) -> int:
    """Elements that a row of a block has within the bounds of its loops."""
    count = 1
    for axis in axes:
        first, stop = (substitute(x, block) for x in bounds[axis.variable])
        count *= max(min(high(stop), axis.most) - low(first), 1)
    return count


def _block_width(stages: Sequence[Stage], target: Target, rows: int) -> int:
    """Rows of a block: two registers of the widest product, for which it reads half as much.

    One register if two would leave more than a few rows of the last block unused.
    """
    lanes = min(target.lanes(s.body.dtype) for s in stages if s.contraction is not None)
    wide = 2 * lanes
    if rows >= wide and -rows % wide <= rows // LEAST_FULL:
        return wide
    return enough_lanes(lanes, rows)


def _tile_height(target: Target) -> int:
    return 1 << (target.tile_rows.bit_length() - 1)


# ---- the loops of a step ----


class Step:
    """The loops of one step: naive ones, and the transformations that make them fast."""

    def __init__(self, plan: BlockPlan, numbers: Sequence[int], target: Target) -> None:
        self.plan, self.numbers, self.target = plan, numbers, target
        self.block, self.number = plan.block, numbers[0]
        self.head, self.bounds = plan.stages[self.number], plan.bounds[self.number]
        inside = frozenset(plan.stages[n].array for n in numbers)
        self.bodies = {n: plan.reading(plan.stages[n].body, inside) for n in numbers}
        self.sums = self.block.row in self.head.reduced  # over the rows of the block
        self.read = plan.operands(self.number)
        stores = self.read is not None and self._only_stores(self.read.other)
        self.turned = stores and not self.sums and plan.squares  # columns are stored as rows
        self.along = self.sums or stores and not plan.squares
        self.at: dict[Atom, Integer] = {}  # a row's index in its block, if rows are no lanes
        if self.along and self.block.width > 1:
            self.at[only_atom(self.block.lane)] = self.block.row.index - self.block.start
        if self.read is not None:
            own, other = (expr.substitute_in(e, self.at) for e in (self.read.own, self.read.other))
            read = replace(self.read, own=own, other=other)
            self.read = block_plan.as_pairs(read, plan, self.number, target, self.along)
            plan.in_pairs |= {self.number} if self.read.pairs else set()
        self.squares = plan.squares and self.read is not None and self.read.pairs is not None

    def _only_stores(self, other: Expr) -> bool:
        """Whether the results of its product are only stored to memory, in rows of vectors."""
        last = self.head.axes[-1].variable
        stages = [self.plan.stages[n] for n in self.numbers]
        if any(stage.array in self.plan.places for stage in stages):
            return False
        return all(stage.op is None for stage in stages[1:]) and all(
            coefficient(load.index, last) in (0, 1) and not load.guard for load in expr.loads(other)
        )

    def schedule(self, blocks: Loop) -> LoopNest:
        """The loops, inside the one over a run's blocks; before it, copies for all of these."""
        read, row = self.read, self.block.row.variable
        operands = {} if read is None else {"own": read.own, "other": read.other}
        s = LoopNest((blocks.around(self._naive()),), **operands)
        if not self.along:
            lane = only_atom(self.block.lane) if self.block.width > 1 else None
            s.vectorize(row, self.block.width, lane)
        if read is not None:
            (self._along if self.along else self._across)(s, read)
        return s

    def _naive(self) -> Statements:
        """Naive loops, row after row and element after element, within the bounds that are needed.

        A product clears a register for each element and adds to it along k. Row statistics have
        registers, too, which are cleared before the loops over elements and stored after them.
        """
        head, axis, last = self.head, block_plan.column(self.head), block_plan.last_axis(self.head)
        outer, inner = (head.axes, head.reduced) if axis is None else ((), (axis,))
        values: dict[Array, Expr] = {}
        begin: list[Statement] = []
        body: list[Statement] = []
        stores: list[Store] = []
        end: list[Statement] = []
        if (read := self.read) is not None:
            outer, inner = (), head.axes
            values[head.array] = tile = expr.register(f"tile{self.number}x", head.body.dtype)
            more = build.put(tile, multiply_add(tile, read.own, read.other))
            body.append(build.put(tile, identity(Op.SUM, tile.dtype)))
            body += build.loops_over(read.ks, [more], self._bounds_of_k(read))
        for number in self.numbers:
            stage, place = self.plan.stages[number], self.plan.place(number)
            axis, value = block_plan.last_axis(stage), values.get(stage.array)
            here = {} if axis is None or last is None else {axis.variable: last.index}
            if value is None:
                value = with_values(expr.substitute_in(self.bodies[number], here), values)
                if stage.op is not None:
                    total = expr.register(f"sum{number}", value.dtype)
                    begin.append(build.put(total, identity(stage.op, value.dtype)))
                    body.append(build.put(total, build.combine(stage.op, total, value)))
                    end += [Store(*place, total)] if place is not None else []
                    continue
                values[stage.array] = value
            if place is not None:
                array, index = place[0], substitute(place[1], here)
                if self.sums:
                    value = build.combine(Op.SUM, expr.load(array, index), value)
                stores.append(Store(array, index, value))
        body += [Stores(tuple(stores))] if stores else []
        loops: Statements = (*begin, *build.loops_over(inner, body, self.bounds), *end)
        loops = build.loops_over(outer, loops, self.bounds)
        if not self.sums:
            rows = {self.block.row.variable: self.block.ends}
            loops = build.loops_over([self.block.row], loops, rows)
        return tuple(build.substitute_statement(one, self.at) for one in loops)

    def _bounds_of_k(self, read: Operands) -> Mapping[Atom, Bounds]:
        """The bounds of k: for one row if they move with the rows; in words, for pairs.

        An odd end comes from the rows' mask; after it the block has zeros.
        """
        bounds, (start, stop), row = dict(self.bounds), self.block.ends, self.block.row.index
        if self.along and not self.sums and not isinstance(start, int):
            for x, (first, last) in bounds.items():
                first = first - start + row if isinstance(first - start, int) else first
                last = last - stop + row + 1 if isinstance(last - stop, int) else last
                bounds[x] = first, last
        if read.pairs is not None:
            first, last = bounds[read.pairs.variable]
            bounds[read.ks[-1].variable] = first // 2, ceildiv(last, 2)
        return bounds

    # ---- products ----

    def _across(self, s: LoopNest, read: Operands) -> None:
        """Tiles of columns by all rows of the block.

        Operands in another layout are copied, and those that would be converted repeatedly.
        """
        axis, k, other = self.head.axes[-1].variable, read.ks[-1], read.other
        lanes, name = self.target.lanes(other.dtype), f"other{self.number}"
        if other.op is Leaf.WORD:
            near = expr.strides(axis, other) == {1}
            wide = {axis if near else k.variable: lanes}
            layout = [((axis,), None), ((k.variable,), row_stride(k.most, 4))]
            order = [axis, k.variable]
            s.stage("other", None, order, layout, name, wide, transpose=lanes if near else 0)
        elif other.op is Op.CAST and len(self.head.axes) == len(read.ks) == 1:
            wide = {k.variable: lanes}
            s.stage("other", None, [axis, k.variable], None, name, wide)
        if read.pairs or any(load.array.space == "buffer" for load in expr.loads(read.own)):
            self._pack_rows(s, read)
        self._tiles(s, read, axis)

    def _along(self, s: LoopNest, read: Operands) -> None:
        """Tiles of rows, or of what is summed over them, by panels of columns.

        Pairs are copied; those of the operand that the rows share once for several blocks. So is a
        block of rows that was computed with the rows side by side.
        """
        (*outer, axis), k, number = self.head.axes, read.ks[-1], self.block.number.variable
        side = outer.pop() if self.sums else self.block.row
        width = choose_nr(self.target, self.head.body.dtype, axis.count)
        width = SQUARE if self.squares else width
        near = expr.strides(axis.variable, read.other) == {1}
        if read.pairs or not near:
            order, wide = [k.variable, axis.variable], {axis.variable: width}
            turned = 0 if near else self.target.lanes(read.other.dtype)
            at, name = None if near else number, f"other{self.number}"
            s.stage("other", at, order, None, name, wide, transpose=turned)
        if read.pairs:
            if self.sums:
                order, name = [side.variable, k.variable], f"panel{self.number}"
                s.stage("own", number, order, None, name, {k.variable: WORDS})
            else:
                self._pack_rows(s, read)
        s.vectorize(axis.variable, width, LANE if self.squares else None)
        s.reorder(*(x.variable for x in (*outer, axis, side)), computing=True)
        self._tiles(s, read, side.variable)

    def _pack_rows(self, s: LoopNest, read: Operands) -> None:
        """Copy the rows' operand, so that rows are side by side; vectors along k are transposed."""
        row, width, ks = self.block.row.variable, self.block.width, [k.variable for k in read.ks]
        lanes, at = self.target.lanes(read.own.dtype), self.block.number.variable
        layout, name = [(ks, None), ((row,), width)], f"panel{self.number}"
        s.stage("own", at, [row, *ks], layout, name, {row: width}, transpose=lanes)

    def _tiles(self, s: LoopNest, read: Operands, x: Atom) -> None:
        """Tiles along x in registers; if a shortcut fails, the exact terms are summed."""
        height = SQUARE if self.squares else _tile_height(self.target)
        if self.along:
            height = min(height, self.block.width)
        tile = s.split(x, height, "t", computing=True)
        s.peel(tile, x)
        s.sink(x)
        if self.turned:
            s.transpose(x, self.target.lanes(self.head.body.dtype))
        if self.head.array in self.plan.tried:
            terms = expr.substitute_in(self.bodies[self.number], self.at)
            if read.pairs is not None:  # two of them at once, as a dot has them
                places = (read.ks[-1].index * 2 + n for n in (0, 1))
                one, two = ({read.pairs.variable: place} for place in places)
                terms = expr.substitute_in(terms, one) + expr.substitute_in(terms, two)
            s.insert(read.ks[0].variable, lambda loop, _: again(loop, x, terms), behind=True)
        if self.squares:
            names = ("own", "other") if self.along else ("other", "own")
            ks = [one.variable for one in read.ks]
            s.tensorize(tile, x, ks, *names, dtypes.bfloat16, dtypes.bfloat16)
        else:
            if not self.sums:
                s.unroll_by(read.ks[-1].variable, WRITTEN_ALONG if self.along else WRITTEN, "ku")
            s.unroll(x, "u", computing=True)
        s.simplify()
