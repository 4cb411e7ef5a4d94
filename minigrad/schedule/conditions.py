"""Masks as conditions: linear expressions of loop variables and loaded numbers, which must be ≥ 0.

The expressions use integers without bounds. So a mask is no condition if one of its own expressions
could leave the range of its dtype, which wraps; nor if a kernel's 64-bit index could not hold the
difference, as with an arbitrary loaded int64.
"""

from __future__ import annotations

from minigrad.graph.operations import Op
from minigrad.graph.substitution import coefficient
from minigrad.graph.symbolic import Affine, Atom, Integer, high, low
from minigrad.schedule import expr
from minigrad.schedule.expr import Expr, Leaf

BEYOND = 1 << 62  # half of the range of a 64-bit index: bounds made of conditions need the rest


def conditions_of(e: Expr, only: bool = False) -> tuple[Affine, ...]:
    """Sums that are all ≥ 0 where the boolean `e` holds; () if none are known.

    only: they are so nowhere else; () if it has other tests.
    """
    if e.op is Leaf.CONDITION and isinstance(e.index, Affine):
        return (e.index,)
    if e.op is Op.AND:
        left, right = (conditions_of(arg, only) for arg in e.args)
        return left + right if not only or (left and right) else ()
    negated = e.op is Op.NOT
    test = e.args[0] if negated else e
    if test.op in (Op.LE, Op.LT):
        less, more = (_as_index(arg) for arg in (reversed(test.args) if negated else test.args))
        if less is not None and more is not None:
            difference = more - less - int((test.op is Op.LT) != negated)
            held = low(difference) > -BEYOND and high(difference) < BEYOND
            return (difference,) if held and isinstance(difference, Affine) else ()
    return ()


End = tuple[int, Integer]  # (1, the first index), or (−1, the one after the last)


def end_of(condition: Affine, x: Atom) -> End | None:
    """The end of the range of x in which a condition is ≥ 0; None if it is no such condition."""
    slope = coefficient(condition, x)
    if slope not in (1, -1):
        return None
    rest = condition - x.index * slope
    return (1, -rest) if slope == 1 else (-1, rest + 1)


def _as_index(e: Expr) -> Integer | None:
    """An integer expression as a sum of loop variables and loaded values, if it is one."""
    if not e.dtype.is_int:
        return None
    if e.op in (Leaf.LOAD, Op.CONST, Leaf.INDEX):
        return expr.value_of(e)
    if e.op in (Op.ADD, Op.SUB):
        x, y = _as_index(e.args[0]), _as_index(e.args[1])
        if x is not None and y is not None:
            total = x + y if e.op is Op.ADD else x - y
            fits = e.dtype.minimum <= low(total) and high(total) <= e.dtype.maximum
            return total if fits else None
    return None
