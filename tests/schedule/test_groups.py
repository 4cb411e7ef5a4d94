"""Groups: which kernels need not wait for each other, and how long their memory is in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.schedule.expr import Array
from minigrad.schedule.groups import (
    ALONE,
    CONCURRENT,
    INTERLEAVED,
    NEVER,
    SHARED,
    SHORT,
    WAITS,
    Launched,
    beside,
    in_groups,
    memory_of,
)
from minigrad.schedule.schedule import LiveRange, Schedule, place

from .machine import plan_arena
from .programs import PROGRAMS, Inputs, ew, mul, plan_of, product
from .random_graphs import random_program

Span = tuple[int, int, int, str]  # block, begin, end, the join that it is a part of


def groups_of(plan: Schedule, chunks: Sequence[int] = ()) -> list[int]:
    count = len(plan.kernels)
    given = [Launched(SHARED, chunks=own) for own in chunks or [0] * count]
    return [how for how, _ in beside(plan.kernels, plan.places(), given)]


def test_gradients_of_a_layer_are_a_group() -> None:
    """Gradients of weight, bias and input read the result's gradient, and none reads another."""

    def build(inputs: Inputs) -> list[Node]:
        x, w, gradient = inputs(40, 48), inputs(64, 48), inputs(40, 64)
        bias = g.reduce(Op.SUM, gradient, [0])
        return [product(g.permute(gradient, (1, 0)), x), product(gradient, w), bias]

    assert groups_of(plan_of(build)) == [False, True, True]


def test_who_reads_a_result_waits_for_it() -> None:
    def build(inputs: Inputs) -> list[Node]:
        x, w = inputs(40, 48), inputs(48, 48)
        return [product(product(x, w), w)]

    assert groups_of(plan_of(build)) == [False, False]


def test_who_overwrites_an_input_waits_for_its_readers() -> None:
    def build(inputs: Inputs) -> list[Node]:
        x, w = inputs(48, 48), inputs(48, 48)
        return [product(x, w), mul(x, x)]

    assert groups_of(plan_of(build)) == [False, True]
    assert groups_of(plan_of(build, {1: 0})) == [False, False]


def test_who_takes_memory_waits_for_all_its_readers() -> None:
    """A result overwrites an operand that an earlier kernel reads as well."""

    def build(inputs: Inputs) -> list[Node]:
        x, w = inputs(48, 48), inputs(48, 48)
        y = product(x, w)
        z = ew(Op.EXP, product(w, x))
        return [product(y, w), g.reduce(Op.MAX, product(mul(y, z), w), [0])]

    plan = plan_of(build)
    assert any(len(one.arrays) > 1 for one in plan.held), "no memory is written over"
    places, joined = plan.places(), groups_of(plan)
    for number, together in enumerate(joined):
        writes = {places[array] for array in plan.kernels[number].stored}
        before = {places[a] for stage in plan.kernels[number - 1].stages
                  for a in (*stage.reads, stage.array) if a in places}  # fmt: skip
        assert not (together and writes & before)


@pytest.mark.parametrize("work, expected", [
    ([SHORT, SHORT, SHORT], [False, False, False]),
    ([ALONE, SHORT, SHORT], [False, False, False]),
    ([ALONE, ALONE, SHORT], [False, True, True]),
    ([SHORT, SHARED, SHORT], [False, True, True]),
    ([SHORT, SHORT, SHARED], [False, True, True]),
    ([SHARED, NEVER, SHARED], [False, False, False]),
    ([NEVER, SHARED, SHARED], [False, False, True]),
    ([*[SHARED] * 5, NEVER, SHARED], [False, True, True, True, True, False, False]),
])  # fmt: skip
def test_there_is_work_for_two_threads(work: list[int], expected: list[bool]) -> None:
    def build(inputs: Inputs) -> list[Node]:
        return [g.reduce(Op.SUM, inputs(40, size), [0]) for size in range(10, 10 + len(work))]

    plan = plan_of(build)
    given = [Launched(own, 1, 1) for own in work]
    assert [how for how, _ in beside(plan.kernels, plan.places(), given)] == expected


