"""OpenCL C's statements, indices and expressions, of one element each.

A value is declared at the outermost level at which all that it depends on is known, if it is used
twice or if that level is not its user's; else it is written where it is used. An index is computed
in `int` where nothing in it can leave 32 bits, else in `long`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from minigrad.errors import CompileError
from minigrad.graph.node import Op
from minigrad.graph.substitution import proven_nonnegative
from minigrad.graph.symbolic import Atom, Integer, high, low
from minigrad.loops.nest import Loop, Nest, Prefetch, Statement, Store
from minigrad.render import levels
from minigrad.render.levels import Level, fits_32_bits
from minigrad.render.opencl_values import WIDTHS, Language, Words, bare, literal
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf, operands

INDENT = "    "


@dataclass(frozen=True)
class Variable:
    """A loop variable's or a symbol's name and C type.

    level: the innermost one whose names are in it (the name may be a text of others).
    """

    name: str
    kind: str
    level: int = 0


LONGEST = 160  # letters of an expression that is not given a name for its length


@dataclass(frozen=True)
class Source:
    """One kernel: declarations and functions that it uses, and its text before and after its name.

    scratch_bytes: of the last argument, for each group (0: there is no such argument).
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

    def __str__(self) -> str:
        return self.text


def join(sources: Sequence[Source]) -> tuple[str, list[str]]:
    """A program of several kernels, and what they are called in it."""
    alone = len(sources) == 1
    names = [s.name if alone else f"{s.name}_{n}" for n, s in enumerate(sources)]
    shared = dict.fromkeys(text for source in sources for text in source.prelude)
    kernels = [s.head + name + s.body for s, name in zip(sources, names, strict=True)]
    return "\n".join([*shared, *kernels, ""]), names


