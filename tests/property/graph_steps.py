"""The statements of random graphs: which may follow, and how large their values may be.

Every value carries a bound of its magnitude, so that results stay comparable; and whether it is
exact, because comparing a rounded value, or casting it to an integer, would turn a rounding error
into a different result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np

from .compare import EPSILON
from .graphs import Graph, Statement
from .leaves import BOUNDS, EXACT_KINDS, LARGE

Shape = tuple[int, ...]
EXTENTS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33)
MAXIMAL_SIZE = 2048
MAXIMAL_BOUND = 24.0


@dataclass(frozen=True)
class Value:
    """A name in scope. bound: of |values|; exact: whether its values do not depend on rounding."""

    name: str
    shape: Shape
    dtype: str
    bound: float
    exact: bool

    @property
    def is_float(self) -> bool:
        """Whether its dtype is a float."""
        return self.dtype in EPSILON


class Maker:
    """Draws the statements of one graph."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.seed = seed
        self.statements: list[Statement] = []
        self.values: dict[str, Value] = {}
        self.named = 0
        self.noise = "float32"
        # Some graphs end with a gradient: they have no kinks and no in-place writes.
        self.smooth = self.chance(0.35)
        self.targets: list[str] = []
        # Half of the graphs also have leaves with values that have found bugs; an eighth are short
        # graphs of large arrays, which exceed the block sizes of recipes.
        tame = self.chance(0.5)
        self.kinds = ("eighths",) if tame else ("eighths", "ties", "ties", "rows", "rows", "parts")
        self.large = self.chance(0.125)
        self.most = 1 << 17 if self.large else MAXIMAL_SIZE

    # --- drawing ----------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.random.random() < probability)

    def below(self, limit: int) -> int:
        """0 … limit − 1."""
        return int(self.random.integers(0, limit))

    def one_of(self, choices: object) -> object:
        """One of a sequence."""
        items = list(choices)  # type: ignore[call-overload]
        return items[self.below(len(items))]

    def shape(self) -> Shape:
        """A shape of one to three dimensions, sometimes without elements."""
        while True:
            count = 1 + self.below(3)
            wide = self.large and self.chance(0.7)
            extents = tuple(int(self.random.choice(LARGE if wide else EXTENTS))
                            for _ in range(count))  # fmt: skip
            if self.chance(0.01):
                extents = (*extents[:-1], 0)
            if prod(extents) <= self.most:
                return extents

    # --- statements -------------------------------------------------------------------------------

    def add(
        self,
        code: str,
        reads: list[Value],
        shape: Shape,
        dtype: str,
        bound: float,
        exact: bool | None = None,
    ) -> Value:
        """`name = code`; exact if an integer, or if `exact` and all that it reads are."""
        name = f"t{self.named}"
        self.named += 1
        inherits = bool(exact) and all(read.exact for read in reads)
        value = Value(name, tuple(shape), dtype, bound, inherits or dtype not in EPSILON)
        self._put(Statement(name, code, tuple(r.name for r in reads), value.shape, dtype), value)
        return self._tamed(value)

    def _put(self, statement: Statement, value: Value) -> None:
        self.statements.append(statement)
        self.values[value.name] = value
        if EPSILON.get(value.dtype, 0) > EPSILON[self.noise]:
            self.noise = value.dtype

    def _tamed(self, value: Value) -> Value:
        """The value; if large, squashed or scaled before it is used further."""
        if not value.is_float or value.bound <= MAXIMAL_BOUND:
            return value
        if value.dtype in ("float16", "bfloat16"):  # its square might overflow
            del self.values[value.name]
        if self.chance(0.5):
            return self.add(f"({value.name} * {4 / value.bound:.6g})", [value], value.shape,
                            value.dtype, 4.0)  # fmt: skip
        return self.add(f"({value.name} * {2 / sqrt(value.bound):.6g}).tanh()", [value],
                        value.shape, value.dtype, 1.0)  # fmt: skip

    def write(self, target: Value, code: str, reads: list[Value], bound: float) -> None:
        """A statement that changes `target` in place."""
        names = (target.name, *(r.name for r in reads))
        exact = target.exact and all(r.exact for r in reads)
        value = Value(target.name, target.shape, target.dtype, bound, exact)
        self._put(Statement(target.name, code, names, target.shape, target.dtype, True), value)

    def leaf(
        self, shape: Shape | None = None, dtype: str = "float32", limit: int = 5, kind: str = ""
    ) -> Value:
        """A new leaf: floats of one of the graph's kinds, integers below `limit`, or bools."""
        shape = self.shape() if shape is None else shape
        chosen = str(self.one_of(self.kinds)) if dtype == "float32" and shape else "eighths"
        kind = kind or chosen
        bound = BOUNDS.get(kind, 4.0) if dtype in EPSILON else float(limit)
        value = self.add(self._leaf_code(shape, dtype, limit, kind), [], shape, dtype, bound,
                         kind in EXACT_KINDS or dtype not in EPSILON)  # fmt: skip
        if dtype == "float32":
            self.targets.append(value.name)
        return value

    def _leaf_code(self, shape: Shape, dtype: str, limit: int, kind: str) -> str:
        seed = self.seed * 1000 + len(self.statements)
        named = "" if kind == "eighths" else f", {kind!r}"
        return f"leaf({seed}, {shape}, {dtype!r}, {limit}, device, real{named})"

    def hidden(self, shape: Shape, first: int) -> Value:
        """A leaf with POISON in rows from `first` on, which `pick` never returns."""
        name = f"h{len(self.statements)}"
        code = self._leaf_code(shape, "float32", 5, f"poison:{first}")
        self.statements.append(Statement(name, code, (), shape, "float32"))
        return Value(name, shape, "float32", 4.0, True)

    # --- choosing operands ------------------------------------------------------------------------

    def pick(self, fits: Callable[[Value], bool]) -> Value | None:
        """A value that fits; recent ones are preferred."""
        found = [value for value in self.values.values() if fits(value)]
        if not found:
            return None
        recent = found[-8:] if self.chance(0.7) else found
        return recent[self.below(len(recent))]

    def number(self) -> Value:
        """A float value; a new leaf if there is none."""
        return self.pick(lambda v: v.is_float) or self.leaf()

    def deep(self) -> Value:
        """A float value of at least one dimension that has elements."""
        return self.pick(lambda v: v.is_float and len(v.shape) > 0 and 0 not in v.shape) or (
            self.leaf((5, 33))
        )

    def partner(self, value: Value, fits: Callable[[Value], bool]) -> Value | None:
        """A value that broadcasts with `value` to a result that is not too large."""

        def matches(other: Value) -> bool:
            if not fits(other):
                return False
            try:
                shape = np.broadcast_shapes(value.shape, other.shape)
            except ValueError:
                return False
            return prod(shape) <= self.most

        return self.pick(matches)


