"""The steps of a kernel of blocks, and where values that pass between them are kept.

A step is one loop over the columns of a block: at most one product, and the elementwise stages
after it. Values that only their own step reads stay in registers.

Products are first tried by a shortcut without a mask. Blocks of rows may also add to sums one after
the other: the gradients of keys and values, over the queries of a head. One thread computes all
blocks of a head, so the order of additions is fixed.

Products of bfloat16 are dot products of words, each with two neighbours along k. Columns have these
next to each other in memory. All other operands are copied: the rows' operand in the layout that
all products across use, scratch values with two columns or two rows in a word, and the other
operand of a product along, row after row, for several blocks at once. With matrix registers, blocks
have 32 rows and bounds are multiples of 32; in products across, the columns are the rows of the
left operand, and are copied column by column.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Integer
from minigrad.loops.build import kept_inside, lanes_loop, loops_over, with_loads
from minigrad.loops.cost import SQUARE, choose_nr
from minigrad.loops.mask_bounds import Rows, mask_bounds, outside, places_in, with_makers
from minigrad.loops.nest import Statement, Store, divides
from minigrad.loops.product import as_bfloat16, word
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, size_of
from minigrad.schedule.contraction import terms_of
from minigrad.schedule.expr import Array, Expr
from minigrad.schedule.fuse import prefix_length
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, before_readers
from minigrad.target import Target

# Operations per result of a tile, at most, in stages after a product: they are unrolled for all
# 8 or 4 columns of the tile.
MOST_TILE_OPERATIONS = 24
COSTLY = 8  # cost of a division (see `Op.DIV`), a root or a math function, at least


def products_before_readers(kernel: Kernel) -> Kernel:
    """Move every product directly before the first stage that reads it, to share its step."""
    late = [
        stage.array for stage in kernel.stages
        if stage.contraction is not None and stage.array not in kernel.stored
    ]  # fmt: skip
    return replace(kernel, stages=tuple(before_readers(kernel.stages, late)))


def neighbours(kernel: Kernel) -> int:
    """How many rows follow one another: the last of the axes that make up a row's number."""
    first = kernel.stages[0]
    return first.axes[prefix_length(first, kernel.rows) - 1].count


def rounded_once(
    stages: Sequence[Stage], products: Container[Array], stored: Container[Array], target: Target
) -> list[Stage]:
    """Stages without values that are stored as bfloat16 for products, and converted at each use.

    Products of pairs (`in_pairs`) round such a value when they copy it. They also compute it then,
    if it is short and nothing else reads it. For other products it is rounded and kept as float32.
    """
    result = list(stages)
    for stage in stages:
        readers = [one for one in result if stage.array in one.reads]
        rounds = stage.op is None and stage.array.dtype is dtypes.bfloat16
        exact = stage.body.args[0] if stage.body.op is Op.CAST else stage.body
        if not rounds or exact.dtype is not dtypes.float32 or stage.array in stored:
            continue
        if any(one.array not in products for one in readers):
            continue
        pairs = all(in_pairs(one, target) for one in readers)
        alone = pairs and len(readers) == 1 and _is_short(stage.body)
        body = exact if pairs else stage.body.cast(exact.dtype)
        kept = replace(stage, array=replace(stage.array, dtype=exact.dtype), body=body)
        changed = {stage.array: kept}
        for one in readers:
            new = dict[Expr, Expr]()
            for load in (x for x in expr.loads(one.body) if x.array == stage.array):
                at, wide = places_in(load.index, stage), expr.load(kept.array, load.index)
                own = expr.substitute_in(stage.body, at) if alone else wide.cast(load.dtype)
                new |= {load: own} if pairs else {load.cast(exact.dtype): wide}
            changed[one.array] = replace(one, body=expr.replace_in(one.body, new))
        result = [
            changed.get(one.array, one) for one in result
            if one.array != stage.array or not alone
        ]  # fmt: skip
    return result


