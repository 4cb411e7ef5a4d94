"""Errors of the vector math in ULP, over the whole range of the formats, without a renderer.

Every formula runs in numpy twice, with and without contraction of products and sums, because a
renderer may do either. `python -m render.test_vector_math_exprs`, in tests/, prints a table.
"""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from primitives import OF_ONE, VECTOR_MATH
from property.exact import bends
from property.operations import BY_NAME

from minigrad.dtype import DType, dtypes
from minigrad.errors import DTypeError
from minigrad.graph.node import Op
from minigrad.graph.symbolic import Affine
from minigrad.render.vector_math import expand, rewriting
from minigrad.schedule.expr import Array, Expr, apply, const, index, load, value_of, walk

from .expr_interpreter import evaluate

Floats = npt.NDArray[np.floating]

UNARY = {op: BY_NAME[op.value].reference for op in OF_ONE if op in VECTOR_MATH}
PRECISE = {op: BY_NAME[op.value].exact for op in UNARY}
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0]
BRANCHES = (Op.SIN, Op.COS)  # with a branch for rare arguments
# The largest errors promised, in ULP.
BOUND = dict.fromkeys([*UNARY, Op.POW], 2.0)
BOUND_DOUBLE = {**dict.fromkeys([*UNARY, Op.POW], 2.5), Op.LGAMMA: 4.0, Op.DIGAMMA: 4.0}


def variable(name: str, dtype: DType) -> Expr:
    """A load in place of an operand."""
    return load(Array(name, dtype, 1), 0)


def run(op: Op, *inputs: Floats, contract: bool, branches: bool = True) -> Floats:
    """The value of op's expansion."""
    dtype = getattr(dtypes, inputs[0].dtype.name)
    names = ("x", "y")[: len(inputs)]
    root = expand(apply(op, tuple(variable(name, dtype) for name in names), dtype))
    result: Floats = evaluate(root, dict(zip(names, inputs, strict=True)), contract, branches)
    return result


