"""OpenCL C's words for scalar values: types, literals, and one expression for each operation.

In registers float16 and bfloat16 are floats that already have the precision of what was loaded;
they are rounded when stored and where a program casts to them, so no device needs half arithmetic.
A bool is an int of 0 or 1 (stored as a uchar). An operation that C leaves undefined in some case,
or defines otherwise than the reference device does, is a call of a small function of `FUNCTIONS`.

Every text made here can be an operand as it stands: it is a name, a call, a cast or in parentheses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from minigrad.dtype import DType, dtypes
from minigrad.errors import CompileError, DTypeError
from minigrad.graph.operations import Op
from minigrad.schedule.expr import Expr, Leaf

_INTEGERS = {1: "char", 2: "short", 4: "int", 8: "long"}
NAMES = {dtypes.float16: "half", dtypes.bfloat16: "bfloat"}  # in memory they are ushort
_SUFFIXES = {"int": "", "uint": "u", "long": "L", "ulong": "UL"}


def register_type(dtype: DType) -> str:
    """The type of a value in registers."""
    if dtype.is_bool:
        return "bool"
    if dtype.is_float:
        return "double" if dtype.itemsize == 8 else "float"
    return ("u" if dtype.kind == "u" else "") + _INTEGERS[dtype.itemsize]


def memory_type(dtype: DType) -> str:
    """The type of an element in memory."""
    if dtype.is_bool:
        return "uchar"
    return "ushort" if dtype.is_float and dtype.itemsize == 2 else register_type(dtype)


def literal(value: int | float | bool, dtype: DType) -> str:
    """A constant as text; what it says is read back exactly."""
    if dtype.is_bool:
        return "true" if value else "false"
    kind = register_type(dtype)
    if dtype.is_float:
        return _float_literal(float(value), kind)
    suffix = _SUFFIXES.get(kind)
    if suffix is None:
        return f"({kind})({int(value)})" if value < 0 else f"({kind}){int(value)}"
    if value == dtype.minimum and value < 0:  # C has no negative literals: −2³¹ is −(2³¹)
        return f"(-{-int(value) - 1}{suffix} - 1)"
    return f"(-{-int(value)}{suffix})" if value < 0 else f"{int(value)}{suffix}"


def _float_literal(value: float, kind: str) -> str:
    if math.isnan(value):
        return "NAN" if kind == "float" else "(double)NAN"
    negative = math.copysign(1.0, value) < 0
    if math.isinf(value):
        text = "INFINITY" if kind == "float" else "(double)INFINITY"
    else:
        text = f"{abs(value):.9g}" if kind == "float" else repr(abs(value))
        text += "" if "." in text or "e" in text else ".0"
        text += "f" if kind == "float" else ""
    return f"(-{text})" if negative else text


def bare(text: str) -> str:
    """The text without a pair of parentheses around all of it."""
    if not text.startswith("("):
        return text
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if place == len(text) - 1 else text
    return text


# Functions that kernels call, by name; T is replaced by the type of the values, U by its unsigned
# counterpart, BITS by its width, and N by the lanes of a vector, or by nothing. (PoCL 6 loads a
# vector of halves as if it lay at a multiple of its length: here it does.)
FUNCTIONS = {
    "floor_div": """
T floor_div_T(T a, T b) {  // rounds down; by 0 it is 0, and the least number by -1 is itself
    if (b == 0) return 0;
    if (b == (T)-1 && b < 0) return (T)((U)0 - (U)a);
    T quotient = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}""",
    "floor_mod": """
T floor_mod_T(T a, T b) {  // has the sign of b; by 0 it is 0
    if (b == 0 || (b == (T)-1 && b < 0)) return 0;
    T rest = a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}""",
    "real_mod": """
T real_mod_T(T a, T b) {  // has the sign of b, also where it is zero
    T rest = fmod(a, b);
    if (rest == 0) return copysign((T)0, b);
    return (rest < 0) != (b < 0) ? rest + b : rest;
}""",
    "shift_left": """
T shift_left_T(T x, T count) {
    return (U)count < BITS ? (T)((U)x << count) : (T)0;
}""",
    "shift_right": """
T shift_right_T(T x, T count) {
    return (U)count < BITS ? (T)(x >> count) : (T)(x < 0 ? -1 : 0);
}""",
    "larger": """
T larger_T(T a, T b) {  // NaN wins
    return b > a || b != b ? b : a;
}""",
    "smaller": """
T smaller_T(T a, T b) {  // NaN wins
    return b < a || b != b ? b : a;
}""",
    "half_bits": """
ushortN half_bitsN(floatN x) {
    ushortN bits;
    vstore_halfN_rte(x, 0, (half *)&bits);
    return bits;
}""",
    "half_value": """
