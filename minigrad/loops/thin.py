"""The recipe of products with a vector, or with a few: every element of the matrix is used once.

Such a product is as fast as its matrix can be read, so the loops follow the matrix in memory:

    columns   neighbours along the result: sums of a block of columns stay in the first cache, and
              a few rows of the matrix at a time are added to them, each read from end to end
    dots      neighbours along k: row after row of the matrix, with vectors of partial sums for
              every one of the few

    parallel over batch × blocks of the result:
      few' = few                        (scratch; where it is computed, not just loaded)
      sums[block] = Σ …                 (scratch)
      store the block through the epilogue
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minigrad.graph.node import Op
from minigrad.graph.symbolic import (
    Atom,
    Integer,
    add,
    coefficient,
    flatten,
    floordiv,
    high,
    mul,
    numel,
    sub,
)
from minigrad.loops.axes import indices, merge
from minigrad.loops.build import (
    combine,
    flat_loop,
    inline_stages,
    lanes_loop,
    serial_loop,
    substitute_stores,
)
from minigrad.loops.estimate import flops
from minigrad.loops.finish import finish
from minigrad.loops.nest import Fold, Loop, Nest, Set, Statement, Store, Stores
from minigrad.loops.target import Target
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf, Local
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Axis, Stage, identity, index_of, make_axis

FEW = 8  # rows of the other operand that still make it a product with few vectors
LEAST_DEPTH = 16  # a shorter sum is no work to speak of
ENOUGH_TASKS = 16  # parallel iterations that divide well among a few threads
LONGEST_RUN = 1 << 14  # bytes of a row of the matrix that are read at once
SHORTEST_RUN = 1 << 11
BLOCK_BYTES = 1 << 14  # of sums of one block: half of a small first-level cache


@dataclass(frozen=True)
class Sum:
    """Σ over k of few · many, one of a kernel's stages; the axes of `few` that are kept are few."""

    stage: Stage
    few: Expr
    many: Expr
    batch: tuple[Axis, ...]
    thin: tuple[Axis, ...]
    wide: tuple[Axis, ...]
    k: tuple[Axis, ...]


