"""Numbers of two bytes that a kernel moves, negates or looks at as integers stay as they are.

In registers float16 and bfloat16 are floats, so to load and to store one converts it: what a NaN
says besides that it is one may be lost on the way, and where the value is only copied, or was
integers' bits, time is too. A kernel's arrays of such numbers are therefore read and written as
uint16 where nothing computes with them. (One that is read in both ways is two arrays, which share
their memory.)
"""

from __future__ import annotations

import struct
from dataclasses import replace

from minigrad.dtype import DType, dtypes
from minigrad.graph.node import Op
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage

CONVERTED = (dtypes.float16, dtypes.bfloat16)


def kept_as_bits(kernel: Kernel) -> Kernel:
    """The kernel with uint16 in place of every float of two bytes that is not computed with."""
    has_some = any(
        stage.array.dtype in CONVERTED or any(e.dtype in CONVERTED for e in expr.walk(stage.body))
        for stage in kernel.stages
    )
    return _Views(kernel).changed() if has_some else kernel


class _Views:
    """Rewrites the stages of a kernel, one after the other."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.written = {stage.array: n for n, stage in enumerate(kernel.stages)}
        self.read: dict[Array, list[int]] = {}  # by which stages
        self.fixed: set[Array] = set()  # read to find the place of a scatter
        for n, stage in enumerate(kernel.stages):
            for array in stage.reads:
                self.read.setdefault(array, []).append(n)
            places = [e for x in (stage.position, *stage.guard) for e in expr.values_in(x)]
            self.fixed.update(load.array for load in expr.loads(*places))
        self.stored: dict[Array, Array] = {}  # what this kernel writes as bits

    def changed(self) -> Kernel:
        """The kernel of new stages."""
        stages = tuple(self._stage(stage) for stage in self.kernel.stages)
        stored = frozenset(self.stored.get(array, array) for array in self.kernel.stored)
        return replace(self.kernel, stages=stages, stored=stored)

    def _stage(self, stage: Stage) -> Stage:
        array, number = stage.array, self.written[stage.array]
        body, bits = self._rewritten(stage.body)
        initial = None if stage.initial is None else self._rewritten(stage.initial)[0]
        readers = self.read.get(array, ())
        later = array not in self.fixed and all(n > number for n in readers)
        if bits is not None and stage.op is None and later:
            if not readers or any(e.op is Op.BITCAST for e in expr.walk(stage.body)):
                self.stored[array] = array = view(array)
                body = bits
        return replace(stage, array=array, body=body, initial=initial)

    def _rewritten(self, root: Expr) -> tuple[Expr, Expr | None]:
        """An expression with its bitcasts changed, and its bits where it need not be computed."""
        new: dict[Expr, Expr] = {}
        bits: dict[Expr, Expr | None] = {}
        for e in expr.walk(root):
            found = self._bits(e, new, bits) if e.dtype in CONVERTED else None
            inner = bits[e.args[0]] if e.op is Op.BITCAST else None
            if inner is not None:
                new[e] = bitcast(inner, e.dtype)
            elif found is not None and e.op is Leaf.LOAD and e.array in self.stored:
                new[e] = bitcast(found, e.dtype)
            elif e.args:
                new[e] = expr.apply(e.op, tuple(new[arg] for arg in e.args), e.dtype)
            else:
                new[e] = expr.with_new_indices(e, new)
            bits[e] = found
        return new[root], bits[root]

    def _bits(
        self, e: Expr, new: dict[Expr, Expr], bits: dict[Expr, Expr | None]
    ) -> Expr | None:
        """A float's bits, where they can be had without it."""
        if e.op is Leaf.LOAD:
            load = expr.with_new_indices(e, new)
            if load.array in self.written and load.array not in self.stored:
                return None
            return expr.load(view(load.array), load.index, load.guard)
        if e.op is Op.CONST:
            return expr.const(bits_of(e.value, e.dtype), dtypes.uint16)
        if e.op is Op.BITCAST:  # of integers, or of the other kind of floats
            return bits[e.args[0]] or bitcast(new[e.args[0]], dtypes.uint16)
        if e.op is Op.NEG and (inner := bits[e.args[0]]) is not None:
            return inner ^ 0x8000
        if e.op is Op.WHERE:
            yes, no = (bits[arg] for arg in e.args[1:])
            if yes is not None and no is not None:
                return new[e.args[0]].where(yes, no)
        return None


def view(array: Array) -> Array:
    """The same memory as uint16."""
    return replace(array, dtype=dtypes.uint16, of=array)


def bitcast(e: Expr, dtype: DType) -> Expr:
    """The bits of a number of two bytes as another dtype."""
    return e if e.dtype is dtype else e.bits_as(dtype)


def bits_of(value: float, dtype: DType) -> int:
    """The bits of a number that is a float16 or bfloat16."""
    if dtype is dtypes.float16:
        return int.from_bytes(struct.pack("<e", value), "little")
    return int.from_bytes(struct.pack("<f", value), "little") >> 16
