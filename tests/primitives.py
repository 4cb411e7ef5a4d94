"""The primitives of `Op` in groups, by the facts of each: a new one is in its groups."""

from __future__ import annotations

from minigrad.dtype import DType, dtypes
from minigrad.graph.operations import BINARY, UNARY, Op


def arity(op: Op) -> int:
    """How many operands it takes."""
    return op.facts.arity


def defined(op: Op, dtype: DType) -> bool:
    """Whether `build` accepts op on dtype."""
    return dtype.kind in op.facts.kinds


# Each group is in this order, so that a seed draws the same in every run.
PRIMITIVES = tuple(sorted((UNARY | BINARY) - {Op.CAST, Op.BITCAST}, key=lambda op: op.value))
# Of four words, which tests/tensor/test_random.py compares with the published vectors.
HASHES = (Op.THREEFRY_LOW, Op.THREEFRY_HIGH)
OF_ONE = tuple(op for op in PRIMITIVES if arity(op) == 1)
OF_TWO = tuple(op for op in PRIMITIVES if arity(op) == 2)
OF_FLOATS = tuple(op for op in PRIMITIVES if defined(op, dtypes.float32))
OF_INTEGERS = tuple(op for op in PRIMITIVES if defined(op, dtypes.int32))
# Written as polynomials, for all renderers: near, not exact.
VECTOR_MATH = tuple(op for op in OF_FLOATS if op.facts.formula)
# Constant almost everywhere.
FLAT = tuple(op for op in PRIMITIVES if op.facts.flat)
# Of 0.0 and −0.0 a device may give either.
EITHER_ZERO = (Op.MAXIMUM, Op.MINIMUM)
