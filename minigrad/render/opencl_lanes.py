"""Vectors of a work-item: a lanes loop of 2, 4 or 8 iterations computes them all at once.

Where its body cannot be computed so, it is written out lane by lane. A lanes loop of more than one
vector is a plain loop, which needs no registers of several lanes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minigrad.dtype import dtypes
from minigrad.graph.substitution import substitute, variables
from minigrad.graph.symbolic import Affine, Atom, Integer
from minigrad.loops.nest import Loop, Nest, Statement, Store, expressions
from minigrad.render.levels import stride
from minigrad.render.opencl import Emitter
from minigrad.render.opencl_index import Variable, kind_of, kind_of_range
from minigrad.render.opencl_values import WIDTHS, Language, Words, bare, literal
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf


@dataclass(frozen=True)
class _Vector:
    """The lanes loop whose vectors are emitted now."""

    variable: Atom
    lane: Atom | None
    words: Words
    start: Integer

    @property
    def atoms(self) -> frozenset[Atom]:
        """The variables that differ from lane to lane."""
        return frozenset((self.variable,) if self.lane is None else (self.variable, self.lane))

    def stride(self, x: Integer) -> int | None:
        """How much an index grows from lane to lane; None where that is not constant."""
        return stride(x, self.atoms)

    def at(self, x: Integer, lane: int) -> Integer:
        """An index in one lane, in terms of the loop's variable at lane 0."""
        values: dict[Atom, Integer] = {self.variable: self.variable.index + lane}
        if self.lane is not None:
            values[self.lane] = self.lane.index + lane
        return substitute(x, values)

    def varies(self, x: Integer) -> bool:
        """Whether an index differs from lane to lane."""
        return not self.atoms.isdisjoint(variables(x)) or any(
            not self.atoms.isdisjoint(e.variables) for e in expr.values_in(x)
        )

    def takes(self, statement: Statement) -> bool:
        """Whether a statement can be computed for all lanes at once."""
        if isinstance(statement, Loop):
            bounds = (statement.start, *statement.stops)
            if statement.kind == "lanes" or any(self.varies(x) for x in bounds):
                return False
            return all(self.takes(inner) for inner in statement.body)
        places: list[Integer] = []
        if isinstance(statement, Store):
            places += [statement.index, *statement.guard]
        for e in expr.walk(*expressions(statement)):
            if e.op is Leaf.LOAD:
                places += [e.index, *e.guard]
            elif e.op in (Leaf.INDEX, Leaf.CONDITION):
                places.append(e.index)
        inside = [e for x in places for e in expr.values_in(x)]
        return all(self.atoms.isdisjoint(e.variables) for e in inside)


