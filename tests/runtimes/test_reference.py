"""REF beyond the meaning of operations (tests/property compares that with numpy): edges of narrow
floats, sums in their own dtype, indices of every dtype, symbolic shapes, programs, memory.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from devices import REFERENCE

from minigrad.device import Buffer, Device
from minigrad.dtype import ALL, FLOATS, INTS, dtypes
from minigrad.errors import DeviceError, ShapeError
from minigrad.graph import build
from minigrad.graph.build import elementwise
from minigrad.graph.node import Op
from minigrad.graph.symbolic import var
from minigrad.graph.variable import Variable
from minigrad.program import realize
from minigrad.runtimes.reference import MEANING, evaluate, numpy_dtype

DEVICE = REFERENCE
NAN, INF = math.nan, math.inf


def array(values, dtype):
    """A BUFFER node on REF that holds these values."""
    data = np.array(values, numpy_dtype(dtype))
    memory = Buffer(DEVICE, dtype, data.size)
    memory.copy_in(data.tobytes())
    return build.buffer(memory, dtype, data.shape, DEVICE)


def compute(node):
    """The value of a node by the whole path: canonical graph, program, buffers."""
    (result,) = realize([node], [])
    raw = np.frombuffer(result.arg.copy_out(), numpy_dtype(node.dtype))
    return raw.reshape(node.shape)


def table(op, dtype, *columns):
    return compute(elementwise(op, *(array(column, dtype) for column in columns))).tolist()


def same(found, expected):
    """Equal element by element, NaN equal to NaN, and zeros of equal sign."""
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        np.signbit(np.array(found, np.float64)) & (np.array(found) == 0),
        np.signbit(np.array(expected, np.float64)) & (np.array(expected) == 0),
    )


def test_every_operation_has_a_meaning():
    """Except a MARK, which only a mesh's graph has, until it is divided; and loops, of which a
    program sees one step at a time.
    """
    assert set(MEANING) | {Op.BUFFER, Op.MARK, Op.LOOP, Op.RESULT} == set(Op)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
def test_float_edges(dtype):
    same(table(Op.MOD, dtype, [7, -7, 7, -7, 1, -1, 5, INF], [3, 3, -3, -3, INF, INF, 0, 2]),
         [1, 2, -2, -1, 1, INF, NAN, NAN])  # fmt: skip
    same(table(Op.MAXIMUM, dtype, [1, NAN, 1, -INF], [2, 1, NAN, -INF]), [2, NAN, NAN, -INF])
    same(table(Op.MINIMUM, dtype, [1, NAN, 1, INF], [2, 1, NAN, INF]), [1, NAN, NAN, INF])
    same(table(Op.DIV, dtype, [1, -1, 0, 1], [0, 0, 0, INF]), [INF, -INF, NAN, 0])
    same(table(Op.SQRT, dtype, [4, -0.0, -1, INF]), [2, -0.0, NAN, INF])
    same(table(Op.LOG, dtype, [1, 0, -1, INF]), [0, -INF, NAN, INF])
    same(table(Op.EXP, dtype, [0, -INF, INF, 1e4]), [1, 0, INF, INF])
    same(table(Op.TANH, dtype, [0, -INF, INF, NAN]), [0, -1, 1, NAN])
    same(table(Op.ERF, dtype, [-0.0, -INF, INF, NAN]), [-0.0, -1, 1, NAN])
    same(table(Op.ROUND, dtype, [0.5, 1.5, 2.5, -0.5, -1.5]), [0, 2, 2, -0.0, -2])
    same(table(Op.FLOOR, dtype, [1.5, -1.5, -0.0]), [1, -2, -0.0])
    same(table(Op.CEIL, dtype, [1.5, -1.5, -0.5]), [2, -1, -0.0])
    same(table(Op.TRUNC, dtype, [1.5, -1.5, -0.5]), [1, -1, -0.0])
    same(table(Op.POW, dtype, [2, 0, 0, -2, -2, 9], [3, 0, -1, 3, 0.5, 0.5]),
         [8, 1, INF, -8, NAN, 3])  # fmt: skip
    same(table(Op.NEG, dtype, [0.0, -0.0, 1]), [-0.0, 0.0, -1])
    assert table(Op.LT, dtype, [1, NAN, -0.0], [2, 1, 0.0]) == [True, False, False]
    assert table(Op.EQ, dtype, [1, NAN, -0.0], [1, NAN, 0.0]) == [True, False, True]
    assert table(Op.NE, dtype, [1, NAN, -0.0], [1, NAN, 0.0]) == [False, True, False]
    assert table(Op.LE, dtype, [1, NAN, 0.0], [1, NAN, -0.0]) == [True, False, True]


def test_narrow_floats_are_rounded_once():
    """1 + 2⁻⁹ + 2⁻⁹ …: with an intermediate bfloat16 each addend would be lost."""
    third = table(Op.DIV, dtypes.float16, [1.0], [3.0])
    assert third == [float(np.float16(1) / np.float16(3))]
    many = compute(build.reduce(Op.SUM, array([1.0] + [2**-9] * 512, dtypes.bfloat16), (0,)))
    assert many.astype(np.float64).tolist() == [2.0]
    many = compute(build.reduce(Op.SUM, array([0.1] * 10_000, dtypes.float16), (0,)))
    assert many.astype(np.float64).tolist() == [1000.0]  # 999.75… to the nearest half


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16], ids=lambda dtype: dtype.name)
def test_a_chosen_nan_keeps_its_bits(dtype):
    bits = [0x7F81, 0xFFC3, 0x7C01, 0xFC02]
    x, y = (build.bitcast(array(b, dtypes.uint16), dtype) for b in (bits, bits[::-1]))
    chosen = elementwise(Op.WHERE, array([True, False, True, False], dtypes.bool), x, y)
    wanted = [0x7F81, 0x7C01, 0x7C01, 0x7F81]
    assert compute(build.bitcast(chosen, dtypes.uint16)).tolist() == wanted


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.name)
def test_reductions_over_nothing(dtype):
    x = array(np.zeros((2, 0, 3)), dtype)
    identities = {Op.SUM: 0, Op.PROD: 1, Op.MAX: dtype.minimum}
    for op, identity in identities.items():
        assert (compute(build.reduce(op, x, (1,))) == np.full((2, 1, 3), identity)).all()
        assert compute(build.reduce(op, x, (0,))).shape == (1, 0, 3)


def test_reductions_stay_in_their_dtype():
    assert compute(build.reduce(Op.SUM, array([100, 100], dtypes.int8), (0,))).tolist() == [-56]
    assert compute(build.reduce(Op.PROD, array([100, 100], dtypes.uint8), (0,))).tolist() == [16]
    assert compute(build.reduce(Op.MAX, array([-5, -3], dtypes.int8), (0,))).tolist() == [-3]
    same(compute(build.reduce(Op.MAX, array([1, NAN, 3], dtypes.float32), (0,))), [NAN])
    same(compute(build.reduce(Op.MAX, array([-INF, -INF], dtypes.bfloat16), (0,))), [-INF])


@pytest.mark.parametrize("index_dtype", INTS, ids=lambda dtype: dtype.name)
def test_gather(index_dtype):
    x = array([[1, 2], [3, 4], [5, 6]], dtypes.float32)
    far = [int(index_dtype.maximum), int(index_dtype.minimum)]
    index = array([[0, 2], [3, 1], far], index_dtype)
    last = [0, 0] if index_dtype.kind == "i" else [0, 2]
    assert compute(build.gather(x, index, 0)).tolist() == [[1, 6], [0, 4], last]
    along = build.gather(x, array([[1], [0], [2]], index_dtype), 1)
    assert compute(along).tolist() == [[2], [3], [0]]


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.name)
def test_scatter_add(dtype):
    base, x = array([[1, 0], [0, 1]], dtype), array([[1, 1], [1, 0], [0, 1]], dtype)
    index = array([[0, 1], [0, -1], [2, 1]], dtypes.int32)
    expected = [[3, 0], [0, 3]] if not dtype.is_bool else [[True, False], [False, True]]
    assert compute(build.scatter_add(base, index, x, 0)).tolist() == expected
    assert compute(base).tolist() == [[1, 0], [0, 1]]


def test_addressing_nothing():
    empty = array(np.zeros((0, 2)), dtypes.float32)
    index = array([[0, 1]], dtypes.int32)
    assert compute(build.gather(empty, index, 0)).tolist() == [[0, 0]]
    assert compute(build.scatter_add(empty, index, array([[1, 1]], dtypes.float32), 0)).size == 0
    none = array(np.zeros((0, 2)), dtypes.int32)
    assert compute(build.gather(index, none, 0)).shape == (0, 2)


def test_sources():
    assert compute(build.iota(4, DEVICE, dtypes.bfloat16)).tolist() == [0, 1, 2, 3]
    assert compute(build.const(-0.0, dtypes.float32, (2,), DEVICE)).tolist() == [0.0, 0.0]
    same(compute(build.const(NAN, dtypes.float16, (), DEVICE)), NAN)
    three = Variable("three", 0, 9).bind(3)
    assert compute(build.variable(three, DEVICE)).tolist() == 3
    assert compute(build.variable(three * 2 + 1, DEVICE)).tolist() == 7


def test_symbolic_shapes_are_stored_with_the_strides_of_their_bounds():
    length = Variable("length", 0, 4).bind(3)
    memory = Buffer(DEVICE, dtypes.int32, 8)
    memory.copy_in(np.arange(8, dtype=np.int32).tobytes())
    x = build.buffer(memory, dtypes.int32, (2, length), DEVICE)
    doubled = elementwise(Op.ADD, x, x)
    total = build.reduce(Op.SUM, x, (1,))
    spread, summed = realize([doubled, total], [])
    stored = np.frombuffer(spread.arg.copy_out(), np.int32).reshape(2, 4)
    assert stored[:, :3].tolist() == [[0, 2, 4], [8, 10, 12]]
    assert np.frombuffer(summed.arg.copy_out(), np.int32).tolist() == [3, 15]
    padded = build.pad(build.reshape(x, (2, length, 1)), ((0, 0), (0, 4 - length), (0, 0)))
    assert compute(padded).tolist() == [[[0], [1], [2], [0]], [[4], [5], [6], [0]]]
    nothing = Variable("length", 0, 4).bind(0)
    none = build.reduce(Op.MAX, build.buffer(memory, dtypes.int32, (2, nothing), DEVICE), (1,))
    assert compute(none).tolist() == [[-(2**31)]] * 2


def test_symbolic_dimensions_pass_only_ones_in_a_reshape():
    """With other dimensions, the strides of the bound, by which it is stored, would not fit."""
    length = Variable("length", 0, 4).bind(3)
    x = build.buffer(0, dtypes.int32, (2, 6, length, 4), DEVICE)
    assert build.reshape(x, (12, 1, length, 2, 2)).shape == (12, 1, length, 2, 2)
    for shape in ((2, 6, 4, length), (4, 3, length, 4, 2), (2, length, 6, 4)):
        with pytest.raises(ShapeError, match="reshape"):
            build.reshape(x, shape)


def test_one_program_serves_every_value_of_a_variable():
    memory = Buffer(DEVICE, dtypes.int32, 9)
    memory.copy_in(np.arange(9, dtype=np.int32).tobytes())
    x = build.buffer(memory, dtypes.int32, (9,), DEVICE)
    for value in (0, 4, 8):
        place = Variable("place", 0, 8).bind(value)
        assert compute(build.shrink(x, ((place, place + 1),))).tolist() == [value]
        rows = build.shrink(x, ((0, place + 1),))
        assert compute(build.reduce(Op.SUM, rows, (0,))).tolist() == [value * (value + 1) // 2]


def test_a_program_reads_its_inputs_before_it_writes():
    x, y = array([1.0, 2.0], dtypes.float32), array([3.0, 4.0], dtypes.float32)
    difference = elementwise(Op.SUB, x, y)
    results = realize([build.assign(x, y), build.assign(y, x), difference], [])
    assert results[0] is x and results[1] is y
    assert compute(x).tolist() == [3, 4] and compute(y).tolist() == [1, 2]
    assert compute(results[2]).tolist() == [-2, -2]
    realize([build.assign(x, build.flip(x, (0,)))], [])
    assert compute(x).tolist() == [4, 3]


def test_a_result_does_not_share_memory_with_its_source():
    x = array([1.0, 2.0, 3.0], dtypes.float32)
    (part,) = realize([build.shrink(x, ((1, 3),))], [])
    realize([build.assign(x, elementwise(Op.NEG, x))], [])
    assert compute(part).tolist() == [2, 3]


def test_contiguous_and_copy():
    x = array([1.0, 2.0], dtypes.float32)
    other = build.copy(elementwise(Op.NEG, build.contiguous(build.flip(x, (0,)))), f"{DEVICE}:1")
    (there,) = realize([elementwise(Op.ADD, other, other)], [])
    assert there.device == f"{DEVICE}:1"
    assert np.frombuffer(there.arg.copy_out(), np.float32).tolist() == [-4, -2]


def test_memory():
    runtime = Device[DEVICE]
    memory = runtime.allocate(4)
    runtime.copy_in(memory, memoryview(b"abcd"))
    target = bytearray(3)
    runtime.copy_out(memory, memoryview(target))
    assert bytes(target) == b"abc" and runtime.name == DEVICE
    runtime.synchronize()
    runtime.free(memory, 4)


def test_evaluate_in_float64():
    """Every float node is wide: float16 inputs, casts between floats, and bits and back."""
    x = build.buffer(0, dtypes.float16, (1,), DEVICE)
    narrow = build.cast(elementwise(Op.EXP, x), dtypes.bfloat16)
    back = build.bitcast(build.bitcast(narrow, dtypes.int16), dtypes.bfloat16)
    value = np.array([1 / 3])
    (found,) = evaluate([back], {0: value}, precision="float64")
    assert found.dtype == np.float64 and found[0] == np.exp(value[0])
    (found,) = evaluate([back], {0: value})
    assert found.dtype == ml_dtypes.bfloat16
    rounded = np.float16(np.exp(float(np.float16(1 / 3))))
    assert float(found[0]) == float(ml_dtypes.bfloat16(rounded))
    bits = build.bitcast(build.cast(x, dtypes.float32), dtypes.int32)
    (found,) = evaluate([bits], {0: np.array([1.0])}, precision="float64")
    assert found.tolist() == [0x3F800000]


def test_evaluate_reads_buffers_and_free_variables():
    x = array([1.0, 2.0, 3.0], dtypes.float32)
    node = build.shrink(x, ((0, var("n", 0, 3)),))
    (found,) = evaluate([node], variables={"n": 2})
    assert found.tolist() == [1, 2]
    with pytest.raises(DeviceError, match="no value"):
        evaluate([build.buffer(0, dtypes.float32, (1,), DEVICE)])
    with pytest.raises(ValueError, match="expected"):
        evaluate([build.buffer(0, dtypes.float32, (1,), DEVICE)], {0: np.zeros(2)})
    with pytest.raises(ValueError, match="float64"):
        evaluate([x], precision="float16")
