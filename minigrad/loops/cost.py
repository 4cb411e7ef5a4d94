"""What a kernel must do at least, for reports: operations, vector instructions, bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from minigrad.graph.operations import SCATTERS, Op
from minigrad.graph.shapes import numel
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import Target


def operations(kernel: Kernel) -> int:
    """Evaluations of all bodies times what one costs."""
    return sum(
        stage.iterations * (expr.operations(stage.body) + (stage.op is not None))
        for stage in kernel.stages
    )


def flops(kernel: Kernel) -> int:
    """Arithmetic of a kernel whose loads feed many multiply-adds each: two for a multiply-add."""
    total = 0
    for stage in kernel.stages:
        inner = [e for e in expr.walk(stage.body) if e.args and e.op is not Op.CAST]
        total += stage.iterations * (sum(expr.cost(e.op) for e in inner) + (stage.op is not None))
    return total


def vectors(kernel: Kernel, target: Target, at_once: int = 1) -> float:
    """Vector instructions of a whole kernel.

    at_once: products that a lane of a contraction's instructions adds. What is done to a product's
    operands while they are packed is not counted.
    """
    total = 0.0
    for stage in kernel.stages:
        if kernel.kind == "contraction" and stage.contraction is not None:
            each = 1 / target.lanes(stage.body.dtype) / at_once
        else:
            each = vectors_each(stage, target)
        total += stage.iterations * each
    return total


def vectors_each(stage: Stage, target: Target) -> float:
    """Vector instructions for one element of a stage, a fraction.

    Each counts by its own dtype. A product that is only added to something is part of the addition;
    what is the same for all elements, and loads, which have ports of their own, count nothing.
    """
    order = expr.walk(stage.body)
    readers: dict[Expr, list[Op | Leaf]] = {}
    for e in order:
        for arg in e.args:
            readers.setdefault(arg, []).append(e.op)
    if stage.op is not None:
        readers.setdefault(stage.body, []).append(Op.ADD if stage.op is Op.SUM else stage.op)
    total = 0.0 if stage.op is None else 1 / target.lanes(stage.body.dtype)
    for e in order:
        joined = e.op is Op.MUL and e.dtype.is_float and readers.get(e) in ([Op.ADD], [Op.SUB])
        if e.args and e.variables and not joined:
            lanes = min(target.lanes(x.dtype) for x in (e, *e.args))
            total += expr.cost(e.op) / lanes
    return total


def traffic(kernel: Kernel, arrays: Iterable[Array]) -> int:
    """Bytes of `arrays` that a kernel reads and writes: of a gather's table, the rows taken."""
    read: Counter[Array] = Counter()
    written: Counter[Array] = Counter()
    for stage in kernel.stages:
        extents = {
            a.variable: a.extent for a in (*stage.axes, *stage.reduced, *stage.initial_axes)
        }
        for load in expr.loads(*stage.exprs()):
            inside = load.variables
            read[load.array] += numel([n for v, n in extents.items() if v in inside])
        updates = stage.iterations if stage.op in SCATTERS else 0
        written[stage.array] += max(stage.size, updates)
        read[stage.array] += updates
    return sum(
        array.dtype.itemsize * (min(read[array], array.size) + min(written[array], array.size))
        for array in arrays
    )
