"""Open loops and branches of LLVM IR, each with its own lines; which lanes of a vector count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minigrad.graph.symbolic import Atom
from minigrad.loops.nest import Loop, Nest, Statement, written
from minigrad.render import levels
from minigrad.render.llvm_values import Builder, Value
from minigrad.schedule.expr import Expr


@dataclass
class Level(levels.Level):
    """An open loop, branch or straight piece; `block` labels where its next line goes.

    mask: of lanes, with `counting` of them, the first ones; "": all lanes count again.
    """

    block: str = "entry"
    mask: str | None = None
    counting: str = ""


@dataclass(frozen=True)
class Lanes:
    """The vector variable in scope: its scalar base, and how many lanes."""

    base: str
    width: int


class LevelEmitter(levels.Levels[Level, Value]):
    """Opens and closes levels; knows which variable is a vector's, and which of its lanes count."""

    def __init__(self, nest: Nest) -> None:
        super().__init__(Level(), nest)
        self.allocas: list[str] = []
        self.declarations: set[str] = set()
        self.scalars: dict[Atom, str] = {}
        self.vectors: dict[Atom, Lanes] = {}
        self._names = 0
        self._labels = 0
        self._current: int | None = None

    # ---- levels ----

    def fresh(self) -> str:
        """A new name."""
        self._names += 1
        return f"%v{self._names}"

    def label(self) -> str:
        """A new label."""
        self._labels += 1
        return f"b{self._labels}"

    @property
    def level(self) -> int:
        """The level that instructions go to now."""
        return len(self.levels) - 1 if self._current is None else self._current

    @contextmanager
    def at(self, level: int) -> Iterator[None]:
        """Let instructions go to an outer level for a while."""
        before, self._current = self._current, level
        try:
            yield
        finally:
            self._current = before

    def builder(self) -> Builder:
        """A builder at the current level."""
        builder = Builder(self.fresh, self.declarations.add)
        builder.lines = self.levels[self.level].lines
        return builder

    def _close(self) -> tuple[Level, Level]:
        """The innermost level, which is taken off, and its parent."""
        return self.pop(self.scalars, self.vectors), self.levels[-1]

    @contextmanager
    def straight(self, body: Iterable[Statement] = ()) -> Iterator[None]:
        """A straight piece, whose statements are `body`."""
        self.levels.append(Level(block=self.levels[-1].block, changes=written(*body)))
        yield
        done, parent = self._close()
        parent.lines += done.lines
        parent.block = done.block

    @contextmanager
    def branch(self, test: str, body: Iterable[Statement] = ()) -> Iterator[None]:
        """A piece that runs where an i1 is true."""
        inside, after = self.label(), self.label()
        self.levels.append(Level(block=inside, changes=written(*body)))
        yield
        done, parent = self._close()
        parent.lines += [f"  br i1 {test}, label %{inside}, label %{after}", f"{inside}:"]
        parent.lines += [*done.lines, f"  br label %{after}", f"{after}:"]
        parent.block = after

    @contextmanager
    def iterations(
        self, start: str, stop: str, step: int, check: bool, body: Iterable[Statement] = ()
    ) -> Iterator[str]:
        """A loop from start to stop; gives its counter. check: it may have no iterations."""
        inside, after, counter = self.label(), self.label(), self.fresh()
        self.levels.append(Level(block=inside, changes=written(*body)))
        yield counter
        done, parent = self._close()
        following, again = self.fresh(), self.fresh()
        if check:
            enter = self.fresh()
            parent.lines.append(f"  {enter} = icmp slt i64 {start}, {stop}")
            parent.lines.append(f"  br i1 {enter}, label %{inside}, label %{after}")
        else:
            parent.lines.append(f"  br label %{inside}")
        parent.lines += [
            f"{inside}:",
            f"  {counter} = phi i64 [{start}, %{parent.block}], [{following}, %{done.block}]",
            *done.lines,
            f"  {following} = add i64 {counter}, {step}",
            f"  {again} = icmp slt i64 {following}, {stop}",
            f"  br i1 {again}, label %{inside}, label %{after}",
            f"{after}:",
        ]
        parent.block = after

    # ---- variables ----

    def bind_lanes(self, loop: Loop, base: str) -> None:
        """Let a lanes loop's variable be base + 0 … step − 1 in the innermost level."""
        for atom, first in ((loop.variable, base), (loop.lane, "0")):
            if atom is not None:
                self.vectors[atom] = Lanes(first, loop.step)
                self.bound(atom)

    def width(self) -> int:
        """Lanes of the vector variable in scope, 1 without one."""
        for lanes in self.vectors.values():
            return lanes.width
        return 1

    def lanes_of(self, e: Expr) -> int:
        """Lanes of an expression's value."""
        for atom, lanes in self.vectors.items():
            if atom in e.variables:
                return lanes.width
        return 1

    def _masking(self) -> Level | None:
        """The innermost level that has a say in which lanes count."""
        return next((level for level in reversed(self.levels) if level.mask is not None), None)

    def mask(self) -> str | None:
        """The mask in force."""
        level = self._masking()
        return level.mask or None if level is not None else None

    def counting(self) -> str | None:
        """How many lanes the mask in force lets count; None without one."""
        level = self._masking()
        return level.counting or None if level is not None else None
