"""A recipe step by step, with what each step is expected to bring:

    python -m minigrad.loops.explain gemm 512 512 512      rows, depth, columns
    python -m minigrad.loops.explain gemm 512 512 512 --transposed left
    python -m minigrad.loops.explain columns 4096 512      sums of 512 columns of 4096 rows

The loops are those for a processor with AVX-512, or for one whose vectors have so many bytes as
`--vectors` says. The cycles are those of one core, by cost.py's `estimate`: enough to see what a
step is for, not what it measures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Node, Op
from minigrad.graph.simplify import simplify
from minigrad.loops import transforms
from minigrad.loops.cost import estimate
from minigrad.loops.nest import Statement, show, show_statements
from minigrad.loops.recipes import lower
from minigrad.schedule.schedule import schedule
from minigrad.target import Target

DEVICE = "CPU"  # nodes want the name of a device; nothing runs on it


Make = Callable[[Sequence[int], Sequence[str]], tuple[list[Node], int]]


def gemm(extents: Sequence[int], transposed: Sequence[str]) -> tuple[list[Node], int]:
    """A product of (m, k) and (k, n); the root, and how many inputs it has."""
    m, k, n = extents
    shapes = {"left": (m, k), "right": (k, n)}
    operands = []
    for slot, (name, shape) in enumerate(shapes.items()):
        flipped = name in transposed
        x = g.buffer(slot, dtypes.float32, shape[::-1] if flipped else shape, DEVICE)
        operands.append(g.permute(x, (1, 0)) if flipped else x)
    left, right = (
        g.expand(g.reshape(x, shape), (m, k, n))
        for x, shape in zip(operands, ((m, k, 1), (1, k, n)), strict=True)
    )
    total = g.reduce(Op.SUM, g.elementwise(Op.MUL, left, right), [1])
    return [g.reshape(total, (m, n))], 2


def columns(extents: Sequence[int], transposed: Sequence[str]) -> tuple[list[Node], int]:
    """Sums over the rows of an array (rows, count)."""
    return [g.reduce(Op.SUM, g.buffer(0, dtypes.float32, tuple(extents), DEVICE), [0])], 1


KINDS: dict[str, tuple[Make, int]] = {"gemm": (gemm, 3), "columns": (columns, 2)}


def explain(roots: Sequence[Node], inputs: int, target: Target) -> str:
    """The steps of the recipe of a program's kernels, and the nests that they end with."""
    graph = Graph(tuple(roots), (inputs,), inputs + 1, (), DEVICE)
    lines: list[str] = []

    def see(step: str, body: tuple[Statement, ...]) -> None:
        cost = estimate(body, target)
        lines.append(f"{step}\n{show_statements(body)}")
        lines.append(
            f"  → {cost.cycles:,.0f} cycles: {cost.arithmetic:,.0f} vector instructions,"
            f" {cost.loads:,.0f} loads, {cost.stores:,.0f} stores,"
            f" {cost.waiting:,.0f} cycles of waiting for sums\n"
        )

    transforms.watchers.append(see)
    try:
        for kernel in schedule(graph, simplify(graph.roots), target).kernels:
            nest = lower(kernel, target)
            cost = estimate((nest.parallel,), target)
            lines.append(f"{show(nest)}\n  → {cost.cycles:,.0f} cycles\n")
    finally:
        transforms.watchers.remove(see)
    return "\n".join(lines)


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m minigrad.loops.explain", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("extents", type=int, nargs="+")
    parser.add_argument("--transposed", nargs="*", default=[], choices=["left", "right"])
    parser.add_argument("--vectors", type=int, default=64, help="bytes of a vector")
    given = parser.parse_args()
    make, count = KINDS[given.kind]
    if len(given.extents) != count or min(given.extents) < 1:
        parser.error(f"{given.kind}: expected {count} numbers from 1 on, got {given.extents}")
    target = Target(given.vectors, 32 if given.vectors == 64 else 16, 1 << 15, 1 << 20)
    sys.stdout.write(explain(*make(given.extents, given.transposed), target))


if __name__ == "__main__":
    main()