def ancestors(m: Maker, name: str) -> set[str]:
    """The names through which a float gradient can reach `name`."""
    reached = {name}

    def floats(other: str) -> bool:
        return other in m.values and m.values[other].is_float

    for statement in reversed(m.statements):
        if statement.name in reached and floats(statement.name):
            reached.update(filter(floats, statement.reads))
    return reached


def reduced(shape: Shape, axes: tuple[int, ...], keepdim: bool) -> Shape:
    """The shape without some axes; with keepdim, they are 1."""
    if keepdim:
        return tuple(1 if a in axes else n for a, n in enumerate(shape))
    return tuple(n for a, n in enumerate(shape) if a not in axes)


def make_graph(
    seed: int, most: int = 32, make: Callable[[int], Maker] = Maker,
    rules: Sequence[tuple[float, Callable[[Maker], None]]] = (),
) -> Graph:  # fmt: skip
    """A seed's graph, of at most about `most` statements; outputs: values, writes, gradients."""
    from .graph_rules import RULES, end_with_gradient

    maker, rules = make(seed), rules or RULES
    for _ in range(1 + maker.below(3)):
        maker.leaf()
    most = min(most, 12) if maker.large else most
    wanted = most // 6 + maker.below(most - most // 6 + 1)
    weights = np.array([weight for weight, _ in rules], float)
    weights /= weights.sum()
    while len(maker.statements) < wanted:
        rules[int(maker.random.choice(len(rules), p=weights))][1](maker)
    outputs = [maker.statements[-1].name]
    names = [n for n in maker.values if n not in outputs]
    for _ in range(min(maker.below(4), len(names))):
        outputs.append(str(maker.one_of(names)))
    outputs += [s.name for s in maker.statements if s.writes]
    if maker.smooth:
        outputs += end_with_gradient(maker, outputs)
    finite = not any(0 in s.shape for s in maker.statements)  # a mean of no elements is NaN
    return Graph(tuple(maker.statements), tuple(dict.fromkeys(outputs)), maker.noise,
                 maker.chance(0.2), finite)  # fmt: skip
