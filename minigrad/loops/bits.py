"""Two-byte floats that a kernel only moves, negates or reads as integers stay bits.

In registers float16 and bfloat16 are floats, so loads and stores convert them. That may lose the
payload of a NaN. It also costs time if a value is only copied, or holds the bits of integers. So
arrays of such numbers are read and written as uint16 if nothing computes with them. (An array that
is used in both ways becomes two arrays that share their memory.)
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
    """The kernel with uint16 instead of two-byte floats with which it does not compute."""
    has_some = any(
        stage.array.dtype in CONVERTED or any(e.dtype in CONVERTED for e in expr.walk(stage.body))
        for stage in kernel.stages
    )
    return _Views(kernel).changed() if has_some else kernel


class _Views:
    """Rewrites the stages of a kernel, one after the other."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.written = {stage.array for stage in kernel.stages}
        self.stored: dict[Array, Array] = {}  # arrays that this kernel writes as bits

    def changed(self) -> Kernel:
        """The kernel with rewritten stages."""
        stages = tuple(self._stage(stage) for stage in self.kernel.stages)
        stored = frozenset(self.stored.get(array, array) for array in self.kernel.stored)
        return replace(self.kernel, stages=stages, stored=stored)

    def _stage(self, stage: Stage) -> Stage:
        array, (body, bits) = stage.array, self._rewritten(stage.body)
        initial = None if stage.initial is None else self._rewritten(stage.initial)[0]
        if bits is not None and stage.op is None:
            self.stored[array] = array = view(array)
            body = bits
        return replace(stage, array=array, body=body, initial=initial)

    def _rewritten(self, root: Expr) -> tuple[Expr, Expr | None]:
        """An expression with its bitcasts rewritten; and its bits, if they need no float."""
        new: dict[Expr, Expr] = {}
        bits: dict[Expr, Expr | None] = {}
        for e in expr.walk(root):
            found = self._bits(e, new, bits) if e.dtype in CONVERTED else None
            inner = bits[e.args[0]] if e.op is Op.BITCAST else None
            if inner is not None:
                new[e] = bitcast(inner, e.dtype)
            elif found is not None and e.op is Leaf.LOAD and e.array in self.stored:
                new[e] = bitcast(found, e.dtype)
            else:
                new[e] = expr.with_operands(e, new)
            bits[e] = found
        return new[root], bits[root]

    def _bits(
        self, e: Expr, new: dict[Expr, Expr], bits: dict[Expr, Expr | None]
    ) -> Expr | None:
        """The bits of a float, if they can be computed without it."""
        if e.op is Leaf.LOAD:
            load = expr.with_operands(e, new)
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
