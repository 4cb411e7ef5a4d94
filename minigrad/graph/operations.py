"""The operations: the whole instruction set, and every property of its elementwise part.

An elementwise operation is one entry of `Op`: its name, operand dtypes, meaning, cost, derivative,
and its name in each language. All code reads these properties here, so adding an operation means
adding one entry (and a formula in `graph/formulas/`, if no processor has an instruction for it).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from minigrad.dtype import DType
from minigrad.graph.formulas import exponential, gamma, power, threefry, trigonometry
from minigrad.graph.numeric import Numeric

# (gradient of the result, the result, operands …) → the gradient of one operand
Rule = Callable[..., Any]


class Words(NamedTuple):
    """The names of an operation in a language, if its operands are floats, ints or bools."""

    float: str = ""
    int: str = ""
    bool: str = ""

    def of(self, dtype: DType) -> str:
        """The name for operands of a dtype, "" if there is none."""
        return self.bool if dtype.is_bool else self.float if dtype.is_float else self.int


NO_WORDS = Words()


# --- operations on plain numbers, as every device computes them, not yet rounded or wrapped -------


def divide(x: float, y: float) -> float:
    """x / y, also by zero."""
    if y != 0:
        return x / y
    if x == 0 or x != x:
        return math.nan
    return math.copysign(math.inf, x) * math.copysign(1.0, y)


def floor_divide(x: int, y: int) -> int:
    """x // y, rounded down; 0 if y is 0."""
    return x // y if y else 0


def remainder(x: Any, y: Any) -> int | None:
    """x % y, with the sign of y; 0 if y is 0. None for floats, which devices compute."""
    if isinstance(x, float):
        return None
    return x % y if y else 0


def square_root(x: float) -> float:
    """√x, NaN below 0."""
    return math.sqrt(x) if x >= 0 else x if x != x else math.nan


def larger(x: Any, y: Any) -> Any:
    """The maximum; NaN wins, and of two zeros 0 over −0."""
    return x if x != x or x > y or (x == y and str(y)[0] == "-") else y


def smaller(x: Any, y: Any) -> Any:
    """The minimum; NaN wins, and of two zeros −0 over 0."""
    return x if x != x or x < y or (x == y and str(x)[0] == "-") else y


def whole(function: Callable[[float], int]) -> Callable[[float], float]:
    """floor, ceil … as floats: the sign of zero stays, and so do infinities and NaN."""
    return lambda x: math.copysign(float(function(x)), x) if math.isfinite(x) else x


def complement(x: int) -> int:
    """Logical not of a bool, bitwise not of an int."""
    return not x if isinstance(x, bool) else ~x


def shift_left(x: int, count: int) -> int:
    """0 if the count is negative; a count of the width or more leaves nothing after wrapping."""
    return x << count if 0 <= count < 64 else 0


def shift_right(x: int, count: int) -> int:
    """0 or the sign if the count is negative or reaches the width."""
    return x >> min(count, 64) if count >= 0 else -int(x < 0)


# --- the facts of an operation --------------------------------------------------------------------


@dataclass(frozen=True)
class Elementwise:
    """The facts of an elementwise operation.

    arity: the number of operands. kinds: the `DType.kind`s that they may have; all operands (except
    the condition of WHERE) have one dtype, and so has the result unless `compares`, which gives
    bools.

    scalar: the operation on Python numbers, to fold constants; devices compute what it leaves out.
    numpy: its name there; without one, the reference computes the formula, in float64.

    neutral: the second operand that changes nothing, a number or the name of one of a dtype.

    gradient: a `Rule` for each operand, None where nothing flows; operations without rules pass
    nothing on. flat: constant almost everywhere, so that gradients are zeros.

    cost: of one evaluation, in vector instructions, approximately.

    symbol: between two operands, in Python and C. llvm: an instruction, a comparison's condition,
    or an intrinsic of one float. opencl: an operator or a function, if `symbol` is not it.
    Operations of several instructions are in `render/vector_math.py`, `llvm_values.py`.
    formula: the operation in terms of others, on float32, float64 or uint32, if languages have
    none.
    """

    arity: int
    kinds: str = "fiub"
    compares: bool = False
    scalar: Callable[..., Any] | None = None
    numpy: str = ""
    neutral: float | str | None = None
    gradient: tuple[Rule | None, ...] = ()
    flat: bool = False
    cost: int = 1
    symbol: str = ""
    llvm: Words = NO_WORDS
    opencl: Words = NO_WORDS
    formula: Callable[..., Numeric] | None = None

    def fold(self, values: Sequence[Any]) -> int | float | bool | None:
        """The result for constants of the operands' dtypes, not yet rounded or wrapped.

        It is what the reference computes (a test compares them): in float64, and rounded once by
        `make`, which for narrower floats equals rounding directly. None if it is left to the
        device. A formula is right to about one unit in the last place, and so is its scalar
        function; if that raises, or a number is not finite, nothing is folded.
        """
        if self.scalar is None or (self.formula and not all(map(math.isfinite, values))):
            return None
        try:
            value: int | float | bool | None = self.scalar(*values)
        except (ValueError, OverflowError):
            return None
        return value


