"""The order of kernels: each after those it needs, and memory is freed as early as possible."""

from __future__ import annotations

import random

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.collective import exchange
from minigrad.graph.gradient import gradient
from minigrad.graph.node import Node, Op
from minigrad.schedule.expr import Array
from minigrad.schedule.fuse import Cluster, Waits
from minigrad.schedule.order import after_needs, freeing_early

from .machine import GOLDEN
from .programs import Inputs, ew, mul, number, plan_of, product


def random_clusters(random_: random.Random) -> tuple[list[Cluster], dict[Cluster, list[Array]]]:
    """Clusters that need some of the earlier ones, and the arrays that each fills."""
    clusters = [
        Cluster(GOLDEN, frozenset(), "exchange" if random_.random() < 0.1 else "rows")
        for _ in range(random_.randint(1, 30))
    ]
    filled: dict[Cluster, list[Array]] = {}
    for place, member in enumerate(clusters):
        member.needs = set(random_.sample(clusters[:place], min(place, random_.randint(0, 3))))
        filled[member] = [
            Array(f"{place}.{part}", dtypes.float32, 1000 * random_.choice([1, 10, 100, 1000]))
            for part in range(random_.randint(0, 2))
        ]
    random_.shuffle(clusters)
    return clusters, filled


def most_alive(
    order: list[Cluster], filled: dict[Cluster, list[Array]], readers: dict[Array, list[Cluster]]
) -> int:
    """The most bytes that are alive at one step."""
    step = {member: place for place, member in enumerate(order)}
    change = [0] * (len(order) + 1)
    for member, arrays in filled.items():
        for array in arrays:
            last = max([step[member], *(step[reader] for reader in readers[array])])
            change[step[member]] += array.size * 4
            change[last + 1] -= array.size * 4
    alive = most = 0
    for difference in change:
        alive += difference
        most = max(most, alive)
    return most


def needed_by(member: Cluster) -> set[Cluster]:
    """A cluster and all that it needs, directly or not."""
    found, stack = {member}, [member]
    while stack:
        stack += (more := stack.pop().needs - found)
        found |= more
    return found


def test_who_waits_for_whom_is_known_however_needs_are_added() -> None:
    seed = random.SystemRandom().randrange(2**31)
    random_ = random.Random(seed)
    found = set()
    for _ in range(100):
        waits = Waits()
        clusters = [Cluster(GOLDEN, frozenset(), "rows") for _ in range(random_.randint(2, 20))]
        for member in clusters:
            waits.add(member, ())
        for _ in range(random_.randint(1, 60)):  # in any order: needed ones may get needs later
            member, *others = random_.sample(clusters, min(len(clusters), random_.randint(2, 4)))
            waits.add(member, [one for one in others if member not in needed_by(one)])
            start, goal = random_.sample(clusters, random_.randint(0, 2)), random_.choice(clusters)
            there = any(goal in needed_by(one) for one in start)
            assert waits.reaches(start, goal) == there, seed
            found.add(there)
    assert found == {True, False}, seed


def test_clusters_that_need_each_other_are_refused() -> None:
    waits = Waits()
    one, two, three = (Cluster(GOLDEN, frozenset(), "rows") for _ in range(3))
    for member, needs in ((one, ()), (two, (one,)), (three, (two,))):
        waits.add(member, needs)
    with pytest.raises(AssertionError, match="need each other"):
        waits.add(one, (three,))


def test_needs_come_first_whatever_frees() -> None:
    seed = random.SystemRandom().randrange(2**31)
    better = worse = 0
    for number_ in range(300):
        clusters, filled = random_clusters(random.Random(seed + number_))
        readers = {
            array: [other for other in clusters if member in other.needs]
            for member, arrays in filled.items() for array in arrays
        }  # fmt: skip
        before = after_needs(clusters)
        after = freeing_early(before, filled, readers)
        assert sorted(map(id, after)) == sorted(map(id, clusters))
        for order in (before, after):
            place = {member: number for number, member in enumerate(order)}
            for member in clusters:
                assert all(place[needed] < place[member] for needed in member.needs), seed + number_
        most = [most_alive(order, filled, readers) for order in (before, after)]
        better += most[1] < most[0]
        worse += most[1] > most[0]
    assert better > worse, seed  # a rule of thumb: not for each graph, but for most


