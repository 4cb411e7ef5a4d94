"""Optimizers. Learning rate and step count are tensors: changing them compiles nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from minigrad.dtype import DType, dtypes
from minigrad.errors import GradientError, ShapeError
from minigrad.tensor import Tensor


class Optimizer:
    """What optimizers share. params: tensors, each taken once; they become leaves."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        self.params = list({id(tensor): tensor for tensor in params}.values())
        if not self.params:
            raise ValueError(f"{type(self).__name__}: no parameters were given")
        for tensor in self.params:
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"{type(self).__name__}: expected tensors, got a {type(tensor).__name__}"
                )
            tensor.requires_grad = True
        # in one program, and now: the first step is then the same program as all others
        Tensor.realize(*self.params)
        self.device = self.params[0].device
        self.lr = self._number(lr)
        self.t = self._number(0.0)  # steps taken
        self.moments: dict[str, list[Tensor]] = {}

    def _number(self, value: float) -> Tensor:
        return Tensor(value, dtype=dtypes.float32, device=self.device, requires_grad=False)

    def _add_moments(self, name: str) -> list[Tensor]:
        """One zero tensor per parameter, in at least float32."""
        made = []
        for param in self.params:
            zeros = Tensor.zeros(param.shape, dtype=_wide(param.dtype), device=param.device)
            made.append(zeros._own_memory().requires_grad_(False))
        self.moments[name] = made
        return made

    def set_lr(self, lr: float) -> None:
        """Change the learning rate of the steps to come."""
        self.lr.set_data(float(lr))

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for param in self.params:
            param.grad = None

    def step(self) -> None:
        """Update the parameters that have a gradient; everything is realized in one program."""
        with Tensor.no_grad():
            places = [i for i, param in enumerate(self.params) if param.grad is not None]
            if not places:
                raise GradientError(
                    f"{type(self).__name__}.step(): no parameter has a gradient; "
                    "call loss.backward() first"
                )
            self.t.assign(self.t + 1)
            for place in places:
                param = self.params[place]
                if param.grad.shape != param.shape:
                    raise ShapeError(
                        f"{type(self).__name__}.step(): a gradient of shape {param.grad.shape} "
                        f"for a parameter of shape {param.shape}"
                    )
                wide = param.cast(_wide(param.dtype))
                param.assign(self._updated(place, wide, param.grad.cast(wide.dtype)))
            moments = [tensors[i] for tensors in self.moments.values() for i in places]
            Tensor.realize(self.t, *(self.params[i] for i in places), *moments)

    def _updated(self, place: int, param: Tensor, grad: Tensor) -> Tensor:
        """The new value of a parameter; assigns its moments."""
        raise NotImplementedError(f"{type(self).__name__} has no rule for an update")

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to go on: learning rate, step count, moments."""
        named = {
            f"{name}.{i}": tensor
            for name, tensors in self.moments.items()
            for i, tensor in enumerate(tensors)
        }
        return {"lr": self.lr, "step": self.t, **named}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        own = self.state_dict()
        if set(own) != set(state):
            different = sorted(set(own) ^ set(state))
            raise KeyError(f"{type(self).__name__}.load_state_dict: names differ: {different[:8]}")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ShapeError(
                    f"{type(self).__name__}.load_state_dict: {name} has shape "
                    f"{state[name].shape}, expected {tensor.shape}"
                )
        with Tensor.no_grad():
            values = {name: state[name].cast(tensor.dtype) for name, tensor in own.items()}
            Tensor.realize(*values.values())
            for name, tensor in own.items():
                tensor._fill(values[name]._bytes())


def _wide(dtype: DType) -> DType:
    return dtypes.float32 if dtype.itemsize < 4 else dtype


class SGD(Optimizer):
    """Stochastic gradient descent with PyTorch's momentum: b ← momentum·b + g, p ← p − lr·b."""

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, lr)
        if nesterov and momentum <= 0:
            raise ValueError(f"SGD(nesterov=True, momentum={momentum}): expected momentum > 0")
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self.buffers = self._add_moments("momentum_buffer") if momentum else []

    def _updated(self, place: int, param: Tensor, grad: Tensor) -> Tensor:
        if self.weight_decay:
            grad = grad + param * self.weight_decay
        if self.momentum:
            buffer = self.buffers[place]
            buffer.assign(buffer * self.momentum + grad)
            grad = grad + buffer * self.momentum if self.nesterov else buffer
        return param - grad * self.lr


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    betas=(b1, b2) may be given instead of b1 and b2. decoupled=False adds weight_decay·p to the
    gradient instead, as Adam does.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999,
        eps: float = 1e-8, weight_decay: float = 0.01, betas: tuple[float, float] | None = None,
        decoupled: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(params, lr)
        self.b1, self.b2 = (b1, b2) if betas is None else betas
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(f"betas ({self.b1}, {self.b2}): expected each in 0 … 1, without 1")
        self.eps, self.weight_decay, self.decoupled = eps, weight_decay, decoupled
        self.m, self.v = self._add_moments("exp_avg"), self._add_moments("exp_avg_sq")

    def _updated(self, place: int, param: Tensor, grad: Tensor) -> Tensor:
        m, v = self.m[place], self.v[place]
        if self.weight_decay and not self.decoupled:
            grad = grad + param * self.weight_decay
        m.assign(m * self.b1 + grad * (1 - self.b1))
        v.assign(v * self.b2 + grad * grad * (1 - self.b2))
        size = self.lr / _one_minus_power(self.b1, self.t)
        root = _one_minus_power(self.b2, self.t).sqrt()
        if self.weight_decay and self.decoupled:
            param = param * (1 - self.lr * self.weight_decay)
        return param - m / (v.sqrt() / root + self.eps) * size


class Adam(AdamW):
    """Adam (Kingma and Ba 2015); weight_decay is added to the gradient."""

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999,
        eps: float = 1e-8, weight_decay: float = 0.0, betas: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, b1, b2, eps, weight_decay, betas, decoupled=False)


def _one_minus_power(base: float, t: Tensor) -> Tensor:
    """1 − baseᵗ, accurate where base is near 1: −expm1(t·ln base)."""
    return -(t * (math.log(base) if base else -math.inf)).expm1()


def clip_grad_norm(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint 2-norm is at most max_norm; gives the norm before.

    Lazy: it becomes part of the program of the next step.
    """
    with Tensor.no_grad():
        grads = [(param, param.grad) for param in params if param.grad is not None]
        if not grads:
            raise GradientError("clip_grad_norm: no parameter has a gradient")
        squares: Any = None
        for _, grad in grads:
            wide = grad.cast(_wide(grad.dtype))
            square = (wide * wide).sum()
            squares = square if squares is None else squares + square
        norm: Tensor = squares.sqrt()
        factor = (max_norm / (norm + 1e-6)).minimum(1)
        for param, grad in grads:
            param.grad = (grad * factor).cast(grad.dtype).requires_grad_(False)
        return norm


__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm"]
