"""From a loop nest to LLVM IR.

    define void @kernel(i64 %begin, i64 %end, ptr %args, ptr %scratch)

runs iterations begin … end − 1 of the nest's parallel loop. `args` holds one 64-bit word per array
(its address) and per symbol (its value).

Every open loop is a `Level` with its own list of lines. An instruction goes to the outermost level
at which all that it depends on is known, so invariant code leaves its loops by itself; since a
loop's lines are put into its parent only when it is closed, what was moved out comes before it.
"""

from __future__ import annotations

from minigrad.dtype import DType, dtypes
from minigrad.errors import CompileError
from minigrad.graph.node import Op
from minigrad.graph.symbolic import Integer, coefficient, high, low, substitute, variables
from minigrad.loops.nest import (
    Fold,
    Loop,
    MatrixProduct,
    Nest,
    Prefetch,
    Set,
    Statement,
    Store,
    Stores,
    arrays_written,
    locals_set,
    whole_vectors,
)
from minigrad.render import llvm_pairs as pairs
from minigrad.render import llvm_values as values
from minigrad.render.llvm_index import IndexEmitter
from minigrad.render.llvm_matrices import BEGIN, CONFIGURATION, END, emit_matrix_product
from minigrad.render.llvm_transpose import emit_transposed, loads_across
from minigrad.render.llvm_values import Value, constant, memory_type, vector_type
from minigrad.render.vector_math import expand
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf, Local

CACHE_LINE = 64  # bytes
MOST_INTERLEAVED = 7  # elements from lane to lane that shuffles are faster with than a gather


def render(nest: Nest) -> str:
    """The text of an LLVM module with one function, named as the nest."""
    return _Emitter(nest).module()