def thin(kernel: Kernel, target: Target, name: str) -> Nest | None:
    """The loop nest of a kernel that sums products with few vectors; None where it is none.

    None too for a device that sees scalars only: it wants many small iterations, not long blocks.
    """
    sums = _sums(kernel) if target.vector_bytes else None
    if sums is None:
        return None
    stores, sums, results = _prepared(kernel, sums)
    first = sums[0]
    lanes = target.lanes(first.stage.body.dtype)
    column = _neighbours(sums, "wide")
    axis = column or first.wide[-1]
    if not isinstance(axis.extent, int):
        return None
    count = numel([a.extent for a in first.thin])
    outer = [*first.batch, *(a for a in first.wide if a != axis)]
    tasks = numel([a.extent for a in outer])
    along_k = None if column else [_neighbours([one], "k") for one in sums]
    if along_k is not None and None not in along_k:
        rows, width = _rows_at_once(target, sums, count)
        block = min(max(axis.extent // max(ENOUGH_TASKS // tasks, 1) // rows, 1), 32) * rows
    else:
        along_k = None
        block = _columns_of_block(target, first, axis.extent, count, tasks)
    blocks = make_axis("b", 0, -(-axis.extent // block))
    start = mul(index_of(blocks.variable), block)
    stops: tuple[Integer, ...] = (add(start, block), axis.extent)
    if axis.extent % block == 0:
        stops = stops[:1]
    body: list[Statement] = []
    values: dict[Expr, Expr] = {}
    for number, one in enumerate(sums):
        packed, one = _with_few_at_hand(one, number, along_k is None)
        body.extend(packed)
        made = Array(f"sums{number}", one.stage.body.dtype, count * block, "scratch")
        at = sub(index_of(axis.variable), start)
        values[results[number]] = _element(made, one.thin, block, at)
        if along_k is not None:
            along = along_k[number]
            assert along is not None
            body.extend(_dots(one, number, made, block, axis, along, start, stops, rows, width))
        else:
            body.extend(_columns(one, number, made, block, axis, start, stops, lanes, target))
    body.append(_epilogue(stores, values, first, axis, start, stops, lanes))
    inner = tuple(body)
    for a in outer:
        if not isinstance(a.extent, int):
            inner = (serial_loop(a, inner),)
    free = [a for a in outer if isinstance(a.extent, int)]
    nest = finish(name, kernel, flat_loop([*free, blocks], inner), target)
    return replace(nest, operations=flops(kernel))


# ---- what qualifies ----


def _sums(kernel: Kernel) -> list[Sum] | None:
    """The sums of a kernel all of whose stages have the same elements."""
    first = kernel.stages[0]
    sums = []
    for stage in kernel.stages:
        if stage.size != first.size or any(not isinstance(a.extent, int) for a in stage.axes):
            return None
        if stage.op is None:
            continue
        one = _sum(stage)
        if one is None or stage.axes != first.axes:
            return None
        sums.append(one)
    groups = [(one.batch, one.thin, one.wide) for one in sums]
    if not sums or any(group != groups[0] for group in groups):
        return None
    made = {stage.array for stage in kernel.stages}
    for one in sums:  # a sum that needs another's results needs all of them
        if any(load.payload[0] in made for load in expr.loads(one.stage.body)):
            return None
    return sums


def _sum(stage: Stage) -> Sum | None:
    if stage.op is not Op.SUM or not stage.body.dtype.is_float:
        return None
    product = stage.body
    if product.op is Op.CAST:
        product = product.args[0]
    if product.op is not Op.MUL or numel([a.extent for a in stage.reduced]) < LEAST_DEPTH:
        return None
    left, right = product.args
    reduced = {a.variable for a in stage.reduced}
    kept = {a.variable for a in stage.axes}
    if not (reduced <= left.variables and reduced <= right.variables):
        return None
    if not kept <= left.variables | right.variables:
        return None

    def extent(one: Expr, other: Expr) -> int:
        only = one.variables - other.variables
        return numel([a.extent for a in stage.axes if a.variable in only])

    few, many = (left, right) if extent(left, right) <= extent(right, left) else (right, left)
    count, length = extent(few, many), extent(many, few)
    if count > FEW or length < 4 * count or length < LEAST_DEPTH:
        return None
    both = few.variables & many.variables
    return Sum(
        stage, few, many,
        tuple(a for a in stage.axes if a.variable in both),
        tuple(a for a in stage.axes if a.variable in few.variables - many.variables),
        tuple(a for a in stage.axes if a.variable in many.variables - few.variables),
        stage.reduced,
    )  # fmt: skip


def _prepared(kernel: Kernel, sums: list[Sum]) -> tuple[list[Store], list[Sum], list[Expr]]:
    """Stores in terms of merged axes, the sums in them, and what stands in stores for each sum."""
    markers, results = {}, []
    for number, one in enumerate(sums):
        result = expr.local(Local(f"sum{number}", one.stage.body.dtype, 1))
        markers[one.stage.array] = replace(one.stage, op=None, reduced=(), body=result)
        results.append(result)
    stages = tuple(markers.get(stage.array, stage) for stage in kernel.stages)
    stores = inline_stages(replace(kernel, stages=stages), sums[0].stage.axes)
    used = indices(
        [*(one.stage.body for one in sums), *(s.value for s in stores)],
        [s.index for s in stores],
    )
    values: dict[Atom, Integer] = {}
    groups = []
    for axes in (sums[0].batch, sums[0].thin, sums[0].wide):
        merged = merge(axes, used)
        groups.append(tuple(axis for axis, _ in merged))
        for _, known in merged:
            values.update(known)
    changed = []
    for one in sums:
        merged = merge(one.k, used)
        own = values | {a: x for _, known in merged for a, x in known.items()}
        few, many = expr.substitute_in(one.few, own), expr.substitute_in(one.many, own)
        k = tuple(axis for axis, _ in merged)
        changed.append(Sum(one.stage, few, many, groups[0], groups[1], groups[2], k))
    return substitute_stores(stores, values), changed, results


def _neighbours(sums: Sequence[Sum], group: str) -> Axis | None:
    """The axis of a group along which the elements of every matrix are neighbours in memory."""
    for axis in reversed(getattr(sums[0], group)):
        strides = [
            coefficient(load.payload[1], axis.variable)
            for one in sums
            for load in expr.loads(one.many)
        ]
        if 1 in strides and all(stride in (0, 1) for stride in strides):
            return axis  # type: ignore[no-any-return]
    return None


# ---- pieces ----


def _rows_at_once(target: Target, sums: Sequence[Sum], count: int) -> tuple[int, int]:
    """Rows of the matrix in `dots`, and lanes: as many sums as registers hold beside operands.

    A matrix in memory is read fastest from end to end, one row after the other; the rows of one
    that lies in a cache share what they load of the few.
    """
    lanes = target.lanes(sums[0].stage.body.dtype)
    most = 16 if target.registers >= 32 else 8
    rows = 1
    matrices = {load.payload[0] for one in sums for load in expr.loads(one.many)}
    if count > 1 and sum(a.size * a.dtype.itemsize for a in matrices) <= 16 * target.l2:
        rows = max(min(most // (2 * count), 4), 1)
    vectors = max(min(most // (rows * count), 8), 1)
    depth = min(max(high(one.k[-1].extent), 1) for one in sums)
    while vectors > 1 and vectors * lanes > min(depth, target.fold_lanes):
        vectors //= 2
    return rows, lanes * (1 << (vectors.bit_length() - 1)) if lanes > 1 else 1


def _columns_of_block(target: Target, one: Sum, extent: int, count: int, tasks: int) -> int:
    """Columns of a block in `columns`: long runs of each row, but enough blocks to share."""
    size = max((load.payload[0].dtype.itemsize for load in expr.loads(one.many)), default=4)
    wanted = -(-extent // max(ENOUGH_TASKS // tasks, 1))
    most = min(LONGEST_RUN // size, BLOCK_BYTES // (count * one.stage.body.dtype.itemsize))
    least = min(SHORTEST_RUN // size, most)
    step = 4 * max(target.lanes(one.stage.body.dtype), 1)
    return -(-min(max(wanted, least), most) // step) * step


def _with_few_at_hand(one: Sum, number: int, scalars: bool) -> tuple[list[Statement], Sum]:
    """The sum with `few` copied to scratch, unless it is loaded as it is needed; and the copying.

    `scalars`: it is read one by one, so its elements need not be neighbours.
    """
    load = one.few
    if load.op is Leaf.LOAD and not load.payload[2]:
        if scalars or coefficient(load.payload[1], one.k[-1].variable) == 1:
            return [], one
    axes = [*one.thin, *one.k]
    extents = [axis.extent for axis in axes]
    array = Array(f"few{number}", one.few.dtype, numel(extents), "scratch")
    place = flatten([index_of(axis.variable) for axis in axes], extents)
    copy: Statement = Store(array, place, one.few)
    for axis in reversed(axes):
        copy = serial_loop(axis, (copy,))
    return [copy], replace(one, few=expr.load(array, place))


def _element(made: Array, thin: Sequence[Axis], block: int, at: Integer) -> Expr:
    """The element of the block's sums at column `at` of the block."""
    row = flatten([index_of(axis.variable) for axis in thin], [axis.extent for axis in thin])
    return expr.load(made, add(mul(row, block), at))


def _points(thin: Sequence[Axis]) -> list[dict[Atom, Integer]]:
    """All index values of the few."""
    points: list[dict[Atom, Integer]] = [{}]
    for axis in thin:
        assert isinstance(axis.extent, int)
        points = [{**p, axis.variable: i} for p in points for i in range(axis.extent)]
    return points


def _product(one: Sum, few: Expr, many: Expr) -> Expr:
    product = expr.apply(Op.MUL, (few, many), few.dtype)
    return expr.apply(Op.CAST, (product,), one.stage.body.dtype)


def _columns(
    one: Sum, number: int, made: Array, block: int, axis: Axis, start: Integer,
    stops: tuple[Integer, ...], lanes: int, target: Target,
) -> list[Statement]:  # fmt: skip
    """sums[t, block] += few[t, k] · many[k, block], several k at a time."""
    points = _points(one.thin)
    count = len(points)
    wide = 1 if lanes == 1 else lanes * (4 if count == 1 else 2 if count <= 4 else 1)
    at = sub(index_of(axis.variable), start)
    places = [add(t * block, at) for t in range(count)]
    registers = [
        Local(f"part{number}_{t}", made.dtype, 1, axis.variable if wide > 1 else None, wide)
        for t in range(count)
    ]
    together = max(2, min(8, (24 if target.registers >= 32 else 8) // count))
    inner = one.k[-1]

    def some(first: Integer, many_at_once: int) -> Loop:
        body: list[Statement] = [
            Set(r, 0, expr.load(made, p)) for r, p in zip(registers, places, strict=True)
        ]
        for u in range(many_at_once):
            here = {inner.variable: add(first, u)}
            many = expr.substitute_in(one.many, here)
            for register, point in zip(registers, points, strict=True):
                few = expr.substitute_in(one.few, here | point)
                new = combine(Op.SUM, expr.local(register), _product(one, few, many))
                body.append(Set(register, 0, new))
        body.extend(Store(made, p, expr.local(r)) for r, p in zip(registers, places, strict=True))
        return lanes_loop(axis, wide, tuple(body), start, stops)

    zero = identity(Op.SUM, made.dtype)
    clear = tuple(Store(made, p, zero) for p in places)
    statements: list[Statement] = [lanes_loop(axis, wide, clear, start, stops)]
    whole = mul(floordiv(inner.extent, together), together)
    steps = []
    if high(whole) > 0:
        k = make_axis("q", 0, inner.extent)
        body = some(index_of(k.variable), together)
        steps.append(Loop(k.variable, 0, (whole,), (body,), step=together))
    if not isinstance(inner.extent, int):
        k = make_axis("q", 1, inner.extent)
        body = some(index_of(k.variable), 1)
        steps.append(Loop(k.variable, whole, (inner.extent,), (body,)))
    elif isinstance(whole, int) and whole < inner.extent:
        steps.append(some(whole, inner.extent - whole))
    nested = tuple(steps)
    for outer in reversed(one.k[:-1]):
        nested = (serial_loop(outer, nested),)
    return [*statements, *nested]


def _dots(
    one: Sum, number: int, made: Array, block: int, axis: Axis, along: Axis, start: Integer,
    stops: tuple[Integer, ...], rows: int, width: int,
) -> list[Statement]:  # fmt: skip
    """sums[t, row] = Σ few[t, k] · many[row, k], vectors along k, several rows at a time."""
    assert isinstance(axis.extent, int)
    rest = axis.extent % rows
    whole = axis.extent - rest
    statements: list[Statement] = []
    row = make_axis("w", number, axis.extent)
    if whole:
        ends = stops if not rest else (stops[0], whole)
        body = _some_dots(one, number, made, block, axis, along, start, row, rows, width)
        statements.append(Loop(row.variable, start, ends, body, step=rows))
    if rest:
        body = _some_dots(one, number, made, block, axis, along, start, row, rest, width)
        ends = (stops[0], axis.extent)
        # the block that holds the rest begins at or before it
        statements.append(Loop(row.variable, whole, ends, body, step=rest))
    return statements


def _some_dots(
    one: Sum, number: int, made: Array, block: int, axis: Axis, along: Axis, start: Integer,
    row: Axis, rows: int, width: int,
) -> tuple[Statement, ...]:  # fmt: skip
    """The sums of `rows` rows."""
    points = _points(one.thin)
    name = f"dot{number}_{rows}"
    clear: list[Statement] = []
    step: list[Statement] = []
    store: list[Statement] = []
    for r in range(rows):
        at = add(index_of(row.variable), r)
        many = expr.substitute_in(one.many, {axis.variable: at})
        for t, point in enumerate(points):
            total = Local(f"{name}_{t}_{r}", made.dtype, 1)
            part = total
            if width > 1:
                part = Local(f"{name}_{t}_{r}_part", made.dtype, 1, along.variable, width)
            product = _product(one, expr.substitute_in(one.few, point), many)
            clear.append(Set(part, 0, identity(Op.SUM, made.dtype)))
            step.append(Set(part, 0, combine(Op.SUM, expr.local(part), product)))
            if width > 1:
                store.append(Fold(total, Op.SUM, part))
            place = add(t * block, sub(at, start))
            store.append(Store(made, place, expr.local(total)))
    nested: Statement = lanes_loop(along, width, tuple(step))
    for outer in reversed([a for a in one.k if a != along]):
        nested = serial_loop(outer, (nested,))
    return (*clear, nested, *store)


def _epilogue(
    stores: Sequence[Store], values: dict[Expr, Expr], first: Sum, axis: Axis, start: Integer,
    stops: tuple[Integer, ...], lanes: int,
) -> Statement:  # fmt: skip
    """What follows on the sums, for all elements of the block."""
    items = tuple(
        Store(store.array, store.index, expr.rebuild(store.value, values.get)) for store in stores
    )
    nested: Statement = lanes_loop(axis, lanes, (Stores(items),), start, stops)
    for outer in reversed(first.thin):
        nested = serial_loop(outer, (nested,))
    return nested
