"""L-BFGS: steps along a quasi-Newton direction, from the last few gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from minigrad.errors import GradientError, expect
from minigrad.nn.optimizer import Optimizer
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import check_choice

_CURVED = 1e-10  # only pairs of a step and a change of the gradient with a larger product are kept
_DESCENT, _FLAT = 1e-4, 0.9  # the strong Wolfe conditions' constants
_DIGITS = 1e-8


class LBFGS(Optimizer):
    """Limited-memory BFGS (Liu and Nocedal 1989), for few parameters and a loss without noise.

    `step(closure)` takes up to max_iter steps, with at most about max_eval (default: 1.25·max_iter)
    calls of the closure. It ends earlier if no gradient is above tolerance_grad, or if the
    parameters or the loss change by less than tolerance_change. history_size: how many past steps
    give the curvature; their memory is allocated at the beginning. lr: the length of a step; with
    line_search_fn "strong_wolfe", the first one that is tried.
    """

    max_iter: int
    max_eval: int
    tolerance_grad: float
    tolerance_change: float
    line_search_fn: str | None

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor = 1.0, max_iter: int = 20,
        max_eval: int | None = None, tolerance_grad: float = 1e-7, tolerance_change: float = 1e-9,
        history_size: int = 100, line_search_fn: str | None = None,
    ) -> None:  # fmt: skip
        check_choice("LBFGS", (None, "strong_wolfe"), line_search_fn=line_search_fn)
        expect(max_iter >= 1 and history_size >= 1, "LBFGS", "both ≥ 1", error=ValueError,
               max_iter=max_iter, history_size=history_size)  # fmt: skip
        super().__init__(
            params, lr, max_iter=max_iter, max_eval=max_eval or max_iter * 5 // 4,
            tolerance_grad=tolerance_grad, tolerance_change=tolerance_change,
            history_size=history_size, line_search_fn=line_search_fn,
        )  # fmt: skip
        for param in self.params:
            expect(param.device == self.device and param.dtype is self.params[0].dtype, "LBFGS",
                   "parameters of one dtype on one device", param)  # fmt: skip
        size = sum(math.prod(param._known_shape()) for param in self.params)
        # steps and changes of the gradient, newest last; 1 / their products, or 0 for none; the
        # last direction and gradient; the last step's length, and the scale of the first direction
        shapes = [(history_size, size)] * 2 + [(history_size,)] + [(size,)] * 2 + [(), ()]
        self.moments["history"] = [self._kept(shape) for shape in shapes]

    def _kept(self, shape: tuple[int, ...]) -> Tensor:
        return Tensor.zeros(*shape, dtype=self.params[0].dtype, device=self.device)._own_memory()

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take steps; closure() sets the gradients and returns the loss. Returns the first loss.

            def closure():
                optimizer.zero_grad()
                loss = …
                loss.backward()
                return loss
        """
        if not callable(closure):
            raise TypeError("LBFGS.step: expected a function that calls backward and returns the "
                            f"loss, got {type(closure).__name__}")  # fmt: skip
        first = closure()
        value, gradient, calls = float(first), self._gradient(), 1
        for number in range(self.max_iter):
            if not gradient.abs().max().item() > self.tolerance_grad:
                break
            with Tensor.no_grad():
                direction = self._direction(gradient)
                slope = (gradient * direction).sum().item()
                if slope > -self.tolerance_change:
                    break
                length = self.lr.item()
                if self.t.item() == 1:
                    length *= min(1.0, 1 / gradient.abs().sum().item())
            before, start = value, [param.detach().clone().realize() for param in self.params]
            tried = partial(self._tried, closure, start, direction)
            if self.line_search_fn is not None:
                length, value, gradient, used = _searched(tried, length, value, slope, gradient)
                self._move(start, direction, length)
                calls += used
            elif number < self.max_iter - 1:
                value, gradient, _ = tried(length)
                calls += 1
            else:
                self._move(start, direction, length)
            self.moments["history"][5].set_data(length)
            moved = abs(length) * direction.abs().max().item()
            if calls >= self.max_eval or min(moved, abs(value - before)) <= self.tolerance_change:
                break
        return first

    def _gradient(self) -> Tensor:
        """All gradients as one vector; zeros for parameters without one."""
        if all(param.grad is None for param in self.params):
            raise GradientError("LBFGS.step: the closure gave no parameter a gradient; call "
                                "loss.backward() in it")  # fmt: skip
        with Tensor.no_grad():
            grads = [p.zeros_like() if p.grad is None else p.grad for p in self.params]
            return Tensor.cat([grad.flatten() for grad in grads]).realize()

    def _tried(
        self, closure: Callable[[], Any], start: list[Tensor], direction: Tensor, length: float
    ) -> tuple[float, Tensor, float]:
        """The loss, its gradient, and its slope along the direction, after such a step."""
        self._move(start, direction, length)
        value, gradient = float(closure()), self._gradient()
        return value, gradient, (gradient * direction).sum().item()

    def _move(self, start: list[Tensor], direction: Tensor, length: float) -> None:
        """Set the parameters to start + length·direction."""
        with Tensor.no_grad():
            step = (direction * Tensor(length, dtype=direction.dtype, device=self.device)).split(
                [math.prod(param._known_shape()) for param in start]
            )
            for param, held, part in zip(self.params, start, step, strict=True):
                param.assign(held + part.reshape(held.shape))
            Tensor.realize(*self.params)

    def _direction(self, gradient: Tensor) -> Tensor:
        """−H·gradient, where H approximates the inverse of the loss's second derivatives.

        H is made of the last steps and the changes of the gradient along them (the two-loop
        recursion). Pairs that are not there yet are zeros, so every step is one program.
        """
        steps, changes, inverse, last, before, length, scale = self.moments["history"]
        step, change = last * length, gradient - before
        product = (step * change).sum()
        is_first, is_curved = self.t < 1, product > _CURVED

        def pushed(rows: Tensor, new: Tensor) -> Tensor:
            return is_curved.where(Tensor.cat([rows[1:], new.unsqueeze(0)]), rows)

        inverse.assign(pushed(inverse, 1 / is_curved.where(product, 1.0)))
        steps.assign(pushed(steps, step))
        changes.assign(pushed(changes, change))
        curved = is_curved.where(product / (change * change).sum(), scale)
        scale.assign(is_first.where(1.0, curved))
        self.t.assign(self.t + 1)

        def down(rest: Tensor, pair: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            s, y, r = pair
            share = (s * rest).sum() * r
            return rest - y * share, share

        def up(made: Tensor, pair: tuple[Tensor, ...]) -> tuple[Tensor, None]:
            s, y, r, share = pair
            return made + s * (share - (y * made).sum() * r), None

        pairs = (steps, changes, inverse)
        rest, shares = Tensor.scan(down, -gradient, pairs, reverse=True)
        direction, _ = Tensor.scan(up, rest * scale, (*pairs, shares))
        last.assign(direction)
        before.assign(gradient)
        return last.detach().clone().realize(*self.moments["history"], self.t)


def _searched(
    tried: Callable[[float], tuple[float, Tensor, float]], length: float, value: float,
    slope: float, gradient: Tensor,
) -> tuple[float, float, Tensor, int]:  # fmt: skip
    """A step's length that meets the strong Wolfe conditions; loss and gradient there; calls.

    The loss falls by at least a part of what its slope promises, and is flatter there. The length
    is doubled until an interval contains one, which is divided where a parabola has its minimum.
    """
    low, high = (0.0, value, slope, gradient), None
    calls = 0
    while calls < 25:
        found, its_gradient, its_slope = tried(length)
        calls += 1
        here = (length, found, its_slope, its_gradient)
        if not found <= value + _DESCENT * length * slope or found >= low[1] and low[0] > 0:
            high = here
        elif abs(its_slope) <= -_FLAT * slope:
            return length, found, its_gradient, calls
        else:
            back = its_slope * (1.0 if high is None else high[0] - low[0]) >= 0
            high, low = low if back else high, here
        if high is None:
            length *= 2
            continue
        width = high[0] - low[0]
        bend = high[1] - low[1] - low[2] * width
        share = -low[2] * width / (2 * bend) if bend > 0 else 0.5
        length = low[0] + width * min(max(share, 0.1), 0.9)
        if abs(width * slope) < _DIGITS * abs(value):  # the loss would not show it
            break
    return low[0], low[1], low[3], calls


check_functions(globals())
