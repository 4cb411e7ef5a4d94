"""Invalid weights and probabilities raise, at the operation that reads them, on every device.

PyTorch raises, too; here they gave an arbitrary draw, or a NaN loss.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from devices import CPU, OPENCL, REFERENCE, opened

from minigrad import Context, Tensor, jit, nn
from minigrad.errors import BoundsError, DomainError


@pytest.fixture(autouse=True, params=[REFERENCE, CPU, OPENCL])
def on_each(request: pytest.FixtureRequest) -> Iterator[None]:
    with Context(DEVICE=opened(request.param)):
        yield


ONES = [1.0, 1.0]
# an operation on a tensor, a value that is invalid for it, and the error message
WRONG: list[tuple[Callable[[Tensor], Tensor], list[float], str]] = [
    (lambda x: x.multinomial(), [1.0, -1.0], "value -1.0 at position (0, 1) is not a weight"),
    (lambda x: x.multinomial(3, True), [-1.0, 1.0], "at position (0, 0) is not a weight"),
    (lambda x: x.multinomial(), [float("nan"), 1.0], "value nan at position (0, 0)"),
    (lambda x: x.multinomial(), [1.0, float("inf")], "value inf at position (0, 1)"),
    (lambda x: x.multinomial(), [0.0, 0.0], "the largest weight of a row"),
    (lambda x: x.stack(x + 1).multinomial(2, True), [0.0, 0.0], "at position (0, 0)"),
    (lambda x: x.bernoulli(), [0.5, 1.5], "value 1.5 at position (1,) is not a probability"),
    (lambda x: x.bernoulli(x), [-0.5, 0.5], "value -0.5 at position (0,)"),
    (lambda x: x.binary_crossentropy(Tensor(ONES)), [0.5, 2.0], "binary_crossentropy_logits"),
    (lambda x: x.binary_crossentropy(Tensor(ONES)), [-0.5, 0.5], "value -0.5 at position (0,)"),
    (lambda x: x.binary_crossentropy(Tensor(ONES)), [float("nan"), 0.5], "value nan"),
    (lambda x: Tensor([0.5, 0.5]).binary_crossentropy(x), [2.0, 0.0], "targets in 0 … 1"),
    (lambda x: nn.BCELoss()(x, Tensor(ONES)), [0.5, 2.0], "value 2.0 at position (1,)"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_values_that_are_none_raise(number: int) -> None:
    call, given, words = WRONG[number]
    with pytest.raises(DomainError, match=re.escape(words)) as caught:
        call(Tensor(given)).tolist()
    assert __file__.rpartition("/")[2] in str(caught.value)
    assert isinstance(caught.value, BoundsError | ValueError | RuntimeError)


def test_values_at_the_ends_go_on_working() -> None:
    """0 and 1 are probabilities, and a weight may be 0, or tiny among zeros."""
    assert Tensor([0.0, 1e-30]).multinomial(4, True).tolist() == [1] * 4
    assert Tensor([0.0, 3.0]).multinomial(2).tolist() == [1, 0]
    assert Tensor([0.0, 1.0]).bernoulli().tolist() == [0.0, 1.0]
    assert Tensor([0, 1]).bernoulli().tolist() == [0, 1]
    assert Tensor([0.0, 1.0]).binary_crossentropy(Tensor([0.0, 1.0])).item() == 0


def test_each_interval_of_one_tensor_counts() -> None:
    """All checks of a tensor run in one program, whichever result is read first."""
    limits = [("a weight", 0.0, 9.0), ("a probability", 0.0, 1.0)]
    for order in (limits, limits[::-1]):
        x = Tensor([0.5, 2.0]).realize()
        results = [x._within(name, "none", "less", *ends) + 1 for name, *ends in order]
        with pytest.raises(DomainError, match="a probability: value 2"):
            Tensor.realize(*results)
            results[0].tolist()  # an asynchronous device reports it late


def test_constants_raise_at_once() -> None:
    with pytest.raises(DomainError, match=r"value 2\.0 is not a probability"):
        Tensor.full((3,), 2.0).binary_crossentropy(Tensor.ones(3))


def test_gradients_raise_alone() -> None:
    """Also if the loss is not read; valid values have first and second derivatives."""
    x = Tensor([0.5, 2.0], requires_grad=True)
    x.binary_crossentropy(Tensor(ONES)).backward()
    with pytest.raises(DomainError, match=r"value 2\.0"):
        x.grad.tolist()
    y = Tensor([0.5, 0.25], requires_grad=True)
    (slope,) = y.binary_crossentropy(Tensor(ONES), "sum").gradient(y)
    (bend,) = slope.sum().gradient(y)
    assert slope.tolist() == [-2.0, -4.0] and bend.tolist() == [4.0, 16.0]


def test_captured_steps_raise_and_go_on() -> None:
    @jit
    def step(x: Tensor) -> Tensor:
        return x.binary_crossentropy(Tensor(ONES)).realize()

    def lost(value: float) -> Any:
        return step(Tensor([value, 1.0])).item()

    before = [lost(value) for value in (0.5, 0.25, 0.5)]
    with pytest.raises(DomainError, match=r"value 3\.0 at position \(0,\)"):
        lost(3.0)
    assert lost(0.25) == before[1]


def test_values_in_a_scan_raise() -> None:
    def step(total: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        total = total + x.binary_crossentropy(Tensor(ONES))
        return total, total

    assert Tensor.scan(step, Tensor(0.0), Tensor([ONES, ONES]))[0].item() == 0
    with pytest.raises(DomainError, match=r"value 3\.0 at position \(1, 1\)"):
        Tensor.scan(step, Tensor(0.0), Tensor([ONES, [1.0, 3.0]]))[0].item()
