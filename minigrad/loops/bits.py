"""Numbers of two bytes that a kernel moves, negates or looks at as integers stay as they are.

In registers float16 and bfloat16 are floats, so to load and to store one converts it: what a NaN
says besides that it is one may be lost on the way, and where the value is only copied, or was
integers' bits, time is too. A kernel's arrays of such numbers are therefore read and written as
uint16 where nothing computes with them. (One that is read in both ways is two arrays, which share
their memory.)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
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
    stages = kernel.stages
    if not any(a.dtype in CONVERTED for stage in stages for a in (stage.array, *stage.reads)):
        return kernel
    first: dict[Array, int] = {}  # the stage that reads it first
    fixed: set[Array] = set()  # read to find the place of a scatter
    for n, stage in enumerate(stages):
        first = dict.fromkeys(stage.reads, n) | first
        places = [e for x in (stage.position, *stage.guard) for e in expr.values_in(x)]
        fixed.update(load.array for load in expr.loads(*places))
    made = {stage.array: stage.array for stage in stages}  # as what the kernel writes it
    changed: list[Stage] = []
    for n, stage in enumerate(stages):
        array = stage.array
        body, bits = _rewritten(stage.body, made)
        initial = None if stage.initial is None else _rewritten(stage.initial, made)[0]
        later = array not in fixed and first.get(array, n + 1) > n
        if bits is not None and stage.op is None and later:
            if array not in first or any(e.op is Op.BITCAST for e in expr.walk(stage.body)):
                made[array], body = view(array), bits
        changed.append(replace(stage, array=made[array], body=body, initial=initial))
    stored = frozenset(made[array] for array in kernel.stored)
    return replace(kernel, stages=tuple(changed), stored=stored)


def _rewritten(root: Expr, made: Mapping[Array, Array]) -> tuple[Expr, Expr | None]:
    """An expression with its bitcasts changed, and its bits where it need not be computed.

    made: what the arrays are that the kernel itself writes.
    """
    new: dict[Expr, Expr] = {}
    bits: dict[Expr, Expr | None] = {}
    for e in expr.walk(root):
        found = _bits(e, new, bits, made) if e.dtype in CONVERTED else None
        inner = bits[e.args[0]] if e.op is Op.BITCAST else None
        if inner is not None:
            new[e] = bitcast(inner, e.dtype)
        elif found is not None and e.op is Leaf.LOAD and e.array in made:
            new[e] = bitcast(found, e.dtype)
        elif e.args:
            new[e] = expr.apply(e.op, tuple(new[arg] for arg in e.args), e.dtype)
        else:
            new[e] = expr.with_new_indices(e, new)
        bits[e] = found
    return new[root], bits[root]


def _bits(
    e: Expr, new: Mapping[Expr, Expr], bits: Mapping[Expr, Expr | None],
    made: Mapping[Array, Array],
) -> Expr | None:  # fmt: skip
    """A float's bits, where they can be had without it."""
    if e.op is Leaf.LOAD:
        load = expr.with_new_indices(e, new)
        stays = made.get(load.array) is load.array
        return None if stays else expr.load(view(load.array), load.index, load.guard)
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
