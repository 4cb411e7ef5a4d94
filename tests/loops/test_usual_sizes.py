"""Kernels with sizes that vary are made for the sizes that they usually have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedule.machine import GOLDEN
from schedule.programs import Inputs, add, plan_of, product, total

from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Affine, var
from minigrad.loops.nest import Loop, Nest, Prefetch, Store, show, walk
from minigrad.loops.recipes import lower
from minigrad.schedule.schedule import Kernel

CACHED = replace(GOLDEN, l3=32 << 20)


def size(usual: int, most: int = 1024) -> Affine:
    return var("_0", 1, most, usual=usual)


def kernels(build: object) -> list[Kernel]:
    return plan_of(build).kernels  # type: ignore[arg-type]


def nest_of(*shape: object, target: object = CACHED) -> Nest:
    """A nest of an elementwise program on an array."""
    (kernel,) = kernels(lambda new: [add(new(*shape), 1.0)])
    return lower(kernel, target)  # type: ignore[arg-type]


def asks(nest: Nest) -> bool:
    return any(isinstance(one, Prefetch) for one in walk(nest.parallel))


def streams(nest: Nest) -> bool:
    return any(isinstance(one, Store) and one.streaming for one in walk(nest.parallel))


@pytest.mark.parametrize(("shape", "large"), [
    ((1024, 1024), False), ((8192, 1024), True),
    ((size(1024, 8192), 1024), False), ((size(8192, 65536), 1024), True),
])  # fmt: skip
def test_what_stays_in_the_last_cache_is_neither_prefetched_nor_streamed(shape, large) -> None:
    """4 and 32 MiB; of a varying number of rows, their bounds are 32 and 256."""
    assert asks(nest_of(*shape)) == streams(nest_of(*shape)) == large


def test_a_sum_over_a_varying_number_of_rows_adds_up_the_sums_of_rows() -> None:
    rows, sums = kernels(lambda new: [total(new(size(512), 1024), 0, 1)])
    assert rows.rows == size(512) and sums.rows == 1
    few = kernels(lambda new: [total(new(size(512), 3), 0, 1)])  # too short for rows of their own
    assert len(few) == 1


def channels_first(count: object, height: object, width: object, new: Inputs) -> Node:
    """A 1 × 1 convolution of images (count, 16, height, width)."""
    images, filters = new(count, 1, 16, height, width), new(1, 32, 16, 1, 1)
    wide = (count, 32, 16, height, width)
    return total(g.elementwise(Op.MUL, g.expand(images, wide), g.expand(filters, wide)), 2)


def channels_last(count: object, height: object, width: object, new: Inputs) -> Node:
    """The same of images (count, height, width, 16)."""
    images, filters = new(count, height, width, 1, 16), new(1, 1, 1, 32, 16)
    wide = (count, height, width, 32, 16)
    return total(g.elementwise(Op.MUL, g.expand(images, wide), g.expand(filters, wide)), 4)


@pytest.mark.parametrize(("of", "shape"), [
    (channels_first, (8, 20, 24)), (channels_first, (size(8), 20, 24)),
    (channels_last, (8, 20, 24)), (channels_last, (size(8), 20, 24)),
    (channels_last, (8, size(20), size(24))),
])  # fmt: skip
def test_convolutions_of_varying_images_are_products(of, shape) -> None:
    (kernel,) = kernels(lambda new: [of(*shape, new)])
    assert kernel.kind == "contraction"


def test_a_tile_has_fewer_rows_than_the_bound_of_a_varying_size() -> None:
    """Otherwise a tile's rows could not be unrolled; 9 rows fit in one tile."""
    for most in (2, 3, 9, 12, 100):
        rows = size(9, most)
        plan = plan_of(lambda new, rows=rows: [product(new(rows, 32), new(32, 64))])
        nest = lower(plan.kernels[0], GOLDEN)
        assert "contraction" in show(nest)
        unrolled = [one for one in walk(nest.parallel) if isinstance(one, Loop)
                    and one.kind == "unroll"]  # fmt: skip
        assert all(isinstance(stop, int) or stop - one.start <= most for one in unrolled
                   for stop in one.stops if isinstance(stop - one.start, int))  # fmt: skip


def test_copies_of_many_varying_elements_are_not_brief() -> None:
    (copy,) = kernels(lambda new: [g.contiguous(g.permute(new(size(64), 64, 64), (0, 2, 1)))])
    (few,) = kernels(lambda new: [g.contiguous(g.permute(new(size(2, 16), 8, 8), (0, 2, 1)))])
    assert not lower(copy, GOLDEN).masked and lower(few, GOLDEN).masked
