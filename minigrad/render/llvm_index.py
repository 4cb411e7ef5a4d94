"""Open loops and branches of LLVM IR, each with its own lines; variables, pointers and conditions;
which lanes of a vector are active.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from itertools import count

from minigrad.dtype import DType, dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Atom, Integer, high, low
from minigrad.loops.nest import Loop, Nest
from minigrad.render import llvm_values as values
from minigrad.render import scopes
from minigrad.render.indices import Indices, Lanes
from minigrad.render.llvm_values import Builder, Value, memory_type
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Guard

Slot = tuple[str, int]  # a register: the name of an array of registers, and its index


@dataclass
class Scope(scopes.Scope):
    """An open loop, branch or straight piece; `block` labels where its next line goes.

    registers: values of those that were set here. mask: of lanes; the first `counting` of them are
    active; "": all lanes are active again.
    """

    block: str = "entry"
    registers: dict[Slot, Value] = field(default_factory=dict)
    mask: str | None = None
    counting: str = ""


class IndexEmitter(Indices[Scope, Value], Builder):
    """The base of what emits memory accesses and expressions.

    It opens and closes levels, and knows which variable is a vector's, and its active lanes.
    """

    def __init__(self, nest: Nest) -> None:
        super().__init__(Scope(), nest)
        Builder.__init__(self)
        self.bases: dict[Array, str] = {}
        self.scalars: dict[Atom, str] = {}
        self._asked: set[str] = set()  # names of values in registers that are read
        self.label: Callable[[], str] = map("b{}".format, count(1)).__next__

    # ---- levels ----

    @property
    def lines(self) -> list[str]:  # type: ignore[override]
        """The lines of the current level."""
        return self.current.lines

    def _close(self) -> tuple[Scope, Scope]:
        """Close the innermost level; returns it and its parent."""
        return self.pop(self.scalars, self.vectors), self.levels[-1]

    @contextmanager
    def straight(self, changes: frozenset[Array] = frozenset()) -> Iterator[None]:
        """A straight piece of code, in which arrays change."""
        self.levels.append(Scope(block=self.levels[-1].block, changes=changes))
        yield
        done, parent = self._close()
        parent.lines += done.lines
        parent.registers.update(done.registers)
        parent.block = done.block

    @contextmanager
    def branch(self, test: str, changes: frozenset[Array] = frozenset()) -> Iterator[None]:
        """A piece that runs if an i1 is true."""
        inside, after = self.label(), self.label()
        before = self._held(changes)
        self.levels.append(Scope(block=inside, changes=changes))
        yield
        done, parent = self._close()
        parent.lines += [f"  br i1 {test}, label %{inside}, label %{after}", f"{inside}:"]
        parent.lines += [*done.lines, f"  br label %{after}", f"{after}:"]
        parent.lines += self._one_of_two(before, parent.block, done.registers, done.block)
        parent.block = after

    def where_above(
        self, count: str, number: int, changes: frozenset[Array] = frozenset()
    ) -> AbstractContextManager[None]:
        """A piece that runs if an i64 is above a number; a count that is known must be above."""
        if is_number(count):
            return self.straight(changes)
        return self.branch(self.line(f"icmp sgt i64 {count}, {number}"), changes)

    @contextmanager
    def iterations(
        self, start: str, stop: str, step: int, check: bool, changes: frozenset[Array] = frozenset()
    ) -> Iterator[str]:
        """A loop from start to stop; gives its counter. check: it may have no iterations."""
        inside, after, counter = self.label(), self.label(), self.fresh()
        before = self._held(changes)
        begun = {slot: Value(self.fresh(), *value[1:]) for slot, value in before.items()}
        self.levels.append(Scope(block=inside, registers=dict(begun), changes=changes))
        yield counter
        done, parent = self._close()
        carried = [
            self._phi(begun[slot].text, value, parent.block, done.registers[slot], done.block)
            for slot, value in before.items() if begun[slot].text in self._asked
        ]  # fmt: skip
        changed = {slot: v for slot, v in done.registers.items() if v != begun.get(slot)}
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
            *carried,
            *done.lines,
            f"  {following} = add i64 {counter}, {step}",
            f"  {again} = icmp slt i64 {following}, {stop}",
            f"  br i1 {again}, label %{inside}, label %{after}",
            f"{after}:",
        ]
        if check:
            parent.lines += self._one_of_two(before, parent.block, changed, done.block)
        else:
            parent.registers.update(changed)
        parent.block = after

    # ---- registers ----

    def held(self, slot: Slot) -> Value | None:
        """The value of a register, or None if it was not set."""
        for level in reversed(self.levels):
            if slot in level.registers:
                self._asked.add(level.registers[slot].text)
                return level.registers[slot]
        return None

    def _held(self, arrays: Collection[Array]) -> dict[Slot, Value]:
        """The values of all registers of these arrays that were set."""
        names = {array.name for array in arrays if array.in_registers}
        return {
            slot: value for level in self.levels for slot, value in level.registers.items()
            if slot[0] in names
        }  # fmt: skip

    def _phi(self, name: str, one: Value, block: str, other: Value, from_block: str) -> str:
        """The line that gives a name one of two values, by the block that was executed last."""
        self._asked.add(one.text)
        return f"  {name} = phi {one.type} [{one.text}, %{block}], [{other.text}, %{from_block}]"

    def _one_of_two(
        self, before: Mapping[Slot, Value], block: str, changed: Mapping[Slot, Value],
        from_block: str,
    ) -> list[str]:  # fmt: skip
        """Merge registers after a piece that may not have run; returns the phi instructions.

        Registers that had no value before the piece have none after it.
        """
        lines = []
        for slot, value in changed.items():
            if slot in before:
                new = Value(self.fresh(), *value[1:])
                lines.append(self._phi(new.text, before[slot], block, value, from_block))
                self.levels[-1].registers[slot] = new
        return lines

    # ---- variables ----

    def bind(self, name: str, low: int, high: int, text: str) -> Integer:
        """An i64 as an index; in the innermost level it is a variable's unless it is a number."""
        if is_number(text):
            return int(text)
        atom = Atom("var", name, low, high)
        self.scalars[atom] = text
        self.bound(atom)
        return atom.index

    def variable(self, atom: Atom, dtype: DType) -> Value:
        """The value of a variable that all lanes share, or of a symbol."""
        text = self.scalars.get(atom) or f"%sym.{atom.name}"
        return values.cast(self, Value(text, dtypes.int64, 1), dtype)

    def spaced(self, base: Value, step: int, dtype: DType) -> Value:
        """base, base + step, … in the lanes in scope."""
        kind, width = values.register_type(dtype), self.width()
        first = int(base.text) if is_number(base.text) else 0
        steps = ", ".join(f"{kind} {first + lane * step}" for lane in range(width))
        known = Value(f"<{steps}>", dtype, width)
        if is_number(base.text):
            return known
        return values.operation(self, Op.ADD, [values.broadcast(self, base, width), known], dtype)

    def bind_lanes(self, loop: Loop, base: str, even: bool) -> None:
        """Let a lanes loop's variable be base + 0 … step − 1 in the innermost level.

        even: only whole vectors are between the loop's start and the base.
        """
        x, step = loop.variable, loop.step
        last = min(x.high, *(high(stop) - 1 for stop in loop.stops))
        number = Atom("var", f"{x.name}.vectors", 0, max(last - low(loop.start), 0) // step)
        first = loop.start + number.index * step if even else None
        place = self.bind(f"{x.name}.base", x.low, x.high, base)
        first = place if isinstance(place, int) else first
        for atom, lanes in ((x, Lanes(place, step, first)), (loop.lane, Lanes(0, step, 0))):
            if atom is not None:
                self.vectors[atom] = lanes
                self.bound(atom)

    def _masking(self) -> Scope:
        """The innermost level that determines which lanes are active; the outermost without one."""
        levels = (level for level in reversed(self.levels) if level.mask is not None)
        return next(levels, self.levels[0])

    def mask(self) -> str | None:
        """The mask in force, or None."""
        return self._masking().mask or None

    def counting(self) -> str | None:
        """How many lanes the mask in force lets be active, or None."""
        return self._masking().counting or None

    # ---- indices ----

    def scalar(self, x: Integer) -> str:
        """The i64 text of a sum without vector variables."""
        return self.evaluate(self.arithmetic(x, dtypes.int64)).text

    def minimum(self, a: str, b: str) -> str:
        """The smaller of two i64."""
        return self._choose("slt", a, b)

    def maximum(self, a: str, b: str) -> str:
        """The larger of two i64."""
        return self._choose("sgt", a, b)

    def least(self, indices: Sequence[Integer]) -> str:
        """The smallest of some indices, as i64 text."""
        return reduce(self.minimum, map(self.scalar, indices))

    def _choose(self, test: str, a: str, b: str) -> str:
        if is_number(a) and is_number(b):
            return str(min(int(a), int(b)) if test == "slt" else max(int(a), int(b)))
        first = self.line(f"icmp {test} i64 {a}, {b}")
        return self.line(f"select i1 {first}, i64 {a}, i64 {b}")

    def minus(self, a: str, b: str) -> str:
        """The difference of two i64."""
        return self.computed("sub", int.__sub__, a, b)

    def computed(self, name: str, known: Callable[[int, int], int], a: str, b: str) -> str:
        """An operation on two i64, evaluated now if both are numbers."""
        if is_number(a) and is_number(b):
            return str(known(int(a), int(b)))
        return self.line(f"{name} i64 {a}, {b}")

    def first_lanes(self, count: str, width: int) -> str:
        """The mask of the first `count` lanes; count: an i64 from 0 to `width`."""
        if is_number(count):
            return values.flags([lane < int(count) for lane in range(width)])
        short = Value(self.line(f"trunc i64 {count} to i32"), dtypes.int32, 1)
        most = values.broadcast(self, short, width)
        return self.line(f"icmp slt {values.numbers(tuple(range(width)))}, {most.text}")

    def at_lanes(self, x: Integer) -> list[Integer]:
        """An index in each of the lanes in scope, in other variables; empty if it is unknown."""
        found = [(atom, lanes.first) for atom, lanes in self.vectors.items()]
        known = [(atom, first) for atom, first in found if first is not None]
        if len(known) < len(found) or expr.values_in(x):
            return []
        x = substitute(x, self.known)
        return [
            substitute(x, {atom: first + lane for atom, first in known})
            for lane in range(self.width())
        ]

    def pointer(self, array: Array, x: Integer) -> str:
        """The address of array[x]."""
        varying, offset = self.parts(x, dtypes.int64)
        base, kind = self.bases[array], memory_type(array.dtype)
        if varying is not None:
            index, level = self.evaluate(varying).text, self.memo[varying][1]
            at = f"getelementptr {kind}, ptr {base}, i64 {index}"
            if at not in self.memo:
                made = self.at(level, self.line, at)
                self.remember(at, Value(made, dtypes.int64, 1), level)
            base = self.memo[at][0].text
        if offset == 0:
            return base
        return self.line(f"getelementptr {kind}, ptr {base}, i64 {offset}")

    def pointers(self, array: Array, x: Integer, width: int) -> str:
        """The addresses of array[x], one a lane."""
        index = values.broadcast(self, self.evaluate(self.arithmetic(x)), width)
        kind = memory_type(array.dtype)
        return self.line(f"getelementptr {kind}, ptr {self.bases[array]}, {index.typed}")

    # ---- conditions ----

    def condition(self, x: Integer) -> Value:
        """Whether x ≥ 0, one i1 (or one a lane)."""
        x = substitute(x, self.known)
        if low(x) >= 0:
            return values.constant(True, dtypes.bool)
        at = self.at_lanes(x) if self.varies(x) else []
        if at and all(low(one) >= 0 or high(one) < 0 for one in at):
            return Value(values.flags([low(one) >= 0 for one in at]), dtypes.bool, len(at))
        number = self.arithmetic(x)
        if number.op is Op.CONST:
            return values.constant(number.value >= 0, dtypes.bool)
        # Further out, the comparison would not be one of the instructions that need its flags.
        level = self._number % len(self.levels)
        key = ("condition", number, level)
        if key not in self.memo:
            found = self.evaluate(number)
            zero = values.literal(0, values.register_type(found.dtype), found.lanes)
            test = Value(self.line(f"icmp sge {found.typed}, {zero}"), dtypes.bool, found.lanes)
            depends = self.changing(number) if number.inner_loads else ()
            self.remember(key, test, level, depends)
        return self.memo[key][0]

    def guard(self, conditions: Guard) -> Value | None:
        """All conditions at once: an i1, or a mask if a vector takes part; None without any.

        Conditions that are known to hold do not count.
        """
        found = [one for one in map(self.condition, conditions) if one.text != "true"]
        return reduce(self._and, found) if found else None

    def _and(self, a: Value, b: Value) -> Value:
        width = max(a.lanes, b.lanes)
        a, b = (values.broadcast(self, x, width) for x in (a, b))
        one, other = (values.known_flags(x.text, width) for x in (a, b))
        if one is not None and other is not None:
            both = zip(one, other, strict=True)
            return Value(values.flags(x and y for x, y in both), dtypes.bool, width)
        return Value(self.line(f"and {a.typed}, {b.text}"), dtypes.bool, width)

    def both(self, mask: str | None, guard: Value | None, width: int) -> str | None:
        """A mask and a guard, as one mask."""
        if guard is None:
            return mask
        if mask is not None:
            return self._and(Value(mask, dtypes.bool, width), guard).text
        return values.broadcast(self, guard, width).text


def is_number(text: str) -> bool:
    """Whether an operand is a constant."""
    return text[0] != "%"
