"""Questions about symbolic integers (what is in them, their strides), and substitution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from minigrad.graph.symbolic import Affine, Atom, Integer, low, weighted


def substitute(x: Integer, values: Mapping[Atom, Integer], in_loaded: bool = True) -> Integer:
    """x with some of its variables replaced (all at once), and simplified.

    in_loaded: also inside the expressions of loaded values.
    """
    if isinstance(x, int) or _variables(x).isdisjoint(values):
        return x
    inside = _variables(x)
    known = tuple([item for item in values.items() if item[0] in inside])
    return _substituted(x, known, in_loaded)


@lru_cache(maxsize=1 << 16)
def _substituted(x: Affine, known: tuple[tuple[Atom, Integer], ...], in_loaded: bool) -> Integer:
    """The same, cached by replacements in x: vectors and their remainders share these."""
    values = dict(known)
    parts: list[tuple[Integer | Atom, int]] = []
    for atom, factor in x.terms:
        new: Integer | Atom | None = values.get(atom)
        if new is None:
            in_value = atom.kind == "value" and in_loaded
            new = atom.payload.substitute_atom(atom, values) if in_value else _with_inner(
                atom, lambda inner: substitute(inner, values, in_loaded)
            )
        parts.append((new, factor))
    return weighted(x.constant, parts)


def replace_values(x: Integer, new: Callable[[Any], Integer]) -> Integer:
    """x with every `value` atom, at any depth, replaced by `new` of its payload."""
    if isinstance(x, int):
        return x
    return weighted(x.constant, ((
        new(atom.payload) if atom.kind == "value"
        else _with_inner(atom, lambda inner: replace_values(inner, new)), factor,
    ) for atom, factor in x.terms))  # fmt: skip


def _with_inner(atom: Atom, new: Callable[[Affine], Integer]) -> Integer | Atom:
    """A quotient or remainder with a new inner sum; other atoms as they are."""
    if atom.inner is None:
        return atom
    inner = new(atom.inner)
    return inner // atom.divisor if atom.kind == "div" else inner % atom.divisor


def replace_atoms(x: Integer, values: Mapping[Atom, Integer]) -> Integer:
    """x with some of its own atoms replaced, but not atoms inside of others."""
    if isinstance(x, int):
        return x
    return weighted(x.constant, ((values.get(atom, atom), c) for atom, c in x.terms))


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
    """The stride of x along a variable; None if the variable is inside another atom."""
    if isinstance(x, int):
        return 0
    found = 0
    for other, c in x.terms:
        if other == atom:
            found = c
        elif other.kind != "var" and atom in _variables(other.index):
            return None
    return found


def is_dense(x: Integer, atom: Atom, count: int) -> bool:
    """Whether `count` values of a variable reach no more elements: as i, or i // 2.

    From any multiple of `count` on.
    """
    stride = coefficient(x, atom)
    if stride is not None:
        return stride == 1
    apart = distances(x, atom, count)
    return bool(apart) and min(apart) >= 0 and max(apart) < count


def distances(x: Integer, atom: Atom, count: int) -> list[int]:
    """How far `count` neighbours along a variable are from the first one, from any multiple of
    `count` on; [] if that varies.
    """
    begin = Atom("var", f"{atom.name}.begin", 0, atom.high // count).index * count
    first = substitute(x, {atom: begin})
    apart = [substitute(x, {atom: begin + n}) - first for n in range(count)]
    known = [one for one in apart if isinstance(one, int)]
    return known if len(known) == count else []


def only_atom(x: Integer) -> Atom:
    """The atom of a sum that is exactly one variable."""
    assert isinstance(x, Affine) and x.constant == 0 and len(x.terms) == 1 and x.terms[0][1] == 1
    return x.terms[0][0]


def proven_nonnegative(x: Integer) -> bool:
    """Whether x ≥ 0 follows from the ranges, symbolic extents included."""
    while low(x) < 0:
        if isinstance(x, int):
            return False
        for atom, c in x.terms:  # a variable with a symbolic extent: i ≤ extent − 1
            if c < 0 and isinstance(atom.payload, Affine):
                x = x + (atom.payload - 1 - atom.index) * c
                break
        else:
            return False
    return True
