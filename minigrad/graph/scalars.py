"""Elementwise operations on plain numbers, as every device computes them.

A result is not yet rounded to a dtype, nor wrapped. Constants are folded with these functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

_NAN, _INF = math.nan, math.inf


def divide(x: float, y: float) -> float:
    """x / y, also by zero."""
    if y != 0:
        return x / y
    if x == 0 or x != x:
        return _NAN
    return math.copysign(_INF, x) * math.copysign(1.0, y)


def floor_divide(x: int, y: int) -> int:
    """x // y, rounded down; 0 if y is 0."""
    return x // y if y else 0


def remainder(x: Any, y: Any) -> int | None:
    """x % y, with the sign of y; 0 if y is 0. None for floats, which devices compute."""
    if isinstance(x, float):
        return None
    return x % y if y else 0


def square_root(x: float) -> float:
    """√x, NaN below 0."""
    return math.sqrt(x) if x >= 0 else x if x != x else _NAN


def larger(x: Any, y: Any) -> Any:
    """The maximum; NaN wins, and of two zeros 0 over −0."""
    return x if x != x or x > y or (x == y and str(y)[0] == "-") else y


def smaller(x: Any, y: Any) -> Any:
    """The minimum; NaN wins, and of two zeros −0 over 0."""
    return x if x != x or x < y or (x == y and str(x)[0] == "-") else y


def whole(function: Callable[[float], int]) -> Callable[[float], float]:
    """floor, ceil … as floats: the sign of zero stays, and so do infinities and NaN."""
    return lambda x: math.copysign(float(function(x)), x) if math.isfinite(x) else x


def complement(x: int) -> int:
    """Logical not of a bool, bitwise not of an int."""
    return not x if isinstance(x, bool) else ~x


def shift_left(x: int, count: int) -> int:
    """0 if the count is negative; a count of the width or more leaves nothing after wrapping."""
    return x << count if 0 <= count < 64 else 0


def shift_right(x: int, count: int) -> int:
    """0 or the sign if the count is negative or reaches the width."""
    return x >> min(count, 64) if count >= 0 else -int(x < 0)
