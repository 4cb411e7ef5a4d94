"""Functions of one tensor: rounding, powers, roots, exponentials, trigonometry."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from minigrad.dtype import dtypes
from minigrad.errors import DTypeError, ShapeError, misfit
from minigrad.graph import build
from minigrad.graph.node import Node, Op
from minigrad.settings import thread
from minigrad.tensor.broadcasting import Scalar, check_choice
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Methods
from minigrad.tensor.templates import templated

# By itemsize: above this x² + 1 = x² (and the square is finite), so asinh x = log 2x.
_LARGE = {2: 2.0**7, 4: 2.0**14, 8: 2.0**30}


# A gradient rule on tensors: (g, value, *sources) → for each source a gradient, or None.
Rule = Callable[..., Sequence[Any]]


@cache
def rule_of_nodes(kind: type[Core], rule: Rule) -> Callable[[Node, Node], list[Node | None]]:
    """A rule on nodes, as the graph needs it; cached, because equal nodes must be one object."""

    def of_nodes(node: Node, g: Node) -> list[Node | None]:
        gradients = rule(*(kind._of(source) for source in (g, node, *node.src[1:])))
        return [None if gradient is None else gradient.node for gradient in gradients]

    return of_nodes


def _rule(derivative: Callable[[Any], Any]) -> Rule:
    """The gradient rule of f(x), from f'."""
    return templated(lambda g, _, x: [g * derivative(x)])


def _asinh_slope(x: Any) -> Any:
    """1/√(x² + 1), or 1/|x| where x² would overflow."""
    size, limit = x.abs(), _LARGE[x.dtype.itemsize]
    near = size.clip(max=limit)
    return (size > limit).where(size.clip(min=limit), (near * near + 1).sqrt()).reciprocal()


# f' in closed form: derived step by step, it may be ∞ − ∞ or 0·∞ where the function overflows.
_EXPM1, _LOG1P = _rule(lambda x: x.exp()), _rule(lambda x: (x + 1).reciprocal())
_SINH, _COSH = _rule(lambda x: x.cosh()), _rule(lambda x: x.sinh())
_ASINH = _rule(_asinh_slope)
_ACOSH = _rule(lambda x: ((x - 1).sqrt() * (x + 1).sqrt()).reciprocal())
_ATANH = _rule(lambda x: ((1 - x) * (x + 1)).reciprocal())


def _flat(g: Any, value: Any, x: Any) -> Sequence[Any]:
    """The rule of a function that is constant almost everywhere."""
    return [None]


def _copysign_rule(g: Any, value: Any, x: Any, y: Any) -> Sequence[Any]:
    return [g * (value.sign() * x.sign()), None]  # 0 at 0


@templated
def _softmax_rule(g: Any, value: Any, x: Any, y: Any) -> Sequence[Any]:
    """Softmax of two numbers; a half each where they are equal, also if infinite."""
    both = (y - x, x - y)
    away = ((x.eq(y) & d.isnan()).where(0.0, d) for d in both)  # only ∞ − ∞ has no slope
    return [g * (d.exp() + 1).reciprocal() for d in away]


_KINDS = "buif"  # bool < integers < floats: an in-place result may not rise in this order


@templated
def _sigmoid_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    small = x._small()
    return [g * (small / ((small + 1) * (small + 1)))]


def _tanh_gelu(x: Any) -> tuple[Any, Any]:
    """tanh u + 1 and 1 − tanh² u, for the u of GELU.

    Both are computed from tanh(−|u|) + 1, which still has digits where it is small.
    """
    u = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
    small = (u < 0).where(u, -u).tanh() + 1  # the derivative at 0 is that from the right
    large = 2 - small
    return (u < 0).where(small, large), small * large


@templated
def _tanh_gelu_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    above, slope = _tanh_gelu(x)
    part, factor = x * slope, 0.5 * math.sqrt(2 / math.pi)  # part is 0 long before x² overflows
    return [g * (above * 0.5 + (part + part * x * x * (3 * 0.044715)) * factor)]


