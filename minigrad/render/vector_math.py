"""Functions written in the operations that every renderer has.

`expand` rewrites each operation that has a formula (`graph/operations.py`) into arithmetic,
comparisons, WHERE and operations on bits, once for LLVM IR and for OpenCL C. Each element takes the
same instructions, so a vector of any width works; what is seldom needed (`Leaf.RARELY`) is a branch
in LLVM IR, which a vector takes if one of its lanes does. Subnormal numbers, signed zeros, ±inf and
NaN come out as IEEE 754 recommends.
tests/render/test_vector_math_exprs.py measures the errors over the whole range, and
tests/render/fit_vector_math.py derives the coefficients.

Two rules hold for every formula. A product followed by a sum may or may not be contracted to
one rounding, so what must be exact is exact either way (constants with trailing zero bits). And the
renderer must not reassociate: `(x + 1.5·2²³) − 1.5·2²³` is how a number is rounded to an integer.

float16 and bfloat16 are computed in float32 and rounded once.

Division, remainders, shifts and some casts are rewritten, too: processors' instructions and C's
operators leave some cases undefined, or define them otherwise than the reference. The primitives
that they have are `Leaf.QUOTIENT`, `REMAINDER` and `WHOLE`, and shifts by counts that are visibly
below the width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from minigrad.dtype import DType, dtypes
from minigrad.errors import DTypeError
from minigrad.graph.formulas.exponential import tanh_plus_one
from minigrad.graph.operations import Op
from minigrad.schedule.expr import Expr, Leaf, apply, walk, with_operands


def _by_formula(*args: Expr, dtype: DType, op: Op) -> Expr:
    """An operation that has a formula, in primitive operations."""
    integers = "f" not in op.facts.kinds
    if not (dtype is dtypes.uint32 if integers else dtype.is_float):
        expected = "uint32" if integers else "a float dtype"
        raise DTypeError(f"{op.value}: expected {expected}, got {dtype.name}; cast the operand")
    computed = dtypes.float32 if dtype in (dtypes.float16, dtypes.bfloat16) else dtype
    formula: Any = op.facts.formula
    result: Expr = formula(*(arg.cast(computed) for arg in args))
    return result.cast(dtype)


def _tanh_plus_one(order: list[Expr]) -> frozenset[Expr]:
    """The sums tanh x + 1 of GELUs in float32, if nothing else needs the tanh."""
    readers = Counter(arg for expr in order for arg in expr.args if arg.op is Op.TANH)
    return frozenset(
        expr
        for expr in order
        if expr.op is Op.ADD and expr.dtype is dtypes.float32
        and expr.args[0].op is Op.TANH and readers[expr.args[0]] == 1
        and expr.args[1].op is Op.CONST and expr.args[1].value == 1.0
    )  # fmt: skip


def expand(root: Expr) -> Expr:
    """root with operations rewritten that have a formula, or that processors define otherwise.

    Also those inside indices. Raises DTypeError if a formula is not defined for its dtype. An
    expression without such operations is returned as it is.
    """
    order = walk(root)
    if not any(map(rewriting, order)):
        return root
    sums = _tanh_plus_one(order)
    alone = {total.args[0] for total in sums}
    new: dict[Expr, Expr] = {}
    for expr in order:
        if expr in alone:
            continue  # only its sum reads it
        if expr in sums:
            (x,) = expr.args[0].args
            total: Any = tanh_plus_one(new[x])
            new[expr] = total
            continue
        if change := rewriting(expr):
            new[expr] = change(*(new[arg] for arg in expr.args), dtype=expr.dtype)
        else:
            new[expr] = with_operands(expr, new)
    return new[root]


# ---- what processors leave undefined ----


def rewriting(e: Expr) -> Callable[..., Expr] | None:
    """The function that rewrites an operation, of its arguments and dtype; None: no need to."""
    if not e.args:
        return None
    if isinstance(e.op, Op) and e.op.facts.formula:
        return partial(_by_formula, op=e.op)
    from_float = e.args[0].dtype.is_float
    if e.op is Op.CAST and e.dtype is dtypes.float16 and e.args[0].dtype is dtypes.float64:
        return _half_of_double
    if e.op is Op.CAST:
        return _whole if from_float and e.dtype.is_int else None
    if e.op is Op.IDIV:
        return _quotient
    if e.op is Op.MOD:
        return _float_remainder if from_float else _remainder
    if e.op in (Op.SHL, Op.SHR) and not _has_short_count(e):
        return partial(_shifted, op=e.op)
    return None


def _has_short_count(e: Expr) -> bool:
    """Whether the count of a shift is visibly below the width."""
    count = e.args[1].args[1] if e.args[1].op is Op.AND else e.args[1]
    return count.op is Op.CONST and 0 <= count.value < e.dtype.bits


def _divided(x: Expr, y: Expr) -> tuple[Expr, Expr, Expr, Expr, Expr]:
    """Whether y is 0, or is 0 or −1; y, or 1 instead; quotient and rest, rounded to zero."""
    by_zero = y.equals(0)
    special = by_zero | y.equals(-1) if y.dtype.kind == "i" else by_zero
    if y.known() not in (None, 0, -1):
        by_zero = special = x.constant(False, dtypes.bool)
    safe = special.where(1, y)
    quotient = apply(Leaf.QUOTIENT, (x, safe), x.dtype)
    return by_zero, special, safe, quotient, x - quotient * safe


def _quotient(x: Expr, y: Expr, dtype: DType) -> Expr:
    """Floor division; x // 0 is 0, and the least number // −1 is itself."""
    by_zero, special, safe, quotient, rest = _divided(x, y)
    if dtype.kind == "i":
        below = rest.differs(0) & (rest ^ safe).less(0)
        quotient = special.where(-x, below.where(quotient - 1, quotient))
    return by_zero.where(0, quotient)


