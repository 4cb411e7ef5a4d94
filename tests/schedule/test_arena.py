"""The arena: arrays alive at the same time never share a byte."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import pytest

from minigrad.compile import schedule_of
from minigrad.dtype import dtypes
from minigrad.graph import build as g
from minigrad.graph.build import permute
from minigrad.graph.node import Node, Op
from minigrad.graph.operations import SCATTERS
from minigrad.graph.symbolic import ceildiv, high
from minigrad.runtimes.opencl_program import shared_buffers
from minigrad.schedule import expr
from minigrad.schedule.expr import Array
from minigrad.schedule.fuse import aligned
from minigrad.schedule.schedule import Kernel, LiveRange, live_ranges
from minigrad.schedule.stage import Stage
from minigrad.target import LINE

from .machine import GOLDEN, plan_arena, run
from .programs import (
    DEVICE,
    PROGRAMS,
    Inputs,
    add,
    ew,
    graph_of,
    mul,
    plan_of,
    product,
    values_for,
)
from .random_graphs import random_program


def lifetimes(kernels: Sequence[Kernel]) -> dict[Array, tuple[int, int]]:
    """First and last step of every array that is stored or read."""
    found: dict[Array, tuple[int, int]] = {}
    for step, kernel in enumerate(kernels):
        touched = {array.whole or array for array in kernel.stored}
        for stage in kernel.stages:
            touched |= {load.array for load in expr.loads(*stage.exprs())}
        for array in touched:
            first, _ = found.get(array, (step, step))
            found[array] = (first, step)
    return found


def may_share(kernel: Kernel, old: Array, new: Array) -> bool:
    """Whether a kernel may write one array over the other.

    It may if it reads each row of the old array before it writes that row of the new one, and no
    later stage reads the old one; or if it works element by element and reads all operands before
    it writes (`Stores`).
    """
    made = [stage.array for stage in kernel.stages]
    if new not in made or old in made:
        return False
    place = made.index(new)
    target = kernel.stages[place]
    if target.op in SCATTERS:
        start, within = target.initial, (target.position, *target.guard)
        inside = [e for index in within for e in expr.values_in(index)]
        return (
            start is not None and start.array == old and start.index == target.initial_position
            and old not in {load.array for load in expr.loads(target.body, *inside)}
        )  # fmt: skip
    for number, stage in enumerate(kernel.stages):
        own = [load for load in expr.loads(*stage.exprs()) if load.array == old]
        same = stage.op is None and all(load.index == stage.position for load in own)
        before = number <= place or kernel.kind == "contraction" or kernel.rows == target.size
        if own and not (same and before and stage.size == target.size):
            rows = kernel.kind == "rows" and number < place
            if not (rows and aligned(stage, target, kernel.rows, old)):
                return False
    return True


Planner = Callable[[Sequence[LiveRange]], tuple[dict[Array, int], int]]


def check(
    kernels: Sequence[Kernel], slots: dict[Array, int], planner: Planner = plan_arena
) -> tuple[int, int]:
    """Compare all pairs of arrays; returns the arena's size and the most bytes alive at a step."""
    offsets, size = planner(live_ranges(kernels, slots))
    alive = lifetimes(kernels)
    stored = {array.whole or array for kernel in kernels for array in kernel.stored}
    assert set(offsets) == {array for array in stored if array not in slots}
    steps: dict[int, list[tuple[int, int, Array]]] = {}
    for array, offset in offsets.items():
        stop = offset + array.size * array.dtype.itemsize
        assert offset % LINE == 0 and offset >= 0 and stop <= size
        for step in range(alive[array][0], alive[array][1] + 1):
            steps.setdefault(step, []).append((offset, stop, array))
    most = 0
    for places in steps.values():
        places.sort(key=lambda place: place[:2])
        for (begin, stop, one), (start, end, other) in itertools.pairwise(places):
            if (begin, stop) == (start, end):
                old, new = sorted((one, other), key=lambda array: alive[array])
                step = alive[old][1]
                if step == alive[new][0] and may_share(kernels[step], old, new):
                    continue
            assert stop <= start, f"{one} and {other} overlap"
        spans = {(start, stop) for start, stop, _ in places}
        most = max(most, sum(ceildiv(b - a, LINE) * LINE for a, b in spans))
    assert size >= most
    return size, most


