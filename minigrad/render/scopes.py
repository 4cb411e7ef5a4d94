"""The part of code generation that both renderers share: which values are known at which level.

Every open loop, branch or straight piece of code is a level. A value is emitted at the outermost
level at which everything that it depends on is known. It is remembered there until the level is
closed, or until an array or register that it depends on changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from minigrad.graph.symbolic import Atom, Integer
from minigrad.loops.nest import Loop, Nest, Statement, Store, Stores, written
from minigrad.render.vector_math import expand
from minigrad.schedule.expr import Array, Expr, Leaf, loads

R = TypeVar("R")
L = TypeVar("L", bound="Scope")
V = TypeVar("V")


@dataclass
class Scope:
    """One open level: its lines so far, and what is forgotten when it is closed."""

    lines: list[str] = field(default_factory=list)
    remembered: list[object] = field(default_factory=list)
    bound: list[Atom] = field(default_factory=list)
    changes: frozenset[Array] = frozenset()


class Levels(Generic[L, V]):
    """The stack of open levels, of type L, and the values remembered in them, of type V.

    where: the level that binds each loop variable. known: variables that are numbers now, or others
    plus numbers. writable: the arrays and registers that the nest changes.
    """

    # A renderer supplies these: they emit a loop of any kind; a statement that only some targets
    # have; a store to memory, or to a register; the value of an expression whose operands are
    # known; and a level of straight code, as a context, in which arrays change.
    loop: Callable[[Loop], None]
    special: Callable[[Statement], None]
    store: Callable[[Store, V], None]
    set: Callable[[Store, V], None]
    emitted: Callable[[Expr], V]
    straight: Callable[..., AbstractContextManager[None]]
    before_branch: slice  # the arguments of a RARELY that are not computed in its branch

    def __init__(self, outermost: L, nest: Nest) -> None:
        self.nest, self.writable = nest, written(nest.parallel)
        self._expanded: dict[Expr, Expr] = {}
        self.levels: list[L] = [outermost]
        self.memo: dict[object, tuple[V, int]] = {}
        self.dependents: dict[Array, list[object]] = {}
        self.where: dict[Atom, int] = {}
        self.known: dict[Atom, Integer] = {}
        self._number = -1  # the number of the current level, or −1 for the innermost
        self._least = 0  # the minimum level of values that a branch computes

    @property
    def current(self) -> L:
        """The level at which instructions are emitted now."""
        return self.levels[self._number]

    def at(self, level: int, make: Callable[..., R], *given: Any) -> R:
        """The result of make(*given), which emits instructions, at an outer level."""
        before, self._number = self._number, level
        made = make(*given)
        self._number = before
        return made

    def pop(self, *tables: dict[Atom, Any]) -> L:
        """Close the innermost level, and forget its values and variables, in `tables` too."""
        done = self.levels.pop()
        for key in done.remembered:
            self.memo.pop(key, None)
        every: tuple[dict[Atom, Any], ...] = (self.where, self.known, *tables)
        for atom in done.bound:
            for table in every:
                table.pop(atom, None)
        return done

    def bound(self, atom: Atom, outside: int = 0) -> None:
        """Note that a variable is bound by the innermost level, or by one `outside` of it."""
        self.where[atom] = len(self.levels) - 1 - outside
        self.levels[self.where[atom]].bound.append(atom)

    def bind_known(self, atom: Atom, value: Integer) -> None:
        """Bind a variable to a number, or another one plus a number, in the innermost level."""
        self.known[atom] = value
        self.bound(atom)

    def pinned(self, item: Array) -> int:
        """The innermost open level whose statements change an array or register."""
        number = len(self.levels) - 1
        while number and item not in self.levels[number].changes:
            number -= 1
        return number

    def remember(self, key: object, value: V, level: int, depends: Iterable[Array] = ()) -> None:
        """Keep a value until its level is closed or something it depends on changes."""
        self.memo[key] = (value, level)
        self.levels[level].remembered.append(key)
        for item in depends:
            self.dependents.setdefault(item, []).append(key)

    def forget(self, changed: Iterable[Array]) -> None:
        """Drop values that depend on arrays or registers that were just changed."""
        for item in changed:
            for key in self.dependents.pop(item, ()):
                self.memo.pop(key, None)

    # ---- statements ----

    def statement(self, statement: Statement) -> None:
        """Emit one statement at the current level."""
        if isinstance(statement, Loop):
            self.forget(statement.changes)  # later iterations must read again
            self.loop(statement)
            self.forget(statement.changes)
        elif isinstance(statement, Store):
            self.put(statement, self.value(statement.value))
        elif isinstance(statement, Stores):
            kept = self.kept if len(statement.items) > 1 else self.value
            values = [kept(item.value) for item in statement.items]
            for item, value in zip(statement.items, values, strict=True):
                self.put(item, value)
        else:
            self.special(statement)

    def put(self, statement: Store, value: V) -> None:
        """Store a value to memory or to a register."""
        (self.set if statement.array.in_registers else self.store)(statement, value)
        self.forget((statement.array,))

    def body(self, loop: Loop) -> None:
        """Emit the statements in a loop."""
        for statement in loop.body:
            self.statement(statement)

    def unrolled(self, loop: Loop) -> None:
        """Emit all iterations of a loop with known bounds, one after the other."""
        assert isinstance(loop.start, int) and isinstance(loop.stops[0], int)
        for number in range(loop.start, loop.stops[0], loop.step):
            with self.straight(loop.changes):
                self.bind_known(loop.variable, number)
                self.body(loop)

    # ---- expressions ----

    def expand(self, root: Expr) -> Expr:
        """An expression in terms of the operations that renderers implement."""
        if root not in self._expanded:
            whole = expand(root)
            self._expanded[root] = self._expanded[whole] = whole
        return self._expanded[root]

    def changing(self, e: Expr) -> frozenset[Array]:
        """The arrays and registers below an expression that this kernel changes."""
        return self.writable.intersection([load.array for load in loads(e)])

    def value(self, root: Expr) -> V:
        """The value of an expression."""
        return self.evaluate(self.expand(root))

    def evaluate(self, root: Expr) -> V:
        """The same of an expanded one; each part is emitted at the outermost level possible."""
        waiting, memo = [root], self.memo
        while waiting:
            e = waiting[-1]
            if e not in memo:
                below = e.args[self.before_branch] if e.op is Leaf.RARELY else e.operands
                missing = [operand for operand in below if operand not in memo]
                if missing:
                    waiting += reversed(missing)
                    continue
                self._emit(e, below)
            waiting.pop()
        return memo[root][0]

    def _emit(self, e: Expr, below: Iterable[Expr]) -> None:
        """Emit an expression whose operands (`below`) are known, and remember its value."""
        depends = self.changing(e) if e.inner_loads or e.op is Leaf.LOAD else frozenset()
        levels = [self._least, *[self.memo[operand][1] for operand in below]]
        if not e.args:  # an operation depends on its operands only
            levels += [self.where.get(atom, 0) for atom in e.variables]
            levels += map(self.pinned, depends)
        level = len(self.levels) - 1 if e.in_registers else max(levels)
        self.remember(e, self.at(level, self.emitted, e), level, depends)

    def kept(self, root: Expr) -> V:
        """A value that later stores do not change."""
        return self.value(root)
