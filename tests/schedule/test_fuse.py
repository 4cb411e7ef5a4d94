"""Which values share a kernel, and that every schedule's order is valid."""

from __future__ import annotations

from dataclasses import replace
from threading import Thread

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import high
from minigrad.loops import nest
from minigrad.loops.recipes import lower
from minigrad.runtimes.reference import evaluate
from minigrad.schedule import expr
from minigrad.schedule import fuse as fusion
from minigrad.schedule.expr import Array
from minigrad.schedule.fuse import MOST_ARRAYS
from minigrad.schedule.materialize import DEEPEST
from minigrad.schedule.schedule import Schedule, Source
from minigrad.schedule.stage import Stage

from .agreement import agree
from .machine import GOLDEN
from .programs import (
    DEVICE,
    F32,
    PROGRAMS,
    Build,
    Inputs,
    add,
    ew,
    gelu,
    graph_of,
    mean,
    mul,
    number,
    plan_of,
    product,
    softmax,
    total,
    transpose,
)
from .random_graphs import random_program

# Program → number of kernels, where a change would matter.
KERNELS = {
    "transposed_chain": 1, "row_softmax": 1, "layer_norm": 1, "gelu_linear": 1,
    "group_norm": 1,
    "linear_transposed": 1, "convolution": 1, "product_of_sums": 2, "column_sum": 1,
    "two_outputs": 1, "rows_and_columns": 2, "embedding": 1, "padded": 1, "symbolic_softmax": 1,
    "any_and_all": 1, "scattered": 1, "scattered_inside_rows": 2, "long_sum": 2,
    "rows_before": 2, "rows_behind": 2,
}  # fmt: skip


def test_what_is_aligned_for_many_rows_is_aligned_for_fewer() -> None:
    """`_shared_rows` relies on it: it tests row counts from the largest down."""
    tested = 0
    for build in [*PROGRAMS.values(), *map(random_program, range(20))]:
        for kernel in plan_of(build).kernels:
            made = {stage.array: stage for stage in kernel.stages}
            for stage in kernel.stages:
                counts = sorted(stage.row_counts, key=high)
                for producer in [made[array] for array in stage.reads if array in made]:
                    found = [fusion.aligned(stage, producer, n) for n in counts]
                    assert found == sorted(found, reverse=True), (stage, producer)
                    tested += len(set(found)) == 2
    assert tested > 10  # aligned for some, but not for all


@pytest.mark.parametrize("name", KERNELS)
def test_number_of_kernels(name: str) -> None:
    assert len(plan_of(PROGRAMS[name]).kernels) == KERNELS[name]


def test_fuse_0_makes_a_kernel_of_each_operation() -> None:
    plan = plan_of(PROGRAMS["row_softmax"], fuse=False)
    assert [len(kernel.stages) for kernel in plan.kernels] == [1] * 5  # max, −, exp, sum, ÷
    assert all(kernel.stages[0].array in kernel.stored for kernel in plan.kernels)


def test_a_softmax_keeps_its_row_inside_the_kernel() -> None:
    (kernel,) = plan_of(PROGRAMS["row_softmax"]).kernels
    assert kernel.kind == "rows" and kernel.rows == 40
    assert [array.name for array in kernel.stored] == ["o1"]


def test_a_product_takes_bias_and_gelu_with_it() -> None:
    plan = plan_of(PROGRAMS["gelu_linear"])
    (kernel,) = plan.kernels
    assert kernel.kind == "contraction" and len(kernel.stages) == 2
    assert plan.arena_bytes == 0


def test_two_layers_are_two_kernels() -> None:
    def mlp(inputs: Inputs) -> list[Node]:
        x, first, bias, second = inputs(32, 24), inputs(24, 40), inputs(40), inputs(40, 10)
        return [product(gelu(add(product(x, first), bias)), second)]

    plan = plan_of(mlp)
    assert [kernel.kind for kernel in plan.kernels] == ["contraction"] * 2
    assert plan.arena_bytes == 32 * 40 * 4


