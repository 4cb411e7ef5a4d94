"""The last step of every recipe: loops become a nest, with arguments, scratch, grain and estimates.

Long sums are split into levels: sums of blocks, which are summed in blocks, and so on. A sum that
grows term by term loses digits, because each term is rounded to the last place of the sum, and
equal terms are rounded the same way. (2²⁰ times 0.1 in float32 is wrong by 1 %.) So a loop that
adds more than a few terms to a register, or to scratch memory, is cut into blocks. Each block has
its own register, which is added to the sum when the block ends. The error then grows with the
length of a block times the number of levels, which is the logarithm of the number of terms.

The cut depends on the loops only, so results are bitwise the same with any number of threads.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count

from minigrad.errors import CompileError
from minigrad.graph.node import Op
from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import Affine, Atom, Integer, ceildiv, high
from minigrad.loops import cost, nest
from minigrad.loops.axes import indices
from minigrad.loops.build import combine, in_pieces, lanes_loop, put
from minigrad.loops.nest import Loop, Loops, Nest, Statement, Statements, Store, Stores
from minigrad.loops.registers import renamed
from minigrad.loops.shares import UNKNOWN, share_of
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.show import label
from minigrad.schedule.stage import identity
from minigrad.target import LINE, Target

# Work that makes a chunk worth handing to another thread: some 10 µs, ten times the cost of a
# launch, of computing (vector operations, at one a cycle) or of memory (bytes, at 20 GB/s).
CHUNK_OPERATIONS = 40_000
# The same for a whole kernel, in two chunks: in a captured step the threads are awake, for the
# kernels before and after it. (A prompt's piece of 32 tokens takes 20.8 → 20.2 ms, whose norms and
# quantizing of 10 … 15 µs were one thread's each; a step of 8 requests 8.5 → 8.3; two cores of Zen
# 4.)
SHARED_OPERATIONS = 24_000
CHUNK_BYTES = 192 << 10
MOST_CHUNKS = 64  # eight for each of eight threads; one of these may be late
MOST_SHARING, LEAST_CHUNKS = 16, 3  # iterations that a chunk should keep together; chunks then
RUN_BYTES = 1 << 17  # of memory that a chunk reads contiguously (see in_long_runs)
# Operations per byte that take no longer than reading it: a core does 64 a cycle with vectors of
# 512 bits, and reads 4 bytes.
OPERATIONS_A_BYTE = 16


def assemble(kernel: Kernel, made: nest.Lowered, target: Target) -> Nest:
    """The nest of a recipe's result, with long sums in levels."""
    loop, stages = in_levels(made.loop, target), kernel.stages
    found, symbols = _used(loop)
    arrays = [array for array in found if array.space == "buffer"]
    computed = list(expr.walk(*nest.expressions(loop)))
    _check(kernel, loop, computed, arrays)
    places, offset = [], 0
    for array in found:
        if array.space == "scratch":
            places.append((array, offset))
            size = array.size * max(array.dtype.itemsize, 4 if array.dtype.is_float else 1)
            offset += ceildiv(size, LINE) * LINE
    traffic, operations = cost.traffic(stages, arrays), made.operations or cost.operations(stages)
    vectors = made.vectors or cost.vectors(kernel, target, _products_at_once(loop, computed))
    result = Nest(
        kernel.kind, loop, tuple(arrays), tuple(symbols), tuple(places), offset,
        grain_of(loop, operations, traffic, target, _sharing(loop, computed, target)),
        cost.operations(stages, loads=False) if made.products else operations,
        round(vectors), traffic,
        label(kernel), tuple(array for array in found if array.space == "local"), target.brief,
        tuple(
            share_of(loop, array, symbols) if array.nbytes > target.l2 else UNKNOWN
            for array in arrays
        ),
    )  # fmt: skip
    most, few, many = made.runs
    least = few if operations <= most * traffic else many
    return in_long_runs(result, least) if least else result


