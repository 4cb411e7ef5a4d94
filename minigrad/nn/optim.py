"""Optimizers. Learning rate and step count are tensors: changing them compiles nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from numbers import Real
from typing import Any

from minigrad.dtype import DType, dtypes
from minigrad.errors import expect
from minigrad.hints import hint_names
from minigrad.nn import lr_scheduler
from minigrad.nn.lbfgs import LBFGS
from minigrad.nn.optimizer import Optimizer, OptimizerGroup, ParamGroup, Rule, clip_grad_norm
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import check_choice
from minigrad.tensor.templates import templated

Beta = float | Tensor
Betas = tuple[float, float]


@templated
def _sgd(
    param: Tensor, grad: Tensor, lr: Tensor, t: Tensor, buffer: Tensor | None = None, *,
    momentum: float, weight_decay: float, nesterov: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    if weight_decay:
        grad = grad + param * weight_decay
    if buffer is None:
        return (param - grad * lr,)
    buffer = buffer * momentum + grad
    return param - (grad + buffer * momentum if nesterov else buffer) * lr, buffer


class SGD(Optimizer):
    """Stochastic gradient descent with PyTorch's momentum: b ← momentum·b + g, p ← p − lr·b.

    Arguments after momentum are keywords, because PyTorch's next one is dampening.
    """

    rule: Rule = staticmethod(_sgd)

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor = 1e-3, momentum: float = 0.0, *,
        weight_decay: float = 0.0, nesterov: bool = False,
    ) -> None:  # fmt: skip
        _check_nesterov(self, nesterov, momentum)
        super().__init__(
            params, lr, ["momentum_buffer"] if momentum else [], momentum=momentum,
            weight_decay=weight_decay, nesterov=nesterov,
        )  # fmt: skip


class _WithBetas(Optimizer):
    """An optimizer whose rule takes its option `betas` as b1 and b2, which may be tensors."""

    def _options_of(self, param: Tensor) -> dict[str, Any]:
        options = super()._options_of(param)
        options["b1"], options["b2"] = options.pop("betas")
        return options


def _moved(grad: Tensor, m: Tensor, v: Tensor, b1: Beta, b2: Beta) -> tuple[Tensor, Tensor]:
    """Adam's moments: running means of the gradient and its square."""
    return m * b1 + grad * (1 - b1), v * b2 + grad * grad * (1 - b2)


@templated
def _adam(
    param: Tensor, grad: Tensor, lr: Tensor, t: Tensor, m: Tensor, v: Tensor, *, b1: Beta,
    b2: Beta, eps: float, weight_decay: float, decoupled: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    if weight_decay and not decoupled:
        grad = grad + param * weight_decay
    m, v = _moved(grad, m, v, b1, b2)
    size = lr / _one_minus_power(b1, t)
    root = _one_minus_power(b2, t).sqrt()
    if weight_decay and decoupled:
        param = param * (1 - lr * weight_decay)
    return param - m / (v.sqrt() / root + eps) * size, m, v


class AdamW(_WithBetas):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    betas=(b1, b2) may be given instead of b1 and b2. decoupled=False adds weight_decay·p to the
    gradient, as Adam does.
    """

    rule: Rule = staticmethod(_adam)

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor = 1e-3, b1: float | Betas = 0.9,
        b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01,
        betas: Betas | None = None, decoupled: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, ["exp_avg", "exp_avg_sq"], eps=eps, weight_decay=weight_decay,
            decoupled=decoupled, betas=_checked(b1, b2, betas),
        )  # fmt: skip


class Adam(AdamW):
    """Adam (Kingma and Ba 2015): `AdamW`, except for what weight_decay does.

    weight_decay·p is added to the gradient, so it also changes the moments.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor = 1e-3, b1: float | Betas = 0.9,
        b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0,
        betas: Betas | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, b1, b2, eps, weight_decay, betas, decoupled=False)


