"""Which values are stored, and that a value read twice at one place is computed once."""

from __future__ import annotations

from minigrad import Tensor
from minigrad.compile import schedule_of
from minigrad.graph import build as g
from minigrad.graph.canonical import canonicalize
from minigrad.graph.node import Node, Op
from minigrad.graph.rewrite import without_rules
from minigrad.schedule import expr
from minigrad.schedule.schedule import Schedule

from .machine import GOLDEN
from .programs import DEVICE, Inputs, add, ew, mul, plan_of, product, total


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


def data(*shape: int) -> Tensor:
    return Tensor.ones(*shape, device=DEVICE).realize()


def plan_for(*tensors: Tensor) -> Schedule:
    roots = [tensor.raw for tensor in tensors]
    return schedule_of(canonicalize(without_rules(roots)).graph(), GOLDEN)


def test_an_activation_leaves_its_derivative_for_later() -> None:
    """tanh (or erf) is computed in the product's kernel, and not again in the backward pass."""
    for approximate in ("tanh", "none"):
        first, second = data(32, 48), data(48, 32)
        hidden = (data(64, 32) @ first).gelu(approximate)
        loss = (hidden @ second).square().sum()
        plan = plan_for(loss, *loss.gradient(first, second))
        dear = [
            number
            for number, kernel in enumerate(plan.kernels)
            for stage in kernel.stages
            if any(e.op in (Op.TANH, Op.ERF) for e in expr.walk(stage.body))
        ]
        assert len(set(dear)) == 1, dear
        made = plan.kernels[dear[0]]
        assert made.kind == "contraction" and made.stages[0].array not in made.stored
        assert len(made.stored) == 2  # the activation and its derivative


def test_what_ends_a_product_is_kept_in_the_order_of_that() -> None:
    """An addition, and then heads × rows × width for the next product: no kernel of its own."""

    def build(inputs: Inputs) -> list[Node]:
        x = add(product(inputs(96, 32), inputs(32, 96)), inputs(96, 96))
        heads = g.permute(g.reshape(x, (96, 6, 16)), (1, 0, 2))
        return [product(g.reshape(heads, (96 * 6, 16)), inputs(16, 40))]

    assert [kernel.kind for kernel in plan_of(build).kernels] == ["contraction"] * 2


def test_large_updates_with_a_number_in_common_are_kernels_of_their_own() -> None:
    """One loop over many parameters' large arrays is slow; small arrays share a kernel."""

    def build(inputs: Inputs, size: int) -> list[Node]:
        factor = g.expand(inputs(1), (size,))
        return [mul(inputs(size), factor) for _ in range(3)]

    assert len(plan_of(lambda inputs: build(inputs, 1 << 14)).kernels) == 3
    assert len(plan_of(lambda inputs: build(inputs, 1 << 10)).kernels) == 1


def test_what_is_costly_for_few_does_not_make_all_that_it_is_read_for_costly() -> None:
    """Gradients of the distances of all pairs: differences are computed again, none is stored."""

    def build(inputs: Inputs) -> list[Node]:
        n, d = 100, 64
        x, y = inputs(n, d), inputs(n, d)
        shape = (n, n, d)
        wide = (g.reshape(x, (n, 1, d)), g.reshape(y, (1, n, d)))
        away = ew(Op.SUB, *(g.expand(one, shape) for one in wide))
        near = ew(Op.EXP, ew(Op.SIN, ew(Op.EXP, total(mul(away, away), 2))))
        terms = mul(g.expand(g.reshape(near, (n, n, 1)), shape), away)
        return [total(terms, 1), total(ew(Op.NEG, terms), 0)]

    assert plan_of(build).arena_bytes < 100 * 100 * 64


def test_sums_of_neighbours_in_two_dimensions_are_stored_between_them() -> None:
    """Otherwise each sum along one axis would read all elements of those along the other."""
    x, gradient = data(8, 64, 56, 56), data(8, 64, 112, 112)
    y = x.interpolate(scale_factor=2, mode="linear")
    plan = plan_for(*y.gradient(x, gradient=gradient))
    loads = [stage.loads for kernel in plan.kernels for stage in kernel.stages]
    assert max(map(len, loads)) < 20, list(map(len, loads))


def test_a_loss_and_its_gradients_are_one_kernel() -> None:
    """The loss is a sum of rows' sums, each computed beside that row's gradients."""
    for shape in ((256, 784), (64, 600), (8, 16, 1024), (1000, 1000)):
        x, y = data(*shape), data(*shape)
        loss = (x - y).square().mean()
        first, last = plan_for(loss, *loss.gradient(x, y)).kernels
        assert len(first.stages) == 4 and last.rows == 1, shape


def test_gradients_of_a_product_that_is_summed_are_sums_of_rows_and_columns() -> None:
    x, w = data(128, 64), data(64, 256)
    plan = plan_for(*(x @ w).sum().gradient(x, w))
    iterations = [stage.iterations for kernel in plan.kernels for stage in kernel.stages]
    assert max(iterations) == 64 * 256, iterations


def test_gradients_of_a_convolution_that_is_summed_are_products() -> None:
    """Zeros around the gradient, which is 1, are not conditions for each term."""
    x, w = data(4, 8, 16, 16), data(16, 8, 3, 3)
    plan = plan_for(*x.conv2d(w, padding=1).sum().gradient(x, w))
    heavy = [kernel.kind for kernel in plan.kernels
             if max(stage.iterations for stage in kernel.stages) > 1 << 20]  # fmt: skip
    assert heavy == ["contraction"] * 2, [kernel.kind for kernel in plan.kernels]
