"""The recipe of a matrix times a vector, or a few: every element of the matrix is used once.

Such a product is as fast as its matrix can be read, so the loops follow the matrix in memory:

    by columns   neighbours along the result (n): sums of a block of columns stay in the first-level
                 cache, and a few k of the matrix at a time are added, each read from end to end
    by rows      neighbours along k: row after row of the matrix, with vectors of partial sums for
                 every one of the vectors

Several sums with the same vectors' axes may share a kernel.

    parallel over batch × blocks of the result:
      vectors' = vectors                (scratch; if they are computed, not just loaded)
      sums += vectors' · matrix         (by columns or by rows)
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Atom, ceildiv
from minigrad.loops.axes import vector_width
from minigrad.loops.build import in_few_axes, loops_over, reduction
from minigrad.loops.nest import Loop, Lowered, Statement, Store, Stores, expressions
from minigrad.loops.prefetch import Place, from_memory
from minigrad.loops.transforms import LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, size_of
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import CHAINS, ENOUGH_TASKS, HALF_OF_L1, Target

# Vectors of a product; with more, a tile of `gemm` has enough rows to keep the multiply-adds busy.
# Elements of windows, which overlap, are read several times: with five vectors and more, products
# from a cache are faster than folds of partial sums (16 channels, kernels of 5 × 5: 0.6 of the time
# with five, 0.35 with eight; 32, 64 and 128 channels, 3 × 3: 0.8 … 1.3, 0.45 … 1.0).
MOST_VECTORS, MOST_OF_WINDOWS = 8, 4
LEAST_TERMS = 16  # a shorter sum is one vector of 512 bits
SHORTEST_LINE = 16  # neighbours in memory, below which vectors should run along the result
# Bytes of a row of the matrix that are read at once: four pages, or half of one if tasks are few.
LONGEST_RUN, SHORTEST_RUN = 1 << 14, 1 << 11
MOST_STEPS = 32  # steps, over one or a few rows each, of one parallel iteration
NEAR_BYTES = 1 << 12  # a page: rows within it count as one stream


@dataclass(frozen=True)
class Sum:
    """Σ over k of body, the body of a stage, which multiplies vectors by a matrix.

    vectors: the factors that belong to the vectors. m: axes that number the vectors; n: axes of the
    matrix and of the result; batch: axes of both.
    """

    body: Expr
    vectors: tuple[Expr, ...]
    batch: tuple[Axis, ...]
    m: tuple[Axis, ...]
    n: tuple[Axis, ...]
    k: tuple[Axis, ...]

    @property
    def count(self) -> int:
        """The number of vectors."""
        return size_of(self.m)

    def of_matrix(self) -> list[Expr]:
        """The loads of the matrix."""
        n = {axis.variable for axis in self.n}
        return [load for load in expr.loads(self.body) if not n.isdisjoint(load.variables)]


def gemv(kernel: Kernel, target: Target) -> Lowered | None:
    """The loops of a kernel that sums products with a few vectors, or None.

    None, too, for a device that sees scalars only, which needs many small iterations and not long
    blocks, and if code is to be short.
    """
    prepared = _prepared(kernel) if target.vector_bytes and not target.brief else None
    if prepared is None:
        return None
    stores, sums, totals = prepared
    column = _neighbours(sums, sums[0].n)
    axis = column or sums[0].n[-1]
    along = [] if column else [a for one in sums if (a := _neighbours([one], one.k))]
    lines = [column] if column else along
    if any(not isinstance(a.extent, int) for a in lines):
        return None
    if kernel.kind == "contraction" and all(a.count < SHORTEST_LINE for a in lines):
        return None
    by_rows = len(along) == len(sums)
    if by_rows:
        sums = [
            replace(one, k=(*(k for k in one.k if k != last), last))
            for one, last in zip(sums, along, strict=True)
        ]
    outer = [*sums[0].batch, *(a for a in sums[0].n if a != axis)]
    naive = loops_over([*outer, *sums[0].m, axis], [*_summed(sums, totals), Stores(tuple(stores))])
    copies = _computed(sums)
    s = LoopNest(naive, **{name: value for name, (value, _) in copies.items()})
    tasks = size_of(outer)
    size = (_rows if by_rows else _columns)(sums, axis, tasks, target)
    block = s.split(axis.variable, size, "b")
    xs = [*(a.variable for a in outer), block]
    s.reorder(*xs, *(a.variable for a in sums[0].m), axis.variable)
    with s.inside(block):
        for copy, (value, axes) in copies.items():
            width = vector_width(target, [value], axes[-1].extent, False)
            over = [a.variable for a in axes]
            s.stage(copy, None, over, None, copy, {over[-1]: width})
        (_add_rows if by_rows else _add_columns)(s, sums, axis.variable, target)
    return Lowered(s.parallelize(*xs), products=True)


def _summed(sums: Sequence[Sum], totals: Sequence[Expr]) -> list[Statement]:
    """The sums, one after the other."""
    pairs = zip(sums, totals, strict=True)
    return [step for one, total in pairs for step in reduction(Op.SUM, total, one.k, [one.body])]


def _along(axes: Sequence[Axis], e: Expr) -> int:
    """The size of an expression along those of some axes on which it depends."""
    return size_of(axis for axis in axes if axis.variable in e.variables)


def _bytes(e: Expr, axes: Sequence[Axis]) -> int:
    return e.dtype.itemsize * _along(axes, e)


def _computed(sums: Sequence[Sum]) -> dict[str, tuple[Expr, list[Axis]]]:
    """The vectors that are not just loaded element after element, by name, with their axes."""
    found: dict[Expr, list[Axis]] = {}
    for one in sums:
        for vector in one.vectors:
            ks = [a for a in one.k if a.variable in vector.variables]
            loaded = vector.op is Leaf.LOAD and not vector.guard
            if ks and not (loaded and coefficient(vector.index, ks[-1].variable) == 1):
                found.setdefault(vector, [*one.m, *ks])
    return {f"vectors{n}": both for n, both in enumerate(found.items())}


# ---- by columns: sums[m, block] += vector[m, k] · matrix[k, block], several k at a time ----


def _columns(sums: Sequence[Sum], axis: Axis, tasks: int, target: Target) -> int:
    """Columns of a block: long runs of each row, but enough blocks to share."""
    dtype = sums[0].body.dtype
    size = max(load.array.dtype.itemsize for load in sums[0].of_matrix())
    wanted = ceildiv(axis.count, max(ENOUGH_TASKS // tasks, 1))
    most = min(LONGEST_RUN // size, HALF_OF_L1 // (sums[0].count * dtype.itemsize))
    step = 4 * target.lanes(dtype)
    return ceildiv(min(max(wanted, SHORTEST_RUN // size), most), step) * step


def _add_columns(s: LoopNest, sums: Sequence[Sum], n: Atom, target: Target) -> None:
    """Transform the loops of a block."""
    count, lanes = sums[0].count, target.lanes(sums[0].body.dtype)
    few = 4 if count == 1 else 2 if count <= 4 else 1
    together = max(2, min(8, (24 if target.registers >= 32 else 8) // count))
    ms, ks = _variables(sums)
    pieces = [s.split(k, together, "q", computing=True) for k in ks]
    s.sink(*ms, n, into=pieces, space="scratch")
    s.reorder(n, *ms, computing=True)
    s.vectorize(n, lanes * few, computing=True)
    s.vectorize(n, lanes)
    for piece, k in zip(pieces, ks, strict=True):
        s.peel(piece, k)
    s.sink(*ms)
    s.repeat(*ks, *ms)


# ---- by rows: vectors of partial sums along each row of the matrix, for every vector ----


def _at_once(sums: Sequence[Sum], target: Target) -> tuple[int, int]:
    """The number of rows that share loads of the vectors, and elements of a row added at once.

    A matrix in memory is read fastest from end to end, one row after the other; short rows, and
    rows of a matrix in a cache, are taken several at a time.
    """
    count, lanes = sums[0].count, target.lanes(sums[0].body.dtype)
    most = 16 if target.registers >= 32 else 8
    matrices = {load.array for one in sums for load in one.of_matrix()}
    cached = sum(array.nbytes for array in matrices) <= 16 * target.l2
    row_bytes = max(sum(_bytes(load, one.k) for load in one.of_matrix()) for one in sums)
    rows = 1
    if count > 1 and cached or CHAINS * row_bytes <= NEAR_BYTES:
        rows = max(min(most // (2 * count), CHAINS), 1)
    depth = min(one.k[-1].most for one in sums)
    vectors = min(most // (rows * count), 8)
    while vectors > 1 and vectors * lanes > depth:
        vectors //= 2
    return rows, lanes * (1 << (vectors.bit_length() - 1))


def _rows(sums: Sequence[Sum], axis: Axis, tasks: int, target: Target) -> int:
    """Rows of one parallel iteration."""
    rows, _ = _at_once(sums, target)
    steps = min(axis.count // max(ENOUGH_TASKS // tasks, 1) // rows, MOST_STEPS)
    return rows * max(steps, 1)


def _add_rows(s: LoopNest, sums: Sequence[Sum], n: Atom, target: Target) -> None:
    """Transform the loops of a block."""
    rows, width = _at_once(sums, target)
    ms, ks = _variables(sums)
    s.distribute(*ms, n)
    some = s.split(n, rows, "w", computing=True)
    s.reorder(some, n, *ms, computing=True)
    s.peel(some, n)
    for k in ks:
        s.vectorize(k, width, computing=True)
    s.sink(n, *ms, into=ks)
    s.repeat(n, *ms)
    s.vectorize(n, target.lanes(sums[0].body.dtype))
    if target.rows_ahead:
        following = _following(sums, n, target)
        for k in ks:
            s.prefetch(k, lambda loop, _: _later(loop, following, target.rows_ahead))


def _following(sums: Sequence[Sum], n: Atom, target: Target) -> set[Array]:
    """Large matrices whose rows are contiguous, one after the other."""
    return {
        load.array for one in sums for load in one.of_matrix()
        if from_memory(load, one.k[-1], target.l2) == 1
        and coefficient(load.index, n) == _along(one.k, load)
    }  # fmt: skip


def _later(loop: Loop, arrays: Container[Array], ahead: int) -> tuple[Place, ...]:
    """The loads of some arrays, so many bytes ahead."""
    loads = [e for e in expr.loads(*expressions(loop)) if e.array in arrays]
    return tuple((e.array, e.index + ahead // e.array.dtype.itemsize) for e in loads)


def _variables(sums: Sequence[Sum]) -> tuple[list[Atom], list[Atom]]:
    """The variables that number vectors, and those of the innermost loops over terms."""
    ks = dict.fromkeys(one.k[-1].variable for one in sums)
    return [axis.variable for axis in sums[0].m], list(ks)


# ---- what qualifies ----


def _prepared(kernel: Kernel) -> tuple[list[Store], list[Sum], list[Expr]] | None:
    """Stores and sums along merged axes, and the registers that stand for the sums in the stores.

    None unless all stages have the same elements, and the sums are such products.
    """
    first, stages = kernel.stages[0], [one for one in kernel.stages if one.op is not None]
    for stage in kernel.stages:
        if stage.size != first.size or any(not isinstance(a.extent, int) for a in stage.axes):
            return None
    sums = [one for stage in stages if stage.axes == first.axes and (one := _sum(stage))]
    if len(sums) < len(stages) or len({(one.batch, one.m, one.n) for one in sums}) != 1:
        return None
    made = {stage.array for stage in kernel.stages}
    if any(load.array in made for stage in stages for load in expr.loads(stage.body)):
        return None  # a sum that needs another's results needs all of them
    if kernel.rows != first.size and not all(_reads_its_own(s, made) for s in kernel.stages):
        return None
    totals = [expr.register(f"sum{n}", one.body.dtype) for n, one in enumerate(sums)]
    groups = sums[0].batch, sums[0].m, sums[0].n, *(one.k for one in sums)
    stores, (batch, m, n, *ks), places = in_few_axes(kernel.stages, kernel.stored, totals, groups)
    moved = [
        Sum(expr.substitute_in(one.body, places),
            tuple(expr.substitute_in(e, places) for e in one.vectors), batch, m, n, k)
        for one, k in zip(sums, ks, strict=True)
    ]  # fmt: skip
    return stores, moved, totals


def _reads_its_own(stage: Stage, made: Container[Array]) -> bool:
    """Whether a stage reads only its own element of others; within a row it may read any."""
    return all(load.index == stage.place for load in expr.loads(stage.body) if load.array in made)


def _sum(stage: Stage) -> Sum | None:
    """A stage as such a sum, or None; the matrix is the largest of its loads."""
    body, kept = stage.body, {a.variable for a in stage.axes}
    loads = expr.loads(body)
    if stage.op is not Op.SUM or not body.dtype.is_float or not loads:
        return None
    if size_of(stage.reduced) < LEAST_TERMS or not kept <= body.variables:
        return None
    matrix = max(loads, key=lambda load: _along(stage.axes, load))
    of_matrix = kept & matrix.variables
    factors = _factors(body, of_matrix)
    vectors = tuple(dict.fromkeys(e for e in factors if not of_matrix <= e.variables))
    by_vectors = frozenset().union(*(e.variables for e in vectors))
    by_matrix = frozenset().union(*(e.variables for e in factors if e not in vectors))
    if not {a.variable for a in stage.reduced} <= by_vectors & by_matrix:
        return None
    m = tuple(a for a in stage.axes if a.variable not in of_matrix)
    n = tuple(a for a in stage.axes if a.variable in of_matrix - by_vectors)
    count, length = (size_of(axes) for axes in (m, n))
    windows = _along([*stage.axes, *stage.reduced], matrix) > matrix.array.size
    if count > (MOST_OF_WINDOWS if windows else MOST_VECTORS):
        return None
    if length < 4 * count or length < LEAST_TERMS:
        return None
    if any(a.variable in by_matrix for a in m):
        return None
    batch = tuple(a for a in stage.axes if a not in m and a not in n)
    return Sum(body, vectors, batch, m, n, stage.reduced)


def _factors(e: Expr, of_matrix: set[Atom]) -> list[Expr]:
    """The factors of sums of products; those of the matrix vary with all its kept variables."""
    inner = e.args[0] if e.op is Op.CAST else e
    if inner.op not in (Op.ADD, Op.SUB, Op.MUL) or not of_matrix <= e.variables:
        return [e]
    return [factor for arg in inner.args for factor in _factors(arg, of_matrix)]


def _neighbours(sums: Sequence[Sum], axes: Sequence[Axis]) -> Axis | None:
    """The axis along which the elements of every matrix are adjacent in memory, or None."""
    for axis in reversed(axes):
        strides = [
            coefficient(load.index, axis.variable) for one in sums for load in one.of_matrix()
        ]
        if 1 in strides and all(stride in (0, 1) for stride in strides):
            return axis
    return None
