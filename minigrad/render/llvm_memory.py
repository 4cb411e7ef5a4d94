"""Loads and stores: single elements, whole vectors, masked ones, gathers, and words of neighbours.

Products in matrix registers (AMX) are here, too; their intrinsics name the registers by number.
Each of the eight holds up to 16 rows of 64 bytes: 16 × 16 float32 or int32, or as many words of two
bfloat16 or four bytes. A square of 32 × 32 takes six: four quarters of the total, one for rows of
the left operand, one for columns of the right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import reduce

from minigrad.dtype import DType, dtypes
from minigrad.errors import CompileError
from minigrad.graph.node import Op
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Integer, high, low
from minigrad.loops.nest import Matrix, MatrixProduct, Nest, Store
from minigrad.render import llvm_values as values
from minigrad.render.llvm_index import IndexEmitter, is_number
from minigrad.render.llvm_values import Builder, Value, memory_type, vector_type
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.layout import is_near

CACHE_LINE = 64  # bytes
MOST_VECTORS = 9  # vectors in memory from which lanes are picked faster than by a gather
PAGE = 4096  # bytes


class MemoryEmitter(IndexEmitter):
    """Emits accesses to memory. Indices are in the base class."""

    def __init__(self, nest: Nest) -> None:
        super().__init__(nest)
        self.streamed: Store | None = None  # its vectors are aligned now
        self.new: str | None = None  # if vectors overlap: the lanes that are not in buffers yet
        # values to store when a block of iterations is done, by identity (see llvm_transpose.py)
        self.waiting: dict[int, list[Value]] = {}

    def store(self, statement: Store, value: Value) -> None:
        """Store a value, or its active lanes."""
        array, width = statement.array, self.width()
        if id(statement) in self.waiting:
            self.waiting[id(statement)].append(values.broadcast(self, value, width))
            return
        stride = self.lane_stride(statement.index)
        guard = self.guard(statement.guard)
        if width == 1 or stride == 0:
            self._store_scalar(statement, value, guard)
            return
        value = values.broadcast(self, value, width)
        lanes = self.mask() if self.new is None or array.space != "buffer" else self.new
        mask = self.both(lanes, guard, width)
        kind, size = vector_type(memory_type(array.dtype), width), array.dtype.itemsize
        if stride != 1 and is_near(stride):
            self._store_apart(statement, value, mask)
            return
        if stride != 1:
            text = values.to_memory(self, value)
            pointers = self.pointers(array, statement.index, width)
            self.do(
                f"llvm.masked.scatter.{values.suffix(kind)}.v{width}p0", f"{kind} {text}",
                f"<{width} x ptr> {pointers}", f"i32 {size}",
                f"<{width} x i1> {mask or 'splat (i1 true)'}",
            )  # fmt: skip
            return
        pointer = self.pointer(array, self.at_lane(statement.index))
        text, how = values.to_memory(self, value), ""
        if mask is not None:
            self._masked_store(array.dtype, text, pointer, mask, width)
            return
        if statement is self.streamed:
            size, how = alignment(statement, width), ", !nontemporal !0"
            self.declarations.add("!0 = !{i32 1}")
        self.lines.append(f"  store {kind} {text}, ptr {pointer}, align {size}{how}")

    def _store_apart(self, statement: Store, value: Value, mask: str | None) -> None:
        """Store lanes between other elements, under a mask: a scatter would store one by one."""
        array, width = statement.array, value.lanes
        step, scalar = self.lane_stride(statement.index), memory_type(array.dtype)
        assert step is not None
        count, known = step * width, values.known_flags(mask, width)
        lanes = [n // step if n % step == 0 else None for n in range(count)]
        if known is not None:
            own = values.flags(n is not None and known[n] for n in lanes)
        else:
            assert mask is not None
            places = (width if n is None else n for n in lanes)
            own = self.shuffle(f"<{width} x i1>", mask, places, "zeroinitializer")
        pointer = self.pointer(array, self.at_lane(statement.index))
        spread = ("poison" if n is None else n for n in lanes)
        text = self.shuffle(vector_type(scalar, width), values.to_memory(self, value), spread)
        self._masked_store(array.dtype, text, pointer, own, count)

    def _masked_store(self, dtype: DType, text: str, pointer: str, mask: str, width: int) -> None:
        scalar, size = memory_type(dtype), dtype.itemsize
        kind, known = vector_type(scalar, width), values.known_flags(mask, width)
        if known is not None and sum(known) == 1:
            # LLVM 22 merges a truncation into a store of one lane, and then writes 32 bits of it.
            # And if x is a broadcast lane of y, one lane of −x may become y's first.
            lane = known.index(True)
            if not scalar.startswith("i"):
                text = values.fenced(self, kind, text)
            single = self.line(f"extractelement {kind} {text}, i64 {lane}")
            at = self.line(f"getelementptr {scalar}, ptr {pointer}, i64 {lane}")
            self.lines.append(f"  store {scalar} {single}, ptr {at}, align {size}")
            return
        self.do(
            f"llvm.masked.store.{values.suffix(kind)}.p0", f"{kind} {text}", f"ptr {pointer}",
            f"i32 {size}", f"<{width} x i1> {mask}",
        )  # fmt: skip

    def _store_scalar(self, statement: Store, value: Value, guard: Value | None) -> None:
        with self.straight() if guard is None else self.branch(guard.text):
            pointer = self.pointer(statement.array, statement.index)
            text = values.to_memory(self, value)
            kind = memory_type(statement.array.dtype)
            self.lines.append(f"  store {kind} {text}, ptr {pointer}")

    def word(self, e: Expr) -> Value:
        """Neighbours as a word, the first lowest; those of a whole vector at once if possible."""
        lanes, count = self.lanes_of(e), len(e.args)
        rounded = e.args[0].op is Op.CAST
        parts = [arg.args[0] if rounded else arg for arg in e.args]
        if parts[0].op is not Leaf.LOAD:
            return self._rounded(parts, lanes)
        array, index = parts[0].array, parts[0].index
        step, size = self.lane_stride(index), array.dtype.itemsize
        neighbours = lanes > 1 and all(part.index == index + n for n, part in enumerate(parts))
        if neighbours and step == count and not (rounded and lanes % 16):
            text = self._side_by_side(parts, lanes)
            if rounded:
                return values.words_of_neighbours(self, Value(text, array.dtype, count * lanes))
            kind = vector_type(memory_type(array.dtype), count * lanes)
            return Value(self.line(f"bitcast {kind} {text} to <{lanes} x i32>"), e.dtype, lanes)
        if rounded:
            return self._rounded(parts, lanes)
        texts = [self._bits(part, lanes) for part in parts]
        scalar = memory_type(array.dtype)
        if lanes > 1:
            text = in_turn(self, texts, scalar, lanes)
            text = self.line(f"bitcast <{count * lanes} x {scalar}> {text} to <{lanes} x i32>")
            return Value(text, e.dtype, lanes)
        wide = [self.line(f"zext {scalar} {text} to i32") for text in texts]  # of all lanes
        moved = [self.line(f"shl i32 {text}, {8 * size * n}") for n, text in enumerate(wide)]
        text = reduce(lambda x, y: self.line(f"or i32 {x}, {y}"), moved)
        return Value(text, e.dtype, lanes)

    def _rounded(self, parts: Sequence[Expr], lanes: int) -> Value:
        floats = [self.value(one) for one in parts]
        return values.words_of(self, *(values.broadcast(self, x, lanes) for x in floats))

    def _side_by_side(self, parts: Sequence[Expr], lanes: int) -> str:
        """The elements in memory from a vector's first word on: the neighbours of each lane."""
        array, index, count = parts[0].array, parts[0].index, len(parts)
        masks = [self.both(self.mask(), self.guard(e.guard), lanes) for e in parts]
        pointer, mask = self.pointer(array, self.at_lane(index)), None
        if any(masks):
            flags = [mask or "splat (i1 true)" for mask in masks]
            mask = in_turn(self, flags, "i1", lanes)
        return self._loaded(array.dtype, pointer, count * lanes, mask)

    def load(self, e: Expr, lanes: int) -> Value:
        """The value of a LOAD."""
        text = self._bits(e, lanes)
        return values.from_memory(self, text, e.array.dtype, lanes)

    def _bits(self, e: Expr, lanes: int) -> str:
        """The bits that a LOAD reads, as a value of the memory's type."""
        array, index, guard_conditions = e.array, e.index, e.guard
        if lanes == 1:
            pointer, guard = self.pointer(array, index), self.guard(guard_conditions)
            if guard is not None:
                pointer = self._or_zeros(pointer, guard)
            return self._loaded(array.dtype, pointer, lanes)
        alike = [c for c in guard_conditions if not self.varies(c)]
        common = self.guard(tuple(alike))  # of all lanes
        own = self.guard(tuple(c for c in guard_conditions if c not in alike))
        mask, neighbours = self.both(self.mask(), own, lanes), self.lane_stride(index) == 1
        if not neighbours:
            known = substitute(index, self.known)
            text = self._picked(array, known, mask, common, own is not None)
            if text is not None:
                return text
        mask = self.both(mask, common, lanes)
        if self.lane_stride(index) == 0 and mask is not None:
            return self._for_all(array, index, lanes, mask)
        if not neighbours:
            return self._gather(array, index, lanes, mask)
        pointer = self.pointer(array, self.at_lane(index))
        pointer = self._mapped(pointer, array, index, common if own is None else mask, lanes)
        return self._loaded(array.dtype, pointer, lanes, mask)

    def any(self, mask: str, lanes: int) -> str:
        """Whether any lane of a mask is set."""
        given = [f"<{lanes} x i1> {mask}"]
        return self.call(f"llvm.vector.reduce.or.v{lanes}i1", "i1", given)

    def _or_zeros(self, pointer: str, some: Value) -> str:
        """A pointer, or one to zeros if a condition fails."""
        self.declarations.add("@zeros = private constant [64 x i8] zeroinitializer, align 64")
        return self.line(f"select {some.typed}, ptr {pointer}, ptr @zeros")

    def _mapped(
        self, pointer: str, array: Array, index: Integer, some: Value | str | None, width: int
    ) -> str:  # fmt: skip
        """The pointer, or the array's own if no lane is read and it may be far outside of it.

        some: a mask of `width` elements that are read, or whether all are. (A masked load of memory
        that is not mapped takes a processor thousands of cycles.)
        """
        outside = max(-low(index), high(index) - array.size) * array.dtype.itemsize
        if outside < PAGE or some is None:
            return pointer
        if isinstance(some, str):
            some = Value(self.any(some, width), dtypes.bool, 1)
        return self.line(f"select {some.typed}, ptr {pointer}, ptr {self.bases[array]}")

    def _loaded(self, dtype: DType, pointer: str, lanes: int, mask: str | None = None) -> str:
        """Adjacent elements in memory; zero outside of a mask."""
        kind, size = vector_type(memory_type(dtype), lanes), dtype.itemsize
        if mask is None:
            return self.line(f"load {kind}, ptr {pointer}, align {size}")
        return self.call(f"llvm.masked.load.{values.suffix(kind)}.p0", kind, [
            f"ptr {pointer}", f"i32 {size}", f"<{lanes} x i1> {mask}", f"{kind} zeroinitializer",
        ])  # fmt: skip

    def _for_all(self, array: Array, index: Integer, lanes: int, mask: str) -> str:
        """An element that all lanes of a mask read; zero for the others."""
        some = Value(self.any(mask, lanes), dtypes.bool, 1)
        pointer = self._or_zeros(self.pointer(array, self.at_lane(index)), some)
        one, scalar = self._loaded(array.dtype, pointer, 1), memory_type(array.dtype)
        kind = vector_type(scalar, lanes)
        first = self.line(f"insertelement {kind} poison, {scalar} {one}, i64 0")
        alike = self.shuffle(kind, first, [0] * lanes)
        return self.line(f"select <{lanes} x i1> {mask}, {kind} {alike}, {kind} zeroinitializer")

    def _gather(self, array: Array, index: Integer, lanes: int, mask: str | None) -> str:
        """Elements at any places; zero in lanes outside a mask."""
        kind, size = vector_type(memory_type(array.dtype), lanes), array.dtype.itemsize
        pointers = self.pointers(array, index, lanes)
        return self.call(f"llvm.masked.gather.{values.suffix(kind)}.v{lanes}p0", kind, [
            f"<{lanes} x ptr> {pointers}", f"i32 {size}",
            f"<{lanes} x i1> {mask or 'splat (i1 true)'}", f"{kind} zeroinitializer",
        ])  # fmt: skip

    def places(self, index: Integer) -> list[int]:
        """The distance of each lane's element from the first one's; empty if unknown."""
        step = self.lane_stride(index)
        if step is not None:
            return [lane * step for lane in range(self.width())]
        at = self.at_lanes(index)
        apart = [one - at[0] for one in at]
        known = [one for one in apart if isinstance(one, int)]
        return known if len(known) == len(at) else []

    def _picked(
        self, array: Array, index: Integer, mask: str | None, common: Value | None, guarded: bool,
    ) -> str | None:  # fmt: skip
        """Elements picked from the few vectors in memory that have them; gathers take far longer.

        mask: which lanes may be read; guarded: the others are zeros. common: whether any may. None
        if there are many such vectors, or the mask is computed. Other values' elements between them
        are picked from the same vectors, whose loads LLVM merges.
        """
        places, step = self.places(index), self.lane_stride(index)
        known = values.known_flags(mask, len(places))
        width = min(len(places), CACHE_LINE // array.dtype.itemsize)
        if not places or known is None:
            return None
        constant = index if isinstance(index, int) else index.constant
        before = constant % max(width if step is None else step, 1)
        if before >= width or step is None and not (
            0 <= min(places) <= max(places) < width - before
        ):
            before = 0
        parts = [range(lane, lane + width) for lane in range(0, len(places), width)]
        begins = [_vectors([places[lane] for lane in part], before, width) for part in parts]
        most = max(map(len, begins))
        if most > MOST_VECTORS or step not in range(MOST_VECTORS + 1) and 2 * most > width:
            return None
        texts = [
            self._part_picked(array, index, places, part, begin, known, common)
            for part, begin in zip(parts, begins, strict=True)
        ]
        scalar, lanes = memory_type(array.dtype), len(places)
        text, kind = values.join_texts(self, texts, scalar, width), vector_type(scalar, lanes)
        # a lane that must not read may have got an element that another lane reads
        if guarded:
            text = self.line(f"select <{lanes} x i1> {mask}, {kind} {text}, {kind} zeroinitializer")
        return text

    def _part_picked(
        self, array: Array, index: Integer, places: Sequence[int], part: range,
        begins: Sequence[int], known: Sequence[bool], common: Value | None,
    ) -> str:  # fmt: skip
        """The same for some lanes; begins: of the vectors, relative to the first lane's element.

        known: which lanes may be read.
        """
        width, scalar = len(part), memory_type(array.dtype)
        whole = common is None and all(known)
        vector = [sum(begin <= places[lane] for begin in begins) - 1 for lane in part]
        place = [places[lane] - begins[n] for lane, n in zip(part, vector, strict=True)]
        first, last = low(index) - min(places), high(index) - max(places)  # of lane 0, if all count
        # An array of varying size may end after the last element, but not between neighbours.
        loose = self.lane_stride(index) in range(1, MOST_VECTORS + 1)
        alone = all(lanes.base == 0 for lanes in self.vectors.values())
        loose = loose or alone and not self.nest.symbols

        def there(begin: int, size: int) -> bool:
            exact = begin >= min(places) and begin + size - 1 <= max(places)
            inside = first + begin >= 0 and last + begin + size <= array.size
            return whole and inside and (loose or exact)

        size = width
        if not there(begins[0], width) or not there(begins[-1], width):
            size = max(1 << max(place).bit_length(), 2)
        kind = vector_type(scalar, size)
        text = ""
        for number, begin in enumerate(begins):
            pointer = self.pointer(array, self.at_lane(index) + begin)
            if common is not None:
                pointer = self._or_zeros(pointer, common)
            mask = None
            if not there(begin, size):
                read = {
                    at for lane, n, at in zip(part, vector, place, strict=True)
                    if n == number and known[lane]
                }  # fmt: skip
                mask = values.flags(at in read for at in range(size))
            loaded = self._loaded(array.dtype, pointer, size, mask)
            if number == 0 or size < width:
                own = (at if n == number else "poison" for at, n in zip(place, vector, strict=True))
                loaded = self.shuffle(kind, loaded, own)
            at_own = range(width) if size < width else place
            both = [width + at_own[n] if v == number else n for n, v in enumerate(vector)]
            text = self.shuffle(vector_type(scalar, width), text, both, loaded) if text else loaded
        return text


def in_turn(here: Builder, parts: Sequence[str], scalar: str, lanes: int) -> str:
    """Interleave two or four vectors: the first element of each, then the second, …."""
    count, half = len(parts), len(parts) // 2
    x, y = (values.join_texts(here, [*parts[at : at + half]], scalar, lanes) for at in (0, half))
    order = [n // count + n % count * lanes for n in range(count * lanes)]
    return here.shuffle(vector_type(scalar, half * lanes), x, order, y)


def _vectors(places: Iterable[int], before: int, width: int) -> list[int]:
    """The starts of vectors that contain all places, the first `before` the first place."""
    found: list[int] = []
    for place in sorted(places):
        if not found:
            found = [place - before]
        if place >= found[-1] + width:
            near = place < found[-1] + 2 * width
            found.append(found[-1] + width if near else place)
    return found


def alignment(store: Store, width: int) -> int:
    """The alignment of a streamed vector, in bytes."""
    return min(width * store.array.dtype.itemsize, 64)


# ---- matrix registers ----


REGISTERS, SIDE = 8, 16  # registers; rows of each, and words of a row
_WORD = 4  # bytes of an element, of any kind


class MatrixRegisters:
    """The matrix registers of a kernel; numbers: by use, rows and bytes of a row."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, int, int, int], int] = {}

    def number(self, what: str, place: int, rows: int, nbytes: int) -> int:
        """The register for part `place` of an operand of that shape; each call gives the same."""
        return self.numbers.setdefault((what, place, rows, nbytes), len(self.numbers))

    def configured(self) -> tuple[str, str, str]:
        """The declarations of a module, and the first and last instruction of its function.

        Palette 1, 64 bytes and 16 rows for each register at most: see Intel's manual at LDTILECFG.
        """
        shapes = [shape[2:] for shape in self.numbers]
        if len(shapes) > REGISTERS:
            raise CompileError(f"LLVM renderer: {len(shapes)} matrix registers of {REGISTERS}")
        name = "@matrices." + ".".join(f"{rows}x{nbytes}" for rows, nbytes in shapes)
        shapes += [(0, 0)] * (16 - len(shapes))
        parts = [
            "[16 x i8] [i8 1" + ", i8 0" * 15 + "]",
            f"[16 x i16] [{', '.join(f'i16 {nbytes}' for _, nbytes in shapes)}]",
            f"[16 x i8] [{', '.join(f'i8 {rows}' for rows, _ in shapes)}]",
        ]
        kind, value = "{ [16 x i8], [16 x i16], [16 x i8] }", f"{{ {', '.join(parts)} }}"
        declared = [
            f"{name} = private constant {kind} {value}, align 64",
            "declare void @llvm.x86.ldtilecfg(ptr)", "declare void @llvm.x86.tilerelease()",
        ]  # fmt: skip
        begin = f"  call void @llvm.x86.ldtilecfg(ptr {name})"
        return "\n".join(declared), begin, "  call void @llvm.x86.tilerelease()"


def emit_matrix_product(
    emitter: IndexEmitter, registers: MatrixRegisters, product: MatrixProduct
) -> None:
    """Emit a product at the emitter's current level; the function begins and ends as above.

    All parts of the left operand use one register in turn, and so do those of the right, so that
    four parts take five loads instead of four. Sometimes a load waits the longer the more registers
    have values (Emerald Rapids; perhaps if the core's other thread is busy): then a product takes
    41 cycles, and 69 with two registers for each operand; at other times 16 and 16.

    Deep rows of the left operand are read once for a panel. The panel stays in the first-level
    cache; the rows should not (hint T1).
    """
    rows, columns = _parts(product.rows), _parts(product.columns)
    depth = emitter.least(product.depths)
    deep = min(int(depth), SIDE) if is_number(depth) else SIDE
    signs = "".join("s" if dtype.kind == "i" else "u" for dtype in (product.of, product.by))
    multiply = f"tdpb{signs}d" if product.of.is_int else "tdpbf16ps"
    total, left, right = (
        emitter.pointer(m.array, emitter.at_lane(m.index)) for m in product.matrices
    )
    number = registers.number
    lefts = [number("left", 0, count, _WORD * deep) for _, count in rows]
    rights = [number("right", 0, deep, _WORD * count) for _, count in columns]
    quarters = [
        (number("total", at * product.columns + place, count, _WORD * width), r, c)
        for r, (at, count) in enumerate(rows)
        for c, (place, width) in list(enumerate(columns))[:: -1 if r % 2 else 1]
    ]

    def do(name: str, *arguments: str) -> None:
        emitter.do(f"llvm.x86.{name}", *arguments)

    def move(name: str, register: int, matrix: Matrix, base: str, row: str, column: str) -> None:
        start = emitter.line(f"mul i64 {row}, {matrix.pitch}")
        place = emitter.line(f"add i64 {start}, {column}")
        at = emitter.line(f"getelementptr i32, ptr {base}, i64 {place}")
        do(name, f"i8 {register}", f"ptr {at}", f"i64 {_WORD * matrix.pitch}")

    for register, _, _ in quarters:
        do("tilezero", f"i8 {register}")
    alone, check = depth == str(deep), not is_number(depth)
    once = "tileloadd64" if alone else "tileloaddt164"
    steps = nullcontext("0") if alone else emitter.iterations("0", depth, deep, check)
    with steps as k:
        held: dict[int, tuple[str, str]] = {}
        for register, r, c in quarters:
            sides = (
                (lefts[r], product.left, left, (str(rows[r][0]), k), once),
                (rights[c], product.right, right, (k, str(columns[c][0])), "tileloadd64"),
            )
            for own, matrix, base, place, name in sides:
                if held.get(own) != place:
                    move(name, own, matrix, base, *place)
                    held[own] = place
            do(multiply, f"i8 {register}", f"i8 {lefts[r]}", f"i8 {rights[c]}")
    for register, r, c in quarters:
        move("tilestored64", register, product.total, total, str(rows[r][0]), str(columns[c][0]))
    emitter.forget((product.total.array,))


def _parts(count: int) -> list[tuple[int, int]]:
    """For each register, its first row or column, and how many it has."""
    return [(at, min(SIDE, count - at)) for at in range(0, count, SIDE)]
