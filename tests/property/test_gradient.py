"""First and second derivatives of every differentiable operation, in float64.

The loss is a weighted sum of all float results, so that no symmetry hides an error. Leaves are the
bases of views: gradients flow through transposes, slices and pads too.

Tolerance: a central difference with step h = 1e-5 errs by h²·f‴/6, below 1e-8 for the values that
the table draws (f‴ < 600), and by rounding, ε·|loss|/h, below 1e-9 for losses below 100. 1e-6 of
the gradient's magnitude is far above both, and far below any mistake in a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Context, Tensor
from minigrad.errors import GradientError

from .compare import REFERENCE
from .inputs import FLOATS, Input
from .layouts import LAYOUTS
from .operation import Case, Operation, as_tuple, evaluate, make_case
from .operations import OPERATIONS
from .plans import Plan

STEP = 1e-5
TOLERANCE = 1e-6
ELEMENTS = 40  # for operands of at most so many elements, each element's derivative is checked
DIFFERENTIABLE = {o.name: o for o in OPERATIONS if o.differentiable}
Arrays = list[np.ndarray]


def _float_inputs(case: Case) -> list[int]:
    return [n for n, i in enumerate(case.inputs) if i.dtype == "float64"]


def _weights(shape: tuple[int, ...], position: int) -> np.ndarray:
    return np.random.default_rng([position, *shape]).uniform(-1, 1, shape)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _view(given: Input, base: Any, numpy: bool) -> Any:
    layout = LAYOUTS[given.layout]
    return (layout.numpy_view if numpy else layout.tensor_view)(base, given.shape)


def gradients(of: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
    """Gradients by each target; zeros for targets on which `of` does not depend differentiably.

    The numerical check then confirms that they are zero.
    """
    try:
        return list(of.gradient(*targets))
    except GradientError:
        if len(targets) == 1:
            return [Tensor(np.zeros(targets[0].shape), device=targets[0].device)]
        return [gradients(of, [target])[0] for target in targets]


class Loss:
    """The weighted sum of an operation's float results, as a function of its operands' bases."""

    def __init__(self, operation: Operation, case: Case, device: str) -> None:
        self.operation, self.case, self.device = operation, case, device
        self.active = _float_inputs(case)
        self.bases = [i.base() for i in case.inputs]

    def tensor(self, bases: Sequence[Tensor]) -> Tensor:
        """The loss as a lazy tensor."""
        views = [_view(i, b, False) for i, b in zip(self.case.inputs, bases, strict=True)]
        results = as_tuple(self.operation.call(*views, **self.case.parameters))
        total = None
        for position, result in enumerate(results):
            if result.dtype.is_float:
                weights = Tensor(_weights(result.shape, position), device=self.device)
                term: Tensor = (result * weights).sum()
                total = term if total is None else total + term
        assert total is not None, "no float result"
        return total

    def number(self, bases: Arrays) -> float:
        """The loss computed by numpy if the row has a reference, else by the device."""
        reference = self.operation.reference
        if reference is None:
            return float(self.tensor([Tensor(b, device=self.device) for b in bases]).item())
        views = [_view(i, b, True) for i, b in zip(self.case.inputs, bases, strict=True)]
        results = as_tuple(reference(*views, **self.case.parameters))
        return float(
            sum(
                np.sum(np.asarray(r) * _weights(np.shape(r), position))
                for position, r in enumerate(results)
                if np.asarray(r).dtype == np.float64
            )
        )

    def moved(self, direction: Arrays, step: float) -> Arrays:
        """The bases, with the float ones moved along a direction."""
        bases = list(self.bases)
        for position, d in zip(self.active, direction, strict=True):
            bases[position] = bases[position] + step * d
        return bases

    def slope(self, direction: Arrays) -> float:
        """The derivative along a direction, by central differences."""
        ahead = self.number(self.moved(direction, STEP))
        return (ahead - self.number(self.moved(direction, -STEP))) / (2 * STEP)

    def leaves(self, bases: Arrays) -> list[Tensor]:
        """The bases as tensors."""
        return [Tensor(b, device=self.device) for b in bases]

    def gradient(self) -> Arrays:
        """The gradients computed by the device."""
        leaves = self.leaves(self.bases)
        found = gradients(self.tensor(leaves), [leaves[n] for n in self.active])
        Tensor.realize(*found)
        for leaf, gradient in zip((leaves[n] for n in self.active), found, strict=True):
            assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)
        return [g.numpy() for g in found]

    def curvature(self, first: Arrays, second: Arrays) -> tuple[float, float]:
        """The second derivative along two directions: by the device, and by differences of its
        first derivatives."""

        def slope_along_first(bases: Arrays) -> tuple[Tensor, list[Tensor]]:
            leaves = self.leaves(bases)
            active = [leaves[n] for n in self.active]
            terms = [
                (g * Tensor(d, device=self.device)).sum()
                for g, d in zip(gradients(self.tensor(leaves), active), first, strict=True)
            ]
            return _sum(terms), active

        slope, active = slope_along_first(self.bases)
        products = [
            (g * Tensor(d, device=self.device)).sum()
            for g, d in zip(gradients(slope, active), second, strict=True)
        ]
        ahead = slope_along_first(self.moved(second, STEP))[0]
        behind = slope_along_first(self.moved(second, -STEP))[0]
        Tensor.realize(*products, ahead, behind)
        numeric = (float(ahead.item()) - float(behind.item())) / (2 * STEP)
        return float(sum(p.item() for p in products)), numeric


def _directions(loss: Loss, seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return [generator.uniform(-1, 1, loss.bases[n].shape) for n in loss.active]


def _near(actual: float, wanted: float, magnitude: float) -> bool:
    return abs(actual - wanted) <= TOLERANCE * (1 + magnitude)


def _check_direction(loss: Loss, gradient: Arrays, seed: int) -> None:
    direction = _directions(loss, seed)
    along = sum(float(np.sum(g * d)) for g, d in zip(gradient, direction, strict=True))
    size = sum(float(np.sum(np.abs(g * d))) for g, d in zip(gradient, direction, strict=True))
    wanted = loss.slope(direction)
    assert _near(along, wanted, size), (
        f"{loss.operation.name}, {loss.case}:\nderivative along a direction: got {along!r}, "
        f"central difference {wanted!r}"
    )


def _check_elements(loss: Loss, gradient: Arrays) -> None:
    most = max((float(np.max(np.abs(g), initial=0)) for g in gradient), default=0.0)
    for operand, values in enumerate(gradient):
        for place in np.ndindex(values.shape):
            direction = [np.zeros_like(g) for g in gradient]
            direction[operand][place] = 1
            wanted = loss.slope(direction)
            assert _near(float(values[place]), wanted, most), (
                f"{loss.operation.name}, {loss.case}:\nderivative by operand {operand} at {place}: "
                f"got {values[place]!r}, central difference {wanted!r}"
            )


def _check(operation: Operation, case: Case, device: str, seed: int) -> None:
    loss = Loss(operation, case, device)
    if not loss.active:
        return
    with np.errstate(all="ignore"), Context(DEVICE=device):
        if not np.isfinite(loss.number(loss.bases)):
            return  # such as the variance of one element
        gradient = loss.gradient()
        _check_direction(loss, gradient, seed)
        if sum(g.size for g in gradient) <= ELEMENTS:
            _check_elements(loss, gradient)


def _plans(operation: Operation) -> list[Plan]:
    """Up to three plans with elements: small ones, and the largest with two or more dimensions."""
    plans = [
        plan
        for plan in operation.plans.edges
        if plan.shapes and all(0 not in s for s in plan.shapes) and operation.smooth(plan)
    ]
    plans.sort(key=lambda plan: sum(int(np.prod(s)) for s in plan.shapes))
    deep = [plan for plan in plans if max(len(s) for s in plan.shapes) > 1]
    return [*plans[:1], *plans[len(plans) // 3 : len(plans) // 3 + 1], *deep[-1:]]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient(name: str, compiled: str) -> None:
    """Element by element for small operands; along a random direction for larger ones.

    Not of the smallest plan where random views have others: their first example is as small.
    """
    operation = DIFFERENTIABLE[name]
    first = int(operation.plans.new and operation.layouts)
    for seed, plan in list(enumerate(_plans(operation)))[first:]:
        _check(operation, make_case(operation, plan, "float64", seed, gradient=True), compiled,
               seed)  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_of_no_elements(name: str, compiled: str) -> None:
    """Operands without elements have gradients without elements."""
    operation = DIFFERENTIABLE[name]
    plans = [p for p in operation.plans.edges if any(0 in shape for shape in p.shapes)]
    for seed, plan in enumerate(plans[:1]):
        loss = Loss(operation, make_case(operation, plan, "float64", seed, gradient=True), compiled)
        with Context(DEVICE=compiled):
            for gradient in loss.gradient():
                assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", [n for n, o in DIFFERENTIABLE.items() if o.layouts])
@given(data=st.data())
def test_gradient_through_views(name: str, compiled: str, data: Any) -> None:
    """Random shapes and layouts, along a random direction."""
    operation = DIFFERENTIABLE[name]
    plan = data.draw(operation.plans.random.filter(operation.smooth))
    layouts = data.draw(st.lists(st.sampled_from(tuple(LAYOUTS)), min_size=1, max_size=3))
    seed = data.draw(st.integers(0, 2**20))
    _check(operation, make_case(operation, plan, "float64", seed, layouts, gradient=True), compiled,
           seed)  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivative(name: str, compiled: str) -> None:
    """The derivative of a directional derivative along another direction."""
    operation = DIFFERENTIABLE[name]
    plans = _plans(operation)
    for seed, plan in enumerate(plans[1:2] or plans):
        case = make_case(operation, plan, "float64", seed, gradient=True)
        loss = Loss(operation, case, compiled)
        with np.errstate(all="ignore"), Context(DEVICE=compiled):
            got, wanted = loss.curvature(_directions(loss, seed), _directions(loss, seed + 1))
        assert _near(got, wanted, abs(wanted)), (
            f"{name}, {case}: second derivative {got!r}, by differences {wanted!r}"
        )


def test_the_check_notices_a_wrong_rule() -> None:
    """A row whose reference differs from what Tensor computes must fail."""
    right = DIFFERENTIABLE["exp"]
    wrong = Operation("wrong", right.call, lambda x: np.exp(x) * 1.001, right.plans)
    case = make_case(wrong, Plan(((3,),)), "float64", gradient=True)
    with pytest.raises(AssertionError, match="derivative"):
        _check(wrong, case, REFERENCE, 0)
    assert str(evaluate(right, [case], REFERENCE)[0][0].dtype) in FLOATS