def test_who_watches_sees_what_its_own_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Watcher(fusion.Watcher):
        def settled(self, stage: Stage, home: fusion.Cluster) -> None:
            seen.append(stage.array.name)

    monkeypatch.setattr(fusion.watching, "watcher", Watcher())
    other = Thread(target=plan_of, args=(PROGRAMS["row_softmax"],))
    other.start()
    other.join()
    assert not seen
    stages = [stage for k in plan_of(PROGRAMS["gelu_linear"]).kernels for stage in k.stages]
    assert seen == [stage.array.name for stage in stages]


def test_a_residual_joins_its_product() -> None:
    def residual(inputs: Inputs) -> list[Node]:
        x, weight = inputs(32, 24), inputs(24, 24)
        return [add(x, product(x, weight))]

    assert len(plan_of(residual).kernels) == 1


def test_long_sums_stay_parallel() -> None:
    """The second half of a cut sum has one row; in its kernel, the first half would have one too.
    """
    first, second = plan_of(PROGRAMS["long_sum"]).kernels
    assert first.rows == 200 and second.rows == 1


def test_a_mean_loss_does_not_make_its_rows_serial() -> None:
    def loss(inputs: Inputs) -> list[Node]:
        x = inputs(64, 700)
        powers = ew(Op.EXP, ew(Op.SUB, x, g.reduce(Op.MAX, x, [1])))
        return [total(ew(Op.LOG, total(powers, 1)), 0, 1)]

    plan = plan_of(loss)
    assert max(kernel.rows for kernel in plan.kernels) == 64
    heavy = [k for k in plan.kernels if sum(s.iterations for s in k.stages) > 64 * 600]
    assert all(kernel.rows == 64 for kernel in heavy)


def test_small_work_is_not_worth_a_kernel_of_its_own() -> None:
    def small(inputs: Inputs) -> list[Node]:
        x = inputs(8, 16)
        return [total(total(mul(x, x), 1), 0)]

    assert len(plan_of(small).kernels) == 1


def test_what_needs_the_whole_input_waits_for_it() -> None:
    """One row of a transposed reader needs all rows of its producer."""

    def crossing(inputs: Inputs) -> list[Node]:
        x = softmax(inputs(64, 64), 1)
        return [softmax(transpose(x), 1)]

    assert len(plan_of(crossing).kernels) == 2


def test_sums_of_columns_do_not_make_rows_too_long_for_the_first_level_cache() -> None:
    """As the gradients of a layer norm's weight and bias do not, which are sums over 64 rows."""

    def norm(inputs: Inputs, *shape: int) -> list[Node]:
        x = softmax(inputs(*shape), 2)
        return [x, total(mul(x, x), 1)]

    rows = {
        shape: [kernel.rows for kernel in plan_of(lambda inputs, s=shape: norm(inputs, *s)).kernels]
        for shape in ((64, 64, 256), (64, 4, 64))
    }
    assert rows == {(64, 64, 256): [64 * 64, 64 * 256], (64, 4, 64): [64]}


def windows_of(x: Node) -> Node:
    """The pixels of 4 × 4 windows of (2, channels, 24, 24), each pixel with its channels."""
    parts = g.reshape(x, (2, x.shape[1], 6, 4, 6, 4))
    return g.reshape(g.permute(parts, (0, 2, 4, 3, 5, 1)), (72, 16, x.shape[1]))


def test_elements_in_another_order_have_a_kernel_of_their_own() -> None:
    """They read the same array in another order: equally many elements are not the same rows."""

    def both(inputs: Inputs) -> list[Node]:
        x = inputs(2, 32, 24, 24)
        return [mul(windows_of(x), 2.0), add(x, 1.0)]

    def alike(inputs: Inputs) -> list[Node]:
        x = inputs(2, 32, 24, 24)
        return [mul(g.reshape(x, (64, 576)), 2.0), add(x, 1.0)]

    assert len(plan_of(both).kernels) == 2
    assert len(plan_of(alike).kernels) == 1


