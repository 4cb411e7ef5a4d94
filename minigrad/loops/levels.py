"""Long sums in levels: sums of blocks, which are summed in blocks, and so on.

A sum that grows one term after another loses digits: each term is rounded to the sum's last place,
and equal terms are rounded the same way. (2²⁰ times 0.1 in float32 is wrong by 1 %.) So a loop that
adds more than a few terms to a register is cut into blocks, each with a register of its own, whose
result is added when the block ends. The error then grows by the length of a block times the number
of levels, which is the logarithm of the number of terms.

The cut depends on the loops only, so results are bitwise the same with any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from minigrad.graph.node import Op
from minigrad.graph.symbolic import Atom, Integer, add, floordiv, high, mul, sub, variables
from minigrad.loops.build import combine
from minigrad.loops.nest import Fold, FoldItems, Loop, Set, Statement, Store, Stores, divides
from minigrad.loops.target import Target
from minigrad.schedule import expr
from minigrad.schedule.expr import Expr, Leaf, Local
from minigrad.schedule.stage import identity, index_of, make_axis

TERMS = 64  # that follow one another in one register
TERMS_OF_TILE = 128  # where all registers are sums, which go through memory when a block ends
TERMS_OF_GROUP = 512  # on a GPU, where a second set of registers for a tile costs work-items

Around = frozenset[Atom]  # the variables of the lanes loops around a statement


def in_levels(parallel: Loop, target: Target) -> Loop:
    """The loop of a nest with every long sum in levels."""
    around = frozenset({parallel.variable} if parallel.kind == "lanes" else ())
    return replace(parallel, body=_all(parallel.body, around, target))


def _all(body: Sequence[Statement], around: Around, target: Target) -> tuple[Statement, ...]:
    return tuple(one for statement in body for one in _cut_if_long(statement, around, target))


def _cut_if_long(statement: Statement, around: Around, target: Target) -> tuple[Statement, ...]:
    if not isinstance(statement, Loop):
        return (statement,)
    if statement.kind in ("serial", "lanes"):
        sums = _sums(statement)
        blocks = [-(-one.terms // most_terms(local, target)) for local, one in sums.items()]
        long = {local: sums[local] for local, n in zip(sums, blocks, strict=True) if n > 1}
        if long:
            return _cut(statement, long, max(blocks), around, target)
    return (replace(statement, body=_all(statement.body, _within(statement, around), target)),)


def most_terms(local: Local, target: Target) -> int:
    """Terms that follow one another in a register."""
    if local.count == 1:
        return TERMS
    return TERMS_OF_TILE if target.group is None else TERMS_OF_GROUP


def _within(loop: Loop, around: Around) -> Around:
    return around | {loop.variable} if loop.kind == "lanes" else around


def _cut(
    loop: Loop, sums: Mapping[Local, _Sum], blocks: int, around: Around, target: Target
) -> tuple[Statement, ...]:
    """The loop with sums of about so many blocks of its iterations, which are added in levels."""
    parts = {
        local: replace(local, name=f"{local.name}_{loop.variable.name}") for local in sums
    }
    clear, end = _ends(sums, parts, around)
    size = -(-_trips(loop) // blocks)
    inner = replace(loop, body=tuple(_renamed(s, parts) for s in loop.body))
    if size == 1:
        clear, end = _ends(sums, parts, _within(loop, around))
        each = replace(loop, body=(*clear, *inner.body, *end))
        return _cut_if_long(each, around, target)
    block, outer, rest = _in_blocks(inner, size)
    outer = replace(outer, body=(*clear, block, *end))
    last = (*clear, rest, *end) if rest is not None else ()
    return (*_cut_if_long(outer, around, target), *_all(last, around, target))


def _in_blocks(loop: Loop, size: int) -> tuple[Loop, Loop, Loop | None]:
    """A block of `size` iterations of a loop, the loop over blocks, and what is left behind it.

    A vector loop's blocks are whole vectors, so only what is left needs a mask.
    """
    span = size * loop.step
    number = make_axis(f"{loop.variable.name}b", 0, max(-(-_trips(loop) // size), 1))
    first = add(loop.start, mul(index_of(number.variable), span))
    lengths = [sub(stop, loop.start) for stop in loop.stops]
    even = len(lengths) == 1 and divides(lengths[0], span)
    whole = even or loop.kind == "lanes" and len(lengths) == 1
    stops = (add(first, span),) if whole else (add(first, span), *loop.stops)
    up = 0 if whole else span - 1
    counts = tuple(floordiv(add(length, up), span) for length in lengths)
    block = replace(loop, start=first, stops=stops)
    outer = Loop(number.variable, 0, counts, ())
    if even or not whole:
        return block, outer, None
    return block, outer, replace(loop, start=add(loop.start, mul(counts[0], span)))


def _ends(
    sums: Mapping[Local, _Sum], parts: Mapping[Local, Local], around: Around
) -> tuple[list[Statement], list[Statement]]:
    """What clears the registers of a block, and what adds them to those of the sums."""
    clear: list[Statement] = []
    end: list[Statement] = []
    for local, one in sums.items():
        part = parts[local]
        slot = make_axis("u", 0, local.count)
        at: Integer = index_of(slot.variable) if local.count > 1 else 0
        zero = identity(Op.SUM, local.dtype)
        both = combine(Op.SUM, expr.local(local, at), expr.local(part, at))
        for found, statement in (
            (clear, Set(part, at, zero, one.everywhere)),
            (end, Set(local, at, both, one.everywhere)),
        ):
            made: Statement = statement
            if local.count > 1:
                made = Loop(slot.variable, 0, (local.count,), (made,), "unroll")
            if local.lanes is not None and local.lanes not in around:
                made = Loop(local.lanes, 0, (local.width,), (made,), "lanes", local.width)
            found.append(made)
    return clear, end


# ---- what is added up ----


@dataclass(frozen=True)
class _Sum:
    """terms: that a loop adds to each register. everywhere: as `Set` has it."""

    terms: int
    everywhere: bool


def _sums(loop: Loop) -> dict[Local, _Sum]:
    """The registers of floats to which a loop does nothing but add."""
    found: dict[Local, _Sum] = {}
    others: set[Local] = set()

    def see(*indices: Integer, values: Iterable[Expr] = ()) -> None:
        inside = [e for x in indices for e in expr.values_in(x)]
        others.update(e.payload[0] for e in expr.walk(*inside, *values) if e.op is Leaf.LOCAL)

    def visit(statement: Statement, around: tuple[Loop, ...]) -> None:
        if isinstance(statement, Loop):
            see(statement.start, *statement.stops)
            for inner in statement.body:
                visit(inner, (*around, statement))
        elif isinstance(statement, Stores):
            for item in statement.items:
                visit(item, around)
        elif isinstance(statement, Store):
            see(statement.index, *statement.guard, values=(statement.value,))
        elif isinstance(statement, Set):
            terms = _terms(statement)
            see(values=(statement.value,) if terms is None else terms)
            if terms is None:
                others.add(statement.local)
                return
            slots = variables(statement.slot)
            count = prod(_trips(one) for one in around if one.variable not in slots)
            before = found.get(statement.local, _Sum(0, True))
            everywhere = before.everywhere and statement.everywhere
            found[statement.local] = _Sum(before.terms + count, everywhere)
        elif isinstance(statement, Fold):
            others.update((statement.target, statement.source))
        elif isinstance(statement, FoldItems):
            others.add(statement.target)

    visit(loop, ())
    return {local: one for local, one in found.items() if local not in others}


def _terms(statement: Set) -> tuple[Expr, ...] | None:
    """What a statement adds to a register; None where it does something else."""
    value, own = statement.value, expr.local(statement.local, statement.slot)
    if not value.dtype.is_float:
        return None
    if value.op is Op.ADD and value.args[0] is own:
        return value.args[1:]
    return value.args[:2] if value.op is Leaf.DOT and value.args[2] is own else None


def _trips(loop: Loop) -> int:
    """Iterations of a loop, at most; of vectors for a vector loop."""
    return max(min(-(-high(sub(stop, loop.start)) // loop.step) for stop in loop.stops), 0)


def _renamed(statement: Statement, new: Mapping[Local, Local]) -> Statement:
    """A statement that adds to other registers."""
    if isinstance(statement, Loop):
        return replace(statement, body=tuple(_renamed(s, new) for s in statement.body))
    if not isinstance(statement, Set) or statement.local not in new:
        return statement
    local = new[statement.local]
    old, own = (expr.local(one, statement.slot) for one in (statement.local, local))
    value = expr.rebuild(statement.value, {old: own}.get)
    return replace(statement, local=local, value=value)
