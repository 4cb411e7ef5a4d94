"""Training a language model: the step, the schedule of its learning rate, validation."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from minigrad import Tensor, jit, nn
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


def parameter_count(model: object) -> int:
    """How many numbers a model learns."""
    return sum(math.prod(plain_shape(tensor)) for tensor in nn.state.get_parameters(model))


def plain_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor that has no symbolic dimension; TypeError for one that has."""
    return tuple(operator.index(extent) for extent in tensor.shape)  # type: ignore[arg-type]


class MatrixAdamW(nn.optim.AdamW):
    """AdamW whose weight decay leaves parameters of fewer than two dimensions alone."""

    def __init__(self, params: Iterable[Tensor], plan: TrainingPlan) -> None:
        super().__init__(params, lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
        self.decays = [plan.weight_decay if p.ndim >= 2 else 0.0 for p in self.params]

    def _updated(self, place: int, param: Tensor, grad: Tensor) -> Tensor:
        self.weight_decay = self.decays[place]
        return super()._updated(place, param, grad)


def make_schedule(plan: TrainingPlan) -> nn.schedule.Rate:
    """Warm-up (at most half of the steps), then a cosine down to `final_lr` of the peak."""
    warmup = min(plan.warmup, plan.steps // 2)
    return nn.schedule.cosine(plan.lr, plan.steps, warmup, plan.lr * plan.final_lr)


def make_step(
    model: LanguageModel, optimizer: nn.optim.Optimizer, clip: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """The function of one update: step(ids, targets) → the loss before it, all in one program.

    It is captured: from the third call on, a step is one native call. The learning rate is a tensor
    (`optimizer.lr`, set from outside), so a replay takes its present value.
    """

    def step(ids: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        nn.optim.clip_grad_norm(optimizer.params, clip)
        optimizer.step()
        return loss.realize()

    return jit(step)


def validate(model: LanguageModel, windows: Windows, count: int, batch: int) -> float:
    """Mean loss over `count` windows spread evenly over a text, in nats per token."""
    losses = []
    with Tensor.no_grad():
        for ids, targets in windows.spread(count, batch):
            losses.append(float(model.loss(Tensor(ids), Tensor(targets)).item()))
    return sum(losses) / len(losses)


def train_language_model(
    model: LanguageModel,
    training: Windows,
    validation: Windows,
    plan: TrainingPlan,
    metrics: Metrics,
) -> float:
    """Train, and give the validation loss at the end; every step is recorded in `metrics`.

    Raises InputError where the loss is no longer a finite number.
    """
    optimizer = MatrixAdamW(nn.state.get_parameters(model), plan)
    schedule = make_schedule(plan)
    step = make_step(model, optimizer, plan.clip)
    start, val_loss = time.perf_counter(), math.nan
    tokens = plan.batch * training.context
    with Progress(plan.steps, "tokens") as progress:
        for number in range(plan.steps):
            begin = time.perf_counter()
            rate = schedule(number)
            optimizer.set_lr(rate)
            ids, targets = training.batch(plan.batch, plan.seed, number)
            with Tensor.train():
                loss = float(step(Tensor(ids), Tensor(targets)).item())
            speed = tokens / (time.perf_counter() - begin)
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss is {loss} at step {number + 1}: try a smaller --lr than {plan.lr}"
                )
            done = number + 1
            last = done == plan.steps
            if last or done % plan.validate_every == 0:
                count = plan.final_windows if last else plan.validation_windows
                val_loss = validate(model, validation, count, 4 * plan.batch)
                progress.say(f"step {done}: training {loss:.4f}, validation {val_loss:.4f}")
            progress.update(done, loss, speed)
            metrics.record(
                step=done,
                loss=loss,
                val_loss=val_loss if last or done % plan.validate_every == 0 else None,
                lr=rate,
                tokens_per_s=speed,
                elapsed_s=time.perf_counter() - start,
            )
    return val_loss
