"""Attention in blocks of rows: its scores are not stored in memory, unless storing them pays."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from property.compare import EXACT

from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.gradient import gradient
from minigrad.graph.node import Node, Op
from minigrad.graph.substitution import variables
from minigrad.loops.nest import Loop, MatrixProduct, Nest, Statement, Store, walk
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.runtimes.reference import evaluate
from minigrad.schedule.attention_fusion import DEPTH
from minigrad.schedule.expr import Leaf
from minigrad.schedule.schedule import Schedule
from minigrad.target import FEW_TASKS

from .agreement import agree
from .machine import GOLDEN, run
from .programs import (
    LENGTH,
    PROGRAMS,
    Build,
    Inputs,
    add,
    attend,
    ew,
    gelu,
    graph_of,
    mul,
    number,
    plan_of,
    product,
    softmax,
    total,
    transpose,
    values_for,
)  # fmt: skip

ROWS = 160
SCORES = 3 * ROWS * ROWS  # elements


def kinds(plan: Schedule) -> list[str]:
    return [kernel.kind for kernel in plan.kernels]


def heads(inputs: Inputs, count: int, of: int = 3) -> list[Node]:
    return [inputs(of, ROWS, 16) for _ in range(count)]


def check(build: Build, in_place: dict[int, int] | None = None) -> Schedule:
    """Compare a program with the reference; returns its schedule."""
    agree(build, in_place=in_place)
    return plan_of(build, in_place)


def test_attention_is_one_kernel() -> None:
    plan = plan_of(lambda inputs: [attend(*heads(inputs, 3))])
    assert kinds(plan) == ["block_rows"] and plan.arena_bytes == 0


def test_a_loss_behind_attention_recomputes_the_scores() -> None:
    """The seed needs the whole result, so gradients are other kernels, which recompute scores."""

    def loss(inputs: Inputs) -> list[Node]:
        q, k, v = heads(inputs, 3)
        result = attend(q, k, v)
        whole = g.reduce(Op.SUM, mul(result, result), [0, 1, 2])
        seed = mul(result, g.expand(whole, result.shape))
        found = gradient([result], [seed], [q, k, v])
        return [whole, *(x for x in found if x is not None)]

    plan = check(loss)
    assert kinds(plan).count("block_rows") == 3
    assert plan.arena_bytes < 4 * SCORES  # the result and statistics, but no scores


def test_weights_that_are_asked_for_are_stored_as_ever() -> None:
    def both(inputs: Inputs) -> list[Node]:
        q, k, v = heads(inputs, 3)
        weights = softmax(product(q, transpose(k)), 2)
        return [weights, product(weights, v)]

    assert "block_rows" not in kinds(check(both))


def test_two_layers_are_left_to_plain_products() -> None:
    """The activation is the first product's epilogue; computing it again would gain nothing."""

    def layers(inputs: Inputs) -> list[Node]:
        x, first, second, seed = inputs(512, 32), inputs(32, 256), inputs(256, 10), inputs(512, 10)
        result = product(gelu(product(x, first)), second)
        found = gradient([result], [seed], [first, second])
        return [result, *(x for x in found if x is not None)]

    assert "block_rows" not in kinds(plan_of(layers))


def test_powers_of_scores_that_are_read_both_ways_are_not_kept() -> None:
    """As in gradients of attention to a part of the keys, whose statistics are given."""

    def part(extent: int, depth: int, both: bool) -> Schedule:
        def gradients(inputs: Inputs) -> list[Node]:
            q, k, g = (inputs(2, extent, depth) for _ in range(3))
            weights = ew(Op.EXP, product(q, transpose(k)))
            found = [product(weights, k), product(transpose(weights), g)]
            return found if both else found[:1]

        return plan_of(gradients)

    assert kinds(part(1024, 32, True)) == ["block_rows", "block_rows"]
    assert part(1024, 32, True).arena_bytes == 0
    assert "block_rows" not in kinds(part(256, 8, True))  # storing them is as good
    assert "block_rows" not in kinds(part(1024, 128, True))  # they are costly to compute again
    assert "block_rows" not in kinds(part(1024, 32, False))


@pytest.mark.parametrize("depth", [100, 200])
def test_a_deep_product_is_not_computed_twice(depth: int) -> None:
    def maxima(inputs: Inputs) -> list[Node]:
        scores = product(inputs(300, depth), inputs(depth, 300))
        return [g.reduce(Op.MAX, scores, [0]), g.reduce(Op.MAX, scores, [1])]

    assert kinds(plan_of(maxima))[0] == "contraction"
    assert kinds(plan_of(lambda inputs: maxima(inputs)[:1])) == ["block_rows"]


