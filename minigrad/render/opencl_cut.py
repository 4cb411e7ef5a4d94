"""Lanes loops in shorter vectors than they were made for."""

from __future__ import annotations

from dataclasses import replace

from minigrad.graph.symbolic import Affine, Integer, add, substitute
from minigrad.loops.nest import (
    Fold,
    Loop,
    Prefetch,
    Set,
    Statement,
    Store,
    Stores,
    divides,
    expressions,
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
        values = {a: add(Affine(0, ((a, 1),)), part * width) for a in atoms if part}
        return substitute(x, values)

    def value_of(e: Expr, part: int) -> Expr:
        def change(leaf: Expr) -> Expr | None:
            if leaf.op is Leaf.LOCAL:
                return expr.local(local_of(leaf.payload[0], part), leaf.payload[1])
            return None

        atoms = (loop.variable,) if loop.lane is None else (loop.variable, loop.lane)
        values = {a: add(Affine(0, ((a, 1),)), part * width) for a in atoms if part}
        return expr.substitute_in(expr.rebuild(e, change), values)

    def store_of(item: Store, part: int) -> Store:
        guard = expr.restrict((), [moved(c, part) for c in item.guard])
        return replace(
            item, index=moved(item.index, part), value=value_of(item.value, part), guard=guard
        )

    def visit(statement: Statement) -> list[Statement]:
        if isinstance(statement, Loop):
            inner = [one for s in statement.body for one in visit(s)]
            return [replace(statement, body=tuple(inner))]
        if isinstance(statement, Stores):
            items = [store_of(item, part) for item in statement.items for part in range(parts)]
            return [Stores(tuple(items))]
        if isinstance(statement, Store):
            return [store_of(statement, part) for part in range(parts)]
        if not isinstance(statement, Set):  # a hint; folds are not part of such loops
            assert isinstance(statement, Prefetch), statement
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
        if isinstance(statement, Set):
            found[statement.local] = None
        if not isinstance(statement, Loop):
            for e in expr.walk(*expressions(statement)):
                if e.op is Leaf.LOCAL:
                    found[e.payload[0]] = None

    visit(loop)
    return list(found)


def used_outside(loop: Loop) -> frozenset[Local]:
    """The registers that are used outside of lanes loops, too."""
    found: set[Local] = set()

    def visit(statement: Statement) -> None:
        if isinstance(statement, Loop):
            if statement.kind != "lanes":
                for inner in statement.body:
                    visit(inner)
        elif isinstance(statement, Fold):
            found.update((statement.target, statement.source))
        elif isinstance(statement, Set):
            found.add(statement.local)

    visit(loop)
    return frozenset(found)
