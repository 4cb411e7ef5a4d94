"""Each transformation of a small product, as text; and that recipes can be observed."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from inspect import cleandoc
from textwrap import dedent

import pytest
from child import said

from minigrad.dtype import dtypes
from minigrad.graph.symbolic import Atom, Integer, var
from minigrad.loops import explain, transforms
from minigrad.loops.build import least, loops_over, put
from minigrad.loops.nest import (
    Barrier,
    Loop,
    Loops,
    MatrixProduct,
    Prefetch,
    Statements,
    Store,
    map_loops,
    show_statements,
    walk,
    written,
)
from minigrad.loops.transforms import LoopNest
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array

N, K = make_axis("n", 0, 8), make_axis("k", 0, 5)
m, n, k = make_axis("m", 0, 6).variable, N.variable, K.variable
LANE: Atom = make_axis("lane", 0, 16).variable


def product(rows: Integer = 6) -> LoopNest:
    """out[rows, 8] = left[rows, 5] · right[5, 8]."""
    M = make_axis("m", 0, rows)
    total = expr.register("total", dtypes.float32)
    left = expr.load(Array("left", dtypes.float32, 30), M.index * 5 + K.index)
    right = expr.load(Array("right", dtypes.float32, 40), K.index * 8 + N.index)
    out = Array("out", dtypes.float32, 48)
    body = [
        put(total, expr.const(0.0, dtypes.float32)),
        *loops_over([K], [put(total, total + left * right)]),
        Store(out, M.index * 8 + N.index, total),
    ]
    return LoopNest(loops_over([M, N], body), left=left, right=right)


STEPS: dict[str, tuple[Callable[[LoopNest], object], str]] = {}


def step(change: Callable[[LoopNest], object]) -> Callable[[LoopNest], object]:
    """Register a change of the product; its docstring is the expected result."""
    STEPS[change.__name__] = change, cleandoc(change.__doc__ or "")
    return change


@step
def naive(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          total[0] = 0.0
          for k0 in 0 … 5:
            total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          out[8·m0 + n0] = total[0]
    """
    assert s.body


