"""OpenCL C's indices, expressions and memory accesses: of one element, or of a vector's lanes.

A value is declared at the outermost level at which everything that it depends on is known, if it is
used twice or if that level is not its user's level. Otherwise it is written where it is used, and
so are sums and products of indices, which are short, and which compilers move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from minigrad.dtype import DType, dtypes
from minigrad.errors import CompileError
from minigrad.graph.node import Op
from minigrad.graph.symbolic import Atom, Integer, high, low
from minigrad.loops.nest import Nest, divides
from minigrad.render.indices import Indices
from minigrad.render.opencl_values import WIDTHS, Language, Words, bare, literal
from minigrad.render.scopes import Scope
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Guard, Leaf

INDENT = "    "
LONGEST = 160  # letters of an expression; a longer one gets a name
WORDS = (dtypes.float32, dtypes.float64, dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64)


class Emitter(Indices[Scope, str]):
    """Emits expressions and memory accesses; derived classes emit statements."""

    before_branch = slice(1, 2)  # there are no branches
    narrow = True

    def __init__(self, nest: Nest, language: Language) -> None:
        super().__init__(Scope(), nest)
        self.language = language
        self.variables: dict[Atom, tuple[str, DType]] = {}  # of loops: names and dtypes
        self._names: dict[str, int] = {}
        self.pointers: dict[Array, str] = {}
        self.registers: dict[tuple[Array, int], str] = {}
        self.declared: list[str] = []
        self.uses: Counter[Expr] = Counter()  # of parts of the value that is being computed

    # ---- names and levels ----

    def fresh(self, stem: str) -> str:
        """A new name; it begins with `stem`."""
        count = self._names.get(stem, 0)
        self._names[stem] = count + 1
        return f"{stem}_{count}" if count else stem

    def number(self, stem: str) -> str:
        """The next of stem0, stem1, … that is not a name yet."""
        while True:
            count = self._names.get(f"{stem}#", 0)
            self._names[f"{stem}#"] = count + 1
            name = f"{stem}{count}"
            if name not in self._names:  # a loop variable may be called so
                self._names[name] = 1
                return name

    def line(self, text: str) -> None:
        """Add a line to the innermost level."""
        self.levels[-1].lines.append(text)

    @contextmanager
    def straight(self, changes: frozenset[Array] = frozenset(), header: str = "") -> Iterator[None]:
        """A piece of code in which arrays change; header: of a loop or a branch."""
        self.levels.append(Scope(changes=changes))
        yield
        done, parent = self.pop(self.variables), self.levels[-1].lines
        if not header:
            parent += done.lines
        elif done.lines:
            parent += [f"{header} {{", *(INDENT + line for line in done.lines), "}"]

    def bind(self, atom: Atom, name: str, dtype: DType) -> None:
        """Name a loop's variable in the innermost level."""
        self.bound(atom)
        self.variables[atom] = name, dtype

    # ---- indices ----

    def index(self, x: Integer) -> str:
        """An index as text."""
        return self.evaluate(self.arithmetic(x))

    def variable(self, atom: Atom, dtype: DType) -> str:
        """A variable's name, or the name with a cast to a dtype."""
        name, own = self.variables.get(atom) or (f"sym_{atom.name}", dtypes.int64)
        return self.words().cast(name, own, dtype)

    def spaced(self, base: str, step: int, dtype: DType) -> str:
        """base, base + step, … as a vector."""
        words = self.words(self.width())
        steps = [literal(step * lane, dtype) for lane in range(words.width)]
        return f"({words.gathered([base], dtype)} + {words.gathered(steps, dtype)})"

    def test(self, x: Integer) -> Expr:
        """Whether an index is ≥ 0, as an expression."""
        number = self.arithmetic(x)
        if number.op is Op.CONST:
            return expr.const(number.value >= 0, dtypes.bool)
        return number.constant(0).operation("le", number)

    def guard(self, conditions: Iterable[Integer]) -> str:
        """All conditions at once; empty if there are none."""
        tests = [self.evaluate(self.test(c)) for c in conditions]
        if "false" in tests:
            return "false"
        return " && ".join(test for test in tests if test != "true")

    def same(self, c: Integer) -> Integer:
        """A condition, reduced to one lane if it holds in all lanes or in none."""
        step = self.lane_stride(c)
        least = self.at_lane(c, self.width() - 1 if step == -1 else 0)
        return least if step in (1, -1) and divides(least, self.width()) else c

    def guard_in(self, lane: int, conditions: Iterable[Integer]) -> Guard:
        """Conditions in one lane."""
        return expr.restrict((), [self.at_lane(c, lane) for c in conditions])

    # ---- registers ----

    def unexpected(self, what: str) -> CompileError:
        """The error for constructs that only processors have."""
        return CompileError(
            f"OpenCL renderer: {self.nest.name} has {what}; lower the kernel for a target with "
            "vector_bytes=0"
        )

    def register(self, array: Array, index: Integer) -> str:
        """The variable of a register; the index is a number here, since its loop is unrolled."""
        if array.width not in (1, *WIDTHS):
            raise self.unexpected(f"a register {array.name} of {array.width} lanes")
        number = self.arithmetic(index).known()
        if number is None:
            raise CompileError(
                f"OpenCL renderer: {self.nest.name} reads element {index} of the registers "
                f"{array.name}; expected a constant, as in an unrolled loop"
            )
        key = (array, int(number))
        if key not in self.registers:
            stem = array.name if array.size == 1 else f"{array.name}_{number}"
            name = self.registers[key] = self.fresh(stem)
            kind = self.words(array.width).type_of(array.dtype)
            self.declared.append(f"{kind} {name};")
        return self.registers[key]

    # ---- expressions ----

    def evaluate(self, root: Expr) -> str:
        """The text of an expression's value, after declaring parts of it."""
        if root not in self.memo:
            order = [e for e in expr.walk(root) if e not in self.memo]
            outer, self.uses = self.uses, Counter(x for e in order for x in e.operands)
            for e in order:
                if e.op is Op.SUB and e.dtype.is_float:
                    # C may contract a product with the rest of its statement; x·y − max(x·y) would
                    # be above 0 if the maximum was rounded before
                    self.uses.update(arg for arg in e.args if arg.op is Op.MUL)
            super().evaluate(root)
            self.uses = outer
        return self.memo[root][0]

    def emitted(self, e: Expr) -> str:
        """The text of a value, or its name if it is used again or declared further out."""
        text = self._text(e)
        summand = e.op in (Leaf.PLUS, Leaf.TIMES) or (
            e.op is Op.CAST and e.dtype is dtypes.int64 and self.memo[e.args[0]][0].isidentifier()
        )
        apart = self.uses[e] > 1 or self.current is not self.levels[-1]
        named = apart and not summand or len(text) > LONGEST or e.op in (Leaf.PART, Leaf.REST)
        if not named or text.isidentifier() or e.op is Op.CONST:
            return text
        return self._declared(e, text)

    def _declared(self, e: Expr, text: str) -> str:
        """Declare a constant at the current level; returns its name."""
        name = self.number("v")
        line = f"const {self.words(self.lanes_of(e)).type_of(e.dtype)} {name} = {bare(text)};"
        self.current.lines.append(line)
        return name

    def kept(self, root: Expr) -> str:
        """A value that later stores do not change: it has a name."""
        text, root = self.value(root), self.expand(root)
        if root.op is Op.CONST or text.isidentifier() and not root.in_registers:
            return text
        _, level = self.memo[root]
        name = self.at(level, self._declared, root, text)
        self.remember(root, name, level, self.changing(root))
        return name

    def words(self, width: int = 1) -> Words:
        """The words for scalars, or for vectors."""
        return Words(self.language, width)

    def spread(self, e: Expr, text: str, words: Words) -> str:
        """A value in as many lanes as `words` have."""
        return text if self.lanes_of(e) == words.width else words.gathered([text], e.dtype)

    def _text(self, e: Expr) -> str:
        words = self.words(self.lanes_of(e))
        if e.op is Op.CONST:
            self.language.type_of(e.dtype)
            return literal(e.value, e.dtype)
        if e.in_registers:
            return self.register(e.array, e.index)
        if e.op is Leaf.RARELY:
            return self.memo[e.args[1]][0]
        if e.args:
            args = [self.spread(arg, self.memo[arg][0], words) for arg in e.args]
            return words.operation(e.op, e.args[0].dtype, e.dtype, args)
        if e.op is Leaf.LOAD:
            return self._load(e) if words.width == 1 else self._vector_load(e, words)
        if e.op is Leaf.INDEX:
            return self.index_value(e)
        test = self.test(self.same(e.index))
        return self.spread(test, self.evaluate(test), words)

    def _load(self, e: Expr) -> str:
        guard, zero = self.guard(e.guard), literal(0, e.dtype)
        if guard == "false":
            return zero
        text = self._loaded_from(e.array, e.index, self.words())
        if not guard:
            return text
        kind, chosen = self.language.type_of(e.dtype), f"({guard} ? {text} : {zero})"
        return f"({kind}){chosen}" if e.dtype.is_int and e.dtype.itemsize < 4 else chosen

    def _vector_load(self, e: Expr, words: Words) -> str:
        array, index, width = e.array, e.index, words.width
        tests = [self.same(c) for c in e.guard]
        varying = [c for c in tests if self.varies(c)]
        guard = self.guard(c for c in tests if c not in varying)
        zero = words.gathered([literal(0, array.dtype)], array.dtype)
        if guard == "false":
            return zero
        whole = None
        if self.lane_stride(index) == 1 and None not in map(self.lane_stride, varying):
            whole = self._loaded_from(array, index, words)
            if not varying:
                return f"({guard} ? {whole} : {zero})" if guard else whole
        lanes = [
            self._load(expr.load(array, self.at_lane(index, n), self.guard_in(n, varying)))
            for n in range(width)
        ]
        text = words.gathered(lanes, array.dtype)
        if whole is not None:  # a condition that holds at both ends holds between them
            inside = self.guard(self.at_lane(c, n) for c in varying for n in (0, width - 1))
            if inside != "false":
                text = f"({inside} ? {whole} : {text})" if inside else whole
        return f"({guard} ? {text} : {zero})" if guard else text

    # ---- memory ----

    def _loaded_from(self, array: Array, index: Integer, words: Words) -> str:
        """An element, or the neighbouring ones from an index on."""
        index = self.at_lane(index)
        if word := self._word(array, index, words, "const "):
            return f"({word})"
        return words.loaded(array.dtype, self.pointers[array], self.index(index))

    def stored(self, array: Array, index: Integer, value: str, words: Words) -> str:
        """The statement that stores an element, or neighbouring ones."""
        index = self.at_lane(index)
        if word := self._word(array, index, words):
            return f"{word} = {bare(value)};"
        return words.stored(array.dtype, self.pointers[array], self.index(index), value)

    def _word(self, array: Array, index: Integer, words: Words, const: str = "") -> str:
        """Neighbours as one word of memory, if they provably start at a multiple of their length.

        Buffers and arrays in local memory do.
        """
        if words.width == 1 or array.dtype not in WORDS or not divides(index, words.width):
            return ""
        space = "__local" if array.space == "local" else "__global"
        place = f"{self.pointers[array]} + {bare(self.index(index))}"
        return f"*({space} {const}{words.type_of(array.dtype)} *)({place})"


def dtype_of_range(least: Integer, stops: Iterable[Integer], step: int) -> DType:
    """The dtype of a loop's variable: it passes its last stop by less than one step."""
    top = max(high(stop) for stop in stops) + step
    return dtypes.int32 if low(least) > -(1 << 31) and top < 1 << 31 else dtypes.int64
