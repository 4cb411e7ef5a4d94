"""OpenCL C with vectors, for devices that are CPUs: a lanes loop computes up to 16 at once.

The same nests that LLVM gets become OpenCL's vector types, longer vectors two of them. What is left
over at the end of a lanes loop is done with shorter vectors where its length is known, else one by
one, for OpenCL has no masked loads. A work-item takes `grain` iterations of the
parallel loop, so work-groups have one item.
"""

from __future__ import annotations

from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.graph.symbolic import (
    Affine,
    Atom,
    Integer,
    ceildiv,
    coefficient,
    substitute,
    variables,
)
from minigrad.loops.nest import (
    Fold,
    Loop,
    Nest,
    Set,
    Statement,
    Store,
    expressions,
)
from minigrad.render.opencl import Emitter, Source
from minigrad.render.opencl_cut import carried, cut, registers, rest_of
from minigrad.render.opencl_index import Variable, kind_of, kind_of_range, parse
from minigrad.render.opencl_values import Language, bare, literal
from minigrad.render.opencl_vectors import WIDTHS, VectorLanguage
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf, Local


@dataclass(frozen=True)
class _Vector:
    """The lanes loop whose vectors are emitted now."""

    variable: Atom
    lane: Atom | None
    words: VectorLanguage
    start: Integer = 0

    @property
    def atoms(self) -> frozenset[Atom]:
        """The variables that differ from lane to lane."""
        return frozenset((self.variable,) if self.lane is None else (self.variable, self.lane))

    def stride(self, x: Integer) -> int | None:
        """How much an index grows from lane to lane; None where that is not constant."""
        total = 0
        for atom in self.atoms:
            step = coefficient(x, atom)
            if step is None:
                return None
            total += step
        return total

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


