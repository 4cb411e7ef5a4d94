"""CAT: each piece is written where it belongs in the result.

A piece becomes a value of its own (a CONTIGUOUS whose `arg` is a `Part`), whose stage stores to
that part of the CAT's array; the CAT itself is the event that all of them are there, and no code.
Where in the array a part begins is an argument of its kernel, so pieces of one shape share code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minigrad.graph.build import rebuild
from minigrad.graph.node import Node, Op, Shape, make, topological
from minigrad.graph.shapes import flatten, numel
from minigrad.graph.symbolic import Integer, var
from minigrad.schedule.expr import Array
from minigrad.schedule.stage import Stage


@dataclass(frozen=True)
class Part:
    """Where a piece belongs: its place among those of a CAT, and its first index along the axis.

    cat: the number of the CAT in its program; shape: that of the whole.
    """

    cat: int
    place: int
    shape: Shape
    axis: int
    start: int


def with_parts(roots: Sequence[Node]) -> list[Node]:
    """The roots with a Part of its own for each piece of each CAT."""
    order = topological(roots)
    if not any(node.op is Op.CAT for node in order):
        return list(roots)
    new: dict[Node, Node] = {}
    for number, node in enumerate(order):
        src = [new[source] for source in node.src]
        if node.op is Op.CAT:
            start = 0
            for place, piece in enumerate(src):
                part = Part(number, place, node.shape, node.arg, start)
                src[place] = make(Op.CONTIGUOUS, piece.dtype, piece.shape, (piece,), part,
                                  piece.device)  # fmt: skip
                start += numel(piece.shape[node.arg : node.arg + 1])
            new[node] = make(Op.CAT, node.dtype, node.shape, tuple(src), node.arg, node.device)
        else:
            new[node] = node if tuple(src) == node.src else _on(node, src)
    return [new[root] for root in roots]


def _on(node: Node, src: Sequence[Node]) -> Node:
    """The same operation on other sources, with its own argument."""
    if node.op is Op.CONTIGUOUS:
        return make(node.op, node.dtype, node.shape, tuple(src), node.arg, node.device)
    return rebuild(node, src)


def placed(stage: Stage, part: Part) -> Stage:
    """The stage of a piece, which stores to its part."""
    extents = part.shape
    index: list[Integer] = []
    axes = iter(stage.axes)
    for extent in stage.shape:
        index.append(0 if extent == 1 else next(axes).index)
    index[part.axis] = index[part.axis] + part.start
    return replace(stage, position=flatten(index, extents))


def with_starts(
    stages: Sequence[Stage], owners: dict[Array, Array]
) -> tuple[tuple[Stage, ...], tuple[tuple[str, int], ...]]:
    """The stages of a kernel with the CATs' own arrays, and parts beginning at arguments.

    Gives the arguments' names and values, too. owners: the CAT's array for that of each part.
    """
    result: list[Stage] = []
    values: list[tuple[str, int]] = []
    for stage in stages:
        owner = owners.get(stage.array)
        if owner is not None:
            start = stage.position if isinstance(stage.position, int) else stage.position.constant
            name, most = f"_start{len(values)}", owner.size - stage.size
            values.append((name, start))
            position = var(name, 0, most) + (stage.position - start)
            stage = replace(stage, array=owner, position=position)
        result.append(stage)
    return tuple(result), tuple(values)