def _check(
    kernel: Kernel, loop: Loop, computed: Iterable[expr.Expr], arrays: Iterable[Array]
) -> None:
    """Raise CompileError if a recipe forgot a store or a register: values would be wrong."""
    inner = {stage.array for stage in kernel.stages} - kernel.stored
    registers = {e.array for e in computed if e.in_registers}
    changed = nest.written(loop)
    for names, problem in (
        (kernel.stored.difference(changed), "do not store {}: expected a Store of each"),
        (inner & set(arrays), "use {} in memory: expected a register, or an Array in \"scratch\""),
        (registers.difference(changed), "read {} before a Store or a Fold gives it a value"),
    ):
        if names:
            what = problem.format(", ".join(sorted(place.name for place in names)))
            raise CompileError(f"the loops that a recipe made for {label(kernel)!r} {what}")


def _products_at_once(loop: Loop, computed: Iterable[expr.Expr]) -> int:
    """Products that a lane of an instruction adds: 2 of bfloat16 in DOTs, 16 or 32 of matrices.

    (A product of matrix registers, of 16 × 16 × 16 words, takes as long as 32 multiply-adds of
    vectors.)
    """
    for statement in nest.walk(loop):
        if isinstance(statement, nest.MatrixProduct):
            return 32 // statement.of.itemsize
    return 2 if any(e.op is Leaf.DOT for e in computed) else 1


def _sharing(loop: Loop, computed: Iterable[expr.Expr], target: Target) -> int:
    """How many neighbouring iterations read the same part of a large array; 1: none, or too many.

    If heads of queries share keys and values, a core that computes one of them has what the next
    needs in its cache: attention of 8 requests of 40; 100 tokens 75; 136 → 47; 88 µs (two cores).
    An array is large if the cache no longer holds it when a step reads it again: of one token 24.5;
    58 → 17; 40.
    """
    most = 1
    for e in computed:
        if e.op is Leaf.LOAD and e.array.nbytes > target.l2 // 4:
            terms = e.index.terms if isinstance(e.index, Affine) else ()
            own = [atom for atom, _ in terms if loop.variable in variables(atom.index)]
            if len(own) == 1 and own[0].kind == "div" and own[0].inner == loop.index:
                most = max(most, own[0].divisor)
    return most if most <= MOST_SHARING and most * LEAST_CHUNKS <= high(loop.stops[0]) else 1


def grain_of(
    loop: Loop, operations: int, traffic: int, target: Target, sharing: int = 1
) -> int:
    """Iterations per chunk: enough work to share, few enough chunks, whole vectors.

    operations, traffic (bytes): of the whole kernel. sharing: see `_sharing`; ignored if computing
    takes longer than reading, because equal shares are better then.

    Depends on the kernel only, never on the number of threads: so do the results. If the
    loop's length varies, it may be a small part of the largest: as many chunks as pay are allowed.
    """
    waits = operations <= OPERATIONS_A_BYTE * traffic
    step = loop.step if loop.kind == "lanes" else sharing if waits else 1
    least = 2 if vectors_of(operations, target) >= SHARED_OPERATIONS else 1
    worth = max(chunks_worth(operations, traffic, target), least)
    if isinstance(loop.stops[0], int):
        worth = min(worth, MOST_CHUNKS)
    # a power of two, or two threads might share three chunks
    chunks = 1 << (int(worth) - 1).bit_length()
    grain = ceildiv(high(loop.stops[0]), chunks)
    return max(ceildiv(grain, step) * step, 1)


def chunks_worth(operations: int, traffic: int, target: Target) -> float:
    """The number of chunks for which a kernel has enough work."""
    return max(vectors_of(operations, target) / CHUNK_OPERATIONS, traffic / CHUNK_BYTES)


