"""Symbolic integers: sums of variables, quotients and remainders, with known bounds.

An integer of a graph (a dimension, an offset) or of a loop nest (an index) is either an `int` or an
`Affine`: a canonical sum c + Σ coefficient·atom. Because the sum is *always* canonical, a stride is
a look-up, equality is `==`, and a range follows from the atoms' ranges. What is not linear hides
inside an atom: a floor division, a remainder, or (in kernels only) a value loaded from memory.

    i = var("i", 0, 11)
    floordiv(add(mul(i, 32), 7), 32)     # i
    mod(add(mul(i, 33), 7), 32)          # mod(i + 7, 32): coefficients are reduced modulo 32
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any


class Atom:
    """An indivisible part of a sum, with the inclusive range [low, high] of its values.

    kind: "var" (a loop's variable or a user's `Variable`), "div" and "mod" (floor division and
    remainder of `inner` by the positive int `divisor`), "value" (`payload` is a kernel expression).
    A variable whose extent is symbolic carries it in `payload`: it runs over 0 … payload − 1.
    """

    __slots__ = (
        "kind", "name", "inner", "divisor", "low", "high", "payload", "key", "hash", "_sort_key"
    )  # fmt: skip

    def __init__(
        self,
        kind: str,
        name: str,
        low: int,
        high: int,
        inner: Affine | None = None,
        divisor: int = 0,
        payload: Any = None,
    ) -> None:
        self.kind, self.name, self.inner, self.divisor = kind, name, inner, divisor
        self.low, self.high, self.payload = low, high, payload
        self.key = (kind, name, inner, divisor, low, high, payload)
        self.hash = hash(self.key)
        self._sort_key: tuple[str, int, int] | None = None

    def __reduce__(self) -> Any:  # hashes of strings differ between processes
        arguments = (self.kind, self.name, self.low, self.high)
        return (Atom, (*arguments, self.inner, self.divisor, self.payload))

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Atom) and self.hash == other.hash and self.key == other.key

    def __repr__(self) -> str:
        if self.inner is not None:
            sign = "//" if self.kind == "div" else "%"
            alone = len(self.inner.terms) == 1 and not self.inner.constant
            inner = f"{self.inner!r}" if alone else f"({self.inner!r})"
            return f"({inner} {sign} {self.divisor})"
        if self.kind == "value":
            return f"[{self.payload!r}]"
        return self.name

    @property
    def sort_key(self) -> tuple[str, int, int]:
        """A total order of atoms that does not depend on hashing."""
        if self._sort_key is None:
            self._sort_key = (f"{self.kind} {self!r}", self.low, self.high)
        return self._sort_key


class Affine:
    """constant + Σ coefficient·atom, with at least one term; plain constants are `int`s."""

    __slots__ = ("constant", "terms", "hash", "_low", "_high")

    def __init__(self, constant: int, terms: tuple[tuple[Atom, int], ...]) -> None:
        self.constant, self.terms = constant, terms
        self.hash = hash((constant, terms))
        self._low: int | None = None
        self._high = 0

    def __reduce__(self) -> Any:
        return (Affine, (self.constant, self.terms))

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Affine)
            and self.hash == other.hash
            and self.constant == other.constant
            and self.terms == other.terms
        )

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
        return add(self, other)

    def __radd__(self, other: int) -> Integer:
        return add(other, self)

    def __sub__(self, other: Integer) -> Integer:
        return sub(self, other)

    def __rsub__(self, other: int) -> Integer:
        return sub(other, self)

    def __neg__(self) -> Integer:
        return mul(self, -1)

    def __mul__(self, other: Integer) -> Integer:
        return mul(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> Integer:
        return floordiv(self, other)

    def __mod__(self, other: int) -> Integer:
        return mod(self, other)


Integer = int | Affine


def var(name: str, low: int, high: int, payload: Any = None) -> Affine:
    """The variable `name` as a sum of one term; `payload` is its symbolic extent, if it has one."""
    return Affine(0, ((Atom("var", name, low, high, payload=payload), 1),))


def low(x: Integer) -> int:
    """A safe lower bound."""
    return x if isinstance(x, int) else x.low


def high(x: Integer) -> int:
    """A safe upper bound."""
    return x if isinstance(x, int) else x.high


def _range_of(constant: int, terms: Mapping[Atom, int]) -> tuple[int, int]:
    """Safe bounds of a sum, each atom by itself."""
    low = high = constant
    for atom, coefficient in terms.items():
        ends = (coefficient * atom.low, coefficient * atom.high)
        low, high = low + min(ends), high + max(ends)
    return low, high


def _build(constant: int, terms: dict[Atom, int]) -> Integer:
    """Make the canonical sum c + Σ coefficient·atom; the atoms need not be canonical together.

    With q = x // d, a remainder x % d *is* x − d·q. Written without remainders, equal sums have
    equal terms; which remainders are then put back depends on those terms alone.
    """
    if any(atom.inner is not None for atom in terms):
        constant, terms = _with_remainders(*_without_remainders(constant, terms))
    items = [(atom, c) for atom, c in terms.items() if c]
    if not items:
        return constant
    if len(items) > 1:
        items.sort(key=lambda item: item[0].sort_key)
    return Affine(constant, tuple(items))


@dataclass(frozen=True)
class _Remainder:
    """x % d for an x whose quotient by d is a single atom: x − d·quotient, in two ways.

    constant, terms: that difference, without any remainder in it. leading: what x is made of, where
    x holds a remainder y % n what y is made of; without quotients, unless it has nothing else.
    """

    atom: Atom
    quotient: Atom
    constant: int
    terms: Mapping[Atom, int]
    leading: Mapping[Atom, int]

    def contained(self, terms: Mapping[Atom, int]) -> int:
        """How many times x, of either sign, can be taken out of a sum."""
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
    """The remainder that an atom is. By its structure alone: this is asked while sums are made."""
    x, d = atom.inner, atom.divisor
    assert x is not None
    parent = _as_atom(x)
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
    """x // d as an atom: x has nothing that can be taken out of it."""
    return Atom("div", "", x.low // d, x.high // d, x, d)


def _made_of(x: Affine) -> dict[Atom, int]:
    """The coefficients of x, where it holds a remainder of y those of y."""
    found: dict[Atom, int] = {}
    for atom, c in x.terms:
        parts = {atom: 1} if atom.kind != "mod" or atom.inner is None else _made_of(atom.inner)
        for part, factor in parts.items():
            found[part] = found.get(part, 0) + c * factor
    return {atom: c for atom, c in found.items() if c}


def _as_atom(x: Integer) -> Atom | None:
    """The atom that x is, if it is one."""
    if isinstance(x, int) or x.constant or len(x.terms) > 1 or x.terms[0][1] != 1:
        return None
    return x.terms[0][0]


def _without_remainders(
    constant: int, terms: Mapping[Atom, int]
) -> tuple[int, dict[Atom, int]]:
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
    """The sum with d·(x // d) + x % d for x, wherever it has a quotient x // d already.

    That is how positions in an array look. Where several quotients of x want it, all but the first
    get as much as takes their own sign from them.
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
    """The remainders that quotients in a sum leave: x % d of x // d, (y // e) % (d / e) of y // d.

    Nested ones first, then small divisors.
    """
    quotients = [atom for atom in terms if atom.kind == "div"]
    found: list[tuple[Any, _Remainder]] = []
    for quotient in quotients:
        assert quotient.inner is not None
        candidates = [(1, quotient.inner)]
        for other in quotients:
            if other.inner == quotient.inner and quotient.divisor % other.divisor == 0:
                candidates.append((other.divisor, Affine(0, ((other, 1),))))
        for taken, x in candidates:
            d = quotient.divisor // taken
            if d > 1 and all(c % d for _, c in x.terms):
                key = (-_depth(quotient), quotient.divisor, -taken, quotient.sort_key)
                found.append((key, _remainder(Atom("mod", "", 0, d - 1, x, d))))
    return [remainder for _, remainder in sorted(found, key=lambda pair: pair[0])]


@lru_cache(maxsize=1 << 14)
def _depth(atom: Atom) -> int:
    """How many quotients and remainders are inside one another."""
    return 0 if atom.inner is None else 1 + max(_depth(part) for part, _ in atom.inner.terms)


def total(parts: Iterable[Integer]) -> Integer:
    """Σ parts."""
    constant = 0
    terms: dict[Atom, int] = {}
    for part in parts:
        if isinstance(part, int):
            constant += part
            continue
        constant += part.constant
        for atom, coefficient in part.terms:
            terms[atom] = terms.get(atom, 0) + coefficient
    return _build(constant, terms) if terms else constant


@lru_cache(maxsize=1 << 16)
def _add(x: Affine, y: Affine) -> Integer:
    return total((x, y))


def add(x: Integer, y: Integer) -> Integer:
    """x + y."""
    if isinstance(x, int):
        if isinstance(y, int):
            return x + y
        x, y = y, x
    if isinstance(y, int):
        return Affine(x.constant + y, x.terms) if y else x
    return _add(x, y)


def sub(x: Integer, y: Integer) -> Integer:
    """x − y."""
    return add(x, mul(y, -1))


def mul(x: Integer, y: Integer) -> Integer:
    """x · y, where one of the two is an int: products of two symbols stay out of the house."""
    if isinstance(x, int):
        x, y = y, x
    if not isinstance(y, int):
        raise ValueError(f"the product of two symbolic integers, {x} and {y}, is not supported")
    if isinstance(x, int):
        return x * y
    if y == 0:
        return 0
    return x if y == 1 else _mul(x, y)


@lru_cache(maxsize=1 << 16)
def _mul(x: Affine, y: int) -> Integer:
    return _build(x.constant * y, {atom: c * y for atom, c in x.terms})


def _reduce_coefficients(x: Affine, d: int) -> tuple[Integer, Integer]:
    """x = d·quotient + rest, with the coefficients of rest reduced modulo d.

    Residues are taken in 0 … d − 1; around zero only where that leaves nothing to divide.
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
    """g, y and r with x = g·y + r and 0 ≤ r < g, where g divides d: r then bears no carry.

    So (20·i + 4·j + k) // 40 is i // 2 where 4·j + k stays below 20.
    """
    for g in sorted({gcd(c, d) for _, c in x.terms} - {1}, reverse=True):
        inner = {atom: c for atom, c in x.terms if c % g}
        rest = _build(x.constant % g, inner)
        if low(rest) >= 0 and high(rest) < g:
            whole = {atom: c // g for atom, c in x.terms if c % g == 0}
            return g, _build(x.constant // g, whole), rest
    return None


@lru_cache(maxsize=1 << 16)
def _floordiv(x: Affine, d: int) -> Integer:
    split = _split(x, d)
    if split is not None:
        return floordiv(split[1], d // split[0])
    quotient, rest = _reduce_coefficients(x, d)
    if low(rest) // d == high(rest) // d:
        return add(quotient, low(rest) // d)
    assert isinstance(rest, Affine)
    common = gcd(d, *(c for _, c in rest.terms))
    if common > 1:
        smaller = _build(rest.constant // common, {a: c // common for a, c in rest.terms})
        return add(quotient, floordiv(smaller, d // common))
    split = _split(rest, d)
    if split is not None:
        return add(quotient, floordiv(split[1], d // split[0]))
    if len(rest.terms) == 1 and rest.constant == 0 and rest.terms[0][1] == 1:
        atom = rest.terms[0][0]
        if atom.kind == "div":  # (y // e) // d = y // (e·d)
            assert atom.inner is not None
            return add(quotient, floordiv(atom.inner, atom.divisor * d))
        if atom.kind == "mod" and atom.divisor % d == 0:  # (y % n) // d = (y // d) % (n / d)
            assert atom.inner is not None
            return add(quotient, mod(floordiv(atom.inner, d), atom.divisor // d))
    return add(quotient, Affine(0, ((_quotient(rest, d), 1),)))


def floordiv(x: Integer, d: int) -> Integer:
    """x // d for a positive int d, rounding towards −∞."""
    if d <= 0:
        raise ValueError(f"division of the symbolic integer {x} by {d}: expected a positive int")
    if isinstance(x, int):
        return x // d
    return x if d == 1 else _floordiv(x, d)


def _without_multiples(x: Affine, d: int) -> Integer:
    """x less what is a multiple of d: c·atom with d | c, and of c·(y % n) with d | c·n all but c·y.
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
    x = less
    split = _split(x, d)
    if split is not None:
        return add(mul(mod(split[1], d // split[0]), split[0]), split[2])
    _, rest = _reduce_coefficients(x, d)
    if low(rest) // d == high(rest) // d:
        return sub(rest, low(rest) // d * d)
    assert isinstance(rest, Affine)
    common = gcd(d, *(c for _, c in rest.terms))
    if common > 1:
        smaller = _build(rest.constant // common, {a: c // common for a, c in rest.terms})
        return add(mul(mod(smaller, d // common), common), rest.constant % common)
    split = _split(rest, d)
    if split is not None:
        return add(mul(mod(split[1], d // split[0]), split[0]), split[2])
    return _build(0, {Atom("mod", "", 0, d - 1, rest, d): 1})


def mod(x: Integer, d: int) -> Integer:
    """x % d for a positive int d; the result lies in 0 … d − 1."""
    if d <= 0:
        raise ValueError(f"remainder of the symbolic integer {x} by {d}: expected a positive int")
    if isinstance(x, int):
        return x % d
    return 0 if d == 1 else _mod(x, d)


def substitute(
    x: Integer, values: Mapping[Atom, Integer], in_loaded: bool = True
) -> Integer:
    """x with some of its variables replaced (all at once), simplified anew.

    in_loaded: also inside the expressions of loaded values.
    """
    if isinstance(x, int):
        return x
    parts: list[Integer] = [x.constant]
    for atom, factor in x.terms:
        replacement = values.get(atom)
        if replacement is None:
            if atom.kind == "div":
                inner = substitute(atom.inner or 0, values, in_loaded)
                replacement = floordiv(inner, atom.divisor)
            elif atom.kind == "mod":
                inner = substitute(atom.inner or 0, values, in_loaded)
                replacement = mod(inner, atom.divisor)
            elif atom.kind == "value" and in_loaded:
                replacement = atom.payload.substitute_atom(atom, values)
            else:
                replacement = Affine(0, ((atom, 1),))
        parts.append(mul(replacement, factor))
    return total(parts)


def replace_values(x: Integer, new: Callable[[Any], Integer]) -> Integer:
    """x with every `value` atom, at any depth, replaced by what `new` makes of its payload."""
    if isinstance(x, int):
        return x
    parts: list[Integer] = [x.constant]
    for atom, factor in x.terms:
        if atom.kind == "value":
            part = new(atom.payload)
        elif atom.kind == "div":
            part = floordiv(replace_values(atom.inner or 0, new), atom.divisor)
        elif atom.kind == "mod":
            part = mod(replace_values(atom.inner or 0, new), atom.divisor)
        else:
            part = Affine(0, ((atom, 1),))
        parts.append(mul(part, factor))
    return total(parts)


def variables(x: Integer) -> frozenset[Atom]:
    """All variables in x, also those inside quotients, remainders and loaded values."""
    return frozenset() if isinstance(x, int) else _variables(x)


@lru_cache(maxsize=1 << 16)
def _variables(x: Affine) -> frozenset[Atom]:
    found: set[Atom] = set()
    for atom, _ in x.terms:
        if atom.kind == "var":
            found.add(atom)
        elif atom.kind == "value":
            found |= atom.payload.variables
        elif atom.inner is not None:
            found |= _variables(atom.inner)
    return frozenset(found)


def coefficient(x: Integer, atom: Atom) -> int | None:
    """The stride of x along a variable; None where the variable hides inside an atom."""
    if isinstance(x, int):
        return 0
    found = 0
    for other, c in x.terms:
        if other == atom:
            found = c
        elif other.kind != "var" and atom in _variables(Affine(0, ((other, 1),))):
            return None
    return found


def only_atom(x: Integer) -> Atom:
    """The atom of a sum that is exactly one variable."""
    assert isinstance(x, Affine) and x.constant == 0 and len(x.terms) == 1 and x.terms[0][1] == 1
    return x.terms[0][0]


def proven_nonnegative(x: Integer) -> bool:
    """True where x ≥ 0 follows from the ranges, symbolic extents included."""
    for _ in range(8):
        if low(x) >= 0:
            return True
        if isinstance(x, int):
            return False
        for atom, c in x.terms:  # a variable with a symbolic extent: i ≤ extent − 1
            if c < 0 and atom.kind == "var" and isinstance(atom.payload, Affine):
                x = add(x, mul(sub(sub(atom.payload, 1), Affine(0, ((atom, 1),))), c))
                break
        else:
            return False
    return False


def strides_of(shape: Sequence[Integer]) -> tuple[int, ...]:
    """Row-major strides in elements; symbolic dimensions count with their upper bound."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(high(shape[axis + 1]), 1)
    return tuple(strides)


def numel(shape: Sequence[Integer]) -> int:
    """Number of elements to reserve; symbolic dimensions count with their upper bound."""
    count = 1
    for extent in shape:
        count *= high(extent)
    return count


def flatten(index: Sequence[Integer], shape: Sequence[Integer]) -> Integer:
    """Row-major position of `index` in an array of `shape`."""
    return total(mul(i, stride) for i, stride in zip(index, strides_of(shape), strict=True))


def unflatten(position: Integer, shape: Sequence[Integer]) -> tuple[Integer, ...]:
    """Inverse of `flatten`."""
    index: list[Integer] = []
    strides = strides_of(shape)
    for axis, (extent, stride) in enumerate(zip(shape, strides, strict=True)):
        part = floordiv(position, stride)
        index.append(part if axis == 0 else mod(part, max(high(extent), 1)))
        if isinstance(extent, int) and extent == 1:
            index[-1] = 0
    return tuple(index)


def reshape_index(
    index: Sequence[Integer], shape: Sequence[Integer], old: Sequence[Integer]
) -> tuple[Integer, ...]:
    """Index into `old` of the element that has `index` after a reshape to `shape`.

    Dimensions equal on both sides from the left or the right are passed through, which is also
    what makes symbolic dimensions work: they may move past ones, but never merge or split.
    """
    new_axes = [axis for axis, extent in enumerate(shape) if extent != 1]
    old_axes = [axis for axis, extent in enumerate(old) if extent != 1]
    result: list[Integer] = [0] * len(old)
    while new_axes and old_axes and shape[new_axes[0]] == old[old_axes[0]]:
        result[old_axes.pop(0)] = index[new_axes.pop(0)]
    while new_axes and old_axes and shape[new_axes[-1]] == old[old_axes[-1]]:
        result[old_axes.pop()] = index[new_axes.pop()]
    if old_axes:
        position = flatten([index[a] for a in new_axes], [shape[a] for a in new_axes])
        parts = unflatten(position, [old[a] for a in old_axes])
        for axis, part in zip(old_axes, parts, strict=True):
            result[axis] = part
    return tuple(result)


class Variable:
    """A named whole number in minimum … maximum whose value is given per call.

    `Variable("pos", 0, 1023).bind(17)` is usable as a dimension or an offset; the compiled kernel
    serves every value, and its loops run only as far as the bound value.
    """

    def __init__(self, name: str, minimum: int, maximum: int) -> None:
        if not name.isidentifier() or name.startswith("_"):
            raise ValueError(f"Variable({name!r}): expected a plain identifier as name")
        if minimum < 0 or maximum < minimum:
            raise ValueError(
                f"Variable({name!r}, {minimum}, {maximum}): expected 0 <= minimum <= maximum"
            )
        self.name, self.minimum, self.maximum = name, minimum, maximum

    def bind(self, value: int) -> Affine:
        """The variable with a value for this call."""
        if not self.minimum <= value <= self.maximum:
            raise ValueError(
                f"{self!r}.bind({value}): expected a value in {self.minimum} … {self.maximum}"
            )
        return Affine(
            0, ((Atom("var", self.name, self.minimum, self.maximum, divisor=0, payload=value), 1),)
        )

    def __repr__(self) -> str:
        return f"Variable({self.name!r}, {self.minimum}, {self.maximum})"


def unbind(x: Integer, values: dict[str, int]) -> Integer:
    """x without the bound values, which are recorded in `values`.

    Raises ValueError where one variable carries two values: a program runs with one.
    """
    if isinstance(x, int):
        return x
    replaced: dict[Atom, Integer] = {}
    for atom in _variables(x):
        if isinstance(atom.payload, int):
            if values.setdefault(atom.name, atom.payload) != atom.payload:
                raise ValueError(
                    f"variable {atom.name!r} is bound to {values[atom.name]} and to "
                    f"{atom.payload} in one program: realize the first tensor before binding anew"
                )
            replaced[atom] = var(atom.name, atom.low, atom.high)
    return substitute(x, replaced) if replaced else x


def rebind(x: Integer, values: Mapping[str, int]) -> Integer:
    """x with its variables bound to values: the inverse of `unbind`."""
    if isinstance(x, int):
        return x
    bound: dict[Atom, Integer] = {}
    for atom in _variables(x):
        if atom.name in values and atom.payload is None:
            value = Atom("var", atom.name, atom.low, atom.high, payload=values[atom.name])
            bound[atom] = Affine(0, ((value, 1),))
    return substitute(x, bound)


def evaluate(x: Integer, values: Mapping[str, int]) -> int:
    """The number that x is when its variables have these values (unbound ones must be given)."""
    if isinstance(x, int):
        return x
    result = x.constant
    for atom, c in x.terms:
        if atom.kind == "div":
            result += c * (evaluate(atom.inner or 0, values) // atom.divisor)
        elif atom.kind == "mod":
            result += c * (evaluate(atom.inner or 0, values) % atom.divisor)
        elif isinstance(atom.payload, int):
            result += c * atom.payload
        else:
            result += c * values[atom.name]
    return result