NO_FACTS = Elementwise(0)  # of operations that are not elementwise
# What operands must be, in words, by kinds.
TAKEN = {
    "f": "a float dtype", "u": "an unsigned integer dtype", "iu": "an integer dtype",
    "iub": "bool or an integer dtype", "fiu": "a number dtype; for bool use ^ or ~, or cast it",
}  # fmt: skip


def _function(
    formula: Callable[..., Numeric], scalar: Callable[[float], float], gradient: Rule, cost: int,
    numpy: str = "",
) -> Elementwise:
    """A function of one float for which languages have no instruction."""
    return Elementwise(
        1, "f", scalar=scalar, numpy=numpy, gradient=(gradient,), cost=cost, formula=formula
    )


def _left_to_devices(*operands: Any) -> Any:
    """The scalar function of operations that are never folded."""


def _word_of_a_hash(number: int) -> Elementwise:
    return Elementwise(
        4, "u", scalar=_left_to_devices, cost=110,
        formula=lambda *given: threefry.words(*given)[number],
    )  # fmt: skip


def _rounding(scalar: Callable[[float], int], numpy: str, llvm: str, opencl: str) -> Elementwise:
    return Elementwise(
        1, "f", scalar=whole(scalar), numpy=numpy, flat=True,
        llvm=Words(llvm), opencl=Words(opencl),
    )  # fmt: skip


def _comparison(
    scalar: Callable[..., bool], numpy: str, symbol: str, of_floats: str, of_ints: str
) -> Elementwise:
    """LLVM's words are conditions; lt and le of integers get a sign in front."""
    words = Words(of_floats, of_ints, of_ints)
    return Elementwise(2, compares=True, scalar=scalar, numpy=numpy, symbol=symbol, llvm=words)


def _bitwise(
    scalar: Callable[..., Any], numpy: str, symbol: str, llvm: str, neutral: int
) -> Elementwise:
    words = Words("", llvm, llvm)
    return Elementwise(
        2, "iub", scalar=scalar, numpy=numpy, symbol=symbol, llvm=words, neutral=neutral
    )


def _extremum(
    scalar: Callable[..., Any], numpy: str, loses: Rule, opencl: Words, llvm: str, neutral: str
) -> Elementwise:
    """The gradient goes to the chosen operand, half of it to each of two equal ones.

    loses(x, y): where y is chosen.
    """

    def share(g: Any, mine: Any, other: Any) -> Any:
        half = mine.equals(other).where(g * 0.5, g)
        return loses(mine, other).where(0.0, half)

    return Elementwise(
        2, scalar=scalar, numpy=numpy, llvm=Words("", "", llvm), opencl=opencl, neutral=neutral,
        gradient=(lambda g, _, x, y: share(g, x, y), lambda g, _, x, y: share(g, y, x)),
    )  # fmt: skip


def _same(g: Numeric, result: Numeric, *operands: Numeric) -> Numeric:
    return g


