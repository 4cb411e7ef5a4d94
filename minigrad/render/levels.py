"""What both renderers know while they emit a kernel: open levels, and what was computed in which.

Every open loop, branch or straight piece is a level. A value goes to the outermost level at which
all that it depends on is known; it is remembered there until the level is closed, or until an array
or register that it depends on changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from minigrad.graph.symbolic import Atom
from minigrad.loops.nest import Statement, arrays_written, locals_set
from minigrad.schedule.expr import Array, Local

L = TypeVar("L", bound="Level")
V = TypeVar("V")


@dataclass
class Level:
    """One open level: its lines so far, and what dies when it is closed."""

    lines: list[str] = field(default_factory=list)
    remembered: list[object] = field(default_factory=list)
    bound: list[Atom] = field(default_factory=list)
    changes: frozenset[Array | Local] = frozenset()


class Levels(Generic[L, V]):
    """The stack of open levels, of type L, and the values remembered in them, of type V.

    where: the level that binds each loop variable. constants: variables that are numbers now.
    """

    def __init__(self, outermost: L) -> None:
        self.levels: list[L] = [outermost]
        self.memo: dict[object, tuple[V, int]] = {}
        self.dependents: dict[Array | Local, list[object]] = {}
        self.where: dict[Atom, int] = {}
        self.constants: dict[Atom, int] = {}

    def pop(self, *known: dict[Atom, Any]) -> L:
        """Take the innermost level off, and forget what it knew, in `known` too."""
        done = self.levels.pop()
        for key in done.remembered:
            self.memo.pop(key, None)
        for atom in done.bound:
            for table in (self.where, self.constants, *known):
                table.pop(atom, None)
        return done

    def bound(self, atom: Atom) -> None:
        """Note that the innermost level binds a variable."""
        self.where[atom] = len(self.levels) - 1
        self.levels[-1].bound.append(atom)

    def bind_constant(self, atom: Atom, value: int) -> None:
        """Let a variable be a number in the innermost level."""
        self.constants[atom] = value
        self.bound(atom)

    def level_of(self, atoms: Iterable[Atom]) -> int:
        """The innermost level that binds one of the variables."""
        return max((self.where.get(atom, 0) for atom in atoms), default=0)

    def pinned(self, item: Array | Local) -> int:
        """The innermost open level whose statements change an array or register."""
        for number in range(len(self.levels) - 1, -1, -1):
            if item in self.levels[number].changes:
                return number
        return 0

    def remember(
        self, key: object, value: V, level: int, depends: Iterable[Array | Local] = ()
    ) -> None:
        """Keep a value until its level is closed or something it depends on changes."""
        self.memo[key] = (value, level)
        self.levels[level].remembered.append(key)
        for item in depends:
            self.dependents.setdefault(item, []).append(key)

    def forget(self, changed: Iterable[Array | Local]) -> None:
        """Drop what depends on arrays or registers that were just changed."""
        for item in changed:
            for key in self.dependents.pop(item, ()):
                self.memo.pop(key, None)


def changes(body: Iterable[Statement]) -> frozenset[Array | Local]:
    """The arrays and registers that statements change."""
    found: frozenset[Array | Local] = frozenset()
    for statement in body:
        found |= arrays_written(statement) | locals_set(statement)
    return found
