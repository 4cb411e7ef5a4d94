"""Products of bfloat16 in a kernel of blocks: dots of words, each two neighbours along k.

What columns have along k lies so in memory. All else is copied: the rows' operand as every product
across has it copied, what is in scratch memory with two columns, or two rows, in a word, and the
other operand of a product along, row after row, for several blocks at once.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import Integer, ceildiv
from minigrad.loops import build
from minigrad.loops.build import Bounds
from minigrad.loops.cost import choose_nr
from minigrad.loops.mask_bounds import Rows
from minigrad.loops.nest import Loop, Store, divides
from minigrad.loops.prefetch import Place
from minigrad.loops.product import word
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.stage import Stage
from minigrad.target import Target

WORDS = 16  # that an instruction multiplies


@dataclass(frozen=True)
class Operands:
    """The rows' factor of a product, the columns' one, and the last axis that they are summed over.

    pairs: they are words, and so are the numbers along that axis.
    """

    own: Expr
    other: Expr
    k: Axis
    pairs: bool = False

    def loop(self, loop: Loop) -> Loop:
        """A loop over that axis, as one over words where they are such.

        An odd end is one that the rows' mask sets, and behind it the block has zeros.
        """
        if not self.pairs:
            return loop
        stops = tuple(ceildiv(stop, 2) for stop in loop.stops)
        return replace(loop, variable=self.k.variable, start=loop.start // 2, stops=stops)


def copied(
    operand: Expr, name: str, rows: Axis, lanes: Axis, width: int, ends: Bounds,
    hints: tuple[Place, ...] = (),
) -> tuple[Loop, Expr]:  # fmt: skip
    """A loop that copies an operand, row after row, and how it is read then."""
    array = Array(name, operand.dtype, rows.count * lanes.count, "scratch")
    place = rows.index * lanes.count + lanes.index
    row = build.lanes_loop(lanes, width, (Store(array, place, operand),))
    stops = build.least(ends[1], rows.extent)
    return Loop(rows.variable, ends[0], stops, (row,), prefetch=hints), expr.load(array, place)


def in_pairs(stage: Stage, target: Target) -> bool:
    """Whether a product along has pairs to multiply, and vectors of as many words as dots take.

    Processors with matrix registers have dots, too.
    """
    dots, k = target.bfloat16_dots or target.bfloat16_matrices, stage.reduced[-1]
    width = choose_nr(target, stage.body.dtype, stage.axes[-1].count)
    return dots and k.count % 2 == 0 and width % WORDS == 0


def ends_of_run(axis: Axis, bounds: Bounds, block: Rows, run: tuple[Integer, Integer]) -> Bounds:
    """Bounds of an axis that hold those of all blocks from one to another."""
    number = block.number.variable
    slopes = [coefficient(x, number) for x in bounds]
    if None in slopes:
        return 0, axis.extent
    first, stop = (
        substitute(x, {number: run[(slope or 0) * sign > 0]})
        for x, slope, sign in zip(bounds, slopes, (-1, 1), strict=True)
    )
    return first, stop


def as_pairs(
    plain: Operands, stage: Stage, bounds: Bounds, block: Rows, target: Target, along: bool,
    scratch: Container[Array],
) -> Operands:  # fmt: skip
    """A product's operands, as words if dots are to add their products; bounds: of the last axis.

    along: its vectors lie along the columns; scratch: where values of the block are.
    """
    k, width = plain.k, WORDS if along else block.width
    if not in_pairs(stage, target) or width % WORDS or not all(divides(x, 2) for x in bounds):
        return plain
    two = make_axis("kp", 0, k.count // 2)
    first, second = word(plain.own, k, two), word(plain.other, k, two)
    if first is None or second is None:
        return plain
    sums = block.row in stage.reduced
    if not along:
        second = _in_memory(second)
    elif len(stage.axes) != 1 + sums or len(stage.reduced) > 1:
        return plain
    if second is None or sums and not _side_by_side(first, stage, block, scratch):
        return plain
    return Operands(first, second, two, pairs=True)


def _in_memory(pair: Expr) -> Expr | None:
    """A pair that is a word in memory, as a load of that."""
    first, second = pair.args
    if first.op is not Leaf.LOAD or first.guard or second.index != first.index + 1:
        return None
    array, whole = first.array, first.array.of or first.array
    view = replace(array, dtype=dtypes.uint32, size=array.size // 2, of=whole)
    return expr.load(view, first.index // 2) if divides(first.index, 2) else None


def _side_by_side(pair: Expr, stage: Stage, block: Rows, scratch: Container[Array]) -> bool:
    """Whether what the rows of a block have for a place lies side by side."""
    load = pair.args[0].args[0] if pair.args[0].op is Op.CAST else pair.args[0]
    place = stage.axes[-2].index * block.width + block.lane
    return (
        load.op is Leaf.LOAD and load.array in scratch and load.dtype is dtypes.float32
        and load.index == place
    )  # fmt: skip
