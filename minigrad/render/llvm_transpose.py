"""Loads and stores along a loop instead of along the lanes: vectors along the loop, transposed.

A gather reads one element from as many cache lines as there are lanes, in every iteration. Instead,
a block of iterations loads one vector per lane, and shuffles exchange rows and columns in
registers: 16 × 8 elements take 16 loads and 24 shuffles, where 8 gathers take some fifty cycles
more. Stores are delayed to the last iteration of a block, and are shuffled then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from minigrad.dtype import DType, dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient, is_dense, substitute
from minigrad.graph.symbolic import Atom, Integer
from minigrad.loops.build import substitute_statement
from minigrad.loops.nest import Loop, Store, Stores, divides, expressions, loops_in, plain_count
from minigrad.render.indices import Lanes
from minigrad.render.llvm_index import is_number
from minigrad.render.llvm_memory import MOST_VECTORS, MemoryEmitter
from minigrad.render.llvm_values import (
    Builder,
    Value,
    broadcast,
    cast,
    fenced,
    join,
    shuffled,
)
from minigrad.schedule import expr
from minigrad.schedule.expr import Expr, Leaf
from minigrad.schedule.layout import is_near

SEGMENT = 16  # bytes inside of which a processor interleaves two vectors in one instruction
HALF = 32  # bytes of half a vector
LEAST_ROWS = 4  # iterations of a block


def across(emitter: MemoryEmitter, loop: Loop) -> tuple[list[Expr], list[Store]]:
    """The loads and stores of a loop that are contiguous along it, not along the lanes in scope.

    Also the words of 32 bits that are.
    """
    inside = [one for one in loop.body if not isinstance(one, Store | Stores)]
    if not loop.transpose or not all(isinstance(s, Loop) and s.kind == "unroll" for s in inside):
        return [], []
    if emitter.width() < LEAST_ROWS:
        return [], []
    return _loads_across(emitter, loop), _stores_across(emitter, loop)


def _stores_across(emitter: MemoryEmitter, loop: Loop) -> list[Store]:
    """Only in loops whose block lengths are known: of a known number, or of whole blocks."""
    items = [one for s in loop.body for one in (s.items if isinstance(s, Stores) else (s,))]
    read = {load.array for load in expr.loads(*expressions(loop))}
    known = plain_count(loop) is not None
    return [
        one for one in items
        if (loop.kind == "unroll" or known or _in_whole_blocks(emitter, loop))
        and isinstance(one, Store)
        and not one.guard
        and one.array not in read
        and emitter.lane_stride(one.index) not in (None, 0, 1)
        and is_near(coefficient(one.index, loop.variable))
        and not expr.values_in(one.index)
    ]  # fmt: skip


def _loads_across(emitter: MemoryEmitter, loop: Loop) -> list[Expr]:
    changed, found = loop.changes, []
    inner = {one.variable for one in loops_in(loop.body)}
    length, known = min(loop.transpose, emitter.width()), plain_count(loop) is not None
    for e in expr.walk(*expressions(loop)):
        load = _first_of(e)
        if load is None:
            continue
        array, index, guard = load.array, load.index, load.guard
        step = len(e.args) if e.op is Leaf.WORD else 1
        if (
            array not in changed
            and inner.isdisjoint(load.variables)
            and emitter.lane_stride(index) not in (0, step)
            and (emitter.lane_stride(index) is not None or not _lies_near(emitter, index))
            and (coefficient(index, loop.variable) == step
                 or step == 1 and loop.start == 0 and known
                 and is_dense(index, loop.variable, length))
            and not any(expr.values_in(x) for x in (index, *guard))
        ):
            found.append(e)
    return found


def _lies_near(emitter: MemoryEmitter, index: Integer) -> bool:
    """Whether all lanes read few vectors of memory, from which their elements are picked."""
    places = emitter.places(index)
    return bool(places) and max(places) - min(places) < MOST_VECTORS * emitter.width()


def _first_of(e: Expr) -> Expr | None:
    """A load, or the first load of the neighbours that make a word; else None."""
    if e.op is Leaf.WORD:
        parts = [arg.args[0] if arg.op is Op.CAST else arg for arg in e.args]
        return parts[0] if expr.adjacent(parts) else None
    return e if e.op is Leaf.LOAD else None


def emit_transposed(
    emitter: MemoryEmitter, loop: Loop, loads: list[Expr], stores: list[Store], start: str,
    stop: str,
) -> None:  # fmt: skip
    """Emit a loop block by block; the last block may be partial."""
    length = min(loop.transpose, emitter.width())
    if loop.kind == "serial" and length < emitter.width() and emitter.mask() is None:
        _in_squares(emitter, loop, length)
        return
    known = plain_count(loop)
    if loop.kind == "unroll" or is_number(start) and known is not None and known < 2 * length:
        for number in range(int(start), int(stop), length):
            some = min(length, int(stop) - number)
            with emitter.straight(loop.changes):
                _block(emitter, loop, loads, str(number), str(some), _short(some), stores)
        return
    iterations = emitter.minus(stop, start) if known is None else str(known)
    most = emitter.maximum(iterations, "0")
    count = "0"
    if not _in_whole_blocks(emitter, loop):
        count = emitter.computed("and", int.__and__, most, str(length - 1))
    whole = emitter.minus(stop, count) if count != "0" else stop
    if most != count:
        check = not is_number(most)
        with emitter.iterations(start, whole, length, check, loop.changes) as first:
            _block(emitter, loop, loads, first, str(length), length, stores)
    if count != "0":
        length = _short(int(count)) if is_number(count) else length
        with emitter.where_above(count, 0, loop.changes):
            _block(emitter, loop, loads, whole, count, length, stores)


def _in_whole_blocks(emitter: MemoryEmitter, loop: Loop) -> bool:
    length = min(loop.transpose, emitter.width())
    return all(divides(stop - loop.start, length) for stop in loop.stops)


def _in_squares(emitter: MemoryEmitter, loop: Loop, length: int) -> None:
    """Emit a loop for `length` of the lanes in scope at a time, inside of a loop over these parts.

    So there is code for one square, not for as many as there are side by side.
    """
    lanes = emitter.vectors
    with emitter.iterations("0", str(emitter.width()), length, False, loop.changes) as begin:
        square, places = dict[Atom, Lanes](), dict[Atom, Integer]()
        for atom, whole in lanes.items():
            some = Atom("var", f"{atom.name}.some", atom.low, atom.high)
            base = emitter.line(f"add i64 {emitter.scalar(whole.base)}, {begin}")
            place = emitter.bind(f"{some.name}.base", some.low, some.high, base)
            square[some] = Lanes(place, length)
            emitter.bound(some)
            places[atom] = some.index
        emitter.vectors = square
        emitter.statement(substitute_statement(loop, places))
    emitter.vectors = lanes


def _short(count: int) -> int:
    """The length of vectors that hold so many iterations."""
    return max(1 << (count - 1).bit_length(), LEAST_ROWS)


def _block(
    emitter: MemoryEmitter, loop: Loop, loads: list[Expr], first: str, count: str, length: int,
    stores: Sequence[Store] = (),
) -> None:  # fmt: skip
    """`count` iterations from `first` on; vectors of `length` of them are loaded and stored."""
    mask = "" if count == str(length) else emitter.first_lanes(count, length)
    variable = loop.variable
    block = emitter.bind(variable.name + ".first", variable.low, variable.high, first)
    whole = Atom("var", f"{variable.name}.blocks", 0, variable.high // length)
    known = block if isinstance(block, int) else loop.start + whole.index * length
    along = Lanes(block, length, known)
    columns = [_transposed(emitter, loop, load, along, mask) for load in loads]
    outer = emitter.waiting
    waiting: dict[int, list[Value]] = {id(store): [] for store in stores}
    emitter.waiting = {**outer, **waiting}
    for number in range(int(count) if is_number(count) else length - 1):
        with emitter.where_above(count, number, loop.changes):
            emitter.bind_known(variable, block + number)
            for load, values in zip(loads, columns, strict=True):
                emitter.remember(load, values[number], len(emitter.levels) - 1)
            emitter.body(loop)
    emitter.waiting = outer
    for store in stores:
        _store_transposed(emitter, variable, store, waiting[id(store)], along, mask)


def _transposed(
    emitter: MemoryEmitter, loop: Loop, load: Expr, block: Lanes, mask: str
) -> list[Value]:
    """The values of a load in each of a block's iterations: vectors along the lanes in scope.

    mask: of the active iterations; empty if all are.
    """
    length, width = block.width, emitter.width()
    rows = []
    for lane in range(width):
        with emitter.straight():
            number = _lane_that_counts(emitter, lane)
            with _along(emitter, loop.variable, number, block, mask) as places:
                changed = expr.substitute_in(load, places)
                value = _as_bytes(emitter, emitter.value(changed))
                rows.append(broadcast(emitter, value, length))
    size = _register_bytes(load.dtype)
    step = 2 * length
    if step > min(loop.transpose, width) or length * size != HALF:
        step = length
    groups = [transpose(emitter, rows[i : i + step], size) for i in range(0, width, step)]
    columns = [join(emitter, list(parts)) for parts in zip(*groups, strict=True)]
    return [cast(emitter, column, load.dtype) for column in columns]


def _store_transposed(
    emitter: MemoryEmitter, variable: Atom, store: Store, rows: list[Value], block: Lanes, mask: str
) -> None:
    """Store the values of a block's iterations, which are vectors along the lanes in scope."""
    length, width = block.width, emitter.width()
    counting, size = emitter.counting() or str(width), _register_bytes(store.array.dtype)
    rows = [_as_bytes(emitter, row) for row in rows]
    rows += rows[-1:] * (length - len(rows))
    for first in range(0, width, length):
        order = range(first, first + length)
        parts = rows if length == width else [shuffled(emitter, row, order) for row in rows]
        for lane, column in enumerate(transpose(emitter, parts, size), first):
            if is_number(counting) and lane >= int(counting):
                return
            with (
                emitter.where_above(counting, lane),
                _along(emitter, variable, lane, block, mask) as places,
            ):
                emitter.store(replace(store, index=substitute(store.index, places)), column)


