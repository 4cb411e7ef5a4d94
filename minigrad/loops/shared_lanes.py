"""The recipe for products along an axis that both operands share: vectors run along that axis.

Examples are depthwise convolutions, whose channels are not summed with others, and einsums whose
batch axis is last. Nothing is packed or broadcast: a tile accumulates vectors of one operand times
vectors of the other. If windows overlap, the tile's positions along them share their loads.

    parallel over the other axes × vectors of the shared one:
      for each tile of rows (and columns):
        tile[row, column] = 0
        for k:  tile[row, column] += left[row, k, lanes] · right[column, k, lanes]
        store the tile through the epilogue
"""

from __future__ import annotations

from dataclasses import replace

from minigrad.graph.substitution import coefficient
from minigrad.loops.axes import enough_lanes, overlap
from minigrad.loops.build import substitute_stores
from minigrad.loops.cost import cut
from minigrad.loops.nest import Lowered
from minigrad.loops.product import Problem, prepare
from minigrad.loops.transforms import LoopNest
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Leaf, loads, strides, substitute_in
from minigrad.schedule.schedule import Kernel
from minigrad.target import Target

MOST_WRITTEN_OUT = 8  # positions of a window that are unrolled, so that tiles share their loads


def shared_lanes(kernel: Kernel, target: Target) -> Lowered | None:
    """The loops of such a product and its elementwise epilogue; None if it is not one."""
    product = kernel.stages[0].product
    if product is None or not target.vector_bytes:
        return None
    lanes = target.lanes(kernel.stages[0].body.dtype)
    if not product.shared:
        groups = product.batch and product.mask is None and product.added is None
        columns = product.n[-1].extent
        if not (groups and isinstance(columns, int) and columns < lanes):
            return None
    problem = prepare(kernel) if product.shared else _several_groups(prepare(kernel), lanes)
    if problem is None:
        return None
    x, lanes = problem.column.variable, enough_lanes(lanes, problem.column.count)
    s = LoopNest(problem.naive())
    s.vectorize(x, lanes)
    vectors = s.split(x, lanes, "p")
    tiled = _tile(problem, target)
    tiles = [s.split(axis.variable, size, f"t{n}_") for n, (axis, size) in enumerate(tiled)]
    inner = [axis.variable for axis, _ in tiled]
    outer = [axis.variable for axis in problem.outer]
    s.reorder(*(a for a in outer if a not in inner), vectors, x, *tiles, *inner)
    with s.inside(x):
        for tile, axis in zip(reversed(tiles), reversed(inner), strict=True):
            s.peel(tile, axis)
        s.sink(*inner)
        for number, k in enumerate(_window(problem, tiled[-1][0])):
            if k.count > MOST_WRITTEN_OUT:
                s.split(k.variable, _divisor(k), "o", computing=True)
            s.unroll(k.variable, f"v{number}_", computing=True)
        if problem.stores_across:
            s.transpose(inner[-1], lanes)
        for axis, prefix in zip(inner, "uw", strict=False):
            s.unroll(axis, prefix)
    return Lowered(s.parallelize(*(a for a in outer if a not in inner), vectors), products=True)


def _tile(problem: Problem, target: Target) -> list[tuple[Axis, int]]:
    """The axes of a tile's registers, with counts.

    In a product with columns there are as many as registers; else few rows, because the loads of a
    window need registers, too.
    """
    many = target.registers >= 32
    columns = [axis for axis in problem.m if axis.variable in problem.right.variables]
    if columns:
        row = next(axis for axis in reversed(problem.m) if axis not in columns)
        across = cut(columns[-1].count, 1, 5 if many else 3)
        return [(row, cut(row.count, 1, (25 if many else 9) // across)), (columns[-1], across)]
    most = 12 if many else 6
    found: list[tuple[Axis, int]] = []
    for axis in reversed(problem.m[-2:]):
        if not isinstance(axis.extent, int):
            break
        size = cut(axis.count, 1, most if found else 2 * most // 3)
        found.insert(0, (axis, size))
        most //= size
        if size < axis.count or most < 2:
            break
    return found


def _window(problem: Problem, row: Axis) -> list[Axis]:
    """The axes of k to unroll: one along which rows of a tile share loads, and those inside it."""
    reads = loads(problem.left)
    axes = [axis for axis in problem.k if isinstance(axis.extent, int)]
    alike = [n for n, k in enumerate(axes) if any(overlap(x.index, row, k) for x in reads)]
    return axes[alike[-1] :] if alike else []


def _several_groups(problem: Problem, lanes: int) -> Problem | None:
    """Few columns, and those of neighbouring groups, as one axis; None if it is impossible."""
    group, column, right = problem.batch[-1], problem.column, problem.right
    if not isinstance(group.extent, int) or not isinstance(problem.row.extent, int):
        return None
    width = column.count
    if len(problem.n) > 1 or lanes % width or group.count * width % lanes:
        return None
    if right.op is not Leaf.LOAD:
        return None
    places = [right.index, *(store.index for store in problem.stores)]
    for place in places:
        far, near = (coefficient(place, a.variable) for a in (group, column))
        if near is None or far != width * near or near != 1 and place is right.index:
            return None
    steps = strides(group.variable, problem.left)
    if not all(step is not None and step * (lanes // width) <= lanes for step in steps):
        return None
    vector, lane = make_axis("g", 0, group.count * width // lanes), make_axis("l", 0, lanes)
    values = {
        group.variable: vector.index * (lanes // width) + lane.index // width,
        column.variable: lane.index % width,
    }
    left, right = (substitute_in(operand, values) for operand in (problem.left, right))
    return replace(
        problem, left=left, right=right, batch=(*problem.batch[:-1], vector), n=(lane,),
        stores=substitute_stores(problem.stores, values),
    )  # fmt: skip


def _divisor(axis: Axis) -> int:
    return max(n for n in range(1, MOST_WRITTEN_OUT + 1) if axis.count % n == 0)
