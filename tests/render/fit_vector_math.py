"""Derives the coefficients in minigrad/graph/formulas/: run it and compare its output.

Polynomials by Remez's exchange (E. Ya. Remez, 1934) on the *relative* error of the final result.
After each fit the lowest coefficient is rounded to the target format and the rest is fitted again,
so that later coefficients correct for the rounding of those that matter most. Rational functions by
Lawson's iteration: a linear least-squares fit of f·Q − P whose weights are multiplied by the error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import mpmath as mp

Function = Callable[[mp.mpf], mp.mpf]
mp.mp.dps = 60


def round_to(value: mp.mpf, bits: int) -> mp.mpf:
    """value with `bits` significant bits, halves to even."""
    if value == 0:
        return mp.mpf(0)
    scale = mp.mpf(2) ** (bits - 1 - int(mp.floor(mp.log(abs(value), 2))))
    return mp.nint(value * scale) / scale


def _evaluate(coefficients: Sequence[mp.mpf], t: mp.mpf) -> mp.mpf:
    total = mp.mpf(0)
    for c in reversed(coefficients):
        total = total * t + c
    return total


def remez(f: Function, weight: Function, low: float, high: float, degree: int) -> list[mp.mpf]:
    """The polynomial of a degree that minimises max |weight·(p − f)| on [low, high]."""
    count = degree + 2
    low, high = mp.mpf(low), mp.mpf(high)
    grid = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (i + mp.mpf("0.5")) / 600)
        for i in range(600)
    ]
    values = [f(t) for t in grid]
    weights = [abs(weight(t)) for t in grid]
    chosen = [round((len(grid) - 1) * i / (count - 1)) for i in range(count)]
    coefficients: list[mp.mpf] = []
    for _ in range(30):
        rows = mp.matrix(count, count)
        right = mp.matrix(count, 1)
        for row, g in enumerate(chosen):
            power = mp.mpf(1)
            for column in range(degree + 1):
                rows[row, column] = power
                power *= grid[g]
            rows[row, degree + 1] = (-1) ** row / weights[g]
            right[row] = values[g]
        solution = mp.lu_solve(rows, right)
        coefficients = [solution[i] for i in range(degree + 1)]
        errors = [w * (_evaluate(coefficients, t) - v)
                  for t, v, w in zip(grid, values, weights, strict=True)]  # fmt: skip
        peaks: list[int] = []
        for i, error in enumerate(errors):  # the largest error of each run of equal sign
            if peaks and (error > 0) == (errors[peaks[-1]] > 0):
                if abs(error) > abs(errors[peaks[-1]]):
                    peaks[-1] = i
            else:
                peaks.append(i)
        while len(peaks) > count:  # signs must alternate: remove an inner peak with a neighbour
            sizes = [abs(errors[i]) for i in peaks]
            least = sizes.index(min(sizes))
            if len(peaks) == count + 1 or least in (0, len(peaks) - 1):
                peaks.pop(0 if sizes[0] < sizes[-1] else -1)
            else:
                other = least - 1 if sizes[least - 1] < sizes[least + 1] else least + 1
                del peaks[min(least, other) : max(least, other) + 1]
        if len(peaks) < count or peaks == chosen:
            break
        chosen = peaks
    return coefficients


def polynomial(
    f: Function, weight: Function, low: float, high: float, degree: int, bits: int,
    fits: int | None = None,
) -> list[mp.mpf]:
    """Coefficients with `bits` significant bits (lowest power first) and their error.

    fits: after this many fits, the remaining coefficients are all rounded. (Around 0, where a power
    of t vanishes, the equations become singular.)
    """
    fixed: list[mp.mpf] = []
    rest, rest_weight = f, weight
    while len(fixed) <= degree:
        found = remez(rest, rest_weight, low, high, degree - len(fixed))
        last = len(fixed) + 1 == fits
        fixed.extend(round_to(c, bits) for c in (found if last else found[:1]))
        if last:
            break
        power = len(fixed)

        def rest(t: mp.mpf, power: int = power) -> mp.mpf:
            return (f(t) - _evaluate(fixed[:power], t)) / t**power

        def rest_weight(t: mp.mpf, power: int = power) -> mp.mpf:
            return weight(t) * t**power

    return fixed


def rational(
    f: Function, weight: Function, low: float, high: float, top: int, bottom: int
) -> tuple[list[mp.mpf], list[mp.mpf]]:
    """P, Q of these degrees, Q(0) = 1, that nearly minimise max |weight·(P/Q − f)|."""
    low, high = mp.mpf(low), mp.mpf(high)
    count = 8 * (top + bottom + 2)
    grid = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (i + mp.mpf("0.5")) / count)
        for i in range(count)
    ]
    values = [f(t) for t in grid]
    weights = [weight(t) for t in grid]
    lawson = [mp.mpf(1)] * count
    previous = [mp.mpf(1)] * count
    best: tuple[mp.mpf, list[mp.mpf], list[mp.mpf]] | None = None
    unit = mp.mpf(1) / high  # fit in t/high, which is better conditioned
    for _ in range(40):
        rows = mp.matrix(count, top + bottom + 1)
        right = mp.matrix(count, 1)
        for i in range(count):
            scale = mp.sqrt(lawson[i]) * weights[i] / previous[i]
            power = mp.mpf(1)
            for j in range(max(top, bottom) + 1):
                if j <= top:
                    rows[i, j] = scale * power
                if 1 <= j <= bottom:
                    rows[i, top + j] = -scale * power * values[i]
                power *= grid[i] * unit
            right[i] = scale * values[i]
        solution, _ = mp.qr_solve(rows, right)
        p = [solution[j] * unit**j for j in range(top + 1)]
        q = [mp.mpf(1)] + [solution[top + j] * unit**j for j in range(1, bottom + 1)]
        previous = [_evaluate(q, t) for t in grid]
        errors = [abs(w * (_evaluate(p, t) / d - v))
                  for t, d, v, w in zip(grid, previous, values, weights, strict=True)]  # fmt: skip
        worst = max(errors)
        if best is None or worst < best[0]:
            best = (worst, p, q)
        lawson = [a * e for a, e in zip(lawson, errors, strict=True)]
        total = mp.fsum(lawson)
        lawson = [max(a / total * count, mp.mpf("1e-9")) for a in lawson]
    assert best is not None
    return best[1], best[2]


def literal(value: mp.mpf) -> str:
    """The number as Python writes it (all coefficients are exact in float64)."""
    return repr(struct.unpack("<d", struct.pack("<d", float(value)))[0])


def report(name: str, coefficients: Sequence[mp.mpf], error: mp.mpf) -> None:
    """Prints one table entry."""
    text = ", ".join(literal(c) for c in coefficients)
    print(f"{name}: relative error 2^{mp.nstr(mp.log(error, 2), 4)}\n    ({text})")


def exponentials() -> None:
    """e^r = 1 + r·P(r) and 2^r = 1 + r·P(r) for |r| up to ln 2 (and up to 1)."""
    for bits, degree in ((24, 6), (53, 12)):
        for name, base, edge in (("EXP", mp.e, mp.log(2)), ("EXP2", mp.mpf(2), mp.mpf(1))):
            edge = edge * mp.mpf("1.0001")

            def f(r: mp.mpf, base: mp.mpf = base) -> mp.mpf:
                return (base**r - 1) / r

            def weight(r: mp.mpf, base: mp.mpf = base) -> mp.mpf:
                return r / base**r

            p = polynomial(f, weight, -edge, edge, degree, bits)
            grid = [edge * (2 * i + 1) / 401 for i in range(-201, 201)]
            error = max(abs(weight(t) * (_evaluate(p, t) - f(t))) for t in grid)
            report(f"{name}[{bits}]", p, error)


def logarithms() -> None:
    """log(1 + f) = f + f²·P(f) and log2(1 + f) = f + f·P(f), 1 + f from √½ to √2."""
    low, high = mp.sqrt("0.5") - 1, mp.sqrt(2) - 1
    low, high = low * mp.mpf("1.00001"), high * mp.mpf("1.00001")
    cases = (
        ("LOG", lambda f: (mp.log1p(f) - f) / f**2, lambda f: f**2 / mp.log1p(f), 8),
        ("LOG2", lambda f: mp.log1p(f) / mp.log(2) / f - 1,
         lambda f: f * mp.log(2) / mp.log1p(f), 9),
    )  # fmt: skip
    for name, function, weight, degree in cases:
        p = polynomial(function, weight, low, high, degree, 24)
        grid = [low + (high - low) * (2 * i + 1) / 800 for i in range(400)]
        error = max(abs(weight(t) * (_evaluate(p, t) - function(t))) for t in grid)
        report(f"{name}[24]", p, error)


def circular() -> None:
    """sin r = r·(1 + r²·P(r²)), cos r = 1 − r²/2 + r⁴·P(r²), |r| up to π/4, in z = r²."""
    edge = (mp.pi / 4 * mp.mpf("1.035")) ** 2  # the reduction leaves a little more than π/4
    cases = (
        ("SIN", lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z,
         lambda z: z * mp.sqrt(z) / mp.sin(mp.sqrt(z)), {24: 2, 53: 6}),
        ("COS", lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2,
         lambda z: z**2 / mp.cos(mp.sqrt(z)), {24: 2, 53: 5}),
    )  # fmt: skip
    for name, function, weight, degrees in cases:
        for bits, degree in degrees.items():
            p = polynomial(function, weight, mp.mpf("1e-9"), edge, degree, bits)
            grid = [edge * (2 * i + 1) / 800 for i in range(400)]
            error = max(abs(weight(t) * (_evaluate(p, t) - function(t))) for t in grid)
            report(f"{name}[{bits}]", p, error)


def error_function() -> None:
    """erf x = x + x·P(x²) for |x| ≤ 0.8, then 1 − 2^G(|x|) up to 4, for float32.

    There 2^r = 1 + r·P(r) for |r| ≤ ½ needs to be accurate to a few units only.
    """
    start, end = mp.mpf("1e-6"), mp.mpf("0.8") ** 2

    def f(z: mp.mpf) -> mp.mpf:
        return mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1

    p = polynomial(f, lambda z: 1 / (1 + f(z)), start, end, 5, 24)
    grid = [end * i / 400 for i in range(1, 401)]
    error = max(abs((_evaluate(p, t) - f(t)) / (1 + f(t))) for t in grid)
    report("ERF[24] small", p, error)

    def g(x: mp.mpf) -> mp.mpf:
        return mp.log(mp.erfc(x), 2)

    def weight(x: mp.mpf) -> mp.mpf:
        return mp.erfc(x) * mp.log(2) / mp.erf(x)

    low, high = mp.mpf("0.79"), mp.mpf("4.01")
    p = polynomial(g, weight, low, high, 6, 24)
    grid = [low + (high - low) * i / 400 for i in range(401)]
    error = max(abs(weight(t) * (_evaluate(p, t) - g(t))) for t in grid)
    report("ERF[24] G", p, error)
    p = polynomial(lambda r: (2**r - 1) / r, lambda r: r * 2**-r, -0.5, 0.5, 4, 24)
    grid = [mp.mpf(i) / 400 for i in range(-200, 201)]
    error = max(abs((1 + t * _evaluate(p, t)) / 2**t - 1) for t in grid)
    report("ERF[24] 2^r", p, error)


def hyperbolic_tangent() -> None:
    """tanh x = x + x·z·P(z) for |x| ≤ 0.7 in float32, z = x²."""
    start, end = mp.mpf("1e-4"), mp.mpf("0.701") ** 2

    def f(z: mp.mpf) -> mp.mpf:
        return (mp.tanh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z

    def weight(z: mp.mpf) -> mp.mpf:
        return z * mp.sqrt(z) / mp.tanh(mp.sqrt(z))

    p = polynomial(f, weight, start, end, 4, 24)
    grid = [end * i / 400 for i in range(1, 401)]
    error = max(abs(weight(t) * (_evaluate(p, t) - f(t))) for t in grid)
    report("TANH[24]", p, error)


def double_only() -> None:
    """Formulas for float64 only.

    ln(1 + f) = 2s + s·z·P(z) with s = f/(2 + f), z = s²; e^r − 1 = r + r²·P(r), |r| ≤ ln(2)/2; erf
    x = x·P(x²) for |x| ≤ 1 and 1 − e^(−x²)·P(x)/Q(x) for 1 ≤ x ≤ 6.
    """
    bits = 53

    def f(z: mp.mpf) -> mp.mpf:
        return (mp.log((1 + mp.sqrt(z)) / (1 - mp.sqrt(z))) / mp.sqrt(z) - 2) / z

    end = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2 * mp.mpf("1.0001")
    p = polynomial(f, lambda z: z / (2 + z * f(z)), end / 1000, end, 6, bits)
    grid = [end * i / 400 for i in range(1, 401)]
    error = max(abs(t / (2 + t * f(t)) * (_evaluate(p, t) - f(t))) for t in grid)
    report("LOG[53]", p, error)

    def g(r: mp.mpf) -> mp.mpf:
        return (mp.expm1(r) - r) / r**2

    end = mp.log(2) / 2 * mp.mpf("1.0001")
    p = polynomial(g, lambda r: r**2 / mp.expm1(r), -end, end, 10, bits)
    grid = [end * (2 * i + 1) / 401 for i in range(-201, 201)]
    error = max(abs(t**2 / mp.expm1(t) * (_evaluate(p, t) - g(t))) for t in grid)
    report("EXPM1[53]", p, error)

    def h(t: mp.mpf) -> mp.mpf:
        return mp.erf(mp.sqrt(t)) / mp.sqrt(t)

    end = mp.mpf("1.0001")
    p = polynomial(h, lambda t: 1 / h(t), end / 1000, end, 12, bits)
    grid = [end * i / 400 for i in range(1, 401)]
    error = max(abs(_evaluate(p, t) / h(t) - 1) for t in grid)
    report("ERF[53] small", p, error)

    def c(t: mp.mpf) -> mp.mpf:
        return mp.erfc(t) * mp.exp(t * t)

    p, q = rational(c, lambda t: mp.exp(-t * t), mp.mpf(1), mp.mpf(6), 6, 6)
    grid = [1 + mp.mpf(5) * i / 400 for i in range(401)]
    p, q = [round_to(a, bits) for a in p], [round_to(a, bits) for a in q]
    error = max(mp.exp(-t * t) * abs(_evaluate(p, t) / _evaluate(q, t) - c(t)) for t in grid)
    report("ERF[53] large P", p, error)
    report("ERF[53] large Q", q, error)


def powers() -> None:
    """log2(1 + f) = f·P(f) to a little more than float32's precision."""
    low, high = mp.sqrt("0.5") - 1, mp.sqrt(2) - 1
    low, high = low * mp.mpf("1.00001"), high * mp.mpf("1.00001")

    def f(t: mp.mpf) -> mp.mpf:
        return mp.log1p(t) / mp.log(2) / t

    p = polynomial(f, lambda t: 1 / f(t), low, high, 12, 53)
    grid = [low + (high - low) * (2 * i + 1) / 800 for i in range(400)]
    error = max(abs(_evaluate(p, t) / f(t) - 1) for t in grid)
    report("POW[24]", p, error)

    def g(z: mp.mpf) -> mp.mpf:
        return 2 * mp.atanh(mp.sqrt(z)) / mp.sqrt(z) / mp.log(2)

    end = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2 * mp.mpf("1.0001")
    first, second = 2 / mp.log(2), 2 / mp.log(2) / 3

    def rest(z: mp.mpf) -> mp.mpf:
        return ((g(z) - first) / z - second) / z

    p = polynomial(rest, lambda z: z**2 / g(z), end / 1000, end, 7, 53)
    grid = [end * i / 400 for i in range(1, 401)]
    error = max(abs(t**2 / g(t) * (_evaluate(p, t) - rest(t))) for t in grid)
    report("POW[53]", p, error)
    for c in (first, second):
        high = round_to(c, 53)
        print(f"    {literal(high)}, {literal(c - high)}")