floatN half_valueN(ushortN bits) {
    return vload_halfN(0, (half *)&bits);
}""",
    "bfloat_bits": """
ushort bfloat_bits(float x) {  // to nearest, ties to even
    uint bits = as_uint(x);
    return x != x ? (bits | 0x400000u) >> 16 : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}""",
    "bfloat_value": """
float bfloat_value(ushort bits) {
    return as_float((uint)bits << 16);
}""",
    "round_to_odd": """
float round_to_odd(double x) {  // a second rounding, to half, is then as if it were the only one
    float near = (float)x;
    if ((double)near == x || x != x) return near;
    uint bits = as_uint(near);
    if (fabs((double)near) > fabs(x)) bits -= 1;
    return as_float(bits | 1u);
}""",
}


@dataclass
class Language:
    """The functions that a text uses so far, and whether the device has double precision.

    fp64: whether float64 is allowed; `device` names the device in the error where it is not.
    """

    fp64: bool
    device: str
    functions: dict[str, str] = field(default_factory=dict)
    doubles: bool = False

    def type_of(self, dtype: DType) -> str:
        """`register_type`, where the device has that type. Raises DTypeError for float64 if not."""
        if dtype is dtypes.float64:
            if not self.fp64:
                raise DTypeError(
                    f"float64 on {self.device}: the device has no double precision; cast to "
                    f"float32, or compute on the CPU device"
                )
            self.doubles = True
        return register_type(dtype)

    def function(self, name: str, kind: str = "", lanes: int = 1) -> str:
        """The name of one of FUNCTIONS for a C type or lanes; its text goes before the kernel."""
        number = str(lanes) if lanes > 1 else ""
        full = f"{name}_{kind}" if kind else name + number
        if full not in self.functions:
            text = FUNCTIONS[name].lstrip("\n")
            if name.startswith("half_"):
                text = text.replace("N", number)
            if kind:
                unsigned = kind if kind.startswith("u") else "u" + kind
                bits = {"char": "8", "short": "16", "int": "32", "long": "64"}
                text = text.replace("BITS", bits.get(unsigned[1:], ""))
                text = _replace_word(_replace_word(text, "T", kind), "U", unsigned)
            self.functions[full] = text
        return full

    def prelude(self) -> tuple[str, ...]:
        """What stands before the kernel."""
        doubles = ("#pragma OPENCL EXTENSION cl_khr_fp64 : enable",) if self.doubles else ()
        return (*doubles, *self.functions.values())

    # ---- memory ----

    def loaded(self, dtype: DType, pointer: str, place: str) -> str:
        """The value of an element."""
        element = f"{pointer}[{place}]"
        if dtype in NAMES:
            return f"{self.function(f'{NAMES[dtype]}_value')}({element})"
        self.type_of(dtype)
        return f"({element} != 0)" if dtype.is_bool else element

    def stored(self, dtype: DType, pointer: str, place: str, value: str) -> str:
        """The statement that writes an element."""
        value = bare(value)
        if dtype in NAMES:
            value = f"{self.function(f'{NAMES[dtype]}_bits')}({value})"
        self.type_of(dtype)
        return f"{pointer}[{place}] = {value};"

    # ---- operations ----

    def operation(self, e: Expr, args: list[str]) -> str:
        """The text of one elementwise operation on operands that have the texts `args`."""
        self.type_of(e.dtype)
        if e.op is Leaf.FMA:
            return f"fma({', '.join(args)})"
        source, word = e.args[0].dtype, word_of(e)
        if e.op is Op.WHERE:
            chosen = f"({args[0]} ? {args[1]} : {args[2]})"
            return self._narrow(chosen, e.dtype)
        if e.op is Op.CAST:
            return self.cast(args[0], source, e.dtype)
        if e.op is Op.BITCAST:
            return self._bitcast(args[0], source, e.dtype)
        if e.op is Op.NOT:
            return f"(!{args[0]})" if source.is_bool else self._narrow(f"(~{args[0]})", e.dtype)
        if e.op is Op.NEG and source.is_float:
            return f"(-{args[0]})"
        if source.is_int and e.dtype.is_int:
            return self._on_integers(e, word, args)
        return self._said(e, word, args)

    def _said(self, e: Expr, word: str, args: list[str]) -> str:
        """A word between its operands, or called with them."""
        if not word:
            name = e.args[0].dtype.name
            raise CompileError(f"OpenCL renderer: {e.op} of {name} is not a primitive operation")
        if not word.isidentifier():
            return f"({args[0]} {word} {args[1]})"
        name = self.function(word, register_type(e.dtype)) if word in FUNCTIONS else word
        return f"{name}({', '.join(bare(arg) for arg in args)})"

    def _narrow(self, text: str, dtype: DType) -> str:
        """C computes in int what is narrower: back to the type that it has."""
        narrow = dtype.is_int and dtype.itemsize < 4
        return f"({register_type(dtype)}){text}" if narrow else text

    def _on_integers(self, e: Expr, word: str, args: list[str]) -> str:
        kind = register_type(e.dtype)
        # signed overflow is undefined in C and wraps here, so sums and products are unsigned
        wide = "ulong" if e.dtype.itemsize == 8 else "uint"
        if e.op in (Op.ADD, Op.SUB, Op.MUL):
            left, right = args if kind == wide else (f"({wide}){arg}" for arg in args)
            result = f"({left} {word} {right})"
            return result if kind == wide else f"({kind}){result}"
        if e.op is Op.NEG:
            result = f"({literal(0, e.dtype)} - ({wide}){args[0]})"
            return f"({kind}){result}"
        if e.op in (Op.SHL, Op.SHR):
            return self._shift(e, word, args)
        said = self._said(e, word, args)
        return said if word.isidentifier() else self._narrow(said, e.dtype)

    def _shift(self, e: Expr, word: str, args: list[str]) -> str:
        """A shift; one by the width or more gives 0, or the sign of a signed number."""
        kind, count = register_type(e.dtype), e.args[1]
        if count.op is Op.CONST and 0 <= count.value < e.dtype.bits:
            if e.op is Op.SHR:
                return self._narrow(f"({args[0]} >> {count.value})", e.dtype)
            wide = "ulong" if e.dtype.itemsize == 8 else "uint"
            return f"({kind})(({wide}){args[0]} << {count.value})"
        return self._said(e, word, args)

    def cast(self, x: str, source: DType, to: DType) -> str:
        """A conversion: floats round to even, integers wrap, a float to an integer saturates."""
        kind = self.type_of(to)
        if to.is_bool:
            return f"({x} != 0)"
        if source.is_float and to.is_int:
            return self._saturated(x, source, to)
        if to is dtypes.float16 and source is dtypes.float64:
            x = f"{self.function('round_to_odd')}({bare(x)})"
        elif register_type(source) != kind:
            x = f"({kind}){x}"
        if source is not to and to.is_float and to.itemsize == 2:
            return self._rounded(x, to)
        return x

    def _rounded(self, x: str, to: DType) -> str:
        """A float with no more precision than float16 or bfloat16 have."""
        inner = f"{self.function(f'{NAMES[to]}_bits')}({bare(x)})"
        return f"{self.function(f'{NAMES[to]}_value')}({inner})"

    def _saturated(self, x: str, source: DType, to: DType) -> str:
        """The function that converts a float to an integer: NaN gives 0."""
        kind, real = register_type(to), register_type(source)
        name = f"{kind}_of_{real}"
        if name not in self.functions:
            float_dtype = dtypes.float64 if real == "double" else dtypes.float32
            low = literal(float(to.minimum), float_dtype)
            high = literal(float(int(to.maximum) + 1), float_dtype)
            self.functions[name] = (
                f"{kind} {name}({real} x) {{  // towards zero; saturates, NaN gives 0\n"
                f"    if (x != x) return 0;\n"
                f"    if (x <= {low}) return {literal(to.minimum, to)};\n"
                f"    return x >= {high} ? {literal(to.maximum, to)} : ({kind})x;\n"
                f"}}"
            )
        return f"{name}({bare(x)})"

    def _bitcast(self, x: str, source: DType, to: DType) -> str:
        if source in NAMES:
            x = f"{self.function(f'{NAMES[source]}_bits')}({bare(x)})"
        if to in NAMES:
            return f"{self.function(f'{NAMES[to]}_value')}(as_ushort({bare(x)}))"
        return f"as_{self.type_of(to)}({bare(x)})"


def word_of(e: Expr) -> str:
    """The operator or function that says an elementwise operation; "" where none does."""
    assert isinstance(e.op, Op)
    facts, source = e.op.facts, e.args[0].dtype
    known = source.kind in facts.kinds and not facts.formula
    return facts.opencl.of(source) or facts.symbol if known else ""


def _replace_word(text: str, word: str, by: str) -> str:
    """text with a one-letter type name replaced, alone or behind an underscore."""
    result, before = [], " "
    for place, letter in enumerate(text):
        after = text[place + 1] if place + 1 < len(text) else " "
        alone = not before.isalnum() and not (after.isalnum() or after == "_")
        result.append(by if letter == word and alone else letter)
        before = letter
    return "".join(result)
