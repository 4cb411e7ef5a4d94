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
what the second kind reads as scalars. A product is tried without its mask and scale, and computed
once more as it is written where that is not finite (see common_subexpressions.py). Only the rows'
own operand must be packed. Attention becomes one such kernel, its gradient another.

What is summed over the rows of all blocks (the gradients of keys and values) grows block by block:

    parallel over the heads:
      all[column] = 0
      for blocks of W rows:
        as above, and: for tiles of columns, for panels of the other operand's columns (lanes):
                           for rows: tile[column] += x[column, row] · other[row, lanes]
                           all[column] += tile[column]
"""

from __future__ import annotations

from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high, low
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import fix_rows
from minigrad.loops.block_codegen import RowLanes, StepCode
from minigrad.loops.block_plan import BlockPlan, products_before_readers
from minigrad.loops.block_sums import BlockSums
from minigrad.loops.build import flat_loop, serial_loop
from minigrad.loops.common_subexpressions import share_common, speculative_products
from minigrad.loops.cost import vectors_each
from minigrad.loops.mask_bounds import Bounds, Rows, mask_bounds
from minigrad.loops.nest import Nest, Statement
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.fuse import prefix_length
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import Target

MOST_ROWS = 16  # of a block


def block_rows(kernel: Kernel, target: Target, name: str) -> Nest:
    """The loop nest of a kernel of kind "block_rows"."""
    kernel = products_before_readers(kernel)
    first = kernel.stages[0]
    extent = first.axes[prefix_length(first, kernel.rows) - 1].extent
    assert isinstance(extent, int)
    width = _block_width(kernel, target, extent)
    outer = make_axis("o", 0, kernel.rows // extent)
    number = make_axis("g", 0, ceildiv(extent, width))
    row = make_axis("b", 0, extent)
    start = number.index * width
    height = 1 << (target.tile_rows.bit_length() - 1)
    later = _later(kernel, outer, target)
    block = RowLanes(row, start, width, height, target, later)
    sums = BlockSums(kernel, outer, row, target)
    whole = outer.index * extent + row.index
    found = [
        (sums.stages.get(stage.array) or fix_rows(stage, kernel.rows, whole),
         stage.contraction is not None)
        for stage in kernel.stages if stage.op is not None or stage.array not in kernel.sums
    ]  # fmt: skip
    found, speculation = speculative_products(share_common(found, sums.stored), sums.stored)
    stages = [stage for stage, _ in found]
    rows = Rows(row.variable, frozenset((outer.variable, number.variable)), start, width, height)
    bounds = mask_bounds(stages, rows, sums.stored)
    products = [n for n, (_, is_product) in enumerate(found) if is_product]
    ranges = [
        bounds[n][stage.axes[-1].variable] if stage.axes
        else bounds[n][stage.reduced[-1].variable] if stage.reduced else None
        for n, stage in enumerate(stages)
    ]  # fmt: skip
    plan = BlockPlan(stages, frozenset(products), ranges, sums.stored, width, block.lane)
    body: list[Statement] = []
    together: list[Statement] = []  # what one loop over the rows can do
    for step in plan.steps:
        loop = StepCode(plan, step, bounds, block, speculation)
        copies = loop.pack()
        if together and (loop.runs_along or copies):
            body.append(block.rows_loop(together))
            together = []
        body.extend(copies)
        if loop.runs_along:
            body.extend(loop.along())
        else:
            together.extend(loop.across())
    if together:
        body.append(block.rows_loop(together))
    ends = (0, number.variable.high)
    work, vectors = 0, 0.0
    for n, stage in enumerate(stages):
        both = sum(_elements(stage, bounds[n], {number.variable: end}) for end in ends)
        count = high(kernel.rows) * both // 2
        work += count * (2 if n in products else expr.operations(stage.body))
        alone = 1 / target.lanes(stage.body.dtype)
        vectors += count * (alone if n in products else vectors_each(stage, target))
    if kernel.sums:
        body = [*sums.clear(), serial_loop(number, tuple(body)), *sums.finish()]
    nested = flat_loop([outer] if kernel.sums else [outer, number], tuple(body))
    return assemble(name, kernel, nested, target, work, vectors)


def _later(kernel: Kernel, outer: Axis, target: Target) -> dict[Atom, Integer]:
    """Where operands lie that are asked for: at the next number of the outer axis.

    Where a training step left them, heads' rows are short and far apart, and no processor guesses
    them. Nothing is asked for where it would push out of the second cache what is needed first.
    """
    products = [stage for stage in kernel.stages if stage.contraction is not None]
    made = {stage.array for stage in kernel.stages}
    read = {load.array for stage in products for load in expr.loads(stage.body)} - made
    each = sum(array.size * array.dtype.itemsize for array in read) // high(outer.extent)
    fits = high(outer.extent) > 1 and 4 * each <= target.l2
    return {outer.variable: outer.index + 1} if fits else {}


def _elements(stage: Stage, bounds: dict[Atom, Bounds], block: dict[Atom, Integer]) -> int:
    """Elements that a row of a block has, within the bounds of its loops."""
    count = 1
    for axis in (*stage.axes, *stage.reduced):
        if axis.variable not in bounds:  # the row, of a sum over rows
            continue
        first, stop = (substitute(x, block) for x in bounds[axis.variable])
        count *= max(min(high(stop), high(axis.extent)) - low(first), 1)
    return count


def _block_width(kernel: Kernel, target: Target, rows: int) -> int:
    """Rows of a block: two registers of the widest product, one where there are few rows.

    Half of what a block computes on a causal mask's diagonal is in vain: so it has no more than 16.
    """
    if not target.vector_bytes:
        return 1
    lanes = min(target.lanes(s.body.dtype) for s in kernel.stages if s.contraction is not None)
    if rows > lanes:
        return min(2 * lanes, MOST_ROWS)
    while lanes > 1 and lanes // 2 >= rows:
        lanes //= 2
    return lanes
