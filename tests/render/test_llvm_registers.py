"""Registers of a nest become values of LLVM IR, with a phi after loops and branches.

Nests built by hand, whose loops may have no iterations, run with all small counts.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace

import numpy as np
import pytest
from schedule.machine import compiler_of, target_of
from schedule.programs import Inputs, mul, plan_of, total

from minigrad.dtype import dtypes
from minigrad.errors import CompileError
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Integer, var
from minigrad.loops.nest import Fold, Loop, Nest, Statements, Store
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.render.llvm_values import Builder, Value, fold
from minigrad.runtimes.jit_compiler import host_compiler
from minigrad.schedule import expr
from minigrad.schedule.expr import Array

OUT = Array("out", dtypes.int64, 8)
SUM, OTHER = (Array(name, dtypes.int64, 1, "registers") for name in ("sum", "other"))
ROW, X, Y, Z = (var(name, 0, 7).terms[0][0] for name in ("r0", "x0", "y0", "z0"))
N = var("n", 0, 3)  # number of iterations
ONE = expr.const(1, dtypes.int64)


def nest(*body: Loop | Store | Fold) -> Nest:
    parallel = Loop(ROW, 0, (8,), tuple(body))
    return Nest("kernel", parallel, (OUT,), ("n",), (), 0, 1, 0, 0, 0, "by hand")


def put(register: Array, value: expr.Expr) -> Store:
    return Store(register, 0, value)


def loop(variable: object, stop: Integer, *body: Loop | Store) -> Loop:
    return Loop(variable, 0, (stop,), tuple(body))  # type: ignore[arg-type]


def times(count: int, register: Array) -> Store:
    """register = register · count + 1, which shows the order of operations."""
    old = expr.load(register)
    return put(register, old * expr.const(count, dtypes.int64) + ONE)


def result(body: Statements, n: int) -> list[int]:
    """The contents of `out` after a nest has run."""
    text = render(nest(*body))  # type: ignore[arg-type]
    assert "alloca" not in text
    addresses, code = host_compiler().compile(text, ["kernel"])
    out = np.full(8, -1, np.int64)
    words = (ctypes.c_int64 * 2)(out.ctypes.data, n)
    kernel = ctypes.CFUNCTYPE(
        None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
    )
    kernel(addresses["kernel"])(0, 8, words, None)
    del code
    return out.tolist()


def stored(register: Array = SUM) -> Store:
    return Store(OUT, ROW.index, expr.load(register))


@pytest.mark.parametrize("n", range(4))
def test_what_a_loop_without_iterations_does_not_change(n: int) -> None:
    expected = 5
    for _ in range(n):
        expected = 2 * expected + 1
    body = (put(SUM, expr.const(5, dtypes.int64)), loop(X, N, times(2, SUM)), stored())
    assert result(body, n) == [expected] * 8


@pytest.mark.parametrize("n", range(4))
def test_loops_in_loops_and_one_behind_the_other(n: int) -> None:
    total = other = 1
    for _ in range(n):
        for _ in range(2):
            total = 2 * total + 1
            for _ in range(n):
                total, other = 3 * total + 1, other + total
        other = other * 5 + 1
    for _ in range(n):
        total = 7 * total + 1
    inner = loop(Z, N, put(OTHER, expr.load(OTHER) + expr.load(SUM)), times(3, SUM))
    body = (
        put(SUM, ONE), put(OTHER, ONE),
        loop(X, N, loop(Y, 2, times(2, SUM), inner), times(5, OTHER)),
        loop(X, N, times(7, SUM)),
        put(SUM, expr.load(SUM) * expr.const(1000, dtypes.int64) + expr.load(OTHER)), stored(),
    )  # fmt: skip
    assert result(body, n) == [1000 * total + other] * 8


@pytest.mark.parametrize("n", range(4))
def test_a_register_that_was_read_before_the_loop_that_changes_it(n: int) -> None:
    total = 5
    for _ in range(n):
        total = 2 * total + 1
    body = (
        put(SUM, expr.const(5, dtypes.int64)), put(OTHER, expr.load(SUM) + ONE),
        loop(X, N, times(2, SUM)),
        put(SUM, expr.load(SUM) * expr.const(10, dtypes.int64) + expr.load(OTHER)), stored(),
    )  # fmt: skip
    assert result(body, n) == [10 * total + 6] * 8


@pytest.mark.parametrize("n", range(4))
def test_a_register_that_a_loop_only_passes_on(n: int) -> None:
    """Two registers are swapped: each one's next value is the other's previous one."""
    total, other = 3, 4
    for _ in range(n):
        total, other = other, total
    third = Array("third", dtypes.int64, 1, "registers")
    body = (
        put(SUM, expr.const(3, dtypes.int64)), put(OTHER, expr.const(4, dtypes.int64)),
        loop(X, N, put(third, expr.load(SUM)), put(SUM, expr.load(OTHER)),
             put(OTHER, expr.load(third))),
        put(SUM, expr.load(SUM) * expr.const(10, dtypes.int64) + expr.load(OTHER)), stored(),
    )  # fmt: skip
    assert result(body, n) == [10 * total + other] * 8


@pytest.mark.parametrize("n", range(4))
def test_lanes_outside_a_mask_keep_theirs(n: int) -> None:
    """The sum over lanes has the loop's n + 2 terms only; the last vector may be partly masked."""
    part = Array("part", dtypes.int64, 1, "registers", lanes=X, width=4, folded=True)
    clear = Store(part, 0, expr.const(0, dtypes.int64))
    more = Store(part, 0, expr.load(part) + expr.index(X.index + 1, dtypes.int64))
    lanes = Loop(X, 0, (N + 2,), (more,), "lanes", 4)
    body = (clear, lanes, Fold(SUM, Op.SUM, part), stored())
    assert result(body, n) == [sum(range(1, n + 3))] * 8


