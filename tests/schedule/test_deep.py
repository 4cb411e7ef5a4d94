"""Compile time grows in proportion to the number of kernels: work is counted, not timed."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from devices import OTHER

from minigrad import Tensor
from minigrad.schedule.schedule import place
from minigrad.target import LINE
from minigrad.tensor import history


def first_fit(held: Iterable[tuple[int, int, int]]) -> list[int]:
    """Offsets by first fit, found by a search of every step: the results that `place` must give."""
    taken: dict[int, list[tuple[int, int]]] = {}
    offsets = []
    for nbytes, begin, end in held:
        size, offset = -(-nbytes // LINE) * LINE, 0
        steps = range(begin, end + 1)
        for start, stop in sorted({one for step in steps for one in taken.get(step, ())}):
            if offset + size <= start:
                break
            offset = max(offset, stop)
        offsets.append(offset)
        for step in steps:
            taken.setdefault(step, []).append((offset, offset + size))
    return offsets


@pytest.mark.parametrize("seed", range(20))
def test_places_are_those_of_first_fit(seed):
    rng = random.Random(seed)
    held = []
    for _ in range(rng.randrange(60)):
        begin = rng.randrange(40)
        held.append((rng.choice((0, 1, 64, 1000, 5000)), begin, begin + rng.randrange(12)))
    offsets, most = place(held)
    assert list(offsets) == first_fit(held)
    ends = (o + -(-n // LINE) * LINE for o, (n, _, _) in zip(offsets, held, strict=True))
    assert most == max(ends, default=0)


def test_histories_that_are_kept_together_walk_the_graph_once(monkeypatch):
    """Recording many values of a graph, realized together, takes as many walks as recording two."""
    walks: list[int] = []
    topological = history.topological

    def counted(*given):
        walks.append(1)
        return topological(*given)

    monkeypatch.setattr(history, "topological", counted)
    counts = []
    for number in (2, 60):
        x = Tensor([1.0, 2.0], requires_grad=True)
        values = [x]
        for _ in range(number):
            values.append((values[-1] * 2).sin())
        walks.clear()
        Tensor.realize(*values[1:])
        counts.append(len(walks))
    assert counts[0] == counts[1]
    (slope,) = values[-1].sum().gradient(x)
    assert slope.shape == (2,)


def test_each_history_is_void_for_itself(on_device):
    """A write voids the values that need what it replaces, not those realized beside them."""
    x, y = (Tensor([1.0, 2.0], requires_grad=True).realize() for _ in range(2))
    a, b = x.exp(), y.exp()
    Tensor.realize(a, b)
    with Tensor.no_grad():
        x += 1
    Tensor.realize(x)
    assert b.sum().gradient(y)[0].tolist() == pytest.approx([2.718281, 7.389056], rel=1e-5)
    c, d = a * 3, b * 3
    Tensor.realize(c, d)
    assert d.sum().gradient(y)[0].tolist() == pytest.approx([8.154845, 22.167168], rel=1e-5)
    for void in (a, c):
        with pytest.raises(history.GradientError, match="overwritten in place"):
            void.sum().backward()


def test_values_go_to_and_fro_as_often_as_one_likes(on_device):
    """Copies that depend on copies run one after the other, without recursion."""
    x = Tensor([1.0, 2.0])
    for number in range(400):
        x = (x + 1).to(on_device if number % 2 else OTHER)
    assert x.tolist() == [401.0, 402.0]
