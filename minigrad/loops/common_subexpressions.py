"""Less work for the stages of a block: common subexpressions, and products tried by a shortcut.

The functions take and give stages with fixed rows, each with whether it is a product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minigrad.graph.node import Op
from minigrad.loops.block_plan import column
from minigrad.loops.mask_bounds import outside, places_in
from minigrad.schedule import expr
from minigrad.schedule.contraction import terms_of
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.stage import Stage

Stages = list[tuple[Stage, bool]]


def share_common(stages: Stages, stored: frozenset[Array]) -> Stages:
    """What all readers of a product do with it first becomes a stage (scale and mask of scores)."""
    result = list(stages)
    made = {stage.array for stage, _ in stages}
    for product, is_product in stages:
        if not is_product or product.array in stored or len(product.axes) != 1:
            continue
        readers = [n for n, (stage, _) in enumerate(result) if _reads(stage, product.array)]
        common: set[Expr] | None = None
        for n in readers:
            found = _common_parts(result[n][0], product, made)
            common = found if common is None else common & found
        if len(readers) < 2 or not common:
            continue
        best = max(common, key=lambda e: (expr.operations(e), repr(e)))
        array = Array(f"{product.array.name}_shared", best.dtype, product.size)
        for n in readers:
            stage, kind = result[n]
            own = column(stage)
            assert own is not None
            at = {product.axes[0].variable: own.index}
            old = expr.substitute_in(best, at)
            new = expr.substitute_in(expr.load(array, product.position), at)
            result[n] = replace(stage, body=expr.replace_in(stage.body, {old: new})), kind
        shared = replace(product, array=array, op=None, reduced=(), body=best)
        place = next(n for n, (stage, _) in enumerate(result) if stage.array == product.array)
        result.insert(place + 1, (shared, False))
    return result


def _common_parts(stage: Stage, product: Stage, made: set[Array]) -> set[Expr]:
    """Parts of a stage, in terms of the product's column, that need only the product's element.

    They may read what was there before the kernel, but nothing else of what is `made` in it.
    """
    own = column(stage)
    if own is None or own.extent != product.axes[0].extent:
        return set()
    values = {own.variable: product.axes[0].index}
    body = expr.substitute_in(stage.body, values)
    pure: dict[Expr, bool] = {}  # whether a part reads the product (or else no memory at all)
    for e in expr.walk(body):
        if e.op is Leaf.LOAD:
            array, position, guard = e.array, e.index, e.guard
            if array == product.array and (position != product.position or guard):
                return set()
            if array == product.array or array not in made:
                pure[e] = array == product.array
        elif all(arg in pure for arg in e.args) and not (
            e.op in (Leaf.INDEX, Leaf.CONDITION) and expr.values_in(e.index)
        ):
            pure[e] = any(pure[arg] for arg in e.args)
    return {e for e, reads in pure.items() if reads and e.op is not Leaf.LOAD}


@dataclass(frozen=True)
class Speculation:
    """A shortcut to a product: left · right, summed, times `scale`; taken back where it fails.

    That is the product itself wherever the sum is finite and |scale| ≤ 1. Then no term of it was
    infinite or NaN, so those that its mask excludes, whose left is 0 or NaN, added 0; and nothing
    overflowed or vanished that is not so in the product. Elsewhere the product is computed as it
    is written.
    """

    product: Expr
    scale: Expr | None = None


def speculative_products(
    stages: Stages, stored: frozenset[Array]
) -> tuple[Stages, dict[Array, Speculation]]:
    """Which products have a shortcut, and the stages that they then need.

    Σ (x·y)·z with one y for the row, and |y| ≤ 1 in all likelihood, is tried as (Σ x·z)·y: so a
    softmax is divided by its sum. Masked terms are tried without the mask.
    """
    result = list(stages)
    speculation: dict[Array, Speculation] = {}
    for product, is_product in stages:
        if not is_product:
            continue
        mask, terms = terms_of(product.body)
        scaled = _scaled_operand(product, terms, result, stored)
        scale = None
        if scaled is not None:
            product, terms, scale = _with_scale(product, mask, terms, scaled, result)
        if mask is not None:
            terms = _without_mask(mask, terms, {stage.array: stage for stage, _ in result})
        if mask is not None or scale is not None:
            speculation[product.array] = Speculation(terms, scale)
    return result, speculation


def _scaled_operand(
    product: Stage, terms: Expr, stages: Stages, stored: frozenset[Array]
) -> tuple[Expr, Stage] | None:
    """The factor that is x·y, which only this product reads, y being one number for the row."""
    if terms.op is not Op.MUL or terms.dtype is not product.array.dtype or len(product.axes) != 1:
        return None
    for factor in terms.args:
        if factor.op is not Leaf.LOAD or factor.guard:
            continue
        array = factor.array
        stage = next((s for s, kind in stages if s.array == array and not kind), None)
        if stage is None or array in stored or len(stage.axes) != 1:
            continue
        readers = [other.array for other, _ in stages if _reads(other, array)]
        if readers != [product.array] or stage.array.dtype is not terms.dtype:
            continue
        if stage.body.op not in (Op.MUL, Op.DIV) or not _is_small(stage.body, stages):
            continue
        (axis,) = stage.axes
        x, y = (axis.variable in arg.variables for arg in stage.body.args)
        if x and not y:
            return factor, stage
    return None


def _is_small(scaled: Expr, stages: Stages) -> bool:
    """Whether what a stage is multiplied with is likely to be at most 1: a constant, or 1/Σ."""
    y = scaled.args[1]
    if y.op is Op.CONST:
        return bool(abs(y.value) <= 1 and y.value and scaled.op is Op.MUL)
    if scaled.op is Op.MUL and y.op is Leaf.LOAD:
        made = next((s.body for s, _ in stages if s.array == y.array and s.op is None), None)
        y = made or y
    if scaled.op is Op.MUL:
        if y.op is not Op.DIV or y.args[0].op is not Op.CONST or y.args[0].value != 1:
            return False
        y = y.args[1]
    return any(s.op is Op.SUM and not kind for s, kind in stages if _is_load(y, s.array))


def _is_load(e: Expr, array: Array) -> bool:
    return e.op is Leaf.LOAD and e.array == array


def _with_scale(
    product: Stage, mask: Expr | None, terms: Expr, found: tuple[Expr, Stage], result: Stages
) -> tuple[Stage, Expr, Expr]:
    """The product with its scaled factor written out; its terms without the scale; the scale."""
    factor, scaled = found
    (place,) = places_in(factor, scaled)
    whole = expr.substitute_in(scaled.body, {scaled.axes[0].variable: place})
    x, y = whole.args
    at = next(n for n, (stage, _) in enumerate(result) if stage is scaled)
    own = scaled.body.args[0]
    if own.op is Leaf.LOAD and own.index == scaled.position and not own.guard:
        del result[at]
    else:
        result[at] = replace(scaled, body=own), False
        x = factor
        whole = expr.apply(scaled.body.op, (x, y), whole.dtype)
    written = expr.rebuild(terms, {factor: whole}.get)
    at = next(n for n, (stage, _) in enumerate(result) if stage.array == product.array)
    product = replace(product, body=written if mask is None else mask.where(written, 0.0))
    result[at] = product, True
    scale = 1.0 / y if scaled.body.op is Op.DIV else y
    return product, expr.rebuild(terms, {factor: x}.get), scale


def _without_mask(mask: Expr, terms: Expr, makers: dict[Array, Stage]) -> Expr:
    """The terms, of which those that the mask excludes are 0 or NaN."""
    operands = terms.args[0] if terms.op is Op.CAST else terms
    for one in operands.args:
        if outside(one, mask, makers) == 0:
            return terms
    one = next(x for x in operands.args if mask.variables <= x.variables)
    masked = mask.where(one, 0.0)
    x, y = (masked if x is one else x for x in operands.args)
    return (x * y).cast(terms.dtype)


def _reads(stage: Stage, array: Array) -> bool:
    return any(load.array == array for load in expr.loads(stage.body))