def in_squares(stages: Sequence[Stage], rows: int, target: Target) -> bool:
    """Whether matrix registers are to multiply: all products are of bfloat16, in whole squares."""
    products = [(one, one.contraction) for one in stages if one.contraction is not None]
    return target.matrices and rows % SQUARE == 0 and all(
        in_pairs(stage, target) and len(stage.reduced) == 1
        and all(divides(axis.extent, SQUARE) for axis in (*stage.axes[-2:], *stage.reduced))
        and as_bfloat16(parts.left) is not None and as_bfloat16(parts.right) is not None
        for stage, parts in products
    )  # fmt: skip


def _is_short(body: Expr) -> bool:
    costly = any(expr.cost(e.op) >= COSTLY for e in expr.walk(body))
    return not costly and expr.operations(body) <= MOST_TILE_OPERATIONS


def column(stage: Stage) -> Axis | None:
    """The only inner axis of a stage with fixed rows, kept or reduced; None if there are others."""
    axes = (*stage.axes, *stage.reduced)
    return axes[0] if len(axes) == 1 else None


def last_axis(stage: Stage) -> Axis | None:
    """The axis of a stage's elements: the last one or, of a statistic, its only one."""
    return stage.axes[-1] if stage.axes else column(stage)


class BlockPlan:
    """The steps of a kernel, and places in scratch memory that are used again and again.

    stages: with their rows fixed; products: the numbers of those that are products; tried: their
    shortcuts; bounds: of loops over axes, by stage. A step is a list of stage numbers: of its
    product, if it has one, and of the stages that follow.
    """

    def __init__(
        self, stages: Sequence[Stage], products: Container[Array], block: Rows,
        stored: frozenset[Array], squares: bool,
    ) -> None:  # fmt: skip
        self.block, self.stored, self.squares = block, stored, squares
        self.stages, self.tried = stages, shortcuts(stages, products)
        self.products = {n for n, stage in enumerate(stages) if stage.array in products}
        self.bounds = mask_bounds(stages, block, stored)
        self.maker = {stage.array: stage for stage in stages}
        self._reads = [
            [load for load in expr.loads(stage.body) if load.array in self.maker]
            for stage in stages
        ]
        self.steps: list[list[int]] = []
        made: dict[Array, int] = {}  # array → its step
        for number, stage in enumerate(stages):
            at = max((made[e.array] for e in self._reads[number]), default=len(self.steps) - 1)
            if self.steps and self._follows(number, self.steps[at]):
                self.steps[at].append(number)
            else:
                at = len(self.steps)
                self.steps.append([number])
            made[stage.array] = at
        self.in_pairs = set[int]()  # products that are dots of words
        self.places: dict[Array, Array] = {}
        self._find_places({
            load.array: at for at, step in enumerate(self.steps) for number in step
            for load in self._reads[number] if made[load.array] != at
        })  # fmt: skip

    def _follows(self, number: int, step: Sequence[int]) -> bool:
        """Whether a stage can be computed element by element in the loop of a step."""
        stage, head, product = self.stages[number], self.stages[step[0]], step[0] in self.products
        own, inside = column(stage), [self.stages[other].array for other in step]
        if product and not _is_short(stage.body):
            return False
        first = head.axes[0] if product and len(head.axes) == 1 else column(head)
        if number in self.products or own is None or first is None or own.extent != first.extent:
            return False
        if self.bounds[number][own.variable] != self.bounds[step[0]][first.variable]:
            return False
        return all(self._own(number, e) for e in self._reads[number] if e.array in inside)

    def _own(self, number: int, load: Expr) -> bool:
        """Whether a load of a stage reads the element at the stage's own column."""
        axis, places = column(self.stages[number]), places_in(load.index, self.maker[load.array])
        return axis is not None and [*places.values()] == [axis.index] and not load.guard

    def _find_places(self, last: Mapping[Array, int]) -> None:
        """Give places to arrays that other steps read; free places are used again.

        last: the last step that reads an array.
        """
        kept: dict[Array, Array] = {}  # place → the array that has it now
        for at, step in enumerate(self.steps):
            free = [one for one, array in kept.items() if self._ends(array, step, last[array] - at)]
            for stage in (self.stages[number] for number in step):
                if stage.array not in last or stage.array in self.stored:
                    continue
                size = size_of(stage.axes) * self.block.width
                new = Array(f"x{len(kept)}", stage.array.dtype, size, "scratch")
                alike = [one for one in free if (one.size, one.dtype) == (size, new.dtype)]
                place = alike[-1] if alike else new
                kept[place], self.places[stage.array] = stage.array, place
                free = [one for one in free if one != place]

    def _ends(self, array: Array, step: Sequence[int], later: int) -> bool:
        """Whether a step may overwrite an array whose last reader comes `later` steps later."""
        reads = ((n, load) for n in step for load in self._reads[n] if load.array == array)
        return later < 0 or later == 0 and all(self._own(n, load) for n, load in reads)

    def operands(self, number: int) -> Operands | None:
        """The factor that has the rows, or is summed over them; and the one with the columns.

        None if the stage is no product.
        """
        stage = self.stages[number]
        if number not in self.products:
            return None
        tried = self.tried.get(stage.array)
        product = self.reading(stage.body if tried is None else tried)
        left, right = (product.args[0] if product.op is Op.CAST else product).args
        if stage.axes[-1].variable in left.variables:
            left, right = right, left
        return Operands(left, right, stage.reduced)

    def place(self, number: int) -> tuple[Array, Integer] | None:
        """Where a stage's element is stored; None if it stays in a register."""
        stage = self.stages[number]
        if stage.array in self.stored:
            return stage.array, stage.position
        if stage.array not in self.places:
            return None
        return self.places[stage.array], self._at(stage.place)

    def _at(self, inner: Integer) -> Integer:
        return inner * self.block.width + self.block.lane

    def reading(self, body: Expr, inside: frozenset[Array] = frozenset()) -> Expr:
        """A body with its loads moved to places, except those of arrays `inside`."""

        def move(array: Array, index: Integer) -> tuple[Array, Integer]:
            if array not in self.places or array in inside:
                return array, index
            stage = self.maker[array]
            return self.places[array], self._at(substitute(stage.place, places_in(index, stage)))

        return with_loads(body, move)


