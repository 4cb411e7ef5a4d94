"""The recipe "rows": each stage computes its part of a row from its producers' parts.

Vectors run along the row (the row stays in the cache) or across neighbouring rows; fuse.py decides
which is cheaper.

Results that bypass the cache are stored at the speed of memory. A pass that does little else waits
for memory, while the passes before it leave memory idle. So if the last pass of a row writes such
results, it shares the loop of the next row's longest pass, which must compute more than it does.
(Measured with one core of a Zen 5 class machine: a softmax of 64 MiB takes 3.2 ms instead of 3.8;
of Zen 4: a layer norm of 24 MiB, whose passes compute little, would take 1.7 ms instead of 1.5.)

With vectors along the row, stages share as few passes over it as possible. Softmax has three: the
maximum; the exponentials with their sum; the quotients. A stage joins the first pass after all
that it depends on (the result of a reduction is known when its pass ends, a value of the same
element at once), and takes such values from registers. Sums over windows are computed in register
tiles: a few rows of an image at once, which share their loads; for a gradient by weight, some
positions.

With vectors across neighbouring rows, each lane computes a row, in the same passes, and a value per
row is in a register. Sums of long columns are in scratch memory, a block of columns small enough
for the first-level cache, and memory is read row by row, in memory order. (Column by column, or
several rows at a time, no prefetching would follow: measured, a third of the speed.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import gcd, prod

from minigrad.graph.substitution import coefficient, is_dense, substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high
from minigrad.loops import build, nest, prefetch
from minigrad.loops.assemble import MOST_CHUNKS, OPERATIONS_A_BYTE
from minigrad.loops.axes import (
    in_whole_periods,
    indices,
    merge,
    merge_stage,
    overlap,
    row_axes,
    unit_stride_axis,
    vector_width,
)
from minigrad.loops.cost import cut
from minigrad.loops.nest import Loop, Loops, Lowered, Statement, Statements, Store, Stores
from minigrad.loops.prefetch import AHEAD, Place
from minigrad.loops.product import LANE
from minigrad.loops.transforms import Around, LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, place_along, size_of
from minigrad.schedule.expr import Array, Expr
from minigrad.schedule.fuse import axis_beside, prefix_length, runs_across_rows, worth_a_vector
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, identity
from minigrad.target import Target

# Rows of a block. The first, one in 16, has no row before it whose last pass it could share. There
# are at least as many blocks as chunks (see assemble.py).
BLOCK_ROWS = 16


def rows(kernel: Kernel, target: Target) -> Lowered:
    """Row after row, or vectors across rows."""
    stages, stored, count = kernel.stages, kernel.stored, kernel.rows
    if target.vector_bytes and high(count) > 1:
        beside = axis_beside(stages, count, target)
        if beside is not None and all(size_of(s.reduced) <= MOST_WRITTEN_OUT for s in stages):
            return row_squares(kernel, beside, target)
        if runs_across_rows(stages, count, target):
            return row_vectors(kernel, target)
    axes = row_axes(stages[0], count)
    row = axes[-1]
    passes = row_passes(build.kept_inside(stages, stored, count, place_along(axes)), stored)
    for one in passes:
        _vectorize(one, kernel, target)
    # Beside vectors of 512 bits, Intel's processors add products of half vectors at half the rate:
    # the copy of an image with 7 columns has no wider ones than its sums (0.6 … 0.86 of the time).
    half = target.lanes(stages[0].array.dtype) // 2
    narrow = any(one.tile and one.width == half for one in passes)
    body = [statement for one in passes for statement in one.loops()]
    s = LoopNest(build.loops_over(axes, body))
    for one in passes:
        one.width = min(one.width, half) if narrow else one.width
        if one.axis is not None:
            s.vectorize(one.axis.variable, one.width)
            _tile(s, one)
    for axis, places in prefetches(passes, row, target).items():
        s.prefetch(axis.variable, lambda *_, own=places: own)
    delayed = _delayed(passes, count, target)
    if delayed is not None:
        s.pipeline(row.variable, *delayed)
    xs = [axis.variable for axis in axes] if len(axes) > 1 else []
    return Lowered(s.parallelize(*xs), runs=(OPERATIONS_A_BYTE, 1, 0))


def _tile(s: LoopNest, one: Pass) -> None:
    """Let the sums of a tile share loads: move its loops inside those of the sums."""
    assert one.axis is not None
    xs = [axis.variable for axis, _ in one.tile]
    for axis, size in one.tile:
        if size < axis.count:
            piece = s.split(axis.variable, size, f"{axis.variable.name}t")
            if one.window is not None:  # all columns of rows, then the next rows
                s.reorder(piece, one.axis.variable, axis.variable)
            s.peel(piece, axis.variable)
    s.sink(*xs, into=() if one.window is not None else one.axis.variable)
    if one.window is not None:
        s.unroll(one.window.variable, "w", computing=True)
    for n, x in enumerate(xs):
        s.unroll(x, f"{x.name}u{n}_")


def _delayed(
    passes: Sequence[Pass], count: Integer, target: Target
) -> tuple[Atom, int, frozenset[Array]] | None:
    """The loop that the last pass of the row before may share, rows of a block, arrays to double.

    None if nothing is gained by it.
    """
    *early, last = passes
    sizes = (BLOCK_ROWS >> n for n in range(BLOCK_ROWS.bit_length() - 2))
    size = next((n for n in sizes if isinstance(count, int) and count >= MOST_CHUNKS * n), None)
    alike = (one for one in early if one.shared is not None and one.shared == last.shared)
    hosts = [one for one in alike if one.width > 1]
    host = max(hosts, key=lambda one: one.operations, default=last)
    # a host that computes less would wait for memory itself
    if size is None or host.operations <= last.operations:
        return None
    written = {stage.array for stage in last.stages} & last.kept  # it does nothing but stream
    if not written <= last.streaming:
        return None
    read = (array for stage in last.stages for array in stage.reads)
    kept = frozenset(array for array in read if array.space == "scratch")
    if sum(array.nbytes for array in kept) > target.l2 // 8:
        return None
    assert host.axis is not None
    return host.axis.variable, size, kept


# ---- passes over a row ----


# Vectors side by side in a tile of sums over windows; and positions of a window, at most, that are
# unrolled so that the tile's rows share loads. Registers hold a row's sums and its loads.
ROW_VECTORS, MOST_DOWN = 2, 8
# Terms of a sum in rows that are longer than a tile. Shorter sums wait for memory, and tiles take
# 1.05 … 1.2 of the time. If images are no wider than a tile, though, tiles take half of it.
LEAST_TERMS = 16
MOST_IN_PASS = 12  # stages, each of which needs a register: of 16 a few are left for operands


@dataclass
class Pass:
    """Stages of a row in one loop over the axis that they share, or one stage in its own loops.

    values: elements that stages of one loop read of one another → expressions that replace these
    loads. operations: per element, to find the longest pass. number: of the first stage; kept:
    arrays that need more than a register. axis: of vectors with `width` lanes; tile: (axis, count)
    of positions that are summed together because they share loads; window: the axis of the sums
    along which rows of a tile share them; streaming: arrays whose stores bypass the cache.
    """

    shared: Axis | None
    stages: list[Stage] = field(default_factory=list)
    values: dict[Expr, Expr] = field(default_factory=dict)
    operations: int = 0
    number: int = 0
    kept: frozenset[Array] = frozenset()
    axis: Axis | None = None
    width: int = 1
    tile: tuple[tuple[Axis, int], ...] = ()
    window: Axis | None = None
    streaming: frozenset[Array] = frozenset()

    def add(self, stage: Stage) -> None:
        """Add a stage."""
        self.operations += expr.operations(stage.body)
        stage = replace(stage, body=expr.rebuild(stage.body, self.values.get))
        self.stages.append(stage)
        if self.shared is not None and stage.op is None:
            self.values[expr.load(stage.array, stage.position)] = stage.body

    def loops(self) -> Statements:
        """Its loops: begin with the reductions' identities, combine, store."""
        begin: list[Statement] = []
        steps: list[Statement] = []
        end: list[Statement] = []
        stores: list[Store] = []  # after all bodies, which read the old values
        outer, inner = self.stages[0].axes[:-1], self.stages[0].axes[-1:]
        for number, stage in enumerate(self.stages, self.number):
            array, body = stage.array, stage.body
            if stage.op is None:
                streaming = array in self.streaming
                if array in self.kept:
                    stores.append(Store(array, stage.position, body, streaming=streaming))
                continue
            outer, inner = stage.axes, stage.reduced
            result = expr.register(f"sum{number}", body.dtype)
            if array.in_registers:
                result = expr.load(array)
            else:
                end.append(Store(array, stage.position, result))
            begin.append(build.put(result, identity(stage.op, body.dtype)))
            steps.append(build.put(result, build.combine(stage.op, result, body)))
        steps += stores if len(stores) < 2 else [Stores(tuple(stores))]
        return build.loops_over(outer, [*begin, *build.loops_over(inner, steps), *end])


