"""Long sums in levels: sums of blocks, which are summed in blocks, and so on.

A sum that grows one term after another loses digits: each term is rounded to the sum's last place,
and equal terms are rounded the same way. (2²⁰ times 0.1 in float32 is wrong by 1 %.) So a loop that
adds more than a few terms to a register, or to scratch memory, is cut into blocks. Each block has a
register of its own, which is added to the sum when the block ends. The error then grows by the
length of a block times the number of levels, which is the logarithm of the number of terms.

The cut depends on the loops only, so results are bitwise the same with any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

from minigrad.graph.node import Op
from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import Atom, Integer, ceildiv
from minigrad.loops.build import Place, combine, lanes_loop, with_places
from minigrad.loops.nest import (
    Fold,
    FoldItems,
    Loop,
    MatrixProduct,
    Prefetch,
    Set,
    Statement,
    Store,
    children,
    divides,
)
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array, Expr, Leaf, Local
from minigrad.schedule.stage import identity
from minigrad.target import Target

# Terms that follow one another. A block costs the clearing of its register and one addition more,
# of 64 terms 3 %; its error grows with its length (see above).
TERMS = 64
TERMS_OF_ARRAY = 128  # in memory, which is read and written once more when a block ends
# Where all registers are sums, which go through memory then, too: blocks of 128 make products of
# 256 a quarter slower and of 512 an eighth; of 256 none.
TERMS_OF_TILE = 256
TERMS_OF_GROUP = 512  # on a GPU, where a second set of registers for a tile costs work-items

Statements = tuple[Statement, ...]
Around = frozenset[Atom]  # the variables of the vector loops around a statement


def in_levels(parallel: Loop, target: Target) -> Loop:
    """The loop of a nest with every long sum in levels."""
    return parallel.around(_all(parallel.body, _within(parallel, frozenset()), target, {}))


def most_terms(place: Place, target: Target) -> int:
    """Terms that follow one another in a place."""
    if isinstance(place, Array):
        return TERMS_OF_ARRAY
    if place.count == 1:
        return TERMS
    return TERMS_OF_TILE if target.group is None else TERMS_OF_GROUP


def _all(
    body: Sequence[Statement], around: Around, target: Target, uses: Uses
) -> Statements:
    return tuple([
        one for statement in body for one in _cut_if_long(statement, around, target, uses)
    ])  # fmt: skip


def _within(loop: Loop, around: Around) -> Around:
    return around | {loop.variable} if loop.kind == "lanes" else around


def _cut_if_long(
    statement: Statement, around: Around, target: Target, uses: Uses
) -> Statements:
    if not isinstance(statement, Loop):
        return (statement,)
    if not _use(statement, uses).added:
        return (statement,)
    inside = _within(statement, around)
    if statement.kind in ("serial", "lanes"):
        sums = _sums(statement, uses)
        if around:  # where no vector loop over an array may be
            sums = {place: one for place, one in sums.items() if isinstance(place, Local)}
        blocks = {
            place: ceildiv(one.terms, most_terms(place, target)) for place, one in sums.items()
        }
        long = {place: sums[place] for place, number in blocks.items() if number > 1}
        if long:
            return _cut(statement, long, max(blocks.values()), around, target, uses)
    return (statement.around(_all(statement.body, inside, target, uses)),)


def _cut(
    loop: Loop, sums: Mapping[Place, _Sum], blocks: int, around: Around, target: Target,
    uses: Uses,
) -> Statements:  # fmt: skip
    """The loop with its iterations in about `blocks` blocks, whose sums are added in levels."""
    use = _use(loop, uses)
    taken = {place.name for place in (*use.others, *(place for place, _ in use.added))}
    parts: dict[Place, Place] = {}
    for place in sums:
        name = f"{place.name}_{loop.variable.name}"
        while name in taken:  # the loop was cut before
            name += "_"
        parts[place] = replace(place, name=name)
    inner = loop.around(tuple(
        with_places(s, lambda place, at: (parts.get(place, place), at)) for s in loop.body
    ))  # fmt: skip
    size = ceildiv(loop.vectors, blocks)
    if size == 1:
        clear, end = _ends(sums, parts, _within(loop, around), target)
        return _cut_if_long(loop.around((*clear, *inner.body, *end)), around, target, uses)
    clear, end = _ends(sums, parts, around, target)
    block, outer, rest = _in_blocks(inner, size)
    outer = replace(outer, body=(*clear, block, *end))
    last = (*clear, rest, *end) if rest is not None else ()
    return (*_cut_if_long(outer, around, target, uses), *_all(last, around, target, uses))


def _in_blocks(loop: Loop, size: int) -> tuple[Loop, Loop, Loop | None]:
    """A block of `size` iterations of a loop, the loop over blocks, and what is left behind it.

    A vector loop's blocks are whole vectors, so only what is left needs a mask.
    """
    span = size * loop.step
    # a block that is cut once more begins at the number of the one around it: names differ
    outside = {atom.name for x in (loop.start, *loop.stops) for atom in variables(x)}
    prefix = f"{loop.variable.name}b"
    free = next(n for n in count() if f"{prefix}{n}" not in outside)
    number = make_axis(prefix, free, max(ceildiv(loop.vectors, size), 1))
    first = loop.start + number.index * span
    lengths = [stop - loop.start for stop in loop.stops]
    even = len(lengths) == 1 and divides(lengths[0], span)
    whole = even or loop.kind == "lanes" and len(lengths) == 1
    stops = (first + span,) if whole else (first + span, *loop.stops)
    up = 0 if whole else span - 1
    counts = tuple((length + up) // span for length in lengths)
    block = replace(loop, start=first, stops=stops)
    outer = Loop(number.variable, 0, counts, ())
    if even or not whole:
        return block, outer, None
    return block, outer, replace(loop, start=loop.start + counts[0] * span)


def _ends(
    sums: Mapping[Place, _Sum], parts: Mapping[Place, Place], around: Around, target: Target
) -> tuple[list[Statement], list[Statement]]:
    """What clears the places of a block, and what adds them to those of the sums."""
    clear: list[Statement] = []
    end: list[Statement] = []
    for place, one in sums.items():
        part, zero = parts[place], identity(Op.SUM, place.dtype)
        if isinstance(place, Array):
            assert isinstance(part, Array)
            each = make_axis("e", 0, place.size)
            at: Integer = each.index
            more = combine(Op.SUM, expr.load(place, at), expr.load(part, at))
            width = max(min(target.most_lanes, 4 * target.lanes(place.dtype)), 1)
            clear.append(lanes_loop(each, width, (Store(part, at, zero),)))
            end.append(lanes_loop(each, width, (Store(place, at, more),)))
            continue
        assert isinstance(part, Local)
        slot = make_axis("u", 0, place.count)
        at = slot.index if place.count > 1 else 0
        more = combine(Op.SUM, expr.local(place, at), expr.local(part, at))
        for found, made in (
            (clear, Set(part, at, zero, one.everywhere)),
            (end, Set(place, at, more, one.everywhere)),
        ):
            every: Statement = made
            if place.count > 1:
                every = Loop(slot.variable, 0, (place.count,), (every,), "unroll")
            # what is cleared outside of vector loops is known to outlive one of their iterations
            if place.lanes is not None and place.lanes not in around and found is end:
                every = Loop(place.lanes, 0, (place.width,), (every,), "lanes", place.width)
            found.append(every)
    return clear, end


# ---- what is added up ----


class _Sum(NamedTuple):
    """terms: that are added to each element of a place. everywhere: as `Set` has it.

    apart: the variables of loops that do not add to it, but number its elements.
    """

    terms: int = 1
    everywhere: bool = True
    apart: frozenset[Atom] = frozenset()


@dataclass
class _Use:
    """What statements add to places, by place and index; the places that they use otherwise."""

    added: dict[tuple[Place, Integer], _Sum] = field(default_factory=dict)
    others: set[Place] = field(default_factory=set)

    def see(self, *values: Expr, indices: Iterable[Integer] = ()) -> None:
        """Note what is read."""
        inside = [e for x in indices for e in expr.values_in(x)]
        if values or inside:
            for e in expr.walk(*values, *inside):
                if e.op is Leaf.LOCAL or e.op is Leaf.LOAD and e.array.space != "buffer":
                    self.others.add(e.place)

    def add(self, key: tuple[Place, Integer], one: _Sum) -> None:
        """Note what is added."""
        known = self.added.get(key)
        if known is not None:
            everywhere = one.everywhere and known.everywhere
            one = _Sum(one.terms + known.terms, everywhere, one.apart | known.apart)
        self.added[key] = one


NO_USE = _Use()
Uses = dict[int, tuple[Statement, _Use]]  # by identity of statements, which it keeps


def _sums(loop: Loop, uses: Uses) -> dict[Place, _Sum]:
    """The places of floats to which a loop does nothing but add."""
    use, sums = _use(loop, uses), dict[Place, _Sum]()
    for (place, _), one in use.added.items():
        if place not in use.others:
            known = sums.get(place, one)
            everywhere = known.everywhere and one.everywhere
            sums[place] = _Sum(max(known.terms, one.terms), everywhere)
    return sums


def _use(statement: Statement, uses: Uses) -> _Use:
    if id(statement) in uses:
        return uses[id(statement)][1]
    if isinstance(statement, Prefetch):
        return NO_USE
    use = _Use()
    if isinstance(statement, Store | Set):
        added = _terms(statement)
        use.see(*(added or (statement.value,)))
        if isinstance(statement, Store):
            use.see(indices=(statement.index, *statement.guard))
            place: Place = statement.array
            index, everywhere = statement.index, True
        else:
            place, index, everywhere = statement.local, statement.slot, statement.everywhere
        if added:
            use.add((place, index), _Sum(1, everywhere, variables(index)))
        else:
            use.others.add(place)
    elif isinstance(statement, Fold):
        use.others.update((statement.target, statement.source))
    elif isinstance(statement, FoldItems):
        use.others.update((statement.target, statement.memory))
    elif isinstance(statement, MatrixProduct):
        use.others.update(matrix.array for matrix in statement.matrices)
    for inner in children(statement):
        of_inner = _use(inner, uses)
        use.others |= of_inner.others
        for key, one in of_inner.added.items():
            use.add(key, one)
    if isinstance(statement, Loop):
        use.see(indices=(statement.start, *statement.stops))
        trips, begin = statement.vectors, variables(statement.start)
        for key, (terms, everywhere, apart) in use.added.items():
            if statement.variable in apart:
                use.added[key] = _Sum(terms, everywhere, apart | begin)
            else:
                use.added[key] = _Sum(terms * trips, everywhere, apart)
    uses[id(statement)] = statement, use
    return use


def _terms(statement: Set | Store) -> tuple[Expr, ...]:
    """What a statement adds to a register or to scratch memory; nothing where it does else."""
    if isinstance(statement, Set):
        own = expr.local(statement.local, statement.slot)
    elif statement.array.space == "scratch" and not statement.guard:
        own = expr.load(statement.array, statement.index)
    else:
        return ()
    value = statement.value
    if not value.dtype.is_float:
        return ()
    if value.op is Op.ADD and value.args[0] is own:
        return value.args[1:]
    return value.args[:2] if value.op is Leaf.DOT and value.args[2] is own else ()
