"""Sums of products of bytes, four of them at a time, as processors add them (AVX-512 VNNI).

Σ over k of u[k]·s[k], u unsigned and s signed bytes, becomes a sum over words of `Leaf.DOT`, where
neighbours along k are neighbours in memory. What is done to u before, masks and shifts, is done to
the four bytes of a word at once: a shift of the word, and a mask for the bits that would come from
the next byte.
"""

from __future__ import annotations

from dataclasses import replace

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import coefficient, substitute
from minigrad.graph.symbolic import Atom, Integer
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis, places_along
from minigrad.schedule.expr import Expr, Leaf
from minigrad.schedule.stage import Stage

LANES = 16  # 32-bit words, or int32, in a register


def in_words(stage: Stage) -> Stage | None:
    """A sum of products of bytes as a sum of products of words, or None."""
    if stage.op is not Op.SUM or stage.body.dtype is not dtypes.int32:
        return None
    for number, axis in enumerate(stage.reduced):
        if isinstance(axis.extent, int) and axis.extent % 4 == 0:
            words = make_axis("w", 0, axis.count // 4)
            dots = _dots(stage.body, axis.variable, words.index * 4 if words.count > 1 else 0)
            if dots is not None:
                others = list(stage.reduced)
                others[number : number + 1] = [words] if words.count > 1 else []
                return replace(stage, body=dots, reduced=tuple(others))
    return None


def _dots(body: Expr, k: Atom, first: Integer) -> Expr | None:
    """A sum of products of bytes along k as products of words, which begin at `first`; or None."""
    if body.op is Op.ADD:
        left, right = (_dots(arg, k, first) for arg in body.args)
        return None if left is None or right is None else added_to(left, right)
    if body.op is not Op.MUL or any(arg.op is not Op.CAST for arg in body.args):
        return None
    # unsigned bytes first
    factors = sorted((arg.args[0] for arg in body.args), key=lambda e: e.dtype is dtypes.int8)
    if [e.dtype for e in factors] != [dtypes.uint8, dtypes.int8]:
        return None
    unsigned, signed = (_word(e, k, first) for e in factors)
    if unsigned is None or signed is None:
        return None
    return expr.apply(Leaf.DOT, (unsigned, signed, expr.const(0, body.dtype)), body.dtype)


def _word(e: Expr, k: Atom, first: Integer) -> Expr | None:
    """Four neighbours along k as a number of 32 bits, the first one lowest; or None."""
    if e.op is Op.CONST:
        return _four(int(e.value))
    if e.op is Leaf.LOAD:  # the same memory, read as words
        place = substitute(e.index, {k: first})
        if coefficient(e.index, k) != 1 or place % 4 != 0 or e.guard:
            return None
        return expr.load(e.array.words, place // 4)
    if e.op is Op.SHR and e.args[1].op is Op.CONST:
        word, count = _word(e.args[0], k, first), int(e.args[1].value)
        if word is None or e.dtype is not dtypes.uint8:
            return None
        shifted = expr.apply(Op.SHR, (word, expr.const(count, word.dtype)), word.dtype)
        return expr.apply(Op.AND, (shifted, _four(255 >> count)), word.dtype)
    if e.op not in (Op.AND, Op.OR, Op.XOR):
        return None
    left, right = (_word(arg, k, first) for arg in e.args)
    if left is None or right is None:
        return None
    return expr.apply(e.op, (left, right), dtypes.uint32)


def _four(byte: int) -> Expr:
    """A word of four equal bytes."""
    return expr.const((byte & 255) * 0x01010101, dtypes.uint32)


def added_to(total: Expr, dots: Expr) -> Expr:
    """total + DOTs, with total as their initial value.

    A DOT adds to its last argument, which may be a DOT itself.
    """
    *words, inner = dots.args
    begin = added_to(total, inner) if inner.op is Leaf.DOT else total
    return expr.apply(Leaf.DOT, (*words, begin), dots.dtype)


def in_blocks(dots: Stage, sums: Stage) -> dict[Expr, Stage] | None:
    """`dots` in words, for each load of it in `sums`, a sum over blocks.

    None if it is no such sum, or has no tiles.
    """
    words = in_words(dots)
    reads = [load for load in expr.loads(sums.body) if load.array == dots.array]
    if words is None or sums.op is not Op.SUM or not sums.body.dtype.is_float:
        return None
    # with variables of its own, because it is computed inside of the loops of `sums`
    axes = [make_axis("d", number, axis.extent) for number, axis in enumerate(words.reduced)]
    inner: dict[Atom, Integer] = {
        old.variable: new.index for old, new in zip(words.reduced, axes, strict=True)
    }
    found = {}
    for read in reads:
        body = expr.substitute_in(words.body, inner | places_along(dots.axes, read.index))
        found[read] = replace(words, body=body, reduced=tuple(axes))
        if not has_tiles(sums, found[read]):
            return None
    return found if len({one.body.args[0] for one in found.values()}) == 1 else None


def has_tiles(sums: Stage, words: Stage | None) -> bool:
    """Whether the last axis of a sum's results belongs to the unsigned bytes, a matrix, alone.

    Whole vectors along it must be adjacent in memory, and another axis must be the matrix's, too.
    """
    if words is None or len(sums.axes) < 2:
        return False
    matrix, vectors, _ = words.body.args
    *outer, lane = sums.axes
    if expr.strides(lane.variable, matrix) != {1}:
        return False
    m = [axis for axis in outer if axis.variable not in matrix.variables]
    whole = isinstance(lane.extent, int) and lane.extent % LANES == 0
    own = whole and lane.variable not in vectors.variables
    return own and len(m) < len(outer)
