"""OpenCL C's words for values, scalars or vectors: types, literals, one text for each operation.

In registers float16 and bfloat16 are floats that already have the precision of what was loaded;
they are rounded when stored and where a program casts to them, so no device needs half arithmetic.
A bool is an int of 0 or 1 (stored as a uchar), a vector of them one of int masks, 0 or −1. If C has
no operator for an operation, it is a call of a small function of `FUNCTIONS`.

Every text made here can be an operand as it is: a name, a call, a cast, or in parentheses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from string import Template

from minigrad.dtype import DType, dtypes
from minigrad.errors import CompileError, DTypeError
from minigrad.graph.operations import COMPARISONS, Op
from minigrad.schedule.expr import Leaf

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
    """A constant as text, which is read back exactly."""
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


WIDTHS = (2, 4, 8)  # of at most 32 bytes: PoCL 3 loses kernels that call functions on longer ones

# Functions that kernels call, by name; $T is the type of the values, $N the lanes of a vector, or
# nothing. (PoCL 6 assumes that a loaded vector of halves is aligned to its length: here it is.)
FUNCTIONS = {
    "larger": """
$T larger_$T($T a, $T b) {  // NaN wins
    return ((b > a) | (b != b)) ? b : a;
}""",
    "smaller": """
$T smaller_$T($T a, $T b) {  // NaN wins
    return ((b < a) | (b != b)) ? b : a;
}""",
    "half_bits": """
ushort$N half_bits$N(float$N x) {  // bytes: compilers assume that halves never alias ushorts
    union { ushort$N bits; uchar bytes[sizeof(ushort$N)]; } made;
    vstore_half${N}_rte(x, 0, (half *)made.bytes);
    return made.bits;
}""",
    "half_value": """
float$N half_value$N(ushort$N bits) {
    union { ushort$N bits; uchar bytes[sizeof(ushort$N)]; } given = {bits};
    return vload_half$N(0, (half *)given.bytes);
}""",
    "bfloat_bits": """
