"""Which memory a vector loop asks for before it is read."""

from __future__ import annotations

from collections.abc import Callable

from schedule.machine import GOLDEN
from schedule.programs import DEVICE, add, ew, plan_of, softmax, total, transpose

from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.loops.nest import Loop, Nest, Statement, show
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render

MANY = 1 << 20


def nest_of(build: Callable[..., Node], *shapes: tuple[int, ...]) -> Nest:
    """The first kernel of a program."""
    plan = plan_of(lambda new: [build(*(new(*shape) for shape in shapes))])
    return lower(plan.kernels[0], GOLDEN)


def asked(statement: Statement) -> list[str]:
    """All that the loops of a nest ask for, as text."""
    if not isinstance(statement, Loop):
        return []
    own = [f"{array.name}[{place}]" for array, place in statement.soon]
    return [*own, *(text for inner in statement.body for text in asked(inner))]


def test_elementwise_loops_ask_for_what_comes_later() -> None:
    nest = nest_of(add, (MANY,), (MANY,))
    assert asked(nest.parallel) == ["s0[i0 + 1024]", "s1[i0 + 1024]"]
    assert render(nest).count("call void @llvm.prefetch") == 8  # 64 lanes of two arrays
    assert "# soon: s0[i0 + 1024], s1[i0 + 1024]" in show(nest)


def test_what_the_second_cache_holds_is_not_asked_for() -> None:
    nest = nest_of(add, (MANY // 8,), (MANY // 8,))
    assert not asked(nest.parallel) and "prefetch" not in render(nest)


def test_short_rows_that_do_not_follow_each_other_ask_for_nothing() -> None:
    def cut(x: Node) -> Node:
        return add(g.shrink(x, ((0, MANY >> 8), (0, 100))), 1.0)

    assert not asked(nest_of(cut, (MANY >> 8, 256)).parallel)


def test_the_longest_sweep_asks_for_the_next_row() -> None:
    nest = nest_of(lambda x: softmax(x, 1), (1024, 1024))
    assert asked(nest.parallel) == ["s0[c1 + 1024·r0 + 1024]"]
    nest = nest_of(lambda x: softmax(x, 1), (4096, 256))  # four rows are as much memory
    assert asked(nest.parallel) == ["s0[c1 + 256·r0 + 1024]"]


def test_a_single_sweep_asks_for_a_later_row_or_further_along() -> None:
    assert asked(nest_of(lambda x: total(x, 1), (4096, 256)).parallel) == ["s0[c0 + 256·r0 + 1024]"]
    assert asked(nest_of(lambda x: total(x, 1), (64, 8192)).parallel) == ["s0[c0 + 8192·r0 + 1024]"]


def test_sums_of_columns_ask_for_a_later_row_of_their_block() -> None:
    found = asked(nest_of(lambda x: total(x, 0), (1024, 4096)).parallel)
    assert found and all(text.startswith("s0[") for text in found)
    assert not asked(nest_of(transpose, (1024, 1024)).parallel)


def test_scattered_updates_are_asked_for_some_rows_before() -> None:
    def sums(base: Node, updates: Node) -> Node:
        index = g.expand(g.reshape(g.iota(4096, DEVICE), (4096, 1)), (4096, 384))
        return g.scatter_add(base, ew(Op.MOD, index, 64), updates, 0)

    nest = nest_of(sums, (64, 384), (4096, 384))
    assert len(asked(nest.parallel)) == 1 and asked(nest.parallel)[0].startswith("s1[")
    assert "prefetch" in render(nest)
