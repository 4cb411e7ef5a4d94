"""Recipes for stages with equal numbers of elements, and for additions at positions given by data.

Operands may have transposed layouts, as in x + y.T. A vector along x's rows would gather from as
many rows of y, and use one element of each cache line that it touches. If the rows are a power of
two apart, these lines also evict each other. So such loops are tiled: the loop along y's rows is
inside of the vector loop, and whole vectors of y are transposed in registers.

Running reductions, and a pass of a sort, are serial along one axis and parallel over all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import chain, pairwise

from minigrad.dtype import dtypes
from minigrad.graph.operations import SCANS, SCATTERS, Op
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import coefficient, substitute, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, ceildiv
from minigrad.loops import build
from minigrad.loops.axes import (
    NEIGHBOURS,
    in_whole_periods,
    merge,
    unit_stride_axis,
    vector_width,
)
from minigrad.loops.build import Bounds
from minigrad.loops.nest import Loop, Lowered, Prefetch, Statement, Statements, Store, Stores
from minigrad.loops.prefetch import further_along
from minigrad.loops.transforms import LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, size_of
from minigrad.schedule.conditions import end_of
from minigrad.schedule.expr import Array, Expr, Guard, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, identity
from minigrad.target import FILL, ITEM_LANES, LINE, Group, Target

# Elements of a long vector loop in one parallel iteration: 16 KiB of float32, a small part of a
# chunk (see assemble.py), and enough for a hardware prefetcher to follow.
BLOCK_LENGTH = 4096
FEW = 64  # parallel iterations below which long rows are cut
# Elements of a tile along the transposed axis, if it has more than TILE: a line of float32, and a
# vector of 512 bits. Low tiles side by side beat square ones: a·2 + aᵀ of 2048² takes 0.65 ms
# instead of 1.1 (measured). Even half a vector is transposed faster than gathered, and
# five elements if vectors have as many: (100000, 7) transposed takes 0.36 of the time.
DOWN, LEAST_DOWN = 16, 5
# Positions to which each update is added in turn, so that their lines are in many sets of a cache:
# 1,024 × 1,024 updates of 16, 64, 128, 256 at a time take 11, 7.1, 3.3, 3.3 ms, of one 22.
SIDE_BY_SIDE = 128
LEAST_PART = 64  # positions in a part of a scatter's result: each part reads all updates
MOST_PARTS = 32  # as many tasks keep the threads busy
LOOKS = 32  # elements that are initialized in the time in which one update is tested
TILE = 64  # elements of a tile along vectors: four lines of float32
SHORT = (2, 4)  # extents of a last axis that fills only a part of a vector
MOST_LOOPS = 9  # loops, so that a kernel's code does not grow without bounds
LOOP_COST = 2  # loads of vectors that take as long as one more loop

Range = tuple[int, int]


def elementwise(kernel: Kernel, target: Target) -> Lowered | None:
    """All stages at once, element by element, in registers; None if their elements differ."""
    stages = kernel.stages
    if not _same_elements(stages, kernel.rows):
        return None
    plain, (merged,), _ = build.in_few_axes(stages, kernel.stored)
    axes, joined = _with_long_last(merged or (make_axis("i", 0, 1),), plain, target)
    exprs, positions = [s.value for s in joined], [s.index for s in joined]
    # Stores decide, however many loads (as of a scale for each channel) are in another order: those
    # are transposed in registers, but stores would be scattered, each to a line of its own.
    counts = 2 if target.group is not None else 1 + 2 * len(expr.loads(*exprs))
    axis = unit_stride_axis(axes, exprs, positions, counts)
    assert axis is not None
    stores = [
        replace(s, streaming=build.streams(s.array, stages, target, exprs, axis.variable))
        for s in joined
    ]
    outer = [a for a in axes if a != axis]
    if target.group is not None:
        return Lowered(_by_items([*outer, axis], stores, target.group))
    if (across := _transposed_axis(outer, axis, exprs)) is not None:
        return Lowered(_in_tiles(outer, axis, across, stores, target))
    return Lowered(_in_rows(outer, axis, stores, target))


def _in_rows(
    outer: Sequence[Axis], axis: Axis, stores: Sequence[Store], target: Target
) -> Loop:
    """Vectors along an axis; threads share the rows, or parts of them if they are few and long."""
    x, xs, exprs = axis.variable, [a.variable for a in outer], [store.value for store in stores]
    s = LoopNest(build.loops_over([*outer, axis], (Stores(tuple(stores)),)))
    last = outer[-1] if outer else None
    if outer and numel([a.typical for a in outer]) < FEW and isinstance(axis.extent, int):
        if axis.extent > BLOCK_LENGTH:
            xs, last = [*xs, s.split(x, BLOCK_LENGTH, "b")], None
    if outer:
        lanes = target.lanes(exprs[0].dtype)
        s.instead(x, lambda loop: in_ranges(loop, outer, lanes))
    width = vector_width(target, exprs, axis.extent, False)
    s.vectorize(x, in_whole_periods(target, exprs, axis, width))
    s.prefetch(x, lambda *_: further_along(axis, last, exprs, target))
    return s.parallelize(*xs)


def _in_tiles(
    outer: Sequence[Axis], axis: Axis, across: Axis, stores: Sequence[Store], target: Target
) -> Loop:
    """Tiles of vectors along one axis; loads that are contiguous along another are transposed.

    Tiles are low, and the next one is beside it: a cache line that is stored in part is still there
    when the rest is stored, however far apart the rows are. Where arrays are joined along the other
    axis, a tile has all of it, in consecutive loops.
    """
    x, y, extent = axis.variable, across.variable, across.most
    s = LoopNest(build.loops_over([*outer, axis], (Stores(tuple(stores)),)))
    lanes = min(target.lanes(store.array.dtype) for store in stores)
    joined = isinstance(across.extent, int) and len(_parts(y, extent, stores)) > 1
    down = s.split(y, extent if extent <= TILE or joined else DOWN, "down")
    right = s.split(x, max(TILE, lanes), "right")
    xs = [down, *(a.variable for a in outer if a != across), right]
    s.reorder(*xs, x, y)
    if joined:
        s.instead(y, lambda loop: _along(loop, stores, lanes, 1))
    s.vectorize(x, lanes)
    s.transpose(y, lanes)
    return s.parallelize(*xs)


def _with_long_last(
    axes: Sequence[Axis], stores: Sequence[Store], target: Target
) -> tuple[Sequence[Axis], Sequence[Store]]:
    """The axes with a short last one joined to the one before, if results are contiguous in both.

    For example, of pairs: then vectors run along the results, whose operands are picked from
    vectors. The extent is a power of two, so that all vectors are alike; or it leaves lanes empty,
    and operands in another order are transposed then, wherever their lines are, as the gradient of
    a 3 × 3 convolution's weight.
    """
    contiguous = all(coefficient(store.index, axes[-1].variable) == 1 for store in stores)
    if len(axes) < 2 or not isinstance(axes[-2].extent, int) or not contiguous:
        return axes, stores
    last, values = merge(tuple(axes[-2:]), [store.index for store in stores])
    joined, new = [*axes[:-2], *last], build.substitute_stores(stores, values)
    size, lanes = axes[-1].extent, target.lanes(stores[0].array.dtype)
    if isinstance(size, int) and size <= 3 * lanes * ceildiv(size, lanes) // 4:
        turned = len(last) == 1 and _transposed_axis(joined[:-1], *last, [s.value for s in new])
        if turned and target.group is None:
            return _with_long_last(joined, new, target)
    return (joined, new) if size in SHORT else (axes, stores)


def _by_items(axes: Sequence[Axis], stores: Sequence[Store], group: Group) -> Loop:
    """Give neighbours in memory to neighbouring work-items, as many elements as one can load.

    An inner axis of varying extent is counted up to its bound, so that the order stays.
    """
    body: Statements = (Stores(tuple(stores)),)
    order: list[Axis] = []
    for axis in axes:
        if order and not isinstance(axis.extent, int):
            most = make_axis("w", len(order), axis.most)
            body = (Loop(axis.variable, most.index, (most.index + 1, axis.extent), body),)
            axis = most
        order.append(axis)
    s, (*xs, x) = LoopNest(build.loops_over(order, body)), (a.variable for a in order)
    enough = size_of(axes) >= ITEM_LANES * group.items * group.units * FILL
    narrow = all(load.dtype.itemsize <= 4 for load in expr.loads(*(one.value for one in stores)))
    known = isinstance(axes[-1].extent, int)  # else there is a loop inside, with a varying end
    if enough and narrow and known and axis.count % ITEM_LANES == 0:
        xs.append(s.split(x, ITEM_LANES, "v"))
        s.vectorize(x, ITEM_LANES)
    else:
        xs.append(x)
    return s.parallelize(*xs)


def _same_elements(stages: Sequence[Stage], rows: Integer) -> bool:
    """Whether all stages of a kernel of rows have the same elements, so that there are no rows."""
    if len(stages) == 1:
        return stages[0].op is None
    return all(stage.op is None and stage.count == rows for stage in stages)


def _transposed_axis(outer: Sequence[Axis], axis: Axis, exprs: Sequence[Expr]) -> Axis | None:
    """The axis along which an operand is contiguous that is not in order along the vectors'."""
    for load in expr.loads(*exprs):
        for other in outer:
            apart, along = (coefficient(load.index, a.variable) for a in (axis, other))
            if apart not in (0, 1) and along == 1:
                few = LEAST_DOWN if axis.most >= LEAST_DOWN else DOWN // 2
                least = DOWN if apart is None or abs(apart) <= NEIGHBOURS else few
                if other.typical >= least:
                    return other
    return None


