"""Random programs on random layouts: a mesh computes what one device computes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import Blocks, Mesh, P, Tensor

Pair = tuple[Tensor, Tensor]  # on one device, on the mesh
SHAPES = [(4, 6), (8, 4), (4, 4, 2), (6,), (5, 4), (4, 8), (2, 3, 4), (7, 6)]


def drawn_spec(draw: random.Random, mesh: Mesh, shape: tuple[int, ...]) -> P:
    """A random layout: axes for some dimensions, sometimes two for one, or in blocks."""
    axes, entries = list(mesh.sizes), list[Any]()
    for extent in shape:
        if extent == 1 or not axes or draw.random() < 0.4:
            entries.append(None)
            continue
        axis = axes.pop(draw.randrange(len(axes)))
        if axes and draw.random() < 0.2:
            entries.append((axis, axes.pop()))
        else:
            entries.append(Blocks(axis, 2) if extent % 4 == 0 and draw.random() < 0.3 else axis)
    return P(*entries)


class Program:
    """A random program's leaves and operations, on one device and on a mesh."""

    def __init__(self, seed: int, device: str, mesh: Mesh) -> None:
        self.draw, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.device, self.mesh = device, mesh
        self.leaves = [self.leaf(self.draw.choice(SHAPES)) for _ in range(3)]
        self.values = list(self.leaves)
        for _ in range(self.draw.randint(2, 9)):
            pair = self.draw.choice(self.values)
            made = self.draw.choice(STEPS)(self, pair) if pair[0].ndim else None
            if made is not None:
                self.values.append(made)
        self.results = [self.values[-1], *self.draw.sample(self.values, 2), self.leaves[0]]

    def leaf(self, shape: tuple[int, ...]) -> Pair:
        """A leaf of small whole numbers, so that sums do not depend on their order."""
        data = self.numbers.integers(-3, 4, shape).astype(np.float32)
        one, many = (Tensor(data, device=self.device, requires_grad=True) for _ in range(2))
        return one, many.shard_(self.mesh, self.spec(shape))

    def spec(self, shape: tuple[int, ...]) -> P:
        """A random layout for a shape."""
        return drawn_spec(self.draw, self.mesh, shape)

    def indices(self, extent: int, shape: tuple[int, ...]) -> Pair:
        """Random indices along an axis."""
        data = self.numbers.integers(0, extent, shape).astype(np.int32)
        one = Tensor(data, device=self.device)
        return one, one.shard(self.mesh, self.spec(shape))

    def both(self, pair: Pair, function: Callable[[Tensor], Tensor]) -> Pair:
        """A function applied to both tensors."""
        return function(pair[0]), function(pair[1])

    def axis(self, pair: Pair) -> int:
        """A random axis."""
        return self.draw.randrange(pair[0].ndim)


def _alone(function: Callable[[Tensor], Tensor]) -> Callable[[Program, Pair], Pair]:
    return lambda program, pair: program.both(pair, function)


def _along(function: Callable[[Tensor, int], Tensor]) -> Callable[[Program, Pair], Pair]:
    def step(program: Program, pair: Pair) -> Pair:
        axis = program.axis(pair)
        return program.both(pair, lambda x: function(x, axis))

    return step


def _with_another(
    function: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Program, Pair], Pair]:
    def step(program: Program, pair: Pair) -> Pair:
        x = pair[0]
        fitting = [other for other in program.values
                   if other[0].shape in (x.shape, x.shape[-1:], ())]  # fmt: skip
        other = program.draw.choice(fitting)
        return function(pair[0], other[0]), function(pair[1], other[1])

    return step


def _product(program: Program, pair: Pair) -> Pair | None:
    x = pair[0]
    fitting = [y for y in program.values if y[0].ndim == 2 and y[0].shape[0] == x.shape[-1]]
    if x.ndim < 2 or not fitting:
        return None
    other = program.draw.choice(fitting)
    return pair[0] @ other[0], pair[1] @ other[1]


