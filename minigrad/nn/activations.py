"""Activation functions as layers; inplace= is accepted, as PyTorch's: results are new tensors."""

from __future__ import annotations

from dataclasses import dataclass

from minigrad.nn.module import Layer
from minigrad.tensor import Tensor


@dataclass(eq=False, repr=False)
class ReLU(Layer):
    """max(x, 0)."""

    inplace: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.relu()


@dataclass(eq=False, repr=False)
class ReLU6(Layer):
    """min(max(x, 0), 6)."""

    inplace: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.relu6()


@dataclass(eq=False, repr=False)
class LeakyReLU(Layer):
    """x, and negative_slope·x below 0."""

    negative_slope: float = 0.01
    inplace: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.leaky_relu(self.negative_slope)


@dataclass(eq=False, repr=False)
class ELU(Layer):
    """x, and alpha·(eˣ − 1) below 0."""

    alpha: float = 1.0
    inplace: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.elu(self.alpha)


@dataclass(eq=False, repr=False)
class GELU(Layer):
    """x·Φ(x): exact, unlike `Tensor.gelu`, or approximate="tanh"."""

    approximate: str = "none"

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.gelu(self.approximate)


@dataclass(eq=False, repr=False)
class SiLU(Layer):
    """x·sigmoid(x)."""

    inplace: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.silu()


@dataclass(eq=False, repr=False)
class Mish(Layer):
    """x·tanh(softplus(x))."""

    inplace: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.mish()


@dataclass(eq=False, repr=False)
class Softplus(Layer):
    """log(1 + exp(beta·x))/beta."""

    beta: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.softplus(self.beta)


@dataclass(eq=False, repr=False)
class Hardswish(Layer):
    """x·relu6(x + 3)/6."""

    inplace: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.hardswish()


class Tanh(Layer):
    """The hyperbolic tangent."""

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.tanh()


class Sigmoid(Layer):
    """1/(1 + e⁻ˣ)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.sigmoid()


@dataclass(eq=False, repr=False)
class Softmax(Layer):
    """eˣ divided by its sum over a dimension."""

    dim: int

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.softmax(self.dim)


@dataclass(eq=False, repr=False)
class LogSoftmax(Layer):
    """The logarithm of `Softmax`."""

    dim: int

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.log_softmax(self.dim)
