"""Stages describe how a value is computed."""

from __future__ import annotations

import pytest

from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph.operations import Op
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import high, low
from minigrad.schedule.expr import Array
from minigrad.schedule.lower import Lowering
from minigrad.schedule.stage import build, identity

from .machine import GOLDEN
from .programs import F32, LENGTH, PROGRAMS, Inputs, add, graph_of, total


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