def test_what_stages_of_one_kernel_share_is_stored_where_others_compute_it_in_another_order(
) -> None:
    """Softmax of windows, and its gradient in the order of the image: the exponentials are stored.
    Otherwise each stage would have a kernel of its own, which reads across the image.
    """

    def step(inputs: Inputs) -> list[Node]:
        x, seed = Tensor._of(inputs(2, 32, 24, 24)), Tensor._of(inputs(72, 16, 32))
        y = Tensor._of(windows_of(x.node)).softmax(-1)
        return [y.node, y.gradient(x, gradient=seed)[0].node]

    assert [len(kernel.stages) for kernel in plan_of(step).kernels] == [1, 6, 1]
    agree(step)


# ---- every schedule ----


def check_order(plan: Schedule) -> None:
    """Nothing is read before it is computed, computed twice, or overwritten while it is needed.

    Of a joined array, every part is computed, and nothing is read before all parts are.
    """
    made: dict[str, int] = {}
    read: set[str] = set()
    parts: dict[str, list[tuple[int, int]]] = {}
    overwritten: dict[int, int] = {}
    inputs = {array: slot for array, slot in plan.slots.items() if array.name.startswith("s")}
    for step, kernel in enumerate(plan.kernels):
        inside: set[str] = set()
        for stage in kernel.stages:
            for load in expr.loads(*stage.exprs()):
                array = load.array
                if array in inputs:
                    assert overwritten.get(inputs[array], step) == step, f"{array} is gone"
                else:
                    known = array.name in inside or made.get(array.name, step) < step
                    assert known, f"kernel {step} reads {array} too early"
                    read.add(array.name)
            whole = stage.array.whole
            if whole is not None:
                assert whole.name not in read
                parts.setdefault(whole.name, []).append((stage.size, whole.size))
            else:
                assert stage.array.name not in made and stage.array.name not in inside
            inside.add(stage.array.name)
            if (whole or stage.array) in plan.slots:
                overwritten.setdefault(plan.slots[whole or stage.array], step)
        assert {array.name for array in kernel.stored} <= inside
        made.update(((array.whole or array).name, step) for array in kernel.stored)
    for array in plan.slots:
        if array not in inputs:
            assert array.name in made, f"{array} is never written"
    assert {array.name for one in plan.held for array in one.arrays} <= set(made)
    for name, sizes in parts.items():
        assert sum(size for size, _ in sizes) == sizes[0][1], f"{name} has parts nobody made"


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", PROGRAMS)
def test_order_of_programs(name: str, fuse: bool) -> None:
    check_order(plan_of(PROGRAMS[name], fuse=fuse))


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("seed", range(60))
def test_order_of_random_graphs(seed: int, fuse: bool) -> None:
    """Kernels never depend on each other in a cycle."""
    check_order(plan_of(random_program(seed, 30), fuse=fuse))


@pytest.mark.parametrize("batch", range(6))
def test_random_graphs_run(batch: int) -> None:
    for seed in range(100 + 4 * batch, 104 + 4 * batch):
        compare(random_program(seed), {}, f"seed {seed}")


def test_what_lies_across_a_product_is_not_read_as_it_is_computed() -> None:
    """A transposed copy has the axes of its product, but a reader starts at another element."""

    def build(inputs: Inputs) -> list[Node]:
        x, w, bias = inputs(6, 2), inputs(2, 4), inputs(4, 1)
        across = g.contiguous(transpose(product(x, w)))
        return [add(across, g.expand(bias, across.shape))]

    compare(build, {}, "a transposed copy and what is added to it")


def compare(build: Build, in_place: dict[int, int], what: str) -> None:
    """Run a program fused and unfused on this machine, and compare with the reference."""
    print(what)
    for fuse in (True, False):
        check_order(plan_of(build, in_place, fuse))
        check_overwrites(plan_of(build, in_place, fuse))
        agree(build, "host", 5, in_place=in_place, fuse=fuse)


# ---- updates in place ----


def plus_one(inputs: Inputs) -> list[Node]:
    return [add(inputs(40, 40), 1.0)]


def transposed_plus_one(inputs: Inputs) -> list[Node]:
    return [add(transpose(inputs(40, 40)), 1.0)]