def test_values_too_wide_for_a_block_of_rows() -> None:
    """Beyond DEPTH columns, scores and weights are stored, for ordinary products."""
    for width, fused in ((DEPTH, True), (DEPTH + 1, False)):
        plan = check(lambda i, width=width: [attend(*heads(i, 2), i(3, ROWS, width))])
        assert (kinds(plan) == ["block_rows"]) == fused


def test_rounded_weights_that_a_sum_reads_too() -> None:
    """The sum adds rounded weights, as the product does; with whole numbers all else is exact."""

    def build(inputs: Inputs) -> list[Node]:
        halves = [inputs(2, ROWS, 16, dtype=dtypes.bfloat16) for _ in range(3)]
        q, k, v = (g.cast(x, dtypes.float32) for x in halves)
        scores = product(q, transpose(k))
        below = ew(Op.SUB, scores, g.reduce(Op.MAX, scores, [2]))
        weights = g.cast(g.cast(below, dtypes.bfloat16), dtypes.float32)
        return [product(weights, v), total(weights, 2)]

    inputs = graph_of(build)[1]
    whole = {slot: np.rint(8 * x).astype(x.dtype) for slot, x in values_for(inputs, 1).items()}
    agree(build, values=whole, tolerance=EXACT)
    assert kinds(plan_of(build)) == ["block_rows"]


def test_one_row_is_no_block() -> None:
    """Decoding: a single query reads all keys."""
    plan = plan_of(lambda i: [attend(i(12, 1, 64), i(12, 2048, 64), i(12, 2048, 64), 0, 2048)])
    assert "block_rows" not in kinds(plan)


def test_an_operand_may_be_overwritten() -> None:
    def update(inputs: Inputs) -> list[Node]:
        q, k, v = heads(inputs, 3)
        return [add(attend(q, k, v), q)]

    for slot in range(3):
        assert "block_rows" in kinds(check(update, {0: slot}))


def test_rows_of_which_all_is_masked() -> None:
    """A block of rows that sees nothing gives the reference's NaN."""
    plan = check(lambda inputs: [attend(*heads(inputs, 3), last=-40)])
    assert kinds(plan) == ["block_rows"]
    nothing = check(lambda inputs: [attend(*heads(inputs, 3), last=-ROWS)])
    assert kinds(nothing) == ["block_rows"]


def test_scores_without_a_maximum() -> None:
    """exp(s)/Σ exp(s) written out, with a number as the mask."""

    def plain(inputs: Inputs) -> list[Node]:
        q, k, v = heads(inputs, 3)
        scores = mul(product(q, transpose(k)), 0.1)
        low = ew(Op.WHERE, ew(Op.LT, inputs(ROWS, ROWS), 0.0), number(-1e9, scores), scores)
        powers = ew(Op.EXP, low)
        return [product(ew(Op.DIV, powers, total(powers, 2)), v)]

    assert kinds(check(plain)) == ["block_rows"]


def test_scores_that_one_stage_reads_both_ways() -> None:
    """It needs their rows and their columns, so a block of rows is not enough."""

    def symmetric(inputs: Inputs) -> list[Node]:
        q, k, v = heads(inputs, 3)
        scores = mul(product(q, transpose(k)), 0.1)
        return [product(softmax(add(scores, transpose(scores)), 2), v)]

    assert kinds(check(symmetric))[0] == "contraction"


def tiles_in(nest: Nest) -> list[Loop]:
    """The loops over register tiles."""
    return [loop for loop in loops_in(nest.parallel) if loop.variable.name.startswith("t")]


def test_half_of_a_causal_block_is_not_computed() -> None:
    (kernel,) = plan_of(PROGRAMS["causal_attention"]).kernels
    nest = lower(kernel, GOLDEN)
    loops = tiles_in(nest)
    assert any(len(loop.stops) == 2 and not isinstance(loop.stops[0], int) for loop in loops)


def test_tiles_of_rows_stop_where_their_own_rows_do() -> None:
    """Not at the block's last row: that saves a quarter of a product with 64 positions."""
    (kernel,) = plan_of(PROGRAMS["causal_attention"]).kernels
    tiles = tiles_in(lower(kernel, GOLDEN))
    assert any(
        tile.variable in variables(loop.stops[0]) for tile in tiles for loop in loops_in(tile)
    )


