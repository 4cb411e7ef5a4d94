"""The last step of every recipe: arguments, scratch places, grain and estimates of a nest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from minigrad.errors import CompileError
from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import Affine, Atom, Integer, ceildiv, high
from minigrad.loops import cost, nest
from minigrad.loops.axes import indices
from minigrad.loops.levels import in_levels
from minigrad.loops.nest import Loop, MatrixProduct, Nest, Stores
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Leaf, Local
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.show import label
from minigrad.target import LINE, Target

# What makes a chunk worth handing to another thread: some 10 µs, ten times what a launch costs,
# whether computing takes that long (vector operations, at one a cycle) or memory (bytes, at 20
# GB/s).
CHUNK_OPERATIONS = 40_000
CHUNK_BYTES = 192 << 10
MOST_CHUNKS = 64  # eight for each of eight threads, of which one may be late
RUN_BYTES = 1 << 17  # of memory that a chunk reads one after the other (see in_long_runs)
# For each byte, of what takes no longer than to read it: a core does 64 a cycle with vectors of 512
# bits, and reads 4 bytes.
OPERATIONS_A_BYTE = 16


def assemble(
    name: str, kernel: Kernel, loop: Loop, target: Target, operations: int | None = None,
    vectors: float | None = None,
) -> Nest:  # fmt: skip
    """Wrap a parallel loop into a Nest, with long sums in levels.

    operations, vectors (instructions): of the whole kernel, where these are known.
    """
    if kernel.kind != "block_rows":  # whose sums are as long as a block of keys
        loop = in_levels(loop, target)
    found, symbols = _used(loop)
    arrays = [array for array in found if array.space == "buffer"]
    computed = expr.walk(*nest.expressions(loop))
    _check(kernel, loop, computed, arrays)
    places, offset = [], 0
    for array in found:
        if array.space == "scratch":
            places.append((array, offset))
            size = array.size * max(array.dtype.itemsize, 4 if array.dtype.is_float else 1)
            offset += ceildiv(size, LINE) * LINE
    total = high(loop.stops[0])
    traffic = cost.traffic(kernel, arrays)
    if operations is None:
        operations = cost.operations(kernel)
    if vectors is None:
        vectors = cost.vectors(kernel, target, _products_at_once(loop, computed))
    return Nest(
        name, loop, tuple(arrays), tuple(symbols), tuple(places), offset,
        grain_of(loop, total, operations, traffic, target), operations, round(vectors), traffic,
        label(kernel), tuple(array for array in found if array.space == "local"),
    )  # fmt: skip


def _check(
    kernel: Kernel, loop: Loop, computed: Iterable[expr.Expr], arrays: Iterable[Array]
) -> None:
    """CompileError where a recipe forgot a store or a register, which would give wrong values."""
    inner = {stage.array for stage in kernel.stages} - kernel.stored
    registers = {e.local for e in computed if e.op is Leaf.LOCAL}
    changed = nest.written(loop)
    for names, problem in (
        (kernel.stored.difference(changed), "do not store {}: expected a Store of each"),
        (inner & set(arrays), "use {} in memory: expected a register, or an Array in \"scratch\""),
        (registers.difference(changed), "read {} before a Set or a Fold gives it a value"),
    ):
        if names:
            what = problem.format(", ".join(sorted(place.name for place in names)))
            raise CompileError(f"the loops that a recipe made for {label(kernel)!r} {what}")


def _products_at_once(loop: Loop, computed: Iterable[expr.Expr]) -> int:
    """Products that a lane of an instruction adds: of pairs of bfloat16 two, of matrices 16.

    (A product of matrix registers, of 16 × 16 × 32, takes as long as 32 multiply-adds of vectors.)
    """
    if any(isinstance(statement, MatrixProduct) for statement in nest.walk(loop)):
        return 16
    return 2 if any(e.op is Leaf.DOT for e in computed) else 1


def grain_of(loop: Loop, total: int, operations: int, traffic: int, target: Target) -> int:
    """Iterations per chunk: enough work to share, few enough chunks, whole vectors.

    operations, traffic (bytes): of the whole kernel.

    Depends on the kernel only, never on the number of threads: so do the results.
    """
    step = loop.step if loop.kind == "lanes" else 1
    vectors = operations / max(target.vector_bytes // 4, 1)
    worth = max(vectors // CHUNK_OPERATIONS, traffic // CHUNK_BYTES, 1)
    # a power of two, or two threads might share three chunks
    chunks = 1 << (int(min(worth, MOST_CHUNKS)) - 1).bit_length()
    grain = ceildiv(total, chunks)
    return max(ceildiv(grain, step) * step, 1)


def in_long_runs(nest: Nest, operations: int = OPERATIONS_A_BYTE, least: int = 1) -> Nest:
    """The same with chunks that are long enough for the memory, where a kernel is bound by that:
    with at most so many operations for each byte; and at least so many chunks.

    A core that goes on where it was reads faster than one that begins elsewhere. (Two cores of Zen
    5: products with SmolLM2's quantized matrices gain nothing from the second one in chunks of
    34 KB, and take 0.6 of the time in chunks of 144.)
    """
    if nest.operations > operations * nest.traffic:
        return nest
    runs = max(nest.traffic // RUN_BYTES, least)
    return replace(nest, grain=max(nest.grain, ceildiv(high(nest.total), runs)))


def _used(loop: Loop) -> tuple[list[Array], list[str]]:
    """All arrays of a loop, in order of appearance, and the symbols of its indices."""
    found: list[expr.Expr | Array | Local] = []
    places: list[Integer] = []
    bound: set[Atom | None] = set()
    for statement in nest.walk(loop):
        values, own, reads, writes = statement.parts()
        if isinstance(statement, Loop):
            bound.update((statement.variable, statement.lane))
        elif isinstance(statement, Stores):  # all values come before the arrays that they go to
            values = tuple([item.value for item in statement.items])
        found += (*values, *reads, *writes)
        places += own
        for x in own:
            found += expr.values_in(x)
    arrays: dict[Array, None] = {}
    exprs: dict[expr.Expr, None] = {}
    for one in found:
        if isinstance(one, Array):
            arrays[one] = None
        elif isinstance(one, expr.Expr) and one not in exprs:
            exprs[one] = None
            arrays.update([(load.array, None) for load in expr.loads(one)])

    def symbols(x: Integer) -> set[str]:
        names = {atom.name for atom in variables(x) if atom not in bound} - {"never"}
        for atom in variables(x):
            if isinstance(atom.payload, Affine):  # the bound of a variable
                names |= symbols(atom.payload)
        return names

    used = dict.fromkeys(indices([*exprs], places))
    return list(arrays), sorted(set().union(*map(symbols, used)))
