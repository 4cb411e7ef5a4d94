"""Operations of recipes on axes: merge neighbours, choose the vector axis, fix rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm

from minigrad.graph.shapes import iterations
from minigrad.graph.substitution import coefficient, distances, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, typical
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, places_along
from minigrad.schedule.expr import Expr
from minigrad.schedule.fuse import prefix_length
from minigrad.schedule.layout import is_near
from minigrad.schedule.stage import Stage
from minigrad.target import LINE, Target

# The largest distance of elements that are picked from whole vectors (see render/llvm_memory.py).
NEIGHBOURS = 4
LEAST_LANES = 8  # elements with which an axis outweighs a few jumps: half a vector


def row_axes(stage: Stage, rows: Integer) -> list[Axis]:
    """Loops over the rows of a kernel: its stages' leading axes, merged up to those that vary."""
    counts: list[Integer] = []
    for axis in stage.axes[: prefix_length(stage, rows)]:
        if counts and isinstance(axis.extent, int):
            counts[-1] *= axis.extent
        elif axis.extent != 1:
            counts.append(axis.extent)
    return [make_axis("r", number, count) for number, count in enumerate(counts or [1])]


def fix_rows(stage: Stage, rows: Integer, row: Integer) -> Stage:
    """The stage with its leading axes computed from a row number."""
    return stage.substitute(places_along(stage.axes[: prefix_length(stage, rows)], row))


def indices(exprs: Sequence[Expr], positions: Sequence[Integer]) -> list[Integer]:
    """All indices: of loads and their guards, of index values, and positions of stores."""
    found: list[Integer] = list(positions)
    for e in expr.walk(*exprs):
        if e.op is expr.Leaf.LOAD:
            found.append(e.index)
            found.extend(e.guard)
        elif e.op in (expr.Leaf.INDEX, expr.Leaf.CONDITION):
            found.append(e.index)
    return found


def merge(
    axes: tuple[Axis, ...], used: Sequence[Integer], known: bool = False
) -> tuple[tuple[Axis, ...], dict[Atom, Integer]]:
    """Join neighbouring axes that every index walks through as if they were one.

    known: axes with varying extents are not joined. Returns the new axes, and the values of old
    variables in terms of the new ones.
    """
    runs: list[list[Axis]] = []
    for axis in reversed(axes):
        joins = runs and (isinstance(axis.extent, int) or not known)
        if joins and _joins(axis, runs[0][0], used):
            runs[0].insert(0, axis)
        else:
            runs.insert(0, [axis])
    merged: list[Axis] = []
    values: dict[Atom, Integer] = {}
    for run in runs:
        whole = run[0]
        if len(run) > 1:
            count = iterations([axis.extent for axis in run])
            whole = make_axis(f"{whole.variable.name}_", 0, count)
            values |= places_along(run, whole.index)
        merged.append(whole)
    return tuple(merged), values


def _joins(outer: Axis, inner: Axis, used: Sequence[Integer]) -> bool:
    if not isinstance(inner.extent, int):
        return False
    for x in used:
        of_outer, of_inner = coefficient(x, outer.variable), coefficient(x, inner.variable)
        if of_outer is None or of_inner is None or of_outer != inner.extent * of_inner:
            return False
    return True


def merge_stage(stage: Stage) -> Stage:
    """The stage with its kept and its reduced axes merged where possible."""
    used = indices(stage.exprs(), [stage.position, *stage.guard])
    kept, values = merge(stage.axes, used)
    reduced, more = merge(stage.reduced, used)
    values |= more
    return replace(stage.substitute(values), axes=kept, reduced=reduced) if values else stage