def inverse_circular() -> None:
    """atan r = r + r·z·P(z) for |r| ≤ tan(π/8), and asin s = s + s·z·P(z) for |s| ≤ ½, z = r²."""
    for name, function, limit, degrees in (
        ("ATAN", mp.atan, mp.tan(mp.pi / 8), {24: 4, 53: 11}),
        ("ASIN", mp.asin, mp.mpf("0.5"), {24: 5, 53: 12}),
    ):
        for bits, degree in degrees.items():
            end = (limit * mp.mpf("1.0001")) ** 2

            def f(z: mp.mpf, function: Function = function) -> mp.mpf:
                return (function(mp.sqrt(z)) / mp.sqrt(z) - 1) / z

            def weight(z: mp.mpf, function: Function = function) -> mp.mpf:
                return z * mp.sqrt(z) / function(mp.sqrt(z))

            p = polynomial(f, weight, end / 1000, end, degree, bits)
            grid = [end * i / 400 for i in range(1, 401)]
            error = max(abs(weight(t) * (_evaluate(p, t) - f(t))) for t in grid)
            report(f"{name}[{bits}]", p, error)


def gamma_functions() -> None:
    """ln Γ(2 + t) = t·P(t) on −0.7 … 0.3 and Stirling's z·P(z²) for z = 1/x, x ≥ 3.3.

    ψ(1.5 + s) = (1.5 + s − zero)·P(s) on ±½ and ln x − z/2 − z²·P(z²) for x ≥ 3. The reflections'
    sin(πr)/(πr) = 1 + u·P(u) and π·cot(πr) = 1/r + r·P(u), u = r², |r| ≤ ½.
    """
    bits, tiny, half = 53, mp.mpf("1e-6"), mp.mpf("0.5001")
    zero = mp.findroot(mp.digamma, mp.mpf("1.4616"))
    print(f"zero of digamma: {literal(zero)}, {literal(zero - round_to(zero, bits))}")

    def stirling(u: mp.mpf) -> mp.mpf:
        x = 1 / mp.sqrt(u)
        return (mp.loggamma(x) - (x - 0.5) * mp.log(x) + x - mp.log(2 * mp.pi) / 2) * x

    def series(u: mp.mpf) -> mp.mpf:
        x = 1 / mp.sqrt(u)
        return (mp.log(x) - mp.digamma(x) - 1 / (2 * x)) * x * x

    def near_zero(s: mp.mpf) -> mp.mpf:
        return mp.digamma(mp.mpf("1.5") + s) / (mp.mpf("1.5") + s - zero)

    def sine(u: mp.mpf) -> mp.mpf:
        return mp.sinc(mp.pi * mp.sqrt(u))

    def cotangent(u: mp.mpf) -> mp.mpf:
        r = mp.sqrt(u)
        return (mp.pi * mp.cot(mp.pi * r) - 1 / r) / r

    cases: tuple[tuple[str, Function, Function, mp.mpf, mp.mpf, int], ...] = (
        ("LGAMMA near two", lambda t: mp.loggamma(2 + t) / t, lambda t: t / mp.loggamma(2 + t),
         mp.mpf("-0.7001"), mp.mpf("0.3001"), 19),
        ("LGAMMA Stirling", stirling, lambda u: mp.sqrt(u) / mp.loggamma(1 / mp.sqrt(u)),
         mp.mpf("1e-4"), 1 / mp.mpf("3.2999") ** 2, 9),
        ("DIGAMMA near its zero", near_zero, lambda s: 1 / near_zero(s), -half, half, 21),
        ("DIGAMMA series", series, lambda u: u / mp.digamma(1 / mp.sqrt(u)),
         mp.mpf("1e-4"), 1 / mp.mpf("2.9999") ** 2, 9),
        ("SINE", lambda u: (sine(u) - 1) / u, lambda u: u / sine(u), tiny, half**2, 7),
        ("COTANGENT", cotangent, lambda u: mp.mpf("0.25"), tiny, half**2, 14),
    )  # fmt: skip
    for name, f, weight, low, high, degree in cases:
        p = polynomial(f, weight, low, high, degree, bits, fits=3)
        grid = [low + (high - low) * (2 * i + 1) / 600 for i in range(300)]
        error = max(abs(weight(t) * (_evaluate(p, t) - f(t))) for t in grid)
        report(f"{name}[53]", p, error)


if __name__ == "__main__":
    exponentials()
    logarithms()
    circular()
    error_function()
    hyperbolic_tangent()
    double_only()
    powers()
    inverse_circular()
    gamma_functions()
