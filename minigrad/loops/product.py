"""A matrix product, prepared for a recipe: operands, epilogue, naive loops.

If only a part is needed, loops have bounds that are loaded when the kernel runs. Masks that compare
an index with a loaded number say what is needed:

    Σ over k of where(inside, left(m, k), 0) · where(inside, right(k, n), 0)
        with inside = (first[e] ≤ k and k < stop[e]), for each e a segment of k: the loop over k
        runs from first[e] to stop[e]. Both must be masked, because of 0·∞
    where(t < count[b], Σ over k of left(b, t, k) · right(b, k, n), 0)
        for each b some of its rows: a tile without any of them has an empty loop over k

So the work depends on the data, as in a batch whose parts differ in length, while the meaning stays
that of the masks. Loaded numbers may have any value: they are clamped to the range of the loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.shapes import unflatten
from minigrad.graph.substitution import coefficient, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, ceildiv
from minigrad.loops.build import combine, guard_loads, in_few_axes, loops_over, put
from minigrad.loops.nest import Loop, Statement, Store, Stores
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis, size_of
from minigrad.schedule.conditions import End, conditions_of, end_of
from minigrad.schedule.contraction import Contraction, as_byte, terms_of
from minigrad.schedule.expr import Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import identity

LANE: Atom = make_axis("lane", 0, 1 << 10).variable  # of a vector of columns, or rows


@dataclass(frozen=True, kw_only=True)
class Problem(Contraction):
    """A product with merged axes, ready to be tiled; a mask has become part of an operand.

    In a shared product the last axis, which both operands have, is the axis of columns, and all
    other axes of m and n are rows.

    stores: of the results; in their values `total` stands for a result. ends: further stops of the
    loop over the first axis of k, of a segment (see below). needed: how many rows, from the first
    one, have results that matter; None: all. terms: the exact terms of the sum. They are added
    instead if the product, with one masked operand, is not finite; None if it is exact itself.
    """

    stores: Sequence[Store]
    total: Expr
    ends: tuple[Integer, ...] = ()
    needed: Integer | None = None
    terms: Expr | None = None

    @property
    def row(self) -> Axis:
        """The last axis of rows, which is tiled."""
        return self.m[-1]

    @property
    def column(self) -> Axis:
        """The last axis of columns, which is vectorized."""
        return self.n[-1]

    @property
    def outer(self) -> list[Axis]:
        """The axes of the batch, and those of rows and columns except the last ones."""
        return [*self.batch, *self.m[:-1], *self.n[:-1]]

    @property
    def batches(self) -> int:
        """The number of products of rows by columns."""
        return size_of(self.outer)

    @property
    def depth(self) -> int:
        """The number of terms of a sum."""
        return size_of(self.k)

    @property
    def stores_across(self) -> bool:
        """Whether neighbouring columns of a result are not adjacent in memory."""
        return any(coefficient(one.index, self.column.variable) != 1 for one in self.stores)

    def naive(self) -> tuple[Statement, ...]:
        """For each result: total = 0; for all k: total += left · right, or `added`; the stores."""
        total, row, first = self.total, self.row, self.k[0]
        stops = (first.extent, *self.ends)
        if self.needed is not None:  # no iterations over k for a row that is not needed
            stops = (*stops, (self.needed - row.index) * first.most)
        more = multiply_add(total, self.left, self.right)
        if self.added is not None:
            more = combine(Op.SUM, total, self.added)
        clear = put(total, identity(Op.SUM, total.dtype))
        sums = Loop(first.variable, 0, stops, loops_over(self.k[1:], [put(total, more)]))
        stores = Stores(tuple(self.stores))
        return loops_over([*self.outer, row, self.column], [clear, sums, stores])


def multiply_add(total: Expr, left: Expr, right: Expr) -> Expr:
    """total + left·right; of words, total + the products of all their parts."""
    if left.op is Leaf.WORD:
        return expr.apply(Leaf.DOT, (left, right, total), total.dtype)
    return combine(Op.SUM, total, (left * right).cast(total.dtype))


def prepare(kernel: Kernel) -> Problem:
    """The product of a kernel, with its epilogue inlined and its axes merged."""
    stage, found = kernel.stages[0], kernel.stages[0].product
    assert found is not None
    total = expr.register("tile", stage.body.dtype)
    # groups are merged separately: with merged axes the stage may not be recognized as a product
    groups = (found.batch, found.m, found.n, found.k)
    stores, (batch, m, n, k), values = in_few_axes(
        kernel.stages, kernel.stored, [total], groups, found.shared
    )
    if found.shared:
        batch, m, n = batch[:-1], (*m, *n), batch[-1:]
    left, right, added, terms = found.left, found.right, found.added, None
    if added is None:
        left, right = as_loaded(left), as_loaded(right)
    else:
        added = expr.substitute_in(added, values)
    if found.mask is not None:
        terms = expr.substitute_in(stage.body, values)
        if found.mask.variables <= left.variables:
            left = found.mask.where(left, 0.0)
        else:
            right = found.mask.where(right, 0.0)
    left, right = (expr.substitute_in(operand, values) for operand in (left, right))
    return Problem(
        left, right, batch, m, n, k, added=added, stores=stores, total=total, terms=terms,
    )  # fmt: skip


def distance(operand: Expr, axis: Atom) -> int:
    """The distance in memory of neighbours along an axis; unknown counts as far."""
    steps = expr.strides(axis, operand)
    return max((1 << 62 if step is None else abs(step) for step in steps), default=0)


def in_words(problem: Problem, multiple: int = 1) -> Problem | None:
    """A product of bfloat16 in pairs along k, or of bytes in fours; None if it is of neither.

    Operands that are rounded to bfloat16 only for the product are rounded when they are copied.
    Neighbours along k become one word of 32 bits, with zeros for missing ones. The last axis then
    has a multiple of `multiple` words, with zeros at the end.
    """
    *outer, last = problem.k
    total = problem.total.dtype
    if not (total is dtypes.float32 or total.is_int) or not isinstance(last.extent, int):
        return None
    count = 2 if total.is_float else 4
    words = make_axis("kp", 0, ceildiv(last.extent, count * multiple) * multiple)
    left, right = (word(operand, last, words) for operand in (problem.left, problem.right))
    if left is None or right is None:
        return None
    return replace(problem, left=left, right=right, k=(*outer, words))


def word(operand: Expr, k: Axis, words: Axis) -> Expr | None:
    """Neighbours along k as a word: two bfloat16, in memory or rounded, or four bytes; or None."""
    narrow = as_byte(operand) if operand.dtype.is_int else as_bfloat16(operand)
    if narrow is None:
        return None
    count = 4 // narrow.dtype.itemsize
    places = [words.index * count + number for number in range(count)]
    parts = (
        guard_loads(expr.substitute_in(narrow, {k.variable: place}), [k.extent - 1 - place])
        for place in places
    )
    return expr.apply(Leaf.WORD, tuple(parts), dtypes.uint32)


def as_bfloat16(operand: Expr) -> Expr | None:
    """The bfloat16 that an operand converts, in memory or rounded to it; or None."""
    while operand.op is Op.CAST and operand.dtype is not dtypes.bfloat16:
        operand = operand.args[0]
    rounded = operand.op is Op.CAST and operand.args[0].dtype is dtypes.float32
    plain = operand.dtype is dtypes.bfloat16 and (rounded or operand.op is Leaf.LOAD)
    return operand if plain else None


def as_loaded(operand: Expr) -> Expr:
    """A load without a mask around it whose conditions the load has itself."""
    test, load = terms_of(operand)
    conditions = () if test is None or load.op is not Leaf.LOAD else conditions_of(test, True)
    return load if conditions and set(conditions) <= set(load.guard) else operand


Part = tuple[Axis, Integer, Integer]  # an axis, its first index, and the one after its last


def part_of_image(problem: Problem) -> tuple[Problem, Part | None]:
    """The part of an axis of k in which `left` reads an image, not the zeros around it.

    The axis is not the innermost, and all rows of a tile read the same part. Also returns the
    problem without the guards that this makes unnecessary; if it has only one axis of k, it gets
    another one, of a single iteration.
    """
    left, fixed = problem.left, {axis.variable for axis in problem.outer}
    bounded = problem.ends or problem.needed is not None
    varies = any(not isinstance(axis.extent, int) for axis in problem.k)
    if left.op is not Leaf.LOAD or bounded or varies or problem.added is not None:
        return problem, None
    ends = [(start, stop) for _, start, stop in left.array.image]
    places = unflatten(left.index, [extent for extent, _, _ in left.array.image])
    inside = [c for x, (start, stop) in zip(places, ends, strict=True)
              for c in (x - start, stop - 1 - x)]  # fmt: skip
    ks = problem.k if len(problem.k) > 1 else (make_axis("once", 0, 1), *problem.k)
    found: dict[Axis, dict[Affine, int]] = {}
    for axis in ks[:-1]:
        steps = {c: coefficient(c, axis.variable) or 0 for c in expr.restrict(left.guard, inside)}
        found[axis] = {
            c: step for c, step in steps.items() if variables(c - axis.index * step) <= fixed
        }
    axis, steps = max(found.items(), key=lambda one: len(one[1]))
    if not steps:
        return problem, None
    rests = [(c - axis.index * step, step) for c, step in steps.items()]
    starts = [ceildiv(-rest, step) for rest, step in rests if step > 0]
    # a condition that does not depend on the axis holds for all of it, or for nothing
    stops = [rest // -step + 1 if step else (rest + 1) * axis.count
             for rest, step in rests if step <= 0]  # fmt: skip
    start = clamped(_extreme("maximum", starts), axis.count) if starts else 0
    stop = clamped(_extreme("minimum", stops), axis.count) if stops else axis.count
    guard = tuple(c for c in left.guard if c not in steps)
    left = expr.load(left.array, left.index, guard)
    return replace(problem, left=left, k=ks), (axis, start, stop)


def _extreme(name: str, xs: Sequence[Integer]) -> Integer:
    numbers = (expr.index(x, dtypes.int64) for x in xs)
    return expr.value_of(reduce(lambda a, b: a.operation(name, b), numbers))


# ---- bounds that are loaded ----


def with_dynamic_bounds(problem: Problem) -> Problem:
    """The problem with masks that compare with loaded numbers as bounds of loops."""
    fixed = frozenset(axis.variable for axis in problem.outer)
    return _needed_rows(_segment(problem, fixed), fixed)


def _segment(problem: Problem, fixed: frozenset[Atom]) -> Problem:
    """The problem without masks of the operands that bound k, which starts at the segment now."""
    axis = problem.k[0]
    if len(problem.k) > 1 or not isinstance(axis.extent, int) or problem.added is not None:
        return problem
    operands, firsts, stops = (problem.left, problem.right), list[Integer](), list[Integer]()
    while (found := _common_mask(*operands)) is not None:
        inside, conditions = found
        ends = [end for c in conditions if (end := _loaded_end(c, axis.variable, fixed))]
        if len(ends) < len(conditions):
            break
        for side, place in ends:
            (firsts if side > 0 else stops).append(place)
        operands = inside
    if len(firsts) > 1 or not (firsts or stops):
        return problem
    first = clamped(firsts[0], axis.extent) if firsts else 0
    moved = {axis.variable: first + axis.index}
    left, right = (expr.substitute_in(operand, moved) for operand in operands)
    counts = tuple(clamped(stop, axis.extent) - first for stop in stops or [axis.extent])
    # both operands are masked: terms outside do not count, and the product is exact
    return replace(problem, left=left, right=right, ends=counts, terms=None)


def _common_mask(left: Expr, right: Expr) -> tuple[tuple[Expr, Expr], tuple[Affine, ...]] | None:
    """((x, y), conditions) of where(conditions, x, 0) and where(conditions, y, 0)."""
    (test, x), (same, y) = terms_of(left), terms_of(right)
    masks = [() if mask is None else conditions_of(mask, True) for mask in (test, same)]
    return ((x, y), masks[0]) if masks[0] and masks[0] == masks[1] else None


def _loaded_end(condition: Affine, x: Atom, fixed: frozenset[Atom]) -> End | None:
    """The end that a condition sets for x, if it is a loaded, fixed number; else None."""
    end = end_of(condition, x)
    return end if end and expr.values_in(end[1]) and variables(end[1]) <= fixed else None


def clamped(x: Integer, most: int) -> Integer:
    """x, but at least 0 and at most `most`."""
    if isinstance(x, int):
        return min(max(x, 0), most)
    number = expr.index(x, dtypes.int64).operation("maximum", 0).operation("minimum", most)
    return expr.value_of(number, (0, most))


def _needed_rows(problem: Problem, fixed: frozenset[Atom]) -> Problem:
    """The problem with the number of needed rows, if a mask around all results bounds them."""
    row, result = problem.row, problem.total
    values = [store.value for store in problem.stores]
    readers = [e for e in expr.walk(*values) if result in e.args]
    masks = [
        conditions_of(e.args[0]) if e.op is Op.WHERE and result is not e.args[2] else ()
        for e in readers
    ]
    for condition in masks[0] if masks and result not in values else ():
        end = _loaded_end(condition, row.variable, fixed)
        if end and end[0] < 0 and all(condition in mask for mask in masks):
            return replace(problem, needed=clamped(end[1], row.most))
    return problem
