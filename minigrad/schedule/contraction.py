"""What makes a stage a contraction: Σ over k of left(m, k) · right(k, n), batched or not.

Only the sets of loop variables matter, not how an operand is indexed, so transposes, broadcasts,
paddings and windows of a convolution pass.

Terms may be masked: Σ over k of where(mask, left(m, k) · right(k, n), 0). What the mask excludes
takes no part, whatever it is: an infinity times 0 would.

Instead of a product, something else may be added that is computed from left(m, k) and right(k, n),
such as the square of their difference, and from what is equal for all k. Tiles of such sums in
registers pay, too.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.simplify import holds
from minigrad.graph.symbolic import Atom
from minigrad.schedule.axis import Axis, size_of
from minigrad.schedule.expr import Expr, Leaf, strides

BYTES = (dtypes.int8, dtypes.uint8)
# Rows, columns and terms from which on sums of something else than products are tiled. With fewer
# terms, storing the results would cost as much as computing them where they are read.
LEAST_TILED = 16


@dataclass(frozen=True)
class Contraction:
    """left varies along batch, m and k; right along batch, n and k; the last kept axis is in n.

    If sizes vary, there may be axes in batch along which only one of them does.
    mask: which terms take part, depending on variables of one of the factors; None: all. shared:
    the last kept axis is in the batch instead, and neighbours along it are adjacent in memory.
    added: what is added for each left and right instead of their product; None: the product.
    """

    left: Expr
    right: Expr
    batch: tuple[Axis, ...]
    m: tuple[Axis, ...]
    n: tuple[Axis, ...]
    k: tuple[Axis, ...]
    mask: Expr | None = None
    shared: bool = False
    added: Expr | None = None

    @property
    def of_bytes(self) -> bool:
        """Whether it multiplies bytes, which are added as int32 or uint32."""
        return not self.left.dtype.is_float


def terms_of(body: Expr) -> tuple[Expr | None, Expr]:
    """(mask, product) of a body where(mask, product, 0), or (None, body)."""
    if body.op is Op.WHERE and body.args[2].op is Op.CONST and body.args[2].value == 0:
        return body.args[0], body.args[1]
    return None, body


def contraction_of(
    op: Op | None, axes: tuple[Axis, ...], summed: tuple[Axis, ...], body: Expr
) -> Contraction | None:
    """A stage as a contraction, or None; see `Stage.product`."""
    if op is not Op.SUM or not axes:
        return None
    mask, product = terms_of(body)
    if product.op is Op.CAST and body.dtype.is_float:
        product = product.args[0]
    multiplied = product.op is Op.MUL and all(map(_is_operand, product.args))
    reduced = {axis.variable for axis in summed}
    operands = product.args if multiplied else _operands_of(body, reduced)
    if len(operands) != 2:
        return None
    left, right = operands
    last = axes[-1].variable
    shared = last in left.variables and last in right.variables
    of_bytes = body.dtype in (dtypes.int32, dtypes.uint32) and not shared and mask is None
    if not body.dtype.is_float and not (of_bytes and as_byte(left) and as_byte(right)):
        return None
    if last in left.variables:
        left, right = right, left
    if not reduced <= left.variables or not reduced | {last} <= right.variables:
        return None
    batch = _select(axes, left.variables & right.variables)
    m = _select(axes, left.variables - right.variables)
    n = _select(axes, right.variables - left.variables)
    if shared and not m:
        left, right, m, n = right, left, n, m
    if not m or len(batch) + len(m) + len(n) != len(axes):
        return None
    # a product for each of the images, or rows of images, however many they are
    if wide := {axis.variable for axis in n[:-1] if not isinstance(axis.extent, int)}:
        batch = _select(axes, {axis.variable for axis in batch} | wide)
        n = tuple(axis for axis in n if axis.variable not in wide)
    if len(m) > 1 and not isinstance(m[-1].extent, int):
        batch, m = _select(axes, {a.variable for a in (*batch, *m[:-1])}), m[-1:]
    if mask is not None and not any(mask.variables <= x.variables for x in (left, right)):
        return None
    if shared and (mask is not None or strides(last, left, right) != {1}):
        return None
    if shared and any(not isinstance(a.extent, int) for a in (*m[-2:], *n[-1:], batch[-1])):
        return None
    if multiplied:
        return Contraction(left, right, batch, m, n, summed, mask, shared)
    if shared or not body.dtype.is_float or min(map(size_of, (m, n, summed))) < LEAST_TILED:
        return None
    return Contraction(left, right, batch, m, n, summed, added=body)


def as_byte(operand: Expr) -> Expr | None:
    """The byte in memory that an operand converts to a wider dtype, or None."""
    while operand.op is Op.CAST and holds(operand.dtype, operand.args[0].dtype):
        operand = operand.args[0]
    return operand if operand.op is Leaf.LOAD and operand.dtype in BYTES else None


def _select(axes: tuple[Axis, ...], names: Set[Atom]) -> tuple[Axis, ...]:
    return tuple(axis for axis in axes if axis.variable in names)


def _operands_of(body: Expr, reduced: Set[Atom]) -> tuple[Expr, ...]:
    """The operands from which all that differs by term is computed; () if there are others."""
    found: dict[Expr, None] = {}
    seen, todo = {body}, [body]
    while todo:
        one = todo.pop()
        if _is_operand(one):
            found |= {} if reduced.isdisjoint(one.variables) else {one: None}
            continue
        if not one.args and one.variables:
            return ()
        new = [arg for arg in one.args if arg not in seen]
        todo += new
        seen.update(new)
    return tuple(found)


def _is_operand(expr: Expr) -> bool:
    """Whether an operand is a load, perhaps converted or masked: cheap to read repeatedly."""
    while expr.op is Op.CAST or expr.op is Op.WHERE:
        expr = expr.args[0] if expr.op is Op.CAST else expr.args[1]
    return expr.op is Leaf.LOAD
