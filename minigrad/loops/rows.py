"""The recipe "rows": each stage computes its part of a row from its producers' parts.

Vectors run along the row (the row stays in the cache) or across neighbouring rows; fuse.py tells
which is cheaper.

Results that pass by the cache go to memory at once, at a speed of their own: a pass that does
little else waits for memory, while the passes before it leave memory alone. So the last pass of a
row, if it writes such results, shares the loop of the next row's longest pass, which must compute
more than it does. (Measured with one core of a Zen 5 class machine: a softmax of 64 MiB takes 3.2
ms instead of 3.8; of Zen 4: a layer norm of 24 MiB, whose passes compute little, would take 1.7 ms
instead of 1.5.)

With vectors along it, the stages of a row share as few passes over it as they can. Softmax is
three: the maximum; the exponentials with their sum; the quotients. A stage joins the first pass
after all that it waits for (the result of a reduction is known when its pass ends, a value of the
own element at once), and takes such values from registers.

With vectors across neighbouring rows, each lane does a row. Sums of long columns are in scratch
memory, a block of columns small enough for the first cache, and memory is read row by row, in the
order in which it lies. (Column by column, or several rows at a time, no prefetching would follow:
measured, a third of the speed.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd

from minigrad.graph.shapes import numel
from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high
from minigrad.loops.assemble import MOST_CHUNKS, assemble, in_long_runs, memory_bound
from minigrad.loops.axes import (
    fix_rows,
    indices,
    merge,
    merge_stage,
    overlap,
    unit_stride_axis,
    vector_width,
)
from minigrad.loops.build import kept_inside, loops_over, naive, streams, substitute_statement
from minigrad.loops.nest import (
    Loop,
    Loops,
    Nest,
    Statement,
    Statements,
    Store,
    Stores,
    expressions,
    loops_in,
    map_loops,
    walk,
)
from minigrad.loops.prefetch import (
    AHEAD,
    Place,
    far_enough,
    from_memory,
    further_along,
    later_rows,
    next_rows,
)
from minigrad.loops.product import LANE
from minigrad.loops.transforms import Around, Schedule
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.fuse import prefix_length, runs_along_rows
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import Target

# Rows that follow one another; the first, one in 16, has no pass of a row before it to share. There
# are at least as many blocks as chunks (see assemble.py).
BLOCK_ROWS = 16


def rows(kernel: Kernel, target: Target) -> Nest:
    """Row after row, or vectors of rows."""
    count = kernel.rows
    if target.vector_bytes and high(count) > 1 and runs_along_rows(kernel.stages, count, target):
        return row_vectors(kernel, target)
    row = make_axis("r", 0, count)
    stages = [merge_stage(stage) for stage in kept_inside(kernel, row.index)]
    passes = row_passes(stages, kernel.stored, target)
    s = Schedule(loops_over([row], [statement for one in passes for statement in one.body]))
    for one in passes:
        for axis, width in one.axes:
            s.vectorize(axis.variable, width)
        for along, few in one.tiles:
            s.sink(*few, into=along)
            for n, x in enumerate(few):
                s.unroll(x, f"{x.name}u{n}_")
    for axis, places in prefetches(passes, row, target).items():
        s.prefetch(axis.variable, tuple(places))
    delayed = _delayed(passes, count, target)
    if delayed is not None:
        s.pipeline(row.variable, *delayed)
    nest = assemble(kernel, s.nest, target)
    return in_long_runs(nest) if memory_bound(nest) else nest


def _delayed(
    passes: Sequence[Pass], count: Integer, target: Target
) -> tuple[Atom, int, frozenset[Array]] | None:
    """The loop that the last pass of the row before may share, rows of a block, what is kept twice.

    None where nothing is gained by it.
    """
    *early, last = passes
    sizes = (BLOCK_ROWS >> n for n in range(BLOCK_ROWS.bit_length() - 2))
    size = next((n for n in sizes if isinstance(count, int) and count >= MOST_CHUNKS * n), None)
    hosts = [one for one in early if one.vector and one.extent == last.extent]
    host = max(hosts, key=lambda one: one.operations, default=last)
    # one that computes less waits for memory itself
    if size is None or not last.only_streams or host.operations <= last.operations:
        return None
    read = (array for stage in last.stages for array in stage.reads)
    kept = frozenset(array for array in read if array.space == "scratch")
    if sum(array.size * array.dtype.itemsize for array in kept) > target.l2 // 8:
        return None
    return host.axes[0][0].variable, size, kept


# ---- passes over a row ----


MOST_IN_PASS = 12  # stages, each of which wants a register: of 16 a few are left for operands


@dataclass
class Pass:
    """A pass over `extent` elements, or (extent None) stages that come one after the other.

    body: its loops, as they are before vectors; axes: those of vectors, with how many lanes; tiles:
    variables of vectors, and of few elements that are summed up at once, for they share what they
    read.
    """

    extent: Integer | None
    stages: list[Stage] = field(default_factory=list)
    body: list[Statement] = field(default_factory=list)
    axes: list[tuple[Axis, int]] = field(default_factory=list)
    tiles: list[tuple[Atom, tuple[Atom, ...]]] = field(default_factory=list)

    @property
    def operations(self) -> int:
        """Of an element, to tell which pass takes longest."""
        return sum(expr.operations(stage.body) for stage in self.stages)

    @property
    def vector(self) -> bool:
        """Whether it is a loop over vectors."""
        return self.extent is not None and self.axes[0][1] > 1

    @property
    def only_streams(self) -> bool:
        """Whether it does nothing but write what passes by the cache."""
        return all(
            isinstance(one, Loop | Stores) or isinstance(one, Store) and one.streaming
            for one in walk(*self.body)
        )


def row_passes(
    stages: Sequence[Stage], stored: frozenset[Array], target: Target
) -> list[Pass]:
    """The work of one row. `stored`: the arrays that are memory; others are scratch."""
    passes = _passes(stages, stored)
    last_read = {
        array: place
        for place, one in enumerate(passes) for stage in one.stages for array in stage.reads
    }
    number = 0
    for place, one in enumerate(passes):
        if one.extent is None:
            for n, stage in enumerate(one.stages):
                _alone(one, stage, number + n, stored, target)
        else:
            later = {s.array for s in one.stages if last_read.get(s.array, place) > place}
            _together(one, number, stored, later, target)
        number += len(one.stages)
    return passes


def prefetches(
    passes: Sequence[Pass], row: Axis, target: Target
) -> dict[Axis, list[Place]]:
    """By the axis of a pass: what it asks memory for.

    What several passes need of a row comes while the one before it is worked on: the pass that
    computes longest asks for it. What one pass needs it asks for itself, if it is one array.
    """
    found: dict[Axis, list[Place]] = {}
    first: dict[Place, int] = {}  # the pass
    for place, one in enumerate(passes):
        if one.extent is None:
            continue
        axis = _common_axis(one.extent)
        for stage in one.stages:
            for load in expr.loads(stage.body):
                if from_memory(load, axis, target) == 1 and row.variable in load.variables:
                    first.setdefault((load.array, load.index), place)
    for (array, position), place in first.items():
        extent = passes[place].extent
        assert extent is not None
        nbytes = numel([extent]) * array.dtype.itemsize
        later = [n for n in range(place + 1, len(passes)) if passes[n].extent == extent]
        if not later and list(first.values()).count(place) > 1:
            continue
        ahead = far_enough(nbytes) if not later else AHEAD if nbytes > target.l2 // 4 else 0
        if ahead:
            position = position + ahead // array.dtype.itemsize
        else:
            _, position = next_rows((array, position), row.variable, nbytes)
            place = max(later or [place], key=lambda n: passes[n].operations)
        ((own, _),) = passes[place].axes
        position = substitute(position, {_common_axis(extent).variable: own.index})
        found.setdefault(own, []).append((array, position))
    return found


def _common_axis(extent: Integer) -> Axis:
    """The axis that all stages of a pass have."""
    return make_axis("any", 0, extent)


def _over(axis: Axis, stage: Stage, at: Mapping[Atom, Integer]) -> Stage:
    """A stage over another axis; at: what its own is there."""
    axes, reduced = ((axis,), ()) if stage.op is None else ((), (axis,))
    body, position = expr.substitute_in(stage.body, at), substitute(stage.position, at)
    return replace(stage, axes=axes, reduced=reduced, body=body, position=position)


def _pass_axis(stage: Stage) -> Axis | None:
    """The axis of a stage that is one loop over one axis."""
    axes = (*stage.axes, *stage.reduced)
    return axes[0] if len(axes) == 1 and (stage.op is not None) == bool(stage.reduced) else None


def _passes(stages: Sequence[Stage], stored: frozenset[Array]) -> list[Pass]:
    passes: list[Pass] = []
    made: dict[Array, int] = {}  # the first pass in which all of an array is known
    own: set[Expr] = set()  # elements that are known before, in the pass that makes them
    for stage in stages:
        axis, first = _pass_axis(stage), 0
        if axis is not None:
            common = _common_axis(axis.extent)
            stage = _over(common, stage, {axis.variable: common.index})
        for load in stage.loads:
            if load.array in made:
                first = max(first, made[load.array] - (axis is not None and load in own))
        extent = None if axis is None else axis.extent
        if stage.array in stored and passes:
            joins = None not in (extent, passes[-1].extent) and not _overwrites(stage, passes[-1])
            first = max(first, len(passes) - joins)
        for place in range(first, len(passes)):
            if passes[place].extent == extent and len(passes[place].stages) < MOST_IN_PASS:
                break
        else:
            place = len(passes)
            passes.append(Pass(extent))
        passes[place].stages.append(stage)
        made[stage.array] = place + 1
        if axis is not None and stage.op is None:
            own.add(expr.load(stage.array, stage.position))
    return passes


def _overwrites(writer: Stage, one: Pass) -> bool:
    """Whether a stage may store where stages of a pass read another element.

    Its array may be the memory of any array of its size.
    """
    nbytes = writer.array.size * writer.array.dtype.itemsize
    reads = (load for stage in one.stages for load in stage.loads if load.array.space == "buffer")
    return any(
        load.index != writer.position and load.array.size * load.dtype.itemsize == nbytes
        for load in reads
    )


def _together(
    one: Pass, number: int, stored: frozenset[Array], later: set[Array], target: Target
) -> None:
    """One loop for all stages of a pass; `later`: the arrays that later passes want."""
    assert one.extent is not None
    axis = make_axis("c", number, one.extent)
    here = {_common_axis(one.extent).variable: axis.index}
    values: dict[Expr, Expr] = {}
    sums: list[Stage] = []
    stores: list[Store] = []  # bodies read what was there before, so no store comes between them
    bodies: list[Expr] = []

    for stage in one.stages:
        stage = _over(axis, stage, here)
        if values:
            stage = replace(stage, body=expr.rebuild(stage.body, values.get))
        bodies.append(stage.body)
        if stage.op is not None:
            sums.append(stage)
            continue
        values[expr.load(stage.array, stage.position)] = stage.body
        if stage.array in stored or stage.array in later:
            streaming = stage.array in stored and streams(
                stage.array, one.stages, target, [stage.body], axis.variable
            )
            stores.append(Store(stage.array, stage.position, stage.body, streaming=streaming))
    totals = {
        stage.array: expr.register(f"sum{number + n}", stage.body.dtype)
        for n, stage in enumerate(one.stages)
    }
    also = [stores[0] if len(stores) == 1 else Stores(tuple(stores))] if stores else []
    one.body = naive(sums, totals, totals, (axis,), also)
    one.axes = [(axis, vector_width(target, bodies, axis.extent, bool(sums), axis.variable))]


def _alone(
    one: Pass, stage: Stage, number: int, stored: frozenset[Array], target: Target
) -> None:
    """One stage for one row, with vectors along any of its axes."""
    along = unit_stride_axis((*stage.axes, *stage.reduced), [stage.body], [stage.position])
    reduces = along in stage.reduced
    if along is not None:
        axis = make_axis("c", number, along.extent)
        stage = stage.substitute({along.variable: axis.index})
        kept, reduced = (
            tuple(a for a in axes if a != along) for axes in (stage.axes, stage.reduced)
        )
        kept, reduced = (kept, (*reduced, axis)) if reduces else ((*kept, axis), reduced)
        stage = replace(stage, axes=kept, reduced=reduced)
        width = vector_width(target, [stage.body], axis.extent, reduces, axis.variable)
        few = _sharing_loads(stage, target) if reduces else ()
        if few:
            own = [make_axis(f"t{number}_", n, axis.extent) for n, axis in enumerate(few)]
            at = {old.variable: new.index for old, new in zip(few, own, strict=True)}
            stage = replace(stage.substitute(at), axes=(*kept[: -len(few)], *own))
            one.tiles.append((axis.variable, tuple(new.variable for new in own)))
            width = min(width, target.lanes(stage.body.dtype))
        one.axes.append((axis, width))
    total = expr.register(f"sum{number}", stage.body.dtype)
    body = naive([stage], [stage.array], {stage.array: total})
    streaming = stage.op is None and stage.array in stored and along is not None
    if streaming and streams(stage.array, [stage], target, [stage.body], axis.variable):
        body = [Store(stage.array, stage.position, stage.body, streaming=True)]
    one.body.extend(loops_over(stage.axes, body))


def _sharing_loads(stage: Stage, target: Target) -> tuple[Axis, ...]:
    """The last axes of a stage whose few sums read, in part, the same: places of a window.

    (Nothing else: a tile is summed in another order, and rows of products are the same for all.)
    """
    found: tuple[Axis, ...] = ()
    for axis in reversed(stage.axes):
        known = isinstance(axis.extent, int)
        if not known or numel([one.extent for one in (axis, *found)]) > target.registers - 6:
            break
        found = (axis, *found)
    shared = any(
        overlap(load.index, one, k)
        for load in expr.loads(stage.body) for one in found for k in stage.reduced
    )  # fmt: skip
    return found if shared else ()


# ---- vectors across rows ----


MOST_WRITTEN_OUT = 16  # elements of a row: one for each lane of a vector of 512 bits
# Elements of a column that make it worthwhile: to clear the sums and to store them is a pass each,
# beside one for every element.
LEAST_LENGTH = 8
ENOUGH_BLOCKS = 32  # parallel iterations: a few for each thread
LEAST_COLUMNS = 256  # of a block: 1 KiB of float32, 16 lines that lie together in memory


def row_vectors(kernel: Kernel, target: Target) -> Nest:
    """Neighbours along the last of the axes that make up a row's number, a vector at a time.

    A vector, or a block of sums, ends where the neighbours do, so that no index is divided lane by
    lane; where they are few or all there are, it does not.
    """
    count, length = kernel.rows, _neighbours(kernel)
    bodies = [stage.body for stage in kernel.stages]
    columns = length is not None and _are_columns(kernel, length, target)
    least = target.lanes(kernel.stages[0].array.dtype)
    most = least if _along_rows(kernel) else target.most_lanes
    if length is None or not columns and not high(count) > length >= least:
        width = min(vector_width(target, bodies, count, True), most)
        row = make_axis("r", 0, count)
        s = Schedule(loops_over([row], _vector(kernel, row.index, width)))

        def further(loop: Loop, around: Around) -> tuple[Place, ...]:
            first = {one.variable: 0 for one in loops_in(loop.body)}
            loads = expr.loads(*(expr.substitute_in(e, first) for e in expressions(loop)))
            apart = [load for load in loads if from_memory(load, row, target) > 1]
            return further_along(row, None, apart, target)

        s.prefetch(row.variable, further)
        s.vectorize(row.variable, width, LANE)
        return assemble(kernel, s.nest, target)
    width = size = min(vector_width(target, bodies, length, True), most)
    outer, column = make_axis("p", 0, count // length), make_axis("c", 0, length)
    o, c, at = outer.variable, column.variable, outer.index * length + column.index
    body = _columns(kernel, at) if columns else _vector(kernel, at, width)
    s = Schedule(loops_over([outer, column], body))
    if columns:
        sums = sum(stage.op is not None for stage in kernel.stages)
        size = _block_size(high(count) // length, length, width, target.l1 // 4 // sums)
    block = s.split(c, size, "b")
    if columns:

        def below(loop: Loop, around: Around) -> tuple[Place, ...]:
            *_, last = around
            values = expressions(loop)
            return () if last == block else later_rows(values, last, column, size, target)

        s.sink(c, space="scratch")
        s.prefetch(c, below)
    s.vectorize(c, width, None if columns else LANE)
    s.parallelize(o, block)
    return assemble(kernel, s.nest, target)


def _along_rows(kernel: Kernel) -> bool:
    """Whether something is read along a row, and not across rows: then squares are transposed."""
    made = {stage.array for stage in kernel.stages}
    for stage in kernel.stages:
        inner = (*stage.axes[prefix_length(stage, kernel.rows) :], *stage.reduced)
        read = [load.index for load in stage.loads if load.array not in made]
        if numel([axis.extent for axis in inner]) > MOST_WRITTEN_OUT and any(
            coefficient(index, axis.variable) == 1 for index in read for axis in inner
        ):
            return True
    return False


def _neighbours(kernel: Kernel) -> int | None:
    """How many rows follow each other in every stage: the last of the axes that make up a row's
    number, with those before it that every index walks through as if they were one. None: all of
    them do, and their number varies.
    """
    lengths: list[Integer] = []
    for stage in kernel.stages:
        leading = stage.axes[: prefix_length(stage, kernel.rows)]
        used = indices(stage.exprs(), [stage.position, *stage.guard])
        lengths.append(merge(leading, used)[0][-1].extent)
    if not isinstance(kernel.rows, int) and all(length == kernel.rows for length in lengths):
        return None
    return gcd(*(x if isinstance(x, int) else gcd(*(c for _, c in x.terms)) for x in lengths))


def _vector(kernel: Kernel, row: Integer, width: int) -> list[Statement]:
    """Stage after stage for `width` rows; short ones are written out.

    Then it is known which elements of a row are read.
    """
    lane = LANE.index if width > 1 else 0
    body: list[Statement] = []
    for number, stage in enumerate(kept_inside(kernel, row, width, lane)):
        stage = merge_stage(stage)
        total = expr.register(f"sum{number}", stage.body.dtype)
        nested = loops_over(stage.axes, naive([stage], [stage.array], {stage.array: total}))
        if numel([axis.extent for axis in (*stage.axes, *stage.reduced)]) <= MOST_WRITTEN_OUT:
            nested = map_loops(nested, _unrolled)
        else:
            nested = map_loops(nested, lambda loop, _: _in_squares(loop, width))
        body.extend(nested)
    return body


def _in_squares(loop: Loop, lanes: int) -> Statements | None:
    """An innermost loop whose loads that lie along it, not across rows, are transposed.

    So are stores, if blocks of as many iterations as there are rows are written out.
    """
    if any(isinstance(one, Loop) for one in loop.body):
        return None
    (count,), stores = loop.stops, [one for one in loop.body if isinstance(one, Store)]
    loads = expr.loads(*(one.value for one in stores))
    if not any(coefficient(load.index, loop.variable) == 1 for load in loads):
        loads = []
    stored = any(
        one.array.space == "buffer" and coefficient(one.index, loop.variable) == 1
        for one in stores
    )  # fmt: skip
    if not stored or not isinstance(count, int):
        return (replace(loop, transpose=lanes),) if loads else None
    block = make_axis(f"{loop.variable.name}b", 0, count // lanes)
    parts: list[Loop] = []
    for start, size in ((block.index * lanes, lanes), (block.count * lanes, count % lanes)):
        u = make_axis(f"{loop.variable.name}u", 0, size)
        at = {loop.variable: start + u.index}
        body = tuple(substitute_statement(one, at) for one in loop.body)
        parts.append(Loop(u.variable, 0, (size,), body, "unroll", transpose=lanes))
    whole, rest = parts
    return (Loop(block.variable, 0, (block.extent,), (whole,)), rest)


def _unrolled(loop: Loop, around: Loops) -> Statements | None:
    if not isinstance(loop.stops[0], int):
        return None
    return (replace(loop, kind="unroll", body=map_loops(loop.body, _unrolled)),)


# ---- sums of columns ----


def _are_columns(kernel: Kernel, length: int, target: Target) -> bool:
    """Whether all stages have one element per row, of `length` neighbouring rows, many sums.

    As many columns as a few registers hold have their sums there.
    """
    if length <= 4 * target.lanes(kernel.stages[0].array.dtype):
        return False
    reductions = [stage for stage in kernel.stages if stage.op is not None]
    return (
        any(stage.iterations >= LEAST_LENGTH * stage.size for stage in reductions)
        and all(prefix_length(s, kernel.rows) == len(s.axes) for s in kernel.stages)
    )


def _block_size(outer: int, length: int, width: int, most: int) -> int:
    """Columns of a block: at most `most`, and so few that there are enough blocks to share."""
    size = min(length, max(most, LEAST_COLUMNS))
    while outer * ceildiv(length, size) < ENOUGH_BLOCKS and size >= 2 * LEAST_COLUMNS:
        size //= 2
    return ceildiv(size, width) * width

def _columns(kernel: Kernel, row: Integer) -> list[Statement]:
    """One column: stage after stage, but alike reductions in the same loops."""
    values: dict[Array, Expr] = {
        stage.array: expr.register(f"x{number}", stage.array.dtype)
        for number, stage in enumerate(kernel.stages) if stage.array not in kernel.stored
    }  # fmt: skip

    def known(e: Expr) -> Expr | None:
        if e.op is not Leaf.LOAD or e.array not in values:
            return None
        return expr.guarded(e.guard, values[e.array], expr.const(0, e.dtype))

    stages: list[Stage] = []
    for stage in kernel.stages:
        array = values[stage.array].array if stage.array in values else stage.array
        stage = replace(stage, array=array, body=expr.rebuild(stage.body, known))
        stages.append(merge_stage(fix_rows(stage, kernel.rows, row)))
    inside = {value.array: value for value in values.values()}
    found: list[Statement] = []
    for one in _passes(stages, kernel.stored):
        for group in [one.stages] if one.extent is not None else [[stage] for stage in one.stages]:
            found += naive(group, kernel.stored, inside)
    return found
