"""Values of LLVM IR and the instructions for each scalar operation, one function an operation.

In registers float16 and bfloat16 are floats that already have the precision of what was loaded;
they are rounded when stored and where a program casts to them. A bool is an i1, in memory an i8.
Pairs of bfloat16 are words of 32 bits, for processors that add their products (AVX512-BF16). These
instructions take 16 lanes at a time, and treat subnormal numbers as zero.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import count, zip_longest
from typing import NamedTuple

from minigrad.dtype import DType, dtypes
from minigrad.errors import CompileError
from minigrad.graph.operations import STEPS, Op
from minigrad.schedule.expr import Leaf


class Value(NamedTuple):
    """An operand: its text without type, its dtype, and its number of lanes (1: a scalar)."""

    text: str
    dtype: DType
    lanes: int

    @property
    def type(self) -> str:
        """Its LLVM type."""
        return vector_type(register_type(self.dtype), self.lanes)

    @property
    def typed(self) -> str:
        """Type and text, as instructions take them."""
        return f"{self.type} {self.text}"


@cache
def register_type(dtype: DType) -> str:
    """The LLVM type of a value in registers."""
    if dtype.is_bool:
        return "i1"
    if dtype.is_float:
        return "double" if dtype.itemsize == 8 else "float"
    return f"i{dtype.bits}"


@cache
def memory_type(dtype: DType) -> str:
    """The LLVM type of an element in memory."""
    if dtype.is_bool:
        return "i8"
    if dtype.name == "float16":
        return "half"
    if dtype.name == "bfloat16":
        return "i16"
    return register_type(dtype)


@cache
def vector_type(scalar: str, lanes: int) -> str:
    """<lanes x scalar>, or the scalar."""
    return scalar if lanes == 1 else f"<{lanes} x {scalar}>"


def suffix(type_name: str) -> str:
    """The mangled name of a type in an intrinsic's name: <16 x float> is v16f32."""
    if type_name.startswith("<"):
        lanes, _, scalar = type_name[1:-1].split(" ")
        return f"v{lanes}{suffix(scalar)}"
    return {"float": "f32", "double": "f64", "half": "f16"}.get(type_name, type_name)


def literal(value: int | float | bool, scalar: str, lanes: int = 1) -> str:
    """A constant as text."""
    if scalar in ("float", "double"):
        number = float(value)
        if scalar == "float" and number == number and abs(number) != float("inf"):
            (number,) = struct.unpack("<f", struct.pack("<f", number))
        text = "0x" + struct.pack(">d", number).hex().upper()
    elif scalar == "i1":
        text = "true" if value else "false"
    else:
        text = str(int(value))
    return text if lanes == 1 else f"splat ({scalar} {text})"


@cache
def numbers(found: tuple[int | str, ...]) -> str:
    """A constant vector of i32, with its type. A kernel's shuffles have few different ones."""
    return f"<{len(found)} x i32> <{', '.join(map('i32 {}'.format, found))}>"


def flags(found: Iterable[bool]) -> str:
    """A constant mask."""
    return f"<{', '.join(f'i1 {str(bool(one)).lower()}' for one in found)}>"


def known_flags(mask: str | None, lanes: int) -> list[bool] | None:
    """Which lanes of a mask are active; all without a mask, and None if it is computed."""
    if mask is None:
        return [True] * lanes
    if not mask.startswith("<i1"):
        return None
    return [part.endswith("true") for part in mask.strip("<>").split(", ")]


def constant(value: int | float | bool, dtype: DType, lanes: int = 1) -> Value:
    """A constant value."""
    return Value(literal(value, register_type(dtype), lanes), dtype, lanes)


