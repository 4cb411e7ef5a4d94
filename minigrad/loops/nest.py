"""The loop-nest IR: what a kernel does, as loops, stores and registers, for any renderer.

A `Nest` has one parallel loop; the runtime calls it with ranges of that loop's iterations. Inside,
loops are serial, unrolled (the renderer repeats the body), or lanes (all iterations of one vector
at once; what is left over at the end runs under a mask).

On a GPU an iteration of the parallel loop belongs to one work-item, or to one work-group. Then its
whole body is a loop of kind "items", whose iterations run at the same time, one per work-item of
the group. Items share arrays in local memory, and see what others wrote after a `Barrier`. All of
them reach every barrier: no bound of a loop around one depends on the item.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from minigrad.dtype import DType
from minigrad.graph.interned import kept
from minigrad.graph.node import Op
from minigrad.graph.symbolic import Affine, Atom, Integer, ceildiv, high, low
from minigrad.schedule.expr import Array, Expr, Guard

Parts = tuple[tuple[Expr, ...], tuple[Integer, ...], tuple[Array, ...], tuple[Array, ...]]


class Base:
    """The interface of all statements; it excludes nested statements."""

    inside: ClassVar[Statements] = ()

    def parts(self) -> Parts:
        """Values that are stored; indices and bounds; arrays read; arrays written.

        Without those of nested statements, and without arrays that values and indices read.
        """
        return (), (), (), ()


@dataclass(frozen=True)
class Store(Base):
    """array[index] = value where the guard holds.

    Lanes outside a mask keep their value in memory, and in registers that are `folded`. streaming:
    the store should bypass the cache, because nothing reads it soon.
    """

    array: Array
    index: Integer
    value: Expr
    guard: Guard = ()
    streaming: bool = False

    def parts(self) -> Parts:
        """See `Base`."""
        return (self.value,), (self.index, *self.guard), (), (self.array,)


@dataclass(frozen=True)
class Stores(Base):
    """Several stores: all values are computed before the first is written."""

    items: tuple[Store, ...]

    @property
    def inside(self) -> Statements:  # type: ignore[override]
        """Its stores."""
        return self.items


@dataclass(frozen=True)
class Fold(Base):
    """target[0] = the combination by `op` of all lanes of source[slot], both in registers."""

    target: Array
    op: Op
    source: Array
    slot: Integer = 0

    def parts(self) -> Parts:
        """See `Base`."""
        return (), (self.slot,), (self.source,), (self.target,)


@dataclass(frozen=True)
class Prefetch(Base):
    """A hint that array[index] is used soon, and the lines of memory that follow, `lines` in all.

    It has no effect, and any index is allowed. In a vector loop it is that of the first lane.
    """

    array: Array
    index: Integer
    lines: int = 1

    def parts(self) -> Parts:
        """See `Base`."""
        return (), (self.index,), (self.array,), ()


@dataclass(frozen=True)
class Matrix:
    """A matrix in memory: its first element, and the distance of its rows in elements."""

    array: Array
    index: Integer
    pitch: int


@dataclass(frozen=True)
class MatrixProduct(Base):
    """total = left · right, in the matrix registers of a processor that has them (AMX).

    Elements of left and right are words of neighbours along k, of dtypes `of` and `by`: two
    bfloat16, with a total in float32, or four int8 or uint8, with a total in int32 that wraps.
    rows and columns are at most 32; the depth, in words, is the minimum of `depths`: multiples of
    16, or one number below that. If indices depend on the lanes of a vector loop, the first lane
    counts.
    """

    total: Matrix
    left: Matrix
    right: Matrix
    rows: int
    columns: int
    depths: tuple[Integer, ...]
    of: DType
    by: DType

    @property
    def matrices(self) -> tuple[Matrix, Matrix, Matrix]:
        """total, left and right."""
        return self.total, self.left, self.right

    def parts(self) -> Parts:
        """See `Base`."""
        places = tuple(matrix.index for matrix in self.matrices)
        read = self.left.array, self.right.array
        return (), (*places, *self.depths), read, (self.total.array,)


@dataclass(frozen=True)
class Barrier(Base):
    """All work-items of the group wait for each other, and then see what the others wrote."""


@dataclass(frozen=True)
class Loop(Base):
    """for variable in start, start + step, … while it is below every one of `stops`.

    kind: "serial"; "unroll" (start and stop are ints); "lanes" (`step` consecutive iterations at
    once, `lane` being the number 0 … step − 1 of an iteration within its vector); "items" (see
    above; from 0 to a number).
    transpose: of a serial loop inside of a lanes loop: how many iterations may be done at once, by
    vectors along this loop that are transposed in registers, if loads are contiguous along it and
    not along the lanes. 0: none.
    overlaps: of a lanes loop that ends at `step` or later: the last vector is a whole one, too. It
    overlaps the one before, but does not store to buffers what that one has stored. The loop must
    not add to scratch memory.
    """

    variable: Atom
    start: Integer
    stops: tuple[Integer, ...]
    body: Statements
    kind: str = "serial"
    step: int = 1
    lane: Atom | None = None
    transpose: int = 0
    overlaps: bool = False

    def parts(self) -> Parts:
        """See `Base`."""
        return (), (self.start, *self.stops), (), ()

    @property
    def inside(self) -> Statements:  # type: ignore[override]
        """Its body."""
        return self.body

    @kept
    def changes(self) -> frozenset[Array]:
        """`written` of its body, cached."""
        return written(*self.body)

    @property
    def index(self) -> Affine:
        """Its variable as an index."""
        return self.variable.index

    @property
    def trips(self) -> int:
        """Iterations, at most."""
        # where bounds vary, the variable's own range may say more than their difference
        reach = self.variable.high + 1 - low(self.start)
        return max(min(*(high(stop - self.start) for stop in self.stops), reach), 0)

    @property
    def vectors(self) -> int:
        """Vectors of iterations, at most."""
        return ceildiv(self.trips, self.step)

    def holds(self, x: Atom) -> bool:
        """Whether it, or a loop inside of it, is over a variable."""
        return any(one.variable == x for one in loops_in((self,)))

    def around(self, body: Statements) -> Loop:
        """The same loop with another body."""
        return replace(self, body=body)


Statement = Loop | Store | Stores | Fold | Barrier | Prefetch | MatrixProduct
Statements = tuple[Statement, ...]
Loops = tuple[Loop, ...]


@dataclass(frozen=True)
class Nest:
    """A kernel. `parallel`: its outermost loop, over 0 … total − 1, of kind serial or lanes.

    arrays: its buffer arguments, in order; symbols: the symbolic integers, which follow them.
    scratch: byte offsets in the thread's private memory. A runtime may cut the parallel loop at
    multiples of `grain`. operations, vectors (vector instructions of the target, a multiply-add
    being one) and traffic (bytes) are estimates of the whole kernel's work; label is a description.
    local: arrays in the local memory of a work-group. masked: whole vectors and the remainder are
    one loop, under a mask. shares: of each of `arrays` (see shares.py).
    """

    name: str
    parallel: Loop
    arrays: tuple[Array, ...]
    symbols: tuple[str, ...]
    scratch: tuple[tuple[Array, int], ...]
    scratch_bytes: int
    grain: int
    operations: int
    vectors: int
    traffic: int
    label: str
    local: tuple[Array, ...] = ()
    masked: bool = False
    shares: tuple[tuple[int, tuple[str, ...]], ...] = ()

    @property
    def items(self) -> int:
        """Work-items of a group; 0 if an iteration is that of one work-item."""
        loop = self.parallel.body[0]
        return loop.trips if isinstance(loop, Loop) and loop.kind == "items" else 0

    @property
    def buffers(self) -> tuple[Array, ...]:
        """The arrays whose memory the arguments are; two arguments may have the same."""
        return tuple(array.of or array for array in self.arrays)

    @property
    def total(self) -> Integer:
        """Iterations of the parallel loop."""
        (stop,) = self.parallel.stops
        return stop


@dataclass(frozen=True)
class Lowered:
    """The result of a recipe: the parallel loop of a kernel, and estimates of its work.

    operations, vectors: see `Nest`; 0: those of the kernel's stages. products: multiply-adds that
    share their loads with many others, so that reports count no loads. runs: (operations, few,
    many): chunks are long runs of memory; there are at least `few` if the kernel does at most so
    many operations per byte, else at least `many`. 0 of them: chunks as in other kernels.
    """

    loop: Loop
    operations: int = 0
    vectors: float = 0
    products: bool = False
    runs: tuple[int, int, int] = (0, 0, 0)


def whole_vectors(loop: Loop) -> bool:
    """Whether a lanes loop never has a remainder: its start and stops are multiples of its step."""
    return all(divides(x, loop.step) for x in (loop.start, *loop.stops))


def divides(x: Integer, width: int) -> bool:
    """Whether an index is provably a multiple of a width."""
    if isinstance(x, int):
        return x % width == 0
    return x.constant % width == 0 and all(c % width == 0 for _, c in x.terms)


def walk(*statements: Statement) -> list[Statement]:
    """All statements, nested ones too, in order; each comes before those inside of it."""
    return [one for one, _ in walk_with_loops(statements)]


def walk_with_loops(
    body: Sequence[Statement], around: Loops = ()
) -> list[tuple[Statement, Loops]]:
    """As `walk`, with the loops around each statement."""
    found: list[tuple[Statement, Loops]] = []
    for one in body:
        found.append((one, around))
        inner = (*around, one) if isinstance(one, Loop) else around
        if one.inside:
            found += walk_with_loops(one.inside, inner)
    return found


def loops_in(body: Sequence[Statement]) -> list[Loop]:
    """All loops in statements, each before those inside of it."""
    return [statement for statement in walk(*body) if isinstance(statement, Loop)]


def plain_count(loop: Loop) -> int | None:
    """The number of iterations of a serial loop with one stop, if it is known."""
    count = loop.stops[0] - loop.start
    plain = loop.kind == "serial" and len(loop.stops) == 1
    return count if plain and isinstance(count, int) else None


def loop_over(x: Atom, body: Sequence[Statement]) -> Loop:
    """The first loop over a variable."""
    for one in loops_in(body):
        if one.variable == x:
            return one
    raise ValueError(f"there is no loop over {x}")


def unless_same(body: Statements, found: Sequence[Statement]) -> Statements:
    """`found` as a tuple, or `body` itself if nothing has changed."""
    same = len(found) == len(body) and all(map(operator.is_, found, body))
    return body if same else tuple(found)


def map_loops(
    body: Statements, change: Callable[[Loop, Loops], Statements | None], around: Loops = ()
) -> Statements:
    """Statements in which each loop is replaced by `change` of the loop and of those around it.

    If `change` gives None the loop stays, and its body is mapped.
    """
    found: list[Statement] = []
    for one in body:
        new = change(one, around) if isinstance(one, Loop) else (one,)
        if new is not None:
            found.extend(new)
        elif isinstance(one, Loop):
            inner = map_loops(one.body, change, (*around, one))
            found.append(one if inner is one.body else one.around(inner))
    return unless_same(body, found)


def written(*statements: Statement) -> frozenset[Array]:
    """All arrays that statements store to, and all registers that they change."""
    found: set[Array] = set()
    for one in statements:
        if isinstance(one, Loop):
            found |= one.changes
        elif isinstance(one, Stores):
            found.update([item.array for item in one.items])
        else:
            found.update(one.parts()[-1])
    return frozenset(found)


def expressions(statement: Statement) -> list[Expr]:
    """The values of all stores in a statement, nested ones too."""
    return [inner.value for inner in walk(statement) if isinstance(inner, Store)]


def show(nest: Nest) -> str:
    """The nest as indented text."""
    args = ", ".join(f"{a.name}: {a.dtype.name}[{a.size}]" for a in nest.arrays)
    more = "".join(f", {symbol}" for symbol in nest.symbols)
    lines = [f"kernel {nest.name}({args}{more})  # grain {nest.grain}"]
    for array, offset in nest.scratch:
        lines.append(f"  scratch {array.name}: {array.dtype.name}[{array.size}] at {offset}")
    for array in nest.local:
        lines.append(f"  local {array.name}: {array.dtype.name}[{array.size}]")
    loop, *inside = show_statements((nest.parallel,)).split("\n")
    return "\n".join([*lines, f"  parallel {loop.strip()}", *inside])


def show_statements(body: Sequence[Statement]) -> str:
    """Statements as indented text."""
    found = (
        (one, around) for one, around in walk_with_loops(body) if not isinstance(one, Stores)
    )
    return "\n".join(f"{'  ' * (len(around) + 1)}{_line(one)}" for one, around in found)


def _line(one: Statement) -> str:
    if isinstance(one, Loop):
        stop = ", ".join(str(s) for s in one.stops)
        stop = f"min({stop})" if len(one.stops) > 1 else stop
        step = f" step {one.step}" if one.step > 1 else ""
        kind = "" if one.kind == "serial" else f" {one.kind}"
        how = f"  # {one.transpose} at once, transposed" if one.transpose else ""
        how += "  # the last one overlaps" if one.overlaps else ""
        return f"for {one.variable!r} in {one.start} … {stop}{step}{kind}:{how}"
    if isinstance(one, Store):
        test = "".join(f" if {c!r} >= 0" for c in one.guard)
        how = "  # streaming" if one.streaming else ""
        return f"{one.array.name}[{one.index}] = {one.value!r}{test}{how}"
    if isinstance(one, Prefetch):
        more = f"  # {one.lines} lines" if one.lines > 1 else ""
        return f"prefetch {one.array.name}[{one.index}]{more}"
    if isinstance(one, MatrixProduct):
        total, left, right = (f"{m.array.name}[{m.index} …]" for m in one.matrices)
        return f"{total} = {left} · {right}"
    if isinstance(one, Fold):
        slot = f"[{one.slot}]" if one.source.size > 1 else ""
        return f"{one.target} = {one.op.value} of {one.source}{slot}"
    return "barrier"
