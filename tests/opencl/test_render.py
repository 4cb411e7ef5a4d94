"""The text of kernels, as MINIGRAD_DEBUG=5 shows it."""

from __future__ import annotations

import pytest
from devices import OPENCL

from minigrad.compile import schedule_of
from minigrad.dtype import dtypes
from minigrad.errors import CompileError, DTypeError
from minigrad.graph import build
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Op
from minigrad.loops.recipes import lower
from minigrad.render.opencl_kernel import render
from minigrad.render.opencl_values import bare, literal
from minigrad.target import Target

SCALARS = Target(0, 16, 32 << 10, 512 << 10)
VECTORS = Target(32, 16, 32 << 10, 512 << 10)


def slot(number, *shape, dtype=dtypes.float32):
    return build.buffer(number, dtype, shape, OPENCL)


def nests(*roots, target=SCALARS):
    """The loop nests of a program whose inputs are the slots 0 and 1."""
    outputs = tuple(range(2, 2 + len(roots)))
    plan = schedule_of(Graph(roots, outputs, 2 + len(roots), (), OPENCL), target)
    return [lower(kernel, target) for kernel in plan.kernels]


def spread(x, shape, axis):
    """x repeated along a new axis."""
    with_one = (*x.shape[:axis], 1, *x.shape[axis:])
    return build.expand(build.reshape(x, with_one), shape)


def product(m, k, n, dtype=dtypes.float32):
    left = spread(slot(0, m, k, dtype=dtype), (m, k, n), 2)
    right = spread(slot(1, k, n, dtype=dtype), (m, k, n), 0)
    total = build.reduce(Op.SUM, build.elementwise(Op.MUL, left, right), (1,))
    return build.reshape(total, (m, n))


def centred(rows, length, dtype=dtypes.float32):
    """Rows minus their largest element."""
    x = slot(0, rows, length, dtype=dtype)
    most = build.expand(build.reduce(Op.MAX, x, (1,)), (rows, length))
    return build.elementwise(Op.SUB, x, most)


ROWS = """\
float larger_float(float a, float b) {  // NaN wins
    return ((b > a) | (b != b)) ? b : a;
}
__kernel void rows(__global const float *a0, __global float *a1) {
    float x0[1];
    float sum0;
    for (int r0 = get_global_id(0); r0 < 40; r0 += get_global_size(0)) {
        sum0 = -INFINITY;
        for (int c0 = 0; c0 < 9; c0++) {
            sum0 = larger_float(sum0, a0[(r0 * 9) + c0]);
        }
        x0[0] = sum0;
        const float v0 = x0[0];
        for (int c1 = 0; c1 < 9; c1++) {
            a1[(r0 * 9) + c1] = a0[(r0 * 9) + c1] - v0;
        }
    }
}
"""


def test_golden_rows():
    (nest,) = nests(centred(40, 9))
    source = render(nest)
    assert source.text == ROWS
    assert (source.name, source.scratch_bytes) == ("rows", 0)


CONTRACTION = """\
__kernel void contraction(__global const float *a0, __global const float *a1, __global float *a2) {
    float tile2_0;
    float tile2_1;
    for (int r0 = get_global_id(0); r0 < 3; r0 += get_global_size(0)) {
        tile2_0 = 0.0f;
        tile2_1 = 0.0f;
        for (int k0 = 0; k0 < 50; k0++) {
            const float v0 = a1[r0 + (k0 * 3)];
            tile2_0 = tile2_0 + (a0[k0] * v0);
            tile2_1 = tile2_1 + (a0[k0 + 50] * v0);
        }
        a2[r0] = tile2_0;
        a2[r0 + 3] = tile2_1;
    }
}
"""


def test_golden_contraction():
    (nest,) = nests(product(2, 50, 3))
    assert render(nest).text == CONTRACTION


def test_large_indices_are_long():
    (nest,) = nests(build.elementwise(Op.NEG, build.permute(slot(0, 1 << 16, 1 << 16), (1, 0))))
    assert "(long)" in render(nest).text
    (nest,) = nests(build.elementwise(Op.NEG, build.permute(slot(0, 1 << 10, 1 << 10), (1, 0))))
    assert "long" not in render(nest).text


def test_double_precision_is_asked_for_or_refused():
    (nest,) = nests(centred(40, 9, dtypes.float64))
    assert render(nest).text.startswith("#pragma OPENCL EXTENSION cl_khr_fp64 : enable")
    with pytest.raises(DTypeError, match=r"CL:1 \(X\) does not support float64; cast to float32"):
        render(nest, fp64=False, device="CL:1 (X)")
    (nest,) = nests(product(20, 30, 40))
    assert "double" not in render(nest, fp64=False).text


@pytest.mark.parametrize("root", [centred(40, 64), product(64, 64, 64)], ids=["rows", "product"])
def test_vector_loops_are_refused(root):
    (nest,) = nests(root, target=VECTORS)
    with pytest.raises(CompileError, match="lower the kernel for a target with vector_bytes=0"):
        render(nest)


def test_literals_are_read_back_exactly():
    assert literal(0.1, dtypes.float64) == "0.1"
    assert literal(1.0, dtypes.float32) == "1.0f"
    assert literal(-0.0, dtypes.float32) == "(-0.0f)"
    assert literal(float("-inf"), dtypes.float64) == "(-(double)INFINITY)"
    assert literal(-(1 << 31), dtypes.int32) == "(-2147483647 - 1)"
    assert literal((1 << 64) - 1, dtypes.uint64) == "18446744073709551615UL"
    assert literal(-3, dtypes.int8) == "(char)(-3)"
    assert literal(True, dtypes.bool) == "true"


def test_parentheses_around_all_of_a_text():
    assert bare("(a + b)") == "a + b"
    assert bare("(a) + (b)") == "(a) + (b)"
    assert bare("(int)(a)") == "(int)(a)"
