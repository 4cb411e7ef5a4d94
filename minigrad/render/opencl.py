"""OpenCL C's indices, expressions and memory accesses: of one element, or of a vector's lanes.

A value is declared at the outermost level at which everything that it depends on is known, if it is
used twice or if that level is not its user's level. Otherwise it is written where it is used. An
index is computed in `int` if no part of it can exceed 32 bits, else in `long`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.errors import CompileError
from minigrad.graph.node import Op
from minigrad.graph.substitution import substitute, variables
from minigrad.graph.symbolic import Atom, Integer, high, low
from minigrad.loops.nest import Nest, divides
from minigrad.render import scopes
from minigrad.render.opencl_values import WIDTHS, Language, Words, bare, literal
from minigrad.render.scopes import Scope, fits_32_bits, stride
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Guard, Leaf

INDENT = "    "
LONGEST = 160  # letters of an expression; a longer one gets a name
WORDS = (dtypes.float32, dtypes.float64, dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64)


@dataclass(frozen=True)
class Variable:
    """The name and C type of a loop variable or a symbol."""

    name: str
    kind: str


@dataclass(frozen=True)
class Vector:
    """The lanes loop that is being emitted as vectors."""

    variable: Atom
    lane: Atom | None
    words: Words
    start: Integer

    @property
    def atoms(self) -> frozenset[Atom]:
        """The variables that differ from lane to lane."""
        return frozenset((self.variable,) if self.lane is None else (self.variable, self.lane))

    def stride(self, x: Integer) -> int | None:
        """How much an index grows from lane to lane; None if that is not constant."""
        return stride(x, self.atoms)

    @property
    def first(self) -> Atom:
        """The loop's variable at lane 0, which is the same in all lanes."""
        x = self.variable
        return Atom("var", f"{x.name}.first", x.low, x.high)

    def at(self, x: Integer, lane: int) -> Integer:
        """An index in one lane."""
        values: dict[Atom, Integer] = {self.variable: self.first.index + lane}
        if self.lane is not None:
            values[self.lane] = lane
        return substitute(x, values)

    def guard(self, conditions: Iterable[Integer], lane: int) -> Guard:
        """Conditions in one lane."""
        return expr.restrict((), [self.at(c, lane) for c in conditions])

    def same(self, c: Integer) -> Integer:
        """A condition, reduced to one lane if it holds in all lanes or in none."""
        width, step = self.words.width, self.stride(c)
        lane = width - 1 if step == -1 else 0
        least = substitute(self.at(c, lane), {self.first: self.start})
        return least if step in (1, -1) and divides(least, width) else c

    def varies(self, x: Integer) -> bool:
        """Whether an index differs from lane to lane."""
        return not self.atoms.isdisjoint(variables(x))


