"""PyTorch's torch.optim.lr_scheduler: factors of an optimizer's initial learning rates.

Several schedulers of one optimizer multiply their factors. `LambdaLR`, `SequentialLR` and
`CosineAnnealingWarmRestarts` start from the first learning rate of all, whatever the current one
is, and so does a cosine that rises again from 0. A factor that stays 0 keeps the rate at 0,
whatever others do (in PyTorch it is no longer applied). `minigrad.nn.schedule` has the same as
functions of the step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

from minigrad.dtype import convert, dtypes
from minigrad.errors import StateError, expect
from minigrad.hints import hint_names
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import check_choice
from minigrad.tensor.observed import observe

Rate = Callable[[int], float]  # of a step: its learning rate, or a factor of it
Rates = Rate | Sequence[Rate]  # one for all groups, or one for each
_EXPECTED = "expected the result of a scheduler's state_dict()"
_NOTHING = 1e-12  # a smaller factor counts as 0: base rates cannot be computed by dividing by it


def _single(rate: float) -> float:
    """The number as a float32, the dtype of an optimizer's learning rate."""
    return convert(rate, dtypes.float32)


class _Factors:
    """Sets each group's learning rate to its base rate times factor(steps taken).

    Factors are methods or partial functions, not local ones, because pickle knows only those.

    least: a part of the rate that is not multiplied. base_lrs: the learning rates at a factor of 1;
    they are recomputed if another scheduler or the user has changed a group's rate since the last
    step. last_epoch: steps taken before, minus 1. A scheduler that begins later (last_epoch ≥ 0)
    starts from the learning rates with which the optimizers were created, because the current ones
    may have been loaded, and include the effect of these steps. from_first: the base rates are the
    first learning rates of all, whatever others do. captured: whether a captured step reads the
    number of steps.
    """

    from_first = captured = False

    def __init__(
        self, optimizer: Any, factors: Rates, last_epoch: int = -1, least: float = 0.0
    ) -> None:
        expect(hasattr(optimizer, "param_groups"),
               type(self).__name__, "an optimizer", type(optimizer).__name__,
               error=TypeError)  # fmt: skip
        self.optimizer = optimizer
        groups = optimizer.param_groups
        self.factors = list(factors if isinstance(factors, Sequence) else [factors] * len(groups))
        for factor in self.factors:
            expect(callable(factor), type(self).__name__, "a function of the step number",
                   repr(factor), error=TypeError)  # fmt: skip
        expect(len(self.factors) == len(groups), type(self).__name__, "a function for each group",
               f"{len(self.factors)} for {len(groups)}", error=ValueError)  # fmt: skip
        self.least = least
        later = last_epoch >= 0
        found = [g.optimizer.lr_at_first if later else g["lr"] for g in groups]
        first = [vars(g.optimizer).setdefault("initial_lr", lr)
                 for g, lr in zip(groups, found, strict=True)]  # fmt: skip
        self.base_lrs: list[float] = first if self.from_first else found
        self.last_epoch = last_epoch + 1
        self._set()
        for group in groups if later else ():  # for another one that begins later
            group.optimizer.lr_at_first = group["lr"]

    @property
    def last_epoch(self) -> int:
        """Steps taken. A captured step may read it (learning rates do), but not change it."""
        self.captured = observe(self, "_last_epoch") or self.captured
        return self._last_epoch

    @last_epoch.setter
    def last_epoch(self, steps: int) -> None:
        if self.captured:  # else replays look at everything that they have noted, for nothing
            observe(self, "_last_epoch", written=True)
        self._last_epoch = steps

    def step(self) -> None:
        """Set the learning rates of the next step; call it after `optimizer.step()`."""
        self.base_lrs = self._bases()
        self.last_epoch += 1
        self._set()

    def _bases(self) -> list[float]:
        """The base rates, given the learning rates that others may have set since the last step."""
        if self.from_first:
            return list(self.base_lrs)
        return [self._rebased(place, group)
                for place, group in enumerate(self.optimizer.param_groups)]  # fmt: skip

    def _set(self) -> None:
        """Set the learning rates of the next step, from the base rates as they are."""
        rates = self.get_last_lr()
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        self._given = [*map(_single, rates)]

    def _rebased(self, place: int, group: Any) -> float:
        """The base rate for a learning rate that another has set; after a factor of 0, the first.
        """
        lr, factor = group["lr"], self.factors[place]
        before = factor(self.last_epoch) if self.last_epoch >= 0 else 1.0
        if before >= _NOTHING:
            changed = _single(lr) != self._given[place]
            return self.least + (lr - self.least) / before if changed else self.base_lrs[place]
        first: float = vars(group.optimizer)["initial_lr"]
        after = factor(self.last_epoch + 1)
        return first + ((lr - self.least) / after if after >= _NOTHING else 0.0)

    def get_last_lr(self) -> list[float]:
        """The learning rates of the next step."""
        return self._rates(self.last_epoch, self.base_lrs)

    def _rates(self, step: int, base_lrs: Sequence[float]) -> list[float]:
        pairs = zip(base_lrs, self.factors, strict=True)
        return [self.least + (base - self.least) * factor(step) for base, factor in pairs]

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: steps taken, base learning rates, and the first ones of all.
        """
        first = [vars(group.optimizer)["initial_lr"] for group in self.optimizer.param_groups]
        state = {"last_epoch": self.last_epoch, "base_lrs": self._bases()}
        return {**state, "initial_lrs": first}

    def load_state_dict(self, state: MutableMapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: {_EXPECTED}, got {type(state).__name__}")
        if missing := [name for name in ("last_epoch", "base_lrs") if name not in state]:
            raise StateError(f"load_state_dict: {_EXPECTED}, missing {missing}")
        rates, steps = state["base_lrs"], state["last_epoch"]
        first = state.get("initial_lrs", rates)  # those of older checkpoints lack it
        several = isinstance(rates, Sequence) and len(rates) == len(self.base_lrs)
        if not (several and isinstance(steps, int) and all(isinstance(r, Real) for r in rates)):
            raise StateError(
                f"load_state_dict: {_EXPECTED} with {len(self.base_lrs)} groups, got base_lrs "
                f"{rates!r} and last_epoch {steps!r}"
            )
        self.base_lrs, self.last_epoch = list(rates), steps
        for group, lr in zip(self.optimizer.param_groups, first, strict=True):
            vars(group.optimizer)["initial_lr"] = lr
        self._set()


class LambdaLR(_Factors):
    """Multiplies each group's initial learning rate by lr_lambda(steps taken).

    optimizer: an `Optimizer` or `OptimizerGroup`. lr_lambda: a function, or one for each group.
    """

    from_first = True

    def __init__(self, optimizer: Any, lr_lambda: Rates, last_epoch: int = -1) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch)


class LinearLR(_Factors):
    """lr · a factor that goes linearly from start_factor to end_factor in total_iters steps.

    As for all schedulers here: lr is the optimizer's when this is created, and `step()` is called
    after each `optimizer.step()`, or after each epoch.
    """

    def __init__(
        self, optimizer: Any, start_factor: float = 1 / 3, end_factor: float = 1.0,
        total_iters: float = 5, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        expect(0 < start_factor <= 1 and 0 <= end_factor <= 1 and total_iters >= 1,
               f"LinearLR({start_factor}, {end_factor}, {total_iters})",
               "0 < start_factor ≤ 1, 0 ≤ end_factor ≤ 1, total_iters ≥ 1",
               error=ValueError)  # fmt: skip
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer, self._factor, last_epoch)

    def _factor(self, step: int) -> float:
        share = min(step / self.total_iters, 1.0)
        return self.start_factor + (self.end_factor - self.start_factor) * share


class StepLR(_Factors):
    """lr · gamma after step_size steps, · gamma² after 2·step_size, …; see `LinearLR` for use."""

    def __init__(
        self, optimizer: Any, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        expect(step_size >= 1, "StepLR", "an int ≥ 1", error=ValueError, step_size=step_size)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, self._factor, last_epoch)

    def _factor(self, step: int) -> float:
        return self.gamma ** (step // self.step_size)


class MultiStepLR(_Factors):
    """lr · gamma once for each milestone (a number of steps) that was reached."""

    def __init__(
        self, optimizer: Any, milestones: Sequence[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer, self._factor, last_epoch)

    def _factor(self, step: int) -> float:
        return self.gamma ** bisect_right(self.milestones, step)


class ExponentialLR(_Factors):
    """lr · gamma^steps."""

    def __init__(self, optimizer: Any, gamma: float, last_epoch: int = -1) -> None:
        super().__init__(optimizer, partial(pow, gamma), last_epoch)


class CosineAnnealingLR(_Factors):
    """Half a cosine from the initial learning rate down to eta_min in T_max steps, and back up.

    eta_min + (lr − eta_min)·(1 + cos(π·steps/T_max))/2.
    """

    def __init__(
        self, optimizer: Any, T_max: float, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        expect(T_max >= 1, "CosineAnnealingLR", "an int ≥ 1", error=ValueError, T_max=T_max)
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, self._factor, last_epoch, eta_min)

    def _factor(self, step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / self.T_max))


class CosineAnnealingWarmRestarts(LambdaLR):
    """Half a cosine down to eta_min in T_0 steps, then again from the initial learning rate.

    Each period is T_mult times as long as the one before (Loshchilov and Hutter 2017).
    """

    def __init__(
        self, optimizer: Any, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        expect(T_0 >= 1 and T_mult >= 1, f"CosineAnnealingWarmRestarts({T_0}, {T_mult})",
               "T_0 ≥ 1 and T_mult ≥ 1", error=ValueError)  # fmt: skip
        self.T_0, self.T_mult = T_0, T_mult
        _Factors.__init__(self, optimizer, self._factor, last_epoch, eta_min)

    def _factor(self, step: int) -> float:
        period = self.T_0
        while step >= period:
            step, period = step - period, period * self.T_mult
        return 0.5 * (1 + math.cos(math.pi * step / period))


class PolynomialLR(_Factors):
    """lr · (1 − steps/total_iters)^power, and 0 from total_iters steps on."""

    def __init__(
        self, optimizer: Any, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        expect(total_iters >= 1, "PolynomialLR", "steps ≥ 1", error=ValueError,
               total_iters=total_iters)  # fmt: skip
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, self._factor, last_epoch)

    def _factor(self, step: int) -> float:
        return max(1 - step / self.total_iters, 0.0) ** self.power


class SequentialLR(LambdaLR):
    """Several schedulers of an optimizer, one after the other, each from the initial learning rate.

    milestones: after how many steps the second begins, the third, …
    """

    def __init__(
        self, optimizer: Any, schedulers: Sequence[Any], milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        expect(len(schedulers) == len(milestones) + 1 >= 1 and [*milestones] == sorted(milestones),
               f"SequentialLR of {len(schedulers)} schedulers and milestones {[*milestones]}",
               "one scheduler more than milestones, and these in order",
               error=ValueError)  # fmt: skip
        for one in schedulers:
            expect(isinstance(one, _Factors) and one.optimizer is optimizer,
                   f"SequentialLR of a {type(one).__name__}", "schedulers of this optimizer that "
                   "step without a metric", error=ValueError)  # fmt: skip
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        super().__init__(optimizer, partial(pow, 1.0), last_epoch)

    def get_last_lr(self) -> list[float]:
        """The learning rates of the next step."""
        place = bisect_right(self.milestones, self.last_epoch)
        step = self.last_epoch - [0, *self.milestones][place]
        return self.schedulers[place]._rates(step, self.base_lrs)


class OneCycleLR(LambdaLR):
    """Learning rates that rise to max_lr and fall again, while the momentum does the opposite.

    From max_lr/div_factor to max_lr (a number, or one for each group) in pct_start of all steps,
    then to max_lr/div_factor/final_div_factor (Smith and Topin 2017); with three_phase first back
    to max_lr/div_factor in as many steps. The steps are total_steps, or epochs·steps_per_epoch.
    cycle_momentum: SGD's momentum, or Adam's b1, goes from max_momentum to base_momentum and back;
    it becomes a tensor. ValueError for more steps than that.
    """

    def __init__(
        self, optimizer: Any, max_lr: float | Sequence[float], total_steps: int | None = None,
        epochs: int | None = None, steps_per_epoch: int | None = None, pct_start: float = 0.3,
        anneal_strategy: str = "cos", cycle_momentum: bool = True, base_momentum: float = 0.85,
        max_momentum: float = 0.95, div_factor: float = 25.0, final_div_factor: float = 1e4,
        three_phase: bool = False, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        check_choice("OneCycleLR", ("cos", "linear"), anneal_strategy=anneal_strategy)
        self.total_steps = total = total_steps or (epochs or 0) * (steps_per_epoch or 0)
        expect(total >= 1, "OneCycleLR", "total_steps ≥ 1, or epochs and steps_per_epoch ≥ 1",
               error=ValueError, total_steps=total_steps, epochs=epochs,
               steps_per_epoch=steps_per_epoch)  # fmt: skip
        expect(0 <= pct_start <= 1, "OneCycleLR", "0 … 1", error=ValueError, pct_start=pct_start)
        expect(min(div_factor, final_div_factor) > 0, "OneCycleLR", "both > 0", error=ValueError,
               div_factor=div_factor, final_div_factor=final_div_factor)  # fmt: skip
        expect(0 <= base_momentum < 1 and 0 <= max_momentum < 1, "OneCycleLR", "0 ≤ momentum < 1",
               error=ValueError, base_momentum=base_momentum, max_momentum=max_momentum)
        first, top = 1 / div_factor, pct_start * total - 1
        self.linear = anneal_strategy == "linear"
        # steps, the learning rate's factor, momentum
        self.corners = [(0.0, first, max_momentum), (top, 1.0, base_momentum)]
        if three_phase:
            self.corners.append((2 * top, first, max_momentum))
        self.corners.append((total - 1.0, first / final_div_factor, max_momentum))
        cycled = optimizer.param_groups if cycle_momentum else ()
        self.momenta = [self._momentum_of(group.optimizer, max_momentum) for group in cycled]
        several = max_lr if isinstance(max_lr, Sequence) else [max_lr] * len(optimizer.param_groups)
        expect(len(several) == len(optimizer.param_groups), "OneCycleLR", "a number for each group",
               f"{len(several)} for {len(optimizer.param_groups)}", error=ValueError)  # fmt: skip
        for group, lr in zip(optimizer.param_groups, several, strict=True):
            vars(group.optimizer)["initial_lr"] = lr
        super().__init__(optimizer, self._factor, last_epoch)

    def _factor(self, step: int) -> float:
        return self._at(step)[0]

    @staticmethod
    def _momentum_of(optimizer: Any, value: float) -> Tensor:
        """Make the optimizer's momentum, or b1, a tensor, and return it."""
        momentum: Tensor = optimizer._number(value)
        if "betas" in optimizer.options:
            optimizer.betas = (momentum, optimizer.betas[1])
        else:
            expect("momentum_buffer" in optimizer.moments, "OneCycleLR", "an optimizer with "
                   "momentum or betas; or pass cycle_momentum=False", type(optimizer).__name__,
                   error=ValueError)  # fmt: skip
            optimizer.momentum = momentum
        return momentum

    def _at(self, step: int) -> tuple[float, float]:
        """The learning rate's factor, and the momentum."""
        place = next((n for n, (end, *_) in enumerate(self.corners[1:-1], 1) if step <= end), -1)
        (start, *before), (end, *after) = self.corners[place - 1], self.corners[place]
        share = (step - start) / (end - start) if end > start else 1.0
        share = share if self.linear else (1 - math.cos(math.pi * share)) / 2
        lr, momentum = (a + (b - a) * share for a, b in zip(before, after, strict=True))
        return lr, momentum

    def _set(self) -> None:
        expect(self.last_epoch <= self.total_steps, "OneCycleLR.step",
               "at most total_steps of them", error=ValueError,
               total_steps=self.total_steps)  # fmt: skip
        super()._set()
        for momentum in self.momenta:
            momentum.set_data(self._at(self.last_epoch)[1])