@pytest.mark.parametrize("of", [1, FEW_TASKS])
@pytest.mark.parametrize("first", [None, -21, -3])
@pytest.mark.parametrize("last", [-18, -9, -5, 0, 3, 12, 40])
def test_wherever_a_row_stops_to_see(of: int, first: int | None, last: int) -> None:
    """Masks with diagonals at any distance, where some rows see nothing; with all gradients."""

    def build(inputs: Inputs) -> list[Node]:
        q, k, v, seed = heads(inputs, 4, of)
        scores = product(q, transpose(k))
        row, column = (
            g.expand(g.reshape(g.iota(ROWS, scores.device), shape), scores.shape)
            for shape in ((1, ROWS, 1), (1, 1, ROWS))
        )
        seen = g.elementwise(Op.LE, column, ew(Op.ADD, row, last))
        if first is not None:
            seen = ew(Op.AND, seen, g.elementwise(Op.LE, ew(Op.ADD, row, first), column))
        low = ew(Op.WHERE, seen, mul(scores, 0.1), number(-1e4, scores))
        weights = softmax(low, 2)
        zero = number(0.0, weights)
        result = product(g.elementwise(Op.WHERE, seen, weights, zero), v)
        found = gradient([result], [seed], [q, k, v])
        return [result, *(x for x in found if x is not None)]

    assert len(check(build).kernels) == (1 if of == FEW_TASKS else 2)


def gradients_of(
    queries: int = ROWS, keys: int = ROWS, of: int = FEW_TASKS, order: tuple[int, ...] = (0, 1, 2)
) -> Build:
    """Gradients of attention, where each needs the whole result: (dq, dk, dv), in some order."""

    def build(inputs: Inputs) -> list[Node]:
        q, seed = inputs(of, queries, 16), inputs(of, queries, 24)
        k, v = inputs(of, keys, 16), inputs(of, keys, 24)
        result = attend(q, k, v, 0, keys)
        seed = mul(seed, g.expand(g.reduce(Op.SUM, result, [0, 1, 2]), result.shape))
        found = gradient([result], [seed], [q, k, v])
        return [x for n in order if (x := found[n]) is not None]

    return build


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2), (2,)])
@pytest.mark.parametrize(("queries", "keys"), [(160, 160), (100, 70), (24, 136), (8, 8)])
def test_all_gradients_are_one_kernel(queries: int, keys: int, order: tuple[int, ...]) -> None:
    """Blocks of queries add to the gradients of keys and values, in any order of gradients."""
    plan = check(gradients_of(queries, keys, order=order))
    if queries >= 100:
        assert kinds(plan).count("block_rows") == 2  # the other one computes the result


def test_few_heads_do_not_wait_for_one_another() -> None:
    """One thread adds up a whole head; for few heads, gradients are two kernels over blocks."""
    for of, count in ((FEW_TASKS, 2), (FEW_TASKS - 1, 3)):
        plan = check(gradients_of(of=of))
        assert kinds(plan).count("block_rows") == count


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16])
@pytest.mark.parametrize(("queries", "keys"), [(160, 160), (100, 70)])
def test_a_gradient_of_the_result_alone_needs_no_other_kernel(
    queries: int, keys: int, dtype: DType
) -> None:
    """As of a loss of squares: a block of its rows is turned, and then added to those of values."""

    def build(inputs: Inputs) -> list[Node]:
        q = inputs(FEW_TASKS, queries, 16, dtype=dtype)
        k, v = (inputs(FEW_TASKS, keys, width, dtype=dtype) for width in (16, 24))
        result = attend(q, k, v, 0, keys)
        found = gradient([result], [add(result, result)], [q, k, v])
        return [x for x in found if x is not None]

    plan = check(build)
    assert kinds(plan) == ["block_rows"]
    copies = {
        store.array.name.rstrip("0123456789")
        for loop in walk(lower(plan.kernels[0], GOLDEN).parallel)
        if isinstance(loop, Loop) and loop.transpose
        for store in loop.body if isinstance(store, Store)
    }  # fmt: skip
    assert copies == {"panel", "other"}


