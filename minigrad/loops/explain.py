"""A recipe step by step, with the gain that is expected from each step:

    python -m minigrad.loops.explain gemm 512 512 512      rows, depth, columns
    python -m minigrad.loops.explain gemm 512 512 512 --transposed left
    python -m minigrad.loops.explain columns 4096 512      sums of 512 columns of 4096 rows

    python -m minigrad.loops.explain gemm 512 512 512 --gpu

The loops are for a processor with AVX-512, for one whose vectors have as many bytes as `--vectors`
says, or for work-groups (`--gpu`, without cycles). Cycles are for one core, from `estimate` in
cost.py: they show what a step is for, not what it would measure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Node, Op
from minigrad.graph.simplify import simplify
from minigrad.loops import transforms
from minigrad.loops.cost import estimate
from minigrad.loops.nest import Statements, show, show_statements
from minigrad.loops.recipes import lower
from minigrad.schedule.schedule import schedule
from minigrad.target import Group, Target

DEVICE = "CPU"  # nodes need the name of a device; nothing runs on it


Make = Callable[[Sequence[int], Sequence[str]], tuple[Node, int]]


def gemm(extents: Sequence[int], transposed: Sequence[str]) -> tuple[Node, int]:
    """A product of (m, k) and (k, n); the root, and its number of inputs."""
    m, k, n = extents
    operands = []
    for slot, (name, rows, columns) in enumerate((("left", m, k), ("right", k, n))):
        shape = (columns, rows) if name in transposed else (rows, columns)
        x = g.buffer(slot, dtypes.float32, shape, DEVICE)
        x = g.permute(x, (1, 0)) if name in transposed else x
        spread = (m, k, 1) if name == "left" else (1, k, n)
        operands.append(g.expand(g.reshape(x, spread), (m, k, n)))
    total = g.reduce(Op.SUM, g.elementwise(Op.MUL, *operands), [1])
    return g.reshape(total, (m, n)), 2


def columns(extents: Sequence[int], transposed: Sequence[str]) -> tuple[Node, int]:
    """Sums over the rows of an array (rows, count)."""
    return g.reduce(Op.SUM, g.buffer(0, dtypes.float32, tuple(extents), DEVICE), [0]), 1


KINDS: dict[str, tuple[Make, int]] = {"gemm": (gemm, 3), "columns": (columns, 2)}


def see(target: Target, step: str, body: Statements) -> None:
    """Print the loops after a step, and their cost."""
    sys.stdout.write(f"{step}\n{show_statements(body)}\n{costs(target, body)}\n")


def costs(target: Target, body: Statements) -> str:
    """The cost of loops on a processor, as a line."""
    if target.group is not None:
        return ""
    cost = estimate(body, target)
    return (
        f"  → {cost.cycles:,.0f} cycles: {cost.arithmetic:,.0f} vector instructions,"
        f" {cost.loads:,.0f} loads, {cost.stores:,.0f} stores,"
        f" {cost.waiting:,.0f} cycles waiting for sums\n"
    )


def main() -> None:
    """Print the steps of the recipe of each requested kernel, and the nest at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m minigrad.loops.explain", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("extents", type=int, nargs="+")
    parser.add_argument("--transposed", nargs="*", default=[], choices=["left", "right"])
    parser.add_argument("--vectors", type=int, default=64, help="bytes per vector register")
    parser.add_argument("--gpu", action="store_true", help="write loops for work-groups of a GPU")
    given = parser.parse_args()
    make, count = KINDS[given.kind]
    if len(given.extents) != count or min(given.extents) < 1:
        parser.error(f"{given.kind}: expected {count} ints ≥ 1, got {given.extents}")
    target = Target(given.vectors, 32 if given.vectors == 64 else 16, 1 << 15, 1 << 20)
    if given.gpu:
        target = replace(target, vector_bytes=0, group=Group(256, 48 << 10, 4))
    transforms.watching.see = partial(see, target)
    root, inputs = make(given.extents, given.transposed)
    graph = Graph((root,), (inputs,), inputs + 1, (), DEVICE)
    for kernel in schedule(graph, simplify(graph.roots), target).kernels:
        nest = lower(kernel, target)
        sys.stdout.write(f"{show(nest)}\n{costs(target, (nest.parallel,))}\n")


if __name__ == "__main__":
    main()
