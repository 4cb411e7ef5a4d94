"""Functions of one number where they bend, overflow or end, against exact values.

Every such method, in every float dtype: both zeros, denormals, ±1 and its neighbours, the ends of
the domain, where eˣ overflows, and infinities. mpmath gives the exact value, which is rounded to
the dtype, perhaps to infinity. Gradients at such points are compared with PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from minigrad import Tensor
from minigrad.dtype import convert, named

from .compare import EPSILON, TINY
from .exact import INF, NAN
from .operation import Operation
from .table_unary import EXACT_FUNCTIONS, FUNCTIONS, PARAMETRISED, UNARY

EXACT = {row.name: row for row in UNARY if row.exact}
# gelu's tanh cancels far below 0, and quick_gelu rounds 1.702·x: tested elsewhere
ELSEWHERE = {"gelu", "gelu exact", "quick_gelu", "swish"}
ENDS_OF_EXP = {"float16": (10.0, 11.0, 11.08, 11.5, 11.78, 12.0), "float64": (
    700.0, 709.7, 710.0, 710.4, 711.0)}  # fmt: skip


def points(dtype: str) -> list[float]:
    """The special points of a dtype, rounded to it."""
    step, tiny = EPSILON[dtype], TINY[dtype]
    sizes = [
        0.0, tiny * step, tiny * 0.5, tiny, tiny * 3, 1e-30, 1e-10, step, 1e-4, 0.01, 0.24, 0.5,
        0.75, 1 - step, 1 - step / 2, 1.0, 1 + step, 1 + 2 * step, 1.5, 2.0, 2.5, 3.0, 9.0, 20.0,
        2.0**6, 2.0**7 + 1, 2.0**12, 2.0**14 + 4, 2.0**23, 2.0**23 + 1, 2.0**30 + 256, 2.0**62,
        1e18, 1e30, 1e38, 3.4e38, INF,
        *ENDS_OF_EXP.get(dtype, (85.0, 88.0, 88.5, 88.72, 88.75, 89.0, 89.4, 89.5, 90.0, 103.0)),
    ]  # fmt: skip
    held = [float(convert(size, named(dtype))) for size in sizes]
    return [*held, *(-x for x in held), NAN]


def _rounded(value: Any, dtype: str) -> float:
    """The exact value rounded to the dtype, perhaps to infinity."""
    if mpmath.isnan(value) or mpmath.isinf(value):
        return float(value)
    return float(convert(float(value), named(dtype)))


def _near(got: float, exact: Any, dtype: str, ulps: float) -> bool:
    wanted = _rounded(exact, dtype)
    if math.isnan(wanted) or math.isinf(wanted) or math.isnan(got) or math.isinf(got):
        return got == wanted or (math.isnan(got) and math.isnan(wanted)) or (
            # near the largest number, the last digits decide between it and infinity
            abs(exact) > _rounded_largest(dtype) * (1 - ulps * EPSILON[dtype]) and got == abs(got) *
            (1 if exact > 0 else -1)
        )  # fmt: skip
    bound = ulps * EPSILON[dtype] * max(abs(wanted), TINY[dtype])
    return bool(abs(got - exact) <= bound)


def _rounded_largest(dtype: str) -> float:
    return {"float16": 65504.0, "float64": 2.0**1023}.get(dtype, 3.38e38)


def test_each_function_is_here() -> None:
    """Every row of the operation table for one float operand is tested."""
    rows = {row.name for row in (*FUNCTIONS, *EXACT_FUNCTIONS)}
    assert rows - set(EXACT) == ELSEWHERE


def _value(row: Operation, x: float) -> Any:
    """The exact value of a row's function, or None; numpy decides the sign of a 0 or an ∞."""
    assert row.exact and row.reference
    exact = NAN if math.isnan(x) else row.exact(mpmath.mpf(x))
    if exact is None or not (exact == 0 or mpmath.isinf(exact)):
        return exact
    with np.errstate(all="ignore"):
        return float(row.reference(np.float64(x)))


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("name", EXACT)
def test_values(name: str, dtype: str, device: str) -> None:
    """Within 16 ulps of the exact value; zeros have its sign."""
    given = points(dtype)
    if name in ("sin", "cos", "tan"):
        # float steps must be small against a period
        given = [x for x in given if not 1e6 < abs(x) < INF]
    if name in ("silu", "mish"):  # x times a denormal, which has few digits
        given = [x for x in given if not x < -86]
    x = Tensor(given, dtype=dtype, device=device)
    got = getattr(x, name)().float().tolist() if dtype != "float64" else getattr(x, name)().tolist()
    wrong = []
    for x_, y in zip(given, got, strict=True):
        exact = _value(EXACT[name], x_)
        if exact is None:
            continue
        right = _near(y, exact, dtype, 16)
        if exact == 0 == y and EXACT[name].tolerance.signed_zero:
            right = math.copysign(1, y) == math.copysign(1, exact)
        if not right:
            of_sign = " (the row's reference says the sign)" if exact == 0 == y else ""
            wrong.append(f"{name}({x_!r}) = {y!r}, expected {mpmath.nstr(exact, 12)}{of_sign}")
    assert not wrong, "\n".join(wrong)


