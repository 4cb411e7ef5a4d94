"""What blocks of rows add to, one after the other, and what is done with it after the last one.

The gradients of keys and values are such sums: over the queries of a head. One thread does all of
a head's blocks, so they are added in one order.
"""

from __future__ import annotations

from dataclasses import replace

from minigrad.graph.shapes import flatten, numel
from minigrad.loops.axes import fix_rows
from minigrad.loops.build import lanes_loop, loops_over
from minigrad.loops.cost import choose_nr
from minigrad.loops.nest import Statement, Store
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import Target


class BlockSums:
    """The sums of a kernel of blocks, for one number of the outer axis.

    stages: what a row adds to each, by array, with the row as what is reduced. Sums that only their
    ends read are in scratch memory. stored: the arrays that the kernel's loops store to.
    """

    def __init__(self, kernel: Kernel, outer: Axis, row: Axis, target: Target) -> None:
        self.outer, self.target = outer, target
        self.stages: dict[Array, Stage] = {}
        self.scratch: dict[Array, Array] = {}
        self.ends: list[Stage] = []
        for stage in kernel.stages:
            if stage.array not in kernel.sums:
                continue
            fixed = fix_rows(stage, outer.extent, outer.index)
            if stage.op is None:
                body = expr.rebuild(fixed.body, self._moved)
                self.ends.append(replace(fixed, body=body))
                continue
            (reduced,) = stage.reduced
            body = expr.substitute_in(fixed.body, {reduced.variable: row.index})
            fixed = replace(fixed, reduced=(row,), body=body)
            if stage.array not in kernel.stored:
                extents = [axis.extent for axis in fixed.axes]
                name, dtype = f"all_{len(self.scratch)}", stage.array.dtype
                array = Array(name, dtype, numel(extents), "scratch")
                self.scratch[stage.array] = array
                place = flatten([axis.index for axis in fixed.axes], extents)
                fixed = replace(fixed, array=array, position=place)
            self.stages[stage.array] = fixed
        self.stored = kernel.stored | frozenset(self.scratch.values())

    def _moved(self, e: Expr) -> Expr | None:
        if e.op is not Leaf.LOAD or e.array not in self.scratch:
            return None
        array = self.scratch[e.array]
        return expr.load(array, e.index - self.outer.index * array.size)

    def clear(self) -> list[Statement]:
        """Zeros, to which blocks add."""
        return [
            self._each(stage, expr.const(0, stage.array.dtype)) for stage in self.stages.values()
        ]

    def finish(self) -> list[Statement]:
        """What is made of the sums."""
        return [self._each(stage, stage.body) for stage in self.ends]

    def _each(self, stage: Stage, value: Expr) -> Statement:
        *outer, axis = stage.axes
        width = choose_nr(self.target, stage, axis.count)
        store = Store(stage.array, stage.position, value)
        (loop,) = loops_over(outer, [lanes_loop(axis, width, (store,))])
        return loop
