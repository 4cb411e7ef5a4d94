"""Random graphs of up to a few dozen nodes, to test properties of schedules."""

from __future__ import annotations

import random

from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.graph.shapes import numel

from .programs import DEVICE, Build, Inputs, add, ew, mul, number, product, softmax, transpose

LARGEST = 6000  # elements of a node


def random_program(seed: int, steps: int = 14) -> Build:
    """A program of random nodes; every call gives the same ones for the same seed."""

    def build(inputs: Inputs) -> list[Node]:
        random_ = random.Random(seed)
        lengths = [1, 2, 3, 5, 8, 16, 17, 33]
        nodes = [
            inputs(*(random_.choice(lengths) for _ in range(random_.choice([1, 2, 2, 3]))))
            for _ in range(random_.randint(1, 3))
        ]
        for _ in range(steps):
            new = _step(random_, random_.choice(nodes[-5:] + nodes), nodes)
            if new is not None and 0 < numel(new.shape) <= LARGEST:
                nodes.append(new)
        count = random_.randint(0, 3)
        return list(dict.fromkeys([nodes[-1], *(random_.choice(nodes) for _ in range(count))]))

    return build


def _step(random_: random.Random, x: Node, nodes: list[Node]) -> Node | None:
    """One more node, computed from x and perhaps from others."""
    axis = random_.randrange(x.ndim)
    kind = random_.choice(
        ["unary", "binary", "binary", "reduce", "reduce", "move", "move", "product", "softmax",
         "where", "gather", "scatter", "repeat", "lie"]
    )  # fmt: skip
    same = random_.choice([node for node in nodes if node.shape == x.shape])
    if kind == "unary":
        return ew(Op.TANH, x) if random_.random() < 0.5 else ew(Op.NEG, x)
    if kind == "binary":
        return ew(random_.choice([Op.ADD, Op.SUB, Op.MUL, Op.MAXIMUM]), x, same)
    if kind == "where":
        return g.elementwise(Op.WHERE, g.elementwise(Op.LT, x, same), same, x)
    if kind == "reduce":
        axes = [a for a in range(x.ndim) if random_.random() < 0.5] or [axis]
        count = numel([x.shape[a] for a in axes])
        if random_.random() < 0.5:
            reduced = g.reduce(Op.MAX, x, axes)
        else:
            reduced = mul(g.reduce(Op.SUM, x, axes), count**-0.5)
        return g.expand(reduced, x.shape) if random_.random() < 0.6 else reduced
    if kind == "softmax":
        return softmax(x, axis)
    if kind == "repeat" and x.ndim < 3:
        return g.expand(g.reshape(x, (1, *x.shape)), (random_.choice([2, 5]), *x.shape))
    if kind == "product" and x.ndim == 2:
        other = random_.choice([node for node in nodes if node.ndim == 2])
        if other.shape[0] != x.shape[1]:
            other = transpose(x)
        return mul(product(x, other), numel([x.shape[1]]) ** -0.5)
    if kind == "lie":  # stored as it is in memory, moved or not
        return g.contiguous(_move(random_, x, axis) if random_.random() < 0.8 else x)
    if kind == "move":
        return _move(random_, x, axis)
    if kind in ("gather", "scatter"):
        extent = numel([x.shape[axis]])
        places = g.iota(extent, DEVICE, dtypes.int32)
        places = ew(Op.MOD, mul(places, random_.choice([1, 3, 7])), extent + random_.choice([0, 1]))
        shape = [1] * x.ndim
        shape[axis] = extent
        index = g.expand(g.reshape(places, shape), x.shape)
        if kind == "gather":
            return g.gather(x, index, axis)
        return g.scatter_add(mul(x, 0.5), index, add(x, number(0.25, x)), axis)
    return None


def _move(random_: random.Random, x: Node, axis: int) -> Node:
    kind = random_.choice(["permute", "flatten", "pad", "shrink", "flip", "cat"])
    if kind == "cat":
        return g.cat([x, g.flip(x, [axis]), mul(x, 0.5), x][random_.randrange(3) :], axis)
    if kind == "permute":
        order = list(range(x.ndim))
        random_.shuffle(order)
        return g.permute(x, order)
    if kind == "flatten":
        return g.reshape(x, (numel(x.shape),))
    if kind == "pad":
        return g.pad(x, [(random_.randint(0, 2), random_.randint(0, 3)) for _ in x.shape])
    if kind == "flip":
        return g.flip(x, [axis])
    start = random_.randrange(numel([x.shape[axis]]))
    stop = random_.randint(start + 1, numel([x.shape[axis]]))
    return g.shrink(
        x, [(start, stop) if a == axis else (0, extent) for a, extent in enumerate(x.shape)]
    )