def test_sums_over_blocks_are_read_when_they_are_complete() -> None:
    """Readers of key gradients wait for all blocks, although they have as many rows as queries."""

    def build(inputs: Inputs) -> list[Node]:
        q, k, v, seed, more = heads(inputs, 5, FEW_TASKS)
        result = attend(q, k, v)
        dq, dk, dv = gradient([result], [seed], [q, k, v])
        assert dq is not None and dk is not None and dv is not None
        rows = total(dk, 2)
        both = product(dk, transpose(more))  # a row of it needs only one row of a sum
        moved = g.reshape(g.permute(ew(Op.MUL, dv, more), (1, 0, 2)), (ROWS, FEW_TASKS * 16))
        return [dq, rows, product(softmax(both, 2), v), moved, add(dk, more)]

    plan = check(build)
    (first,) = [kernel for kernel in plan.kernels if kernel.sums]
    assert len(plan.kernels) > 1 and all(kernel.kind != "contraction" for kernel in plan.kernels)
    assert sum(stage.op is None and stage.array in first.sums for stage in first.stages) >= 2


@lru_cache
def in_halves(length: int, keys: int, width: int, last: int = 0, rounds: bool = False) -> Build:
    """Attention and its gradients in bfloat16; heads are side by side in memory, as in a GPT.

    rounds: operands are float32 in memory, and rounded when they are read.
    """
    dtype = dtypes.float32 if rounds else dtypes.bfloat16

    def build(inputs: Inputs) -> list[Node]:
        counts = (length, keys, keys, length)
        wide = [inputs(2, count, 4, width, dtype=dtype) for count in counts]
        q, k, v, seed = (g.permute(g.cast(x, dtypes.bfloat16), (0, 2, 1, 3)) for x in wide)
        result = attend(q, k, v, last=last)
        found = [result, *filter(None, gradient([result], [seed], wide[:3]))]
        return [g.cast(x, dtypes.bfloat16) for x in found]  # they are rounded to it anyway

    return build


def dots_of(length: int, width: int) -> list[set[str]]:
    """The accumulators of dots, in each kernel of attention and its gradient in bfloat16."""
    build = in_halves(length, length, width)
    target = replace(GOLDEN, bfloat16_dots=True)
    nests = [lower(kernel, target) for kernel in plan_of(build).kernels]
    return [
        {
            statement.array.name.partition("x")[0] for statement in walk(nest.parallel)
            if isinstance(statement, Store) and statement.value.op is Leaf.DOT
        } for nest in nests
    ]  # fmt: skip


def test_products_of_bfloat16_are_dots() -> None:
    """Two products forward, four backward; with odd numbers of keys, or short heads, only two."""
    assert [len(tiles) for tiles in dots_of(128, 32)] == [6]
    assert [len(tiles) for tiles in dots_of(129, 32)] == [2]
    assert [len(tiles) for tiles in dots_of(128, 8)] == [2]


def test_products_of_bfloat16_are_in_matrix_registers() -> None:
    """If all consist of whole squares of 32; then there are no gathers and scatters."""
    amx = replace(GOLDEN, matrices=True)
    cases = (128, 32, False, 6), (128, 96, True, 6), (128, 48, False, 0), (112, 32, False, 0)
    for length, width, rounds, count in cases:
        kernels = plan_of(in_halves(length, length, width, rounds=rounds)).kernels
        nest = lower(kernels[0], amx)
        found = [one for one in walk(nest.parallel) if isinstance(one, MatrixProduct)]
        assert len(found) == count, (length, width)
        text = render(nest)
        assert not count or "scatter" not in text and "gather" not in text


# Queries, keys, width, how many keys beyond its own number a query sees, whether inputs are
# rounded.
WHOLE_SQUARES = [
    (64, 64, 64, 0, False), (96, 160, 32, 64, False), (160, 160, 96, 160, False),
    (32, 288, 32, 250, False), (96, 96, 32, 0, True),
]  # fmt: skip


@pytest.mark.parametrize("machine", ["amx", "avx512bf16"])
@pytest.mark.parametrize("sizes", WHOLE_SQUARES)
def test_squares_of_bfloat16(sizes: tuple[int, int, int, int, bool], machine: str) -> None:
    """Causal and not, with whole blocks of keys masked; also without matrix registers."""
    agree(in_halves(*sizes), machine)


