"""Random graphs: fused, unfused and reference results agree. See `graphs` for the command."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings

from .graph_steps import make_graph
from .graphs import Graph, Statement, fails, problems, report, shrink

# 200 graphs in CI, in batches so that a failure shows its batch; 20,000 with the profile "long".
BATCHES = 20
GRAPHS = 200 if settings().max_examples <= 20 else 20_000
FIRST_SEED = random.SystemRandom().randrange(2**31)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_fixed_graphs(batch: int, compiled: str) -> None:
    """Graphs of seeds 0 … 99: the same in every run."""
    _check(range(batch * 5, batch * 5 + 5), compiled)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_new_graphs(batch: int, compiled: str) -> None:
    """Graphs of new seeds in each run; a failure prints seed and script."""
    size = (GRAPHS - 100) // BATCHES
    first = FIRST_SEED + batch * size
    _check(range(first, first + size), compiled)


def _check(seeds: range, device: str) -> None:
    found = [report(make_graph(seed), device, f"seed {seed}") for seed in seeds]
    failures = [text for text in found if text]
    assert not failures, "\n\n".join(failures[:3])


def test_a_seed_makes_one_graph(reference: str) -> None:
    """The same seed gives the same script, and scripts run on their own."""
    assert make_graph(7).script(reference) == make_graph(7).script(reference)
    assert len({make_graph(seed).script(reference) for seed in range(20)}) == 20
    script = make_graph(7).script(reference)
    exec(script.replace("tests.property", str(__package__)), {})  # pytest's name for the package


def test_graphs_are_varied() -> None:
    """Graphs have several statements and outputs, in-place writes, and gradients."""
    graphs = [make_graph(seed) for seed in range(60)]
    assert all(2 <= len(graph) <= 60 for graph in graphs)
    assert sum(len(graph) for graph in graphs) > 14 * len(graphs)
    assert sum(len(graph.outputs) > 1 for graph in graphs) > 30
    assert any(s.writes for graph in graphs for s in graph.statements)
    assert any(".gradient(" in s.code for graph in graphs for s in graph.statements)


def _wrong_graph() -> Graph:
    """A graph that computes something else in the float64 run."""
    leaf = Statement("a", "leaf(1, (5,), 'float32', 3, device, real)", (), (5,), "float32")
    middle = Statement("b", "a.tanh()", ("a",), (5,), "float32")
    wrong = Statement("c", "b + (1 if real else 0)", ("b",), (5,), "float32")
    return Graph((leaf, middle, wrong), ("b", "c"))


def test_the_comparison_notices_a_difference(reference: str) -> None:
    """A graph with another result in float64 fails, and shrinks to its wrong output."""
    graph = _wrong_graph()
    assert f"{reference}, c" in problems(graph, reference)[0]
    assert fails(graph, reference)
    small = shrink(graph, reference, seconds=5)
    assert small.outputs == ("c",)
    assert [s.name for s in small.statements] == ["b", "c"]
