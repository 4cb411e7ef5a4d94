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

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce

from minigrad.dtype import dtypes
from minigrad.graph.substitution import proven_nonnegative, variables
from minigrad.graph.symbolic import Atom, Integer, high
from minigrad.loops.nest import Barrier, Loop, Nest, Prefetch, Statement, Store, expressions
from minigrad.render.indices import Lanes
from minigrad.render.opencl import INDENT, Emitter, dtype_of_range
from minigrad.render.opencl_values import WIDTHS, Language, Words, bare, memory_type, register_type
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
        arguments += [f"const long sym_{symbol}" for symbol in nest.symbols]
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
        dtype = dtype_of_range(0, [2 * high(total) * max(items, 1)], 1 << 20)
        kind, name = register_type(dtype), self.fresh(loop.variable.name)
        if items:
            (inner,) = loop.body
            assert isinstance(inner, Loop)
            with self.straight(inner.changes):
                self.line(f"const {kind} {name} = get_global_id(0) / {items};")
                item = self.fresh(inner.variable.name)
                self.line(f"const int {item} = get_local_id(0);")
                self.bind(inner.variable, item, dtypes.int32)
                self.bind(loop.variable, name, dtype)
                self.body(inner)
        else:
            stop = bare(self.evaluate(self.arithmetic(total, dtype)))
            header = f"for ({kind} {name} = get_global_id(0); {name} < {stop}; "
            with self.straight(loop.changes, f"{header}{name} += get_global_size(0))"):
                self.bind(loop.variable, name, dtype)
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
        dtype = dtype_of_range(loop.start, loop.stops, loop.step)
        if any(loop.start + loop.step - stop == 0 for stop in loop.stops):  # once, or not at all
            tests = [stop - loop.start - 1 for stop in loop.stops]
            guard = self.guard(test for test in tests if not proven_nonnegative(test))
            if guard == "false":
                return
            with self.straight(loop.changes, f"if ({bare(guard)})" if guard else ""):
                first = self.arithmetic(loop.start, dtype)
                if (number := first.known()) is not None:
                    self.bind_known(loop.variable, int(number))
                else:
                    self.bind(loop.variable, self.kept(first), dtype)
                self.body(loop)
            return
        kind, start = register_type(dtype), bare(self.evaluate(self.arithmetic(loop.start, dtype)))
        stops = [self.arithmetic(stop, dtype) for stop in loop.stops]
        stop = self.kept(reduce(lambda x, y: x.operation("minimum", y), stops))
        name = self.fresh(loop.variable.name)
        step = f"{name}++" if loop.step == 1 else f"{name} += {loop.step}"
        header = f"for ({kind} {name} = {start}; {name} < {stop}; {step})"
        with self.straight(loop.changes, header):
            self.bind(loop.variable, name, dtype)
            self.body(loop)

    def _lanes(self, loop: Loop) -> None:
        (stop, *others) = loop.stops
        is_one = loop.step in WIDTHS and not others and stop - loop.start == loop.step
        along = {loop.variable: Lanes(loop.start, loop.step)}
        if loop.lane is not None:
            along[loop.lane] = Lanes(0, loop.step)
        if not is_one or not all(_takes(along.keys(), inner) for inner in loop.body):
            raise self.unexpected(f"a lanes loop of step {loop.step}, which is not a vector width")
        with self.straight(loop.changes):
            self.vectors = along
            for atom in along:
                self.bound(atom)
            self.body(loop)
        self.vectors = {}

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
            value = self.spread(self.expand(statement.value), value, self.words(array.width))
        self.line(f"{register} = {bare(value)};")

    def store(self, statement: Store, value: str) -> None:
        """Store a value, of all lanes at once if they are neighbours."""
        array, words = statement.array, self.words(self.width())
        index, guard = statement.index, expr.restrict((), map(self.same, statement.guard))
        value = self.spread(self.expand(statement.value), value, words)
        if words.width == 1 or self.lane_stride(index) == 1 and not any(map(self.varies, guard)):
            self._store(array, index, guard, value, words)
            return
        name = self.number("v")
        self.line(f"const {words.type_of(array.dtype)} {name} = {bare(value)};")
        for lane in range(words.width):
            element, inside = words.lane(name, array.dtype, lane), self.guard_in(lane, guard)
            self._store(array, self.at_lane(index, lane), inside, element, self.words())

    def _store(self, array: Array, index: Integer, guard: Guard, value: str, words: Words) -> None:
        test = self.guard(guard)
        if test != "false":
            text = self.stored(array, index, value, words)
            self.line(f"if ({bare(test)}) {text}" if test else text)


def _takes(lanes: Collection[Atom], statement: Statement) -> bool:
    """Whether a statement can be computed for all lanes at once."""
    if not isinstance(statement, Loop):
        return True
    bounds = (statement.start, *statement.stops)
    if statement.kind == "lanes" or not all(variables(x).isdisjoint(lanes) for x in bounds):
        return False
    return all(_takes(lanes, inner) for inner in statement.body)


def render(nest: Nest, fp64: bool = True, device: str = "CL") -> Source:
    """The source of a nest made for a target with work-groups.

    Raises DTypeError if it computes in float64 and the device cannot (`fp64` False).
    """
    return GroupsEmitter(nest, Language(fp64, device)).source()