class LanesEmitter(Emitter):
    """Emits lanes loops as vectors; everything else as the scalar renderer does."""

    def __init__(self, nest: Nest, language: Language) -> None:
        super().__init__(nest, language)
        self.vector: _Vector | None = None
        self.lane_of_rest: str | None = None  # in a rest that is done one by one: its lane's name
        self.carried = carried(nest.parallel)
        self.spilled: dict[Local, str] = {}

    # ---- loops ----

    def _parallel(self, loop: Loop, strided: bool) -> None:
        """The loop of which a work-item takes `grain` iterations."""
        nest = self.nest
        total, grain = nest.total, max(nest.grain, 1)
        chunks = ceildiv(total, grain)
        kind = kind_of_range(0, [total], grain + loop.step)
        header = f"for ({kind} chunk = get_global_id(0); chunk < {chunks}; "
        self.open(f"{header}chunk += get_global_size(0))", (loop,))
        begin, end = "begin", "end"
        if chunks == 1:
            begin, end = "0", f"{total}L" if kind == "long" else str(total)
        else:
            self.line(f"const {kind} begin = chunk * {grain};")
            self.line(f"const {kind} end = min(begin + {grain}, ({kind}){total});")
        if loop.kind == "lanes":
            self._range_of_lanes(loop, begin, end, kind)
        else:
            name = self.fresh(loop.variable.name)
            self.open(f"for ({kind} {name} = {begin}; {name} < {end}; {name}++)", loop.body)
            self.bind(loop.variable, Variable(name, kind))
            self._body(loop)
            self.close()
        self.close()

    def _loop(self, loop: Loop) -> None:
        if loop.kind != "lanes":
            super()._loop(loop)
            return
        kind = kind_of_range(loop.start, loop.stops, loop.step)
        start = bare(self.index(loop.start, kind))
        stop = bare(self._least([self.index(stop, kind) for stop in loop.stops], kind))
        self._range_of_lanes(loop, start, stop, kind)

    def _range_of_lanes(self, loop: Loop, start: str, stop: str, kind: str) -> None:
        """Whole vectors, then the rest."""
        width = loop.step
        first, last = parse(start), parse(stop)
        count = None if first is None or last is None else max(last - first, 0)
        fits = self._has_vectors(loop) and (
            width in WIDTHS or width == 2 * WIDTHS[-1] and self._is_free(loop)
        )
        rest = None  # how many iterations no whole vector takes, if that is known
        if fits:
            rest = rest_of(loop) if count is None else count % width
        self.open(body=(loop,))
        place = self.fresh(loop.variable.name)
        self.line(f"{kind} {place} = {start};")
        if fits and (count is None or count >= width):
            self.open(f"for (; {place} + {width - 1} < {stop}; {place} += {width})", loop.body)
            self.bind(loop.variable, Variable(place, kind))
            if loop.lane is not None:
                self.bind_constant(loop.lane, 0)
            self._vectors(loop, width)
            self.close()
        if rest and self._is_free(loop):
            origin = self.fresh("rest")
            self.line(f"const {kind} {origin} = {place};")
            for narrow in (w for w in reversed(WIDTHS) if w < width and w > 2 and rest & w):
                self._shorter(loop, narrow, place, origin, stop, kind)
            rest %= 4
            if rest:
                self._rest(loop, place, origin, stop, kind)
        elif rest != 0:
            self._rest(loop, place, place, stop, kind)
        self.close()

    def _is_free(self, loop: Loop) -> bool:
        """Whether no vector of the loop lives longer than one of its iterations."""
        return not any(local in self.carried and local.width > 1 for local in registers(loop))

    def _shorter(
        self, loop: Loop, width: int, place: str, origin: str, stop: str, kind: str
    ) -> None:
        """One vector of a rest that began at `origin`, if there is still so much of it."""
        self.open(f"if ({place} + {width - 1} < {stop})", loop.body)
        self.bind(loop.variable, Variable(place, kind))
        if loop.lane is not None:
            lane = self.fresh("lane")
            self.line(f"const {kind} {lane} = {place} - {origin};")
            self.bind(loop.lane, Variable(lane, kind))
        self._vectors(loop, width)
        self.line(f"{place} += {width};")
        self.close()

    def _vectors(self, loop: Loop, width: int) -> None:
        """The body for `width` iterations at once; the loop's variable is that of the first."""
        single = min(width, WIDTHS[-1])
        words = VectorLanguage(self.language, single)
        self.vector = _Vector(loop.variable, loop.lane, words, loop.start)
        for statement in loop.body if single == loop.step else cut(loop, single, width // single):
            self._statement(statement)
        self.vector = None

    def _rest(self, loop: Loop, place: str, origin: str, stop: str, kind: str) -> None:
        """The iterations from `place` on, one by one, each working on its lane of registers."""
        wide = [local for local in registers(loop) if local in self.carried and local.width > 1]
        for local in wide:
            self._spill(local)
        name = self.fresh(loop.variable.name)
        lane = f"(({name} - {origin}) % {loop.step})"
        self.open(f"for ({kind} {name} = {place}; {name} < {stop}; {name}++)", loop.body)
        self.bind(loop.variable, Variable(name, kind))
        known = self.fresh("lane")
        self.line(f"const {kind} {known} = {bare(lane)};")
        if loop.lane is not None:
            self.bind(loop.lane, Variable(known, kind))
        before, self.lane_of_rest = self.lane_of_rest, known
        self._body(loop)
        self.lane_of_rest = before
        self.close()
        for local in wide:
            lanes, register = self.spilled.pop(local), self._register(local, 0)
            self.line(f"{register} = vload{local.width}(0, {lanes});")
            self.forget((local,))

    def _spill(self, local: Local) -> None:
        """Put a vector register into memory, where its lanes have addresses."""
        register = self._register(local, 0)
        lanes = self.fresh(f"{local.name}_lanes")
        kind = "int" if local.dtype.is_bool else self.language.type_of(local.dtype)
        self.line(f"{kind} {lanes}[{local.width}];")
        self.line(f"vstore{local.width}({register}, 0, {lanes});")
        self.spilled[local] = lanes
        self.forget((local,))

    def _has_vectors(self, loop: Loop) -> bool:
        """Whether a body can be computed for all lanes at once."""
        vector = _Vector(loop.variable, loop.lane, VectorLanguage(self.language, loop.step))

        def fits(statement: Statement) -> bool:
            if isinstance(statement, Loop):
                bounds = (statement.start, *statement.stops)
                if statement.kind == "lanes" or any(vector.varies(x) for x in bounds):
                    return False
                return all(fits(inner) for inner in statement.body)
            places: list[Integer] = []
            if isinstance(statement, Store):
                places += [statement.index, *statement.guard]
            for e in expr.walk(*expressions(statement)):
                if e.op is Leaf.LOAD:
                    places += [e.index, *e.guard]
                elif e.op in (Leaf.INDEX, Leaf.CONDITION):
                    places.append(e.index)
            inside = [e for x in places for e in expr.values_in(x)]
            return all(vector.atoms.isdisjoint(e.variables) for e in inside)

        return all(fits(inner) for inner in loop.body)

    # ---- statements ----

    def _statement(self, statement: Statement) -> None:
        if isinstance(statement, Fold):
            source, dtype = statement.source, statement.source.dtype
            text = self._register(source, 0)
            if self._is_vector(source):
                words = VectorLanguage(self.language, source.width)
                text = words.folded(statement.op, dtype, text)
            self.line(f"{self._register(statement.target, 0)} = {bare(text)};")
            self.forget((statement.target,))
        elif isinstance(statement, Set) and self._is_vector(statement.local):
            words = VectorLanguage(self.language, statement.local.width)
            text, dtype = self.value(statement.value), statement.local.dtype
            if not self._varies(self._expand(statement.value)):
                text = words.broadcast(text, dtype)
            self.line(f"{self._register(statement.local, statement.slot)} = {bare(text)};")
            self.forget((statement.local,))
        elif isinstance(statement, Set) and statement.local in self.spilled:
            text = self.value(statement.value)
            text = f"{text} ? -1 : 0" if statement.local.dtype.is_bool else bare(text)
            self.line(f"{self.spilled[statement.local]}[{self.lane_of_rest}] = {text};")
            self.forget((statement.local,))
        else:
            super()._statement(statement)

    def _is_vector(self, local: Local) -> bool:
        """Whether a register is a vector here, not one of its lanes."""
        return local.width > 1 and self.lane_of_rest is None

    def _store(self, statement: Store, value: str) -> None:
        vector, array = self.vector, statement.array
        wide = self._varies(self._expand(statement.value))
        places = (statement.index, *statement.guard)
        if vector is None or not (wide or any(map(vector.varies, places))):
            super()._store(statement, value)
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
            self.forget((array,))
            return
        name = self.number("v")
        self.line(f"const {vector.words.type_of(array.dtype)} {name} = {bare(value)};")
        for lane in range(vector.words.width):
            guard = self.guard([vector.at(c, lane) for c in statement.guard])
            if guard == "false":
                continue
            place = bare(self.index(vector.at(statement.index, lane)))
            element = vector.words.lane(name, array.dtype, lane)
            text = self.language.stored(array.dtype, self.pointers[array], place, element)
            self.line(f"if ({bare(guard)}) {text}" if guard else text)
        self.forget((array,))

    def _register(self, local: Local, slot: Integer) -> str:
        if local.width == 1:
            return super()._register(local, slot)
        if self.lane_of_rest is not None and local in self.spilled:
            text = f"{self.spilled[local]}[{self.lane_of_rest}]"
            return f"({text} != 0)" if local.dtype.is_bool else text
        if self.lane_of_rest is not None:
            return super()._register(Local(local.name, local.dtype, local.count), slot)
        number = parse(self.index(slot))
        assert number is not None
        key = (local, number)
        if key not in self.registers:
            stem = local.name if local.count == 1 else f"{local.name}_{number}"
            name = self.registers[key] = self.fresh(stem)
            words = VectorLanguage(self.language, local.width)
            self.declared.append(f"{words.type_of(local.dtype)} {name};")
        return self.registers[key]

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
        if e.op is Leaf.LOCAL:
            return self._register(e.local, e.slot)
        if e.op is Leaf.LOAD:
            return self._vector_load(e, vector)
        if e.op in (Leaf.INDEX, Leaf.CONDITION):
            return self._vector_index(e, vector)
        given = {arg: texts[arg] if arg in texts else self.memo[arg][0] for arg in e.args}
        args = [
            given[arg] if self._varies(arg) else words.broadcast(given[arg], arg.dtype)
            for arg in e.args
        ]
        text = words.operation(e, args)
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
            lanes.append(self.language.operation(e, parts))
        return words.gathered(lanes, e.dtype)

    def _vector_index(self, e: Expr, vector: _Vector) -> str:
        """An index as values, or whether it is ≥ 0."""
        words, x = vector.words, e.index
        step = vector.stride(x)
        kind = kind_of(vector.at(x, words.width - 1))
        text = None
        if step is not None and kind == "int":
            numbers = words.iota(self.index(x, kind), step, kind)
            if e.op is Leaf.CONDITION:
                return f"({numbers} >= (int{words.width})(0))"
            text = words.cast(numbers, dtypes.int32, e.dtype)
        if text is None and e.op is Leaf.CONDITION:
            texts = [self.condition(vector.at(x, lane)) for lane in range(words.width)]
            return words.gathered(texts, dtypes.bool)
        if text is None:
            kind = self.language.type_of(e.dtype)
            texts = [f"({kind}){self.index(vector.at(x, lane))}" for lane in range(words.width)]
            text = words.gathered(texts, e.dtype)
        return text

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
        if whole is not None and not varying:
            return f"({guard} ? {whole} : {zero})" if guard else whole
        lanes = [self._lane_load(array, index, varying, vector, n) for n in range(words.width)]
        text = words.gathered(lanes, array.dtype)
        if whole is not None:  # what holds at both ends holds between them
            ends = [vector.at(c, n) for c in varying for n in (0, words.width - 1)]
            inside = self.guard(ends)
            if inside != "false":
                text = f"({inside} ? {whole} : {text})" if inside else whole
        return f"({guard} ? {text} : {zero})" if guard else text

    def _space(self, array: Array) -> str:
        """The address space of an array."""
        return "" if array.space == "scratch" and not self._shares_scratch() else "__global "

    def _whole_load(self, array: Array, index: Integer, words: VectorLanguage) -> str | None:
        """Neighbouring elements from an index on; None where there are no words for them."""
        if words.is_long(array.dtype):
            kind = words.unaligned(array.dtype)
            if kind is None:
                return None
            place = f"{self.pointers[array]} + {bare(self.index(index))}"
            return f"(*({self._space(array)}const {kind} *)({place}))"
        return words.loaded(array.dtype, self.pointers[array], self.index(index))

    def _whole_store(
        self, array: Array, index: Integer, value: str, words: VectorLanguage
    ) -> str | None:
        """The statement that writes them."""
        if words.is_long(array.dtype):
            kind = words.unaligned(array.dtype)
            if kind is None:
                return None
            place = f"{self.pointers[array]} + {bare(self.index(index))}"
            return f"*({self._space(array)}{kind} *)({place}) = {bare(value)};"
        return words.stored(array.dtype, self.pointers[array], self.index(index), value)

    def _lane_load(
        self, array: Array, index: Integer, conditions: list[Affine], vector: _Vector, lane: int
    ) -> str:
        zero = literal(0, array.dtype)
        guard = self.guard([vector.at(c, lane) for c in conditions])
        if guard == "false":
            return zero
        place = bare(self.index(vector.at(index, lane)))
        text = self.language.loaded(array.dtype, self.pointers[array], place)
        return f"({guard} ? {text} : {zero})" if guard else text


def render(nest: Nest, fp64: bool = True, device: str = "CL") -> Source:
    """The source of any nest, for a device whose work-items have vector registers.

    Raises DTypeError where it computes in float64 and the device cannot (`fp64` False).
    """
    return LanesEmitter(nest, Language(fp64, device)).source()
