"""Products of bfloat16 in the matrix registers of a processor (AMX), in squares of 32 × 32.

    parallel over batch × blocks of columns × blocks of rows:
      copy the block of `left`, row after row, in words of two neighbours along k
      for each panel of the block's columns:
        copy the panel of `right`, in such words too
        for each square of the block:
          square = left's 32 rows · panel
          store the square through the epilogue
"""

from __future__ import annotations

from minigrad.dtype import dtypes
from minigrad.graph.shapes import numel
from minigrad.loops.cost import SQUARE, plan_amx, row_stride
from minigrad.loops.nest import Matrix, MatrixProduct
from minigrad.loops.product import LANE, Problem, distance, in_pairs, strides
from minigrad.loops.transforms import Schedule
from minigrad.schedule.expr import Array
from minigrad.target import LINE, Target

ROW_WORDS = LINE // 4  # of 32 bits, in a row of a matrix register: 64 bytes


def amx(problem: Problem, target: Target) -> Schedule | None:
    """A product in matrix registers, where that pays."""
    words = in_pairs(problem, ROW_WORDS)
    if words is None:
        return None
    cuts = plan_amx(words, target, numel([axis.extent for axis in problem.outer]))
    if cuts is None:
        return None
    parts, (rows, columns) = words.parts, cuts
    m, n = parts.m[-1].variable, parts.n[-1].variable
    ks, outer = [a.variable for a in parts.k], [a.variable for a in problem.outer]
    s = Schedule(words.naive(), left=parts.left, right=parts.right)
    s.vectorize(n, SQUARE, LANE)
    block, task = s.split(n, columns, "p"), s.split(m, rows, "c")
    s.reorder(*outer, block, task, n, m)
    with s.inside(task):
        tile = s.split(m, SQUARE, "t")
        depth = numel([s.trips(k) for k in ks])
        pitch = row_stride(depth, parts.left.dtype.itemsize)
        layout = [((tile, m), None), (ks, pitch)]
        near = 1 in strides(parts.left, m)
        last = m if near else ks[-1]
        left = s.stage("left", None, [tile, m, *ks], layout, "left", {last: ROW_WORDS})
        order = sorted(ks, key=lambda k: -distance(parts.right, k))
        layout = [(ks, None), ((n,), SQUARE)]
        panel = s.stage("right", n, order, layout, "panel", transpose=SQUARE)
        square = Array("square", dtypes.float32, SQUARE * SQUARE, "scratch")
        product = MatrixProduct(
            Matrix(square, 0, SQUARE), Matrix(left, tile.index * (SQUARE * pitch), pitch),
            Matrix(panel, 0, SQUARE), SQUARE, SQUARE, depth,
        )  # fmt: skip
        s.tensorize(tile, product, square)
    s.parallelize(*outer, block, task)
    return s