def flipped(inputs: Inputs) -> list[Node]:
    return [g.flip(inputs(40, 40), [1])]


def shifted(inputs: Inputs) -> list[Node]:
    return [g.pad(g.shrink(inputs(100), [(1, 100)]), [(0, 1)])]


def shifted_up(inputs: Inputs) -> list[Node]:
    return [g.pad(g.shrink(inputs(100), [(0, 99)]), [(1, 0)])]


def rows_centred(inputs: Inputs) -> list[Node]:
    x = inputs(40, 40)
    return [ew(Op.SUB, x, mean(x, 1))]


def columns_centred(inputs: Inputs) -> list[Node]:
    x = inputs(40, 40)
    return [ew(Op.SUB, x, mean(x, 0))]


def own_softmax(inputs: Inputs) -> list[Node]:
    return [softmax(inputs(40, 40), 1)]


def own_column_softmax(inputs: Inputs) -> list[Node]:
    return [softmax(inputs(40, 40), 0)]


def own_product(inputs: Inputs) -> list[Node]:
    x, weight = inputs(40, 40), inputs(40, 40)
    return [product(x, weight)]


def own_product_from_the_right(inputs: Inputs) -> list[Node]:
    x, weight = inputs(40, 40), inputs(40, 40)
    return [product(weight, x)]


def descent(inputs: Inputs) -> list[Node]:
    """w − 0.1 · xᵀ·(x·w)."""
    weight, x = inputs(24, 16), inputs(30, 24)
    return [ew(Op.SUB, weight, mul(product(transpose(x), product(x, weight)), 0.1))]


def own_scatter(inputs: Inputs) -> list[Node]:
    base, x = inputs(16, 9), inputs(16, 9)
    rows = ew(Op.MOD, mul(g.iota(16, DEVICE), 5), 17)
    return [g.scatter_add(base, g.expand(g.reshape(rows, (16, 1)), (16, 9)), x, 0)]


def own_gather(inputs: Inputs) -> list[Node]:
    x = inputs(16, 9)
    rows = ew(Op.MOD, mul(g.iota(16, DEVICE), 5), 17)
    return [g.gather(x, g.expand(g.reshape(rows, (16, 1)), (16, 9)), 0)]


def two_rows_at_once(inputs: Inputs) -> list[Node]:
    """A row and its neighbour: wrong if rows are overwritten one after the other."""
    x = inputs(40, 40)
    return [add(x, g.pad(g.shrink(x, [(1, 40), (0, 40)]), [(0, 1), (0, 0)]))]


def reshaped(inputs: Inputs) -> list[Node]:
    return [g.reshape(transpose(inputs(20, 30)), (20, 30))]


def old_value_in_several_columns(inputs: Inputs) -> list[Node]:
    """The old value is read after the new one is stored, in a kernel with three results a row."""
    x, other, table = inputs(32), inputs(32), inputs(32, 3)
    new = mul(other, 2.0)
    both = g.expand(g.reshape(add(new, ew(Op.SIN, x)), (32, 1)), (32, 3))
    return [new, mul(both, table)]


OWN = [
    plus_one, transposed_plus_one, flipped, shifted, shifted_up, rows_centred, columns_centred,
    own_softmax, own_column_softmax, own_product, own_product_from_the_right, descent, own_scatter,
    own_gather, two_rows_at_once, reshaped, old_value_in_several_columns,
]  # fmt: skip


@pytest.mark.parametrize("build", OWN)
def test_updates_in_place(build: Build) -> None:
    """The first output overwrites the first input."""
    compare(build, {0: 0}, build.__name__)


def check_overwrites(plan: Schedule) -> None:
    """No statement of a kernel reads an array after another one has written over its memory.

    Running a kernel does not always show that: a value that was loaded before may be used again.
    """
    places = plan.places()
    for kernel in plan.kernels:
        statements = nest.walk(lower(kernel, GOLDEN).parallel)
        together = {id(item) for one in statements for item in one.inside
                    if isinstance(one, nest.Stores)}  # fmt: skip
        written: dict[Source, Array] = {}  # by memory: the array that is there now
        for one in statements:
            values = [] if id(one) in together else [
                *one.parts()[0], *(item.value for item in getattr(one, "items", ()))
            ]  # fmt: skip
            for load in expr.loads(*values):
                array = load.array.of or load.array
                there = written.get(places.get(array), array)
                assert there == array, f"{array} is read after {there} was written over it"
            for array in one.parts()[3]:
                array = array.of or array
                if array in places:
                    written[places[array]] = array