@contextmanager
def _along(
    emitter: MemoryEmitter, variable: Atom, lane: Integer, block: Lanes, mask: str
) -> Iterator[dict[Atom, Integer]]:
    """Let vectors lie along a block of a loop, for one of the lanes in scope.

    Yields the values that variables have then.
    """
    along = Atom("var", variable.name + ".along", variable.low, variable.high)
    lanes = emitter.vectors
    places: dict[Atom, Integer] = {
        atom: whole.base + lane for atom, whole in lanes.items()
    }
    emitter.vectors = {along: block}
    emitter.bound(along, outside=1)  # all lanes share addresses
    emitter.levels[-1].mask = mask
    yield {**places, variable: along.index}
    emitter.vectors = lanes


def _as_bytes(here: Builder, x: Value) -> Value:
    """Flags as bytes of 0 and 1, which is how memory holds them; other values unchanged.

    Shuffles of flags would take several instructions each.
    """
    return cast(here, x, dtypes.uint8) if x.dtype.is_bool else x


def _register_bytes(dtype: DType) -> int:
    return max(dtype.itemsize, 4) if dtype.is_float else dtype.itemsize


def _lane_that_counts(emitter: MemoryEmitter, lane: int) -> Integer:
    """A lane's number; for lanes that are not active the last active one's, which has memory."""
    counting = emitter.counting()
    if counting is None:
        return lane
    if counting.isdecimal():
        return min(lane, int(counting) - 1)
    text = emitter.minimum(str(lane), emitter.line(f"sub i64 {counting}, 1"))
    return emitter.bind(f"lane{lane}.counting", 0, lane, text)


