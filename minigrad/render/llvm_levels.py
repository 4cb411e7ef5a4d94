"""Open loops and branches of LLVM IR, each with its own lines; which lanes of a vector count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minigrad.graph.symbolic import Atom
from minigrad.loops.nest import Loop, Statement
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
    counter: str = ""
    close: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lanes:
    """The vector variable in scope: its scalar base, and how many lanes."""

    base: str
    width: int


class LevelEmitter(levels.Levels[Level, Value]):
    """Opens and closes levels; knows which variable is a vector's, and which of its lanes count."""

    def __init__(self) -> None:
        super().__init__(Level())
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

    def open(self) -> None:
        """Open a straight piece."""
        self.levels.append(Level(block=self.levels[-1].block))

    def close_straight(
        self, body: Iterable[Statement], emit: Callable[[Statement], None]
    ) -> None:
        """Emit the body of a straight piece and put it behind its parent's lines."""
        body = tuple(body)
        self.levels[-1].changes = levels.changes(body)
        for statement in body:
            emit(statement)
        done = self.pop(self.scalars, self.vectors)
        self.levels[-1].lines.extend(done.lines)
        self.levels[-1].block = done.block

    def open_loop(
        self, variable: Atom | None, start: str, stop: str, step: int, check: bool
    ) -> None:
        """Open a loop from start to stop; `check`: it may have no iterations."""
        body, after, counter = self.label(), self.label(), self.fresh()
        level = Level(block=body, counter=counter)
        level.close = (start, stop, str(step), body, after, "check" if check else "")
        self.levels.append(level)
        if variable is not None:
            self.scalars[variable] = counter
            self.bound(variable)

    def counter(self) -> str:
        """The counter of the innermost loop."""
        return self.levels[-1].counter

    def close_loop(self) -> None:
        """Close a loop: header, body and latch go behind the parent's lines."""
        done = self.pop(self.scalars, self.vectors)
        start, stop, step, body, after, check = done.close
        parent = self.levels[-1]
        following = self.fresh()
        again = self.fresh()
        if check:
            enter = self.fresh()
            parent.lines.append(f"  {enter} = icmp slt i64 {start}, {stop}")
            parent.lines.append(f"  br i1 {enter}, label %{body}, label %{after}")
        else:
            parent.lines.append(f"  br label %{body}")
        parent.lines.append(f"{body}:")
        parent.lines.append(
            f"  {done.counter} = phi i64 [{start}, %{parent.block}], "
            f"[{following}, %{done.block}]"
        )
        parent.lines.extend(done.lines)
        parent.lines.append(f"  {following} = add i64 {done.counter}, {step}")
        parent.lines.append(f"  {again} = icmp slt i64 {following}, {stop}")
        parent.lines.append(f"  br i1 {again}, label %{body}, label %{after}")
        parent.lines.append(f"{after}:")
        parent.block = after

    def open_branch(self, test: str) -> None:
        """Open a piece that runs where an i1 is true."""
        body, after = self.label(), self.label()
        level = Level(block=body)
        level.close = (test, body, after)
        self.levels.append(level)

    def close_branch(self) -> None:
        """Close a branch."""
        done = self.pop(self.scalars, self.vectors)
        test, body, after = done.close
        parent = self.levels[-1]
        parent.lines.append(f"  br i1 {test}, label %{body}, label %{after}")
        parent.lines.append(f"{body}:")
        parent.lines.extend(done.lines)
        parent.lines.append(f"  br label %{after}")
        parent.lines.append(f"{after}:")
        parent.block = after

    # ---- variables ----

    def bind_lanes(self, loop: Loop, base: str, width: int) -> None:
        """Let a lanes loop's variable be base + 0 … width − 1 in the innermost level."""
        self.vectors[loop.variable] = Lanes(base, width)
        self.bound(loop.variable)
        if loop.lane is not None:
            self.vectors[loop.lane] = Lanes("0", width)
            self.bound(loop.lane)
        self.levels[-1].changes = levels.changes(loop.body)

    def lanes_atom(self) -> Atom | None:
        """The vector variable in scope."""
        return next(iter(self.vectors), None)

    def width_of(self, atom: Atom) -> int:
        """Lanes of a vector variable."""
        return self.vectors[atom].width

    def lanes_of(self, e: Expr) -> int:
        """Lanes of an expression's value."""
        for atom, lanes in self.vectors.items():
            if atom in e.variables:
                return lanes.width
        return 1

    def mask(self) -> str | None:
        """The mask in force."""
        for level in reversed(self.levels):
            if level.mask is not None:
                return level.mask or None
        return None

    def counting(self) -> str | None:
        """How many lanes the mask in force lets count; None without one."""
        for level in reversed(self.levels):
            if level.mask is not None:
                return level.counting or None
        return None