def test_the_check_of_overwrites_can_fail() -> None:
    plan = plan_of(old_value_in_several_columns, {0: 0})
    (new,) = (array for held in plan.held for array in held.arrays)
    with pytest.raises(AssertionError, match="s0 is read after t1 was written over it"):
        check_overwrites(replace(plan, slots={**plan.slots, new: 0}))


def temporaries(plan: Schedule) -> int:
    """Bytes in the arena."""
    return sum(a.size * a.dtype.itemsize for one in plan.held for a in one.arrays)


def test_an_elementwise_update_needs_no_memory() -> None:
    plan = plan_of(plus_one, {0: 0})
    assert len(plan.kernels) == 1 and plan.arena_bytes == 0
    plan = plan_of(own_softmax, {0: 0})
    assert len(plan.kernels) == 1 and plan.arena_bytes == 0


def test_a_scatter_into_its_own_base_copies_nothing() -> None:
    plan = plan_of(own_scatter, {0: 0})
    (kernel,) = plan.kernels
    assert kernel.stages[0].in_place and plan.arena_bytes == 0


def test_a_transposed_update_goes_through_a_temporary() -> None:
    plan = plan_of(transposed_plus_one, {0: 0})
    assert len(plan.kernels) == 2 and temporaries(plan) == 40 * 40 * 4
    assert [kernel.stages[-1].array.name for kernel in plan.kernels][-1] == "o0"


def across_its_product(inputs: Inputs) -> list[Node]:
    """The old value is read in the product's order, but the product is stored transposed."""
    x, left, right = inputs(24, 24), inputs(24, 24), inputs(24, 24)
    result = product(left, right)
    return [g.contiguous(transpose(result)), add(result, x)]


def across_as_it_is_read(inputs: Inputs) -> list[Node]:
    x, left, right = inputs(24, 24), inputs(24, 24), inputs(24, 24)
    return [g.contiguous(transpose(add(product(left, right), transpose(x))))]


def shorter_rows(inputs: Inputs) -> list[Node]:
    """Row r of the reader ends before row r of the old value."""
    x = inputs(40, 80)
    short = g.reshape(g.shrink(g.reshape(x, (3200,)), [(0, 1600)]), (40, 40))
    twice = mul(short, 2.0)
    return [add(x, g.expand(total(twice, 1), (40, 80))), twice]


@pytest.mark.parametrize("build", [across_its_product, across_as_it_is_read, shorter_rows])
def test_rows_that_are_elsewhere_in_what_they_overwrite(build: Build) -> None:
    compare(build, {0: 0}, build.__name__)


def swap(inputs: Inputs) -> list[Node]:
    x, y = inputs(30, 7), inputs(30, 7)
    return [add(y, 0.5), add(x, 0.5)]


def rotation(inputs: Inputs) -> list[Node]:
    x, y, z = inputs(30, 7), inputs(30, 7), inputs(30, 7)
    return [mul(y, 2.0), mul(z, 2.0), mul(x, 2.0)]


def old_and_new(inputs: Inputs) -> list[Node]:
    """Other outputs read the old x: by rows, by columns, in a product."""
    x, y = inputs(30, 30), inputs(30, 30)
    return [add(x, 1.0), total(x, 0), softmax(x, 1), product(y, x), mul(add(x, 1.0), 2.0)]