def row_passes(stages: Sequence[Stage], stored: frozenset[Array]) -> list[Pass]:
    """The passes of one row. stored: arrays in memory; the others are scratch."""
    passes = _passes([merge_stage(stage) for stage in stages], stored)
    read = {array for one in passes for stage in one.stages for array in stage.reads}
    number = 0
    for one in passes:
        one.number, one.kept = number, stored | read
        number += len(one.stages)
    return passes


def prefetches(
    passes: Sequence[Pass], row: Axis, target: Target
) -> dict[Axis, list[Place]]:
    """By the axis of a pass: the places to prefetch.

    If several passes read an array, its next row is prefetched by the pass that computes longest.
    If one pass reads it, that prefetches further along the row, if it is its only array.
    """
    found: dict[Axis, list[Place]] = {}
    first: dict[tuple[Axis, Place], int] = {}  # → the first pass that reads it
    made = {stage.array for one in passes for stage in one.stages}
    for place, one in enumerate(passes):
        if one.shared is None or one.axis is None:
            continue
        for load in expr.loads(*(stage.body for stage in one.stages)):
            read = load.array not in made and row.variable in load.variables
            if read and prefetch.from_memory(load, one.axis, target.l2) == 1:
                position = substitute(load.index, {one.axis.variable: one.shared.index})
                first.setdefault((one.shared, (load.array, position)), place)
    for (axis, (array, position)), place in first.items():
        nbytes = axis.most * array.dtype.itemsize
        later = [n for n in range(place + 1, len(passes)) if passes[n].shared == axis]
        if not later and list(first.values()).count(place) > 1:
            continue
        near = AHEAD if nbytes > target.l2 // 4 else 0
        if ahead := near if later else prefetch.far_enough(nbytes):
            position = position + ahead // array.dtype.itemsize
        else:
            _, position = prefetch.next_rows((array, position), row.variable, nbytes)
            place = max(later or [place], key=lambda n: passes[n].operations)
        own = passes[place].axis
        assert own is not None
        position = substitute(position, {axis.variable: own.index})
        found.setdefault(own, []).append((array, position))
    return found