class Emitter(scopes.Levels[Scope, str]):
    """Emits expressions and memory accesses; derived classes emit statements.

    vector: of the lanes loop that is being emitted.
    """

    before_branch = slice(1, 2)  # there are no branches

    def __init__(self, nest: Nest, language: Language) -> None:
        super().__init__(Scope(), nest)
        self.language, self.words = language, Words(language)
        self.variables: dict[Atom, Variable] = {}
        self.symbols: dict[str, Variable] = {}
        self._names: dict[str, int] = {}
        self.pointers: dict[Array, str] = {}
        self.registers: dict[tuple[Array, int], str] = {}
        self.declared: list[str] = []
        self.uses: Counter[Expr] = Counter()  # of parts of the value that is being computed
        self.vector: Vector | None = None

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

    def bind(self, atom: Atom, name: str, kind: str) -> None:
        """Name a loop's variable in the innermost level."""
        self.bound(atom)
        self.variables[atom] = Variable(name, kind)

    # ---- indices ----

    def index(self, x: Integer, kind: str = "") -> str:
        """A sum as text, of C type `kind` if one is given."""
        own = kind_of(x)
        text, _ = self._sum(x, own)
        return text if kind in ("", own) or parse(text) is not None else f"({kind}){text}"

    def _sum(self, x: Integer, kind: str) -> tuple[str, int]:
        """The same, with the innermost level whose names are in it."""
        if isinstance(x, int):
            return integer(x, kind), 0
        offset, level = x.constant, 0
        parts: list[tuple[int, str]] = []
        for atom, factor in x.terms:
            value = self.constants.get(atom, atom.low if atom.low == atom.high else None)
            if value is None:
                text, known = self._atom(atom, kind)
                value = parse(text)
                if value is None:
                    parts.append((factor, text))
                    level = max(level, known)
            if value is not None:
                offset += factor * value
        if not parts:
            return integer(offset, kind), 0
        words = []
        for factor, text in parts:
            product = text if abs(factor) == 1 else f"{integer(abs(factor), kind)} * {text}"
            words += ["-" if factor < 0 else "+", product]
        if offset:
            words += ["-" if offset < 0 else "+", integer(abs(offset), kind)]
        if words[0] == "-":
            words[1] = f"-{words[1]}"
        joined = " ".join(words[1:])
        return (joined if joined.replace("_", "").isalnum() else f"({joined})"), level

    def _atom(self, atom: Atom, kind: str) -> tuple[str, int]:
        """An atom as an operand of type `kind`, and its level; quotients are named by text."""
        if atom.kind == "var":
            found = self.variables.get(atom) or self.symbols[atom.name]
            name = found.name if found.kind == kind else f"({kind}){found.name}"
            return name, self.where.get(atom, 0)
        if atom.kind == "value":
            return self._loaded(atom, kind)
        assert atom.inner is not None
        own = kind_of(atom.inner)
        inner, level = self._sum(atom.inner, own)
        x = parse(inner)
        if x is not None:
            return integer(x // atom.divisor if atom.kind == "div" else x % atom.divisor, kind), 0
        key = (atom.kind, inner, atom.divisor)
        if key not in self.memo:
            name = self.number("q" if atom.kind == "div" else "m")
            text = bare(self._divided(inner, own, atom))
            self.levels[level].lines.append(f"const {own} {name} = {text};")
            self.remember(key, name, level)
        name, level = self.memo[key]
        return (name if own == kind else f"({kind}){name}"), level

    def _loaded(self, atom: Atom, kind: str) -> tuple[str, int]:
        """A value from memory as part of an index, and its level."""
        text = self.value(atom.payload)
        if atom.payload.dtype.name == "uint64":  # a huge one must stay too large, not wrap
            text = f"min({text}, (ulong)0x3fffffffffffffffL)"
        return f"({kind}){text}", self.memo[self.expand(atom.payload)][1]

    def _divided(self, inner: str, kind: str, atom: Atom) -> str:
        """Floor division or remainder by a positive constant."""
        sign = "/" if atom.kind == "div" else "%"
        divisor = integer(atom.divisor, kind)
        divided = f"({inner} {sign} {divisor})"
        if low(atom.inner or 0) >= 0:
            return divided
        if sign == "%":
            return f"(({divided} + {divisor}) % {divisor})"
        return f"({divided} - ({inner} % {divisor} < 0))"

    def condition(self, x: Integer) -> str:
        """Whether x ≥ 0."""
        text = self.index(x)
        number = parse(text)
        if number is not None:
            return "true" if number >= 0 else "false"
        return f"({text} >= 0)"

    def guard(self, conditions: Iterable[Integer]) -> str:
        """All conditions at once; empty if there are none."""
        tests = [self.condition(c) for c in conditions]
        if "false" in tests:
            return "false"
        return " && ".join(test for test in tests if test != "true")

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
        number = parse(self.index(index))
        if number is None:
            raise CompileError(
                f"OpenCL renderer: {self.nest.name} reads element {index} of the registers "
                f"{array.name}; expected a constant, as in an unrolled loop"
            )
        key = (array, number)
        if key not in self.registers:
            stem = array.name if array.size == 1 else f"{array.name}_{number}"
            name = self.registers[key] = self.fresh(stem)
            kind = Words(self.language, array.width).type_of(array.dtype)
            self.declared.append(f"{kind} {name};")
        return self.registers[key]

    # ---- expressions ----

    def value(self, root: Expr) -> str:
        """The text of an expression's value, after declaring parts of it."""
        root = self.expand(root)
        if root not in self.memo:
            order = [e for e in expr.walk(root) if e not in self.memo]
            outer, self.uses = self.uses, Counter(x for e in order for x in e.operands)
            for e in order:
                if e.op is Op.SUB and e.dtype.is_float:
                    # C may contract a product with the rest of its statement; x·y − max(x·y) would
                    # be above 0 if the maximum was rounded before
                    self.uses.update(arg for arg in e.args if arg.op is Op.MUL)
            super().value(root)
            self.uses = outer
        return self.memo[root][0]

    def emitted(self, e: Expr) -> str:
        """The text of a value, or its name if it is used again or declared further out."""
        text = self._text(e)
        again = self.uses[e] > 1 or self.current is not self.levels[-1] or len(text) > LONGEST
        named = again and not e.in_registers and e.op is not Op.CONST
        return self._declared(e, text) if named else text

    def _declared(self, e: Expr, text: str) -> str:
        """Declare a constant at the current level; returns its name."""
        name = self.number("v")
        line = f"const {self.words_of(e).type_of(e.dtype)} {name} = {bare(text)};"
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

    def words_of(self, e: Expr) -> Words:
        """The words for a value: those of vectors if it differs from lane to lane."""
        vector = self.vector
        if vector is None or vector.atoms.isdisjoint(e.variables):
            return self.words
        return vector.words

    def spread(self, e: Expr, text: str, words: Words) -> str:
        """A value in as many lanes as `words` have."""
        return text if self.words_of(e) is words else words.gathered([text], e.dtype)

    def _text(self, e: Expr) -> str:
        words, vector = self.words_of(e), self.vector
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
        if vector is not None and words is vector.words:
            return (self._vector_load if e.op is Leaf.LOAD else self._vector_index)(e, vector)
        if e.op is Leaf.LOAD:
            return self._load(e)
        if e.op is Leaf.INDEX:
            return f"({self.language.type_of(e.dtype)}){self.index(e.index)}"
        return self.condition(e.index)

    def _load(self, e: Expr) -> str:
        guard, zero = self.guard(e.guard), literal(0, e.dtype)
        if guard == "false":
            return zero
        text = self._loaded_from(e.array, e.index, self.words)
        if not guard:
            return text
        kind, chosen = self.language.type_of(e.dtype), f"({guard} ? {text} : {zero})"
        return f"({kind}){chosen}" if e.dtype.is_int and e.dtype.itemsize < 4 else chosen

    def _vector_index(self, e: Expr, vector: Vector) -> str:
        """An index as values, or whether it is ≥ 0."""
        words, x = vector.words, vector.same(e.index) if e.op is Leaf.CONDITION else e.index
        step = vector.stride(x)
        if step == 0:
            return words.gathered([self.condition(x)], dtypes.bool)
        kind = kind_of(vector.at(x, words.width - 1))
        if step is not None and kind == "int":
            numbers = words.iota(self.index(x, kind), step)
            if e.op is Leaf.CONDITION:
                return f"({numbers} >= (int{words.width})(0))"
            return words.cast(numbers, dtypes.int32, e.dtype)
        places = [vector.at(x, lane) for lane in range(words.width)]
        if e.op is Leaf.CONDITION:
            return words.gathered([self.condition(place) for place in places], dtypes.bool)
        kind = self.language.type_of(e.dtype)
        return words.gathered([f"({kind}){self.index(place)}" for place in places], e.dtype)

    def _vector_load(self, e: Expr, vector: Vector) -> str:
        array, index, words = e.array, e.index, vector.words
        tests = [vector.same(c) for c in e.guard]
        varying = [c for c in tests if vector.varies(c)]
        guard = self.guard(c for c in tests if c not in varying)
        zero = words.gathered([literal(0, array.dtype)], array.dtype)
        if guard == "false":
            return zero
        whole = None
        if vector.stride(index) == 1 and all(vector.stride(c) is not None for c in varying):
            whole = self._loaded_from(array, index, words)
            if not varying:
                return f"({guard} ? {whole} : {zero})" if guard else whole
        lanes = [
            self._load(expr.load(array, vector.at(index, n), vector.guard(varying, n)))
            for n in range(words.width)
        ]
        text = words.gathered(lanes, array.dtype)
        if whole is not None:  # a condition that holds at both ends holds between them
            ends = [vector.at(c, n) for c in varying for n in (0, words.width - 1)]
            inside = self.guard(ends)
            if inside != "false":
                text = f"({inside} ? {whole} : {text})" if inside else whole
        return f"({guard} ? {text} : {zero})" if guard else text

    # ---- memory ----

    def _loaded_from(self, array: Array, index: Integer, words: Words) -> str:
        """An element, or the neighbouring ones from an index on."""
        if self._is_aligned(array, index, words.width):
            return f"({self._whole(array, index, words, 'const ')})"
        return words.loaded(array.dtype, self.pointers[array], self.index(index))

    def stored(self, array: Array, index: Integer, value: str, words: Words) -> str:
        """The statement that stores an element, or neighbouring ones."""
        if self._is_aligned(array, index, words.width):
            return f"{self._whole(array, index, words)} = {bare(value)};"
        return words.stored(array.dtype, self.pointers[array], self.index(index), value)

    def _whole(self, array: Array, index: Integer, words: Words, const: str = "") -> str:
        """Neighbouring elements as one word of memory."""
        space = "__local " if array.space == "local" else "__global "
        place = f"{self.pointers[array]} + {bare(self.index(index))}"
        return f"*({space}{const}{words.type_of(array.dtype)} *)({place})"

    def _is_aligned(self, array: Array, index: Integer, width: int) -> bool:
        """Whether a vector of neighbours provably starts at a multiple of its length.

        Buffers and arrays in local memory do; the loop's variable does if its start does.
        """
        vector = self.vector
        if vector is None or width == 1 or array.dtype not in WORDS:
            return False
        rest = substitute(index, dict.fromkeys(vector.atoms, 0))
        return divides(rest, width) and divides(vector.start, width)


def kind_of(x: Integer) -> str:
    """The C type in which an index is computed."""
    return "int" if fits_32_bits(x) else "long"


def kind_of_range(least: Integer, stops: Iterable[Integer], step: int) -> str:
    """The C type of a loop's variable: it passes its last stop by less than one step."""
    top = max(high(stop) for stop in stops) + step
    return "int" if low(least) > -(1 << 31) and top < 1 << 31 else "long"


def integer(x: int, kind: str) -> str:
    """An integer as an operand of a C type."""
    suffix = "L" if kind == "long" else ""
    return f"{x}{suffix}" if x >= 0 else f"(-{-x}{suffix})"


def parse(text: str) -> int | None:
    """The int that a literal denotes, or None."""
    digits = text.removeprefix("(-").removesuffix(")").removesuffix("L")
    if not digits.isdecimal():
        return None
    return -int(digits) if text.startswith("(-") else int(digits)
