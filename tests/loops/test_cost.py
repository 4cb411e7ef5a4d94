"""The least work of a kernel, as reports state it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedule.machine import GOLDEN
from schedule.programs import add, gelu, mul, plan_of, product, total

from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node
from minigrad.graph.symbolic import Integer, var
from minigrad.loops.assemble import grain_of, in_long_runs
from minigrad.loops.nest import Nest
from minigrad.loops.recipes import lower
from minigrad.schedule.schedule import Kernel


def nest_of(build: object) -> Nest:
    """The first kernel's nest."""
    kernel: Kernel = plan_of(build).kernels[0]  # type: ignore[arg-type]
    return lower(kernel, GOLDEN)


@pytest.mark.parametrize("dtype, lanes", [
    (dtypes.float32, 16), (dtypes.float64, 8), (dtypes.int64, 8), (dtypes.int8, 16),
])  # fmt: skip
def test_instructions_count_by_the_lanes_of_their_dtype(dtype: object, lanes: int) -> None:
    nest = nest_of(lambda new: [add(new(1024, dtype=dtype), new(1024, dtype=dtype))])
    assert nest.vectors == 1024 // lanes


def test_a_multiply_add_is_one_instruction() -> None:
    nest = nest_of(lambda new: [add(mul(new(1024), new(1024)), new(1024))])
    assert nest.vectors == 64
    nest = nest_of(lambda new: [product(new(64, 64), new(64, 64))])
    assert nest.vectors == 64**3 // 16 and nest.operations == 2 * 64**3
    nest = nest_of(lambda new: [total(mul(new(64, 256), new(64, 256)), 1)])
    assert 64 * 256 // 16 <= nest.vectors <= 1.1 * 64 * 256 // 16


def test_functions_count_what_they_take() -> None:
    nest = nest_of(lambda new: [gelu(new(1024))])
    assert 20 * 64 <= nest.vectors <= 50 * 64


def test_traffic_is_what_is_read_and_written() -> None:
    nest = nest_of(lambda new: [add(new(1000), 1.0)])
    assert nest.traffic == 2 * 4000
    part = nest_of(lambda new: [add(g.shrink(new(1000, 64), ((10, 20), (0, 64))), 1.0)])
    assert part.traffic == 2 * 10 * 64 * 4
    rows = nest_of(lambda new: [add(new(100, 64), g.expand(new(1, 64), (100, 64)))])
    assert rows.traffic == 4 * (2 * 6400 + 64)


def test_a_gather_reads_the_rows_that_it_takes() -> None:
    def embedding(new: object) -> list[Node]:
        table, tokens = new(5000, 64), new(8, 1, dtype=dtypes.int32)  # type: ignore[operator]
        return [g.gather(table, g.expand(tokens, (8, 64)), 0)]

    nest = nest_of(embedding)
    assert nest.traffic == 2 * 8 * 64 * 4 + 8 * 4


@pytest.mark.parametrize(("rows", "length", "grain"), [
    (32, 3072, 16), (48, 5000, 12), (36, 4096, 9), (60, 4096, 15), (37, 4096, 10),
])  # fmt: skip
def test_two_threads_get_as_many_long_chunks_each(rows: int, length: int, grain: int) -> None:
    """Three or nine chunks of 128 KiB would keep one thread waiting."""
    assert nest_of(lambda new: [total(new(rows, length), 1)]).grain == grain


@pytest.mark.parametrize(("vectors", "grain"), [(20_000, 32), (25_000, 16), (70_000, 16)])
def test_two_threads_share_what_takes_some_microseconds(vectors: int, grain: int) -> None:
    loop = nest_of(lambda new: [total(new(32, 512), 1)]).parallel
    operations = vectors * GOLDEN.vector_bytes // 4
    assert grain_of(loop, operations, 0, GOLDEN) == grain


def test_few_of_many_possible_rows_are_several_chunks() -> None:
    """A general program may get 16 rows although it serves 1,024: two threads share them."""

    def grain(rows: Integer) -> int:
        return nest_of(lambda new: [total(new(rows, 1 << 17), 1)]).grain

    assert grain(var("rows", 1, 1024)) == 1
    assert grain(1024) == 16


@pytest.mark.parametrize(("tiles", "grain"), [(192, 12), (60, 5), (36, 3), (37, 3), (9, 1)])
def test_there_are_chunks_enough_of_what_computes(tiles: int, grain: int) -> None:
    nest = replace(nest_of(lambda new: [total(new(tiles, 512), 1)]), grain=1)
    assert in_long_runs(nest, least=16).grain == grain