class Builder:
    """Appends instructions to lines, which a derived class may switch, and hands out names."""

    lines: list[str]

    def __init__(self) -> None:
        self.declarations: set[str] = set()
        self.fresh: Callable[[], str] = map("%v{}".format, count(1)).__next__

    def line(self, text: str) -> str:
        """Append an instruction with a result; returns the result's name."""
        name = self.fresh()
        self.lines.append(f"  {name} = {text}")
        return name

    def call(self, intrinsic: str, result: str, arguments: list[str], flags: str = "") -> str:
        """Call an intrinsic; arguments are "type text"."""
        types = ", ".join(_type_of(argument) for argument in arguments)
        self.declarations.add(f"declare {result} @{intrinsic}({types})")
        return self.line(f"call {flags}{result} @{intrinsic}({', '.join(arguments)})")

    def do(self, intrinsic: str, *arguments: str) -> None:
        """Call an intrinsic that has no result."""
        types = ", ".join(_type_of(argument) for argument in arguments)
        self.declarations.add(f"declare void @{intrinsic}({types})")
        self.lines.append(f"  call void @{intrinsic}({', '.join(arguments)})")

    def shuffle(self, kind: str, x: str, order: Iterable[int | str], y: str = "poison") -> str:
        """Elements of two vectors of a type, by number; the second's numbers follow the first's."""
        return self.line(f"shufflevector {kind} {x}, {kind} {y}, {numbers(tuple(order))}")


def _type_of(argument: str) -> str:
    if argument.startswith("<"):
        return argument[: argument.index(">") + 1]
    return argument.split(" ", 1)[0]


def operation(b: Builder, op: Op | Leaf, args: list[Value], dtype: DType) -> Value:
    """The instructions of one elementwise operation; all args have equal lanes."""
    if isinstance(op, Leaf) or op in (Op.SHL, Op.SHR):
        return _as_the_processor(b, op, args, dtype)
    x, facts = args[0], op.facts
    source = x.dtype
    word = facts.llvm.of(source)
    if facts.compares:
        text = _compare(b, word, *args)
    elif word and len(args) == 2:
        # A product may be contracted into a sum, but not into a difference: x·y − max(x·y) would be
        # above 0 if the maximum was rounded before.
        flag = " contract" if source.is_float and op is not Op.SUB else ""
        y = _divisor(b, args[1]) if word == "fdiv" else args[1].text
        text = b.line(f"{word}{flag} {x.typed}, {y}")
    elif word:
        text = b.call(f"llvm.{word}.{suffix(x.type)}", x.type, [x.typed])
    elif op is Op.WHERE:
        test, then, other = args
        text = b.line(f"select {test.typed}, {then.typed}, {other.typed}")
    elif op is Op.CAST:
        return cast(b, x, dtype)
    elif op is Op.BITCAST:
        return _bitcast(b, x, dtype)
    elif op in (Op.MAXIMUM, Op.MINIMUM):
        text = _extremum(b, op, *args)
    elif op is Op.NEG:
        zero = literal(0, register_type(source), x.lanes)
        text = b.line(f"fneg {x.typed}" if source.is_float else f"sub {x.type} {zero}, {x.text}")
    elif op is Op.NOT:
        ones = literal(True if source.is_bool else -1, register_type(source), x.lanes)
        text = b.line(f"xor {x.typed}, {ones}")
    else:
        raise CompileError(f"LLVM renderer: {op} of {source.name} is not a primitive operation")
    return Value(text, dtype, x.lanes)


_SIGNED: dict[Op | Leaf, str] = {
    Leaf.QUOTIENT: "sdiv", Leaf.REMAINDER: "srem", Op.SHL: "shl", Op.SHR: "ashr",
    Leaf.PLUS: "add", Leaf.TIMES: "mul", Leaf.PART: "udiv", Leaf.REST: "urem",
}  # fmt: skip
_UNSIGNED = {**_SIGNED, Leaf.QUOTIENT: "udiv", Leaf.REMAINDER: "urem", Op.SHR: "lshr"}


def _as_the_processor(b: Builder, op: Op | Leaf, args: list[Value], dtype: DType) -> Value:
    """Operations whose meaning is defined for some operands only: see vector_math.py."""
    x, signed = args[0], dtype.kind == "i"
    if op is Leaf.WHOLE:
        kind = vector_type(register_type(dtype), x.lanes)
        return Value(b.line(f"fpto{'s' if signed else 'u'}i {x.typed} to {kind}"), dtype, x.lanes)
    name = "frem" if dtype.is_float else (_SIGNED if signed else _UNSIGNED)[op]
    y = _divisor(b, args[1]) if name == "frem" else args[1].text
    return Value(b.line(f"{name} {x.typed}, {y}"), dtype, x.lanes)


