"""Which memory loops prefetch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from schedule.machine import GOLDEN
from schedule.programs import DEVICE, add, ew, mul, plan_of, product, softmax, total, transpose

from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.loops.nest import Loop, Nest, Prefetch, Statement, Store, loops_in, show, walk
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.target import Target

MANY = 1 << 20


def nest_of(
    build: Callable[..., Node], *shapes: tuple[int, ...], target: Target = GOLDEN
) -> Nest:
    """The first kernel of a program."""
    plan = plan_of(lambda new: [build(*(new(*shape) for shape in shapes))])
    return lower(plan.kernels[0], target)


def asked(statement: Statement) -> list[str]:
    """All prefetches by a nest's loops, as text."""
    hints = (one for one in walk(statement) if isinstance(one, Prefetch))
    return [f"{one.array.name}[{one.index}]" for one in hints]


def test_elementwise_loops_over_one_array_ask_for_what_comes_later() -> None:
    nest = nest_of(lambda x: add(x, 1.0), (MANY,))
    assert asked(nest.parallel) == ["s0[i0 + 4096]"]
    assert render(nest).count("call void @llvm.prefetch") == 4  # 64 lanes
    assert "prefetch s0[i0 + 4096]  # 4 lines" in show(nest)


def test_single_sweeps_over_several_arrays_ask_for_nothing() -> None:
    assert not asked(nest_of(add, (MANY,), (MANY,)).parallel)
    for shape in ((64, 16384), (4096, 256)):
        nest = nest_of(lambda x, y: total(add(x, y), 1), shape, shape)
        assert not asked(nest.parallel)
    nest = nest_of(lambda x, y: softmax(add(x, y), 1), (4096, 256), (4096, 256))
    assert len(asked(nest.parallel)) == 2  # several passes


def test_a_row_that_is_not_followed_by_the_next_asks_for_little_behind_its_end() -> None:
    def cut(x: Node, length: int) -> Node:
        return add(g.shrink(x, ((0, 64), (0, length))), 1.0)

    for length, ahead in ((20000, ["4096"]), (10000, ["2048"]), (4096, [])):
        nest = nest_of(lambda x, length=length: cut(x, length), (64, 32768))
        assert [text.rstrip("]").split(" + ")[-1] for text in asked(nest.parallel)] == ahead


def test_vectors_with_gaps_ask_for_every_line_that_they_cover() -> None:
    nest = nest_of(lambda x: total(x, 1), (MANY, 3))
    assert asked(nest.parallel) == ["s0[3·r0 + 4096]"]
    assert render(nest).count("call void @llvm.prefetch") == 3 * 4  # 64 lanes

    def every_second(x: Node) -> Node:
        return add(g.shrink(g.reshape(x, (MANY, 2)), ((0, MANY), (1, 2))), 1.0)

    assert asked(nest_of(every_second, (2 * MANY,)).parallel) == ["s0[2·i0 + 4097]"]