@step
def split(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for p0 in 0 … 3:
          for n0 in 3·p0 … min(3·p0 + 3, 8):
            total[0] = 0.0
            for k0 in 0 … 5:
              total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
            out[8·m0 + n0] = total[0]
    """
    s.split(n, 3, "p")


@step
def split_whole(s: LoopNest) -> None:
    """
      for t0 in 0 … 3:
        for m0 in 2·t0 … 2·t0 + 2:
          for n0 in 0 … 8:
            total[0] = 0.0
            for k0 in 0 … 5:
              total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
            out[8·m0 + n0] = total[0]
    """
    s.split(m, 2, "t")


@step
def reorder(s: LoopNest) -> None:
    """
      for n0 in 0 … 8:
        for m0 in 0 … 6:
          total[0] = 0.0
          for k0 in 0 … 5:
            total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          out[8·m0 + n0] = total[0]
    """
    s.reorder(n, m)


@step
def peel(s: LoopNest) -> None:
    """
      for t0 in 0 … 1:
        for m0 in 4·t0 … 4·t0 + 4:
          for n0 in 0 … 8:
            total[0] = 0.0
            for k0 in 0 … 5:
              total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
            out[8·m0 + n0] = total[0]
      for t0 in 1 … 2:
        for m0 in 4·t0 … 4·t0 + 2:
          for n0 in 0 … 8:
            total[0] = 0.0
            for k0 in 0 … 5:
              total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
            out[8·m0 + n0] = total[0]
    """
    s.peel(s.split(m, 4, "t"), m)


@step
def sink(s: LoopNest) -> None:
    """
      for n0 in 0 … 8:
        for m0 in 0 … 6:
          total6[m0] = 0.0
        for k0 in 0 … 5:
          for m0 in 0 … 6:
            total6[m0] = (total6[m0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
        for m0 in 0 … 6:
          out[8·m0 + n0] = total6[m0]
    """
    s.reorder(n, m)
    s.sink(m)


@step
def sink_into_scratch(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          sums[8·m0 + n0] = 0.0
      for kb0 in 0 … 3:
        for m0 in 0 … 6:
          for n0 in 0 … 8:
            total[0] = -0.0
            for k0 in 2·kb0 … min(2·kb0 + 2, 5):
              total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
            sums[8·m0 + n0] = (sums[8·m0 + n0] + total[0])
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          out[8·m0 + n0] = sums[8·m0 + n0]
    """
    s.split(k, 2, "kb")
    s.sink(m, n, into=make_axis("kb", 0, 3).variable, space="scratch")


@step
def distribute(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          total[0] = 0.0
          for k0 in 0 … 5:
            total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          sums[8·m0 + n0] = total[0]
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          out[8·m0 + n0] = sums[8·m0 + n0]
    """
    s.distribute(m, n)


@step
def sink_vectors_of_sums(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          total_part8[n0] = 0.0
        for k0 in 0 … 5 step 4 lanes:
          for n0 in 0 … 8:
            total_part8[n0] = (total_part8[n0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
        for n0 in 0 … 8:
          total = sum of total_part8[n0]
          out[8·m0 + n0] = total[0]
    """
    s.vectorize(k, 4)
    s.sink(n, into=k)


@step
def vectorize(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8 step 4 lanes:
          total[0] = 0.0
          for k0 in 0 … 5:
            total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          out[8·m0 + n0] = total[0]
    """
    s.vectorize(n, 4)


@step
def vectorize_sums(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          total_part[0] = 0.0
          for k0 in 0 … 5 step 4 lanes:
            total_part[0] = (total_part[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          total = sum of total_part
          out[8·m0 + n0] = total[0]
    """
    s.vectorize(k, 4)
    sums = [array for array in written(*s.body) if array.lanes is not None]
    assert sums and all(array.folded for array in sums)  # lanes beyond the end keep theirs


@step
def unroll(s: LoopNest) -> None:
    """
      for n0 in 0 … 8:
        for t0 in 0 … 3:
          for u0 in 0 … 2 unroll:
            total2[u0] = 0.0
          for k0 in 0 … 5:
            for u0 in 0 … 2 unroll:
              total2[u0] = (total2[u0] + (left[k0 + 10·t0 + 5·u0] * right[8·k0 + n0]))
          for u0 in 0 … 2 unroll:
            out[n0 + 16·t0 + 8·u0] = total2[u0]
    """
    s.reorder(n, m)
    tiles = s.split(m, 2, "t")
    s.sink(m)
    s.unroll(m, "u")
    assert tiles


@step
def unroll_by(s: LoopNest) -> None:
    """
      for vs0 in 0 … 3:
        for v0 in 0 … 2 unroll:
          for n0 in 0 … 8:
            total[0] = 0.0
            for k0 in 0 … 5:
              total[0] = (total[0] + (left[k0 + 5·v0 + 10·vs0] * right[8·k0 + n0]))
            out[n0 + 8·v0 + 16·vs0] = total[0]
    """
    s.unroll_by(k, 2, "w")  # 2 does not divide 5
    s.unroll_by(m, 2, "v")


@step
def count(s: LoopNest) -> None:
    """
      for t0 in 0 … 3:
        for n0 in 0 … 8:
          for u0 in 0 … 2:
            total[0] = 0.0
            for k0 in 0 … 5:
              total[0] = (total[0] + (left[k0 + 10·t0 + 5·u0] * right[8·k0 + n0]))
            out[n0 + 16·t0 + 8·u0] = total[0]
    """
    tiles = s.split(m, 2, "t")
    s.reorder(tiles, n, s.count(m, "u"))


@step
def bind(s: LoopNest) -> None:
    """
      for t0 in 0 … 3:
        for item0 in 0 … 8 items:
          for u0 in 0 … 2 unroll:
            total2[u0] = 0.0
          for kb0 in 0 … 5:
            for q0 in 0 … 1 unroll:
              column[item0] = right[item0 + 8·kb0]
            barrier
            for u0 in 0 … 2 unroll:
              for k0 in kb0 … kb0 + 1:
                total2[u0] = (total2[u0] + (left[k0 + 10·t0 + 5·u0] * column[item0]))
            barrier
          for u0 in 0 … 2 unroll:
            out[item0 + 16·t0 + 8·u0] = total2[u0]
    """
    tiles, pieces, item = s.split(m, 2, "t"), s.split(k, 1, "kb"), make_axis("item", 0, 8)
    s.reorder(tiles, n, m)
    s.sink(n, m, into=pieces)
    s.insert(pieces, lambda *_: [Barrier()])
    with s.inside(pieces):
        s.insert(n, lambda *_: [Barrier()], behind=True)
        s.stage("right", None, [k, n], None, "column", flat=1, item=item)
    s.unroll(m, "u")
    s.bind(item, tiles, n)


@step
def repeat(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          total[0] = 0.0
          for q0 in 0 … 2:
            total[0] = (total[0] + (left[5·m0 + 2·q0] * right[n0 + 16·q0]))
            total[0] = (total[0] + (left[5·m0 + 2·q0 + 1] * right[n0 + 16·q0 + 8]))
          for q0 in 2 … 3:
            total[0] = (total[0] + (left[5·m0 + 2·q0] * right[n0 + 16·q0]))
          out[8·m0 + n0] = total[0]
    """
    s.split(k, 2, "q")
    s.peel(make_axis("q", 0, 3).variable, k)
    s.repeat(k)


@step
def overlap(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8 step 3 lanes:  # the last one overlaps
          total[0] = 0.0
          for k0 in 0 … 5:
            total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          out[8·m0 + n0] = total[0]
    """
    s.vectorize(n, 3, LANE, overlaps=True)


@step
def stage(s: LoopNest) -> None:
    """
      for n0 in 0 … 8 step 8 lanes:
        for k0 in 0 … 5:  # 4 at once, transposed
          panel[8·k0 + lane0] = right[8·k0 + n0]
        for m0 in 0 … 6:
          total[0] = 0.0
          for k0 in 0 … 5:
            total[0] = (total[0] + (left[k0 + 5·m0] * panel[8·k0 + lane0]))
          out[8·m0 + n0] = total[0]
    """
    s.vectorize(n, 8, LANE)
    s.reorder(n, m)
    s.stage("right", n, [k], [([k], None), ([n], 8)], "panel", transpose=4)


@step
def stage_wide(s: LoopNest) -> None:
    """
      for n0 in 0 … 8:
        for k0 in 0 … 5:
          for t0 in 0 … 2:
            for m0 in 3·t0 … 3·t0 + 3 step 4 lanes:
              copy[4·k0 + m0 + 25·t0] = left[k0 + 5·m0]
        for t0 in 0 … 2:
          for m0 in 3·t0 … 3·t0 + 3:
            total[0] = 0.0
            for k0 in 0 … 5:
              total[0] = (total[0] + (copy[4·k0 + m0 + 25·t0] * right[8·k0 + n0]))
            out[8·m0 + n0] = total[0]
    """
    s.reorder(n, m)
    tiles = s.split(m, 3, "t")
    s.stage("left", n, [k, tiles, m], [([tiles], None), ([k], 7), ([m], 4)], "copy", {m: 4})


@step
def transpose(s: LoopNest) -> None:
    """
      for n0 in 0 … 8 step 4 lanes:
        for m0 in 0 … 6:
          total6[m0] = 0.0
        for k0 in 0 … 5:
          for m0 in 0 … 6:
            total6[m0] = (total6[m0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
        for m0 in 0 … 6:  # 4 at once, transposed
          out[8·m0 + n0] = total6[m0]
    """
    s.reorder(n, m)
    s.vectorize(n, 4)
    s.sink(m)
    s.transpose(m, 4)


@step
def insert(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          total[0] = 0.0
          for k0 in 0 … 5:
            prefetch left[k0 + 64]
            total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          out[8·m0 + n0] = total[0]
    """
    s.insert(k, lambda loop, around: [Prefetch(Array("left", dtypes.float32, 30), loop.index + 64)])


@step
def prefetch(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          prefetch right[n0 + 64]
          total[0] = 0.0
          for k0 in 0 … 5:
            total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          out[8·m0 + n0] = total[0]
    """
    s.prefetch(n, lambda loop, around: ((Array("right", dtypes.float32, 40), loop.index + 64),))


@step
def simplify(s: LoopNest) -> None:
    """
      for m0 in 0 … 6:
        for n0 in 0 … 8:
          total[0] = 0.0
          for k0 in 0 … 5:
            total[0] = (total[0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          out[8·m0 + n0] = total[0]
    """
    s.split(n, 8, "p")
    s.simplify()


@step
def inside(s: LoopNest) -> None:
    """
      for t0 in 0 … 2:
        for n0 in 0 … 8:
          for m0 in 3·t0 … 3·t0 + 3:
            total3[m0 - 3·t0] = 0.0
          for k0 in 0 … 5:
            for m0 in 3·t0 … 3·t0 + 3:
              total3[m0 - 3·t0] = (total3[m0 - 3·t0] + (left[k0 + 5·m0] * right[8·k0 + n0]))
          for m0 in 3·t0 … 3·t0 + 3:
            out[8·m0 + n0] = total3[m0 - 3·t0]
    """
    tiles = s.split(m, 3, "t")
    with s.inside(tiles):
        s.reorder(n, m)
        s.sink(m)


@step
def distribute_vectors(s: LoopNest) -> None:
    """
      for n0 in 0 … 8 step 8 lanes:
        for u0 in 0 … 6 unroll:
          total6[u0] = 0.0
        for k0 in 0 … 5:
          for u0 in 0 … 6 unroll:
            total6[u0] = (total6[u0] + (left[k0 + 5·u0] * right[8·k0 + n0]))
        for u0 in 0 … 6 unroll:
          sums[lane0 + 8·u0] = total6[u0]
        for m0 in 0 … 6:
          out[8·m0 + n0] = sums[lane0 + 8·m0]
    """
    s.vectorize(n, 8, LANE)
    s.reorder(n, m)
    s.distribute(m)
    s.sink(m)
    s.unroll(m, "u", computing=True)


@step
def parallelize(s: LoopNest) -> None:
    """
      for r0 in 0 … 48:
        total[0] = 0.0
        for k0 in 0 … 5:
          total[0] = (total[0] + (left[5·(r0 // 8) + k0] * right[(r0 % 8) + 8·k0]))
        out[r0] = total[0]
    """
    s.parallelize(m, n)


@pytest.mark.parametrize("name", STEPS)
def test_what_it_makes(name: str) -> None:
    change, expected = STEPS[name]
    schedule = product()
    change(schedule)
    assert dedent(show_statements(schedule.whole())) == expected


def test_tails_of_a_number_that_varies() -> None:
    rows = var("rows", 1, 24)
    x = make_axis("m", 0, rows).variable
    schedule = product(rows)
    schedule.peel(schedule.split(x, 4, "t"), x)
    schedule.tails(x, (2, 1))
    loops = [line for line in show_statements(schedule.whole()).splitlines() if "for" in line]
    assert [line.strip() for line in loops if "n0" not in line and "k0" not in line] == [
        "for t0 in 0 … (rows // 4):",
        "for m0 in 4·t0 … 4·t0 + 4:",
        "for t0 in (rows // 4) … ((rows + 3) // 4):",
        "for s2_0 in 0 … (rows // 2) - 2·t0:",
        "for m0 in 2·s2_0 + 4·t0 … 2·s2_0 + 4·t0 + 2:",
        "for s1_0 in 0 … (rows % 2):",
        "for m0 in 2·(rows // 2) + s1_0 … 2·(rows // 2) + s1_0 + 1:",
    ]


def part_of_k(start: Callable[[Integer], Integer], stop: Callable[[Integer], Integer]) -> LoopNest:
    """A product of 8 rows, where row m needs only the terms from start(m) to stop(m)."""
    s = product(8)

    def change(loop: Loop, around: Loops) -> Statements | None:
        if loop.variable != k:
            return None
        (rows, _) = around
        return (replace(loop, start=start(rows.index), stops=least(stop(rows.index), 5)),)

    s.body = map_loops(s.body, change)
    return s


def lines_of(s: LoopNest, word: str) -> list[str]:
    return [line.strip() for line in show_statements(s.body).split("\n") if word in line]


def test_bounds_hold_for_all_rows_that_share_a_loop() -> None:
    s, rows = part_of_k(lambda m: 0, lambda m: m + 1), make_axis("m", 0, 8).variable
    block = s.split(rows, 4, "t")
    s.reorder(block, n, rows)
    s.sink(rows)
    assert lines_of(s, "for k0") == ["for k0 in 0 … min(4·t0 + 4, 5):"]


def test_a_copy_has_what_all_rows_need() -> None:
    s = part_of_k(lambda m: 0, lambda m: m // 2 + 1)
    block = s.split(make_axis("m", 0, 8).variable, 4, "t")
    s.stage("right", block, [k, n], [([k], None), ([n], None)], "panel")
    copy, sums = lines_of(s, "for k0")
    assert copy == "for k0 in 0 … 2·t0 + 2:" and sums == "for k0 in 0 … (m0 // 2) + 1:"


def test_a_copy_of_what_begins_with_each_row_has_all() -> None:
    s = part_of_k(lambda m: m, lambda m: 5)
    panel = s.stage("right", None, [k, n], [([k], None), ([n], None)], "panel")
    copy, sums = lines_of(s, "for k0")
    assert copy == "for k0 in 0 … 5:" and sums == "for k0 in m0 … 5:" and panel.size == 5 * 8
    assert "panel[8·k0 + n0]" in lines_of(s, "total[0] +")[0]


def test_pieces_end_where_a_multiple_of_them_does() -> None:
    s, number = product(24), make_axis("g", 0, 3)
    x = make_axis("m", 0, 24).variable
    (rows,) = s.body
    assert isinstance(rows, Loop)
    s.body = (replace(rows, stops=(number.index * 8 + 8, 24)),)
    s.split(x, 4, "t")
    lines = show_statements(s.body).split("\n")[:2]
    assert [line.strip() for line in lines] == [
        "for t0 in 0 … 2·g0 + 2:", "for m0 in 4·t0 … 4·t0 + 4:"
    ]  # fmt: skip


def test_tensorize_leaves_the_stores() -> None:
    schedule = product()
    schedule.vectorize(n, 8, LANE)
    schedule.reorder(n, m)
    tiles = schedule.split(m, 3, "t")
    schedule.sink(m)
    schedule.tensorize(tiles, m, [k], "left", "right", dtypes.int8, dtypes.uint8)
    text = show_statements(schedule.whole())
    assert "square[0 …] = left[15·t0 …] · right[n0 …]" in text and "k0" not in text
    assert "out[8·m0 + n0] = square[lane0 + 8·m0 - 24·t0]" in text
    (product_of,) = [one for one in walk(*schedule.whole()) if isinstance(one, MatrixProduct)]
    assert (product_of.rows, product_of.columns, product_of.depths) == (3, 8, (5,))
    assert [matrix.pitch for matrix in product_of.matrices] == [8, 5, 8]


def test_a_tensorized_sum_over_two_axes_ends_where_the_first_one_does() -> None:
    outer, rows, last = make_axis("o", 0, 4), make_axis("m", 0, 6), var("last", 0, 3)
    total = expr.register("total", dtypes.float32)
    place = outer.index * 5 + K.index
    left = expr.load(Array("left", dtypes.float32, 120), rows.index * 20 + place)
    right = expr.load(Array("right", dtypes.float32, 160), place * 8 + N.index)
    inner = loops_over([K], [put(total, total + left * right)])
    sums = Loop(outer.variable, 1, (4, last + 1), inner)
    out = Store(Array("out", dtypes.float32, 48), rows.index * 8 + N.index, total)
    body = [put(total, expr.const(0.0, dtypes.float32)), sums, out]
    schedule = LoopNest(loops_over([rows, N], body), left=left, right=right)
    schedule.vectorize(n, 8, LANE)
    schedule.reorder(n, m)
    tile = schedule.split(m, 6, "t")
    schedule.sink(m)
    schedule.tensorize(tile, m, [outer.variable, k], "left", "right", dtypes.int8, dtypes.int8)
    (found,) = [one for one in walk(*schedule.whole()) if isinstance(one, MatrixProduct)]
    assert found.depths == (15, last * 5) and found.left.index == 5


def test_a_loop_is_part_of_the_next_rows() -> None:
    M = make_axis("m", 0, 7)
    a, b = (Array(name, dtypes.float32, 56) for name in "ab")
    own = Array("own", dtypes.float32, 8, "scratch")
    other = make_axis("o", 0, 8)
    first = loops_over([N], [Store(own, N.index, expr.load(a, M.index * 8 + N.index))])
    last = loops_over([other], [Store(b, M.index * 8 + other.index, expr.load(own, other.index))])
    s = LoopNest(loops_over([M], [*first, *last]))
    s.pipeline(M.variable, n, 4, {own})
    assert show_statements(s.whole()) == """\
  for b0 in 0 … 2:
    for n0 in 0 … 8:
      own[n0 + 8] = a[32·b0 + n0]
    for m0 in 4·b0 + 1 … min(4·b0 + 4, 7):
      for n0 in 0 … 8:
        own[8·((m0 + 1) % 2) + n0] = a[8·m0 + n0]
        b[8·m0 + n0 - 8] = own[8·(m0 % 2) + n0]
    for m0 in 4·b0 + 3 … min(4·b0 + 4, 7):
      for o0 in 0 … 8:
        b[8·m0 + o0] = own[8·((m0 + 1) % 2) + o0]
    for m0 in 6 … min(7, 4·b0 + 3):
      for o0 in 0 … 8:
        b[8·m0 + o0] = own[8·((m0 + 1) % 2) + o0]"""


def test_an_order_that_loops_cannot_have() -> None:
    schedule = product()
    tiles = schedule.split(m, 4, "t")
    with pytest.raises(ValueError, match="the bounds of m0 depend on later loops"):
        schedule.reorder(m, tiles)
    with pytest.raises(ValueError, match="expected loops directly inside one another"):
        schedule.reorder(k, m)


def test_a_loop_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="there is no loop over lane0"):
        product().split(LANE, 2, "t")


def test_nothing_is_inserted_beside_copies_alone() -> None:
    """Otherwise the barrier would get lost, and only wrong results would show it."""
    body = loops_over([N], [Store(Array("out", dtypes.float32, 8), N.index, expr.index(N.index))])
    with pytest.raises(ValueError, match="no loop over n0 uses registers"):
        LoopNest(body).insert(n, lambda *_: [Barrier()])


def test_explain_shows_what_steps_bring() -> None:
    found = said("-m", "minigrad.loops.explain", "gemm", "52", "48", "64", "--transposed", "right")
    steps = re.findall(r"^(\w[\w ]*).*?^  → ([\d,]+) cycles", found, re.MULTILINE | re.DOTALL)
    cycles = {name: int(number.replace(",", "")) for name, number in steps}
    assert cycles["naive loops"] > 9 * cycles["vectorize"] > 27 * cycles["sink"] > 0
    assert {"split", "reorder", "stage", "unroll", "kernel contraction"} <= set(cycles)


def test_who_watches_sees_what_its_own_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(transforms.watching, "see", lambda step, body: seen.append(step))
    other = threading.Thread(target=lambda: product().split(m, 2, "t"))
    other.start()
    other.join()
    product().split(n, 3, "p")
    assert [step for step in seen if step.startswith("split")] == ["split(n0, 3, p)"]


@pytest.mark.parametrize(("given", "code", "words"), [
    ("columns 100 200", 0, "s0[c0 + 200·k0]"),
    ("columns 100", 2, "columns: expected 2 ints ≥ 1, got [100]"),
    ("gemm 4 0 3", 2, "gemm: expected 3 ints ≥ 1, got [4, 0, 3]"),
])  # fmt: skip
def test_explain_sums_of_columns_and_wrong_numbers(
    given: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(transforms, "watching", transforms._Watching())
    monkeypatch.setattr(sys, "argv", ["explain", *given.split()])
    with pytest.raises(SystemExit) if code else contextlib.nullcontext():
        explain.main()
    found = capsys.readouterr()
    assert words in (found.err if code else found.out)
