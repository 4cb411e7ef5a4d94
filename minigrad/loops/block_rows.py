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
what the second kind reads as scalars. A product is tried without its mask and scale, and
computed once more as it is written where that is not finite (see block_plan.py). Only the rows' own
operand must be packed. Attention becomes one such kernel, its gradient another.

What is summed over the rows of all blocks (the gradients of keys and values) grows block by block:

    parallel over the heads:
      all[column] = 0
      for blocks of W rows:
        as above, and: for tiles of columns, for panels of the other operand's columns (lanes):
                           for rows: tile[column] += x[column, row] · other[row, lanes]
                           all[column] += tile[column]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import coefficient, only_atom, substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high, low
from minigrad.loops import build
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import enough_lanes, fix_rows
from minigrad.loops.block_pairs import WORDS, Operands, as_pairs, copied, ends_of_run
from minigrad.loops.block_plan import (
    BlockPlan,
    BlockSums,
    column,
    neighbours,
    products_before_readers,
    rounded_once,
)
from minigrad.loops.build import Bounds
from minigrad.loops.cost import choose_nr, vectors_each
from minigrad.loops.mask_bounds import Rows
from minigrad.loops.nest import Loop, Nest, Statement, Store, Stores, loops_in
from minigrad.loops.prefetch import Place
from minigrad.loops.product import multiply_add
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, identity
from minigrad.target import ENOUGH_TASKS, LINE, Target

MOST_ROWS = 16  # of a block
MOST_BLOCKS = 8  # for which an operand is copied once: 128 rows, beside which a copy costs little


def block_rows(kernel: Kernel, target: Target) -> Nest:
    """The loop nest of a kernel of kind "block_rows"."""
    kernel = products_before_readers(kernel)
    extent, height = neighbours(kernel), 1 << (target.tile_rows.bit_length() - 1)
    block = Rows(kernel.rows, extent, _block_width(kernel, target, extent), height)
    outer, number = block.outer, block.number
    later = _later(kernel, outer, target)
    sums = BlockSums(kernel, outer, block.row, target)
    stages, products = list[Stage](), set[Array]()
    for stage in kernel.stages:
        if stage.op is not None or stage.array not in kernel.sums:
            fixed = sums.stages.get(stage.array) or fix_rows(stage, kernel.rows, block.whole)
            stages.append(fixed)
            products |= {fixed.array} if stage.contraction is not None else set()
    stages = rounded_once(stages, products, sums.stored, target)
    plan = BlockPlan(stages, products, block, sums.stored)
    body: list[Statement] = []
    early: list[Statement] = []  # copies for several blocks
    together: list[Statement] = []  # what one loop over the rows can do
    run, first, last = _run(kernel, block)
    for step in plan.steps:
        loop = StepCode(plan, step, target, later)
        before, copies = loop.pack((first, last))
        early += before
        if together and (loop.runs_along or copies):
            body.append(block.loop(together))
            together = []
        body.extend(copies)
        if loop.runs_along:
            body.extend(loop.along())
        else:
            together.extend(loop.across())
    if together:
        body.append(block.loop(together))
    if kernel.sums:
        blocks = build.serial_loop(number, tuple(body))
        nested = build.flat_loop([outer], (*sums.clear(), *early, blocks, *sums.finish()))
    elif early:
        stops = build.least(last + 1, number.extent)
        blocks = Loop(number.variable, first, stops, tuple(body))
        nested = build.flat_loop([outer, run], (*early, blocks))
    else:
        nested = build.flat_loop([outer, number], tuple(body))
    return assemble(kernel, nested, target, *_work(kernel.rows, plan, target))