def test_what_the_second_cache_holds_is_not_asked_for() -> None:
    nest = nest_of(add, (MANY // 8,), (MANY // 8,))
    assert not asked(nest.parallel) and "prefetch" not in render(nest)


def test_short_rows_that_do_not_follow_each_other_ask_for_nothing() -> None:
    def cut(x: Node) -> Node:
        return add(g.shrink(x, ((0, MANY >> 8), (0, 100))), 1.0)

    assert not asked(nest_of(cut, (MANY >> 8, 256)).parallel)


def test_the_longest_sweep_asks_for_the_next_row() -> None:
    nest = nest_of(lambda x: softmax(x, 1), (1024, 1024))
    assert asked(nest.parallel) == ["s0[c1 + 1024·r0 + 2048]"]
    nest = nest_of(lambda x: softmax(x, 1), (4096, 256))  # eight rows need as much memory
    assert asked(nest.parallel) == ["s0[c1 + 256·r0 + 2048]"]


def test_a_single_sweep_asks_for_a_later_row_or_further_along() -> None:
    assert asked(nest_of(lambda x: total(x, 1), (4096, 256)).parallel) == ["s0[c0 + 256·r0 + 2048]"]
    assert asked(nest_of(lambda x: total(x, 1), (64, 8192)).parallel) == ["s0[c0 + 8192·r0 + 2048]"]
    nest = nest_of(lambda x: total(x, 1), (64, 16384))
    assert asked(nest.parallel) == ["s0[c0 + 16384·r0 + 4096]"]


def test_sums_of_columns_ask_for_a_later_row_of_their_block() -> None:
    found = asked(nest_of(lambda x: total(x, 0), (1024, 4096)).parallel)
    assert found and all(text.startswith("s0[") for text in found)
    assert not asked(nest_of(transpose, (1024, 1024)).parallel)


def test_products_with_one_vector_ask_for_nothing() -> None:
    """The processor itself prefetches a matrix that is read in order; requests get in its way."""
    for shape, build in (
        ((768, 3072), product), ((3072, 768), lambda x, w: product(x, transpose(w))),
    ):  # fmt: skip
        nest = nest_of(build, (1, 768), shape)
        assert not asked(nest.parallel) and "llvm.prefetch" not in render(nest)


def test_products_with_few_vectors_ask_for_rows_a_page_on_where_that_is_faster() -> None:
    def by_rows(x: Node, w: Node) -> Node:
        return product(x, transpose(w))

    target = replace(GOLDEN, rows_ahead=4096)
    # for four vectors, two rows are read at once, each in steps of two registers
    for count, ahead, lines in ((1, ["1024"], 8), (4, ["1024", "1792"], 4)):
        nest = nest_of(by_rows, (count, 768), (3072, 768), target=target)
        assert [text.rstrip("]").split(" + ")[-1] for text in asked(nest.parallel)] == ahead
        assert render(nest).count("call void @llvm.prefetch") == lines

    def by_parts(x: Node, w: Node) -> Node:
        return by_rows(x, g.shrink(w, ((0, 3072), (0, 64))))

    assert not asked(nest_of(by_rows, (1, 768), (300, 768), target=target).parallel)
    assert not asked(nest_of(by_parts, (1, 64), (3072, 768), target=target).parallel)


def test_updates_of_columns_come_line_by_line() -> None:
    """Rows are outside columns, except for blocks of these: a column touches a line of each row."""

    def sums(base: Node, updates: Node, index: Node) -> Node:
        return g.scatter_add(base, index.cast(dtypes.int32), updates, 0)

    nest = nest_of(sums, (64, 300), (4096, 300), (4096, 300))
    (rows,) = [loop for loop in loops_in(nest.parallel.body) if loop.variable.high == 4095]
    (columns,) = rows.body
    assert isinstance(columns, Loop) and columns.variable.high == 299


@pytest.mark.parametrize("rows, stages", [(1000, True), (40_000, False)])
@pytest.mark.parametrize("constant", [False, True])
def test_updates_of_columns_meet_in_memory_of_their_own(
    rows: int, stages: bool, constant: bool
) -> None:
    """Result rows compete for places in a cache; a block that half of L2 holds does not."""

    def sums(base: Node, index: Node) -> Node:
        updates = g.const(1.0, dtypes.float32, (64, 300), DEVICE) if constant else mul(index, 2.0)
        return g.scatter_add(base, index.cast(dtypes.int32), updates, 0)

    nest = nest_of(sums, (rows, 300), (64, 300))
    found = list(walk(nest.parallel))
    (loop,) = [one for one in found if isinstance(one, Loop) and one.variable.high == 63]
    (columns,) = loop.body
    assert isinstance(columns, Loop) and columns.kind == "serial"
    (update,) = columns.body
    assert isinstance(update, Store) and (update.array.space == "scratch") is stages
    lanes = [one for one in found if isinstance(one, Loop) and one.kind == "lanes"]
    assert len(lanes) == 1 + stages  # what it begins with, and the copy to the result


def test_a_large_table_begins_row_after_row() -> None:
    """Each task has a part of the rows, and reads only the updates of those."""

    def table(updates: Node, index: Node) -> Node:
        zeros = g.const(0.0, dtypes.float32, (20_000, 768), DEVICE)
        rows = g.expand(g.reshape(index.cast(dtypes.int32), (64, 1)), (64, 768))
        return g.scatter_add(zeros, rows, updates, 0)

    nest = nest_of(table, (64, 768), (64,))
    fill, updates = nest.parallel.body
    (for_this_part,) = updates.body
    for loop in (fill, for_this_part):
        (columns,) = loop.body
        assert columns.kind == "lanes" and columns.variable.high == 767
    assert nest.parallel.variable.high == 31


def test_rows_that_get_one_number_each_begin_with_vectors() -> None:
    """Not column by column, although the numbers are contiguous."""

    def one_each(updates: Node, index: Node) -> Node:
        zeros = g.const(0.0, dtypes.float32, (500, 1000), DEVICE)
        return g.scatter_add(zeros, index.cast(dtypes.int32), updates, 1)

    nest = nest_of(one_each, (500, 1), (500, 1))
    (fill,) = [one for one in nest.parallel.body if isinstance(one, Loop)]
    assert fill.kind == "lanes"


def test_heads_that_share_keys_are_computed_by_one_core() -> None:
    """A chunk has all rows that read the same part of a large array, if enough chunks remain."""

    def weights(q: Node, k: Node, shared: int) -> Node:
        heads, length, width = k.shape[0] * shared, k.shape[1], k.shape[2]
        keys = g.expand(g.reshape(k, (k.shape[0], 1, length, width)),
                        (k.shape[0], shared, length, width))  # fmt: skip
        queries = g.expand(g.reshape(q, (heads, 1, width)), (heads, length, width))
        return softmax(total(ew(Op.MUL, queries, g.reshape(keys, (heads, length, width))), 2), 1)

    for heads, shared, length, grain in (
        (3, 3, 8192, 3), (4, 2, 8192, 2), (9, 1, 8192, 1), (2, 4, 8192, 1), (3, 3, 340, 5),
        (3, 3, 512, 6),  # fewer than fit into the cache: a step reads other memory in between
    ):  # fmt: skip
        nest = nest_of(
            lambda q, k, shared=shared: weights(q, k, shared),
            (heads * shared, 64), (heads, length, 64),
        )  # fmt: skip
        assert nest.grain == grain, show(nest)


def test_a_product_asks_for_what_is_read_behind_its_sums() -> None:
    """Each tile's rows of y, which are far apart; some of them at each line of k."""

    def scaled(x: Node, w: Node, y: Node) -> Node:
        return mul(product(x, w), y)

    for depth, asks in ((32, False), (128, True), (512, True)):
        text = show(nest_of(scaled, (96, depth), (depth, 512), (96, 512)))
        assert ("prefetch s2[" in text) == asks
        assert "prefetch s2[" not in show(nest_of(product, (96, depth), (depth, 512)))


def test_a_pass_of_a_sort_asks_for_the_next_line_of_each_bin() -> None:
    """Every store goes to one of 256 places, which no processor follows."""
    plan = plan_of(lambda new: [g.sort(new(MANY, dtype=dtypes.uint32, low=0, high=9), 0)])
    passes = [kernel for kernel in plan.kernels if kernel.kind == "distribute"]
    assert len(passes) == 4
    for kernel in passes:
        lines = show(lower(kernel, GOLDEN)).splitlines()
        (stored,) = [n for n, line in enumerate(lines) if "[[place[0]]] = " in line]
        assert lines[stored + 1].strip().endswith("[[place[0]] + 16]")
        assert lines[stored + 1].strip().startswith("prefetch ")
