"""Which values are kept: what is read twice by one reader at the same place is computed once."""

from __future__ import annotations

from minigrad.graph import build as g
from minigrad.graph.node import Node, Op

from .programs import Inputs, add, ew, mul, plan_of, total


def test_a_value_used_twice_at_one_place_is_not_stored() -> None:
    """relu(a·b + c) reads its operand twice, for the test and for the result."""

    def build(inputs: Inputs) -> list[Node]:
        x = add(mul(inputs(1 << 18), inputs(1 << 18)), inputs(1 << 18))
        return [total(ew(Op.WHERE, ew(Op.LE, x, 0.0), ew(Op.MUL, x, 0.5), x), 0)]

    plan = plan_of(build)
    stored = [array.size for kernel in plan.kernels for array in kernel.stored]
    assert max(stored) <= 128, stored


def test_a_value_used_at_two_places_is_kept() -> None:
    """x + reversed x: each of the two readers would otherwise read three arrays."""

    def build(inputs: Inputs) -> list[Node]:
        x = add(mul(inputs(1 << 18), inputs(1 << 18)), inputs(1 << 18))
        return [add(x, g.flip(x, (0,)))]

    plan = plan_of(build)
    assert sum(len(kernel.stages) for kernel in plan.kernels) == 2
