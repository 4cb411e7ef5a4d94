"""Training a language model: the step, the schedule of its learning rate, validation."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from minigrad import Device, Tensor, jit, nn
from minigrad.graph.symbolic import ceildiv
from minigrad.models import console
from minigrad.models.console import Progress
from minigrad.models.errors import InputError
from minigrad.models.interrupt import Interruption, Stopped
from minigrad.models.metrics import Metrics, shown
from minigrad.models.moe import recording
from minigrad.models.parallel import timeline
from minigrad.models.parallel.pipeline import Pipeline
from minigrad.models.parallel.training import Alone, Replica
from minigrad.models.text import Windows

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT

RECENT = 50  # batches whose mean is reported as the training loss


class LanguageModel(Protocol):
    """A model that can be trained here."""

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats per token, a scalar; both arguments (batch, length) of integers."""


@dataclass(frozen=True)
class TrainingPlan:
    """How to train. lr is the peak of the learning rate; the other figures are common for GPTs.

    Weight decay is for matrices only: pulling biases and scales of layer norms to zero does not
    help (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", for the decay itself).
    """

    steps: int = 2000
    batch: int = 12
    lr: float = 3e-3
    warmup: int = 100
    final_lr: float = 0.1  # share of the peak at the end
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    accumulate: int = 1  # parts of a batch, computed one after the other
    recompute: bool = False  # compute blocks again in the backward pass, keep no activations
    validate_every: int = 500
    # Upper limits; a short text has fewer windows (`Windows.apart`).
    validation_windows: int = 480  # during training
    final_windows: int = 2400  # at the end: at 64 tokens each, ± 0.01 nats
    first_windows: int = 0  # before the first step, for pretrained models


def parameter_count(model: object) -> int:
    """The number of trainable parameters."""
    return sum(math.prod(tensor._known_shape()) for tensor in nn.state.get_parameters(model))


class MatrixAdamW(nn.optim.AdamW):
    """AdamW without weight decay for parameters of fewer than two dimensions."""

    def __init__(self, params: Iterable[Tensor], plan: TrainingPlan) -> None:
        super().__init__(params, lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)

    def _options_of(self, param: Tensor) -> dict[str, Any]:
        options = super()._options_of(param)
        return options if param.ndim >= 2 else {**options, "weight_decay": 0.0}