class Emitter(levels.Levels[Level, str]):
    """Emits statements, expressions and memory accesses."""

    def __init__(self, nest: Nest, language: Language) -> None:
        super().__init__(Level(), nest)
        self.language, self.words = language, Words(language)
        self.variables: dict[Atom, Variable] = {}
        self.symbols: dict[str, Variable] = {}
        self._names: dict[str, int] = {}
        self.pointers: dict[Array, str] = {}
        self.registers: dict[tuple[Array, int], str] = {}
        self.declared: list[str] = []
        self.uses: Counter[Expr] = Counter()  # of what the value that is computed now is made of

    # ---- names and levels ----

    def fresh(self, stem: str) -> str:
        """A name that was not given before; it begins with `stem`."""
        count = self._names.get(stem, 0)
        self._names[stem] = count + 1
        return f"{stem}_{count}" if count else stem

    def number(self, stem: str) -> str:
        """The next of stem0, stem1, … that nothing else is called."""
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
        """A straight piece, or that of a loop or branch, in which arrays change."""
        self.levels.append(Level(changes=changes))
        yield
        done, parent = self.pop(self.variables), self.levels[-1].lines
        if not header:
            parent += done.lines
        elif done.lines:
            parent += [f"{header} {{", *(INDENT + line for line in done.lines), "}"]

    def bind(self, atom: Atom, name: str, kind: str, level: int | None = None) -> None:
        """Let a loop's variable have a name in the innermost level, or a text of an outer one's."""
        self.bound(atom)
        self.variables[atom] = Variable(name, kind, self.where[atom] if level is None else level)

    # ---- indices ----

    def index(self, x: Integer, kind: str = "") -> str:
        """A sum as text, of C type `kind` if one is given."""
        return self._placed(x, kind)[0]

    def _placed(self, x: Integer, kind: str) -> tuple[str, int]:
        """The same, and the innermost level whose names are in it."""
        own = kind_of(x)
        text, level = self._sum(x, own)
        text = text if kind in ("", own) or parse(text) is not None else f"({kind}){text}"
        return text, level

    def _sum(self, x: Integer, kind: str) -> tuple[str, int]:
        if isinstance(x, int):
            return _number(x, kind), 0
        offset, level = x.constant, 0
        parts: list[tuple[int, str]] = []
        for atom, factor in x.terms:
            value = self._constant(atom)
            if value is None:
                text, known = self._atom(atom, kind)
                value = parse(text)
                if value is None:
                    parts.append((factor, text))
                    level = max(level, known)
            if value is not None:
                offset += factor * value
        if not parts:
            return _number(offset, kind), 0
        words = []
        for factor, text in parts:
            product = text if abs(factor) == 1 else f"{_number(abs(factor), kind)} * {text}"
            words += ["-" if factor < 0 else "+", product]
        if offset:
            words += ["-" if offset < 0 else "+", _number(abs(offset), kind)]
        if words[0] == "-":
            words[1] = f"-{words[1]}"
        joined = " ".join(words[1:])
        return (joined if joined.replace("_", "").isalnum() else f"({joined})"), level

    def _constant(self, atom: Atom) -> int | None:
        """The number that an atom is known to be here."""
        if atom in self.constants:
            return self.constants[atom]
        return atom.low if atom.low == atom.high else None

    def _atom(self, atom: Atom, kind: str) -> tuple[str, int]:
        """An atom as an operand of type `kind`, and its level: equal texts have one."""
        if atom.kind == "var":
            found = self.variables.get(atom) or self.symbols[atom.name]
            return (found.name if found.kind == kind else f"({kind}){found.name}"), found.level
        if atom.kind == "value":
            return self._loaded(atom, kind)
        assert atom.inner is not None
        own = kind_of(atom.inner)
        inner, level = self._sum(atom.inner, own)
        x = parse(inner)
        if x is not None:
            return _number(x // atom.divisor if atom.kind == "div" else x % atom.divisor, kind), 0
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
        if atom.payload.dtype.name == "uint64":  # a huge one must stay out of range, above it
            text = f"min({text}, (ulong)0x3fffffffffffffffL)"
        return f"({kind}){text}", self.memo[self.expand(atom.payload)][1]

    def _divided(self, inner: str, kind: str, atom: Atom) -> str:
        """Floor division or remainder by a positive constant."""
        sign = "/" if atom.kind == "div" else "%"
        divisor = _number(atom.divisor, kind)
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
        """All conditions at once; empty where there are none."""
        tests = [self.condition(c) for c in conditions]
        if "false" in tests:
            return "false"
        return " && ".join(test for test in tests if test != "true")

    # ---- statements ----

    def _unexpected(self, what: str) -> CompileError:
        return CompileError(
            f"OpenCL renderer: {self.nest.name} has {what}; lower the kernel for a target of "
            "vector_bytes 0"
        )

    def set(self, statement: Store, value: str) -> None:
        """Let a register have a value."""
        self.line(f"{self._register(statement.array, statement.index)} = {bare(value)};")

    def special(self, statement: Statement) -> None:
        """Leave a hint out."""
        if not isinstance(statement, Prefetch):
            raise self._unexpected(f"a {type(statement).__name__}")

    def kept(self, root: Expr) -> str:
        """A value that a store does not change: it has a name."""
        text, root = self.value(root), self.expand(root)
        named = text.isidentifier() and not root.in_registers
        return text if named or root.op is Op.CONST else self._declare(root, text)

    def store(self, statement: Store, value: str) -> None:
        """Write a value."""
        array = statement.array
        guard = self.guard(statement.guard)
        if guard != "false":
            place = bare(self.index(statement.index))
            text = self.words.stored(array.dtype, self.pointers[array], place, value)
            self.line(f"if ({bare(guard)}) {text}" if guard else text)

    def loop(self, loop: Loop) -> None:
        """Emit a loop of any kind."""
        if loop.kind == "unroll":
            self.unrolled(loop)
        elif loop.kind == "serial":
            self._serial(loop)
        else:
            raise self._unexpected(f"a loop of kind {loop.kind!r} and step {loop.step}")

    def _serial(self, loop: Loop) -> None:
        kind = kind_of_range(loop.start, loop.stops, loop.step)
        if any(loop.start + loop.step - stop == 0 for stop in loop.stops):
            self._at_most_once(loop, kind)
            return
        start = bare(self.index(loop.start, kind))
        stop = bare(self._least([self.index(stop, kind) for stop in loop.stops], kind))
        first, last = parse(start), parse(stop)
        if first is not None and last is not None and first + loop.step >= last:
            if first < last:
                self.once(loop, first)
            return
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

    def _at_most_once(self, loop: Loop, kind: str) -> None:
        """A loop that ends after its first iteration, if there is one at all."""
        tests = [stop - loop.start - 1 for stop in loop.stops]
        guard = self.guard([t for t in tests if not proven_nonnegative(t)])
        if guard == "false":
            return
        start, level = self._placed(loop.start, kind)  # in parentheses where it is a sum
        with self.straight(loop.changes, f"if ({bare(guard)})" if guard else ""):
            self.bind(loop.variable, start, kind, level)
            self.body(loop)

    def _least(self, texts: list[str], kind: str) -> str:
        numbers = [n for n in (parse(text) for text in texts) if n is not None]
        others = [text for text in texts if parse(text) is None]
        if numbers:
            others.append(str(min(numbers)) + ("L" if kind == "long" else ""))
        total = others[0]
        for text in others[1:]:
            total = f"min({bare(total)}, {bare(text)})"
        return total

    def _register(self, array: Array, index: Integer) -> str:
        """The variable of a register; the index is a number here, since its loop is unrolled."""
        if array.width not in (1, *WIDTHS):
            raise self._unexpected(f"a register {array.name} of {array.width} lanes")
        number = parse(self.index(index))
        if number is None:
            raise CompileError(
                f"OpenCL renderer: {self.nest.name} reads number {index} of the registers "
                f"{array.name}; expected a number, as in an unrolled loop"
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
            self.uses = Counter(operand for e in order for operand in operands(e))
            for e in order:
                if e.op is Op.SUB and e.dtype.is_float:
                    # C may merge a product with the rest of its statement; x·y − max(x·y) would be
                    # above 0 where the maximum was rounded before
                    self.uses.update(arg for arg in e.args if arg.op is Op.MUL)
        return super().value(root)

    def emitted(self, e: Expr) -> str:
        """The text of a value, or its name where it is used again, or known before it is used."""
        text = self._text(e)
        again = self.uses[e] > 1 or self.level < len(self.levels) - 1 or len(text) > LONGEST
        named = again and not e.in_registers and e.op is not Op.CONST
        return self._declared(e, text) if named else text

    def _declared(self, e: Expr, text: str) -> str:
        """The name of a constant that is declared at the current level."""
        name = self.number("v")
        line = f"const {self._type_of(e)} {name} = {bare(text)};"
        self.levels[self.level].lines.append(line)
        return name

    def _declare(self, e: Expr, text: str) -> str:
        """Give a value that has none a name at its level, and remember it."""
        _, level = self.memo[e]
        with self.at(level):
            name = self._declared(e, text)
        self.remember(e, name, level, self.changing(e))
        return name

    def _type_of(self, e: Expr) -> str:
        return self.language.type_of(e.dtype)

    def _text(self, e: Expr) -> str:
        if e.op is Op.CONST:
            self.language.type_of(e.dtype)
            return literal(e.value, e.dtype)
        if e.in_registers:
            return self._register(e.array, e.index)
        if e.op is Leaf.LOAD:
            return self._load(e)
        if e.op is Leaf.INDEX:
            return f"({self.language.type_of(e.dtype)}){self.index(e.index)}"
        if e.op is Leaf.CONDITION:
            return self.condition(e.index)
        args = [self.memo[arg][0] for arg in e.args]
        return self.words.operation(e.op, e.args[0].dtype, e.dtype, args)

    def _load(self, e: Expr) -> str:
        array, index, conditions = e.array, e.index, e.guard
        guard = self.guard(conditions)
        zero = literal(0, array.dtype)
        if guard == "false":
            return zero
        place = bare(self.index(index))
        text = self.words.loaded(array.dtype, self.pointers[array], place)
        if not guard:
            return text
        kind = self.language.type_of(array.dtype)
        chosen = f"({guard} ? {text} : {zero})"
        return f"({kind}){chosen}" if array.dtype.is_int and array.dtype.itemsize < 4 else chosen


def kind_of(x: Integer) -> str:
    """The C type in which an index is computed."""
    return "int" if fits_32_bits(x) else "long"


def kind_of_range(least: Integer, stops: Iterable[Integer], step: int) -> str:
    """The C type of a loop's variable: it passes its last stop by less than one step."""
    top = max(high(stop) for stop in stops) + step
    return "int" if low(least) > -(1 << 31) and top < 1 << 31 else "long"


def _number(x: int, kind: str) -> str:
    suffix = "L" if kind == "long" else ""
    return f"{x}{suffix}" if x >= 0 else f"(-{-x}{suffix})"


def parse(text: str) -> int | None:
    """The int whose literal the text is, None where it is none."""
    digits = text.removeprefix("(-").removesuffix(")").removesuffix("L")
    if not digits.isdecimal():
        return None
    return -int(digits) if text.startswith("(-") else int(digits)