def test_keys_are_copied_once_for_several_blocks() -> None:
    """Not for every block: 4 blocks of 32 rows share the copies."""
    def build(inputs: Inputs) -> list[Node]:
        return [attend(*(inputs(8, 256, 32, dtype=dtypes.bfloat16) for _ in range(3)))]

    (kernel,) = plan_of(build).kernels
    nest = lower(kernel, replace(GOLDEN, bfloat16_dots=True))
    blocks = [loop for loop in loops_in(nest.parallel) if loop.variable.name == "g0"]
    copies = [one for one in nest.parallel.body if isinstance(one, Loop) and one not in blocks]
    assert nest.total == 8 * 2 and [one.trips for one in blocks] == [4] and len(copies) == 1


@pytest.mark.parametrize("rows, width", [(160, 32), (255, 32), (200, 16), (130, 16)])
def test_blocks_have_two_registers_of_rows(rows: int, width: int) -> None:
    """But one where with two more than a sixteenth of the rows would be computed for nothing."""
    plan = plan_of(lambda inputs: [attend(*(inputs(3, rows, 16) for _ in range(3)), last=rows)])
    (nest,) = (lower(kernel, GOLDEN) for kernel in plan.kernels)
    steps = {one.step for one in loops_in(nest.parallel) if one.variable.name == "b0"}
    assert steps == {width}


def test_long_sums_keep_their_digits() -> None:
    """Equal terms have equal rounding errors: 1,024 of them, added in turn, are wrong by 1e-5."""

    def build(inputs: Inputs) -> list[Node]:
        return [attend(inputs(1, 16, 16), *(inputs(1, 1024, 16) for _ in range(2)), last=1024)]

    assert kinds(plan_of(build)) == ["block_rows"]
    shapes, tenth = ((1, 16, 16), (1, 1024, 16), (1, 1024, 16)), np.float32(0.1)
    values = {slot: np.zeros(shape, np.float32) for slot, shape in enumerate(shapes)}
    values[2] += tenth
    (found,) = run(graph_of(build)[0], values, "host")
    assert np.abs(found / np.float64(tenth) - 1).max() < 4e-6


def test_any_number_of_heads() -> None:
    plan = plan_of(lambda inputs: [attend(*(inputs(LENGTH, ROWS, 16) for _ in range(3)))])
    assert kinds(plan) == ["block_rows"]
    assert not isinstance(lower(plan.kernels[0], GOLDEN).total, int)


def test_work_is_counted_for_an_average_block() -> None:
    """Causal attention of n blocks computes (n + 1) / 2n of all pairs, for even and odd n."""
    for blocks in (10, 11):
        rows = 32 * blocks
        causal, full = (
            plan_of(lambda inputs, last=last, rows=rows: [
                attend(*(inputs(3, rows, 16) for _ in range(3)), last=last)
            ]).kernels for last in (0, rows)
        )  # fmt: skip
        work = [sum(lower(kernel, GOLDEN).operations for kernel in one) for one in (causal, full)]
        assert work[0] / work[1] == pytest.approx((blocks + 1) / (2 * blocks), rel=0.02)


def loops_in(statement: Statement) -> list[Loop]:
    if not isinstance(statement, Loop):
        return []
    return [statement, *(loop for inner in statement.body for loop in loops_in(inner))]


@pytest.mark.parametrize("extreme", [math.nan, math.inf])
def test_what_a_mask_excludes_reaches_nobody(extreme: float) -> None:
    """Masked values have no effect, wherever blocks of rows begin and end."""
    graph, inputs = graph_of(lambda i: [attend(*heads(i, 3))])
    values = values_for(inputs, 1)
    first = 101  # in the middle of a block
    values[2][:, first:] = extreme
    (found,) = run(graph, values, "host")
    assert np.isfinite(found[:, :first]).all() and not np.isfinite(found[:, first:]).any()


def test_a_mask_that_is_multiplied_does_not_hide() -> None:
    """where(mask, x, 0)·y is 0·∞ where the mask is False, so no term may be left out."""

    def build(inputs: Inputs) -> list[Node]:
        q, k, v = heads(inputs, 3)
        scores = product(q, transpose(k))
        row, column = (
            g.expand(g.reshape(g.iota(ROWS, scores.device), shape), scores.shape)
            for shape in ((1, ROWS, 1), (1, 1, ROWS))
        )
        seen = g.elementwise(Op.LE, column, row)
        return [product(g.elementwise(Op.WHERE, seen, scores, number(0.0, scores)), v)]

    graph, inputs = graph_of(build)
    values = values_for(inputs, 1)
    values[2][:, 101:] = math.inf
    (found,) = run(graph, values, "host")
    (expected,) = evaluate(graph.roots, values, {})
    assert np.isnan(expected).all() and np.isnan(found).all()