def moments(inputs: Inputs) -> list[Node]:
    """Adam's update: three values in place, from one gradient."""
    weight, first, second, x = inputs(20, 10), inputs(20, 10), inputs(20, 10, low=0), inputs(20, 10)
    gradient = mul(x, weight)
    m = add(mul(first, 0.9), mul(gradient, 0.1))
    v = add(mul(second, 0.99), mul(mul(gradient, gradient), 0.01))
    step = ew(Op.DIV, m, add(ew(Op.SQRT, v), 1e-3))
    return [ew(Op.SUB, weight, mul(step, 0.1)), m, v, total(gradient, 0, 1)]


def test_a_swap() -> None:
    compare(swap, {0: 0, 1: 1}, "swap")


def test_a_rotation() -> None:
    compare(rotation, {0: 0, 1: 1, 2: 2}, "rotation")


def test_readers_of_the_old_value() -> None:
    compare(old_and_new, {0: 0}, "old and new")


def test_an_optimizers_step_is_one_pass() -> None:
    compare(moments, {0: 0, 1: 1, 2: 2}, "moments")
    plan = plan_of(moments, {0: 0, 1: 1, 2: 2})
    updates = [k for k in plan.kernels if any(a.name in ("o0", "o1", "o2") for a in k.stored)]
    assert len(updates) == 1


@pytest.mark.parametrize("batch", range(8))
def test_random_graphs_in_place(batch: int) -> None:
    """Each root overwrites the first free input of its shape."""
    tried = 0
    for seed in range(1000 + 10 * batch, 1010 + 10 * batch):
        build = random_program(seed)
        graph, inputs = graph_of(build)
        in_place: dict[int, int] = {}
        for root_number, root in enumerate(graph.roots):
            for slot, node in enumerate(inputs.nodes):
                free = root_number not in in_place and slot not in in_place.values()
                if free and node.shape == root.shape and root.op is not Op.BUFFER:
                    in_place[root_number] = slot
        if in_place:
            compare(build, in_place, f"seed {seed}, in place {in_place}")
            tried += 1
    assert tried


def test_the_check_of_orders_can_fail() -> None:
    plan = plan_of(transposed_plus_one, {0: 0})
    with pytest.raises(AssertionError):
        check_order(
            Schedule(plan.kernels[::-1], plan.slots, plan.held)
        )


def test_shorthands() -> None:
    """The helper functions of programs mean the same as in numpy."""
    inputs = Inputs()
    a, b = inputs(3, 4), inputs(4, 2)
    x = {0: np.arange(12, dtype=np.float32).reshape(3, 4), 1: np.ones((4, 2), np.float32)}
    found = evaluate([product(a, b), softmax(a, 0), add(number(1, a), a)], x)
    powers = np.exp(x[0] - x[0].max(0))
    np.testing.assert_allclose(found[0], x[0] @ x[1])
    np.testing.assert_allclose(found[1], powers / powers.sum(0), rtol=1e-6)
    np.testing.assert_array_equal(found[2], x[0] + 1)
    assert found[0].dtype == np.float32 and a.dtype is F32


def test_a_large_product_with_a_vector_does_not_join_the_one_row_before_it() -> None:
    """With unpacked weights: a sum of two products per row, no contraction, with 512 rows."""

    def build(inputs: Inputs) -> list[Node]:
        x, w, v = inputs(1, 1, 256), inputs(1, 512, 256), inputs(1, 512, 256)
        normal = mul(x, ew(Op.SQRT, mean(mul(x, x), 2)))
        wide = g.expand(normal, (1, 512, 256))
        return [total(add(mul(wide, w), mul(wide, v)), 2)]

    kernels = plan_of(build).kernels
    assert len(kernels) == 2, "one for the row, and one that runs in parallel over 512 others"


def test_a_long_sum_of_products_is_several_kernels() -> None:
    """LLVM's compile time grows with the square of a kernel's size."""

    def build(i: Inputs) -> list[Node]:
        result = mul(i(16), i(16))
        for _ in range(899):
            result = add(result, mul(i(16), i(16)))
        return [result]

    plan = plan_of(build)
    assert 3 <= len(plan.kernels) <= 8
    for kernel in plan.kernels:
        read = {load.array for s in kernel.stages for load in expr.loads(*s.exprs())}
        assert len(read) <= 2 * MOST_ARRAYS + 2 * DEEPEST
