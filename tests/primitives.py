"""The primitives of `Op` in groups, read from the code's own tables: a new one is in its groups."""

from __future__ import annotations

from minigrad.dtype import DType, dtypes
from minigrad.errors import DTypeError
from minigrad.graph import build
from minigrad.graph.node import BINARY, UNARY, Op
from minigrad.render.vector_math import is_primitive


def arity(op: Op) -> int:
    """How many operands it takes."""
    return 2 if op in BINARY else 1


def defined(op: Op, dtype: DType) -> bool:
    """Whether `build` accepts op on dtype."""
    try:
        build.elementwise(op, *[build.const(0, dtype, (), "")] * arity(op))
    except DTypeError:
        return False
    return True


# Each group is in this order, so that a seed draws the same in every run.
PRIMITIVES = tuple(sorted((UNARY | BINARY) - {Op.CAST, Op.BITCAST}, key=lambda op: op.value))
OF_ONE = tuple(op for op in PRIMITIVES if arity(op) == 1)
OF_TWO = tuple(op for op in PRIMITIVES if arity(op) == 2)
OF_FLOATS = tuple(op for op in PRIMITIVES if defined(op, dtypes.float32))
OF_INTEGERS = tuple(op for op in PRIMITIVES if defined(op, dtypes.int32))
# Written as polynomials, for all renderers: near, not exact.
VECTOR_MATH = tuple(op for op in PRIMITIVES if not is_primitive(op))
# Of 0.0 and −0.0 a device may give either.
EITHER_ZERO = (Op.MAXIMUM, Op.MINIMUM)