def test_what_nothing_was_put_into_is_no_value() -> None:
    """Not even if a loop, which may have no iterations, sets it."""
    with pytest.raises(CompileError, match=r"by hand.*reads sum\[0\], which was never written"):
        render(replace(nest(loop(X, N, put(SUM, ONE)), stored()), name="by hand"))
    render(nest(loop(X, 3, put(SUM, ONE)), stored()))


def test_loops_that_run_are_entered_without_a_question() -> None:
    """A loop of N iterations may have none; one of N + 1 has at least one."""
    def compared(stop: Integer) -> int:
        text = render(nest(put(SUM, ONE), loop(X, stop, times(2, SUM)), stored()))
        return len(re.findall("icmp slt", text))

    assert compared(N) == compared(N + 1) + 1
    assert result((put(SUM, ONE), loop(X, N + 1, times(2, SUM)), stored()), 2) == [15] * 8


@pytest.mark.parametrize("count", [3, 5])
def test_less_than_a_vector_has_no_code_for_whole_ones(count: int) -> None:
    numbers = Store(OUT, ROW.index, expr.index(ROW.index, dtypes.int64))
    lanes = Loop(ROW, 0, (count,), (numbers,), "lanes", 4)
    text = render(replace(nest(), parallel=lanes))
    assert "llvm.masked.store" in text
    assert ("store <4 x i64>" in text) == (count > 4)


def test_a_vector_whose_part_begins_at_a_known_place_stays_inside() -> None:
    """The second of two unrolled pieces has 2 of 4 lanes: no whole vector runs before them."""
    piece = var("b0", 0, 1).terms[0][0]
    numbers = Store(OUT, X.index, expr.index(X.index, dtypes.int64))
    lanes = Loop(X, piece.index * 4, (piece.index * 4 + 4, 6), (numbers,), "lanes", 4)
    pieces = Loop(piece, 0, (2,), (lanes,), "unroll")
    assert result((pieces,), 0) == [0, 1, 2, 3, 4, 5, -1, -1]


def test_lanes_of_floats_are_combined_half_by_half() -> None:
    here = Builder()
    here.lines = []
    assert fold(here, Op.SUM, Value("%x", dtypes.float32, 4)) == Value("%v6", dtypes.float32, 1)
    half = "shufflevector <4 x float> %x, <4 x float> poison, <2 x i32>"
    assert here.lines == [
        f"  %v1 = {half} <i32 0, i32 1>", f"  %v2 = {half} <i32 2, i32 3>",
        "  %v3 = fadd <2 x float> %v1, %v2",
        "  %v4 = extractelement <2 x float> %v3, i64 0",
        "  %v5 = extractelement <2 x float> %v3, i64 1", "  %v6 = fadd float %v4, %v5",
    ]  # fmt: skip


def test_no_lane_outside_of_a_mask_is_loaded() -> None:
    """LLVM 22 loads whole vectors for a masked multiply-add that begins with zeros."""

    def build(inputs: Inputs) -> list[Node]:
        x = inputs(5, var("n", 1, 12))  # rows of one vector, whose mask is computed
        sums = total(mul(x, 0.1), 1)
        return [total(mul(sums, sums), 0)]

    (kernel,) = plan_of(build).kernels
    text = compiler_of("avx512").assembly(render(lower(kernel, target_of("avx512"))))
    loads = re.findall(r"vmov[au]ps\t\(.*\), %[yz]mm\d+(.*)", text)
    assert loads and all("{%k" in rest for rest in loads), loads
