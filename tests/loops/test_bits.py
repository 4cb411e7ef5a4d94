"""Two-byte floats that are only moved, chosen or reinterpreted keep every bit, also of NaNs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from schedule.machine import GOLDEN, run, target_of
from schedule.programs import Inputs, add, ew, graph_of, number, transpose

from minigrad.compile import schedule_of
from minigrad.dtype import ALL, DType, convert, dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.loops.bits import bits_of, kept_as_bits
from minigrad.loops.recipes import lower
from minigrad.runtimes.reference import evaluate, numpy_dtype

F16, BF16, U16, I16 = dtypes.float16, dtypes.bfloat16, dtypes.uint16, dtypes.int16
ALL_BITS = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def floats(new: Inputs, dtype: DType) -> Node:
    return new(256, 256, dtype=dtype)


def from_integers(new: Inputs, dtype: DType) -> list[Node]:
    return [g.bitcast(new(256, 256, dtype=I16), dtype)]


def to_integers(new: Inputs, dtype: DType) -> list[Node]:
    return [add(g.bitcast(floats(new, dtype), U16), 1)]


def to_the_other(new: Inputs, dtype: DType) -> list[Node]:
    return [g.bitcast(floats(new, dtype), F16 if dtype is BF16 else BF16)]


def between_integers(new: Inputs, dtype: DType) -> list[Node]:
    """Moved as floats, between integers in memory."""
    return [g.bitcast(transpose(g.bitcast(new(256, 256, dtype=U16), dtype)), I16)]


def copy(new: Inputs, dtype: DType) -> list[Node]:
    return [g.contiguous(transpose(floats(new, dtype)))]


def padded(new: Inputs, dtype: DType) -> list[Node]:
    return [g.contiguous(g.pad(floats(new, dtype), ((1, 0), (2, 3))))]


def chosen(new: Inputs, dtype: DType) -> list[Node]:
    """A choice between a float in memory, a number, and the bits of integers."""
    x, bits, test = floats(new, dtype), new(256, 256, dtype=U16), new(256, 256, dtype=dtypes.int8)
    made = ew(Op.WHERE, ew(Op.LT, test, 0), number(-1.5, x), g.bitcast(add(bits, 1), dtype))
    return [ew(Op.WHERE, ew(Op.EQ, test, 0), x, made)]


def negated(new: Inputs, dtype: DType) -> list[Node]:
    return [ew(Op.NEG, floats(new, dtype))]


def also_computed(new: Inputs, dtype: DType) -> list[Node]:
    """Bits of integers whose value as floats is also computed with, and bits of floats likewise."""
    x, bits = floats(new, dtype), new(256, 256, dtype=U16)
    made = g.bitcast(add(bits, 3), dtype)
    return [made, add(made, made), add(g.bitcast(x, U16), 5), add(x, x)]


def copied_and_computed(new: Inputs, dtype: DType) -> list[Node]:
    """A copy with which another stage of its kernel computes."""
    copied = g.contiguous(g.permute(floats(new, dtype), (1, 0)))
    return [copied, add(copied, copied)]


PROGRAMS: list[Callable[[Inputs, DType], list[Node]]] = [
    from_integers, to_integers, to_the_other, between_integers, copy, padded, chosen, negated,
    also_computed, copied_and_computed,
]  # fmt: skip


@pytest.mark.parametrize("machine", ["avx512", "avx2", "sse2"])
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_every_bit_is_kept(program, dtype, machine):
    graph, inputs = graph_of(lambda new: program(new, dtype))
    values = {}
    for slot, node in enumerate(inputs.nodes):
        bits = np.roll(ALL_BITS, 77 * slot)
        kind = numpy_dtype(node.dtype)
        values[slot] = bits.view(kind) if kind.itemsize == 2 else (bits % 3).astype(kind) - 1
    for root, got, wanted in zip(
        graph.roots, run(graph, values, machine), evaluate(graph.roots, values, {}), strict=True
    ):
        if root.op in (Op.ADD, Op.NEG) and root.dtype is dtype:  # a computed NaN may have any bits
            got, wanted = got.astype(np.float32), wanted.astype(np.float32)
            np.testing.assert_array_equal(got, wanted)
        else:
            np.testing.assert_array_equal(got.view(np.uint16), wanted.view(np.uint16))


def nest_of(program, dtype):
    (kernel,) = schedule_of(graph_of(lambda new: program(new, dtype))[0], GOLDEN).kernels
    return lower(kernel, target_of("avx2"))


def test_what_is_moved_is_not_converted():
    for program in PROGRAMS[:-2]:
        nest = nest_of(program, BF16)
        assert not {BF16, F16} & {array.dtype for array in nest.arrays}, program


def test_what_is_read_in_both_ways_is_two_arrays_of_one_memory():
    nest = nest_of(lambda new, dtype: also_computed(new, dtype)[2:], F16)
    read = [array for array in nest.arrays if array.name == "s0"]
    assert {array.dtype for array in read} == {F16, U16}
    assert len({array for array in nest.buffers if array.name == "s0"}) == 1


def test_kernels_without_such_numbers_stay_as_they_are():
    plan = schedule_of(graph_of(lambda new: [add(new(4), 1)])[0], GOLDEN)
    assert all(kept_as_bits(kernel) is kernel for kernel in plan.kernels)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_bits_of_numbers(dtype):
    assert dtype in ALL
    for value in (0.0, -0.0, 1.0, -2.5, 65504.0, 1e-7, float("inf"), float("-inf")):
        number = convert(value, dtype)
        wanted = np.array(number, np.float64).astype(numpy_dtype(dtype)).view(np.uint16)
        assert bits_of(number, dtype) == int(wanted)
    assert np.isnan(np.uint16(bits_of(float("nan"), dtype)).view(numpy_dtype(dtype)))
