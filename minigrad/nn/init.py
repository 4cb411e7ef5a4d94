"""PyTorch's torch.nn.init: functions that fill a tensor in place, and return it.

They draw from minigrad's generator (`Tensor.manual_seed`). Outside a captured step only.
"""

from __future__ import annotations

import math
from typing import Any

from minigrad.errors import DTypeError, expect
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions
from minigrad.tensor.broadcasting import check_choice

_GAINS = {"tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}
_LINEAR = ("linear", "sigmoid", *(f"conv{kind}{n}d" for n in "123" for kind in ("", "_transpose")))


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The gain of initial weights that preserves the deviation of values through an activation.

    param: the slope of leaky_relu (0.01 unless given).
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity in _LINEAR:
        return 1.0
    if nonlinearity not in _GAINS:
        known = ", ".join(("leaky_relu", *_GAINS, *_LINEAR))
        raise ValueError(f"calculate_gain({nonlinearity!r}): expected one of {known}")
    return _GAINS[nonlinearity]


def _filled(tensor: Tensor, value: Any) -> Tensor:
    with Tensor.no_grad():
        return tensor.assign(value).realize()


def _drawn(tensor: Tensor, numbers: Tensor) -> Tensor:
    """Fill with random numbers; DTypeError for integers, which would lose most of them."""
    expect(tensor.dtype.is_float, "random numbers", "a float tensor", tensor.dtype.name,
           error=DTypeError)  # fmt: skip
    return _filled(tensor, numbers)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill a tensor of any shape with val; returns it, as all functions here do."""
    return _filled(tensor, val)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0, as for a bias."""
    return _filled(tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1, as for the weight of a normalization."""
    return _filled(tensor, 1)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fill with numbers uniform in [a, b)."""
    options: Any = {"dtype": tensor.dtype, "device": tensor.device}
    return _drawn(tensor, Tensor.uniform(tensor.shape, low=a, high=b, **options))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill with normal numbers of the given mean and standard deviation."""
    return _drawn(tensor, Tensor.normal(tensor.shape, mean=mean, std=std, device=tensor.device))


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Tensor:
    """Fill with normal numbers, but only from a to b (values, not multiples of std)."""
    if not std > 0 or not a < b:
        raise ValueError(f"trunc_normal_(std={std}, a={a}, b={b}): expected std > 0 and a < b")
    below, above = (math.erf((edge - mean) / std * math.sqrt(0.5)) for edge in (a, b))
    level = Tensor.uniform(tensor.shape, low=below, high=above, device=tensor.device)
    return _drawn(tensor, (_erfinv(level) * (std * math.sqrt(2)) + mean).clip(a, b))


def _erfinv(y: Tensor) -> Tensor:
    """x such that erf(x) = y: Winitzki's approximation (2008), and two steps of Halley's method."""
    log = (1 - y * y).maximum(1e-30).log()
    half = log * 0.5 + 2 / (math.pi * 0.147)
    x = ((half * half - log / 0.147).sqrt() - half).maximum(0).sqrt().copysign(y)
    for _ in range(2):
        step = (x.erf() - y) * (x * x).exp() * (math.sqrt(math.pi) / 2)
        x = x - step / (x * step + 1)
    return x


def _fans(tensor: Tensor) -> tuple[int, int]:
    """Inputs and outputs of an element, in the weight of a linear layer or convolution."""
    expect(tensor.ndim >= 2, "fan in and fan out", "at least 2 dimensions; use zeros_, normal_ or "
           "uniform_ for a bias", tensor)  # fmt: skip
    outputs, inputs, *kernel = tensor._known_shape()
    return inputs * math.prod(kernel), outputs * math.prod(kernel)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with numbers uniform in ±gain·√(6/(inputs + outputs)) (Glorot and Bengio 2010).

    For a weight (outputs, inputs, *kernel), both times the places of the kernel; gain: see
    `calculate_gain`. ShapeError for fewer than 2 dimensions.
    """
    bound = gain * math.sqrt(6 / (sum(_fans(tensor)) or 1))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with normal numbers of standard deviation gain·√(2/(inputs + outputs)).

    Shapes, gain and errors as for `xavier_uniform_`.
    """
    return normal_(tensor, 0.0, gain * math.sqrt(2 / (sum(_fans(tensor)) or 1)))


def _kaiming(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    check_choice("kaiming_", ("fan_in", "fan_out"), mode=mode)
    return calculate_gain(nonlinearity, a) / math.sqrt(_fans(tensor)[mode == "fan_out"] or 1)


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Fill with numbers uniform in ±gain·√(3/fan) (He et al. 2015).

    fan: inputs of an element, or outputs if mode="fan_out", of a weight (outputs, inputs, *kernel).
    nonlinearity: what follows the layer, which determines the gain; a: the slope of "leaky_relu".
    ShapeError for fewer than 2 dimensions.
    """
    bound = math.sqrt(3) * _kaiming(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Fill with normal numbers of standard deviation gain/√fan; see `kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming(tensor, a, mode, nonlinearity))


def eye_(tensor: Tensor) -> Tensor:
    """Fill a matrix with the identity; ShapeError for other than 2 dimensions."""
    expect(tensor.ndim == 2, "eye_", "a matrix", tensor)
    return _filled(tensor, Tensor.eye(*tensor._known_shape(), device=tensor.device))


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with gain times a matrix of orthonormal rows or columns (Saxe et al. 2013).

    Dimensions after the first are merged.
    """
    expect(tensor.ndim >= 2, "orthogonal_", "at least 2 dimensions", tensor)
    rows, *others = tensor._known_shape()
    columns = math.prod(others)
    with Tensor.no_grad():
        q, r = Tensor.randn(max(rows, columns), min(rows, columns), device=tensor.device).qr()
        q = q * (r.diagonal() < 0).where(-1.0, 1.0)  # makes the distribution uniform
        whole = (q if rows >= columns else q.transpose()) * gain
        return _drawn(tensor, whole.reshape(tensor.shape))


check_functions(globals())
