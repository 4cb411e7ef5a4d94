"""Index arithmetic of LLVM IR: open loops and branches, each with its own lines; scalars, vectors,
pointers and conditions; which lanes of a vector are active.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from operator import itemgetter
from typing import Any

from minigrad.dtype import DType, dtypes
from minigrad.graph.substitution import substitute, variables
from minigrad.graph.symbolic import Atom, Integer, high, low
from minigrad.loops.nest import Loop, Nest
from minigrad.render import llvm_values as values
from minigrad.render import scopes
from minigrad.render.llvm_values import Builder, Value, memory_type
from minigrad.render.scopes import fits_32_bits, stride
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Guard

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


@dataclass(frozen=True)
class Lanes:
    """The vector variable in scope: its scalar base, and its number of lanes.

    first: the base as an index, if only whole vectors are known to come before.
    """

    base: str
    width: int
    first: Integer | None = None


class IndexEmitter(scopes.Levels[Scope, Value], Builder):
    """The base of what emits memory accesses and expressions.

    It opens and closes levels, and knows which variable is a vector's, and its active lanes.
    """

    def __init__(self, nest: Nest) -> None:
        super().__init__(Scope(), nest)
        Builder.__init__(self)
        self.bases: dict[Array, str] = {}
        self.scalars: dict[Atom, str] = {}
        # variables that equal another one plus a number; indices made from them are shared, too
        self.shifted: dict[Atom, tuple[Atom, int]] = {}
        self.vectors: dict[Atom, Lanes] = {}
        self._at_base: dict[Integer, Integer] = {}  # results of `at_base` for the vectors in scope
        self._asked: set[str] = set()  # names of values in registers that are read
        self.label: Callable[[], str] = map("b{}".format, count(1)).__next__

    # ---- levels ----

    @property
    def lines(self) -> list[str]:  # type: ignore[override]
        """The lines of the current level."""
        return self.current.lines

    def _close(self) -> tuple[Scope, Scope]:
        """Close the innermost level; returns it and its parent."""
        if not self.vectors.keys().isdisjoint(self.levels[-1].bound):
            self._at_base.clear()
        return self.pop(self.scalars, self.shifted, self.vectors), self.levels[-1]

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

    def bind_lanes(self, loop: Loop, base: str, even: bool) -> None:
        """Let a lanes loop's variable be base + 0 … step − 1 in the innermost level.

        even: only whole vectors are between the loop's start and the base.
        """
        x, step = loop.variable, loop.step
        last = min(x.high, *(high(stop) - 1 for stop in loop.stops))
        number = Atom("var", f"{x.name}.vectors", 0, max(last - low(loop.start), 0) // step)
        first = loop.start + number.index * step if even else None
        first = int(base) if base.isdecimal() else first
        self._at_base.clear()
        for atom, lanes in ((x, Lanes(base, step, first)), (loop.lane, Lanes("0", step, 0))):
            if atom is not None:
                self.vectors[atom] = lanes
                self.bound(atom)

    def look_along(self, vectors: dict[Atom, Lanes]) -> None:
        """Make other variables the vectors in scope."""
        self.vectors = vectors
        self._at_base.clear()

    def width(self) -> int:
        """Lanes of the vector variable in scope, 1 without one."""
        for lanes in self.vectors.values():
            return lanes.width
        return 1

    def lanes_of(self, e: Expr) -> int:
        """Lanes of an expression's value."""
        return 1 if self.vectors.keys().isdisjoint(e.variables) else self.width()

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
        return self._sum(x)[0]

    def _sum(self, x: Integer) -> tuple[str, int]:
        """The same, with its level."""
        dynamic, offset, level = self._parts(x)
        if dynamic is None:
            return str(offset), level
        return self._binary("add", dynamic, str(offset), level) if offset else (dynamic, level)

    def _parts(self, x: Integer) -> tuple[str | None, int, int]:
        """(text of the part that is not constant, constant part, level of the former)."""
        if isinstance(x, int):
            return None, x, 0
        offset = x.constant
        terms: list[tuple[int, str, int]] = []
        for atom, factor in x.terms:
            if atom in self.constants:
                offset += factor * self.constants[atom]
                continue
            if atom in self.shifted:
                atom, more = self.shifted[atom]
                offset += factor * more
            text, level = self._atom(atom)
            if is_number(text):
                offset += factor * int(text)
            else:
                terms.append((level, text, factor))
        if not terms:
            return None, offset, 0
        if len(terms) > 1:
            terms.sort(key=itemgetter(0))
        total, height = "", 0
        for level, text, factor in terms:
            if factor != 1:
                text, level = self._binary("mul", text, str(factor), level)
            height = max(height, level)
            if total:
                total, height = self._binary("add", total, text, height)
            else:
                total = text
        return total, offset, height

    def _binary(self, name: str, left: str, right: str, level: int) -> tuple[str, int]:
        """The result and its level."""
        text = f"{name} i64 {left}, {right}"
        return self._once(text, level, self.line, text)

    def _once(
        self, key: object, level: int, make: Callable[..., str], *given: Any
    ) -> tuple[str, int]:
        """The text of a value, make(*given) at a level if it is not known; and its level."""
        if key not in self.memo:
            self.remember(key, Value(self.at(level, make, *given), dtypes.int64, 1), level)
        known, level = self.memo[key]  # further in if it is known there already
        return known.text, level

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

    def _atom(self, atom: Atom) -> tuple[str, int]:
        """An atom's value as i64 text, and its level."""
        if atom.kind == "var":
            if atom in self.scalars:
                return self.scalars[atom], self.where[atom]
            if atom.low == atom.high:
                return str(atom.low), 0
            return f"%sym.{atom.name}", 0
        if atom.kind == "value":
            value = self.value(atom.payload)
            level = self.memo[self.expand(atom.payload)][1]
            return self._once(
                ("wide", value.text), level,
                lambda: values.cast(self, value, dtypes.int64).text,
            )  # fmt: skip
        assert atom.inner is not None
        inner, level = self._sum(atom.inner)
        if is_number(inner):
            number = int(inner)
            result = number // atom.divisor if atom.kind == "div" else number % atom.divisor
            return str(result), level
        x, key = Value(inner, dtypes.int64, 1), (atom.kind, inner, atom.divisor)
        return self._once(key, level, lambda: _divided(self, x, atom).text)

    def vector(self, x: Integer, width: int) -> Value:
        """A sum with vector variables, one value per lane: i32 if all its parts fit, else i64."""
        dtype = dtypes.int32 if fits_32_bits(x) else dtypes.int64
        return self._vector(x, width, dtype)

    def _vector(self, x: Integer, width: int, dtype: DType) -> Value:
        kind = values.register_type(dtype)
        if isinstance(x, int):
            return values.constant(x, dtype, width)
        same: Integer = x.constant  # the part that all lanes share
        step = 0  # from lane to lane
        parts: list[Value] = []
        for atom, factor in x.terms:
            if atom in self.vectors or self.vectors.keys().isdisjoint(variables(atom.index)):
                same += factor * atom.index
                step += factor if atom in self.vectors else 0
                continue
            part = self._vector_atom(atom, width, dtype)
            if factor != 1:
                by = values.literal(factor, kind, width)
                part = Value(self.line(f"mul {part.typed}, {by}"), dtype, width)
            parts.append(part)
        if step:
            steps = ", ".join(f"{kind} {lane * step}" for lane in range(width))
            parts.append(Value(f"<{steps}>", dtype, width))
        text = self.scalar(self.at_base(same))
        if text != "0" or not parts:
            scalar = values.cast(self, Value(text, dtypes.int64, 1), dtype)
            parts.append(values.broadcast(self, scalar, width))
        return reduce(self._add, parts)

    def _add(self, a: Value, b: Value) -> Value:
        text = self.line(f"add {a.typed}, {b.text}")
        return Value(text, a.dtype, a.lanes)

    def _vector_atom(self, atom: Atom, width: int, dtype: DType) -> Value:
        if atom.kind == "value":
            value = values.broadcast(self, self.value(atom.payload), width)
            return values.cast(self, value, dtype)
        assert atom.inner is not None
        return _divided(self, self._vector(atom.inner, width, dtype), atom)

    def lane_stride(self, x: Integer) -> int | None:
        """The stride of an index along the vector in scope; None if it is not constant."""
        return stride(x, self.vectors)

    def at_lanes(self, x: Integer) -> list[Integer]:
        """An index in each of the lanes in scope, in other variables; empty if it is unknown."""
        found = [(atom, lanes.first) for atom, lanes in self.vectors.items()]
        known = [(atom, first) for atom, first in found if first is not None]
        if len(known) < len(found) or expr.values_in(x):
            return []
        x = substitute(x, self.constants)
        return [
            substitute(x, {atom: first + lane for atom, first in known})
            for lane in range(self.width())
        ]

    def at_base(self, x: Integer) -> Integer:
        """An index at lane 0 of the vector in scope, in terms of names that `scalar` knows."""
        if x not in self._at_base:
            self._at_base[x] = self._moved_to_base(x)
        return self._at_base[x]

    def _moved_to_base(self, x: Integer) -> Integer:
        changed: dict[Atom, Integer] = {}
        for atom, lanes in self.vectors.items():
            if lanes.base.isdecimal():
                changed[atom] = int(lanes.base)
            else:
                base = Atom("var", atom.name + ".base", atom.low, atom.high)
                if base not in self.scalars:
                    self.scalars[base] = lanes.base
                    self.where[base] = self.where[atom]
                    self.levels[self.where[atom]].bound.append(base)
                changed[atom] = base.index
        return substitute(x, changed)

    def pointer(self, array: Array, x: Integer) -> str:
        """The address of array[x]."""
        dynamic, offset, level = self._parts(x)
        base = self.bases[array]
        kind = memory_type(array.dtype)
        if dynamic is not None:
            at = f"getelementptr {kind}, ptr {base}, i64 {dynamic}"
            base, _ = self._once(at, level, self.line, at)
        if offset == 0:
            return base
        return self.line(f"getelementptr {kind}, ptr {base}, i64 {offset}")

    def pointers(self, array: Array, x: Integer, width: int) -> str:
        """The addresses of array[x], one a lane."""
        index = self.vector(x, width)
        kind = memory_type(array.dtype)
        return self.line(f"getelementptr {kind}, ptr {self.bases[array]}, {index.typed}")

    # ---- conditions ----

    def condition(self, x: Integer) -> Value:
        """Whether x ≥ 0, one i1 (or one a lane)."""
        x = substitute(x, self.constants)
        if low(x) >= 0:
            return values.constant(True, dtypes.bool)
        if self.vectors.keys().isdisjoint(variables(x)):
            text = self.scalar(x)
            if is_number(text):
                return values.constant(int(text) >= 0, dtypes.bool)
            return Value(self.line(f"icmp sge i64 {text}, 0"), dtypes.bool, 1)
        width, at = self.width(), self.at_lanes(x)
        if at and all(low(one) >= 0 or high(one) < 0 for one in at):
            return Value(values.flags([low(one) >= 0 for one in at]), dtypes.bool, width)
        number = self.vector(x, width)
        zero = values.literal(0, values.register_type(number.dtype), width)
        return Value(self.line(f"icmp sge {number.typed}, {zero}"), dtypes.bool, width)

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


def _divided(here: Builder, x: Value, atom: Atom) -> Value:
    """Floor division or remainder by a positive constant."""
    scalar = values.register_type(x.dtype)
    divisor = values.literal(atom.divisor, scalar, x.lanes)
    assert atom.inner is not None
    if atom.inner.low >= 0:
        name = "udiv" if atom.kind == "div" else "urem"
        return Value(here.line(f"{name} {x.typed}, {divisor}"), x.dtype, x.lanes)
    zero = values.literal(0, scalar, x.lanes)
    rest = here.line(f"srem {x.typed}, {divisor}")
    negative = here.line(f"icmp slt {x.type} {rest}, {zero}")
    mask = values.mask_type(x)
    found, change = rest, f"add {x.type} {rest}, {divisor}"
    if atom.kind == "div":
        found = here.line(f"sdiv {x.typed}, {divisor}")
        change = f"sub {x.type} {found}, {values.literal(1, scalar, x.lanes)}"
    text = f"select {mask} {negative}, {x.type} {here.line(change)}, {x.type} {found}"
    return Value(here.line(text), x.dtype, x.lanes)


def is_number(text: str) -> bool:
    """Whether an operand is a constant."""
    return text[0] != "%"
