"""Levels of open loops, and the arithmetic of indices: the lower half of the OpenCL renderer.

An index is computed in `int` where nothing in it can leave 32 bits, else in `long`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import Atom, Integer, high, low
from minigrad.loops.nest import Nest, Statement, written
from minigrad.render import levels
from minigrad.render.levels import Level, fits_32_bits
from minigrad.render.opencl_values import Language, bare
from minigrad.schedule import expr
from minigrad.schedule.expr import Expr

INDENT = "    "


@dataclass(frozen=True)
class Variable:
    """A loop variable's or a symbol's name and C type."""

    name: str
    kind: str


class IndexEmitter(levels.Levels[Level, str]):
    """What statements and expressions are emitted with."""

    def __init__(self, nest: Nest, language: Language) -> None:
        super().__init__(Level(), nest)
        self.language = language
        self.variables: dict[Atom, Variable] = {}
        self.symbols: dict[str, Variable] = {}
        self._names: dict[str, int] = {}

    # to be given by the subclass
    def named(self, root: Expr) -> tuple[str, int]:
        """The name of a constant that holds an expression's value, and its level."""
        raise NotImplementedError

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
    def straight(self, body: Iterable[Statement] = (), header: str = "") -> Iterator[None]:
        """A straight piece, or that of a loop or branch, whose statements are `body`."""
        self.levels.append(Level(changes=written(*body)))
        yield
        done, parent = self.pop(self.variables), self.levels[-1].lines
        if not header:
            parent += done.lines
        elif done.lines:
            parent += [f"{header} {{", *(INDENT + line for line in done.lines), "}"]

    def bind(self, atom: Atom, variable: Variable) -> None:
        """Let a loop's variable have a name in the innermost level."""
        self.variables[atom] = variable
        self.bound(atom)

    # ---- indices ----

    def index(self, x: Integer, kind: str = "") -> str:
        """A sum as text, of C type `kind` if one is given."""
        own = kind_of(x)
        text = self._sum(x, own)
        return text if kind in ("", own) or parse(text) is not None else f"({kind}){text}"

    def _sum(self, x: Integer, kind: str) -> str:
        if isinstance(x, int):
            return _number(x, kind)
        offset = x.constant
        parts: list[tuple[int, str]] = []
        for atom, factor in x.terms:
            value = self._constant(atom)
            if value is None:
                text = self._atom(atom, kind)
                value = parse(text)
                if value is None:
                    parts.append((factor, text))
            if value is not None:
                offset += factor * value
        if not parts:
            return _number(offset, kind)
        words = []
        for factor, text in parts:
            product = text if abs(factor) == 1 else f"{_number(abs(factor), kind)} * {text}"
            words += ["-" if factor < 0 else "+", product]
        if offset:
            words += ["-" if offset < 0 else "+", _number(abs(offset), kind)]
        if words[0] == "-":
            words[1] = f"-{words[1]}"
        joined = " ".join(words[1:])
        return joined if joined.replace("_", "").isalnum() else f"({joined})"

    def _constant(self, atom: Atom) -> int | None:
        """The number that an atom is known to be here."""
        if atom in self.constants:
            return self.constants[atom]
        return atom.low if atom.low == atom.high else None

    def _atom(self, atom: Atom, kind: str) -> str:
        """An atom as an operand of type `kind`."""
        if atom.kind == "var":
            found = self.variables.get(atom) or self.symbols[atom.name]
            return found.name if found.kind == kind else f"({kind}){found.name}"
        if atom.kind == "value":
            return self._loaded(atom, kind)
        assert atom.inner is not None
        own = kind_of(atom.inner)
        inner = self._sum(atom.inner, own)
        x = parse(inner)
        if x is not None:
            return _number(x // atom.divisor if atom.kind == "div" else x % atom.divisor, kind)
        key = (atom.kind, inner, atom.divisor)
        if key not in self.memo:
            level = self._level_of_integer(atom.inner)
            name = self.number("q" if atom.kind == "div" else "m")
            text = bare(self._divided(inner, own, atom))
            self.levels[level].lines.append(f"const {own} {name} = {text};")
            self.remember(key, name, level)
        name = self.memo[key][0]
        return name if own == kind else f"({kind}){name}"

    def _loaded(self, atom: Atom, kind: str) -> str:
        """A value from memory as part of an index."""
        text, _ = self.named(atom.payload)
        if atom.payload.dtype.name == "uint64":  # a huge one must stay out of range, above it
            text = f"min({text}, (ulong)0x3fffffffffffffffL)"
        return f"({kind}){text}"

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

    def _level_of_integer(self, x: Integer) -> int:
        level = self.level_of(variables(x))
        return max([level, *(self.named(e)[1] for e in expr.values_in(x))])

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