def _divisor(b: Builder, y: Value) -> str:
    """A divisor of vectors; LLVM must not know which of its lanes are 0.

    (Its code generator takes 0 / 0 to be 0 if it knows both, as in lanes outside of a mask, and
    drops the select that puts a 0 there: LLVM 22, TargetLowering::SimplifyDemandedVectorElts.)
    """
    zero = literal(0, register_type(y.dtype), y.lanes)
    if y.lanes == 1 or not y.text.startswith("%") and y.text != zero:
        return y.text
    return fenced(b, y.type, y.text)


def fenced(b: Builder, kind: str, text: str) -> str:
    """The same vector, with its computation hidden from LLVM's code generator."""
    return b.call(f"llvm.arithmetic.fence.{suffix(kind)}", kind, [f"{kind} {text}"])


def _compare(b: Builder, word: str, left: Value, right: Value) -> str:
    if left.dtype.is_float:
        return b.line(f"fcmp {word} {left.typed}, {right.text}")
    sign = "" if word in ("eq", "ne") else "s" if left.dtype.kind == "i" else "u"
    return b.line(f"icmp {sign}{word} {left.typed}, {right.text}")


def _extremum(b: Builder, op: Op, old: Value, new: Value) -> str:
    """Maximum or minimum; a NaN on either side wins. Of zeros of different signs it is either.

    x86 tests whether the first operand is NaN, so that is the new one: nothing waits for the test.
    """
    name, flags = "max" if op is Op.MAXIMUM else "min", ""
    if new.dtype.is_float:
        name, flags = f"{name}imum", "nsz "
    else:
        name = new.dtype.kind.replace("i", "s") + name
    return b.call(f"llvm.{name}.{suffix(new.type)}", new.type, [new.typed, old.typed], flags)


def mask_type(value: Value) -> str:
    """The type of a mask for a value's lanes."""
    return vector_type("i1", value.lanes)


def cast(b: Builder, x: Value, to: DType) -> Value:
    """A conversion with the meaning of CAST, except from floats to integers."""
    source, lanes = x.dtype, x.lanes
    kind, signed = vector_type(register_type(to), lanes), source.kind == "i"
    if source is to:
        return x
    if to.is_bool:
        zero = literal(0, register_type(source), lanes)
        name = "fcmp une" if source.is_float else "icmp ne"
        return Value(b.line(f"{name} {x.typed}, {zero}"), to, lanes)
    if to.is_float and source.is_float:
        name = "fpext" if to.itemsize == 8 else "fptrunc"
    elif to.is_float:
        name = "sitofp" if signed else "uitofp"
    elif source.is_bool or source.bits < to.bits:
        name = "sext" if signed else "zext"
    else:
        name = "trunc"
    text = x.text if x.type == kind else b.line(f"{name} {x.typed} to {kind}")
    return round_half(b, Value(text, to, lanes))


def round_half(b: Builder, x: Value) -> Value:
    """A float rounded to the precision of its dtype, if that is float16 or bfloat16."""
    if not x.dtype.is_float or x.dtype.itemsize != 2:
        return x
    if x.dtype.name == "float16":
        return from_memory(b, to_memory(b, x), x.dtype, x.lanes)
    kind = vector_type("i32", x.lanes)
    upper = b.line(f"and {kind} {bfloat_bits(b, x)}, {literal(-65536, 'i32', x.lanes)}")
    return Value(b.line(f"bitcast {kind} {upper} to {x.type}"), x.dtype, x.lanes)


