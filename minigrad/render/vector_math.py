"""Transcendental functions written in the operations that every renderer has.

`expand` rewrites EXP, EXP2, LOG, LOG2, SIN, COS, ASIN, ACOS, ATAN, TANH, ERF and POW into
arithmetic, comparisons, WHERE and operations on bits, once for LLVM IR and for OpenCL C. There are
no branches: each element takes the same instructions, so a vector of any width works. Subnormal
numbers, signed zeros, ±inf and NaN come out as IEEE 754 recommends.
tests/render/test_vector_math_exprs.py measures the errors over the whole range, and
tests/render/fit_vector_math.py derives the coefficients.

Two rules hold for every formula here. A product followed by a sum may or may not be contracted to
one rounding, so what must be exact is exact either way (constants with trailing zero bits). And the
renderer must not reassociate: `(x + 1.5·2²³) − 1.5·2²³` is how a number is rounded to an integer.

float16 and bfloat16 are computed in float32 and rounded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from minigrad.dtype import DType, dtypes
from minigrad.errors import DTypeError
from minigrad.graph.node import Op
from minigrad.render.exponential import erf, exp, exp2, log, log2, tanh, tanh_plus_one
from minigrad.render.inverse_circular import acos, asin, atan
from minigrad.render.power import power
from minigrad.render.trigonometry import cosine, sine
from minigrad.render.value import Value
from minigrad.schedule.expr import Expr, Leaf, apply, walk, with_new_indices

_FUNCTIONS: dict[Op | Leaf, Callable[..., Value]] = {
    Op.EXP: exp, Op.EXP2: exp2, Op.LOG: log, Op.LOG2: log2, Op.SIN: sine, Op.COS: cosine,
    Op.TANH: tanh, Op.ERF: erf, Op.POW: power, Op.ASIN: asin, Op.ACOS: acos, Op.ATAN: atan,
}  # fmt: skip


def is_primitive(op: Op | Leaf) -> bool:
    """True for what renderers emit themselves, False for what `expand` rewrites."""
    return op not in _FUNCTIONS


def _function(op: Op, args: tuple[Expr, ...], dtype: DType) -> Expr:
    """One transcendental operation in primitive ones."""
    if dtype not in (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64):
        raise DTypeError(f"{op.value} of {dtype.name}: expected a float dtype; cast the operand")
    computed = dtypes.float64 if dtype is dtypes.float64 else dtypes.float32
    operands = (Value(arg).cast(computed) for arg in args)
    return _FUNCTIONS[op](*operands).cast(dtype).expr


def _tanh_plus_one(order: list[Expr]) -> frozenset[Expr]:
    """The sums tanh x + 1 of GELUs in float32, where nothing else needs the tanh."""
    readers = Counter(arg for expr in order for arg in expr.args)
    return frozenset(
        expr
        for expr in order
        if expr.op is Op.ADD and expr.dtype is dtypes.float32
        and expr.args[0].op is Op.TANH and readers[expr.args[0]] == 1
        and expr.args[1].op is Op.CONST and expr.args[1].value == 1.0
    )  # fmt: skip


def expand(root: Expr) -> Expr:
    """root with every transcendental operation rewritten (also those inside indices).

    Raises DTypeError where one of them has a dtype that is not a float. An expression that holds
    none comes back as it is.
    """
    order = walk(root)
    if all(is_primitive(expr.op) for expr in order):
        return root
    sums = _tanh_plus_one(order)
    alone = {total.args[0] for total in sums}
    new: dict[Expr, Expr] = {}
    for expr in order:
        if expr in alone:
            continue  # no other than its sum reads it
        if expr in sums:
            (x,) = expr.args[0].args
            new[expr] = tanh_plus_one(Value(new[x])).expr
            continue
        args = tuple(new[arg] for arg in expr.args)
        if not is_primitive(expr.op):
            assert isinstance(expr.op, Op)
            new[expr] = _function(expr.op, args, expr.dtype)
        elif args:
            new[expr] = expr if args == expr.args else apply(expr.op, args, expr.dtype)
        else:
            new[expr] = with_new_indices(expr, new)
    return new[root]