class Members(type):
    """The class of an Enum once it is complete, so that its members are found as attributes are.

    Python 3.11's own has a `__getattr__`, with which that takes as long as a function call.
    """

    def __iter__(cls) -> Iterator[Any]:
        members: dict[str, Any] = cls._member_map_  # type: ignore[attr-defined]
        return iter(members.values())

    def __setattr__(cls, name: str, value: object) -> None:
        raise AttributeError(f"cannot change {cls.__name__}.{name}: all of minigrad shares it")


class Op(Enum):
    """What a node computes. `arg` is in parentheses; elementwise operations have their facts."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and each node hashes its op
    _value_: str
    facts: Elementwise

    def __new__(cls, name: str, facts: Elementwise = NO_FACTS) -> Op:
        """A member: its value is the name."""
        op = object.__new__(cls)
        op._value_, op.facts = name, facts
        return op

    def __setattr__(self, name: str, value: object) -> None:
        if "_sort_order_" in self.__dict__:  # the last attribute that Enum sets
            raise AttributeError(f"cannot change {self}: all nodes of this operation share it")
        object.__setattr__(self, name, value)

    # sources
    CONST = "const"  # every element is arg
    BUFFER = "buffer"  # memory (a device Buffer; an int slot in a canonical graph)
    IOTA = "iota"  # 0, 1, 2 … along one axis of length shape[0]
    VARIABLE = "variable"  # the value of a symbolic integer (an Affine), a 0-d int32

    # elementwise, one source; rules are given g, the gradient of y, which is the operation of x
    NEG = "neg", Elementwise(
        1, "fiu", scalar=operator.neg, numpy="negative", gradient=(lambda g, y, x: -g,)
    )
    NOT = "not", Elementwise(  # logical for bool, bitwise for integers
        1, "iub", scalar=complement, numpy="invert"
    )
    SQRT = "sqrt", Elementwise(  # its derivative is infinite at 0
        1, "f", scalar=square_root, numpy="sqrt", cost=12,
        gradient=(lambda g, y, x: g / (y * 2.0),), llvm=Words("sqrt"), opencl=Words("sqrt"),
    )
    EXP = "exp", _function(exponential.exp, math.exp, lambda g, y, x: g * y, 17, numpy="exp")
    EXP2 = "exp2", _function(
        exponential.exp2, lambda x: math.pow(2.0, x),
        lambda g, y, x: g * (y * math.log(2.0)), 16, numpy="exp2",
    )
    LOG = "log", _function(exponential.log, math.log, lambda g, y, x: g / x, 28, numpy="log")
    LOG2 = "log2", _function(
        exponential.log2, math.log2, lambda g, y, x: g / (x * math.log(2.0)), 27, numpy="log2"
    )
    SIN = "sin", _function(
        trigonometry.sine, math.sin, lambda g, y, x: g * x.operation("cos"), 44, numpy="sin"
    )
    COS = "cos", _function(
        trigonometry.cosine, math.cos, lambda g, y, x: -(g * x.operation("sin")), 44, numpy="cos"
    )
    ASIN = "asin", _function(
        trigonometry.asin, math.asin,
        lambda g, y, x: trigonometry.over_cosine(g, x), 60, numpy="arcsin",
    )
    ACOS = "acos", _function(
        trigonometry.acos, math.acos,
        lambda g, y, x: -trigonometry.over_cosine(g, x), 60, numpy="arccos",
    )
    ATAN = "atan", _function(
        trigonometry.atan, math.atan, lambda g, y, x: g / (x * x + 1.0), 36, numpy="arctan"
    )
    TANH = "tanh", _function(
        exponential.tanh, math.tanh, lambda g, y, x: g * (1.0 - y * y), 27, numpy="tanh"
    )
    ERF = "erf", _function(
        exponential.erf, math.erf,
        lambda g, y, x: g * ((-(x * x)).operation("exp") * (2.0 / math.sqrt(math.pi))), 30,
    )
    LGAMMA = "lgamma", _function(  # ln |Γ(x)|
        gamma.lgamma, _left_to_devices, lambda g, y, x: g * x.operation("digamma"), 160
    )
    DIGAMMA = "digamma", _function(  # its derivative
        gamma.digamma, _left_to_devices, lambda g, y, x: g * gamma.trigamma(x), 130
    )
    FLOOR = "floor", _rounding(math.floor, "floor", "floor", "floor")
    CEIL = "ceil", _rounding(math.ceil, "ceil", "ceil", "ceil")
    TRUNC = "trunc", _rounding(math.trunc, "trunc", "trunc", "trunc")
    ROUND = "round", _rounding(round, "rint", "roundeven", "rint")  # half to even
    CAST = "cast", Elementwise(  # (dtype) float → int truncates and saturates, NaN → 0
        1, gradient=(lambda g, y, x: g.cast(x.dtype),)
    )
    BITCAST = "bitcast", Elementwise(1)  # (dtype) of equal size

    # elementwise, two sources; z is the operation of x and y
    ADD = "add", Elementwise(
        2, scalar=operator.add, numpy="add", gradient=(_same, _same), symbol="+", neutral=-0.0,
        llvm=Words("fadd", "add", "or"), opencl=Words(bool="|"),
    )
    SUB = "sub", Elementwise(
        2, "fiu", scalar=operator.sub, numpy="subtract", gradient=(_same, lambda g, z, x, y: -g),
        symbol="-", llvm=Words("fsub", "sub"), neutral=0,
    )
    MUL = "mul", Elementwise(
        2, scalar=operator.mul, numpy="multiply", symbol="*", neutral=1,
        gradient=(lambda g, z, x, y: g * y, lambda g, z, x, y: g * x),
        llvm=Words("fmul", "mul", "and"), opencl=Words(bool="&"),
    )
    DIV = "div", Elementwise(  # floats only
        2, "f", scalar=divide, numpy="divide", cost=8, symbol="/",
        gradient=(lambda g, z, x, y: g / y, lambda g, z, x, y: -(g * (z / y))),
        llvm=Words("fdiv"),
    )
    IDIV = "idiv", Elementwise(  # integers, floor; x // 0 = 0
        2, "iu", scalar=floor_divide, numpy="floor_divide", cost=12, symbol="//",
        neutral=1,
    )
    MOD = "mod", Elementwise(  # sign of the divisor; integers: x % 0 = 0
        2, "fiu", scalar=remainder, numpy="remainder", cost=12, symbol="%",
        gradient=(_same, lambda g, z, x, y: -(g * (x / y).operation("floor"))),
    )
    POW = "pow", Elementwise(  # floats only
        2, "f", scalar=math.pow, numpy="power", cost=76,
        gradient=(power.by_base, power.by_exponent), formula=power.power,
    )
    MAXIMUM = "maximum", _extremum(  # NaN wins
        larger, "maximum", lambda x, y: x.less(y), Words("larger", "max", "|"), "or",
        "minimum",
    )
    MINIMUM = "minimum", _extremum(  # NaN wins
        smaller, "minimum", lambda x, y: y.less(x), Words("smaller", "min", "&"), "and",
        "maximum",
    )
    LT = "lt", _comparison(operator.lt, "less", "<", "olt", "lt")
    LE = "le", _comparison(operator.le, "less_equal", "<=", "ole", "le")
    EQ = "eq", _comparison(operator.eq, "equal", "==", "oeq", "eq")
    NE = "ne", _comparison(operator.ne, "not_equal", "!=", "une", "ne")
    AND = "and", _bitwise(operator.and_, "bitwise_and", "&", "and", -1)
    OR = "or", _bitwise(operator.or_, "bitwise_or", "|", "or", 0)
    XOR = "xor", _bitwise(operator.xor, "bitwise_xor", "^", "xor", 0)
    SHL = "shl", Elementwise(  # integers; a shift by the width or more gives 0
        2, "iu", scalar=shift_left, numpy="left_shift", symbol="<<", neutral=0,
    )
    SHR = "shr", Elementwise(  # signed: arithmetic; by the width or more it gives 0 or the sign
        2, "iu", scalar=shift_right, numpy="right_shift", symbol=">>", neutral=0,
    )
    # elementwise, three sources
    WHERE = "where", Elementwise(  # bool, then, else
        3, scalar=lambda condition, x, y: x if condition else y, numpy="where",
        gradient=(
            None,
            lambda g, z, condition, x, y: condition.where(g, 0.0),
            lambda g, z, condition, x, y: condition.where(0.0, g),
        ),
    )

    # elementwise, four sources: random words of two of a key and two of a counter, all uint32
    THREEFRY_LOW = "threefry_low", _word_of_a_hash(0)
    THREEFRY_HIGH = "threefry_high", _word_of_a_hash(1)

    # reductions over arg = axes; the reduced dimensions stay as 1
    SUM = "sum"
    MAX = "max"  # NaN wins
    PROD = "prod"

    # running reductions along arg = axis: element i combines the elements 0 … i
    CUMSUM = "cumsum"
    CUMPROD = "cumprod"
    CUMMAX = "cummax"  # NaN wins

    # movement
    RESHAPE = "reshape"  # (shape)
    PERMUTE = "permute"  # (order)
    EXPAND = "expand"  # (shape) from dimensions of 1
    PAD = "pad"  # ((before, after), …) with zeros
    SHRINK = "shrink"  # ((start, stop), …)
    FLIP = "flip"  # (axes)
    WINDOW = "window"  # ((axis, size, step, dilation), …) the axis counts windows, new last ones

    # joining
    CAT = "cat"  # (axis) its sources one after the other along an axis

    # addressed by data
    GATHER = "gather"  # (axis) out[…i…] = x[…index[…i…]…]; an index out of range reads 0
    SCATTER_ADD = "scatter_add"  # (axis) base, index, x; an index out of range writes nothing
    SCATTER = "scatter"  # the same, but x replaces the old value; the last one wins
    SCATTER_MAX = "scatter_max"  # the same with the larger one; NaN wins
    SCATTER_PROD = "scatter_prod"  # the same with the product
    SORT = "sort"  # (axis) the stable permutation (int32) that sorts unsigned keys, ascending
    DISTRIBUTE = "distribute"  # starts, bin, x: x put bin by bin (see `build.distribute`)

    # engine
    CONTIGUOUS = "contiguous"  # identity, stored in a buffer
    ASSIGN = "assign"  # (first row, if not all are written) target BUFFER, value: it, stored there
    COPY = "copy"  # identity on another device (arg), or stored there and cut: graph/cuts.py
    COLLECTIVE = "collective"  # (Collective) an exchange with other ranks: graph/collective.py
    CHECK = "check"  # (Check) identity; a program raises if an element is not allowed: bounds.py
    MARK = "mark"  # (Mark) identity that sets the layout on a mesh: graph/sharding.py
    LOOP = "loop"  # (Loop) steps that run one after the other; its values are its RESULTs: loop.py
    RESULT = "result"  # (kind, number) a value of a LOOP
    CUSTOM = "custom"  # (rule) the first source; `rule` gives the gradients of the others


Op.__class__ = Members  # type: ignore[assignment]
NAMED = {op.value: op for op in Op}
UNARY, BINARY = (frozenset(op for op in Op if op.facts.arity == arity) for arity in (1, 2))
ELEMENTWISE = frozenset(op for op in Op if op.facts.arity)
COMPARISONS = frozenset(op for op in Op if op.facts.compares)
REDUCTIONS = frozenset({Op.SUM, Op.MAX, Op.PROD})
SCANS = {Op.CUMSUM: Op.SUM, Op.CUMPROD: Op.PROD, Op.CUMMAX: Op.MAX}  # → their reductions
SCATTERS: dict[Op, Op | None] = {  # None: new values replace old ones
    Op.SCATTER: None, Op.SCATTER_ADD: Op.SUM, Op.SCATTER_MAX: Op.MAX, Op.SCATTER_PROD: Op.PROD,
}  # fmt: skip
MOVEMENT = frozenset({Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.PAD, Op.SHRINK, Op.FLIP, Op.WINDOW})
# The binary operations that make up a reduction; the last one for bools.
STEPS = {Op.SUM: (Op.ADD, Op.OR), Op.PROD: (Op.MUL, Op.AND), Op.MAX: (Op.MAXIMUM,)}
# The reduction that repeats a binary operation.
REPEATED = {step: reduction for reduction, steps in STEPS.items() for step in steps}