class _Emitter(IndexEmitter):
    """Emits statements; expressions and memory accesses. Indices are in the base class."""

    def __init__(self, nest: Nest) -> None:
        super().__init__()
        self.nest = nest
        self.slots: dict[tuple[Local, int], tuple[str, int]] = {}
        self.bases: dict[Array, str] = {}
        self.writable = arrays_written(nest.parallel)
        self.expanded: dict[Expr, Expr] = {}
        self.changing: dict[Expr, frozenset[Array | Local]] = {}
        self.streamed: Store | None = None  # whose vectors are aligned now
        self.streams = False
        self.matrices = False

    def module(self) -> str:
        """Declarations, constants and the function."""
        entry = self.levels[0]
        for number, array in enumerate(self.nest.arrays):
            self.bases[array] = f"%arg{number}"
            self._argument(f"%arg{number}", number, "ptr")
        for number, symbol in enumerate(self.nest.symbols, len(self.nest.arrays)):
            self._argument(f"%sym.{symbol}", number, "i64")
        for number, (array, offset) in enumerate(self.nest.scratch):
            self.bases[array] = f"%scratch{number}"
            entry.lines.append(
                f"  %scratch{number} = getelementptr i8, ptr %scratch, i64 {offset}"
            )
        self.loop(self.nest.parallel, parallel=True)
        # Others learn that a chunk is done by a flag, which streaming stores might arrive after.
        fence = ["  fence seq_cst"] if self.streams else []
        begin, end = ([BEGIN], [END]) if self.matrices else ([], [])
        body = [*self.allocas, *begin, *entry.lines, *fence, *end, "  ret void"]
        head = f"define void @{self.nest.name}(i64 %begin, i64 %end, ptr %args, ptr %scratch)"
        zeros = "@zeros = private constant [64 x i8] zeroinitializer, align 64"
        declarations = sorted(self.declarations)
        metadata = ["!0 = !{i32 1}"] if self.streams else []
        if self.matrices:
            declarations.insert(0, CONFIGURATION)
        lines = [zeros, *declarations, f"{head} {{", "entry:", *body, "}", *metadata, ""]
        return "\n".join(lines)

    def _argument(self, name: str, number: int, kind: str) -> None:
        lines = self.levels[0].lines
        lines.append(f"  {name}.p = getelementptr i64, ptr %args, i64 {number}")
        lines.append(f"  {name} = load {kind}, ptr {name}.p")

    # ---- statements ----

    def statement(self, statement: Statement) -> None:
        """Emit one statement at the current level."""
        if isinstance(statement, Loop):
            self.loop(statement)
            self.forget(arrays_written(statement) | locals_set(statement))
        elif isinstance(statement, Store):
            self._store(statement, self.value(statement.value))
        elif isinstance(statement, Stores):
            computed = [self.value(item.value) for item in statement.items]
            for item, value in zip(statement.items, computed, strict=True):
                self._store(item, value)
        elif isinstance(statement, Set):
            self._set(statement)
        elif isinstance(statement, Prefetch):
            pointer = self.pointer(statement.array, self.at_base(statement.index))
            self._hint(pointer, statement.later)
        elif isinstance(statement, MatrixProduct):
            self.matrices = True
            emit_matrix_product(self, statement)
        elif isinstance(statement, Fold):
            self._fold(statement)
        else:
            raise CompileError(f"LLVM renderer: {self.nest.name} has work-groups; it is for a GPU")

    def loop(self, loop: Loop, parallel: bool = False) -> None:
        """Emit a loop of any kind."""
        if loop.kind == "unroll":
            assert isinstance(loop.start, int) and isinstance(loop.stops[0], int)
            for number in range(loop.start, loop.stops[0], loop.step):
                self.open()
                self.bind_constant(loop.variable, number)
                self.close_straight(loop.body, self.statement)
        elif loop.kind == "lanes":
            self._lanes(loop, parallel)
        else:
            start, stop = self._range(loop, parallel)
            across = loads_across(self, loop)
            if across:
                emit_transposed(self, loop, across, start, stop, self.statement)
            else:
                self._serial(loop, start, stop)

    def _range(self, loop: Loop, parallel: bool) -> tuple[str, str]:
        if parallel:
            return "%begin", "%end"
        start = self.scalar(loop.start)
        stop = self.scalar(loop.stops[0])
        for other in loop.stops[1:]:
            stop = self.minimum(stop, self.scalar(other))
        return start, stop

    def _serial(self, loop: Loop, start: str, stop: str) -> None:
        constant_range = _is_number(start) and _is_number(stop)
        if constant_range and int(start) >= int(stop):
            return
        if constant_range and int(start) + loop.step >= int(stop):
            self.open()
            self.bind_constant(loop.variable, int(start))
            self.close_straight(loop.body, self.statement)
            return
        self.open_loop(loop.variable, start, stop, loop.step, not constant_range)
        self.levels[-1].changes = arrays_written(loop) | locals_set(loop)
        self._ask(loop)
        for inner in loop.body:
            self.statement(inner)
        self.close_loop()

    def _lanes(self, loop: Loop, parallel: bool) -> None:
        """Whole vectors in a loop, then the rest under a mask."""
        width = loop.step
        start, stop = self._range(loop, parallel)
        streamed = _streamed(loop)
        if streamed is not None:
            start = self._lanes_before(loop, streamed, start, stop)
            self.streams = True
        elif _is_number(start) and _is_number(stop):
            self._constant_lanes(loop, int(start), int(stop))
            return
        elif not parallel and [one - loop.start for one in loop.stops] == [width]:
            self._one_vector(loop, start)
            return
        exact = streamed is None and whole_vectors(loop)
        whole = stop
        if not exact:
            here = self.builder()
            length = here.line(f"sub i64 {stop}, {start}")
            rest = here.line(f"srem i64 {length}, {width}")
            positive = self.maximum(rest, "0")
            whole = here.line(f"sub i64 {stop}, {positive}")
        self.open_loop(None, start, whole, width, True)
        self.bind_lanes(loop, self.counter(), width)
        self.streamed = streamed
        self._ask(loop)
        for inner in loop.body:
            self.statement(inner)
        self.streamed = None
        self.close_loop()
        if exact:
            return
        here = self.builder()
        self._part_of_vector(loop, whole, here.line(f"sub i64 {stop}, {whole}"))

    def _part_of_vector(self, loop: Loop, start: str, count: str) -> None:
        """`count` iterations from `start` on, fewer than a vector and perhaps none."""
        width = loop.step
        self.open_branch(self.builder().line(f"icmp sgt i64 {count}, 0"))
        here = self.builder()
        self.bind_lanes(loop, start, width)
        numbers = values.broadcast(here, Value(count, dtypes.int64, 1), width)
        steps = _iota("i64", width)
        mask = here.line(f"icmp slt <{width} x i64> {steps}, {numbers.text}")
        self.levels[-1].mask, self.levels[-1].counting = mask, count
        for inner in loop.body:
            self.statement(inner)
        self.close_branch()

    def _lanes_before(self, loop: Loop, streamed: Store, start: str, stop: str) -> str:
        """Do the iterations before the first aligned place of a streamed array; gives the next."""
        size, width = streamed.array.dtype.itemsize, loop.step
        self.open()
        self.bind_lanes(loop, start, width)
        pointer = self.pointer(streamed.array, self.at_base(streamed.index))
        here = self.builder()
        address = here.line(f"ptrtoint ptr {pointer} to i64")
        beyond = here.line(f"sub i64 0, {address}")
        missing = here.line(f"and i64 {beyond}, {_alignment(streamed, width) - 1}")
        count = here.line(f"udiv i64 {missing}, {size}")
        self.close_straight((), self.statement)
        here = self.builder()
        count = self.minimum(count, here.line(f"sub i64 {stop}, {start}"))
        self._part_of_vector(loop, start, count)
        return self.builder().line(f"add i64 {start}, {self.maximum(count, '0')}")

    def _constant_lanes(self, loop: Loop, start: int, stop: int) -> None:
        width = loop.step
        whole = max(stop - start, 0) // width
        if whole > 1:
            self.open_loop(None, str(start), str(start + whole * width), width, False)
            self.bind_lanes(loop, self.counter(), width)
            self._ask(loop)
            for inner in loop.body:
                self.statement(inner)
            self.close_loop()
        elif whole == 1:
            self._one_vector(loop, str(start))
        rest = stop - start - whole * width
        if rest > 0:
            self.open()
            self.bind_lanes(loop, str(start + whole * width), width)
            bits = ", ".join(f"i1 {'true' if i < rest else 'false'}" for i in range(width))
            self.levels[-1].mask, self.levels[-1].counting = f"<{bits}>", str(rest)
            self.close_straight(loop.body, self.statement)

    def _one_vector(self, loop: Loop, start: str) -> None:
        """The only iterations of a loop, which are a whole vector."""
        self.open()
        self.bind_lanes(loop, start, loop.step)
        self._ask(loop)
        self.close_straight(loop.body, self.statement)

    def _ask(self, loop: Loop) -> None:
        """Ask the memory for what will be read soon: each cache line that a vector covers."""
        atom = self.lanes_atom()
        lanes = 1 if atom is None else self.width_of(atom)
        for array, place in loop.soon:
            pointer = self.pointer(array, self.at_base(place))
            span = lanes * max(self.lane_stride(place) or 1, 1) * array.dtype.itemsize
            for offset in range(0, span, CACHE_LINE):
                at = self.builder().line(f"getelementptr i8, ptr {pointer}, i64 {offset}")
                self._hint(at)

    def _set(self, statement: Set) -> None:
        value = self.value(statement.value)
        slot = self.scalar(statement.slot)
        name, lanes = self._slot(statement.local, int(slot))
        here = self.builder()
        value = values.broadcast(here, value, lanes)
        mask = None if statement.everywhere else self.mask()
        if mask is not None and statement.local.lanes is not None:
            old = here.line(f"load {value.type}, ptr {name}")
            text = here.line(
                f"select <{lanes} x i1> {mask}, {value.typed}, {value.type} {old}"
            )
            value = Value(text, value.dtype, lanes)
        here.lines.append(f"  store {value.typed}, ptr {name}")
        self.forget((statement.local,))

    def _slot(self, local: Local, slot: int) -> tuple[str, int]:
        """The stack place of a register, promoted to a register by SROA; and its lanes."""
        key = (local, slot)
        if key not in self.slots:
            lanes = local.width
            name = f"%{local.name}.{slot}"
            kind = vector_type(values.register_type(local.dtype), lanes)
            self.allocas.append(f"  {name} = alloca {kind}")
            self.slots[key] = (name, lanes)
        return self.slots[key]

    def _fold(self, statement: Fold) -> None:
        source, lanes = self._slot(statement.source, 0)
        target, _ = self._slot(statement.target, 0)
        here = self.builder()
        kind = vector_type(values.register_type(statement.source.dtype), lanes)
        loaded = Value(here.line(f"load {kind}, ptr {source}"), statement.source.dtype, lanes)
        folded = values.fold(here, statement.op, loaded)
        here.lines.append(f"  store {folded.typed}, ptr {target}")
        self.forget((statement.target,))

    def _hint(self, pointer: str, later: bool = False) -> None:
        """Ask for the cache line there: to read it (0), into all caches (3) or all but the first
        (2), as data (1).
        """
        self.declarations.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.builder().lines.append(
            f"  call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 {2 if later else 3}, i32 1)"
        )

    def _store(self, statement: Store, value: Value) -> None:
        array, lanes_atom = statement.array, self.lanes_atom()
        stride = self.lane_stride(statement.index)
        here = self.builder()
        guard = self.guard(statement.guard)
        if lanes_atom is None or stride == 0:
            self._store_scalar(statement, value, guard)
        else:
            width = self.width_of(lanes_atom)
            value = values.broadcast(here, value, width)
            mask = self.both(self.mask(), guard, width)
            kind = vector_type(memory_type(array.dtype), width)
            if stride == 1:
                pointer = self.pointer(array, self.at_base(statement.index))
                text = values.to_memory(here, value)
                size = array.dtype.itemsize
                if mask is None and statement is self.streamed:
                    size = _alignment(statement, width)
                    here.lines.append(
                        f"  store {kind} {text}, ptr {pointer}, align {size}, !nontemporal !0"
                    )
                elif mask is None:
                    here.lines.append(f"  store {kind} {text}, ptr {pointer}, align {size}")
                else:
                    self._masked_store(kind, text, pointer, mask, width, size)
            else:
                text = values.to_memory(here, value)
                pointers = self.pointers(array, statement.index, width)
                mask = mask or "splat (i1 true)"
                name = f"llvm.masked.scatter.{values.suffix(kind)}.v{width}p0"
                self.declarations.add(
                    f"declare void @{name}({kind}, <{width} x ptr>, i32, <{width} x i1>)"
                )
                here.lines.append(
                    f"  call void @{name}({kind} {text}, <{width} x ptr> {pointers}, "
                    f"i32 {array.dtype.itemsize}, <{width} x i1> {mask})"
                )
        self.forget((array,))

    def _masked_store(
        self, kind: str, text: str, pointer: str, mask: str, width: int, size: int
    ) -> None:
        here = self.builder()
        if mask.count("i1 true") == 1 and mask.startswith("<"):
            # LLVM 22 merges a truncation into a store of one lane, and then writes 32 bits of it.
            lane = [part.strip("<> ") for part in mask.split(",")].index("i1 true")
            scalar = kind.strip("<>").partition(" x ")[2]
            single = here.line(f"extractelement {kind} {text}, i64 {lane}")
            at = here.line(f"getelementptr {scalar}, ptr {pointer}, i64 {lane}")
            here.lines.append(f"  store {scalar} {single}, ptr {at}, align {size}")
            return
        name = f"llvm.masked.store.{values.suffix(kind)}.p0"
        self.declarations.add(f"declare void @{name}({kind}, ptr, i32, <{width} x i1>)")
        here.lines.append(
            f"  call void @{name}({kind} {text}, ptr {pointer}, i32 {size}, "
            f"<{width} x i1> {mask})"
        )

    def _store_scalar(self, statement: Store, value: Value, guard: str | None) -> None:
        if guard is not None:
            self.open_branch(guard)
        here = self.builder()
        pointer = self.pointer(statement.array, statement.index)
        text = values.to_memory(here, value)
        kind = memory_type(statement.array.dtype)
        here.lines.append(f"  store {kind} {text}, ptr {pointer}")
        if guard is not None:
            self.close_branch()

    # ---- expressions ----

    def value(self, root: Expr) -> Value:
        """The value of an expression, each part at the outermost level where it is known."""
        root = self._expand(root)
        if root.op is Leaf.PAIR:
            return self.memo[root][0] if root in self.memo else self._pair(root)
        for e in expr.walk(root):
            if e not in self.memo:
                self._emit(e)
        return self.memo[root][0]

    def _root(self, e: Expr) -> Expr:
        return self._expand(e)

    def _expand(self, root: Expr) -> Expr:
        if root not in self.expanded:
            self.expanded[root] = expand(root)
        return self.expanded[root]

    def _emit(self, e: Expr) -> None:
        level = self.level_of(e.variables)
        depends = self._changing(e)
        for item in depends:
            level = max(level, self.pinned(item))
        if e.op is Leaf.LOCAL:
            level = len(self.levels) - 1
        for arg in e.args:
            level = max(level, self.memo[arg][1])
        lanes = self.lanes_of(e)
        with self.at(level):
            if e.op is Op.CONST:
                value = constant(e.value, e.dtype)
            elif e.op is Leaf.LOAD:
                value = self._load(e, lanes)
            elif e.op is Leaf.INDEX:
                value = self._index_value(e.index, e.dtype, lanes)
            elif e.op is Leaf.CONDITION:
                value = self.condition(e.index)
            elif e.op is Leaf.LOCAL:
                value = self._read_local(e)
            else:
                value = self._operation(e, lanes)
        self.remember(e, value, level, depends)

    def _changing(self, e: Expr) -> frozenset[Array | Local]:
        """The arrays and registers below an expression that this kernel changes."""
        found = self.changing.get(e)
        if found is None:
            found = frozenset()
            if e.op is Leaf.LOAD:
                if e.array in self.writable:
                    found |= {e.array}
                for x in (e.index, *e.guard):
                    for inner in expr.values_in(x):
                        found |= self._changing(inner)
            elif e.op is Leaf.LOCAL:
                found |= {e.local}
            elif e.op in (Leaf.INDEX, Leaf.CONDITION):
                for inner in expr.values_in(e.index):
                    found |= self._changing(inner)
            for arg in e.args:
                found |= self._changing(arg)
            self.changing[e] = found
        return found

    def _operation(self, e: Expr, lanes: int) -> Value:
        here = self.builder()
        args = [values.broadcast(here, self.memo[arg][0], lanes) for arg in e.args]
        if e.op is Leaf.FMA:
            kind = args[0].type
            text = here.call(f"llvm.fma.{values.suffix(kind)}", kind, [a.typed for a in args])
            return Value(text, e.dtype, lanes)
        if e.op is Leaf.DOT:
            return pairs.dot_of_pairs(here, *args)
        assert isinstance(e.op, Op)
        return values.operation(here, e.op, args, e.dtype)

    def _read_local(self, e: Expr) -> Value:
        local, slot = e.local, e.slot
        name, lanes = self._slot(local, int(self.scalar(slot)))
        kind = vector_type(values.register_type(local.dtype), lanes)
        return Value(self.builder().line(f"load {kind}, ptr {name}"), local.dtype, lanes)

    def _index_value(self, x: Integer, dtype: DType, lanes: int) -> Value:
        here = self.builder()
        if lanes == 1:
            return values.cast(here, Value(self.scalar(x), dtypes.int64, 1), dtype)
        return values.cast(here, self.vector(x, lanes), dtype)

    def _pair(self, e: Expr) -> Value:
        """Two bfloat16 as one word, the first low; those of a whole vector at once if possible."""
        lanes = self.lanes_of(e)
        rounded = e.args[0].op is Op.CAST
        first, second = (arg.args[0] if rounded else arg for arg in e.args)
        array, index, guard = first.array, first.index, first.guard
        neighbours = lanes > 1 and second.index == index + 1
        if neighbours and self.lane_stride(index) == 2 and not (rounded and lanes % 16):
            text = self._side_by_side(first, second, lanes)
            here = self.builder()
            if rounded:
                return pairs.words_of_neighbours(here, Value(text, array.dtype, 2 * lanes))
            text = here.line(f"bitcast <{2 * lanes} x i16> {text} to <{lanes} x i32>")
            return Value(text, e.dtype, lanes)
        if rounded:
            floats = [self.value(load) for load in (first, second)]
            here = self.builder()
            return pairs.words_of(here, *(values.broadcast(here, x, lanes) for x in floats))
        if neighbours and not guard and not second.guard and self.lane_stride(index) != 1:
            kind, size = vector_type("i32", lanes), array.dtype.itemsize
            text = self._gather(kind, array, index, lanes, size, self.mask())
            return Value(text, e.dtype, lanes)
        words = []
        for load in (first, second):
            # a load that is the same in all lanes is one scalar
            width = self.lanes_of(load)
            text = self._bits(load, width)
            here = self.builder()
            short, long = vector_type("i16", width), vector_type("i32", width)
            wide = Value(here.line(f"zext {short} {text} to {long}"), e.dtype, width)
            words.append(values.broadcast(here, wide, lanes))
        here = self.builder()
        low, high = words
        sixteen = values.literal(16, "i32", lanes)
        shifted = here.line(f"shl {high.typed}, {sixteen}")
        return Value(here.line(f"or {low.typed}, {shifted}"), e.dtype, lanes)

    def _side_by_side(self, first: Expr, second: Expr, lanes: int) -> str:
        """What memory holds from a vector's first pair on: two neighbours for each lane."""
        array, index = first.array, first.index
        kind, size = vector_type(memory_type(array.dtype), 2 * lanes), array.dtype.itemsize
        masks = [self.both(self.mask(), self.guard(e.guard), lanes) for e in (first, second)]
        pointer, here = self.pointer(array, self.at_base(index)), self.builder()
        if masks == [None, None]:
            return here.line(f"load {kind}, ptr {pointer}, align {size}")
        of_lanes = f"<{lanes} x i1>"
        low, high = (f"{of_lanes} {mask or 'splat (i1 true)'}" for mask in masks)
        in_turn = ", ".join(f"i32 {n // 2 + n % 2 * lanes}" for n in range(2 * lanes))
        mask = here.line(f"shufflevector {low}, {high}, <{2 * lanes} x i32> <{in_turn}>")
        return self._masked_load(kind, pointer, size, 2 * lanes, mask)

    def _load(self, e: Expr, lanes: int) -> Value:
        text = self._bits(e, lanes)
        return values.from_memory(self.builder(), text, e.array.dtype, lanes)

    def _bits(self, e: Expr, lanes: int) -> str:
        """What memory holds where a LOAD looks, as a value of the memory's type."""
        array, index, guard_conditions = e.array, e.index, e.guard
        here = self.builder()
        guard = self.guard(guard_conditions)
        kind = vector_type(memory_type(array.dtype), lanes)
        size = array.dtype.itemsize
        if lanes == 1:
            pointer = self.pointer(array, index)
            if guard is not None:
                pointer = here.line(f"select i1 {guard}, ptr {pointer}, ptr @zeros")
            return here.line(f"load {kind}, ptr {pointer}, align {size}")
        mask = self.both(self.mask(), guard, lanes)
        if self.lane_stride(index) == 1:
            pointer = self.pointer(array, self.at_base(index))
            if mask is None:
                text = here.line(f"load {kind}, ptr {pointer}, align {size}")
            else:
                text = self._masked_load(kind, pointer, size, lanes, mask)
        elif mask is None and self._interleaved(array, known := self._with_constants(index)):
            text = self._picked(array, known, lanes)
        else:
            text = self._gather(kind, array, index, lanes, size, mask)
        return text

    def _masked_load(self, kind: str, pointer: str, size: int, lanes: int, mask: str) -> str:
        """Neighbours in memory, and zero where a mask says so."""
        name = f"llvm.masked.load.{values.suffix(kind)}.p0"
        self.declarations.add(f"declare {kind} @{name}(ptr, i32, <{lanes} x i1>, {kind})")
        return self.builder().line(
            f"call {kind} @{name}(ptr {pointer}, i32 {size}, <{lanes} x i1> {mask}, "
            f"{kind} zeroinitializer)"
        )

    def _gather(
        self, kind: str, array: Array, index: Integer, lanes: int, size: int,
        mask: str | None = None,
    ) -> str:  # fmt: skip
        """Elements that lie anywhere, `size` bytes aligned; zero in lanes outside a mask."""
        pointers = self.pointers(array, index, lanes)
        name = f"llvm.masked.gather.{values.suffix(kind)}.v{lanes}p0"
        self.declarations.add(
            f"declare {kind} @{name}(<{lanes} x ptr>, i32, <{lanes} x i1>, {kind})"
        )
        return self.builder().line(
            f"call {kind} @{name}(<{lanes} x ptr> {pointers}, i32 {size}, "
            f"<{lanes} x i1> {mask or 'splat (i1 true)'}, {kind} zeroinitializer)"
        )

    def _with_constants(self, index: Integer) -> Integer:
        """An index with the variables of unrolled loops replaced by their numbers."""
        known = self.constants
        return substitute(index, {atom: known[atom] for atom in variables(index) if atom in known})

    def _interleaved(self, array: Array, index: Integer) -> bool:
        """Whether lanes are a few elements apart, and all that lies between is in the array."""
        stride = self.lane_stride(index)
        if isinstance(index, int) or stride is None or not 2 <= stride <= MOST_INTERLEAVED:
            return False
        first = index.constant % stride
        return low(index) >= first and high(index) - first + stride <= array.size

    def _picked(self, array: Array, index: Integer, lanes: int) -> str:
        """Every so many-th element, picked from whole vectors: gathers take far longer.

        The others' loads are the same, and LLVM makes them one.
        """
        assert not isinstance(index, int)
        stride, scalar = self.lane_stride(index), memory_type(array.dtype)
        size = array.dtype.itemsize
        assert stride is not None
        first, width = index.constant % stride, min(lanes, CACHE_LINE // size)
        pointer = self.pointer(array, self.at_base(index - first))
        here = self.builder()
        kind = vector_type(scalar, width)
        pieces = []
        for piece in range(0, lanes * stride, width * stride):
            text = ""
            for number in range(stride):
                at = f"getelementptr {scalar}, ptr {pointer}, i64 {piece + number * width}"
                loaded = here.line(f"load {kind}, ptr {here.line(at)}, align {size}")
                places = [divmod(lane * stride + first, width) for lane in range(width)]
                order = ", ".join(
                    f"i32 {width + place}" if vector == number
                    else f"i32 {place if number == 1 else lane}" if vector < number
                    else "i32 poison"
                    for lane, (vector, place) in enumerate(places)
                )  # fmt: skip
                text = loaded if number == 0 else here.line(
                    f"shufflevector {kind} {text}, {kind} {loaded}, <{width} x i32> <{order}>"
                )  # fmt: skip
            pieces.append(text)
        return values.join_texts(self.builder(), pieces, scalar, width)


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdecimal()


def _iota(scalar: str, lanes: int) -> str:
    return "<" + ", ".join(f"{scalar} {i}" for i in range(lanes)) + ">"


def _streamed(loop: Loop) -> Store | None:
    """The store of a vector loop that passes by the cache: the first one that may, if any."""
    for statement in loop.body:
        items = statement.items if isinstance(statement, Stores) else (statement,)
        for item in items:
            if isinstance(item, Store) and item.streaming and not item.guard:
                plain = coefficient(item.index, loop.variable) == 1
                if plain and _alignment(item, loop.step) >= 16:
                    return item
    return None


def _alignment(store: Store, width: int) -> int:
    """Bytes at whose multiples a streamed vector starts."""
    return min(width * store.array.dtype.itemsize, 64)
