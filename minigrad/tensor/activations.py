"""Activation functions, and the operators that write in place."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from minigrad.dtype import dtypes, promote
from minigrad.errors import DTypeError, ShapeError
from minigrad.tensor.broadcasting import Scalar, show
from minigrad.tensor.methods import Methods
from minigrad.tensor.templates import templated

_KINDS = "buif"  # bool < integers < floats: an in-place result may not rise in this order


def _small(x: Any) -> Any:
    """exp(−|x|), which does not overflow."""
    return (x < 0).where(x, -x).exp()


@templated
def _sigmoid_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    small = _small(x)
    return [g * (small / ((small + 1) * (small + 1)))]


def _tanh_gelu(x: Any) -> tuple[Any, Any]:
    """tanh u + 1 and 1 − tanh² u, of the u of a GELU; both from tanh −|u| + 1, which has digits
    left where it is small.
    """
    u = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
    small = (-u.abs()).tanh() + 1
    large = 2 - small
    return (u < 0).where(small, large), small * large


@templated
def _tanh_gelu_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    above, slope = _tanh_gelu(x)
    inside = (x * x * (3 * 0.044715) + 1) * (0.5 * math.sqrt(2 / math.pi))
    return [g * (above * 0.5 + x * slope * inside)]


@templated
def _erf_gelu_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    below = ((x * math.sqrt(0.5)).erf() + 1) * 0.5
    density = (x * x * -0.5).exp() * math.sqrt(0.5 / math.pi)
    return [g * (below + x * density)]


_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
              "//": operator.floordiv, "%": operator.mod, "**": operator.pow, "&": operator.and_,
              "|": operator.or_, "^": operator.xor, "<<": operator.lshift,
              ">>": operator.rshift}  # fmt: skip


def _written(sign: str) -> Any:
    """An operator that writes in place."""
    function = _OPERATORS[sign]
    return lambda self, other: self._in_place(sign, function(self, other))


class Activations(Methods):
    """Activations of neural networks; `+=` and its kind."""

    __slots__ = ()

    # --- activations ------------------------------------------------------------------------------

    def relu(self) -> Self:
        """max(x, 0); the derivative at 0 is 0.

        >>> Tensor([-1.0, 2.0]).relu().tolist()
        [0.0, 2.0]
        """
        x = self.node
        if x.dtype.is_bool:
            return self.cast(dtypes.int32).relu()
        return self._new(x.operation("le", 0).where(0, x))

    def relu6(self) -> Self:
        """min(max(x, 0), 6); the derivative at 0 and 6 is 0.

        >>> Tensor([-1.0, 9.0]).relu6().tolist()
        [0.0, 6.0]
        """
        return self.hardtanh(0, 6)

    def leaky_relu(self, negative_slope: Scalar = 0.01) -> Self:
        """x, and negative_slope·x below 0.

        >>> Tensor([-1.0, 2.0]).leaky_relu(0.5).tolist()
        [-0.5, 2.0]
        """
        return (self <= 0).where(self * negative_slope, self)

    def elu(self, alpha: Scalar = 1.0) -> Self:
        """x, and alpha·(eˣ − 1) below 0.

        >>> Tensor([0.0, 2.0]).elu().tolist()
        [0.0, 2.0]
        """
        # at 0 the derivative is that of the exponential, as in PyTorch
        return (self > 0).where(self, (self > 0).where(0, self).expm1() * alpha)

    def celu(self, alpha: Scalar = 1.0) -> Self:
        """x, and alpha·(exp(x/alpha) − 1) below 0.

        >>> Tensor([0.0, 2.0]).celu().tolist()
        [0.0, 2.0]
        """
        below = (self > 0).where(0, self)
        return (self > 0).where(self, (below / alpha).expm1() * alpha)

    def selu(self) -> Self:
        """Scaled ELU (Klambauer et al. 2017).

        >>> Tensor([0.0]).selu().tolist()
        [0.0]
        """
        alpha, scale = 1.6732632423543772, 1.0507009873554805
        return self.elu(alpha) * scale

    def sigmoid(self) -> Self:
        """1/(1 + e⁻ˣ), accurate on both sides and with a finite derivative everywhere.

        >>> Tensor([0.0]).sigmoid().tolist()
        [0.5]
        """
        x = self._as_float()
        small = _small(x)
        return x._with_derivative((x < 0).where(small, 1.0) / (small + 1), _sigmoid_rule)

    def logsigmoid(self) -> Self:
        """log(sigmoid(x)) without overflow.

        >>> round(Tensor([0.0]).logsigmoid().item(), 4)
        -0.6931
        """
        return -(-self._as_float()).softplus()

    def silu(self) -> Self:
        """x·sigmoid(x).

        >>> Tensor([0.0]).silu().tolist()
        [0.0]
        """
        return self * self.sigmoid()

    def gelu(self, approximate: str = "tanh") -> Self:
        """x·Φ(x) (Hendrycks and Gimpel 2016): the tanh approximation, or "none" for the exact one.

        Unlike PyTorch's, the default is "tanh".

        >>> round(Tensor([1.0]).gelu().item(), 4)
        0.8412
        """
        x = self._as_float()
        if approximate == "tanh":
            return x._with_derivative(x * 0.5 * _tanh_gelu(x)[0], _tanh_gelu_rule)
        if approximate != "none":
            raise ValueError(f"gelu(approximate={approximate!r}): expected 'tanh' or 'none'")
        return x._with_derivative(x * 0.5 * ((x * math.sqrt(0.5)).erf() + 1), _erf_gelu_rule)

    def quick_gelu(self) -> Self:
        """x·sigmoid(1.702·x).

        >>> Tensor([0.0]).quick_gelu().tolist()
        [0.0]
        """
        return self * (self * 1.702).sigmoid()

    def softplus(self, beta: Scalar = 1.0) -> Self:
        """log(1 + exp(beta·x))/beta without overflow.

        >>> round(Tensor([0.0]).softplus().item(), 4)
        0.6931
        """
        x = self._as_float() * beta
        small = (x < 0).where(x, -x).exp()
        return ((x < 0).where(0.0, x) + small.log1p()) / beta

    def softsign(self) -> Self:
        """x/(1 + |x|).

        >>> Tensor([1.0]).softsign().tolist()
        [0.5]
        """
        x = self._as_float()
        return x / ((x < 0).where(-x, x) + 1)

    def mish(self) -> Self:
        """x·tanh(softplus(x)).

        >>> Tensor([0.0]).mish().tolist()
        [0.0]
        """
        return self * self.softplus().tanh()

    def hardsigmoid(self) -> Self:
        """x/6 + 1/2 limited to 0 … 1, where the derivative is 0.

        >>> Tensor([-9.0, 0.0]).hardsigmoid().tolist()
        [0.0, 0.5]
        """
        return (self / 6 + 0.5).hardtanh(0, 1)

    def hardswish(self) -> Self:
        """x·relu6(x + 3)/6.

        >>> Tensor([-9.0, 3.0]).hardswish().tolist()
        [-0.0, 3.0]
        """
        x = self._as_float()
        return x * ((x + 3).relu6() / 6)

    def hardtanh(self, min_val: Scalar = -1, max_val: Scalar = 1) -> Self:
        """x limited to min_val … max_val, where the derivative is 0, unlike that of `clip`.

        >>> Tensor([-9.0, 0.5]).hardtanh().tolist()
        [-1.0, 0.5]
        """
        return (self >= max_val).where(max_val, (self <= min_val).where(min_val, self))

    # --- in place ---------------------------------------------------------------------------------

    def _in_place(self, name: str, result: Self) -> Self:
        """self, with the values of an in-place operation written to it."""
        if result.shape != self.shape:
            raise ShapeError(
                f"in-place {name}: the result has shape {show(result.shape)}, the tensor "
                f"{show(self.shape)}; write x = x {name} … instead"
            )
        if promote(result.dtype, self.dtype) is not self.dtype and (
            _KINDS.index(result.dtype.kind) > _KINDS.index(self.dtype.kind)
        ):
            raise DTypeError(
                f"in-place {name}: the result is {result.dtype.name}, the tensor "
                f"{self.dtype.name}; write x = x {name} … instead"
            )
        return self.assign(result)

    if not TYPE_CHECKING:  # to type checkers x += y is x = x + y
        (__iadd__, __isub__, __imul__, __itruediv__, __ifloordiv__, __imod__, __ipow__, __iand__,
         __ior__, __ixor__, __ilshift__, __irshift__) = map(_written, _OPERATORS)  # fmt: skip
