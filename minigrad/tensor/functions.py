"""Functions of one tensor: roots, exponentials, trigonometry, rounding, activations."""

from __future__ import annotations

import math
from typing import Self

from minigrad.graph.node import Op
from minigrad.tensor.elementwise import Elementwise
from minigrad.tensor.nodes import Scalar


class Functions(Elementwise):
    """Elementwise functions; integers are converted to float32 where the result is no integer."""

    __slots__ = ()

    # --- signs and rounding -----------------------------------------------------------------------

    def abs(self) -> Self:
        """|self|; the derivative at 0 is 0. INT_MIN stays."""
        if self.dtype.kind in "bu":
            return self
        size = (self < 0).where(-self, self)
        return self.eq(0).where(0, size) if self.dtype.is_float else size  # |−0| is +0

    def sign(self) -> Self:
        """−1, 0 or 1; NaN for NaN."""
        if self.dtype.kind in "bu":
            return self.ne(0).cast(self.dtype)
        signs = (self > 0).where(1, (self < 0).where(-1, 0)).cast(self.dtype)
        return self.isnan().where(self, signs).detach() if self.dtype.is_float else signs

    def floor(self) -> Self:
        """The largest whole number that is not larger."""
        return self._unary(Op.FLOOR) if self.dtype.is_float else self

    def ceil(self) -> Self:
        """The smallest whole number that is not smaller."""
        return self._unary(Op.CEIL) if self.dtype.is_float else self

    def trunc(self) -> Self:
        """The whole part, towards 0."""
        return self._unary(Op.TRUNC) if self.dtype.is_float else self

    def round(self) -> Self:
        """The nearest whole number, halves to even."""
        return self._unary(Op.ROUND) if self.dtype.is_float else self

    # --- powers, exponentials, logarithms ---------------------------------------------------------

    def square(self) -> Self:
        """self²."""
        return self * self

    def sqrt(self) -> Self:
        """√self; NaN below 0."""
        return self._unary(Op.SQRT)

    def rsqrt(self) -> Self:
        """1/√self."""
        return self.sqrt().reciprocal()

    def reciprocal(self) -> Self:
        """1/self."""
        return self.__rtruediv__(1)

    def exp(self) -> Self:
        """eˣ."""
        return self._unary(Op.EXP)

    def exp2(self) -> Self:
        """2ˣ."""
        return self._unary(Op.EXP2)

    def expm1(self) -> Self:
        """eˣ − 1, accurate near 0: tanh(x/2)·(eˣ + 1)."""
        x = self._as_float()
        return (x * 0.5).tanh() * (x.exp() + 1)

    def log(self) -> Self:
        """Natural logarithm."""
        return self._unary(Op.LOG)

    def log2(self) -> Self:
        """Logarithm to base 2."""
        return self._unary(Op.LOG2)

    def log10(self) -> Self:
        """Logarithm to base 10."""
        return self.log2() * math.log10(2.0)

    def log1p(self) -> Self:
        """log(1 + x), accurate near 0.

        With u = 1 + x rounded, log(u)·x/(u − 1) repairs the rounding (W. Kahan). The repair is a
        factor near 1 that is constant for the derivative.
        """
        x = self._as_float()
        u = x + 1
        plain = u.eq(1) | u.eq(float("inf"))
        repair = (plain.where(1.0, x) / plain.where(1.0, u - 1)).detach()
        return plain.where(x, plain.where(1.0, u).log() * repair)

    # --- trigonometry -----------------------------------------------------------------------------

    def sin(self) -> Self:
        """Sine of radians."""
        return self._unary(Op.SIN)

    def cos(self) -> Self:
        """Cosine of radians."""
        return self._unary(Op.COS)

    def tan(self) -> Self:
        """Tangent of radians."""
        return self.sin() / self.cos()

    def sinh(self) -> Self:
        """Hyperbolic sine, accurate near 0."""
        t = self._as_float().abs().expm1()
        size = t.isinf().where(t, (t + t / (t + 1)) * 0.5)
        return (self < 0).where(-size, size)

    def cosh(self) -> Self:
        """Hyperbolic cosine."""
        x = self._as_float()
        return (x.exp() + (-x).exp()) * 0.5

    def tanh(self) -> Self:
        """Hyperbolic tangent."""
        return self._unary(Op.TANH)

    def asinh(self) -> Self:
        """Inverse of sinh."""
        x = self._as_float()
        size = (x < 0).where(-x, x)
        result = (size + size * size / ((size * size + 1).sqrt() + 1)).log1p()
        return (x < 0).where(-result, result)

    def acosh(self) -> Self:
        """Inverse of cosh; NaN below 1."""
        x = self._as_float()
        return (x + ((x - 1) * (x + 1)).sqrt()).log()

    def atanh(self) -> Self:
        """Inverse of tanh; NaN outside −1 … 1."""
        x = self._as_float()
        size = (x < 0).where(-x, x)
        result = (size * 2 / (1 - size)).log1p() * 0.5
        return (x < 0).where(-result, result)

    def erf(self) -> Self:
        """Error function 2/√π ∫₀ˣ exp(−t²) dt."""
        return self._unary(Op.ERF)

    # --- activations ------------------------------------------------------------------------------

    def relu(self) -> Self:
        """max(x, 0); the derivative at 0 is 0."""
        return (self <= 0).where(0, self)

    def relu6(self) -> Self:
        """min(max(x, 0), 6)."""
        return self.relu().minimum(6)

    def leaky_relu(self, negative_slope: Scalar = 0.01) -> Self:
        """x, and negative_slope·x below 0."""
        return (self <= 0).where(self * negative_slope, self)

    def elu(self, alpha: Scalar = 1.0) -> Self:
        """x, and alpha·(eˣ − 1) below 0."""
        return (self > 0).where(self, self.minimum(0).expm1() * alpha)

    def celu(self, alpha: Scalar = 1.0) -> Self:
        """x, and alpha·(exp(x/alpha) − 1) below 0."""
        return (self > 0).where(self, (self.minimum(0) / alpha).expm1() * alpha)

    def selu(self) -> Self:
        """Scaled ELU (Klambauer et al. 2017)."""
        alpha, scale = 1.6732632423543772, 1.0507009873554805
        return self.elu(alpha) * scale

    def sigmoid(self) -> Self:
        """1/(1 + e⁻ˣ), accurate on both sides and with a finite derivative everywhere."""
        x = self._as_float()
        small = (x < 0).where(x, -x).exp()  # exp(−|x|), whose derivative at 0 is one-sided
        return (x < 0).where(small, 1.0) / (small + 1)

    def logsigmoid(self) -> Self:
        """log(sigmoid(x)) without overflow."""
        return -(-self).softplus()

    def silu(self) -> Self:
        """x·sigmoid(x)."""
        return self * self.sigmoid()

    def swish(self) -> Self:
        """As `silu`."""
        return self.silu()

    def gelu(self, approximate: str = "tanh") -> Self:
        """x·Φ(x) (Hendrycks and Gimpel 2016): the tanh approximation, or "none" for the exact one.

        Unlike PyTorch's, the default is "tanh".
        """
        x = self._as_float()
        if approximate == "tanh":
            inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
            return x * 0.5 * (inner.tanh() + 1)
        if approximate != "none":
            raise ValueError(f"gelu(approximate={approximate!r}): expected 'tanh' or 'none'")
        return x * 0.5 * ((x * math.sqrt(0.5)).erf() + 1)

    def quick_gelu(self) -> Self:
        """x·sigmoid(1.702·x)."""
        return self * (self * 1.702).sigmoid()

    def softplus(self, beta: Scalar = 1.0) -> Self:
        """log(1 + exp(beta·x))/beta without overflow."""
        x = self._as_float() * beta
        small = (x < 0).where(x, -x).exp()
        return ((x < 0).where(0.0, x) + small.log1p()) / beta

    def softsign(self) -> Self:
        """x/(1 + |x|)."""
        x = self._as_float()
        return x / ((x < 0).where(-x, x) + 1)

    def mish(self) -> Self:
        """x·tanh(softplus(x))."""
        return self * self.softplus().tanh()

    def hardsigmoid(self) -> Self:
        """x/6 + 1/2 limited to 0 … 1."""
        return (self / 6 + 0.5).clip(0, 1)

    def hardswish(self) -> Self:
        """x·relu6(x + 3)/6."""
        return self * (self + 3).relu6() / 6

    def hardtanh(self, min_val: Scalar = -1, max_val: Scalar = 1) -> Self:
        """x limited to min_val … max_val."""
        return self.clip(min_val, max_val)


