"""Range checks: indices that must lie inside their axis, and floats that must lie in an interval.

The program itself checks them. Out of range, GATHER reads 0 and SCATTER writes nothing, on every
device. Methods to which a user gives indices wrap them in a CHECK node, which does not change them.
A program with CHECKs has one more root, which is 0 if all indices are in range. It is read when the
program has ended. Probabilities and weights, which are floats, are checked in the same way.
"""

from __future__ import annotations

import os.path
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar, Self

from minigrad.dtype import dtypes
from minigrad.errors import BoundsError, DomainError
from minigrad.graph import build
from minigrad.graph.axes import spread
from minigrad.graph.node import Node, Op, grouped, make
from minigrad.graph.symbolic import Integer, high, low

NO_LINE = ("", 0)


@dataclass(frozen=True)
class Check:
    """The values that an index may have: 0 … extent − 1.

    wraps: also −extent … −1, which count from the end. ignored: one more value. The rest is for the
    message: name, of the operation; unit, of what is counted ("rows"); line, the user's file and
    line, which is ignored when checks are compared, so that equal ones stay one node.
    """

    extent: Integer
    wraps: bool = False
    ignored: int | None = None
    name: str = ""
    unit: str = field(default="elements", compare=False)
    line: tuple[str, int] = field(default=NO_LINE, compare=False)

    noun: ClassVar[str] = "index"

    def but(self, **fields: Any) -> Self:
        """The same with other fields, in a tenth of the time of `dataclasses.replace`."""
        made = object.__new__(type(self))
        vars(made).update(vars(self), **fields)
        return made

    def allows(self, value: int, extent: int) -> bool:
        """Whether a value is an allowed index, for this extent."""
        return (-extent if self.wraps else 0) <= value < extent or value == self.ignored

    def error(self, what: str, extent: int, reason: str = "") -> BoundsError:
        """The error to raise. what: "index 7 at position (3,)"; reason: why no more is known."""
        expected = f"{-extent if self.wraps else 0} … {extent - 1}" if extent else "no index"
        if self.ignored is not None:
            expected += f" (or {self.ignored}, which is ignored)"
        reach = f"{what} is out of range for {extent} {self.unit}{self._place()}"
        return BoundsError(f"{self.name}: {reach}; expected {expected}{reason}")

    def _place(self) -> str:
        """The user's line, as messages show it."""
        file, number = self.line
        near = os.path.relpath(file) if os.path.isabs(file) else file
        return f" ({min(near, file, key=len)}:{number})" if number else ""

    def outside(self, index: Node) -> Node:
        """Which elements are not allowed."""
        limit = self.extent
        narrow = index.dtype is dtypes.int32 and high(limit) < 1 << 31
        wide = index if narrow else index.cast(dtypes.int64)  # a huge uint64 becomes negative
        if isinstance(limit, int):
            top = build.const(limit, wide.dtype, wide.shape, wide.device)
        else:
            top = spread(build.cast(build.variable(limit, wide.device), wide.dtype), wide.shape)
        wrong = wide.less(-top if self.wraps else 0) | top.operation("le", wide)
        least, most = index.dtype.minimum, index.dtype.maximum
        if self.ignored is None or not least <= self.ignored <= most:
            return wrong
        return wrong & wide.differs(self.ignored)


@dataclass(frozen=True)
class Interval(Check):
    """The values that floats may have: from least to most, inclusive; NaN is not allowed.

    unit: what another value is ("no weight"); expected: the interval in words.
    """

    least: float = 0.0
    most: float = 1.0
    expected: str = field(default="", compare=False)
    noun: ClassVar[str] = "value"

    def allows(self, value: float, extent: int) -> bool:
        """Whether a value is in the interval."""
        return self.least <= value <= self.most

    def error(self, what: str, extent: int, reason: str = "") -> DomainError:
        """The error to raise, as for an index."""
        said = f"{what} is {self.unit}{self._place()}"
        return DomainError(f"{self.name}: {said}; expected {self.expected}{reason}")

    def outside(self, index: Node) -> Node:
        """Which elements are outside of the interval."""
        above = index.constant(self.least).operation("le", index)
        return (above & index.operation("le", self.most)).operation("not")


def check(
    index: Node, extent: Integer, name: str, unit: str, *, wraps: bool = False,
    ignored: int | None = None,
) -> Node:  # fmt: skip
    """The integers of `index`, each of which must be inside an axis of `extent` elements.

    Raises BoundsError at once if index is a constant that is not.
    """
    if index.dtype.kind == "u" and isinstance(extent, int) and index.dtype.maximum < extent:
        return index
    wraps = wraps and index.dtype.kind != "u"
    made = _checked(index, Check(extent, wraps, ignored, name, unit, users_line()))
    return index if index.op is Op.CONST and isinstance(extent, int) else made


def check_values(
    x: Node, name: str, unit: str, expected: str, least: float = 0.0, most: float = 1.0
) -> Node:
    """The floats of x, each of which must be in least … most; DomainError at once for a constant.

    unit: what another value is ("no weight"); expected: the interval in words.
    """
    return _checked(x, Interval(0, False, None, name, unit, users_line(), least, most, expected))


def _checked(x: Node, found: Check) -> Node:
    """A CHECK of x; raises its error at once if x is a constant that is not allowed."""
    most = high(found.extent)
    if x.op is Op.CONST and 0 not in x.shape and not found.allows(x.arg, most):
        raise found.error(f"{found.noun} {x.arg}", most)
    return make(Op.CHECK, x.dtype, x.shape, (x,), found, x.device)


def users_line() -> tuple[str, int]:
    """File and line of the innermost frame outside of minigrad (its models count as users)."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith("minigrad.") or name.startswith("minigrad.models"):
            break
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _each_once(x: Node) -> Node:
    """x below movements that repeat or reorder its elements; x itself if it may have none."""
    moves = (Op.EXPAND, Op.RESHAPE, Op.PERMUTE, Op.FLIP)
    while x.op in moves and min(map(low, x.shape), default=1) > 0:
        (x,) = x.src
    return x


def any_outside(checked: Sequence[tuple[Node, Check]]) -> Node:
    """A uint32 scalar that is 0 if every index is in range, also if there is none."""
    found = dict.fromkeys(what.outside(_each_once(index)) for index, what in checked)
    flags: list[Node] = []
    for alike in grouped((wrong.shape, wrong) for wrong in found).values():
        wrong = reduce(Node.__or__, alike)
        some = build.reduce(Op.MAX, build.cast(wrong, dtypes.uint32), range(wrong.ndim))
        flags.append(build.reshape(some, ()))
    return build.contiguous(reduce(Node.__or__, flags))