# ---- less work ----


def shortcuts(stages: Sequence[Stage], products: Container[Array]) -> dict[Array, Expr]:
    """For products with masked terms, by array: the terms that are tried first, without the mask.

    If their sum is finite, it is the product: no term was infinite or NaN, so the terms that the
    mask excludes (one factor of each is 0 or NaN) were 0. Otherwise the product is computed as it
    is written.
    """
    makers, found = {stage.array: stage for stage in stages}, dict[Array, Expr]()
    for product in stages:
        mask, terms = terms_of(product.body)
        if product.array in products and mask is not None:
            found[product.array] = _without_mask(mask, terms, makers)
    return found


def _without_mask(mask: Expr, terms: Expr, makers: dict[Array, Stage]) -> Expr:
    """The terms, changed if necessary so that those that the mask excludes are 0 or NaN."""
    operands = terms.args[0] if terms.op is Op.CAST else terms
    for one in operands.args:
        if outside(with_makers(one, makers), mask) == 0:
            return terms
    one = next(x for x in operands.args if mask.variables <= x.variables)
    masked = mask.where(one, 0.0)
    x, y = (masked if x is one else x for x in operands.args)
    return (x * y).cast(terms.dtype)


# ---- operands of products ----


WORDS = 16  # words that an instruction multiplies


