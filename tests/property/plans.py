"""Plans: the shapes of an operation's operands, and its parameters.

A `Plans` holds a list of edge plans (0-d, zero-size, one element, sizes around the vector widths,
…), which every run tests, and a Hypothesis strategy for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from .layouts import Shape

# A vector has 8 to 64 lanes: bugs in tails and masks show at n − 1, n and n + 1.
LENGTHS = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
FEW_LENGTHS = (0, 1, 8, 15, 17, 33, 64)
SHAPES: tuple[Shape, ...] = (
    (), *((n,) for n in LENGTHS), (1, 1), (3, 0, 2), (2, 3, 4), (5, 33), (33, 5), (2, 17, 3),
    (1, 16, 1), (2, 1, 3, 9),
)  # fmt: skip
FEW_SHAPES: tuple[Shape, ...] = ((), (0,), (1,), (17,), (3, 0, 2), (5, 33), (2, 3, 4))
MAXIMAL_SIZE = 3000


def some_shapes(number: int) -> tuple[Shape, ...]:
    """About half of SHAPES: a third of the lengths; three consecutive numbers give all of them."""
    return ((), *((n,) for n in LENGTHS[number % 3 :: 3]), *SHAPES[-7:])


@dataclass(frozen=True)
class Plan:
    """Shapes of the operands and parameters of one call; `domains` overrides the operation's."""

    shapes: tuple[Shape, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    domains: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Plans:
    """Edge plans, and a strategy for others; new: whether it draws any other than the edges."""

    edges: tuple[Plan, ...]
    random: st.SearchStrategy[Plan]
    new: bool = True


def _small_enough(shape: Shape) -> bool:
    return int(np.prod(shape, dtype=np.int64)) <= MAXIMAL_SIZE


_extents = st.one_of(st.integers(1, 6), st.sampled_from((0, 1, 2, 8, 15, 16, 17, 31, 33)))


def shapes(minimum: int = 0, maximum: int = 4, extents: Any = _extents) -> Any:
    """A strategy of shapes of at most a few thousand elements."""
    lists = st.lists(extents, min_size=minimum, max_size=maximum)
    return lists.map(tuple).filter(_small_enough)


positive_extents = st.one_of(st.integers(1, 6), st.sampled_from((8, 15, 16, 17, 31, 33)))


@st.composite
def _broadcasting(draw: Any, count: int) -> Plan:
    """Shapes that broadcast to a common one: dimensions dropped in front or set to 1."""
    whole = draw(shapes())
    parts = []
    for _ in range(count):
        kept = whole[draw(st.integers(0, len(whole))) if draw(st.booleans()) else 0 :]
        ones = draw(st.lists(st.booleans(), min_size=len(kept), max_size=len(kept)))
        plain = draw(st.booleans())
        parts.append(tuple(1 if o and not plain else n for o, n in zip(ones, kept, strict=True)))
    return Plan(tuple(parts))


def _broadcast_edges(count: int) -> list[Plan]:
    pairs = [((5, 1), (1, 33)), ((), (9,)), ((17,), ()), ((3, 1, 4), (2, 1)), ((1,), (0,)),
             ((2, 3, 17), (17,)), ((4, 1), (4, 16))]  # fmt: skip
    return [Plan(tuple(pair[index % 2] for index in range(count))) for pair in pairs]


def elementwise(count: int = 1, edge_shapes: Sequence[Shape] = SHAPES) -> Plans:
    """`count` operands of equal or broadcasting shapes."""
    edges = [Plan((shape,) * count) for shape in edge_shapes]
    if count > 1:
        edges += _broadcast_edges(count)
        return Plans(tuple(edges), _broadcasting(count))
    return Plans(tuple(edges), shapes().map(lambda shape: Plan((shape,))))


def with_choices(plans: Plans, choices: Sequence[Mapping[str, Any]]) -> Plans:
    """Plans with each set of parameters; the edge plans get the sets in turn."""
    edges = tuple(
        Plan(plan.shapes, {**plan.parameters, **choices[index % len(choices)]}, plan.domains)
        for index, plan in enumerate(plans.edges)
    )
    chosen = st.tuples(plans.random, st.sampled_from(list(choices)))
    return Plans(
        edges,
        chosen.map(
            lambda two: Plan(two[0].shapes, {**two[0].parameters, **two[1]}, two[0].domains)
        ),
    )


def fixed(*plans: Plan) -> Plans:
    """Only these plans."""
    return Plans(plans, st.sampled_from(plans), new=False)


def drawn(edges: Sequence[Plan], draw: Callable[..., Plan]) -> Plans:
    """Edge plans, and a function of Hypothesis's `draw` for the others."""
    return Plans(tuple(edges), st.composite(draw)())


def axis_of(draw: Any, shape: Shape) -> int:
    """An axis of a shape of at least one dimension, counted from either end."""
    return int(draw(st.integers(-len(shape), len(shape) - 1)))


def _reduction(draw: Any, empty: bool, several: bool) -> Plan:
    shape = draw(shapes(extents=_extents if empty else positive_extents))
    keepdim = draw(st.booleans())
    if not shape or draw(st.integers(0, 3)) == 0:
        return Plan((shape,), {"axis": None, "keepdim": keepdim})
    if several and draw(st.booleans()):
        axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
        signed = tuple(a - len(shape) if draw(st.booleans()) else a for a in sorted(axes))
        return Plan((shape,), {"axis": signed, "keepdim": keepdim})
    return Plan((shape,), {"axis": axis_of(draw, shape), "keepdim": keepdim})


def reduction(empty: bool = True, several: bool = True) -> Plans:
    """One operand reduced over all axes, one axis, or several; `empty`: also over no elements."""
    given: list[tuple[Shape, Any, bool]] = [
        *(((n,), None if n % 2 else 0, n % 3 == 0) for n in FEW_LENGTHS),
        ((), None, False),
        ((1, 1), 1, False),
        ((5, 33), 0, False),
        ((5, 33), 1, True),
        ((33, 5), -1, False),
        ((33, 17), None, False),
        ((3, 0, 2), 2, False),
        ((3, 0, 2), 1, True),
        ((2, 17, 3), 1, True),
        ((16, 2, 9), -3, False),
    ]
    if several:
        given += [((2, 17, 3), (0, 2), False), ((4, 3, 2, 9), (1, -1), True)]
    edges = [
        Plan((shape,), {"axis": axis, "keepdim": keepdim})
        for shape, axis, keepdim in given
        if empty or 0 not in shape
    ]
    return Plans(
        tuple(edges), st.composite(lambda draw: _reduction(draw, empty, several))()
    )


def along_axis(empty: bool = True) -> Plans:
    """One operand and an axis that is kept (softmax, cumsum, sort)."""
    given = [*(((n,), 0) for n in FEW_LENGTHS), ((1, 1), 1), ((5, 33), 0), ((5, 33), -1),
             ((2, 17, 3), 1), ((3, 0, 2), 0), ((3, 0, 2), 1), ((16, 2, 9), -3)]  # fmt: skip

    def draw_plan(draw: Any) -> Plan:
        shape = draw(shapes(1, 3, _extents if empty else positive_extents))
        return Plan((shape,), {"axis": axis_of(draw, shape)})

    edges = [Plan((shape,), {"axis": axis}) for shape, axis in given if empty or 0 not in shape]
    return drawn(edges, draw_plan)


def matrices() -> Plans:
    """Two operands of a matrix product: vectors, matrices, batches that broadcast."""
    given: list[tuple[Shape, Shape]] = [
        ((0,), (0,)), ((1,), (1,)), ((17,), (17,)), ((33,), (33, 5)), ((7, 16), (16,)),
        ((1, 1), (1, 1)), ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0)), ((4, 5), (5, 6)),
        ((7, 9), (9, 8)), ((15, 17), (17, 16)), ((31, 33), (33, 32)), ((64, 65), (65, 63)),
        ((13, 64), (64, 33)), ((2, 3, 4), (4, 5)), ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2)),
        ((4, 9, 17), (4, 17, 9)), ((3, 1, 16), (3, 16, 1)), ((6,), (2, 6, 3)), ((2, 3, 6), (6,)),
    ]  # fmt: skip

    def draw_plan(draw: Any) -> Plan:
        m, k, n = (draw(_extents) for _ in range(3))
        batch = draw(shapes(0, 2, st.integers(1, 3)))
        left_batch = batch[draw(st.integers(0, len(batch))) :]
        left: Shape = (*left_batch, m, k) if draw(st.integers(0, 4)) else (k,)
        right: Shape = (*batch, k, n) if draw(st.integers(0, 4)) else (k,)
        return Plan((left, right))

    return drawn([Plan(pair) for pair in given], draw_plan)