def unit_stride_axis(
    axes: Sequence[Axis], exprs: Sequence[Expr], positions: Sequence[Integer], stores: int = 2
) -> Axis | None:
    """The axis along which most accesses are to neighbouring elements; a store counts as `stores`.

    An axis that fills no vector is chosen only if no other has more of these than jumps. One that
    fills half of it, as in images of 7², goes before shorter ones if it has two more. Elements that
    are interleaved or reversed are no jumps: they are picked from whole vectors.
    """
    best: Axis | None = None
    best_rank = (0, 0, 0)
    for axis in axes:
        score = sum(stores for x in positions if is_near(coefficient(x, axis.variable)))
        for load in expr.loads(*exprs):
            stride = coefficient(load.index, axis.variable)
            score += 1 if stride == 1 else -1 if _jumps(load.index, axis.variable, stride) else 0
        size = min(axis.extent, LEAST_LANES) if isinstance(axis.extent, int) else LEAST_LANES
        long = size == LEAST_LANES
        fills = score > 0 if long else score > 1 and size > LEAST_LANES // 2
        rank = (fills * (1 + long), 2 * score + long, size * fills)
        if best is None or rank >= best_rank:
            best, best_rank = axis, rank
    return best


def _jumps(x: Integer, along: Atom, stride: int | None) -> bool:
    """Whether an index's elements along a variable cannot be picked from a few vectors."""
    if stride is not None:
        return stride not in range(-1, NEIGHBOURS + 1)
    apart = distances(x, along, 2 * LEAST_LANES)
    return not apart or min(apart) < 0 or max(apart) >= NEIGHBOURS * len(apart)


def overlap(x: Integer, one: Axis, other: Axis) -> bool:
    """Whether an index reaches some elements along either of two axes, as in windows."""
    step, far = (coefficient(x, axis.variable) or 0 for axis in (one, other))
    return 0 != step < far * other.most and 0 != far < step * one.most


def vector_width(
    target: Target, exprs: Sequence[Expr], extent: Integer, reduces: bool,
    variable: Atom | None = None,
) -> int:  # fmt: skip
    """Lanes of a loop: one register, or several if the body is short and the loop long.

    variable: values that do not depend on it are computed before the loop, and do not count.
    """
    if not target.vector_bytes:
        return 1
    inside = [e for e in expr.walk(*exprs) if variable is None or variable in e.variables]
    lanes = min(target.lanes(e.dtype) for e in inside or exprs)
    operations = sum(expr.cost(e.op) for e in inside)
    copies = 4 if operations <= 8 or reduces and operations <= 16 else 2 if operations <= 24 else 1
    while copies > 1 and copies * lanes > typical(extent):
        copies //= 2
    if isinstance(extent, int):
        lanes = enough_lanes(lanes, extent)
    elif target.brief:
        copies = 1
    return lanes * copies


def in_whole_periods(target: Target, exprs: Sequence[Expr], axis: Axis, width: int) -> int:
    """The lanes of a loop, or three registers, say, if elements are repeated three times each.

    Each time, its lanes are the same places in memory then, picked from a vector or two. Not if so
    many registers are more than one beyond those of `width`, which its body allows, or no whole
    number of lines of memory, from which elements are picked.
    """
    found, inner = 1, [x for x in indices(exprs, ()) if not isinstance(x, int)]
    for x in inner:
        for atom, _ in x.terms:
            if isinstance(atom.inner, Affine) and axis.variable in variables(atom.inner):
                found = lcm(found, atom.divisor)
                inner.append(atom.inner)
    lanes = min(target.lanes(e.dtype) for e in expr.walk(*exprs))
    odd = found // (found & -found)
    fits = isinstance(axis.extent, int) and odd * lanes <= axis.extent
    whole = all(odd * lanes * e.dtype.itemsize % LINE == 0 for e in expr.loads(*exprs))
    return odd * lanes if fits and whole and 1 < odd <= width // lanes + 1 else width


def enough_lanes(lanes: int, count: int) -> int:
    """As many lanes as given, or the smallest power of two that holds `count` elements."""
    return min(lanes, 1 << max(count - 1, 0).bit_length())

