"""Functions written in the operations that every renderer has.

`expand` rewrites each operation that has a formula (`graph/operations.py`) into arithmetic,
comparisons, WHERE and operations on bits, once for LLVM IR and for OpenCL C. There are
no branches: each element takes the same instructions, so a vector of any width works. Subnormal
numbers, signed zeros, ±inf and NaN come out as IEEE 754 recommends.
tests/render/test_vector_math_exprs.py measures the errors over the whole range, and
tests/render/fit_vector_math.py derives the coefficients.

Two rules hold for every formula. A product followed by a sum may or may not be contracted to
one rounding, so what must be exact is exact either way (constants with trailing zero bits). And the
renderer must not reassociate: `(x + 1.5·2²³) − 1.5·2²³` is how a number is rounded to an integer.

float16 and bfloat16 are computed in float32 and rounded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from minigrad.dtype import DType, dtypes
from minigrad.errors import DTypeError
from minigrad.graph.formulas.exponential import tanh_plus_one
from minigrad.graph.operations import Op
from minigrad.render.arithmetic import rewriting
from minigrad.schedule.expr import Expr, Leaf, apply, walk, with_new_indices


def formula_of(op: Op | Leaf) -> Callable[..., Any] | None:
    """What `expand` rewrites an operation by; None for what renderers emit themselves."""
    return op.facts.formula if isinstance(op, Op) else None


def _rewritten(
    op: Op | Leaf, formula: Callable[..., Any], args: tuple[Expr, ...], dtype: DType
) -> Expr:
    """One operation that has a formula in primitive ones."""
    integers = isinstance(op, Op) and "f" not in op.facts.kinds
    if not (dtype is dtypes.uint32 if integers else dtype.is_float):
        expected = "uint32" if integers else "a float dtype"
        raise DTypeError(f"{op.value} of {dtype.name}: expected {expected}; cast the operand")
    narrow = dtype in (dtypes.float16, dtypes.bfloat16)
    computed = dtypes.float32 if narrow else dtype
    result: Expr = formula(*(arg.cast(computed) for arg in args))
    return result.cast(dtype)


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
    """root with every operation that has a formula rewritten (also those inside indices), and all
    that processors define otherwise (arithmetic.py).

    Raises DTypeError where a formula is not defined for its dtype. An expression that holds nothing
    of that comes back as it is.
    """
    order = walk(root)
    if not any(formula_of(expr.op) or rewriting(expr) for expr in order):
        return root
    sums = _tanh_plus_one(order)
    alone = {total.args[0] for total in sums}
    new: dict[Expr, Expr] = {}
    for expr in order:
        if expr in alone:
            continue  # no other than its sum reads it
        if expr in sums:
            (x,) = expr.args[0].args
            total: Any = tanh_plus_one(new[x])
            new[expr] = total
            continue
        args = tuple(new[arg] for arg in expr.args)
        if formula := formula_of(expr.op):
            new[expr] = _rewritten(expr.op, formula, args, expr.dtype)
        elif change := rewriting(expr):
            new[expr] = change(*args, expr.dtype)
        elif args:
            new[expr] = expr if args == expr.args else apply(expr.op, args, expr.dtype)
        else:
            new[expr] = with_new_indices(expr, new)
    return new[root]
