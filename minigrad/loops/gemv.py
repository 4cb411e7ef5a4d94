"""The recipe of a matrix times a vector, or a few: every element of the matrix is used once.

Such a product is as fast as its matrix can be read, so the loops follow the matrix in memory:

    by columns   neighbours along the result (n): sums of a block of columns stay in the first-level
                 cache, and a few k of the matrix at a time are added, each read from end to end
    by rows      neighbours along k: row after row of the matrix, with vectors of partial sums for
                 every one of the vectors (see gemv_rows.py)

A sum of several such products counts too, and each may be scaled by something of the matrix: so
does a quantized matrix multiply, whose blocks of integers have a scale and a minimum each.

    parallel over batch × blocks of the result:
      vectors' = vectors                (scratch; where they are computed, not just loaded)
      sums[m, block] = Σ …              (scratch)
      store the block through the epilogue
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import replace

from minigrad.graph.node import Op
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import Atom, Integer, ceildiv, high
from minigrad.loops.assemble import assemble
from minigrad.loops.axes import indices, merge, parallel_axes, vector_width
from minigrad.loops.build import (
    combine,
    flat_loop,
    inline_stages,
    lanes_loop,
    loops_over,
    substitute_stores,
)
from minigrad.loops.cost import flops
from minigrad.loops.gemv_rows import GemvRows, Sum, with_vectors_at_hand
from minigrad.loops.nest import Loop, Nest, Set, Statement, Store, Stores, expressions
from minigrad.loops.prefetch import Place, from_memory
from minigrad.loops.transforms import Around, Schedule, loops_in
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr, Leaf, Local
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, identity
from minigrad.target import ENOUGH_TASKS, HALF_OF_L1, Target

# Vectors of a product; with more, a tile of `gemm` has rows enough to keep the multiply-adds busy.
MOST_VECTORS = 8
LEAST_TERMS = 16  # a shorter sum is one vector of 512 bits
SHORTEST_LINE = 16  # neighbours in memory, below which vectors are better along the result
# Bytes of a row of the matrix that are read at once: four pages; half of one where tasks are few.
LONGEST_RUN, SHORTEST_RUN = 1 << 14, 1 << 11


def gemv(kernel: Kernel, target: Target, name: str) -> Nest | None:
    """The loop nest of a kernel that sums products with a few vectors; None where it is none.

    None too for a device that sees scalars only: it wants many small iterations, not long blocks.
    """
    sums = _sums(kernel) if target.vector_bytes else None
    if sums is None:
        return None
    stores, sums, results = _prepared(kernel, sums)
    first = sums[0]
    column = _neighbours(sums, "n")
    axis = column or first.n[-1]
    if not isinstance(axis.extent, int):
        return None
    along_k = [] if column else [a for one in sums if (a := _neighbours([one], "k"))]
    lines = [column] if column else along_k
    if kernel.kind == "contraction" and all(a.count < SHORTEST_LINE for a in lines):
        return None
    recipe = _by_rows if len(along_k) == len(sums) else _by_columns
    loop = recipe(stores, sums, results, axis, along_k, target)
    return replace(assemble(name, kernel, loop, target), operations=flops(kernel))


def _by_columns(
    stores: list[Store], sums: list[Sum], results: list[Expr], axis: Axis, along: list[Axis],
    target: Target,
) -> Loop:  # fmt: skip
    """sums[m, block] += vector[m, k] · matrix[k, block], several k at a time."""
    first, n = sums[0], axis.variable
    ms, ks = [a.variable for a in first.m], [one.k[-1].variable for one in sums]
    count = numel([a.extent for a in first.m])
    lanes = target.lanes(first.stage.body.dtype)
    wide = 1 if lanes == 1 else lanes * (4 if count == 1 else 2 if count <= 4 else 1)
    together = max(2, min(8, (24 if target.registers >= 32 else 8) // count))
    outer = _outer(first, axis)
    tasks = numel([a.extent for a in outer])
    s = Schedule(_naive(stores, sums, results, [*outer, *first.m, axis]), **{
        name: vector for name, (vector, _) in _computed(sums).items()
    })  # fmt: skip
    block = s.split(n, _columns_of_block(target, first, axis.count, count, tasks), "b")
    s.reorder(*(a.variable for a in outer), block, *ms, n)
    with s.inside(block):
        for name, (vector, one) in _computed(sums).items():
            axes = [a for a in (*first.m, *one.k) if a.variable in vector.variables or a in first.m]
            width = vector_width(target, [vector], axes[-1].extent, False)
            over = [a.variable for a in axes]
            s.stage(name, None, over, [(over, None)], name, {over[-1]: width})
        pieces = [s.split(k, together, "q", computing=True) for k in dict.fromkeys(ks)]
        s.sink(*ms, n, into=pieces, space="scratch")
        s.reorder(n, *ms, computing=True)
        s.prefetch(n, _next_rows(ks, axis, target))
        s.vectorize(n, wide, computing=True)
        s.vectorize(n, lanes)
        for piece, k in zip(pieces, dict.fromkeys(ks), strict=True):
            s.peel(piece, k)
        s.sink(*ms)
        for x in (*dict.fromkeys(ks), *ms):
            s.repeat(x, computing=True)
        s.simplify()
    s.parallelize(*(a.variable for a in outer), block)
    return s.nest


def _naive(
    stores: Sequence[Store], sums: Sequence[Sum], results: Sequence[Expr], axes: Sequence[Axis]
) -> tuple[Statement, ...]:
    """For each result: every sum; the stores."""
    body: list[Statement] = []
    for one, result in zip(sums, results, strict=True):
        body.append(Set(result.local, 0, identity(Op.SUM, result.dtype)))
        body.extend(loops_over(one.k, [Set(result.local, 0, combine(Op.SUM, result, one.body))]))
    return loops_over(axes, [*body, Stores(tuple(stores))])


def _computed(sums: Sequence[Sum]) -> dict[str, tuple[Expr, Sum]]:
    """The vectors that are computed, not just loaded, by the name of their copy."""
    found: dict[Expr, Sum] = {}
    for one in sums:
        for vector in one.vectors:
            if vector.op is not Leaf.LOAD or vector.guard:
                found.setdefault(vector, one)
    return {f"vectors{n}": both for n, both in enumerate(found.items())}


def _next_rows(
    ks: Sequence[Atom], axis: Axis, target: Target
) -> Callable[[Loop, Around], tuple[Place, ...]]:
    """What columns read of the rows of the next piece of k, if this one is in memory."""

    def places(loop: Loop, around: Around) -> tuple[Place, ...]:
        inside = [one for one in loops_in(loop.body) if one.variable in ks]
        reads = expr.loads(*expressions(loop))
        return tuple(
            (load.array, substitute(load.index, {k.variable: k.stops[0] + u}))
            for k in inside for u in range(high(k.stops[0] - k.start))
            for load in reads if from_memory(load, axis, target)
        )  # fmt: skip

    return places


def _by_rows(
    stores: list[Store], sums: list[Sum], results: list[Expr], axis: Axis, along: list[Axis],
    target: Target,
) -> Loop:  # fmt: skip
    """Row after row of the matrix (see gemv_rows.py)."""
    first, outer = sums[0], _outer(sums[0], axis)
    count, tasks = (numel([a.extent for a in axes]) for axes in (first.m, outer))
    lanes = target.lanes(first.stage.body.dtype)
    by_rows = GemvRows(sums, axis, along, target)
    block = by_rows.block(max(ENOUGH_TASKS // tasks, 1))
    blocks = make_axis("b", 0, ceildiv(axis.count, block))
    start = blocks.index * block
    stops: tuple[Integer, ...] = (start + block, axis.extent)
    if axis.count % block == 0:
        stops = stops[:1]
    body: list[Statement] = []
    values: dict[Expr, Expr] = {}
    for number, one in enumerate(sums):
        packed, one = with_vectors_at_hand(one, number, target)
        body.extend(packed)
        made = Array(f"sums{number}", one.stage.body.dtype, count * block, "scratch")
        row = flatten([a.index for a in one.m], [a.extent for a in one.m])
        values[results[number]] = expr.load(made, row * block + axis.index - start)
        body.extend(by_rows.loops(one, number, made, block, start, stops))
    body.append(_epilogue(stores, values, first, axis, start, stops, lanes))
    inner = tuple(body)
    free, within = parallel_axes([*outer, blocks])
    return flat_loop(free, loops_over(within, inner))


def _outer(one: Sum, axis: Axis) -> list[Axis]:
    return [*one.batch, *(a for a in one.n if a != axis)]


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
    axes = [(one.batch, one.m, one.n) for one in sums]
    if not sums or any(other != axes[0] for other in axes):
        return None
    made = {stage.array for stage in kernel.stages}
    for one in sums:  # a sum that needs another's results needs all of them
        if any(load.array in made for load in expr.loads(one.stage.body)):
            return None
    if kernel.rows != first.size and not all(_reads_its_own(s, made) for s in kernel.stages):
        return None
    return sums


def _reads_its_own(stage: Stage, made: Container[Array]) -> bool:
    """Whether a stage reads of others its own element only; within a row it may read any."""
    own = flatten([a.index for a in stage.axes], [a.extent for a in stage.axes])
    return all(
        load.index == own for load in expr.loads(stage.body) if load.array in made
    )


def _sum(stage: Stage) -> Sum | None:
    body = stage.body
    if stage.op is not Op.SUM or not body.dtype.is_float:
        return None
    reduced = {a.variable for a in stage.reduced}
    kept = {a.variable for a in stage.axes}
    if numel([a.extent for a in stage.reduced]) < LEAST_TERMS or not kept <= body.variables:
        return None

    def extent(variables: frozenset[Atom]) -> int:
        return numel([a.extent for a in stage.axes if a.variable in variables])

    largest = max(expr.loads(body), key=lambda load: extent(load.variables), default=None)
    if largest is None:
        return None
    of_matrix = kept & largest.variables
    terms = _terms(body, of_matrix, kept - of_matrix)
    if terms is None:
        return None
    vector_variables = frozenset().union(*(vector.variables for vector, _ in terms))
    matrix_variables = frozenset().union(*(matrix.variables for _, matrix in terms))
    if not (reduced <= vector_variables and reduced <= matrix_variables):
        return None
    m = frozenset(kept - of_matrix)
    n = frozenset(of_matrix - vector_variables)
    count, length = extent(m), extent(n)
    if not n or count > MOST_VECTORS or length < 4 * count or length < LEAST_TERMS:
        return None
    return Sum(
        stage, body, tuple(dict.fromkeys(vector for vector, _ in terms)),
        tuple(a for a in stage.axes if a.variable not in m | n),
        tuple(a for a in stage.axes if a.variable in m),
        tuple(a for a in stage.axes if a.variable in n),
        stage.reduced,
    )  # fmt: skip


def _terms(
    body: Expr, of_matrix: Collection[Atom], m: Collection[Atom]
) -> list[tuple[Expr, Expr]] | None:
    """The vector's and the matrix's part of every product in a sum of them, which may be scaled.

    of_matrix: the kept variables of the matrix's elements; m: the other kept ones, which nothing
    of the matrix may depend on. None for what is no such sum.
    """
    if body.op is Op.CAST:
        return _terms(body.args[0], of_matrix, m)
    if body.op not in (Op.ADD, Op.SUB, Op.MUL):
        return None
    left, right = body.args
    if body.op is not Op.MUL:
        first, second = _terms(left, of_matrix, m), _terms(right, of_matrix, m)
        return None if first is None or second is None else first + second
    for inner, matrix in ((left, right), (right, left)):
        if not matrix.variables.issuperset(of_matrix) or not matrix.variables.isdisjoint(m):
            continue
        if not inner.variables.issuperset(of_matrix):
            return [(inner, matrix)]
        terms = _terms(inner, of_matrix, m)
        if terms is not None:
            return [(vector, expr.apply(Op.MUL, (one, matrix), one.dtype)) for vector, one in terms]
    return None


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
    axes = []
    for part in (sums[0].batch, sums[0].m, sums[0].n):
        merged = merge(part, used)
        axes.append(tuple(axis for axis, _ in merged))
        for _, known in merged:
            values.update(known)
    changed = []
    for one in sums:
        merged = merge(one.k, used)
        own = values | {a: x for _, known in merged for a, x in known.items()}
        vectors = tuple(expr.substitute_in(e, own) for e in one.vectors)
        k = tuple(axis for axis, _ in merged)
        body = expr.substitute_in(one.body, own)
        changed.append(Sum(one.stage, body, vectors, axes[0], axes[1], axes[2], k))
    return substitute_stores(stores, values), changed, results


def _neighbours(sums: Sequence[Sum], name: str) -> Axis | None:
    """The axis of n or k along which the elements of every matrix are neighbours in memory."""
    for axis in reversed(getattr(sums[0], name)):
        strides = [
            coefficient(load.index, axis.variable)
            for one in sums
            for load in one.of_matrix()
        ]
        if 1 in strides and all(stride in (0, 1) for stride in strides):
            return axis  # type: ignore[no-any-return]
    return None


# ---- pieces ----


def _columns_of_block(target: Target, one: Sum, extent: int, count: int, tasks: int) -> int:
    """Columns of a block: long runs of each row, but enough blocks to share."""
    size = max((load.array.dtype.itemsize for load in one.of_matrix()), default=4)
    wanted = ceildiv(extent, max(ENOUGH_TASKS // tasks, 1))
    most = min(LONGEST_RUN // size, HALF_OF_L1 // (count * one.stage.body.dtype.itemsize))
    least = min(SHORTEST_RUN // size, most)
    step = 4 * max(target.lanes(one.stage.body.dtype), 1)
    return ceildiv(min(max(wanted, least), most), step) * step


def _epilogue(
    stores: Sequence[Store], values: dict[Expr, Expr], first: Sum, axis: Axis, start: Integer,
    stops: tuple[Integer, ...], lanes: int,
) -> Statement:  # fmt: skip
    """What follows on the sums, for all elements of the block."""
    items = tuple(
        Store(store.array, store.index, expr.rebuild(store.value, values.get)) for store in stores
    )
    (nested,) = loops_over(
        first.m, [lanes_loop(axis, lanes, (Stores(items),), start, stops)]
    )
    return nested
