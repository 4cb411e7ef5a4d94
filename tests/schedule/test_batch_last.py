"""Products with a last axis that both operands share: the order of loops, and what is copied."""

from __future__ import annotations

from minigrad.schedule.schedule import Kernel, Schedule

from .programs import PROGRAMS, plan_of


def products(plan: Schedule) -> list[Kernel]:
    return [kernel for kernel in plan.kernels if kernel.kind == "contraction"]


def test_a_depthwise_weight_is_copied() -> None:
    """Its channels are far apart, and every window reads it; the image is not copied."""
    plan = plan_of(PROGRAMS["depthwise"])
    assert len(products(plan)) == 2
    sizes = {a.size for kernel in plan.kernels for a in kernel.stored if a.name.startswith("t")}
    assert sizes == {3 * 3 * 20}


def test_a_batch_of_few_comes_first() -> None:
    """A batch that fills a vector stays last, and needs no copies."""
    plan = plan_of(PROGRAMS["batch_last"])
    batches = []
    for kernel in products(plan):
        parts = kernel.stages[0].product
        assert parts is not None
        batches.append((parts.shared, [axis.extent for axis in parts.batch]))
    assert sorted(batches) == [(False, [5]), (True, [18])]


def test_counting_adds_at_a_place() -> None:
    """There is no pass over all places for each term."""
    plan = plan_of(PROGRAMS["counts"])
    most = max(stage.iterations for kernel in plan.kernels for stage in kernel.stages)
    assert most <= 3 * 50 and {kernel.kind for kernel in plan.kernels} >= {"scatter"}
