"""Concatenation, and writes to rows of a result: each piece is written where it belongs.

A piece becomes a value of its own (a CONTIGUOUS whose `arg` is a `Part`), and its stage stores to
that part of the CAT's array. The CAT itself generates no code; it only marks that all pieces are
there. The offset of a part is an argument of its kernel, so pieces of equal shape share code. An
ASSIGN to some rows is such a piece, too: of the array that is assigned to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import add

from minigrad.graph.build import rebuild
from minigrad.graph.node import Node, Op, Shape, make, topological
from minigrad.graph.rewrite import remade
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.symbolic import Integer, var
from minigrad.schedule.stage import Stage


@dataclass(frozen=True)
class Part:
    """Where a piece belongs: its place among the pieces of a CAT, and its first index by axis.

    cat: the number of the CAT in its program; shape: of the whole. For rows of a result, cat is
    ROWS and place the slot.
    """

    cat: int
    place: int
    shape: Shape
    first: tuple[Integer, ...]


ROWS = -1  # instead of a CAT's number: rows of a result, which the program does not read


def with_parts(roots: Sequence[Node]) -> list[Node]:
    """The roots with a Part for each piece of each CAT, and for rows of a result.

    A CAT that only one other CAT reads is merged into it.
    """
    numbers = count()
    uses = Counter(source for node in topological(roots) for source in node.src)
    uses.update(roots)

    def remake(node: Node, src: list[Node]) -> Node:
        if node.op is Op.CAT:
            number, pieces, start = next(numbers), list[Node](), 0
            for old, piece in zip(node.src, src, strict=True):
                first = _along(node, node.arg, start)
                inner = [(piece, first)]
                if old.op is Op.CAT and uses[old] == 1:
                    inner = [(one.src[0], tuple(map(add, first, one.arg.first)))
                             for one in piece.src]  # fmt: skip
                for one, at in inner:
                    pieces.append(_piece(one, Part(number, len(pieces), node.shape, at)))
                start += numel(piece.shape[node.arg : node.arg + 1])
            src = pieces
        elif node.op is Op.ASSIGN and node.arg is not None:
            target = node.src[0]
            first = _along(target, 0, node.arg)
            return _piece(src[1], Part(ROWS, target.arg, target.shape, first))
        if node.op in (Op.CAT, Op.CONTIGUOUS):  # `rebuild` drops arguments and empty pieces
            return make(node.op, node.dtype, node.shape, tuple(src), node.arg, node.device)
        return rebuild(node, src)

    return remade(roots, remake)


def _along(node: Node, axis: int, start: Integer) -> tuple[Integer, ...]:
    """An index: start along one axis, 0 along the others."""
    return tuple(start if other == axis else 0 for other in range(node.ndim))


def _piece(x: Node, part: Part) -> Node:
    return make(Op.CONTIGUOUS, x.dtype, x.shape, (x,), part, x.device)


def placed(stage: Stage, part: Part) -> Stage:
    """The stage of a piece, storing to its part."""
    extents = part.shape
    index: list[Integer] = []
    axes = iter(stage.axes)
    for extent in stage.shape:
        index.append(0 if extent == 1 else next(axes).index)
    start = flatten(part.first, extents)
    return replace(stage, position=flatten(index, extents) + start, start=start)


def with_starts(
    stages: Sequence[Stage],
) -> tuple[tuple[Stage, ...], tuple[tuple[str, int], ...]]:
    """The stages of a kernel, in which parts start at arguments; and these arguments' values."""
    result: list[Stage] = []
    values: list[tuple[str, int]] = []
    for stage in stages:
        whole = stage.array.whole
        if whole is not None:
            start = stage.position if isinstance(stage.position, int) else stage.position.constant
            name, most = f"_start{len(values)}", whole.size - stage.size
            values.append((name, start))
            position = var(name, 0, most) + (stage.position - start)
            stage = replace(stage, position=position)
        result.append(stage)
    return tuple(result), tuple(values)
