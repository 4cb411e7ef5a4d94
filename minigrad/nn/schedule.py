"""Learning rates as functions of the step, and a class that applies them to an optimizer."""

from __future__ import annotations

import math
from typing import Any

from minigrad.errors import expect
from minigrad.nn.lr_scheduler import LambdaLR
from minigrad.nn.lr_scheduler import Rate as Rate
from minigrad.tensor.arguments import check_functions


def constant(lr: float) -> Rate:
    """Always lr."""
    return lambda step: lr


def linear_warmup(lr: float, warmup: int, then: Rate | None = None) -> Rate:
    """lr·1/warmup, lr·2/warmup, …, lr in the first `warmup` steps; then lr, or `then(step)`."""
    expect(warmup >= 0, "linear_warmup", "an int ≥ 0", error=ValueError, warmup=warmup)
    after = then or constant(lr)
    return lambda step: lr * (step + 1) / warmup if step < warmup else after(step)


def cosine(lr: float, steps: int, warmup: int = 0, final: float = 0.0) -> Rate:
    """Linear warm-up to lr, then half a cosine down to `final` at step `steps`, and then constant.
    """
    expect(steps > warmup, "cosine", "steps > warmup", error=ValueError, steps=steps, warmup=warmup)

    def falling(step: int) -> float:
        share = min((step - warmup) / (steps - warmup), 1.0)
        return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * share))

    return linear_warmup(lr, warmup, falling)


class Schedule(LambdaLR):
    """Sets an optimizer's learning rate when created, and after each `step()`."""

    def __init__(self, optimizer: Any, rate: Rate, step: int = 0) -> None:
        super().__init__(optimizer, rate, step - 1)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self.get_last_lr()[0]

    def get_last_lr(self) -> list[float]:
        """The learning rates of the next step, of each group."""
        return [rate(self.last_epoch) for rate in self.factors]


check_functions(globals())
