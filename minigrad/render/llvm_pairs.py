"""Pairs of bfloat16 as words of 32 bits, for processors that add their products (AVX512-BF16).

Its instructions take 16 lanes at a time, and a subnormal number for zero.
"""

from __future__ import annotations

from minigrad.dtype import dtypes
from minigrad.render.llvm_values import (
    Builder,
    Value,
    bfloat_bits,
    join_texts,
    literal,
    register_type,
    vector_type,
)


def words_of_neighbours(b: Builder, x: Value) -> Value:
    """Each two neighbours among float32, rounded to bfloat16, as a word."""
    words = []
    for start in range(0, x.lanes, 32):
        low, high = (_part(b, x, at) for at in (start, start + 16))
        words.append(b.line(f"bitcast <32 x bfloat> {_rounded(b, low, high)} to <16 x i32>"))
    return Value(join_texts(b, words, "i32", 16), dtypes.uint32, x.lanes // 2)


def words_of(b: Builder, low: Value, high: Value) -> Value:
    """Lane by lane, two float32 rounded to bfloat16 as a word."""
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


def _rounded(b: Builder, low: str, high: str) -> str:
    """Two vectors of 16 float32 as one of bfloat16."""
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    return b.call(name, "<32 x bfloat>", [f"<16 x float> {high}", f"<16 x float> {low}"])


def _part(b: Builder, x: Value, start: int) -> str:
    """The 16 lanes from `start` on."""
    if x.lanes == 16:
        return x.text
    return b.shuffle(x.type, x.text, range(start, start + 16))


def dot(b: Builder, x: Value, y: Value, total: Value) -> Value:
    """total + the products of each lane's pairs of bfloat16, or of its four pairs of bytes."""
    kind, words, name = ("<16 x float>", "<32 x bfloat>", "avx512bf16.dpbf16ps")
    if total.dtype.is_int:
        kind, words, name = ("<16 x i32>", "<64 x i8>", "avx512.vpdpbusd")
    sums = []
    for start in range(0, total.lanes, 16):
        parts = [b.line(f"bitcast <16 x i32> {_part(b, v, start)} to {words}") for v in (x, y)]
        arguments = [f"{kind} {_part(b, total, start)}", *(f"{words} {part}" for part in parts)]
        sums.append(b.call(f"llvm.x86.{name}.512", kind, arguments))
    scalar = register_type(total.dtype)
    return Value(join_texts(b, sums, scalar, 16), total.dtype, total.lanes)
