"""A small training of any layout, as `gpt.py` does it, of which others time the steps."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import Tensor
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.network_model import Layout
from minigrad.models.parallel import Mesh as Ranks
from minigrad.models.parallel import Rank, run
from minigrad.models.parallel.layouts import division_of, is_divided
from minigrad.models.parallel.training import Replica
from minigrad.models.text import Windows
from minigrad.models.train import TrainingPlan, TrainingRun

WARM = 3  # steps that compile and capture


class Trial:
    """A training of random tokens; ranks come together to it where there are some.

    layout: a pipeline's micro-batches are parts of a batch on one device, too.
    """

    def __init__(
        self, config: GPTConfig, batch: int, layout: Layout, rank: Rank | None = None
    ) -> None:
        Tensor.manual_seed(1)
        ids = np.random.default_rng(1).integers(0, config.vocabulary, 64 * config.context + 1)
        self.windows = Windows(ids.astype(np.int32), config.context, "random tokens")
        parts = layout.micro if layout.pp == 1 else 1  # one after the other
        model, plan = GPT(config), TrainingPlan(batch=batch, accumulate=parts)
        replica = None if rank is None else Replica.of_gpt(rank, model, config.context)
        flags = _flags(layout)
        division = division_of(flags, model) if is_divided(flags) else None
        self.run = TrainingRun(model, plan, replica, division)

    def step(self) -> float:
        """Do one; gives its seconds."""
        start = time.perf_counter()
        self.run.advance(self.windows)
        return time.perf_counter() - start


def _flags(layout: Layout) -> Namespace:
    """A layout as the flags of `gpt.py`."""
    return Namespace(
        dp=layout.dp, tp=layout.tp, pp=layout.pp, zero=layout.zero,
        sp=layout.tp if layout.tokens else layout.sp, micro=layout.micro,
        schedule=layout.schedule, pieces=layout.pieces,
    )  # fmt: skip


def with_trial(
    config: GPTConfig, batch: int, layout: Layout, use: Callable[[Trial], Any]
) -> Any:
    """What use(trial) gives, in this process's rank, after the first steps."""

    def begin(rank: Rank | None = None) -> Any:
        trial = Trial(config, batch, layout, rank)
        for _ in range(WARM):
            trial.step()
        return use(trial)

    if is_divided(_flags(layout)) or layout.devices == 1:
        return begin()
    found = run(begin, Ranks(layout.dp, layout.sp))
    return next((one for one in found if one is not None), None)
