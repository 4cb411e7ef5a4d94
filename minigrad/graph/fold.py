"""Constant folding: an elementwise operation on plain numbers, as every device would compute it.

The meaning is that of the reference runtime, which a test compares with this table. Arithmetic is
done in float64 and rounded once by `make`, which for narrower floats equals rounding directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minigrad.dtype import DType
from minigrad.graph.node import Op

_NAN, _INF = math.nan, math.inf


def _divide(x: float, y: float) -> float:
    if y != 0:
        return x / y
    if x == 0 or x != x:
        return _NAN
    return math.copysign(_INF, x) * math.copysign(1.0, y)


def _square_root(x: float) -> float:
    return math.sqrt(x) if x >= 0 else x if x != x else _NAN


def _larger(x: Any, y: Any) -> Any:
    return x if x != x or x > y or (x == y and str(y)[0] == "-") else y


def _smaller(x: Any, y: Any) -> Any:
    return x if x != x or x < y or (x == y and str(x)[0] == "-") else y


def _whole(function: Callable[[float], int]) -> Callable[[float], float]:
    """floor, ceil … as floats: the sign of zero stays, and so do infinities and NaN."""
    return lambda x: math.copysign(float(function(x)), x) if math.isfinite(x) else x


def _shift_right(x: int, count: int, dtype: DType) -> int:
    return x >> count if 0 <= count < dtype.bits else -int(x < 0)


def _shift_left(x: int, count: int, dtype: DType) -> int:
    return x << count if 0 <= count < dtype.bits else 0


_EXACT: dict[Op, Callable[..., Any]] = {
    Op.NEG: lambda x: -x, Op.SQRT: _square_root,
    Op.FLOOR: _whole(math.floor), Op.CEIL: _whole(math.ceil),
    Op.TRUNC: _whole(math.trunc), Op.ROUND: _whole(round),
    Op.ADD: lambda x, y: x + y, Op.SUB: lambda x, y: x - y, Op.MUL: lambda x, y: x * y,
    Op.DIV: _divide, Op.IDIV: lambda x, y: x // y if y else 0,
    Op.MAXIMUM: _larger, Op.MINIMUM: _smaller,
    Op.LT: lambda x, y: x < y, Op.LE: lambda x, y: x <= y,
    Op.EQ: lambda x, y: x == y, Op.NE: lambda x, y: x != y,
    Op.AND: lambda x, y: x & y, Op.OR: lambda x, y: x | y, Op.XOR: lambda x, y: x ^ y,
    Op.WHERE: lambda condition, x, y: x if condition else y,
}  # fmt: skip

# Correct to about one unit in the last place; what they refuse or cannot hold is not folded.
_ROUNDED: dict[Op, Callable[..., float]] = {
    Op.EXP: math.exp, Op.EXP2: lambda x: math.pow(2.0, x), Op.LOG: math.log, Op.LOG2: math.log2,
    Op.SIN: math.sin, Op.COS: math.cos, Op.TANH: math.tanh, Op.ERF: math.erf, Op.POW: math.pow,
    Op.ASIN: math.asin, Op.ACOS: math.acos, Op.ATAN: math.atan,
}  # fmt: skip


def fold(op: Op, dtype: DType, values: tuple[Any, ...]) -> int | float | bool | None:
    """The value of `op` on numbers that `dtype` (that of the last operand) holds.

    None where it is left to the device. The result is not yet rounded or wrapped.
    """
    if op is Op.NOT:
        return not values[0] if dtype.is_bool else ~values[0]
    if op is Op.MOD:
        return (values[0] % values[1] if values[1] else 0) if dtype.is_int else None
    if op is Op.SHL:
        return _shift_left(values[0], values[1], dtype)
    if op is Op.SHR:
        return _shift_right(values[0], values[1], dtype)
    exact = _EXACT.get(op)
    if exact is not None:
        result: int | float | bool = exact(*values)
        return result
    rounded = _ROUNDED.get(op)
    if rounded is None or not all(map(math.isfinite, values)):
        return None
    try:
        result = rounded(*values)
    except (ValueError, OverflowError):
        return None
    return result
