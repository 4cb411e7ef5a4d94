"""Activation functions as layers: (…) → (…)."""

from __future__ import annotations

from minigrad.nn import functional as F
from minigrad.nn.module import FunctionLayer
from minigrad.tensor import Tensor


class ReLU(FunctionLayer, of=Tensor.relu):
    """max(x, 0)."""


class ReLU6(FunctionLayer, of=Tensor.relu6):
    """min(max(x, 0), 6)."""


class SiLU(FunctionLayer, of=Tensor.silu):
    """x·sigmoid(x)."""


class Mish(FunctionLayer, of=Tensor.mish):
    """x·tanh(softplus(x))."""


class Hardswish(FunctionLayer, of=Tensor.hardswish):
    """x·relu6(x + 3)/6."""


class Hardsigmoid(FunctionLayer, of=Tensor.hardsigmoid):
    """x/6 + 1/2, limited to 0 … 1."""


class Hardtanh(FunctionLayer, of=Tensor.hardtanh):
    """x limited to min_val … max_val."""


class Hardshrink(FunctionLayer, of=Tensor.hardshrink):
    """x, and 0 in −lambd … lambd."""


class Softshrink(FunctionLayer, of=Tensor.softshrink):
    """x moved by lambd towards 0, and 0 in −lambd … lambd."""


class Tanhshrink(FunctionLayer, of=Tensor.tanhshrink):
    """x − tanh(x)."""


class Threshold(FunctionLayer, of=Tensor.threshold):
    """x above a threshold, else a value."""


class Tanh(FunctionLayer, of=Tensor.tanh):
    """The hyperbolic tangent."""


class Sigmoid(FunctionLayer, of=Tensor.sigmoid):
    """1/(1 + e⁻ˣ)."""


class LogSigmoid(FunctionLayer, of=Tensor.logsigmoid):
    """log(1/(1 + e⁻ˣ))."""


class LeakyReLU(FunctionLayer, of=Tensor.leaky_relu):
    """x, and negative_slope·x below 0."""


class RReLU(FunctionLayer, of=F.rrelu):
    """`LeakyReLU`, in training with random slopes in lower … upper (Xu et al. 2015)."""


class ELU(FunctionLayer, of=Tensor.elu):
    """x, and alpha·(eˣ − 1) below 0."""


class CELU(FunctionLayer, of=Tensor.celu):
    """x, and alpha·(exp(x/alpha) − 1) below 0."""


class SELU(FunctionLayer, of=Tensor.selu):
    """Scaled ELU (Klambauer et al. 2017)."""


class GELU(FunctionLayer, of=F.gelu):
    """x·Φ(x): exact, unlike `Tensor.gelu`, or approximate="tanh"."""


class GLU(FunctionLayer, of=Tensor.glu):
    """a·sigmoid(b) of the two halves of a dimension (Dauphin et al. 2017)."""


class Softplus(FunctionLayer, of=Tensor.softplus):
    """log(1 + exp(beta·x))/beta."""


class Softsign(FunctionLayer, of=Tensor.softsign):
    """x/(1 + |x|)."""


class Softmax(FunctionLayer, of=F.softmax_along):
    """eˣ divided by its sum over a dimension."""


class Softmax2d(FunctionLayer, of=F.softmax_of_channels):
    """`Softmax` over the channels of images."""


class Softmin(FunctionLayer, of=F.softmin_along):
    """`Softmax` of −x."""


class LogSoftmax(FunctionLayer, of=F.log_softmax_along):
    """The logarithm of `Softmax`."""