class LanesEmitter(Emitter):
    """Emits lanes loops as vectors, or lane by lane."""

    def __init__(self, nest: Nest, language: Language) -> None:
        super().__init__(nest, language)
        self.vector: _Vector | None = None
        self.lane: int | None = None  # where a lanes loop is written out: which lane it is now

    # ---- loops ----

    def loop(self, loop: Loop) -> None:
        """Emit a loop of any kind."""
        if loop.kind != "lanes":
            super().loop(loop)
            return
        (stop, *others) = loop.stops
        if others or stop - loop.start != loop.step:
            if loop.lane is not None:
                raise self._unexpected("a lanes loop of more than one vector")
            super().loop(replace(loop, kind="serial", step=1))
            return
        vector = _Vector(
            loop.variable, loop.lane, Words(self.language, loop.step), loop.start
        )
        if loop.step in WIDTHS and all(vector.takes(inner) for inner in loop.body):
            self.vector = vector
            self._iteration(loop, 0)
            self.vector = None
            return
        before = self.lane
        for lane in range(loop.step):
            self.lane = lane
            self._iteration(loop, lane)
        self.lane = before

    def _iteration(self, loop: Loop, lane: int) -> None:
        """The body in one lane, or from the first one on."""
        kind = kind_of_range(loop.start, loop.stops, loop.step)
        with self.straight(loop.body):
            place = self.fresh(loop.variable.name)
            self.line(f"const {kind} {place} = {bare(self.index(loop.start + lane, kind))};")
            self.bind(loop.variable, Variable(place, kind))
            if loop.lane is not None:
                self.bind_constant(loop.lane, lane)
            self.body(loop)

    # ---- statements ----

    def set(self, statement: Store, value: str) -> None:
        """Let a register have a value, or this lane of it."""
        array = statement.array
        if array.width == 1:
            super().set(statement, value)
            return
        register = super()._register(array, statement.index)
        if self.lane is not None:
            value = f"{value} ? -1 : 0" if array.dtype.is_bool else value
            register = f"{register}.s{self.lane}"
        elif not self._varies(self.expand(statement.value)):
            value = Words(self.language, array.width).broadcast(value, array.dtype)
        self.line(f"{register} = {bare(value)};")

    def store(self, statement: Store, value: str) -> None:
        """Write a value, of all lanes at once where they are neighbours."""
        vector, array = self.vector, statement.array
        wide = self._varies(self.expand(statement.value))
        places = (statement.index, *statement.guard)
        if vector is None or not (wide or any(map(vector.varies, places))):
            super().store(statement, value)
            return
        guarded = any(vector.varies(c) for c in statement.guard)
        stride = vector.stride(statement.index)
        text = None
        if not wide:
            value = vector.words.broadcast(value, array.dtype)
        if stride == 1 and not guarded:
            text = self._whole_store(array, statement.index, value, vector.words)
        if text is not None:
            guard = self.guard(statement.guard)
            if guard != "false":
                self.line(f"if ({bare(guard)}) {text}" if guard else text)
            return
        name = self.number("v")
        self.line(f"const {vector.words.type_of(array.dtype)} {name} = {bare(value)};")
        for lane in range(vector.words.width):
            guard = self.guard([vector.at(c, lane) for c in statement.guard])
            if guard == "false":
                continue
            place = bare(self.index(vector.at(statement.index, lane)))
            element = vector.words.lane(name, array.dtype, lane)
            text = self._stored(array.dtype, self.pointers[array], place, element)
            self.line(f"if ({bare(guard)}) {text}" if guard else text)

    def _register(self, array: Array, index: Integer) -> str:
        name = super()._register(array, index)
        if array.width == 1 or self.lane is None:
            return name
        return Words(self.language, array.width).lane(name, array.dtype, self.lane)

    # ---- expressions ----

    def _varies(self, e: Expr) -> bool:
        """Whether a value is a vector here."""
        return self.vector is not None and not self.vector.atoms.isdisjoint(e.variables)

    def _type_of(self, e: Expr) -> str:
        if self.vector is not None and self._varies(e):
            return self.vector.words.type_of(e.dtype)
        return super()._type_of(e)

    def _text(self, e: Expr, texts: dict[Expr, str], levels: dict[Expr, int]) -> str:
        vector = self.vector
        if vector is None or not self._varies(e):
            return super()._text(e, texts, levels)
        words = vector.words
        if e.in_registers:
            return self._register(e.array, e.index)
        if e.op is Leaf.LOAD:
            return self._vector_load(e, vector)
        if e.op in (Leaf.INDEX, Leaf.CONDITION):
            return self._vector_index(e, vector)
        given = {arg: texts[arg] if arg in texts else self.memo[arg][0] for arg in e.args}
        args = [
            given[arg] if self._varies(arg) else words.broadcast(given[arg], arg.dtype)
            for arg in e.args
        ]
        text = words.operation(e.op, e.args[0].dtype, e.dtype, args)
        if text is not None:
            return text
        lanes = []
        for number in range(words.width):
            parts = []
            for arg in e.args:
                if not self._varies(arg):
                    parts.append(given[arg])
                    continue
                if not given[arg].isidentifier():
                    given[arg] = texts[arg] = self._declare(arg, given[arg], levels[arg])
                parts.append(words.lane(given[arg], arg.dtype, number))
            lanes.append(self._said(e, parts))
        return words.gathered(lanes, e.dtype)

    def _vector_index(self, e: Expr, vector: _Vector) -> str:
        """An index as values, or whether it is ≥ 0."""
        words, x = vector.words, e.index
        step = vector.stride(x)
        kind = kind_of(vector.at(x, words.width - 1))
        if step is not None and kind == "int":
            numbers = words.iota(self.index(x, kind), step, kind)
            if e.op is Leaf.CONDITION:
                return f"({numbers} >= (int{words.width})(0))"
            if text := words.cast(numbers, dtypes.int32, e.dtype):
                return text
        places = [vector.at(x, lane) for lane in range(words.width)]
        if e.op is Leaf.CONDITION:
            return words.gathered([self.condition(place) for place in places], dtypes.bool)
        kind = self.language.type_of(e.dtype)
        return words.gathered([f"({kind}){self.index(place)}" for place in places], e.dtype)

    def _vector_load(self, e: Expr, vector: _Vector) -> str:
        array, index, conditions = e.array, e.index, e.guard
        words = vector.words
        uniform = [c for c in conditions if not vector.varies(c)]
        varying = [c for c in conditions if vector.varies(c)]
        guard = self.guard(uniform)
        zero = words.broadcast(literal(0, array.dtype), array.dtype)
        if guard == "false":
            return zero
        whole = None
        if vector.stride(index) == 1 and all(vector.stride(c) is not None for c in varying):
            whole = self._whole_load(array, index, words)
            if not varying:
                return f"({guard} ? {whole} : {zero})" if guard else whole
        lanes = [self._lane_load(array, index, varying, vector, n) for n in range(words.width)]
        text = words.gathered(lanes, array.dtype)
        if whole is not None:  # what holds at both ends holds between them
            ends = [vector.at(c, n) for c in varying for n in (0, words.width - 1)]
            inside = self.guard(ends)
            if inside != "false":
                text = f"({inside} ? {whole} : {text})" if inside else whole
        return f"({guard} ? {text} : {zero})" if guard else text

    def _whole_load(self, array: Array, index: Integer, words: Words) -> str:
        """Neighbouring elements from an index on."""
        return words.loaded(array.dtype, self.pointers[array], self.index(index))

    def _whole_store(self, array: Array, index: Integer, value: str, words: Words) -> str | None:
        """The statement that writes them; None where there are no words for them."""
        return words.stored(array.dtype, self.pointers[array], self.index(index), value)

    def _lane_load(
        self, array: Array, index: Integer, conditions: list[Affine], vector: _Vector, lane: int
    ) -> str:
        zero = literal(0, array.dtype)
        guard = self.guard([vector.at(c, lane) for c in conditions])
        if guard == "false":
            return zero
        place = bare(self.index(vector.at(index, lane)))
        text = self.words.loaded(array.dtype, self.pointers[array], place)
        return f"({guard} ? {text} : {zero})" if guard else text