def bfloat_bits(b: Builder, x: Value) -> str:
    """The bits of a float rounded to bfloat16 (nearest, ties to even), in the upper half."""
    kind = vector_type("i32", x.lanes)

    def number(value: int) -> str:
        return literal(value, "i32", x.lanes)

    bits = b.line(f"bitcast {x.typed} to {kind}")
    shifted = b.line(f"lshr {kind} {bits}, {number(16)}")
    last = b.line(f"and {kind} {shifted}, {number(1)}")
    half = b.line(f"add {kind} {last}, {number(0x7FFF)}")
    rounded = b.line(f"add {kind} {bits}, {half}")
    quiet = b.line(f"or {kind} {bits}, {number(0x400000)}")
    unordered = b.line(f"fcmp uno {x.typed}, {x.text}")
    return b.line(f"select {mask_type(x)} {unordered}, {kind} {quiet}, {kind} {rounded}")


def to_memory(b: Builder, x: Value) -> str:
    """A value as it is stored: text of type memory_type(dtype)."""
    kind = vector_type(memory_type(x.dtype), x.lanes)
    if x.dtype.is_bool:
        return b.line(f"zext {x.typed} to {kind}")
    if x.dtype.name == "float16":
        return b.line(f"fptrunc {x.typed} to {kind}")
    if x.dtype.name == "bfloat16":
        int_kind = vector_type("i32", x.lanes)
        upper = b.line(f"lshr {int_kind} {bfloat_bits(b, x)}, {literal(16, 'i32', x.lanes)}")
        return b.line(f"trunc {int_kind} {upper} to {kind}")
    return x.text


def from_memory(b: Builder, text: str, dtype: DType, lanes: int) -> Value:
    """A loaded value, in registers."""
    kind = vector_type(memory_type(dtype), lanes)
    if dtype.is_bool:
        text = b.line(f"icmp ne {kind} {text}, {literal(0, 'i8', lanes)}")
    elif dtype.name == "float16":
        text = b.line(f"fpext {kind} {text} to {vector_type('float', lanes)}")
    elif dtype.name == "bfloat16":
        int_kind = vector_type("i32", lanes)
        wide = b.line(f"zext {kind} {text} to {int_kind}")
        upper = b.line(f"shl {int_kind} {wide}, {literal(16, 'i32', lanes)}")
        text = b.line(f"bitcast {int_kind} {upper} to {vector_type('float', lanes)}")
    return Value(text, dtype, lanes)


def _bitcast(b: Builder, x: Value, to: DType) -> Value:
    stored = to_memory(b, x)
    before = vector_type(memory_type(x.dtype), x.lanes)
    after = vector_type(memory_type(to), x.lanes)
    text = stored if before == after else b.line(f"bitcast {before} {stored} to {after}")
    return from_memory(b, text, to, x.lanes)


