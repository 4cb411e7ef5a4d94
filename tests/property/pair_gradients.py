"""Pairs that check gradients and movement without their own rules: by numerical differences, and by
indices that numpy computes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from minigrad import dtypes

from .compare import REFERENCE
from .graph_steps import make_graph
from .graphs import Graph, run
from .pair_draw import Draw
from .pairs import Pair

STEEP = re.compile(r"normalize|std|arg(max|min)|\(t\d+ (<|>=|!=|==) ")


@dataclass(frozen=True)
class Derivative:
    """A graph that ends with a loss and its gradients, which numerical differences must confirm.

    All is computed by REF in float64, since only the gradient rules are tested, which all devices
    share.
    """

    graph: Graph

    def problems(self, device: str) -> list[str]:
        """The leaves whose gradient differs from the loss's slope in a random direction."""
        found = []
        for statement in self.graph.statements:
            head, _, tail = statement.code.partition(".gradient(")
            if not tail:
                continue
            name = tail.partition(")")[0]
            (gradient,) = run(replace(self.graph, outputs=(statement.name,)), REFERENCE,
                              dtypes.float64)  # fmt: skip
            direction = np.random.default_rng(1).choice((-1.0, 1.0), gradient.shape)
            given = float((gradient * direction).sum())
            coarse, fine = (self._slope(head, name, step) for step in (2e-4, 1e-4))
            limit = 8 * abs(coarse - fine) + 1e-5 * (abs(fine) + np.abs(gradient).max(initial=1e-3))
            if not abs(given - fine) <= limit:
                found.append(f"{REFERENCE}, {statement.name}, gradient by {name}: {given} along a "
                             f"direction, by differences {fine} (limit {limit:.3g})")  # fmt: skip
        return found

    def _slope(self, loss: str, name: str, step: float) -> float:
        ends = [float(run(self._moved(loss, name, way), REFERENCE, dtypes.float64)[0])
                for way in (step, -step)]  # fmt: skip
        return (ends[0] - ends[1]) / (2 * step)

    def _moved(self, loss: str, name: str, step: float) -> Graph:
        signs = "__import__('numpy').random.default_rng(1).choice((-1.0, 1.0), {})"
        statements = tuple(
            replace(s, code=f"{s.code} + Tensor({signs.format(s.shape)} * {step!r}, device=device)")
            if s.name == name else s for s in self.graph.statements
        )  # fmt: skip
        return Graph(statements, (loss,)).needed()

    def script(self, device: str) -> str:
        """The graph as a program."""
        return self.graph.script(device)


def derivative(seed: int) -> Derivative:
    """The gradients of a random smooth graph without operations too steep for differences: a norm
    or deviation that may be 0, or the position of a value among equal ones.
    """
    while True:
        graph = make_graph(seed, most=16).needed()
        codes = " ".join(s.code for s in graph.statements)
        if ".gradient(" in codes and not STEEP.search(codes):
            return Derivative(graph)
        seed += 1_000_003


def moved(d: Draw) -> Pair:
    """A chain of views, and the same elements by index; weighted, so that positions matter."""
    while True:
        shape = d.shape(1 + d.below(3), 300)
        size = int(np.prod(shape))
        places = np.arange(size).reshape(shape)
        code = "{x}"
        for _ in range(1 + d.below(4)):
            step, places = _step(d, places, size)
            code = step.replace("{x}", code)
        if 0 < places.size <= 400:
            break
    x, y = d.operand(shape, "eighths"), d.leaf(places.shape, "eighths")
    zero = "Tensor.zeros(1, dtype=float_of('float32', real))"
    index = f"Tensor({places.reshape(-1).tolist()})"
    other = f"Tensor.cat({x}.flatten(), {zero})[{index}].reshape({places.shape})"
    return d.pair(f"{code.format(x=x)} * {y}", f"{other} * {y}")


def _step(d: Draw, places: np.ndarray, size: int) -> tuple[str, np.ndarray]:
    """One movement of {x} and of its elements' positions; position `size` holds 0."""
    axis, count = d.below(places.ndim), places.ndim
    n, kind = places.shape[axis], d.below(9)
    if kind == 0:
        return f"{{x}}.flip({axis})", np.flip(places, axis)
    if kind == 1:
        order = tuple(int(a) for a in d.random.permutation(count))
        return f"{{x}}.permute({order})", places.transpose(order)
    if kind == 2:
        start, stop = d.below(n), n - d.below(2)
        stop = max(stop, start + 1)
        key = ", ".join([":"] * axis + [f"{start}:{stop}"])
        return f"{{x}}[{key}]", places[(slice(None),) * axis + (slice(start, stop),)]
    if kind == 3:
        by = d.one_of((2, 3, -1, -2))
        return f"{{x}}[::{by}]", places[::by]
    if kind == 4:
        return f"{{x}}.reshape(({places.size},))", places.reshape(-1)
    if kind == 5:
        shape = (*places.shape[:-1], 2, places.shape[-1])
        view = np.broadcast_to(np.expand_dims(places, -2), shape)
        return f"{{x}}.unsqueeze(-2).expand({shape})", view
    if kind == 6:
        by = d.below(n + 1)
        return f"{{x}}.roll({by}, {axis})", np.roll(places, by, axis)
    if kind == 7:
        before, after = d.below(3), d.below(3)
        pairs = tuple((before, after) if a == axis else (0, 0) for a in range(count))
        return f"{{x}}.pad({pairs})", np.pad(places, pairs, constant_values=size)
    return f"{{x}}.repeat({(1,) * axis + (2,) + (1,) * (count - axis - 1)})", np.concatenate(
        (places, places), axis
    )