def _over(stage: Stage, old: Axis, new: Axis) -> Stage:
    """A stage with one of its axes replaced by another, which becomes the innermost."""
    kept, reduced = (
        (*(a for a in axes if a != old), *(new for a in axes if a == old))
        for axes in (stage.axes, stage.reduced)
    )
    return replace(stage.substitute({old.variable: new.index}), axes=kept, reduced=reduced)


def _passes(stages: Sequence[Stage], stored: frozenset[Array]) -> list[Pass]:
    passes: list[Pass] = []
    made: dict[Array, int] = {}  # the first pass in which all of an array is known
    for stage in stages:
        axes, first, shared = (*stage.axes, *stage.reduced), 0, None
        if len(axes) == 1:
            shared = make_axis("k", 0, axes[0].extent)
            stage = _over(stage, axes[0], shared)
        for load in stage.loads:
            if load.array in made:
                known = shared is not None and load in passes[made[load.array] - 1].values
                first = max(first, made[load.array] - known)
        if stage.array in stored and passes:
            joins = shared is not None and passes[-1].shared is not None
            first = max(first, len(passes) - (joins and not _overwrites(stage, passes[-1])))
        for place in range(first, len(passes)):
            one = passes[place]
            if one.shared == shared and len(one.stages) < MOST_IN_PASS:
                break
        else:
            place = len(passes)
            passes.append(Pass(shared))
        passes[place].add(stage)
        made[stage.array] = place + 1
    return [
        part for one in passes
        for part in ([one] if one.shared is not None else [Pass(None, [s]) for s in one.stages])
    ]  # fmt: skip


