"""From a loop nest to OpenCL C: `__kernel void name(buffers …, symbols …[, scratch])`.

An iteration of the parallel loop is a work-group's where the nest has a loop of kind "items"; the
runtime may launch these in pieces, so that the global number tells which, and the group's which
slice of the scratch memory is its own. Else an iteration is a work-item's, and they take strides
where they are fewer. Scratch memory is private where it is small and a work-item's; else it is a
slice of one buffer, which comes as the last argument. Vectors of neighbouring elements that
provably begin at a multiple of their length are read and written as one word.
"""

from __future__ import annotations

from minigrad.dtype import DType, dtypes
from minigrad.graph.operations import STEPS, Op
from minigrad.graph.symbolic import Integer, high
from minigrad.loops.nest import (
    Barrier,
    FoldItems,
    Loop,
    Nest,
    Statement,
    divides,
    expressions,
)
from minigrad.render.opencl import Source
from minigrad.render.opencl_index import INDENT, Variable, kind_of_range
from minigrad.render.opencl_lanes import LanesEmitter
from minigrad.render.opencl_values import Language, Words, bare, memory_type, register_type
from minigrad.schedule import expr
from minigrad.schedule.expr import Array

SUBGROUPS = "#pragma OPENCL EXTENSION cl_khr_subgroups : enable"
BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"
PRIVATE_BYTES = 2048  # scratch memory that still goes to private memory
WORDS = (dtypes.float32, dtypes.float64, dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64)