def _remainder(x: Expr, y: Expr, dtype: DType) -> Expr:
    """The remainder, with the sign of y; x % 0 is 0."""
    _, special, safe, _, rest = _divided(x, y)
    if dtype.kind == "i":
        rest = (rest.differs(0) & (rest ^ safe).less(0)).where(rest + safe, rest)
    return special.where(0, rest)


def _float_remainder(x: Expr, y: Expr, dtype: DType) -> Expr:
    """x − y·floor(x / y), exact: C's remainder, moved to the sign of y, which a zero has, too."""
    wide = dtypes.float64 if dtype is dtypes.float64 else dtypes.float32
    bits = dtypes.uint64 if wide is dtypes.float64 else dtypes.uint32
    x, y = x.cast(wide), y.cast(wide)
    rest = apply(Leaf.REMAINDER, (x, y), wide)
    rest = rest if wide is dtypes.float64 else _near_remainder(x, y, rest)
    moved = (rest.less(0.0) ^ y.less(0.0)).where(rest + y, rest)
    zero = (y.bits_as(bits) & (1 << (bits.bits - 1))).bits_as(wide)
    return rest.differs(0.0).where(moved, zero).cast(dtype)


def _near_remainder(x: Expr, y: Expr, far: Expr) -> Expr:
    """C's fmodf, exact: |x| − trunc(|x| / |y|)·|y| in float64, with the sign of x; or `far`.

    A quotient below 2²⁸ times 24 bits fits in 53. Rounding may make the quotient one too large, and
    the rest negative. `far`, which C's library computes one element at a time, in 20 times as long,
    is for larger quotients, infinity and NaN.
    """
    (size, sign), (divisor, _) = x.split_sign(), y.split_sign()
    size, divisor = (one.cast(dtypes.float64) for one in (size, divisor))
    quotient = size / divisor
    rest = (-quotient.operation("trunc")).fused(divisor, size)
    rest = rest.less(0.0).where(rest + divisor, rest).cast(dtypes.float32)
    near = quotient.less(2.0**28) & divisor.less(math.inf)
    return (~near).rarely(far, rest.with_sign(sign))


def _shifted(x: Expr, count: Expr, dtype: DType, op: Op) -> Expr:
    """A shift; a count that is negative or reaches the width gives 0, or a signed x's sign."""
    fits = count.bits_as(dtype.unsigned).less(dtype.bits)
    beyond = x.less(0).where(x.constant(-1), 0) if op is Op.SHR and dtype.kind == "i" else 0
    return fits.where(apply(op, (x, count & (dtype.bits - 1)), dtype), beyond)


def _whole(x: Expr, dtype: DType) -> Expr:
    """A float truncated and saturated to an integer; NaN gives 0."""
    x = x if x.dtype is dtypes.float64 else x.cast(dtypes.float32)
    if dtype.bits < (53 if x.dtype is dtypes.float64 else 24):  # the bounds are floats
        within = x.at_least(float(dtype.minimum)).at_most(float(dtype.maximum))
        return apply(Leaf.WHOLE, (x.equals(x).where(within, 0.0),), dtype)
    low, not_low = x.less(float(dtype.minimum)), x.constant(dtype.minimum).operation("le", x)
    high = x.constant(float(int(dtype.maximum) + 1)).operation("le", x)
    inside = (~not_low | high).where(0.0, x)
    whole = apply(Leaf.WHOLE, (inside,), dtype)
    return high.where(dtype.maximum, low.where(dtype.minimum, whole))


def _half_of_double(x: Expr, dtype: DType) -> Expr:
    """x rounded once: to float32 first, to odd if that is inexact, which is as good as from x.

    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008.)
    """
    near = x.cast(dtypes.float32)
    wide, bits = near.cast(dtypes.float64), near.bits_as(dtypes.uint32)
    above = x.less(0.0).where(wide.less(x), x.less(wide))
    exact = wide.equals(x) | x.differs(x)
    odd = exact.where(bits, above.where(bits - 1, bits) | 1)
    return odd.bits_as(dtypes.float32).cast(dtype)
