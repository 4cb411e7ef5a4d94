"""Training a language model: the step, the schedule of its learning rate, validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from minigrad import Tensor, nn
from minigrad.models.console import Progress
from minigrad.models.errors import InputError
from minigrad.models.metrics import Metrics
from minigrad.models.text import Windows


class LanguageModel(Protocol):
    """What can be trained here."""

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean nats per token, a scalar; both arguments (batch, length) of integers."""
        ...


@dataclass(frozen=True)
class TrainingPlan:
    """How to train. lr is the peak of the learning rate; the other figures are common for GPTs.

    Weight decay is for matrices only: pulling biases and the scales of layer norms to zero helps
    nothing (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", for the decay itself).
    """

    steps: int = 2000
    batch: int = 12
    lr: float = 3e-3
    warmup: int = 100
    final_lr: float = 0.1  # share of the peak that is left at the end
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    validate_every: int = 500
    validation_windows: int = 480  # during training
    final_windows: int = 2400  # at the end: at 64 tokens each, ± 0.01 nats


def make_optimizer(model: object, plan: TrainingPlan) -> nn.optim.OptimizerGroup:
    """AdamW for all parameters of a model, with decay for those of at least two dimensions."""
    parameters = nn.state.get_parameters(model)
    matrices = [tensor for tensor in parameters if tensor.ndim >= 2]
    vectors = [tensor for tensor in parameters if tensor.ndim < 2]
    groups = []
    for tensors, decay in ((matrices, plan.weight_decay), (vectors, 0.0)):
        if tensors:
            groups.append(nn.optim.AdamW(tensors, lr=plan.lr, betas=plan.betas, weight_decay=decay))
    return nn.optim.OptimizerGroup(*groups)


Step = Callable[[Tensor, Tensor], Tensor]
