"""`GUARD=1`: indices that lie outside their axis are counted by the program itself.

An index out of range reads 0 or writes nothing, on every device: safe, but mostly a mistake.
Under GUARD each GATHER and SCATTER of a program gets one more root, the number of its indices
that are out of range; whoever runs the program looks at these numbers when it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.errors import BoundsError
from minigrad.graph import build
from minigrad.graph.node import SCATTERS, Node, Op, topological
from minigrad.graph.symbolic import Integer


@dataclass(frozen=True)
class Check:
    """One operation addressed by data; `last` is the last index of its axis."""

    operation: str
    axis: int
    shape: str
    last: str

    def error(self, count: int) -> BoundsError:
        """What to raise where `count` indices are out of range."""
        lie = "1 index lies" if count == 1 else f"{count:,} indices lie"
        return BoundsError(
            f"{self.operation}: {lie} outside 0 … {self.last}, axis {self.axis} of shape "
            f"({self.shape}); correct the indices (without GUARD=1 they read 0 or write nothing)"
        )


def checks(roots: Sequence[Node]) -> list[tuple[Check, Node]]:
    """Each operation addressed by data that the roots need, with the number of its wrong indices.

    That number is an int32 scalar, to be computed along with the roots.
    """
    found: dict[Node, Check] = {}
    for node in topological(roots):
        if node.op is Op.GATHER or node.op in SCATTERS:
            addressed, index = node.src[:2]
            axis: int = node.arg
            length = addressed.shape[axis]
            shape = ", ".join(map(str, addressed.shape))
            last = str(length - 1) if isinstance(length, int) else f"{length} − 1"
            check = Check(node.op.value, axis, shape, last)
            found.setdefault(outside(index, length), check)
    return [(check, count) for count, check in found.items()]


def outside(index: Node, length: Integer) -> Node:
    """How many elements of index are negative or at least `length`."""
    wide = build.cast(index, dtypes.int64)  # a huge uint64 becomes negative
    if isinstance(length, int):
        limit = build.const(length, dtypes.int64, wide.shape, wide.device)
    else:
        value = build.cast(build.variable(length, wide.device), dtypes.int64)
        ones = build.reshape(value, (1,) * wide.ndim)
        limit = build.expand(ones, wide.shape)
    zero = build.const(0, dtypes.int64, wide.shape, wide.device)
    wrong = build.elementwise(
        Op.OR,
        build.elementwise(Op.LT, wide, zero),
        build.elementwise(Op.LE, limit, wide),
    )
    count = build.reduce(Op.SUM, build.cast(wrong, dtypes.int32), range(wide.ndim))
    return build.reshape(count, ())