def fold(b: Builder, op: Op, x: Value) -> Value:
    """All lanes of x, a power of two, combined by SUM, MAX or PROD.

    Both halves of the lanes are combined, then halves of these, …. LLVM's intrinsic does that with
    vectors of all lanes, which take a fifth longer to compile, but masks are one instruction.
    """
    step = STEPS[op][0]
    word = step.facts.llvm.of(x.dtype)
    if x.dtype.is_bool:
        text = b.call(f"llvm.vector.reduce.{word}.{suffix(x.type)}", "i1", [x.typed])
        return Value(text, x.dtype, 1)
    while x.lanes > 1:
        low, high = (_part(b, x, start, x.lanes // 2) for start in (0, x.lanes // 2))
        text = b.line(f"{word} {low.typed}, {high.text}") if word else _extremum(b, step, high, low)
        x = Value(text, x.dtype, low.lanes)
    return x


def broadcast(b: Builder, x: Value, lanes: int) -> Value:
    """A scalar in every lane."""
    if x.lanes == lanes:
        return x
    if not x.text.startswith("%"):
        return Value(f"splat ({x.type} {x.text})", x.dtype, lanes)
    kind = vector_type(x.type, lanes)
    first = b.line(f"insertelement {kind} poison, {x.typed}, i64 0")
    zeros = f"<{lanes} x i32> zeroinitializer"
    text = b.line(f"shufflevector {kind} {first}, {kind} poison, {zeros}")
    return Value(text, x.dtype, lanes)


def shuffled(b: Builder, x: Value, order: Sequence[int], y: Value | None = None) -> Value:
    """Elements of a vector, or of two, by number; the second's numbers follow the first's."""
    text = b.shuffle(x.type, x.text, order, "poison" if y is None else y.text)
    return Value(text, x.dtype, len(order))


def join(b: Builder, parts: list[Value]) -> Value:
    """Concatenate vectors."""
    first = parts[0]
    scalar, lanes = register_type(first.dtype), first.lanes
    text = join_texts(b, [part.text for part in parts], scalar, lanes)
    return Value(text, first.dtype, lanes * len(parts))


def join_texts(b: Builder, parts: list[str], scalar: str, lanes: int) -> str:
    """The same for vectors of any type: elements in memory may be narrower than in registers."""
    count = lanes * len(parts)
    while len(parts) > 1:
        kind = vector_type(scalar, lanes)
        lanes *= 2
        pairs = zip_longest(parts[::2], parts[1::2], fillvalue="poison")
        parts = [b.shuffle(kind, x, range(lanes), y) for x, y in pairs]
    if lanes == count:
        return parts[0]
    return b.shuffle(vector_type(scalar, lanes), parts[0], range(count))


# ---- pairs of bfloat16 ----


def words_of_neighbours(b: Builder, x: Value) -> Value:
    """Each pair of neighbouring float32, rounded to bfloat16, as a word."""
    words = []
    for start in range(0, x.lanes, 32):
        low, high = (_part(b, x, at) for at in (start, start + 16))
        words.append(b.line(f"bitcast <32 x bfloat> {_rounded(b, low, high)} to <16 x i32>"))
    return Value(join_texts(b, words, "i32", 16), dtypes.uint32, x.lanes // 2)


def words_of(b: Builder, low: Value, high: Value) -> Value:
    """Lane by lane, two float32 rounded to bfloat16, as a word."""
    kind = vector_type("i32", low.lanes)
    if low.lanes % 16:
        bits = [bfloat_bits(b, x) for x in (low, high)]
        below = b.line(f"lshr {kind} {bits[0]}, {literal(16, 'i32', low.lanes)}")
        above = b.line(f"and {kind} {bits[1]}, {literal(-65536, 'i32', low.lanes)}")
        return Value(b.line(f"or {kind} {below}, {above}"), dtypes.uint32, low.lanes)
    words = []
    in_turn = [n // 2 + n % 2 * 16 for n in range(32)]
    for start in range(0, low.lanes, 16):
        both = _rounded(b, _part(b, low, start), _part(b, high, start))
        turned = b.shuffle("<32 x bfloat>", both, in_turn)
        words.append(b.line(f"bitcast <32 x bfloat> {turned} to <16 x i32>"))
    return Value(join_texts(b, words, "i32", 16), dtypes.uint32, low.lanes)


def _rounded(b: Builder, low: Value, high: Value) -> str:
    """Two vectors of 16 float32 as one of bfloat16."""
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    return b.call(name, "<32 x bfloat>", [high.typed, low.typed])


def _part(b: Builder, x: Value, start: int, lanes: int = 16) -> Value:
    """The lanes from `start` on."""
    if lanes == x.lanes:
        return x
    if lanes == 1:
        return Value(b.line(f"extractelement {x.typed}, i64 {start}"), x.dtype, 1)
    return shuffled(b, x, range(start, start + lanes))


def dot(b: Builder, x: Value, y: Value, total: Value) -> Value:
    """total + the products of each lane's pairs of bfloat16, or of its four bytes."""
    kind, words, name = ("<16 x float>", "<32 x bfloat>", "avx512bf16.dpbf16ps")
    if total.dtype.is_int:
        kind, words, name = ("<16 x i32>", "<64 x i8>", "avx512.vpdpbusd")
    sums = []
    for start in range(0, total.lanes, 16):
        parts = [b.line(f"bitcast {_part(b, v, start).typed} to {words}") for v in (x, y)]
        arguments = [_part(b, total, start).typed, *(f"{words} {part}" for part in parts)]
        sums.append(b.call(f"llvm.x86.{name}.512", kind, arguments))
    scalar = register_type(total.dtype)
    return Value(join_texts(b, sums, scalar, 16), total.dtype, total.lanes)