def _overwrites(writer: Stage, one: Pass) -> bool:
    """Whether a stage may store where stages of a pass read another element.

    Its array may be the memory of any array of its size.
    """
    reads = (load for stage in one.stages for load in stage.loads if load.array.space == "buffer")
    nbytes = writer.array.nbytes
    return any(x.index != writer.position and x.array.nbytes == nbytes for x in reads)


def _vectorize(one: Pass, kernel: Kernel, target: Target) -> None:
    """Choose the axis of a pass along which vectors run."""
    first, bodies = one.stages[0], [stage.body for stage in one.stages]
    positions = [stage.position for stage in one.stages]
    along = unit_stride_axis((*first.axes, *first.reduced), bodies, positions)
    if along is None:
        return
    one.axis = axis = make_axis("c", one.number, along.extent)
    one.stages = [_over(stage, along, axis) for stage in one.stages]
    bodies, reduces = [s.body for s in one.stages], any(axis in s.reduced for s in one.stages)
    one.width = vector_width(target, bodies, axis.extent, reduces, axis.variable)
    if not reduces:
        one.width = in_whole_periods(target, bodies, axis, one.width)
    lanes = target.lanes(bodies[0].dtype)
    if not (reduces or one.shared) and (found := _rows_of_window(one.stages[0], axis, lanes)):
        few, window = found
        rows = cut(few.count, 1, (target.registers - 2) // (2 * ROW_VECTORS))
        new, one.window = (make_axis(f"{name}{one.number}_", 0, old.extent)
                           for name, old in (("t", few), ("j", window)))  # fmt: skip
        one.stages = [_over(_over(one.stages[0], few, new), window, one.window)]
        one.tile, one.width = ((new, rows),), min(one.width, ROW_VECTORS * lanes)
    for n, (few, size) in enumerate(_sharing_loads(one.stages[0], target) if reduces else ()):
        new = make_axis(f"t{one.number}_", n, few.extent)
        one.stages, one.tile = [_over(one.stages[0], few, new)], (*one.tile, (new, size))
        one.width = min(one.width, lanes)
    one.streaming = frozenset(
        stage.array for stage in one.stages
        if stage.op is None and stage.array in kernel.stored
        and build.streams(stage.array, kernel.stages, target, [stage.body], axis.variable)
    )  # fmt: skip


def _sharing_loads(stage: Stage, target: Target) -> tuple[tuple[Axis, int], ...]:
    """The last axes of a stage, with counts, along which sums share loads as positions of a window.

    (Only for windows: a tile is summed in another order, and rows of products must not differ.)
    """
    found: tuple[tuple[Axis, int], ...] = ()
    room = target.registers - 4
    for axis in reversed(stage.axes):
        if not isinstance(axis.extent, int) or room < 2:
            break
        size = cut(axis.extent, 1, room)
        found, room = ((axis, size), *found), room // size if size == axis.extent else 0
    return found if any(_overlap(stage, one, k) for one, _ in found for k in stage.reduced) else ()


def _rows_of_window(stage: Stage, along: Axis, lanes: int) -> tuple[Axis, Axis] | None:
    """An axis, not the vectors', along which sums share loads, and the axis of terms that does it.

    The latter has the few positions of a window.
    """
    least = LEAST_TERMS if along.most > ROW_VECTORS * lanes else 2
    for axis in reversed(stage.axes if size_of(stage.reduced) >= least else ()):
        for k in stage.reduced:
            few = isinstance(axis.extent, int) and k.extent in range(2, MOST_DOWN + 1)
            if axis != along and few and _overlap(stage, axis, k):
                return axis, k
    return None


def _overlap(stage: Stage, one: Axis, other: Axis) -> bool:
    return any(overlap(load.index, one, other) for load in expr.loads(stage.body))


# ---- vectors across rows ----


MOST_WRITTEN_OUT = 16  # elements of a row: one for each lane of a vector of 512 bits
# Elements of a loop that would be written out from which on squares are transposed instead: of 4,
# sums and signs take 0.6 of the time, and of 12 a third, in a tenth of the time to compile.
LEAST_TURNED = 4
SQUARE = 16  # elements on each side of a square, at most
# Elements of a column from which on this pays: clearing the sums and storing them is a pass each,
# beside one for every element.
LEAST_LENGTH = 8
ENOUGH_BLOCKS = 32  # parallel iterations: a few for each thread
# Vectors of a run of neighbours that are written out if their masks depend on where they begin.
MOST_IN_TURN = 8
LEAST_COLUMNS = 256  # of a block: 1 KiB of float32, 16 adjacent lines


def row_vectors(kernel: Kernel, target: Target) -> Lowered:
    """Vectors across rows, along the last of the axes that make up a row's number.

    A vector, or a block of sums, ends where neighbouring rows end, so that no lane divides an
    index; not if there are few neighbours, or only these. Enough of such runs are what threads
    share: then it is known which lanes of a run's last vector count. If what neighbours read does
    not go on behind a run, as in strided windows, runs of three quarters of a vector are enough.
    """
    stages, count, length = kernel.stages, kernel.rows, _neighbours(kernel)
    turned = _along_rows(kernel)
    columns = length is not None and not turned and _are_columns(kernel, length, target)
    least = target.lanes(stages[0].array.dtype)
    axes, alone = row_axes(stages[0], count), length
    if not columns:
        length = _neighbours(kernel, least)
        flat = length == alone and all(_go_on(stage, count) for stage in stages)
        least = least if flat else worth_a_vector(least)
    if length is not None and (columns or high(count) > length >= least):
        axes[-1:] = [make_axis("p", 0, axes[-1].extent // length), make_axis("c", 0, length)]
    row = place_along(axes)
    x, xs = axes[-1].variable, [axis.variable for axis in axes[:-1]]
    bodies = [stage.body for stage in stages]
    width = size = vector_width(target, bodies, axes[-1].extent, True)
    if turned:
        width = size = min(width, target.lanes(stages[0].array.dtype))
    lanes = 1 if columns else width
    lane = LANE.index if lanes > 1 else 0
    inside = build.kept_inside(stages, kernel.stored, count, row, lanes, lane, registers=True)
    body = [made for one in row_passes(inside, kernel.stored) for made in one.loops()]
    s = LoopNest(build.loops_over(axes, body if columns else _written_out(body, width * turned)))
    if columns:
        assert length is not None
        sums = sum(stage.op is not None for stage in stages)
        size = _block_size(high(count) // length, length, width, target.l1 // 4 // sums)
    enough = bool(xs) and not columns and size_of(axes[:-1]) >= ENOUGH_BLOCKS
    if xs and not enough:
        xs.append(s.split(x, size, "b"))
    elif enough and width < axes[-1].most <= MOST_IN_TURN * width and _depends(s.body, x):
        s.unroll(s.split(x, width, "b"), "w")

    def asked_for(loop: Loop, around: Around) -> tuple[Place, ...]:
        if columns:
            *_, last = around
            values = nest.expressions(loop)
            return () if last in xs else prefetch.later_rows(values, last, axes[-1], size, target)
        first = {one.variable: 0 for one in nest.loops_in(loop.body)}
        loads = expr.loads(*(expr.substitute_in(e, first) for e in nest.expressions(loop)))
        apart = [load for load in loads if prefetch.from_memory(load, axes[-1], target.l2) > 1]
        return prefetch.further_along(axes[-1], None, apart, target)

    if columns:
        s.sink(x, space="scratch")
    s.vectorize(x, width, None if columns else LANE)
    if columns or not xs:
        s.prefetch(x, asked_for)
    return Lowered(s.parallelize(*xs))


def row_squares(kernel: Kernel, beside: int, target: Target) -> Lowered:
    """Vectors along one of the axes of rows of one element, in loops along the last one."""
    count, width = kernel.rows, target.lanes(kernel.stages[0].array.dtype)
    axes = [make_axis("r", n, axis.extent) for n, axis in enumerate(kernel.stages[0].axes)]
    row = place_along(axes)
    inside = build.kept_inside(kernel.stages, kernel.stored, count, row, width, registers=True)
    body = [made for one in row_passes(inside, kernel.stored) for made in one.loops()]
    x, last = axes.pop(beside), axes.pop()
    body = _written_out(body, width)
    inner = Loop(last.variable, 0, (last.extent,), tuple(body), transpose=width)
    s = LoopNest(build.loops_over([*axes, x], [inner]))
    s.vectorize(x.variable, width, LANE)
    return Lowered(s.parallelize(*(axis.variable for axis in axes)))


def _go_on(stage: Stage, rows: Integer) -> bool:
    """Whether what neighbouring rows read goes on where a run of neighbours ends."""
    leading = stage.axes[: prefix_length(stage, rows)]
    whole, _ = merge(leading, [load.index for load in stage.loads])
    return whole[-1].extent != leading[-1].extent


def _depends(body: Sequence[Statement], x: Atom) -> bool:
    """Whether conditions of loads depend on a variable."""
    loads = expr.loads(*(e for one in body for e in nest.expressions(one)))
    return any(coefficient(c, x) != 0 for load in loads for c in load.guard)


def _along_rows(kernel: Kernel) -> bool:
    """Whether something is contiguous along rows, not across: then squares are transposed."""
    made = {stage.array for stage in kernel.stages} - kernel.stored
    for stage in kernel.stages:
        prefix = prefix_length(stage, kernel.rows)
        inner = (*stage.axes[prefix:], *stage.reduced)
        places = [load.index for load in stage.loads if load.array not in made]
        if stage.array in kernel.stored:
            places.append(stage.position)
        long = [axis.variable for axis in inner if axis.most >= LEAST_TURNED]
        row = stage.axes[prefix - 1].variable
        far = [place for place in places if coefficient(place, row) not in (None, 0, 1)]
        if any(is_dense(place, x, SQUARE) for place in far for x in long):
            return True
    return False


def _neighbours(kernel: Kernel, lanes: int = 1) -> int | None:
    """How many rows follow each other in every stage; None if all do, and their number varies.

    These are the last of the axes that make up a row's number, and those before it that every index
    walks through as if they were one; and one more if whole ones of these fill `lanes`.
    """
    lengths: list[Integer] = []
    for stage in kernel.stages:
        leading = stage.axes[: prefix_length(stage, kernel.rows)]
        used = indices(stage.exprs(), [stage.position, *stage.guard])
        *others, last = (axis.extent for axis in merge(leading, used)[0])
        if others and isinstance(last, int) and 1 < last < lanes and lanes % last == 0:
            last = others[-1] * last
        lengths.append(last)
    whole = row_axes(kernel.stages[0], kernel.rows)[-1].extent
    if not isinstance(whole, int) and all(length == whole for length in lengths):
        return None
    return gcd(*(
        x if isinstance(x, int) else gcd(x.constant, *(c for _, c in x.terms)) for x in lengths
    ))  # fmt: skip


def _written_out(body: Sequence[Statement], lanes: int) -> list[Statement]:
    """Unroll short loops, so that it is known which elements of a row they read.

    lanes: with which innermost loops may transpose what lies along them; 0: none.
    """
    found: list[Statement] = []
    for one in body:
        few = prod(loop.trips for loop in nest.loops_in([one])) <= MOST_WRITTEN_OUT

        def change(loop: Loop, around: Loops, few: bool = few) -> Statements:
            inside = nest.map_loops(loop.body, change)
            kind = "unroll" if few and isinstance(loop.stops[0], int) else "serial"
            long = not nest.loops_in(inside) and (loop.trips >= LEAST_TURNED or not few)
            return (replace(loop, kind=kind, body=inside, transpose=lanes * long),)

        found.extend(nest.map_loops((one,), change))
    return found


# ---- sums of columns ----


def _are_columns(kernel: Kernel, length: int, target: Target) -> bool:
    """Whether all stages have one element per row, of `length` neighbouring rows, and sum much.

    If a few registers hold all columns, or a sum the few elements of a window, which are near each
    other, the sums are in registers instead.
    """
    return (
        length > 4 * target.lanes(kernel.stages[0].array.dtype)
        and all(prefix_length(s, kernel.rows) == len(s.axes) for s in kernel.stages)
        and any(s.op and s.iterations >= LEAST_LENGTH * s.size for s in kernel.stages)
        and not any(size_of(s.reduced) <= MOST_WRITTEN_OUT and _overlap(s, s.axes[-1], k)
                    for s in kernel.stages for k in s.reduced)
    )


def _block_size(outer: int, length: int, width: int, most: int) -> int:
    """Columns of a block: at most `most`, and few enough that threads have blocks to share."""
    size = min(length, max(most, LEAST_COLUMNS))
    while outer * ceildiv(length, size) < ENOUGH_BLOCKS and size >= 2 * LEAST_COLUMNS:
        size //= 2
    return ceildiv(size, width) * width