@dataclass(frozen=True)
class Operands:
    """The rows' factor of a product, the columns' factor, and the axes that are summed over.

    pairs: the axis along which two neighbours form a word; the last of ks numbers these. None: the
    factors are no words.
    """

    own: Expr
    other: Expr
    ks: tuple[Axis, ...]
    pairs: Axis | None = None


def in_pairs(stage: Stage, target: Target) -> bool:
    """Whether a product along has an even depth, and vectors of as many words as dots take.

    Processors with matrix registers have dots, too.
    """
    dots, k = target.bfloat16_dots or target.matrices, stage.reduced[-1]
    width = choose_nr(target, stage.body.dtype, stage.axes[-1].count)
    return dots and k.count % 2 == 0 and width % WORDS == 0


def as_pairs(
    plain: Operands, plan: BlockPlan, number: int, target: Target, along: bool
) -> Operands:
    """A product's operands, as words of two neighbours along k if dots are to add their products.

    along: whether its vectors are along the columns.
    """
    stage, block, k = plan.stages[number], plan.block, plain.ks[-1]
    whole = 2 * WORDS if plan.squares else 2
    even = all(divides(x, whole) for x in plan.bounds[number][k.variable])
    if not even or not in_pairs(stage, target) or not along and block.width % WORDS:
        return plain
    two = make_axis("kp", 0, k.count // 2)
    own, other = word(plain.own, k, two), word(plain.other, k, two)
    sums = block.row in stage.reduced
    if (along or plan.squares) and (len(stage.axes) != 1 + sums or len(stage.reduced) > 1):
        return plain
    if sums and any(load.array.space == "buffer" for load in expr.loads(plain.own)):
        return plain  # whole blocks are copied, but memory may end after the last row
    if not along and other is not None:
        other = _in_memory(other) or (other if plan.squares else None)
    if own is None or other is None:
        return plain
    return Operands(own, other, (*plain.ks[:-1], two), k)


def _in_memory(pair: Expr) -> Expr | None:
    """A load of a pair as one word, if it is a word in memory; else None."""
    first = pair.args[0]
    if not expr.adjacent(pair.args) or not divides(first.index, 2):
        return None
    return expr.load(first.array.words, first.index // 2)


# ---- sums over blocks ----


class BlockSums:
    """The sums of a kernel of blocks, for one index of the outer axis.

    stages: by array, what a row adds, with the row as reduced axis. Sums that only their ends read
    are in scratch memory. stored: the arrays that the kernel's loops store to.
    """

    def __init__(self, kernel: Kernel, outer: Axis, row: Axis, target: Target) -> None:
        self.target = target
        self.stages: dict[Array, Stage] = {}
        self.ends: list[Stage] = []
        stages = (stage for stage in kernel.stages if stage.array in kernel.sums)
        summed = sorted(stages, key=lambda stage: stage.op is None)
        inside = kept_inside(summed, kernel.stored, outer.extent, outer.index, prefix="all_")
        for stage, kept in zip(summed, inside, strict=True):
            if stage.op is None:
                self.ends.append(kept)
                continue
            (reduced,) = stage.reduced
            body = expr.substitute_in(kept.body, {reduced.variable: row.index})
            self.stages[stage.array] = replace(kept, reduced=(row,), body=body)
        self.stored = kernel.stored.union(stage.array for stage in self.stages.values())

    def clear(self) -> list[Statement]:
        """Set the sums to zero, before blocks add to them."""
        return [
            self._each(stage, expr.const(0, stage.array.dtype)) for stage in self.stages.values()
        ]

    def finish(self) -> list[Statement]:
        """Compute the stages that read the complete sums."""
        return [self._each(stage, stage.body) for stage in self.ends]

    def _each(self, stage: Stage, value: Expr) -> Statement:
        *outer, axis = stage.axes
        width = choose_nr(self.target, stage.body.dtype, axis.count)
        store = Store(stage.array, stage.position, value)
        (loop,) = loops_over(outer, [lanes_loop(axis, width, (store,))])
        return loop