class GroupsEmitter(LanesEmitter):
    """Emits nests with work-groups. subgroups: the device has them (cl_khr_subgroups)."""

    def __init__(self, nest: Nest, language: Language, subgroups: bool) -> None:
        super().__init__(nest, language)
        self.subgroups = subgroups
        self.uses_subgroups = False
        read = {
            e.array for e in expr.loads(*expressions(nest.parallel)) if not e.in_registers
        }  # whether items may read from global memory what others have written to it
        self.passes_globally = any(array.space != "local" for array in read & self.writable)

    def source(self) -> Source:
        """Functions, the kernel's head and its body."""
        nest = self.nest
        shared = nest.scratch_bytes if self._shares_scratch() else 0
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
        prelude = ((SUBGROUPS,) if self.uses_subgroups else ()) + self.language.prelude()
        return Source(prelude, f"__kernel {size}void ", nest.name, body, shared)

    def _shares_scratch(self) -> bool:
        """Whether scratch memory is slices of one buffer."""
        return self.nest.scratch_bytes > (0 if self.nest.items else PRIVATE_BYTES)

    def _scratch(self, shared: int) -> list[str]:
        """Declarations of the scratch arrays."""
        lines = []
        if shared:
            owner = "group" if self.nest.items else "global"
            lines.append(f"scratch += get_{owner}_id(0) * (size_t){shared};")
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
            with self.straight(inner.body):
                self.line(f"const {kind} {name} = get_global_id(0) / {items};")
                if not isinstance(total, int):  # as many groups are launched as there may be rows
                    self.line(f"if ({name} >= {stop}) return;")
                item = self.fresh(inner.variable.name)
                self.line(f"const int {item} = get_local_id(0);")
                self.bind(inner.variable, Variable(item, "int"))
                self.bind(loop.variable, Variable(name, kind))
                self.body(inner)
        else:
            header = f"for ({kind} {name} = get_global_id(0); {name} < {stop}; "
            with self.straight(loop.body, f"{header}{name} += get_global_size(0))"):
                self.bind(loop.variable, Variable(name, kind))
                self.body(loop)

    # ---- statements ----

    def special(self, statement: Statement) -> None:
        """Emit what the items of a group do together."""
        if isinstance(statement, Barrier):
            fence = " | CLK_GLOBAL_MEM_FENCE" if self.passes_globally else ""
            self.line(f"barrier(CLK_LOCAL_MEM_FENCE{fence});")
            self.forget(array for array in self.writable if not array.in_registers)
        elif isinstance(statement, FoldItems):
            self._fold(statement)
            self.forget((statement.target, statement.memory))
        else:
            super().special(statement)

    def _fold(self, statement: FoldItems) -> None:
        """Combine all items' values: by sub-groups where there are any, else in halves."""
        target, items = statement.target, self.nest.items
        memory, dtype = self.pointers[statement.memory], target.dtype
        register = self._register(target, 0)
        words = Words(self.language, target.width)
        wide = target.width > 1 and self.lane is None
        width = target.width if wide else 1
        parts = [words.lane(register, dtype, n) if wide else register for n in range(width)]
        if self._has_fold(statement.op, dtype):
            self._by_subgroups(dtype, memory, parts, items)
        else:
            self._by_halves(statement.op, dtype, memory, parts, items)
        lanes = [self.words.loaded(dtype, memory, str(n * items)) for n in range(width)]
        text = words.gathered(lanes, dtype) if wide else lanes[0]
        self.line(f"{register} = {bare(text)};")
        self.line(BARRIER)

    def _by_halves(self, op: Op, dtype: DType, memory: str, parts: list[str], items: int) -> None:
        own, places = self.number("own"), range(0, len(parts) * items, items)
        self.line(f"const int {own} = get_local_id(0);")
        for start, part in zip(places, parts, strict=True):
            self.line(self._stored(dtype, memory, f"{own} + {start}", part))
        self.line(BARRIER)
        header = f"for (int half_way = {items // 2}; half_way > 0; half_way /= 2)"
        with self.straight(header=header):
            with self.straight(header=f"if ({own} < half_way)"):
                for start in places:
                    at = (f"{own} + {start}", f"{own} + {start} + half_way")
                    pair = [self.words.loaded(dtype, memory, place) for place in at]
                    both = self.words.operation(STEPS[op][0], dtype, dtype, pair)
                    assert both is not None
                    self.line(self._stored(dtype, memory, at[0], both))
            self.line(BARRIER)

    def _by_subgroups(self, dtype: DType, memory: str, parts: list[str], items: int) -> None:
        """Each sub-group sums its own in registers; the first item adds the sub-groups' sums."""
        self.uses_subgroups = True
        places = range(0, len(parts) * items, items)
        for start, part in zip(places, parts, strict=True):
            ours = self.number("ours")
            self.line(f"const {register_type(dtype)} {ours} = sub_group_reduce_add({part});")
            with self.straight(header="if (get_sub_group_local_id() == 0)"):
                self.line(self._stored(dtype, memory, f"get_sub_group_id() + {start}", ours))
        self.line(BARRIER)
        with self.straight(header="if (get_local_id(0) == 0)"):
            header = "for (uint other = 1; other < get_num_sub_groups(); other++)"
            with self.straight(header=header):
                for start in places:
                    at = (str(start), f"{start} + other")
                    pair = [self.words.loaded(dtype, memory, place) for place in at]
                    self.line(self._stored(dtype, memory, at[0], " + ".join(pair)))
        self.line(BARRIER)

    def _has_fold(self, op: Op, dtype: DType) -> bool:
        """Whether sub-groups have a sum for it. (Their maximum says nothing of NaN.)"""
        return self.subgroups and op is Op.SUM and dtype in (dtypes.float32, dtypes.float64)

    # ---- memory ----

    def _whole_load(self, array: Array, index: Integer, words: Words) -> str:
        if not self._is_aligned(array, index, words.width):
            return super()._whole_load(array, index, words)
        return f"(*{self._as_vector(array, index, words, 'const ')})"

    def _whole_store(self, array: Array, index: Integer, value: str, words: Words) -> str | None:
        if not self._is_aligned(array, index, words.width):
            return super()._whole_store(array, index, value, words)
        return f"*{self._as_vector(array, index, words)} = {bare(value)};"

    def _as_vector(self, array: Array, index: Integer, words: Words, const: str = "") -> str:
        kind = words.type_of(array.dtype)
        place = f"{self.pointers[array]} + {bare(self.index(index))}"
        return f"({self._space(array)}{const}{kind} *)({place})"

    def _space(self, array: Array) -> str:
        """The address space of an array."""
        if array.space == "local":
            return "__local "
        return "" if array.space == "scratch" and not self._shares_scratch() else "__global "

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


def render(nest: Nest, fp64: bool = True, device: str = "CL", subgroups: bool = False) -> Source:
    """The source of a nest made for a target with work-groups.

    Raises DTypeError where it computes in float64 and the device cannot (`fp64` False).
    """
    return GroupsEmitter(nest, Language(fp64, device), subgroups).source()
