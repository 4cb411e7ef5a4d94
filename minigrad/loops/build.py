"""Building blocks of recipes: loops over axes, stores of inlined stages, reduction steps."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace

from minigrad.graph.operations import STEPS, Op
from minigrad.graph.shapes import iterations, numel, unflatten
from minigrad.graph.substitution import proven_nonnegative, substitute, variables
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high
from minigrad.loops import nest
from minigrad.loops.axes import fix_rows, indices, merge
from minigrad.loops.nest import Loop, Prefetch, Statement, Statements, Store, Stores
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, place_along, places_along
from minigrad.schedule.byte_dots import added_to
from minigrad.schedule.expr import Array, Expr, Guard, Leaf
from minigrad.schedule.stage import Stage, identity
from minigrad.target import Target


def inline_stages(
    stages: Sequence[Stage], stored: Container[Array], axes: Sequence[Axis],
    results: Mapping[Array, Expr] | None = None,
) -> list[Store]:  # fmt: skip
    """The stores of stages that all have the elements of `axes`, in terms of these axes.

    A load of an element of an earlier stage is replaced by its value. results: what stands for the
    stages that are sums.
    """
    place = place_along(axes)
    made: dict[Array, Expr] = {}
    stores: list[Store] = []

    for stage in stages:
        position, guard = stage.position, stage.guard
        body = (results or {}).get(stage.array, stage.body)
        if tuple(stage.axes) != tuple(axes):
            values = places_along(stage.axes, place)
            body = expr.substitute_in(body, values)
            begin = position - stage.place  # of a part of an array (schedule/joins.py)
            if variables(begin).isdisjoint(values):
                position, guard = begin + place, ()
            else:
                position = substitute(position, values)
                guard = expr.restrict((), [substitute(c, values) for c in guard])
        made[stage.array] = body = with_values(body, made)
        if stage.array in stored:
            stores.append(Store(stage.array, position, body, guard))
    return stores


def with_values(e: Expr, values: Mapping[Array, Expr]) -> Expr:
    """An expression with loads of some arrays replaced by known values."""
    return expr.map_loads(e, lambda load: values.get(load.array))


def substitute_stores(stores: Sequence[Store], values: Mapping[Atom, Integer]) -> list[Store]:
    """Stores with loop variables replaced."""
    return list(map(substitution(values).store, stores)) if values else list(stores)


def in_few_axes(
    stages: Sequence[Stage], stored: Container[Array], totals: Sequence[Expr] = (),
    groups: Sequence[tuple[Axis, ...]] = (), known: bool = False,
) -> tuple[list[Store], list[tuple[Axis, ...]], dict[Atom, Integer]]:  # fmt: skip
    """The stores of stages along merged axes; `totals` stand for the stages that are sums.

    groups: axes that are merged with each other only (see `merge`); those of the elements if there
    are none. Also returns the merged axes of each group, and the values of the old variables along
    them.
    """
    sums = [stage for stage in stages if stage.op is not None]
    results = {stage.array: total for stage, total in zip(sums, totals, strict=True)}
    main = sums[0] if sums else max(stages, key=lambda stage: len(stage.axes))
    stores = inline_stages(stages, stored, main.axes, results)
    values = [*(stage.body for stage in sums), *(store.value for store in stores)]
    used = indices(values, [x for store in stores for x in (store.index, *store.guard)])
    merged = [merge(axes, used, known) for axes in groups or [main.axes]]
    places = {x: place for _, places in merged for x, place in places.items()}
    return substitute_stores(stores, places), [axes for axes, _ in merged], places


def lanes_loop(axis: Axis, width: int, body: Statements) -> Loop:
    """A vector loop over an axis (serial if the target has no vectors)."""
    kind = "lanes" if width > 1 else "serial"
    return Loop(axis.variable, 0, (axis.extent,), body, kind, width)


def serial_loop(axis: Axis, body: Statements) -> Loop:
    """A plain loop over an axis."""
    return Loop(axis.variable, 0, (axis.extent,), body)


Bounds = tuple[Integer, Integer]  # of a loop: its first iteration, and the one after its last


def least(*stops: Integer) -> tuple[Integer, ...]:
    """Stops of a loop without those that are never the first to be reached."""
    kept: list[Integer] = []
    for stop in stops:
        if any(proven_nonnegative(stop - other) for other in kept):
            continue
        kept = [other for other in kept if not proven_nonnegative(other - stop)]
        kept.append(stop)
    return tuple(kept)


def in_pieces(loop: Loop, number: Axis, size: int) -> tuple[Loop, tuple[Integer, ...]]:
    """A piece of `size` iterations of a loop, which ends no later than the loop.

    Also returns the stops of the loop over pieces.
    """
    start = loop.start + number.index * size
    counts = [ceildiv(stop - loop.start, size) for stop in loop.stops]
    within = [stop for stop in loop.stops if (stop - loop.start) % size]
    piece = replace(loop, start=start, stops=least(start + size, *within))
    return piece, least(*counts)


def flat_loop(axes: Sequence[Axis], body: Statements) -> Loop:
    """One loop over the product of several axes; the first may have a symbolic extent."""
    if len(axes) != 1:
        row = make_axis("r", 0, iterations([axis.extent for axis in axes]))
        change = substitution(places_along(axes, row.index))
        axes, body = [row], tuple(change.of(one) for one in body)
    return serial_loop(axes[0], body)


MOST_UNROLLED = 32  # iterations of a work-item's copy that are unrolled


def by_items(
    copying: Sequence[Loop], width: int, item: Axis
) -> tuple[list[Loop], dict[Atom, Integer], Guard]:
    """The loops of a copy merged into one, in vectors that work-items take in turn.

    Also returns the variables' values, and a guard: there may be fewer vectors than items.
    """
    extents = [one.trips for one in copying]
    count = numel(extents) // width
    q, y = make_axis("q", 0, ceildiv(count, item.count)), make_axis("y", 0, width)
    number = q.index * item.count + item.index
    places = unflatten(number * width + (y.index if width > 1 else 0), extents)
    values: dict[Atom, Integer] = {}
    for one, place in zip(copying, places, strict=True):
        values[one.variable] = substitute(one.start, values) + place
    kind = "unroll" if q.count <= MOST_UNROLLED else "serial"
    loops = [Loop(q.variable, 0, (q.count,), (), kind), lanes_loop(y, width, ())]
    return loops[: 1 + (width > 1)], values, expr.restrict((), [count - 1 - number])


Move = Callable[[Array, Integer], tuple[Array, Integer]]


class Change:
    """A change of values, indices and places in statements; a loop in several is changed once.

    value, at: functions of expressions and of indices; move: of the array and index of an access.
    """

    def __init__(
        self, value: Callable[[Expr], Expr], at: Callable[[Integer], Integer] = lambda x: x,
        move: Move = lambda place, index: (place, index),
    ) -> None:  # fmt: skip
        self.value, self.at, self.move = value, at, move
        self._loops: dict[int, tuple[Loop, Loop]] = {}  # old and new loops, by identity

    def of(self, one: Statement) -> Statement:
        """A statement changed, with all statements inside of it."""
        at = self.at
        if isinstance(one, Loop):
            if id(one) not in self._loops:
                self._loops[id(one)] = one, self._loop(one)
            return self._loops[id(one)][1]
        if isinstance(one, Store):
            return self.store(one)
        if isinstance(one, Stores):
            return Stores(tuple([self.store(item) for item in one.items]))
        if isinstance(one, nest.Fold):
            source, slot = self.move(one.source, at(one.slot))
            return replace(one, source=source, slot=slot)
        if isinstance(one, Prefetch):
            return replace(one, index=at(one.index))
        if isinstance(one, nest.MatrixProduct):
            total, left, right = (replace(m, index=at(m.index)) for m in one.matrices)
            depths = tuple(map(at, one.depths))
            return replace(one, total=total, left=left, right=right, depths=depths)
        return one

    def store(self, one: Store) -> Store:
        """A Store changed."""
        place, index = self.move(one.array, self.at(one.index))
        guard = expr.restrict((), map(self.at, one.guard))
        return Store(place, index, self.value(one.value), guard, one.streaming)

    def _loop(self, one: Loop) -> Loop:
        body = tuple([self.of(inner) for inner in one.body])
        return replace(
            one, start=self.at(one.start), stops=tuple(map(self.at, one.stops)), body=body
        )


def substitution(values: Mapping[Atom, Integer]) -> Change:
    """The change of loop variables to indices."""
    return Change(lambda e: expr.substitute_in(e, values), lambda x: substitute(x, values))


def substitute_statement(statement: Statement, values: Mapping[Atom, Integer]) -> Statement:
    """A statement with loop variables replaced."""
    return substitution(values).of(statement)


def loops_over(
    axes: Sequence[Axis], body: Sequence[Statement], bounds: Mapping[Atom, Bounds] | None = None
) -> Statements:
    """Plain loops over axes, or over parts of them, the first outermost."""
    for axis in reversed(axes):
        first, stop = (bounds or {}).get(axis.variable, (0, axis.extent))
        body = (Loop(axis.variable, first, least(stop, axis.extent), tuple(body)),)
    return tuple(body)


def put(place: Expr, value: Expr) -> Store:
    """A store to the place that a LOAD reads."""
    return Store(place.array, place.index, value)


def with_loads(e: Expr, move: Move) -> Expr:
    """An expression whose loads are moved to other arrays and indices."""

    def read(load: Expr) -> Expr:
        array, index = move(load.array, load.index)
        if array.in_registers:
            return expr.guarded(load.guard, expr.load(array, index), expr.const(0, load.dtype))
        return expr.load(array, index, load.guard)

    return expr.map_loads(e, read)


def with_places(statement: Statement, move: Move) -> Statement:
    """A statement whose accesses are moved to other arrays and indices."""
    return Change(lambda e: with_loads(e, move), move=move).of(statement)


def kept_inside(
    stages: Sequence[Stage], stored: Container[Array], rows: Integer, row: Integer, width: int = 1,
    lane: Integer = 0, local: int = 0, prefix: str = "x", registers: bool = False,
) -> list[Stage]:  # fmt: skip
    """Stages with their rows fixed; values that are not stored are in scratch memory.

    There `width` rows are side by side, and this row is at `lane`. local: bytes of a work-group's
    local memory, which the smallest values get first. prefix: of the names of the new arrays.
    registers: whether a single value per row is in a register, also one that is stored and read.
    """
    stages = [fix_rows(stage, rows, row) for stage in stages]
    arrays: dict[Array, Array] = {}
    sizes: dict[Array, int] = {}
    read = {array for stage in stages for array in stage.reads}
    for number, stage in sorted(enumerate(stages), key=lambda one: one[1].size):
        sizes[stage.array] = stage.size // high(rows)
        single = registers and sizes[stage.array] == 1
        if stage.array in stored and not (single and stage.array in read):
            continue
        space, dtype = "scratch", stage.array.dtype
        size = max(sizes[stage.array] * width, 1)
        nbytes = size * max(dtype.itemsize, 4)
        if single:
            space, size = "registers", 1
        elif nbytes <= local:
            space, local = "local", local - nbytes
        arrays[stage.array] = Array(f"{prefix}{number}", dtype, size, space)

    def move(array: Array, position: Integer) -> tuple[Array, Integer]:
        place = arrays.get(array, array)
        if place is array or place.in_registers:
            return place, position if place is array else 0
        inner = position - row * sizes[array] if sizes[array] > 1 else 0
        return place, inner * width + lane

    inside: list[Stage] = []
    for stage in stages:
        array, position = move(stage.array, stage.position)
        body = with_loads(stage.body, move)
        inside.append(replace(stage, body=body, array=array, position=position))
        if array is not stage.array and stage.array in stored:
            inside.append(replace(stage, reduced=(), op=None, body=expr.load(array)))
    return inside


def guard_loads(e: Expr, conditions: Sequence[Integer]) -> Expr:
    """An expression whose loads give 0 where a condition fails."""

    def change(load: Expr) -> Expr | None:
        guard = expr.restrict(load.guard, conditions)
        return None if load.in_registers else expr.load(load.array, load.index, guard)

    return expr.map_loads(e, change)


def reduction(op: Op, result: Expr, axes: Sequence[Axis], terms: Sequence[Expr]) -> list[Statement]:
    """Clear a register, and combine it with terms in loops over axes, one by one."""
    steps = [put(result, combine(op, result, term)) for term in terms]
    return [put(result, identity(op, result.dtype)), *loops_over(axes, steps)]


def combine(op: Op, old: Expr, new: Expr) -> Expr:
    """One step of a reduction."""
    if new.op is Leaf.DOT:  # it adds to a number itself
        return added_to(old, new)
    return expr.apply(STEPS[op][-old.dtype.is_bool], (old, new), old.dtype)


def summands(e: Expr) -> list[Expr]:
    """The terms of a sum; added one by one, each of them is one multiply-add."""
    if e.op is not Op.ADD:
        return [e]
    return [term for arg in e.args for term in summands(arg)]


def streams(
    array: Array, stages: Sequence[Stage], target: Target, exprs: Sequence[Expr], along: Atom
) -> bool:
    """Whether stores to an array should bypass the cache, which could not hold it anyway.

    exprs: what is computed for it, in vectors along a variable. Not if the step of a load varies
    (each element is read twice, say): its lanes are known for aligned vectors only, and a streamed
    vector may begin anywhere.
    """
    if not target.l3 or array.usual_bytes < target.l3 // 2:
        return False
    known = None not in expr.strides(along, *exprs)
    return known and all(array not in stage.reads for stage in stages)
