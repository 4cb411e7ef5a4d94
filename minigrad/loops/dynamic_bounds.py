"""Contractions of which only a part is needed: loop bounds that are loaded when the kernel runs.

What is needed is said by masks that compare an index with a loaded number:

    Σ over k of where(inside, left(m, k), 0) · where(inside, right(k, n), 0)
        with inside = (first[e] ≤ k and k < stop[e]), for each e a segment of k: the loop over k
        runs from first[e] to stop[e]. Both are masked, or an infinity of the other one counts: 0·∞
    where(t < count[b], Σ over k of left(b, t, k) · right(b, k, n), 0)
        for each b some of its rows: a tile without any of them has an empty loop over k

So work follows the data, as in a batch whose parts differ in length, while the meaning stays that
of the masks. Loaded numbers may be anything: they are clamped to what the loops could do anyway.
"""

from __future__ import annotations

from dataclasses import replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, high, low
from minigrad.loops.product import Problem
from minigrad.schedule import expr
from minigrad.schedule.conditions import conditions_of
from minigrad.schedule.contraction import terms_of
from minigrad.schedule.expr import Expr


def with_dynamic_bounds(problem: Problem) -> Problem:
    """The problem with its masks of loaded numbers as bounds of loops."""
    parts = problem.parts
    fixed = frozenset(axis.variable for axis in (*parts.batch, *parts.m[:-1], *parts.n[:-1]))
    return _needed_rows(_segment(problem, fixed), fixed)


def _segment(problem: Problem, fixed: frozenset[Atom]) -> Problem:
    """Masks of the operands that bound k, taken away; k then counts from the segment's start."""
    parts = problem.parts
    axis = parts.k[0]
    if len(parts.k) > 1 or not isinstance(axis.extent, int):
        return problem
    operands, firsts, stops = (parts.left, parts.right), list[Integer](), list[Integer]()
    while (found := _common_mask(*operands)) is not None:
        inside, conditions = found
        rests = [_rest(c, axis.variable, fixed) for c in conditions]
        if not conditions or None in rests:
            break
        for condition, rest in zip(conditions, rests, strict=True):
            assert rest is not None
            upper = coefficient(condition, axis.variable) == -1
            (stops if upper else firsts).append(rest + 1 if upper else -rest)
        operands = inside
    if len(firsts) > 1 or not (firsts or stops):
        return problem
    first = _clamped(firsts[0], axis.extent) if firsts else 0
    moved = {axis.variable: first + axis.index}
    left, right = (expr.substitute_in(operand, moved) for operand in operands)
    ends = tuple(_clamped(stop, axis.extent) - first for stop in stops or [axis.extent])
    # both are masked: nothing outside counts, so nothing is computed again as it is meant
    parts = replace(parts, left=left, right=right)
    return replace(problem, parts=parts, ends=ends, terms=None)


def _common_mask(left: Expr, right: Expr) -> tuple[tuple[Expr, Expr], tuple[Affine, ...]] | None:
    """((x, y), conditions) of where(conditions, x, 0) and where(conditions, y, 0)."""
    (test, x), (same, y) = terms_of(left), terms_of(right)
    if test is None or same is None or conditions_of(test) != conditions_of(same):
        return None
    if any(_tests(mask) != len(conditions_of(mask)) for mask in (test, same)):
        return None  # they say more than the conditions that were found
    return (x, y), conditions_of(test)


def _tests(mask: Expr) -> int:
    """How many tests a mask is made of, all of which must hold."""
    return sum(map(_tests, mask.args)) if mask.op is Op.AND else 1


def _rest(condition: Affine, variable: Atom, fixed: frozenset[Atom]) -> Integer | None:
    """What a condition ±variable + rest ≥ 0 compares with, if that is loaded and fixed."""
    slope = coefficient(condition, variable)
    if slope not in (1, -1):
        return None
    rest = condition - variable.index * slope
    return rest if expr.values_in(rest) and variables(rest) <= fixed else None


def _clamped(x: Integer, most: int) -> Integer:
    """x, but at least 0 and at most `most`."""
    if low(x) >= 0 and high(x) <= most:
        return x
    number = expr.index(x, dtypes.int64).operation("maximum", 0).operation("minimum", most)
    return Affine(0, ((Atom("value", "", 0, most, payload=number), 1),))


def _needed_rows(problem: Problem, fixed: frozenset[Atom]) -> Problem:
    """How many rows are needed, where every result goes through a mask that tells it."""
    row = problem.parts.m[-1]
    result = problem.accumulator
    common: list[Affine] | None = None
    for store in problem.stores:
        if store.value is result:
            return problem
        for reader in expr.walk(store.value):
            if result not in reader.args:
                continue
            masked = reader.op is Op.WHERE and result is not reader.args[2]
            found = conditions_of(reader.args[0]) if masked else ()
            common = [c for c in found if common is None or c in common]
    for condition in common or []:
        rest = _rest(condition, row.variable, fixed)
        if rest is not None and coefficient(condition, row.variable) == -1:
            return replace(problem, needed=_clamped(rest + 1, high(row.extent)))
    return problem