# ---- separate loops for parts of an axis along which elements come from different places ----
# Joined, rolled or reflected arrays are selected by conditions on an index: an element of
# where(i < 3, x[…], y[…]) reads all of them and takes one. Along one part of the axis it is always
# the same one, so the others need not be read. Parts along the vector axis become consecutive
# loops; along another axis, each row runs the loop of its part.


def in_ranges(loop: Loop, outer: Sequence[Axis], lanes: int) -> Statements:
    """The vectors' loop, inside of one iteration over each outer axis, as loops for parts.

    lanes: of a vector.
    """
    (body,) = loop.body
    assert isinstance(body, Stores)
    known = [axis for axis in outer if isinstance(axis.extent, int)]
    enough = loop.trips >= lanes
    return tuple(_by_rows(loop, known, body.items, lanes, 1)) if enough else (loop,)


def _by_rows(
    loop: Loop, outer: Sequence[Axis], stores: Sequence[Store], lanes: int, copies: int
) -> list[Statement]:
    """copies: how many copies of the loop's code there are, this one included."""
    for number, axis in enumerate(outer):
        parts = _parts(axis.variable, axis.count, stores)
        if len(parts) > 1 and copies * len(parts) <= MOST_LOOPS:
            found: list[Statement] = []
            for start, stop in parts:
                inside = _within(stores, axis.variable, (start, stop))
                guard = expr.restrict((), [axis.index - start, stop - 1 - axis.index])
                once = make_axis(f"{axis.variable.name}part", start, 2)
                body = _by_rows(loop, outer[number + 1 :], inside, lanes, copies * len(parts))
                found.append(_where(guard, once, body))
            return found
    return list(_along(loop, stores, lanes, copies))