class ReduceLROnPlateau:
    """Multiplies all learning rates by `factor` when a metric stops improving.

    It does so after more than `patience` steps without one that is better than the best so far by
    the threshold (relative, or absolute for threshold_mode "abs"); mode: whether "min" or "max" is
    better. Then `cooldown` steps do not count. Changes of less than eps are not made.
    """

    def __init__(
        self, optimizer: Any, mode: str = "min", factor: float = 0.1, patience: int = 10,
        threshold: float = 1e-4, threshold_mode: str = "rel", cooldown: int = 0,
        min_lr: float = 0.0, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        check_choice("ReduceLROnPlateau", ("min", "max"), mode=mode)
        check_choice("ReduceLROnPlateau", ("rel", "abs"), threshold_mode=threshold_mode)
        expect(factor < 1, "ReduceLROnPlateau", "below 1", error=ValueError, factor=factor)
        self.optimizer, self.factor, self.min_lr, self.eps = optimizer, factor, min_lr, eps
        self.patience, self.cooldown = patience, cooldown
        self.sign = 1 if mode == "min" else -1
        self.threshold, self.relative = threshold, threshold_mode == "rel"
        self.best, self.num_bad_epochs, self.cooldown_counter = self.sign * math.inf, 0, 0

    def step(self, metrics: float | Tensor) -> None:
        """Call it after each epoch, or each step, with its loss or another metric."""
        current, away = float(metrics), self.sign * self.threshold
        limit = self.best * (1 - away) if self.relative else self.best - away
        better = self.sign * (limit - current) > 0
        self.best = current if better else self.best
        rests = self.cooldown_counter > 0
        self.cooldown_counter -= rests
        self.num_bad_epochs = 0 if better or rests else self.num_bad_epochs + 1
        if self.num_bad_epochs <= self.patience:
            return
        self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        for group in self.optimizer.param_groups:
            lr = max(group["lr"] * self.factor, self.min_lr)
            if group["lr"] - lr > self.eps:
                group["lr"] = lr

    def get_last_lr(self) -> list[float]:
        """The learning rates of the next step."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: the best metric, and steps since then."""
        names = ("best", "num_bad_epochs", "cooldown_counter")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; the optimizer has its learning rates."""
        if missing := [name for name in self.state_dict() if name not in state]:
            raise StateError(f"load_state_dict: {_EXPECTED}, missing {missing}")
        vars(self).update({name: state[name] for name in self.state_dict()})


check_functions(globals())
hint_names(globals())