GRADIENTS = [row.name for row in (*FUNCTIONS, *PARAMETRISED, *EXACT_FUNCTIONS)
             if row.name not in ELSEWHERE]  # fmt: skip
PLACES = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 1e-30, -1e-30, 88.0, -88.0, 89.2, -89.2, 100.0,
          -100.0, 1e10, -1e10]  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str, device: str) -> None:
    """As PyTorch's where a function has a kink, is constant or overflows, inside its domain."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = Tensor(PLACES, device=device, requires_grad=True)
    getattr(x, name)().sum().backward()
    y = torch.tensor(PLACES, requires_grad=True)
    theirs = getattr(torch.nn.functional, name, None) or getattr(torch, name, None)
    if theirs is None:  # differences judge it, in test_gradient.py
        return
    judged = theirs(y)
    judged.sum().backward()
    ours, wanted = (grad.numpy()[~judged.isnan().numpy()] for grad in (x.grad, y.grad))
    rtol = 1e-4 if name == "digamma" else 3e-5  # far below 0, PyTorch's trigamma rounds πx, too
    np.testing.assert_allclose(ours, wanted, rtol=rtol, atol=2e-37, err_msg=name)


PAIRS: dict[str, tuple[Callable[[Any, Any], Any], str, list[float]]] = {
    "logaddexp": (lambda x, y: x.logaddexp(y), "logaddexp", [0.0, 1.0, -INF, INF, 100.0, -100.0]),
    "fmod": (lambda x, y: x.fmod(y), "fmod", [0.0, -0.0, 1.0, -1.0, 2.5, 3.0]),
    "maximum": (lambda x, y: x.maximum(y), "maximum", [0.0, -0.0, 1.0, -INF, INF]),
    "copysign": (lambda x, y: x.copysign(y), "copysign", [0.0, -0.0, 1.0, -2.0]),
    "pow": (lambda x, y: x**y, "pow", [0.0, 1.0, -1.0, 2.0, 3.0, 0.5]),
    "binary_crossentropy": (lambda p, t: p.binary_crossentropy(t, reduction="none"),
                            "binary_cross_entropy", [0.0, 1.0, 0.5, 1e-30]),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_of_two(name: str, device: str) -> None:
    """As PyTorch's at all pairs of values, by the first operand and, mostly, by the second."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    call, theirs, values = PAIRS[name]
    pairs = [(a, b) for a in values for b in values]
    if name == "logaddexp":  # for equal infinities PyTorch's is NaN
        pairs = [(a, b) for a, b in pairs if a != b or math.isfinite(a)]
    (x, y), (a, b) = (
        [make([pair[i] for pair in pairs]) for i in (0, 1)]
        for make in (lambda v: Tensor(v, device=device, requires_grad=True),
                     lambda v: torch.tensor(v, requires_grad=True))
    )  # fmt: skip
    function = getattr(torch.nn.functional, theirs, None) or getattr(torch, theirs)
    options = {"reduction": "none"} if name == "binary_crossentropy" else {}
    ours, judged = call(x, y), function(a, b, **options)
    ours.sum().backward()
    judged.sum().backward()
    close = np.testing.assert_allclose
    close(ours.numpy(), judged.detach().numpy(), rtol=1e-5, atol=2e-37)
    close(x.grad.numpy(), a.grad.numpy(), rtol=3e-5, atol=2e-37)
    if name not in ("binary_crossentropy", "fmod"):  # by target or divisor 0, PyTorch: ±∞
        close(y.grad.numpy(), b.grad.numpy(), rtol=3e-5, atol=2e-37)


