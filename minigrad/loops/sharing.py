"""Less work for the stages of a block: what several compute is computed once, rows scaled late.

The functions take and give stages with fixed rows, each with whether it is a product.
"""

from __future__ import annotations

from dataclasses import replace

from minigrad.graph.node import Op
from minigrad.loops.steps import column
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.stage import Stage, index_of

Stages = list[tuple[Stage, bool]]


def share_beginnings(stages: Stages, stored: frozenset[Array]) -> Stages:
    """What all readers of a product do with it first becomes a stage (scale and mask of scores)."""
    result = list(stages)
    made = {stage.array for stage, _ in stages}
    for product, is_product in stages:
        if not is_product or product.array in stored or len(product.axes) != 1:
            continue
        readers = [n for n, (stage, _) in enumerate(result) if _reads(stage, product.array)]
        common: set[Expr] | None = None
        for n in readers:
            found = _beginnings(result[n][0], product, made)
            common = found if common is None else common & found
        if len(readers) < 2 or not common:
            continue
        best = max(common, key=lambda e: (expr.operations(e), repr(e)))
        array = Array(f"{product.array.name}_shared", best.dtype, product.size)
        for n in readers:
            stage, kind = result[n]
            own = column(stage)
            assert own is not None
            at = {product.axes[0].variable: index_of(own.variable)}
            old = expr.substitute_in(best, at)
            new = expr.substitute_in(expr.load(array, product.position), at)
            result[n] = replace(stage, body=_replaced(stage.body, old, new)), kind
        shared = replace(product, array=array, op=None, reduced=(), body=best)
        place = next(n for n, (stage, _) in enumerate(result) if stage.array == product.array)
        result.insert(place + 1, (shared, False))
    return result


def _beginnings(stage: Stage, product: Stage, made: set[Array]) -> set[Expr]:
    """Parts of a stage, in terms of the product's column, that need only the product's element.

    They may read what was there before the kernel, but nothing else of what is `made` in it.
    """
    own = column(stage)
    if own is None or own.extent != product.axes[0].extent:
        return set()
    values = {own.variable: index_of(product.axes[0].variable)}
    body = expr.substitute_in(stage.body, values)
    pure: dict[Expr, bool] = {}  # whether a part reads the product (or else no memory at all)
    for e in expr.walk(body):
        if e.op is Leaf.LOAD:
            array, position, guard = e.payload
            if array == product.array and (position != product.position or guard):
                return set()
            if array == product.array or array not in made:
                pure[e] = array == product.array
        elif all(arg in pure for arg in e.args) and not (
            e.op in (Leaf.INDEX, Leaf.CONDITION) and expr.values_in(e.payload)
        ):
            pure[e] = any(pure[arg] for arg in e.args)
    return {e for e, reads in pure.items() if reads and e.op is not Leaf.LOAD}


def scale_behind(stages: Stages, stored: frozenset[Array]) -> Stages:
    """Σ (x·y)·z with one y for the row becomes (Σ x·z)·y (the sum of the powers in a softmax)."""
    result = list(stages)
    for product, is_product in stages:
        scaled = _scaled_operand(product, result, stored) if is_product else None
        if scaled is None or len(product.axes) != 1:
            continue
        x, y = scaled.body.args
        array = Array(f"{product.array.name}_raw", product.array.dtype, product.size)
        place = next(n for n, (stage, _) in enumerate(result) if stage is product)
        body = expr.apply(Op.MUL, (expr.load(array, product.position), y), product.array.dtype)
        raw = replace(product, array=array)
        behind = replace(product, op=None, reduced=(), body=body)
        at = next(n for n, (stage, _) in enumerate(result) if stage is scaled)
        if x.op is Leaf.LOAD and x.payload[1] == scaled.position and not x.payload[2]:
            source = x.payload[0]
            raw = replace(raw, body=_renamed(raw.body, scaled.array, source))
            result[place : place + 1] = [(raw, True), (behind, False)]
            del result[at]
        else:
            result[place : place + 1] = [(raw, True), (behind, False)]
            result[at] = replace(scaled, body=x), False
    return result


def _scaled_operand(product: Stage, stages: Stages, stored: frozenset[Array]) -> Stage | None:
    """The stage x·y that only this product reads, y being one number for the row."""
    body = product.body
    if body.op is not Op.MUL or body.dtype is not product.array.dtype:
        return None
    for factor in body.args:
        if factor.op is not Leaf.LOAD or factor.payload[2]:
            continue
        array = factor.payload[0]
        stage = next((s for s, kind in stages if s.array == array and not kind), None)
        if stage is None or array in stored or stage.body.op is not Op.MUL:
            continue
        readers = [other for other, _ in stages if _reads(other, array)]
        inner = {axis.variable for axis in stage.axes}
        if readers == [product] and inner.isdisjoint(stage.body.args[1].variables):
            if array.dtype is body.dtype and not inner.isdisjoint(stage.body.args[0].variables):
                return stage
    return None


def _reads(stage: Stage, array: Array) -> bool:
    return any(load.payload[0] == array for load in expr.loads(stage.body))


def _renamed(body: Expr, old: Array, new: Array) -> Expr:
    def change(e: Expr) -> Expr | None:
        if e.op is Leaf.LOAD and e.payload[0] == old:
            return expr.load(new, *e.payload[1:])
        return None

    return expr.rebuild(body, change)


def _replaced(root: Expr, old: Expr, new: Expr) -> Expr:
    """root with one of its parts replaced."""
    done: dict[Expr, Expr] = {}
    for e in expr.walk(root):
        if e is old:
            done[e] = new
        elif e.args and any(done[arg] is not arg for arg in e.args):
            done[e] = expr.apply(e.op, tuple(done[arg] for arg in e.args), e.dtype)
        else:
            done[e] = e
    return done[root]