@pytest.mark.parametrize("layers", [3, 6])
def test_what_a_layer_keeps_is_free_when_its_gradient_is_taken(layers: int) -> None:
    """Gradients of all weights need the memory of the forward pass, and little more."""
    rows, width = 512, 64

    def build(inputs: Inputs) -> list[Node]:
        x = inputs(rows, width)
        weights = [inputs(width, width) for _ in range(layers)]
        for weight in weights:
            # the gradient needs the product and its activation, and both are costly to compute
            x = ew(Op.EXP, mul(product(x, weight), 0.01))
        loss = g.reduce(Op.SUM, mul(x, x), (0, 1))
        found = gradient([loss], [number(1.0, loss)], weights)
        gradients = [node for node in found if node is not None]
        norm = gradients[0]
        for node in gradients[1:]:
            norm = ew(Op.ADD, norm, node)
        scale = g.expand(g.reshape(g.reduce(Op.SUM, mul(norm, norm), (0, 1)), (1, 1)), norm.shape)
        return [mul(node, scale) for node in gradients]  # each waits for all gradients

    layer, weight = rows * width * 4, width * width * 4
    arena = plan_of(build).arena_bytes
    assert arena <= (layers + 2) * layer + layers * weight


@pytest.mark.parametrize("layers", [3, 8])
def test_results_of_a_layer_are_taken_when_what_they_are_of_is_there(layers: int) -> None:
    """Gradients of weights and of a bias, which are the last readers of their layer's slopes."""
    rows, width = 512, 64

    def build(inputs: Inputs) -> list[Node]:
        slope, found = inputs(rows, width), []
        for _ in range(layers):
            x = inputs(rows, width)  # stored by another program: reading it frees nothing
            slope = ew(Op.EXP, mul(product(slope, inputs(width, width)), 0.01))
            found += [product(g.permute(x, (1, 0)), slope), g.reduce(Op.SUM, slope, (0,))]
        return [slope, *found]

    assert plan_of(build).arena_bytes <= 2 * rows * width * 4


def test_all_that_are_left_to_read_an_array_run_together() -> None:
    """Neither of a layer's two gradients alone frees its slopes, and both fill much memory."""
    rows, width = 512, 64

    def build(inputs: Inputs) -> list[Node]:
        slope, found = inputs(rows, width), []
        for _ in range(8):
            slope = ew(Op.EXP, mul(product(slope, inputs(width, width)), 0.01))
            left, right = (g.permute(inputs(rows, width), (1, 0)) for _ in range(2))
            found += [product(left, slope), product(right, slope)]
        total = g.reduce(Op.SUM, slope, (0, 1))  # all gradients wait for it
        scale = g.expand(g.reshape(total, (1, 1)), (width, width))
        return [mul(node, scale) for node in found]

    assert plan_of(build).arena_bytes <= 2 * rows * width * 4 + 16 * width * width * 4


def test_what_frees_memory_runs_while_an_exchange_is_under_way() -> None:
    """Tensor parallel, backward: the weight's gradient is computed while another is exchanged."""

    def build(inputs: Inputs) -> list[Node]:
        weight = inputs(64, 64)
        x = ew(Op.EXP, inputs(256, 64))
        slope = ew(Op.EXP, product(x, weight))
        total = exchange("all_reduce", "g", 2, [product(slope, weight)], "sum")
        of_weight = product(g.permute(x, (1, 0)), slope)
        return [ew(Op.EXP, total), of_weight]

    order = [kernel.kind for kernel in plan_of(build).kernels]
    begin, end = order.index("exchange"), order.index("wait")
    assert order[begin:end] == ["exchange", "contraction"], order


def test_an_old_value_is_read_before_it_is_written_over(on_device: str) -> None:
    """Each stage of a kernel of row sums stores its result, which later stages must not read."""
    x, before = np.random.default_rng(0).random((2, 30, 8), dtype=np.float32)
    sums, softmax = np.exp(x).sum(1), np.exp(x) / np.exp(x).sum(1, keepdims=True)
    data = Tensor(x).realize()
    for value, expected, old in (
        (data.exp().sum(1), sums, before[:, 0]),
        (data[:, 0] * 2, x[:, 0] * 2, before[:, 0]),
        (data.softmax(1), softmax, before),
        (data @ data.T @ data, x @ x.T @ x, before),
    ):
        target = Tensor(old).realize()
        later = target * 2 + value.log()
        target.assign(value)
        Tensor.realize(target, later)
        np.testing.assert_allclose(target.numpy(), expected, rtol=1e-4)
        np.testing.assert_allclose(later.numpy(), old * 2 + np.log(expected), rtol=1e-4)