def vectors_of(operations: int, target: Target) -> float:
    """Vector instructions for so many operations of float32."""
    return operations / max(target.vector_bytes // 4, 1)


def in_long_runs(nest: Nest, least: int) -> Nest:
    """The nest with chunks that are long enough for the memory, but at least about `least` of them.

    A core reads faster where it continues than where it starts. (Two cores of Zen 5: products
    with SmolLM2's quantized matrices gain nothing from the second one in chunks of 34 KB, and take
    0.6 of the time in chunks of 144.) Two threads get equally many chunks, of equal length if there
    is such a number of them.
    """
    runs, total = max(nest.traffic // RUN_BYTES, least), high(nest.total)
    runs = 1 << (runs.bit_length() - 1)
    even = next((n for n in range(runs, runs // 2, -2) if total % n == 0), runs)
    return replace(nest, grain=max(nest.grain, ceildiv(total, even)))


def _used(loop: Loop) -> tuple[list[Array], list[str]]:
    """All arrays of a loop, in order of appearance, and the symbols of its indices."""
    arrays: dict[Array, None] = {}
    values: dict[Expr, None] = {}
    places: list[Integer] = []
    bound = {atom for one in nest.loops_in((loop,)) for atom in (one.variable, one.lane)}
    for statement in nest.walk(loop):
        computed, own, reads, writes = statement.parts()
        if isinstance(statement, Stores):  # all values come before the arrays that they go to
            computed = tuple([item.value for item in statement.items])
        inside = [value for x in own for value in expr.values_in(x)]
        for some, beside in ((computed, (*reads, *writes)), (inside, ())):
            new = [value for value in some if value not in values]
            values |= dict.fromkeys(new)
            arrays |= dict.fromkeys([*(load.array for load in expr.loads(*new)), *beside])
        places += own
    return list(arrays), sorted(_symbols(indices([*values], places), bound))


def _symbols(places: Iterable[Integer], bound: Container[Atom | None]) -> set[str]:
    """The names of variables in indices, and in the bounds of these variables."""
    atoms = set[Atom]().union(*map(variables, dict.fromkeys(places)))
    names = {atom.name for atom in atoms if atom not in bound} - {"never"}
    bounds = [atom.payload for atom in atoms if isinstance(atom.payload, Affine)]
    return names | _symbols(bounds, bound) if bounds else names


# ---- long sums in levels ----


# Terms that are added one after the other. A block costs the clearing of its register and one more
# addition, 3 % of 64 terms; its error grows with its length (see above).
TERMS = 64
TERMS_OF_ARRAY = 128  # in memory, which is read and written once more when a block ends
# If the sums fill all registers, and so go through memory for a block: blocks of 128 make products
# of 256 a quarter slower and of 512 an eighth; blocks of 256 none.
TERMS_OF_TILE = 256
# A dot of two pairs, whose factors have 8 bits, counts as this part of a term: their rounding
# errors exceed those of a float32 sum by far. Blocks of 256 dots took 2 to 5 % of a product.
TERMS_OF_DOT = 0.25
TERMS_OF_GROUP = 512  # on a GPU, where a second set of registers for a tile costs work-items


def in_levels(parallel: Loop, target: Target) -> Loop:
    """The loop of a nest with every long sum in levels."""

    def change(loop: Loop, around: Loops) -> Statements | None:
        # inner loops first: if they add in blocks, this loop adds only blocks, maybe few enough
        body = nest.map_loops(loop.body, change, (*around, loop))
        loop = loop if body is loop.body else loop.around(body)
        long = _long_sums(loop, around, target) if loop.kind in ("serial", "lanes") else {}
        return nest.map_loops(_cut(loop, long, around, target), change, around) if long else (loop,)

    return parallel.around(nest.map_loops(parallel.body, change, (parallel,)))


def most_terms(place: Array, target: Target) -> int:
    """How many terms may be added to a place one after the other."""
    if not place.in_registers:
        return TERMS_OF_ARRAY
    if place.size == 1:
        return TERMS
    return TERMS_OF_TILE if target.group is None else TERMS_OF_GROUP


def _cut(loop: Loop, sums: Mapping[Array, int], around: Loops, target: Target) -> Statements:
    """The loop with its iterations in blocks, whose sums are added in levels."""
    taken = {place.name for place in nest.written(loop)}
    own: dict[Array, Array] = {}
    for place in sums:
        name = f"{place.name}_{loop.variable.name}"
        while name in taken:  # the loop was cut before
            name += "_"
        own[place] = replace(place, name=name)
    inner = loop.around(tuple(renamed(one, own) for one in loop.body))
    size = ceildiv(loop.vectors, max(sums.values()))
    if size == 1:
        clear, end = _ends(inner, own, (*around, loop), target)
        return (loop.around((*clear, *inner.body, *end)),)
    clear, end = _ends(inner, own, around, target)
    # a block that is cut again depends on the outer block's number, so it needs another name
    outside = {atom.name for x in (loop.start, *loop.stops) for atom in variables(x)}
    prefix, span = f"{loop.variable.name}b", size * loop.step
    free = next(n for n in count() if f"{prefix}{n}" not in outside)
    number = make_axis(prefix, free, max(ceildiv(loop.vectors, size), 1))
    block, counts = in_pieces(inner, number, span)
    return (Loop(number.variable, 0, counts, (*clear, block, *end)),)


def _ends(
    loop: Loop, own: Mapping[Array, Array], around: Loops, target: Target
) -> tuple[list[Statement], list[Statement]]:
    """Statements that clear the registers of a block, and that add them to the sums."""
    clear: list[Statement] = []
    end: list[Statement] = []
    lanes = [one.variable for one in around if one.kind == "lanes"]
    for place, part in own.items():
        each = make_axis("u" if place.in_registers else "e", 0, place.size)
        at = 0 if place.in_registers and place.size == 1 else each.index
        total, more = expr.load(place, at), expr.load(part, at)
        first: Statement = put(more, identity(Op.SUM, part.dtype))
        last: Statement = put(total, combine(Op.SUM, total, more))
        if not place.in_registers:
            width = 4 * target.lanes(place.dtype)
            first, last = (lanes_loop(each, width, (one,)) for one in (first, last))
        elif each.count > 1:
            span = 0, (each.count,)
            first, last = (Loop(each.variable, *span, (one,), "unroll") for one in (first, last))
        # (clearing needs no vector loop: what is set outside of one outlives its iterations)
        if place.lanes is not None and place.lanes not in lanes:
            last = Loop(place.lanes, 0, (place.width,), (last,), "lanes", place.width)
        clear.append(first)
        end.append(last)
    return clear, end


# ---- which sums are long ----


def _long_sums(loop: Loop, around: Loops, target: Target) -> dict[Array, int]:
    """The places of floats to which a loop only adds, and too often; with the number of blocks.

    Within a vector loop, only registers: memory is cleared by a vector loop, which cannot be
    nested.
    """
    added: dict[tuple[Array, Integer], float] = defaultdict(float)  # terms to an element
    statements = nest.walk_with_loops((loop,))
    for one, inside in statements:
        if isinstance(one, Store) and (more := _added(one)):
            added[one.array, one.index] += _times(more, variables(one.index), inside)
    alone = all(one.kind != "lanes" for one in around)
    blocks: dict[Array, int] = {}
    for (place, _), terms in added.items():
        number = math.ceil(terms / most_terms(place, target))
        if number > 1 and (alone or place.in_registers):
            blocks[place] = max(number, blocks.get(place, 0))
    if blocks:  # which few loops have
        others = _used_otherwise([one for one, _ in statements])
        blocks = {place: number for place, number in blocks.items() if place not in others}
    return blocks


def _used_otherwise(statements: Iterable[Statement]) -> set[Array]:
    """The places that statements do not only add to."""
    others: set[Array] = set()
    for one in statements:
        if isinstance(one, nest.Prefetch):
            continue
        values, indices, reads, writes = one.parts()
        more = _added(one)
        others.update(reads if more else (*reads, *writes))
        read = expr.loads(*(more or values), *(e for x in indices for e in expr.values_in(x)))
        others.update(load.array for load in read)
    return others


def _times(terms: Sequence[Expr], numbers: frozenset[Atom], inside: Loops) -> float:
    """How many terms loops add to an element; numbers: variables that number elements."""
    count = 1 if len(terms) == 1 else TERMS_OF_DOT
    for loop in reversed(inside):
        if loop.variable in numbers:
            numbers |= variables(loop.start)
        else:
            count *= loop.vectors
    return count


def _added(one: Statement) -> tuple[Expr, ...]:
    """What a statement adds to a register or to scratch memory; () if it does anything else."""
    if not isinstance(one, Store) or one.array.space not in ("registers", "scratch") or one.guard:
        return ()
    own, value = expr.load(one.array, one.index), one.value
    if not value.dtype.is_float:
        return ()
    if value.op is Op.ADD and value.args[0] is own:
        return value.args[1:]
    return value.args[:2] if value.op is Leaf.DOT and value.args[2] is own else ()
