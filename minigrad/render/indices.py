"""Index arithmetic: an index becomes an expression of integers, emitted like every other value.

So it is decided here, once for both renderers, how indices are computed: in 32 or 64 bits, what is
known further out first, by which division; and in a vector's lanes by one addition, where they grow
evenly. The leaves of such an expression are the variables of open loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce

from minigrad.dtype import DType, dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient, substitute, variables
from minigrad.graph.symbolic import Atom, Integer, as_atom
from minigrad.loops.nest import Nest
from minigrad.render.scopes import L, Levels, V
from minigrad.schedule import expr
from minigrad.schedule.expr import Expr, Leaf, apply, const


@dataclass(frozen=True)
class Lanes:
    """A variable that differs from lane to lane: what it is at lane 0, and the number of lanes.

    base: an index that all lanes share. first: the same in terms from which more can be proven, if
    only whole vectors are known to come before.
    """

    base: Integer
    width: int
    first: Integer | None = None


class Indices(Levels[L, V]):
    """Levels, the vector in scope, and indices as expressions."""

    # A renderer supplies these: a variable's value as a dtype; base, base + step, … in the lanes in
    # scope; and whether indices that all lanes share are computed in 32 bits where that is enough.
    variable: Callable[[Atom, DType], V]
    spaced: Callable[[V, int, DType], V]
    narrow: bool

    def __init__(self, outermost: L, nest: Nest) -> None:
        super().__init__(outermost, nest)
        self.vectors: dict[Atom, Lanes] = {}

    # ---- lanes ----

    def width(self) -> int:
        """Lanes of the vector in scope, 1 without one."""
        for lanes in self.vectors.values():
            return lanes.width
        return 1

    def varies(self, x: Integer) -> bool:
        """Whether an index differs from lane to lane."""
        return not self.vectors.keys().isdisjoint(variables(x))

    def lanes_of(self, e: Expr) -> int:
        """Lanes of an expression's value."""
        return 1 if self.vectors.keys().isdisjoint(e.variables) else self.width()

    def lane_stride(self, x: Integer) -> int | None:
        """How much an index grows from lane to lane; None if that is not constant."""
        steps = [coefficient(x, atom) for atom in self.vectors]
        return None if None in steps else sum(step for step in steps if step)

    def at_lane(self, x: Integer, lane: int = 0) -> Integer:
        """An index in one lane, in terms that all lanes share."""
        return substitute(x, {atom: lanes.base + lane for atom, lanes in self.vectors.items()})

    # ---- indices as expressions ----

    def dtype_of(self, x: Integer) -> DType:
        """The dtype in which an index is computed."""
        short = (self.narrow or self.varies(x)) and fits_32_bits(x)
        return dtypes.int32 if short else dtypes.int64

    def arithmetic(self, x: Integer, dtype: DType | None = None) -> Expr:
        """An index as an expression, of its own dtype unless another is given."""
        dtype = dtype or self.dtype_of(x)
        if self.varies(x):
            return self._across(x, dtype)
        varying, number = self.parts(x, dtype)
        return const(number, dtype) if varying is None else _plus(varying, number)

    def parts(self, x: Integer, dtype: DType) -> tuple[Expr | None, int]:
        """What varies of an index that all lanes share, as an expression; and its constant part."""
        x = substitute(x, self.known)
        if isinstance(x, int):
            return None, x
        number, found = x.constant, list[Expr]()
        for atom, factor in x.terms:
            part = (_variable if atom.kind == "var" else self._part)(atom, dtype)
            if part.op is Op.CONST:
                number += factor * int(part.value)
            else:
                found.append(_times(part, factor))
        if len(found) > 1:
            found.sort(key=self._level)
        return (reduce(_sum, found) if found else None), number

    def _level(self, e: Expr) -> int:
        return max([self.where.get(atom, 0) for atom in e.variables], default=0)

    def _across(self, x: Integer, dtype: DType) -> Expr:
        """The same for an index that varies: what grows evenly from lane to lane is one INDEX."""
        assert not isinstance(x, int)
        even: Integer = x.constant
        found = []
        for atom, factor in x.terms:
            if atom in self.vectors or not self.varies(atom.index):
                even += factor * atom.index
            else:
                found.append(_times(self._part(atom, dtype), factor))
        if even != 0:
            found.append(expr.index(even, dtype))
        return reduce(_sum, found)

    def _part(self, atom: Atom, dtype: DType) -> Expr:
        """A quotient, a remainder or a value from memory as an expression."""
        if atom.kind == "value":
            value = self.expand(atom.payload)
            if value.dtype is dtypes.uint64:  # a huge one must stay too large, not wrap
                value = value.operation("minimum", (1 << 62) - 1)
            return value.cast(dtype)
        assert atom.inner is not None
        x, d = self.arithmetic(atom.inner), atom.divisor
        if x.op is Op.CONST:
            number = int(x.value)
            return const(number // d if atom.kind == "div" else number % d, dtype)
        return _divided(x, d, atom.kind, atom.inner.low >= 0).cast(dtype)

    def index_value(self, e: Expr) -> V:
        """The value of an INDEX."""
        x, atom = e.index, as_atom(e.index)
        if atom is not None and atom.kind == "var" and atom.low < atom.high:
            if not (atom in self.vectors or atom in self.known):
                return self.variable(atom, e.dtype)
        dtype = self.dtype_of(x)
        step = self.lane_stride(x) if self.varies(x) and e.dtype is dtype else None
        if step is not None:
            base = _as(self.arithmetic(self.at_lane(x)), dtype)
            return self.spaced(self.evaluate(base), step, dtype)
        return self.evaluate(_as(self.arithmetic(x, dtype), e.dtype))


# Kernels make the same terms and sums again and again.


@lru_cache(maxsize=1 << 12)
def _variable(atom: Atom, dtype: DType) -> Expr:
    same = atom.low == atom.high
    return const(atom.low, dtype) if same else expr.index(atom.index, dtype)


@lru_cache(maxsize=1 << 12)
def _times(x: Expr, factor: int) -> Expr:
    return x if factor == 1 else apply(Leaf.TIMES, (x, x.constant(factor)), x.dtype)


@lru_cache(maxsize=1 << 12)
def _sum(x: Expr, y: Expr) -> Expr:
    return apply(Leaf.PLUS, (x, y), x.dtype)


def _as(x: Expr, dtype: DType) -> Expr:
    return const(x.value, dtype) if x.op is Op.CONST else x.cast(dtype)


def _plus(x: Expr, number: int) -> Expr:
    return _sum(x, x.constant(number)) if number else x


def _divided(x: Expr, divisor: int, kind: str, natural: bool) -> Expr:
    """Floor division or remainder by a positive constant; natural: x ≥ 0."""
    by = x.constant(divisor)
    if natural:  # processors divide these faster
        return apply(Leaf.PART if kind == "div" else Leaf.REST, (x, by), x.dtype)
    rest = apply(Leaf.REMAINDER, (x, by), x.dtype)
    below = rest.less(0)
    if kind == "mod":
        return below.where(_sum(rest, by), rest)
    quotient = apply(Leaf.QUOTIENT, (x, by), x.dtype)
    return below.where(_plus(quotient, -1), quotient)


@lru_cache(maxsize=1 << 12)
def fits_32_bits(x: Integer) -> bool:
    """Whether an index and all intermediate results fit 32 bits."""
    if isinstance(x, int):
        return abs(x) < 1 << 31
    size = abs(x.constant)
    for atom, factor in x.terms:
        size += abs(factor) * max(abs(atom.low), abs(atom.high), atom.divisor)
    inside = (atom.inner for atom, _ in x.terms if atom.inner is not None)
    return size < 1 << 31 and all(map(fits_32_bits, inside))