def samples(dtype: type[np.floating], op: Op, count: int) -> Floats:
    """Random bit patterns, and as many numbers where the function does not saturate, with edges."""
    generator = np.random.default_rng(7)
    bits = np.uint32 if dtype is np.float32 else np.uint64
    anywhere = generator.integers(0, np.iinfo(bits).max, count, bits, endpoint=True).view(dtype)
    limits = bends(op.value, np.dtype(dtype).name)
    near = generator.uniform(*limits, count).astype(dtype)
    near = np.abs(near) if BY_NAME[op.value].domains[0] == "positive" else near
    around_one = (1 + generator.normal(0, 1e-3, count // 4)).astype(dtype)
    info = np.finfo(dtype)
    edges = [*SPECIAL, info.max, -info.max, info.tiny, -info.tiny, info.smallest_subnormal,
             -info.smallest_subnormal, *limits]  # fmt: skip
    return np.concatenate([anywhere, near, around_one, np.array(edges, dtype)])


def ulps(got: Floats, exact: Floats, dtype: type[np.floating]) -> Floats:
    """|got − exact| in units of dtype's last place; inf if only one of them is NaN or infinite."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(dtype)
        bound = np.minimum(np.abs(rounded), np.finfo(dtype).max)
        unit = np.spacing(bound).astype(np.float64)
        unit = np.where(np.spacing(bound) > 0, unit, np.finfo(dtype).smallest_subnormal)
        error = np.abs(got.astype(exact.dtype) - exact) / unit.astype(exact.dtype)
        same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        error = np.where(same & ~np.isfinite(rounded), 0, error)
        return np.where(np.isfinite(error), error, np.inf).astype(np.float64)


def worst_single(op: Op, count: int) -> list[tuple[float, float]]:
    """(largest error in ULP, the argument) of a float32 function, plain and contracted."""
    x = samples(np.float32, op, count)
    with np.errstate(all="ignore"):
        exact = UNARY[op](x.astype(np.float64))
    ways = itertools.product((False, True), (True, False) if op in BRANCHES else (True,))
    errors = [
        ulps(run(op, x, contract=contract, branches=branches), exact, np.float32)
        for contract, branches in ways
    ]
    return [(float(error.max()), float(x[error.argmax()])) for error in errors]


def worst_double(
    op: Op, contract: bool, count: int, branches: bool = True
) -> tuple[float, float]:
    """(largest error in ULP, the argument) of a float64 function, against mpmath."""
    x = samples(np.float64, op, count)
    got = run(op, x, contract=contract, branches=branches)
    worst, where = 0.0, 0.0
    with mpmath.workprec(1200 if op in (Op.SIN, Op.COS) else 200), np.errstate(all="ignore"):
        for argument, value in zip(x, got, strict=True):
            v = float(argument)
            if op in (Op.EXP, Op.EXP2) and 2000.0 < abs(v) < math.inf:  # 60 digits take long
                error = 0.0 if value == (math.inf if v > 0 else 0.0) else math.inf
            else:
                exact = math.nan if math.isnan(v) else PRECISE[op](mpmath.mpf(v))
                if mpmath.isinf(exact):  # numpy knows −0, mpmath does not
                    exact = UNARY[op](np.float64(v))
                rounded = float(exact)
                if math.isfinite(rounded) and math.isfinite(value):
                    error = float(abs(mpmath.mpf(float(value)) - exact) / math.ulp(rounded))
                else:
                    same = np.array_equal(rounded, value, equal_nan=True)
                    error = 0.0 if same else math.inf
            if error > worst:
                worst, where = error, v
    return worst, where


@pytest.mark.parametrize("op", UNARY, ids=lambda op: op.value)
def test_float32_error_is_bounded_everywhere(op: Op) -> None:
    # Functions that only mpmath computes take 0.2 ms a point; a few thousand points also show the
    # worst place of each polynomial.
    count = 4_000 if op.facts.fold((0.5,)) is None else 100_000
    for error, argument in worst_single(op, count):
        assert error <= BOUND[op], f"{op.value}({argument!r}) is off by {error:.2f} ULP"


@pytest.mark.parametrize("contract", [False, True])
@pytest.mark.parametrize("op", UNARY, ids=lambda op: op.value)
def test_float64_error_is_bounded_everywhere(op: Op, contract: bool) -> None:
    for branches in (True, False) if op in BRANCHES else (True,):
        error, argument = worst_double(op, contract, 400, branches)
        assert error <= BOUND_DOUBLE[op], f"{op.value}({argument!r}) is off by {error:.2f} ULP"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", [Op.EXP, Op.EXP2], ids=lambda op: op.value)
def test_powers_of_what_masks_hide_do_not_underflow(op: Op, dtype: type[np.floating]) -> None:
    """They are 0 by a product with 0: products that underflow are very slow on some processors."""
    x = np.array([-math.inf, np.finfo(dtype).min, -1e4, -1e9], dtype)
    assert not run(op, x, contract=False).any()
    assert not underflows(op, x)
    assert underflows(op, np.array([-150 if dtype is np.float32 else -1100], dtype))


def underflows(op: Op, x: Floats) -> bool:
    """Whether a product without a zero factor is smaller than a normal number."""
    kind = getattr(dtypes, x.dtype.name)
    root = expand(apply(op, (variable("x", kind),), kind))
    products = [e for e in walk(root) if e.op is Op.MUL]
    for e in products:
        left, right, product = (evaluate(part, {"x": x}, False) for part in (*e.args, e))
        tiny = np.abs(product) < np.finfo(x.dtype).tiny
        if np.any(tiny & (left != 0) & (right != 0)):
            return True
    return False


@pytest.mark.parametrize("contract", [False, True])
def test_tanh_plus_one_of_a_gelu(contract: bool) -> None:
    """Within 2 units of the best possible sum in float32, and 0 and 2 at the ends."""
    x = np.concatenate([np.linspace(-50, 50, 100_001), [-3e38, 3e38, -np.inf, np.inf, np.nan]])
    x = x.astype(np.float32)
    tanh = apply(Op.TANH, (variable("x", dtypes.float32),), dtypes.float32)
    root = apply(Op.ADD, (tanh, const(1.0, dtypes.float32)), dtypes.float32)
    got = evaluate(expand(root), {"x": x}, contract)
    exact = np.tanh(x.astype(np.float64)) + 1
    error = np.abs(got - exact) / np.spacing(np.maximum(np.abs(exact), 1).astype(np.float32))
    assert np.nanmax(error) <= 2 and np.isnan(got[-1])
    assert list(got[-5:-1]) == [0, 2, 0, 2]
    small = (x[:-5] > -40) & (x[:-5] < -3)  # where tanh is nearly −1, the sum still has digits
    far = -2 * np.abs(x[:-5][small].astype(np.float64))
    precise = 2 / (np.exp(-far) + 1)
    assert np.max(np.abs(got[:-5][small] / precise - 1)) < 1e-5


def test_tanh_that_others_read_is_computed_once() -> None:
    tanh = apply(Op.TANH, (variable("x", dtypes.float32),), dtypes.float32)
    root = apply(Op.ADD, (tanh, const(1.0, dtypes.float32)), dtypes.float32)
    both = apply(Op.MUL, (root, tanh), dtypes.float32)
    divisions = [e for e in walk(expand(both)) if e.op is Op.DIV]
    assert len(divisions) == 1


def pairs(dtype: type[np.floating], count: int) -> tuple[Floats, Floats]:
    """Bases and exponents: random bits, ordinary values, whole exponents, all special pairs."""
    generator = np.random.default_rng(11)
    bits = np.uint32 if dtype is np.float32 else np.uint64
    top = np.iinfo(bits).max
    limit = 140.0 if dtype is np.float32 else 1050.0
    base = generator.uniform(0.01, 100.0, count).astype(dtype)
    bases = [generator.integers(0, top, count, bits, endpoint=True).view(dtype), base, -base]
    whole = generator.integers(-20, 20, count).astype(dtype)
    bases.append(np.exp(generator.uniform(-limit / 2, limit / 2, count)).astype(dtype))
    spread = (generator.uniform(-1.05, 1.05, count) * limit / np.log2(bases[3])).astype(dtype)
    exponents = [generator.integers(0, top, count, bits, endpoint=True).view(dtype),
                 generator.uniform(-20, 20, count).astype(dtype), whole, spread]  # fmt: skip
    info = np.finfo(dtype)
    special = np.array([*SPECIAL, info.max, -info.max, info.tiny, info.smallest_subnormal, 1e9,
                        2.0**24 + 2, 1 + info.eps, 1 - info.epsneg], dtype)  # fmt: skip
    left, right = (grid.ravel() for grid in np.meshgrid(special, special))
    return np.concatenate([*bases, left]), np.concatenate([*exponents, right])


def _check_power(x: Floats, y: Floats, exact: Floats, bound: float) -> None:
    dtype = x.dtype.type
    for contract in (False, True):
        got = run(Op.POW, x, y, contract=contract)
        error = ulps(got, exact, dtype)
        i = error.argmax()
        assert error[i] <= bound, f"{x[i]!r} ** {y[i]!r} is {got[i]!r}, expected {exact[i]!r}"
        with np.errstate(over="ignore"):
            zeros = (got == 0) & (exact.astype(dtype) == 0)
        assert np.array_equal(np.signbit(got[zeros]), np.signbit(exact[zeros]))


def test_power_float32() -> None:
    x, y = pairs(np.float32, 60_000)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.longdouble), y.astype(np.longdouble))
    _check_power(x, y, exact, BOUND[Op.POW])


def test_power_float64() -> None:
    x, y = pairs(np.float64, 1000)
    with np.errstate(all="ignore"):
        exact = np.power(x, y).astype(np.longdouble)  # the special cases
    with mpmath.workprec(200):
        for i, (base, exponent) in enumerate(zip(x, y, strict=True)):
            if np.isfinite(exact[i]) and exact[i] != 0 and np.isfinite(base + exponent):
                power = mpmath.power(mpmath.mpf(float(base)), mpmath.mpf(float(exponent)))
                high = float(power.real)
                exact[i] = np.longdouble(high) + np.longdouble(float(power.real - high))
    _check_power(x, y, exact, BOUND_DOUBLE[Op.POW])


def worst_turns() -> list[int]:
    """For each power of two below 2²⁰, the multiple of π/2 that is nearest to a float64."""
    found = []
    with mpmath.workprec(200):
        half = int(mpmath.pi / 2 * 2**120)
        for power in range(1, 20):
            turns = range(1 << (power - 1), 1 << power)
            unit = 1 << (120 + power - 53)  # at most that of the float64
            found.append(min(turns, key=lambda n: abs((n * half + unit // 2) % unit - unit // 2)))
    return found


# Numbers very near a multiple of π/2, whose small difference the reduction must compute. The first
# is the worst float64 (Muller, "Elementary Functions"; Kahan's example).
@pytest.mark.parametrize("op", [Op.SIN, Op.COS], ids=lambda op: op.value)
def test_arguments_near_multiples_of_half_pi(op: Op) -> None:
    worst = 6381956970095103.0 * 2.0**797
    turns = (1, 2, 3, 11, 355, *worst_turns(), 10**6, 10**15, 10**22)
    multiples = [float(k * mpmath.pi / 2) for k in turns]
    x = np.array([worst, *multiples, 2.0**1023, 2.0**100 + 2.0**60, 2.0**52, 2.0**76, 2.0**77])
    with mpmath.workprec(1300):
        exact = [PRECISE[op](mpmath.mpf(float(v))) for v in x]
        for branches in (True, False):
            got = run(op, x, contract=False, branches=branches)
            for v, g, e in zip(x, got, exact, strict=True):
                assert abs(float(g) - e) <= 1.5 * math.ulp(float(e)), f"{op.value}({v!r}) is {g!r}"


@pytest.mark.parametrize("payload", [0x7FC00001, 0x7FFFFFFF, 0xFFC12345, 0x7F800001])
@pytest.mark.parametrize("op", UNARY, ids=lambda op: op.value)
def test_any_nan_stays_nan(op: Op, payload: int) -> None:
    x = np.array([payload], np.uint32).view(np.float32)
    assert np.isnan(run(op, x, contract=False))[0]


@pytest.mark.parametrize("op", [Op.TANH, Op.ERF], ids=lambda op: op.value)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_never_above_one(op: Op, dtype: type[np.floating]) -> None:
    x = np.linspace(0, 25, 200_001).astype(dtype)
    for contract in (False, True):
        assert np.max(run(op, x, contract=contract)) == 1.0


def test_halves_are_computed_in_float32() -> None:
    for dtype in (dtypes.float16, dtypes.bfloat16):
        root = expand(apply(Op.EXP, (variable("x", dtype),), dtype))
        assert root.op is Op.CAST and root.dtype is dtype
        arithmetic = [e for e in walk(root) if e.op in (Op.ADD, Op.MUL)]
        assert arithmetic and all(e.dtype is dtypes.float32 for e in arithmetic)


def test_expands_below_other_operations_and_inside_indices() -> None:
    x = variable("x", dtypes.float32)
    wave = apply(Op.CAST, (apply(Op.SIN, (x,), dtypes.float32),), dtypes.int32)
    position = value_of(wave)
    assert isinstance(position, Affine)
    y = load(Array("table", dtypes.float32, 8), position + 1, (position + 3,))
    root = expand(apply(Op.ADD, (y, index(position, dtypes.float32)), dtypes.float32))
    assert not any(map(rewriting, walk(root)))
    assert any(e.op is Op.BITCAST for e in walk(root))
    assert expand(root) is root


def test_deep_chains_do_not_recurse() -> None:
    x = variable("x", dtypes.float32)
    for _ in range(300):
        x = apply(Op.TANH, (x,), dtypes.float32)
    assert len(walk(expand(x))) > 3000


def test_integers_are_refused() -> None:
    three = const(3, dtypes.int32)
    with pytest.raises(DTypeError, match="float dtype"):
        expand(apply(Op.EXP, (three,), dtypes.int32))


def _operations(op: Op, dtype: DType) -> tuple[int, int]:
    """(operations, operations when every product joins the sum that uses it)."""
    args = (variable("x", dtype),) + ((variable("y", dtype),) if op is Op.POW else ())
    order = [e for e in walk(expand(apply(op, args, dtype))) if e.args and e.op is not Op.BITCAST]
    uses: dict[Expr, list[Expr]] = {}
    for expr in order:
        for arg in expr.args:
            uses.setdefault(arg, []).append(expr)
    joined = sum(
        e.op is Op.MUL and e.dtype.is_float and len(uses.get(e, ())) == 1
        and uses[e][0].op in (Op.ADD, Op.SUB) for e in order
    )  # fmt: skip
    return len(order), len(order) - joined


def _table() -> None:
    print("function   ops(f32) fused   ops(f64) fused   max ULP f32 (plain, contracted)   f64")
    for op in UNARY:
        counts = [*_operations(op, dtypes.float32), *_operations(op, dtypes.float64)]
        single = worst_single(op, 500_000)
        double = [worst_double(op, contract, 1000) for contract in (False, True)]
        print(op.value, counts, *(f"{e:.2f} at {x!r}" for e, x in single + double), sep="  ")
    print("pow", *_operations(Op.POW, dtypes.float32), *_operations(Op.POW, dtypes.float64))


if __name__ == "__main__":
    _table()
