"""Indices that must lie inside their axis: the program itself finds those that do not.

GATHER and SCATTER read 0 or write nothing out of range, on every device. Methods to which a user
gives indices wrap these in a CHECK, which changes nothing; but a program that needs one has one
root more, 0 where all indices are in range, at which whoever ran it looks when it has ended.
"""

from __future__ import annotations

import os.path
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from minigrad.dtype import dtypes
from minigrad.errors import BoundsError
from minigrad.graph import build
from minigrad.graph.node import Node, Op, make
from minigrad.graph.symbolic import Affine, Integer, high

NO_LINE = ("", 0)


@dataclass(frozen=True)
class Check:
    """What an index may be: 0 … extent − 1.

    wraps: −extent … −1, too, which count from the end. ignored: one more value. The rest is for the
    message: name, of the operation; unit, of what is counted ("rows"); line, the user's file and
    line, which does not count where checks are compared, so that equal ones stay one node.
    """

    extent: Integer
    wraps: bool = False
    ignored: int | None = None
    name: str = ""
    unit: str = field(default="elements", compare=False)
    line: tuple[str, int] = field(default=NO_LINE, compare=False)

    def allows(self, value: int, extent: int) -> bool:
        """Whether a value is an index, where the extent is so many."""
        return (-extent if self.wraps else 0) <= value < extent or value == self.ignored

    def error(self, what: str, extent: int, reason: str = "") -> BoundsError:
        """What to raise. what: "index 7 at position (3,)"; reason: why no more is known."""
        file, number = self.line
        near = os.path.relpath(file) if os.path.isabs(file) else file
        line = f" ({min(near, file, key=len)}:{number})" if number else ""
        expected = f"{-extent if self.wraps else 0} … {extent - 1}" if extent else "no index at all"
        if self.ignored is not None:
            expected += f" (or {self.ignored}, which is ignored)"
        reach = f"{what} is out of range for {extent} {self.unit}{line}"
        return BoundsError(f"{self.name}: {reach}; expected {expected}{reason}")


def check(
    index: Node, extent: Integer, name: str, unit: str, *, wraps: bool = False,
    ignored: int | None = None,
) -> Node:  # fmt: skip
    """The integers of `index`, of which each must lie inside an axis of `extent` elements.

    BoundsError at once where the index is one constant that does not.
    """
    if index.op is Op.CONST:
        found = Check(extent, wraps, ignored, name, unit, users_line())
        most = high(extent)
        if 0 not in index.shape and not found.allows(index.arg, most):
            raise found.error(f"index {index.arg}", most)
        if not isinstance(extent, Affine):
            return index
    elif index.dtype.kind == "u" and isinstance(extent, int) and index.dtype.maximum < extent:
        return index
    found = Check(extent, wraps, ignored, name, unit, users_line())
    return make(Op.CHECK, index.dtype, index.shape, (index,), found, index.device)


def users_line() -> tuple[str, int]:
    """File and line of the innermost frame that is none of minigrad's own (models are users)."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith("minigrad.") or name.startswith("minigrad.models"):
            break
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def any_outside(checked: Sequence[tuple[Node, Check]]) -> Node:
    """A uint32 scalar that is 0 where every index is in range, and where there is none."""
    by_shape: dict[object, Node] = {}
    several = {(index, what.extent, what.wraps, what.ignored): what for index, what in checked}
    for (index, *_), what in several.items():
        wrong, before = _outside(index, what), by_shape.get(index.shape)
        by_shape[index.shape] = wrong if before is None else build.elementwise(Op.OR, before, wrong)
    total: Node | None = None
    for wrong in by_shape.values():
        some = build.reduce(Op.MAX, build.cast(wrong, dtypes.uint32), range(wrong.ndim))
        some = build.reshape(some, ())
        total = some if total is None else build.elementwise(Op.OR, total, some)
    assert total is not None
    return build.contiguous(total)


def _outside(index: Node, what: Check) -> Node:
    """Which elements are no index."""
    limit = what.extent
    narrow = index.dtype is dtypes.int32 and high(limit) < 1 << 31
    wide = index if narrow else build.cast(index, dtypes.int64)  # a huge uint64 becomes negative
    if isinstance(limit, int):
        top = build.const(limit, wide.dtype, wide.shape, wide.device)
    else:
        value = build.cast(build.variable(limit, wide.device), wide.dtype)
        top = build.expand(build.reshape(value, (1,) * wide.ndim), wide.shape)
    zero = build.const(0, wide.dtype, wide.shape, wide.device)
    least = build.elementwise(Op.SUB, zero, top) if what.wraps else zero
    low = build.elementwise(Op.LT, wide, least)
    wrong = build.elementwise(Op.OR, low, build.elementwise(Op.LE, top, wide))
    most, fewest = wide.dtype.maximum, wide.dtype.minimum
    if what.ignored is None or not fewest <= what.ignored <= most:
        return wrong
    ignored = build.const(what.ignored, wide.dtype, wide.shape, wide.device)
    return build.elementwise(Op.AND, wrong, build.elementwise(Op.NE, wide, ignored))