def test_the_only_way_is_flat(device: str) -> None:
    """If the only path has a zero derivative, `backward` and `gradient` give 0 and do not raise."""
    x = Tensor([1.5, -2.0], device=device, requires_grad=True)
    y = Tensor([1.0, -1.0], device=device, requires_grad=True)
    results = {
        "floor": x.floor(), "ceil": x.ceil(), "round": x.round(), "trunc": x.trunc(),
        "sign": x.sign(), "copysign": y.copysign(x), "trunc div": x.div(y, rounding_mode="trunc"),
        "pow": x**0, "times": x * 0, "filled": x.masked_fill(x > -9, 0),
    }  # fmt: skip
    for name, result in results.items():
        (grad,) = result.sum().gradient(x)
        assert grad.tolist() == [0, 0], name
        x.grad = y.grad = None
        result.sum().backward()
        assert x.grad is not None and x.grad.tolist() == [0, 0], name
    assert (x.floor() + 3 * x).sum().gradient(x)[0].tolist() == [3, 3]
    assert y.copysign(x).sum().gradient(y)[0].tolist() == [1, 1]


@pytest.mark.parametrize("p", [2, 1, 3, 0.5, 0, -1, INF, -INF])
def test_norms(p: float, device: str) -> None:
    """Rows of zeros, of equal magnitudes, and others: values and gradients as PyTorch's."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rows = [[0.0, 0.0, 0.0], [0.0, 2.0, -3.0], [1.0, 1.0, -1.0], [0.5, -0.25, 4.0]]
    x = Tensor(rows, device=device, requires_grad=True)
    y = torch.tensor(rows, requires_grad=True)
    ours, theirs = x.normalize(p), torch.nn.functional.normalize(y, p)
    factors = [1.0, 2.0, 0.5]
    (ours * Tensor(factors, device=device)).sum().backward()
    (theirs * torch.tensor(factors)).sum().backward()
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=2e-5, atol=1e-6)


def test_half_floats_whose_squares_are_beyond_float16(device: str) -> None:
    """Norms, distances, covariances and their gradients equal those of float32, rounded."""
    rows = [[300.0, -400.0, 500.0], [400.0, 300.0, -250.0]]

    def found(dtype: str) -> list[Any]:
        x = Tensor(rows, dtype=dtype, device=device, requires_grad=True)
        y = x.flip(1)
        values = [x.norm(), x.norm(3, 1), x.normalize(), x.cosine_similarity(y), x.cdist(y),
                  x.pairwise_distance(y), (x / 8).cov(), x.gelu(), x.hypot(y)]  # fmt: skip
        slopes = [v.sum().gradient(x)[0] for v in values]
        return [v.float().numpy() for v in (*values, *slopes)]

    for half, single in zip(found("float16"), found("float32"), strict=True):
        np.testing.assert_allclose(half, single, rtol=4e-3, atol=4e-3 * np.abs(single).max())


def test_the_deviation_of_equal_numbers(device: str) -> None:
    """Its gradient is 0, as PyTorch's, along any axes, and in std_mean."""
    for axis in (None, 0, 1):
        x = Tensor.full((3, 4), 2.5, device=device, requires_grad=True)
        x.std(axis).sum().backward()
        assert x.grad.tolist() == [[0.0] * 4] * 3
    x = Tensor([[1.0, 1.0], [1.0, 3.0]], device=device, requires_grad=True)
    deviation, mean = x.std_mean(1)
    (deviation + mean).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [[0.5, 0.5], [0.5 - 0.5**0.5, 0.5 + 0.5**0.5]])


