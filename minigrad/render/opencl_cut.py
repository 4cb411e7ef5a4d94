"""Lanes loops in shorter vectors than they were made for."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from minigrad.graph.symbolic import Integer, substitute
from minigrad.loops.build import combine
from minigrad.loops.nest import (
    Fold,
    FoldItems,
    Loop,
    Set,
    Statement,
    Store,
    Stores,
    divides,
    expressions,
    locals_set,
    whole_vectors,
)
from minigrad.schedule import expr
from minigrad.schedule.expr import Expr, Leaf, Local


def rest_of(loop: Loop) -> int | None:
    """How many iterations are left over after all whole vectors; None where nobody knows."""
    if whole_vectors(loop):
        return 0
    if not divides(loop.start, loop.step):
        return None
    odd = [stop for stop in loop.stops if not divides(stop, loop.step)]
    return odd[0] % loop.step if len(odd) == 1 and isinstance(odd[0], int) else None


def cut(loop: Loop, width: int, parts: int) -> list[Statement]:
    """The body of a lanes loop for `parts` vectors of `width`, one beside the other."""

    def local_of(local: Local, part: int) -> Local:
        if local.width != loop.step:
            return local
        name = f"{local.name}_{width}{'abcd'[part]}"
        return Local(name, local.dtype, local.count, local.lanes, width)

    def moved(x: Integer, part: int) -> Integer:
        atoms = (loop.variable,) if loop.lane is None else (loop.variable, loop.lane)
        values = {a: a.index + part * width for a in atoms if part}
        return substitute(x, values)

    def value_of(e: Expr, part: int) -> Expr:
        def change(leaf: Expr) -> Expr | None:
            if leaf.op is Leaf.LOCAL:
                return expr.local(local_of(leaf.local, part), leaf.slot)
            return None

        atoms = (loop.variable,) if loop.lane is None else (loop.variable, loop.lane)
        values = {a: a.index + part * width for a in atoms if part}
        return expr.substitute_in(expr.rebuild(e, change), values)

    def store_of(item: Store, part: int) -> Store:
        guard = expr.restrict((), [moved(c, part) for c in item.guard])
        return replace(
            item, index=moved(item.index, part), value=value_of(item.value, part), guard=guard
        )

    def folds_of(fold: Fold) -> list[Statement]:
        """The vectors are combined to one, whose lanes are combined then."""
        source = fold.source
        whole = Local(f"{source.name}_{width}", source.dtype, 1, source.lanes, width)
        each = [expr.local(local_of(source, part)) for part in range(parts)]
        both = reduce(lambda a, b: combine(fold.op, a, b), each)
        return [Set(whole, 0, both), replace(fold, source=whole)]

    def visit(statement: Statement) -> list[Statement]:
        if isinstance(statement, Loop):
            inner = [one for s in statement.body for one in visit(s)]
            return [replace(statement, body=tuple(inner))]
        if isinstance(statement, Stores):
            items = [store_of(item, part) for item in statement.items for part in range(parts)]
            return [Stores(tuple(items))]
        if isinstance(statement, Store):
            return [store_of(statement, part) for part in range(parts)]
        if isinstance(statement, Fold) and statement.source.width == loop.step:
            return folds_of(statement)
        if not isinstance(statement, Set):  # it has nothing to do with the lanes
            return [statement]
        count = parts if statement.local.width == loop.step else 1
        return [
            Set(local_of(statement.local, n), statement.slot, value_of(statement.value, n))
            for n in range(count)
        ]

    return [one for statement in loop.body for one in visit(statement)]


def registers(loop: Loop) -> list[Local]:
    """The registers that a loop reads or sets."""
    found: dict[Local, None] = {}

    def visit(statement: Statement) -> None:
        if isinstance(statement, Loop):
            for inner in statement.body:
                visit(inner)
        else:
            found.update(dict.fromkeys((*_read(statement), *locals_set(statement))))

    visit(loop)
    return list(found)


def carried(loop: Loop) -> frozenset[Local]:
    """The registers whose values go from one iteration of a lanes loop to another, or out of it.

    That is, all that are used outside of lanes loops, and those that a lanes loop reads before it
    has set them.
    """
    found: set[Local] = set()

    def visit(statement: Statement, known: set[Local] | None) -> None:
        """known: what the lanes loop around the statement, if there is one, has set before it."""
        if not isinstance(statement, Loop):
            used = set(_read(statement))
            found.update(used | locals_set(statement) if known is None else used - known)
            if known is not None:
                known |= locals_set(statement)
            return
        if statement.kind == "lanes":
            known = set()
        elif known is not None and statement.kind != "unroll":
            known = set(known)  # it may have no iterations
        for inner in statement.body:
            visit(inner, known)

    visit(loop, None)
    return frozenset(found)


def _read(statement: Statement) -> list[Local]:
    """The registers that a statement which is no loop reads."""
    if isinstance(statement, Fold | FoldItems):
        return [statement.source if isinstance(statement, Fold) else statement.target]
    read = [e for e in expr.walk(*expressions(statement)) if e.op is Leaf.LOCAL]
    return [e.local for e in read]