def _run(kernel: Kernel, block: Rows) -> tuple[Axis, Integer, Integer]:
    """Blocks for which an operand is copied once: the runs' axis, a run's first and last block.

    Where blocks add to sums, one thread does all of them.
    """
    count = block.number.count
    if kernel.sums:
        return make_axis("run", 0, 1), 0, count - 1
    each = min(max(count * high(block.outer.extent) // ENOUGH_TASKS, 1), MOST_BLOCKS)
    run = make_axis("run", 0, ceildiv(count, each))
    return run, run.index * each, run.index * each + (each - 1)


def _work(rows: Integer, plan: BlockPlan, target: Target) -> tuple[int, float]:
    """Operations and vector instructions: for each row the mean of the first block and the last."""
    number = plan.block.number.variable
    ends = [{number: end} for end in (0, number.high)]
    work, vectors = 0, 0.0
    for n, stage in enumerate(plan.stages):
        axes = [axis for axis in (*stage.axes, *stage.reduced) if axis != plan.block.row]
        count = high(rows) * sum(_elements(axes, plan.bounds[n], end) for end in ends) // 2
        alone, product = 1 / target.lanes(stage.body.dtype), n in plan.products
        work += count * (2 if product else expr.operations(stage.body))
        alone /= 2 if n in plan.in_pairs else 1
        vectors += count * (alone if product else vectors_each(stage, target))
    return work, vectors


def _later(kernel: Kernel, outer: Axis, target: Target) -> dict[Atom, Integer]:
    """Where operands lie that are asked for: at the next number of the outer axis.

    Where a training step left them, heads' rows are short and far apart, and no processor guesses
    them. Nothing is asked for where it would push out of the second cache what is needed first.
    """
    products = [stage for stage in kernel.stages if stage.contraction is not None]
    made = {stage.array for stage in kernel.stages}
    read = {array for stage in products for array in stage.reads} - made
    each = sum(array.size * array.dtype.itemsize for array in read) // high(outer.extent)
    fits = high(outer.extent) > 1 and 4 * each <= target.l2
    return {outer.variable: outer.index + 1} if fits else {}


def _elements(
    axes: Sequence[Axis], bounds: Mapping[Atom, Bounds], block: Mapping[Atom, Integer]
) -> int:
    """Elements that a row of a block has, within the bounds of its loops."""
    count = 1
    for axis in axes:
        first, stop = (substitute(x, block) for x in bounds[axis.variable])
        count *= max(min(high(stop), high(axis.extent)) - low(first), 1)
    return count


def _block_width(kernel: Kernel, target: Target, rows: int) -> int:
    """Rows of a block: two registers of the widest product, one where there are few rows.

    Half of what a block computes on a causal mask's diagonal is in vain: so it has no more than 16.
    """
    lanes = min(target.lanes(s.body.dtype) for s in kernel.stages if s.contraction is not None)
    return min(2 * lanes, MOST_ROWS) if rows > lanes else enough_lanes(lanes, rows)


# ---- the loops of a step ----


TileOf = Callable[[Integer, int], list[Statement]]  # (first place, height) → the statements


def _tiles(
    axis: Axis, first: Integer, stop: Integer, height: int, tile: TileOf
) -> list[Statement]:
    """An axis in tiles of `height`, and of what is left over; bounds are multiples of it."""
    whole, place = axis.count // height * height, make_axis("t", 0, axis.count)
    pieces = (first, whole, height), (whole, axis.count, axis.count - whole)
    return [
        Loop(
            place.variable, begin, build.least(stop, end), tuple(tile(place.index, size)),
            step=size,
        )
        for begin, end, size in pieces if end and size
    ]  # fmt: skip


class StepCode:
    """The loops of one step.

    later: variables and what they are at the place for which memory is asked in time; empty: it is
    not asked.
    """

    def __init__(
        self, plan: BlockPlan, step: Sequence[int], target: Target, later: Mapping[Atom, Integer]
    ) -> None:
        self.plan, self.step, self.target, self.later = plan, step, target, later
        self.block, self.number = plan.block, step[0]
        self.head, self.bounds = plan.stages[self.number], plan.bounds[self.number]
        self.is_product, block = self.number in plan.products, plan.block
        self.row = block.row.variable if block.width > 1 else None
        inside = frozenset(plan.stages[n].array for n in step)
        self.bodies = {n: plan.reading(plan.stages[n].body, inside) for n in step}
        self.sums = block.row in self.head.reduced  # over the rows of the block
        self.runs_along = self.sums
        total = Array("sum", dtypes.float32, 1, "registers", lanes=self.row, width=block.width)
        self.totals = {
            n: expr.load(replace(total, name=f"sum{n}", dtype=plan.stages[n].body.dtype))
            for n in step if plan.stages[n].op is not None and n not in plan.products
        }  # fmt: skip
        if self.is_product:
            plain, k = self._operands(), self.head.reduced[-1].variable
            self.runs_along = self.sums or self._only_stores(plain.other)
            self.read = as_pairs(
                plain, self.head, self.bounds[k], block, target, self.runs_along,
                plan.places.values(),
            )  # fmt: skip
            self.own, self.pairs = self.read.own, self.read.pairs
            plan.in_pairs |= {self.number} if self.pairs else set()

    # ---- what is done with one element ----

    def _element(
        self, place: Integer, result: Expr | None, at: dict[Atom, Integer]
    ) -> list[Statement]:
        """Statistics and stores of the column `place`; `result`: of the product there.

        at: more variables to replace, in all of it.
        """
        values: dict[Array, Expr] = {}
        sets: list[Statement] = []
        stores: list[Store] = []

        def known(e: Expr) -> Expr | None:
            return values.get(e.array) if e.op is Leaf.LOAD else None

        for number in self.step:
            stage = self.plan.stages[number]
            axis = stage.axes[-1] if stage.axes else column(stage)
            here = {axis.variable: place, **at} if axis is not None else at
            if number in self.plan.products:
                assert result is not None
                value = result
            else:
                body = expr.substitute_in(self.bodies[number], here)
                value = expr.rebuild(body, known) if values else body
            if (total := self.totals.get(number)) is not None:
                assert stage.op is not None
                sets.append(build.put(total, build.combine(stage.op, total, value)))
                continue
            values[stage.array] = value
            if (found := self.plan.place(number)) is not None:
                array, index = found[0], substitute(found[1], here)
                if self.sums:
                    value = build.combine(Op.SUM, expr.load(array, index), value)
                stores.append(Store(array, index, value))
        return [*sets, Stores(tuple(stores))] if stores else sets

    def _with_statistics(self, loops: list[Statement]) -> list[Statement]:
        """Loops that fill the statistics of the step, with what comes before and behind."""
        before: list[Statement] = []
        behind: list[Statement] = []
        for number, total in self.totals.items():
            op, place = self.plan.stages[number].op, self.plan.place(number)
            assert op is not None
            before.append(build.put(total, identity(op, total.dtype)))
            behind += [Store(*place, total)] if place is not None else []
        return [*before, *loops, *behind]

    # ---- loops ----

    def across(self) -> list[Statement]:
        """All rows of the block at once, one a lane."""
        if self.is_product:
            return self._product_across()
        axis = column(self.head)
        outer, inner = (self.head.axes, self.head.reduced) if axis is None else ((), (axis,))
        last = axis or (self.head.axes[-1] if outer else None)
        body = self._element(0 if last is None else last.index, None, {})
        return self._within(outer, self._with_statistics(self._within(inner, body)))

    # ---- products ----

    def _operands(self) -> Operands:
        """The factor that has the rows, or what is summed over them; the one with the columns."""
        product = self.bodies[self.number]
        if (tried := self.plan.tried.get(self.head.array)) is not None:
            product = self.plan.reading(tried.terms)
        if product.op is Op.CAST:
            product = product.args[0]
        left, right = product.args
        if self.head.axes[-1].variable in left.variables:
            left, right = right, left
        return Operands(left, right, self.head.reduced[-1])

    def _only_stores(self, other: Expr) -> bool:
        """Whether the results of its product go to memory only, in rows that suit vectors."""
        last = self.head.axes[-1].variable
        stages = [self.plan.stages[n] for n in self.step]
        return (
            all(stage.op is None for stage in stages[1:])
            and not any(stage.array in self.plan.places for stage in stages)
            and all(
                coefficient(load.index, last) in (0, 1) and not load.guard
                for load in expr.loads(other)
            )
        )

    def _product_across(self) -> list[Statement]:
        """Tiles of columns by all rows of the block."""
        axis, k = self.head.axes[-1], self.read.k

        def tile(first: Integer, height: int) -> list[Statement]:
            u = make_axis("u", 0, height)
            at: dict[Atom, Integer] = {axis.variable: first + u.index}
            number = k.index * height  # of an element: a tile of columns is asked for in order
            place = first + number // k.count
            there = {
                axis.variable: place, k.variable: number % k.count,
                self.block.row.variable: self.block.start + place,
            }  # fmt: skip
            hints = [*self._hints(self.read.other, there), *self._hints(self.own, there)]
            ks = self._loops_over_k(self.bounds, hints)
            return self._tile(u, self.row, self.block.width, at[axis.variable], at, {}, ks)

        first, stop = self.bounds[axis.variable]
        tiles = _tiles(axis, first, stop, self.block.height, tile)
        loops = self._within(self.head.axes[:-1], tiles)
        return self._with_statistics(loops)

    def along(self) -> list[Statement]:
        """Tiles of rows, or of what is summed over them, by panels of columns."""
        block, (*outer, axis) = self.block, self.head.axes
        width = choose_nr(self.target, self.head.body.dtype, axis.count)
        lanes = axis.variable if width > 1 else None
        side, bounds = block.row, (block.start, block.start + block.width)
        if self.sums:
            side = outer.pop()
            bounds = self.bounds[side.variable]
        hints = [] if self.sums else self._hints(self.read.other, {})

        def tile(first: Integer, height: int) -> list[Statement]:
            u = make_axis("u", 0, height)
            at: dict[Atom, Integer] = {side.variable: first + u.index}
            if block.width > 1:
                at[only_atom(block.lane)] = substitute(block.row.index, at) - block.start
            ks = self._loops_over_k(self._bounds_of_rows(first, first + height), hints)
            return self._tile(u, lanes, width, axis.index, at, at, ks)

        tiles = _tiles(side, *bounds, min(block.height, block.width), tile)
        return self._within(outer, [build.lanes_loop(axis, width, tuple(tiles))])

    def _hints(self, operand: Expr, at: Mapping[Atom, Integer]) -> list[Place]:
        """The places at which memory is asked for an operand; at: what variables are there."""
        later, loads = self.later, expr.loads(operand)
        return [
            (load.array, substitute(substitute(load.index, at), later))
            for load in (loads[:1] if operand.op is Leaf.PAIR else loads)
            if later and load.array.space == "buffer" and not load.guard
            and not expr.values_in(load.index)
        ]  # fmt: skip

    def _bounds_of_rows(self, begin: Integer, end: Integer) -> Mapping[Atom, Bounds]:
        """The bounds of k for some of the block's rows: where they move with the rows."""
        start, stop = self.block.start, self.block.start + self.block.width
        if self.sums or isinstance(start, int):
            return self.bounds
        return {
            x: (
                first - start + begin if isinstance(first - start, int) else first,
                last - stop + end if isinstance(last - stop, int) else last,
            )
            for x, (first, last) in self.bounds.items()
        }

    def _loops_over_k(self, bounds: Mapping[Atom, Bounds], hints: Sequence[Place]) -> list[Loop]:
        """Loops, the outermost first, without what is done in them; the last asks for hints."""
        loops = list(loops_in(build.loops_over(self.head.reduced, (), bounds)))
        return [*loops[:-1], replace(loops[-1], prefetch=tuple(hints))]

    def _within(self, axes: Sequence[Axis], inner: Sequence[Statement]) -> list[Statement]:
        """Statements in plain loops over axes, the first outermost."""
        return list(build.loops_over(axes, inner, self.bounds))

    def pack(
        self, run: tuple[Integer, Integer]
    ) -> tuple[list[Statement], list[Statement]]:
        """What is copied before a run of blocks, of which the first and last are given; in each.

        That is what lies otherwise than it is read, and what would be converted again and again.
        """
        if not self.is_product or self.runs_along and not self.pairs:
            return [], []
        return self._pack_other(run), self._pack_sides() if self.sums else self._pack_rows()

    def _pack_other(self, run: tuple[Integer, Integer]) -> list[Statement]:
        """Copy the operand that the rows share: of pairs along, or one that is converted."""
        source, (*outer, axis), k = self.read.other, self.head.axes, self.head.reduced[-1]
        if self.pairs and self.runs_along:
            first, stop = ends_of_run(k, self.bounds[k.variable], self.block, run)
            lines = range(0, axis.count, LINE // source.args[0].dtype.itemsize)
            hints = tuple(hint for n in lines for hint in self._hints(source, {axis.variable: n}))
            width = choose_nr(self.target, self.head.body.dtype, axis.count)
            rows, lanes, ends = self.read.k, axis, (first // 2, ceildiv(stop, 2))
        elif source.op is Op.CAST and not outer and len(self.head.reduced) == 1:
            rows, lanes, hints, width = axis, k, (), self.target.lanes(source.dtype)
            ends = ends_of_run(axis, self.bounds[axis.variable], self.block, run)
        else:
            return []
        copy, other = copied(source, f"other{self.number}", rows, lanes, width, ends, hints)
        self.read = replace(self.read, other=other)
        return [copy]

    def _pack_sides(self) -> list[Statement]:
        """Copy what is summed over rows: two of these, which lie side by side, in a word."""
        side, each = self.head.axes[-2], self.block.width // 2
        words = Array(f"panel{self.number}", dtypes.uint32, side.count * each, "scratch")
        w, source = make_axis("w", 0, words.size), expr.loads(self.own)[0].array
        pair = [expr.load(source, w.index * 2 + n).cast(dtypes.bfloat16) for n in (0, 1)]
        copy = Store(words, w.index, expr.apply(Leaf.PAIR, tuple(pair), words.dtype))
        first, stop = self.bounds[side.variable]
        stops = tuple(x * each for x in build.least(stop, side.extent))
        place = (side.index - self.block.number.index) * each + self.read.k.index
        self.read = replace(self.read, own=expr.load(words, place))
        return [build.lanes_loop(w, WORDS, (copy,), first * each, stops)]

    def _pack_rows(self) -> list[Statement]:
        """Copy the rows' operand, so that rows lie side by side; vectors along k are transposed."""
        near = all(load.array.space != "buffer" for load in expr.loads(self.own))
        if near and not self.pairs:
            return []
        *outer, inner = self._loops_over_k(self.bounds, ())
        axes = *self.head.reduced[:-1], self.read.k
        extents = [axis.extent for axis in axes]
        size = numel(extents) * self.block.width
        panel = Array(f"panel{self.number}", self.own.dtype, size, "scratch")
        place = flatten([axis.index for axis in axes], extents) * self.block.width + self.block.lane
        lanes, body = self.target.lanes(self.own.dtype), (Store(panel, place, self.own),)
        copy: Statement = replace(self.read.loop(inner), body=body, transpose=lanes)
        self.read = replace(self.read, own=expr.load(panel, place))
        for loop in reversed(outer):
            copy = loop.around((copy,))
        return [self.block.loop([copy])]

    def _tile(
        self, u: Axis, lanes: Atom | None, width: int, place: Integer, at: dict[Atom, Integer],
        rows_at: dict[Atom, Integer], ks: Sequence[Loop],
    ) -> list[Statement]:  # fmt: skip
        """Clear the registers, multiply and add in loops over k, pass the results on.

        at: what register u stands for; place: its column; rows_at: its row, where that is not a
        lane.
        """
        name, dtype = f"tile{self.number}x{u.count}", self.head.body.dtype
        registers = Array(name, dtype, u.count, "registers", lanes=lanes, width=width)
        total = expr.load(registers, u.index)
        left, right = (expr.substitute_in(x, at) for x in (self.read.own, self.read.other))
        more, (*outer, last) = multiply_add(total, left, right), ks
        return [
            *self._summed(registers, u, more, [*outer, self.read.loop(last)]),
            *self._checked(registers, u, at, [*outer, replace(last, prefetch=())]),
            build.unrolled(u, self._element(place, total, rows_at)),
        ]

    def _summed(
        self, registers: Array, u: Axis, more: Expr, ks: Sequence[Loop]
    ) -> list[Statement]:
        """Clear the registers, set them to `more` in loops over k."""
        step = build.unrolled(u, [Store(registers, u.index, more)])
        for loop in reversed(ks):
            step = loop.around((step,))
        zero = identity(Op.SUM, registers.dtype)
        return [build.unrolled(u, [Store(registers, u.index, zero)]), step]

    def _checked(
        self, registers: Array, u: Axis, at: dict[Atom, Integer], ks: Sequence[Loop]
    ) -> list[Statement]:
        """Scale what was summed by a shortcut; where that is not the product, sum the product."""
        tried = self.plan.tried.get(self.head.array)
        if tried is None:
            return []
        scale = tried.scale
        if scale is not None:
            scale = expr.substitute_in(self.plan.reading(scale), at)
        terms = expr.substitute_in(self.bodies[self.number], at)
        more = build.combine(Op.SUM, expr.load(registers, u.index), terms)
        again = self._summed(registers, u, more, ks)
        return build.unless_finite(registers, u, scale, again)