def test_over_no_elements(device: str) -> None:
    """Results of empty rows: empty, or the identity if a row is reduced to one number."""
    x = Tensor.zeros(3, 0, device=device)
    for name in ("softmax", "log_softmax", "cumsum", "cumprod"):
        assert getattr(x, name)(1).numpy().shape == (3, 0), name
        assert getattr(x.T, name)(0).numpy().shape == (0, 3), name
    for p in (2, 1, 0, INF, -INF):
        assert x.normalize(p).numpy().shape == (3, 0)
    assert x.logsumexp(1).tolist() == [-INF] * 3
    for result in (x.mean(1), x.var(1), x.std(1)):
        assert np.isnan(result.numpy()).all() and result.shape == (3,)
    assert x.cross_entropy(x, reduction="none").numpy().tolist() == [0, 0, 0]
    assert Tensor.zeros(0, 3, device=device).softmax(1).numpy().shape == (0, 3)


def test_integers_stay_integers(device: str) -> None:
    """interpolate of uint8 gives uint8: halves are rounded up, values out of range saturate."""
    near = Tensor([[[0, 10, 20]]], dtype="uint8", device=device).interpolate(scale_factor=1.1)
    assert near.tolist() == [[[0, 0, 10]]]  # places 0, 1, 2 over 1.1: the size does not change
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    values = np.random.default_rng(2).integers(0, 256, (1, 2, 4, 5)).astype(np.uint8)
    for mode, most in (("nearest", 0), ("bilinear", 1), ("bicubic", 1)):
        ours = Tensor(values, device=device).interpolate(size=(7, 3), mode=mode)
        theirs = torch.nn.functional.interpolate(torch.tensor(values), size=(7, 3), mode=mode)
        assert ours.dtype.name == "uint8"
        assert np.abs(ours.numpy().astype(int) - theirs.numpy().astype(int)).max() <= most, mode
    same = Tensor([[[0, 10]]], dtype="uint8", device=device).interpolate(size=4, mode="linear")
    assert same.tolist() == [[[0, 3, 8, 10]]]


@pytest.mark.parametrize("pair", [(-1, 3), (3, -2), (-3, 3), (2, 1), (-2, -2), (0, 4)])
def test_circular_padding_that_cuts(pair: tuple[int, int], device: str) -> None:
    """Cropped elements do not come back at the other end, as in PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    wanted = torch.nn.functional.pad(torch.tensor(x)[None], pair, mode="circular")[0].numpy()
    assert np.array_equal(Tensor(x, device=device).pad(pair, mode="circular").numpy(), wanted)


def test_negative_powers_of_integers(device: str) -> None:
    """Negative exponents in an integer tensor truncate, as in PyTorch; with floats, they divide."""
    x = Tensor([2, 1, -1, -1, 3], device=device)
    assert (x ** Tensor([-1, -2, -3, -2, 2], device=device)).tolist() == [0, 1, -1, 1, 9]
    np.testing.assert_allclose((x**-1.0).numpy(), [0.5, 1, -1, -1, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose((x.float() ** -2).numpy(), [0.25, 1, 1, 1, 1 / 9], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_at_special_points(dtype: str, device: str) -> None:
    """As C's pow where that gives 0, ∞ or NaN; only `x ** ±0.5` are roots, as in PyTorch."""
    sizes = [INF, 2.5, 1.0, 0.5, 0.0, 3.0, 4.0, 1 / 3, 2.0**24 - 1, 2.0**53, 1e30]
    values = np.array([*sizes, *(-size for size in sizes), NAN], dtype)
    x = Tensor(values, device=device)
    for exponent in values:
        with np.errstate(all="ignore"):
            wanted = np.power(values, np.full_like(values, exponent))
        found = [x ** Tensor(exponent, device=device), x ** x.full_like(float(exponent))]
        if abs(exponent) != 0.5:
            found.append(x ** float(exponent))
        special = (wanted == 0) | ~np.isfinite(wanted)
        for got in found:
            ours, exact = got.numpy()[special], wanted[special]
            np.testing.assert_array_equal(ours, exact)
            numbers = ~np.isnan(exact)
            np.testing.assert_array_equal(np.signbit(ours)[numbers], np.signbit(exact)[numbers])
    zero = Tensor([-INF, -0.0], dtype=dtype, device=device)
    assert str([(zero**0.5).tolist(), (zero**-0.5).tolist()]) == "[[nan, -0.0], [nan, -inf]]"


