"""Pipeline schedules: no deadlock, idle times are those of the papers, memory is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.graph.node import Op
from minigrad.graph.rewrite import without_rules
from minigrad.graph.simplify import simplify
from minigrad.models.parallel.schedules import (
    BACKWARD,
    FORWARD,
    INPUT,
    SCHEDULES,
    WEIGHTS,
    Task,
    bubble,
    layers_of_pieces,
    make_table,
    picture,
    simulate,
)
from minigrad.models.parallel.stage_graphs import cut


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gaps_are_those_of_the_formula(schedule: str, stages: int) -> None:
    for micro in (stages, 2 * stages, 24):
        pieces = stages * (3 if schedule == "interleaved" else 1)
        table = make_table(schedule, stages, micro, pieces)
        for stage, row in enumerate(table):
            both = [task for task in row if task.kind in (INPUT, WEIGHTS)]
            assert sorted(both, key=lambda task: task.micro) == [
                task._replace(kind=kind) for task in both if task.kind == INPUT
                for kind in (INPUT, WEIGHTS)
            ]  # fmt: skip
            assert len(both) == (2 * stages if schedule == "zb" and stage else 0)
            done = [task._replace(kind=BACKWARD if task.kind == INPUT else task.kind)
                    for task in row if task.kind != WEIGHTS]  # fmt: skip
            assert sorted(done) == sorted(
                Task(kind, piece, number) for kind in (FORWARD, BACKWARD)
                for piece in range(stage, pieces, stages) for number in range(micro)
            )  # fmt: skip
        work = {"interleaved": 3 * micro, "zb": 3 * micro}.get(schedule, micro)
        expected = (stages - 1) / (work + stages - 1)
        assert bubble(simulate(table)) == pytest.approx(expected)


@pytest.mark.parametrize(("schedule", "most"), [("gpipe", 12), ("1f1b", 4), ("zb", 4)])
def test_how_many_micro_batches_are_kept(schedule: str, most: int) -> None:
    for stage, row in enumerate(make_table(schedule, 4, 12, 4)):
        kept = np.cumsum([(task.kind == FORWARD) - (task.kind in (BACKWARD, WEIGHTS))
                          for task in row])  # fmt: skip
        assert max(kept) == (most - stage if schedule == "1f1b" else most)


def test_layers_are_cut_so_that_a_step_is_short() -> None:
    """Stages have equally many layers; the first and last pieces have fewer, as others wait for
    them.
    """
    assert layers_of_pieces(make_table("interleaved", 2, 8, 4), 6) == [1, 2, 2, 1]
    assert layers_of_pieces(make_table("1f1b", 4, 8, 4), 8) == [2, 2, 2, 2]
    assert layers_of_pieces(make_table("1f1b", 2, 8, 2), 12, behind=5.9) == [9, 3]
    assert layers_of_pieces(make_table("gpipe", 3, 4, 3), 3, behind=9) == [1, 1, 1]
    table = make_table("interleaved", 2, 8, 4)
    assert bubble(simulate(table, sizes=[1, 2, 1, 2])) == pytest.approx(0.273, abs=1e-3)
    assert bubble(simulate(table, sizes=[1, 2, 2, 1])) == pytest.approx(0.053, abs=1e-3)


def test_a_table_that_waits_forever() -> None:
    table = make_table("1f1b", 2, 2, 2)
    table[1].reverse()
    with pytest.raises(ValueError, match="wait forever"):
        simulate(table)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("fifo", 2, 2, 2), "expected gpipe, 1f1b"),
        (("gpipe", 2, 0, 2), "at least 1 of each"),
        (("1f1b", 2, 4, 4), "expected as many"),
        (("interleaved", 2, 4, 3), "expected a multiple"),
        (("interleaved", 2, 3, 4), "3 micro-batches and 2 stages"),
    ],
)
def test_schedules_that_do_not_exist(arguments: tuple[str, int, int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_table(*arguments)


def test_the_picture() -> None:
    assert picture(simulate(make_table("1f1b", 2, 2, 2)), 54).splitlines() == [
        "stage 0 |F0=== F1===             B0---------       B1--------- |",
        "stage 1 |      F0=== B0--------- F1=== B1---------             |",
    ]


def test_what_a_program_keeps_for_the_next() -> None:
    """Kept are sums and the inputs; scores, which are larger than their factors, are recomputed."""
    q, k, w = (Tensor.zeros(*shape).contiguous().realize() for shape in ((40, 8), (40, 8), (8, 8)))
    scores = (q @ w).relu() @ k.T
    y = scores.exp().sum(1)
    (slope,) = y.sum().gradient(w)
    forward, backward = cut([[y.node], [slope.node]], [q.node, k.node])
    assert not {node.shape for node in backward.reads} & {(40, 40), (40, 1, 40)}
    assert {q.node, k.node} <= {*backward.reads}
    assert [node for node in backward.reads if node not in (q.node, k.node)] == [
        node for node in forward.writes if node is not y.node
    ]


def test_a_derivative_is_kept_in_the_place_of_what_it_is_of() -> None:
    """As in a single program: the activation and its derivative are kept, not their common input.
    """
    shapes = (64, 48), (48, 96), (96, 8), (64, 8)
    x, w, v, slope = (Tensor.zeros(*shape).contiguous().realize() for shape in shapes)
    y = (x @ w).gelu() @ v
    found = y.gradient(x, w, v, gradient=slope)
    roots = simplify(without_rules([y.node, *(tensor.node for tensor in found)]))
    forward, backward = cut([roots[:1], roots[1:]], [x.node, slope.node])
    kept = [node for node in backward.reads if node.op is not Op.BUFFER]
    assert [node.shape for node in kept] == [(64, 96)] * 2
    assert not any(node.op is Op.SUM for node in kept)
    assert [*forward.writes] == [roots[0], *kept]
