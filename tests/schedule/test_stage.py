"""Stages describe how a value is computed; keeping them between attempts changes nothing."""

from __future__ import annotations

import random

import pytest

from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph.node import topological
from minigrad.graph.operations import ELEMENTWISE, REDUCTIONS, Op
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import high, low
from minigrad.schedule.expr import Array
from minigrad.schedule.joins import with_parts
from minigrad.schedule.lower import Lowering
from minigrad.schedule.stage import Stages, build, identity

from .machine import GOLDEN
from .programs import F32, LENGTH, PROGRAMS, Inputs, add, graph_of, total
from .random_graphs import random_program


@pytest.mark.parametrize("seed", range(30))
def test_stages_that_are_kept_equal_new_ones(seed: int) -> None:
    """A stage kept from an earlier attempt equals one that is built anew."""
    random_ = random.Random(seed)
    graph, _ = graph_of(random_program(seed, 25))
    roots = with_parts(graph.roots)
    order = topological(roots)
    free = [node for node in order if node.op in ELEMENTWISE]
    always = {
        node for node in order
        if node.op in REDUCTIONS or node in roots
        or node.op in (Op.SCATTER_ADD, Op.BUFFER, Op.CAT, Op.CONTIGUOUS)
    }  # fmt: skip
    stages = Stages()
    reused = 0
    for _ in range(6):
        kept = always | {node for node in free if random_.random() < 0.5}
        arrays = {node: stages.array(node) for node in order if node in kept}
        known = dict(stages._built)
        for node in arrays:
            if node.op is Op.BUFFER:
                continue
            stage = stages.of(node, arrays)
            assert stage == build(node, Lowering(arrays))
            reused += node in known and known[node][0] is stage
    assert reused or not free


def test_arrays_keep_their_names() -> None:
    inputs = Inputs()
    x, y = inputs(3), inputs(3, 4)
    stages = Stages()
    names = [stages.array(node) for node in (x, y, x)]
    assert names == [Array("t0", F32, 3), Array("t1", F32, 12), Array("t0", F32, 3)]


def test_a_sum() -> None:
    inputs = Inputs()
    x = inputs(3, 1, 5)
    node = total(x, 2)
    arrays = {x: Array("s0", F32, 15), node: Array("t", F32, 3)}
    stage = build(node, Lowering(arrays))
    assert [axis.extent for axis in stage.axes] == [3]  # axes of length 1 are dropped
    assert [axis.extent for axis in stage.reduced] == [5]
    assert stage.op is Op.SUM and stage.size == 3 and stage.iterations == 15


def test_symbolic_extents_count_with_their_upper_bound() -> None:
    inputs = Inputs()
    x = inputs(LENGTH, 5)
    node = add(x, 1.0)
    arrays = {x: Array("s0", F32, numel(x.shape)), node: Array("t", F32, numel(x.shape))}
    stage = build(node, Lowering(arrays))
    assert stage.size == stage.iterations == 24 * 5


@pytest.mark.parametrize("name", PROGRAMS)
def test_positions_stay_inside_the_array(name: str) -> None:
    for kernel in schedule_of(graph_of(PROGRAMS[name])[0], GOLDEN).kernels:
        for stage in kernel.stages:
            if stage.op is not Op.SCATTER_ADD:
                assert low(stage.position) >= 0 and high(stage.position) < stage.array.size


@pytest.mark.parametrize("dtype", [F32, dtypes.int8, dtypes.uint16, dtypes.bool, dtypes.float16])
def test_identities(dtype: DType) -> None:
    """The result of a reduction over nothing."""
    assert identity(Op.SUM, dtype).value == 0
    assert identity(Op.PROD, dtype).value == 1
    assert identity(Op.MAX, dtype).value == dtype.minimum
