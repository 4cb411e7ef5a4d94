"""Squares of a matrix, turned in registers: what gathers would read one element at a time.

First each four rows within blocks of four columns, by two rounds of shuffles that stay within 16
bytes; then the blocks, of which each round picks every other one of two vectors.
"""

from __future__ import annotations

from collections.abc import Iterable

from minigrad.loops.nest import Matrix, Turn
from minigrad.render.llvm_index import IndexEmitter
from minigrad.render.llvm_values import memory_type, vector_type

_BLOCK = 4  # elements of 4 bytes that shuffle within 16 bytes


def emit_turn(emitter: IndexEmitter, turn: Turn) -> None:
    """The statement at the emitter's current level."""
    scalar, side = memory_type(turn.target.array.dtype), turn.side
    kind = vector_type(scalar, side)
    here = emitter.builder()

    def shuffle(a: str, b: str, order: Iterable[int]) -> str:
        places = ", ".join(f"i32 {place}" for place in order)
        return here.line(f"shufflevector {kind} {a}, {kind} {b}, <{side} x i32> <{places}>")

    def rows(matrix: Matrix) -> list[str]:
        base = emitter.pointer(matrix.array, matrix.index)
        element = memory_type(matrix.array.dtype)
        return [
            here.line(f"getelementptr {element}, ptr {base}, i64 {row * matrix.pitch}")
            for row in range(side)
        ]

    def blocks_turned(vectors: list[str]) -> list[str]:
        if len(vectors) == 1:
            return vectors
        parts = []
        for odd in (0, _BLOCK):
            order = [
                first + place
                for first in range(odd, 2 * side, 2 * _BLOCK) for place in range(_BLOCK)
            ]  # fmt: skip
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            parts.append(blocks_turned([shuffle(a, b, order) for a, b in pairs]))
        return [vector for pair in zip(*parts, strict=True) for vector in pair]

    loaded = [
        here.line(f"load {kind}, ptr {row}, align {turn.source.array.dtype.itemsize}")
        for row in rows(turn.source)
    ]
    blocks = range(0, side, _BLOCK)
    halves = [
        [place for b in blocks for place in (b + h, side + b + h, b + h + 1, side + b + h + 1)]
        for h in (0, 2)
    ]
    quarters = [
        [place for b in blocks for place in (b + q, b + q + 1, side + b + q, side + b + q + 1)]
        for q in (0, 2)
    ]
    columns: list[list[str]] = [[] for _ in range(_BLOCK)]
    for four in range(0, side, _BLOCK):
        a, b, c, d = loaded[four : four + _BLOCK]
        for h in (0, 1):
            first, second = shuffle(a, b, halves[h]), shuffle(c, d, halves[h])
            for q in (0, 1):
                columns[2 * h + q].append(shuffle(first, second, quarters[q]))
    turned = [blocks_turned(column) for column in columns]
    for row, pointer in enumerate(rows(turn.target)):
        value = turned[row % _BLOCK][row // _BLOCK]
        size = turn.target.array.dtype.itemsize
        here.lines.append(f"  store {kind} {value}, ptr {pointer}, align {size}")
    emitter.forget((turn.target.array,))
