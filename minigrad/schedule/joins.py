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
from itertools import count, product
from operator import add

from minigrad.graph.build import rebuild
from minigrad.graph.node import Node, Op, Shape, make, topological
from minigrad.graph.rewrite import remade
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.substitution import proven_nonnegative, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, var
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, make_axis
from minigrad.schedule.conditions import conditions_of, end_of
from minigrad.schedule.expr import Array
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
    order, numbers = topological(roots), count()
    if not any(node.op is Op.CAT or node.op is Op.ASSIGN for node in order):
        return list(roots)
    uses = Counter(source for node in order for source in node.src)
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


# ---- writes to a part of a buffer ----
# `cache[:, p:p+1] = k` is formally a whole new value, `where(inside, new, old)`, that replaces the
# old one. If the condition only bounds the indices, the stage is cut down to these bounds. They may
# be loaded: `where((first[b] <= i) & (i - 2 < first[b]), new, cache)` stores two rows of each b,
# wherever they are.


def part_written(stage: Stage, old: Array) -> Stage | None:
    """The stage without the elements that keep their value; None if all may change.

    old: the array whose memory the stage's array takes.
    """
    body = stage.body
    if stage.op is not None or body.op is not Op.WHERE:
        return None
    test, new, kept = body.args
    conditions = [*conditions_of(test, only=True)]
    if not conditions or kept is not expr.load(old, stage.position):
        return None
    loops = {axis.variable for axis in stage.axes}
    axes: list[Axis] = []
    values: dict[Atom, Integer] = {}
    for axis in stage.axes:
        first, stop = _range(axis, conditions, loops)
        if expr.values_in(first):  # a loaded bound may be out of range
            inside = axis.index, axis.extent - 1 - axis.index
            conditions += [c for c in inside if isinstance(c, Affine)]
        if (first, stop) == (0, axis.extent):
            axes.append(axis)
            continue
        extent = stop - first
        if extent == 1:
            values[axis.variable] = first
            continue
        short = make_axis("part", len(axes), extent)
        values[axis.variable] = first + short.index
        axes.append(short)
    if not values or any(not variables(place).isdisjoint(values) for place in values.values()):
        return None
    part = replace(stage, body=new, guard=tuple(conditions)).substitute(values)
    return replace(part, axes=tuple(axes))


def _range(
    axis: Axis, conditions: Sequence[Affine], loops: set[Atom]
) -> tuple[Integer, Integer]:
    """Start and stop of an axis by the conditions on it.

    They are numbers or the user's symbols, or loaded numbers whose distance is known.
    """
    firsts, stops = list[Integer](), list[Integer]()
    for side, end in filter(None, (end_of(c, axis.variable) for c in conditions)):
        (firsts if side > 0 else stops).append(end)
    fixed = [
        [x for x in ends if isinstance(x, int) or all(
            atom.kind == "var" and atom not in loops for atom, _ in x.terms
        )]
        for ends in (firsts, stops)
    ]  # fmt: skip
    first = next((x for x in fixed[0] if proven_nonnegative(x)), 0)
    stop = next((x for x in fixed[1] if proven_nonnegative(axis.extent - x)), axis.extent)
    if (first, stop) == (0, axis.extent):
        for begin, end in product(firsts, stops):
            apart = end - begin
            known = isinstance(apart, int) and apart > 0 and axis.variable not in variables(begin)
            if known and expr.values_in(begin):
                return begin, end
    return first, stop