def transpose(here: Builder, rows: list[Value], size: int) -> list[Value]:
    """Transpose n vectors of n elements, a power of two: column i becomes vector i.

    Or 2n vectors of n elements, which are two segments. size: bytes of an element in registers.
    """
    segment = min(SEGMENT // size, rows[0].lanes)
    if len(rows) > rows[0].lanes:  # a vector's second half is the row that comes a segment later
        pairs = zip(rows, rows[segment:], strict=False)
        rows = [join(here, [*two]) for n, two in enumerate(pairs) if n // segment % 2 == 0]
    count = rows[0].lanes
    # Inside of segments: interleave the elements of two vectors, then pairs of elements.
    run = 1
    while run < segment:
        orders = [_in_turn(count, segment, run, first) for first in (0, segment // 2)]
        rows = [
            shuffled(here, rows[start + i], order, rows[start + run + i])
            for start in range(0, len(rows), 2 * run) for i in range(run) for order in orders
        ]  # fmt: skip
        run *= 2
        if run == 4 < segment or run == segment < count:  # bytes: twice
            rows = _hidden(here, rows, size)
    for place in range(segment):
        rows[place::segment] = _spread(here, rows[place::segment], segment)
    return rows


def _hidden(here: Builder, rows: list[Value], size: int) -> list[Value]:
    """The same vectors, whose computation LLVM does not see.

    It would look for fewer shuffles across all steps. It finds none (but a few if rows repeat), and
    that takes a third of the time to compile a kernel.
    """
    nbytes, result = rows[0].lanes * size, []
    for row in rows:
        kind, text = row.type, row.text
        if row.dtype.is_float:
            text = fenced(here, kind, text)
        else:
            floats = f"<{nbytes // 4} x float>"
            text = fenced(here, floats, here.line(f"bitcast {kind} {text} to {floats}"))
            text = here.line(f"bitcast {floats} {text} to {kind}")
        result.append(Value(text, row.dtype, row.lanes))
    return result


def _in_turn(count: int, segment: int, run: int, first: int) -> list[int]:
    """An order: half a segment of each of two vectors, from element `first` on, `run` at a time."""
    order = []
    for start in range(0, count, segment):
        for place in range(start + first, start + first + segment // 2, run):
            order += [*range(place, place + run), *range(count + place, count + place + run)]
    return order


def _spread(here: Builder, rows: list[Value], segment: int) -> list[Value]:
    """Segment s of row r becomes segment r of row s: even segments first, then odd ones."""
    if len(rows) == 1:
        return rows
    halves = []
    for odd in (0, 1):
        order = [place for place in range(2 * rows[0].lanes) if place // segment % 2 == odd]
        pairs = zip(rows[::2], rows[1::2], strict=True)
        halves.append(_spread(here, [shuffled(here, x, order, y) for x, y in pairs], segment))
    return [value for both in zip(*halves, strict=True) for value in both]
