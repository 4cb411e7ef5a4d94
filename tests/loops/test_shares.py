"""Which part of an array each iteration touches, and kernels that run in turn because of it."""

from __future__ import annotations

import numpy as np
import pytest
from schedule.machine import following, run, target_of

from minigrad import Tensor
from minigrad.compile import schedule_of
from minigrad.dtype import dtypes
from minigrad.graph.canonical import canonicalize
from minigrad.graph.node import Op, topological
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Integer, var
from minigrad.loops.nest import Loop, Store
from minigrad.loops.recipes import lower
from minigrad.loops.shares import UNKNOWN, Share, share_of
from minigrad.schedule import expr
from minigrad.schedule.expr import Array
from minigrad.schedule.groups import CONCURRENT, INTERLEAVED, SHARED, WAITS, launched
from minigrad.tensor import winograd

ROW, PLACE = var("r0", 0, 7), var("i0", 0, 31)
START = var("_start0", 0, 960)
READ, MADE = (Array(name, dtypes.float32, 1024) for name in ("x", "o"))


def nest_of(index: Integer, start: Integer = 0, stop: Integer = 4) -> Loop:
    """o[r0] = x[index], for start <= i0 < stop, for r0 < 8."""
    inner = Loop(PLACE.terms[0][0], start, (stop,), (Store(MADE, ROW, expr.load(READ, index)),))
    return Loop(ROW.terms[0][0], 0, (8,), (inner,))


@pytest.mark.parametrize("index, expected", [
    (ROW * 4 + PLACE, Share(32)),
    (ROW * 5 + PLACE, Share(40)),  # with gaps
    (ROW * 3 + PLACE, UNKNOWN),  # parts overlap
    (ROW * 4 + PLACE + 1, UNKNOWN),  # the last element is the next part's
    (ROW * 4 + PLACE + 64, Share(32)),  # the same part of a later batch
    (ROW * 4 + PLACE * 32, Share(32)),  # an element of each batch
    (ROW * 4 + PLACE + START, Share(32, ("_start0",))),
    (ROW * 4 + PLACE + START * 2, UNKNOWN),
    (ROW // 2 * 8 + PLACE, UNKNOWN),
    (PLACE, UNKNOWN),
    (PLACE - ROW * 4 + 28, UNKNOWN),  # backwards
])  # fmt: skip
def test_a_share(index: Integer, expected: Share) -> None:
    assert share_of(nest_of(index), READ, ["_start0"]) == expected
    assert share_of(nest_of(index), MADE, ["_start0"]) == Share(8)


def test_bounds_and_several_accesses_decide_a_share() -> None:
    moved = nest_of(PLACE, ROW * 4, ROW * 4 + 4)
    assert share_of(moved, READ, []) == Share(32)
    both = (*moved.body, *nest_of(PLACE).body)
    assert share_of(moved.around(both), READ, []) == UNKNOWN


def test_starts_must_be_multiples_of_the_length() -> None:
    class Loops:
        total, grain, shares = 8, 1, ((32, ("_start0",)), (8, ()), (16, ()))

    sources = [("slot", 0), ("slot", 1), ("slot", 1)]
    for start, length in ((64, 32), (48, 0)):
        found = launched(SHARED, Loops(), sources, {"_start0": start})
        assert found.shares == {("slot", 0): length}, "no share of memory that has two"
        assert (found.total, found.chunks) == (8, 8)


@pytest.mark.parametrize("turned", [False, True], ids=["result", "gradient"])
@pytest.mark.parametrize("seed", range(3))
def test_the_tiles_of_a_convolution_go_through_three_kernels_in_turn(
    seed: int, turned: bool
) -> None:
    """In chunks of any order; they wait for the weights and for the images, which have borders.

    The gradient by the images is a convolution of the result's with the weight turned around.
    """
    generator = np.random.default_rng(seed)
    shapes = (2, 8, 32, 32), (8, 8, 3, 3)
    arrays = [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]
    x, w = (Tensor(array).realize() for array in arrays)
    if turned:
        of = Tensor.empty(2, 8, 32, 32)
        y = winograd.convolved(of, w, [(1, 1), (1, 1)], [32, 32])
        result = y.gradient(of, gradient=x.movedim(1, -1))[0].movedim(1, -1)
    else:
        result = winograd.convolved(x, w, [(1, 1), (1, 1)], [32, 32])
    call = canonicalize([result.contiguous().node])
    graph, target = call.graph(), target_of("small caches")
    plan = schedule_of(graph, target)
    follows = following(plan, [lower(kernel, target) for kernel in plan.kernels])
    hows, in_turn = ([one[n] for one in follows] for n in (0, 1))
    place = next(n for n, kernel in enumerate(plan.kernels) if kernel.kind == "contraction")
    assert hows[place - 1 : place + 2] == [WAITS, INTERLEAVED, INTERLEAVED]
    assert set(hows[: place - 1]) <= {WAITS, CONCURRENT} and INTERLEAVED not in hows[place + 2 :]
    assert in_turn == [16 if abs(n - place) < 2 else 0 for n in range(len(hows))]
    buffers = [node for node in topological(graph.roots) if node.op is Op.BUFFER]
    given = {node.arg: array.reshape(node.shape) for node in buffers for array in arrays
             if array.size == numel(node.shape)}  # fmt: skip
    (found,) = run(graph, given, "small caches", seed=seed)
    images, kernels = (array.astype(np.float64) for array in arrays)
    if turned:
        kernels = kernels.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3)
    )
    expected = np.einsum("nchwij,ocij->nhwo", windows, kernels)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)
