"""From a loop nest to LLVM IR.

    define void @kernel(i64 %begin, i64 %end, ptr %args, ptr %scratch)

runs iterations begin … end − 1 of the nest's parallel loop. `args` holds one 64-bit word per array
(its address) and per symbol (its value).

Every open loop is a `Scope` with its own list of lines. An instruction goes to the outermost level
at which all that it depends on is known, so invariant code leaves its loops by itself; since a
loop's lines are put into its parent only when it is closed, what was moved out comes before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from minigrad.errors import CompileError
from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Integer, ceildiv, high, low
from minigrad.loops.nest import (
    Fold,
    Loop,
    MatrixProduct,
    Nest,
    Prefetch,
    Statement,
    Store,
    Stores,
    whole_vectors,
)
from minigrad.render import llvm_values as values
from minigrad.render.llvm_index import Slot, is_number
from minigrad.render.llvm_memory import (
    CACHE_LINE,
    MatrixRegisters,
    MemoryEmitter,
    alignment,
    emit_matrix_product,
)
from minigrad.render.llvm_transpose import across, emit_transposed
from minigrad.render.llvm_values import Value, constant
from minigrad.schedule.expr import Array, Expr, Leaf, apply


def render(nest: Nest) -> str:
    """The text of an LLVM module with one function, named as the nest."""
    return _Emitter(nest).module()


def together(texts: Mapping[str, str]) -> str:
    """One module of several kernels' texts, by the names that their functions are to have."""
    shared: dict[str, None] = {}
    functions: list[str] = []
    for name, text in texts.items():
        before, head, rest = text.partition("define void @")
        body, end, after = rest.partition("\n}\n")
        functions.append(f"{head}{name}{body[body.index('('):]}{end}")
        shared.update(dict.fromkeys((before + after).splitlines()))
    return "\n".join((*shared, *functions))


