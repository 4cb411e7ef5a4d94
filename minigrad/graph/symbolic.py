"""Symbolic integers: sums of variables, quotients and remainders, with known bounds.

An integer of a graph (a dimension, an offset) or of a loop nest (an index) is either an `int` or an
`Affine`: a canonical sum c + Σ coefficient·atom. Because the sum is *always* canonical, a stride is
a look-up, equality is `==`, and a range follows from the atoms' ranges. What is not linear hides
inside an atom: a floor division, a remainder, or (in kernels only) a value loaded from memory.

    i = var("i", 0, 11)
    (i * 32 + 7) // 32     # i
    (i * 33 + 7) % 32      # (i + 7) % 32: coefficients are reduced modulo 32
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any, TypeVar

from minigrad.graph.interned import Interned

# The bound of a variable is taken for at least this many times what it usually is, if that is not
# known.
TYPICAL = 8


class Atom:
    """An indivisible part of a sum, with the inclusive range [low, high] of its values.

    kind: "var" (a loop's variable or a user's `Variable`), "div" and "mod" (floor division and
    remainder of `inner` by the positive int `divisor`), "value" (`payload` is a kernel expression).
    A variable whose extent is symbolic has it in `payload`: it runs over 0 … payload − 1. usual: a
    variable's value for which code should be good, if that is known; else 0.
    Equal atoms are one object, because they are dictionary keys everywhere.
    """

    __slots__ = (
        "kind", "name", "inner", "divisor", "low", "high", "payload", "usual", "_sort_key",
        "_text", "__weakref__",
    )  # fmt: skip
    kind: str
    name: str
    inner: Affine | None
    divisor: int
    low: int
    high: int
    payload: Any
    usual: int
    _sort_key: tuple[str, int, int] | None
    _text: str

    def __new__(
        cls, kind: str, name: str, low: int, high: int, inner: Affine | None = None,
        divisor: int = 0, payload: Any = None, usual: int = 0,
    ) -> Atom:  # fmt: skip
        """The one atom with these fields."""
        kinds = type(payload)  # True is not 1
        key = (kind, name, low, high, inner, divisor, payload, kinds, usual)
        link = _atoms.get(key)
        known = None if link is None else link()
        if known is not None:
            return known
        made = super().__new__(cls)
        made.kind, made.name, made.inner, made.divisor = kind, name, inner, divisor
        made.low, made.high, made.payload, made.usual = low, high, payload, usual
        made._sort_key, made._text = None, ""
        return _atoms.settle(key, made)

    def __reduce__(self) -> Any:  # unpickling must give the interned object
        arguments = (self.kind, self.name, self.low, self.high)
        return (Atom, (*arguments, self.inner, self.divisor, self.payload, self.usual))

    def __repr__(self) -> str:
        if not self._text:  # cached: nested loaded values repeat their parts many times
            self._text = self._show()
        return self._text

    def _show(self) -> str:
        if self.inner is not None:
            sign = "//" if self.kind == "div" else "%"
            alone = len(self.inner.terms) == 1 and not self.inner.constant
            inner = f"{self.inner!r}" if alone else f"({self.inner!r})"
            return f"({inner} {sign} {self.divisor})"
        return f"[{self.payload!r}]" if self.kind == "value" else self.name

    @property
    def index(self) -> Affine:
        """The atom as an index: a sum of it alone."""
        return Affine(0, ((self, 1),))

    @property
    def sort_key(self) -> tuple[str, int, int]:
        """A total order of atoms that does not depend on hashing."""
        if self._sort_key is None:
            self._sort_key = (f"{self.kind} {self!r}", self.low, self.high)
        return self._sort_key


_atoms: Interned[Atom] = Interned()


class Affine:
    """constant + Σ coefficient·atom, with at least one term; plain constants are `int`s.

    Equal sums are one object, because they are dictionary keys everywhere, too.
    """

    __slots__ = ("constant", "terms", "_low", "_high", "__weakref__")
    constant: int
    terms: tuple[tuple[Atom, int], ...]
    _low: int | None
    _high: int

    def __new__(cls, constant: int, terms: tuple[tuple[Atom, int], ...]) -> Affine:
        """The one sum with these terms."""
        key = (constant, terms)
        link = _sums.get(key)
        known = None if link is None else link()
        if known is not None:
            return known
        made = super().__new__(cls)
        made.constant, made.terms = key
        made._low, made._high = None, 0
        return _sums.settle(key, made)

    def __reduce__(self) -> Any:  # unpickling must give the interned object
        return (Affine, (self.constant, self.terms))

    def _bounds(self) -> None:
        low, high = _range_of(self.constant, dict(self.terms))
        if any(atom.kind == "mod" for atom, _ in self.terms):
            smallest, largest = _range_of(*_without_remainders(self.constant, dict(self.terms)))
            low, high = max(low, smallest), min(high, largest)
        self._low, self._high = low, high

    @property
    def low(self) -> int:
        """Smallest value that the sum can take (a safe bound)."""
        if self._low is None:
            self._bounds()
        assert self._low is not None
        return self._low

    @property
    def high(self) -> int:
        """Largest value that the sum can take (a safe bound)."""
        if self._low is None:
            self._bounds()
        return self._high

    def __repr__(self) -> str:
        parts = []
        for atom, coefficient in self.terms:
            text = repr(atom) if abs(coefficient) == 1 else f"{abs(coefficient)}·{atom!r}"
            parts.append(("- " if coefficient < 0 else "+ ") + text)
        if self.constant:
            parts.append(f"{'-' if self.constant < 0 else '+'} {abs(self.constant)}")
        text = " ".join(parts)
        return text[2:] if text.startswith("+ ") else "-" + text[2:]

    def __add__(self, other: Integer) -> Integer:
        if isinstance(other, int):
            return Affine(self.constant + other, self.terms) if other else self
        return _add(self, other) if isinstance(other, Affine) else NotImplemented

    __radd__ = __add__

    def __neg__(self) -> Integer:
        return _mul(self, -1)

    def __sub__(self, other: Integer) -> Integer:
        return self + -other

    def __rsub__(self, other: int) -> Integer:
        return -self + other

    def __mul__(self, factor: Integer) -> Integer:
        """Raises ValueError for a product of two symbolic integers."""
        if isinstance(factor, Affine):
            raise ValueError(f"cannot multiply two symbolic integers, {self} and {factor}")
        return 0 if factor == 0 else self if factor == 1 else _mul(self, factor)

    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> Integer:
        """Rounds towards −∞, as Python does."""
        if divisor <= 0:
            text = f"cannot divide the symbolic integer {self} by {divisor}: expected an int > 0"
            raise ValueError(text)
        return self if divisor == 1 else _floordiv(self, divisor)

    def __mod__(self, divisor: int) -> Integer:
        """Lies in 0 … divisor − 1."""
        if divisor <= 0:
            text = f"cannot take the symbolic integer {self} modulo {divisor}: expected an int > 0"
            raise ValueError(text)
        return 0 if divisor == 1 else _mod(self, divisor)


_sums: Interned[Affine] = Interned()
Integer = int | Affine
Whole = TypeVar("Whole", int, Integer)


def var(name: str, low: int, high: int, payload: Any = None, usual: int = 0) -> Affine:
    """The variable `name` as a sum of one term; payload, usual: see `Atom`."""
    return Atom("var", name, low, high, payload=payload, usual=usual).index


def low(x: Integer) -> int:
    """A safe lower bound."""
    return x if isinstance(x, int) else x.low


def high(x: Integer) -> int:
    """A safe upper bound."""
    return x if isinstance(x, int) else x.high


def typical(x: Integer) -> int:
    """A value of x for which code should be good: the usual one, or a part of the highest."""
    if isinstance(x, int):
        return x
    values = [factor * (atom.usual or atom.high // TYPICAL) for atom, factor in x.terms]
    return min(max(x.constant + sum(values), x.low), x.high)


def plain(x: Integer) -> int:
    """x, which is a plain int."""
    assert isinstance(x, int)
    return x


def ceildiv(x: Whole, divisor: int) -> Whole:
    """x / divisor, rounded up: how many pieces of `divisor` cover x."""
    return (x + divisor - 1) // divisor


def _range_of(constant: int, terms: Mapping[Atom, int]) -> tuple[int, int]:
    """Safe bounds of a sum, with the range of each atom taken separately."""
    low = high = constant
    for atom, coefficient in terms.items():
        ends = (coefficient * atom.low, coefficient * atom.high)
        low, high = low + min(ends), high + max(ends)
    return low, high


def _build(constant: int, terms: dict[Atom, int]) -> Integer:
    """The canonical form of constant + Σ coefficient·atom, for any combination of atoms.

    With q = x // d, a remainder x % d equals x − d·q. Written without remainders, equal sums have
    equal terms; which remainders are then put back depends only on those terms.
    """
    for atom in terms:
        if atom.inner is not None:
            constant, terms = _with_remainders(*_without_remainders(constant, terms))
            break
    items = [(atom, c) for atom, c in terms.items() if c]
    if not items:
        return constant
    if len(items) > 1:
        items.sort(key=lambda item: item[0].sort_key)
    return Affine(constant, tuple(items))


@dataclass(frozen=True)
class _Remainder:
    """x % d as x − d·quotient, if the quotient x // d is a single atom.

    constant, terms: that difference, with all remainders in it expanded. leading: the coefficients
    of x, with y instead of a remainder y % n in it; without quotients, unless x has nothing else.
    """

    atom: Atom
    quotient: Atom
    constant: int
    terms: Mapping[Atom, int]
    leading: Mapping[Atom, int]

    def contained(self, terms: Mapping[Atom, int]) -> int:
        """How many times the sum contains x; negative if it contains −x."""
        if not self.leading:
            return 0
        ratios = []
        for atom, c in self.leading.items():
            whole = terms.get(atom, 0)
            ratios.append(abs(whole) // abs(c) * (1 if (whole < 0) == (c < 0) else -1))
        least, most = min(ratios), max(ratios)
        return least if least > 0 else most if most < 0 else 0


@lru_cache(maxsize=1 << 14)
def _remainder(atom: Atom) -> _Remainder:
    """The `_Remainder` of a "mod" atom.

    It looks only at the atom's structure, because it is called while sums are built.
    """
    x, d = atom.inner, atom.divisor
    assert x is not None
    parent = as_atom(x)
    if parent is not None and parent.kind == "div":  # (y // e) // d = y // (e·d)
        assert parent.inner is not None
        quotient = _quotient(parent.inner, parent.divisor * d)
    else:
        quotient = _quotient(x, d)
    constant, terms = _without_remainders(x.constant, dict(x.terms))
    terms[quotient] = terms.get(quotient, 0) - d
    made = _made_of(x)
    leading = {part: c for part, c in made.items() if part.kind != "div"} or made
    return _Remainder(atom, quotient, constant, terms, leading)


def _quotient(x: Affine, d: int) -> Atom:
    """x // d as an atom, for an x that `_smaller` cannot reduce."""
    return Atom("div", "", x.low // d, x.high // d, x, d)


def _made_of(x: Affine) -> dict[Atom, int]:
    """The coefficients of x, with those of y instead of a remainder of y."""
    found: dict[Atom, int] = {}
    for atom, c in x.terms:
        parts = {atom: 1} if atom.kind != "mod" or atom.inner is None else _made_of(atom.inner)
        for part, factor in parts.items():
            found[part] = found.get(part, 0) + c * factor
    return {atom: c for atom, c in found.items() if c}


def as_atom(x: Integer) -> Atom | None:
    """The atom that x consists of, or None."""
    if isinstance(x, int) or x.constant or len(x.terms) > 1 or x.terms[0][1] != 1:
        return None
    return x.terms[0][0]


def _without_remainders(constant: int, terms: Mapping[Atom, int]) -> tuple[int, dict[Atom, int]]:
    """The sum with x − d·(x // d) for each remainder x % d."""
    found: dict[Atom, int] = {}
    for atom, c in terms.items():
        if atom.kind != "mod":
            found[atom] = found.get(atom, 0) + c
        else:
            remainder = _remainder(atom)
            constant += c * remainder.constant
            for part, factor in remainder.terms.items():
                found[part] = found.get(part, 0) + c * factor
    return constant, {atom: c for atom, c in found.items() if c}


def _with_remainders(constant: int, terms: dict[Atom, int]) -> tuple[int, dict[Atom, int]]:
    """The sum with d·(x // d) + x % d instead of x, wherever it contains a quotient x // d.

    That is the form of positions in an array. If quotients of x by several divisors compete for x,
    the first leaves the others as much as they need to cancel their own terms of opposite sign.
    """
    waiting = _remainders_beside(terms)
    while waiting:
        remainder = waiting.pop(0)
        count = remainder.contained(terms)
        sign = 1 if count > 0 else -1
        for rival in waiting:
            d = rival.atom.divisor
            if rival.atom.inner == remainder.atom.inner and d % remainder.atom.divisor:
                wanted = -(sign * terms.get(rival.quotient, 0) // d)
                count = sign * max(sign * count - max(wanted, 0), 0)
        if not terms.get(remainder.quotient):
            continue
        constant -= count * remainder.constant
        for part, factor in remainder.terms.items():
            terms[part] = terms.get(part, 0) - count * factor
        terms[remainder.atom] = terms.get(remainder.atom, 0) + count
    return constant, terms


def _remainders_beside(terms: Mapping[Atom, int]) -> list[_Remainder]:
    """The remainders beside quotients in a sum: x % d of x // d, (y // e) % (d / e) of y // d.

    Nested ones first, then small divisors.
    """
    quotients = [atom for atom in terms if atom.kind == "div"]
    found: list[tuple[Any, _Remainder]] = []
    for quotient in quotients:
        assert quotient.inner is not None
        candidates = [(1, quotient.inner)]
        for other in quotients:
            if other.inner == quotient.inner and quotient.divisor % other.divisor == 0:
                candidates.append((other.divisor, other.index))
        for taken, x in candidates:
            d = quotient.divisor // taken
            if all(c % d for _, c in x.terms):
                key = (-_depth(quotient), quotient.divisor, -taken, quotient.sort_key)
                found.append((key, _remainder(Atom("mod", "", 0, d - 1, x, d))))
    return [remainder for _, remainder in sorted(found, key=lambda pair: pair[0])]


@lru_cache(maxsize=1 << 14)
def _depth(atom: Atom) -> int:
    """The nesting depth of quotients and remainders."""
    return 0 if atom.inner is None else 1 + max(_depth(part) for part, _ in atom.inner.terms)


def weighted(constant: int, parts: Iterable[tuple[Integer | Atom, int]]) -> Integer:
    """constant + Σ factor·part."""
    terms: dict[Atom, int] = {}
    for part, factor in parts:
        if isinstance(part, Atom):
            terms[part] = terms.get(part, 0) + factor
        elif isinstance(part, int):
            constant += part * factor
        else:
            constant += part.constant * factor
            for atom, c in part.terms:
                terms[atom] = terms.get(atom, 0) + c * factor
    return _build(constant, terms) if terms else constant


@lru_cache(maxsize=1 << 16)
def _add(x: Affine, y: Affine) -> Integer:
    return weighted(0, ((x, 1), (y, 1)))


@lru_cache(maxsize=1 << 16)
def _mul(x: Affine, y: int) -> Integer:
    return _build(x.constant * y, {atom: c * y for atom, c in x.terms})


def _reduce_coefficients(x: Affine, d: int) -> tuple[Integer, Integer]:
    """x = d·quotient + rest, with the coefficients of rest reduced modulo d.

    Residues are in 0 … d − 1, or around zero if only then the rest needs no division.
    """
    best: tuple[Integer, Integer] | None = None
    for signed in (False, True):
        quotient: dict[Atom, int] = {}
        rest: dict[Atom, int] = {}
        for atom, coefficient in x.terms:
            q, r = divmod(coefficient, d)
            if signed and 2 * r > d:
                q, r = q + 1, r - d
            if q:
                quotient[atom] = q
            if r:
                rest[atom] = r
        q, r = divmod(x.constant, d)
        pair = (_build(q, quotient), _build(r, rest))
        if low(pair[1]) // d == high(pair[1]) // d:
            return pair
        best = best or pair
    assert best is not None
    return best


def _split(x: Affine, d: int) -> tuple[int, Integer, Integer] | None:
    """g, y and r with x = g·y + r and 0 ≤ r < g, where g divides d, so that r never carries.

    So (20·i + 4·j + k) // 40 is i // 2 if 4·j + k is below 20.
    """
    factors = [c for _, c in x.terms]
    for g in sorted({gcd(d, *factors), *(gcd(d, c) for c in factors)} - {1}, reverse=True):
        rest = _build(x.constant % g, {atom: c for atom, c in x.terms if c % g})
        if low(rest) >= 0 and high(rest) < g:
            whole = {atom: c // g for atom, c in x.terms if c % g == 0}
            return g, _build(x.constant // g, whole), rest
    return None


@lru_cache(maxsize=1 << 16)
def _smaller(x: Affine, d: int) -> tuple[Integer, int, Integer, Integer]:
    """q, g, y and r with x = d·q + g·y + r and 0 ≤ r < g, where g divides d: a smaller division.

    So x // d is q + y // (d / g), and x % d is g·(y % (d / g)) + r. g is 1 if there is none.
    """
    split = _split(x, d)
    if split is not None:
        return 0, *split
    quotient, rest = _reduce_coefficients(x, d)
    whole = low(rest) // d
    if whole == high(rest) // d:
        return quotient + whole, d, 0, rest - whole * d
    assert isinstance(rest, Affine)
    split = _split(rest, d)
    return (quotient, *split) if split is not None else (quotient, 1, rest, 0)


@lru_cache(maxsize=1 << 16)
def _floordiv(x: Affine, d: int) -> Integer:
    quotient, g, rest, _ = _smaller(x, d)
    if g > 1 or isinstance(rest, int):
        return quotient + rest // (d // g)
    atom = as_atom(rest)
    if atom is not None and atom.kind == "div":  # (y // e) // d = y // (e·d)
        assert atom.inner is not None
        return quotient + atom.inner // (atom.divisor * d)
    if atom is not None and atom.kind == "mod" and atom.divisor % d == 0:
        assert atom.inner is not None  # (y % n) // d = (y // d) % (n / d)
        return quotient + atom.inner // d % (atom.divisor // d)
    return quotient + _quotient(rest, d).index


def _without_multiples(x: Affine, d: int) -> Integer:
    """A simpler sum with the same remainder by d: terms c·atom with d | c are dropped.

    If d | c·n, c·(y % n) becomes c·y first.
    """
    constant, waiting = x.constant, list(x.terms)
    terms: dict[Atom, int] = {}
    while waiting:
        atom, c = waiting.pop()
        if c % d and atom.kind == "mod" and c * atom.divisor % d == 0:
            assert atom.inner is not None
            constant += c * atom.inner.constant
            waiting.extend((part, c * factor) for part, factor in atom.inner.terms)
        else:
            terms[atom] = terms.get(atom, 0) + c
    kept = {atom: c for atom, c in terms.items() if c % d}
    return x if kept == dict(x.terms) else _build(constant, kept)


@lru_cache(maxsize=1 << 16)
def _mod(x: Affine, d: int) -> Integer:
    less = _without_multiples(x, d)
    if isinstance(less, int):
        return less % d
    _, g, rest, little = _smaller(less, d)
    if g > 1 or isinstance(rest, int):
        return rest % (d // g) * g + little
    return _build(0, {Atom("mod", "", 0, d - 1, rest, d): 1})


def where_small(x: Integer, extent: int) -> dict[Atom, Integer]:
    """Replacements for x = y % d, and for the quotient y // d, that hold if 0 ≤ x < extent.

    x is replaced by an integer without division, which is in that range only if x is: for extent 1,
    (1024·i + j) % 1025 by j − i, where i and j are below 1024. {} if none is known.
    """
    atom = as_atom(x)
    if atom is None or atom.kind != "mod":
        return {}
    y, d = atom.inner, atom.divisor
    assert y is not None
    rest = weighted(0, ((part, (c + d // 2) % d - d // 2) for part, c in y.terms))
    for near in (rest + y.constant % d, rest + y.constant % d - d):
        if low(near) >= extent - d and high(near) < d:
            quotient = as_atom(y // d)
            return {atom: near} | ({} if quotient is None else {quotient: (y - near) // d})
    return {}