def made_up(seed: int) -> tuple[list[Kernel], dict[Array, int]]:
    """Random kernels that read arrays of earlier ones."""
    random_ = random.Random(seed)
    source = Array("s0", dtypes.float32, 10)
    slots = {source: 0}
    known = [source]
    bodies: list[list[tuple[Array, list[Array]]]] = []
    read_later: set[Array] = set()
    for step in range(random_.randint(1, 25)):
        stages = []
        inside: list[Array] = []
        for number in range(random_.randint(1, 3)):
            dtype = random_.choice([dtypes.float32, dtypes.int8, dtypes.float64])
            array = Array(f"t{step}_{number}", dtype, random_.choice([1, 3, 16, 17, 100, 1000]))
            reads = [random_.choice(known[-random_.choice([3, 12]):]) for _ in range(2)]
            read_later |= set(reads)
            reads += random_.sample(inside, min(len(inside), 1))
            stages.append((array, reads))
            inside.append(array)
        bodies.append(stages)
        known += inside
    kernels = []
    for body in bodies:
        stages = []
        for array, reads in body:
            value = expr.load(reads[0], 0)
            for other in reads[1:]:
                right = expr.apply(Op.CAST, (expr.load(other, 0),), value.dtype)
                value = expr.apply(Op.ADD, (value, right), value.dtype)
            value = expr.apply(Op.CAST, (value,), array.dtype)
            stages.append(Stage(array, (array.size,), (), (), None, value, 0))
        stored = frozenset(array for array, _ in body if array in read_later)
        kernels.append(Kernel("rows", tuple(stages), 1, stored))
    return kernels, slots


@pytest.mark.parametrize("batch", range(5))
def test_no_two_live_arrays_overlap(batch: int) -> None:
    sizes, ideals = 0, 0
    for seed in range(batch * 40, batch * 40 + 40):
        size, most = check(*made_up(seed))
        sizes, ideals = sizes + size, ideals + most
    assert sizes <= 1.25 * ideals  # first fit wastes little


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str) -> None:
    for fuse in (True, False):
        plan = plan_of(PROGRAMS[name], fuse=fuse)
        size, _ = check(plan.kernels, plan.slots)
        assert size == plan.arena_bytes


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    plan = plan_of(random_program(seed, 40), fuse=False)
    size, most = check(plan.kernels, plan.slots)
    assert size == plan.arena_bytes and size <= 2 * most


def test_memory_is_used_again() -> None:
    """A chain of unfused operations, however long, needs one array: each overwrites it."""

    def chain(inputs: Inputs) -> list[Node]:
        x = inputs(1000)
        for _ in range(20):
            x = ew(Op.TANH, x)
        return [x]

    plan = plan_of(chain, fuse=False)
    assert len(plan.kernels) == 20
    assert plan.arena_bytes == ceildiv(4000, LINE) * LINE


def test_a_product_is_written_over_what_it_is_added_to() -> None:
    def added(inputs: Inputs) -> list[Node]:
        before = g.scan(Op.CUMSUM, inputs(130, 48), 0)
        both = add(product(inputs(130, 20), inputs(20, 48)), before)
        return [mul(both, g.expand(g.reduce(Op.SUM, mul(both, both), [0, 1]), both.shape))]

    plan = plan_of(added)
    check(plan.kernels, plan.slots)
    assert 1 <= plan.arena_bytes / (130 * 48 * 4) < 1.1


def test_rows_are_scattered_over_the_product_that_they_are_added_to() -> None:
    """The two gradients of a table that is used twice share one array, which is not cleared."""
    plan = plan_of(PROGRAMS["tied_embedding_gradient"])
    check(plan.kernels, plan.slots)
    assert 1 <= plan.arena_bytes / (130 * 48 * 4) < 1.1
    assert [kernel.kind for kernel in plan.kernels[:2]] == ["contraction", "scatter"]
    assert plan.kernels[1].stages[0].in_place