def make_schedule(plan: TrainingPlan) -> nn.schedule.Rate:
    """Warm-up (at most half of the steps), then a cosine down to `final_lr` of the peak."""
    warmup = min(plan.warmup, plan.steps // 2)
    return nn.schedule.cosine(plan.lr, plan.steps, warmup, plan.lr * plan.final_lr)


def make_step(
    model: LanguageModel, optimizer: nn.optim.Optimizer, clip: float, accumulate: int = 1,
    recompute: bool = False, division: Alone | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:  # fmt: skip
    """The function of one update: step(ids, targets) → the loss before it, all in one program.

    It is captured: from the third call on, a step is one native call. The learning rate is a tensor
    (`optimizer.lr`, set from outside), so a replay uses its current value. accumulate: so many
    equal parts of the batch are computed one after the other, and their gradients averaged, in the
    memory of one part. recompute: see `backward_by_blocks`. division: how the work is shared; a
    replica gets its part of the batch, and returns the loss over all.
    """
    shared = division or Alone(model)

    def part_of(ids: Tensor, targets: Tensor) -> Tensor:
        share = accumulate / shared.weight
        if recompute:
            return backward_by_blocks(model, ids, targets, share)  # type: ignore[arg-type]
        loss = model.loss(ids, targets) / share
        loss.backward()
        return loss.detach()  # nobody differentiates it again after the parameters have changed

    def step(ids: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        rows = ids._known_shape()[0] // accumulate
        total: Tensor | None = None
        for first in range(0, rows * accumulate, rows):
            # a part's loss has no name: a lazy value that is looked at would be computed again from
            # the old weights before they change
            total = _plus(total, part_of(ids[first : first + rows], targets[first : first + rows]))
            shared.divide_gradients(optimizer.params)
            if accumulate > 1:  # now, so that the next part can use this one's memory
                Tensor.realize(total, *_gradients(optimizer.params))
        assert total is not None
        total = shared.share_gradients(total, optimizer.params)
        nn.optim.clip_grad_norm(optimizer.params, clip)
        optimizer.step(forget=True)
        return total.realize()

    return jit(step)


def _plus(total: Tensor | None, loss: Tensor) -> Tensor:
    return loss if total is None else total + loss


def _gradients(params: Iterable[Tensor]) -> list[Tensor]:
    return [param.grad for param in params if param.grad is not None]


def backward_by_blocks(model: GPT, ids: Tensor, targets: Tensor, share: float = 1) -> Tensor:
    """Activation checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost").

    Only the input of each block is kept; the backward pass computes a block again when it gets
    there. Adds the gradients of loss / share, and returns that. Dropout would differ the second
    time, so it raises ValueError.
    """
    if model.config.dropout and Tensor.training:
        raise ValueError("blocks with dropout cannot be recomputed: set dropout to 0")
    params = nn.state.get_parameters(model)
    entries: list[Tensor] = []
    with Tensor.no_grad():
        x = model.embed(ids).realize()
        for block in model.h:
            entries.append(x)
            x = block(x).realize()
    leaf = x.detach().requires_grad_(True)
    loss = model.unembed(model.ln_f(leaf)).cross_entropy(targets, axis=-1) / share
    loss.backward()
    Tensor.realize(loss, leaf.grad, *_gradients(params))
    extra: Tensor | None = None
    for entry, block in zip(reversed(entries), reversed(model.h), strict=True):
        above, leaf = leaf.grad, entry.detach().requires_grad_(True)
        with recording() as routes:
            goal = (block(leaf) * above).sum()
        if routes and Tensor.training:
            routing = model.routing_loss(routes) / (model.config.layers * share)
            goal = goal + routing
            extra = routing if extra is None else extra + routing
        goal.backward()
        Tensor.realize(leaf.grad, *_gradients(params), *([] if extra is None else [extra]))
    (model.embed(ids) * leaf.grad).sum().backward()
    Tensor.realize(*_gradients(params))
    return loss.detach() if extra is None else (loss + extra).detach()


class GivenUp(Exception):
    """A validation was stopped: there is no loss."""


def evenly(windows: Windows, most: int, batch: int, least: int = 1) -> tuple[int, int]:
    """(windows, windows per batch) for a validation on `most` windows, in batches of equal size.

    A short text has fewer windows: more would only read its tokens again. least: the number of
    ranks that share a batch.
    """
    count = min(most, windows.apart)
    batches = ceildiv(count, batch)
    size = max(ceildiv(count, batches), least)
    return batches * size, size


def validate(
    model: LanguageModel, windows: Windows, most: int, batch: int, division: Alone | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> float:  # fmt: skip
    """Mean loss over windows spread evenly over a text (see `evenly`), in nats per token.

    GivenUp if `stop`, called before each batch, returns true.
    """
    losses, shared = [], division or Alone(model)
    count, size = evenly(windows, most, batch, shared.rows)
    with Tensor.no_grad():
        for ids, targets in windows.spread(count, size):
            if stop():
                raise GivenUp
            losses.append(shared.loss(ids, targets))
    return sum(losses) / len(losses)


class TrainingRun:
    """The training of a model: everything that a step needs, and that a checkpoint must hold.

    Batches depend on (seed, step) only, so the number of steps done is the place in the data.
    """

    def __init__(
        self, model: LanguageModel, plan: TrainingPlan, division: Alone | None = None
    ) -> None:
        self.model, self.plan, self.division = model, plan, division or Alone(model)
        self.done, self.elapsed = 0, 0.0
        self.schedule = make_schedule(plan)
        self.optimizer: Pipeline | MatrixAdamW
        self._step: Callable[[Any, Any], float]
        if isinstance(division, Pipeline):
            self.optimizer, self._step = division, division.step
            division.train_with(lambda params: MatrixAdamW(params, plan), plan.clip)
            return
        optimizer = self.optimizer = MatrixAdamW(nn.state.get_parameters(model), plan)
        self.division.take(optimizer)
        step = self._captured = make_step(
            model, optimizer, plan.clip, plan.accumulate, plan.recompute, self.division
        )
        self._step = lambda *arrays: float(step(*self.division.batch(*arrays)).item())

    def advance(self, windows: Windows) -> tuple[float, float]:
        """Run one step; returns (the loss before it, its learning rate).

        InputError if the loss is not finite.
        """
        rate = self.schedule(self.done)
        self.optimizer.set_lr(rate)
        with Tensor.train(), timeline.step():
            loss = self._step(*self._batch(windows))
        self.done += 1
        check_finite(loss, self.done, self.plan.lr)
        return loss, rate

    def explain(
        self, windows: Windows, path: str, speaks: bool = True, values: bool = False
    ) -> None:
        """Write a page that explains the next step, which runs several times for it."""
        if isinstance(self.division, Pipeline):
            raise InputError("--explain does not support pipelines: leave out --pp")
        tensors = self.division.batch(*self._batch(windows))
        console.explain_step(path, self._captured, *tensors, speaks=speaks, values=values,
                             ranks=self.division.group)  # fmt: skip

    def _batch(self, windows: Windows) -> tuple[Any, Any]:
        """The tokens of the next step, and the token after each."""
        return windows.batch(self.plan.batch, self.plan.seed, self.done)

    def tensors(self) -> dict[str, Tensor]:
        """The state of the optimizer."""
        return self.optimizer.state_dict()

    def facts(self) -> dict[str, Any]:
        """Everything else, as JSON: steps, seconds, random numbers drawn."""
        seed, devices = Tensor.random_state()
        mesh, usual = self.division.mesh, Device.canonical(Device.DEFAULT)
        drawn = devices.get(mesh.name if mesh else "", devices.get(usual))
        return {"step": self.done, "elapsed": self.elapsed, "random": [seed, drawn]}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state in `tensors` and `facts`, on any device."""
        self.optimizer.load_state_dict(tensors)
        self.done, self.elapsed = operator.index(facts["step"]), float(facts["elapsed"])
        seed, drawn = facts["random"]
        if drawn is not None and [type(word) for word in drawn] != [int] * 3:
            raise ValueError(f"its random state is {drawn}")
        shared = self.division
        if isinstance(shared, Replica) and drawn is not None:  # as `Replica.seed` had set it
            seed, drawn = shared.seed(seed), [drawn[0], shared.rank.number, drawn[2]]
        devices = {} if drawn is None else {Device.canonical(Device.DEFAULT): drawn}
        Tensor.set_random_state((seed, devices))


def check_finite(loss: float, step: int, lr: float) -> None:
    """InputError for a loss that is infinite or NaN."""
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} at step {step}: try a smaller --lr than {lr}")


def recent_mean(losses: Sequence[float]) -> tuple[float, int]:
    """(the mean of the last batches' losses, their number): a single batch says little."""
    recent = losses[-RECENT:]
    return sum(recent) / len(recent), len(recent)


class OverfittingWatch:
    """Compares each validation with the best one before it."""

    def __init__(self) -> None:
        self.best, self.best_step, self.best_training = math.inf, 0, math.inf
        self.rises = 0

    def recall(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Look at the validations of a run's earlier part, as recorded by `Metrics`."""
        losses: list[float] = []
        for line in history:
            if line["loss"] is not None:
                losses.append(line["loss"])
            if losses and line["val_loss"] is not None:
                self.look(line["step"], recent_mean(losses)[0], line["val_loss"])

    def look(self, step: int, training: float, val_loss: float) -> str:
        """A warning from the second rise in a row on, else "". training: see `recent_mean`."""
        if val_loss <= self.best:
            self.best, self.best_step, self.best_training, self.rises = val_loss, step, training, 0
            return ""
        self.rises += training < self.best_training
        if self.rises < 2:
            return ""
        return (
            f"overfitting: the validation loss was {shown(self.best)} at step {self.best_step} and "
            f"is {shown(val_loss)} now, while the training loss fell to {shown(training)}; what "
            f"helps: stop earlier (--steps {self.best_step}), more text, dropout, a smaller model"
        )


def finish(
    run: TrainingRun, training: Windows, validation: Windows, metrics: Metrics,
    save: Callable[[], None] = lambda: None, interruption: Interruption | None = None,
) -> float:  # fmt: skip
    """Run the remaining steps; returns the validation loss at the end.

    Every step is recorded in `metrics`. A warning is printed if the validation loss rises while the
    training loss falls: the model then memorizes its examples. `save` is called when validation
    interrupts the training, before the last validation, which may take long, and when a signal ends
    a step or a validation, which raises Stopped. InputError if the loss is no longer finite.
    """
    plan = run.plan
    start, val_loss = time.perf_counter() - run.elapsed, None
    tokens, losses = plan.batch * training.context, metrics.curve("loss")[1]
    watch = OverfittingWatch()
    watch.recall(metrics.history)

    def stop() -> bool:
        return run.division.agreed(interruption is not None and interruption.number is not None)

    with Progress(plan.steps, "tokens", not run.division.is_first) as progress:
        if plan.first_windows and not run.done:
            # fine-tuning that ends above it has done harm
            before = _validated(run, validation, plan.first_windows, stop)
            if before is not None:
                progress.say(f"before the first step: validation {shown(before)}")
        while run.done < plan.steps:
            begin = time.perf_counter()
            loss, rate = run.advance(training)
            speed = tokens / (time.perf_counter() - begin)
            losses.append(loss)
            run.elapsed = time.perf_counter() - start
            progress.update(run.done, loss, speed)
            last, val_loss = run.done == plan.steps, None
            validated = last or run.done % plan.validate_every == 0
            if last:  # whatever ends the process during validation, the steps are not lost
                _save_if_possible(save, progress)
            if validated:
                most = plan.final_windows if last else plan.validation_windows
                val_loss = _validated(run, validation, most, stop)
                if val_loss is not None:
                    check_finite(val_loss, run.done, plan.lr)  # the last step has no other check
                    _report(run, val_loss, losses, watch, progress)
            metrics.record(step=run.done, loss=loss, val_loss=val_loss, lr=rate,
                           tokens_per_s=speed, elapsed_s=run.elapsed)  # fmt: skip
            complete = last and val_loss is not None  # then a signal has nothing left to end
            if not complete and stop():
                save()
                number = None if interruption is None else interruption.number
                raise Stopped(number or 0, f"stopped after step {run.done} of {plan.steps}")
            if validated and not last:
                _save_if_possible(save, progress)
    return math.nan if val_loss is None else val_loss


def _save_if_possible(save: Callable[[], None], progress: Progress) -> None:
    try:
        save()
    except InputError as error:  # there may be space again at the end
        progress.say(f"not saved: {error}")


def _validated(
    run: TrainingRun, validation: Windows, most: int, stop: Callable[[], bool]
) -> float | None:
    """The validation loss; None if `stop` ended the validation."""
    try:
        return validate(run.model, validation, most, 4 * run.plan.batch, run.division, stop)
    except GivenUp:
        return None


def _report(
    run: TrainingRun, val_loss: float, losses: Sequence[float], watch: OverfittingWatch,
    progress: Progress,
) -> None:  # fmt: skip
    """Report a validation after a step."""
    mean, count = recent_mean(losses)
    progress.say(
        f"step {run.done}: validation {shown(val_loss)}, training {shown(mean)} (mean of the last "
        f"{count} batches)"
    )
    if warning := watch.look(run.done, mean, val_loss):
        progress.say(warning)
