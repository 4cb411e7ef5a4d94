"""Activation functions as layers: (…) → (…)."""

from __future__ import annotations

from dataclasses import dataclass

from minigrad.nn.module import FunctionLayer
from minigrad.tensor import Tensor


@dataclass(eq=False, repr=False)
class _Activation(FunctionLayer):
    inplace: bool = False


class ReLU(_Activation):
    """max(x, 0)."""

    function = Tensor.relu


class ReLU6(_Activation):
    """min(max(x, 0), 6)."""

    function = Tensor.relu6


class SiLU(_Activation):
    """x·sigmoid(x)."""

    function = Tensor.silu


class Mish(_Activation):
    """x·tanh(softplus(x))."""

    function = Tensor.mish


class Hardswish(_Activation):
    """x·relu6(x + 3)/6."""

    function = Tensor.hardswish


class Tanh(FunctionLayer):
    """The hyperbolic tangent."""

    function = Tensor.tanh


class Sigmoid(FunctionLayer):
    """1/(1 + e⁻ˣ)."""

    function = Tensor.sigmoid


@dataclass(eq=False, repr=False)
class LeakyReLU(FunctionLayer):
    """x, and negative_slope·x below 0."""

    function = Tensor.leaky_relu
    negative_slope: float = 0.01
    inplace: bool = False


@dataclass(eq=False, repr=False)
class ELU(FunctionLayer):
    """x, and alpha·(eˣ − 1) below 0."""

    function = Tensor.elu
    alpha: float = 1.0
    inplace: bool = False


@dataclass(eq=False, repr=False)
class GELU(FunctionLayer):
    """x·Φ(x): exact, unlike `Tensor.gelu`, or approximate="tanh"."""

    function = Tensor.gelu
    approximate: str = "none"


@dataclass(eq=False, repr=False)
class Softplus(FunctionLayer):
    """log(1 + exp(beta·x))/beta."""

    function = Tensor.softplus
    beta: float = 1.0


@dataclass(eq=False, repr=False)
class Softmax(FunctionLayer):
    """eˣ divided by its sum over a dimension."""

    function = Tensor.softmax
    dim: int


@dataclass(eq=False, repr=False)
class LogSoftmax(FunctionLayer):
    """The logarithm of `Softmax`."""

    function = Tensor.log_softmax
    dim: int