def test_memory_is_needed_as_long_as_its_groups() -> None:
    held = [LiveRange(64, 0, 1), LiveRange(64, 2, 3), LiveRange(64, 4, 4)]
    wide = in_groups(held, [False, True, True, False, True])
    assert [(one.first, one.last) for one in wide] == [(1, 1), (1, 2), (2, 2)]
    offsets, _ = place([(64, one.first, one.last) for one in wide])
    assert offsets == (0, 64, 0)


def test_parts_of_a_join_go_in_turn() -> None:
    """If their chunks are equal they are interleaved; a reader of the whole waits for all parts."""

    def build(inputs: Inputs) -> list[Node]:
        x, w, v = inputs(64, 48), inputs(48, 48), inputs(48, 48)
        joined = g.cat([product(x, w), product(x, v), ew(Op.EXP, x)], 0)
        return [product(w, v), product(joined, w)]

    plan = plan_of(build)
    parts = [any(array.whole for array in kernel.stored) for kernel in plan.kernels]
    assert parts == [False, True, True, True, False]
    assert groups_of(plan, [8, 8, 8, 8, 8]) == [WAITS, CONCURRENT, INTERLEAVED, INTERLEAVED, WAITS]
    assert groups_of(plan, [8, 8, 8, 4, 8]) == [WAITS, CONCURRENT, INTERLEAVED, CONCURRENT, WAITS]
    assert groups_of(plan) == [WAITS, CONCURRENT, CONCURRENT, CONCURRENT, WAITS], "chunks that vary"


def test_parts_of_other_joins_wait_where_memory_is_the_same() -> None:
    """A join reuses the memory of another join, whose parts are read."""

    def build(inputs: Inputs) -> list[Node]:
        x, w = inputs(64, 48), inputs(48, 48)
        joined = [g.cat([product(x, w), ew(Op.EXP, x), x], 0)]
        for _ in range(3):
            joined.append(g.cat([ew(Op.SIN, joined[-1]), product(x, w), x], 0))
        return [product(joined[-1], w)]

    plan = plan_of(build)
    places = plan.places()
    wrote: dict[object, object] = {}
    for how, kernel in zip(groups_of(plan, [8] * len(plan.kernels)), plan.kernels, strict=True):
        wrote = wrote if how else {}
        for array in kernel.stored:
            place = places[memory_of(array)]
            assert wrote.setdefault(place, array.whole) == array.whole


def spans_of(plan: Schedule, joined: list[int]) -> list[tuple[list[Span], list[Span]]]:
    """For each kernel the memory that it reads and that it writes; a part counts as its whole."""
    offsets, _ = plan_arena(in_groups(plan.held, joined))

    def span(array: Array) -> Span:
        join = array.whole.name if array.whole else ""
        array = array.whole or array
        block, begin = plan.slots.get(array, -1), offsets.get(array, 0)
        return block, begin, begin + array.size * array.dtype.itemsize, join

    found = []
    for kernel in plan.kernels:
        known = {*plan.slots, *offsets}
        read = {array for stage in kernel.stages for array in stage.reads}
        written = list(map(span, kernel.stored))
        found.append(([span(a) for a in read if (a.whole or a) in known], written))
    return found


def meet(some: list[Span], others: list[Span]) -> bool:
    return any(
        a == b and begin < stop and start < end and not (join and join == other)
        for a, begin, end, join in some for b, start, stop, other in others
    )  # fmt: skip


def test_none_of_a_group_touches_what_another_writes() -> None:
    together = 0
    for name, build in (*PROGRAMS.items(), *((seed, random_program(seed)) for seed in range(150))):
        plan = plan_of(build)
        joined = groups_of(plan)
        spans = spans_of(plan, joined)
        group: list[tuple[list[Span], list[Span]]] = []
        for one, beside_it in zip(spans, joined, strict=True):
            group = [*group, one] if beside_it else [one]
            for reads, writes in group[:-1]:
                together += 1
                assert not meet([*reads, *writes], one[1]) and not meet(writes, one[0]), name
    assert together > 50


def test_memory_has_one_name() -> None:
    """Also as words of another dtype, and as a part of a join."""
    whole = Array("whole", dtypes.uint8, 64)
    part = replace(whole, name="part", whole=whole)
    assert memory_of(replace(whole, dtype=dtypes.uint32, size=16, of=whole)) == whole
    assert memory_of(part) == whole == memory_of(replace(part, name="words", of=part))