def _reshape(program: Program, pair: Pair) -> Pair:
    count = int(np.prod(pair[0].shape))
    first = program.draw.choice([n for n in range(1, count + 1) if count % n == 0])
    rest = count // first
    second = program.draw.choice([n for n in range(1, rest + 1) if rest % n == 0])
    return program.both(pair, lambda x: x.reshape(first, second, rest // second))


def _permute(program: Program, pair: Pair) -> Pair:
    order = list(range(pair[0].ndim))
    program.draw.shuffle(order)
    return program.both(pair, lambda x: x.permute(*order))


def _pad(program: Program, pair: Pair) -> Pair:
    axis, amounts = program.axis(pair), program.draw.choice([(0, 2), (2, 0), (1, 1), (4, 4)])
    pairs = [amounts if at == axis else (0, 0) for at in range(pair[0].ndim)]
    return program.both(pair, lambda x: x.pad(pairs))


def _shrink(program: Program, pair: Pair) -> Pair | None:
    axis, shape = program.axis(pair), pair[0].shape
    extent = int(shape[axis])  # type: ignore[arg-type]
    if extent < 2:
        return None
    start = program.draw.randrange(extent - 1)
    ranges = [(0, e) for e in shape]
    ranges[axis] = (start, program.draw.randint(start + 1, extent))
    return program.both(pair, lambda x: x.shrink(ranges))


def _mark(program: Program, pair: Pair) -> Pair:
    known = tuple(int(extent) for extent in pair[0].shape)  # type: ignore[arg-type]
    return pair[0], pair[1].shard(program.mesh, program.spec(known))


def _take(program: Program, pair: Pair) -> Pair:
    axis = program.axis(pair)
    places = program.indices(pair[0].shape[axis], (program.draw.choice([2, 3, 4, 6]),))
    before = (slice(None),) * axis
    return pair[0][(*before, places[0])], pair[1][(*before, places[1])]


def _gather(program: Program, pair: Pair) -> Pair:
    axis = program.axis(pair)
    places = program.indices(pair[0].shape[axis], tuple(pair[0].shape))
    return pair[0].gather(axis, places[0]), pair[1].gather(axis, places[1])


def _scatter(program: Program, pair: Pair) -> Pair:
    axis, shape = program.axis(pair), pair[0].shape
    places = program.indices(5, tuple(shape))
    how, fill = program.draw.choice(["sum", "amax"]), float(program.draw.randrange(2))
    made = []
    for x, index, device in zip(pair, places, (program.device, program.mesh.name), strict=True):
        base = Tensor.full((*shape[:axis], 5, *shape[axis + 1 :]), fill, device=device)
        made.append(base.scatter_reduce(axis, index, x, how))
    return made[0], made[1]


STEPS: list[Callable[[Program, Pair], Pair | None]] = [
    _alone(Tensor.relu), _alone(lambda x: x * x), _alone(lambda x: (x > 0).where(x, 0)),
    _alone(Tensor.clone), _alone(lambda x: x.float().int().float()),
    _with_another(lambda x, y: x * y), _with_another(lambda x, y: x + y),
    _with_another(lambda x, y: x - y), _with_another(lambda x, y: x / (y * y + 1)),
    _along(lambda x, a: x.sum(a)), _along(lambda x, a: x.mean(a, keepdim=True)),
    _along(lambda x, a: x.max(a)), _along(lambda x, a: x.prod(a)),
    _along(lambda x, a: x.flip(a)), _along(lambda x, a: x.cumsum(a)),
    _along(lambda x, a: x.softmax(a)), _along(lambda x, a: (x * x + 1).log().var(a)),
    _along(lambda x, a: x.cat(x * 2, x + 1, -x, dim=a)),
    _along(lambda x, a: (lambda b: b[0].cat(*(y * y for y in b[1:]), dim=a))(x.split(1, a))),
    _along(lambda x, a: x - x.mean(a, keepdim=True)), _along(lambda x, a: x.sort(a)[0]),
    _along(lambda x, a: x.cat(x * 2, dim=a)), _along(lambda x, a: x.roll(1, a)),
    # (rounded: of values that differ only by rounding, either could be the maximum)
    _along(lambda x, a: x * (x * 3).round().argmax(a, keepdim=True)),
    _along(lambda x, a: x.unsqueeze(a).expand(*x.shape[:a], 2, *x.shape[a:])),
    _product, _product, _reshape, _permute, _pad, _shrink, _mark, _mark, _take, _gather, _scatter,
]  # fmt: skip
