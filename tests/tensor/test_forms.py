"""Gradients of a graph of a known form equal those computed by the rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.graph.build import custom
from minigrad.tensor import backward

FORMS: dict[str, Any] = {
    "a product": lambda x, y: (x @ y.T).relu().square().mean(),
    "rules of their own": lambda x, y: (x.gelu() * y.sigmoid()).log1p().sum(),
    "zero": lambda x, y: (x * 0.0 + y).exp().sum(),
    "minus zero": lambda x, y: (x * -0.0 + y).exp().sum(),
    "parts": lambda x, y: (x[0] * y[1:].sum(0)).cat(x[1]).max(),
    "a loss": lambda x, y: (x + y).cross_entropy(Tensor([0, 2, 1])),
    "of one": lambda x, y: x.square().sum() + y.detach().sum(),
}


def leaves() -> list[Tensor]:
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    return [Tensor(value, requires_grad=True) for value in values]


def gradients(loss: Tensor, of: list[Tensor]) -> list[Any]:
    """Gradients as nodes, since equal nodes are one object."""
    for leaf in of:
        leaf.grad = None
    loss.backward()
    return [None if leaf.grad is None else leaf.grad.raw for leaf in of]


def by_rules(loss: Tensor, of: list[Tensor]) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backward, "is_watched", lambda: True)
        return gradients(loss, of)


@pytest.fixture(autouse=True)
def no_forms() -> None:
    backward._forms.clear()
    backward._once.clear()


@pytest.mark.parametrize("name", FORMS)
def test_a_form_seen_before_has_the_gradients_of_its_rules(name: str) -> None:
    for other in (FORMS[name], *FORMS.values()) * 3:
        of = leaves()
        loss = other(*of)
        assert gradients(loss, of) == by_rules(loss, of)
    assert len(backward._forms) == len(FORMS)


def test_each_loop_is_another_form() -> None:
    results = []
    for _ in range(4):
        of = leaves()
        x, y = of
        Tensor.scan(lambda c, e, y=y: (c * e + y[0], c), x[0], x)[1].sum().backward()
        results.append([leaf.grad.tolist() for leaf in of])
    assert results.count(results[0]) == 4 and not backward._forms


def test_who_wants_a_gradient_is_part_of_the_form() -> None:
    for marked in ((True, True), (True, False), (False, True)) * 3:
        of = leaves()
        for leaf, wanted in zip(of, marked, strict=True):
            leaf.requires_grad = wanted
        loss = FORMS["a product"](*of)
        found = gradients(loss, of)
        assert [g is not None for g in found] == list(marked)
        assert found == by_rules(loss, of)


def test_what_is_another_form_each_time_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "MOST_ONCE", 8)
    monkeypatch.setattr(backward, "MOST_FORMS", 2)
    for size in range(1, 20):
        x = Tensor(np.ones(size, np.float32), requires_grad=True)
        x.square().sum().backward()
    assert not backward._forms and len(backward._once) <= 8
    for size in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5):
        x = Tensor(np.ones(size, np.float32), requires_grad=True)
        x.square().sum().backward()
        assert x.grad.tolist() == [2.0] * size
        assert len(backward._forms) <= 2


def test_a_form_keeps_no_memory() -> None:
    for _ in range(4):
        of = leaves()
        FORMS["a product"](*of).backward()
    kept = [node for one in backward._forms.values() for node in one.kept]
    assert backward._forms and not any(node.op.value == "buffer" for node in kept)


def test_a_rule_that_is_made_each_time_is_not_kept() -> None:
    """A new rule may get the hash of a freed one that was at its memory address."""
    for _ in range(8):
        of = leaves()
        node = of[0].node
        made = Tensor._of(custom(node, [node], lambda _, g: [g + g]))
        made.sum().backward()
        assert of[0].grad.tolist() == [[2.0] * 4] * 3
    assert not backward._forms
