"""Random steps by `Tensor.scan` and by a loop: equal values and gradients."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.graph.node import Node

from .programs import DEVICE
from .random_graphs import random_program

COUNT = 4


class Step:
    """A random program as a step: some of its inputs are rows of xs, some depend on the carry, and
    some are the same in all steps.
    """

    def __init__(self, seed: int) -> None:
        self.program, random = random_program(seed, steps=10), np.random.default_rng(seed)
        shapes: list[tuple[int, ...]] = []

        def note(*shape: int) -> Node:
            shapes.append(shape)
            return Tensor.ones(*shape, device=DEVICE).node

        self.program(note)
        self.kinds = [("row", "carry", "same")[int(random.integers(3))] for _ in shapes]
        self.start = self.leaf(random, 3)
        self.rows = [self.leaf(random, COUNT, *shape) for shape in shapes]
        self.same = [self.leaf(random, *shape) for shape in shapes]

    @staticmethod
    def leaf(random: np.random.Generator, *shape: int) -> Tensor:
        """A leaf of normally distributed numbers."""
        data = random.standard_normal(shape).astype(np.float32)
        return Tensor(data, device=DEVICE, requires_grad=True)

    def __call__(self, carry: Tensor, rows: list[Tensor]) -> tuple[Tensor, Any]:
        """One step."""
        number = itertools.count()

        def take(*shape: int) -> Node:
            n = next(number)
            if self.kinds[n] == "same":
                return self.same[n].node
            return (rows[n] + carry.sum() if self.kinds[n] == "carry" else rows[n]).node

        outs = [Tensor._of(node) for node in self.program(take) if node.dtype.is_float]
        change = sum((out.mean() for out in outs), Tensor(0.1, device=DEVICE))
        return (carry * 0.7 + change).tanh(), outs

    def results(self, repeats: bool, reverse: bool) -> list[Tensor]:
        """The last carry, the outs, and the gradients with respect to all inputs."""
        if repeats:
            last, outs = Tensor.scan(self, self.start, self.rows, reverse=reverse)
        else:
            last, steps = self.start, []
            for t in reversed(range(COUNT)) if reverse else range(COUNT):
                last, out = self(last, [row[t] for row in self.rows])
                steps.append(out)
            steps = steps[::-1] if reverse else steps
            outs = [Tensor.stack(list(parts)) for parts in zip(*steps, strict=True)]
        loss = sum((out.tanh().sum() * (n + 1) for n, out in enumerate(outs)), last.square().sum())
        used = [self.start] + [
            (self.same if kind == "same" else self.rows)[n] for n, kind in enumerate(self.kinds)
        ]
        return [last, *outs, *(g for x in used for g in gradient(loss, x))]


def gradient(loss: Tensor, x: Tensor) -> list[Tensor]:
    """The gradient; an empty list if the loss does not depend on x."""
    try:
        return loss.gradient(x)
    except RuntimeError:
        return []


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_random_steps(seed: int, reverse: bool) -> None:
    step = Step(seed)
    got, wanted = step.results(True, reverse), step.results(False, reverse)
    Tensor.realize(*got)
    assert len(got) == len(wanted)
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        x, y = a.numpy(), b.numpy()
        assert np.abs(x - y).max() <= 2e-4 * max(np.abs(y).max(), 1e-2), (seed, number)
