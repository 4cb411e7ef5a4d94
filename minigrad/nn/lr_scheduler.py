"""PyTorch's torch.optim.lr_scheduler: factors of the learning rates that an optimizer began with.

`minigrad.nn.schedule` has the same as functions of the step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from minigrad.hints import names_of


class LambdaLR:
    """Multiplies each group's first learning rate by lr_lambda(steps taken).

    optimizer: an `Optimizer` or `OptimizerGroup`; schedulers know its `param_groups` only.
    lr_lambda: a function, or one for each group. last_epoch: steps taken before, less one.
    """

    def __init__(
        self, optimizer: Any,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]], last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(
                f"{type(self).__name__} of a {type(optimizer).__name__}: expected an optimizer"
            )
        self.optimizer = optimizer
        groups = optimizer.param_groups
        several = lr_lambda if isinstance(lr_lambda, Sequence) else [lr_lambda] * len(groups)
        self.factors = list(several)
        if len(self.factors) != len(groups):
            raise ValueError(
                f"{type(self).__name__}: {len(self.factors)} functions for {len(groups)} groups"
            )
        self.base_lrs: list[float] = [group["lr"] for group in groups]
        self.last_epoch = last_epoch
        self.step()

    def step(self) -> None:
        """Go on to the next step; call it after `optimizer.step()`."""
        self.last_epoch += 1
        for group, lr in zip(self.optimizer.param_groups, self.get_last_lr(), strict=True):
            group["lr"] = lr

    def _rate(self, base: float, factor: float) -> float:
        return base * factor

    def get_last_lr(self) -> list[float]:
        """The learning rates of the next step."""
        pairs = zip(self.base_lrs, self.factors, strict=True)
        return [self._rate(base, factor(self.last_epoch)) for base, factor in pairs]

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on: steps taken, and the first learning rates."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: MutableMapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.base_lrs, self.last_epoch = list(state["base_lrs"]), state["last_epoch"] - 1
        self.step()


class LinearLR(LambdaLR):
    """From start_factor to end_factor in total_iters steps."""

    def __init__(
        self, optimizer: Any, start_factor: float = 1 / 3, end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:  # fmt: skip
        if not (0 < start_factor <= 1 and 0 <= end_factor <= 1 and total_iters >= 1):
            raise ValueError(
                f"LinearLR({start_factor}, {end_factor}, {total_iters}): expected a first factor "
                "above 0, both up to 1, and total_iters ≥ 1"
            )

        def factor(step: int) -> float:
            share = min(step / total_iters, 1.0)
            return start_factor + (end_factor - start_factor) * share

        super().__init__(optimizer, factor)


class StepLR(LambdaLR):
    """gamma more every step_size steps."""

    def __init__(self, optimizer: Any, step_size: int, gamma: float = 0.1) -> None:
        if step_size < 1:
            raise ValueError(f"StepLR(step_size={step_size}): expected steps ≥ 1")
        super().__init__(optimizer, lambda step: gamma ** (step // step_size))


class MultiStepLR(LambdaLR):
    """gamma more at each of the milestones."""

    def __init__(self, optimizer: Any, milestones: Sequence[int], gamma: float = 0.1) -> None:
        if not isinstance(milestones, Sequence):
            raise TypeError(f"MultiStepLR(milestones={milestones!r}): expected a list of steps")
        at = sorted(milestones)
        super().__init__(optimizer, lambda step: gamma ** bisect_right(at, step))


class ExponentialLR(LambdaLR):
    """gamma more in every step."""

    def __init__(self, optimizer: Any, gamma: float) -> None:
        super().__init__(optimizer, lambda step: gamma**step)


class CosineAnnealingLR(LambdaLR):
    """Half a cosine from the first learning rate to eta_min in T_max steps, and back again."""

    def __init__(self, optimizer: Any, T_max: int, eta_min: float = 0.0) -> None:
        if T_max < 1:
            raise ValueError(f"CosineAnnealingLR(T_max={T_max}): expected steps ≥ 1")
        self.eta_min = eta_min
        super().__init__(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / T_max)))

    def _rate(self, base: float, factor: float) -> float:
        return self.eta_min + (base - self.eta_min) * factor


if not TYPE_CHECKING:
    __getattr__ = names_of(__name__, globals())
