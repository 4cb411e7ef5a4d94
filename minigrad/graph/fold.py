"""Constant folding: an elementwise operation on plain numbers, as every device would compute it.

The meaning is that of the reference runtime, which a test compares with this. Arithmetic is done in
float64 and rounded once by `make`, which for narrower floats equals rounding directly.
"""

from __future__ import annotations

import math
from typing import Any

from minigrad.graph.node import Op


def fold(op: Op, values: tuple[Any, ...]) -> int | float | bool | None:
    """The value of `op` on numbers that its operands' dtypes hold, not yet rounded or wrapped.

    None where it is left to the device. A formula is right to about one unit in the last place, and
    so is its scalar function; where that refuses, or a number is not finite, it is not folded.
    """
    facts = op.facts
    if facts.scalar is None or (facts.formula and not all(map(math.isfinite, values))):
        return None
    try:
        value: int | float | bool | None = facts.scalar(*values)
    except (ValueError, OverflowError):
        if not facts.formula:
            raise
        return None
    return value
