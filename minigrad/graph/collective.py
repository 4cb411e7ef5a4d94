"""Exchanges with the other ranks of a parallel program, as operations of the graph.

A parallel program is the same Python function, run once per rank (SPMD). Its ranks form named
groups; a COLLECTIVE is what one rank contributes to an exchange within a group, and what it gets:

    all_reduce      the sum, mean or maximum over all ranks, which every rank gets
    reduce_scatter  the same, but rank r gets part r of axis 0 only
    all_gather      the ranks' parts, one after the other along axis 0
    all_to_all      part s of axis 0 goes to rank s; what came from rank s is part s
    permute         what the rank `shift` places before has sent
    broadcast       what rank `root` has sent
    reduce          the sum at rank `root`, zeros elsewhere

All ranks must make the same exchanges in the same order. Each node has a number of its own, so that
equal exchanges stay two and the order in which they were written is known; a canonical graph
numbers them from 0. The derivatives hold for the sum of all ranks' losses.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigrad.errors import DTypeError, GradientError, ShapeError, expect
from minigrad.graph import build
from minigrad.graph.node import Node, Op, Shape, make
from minigrad.graph.shapes import numel

SHARED = frozenset({"all_reduce", "permute", "broadcast", "reduce"})  # result: shape of the source
SEVERAL = SHARED | {"reduce_scatter", "all_gather"}  # an exchange may join several arrays
KINDS = SEVERAL | {"all_to_all"}
REDUCTIONS = frozenset({"sum", "mean", "max"})


@dataclass(frozen=True)
class Collective:
    """The argument of a COLLECTIVE.

    group: the name of the group; size: its number of ranks. how: the reduction ("sum", "mean",
    "max"), if there is one; place: the shift of a permute, the root of a broadcast or reduce.
    number: which exchange of its program it is. payload: how many of the node's sources are sent,
    as one flat array; the others must only be computed before it begins. sent: their dtype and
    shapes, which ranks compare before they exchange anything.
    """

    kind: str
    group: str
    size: int
    how: str = "-"
    place: int = 0
    number: int = 0
    payload: int = 1
    sent: str = ""

    def told(self) -> str:
        """What is exchanged, and how: all that ranks must agree on besides the kind."""
        how = [] if self.how == "-" else [self.how]
        if self.kind == "permute":
            how.append(f"{self.place} on")
        elif self.kind in ("broadcast", "reduce"):
            how.append(f"root {self.place}")
        return f"{self.sent} ({', '.join(how)})" if how else self.sent


_numbers = itertools.count()


def exchange(
    kind: str, group: str, size: int, sources: Sequence[Node],
    how: str = "-", place: int = 0, after: Sequence[Node] = (), number: int | None = None,
) -> Node:  # fmt: skip
    """A COLLECTIVE of sources of one dtype; the results of several are one flat array.

    `results_of` takes that apart. after: nodes that are computed before it begins, though it does
    not read them. number: which exchange of its program it is; the next one if not given.
    """
    first = sources[0]
    if kind not in KINDS:
        raise ValueError(f"unknown exchange {kind!r}: expected one of {', '.join(sorted(KINDS))}")
    if (how in REDUCTIONS) is not (kind in ("all_reduce", "reduce_scatter", "reduce")):
        raise ValueError(f"{kind}: invalid reduction {how!r}")
    if how == "mean" and not first.dtype.is_float:
        raise DTypeError(f"{kind}: no mean of {first.dtype.name}; cast it to a float dtype")
    if any(source.dtype is not first.dtype for source in sources):
        names = ", ".join(source.dtype.name for source in sources)
        raise DTypeError(f"{kind}: expected one dtype for all arrays, got {names}")
    shapes = [_result_shape(kind, size, source.shape) for source in sources]
    expect(len(sources) == 1 or kind in SEVERAL, kind, "one array", len(sources))
    shape = shapes[0] if len(sources) == 1 else (sum(map(numel, shapes)),)
    sent = _listed([f"{node.dtype.name}{list(node.shape)}" for node in sources])
    number = next(_numbers) if number is None else number
    arg = Collective(kind, group, size, how, place, number, len(sources), sent)
    return make(Op.COLLECTIVE, first.dtype, shape, (*sources, *after), arg, first.device)


def _listed(words: Sequence[str]) -> str:
    """Words separated by commas; "3 × a" for three a in a row."""
    rows = [(word, sum(1 for _ in same)) for word, same in itertools.groupby(words)]
    return ", ".join(word if count == 1 else f"{count} × {word}" for word, count in rows)


def results_of(joined: Node) -> list[Node]:
    """The results of an exchange of several sources, each in its own shape."""
    arg: Collective = joined.arg
    if arg.payload == 1:
        return [joined]
    result, start = [], 0
    for source in joined.src[: arg.payload]:
        shape = _result_shape(arg.kind, arg.size, source.shape)
        stop = start + numel(shape)
        result.append(build.reshape(build.shrink(joined, [(start, stop)]), shape))
        start = stop
    return result


def _result_shape(kind: str, size: int, shape: Shape) -> Shape:
    if any(not isinstance(extent, int) for extent in shape):
        raise ShapeError(f"{kind}: expected a shape of plain ints, equal on all ranks, got {shape}")
    if kind in SHARED:
        return shape
    length: Any = shape[0] if shape else 1
    expect(shape and (kind == "all_gather" or not length % size),
           f"{kind} over {size} ranks", "a first dimension that they can share evenly",
           f"shape {shape}")  # fmt: skip
    if kind == "all_to_all":
        return shape
    rows = length * size if kind == "all_gather" else length // size
    return (rows, *shape[1:])


def again(like: Node, kind: str, x: Node, how: str = "-", place: int = 0) -> Node:
    """Another exchange in the group of `like`."""
    arg: Collective = like.arg
    return exchange(kind, arg.group, arg.size, [x], how, place)


def gradient(node: Node, g: Node) -> Node:
    """The gradient of the array that a COLLECTIVE sends."""
    arg: Collective = node.arg
    kind, how = arg.kind, arg.how
    if arg.payload > 1:
        raise GradientError(
            f"no gradient for {node!r}, which joins {arg.payload} arrays; exchange them one by one"
        )
    if kind == "all_reduce":
        return _of_maximum(node, g) if how == "max" else again(node, "all_reduce", g, how)
    if kind == "reduce_scatter" and how != "max":
        back = again(node, "all_gather", g)
        return back if how == "sum" else back * (1 / arg.size)
    if kind in _BACK and how in ("-", "sum"):
        other, combined = _BACK[kind]
        place = -arg.place % arg.size if kind == "permute" else arg.place
        return again(node, other, g, combined, place)
    raise DTypeError(f"{kind} with reduction {how!r} has no gradient; use all_reduce")


# For the other kinds: the exchange of the gradient, and its reduction.
_BACK = {
    "all_gather": ("reduce_scatter", "sum"), "all_to_all": ("all_to_all", "-"),
    "permute": ("permute", "-"), "broadcast": ("reduce", "sum"), "reduce": ("broadcast", "-"),
}  # fmt: skip


def _of_maximum(node: Node, g: Node) -> Node:
    """The sum of all ranks' gradients, divided evenly among the ranks that hold the maximum."""
    x = node.src[0]
    is_maximum = x.equals(node).cast(x.dtype)
    total, count = again(node, "all_reduce", g, "sum"), again(node, "all_reduce", is_maximum, "sum")
    return is_maximum * (total / count)


def exchanges_in_order(roots: Sequence[Node], order: Sequence[Node]) -> list[Node]:
    """The COLLECTIVEs of a topological order by number, then the roots.

    A topological walk from these visits exchanges by number: none needs a later one.
    """
    found = [node for node in order if node.op is Op.COLLECTIVE]
    return [*sorted(found, key=lambda node: node.arg.number), *roots]