def test_rows_are_scattered_over_a_rounded_product() -> None:
    """The same in mixed precision, where a product is rounded between two transpositions."""

    def build(inputs: Inputs) -> list[Node]:
        logits, hidden = inputs(130, 20, low=-9, high=9), inputs(20, 48, low=-9, high=9)
        index, x = inputs(20, dtype=dtypes.int32, low=0, high=130), inputs(20, 48)
        spread = g.expand(g.reshape(index, (20, 1)), (20, 48))
        rounded = g.cast(permute(product(logits, hidden), (1, 0)), dtypes.bfloat16)
        base = g.cast(permute(rounded, (1, 0)), dtypes.float32)
        zeros = g.const(0.0, dtypes.float32, (130, 48), DEVICE)
        total = add(base, g.scatter_add(zeros, spread, x, 0))
        return [mul(total, g.expand(g.reduce(Op.SUM, mul(total, total), [0, 1]), total.shape))]

    graph, inputs = graph_of(build)
    plan = schedule_of(graph, GOLDEN)
    check(plan.kernels, plan.slots)
    assert 1 <= plan.arena_bytes / (130 * 48 * 4) < 1.1
    assert [kernel.kind for kernel in plan.kernels[:2]] == ["contraction", "scatter"]
    assert plan.kernels[1].stages[0].in_place
    values = {slot: np.round(value) for slot, value in values_for(inputs, 1).items()}
    expected = (values[0] @ values[1]).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.add.at(expected, values[2], values[3])
    (found,) = run(graph, values, "avx512")
    np.testing.assert_allclose(found, expected * np.square(expected).sum(), rtol=1e-5)


def test_a_scatter_that_reads_its_base_elsewhere_copies_it() -> None:
    def moved(inputs: Inputs) -> list[Node]:
        base, index = ew(Op.TANH, inputs(20, 20)), inputs(20, dtype=dtypes.int32, low=0, high=20)
        spread = g.expand(g.reshape(index, (20, 1)), (20, 20))
        return [ew(Op.EXP, g.scatter_add(base, spread, permute(base, (1, 0)), 0))]

    plan = plan_of(moved, fuse=False)
    check(plan.kernels, plan.slots)
    (scatter,) = [kernel.stages[0] for kernel in plan.kernels if kernel.kind == "scatter"]
    assert not scatter.in_place


def test_a_transpose_is_not_written_over_what_it_reads() -> None:
    def turned(inputs: Inputs) -> list[Node]:
        x = ew(Op.TANH, inputs(30, 30))
        return [ew(Op.EXP, ew(Op.TANH, permute(x, (1, 0))))]

    plan = plan_of(turned, fuse=False)
    check(plan.kernels, plan.slots)
    assert plan.arena_bytes == 2 * ceildiv(3600, LINE) * LINE


@pytest.mark.parametrize("seed", range(20))
def test_a_shared_buffer_holds_one_thing_at_a_time(seed: int) -> None:
    """Shared buffers, which OpenCL uses instead of an arena."""
    held = live_ranges(*made_up(seed))
    numbers, sizes = shared_buffers(held)
    assert all(sizes[n] >= high(one.nbytes) for n, one in zip(numbers, held, strict=True))
    pairs = itertools.combinations(zip(numbers, held, strict=True), 2)
    assert all(m != n or a.last < b.first or b.last < a.first for (m, a), (n, b) in pairs)
    assert len(sizes) < len(held) or len(held) < 2


def test_the_check_can_fail() -> None:
    """An arena with all arrays at offset 0 fails the check."""

    def all_at_0(held: Sequence[LiveRange]) -> tuple[dict[Array, int], int]:
        offsets, size = plan_arena(held)
        return dict.fromkeys(offsets, 0), size

    with pytest.raises(AssertionError, match="overlap"):
        for seed in range(10):
            check(*made_up(seed), all_at_0)