@templated
def _erf_gelu_rule(g: Any, value: Any, x: Any) -> Sequence[Any]:
    """As derived, but in terms that the scheduler stores with the value, instead of erf again."""
    below = ((x * math.sqrt(0.5)).erf() + 1) * 0.5
    density = (x * x * -0.5).exp() * math.sqrt(0.5 / math.pi)
    return [g * (below + x * density)]


_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
              "//": operator.floordiv, "%": operator.mod, "**": operator.pow, "&": operator.and_,
              "|": operator.or_, "^": operator.xor, "<<": operator.lshift,
              ">>": operator.rshift}  # fmt: skip


def _written(sign: str) -> Any:
    """The in-place form of an operator."""
    function = _OPERATORS[sign]
    return lambda self, other: self._in_place(sign, function(self, other))


class Functions(Methods):
    """Elementwise functions; integers are converted to float32 if results are not integers."""

    __slots__ = ()

    def _with_derivative(self, value: Self, rule: Rule, *others: Self) -> Self:
        """`value`, an elementwise function of self, with a rule that computes g·f'(self) directly.

        Derived step by step, every term would have the factor g. Here f' is a value of its own, so
        it can be computed in the forward pass, together with f, and share its exponentials.
        """
        if not thread.gradients:
            return value
        sources = [x.node for x in (self, *others)]
        return self._new(build.custom(value.node, sources, rule_of_nodes(self.__class__, rule)))

    def _odd(self, size: Self) -> Self:
        """±size with the sign of self; a zero stays as it is."""
        return self.eq(0).where(self, (self < 0).where(-size, size))

    def _unary(self, op: Op) -> Self:
        """A function of floats; integers are converted to float32."""
        return self._new(build.elementwise(op, self._as_float().node))

    def abs(self) -> Self:
        """|self|; the derivative at 0 is 0. The smallest integer of a dtype stays negative.

        >>> Tensor([-1, 2]).abs().tolist()
        [1, 2]
        """
        if self.dtype.kind in "bu":
            return self.clone()
        size = (self < 0).where(-self, self)
        return self.eq(0).where(0, size) if self.dtype.is_float else size  # |−0| is +0

    def floor(self) -> Self:
        """The largest integer that is not larger.

        >>> Tensor([1.5, -1.5]).floor().tolist()
        [1.0, -2.0]
        """
        return self._unary(Op.FLOOR) if self.dtype.is_float else self.clone()

    def ceil(self) -> Self:
        """The smallest integer that is not smaller.

        >>> Tensor([1.5, -1.5]).ceil().tolist()
        [2.0, -1.0]
        """
        return self._unary(Op.CEIL) if self.dtype.is_float else self.clone()

    def trunc(self) -> Self:
        """The integer part: rounded towards 0.

        >>> Tensor([1.5, -1.5]).trunc().tolist()
        [1.0, -1.0]
        """
        return self._unary(Op.TRUNC) if self.dtype.is_float else self.clone()

    def round(self, decimals: int = 0) -> Self:
        """Rounded to `decimals` digits after the point, halves to even.

        >>> Tensor([1.5, 2.5]).round().tolist()
        [2.0, 2.0]
        """
        if not self.dtype.is_float:
            if decimals < 0:
                raise DTypeError(f"round({decimals}): expected decimals ≥ 0; use .float() first")
            return self.clone()
        if decimals:
            power = 10.0 ** abs(decimals)  # exact, unlike its reciprocal
            wide = self._wide()
            whole = (wide * power if decimals > 0 else wide / power).round()
            return (whole / power if decimals > 0 else whole * power).cast(self.dtype)
        return self._unary(Op.ROUND)

    __round__ = round

    # --- functions that devices know --------------------------------------------------------------

    def square(self) -> Self:
        """self².

        >>> Tensor([3.0]).square().tolist()
        [9.0]
        """
        return self * self

    def sqrt(self) -> Self:
        """√self; NaN below 0.

        >>> Tensor([9.0]).sqrt().tolist()
        [3.0]
        """
        return self._unary(Op.SQRT)

    def rsqrt(self) -> Self:
        """1/√self.

        >>> Tensor([4.0]).rsqrt().tolist()
        [0.5]
        """
        return self.sqrt().reciprocal()

    def reciprocal(self) -> Self:
        """1/self.

        >>> Tensor([4.0]).reciprocal().tolist()
        [0.25]
        """
        return self._binary(Op.DIV, "reciprocal", 1, True)

    def exp(self) -> Self:
        """eˣ.

        >>> Tensor([0.0]).exp().tolist()
        [1.0]
        """
        return self._unary(Op.EXP)

    def exp2(self) -> Self:
        """2ˣ.

        >>> Tensor([3.0]).exp2().tolist()
        [8.0]
        """
        return self._unary(Op.EXP2)

    def log(self) -> Self:
        """Natural logarithm.

        >>> Tensor([1.0]).log().tolist()
        [0.0]
        """
        return self._unary(Op.LOG)

    def log2(self) -> Self:
        """Logarithm to base 2.

        >>> Tensor([8.0]).log2().tolist()
        [3.0]
        """
        return self._unary(Op.LOG2)

    def sin(self) -> Self:
        """Sine of radians.

        >>> Tensor([0.0]).sin().tolist()
        [0.0]
        """
        return self._unary(Op.SIN)

    def cos(self) -> Self:
        """Cosine of radians.

        >>> Tensor([0.0]).cos().tolist()
        [1.0]
        """
        return self._unary(Op.COS)

    def asin(self) -> Self:
        """Inverse of sin, in −π/2 … π/2; NaN outside −1 … 1.

        >>> Tensor([0.0]).asin().tolist()
        [0.0]
        """
        return self._unary(Op.ASIN)

    def acos(self) -> Self:
        """Inverse of cos, in 0 … π; NaN outside −1 … 1.

        >>> Tensor([1.0]).acos().tolist()
        [0.0]
        """
        return self._unary(Op.ACOS)

    def atan(self) -> Self:
        """Inverse of tan, in −π/2 … π/2.

        >>> Tensor([0.0]).atan().tolist()
        [0.0]
        """
        return self._unary(Op.ATAN)

    def tanh(self) -> Self:
        """Hyperbolic tangent.

        >>> Tensor([0.0]).tanh().tolist()
        [0.0]
        """
        return self._unary(Op.TANH)

    def erf(self) -> Self:
        """Error function 2/√π ∫₀ˣ exp(−t²) dt.

        >>> Tensor([0.0]).erf().tolist()
        [0.0]
        """
        return self._unary(Op.ERF)

    def lgamma(self) -> Self:
        """ln |Γ(self)|: ∞ at 0 and at the negative integers.

        >>> round(Tensor([4.0]).lgamma().exp().item())
        6
        """
        return self._unary(Op.LGAMMA)

    def digamma(self) -> Self:
        """The derivative of lgamma: ∓∞ at ±0, NaN at the negative integers and at −∞.

        >>> round(Tensor([1.0]).digamma().item(), 3)
        -0.577
        """
        return self._unary(Op.DIGAMMA)

    # --- remainders and powers --------------------------------------------------------------------

    def div(self, other: Any, rounding_mode: str | None = None) -> Self:
        """self / other in floats; rounding_mode "floor" or "trunc" gives whole numbers.

        >>> Tensor([7]).div(2, rounding_mode="floor").tolist()
        [3]
        """
        if rounding_mode == "floor":
            return self.floor_divide(other)
        if rounding_mode == "trunc":
            x, y = self._two("truncated division", other)
            if x.dtype.is_float:
                return (x / y).trunc()
            return (x - x.fmod(y)).floor_divide(y)
        if rounding_mode is not None:
            raise ValueError(f"div(rounding_mode={rounding_mode!r}): expected 'floor' or 'trunc'")
        return self._binary(Op.DIV, "div", other)

    def fmod(self, other: Any) -> Self:
        """The remainder with the sign of the dividend (C's).

        >>> Tensor([-7]).fmod(4).tolist()
        [-3]
        """
        x, y = self._two("fmod", other)
        if not x.dtype.is_float:
            rest = x.mod(y)
            return (rest.ne(0) & ((x < 0) ^ (y < 0))).where(rest - y, rest)
        rest = (x < 0).where(-x, x).mod((y < 0).where(-y, y))
        # −0 − 0 is −0
        return x.eq(0).where(x - rest.detach(), (x < 0).where(-rest, rest))

    def pow(self, other: Any, *, reverse: bool = False) -> Self:
        """self ** other.

        For integers, negative exponents in a tensor truncate (to 0, or ±1 for ±1); as a number they
        raise.

        >>> Tensor([3]).pow(2).tolist()
        [9]
        """
        if isinstance(other, (bool, int, float)) and not reverse:
            if isinstance(other, int) and other < 0 and not self.dtype.is_float:
                expected = f"an exponent ≥ 0; write x.float() ** {other}"
                raise misfit("pow", expected, f"{self.dtype.name} ** {other}", error=ValueError)
            simple = self._pow_number(other)
            if simple is not None:
                return simple
        x, y = self._pair("pow", other, reverse)
        if x.dtype.is_float:
            return self._new(build.elementwise(Op.POW, x, y))
        return self._new(x)._pow_integer(self._new(y))

    def _pow_number(self, exponent: int | float | bool) -> Self | None:
        """A power by a formula cheaper and more accurate than the general one, or None."""
        if self.dtype.is_bool or (not self.dtype.is_float and isinstance(exponent, float)):
            return None  # powers of bools are int32
        if exponent == 1:
            return self * exponent
        if exponent in (2, 3):
            return self * self if exponent == 2 else self * self * self
        named = {0.5: self.sqrt, -0.5: self.rsqrt, -1: self.reciprocal}.get(exponent)
        return named() if named is not None and self.dtype.is_float else None

    def _pow_integer(self, exponent: Self) -> Self:
        """Square and multiply, one bit of the exponent at a time."""
        if self.dtype.is_bool:
            return self.int()._pow_integer(exponent.int())
        result = self * 0 + 1
        power = self
        for bit in range(self.dtype.bits - (self.dtype.kind == "i")):
            result = ((exponent >> bit) & 1).eq(1).where(result * power, result)
            power = power * power
        if self.dtype.kind == "u":
            return result
        odd = (exponent & 1).eq(1)
        unit = self.eq(1).where(1, self.eq(-1).where(odd.where(-1, 1), 0)).cast(self.dtype)
        return (exponent < 0).where(unit, result)

    __pow__, __abs__ = pow, abs

    def __rpow__(self, other: Any) -> Self:
        return self.pow(other, reverse=True)

    def isclose(
        self, other: Any, rtol: Scalar = 1e-5, atol: Scalar = 1e-8, equal_nan: bool = False
    ) -> Self:
        """|self − other| ≤ atol + rtol·|other|, and equality of infinities.

        >>> Tensor([1.0]).isclose(1.0 + 1e-6).tolist()
        [True]
        """
        x, y = self._two("isclose", other)
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not isinstance(value, Core) and not value >= 0:
                raise ValueError(f"isclose({name}={value}): expected a number ≥ 0")
        if not x.dtype.is_float:  # differences of integers may wrap
            x, y = x.cast(dtypes.float64), y.cast(dtypes.float64)
        near = (x - y).abs() <= y.abs() * rtol + atol
        close = x.eq(y) | (near & x.isfinite() & y.isfinite())
        return close | (x.isnan() & y.isnan()) if equal_nan else close

    def lerp(self, end: Any, weight: Any) -> Self:
        """self + weight·(end − self), in floats; exactly end for a weight of 1.

        >>> Tensor([1.0]).lerp(Tensor([3.0]), 0.5).tolist()
        [2.0]
        """
        x, y = self._two_floats("lerp", end)
        known = isinstance(weight, (int, float))
        weight = weight if known else x._data(weight)
        near, far = x + (y - x) * weight, y - (y - x) * (1 - weight)  # exact at 0, and at 1
        if known:
            return near if abs(weight) < 0.5 else far
        return (weight.abs() < 0.5).where(near, far)

    def sign(self) -> Self:
        """−1, 0 or 1; NaN for NaN.

        >>> Tensor([-3, 0]).sign().tolist()
        [-1, 0]
        """
        signs = (self > 0).where(1, (self < 0).where(-1, 0)).cast(self.dtype)
        if not self.dtype.is_float:
            return signs
        return self._with_derivative(self.isnan().where(self, signs), _flat)

    def copysign(self, other: Any) -> Self:
        """|self| with the sign of other; −0 counts as negative.

        >>> Tensor([3.0]).copysign(-1.0).tolist()
        [-3.0]
        """
        x, y = self._two_floats("copysign", other)
        size = x.abs()
        result = (y.bitcast(x.dtype.signed) < 0).where(-size, size)
        return x._with_derivative(result, _copysign_rule, y)

    def logaddexp(self, other: Any) -> Self:
        """log(eˣ + eʸ) without overflow; accurate to the last digits if the larger one is near 0.

        >>> round(Tensor([0.0]).logaddexp(0.0).item(), 4)
        0.6931
        """
        x, y = self._two_floats("logaddexp", other)
        apart = x.eq(y).where(0.0, (x - y).abs())  # 0 also for equal infinities
        return x._with_derivative(x.maximum(y) + (-apart).exp().log1p(), _softmax_rule, y)

    # --- exponentials, logarithms ---------------------------------------------------------

    def expm1(self) -> Self:
        """eˣ − 1, accurate near 0: tanh(x/2)·(eˣ + 1).

        >>> Tensor([0.0]).expm1().tolist()
        [0.0]
        """
        x = self._as_float()
        return x._with_derivative((x * 0.5).tanh() * (x.exp() + 1), _EXPM1)

    def log10(self) -> Self:
        """Logarithm to base 10.

        >>> round(Tensor([100.0]).log10().item(), 4)
        2.0
        """
        return self.log2() * math.log10(2.0)

    def log1p(self) -> Self:
        """log(1 + x), accurate near 0.

        With u = 1 + x rounded, log(u)·x/(u − 1) repairs the rounding (W. Kahan).

        >>> Tensor([0.0]).log1p().tolist()
        [0.0]
        """
        x = self._as_float()
        u = x + 1
        plain = u.eq(1) | u.eq(float("inf"))
        repair = x / plain.where(1.0, u - 1)
        return x._with_derivative(plain.where(x, u.log() * repair), _LOG1P)

    # --- trigonometry -----------------------------------------------------------------------------

    def tan(self) -> Self:
        """Tangent of radians.

        >>> Tensor([0.0]).tan().tolist()
        [0.0]
        """
        return self.sin() / self.cos()

    def sinh(self) -> Self:
        """Hyperbolic sine, accurate near 0.

        >>> Tensor([0.0]).sinh().tolist()
        [0.0]
        """
        x = self._as_float()
        size = x.abs()
        t = size.clip(max=1).expm1()
        large = size._half_exp()
        size = (size > 1).where(large - 0.25 / large, (t + t / (t + 1)) * 0.5)
        return x._with_derivative(x._odd(size), _SINH)

    def _half_exp(self) -> Self:
        """eˣ/2, in two steps that overflow only if the result does."""
        root = (self * 0.5).exp()
        return root * 0.5 * root

    def cosh(self) -> Self:
        """Hyperbolic cosine.

        >>> Tensor([0.0]).cosh().tolist()
        [1.0]
        """
        x = self._as_float()
        large = x.abs()._half_exp()
        return x._with_derivative(large + 0.25 / large, _COSH)

    def asinh(self) -> Self:
        """Inverse of sinh.

        >>> Tensor([0.0]).asinh().tolist()
        [0.0]
        """
        x = self._as_float()
        size = (x < 0).where(-x, x)
        limit = _LARGE[x.dtype.itemsize]
        near = size.clip(max=limit)  # its square is finite
        small = (near + near * near / ((near * near + 1).sqrt() + 1)).log1p()
        result = (size > limit).where(size.clip(limit).log() + math.log(2), small)
        return x._with_derivative(x._odd(result), _ASINH)

    def acosh(self) -> Self:
        """Inverse of cosh, accurate near 1; NaN below 1.

        >>> Tensor([1.0]).acosh().tolist()
        [0.0]
        """
        x = self._as_float()
        limit = _LARGE[x.dtype.itemsize]
        above = x.clip(1, limit) - 1
        small = (above + (above * (above + 2)).sqrt()).log1p()
        result = (x > limit).where(x.clip(limit).log() + math.log(2), small)
        return x._with_derivative((x < 1).where(math.nan, result), _ACOSH)

    def atanh(self) -> Self:
        """Inverse of tanh; NaN outside −1 … 1.

        >>> Tensor([0.0]).atanh().tolist()
        [0.0]
        """
        x = self._as_float()
        size = (x < 0).where(-x, x)
        return x._with_derivative(x._odd((size * 2 / (1 - size)).log1p() * 0.5), _ATANH)

    # --- activations ------------------------------------------------------------------------------

    def relu(self) -> Self:
        """max(x, 0); the derivative at 0 is 0.

        >>> Tensor([-1.0, 2.0]).relu().tolist()
        [0.0, 2.0]
        """
        return (self <= 0).where(0, self)

    def relu6(self) -> Self:
        """min(max(x, 0), 6); the derivative at 0 and 6 is 0.

        >>> Tensor([-1.0, 9.0]).relu6().tolist()
        [0.0, 6.0]
        """
        return self.hardtanh(0, 6)

    def leaky_relu(self, negative_slope: Scalar = 0.01) -> Self:
        """x, but negative_slope·x below 0.

        >>> Tensor([-1.0, 2.0]).leaky_relu(0.5).tolist()
        [-0.5, 2.0]
        """
        return (self <= 0).where(self * negative_slope, self)

    def elu(self, alpha: Scalar = 1.0) -> Self:
        """x, but alpha·(eˣ − 1) below 0.

        >>> Tensor([0.0, 2.0]).elu().tolist()
        [0.0, 2.0]
        """
        # at 0 the derivative is that of the exponential, as in PyTorch
        return (self > 0).where(self, (self > 0).where(0, self).expm1() * alpha)

    def selu(self) -> Self:
        """Scaled ELU (Klambauer et al. 2017).

        >>> Tensor([0.0]).selu().tolist()
        [0.0]
        """
        alpha, scale = 1.6732632423543772, 1.0507009873554805
        return self.elu(alpha) * scale

    def _small(self) -> Self:
        """exp(−|x|), which does not overflow."""
        return (self < 0).where(self, -self).exp()

    def sigmoid(self) -> Self:
        """1/(1 + e⁻ˣ), accurate on both sides and with a finite derivative everywhere.

        >>> Tensor([0.0]).sigmoid().tolist()
        [0.5]
        """
        x = self._as_float()
        small = x._small()
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
        check_choice("gelu", ("tanh", "none"), approximate=approximate)
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
        return ((x < 0).where(0.0, x) + x._small().log1p()) / beta

    def mish(self) -> Self:
        """x·tanh(softplus(x)).

        >>> Tensor([0.0]).mish().tolist()
        [0.0]
        """
        return self * self.softplus().tanh()

    def hardsigmoid(self) -> Self:
        """x/6 + 1/2 limited to 0 … 1; at and beyond the limits the derivative is 0.

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
        """x limited to min_val … max_val; at the limits the derivative is 0, unlike with `clip`.

        >>> Tensor([-9.0, 0.5]).hardtanh().tolist()
        [-1.0, 0.5]
        """
        if not isinstance(min_val, Core) and not isinstance(max_val, Core):
            if not min_val <= max_val:
                raise ValueError(f"hardtanh({min_val}, {max_val}): expected min_val ≤ max_val")
        return (self >= max_val).where(max_val, (self <= min_val).where(min_val, self))

    # --- in place ---------------------------------------------------------------------------------

    def _in_place(self, name: str, result: Self) -> Self:
        """Write the result of an in-place operation to self; an error if shape or dtype do not fit.
        """
        fits = result.shape == self.shape
        if fits and _KINDS.index(result.dtype.kind) <= _KINDS.index(self.dtype.kind):
            return self.assign(result)
        instead = f"x = x.{name[:-1]}(…)" if name.endswith("_") else f"x = x {name} …"
        raise (DTypeError if fits else ShapeError)(
            f"in-place {name}: the result is {result.dtype.name} {result.shape}, but the tensor is "
            f"{self.dtype.name} {self.shape}; write {instead}"
        )

    if not TYPE_CHECKING:  # to type checkers x += y is x = x + y
        (__iadd__, __isub__, __imul__, __itruediv__, __ifloordiv__, __imod__, __ipow__, __iand__,
         __ior__, __ixor__, __ilshift__, __irshift__) = map(_written, _OPERATORS)  # fmt: skip
