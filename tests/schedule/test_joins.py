"""CAT: pieces are written directly to their parts of the result; readers of a part see its piece.
"""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor
from minigrad.graph import build as g
from minigrad.graph.gradient import gradient
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.simplify import simplify

from .programs import Inputs, add, ew, mul, plan_of, softmax, total
from .test_fuse import compare


def of_inputs(inputs: Inputs) -> list[Node]:
    return [g.cat([inputs(7, 6), inputs(1, 6), inputs(9, 6), inputs(7, 6)], 0)]


def of_results(inputs: Inputs) -> list[Node]:
    """Pieces side by side, each the last stage of its kernel; a sum reads the join."""
    x, y = inputs(30, 16), inputs(30, 16)
    joined = g.cat([softmax(x, 1), ew(Op.TANH, y), softmax(mul(y, 2.0), 1), x], 1)
    return [joined, total(joined, 0)]


def of_one(inputs: Inputs) -> list[Node]:
    """Pieces that would share a kernel if they were results of their own."""
    x = inputs(30, 16)
    return [g.cat([softmax(x, 1), softmax(mul(x, 2.0), 1), add(x, 1.0), softmax(x, 0)], 0)]


def in_place(inputs: Inputs) -> list[Node]:
    """An input is overwritten by its own parts, in another order."""
    x = inputs(8, 6)
    parts = [g.shrink(x, [(start, start + 2), (0, 6)]) for start in (6, 0, 4, 2)]
    return [g.cat(parts, 0), add(x, 1.0)]


def twice(inputs: Inputs) -> list[Node]:
    """One piece at several places of three results."""
    x, y = ew(Op.TANH, inputs(5, 4)), inputs(5, 4)
    return [g.cat([x, x, y, x], 0), g.cat([x, x, y, y], 1), g.cat([x, y, x, x], 0)]


def grid(inputs: Inputs) -> list[Node]:
    """A grid of pieces, joined along two axes: each is a piece of the whole."""
    x, y = inputs(6, 8), inputs(6, 8)
    rows = [[softmax(x, 1), y, mul(x, 2.0)], [ew(Op.TANH, y), add(x, y), x]]
    joined = [g.cat([g.reshape(piece, (6, 1, 8, 1)) for piece in row], 3) for row in rows]
    return [g.cat(joined, 1)]


def read_between(inputs: Inputs) -> list[Node]:
    """Joins as pieces of a join, one of them twice; a sum reads one of them, too."""
    x, y = inputs(6, 8), inputs(6, 8)
    row, other = g.cat([softmax(x, 1), y], 1), g.cat([add(x, y), x], 1)
    return [g.cat([row, other, other], 0), total(row, 0)]


PROGRAMS = [of_inputs, of_results, of_one, in_place, twice, grid, read_between]


@pytest.mark.parametrize("build", PROGRAMS)
def test_programs(build) -> None:
    compare(build, {0: 0} if build is in_place else {}, build.__name__)


def test_a_piece_is_stored_by_the_kernel_that_computes_it() -> None:
    plan = plan_of(of_results)
    stored = [{(array.whole or array).name for array in kernel.stored} for kernel in plan.kernels]
    assert set(map(len, stored)) == {1} and stored[-1] == {"o3"} and stored[0] == {"o2"}
    assert plan.arena_bytes == 0


def test_pieces_of_a_grid_are_stored_once() -> None:
    plan = plan_of(grid)
    stored = {(array.whole or array).name for kernel in plan.kernels for array in kernel.stored}
    assert stored == {"o2"} and plan.arena_bytes == 0


def test_equal_pieces_share_code(cpu: str) -> None:
    def kernels(count: int) -> tuple[int, int]:
        pieces = [Tensor.full((6, 5), float(i), device=cpu).contiguous() for i in range(count)]
        Tensor.realize(*pieces)
        before = GlobalCounters.kernels_lowered + GlobalCounters.cache_hits
        whole = Tensor.cat(*pieces)
        assert whole.numpy()[::6, 0].tolist() == list(range(count))
        whole = Tensor.stack(*pieces, dim=1)
        assert whole.numpy()[0, :, 0].tolist() == list(range(count))
        return GlobalCounters.kernels_lowered + GlobalCounters.cache_hits - before, count

    first, _ = kernels(20)
    again, count = kernels(60)
    assert again <= first <= 4 < count


def test_products_are_stored_where_their_parts_begin(cpu: str) -> None:
    """Several products of one matrix, in one kernel; their results are parts of one array."""
    random = np.random.default_rng(0)
    a, w, scale = (random.standard_normal(shape, np.float32) for shape in ((8, 32), (32, 96), 96))
    x, matrix, factor = (Tensor(array, device=cpu).realize() for array in (a, w, scale))
    rows = [(x[i] @ matrix) * factor for i in range(8)]
    np.testing.assert_allclose(Tensor.stack(rows).numpy(), a @ w * scale, rtol=1e-4, atol=1e-4)
    joined = Tensor.cat(*[row.reshape(6, 16) for row in rows], dim=1).numpy()
    wanted = np.concatenate([row.reshape(6, 16) for row in a @ w * scale], 1)
    np.testing.assert_allclose(joined, wanted, rtol=1e-4, atol=1e-4)


def test_a_reader_of_a_part_sees_its_piece() -> None:
    x = [Tensor.rand(4, 5).node for _ in range(6)]
    joined = g.cat(x, 0)
    (part,) = simplify([g.shrink(joined, [(8, 12), (1, 5)])])
    assert part is g.shrink(x[2], [(0, 4), (1, 5)])
    (parts,) = simplify([g.shrink(joined, [(7, 17), (0, 5)])])
    assert parts.op is Op.CAT and [piece.shape[0] for piece in parts.src] == [1, 4, 4, 1]
    whole = g.shrink(joined, [(1, 23), (0, 5)])
    assert simplify([whole]) == (whole,)


def test_the_gradient_of_many_parts_is_one_array() -> None:
    x = Tensor.rand(7, 5).realize()
    for order in ((0, 2, 3, 5, 6), (6, 1, 2, 4, 0)):  # with gaps, and out of order
        loss = sum(((x[i] * (i + 2.0)) ** 2).sum() for i in order)
        (found,) = loss.gradient(x)
        assert found.node.op is Op.CAT
        want = np.zeros((7, 5))
        for i in order:
            want[i] = 2 * (i + 2.0) ** 2 * x.numpy()[i]
        np.testing.assert_allclose(found.numpy(), want, rtol=1e-5)
    (found,) = sum((x[i : i + 2] * 2.0).sum() for i in range(5)).gradient(x)  # they overlap
    assert found.numpy()[:, 0].tolist() == [2, 4, 4, 4, 4, 2, 0]


def test_the_gradient_of_a_join_has_no_more_nodes_than_pieces() -> None:
    def nodes(count: int) -> int:
        x = [Tensor.rand(3).node for _ in range(count)]
        joined = g.cat(x, 0)
        found = gradient([joined], [Tensor.ones(3 * count).node], x)
        return len(topological([node for node in found if node is not None]))

    assert nodes(60) - nodes(40) == nodes(40) - nodes(20)
