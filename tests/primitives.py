"""The primitives of `Op`, grouped by their facts: a new one is in its groups automatically."""

from __future__ import annotations

from minigrad.dtype import DType, dtypes
from minigrad.graph.operations import BINARY, UNARY, Op


def arity(op: Op) -> int:
    """How many operands it takes."""
    return op.facts.arity


def defined(op: Op, dtype: DType) -> bool:
    """Whether `build` accepts op on dtype."""
    return dtype.kind in op.facts.kinds


# Each group has this order, so that a seed draws the same in every run.
PRIMITIVES = tuple(sorted((UNARY | BINARY) - {Op.CAST, Op.BITCAST}, key=lambda op: op.value))
# Of four words; tests/tensor/test_random.py compares them with published vectors.
HASHES = (Op.THREEFRY_LOW, Op.THREEFRY_HIGH)
OF_ONE = tuple(op for op in PRIMITIVES if arity(op) == 1)
OF_TWO = tuple(op for op in PRIMITIVES if arity(op) == 2)
OF_FLOATS = tuple(op for op in PRIMITIVES if defined(op, dtypes.float32))
OF_INTEGERS = tuple(op for op in PRIMITIVES if defined(op, dtypes.int32))
# Computed by polynomials in all renderers: near, not exact.
VECTOR_MATH = tuple(op for op in OF_FLOATS if op.facts.formula)
# Constant almost everywhere.
FLAT = tuple(op for op in PRIMITIVES if op.facts.flat)
# A device may choose either of 0.0 and −0.0.
EITHER_ZERO = (Op.MAXIMUM, Op.MINIMUM)