def _where(guard: Guard, once: Axis, body: Sequence[Statement]) -> Loop:
    """A loop that runs once if a guard holds, else never."""
    one, none = (expr.const(times, dtypes.int32) for times in (1, 0))
    times = expr.value_of(expr.guarded(guard, one, none))
    return Loop(once.variable, 0, (times,), tuple(body))


def _along(loop: Loop, stores: Sequence[Store], lanes: int, copies: int) -> Statements:
    """The vectors' loop as one for each part, if that takes less time.

    Parts begin exactly, or where a vector does, so that results are stored by whole vectors.
    """
    x, stop, whole = loop.variable, loop.stops[0], Stores(tuple(stores))
    if loop.start != 0 or not isinstance(stop, int):
        return (loop.around((whole,)),)
    exact = [start for start, _ in _parts(x, stop, stores)]
    even = {at for start in exact for at in (start // lanes * lanes, ceildiv(start, lanes) * lanes)}
    ways: list[tuple[int, list[tuple[Range, list[Store]]]]] = []
    for starts in ([0], sorted({*even, 0}), exact):
        inside = [at for at in starts if at < stop]
        parts = [(part, _within(stores, x, part)) for part in pairwise((*inside, stop))]
        vectors = (ceildiv(end - start, lanes) * _reads(some) for (start, end), some in parts)
        if len(parts) == 1 or copies * len(parts) <= MOST_LOOPS:
            ways.append((sum(vectors) + LOOP_COST * len(parts), parts))
    _, best = min(ways, key=lambda way: way[0])
    if len(best) == 1:
        return (loop if loop.body == (whole,) else loop.around((whole,)),)
    return tuple(
        replace(loop, start=start, stops=(end,), body=(Stores(tuple(some)),))
        for (start, end), some in best
    )


def _reads(stores: Sequence[Store]) -> int:
    return len(expr.loads(*(store.value for store in stores)))


def _parts(variable: Atom, count: int, stores: Sequence[Store]) -> list[Range]:
    """The parts of 0 … count − 1 in which conditions do not change, if each reads less."""
    ends = {0, count}
    for e in expr.walk(*(store.value for store in stores)):
        if e.op is Leaf.CONDITION and isinstance(e.index, Affine):
            _, end = end_of(e.index, variable) or (0, 0)
            ends.add(min(max(end, 0), count) if isinstance(end, int) else 0)
    parts = list(pairwise(sorted(ends)))
    if len(parts) == 1:
        return parts
    most = max(_reads(_within(stores, variable, part)) for part in parts)
    return parts if most < _reads(stores) else [(0, count)]


def _within(stores: Sequence[Store], variable: Atom, part: Range) -> list[Store]:
    """Stores for a variable in a range, simplified by conditions that are known there."""
    first, stop = part
    inside = make_axis("part", 0, stop - first)  # its range decides conditions

    def known(e: Expr) -> Expr:
        there = expr.substitute_in(e, {variable: inside.index + first})
        return expr.substitute_in(there, {inside.variable: variable.index - first})

    return [replace(store, value=known(store.value)) for store in stores]


# ---- additions at positions given by data ----


def scatter(kernel: Kernel, target: Target) -> Lowered:
    """Initial values, then one addition after another, in order: deterministic, and parallel.

    On a GPU, each work-item applies all updates to its part of the result. Each part tests all
    updates, so there are no more parts than keep the device busy.
    """
    (stage,) = kernel.stages
    assert stage.initial is not None
    if (group := target.group) is not None:
        axes = sorted(stage.axes, key=lambda axis: not isinstance(axis.extent, int))
        known = [axis for axis in axes if isinstance(axis.extent, int)]
        cut = _in_parts(stage, FILL * group.items * group.units // size_of(known))
        if cut is not None:
            s = LoopNest(build.loops_over([cut[0], *axes], cut[1]))
            return Lowered(s.parallelize(*(axis.variable for axis in (cut[0], *known))))
    xs = [axis.variable for axis in stage.axes]
    last = stage.axes[-1] if xs and isinstance(stage.axes[-1].extent, int) else None
    s = LoopNest(build.loops_over(stage.axes, _additions(stage, stage.guard)))
    fill = stage.initial_axes[-1] if stage.initial_axes and not stage.in_place else None
    if fill is not None and coefficient(stage.initial_position, fill.variable) != 1:
        fill = None
    # vectors need neighbouring positions, and updates in the same order in every lane
    if (
        last is not None
        and all(isinstance(axis.extent, int) for axis in stage.axes)
        and coefficient(stage.position, xs[-1]) == 1  # so the loaded index is that of all lanes
    ):
        width = vector_width(target, [stage.body], last.extent, True)
        passes_by = build.streams(stage.array, (), target, [stage.initial], last.variable)
        cut = _in_parts(stage, _parts_to_fill(stage, target), (last,), passes_by)
        if cut is not None:
            part, body = cut
            s = LoopNest(build.loops_over([*stage.axes[:-1], part], body))
            xs.insert(-1, part.variable)
        s.vectorize(xs.pop(), width)
    elif fill is not None:
        s.vectorize(fill.variable, vector_width(target, [stage.initial], fill.extent, True))
    elif last is not None and 1 in expr.strides(xs[-1], *stage.exprs()):
        block, beside, body = _in_blocks(stage, last, target)
        s = LoopNest(build.loops_over([*stage.axes[:-1], block], body))
        s.vectorize(beside, vector_width(target, [stage.initial], last.extent, True))
        xs[-1] = block.variable
    return Lowered(s.parallelize(*xs))


def _additions(
    stage: Stage, guard: Guard, bounds: Mapping[Atom, Bounds] | None = None,
    inner: tuple[Axis, ...] = (), streaming: bool = False,
) -> Statements:  # fmt: skip
    """Store an element's initial value, unless it is there already, and add all updates to it.

    inner: axes along which both are done in turn; bounds: of loops; streaming: of initial values.
    """
    assert stage.initial is not None and stage.op is not None
    start = Store(stage.array, stage.initial_position, stage.initial, streaming=streaming)
    op, new = SCATTERS[stage.op], stage.body
    alike = {axis.variable for axis in inner}.isdisjoint(chain(*map(variables, guard)))
    own = () if inner and alike else guard  # else asked once for all
    if op is not None:
        new = build.combine(op, expr.load(stage.array, stage.position, own), new)
    adding = build.loops_over(inner, [Store(stage.array, stage.position, new, own)], bounds)
    if guard and not own:
        adding = (_where(guard, make_axis("here", 0, 2), adding),)
    adding = build.loops_over(stage.reduced, adding, bounds)
    if stage.in_place:
        return adding
    return (*build.loops_over((*stage.initial_axes, *inner), [start], bounds), *adding)


def _in_blocks(stage: Stage, last: Axis, target: Target) -> tuple[Axis, Atom, Statements]:
    """An axis of blocks of positions; the variable of copies; and loops over one block.

    Each update is added to all positions of a block in turn: the updates of one position are on as
    many lines. Rows of the result may be so far apart that they compete for places in a cache, so a
    block is put together in memory of its own, if that fits half of L2, and then copied.
    """
    assert stage.initial is not None
    size = min(SIDE_BY_SIDE, ceildiv(last.count, 2))
    block, beside = make_axis("b", 0, ceildiv(last.count, size)), make_axis("e", 0, last.count)
    begin = block.index * size
    bounds = {axis.variable: (begin, begin + size) for axis in (last, beside)}

    def copied(array: Array, index: Integer, value: Expr) -> Statements:
        one = build.substitute_statement(Store(array, index, value), {last.variable: beside.index})
        return build.loops_over((*stage.initial_axes, beside), [one], bounds)

    inside = stage
    behind: Statements = ()
    if target.group is None and not stage.in_place and (found := _chosen_by_data(stage)):
        along, place = found
        apart = coefficient(stage.initial_position, along.variable) or 0
        alike = stage.position - place * apart == stage.initial_position - along.index * apart
        own = Array("block", stage.array.dtype, along.most * size, "scratch")
        if alike and own.nbytes <= target.l2 // 2:
            position, at = (x * size + (last.index - begin) for x in (place, along.index))
            inside = replace(stage, array=own, position=position, initial_position=at)
            behind = copied(stage.array, stage.initial_position, expr.load(own, at))
    first = () if stage.in_place else copied(inside.array, inside.initial_position, stage.initial)
    updates = _additions(replace(inside, in_place=True), stage.guard, bounds, (last,))
    return block, beside.variable, (*first, *updates, *behind)


def _chosen_by_data(stage: Stage) -> tuple[Axis, Integer] | None:
    """The axis along which data choose the position of an update, and that position; or None."""
    found = [atom for atom, _ in getattr(stage.position, "terms", ()) if atom.kind == "value"]
    if len(stage.initial_axes) != 1 or len(found) != 1:
        return None
    return stage.initial_axes[0], found[0].index


def _in_parts(
    stage: Stage, most: int, inner: tuple[Axis, ...] = (), streaming: bool = False
) -> tuple[Axis, Statements] | None:
    """An axis of parts of the positions, and loops over a part's updates; None if impossible."""
    found = _chosen_by_data(stage)
    if found is None or not isinstance(found[0].extent, int):
        return None
    along, where = found
    parts = min(most, along.count // LEAST_PART)
    if parts < 2:
        return None
    size = ceildiv(along.count, parts)
    part = make_axis("p", 0, ceildiv(along.count, size))
    begin = part.index * size
    within = expr.restrict(stage.guard, [where - begin, begin + size - 1 - where])
    bounds = {along.variable: (begin, begin + size)}
    return part, _additions(stage, within, bounds, inner, streaming)


def _parts_to_fill(stage: Stage, target: Target) -> int:
    """The number of parts in which to initialize positions that no cache holds, row after row.

    (Columns of all rows in turn would be short pieces, far apart.) Each part tests all updates,
    which takes a small part of the time of initializing.
    """
    large = stage.size * stage.array.dtype.itemsize // target.l2
    few = stage.size // (LOOKS * size_of(stage.reduced))
    return 0 if stage.in_place else min(large, few, MOST_PARTS)


# ---- running reductions and sorts ----


# Terms of a running sum that are added one after the other. Each waits for the one before, and the
# end of a block for both: longer blocks cost less, and shorter ones round less.
BLOCK_TERMS = 128
# Rows that are interleaved: the first of these that divides their number. (Cached lines of more
# rows, read and written, may evict each other.)
INTERLEAVED = (4, 3, 2)


def scan(kernel: Kernel, target: Target) -> Lowered:
    """A running reduction; vectors run along the last kept axis if that is contiguous.

    If not, a few rows are interleaved, unless they are sums: each product or maximum waits for the
    one before, for longer than memory takes.
    """
    (stage,) = kernel.stages
    (along,) = stage.reduced
    assert stage.op is not None
    body = _running(stage, along, SCANS[stage.op])
    s, xs = LoopNest(build.loops_over(stage.axes, body)), [axis.variable for axis in stage.axes]
    if xs and coefficient(stage.position, xs[-1]) == 1:
        width = vector_width(target, [stage.body], stage.axes[-1].extent, True)
        s.vectorize(xs[-1], width)
        xs = xs[: len(xs) - (width > 1)]
    elif target.group is None and size_of(stage.axes) >= FEW and stage.op is not Op.CUMSUM:
        x, extent = xs[-1], stage.axes[-1].extent
        rows = next((n for n in INTERLEAVED if isinstance(extent, int) and not extent % n), 1)
        if rows > 1:
            xs[-1] = s.split(x, rows, "t")
            s.sink(x)
            s.unroll(x, "u")
    return Lowered(s.parallelize(*xs))


def _running(stage: Stage, along: Axis, op: Op) -> tuple[Statement, ...]:
    """All elements along an axis, with sums of floats in levels (see assemble.py).

    A block's own sum starts at zero and is added to that of the blocks before it, so that the error
    of a long sum does not grow with every term.
    """
    levels, dtype = 1, stage.body.dtype
    later = make_axis("k", 1, along.extent - 1)  # after the first element
    at = {along.variable: later.index + 1}
    while op is Op.SUM and dtype.is_float and BLOCK_TERMS**levels < along.most:
        levels += 1
    sums = [expr.register(f"total{n or ''}", dtype) for n in range(levels)]
    # the first element may be combined with all before (see sort.py)
    first = sums[0] if levels == 1 else expr.register("first", dtype)
    own, *before = sums if levels == 1 else (*sums, first)
    value = reduce(partial(build.combine, op), [*reversed(before), own])
    zero = identity(op, dtype)
    alone = build.put(first, stage.body), Store(stage.array, stage.position, first)
    body: tuple[Statement, ...] = (
        build.put(own, build.combine(op, own, expr.substitute_in(stage.body, at))),
        Store(stage.array, substitute(stage.position, at), value),
    )
    once = build.least(1, along.extent)
    made = (sums[-1],) if once == (1,) else dict.fromkeys((sums[-1], first))  # perhaps no element
    start: list[Statement] = [build.put(one, zero) for one in made]
    start.append(Loop(along.variable, 0, once, alone))
    loop = Loop(later.variable, 0, (later.extent,), body)
    for level, (inner, outer) in enumerate(pairwise(sums), 1):
        number = make_axis("b", level, ceildiv(loop.trips, BLOCK_TERMS))
        block, counts = build.in_pieces(loop, number, BLOCK_TERMS)
        step = build.put(inner, zero), block, build.put(outer, build.combine(op, outer, inner))
        loop = Loop(number.variable, 0, counts, step)
    return (*start, loop)


# Bytes ahead of a bin's next free position that are prefetched. No processor follows 256 positions,
# so every store that begins a line would wait for memory (8.9 → 2.5 ms for 10⁶ words).
BIN_AHEAD = 2 * LINE


def distribute(kernel: Kernel, target: Target) -> Lowered:
    """One pass of a counting sort: each row's next free positions are in scratch memory."""
    (stage,) = kernel.stages
    assert stage.initial is not None
    (bins,), (along,) = stage.initial_axes, stage.reduced
    next_free = Array("next", dtypes.int32, bins.count, "scratch")
    place = expr.register("place", dtypes.int32)
    where: Integer = expr.value_of(place)
    inside = expr.restrict((), [where, stage.size - 1 - where])
    body = (
        build.put(place, expr.load(next_free, stage.position)),
        Store(stage.array, where, stage.body, inside),
        Prefetch(stage.array, where + BIN_AHEAD // stage.array.dtype.itemsize),
        Store(next_free, stage.position, place + 1),
    )  # fmt: skip
    begin = build.loops_over([bins], [Store(next_free, stage.initial_position, stage.initial)])
    return Lowered(build.flat_loop(stage.axes, (*begin, *build.loops_over([along], body))))
