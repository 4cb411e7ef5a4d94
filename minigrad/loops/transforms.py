"""Loop nests: naive loops of a kernel, changed by named transformations until they are fast.

    naive loops                          what is to be computed, element by element
    split, reorder, peel, tails          loops in pieces, in another order, without remainders
    instead                              other loops, as for parts (elementwise.py)
    sink                                 a loop moves inside of others; statements beside it get
                                         their own
    vectorize, unroll, repeat            iterations at once, or written out
    tensorize                            sums, by matrix registers
    bind, share                          iterations for the work-items of a group
    count                                a loop from 0, which may move outside of those around it
    stage                                a copy of an operand, in the order in which it is read
    insert, prefetch                     prefetches
    parallelize                          the loop that threads share

A loop is named by its variable and keeps that name: `split` cuts it into pieces, and in each piece
the variable continues where the last one ended, so no index changes. A transformation applies to
all loops over the variable. No step checks dependences: a recipe knows its kernel, and tests
compare the results. MINIGRAD_DEBUG=4 prints the loops after each step, and so does
`python -m minigrad.loops.explain`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import takewhile
from typing import ParamSpec, TypeVar

from minigrad.dtype import DType
from minigrad.errors import CompileError
from minigrad.graph.shapes import flatten, numel, unflatten
from minigrad.graph.substitution import coefficient, substitute, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, ceildiv
from minigrad.loops import build, nest, registers
from minigrad.loops.nest import Loop, Loops, Prefetch, Statement, Statements, Store
from minigrad.loops.prefetch import Place
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.expr import Array, Expr
from minigrad.settings import report
from minigrad.target import LINE

Around = Mapping[Atom, Loop]  # the loops around a statement, by their variables
Change = Callable[[Loop, Around], Statements]
P = ParamSpec("P")
T = TypeVar("T")

class _Watching(threading.local):
    """see: called after each step that this thread makes (`explain.py`)."""

    see: Callable[[str, Statements], None] | None = None


watching = _Watching()


def _step(method: Callable[P, T]) -> Callable[P, T]:
    """Make a method a step of a recipe: the loops are shown after it."""

    @wraps(method)
    def shown(*args: P.args, **named: P.kwargs) -> T:
        loops, *others = args
        assert isinstance(loops, LoopNest)
        before = loops.body
        result = method(*args, **named)
        if loops.body is not before:
            loops._show(method.__name__, others, named)
        return result

    return shown


class LoopNest:
    """The loops of a kernel. operands: expressions in them that have names.

    Loops are over plain ints or symbolic extents; bounds stay expressions.
    """

    def __init__(self, body: Sequence[Statement], **operands: Expr) -> None:
        self.body: Statements = tuple(body)
        self.operands = operands
        self._idle: set[Atom] = set()  # variables of loops with one piece, which nothing uses
        self._outside: Callable[[Statements], Statements] = tuple  # adds what `inside` left out
        self._show("naive loops", (), {})

    # ---- loops ----

    @_step
    def split(self, x: Atom, size: int, prefix: str, computing: bool = False) -> Atom:
        """Split loops over x into pieces of `size` iterations, with a loop over the pieces outside.

        Returns the new loop's variable, named `prefix` and a number. The last piece ends where x
        ends. computing: only loops that use registers, not loops of copies.
        """
        pieces = make_axis(prefix, 0, ceildiv(max(self.trips(x), 1), size))
        loops = (one for one in nest.loops_in(self.body) if one.variable == x)
        whole = pieces.extent == 1 and all(len(one.stops) == 1 for one in loops)
        if whole:
            self._idle.add(pieces.variable)

        def change(loop: Loop, around: Around) -> Statements:
            if whole:
                return (Loop(pieces.variable, 0, (1,), (loop,)),)
            piece, counts = build.in_pieces(loop, pieces, size)
            return (Loop(pieces.variable, 0, counts, (piece,)),)

        self._change(x, change, computing)
        return pieces.variable

    @_step
    def reorder(self, *order: Atom, computing: bool = False) -> None:
        """Reorder loops directly inside one another; order: from outermost to innermost."""

        def change(loop: Loop, around: Around) -> Statements:
            loops = _nested(loop, order)
            found, body = {one.variable: one for one in loops}, loops[-1].body
            for place in range(len(order) - 1, -1, -1):
                one = found[order[place]]
                inside = set(order[place:])
                if any(not inside.isdisjoint(variables(x)) for x in (one.start, *one.stops)):
                    raise ValueError(f"{order}: the bounds of {one.variable} depend on later loops")
                body = (one.around(body),)
            return body

        outermost = next(
            one.variable for one in nest.loops_in(self.body)
            if one.variable in order and (not computing or registers.computes(one))
        )  # fmt: skip
        self._change(outermost, change, computing)

    @_step
    def peel(self, outer: Atom, x: Atom) -> None:
        """Give the last, shorter piece of x loops of its own, so that the others have full length.

        outer: numbers the pieces.
        """

        def change(loop: Loop, around: Around) -> Statements:
            inner = next((one for one in nest.loops_in(loop.body) if one.variable == x), None)
            if inner is None or len(inner.stops) != 2 or not coefficient(inner.start, outer):
                return (loop,)
            size = coefficient(inner.start, outer)
            stop, end = inner.stops
            length = end - substitute(inner.start, {outer: 0})
            assert size is not None and stop - inner.start == size
            whole, rest = length // size, length % size

            def of(count: int, *ends: Integer) -> Statements:
                def fixed(one: Loop, around: Around) -> Statements:
                    return (replace(one, stops=(one.start + count, *ends)),)

                return _each(loop.body, x, fixed)

            pieces = ceildiv(length, size)
            ends = [stop for stop in loop.stops if stop != pieces]
            first = replace(loop, stops=build.least(*ends, whole), body=of(size))
            if not isinstance(rest, int):  # the last piece ends where x ends
                return first, replace(loop, start=whole, body=of(size, end))
            stops = build.least(whole + 1, *ends)
            return first, replace(loop, start=whole, stops=stops, body=of(rest))

        self._change(outer, change)

    @_step
    def instead(
        self, x: Atom, make: Callable[[Loop], Statements], computing: bool = False
    ) -> None:
        """Replace loops over x by what `make` makes of them, as by loops for parts of them."""
        self._change(x, lambda loop, _: make(loop), computing)

    @_step
    def tails(self, x: Atom, sizes: Sequence[int]) -> None:
        """Split a remainder of x of unknown size: into pieces of sizes[0], then of sizes[1], ….

        The last size is 1.
        """

        def change(loop: Loop, around: Around) -> Statements:
            if len(loop.stops) == 1:
                return (loop,)
            assert loop.stops[0] - loop.start == loop.trips  # the other stop is before it
            end, begin = loop.stops[1], loop.start
            found: list[Statement] = []
            for size in sizes:
                count = (end - begin) // size
                piece = make_axis(f"s{size}_", 0, loop.trips // size)
                start = begin + piece.index * size
                inner = replace(loop, start=start, stops=(start + size,))
                found.append(Loop(piece.variable, 0, (count,), (inner,)))
                begin = begin + count * size
            return tuple(found)

        self._change(x, change, computing=True)

    @_step
    def sink(
        self, *xs: Atom, into: Atom | Sequence[Atom] = (), space: str = "registers",
        computing: bool = True,
    ) -> None:  # fmt: skip
        """Move nested loops over xs inside of the loops in their body.

        computing: loops of copies stay where they are. into: move them only into the bodies of the
        loops over these variables, instead of innermost. Statements before and after the inner
        loops get their own loops over xs. A register that is used in several of these becomes one
        for each iteration: in registers, or in scratch memory, where a sum in an inner loop gets a
        register again. The bounds of the inner loops are widened to cover all iterations of xs.
        """
        ends = (into,) if isinstance(into, Atom) else into
        if not xs:
            return

        def change(loop: Loop, around: Around) -> Statements:
            loops = _nested(loop, xs)
            over = {one.variable: one for one in loops}
            body, leaves = loops[-1].body, list[Statements]()

            def seen(leaf: Statements) -> Statements:
                leaves.append(leaf)
                return leaf

            registers.sunk(body, ends, {}, seen)
            wrapped = registers.loops_of_their_own(loops, leaves, space, around)
            return registers.sunk(body, ends, over, wrapped)

        self._change(xs[0], change, computing)

    @_step
    def distribute(self, *xs: Atom) -> None:
        """Repeat nested loops over xs once for each loop in their body.

        Each copy includes the statements before its inner loop; a last copy has those after all of
        them. A register that is used in several copies becomes scratch memory. There the lanes of a
        register with vectors around the loops are next to each other.
        """

        def change(loop: Loop, around: Around) -> Statements:
            loops = _nested(loop, xs)
            groups: list[Statements] = [()]
            for statement in loops[-1].body:
                groups[-1] = (*groups[-1], statement)
                if isinstance(statement, Loop):
                    groups.append(())
            wrapped = registers.loops_of_their_own(loops, groups, "scratch", around)
            return tuple(one for group in groups for one in wrapped(group))

        self._change(xs[0], change, computing=True)

    @_step
    def vectorize(
        self, x: Atom, width: int, lane: Atom | None = None, computing: bool = False,
        overlaps: bool = False,
    ) -> None:  # fmt: skip
        """Run `width` iterations over x at once.

        Registers that each iteration sets before it reads them get lanes. Accumulators get one part
        per lane, and the parts are reduced after the loops. lane: the variable of an iteration's
        number within its vector. overlaps: see `Loop`.
        """
        if width == 1:
            return
        self.body = registers.in_parts(self.body, x, width)

        def change(loop: Loop, around: Around) -> Statements:
            inside = nest.loops_in(loop.body)
            if loop.kind != "serial" or any(one.kind == "lanes" for one in inside):
                return (loop,)
            own = {
                register: replace(register, lanes=x, width=width)
                for register in registers.registers_of(loop.body) if register.lanes is None
            }
            body = tuple(registers.renamed(one, own) for one in loop.body)
            made = replace(loop, kind="lanes", step=width, lane=lane, overlaps=overlaps)
            return (made.around(body),)

        self._change(x, change, computing)

    @_step
    def transpose(self, x: Atom, lanes: int) -> None:
        """Allow `lanes` iterations over x at once, inside of a vector loop (see `Loop`).

        Loops that write registers are left as they are.
        """

        def change(loop: Loop, around: Around) -> Statements:
            stays = any(array.in_registers for array in nest.written(loop))
            return (loop if stays else replace(loop, transpose=lanes),)

        self._change(x, change)

    @_step
    def pipeline(self, row: Atom, host: Atom, size: int, kept: Collection[Array]) -> None:
        """Software pipelining: a row's last loop joins the next row's loop over `host`.

        Rows are divided into blocks of `size` iterations, whose first row has no previous one.
        kept: arrays that the last loop reads and the next iteration writes; they are doubled, for
        even and odd rows.
        """
        (loop,) = self.body
        assert isinstance(loop, Loop) and loop.variable == row
        count, at = loop.stops[0], loop.index

        def twice(place: Array, index: Integer) -> tuple[Array, Integer]:
            if place not in kept:
                return place, index
            return replace(place, size=2 * place.size), index + (at + 1) % 2 * place.size

        *early, last = (build.with_places(one, twice) for one in loop.body)
        shared = nest.loop_over(host, early)
        assert isinstance(last, Loop)
        late = build.substitute_statement(last, {row: at - 1, last.variable: shared.index})
        assert isinstance(late, Loop)
        joined = shared.around((*shared.body, *late.body))
        block = make_axis("b", 0, ceildiv(count, size))
        start = block.index * size
        stops = build.least(start + size, count)
        first = [build.substitute_statement(one, {row: start}) for one in early]
        others = tuple(joined if one is shared else one for one in early)
        body = [
            *first, Loop(row, start + 1, stops, others),
            Loop(row, start + size - 1, stops, (last,)),
        ]  # fmt: skip
        if len(stops) > 1:  # the last block may have fewer iterations
            body.append(Loop(row, count - 1, (count, start + size - 1), (last,)))
        self.body = (Loop(block.variable, 0, (block.extent,), tuple(body)),)

    @_step
    def tensorize(
        self, tile: Atom, x: Atom, ks: Sequence[Atom], left: str, right: str, of: DType, by: DType
    ) -> None:
        """Compute the sums in loops over ks, and over x in these, by products of matrix registers.

        These are the sums that are added to the registers of each iteration over `tile`. Registers
        of x become scratch memory.

        left, right: the operands, copied or in place, with words of dtypes `of` and `by` that are
        neighbours along the last k and along the lanes.
        """
        operands = self.operands[left], self.operands[right]

        def change(loop: Loop, around: Around) -> Statements:
            inside = registers.in_squares(loop.body, around, x, ks, operands, (of, by))
            return (loop.around(inside),)

        self._change(tile, change, computing=True)

    @_step
    def unroll(self, x: Atom, prefix: str, computing: bool = False) -> None:
        """Unroll plain loops over x with a known number of iterations; they count from 0.

        A loop of one iteration disappears.
        """

        def change(loop: Loop, around: Around) -> Statements:
            if nest.plain_count(loop) == 1:
                return _written_out(loop, 1)
            return (_from_zero(loop, prefix, "unroll"),)

        self._change(x, change, computing)

    @_step
    def unroll_by(self, x: Atom, times: int, prefix: str) -> None:
        """Unroll computing loops over x by `times`, if their trip count is a multiple of it.

        So loop overhead and address computations are shared.
        """
        pieces = make_axis(f"{prefix}s", 0, max(self.trips(x) // times, 1))

        def change(loop: Loop, around: Around) -> Statements:
            if loop.kind != "serial" or any((stop - loop.start) % times for stop in loop.stops):
                return (loop,)
            piece, counts = build.in_pieces(loop, pieces, times)
            return (Loop(pieces.variable, 0, counts, (_from_zero(piece, prefix, "unroll"),)),)

        self._change(x, change, computing=True)

    @_step
    def count(self, x: Atom, prefix: str) -> Atom:
        """Make the only loop over x, of a known trip count, count from 0; returns its new variable.

        Then its bounds depend on no other loop, and it may move outside of any loop.
        """
        loop = nest.loop_over(x, self.body)
        new = _from_zero(loop, prefix, "serial")
        at = {x: loop.start + new.index}
        for name, value in self.operands.items():
            self.operands[name] = expr.substitute_in(value, at)
        self._change(x, lambda *_: (new,))
        return new.variable

    @_step
    def repeat(self, *xs: Atom) -> None:
        """Unroll loops over xs, except those of copies, by repeating their statements here.

        Then the values that depend on x can be computed outside of vector loops that they do not
        depend on, once for all iterations of these, and stay in registers.
        """

        def change(loop: Loop, around: Around) -> Statements:
            count = nest.plain_count(loop)
            return (loop,) if count is None else _written_out(loop, count)

        for x in xs:
            self._change(x, change, computing=True)

    @_step
    def simplify(self) -> None:
        """Remove the loops of `split` that have only one piece."""

        def without(loop: Loop, around: Loops) -> Statements | None:
            return nest.map_loops(loop.body, without) if loop.variable in self._idle else None

        self.body = nest.map_loops(self.body, without)

    @_step
    def parallelize(self, *xs: Atom) -> Loop:
        """Merge the outermost nested loops over xs into the one parallel loop.

        A loop of a symbolic extent comes first; further ones stay inside. Without xs, the only loop
        that there is stays the outermost one. Returns the parallel loop. Other loops of one piece
        are removed.
        """
        self._idle.difference_update(xs)
        self.simplify()
        body, axes = self.body, list[Axis]()
        if not xs and len(body) == 1 and isinstance(body[0], Loop):
            return body[0]
        for x in xs:
            (loop,) = body
            assert isinstance(loop, Loop) and loop.variable == x and loop.start == 0
            if len(loop.stops) > 1:
                raise CompileError(f"a parallel loop ends at the least of {loop.stops}")
            axes.append(Axis(x, loop.stops[0]))
            body = loop.body
        # of positions in an array only the first dimension may be symbolic
        symbolic = [axis for axis in axes if not isinstance(axis.extent, int)]
        plain = [axis for axis in axes if isinstance(axis.extent, int)]
        parallel = build.flat_loop([*symbolic[:1], *plain], build.loops_over(symbolic[1:], body))
        self.body = (parallel,)
        return parallel

    # ---- work-items ----

    @_step
    def bind(self, item: Axis, at: Atom, *xs: Atom) -> None:
        """Give an iteration over `at` to a work-group; each of its items runs one iteration of xs.

        Loops over xs are directly inside one another. A register array with one place per iteration
        of theirs becomes one register, since each item has its own registers.
        """

        def own(loop: Loop, around: Around) -> Statements:
            loops = _nested(loop, xs)
            places = unflatten(item.index, [one.trips for one in loops])
            at = dict(zip(xs, places, strict=True))
            body = (registers.of_item(one, xs, item) for one in loops[-1].body)
            return tuple(build.substitute_statement(one, at) for one in body)

        def group(loop: Loop, around: Around) -> Statements:
            return (loop.around((Loop(item.variable, 0, (item.count,), loop.body, "items"),)),)

        if xs:
            self._change(xs[0], own)
        self._change(at, group)

    @_step
    def share(self, place: str, item: Axis, *xs: Atom) -> None:
        """Let the items of a work-group take turns in loops over xs that store to an array.

        The loops are directly inside one another. If all bounds are known they become one loop,
        else the innermost is shared. place: the array's name.
        """

        def change(loop: Loop, around: Around) -> Statements:
            if all(array.name != place for array in nest.written(loop)):
                return (loop,)
            *outer, inner = loops = _nested(loop, xs)
            counts = [nest.plain_count(one) for one in loops]
            if outer and None not in counts:
                extents = [one.trips for one in loops]
                e = make_axis("e", 0, numel(extents))
                places = unflatten(e.index, extents)
                at = {one.variable: one.start + at for one, at in zip(loops, places, strict=True)}
                body = tuple(build.substitute_statement(one, at) for one in inner.body)
                outer, inner = [], Loop(e.variable, 0, (e.extent,), body)
            inner = replace(inner, start=inner.start + item.index, step=item.count)
            for one in reversed(outer):
                inner = one.around((inner,))
            return (inner,)

        self._change(xs[0], change)

    # ---- memory ----

    @_step
    def stage(
        self, operand: str, at: Atom | None, loops: Sequence[Atom],
        layout: Sequence[tuple[Sequence[Atom], int | None]] | None, array: str,
        wide: Mapping[Atom, int] | None = None, transpose: int = 0, flat: int = 1,
        item: Axis | None = None,
    ) -> Array:  # fmt: skip
        """Copy an operand to scratch memory at the start of each iteration over `at`.

        at: None for the start of the whole body. loops: the loops of the copy, outermost first;
        their bounds cover everything inside of `at`. wide: loops that become vectors of that width.
        layout: of the copy, row-major: groups of variables, each with its padded number of elements
        (None: unpadded); None: the order of the loops. transpose: of the innermost loop. item: the
        copy is in local memory, and the work-items share its loops, which become one loop with
        vectors of `flat` elements.
        """
        # the loops of the copy
        value = self.operands[operand]
        found: dict[Atom, Loop] = {}
        for one in nest.loops_in(self.body if at is None else (nest.loop_over(at, self.body),)):
            found.setdefault(one.variable, one)
        inside = {x: loop for x, loop in found.items() if x != at}
        copying: list[Loop] = []
        for x in loops:
            loop = registers.widened(found[x], inside)
            if loop.start != found[x].start:  # it depends on loops inside: the copy has all of x
                found[x] = replace(loop, start=0, stops=(x.high + 1,))
            if wide and wide.get(x, 1) > 1:
                loop = replace(loop, kind="lanes", step=wide[x])
            copying.append(loop)
            if loop.kind == "serial":  # bounds inside of a vector hold for all of its iterations
                inside.pop(x)
        # where an element is in the copy
        layout = layout or [([x], None) for x in loops]
        groups = [[found[x].trips for x in xs] for xs, _ in layout]
        sizes = [padded or numel(own) for (_, padded), own in zip(layout, groups, strict=True)]
        places = [
            flatten([_counted(found[x]) for x in xs], own)
            for (xs, _), own in zip(layout, groups, strict=True)
        ]
        copy = Array(array, value.dtype, numel(sizes), "scratch" if item is None else "local")
        place, guard, values = flatten(places, sizes), tuple[Affine, ...](), dict[Atom, Integer]()
        if item is not None:
            copying, values, guard = build.by_items(copying, flat, item)
        copying[-1] = replace(copying[-1], transpose=transpose)
        body: Statements = (build.substitute_statement(Store(copy, place, value, guard), values),)
        for loop in reversed(copying):
            body = (loop.around(body),)
        # what follows reads the copy
        self.operands[operand] = load = expr.load(copy, place)
        reading = build.Change(lambda e: expr.replace_in(e, {value: load}))

        def behind(inside: Statements) -> Statements:
            return (*body, *map(reading.of, inside))

        if at is None:
            self.body = behind(self.body)
        else:
            self._change(at, lambda one, _: (one.around(behind(one.body)),))
        return copy

    @_step
    def insert(
        self, at: Atom, make: Callable[[Loop, Around], Sequence[Statement]], behind: bool = False
    ) -> None:
        """More statements in each iteration over `at`, after the copies that it begins with.

        behind: behind its loops instead. Only where registers are used inside, not in the loops of
        copies; ValueError where they are in none.
        """
        found = False

        def change(loop: Loop, around: Around) -> Statements:
            nonlocal found
            found = True
            if behind:
                return (loop, *make(loop, around))
            copies = tuple(takewhile(lambda one: not registers.computes(one), loop.body))
            return (loop.around((*copies, *make(loop, around), *loop.body[len(copies) :])),)

        self._change(at, change, computing=True)
        if not found:
            raise ValueError(f"no loop over {at} uses registers; move it into registers first")

    @_step
    def prefetch(self, x: Atom, places: Callable[[Loop, Around], Sequence[Place]]) -> None:
        """Prefetch places at the start of each iteration over x: all lines that a vector covers."""

        def change(loop: Loop, around: Around) -> Statements:
            lanes = [one for one in (*around.values(), loop) if one.kind == "lanes"]
            hints = (Prefetch(*place, _lines(*place, lanes)) for place in places(loop, around))
            return (loop.around((*hints, *loop.body)),)

        self._change(x, change)

    # ---- tools ----

    def trips(self, x: Atom) -> int:
        """Iterations of the first loop over a variable, at most."""
        return nest.loop_over(x, self.body).trips

    @contextmanager
    def inside(self, x: Atom) -> Iterator[None]:
        """Let steps change only what is inside of the first loop over a variable."""
        whole, loop = self.body, nest.loop_over(x, self.body)

        def put_back(inner: Statements) -> Statements:
            return _each(whole, x, lambda one, _: (one.around(inner) if one is loop else one,))

        around = self._outside
        self.body, self._outside = loop.body, lambda inner: around(put_back(inner))
        yield
        self.body, self._outside = put_back(self.body), around

    def whole(self) -> Statements:
        """All loops, also those around the part that steps change now."""
        return self._outside(self.body)

    def _change(self, x: Atom, change: Change, computing: bool = False) -> None:
        def chosen(loop: Loop, around: Around) -> Statements:
            return change(loop, around) if registers.computes(loop) else (loop,)

        self.body = _each(self.body, x, chosen if computing else change)

    def _show(self, name: str, args: Sequence[object], named: Mapping[str, object]) -> None:
        def text() -> str:
            words = [_word(arg) for arg in args]
            words += [f"{key}={_word(arg)}" for key, arg in named.items() if arg]
            return f"{name}({', '.join(words)})" if words else name

        if watching.see is not None:
            watching.see(text(), self.whole())
        report(4, lambda: f"{text()}\n{nest.show_statements(self.whole())}")


def _word(x: object) -> str:
    if isinstance(x, Sequence) and not isinstance(x, str):
        return "(" + ", ".join(map(_word, x)) + ")"
    if callable(x) or isinstance(x, Mapping):
        return "…"
    return f"{x.variable} of {x.extent}" if isinstance(x, Axis) else str(x)


def _lines(array: Array, place: Integer, lanes: Sequence[Loop]) -> int:
    """Lines of memory that the elements of a vector cover."""
    steps = [one.step * max(coefficient(place, one.variable) or 1, 1) for one in lanes]
    return ceildiv(max(steps, default=1) * array.dtype.itemsize, LINE)


def _each(body: Statements, x: Atom, change: Change) -> Statements:
    """Statements with the loops over x changed."""

    def chosen(loop: Loop, around: Loops) -> Statements | None:
        if loop.variable != x:
            return None
        return change(loop, {one.variable: one for one in around})

    return nest.map_loops(body, chosen)


def _from_zero(loop: Loop, prefix: str, kind: str) -> Loop:
    """A plain loop of a known number of iterations, counted from 0; other loops unchanged."""
    count = nest.plain_count(loop)
    if count is None:
        return loop
    u = make_axis(prefix, 0, count)
    at = {loop.variable: loop.start + u.index}
    body = tuple(build.substitute_statement(one, at) for one in loop.body)
    return Loop(u.variable, 0, (count,), body, kind, transpose=loop.transpose)


def _written_out(loop: Loop, count: int) -> Statements:
    """The statements of so many iterations, one after the other."""
    places = ({loop.variable: loop.start + number} for number in range(count))
    return tuple(build.substitute_statement(one, at) for at in places for one in loop.body)


def _counted(loop: Loop) -> Integer:
    """The number of a loop's iteration; within its vector, if the loop is one vector."""
    if loop.lane is not None:
        return loop.lane.index
    return loop.index - loop.start if loop.trips > 1 else 0


def _nested(loop: Loop, xs: Sequence[Atom]) -> list[Loop]:
    """The loops over xs, in any order, each directly inside the one before."""
    loops = [loop]
    while len(loops) < len(xs) and len(loop.body) == 1 and isinstance(loop.body[0], Loop):
        loop = loop.body[0]
        loops.append(loop)
    if {one.variable for one in loops} != set(xs):
        raise ValueError(f"expected loops directly inside one another, got {xs}")
    return loops
