"""Evaluates kernel expressions with numpy, one operation at a time, to test rewrites of them.

A renderer may contract a product and a sum into one rounding. `evaluate(…, contract=True)` does so
wherever it is possible, `contract=False` nowhere: a correct formula passes both. Likewise it runs
with branches and without: the code of a rare branch is right for all arguments.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from minigrad.graph.node import Op
from minigrad.schedule.expr import Expr, Leaf, walk

Values = npt.NDArray[np.generic]

_BINARY = {
    Op.ADD: np.add, Op.SUB: np.subtract, Op.MUL: np.multiply, Op.DIV: np.divide,
    Op.LT: np.less, Op.LE: np.less_equal, Op.EQ: np.equal, Op.NE: np.not_equal,
    Op.AND: np.bitwise_and, Op.OR: np.bitwise_or, Op.XOR: np.bitwise_xor,
    Op.SHL: np.left_shift, Op.SHR: np.right_shift,
    Op.MAXIMUM: np.maximum, Op.MINIMUM: np.minimum,
}  # fmt: skip
_UNARY = {
    Op.NEG: np.negative, Op.NOT: np.invert, Op.SQRT: np.sqrt, Op.FLOOR: np.floor,
    Op.CEIL: np.ceil, Op.TRUNC: np.trunc, Op.ROUND: np.rint,
}  # fmt: skip


def _halves(x: Values) -> tuple[Values, Values]:
    """float64 x as a sum of two numbers of at most 27 significant bits."""
    high = (x.view(np.uint64) & np.uint64(0xFFFFFFFFF8000000)).view(np.float64)
    with np.errstate(all="ignore"):
        return high.astype(np.longdouble), (x - high).astype(np.longdouble)


def fused(a: Values, b: Values, c: Values) -> Values:
    """a·b + c rounded once (to within a double rounding of 2^-11 of an ulp)."""
    if a.dtype == np.float32:
        wide = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
        return wide.astype(np.float32)
    a, b, c = (np.ascontiguousarray(v) for v in np.broadcast_arrays(a, b, c))
    (ah, al), (bh, bl) = _halves(a), _halves(b)
    terms = [c.astype(np.longdouble), ah * bh, ah * bl, al * bh, al * bl]  # exact
    for _ in range(3):  # each pass leaves less in the tail (VecSum of Ogita, Rump and Oishi)
        for i in range(1, len(terms)):
            total = terms[i] + terms[i - 1]
            part = total - terms[i]
            terms[i - 1] = (terms[i] - (total - part)) + (terms[i - 1] - part)
            terms[i] = total
    exact = (terms[4] + (terms[3] + (terms[2] + (terms[1] + terms[0])))).astype(np.float64)
    plain = a * b + c
    return np.where(np.isfinite(exact) & np.isfinite(plain), exact, plain)


def _sum(expr: Expr, values: Mapping[Expr, Values], contract: bool) -> Values:
    left, right = expr.args
    if contract and expr.dtype.is_float:
        negate = -1.0 if expr.op is Op.SUB else 1.0
        if left.op is Op.MUL:
            a, b = (values[arg] for arg in left.args)
            return fused(a, b, (values[right] * a.dtype.type(negate)))
        if right.op is Op.MUL:
            a, b = (values[arg] for arg in right.args)
            return fused(a * a.dtype.type(negate), b, values[left])
    result: Values = _BINARY[expr.op](values[left], values[right])  # type: ignore[index]
    return result


def evaluate(
    root: Expr, inputs: Mapping[str, Values], contract: bool = False, branches: bool = True
) -> Values:
    """The value of root; LOADs read whole arrays of `inputs`, by array name."""
    size = max((v.shape for v in inputs.values()), default=(1,))
    values: dict[Expr, Values] = {}
    with np.errstate(all="ignore"):
        for expr in walk(root):
            args = [values[arg] for arg in expr.args]
            dtype = np.dtype(expr.dtype.name)
            if expr.op is Op.CONST:
                made = np.full(size, expr.value, dtype)
            elif expr.op is Leaf.LOAD:
                made = inputs[expr.array.name]
            elif expr.op in (Op.ADD, Op.SUB):
                made = _sum(expr, values, contract)
            elif expr.op in _BINARY:
                made = _BINARY[expr.op](*args)  # type: ignore[index]
            elif expr.op in _UNARY:
                made = _UNARY[expr.op](*args)  # type: ignore[index]
            elif expr.op is Op.WHERE:
                made = np.where(*args)
            elif expr.op is Leaf.RARELY:
                made = np.where(*args) if branches else args[1]
            elif expr.op is Op.CAST:
                made = args[0].astype(dtype)
            elif expr.op is Op.BITCAST:
                made = np.ascontiguousarray(args[0]).view(dtype)
            elif expr.op is Leaf.FMA:
                made = fused(*args)
            else:
                raise NotImplementedError(f"the interpreter has no {expr.op}")
            assert made.dtype == dtype, f"{expr.op}: {made.dtype} instead of {dtype}"
            values[expr] = made
    return values[root]
