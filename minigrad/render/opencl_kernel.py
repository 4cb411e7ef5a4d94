"""From a loop nest to OpenCL C: `__kernel void name(buffers …, symbols …[, scratch])`.

If the nest has a loop of kind "items", an iteration of the parallel loop belongs to a work-group.
The runtime may launch groups in pieces, so the global number gives the iteration, and the group's
number its slice of the scratch memory. Otherwise an iteration belongs to a work-item; if there are
fewer items, they take strides. Scratch memory of a work-item is private; a group's is a slice of
one buffer, the last argument. Vectors of neighbouring elements that provably start at a multiple of
their length are read and written as one word.

A lanes loop of 2, 4 or 8 iterations is computed all at once, by vectors of a work-item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from minigrad.graph.substitution import proven_nonnegative
from minigrad.graph.symbolic import Integer, high
from minigrad.loops.nest import Barrier, Loop, Nest, Prefetch, Statement, Store, expressions
from minigrad.render.opencl import (
    INDENT,
    Emitter,
    Variable,
    Vector,
    integer,
    kind_of_range,
    parse,
)
from minigrad.render.opencl_values import WIDTHS, Language, Words, bare, memory_type
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Guard


@dataclass(frozen=True)
class Source:
    """One kernel: declarations and functions that it uses, and its text before and after its name.

    scratch_bytes: of the last argument, for each group (0: there is none).
    """

    prelude: tuple[str, ...]
    head: str
    name: str
    body: str
    scratch_bytes: int

    @property
    def text(self) -> str:
        """A program with this kernel only."""
        return join([self])[0]


def join(sources: Sequence[Source]) -> tuple[str, list[str]]:
    """A program of several kernels, and their names in it."""
    alone = len(sources) == 1
    names = [s.name if alone else f"{s.name}_{n}" for n, s in enumerate(sources)]
    shared = dict.fromkeys(text for source in sources for text in source.prelude)
    kernels = [s.head + name + s.body for s, name in zip(sources, names, strict=True)]
    return "\n".join([*shared, *kernels, ""]), names


class GroupsEmitter(Emitter):
    """Emits nests: loops of work-groups, items and vectors, and stores."""

    def __init__(self, nest: Nest, language: Language) -> None:
        super().__init__(nest, language)
        read = {
            e.array for e in expr.loads(*expressions(nest.parallel)) if not e.in_registers
        }  # whether items may read from global memory what others have written
        self.passes_globally = any(array.space != "local" for array in read & self.writable)

    def source(self) -> Source:
        """The functions, the kernel's head and its body."""
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
        name = self.fresh(loop.variable.name)
        if items:
            (inner,) = loop.body
            assert isinstance(inner, Loop)
            with self.straight(inner.changes):
                self.line(f"const {kind} {name} = get_global_id(0) / {items};")
                item = self.fresh(inner.variable.name)
                self.line(f"const int {item} = get_local_id(0);")
                self.bind(inner.variable, item, "int")
                self.bind(loop.variable, name, kind)
                self.body(inner)
        else:
            stop = bare(self.index(total, kind))
            header = f"for ({kind} {name} = get_global_id(0); {name} < {stop}; "
            with self.straight(loop.changes, f"{header}{name} += get_global_size(0))"):
                self.bind(loop.variable, name, kind)
                self.body(loop)

    def loop(self, loop: Loop) -> None:
        """Emit a loop of any kind."""
        if loop.kind == "unroll":
            self.unrolled(loop)
        elif loop.kind == "serial":
            self._serial(loop)
        elif loop.kind == "lanes":
            self._lanes(loop)
        else:
            raise self.unexpected(f"a loop of kind {loop.kind!r} and step {loop.step}")

    def _serial(self, loop: Loop) -> None:
        kind = kind_of_range(loop.start, loop.stops, loop.step)
        if any(loop.start + loop.step - stop == 0 for stop in loop.stops):  # once, or not at all
            tests = [stop - loop.start - 1 for stop in loop.stops]
            guard = self.guard(test for test in tests if not proven_nonnegative(test))
            if guard != "false":
                self._iteration(loop, f"if ({bare(guard)})" if guard else "")
            return
        start = bare(self.index(loop.start, kind))
        stop = bare(_least([self.index(stop, kind) for stop in loop.stops], kind))
        if not stop.replace("_", "").isalnum():
            name = self.number("stop")
            self.line(f"const {kind} {name} = {stop};")
            stop = name
        name = self.fresh(loop.variable.name)
        step = f"{name}++" if loop.step == 1 else f"{name} += {loop.step}"
        header = f"for ({kind} {name} = {start}; {name} < {stop}; {step})"
        with self.straight(loop.changes, header):
            self.bind(loop.variable, name, kind)
            self.body(loop)

    def _lanes(self, loop: Loop) -> None:
        (stop, *others) = loop.stops
        vector = Vector(loop.variable, loop.lane, Words(self.language, loop.step), loop.start)
        is_one = loop.step in WIDTHS and not others and stop - loop.start == loop.step
        if not is_one or not all(_takes(vector, inner) for inner in loop.body):
            raise self.unexpected(f"a lanes loop of step {loop.step}, which is not a vector width")
        self.vector = vector
        self._iteration(loop)
        self.vector = None

    def _iteration(self, loop: Loop, header: str = "") -> None:
        """The body of one iteration, or of a vector from its first lane on."""
        kind = kind_of_range(loop.start, loop.stops, loop.step)
        with self.straight(loop.changes, header):
            text = place = self.index(loop.start, kind)
            if not text.isidentifier() and parse(text) is None:
                place = self.fresh(loop.variable.name)
                self.line(f"const {kind} {place} = {bare(text)};")
            self.bind(loop.variable, place, kind)
            if self.vector is not None and loop.kind == "lanes":
                self.bind(self.vector.first, place, kind)
            if loop.lane is not None:
                self.bind_constant(loop.lane, 0)
            self.body(loop)

    # ---- statements ----

    def special(self, statement: Statement) -> None:
        """Emit a barrier; prefetches are left out."""
        if isinstance(statement, Barrier):
            fence = " | CLK_GLOBAL_MEM_FENCE" if self.passes_globally else ""
            self.line(f"barrier(CLK_LOCAL_MEM_FENCE{fence});")
            self.forget(array for array in self.writable if not array.in_registers)
        elif not isinstance(statement, Prefetch):
            raise self.unexpected(f"a {type(statement).__name__}")

    def set(self, statement: Store, value: str) -> None:
        """Set a register."""
        array = statement.array
        register = self.register(array, statement.index)
        if array.width > 1:
            words = self.vector.words if self.vector else Words(self.language, array.width)
            value = self.spread(self.expand(statement.value), value, words)
        self.line(f"{register} = {bare(value)};")

    def store(self, statement: Store, value: str) -> None:
        """Store a value, of all lanes at once if they are neighbours."""
        vector, array, root = self.vector, statement.array, self.expand(statement.value)
        index, guard = statement.index, statement.guard
        if vector is None:
            self._store(array, index, guard, value, self.words)
            return
        guard = expr.restrict((), map(vector.same, guard))
        words, value = vector.words, self.spread(root, value, vector.words)
        if vector.stride(index) == 1 and not any(map(vector.varies, guard)):
            self._store(array, index, guard, value, words)
            return
        name = self.number("v")
        self.line(f"const {words.type_of(array.dtype)} {name} = {bare(value)};")
        for lane in range(words.width):
            element = words.lane(name, array.dtype, lane)
            there, inside = vector.at(index, lane), vector.guard(guard, lane)
            self._store(array, there, inside, element, self.words)

    def _store(self, array: Array, index: Integer, guard: Guard, value: str, words: Words) -> None:
        test = self.guard(guard)
        if test != "false":
            text = self.stored(array, index, value, words)
            self.line(f"if ({bare(test)}) {text}" if test else text)


def _takes(vector: Vector, statement: Statement) -> bool:
    """Whether a statement can be computed for all lanes at once."""
    if not isinstance(statement, Loop):
        return True
    if statement.kind == "lanes" or any(map(vector.varies, (statement.start, *statement.stops))):
        return False
    return all(_takes(vector, inner) for inner in statement.body)


def _least(texts: Sequence[str], kind: str) -> str:
    """The smallest of some sums; numbers among them are compared now."""
    numbers = [number for text in texts if (number := parse(text)) is not None]
    others = [text for text in texts if parse(text) is None]
    if numbers:
        others.append(integer(min(numbers), kind))
    return reduce(lambda one, other: f"min({bare(one)}, {bare(other)})", others)


def render(nest: Nest, fp64: bool = True, device: str = "CL") -> Source:
    """The source of a nest made for a target with work-groups.

    Raises DTypeError if it computes in float64 and the device cannot (`fp64` False).
    """
    return GroupsEmitter(nest, Language(fp64, device)).source()