@templated
def _rmsprop(
    param: Tensor, grad: Tensor, lr: Tensor, t: Tensor, square: Tensor, *more: Tensor,
    alpha: float, eps: float, weight_decay: float, momentum: float, centered: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    if weight_decay:
        grad = grad + param * weight_decay
    spread = square = square * alpha + grad * grad * (1 - alpha)
    mean: tuple[Tensor, ...] = ()
    if centered:
        mean = (more[-1] * alpha + grad * (1 - alpha),)
        spread = (square - mean[0] * mean[0]).maximum(0)
    step = grad / (spread.sqrt() + eps)
    if len(more) == len(mean):
        return param - step * lr, square, *mean
    step = more[0] * momentum + step
    return param - step * lr, square, step, *mean


class RMSprop(Optimizer):
    """Steps divided by a running root mean square of the gradient (Hinton 2012).

    v ← alpha·v + (1 − alpha)·g², p ← p − lr·g/(√v + eps), as in PyTorch. centered: v less the
    square of a running mean of g, which is g's variance. momentum: steps add up, b ← momentum·b +
    g/(√v + eps), p ← p − lr·b.
    """

    rule: Rule = staticmethod(_rmsprop)

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor = 1e-2, alpha: float = 0.99,
        eps: float = 1e-8, weight_decay: float = 0.0, momentum: float = 0.0,
        centered: bool = False,
    ) -> None:  # fmt: skip
        expect(0 <= alpha < 1, "RMSprop", "0 ≤ alpha < 1", error=ValueError, alpha=alpha)
        moments = ["square_avg", *["momentum_buffer"] * (momentum > 0), *["grad_avg"] * centered]
        super().__init__(
            params, lr, moments, alpha=alpha, eps=eps, weight_decay=weight_decay,
            momentum=momentum, centered=centered,
        )  # fmt: skip

    def __setattr__(self, name: str, value: Any) -> None:
        expect(name != "centered" or name not in vars(self), "RMSprop", "centered= when it is made",
               error=AttributeError, **{name: value})  # fmt: skip
        super().__setattr__(name, value)


def _trust(param: Tensor, update: Tensor, decay: float = 0.0, part: float = 1.0) -> Tensor:
    """part·‖p‖ / (‖u‖ + decay·‖p‖), or 1 where a norm is 0."""
    long, size = (x.square().sum().sqrt() for x in (param, update))
    whole = size + long * decay if decay else size
    return (long.ne(0) & size.ne(0)).where((long * part if part != 1 else long) / whole, 1.0)


@templated
def _lars(
    param: Tensor, grad: Tensor, lr: Tensor, t: Tensor, buffer: Tensor, *, momentum: float,
    weight_decay: float, nesterov: bool, tcoef: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    scale = _trust(param, grad, weight_decay, tcoef)
    step = (grad + param * weight_decay) * (scale * lr)
    buffer = buffer * momentum + step
    return param - (step + buffer * momentum if nesterov else buffer), buffer


class LARS(Optimizer):
    """SGD with each tensor's step scaled by the norm of its values (You et al. 2017).

    b ← momentum·b + lr·tcoef·‖p‖/(‖g‖ + weight_decay·‖p‖)·(g + weight_decay·p), p ← p − b. If a
    norm is 0, the factor tcoef·‖p‖/(…) is 1.
    """

    rule: Rule = staticmethod(_lars)

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor = 1e-3, momentum: float = 0.9, *,
        weight_decay: float = 1e-4, nesterov: bool = False, tcoef: float = 0.001,
    ) -> None:  # fmt: skip
        _check_nesterov(self, nesterov, momentum)
        super().__init__(
            params, lr, ["momentum_buffer"], momentum=momentum, weight_decay=weight_decay,
            nesterov=nesterov, tcoef=tcoef,
        )  # fmt: skip


@templated
def _lamb(
    param: Tensor, grad: Tensor, lr: Tensor, t: Tensor, m: Tensor, v: Tensor, *, b1: Beta,
    b2: Beta, eps: float, weight_decay: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    m, v = _moved(grad, m, v, b1, b2)
    root = (v / _one_minus_power(b2, t)).sqrt()
    update = m / _one_minus_power(b1, t) / (root + eps) + param * weight_decay
    return param - update * (_trust(param, update) * lr), m, v


class LAMB(_WithBetas):
    """Adam with each tensor's step scaled by the norm of its values (You et al. 2020).

    p ← p − lr·‖p‖/‖u‖·u with u = m̂/(√v̂ + eps) + weight_decay·p. If a norm is 0, ‖p‖/‖u‖ counts as
    1.
    """

    rule: Rule = staticmethod(_lamb)

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor = 1e-3, b1: float | Betas = 0.9,
        b2: float = 0.999, eps: float = 1e-6, weight_decay: float = 0.0,
        betas: Betas | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, ["exp_avg", "exp_avg_sq"], eps=eps, weight_decay=weight_decay,
            betas=_checked(b1, b2, betas),
        )  # fmt: skip


