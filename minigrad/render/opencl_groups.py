"""From a loop nest to OpenCL C: `__kernel void name(buffers …, symbols …[, scratch])`.

An iteration of the parallel loop is a work-group's where the nest has a loop of kind "items"; the
runtime may launch these in pieces, so that the global number tells which, and the group's which
slice of the scratch memory is its own. Else an iteration is a work-item's, and they take strides
where they are fewer. Scratch memory of a work-item is private; of a group it is a slice of one
buffer, which comes as the last argument. Vectors of neighbouring elements that provably begin at a
multiple of their length are read and written as one word.

A lanes loop of 2, 4 or 8 iterations is computed all at once, by vectors of a work-item. Where its
body cannot be computed so, it is written out lane by lane. A lanes loop of more than one vector is
a plain loop, which needs no registers of several lanes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from minigrad.dtype import dtypes
from minigrad.graph.substitution import substitute, variables
from minigrad.graph.symbolic import Atom, Integer, high
from minigrad.loops.nest import (
    Barrier,
    Loop,
    Nest,
    Statement,
    Store,
    divides,
    expressions,
)
from minigrad.render.levels import stride
from minigrad.render.opencl import INDENT, Emitter, Source, Variable, kind_of, kind_of_range
from minigrad.render.opencl_values import (
    WIDTHS,
    Language,
    Words,
    bare,
    literal,
    memory_type,
)
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Guard, Leaf

WORDS = (dtypes.float32, dtypes.float64, dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64)


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

    def guard(self, conditions: Iterable[Integer], lane: int) -> Guard:
        """Conditions in one lane."""
        return expr.restrict((), [self.at(c, lane) for c in conditions])

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


class GroupsEmitter(Emitter):
    """Emits nests with work-groups and vectors.

    vector: of the lanes loop that is emitted at once now; lane: where one is written out, which
    lane it is now.
    """

    def __init__(self, nest: Nest, language: Language) -> None:
        super().__init__(nest, language)
        self.vector: _Vector | None = None
        self.lane: int | None = None
        read = {
            e.array for e in expr.loads(*expressions(nest.parallel)) if not e.in_registers
        }  # whether items may read from global memory what others have written to it
        self.passes_globally = any(array.space != "local" for array in read & self.writable)

    def source(self) -> Source:
        """Functions, the kernel's head and its body."""
        nest = self.nest
        shared = nest.scratch_bytes if nest.items else 0
        arguments = []
        for array in nest.arrays:
            name = self.pointers[array] = self.number("a")
            const = "" if array in self.writable else "const "
            self.language.type_of(array.dtype)
            arguments.append(f"__global {const}{memory_type(array.dtype)} *{name}")
        for symbol in nest.symbols:
            variable = self.symbols[symbol] = Variable(f"sym_{symbol}", "long")
            arguments.append(f"const long {variable.name}")
        if shared:
            arguments.append("__global uchar *scratch")
        memory = [*self._scratch(shared), *self._local()]
        self._parallel(nest.parallel)
        entry = self.levels[0].lines
        lines = [INDENT + line for line in (*memory, *self.declared, *entry)]
        body = "\n".join([f"({', '.join(arguments)}) {{", *lines, "}"])
        size = f"__attribute__((reqd_work_group_size({nest.items}, 1, 1))) " if nest.items else ""
        return Source(self.language.prelude(), f"__kernel {size}void ", nest.name, body, shared)

    def _scratch(self, shared: int) -> list[str]:
        """Declarations of the scratch arrays."""
        lines = []
        if shared:
            lines.append(f"scratch += get_group_id(0) * (size_t){shared};")
        for array, offset in self.nest.scratch:
            name = self.pointers[array] = self.number("x")
            kind = memory_type(array.dtype)
            if shared:
                lines.append(f"__global {kind} *{name} = (__global {kind} *)(scratch + {offset});")
            else:
                lines.append(f"{kind} {name}[{array.size}];")
        return lines

    def _local(self) -> list[str]:
        """Declarations of the arrays in local memory."""
        lines = []
        for array in self.nest.local:
            name, kind = self.number("shared"), memory_type(array.dtype)
            self.pointers[array] = name
            self.writable |= {array}
            lines.append(f"__local {kind} {name}[{array.size}] __attribute__((aligned(32)));")
        return lines

    # ---- loops ----

    def _parallel(self, loop: Loop) -> None:
        """The loop whose iterations are work-groups, or work-items."""
        total, items = self.nest.total, self.nest.items
        kind = kind_of_range(0, [2 * high(total) * max(items, 1)], 1 << 20)
        stop = bare(self.index(total, kind))
        name = self.fresh(loop.variable.name)
        if items:
            (inner,) = loop.body
            assert isinstance(inner, Loop)
            with self.straight(inner.changes):
                self.line(f"const {kind} {name} = get_global_id(0) / {items};")
                if not isinstance(total, int):  # as many groups are launched as there may be rows
                    self.line(f"if ({name} >= {stop}) return;")
                item = self.fresh(inner.variable.name)
                self.line(f"const int {item} = get_local_id(0);")
                self.bind(inner.variable, item, "int")
                self.bind(loop.variable, name, kind)
                self.body(inner)
        else:
            header = f"for ({kind} {name} = get_global_id(0); {name} < {stop}; "
            with self.straight(loop.changes, f"{header}{name} += get_global_size(0))"):
                self.bind(loop.variable, name, kind)
                self.body(loop)

    # ---- statements ----

    def special(self, statement: Statement) -> None:
        """Emit what the items of a group do together."""
        if isinstance(statement, Barrier):
            fence = " | CLK_GLOBAL_MEM_FENCE" if self.passes_globally else ""
            self.line(f"barrier(CLK_LOCAL_MEM_FENCE{fence});")
            self.forget(array for array in self.writable if not array.in_registers)
        else:
            super().special(statement)

    # ---- loops of vectors ----

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
        with self.straight(loop.changes):
            place = self.fresh(loop.variable.name)
            self.line(f"const {kind} {place} = {bare(self.index(loop.start + lane, kind))};")
            self.bind(loop.variable, place, kind)
            if loop.lane is not None:
                self.bind_constant(loop.lane, lane)
            self.body(loop)

    # ---- statements of vectors ----

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
        if not wide:
            value = vector.words.broadcast(value, array.dtype)
        if stride == 1 and not guarded:
            text = self._whole_store(array, statement.index, value, vector.words)
            guard = self.guard(statement.guard)
            if guard != "false":
                self.line(f"if ({bare(guard)}) {text}" if guard else text)
            return
        name = self.number("v")
        self.line(f"const {vector.words.type_of(array.dtype)} {name} = {bare(value)};")
        for lane in range(vector.words.width):
            index, inside = vector.at(statement.index, lane), vector.guard(statement.guard, lane)
            element = vector.words.lane(name, array.dtype, lane)
            super().store(Store(array, index, statement.value, inside), element)

    def _register(self, array: Array, index: Integer) -> str:
        name = super()._register(array, index)
        if array.width == 1 or self.lane is None:
            return name
        return Words(self.language, array.width).lane(name, array.dtype, self.lane)

    # ---- expressions of vectors ----

    def _varies(self, e: Expr) -> bool:
        """Whether a value is a vector here."""
        return self.vector is not None and not self.vector.atoms.isdisjoint(e.variables)

    def _type_of(self, e: Expr) -> str:
        if self.vector is not None and self._varies(e):
            return self.vector.words.type_of(e.dtype)
        return super()._type_of(e)

    def _text(self, e: Expr) -> str:
        vector = self.vector
        if vector is None or not self._varies(e):
            return super()._text(e)
        words = vector.words
        if e.in_registers:
            return self._register(e.array, e.index)
        if e.op is Leaf.LOAD:
            return self._vector_load(e, vector)
        if e.op in (Leaf.INDEX, Leaf.CONDITION):
            return self._vector_index(e, vector)
        args = [self.memo[arg][0] for arg in e.args]
        args = [
            text if self._varies(arg) else words.broadcast(text, arg.dtype)
            for arg, text in zip(e.args, args, strict=True)
        ]
        return words.operation(e.op, e.args[0].dtype, e.dtype, args)

    def _vector_index(self, e: Expr, vector: _Vector) -> str:
        """An index as values, or whether it is ≥ 0."""
        words, x = vector.words, e.index
        step = vector.stride(x)
        kind = kind_of(vector.at(x, words.width - 1))
        if step is not None and kind == "int":
            numbers = words.iota(self.index(x, kind), step, kind)
            if e.op is Leaf.CONDITION:
                return f"({numbers} >= (int{words.width})(0))"
            return words.cast(numbers, dtypes.int32, e.dtype)
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
        lanes = [
            self._load(expr.load(array, vector.at(index, n), vector.guard(varying, n)))
            for n in range(words.width)
        ]
        text = words.gathered(lanes, array.dtype)
        if whole is not None:  # what holds at both ends holds between them
            ends = [vector.at(c, n) for c in varying for n in (0, words.width - 1)]
            inside = self.guard(ends)
            if inside != "false":
                text = f"({inside} ? {whole} : {text})" if inside else whole
        return f"({guard} ? {text} : {zero})" if guard else text

    def _whole_load(self, array: Array, index: Integer, words: Words) -> str:
        """Neighbouring elements from an index on."""
        if not self._is_aligned(array, index, words.width):
            return words.loaded(array.dtype, self.pointers[array], self.index(index))
        return f"(*{self._as_vector(array, index, words, 'const ')})"

    def _whole_store(self, array: Array, index: Integer, value: str, words: Words) -> str:
        """The statement that writes them."""
        if not self._is_aligned(array, index, words.width):
            return words.stored(array.dtype, self.pointers[array], self.index(index), value)
        return f"*{self._as_vector(array, index, words)} = {bare(value)};"

    def _as_vector(self, array: Array, index: Integer, words: Words, const: str = "") -> str:
        kind = words.type_of(array.dtype)
        place = f"{self.pointers[array]} + {bare(self.index(index))}"
        return f"({self._space(array)}{const}{kind} *)({place})"

    def _space(self, array: Array) -> str:
        """The address space of an array."""
        if array.space == "local":
            return "__local "
        return "" if array.space == "scratch" and not self.nest.items else "__global "

    def _is_aligned(self, array: Array, index: Integer, width: int) -> bool:
        """Whether a vector of neighbours begins at a multiple of its length.

        Buffers do, and so do arrays in local memory; the loop's variable does where its start does.
        """
        if array.dtype not in WORDS or width * array.dtype.itemsize > 32:
            return False
        if array.space == "scratch" and not self.nest.items:
            return False
        assert self.vector is not None
        if isinstance(index, int):
            return index % width == 0
        rest = [(a, c) for a, c in index.terms if a not in self.vector.atoms]
        if len(rest) < len(index.terms) and not divides(self.vector.start, width):
            return False
        return index.constant % width == 0 and all(c % width == 0 for _, c in rest)


def render(nest: Nest, fp64: bool = True, device: str = "CL") -> Source:
    """The source of a nest made for a target with work-groups.

    Raises DTypeError where it computes in float64 and the device cannot (`fp64` False).
    """
    return GroupsEmitter(nest, Language(fp64, device)).source()