def test_remainders_of_negative_zero(device: str) -> None:
    """fmod has the sign of the dividend, also for a zero."""
    x = Tensor([-0.0, 0.0, -4.0, 4.0, -0.0], device=device)
    got = x.fmod(Tensor([2.0, 2.0, 2.0, -2.0, 0.0], device=device)).numpy()
    assert np.signbit(got[:4]).tolist() == [True, False, True, False]
    assert got[:4].tolist() == [0, 0, 0, 0] and np.isnan(got[4])


SECOND: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "gelu": (lambda x: x.gelu("tanh"), lambda x: 0.5 * x * (1 + mpmath.tanh(
        mpmath.sqrt(2 / mpmath.pi) * (x + 0.044715 * x**3)))),
    "logaddexp": (lambda x, y: x.logaddexp(y), lambda x, y: mpmath.log(mpmath.e**x + mpmath.e**y)),
    "pow": (lambda x, y: (x + 2) ** y, lambda x, y: (x + 2) ** y),
    "softplus": (lambda x: x.softplus(), lambda x: mpmath.log(1 + mpmath.e**x)),
    "sigmoid": (lambda x: x.sigmoid(), lambda x: 1 / (1 + mpmath.e**-x)),
    "hypot": (lambda x, y: (x - 2).hypot(y), lambda x, y: mpmath.sqrt((x - 2) ** 2 + y**2)),
    "sinh": (lambda x: x.sinh(), mpmath.sinh), "asinh": (lambda x: x.asinh(), mpmath.asinh),
    "atanh": (lambda x: (x * 0.5).atanh(), lambda x: mpmath.atanh(x * 0.5)),
    "expm1": (lambda x: x.expm1(), mpmath.expm1), "cosh": (lambda x: x.cosh(), mpmath.cosh),
}  # fmt: skip


@pytest.mark.parametrize("at", [0.0, -0.0, 1.0])
@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_where_formulas_change(name: str, at: float, device: str) -> None:
    """Functions that are smooth there: by each operand, and mixed, with all operands equal."""
    function, exact = SECOND[name]
    count = 2 if name in ("logaddexp", "pow", "hypot") else 1
    places = [Tensor(at, dtype="float64", device=device, requires_grad=True) for _ in range(count)]
    for n, first in enumerate(function(*places).gradient(*places)):
        for m, second in enumerate(first.gradient(*places)):
            orders = tuple((i == n) + (i == m) for i in range(count))
            wanted = float(mpmath.diff(exact, (at,) * count, orders))
            np.testing.assert_allclose(second.item(), wanted, rtol=1e-6, atol=1e-8)


def test_the_angle_of_nothing(device: str) -> None:
    """atan2(0, 0) has gradients of 0, as PyTorch's."""
    places = [Tensor([0.0, -0.0], device=device, requires_grad=True) for _ in range(2)]
    assert [g.tolist() for g in places[0].atan2(places[1]).sum().gradient(*places)] == [[0, 0]] * 2


@pytest.mark.parametrize("y, x", [(1e-25, 1e-25), (3e25, 1e25), (-1.0, 2.0)])
def test_gradient_of_an_angle(y: float, x: float, device: str) -> None:
    """Also for points whose squares overflow or underflow."""
    places = [Tensor(value, device=device, requires_grad=True) for value in (y, x)]
    found = [g.item() for g in places[0].atan2(places[1]).gradient(*places)]
    length = np.hypot(y, x)
    np.testing.assert_allclose(found, [x / length / length, -y / length / length], rtol=1e-6)


def test_logaddexp_keeps_small_results(device: str) -> None:
    """If the larger one is 0, the result is log1p of the smaller one's exponential."""
    y = np.array([-20, -50, -80, -INF], np.float32)
    found = Tensor(np.zeros(4, np.float32), device=device).logaddexp(Tensor(y, device=device))
    np.testing.assert_allclose(found.numpy(), np.logaddexp(0, y.astype(float)), rtol=2e-6)


def test_bounds_that_are_nan(device: str) -> None:
    """As in numpy and PyTorch: clipping to a NaN bound gives NaN."""
    nan, x = float("nan"), Tensor([1.0, 5.0], device=device)
    found = x.clip(Tensor([nan, 2.0], device=device), 4).tolist(), x.clip(nan, 7.0).tolist()
    np.testing.assert_array_equal(found, [[nan, 4.0], [nan, nan]])
    assert x.int().clip(Tensor([2, 2], device=device), None).tolist() == [2, 5]