@templated
def _muon(
    param: Tensor, grad: Tensor, lr: Tensor, t: Tensor, buffer: Tensor, *, weight_decay: float,
    momentum: float, nesterov: bool, coefficients: tuple[float, float, float], eps: float,
    ns_steps: int, ns_dtype: DType, matches_adamw: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    buffer = buffer + (grad - buffer) * (1 - momentum)
    update = grad + (buffer - grad) * momentum if nesterov else buffer
    rows, columns = (param._known_shape()[axis] for axis in (0, 1))
    scale = math.sqrt(max(1.0, rows / columns))
    if matches_adamw:
        scale = 0.2 * math.sqrt(max(rows, columns))
    x = (update.T if rows > columns else update).cast(ns_dtype)
    x = _orthogonal(x, coefficients, eps, ns_steps)
    turned = (x.T if rows > columns else x).cast(param.dtype)
    return param * (1 - lr * weight_decay) - turned * (lr * scale), buffer


def _orthogonal(
    x: Tensor, coefficients: tuple[float, float, float], eps: float, steps: int
) -> Tensor:
    """`steps` times x ← a·x + (b·x·xᵀ + c·(x·xᵀ)²)·x, starting from x divided by its norm."""
    (a, b, c), dtype = coefficients, x.dtype
    norm = x.float().square().sum().sqrt().cast(dtype).maximum(eps)
    x = (x / norm).contiguous()
    for _ in range(steps):
        wide = (x @ x.T).contiguous().float()
        step = (wide * b + wide @ wide * c).cast(dtype).contiguous().float()
        wide = x.float()
        x = (wide * a + step @ wide).cast(dtype).contiguous()
    return x


class Muon(Optimizer):
    """Momentum made nearly orthogonal (Jordan et al. 2024); for matrices only.

    As torch.optim.Muon: ns_steps of a quintic Newton–Schulz iteration bring the singular values of
    the momentum near 1. adjust_lr_fn: "original" scales by √max(1, rows/cols), "match_rms_adamw" by
    0.2·√max(rows, cols). ns_dtype: the dtype to which the iteration rounds after each product; sums
    are float32. In bfloat16, as in PyTorch, the order of a sum can decide the last of 8 bits, and
    the iteration magnifies that, so two libraries agree to about 1 % only. In float32 they agree to
    1e-5. Use another optimizer for other parameters (see `OptimizerGroup`).
    """

    rule: Rule = staticmethod(_muon)

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor = 1e-3, *, weight_decay: float = 0.1,
        momentum: float = 0.95, nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7, ns_steps: int = 5, adjust_lr_fn: str | None = None,
        ns_dtype: DType = dtypes.bfloat16,
    ) -> None:  # fmt: skip
        check_choice("Muon", (None, "original", "match_rms_adamw"), adjust_lr_fn=adjust_lr_fn)
        expect(0 <= momentum < 1, "Muon", "0 ≤ momentum < 1", error=ValueError, momentum=momentum)
        super().__init__(
            params, lr, ["momentum_buffer"], weight_decay=weight_decay, momentum=momentum,
            nesterov=nesterov, coefficients=ns_coefficients, eps=eps, ns_steps=ns_steps,
            ns_dtype=ns_dtype, matches_adamw=adjust_lr_fn == "match_rms_adamw",
        )  # fmt: skip
        for param in self.params:
            expect(param.ndim == 2, "Muon", "matrices; use another optimizer for the other "
                   "parameters, and OptimizerGroup to step both", param)  # fmt: skip


def _check_nesterov(optimizer: Optimizer, nesterov: bool, momentum: float) -> None:
    expect(not nesterov or momentum > 0, type(optimizer).__name__, "momentum > 0",
           error=ValueError, nesterov=nesterov, momentum=momentum)  # fmt: skip


def _checked(b1: Any, b2: float, betas: Betas | None) -> Betas:
    if isinstance(b1, (tuple, list)):
        raise TypeError(f"b1={b1}: expected a number; write betas={b1} for a pair")
    if betas is not None and not (isinstance(betas, (tuple, list)) and len(betas) == 2):
        raise TypeError(f"betas={betas}: expected two numbers, as (0.9, 0.999)")
    first, second = (b1, b2) if betas is None else betas
    if not all(isinstance(beta, Real) and 0 <= float(beta) < 1 for beta in (first, second)):
        raise ValueError(f"betas=({first}, {second}): expected 0 ≤ beta < 1 for both")
    return first, second


def _one_minus_power(base: Beta, t: Tensor) -> Tensor:
    """1 − baseᵗ, accurate where base is near 1: −expm1(t·ln base)."""
    if isinstance(base, Tensor):
        return -(t * base.log()).expm1()
    return -(t * (math.log(base) if base else -math.inf)).expm1()


__all__ = [
    "LAMB", "LARS", "LBFGS", "SGD", "Adam", "AdamW", "Muon", "Optimizer", "OptimizerGroup",
    "ParamGroup", "RMSprop", "clip_grad_norm", "lr_scheduler",
]  # fmt: skip

check_functions(globals())
hint_names(globals())
sys.modules[f"{__name__}.lr_scheduler"] = lr_scheduler  # PyTorch's programs import from it
