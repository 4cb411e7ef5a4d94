"""OpenCL C's words for vectors: what opencl_values.py says of one value, for 2, 4 or 8 at once.

A vector of bools is a vector of int masks, 0 or −1. What C has no vector operation for is done lane
by lane with the scalar words.
"""

from __future__ import annotations

from minigrad.dtype import DType, dtypes
from minigrad.graph.operations import COMPARISONS, Op
from minigrad.render.opencl_values import (
    FUNCTIONS,
    Language,
    bare,
    literal,
    register_type,
    word_of,
)
from minigrad.schedule.expr import Expr, Leaf

WIDTHS = (2, 4, 8)  # of at most 32 bytes: PoCL 3 loses kernels that call functions on longer ones


class VectorLanguage:
    """Texts of operations on vectors of `width` lanes. Operands are names or bracketed texts."""

    def __init__(self, scalar: Language, width: int) -> None:
        self.scalar, self.width = scalar, width

    def type_of(self, dtype: DType) -> str:
        """The type of a vector in registers."""
        if dtype.is_bool:
            return f"int{self.width}"
        return f"{self.scalar.type_of(dtype)}{self.width}"

    def broadcast(self, text: str, dtype: DType) -> str:
        """A scalar in every lane."""
        if dtype.is_bool:
            return f"(int{self.width})({text} ? -1 : 0)"
        return f"({self.type_of(dtype)})({bare(text)})"

    def gathered(self, texts: list[str], dtype: DType) -> str:
        """A vector of scalars, one text for each lane."""
        if dtype.is_bool:
            texts = [f"{text} ? -1 : 0" for text in texts]
        return f"({self.type_of(dtype)})({', '.join(bare(text) for text in texts)})"

    def lane(self, name: str, dtype: DType, number: int) -> str:
        """One lane of a vector's name as a scalar."""
        text = f"{name}.s{number}"
        return f"({text} != 0)" if dtype.is_bool else text

    def iota(self, base: str, factor: int, kind: str) -> str:
        """base, base + factor, … as a vector of ints or longs."""
        suffix = "L" if kind == "long" else ""
        steps = ", ".join(f"{factor * lane}{suffix}" for lane in range(self.width))
        return f"(({kind}{self.width})({bare(base)}) + ({kind}{self.width})({steps}))"

    # ---- memory ----

    def loaded(self, dtype: DType, pointer: str, place: str) -> str:
        """Neighbouring elements from `place` on."""
        text = f"vload{self.width}(0, {pointer} + {place})"
        if dtype is dtypes.float16:
            return f"{self.scalar.function('half_value', lanes=self.width)}({text})"
        if dtype is dtypes.bfloat16:
            return f"as_float{self.width}(convert_uint{self.width}({text}) << 16)"
        self.scalar.type_of(dtype)
        return self.truth(text, "char") if dtype.is_bool else text

    def truth(self, text: str, kind: str) -> str:
        """A mask of the lanes that are not 0, of integers as wide as a C type."""
        compared = f"({text} != ({'u' if kind == 'char' else ''}{kind}{self.width})(0))"
        return compared if kind == "int" else f"convert_int{self.width}{compared}"

    def stored(self, dtype: DType, pointer: str, place: str, value: str) -> str | None:
        """The statement that writes neighbouring elements; None where there are no words for it."""
        if dtype is dtypes.bfloat16:
            return None
        self.scalar.type_of(dtype)
        if dtype is dtypes.float16:
            value = f"{self.scalar.function('half_bits', lanes=self.width)}({bare(value)})"
        if dtype.is_bool:
            value = f"convert_uchar{self.width}({value} & 1)"
        return f"vstore{self.width}({bare(value)}, 0, {pointer} + {place});"

    def pair(self, op: Op, dtype: DType, kind: str, a: str, b: str) -> str:
        """Two scalars of C type `kind` combined."""
        if dtype.is_bool:
            return f"({a} {'|' if op in (Op.SUM, Op.MAX) else '&'} {b})"
        if op is Op.MAX:
            name = self.scalar.function("larger", kind) if dtype.is_float else "max"
            return f"{name}({bare(a)}, {bare(b)})"
        sign = "+" if op is Op.SUM else "*"
        if dtype.is_float:
            return f"({a} {sign} {b})"
        wide = "ulong" if dtype.itemsize == 8 else "uint"
        return f"({kind})(({wide}){a} {sign} ({wide}){b})"

    # ---- operations ----

    def _call(self, name: str, args: list[str]) -> str:
        """A function of vectors."""
        return f"{name}({', '.join(bare(arg) for arg in args)})"

    def _converted(self, text: str, kind: str) -> str:
        """A vector converted to elements of a C type."""
        return f"convert_{kind}{self.width}({bare(text)})"

    def operation(self, e: Expr, args: list[str]) -> str | None:
        """An elementwise operation on vectors; None where it must be done lane by lane."""
        if e.op is Leaf.FMA:
            return self._call("fma", args)
        source, word = e.args[0].dtype, word_of(e)
        if e.op is Op.WHERE:
            return self._chosen(self._mask(args[0], e.dtype), args[1], args[2])
        if e.op is Op.CAST:
            return self.cast(args[0], source, e.dtype)
        if e.op is Op.BITCAST:
            halves = any(d.is_float and d.itemsize == 2 for d in (source, e.dtype))
            if halves or e.dtype.is_bool:
                return None
            return f"as_{self.type_of(e.dtype)}({bare(args[0])})"
        if e.op is Op.NOT:
            return f"(~{args[0]})"
        if e.op in COMPARISONS:
            if source.is_bool:  # true is −1, less than false
                args = args[::-1]
            return self.truth_of(f"({args[0]} {word} {args[1]})", source)
        if source.is_int:
            return self._on_integers(e, word, args)
        if e.op is Op.NEG:
            return f"(-{args[0]})"
        if word and not word.isidentifier():
            return f"({args[0]} {word} {args[1]})"
        if e.op in (Op.MAXIMUM, Op.MINIMUM):  # NaN wins
            sign = ">" if e.op is Op.MAXIMUM else "<"
            a, b = args
            return self._chosen(f"(({b} {sign} {a}) | ({b} != {b}))", b, a)
        return self._call(word, args) if word and word not in FUNCTIONS else None

    def truth_of(self, text: str, dtype: DType) -> str:
        """The int mask of a comparison of dtype, whose own mask is as wide as what it compares."""
        same = dtype.is_bool or register_type(dtype) in ("int", "uint", "float")
        return text if same else self._converted(text, "int")

    def _mask(self, text: str, dtype: DType) -> str:
        """A mask in integers as wide as the elements of dtype."""
        kind = register_type(dtype)
        wide = {"double": "long", "ulong": "long", "long": "long", "short": "short",
                "ushort": "short", "char": "char", "uchar": "char"}.get(kind)  # fmt: skip
        if wide is None or dtype.is_bool:
            return text
        return self._converted(text, wide)

    def _chosen(self, mask: str, chosen: str, other: str) -> str:
        """chosen where the mask, as wide as the elements, is not 0, else other."""
        return f"select({bare(other)}, {bare(chosen)}, {bare(mask)})"

    def cast(self, x: str, source: DType, to: DType) -> str | None:
        """A conversion as in `Language.cast`; None where it must be done lane by lane."""
        kind, before = register_type(to), register_type(source)
        if to.is_bool:
            if source.is_bool:
                return x
            return self.truth_of(f"({x} != ({before}{self.width})(0))", source)
        if source.is_bool:
            return self._converted(f"({x} & 1)", self.scalar.type_of(to))
        if to.is_float and to.itemsize == 2 and source is not to:
            return None  # its rounding is a function
        if kind == before:
            return x
        if source.is_float and to.is_int:
            if to.kind == "u" or to.itemsize != 4:
                return None
            return self._saturated(x, source)
        return self._converted(x, self.scalar.type_of(to))

    def _saturated(self, x: str, source: DType) -> str:
        """Floats to int32 towards zero."""
        name = f"int{self.width}_of_{register_type(source)}"
        if name not in self.scalar.functions:
            real = f"{self.scalar.type_of(source)}{self.width}"
            low, high = literal(-(2.0**31), source), literal(2.0**31, source)
            test = (lambda t: t) if source.itemsize < 8 else (
                lambda t: f"convert_int{self.width}({t})"
            )
            self.scalar.functions[name] = (
                f"int{self.width} {name}({real} x) {{  // towards zero; saturates, NaN gives 0\n"
                f"    int{self.width} inside = {test(f'(x > {low}) & (x < {high})')};\n"
                f"    int{self.width} above = {test(f'x >= {high}')};\n"
                f"    int{self.width} below = {test(f'x <= {low}')};\n"
                f"    {real} safe = select(({real})(0), x, {self._mask('inside', source)});\n"
                f"    int{self.width} whole = convert_int{self.width}_rtz(safe);\n"
                f"    return whole | (above & 0x7fffffff) | (below & (-0x7fffffff - 1));\n"
                f"}}"
            )
        return f"{name}({bare(x)})"

    def _on_integers(self, e: Expr, word: str, args: list[str]) -> str | None:
        kind = register_type(e.dtype)
        unsigned = (kind if kind.startswith("u") else "u" + kind) + str(self.width)
        own = f"{kind}{self.width}"
        if e.op in (Op.ADD, Op.SUB, Op.MUL):  # signed overflow is undefined in C, and wraps here
            left, right = (f"as_{unsigned}({bare(arg)})" for arg in args)
            return f"as_{own}({left} {word} {right})"
        if e.op is Op.NEG:
            return f"as_{own}(({unsigned})(0) - as_{unsigned}({bare(args[0])}))"
        if e.op in (Op.SHL, Op.SHR):
            count = e.args[1]
            if count.op is not Op.CONST or not 0 <= count.value < e.dtype.bits:
                return None
            if e.op is Op.SHR:
                return f"({args[0]} >> ({own})({count.value}))"
            return f"as_{own}(as_{unsigned}({bare(args[0])}) << ({unsigned})({count.value}))"
        if word and not word.isidentifier():
            return f"({args[0]} {word} {args[1]})"
        return self._call(word, args) if word and word not in FUNCTIONS else None
