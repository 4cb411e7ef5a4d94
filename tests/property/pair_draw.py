"""Drawing pairs: leaves that both programs read, the code of each, and what follows in both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from .graphs import Graph, Statement
from .leaves import LARGE, Shape
from .pairs import Pair

T = TypeVar("T")
NAME = re.compile(r"\bt\d+\b")

SMALL = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33)
SMOOTH = ("{}", "{}.tanh()", "({} * 0.5 + 1)", "{}.sigmoid()", "{}.contiguous()", "(-{})")
KINDS_OF_LEAF = ("eighths", "eighths", "ties", "rows", "parts")


class Draw:
    """One pair under construction. Names made by `both` exist in the two programs."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng([seed, 77])
        self.seed = seed
        self.first: list[Statement] = []
        self.second: list[Statement] = []
        self.leaves: list[str] = []
        self.count = 0
        self.smooth = self.chance(0.5)  # whether the pair ends with a gradient
        # Most shapes are small; a fifth of the pairs exceed block sizes.
        self.large = self.chance(0.2)

    # --- drawing ----------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.random.random() < probability)

    def below(self, limit: int) -> int:
        """0 … limit − 1."""
        return int(self.random.integers(0, limit))

    def one_of(self, choices: Sequence[T]) -> T:
        """One of a sequence."""
        return choices[self.below(len(choices))]

    def extent(self, least: int = 1) -> int:
        """The length of a dimension."""
        extents = LARGE if self.large and self.chance(0.6) else SMALL
        return max(least, self.one_of(extents))

    def shape(self, count: int, most: int = 1 << 16) -> Shape:
        """A shape of `count` dimensions."""
        while True:
            shape = tuple(self.extent() for _ in range(count))
            shape = shape[:1] * count if self.chance(0.15) else shape  # axes of one length
            if np.prod(shape) <= most:
                return shape

    def cut(self, extent: int) -> int:
        """A position that cuts an extent of at least 2."""
        return 1 + self.below(extent - 1)

    # --- statements -------------------------------------------------------------------------------

    def statement(self, code: str) -> Statement:
        """`name = code`, with a new name."""
        self.count += 1
        return Statement(f"t{self.count}", code, (), (), "float32")

    def leaf(self, shape: Shape, kind: str = "", dtype: str = "float32", limit: int = 5) -> str:
        """Data for both programs."""
        kind = kind or self.one_of(KINDS_OF_LEAF)
        seed = self.seed * 1000 + self.count
        name = self.both(f"leaf({seed}, {shape}, {dtype!r}, {limit}, device, real, {kind!r})")
        if dtype == "float32" and not kind.startswith("poison"):
            self.leaves.append(name)
        return name

    def operand(self, shape: Shape, kind: str = "") -> str:
        """A leaf, or a value computed from one, which kernels may recompute where they read it."""
        name = self.leaf(shape, kind)
        return self.both(self.one_of(SMOOTH).format(name)) if self.chance(0.4) else name

    def both(self, code: str) -> str:
        """A name for the same code in both programs."""
        made = self.statement(code)
        self.first.append(made)
        self.second.append(made)
        return made.name

    def _read(self, code: str) -> set[str]:
        """The names that code reads, directly or through others."""
        made = {s.name: s.code for s in (*self.first, *self.second)}
        found: set[str] = set()
        waiting = [code]
        while waiting:
            new = set(NAME.findall(waiting.pop())) & made.keys() - found
            found |= new
            waiting += [made[name] for name in new]
        return found

    def pair(self, first: str, second: str, way: str = "lazy", smooth: bool = True,
             tail: bool = True) -> Pair:  # fmt: skip
        """Two expressions that must agree, and the statements that follow in both programs."""
        after = self.one_of(SMOOTH) if tail and self.chance(0.5) else "{}"
        read = self._read(first) & self._read(second)
        wanted = [name for name in self.leaves if name in read and smooth and self.smooth][:2]
        graphs = []
        for statements, code in ((self.first, first), (self.second, second)):
            out = self.statement(after.format(f"({code})"))
            rest, outputs = [out], [out.name]
            if wanted:
                loss = self.statement(f"{out.name}.square().mean()")
                found = self.statement(f"{loss.name}.gradient({', '.join(wanted)})")
                parts = [self.statement(f"{found.name}[{n}]") for n in range(len(wanted))]
                rest += [loss, found, *parts]
                outputs += [part.name for part in parts]
            graphs.append(Graph((*statements, *rest), tuple(outputs)))
        return Pair(graphs[0], graphs[1], way)