class _Emitter(MemoryEmitter):
    """Emits statements and expressions. Memory accesses are in the base class."""

    before_branch = slice(None, None, 2)
    narrow = False  # addresses are 64 bits

    def __init__(self, nest: Nest) -> None:
        super().__init__(nest)
        self.streams = False
        self.matrices = MatrixRegisters()

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
        # Other threads see from a flag that a chunk is done; streaming stores might arrive later.
        fence = ["  fence seq_cst"] if self.streams else []
        body = [*entry.lines, *fence]
        if self.matrices.numbers:
            declared, begin, release = self.matrices.configured()
            self.declarations.add(declared)
            body = [begin, *body, release]
        given = "i64 %begin, i64 %end, ptr %args, ptr %scratch"
        # Nothing unwinds through a kernel, and objects without unwind tables are smaller. Without
        # alignment, vectors on the stack (sums of another level) would span two cache lines.
        head = f"define void @{self.nest.name}({given}) nounwind alignstack({CACHE_LINE}) {{"
        end = ("  ret void", "}", "")
        return "\n".join((*sorted(self.declarations), head, "entry:", *body, *end))

    def _argument(self, name: str, number: int, kind: str) -> None:
        lines = self.levels[0].lines
        lines.append(f"  {name}.p = getelementptr i64, ptr %args, i64 {number}")
        lines.append(f"  {name} = load {kind}, ptr {name}.p")

    # ---- statements ----

    def special(self, statement: Statement) -> None:
        """Emit a prefetch, a reduction over lanes or a product of matrices."""
        if isinstance(statement, Prefetch):
            first = self.pointer(statement.array, self.at_lane(statement.index))
            for far in range(0, CACHE_LINE * statement.lines, CACHE_LINE):
                at = self.line(f"getelementptr i8, ptr {first}, i64 {far}") if far else first
                # for reading (0), into all caches (3), as data (1)
                self.do("llvm.prefetch.p0", f"ptr {at}", "i32 0", "i32 3", "i32 1")
        elif isinstance(statement, MatrixProduct):
            emit_matrix_product(self, self.matrices, statement)
        elif isinstance(statement, Fold):
            self._fold(statement)
        else:
            raise CompileError(f"LLVM renderer: {self.nest.name} has work-groups, as for a GPU")

    def loop(self, loop: Loop, parallel: bool = False) -> None:
        """Emit a loop of any kind."""
        start, stop = "%begin", "%end"
        if not parallel:
            start, stop = self.scalar(loop.start), self.least(loop.stops)
        if is_number(start) and is_number(stop) and int(start) >= int(stop):
            return
        if loop.kind == "lanes":
            self._lanes(loop, start, stop)
        elif any(found := across(self, loop)):
            emit_transposed(self, loop, *found, start, stop)
        elif loop.kind == "unroll":
            self.unrolled(loop)
        else:
            self._steps(loop, start, stop, check=parallel or not _runs(loop))

    def _lanes(self, loop: Loop, start: str, stop: str) -> None:
        """Whole vectors in a loop, then the remainder under a mask."""
        self.streamed = None if self.nest.masked else _streamed(loop)
        even = start != "%begin" or self.nest.grain % loop.step == 0
        if self.streamed is not None:
            start = self._lanes_before(loop, self.streamed, start, stop)
            self.streams, even = True, False
        elif [one - loop.start for one in loop.stops] == [loop.step] and start != "%begin":
            self._steps(loop, start, stop, alone=True)
            return
        exact = self.streamed is None and whole_vectors(loop)
        if loop.overlaps and not exact:
            self._overlapping(loop, start, stop)
            return
        if self.streamed is None and any(high(x - loop.start) < loop.step for x in loop.stops):
            self._part_of_vector(loop, start, self.minus(stop, start), even)
            return
        check = start == "%begin" or not _runs(loop)
        if self.nest.masked and not exact:  # one loop, whose last vector may be partial
            with self.iterations(start, stop, loop.step, check, loop.changes) as counter:
                count = self.minimum(self.minus(stop, counter), str(loop.step))
                self._some_lanes(loop, counter, count, even)
            return
        whole = stop
        if not exact:
            length, step = self.minus(stop, start), str(loop.step)
            rest = self.computed("srem", lambda x, y: max(x, 0) % y, length, step)
            whole = self.minus(stop, self.maximum(rest, "0"))
        self._steps(loop, start, whole, even=even, check=check or not exact)
        self.streamed = None
        if not exact:
            self._part_of_vector(loop, whole, self.minus(stop, whole), even)

    def _steps(
        self, loop: Loop, start: str, stop: str, alone: bool = False, even: bool = True,
        check: bool = True,
    ) -> None:  # fmt: skip
        """A loop over iterations or whole vectors, or (alone) its only one.

        even: see `bind_lanes`. check: whether there may be none.
        """
        piece: AbstractContextManager[str | None] = self.straight(loop.changes)
        known = is_number(start) and is_number(stop)
        several = 1 if alone else 2  # of an unknown number it matters only whether it is one
        count = ceildiv(int(stop) - int(start), loop.step) if known else several
        if count == 0:  # only a part of a vector follows
            return
        if count > 1:
            piece = self.iterations(start, stop, loop.step, check and not known, loop.changes)
        with piece as counter:
            if loop.kind == "lanes":
                self.bind_lanes(loop, counter or start, even)
            elif counter is None:
                self.bind_constant(loop.variable, int(start))
            else:
                self.scalars[loop.variable] = counter
                self.bound(loop.variable)
            self.body(loop)

    def _overlapping(self, loop: Loop, start: str, stop: str) -> None:
        """Whole vectors; the last one ends where the loop ends."""
        with self.iterations(start, stop, loop.step, not _runs(loop), loop.changes) as counter:
            first = self.minimum(counter, self.minus(stop, str(loop.step)))
            self.bind_lanes(loop, first, False)
            before = self.first_lanes(self.minus(counter, first), loop.step)
            self.new = self.line(f"xor <{loop.step} x i1> {before}, splat (i1 true)")
            self.body(loop)
            self.new = None

    def _some_lanes(self, loop: Loop, start: str, count: str, even: bool) -> None:
        """A vector from `start` on, with `count` active lanes. even: see `bind_lanes`."""
        mask = self.first_lanes(count, loop.step)
        self.bind_lanes(loop, start, even)
        self.levels[-1].mask, self.levels[-1].counting = mask, count
        for statement in loop.body:
            if not isinstance(statement, Prefetch):  # (whole vectors ask for what comes later)
                self.statement(statement)

    def _part_of_vector(self, loop: Loop, start: str, count: str, even: bool) -> None:
        """`count` iterations from `start` on, fewer than a vector and perhaps none.

        even: see `bind_lanes`.
        """
        if count == "0":
            return
        with self.where_above(count, 0, loop.changes):
            self._some_lanes(loop, start, count, even)

    def _lanes_before(self, loop: Loop, streamed: Store, start: str, stop: str) -> str:
        """Run iterations up to the first aligned element of a streamed array; gives the next."""
        size, width = streamed.array.dtype.itemsize, loop.step
        with self.straight(loop.changes):
            self.bind_lanes(loop, start, False)
            pointer = self.pointer(streamed.array, self.at_lane(streamed.index))
            address = self.line(f"ptrtoint ptr {pointer} to i64")
            beyond = self.line(f"sub i64 0, {address}")
            missing = self.line(f"and i64 {beyond}, {alignment(streamed, width) - 1}")
            count = self.line(f"udiv i64 {missing}, {size}")
        count = self.minimum(count, self.minus(stop, start))
        self._part_of_vector(loop, start, count, False)
        return self.line(f"add i64 {start}, {self.maximum(count, '0')}")

    def set(self, statement: Store, value: Value) -> None:
        """Set a register; lanes that are combined later keep their value outside of a mask."""
        array, lanes = statement.array, statement.array.width
        slot = self._slot(array, statement.index)
        value = values.broadcast(self, value, lanes)
        cleared = statement.value.op is Op.CONST  # in all lanes
        mask = self.mask() if array.folded and not cleared else None
        old = self.held(slot) if mask is not None else None
        if old is not None:
            text, known = value.text, values.known_flags(mask, lanes) is not None
            if array.dtype.is_float and not known and not old.text.startswith("%"):
                # LLVM 22 would load a whole vector for a masked multiply-add that begins with 0
                text = values.fenced(self, value.type, text)
            both = f"{value.type} {text}, {old.typed}"
            value = Value(self.line(f"select <{lanes} x i1> {mask}, {both}"), array.dtype, lanes)
        self.levels[-1].registers[slot] = Value(value.text, array.dtype, lanes)

    def _slot(self, array: Array, index: Integer) -> Slot:
        return array.name, index if isinstance(index, int) else int(self.scalar(index))

    def _read(self, array: Array, index: Integer) -> Value:
        """The value of a register."""
        held = self.held(self._slot(array, index))
        if held is None:
            raise CompileError(
                f"LLVM renderer: {self.nest.name} reads {array}[{index}], which was never written"
            )
        return held

    def _fold(self, statement: Fold) -> None:
        source = self._read(statement.source, statement.slot)
        folded = values.fold(self, statement.op, source)
        self.levels[-1].registers[self._slot(statement.target, 0)] = folded
        self.forget((statement.target,))

    # ---- expressions ----

    def value(self, root: Expr) -> Value:
        """The value of an expression; a WORD is made as a whole."""
        root = self.expand(root)
        if root.op is Leaf.WORD and root not in self.memo:
            return self.word(root)
        return super().value(root)

    def emitted(self, e: Expr) -> Value:
        """The value of an expression whose operands are known, at the current level."""
        lanes = self.lanes_of(e)
        if e.op is Leaf.RARELY:
            return self._rarely(e, lanes)
        if e.args:
            return self._operation(e, lanes)
        if e.op is Op.CONST:
            return constant(e.value, e.dtype)
        if e.in_registers:
            return self._read(e.array, e.index)
        if e.op is Leaf.LOAD:
            return self.load(e, lanes)
        if e.op is Leaf.INDEX:
            return self.index_value(e)
        return self.condition(e.index)

    def _rarely(self, e: Expr, lanes: int) -> Value:
        """A RARELY, with a branch that runs if a lane needs it; outside of its loop without."""
        test, then, otherwise = e.args
        chosen = apply(Op.WHERE, (test, then, otherwise), e.dtype)
        if self.current is not self.levels[-1]:
            return self.value(chosen)
        array = Array(self.fresh(), e.dtype, 1, "registers")
        some = values.broadcast(self, self.memo[test][0], lanes)
        text = self.any(some.text, lanes) if lanes > 1 else some.text
        held, slot = self.levels[-1].registers, (array.name, 0)
        held[slot] = values.broadcast(self, self.memo[otherwise][0], lanes)
        least, self._least = self._least, len(self.levels)
        with self.branch(text, frozenset((array,))):
            inside = values.broadcast(self, self.value(chosen), lanes)
            self.levels[-1].registers[slot] = inside
        self._least = least
        return held.pop(slot)

    def _operation(self, e: Expr, lanes: int) -> Value:
        args = [values.broadcast(self, self.memo[arg][0], lanes) for arg in e.args]
        if e.op is Leaf.FMA:
            kind = args[0].type
            text = self.call(f"llvm.fma.{values.suffix(kind)}", kind, [a.typed for a in args])
            return Value(text, e.dtype, lanes)
        if e.op is Leaf.DOT:
            return values.dot(self, *args)
        return values.operation(self, e.op, args, e.dtype)


def _runs(loop: Loop) -> bool:
    """Whether a loop has at least one iteration, whatever its bounds are."""
    return all(low(stop - loop.start) > 0 for stop in loop.stops)


def _streamed(loop: Loop) -> Store | None:
    """The store of a vector loop that bypasses the cache: the first one that may, or None."""
    for statement in loop.body:
        items = statement.items if isinstance(statement, Stores) else (statement,)
        for item in items:
            if isinstance(item, Store) and item.streaming and not item.guard:
                plain = coefficient(item.index, loop.variable) == 1
                if plain and alignment(item, loop.step) >= 16:
                    return item
    return None