ushort$N bfloat_bits$N(float$N x) {  // to nearest, ties to even
    uint$N bits = as_uint$N(x);
    uint$N rounded = select(bits + 0x7fffu + (bits >> 16 & 1u), bits | 0x400000u, x != x);
    return convert_ushort$N(rounded >> 16);
}""",
}


@dataclass
class Language:
    """The functions that a text uses so far, and whether it uses double precision.

    fp64: whether float64 is allowed; device: its name, for the error if it is not.
    """

    fp64: bool
    device: str
    functions: dict[str, str] = field(default_factory=dict)
    doubles: bool = False

    def type_of(self, dtype: DType) -> str:
        """`register_type`; raises DTypeError for float64 if the device does not have it."""
        if dtype is dtypes.float64:
            if not self.fp64:
                raise DTypeError(
                    f"{self.device} does not support float64; cast to float32, or compute on the "
                    "CPU device"
                )
            self.doubles = True
        return register_type(dtype)

    def function(self, name: str, kind: str = "", lanes: str = "") -> str:
        """The name of one of FUNCTIONS for a C type or lanes; its text is added to the prelude."""
        full = f"{name}_{kind}" if kind else name + lanes
        if full not in self.functions:
            text = Template(FUNCTIONS[name].lstrip("\n"))
            self.functions[full] = text.substitute(T=kind, N=lanes)
        return full

    def prelude(self) -> tuple[str, ...]:
        """The text before the kernel."""
        doubles = ("#pragma OPENCL EXTENSION cl_khr_fp64 : enable",) if self.doubles else ()
        return (*doubles, *self.functions.values())


def word_of(op: Op | Leaf, source: DType) -> str:
    """The operator or function for an elementwise operation, or ""."""
    if isinstance(op, Leaf):
        words = {
            Leaf.QUOTIENT: "/", Leaf.REMAINDER: "fmod" if source.is_float else "%",
            Leaf.PLUS: "+", Leaf.TIMES: "*", Leaf.PART: "/", Leaf.REST: "%", Leaf.FMA: "fma",
        }  # fmt: skip
        return words.get(op, "")
    facts = op.facts
    known = source.kind in facts.kinds and not facts.formula
    return facts.opencl.of(source) or facts.symbol if known else ""


class Words:
    """Texts of operations on values of `width` lanes (1: scalars).

    Operands are names or texts in parentheses.
    """

    def __init__(self, language: Language, width: int = 1) -> None:
        self.language, self.width = language, width
        self.number = str(width) if width > 1 else ""

    def type_of(self, dtype: DType) -> str:
        """The type of a value in registers."""
        if dtype.is_bool and self.number:
            return f"int{self.number}"
        return self.language.type_of(dtype) + self.number

    # ---- between scalars and vectors ----

    def gathered(self, texts: list[str], dtype: DType) -> str:
        """A vector of scalars, given one text for each lane, or one for all."""
        if dtype.is_bool:
            texts = [f"{text} ? -1 : 0" for text in texts]
        return f"({self.type_of(dtype)})({', '.join(bare(text) for text in texts)})"

    def lane(self, name: str, dtype: DType, number: int) -> str:
        """One lane of a named vector, as a scalar."""
        text = f"{name}.s{number}"
        return f"({text} != 0)" if dtype.is_bool else text

    # ---- memory ----

    def loaded(self, dtype: DType, pointer: str, place: str) -> str:
        """The neighbouring elements from `place` on."""
        number = self.number
        text = f"vload{number}(0, {pointer} + {place})" if number else f"{pointer}[{bare(place)}]"
        return self._of_memory(text, dtype)

    def _of_memory(self, text: str, dtype: DType) -> str:
        """A value, given its bits in memory."""
        if dtype is dtypes.float16:
            return f"{self.language.function('half_value', lanes=self.number)}({text})"
        if dtype is dtypes.bfloat16:
            return f"as_float{self.number}({self._converted(text, 'uint')} << 16)"
        self.language.type_of(dtype)
        return self._differs(text, dtypes.uint8) if dtype.is_bool else text

    def stored(self, dtype: DType, pointer: str, place: str, value: str) -> str:
        """The statement that stores neighbouring elements."""
        self.language.type_of(dtype)
        value = bare(self._bits(value, dtype))
        if self.number:
            return f"vstore{self.number}({value}, 0, {pointer} + {place});"
        return f"{pointer}[{bare(place)}] = {value};"

    def _bits(self, x: str, dtype: DType) -> str:
        """A value's bits in memory."""
        if dtype in NAMES:
            name = self.language.function(f"{NAMES[dtype]}_bits", lanes=self.number)
            return f"{name}({bare(x)})"
        return self._converted(f"({x} & 1)", "uchar") if dtype.is_bool and self.number else x

    # ---- operations ----

    def operation(self, op: Op | Leaf, source: DType, dtype: DType, args: list[str]) -> str:
        """An elementwise operation on operands of dtype `source`, with a result of `dtype`."""
        kind = self.type_of(dtype)
        word = word_of(op, source)
        if op is Op.WHERE:
            return self._chosen(args, dtype)
        if op in (Op.CAST, Leaf.WHOLE):
            return self.cast(args[0], source, dtype)
        if op is Op.BITCAST:
            return self._bitcast(args[0], source, dtype)
        if op is Op.NOT:
            sign = "!" if source.is_bool and not self.number else "~"
            return self._narrow(f"({sign}{args[0]})", dtype)
        if op in COMPARISONS:
            # true is −1 in vectors, less than false
            left, right = args[::-1] if source.is_bool and self.number else args
            return self._truth(f"({left} {word} {right})", source)
        if source.is_int and op in (Op.ADD, Op.SUB, Op.MUL, Op.NEG, Op.SHL):
            return self._wrapped(word or "-", dtype, args)
        if op is Op.NEG:
            return f"(-{args[0]})"
        if op is Op.SHR:
            word = ">>"
        if not word:
            raise CompileError(f"OpenCL renderer: {op} of {source.name} is not primitive")
        if not word.isidentifier():
            return self._narrow(f"({args[0]} {word} {args[1]})", dtype)
        name = self.language.function(word, kind) if word in FUNCTIONS else word
        return f"{name}({', '.join(bare(arg) for arg in args)})"

    def _as(self, kind: str, text: str) -> str:
        """An integer read as signed, or as unsigned."""
        return f"as_{kind}{self.number}({bare(text)})" if self.number else f"({kind}){text}"

    def _wrapped(self, word: str, dtype: DType, args: list[str]) -> str:
        """Signed overflow is undefined in C but wraps here: compute unsigned."""
        kind = register_type(dtype)
        wide = "u" + kind.removeprefix("u")
        if not self.number:  # C computes scalars of less than 32 bits in int
            wide = "ulong" if dtype.itemsize == 8 else "uint"
        if kind != wide:
            args = [arg if arg.isdecimal() else self._as(wide, arg) for arg in args]
        if len(args) == 1:
            args.insert(0, f"({wide}{self.number})(0)")
        result = f"({args[0]} {word} {args[1]})"
        return result if kind == wide else self._as(kind, result)

    def _narrow(self, text: str, dtype: DType) -> str:
        """Convert back to a narrow type, which C computes in int."""
        narrow = dtype.is_int and dtype.itemsize < 4 and not self.number
        return f"({register_type(dtype)}){text}" if narrow else text

    def _converted(self, text: str, kind: str) -> str:
        return f"convert_{kind}{self.number}({bare(text)})" if self.number else f"({kind}){text}"

    def _truth(self, text: str, dtype: DType) -> str:
        """A comparison's result as a bool; for vectors it is as wide as the operands."""
        same = dtype.is_bool or register_type(dtype) in ("int", "uint", "float")
        return text if same or not self.number else self._converted(text, "int")

    def _differs(self, text: str, dtype: DType) -> str:
        """Whether numbers are not 0."""
        zero = f"({register_type(dtype)}{self.number})(0)" if self.number else "0"
        return self._truth(f"({text} != {zero})", dtype)

    def _chosen(self, args: list[str], dtype: DType) -> str:
        """One of two operands."""
        test, then, other = args
        if not self.number:
            return self._narrow(f"({test} ? {then} : {other})", dtype)
        wide = {"double": "long"}.get(kind := register_type(dtype), kind.removeprefix("u"))
        if wide in ("long", "short", "char"):
            test = self._converted(test, wide)
        return f"select({bare(other)}, {bare(then)}, {bare(test)})"

    def cast(self, x: str, source: DType, to: DType) -> str:
        """A conversion: floats round to even, integers wrap; float → int must be in range."""
        kind, before = self.language.type_of(to), register_type(source)
        if to.is_bool:
            return x if source.is_bool else self._differs(x, source)
        if source.is_bool and self.number:
            return self._converted(f"({x} & 1)", kind)
        if before != kind:
            x = self._converted(x, kind)
        return self._of_memory(self._bits(x, to), to) if to in NAMES else x

    def _bitcast(self, x: str, source: DType, to: DType) -> str:
        x, kind = self._bits(x, source), memory_type(to) + self.number
        return self._of_memory(f"as_{kind}({bare(x)})", to)
